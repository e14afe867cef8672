"""The platform on Apache Kafka: the same promises, with brokers that die, and readers that are not ours."""
import io
import json
import random
import re
import subprocess
import time

import fastavro
import paho.mqtt.client as paho
import pytest
from platform_under_test import REPOSITORY, SEED, STOP_SECONDS, Load, add_devices, check_nothing_lost, until

SCHEMAS = REPOSITORY / "crates" / "model" / "src"


@pytest.fixture
def prefix():
    return f"e2e-{SEED}-{time.monotonic_ns()}."


def connected(platform, device):
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    client.username_pw_set(platform.add_device(device))
    client.connect("127.0.0.1", platform.mqtt_port)
    client.loop_start()
    return client


def published(client, temperature):
    return client.publish("v1/telemetry", json.dumps({"temperature": temperature}), qos=1)


def stored(platform, device):
    rows = platform.query(f"SELECT temperature FROM default WHERE device = '{device}' ORDER BY temperature")
    return [float(row["temperature"]) for row in rows]


def unescaped(printed):
    """What Kafka's `Bytes` prints: printable ASCII as it is, all else as \\xNN."""
    return re.sub(rb"\\x([0-9A-F]{2})", lambda match: bytes.fromhex(match[1].decode()), printed.encode())


def test_others_read_what_devices_publish(kafkas, platforms, prefix):
    kafka = kafkas(1)
    platform = platforms(kafka.config(prefix)).start()
    client = connected(platform, "pump-1")
    message = published(client, 21.5)
    message.wait_for_publish(20)
    assert message.is_published()
    platform.settle()
    assert stored(platform, "pump-1") == [21.5]

    consume = ["--topic", f"{prefix}telemetry", "--from-beginning", "--max-messages", "1", "--timeout-ms", "30000"]
    show = ["print.key=true", "print.headers=true", "print.partition=true", "print.offset=true"]
    show += [f"value.deserializer=org.apache.kafka.common.serialization.{kind}" for kind in ("BytesDeserializer",)]
    properties = [word for setting in show for word in ("--property", setting)]
    line = kafka.tool("consumer.ConsoleConsumer", *consume, *properties).strip("\n")
    partition, offset, headers, key, value = line.split("\t", 4)
    assert partition.startswith("Partition:") and offset == "Offset:0"
    assert headers == "content-type:avro/binary,schema:dunlin.v1.Record"
    assert key == "default/pump-1"
    schema = fastavro.parse_schema(json.loads((SCHEMAS / "record.avsc").read_text()))
    record = fastavro.schemaless_reader(io.BytesIO(unescaped(value)), schema)
    assert (record["tenant"], record["device"]) == ("default", "pump-1")
    [reading] = record["readings"]
    assert (reading["metric"], reading["f64"]) == ("temperature", 21.5)

    # Who watches consumer groups sees how far the platform is.
    def passed():
        groups = kafka.tool("consumer.group.ConsumerGroupCommand", "--describe", "--group", f"{prefix}consumer.pipeline")
        return re.search(rf"{re.escape(prefix)}telemetry\s+\d+\s+1\s+1\s+0\b", groups)

    until("the group of the rules has no lag", passed)
    client.disconnect()
    client.loop_stop()


def test_kill_9_on_kafka(kafkas, platforms, prefix, tmp_path, loads):
    platform = platforms(kafkas(1).config(prefix)).start()
    chance = random.Random(SEED)
    devices = add_devices(platform)
    load = Load(platform, tmp_path, devices, 14, "--rate", "2000", "--window", "32")
    loads.append(load)
    for _ in range(3):
        time.sleep(chance.uniform(0.3, 1.5))
        platform.kill()
        platform.start()
    report = load.finish()
    assert report["reconnects"] >= 1 and report["unknown"] == 0, report
    check_nothing_lost(platform, tmp_path, [load.record])
    # And once more from the journal alone.
    code, seconds = platform.stop()
    assert code == 0 and seconds < STOP_SECONDS, (seconds, platform.log()[-2000:])
    platform.start()
    check_nothing_lost(platform, tmp_path, [load.record])


def test_a_partition_leader_dies_under_load(kafkas, platforms, prefix, tmp_path, loads):
    kafka = kafkas(3)
    platform = platforms(kafka.config(prefix)).start()
    devices = add_devices(platform)
    load = Load(platform, tmp_path, devices, 45, "--rate", "1000", "--window", "32")
    loads.append(load)
    appended = "dunlin_journal_kafka_appended_records_total"
    until("some load", lambda: platform.metric(appended) > 1_000)
    # The controller is broker 1. One of the others leads something.
    led = {leader for _, leader, _ in kafka.partitions(f"{prefix}telemetry")}
    victim = next(broker for broker in ("2", "3") if broker in led)
    kafka.kill(victim)
    longest, last, changed = 0.0, platform.metric(appended), time.monotonic()
    while load.is_running():
        now = platform.metric(appended)
        if now != last:
            longest, last, changed = max(longest, time.monotonic() - changed), now, time.monotonic()
        time.sleep(0.1)
    report = load.finish()
    assert report["unknown"] == 0, report
    until("others lead", lambda: victim not in {leader for _, leader, _ in kafka.partitions(f"{prefix}telemetry")})
    assert longest < 20, f"nothing was acknowledged for {longest:.1f} s"
    until("it is told", lambda: platform.metric("dunlin_journal_kafka_partitions_under_replicated") > 0)
    check_nothing_lost(platform, tmp_path, [load.record])
    print(f"leader {victim} killed: at most {longest:.1f} s without an acknowledgement; {report}")


def test_no_acknowledgement_with_too_few_replicas(kafkas, platforms, prefix):
    kafka = kafkas(3)
    platform = platforms(kafka.config(prefix)).start()
    client = connected(platform, "pump-1")
    first = published(client, 1.0)
    first.wait_for_publish(20)
    assert first.is_published()
    for broker in (2, 3):
        kafka.kill(broker)
    until("the brokers are missed", lambda: platform.get("/readyz", token=None)[0] == 503, seconds=30)
    refused = published(client, 2.0)
    time.sleep(5)
    assert not refused.is_published(), "acknowledged, though one replica has it and two are asked for"
    assert platform.metric("dunlin_journal_kafka_writable") == 0
    kafka.resume(2)
    refused.wait_for_publish(60)
    assert refused.is_published()
    until("ready again", lambda: platform.get("/readyz", token=None)[0] == 200)
    platform.settle()
    assert stored(platform, "pump-1") == [1.0, 2.0]
    client.disconnect()
    client.loop_stop()

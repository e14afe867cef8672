"""Power cuts, syncs that fail, a full disk: no acknowledgement that is not true, and service as soon as it can be."""
import os
import pathlib
import random
import subprocess
import threading
import time

import paho.mqtt.client as paho
import powercut
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from platform_under_test import HERE, SEED, Load, add_devices, check_acked, check_nothing_lost, stored_csv, until

CUTS = int(os.environ.get("DUNLIN_E2E_POWERCUTS", "2"))


def test_power_cuts_under_load(platforms, tmp_path, small_disk, loads):
    chance = random.Random(SEED)
    print(f"DUNLIN_E2E_SEED={SEED} DUNLIN_E2E_POWERCUTS={CUTS}")
    disk = small_disk(1024)
    platform = platforms(data=disk.mountpoint / "data").start()
    devices = add_devices(platform)
    pauses = [chance.uniform(0.2, 3.0) for _ in range(CUTS)]
    seconds = int(sum(pauses) + CUTS * 3 + 3)
    load = Load(platform, tmp_path, devices, seconds, "--rate", "2000", "--window", "32")
    loads.append(load)
    cuts = 0
    for pause in pauses:
        time.sleep(pause)
        if not load.is_running():
            break
        cuts += 1
        powercut.cut(disk.mountpoint)
        platform.kill()
        disk.remount()
        platform.start()
    report = load.finish(timeout=seconds + 120)
    assert cuts > 0 and report["unknown"] == 0, report
    check_nothing_lost(platform, tmp_path, [load.record])
    print(f"{cuts} power cuts, {report['acked']} acknowledged, {report['reconnects']} reconnects")
    platform.close()


@pytest.fixture(scope="session")
def shim(tmp_path_factory):
    library = tmp_path_factory.mktemp("fault") / "eio.so"
    source = HERE.parent / "fault" / "eio.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-O2", "-o", str(library), str(source), "-ldl"], check=True)
    return library


def failing_sync(shim, trigger, times):
    return {
        "LD_PRELOAD": str(shim),
        "FAULT_CALL": "fdatasync",
        "FAULT_PATH": "/journal/",
        "FAULT_TIMES": str(times),
        "FAULT_TRIGGER": str(trigger),
    }


def journal_failures(platform):
    _, _, text = platform.get("/metrics")
    return [line for line in text.decode().splitlines() if line.startswith("dunlin_journal") and "fail" in line]


def test_a_sync_that_fails_once(platforms, tmp_path, shim, loads):
    trigger = tmp_path / "trigger"
    platform = platforms().start(env=failing_sync(shim, trigger, 1))
    devices = add_devices(platform)
    load = Load(platform, tmp_path, devices, 15, "--rate", "1000", "--window", "32")
    loads.append(load)
    until("some load", lambda: platform.ledger()["tenants"].get("default", {}).get("accepted", 0) > 500)
    trigger.touch()
    until("the failure is logged", lambda: "fence" in platform.log().lower())
    report = load.finish()
    assert report["unknown"] == 0, f"service came back by itself: {report}"
    assert any(float(line.rsplit(" ", 1)[1]) > 0 for line in journal_failures(platform)), journal_failures(platform)
    check_nothing_lost(platform, tmp_path, [load.record])
    # What was acknowledged after the failure must be on the disk, too.
    platform.kill()
    platform.start()
    check_nothing_lost(platform, tmp_path, [load.record])


def test_a_sync_that_fails_for_good(platforms, tmp_path, shim, loads):
    trigger = tmp_path / "trigger"
    platform = platforms().start(env=failing_sync(shim, trigger, -1))
    devices = add_devices(platform)
    token = platform.add_device("late")
    before = Load(platform, tmp_path, devices, 1, "--rate", "1000", name="before")
    loads.append(before)
    assert before.finish()["unknown"] == 0
    trigger.touch()

    status, headers, body = platform.request("POST", "/v1/telemetry", b'{"temperature": 1}', token)
    assert status in (503, 507), (status, body)
    assert headers["Retry-After"], headers
    after = Load(
        platform, tmp_path, devices, 2, "--clean-sessions", "--seq-first", "2000000000", name="after", drain="2s"
    )
    loads.append(after)
    report = after.finish()
    assert report["acked"] == 0, f"acknowledged what cannot be durable: {report}"
    assert session_refusal(platform, token) == 0x88, "a session that should outlive its connection cannot be kept now"
    assert "fdatasync" in platform.log() or "fence" in platform.log().lower()
    assert platform.get("/readyz", token=None)[0] != 200, "not ready while nothing can be accepted"
    assert platform.get("/healthz", token=None)[0] == 200

    platform.kill()
    platform.start()
    # The message that met the failure was written and not synced; this kill leaves it in the page cache.
    check_nothing_lost(platform, tmp_path, [before.record, after.record], unrecorded_max=1)


def test_a_full_disk(platforms, tmp_path, small_disk, loads):
    disk = small_disk(64)
    config = "[journal]\nsegment_bytes = 4194304\npreallocate_bytes = 1048576\n"
    platform = platforms(config, data=disk.mountpoint / "data").start()
    devices = add_devices(platform)
    token = platform.add_device("prober")
    before = Load(platform, tmp_path, devices, 1, "--rate", "1000", name="before")
    loads.append(before)
    assert before.finish()["unknown"] == 0

    ballast = fill(disk.mountpoint)
    payload = b'{"temperature": 1, "note": "%s"}' % (b"x" * 8_000)

    def refused():
        status, headers, body = platform.request("POST", "/v1/telemetry", payload, token)
        if status in (503, 507):
            assert headers["Retry-After"], headers
            return body
        assert status // 100 == 2, (status, body)
        return None

    problem = until("HTTP says that the disk is full", refused, 240)
    assert b"space" in problem.lower() or b"full" in problem.lower(), problem
    assert refusal_reason(platform, token) == 0x97
    assert session_refusal(platform, token) == 0x97, "a session that should outlive its connection has no place"

    during = Load(
        platform, tmp_path, devices, 2, "--v5", "--clean-sessions", "--rate", "500", "--seq-first", "2000000000",
        name="during", drain="10s",
    )
    loads.append(during)
    report = during.finish()
    assert report["refused"] > 0, report

    ballast.unlink()
    until("service is back by itself", lambda: platform.request("POST", "/v1/telemetry", b'{"t": 1}', token)[0] // 100 == 2)
    after = Load(platform, tmp_path, devices, 1, "--rate", "1000", "--seq-first", "3000000000", name="after")
    loads.append(after)
    report = after.finish()
    assert report["acked"] == report["sent"], report
    check_full_disk_lost_nothing(platform, tmp_path, [before.record, during.record, after.record])
    platform.close()


def check_full_disk_lost_nothing(platform, directory, records):
    platform.settle()
    result = check_acked.check(records, stored_csv(platform, pathlib.Path(directory) / "stored.csv"))
    assert result["holds"], result


def fill(directory):
    """Takes all the space that is left."""
    ballast = directory / "ballast"
    with open(ballast, "wb", buffering=0) as file:
        for size in (1 << 20, 4096):
            try:
                while True:
                    file.write(b"\1" * size)
            except OSError:
                pass
        os.fsync(file.fileno())
    return ballast


def session_refusal(platform, token):
    """The reason code of the CONNACK for a session of an hour."""
    answered, reasons = threading.Event(), []

    def on_connect(_client, _data, _flags, reason, _properties):
        reasons.append(reason.value)
        answered.set()

    client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id="lasting", protocol=paho.MQTTv5)
    client.username_pw_set(token)
    client.on_connect = on_connect
    properties = Properties(PacketTypes.CONNECT)
    properties.SessionExpiryInterval = 3_600
    client.connect("127.0.0.1", platform.mqtt_port, clean_start=False, properties=properties)
    client.loop_start()
    assert answered.wait(20), "no CONNACK"
    client.loop_stop()
    return reasons[0]


def refusal_reason(platform, token):
    """The reason code of the PUBACK that a v5 client gets."""
    answered, reasons = threading.Event(), []

    def on_publish(_client, _data, _id, reason, _properties):
        reasons.append(reason.value if reason.packetType == PacketTypes.PUBACK else None)
        answered.set()

    client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    client.username_pw_set(token)
    client.on_publish = on_publish
    client.connect("127.0.0.1", platform.mqtt_port)
    client.loop_start()
    client.publish("v1/telemetry", b'{"note": "%s"}' % (b"x" * 8_000), qos=1)
    assert answered.wait(20), "no PUBACK"
    client.disconnect()
    client.loop_stop()
    return reasons[0]

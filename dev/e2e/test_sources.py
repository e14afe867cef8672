"""Telemetry from Debian's mosquitto: both ends die under load, and what the broker acknowledged is stored, once."""
import json
import os
import random
import subprocess
import threading
import time

import check_acked
import paho.mqtt.client as paho
import pytest
from platform_under_test import HERE, SEED, free_port, stored_csv, until

SCRIPT = HERE.parent / "services" / "mosquitto.sh"
DEVICES = 6


class Mosquitto:
    def __init__(self, directory, **how):
        self.directory, self.port = directory, free_port()
        self.env = os.environ | {name: "1" for name, is_so in how.items() if is_so}
        self.start()

    def start(self):
        self.script("start", str(self.port), str(self.directory))
        self.script("ready", str(self.port))

    def stop(self):
        self.script("stop", str(self.directory))

    def script(self, *arguments):
        # Its output goes on after the script: a pipe would be waited for.
        subprocess.run([str(SCRIPT), *arguments], env=self.env, check=True, timeout=30)


@pytest.fixture
def mosquittos(tmp_path):
    started = []

    def start(**how):
        started.append(Mosquitto(tmp_path / f"mosquitto-{len(started)}", **how))
        return started[-1]

    yield start
    for mosquitto in started:
        mosquitto.stop()


def source(mosquitto, **settings):
    settings = {
        "name": "plant",
        "address": f"127.0.0.1:{mosquitto.port}",
        "tenant": "default",
        "device": "plant-gw",
        "topics": ["plant/{line}/{machine}/data"],
        "child": "{line}-{machine}",
        "pause_longest_seconds": 1,
    } | settings
    return "[[gateway.source]]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in settings.items())


def taking(platform):
    platform.add_device("plant-gw", "--gateway")
    until("the broker has the subscription", lambda: platform.metric("dunlin_source_connected") == 1)


class Machine:
    """A device of the broker that publishes with QoS 1 and repeats what was not acknowledged, on one session."""

    WINDOW = 16

    def __init__(self, mosquitto, number, with_ids):
        self.topic, self.device = f"plant/a/press{number}/data", f"a-press{number}"
        self.with_ids = with_ids
        self.sent = self.acked = 0
        self.room = threading.Semaphore(self.WINDOW)
        self.client = paho.Client(
            paho.CallbackAPIVersion.VERSION2, client_id=f"press{number}", clean_session=False, reconnect_on_failure=True
        )
        self.client.reconnect_delay_set(1, 1)
        self.client.max_inflight_messages_set(self.WINDOW)
        self.client.on_publish = self.published
        self.client.connect("127.0.0.1", mosquitto.port, keepalive=10)
        self.client.loop_start()

    def published(self, *_):
        self.acked += 1
        self.room.release()

    def publish(self):
        if not self.room.acquire(timeout=0.2):
            return
        seq = self.sent
        values = {"temperature": round(20 + seq % 1000 / 100, 2), "seq": seq}
        payload = {"id": str(seq), "values": values} if self.with_ids else values
        self.sent += 1
        self.client.publish(self.topic, json.dumps(payload), qos=1)

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


class Plant:
    """Machines that publish until they are stopped."""

    def __init__(self, mosquitto, with_ids):
        self.machines = [Machine(mosquitto, n, with_ids) for n in range(DEVICES)]
        self.stopping, self.working = threading.Event(), threading.Event()
        self.working.set()
        self.threads = [threading.Thread(target=self.run, args=(machine,)) for machine in self.machines]
        for thread in self.threads:
            thread.start()

    def run(self, machine):
        while not self.stopping.is_set():
            if self.working.wait(timeout=0.2):
                machine.publish()
            time.sleep(0.002)

    def rest(self):
        """Publishes nothing more until `work`; the broker has all that was."""
        self.working.clear()
        until("the broker acknowledges all", lambda: all(m.acked >= m.sent for m in self.machines))

    def work(self):
        self.working.set()

    def finish(self, path):
        """Ends it, and returns the record for the checker."""
        self.stopping.set()
        for thread in self.threads:
            thread.join()
        self.rest()
        lines = ["device,first,last,outcome"]
        lines += [f"{m.device},0,{m.sent - 1},acked" for m in self.machines]
        path.write_text("\n".join(lines) + "\n")
        return path

    def sent(self):
        return sum(machine.sent for machine in self.machines)

    def close(self):
        self.stopping.set()
        for machine in self.machines:
            machine.close()


@pytest.fixture
def plants():
    started = []

    def start(mosquitto, with_ids):
        started.append(Plant(mosquitto, with_ids))
        return started[-1]

    yield start
    for plant in started:
        plant.close()


def all_is_stored(platform, plant):
    [row] = platform.query("SELECT count(*) AS n FROM default WHERE seq IS NOT NULL")
    return int(row["n"]) >= plant.sent()


def nothing_lost_or_doubled(platform, plant, directory):
    record = plant.finish(directory / "record.csv")
    until("all is stored", lambda: all_is_stored(platform, plant))
    tenant = platform.settle()
    result = check_acked.check([record], stored_csv(platform, directory / "stored.csv"))
    assert result["holds"] and result["acked"] > 1_000, (result, tenant)
    assert tenant["stored"] == result["rows"], (result, tenant)
    return result, tenant


def test_dunlin_dies_under_load(mosquittos, platforms, plants, tmp_path):
    mosquitto = mosquittos()
    platform = platforms(source(mosquitto)).start()
    taking(platform)
    chance = random.Random(SEED)
    # No ids of their own: what comes again is recognised by its packet.
    plant = plants(mosquitto, with_ids=False)
    for _ in range(4):
        time.sleep(chance.uniform(0.5, 2))
        platform.kill()
        platform.start()
    code, _ = platform.stop()
    assert code == 0, platform.log()[-2000:]
    platform.start()
    until("enough was sent", lambda: plant.sent() > 1_500)
    result, tenant = nothing_lost_or_doubled(platform, plant, tmp_path)
    print(f"killed four times: {result}; {tenant}")


def test_both_ends_go_and_come_back(mosquittos, platforms, plants, tmp_path):
    mosquitto = mosquittos(PERSISTENT=True)
    platform = platforms(source(mosquitto)).start()
    taking(platform)
    chance = random.Random(SEED)
    # Machines repeat to a broker that was away what it may have had: only their own ids tell.
    plant = plants(mosquitto, with_ids=True)

    for both in (False, True):
        time.sleep(chance.uniform(0.5, 2))
        # What waits in a shared subscription around its restart, mosquitto 2.0.11 does not keep (docs/sources.md).
        plant.rest()
        until("nothing waits in the broker", lambda: all_is_stored(platform, plant))
        mosquitto.stop()
        if not both:
            until("it hears of it", lambda: (platform.metric("dunlin_source_interruptions_total") or 0) > 0)
        time.sleep(chance.uniform(0.1, 1))
        if both:
            platform.kill()
        mosquitto.start()
        if both:
            platform.start()
        until("the broker has the subscription again", lambda: platform.metric("dunlin_source_connected") == 1)
        plant.work()
    until("enough was sent", lambda: plant.sent() > 1_500)
    result, tenant = nothing_lost_or_doubled(platform, plant, tmp_path)
    assert not platform.metric("dunlin_source_sessions_lost_total"), platform.log()[-3000:]
    print(f"both ends twice: {result}; {tenant}")


def test_two_processes_share_what_comes(mosquittos, platforms, plants, tmp_path):
    mosquitto = mosquittos()
    shared = [platforms(source(mosquitto, client_id=f"dunlin-{n}")).start() for n in range(2)]
    for platform in shared:
        taking(platform)
    plant = plants(mosquitto, with_ids=False)
    time.sleep(3)
    plant.finish(tmp_path / "record.csv")

    def counts():
        return [platform.metric("dunlin_source_acknowledged_total") for platform in shared]

    until("all is acknowledged", lambda: sum(counts()) == plant.sent())
    assert all(count > plant.sent() / 10 for count in counts()), counts()
    for platform, count in zip(shared, counts()):
        assert platform.settle()["stored"] == count


def test_a_broker_with_tls_and_a_password(mosquittos, platforms, tmp_path):
    mosquitto = mosquittos(SECURE=True)
    password = tmp_path / "password"
    password.write_text("wrong\n")
    ca = str(mosquitto.directory / "ca.pem")
    config = source(mosquitto, username="dunlin", password_file=str(password))
    platform = platforms(config + f"[gateway.source.tls]\nenabled = true\nca_file = {ca!r}\n").start()
    platform.add_device("plant-gw", "--gateway")
    until("it is refused", lambda: (platform.metric("dunlin_source_interruptions_total") or 0) > 1)
    assert platform.metric("dunlin_source_connected") == 0
    password.write_text("secret\n")
    until("the broker has the subscription", lambda: platform.metric("dunlin_source_connected") == 1)

    device = paho.Client(paho.CallbackAPIVersion.VERSION2)
    device.username_pw_set("dunlin", "secret")
    device.tls_set(ca)
    device.connect("127.0.0.1", mosquitto.port)
    device.loop_start()
    for payload in ('{"temperature": 21.5}', "no json"):
        message = device.publish("plant/a/press1/data", payload, qos=1)
        message.wait_for_publish(20)
    until("acknowledged", lambda: platform.metric("dunlin_source_acknowledged_total") == 2)
    assert platform.settle()["stored"] == 1
    until("the refused one is counted", lambda: platform.settle()["rejected"] == {"payload_format": 1})
    rows = platform.query("SELECT device, temperature FROM default")
    assert rows == [{"device": "a-press1", "temperature": "21.5"}]
    device.disconnect()
    device.loop_stop()

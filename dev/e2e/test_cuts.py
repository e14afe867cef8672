"""The platform as several processes, each behind a network of its own to Kafka and to PostgreSQL: one is cut off, or the
registry is away, and everybody else goes on. A real Prometheus says whether the alert rules name it."""
import contextlib
import http.client
import json
import os
import random
import threading
import time
from collections import Counter

import paho.mqtt.client as paho
import pytest
from faulty_network import Proxy
from kafka_under_test import Kafka
from platform_under_test import SEED, Load, add_devices, check_nothing_lost, until
from prometheus_under_test import Prometheus
from test_device_commands import Device
from test_roles import PARTITIONS, RULE, Beats, connected, held, say, share

ROLES = {
    "back": "store,console",
    "teller": "alerting",
    "gateway-1": "gateway",
    "rules-1": "pipeline",
    "rules-2": "pipeline",
    "clerk": "fleet",
}
SESSION_SECONDS = 6
CUT_SECONDS = 15  # More than a session, at least; until the alert fires.
REGISTRY_DOWN_SECONDS = float(os.environ.get("DUNLIN_E2E_REGISTRY_DOWN_SECONDS", "60"))
HEATERS = PARTITIONS * 2
SERVER_UNAVAILABLE = 0x88


@pytest.fixture
def house(platforms, receiver, postgres, tmp_path):
    with contextlib.ExitStack() as at_the_end:
        yield House(platforms, receiver, postgres, tmp_path, at_the_end)


class Kept:
    """Starts a process again that ends because a part of it broke, as a supervisor does."""

    def __init__(self, platform):
        self.platform, self.codes, self.stopping = platform, [], threading.Event()
        self.thread = threading.Thread(target=self.keep, daemon=True)
        self.thread.start()

    def keep(self):
        while not self.stopping.wait(0.2):
            code = self.platform.process.poll()
            if code is not None:
                self.codes.append(code)
                self.platform.start(wait=False)

    def close(self):
        self.stopping.set()
        self.thread.join()


class House:
    def __init__(self, platforms, receiver, postgres, directory, at_the_end):
        self.platforms, self.receiver, self.postgres, self.at_the_end = platforms, receiver, postgres, at_the_end
        self.chance = random.Random(SEED)
        self.data = directory / "data"
        (self.data / "rules").mkdir(parents=True)
        (self.data / "rules" / "test.toml").write_text(RULE)
        self.prefix = f"cuts-{SEED}-{time.monotonic_ns()}."
        self.kafka_ways = {name: at_the_end.enter_context(Proxy()) for name in ROLES}
        self.registry_ways = {name: at_the_end.enter_context(Proxy(postgres.port)) for name in ROLES}
        self.kafka = Kafka(directory / "kafka", 1, list(self.kafka_ways.values()))
        at_the_end.callback(self.kafka.close)
        self.processes, self.kept = {}, {}
        for name, roles in ROLES.items():
            self.processes[name] = platforms(self.config(name), data=self.data, roles=roles).start(wait=name == "back")
        for name, platform in self.processes.items():
            until(f"{name} is ready", platform.is_ready)
            at_the_end.callback(platform.close)
            self.kept[name] = Kept(platform)
            at_the_end.callback(self.kept[name].close)
        self.back, self.gateway = self.processes["back"], self.processes["gateway-1"]
        self.rules = [self.processes["rules-1"], self.processes["rules-2"]]
        until("the partitions are shared", lambda: share(self.rules), seconds=60)
        self.prometheus = Prometheus(directory / "prometheus", self.data / "admin.token", self.processes)
        at_the_end.callback(self.prometheus.close)

    def config(self, name):
        config = self.kafka.config(
            self.prefix, brokers=f"127.0.0.1:{self.kafka_ways[name].port}", telemetry_partitions=PARTITIONS, member=name,
            session_seconds_max=SESSION_SECONDS,
        )
        url = self.postgres.url.replace(str(self.postgres.port), str(self.registry_ways[name].port))
        config += self.postgres.config(url=url)
        config += "[gateway.admission]\nvalid_seconds = 600\n"
        config += "[pipeline]\ncheckpoint_seconds = 2\ninflow_seconds_max = 2\n"
        config += "[alerting.flapping]\nfirings = 1000\n"
        config += f'[[alerting.channel]]\nkind = "webhook"\nname = "hook"\nurl = "{self.receiver.url}"\nprivate_network = true\n'
        return config

    def load(self, directory, loads, seconds):
        load = Load(self.gateway, directory, add_devices(self.back), seconds, "--rate", "300", "--window", "32",
                    reconnect="240s", drain="240s")
        loads.append(load)
        until("some load", lambda: self.gateway.metric("dunlin_journal_kafka_appended_records_total") > 300)
        return load

    def heaters(self):
        heaters = Heaters(self.gateway, [self.back.add_device(f"heat-{n}") for n in range(HEATERS)])
        self.at_the_end.callback(heaters.close)
        return heaters

    def beats(self):
        beats = Beats(self.gateway, [self.back.add_device(f"beat-{n}") for n in range(HEATERS)])
        self.at_the_end.callback(beats.close)

    @contextlib.contextmanager
    def cut_off(self, way, name, *alerts):
        """Cut off for longer than a session, and until one of these alerts names the process."""
        began = time.monotonic()
        way.cut()
        yield
        until(f"one of {alerts} names {name}", lambda: self.prometheus.firing(name) & set(alerts), seconds=120)
        named = time.monotonic() - began
        time.sleep(max(0, CUT_SECONDS - named))
        print(f"{name} was cut off for {time.monotonic() - began:.1f} s; {self.prometheus.firing(name)} after {named:.1f} s")

    def mend(self, way):
        forgets = self.chance.random() < 0.5
        print(f"seed {SEED}: mended; connections from before are {'forgotten' if forgets else 'taken up again'}")
        way.mend(forgets)

    def healed(self, name):
        """By itself, a supervisor's help included."""
        until(f"{name} is ready again", lambda: is_ready(self.processes[name]), seconds=120)
        # One tells of the last ten minutes.
        until("no alert fires", lambda: self.prometheus.firing(name) <= {"DunlinRegistryFlaps"}, seconds=120)

    def told(self):
        """How often people were told what of each device; what is sent again has the same key."""
        once = dict(zip(self.receiver.keys(), self.receiver.bodies()))
        return Counter((body["device"], body["rule"], body["what"]) for body in once.values())

    def until_told(self, times_hot, times_cool):
        """Everybody is told exactly this, and not that somebody who speaks is silent."""
        expected = hot(times_hot, times_cool)
        until("everybody is told", lambda: all(self.told()[key] >= n for key, n in expected.items()), seconds=120)
        assert self.told() == expected


def hot(times_hot, times_cool):
    times = {"fired": times_hot, "resolved": times_cool}
    return Counter({(f"heat-{n}", "hot", what): times[what] for n in range(HEATERS) for what in times if times[what]})


def is_ready(platform):
    try:
        return platform.get("/readyz", token=None)[0] == 200
    except (OSError, http.client.HTTPException):
        return False


class Heaters:
    """Devices in every partition."""

    def __init__(self, gateway, tokens):
        self.clients = [connected(gateway, token) for token in tokens]

    def say(self, heat):
        for client in self.clients:
            say(client, {"heat": heat})

    def close(self):
        for client in self.clients:
            client.disconnect()
            client.loop_stop()


def test_a_gateway_is_cut_off_from_kafka(house, tmp_path, loads):
    heaters = house.heaters()
    load = house.load(tmp_path, loads, 20)
    with house.cut_off(house.kafka_ways["gateway-1"], "gateway-1", "DunlinJournalRefuses", "DunlinProcessDown"):
        waiting = [client.publish("v1/telemetry", json.dumps({"heat": 90}), qos=1) for client in heaters.clients]
    assert not any(message.is_published() for message in waiting), "acknowledged, though Kafka cannot have it"
    assert not house.told()
    house.mend(house.kafka_ways["gateway-1"])
    until("what waited is acknowledged", lambda: all(message.is_published() for message in waiting), seconds=120)
    house.until_told(1, 0)
    heaters.say(20)
    house.until_told(1, 1)
    house.healed("gateway-1")
    report = load.finish(600)
    assert report["unknown"] == 0, report
    check_nothing_lost(house.back, tmp_path, [load.record], unrecorded_max=2 * HEATERS)
    house.until_told(1, 1)


def test_a_pipeline_process_is_cut_off_from_kafka(house, tmp_path, loads):
    first, second = house.rules
    house.beats()
    heaters = house.heaters()
    load = house.load(tmp_path, loads, 40)
    heaters.say(90)
    house.until_told(1, 0)
    with house.cut_off(house.kafka_ways["rules-1"], "rules-1", "DunlinJournalRefuses"):
        heaters.say(20)
        until("the other takes over", lambda: len(held(second)) == PARTITIONS, seconds=60)
        heaters.say(91)
        house.until_told(2, 1)
        until("it knows that it lost them", lambda: "lost: the group has gone on" in first.log())
        until("it holds none of them", lambda: not held(first))
    house.mend(house.kafka_ways["rules-1"])
    until("they share again", lambda: share(house.rules), seconds=120)
    heaters.say(21)
    house.until_told(2, 2)
    house.healed("rules-1")
    until("one of them judges groups", lambda: sum(p.metric("dunlin_pipeline_groups_held") for p in house.rules) == 1)
    report = load.finish(600)
    assert report["unknown"] == 0, report
    check_nothing_lost(house.back, tmp_path, [load.record], unrecorded_max=10**9)
    house.until_told(2, 2)
    assert not house.kept["rules-1"].codes


def test_alerting_and_the_store_are_cut_off_from_kafka(house, tmp_path, loads):
    house.beats()
    heaters = house.heaters()
    load = house.load(tmp_path, loads, 40)
    with house.cut_off(house.kafka_ways["teller"], "teller", "DunlinJournalRefuses", "DunlinProcessDown"):
        heaters.say(90)
    assert not house.told(), "alerts wait"
    house.mend(house.kafka_ways["teller"])
    house.until_told(1, 0)
    house.healed("teller")
    with house.cut_off(house.kafka_ways["back"], "back", "DunlinJournalRefuses", "DunlinProcessDown"):
        heaters.say(20)
        house.until_told(1, 1)
    house.mend(house.kafka_ways["back"])
    house.healed("back")
    heaters.say(91)
    house.until_told(2, 1)
    report = load.finish(600)
    assert report["unknown"] == 0, report
    check_nothing_lost(house.back, tmp_path, [load.record], unrecorded_max=10**9)
    house.until_told(2, 1)


def test_the_fleet_is_cut_off_from_kafka_and_from_the_registry(house):
    pump = Device(0, house.back.add_device("pump-0"), house.gateway.mqtt_port)
    house.at_the_end.callback(pump.close)
    state = lambda command: house.back.json(f"/v1/commands/{command}")["state"]  # noqa: E731
    ways = [(house.kafka_ways, "DunlinJournalRefuses"), (house.registry_ways, "DunlinRegistryDown")]
    for way, alert in ((ways["clerk"], alert) for ways, alert in ways):
        with house.cut_off(way, "clerk", alert):
            command = house.back.cli("command", "send", "pump-0", "count", "--expires-in", "600").stdout.strip()
            until("the device does it", lambda command=command: pump.done[command])
        assert state(command) == "queued", "what the device says waits"
        house.mend(way)
        until("it is recorded", lambda command=command: state(command) == "replied", seconds=120)
        house.healed("clerk")
    assert set(pump.done.values()) == {1}
    assert not house.kept["clerk"].codes


def test_each_role_is_cut_off_from_the_registry(house, tmp_path, loads):
    house.beats()
    heaters = house.heaters()
    late = house.back.add_device("late")
    load = house.load(tmp_path, loads, 60)
    cut = lambda name: house.cut_off(house.registry_ways[name], name, "DunlinRegistryDown")  # noqa: E731
    with cut("gateway-1"):
        told_to_come_again(house, late)
        heaters.say(90)
        house.until_told(1, 0)
    house.mend(house.registry_ways["gateway-1"])
    house.healed("gateway-1")
    until("it is let in", lambda: answer_to(house.gateway, late) == 0)
    with cut("rules-1"):
        heaters.say(20)
        house.until_told(1, 1)
    house.mend(house.registry_ways["rules-1"])
    house.healed("rules-1")
    with cut("back"):
        heaters.say(91)
        house.until_told(2, 1)
        status, headers, _ = house.back.get("/v1/devices")
        assert status == 503 and headers["Retry-After"], (status, headers)
    house.mend(house.registry_ways["back"])
    house.healed("back")
    with cut("teller"):
        until("readiness tells it", lambda: b"registry: does not answer" in house.processes["teller"].get("/readyz", None)[2])
        heaters.say(21)
        time.sleep(3)
        assert house.told() == hot(2, 1), "alerts wait"
    house.mend(house.registry_ways["teller"])
    house.until_told(2, 2)
    house.healed("teller")
    report = load.finish(600)
    assert report["unknown"] == 0 and report["reconnects"] == 0, report
    check_nothing_lost(house.back, tmp_path, [load.record], unrecorded_max=10**9)
    house.until_told(2, 2)
    assert not any(kept.codes for kept in house.kept.values()), "nobody ended for it"


def test_the_registry_is_away_for_a_minute(house, tmp_path, loads):
    house.beats()
    heaters = house.heaters()
    late = house.back.add_device("late")
    load = house.load(tmp_path, loads, REGISTRY_DOWN_SECONDS + 20)
    heaters.say(90)
    house.until_told(1, 0)
    house.postgres.kill()
    began = time.monotonic()
    for name, platform in house.processes.items():
        does_not = lambda: b"registry: does not answer" in platform.get("/readyz", token=None)[2]  # noqa: B023, E731
        until(f"{name} says so", does_not)
        until(f"{name} counts it", lambda: platform.metric("dunlin_registry_up") == 0)  # noqa: B023
    told_to_come_again(house, late)
    # What is stored and what the rules say goes on; what they say waits.
    heaters.say(20)
    heaters.say(91)
    until("an alert names each", lambda: all("DunlinRegistryDown" in house.prometheus.firing(name) for name in ROLES), 120)
    time.sleep(max(0, REGISTRY_DOWN_SECONDS - (time.monotonic() - began)))
    assert house.told() == hot(1, 0), "alerts wait"
    house.postgres.start()
    back = time.monotonic()
    house.until_told(2, 1)
    for name in ROLES:
        house.healed(name)
    print(f"away for {back - began:.1f} s; told and ready {time.monotonic() - back:.1f} s after it was back")
    until("it is let in", lambda: answer_to(house.gateway, late) == 0)
    heaters.say(21)
    house.until_told(2, 2)
    report = load.finish(600)
    assert report["unknown"] == 0 and report["refused"] == 0 and report["reconnects"] == 0, report
    check_nothing_lost(house.back, tmp_path, [load.record], unrecorded_max=10**9)
    house.until_told(2, 2)
    assert len(set(house.receiver.keys())) == 4 * HEATERS
    assert not any(kept.codes for kept in house.kept.values()), "nobody ended for it"


def told_to_come_again(house, token):
    """Somebody who was not let in lately, over MQTT and over HTTP."""
    until("the gateway knows", lambda: house.gateway.metric("dunlin_registry_up") == 0)
    assert answer_to(house.gateway, token) == SERVER_UNAVAILABLE
    status, headers, _ = house.gateway.request("POST", "/v1/telemetry", b'{"t": 1}', token)
    assert status == 503 and headers["Retry-After"], (status, headers)


def answer_to(gateway, token):
    """What CONNECT of MQTT 5 is answered by."""
    client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv5)
    answers = []
    client.on_connect = lambda _client, _data, _flags, reason, _properties: answers.append(reason.value)
    client.username_pw_set(token)
    client.connect("127.0.0.1", gateway.mqtt_port)
    client.loop_start()
    until("an answer to CONNECT", lambda: answers)
    client.disconnect()
    client.loop_stop()
    return answers[0]

"""The platform as several processes on one Kafka: rules that share partitions, and restarts of every part."""
import glob
import json
import random
import signal
import threading
import time
from collections import Counter

import paho.mqtt.client as paho
import pytest
from platform_under_test import SEED, STOP_SECONDS, Load, add_devices, check_nothing_lost, until

PARTITIONS = 6
RULE = """
[[rule]]
name = "hot"
when = "heat > 80"

[[rule]]
name = "silent"
when = "no data for 15s"
devices = "beat-*"
"""


@pytest.fixture
def houses(kafkas, platforms, receiver, tmp_path):
    """Makes processes of one platform, on one machine: they share a directory."""

    def make(brokers=1, settings="", rules=RULE):
        return House(kafkas(brokers), platforms, receiver, tmp_path, settings, rules)

    return make


class House:
    def __init__(self, kafka, platforms, receiver, directory, settings="", rules=RULE):
        self.kafka, self.platforms, self.receiver, self.settings = kafka, platforms, receiver, settings
        self.directory = directory
        self.data = directory / "data"
        (self.data / "rules").mkdir(parents=True)
        (self.data / "rules" / "test.toml").write_text(rules)
        self.prefix = f"roles-{SEED}-{time.monotonic_ns()}."
        self.back = self.process("store,alerting,console", "back")

    def process(self, roles, member, env=None, wait=True, settings=""):
        config = self.kafka.config(self.prefix, telemetry_partitions=PARTITIONS, member=member, session_seconds_max=6)
        config += "[pipeline]\ncheckpoint_seconds = 2\ninflow_seconds_max = 2\n"
        config += "[alerting.flapping]\nfirings = 1000\n"
        config += f'[[alerting.channel]]\nkind = "webhook"\nname = "hook"\nurl = "{self.receiver.url}"\nprivate_network = true\n'
        config += self.settings + settings
        return self.platforms(config, data=self.data, roles=roles).start(env, wait)

    def told(self):
        """How often people were told what of each device. What is sent again has the same key, and is known by it."""
        once = dict(zip(self.receiver.keys(), self.receiver.bodies()))
        return Counter((body["device"], body["rule"], body["what"]) for body in once.values())


def wrong_clock(offset):
    """The environment of a process whose clock is wrong by what stands in a file."""
    [library] = glob.glob("/usr/lib/*/faketime/libfaketimeMT.so.1")
    return {
        "LD_PRELOAD": library,
        "FAKETIME_TIMESTAMP_FILE": str(offset),
        "FAKETIME_NO_CACHE": "1",
        "DONT_FAKE_MONOTONIC": "1",
        "FAKETIME_DONT_FAKE_MONOTONIC": "1",
    }


def held(pipeline):
    """Partitions that a process has."""
    _, _, text = pipeline.get("/metrics")
    return {
        line.split('partition="')[1].split('"')[0]
        for line in text.decode().splitlines()
        if line.startswith("dunlin_pipeline_lag_records{")
    }


def share(pipelines):
    """Whether every partition is held once."""
    sets = [held(pipeline) for pipeline in pipelines]
    return sum(map(len, sets)) == PARTITIONS and len(set().union(*sets)) == PARTITIONS and all(sets)


class Beats:
    """Devices that say something every second: one that is called silent was not listened to."""

    def __init__(self, gateway, tokens):
        self.clients, self.stopping = [], threading.Event()
        for token in tokens:
            client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=paho.MQTTv311, clean_session=True)
            client.username_pw_set(token)
            client.reconnect_delay_set(1, 1)
            client.connect("127.0.0.1", gateway.mqtt_port)
            client.loop_start()
            self.clients.append(client)
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def run(self):
        n = 0
        while not self.stopping.wait(1):
            n += 1
            for client in self.clients:
                client.publish("v1/telemetry", json.dumps({"beat": n}), qos=1)

    def close(self):
        self.stopping.set()
        self.thread.join()
        while self.clients:
            client = self.clients.pop()
            client.disconnect()
            client.loop_stop()


def connected(gateway, token):
    client = paho.Client(paho.CallbackAPIVersion.VERSION2)
    client.username_pw_set(token)
    client.reconnect_delay_set(1, 1)
    client.connect("127.0.0.1", gateway.mqtt_port)
    client.loop_start()
    return client


def say(client, values):
    until("connected", client.is_connected)
    message = client.publish("v1/telemetry", json.dumps(values), qos=1)
    message.wait_for_publish(60)
    assert message.is_published()


def test_one_that_stands_still_and_one_whose_clock_jumps_call_nobody_silent(houses, tmp_path):
    house = houses()
    gateway = house.process("gateway", "gateway-1")
    offset = tmp_path / "offset"
    offset.write_text("+0\n")
    jumping = house.process("pipeline", "rules-1", wrong_clock(offset))
    still = house.process("pipeline", "rules-2")
    until("the partitions are shared", lambda: share([jumping, still]), seconds=30)
    beats = Beats(gateway, [house.back.add_device(f"beat-{n}") for n in range(PARTITIONS * 2)])
    heater = connected(gateway, house.back.add_device("heat-0"))
    try:
        time.sleep(3)
        # One of them is cut off for longer than a session, and the other has all.
        still.process.send_signal(signal.SIGSTOP)
        until("the other takes over", lambda: len(held(jumping)) == PARTITIONS, seconds=30)
        say(heater, {"heat": 90})
        time.sleep(10)
        still.process.send_signal(signal.SIGCONT)
        until("it hears that it lost them", lambda: "lost: the group has gone on" in still.log(), seconds=30)
        until("they share again", lambda: share([jumping, still]), seconds=60)
        say(heater, {"heat": 20})
        # An hour ahead, from one moment to the next.
        offset.write_text("+3600\n")
        until("its clock is off", lambda: jumping.metric("dunlin_clock_timestamp_seconds") - time.time() > 3_000)
        time.sleep(25)
        say(heater, {"heat": 91})
        expected = {("heat-0", "hot", "fired"): 2, ("heat-0", "hot", "resolved"): 1}
        until("everybody is told", lambda: all(house.told()[key] >= n for key, n in expected.items()), seconds=60)
        assert house.told() == Counter(expected)
        # Silence is told all the same, when it is silence, by the process with the right clock and by the other.
        beats.close()
        silent = {(f"beat-{n}", "silent", "fired"): 1 for n in range(PARTITIONS * 2)}
        until("silence is told", lambda: all(house.told()[key] == 1 for key in silent), seconds=60)
    finally:
        beats.close()
        heater.disconnect()
        heater.loop_stop()


def test_a_console_without_a_store_answers_like_one_with(houses):
    house = houses()
    gateway = house.process("gateway", "gateway-1")
    house.process("pipeline", "rules-1")
    fronts = [house.process("console", f"front-{n}", settings=f'[console]\nstore_url = "{house.back.url}"\n') for n in (1, 2)]
    heater = connected(gateway, fronts[0].add_device("heat-0"))
    for heat in (90, 91, 20):
        say(heater, {"heat": heat})
    heater.disconnect()
    heater.loop_stop()
    # Where there is no gateway, the end of the journal is known a moment later.
    until("all is stored", lambda: house.back.settle().get("stored") == 3)
    for front in fronts:
        rows = front.query("SELECT heat FROM default WHERE device = 'heat-0' ORDER BY time")
        assert [float(row["heat"]) for row in rows] == [90, 91, 20]
        assert front.ledger()["tenants"]["default"]["stored"] == 3
        assert [device["name"] for device in front.json("/v1/devices")["devices"]] == ["heat-0"]
        assert json.loads(front.cli("rule", "backtest", "hot", "--since", "1h", "--json").stdout)["fired"] == 1
        status, _, said = front.get("/v1/readings?device=heat-0&metric=heat", token="dnu_nobody")
        assert status == 401 and b"no user's token" in said
        status, _, said = front.request("POST", "/v1/query", b"SELECT nothing FROM nowhere", front.token())
        assert status == 400, said
    # A rule that is made at one console is in force, and known at the other.
    rule = house.directory / "cold.toml"
    rule.write_text('[[rule]]\nname = "cold"\nwhen = "heat < 10"\n')
    fronts[0].cli("rule", "put", str(rule))
    assert "cold" in fronts[1].cli("rule", "list").stdout
    status, headers, _ = fronts[0].get("/v1/latest?device=heat-0")
    assert status == 200 and headers["content-type"].startswith("application/json")
    house.back.kill()
    status, headers, said = fronts[0].get("/v1/latest?device=heat-0")
    assert status == 503 and headers["Retry-After"] and b"the process with the store does not answer" in said
    assert fronts[0].get("/v1/devices")[0] == 200


def test_every_role_restarts_under_load(houses, tmp_path, loads):
    # The only gateway is away for a while, and that is no silence.
    house = houses(rules=RULE.replace("15s", "40s"))
    gateway = house.process("gateway", "gateway-1")
    pipelines = [house.process("pipeline", f"rules-{n}") for n in (1, 2)]
    until("the partitions are shared", lambda: share(pipelines), seconds=30)

    loaded = add_devices(house.back)
    beating = [house.back.add_device(f"beat-{n}") for n in range(PARTITIONS * 2)]
    heating = [house.back.add_device(f"heat-{n}") for n in range(PARTITIONS * 2)]
    chance = random.Random(SEED)
    load = Load(gateway, tmp_path, loaded, 45, "--rate", "1000", "--window", "32")
    loads.append(load)
    beats = Beats(gateway, beating)
    heaters = [connected(gateway, token) for token in heating]
    cycles = 0
    try:

        def heat(value):
            for client in heaters:
                say(client, {"heat": value})

        def restarted(process):
            code, seconds = process.stop()
            assert code == 0 and seconds < STOP_SECONDS, process.log()[-3000:]
            process.start()

        def killed(process):
            time.sleep(chance.uniform(0.1, 1))
            process.kill()
            process.start()

        events = [
            lambda: restarted(pipelines[0]),
            lambda: restarted(pipelines[1]),
            lambda: restarted(house.back),
            lambda: restarted(gateway),
            lambda: killed(pipelines[0]),
            lambda: killed(house.back),
        ]
        for event in events:
            # It is hot before, and cool again after.
            heat(90 + cycles)
            event()
            heat(20)
            cycles += 1
        # One more takes its part, and one goes for good.
        pipelines.append(house.process("pipeline", "rules-3"))
        until("three share", lambda: share(pipelines), seconds=60)
        heat(99)
        began = time.monotonic()
        pipelines.pop(0).kill()
        until("two share what three had", lambda: share(pipelines), seconds=60)
        moved = time.monotonic() - began
        heat(20)
        cycles += 1
        load.finish()
        check_nothing_lost(house.back, tmp_path, [load.record], unrecorded_max=10**9)

        expected = {(f"heat-{n}", "hot", state): cycles for n in range(len(heating)) for state in ("fired", "resolved")}
        until("everybody is told", lambda: all(house.told()[key] >= n for key, n in expected.items()), seconds=60)
        time.sleep(3)
        told = house.told()
        assert {key: told[key] for key in expected} == expected, told
        assert not [key for key in told if key[1] == "silent"], told
        print(f"{cycles} times hot; partitions of a killed process moved in {moved:.1f} s; {dict(told)}")
    finally:
        beats.close()
        for client in heaters:
            client.disconnect()
            client.loop_stop()

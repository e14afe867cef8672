"""The registry on PostgreSQL: it goes away under load and comes back, and a registry moves there from its file."""
import json
import os
import re
import subprocess
import time

import paho.mqtt.client as mqtt
import pytest
from platform_under_test import Load, add_devices, binary, check_nothing_lost, until
from test_alerting import HOT, Device, channel, the_alert

# The full run: DUNLIN_E2E_POSTGRES_DOWN_SECONDS=60.
DOWN_SECONDS = float(os.environ.get("DUNLIN_E2E_POSTGRES_DOWN_SECONDS", "10"))
SERVER_UNAVAILABLE = 0x88


def started(platforms, config, receiver, rules=HOT):
    platform = platforms(config + channel("webhook", "hook", url=receiver.url, private_network=True))
    (platform.data / "rules").mkdir(parents=True)
    (platform.data / "rules/test.toml").write_text(rules)
    return platform.start()


class Connected:
    """A device with a connection that stays."""

    def __init__(self, platform, token):
        self.client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2, protocol=mqtt.MQTTv5)
        self.answers = []
        self.client.on_connect = lambda _client, _data, _flags, reason, _properties: self.answers.append(reason.value)
        self.client.username_pw_set(token)
        self.client.connect("127.0.0.1", platform.mqtt_port)
        self.client.loop_start()
        until("an answer to CONNECT", lambda: self.answers)

    def says(self, readings, seconds=20):
        message = self.client.publish("v1/telemetry", json.dumps(readings), qos=1)
        message.wait_for_publish(seconds)
        assert message.is_published()

    def close(self):
        self.client.disconnect()
        self.client.loop_stop()


@pytest.mark.parametrize("fault", ["stop", "kill", "freeze"])
def test_postgres_is_away_under_load(platforms, tmp_path, loads, postgres, receiver, fault):
    config = postgres.config() + "[gateway.admission]\nvalid_seconds = 600\n"
    platform = started(platforms, config, receiver, HOT.replace("temperature", "heat"))  # Of which the load says nothing.
    assert not (platform.data / "registry.db").exists()
    devices = add_devices(platform)
    prober = Connected(platform, platform.add_device("prober"))
    late, known = platform.add_device("late"), platform.add_device("known")
    prober.says({"heat": 90})
    assert platform.request("POST", "/v1/telemetry", b'{"heat": 1}', known)[0] == 200
    until("the first alert is told", lambda: len(receiver.taken) == 1)

    load = Load(platform, tmp_path, devices, DOWN_SECONDS + 40, "--rate", "500", "--window", "32", reconnect="0s")
    loads.append(load)
    until("some load", lambda: accepted(platform) > 500)
    assert platform.metric("dunlin_registry_up") == 1
    getattr(postgres, fault)()
    down = time.monotonic()
    until("readiness tells it", lambda: b"registry: does not answer" in platform.get("/readyz", token=None)[2], 15)
    print(f"told after {time.monotonic() - down:.1f} s")

    assert platform.metric("dunlin_registry_up") == 0

    # Who comes is told to come again; who is there, or was let in lately, goes on.
    assert platform.request("POST", "/v1/telemetry", b'{"heat": 2}', known)[0] == 200
    status, headers, _ = platform.request("POST", "/v1/telemetry", b'{"heat": 1}', late)
    assert status == 503 and headers["Retry-After"], (status, headers)
    status, headers, _ = platform.request("GET", "/v1/devices", token=platform.token())
    assert status == 503 and headers["Retry-After"], (status, headers)
    refused = Connected(platform, late)
    assert refused.answers[0] == SERVER_UNAVAILABLE
    refused.close()
    before = time.monotonic()
    prober.says({"heat": 20})
    prober.says({"heat": 91})
    assert time.monotonic() - before < 15
    time.sleep(max(0, DOWN_SECONDS - (time.monotonic() - down)))
    assert load.is_running() and len(receiver.taken) == 1, "alerts wait"

    if fault == "freeze":
        postgres.thaw()
    else:
        postgres.start()
    back = time.monotonic()
    until("ready again by itself", platform.is_ready, 30)
    until("what happened meanwhile is told", lambda: len(receiver.taken) == 3)
    print(f"ready and told {time.monotonic() - back:.1f} s after it was back")
    assert [body["what"] for body in receiver.bodies()] == ["fired", "resolved", "fired"]
    assert platform.metric("dunlin_registry_up") == 1
    assert platform.metric("dunlin_registry_unanswered_total") >= 1
    status, _, _ = platform.request("POST", "/v1/telemetry", b'{"heat": 92}', late)
    assert status == 200
    until("and what comes then", lambda: len(receiver.taken) == 4)
    report = load.finish()
    assert report["unknown"] == 0 and report["refused"] == 0 and report["reconnects"] == 0, report
    # Those of the three others are not on record.
    check_nothing_lost(platform, tmp_path, [load.record], unrecorded_max=6)
    prober.close()

    code, _ = platform.stop()
    assert code == 0, platform.log()[-2000:]
    platform.start()
    status, _, _ = platform.request("POST", "/v1/telemetry", b'{"heat": 93}', late)
    assert status == 200, "tokens are there after a restart"
    time.sleep(1)
    assert len(set(receiver.keys())) == len(receiver.keys()) == 4, "nobody is told twice"


def accepted(platform):
    return platform.ledger()["tenants"].get("default", {}).get("accepted", 0)


class Taken(list):
    """What a receiver takes; something happens between the first and the answer to it."""

    def __init__(self, happens):
        self.happens = happens

    def append(self, taken):
        super().append(taken)
        if len(self) == 1:
            self.happens()


def test_what_was_told_when_postgres_froze_is_told_once(platforms, postgres, receiver):
    platform = started(platforms, postgres.config(), receiver)
    device = Device(platform, "press-7")
    receiver.taken = Taken(postgres.freeze)
    device.heats()
    until("it cannot be written down", lambda: "is not written down yet" in platform.log())
    assert len(receiver.taken) == 1
    postgres.thaw()
    until("it is written down", lambda: postgres.sql("SELECT state FROM notifications") == ["sent"])
    device.cools()
    until("what follows", lambda: len(receiver.taken) == 2)
    assert [body["what"] for body in receiver.bodies()] == ["fired", "resolved"]


def test_a_platform_whose_postgres_comes_later_waits_and_one_that_stops_without_it_ends(platforms, postgres):
    postgres.stop()
    platform = platforms(postgres.config(start_seconds_max=60))
    platform.start(wait=False)
    until("it waits", lambda: "PostgreSQL is not there yet" in platform.log())
    postgres.start()
    until("ready", platform.is_ready, 60)
    postgres.freeze()
    code, seconds = platform.stop()
    postgres.thaw()
    assert seconds < 20, seconds
    assert code in (0, 1), platform.log()[-2000:]

    postgres.stop()
    platform = platforms(postgres.config(start_seconds_max=1))
    platform.start(wait=False)
    assert platform.process.wait(30) == 1


def migrate(platform, *arguments):
    """(exit code, standard output, standard error)"""
    command = [binary("dunlin"), "migrate", "--data", str(platform.data), *arguments]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=platform.directory)
    return run.returncode, run.stdout, run.stderr


def told(platform):
    found = platform.json("/v1/notifications?limit=100")["notifications"]
    return sorted((n["key"], n["state"], n["reason"]) for n in found)


def shown(platform):
    alerts = platform.json("/v1/alerts")["alerts"]
    return {
        "devices": platform.json("/v1/devices")["devices"],
        "tenants": platform.json("/v1/tenants"),
        # A restart may find others in files.
        "rules": [rule for rule in platform.json("/v1/rules")["rules"] if rule["source"] == "api"],
        "silences": platform.json("/v1/silences"),
        "alerts": [platform.json(f"/v1/alerts/{alert['id']}") for alert in alerts],
        "told": told(platform),
    }


def test_a_registry_moves_to_postgres(platforms, postgres, receiver, tmp_path):
    platform = started(platforms, "", receiver)
    press, noisy, meter = Device(platform, "press-7"), Device(platform, "noisy"), Device(platform, "gw", "--gateway")
    meter.cools("meter-1")
    platform.cli("tenant", "add", "acme")
    (tmp_path / "rule.toml").write_text('[[rule]]\nname = "cold"\nwhen = "temperature < -20"\n')
    platform.cli("rule", "put", str(tmp_path / "rule.toml"))
    silence = platform.cli("silence", "add", "device=noisy", "--duration", "1h", "--comment", "wörks").stdout.strip()
    press.heats(), noisy.heats()
    until("told", lambda: len(receiver.taken) == 1)
    platform.cli("alerts", "ack", the_alert(platform, device="press-7")["id"], "--by", "ada", "--comment", "on my way")
    until("that is told, too", lambda: len(receiver.taken) == 2)
    the_alert(platform, device="noisy")

    # The server runs: a rehearsal, after which no server starts there. Twice, as it can be repeated.
    for _ in range(2):
        code, out, err = migrate(platform, "--to", postgres.url)
        assert code == 0 and "stop that server and run this again" in out, (out, err)
        assert re.search(r"copied 4 of 4 devices", err), err
    press.says({"temperature": 95})
    half = platforms(postgres.config())
    half.start(wait=False)
    assert half.process.wait(30) == 1
    assert "made while its original was in use" in half.log()

    platform.add_device("late")
    expected = shown(platform)
    code, _ = platform.stop()
    assert code == 0
    code, out, err = migrate(platform, "--to", postgres.url)
    assert code == 0 and "start the server" in out, (out, err)
    assert re.search(r"compared 5 of 5 devices", err), err

    # The same journal and store; only the registry is elsewhere.
    config = platform.config.read_text()
    platform.config.write_text(postgres.config() + config)
    os.rename(platform.data / "registry.db", tmp_path / "registry.db")
    platform.start()
    assert shown(platform) == expected
    assert postgres.sql("SELECT name FROM devices ORDER BY name") == ["gw", "late", "meter-1", "noisy", "press-7"]
    press.cools()
    until("its end is told", lambda: [b["what"] for b in receiver.bodies()] == ["fired", "acknowledged", "resolved"])
    assert the_alert(platform, device="press-7")["state"] == "resolved"
    meter.heats("meter-1")
    until("a new one", lambda: len(receiver.taken) == 4)
    platform.cli("silence", "expire", silence)
    until("what the silence kept back", lambda: [b["device"] for b in receiver.bodies()][-1] == "noisy")
    assert len(set(receiver.keys())) == len(receiver.keys()) == 5

    assert not (platform.data / "registry.db").exists()
    os.rename(tmp_path / "registry.db", platform.data / "registry.db")
    code, _, err = migrate(platform, "--to", postgres.url)
    assert code == 1 and "the target is not empty" in err, err
    code, _, err = migrate(platform, "--to", "mysql://db/dunlin")
    assert code == 3 and err.startswith("dunlin: --to"), err

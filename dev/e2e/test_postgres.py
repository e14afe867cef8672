"""The registry on PostgreSQL, which stops and freezes under load."""
import os
import subprocess
import time

import pytest
from platform_under_test import HERE, Load, add_devices, check_nothing_lost, free_port, until
from test_replay import Receiver

SCRIPT = HERE.parent / "services" / "postgres.sh"
DOWN_SECONDS = float(os.environ.get("DUNLIN_E2E_POSTGRES_DOWN_SECONDS", "10"))
CONFIG = """
[registry]
url = "postgres://dunlin@127.0.0.1:{port}/postgres"
connections_max = 4

[[alerting.channel]]
kind = "webhook"
name = "receiver"
url = "{receiver}"
"""
RULE = '[[rule]]\nname = "hot"\nwhen = "heat > 80"\n'


class Postgres:
    def __init__(self, directory):
        self.directory, self.port = str(directory), free_port()
        self.start()

    def start(self):
        self.run("start", str(self.port), self.directory, str(os.getpid()))
        self.run("ready", str(self.port))

    def run(self, *arguments):
        subprocess.run([SCRIPT, *arguments], check=True, timeout=60)


@pytest.fixture
def postgres(tmp_path):
    server = Postgres(tmp_path / "postgres")
    yield server
    server.run("remove", server.directory)


@pytest.mark.parametrize("fault", ["stopped", "frozen"])
def test_postgres_is_away_under_load(platforms, tmp_path, loads, postgres, fault):
    receiver = Receiver()
    try:
        away_under_load(platforms, tmp_path, loads, postgres, fault, receiver)
    finally:
        receiver.close()


def away_under_load(platforms, tmp_path, loads, postgres, fault, receiver):
    platform = platforms(CONFIG.format(port=postgres.port, receiver=receiver.url))
    rules = platform.data / "rules"
    rules.mkdir(parents=True)
    (rules / "hot.toml").write_text(RULE)
    platform.start()
    assert not (platform.data / "registry.db").exists()
    devices = add_devices(platform)
    prober, late = platform.add_device("prober"), platform.add_device("late")
    assert heat(platform, prober, 90) == 200
    until("the first alert is told", lambda: len(receiver.bodies) == 1)

    load = Load(platform, tmp_path, devices, DOWN_SECONDS + 15, "--rate", "500", "--window", "32", reconnect="0s")
    loads.append(load)
    until("some load", lambda: accepted(platform) > 500)
    if fault == "stopped":
        postgres.run("stop", postgres.directory, "immediate")
    else:
        postgres.run("freeze", postgres.directory)
    down = time.monotonic()
    until("readiness tells it", lambda: b"registry: does not answer" in platform.get("/readyz", token=None)[2], 10)
    status, headers, _ = platform.request("POST", "/v1/telemetry", b'{"heat": 1}', late)
    assert status == 503 and headers["Retry-After"], (status, headers)
    status, headers, _ = platform.request("GET", "/v1/devices", token="dnu_0")
    assert status == 503 and headers["Retry-After"], (status, headers)
    time.sleep(max(0, DOWN_SECONDS - (time.monotonic() - down)))
    assert load.is_running()

    if fault == "stopped":
        postgres.start()
    else:
        postgres.run("thaw", postgres.directory)
    until("ready again by itself", platform.is_ready, 30)
    assert heat(platform, late, 90) == 200
    until("the second alert is told", lambda: len(receiver.bodies) == 2)
    assert len(platform.json("/v1/alerts")["alerts"]) == 2
    report = load.finish()
    assert report["unknown"] == 0 and report["refused"] == 0 and report["reconnects"] == 0, report
    check_nothing_lost(platform, tmp_path, [load.record], unrecorded_max=2)

    code, _ = platform.stop()
    assert code == 0
    platform.start()
    assert heat(platform, late, 91) == 200, "tokens are there after a restart"
    time.sleep(1)
    assert len(receiver.bodies) == 2, "nobody is told twice"


def heat(platform, token, degrees):
    return platform.request("POST", "/v1/telemetry", b'{"heat": %d}' % degrees, token)[0]


def accepted(platform):
    return platform.ledger()["tenants"].get("default", {}).get("accepted", 0)

"""The whole fleet comes back at once: all are in again within a minute, and nothing acknowledged is lost."""
import http.client
import json
import os
import subprocess
import time

import pytest
from platform_under_test import Load, binary, check_nothing_lost, free_port, until
from storm import Crowd

IDLE = int(os.environ.get("DUNLIN_E2E_STORM_IDLE", "1000"))
ACTIVE = int(os.environ.get("DUNLIN_E2E_STORM_ACTIVE", "20"))
STORMS = int(os.environ.get("DUNLIN_E2E_STORMS", "2"))
PROCESSES = 3
BACK_SECONDS = 60
DOWN_SECONDS = 2  # so that first tries fail


def add_many(platform, names):
    """name -> token, over one connection: a process for each would take longer than the test."""
    connection = http.client.HTTPConnection("127.0.0.1", platform.http_port, timeout=30)
    headers = {"Authorization": f"Bearer {platform.token()}", "Content-Type": "application/json"}
    devices = {}
    for name in names:
        connection.request("POST", "/v1/devices", json.dumps({"name": name}), headers)
        answer = connection.getresponse()
        body = answer.read()
        assert answer.status in (200, 201), body
        devices[name] = json.loads(body)["token"]
    connection.close()
    return devices


def with_tls(directory, port):
    """A door with TLS, and what the loader needs to come in by it."""
    subprocess.run([binary("dunlin-load"), "certificates", str(directory), "nobody"], check=True)
    door = f"""
        [tls]
        certificate = "{directory}/server.pem"
        key = "{directory}/server.key"

        [[gateway.listener]]
        address = "127.0.0.1:{port}"
        tls = true
    """
    return door, ["--tls-authority", str(directory / "ca.pem")]


@pytest.mark.timeout(900)
@pytest.mark.parametrize("sessions, tls", [("clean", False), ("lasting", False), ("clean", True)])
def test_storm_after_kill_9(platforms, tmp_path, loads, sessions, tls):
    port = free_port()
    door, by_tls = with_tls(tmp_path / "certificates", port) if tls else (None, [])
    platform = platforms(door).start()
    active = add_many(platform, [f"active-{n}" for n in range(ACTIVE)])
    idle = add_many(platform, [f"idle-{n}" for n in range(min(IDLE, 1_000))])
    tokens = tmp_path / "idle.tokens"
    tokens.write_text("".join(f"{token} {name}\n" for name, token in idle.items()))
    lasting = ["--lasting"] if sessions == "lasting" else []
    crowd = Crowd(binary("dunlin-load"), port if tls else platform.mqtt_port, tokens, IDLE, PROCESSES,
                  "--reconnect-for", "10m", *lasting, *by_tls)
    loads.append(crowd)
    crowd.wait_held()
    seconds = STORMS * (30 + IDLE // 500)  # Longer than all the storms should take.
    clean = [] if lasting else ["--clean-sessions"]
    load = Load(platform, tmp_path, active, seconds, "--rate", str(20 * ACTIVE), "--window", "32",
                "--backoff-first", "1s", "--backoff-max", "30s", *clean)
    loads.append(load)
    everybody = IDLE + ACTIVE

    def all_are_in():
        return platform.json("/v1/status")["connections"] == everybody

    until("all are connected", all_are_in)
    for storm in range(STORMS):
        time.sleep(2)
        assert load.is_running(), load.errors.read_text()
        killed = time.monotonic()
        platform.kill()
        time.sleep(DOWN_SECONDS)
        platform.start()
        back = crowd.wait_back(BACK_SECONDS)
        until("the publishers are back too", all_are_in, BACK_SECONDS)
        took = time.monotonic() - killed
        print(f"storm {storm}: all {everybody} back {took:.1f} s after kill -9; {back}")
        assert back["lost"] == IDLE and took < BACK_SECONDS, (took, back)
    report = load.finish(timeout=seconds + 180)
    assert report["reconnects"] >= STORMS * ACTIVE and report["unknown"] == 0, report
    check_nothing_lost(platform, tmp_path, [load.record])

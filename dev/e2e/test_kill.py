"""kill -9 and SIGTERM under load: nothing acknowledged is lost, nothing is stored twice."""
import os
import random
import time

from platform_under_test import SEED, STOP_SECONDS, Load, add_devices, check_nothing_lost, until

KILLS = int(os.environ.get("DUNLIN_E2E_KILLS", "5"))


def test_kill_9_under_load(platform, tmp_path, loads):
    chance = random.Random(SEED)
    print(f"DUNLIN_E2E_SEED={SEED} DUNLIN_E2E_KILLS={KILLS}")
    devices = add_devices(platform)
    # Some pauses are longer than a flush of the store, most are not.
    pauses = [chance.choice([0.05, 0.3, 1.0, 2.0]) * chance.uniform(0.5, 1.5) for _ in range(KILLS)]
    seconds = int(sum(pauses) + KILLS * 1.5 + 3)
    load = Load(platform, tmp_path, devices, seconds, "--rate", "2000", "--window", "32")
    loads.append(load)
    kills = 0
    for pause in pauses:
        time.sleep(pause)
        if not load.is_running():
            break
        platform.kill()
        kills += 1
        platform.start()
    report = load.finish(timeout=seconds + 120)
    assert kills > 0 and report["reconnects"] >= 1, report
    assert report["unknown"] == 0, f"everything is answered in the end: {report}"
    check_nothing_lost(platform, tmp_path, [load.record])
    print(f"{kills} kills, {report['acked']} acknowledged, {report['reconnects']} reconnects")


def test_sigterm_under_load(platform, tmp_path, loads):
    devices = add_devices(platform)
    load = Load(platform, tmp_path, devices, 10, "--window", "32", "--rate", "4000")
    loads.append(load)
    until("some load", lambda: platform.ledger()["tenants"].get("default", {}).get("accepted", 0) > 500)
    code, seconds = platform.stop()
    assert code == 0, platform.log()[-2000:]
    assert seconds < STOP_SECONDS
    platform.start()
    report = load.finish()
    assert report["unknown"] == 0 and report["reconnects"] >= len(devices), report
    check_nothing_lost(platform, tmp_path, [load.record])

"""Every normative statement of MQTT 3.1.1 and 5 that a server can break, tried on the binary with raw packets."""
import json
import subprocess

from platform_under_test import binary

# Passed, and not applicable: docs/mqtt-conformance.md says which, and why.
SCORE = {"3.1.1": (203, 1), "5.0": (382, 4)}


def test_every_check_that_applies_passes(platform):
    command = [binary("dunlin-mqtt-conformance"), "--target", f"127.0.0.1:{platform.mqtt_port}", "--format", "json"]
    for name in ("a", "b", "c"):
        command += ["--username", platform.add_device(name)]
    # A busy machine answers late, and lateness is not what is asked about.
    run = subprocess.run([*command, "--limit-milliseconds", "10000"], capture_output=True, text=True, timeout=280)
    *checks, score = [json.loads(line) for line in run.stdout.splitlines()]
    failed = [check for check in checks if check["result"] == "fail"]
    assert not failed and run.returncode == 0, failed
    assert {of["version"]: (of["pass"], of["not_applicable"]) for of in score["score"]} == SCORE

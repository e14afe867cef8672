"""What the rules know, kept on a real S3 server: it comes back from there, and its failures are seen and got over."""
import json
import subprocess

import pytest
from platform_under_test import HERE, free_port, until

SCRIPT = str(HERE.parent / "services" / "s3.sh")
BUCKET = "rules"
RULE = '[[rule]]\nname = "hot"\nwhen = "avg(temperature) over 1h > 80"\n'
HOUR = 3_600_000
BEGIN = 1_750_000_000_000 // HOUR * HOUR


class S3:
    def __init__(self, directory):
        self.directory, self.port = directory, free_port()
        self.start()

    def start(self):
        subprocess.run([SCRIPT, "start", str(self.port), str(self.directory), BUCKET], check=True)
        subprocess.run([SCRIPT, "ready", str(self.port)], check=True)

    def stop(self):
        subprocess.run([SCRIPT, "stop", str(self.directory)], check=True)

    def checkpoints(self):
        return sorted(path.name for path in (self.directory / "objects" / BUCKET).rglob("*.ckpt"))

    def environment(self, secret="not-a-secret"):
        return {
            "AWS_ENDPOINT": f"http://127.0.0.1:{self.port}",
            "AWS_ALLOW_HTTP": "true",
            "AWS_REGION": "us-east-1",
            "AWS_ACCESS_KEY_ID": "dunlin",
            "AWS_SECRET_ACCESS_KEY": secret,
        }


@pytest.fixture
def s3(tmp_path):
    server = S3(tmp_path / "s3")
    yield server
    server.stop()


def rules_stage(platform):
    return next(stage for stage in platform.json("/v1/status")["stages"] if stage["stage"] == "rules")


def failures(platform):
    return platform.metric("dunlin_pipeline_checkpoint_failures_total")


def test_rules_go_on_from_s3_and_get_over_its_failures(platforms, s3, tmp_path):
    platform = platforms(f'[pipeline]\ncheckpoint_seconds = 1\ncheckpoints = "s3://{BUCKET}/prod"\n')
    platform.start(env=s3.environment())
    rule = tmp_path / "hot.toml"
    rule.write_text(RULE)
    platform.cli("rule", "put", str(rule))
    token = platform.add_device("pump")

    def send(minute, value):
        body = json.dumps({"ts": BEGIN + minute * 60_000, "values": {"temperature": value}}).encode()
        status, _, answer = platform.request("POST", "/v1/telemetry", body, token=token)
        assert status in (200, 202, 204), answer

    def alerts():
        return [a for a in platform.json("/v1/alerts?limit=1000")["alerts"] if a["rule"] == "hot"]

    send(1, 90)
    platform.settle()
    until("it is kept on S3", s3.checkpoints)
    until("nothing newer than the checkpoint", lambda: all(
        partition.get("checkpoint") == partition["position"] for partition in rules_stage(platform)["partitions"]))
    assert {path.name for path in platform.data.rglob("*.ckpt")} <= {"rejected.ckpt"}, "nothing of it beside"

    # The half of a window that came before is known after a kill from there alone.
    platform.kill()
    platform.start(env=s3.environment())
    before = failures(platform)
    s3.stop()
    send(30, 100)
    until("what cannot be kept is told", lambda: rules_stage(platform).get("problems"))
    until("and counted", lambda: failures(platform) > before)
    # The rules go on meanwhile.
    send(75, 20)
    (alert,) = until("the window's mean of before and after", alerts)
    assert alert["value"] == 95, alert

    # Killed while nothing can be read: what is known is waited for, and nobody is told again.
    platform.kill()
    platform.start(env=s3.environment(), wait=False)
    until("it says what it waits for", lambda: "waiting for them" in platform.log())
    s3.start()
    until("ready", platform.is_ready)
    send(130, 20)
    (over,) = until("it is over", lambda: [a for a in alerts() if a["state"] == "resolved"])
    assert over["id"] == alert["id"] and len(alerts()) == 1, alerts()
    until("and kept again", lambda: not rules_stage(platform).get("problems"))


def test_a_place_that_refuses_us_ends_the_start(platforms, s3):
    platform = platforms(f'[pipeline]\ncheckpoints = "s3://{BUCKET}"\n')
    platform.start(env=s3.environment(secret="wrong"), wait=False)
    assert platform.process.wait(timeout=30) == 1
    assert "SignatureDoesNotMatch" in platform.log() and s3.checkpoints() == []

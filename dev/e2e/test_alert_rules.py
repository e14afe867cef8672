"""The rules for Prometheus: promtool takes them, they fire when they should, and what they ask for is there."""
import re
import subprocess

from kafka_under_test import Kafka
from platform_under_test import REPOSITORY, until

RULES = REPOSITORY / "deploy" / "prometheus" / "dunlin.rules.yml"
# Prometheus's own, and those that are there once there is a certificate.
NOT_ASKED = {"up", "dunlin_tls_certificate_end_timestamp_seconds"}
SOURCE = """
[[gateway.source]]
name = "plant"
address = "127.0.0.1:1"
tenant = "default"
device = "nobody"
topics = ["{device}"]
"""


def promtool(*arguments):
    done = subprocess.run(["promtool", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_promtool_takes_the_rules_and_they_fire_when_they_should():
    promtool("check", "rules", "--lint=all", "--lint-fatal", str(RULES))
    promtool("test", "rules", str(RULES.with_name("dunlin.rules.test.yml")))


def test_every_alert_asks_for_metrics_that_are_there(platforms, tmp_path):
    kafka = Kafka(tmp_path / "kafka", 1)
    try:
        platform = platforms(kafka.config("alert-rules.") + SOURCE).start()
        device = platform.add_device("pump")
        headers = {"Authorization": f"Bearer {device}", "Content-Type": "application/json"}
        assert platform.request("POST", "/v1/telemetry", b'{"t": 1}', headers=headers)[0] == 200
        asked = set(re.findall(r"\b(?:dunlin_[a-z_]+|up)\b", " ".join(re.findall(r"expr: (.*)", RULES.read_text()))))
        assert len(asked) > 15, asked

        def missing():
            _, _, text = platform.get("/metrics")
            there = set(re.findall(r"^# TYPE (dunlin_\w+) ", text.decode(), re.M))
            return {name for name in asked - NOT_ASKED if name not in there and name.removesuffix("_total") not in there}

        until(f"all are there, of {asked}", lambda: not missing())
    finally:
        kafka.close()

"""Debian's Prometheus with the rules of this repository, looking every two seconds."""
import json
import subprocess
import urllib.request

from platform_under_test import REPOSITORY, free_port, until

RULES = REPOSITORY / "deploy" / "prometheus" / "dunlin.rules.yml"


class Prometheus:
    def __init__(self, directory, token_file, instances):
        """`instances` gives each process that is looked at a name."""
        directory.mkdir()
        targets = [
            {"targets": [f"127.0.0.1:{platform.http_port}"], "labels": {"instance": name}}
            for name, platform in instances.items()
        ]
        job = {"job_name": "dunlin", "authorization": {"credentials_file": str(token_file)}, "static_configs": targets}
        every = {"scrape_interval": "2s", "scrape_timeout": "2s", "evaluation_interval": "1s"}
        config = {"global": every, "rule_files": [str(RULES)], "scrape_configs": [job]}
        (directory / "prometheus.yml").write_text(json.dumps(config))  # Which is YAML.
        self.url = f"http://127.0.0.1:{free_port()}"
        with open(directory / "log", "ab") as log:
            self.process = subprocess.Popen(
                ["prometheus", f"--config.file={directory}/prometheus.yml", f"--storage.tsdb.path={directory}/data",
                 f"--web.listen-address={self.url.removeprefix('http://')}"],
                stdout=log, stderr=log,
            )
        until("Prometheus has seen everybody", lambda: self.seen() == len(instances))

    def seen(self):
        """How many answer it."""
        assert self.process.poll() is None
        try:
            with urllib.request.urlopen(f"{self.url}/api/v1/query?query=sum(up)") as answer:
                found = json.load(answer)["data"]["result"]
        except OSError:  # Not ready yet.
            return 0
        return int(found[0]["value"][1]) if found else 0

    def firing(self, instance=None):
        """Names of the alerts that fire, of all or of one instance."""
        with urllib.request.urlopen(f"{self.url}/api/v1/alerts") as answer:
            alerts = json.load(answer)["data"]["alerts"]
        return {
            alert["labels"]["alertname"]
            for alert in alerts
            if alert["state"] == "firing" and instance in (None, alert["labels"].get("instance"))
        }

    def close(self):
        self.process.terminate()
        self.process.wait()

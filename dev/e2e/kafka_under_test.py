"""Apache Kafka's own brokers, and its own tools."""
import os
import pathlib
import re
import subprocess

from platform_under_test import HERE

SCRIPT = HERE.parent / "services" / "kafka.sh"


class Kafka:
    """Brokers of one's own; `DUNLIN_TEST_KAFKA=HOST:PORT` is used instead where a single one is enough.

    Proxies stand before doors of a single broker: whoever comes through one is told to come back through it."""

    def __init__(self, directory, brokers, proxies=()):
        self.directory, self.brokers = pathlib.Path(directory), brokers
        self.bootstrap = os.environ.get("DUNLIN_TEST_KAFKA") if brokers == 1 and not proxies else None
        self.is_own = self.bootstrap is None
        if self.is_own:
            ports = " ".join(str(proxy.port) for proxy in proxies)
            script("start", str(brokers), str(self.directory), env={"DOORS": ports})
            doors = (self.directory / "doors").read_text().split()
            for proxy, door in zip(proxies, doors, strict=True):
                proxy.carries_to(int(door))
            script("ready", str(self.directory))
            self.bootstrap = (self.directory / "bootstrap").read_text().strip()

    def config(self, prefix, **settings):
        """The journal's section of a configuration file."""
        replicas = min(self.brokers, 3)
        settings = {
            "kind": "kafka",
            "brokers": self.bootstrap,
            "prefix": prefix,
            "telemetry_partitions": 3,
            "replication_factor": replicas,
            "min_insync_replicas": min(replicas, 2),
        } | settings
        return "[journal]\n" + "".join(f"{name} = {value!r}\n" for name, value in settings.items())

    def tool(self, name, *arguments, timeout=60):
        command = ["tool", f"org.apache.kafka.tools.{name}", "--bootstrap-server", self.bootstrap, *arguments]
        return script(*command, timeout=timeout)

    def partitions(self, topic):
        """(partition, leader, in-sync replicas) of each."""
        found = re.findall(
            r"Partition: (\d+)\s+Leader: (\d+|none)\s+Replicas: \S+\s+Isr: ([\d,]*)",
            self.tool("TopicCommand", "--describe", "--topic", topic),
        )
        return [(int(number), leader, isr.split(",") if isr else []) for number, leader, isr in found]

    def kill(self, broker):
        script("kill", str(self.directory), str(broker))

    def resume(self, broker):
        script("resume", str(self.directory), str(broker))

    def close(self):
        if self.is_own:
            script("stop", str(self.directory))


def script(*arguments, timeout=300, env=None):
    run = subprocess.run(
        [str(SCRIPT), *arguments], capture_output=True, text=True, timeout=timeout, check=False, env=os.environ | (env or {})
    )
    assert run.returncode == 0, f"kafka.sh {' '.join(arguments)}: {run.stdout}{run.stderr}"
    return run.stdout

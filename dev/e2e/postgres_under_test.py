"""Debian's PostgreSQL, to be stopped, killed and frozen."""
import os
import subprocess

from platform_under_test import HERE, free_port

SCRIPT = HERE.parent / "services" / "postgres.sh"


class Postgres:
    def __init__(self, directory):
        self.directory, self.port = str(directory), free_port()
        self.url = f"postgres://dunlin@127.0.0.1:{self.port}/postgres"
        self.start()

    def config(self, **settings):
        """The registry's section of a configuration file."""
        settings = {"url": self.url, "connections_max": 4} | settings
        return "[registry]\n" + "".join(f"{name} = {value!r}\n" for name, value in settings.items())

    def start(self):
        self.run("start", str(self.port), self.directory, str(os.getpid()))
        self.run("ready", str(self.port))

    def stop(self):
        self.run("stop", self.directory)

    def kill(self):
        self.run("kill", self.directory)

    def freeze(self):
        self.run("freeze", self.directory)

    def thaw(self):
        self.run("thaw", self.directory)

    def close(self):
        self.run("remove", self.directory)

    def run(self, *arguments):
        subprocess.run([SCRIPT, *arguments], check=True, timeout=60)

    def sql(self, statement):
        """One line a row, columns with | between."""
        command = ["psql", "-XAtq", "-h", "127.0.0.1", "-p", str(self.port), "-U", "dunlin", "postgres", "-c", statement]
        run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert run.returncode == 0, run.stderr
        return run.stdout.splitlines()

"""The real binary, started, asked, killed and started again."""
import csv
import http.client
import io
import json
import os
import pathlib
import random
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request

HERE = pathlib.Path(__file__).parent
REPOSITORY = HERE.parent.parent
sys.path.insert(0, str(HERE.parent))
import check_acked  # noqa: E402

READY_SECONDS = 120
STOP_SECONDS = 20  # what the platform promises
SETTLE_SECONDS = 120

# Of every random moment; printed with a failure, and taken from the environment to see it again.
SEED = int(os.environ.get("DUNLIN_E2E_SEED", str(random.randrange(1 << 32))))
LOAD_DEVICES = 8


def target_dir():
    return pathlib.Path(os.environ.get("CARGO_TARGET_DIR", REPOSITORY / "target"))


def binary(name):
    named = os.environ.get(name.upper().replace("-", "_") + "_BIN")
    path = pathlib.Path(named) if named else target_dir() / "debug" / name
    assert path.exists(), f"{path} is missing: build it, or name it by {name.upper().replace('-', '_')}_BIN"
    return str(path)


PORTS_GIVEN = set()


def free_port():
    """Given once, and from none of the ranges in which the system and Kafka's brokers find theirs: it may stay unbound for a
    while."""
    while True:
        port = random.randrange(10_000, 20_000)
        with socket.socket() as listener:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
        if port not in PORTS_GIVEN:
            PORTS_GIVEN.add(port)
            return port


def until(what, condition, seconds=SETTLE_SECONDS):
    """Asks again and again; returns the first answer that is true."""
    end = time.monotonic() + seconds
    while True:
        answer = condition()
        if answer:
            return answer
        assert time.monotonic() < end, f"{what}: not within {seconds} s"
        time.sleep(0.05)


class Platform:
    def __init__(self, directory, config=None, data=None, roles=None):
        self.directory = pathlib.Path(directory)
        self.data = pathlib.Path(data) if data else self.directory / "data"
        self.mqtt_port, self.http_port = free_port(), free_port()
        self.url = f"http://127.0.0.1:{self.http_port}"
        self.config = None
        if config:
            self.config = self.directory / "dunlin.toml"
            self.config.write_text(config)
        self.log_path = self.directory / "dunlin.log"
        self.process = None
        self.roles = roles

    # Life

    def start(self, env=None, wait=True):
        command = [binary("dunlin"), "serve", "--data", str(self.data)]
        command += ["--mqtt", f"127.0.0.1:{self.mqtt_port}", "--http", f"127.0.0.1:{self.http_port}"]
        if self.config:
            command += ["--config", str(self.config)]
        if self.roles:
            command += ["--role", self.roles]
        with open(self.log_path, "ab") as log:
            self.process = subprocess.Popen(
                command, stdout=log, stderr=log, env=os.environ | (env or {}), cwd=self.directory
            )
        if wait:
            until("ready", self.is_ready, READY_SECONDS)
        return self

    def is_ready(self):
        assert self.process.poll() is None, f"dunlin ended with {self.process.returncode}:\n{self.log()[-4000:]}"
        try:
            return self.get("/readyz", token=None)[0] == 200
        except (OSError, http.client.HTTPException):
            return False

    def kill(self):
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()

    def stop(self):
        """Ends it as an operator would; returns the exit code and how long it took."""
        begin = time.monotonic()
        self.process.send_signal(signal.SIGTERM)
        try:
            code = self.process.wait(STOP_SECONDS + 10)
        except subprocess.TimeoutExpired:
            self.kill()
            raise
        return code, time.monotonic() - begin

    def close(self):
        if self.process and self.process.poll() is None:
            self.kill()

    def log(self):
        return self.log_path.read_text(errors="replace")

    # Asking

    def token(self):
        return (self.data / "admin.token").read_text().strip()

    def cli(self, *arguments, check=True, timeout=120, url=None):
        run = subprocess.run(
            [binary("dunlin"), *arguments, "--url", url or self.url],
            capture_output=True,
            text=True,
            timeout=timeout,
            env=os.environ | {"DUNLIN_TOKEN": self.token()},
            cwd=self.directory,
        )
        if check:
            assert run.returncode == 0, f"dunlin {arguments} ended with {run.returncode}: {run.stderr}"
        return run

    def add_device(self, name, *options):
        return self.cli("device", "add", name, *options).stdout.strip()

    def query(self, sql):
        """Rows as dictionaries of text."""
        return list(csv.DictReader(io.StringIO(self.query_csv(sql))))

    def query_csv(self, sql):
        return self.cli("query", sql, "--format", "csv").stdout

    def get(self, path, token="admin"):
        return self.request("GET", path, token=self.token() if token == "admin" else token)

    def request(self, method, path, body=None, token=None, headers=None, timeout=30):
        """(status, headers, body); a refusal is an answer, not an exception."""
        request = urllib.request.Request(self.url + path, data=body, method=method, headers=headers or {})
        if token:
            request.add_header("Authorization", f"Bearer {token}")
        try:
            with urllib.request.urlopen(request, timeout=timeout) as answer:
                return answer.status, answer.headers, answer.read()
        except urllib.error.HTTPError as refusal:
            return refusal.code, refusal.headers, refusal.read()

    def json(self, path):
        status, _, body = self.get(path)
        assert status == 200, body
        return json.loads(body)

    def metric(self, name):
        """The sum over all labels, or None if there is no such metric."""
        _, _, text = self.get("/metrics")
        values = [
            float(line.rsplit(" ", 1)[1])
            for line in text.decode().splitlines()
            if line.split("{")[0].split(" ")[0] == name
        ]
        return sum(values) if values else None

    # The ledger

    def ledger(self):
        return self.json("/v1/ledger")

    def settle(self):
        """Waits until the store has seen all that was accepted; returns the balanced ledger of the tenant."""

        def settled():
            ledger = self.ledger()
            # Of all tenants: whose the records are that were not read yet is not always known.
            tenants = ledger["tenants"].values()
            quiet = all(t.get("in_flight", 0) == 0 and t.get("gateway", {}).get("in_flight", 0) == 0 for t in tenants)
            return ledger if quiet and ledger["balanced"] else None

        try:
            ledger = until("the ledger settles", settled)
        except AssertionError as error:
            raise AssertionError(f"{error}: {json.dumps(self.ledger())}") from None
        tenant = ledger["tenants"].get("default", {})
        if tenant:
            assert tenant["accepted"] == tenant["stored"] + tenant["duplicate"] + tenant["expired"] + tenant["sampled"], tenant
        return tenant


def add_devices(platform, count=LOAD_DEVICES):
    """name -> token"""
    return {f"load-{i}": platform.add_device(f"load-{i}") for i in range(count)}


class Load:
    """The loader with a record, running beside the test."""

    def __init__(self, platform, directory, devices, seconds, *options, reconnect="60s", name="load", drain="60s"):
        directory = pathlib.Path(directory)
        self.record = directory / f"{name}.record.csv"
        self.errors = directory / f"{name}.stderr"
        tokens = directory / f"{name}.tokens"
        tokens.write_text("".join(f"{token} {device}\n" for device, token in devices.items()))
        command = [binary("dunlin-load"), "--target", f"127.0.0.1:{platform.mqtt_port}", "--tokens", str(tokens)]
        command += ["--connections", str(len(devices)), "--warm-up", "0s", "--duration", f"{seconds}s"]
        command += ["--drain", drain, "--record", str(self.record), "--reconnect-for", reconnect, *options]
        with open(self.errors, "wb") as errors:
            self.process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, text=True)

    def finish(self, timeout=180):
        out, _ = self.process.communicate(timeout=timeout)
        assert self.process.returncode == 0, self.errors.read_text()
        return json.loads(out)

    def is_running(self):
        return self.process.poll() is None

    def close(self):
        if self.is_running():
            self.process.kill()
            self.process.wait()


def stored_csv(platform, path):
    """All that the loader's devices stored, for the checker. Its messages carry no time of their own, so their time is
    that of their arrival, and tells the order (N4)."""
    columns = "device, CAST(seq AS BIGINT) AS seq, temperature, CAST(time AS BIGINT) AS position"
    path.write_text(platform.query_csv(f"SELECT {columns} FROM default WHERE seq IS NOT NULL"))
    return path


def check_nothing_lost(platform, directory, records, unrecorded_max=0):
    """N1 to N6 from the outside: the senders' records against the store and the ledger.

    `unrecorded_max` messages of other senders, whose outcome is not known, may be stored beside those on record.
    """
    csv_path = pathlib.Path(directory) / "stored.csv"

    def checked():
        platform.settle()
        return check_acked.check(records, stored_csv(platform, csv_path))

    result = checked()
    if platform.roles and "gateway" not in platform.roles:
        # It hears of the journal's end when it fetches it, a moment after the acknowledgement.
        end = time.monotonic() + SETTLE_SECONDS
        while not result["holds"] and time.monotonic() < end:
            time.sleep(0.5)
            result = checked()
    tenant = platform.settle()
    assert result["holds"], (result, tenant)
    assert result["acked"] > 0, "the load acknowledged nothing, so nothing was tested"
    assert 0 <= tenant["stored"] - result["rows"] <= unrecorded_max, (result, tenant)
    return result

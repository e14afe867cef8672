#!/usr/bin/env python3
"""The figures of docs/performance.md: `make bench`, or `dev/bench/run.py NAME ...` for some of them; NAME=NUMBER tries one
that has a size with another.

Every figure is a ratio within one run, peers interleaved on the same machine, raw numbers beside it. Prints a Markdown
table; progress goes to standard error."""
import http.client
import http.server
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "dev"))
import check_acked  # noqa: E402
import on_the_wire  # noqa: E402
from storm import Crowd  # noqa: E402

TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / os.environ.get("PROFILE", "release")
MOSQUITTO = ROOT / "dev/services/mosquitto.sh"
KAFKA = ROOT / "dev/services/kafka.sh"
ROUNDS = int(os.environ.get("BENCH_ROUNDS", 3))
SECONDS = int(os.environ.get("BENCH_SECONDS", 8))
DEVICES = 100
CORES = os.cpu_count()
# The guard turns a benchmark away: clients of one address do not connect thousands of times a second.
UNGUARDED = """
[gateway.guard]
address_connects_per_second_max = 1000000
address_connects_burst_max = 1000000
connects_per_second_max = 1000000
connects_burst_max = 1000000
client_connects_per_minute_max = 1000000
"""
DEVICE = "load-0"  # The one with a certificate.
RULES = '[[rule]]\nname = "hot"\nwhen = "avg(temperature) over 1m > 80 for 2m, clear below 75"\n'


def say(text):
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def cpu_seconds(pid):
    """Processor time that the process has taken so far."""
    fields = pathlib.Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def tls_config(certificates, mqtts, https, client_certificates):
    """Doors with TLS beside the plain ones (docs/doors.md)."""
    return f"""
[https]
address = "127.0.0.1:{https}"

[tls]
certificate = "{certificates}/server.pem"
key = "{certificates}/server.key"

[[tls.client_ca]]
file = "{certificates}/ca.pem"
tenant = "default"

[[gateway.listener]]
address = "127.0.0.1:{mqtts}"
tls = true
client_certificates = "{client_certificates}"
"""


class Dunlin:
    """The platform on a directory of its own; with TLS too if it is said whether clients need certificates."""

    def __init__(self, config="", rules=RULES, client_certificates=None, roles=None, data=None, waits=True):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="dunlin-bench-", dir=os.environ.get("BENCH_DIR")))
        self.mqtt, self.http = free_port(), free_port()
        self.roles = ["--role", roles] if roles else []
        self.data = data or self.dir
        (self.dir / "rules").mkdir()
        (self.dir / "rules/bench.toml").write_text(rules)
        if client_certificates:
            self.certificates = self.dir / "certificates"
            subprocess.run([TARGET / "dunlin-load", "certificates", self.certificates, DEVICE], check=True)
            self.mqtts, self.https = free_port(), free_port()
            config = tls_config(self.certificates, self.mqtts, self.https, client_certificates) + config
        (self.dir / "dunlin.toml").write_text(config)
        if waits:
            self.start()
        else:
            self.begin()

    def tls(self, *options):
        """What the loader needs to speak TLS."""
        return ["--tls-authority", self.certificates / "ca.pem", *options]

    def mutual_tls(self, *options):
        own = self.certificates / DEVICE
        return self.tls("--tls-certificate", f"{own}.pem", "--tls-key", f"{own}.key", *options)

    def start(self):
        began = time.monotonic()
        self.begin()
        return self.begun(began)

    def begin(self):
        self.process = subprocess.Popen(
            [TARGET / "dunlin", "serve", *self.roles, "--data", self.data, "--config", self.dir / "dunlin.toml",
             "--mqtt", f"127.0.0.1:{self.mqtt}", "--http", f"127.0.0.1:{self.http}"],
            stderr=open(self.dir / "log", "a"))

    def begun(self, began):
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/readyz", timeout=60):
                    break
            except OSError:
                assert self.process.poll() is None, (self.dir / "log").read_text()[-2000:]
                time.sleep(0.01)
        self.token = (self.data / "admin.token").read_text().strip()
        return time.monotonic() - began

    def api(self, path, body=None):
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}{path}", headers={
            "authorization": f"Bearer {self.token}", "content-type": "application/json"},
            data=None if body is None else json.dumps(body).encode())
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def tokens(self, count=DEVICES):
        file = self.dir / "tokens"
        # Over one connection: a storm has thousands of devices.
        connection = http.client.HTTPConnection("127.0.0.1", self.http, timeout=60)
        headers = {"authorization": f"Bearer {self.token}", "content-type": "application/json"}
        lines = []
        for n in range(count):
            connection.request("POST", "/v1/devices", json.dumps({"name": f"load-{n}"}), headers)
            answer = connection.getresponse()
            body = answer.read()
            assert answer.status in (200, 201), body
            lines.append(json.loads(body)["token"] + f" load-{n}")
        file.write_text("\n".join(lines) + "\n")
        return file

    def ledger(self):
        ledger = self.api("/v1/ledger")
        assert ledger["balanced"], ledger["problems"]
        return ledger["tenants"]["default"]

    def lag(self):
        return {stage["stage"]: stage["lag"] for stage in self.api("/v1/status")["stages"]}

    def settle(self):
        while any(self.lag().values()) or self.ledger()["in_flight"]:
            time.sleep(0.05)

    def memory(self):
        status = pathlib.Path(f"/proc/{self.process.pid}/status").read_text()
        return int(next(line for line in status.splitlines() if line.startswith("RssAnon")).split()[1]) * 1024

    def cpu_seconds(self):
        return cpu_seconds(self.process.pid)

    def samples(self, name):
        """One for each set of labels."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}/metrics",
                                         headers={"authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(request) as answer:
            lines = answer.read().decode().splitlines()
        return [float(line.rsplit(" ", 1)[1]) for line in lines if re.split("[{ ]", line)[0] == name]

    def metric(self, name):
        """The sum over all labels."""
        return sum(self.samples(name))

    def query_csv(self, sql, path):
        with open(path, "w") as out:
            subprocess.run([TARGET / "dunlin", "query", sql, "--format", "csv", "--url", f"http://127.0.0.1:{self.http}"],
                           check=True, stdout=out, env=os.environ | {"DUNLIN_TOKEN": self.token})

    def end(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        self.process.wait()

    def remove(self):
        self.end(signal.SIGKILL)
        shutil.rmtree(self.dir)


def load(port, *options, command=()):
    line = [TARGET / "dunlin-load", *command, "--target", f"127.0.0.1:{port}", "--warm-up", "2s", *map(str, options)]
    done = subprocess.run(line, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


class Mosquitto:
    """Debian's, which keeps nothing."""

    def __enter__(self):
        self.dir, self.port = tempfile.mkdtemp(), free_port()
        subprocess.run([MOSQUITTO, "start", str(self.port), self.dir], check=True)
        subprocess.run([MOSQUITTO, "ready", str(self.port)], check=True)
        return self

    def __exit__(self, *_):
        subprocess.run([MOSQUITTO, "stop", self.dir], check=False)
        shutil.rmtree(self.dir)


class NullSink:
    """A bare ntex-mqtt server that acknowledges and forgets: what the loader and the loopback cost by themselves."""

    def __enter__(self):
        self.port = free_port()
        self.process = subprocess.Popen(
            [TARGET / "dunlin-nullsink", "--listen", f"127.0.0.1:{self.port}", "--workers", "2"],
            stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
        time.sleep(1)
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()


def null_sink():
    with NullSink() as sink:
        rates = [load(sink.port, "--duration", f"{SECONDS}s", "--payload-bytes", 128)["acked_per_second"]
                 for _ in range(ROUNDS)]
    return "loader into a null sink, 100 x 50, 128 B", f"{statistics.median(rates) / 1e6:.2f} M msg/s", "1.5 M", "-", ""


def durable():
    """QoS 1 with PUBACK after fdatasync beside mosquitto, which keeps nothing."""
    dunlin = Dunlin()
    ours, theirs = [], []
    try:
        tokens = dunlin.tokens()
        for n in range(ROUNDS):
            with Mosquitto() as mosquitto:
                theirs.append(load(mosquitto.port, "--duration", f"{SECONDS}s", "--payload-bytes", 128)["acked_per_second"])
            # Each round has numbers of its own: a repetition would be a duplicate.
            ours.append(load(dunlin.mqtt, "--duration", f"{SECONDS}s", "--payload-bytes", 128, "--tokens", tokens,
                             "--seq-first", 1_000_000_000 + n * 100_000_000)["acked_per_second"])
            say(f"durable: dunlin {ours[-1]:.0f}/s, mosquitto {theirs[-1]:.0f}/s")
            dunlin.settle()
        dunlin.ledger()
    finally:
        dunlin.remove()
    a, b = statistics.median(ours), statistics.median(theirs)
    return ("QoS 1 msg/s, PUBACK after fdatasync, 128 B, 100 x 50 / mosquitto", f"{a / b:.2f}", "3", "6",
            f"{a:.0f} / {b:.0f}")


class Kafka:
    """Apache Kafka's own broker, one, and its own measure of a producer."""

    PARTITIONS = 6

    def __enter__(self):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="dunlin-bench-", dir=os.environ.get("BENCH_DIR")))
        self.script("start", "1", self.dir)
        self.script("ready", self.dir)
        self.bootstrap = (self.dir / "bootstrap").read_text().strip()
        self.pid = int((self.dir / "broker-1/pid").read_text())
        return self

    def __exit__(self, *_):
        self.script("stop", self.dir)
        shutil.rmtree(self.dir)

    def script(self, *arguments):
        done = subprocess.run([KAFKA, *map(str, arguments)], capture_output=True, text=True, env=os.environ | {"FAST": "1"},
                              check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def tool(self, name, *arguments):
        return self.script("tool", f"org.apache.kafka.tools.{name}", *arguments)

    def journal(self):
        """Without its end: whoever has more to say of it says it behind."""
        prefix = f"bench-{time.monotonic_ns()}."
        return (f'[journal]\nkind = "kafka"\nbrokers = "{self.bootstrap}"\nprefix = "{prefix}"\ntelemetry_partitions = {self.PARTITIONS}\n'
                "replication_factor = 1\nmin_insync_replicas = 1\n")

    def perf_test(self, payloads, records):
        """records/s of kafka-producer-perf-test, acks=all, without its first five seconds, in which Java warms up."""
        topic = f"perf-{time.monotonic_ns()}"
        on = ["--bootstrap-server", self.bootstrap, "--topic", topic]
        self.tool("TopicCommand", *on, "--create", "--partitions", self.PARTITIONS, "--replication-factor", 1)
        out = self.tool("ProducerPerformance", "--topic", topic, "--num-records", records, "--payload-file", payloads,
                        "--throughput", -1, "--producer-props", f"bootstrap.servers={self.bootstrap}", "acks=all")
        self.tool("TopicCommand", *on, "--delete")
        *intervals, _ = re.findall(r"(\d+) records sent, ([\d.]+) records/sec", out)
        return statistics.mean(float(rate) for _, rate in intervals[1:])


def kafka_durable():
    """QoS 1 with PUBACK after Kafka has it, beside Kafka's own producer with the same payload on the same broker.

    Once with everything in one process, which stores and evaluates meanwhile, and once as a process of the role gateway, whose
    records are stored and evaluated afterwards."""
    alone, whole, theirs, cpu = [], [], [], {}

    def measured(kafka, dunlin, tokens, name):
        began, broker_began = dunlin.cpu_seconds(), cpu_seconds(kafka.pid)
        measured.seq += 100_000_000
        report = load(dunlin.mqtt, "--duration", f"{SECONDS}s", "--payload-bytes", 128, "--tokens", tokens,
                      "--seq-first", measured.seq)
        own, broker = dunlin.cpu_seconds() - began, cpu_seconds(kafka.pid) - broker_began
        cpu[name] = f"{own / report['acked'] * 1e6:.1f} + {broker / report['acked'] * 1e6:.1f} us"
        return report["acked_per_second"]

    measured.seq = 1_000_000_000
    with Kafka() as kafka:
        payloads = kafka.dir / "payloads"
        payloads.write_text("\n".join(
            f'{{"temperature":{20 + n % 1000 / 100:.2f},"humidity":40.25,"seq":{1_000_000_000 + n}'.ljust(127) + "}"
            for n in range(10_000)))
        for _ in range(ROUNDS):
            theirs.append(kafka.perf_test(payloads, 1_200_000 * SECONDS))
            journal = kafka.journal()
            dunlin = Dunlin(journal)
            try:
                tokens = dunlin.tokens()
                whole.append(measured(kafka, dunlin, tokens, "whole"))
                dunlin.settle()
                dunlin.end()
                gateway = Dunlin(journal, roles="gateway", data=dunlin.dir)
                alone.append(measured(kafka, gateway, tokens, "gateway"))
                gateway.end()
                shutil.rmtree(gateway.dir)
                dunlin.start()
                dunlin.settle()
                ledger = dunlin.ledger()
                assert ledger["stored"] == ledger["accepted"], ledger
            finally:
                dunlin.remove()
            say(f"kafka_durable: gateway {alone[-1]:.0f}/s, whole platform {whole[-1]:.0f}/s, perf-test {theirs[-1]:.0f}/s; "
                f"CPU of dunlin + broker a message: {cpu}")
    ratio, figures = median_ratio(alone, theirs)
    ratio_whole, _ = median_ratio(whole, theirs)
    return ("QoS 1 msg/s, PUBACK after Kafka (1 broker, acks=all), 128 B, 100 x 50 / kafka-producer-perf-test: role gateway; "
            "all roles in the process", f"{ratio}; {ratio_whole}", "0.5", "0.8",
            f"{figures}, whole {statistics.median(whole):.0f}; CPU of dunlin + broker a message: {cpu}")


class Fleet:
    """Devices behind a gateway device, as many as there may be: each says something when its turn comes."""

    LINES = 10_000  # A message has no more records.

    def __init__(self, gateway, devices, console):
        self.devices, self.at = devices, 0
        self.token = console.api("/v1/devices", {"name": "fleet", "gateway": True})["token"]
        self.connection = http.client.HTTPConnection("127.0.0.1", gateway.http, timeout=120)
        self.stopping, self.thread = threading.Event(), None

    def say(self, count):
        turns = (n % self.devices for n in range(self.at, self.at + count))
        body = "\n".join(f"telemetry,device=unit-{n:07} temperature={20 + n % 1000 / 100},humidity=40.25" for n in turns)
        self.connection.request("POST", "/api/v2/write", body, {"authorization": f"Token {self.token}"})
        answer = self.connection.getresponse()
        said = answer.read()
        assert answer.status == 204, said
        self.at += count

    def say_all(self):
        end = self.at + self.devices
        while self.at < end:
            self.say(min(self.LINES, end - self.at))

    def __enter__(self):
        """From here on in turn, a hundredth of them a second."""
        self.a_second = max(1, min(self.LINES, self.devices // 100))
        self.thread = threading.Thread(target=self.go_on, daemon=True)
        self.thread.start()
        return self

    def go_on(self):
        due = time.monotonic()
        while not self.stopping.wait(max(0, due - time.monotonic())):
            self.say(self.a_second)
            due += 1

    def __exit__(self, *_):
        self.stopping.set()
        self.thread.join()
        self.connection.close()


def catch_up(devices=1_000_000):
    """kill -9 of one of two processes of the role pipeline, which have the state of all devices: until the other has all
    partitions and is no further behind than what arrives in a second."""
    rules = '[[rule]]\nname = "hot"\nwhen = "temperature > 80 for 2m"\n[[rule]]\nname = "silent"\nwhen = "no data for 1h"\n'
    lag, held, count = "dunlin_pipeline_lag_records", "dunlin_pipeline_partitions_held", "dunlin_pipeline_devices"
    processes, times = [], []

    def process(roles, name, data=None):
        config = journal + f'member = "{name}"\nsession_seconds_max = 6\n'
        config += f"[gateway]\ndevice_children_max = {devices}\n"
        processes.append(Dunlin(config, rules, roles=roles, data=data))
        return processes[-1]

    with Kafka() as kafka:
        journal = kafka.journal()
        try:
            back = process("store,alerting,console", "back")
            gateway = process("gateway", "gateway", back.dir)
            pipelines = [process("pipeline", f"rules-{n}", back.dir) for n in (1, 2)]
            fleet = Fleet(gateway, devices, back)
            began = time.monotonic()
            fleet.say_all()
            say(f"catch_up: {devices} devices have said something within {time.monotonic() - began:.0f} s")

            def is_up(some, behind_max):
                lags = [lag_of for pipeline in some for lag_of in pipeline.samples(lag)]
                return len(lags) == Kafka.PARTITIONS and sum(lags) <= behind_max

            with fleet:
                for n in range(ROUNDS):
                    while not (is_up(pipelines, fleet.a_second) and all(p.metric(held) for p in pipelines)):
                        time.sleep(0.2)
                    assert sum(pipeline.metric(count) for pipeline in pipelines) >= devices
                    time.sleep(15 + 2.7 * n)  # Somewhere between two checkpoints.
                    victim, other = pipelines[n % 2], pipelines[1 - n % 2]
                    state = sum(f.stat().st_size for f in (back.dir / "pipeline").rglob("*.ckpt"))
                    moved = victim.metric(count)
                    killed = time.monotonic()
                    victim.end(signal.SIGKILL)
                    steps = []
                    for is_done in (lambda: other.metric(held) == Kafka.PARTITIONS,
                                    lambda: len(other.samples(lag)) == Kafka.PARTITIONS,
                                    lambda: is_up([other], fleet.a_second)):
                        while not is_done():
                            time.sleep(0.05)
                        steps.append(time.monotonic() - killed)
                    times.append(steps)
                    assert other.metric(count) >= devices
                    say(f"catch_up: given after {steps[0]:.1f} s, restored after {steps[1]:.1f} s, caught up after {steps[2]:.1f} s; "
                        f"{moved:.0f} devices moved, {state / 1e6:.0f} MB of checkpoints, {other.memory() / 1e9:.1f} GB of memory")
                    victim.start()
        finally:
            for one in processes[::-1]:
                one.remove()
    given, restored, caught_up = (statistics.median(step) for step in zip(*times))
    return (f"kill -9 of one of two pipeline processes with the state of {devices:,} devices, {fleet.a_second:,} records/s: until the "
            "other has caught up", f"{caught_up:.1f} s", "30 s", "10 s",
            f"{', '.join(f'{step[2]:.1f}' for step in times)} s; missed and given after {given:.1f} s (session 6 s), state restored "
            f"after {restored:.1f} s")


def two_pipelines(seconds=25):
    """A backlog through one process of the role pipeline, and a like one through two that share its partitions."""
    with Kafka() as kafka:
        backlogs = {count: Backlog(kafka, count) for count in (1, 2)}
        rates, used = {1: [], 2: []}, {1: [], 2: []}
        try:
            for backlog in backlogs.values():
                backlog.fill(seconds)
            for _ in range(ROUNDS):
                for count, backlog in backlogs.items():
                    took, cpu = backlog.read()
                    rates[count].append(backlog.records / took)
                    used[count].append(cpu / backlog.records * 1e6)
                    say(f"two_pipelines: {count}: {rates[count][-1]:.0f} records/s, {used[count][-1]:.3f} us of CPU a record")
        finally:
            for backlog in backlogs.values():
                backlog.back.remove()
    by_time, raw = median_ratio(rates[2], rates[1])
    one, two = (statistics.median(used[count]) for count in (1, 2))
    return ("records/s of a backlog with 2 pipeline processes / 1, on the same 2 cores; CPU a record with 2 / 1",
            f"{by_time}; {two / one:.3f}", "within 0.10 of 1", "0.03",
            f"{raw}; {two:.3f} / {one:.3f} us, " + " and ".join(" ".join(f"{u:.3f}" for u in used[c]) for c in (2, 1)))


class Backlog:
    """Telemetry that so many processes of the role pipeline have not read. They keep their partitions from one time to the
    next, so that none moves while it is measured."""

    def __init__(self, kafka, count):
        self.count, self.journal = count, kafka.journal() + "session_seconds_max = 300\n"
        self.back = Dunlin(self.journal + 'member = "rules-1"\n')

    def fill(self, seconds):
        tokens = self.back.tokens()
        self.back.end()
        # They divide what is empty yet.
        self.ended(self.begun())
        gateway = Dunlin(self.journal, roles="gateway", data=self.back.dir)
        report = load(gateway.mqtt, "--duration", f"{seconds}s", "--payload-bytes", 128, "--tokens", tokens)
        self.records = report["acked"]
        gateway.end()
        shutil.rmtree(gateway.dir)

    def begun(self):
        """The processes, once all partitions are held."""
        pipelines = [Dunlin(f'{self.journal}member = "rules-{n}"\n', roles="pipeline", data=self.back.dir, waits=False)
                     for n in range(1, self.count + 1)]
        for pipeline in pipelines:
            pipeline.begun(time.monotonic())
            pipeline.to_start = pipeline.cpu_seconds()
        held = "dunlin_pipeline_partitions_held"
        while sorted(pipeline.metric(held) for pipeline in pipelines) != [Kafka.PARTITIONS / self.count] * self.count:
            time.sleep(0.01)
        return pipelines

    def ended(self, pipelines):
        for pipeline in pipelines:
            pipeline.end()
            shutil.rmtree(pipeline.dir)

    def read(self):
        """Seconds, and seconds of CPU without those that starting takes, from the oldest record to the newest."""
        shutil.rmtree(self.back.dir / "pipeline", ignore_errors=True)
        began = time.monotonic()
        pipelines = self.begun()

        def is_done():
            lags = [lag for pipeline in pipelines for lag in pipeline.samples("dunlin_pipeline_lag_records")]
            taken = sum(pipeline.metric("dunlin_pipeline_records_total") for pipeline in pipelines)
            return taken >= self.records and len(lags) == Kafka.PARTITIONS and not any(lags)

        while not is_done():
            time.sleep(0.1)
        took, cpu = time.monotonic() - began, sum(pipeline.cpu_seconds() - pipeline.to_start for pipeline in pipelines)
        self.ended(pipelines)
        return took, cpu


def end_to_end():
    """From the first message sent to the last one stored and evaluated."""
    rates = []
    for n in range(ROUNDS):
        dunlin = Dunlin()
        try:
            tokens = dunlin.tokens()
            began = time.monotonic()
            load(dunlin.mqtt, "--duration", f"{SECONDS}s", "--payload-bytes", 128, "--tokens", tokens, "--stamped")
            sent = time.monotonic() - began
            dunlin.settle()
            took = time.monotonic() - began
            ledger = dunlin.ledger()
            assert ledger["stored"] == ledger["accepted"], ledger
            rates.append(ledger["stored"] / took)
            say(f"end to end: {ledger['stored']} stored in {took:.1f} s ({rates[-1]:.0f}/s), sent in {sent:.1f} s")
        finally:
            dunlin.remove()
    return ("end to end: decoded, journaled, window + rule, stored; 3 readings", f"{statistics.median(rates):.0f} msg/s",
            "150 k", "300 k", " ".join(f"{r:.0f}" for r in rates))


def p99(values):
    return sorted(values)[int(len(values) * 0.99)]


def raw_sync(directory):
    """p99 of a 4 KiB write and fdatasync into preallocated space, and of a loopback round trip, in seconds."""
    path = pathlib.Path(directory) / "raw"
    file = os.open(path, os.O_RDWR | os.O_CREAT)
    os.posix_fallocate(file, 0, 16 << 20)
    os.pwrite(file, bytes(16 << 20), 0)
    os.fsync(file)
    syncs = []
    for n in range(2000):
        began = time.perf_counter()
        os.pwrite(file, b"x" * 4096, n * 4096)
        os.fdatasync(file)
        syncs.append(time.perf_counter() - began)
    os.close(file)
    path.unlink()
    a, b = socket.socketpair()
    trips = []
    for _ in range(2000):
        began = time.perf_counter()
        a.send(b"x"), b.recv(1), b.send(b"x"), a.recv(1)
        trips.append(time.perf_counter() - began)
    return p99(syncs), p99(trips)


def ack_latency():
    """At half load, and at a twentieth; the null sink at the same rates shows what the machine leaves to win."""
    dunlin = Dunlin()
    ratios, raw = {}, []
    try:
        tokens = dunlin.tokens()
        top = load(dunlin.mqtt, "--duration", f"{SECONDS}s", "--payload-bytes", 128, "--tokens", tokens)["acked_per_second"]
        dunlin.settle()
        rounds = [(share, n) for n in range(ROUNDS) for share in (2, 20)]
        for turn, (share, n) in enumerate(rounds):
            rate = int(top / share)
            sync, trip = raw_sync(dunlin.dir)
            options = ["--duration", f"{SECONDS}s", "--payload-bytes", 128, "--rate", rate]
            with NullSink() as sink:
                floor = load(sink.port, *options)["latency_micros"]["p99"] / 1e6
            report = load(dunlin.mqtt, *options, "--tokens", tokens, "--seq-first", 2_000_000_000 + turn * 100_000_000)
            latency = report["latency_micros"]["p99"] / 1e6
            ratios.setdefault(share, []).append((latency / (sync + trip), latency / (floor + sync)))
            raw.append(f"{rate}/s: {latency * 1e3:.2f} / ({sync * 1e3:.2f} + {trip * 1e3:.3f}) ms, null sink {floor * 1e3:.2f}")
            say(f"ack latency at {raw[-1]}")
            dunlin.settle()
    finally:
        dunlin.remove()
    medians = {share: [statistics.median(kind) for kind in zip(*pairs)] for share, pairs in ratios.items()}
    return ("PUBACK p99 at half load / (raw fdatasync p99 + loopback); at a twentieth; / (null sink p99 + fdatasync p99) at half",
            f"{medians[2][0]:.0f}; {medians[20][0]:.1f}; {medians[2][1]:.1f}", "4", "2", "; ".join(raw))


def idle_memory(connections=10_000):
    dunlin = Dunlin()
    try:
        tokens = dunlin.tokens()
        command = [TARGET / "dunlin-load", "idle", "--target", f"127.0.0.1:{dunlin.mqtt}", "--tokens", tokens, "-c"]
        # The allocator's first growth is not the connections'.
        subprocess.run([*command, "100", "--duration", "2s"], check=True, capture_output=True)
        before = dunlin.memory()
        holder = subprocess.Popen([*command, str(connections), "--duration", "120s"],
                                  stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        while dunlin.api("/v1/status")["connections"] < connections:
            assert holder.poll() is None
            time.sleep(0.2)
        time.sleep(5)
        each = (dunlin.memory() - before) / connections
        holder.kill()
        holder.wait()
    finally:
        dunlin.remove()
    return "user-space memory per idle connection", f"{each / 1024:.1f} KiB", "12 KiB", "6 KiB", f"{connections} connections"


def restart(gigabytes=5):
    dunlin = Dunlin("[journal]\nretention_bytes = 100000000000\n")
    try:
        tokens = dunlin.tokens()
        journal = dunlin.dir / "journal"

        def written():
            return sum(f.stat().st_blocks * 512 for f in journal.iterdir())

        n = 0
        while written() < gigabytes * 10**9:
            load(dunlin.mqtt, "--duration", "5s", "--payload-bytes", 4096, "--tokens", tokens, "--seq-first",
                 1_000_000_000 + n * 100_000_000)
            n += 1
            say(f"restart: {written() / 1e9:.1f} GB")
        dunlin.settle()
        times = []
        for _ in range(ROUNDS):
            dunlin.end(signal.SIGKILL)
            times.append(dunlin.start())
            say(f"restart: {times[-1]:.2f} s")
    finally:
        dunlin.remove()
    return (f"restart after kill -9 with {gigabytes} GB of journal", f"{statistics.median(times):.2f} s", "5 s", "1 s",
            " ".join(f"{t:.2f}" for t in times))


def example(name, *arguments):
    done = subprocess.run([TARGET / "examples" / name, *map(str, arguments)], capture_output=True, text=True, check=True)
    say(f"{name}\n{done.stdout}")
    return done.stdout


def journal_append():
    with tempfile.TemporaryDirectory(dir=os.environ.get("BENCH_DIR")) as directory:
        out = example("append_bench", directory, 1)
    raw, one, four = (line.split() for line in out.splitlines()[1:4])
    return ("journal append at 1 MiB commits / raw write + fdatasync", f"{one[-1]} alone, {four[-1]} four at a time", "0.7",
            "0.9", f"raw {raw[-4]}, journal {one[-4]} and {four[-4]} MB/s")


def bytes_per_reading():
    out = example("store_bench", 200, 6)
    line = next(line for line in out.splitlines() if line.startswith("packed"))
    return "bytes on disk per stored reading, after compaction", line.split()[-1], "2.0", "1.0", line.strip()


def last_number(out, start):
    """The first number of the line that begins so."""
    line = next(line for line in out.splitlines() if line.startswith(start))
    return float(re.search(r"-?[\d.]+", line[len(start):]).group())


def flink(events, keys):
    job = subprocess.run([ROOT / "dev/setup.sh", "flink"], check=True, capture_output=True, text=True).stdout.strip()
    done = subprocess.run(["java", "-Xms2g", "-Xmx2g", "-XX:+UseParallelGC", "--add-opens", "java.base/java.util=ALL-UNNAMED",
                           "-cp", f"{job}/*:{job}", "Windows", str(events), str(keys)],
                          capture_output=True, text=True, check=True)
    return float(done.stdout.split()[0])


def windows(events=10_000_000, keys=10_000):
    """Flink has the whole machine at parallelism 1, its source and its windows threads of their own; ours is one thread."""
    ours, timed, arrays, theirs = [], [], [], []
    for _ in range(ROUNDS):
        out = example("windows_bench", events, keys)
        ours.append(last_number(out, "engine") * 1e6)
        timed.append(last_number(out, "devices that say their times") * 1e6)
        arrays.append(last_number(out, "array loop") * 1e6)
        theirs.append(flink(events, keys))
        say(f"windows: engine {ours[-1]:.0f}/s, array loop {arrays[-1]:.0f}/s, Flink {theirs[-1]:.0f}/s")
    against_flink, raw = median_ratio(ours, theirs)
    a, b = statistics.median(ours), statistics.median(arrays)
    return ("1 s tumbling avg, max and count, 10 k keys, event time: events/s on one core / Flink 2.2 at parallelism 1; / array loop",
            f"{against_flink}; {a / b:.3f}", "10; 0.05", "30; 0.10",
            f"{raw}; {a:.0f} / {b:.0f}; of devices that say their times {statistics.median(timed):.0f}")


def checkpoints():
    out = example("checkpoints_bench")
    without, every = (last_number(out, start) for start in ("without", "every second"))
    return ("throughput of the rules lost to a checkpoint every second, 10 k devices", f"{last_number(out, 'lost'):.1f} %", "5 %", "2 %",
            f"{every:.2f} / {without:.2f} M records/s")


def rule_evaluations():
    rates = []
    for _ in range(ROUNDS):
        out = example("many_rules_bench")
        line = next(line for line in out.splitlines() if "evaluations/s" in line)
        rates.append(float(line.split()[0]))
    return ("threshold-rule evaluations/s per core with 10 k rules", f"{statistics.median(rates):.1f} M", "1 M", "5 M",
            " ".join(f"{rate:.1f}" for rate in rates))


def median_ratio(ours, theirs):
    a, b = statistics.median(ours), statistics.median(theirs)
    return f"{a / b:.2f}", f"{a:.0f} / {b:.0f}"


def connects():
    """TCP connect, CONNECT, CONNACK, DISCONNECT, close, each time with another client id, 100 at the same time."""
    dunlin = Dunlin(UNGUARDED)
    ours, theirs = [], []
    options = ["--duration", f"{SECONDS}s", "--clients", 100]
    try:
        tokens = dunlin.tokens()
        for _ in range(ROUNDS):
            with Mosquitto() as mosquitto:
                their = load(mosquitto.port, *options, command=["connects"])
            our = load(dunlin.mqtt, *options, "--tokens", tokens, command=["connects"])
            assert not (our["failed"] or our["refused"] or their["failed"] or their["refused"]), (our, their)
            ours.append(our["accepted_per_second"])
            theirs.append(their["accepted_per_second"])
            say(f"connects: dunlin {ours[-1]:.0f}/s, mosquitto {theirs[-1]:.0f}/s")
            dunlin.settle()
    finally:
        dunlin.remove()
    ratio, raw = median_ratio(ours, theirs)
    return "connects/s without TLS, 100 at a time / mosquitto", ratio, "1", "2", raw


def openssl_ceiling():
    """Mutual TLS 1.3 handshakes a second that the cryptography alone would allow the server on all cores.

    The server signs once (its CertificateVerify), verifies twice (the client's CertificateVerify, and the authority's
    signature on the client's certificate), and derives one shared secret:

        1 / (1 / sign + 2 / verify + 1 / ecdh)

    with ECDSA P-256 and X25519 as `openssl speed` measures them on all cores at the same time. Making the ephemeral
    key, hashing and the symmetric ciphers are left out, so the ceiling is rather too high than too low."""
    out = subprocess.run(["openssl", "speed", "-seconds", "3", "-multi", str(CORES), "ecdsap256", "ecdhx25519"],
                         capture_output=True, text=True, check=True).stdout
    sign, verify = re.search(r"ecdsa \(nistp256\) .* ([\d.]+) +([\d.]+)$", out, re.M).groups()
    derive = re.search(r"ecdh \(X25519\) .* ([\d.]+)$", out, re.M).group(1)
    say(f"openssl speed on {CORES} cores: sign {sign}/s, verify {verify}/s, X25519 {derive}/s")
    return 1 / (1 / float(sign) + 2 / float(verify) + 1 / float(derive))


def mtls_handshakes():
    """Full mutual handshakes, none resumed, each with CONNECT and CONNACK behind it, so that the server has agreed.

    The loader shares the cores and its half of a handshake costs as much, so what counts is what the server could do
    with all cores to itself: handshakes by processor second of the server, times cores."""
    dunlin = Dunlin(UNGUARDED, client_certificates="required")
    ratios, raw = [], []
    options = ["--duration", f"{SECONDS}s", "--clients", 100]
    try:
        tokens = dunlin.tokens(1)

        def run(port, *more):
            before = dunlin.cpu_seconds()
            report = load(port, *options, *more, command=["connects"])
            assert not (report["failed"] or report["refused"] or report["resumed"]), report
            return report["accepted"] / (dunlin.cpu_seconds() - before) * CORES, report["accepted_per_second"]

        for _ in range(ROUNDS):
            ceiling = openssl_ceiling()
            able, seen = run(dunlin.mqtts, *dunlin.mutual_tls())
            plain, _ = run(dunlin.mqtt, "--tokens", tokens)
            ratios.append(able / ceiling)
            raw.append(f"{able:.0f} / {ceiling:.0f} (seen {seen:.0f}/s beside the loader; without TLS {plain:.0f})")
            say(f"mutual TLS: {raw[-1]}")
            dunlin.settle()
    finally:
        dunlin.remove()
    return ("mutual-TLS handshakes/s with CONNECT, by processor second of the server x cores / openssl-speed ceiling "
            "1/(1/sign + 2/verify + 1/ecdh), ECDSA P-256 and X25519", f"{statistics.median(ratios):.2f}", "0.6", "0.8",
            "; ".join(raw))


def fan_out():
    """Closed loop: a publisher has 8 messages on their way; who sends faster measures how a broker drops."""
    dunlin = Dunlin()
    ours, theirs, lost = [], [], [0, 0]
    options = ["--duration", f"{SECONDS}s", "--subscribers", 1000, "--publishers", 5, "--payload-bytes", 128]
    try:
        tokens = dunlin.tokens()
        for _ in range(ROUNDS):
            with Mosquitto() as mosquitto:
                their = load(mosquitto.port, *options, command=["fan-out"])
            our = load(dunlin.mqtt, *options, "--tokens", tokens, command=["fan-out"])
            ours.append(our["deliveries_per_second"])
            theirs.append(their["deliveries_per_second"])
            lost = [lost[0] + our["lost"], lost[1] + their["lost"]]
            say(f"fan-out: dunlin {ours[-1]:.0f}/s ({our['lost']} lost, p99 {our['latency_micros']['p99'] / 1e3:.1f} ms), "
                f"mosquitto {theirs[-1]:.0f}/s ({their['lost']} lost, p99 {their['latency_micros']['p99'] / 1e3:.1f} ms)")
    finally:
        dunlin.remove()
    ratio, raw = median_ratio(ours, theirs)
    return ("QoS 0 deliveries/s, 5 publishers, 1,000 subscribers, 128 B / mosquitto", ratio, "2", "4",
            f"{raw}; lost {lost[0]} / {lost[1]}")


def tls_durable():
    dunlin = Dunlin(client_certificates="none")
    encrypted, plain = [], []
    options = ["--duration", f"{SECONDS}s", "--payload-bytes", 128]
    try:
        options += ["--tokens", dunlin.tokens()]
        for n in range(ROUNDS):
            seq = 1_000_000_000 + n * 200_000_000
            plain.append(load(dunlin.mqtt, *options, "--seq-first", seq)["acked_per_second"])
            dunlin.settle()
            seq += 100_000_000
            encrypted.append(load(dunlin.mqtts, *options, "--seq-first", seq, *dunlin.tls())["acked_per_second"])
            dunlin.settle()
            say(f"durable: with TLS {encrypted[-1]:.0f}/s, without {plain[-1]:.0f}/s")
    finally:
        dunlin.remove()
    ratio, raw = median_ratio(encrypted, plain)
    return "QoS 1 msg/s durable with TLS / without", ratio, "0.6", "0.8", raw


def http_or_mqtt():
    """What one message costs; prints the table of docs/http-or-mqtt.md."""
    dunlin = Dunlin(UNGUARDED, client_certificates="none")
    seq = iter(range(1_000_000_000, 9_000_000_000, 20_000_000))
    lines = []
    try:
        tokens = dunlin.tokens()
        token = tokens.read_text().split()[0]
        time.sleep(3)
        before = dunlin.cpu_seconds()
        time.sleep(5)
        idle = (dunlin.cpu_seconds() - before) / 5
        devices = on_the_wire.Devices(token, dunlin.certificates / "ca.pem")
        # How the loader does the same: command, options, messages a second for the processor's and the latency's sake.
        ways = {
            ("MQTT", "kept"): ((), ["--connections", 100, "--payload-bytes", 128], 2_000, 1),
            ("MQTT", "cold"): (["connects"], ["--clients", 100, "--publish-bytes", 128], 500, 1),
            ("HTTP", "kept"): (["http"], ["--clients", 100, "--record-bytes", 128], 2_000, 1),
            ("HTTP", "cold"): (["http"], ["--clients", 100, "--record-bytes", 128, "--close"], 500, 1),
            ("HTTP, 100 records a request", "kept"):
                (["http"], ["--clients", 20, "--record-bytes", 128, "--records", 100], 20, 100),
        }
        for (protocol, connection), (command, options, rate, records) in ways.items():
            for tls in (None, "TLS", "TLS resumed"):
                if tls == "TLS resumed" and connection == "kept":
                    continue
                web = protocol.startswith("HTTP")
                port = {(False, False): dunlin.mqtt, (False, True): dunlin.mqtts, (True, False): dunlin.http,
                        (True, True): dunlin.https}[web, bool(tls)]
                wire = devices.measure("http" if web else "mqtt", port, connection == "kept", tls, records)
                more = [] if tls is None else dunlin.tls(*(["--tls-resume"] if tls == "TLS resumed" else []))
                used, latencies = [], []
                for _ in range(ROUNDS):
                    before, began = dunlin.cpu_seconds(), time.monotonic()
                    report = load(port, *options, "--duration", f"{SECONDS}s", "--rate", rate, "--tokens", tokens,
                                  "--seq-first", next(seq), *more, command=command)
                    dunlin.settle()
                    spent = dunlin.cpu_seconds() - before - idle * (time.monotonic() - began)
                    done = report["acked"] if "acked" in report else report["accepted"]
                    used.append(spent / (done * records) * 1e6)
                    latencies.append(report["latency_micros"])
                p50, p99 = (statistics.median(one[name] for one in latencies) / 1e3 for name in ("p50", "p99"))
                name = f"{protocol}, {'kept connection' if connection == 'kept' else 'new connection each time'}"
                if tls:
                    name += f", {tls}"
                trips = f"{wire['round_trips']:.1f}"
                lines.append((name, f"{wire['sent']:.0f}", f"{wire['received']:.0f}", f"{wire['packets']:.1f}",
                              trips, f"{statistics.median(used):.0f}", f"{p50:.2f}", f"{p99:.2f}"))
                say(f"http or mqtt: {' | '.join(lines[-1])}")
    finally:
        dunlin.remove()
    print("| a message of 128 bytes by | bytes sent | bytes received | packets | round trips | server CPU, us | p50, ms | "
          "p99, ms |\n|---|---|---|---|---|---|---|---|")
    for line in lines:
        print("| " + " | ".join(line) + " |")
    print()
    by_name = {line[0]: line for line in lines}
    mqtt, web = (by_name[f"{protocol}, kept connection"] for protocol in ("MQTT", "HTTP"))
    return ("HTTP / MQTT on a kept connection: bytes on the wire; server CPU",
            f"{(int(web[1]) + int(web[2])) / (int(mqtt[1]) + int(mqtt[2])):.1f}; {float(web[5]) / float(mqtt[5]):.1f}",
            "-", "-", "the table of docs/http-or-mqtt.md")


def storm(idle=15_000, active=200, processes=3):
    """kill -9 with the whole fleet connected, and 3 s of nothing; all come back by themselves."""
    dunlin = Dunlin()
    crowd = publishers = None
    seconds = 150
    try:
        tokens = dunlin.tokens(idle + active)
        lines = tokens.read_text().splitlines(keepends=True)
        of_active, of_idle, record = (dunlin.dir / name for name in ("active", "idle", "record.csv"))
        of_active.write_text("".join(lines[:active]))
        of_idle.write_text("".join(lines[active:]))
        crowd = Crowd(TARGET / "dunlin-load", dunlin.mqtt, of_idle, idle, processes, "--reconnect-for", "10m")
        crowd.wait_held()
        publishers = subprocess.Popen(
            [TARGET / "dunlin-load", "--target", f"127.0.0.1:{dunlin.mqtt}", "--tokens", of_active, "--connections",
             str(active), "--rate", str(active * 10), "--warm-up", "0s", "--duration", f"{seconds}s", "--drain", "60s",
             "--record", record, "--reconnect-for", "10m", "--backoff-first", "1s", "--backoff-max", "30s"],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        took = []
        for _ in range(2):
            while dunlin.api("/v1/status")["connections"] < idle + active:
                assert publishers.poll() is None, publishers.stderr.read()
                time.sleep(0.1)
            time.sleep(5)
            killed = time.monotonic()
            dunlin.end(signal.SIGKILL)
            time.sleep(3)
            dunlin.start()
            back = crowd.wait_back(120)
            while dunlin.api("/v1/status")["connections"] < idle + active:
                time.sleep(0.05)
            took.append(time.monotonic() - killed)
            say(f"storm: all {idle + active} back {took[-1]:.1f} s after kill -9; {back}")
        out, errors = publishers.communicate(timeout=seconds + 120)
        assert publishers.returncode == 0, errors
        report = json.loads(out)
        assert report["reconnects"] >= 2 * active and report["unknown"] == 0, report
        dunlin.settle()
        stored = dunlin.dir / "stored.csv"
        dunlin.query_csv("SELECT device, CAST(seq AS BIGINT) AS seq, temperature FROM default WHERE seq IS NOT NULL", stored)
        result = check_acked.check([record], stored)
        assert result["holds"], result
    finally:
        if crowd:
            crowd.close()
        if publishers:
            publishers.kill()
            publishers.wait()
        dunlin.remove()
    return (f"{idle:,} idle + {active} active connections, kill -9, 3 s down: until all are back",
            f"{max(took):.1f} s", "60 s", "-",
            f"{' '.join(f'{t:.1f}' for t in took)} s; {result['acked']} acknowledged, {result['lost']} lost")


class Hook:
    """A webhook receiver that notes when which alert came."""

    def __enter__(self):
        self.came = {}
        hook = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                hook.came.setdefault((body.get("device"), body.get("what")), time.time())
                self.send_response(200)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", free_port()), Handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()

    def channel(self):
        return ('[[alerting.channel]]\nkind = "webhook"\nname = "hook"\nprivate_network = true\n'
                f'url = "http://127.0.0.1:{self.server.server_port}/"\nbudget = {{ burst = 1000000, per_hour = 100000000 }}\n')


def alert_latency():
    """From a device's send to the webhook's receipt, beside half of the telemetry that the platform takes. Of devices that
    say no times, and beside it of devices that do: their records wait for those before them."""
    rules = RULES + '[[rule]]\nname = "alarm"\nwhen = "alarm > 0"\n'
    times, timed, load_process = [], [], None
    with Hook() as hook:
        dunlin = Dunlin(hook.channel(), rules)
        try:
            tokens = dunlin.tokens()
            top = load(dunlin.mqtt, "--duration", f"{SECONDS}s", "--payload-bytes", 128, "--tokens", tokens)["acked_per_second"]
            dunlin.settle()
            devices = {f"alarm-{n}": dunlin.api("/v1/devices", {"name": f"alarm-{n}"})["token"] for n in range(250)}
            load_process = subprocess.Popen(
                [TARGET / "dunlin-load", "--target", f"127.0.0.1:{dunlin.mqtt}", "--tokens", tokens, "--rate", str(int(top / 2)),
                 "--payload-bytes", "128", "--duration", "600s", "--seq-first", "3000000000"], stdout=subprocess.DEVNULL)
            time.sleep(3)
            for n, (name, token) in enumerate(devices.items()):
                says_times = n % 5 == 4
                body = {"ts": int(time.time() * 1e3), "values": {"alarm": 1}} if says_times else {"alarm": 1}
                request = urllib.request.Request(
                    f"http://127.0.0.1:{dunlin.http}/v1/telemetry", data=json.dumps(body).encode(),
                    headers={"authorization": f"Bearer {token}", "content-type": "application/json"})
                sent = time.time()
                urllib.request.urlopen(request).close()
                while (name, "fired") not in hook.came and time.time() < sent + 30:
                    time.sleep(0.001)
                (timed if says_times else times).append(hook.came[name, "fired"] - sent)
                time.sleep(0.05)
        finally:
            if load_process:
                load_process.kill()
                load_process.wait()
            dunlin.remove()

    def quantile(of, q):
        return sorted(of)[int(len(of) * q)] * 1e3

    return ("device send -> webhook received, p95 at half load", f"{quantile(times, 0.95):.0f} ms", "250 ms", "50 ms",
            f"median {quantile(times, 0.5):.0f} ms of {len(times)}, half load {top / 2:.0f} msg/s; devices that say times: "
            f"median {quantile(timed, 0.5):.0f} ms, p95 {quantile(timed, 0.95):.0f} ms of {len(timed)}")


def alerts_absorbed(devices=250, rules=200):
    """Many alerts that fire and are over, each deduplicated, durable, and in a digest: per second of the whole server's CPU
    time, so the gateway's, the store's and the rules' part of it count as well."""
    text = "".join(f'[[rule]]\nname = "r{n}"\nwhen = "temperature > {n}"\n' for n in range(rules))
    config = '[[alerting.channel]]\nkind = "webhook"\nname = "hook"\n'
    config += 'private_network = true\nurl = "http://127.0.0.1:9/"\nbudget = { burst = 5, per_hour = 1 }\n'
    rates = []
    for _ in range(ROUNDS):
        dunlin = Dunlin(config, text)
        try:
            token = dunlin.api("/v1/devices", {"name": "storm", "gateway": True})["token"]
            headers = {"authorization": f"Bearer {token}", "content-type": "application/json"}
            connection = http.client.HTTPConnection("127.0.0.1", dunlin.http, timeout=60)
            before, began, count = dunlin.cpu_seconds(), time.monotonic(), 0
            for value in [500, -1] * max(1, SECONDS // 4):
                for n in range(devices):
                    connection.request("POST", f"/v1/d/device-{n}/telemetry", json.dumps({"temperature": value}), headers)
                    answer = connection.getresponse()
                    assert answer.read() is not None and answer.status == 200, answer.status
                count += devices * rules
            absorbed = "dunlin_alerting_transitions_total"
            while dunlin.metric(absorbed) < count:
                time.sleep(0.05)
            cpu, took = dunlin.cpu_seconds() - before, time.monotonic() - began
            assert dunlin.metric(absorbed) == count
            rates.append(count / max(cpu, took))
            say(f"alerts absorbed: {count} in {took:.1f} s, {cpu:.1f} s of CPU")
        finally:
            dunlin.remove()
    return ("alerts/s absorbed, fired + resolved, deduplicated, durable, per core", f"{statistics.median(rates):.0f}", "5 k",
            "50 k", " ".join(f"{r:.0f}" for r in rates))


FIGURES = {f.__name__: f for f in (null_sink, durable, kafka_durable, catch_up, two_pipelines, end_to_end, ack_latency,
                                   connects, mtls_handshakes, fan_out, tls_durable, idle_memory, storm, journal_append, bytes_per_reading, restart,
                                   http_or_mqtt, alert_latency, alerts_absorbed, windows, checkpoints, rule_evaluations)}


def main():
    names = sys.argv[1:] or list(FIGURES)
    rows = []
    for name in names:
        say(name)
        figure, _, size = name.partition("=")
        rows.append((*FIGURES[figure](*([int(size)] if size else [])), f"`dev/bench/run.py {name}`"))
    print("| what | measured | reach | aim | raw | command |\n|---|---|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


if __name__ == "__main__":
    main()

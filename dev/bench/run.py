#!/usr/bin/env python3
"""The figures of docs/performance.md: `make bench`, or `dev/bench/run.py NAME ...` for some of them.

Every figure is a ratio within one run, peers interleaved on the same machine, raw numbers beside it. Prints a Markdown
table; progress goes to standard error."""
import json
import os
import pathlib
import shutil
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request

ROOT = pathlib.Path(__file__).resolve().parents[2]
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", ROOT / "target")) / os.environ.get("PROFILE", "release")
MOSQUITTO = ROOT / "dev/services/mosquitto.sh"
ROUNDS = int(os.environ.get("BENCH_ROUNDS", 3))
SECONDS = int(os.environ.get("BENCH_SECONDS", 8))
DEVICES = 100
RULES = '[[rule]]\nname = "hot"\nwhen = "avg(temperature) over 1m > 80 for 2m, clear below 75"\n'


def say(text):
    print(f"[{time.strftime('%H:%M:%S')}] {text}", file=sys.stderr, flush=True)


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Dunlin:
    """The platform on a directory of its own."""

    def __init__(self, config="", rules=RULES):
        self.dir = pathlib.Path(tempfile.mkdtemp(prefix="dunlin-bench-", dir=os.environ.get("BENCH_DIR")))
        self.mqtt, self.http = free_port(), free_port()
        (self.dir / "rules").mkdir()
        (self.dir / "rules/bench.toml").write_text(rules)
        (self.dir / "dunlin.toml").write_text(config)
        self.start()

    def start(self):
        began = time.monotonic()
        self.process = subprocess.Popen(
            [TARGET / "dunlin", "serve", "--data", self.dir, "--config", self.dir / "dunlin.toml",
             "--mqtt", f"127.0.0.1:{self.mqtt}", "--http", f"127.0.0.1:{self.http}"],
            stderr=open(self.dir / "log", "a"))
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.http}/readyz", timeout=60):
                    break
            except OSError:
                assert self.process.poll() is None, (self.dir / "log").read_text()[-2000:]
                time.sleep(0.01)
        self.token = (self.dir / "admin.token").read_text().strip()
        return time.monotonic() - began

    def api(self, path, body=None):
        request = urllib.request.Request(f"http://127.0.0.1:{self.http}{path}", headers={
            "authorization": f"Bearer {self.token}", "content-type": "application/json"},
            data=None if body is None else json.dumps(body).encode())
        with urllib.request.urlopen(request) as answer:
            return json.load(answer)

    def tokens(self, count=DEVICES):
        file = self.dir / "tokens"
        lines = [self.api("/v1/devices", {"name": f"load-{n}"})["token"] + f" load-{n}" for n in range(count)]
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

    def end(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        self.process.wait()

    def remove(self):
        self.end(signal.SIGKILL)
        shutil.rmtree(self.dir)


def load(port, *options):
    command = [TARGET / "dunlin-load", "--target", f"127.0.0.1:{port}", "--warm-up", "2s", *map(str, options)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


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
    broker = tempfile.mkdtemp()
    port = free_port()
    subprocess.run([MOSQUITTO, "start", str(port), broker], check=True)
    subprocess.run([MOSQUITTO, "ready", str(port)], check=True)
    dunlin = Dunlin()
    tokens = dunlin.tokens()
    ours, theirs = [], []
    try:
        for n in range(ROUNDS):
            theirs.append(load(port, "--duration", f"{SECONDS}s", "--payload-bytes", 128)["acked_per_second"])
            # Each round has numbers of its own: a repetition would be a duplicate.
            ours.append(load(dunlin.mqtt, "--duration", f"{SECONDS}s", "--payload-bytes", 128, "--tokens", tokens,
                             "--seq-first", 1_000_000_000 + n * 100_000_000)["acked_per_second"])
            say(f"durable: dunlin {ours[-1]:.0f}/s, mosquitto {theirs[-1]:.0f}/s")
            dunlin.settle()
        dunlin.ledger()
    finally:
        subprocess.run([MOSQUITTO, "stop", broker], check=False)
        dunlin.remove()
    a, b = statistics.median(ours), statistics.median(theirs)
    return ("QoS 1 msg/s, PUBACK after fdatasync, 128 B, 100 x 50 / mosquitto", f"{a / b:.2f}", "3", "6",
            f"{a:.0f} / {b:.0f}")


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


FIGURES = {f.__name__: f for f in (null_sink, durable, end_to_end, ack_latency, idle_memory, journal_append,
                                   bytes_per_reading, restart)}


def main():
    names = sys.argv[1:] or list(FIGURES)
    rows = []
    for name in names:
        say(name)
        rows.append((*FIGURES[name](), f"`dev/bench/run.py {name}`"))
    print("| what | measured | reach | aim | raw | command |\n|---|---|---|---|---|---|")
    for row in rows:
        print("| " + " | ".join(row) + " |")


main()

"""What connections do to the platform when they are slow, silent, broken, too many, or not who they say they are."""
import collections
import json
import os
import pathlib
import random
import select
import socket
import struct
import threading
import time

import pytest
from conftest import run
from faulty_network import Proxy
from platform_under_test import SEED, STOP_SECONDS, Load, add_devices, check_nothing_lost, free_port, until
from test_malformed import Healthy, packet, text

HANDSHAKE_SECONDS = 10  # what anybody has for saying who it is
TICKS = os.sysconf("SC_CLK_TCK")


def connect(token, version=4, client_id=b"", clean=True, keep_alive=60):
    properties = b"\0" if version == 5 else b""
    flags = bytes([version, 0x80 | (2 if clean else 0)]) + struct.pack(">H", keep_alive)
    return packet(0x10, text(b"MQTT") + flags + properties + text(client_id) + text(token.encode()))


def publish(topic, payload, packet_id=1, qos=1, version=4, duplicate=False, properties=b"\0"):
    body = text(topic) + (struct.pack(">H", packet_id) if qos else b"") + (properties if version == 5 else b"")
    return packet(0x30 | qos << 1 | (8 if duplicate else 0), body + payload)


def subscribe(*filters, packet_id=1, qos=1):
    return packet(0x82, struct.pack(">H", packet_id) + b"".join(text(f.encode()) + bytes([qos]) for f in filters))


class Client:
    """Speaks in bytes. Nothing is read but what is asked for."""

    def __init__(self, port, source="127.0.0.1", receive_buffer=None):
        self.socket = socket.socket()
        if receive_buffer:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.bind((source, 0))
        self.socket.settimeout(20)
        self.socket.connect(("127.0.0.1", port))
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, data):
        self.socket.sendall(data)
        return self

    def packet(self):
        """(first byte, body) of the next packet, or None at the end."""
        try:
            first = self.exactly(1)
            length, shift = 0, 0
            while True:
                byte = self.exactly(1)[0]
                length |= (byte & 0x7F) << shift
                shift += 7
                if not byte & 0x80:
                    return first[0], self.exactly(length)
        except ConnectionError:
            return None

    def exactly(self, count):
        data = b""
        while len(data) < count:
            piece = self.socket.recv(count - len(data))
            if not piece:
                raise ConnectionResetError
            data += piece
        return data

    def asks(self, data):
        return self.send(data).packet()

    def pings(self):
        return self.asks(b"\xc0\0") == (0xD0, b"")

    def close(self):
        self.socket.close()


def connected(port, token, **options):
    version = options.get("version", 4)
    client = Client(port, options.pop("source", "127.0.0.1"), options.pop("receive_buffer", None))
    first, body = client.asks(connect(token, **options))
    assert first == 0x20 and body[1] == 0, (version, body)
    return client


def cpu_seconds(process):
    fields = pathlib.Path(f"/proc/{process.pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def resident_mib(process):
    status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
    return int(next(line for line in status.splitlines() if line.startswith("VmRSS")).split()[1]) / 1024


@pytest.fixture
def many_descriptors():
    """The tests' own connections need descriptors too."""
    import resource

    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (before[1], before[1]))
    yield before[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


# A network that swallows


@pytest.mark.parametrize("version", [4, 5])
@pytest.mark.parametrize("qos", [1, 2])
def test_a_publish_whose_answer_is_swallowed_is_repeated_and_stored_once(platform, version, qos):
    token = platform.add_device("pump")
    answers = {1: 0x40, 2: 0x50}
    with Proxy(platform.mqtt_port) as network:
        for number in range(10):
            reading = json.dumps({"seq": number}).encode()
            sends = dict(packet_id=7 + number, qos=qos, version=version)
            lost = connected(network.port, token, version=version, client_id=b"pump", clean=False)
            network.swallow_down = True
            lost.send(publish(b"v1/telemetry", reading, **sends))
            until("it is stored", lambda: stored(platform) == number + 1)
            # The device gives up waiting. Nobody tells the server: the old connection is there until it is taken over.
            network.forget_connections()
            network.swallow_down = False
            again = connected(network.port, token, version=version, client_id=b"pump", clean=False)
            first, body = again.asks(publish(b"v1/telemetry", reading, duplicate=True, **sends))
            assert (first, body[:2]) == (answers[qos], struct.pack(">H", 7 + number))
            if qos == 2:
                assert again.asks(packet(0x62, struct.pack(">H", 7 + number)))[0] == 0x70
            again.close()
    tenant = platform.settle()
    assert (tenant["stored"], tenant["duplicate"]) == (10, 10), tenant


def stored(platform):
    return platform.ledger()["tenants"].get("default", {}).get("stored", 0)


def test_a_publish_that_is_swallowed_is_sent_again_and_stored_once(platform):
    token = platform.add_device("pump")
    with Proxy(platform.mqtt_port) as network:
        lost = connected(network.port, token, client_id=b"pump", clean=False)
        network.swallow_up = True
        lost.send(publish(b"v1/telemetry", b'{"seq": 1}'))
        network.forget_connections()
        network.swallow_up = False
        again = connected(network.port, token, client_id=b"pump", clean=False)
        assert again.asks(publish(b"v1/telemetry", b'{"seq": 1}', duplicate=True))[0] == 0x40
    tenant = platform.settle()
    assert (tenant["stored"], tenant["duplicate"]) == (1, 0), tenant


# Clients that do not read


def test_subscribers_that_do_not_read_cost_a_bounded_part_and_disturb_nobody(platforms):
    platform = platforms("[gateway.pubsub]\nqueue_messages_max = 500\nqueue_bytes_max = 2097152\n").start()
    reader, writer = platform.add_device("reader"), platform.add_device("writer")
    patient = {"keep_alive": 3_600}
    deaf = [connected(platform.mqtt_port, reader, client_id=b"deaf%d" % n, receive_buffer=4096, **patient) for n in range(20)]
    # Reads, and acknowledges nothing.
    mute = [connected(platform.mqtt_port, reader, client_id=b"mute%d" % n, clean=False, **patient) for n in range(20)]
    good = connected(platform.mqtt_port, reader, client_id=b"good", **patient)
    for client in [*deaf, *mute, good]:
        assert client.asks(subscribe("news"))[0] == 0x90
    source = connected(platform.mqtt_port, writer, **patient)
    before = resident_mib(platform.process)
    payload = b"x" * 20_000
    most = 0
    for number in range(3_000):
        assert source.asks(publish(b"news", payload, number + 1)) == (0x40, struct.pack(">H", number + 1))
        first, body = good.packet()
        assert first == 0x32
        good.send(packet(0x40, body[6:8]))
        for client in mute:
            while select.select([client.socket], [], [], 0)[0]:
                client.socket.recv(1 << 20)
        if number % 100 == 0:
            most = max(most, resident_mib(platform.process) - before)
    # What was published is 60 MB, what may wait for them 40 times 2 MiB. They share each message that waits.
    assert most < 200, f"{most} MiB"
    assert platform.metric("dunlin_mqtt_messages_dropped_total") > 0
    assert good.pings()
    for client in [*deaf, *mute]:
        client.close()
    until("they are gone", lambda: platform.metric("dunlin_gateway_connections") == 2)
    healthy = Healthy(platform)
    until("others go on", lambda: healthy.acked > 100)
    healthy.finish()


# Clients that say nothing, or half of it


def test_ten_thousand_silent_connections_are_cut_off_and_others_come_in(platforms, many_descriptors):
    count = min(10_000, many_descriptors - 1_000)
    # All from few addresses: one may hold half of the places that are left.
    platform = platforms("[gateway.guard]\nhalf_open_max = 32000\n").start()
    healthy = Healthy(platform)
    token = platform.add_device("late")
    silent = []
    begin = time.monotonic()
    for number in range(count):
        client = socket.socket()
        client.bind((f"127.0.0.{number % 8 + 2}", 0))
        client.connect(("127.0.0.1", platform.mqtt_port))
        silent.append(client)
        if number % 3 == 1:
            client.sendall(connect(token)[: 1 + number % 20])
    took = time.monotonic() - begin
    assert connected(platform.mqtt_port, token).pings(), "there is room for who says who it is"
    poller = select.poll()
    waiting = {client.fileno(): client for client in silent}
    for descriptor in waiting:
        poller.register(descriptor, select.POLLIN | select.POLLHUP)
    end = time.monotonic() + HANDSHAKE_SECONDS + 60
    while waiting and time.monotonic() < end:
        for descriptor, _ in poller.poll(1_000):
            poller.unregister(descriptor)
            waiting.pop(descriptor).close()
    assert not waiting, f"{len(waiting)} of {count} are still open; they came within {took:.1f} s"
    until("none of them counts", lambda: platform.metric("dunlin_gateway_half_open") == 0)
    healthy.finish()


def test_half_a_request_is_not_waited_for(platform):
    token = platform.add_device("slow")
    halves = {
        "nothing of a request": b"",
        "half a head": b"POST /v1/telemetry HTTP/1.1\r\nhost: x\r\nauthoriz",
        "half a body": f"POST /v1/telemetry HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {token}\r\n"
        "content-length: 1000\r\n\r\n{".encode(),
    }
    open_ones = {}
    for what, data in halves.items():
        for _ in range(50):
            client = socket.create_connection(("127.0.0.1", platform.http_port), 10)
            client.sendall(data)
            open_ones[client] = what
    assert platform.request("POST", "/v1/telemetry", b'{"a": 1}', token)[0] == 200
    end = time.monotonic() + HANDSHAKE_SECONDS + 60
    while open_ones and time.monotonic() < end:
        for client in select.select(list(open_ones), [], [], 1)[0]:
            if not client.recv(4096):
                open_ones.pop(client)
                client.close()
    assert not open_ones, collections.Counter(open_ones.values())


@pytest.mark.parametrize("door", ["mqtt", "http"])
def test_a_byte_at_a_time_has_an_end(platform, door):
    token = platform.add_device("slow")
    heads = {
        "mqtt": (platform.mqtt_port, connect(token, client_id=b"x" * 200)),
        "http": (platform.http_port, b"POST /v1/telemetry HTTP/1.1\r\nx: " + b"x" * 200),
    }
    port, data = heads[door]
    client = socket.create_connection(("127.0.0.1", port), 10)
    begin = time.monotonic()
    try:
        for at in range(len(data)):
            client.sendall(data[at : at + 1])
            if select.select([client], [], [], 0.2)[0] and not client.recv(4096):
                break
    except ConnectionError:
        pass
    seconds = time.monotonic() - begin
    assert seconds < HANDSHAKE_SECONDS + 10, f"{seconds:.1f} s, and still open"


def test_a_peer_that_vanished_is_given_up(platform):
    """Half open: the other side is gone and has not said so. Its keep-alive tells."""
    token = platform.add_device("vanishing")
    with Proxy(platform.mqtt_port) as network:
        peers = [connected(network.port, token, client_id=b"v%d" % number, keep_alive=6) for number in range(20)]
        network.swallow_up = network.swallow_down = True
        network.forget_connections()
        assert platform.metric("dunlin_gateway_connections") == len(peers)
        until("they are given up", lambda: platform.metric("dunlin_gateway_connections") == 0)


# Strangers


def test_guessing_tokens_is_slowed_down_and_shuts_nobody_out(platform):
    token = platform.add_device("known")
    known = connected(platform.mqtt_port, token, client_id=b"known")
    assert known.asks(publish(b"v1/telemetry", b'{"a": 1}'))[0] == 0x40
    chance = random.Random(SEED)
    codes = collections.Counter()
    begin = time.monotonic()
    for number in range(1_500):
        guess = f"{chance.getrandbits(128):032x}"
        client = Client(platform.mqtt_port)
        answer = client.asks(connect(guess, version=5, client_id=b"g%d" % number))
        codes[answer[1][1] if answer else None] += 1
        client.close()
    print(f"{1_500 / (time.monotonic() - begin):.0f} guesses/s: {codes}")
    assert set(codes) <= {0x86, 0x89, 0x9F, None}, codes
    assert codes[0x86] < 300, f"most are not even looked up: {codes}"
    # From the very same address, whoever was in before goes on and comes again; and so do others elsewhere.
    assert known.asks(publish(b"v1/telemetry", b'{"a": 2}', 2))[0] == 0x40
    known.close()
    assert connected(platform.mqtt_port, token, client_id=b"known").pings()
    other = platform.add_device("other")
    assert connected(platform.mqtt_port, other, source="127.0.0.9").pings()
    assert "panicked" not in platform.log()


def test_a_token_is_one_string_over_every_protocol(platform):
    """What a query or a pattern would take for more; and a wrong token is told like a disabled device's."""
    platform.add_device("pump")
    disabled = platform.add_device("off")
    status, _, body = platform.request(
        "PATCH", "/v1/devices/off", b'{"enabled": false}', platform.token(), {"Content-Type": "application/json"}
    )
    assert status in (200, 204), body
    for guess in ["%", "_", "*", "' OR 1=1 --", "pump", "default/pump", "+", "#", "\\", "a" * 4_000, disabled]:
        answers = set()
        for version in (4, 5):
            client = Client(platform.mqtt_port)
            answers.add(client.asks(connect(guess, version))[1][1])
            client.close()
        assert answers == {5, 0x86}, (guess, answers)
        headers = {"Authorization": f"Bearer {guess}"}
        assert platform.request("POST", "/v1/telemetry", b'{"a": 1}', headers=headers)[0] == 401, guess


def test_wildcards_stay_inside_the_tenant_and_their_cost_is_bounded(platform):
    ours = platform.add_device("ours")
    user = platform.cli("tenant", "add", "other").stdout.strip()
    made = platform.request("POST", "/v1/devices", b'{"name": "theirs"}', user, {"Content-Type": "application/json"})
    theirs = json.loads(made[2])["token"]
    spy = connected(platform.mqtt_port, theirs, client_id=b"spy")
    granted = spy.asks(subscribe("#", "+/+/+", "$share/g/#", "$SYS/#", "default/#", "+/#"))
    assert granted[0] == 0x90
    # As many as one may have, each of them with wildcards; what is more is refused one by one.
    many = connected(platform.mqtt_port, ours, client_id=b"many")
    codes = b""
    for first in range(0, 10_000, 100):
        answer = many.asks(subscribe(*[f"+/{n}/+/#" for n in range(first, first + 100)], packet_id=first + 1))
        codes += answer[1][2:]
    assert collections.Counter(codes) == {1: 1_000, 0x80: 9_000}
    deep = connected(platform.mqtt_port, ours, client_id=b"deep")
    steps = [["+" if n >> bit & 1 else "a" for bit in range(10)] for n in range(999)]
    for first in range(0, 999, 100):
        assert deep.asks(subscribe(*["/".join(s) for s in steps[first : first + 100]]))[0] == 0x90
    source = connected(platform.mqtt_port, ours, client_id=b"source")
    before = cpu_seconds(platform.process)
    for number in range(200):
        topic = b"/".join([b"a"] * 10)
        assert source.asks(publish(topic, b"x", number + 1))[0] == 0x40
    spent = (cpu_seconds(platform.process) - before) / 200
    assert spent < 0.05, f"{spent * 1000:.1f} ms of CPU for a message that a thousand filters match"
    while True:
        first, body = deep.packet()
        assert first == 0x32
        deep.send(packet(0x40, body[2 + len(topic) : 4 + len(topic)]))
        if not select.select([deep.socket], [], [], 1)[0]:
            break
    # The spy hears of its own tenant's server figures alone.
    spy.socket.settimeout(1)
    heard = []
    try:
        while told := spy.packet():
            heard.append(told[1][2 : 2 + struct.unpack(">H", told[1][:2])[0]])
    except TimeoutError:
        pass
    assert all(topic.startswith(b"$SYS/") for topic in heard), heard


def test_user_properties_cost_in_proportion_to_their_number(platform):
    token = platform.add_device("props")
    client = connected(platform.mqtt_port, token, version=5)

    def spent(count, times):
        properties = b"\x26\0\0\0\0" * count
        length, encoded = len(properties), b""
        while True:
            length, digit = divmod(length, 128)
            encoded += bytes([digit | (0x80 if length else 0)])
            if not length:
                break
        message = publish(b"a", b"x", version=5, properties=encoded + properties)
        before = cpu_seconds(platform.process)
        for _ in range(times):
            assert client.asks(message)[0] == 0x40
        return (cpu_seconds(platform.process) - before) / times

    few, many = spent(2_000, 500), spent(200_000, 10)
    # A hundred times as many: a thousand times as much would still be far from their square.
    assert many < 1_000 * max(few, 1 / TICKS / 500), f"{few * 1e3:.3f} ms, {many * 1e3:.1f} ms"


# Too little of everything


def test_a_door_without_descriptors_waits_and_opens_again(platforms, many_descriptors):
    platform = platforms().start()
    token = platform.add_device("late")
    kept = connected(platform.mqtt_port, token, client_id=b"kept")
    # The journal has its file before there are none.
    assert platform.request("POST", "/v1/telemetry", b'{"a": 0}', token)[0] == 200
    used = len(os.listdir(f"/proc/{platform.process.pid}/fd"))
    run("prlimit", "--pid", str(platform.process.pid), f"--nofile={used + 60}:{used + 60}")
    crowd = []
    for number in range(300):
        client = socket.socket()
        client.setblocking(False)
        client.connect_ex(("127.0.0.1", platform.mqtt_port if number % 2 else platform.http_port))
        crowd.append(client)
    until("none is left", lambda: len(os.listdir(f"/proc/{platform.process.pid}/fd")) >= used + 58, 10)
    before, begin = cpu_seconds(platform.process), time.monotonic()
    time.sleep(3)
    share = (cpu_seconds(platform.process) - before) / (time.monotonic() - begin)
    assert share < 0.5, f"{share:.0%} of a core, for nothing"
    assert kept.pings(), "who is in stays in"
    for client in crowd:
        client.close()

    def comes_in():
        try:
            client = Client(platform.mqtt_port)
            return client.asks(connect(token))[1][1] == 0
        except (OSError, TypeError):
            return False

    until("the door opens again", comes_in)
    until("and takes readings", lambda: platform.request("POST", "/v1/telemetry", b'{"a": 1}', token)[0] == 200)
    assert platform.process.poll() is None


class Group:
    """Processes that share a part of the machine. Needs root."""

    def __init__(self, controller, **limits):
        if os.geteuid() != 0:
            pytest.fail("limiting a process needs root; run the tests as root")
        self.path = pathlib.Path(f"/sys/fs/cgroup/{controller}/dunlin-e2e-{os.getpid()}-{free_port()}")
        self.path.mkdir()
        for name, value in limits.items():
            (self.path / f"{controller}.{name}").write_text(str(value))

    def __enter__(self):
        return self

    def takes(self, process):
        (self.path / "cgroup.procs").write_text(str(process.pid))

    def __exit__(self, *_):
        for process in (self.path / "cgroup.procs").read_text().split():
            (self.path.parent / "cgroup.procs").write_text(process)
        self.path.rmdir()


def test_a_tenth_of_a_core_is_slow_and_loses_nothing(platform, tmp_path, loads):
    devices = add_devices(platform)
    with Group("cpu", cfs_quota_us=10_000) as group:
        group.takes(platform.process)
        load = Load(platform, tmp_path, devices, 10, "--rate", "3000", "--window", "32", drain="150s")
        loads.append(load)
        load.process.wait(400)
    report = load.finish()
    assert report["unknown"] == 0, report
    check_nothing_lost(platform, tmp_path, [load.record])


def test_memory_that_runs_out_ends_it_and_a_start_loses_nothing(platform, tmp_path, loads):
    """The kernel kills whoever takes more than the limit; a supervisor starts it again."""
    devices = add_devices(platform)
    load = Load(platform, tmp_path, devices, 12, "--rate", "2000", "--window", "32")
    loads.append(load)
    until("some load", lambda: stored(platform) > 500)
    with Group("memory", limit_in_bytes=16 << 20) as group:  # For what it takes from here on.
        group.takes(platform.process)
        deadline = time.monotonic() + 6
        while platform.process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        if platform.process.poll() is None:
            print("it got along with that")
            platform.kill()
    platform.process.wait(10)
    platform.start()
    report = load.finish()
    assert report["unknown"] == 0, report
    check_nothing_lost(platform, tmp_path, [load.record])


# The end


def test_a_stop_under_load_says_goodbye_to_everybody(platform, tmp_path, loads):
    devices = add_devices(platform)
    token = platform.add_device("watching")
    watching = [connected(platform.mqtt_port, token, version=5, client_id=b"w%d" % n) for n in range(50)]
    old = connected(platform.mqtt_port, token, version=4, client_id=b"old")
    load = Load(platform, tmp_path, devices, 4, "--window", "32", "--rate", "4000")
    loads.append(load)
    until("some load", lambda: stored(platform) > 500)
    stopping = {}
    thread = threading.Thread(target=lambda: stopping.update(zip(("code", "seconds"), platform.stop())))
    thread.start()
    for client in watching:
        first, body = client.packet()
        assert (first, body[0]) == (0xE0, 0x8B), body
        assert client.packet() is None
    assert old.packet() is None, "MQTT 3.1.1 has no words for it"
    thread.join(STOP_SECONDS + 15)
    assert stopping["code"] == 0 and stopping["seconds"] < STOP_SECONDS, stopping
    platform.start()
    report = load.finish()
    assert report["unknown"] == 0, report
    check_nothing_lost(platform, tmp_path, [load.record])

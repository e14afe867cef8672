"""A thousand broken packets and payloads; a healthy client beside them notices nothing."""
import json
import random
import socket
import struct
import threading

import paho.mqtt.client as paho
from platform_under_test import SEED, until

PACKETS = 500
PAYLOADS = 500


def text(content):
    return struct.pack(">H", len(content)) + content


def packet(first, body):
    length, encoded = len(body), b""
    while True:
        length, digit = divmod(length, 128)
        encoded += bytes([digit | (0x80 if length else 0)])
        if not length:
            return bytes([first]) + encoded + body


def connect(token, version=4):
    properties = b"\0" if version == 5 else b""
    return packet(0x10, text(b"MQTT") + bytes([version, 0x82, 0, 60]) + properties + text(b"") + text(token.encode()))


def publish(topic, payload, version=4, packet_id=1, first=0x32):
    properties = b"\0" if version == 5 else b""
    return packet(first, text(topic) + struct.pack(">H", packet_id) + properties + payload)


def broken_packets(chance, token):
    """Endless: bytes to send on a new connection."""
    good = connect(token) + publish(b"v1/telemetry", b'{"temperature": 1}')
    while True:
        kind = chance.randrange(9)
        if kind == 0:
            yield chance.randbytes(chance.randrange(1, 200))
        elif kind == 1:
            yield good[: chance.randrange(1, len(good))]
        elif kind == 2:
            at = chance.randrange(len(good))
            yield good[:at] + bytes([good[at] ^ 1 << chance.randrange(8)]) + good[at + 1 :]
        elif kind == 3:
            yield connect(token) + bytes([chance.randrange(256)]) + b"\xff\xff\xff\xff"
        elif kind == 4:
            yield connect(token) + b"\x32\xff\xff\xff\x7f" + chance.randbytes(100)
        elif kind == 5:
            yield connect(token) + publish(chance.choice([b"", b"#", b"a/+/b", b"\xff\xfe", b"\xef\xbb\xbfv1", b"x" * 65535]), b"{}")
        elif kind == 6:
            yield connect(token) + publish(b"v1/telemetry", b"{}", packet_id=0)
        elif kind == 7:
            yield connect(token) + publish(b"v1/telemetry", b"{}", first=0x36)
        else:
            yield connect(token, 5) + publish(b"v1/telemetry", chance.randbytes(20), 5) + chance.randbytes(50)


def broken_payloads(chance):
    fixed = [
        b"", b"null", b"true", b"3", b'"text"', b"[]]", b"{", b'{"a":}', b'{"a":NaN}', b'{"a":Infinity}', b'{"a":1e999}',
        b'{"a":-1e999}', b'{"a":null}', b'{"a":{"b":1}}', b'{"a":[1]}', b'{"":1}', b'{"ts":"noon","values":{"a":1}}',
        b'{"ts":1e30,"values":{"a":1}}', b'{"ts":99999999999999999999,"values":{"a":1}}', b'{"ts":1,"values":3}',
        b"[" * 100_000, b'{"a":' * 50_000, b'{"a":"\xff\xfe"}', b'{"\xff":1}', b'{"a":"\\ud800"}', b"\xef\xbb\xbf{}",
        b'{"' + b"m" * 1000 + b'":1}', b'{"a":"' + b"x" * 100_000 + b'"}',
        json.dumps({f"m{i}": i for i in range(5_000)}).encode(), b"9" * 100_000, b'{"a":' + b"9" * 10_000 + b"x}",
    ]
    yield from fixed
    while True:
        yield chance.randbytes(chance.randrange(1, 300)) if chance.random() < 0.5 else b'{"a":' + chance.randbytes(30)


def send_and_wait_for_the_end(platform, data):
    """Sends, and reads until the server closes or has had a moment to answer a connection it keeps."""
    with socket.create_connection(("127.0.0.1", platform.mqtt_port), 10) as connection:
        try:
            connection.sendall(data)
            connection.shutdown(socket.SHUT_WR)
            connection.settimeout(15)
            while connection.recv(4096):
                pass
        except (ConnectionError, BrokenPipeError):
            pass


def test_a_thousand_malformed_packets_and_payloads(platform):
    chance = random.Random(SEED)
    print(f"DUNLIN_E2E_SEED={SEED}")
    token = platform.add_device("broken")
    healthy = Healthy(platform)
    packets, payloads = broken_packets(chance, token), broken_payloads(chance)
    for _ in range(PACKETS):
        send_and_wait_for_the_end(platform, next(packets))
    answers = []
    for number in range(PAYLOADS):
        payload = next(payloads)
        if number % 2:
            status, _, _ = platform.request("POST", "/v1/telemetry", payload, token)
            answers.append((status, payload[:100]))
        else:
            send_and_wait_for_the_end(platform, connect(token) + publish(b"v1/telemetry", payload))
    assert [answer for answer in answers if not 400 <= answer[0] < 500] == []
    healthy.finish()

    assert platform.process.poll() is None
    assert "panicked" not in platform.log()
    until("they are counted", lambda: sum(platform.settle()["rejected"].values()) >= PAYLOADS // 2)
    rows = platform.query("SELECT count(*) AS n, count(DISTINCT beat) AS beats FROM default WHERE device = 'healthy'")
    assert int(rows[0]["n"]) == int(rows[0]["beats"]) == healthy.acked


class Healthy:
    """One client that publishes without a pause and must keep its one connection."""

    def __init__(self, platform):
        self.acked = 0
        self.connections = 0
        self.stopping = threading.Event()
        self.client = paho.Client(paho.CallbackAPIVersion.VERSION2)
        self.client.username_pw_set(platform.add_device("healthy"))
        self.client.on_connect = self.on_connect
        self.client.connect("127.0.0.1", platform.mqtt_port)
        self.client.loop_start()
        self.thread = threading.Thread(target=self.run)
        self.thread.start()

    def on_connect(self, *_):
        self.connections += 1

    def run(self):
        while not self.stopping.is_set():
            message = self.client.publish("v1/telemetry", json.dumps({"beat": self.acked}), qos=1)
            message.wait_for_publish(20)
            if not message.is_published():
                return
            self.acked += 1

    def finish(self):
        self.stopping.set()
        self.thread.join(30)
        self.client.disconnect()
        self.client.loop_stop()
        assert self.connections == 1, "the healthy client was disturbed"
        assert self.acked > 100

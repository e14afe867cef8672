"""Every way in, with clients and a load balancer that people already use."""
import json
import os
import socket
import ssl
import subprocess
import time

import paho.mqtt.client as paho
import pytest
from platform_under_test import Platform, free_port, until

MQTT_JS = r"""
const fs = require('fs');
const mqtt = require(process.argv[1] + '/node_modules/mqtt');
const [, , url, username, ca, cert, key] = process.argv;
const read = (file) => file && fs.readFileSync(file);
const client = mqtt.connect(url, { username: username || undefined, ca: read(ca), cert: read(cert), key: read(key),
  servername: 'localhost', protocolVersion: 5, reconnectPeriod: 0 });
client.on('error', (error) => { console.error(error); process.exit(1); });
client.on('connect', async () => {
  await client.publishAsync('v1/telemetry', JSON.stringify({ temperature: 21.5 }), { qos: 1 });
  await client.endAsync();
});
"""

HAPROXY = """
defaults
  mode tcp
  timeout connect 5s
  timeout client 60s
  timeout server 60s
frontend mqtt
  bind 127.0.0.1:{front}
  default_backend dunlin
backend dunlin
  server one 127.0.0.1:{back} send-proxy-v2 check
"""


class Authority:
    """Certificates as docs/doors.md makes them."""

    def __init__(self, directory, name):
        self.directory = directory
        self.openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "365",
                     "-subj", f"/CN={name}", "-keyout", f"{name}.key", "-out", f"{name}.pem")
        self.name = name
        self.pem = str(directory / f"{name}.pem")

    def openssl(self, *arguments):
        subprocess.run(["openssl", *arguments], cwd=self.directory, check=True, capture_output=True, timeout=60)

    def signs(self, name, common_name, *extensions):
        self.openssl("req", "-new", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes",
                     "-subj", f"/CN={common_name}", "-keyout", f"{name}.key", "-out", f"{name}.csr", *extensions)
        self.openssl("x509", "-req", "-in", f"{name}.csr", "-CA", self.pem, "-CAkey", f"{self.name}.key",
                     "-days", "90", "-copy_extensions", "copy", "-out", f"{name}.pem")
        return str(self.directory / f"{name}.pem"), str(self.directory / f"{name}.key")


class Doors:
    def __init__(self, tmp_path):
        self.authority = Authority(tmp_path, "authority")
        self.serves()
        self.stranger = Authority(tmp_path, "stranger")
        names = ["mqtts", "mutual", "ws", "wss", "proxied", "https"]
        self.ports = {name: free_port() for name in names}
        at = {name: f'address = "127.0.0.1:{port}"' for name, port in self.ports.items()}
        self.platform = Platform(tmp_path, f"""
            [https]
            {at["https"]}
            client_certificates = "optional"
            [tls]
            certificate = "{tmp_path}/server.pem"
            key = "{tmp_path}/server.key"
            [tls.renewal]
            check_seconds = 1
            [[tls.client_ca]]
            file = "{self.authority.pem}"
            tenant = "default"
            [[gateway.listener]]
            {at["mqtts"]}
            tls = true
            [[gateway.listener]]
            {at["mutual"]}
            tls = true
            client_certificates = "required"
            [[gateway.listener]]
            {at["ws"]}
            transport = "websocket"
            [[gateway.listener]]
            {at["wss"]}
            transport = "websocket"
            tls = true
            client_certificates = "optional"
            [[gateway.listener]]
            {at["proxied"]}
            proxy_protocol = true
            proxies = ["127.0.0.0/8"]
        """).start()

    def serves(self):
        self.authority.signs("server", "localhost", "-addext", "subjectAltName=DNS:localhost,IP:127.0.0.1")

    def stored(self, device):
        self.platform.settle()
        rows = self.platform.query(f"SELECT temperature FROM default WHERE device = '{device}' ORDER BY temperature")
        return [float(row["temperature"]) for row in rows]

    def mosquitto_pub(self, door, *options):
        command = ["mosquitto_pub", "-h", "localhost", "-p", str(self.ports[door]), "-q", "1", "-t", "v1/telemetry"]
        return subprocess.run([*command, "-m", '{"temperature": 21.5}', *options], capture_output=True, timeout=20)

    def mqtt_js(self, url, token, *files):
        modules = os.environ["DUNLIN_TEST_NODE"]
        return subprocess.run(["node", "-e", MQTT_JS, modules, url, token, *files], capture_output=True, timeout=60)

    def curl(self, *options):
        url = f"https://localhost:{self.ports['https']}/v1/telemetry"
        return subprocess.run(["curl", "-sS", "--fail", "-d", '{"temperature": 21.5}', *options, url],
                              capture_output=True, timeout=30)


@pytest.fixture
def doors(tmp_path):
    doors = Doors(tmp_path)
    yield doors
    doors.platform.close()


def test_tls_by_token(doors):
    platform, authority = doors.platform, doors.authority
    token = platform.add_device("by-token")
    for version in ("tlsv1.2", "tlsv1.3"):
        done = doors.mosquitto_pub("mqtts", "--cafile", authority.pem, "--tls-version", version, "-u", token)
        assert done.returncode == 0, (version, done.stderr)
    assert doors.stored("by-token") == [21.5] * 2
    assert doors.mosquitto_pub("mqtts", "--cafile", doors.stranger.pem, "-u", token).returncode != 0
    assert doors.mosquitto_pub("mqtts", "-u", token).returncode != 0, "no TLS"

    assert doors.curl("--cacert", authority.pem, "-H", f"Authorization: Bearer {token}").returncode == 0
    assert doors.stored("by-token") == [21.5] * 3
    url = f"https://localhost:{doors.ports['https']}"
    asked = ("query", "SELECT count(*) AS n FROM default", "--format", "csv")
    assert platform.cli(*asked, "--ca", authority.pem, url=url).stdout.split() == ["n", "3"]
    assert platform.cli(*asked, "--ca", doors.stranger.pem, url=url, check=False).returncode == 4


def test_devices_by_certificate(doors):
    platform, authority = doors.platform, doors.authority
    certificate, key = authority.signs("press", "press-7", "-addext", "extendedKeyUsage=clientAuth")
    shows = ("--cafile", authority.pem, "--cert", certificate, "--key", key)
    assert doors.mosquitto_pub("mutual", *shows).returncode != 0, "no device of this name"
    platform.add_device("press-7")
    assert doors.mosquitto_pub("mutual", *shows).returncode == 0
    wss = f"wss://localhost:{doors.ports['wss']}/mqtt"
    done = doors.mqtt_js(wss, "", authority.pem, certificate, key)
    assert done.returncode == 0, done.stderr
    assert doors.curl("--cacert", authority.pem, "--cert", certificate, "--key", key).returncode == 0
    assert doors.stored("press-7") == [21.5] * 3

    forged = doors.stranger.signs("forged", "press-7", "-addext", "extendedKeyUsage=clientAuth")
    refused = doors.mosquitto_pub("mutual", "--cafile", authority.pem, "--cert", forged[0], "--key", forged[1])
    assert refused.returncode != 0
    assert doors.curl("--cacert", authority.pem, "--cert", forged[0], "--key", forged[1]).returncode != 0
    assert doors.mosquitto_pub("mutual", "--cafile", authority.pem, "-u", platform.add_device("t")).returncode != 0
    assert doors.stored("press-7") == [21.5] * 3


def test_websockets(doors):
    token = doors.platform.add_device("browser")
    assert doors.mqtt_js(f"ws://localhost:{doors.ports['ws']}", token).returncode == 0
    done = doors.mqtt_js(f"wss://localhost:{doors.ports['wss']}/mqtt", token, doors.authority.pem)
    assert done.returncode == 0, done.stderr
    for door, secure in (("ws", False), ("wss", True)):
        client = paho.Client(paho.CallbackAPIVersion.VERSION2, transport="websockets")
        client.username_pw_set(token)
        if secure:
            client.tls_set_context(ssl.create_default_context(cafile=doors.authority.pem))
        client.connect("localhost", doors.ports[door])
        client.loop_start()
        for n in range(200):
            message = client.publish("v1/telemetry", json.dumps({"temperature": 30 + n, "door": door}), qos=1)
        message.wait_for_publish(20)
        client.disconnect()
        client.loop_stop()
    assert doors.stored("browser") == sorted([21.5] * 2 + [30.0 + n for n in range(200)] * 2)


def test_a_load_balancer_in_front(doors, tmp_path):
    front = free_port()
    (tmp_path / "haproxy.cfg").write_text(HAPROXY.format(front=front, back=doors.ports["proxied"]))
    haproxy = subprocess.Popen(["/usr/sbin/haproxy", "-db", "-f", tmp_path / "haproxy.cfg"])
    try:
        doors.ports["front"] = front
        token = doors.platform.add_device("behind")
        until("published", lambda: doors.mosquitto_pub("front", "-u", token).returncode == 0)
        assert doors.stored("behind") == [21.5]
        # The client's address is in the log when it is refused, not the balancer's.
        doors.mosquitto_pub("front", "-u", "nobody", "-A", "127.0.0.9")
        until("told", lambda: "address=127.0.0.9" in doors.platform.log())
    finally:
        haproxy.kill()
        haproxy.wait()


def test_certificates_are_renewed_while_it_runs(doors):
    def ends_at():
        _, _, text = doors.platform.get("/metrics")
        lines = [line for line in text.decode().splitlines() if line.startswith("dunlin_tls_certificate_end_timestamp_seconds")]
        return {line.split('subject="')[1].split('"')[0]: float(line.split()[-1]) for line in lines}

    def shown():
        context = ssl.create_default_context(cafile=doors.authority.pem)
        with socket.create_connection(("localhost", doors.ports["mqtts"])) as raw:
            with context.wrap_socket(raw, server_hostname="localhost") as pipe:
                return pipe.getpeercert()["serialNumber"]

    first = shown()
    assert 80 < (ends_at()["CN=localhost"] - time.time()) / 86_400 < 91
    doors.serves()
    until("the new one", lambda: shown() != first)
    assert "certificates taken anew" in doors.platform.log()

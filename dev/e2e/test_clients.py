"""What people already use to publish, unchanged; the readings come back by SQL."""
import json
import os
import pathlib
import subprocess

import paho.mqtt.client as paho
from platform_under_test import until

MQTT_JS = r"""
const mqtt = require(process.argv[1] + '/node_modules/mqtt');
const client = mqtt.connect('mqtt://127.0.0.1:' + process.argv[2],
  { username: process.argv[3], protocolVersion: Number(process.argv[4]), reconnectPeriod: 0 });
client.on('error', (error) => { console.error(error); process.exit(1); });
client.on('connect', async () => {
  for (let i = 0; i < 10; i++)
    await client.publishAsync('v1/telemetry', JSON.stringify({ temperature: 20 + i }), { qos: i % 2 + 1 });
  await client.endAsync();
});
"""


def temperatures(platform, device):
    rows = platform.query(f"SELECT temperature FROM default WHERE device = '{device}' ORDER BY time, temperature")
    return [float(row["temperature"]) for row in rows]


def test_mosquitto_pub(platform):
    for number, (qos, version) in enumerate([(q, v) for q in (0, 1, 2) for v in ("311", "5")]):
        device = f"mosquitto-{qos}-{version}"
        token = platform.add_device(device)
        command = ["mosquitto_pub", "-h", "127.0.0.1", "-p", str(platform.mqtt_port), "-u", token, "-P", "ignored"]
        command += ["-V", version if version == "5" else "mqttv311", "-q", str(qos), "-t", "v1/telemetry"]
        subprocess.run([*command, "-m", json.dumps({"temperature": 21.5 + number})], check=True, timeout=20)
        # Of QoS 0 the client does not know when it has come.
        until("it is stored", lambda: platform.settle().get("stored") == number + 1)
        assert temperatures(platform, device) == [21.5 + number]
    assert platform.settle()["stored"] == 6


def test_paho(platform):
    for name, protocol in (("paho-4", paho.MQTTv311), ("paho-5", paho.MQTTv5)):
        client = paho.Client(paho.CallbackAPIVersion.VERSION2, protocol=protocol)
        client.username_pw_set(platform.add_device(name), "any")
        client.connect("127.0.0.1", platform.mqtt_port)
        client.loop_start()
        messages = [client.publish("v1/telemetry", json.dumps({"temperature": 20.5 + i}), qos=1) for i in range(100)]
        for message in messages:
            message.wait_for_publish(20)
            assert message.is_published()
        client.disconnect()
        client.loop_stop()
        platform.settle()
        assert sorted(temperatures(platform, name)) == [20.5 + i for i in range(100)]


def test_a_batch_keeps_the_devices_times(platform):
    client = paho.Client(paho.CallbackAPIVersion.VERSION2)
    client.username_pw_set(platform.add_device("pump"))
    client.connect("127.0.0.1", platform.mqtt_port)
    client.loop_start()
    batch = [{"ts": 1_700_000_000_000 + i * 1_000, "values": {"temperature": i, "running": i > 1}} for i in range(4)]
    message = client.publish("v1/telemetry", json.dumps(batch), qos=1)
    message.wait_for_publish(20)
    client.loop_stop()
    assert platform.settle()["stored"] == 4
    rows = platform.query(
        "SELECT CAST(EXTRACT(EPOCH FROM time) AS BIGINT) AS at, temperature, running FROM default ORDER BY time"
    )
    assert [int(row["at"]) for row in rows] == [1_700_000_000 + i for i in range(4)]
    assert [float(row["temperature"]) for row in rows] == [0, 1, 2, 3]
    assert [row["running"].lower() for row in rows] == ["false", "false", "true", "true"]


def test_mqtt_js(platform):
    modules = os.environ["DUNLIN_TEST_NODE"]
    assert pathlib.Path(modules).is_dir()
    for version in ("4", "5"):
        device = f"js-{version}"
        token = platform.add_device(device)
        subprocess.run(
            ["node", "-e", MQTT_JS, modules, str(platform.mqtt_port), token, version], check=True, timeout=60
        )
        platform.settle()
        assert temperatures(platform, device) == [20 + i for i in range(10)]


def test_curl(platform):
    token = platform.add_device("curl")

    def curl(path, body, *options):
        command = ["curl", "-sS", "--fail-with-body", "--data-binary", body, *options, platform.url + path]
        return subprocess.run(command, capture_output=True, text=True, timeout=30)

    bearer = ("-H", f"Authorization: Bearer {token}")
    single = curl("/v1/telemetry", '{"temperature": 21.5}', *bearer)
    assert single.returncode == 0, single
    batch = curl("/v1/telemetry", '[{"temperature": 22.5}, {"temperature": 23.5}]', *bearer)
    assert batch.returncode == 0, batch
    line = curl("/api/v2/write", "default temperature=24.5", "-H", f"Authorization: Token {token}")
    assert line.returncode == 0, line
    platform.settle()
    assert sorted(temperatures(platform, "curl")) == [21.5, 22.5, 23.5, 24.5]

    wrong = curl("/v1/telemetry", '{"temperature": [1]}', *bearer)
    assert wrong.returncode == 22
    problem = json.loads(wrong.stdout)
    assert 400 <= problem["status"] < 500 and "temperature" in json.dumps(problem), problem
    assert curl("/v1/telemetry", "{}", "-H", "Authorization: Bearer nobody").returncode == 22
    until("the refused one is counted", lambda: sum(platform.settle()["rejected"].values()) == 1)
    assert platform.settle()["stored"] == 4

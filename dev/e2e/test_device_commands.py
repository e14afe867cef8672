"""Commands through the API to real clients and back, while every part on the way dies."""
import http.client
import json
import random
import threading
import time
from collections import Counter

import paho.mqtt.client as paho
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from platform_under_test import SEED, STOP_SECONDS, until
from test_gateways import balancer
from test_roles import houses  # noqa: F401

DEVICES = 6


class Device:
    """Does what it is told, and says so. Some keep their session, some do not."""

    def __init__(self, number, token, port):
        self.name, self.done = f"pump-{number}", Counter()
        self.paho = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id=self.name, protocol=paho.MQTTv5)
        self.paho.username_pw_set(token)
        self.paho.reconnect_delay_set(1, 1)
        self.paho.on_connect = lambda client, *_: client.subscribe("v1/commands/+", 1)
        self.paho.on_message = self.on_message
        is_lasting = number % 2 == 0
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 600 if is_lasting else 0
        self.paho.connect("127.0.0.1", port, clean_start=not is_lasting, properties=properties)
        self.paho.loop_start()

    def on_message(self, client, _data, message):
        command = message.topic.rsplit("/", 1)[1]
        asked = json.loads(message.payload)
        self.done[command] += 1
        client.publish(f"{message.topic}/reply", json.dumps({"did": asked["params"]}), qos=1)

    def close(self):
        self.paho.disconnect()
        self.paho.loop_stop()


class Sender:
    """Sends commands to all devices, one after the other; remembers those that were taken."""

    def __init__(self, console, devices):
        self.console, self.devices, self.taken, self.refused = console, devices, {}, Counter()
        self.going = True
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        number = 0
        while self.going:
            for device in self.devices:
                number += 1
                self.send(device, number)
                time.sleep(0.02)

    def send(self, device, number):
        body = json.dumps({"method": "count", "params": number, "expires_in_seconds": 600}).encode()
        headers = {"content-type": "application/json"}
        path = f"/v1/devices/{device.name}/commands"
        try:
            status, _, answer = self.console.request("POST", path, body, self.console.token(), headers)
        except (OSError, http.client.HTTPException):
            self.refused["gone"] += 1
            return
        if status == 202:
            self.taken[json.loads(answer)["id"]] = (device, number)
        else:
            assert status in (409, 503), answer
            self.refused[status] += 1

    def end(self):
        self.going = False
        self.thread.join()

    def check(self):
        """Whatever was taken was done by its device, which said so."""
        def left():
            states = {}
            for device in self.devices:
                after = ""
                while after is not None:
                    page = self.console.json(f"/v1/devices/{device.name}/commands{after}")
                    states |= {command["id"]: command for command in page["commands"]}
                    after = page["next"] and f"?after={page['next']}"
            return states if all(states[id]["state"] == "replied" for id in self.taken) else None

        states = until("every command is replied to", left)
        assert len(self.taken) > 100, "next to nothing was sent, so nothing was tested"
        for id, (device, number) in self.taken.items():
            assert device.done[id] >= 1
            assert states[id]["reply"] == {"did": number}, states[id]
            assert not any(other.done[id] for other in self.devices if other is not device)
        twice = sum(count > 1 for device in self.devices for count in device.done.values())
        print(f"{len(self.taken)} commands, {twice} of them brought more than once; refused {dict(self.refused)}")


@pytest.fixture
def devices():
    made = []
    yield made
    for device in made:
        device.close()


def test_commands_survive_kill_9(platform, devices):
    chance = random.Random(SEED)
    devices += [Device(n, platform.add_device(f"pump-{n}"), platform.mqtt_port) for n in range(DEVICES)]
    sender = Sender(platform, devices)
    for _ in range(3):
        time.sleep(chance.uniform(1, 3))
        platform.kill()
        platform.start()
    until("enough is sent", lambda: len(sender.taken) > 100)
    sender.end()
    sender.check()


def test_commands_find_their_devices_while_every_role_dies(houses, devices, tmp_path):  # noqa: F811
    house = houses()
    house.gateways = [house.process("gateway", f"gateway-{n}") for n in (1, 2)]
    fleets = [house.process("fleet", f"fleet-{n}") for n in (1, 2)]

    until("one of them records", lambda: sum(f.metric("dunlin_fleet_partitions_held") for f in fleets) == 1)
    with balancer(house.gateways, tmp_path) as front:
        devices += [Device(n, house.back.add_device(f"pump-{n}"), front) for n in range(DEVICES)]
        sender = Sender(house.back, devices)
        for dying in (house.gateways[0], fleets[0], house.gateways[1], fleets[1], house.back):
            time.sleep(2)
            dying.kill()
            time.sleep(1)
            dying.start()
        # Those that bring and record are away for longer than a session: others take over.
        for pair, consumer in ((fleets, "fleet"), (house.gateways, "commands")):
            def given(platform, consumer=consumer):
                """When it was given the work, and how often; lines begin with their time."""
                lines = [line for line in platform.log().splitlines() if f'given consumer="{consumer}"' in line]
                return lines[-1] if lines else "", len(lines)

            other, dying = sorted(pair, key=given)
            before = given(other)
            dying.kill()
            until("the other takes over", lambda other=other, before=before, given=given: given(other)[1] > before[1])
            time.sleep(2)
            dying.start()
        time.sleep(2)
        for stopping in (fleets[0], house.gateways[0], house.back):
            code, seconds = stopping.stop()
            assert code == 0 and seconds < STOP_SECONDS, stopping.log()[-3000:]
            stopping.start()
        sender.end()
        sender.check()
    offsets = house.kafka.tool("GetOffsetShell", "--topic", f"{house.prefix}commands")
    assert sum(int(line.rsplit(":", 1)[1]) for line in offsets.split()) >= len(sender.taken)


def test_a_person_waits_for_the_reply(platform, devices):
    device = Device(0, platform.add_device("pump-0"), platform.mqtt_port)
    devices.append(device)
    said = platform.cli("command", "send", "pump-0", "count", '{"to": 3}', "--wait").stdout
    assert json.loads(said) == {"did": {"to": 3}}
    platform.add_device("pump-1")
    late = platform.cli("command", "send", "pump-1", "count", "--expires-in", "1", "--wait", check=False)
    assert late.returncode == 1 and "expired without a reply; it was not delivered" in late.stderr
    nobody = platform.cli("command", "send", "pump-9", "count", check=False)
    assert nobody.returncode == 1 and 'there is no device "pump-9"' in nobody.stderr

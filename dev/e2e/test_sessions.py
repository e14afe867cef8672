"""Sessions, queued and retained messages, and wills through crashes: all there afterwards, QoS 2 exactly once."""
import collections
import os
import random
import threading
import time

import paho.mqtt.client as paho
import powercut
import pytest
from paho.mqtt.enums import MessageState
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from platform_under_test import SEED, until

CUTS = int(os.environ.get("DUNLIN_E2E_POWERCUTS", "2"))
KILLS = min(10, int(os.environ.get("DUNLIN_E2E_KILLS", "3")))
PUBLISHERS = 3
WINDOW = 16  # messages that a publisher has under way
HOUR = 3_600
CONFIG = "[gateway.pubsub]\nqueue_messages_max = 1000000\nqueue_bytes_max = 1073741824\n"  # Nothing is dropped.


class Client(paho.Client):
    """Paho, made to keep to what it has released. When it is cut off twice before CONNACK it forgets that it had PUBREC,
    and publishes the message again as a new one (MQTT 3.1.1, 4.3.3 forbids it): no server can tell."""

    def _messages_reconnect_reset_out(self):
        with self._out_message_mutex:
            state = MessageState.MQTT_MS_RESEND_PUBREL
            released = [message for message in self._out_messages.values() if message.state == state]
            super()._messages_reconnect_reset_out()
            for message in released:
                message.state = state


def client_of(platform, token, client_id, version=paho.MQTTv311, will=None, expiry=HOUR):
    """A real client with a session that outlives its connections, on its way in."""
    lasting = {"clean_session": False} if version == paho.MQTTv311 else {}
    client = Client(paho.CallbackAPIVersion.VERSION2, client_id=client_id, protocol=version, **lasting)
    client.username_pw_set(token)
    client.reconnect_delay_set(1, 1)
    client.max_inflight_messages_set(WINDOW)
    if will:
        client.will_set(*will)
    if version == paho.MQTTv5:
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = expiry
        client.connect("127.0.0.1", platform.mqtt_port, clean_start=False, properties=properties)
    else:
        client.connect("127.0.0.1", platform.mqtt_port)
    return client


class Subscriber:
    """Counts what it gets."""

    def __init__(self, platform, token, client_id, version):
        self.platform, self.token, self.client_id, self.version = platform, token, client_id, version
        self.got, self.order = collections.Counter(), []
        self.retained = {}
        self.client = None

    def come(self):
        self.client = client_of(self.platform, self.token, self.client_id, self.version)
        self.client.on_message = self.on_message
        self.client.loop_start()

    def subscribe(self, *filters):
        granted = threading.Event()
        self.client.on_subscribe = lambda *_: granted.set()
        until("connected", self.client.is_connected)
        self.client.subscribe([(f, 2) for f in filters])
        assert granted.wait(20), "no SUBACK"

    def leave(self):
        self.client.disconnect()
        self.client.loop_stop()

    def on_message(self, _client, _data, message):
        if message.retain:
            self.retained[message.topic] = int(message.payload)
            return
        self.got[(message.topic, message.payload)] += 1
        self.order.append((message.topic, message.payload))


class Publisher:
    """Publishes numbers to a topic of its own, every third with QoS 1, and a retained count; remembers what was
    acknowledged."""

    def __init__(self, platform, token, number):
        self.topic, self.state = f"floor/{number}", f"state/{number}"
        self.client = client_of(platform, token, f"publisher-{number}")
        # Called with a lock of paho's held, which publish() takes, too: so it only makes a note.
        self.answered = collections.deque()
        self.client.on_publish = lambda _client, _data, mid, _reason, _properties: self.answered.append(mid)
        self.under_way, self.acked = {}, []
        self.sent, self.state_acked = 0, 0
        self.going = True
        self.client.loop_start()
        self.thread = threading.Thread(target=self.run, daemon=True)
        self.thread.start()

    def run(self):
        while self.going or self.under_way:
            self.note_answers()
            if not self.going or len(self.under_way) >= WINDOW:
                time.sleep(0.001)
                continue
            number = self.sent
            self.sent += 1
            if number % 10 == 0:
                self.publish(self.state, number, 1, True)
            else:
                self.publish(self.topic, number, 1 if number % 3 == 0 else 2, False)
            time.sleep(0.002)

    def publish(self, topic, number, qos, retain):
        info = self.client.publish(topic, b"%d" % number, qos, retain)
        self.under_way[info.mid] = (topic, number, qos)

    def note_answers(self):
        while self.answered:
            topic, number, qos = self.under_way.pop(self.answered.popleft())
            if topic == self.state:
                self.state_acked = max(self.state_acked, number)
            else:
                self.acked.append((number, qos))

    def end(self):
        self.going = False
        until("all is acknowledged", lambda: not self.thread.is_alive())
        self.client.disconnect()
        self.client.loop_stop()


def leave_wills(platform, token, number):
    """One client that is connected when the end comes, one whose will waits already. No goodbyes."""
    here = client_of(platform, token, f"here-{number}", will=("gone/here", b"%d" % number, 2, False))
    delayed = Properties(PacketTypes.WILLMESSAGE)
    delayed.WillDelayInterval = 2
    will = ("gone/late", b"%d" % number, 2, False, delayed)
    late = client_of(platform, token, f"late-{number}", paho.MQTTv5, will)
    for client in (here, late):
        until("connected", lambda client=client: client.loop(0.05) == paho.MQTT_ERR_SUCCESS and client.is_connected())
    late.socket().close()
    return here


def crash_often(platform, chance, crashes, crash):
    token = platform.add_device("user", "--gateway")
    present = Subscriber(platform, token, "present", paho.MQTTv5)
    away = Subscriber(platform, token, "away", paho.MQTTv311)
    for subscriber in (present, away):
        subscriber.come()
        subscriber.subscribe("floor/#", "gone/#")
    away.leave()
    publishers = [Publisher(platform, token, number) for number in range(PUBLISHERS)]
    kept = []
    for number in range(crashes):
        time.sleep(chance.uniform(0.5, 2.0))
        kept.append(leave_wills(platform, token, number))
        time.sleep(chance.uniform(0.0, 0.3))
        crash()
    time.sleep(0.5)
    for publisher in publishers:
        publisher.end()
    away.come()

    wills = {(f"gone/{which}", b"%d" % number) for which in ("here", "late") for number in range(crashes)}
    acked = [(p, number, qos) for p in publishers for number, qos in p.acked]
    assert len(acked) > 100, "next to nothing was published, so nothing was tested"
    for subscriber in (present, away):
        expected = {(p.topic, b"%d" % number) for p, number, _ in acked} | wills
        until(f"{subscriber.client_id} has all", lambda s=subscriber, e=expected: e <= set(s.got))
    time.sleep(1)  # What comes twice comes now.
    for subscriber in (present, away):
        twice = {key: count for key, count in subscriber.got.items() if count > 1}
        exactly_once = {(p.topic, b"%d" % number) for p, number, qos in acked if qos == 2} | wills
        assert not twice.keys() & exactly_once, f"{subscriber.client_id} got twice: {twice}"
        for p in publishers:
            reliable = [int(payload) for topic, payload in subscriber.order if topic == p.topic and int(payload) % 3]
            assert reliable == sorted(reliable), f"{subscriber.client_id}: QoS 2 out of order on {p.topic}"
        subscriber.leave()

    late = Subscriber(platform, token, "late-comer", paho.MQTTv311)
    late.come()
    late.subscribe("state/#")
    last = {p.state: p.state_acked for p in publishers}
    until("all that was retained", lambda: late.retained.keys() >= last.keys())
    assert late.retained == last
    late.leave()
    print(f"{crashes} crashes, {len(acked)} acknowledged")


def test_sessions_through_power_cuts(platforms, small_disk):
    print(f"DUNLIN_E2E_SEED={SEED} DUNLIN_E2E_POWERCUTS={CUTS}")
    disk = small_disk(1024)
    platform = platforms(CONFIG, data=disk.mountpoint / "data").start()

    def cut():
        powercut.cut(disk.mountpoint)
        platform.kill()
        disk.remount()
        platform.start()

    crash_often(platform, random.Random(SEED), CUTS, cut)
    platform.close()


@pytest.mark.parametrize("snapshots", [False, True], ids=["from-the-log", "from-snapshots"])
def test_sessions_through_kills(platforms, snapshots):
    print(f"DUNLIN_E2E_SEED={SEED} DUNLIN_E2E_KILLS={KILLS}")
    platform = platforms(CONFIG).start()

    def kill():
        if snapshots:
            platform.stop()  # An orderly stop leaves a snapshot at its very end.
        else:
            platform.kill()
        platform.start()

    crash_often(platform, random.Random(SEED), KILLS, kill)

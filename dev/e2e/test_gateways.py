"""Several gateways at the doors on one Kafka: clients go from one to the other, publish across them, and lose nothing."""
import contextlib
import json
import random
import signal
import socket
import subprocess
import threading
import time

import paho.mqtt.client as paho
import pytest
from paho.mqtt.packettypes import PacketTypes
from paho.mqtt.properties import Properties
from paho.mqtt.subscribeoptions import SubscribeOptions
from platform_under_test import SEED, STOP_SECONDS, Load, add_devices, check_nothing_lost, free_port, until
from test_roles import houses, say  # noqa: F401

SESSION_SECONDS = 6  # of the houses
TAKEN_OVER, ADMINISTRATIVE = 0x8E, 0x98

BALANCER = """
defaults
  mode tcp
  timeout connect 1s
  timeout client 5m
  timeout server 5m
frontend devices
  bind 127.0.0.1:{front}
  default_backend gateways
backend gateways
  balance roundrobin
  option redispatch 1
  default-server check inter 500 fall 3 rise 1 on-marked-down shutdown-sessions
  server one 127.0.0.1:{one}
  server two 127.0.0.1:{two}
"""


def listens(port):
    try:
        socket.create_connection(("127.0.0.1", port)).close()
    except ConnectionRefusedError:
        return False
    return True


@contextlib.contextmanager
def balancer(gateways, directory):
    """A load balancer before the gateways."""
    front = free_port()
    config = directory / "haproxy.cfg"
    config.write_text(BALANCER.format(front=front, one=gateways[0].mqtt_port, two=gateways[1].mqtt_port))
    haproxy = subprocess.Popen(["/usr/sbin/haproxy", "-db", "-f", config])
    try:
        until("the balancer listens", lambda: listens(front))
        yield front
    finally:
        haproxy.kill()
        haproxy.wait()


@pytest.fixture
def company(houses):  # noqa: F811
    """A house with two gateways; alerts are published, too, by a process that has none."""
    house = houses(settings='[[alerting.channel]]\nkind = "mqtt"\nname = "bus"\ntopic = "alerts/{device}"\n')
    house.gateways = [house.process("gateway", f"gateway-{n}") for n in (1, 2)]
    return house


class Client:
    """A client of MQTT 5 that remembers what it was told."""

    def __init__(self, port, token, name, clean=False, will=None):
        self.token, self.messages, self.sessions, self.goodbyes = token, [], [], []
        self.granted, self.ended = {}, {}
        self.lock = threading.Lock()
        self.paho = paho.Client(
            paho.CallbackAPIVersion.VERSION2, client_id=name, protocol=paho.MQTTv5, reconnect_on_failure=False
        )
        self.paho.username_pw_set(token)
        self.paho.on_connect = lambda _c, _d, flags, reason, _p: self.sessions.append((reason.value, flags.session_present))
        self.paho.on_disconnect = lambda _c, _d, _f, reason, _p: self.goodbyes.append(reason.value)
        self.paho.on_message = lambda _c, _d, message: self.messages.append((message.topic, message.payload.decode()))
        self.paho.on_subscribe = lambda _c, _d, mid, _r, _p: self.granted.update({mid: True})
        self.paho.on_unsubscribe = lambda _c, _d, mid, _r, _p: self.ended.update({mid: True})
        if will:
            self.paho.will_set(*will, qos=1)
        properties = Properties(PacketTypes.CONNECT)
        properties.SessionExpiryInterval = 0 if clean else 600
        self.paho.connect("127.0.0.1", port, clean_start=clean, properties=properties)
        self.paho.loop_start()
        until(f"{name} is answered", lambda: self.sessions)
        assert self.sessions[0][0] == 0, self.sessions
        self.present = self.sessions[0][1]

    def subscribe(self, topic, qos=1, **options):
        _, mid = self.paho.subscribe(topic, options=SubscribeOptions(qos=qos, **options))
        until(f"{topic} is granted", lambda: self.granted.get(mid))
        return self

    def unsubscribe(self, topic):
        _, mid = self.paho.unsubscribe(topic)
        until(f"{topic} is ended", lambda: self.ended.get(mid))

    def publish(self, topic, payload, qos=1, retain=False):
        message = self.paho.publish(topic, payload, qos=qos, retain=retain)
        message.wait_for_publish(30)
        assert message.is_published()

    def hears(self, *messages):
        until(f"{messages} come", lambda: all(message in self.messages for message in messages))

    def close(self):
        self.paho.disconnect()
        self.paho.loop_stop()

    def vanish(self):
        """Without a word."""
        self.paho.loop_stop()
        self.paho.socket().close()


@pytest.fixture
def clients(company):
    made = []

    def client(gateway, name, token=None, **options):
        token = token or company.back.add_device(f"{name}-{len(made)}")
        port = company.gateways[gateway].mqtt_port if gateway in (0, 1) else gateway
        made.append(Client(port, token, name, **options))
        return made[-1]

    yield client
    for one in made:
        one.close()


def test_what_is_published_at_one_gateway_is_heard_at_the_other(company, clients):
    near, far = clients(0, "near", clean=True), clients(1, "far", clean=True)
    lasting = clients(1, "lasting").subscribe("news/#", qos=2)
    # Whoever is told that it has subscribed misses nothing that is published after.
    for n in range(40):
        far.subscribe(f"own/{n}")
        near.publish(f"own/{n}", str(n))
    far.hears(*((f"own/{n}", str(n)) for n in range(40)))
    assert len(far.messages) == 40
    for qos in (0, 1, 2):
        near.publish(f"news/{qos}", "x", qos=qos)
    lasting.hears(*((f"news/{qos}", "x") for qos in (0, 1, 2)))
    # What is retained is known to both, and what is ended is ended.
    near.publish("facts/1", "old", retain=True)
    near.publish("facts/1", "new", retain=True)
    far.subscribe("facts/#")
    far.hears(("facts/1", "new"))
    far.unsubscribe("own/0")
    near.publish("own/0", "late")
    near.publish("own/1", "last")
    far.hears(("own/1", "last"))
    assert ("own/0", "late") not in far.messages
    # A will is heard at the other gateway, and those who share get each message once, wherever they are.
    clients(0, "mortal", clean=True, will=("news/end", "gone")).vanish()
    lasting.hears(("news/end", "gone"))
    members = [clients(n % 2, f"member-{n}", clean=n < 2).subscribe("$share/g/work") for n in range(4)]
    for n in range(60):
        (near if n % 2 else far).publish("work", str(n))
    until("all is shared out", lambda: sum(len(member.messages) for member in members) >= 60)
    assert sorted(int(payload) for member in members for _, payload in member.messages) == list(range(60))
    assert all(member.messages for member in members)


def test_a_client_goes_from_one_gateway_to_the_other(company, clients):
    token = company.back.add_device("walker")
    sender = clients(0, "sender")
    at = [clients(0, "walker", token).subscribe("steps", qos=2)]
    assert not at[0].present
    heard = []
    for n in range(6):
        sender.publish("steps", str(n), qos=n % 3)
        at[-1].hears(("steps", str(n)))
        # Answered, so what it answered before has gone, too.
        at[-1].publish("noted", str(n))
        at.append(clients((n + 1) % 2, "walker", token))
        until("the first is told why", lambda: at[-2].goodbyes)
        assert at[-2].goodbyes == [TAKEN_OVER] and at[-1].present
        heard += [payload for _, payload in at[-2].messages]
    assert heard == [str(n) for n in range(6)], "each once"
    # Away from both, it misses nothing; a session that ends with its connection is taken over, too.
    at[-1].close()
    for n in range(6, 20):
        sender.publish("steps", str(n))
    back = clients(1, "walker", token)
    back.hears(*(("steps", str(n)) for n in range(6, 20)))
    assert [payload for _, payload in back.messages] == [str(n) for n in range(6, 20)]
    # Of a session that nobody keeps the log learns after the answer: to subscribe waits for it.
    fleeting = [clients(n, "fleeting", token, clean=True).subscribe("anything") for n in (0, 1)]
    until("the first is told why", lambda: fleeting[0].goodbyes)
    assert fleeting[0].goodbyes == [TAKEN_OVER] and not fleeting[1].goodbyes
    assert not clients(1, "fleeting", token).present


def test_access_that_is_taken_back_ends_connections_at_every_gateway(company, clients):
    token = company.back.add_device("pump")
    both = [clients(n, f"pump-{n}", token, will=("ends", "said")) for n in (0, 1)]
    witness = clients(1, "witness").subscribe("ends")
    status, _, body = company.back.request(
        "PATCH", "/v1/devices/pump", json.dumps({"enabled": False}).encode(), company.back.token(), {"Content-Type": "application/json"}
    )
    assert status == 204, body
    for client in both:
        until("it is told why", lambda client=client: client.goodbyes)
        assert client.goodbyes == [ADMINISTRATIVE]
    with pytest.raises(AssertionError):
        clients(0, "pump-0", token)
    clients(0, "other").publish("ends", "mark")
    witness.hears(("ends", "mark"))
    assert witness.messages == [("ends", "mark")], "a device that is disabled says nothing any more"


def test_a_gateway_that_stands_still_is_gone_and_its_clients_go_on(company, clients):
    first, second = company.gateways
    token = company.back.add_device("walker")
    stuck = clients(0, "walker", token, will=("end", "gone")).subscribe("steps")
    witness = clients(1, "witness").subscribe("end")
    first.process.send_signal(signal.SIGSTOP)
    try:
        # It is not waited for, neither by its clients nor by those who subscribe.
        moved = clients(1, "walker", token)
        assert moved.present
        witness.publish("steps", "1")
        moved.hears(("steps", "1"))
        began = time.monotonic()
        witness.subscribe("anything")
        waited = time.monotonic() - began
        until("it is taken for gone", lambda: second.metric("dunlin_gateways") == 1, seconds=4 * SESSION_SECONDS)
    finally:
        first.process.send_signal(signal.SIGCONT)
    assert first.process.wait(60) == 5, first.log()[-2000:]
    assert "go on without this one" in first.log()
    witness.hears(("end", "gone"))
    assert not stuck.messages
    assert not moved.goodbyes
    first.start()
    again = clients(0, "walker", token)
    assert again.present
    witness.publish("steps", "2")
    again.hears(("steps", "2"))
    print(f"a subscription waited {waited:.1f} s for a gateway that stood still")


def test_gateways_die_and_restart_under_load_and_nothing_is_lost(company, clients, loads, tmp_path):
    chance = random.Random(SEED)
    pipeline = company.process("pipeline", "rules-1")
    with balancer(company.gateways, tmp_path) as front:
        company.mqtt_port = front
        load = Load(company, tmp_path, add_devices(company.back, 24), 75, "--rate", "1500", "--window", "16")
        loads.append(load)
        token = company.back.add_device("reader")
        clients(front, "reader", token).subscribe("talk", qos=2).close()
        talk = company.back.add_device("talker")
        said = 0

        def converse():
            """Says something at one gateway, and reads it at any, as one session."""
            nonlocal said
            talker, reader = clients(front, "talker", talk), clients(front, "reader", token)
            assert reader.present
            for _ in range(5):
                talker.publish("talk", str(said))
                said += 1
            reader.hears(("talk", str(said - 1)))
            heard = [int(payload) for _, payload in reader.messages]
            assert sorted(set(heard)) == list(range(said - 5, said)), heard
            talker.close()
            reader.close()

        held, took = company.back.add_device("held"), []
        for event in range(6):
            converse()
            dying, other = event % 2, (event + 1) % 2
            gateway = company.gateways[dying]
            # One is connected when its gateway ends, with a message that it was not sent yet.
            before = clients(dying, "held", held, will=("talk/ends", str(event))).subscribe("held")
            time.sleep(chance.uniform(0, 1))
            if event in (2, 3):
                code, seconds = gateway.stop()
                assert code == 0 and seconds < STOP_SECONDS, gateway.log()[-3000:]
            else:
                gateway.kill()
            began = time.monotonic()
            clients(other, "told", clean=True).publish("held", str(event))
            after = clients(other, "held", held)
            assert after.present
            after.hears(("held", str(event)))
            took.append(time.monotonic() - began)
            before.close()
            after.close()
            converse()
            gateway.start()
            assert load.is_running()
        result = load.finish()
        assert result["acked"] > 0, result
    assert pipeline.process.poll() is None
    check_nothing_lost(company.back, tmp_path, [load.record], unrecorded_max=10**9)
    print(f"{said} messages, each read; a session went on after {', '.join(f'{seconds:.1f}' for seconds in took)} s; {result}")


def test_what_a_process_without_a_gateway_publishes_comes_by_every_gateway(company, clients):
    company.process("pipeline", "rules-1")
    listeners = [clients(n, f"listener-{n}", clean=n == 0).subscribe("alerts/#") for n in (0, 1)]
    away = clients(0, "away").subscribe("alerts/#")
    away.close()
    heater = clients(1, "heater", company.back.add_device("heat-0"))
    heater.publish("v1/telemetry", json.dumps({"heat": 90}))
    for client in (*listeners, away := clients(1, "away", away.token)):
        until("the alert comes", lambda client=client: [topic for topic, _ in client.messages] == ["alerts/heat-0"])
        assert json.loads(client.messages[0][1])["rule"] == "hot"
    assert away.present


def test_readings_of_one_device_by_both_gateways_are_one_series(company):
    token = company.back.add_device("both")
    for n, gateway in enumerate(company.gateways * 3):
        client = paho.Client(paho.CallbackAPIVersion.VERSION2, client_id="both")
        client.username_pw_set(token)
        client.connect("127.0.0.1", gateway.mqtt_port)
        client.loop_start()
        say(client, {"n": n})
        client.disconnect()
        client.loop_stop()
    until("all is stored", lambda: company.back.settle()["stored"] == 6)
    rows = company.back.query("SELECT n FROM default WHERE device = 'both' ORDER BY time")
    assert [float(row["n"]) for row in rows] == [0, 1, 2, 3, 4, 5]

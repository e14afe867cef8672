"""Alerting with real receivers: nothing is lost, nothing is told twice, nothing is hidden."""
import base64
import hashlib
import hmac
import json
import os
import re
import time
import urllib.error
import urllib.parse
import urllib.request

import paho.mqtt.client as mqtt
import pytest
from platform_under_test import until
from receivers import Alertmanager, MailServer, WebhookReceiver, list_of, text_of

# The full run: DUNLIN_E2E_STORM_RATE=5000 DUNLIN_E2E_STORM_SECONDS=60.
STORM_RATE = int(os.environ.get("DUNLIN_E2E_STORM_RATE", "400"))
STORM_SECONDS = int(os.environ.get("DUNLIN_E2E_STORM_SECONDS", "5"))

HOT = '[[rule]]\nname = "too-hot"\nwhen = "temperature > 80"\nseverity = "critical"\n'
RETRY = "[alerting.retry]\npause_first_ms = 100\npause_longest_ms = 500\n"


@pytest.fixture
def receivers():
    """Receivers to be closed with the test."""
    made = []

    def keep(receiver):
        made.append(receiver)
        return receiver

    yield keep
    for receiver in made:
        receiver.close()


def channel(kind, name, **settings):
    lines = [f"[[alerting.channel]]\nkind = {json.dumps(kind)}\nname = {json.dumps(name)}"]
    lines += [f"{key} = {value if isinstance(value, dict) else json.dumps(value)}" for key, value in settings.items()]
    return "\n".join(lines).replace("{'", "{").replace("': ", " = ").replace(", '", ", ") + "\n"


def mail_channel(server, **settings):
    return channel("email", "mail", server=f"127.0.0.1:{server.port}", **{"tls": "none", "timeout_seconds": 5} | settings,
                   **{"from": "Dunlin <dunlin@example.com>"}, to=["ops@example.com"])


def start(platforms, config, rules=HOT):
    platform = platforms(config)
    (platform.data / "rules").mkdir(parents=True)
    (platform.data / "rules/test.toml").write_text(rules)
    return platform.start()


class Device:
    def __init__(self, platform, name, *options):
        self.platform, self.name = platform, name
        self.token = platform.add_device(name, *options)

    def says(self, readings, child=None):
        path = f"/v1/d/{child}/telemetry" if child else "/v1/telemetry"
        headers = {"Authorization": f"Bearer {self.token}", "Content-Type": "application/json"}
        status, _, body = self.platform.request("POST", path, json.dumps(readings).encode(), headers=headers)
        assert status == 200, body

    def heats(self, child=None):
        self.says({"temperature": 90}, child)

    def cools(self, child=None):
        self.says({"temperature": 20}, child)


def alerts(platform, query=""):
    return platform.json(f"/v1/alerts{query}")["alerts"]


def the_alert(platform, **fields):
    def found():
        matching = [a for a in alerts(platform) if all(a[key] == value for key, value in fields.items())]
        return matching[0] if matching else None

    return until(f"an alert with {fields}", found)


def told(platform, alert):
    """(channel, what, state, reason)"""
    found = platform.json(f"/v1/alerts/{alert['id']}")["notifications"]
    return [(n["channel"], n["what"], n["state"], n["reason"]) for n in found]


def test_a_mail_says_that_it_fires_and_that_it_is_over(platforms, receivers, tmp_path):
    server = receivers(MailServer(tmp_path / "tls"))
    platform = start(platforms, mail_channel(server, tls="starttls", ca_file=str(tmp_path / "tls/ca.pem")))
    device = Device(platform, "press-7")
    device.heats()
    until("a mail", lambda: len(server.mails) == 1)
    device.cools()
    until("another", lambda: len(server.mails) == 2)
    assert server.subjects() == ["[critical] too-hot on press-7 fires", "[critical] too-hot on press-7 is over"]
    to, mail = server.mails[0]
    assert to == ["ops@example.com"] and mail["auto-submitted"] == "auto-generated"
    assert "temperature > 80" in text_of(mail) and f"{platform.url}/v1/ack/" in text_of(mail)
    assert mail["references"] == server.mails[1][1]["references"], "one conversation"


def test_a_mail_server_that_fails_is_tried_again_and_one_that_refuses_is_not(platforms, receivers):
    server = receivers(MailServer())
    platform = start(platforms, mail_channel(server) + RETRY)
    server.answers = ["451 busy", "451 busy", "250 taken"]
    Device(platform, "a").heats()
    until("the third try", lambda: len(server.mails) == 1)
    assert server.tried == 3

    server.answers = ["drop"]
    Device(platform, "b").heats()
    # It was taken, and nobody said so: told again, and both say that they are the same.
    until("two", lambda: len(server.mails) == 3)
    ids = [mail["message-id"] for _, mail in server.mails]
    assert ids[1] == ids[2] != ids[0]

    server.answers = ["550 no such user"]
    Device(platform, "c").heats()
    dead = until("given up", lambda: platform.json("/v1/notifications?state=dead")["notifications"])
    assert "550" in dead[0]["last_error"] and dead[0]["attempts"] == 1
    assert platform.request("POST", f"/v1/notifications/{urllib.parse.quote(dead[0]['key'], safe='')}/retry",
                            b"", platform.token())[0] == 202
    until("told after all", lambda: len(server.mails) == 4)


def test_a_webhook_receiver_that_fails_hangs_and_comes_back_gets_all_of_it_once(platforms, receivers, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("whsec_" + base64.b64encode(b"0123456789abcdef").decode() + "\n")
    good, bad = receivers(WebhookReceiver()), receivers(WebhookReceiver())
    hook = {"private_network": True, "timeout_seconds": 1}
    platform = start(platforms, channel("webhook", "bad", url=bad.url, secret_file=str(secret), **hook)
                     + channel("webhook", "good", url=good.url, **hook) + RETRY)
    bad.answers = [503, 503, "hang", 500]
    devices = [Device(platform, f"d{n}") for n in range(5)]
    for device in devices:
        device.heats()
    until("the good one has all", lambda: len(good.taken) == 5)
    until("the bad one, too", lambda: len(bad.taken) == 5)

    # Killed while it waits for a receiver that does not answer.
    bad.answers = ["hang"]
    devices[0].cools()
    until("asked", lambda: bad.asked >= 10)
    platform.kill()
    platform.start()
    until("told after the restart", lambda: len(bad.taken) == 6)
    time.sleep(1)
    assert len(set(bad.keys())) == len(bad.keys()) == 6, bad.keys()
    assert [b["what"] for b in bad.bodies()].count("resolved") == 1
    for _, headers, body in bad.taken:
        signed = f"{headers['webhook-id']}.{headers['webhook-timestamp']}.".encode() + body
        expected = base64.b64encode(hmac.new(b"0123456789abcdef", signed, hashlib.sha256).digest()).decode()
        assert headers["webhook-signature"] == f"v1,{expected}"
        assert headers["webhook-id"] == headers["idempotency-key"]
    assert "webhook-signature" not in good.taken[0][1]


def test_a_receiver_inside_must_be_meant(platforms):
    platform = platforms(channel("webhook", "hook", url="http://169.254.169.254/latest"))
    platform.start(wait=False)
    assert platform.process.wait(30) != 0
    assert "private_network = true" in platform.log()


def test_alertmanager_knows_what_fires_also_after_it_was_restarted(platforms, receivers, tmp_path):
    alertmanager = receivers(Alertmanager(tmp_path / "am"))
    platform = start(platforms, channel("alertmanager", "am", url=alertmanager.url, refresh_seconds=1) + RETRY)
    a, b = Device(platform, "a"), Device(platform, "b")
    a.heats(), b.heats()
    until("both fire", lambda: alertmanager.alerts() == [("too-hot", "a"), ("too-hot", "b")])
    a.cools()
    until("one is over", lambda: alertmanager.alerts() == [("too-hot", "b")])
    alertmanager.close()
    b.cools(), a.heats()
    alertmanager.start()
    until("it has caught up", lambda: alertmanager.alerts() == [("too-hot", "a")])


def test_slack_and_pagerduty_are_told_in_their_own_words(platforms, receivers, tmp_path):
    slack, pagerduty = receivers(WebhookReceiver()), receivers(WebhookReceiver())
    (tmp_path / "url").write_text(slack.url)
    (tmp_path / "key").write_text("R0UT1NG")
    hook = {"private_network": True}
    platform = start(platforms, channel("slack", "slack", url_file=str(tmp_path / "url"), **hook)
                     + channel("pagerduty", "pd", url=pagerduty.url, routing_key_file=str(tmp_path / "key"), **hook))
    device = Device(platform, "press-7")
    device.heats()
    until("both heard", lambda: slack.taken and pagerduty.taken)
    text = slack.bodies()[0]["text"]
    assert "*[critical] too-hot on press-7 fires*" in text and "temperature &gt; 80" in text and "|Acknowledge>" in text
    alert = the_alert(platform, device="press-7")
    platform.cli("alerts", "ack", alert["fingerprint"], "--by", "ada")
    until("acknowledged", lambda: len(pagerduty.taken) == 2)
    device.cools()
    until("resolved", lambda: len(pagerduty.taken) == 3)
    events = pagerduty.bodies()
    assert [e["event_action"] for e in events] == ["trigger", "acknowledge", "resolve"]
    assert {e["dedup_key"] for e in events} == {alert["fingerprint"]} and events[0]["routing_key"] == "R0UT1NG"
    assert events[0]["payload"]["severity"] == "critical" and events[0]["payload"]["source"] == "press-7"
    until("slack hears the end", lambda: len(slack.taken) == 2)


def test_devices_of_the_tenant_hear_of_alerts_over_mqtt(platforms):
    platform = start(platforms, channel("mqtt", "bus", retain=True))
    heard = []
    listener = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
    listener.username_pw_set(platform.add_device("listener"))
    listener.on_connect = lambda client, *_: client.subscribe("alerts/#", qos=1)
    listener.on_message = lambda _client, _data, message: heard.append((message.topic, json.loads(message.payload)))
    listener.connect("127.0.0.1", platform.mqtt_port)
    listener.loop_start()
    try:
        Device(platform, "press-7").heats()
        until("heard", lambda: heard)
        topic, body = heard[0]
        assert topic == "alerts/too-hot/press-7" and body["what"] == "fired" and body["severity"] == "critical"
    finally:
        listener.loop_stop()


def follow(url, method="GET"):
    try:
        with urllib.request.urlopen(urllib.request.Request(url, method=method), timeout=30) as answer:
            return answer.status, answer.read().decode(), answer.headers
    except urllib.error.HTTPError as refusal:
        return refusal.code, refusal.read().decode(), refusal.headers


def link_in(mail):
    return re.search(r"Acknowledge: (\S+)", text_of(mail)).group(1)


def test_a_link_acknowledges_once_and_no_other_does(platforms, receivers):
    server = receivers(MailServer())
    platform = start(platforms, mail_channel(server))
    Device(platform, "press-7").heats()
    until("a mail", lambda: server.mails)
    link = link_in(server.mails[0][1])

    for at in (-1, len(link) // 2, -30):
        forged = link[:at] + ("A" if link[at] != "A" else "B") + link[at:][1:]
        assert follow(forged)[0] == 403 and follow(forged, "POST")[0] == 403
    status, page, headers = follow(link)
    assert status == 200 and "<button>Acknowledge</button>" in page
    assert headers["content-security-policy"].startswith("default-src 'none'") and headers["cache-control"] == "no-store"
    assert the_alert(platform, device="press-7")["state"] == "firing", "a look changes nothing"
    assert follow(link, "POST")[0] == 200
    alert = the_alert(platform, device="press-7")
    assert (alert["state"], alert["acknowledged_by"]) == ("acknowledged", "ops@example.com")
    assert follow(link, "POST")[0] == 410 and follow(link)[0] == 410, "replayed"
    platform.cli("alerts", "unack", alert["id"])
    assert follow(link, "POST")[0] == 410, "nor when it would do something"


def test_a_link_expires(platforms, receivers):
    server = receivers(MailServer())
    platform = start(platforms, "[alerting]\nlink_seconds = 1\n" + mail_channel(server))
    Device(platform, "press-7").heats()
    until("a mail", lambda: server.mails)
    link = link_in(server.mails[0][1])
    until("expired", lambda: follow(link)[0] == 410)
    assert follow(link, "POST")[0] == 410
    assert the_alert(platform, device="press-7")["state"] == "firing"


def test_a_silence_keeps_quiet_says_so_and_tells_at_its_end(platforms, receivers):
    hook = receivers(WebhookReceiver())
    platform = start(platforms, channel("webhook", "hook", url=hook.url, private_network=True))
    device, other = Device(platform, "press-7"), Device(platform, "press-8")
    silence = platform.cli("silence", "add", "device=press-7", "--duration", "1h", "--comment", "works").stdout.strip()
    assert "active" in platform.cli("silence", "list").stdout
    device.heats(), other.heats()
    until("the other is told", lambda: [b["device"] for b in hook.bodies()] == ["press-8"])
    alert = the_alert(platform, device="press-7")
    [(_, what, state, why)] = told(platform, alert)
    assert (what, state) == ("fired", "suppressed") and why.startswith(f"silence {silence}")
    assert f"silence {silence}" in platform.cli("alerts", "show", alert["fingerprint"]).stdout

    # Also across a kill.
    platform.kill()
    platform.start()
    platform.cli("silence", "expire", silence)
    until("told at the end", lambda: [b["device"] for b in hook.bodies()] == ["press-8", "press-7"])


def test_an_escalation_ends_with_an_acknowledgement(platforms, receivers):
    first, second = receivers(WebhookReceiver()), receivers(WebhookReceiver())
    config = channel("webhook", "first", url=first.url, private_network=True)
    config += channel("webhook", "second", url=second.url, private_network=True)
    config += '[[alerting.policy]]\nname = "on-call"\nstep = [{ tell = ["first"], wait_seconds = 6 }, { tell = ["second"] }]\n'
    config += '[[alerting.route]]\nmatch = ["severity=critical"]\npolicy = "on-call"\n'
    platform = start(platforms, config)
    a, b = Device(platform, "a"), Device(platform, "b")
    a.heats(), b.heats()
    until("first hears", lambda: len(first.taken) == 2)
    platform.cli("alerts", "ack", the_alert(platform, device="a")["id"], "--comment", "on my way")
    until("second hears", lambda: second.taken)
    assert [body["device"] for body in second.bodies()] == ["b"]
    kept = until("why a was not", lambda: [t for t in told(platform, the_alert(platform, device="a")) if t[1] == "escalated"])
    assert kept[0][0] == "second" and kept[0][3] == "acknowledged by platform administrator"


def test_a_gateway_that_is_down_silences_its_children(platforms, receivers):
    hook = receivers(WebhookReceiver())
    rules = HOT + '[[rule]]\nname = "gateway-down"\nwhen = "up < 1"\n'
    platform = start(platforms, channel("webhook", "hook", url=hook.url, private_network=True), rules)
    gateway = Device(platform, "gw", "--gateway")
    gateway.cools("meter-1")
    gateway.says({"up": 0})
    until("told", lambda: [b["rule"] for b in hook.bodies()] == ["gateway-down"])
    gateway.heats("meter-1")
    alert = the_alert(platform, device="meter-1")
    [(_, _, state, why)] = told(platform, alert)
    assert state == "suppressed" and why.startswith("its gateway gw is down")
    gateway.says({"up": 1})
    until("told when it is back", lambda: "meter-1" in [b["device"] for b in hook.bodies()])


def test_flapping_is_told_once(platforms, receivers):
    hook = receivers(WebhookReceiver())
    config = "[alerting.flapping]\nfirings = 3\nwithin_seconds = 600\nquiet_seconds = 3\n"
    platform = start(platforms, config + channel("webhook", "hook", url=hook.url, private_network=True))
    device = Device(platform, "press-7")
    for _ in range(8):
        device.heats(), device.cools()
    until("its end", lambda: len(hook.taken) == 6)
    assert [b["what"] for b in hook.bodies()] == ["fired", "resolved", "fired", "resolved", "flapping", "resolved"]
    why = [t for alert in alerts(platform) for t in told(platform, alert) if t[2] == "suppressed"]
    assert len(why) == 11 and all("it flaps" in t[3] for t in why)


def test_a_storm_becomes_a_digest_that_lists_all(platforms, receivers, tmp_path):
    server, alertmanager = receivers(MailServer()), receivers(Alertmanager(tmp_path / "am"))
    config = "[alerting]\ndigest_seconds = 2\n[alerting.flapping]\nfirings = 1000000\n"
    config += mail_channel(server, budget={"burst": 5, "per_hour": 1}) + RETRY
    config += channel("alertmanager", "am", url=alertmanager.url)
    rules = "".join(f'[[rule]]\nname = "r{n}"\nwhen = "temperature > {n}"\n' for n in range(100))
    platform = start(platforms, config, rules)
    device = Device(platform, "press-7")
    # Every reading makes a hundred rules fire or resolve.
    steps = max(2, STORM_RATE * STORM_SECONDS // 100 // 2 * 2)
    began, memory = time.monotonic(), []
    for n in range(steps):
        device.says({"temperature": 200 if n % 2 == 0 else -1})
        memory.append(rss(platform))
        pause = began + (n + 1) * 100 / STORM_RATE - time.monotonic()
        time.sleep(max(0, pause))
    expected = steps * 100

    def all_told():
        return sum(1 if mail.is_multipart() is False else len(list_of(mail)) for _, mail in server.mails) >= expected

    until("all of it is told", all_told, 120 + STORM_SECONDS)
    took = time.monotonic() - began
    single = [mail for _, mail in server.mails if not mail.is_multipart()]
    digests = [mail for _, mail in server.mails if mail.is_multipart()]
    assert len(single) <= 6 and len(digests) <= took / 2 + 1, server.subjects()
    listed = [line for mail in digests for line in list_of(mail)]
    assert len(single) + len(listed) == expected
    assert len({(line["alert"], line["what"]) for line in listed}) == len(listed), "each once"
    assert all("over the budget" in line["reason"] for line in listed)
    until("Alertmanager knows that all is over", lambda: alertmanager.alerts() == [], 120)
    assert alerts(platform, "?state=open") == []
    half = len(memory) // 2
    assert max(memory[half:]) < max(memory[:half]) + 64, f"memory grew: {memory}"


def rss(platform):
    """MiB"""
    with open(f"/proc/{platform.process.pid}/status", encoding="ascii") as status:
        return int(next(line for line in status if line.startswith("RssAnon")).split()[1]) // 1024

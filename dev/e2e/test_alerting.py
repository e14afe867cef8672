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

# The full run: DUNLIN_E2E_STORM_RATE=5000 DUNLIN_E2E_STORM_SECONDS=60, on release binaries (DUNLIN_BIN).
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


def told(platform, alert, field=None):
    """(channel, what, state, reason), or by channel one field of what it was told last"""
    found = platform.json(f"/v1/alerts/{alert['id']}")["notifications"]
    if field:
        return {n["channel"]: n[field] for n in found}
    return [(n["channel"], n["what"], n["state"], n["reason"]) for n in found]


def test_a_mail_says_that_it_fires_and_that_it_is_over(platforms, receivers, tmp_path):
    server = receivers(MailServer(tmp_path / "tls", "starttls"))
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


@pytest.mark.parametrize("tls", ["starttls", "tls"])
def test_mail_goes_by_tls_with_a_login_or_not_at_all(platforms, receivers, tmp_path, tls):
    server = receivers(MailServer(tmp_path / "tls", tls, ("dunlin", "s3cret-enough")))
    (tmp_path / "password").write_text("s3cret-but-wrong\n")
    login = {"tls": tls, "username": "dunlin", "password_file": str(tmp_path / "password")}
    hook = receivers(WebhookReceiver())
    other = channel("webhook", "hook", url=hook.url, private_network=True)

    stranger = start(platforms, mail_channel(server, **login) + RETRY + other)
    Device(stranger, "a").heats()
    until("others hear of it", lambda: hook.taken)
    why = until("why not", lambda: told(stranger, the_alert(stranger, device="a"), "last_error")["mail"])
    assert "certificate" in why.lower(), why
    assert (server.tried, server.refused_logins) == (0, 0), "nobody who is not known hears a password"
    stranger.kill()

    platform = start(platforms, mail_channel(server, ca_file=str(tmp_path / "tls/ca.pem"), **login) + RETRY)
    Device(platform, "b").heats()
    dead = until("given up", lambda: platform.json("/v1/notifications?state=dead")["notifications"])
    assert "535" in dead[0]["last_error"] and server.refused_logins == 1 and server.tried == 0
    platform.kill()
    (tmp_path / "password").write_text("s3cret-enough\n")
    platform.start()
    path = f"/v1/notifications/{urllib.parse.quote(dead[0]['key'], safe='')}/retry"
    assert platform.request("POST", path, b"", platform.token())[0] == 202
    until("a mail", lambda: server.subjects() == ["[critical] too-hot on b fires"])
    assert "s3cret" not in platform.log() + stranger.log()


def test_a_mail_server_that_hangs_after_the_mail_is_tried_again_and_delays_nobody(platforms, receivers):
    server, hook = receivers(MailServer()), receivers(WebhookReceiver())
    platform = start(platforms, mail_channel(server, timeout_seconds=4) + RETRY
                     + channel("webhook", "hook", url=hook.url, private_network=True))
    server.answers = ["hang", "hang"]
    devices = [Device(platform, f"d{n}") for n in range(3)]
    for device in devices:
        device.heats()
    until("others hear of all", lambda: len(hook.taken) == 3)
    assert server.mails == [], "the mail server still hangs"
    until("all of it", lambda: len(server.mails) == 3)
    devices[0].cools()
    until("its end", lambda: len(server.mails) == 4)
    assert server.tried == 6 and len({mail["message-id"] for _, mail in server.mails}) == 4, server.subjects()


def test_a_receiver_that_was_gone_gets_all_of_it_in_order_and_once(platforms, receivers):
    hook = receivers(WebhookReceiver())
    platform = start(platforms, channel("webhook", "hook", url=hook.url, private_network=True) + RETRY)
    devices = [Device(platform, f"d{n}") for n in range(3)]
    hook.close()
    for device in devices:
        device.heats(), device.cools(), device.heats()
    platform.kill()
    platform.start()
    until("tried", lambda: (platform.metric("dunlin_alerting_notifications_failed_total") or 0) > 3)
    hook.open()
    until("all of it", lambda: len(hook.taken) == 9)
    for device in devices:
        heard = [body["what"] for body in hook.bodies() if body["device"] == device.name]
        assert heard == ["fired", "resolved", "fired"]
    assert len(set(hook.keys())) == 9


def test_what_an_alert_tells_comes_in_order_also_around_digests(platforms, receivers):
    hook = receivers(WebhookReceiver())
    config = "[alerting]\ndigest_seconds = 2\n" + RETRY
    config += channel("webhook", "hook", url=hook.url, private_network=True, budget={"burst": 2, "per_hour": 3_600})
    platform = start(platforms, config)

    def failed(more):
        before = platform.metric("dunlin_alerting_notifications_failed_total") or 0
        return lambda: (platform.metric("dunlin_alerting_notifications_failed_total") or 0) >= before + more

    # A digest is refused again and again: what follows waits for it, and nothing else does.
    hook.refuses = lambda body: body["what"] == "digest"
    devices = [Device(platform, f"d{n}") for n in range(8)]
    for device in devices:
        device.heats()
    until("the digest is refused", failed(3))
    in_digest = [d for d in devices if told(platform, the_alert(platform, device=d.name), "state")["hook"] == "carried"]
    time.sleep(3)
    in_digest[0].cools()
    of_it = the_alert(platform, device=in_digest[0].name, state="resolved")
    until("its end waits", lambda: told(platform, of_it, "state")["hook"] == "held")
    Device(platform, "other").heats()
    until("others do not", lambda: "other" in [body.get("device") for body in hook.bodies()])
    assert "digest" not in [body["what"] for body in hook.bodies()]
    hook.refuses = lambda body: False
    until("the digest and the end", lambda: [b["what"] for b in hook.bodies()][-2:] == ["digest", "resolved"])

    # What waits for a receiver that is gone is in digests and by itself.
    hook.refuses = lambda body: True
    for device in devices:
        if device is not in_digest[0]:
            device.cools()
    for device in devices:
        device.heats()
    until("all is refused", failed(10))
    hook.refuses = lambda body: False

    def heard():
        lines = [line for body in hook.bodies() for line in (body["alerts"] if body["what"] == "digest" else [body])]
        return {d.name: [line["what"] for line in lines if line["device"] == d.name] for d in devices}

    until("all of it", lambda: sum(map(len, heard().values())) == 3 * len(devices))
    assert set(map(tuple, heard().values())) == {("fired", "resolved", "fired")}, heard()


def test_a_webhook_receiver_that_fails_hangs_and_comes_back_gets_all_of_it_once(platforms, receivers, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("whsec_" + base64.b64encode(b"0123456789abcdef").decode() + "\n")
    good, bad = receivers(WebhookReceiver()), receivers(WebhookReceiver(patience=10))
    hook = {"private_network": True, "timeout_seconds": 5}
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
    config += '[[alerting.policy]]\nname = "on-call"\nstep = [{ tell = ["first"], wait_seconds = 12 }, { tell = ["second"] }]\n'
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


def test_a_maintenance_window_keeps_quiet_and_tells_what_fires_still_at_its_end(platforms, receivers):
    hook = receivers(WebhookReceiver())
    platform = start(platforms, channel("webhook", "hook", url=hook.url, private_network=True))
    short, long = Device(platform, "press-7"), Device(platform, "press-8")
    window = platform.cli("silence", "add", "device=~press-.*", "--duration", "15s", "--every", "1d").stdout.strip()
    short.heats(), long.heats(), short.cools()
    over = the_alert(platform, device="press-7", state="resolved")
    assert [(what, state) for _, what, state, _ in told(platform, over)] == [("fired", "suppressed"), ("resolved", "suppressed")]
    why = told(platform, over)[0][3]
    assert why.startswith(f"maintenance window {window} of platform administrator until "), why
    until("told at its end", lambda: hook.taken)
    assert [(b["device"], b["what"]) for b in hook.bodies()] == [("press-8", "fired")]
    assert "pending" in platform.cli("silence", "list").stdout, "until tomorrow"
    short.heats()
    until("told outside of it", lambda: len(hook.taken) == 2)


def test_a_snoozed_alert_is_told_again_if_it_fires_still(platforms, receivers):
    hook = receivers(WebhookReceiver())
    config = channel("webhook", "hook", url=hook.url, private_network=True)
    config += '[[alerting.policy]]\nname = "on-call"\nstep = [{ tell = ["hook"], wait_seconds = 1 }, { tell = ["hook"] }]\n'
    config += '[[alerting.route]]\nmatch = ["device=a"]\npolicy = "on-call"\n'
    platform = start(platforms, config)
    a, b = Device(platform, "a"), Device(platform, "b")
    a.heats(), b.heats()
    until("told", lambda: len(hook.taken) >= 2)
    for device in "ab":
        platform.cli("alerts", "snooze", the_alert(platform, device=device)["fingerprint"], "--for", "15s", "--by", "ada")
    b.cools()
    until("the end is told", lambda: ("b", "resolved") in [(x["device"], x["what"]) for x in hook.bodies()])
    until("told again", lambda: "reminded" in [body["what"] for body in hook.bodies()])
    assert [body["device"] for body in hook.bodies() if body["what"] == "reminded"] == ["a"]
    shown = platform.cli("alerts", "show", the_alert(platform, device="a")["id"]).stdout
    assert "ada" in shown and "snoozed" in shown


def test_alerts_alike_are_told_together(platforms, receivers):
    hook = receivers(WebhookReceiver())
    config = channel("webhook", "hook", url=hook.url, private_network=True)
    config += '[[alerting.route]]\ntell = ["hook"]\ngroup_by = ["rule"]\ngroup_seconds = 8\n'
    rules = HOT + '[[rule]]\nname = "too-wet"\nwhen = "humidity > 80"\n'
    platform = start(platforms, config, rules)
    devices = [Device(platform, f"d{n}") for n in range(3)]
    for device in devices:
        device.heats()
    devices[0].says({"humidity": 90})
    until("both groups", lambda: len(hook.taken) == 2)
    hot, wet = hook.bodies()
    assert (hot["what"], hot["count"], wet["count"]) == ("group", 3, 1)
    assert hot["groups"] == [{"rule": "too-hot", "severity": "critical", "what": "fired", "count": 3}]
    assert sorted(line["device"] for line in hot["alerts"]) == ["d0", "d1", "d2"]
    path = urllib.parse.urlsplit(hot["list_url"]).path
    assert platform.get(path)[2].decode().count(",critical,too-hot,") == 3
    alert = the_alert(platform, device="d1")
    assert told(platform, alert) == [("hook", "fired", "carried", "grouped: rule=too-hot")]


def test_a_person_has_one_budget_for_all_ways(platforms, receivers):
    server, hook = receivers(MailServer()), receivers(WebhookReceiver())
    config = "[alerting]\ndigest_seconds = 12\n" + mail_channel(server)
    config += channel("webhook", "hook", url=hook.url, private_network=True)
    config += '[[alerting.person]]\nname = "ada"\nbudget = { burst = 3, per_hour = 1 }\n'
    config += 'reach = [{ channel = "mail", to = "ada@example.com" }, { channel = "hook" }]\n'
    config += '[[alerting.route]]\ntell = ["ada"]\n'
    platform = start(platforms, config)
    devices = [Device(platform, name) for name in "abcd"]
    # One after the other: who comes first has the budget, and partitions go on side by side.
    for count, device in enumerate(devices, 1):
        device.heats()
        until("it fires", lambda: len(platform.json("/v1/alerts")["alerts"]) == count)
    until("digests", lambda: len(server.mails) + len(hook.taken) == 5)
    singles = [mail for _, mail in server.mails if not mail.is_multipart()]
    singles += [body for body in hook.bodies() if body["what"] == "fired"]
    assert len(singles) == 3, "three at once"
    assert {tuple(to) for to, _ in server.mails} == {("ada@example.com",)}
    listed = {line["device"] for _, mail in server.mails if mail.is_multipart() for line in list_of(mail)}
    assert listed == {"c", "d"}
    assert "ada: 3 at once, 1 an hour" in told(platform, the_alert(platform, device="d"))[0][3]


def test_a_template_is_tried_before_it_is_used(platforms, receivers, tmp_path):
    server = receivers(MailServer())
    template = tmp_path / "mail.txt"
    template.write_text("{{ alert.device }} is at {{ alert.value }} C. {{ ack_url }}\n")
    platform = start(platforms, mail_channel(server, subject="{{ title | upper }}", template=template.read_text()))
    Device(platform, "press-7").heats()
    until("a mail", lambda: server.mails)
    _, mail = server.mails[0]
    assert mail["subject"] == "[CRITICAL] TOO-HOT ON PRESS-7 FIRES"
    assert text_of(mail).startswith("press-7 is at 90.0 C. http")
    alert = the_alert(platform, device="press-7")["fingerprint"]
    template.write_text("{{ alert.rule }}!")
    preview = platform.cli("alerts", "preview", "--channel", "mail", "--alert", alert, "--template", str(template)).stdout
    assert "[CRITICAL] TOO-HOT ON PRESS-7 FIRES" in preview and "too-hot!" in preview
    template.write_text("{{ alert.rule")
    refused = platform.cli("alerts", "preview", "--channel", "mail", "--template", str(template), check=False)
    assert refused.returncode != 0 and "syntax error" in refused.stderr
    assert len(server.mails) == 1, "nothing was sent"


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
    config = "[alerting.flapping]\nfirings = 3\nwithin_seconds = 600\nquiet_seconds = 8\n"
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
        return sum(len(list_of(mail)) if mail.is_multipart() else 1 for _, mail in server.mails) >= expected

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

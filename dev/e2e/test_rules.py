"""Rules as people work with them: tested, proven on history, put in force, and changed again."""
import json

from platform_under_test import until
from test_replay import FAILURES, replay

RULE = """
[[rule]]
name = "machine-cold"
when = "avg(temperature) over 1h < 55 for 2h, clear above 80"
devices = "machine"

[[rule.test]]
name = "two cold hours"
readings = "1m 50 | 61m 50 | 121m 90 | 181m 90"
expect = "2h firing | 3h resolved"
"""


def fired(platform, rule):
    alerts = platform.json("/v1/alerts?limit=1000")["alerts"]
    return sorted(alert["fired_at"] for alert in alerts if alert["rule"] == rule and alert["fired_at"])


def test_a_rule_is_proven_on_history_and_live_it_says_the_same(platforms, tmp_path):
    platform = platforms().start()
    file, labels = tmp_path / "cold.toml", tmp_path / "labels.json"
    file.write_text(RULE)
    labels.write_text(json.dumps([[f"{start}:00", f"{end}:00"] for start, end in FAILURES]))
    assert "1 tests passed" in platform.cli("rule", "test", str(file)).stdout
    wrong = tmp_path / "wrong.toml"
    wrong.write_text(RULE.replace("2h firing", "1h firing"))
    failed = platform.cli("rule", "test", str(wrong), check=False)
    assert failed.returncode == 1 and "two cold hours" in failed.stderr, failed.stderr
    assert platform.cli("rule", "put", str(wrong), check=False).returncode == 1

    # Live first, then the same over what is stored.
    assert "machine-cold version 1" in platform.cli("rule", "put", str(file)).stdout
    replay(platform)
    platform.settle()
    history = ["--since", "2013-12-01T00:00:00Z", "--until", "2014-03-01T00:00:00Z"]
    found = json.loads(platform.cli("rule", "backtest", "machine-cold", *history, "--json").stdout)
    assert found["fired"] >= len(FAILURES)
    expected = sorted(firing["fired_at"] for firing in found["firings"])
    until("the live alerts are those of the back-test", lambda: fired(platform, "machine-cold") == expected)
    shown = platform.cli("rule", "backtest", "machine-cold", *history, "--labels", str(labels)).stdout
    assert "4 of 4 labelled windows noticed" in shown, shown
    from_file = json.loads(
        platform.cli("rule", "backtest", "machine-cold", "--file", str(file), *history, "--json").stdout
    )
    assert from_file["firings"] == found["firings"]

    # What people say stays with the rule.
    first, last = found["firings"][0], found["firings"][-1]
    for firing, options in [(first, []), (last, ["--false"])]:
        platform.cli("rule", "mark", "machine-cold", "machine", firing["since"], firing["fired_at"], *options)
    judged = json.loads(platform.cli("rule", "backtest", "machine-cold", *history, "--json").stdout)
    assert (judged["right"], judged["false"], judged["precision"]) == (1, 1, 0.5)
    (measured,) = [r["measured"] for r in platform.json("/v1/rules")["rules"] if r["name"] == "machine-cold"]
    assert measured["precision"] == 0.5 and measured["false_positive_rate"] == 0.5
    assert "50 %" in platform.cli("rule", "list").stdout


def test_versions_go_on_and_back_and_survive_a_kill(platforms, tmp_path):
    platform = platforms().start()
    rule = tmp_path / "hot.toml"
    text = '[[rule]]\nname = "hot"\nwhen = "temperature > {}"\n'
    for version, limit in [(1, 80), (2, 90)]:
        rule.write_text(text.format(limit))
        assert f"hot version {version}" in platform.cli("rule", "put", str(rule)).stdout
    platform.kill()
    platform.start()
    token = platform.add_device("pump")

    def send(value):
        status, _, body = platform.request(
            "POST", "/v1/telemetry", json.dumps({"temperature": value}).encode(), token=token
        )
        assert status in (200, 202, 204), body

    def firing():
        return [a for a in platform.json("/v1/alerts?state=firing")["alerts"] if a["rule"] == "hot"]

    send(85)
    platform.settle()
    send(95)
    until("the second version fires", firing)
    # The first one takes over: what the second fired is over, and 85 is too hot.
    platform.cli("rule", "rollback", "hot", "1")
    until("the change resolves", lambda: not firing())
    send(85)
    (alert,) = until("the first version fires", firing)
    assert alert["condition"] == "temperature > 80" and alert["value"] == 85
    platform.cli("rule", "disable", "hot")
    until("out of force", lambda: not firing())
    platform.cli("rule", "delete", "hot")
    assert "hot" not in [r["name"] for r in platform.json("/v1/rules")["rules"]]


def test_a_silent_device_is_missed_when_it_is_due_and_its_clock_is_shown(platforms, tmp_path):
    platform = platforms().start()
    rule = tmp_path / "silent.toml"
    rule.write_text('[[rule]]\nname = "silent"\nwhen = "no data for 2s"\n')
    platform.cli("rule", "put", str(rule))
    token = platform.add_device("pump")
    status, _, body = platform.request("POST", "/v1/telemetry", b'{"temperature": 1}', token=token)
    assert status in (200, 202, 204), body
    (alert,) = until(
        "the silence is told", lambda: platform.json("/v1/alerts?state=firing")["alerts"]
    )
    assert (alert["rule"], alert["device"]) == ("silent", "pump")
    assert platform.json("/v1/devices/pump")["clock_ahead_ms"] is None


def test_a_group_is_told_of_as_one_also_across_a_kill(platforms, tmp_path):
    platform = platforms().start()
    rule = tmp_path / "many.toml"
    rule.write_text('[[rule]]\nname = "many-hot"\nwhen = "temperature > 80"\ndevices = "press-*"\ngroup = "share > 5%"\n')
    platform.cli("rule", "put", str(rule))
    tokens = [platform.add_device(f"press-{n}") for n in range(20)]

    def send(hot):
        for n, token in enumerate(tokens):
            body = json.dumps({"temperature": 90 if n < hot else 20}).encode()
            status, _, answer = platform.request("POST", "/v1/telemetry", body, token=token)
            assert status in (200, 202, 204), answer

    def firing():
        return [a for a in platform.json("/v1/alerts?state=firing")["alerts"] if a["rule"] == "many-hot"]

    # All are members before the first is hot: 1 of 19 would be too many.
    send(0)
    platform.settle()
    send(1)
    platform.settle()
    send(2)
    (alert,) = until("2 of 20 are too many", firing)
    assert (alert["device"], alert["value"]) == ("press-*", 10), alert
    platform.kill()
    platform.start()
    assert [a["id"] for a in firing()] == [alert["id"]]
    send(0)
    until("none is hot", lambda: not firing())
    alerts = [a for a in platform.json("/v1/alerts?limit=1000")["alerts"] if a["rule"] == "many-hot"]
    assert len(alerts) == 1, alerts
    stages = {stage["stage"]: stage for stage in platform.json("/v1/status")["stages"]}
    assert "groups" in stages and not stages["rules"].get("problems"), stages


def test_what_is_not_critical_is_sampled_and_weighed(platforms):
    config = """
        [store.sampling]
        keep_one_in = 10
        [[store.sampling.metrics]]
        metric = "debug.*"
        always = true
    """
    platform = platforms(config).start()
    token = platform.add_device("pump")
    start, count = 1_750_000_000_000, 5_000
    for first in range(0, count, 500):
        records = [
            {"ts": start + n * 1000, "values": {"debug.rssi": 2} if n % 2 else {"temperature": 20, "debug.rssi": 2}}
            for n in range(first, first + 500)
        ]
        status, _, body = platform.request("POST", "/v1/telemetry", json.dumps(records).encode(), token=token)
        assert status in (200, 202, 204), body
    tenant = platform.settle()
    assert tenant["accepted"] == count and 2_000 < tenant["sampled"] < 2_500, tenant
    (row,) = platform.query("SELECT sum(weight) AS n, avg(value) AS mean FROM readings WHERE metric = 'debug.rssi'")
    assert abs(int(row["n"]) - count) < count * 0.15 and float(row["mean"]) == 2, row
    (row,) = platform.query("SELECT count(temperature) AS n FROM default")
    assert int(row["n"]) == count // 2, "what is critical is all there"
    end = start + count * 1000
    (series,) = platform.json(
        f"/v1/readings?device=pump&metric=debug.rssi&start={start}&end={end}&step_ms=86400000&aggregate=count"
    )
    assert series["sampled"] and abs(sum(n for _, n in series["points"]) - count) < count * 0.15, series

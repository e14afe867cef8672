"""A real industrial data set: what comes back is what the file says, and the shipped rule sees the failures."""
import datetime
import http.server
import json
import pathlib
import threading

import duckdb
from platform_under_test import HERE, REPOSITORY, until

FILE = HERE / "data" / "machine_temperature.csv"
READINGS = 22_695
FAILURES = [
    ("2013-12-10 06:25", "2013-12-12 05:35"),
    ("2013-12-15 17:50", "2013-12-17 17:00"),
    ("2014-01-27 14:20", "2014-01-29 13:30"),
    ("2014-02-07 14:55", "2014-02-09 14:05"),
]
HOURLY = """SELECT CAST(date_trunc('hour', {time}) AS VARCHAR) AS hour, avg({value}) AS mean
            FROM {table} GROUP BY 1 ORDER BY 1"""


class Receiver:
    """Takes notifications as a webhook."""

    def __init__(self):
        self.bodies, self.keys = [], []
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                receiver.bodies.append(json.loads(body))
                receiver.keys.append(self.headers["Idempotency-Key"])
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_):
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}/alerts"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.server.shutdown()
        self.server.server_close()


def replay(platform):
    arguments = ["replay", str(FILE), "--device", "machine", "--metric", "temperature"]
    return platform.cli(*arguments, "--mqtt", f"127.0.0.1:{platform.mqtt_port}", timeout=300)


def hours(rows):
    return [(row["hour"][:13].replace("T", " "), round(float(row["mean"]), 9)) for row in rows]


def from_file():
    table = f"read_csv('{FILE}', columns = {{'timestamp': 'TIMESTAMP', 'value': 'DOUBLE'}}, header = true)"
    database = duckdb.connect()
    whole = database.execute(f"SELECT count(*), min(value), max(value) FROM {table}").fetchone()
    cursor = database.execute(HOURLY.format(time="timestamp", value="value", table=table))
    return whole, hours([{"hour": hour, "mean": mean} for hour, mean in cursor.fetchall()])


def check_answers(platform):
    whole, hourly = from_file()
    (row,) = platform.query("SELECT count(*) AS n, min(temperature) AS low, max(temperature) AS high FROM default")
    assert (int(row["n"]), float(row["low"]), float(row["high"])) == whole
    assert whole[0] == READINGS
    assert hours(platform.query(HOURLY.format(time="time", value="temperature", table="default"))) == hourly


def moment(text):
    time = datetime.datetime.fromisoformat(text.replace("Z", "+00:00").replace(" ", "T"))
    return time if time.tzinfo else time.replace(tzinfo=datetime.timezone.utc)


def test_the_file_comes_back_and_a_second_time_changes_nothing(platforms):
    platform = platforms().start()
    replay(platform)
    assert platform.settle()["stored"] == READINGS
    check_answers(platform)

    replay(platform)
    tenant = platform.settle()
    assert (tenant["stored"], tenant["duplicate"]) == (READINGS, READINGS)

    assert platform.stop()[0] == 0
    platform.start()
    check_answers(platform)
    replay(platform)
    tenant = platform.settle()
    assert (tenant["stored"], tenant["duplicate"]) == (READINGS, 2 * READINGS)
    check_answers(platform)


def test_the_shipped_rule_fires_in_the_failures(platforms):
    receiver = Receiver()
    rules = REPOSITORY / "rules"
    config = f"""rules = "{rules}"
        [[alerting.channel]]
        name = "hook"
        kind = "webhook"
        url = "{receiver.url}"
        private_network = true
    """
    try:
        platform = platforms(config).start()
        replay(platform)
        platform.settle()

        def fired():
            return [moment(fired_at) for fired_at in fired_times(receiver.bodies)]

        def every_failure_is_noticed():
            return all(any(moment(a) <= t <= moment(b) for t in fired()) for a, b in FAILURES)

        def all_is_told():
            lags = [stage["lag"] for stage in platform.json("/v1/status")["stages"]]
            notifications = platform.json("/v1/notifications")["notifications"]
            return not any(lags) and not any(told["state"] in ("due", "held") for told in notifications)

        until("an alert in each labelled failure", every_failure_is_noticed)
        until("all of it is told", all_is_told)
        assert len(set(receiver.keys)) == len(receiver.keys), "a notification was repeated"
        alerts = platform.json("/v1/alerts")["alerts"]
        assert any(alert["device"] == "machine" for alert in alerts), alerts

        before = len(receiver.bodies)
        replay(platform)
        platform.settle()
        status = platform.stop()
        assert status[0] == 0
        assert len(receiver.bodies) == before, "old data notified again"
    finally:
        receiver.close()


def fired_times(bodies):
    return [
        body["at"]
        for body in bodies
        if body["state"] == "firing" and "machine" in body["rule"] and body["device"] == "machine"
    ]

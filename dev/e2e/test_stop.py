"""A stop has an end, whatever hangs."""
import socket
import threading

from platform_under_test import STOP_SECONDS, until

# Every alert waits this long for its receiver, one after the other.
CONFIG = """
[[alerting.channel]]
kind = "webhook"
name = "silent"
url = "http://127.0.0.1:{port}/alerts"
private_network = true
timeout_seconds = 60
"""
RULE = """
[[rule]]
name = "hot"
when = "temperature > 80"
"""
DEVICES = 20


class Silent:
    """Takes connections and never answers."""

    def __init__(self):
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1_000)
        self.port = self.listener.getsockname()[1]
        self.taken = []
        threading.Thread(target=self.take, daemon=True).start()

    def take(self):
        try:
            while True:
                self.taken.append(self.listener.accept()[0])
        except OSError:
            pass

    def close(self):
        self.listener.close()
        for connection in self.taken:
            connection.close()


def test_a_receiver_that_never_answers_does_not_hold_up_a_stop(platforms):
    silent = Silent()
    try:
        platform = platforms(CONFIG.format(port=silent.port))
        rules = platform.data / "rules"
        rules.mkdir(parents=True)
        (rules / "hot.toml").write_text(RULE)
        platform.start()
        for number in range(DEVICES):
            token = platform.add_device(f"device-{number}")
            headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
            status, _, body = platform.request("POST", "/v1/telemetry", b'{"temperature": 90}', headers=headers)
            assert status == 200, body
        platform.settle()
        until("somebody is told", lambda: silent.taken)
        code, seconds = platform.stop()
        assert code == 0 and seconds < STOP_SECONDS, (code, seconds)

        platform.start()
        assert platform.settle()["stored"] == DEVICES
    finally:
        silent.close()

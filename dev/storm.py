"""Clients that stand there, in several processes, and come back by themselves when the server was gone."""
import json
import queue
import subprocess
import threading
import time

# Every so many numbers the loader takes another source address.
CONNECTIONS_PER_SOURCE = 20_000


class Crowd:
    """So many idle connections of the loader, spread over processes with source addresses of their own."""

    def __init__(self, loader, port, tokens, connections, processes, *options):
        self.connections = connections
        self.news = [queue.Queue() for _ in range(processes)]
        self.processes = []
        for number in range(processes):
            share = connections // processes + (number < connections % processes)
            command = [loader, "idle", "--target", f"127.0.0.1:{port}", "--tokens", tokens, "--connections", share,
                       "--first", number * CONNECTIONS_PER_SOURCE, "--seed", number + 1, "--duration", "1h", *options]
            process = subprocess.Popen([str(word) for word in command], stdout=subprocess.PIPE,
                                       stderr=subprocess.PIPE, text=True)
            self.processes.append(process)
            threading.Thread(target=self._listen, args=(process, self.news[number]), daemon=True).start()

    def _listen(self, process, news):
        for line in process.stdout:
            news.put(json.loads(line))
        news.put({"ended": process.stderr.read()})

    def wait_for(self, what, seconds):
        """What each process says under that name, once all have said it."""
        end = time.monotonic() + seconds
        said = []
        for number, news in enumerate(self.news):
            try:
                line = news.get(timeout=max(0.01, end - time.monotonic()))
            except queue.Empty:
                raise AssertionError(f"idle clients, process {number}: not {what} within {seconds} s") from None
            assert what in line, f"idle clients, process {number}: {line} instead of {what}"
            said.append(line[what])
        return said

    def wait_held(self, seconds=120):
        assert sum(self.wait_for("holding", seconds)) == self.connections

    def wait_back(self, seconds=60):
        """How the processes came back: connections lost, seconds until all were in again, tries, refusals by code."""
        back = self.wait_for("back", seconds)
        refused = {}
        for one in back:
            for code, count in one["refused"].items():
                refused[code] = refused.get(code, 0) + count
        return {"lost": sum(one["lost"] for one in back), "seconds": max(one["seconds"] for one in back),
                "tries": sum(one["tries"] for one in back), "refused": refused}

    def close(self):
        for process in self.processes:
            process.kill()
            process.wait()

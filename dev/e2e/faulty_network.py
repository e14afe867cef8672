"""A network between a client and the platform that swallows what it carries."""
import selectors
import socket
import threading


class Proxy:
    """Carries bytes between its own port and another. `swallow_up` and `swallow_down` make what a client or the
    server sends disappear, without a word to either.

    While it is cut, nothing arrives on either side. When it is mended what was sent arrives, as TCP sends it again; unless
    it forgets the connections from before, as a firewall does: then they are silent for good.
    """

    def __init__(self, target_port=None):
        self.carries_to(target_port)
        self.listener = socket.create_server(("127.0.0.1", 0), backlog=1_000)
        self.port = self.listener.getsockname()[1]
        self.swallow_up = self.swallow_down = False
        self.selector = selectors.DefaultSelector()
        self.selector.register(self.listener, selectors.EVENT_READ, self.accept)
        self.forgotten, self.held_up = [], []
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        self.thread = threading.Thread(target=self.carry, daemon=True)

    def __enter__(self):
        self.thread.start()
        return self

    def __exit__(self, *_):
        self.stopping.set()
        self.thread.join(10)
        for key in list(self.selector.get_map().values()):
            key.fileobj.close()
        for end in self.forgotten + [key.fileobj for key in self.held_up]:
            end.close()
        self.selector.close()

    def carries_to(self, port):
        self.target = ("127.0.0.1", port)

    def cut(self):
        with self.lock:
            for key in list(self.selector.get_map().values()):
                self.selector.unregister(key.fileobj)
                self.held_up.append(key)

    def mend(self, forgets=False):
        with self.lock:
            for key in self.held_up:
                if forgets and key.fileobj is not self.listener:
                    self.forgotten.append(key.fileobj)
                else:
                    self.selector.register(key.fileobj, key.events, key.data)
            self.held_up.clear()

    def forget_connections(self):
        """Whatever either side of today's connections says from here on reaches nobody, and nobody is told."""
        with self.lock:
            for key in list(self.selector.get_map().values()):
                if key.fileobj is not self.listener:
                    self.selector.unregister(key.fileobj)
                    self.forgotten.append(key.fileobj)

    def carry(self):
        while not self.stopping.is_set():
            events = self.selector.select(0.05)
            with self.lock:
                for key, _ in events:
                    # One may be gone by now with the other end of its connection.
                    if self.selector.get_map().get(key.fd) is key:
                        key.data()

    def accept(self):
        client, _ = self.listener.accept()
        try:
            server = socket.create_connection(self.target)
        except OSError:
            client.close()
            return
        self.selector.register(client, selectors.EVENT_READ, lambda: self.pass_on(client, server, "swallow_up"))
        self.selector.register(server, selectors.EVENT_READ, lambda: self.pass_on(server, client, "swallow_down"))

    def pass_on(self, source, sink, swallows):
        try:
            data = source.recv(65536)
            if data and not getattr(self, swallows):
                sink.sendall(data)
        except OSError:
            data = b""
        if not data:
            for end in (source, sink):
                self.selector.unregister(end)
                end.close()

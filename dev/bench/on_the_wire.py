"""What one message costs a device on the wire: bytes, packets and round trips, counted and not computed.

The device is a bare socket with OpenSSL: what a client library adds of its own is left out. Bytes and packets are the
kernel's count of the connection (TCP_INFO), with headers of IPv4 and TCP with timestamps (52 bytes a packet, 60 with the
options of SYN), at the segment size of the open internet. Round trips are how long it takes until the message is
acknowledged when every byte is 100 ms on its way, divided by 200 ms; the handshake of TCP, which the delay does not
reach, is one more."""
import queue
import socket
import ssl
import statistics
import struct
import threading
import time

SEGMENT_BYTES_MAX = 1_400
HEADER_BYTES, SYN_BYTES = 52, 60
TCP_INFO_BYTES = 256
MESSAGES = 20  # on a kept connection
CONNECTIONS = 5  # with a message each
PAUSE_SECONDS = 0.1  # so that nothing is acknowledged together
DELAY_SECONDS = 0.1
SEQ = iter(range(9_000_000_000, 10_000_000_000))


def record():
    """As the loader's: 128 bytes, never the same twice."""
    return b'{"temperature":20.00,"humidity":40.25,"seq":%d' % next(SEQ) + b" " * 73 + b"}"


class Count:
    """Bytes and packets so far, with headers; the end of a connection is counted if it was waited for."""

    def __init__(self, tcp):
        info = tcp.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, TCP_INFO_BYTES)
        received, = struct.unpack_from("Q", info, 128)
        self.packets_out, self.packets_in = struct.unpack_from("II", info, 136)
        sent, = struct.unpack_from("Q", info, 200)
        # One of the packets each way was a SYN.
        self.sent = sent + HEADER_BYTES * self.packets_out + SYN_BYTES - HEADER_BYTES
        self.received = received + HEADER_BYTES * self.packets_in + SYN_BYTES - HEADER_BYTES


class Connection:
    def __init__(self, port, context=None, session=None):
        self.tcp = socket.socket()
        self.tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, SEGMENT_BYTES_MAX)
        self.tcp.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.tcp.settimeout(30)
        self.tcp.connect(("127.0.0.1", port))
        self.stream = self.tcp
        if context:
            # The plain socket stays open beside it, to be asked for its counts.
            self.stream = context.wrap_socket(self.tcp.dup(), server_hostname="localhost", session=session)
            self.stream.settimeout(30)

    def ask(self, data, is_whole):
        """Sends, and reads until the answer is whole."""
        self.stream.sendall(data)
        answer = b""
        while not is_whole(answer):
            more = self.stream.recv(4096)
            assert more, f"closed after {answer}"
            answer += more
        return answer

    def close(self, last_words=b""):
        """Ends it in order, waits for the other end's end, and returns what it all cost."""
        if last_words:
            self.stream.sendall(last_words)
        if self.stream is not self.tcp:
            try:
                self.stream.unwrap()
            except (OSError, ssl.SSLError):
                pass  # The other end closed first.
        try:
            self.tcp.shutdown(socket.SHUT_WR)
            while self.tcp.recv(4096):
                pass
        except OSError:
            pass
        count = Count(self.tcp)
        self.stream.close()
        self.tcp.close()
        return count


def text(data):
    return struct.pack("!H", len(data)) + data


def packet(first, body):
    length, header = len(body), bytes([first])
    while length >= 0x80:
        header += bytes([length & 0x7F | 0x80])
        length >>= 7
    return header + bytes([length]) + body


class Mqtt:
    """MQTT 3.1.1, QoS 1."""

    def __init__(self, token, records):
        assert records == 1, "MQTT sends one record a message here"
        self.token = token

    def begin(self, connection):
        connect = text(b"MQTT") + b"\x04\x82\x00\x00" + text(b"wire") + text(self.token.encode())
        answer = connection.ask(packet(0x10, connect), lambda answer: len(answer) >= 4)
        assert answer == b"\x20\x02\x00\x00", answer

    def say(self, connection, last):
        publish = text(b"v1/telemetry") + b"\x00\x01" + record()
        answer = connection.ask(packet(0x32, publish), lambda answer: len(answer) >= 4)
        assert answer == b"\x40\x02\x00\x01", answer

    last_words = b"\xe0\x00"


class Http:
    """HTTP/1.1 with the headers that it takes and no more."""

    def __init__(self, token, records):
        self.token, self.records = token, records

    def begin(self, connection):
        pass

    def say(self, connection, last):
        body = record() if self.records == 1 else b"[" + b",".join(record() for _ in range(self.records)) + b"]"
        head = f"POST /v1/telemetry HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer {self.token}\r\n"
        head += "Content-Type: application/json\r\n" + ("Connection: close\r\n" if last else "")
        head += f"Content-Length: {len(body)}\r\n\r\n"
        answer = connection.ask(head.encode() + body, self.is_whole)
        assert answer.startswith(b"HTTP/1.1 200"), answer

    @staticmethod
    def is_whole(answer):
        head, found, body = answer.partition(b"\r\n\r\n")
        if not found:
            return False
        lines = (line.split(b":", 1) for line in head.lower().splitlines()[1:])
        return len(body) >= int({name: value for name, value in lines}[b"content-length"])

    last_words = b""


class Delay:
    """Everything is a while on its way, in both directions."""

    def __init__(self, port):
        self.to = port
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self):
        while True:
            try:
                near, _ = self.listener.accept()
            except OSError:
                return
            far = socket.create_connection(("127.0.0.1", self.to))
            for one, other in ((near, far), (far, near)):
                one.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                on_its_way = queue.Queue()
                threading.Thread(target=self._take, args=(one, on_its_way), daemon=True).start()
                threading.Thread(target=self._give, args=(other, on_its_way), daemon=True).start()

    @staticmethod
    def _take(source, on_its_way):
        data = True
        while data:
            try:
                data = source.recv(65536)
            except OSError:
                data = b""
            on_its_way.put((time.monotonic() + DELAY_SECONDS, data))

    @staticmethod
    def _give(sink, on_its_way):
        try:
            while True:
                due, data = on_its_way.get()
                time.sleep(max(0.0, due - time.monotonic()))
                if not data:
                    sink.shutdown(socket.SHUT_WR)
                    return
                sink.sendall(data)
        except OSError:
            pass  # The end of one end is the other's business.

    def close(self):
        self.listener.close()


class Devices:
    def __init__(self, token, authority):
        self.token, self.authority = token, authority

    def measure(self, protocol, port, kept, tls, records=1):
        """Of one record: bytes sent and received, packets of both ways. Of one exchange: the round trips."""
        talk = {"mqtt": Mqtt, "http": Http}[protocol](self.token, records)
        context = ssl.create_default_context(cafile=self.authority) if tls else None
        resume = tls == "TLS resumed"
        costs = self._kept(talk, port, context) if kept else self._cold(talk, port, context, resume)
        delay = Delay(port)
        try:
            session = self._session(talk, port, context) if resume else None
            trips = self._round_trips(talk, delay.port, kept, context, session)
        finally:
            delay.close()
        sent, received, packets = (cost / records for cost in costs)
        return {"sent": sent, "received": received, "packets": packets, "round_trips": trips}

    @staticmethod
    def _session(talk, port, context):
        """A TLS session to go on from."""
        connection = Connection(port, context)
        talk.begin(connection)
        talk.say(connection, last=True)
        session = connection.stream.session
        connection.close(talk.last_words)
        assert session, "the server gave no session to go on from"
        return session

    def _cold(self, talk, port, context, resume):
        """What a connection with one message costs from SYN to FIN; acknowledgements travel together by chance."""
        counts = []
        for _ in range(CONNECTIONS):
            session = self._session(talk, port, context) if resume else None
            connection = Connection(port, context, session)
            assert not resume or connection.stream.session_reused
            talk.begin(connection)
            talk.say(connection, last=True)
            counts.append(connection.close(talk.last_words))
        each = [(count.sent, count.received, count.packets_out + count.packets_in) for count in counts]
        return tuple(statistics.median(costs) for costs in zip(*each))

    @staticmethod
    def _kept(talk, port, context):
        """What one message adds."""
        connection = Connection(port, context)
        talk.begin(connection)
        talk.say(connection, last=False)
        time.sleep(PAUSE_SECONDS)
        before = Count(connection.tcp)
        for _ in range(MESSAGES):
            talk.say(connection, last=False)
            time.sleep(PAUSE_SECONDS)
        after = Count(connection.tcp)
        connection.close(talk.last_words)
        packets = after.packets_out + after.packets_in - before.packets_out - before.packets_in
        return tuple(cost / MESSAGES for cost in (after.sent - before.sent, after.received - before.received, packets))

    @staticmethod
    def _round_trips(talk, port, kept, context, session):
        began = time.monotonic()
        connection = Connection(port, context, session)
        talk.begin(connection)
        if kept:
            talk.say(connection, last=False)
            began = time.monotonic()
        talk.say(connection, last=not kept)
        trips = (time.monotonic() - began) / (2 * DELAY_SECONDS) + (not kept)
        connection.close(talk.last_words)
        return trips

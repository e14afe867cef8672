"""Those whom alerting tells: a mail server, a webhook receiver, Debian's Alertmanager. Each can be made to fail."""
import asyncio
import csv
import email
import email.policy
import functools
import gzip
import http.server
import io
import json
import pathlib
import ssl
import subprocess
import threading
import time
import urllib.request

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import AuthResult
from platform_under_test import free_port

SERVICES = pathlib.Path(__file__).parent.parent / "services"


class MailServer:
    """Takes mail, unless `answers` says otherwise for the next ones: '451 ...', '550 ...', 'hang', which says nothing for
    longer than anybody waits and takes nothing, or 'drop', which takes the mail and closes the connection without a word.

    `tls` is 'starttls' or 'tls' (from the first byte), `login` a user's name and password; then nothing goes without."""

    def __init__(self, directory=None, tls=None, login=None):
        self.mails, self.tried, self.answers, self.login, self.refused_logins = [], 0, [], login, 0
        context = None
        if tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*make_certificate(directory))
        options = {"ssl_context": context} if tls == "tls" else {"tls_context": context, "require_starttls": bool(context)}
        if login:
            # aiosmtpd knows of STARTTLS alone that it is TLS.
            options |= {"authenticator": self.authenticate, "auth_required": True, "auth_require_tls": tls == "starttls"}
        self.controller = Controller(self, hostname="127.0.0.1", port=free_port(), ready_timeout=60, **options)
        self.controller.start()
        self.port = self.controller.port

    def authenticate(self, _server, _session, _envelope, _mechanism, said):
        is_right = (said.login.decode(), said.password.decode()) == self.login
        self.refused_logins += not is_right
        return AuthResult(success=is_right, handled=False)

    async def handle_DATA(self, server, session, envelope):
        self.tried += 1
        answer = self.answers.pop(0) if self.answers else "250 taken"
        if answer[0] in "45":
            return answer
        if answer == "hang":
            await asyncio.sleep(3_600)
        mail = email.message_from_bytes(envelope.content, policy=email.policy.default)
        self.mails.append((envelope.rcpt_tos, mail))
        if answer == "drop":
            server.transport.close()
        return "250 taken"

    def subjects(self):
        return [mail["subject"] for _, mail in self.mails]

    def close(self):
        self.controller.stop()


def text_of(mail):
    return mail.get_body(("plain",)).get_content()


@functools.cache
def list_of(mail):
    """All that a digest tells, from its attachment."""
    attached = [part for part in mail.iter_attachments()]
    return list(csv.DictReader(io.StringIO(gzip.decompress(attached[0].get_content()).decode())))


def make_certificate(directory):
    """A certificate for 127.0.0.1 and its key, of an authority of its own: `ca.pem`."""
    directory.mkdir(exist_ok=True)

    def openssl(*arguments):
        subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)

    new_key = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    openssl("req", "-x509", *new_key, "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test authority", "-days", "2")
    openssl("req", *new_key, "-keyout", "key.pem", "-out", "request.pem", "-subj", "/CN=mail")
    (directory / "names").write_text("subjectAltName = IP:127.0.0.1\nbasicConstraints = CA:FALSE\n")
    openssl("x509", "-req", "-in", "request.pem", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial",
            "-out", "cert.pem", "-days", "2", "-extfile", "names")
    return directory / "cert.pem", directory / "key.pem"


class WebhookReceiver:
    """Answers 200, or what `answers` says for the next requests: a status, or 'hang'. What `refuses` is true of is never
    taken."""

    def __init__(self, patience=3):
        self.taken, self.asked, self.answers, self.refuses = [], 0, [], lambda body: False
        receiver = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                body = self.rfile.read(int(self.headers["content-length"]))
                receiver.asked += 1
                answer = receiver.answers.pop(0) if receiver.answers else 200
                if receiver.refuses(json.loads(body)):
                    answer = 503
                if answer == "hang":
                    time.sleep(patience)
                    return
                if answer == 200:
                    receiver.taken.append((time.time(), dict(self.headers), body))
                self.send_response(answer)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self.handler, self.port = Handler, free_port()
        self.url = f"http://127.0.0.1:{self.port}/hook"
        self.open()

    def open(self):
        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", self.port), self.handler)
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def bodies(self):
        return [json.loads(body) for _, _, body in self.taken]

    def keys(self):
        return [headers["idempotency-key"] for _, headers, _ in self.taken]

    def close(self):
        self.server.shutdown()
        self.server.server_close()


class Alertmanager:
    def __init__(self, directory):
        self.directory, self.port = directory, free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self):
        script = SERVICES / "alertmanager.sh"
        subprocess.run([script, "start", str(self.port), self.directory], check=True)
        subprocess.run([script, "ready", str(self.port)], check=True)

    def alerts(self):
        """(rule, device) of what fires, as Alertmanager sees it."""
        with urllib.request.urlopen(f"{self.url}/api/v2/alerts?active=true&silenced=false", timeout=30) as answer:
            return sorted((a["labels"]["alertname"], a["labels"]["device"]) for a in json.load(answer))

    def close(self):
        subprocess.run([SERVICES / "alertmanager.sh", "stop", self.directory], check=False)

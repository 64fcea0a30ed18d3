"""Whatever a relay says, in whatever pieces: each recipient gets the mail once, is owed it, or is told of in failed/."""

import dataclasses
import re
import socket
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import strategies as st
from support.fuzzing import fuzzed

from maildrop import settings, spool
from maildrop.delivery import Delivery
from maildrop.logfile import MaildropLog

TIMEOUT_S = 10.0    # longer than anything takes here
MOST_PASSES = 20
RECIPIENTS = tuple(f"{name}@example.org" for name in ("ann", "bob", "eve"))
MESSAGE = b"Subject: mail %d\n\n.a line with a dot\n.\nend\n"
REPLY = re.compile(rb"(?:[2-5][0-9][0-9]-[^\n]*\n)*([2-5][0-9][0-9])(?: [^\n]*|\r*)\n")
GOOD = {
    "greeting": b"220 relay.example.org ESMTP\r\n",
    "helo": b"250 relay.example.org\r\n",
    "mail": b"250 2.1.0 ok\r\n",
    "rcpt": b"250 2.1.5 ok\r\n",
    "data": b"354 go on\r\n",
    "content": b"250 2.0.0 queued\r\n",
    "rset": b"250 2.0.0 ok\r\n",
    "auth": b"235 2.7.0 welcome\r\n",
    "starttls": b"454 4.7.0 not now\r\n",
    "quit": b"221 2.0.0 bye\r\n",
    "?": b"500 5.5.1 what\r\n",
}
STEPS = ("greeting", "ehlo", "helo", "starttls", "auth", "mail", "rcpt", "data", "content", "rset", "quit")


# -- the relay --


@dataclasses.dataclass(frozen=True)
class Says:
    """What is said at a step instead of the good reply."""

    step: str
    text: bytes
    then_hangs_up: bool


class Relay:
    """Says what it is told to, each saying once, and good replies to all else.

    What is said to several commands that came in one piece goes out in one, or is cut into pieces of ``piece`` bytes.
    """

    def __init__(self, sayings, features, piece):
        self.accepted = Counter()    # pairs of a mail and a recipient for which it has said a whole 2yz reply to the content
        self.said = []
        self._sayings = list(sayings)
        self._features = features
        self._piece = piece
        self._lock = threading.Lock()
        self._sockets = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._listen, daemon=True)]
        self._threads[0].start()

    def __enter__(self):
        return self

    def __exit__(self, *exc):
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join()
        self._listener.close()
        for sock in self._sockets:
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()

    def _listen(self):
        with suppress(OSError):
            while True:
                sock, _ = self._listener.accept()
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                self._sockets.append(sock)
                self._threads.append(threading.Thread(target=self._serve, args=(sock,), daemon=True))
                self._threads[-1].start()

    def _serve(self, sock):
        with sock, suppress(OSError):
            _Dialogue(self, sock).run()

    def next_saying(self, step):
        with self._lock:
            for saying in self._sayings:
                if saying.step == step:
                    self._sayings.remove(saying)
                    self.said.append(saying)
                    return saying
        return None

    def good(self, step):
        with self._lock:
            features = list(self._features)
            if any(saying.step == "starttls" for saying in self._sayings):
                features.append("STARTTLS")
        if step == "ehlo":
            lines = ("250-relay.example.org", *(f"250-{feature}" for feature in features), "250 SIZE", "")
            return "\r\n".join(lines).encode()
        return GOOD[step]

    def send(self, sock, text):
        for begin in range(0, len(text), self._piece or max(1, len(text))):
            sock.sendall(text[begin : begin + self._piece] if self._piece else text)


class _Dialogue:
    def __init__(self, relay, sock):
        self.relay, self.sock = relay, sock
        self.received = b""
        self.ready = b""    # what is to be said
        self.hears_mail = False
        self.recipients = []

    def run(self):
        self.say("greeting")
        while True:
            line = self.read_until(b"\r\n")
            verb = line[:4].upper().decode("latin-1")
            step = {"EHLO": "ehlo", "HELO": "helo", "STAR": "starttls", "AUTH": "auth", "MAIL": "mail", "RCPT": "rcpt",
                    "DATA": "data", "RSET": "rset", "QUIT": "quit"}.get(verb, "?")    # fmt: skip
            if step == "data" and not self.recipients:
                self.ready += b"554 5.5.1 no valid recipients\r\n"
                continue
            code = self.say(step)
            if step == "mail":
                self.hears_mail, self.recipients = code // 100 == 2, []
            elif step == "rcpt" and code // 100 == 2 and self.hears_mail:
                self.recipients.append(re.search(rb"<(.*)>", line)[1].decode())
            elif step == "rset":
                self.hears_mail, self.recipients = False, []
            elif step == "data" and code == 354:
                self.take_content()
            elif step == "quit":
                self.flush()
                return

    def take_content(self):
        self.received = b"\r\n" + self.received
        content = self.read_until(b"\r\n.\r\n")
        pairs = [(content.partition(b"mail ")[2][:1], recipient) for recipient in self.recipients]
        self.hears_mail, self.recipients = False, []
        self.say("content", lambda code: self.relay.accepted.update(pairs if code // 100 == 2 else ()))

    def say(self, step, before=lambda code: None):
        """The code of what is said; 0 for what is no reply. ``before`` is called with it before it is said."""
        saying = self.relay.next_saying(step)
        text = saying.text if saying else self.relay.good(step)
        found = REPLY.match(text)
        code = int(found[1]) if found else 0
        self.ready += text
        before(code)
        if saying and (saying.then_hangs_up or not code):    # else both sides would wait
            self.flush()
            self.sock.shutdown(socket.SHUT_WR)
            while self.sock.recv(1 << 16):
                pass
            raise OSError("hung up")
        return code

    def flush(self):
        ready, self.ready = self.ready, b""
        self.relay.send(self.sock, ready)

    def read_until(self, end):
        while end not in self.received:
            self.flush()
            data = self.sock.recv(1 << 16)
            if not data:
                raise OSError("it has hung up")
            self.received += data
        text, _, self.received = self.received.partition(end)
        return text


# -- what it says --

CODES = tuple(b"250 251 354 421 450 451 452 500 503 530 535 550 552 554 221 150 334 599".split())
TEXTS = (b"", b" ", b" ok", b" 2.0.0 ok", b" 5.1.1 no", b"\xff\xfe", b" \0\x1b[31m", b"\t", b" " + b"x" * 600, b" 250 ok")
one_reply = st.builds(
    lambda code, others, text, end: b"".join(code + b"-" + other + b"\r\n" for other in others) + code + text + end,
    st.one_of(st.just(b"250"), st.sampled_from(CODES)),
    st.lists(st.sampled_from(TEXTS), max_size=2),
    st.sampled_from([text for text in TEXTS if text[:1] in (b"", b" ")]),
    st.sampled_from((b"\r\n", b"\r\n", b"\n", b"\r\r\n")),
)
PIECES = (*CODES, b"-", b" ", b"\r\n", b"\n", b"\r", b"250 ok\r\n", b"354 go\r\n", b"550 no\r\n", b"\0", b"\xff", b"220", b"25")
NO_REPLIES = (
    b"", b"\r\n", b"250", b"hello\r\n", b"25 x\r\n", b"2500 x\r\n", b"\xb2\xb2\xb2 x\r\n", b"600 x\r\n", b"150 x\r\n", b"250_x\r\n",
    b"\x15\x03\x03\x00\x02\x02\x28", b"250 " + b"x" * 10_000, b"250-x\r\n" * 600,
)    # fmt: skip
no_reply = st.sampled_from(NO_REPLIES)
anything = st.one_of(
    one_reply, no_reply, st.lists(st.sampled_from(PIECES), max_size=6).map(b"".join), st.binary(max_size=20),
    st.lists(one_reply, min_size=2, max_size=3).map(b"".join),
)
features = st.sampled_from((("PIPELINING", "8BITMIME", "ENHANCEDSTATUSCODES"), ("8BITMIME",), (), ("PIPELINING", "SMTPUTF8")))


def sayings(text):
    saying = st.builds(Says, st.sampled_from(STEPS), text, st.sampled_from((False, False, True)))
    return st.lists(saying, min_size=1, max_size=6)


# -- what becomes of the mails --


class Site:
    """A spool with mails in it, and what delivers them."""

    def __init__(self, home, relay, **values):
        found = settings.defaults()
        self.spool = Path(home, "spool")
        spool.make_spool(self.spool, 0o700)
        self.log_file = Path(home, "log")
        found = dataclasses.replace(
            found, spools=(self.spool,), smtp_hosts=("127.0.0.1",), smtp_port=relay.port, timeout_s=TIMEOUT_S,
            data_timeout_s=TIMEOUT_S, retry_s=0.0, fsync=False, helo="daemon.example.org", log_file=self.log_file, **values,
        )    # fmt: skip
        self.delivery = Delivery(found, MaildropLog(self.log_file))

    def add(self, number, recipients):
        draft = spool.Draft(self.spool / spool.new_name(), durable=False)
        draft.write("zoe@example.org", ", ".join(recipients), MESSAGE % number)
        draft.release()

    def pairs(self, *parts):
        """Pairs of a mail and a recipient that is owed it, or has failed."""
        found = Counter()
        for path in (self.spool.joinpath(*parts)).iterdir():
            if path.is_file():
                with spool.claim(path, float("inf"), durable=False) as mail:
                    number = b"".join(mail.content()).partition(b"mail ")[2][:1]
                    found.update((number, recipient) for recipient in mail.read_envelope().recipients)
        return found


def check(relay, site, wanted):
    owed, failed = site.pairs(), site.pairs(spool.FAILED)
    log = site.log_file.read_text() if site.log_file.exists() else ""
    assert "unexpected error" not in log, log
    here = relay.accepted + owed + failed
    assert here == Counter(wanted), (relay.accepted, owed, failed, log)
    assert not list(Path(site.spool, spool.TMP).iterdir())
    return owed


def deliver_all(said, features, piece, connections, login=False):
    values = {"connections": connections, "tls": 1, "pipelining": True}
    if login:
        features = (*features, "AUTH PLAIN LOGIN")
        values |= {"login": "zope", "password": "s3cr3t-4711"}
    with tempfile.TemporaryDirectory() as home, Relay(said, features, piece) as relay:
        site = Site(home, relay, **values)
        wanted = [(b"%d" % number, recipient) for number in range(3) for recipient in RECIPIENTS[: number + 1]]
        for number in range(3):
            site.add(number, RECIPIENTS[: number + 1])
        for _ in range(MOST_PASSES):
            site.delivery.run_pass()
            if not check(relay, site, wanted):
                break
            time.sleep(0.002)    # a mail put off by no time at all is due a moment later
        else:
            pytest.fail(site.log_file.read_text())
        assert "s3cr3t" not in site.log_file.read_text()


connections = st.sampled_from((1, 1, 3))


@fuzzed(
    "replies of a relay", 100, said=sayings(anything), features=features, connections=connections, login=st.booleans()
)
def test_no_mail_is_lost_or_sent_twice_whatever_a_relay_says(said, features, connections, login):
    deliver_all(said, features, None, connections, login)


@fuzzed("replies of a relay", 100, said=sayings(st.one_of(one_reply, no_reply)), features=features, piece=st.integers(1, 30))
def test_no_mail_is_lost_or_sent_twice_in_whatever_pieces_replies_come(said, features, piece):
    deliver_all(said, features, piece, 1)

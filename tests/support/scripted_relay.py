"""An SMTP server on raw sockets that behaves well, except where its script has it do what no server should do.

It speaks ESMTP with PIPELINING, SIZE and 8BITMIME, and TLS and AUTH where asked for. What it took over can be read from
it afterwards, and ``account_for`` says what became of each mail and recipient.
"""

from __future__ import annotations

import base64
import hmac
import random
import re
import select
import socket
import ssl
import struct
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from maildrop import spool
from support.certificates import server_tls_context

_PATIENCE_S = 30.0
_DRIP_S = 0.1
_EARLY = 1000    # bytes of the content after which a fault in it happens


@dataclass(frozen=True)
class Fault:
    """What goes wrong, and where.

    Steps: "greeting", "ehlo", "starttls", "handshake", "ehlo after tls", "auth", "mail", "rcpt first", "rcpt middle",
    "rcpt last", "data", "content", "final", "rset", "quit", "idle" (behind the final reply, unasked); "connect" is what
    happens to a connection before the greeting. Kinds: see ``_Dialogue.misbehave``.
    """

    step: str
    kind: str
    times: int = 1    # only the first times that the step is reached
    sessions: int = 0    # only in the first sessions; 0: in all
    sender: str | None = None    # only in mails of this sender


@dataclass(frozen=True)
class Taken:
    """A mail whose content came whole; ``content`` with dots unstuffed and CRLF as it came."""

    sender: str
    recipients: tuple[str, ...]
    content: bytes = field(repr=False)
    session: int
    helo: str
    over_tls: bool


class ScriptedRelay:
    """Listens between ``start()`` and ``stop()``; also a context manager.

    ``replies`` maps "MAIL", "DATA", "." or "RCPT ann@example.org" to the reply that is given instead of a good one;
    change it at any time. ``at_command`` is called with each command line before its reply, ``after_final`` with each
    mail right after its final good reply.

    ``answer`` is called with the dialogue, the step and the good reply before that goes out, and may wait: what it
    returns is said instead, and None hangs up; bytes go out as they are. Its steps are those of a fault without the
    "handshake", and in a login "challenge" and "login". ``delay_s``: each reply waits for a time of chance up to this.

    ``tls``: STARTTLS is offered, or with ``implicit_tls`` there is nothing but TLS. ``tls_context``, ``login`` and
    ``mechanisms`` may be changed at any time. For XOAUTH2 and OAUTHBEARER, the password in ``login`` is the token.
    """

    def __init__(
        self,
        *faults: Fault,
        tls: bool = False,
        implicit_tls: bool = False,
        tls_context: ssl.SSLContext | None = None,
        login: tuple[str, str] | None = None,
        mechanisms: str = "PLAIN LOGIN",
        replies: Mapping[str, str] | None = None,
        host: str = "127.0.0.1",
        port: int = 0,
        delay_s: float = 0.0,
    ):
        self.accepted: list[Taken] = []    # those that got their final good reply
        self.unanswered: list[Taken] = []    # those that came whole and got no final reply
        self.commands: list[bytes] = []    # each line as it came, without its CRLF
        self.in_clear = bytearray()    # all that came without TLS, but for contents
        self.logins: list[str] = []    # the mechanism of each attempt
        self.responses: list[str] = []    # to challenges, in base64
        self.handshakes = 0    # that came to their end
        self.fired: Counter[tuple[str, str]] = Counter()    # how often which fault happened
        self.sessions = 0
        self.most_open = 0    # sessions at a time
        self.errors: list[BaseException] = []    # the relay's own
        self.replies = dict(replies or {})
        self.at_command: Callable[[bytes], None] = lambda line: None
        self.after_final: Callable[[Taken], None] = lambda taken: None
        self.answer: Callable[[_Dialogue, str, str], str | bytes | None] = well_behaved
        self.delay_s = delay_s
        self.tls = tls
        self.implicit_tls = implicit_tls
        self.tls_context = tls_context or server_tls_context()
        self.login = login
        self.mechanisms = mechanisms
        self.stopped = threading.Event()
        self._faults = faults
        self._reached: Counter[Fault] = Counter()
        self._lock = threading.Lock()
        self._open: set[socket.socket] = set()
        self._listener = socket.socket()
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 32768)    # so that senders feel a slow reader
        self._listener.bind((host, port))
        self.port: int = self._listener.getsockname()[1]    # ours from now on, though nothing answers before start()

    def start(self) -> ScriptedRelay:
        self._listener.listen(128)
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def stop(self) -> None:
        self.stopped.set()
        self.refuse()
        with self._lock:
            for sock in self._open:
                with suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    __enter__ = start

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def open(self) -> int:
        """How many sessions there are now."""
        with self._lock:
            return len(self._open)

    def refuse(self) -> None:
        """Take no more connections."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def fault_at(self, step: str, session: int, sender: str | None = None) -> str | None:
        """The kind of the fault that is due now, and which has thereby happened once more."""
        with self._lock:
            for fault in self._faults:
                if fault.step != step or fault.sender not in (None, sender) or 0 < fault.sessions < session:
                    continue
                self._reached[fault] += 1
                if fault.sessions or self._reached[fault] <= fault.times:
                    self.fired[step, fault.kind] += 1
                    return fault.kind
        return None

    def has(self, step: str) -> bool:
        return any(fault.step == step for fault in self._faults)

    def _accept(self) -> None:
        while not self.stopped.is_set():
            try:
                sock, _ = self._listener.accept()
            except OSError:
                return
            with self._lock:
                self.sessions += 1
                self._open.add(sock)
                self.most_open = max(self.most_open, len(self._open))
                number = self.sessions
            threading.Thread(target=self._serve, args=(sock, number), daemon=True).start()

    def _serve(self, sock: socket.socket, number: int) -> None:
        dialogue = _Dialogue(self, sock, number)
        try:
            dialogue.run()
        except (_Over, OSError):
            pass
        except BaseException as error:
            self.errors.append(error)
        finally:
            with self._lock:    # before the other side can know of it and come again
                self._open.discard(sock)
            dialogue.sock.close()


def well_behaved(dialogue: _Dialogue, step: str, good: str) -> str:
    """What ``answer`` is as long as nobody changes it."""
    return good


class _Over(Exception):
    """The dialogue has ended."""


class _Cancelled(Exception):
    """There is no challenge to answer any more."""


class _Dialogue:
    """One session, seen from the relay."""

    def __init__(self, relay: ScriptedRelay, sock: socket.socket, number: int):
        self.relay = relay
        self.sock = sock
        self.number = number
        self.over_tls = False
        self.helo = ""
        self.logged_in = relay.login is None
        self.sender: str | None = None
        self.recipients: list[str] = []
        self.named = 0    # recipients named in this transaction, accepted or not
        self.received = b""
        self.last_line = ""    # that has come
        self._chance = random.Random(number)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.settimeout(_PATIENCE_S)

    def run(self) -> None:
        if kind := self.relay.fault_at("connect", self.number):
            self.misbehave(kind, b"220 relay.example.org ESMTP\r\n")
        if self.relay.implicit_tls:
            self.encrypt()
        self.reply("greeting", "220 relay.example.org ESMTP")
        while not self.relay.stopped.is_set():
            line = self.read_line()
            self.relay.commands.append(line)
            self.relay.at_command(line)
            verb = line.split(b" ")[0].split(b":")[0].upper().decode("latin-1")
            command = getattr(self, f"_{verb.lower()}", None) if verb in _VERBS else None
            if command is None:
                self.send(b"500 5.5.1 unknown command\r\n")
            else:
                command(line)

    # -- the commands --

    def _ehlo(self, line: bytes) -> None:
        self.helo = line[5:].decode("latin-1")
        self.forget_mail()
        offered = ["relay.example.org", "PIPELINING", "SIZE 1000000000", "8BITMIME", "ENHANCEDSTATUSCODES"]
        if self.relay.tls and not self.over_tls:
            offered.append("STARTTLS")
        if self.relay.login and (self.over_tls or not self.relay.tls):
            if not (self.relay.has("auth offer") and self.relay.fault_at("auth offer", self.number)):
                offered.append(f"AUTH {self.relay.mechanisms}")
        lines = [f"250-{text}" for text in offered[:-1]] + [f"250 {offered[-1]}"]
        self.reply("ehlo after tls" if self.over_tls else "ehlo", "\r\n".join(lines))

    def _helo(self, line: bytes) -> None:
        self.helo = line[5:].decode("latin-1")
        self.reply("ehlo after tls" if self.over_tls else "ehlo", "250 relay.example.org")

    def _starttls(self, line: bytes) -> None:
        if not self.relay.tls or self.over_tls:
            self.send(b"503 5.5.1 not now\r\n")
        elif self.reply("starttls", "220 2.0.0 go ahead"):
            if kind := self.relay.fault_at("handshake", self.number):
                self.misbehave(kind, b"\x16\x03\x03\x40\x00")    # the head of a long TLS record
            self.encrypt()

    def encrypt(self) -> None:
        try:
            self.sock = self.relay.tls_context.wrap_socket(self.sock, server_side=True)
        except OSError:
            raise _Over from None
        self.relay.handshakes += 1
        self.received = b""
        self.over_tls = True
        self.sock.settimeout(_PATIENCE_S)

    def _auth(self, line: bytes) -> None:
        if self.relay.login is None:
            self.send(b"503 5.5.1 not offered\r\n")
            return
        if kind := self.relay.fault_at("auth", self.number):
            self.logged_in = kind in _GOOD_IN_THE_END
            self.misbehave(kind, b"235 2.7.0 welcome\r\n")
            return
        mechanism, _, response = line[5:].decode("latin-1").partition(" ")
        self.relay.logins.append(mechanism)
        try:
            self.logged_in = self.knows(mechanism.upper(), response)
            said = self.say("login", "235 2.7.0 welcome" if self.logged_in else "535 5.7.8 wrong")
            while said.startswith("334"):
                self.read_response()
                said = self.say("login", said)
        except _Cancelled:
            self.logged_in = False

    def knows(self, mechanism: str, response: str) -> bool:
        """Whether the other side proves to be who may send here. ``response``: what came with the command already."""
        assert self.relay.login
        user, secret = (word.encode() for word in self.relay.login)
        if mechanism == "PLAIN":
            return _decoded(response or self.ask(b"")).split(b"\0")[1:] == [user, secret]
        if mechanism == "LOGIN":
            given = _decoded(response or self.ask(b"Username:"))
            return [given, _decoded(self.ask(b"Password:"))] == [user, secret]
        if mechanism == "CRAM-MD5":
            challenge = b"<%d.%d@relay.example.org>" % (self.number, time.monotonic_ns())
            digest = hmac.new(secret, challenge, "md5").hexdigest().encode()
            return _decoded(self.ask(challenge)) == user + b" " + digest
        given = _decoded(response or self.ask(b""))
        if mechanism == "XOAUTH2":
            is_right = given == b"user=%s\1auth=Bearer %s\1\1" % (user, secret)
        else:    # OAUTHBEARER, RFC 7628 3.1
            name, *pairs = given.rstrip(b"\1").split(b"\1")
            is_right = name in (b"n,a=%s," % user, b"n,,") and b"auth=Bearer " + secret in pairs
        if not is_right:    # RFC 7628 3.2.2: what is wrong stands in a challenge, which wants an empty response
            self.ask(b'{"status":"invalid_token","schemes":"bearer","scope":"mail"}')
        return is_right

    def ask(self, question: bytes) -> str:
        """The response to a challenge. Raises _Cancelled where none was made, or the other side wants no more."""
        if not self.say("challenge", f"334 {base64.b64encode(question).decode()}").startswith("334"):
            raise _Cancelled
        return self.read_response()

    def read_response(self) -> str:
        response = self.read_line().decode("latin-1")
        self.relay.responses.append(response)
        if response == "*":    # RFC 4954 4
            self.send(b"501 5.5.2 cancelled\r\n")
            raise _Cancelled
        return response

    def _mail(self, line: bytes) -> None:
        found = re.match(rb"MAIL FROM:<([^<>]*)>", line, re.IGNORECASE)
        if self.sender is not None or found is None:
            self.send(b"503 5.5.1 not now\r\n" if found else b"501 5.5.4 no reverse-path\r\n")
        elif not self.logged_in:
            self.send(b"530 5.7.0 Authentication required\r\n")
        else:
            sender = found[1].decode("utf-8", "replace")
            if self.reply("mail", self.relay.replies.get("MAIL", "250 2.1.0 Ok"), sender):
                self.sender = sender

    def _rcpt(self, line: bytes) -> None:
        found = re.match(rb"RCPT TO:<([^<>]*)>$", line, re.IGNORECASE)
        if self.sender is None or found is None:
            self.send(b"503 5.5.1 no sender\r\n" if found else b"501 5.1.3 no forward-path\r\n")
            return
        self.named += 1
        recipient = found[1].decode("utf-8", "replace")
        step = {1: "rcpt first", 2: "rcpt middle", 3: "rcpt last"}.get(self.named, "rcpt")
        if self.reply(step, self.relay.replies.get(f"RCPT {recipient}", "250 2.1.5 Ok"), self.sender):
            self.recipients.append(recipient)

    def _data(self, line: bytes) -> None:
        if not self.recipients:
            self.send(b"554 5.5.1 no valid recipients\r\n")
            return
        early = self.relay.has("content") and self.relay.fault_at("content", self.number, self.sender)
        if not self.reply("data", self.relay.replies.get("DATA", "354 go ahead"), self.sender):
            return
        reply = self.relay.replies.get(".", f"250 2.0.0 Ok: queued as {len(self.relay.accepted) + 1}")
        if early:
            while len(self.received) < 10:
                self.receive(_EARLY)
            if early == "two":
                reply = "451 4.3.0 not after all"
                self.send(b"250 2.0.0 Ok, I have seen enough\r\n")
            else:
                self.misbehave(early, b"250 2.0.0 Ok\r\n")
        content = self.read_content()
        taken = Taken(self.sender or "", tuple(self.recipients), content, self.number, self.helo, self.over_tls)
        if early and early != "two":    # the fault was the reply, and it gets no other
            if early not in _REFUSALS:
                self.relay.unanswered.append(taken)
        else:
            self.take(taken, reply)
        self.forget_mail()

    def take(self, taken: Taken, reply: str) -> None:
        self.delay()
        kind = self.relay.fault_at("final", self.number, taken.sender)
        if kind is None:
            answered = self.relay.answer(self, "final", reply)
            if answered is None:
                self.relay.unanswered.append(taken)
                self.close_gently()
            reply = answered
        if kind is None and not reply.startswith("2"):
            self.send(reply.encode() + b"\r\n")
        elif kind is None:
            idle = self.relay.fault_at("idle", self.number, taken.sender)
            self.relay.accepted.append(taken)
            if idle is None or idle in ("close", "reset", "stall"):
                self.send(reply.encode() + b"\r\n")
            self.relay.after_final(taken)
            if idle:
                self.misbehave(idle, b"250 2.0.0 nobody asked\r\n", before=reply.encode() + b"\r\n")
        else:
            kept = self.relay.accepted if kind in _GOOD_IN_THE_END else self.relay.unanswered
            if kind not in _REFUSALS:
                kept.append(taken)
            self.misbehave(kind, reply.encode() + b"\r\n")

    def _rset(self, line: bytes) -> None:
        self.forget_mail()
        self.reply("rset", "250 2.0.0 Ok")

    def _noop(self, line: bytes) -> None:
        self.send(b"250 2.0.0 Ok\r\n")

    def _quit(self, line: bytes) -> None:
        self.reply("quit", "221 2.0.0 Bye")
        raise _Over

    # -- replies --

    def reply(self, step: str, good: str, sender: str | None = None) -> bool:
        """Answer, or do what the script says; whether it was a good reply."""
        if kind := self.relay.fault_at(step, self.number, sender):
            self.misbehave(kind, good.encode() + b"\r\n")
            return kind in _GOOD_IN_THE_END
        said = self.say(step, good)
        return said[:1] in ("2", "3")

    def say(self, step: str, good: str) -> str:
        """Answer as the relay wants it; what was said."""
        self.delay()
        said = self.relay.answer(self, step, good)
        if said is None:
            self.close_gently()
        if isinstance(said, bytes):
            self.send(said)
            said = said.decode("latin-1")
        else:
            self.send(said.encode() + b"\r\n")
        if said.startswith("421"):
            self.close_gently()
        return said

    def delay(self) -> None:
        if self.relay.delay_s:
            self.relay.stopped.wait(self._chance.random() * self.relay.delay_s)

    def has_more(self, timeout_s: float) -> bool:
        """Whether something comes behind the last command or content within that time."""
        return bool(self.received) or bool(select.select([self.sock], [], [], timeout_s)[0])

    def misbehave(self, kind: str, good: bytes, before: bytes = b"") -> None:
        """Do this instead of sending the ``good`` reply. ``before`` goes out with it in one piece, if anything does."""
        if kind == "close":
            raise _Over
        elif kind == "good, then close":
            self.send(before + good)
            self.close_gently()
        elif kind == "half":
            self.send(before + good[: max(1, len(good) // 2)])
            self.close_gently()
        elif kind == "reset":
            self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            raise _Over
        elif kind == "stall":
            self.ignore()
        elif kind == "slow reader":
            while not self.relay.stopped.wait(_DRIP_S):
                self.receive(1)
        elif kind == "drip":
            self.send(before + good[:5])
            while not self.relay.stopped.wait(_DRIP_S):
                self.send(b"x")
        elif kind == "endless reply":
            with suppress(OSError):
                self.send(before)
                while not self.relay.stopped.is_set():
                    self.send((good[:3] + b"-there is more\r\n") * 100)
        elif kind == "421 and close":
            self.send(before + _LINES[kind])
            self.close_gently()
        elif kind in ("two", "two, one bad"):
            self.send(before + good + _LINES[kind])
        else:
            self.send(before + _LINES[kind])

    def close_gently(self) -> None:
        """Close so that what was sent before is still read."""
        with suppress(OSError):
            socket.socket.shutdown(self.sock, socket.SHUT_WR)
            self.sock.settimeout(1)
            while socket.socket.recv(self.sock, 1 << 16):
                pass
        raise _Over

    def ignore(self) -> None:
        """Take no notice of anything until the other side hangs up."""
        plain = self.sock.detach() if isinstance(self.sock, ssl.SSLSocket) else None
        sock = socket.socket(fileno=plain) if plain is not None else self.sock
        sock.settimeout(_PATIENCE_S)
        try:
            deadline = time.monotonic() + _PATIENCE_S
            while time.monotonic() < deadline and sock.recv(1):
                if self.relay.stopped.wait(0.001):
                    break
        finally:
            sock.close()
        raise _Over

    def send(self, data: bytes) -> None:
        self.sock.sendall(data)

    # -- what comes in --

    def receive(self, most: int = 1 << 18) -> None:
        data = self.sock.recv(most)
        if not data:
            raise _Over
        self.received += data
        if not self.over_tls:
            self.relay.in_clear += data

    def read_line(self) -> bytes:
        while b"\r\n" not in self.received:
            self.receive()
        line, _, self.received = self.received.partition(b"\r\n")
        self.last_line = line.decode("latin-1")
        return line

    def read_content(self) -> bytes:
        """What stands before the line with a dot, dots unstuffed."""
        content = bytearray(b"\r\n") + self.received
        self.received = b""
        searched = 0
        while (end := content.find(b"\r\n.\r\n", searched)) < 0:
            searched = max(0, len(content) - 4)
            data = self.sock.recv(1 << 18)
            if not data:
                raise _Over
            content += data
        self.received = bytes(content[end + 5 :])
        return bytes(content[: end + 2]).replace(b"\r\n.", b"\r\n")[2:]

    def forget_mail(self) -> None:
        self.sender = None
        self.recipients = []
        self.named = 0


_VERBS = {"EHLO", "HELO", "STARTTLS", "AUTH", "MAIL", "RCPT", "DATA", "RSET", "NOOP", "QUIT"}

_LINES = {
    "text": b"Good morning, this is no SMTP reply\r\n",
    "bytes": bytes(range(128, 256)) + b"\0\r\n\xff\xfe\r\n",
    "4yz": b"451 4.3.0 scripted, try later\r\n",
    "5yz": b"554 5.3.0 scripted, go away\r\n",
    "454": b"454 4.7.0 scripted, try later\r\n",
    "530": b"530 5.7.0 scripted, login wanted\r\n",
    "535": b"535 5.7.8 scripted, wrong password\r\n",
    "421 and close": b"421 4.3.2 scripted, closing\r\n",
    "421": b"421 4.3.2 scripted, closing\r\n",
    "long line": b"250 " + b"x" * 100_000,
    "1yz": b"150 scripted\r\n",
    "2yz": b"250 scripted\r\n",
    "3yz": b"354 scripted\r\n",
    "600": b"600 scripted\r\n",
    "mixed": b"250-scripted, fine\r\n451 4.3.0 scripted, or not\r\n",
    "mixed, one bad": b"554-5.3.0 scripted, go away\r\n451 4.3.0 scripted, or not\r\n",
    "two": b"250 2.0.0 scripted, once more\r\n",
    "two, one bad": b"550 5.3.0 scripted, after the reply\r\n",
    "plain text": b"250 scripted, in plain text\r\n" * 20,
    "alert": b"\x15\x03\x03\x00\x02\x02\x28",
}
# What says that the relay has not taken the mail, and what the good reply is part of
_REFUSALS = {"4yz", "5yz", "530", "535", "421", "421 and close", "mixed", "mixed, one bad"}
_GOOD_IN_THE_END = {"two", "two, one bad", "good, then close"}


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text)
    except ValueError:
        return b""


# -- what became of the mails --


@dataclass(frozen=True)
class Account:
    """Pairs of a mail's subject and a recipient, by what became of them.

    The ``excused`` ones were accepted, and before that came whole and got no final reply.
    """

    lost: list[tuple[bytes, str]]
    stuck: list[tuple[bytes, str]]
    duplicates: list[tuple[bytes, str]]
    excused: list[tuple[bytes, str]]
    failed: dict[tuple[bytes, str], list[str]]    # the reasons in failed/

    def figures(self) -> dict[str, int]:
        """What a fault ledger wants to know."""
        return {name: len(getattr(self, name)) for name in ("lost", "stuck", "duplicates", "excused")}


def subject_of(content: bytes) -> bytes:
    found = re.search(rb"^Subject: ([^\r\n]*)", content, re.MULTILINE)
    return found[1] if found else b""


def account_for(
    wanted: Iterable[tuple[bytes, str]], relays: Iterable[ScriptedRelay], directory: Path, may_fail: Iterable[str] = ()
) -> Account:
    """Say what became of each wanted pair of a subject and a recipient.

    A pair in ``failed/`` is as good as lost unless its recipient ``may_fail``; one that is there twice, or that has
    arrived too, is a duplicate.
    """
    wanted = list(wanted)
    may_fail = set(may_fail)
    relays = list(relays)
    accepted = Counter(pair for relay in relays for mail in relay.accepted for pair in _pairs_of(mail))
    unanswered = {pair for relay in relays for mail in relay.unanswered for pair in _pairs_of(mail)}
    waiting = {pair for pair, _ in _pairs_in(directory)}
    failed: dict[tuple[bytes, str], list[str]] = {}
    for pair, reason in _pairs_in(directory / spool.FAILED):
        failed.setdefault(pair, []).append(reason)
    here = Counter({pair: accepted[pair] + (len(failed[pair]) if pair in failed else 0) for pair in wanted})
    wrongly_failed = [pair for pair in wanted if pair in failed and not accepted[pair] and pair[1] not in may_fail]
    unwanted = list((accepted.keys() | failed.keys()) - set(wanted))
    return Account(
        lost=[pair for pair in wanted if not here[pair] and pair not in waiting] + wrongly_failed,
        stuck=[pair for pair in wanted if pair in waiting],
        duplicates=[pair for pair in wanted for _ in range(here[pair] - 1)] + unwanted,
        excused=[pair for pair in wanted if pair in unanswered and accepted[pair]],
        failed=failed,
    )


def _pairs_of(mail: Taken) -> list[tuple[bytes, str]]:
    return [(subject_of(mail.content), recipient) for recipient in mail.recipients]


def _pairs_in(directory: Path) -> list[tuple[tuple[bytes, str], str]]:
    pairs = []
    for path in directory.iterdir():
        if path.is_file() and not path.name.endswith(spool.LOCK_SUFFIX):
            head, _, rest = path.read_bytes().partition(b"Subject: ")
            notes = dict(line[2:].split(":", 1) for line in head.decode("utf-8", "replace").splitlines() if ":" in line)
            recipients = [to.strip() for to in notes.get("To", "").split(",")]
            pairs += [((rest.partition(b"\n")[0].rstrip(b"\r"), to), notes.get("Failed", "")) for to in recipients]
    return pairs

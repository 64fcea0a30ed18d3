"""One SMTP session with the relay; the one place that imports smtplib."""

from __future__ import annotations

import encodings.idna    # noqa: F401    # socket asks for it at the first connection; a failure then would last for good
import ipaddress
import math
import select
import smtplib
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import cache, lru_cache
from typing import NamedTuple, TypeVar

from maildrop import sasl
from maildrop.credentials import Credentials, PasswordUnavailable
from maildrop.envelope import Envelope
from maildrop.logfile import printable
from maildrop.policy import Reply
from maildrop.settings import Settings, SettingsError
from maildrop.tls import client_context
from maildrop.wire import wire_format


A = TypeVar("A")
R = TypeVar("R")
_QUIT_TIMEOUT_S = 5.0
_LONGEST_MS = 2**31 - 1    # what poll takes
_LONGEST_REPLY = 2000    # characters of one that are kept


class RelayUnavailable(Exception):
    """The relay as a whole cannot be used now; says nothing about any mail.

    ``stage`` is what the log calls it: "Connection error", "TLS unavailable", "Authentication unavailable" or
    "Authentication failed". ``answers_mail``: it was said in reply to MAIL, so it may be about that sender after all.
    """

    def __init__(self, stage: str, reason: str, answers_mail: bool = False):
        super().__init__(f"{stage}: {reason}")
        self.stage = stage
        self.reason = reason
        self.answers_mail = answers_mail


class _OldPassword(RelayUnavailable):
    """A password was refused that had worked before: another may be had now."""


class SessionLost(Exception):
    """The session broke, or the relay said what is no SMTP.

    ``after_content``: it may have taken the mail over; ``replies``: what it had said of the recipients before;
    ``recipient``: with whom it broke, if it was with one; neither is known of a flight. ``is_silent``: it fell silent.
    """

    def __init__(self, reason: str, after_content: bool = False, is_silent: bool = False):
        super().__init__(reason)
        self.after_content = after_content
        self.is_silent = is_silent
        self.replies: dict[str, Reply] = {}
        self.recipient: str | None = None


class _Client(smtplib.SMTP):
    """smtplib's client with replies that have a limit: of time for the whole of one, of length, and of lines.

    smtplib waits anew for each byte, so that a relay which drips them could hold it for ever. What a reply repeats of
    the login is concealed here, where all replies come in.

    Once connected and encrypted, the socket itself never waits: Python would ask the system before each call whether that
    need be, which it seldom is.
    """

    _host: str    # smtplib's

    _LONGEST_LINE = 4096    # bytes with the line's end; RFC 5321 4.5.3.1.5 allows 512
    _MOST_LINES = 500

    def __init__(self, host: str, settings: Settings, credentials: Credentials, tls: ssl.SSLContext | None):
        """``tls``: speak it from the first byte."""
        self._received = b""
        self._credentials = credentials
        self._tls = tls
        super().__init__(host, settings.smtp_port, settings.helo or own_name(), settings.timeout_s)

    def _get_socket(self, host: str, port: int, timeout: float) -> socket.socket:
        sock: socket.socket = super()._get_socket(host, port, timeout)    # type: ignore[misc]
        if self._tls:
            sock = self._tls.wrap_socket(sock, server_hostname=host)
        sock.settimeout(0)
        return sock

    def getreply(self) -> tuple[int, bytes]:
        """The next reply: its code, and the text of its lines joined by LF.

        Raises SMTPServerDisconnected, also for what is no reply; TimeoutError.
        """
        lines: list[bytes] = []
        deadline = None
        while len(lines) < self._MOST_LINES:
            while (end := self._received.find(b"\n", 0, self._LONGEST_LINE)) < 0:
                deadline = deadline or time.monotonic() + self.timeout
                self._receive(deadline)
            line, self._received = self._received[:end], self._received[end + 1 :]
            parsed = _parse_line(line)
            if parsed is None:
                raise smtplib.SMTPServerDisconnected(f"no SMTP reply: {self._quoted(line)}")
            code, goes_on, text = parsed
            lines.append(self._credentials.concealed(text))
            if not goes_on:
                return code, b"\n".join(lines)
        raise smtplib.SMTPServerDisconnected("a reply without end")

    def _receive(self, deadline: float) -> None:
        if len(self._received) >= self._LONGEST_LINE:
            raise smtplib.SMTPServerDisconnected("a reply line without end")
        if self.sock is None:
            raise smtplib.SMTPServerDisconnected("Connection closed")
        received = self._when_ready(select.POLLIN, self.sock.recv, 8192, deadline)
        if not received:
            raise smtplib.SMTPServerDisconnected("Connection unexpectedly closed")
        self._received += received

    def expect_silence(self) -> None:
        """Make sure that every reply so far has been read: with one too many, the next ones would go to the wrong command.

        Raises SMTPServerDisconnected if there is more.
        """
        if self.sock is None:
            raise smtplib.SMTPServerDisconnected("Connection closed")
        if not self._received:
            try:
                self._received = self.sock.recv(8192)
            except (BlockingIOError, ssl.SSLWantReadError):
                return
            if not self._received:
                raise smtplib.SMTPServerDisconnected("Connection unexpectedly closed")
        if self._received:
            raise smtplib.SMTPServerDisconnected(f"unexpected: {self._quoted(self._received)}")

    def _quoted(self, raw: bytes) -> str:
        return printable(self._credentials.concealed(raw)[:200])

    def putcmd(self, cmd: str, args: str = "") -> None:
        self.expect_silence()
        super().putcmd(cmd, args)

    def send(self, data: bytes | str) -> None:    # type: ignore[override]
        if self.sock is None:
            raise smtplib.SMTPServerDisconnected("Connection closed")
        left = memoryview(data.encode(self.command_encoding) if isinstance(data, str) else data)
        deadline = time.monotonic() + self.timeout
        try:
            while left:
                left = left[self._when_ready(select.POLLOUT, self.sock.send, left, deadline) :]
        except OSError:
            self.close()
            raise smtplib.SMTPServerDisconnected("Server not connected") from None

    def _when_ready(self, event: int, call: Callable[[A], R], argument: A, deadline: float) -> R:
        """What ``call(argument)`` of the socket returns; where it would have to wait for ``event``, as soon as that has come.

        Raises TimeoutError at the deadline, a monotonic time.
        """
        while True:
            try:
                return call(argument)
            except BlockingIOError:
                pass
            except ssl.SSLWantReadError:    # TLS may have something of its own to read or write first
                event = select.POLLIN
            except ssl.SSLWantWriteError:
                event = select.POLLOUT
            left_ms = math.ceil((deadline - time.monotonic()) * 1000)
            if left_ms <= 0:
                raise TimeoutError("timed out")
            waiting = select.poll()
            waiting.register(self.sock, event)    # type: ignore[arg-type]
            waiting.poll(min(left_ms, _LONGEST_MS))

    def starttls(self, *, context: ssl.SSLContext) -> tuple[int, bytes]:    # type: ignore[override]
        """Raises SMTPServerDisconnected where the relay said more than its reply: what came before TLS is not believed."""
        code, text = self.docmd("STARTTLS")
        if code == 220:
            if self._received:
                raise smtplib.SMTPServerDisconnected("the relay sent more than its reply to STARTTLS")
            assert self.sock is not None    # it has just replied
            self.sock.settimeout(self.timeout)
            self.sock = context.wrap_socket(self.sock, server_hostname=self._host)
            self.sock.settimeout(0)
            self.helo_resp = self.ehlo_resp = None
            self.esmtp_features = {}
            self.does_esmtp = False
        return code, text

    def is_encrypted(self) -> bool:
        return isinstance(self.sock, ssl.SSLSocket)

    def is_private(self) -> bool:
        """Whether nobody else can listen: there is TLS, or the relay is on this machine."""
        if self.is_encrypted():
            return True
        address = ipaddress.ip_address(self.sock.getpeername()[0].partition("%")[0])    # type: ignore[union-attr]
        return (getattr(address, "ipv4_mapped", None) or address).is_loopback


@lru_cache(maxsize=32)    # a relay says the same again and again
def _parse_line(line: bytes) -> tuple[int, bool, bytes] | None:
    """Code and text of a reply's line, and whether there is one more; None if it is no such line."""
    line = line.rstrip(b"\r")
    code, separator = line[:3], line[3:4]
    if not (len(code) == 3 and code.isdigit() and b"2" <= code[:1] <= b"5" and separator in (b"", b" ", b"-")):
        return None
    return int(code), separator == b"-", line[4:].strip()


class _Flight(NamedTuple):
    """A mail's envelope as this relay is told of it."""

    envelope: Envelope
    recipients: list[str]    # those that can be named to it
    refused: dict[str, Reply]    # our own reply for the others
    mail: str    # the commands, without line ends
    rcpt: list[str]    # one for each of ``recipients``

    def lines(self) -> bytes:
        """All of it, and DATA."""
        return "\r\n".join([self.mail, *self.rcpt, "DATA", ""]).encode("utf-8")


class Session:
    """An open session, greeted, encrypted and logged in as the settings ask for.

    For each mail: ``offer`` its envelope, then ``transmit`` its content or ``withdraw`` it.

    Where the relay offers PIPELINING, an envelope and DATA go out in one flight, and the next mail's flight goes right
    behind the content of this one (RFC 2920 3.1). What is said to a flight is believed only when it is sure that each reply
    was one to its command: with one reply too many, all behind it would be given to the wrong recipient. Of a flight that
    breaks, nothing is believed: one command at a time will show what is wrong.
    """

    def __init__(self, host: str, settings: Settings, credentials: Credentials, pipelining: bool = True):
        """``pipelining``: if settings and relay want it too. Raises RelayUnavailable."""
        self.host = host
        self._credentials = credentials
        self._data_timeout_s = settings.data_timeout_s
        self._timeout_s = settings.timeout_s
        self._final_dot_is_out = False
        self._was_cut = False
        self._turning_point = threading.Lock()    # held while it is decided whether the final dot goes out
        self._ahead: _Flight | None = None    # which is out, its replies not read yet
        self._data: Reply | None = None    # to the DATA of the last flight, until it has been heeded
        self._is_reset = False    # RSET has been said since the last envelope
        try:
            self._begin(settings)
        except _OldPassword:
            self._begin(settings)
        self.pipelining = pipelining and settings.pipelining and self._smtp.has_extn("pipelining")

    @property
    def relay_name(self) -> str:
        """What the relay called itself; "" if it did not."""
        words = (self._smtp.ehlo_resp or self._smtp.helo_resp or b"").split(maxsplit=1)
        return printable(words[0]) if words else ""

    @property
    def extensions(self) -> list[str]:
        """The keywords of what the relay offers, sorted (RFC 5321 section 4.1.1.1)."""
        return sorted(name.upper() for name in self._smtp.esmtp_features)

    @property
    def is_encrypted(self) -> bool:
        return self._smtp.is_encrypted()

    # -- the beginning --

    def _begin(self, settings: Settings) -> None:
        context = None
        if settings.tls:
            try:
                context = client_context(settings)
            except SettingsError as error:
                raise RelayUnavailable("TLS unavailable", str(error)) from error
        self._smtp = _connect(self.host, settings, self._credentials, context if settings.tls == 3 else None)
        try:
            self._ehlo()
            if context and settings.tls < 3:
                self._starttls(context, required=settings.tls == 2)
            if self._credentials.are_given:
                self._login(settings)
        except BaseException:
            self._smtp.close()
            raise

    def _ehlo(self) -> None:
        try:
            self._smtp.ehlo_or_helo_if_needed()
        except (smtplib.SMTPException, OSError, ValueError) as error:
            raise RelayUnavailable(_stage(error), _reason(error)) from error

    def _starttls(self, context: ssl.SSLContext, required: bool) -> None:
        if not self._smtp.has_extn("starttls"):
            if required:
                raise RelayUnavailable("TLS unavailable", "the relay does not offer STARTTLS")
            return
        try:
            code, text = self._smtp.starttls(context=context)
        except (smtplib.SMTPException, OSError, ValueError) as error:
            raise RelayUnavailable("TLS unavailable", _reason(error)) from error
        if code != 220:
            raise RelayUnavailable("TLS unavailable", f"{code} {_kept(text)}")
        self._ehlo()

    def _login(self, settings: Settings) -> None:
        if not self._smtp.has_extn("auth"):
            raise RelayUnavailable("Authentication unavailable", "the relay does not offer AUTH")
        try:
            if not (settings.auth_clear or self._smtp.is_private()):
                raise RelayUnavailable("Authentication unavailable", "no login without TLS (MAILDROP_AUTH_CLEAR)")
            password = self._credentials.password()
        except (OSError, PasswordUnavailable) as error:
            raise RelayUnavailable("Authentication unavailable", _reason(error)) from error
        try:
            if settings.auth:
                code, text = self._login_by_token(settings, password)
            elif not (settings.login + password).isascii() and "PLAIN" in self._mechanisms():
                code, text = self._smtp.docmd("AUTH", f"PLAIN {sasl.plain(settings.login, password)}")
            else:
                code, text = self._smtp.login(settings.login, password)
            if code != 235:    # smtplib takes 503 for "logged in already": but this one never was
                raise smtplib.SMTPAuthenticationError(code, text)
        except UnicodeError:
            reason = "login and password have to be ASCII, as the relay does not offer AUTH PLAIN"
            raise RelayUnavailable("Authentication failed", reason) from None
        except smtplib.SMTPResponseException as error:
            is_final = error.smtp_code >= 500    # else the relay only cannot tell now (RFC 4954 section 6)
            kind = _OldPassword if is_final and self._credentials.refused(password) else RelayUnavailable
            raise kind("Authentication failed", _reason(error)) from None
        except smtplib.SMTPServerDisconnected as error:
            raise RelayUnavailable("Connection error", _reason(error)) from None
        except smtplib.SMTPException as error:    # no mechanism in common
            raise RelayUnavailable("Authentication unavailable", _reason(error)) from None
        except OSError as error:
            raise RelayUnavailable("Connection error", _reason(error)) from None
        except ValueError as error:    # a challenge that is none, a digest that this machine does not allow
            raise RelayUnavailable("Authentication failed", _reason(error)) from None
        self._credentials.accepted(password)

    def _login_by_token(self, settings: Settings, token: str) -> tuple[int, bytes]:
        mechanism = settings.auth.upper()
        if mechanism not in self._mechanisms():
            raise smtplib.SMTPException(f"the relay does not offer {mechanism}")
        said = sasl.MECHANISMS[settings.auth](settings.login, token, self.host, settings.smtp_port)
        return self._smtp.auth(mechanism, said)

    def _mechanisms(self) -> list[str]:
        return self._smtp.esmtp_features["auth"].upper().split()

    # -- a mail --

    def offer(self, envelope: Envelope, size: int) -> dict[str, Reply]:
        """Send the envelope of a mail of ``size`` bytes, if it is not out yet, and return the reply for each recipient.

        A refused sender is a refusal of all of them. Raises SessionLost.
        """
        flight, self._ahead = self._ahead, None
        was_ahead = flight is not None and flight.envelope is envelope
        if flight is None or not was_ahead:
            flight = self._flight(envelope, size)
        if not flight.recipients:
            return flight.refused
        self._is_reset = False
        if not self.pipelining:
            return flight.refused | self._ask(flight, self._command)
        if not was_ahead:
            self._send(flight.lines())
        return flight.refused | self._ask(flight, self._answer)

    def _ask(self, flight: _Flight, ask: Callable[[str, str], Reply]) -> dict[str, Reply]:
        replies: dict[str, Reply] = {}
        mail = ask("MAIL", flight.mail)
        if mail.code == 503:    # "bad sequence": it has not understood what went before, and speaks not of this mail
            raise SessionLost(str(mail))
        is_heard = 200 <= mail.code < 300
        if mail.code != 421 and (is_heard or self.pipelining):
            try:
                for recipient, command in zip(flight.recipients, flight.rcpt):
                    replies[recipient] = ask("RCPT", command)
                    if replies[recipient].code == 421:    # it closes the session (RFC 5321 3.8)
                        raise SessionLost(str(replies[recipient]))
            except SessionLost as lost:
                if not self.pipelining:
                    lost.replies, lost.recipient = replies, recipient
                raise
            if self.pipelining:
                self._data = ask("DATA", "DATA")
                self._make_sure(replies.values())
        return replies if is_heard else dict.fromkeys(flight.recipients, mail)

    def _make_sure(self, replies: Iterable[Reply]) -> None:
        """Make sure that the last reply to a flight was the one to DATA. Raises SessionLost."""
        assert self._data
        if self._data.code == 354:
            if not all(200 <= reply.code < 300 for reply in replies):    # else ``transmit`` is early enough
                self._expect_silence()
        elif 200 <= self._data.code < 400:
            raise SessionLost(f"DATA was answered with {self._data}")
        else:
            self._reset()

    def _reset(self) -> None:
        """Have RSET answered: then nothing of what was said before is still on its way. Raises SessionLost."""
        reply = self._command("RSET", "RSET")
        self._expect_silence()
        if reply.code != 250:
            raise SessionLost(f"RSET was answered with {reply}")
        self._is_reset = True

    def withdraw(self) -> bool:
        """Make the relay forget the mail offered last, which nobody gets. False if the session cannot be used any more.

        Never raises.
        """
        data, self._data = self._data, None
        try:
            if data is None:
                self._is_reset = self._command("RSET", "RSET").code == 250
            elif data.code == 354:    # though it took no recipient: RFC 2920 3.1
                return self._command(".", ".").code not in (0, 421)
            return self._is_reset
        except SessionLost:
            return False

    def transmit(
        self,
        content: Iterator[bytes],
        ahead: tuple[Envelope, int] | None = None,
        meanwhile: Callable[[], None] = lambda: None,
    ) -> Reply:
        """Send the message for the recipients that were accepted; the reply is for all of them.

        Line ends become CRLF, dots are stuffed (RFC 5321 4.5.2), every other byte passes unchanged. ``ahead``: envelope and
        size of the mail that will be offered next; where the relay allows it, they go out right behind the content.
        ``meanwhile`` is called when all is out and the relay has something to do; it must not raise.
        Raises SessionLost, also where ``content`` raises OSError.
        """
        reply = self._data or self._command("DATA", "DATA")
        if reply.code != 354:
            if 200 <= reply.code < 400:
                raise SessionLost(f"DATA was answered with {reply}")
            return reply
        self._data = None
        try:
            chunks = wire_format(content)
            last = next(chunks)
            for chunk in chunks:
                self._smtp.send(last)
                last = chunk
            if ahead and self.pipelining and (flight := self._flight(*ahead)).recipients:
                last += flight.lines()
                self._ahead = flight
            with self._turning_point:
                if self._was_cut:
                    raise SessionLost("cut")
                self._smtp.expect_silence()    # a reply before its time is not the one to this mail
                self._final_dot_is_out = True
            self._smtp.timeout = self._data_timeout_s    # it need not read on before it has dealt with the content
            self._smtp.send(last)
            meanwhile()
            return self._reply(".")
        except (smtplib.SMTPException, OSError) as error:
            raise SessionLost(_reason(error), after_content=self._final_dot_is_out) from error
        finally:
            self._final_dot_is_out = False
            self._smtp.timeout = self._timeout_s

    def quit(self) -> None:
        """End the session; never raises, and does not wait long."""
        if self._ahead or self._data:    # QUIT would be part of a mail
            self.close()
            return
        self._smtp.timeout = min(self._timeout_s, _QUIT_TIMEOUT_S)
        try:
            self._smtp.quit()
        except (smtplib.SMTPException, OSError, ValueError):
            self._smtp.close()

    def close(self) -> None:
        """Hang up without a word: for a session that broke or misbehaved."""
        self._smtp.close()

    def cut(self) -> None:
        """Break the session off from another thread, unless the relay may already have a whole mail."""
        with self._turning_point:
            sock = self._smtp.sock
            if sock is not None and not self._final_dot_is_out:
                self._was_cut = True
                with suppress(OSError):    # not that of SSLSocket, which would end the encryption first
                    socket.socket.shutdown(sock, socket.SHUT_RDWR)

    def _speakable(self, envelope: Envelope) -> tuple[list[str], dict[str, Reply]]:
        """The recipients that can be named to this relay, and our own reply for those that cannot (RFC 6531 3.2)."""
        if envelope.is_ascii or self._smtp.has_extn("smtputf8"):
            return list(envelope.recipients), {}
        refusal = "5.6.7 the relay does not take addresses that are not ASCII"
        if not envelope.sender.isascii():
            return [], dict.fromkeys(envelope.recipients, Reply("MAIL", 550, refusal))
        plain = [recipient for recipient in envelope.recipients if recipient.isascii()]
        others = [recipient for recipient in envelope.recipients if not recipient.isascii()]
        return plain, dict.fromkeys(others, Reply("RCPT", 553, refusal))

    def _flight(self, envelope: Envelope, size: int) -> _Flight:
        recipients, refused = self._speakable(envelope)
        rcpt = [f"RCPT TO:<{recipient}>" for recipient in recipients]
        return _Flight(envelope, recipients, refused, self._mail_command(envelope, size), rcpt)

    def _mail_command(self, envelope: Envelope, size: int) -> str:
        command = f"MAIL FROM:<{envelope.sender}>"
        if self._smtp.has_extn("size"):
            command += f" SIZE={size}"    # RFC 1870; line ends may add some, which it allows for
        if self._smtp.has_extn("8bitmime"):
            command += " BODY=8BITMIME"    # RFC 6152; true of 7-bit content too
        if not envelope.is_ascii and self._smtp.has_extn("smtputf8"):
            command += " SMTPUTF8"
        return command

    def _command(self, verb: str, line: str) -> Reply:
        """Send a command line and read the reply. Raises SessionLost."""
        self._send(line.encode("utf-8") + b"\r\n")
        return self._answer(verb, line)

    def _send(self, lines: bytes) -> None:
        try:
            self._smtp.expect_silence()
            self._smtp.send(lines)
        except (smtplib.SMTPException, OSError) as error:
            raise SessionLost(_reason(error)) from error

    def _answer(self, verb: str, line: str) -> Reply:
        """The reply to a command line that is out. Raises SessionLost."""
        try:
            return self._reply(verb)
        except TimeoutError as error:
            raise SessionLost(_reason(error), is_silent=True) from error
        except (smtplib.SMTPException, OSError) as error:
            raise SessionLost(_reason(error)) from error

    def _expect_silence(self) -> None:
        try:
            self._smtp.expect_silence()
        except (smtplib.SMTPException, OSError) as error:
            raise SessionLost(_reason(error)) from error

    def _reply(self, verb: str) -> Reply:
        code, text = self._smtp.getreply()
        return _reply_of(verb, code, text[: 4 * _LONGEST_REPLY])    # a character has four bytes at most


@lru_cache(maxsize=32)    # a relay says the same again and again
def _reply_of(verb: str, code: int, text: bytes) -> Reply:
    return Reply(verb, code, _kept(text))


def _connect(host: str, settings: Settings, credentials: Credentials, tls: ssl.SSLContext | None) -> _Client:
    """``tls``: speak it from the first byte. Raises RelayUnavailable."""
    where = f"{host}:{settings.smtp_port}"
    try:
        smtp = _Client(host, settings, credentials, tls)
        smtp.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)    # type: ignore[union-attr]
        return smtp
    except (smtplib.SMTPException, OSError, ValueError) as error:
        raise RelayUnavailable(_stage(error), f"{where}: {_reason(error)}") from error


@cache
def own_name() -> str:
    """How this host calls itself: its full name, or an address literal (RFC 5321 4.1.4). Asks the resolver, once."""
    name = socket.getfqdn()
    if "." in name and name.isascii():
        return name
    try:
        return f"[{socket.gethostbyname(socket.gethostname())}]"
    except OSError:
        return "[127.0.0.1]"


def _stage(error: Exception) -> str:
    """What to call it before the login. A relay may refuse our certificate as late as in its first reply over TLS."""
    return "TLS unavailable" if isinstance(error, ssl.SSLError) else "Connection error"


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"the relay's certificate is not accepted: {printable(error.verify_message)}"
    if isinstance(error, smtplib.SMTPResponseException):
        return f"{error.smtp_code} {_kept(error.smtp_error)}"
    if isinstance(error, TimeoutError):
        return "timed out"
    return _kept(str(error)) or type(error).__name__


def _kept(text: bytes | str) -> str:
    return printable(text)[:_LONGEST_REPLY]

"""One SMTP session with the relay; the one place that imports smtplib."""

from __future__ import annotations

import encodings.idna    # noqa: F401    # socket asks for it at the first connection; a failure then would last for good
import re
import smtplib
import socket
import ssl
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from functools import cache

from maildrop.envelope import Envelope
from maildrop.policy import Reply
from maildrop.settings import Settings


_QUIT_TIMEOUT_S = 5.0
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


class SessionLost(Exception):
    """The session broke, or the relay said what is no SMTP.

    ``after_content``: it may have taken the mail over; ``replies``: what it had said of the recipients before;
    ``recipient``: with whom it broke, if it was with one.
    """

    def __init__(self, reason: str, after_content: bool = False):
        super().__init__(reason)
        self.after_content = after_content
        self.replies: dict[str, Reply] = {}
        self.recipient: str | None = None


class _Client(smtplib.SMTP):
    """smtplib's client with replies that have a limit: of time for the whole of one, of length, and of lines.

    smtplib waits anew for each byte, so that a relay which drips them could hold it for ever.
    """

    _LONGEST_LINE = 4096    # RFC 5321 4.5.3.1.5 allows 512
    _MOST_LINES = 500

    def __init__(self, host: str, port: int, local_hostname: str, timeout_s: float):
        self._received = b""
        super().__init__(host, port, local_hostname, timeout_s)

    def getreply(self) -> tuple[int, bytes]:
        """The next reply: its code, and the text of its lines joined by LF.

        Raises SMTPServerDisconnected, also for what is no reply; TimeoutError.
        """
        deadline = time.monotonic() + self.timeout
        lines = []
        while len(lines) < self._MOST_LINES:
            line = self._line(deadline)
            match = re.fullmatch(rb"([2-5][0-9][0-9])(?:([ -])(.*))?", line, re.DOTALL)
            if match is None:
                raise smtplib.SMTPServerDisconnected(f"no SMTP reply: {printable(line[:200])}")
            lines.append((match[3] or b"").strip())
            if match[2] != b"-":
                return int(match[1]), b"\n".join(lines)
        raise smtplib.SMTPServerDisconnected("a reply without end")

    def _line(self, deadline: float) -> bytes:
        while b"\n" not in self._received:
            if len(self._received) > self._LONGEST_LINE:
                raise smtplib.SMTPServerDisconnected("a reply line without end")
            if self.sock is None:
                raise smtplib.SMTPServerDisconnected("Connection closed")
            self.sock.settimeout(max(0.001, deadline - time.monotonic()))
            received = self.sock.recv(8192)
            if not received:
                raise smtplib.SMTPServerDisconnected("Connection unexpectedly closed")
            self._received += received
        line, _, self._received = self._received.partition(b"\n")
        return line.rstrip(b"\r")

    def expect_silence(self) -> None:
        """Make sure that every reply so far has been read: with one too many, the next ones would go to the wrong command.

        Raises SMTPServerDisconnected if there is more.
        """
        if self.sock is None:
            raise smtplib.SMTPServerDisconnected("Connection closed")
        if not self._received:
            self.sock.settimeout(0)
            with suppress(BlockingIOError, ssl.SSLWantReadError):
                self._received = self.sock.recv(8192)
                if not self._received:
                    raise smtplib.SMTPServerDisconnected("Connection unexpectedly closed")
        if self._received:
            raise smtplib.SMTPServerDisconnected(f"unexpected: {printable(self._received[:200])}")

    def putcmd(self, cmd: str, args: str = "") -> None:
        self.expect_silence()
        super().putcmd(cmd, args)

    def send(self, data: bytes) -> None:    # type: ignore[override]
        if self.sock is not None:
            self.sock.settimeout(self.timeout)
        super().send(data)

    def starttls(self, *, context: ssl.SSLContext) -> tuple[int, bytes]:    # type: ignore[override]
        """Raises SMTPServerDisconnected where the relay said more than its reply: what came before TLS is not believed."""
        code, text = self.docmd("STARTTLS")
        if code == 220:
            if self._received:
                raise smtplib.SMTPServerDisconnected("the relay sent more than its reply to STARTTLS")
            self.sock.settimeout(self.timeout)    # type: ignore[union-attr]
            self.sock = context.wrap_socket(self.sock, server_hostname=self._host)
            self.helo_resp = self.ehlo_resp = None
            self.esmtp_features = {}
            self.does_esmtp = False
        return code, text


class Session:
    """An open session, greeted, encrypted and logged in as the settings ask for.

    For each mail: ``offer`` its envelope, then ``transmit`` its content or ``withdraw`` it.
    """

    def __init__(self, host: str, settings: Settings):
        """Raises RelayUnavailable."""
        self._data_timeout_s = settings.data_timeout_s
        self._timeout_s = settings.timeout_s
        self._final_dot_is_out = False
        self._was_cut = False
        self._turning_point = threading.Lock()    # held while it is decided whether the final dot goes out
        self._smtp = _connect(host, settings)
        try:
            self._ehlo()
            if settings.tls:
                self._starttls(required=settings.tls == 2)
            if settings.login and settings.password:
                self._login(settings.login, settings.password)
        except BaseException:
            self._smtp.close()
            raise

    # -- the beginning --

    def _ehlo(self) -> None:
        try:
            self._smtp.ehlo_or_helo_if_needed()
        except (smtplib.SMTPException, OSError, ValueError) as error:
            raise RelayUnavailable("Connection error", _reason(error)) from error

    def _starttls(self, required: bool) -> None:
        if not self._smtp.has_extn("starttls"):
            if required:
                raise RelayUnavailable("TLS unavailable", "the relay does not offer STARTTLS")
            return
        context = ssl.create_default_context()
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        try:
            code, text = self._smtp.starttls(context=context)
        except (smtplib.SMTPException, OSError, ValueError) as error:
            raise RelayUnavailable("TLS unavailable", _reason(error)) from error
        if code != 220:
            raise RelayUnavailable("TLS unavailable", f"{code} {printable(text)}")
        self._ehlo()

    def _login(self, login: str, password: str) -> None:
        if not self._smtp.has_extn("auth"):
            raise RelayUnavailable("Authentication unavailable", "the relay does not offer AUTH")
        try:
            self._smtp.login(login, password)
        except smtplib.SMTPAuthenticationError as error:
            raise RelayUnavailable("Authentication failed", _reason(error)) from error
        except UnicodeError:
            raise RelayUnavailable("Authentication failed", "login and password have to be ASCII") from None
        except smtplib.SMTPResponseException as error:
            raise RelayUnavailable("Authentication failed", _reason(error)) from error
        except smtplib.SMTPServerDisconnected as error:
            raise RelayUnavailable("Connection error", _reason(error)) from error
        except smtplib.SMTPException as error:    # no mechanism in common
            raise RelayUnavailable("Authentication unavailable", _reason(error)) from error
        except (OSError, ValueError) as error:
            raise RelayUnavailable("Connection error", _reason(error)) from error

    # -- a mail --

    def offer(self, envelope: Envelope, size: int) -> dict[str, Reply]:
        """Send the envelope of a mail of ``size`` bytes and return the reply for each recipient.

        A refused sender is a refusal of all of them. Raises SessionLost.
        """
        recipients, replies = self._speakable(envelope)
        if not recipients:
            return replies
        options = self._mail_options(envelope, size)
        mail = self._command("MAIL", f"MAIL FROM:<{envelope.sender}>{options}")
        if mail.code == 503:    # "bad sequence": it has not understood what went before, and speaks not of this mail
            raise SessionLost(str(mail))
        if not 200 <= mail.code < 300:
            return replies | dict.fromkeys(recipients, mail)
        try:
            for recipient in recipients:
                replies[recipient] = self._command("RCPT", f"RCPT TO:<{recipient}>")
                if replies[recipient].code == 421:    # it closes the session (RFC 5321 3.8)
                    raise SessionLost(str(replies[recipient]))
        except SessionLost as lost:
            lost.replies, lost.recipient = replies, recipient
            raise
        return replies

    def withdraw(self) -> bool:
        """Make the relay forget the mail offered last. False if the session cannot be used any more; never raises."""
        try:
            return self._command("RSET", "RSET").code == 250
        except SessionLost:
            return False

    def transmit(self, content: Iterator[bytes]) -> Reply:
        """Send the message for the recipients that were accepted; the reply is for all of them.

        Line ends become CRLF, dots are stuffed (RFC 5321 4.5.2), every other byte passes unchanged. Raises SessionLost,
        also where ``content`` raises OSError.
        """
        reply = self._command("DATA", "DATA")
        if 200 <= reply.code < 400 and reply.code != 354:
            raise SessionLost(f"DATA was answered with {reply}")
        if reply.code != 354:
            return reply
        try:
            self._smtp.expect_silence()
            chunks = wire_format(content)
            last = next(chunks)
            for chunk in chunks:
                self._smtp.send(last)
                last = chunk
            with self._turning_point:
                if self._was_cut:
                    raise SessionLost("cut")
                self._smtp.expect_silence()    # a reply before its time is not the one to this mail
                self._final_dot_is_out = True
            self._smtp.send(last)
            self._smtp.timeout = self._data_timeout_s
            return self._reply(".")
        except (smtplib.SMTPException, OSError) as error:
            raise SessionLost(_reason(error), after_content=self._final_dot_is_out) from error
        finally:
            self._final_dot_is_out = False
            self._smtp.timeout = self._timeout_s

    def quit(self) -> None:
        """End the session; never raises, and does not wait long."""
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
        if self._smtp.has_extn("smtputf8"):
            return list(envelope.recipients), {}
        refusal = "5.6.7 the relay does not take addresses that are not ASCII"
        if not envelope.sender.isascii():
            return [], dict.fromkeys(envelope.recipients, Reply("MAIL", 550, refusal))
        plain = [recipient for recipient in envelope.recipients if recipient.isascii()]
        others = [recipient for recipient in envelope.recipients if not recipient.isascii()]
        return plain, dict.fromkeys(others, Reply("RCPT", 553, refusal))

    def _mail_options(self, envelope: Envelope, size: int) -> str:
        options = ""
        if self._smtp.has_extn("size"):
            options += f" SIZE={size}"    # RFC 1870; line ends may add some, which it allows for
        if self._smtp.has_extn("8bitmime"):
            options += " BODY=8BITMIME"    # RFC 6152; true of 7-bit content too
        needs_utf8 = not (envelope.sender + "".join(envelope.recipients)).isascii()
        if needs_utf8 and self._smtp.has_extn("smtputf8"):
            options += " SMTPUTF8"
        return options

    def _command(self, verb: str, line: str) -> Reply:
        try:
            self._smtp.expect_silence()
            self._smtp.send(line.encode("utf-8") + b"\r\n")
            return self._reply(verb)
        except (smtplib.SMTPException, OSError) as error:
            raise SessionLost(_reason(error)) from error

    def _reply(self, verb: str) -> Reply:
        code, text = self._smtp.getreply()
        return Reply(verb, code, printable(text)[:_LONGEST_REPLY])


def _connect(host: str, settings: Settings) -> _Client:
    where = f"{host}:{settings.smtp_port}"
    try:
        smtp = _Client(host, settings.smtp_port, settings.helo or own_name(), settings.timeout_s)
        smtp.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)    # type: ignore[union-attr]
        return smtp
    except (smtplib.SMTPException, OSError, ValueError) as error:
        raise RelayUnavailable("Connection error", f"{where}: {_reason(error)}") from error


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


# -- content on the wire --


_LINE_END = re.compile(rb"\r\n|\r|\n")
_DOT_FIRST = re.compile(rb"(?<=\n)\.")


def wire_format(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Turn message bytes, however they are cut, into what goes over the wire; the last chunk has the final dot.

    LF, CRLF and a lone CR become CRLF, a missing last line end is added, a dot that begins a line is doubled.
    """
    ready = b""    # one chunk behind, so that the final dot does not travel alone
    at_line_start = True
    held_cr = b""    # a CR at the end of a chunk may be half of a CRLF
    for chunk in chunks:
        chunk = held_cr + chunk
        held_cr = b"\r" if chunk.endswith(b"\r") else b""
        stuffed = _DOT_FIRST.sub(b"..", _LINE_END.sub(b"\r\n", chunk[: len(chunk) - len(held_cr)]))
        if not stuffed:
            continue
        if at_line_start and stuffed.startswith(b"."):
            stuffed = b"." + stuffed
        at_line_start = stuffed.endswith(b"\n")
        if ready:
            yield ready
        ready = stuffed
    yield ready + (b"\r\n" if held_cr or not at_line_start else b"") + b".\r\n"


# -- text for the log --


def printable(text: bytes | str) -> str:
    """One line of printable text, whatever a relay sent: line breaks become a blank, the rest is escaped."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    joined = re.sub(r"\s*\n\s*", " ", text.strip())
    return "".join(char if char.isprintable() else char.encode("unicode_escape").decode("ascii") for char in joined)


def _reason(error: Exception) -> str:
    if isinstance(error, smtplib.SMTPResponseException):
        return f"{error.smtp_code} {printable(error.smtp_error)}"
    if isinstance(error, TimeoutError):
        return "timed out"
    return printable(str(error)) or type(error).__name__

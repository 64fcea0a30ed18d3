"""A real SMTP server (aiosmtpd) that keeps what it gets, refuses what it is told to, and speaks TLS and AUTH."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from aiosmtpd.controller import Controller
from aiosmtpd.smtp import SMTP, AuthResult, LoginPassword
from support.certificates import server_tls_context


@dataclass(frozen=True)
class Accepted:
    """A mail the server took over; ``content`` as it came over the wire, dots unstuffed, with the last line end."""

    sender: str
    recipients: tuple[str, ...]
    content: bytes
    over_tls: bool
    login: str | None
    at: float = field(default_factory=time.monotonic, compare=False)


class RelayServer:
    """Listens on a free port of 127.0.0.1 between ``start()`` and ``stop()``; also a context manager.

    ``replies`` maps a command line to the reply it gets instead of 250: "MAIL", "RCPT", "DATA" for all of a kind, or for
    one recipient ``"RCPT ann@example.org"``. Change it at any time.
    """

    pipelining = True    # whether it is offered

    def __init__(self, tls: bool = False, login: tuple[str, str] | None = None, port: int = 0, **smtp_options: object):
        self.accepted: list[Accepted] = []
        self.replies: dict[str, str] = {}
        self.connections = 0
        self._login = login
        options: dict[str, object] = {"enable_SMTPUTF8": True, "hostname": "relay.example.org", "data_size_limit": 10**9}
        if tls:
            options["tls_context"] = server_tls_context()
        if login:
            options.update(authenticator=self._authenticate, auth_require_tls=tls, auth_required=True)
        self._controller = _Controller(self, "127.0.0.1", port, options | smtp_options)

    def start(self) -> RelayServer:
        self._controller.start()
        self.connections = 0    # the controller has just made one to see that the server answers
        return self

    def stop(self) -> None:
        self._controller.stop(no_assert=True)

    __enter__ = start

    def __exit__(self, *exc: object) -> None:
        self.stop()

    @property
    def port(self) -> int:
        return self._controller.port

    def recipients(self) -> list[str]:
        """All recipients of all accepted mails, sorted."""
        return sorted(recipient for mail in self.accepted for recipient in mail.recipients)

    def _authenticate(self, server, session, envelope, mechanism, data) -> AuthResult:
        given = (data.login.decode(), data.password.decode()) if isinstance(data, LoginPassword) else None
        session.test_login = given and given[0]
        return AuthResult(success=given == self._login, handled=False)    # the reply is left to aiosmtpd

    # -- aiosmtpd's handler --

    async def handle_EHLO(self, server, session, envelope, hostname, responses):
        session.host_name = hostname
        return ["250-PIPELINING", *responses] if self.pipelining else responses

    async def handle_MAIL(self, server, session, envelope, address, options):
        if refusal := self.replies.get("MAIL"):
            return refusal
        envelope.mail_from = address
        envelope.mail_options.extend(options)
        return "250 2.1.0 Ok"

    async def handle_RCPT(self, server, session, envelope, address, options):
        if refusal := self.replies.get(f"RCPT {address}") or self.replies.get("RCPT"):
            return refusal
        envelope.rcpt_tos.append(address)
        return "250 2.1.5 Ok"

    async def handle_DATA(self, server, session, envelope):
        if refusal := self.replies.get("DATA"):
            return refusal
        login = getattr(session, "test_login", None)
        self.accepted.append(
            Accepted(envelope.mail_from, tuple(envelope.rcpt_tos), envelope.original_content, bool(session.ssl), login)
        )
        return f"250 2.0.0 Ok: queued as {len(self.accepted)}"


class _Controller(Controller):
    def __init__(self, owner: RelayServer, host: str, port: int, options: dict):
        self._owner = owner
        self._options = options
        super().__init__(owner, hostname=host, port=port)

    def factory(self):
        return _Server(self._owner, **self._options)

    def _trigger_server(self):
        self.port = self.server.sockets[0].getsockname()[1]    # 0 asked for a free one
        super()._trigger_server()


class _Server(SMTP):
    def __init__(self, owner: RelayServer, **options):
        self._owner = owner
        super().__init__(owner, **options)

    def connection_made(self, transport):
        if self.transport is None:    # not again after STARTTLS
            self._owner.connections += 1
        super().connection_made(transport)

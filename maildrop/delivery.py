"""One pass over the spool; the one place that turns outcomes into actions."""

from __future__ import annotations

import threading
import time
import traceback
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from maildrop import policy, spool
from maildrop.envelope import MalformedEnvelope
from maildrop.logfile import MaildropLog, stamp
from maildrop.messageid import message_id, new_message_id
from maildrop.policy import Outcome, Reply
from maildrop.relay import RelayUnavailable, Session, SessionLost, own_name
from maildrop.settings import Settings
from maildrop.spool import MalformedMail, NotAMail, Remainder, SpooledMail


@dataclass
class Attempt:
    """What is known of one attempt to send a mail while it goes on."""

    mail: SpooledMail
    replies: dict[str, Reply] = field(default_factory=dict)    # by recipient
    kept: dict[str, Path] = field(default_factory=dict)    # failed recipients: where their copy is
    remainder: Remainder | None = None
    next_at: float = 0.0
    message_id: str | None = None
    started: float = field(default_factory=time.monotonic)

    def recipients(self, outcome: Outcome) -> list[str]:
        return [rcpt for rcpt, reply in self.replies.items() if policy.outcome_of(reply) is outcome]


_STOPPED = RelayUnavailable("Connection error", "the daemon stops")


class Delivery:
    """Sends what is due, pass after pass, and remembers what it has to between two passes."""

    def __init__(self, settings: Settings, log: MaildropLog):
        self.settings = settings
        self.log = log
        self.stopping = threading.Event()
        self.connecting = threading.Event()    # set while the session cannot be cut
        self._session: Session | None = None
        self._sent_on_session = 0
        self._outage: str | None = None
        self._unrecorded: dict[Path, tuple[SpooledMail, Remainder | None]] = {}
        self._told: set[Path] = set()    # files of which the log has said that they are no mails
        self._unreadable: set[Path] = set()    # spools of which the log has said it

    # -- a pass --

    def run_pass(self) -> bool:
        """Send all that is due now. True if something needs another look within seconds. Never raises."""
        again = False
        try:
            self._record_late()
            due: list[Path] = []
            for directory in self.settings.spools:
                found = self._look(directory)
                if found:
                    due += found.due
                    again = again or found.unsettled
            self._told.intersection_update(due)
            self._send_all(due)
        except RelayUnavailable as unavailable:
            self._outage_began(unavailable)
        except Exception:    # the guard of the pass: no surprise may end the daemon
            self._unexpected("this pass")
        finally:
            self._hang_up()
            self.log.end_block()
        return again

    def cut(self) -> None:
        """Begin no new mail, and break off the one under way unless its end is already out. From another thread."""
        self.stopping.set()
        if session := self._session:
            session.cut()

    def _look(self, directory: Path) -> spool.Scan | None:
        try:
            spool.make_spool(directory, self.settings.directory_mode)
            spool.clean(directory)
            found = spool.scan(directory, time.time())
        except OSError as error:
            if directory not in self._unreadable:
                self._unreadable.add(directory)
                self.log.notice(f"{directory}: the spool cannot be read: {error.strerror}")
            return None
        self._unreadable.discard(directory)
        return found

    def _send_all(self, due: list[Path]) -> None:
        for number, path in enumerate(due):
            if self.stopping.is_set():
                return
            if path not in self._unrecorded and self._send_one(path) and number + 1 < len(due):
                self.stopping.wait(self.settings.wait_s)

    def _send_one(self, path: Path) -> bool:
        """Whether an attempt was made. Raises RelayUnavailable."""
        try:
            mail = spool.claim(path, time.time())
        except spool.SpoolBusy:
            return False
        except NotAMail as why:
            if path not in self._told:
                self._told.add(path)
                self.log.notice(f"{path}: not a mail, left as it is: {why}")
            return False
        except Exception:    # the guard of the mail
            self._unexpected(str(path))
            return False
        try:
            self._attempt(mail)
        except RelayUnavailable:
            raise
        except OSError as error:    # the disk, not the relay
            self.log.notice(f"{path}: left as it is: {error.strerror or error}")
            self._drop_session()
        except Exception:    # the guard of the mail: it stays where it is
            self._unexpected(str(path))
            self._drop_session()
        finally:
            if path not in self._unrecorded:
                mail.close()
        return True

    # -- one mail --

    def _attempt(self, mail: SpooledMail) -> None:
        attempt = Attempt(mail)
        try:
            envelope = mail.read_envelope()
        except (MalformedEnvelope, MalformedMail) as error:
            kept = spool.set_aside(mail, None, str(error), f"{mail.attempts + 1}")
            self._settle(attempt)
            self.log.failed([], str(error), f"{mail.path.name} kept as {_relative(kept)}")
            return
        for text in envelope.unusable:
            attempt.replies[text] = Reply("RCPT", 553, "5.1.3 not an address")
        added = self._added_header(attempt)
        session = self._open_session()
        try:
            attempt.replies.update(session.offer(envelope, len(added) + mail.content_size))
            self._heed_relay(attempt)
            accepted = attempt.recipients(Outcome.DELIVERED)
            self._prepare(attempt)
            if accepted:
                reply = session.transmit(chain([added], mail.content()))
                attempt.replies.update(dict.fromkeys(accepted, reply))
                if policy.outcome_of(reply) is not Outcome.DELIVERED:    # what it calls for was not known before
                    self._prepare(attempt)
            else:
                session.withdraw()
        except SessionLost as lost:
            self._session_lost(attempt, envelope.recipients, lost)
        self._settle(attempt)
        self._log_outcomes(attempt)
        if any(reply.code == 421 for reply in attempt.replies.values()):
            self._drop_session()

    def _heed_relay(self, attempt: Attempt) -> None:
        """Raises RelayUnavailable for a reply that every mail would get; else an outage is over."""
        for reply in attempt.replies.values():
            if policy.is_about_the_relay(reply):
                stage = "Connection error" if reply.code == 421 else "Authentication unavailable"
                raise RelayUnavailable(stage, str(reply))
        if self._outage:
            self._outage = None
            self.log.outage_ends()

    def _session_lost(self, attempt: Attempt, recipients: tuple[str, ...], lost: SessionLost) -> None:
        self._drop_session()
        attempt.replies |= lost.replies
        if self.stopping.is_set() and not lost.after_content:    # our own doing: no attempt
            if attempt.remainder:
                attempt.remainder.drop()
            raise _STOPPED
        text = str(lost) + (" (the relay may have it: may arrive twice)" if lost.after_content else "")
        for recipient in recipients:
            reply = attempt.replies.get(recipient)
            if reply is None or policy.outcome_of(reply) is not Outcome.FAILED:
                attempt.replies[recipient] = Reply("." if lost.after_content else "RCPT", 0, text)
        self._prepare(attempt)

    def _added_header(self, attempt: Attempt) -> bytes:
        """The header field that goes in front of the message, if any."""
        attempt.message_id = message_id(attempt.mail)
        if attempt.message_id or not self.settings.add_messageid:
            return b""
        attempt.message_id = new_message_id(attempt.mail, self.settings.helo or own_name())
        return f"Message-Id: {attempt.message_id}\r\n".encode("ascii")

    # -- recording --

    def _prepare(self, attempt: Attempt) -> None:
        """Put on disk what the replies so far call for: copies of what failed, the remainder of what is deferred."""
        mail = attempt.mail
        for label, commands in ((f"{mail.attempts + 1}", ("MAIL", "RCPT")), (f"{mail.attempts + 1}-data", ("DATA", "."))):
            failed = [
                recipient
                for recipient in attempt.recipients(Outcome.FAILED)
                if recipient not in attempt.kept and attempt.replies[recipient].command in commands
            ]
            if failed:
                reasons = dict.fromkeys(str(attempt.replies[recipient]) for recipient in failed)
                kept = spool.set_aside(mail, failed, " | ".join(reasons), label)
                attempt.kept.update(dict.fromkeys(failed, kept))
        deferred = attempt.recipients(Outcome.DEFERRED)
        if attempt.remainder:
            attempt.remainder.drop()
            attempt.remainder = None
        if deferred:
            attempt.next_at = policy.next_attempt(time.time(), self.settings.retry_s)
            attempt.remainder = spool.draft_remainder(mail, deferred, attempt.next_at, str(attempt.replies[deferred[0]]))

    def _settle(self, attempt: Attempt) -> None:
        """The final reply is here: one call records it. If that fails, the mail is ours until it can be recorded."""
        try:
            _record(attempt.mail, attempt.remainder)
        except OSError as error:
            self._unrecorded[attempt.mail.path] = (attempt.mail, attempt.remainder)
            self.log.notice(f"{attempt.mail.path}: cannot be recorded, will try again: {error.strerror}")

    def _record_late(self) -> None:
        for path, (mail, remainder) in list(self._unrecorded.items()):
            with suppress(OSError):
                _record(mail, remainder)
                mail.close()
                del self._unrecorded[path]

    # -- the session --

    def _open_session(self) -> Session:
        if self._session and self.settings.batch and self._sent_on_session >= self.settings.batch:
            self._hang_up()
        if self._session is None:
            self.connecting.set()
            try:
                self._session = Session(self.settings)
            finally:
                self.connecting.clear()
            self._sent_on_session = 0
        if self.stopping.is_set():
            raise _STOPPED
        self._sent_on_session += 1
        return self._session

    def _drop_session(self) -> None:
        if self._session:
            self._session.close()
            self._session = None

    def _hang_up(self) -> None:
        if self._session:
            self._session.quit()
            self._session = None

    # -- telling --

    def _outage_began(self, unavailable: RelayUnavailable) -> None:
        if not self.stopping.is_set() and self._outage != unavailable.stage:
            self._outage = unavailable.stage
            self.log.outage_begins(unavailable.stage, unavailable.reason)

    def _log_outcomes(self, attempt: Attempt) -> None:
        name = attempt.mail.path.name
        seconds = time.monotonic() - attempt.started
        groups: dict[tuple[Outcome, Reply], list[str]] = {}
        for recipient, reply in attempt.replies.items():
            groups.setdefault((policy.outcome_of(reply), reply), []).append(recipient)
        for (outcome, reply), recipients in groups.items():
            if outcome is Outcome.DELIVERED:
                told_id = f"id={attempt.message_id} " if attempt.message_id else ""
                self.log.delivered(recipients, f'{name} {told_id}reply="{reply}" {seconds:.3f}s')
            elif outcome is Outcome.DEFERRED:
                facts = f"{name} attempt={attempt.mail.attempts + 1} next={stamp(attempt.next_at)}"
                self.log.deferred(recipients, str(reply), facts)
            else:
                self.log.failed(recipients, str(reply), f"{name} kept as {_relative(attempt.kept[recipients[0]])}")

    def _unexpected(self, what: str) -> None:
        self.log.notice(f"{what}: unexpected error: {traceback.format_exc()}")


def _record(mail: SpooledMail, remainder: Remainder | None) -> None:
    if remainder:
        spool.postpone(mail, remainder)
    else:
        spool.remove(mail)


def _relative(kept: Path) -> str:
    return f"{spool.FAILED}/{kept.name}"

"""One pass over the spool; the one place that turns outcomes into actions."""

from __future__ import annotations

import hashlib
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from maildrop import bounce, policy, spool
from maildrop.envelope import Envelope, MalformedEnvelope
from maildrop.logfile import MaildropLog, stamp
from maildrop.messageid import message_id, new_message_id
from maildrop.policy import Outcome, Reply
from maildrop.relay import RelayUnavailable, Session, SessionLost, own_name
from maildrop.settings import Settings
from maildrop.spool import MalformedMail, NotAMail, SpooledMail, TmpMail

RECIPIENTS_AT_A_TIME = 100    # what every relay has to take in one transaction: RFC 5321 4.5.3.1.8
_PROBES = 5    # so many mails have to be refused before it is the relay that refuses
_MOST_UNRECORDED = 10    # so many mails may wait to be recorded before no more are sent from their spool
_SUSPICIOUS = 3    # a mail under way in so many lost sessions waits behind all others
_FLUSH_EVERY_S = 1.0


@dataclass
class Attempt:
    """One mail transaction with the relay: for all recipients of a mail, or for one group of many."""

    mail: SpooledMail
    envelope: Envelope    # the group's recipients
    number: int    # how many attempts this mail has had, this one included
    owed: dict[str, Reply | None] = field(default_factory=dict)    # other recipients still to be served: last replies
    is_last: bool = True
    replies: dict[str, Reply] = field(default_factory=dict)    # by recipient
    kept: dict[str, Path] = field(default_factory=dict)    # failed recipients: where their copy is
    remainder: TmpMail | None = None
    prepared: bool = True    # whether all that it calls for is on the disk, but for the settling
    next_at: float = 0.0
    message_id: str | None = None
    lost: SessionLost | None = None
    started: float = field(default_factory=time.monotonic)

    def recipients(self, outcome: Outcome) -> list[str]:
        return [rcpt for rcpt, reply in self.replies.items() if policy.outcome_of(reply) is outcome]

    def label(self, failed: Iterable[str]) -> str:
        """The name of a failure of these recipients: no other one of the mail gets it, and the same one gets it again."""
        return f"{self.number}-" + hashlib.sha256("\n".join(failed).encode("utf-8", "replace")).hexdigest()[:8]


class Delivery:
    """Sends what is due, pass after pass, and remembers what it has to between two passes."""

    def __init__(self, settings: Settings, log: MaildropLog):
        self.settings = settings
        self.log = log
        self.stopping = threading.Event()
        self.connecting = threading.Event()    # set while the session cannot be cut
        self._session: Session | None = None
        self._sent_on_session = 0
        self._relay = 0    # which of the hosts
        self._outage: str | None = None
        self._unrecorded: dict[Path, Attempt] = {}    # mails that wait until what became of them can be recorded
        self._unflushed: set[Path] = set()    # spools in which something was removed or renamed
        self._last_flush = 0.0
        self._deferred_here: set[str] = set()    # identities of mails that were deferred in this run of the daemon
        self._heard_well = False    # whether the relay has taken a mail's sender in this pass
        self._refused: set[Path] = set()    # mails whose sender it would not hear of: their turn is last
        self._blamed: set[Path] = set()    # mails for which alone the relay said what else would be said of all
        self._told: set[Path] = set()    # files of which the log has said that they are no mails
        self._unreadable: set[Path] = set()    # spools of which the log has said it

    # -- a pass --

    def run_pass(self) -> bool:
        """Send all that is due now. True if something needs another look within seconds. Never raises."""
        again = False
        self._relay = 0
        self._heard_well = False
        try:
            self.record_late()
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
            self._flush()
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
        waiting = deque(path for path in due if path not in self._unrecorded)
        suspects: set[Path] = set()
        waiting = deque(sorted(waiting, key=lambda path: path in self._refused))
        self._refused.intersection_update(waiting)
        refused: list[Path] = []
        refusal: RelayUnavailable | None = None
        while waiting and not self.stopping.is_set():
            path = waiting.popleft()
            if sum(held.parent == path.parent for held in self._unrecorded) >= _MOST_UNRECORDED:
                continue
            mail = self._claim(path)
            if mail is None:
                continue
            if mail.lost_sessions >= _SUSPICIOUS and path not in suspects:
                mail.close()
                suspects.add(path)
                waiting.append(path)
                continue
            try:
                self._send_one(mail)
            except RelayUnavailable as unavailable:
                if not unavailable.answers_mail:
                    raise
                refusal = unavailable
                self._drop_session()
                self._relay = 0
                refused.append(path)    # whether that is about the relay or this mail, other mails will show
                self._refused.add(path)
                if len(refused) == _PROBES and not self._heard_well:
                    break
            if self._heard_well:
                self._blamed.update(refused)
                refused.clear()
            if waiting:
                self.stopping.wait(self.settings.wait_s)
        if refusal and refused:    # nobody was heard: it is the relay
            raise refusal

    def _claim(self, path: Path) -> SpooledMail | None:
        try:
            return spool.claim(path, time.time(), self.settings.fsync)
        except spool.SpoolBusy:
            pass
        except NotAMail as why:
            if path not in self._told:
                self._told.add(path)
                self.log.notice(f"{path}: not a mail, left as it is: {why}")
        except OSError as error:
            self.log.notice(f"{path}: cannot be read, left as it is: {error.strerror or error}")
        except Exception:    # the guard of the mail
            self._unexpected(str(path))
        return None

    def _send_one(self, mail: SpooledMail) -> None:
        """Try to send a claimed mail, and end the claim. Raises RelayUnavailable."""
        try:
            self._send_in_groups(mail)
        except RelayUnavailable:
            raise
        except OSError as error:    # the disk, not the relay
            self.log.notice(f"{mail.path}: left as it is: {error.strerror or error}")
            self._drop_session()
        except Exception:    # the guard of the mail: it stays where it is
            self._unexpected(str(mail.path))
            self._drop_session()
        finally:
            self._release(mail)

    def _release(self, mail: SpooledMail) -> None:
        """End a claim, unless it is held until what became of the mail can be recorded."""
        held = self._unrecorded.get(mail.path)
        if held is None or held.mail is not mail:
            mail.close()

    # -- one mail --

    def _send_in_groups(self, mail: SpooledMail) -> None:
        """Send to a hundred recipients at a time; the file says after each group what is still owed."""
        number = mail.attempts + 1
        try:
            envelope = mail.read_envelope()
        except (MalformedEnvelope, MalformedMail) as error:
            self._set_malformed_aside(mail, str(error))
            return
        untried = list(envelope.recipients)
        at_a_time = RECIPIENTS_AT_A_TIME
        if mail.lost_sessions and len(untried) > 1:    # it may have been the last one, who goes alone now
            at_a_time = min(at_a_time, len(untried) - 1)
        unusable = envelope.unusable
        deferred: dict[str, Reply] = {}
        claims = [mail]
        try:
            while untried:
                group, untried = tuple(untried[:at_a_time]), untried[at_a_time:]
                owed = {**dict.fromkeys(untried), **deferred}    # in the order of their next turn
                attempt = Attempt(claims[-1], Envelope(envelope.sender, group, unusable), number, owed, is_last=not untried)
                unusable = ()
                self._attempt(attempt)
                renewed = self._settle(attempt)
                self._log_outcomes(attempt)
                if renewed is None:    # nothing is owed any more, or it could not be recorded
                    return
                claims.append(renewed)
                if attempt.lost or self.stopping.is_set():
                    return
                deferred |= {rcpt: attempt.replies[rcpt] for rcpt in attempt.recipients(Outcome.DEFERRED)}
        finally:
            for claimed in claims[1:]:
                self._release(claimed)

    def _set_malformed_aside(self, mail: SpooledMail, reason: str) -> None:
        attempt = Attempt(mail, Envelope(mail.read_sender(), ()), mail.attempts + 1)
        failed = {mail.recipients_text: Reply("RCPT", 553, f"5.1.3 {reason}")}
        label = attempt.label(failed)
        self._send_notice(attempt, failed, spool.failed_path(mail, label))
        kept = spool.set_aside(mail, None, reason, label)
        self._settle(attempt)
        self.log.failed([], reason, f"{mail.path.name} kept as {_relative(kept)}")

    def _attempt(self, attempt: Attempt) -> None:
        """One mail transaction; what it calls for is on the disk when this returns, but for the settling."""
        mail = attempt.mail
        for text in attempt.envelope.unusable:
            attempt.replies[text] = Reply("RCPT", 553, "5.1.3 not an address")
        added = self._added_header(attempt)
        try:
            session = self._offer(attempt, len(added) + mail.content_size)
            self._heed_relay(attempt)
            accepted = attempt.recipients(Outcome.DELIVERED)
            self._prepare(attempt)
            reply = None
            if accepted:
                reply = session.transmit(chain([added], mail.content()))
                attempt.replies.update(dict.fromkeys(accepted, reply))
                if policy.outcome_of(reply) is not Outcome.DELIVERED:    # what it calls for was not known before
                    self._prepare_or_remember(attempt)
            if (reply is None or reply.command == "DATA") and not session.withdraw():
                self._drop_session()
        except SessionLost as lost:
            self._session_lost(attempt, lost)
        if any(reply.code == 421 for reply in attempt.replies.values()):
            self._drop_session()

    def _offer(self, attempt: Attempt, size: int) -> Session:
        """Offer the mail's envelope. A relay may end a session that has carried mails: then in a new one."""
        while True:
            session = self._open_session()
            is_fresh = self._sent_on_session == 1
            try:
                replies = session.offer(attempt.envelope, size)
            except SessionLost as lost:
                if is_fresh or lost.replies or self.stopping.is_set():
                    raise
            else:
                if not self._about_relay(attempt, replies):
                    self._heard_well = self._heard_well or attempt.mail.path not in self._blamed
                    attempt.replies.update(replies)
                    return session
                if is_fresh and not self._take_next_relay():
                    attempt.replies.update(replies)
                    return session
            self._drop_session()

    def _heed_relay(self, attempt: Attempt) -> None:
        """Raises RelayUnavailable for a reply that every mail would get; else an outage is over."""
        if reply := self._about_relay(attempt, attempt.replies):
            stage = "Connection error" if reply.code == 421 else "Authentication unavailable"
            raise RelayUnavailable(stage, str(reply), answers_mail=True)
        if self._outage and self._heard_well:
            self._outage = None
            self.log.outage_ends()

    def _about_relay(self, attempt: Attempt, replies: dict[str, Reply]) -> Reply | None:
        """The reply among these that every mail would get, if there is one."""
        if attempt.mail.path in self._blamed:
            return None
        return next((reply for reply in replies.values() if policy.is_about_the_relay(reply)), None)

    def _session_lost(self, attempt: Attempt, lost: SessionLost) -> None:
        self._drop_session()
        if self.stopping.is_set() and not lost.after_content:    # our own doing: no attempt
            if attempt.remainder:
                attempt.remainder.drop()
            raise _STOPPED
        attempt.lost = lost
        attempt.replies |= lost.replies
        text = str(lost) + (" (the relay may have it: may arrive twice)" if lost.after_content else "")
        for recipient in attempt.envelope.recipients:
            reply = attempt.replies.get(recipient)
            if reply is None or policy.outcome_of(reply) is Outcome.DELIVERED:
                attempt.replies[recipient] = Reply("." if lost.after_content else "RCPT", 0, text)
        if lost.recipient:    # it may be because of this one, who comes last from now on
            attempt.replies[lost.recipient] = attempt.replies.pop(lost.recipient)
        if lost.after_content:
            self._prepare_or_remember(attempt)
        else:    # without it, the mail may be sent again at any time
            self._prepare(attempt)

    def _added_header(self, attempt: Attempt) -> bytes:
        """The header field that goes in front of the message, if any."""
        attempt.message_id = message_id(attempt.mail)
        if attempt.message_id is not None or not self.settings.add_messageid:
            return b""
        attempt.message_id = new_message_id(attempt.mail, self.settings.helo or own_name())
        return f"Message-Id: {attempt.message_id}\r\n".encode("ascii")

    # -- recording --

    def _prepare(self, attempt: Attempt) -> None:
        """Put on disk what the replies so far call for: copies of what failed, the remainder of what is deferred."""
        self._give_up_on_expired(attempt)
        failed = {
            recipient: attempt.replies[recipient]
            for recipient in attempt.recipients(Outcome.FAILED)
            if recipient not in attempt.kept
        }
        if failed:
            self._keep_failed(attempt, failed)
        if attempt.remainder:
            attempt.remainder.drop()
            attempt.remainder = None
        deferred = {recipient: attempt.replies[recipient] for recipient in attempt.recipients(Outcome.DEFERRED)}
        owed = {**attempt.owed, **deferred}
        if owed:
            attempt.next_at = self._next_attempt(attempt)
            last = next((str(reply) for reply in owed.values() if reply), "")
            attempt.remainder = spool.draft_remainder(
                attempt.mail,
                owed,
                attempt.next_at,
                attempts=attempt.number if attempt.is_last or attempt.lost else attempt.number - 1,
                last_reply=last,
                lost_sessions=attempt.mail.lost_sessions + (attempt.lost is not None),
            )

    def _prepare_or_remember(self, attempt: Attempt) -> None:
        """The same once the content is out: where the disk takes nothing, the mail must not simply be sent again."""
        try:
            self._prepare(attempt)
        except OSError as error:
            attempt.prepared = False
            self.log.notice(f"{attempt.mail.path}: {error.strerror or error}")

    def _next_attempt(self, attempt: Attempt) -> float:
        if not attempt.is_last and attempt.lost is None:
            return time.time()    # the next group's turn is now
        when = policy.late_attempt if attempt.lost and attempt.lost.after_content else policy.next_attempt
        return when(time.time(), attempt.number, self.settings.retry_s, spool.LONGEST_DELAY_S)

    def _give_up_on_expired(self, attempt: Attempt) -> None:
        """A deferral becomes a failure when the mail has waited too long.

        It takes a second attempt in this run of the daemon: after a long outage one temporary refusal is no reason.
        """
        identity = attempt.mail.identity
        if identity not in self._deferred_here:
            return
        if policy.has_expired(time.time(), attempt.mail.queued_at, self.settings.max_age_s):
            for recipient in attempt.recipients(Outcome.DEFERRED):
                if attempt.replies[recipient].code or attempt.mail.lost_sessions >= _SUSPICIOUS:
                    attempt.replies[recipient] = policy.expired(attempt.replies[recipient])

    def _keep_failed(self, attempt: Attempt, failed: dict[str, Reply]) -> None:
        """The failure notice first, then the copy: where a crash makes us do it again, the copy tells that it was sent."""
        mail = attempt.mail
        label = attempt.label(failed)
        kept = spool.failed_path(mail, label)
        self._send_notice(attempt, failed, kept)
        reasons = dict.fromkeys(str(reply) for reply in failed.values())
        spool.set_aside(mail, failed, " | ".join(reasons), label, attempt.number)
        attempt.kept.update(dict.fromkeys(failed, kept))

    def _send_notice(self, attempt: Attempt, failed: dict[str, Reply], kept: Path) -> None:
        if self.settings.bounce and attempt.envelope.sender and not kept.exists():
            bounce.write(attempt.mail, attempt.envelope.sender, failed, kept.name, self.settings)

    def _settle(self, attempt: Attempt) -> SpooledMail | None:
        """The final reply is here: one call records it. If that fails, the mail is ours until it can be recorded.

        Returns the mail that now stands in the old one's place, claimed, if anything is still owed.
        """
        mail = attempt.mail
        self._blamed.discard(mail.path)
        if attempt.remainder is None:
            self._deferred_here.discard(mail.identity)
        elif attempt.is_last or attempt.lost:
            self._deferred_here.add(mail.identity)
        try:
            return self._record(attempt)
        except OSError as error:
            self._unrecorded[mail.path] = attempt
            self.log.notice(f"{mail.path}: what became of it cannot be recorded, will try again: {error.strerror or error}")
            return None

    def _record(self, attempt: Attempt) -> SpooledMail | None:
        if not attempt.prepared:
            self._prepare(attempt)
            attempt.prepared = True
        if time.monotonic() - self._last_flush > _FLUSH_EVERY_S:
            self._flush()    # what was recorded before
        self._unflushed.add(attempt.mail.path.parent)
        if attempt.remainder:
            return spool.postpone(attempt.mail, attempt.remainder)
        spool.remove(attempt.mail)
        return None

    def record_late(self) -> None:
        """Try again to record what could not be recorded: before each pass, and when the daemon ends."""
        for path, attempt in list(self._unrecorded.items()):
            with suppress(OSError):
                renewed = self._record(attempt)
                attempt.mail.close()
                if renewed:
                    renewed.close()
                del self._unrecorded[path]

    def _flush(self) -> None:
        """What was removed and renamed since the last time is what a power cut could bring back."""
        self._last_flush = time.monotonic()
        directories, self._unflushed = self._unflushed, set()
        if self.settings.fsync:
            for directory in directories:
                with suppress(OSError):
                    spool.flush_directory(directory)

    # -- the session --

    def _open_session(self) -> Session:
        if self._session and self.settings.batch and self._sent_on_session >= self.settings.batch:
            self._hang_up()
        if self._session is None:
            self.connecting.set()
            try:
                self._session = self._connect()
            finally:
                self.connecting.clear()
            self._sent_on_session = 0
        if self.stopping.is_set():
            raise _STOPPED
        self._sent_on_session += 1
        return self._session

    def _connect(self) -> Session:
        """A session with the relay that served last in this pass, else with the next one that can be used."""
        hosts = self.settings.smtp_hosts
        while True:
            try:
                return Session(hosts[self._relay], self.settings)
            except RelayUnavailable:
                if self.stopping.is_set() or not self._take_next_relay():
                    raise

    def _take_next_relay(self) -> bool:
        """Whether there is another one to be tried in this pass."""
        self._relay = min(self._relay + 1, len(self.settings.smtp_hosts))
        return self._relay < len(self.settings.smtp_hosts)

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
                self.log.deferred(recipients, str(reply), f"{name} attempt={attempt.number} next={stamp(attempt.next_at)}")
            else:
                kept = attempt.kept.get(recipients[0])    # None: the disk does not take it now
                self.log.failed(recipients, str(reply), f"{name} kept as {_relative(kept)}" if kept else name)

    def _unexpected(self, what: str) -> None:
        self.log.notice(f"{what}: unexpected error: {traceback.format_exc()}")


_STOPPED = RelayUnavailable("Connection error", "the daemon stops")


def _relative(kept: Path) -> str:
    return f"{spool.FAILED}/{kept.name}"

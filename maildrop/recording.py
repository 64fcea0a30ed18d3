"""What an attempt came to, on the disk and in the log: copies of what failed, the remainder, the settling."""

from __future__ import annotations

import os
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path

from maildrop import bounce, policy, spool
from maildrop.attempt import Attempt
from maildrop.envelope import Envelope
from maildrop.figures import Bookkeeper
from maildrop.logfile import MaildropLog, stamp
from maildrop.policy import Outcome, Reply
from maildrop.settings import Settings
from maildrop.spool import SpooledMail

_MOST_UNRECORDED = 10    # so many mails may wait to be recorded before no more are sent from their spool
SUSPICIOUS = 3    # lost sessions that one mail was under way in: perhaps it is the mail
_FLUSH_EVERY_S = 1.0


class Recorder:
    """Records attempts, and remembers what it has to between two passes. For all connections; they share no attempt."""

    def __init__(self, settings: Settings, log: MaildropLog, figures: Bookkeeper):
        self.settings = settings
        self._log = log
        self._figures = figures
        self._lock = threading.Lock()
        self._unrecorded: dict[str, Attempt] = {}    # mails that wait until what became of them can be recorded
        self._unflushed: set[str] = set()    # spools in which something was removed or renamed
        self._last_flush = 0.0
        self._has_sent_notices = False
        self._deferred_here: set[str] = set()    # identities of mails that were deferred in this run of the daemon

    # -- before the content goes out, as far as the replies are known then --

    def prepare(self, attempt: Attempt) -> None:
        """Put on disk what the replies so far call for: copies of what failed, the remainder of what is deferred."""
        if attempt.is_for_all():
            self.drop_remainder(attempt)
            return
        self._give_up_on_expired(attempt)
        # What is no address comes last: a quote that it opens would swallow whoever stands behind it
        refused = sorted(attempt.recipients(Outcome.FAILED), key=set(attempt.envelope.unusable).__contains__)
        failed = {recipient: attempt.replies[recipient] for recipient in refused if recipient not in attempt.kept}
        if failed:
            self._keep_failed(attempt, failed)
        self.drop_remainder(attempt)
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

    def prepare_or_remember(self, attempt: Attempt) -> None:
        """The same once the content is out: where the disk takes nothing, the mail must not simply be sent again."""
        try:
            self.prepare(attempt)
        except OSError as error:
            attempt.prepared = False
            self._log.notice(f"{attempt.mail.location}: {error.strerror or error}")

    def drop_remainder(self, attempt: Attempt) -> None:
        """What was prepared for those who are deferred is not needed after all."""
        if attempt.remainder:
            attempt.remainder.drop()
            attempt.remainder = None

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
                if attempt.replies[recipient].code or attempt.mail.lost_sessions >= SUSPICIOUS:
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
            self._has_sent_notices = True

    def take_news(self) -> bool:
        """Whether there are new failure notices in a spool since the last time this was asked."""
        has_news, self._has_sent_notices = self._has_sent_notices, False
        return has_news

    # -- when it is over --

    def settle(self, attempt: Attempt) -> SpooledMail | None:
        """The final reply is here: one call records it. If that fails, the mail is ours until it can be recorded.

        Returns the mail that now stands in the old one's place, claimed, if anything is still owed. The old claim has
        still to be closed, unless ``holds`` says that it is needed.
        """
        mail = attempt.mail
        if attempt.remainder is None:
            if self._deferred_here:    # the usual mail is not asked for its identity
                self._deferred_here.discard(mail.identity)
        elif attempt.is_last or attempt.lost:
            self._deferred_here.add(mail.identity)
        try:
            return self._record(attempt)
        except Exception as error:    # the relay may have it: whatever happens here, it must not be sent again
            with self._lock:
                self._unrecorded[mail.location] = attempt
            reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
            self._log.notice(f"{mail.location}: what became of it cannot be recorded, will try again: {reason}")
            return None

    def _record(self, attempt: Attempt) -> SpooledMail | None:
        if not attempt.prepared:
            self.prepare(attempt)
            attempt.prepared = True
        self.flush_if_due()    # what was recorded before
        if attempt.remainder:
            renewed = spool.postpone(attempt.mail, attempt.remainder)
        else:
            spool.remove(attempt.mail)
            renewed = None
        with self._lock:
            self._unflushed.add(os.path.dirname(attempt.mail.location))
        return renewed

    def set_malformed_aside(self, mail: SpooledMail, reason: str) -> None:
        """A claimed mail that cannot be sent to anybody: keep it in ``failed/``. Raises OSError."""
        attempt = Attempt(mail, Envelope(mail.read_sender(), ()), mail.attempts + 1)
        failed = {mail.recipients_text: Reply("RCPT", 553, f"5.1.3 {reason}")}
        label = attempt.label(failed)
        self._send_notice(attempt, failed, spool.failed_path(mail, label))
        kept = spool.set_aside(mail, None, reason, label)
        self.settle(attempt)
        self._figures.count(Outcome.FAILED, 1)
        self._log.failed([], reason, f"{mail.name} kept as {_relative(kept)}")

    def record_late(self) -> None:
        """Try again to record what could not be recorded: at each look, and when the daemon ends."""
        with self._lock:
            waiting = list(self._unrecorded.items())
        for path, attempt in waiting:
            try:
                renewed = self._record(attempt)
            except OSError:
                continue
            except Exception:    # the guard of the mail
                self._log.notice(f"{path}: unexpected error: {traceback.format_exc()}")
                continue
            attempt.mail.close()
            if renewed:
                renewed.close()
            with self._lock:
                del self._unrecorded[path]

    def holds(self, mail: SpooledMail) -> bool:
        """Whether the claim has to be kept until what became of the mail can be recorded."""
        if not self._unrecorded:
            return False
        with self._lock:
            held = self._unrecorded.get(mail.location)
        return held is not None and held.mail is mail

    def is_stuck(self, path: str) -> bool:
        """Whether this mail must not be sent now: it is over but for recording it, or too many of its spool are."""
        if not self._unrecorded:
            return False
        with self._lock:
            directory = os.path.dirname(path)
            waiting = sum(os.path.dirname(held) == directory for held in self._unrecorded)
            return path in self._unrecorded or waiting >= _MOST_UNRECORDED

    # -- on the disk --

    def flush_if_due(self) -> None:
        """Flush now and then, so that a power cut brings back no more than the mails of the last second."""
        if time.monotonic() - self._last_flush > _FLUSH_EVERY_S:
            self.flush()

    def flush(self) -> None:
        """What was removed and renamed since the last time is what a power cut could bring back."""
        with self._lock:
            self._last_flush = time.monotonic()
            directories, self._unflushed = self._unflushed, set()
        if self.settings.fsync:
            for directory in directories:
                with suppress(OSError):
                    spool.flush_directory(Path(directory))

    # -- in the log --

    def tell(self, attempt: Attempt) -> None:
        """One line for each outcome."""
        name = attempt.mail.name
        seconds = time.monotonic() - attempt.started
        groups: dict[Reply, list[str]] = {}
        for recipient, reply in attempt.replies.items():
            groups.setdefault(reply, []).append(recipient)
        for reply, recipients in groups.items():
            outcome = policy.outcome_of(reply)
            self._figures.count(outcome, len(recipients))
            if outcome is Outcome.DELIVERED:
                told_id = f"id={attempt.message_id} " if attempt.message_id else ""
                self._log.delivered(recipients, f'{name} {told_id}reply="{reply}" {seconds:.3f}s')
            elif outcome is Outcome.DEFERRED:
                facts = f"{name} attempt={attempt.number} next={stamp(attempt.next_at)}"
                self._log.deferred(recipients, str(reply), facts)
            else:
                kept = attempt.kept.get(recipients[0])    # None: the disk does not take it now
                self._log.failed(recipients, str(reply), f"{name} kept as {_relative(kept)}" if kept else name)


def _relative(kept: Path) -> str:
    return f"{spool.FAILED}/{kept.name}"

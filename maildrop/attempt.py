"""One mail transaction with the relay: who of a mail gets it now, what the relay said, what has to become of it."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from maildrop import policy
from maildrop.envelope import Envelope
from maildrop.messageid import message_id, new_message_id
from maildrop.policy import Outcome, Reply
from maildrop.relay import SessionLost, own_name
from maildrop.settings import Settings
from maildrop.spool import SpooledMail, TmpMail

RECIPIENTS_AT_A_TIME = 100    # what every relay has to take in one transaction: RFC 5321 4.5.3.1.8


@dataclass
class Attempt:
    """One mail transaction with the relay: for all recipients of a mail, or for one group of many."""

    mail: SpooledMail
    envelope: Envelope    # the group's recipients
    number: int    # how many attempts this mail has had, this one included
    at_a_time: int = RECIPIENTS_AT_A_TIME
    untried: tuple[str, ...] = ()    # recipients whose turn comes later
    deferred: dict[str, Reply] = field(default_factory=dict)    # recipients of the groups before
    message_id: str | None = None
    added: bytes = b""    # header field that goes in front of the message
    started: float = field(default_factory=time.monotonic)
    replies: dict[str, Reply] = field(default_factory=dict)    # by recipient
    lost: SessionLost | None = None
    kept: dict[str, Path] = field(default_factory=dict)    # failed recipients: where their copy is
    remainder: TmpMail | None = None
    prepared: bool = True    # whether all that it calls for is on the disk, but for the settling
    next_at: float = 0.0

    @classmethod
    def first(cls, mail: SpooledMail, settings: Settings) -> Attempt:
        """The first group of a claimed mail. Raises MalformedEnvelope, MalformedMail."""
        whole = mail.read_envelope()
        at_a_time = RECIPIENTS_AT_A_TIME
        if mail.lost_sessions and len(whole.recipients) > 1:    # it may have been the last one, who goes alone now
            at_a_time = min(at_a_time, len(whole.recipients) - 1)
        group, untried = whole.recipients[:at_a_time], whole.recipients[at_a_time:]
        envelope = Envelope(whole.sender, group, whole.unusable) if untried else whole
        attempt = cls(mail, envelope, mail.attempts + 1, at_a_time, untried)
        attempt._add_header(settings)
        return attempt

    def _add_header(self, settings: Settings) -> None:
        self.message_id = message_id(self.mail)
        if self.message_id is None and settings.add_messageid:
            self.message_id = new_message_id(self.mail, settings.helo or own_name())
            self.added = f"Message-Id: {self.message_id}\r\n".encode("ascii")

    def following(self, renewed: SpooledMail) -> Attempt:
        """The next group; ``renewed`` is the mail that now says what is owed."""
        group, untried = self.untried[: self.at_a_time], self.untried[self.at_a_time :]
        deferred = {**self.deferred, **{rcpt: self.replies[rcpt] for rcpt in self.recipients(Outcome.DEFERRED)}}
        envelope = Envelope(self.envelope.sender, group)
        return Attempt(renewed, envelope, self.number, self.at_a_time, untried, deferred, self.message_id, self.added)

    @property
    def is_last(self) -> bool:
        return not self.untried

    @property
    def size(self) -> int:
        """Bytes of the message as it goes out, but for line ends and dots."""
        return len(self.added) + self.mail.content_size

    @property
    def owed(self) -> dict[str, Reply | None]:
        """Recipients of other groups still to be served, in the order of their next turn, and their last replies."""
        return {**dict.fromkeys(self.untried), **self.deferred}

    def recipients(self, outcome: Outcome) -> list[str]:
        return [rcpt for rcpt, reply in self.replies.items() if policy.outcome_of(reply) is outcome]

    def is_for_all(self) -> bool:
        """Whether everybody who is owed the mail gets it, or has got it."""
        return not (self.untried or self.deferred) and len(self.recipients(Outcome.DELIVERED)) == len(self.replies)

    def label(self, failed: Iterable[str]) -> str:
        """The name of a failure of these recipients: no other one of the mail gets it, and the same one gets it again."""
        return f"{self.number}-" + hashlib.sha256("\n".join(failed).encode("utf-8", "replace")).hexdigest()[:8]

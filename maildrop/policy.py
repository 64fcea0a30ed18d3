"""Pure functions: what a reply means for a recipient, and when to try again."""

from __future__ import annotations

from enum import Enum
from typing import NamedTuple


class Outcome(Enum):
    """What an attempt came to for one recipient (RFC 5321 4.2.1)."""

    DELIVERED = "delivered"
    DEFERRED = "deferred"
    FAILED = "failed"


class Reply(NamedTuple):
    """What the relay answered to ``command``; ``text`` is printable, on one line, with the enhanced status if it has one.

    A ``code`` of 0 says that there was no reply: the session broke, or the relay sent what is none.
    """

    command: str    # "MAIL", "RCPT", "DATA" (before the content) or "." (after it)
    code: int
    text: str

    def __str__(self) -> str:
        return f"{self.code} {self.text}" if self.code else self.text


# Replies to MAIL that tell of the session and its set-up, not of this sender: login or TLS wanted (RFC 4954 6, RFC 3207 4)
_ABOUT_THE_RELAY = {421, 530, 534, 535, 538}


def is_about_the_relay(reply: Reply) -> bool:
    """Whether every other mail would get this reply too, so that it must not count against this one."""
    return reply.command == "MAIL" and reply.code in _ABOUT_THE_RELAY


def outcome_of(reply: Reply) -> Outcome:
    """Say what the reply that ended an attempt means for the recipient. For RCPT, DELIVERED says: accepted so far.

    Garbage, a broken session and codes that end no command (1yz, 3yz) are temporary: waiting is better than losing.
    Source: RFC 5321 section 4.2.1.
    """
    if reply.code == 552 and reply.command == "RCPT":
        return Outcome.DEFERRED    # here 552 means "too many recipients": section 4.5.3.1.10
    if is_about_the_relay(reply):
        return Outcome.DEFERRED    # even where it seems to be about this mail alone: waiting is better
    if 200 <= reply.code < 300 and reply.command != "DATA":
        return Outcome.DELIVERED
    if 500 <= reply.code < 600:
        return Outcome.FAILED
    return Outcome.DEFERRED


def next_attempt(now: float, attempts: int, retry_s: float, longest_s: float) -> float:
    """When a recipient that was deferred in the ``attempts``-th attempt is tried again: each time later, up to a limit.

    Times are seconds since the epoch. Source: RFC 5321 section 4.5.4.1.
    """
    return now + min(retry_s * 2.0 ** min(attempts - 1, 30), longest_s)


def late_attempt(now: float, attempts: int, retry_s: float, longest_s: float) -> float:
    """The same for a mail that the relay may have taken over without saying so: a retry may make a second one of it."""
    return next_attempt(now, attempts + 3, retry_s, longest_s)


def has_expired(now: float, queued_at: float, max_age_s: float) -> bool:
    """Whether a mail has waited so long that its sender has to be told (RFC 5321 4.5.4.1)."""
    return now - queued_at > max_age_s


def expired(last: Reply) -> Reply:
    """What becomes of a deferral when the mail has expired (RFC 3463 3.5: X.4.7)."""
    return Reply(last.command, 554, f"5.4.7 delivery time expired; last reply: {last}")

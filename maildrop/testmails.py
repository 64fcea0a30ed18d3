"""Mails that prove a setup: exactly the unlocked ones must arrive."""

from __future__ import annotations

from collections.abc import Iterable
from itertools import cycle

from maildrop import spool, wake
from maildrop.settings import Settings


def make(settings: Settings, sender: str, recipients: Iterable[str], unlocked: int, locked: int) -> None:
    """Put mails to the recipients in turn into the spools in turn. Raises OSError."""
    spools = cycle(settings.spools)
    in_turn = cycle(recipients)
    for directory in settings.spools:
        spool.make_spool(directory, settings.directory_mode)
    for number in range(unlocked + locked):
        is_locked = number >= unlocked
        draft = spool.Draft(next(spools) / spool.new_name(), settings.spool_mode)
        draft.write(sender, recipient := next(in_turn), _mail(sender, recipient, number, is_locked))
        if not is_locked:
            draft.release()
    for directory in settings.spools:
        wake.announce(directory)


def _mail(sender: str, recipient: str, number: int, is_locked: bool) -> bytes:
    subject = f"***LOCKED*** {number + 1}: must not arrive" if is_locked else f"unlocked {number + 1}"
    return (
        f"From: Maildrop test <{sender}>\nTo: {recipient}\nSubject: {spool.one_line(subject)}\n\n"
        "Written by maildropctl make-emails.\n"
    ).encode("utf-8", "surrogateescape")

"""The mails of the spools as an administrator sees them: in which state each is, since when, and why.

There are two speeds. ``survey`` tells what names and times alone can tell; ``read`` and what is built on it opens mails,
one by one. Nothing here claims, changes or removes anything, and a mail that goes while it is looked at is just not there.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from enum import Enum
from fnmatch import fnmatchcase
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import Any, NamedTuple

from maildrop import spool, writers
from maildrop.durations import iso_time
from maildrop.envelope import MalformedEnvelope
from maildrop.headerfields import subject
from maildrop.logfile import printable
from maildrop.scan import may_be_mail
from maildrop.spool import (
    FAILED,
    LOCK_SUFFIX,
    MalformedMail,
    NotAMail,
    SpoolBusy,
    SpooledMail,
    is_our_name,
    time_has_come,
)

_OUR_LENGTH = len(spool.new_name())
_MAIL_BEGINS = b"##To:"


class State(Enum):
    """What a mail waits for."""

    DUE = "due"    # the next pass
    DEFERRED = "deferred"    # its next attempt
    LOCKED = "locked"    # the end of its transaction
    ORPHANED = "orphaned"    # the next start of Zope: who locked it has died
    FAILED = "failed"    # a person's decision
    UNUSABLE = "unusable"    # it is no mail, or cannot be read: nobody does anything with it


WAITING = frozenset({State.DUE, State.DEFERRED, State.LOCKED, State.ORPHANED})    # still to be sent, as far as one knows


# -- what names and times tell --


class Entry(NamedTuple):
    """A mail as its name and its times tell of it."""

    spool: Path
    name: str    # NAME, or failed/NAME.N
    state: State
    queued_at: float    # for a name that is not of our making: since when the file is as it is
    size: int    # bytes of the file
    note: str = ""    # on its lock

    @property
    def path(self) -> Path:
        return self.spool / self.name


def survey(spools: Iterable[Path], now: float) -> list[Entry]:
    """All mails, oldest first. A spool that does not exist has none. Raises OSError where one cannot be read.

    Of files with a name that is not of our making the first bytes are read, to tell those that are no mails.
    """
    entries: list[Entry] = []
    for directory in spools:
        for has_failed in (False, True):
            with suppress(FileNotFoundError):
                entries += _entries(directory, now, has_failed)
    entries.sort(key=attrgetter("queued_at"))
    return entries


def counts(entries: Iterable[Entry]) -> dict[State, int]:
    """How many there are in each state."""
    counted = Counter(map(attrgetter("state"), entries))
    return {state: counted[state] for state in State}


def entry_at(directory: Path, name: str, now: float) -> Entry:
    """The mail NAME or failed/NAME.N of a spool, or the lock of one that is not there. Raises OSError where there is none."""
    folder = directory / FAILED if name.startswith(f"{FAILED}/") else directory
    descriptor = _open_directory(folder)
    try:
        alone = os.path.basename(name)
        if folder != directory:
            return _failed_entry(directory, alone, descriptor)
        if os.path.lexists(spool.lock_path(folder / alone)):
            return _locked_entry(directory, alone, descriptor, writers.orphans(directory, [alone]))
        return _free_entry(directory, alone, descriptor, now)
    finally:
        os.close(descriptor)


def _entries(directory: Path, now: float, has_failed: bool) -> Iterator[Entry]:
    descriptor = _open_directory(directory / FAILED if has_failed else directory)
    try:
        names, locked = _list(descriptor)
        orphans = {} if has_failed or not locked else writers.orphans(directory, locked.intersection(names))
        for name in names:
            try:
                if has_failed:
                    yield _failed_entry(directory, name, descriptor)
                elif name in locked:
                    yield _locked_entry(directory, name, descriptor, orphans)
                else:
                    yield _free_entry(directory, name, descriptor, now)
            except OSError:    # gone since
                continue
    finally:
        os.close(descriptor)


def _free_entry(directory: Path, name: str, descriptor: int, now: float) -> Entry:
    status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
    queued_at = _made_at(name) if len(name) == _OUR_LENGTH else None
    if queued_at is None:
        queued_at = max(status.st_ctime, 0.0)
        if not _begins_like_a_mail(name, descriptor):
            return Entry(directory, name, State.UNUSABLE, queued_at, status.st_size)
    state = State.DUE if time_has_come(status, now) else State.DEFERRED
    return Entry(directory, name, state, queued_at, status.st_size)


def _locked_entry(directory: Path, name: str, descriptor: int, orphans: Mapping[str, str]) -> Entry:
    try:
        status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
    except FileNotFoundError:    # the mail is not there yet, or no longer
        status = os.stat(f"{name}{LOCK_SUFFIX}", dir_fd=descriptor, follow_symlinks=False)
    writer = orphans.get(name)
    if writer:
        state, note = State.ORPHANED, f"locked by {writer}, which has died: its Zope settles that when it starts"
    else:
        state, note = State.LOCKED, "" if writer is None else "nobody knows by whom: release or delete it if you do"
    return Entry(directory, name, state, _queued_at(name, status), status.st_size, note)


def _failed_entry(directory: Path, name: str, descriptor: int) -> Entry:
    status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
    return Entry(directory, f"{FAILED}/{name}", State.FAILED, _queued_at(name, status), status.st_size)


def _open_directory(directory: Path) -> int:
    return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


def _list(directory: int) -> tuple[list[str], set[str]]:
    """The names of all that may be mails, sorted, and those that have a lock."""
    names: list[str] = []
    locked: set[str] = set()
    with os.scandir(directory) as listing:
        for entry in listing:
            if entry.name.endswith(LOCK_SUFFIX):
                locked.add(entry.name[: -len(LOCK_SUFFIX)])
            elif may_be_mail(entry):
                names.append(entry.name)
    names.sort()    # in the order in which files were made, looking at them is faster
    return names, locked


def _begins_like_a_mail(name: str, directory: int) -> bool:
    flags = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        descriptor = os.open(name, flags, dir_fd=directory)
    except OSError:
        return False
    try:
        return os.read(descriptor, len(_MAIL_BEGINS)) == _MAIL_BEGINS
    except OSError:
        return False
    finally:
        os.close(descriptor)


def _queued_at(name: str, status: os.stat_result) -> float:
    made_at = _made_at(name)
    return max(status.st_ctime, 0.0) if made_at is None else made_at


def _made_at(name: str) -> float | None:
    """The time in a name of our making, or in that of its copy in ``failed/``; None for any other name."""
    if is_our_name(name[:_OUR_LENGTH]):
        try:
            return _minute(name[:13]) + float(name[13:22])
        except ValueError:
            pass
    return None


@lru_cache(maxsize=10_000)
def _minute(text: str) -> float:
    return datetime.strptime(text, "%Y%m%dT%H%M").replace(tzinfo=timezone.utc).timestamp()


# -- what has to be read --


class Row(NamedTuple):
    """A mail with all that is known of it. Texts are printable, each in one line."""

    name: str    # NAME, or failed/NAME.N
    spool: Path
    state: State
    queued_at: float
    age_s: float
    size: int    # bytes of the file
    sender: str | None = None    # "" for the null sender, None where there is no usable one
    recipients: tuple[str, ...] = ()    # addresses; where none is usable, what stands there instead
    subject: str = ""
    attempts: int = 0
    next_at: float | None = None    # of a deferred mail
    reply: str = ""    # the last one; or why the mail has failed, or is not usable, or stays locked
    is_unsettled: bool = False    # failed, as its transaction is not known to have committed

    @property
    def path(self) -> Path:
        return self.spool / self.name

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "spool": str(self.spool),
            "state": self.state.value,
            "queued": iso_time(self.queued_at),
            "age_seconds": int(self.age_s),
            "size_bytes": self.size,
            "sender": self.sender,
            "recipients": list(self.recipients),
            "subject": self.subject,
            "attempts": self.attempts,
            "next_attempt": None if self.next_at is None else iso_time(self.next_at),
            "reply": self.reply,
            "unsettled": self.is_unsettled,
        }


def read(entry: Entry, now: float) -> Row | None:
    """What there is to know of a mail, None where it has gone meanwhile."""
    try:
        with spool.look_at(entry.path) as mail:
            return row_of(mail, entry, now)
    except SpoolBusy:
        return None
    except NotAMail as why:
        reason = str(why)
    except OSError as error:
        reason = error.strerror or str(error)
    age_s = max(0.0, now - entry.queued_at)
    if entry.state in (State.LOCKED, State.ORPHANED):    # its writer may not have come further
        return Row(entry.name, entry.spool, entry.state, entry.queued_at, age_s, entry.size, reply=printable(entry.note))
    return Row(entry.name, entry.spool, State.UNUSABLE, entry.queued_at, age_s, entry.size, reply=printable(reason))


def row_of(mail: SpooledMail, entry: Entry, now: float) -> Row:
    """What there is to know of a mail that is open."""
    state = entry.state
    if state is State.DUE or state is State.DEFERRED:
        state = State.DUE if time_has_come(mail.status, now) else State.DEFERRED
    sender: str | None
    try:
        envelope = mail.read_envelope()
        sender, recipients = printable(envelope.sender), tuple(map(printable, envelope.recipients))
    except (MalformedEnvelope, MalformedMail):
        sender, recipients = None, (printable(mail.recipients_text),)
    notes = mail.notes
    queued_at = mail.queued_at if "Queued" in notes else entry.queued_at
    reply = entry.note or notes.get("Failed") or notes.get("Last-Reply") or ""
    return Row(
        entry.name,
        entry.spool,
        state,
        queued_at,
        max(0.0, now - queued_at),
        mail.status.st_size,
        sender,
        recipients,
        subject(mail.header()),
        mail.attempts,
        mail.status.st_mtime if state is State.DEFERRED else None,
        printable(reply),
        mail.is_unsettled,
    )


# -- which of them --


@dataclass(frozen=True)
class Filter:
    """Which mails are wanted: those that fit all that is given. Patterns are a shell's, upper and lower case are one."""

    states: frozenset[State] = frozenset(State)
    sender: str = ""    # pattern of an address
    recipient: str = ""    # pattern of an address: one of them fits
    subject: str = ""    # text in it
    name: str = ""    # pattern
    older_than_s: float = 0.0

    @property
    def has_to_read(self) -> bool:
        """Whether names and times alone cannot tell."""
        return bool(self.sender or self.recipient or self.subject or self._finds_unusable)

    @property
    def _finds_unusable(self) -> bool:
        """Whether mails are wanted that may prove unusable only when they are read, and not all others too."""
        return State.UNUSABLE in self.states and len(self.states) < len(State)

    def may_want(self, entry: Entry, now: float) -> bool:
        """Whether name and times do not say no."""
        if entry.state not in self.states and not self._finds_unusable:
            return False
        if self.name and not fnmatchcase(entry.name.lower(), self.name.lower()):
            return False
        return not self.older_than_s or now - entry.queued_at >= self.older_than_s

    def wants(self, row: Row) -> bool:
        """Whether a mail that ``may_want`` let pass is wanted in the light of what was read."""
        if row.state not in self.states:
            return False
        if self.sender and (row.sender is None or not _fits(row.sender, self.sender)):
            return False
        if self.recipient and not any(_fits(recipient, self.recipient) for recipient in row.recipients):
            return False
        return self.subject.lower() in row.subject.lower()


def _fits(address: str, pattern: str) -> bool:
    return fnmatchcase(address.lower(), pattern.lower().strip("<>"))


EVERYTHING = Filter()


def select(entries: Iterable[Entry], wanted: Filter, now: float) -> Iterator[Entry]:
    """The mails that are wanted, read only if the filter takes that."""
    for entry in entries:
        if wanted.may_want(entry, now):
            if wanted.has_to_read:
                row = read(entry, now)
                if row is None or not wanted.wants(row):
                    continue
            yield entry


def rows(entries: Iterable[Entry], wanted: Filter, now: float) -> Iterator[Row]:
    """The mails that are wanted, with all that is known of them: each of them is read."""
    for entry in entries:
        if wanted.may_want(entry, now):
            row = read(entry, now)
            if row is not None and wanted.wants(row):
                yield row


class Page(NamedTuple):
    """A part of a listing."""

    rows: list[Row]
    total: int    # how many mails are wanted, on all pages


def page(entries: list[Entry], wanted: Filter, now: float, start: int, size: int) -> Page:
    """``size`` wanted mails from number ``start`` on (the first is 0). Only they are read, if the filter can do without."""
    chosen = list(select(entries, wanted, now))
    shown = (read(entry, now) for entry in chosen[start : start + size])
    return Page([row for row in shown if row is not None], len(chosen))

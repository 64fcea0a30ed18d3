"""What a daemon has done: counts for each hour of a week, its last pass, the relay's outage, and which config it goes by.

Kept in a small file in VAR.

The file is JSON, and this module alone knows its shape. It is replaced by a rename, at most every two seconds, and never
waited for to be on the disk: a file that is missing or damaged is no worse than a week in which nothing was sent.

What is counted are recipients, as each has an outcome of its own: delivered and failed once for each recipient, deferred once
for each time that one was put off.
"""

from __future__ import annotations

import json
import os
import stat
import time
from collections import deque
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from maildrop.durations import iso_time
from maildrop.logfile import printable
from maildrop.policy import Outcome
from maildrop.settings import Settings

MINUTE_S = 60
HOUR_S = 3600
DAY_H = 24
WEEK_H = 7 * DAY_H
_SAVE_EVERY_S = 2.0
_LARGEST_FILE = 256 * 1024
_LARGEST_COUNT = 2**53    # JSON's numbers are exact up to there
_LONGEST_TEXT = 500
_ORDER = (Outcome.DELIVERED, Outcome.DEFERRED, Outcome.FAILED)


class Counts(NamedTuple):
    """Recipients by outcome."""

    delivered: int = 0
    deferred: int = 0
    failed: int = 0

    def plus(self, other: Counts) -> Counts:
        return Counts(*(mine + more for mine, more in zip(self, other)))


class Trouble(NamedTuple):
    """What went wrong, and when: seconds since the epoch."""

    at: float
    text: str    # printable


class Serving(NamedTuple):
    """Which daemon serves, and what it goes by: the settings as they were when it started or last read them again."""

    pid: int
    config: str    # path of the file
    digest: str    # of the settings, see there
    spools: tuple[str, ...]


@dataclass
class Figures:
    """All that is in the file. Times are seconds since the epoch, None for what has not happened."""

    total: Counts = Counts()    # since there is this file
    minutes: dict[int, Counts] = field(default_factory=dict)    # of the last hour, by the minute's begin
    hours: dict[int, Counts] = field(default_factory=dict)    # of the last week, by the hour's begin
    pass_began: float | None = None
    pass_ended: float | None = None    # of the last pass that has ended
    error: Trouble | None = None    # the last one
    outage: Trouble | None = None    # of the relay: since when, and why; None: there is none
    serving: Serving | None = None    # what has written the file last; it may have ended

    def last_hour(self, now: float) -> Counts:
        """The last sixty minutes, the one that goes on included."""
        return _sum(self.minutes, now - HOUR_S, now)

    def last_day(self, now: float) -> Counts:
        """The last 24 hours by the clock, the one that goes on included."""
        return _sum(self.hours, now - DAY_H * HOUR_S, now)

    def by_hour(self, now: float, hours: int) -> list[tuple[int, Counts]]:
        """Begin and counts of each of the last hours by the clock, at most a week; the last one is that which goes on."""
        this = _begin(now, HOUR_S)
        return [(at, self.hours.get(at, Counts())) for at in range(this - (hours - 1) * HOUR_S, this + 1, HOUR_S)]

    def add(self, counts: Counts, now: float) -> None:
        """Count what came about just now, and forget what is too long ago."""
        self.total = self.total.plus(counts)
        for buckets, length_s, most in ((self.minutes, MINUTE_S, HOUR_S // MINUTE_S), (self.hours, HOUR_S, WEEK_H)):
            this = _begin(now, length_s)
            buckets[this] = buckets.get(this, Counts()).plus(counts)
            for at in [at for at in buckets if not this - most * length_s < at <= this]:
                del buckets[at]

    def dumps(self) -> bytes:
        fields = {
            "version": 1,
            "total": self.total,
            "minutes": self.minutes,
            "hours": self.hours,
            "pass_began": self.pass_began,
            "pass_ended": self.pass_ended,
            "error": self.error,
            "outage": self.outage,
            "serving": self.serving,
        }
        return json.dumps(fields).encode() + b"\n"

    @classmethod
    def loads(cls, data: bytes) -> Figures:
        """What ``dumps`` has written. Raises ValueError for anything else."""
        try:
            fields = json.loads(data)
            return cls(
                _counts(fields["total"]),
                {int(at): _counts(counts) for at, counts in fields["minutes"].items()},
                {int(at): _counts(counts) for at, counts in fields["hours"].items()},
                _time(fields["pass_began"]),
                _time(fields["pass_ended"]),
                _trouble(fields["error"]),
                _trouble(fields["outage"]),
                _serving(fields.get("serving")),    # the file may be older than that
            )
        except (AttributeError, KeyError, TypeError, OSError, OverflowError, RecursionError) as error:
            raise ValueError(f"not the figures of a daemon: {error!r}") from error


def _begin(seconds: float, length_s: int) -> int:
    return int(seconds // length_s) * length_s


def _sum(buckets: dict[int, Counts], after: float, until: float) -> Counts:
    result = Counts()
    for at, counts in buckets.items():
        if after < at <= until:
            result = result.plus(counts)
    return result


def _counts(found: Any) -> Counts:
    delivered, deferred, failed = map(int, found)
    counts = Counts(delivered, deferred, failed)
    if min(counts) < 0 or max(counts) > _LARGEST_COUNT:
        raise ValueError(f"no counts: {found!r}")
    return counts


def _time(found: Any) -> float | None:
    return None if found is None else _checked_time(found)


def _trouble(found: Any) -> Trouble | None:
    if found is None:
        return None
    at, text = found
    return Trouble(_checked_time(at), printable(str(text)))


def _serving(found: Any) -> Serving | None:
    if found is None:
        return None
    pid, config, digest, spools = found
    return Serving(int(pid), str(config), str(digest), tuple(map(str, spools)))


def _checked_time(found: Any) -> float:
    seconds = float(found)
    iso_time(seconds)    # what can be no time raises OverflowError, OSError or ValueError
    return seconds


def path_of(settings: Settings) -> Path:
    """Where the daemon of these settings keeps its figures: each one that has a pid file of its own has a file of its own."""
    return settings.var / f"{settings.pid_file.stem}.figures"


def read(settings: Settings) -> Figures:
    """The figures of the daemon of these settings, as they were at most some seconds ago. Empty where there are none."""
    with suppress(OSError, ValueError):
        descriptor = os.open(path_of(settings), os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(descriptor, "rb") as stream:
            if stat.S_ISREG(os.fstat(descriptor).st_mode):
                return Figures.loads(stream.read(_LARGEST_FILE))
    return Figures()


class Bookkeeper:
    """The daemon's side: counts, and saves now and then. Any thread may count, one does the rest. Never raises."""

    def __init__(self, settings: Settings):
        self.settings = settings    # of which the next ones may have another VAR
        self._figures = read(settings)
        self._new: deque[tuple[Outcome, int]] = deque()    # what was counted since the last save; for any thread
        self._has_news = False
        self._last_save = -_SAVE_EVERY_S    # monotonic time

    def count(self, outcome: Outcome, recipients: int) -> None:
        """So many recipients had that outcome. Cheap: this is done for each mail."""
        self._new.append((outcome, recipients))
        self._has_news = True

    def serves(self, config: Path) -> None:
        """The daemon goes by these settings now, which are from that file."""
        spools = tuple(map(str, self.settings.spools))
        self._figures.serving = Serving(os.getpid(), str(config), self.settings.digest, spools)
        self._has_news = True

    def pass_began(self) -> None:
        self._figures.pass_began = time.time()
        self._has_news = True

    def pass_ended(self) -> None:
        self._figures.pass_ended = time.time()
        self._has_news = True

    def relay_answers(self) -> None:
        """There is no outage, or no longer."""
        self._figures.outage = None
        self._has_news = True

    def outage(self, reason: str) -> None:
        """The relay cannot be used: that is an error, and lasts until it answers again."""
        self.error(reason)
        began = self._figures.outage.at if self._figures.outage else time.time()
        self._figures.outage = Trouble(began, _shortened(reason))

    def error(self, text: str) -> None:
        self._figures.error = Trouble(time.time(), _shortened(text))
        self._has_news = True

    @property
    def save_in_s(self) -> float:
        """After how many seconds there is something to save; infinity: there is nothing."""
        if not self._has_news:
            return float("inf")
        return max(0.0, self._last_save + _SAVE_EVERY_S - time.monotonic())

    def save_if_due(self) -> None:
        if not self.save_in_s:
            self.save()

    def save(self) -> None:
        """Replace the file by what is known now."""
        self._last_save = time.monotonic()
        self._has_news = False
        new = dict.fromkeys(_ORDER, 0)
        while self._new:
            outcome, recipients = self._new.popleft()
            new[outcome] += recipients
        self._figures.add(Counts(*new.values()), time.time())
        path = path_of(self.settings)
        beginning = path.with_name(f".{path.name}")
        with suppress(OSError):    # then it is for the next time
            try:
                _write(beginning, self._figures.dumps(), self.settings.log_mode)
                os.replace(beginning, path)
            except OSError:
                beginning.unlink(missing_ok=True)
                raise


def _shortened(text: str) -> str:
    return printable(text)[:_LONGEST_TEXT]


def _write(path: Path, data: bytes, mode: int) -> None:
    path.unlink(missing_ok=True)
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, mode)
    try:
        if os.write(descriptor, data) < len(data):
            raise OSError(f"{path} took only a part")
    finally:
        os.close(descriptor)

"""How daemon and spools are, for people, for Nagios and for Prometheus."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maildrop import figures, queue
from maildrop.durations import iso_time, tell_duration
from maildrop.figures import Figures, Trouble
from maildrop.pidfile import running_pid
from maildrop.queue import WAITING, Entry, State
from maildrop.settings import Settings


@dataclass(frozen=True)
class Status:
    """What names, times and figures tell; no mail of ours is opened for it. Times are seconds since the epoch."""

    now: float
    pid: int | None    # None: the daemon does not run
    since: float | None    # when it was started
    counts: dict[State, int]
    oldest: Entry | None    # of the mails that are still to be sent
    figures: Figures

    @property
    def waiting(self) -> int:
        """How many mails are still to be sent."""
        return sum(self.counts[state] for state in WAITING)

    @property
    def oldest_age_s(self) -> float:
        """0 where none waits."""
        return max(0.0, self.now - self.oldest.queued_at) if self.oldest else 0.0

    @property
    def outage(self) -> Trouble | None:
        """Of the relay; None also where nobody tries it."""
        return self.figures.outage if self.pid is not None else None

    def as_json(self) -> dict[str, Any]:
        known = self.figures
        return {
            "running": self.pid is not None,
            "pid": self.pid,
            "since": _iso(self.since),
            "last_pass": {"began": _iso(known.pass_began), "ended": _iso(known.pass_ended)},
            "queue": {state.value: count for state, count in self.counts.items()},
            "oldest": self.oldest
            and {"name": self.oldest.name, "spool": str(self.oldest.spool), "age_seconds": int(self.oldest_age_s)},
            "outage": _told(self.outage),
            "last_error": _told(known.error),
            "recipients": {
                "last_hour": known.last_hour(self.now)._asdict(),
                "last_day": known.last_day(self.now)._asdict(),
                "total": known.total._asdict(),
            },
        }


def _iso(seconds: float | None) -> str | None:
    return None if seconds is None else iso_time(seconds)


def _told(trouble: Trouble | None) -> dict[str, str] | None:
    return trouble and {"at": iso_time(trouble.at), "text": trouble.text}


def running_daemon(settings: Settings) -> tuple[int | None, float | None]:
    """The daemon's process id and when it was started, None for what is not so or not known. Raises OSError."""
    pid = running_pid(settings.pid_file)
    since = None
    if pid is not None:
        with suppress(OSError):
            since = os.stat(settings.pid_file).st_mtime    # written once, when it starts
    return pid, since


def look(settings: Settings) -> Status:
    """How things are now. Raises OSError where a spool or the pid file cannot be read."""
    now = time.time()
    pid, since = running_daemon(settings)
    entries = queue.survey(settings.spools, now)
    oldest = next((entry for entry in entries if entry.state in WAITING), None)
    return Status(now, pid, since, queue.counts(entries), oldest, figures.read(settings))


# -- Nagios --

OK, WARNING, CRITICAL, UNKNOWN = range(4)
LEVELS = ("OK", "WARNING", "CRITICAL", "UNKNOWN")


@dataclass(frozen=True)
class Limit:
    """What may not be exceeded: first without a warning, then at all. Infinity where there is only one."""

    critical: float
    warning: float = float("inf")

    def level(self, value: float) -> int:
        return CRITICAL if value > self.critical else WARNING if value > self.warning else OK


@dataclass(frozen=True)
class Limits:
    """None: it does not matter."""

    age_s: Limit | None = None    # of the oldest mail that waits
    size: Limit | None = None    # mails that wait
    failed: Limit | None = None    # failed mails that nobody has looked after


def check(status: Status, limits: Limits) -> tuple[int, str]:
    """Level and one line, as a Nagios plugin says them. A daemon that does not run is critical, an outage a warning."""
    failed = status.counts[State.FAILED]
    found = [(CRITICAL, "the daemon is not running")] if status.pid is None else []
    if status.outage:
        found.append((WARNING, f"the relay has been out of reach for {tell_duration(status.now - status.outage.at)}"))
    for limit, value, said in (
        (limits.age_s, status.oldest_age_s, f"oldest: {tell_duration(status.oldest_age_s)}"),
        (limits.size, status.waiting, f"waiting: {status.waiting}"),
        (limits.failed, failed, f"failed: {failed}"),
    ):
        if limit and limit.level(value):
            found.append((limit.level(value), said))
    level = max((level for level, _ in found), default=OK)
    said = ", ".join(said for _, said in found) or f"waiting: {status.waiting}, failed: {failed}"
    data = f"age={int(status.oldest_age_s)}s waiting={status.waiting} failed={failed}"
    return level, f"MAILDROP {LEVELS[level]} - {said} | {data}"


# -- Prometheus --


def prometheus(status: Status, config: Path) -> str:
    """The same in Prometheus's text format. Each value says which config file it is about."""
    return "".join(_lines(status, config))


def _lines(status: Status, config: Path) -> Iterator[str]:
    known = status.figures
    label = f'config="{_escaped(str(config))}"'

    def metric(name: str, kind: str, says: str, values: dict[str, float]) -> Iterator[str]:
        yield f"# HELP maildrop_{name} {says}\n# TYPE maildrop_{name} {kind}\n"
        for more, value in values.items():
            yield f"maildrop_{name}{{{label}{more}}} {value:.15g}\n"

    yield from metric("up", "gauge", "Whether the daemon is running.", {"": status.pid is not None})
    if status.since is not None:
        yield from metric("start_time_seconds", "gauge", "When the daemon was started.", {"": status.since})
    mails = {f',state="{state.value}"': float(count) for state, count in status.counts.items()}
    yield from metric("mails", "gauge", "Mails in the spools by state.", mails)
    oldest_says = "Age of the oldest mail that waits; 0 without one."
    yield from metric("oldest_mail_age_seconds", "gauge", oldest_says, {"": status.oldest_age_s})
    yield from metric("relay_outage", "gauge", "Whether the relay cannot be used.", {"": status.outage is not None})
    if known.pass_ended is not None:
        yield from metric("last_pass_timestamp_seconds", "gauge", "When the last pass ended.", {"": known.pass_ended})
    totals = {f',outcome="{outcome}"': float(count) for outcome, count in known.total._asdict().items()}
    yield from metric("recipients_total", "counter", "Outcomes for recipients; each deferral counts.", totals)


def _escaped(text: str) -> str:
    text = text.encode("utf-8", "backslashreplace").decode("utf-8")
    return text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")

"""Looking at a spool: which mails are due, told by names and times alone. No file is opened."""

from __future__ import annotations

import os
from dataclasses import dataclass
from operator import itemgetter
from pathlib import Path

from maildrop.spool import LOCK_SUFFIX, is_settled, time_has_come

_AHEAD_NS = 100_000_000    # the clock that stamps a ctime ticks slowly: a new mail's mtime may be some ms later than it


@dataclass(frozen=True)
class Scan:
    """What a look at a spool found: names of mails that are due, each list oldest first."""

    names: list[str]    # of mails that were not deferred before
    retries: list[str]    # of mails that were
    unsettled: bool    # there are strangers' files that were changed a moment ago


def scan(directory: Path, now: float) -> Scan:
    """List the mails that are due at ``now`` (seconds since the epoch). Raises OSError if the directory cannot be read.

    A retry is known by its times: a mail that is deferred gets an mtime ahead of the clock, so that its mtime is later
    than its ctime for good. A stranger's file with an mtime like that only loses its turn to the new mails.
    """
    new: list[tuple[int, str]] = []
    retries: list[tuple[int, str]] = []
    unsettled = False
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for name in _without_locks(descriptor):
            try:
                status = os.stat(name, dir_fd=descriptor, follow_symlinks=False)
            except OSError:    # gone since
                continue
            if not is_settled(name, status, now):
                unsettled = True
            elif time_has_come(status, now):
                is_retry = status.st_mtime_ns - status.st_ctime_ns > _AHEAD_NS
                (retries if is_retry else new).append((status.st_mtime_ns, name))
    finally:
        os.close(descriptor)
    return Scan(_oldest_first(new), _oldest_first(retries), unsettled)


def count(directory: Path) -> int:
    """How many mails are in a spool, locked and deferred ones included; 0 where there is no such directory."""
    try:
        with os.scandir(directory) as listing:
            return sum(may_be_mail(entry) for entry in listing)
    except FileNotFoundError:
        return 0


def may_be_mail(entry: os.DirEntry[str]) -> bool:
    """Whether it is a file that is neither hidden nor a lock."""
    name = entry.name
    return not name.startswith(".") and not name.endswith(LOCK_SUFFIX) and entry.is_file(follow_symlinks=False)


def _without_locks(directory: int) -> list[str]:
    """The names of what may be mails and is not locked.

    They are sorted: ours then come in the order in which the files were made, which makes looking at them faster.
    """
    mails: set[str] = set()
    locked: set[str] = set()
    with os.scandir(directory) as listing:
        for entry in listing:
            name = entry.name
            if name.endswith(LOCK_SUFFIX):
                mail = name[: -len(LOCK_SUFFIX)]
                if mail in mails:    # both have come by: no need to remember either
                    mails.remove(mail)
                else:
                    locked.add(mail)
            elif name in locked:
                locked.remove(name)
            elif not name.startswith(".") and entry.is_file(follow_symlinks=False):
                mails.add(name)
    return sorted(mails)


def _oldest_first(mails: list[tuple[int, str]]) -> list[str]:
    mails.sort(key=itemgetter(0))    # mails of the same time stay in the order of their names
    return [name for _, name in mails]

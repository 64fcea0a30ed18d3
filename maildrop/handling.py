"""What a person does to mails of the spools. Each mail is claimed for it, so that no daemon is sending it meanwhile."""

from __future__ import annotations

import difflib
import math
import os
import time
from bisect import bisect
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import NamedTuple

from maildrop import spool, wake, writers
from maildrop.settings import Settings
from maildrop.spool import FAILED, LOCK_SUFFIX, NotAMail, SpoolBusy, SpooledMail

UNSETTLED = "its transaction is not known to have committed"
_MOST_COMPARED = 1000    # names; comparing takes time
_NEAR = 3


class NoSuchMail(Exception):
    """There is no mail of that name; names near ones."""


class Refused(Exception):
    """That is not to be done to this mail; says why."""


class Handled(NamedTuple):
    """What became of a mail."""

    path: Path
    name: str = ""    # under which it is due now, where it is
    problem: str = ""    # why nothing was done to it
    is_gone: bool = False    # whether that is because it is not there any more


def find(name: str, spools: Iterable[Path]) -> Path:
    """The file that is called so: NAME as it lies in a spool, or that of a failed mail, with or without ``failed/``.

    Raises NoSuchMail.
    """
    directories = tuple(spools)
    for directory in directories:
        for path in (directory / name, directory / FAILED / name):
            below = path.parent in (directory, directory / FAILED)
            if below and (os.path.lexists(path) or name and is_locked(path)):
                return path
    near = near_names(name, directories)
    hint = f"; did you mean {' or '.join(near)}?" if near else ""
    raise NoSuchMail(f"there is no mail {name} in {', '.join(map(str, directories))}{hint}")


def near_names(name: str, spools: Iterable[Path]) -> list[str]:
    """Names of mails that look like this one, the nearest first."""
    names: list[str] = []
    for directory in spools:
        for folder, prefix in ((directory, ""), (directory / FAILED, f"{FAILED}/")):
            with suppress(OSError):
                names += (prefix + found for found in os.listdir(folder) if not found.endswith(LOCK_SUFFIX))
    names.sort()
    begins = [found for found in names if name and name in found][:_NEAR]
    if len(names) > _MOST_COMPARED:    # those of about the same time
        middle = bisect(names, name)
        names = names[max(0, middle - _MOST_COMPARED // 2) : middle + _MOST_COMPARED // 2]
    return list(dict.fromkeys([*begins, *difflib.get_close_matches(name, names, n=_NEAR, cutoff=0.75)]))[:_NEAR]


def retry(paths: Iterable[Path], settings: Settings, also_unsettled: bool = False) -> Iterator[Handled]:
    """Make mails due now, as if they had never been tried; failed ones get a new name. The daemons hear of it at the end.

    ``also_unsettled``: also those whose transaction is not known to have committed.
    """

    def renew(mail: SpooledMail) -> str:
        if mail.is_unsettled and not also_unsettled:
            raise Refused(f"{UNSETTLED}; send it with --yes")
        return spool.renew(mail).name

    return _announced(_each(paths, settings, renew), settings)


def flush(paths: Iterable[Path], settings: Settings) -> Iterator[Handled]:
    """Make deferred mails due now; that they were tried stays known. The daemons hear of it at the end."""
    return _announced(_each(paths, settings, _hasten), settings)


def delete(paths: Iterable[Path], settings: Settings) -> Iterator[Handled]:
    """Remove mails for good, locked ones too if their writer has died or is unknown."""
    for path in paths:
        if is_locked(path):
            yield _end_lock(path, spool.Draft.discard)
        else:
            yield from _each([path], settings, _remove)


def release(paths: Iterable[Path]) -> Iterator[Handled]:
    """Take away locks whose writer has died or is unknown: those mails are due. The daemons hear of each."""
    for path in paths:
        if not is_locked(path):
            yield Handled(path, problem="is not locked", is_gone=not os.path.lexists(path))
            continue
        released = _end_lock(path, spool.Draft.release)
        if not released.problem:
            wake.announce(path.parent, [path.name])
        yield released


def is_locked(path: Path) -> bool:
    """Whether that is a mail, or what could be one, with a lock."""
    return path.parent.name != FAILED and os.path.lexists(spool.lock_path(path))


def _end_lock(path: Path, end: Callable[[spool.Draft], None]) -> Handled:
    try:
        with _held(path):
            end(spool.Draft(path))
    except Refused as why:
        return Handled(path, problem=str(why), is_gone=not os.path.lexists(path))
    except OSError as error:
        return Handled(path, problem=error.strerror or str(error))
    return Handled(path)


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """The lock of a mail is ours to end, and nobody else settles it meanwhile. Raises Refused, OSError."""
    lock = writers.lock_of(path)
    try:
        dead = writers.take(path.parent, lock.writer) if lock else None
    except writers.WriterAlive:
        raise Refused("locked by a process that is alive, or is being settled") from None
    with dead or nullcontext():
        if not is_locked(path):
            raise Refused("was settled by somebody else")
        yield


def _hasten(mail: SpooledMail) -> str:
    spool.hasten(mail)
    return mail.name


def _remove(mail: SpooledMail) -> str:
    spool.remove(mail)
    return ""


def _each(paths: Iterable[Path], settings: Settings, act: Callable[[SpooledMail], str]) -> Iterator[Handled]:
    for path in paths:
        try:
            with spool.claim(path, math.inf, settings.fsync) as mail:
                if path.parent.name != FAILED and not spool.is_settled(path.name, mail.status, time.time()):
                    raise Refused("may still be being written by another program; try again in some seconds")
                handled = Handled(path, act(mail))
        except (Refused, SpoolBusy, NotAMail) as why:
            handled = Handled(path, problem=str(why), is_gone=not os.path.lexists(path))
        except OSError as error:
            handled = Handled(path, problem=error.strerror or str(error))
        yield handled


def _announced(handled: Iterator[Handled], settings: Settings) -> Iterator[Handled]:
    try:
        yield from handled
    finally:
        for directory in settings.spools:
            wake.announce(directory)

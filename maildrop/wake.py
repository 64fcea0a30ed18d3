"""The wake-up: writers tell the daemons that listen which mails have come.

Each daemon reads a FIFO of its own in ``wake/`` of every spool that it serves. It takes lines: the name of a mail, as
``spool.new_name`` makes them, or an empty line, which asks for a look at the whole spool. A writer writes to each FIFO
once for a transaction, no more than what a pipe takes in one piece, and never waits. Nothing relies on that word:
without it, a mail is found when the daemon looks the next time.
"""

from __future__ import annotations

import errno
import fcntl
import io
import math
import os
import select
import stat
import time
import uuid
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from maildrop import spool
from maildrop.paths import make_directory

WAKE = "wake"
_LOOK = b"\n"
_DEAD_S = 60    # so old is a FIFO that nobody reads only where its daemon has died
_LONGEST_MS = 2**31 - 1    # what poll takes
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_END = os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC


# -- the writer --


def announce(directory: Path, names: Iterable[str] = ()) -> None:
    """Tell the daemons that listen at a spool of these mails; without names, to look at all of it. Never raises."""
    with suppress(OSError, ValueError), os.scandir(os.path.join(directory, WAKE)) as entries:
        message = _message(names)
        for entry in entries:
            with suppress(OSError):
                _tell(entry, message)


def _message(names: Iterable[str]) -> bytes:
    named = list(names)
    if not all(map(spool.is_our_name, named)):
        return _LOOK
    message = "".join(f"{name}\n" for name in named).encode()
    return message if 0 < len(message) <= select.PIPE_BUF else _LOOK


def _tell(entry: os.DirEntry[str], message: bytes) -> None:
    """Raises OSError where nobody listens."""
    if not stat.S_ISFIFO(entry.stat(follow_symlinks=False).st_mode):    # to open a device may do something
        return
    pipe = os.open(entry.path, os.O_WRONLY | _END)
    try:
        if stat.S_ISFIFO(os.fstat(pipe).st_mode):
            try:
                os.write(pipe, message)
            except BlockingIOError:    # where one byte does not fit either, the daemon sees that the pipe was full
                os.write(pipe, _LOOK)
    finally:
        os.close(pipe)


# -- the daemon --


@dataclass(frozen=True)
class Woken:
    """What a wait ended with; nothing of both where it was rung or time was up."""

    paths: list[Path]    # mails that writers have named, each once; they may be gone, or have been sent
    look: bool    # there may be mails that were not named: look at everything


class WakeUp:
    """What the daemon waits with: for a time, for ``ring``, and for the word of a writer.

    One thread listens and waits. Any may ring.
    """

    def __init__(self) -> None:
        reading, writing = os.pipe()
        for end in (reading, writing):
            os.set_blocking(end, False)
        # Files and no descriptors: who rings after the end gets an error, and never writes to another file.
        self._bell, self._rope = io.FileIO(reading, "r"), io.FileIO(writing, "w")
        self._ears: dict[Path, _Ear | None] = {}    # None where no FIFO can be made
        self._look = False
        self._poll = select.poll()
        self._poll.register(reading, select.POLLIN)

    def listen(self, spools: Iterable[Path], mode: int) -> None:
        """Have a FIFO in each of these spools, and in no other. ``mode``: of a directory in the spool.

        It is made again where it has gone; if all is well, that takes one look at each. Where none can be made, the
        spool is just not listened at.
        """
        wanted = list(dict.fromkeys(spools))
        for directory in [directory for directory in self._ears if directory not in wanted]:
            self._stop(directory)
        for directory in wanted:
            ear = self._ears.get(directory)
            if ear is not None and ear.is_in_place():
                continue
            known = directory in self._ears
            self._stop(directory)
            self._ears[directory] = made = _make_ear(directory, mode)
            if made is not None:
                self._poll.register(made.reading, select.POLLIN)
                self._look = self._look or known    # what came before it was not heard

    def wait(self, timeout_s: float) -> Woken:
        """Wait until somebody rings, a writer has something to say, or the time is up. Takes all that was said."""
        timeout_ms = 0 if self._look else math.ceil(min(max(timeout_s * 1000, 0), _LONGEST_MS))
        ready = {descriptor for descriptor, _ in self._poll.poll(timeout_ms)}
        with suppress(OSError):    # then it rings again
            self._bell.read(select.PIPE_BUF)
        look, self._look = self._look, False
        paths: list[Path] = []
        for directory, ear in self._ears.items():
            if ear is not None and ear.reading in ready:
                names, more = ear.hear()
                paths += [directory / name for name in names]
                look = look or more
        return Woken(list(dict.fromkeys(paths)), look)

    def ring(self) -> None:
        """End the wait, or the next one. Never raises, never waits."""
        with suppress(OSError, ValueError):    # ValueError: it is closed
            self._rope.write(b"\n")

    def close(self) -> None:
        """Remove the FIFOs. Never raises."""
        for directory in list(self._ears):
            self._stop(directory)
        for end in (self._bell, self._rope):
            with suppress(OSError):
                end.close()

    def _stop(self, directory: Path) -> None:
        ear = self._ears.pop(directory, None)
        if ear is not None:
            self._poll.unregister(ear.reading)
            ear.close()


class _Ear:
    """A FIFO of ours that is open for reading."""

    def __init__(self, path: Path, reading: int, writing: int):
        self.path = path
        self.reading = reading
        self._writing = writing    # as long as somebody can write, there is no end of file to wake up for
        status = os.fstat(reading)
        self._identity = (status.st_dev, status.st_ino)
        self._size = _pipe_size(reading)

    def is_in_place(self) -> bool:
        try:
            status = os.lstat(self.path)
        except OSError:
            return False
        return (status.st_dev, status.st_ino) == self._identity

    def hear(self) -> tuple[list[str], bool]:
        """The names that were written, and whether to look at everything."""
        try:
            said = os.read(self.reading, self._size)
        except BlockingIOError:
            return [], False
        except OSError:
            return [], True
        # Writes do not always fill the pages of a pipe; but a pipe that takes not one byte more is at least half full.
        look = len(said) >= self._size // 2 or not said.endswith(b"\n")
        lines = said.decode("ascii", "replace").split("\n")
        names = [line for line in lines if spool.is_our_name(line)]
        return names, look or len(names) < len(lines) - 1

    def close(self) -> None:
        if self.is_in_place():
            with suppress(OSError):
                os.unlink(self.path)
        for end in (self.reading, self._writing):
            with suppress(OSError):
                os.close(end)


def _pipe_size(descriptor: int) -> int:
    try:
        return fcntl.fcntl(descriptor, fcntl.F_GETPIPE_SZ)
    except (AttributeError, OSError):    # asked of Linux only
        return 64 * 1024


def _make_ear(directory: Path, mode: int) -> _Ear | None:
    """A FIFO of our own in the spool; None where that is not possible. Takes away what dead daemons have left there."""
    with suppress(OSError, NotImplementedError):    # the latter where a system lacks one of these calls
        make_directory(directory / WAKE, mode)
        opened = os.open(directory / WAKE, _DIRECTORY)
        try:
            owner = os.stat(directory)
            _give(opened, owner)
            _remove_dead(opened)
            return _make_fifo(directory, opened, 0o660 if mode & 0o070 else 0o600, owner)
        finally:
            os.close(opened)
    return None


def _make_fifo(directory: Path, opened: int, mode: int, owner: os.stat_result) -> _Ear:
    name = uuid.uuid4().hex
    os.mkfifo(name, 0o600, dir_fd=opened)
    ends: list[int] = []
    try:
        for access in (os.O_RDONLY, os.O_WRONLY):
            ends.append(os.open(name, access | _END, dir_fd=opened))
        if not all(stat.S_ISFIFO(os.fstat(end).st_mode) for end in ends):    # who owns the folder has put another file there
            raise OSError(errno.EINVAL, "no FIFO")
        os.fchmod(ends[0], mode)    # whatever the umask
        _give(ends[0], owner)
        return _Ear(directory / WAKE / name, *ends)
    except BaseException:
        for end in ends:
            os.close(end)
        with suppress(OSError):
            os.unlink(name, dir_fd=opened)
        raise


def _give(descriptor: int, owner: os.stat_result) -> None:
    """A daemon of root's listens to the account that the spool belongs to."""
    if os.geteuid() == 0 and owner.st_uid != 0:
        os.fchown(descriptor, owner.st_uid, owner.st_gid)


def _remove_dead(opened: int) -> None:
    with os.scandir(opened) as entries:
        for entry in entries:
            with suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                if stat.S_ISFIFO(status.st_mode) and abs(time.time() - status.st_ctime) > _DEAD_S:
                    _remove_unless_read(opened, entry.name)


def _remove_unless_read(opened: int, name: str) -> None:
    try:
        os.close(os.open(name, os.O_WRONLY | _END, dir_fd=opened))
    except OSError as error:
        if error.errno == errno.ENXIO:    # nobody reads it
            os.unlink(name, dir_fd=opened)

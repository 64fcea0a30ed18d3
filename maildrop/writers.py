"""The writers of a spool: which of them are alive, what they have voted for, and the locks that dead ones left behind.

A process that sends mail has a file of its own in ``writers/`` of each spool that it writes to, and holds an ``flock`` on it
for as long as it lives: the kernel ends that with the process, in whatever container, and a pid that is used again does not
matter. The file is there, locked, before the first mail names it (``##Transaction:WRITER TOKEN``). It takes one line for each
transaction that has voted, and zeros are behind the last one: room that a full disk cannot take away. A line that has no end
is a vote that was not finished. Lines are taken away only when the transactions they are about have no lock left in the
spool, and that is on the disk.

An *orphan* is a lock of a writer that has died. Zope settles it (``Products.MaildropHost.recovery``), or a person does. Who
settles it holds the ``flock`` of the dead writer's file meanwhile, and removes the file when the last orphan of it is gone.
"""

from __future__ import annotations

import atexit
import errno
import fcntl
import json
import os
import re
import socket
import stat
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import NamedTuple

from maildrop import spool

WRITERS = "writers"
_ROOM = 4096    # bytes that a file has from the beginning
_FULL = 64 * 1024    # bytes; so large it becomes only where there is always a transaction open
_LOOK_S = 0.05    # longer than anybody holds a file just to see whether its writer lives
_SETTLING_S = 60    # how long one waits for another who settles what is in the spool
_BEGUN_S = 60    # nobody takes so long to lock a file; who does gets an error when it goes on
_OPEN = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*-([0-9a-f]{8})-\d+")


class WriterAlive(Exception):
    """The writer of a mail has not ended, or somebody else is settling what it left."""


# -- votes --


class Database(NamedTuple):
    """A database that takes part in a transaction, as whoever votes knows it."""

    place: str    # what it is called and where it lies; only compared
    last: str    # its newest transaction at that time; "" where that cannot be told
    has_history: bool    # whether it keeps a record of each transaction


@dataclass(frozen=True)
class Vote:
    """What a writer knows of a transaction when all that can fail has been done."""

    token: str    # which transaction
    others: bool    # whether anybody else has a say in whether it commits
    databases: tuple[Database, ...] = ()    # those of them that will have a record of it if it does
    discarded: frozenset[str] = frozenset()    # mails that were rolled back and could not be removed

    def line(self) -> bytes:
        fields = {
            "token": self.token,
            "others": self.others,
            "databases": self.databases,
            "discarded": sorted(self.discarded),
        }
        return json.dumps(fields).encode() + b"\n"

    @classmethod
    def parse(cls, line: bytes) -> Vote:
        """Raises ValueError for what ``line`` did not make."""
        try:
            fields = json.loads(line)
            databases = tuple(Database(str(place), str(last), bool(has)) for place, last, has in fields["databases"])
            return cls(str(fields["token"]), bool(fields["others"]), databases, frozenset(map(str, fields["discarded"])))
        except (KeyError, TypeError, UnicodeDecodeError, RecursionError) as error:
            raise ValueError(f"no vote: {line!r}") from error


# -- the living --


class Writer:
    """This process, as a writer of one spool."""

    def __init__(self, directory: Path, mode: int):
        """Raises OSError; FileNotFoundError where there is no such spool. ``mode``: of the file, as of a mail."""
        host = re.sub(r"[^A-Za-z0-9_.-]", "_", socket.gethostname()).lstrip(".-") or "_"
        self.name = f"{host}-{os.getpid()}-{spool.process_id()}-{next(_numbers)}"
        self._directory = directory
        self._path = directory / WRITERS / self.name
        self._lock = threading.Lock()
        self._open: set[str] = set()    # tokens of transactions that may have locks in the spool
        self.ends = 0    # how many transactions have left
        self._size = 0
        self._is_on_disk = False
        self._retired = False
        beginning = self._path.with_name(f".{self.name}")    # nobody looks at it before it is locked
        try:
            self._descriptor = os.open(beginning, os.O_RDWR | os.O_CREAT | os.O_EXCL | _OPEN, 0o600)
        except FileNotFoundError:
            _make_folder(directory)
            self._descriptor = os.open(beginning, os.O_RDWR | os.O_CREAT | os.O_EXCL | _OPEN, 0o600)
        _descriptors.add(self._descriptor)    # a fork of another thread must not keep it
        try:
            if mode & 0o077:
                os.fchmod(self._descriptor, mode)
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._write(bytes(_ROOM), 0)
            os.rename(beginning, self._path)
            self._identity = _identity(os.fstat(self._descriptor))
        except BaseException:
            for path in (beginning, self._path):
                with suppress(OSError):
                    os.unlink(path)
            _descriptors.discard(self._descriptor)
            os.close(self._descriptor)
            raise

    def is_usable(self) -> bool:
        """Whether new transactions can name this file: it is where it was made, and not too long."""
        try:
            return self._size < _FULL and _identity(os.lstat(self._path)) == self._identity
        except OSError:
            return False

    def enter(self, token: str) -> None:
        """From now on that transaction may have locks in the spool."""
        with self._lock:
            self._open.add(token)

    def vote(self, vote: Vote, durable: bool, ends: int) -> None:
        """Write the vote down; with ``durable`` it is on the disk when this returns. Raises OSError: it did not vote.

        ``ends``: what the attribute was before the spool's directory was put on the disk. The locks of those who had left
        by then cannot come back.
        """
        line = vote.line()
        with self._lock:
            is_alone = self._open == {vote.token} and self.ends == ends    # nobody needs what stands there
            begin = 0 if is_alone else self._size
            before, self._size = self._size, begin + len(line)
            try:
                self._write(line.ljust(before - begin, b"\0"), begin)
            except OSError:
                self._take_back(begin, max(before, self._size))
                raise
        if durable:
            try:
                _flush(self._descriptor)
                if not self._is_on_disk:
                    spool.flush_directory(self._path.parent)
                    self._is_on_disk = True
            except OSError:
                with self._lock:
                    self._take_back(begin, begin + len(line))
                with suppress(OSError):
                    _flush(self._descriptor)
                raise

    def _take_back(self, begin: int, end: int) -> None:
        """Never raises."""
        with suppress(OSError):
            self._write(b" " * (end - begin), begin)    # which may stand before the next line
        if self._size <= end:
            self._size = begin

    def _write(self, data: bytes, begin: int) -> None:
        if os.pwrite(self._descriptor, data, begin) < len(data):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def leave(self, token: str) -> None:
        """That transaction has no lock in the spool any more. Never raises."""
        with self._lock:
            self._open.discard(token)
            self.ends += 1
            if self._retired and not self._open:
                self._remove()

    def retire(self) -> None:
        """Nobody enters any more; the file goes when all have left. Never raises."""
        with self._lock:
            self._retired = True
            if not self._open:
                self._remove()

    def _remove(self) -> None:
        with suppress(OSError):
            spool.flush_directory(self._directory)    # without the end of the locks in it, their votes are needed
            if _identity(os.lstat(self._path)) == self._identity:
                os.unlink(self._path)
        _descriptors.discard(self._descriptor)
        with suppress(OSError):
            os.close(self._descriptor)


_flush = getattr(os, "fdatasync", os.fsync)    # what is written lies where the file has room: often no metadata change
_numbers = count(1)
_ours: dict[Path, Writer] = {}
_ours_lock = threading.Lock()
_descriptors: set[int] = set()


def join(directory: Path, mode: int, token: str) -> Writer:
    """The writer that this process is in that spool; the transaction has entered. ``mode``: of a mail.

    Raises OSError; FileNotFoundError where there is no such spool.
    """
    with _ours_lock:
        writer = _ours.get(directory)
        if writer is None or not writer.is_usable():
            made = Writer(directory, mode)
            if writer is not None:
                writer.retire()
            writer = _ours[directory] = made
        writer.enter(token)
        return writer


@atexit.register
def _end() -> None:
    with _ours_lock:
        for writer in _ours.values():
            writer.retire()
        _ours.clear()


def _begin_fork() -> None:
    """A fork is another writer. Its parent's files are none of its business: who holds one open holds its lock."""
    global _ours_lock
    _ours_lock = threading.Lock()    # a thread that is not in the fork may hold the other one
    _ours.clear()
    for descriptor in _descriptors:
        with suppress(OSError):
            os.close(descriptor)
    _descriptors.clear()


os.register_at_fork(after_in_child=_begin_fork)


def _make_folder(directory: Path) -> None:
    folder = directory / WRITERS
    mode = stat.S_IMODE(os.stat(directory).st_mode)    # who works in the spool works there
    try:
        os.mkdir(folder, 0o700)
        os.chmod(folder, mode)
    except FileExistsError:
        if not folder.is_dir():
            raise


def _identity(status: os.stat_result) -> tuple[int, int]:
    return status.st_dev, status.st_ino


# -- the dead --


class DeadWriter:
    """The file of a writer that has died. Nobody else settles what it left until this is closed."""

    def __init__(self, path: Path, descriptor: int):
        self.name = path.name
        self._path = path
        self._descriptor = descriptor
        self.votes: dict[str, Vote] = {}
        self.is_damaged = False    # then that there is no vote says nothing
        *lines, _ = _read(descriptor).split(b"\n")
        for line in lines:
            try:
                vote = Vote.parse(line)
            except ValueError:
                self.is_damaged = True
            else:
                self.votes[vote.token] = vote

    def remove(self) -> None:
        """It has left nothing any more. Raises OSError."""
        os.unlink(self._path)

    def close(self) -> None:
        os.close(self._descriptor)

    def __enter__(self) -> DeadWriter:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def take(directory: Path, name: str) -> DeadWriter | None:
    """The writer of that name if it has died; None if there never was one, or it left nothing.

    Raises WriterAlive; OSError where that cannot be told.
    """
    path = directory / WRITERS / name
    if not _NAME.fullmatch(name):
        return None
    descriptor = _open(path)
    if descriptor is None:
        return None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise WriterAlive(name) from None
        if _identity(os.lstat(path)) == _identity(os.fstat(descriptor)):
            return DeadWriter(path, descriptor)
    except FileNotFoundError:    # settled between open and flock
        pass
    except BaseException:
        os.close(descriptor)
        raise
    os.close(descriptor)
    return None


def is_alive(directory: Path, name: str) -> bool | None:
    """Whether that writer has not ended; None where nothing is known of it, or it cannot be told."""
    try:
        descriptor = _open(directory / WRITERS / name) if _NAME.fullmatch(name) else None
    except OSError:    # the file of an account that lets nobody look
        return None
    if descriptor is None:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


@contextmanager
def settling(directory: Path) -> Iterator[list[str]]:
    """The names of all writers of a spool, to settle what they left while nobody else does: whoever comes later waits.

    Raises OSError; TimeoutError where others have been at it for a minute.
    """
    folder = directory / WRITERS
    try:
        descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        yield []
        return
    try:
        _wait_for_lock(descriptor, folder)
        _clean(folder)
        yield names_of_writers(directory)
    finally:
        os.close(descriptor)


def _wait_for_lock(descriptor: int, folder: Path) -> None:
    give_up = time.monotonic() + _SETTLING_S
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= give_up:
                raise TimeoutError(errno.ETIMEDOUT, "somebody else is settling what is there", str(folder)) from None
            time.sleep(_LOOK_S)
        except OSError:    # a network file system that locks no folders: each writer's file is locked all the same
            return


@contextmanager
def dead_writers(directory: Path, names: list[str]) -> Iterator[dict[str, DeadWriter]]:
    """Those of these writers that have died, by name; those that cannot be judged are not there. Each is an open file.

    Raises OSError.
    """
    taken: dict[str, DeadWriter] = {}
    try:
        busy = _take_all(directory, names, taken)
        if busy:
            time.sleep(_LOOK_S)    # perhaps somebody was just looking
            _take_all(directory, busy, taken)
        yield taken
    finally:
        for dead in taken.values():
            dead.close()


def _clean(folder: Path) -> None:
    """Remove files whose writer died before it had locked them. No mail can name one."""
    with suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            with suppress(OSError):
                if entry.name.startswith(".") and time.time() - entry.stat(follow_symlinks=False).st_ctime > _BEGUN_S:
                    os.unlink(entry.path)


def _take_all(directory: Path, names: list[str], taken: dict[str, DeadWriter]) -> list[str]:
    busy = []
    for name in names:
        try:
            dead = take(directory, name)
        except WriterAlive:
            busy.append(name)
        except OSError:    # the file of an account that lets nobody look
            pass
        else:
            if dead is not None:
                taken[name] = dead
    return busy


def names_of_writers(directory: Path) -> list[str]:
    """The names of all writers of a spool, living and dead, sorted. Raises OSError."""
    try:
        return sorted(filter(_NAME.fullmatch, os.listdir(directory / WRITERS)))
    except FileNotFoundError:
        return []


def _open(path: Path) -> int | None:
    try:
        try:
            descriptor = os.open(path, os.O_RDWR | _OPEN)    # what flock needs on some network file systems
        except PermissionError:
            descriptor = os.open(path, os.O_RDONLY | _OPEN)
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return None
    return descriptor


def _read(descriptor: int) -> bytes:
    chunks = []
    position = 0
    while chunk := os.pread(descriptor, _FULL, position):
        chunks.append(chunk)
        position += len(chunk)
    return b"".join(chunks)


# -- their locks --


class Lock(NamedTuple):
    """A lock in a spool. Without ``writer`` its origin is unknown."""

    mail: Path    # which may not be there
    writer: str
    token: str


def locks(directory: Path) -> Iterator[Lock]:
    """All locks of a spool, by name. Raises OSError where the spool cannot be listed; reads each lock."""
    makers = _makers(directory)
    for name in sorted(name for name in os.listdir(directory) if name.endswith(spool.LOCK_SUFFIX)):
        lock = _read_lock(directory / name.removesuffix(spool.LOCK_SUFFIX), makers)
        if lock is not None:
            yield lock


def lock_of(mail: Path) -> Lock | None:
    """The lock of that mail; None if it has none. Raises OSError where the writers cannot be listed."""
    return _read_lock(mail, _makers(mail.parent))


def orphans(directory: Path, mails: Iterable[str]) -> dict[str, str]:
    """Those locked mails of a spool whose writer has died or is unknown, by name: the name of the writer, "" if unknown.

    A lock is read only where the mail's name is not that of a living process. Raises OSError.
    """
    alive: dict[str, bool | None] = {name: is_alive(directory, name) for name in names_of_writers(directory)}
    living = {found[1] for name, is_living in alive.items() if is_living and (found := _NAME.fullmatch(name))}
    dead = {}
    for mail in mails:
        if spool.process_id_in(mail) not in living:
            lock = _read_lock(directory / mail, {})
            if lock is not None and not alive.get(lock.writer):
                dead[mail] = lock.writer if lock.writer in alive else ""
    return dead


def _makers(directory: Path) -> dict[str, str]:
    """The name of the writer for what the names that it makes end with."""
    return {_NAME.fullmatch(name)[1]: name for name in names_of_writers(directory)}    # type: ignore[index]


def _read_lock(mail: Path, makers: Mapping[str, str]) -> Lock | None:
    path = spool.lock_path(mail)
    try:
        status = os.lstat(path)
        if not stat.S_ISREG(status.st_mode):
            return None
        writer, _, token = spool.read_note(path, "Transaction").partition(" ")
    except FileNotFoundError:
        return None
    except OSError:
        writer = token = ""
    if not token and not os.path.lexists(mail):    # its writer had not yet come to say who it is
        return Lock(mail, makers.get(spool.process_id_in(mail.name), ""), "")
    return Lock(mail, writer if token else "", token)

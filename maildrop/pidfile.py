"""The pid file: locked as long as its daemon lives, so that a stale one never looks like a live daemon."""

from __future__ import annotations

import fcntl
import os
import time
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from maildrop.paths import open_to_read, open_to_write

_MODE = 0o644    # everybody who gets there may know whether the daemon runs
_LONGEST = 20    # bytes in a pid file
_LARGEST_PID = 2**31 - 1    # what a process id can be
_PATIENCE_S = 1.0    # somebody may hold the lock for a moment to look


class AlreadyRunning(Exception):
    """Another daemon holds the pid file; says which."""


class PidFile:
    """A pid file that is ours."""

    def __init__(self, path: Path):
        """Create or take over the file and lock it.

        Raises AlreadyRunning, or OSError where it cannot be written, or another account may have planted it.
        """
        self.path = path
        deadline = time.monotonic() + _PATIENCE_S
        while True:
            self._descriptor = open_to_write(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, _MODE)
            with suppress(PermissionError):    # it may be somebody else's
                os.fchmod(self._descriptor, _MODE)    # whatever the umask
            try:
                fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                pid = _read_pid(self._descriptor)
                os.close(self._descriptor)
                if time.monotonic() > deadline:
                    raise AlreadyRunning(_already(path, pid)) from None
                time.sleep(0.02)
                continue
            if self._is_at_path():
                break
            os.close(self._descriptor)    # its last owner removed it between open and lock
        pid = _read_pid(self._descriptor)
        if _looks_like_2_3(pid):
            os.close(self._descriptor)
            raise AlreadyRunning(f"{path} seems to be that of a daemon of version 2.3, process {pid}; stop it, or remove the file")

    def write(self) -> None:
        """Put this process's id into the file."""
        os.ftruncate(self._descriptor, 0)
        os.pwrite(self._descriptor, b"%d\n" % os.getpid(), 0)

    def remove(self) -> None:
        """This process ends: the file goes, unless it is somebody else's by now. Never raises: unlocked, it tells enough."""
        with suppress(OSError):
            if self._is_at_path():
                self.path.unlink()
        os.close(self._descriptor)

    def _is_at_path(self) -> bool:
        try:
            there = os.stat(self.path, follow_symlinks=False)
        except FileNotFoundError:
            return False
        ours = os.fstat(self._descriptor)
        return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


class Holder(NamedTuple):
    """The daemon that holds a pid file."""

    pid: int
    uid: int    # whose the file is


def running_pid(path: Path) -> int | None:
    """The process id of the daemon that holds this pid file, None if there is none.

    Raises OSError where the file is there but cannot be read.
    """
    found = holder(path)
    return found and found.pid


def holder(path: Path) -> Holder | None:
    """The daemon that holds this pid file, None if there is none.

    Raises OSError where the file is there but cannot be read.
    """
    deadline = time.monotonic() + _PATIENCE_S
    while True:
        try:
            descriptor = open_to_read(path, follow=False)    # root would signal what somebody else's link leads to
        except FileNotFoundError:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            pid = _read_pid(descriptor)
            if pid:
                return Holder(pid, os.fstat(descriptor).st_uid)
            if time.monotonic() > deadline:
                return None
            time.sleep(0.02)    # it has just started and is about to write its id
            continue
        finally:
            os.close(descriptor)
        return None


def _read_pid(descriptor: int) -> int | None:
    try:
        text = os.pread(descriptor, _LONGEST + 1, 0)
    except OSError:
        return None
    pid = int(text) if len(text) <= _LONGEST and text.strip().isdigit() else 0
    return pid if 0 < pid <= _LARGEST_PID else None


def _looks_like_2_3(pid: int | None) -> bool:
    """Whether that may be a running daemon of version 2.3, which did not lock its pid file."""
    if pid is None or pid == os.getpid():
        return False
    try:
        return b"maildrop.py" in Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return False


def _already(path: Path, pid: int | None) -> str:
    return f"a maildrop daemon is already running{f' as process {pid}' if pid else ''}; it holds {path}"

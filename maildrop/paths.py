"""Directories and files in places where other accounts may have put something of theirs.

Whoever may write to a directory can put a link or a directory of his own where we look for ours. In a directory that
everybody may write to, /tmp for one, we use what belongs to us or to root, and follow no link. Elsewhere links are the
administrator's; as root we follow there only root's, since other accounts may write to directories of theirs.

What has been found safe stays so: in a directory with the sticky bit nobody can replace what is ours. Without that bit
everybody can, at any time; ``permissions`` warns of it.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

_MOST_LINKS = 40
_NO_TRAPS = os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC    # a FIFO or a device may be there
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


class UnsafePath(OSError):
    """A path that another account may have planted; ``strerror`` says what is wrong with ``filename``."""

    def __init__(self, path: str, reason: str):
        super().__init__(errno.EPERM, reason, path)

    def __str__(self) -> str:
        return f"{self.filename} {self.strerror}"


def make_directory(path: Path, mode: int) -> None:
    """Make a directory and those above it, each with ``mode`` whatever the umask. What is there keeps its mode.

    Raises UnsafePath, and OSError where it cannot be made.
    """
    _walk(path, mode)


def check(path: Path) -> None:
    """Raises UnsafePath if another account may have planted the directory, FileNotFoundError if it is missing."""
    _walk(path)


def nearest(path: Path) -> Path:
    """The directory itself, or the nearest one above it that is there. Raises OSError, UnsafePath among them."""
    while True:
        try:
            check(path)
            return path
        except FileNotFoundError:
            path = path.parent


def give_directory(path: Path, mode: int, uid: int, gid: int) -> None:
    """As root, make the first missing directory of a path and give it to an account, which can make the others itself.

    What is below a directory of that account is not touched: it may be a trap. Raises UnsafePath, OSError.
    """
    _walk(path, mode, (uid, gid))


def open_to_write(path: Path, flags: int, mode: int) -> int:
    """Open a file, or create it with ``mode``, for writing; its directory has to be there.

    Raises UnsafePath where another account may have planted the file, OSError.
    """
    directory = _walk(path.parent)
    if not _is_exposed(directory):
        return os.open(path, flags | _NO_TRAPS, mode)
    try:
        descriptor = os.open(path, flags | _NO_TRAPS | os.O_NOFOLLOW, mode)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise UnsafePath(str(path), "is a link that another account may have made") from None
        raise
    status = os.fstat(descriptor)
    # A second name would make us write to a file that is somewhere else
    if stat.S_ISREG(status.st_mode) and status.st_nlink == 1 and status.st_uid in _trusted(directory):
        return descriptor
    os.close(descriptor)
    raise UnsafePath(str(path), "is not a plain file of this account, and another one may have made it")


def open_to_read(path: Path, follow: bool = True) -> int:
    """Open a regular file for reading, without waiting for the other end of a FIFO. Raises OSError.

    ``follow``: it may be a link, or have another name, unless everybody may write to its directory.
    """
    if follow:
        follow = not os.stat(path.parent).st_mode & stat.S_IWOTH
    descriptor = os.open(path, os.O_RDONLY | _NO_TRAPS | (0 if follow else os.O_NOFOLLOW))
    status = os.fstat(descriptor)
    if stat.S_ISREG(status.st_mode) and (follow or status.st_nlink <= 1):
        return descriptor
    os.close(descriptor)
    raise OSError(errno.EINVAL, "no regular file", str(path))


def _is_exposed(directory: os.stat_result) -> bool:
    """Whether accounts that we do not trust may write to it. Root trusts no other one."""
    if os.geteuid() == 0:
        return directory.st_uid != 0 or bool(directory.st_mode & (stat.S_IWGRP | stat.S_IWOTH))
    return bool(directory.st_mode & stat.S_IWOTH)


def _trusted(directory: os.stat_result, uid: int | None = None) -> set[int]:
    """Whose files and directories we use in this directory. ``uid``: ours, if it is not this process's."""
    trusted = {0, os.geteuid() if uid is None else uid}
    return trusted if directory.st_mode & stat.S_IWOTH else trusted | {directory.st_uid}


def _walk(path: Path, mode: int | None = None, owner: tuple[int, int] | None = None) -> os.stat_result:
    """Look at each step of the way, making what is missing if there is a ``mode``. Returns the directory it leads to.

    With ``owner``, only the first missing one is made, and what that account can reach is not looked at.
    """
    here, status = "/", os.lstat("/")
    steps = _steps(str(path))
    links = 0
    while steps:
        if owner and status.st_uid == owner[0] != 0:
            return status
        name = steps.pop()
        if name == "..":
            here = os.path.dirname(here)
            status = os.lstat(here)
            continue
        step = os.path.join(here, name)
        try:
            found = os.lstat(step)
        except FileNotFoundError:
            if mode is None:
                raise
            made = _make(step, mode, owner, status)
            if owner and made is not None:
                return made
            found = made or os.lstat(step)
        _judge(step, found, status, owner)
        if stat.S_ISLNK(found.st_mode):
            links += 1
            if links > _MOST_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
            target = os.readlink(step)
            steps += _steps(target)
            if target.startswith("/"):
                here, status = "/", os.lstat("/")
        elif stat.S_ISDIR(found.st_mode):
            here, status = step, found
        else:
            raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), step)
    return status


def _steps(path: str) -> list[str]:
    """The names in a path, the last one first."""
    return [name for name in reversed(path.split("/")) if name not in ("", ".")]


def _judge(step: str, found: os.stat_result, parent: os.stat_result, owner: tuple[int, int] | None) -> None:
    is_open = bool(parent.st_mode & stat.S_IWOTH)
    is_link = stat.S_ISLNK(found.st_mode)
    if is_open and is_link:
        raise UnsafePath(step, "is a link in a directory that everybody may write to")
    if is_open and found.st_uid not in _trusted(parent, owner and owner[0]):
        raise UnsafePath(step, f"belongs to another account ({found.st_uid}), in a directory that everybody may write to")
    if is_link and os.geteuid() == 0 and found.st_uid != 0:
        raise UnsafePath(step, f"is a link of another account ({found.st_uid}), which root does not follow")


def _make(step: str, mode: int, owner: tuple[int, int] | None, parent: os.stat_result) -> os.stat_result | None:
    """Make a directory; None where somebody else has just made it."""
    try:
        os.mkdir(step, mode & 0o700)
    except FileExistsError:
        return None
    try:
        descriptor = os.open(step, _DIRECTORY)
    except PermissionError:    # the umask has taken away even our own rights
        os.chmod(step, 0o700)
        descriptor = os.open(step, _DIRECTORY)
    try:
        if os.fstat(descriptor).st_uid != os.geteuid():
            raise UnsafePath(step, "was replaced by another account")
        if owner:
            os.fchown(descriptor, owner[0], -1 if parent.st_mode & stat.S_ISGID else owner[1])
        os.fchmod(descriptor, mode)
        return os.fstat(descriptor)
    finally:
        os.close(descriptor)

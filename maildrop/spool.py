"""The spool directory: format of a mail, states of a file, and the steps between them.

This is the contract between Zope, the daemon and every other program that writes mails.

A mail is one file directly in the spool::

    ##To:jane@example.com, "Doe, Jon" <jon@example.com>
    ##From:sender@example.com
    ##Attempts:1
    Subject: the message begins with the first line that does not begin with ##

    body

Line 1 has the recipients, ``##From:`` the sender, both as in a header field; further ``##KEY:value`` lines belong to the
envelope too, the last one of a key counts, unknown ones are kept. ``##Content:`` ends the envelope where the message
itself begins with ``##``. Lines end with LF or CRLF. A file that does not begin with ``##To:`` is no mail.

============================== ============ ===================================================================
on disk                        state        what comes next
============================== ============ ===================================================================
``NAME`` and ``NAME.lck``      locked       its writer removes the lock (due), or NAME and then the lock (gone)
``NAME``, mtime in the past    due          a daemon claims and sends it
``NAME``, mtime in the future  deferred     due when that time has come
``failed/NAME.N``              failed       a person decides
============================== ============ ===================================================================

Steps, and what a crash in the midst of one leaves behind:

* write: create ``NAME.lck``, then ``NAME``, both exclusively. A crash leaves a locked mail, never a half one that is due.
* release: remove ``NAME.lck``; one call.
* claim: open ``NAME`` and ``flock`` it, then look whether the path still names that file and no lock has appeared. The
  kernel ends the claim when the process dies.
* set aside, postpone: write a new file in ``tmp/``, complete with mode and mtime, and rename it. A crash leaves a file in
  ``tmp/`` that nobody holds; ``clean`` removes it.
* remove: unlink ``NAME``; one call.

A file whose name was not made here, without a lock, is left alone until it has not changed for two seconds: other programs
may still be writing it. Directories, dot-files, links, sockets, FIFOs and devices are no mails.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import re
import stat
import threading
import time
import uuid
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import BinaryIO

from maildrop.envelope import Envelope

LOCK_SUFFIX = ".lck"
FAILED = "failed"
TMP = "tmp"
LONGEST_DELAY_S = 4 * 3600    # an mtime further ahead was not set by a daemon
SETTLED_S = 2
_LARGEST_ENVELOPE = 16 * 1024 * 1024
_LARGEST_HEADER = 1024 * 1024
_CHUNK = 64 * 1024
_LATEST_S = 32503680000.0    # the year 3000: what can be written as a date


class SpoolBusy(Exception):
    """Not ours to send now: locked, claimed by another process, deferred, or gone."""


class NotAMail(Exception):
    """A file that is none of our business and stays where it is; says why."""


class MalformedMail(ValueError):
    """A file that begins like a mail but cannot be sent; says why."""


# -- names --

_OUR_NAME = re.compile(r"\d{8}T\d{6}\.\d{6}-[0-9a-f]{8}")
_last_us = 0
_name_lock = threading.Lock()


def new_name() -> str:
    """A name no other writer makes; names of one process sort by the order in which they were asked for."""
    global _last_us
    with _name_lock:
        _last_us = max(_last_us + 1, time.time_ns() // 1000)
        seconds, microseconds = divmod(_last_us, 1_000_000)
    stamp = datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y%m%dT%H%M%S")
    return f"{stamp}.{microseconds:06}-{uuid.uuid4().hex[:8]}"


def lock_path(path: Path) -> Path:
    return path.with_name(path.name + LOCK_SUFFIX)


def make_spool(directory: Path, mode: int) -> None:
    """Make the spool and the directories in it as far as they are missing. ``mode``: of a directory."""
    for path in (directory, directory / FAILED, directory / TMP):
        make_directory(path, mode)


def make_directory(path: Path, mode: int) -> None:
    """Make a directory and those above it, each with ``mode`` whatever the umask."""
    if path.is_dir():
        return
    if path.parent != path:
        make_directory(path.parent, mode)
    try:
        path.mkdir(mode & 0o700)
    except FileExistsError:
        if not path.is_dir():
            raise
    else:
        path.chmod(mode)


# -- writing --


class Draft:
    """A mail of our own, from its first byte to the end of its lock."""

    def __init__(self, path: Path, mode: int = 0o600):
        self.path = path
        self.mode = mode

    def write(self, sender: str, recipients: str, content: bytes, notes: Mapping[str, str] | None = None) -> None:
        """Put the mail in the spool, locked. ``notes``: further envelope lines.

        Raises OSError if it cannot be written; then nothing of it is left.
        """
        envelope = {"To": recipients, "From": sender, **(notes or {})}
        head = _format_envelope(envelope.items(), content[:2])
        lock = lock_path(self.path)
        os.close(_create(lock, self.mode))
        try:
            with os.fdopen(_create(self.path, self.mode), "wb") as stream:
                try:
                    stream.write(head)
                    stream.write(content)
                    stream.flush()
                except BaseException:
                    self.path.unlink()
                    raise
        except BaseException:
            lock.unlink()
            raise

    def release(self) -> None:
        """Take the lock away: from now on the mail is due."""
        lock_path(self.path).unlink(missing_ok=True)

    def discard(self) -> None:
        """Take the mail away, then its lock: at no time is it there without one."""
        self.path.unlink(missing_ok=True)
        lock_path(self.path).unlink(missing_ok=True)


def _create(path: Path, mode: int) -> int:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    if mode & 0o077:    # what the umask may have taken away
        os.fchmod(descriptor, mode)
    return descriptor


def _format_envelope(lines: Iterable[tuple[str, str]], content_begins: bytes) -> bytes:
    text = "".join(f"##{key}:{one_line(value)}\n" for key, value in lines)
    head = text.encode("utf-8", "surrogateescape")
    return head + b"##Content:\n" if content_begins.startswith(b"##") else head


def one_line(text: str) -> str:
    """``text`` without the line breaks that would end an envelope line."""
    return text.replace("\r", "").replace("\n", "")


# -- looking --


@dataclass(frozen=True)
class Scan:
    """What a look at a spool found."""

    due: list[Path]    # oldest first
    unsettled: bool    # there are strangers' files that were changed a moment ago


def scan(directory: Path, now: float) -> Scan:
    """List the mails that are due at ``now`` (seconds since the epoch). No file is opened.

    Raises OSError if the directory cannot be read.
    """
    with os.scandir(directory) as listing:
        entries = list(listing)
    names = {entry.name for entry in entries}
    due: list[tuple[int, str]] = []
    unsettled = False
    for entry in entries:
        if not _is_mail(entry, names):
            continue
        try:
            status = entry.stat(follow_symlinks=False)
        except OSError:    # gone since
            continue
        if not _is_settled(entry.name, status, now):
            unsettled = True
        elif _time_has_come(status, now):
            due.append((status.st_mtime_ns, entry.name))
    return Scan([directory / name for _, name in sorted(due)], unsettled)


def count(directory: Path) -> int:
    """How many mails are in a spool, locked and deferred ones included; 0 where there is no such directory."""
    try:
        with os.scandir(directory) as listing:
            return sum(_is_mail(entry, set()) for entry in listing)
    except FileNotFoundError:
        return 0


def _is_mail(entry: os.DirEntry[str], names: set[str]) -> bool:
    if entry.name.startswith(".") or entry.name.endswith(LOCK_SUFFIX):
        return False
    return entry.name + LOCK_SUFFIX not in names and entry.is_file(follow_symlinks=False)


def _is_settled(name: str, status: os.stat_result, now: float) -> bool:
    return _OUR_NAME.fullmatch(name) is not None or not 0 <= now - status.st_ctime < SETTLED_S


def _time_has_come(status: os.stat_result, now: float) -> bool:
    return status.st_mtime <= now or status.st_mtime > now + LONGEST_DELAY_S


# -- reading --


class SpooledMail:
    """A claimed mail. Close it to end the claim.

    ``content_start`` and ``content_size`` say where in ``stream`` the message lies; ``envelope`` is who gets it.
    """

    def __init__(self, path: Path, stream: BinaryIO, lines: list[tuple[str, str]], status: os.stat_result):
        self.path = path
        self.stream = stream
        self.status = status
        self.content_start = stream.tell()
        self.content_size = status.st_size - self.content_start
        self._lines = lines
        notes = dict(lines)
        self.queued_at = _parse_time(notes.get("Queued", ""), status.st_mtime)
        self.attempts = int(notes["Attempts"]) if re.fullmatch(r"\s*[0-9]{1,6}\s*", notes.get("Attempts", "")) else 0
        self._sender, self._recipients = notes.get("From", ""), notes["To"]

    @property
    def identity(self) -> str:
        """What tells this mail from every other one, the same in each attempt. A stranger may use a name again."""
        name = self.path.name
        if _OUR_NAME.fullmatch(name):
            return name
        digest = hashlib.sha256(os.fsencode(name)).hexdigest()[:8]
        readable = re.sub(r"[^A-Za-z0-9._+-]", "_", name)[:80]
        return f"{readable}-{_format_time(self.queued_at, '%Y%m%dT%H%M%S.%f')}-{digest}"

    def read_envelope(self) -> Envelope:
        """Who gets the mail.

        Raises MalformedEnvelope without a usable recipient or sender, MalformedMail without a message.
        """
        if self.content_size <= 0:
            raise MalformedMail("no message behind the envelope")
        return Envelope.parse(self._sender, self._recipients)

    def content(self) -> Iterator[bytes]:
        """The message in chunks. Raises OSError if the file has become shorter."""
        self.stream.seek(self.content_start)
        left = self.content_size
        while left > 0:
            chunk = self.stream.read(min(_CHUNK, left))
            if not chunk:
                raise OSError(f"{self.path} became shorter while it was read")
            left -= len(chunk)
            yield chunk

    def header(self) -> bytes:
        """The message's header fields, each line ended by LF: what stands before its first blank line, at most 1 MB."""
        self.stream.seek(self.content_start)
        text = self.stream.read(min(_LARGEST_HEADER, self.content_size))
        return re.split(rb"\A\n|\n\n", re.sub(rb"\r\n?", b"\n", text), maxsplit=1)[0]

    def lines_with(self, changes: Mapping[str, str]) -> list[tuple[str, str]]:
        """The envelope's lines with some of them replaced; To comes first."""
        merged = {**dict(self._lines), **changes}
        return [("To", merged.pop("To")), *merged.items()]

    def names_path(self) -> bool:
        """Whether the mail's path still leads to this very file."""
        try:
            there = os.stat(self.path, follow_symlinks=False)
        except OSError:
            return False
        return (there.st_dev, there.st_ino) == (self.status.st_dev, self.status.st_ino)

    def close(self) -> None:
        self.stream.close()

    def __enter__(self) -> SpooledMail:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def claim(path: Path, now: float) -> SpooledMail:
    """Take a mail that is due at ``now``, so that no other process sends it.

    Raises SpoolBusy, NotAMail, or OSError where the file cannot be read.
    """
    stream = _open_regular(path)
    try:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SpoolBusy(f"{path} is claimed by another process") from None
        status = os.fstat(stream.fileno())
        if not (_time_has_come(status, now) and _is_settled(path.name, status, now)):
            raise SpoolBusy(f"{path} is deferred")
        mail = SpooledMail(path, stream, _read_envelope_lines(stream), status)
        if not mail.names_path() or os.path.lexists(lock_path(path)):    # replaced or locked since it was listed
            raise SpoolBusy(f"{path} was locked or moved")
        return mail
    except BaseException:
        stream.close()
        raise


def _open_regular(path: Path) -> BinaryIO:
    """Open without following a link and without waiting for the other end of a FIFO."""
    flags = os.O_NOFOLLOW | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
    try:
        try:
            descriptor = os.open(path, os.O_RDWR | flags)    # what flock needs on some network file systems
        except OSError as error:
            if error.errno not in (errno.EACCES, errno.EPERM, errno.EROFS):
                raise
            descriptor = os.open(path, os.O_RDONLY | flags)
    except FileNotFoundError:
        raise SpoolBusy(f"{path} is gone") from None
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR, errno.ENODEV, errno.EACCES):
            raise NotAMail(os.strerror(error.errno)) from error
        raise
    stream = os.fdopen(descriptor, "rb")
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        stream.close()
        raise NotAMail("no regular file")
    return stream


def _read_envelope_lines(stream: BinaryIO) -> list[tuple[str, str]]:
    """Read up to the message; ``stream`` then stands at its first byte. Raises NotAMail."""
    if stream.read(5) != b"##To:":
        raise NotAMail("does not begin with ##To:")
    stream.seek(0)
    lines: list[tuple[str, str]] = []
    while stream.tell() < _LARGEST_ENVELOPE:
        start = stream.tell()
        line = stream.readline(_LARGEST_ENVELOPE)
        if not line.startswith(b"##"):
            stream.seek(start)
            return lines
        key, _, value = _decode(line[2:].rstrip(b"\r\n")).partition(":")
        if key == "Content":
            return lines
        lines.append((key, value))
    raise NotAMail("has no end of the envelope")


def _decode(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _format_time(seconds: float, form: str = "%Y-%m-%dT%H:%M:%S.%f+00:00") -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime(form)


def _parse_time(text: str, otherwise: float) -> float:
    try:
        seconds = datetime.fromisoformat(text.strip()).timestamp()
    except (ValueError, OverflowError):
        seconds = otherwise
    return min(max(seconds, 0.0), _LATEST_S)


# -- recording an attempt --


class Remainder:
    """A mail's next version, complete in ``tmp/``, for the recipients who still wait for it."""

    def __init__(self, path: Path, stream: BinaryIO):
        self.path = path
        self._stream = stream    # open as long as it is needed: its flock keeps ``clean`` off

    def close(self) -> None:
        self._stream.close()

    def drop(self) -> None:
        """It is not needed after all."""
        self.path.unlink(missing_ok=True)
        self.close()


def draft_remainder(mail: SpooledMail, recipients: Iterable[str], due_at: float, last_reply: str) -> Remainder:
    """Prepare the mail's next version: only these recipients, one attempt more, due at ``due_at``."""
    changes = {
        "To": ", ".join(recipients),
        "Queued": _format_time(mail.queued_at),
        "Attempts": str(mail.attempts + 1),
        "Last-Reply": last_reply,
    }
    return _copy(mail, changes, due_at)


def postpone(mail: SpooledMail, remainder: Remainder) -> None:
    """Put the remainder in the mail's place: one call, which also ends the claim."""
    if mail.names_path():
        os.rename(remainder.path, mail.path)
    else:    # taken away or replaced by somebody while it was on its way
        remainder.path.unlink()
    remainder.close()


def remove(mail: SpooledMail) -> None:
    """Nobody waits for the mail any more: one call."""
    if mail.names_path():
        mail.path.unlink(missing_ok=True)


def set_aside(mail: SpooledMail, recipients: Iterable[str] | None, reason: str, label: str) -> Path:
    """Keep a copy for these recipients (None: the list as it is) in ``failed/``, and say where.

    ``label`` names the attempt and the command that was refused: the same failure always gets the same name, so doing it
    again after a crash changes nothing.
    """
    changes = {"Queued": _format_time(mail.queued_at), "Attempts": str(mail.attempts + 1), "Failed": reason}
    if recipients is not None:
        changes["To"] = ", ".join(recipients)
    kept = mail.path.parent / FAILED / f"{mail.identity}.{label}"
    copy = _copy(mail, changes, time.time())
    os.rename(copy.path, kept)
    copy.close()
    return kept


def _copy(mail: SpooledMail, changes: Mapping[str, str], mtime: float) -> Remainder:
    """A new file in ``tmp/`` with the mail's content, mode and owner, and other envelope lines."""
    path = mail.path.parent / TMP / f"{new_name()}"
    stream = os.fdopen(_create(path, stat.S_IMODE(mail.status.st_mode)), "wb")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX)
        if mail.status.st_uid != os.geteuid() or mail.status.st_gid != os.getegid():
            with suppress(PermissionError):
                os.fchown(stream.fileno(), mail.status.st_uid, mail.status.st_gid)
        mail.stream.seek(mail.content_start)
        stream.write(_format_envelope(mail.lines_with(changes), mail.stream.read(2)))
        for chunk in mail.content():
            stream.write(chunk)
        stream.flush()
        os.utime(stream.fileno(), (mtime, mtime))
        return Remainder(path, stream)
    except BaseException:
        path.unlink(missing_ok=True)
        stream.close()
        raise


def clean(directory: Path) -> None:
    """Remove what a process that has died left in ``tmp/``."""
    with suppress(OSError), os.scandir(directory / TMP) as entries:
        for entry in entries:
            with suppress(OSError, SpoolBusy, NotAMail), _open_regular(Path(entry.path)) as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - os.fstat(stream.fileno()).st_ctime > SETTLED_S:    # not between open and flock
                    os.unlink(entry.path)

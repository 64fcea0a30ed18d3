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
``NAME`` and ``NAME.lck``      locked       its writer removes the lock (due), or NAME and then the lock (gone);
                                            if the writer has died, Zope does when it starts, or a person
``NAME.lck``                   locked       its writer makes NAME, or removes the lock
``NAME``, mtime in the past    due          a daemon claims and sends it
``NAME``, mtime in the future  deferred     due when that time has come
``failed/NAME.N``              failed       a person decides
============================== ============ ===================================================================

Steps, and what a crash in the midst of one leaves behind:

* write: create ``NAME.lck``, then ``NAME``, both exclusively. A crash leaves a locked mail, never a half one that is due.
  Our own writers write the mail as ``NAME.lck`` and then give that file a second name, where files can have two.
  The line ``##Transaction:WRITER TOKEN`` in the lock says whose it is, see ``writers``. A lock without is a stranger's.
* release: remove ``NAME.lck``; one call. Then the daemons may be told in ``wake/``, see ``wake``.
* claim: open ``NAME`` and ``flock`` it, then look whether the path still names that file and no lock has appeared. The
  kernel ends the claim when the process dies.
* set aside, postpone: write a new file in ``tmp/``, complete with mode and mtime, and rename it. A crash leaves a file in
  ``tmp/`` that nobody holds; ``clean`` removes it.
* remove: unlink ``NAME``; one call.
* set aside what a dead writer left, where its transaction is not known to have committed: as above, under a name that is
  always the same for the mail, with ``##Committed:`` in the envelope. Only then NAME goes, and then its lock: whatever
  crashes in between, the mail is locked until that is done again.

What a step relies on is on the disk before it: a mail and its directory before the lock goes, a copy in ``failed/`` and its
directory before the mail changes. Removals and renames in the spool itself are flushed by whoever makes many of them, now
and then: a power cut may send those mails twice, and loses none.

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
from datetime import datetime, timezone
from functools import lru_cache
from io import FileIO
from itertools import chain, islice
from pathlib import Path
from typing import BinaryIO, NamedTuple

from maildrop.envelope import Envelope, MalformedEnvelope, parse_sender
from maildrop.paths import check as check_directory
from maildrop.paths import make_directory

LOCK_SUFFIX = ".lck"
FAILED = "failed"
TMP = "tmp"
LONGEST_DELAY_S = 4 * 3600    # an mtime further ahead was not set by a daemon
SETTLED_S = 2
_LARGEST_ENVELOPE = 16 * 1024 * 1024
_MOST_ENVELOPE_LINES = 10_000
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

_OUR_NAME = re.compile(r"[0-9]{8}T[0-9]{6}\.[0-9]{6}-([0-9a-f]{8})")    # and no other digits than these
_last_us = 0
_name_lock = threading.Lock()
_process_id = ""


def _begin_process() -> None:
    global _process_id, _name_lock
    _process_id = uuid.uuid4().hex[:8]
    _name_lock = threading.Lock()    # a thread that is not in the fork may hold the other one


_begin_process()
os.register_at_fork(after_in_child=_begin_process)


def process_id() -> str:
    """What the names that this process makes end with; a fork has one of its own."""
    return _process_id


def process_id_in(name: str) -> str:
    """The ``process_id`` of who made that name; "" for a name that is not of our making."""
    found = _OUR_NAME.fullmatch(name)
    return found[1] if found else ""


def new_name() -> str:
    """A name no other writer makes; names of one process sort by the order in which they were asked for."""
    global _last_us
    with _name_lock:
        _last_us = max(_last_us + 1, time.time_ns() // 1000)
        seconds, microseconds = divmod(_last_us, 1_000_000)
    return f"{_stamp(seconds)}.{microseconds:06}-{_process_id}"


@lru_cache(maxsize=1)    # names that are asked for in one second begin alike
def _stamp(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime("%Y%m%dT%H%M%S")


def is_our_name(name: str) -> bool:
    """Whether ``new_name`` made it: then its writer keeps a lock beside the file for as long as it is not complete."""
    return _OUR_NAME.fullmatch(name) is not None


def lock_path(path: Path) -> Path:
    return path.with_name(path.name + LOCK_SUFFIX)


def make_spool(directory: Path, mode: int) -> None:
    """Make the spool and the directories in it as far as they are missing. ``mode``: of a directory.

    Raises UnsafePath where another account may have planted one of them, OSError.
    """
    for path in (directory, directory / FAILED, directory / TMP):
        make_directory(path, mode)


def check_spool(directory: Path) -> None:
    """Raises UnsafePath where another account may have planted the spool or a directory in it."""
    for path in (directory, directory / FAILED, directory / TMP):
        with suppress(FileNotFoundError):
            check_directory(path)


# -- writing --


class Draft:
    """A mail of our own, from its first byte to the end of its lock."""

    def __init__(self, path: Path, mode: int = 0o600, durable: bool = True):
        """``durable``: whether ``flush`` and ``publish`` make sure that the mail survives a power cut."""
        self.path = path
        self.directory = path.parent
        self.mode = mode
        self.durable = durable
        self._lock = f"{path}{LOCK_SUFFIX}"

    def write(self, sender: str, recipients: str, content: bytes, notes: Mapping[str, str] | None = None) -> None:
        """Put the mail in the spool, locked. ``notes``: further envelope lines.

        Raises OSError if it cannot be written; then nothing of it is left.
        """
        envelope = {"To": recipients, "From": sender, **(notes or {})}
        parts = [_format_envelope(envelope.items(), content[:2]), content]
        descriptor = _create(self._lock, self.mode)
        try:
            _write_and_close(descriptor, parts)
            linked = self._link()
        except BaseException:
            with suppress(OSError):    # then it stays locked
                self._take_back()
            raise
        if not linked:
            self._write_copy(parts)

    def _link(self) -> bool:
        """Give the file its second name: cheaper by far than a second file. False where that is not possible."""
        try:
            # Never what a symbolic link of that name leads to, as Python 3.14 would by default
            os.link(self._lock, self.path, follow_symlinks=False)
        except (FileExistsError, FileNotFoundError):    # somebody else's mail; or the lock has gone
            raise
        except (OSError, NotImplementedError):    # a file has one name here; else the copy will fail for the same reason
            return False
        return True

    def _take_back(self) -> None:
        with suppress(FileNotFoundError):
            if os.path.samestat(os.lstat(self.path), os.lstat(self._lock)):    # else it is somebody else's mail
                os.unlink(self.path)
        self.release()

    def _write_copy(self, parts: list[bytes]) -> None:
        try:
            _write_and_close(_create(self.path, self.mode), parts)
        except FileExistsError:    # somebody else's mail
            self.release()
            raise
        except BaseException:
            with suppress(OSError):    # then it stays locked
                self.discard()
            raise

    def begin_flush(self) -> None:
        """Have the disk begin to take the mail. With many begun, ``flush`` takes a fraction of the time."""
        if self.durable:
            with suppress(OSError, AttributeError):    # the latter where there is no such call
                descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
                try:
                    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)    # Linux writes it out first
                finally:
                    os.close(descriptor)

    def flush(self) -> None:
        """Put the mail's bytes on the disk; its directory is the caller's. Raises OSError."""
        if self.durable:
            _flush(self.path)

    def publish(self) -> None:
        """Let the mail go and have it on the disk when this returns. Raises OSError; then nothing of it is left."""
        try:
            self.flush()
            if self.durable:
                flush_directory(self.directory)
            self.release()
        except OSError:
            self.discard()
            raise
        if self.durable:
            with suppress(OSError):    # the mail is due: too late for an error
                flush_directory(self.directory)

    def release(self) -> None:
        """Take the lock away: from now on the mail is due."""
        _unlink(self._lock)

    def discard(self) -> None:
        """Take the mail away, then its lock: at no time is it there without one."""
        _unlink(self.path)
        self.release()


def flush_directory(directory: Path) -> None:
    """Put the names in a directory on the disk: what was created, renamed and removed there. Raises OSError."""
    _flush(directory)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _create(path: Path | str, mode: int) -> int:
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC | os.O_NOFOLLOW, mode)
    if mode & 0o077:    # what the umask may have taken away
        try:
            os.fchmod(descriptor, mode)
        except OSError:
            try:
                os.close(descriptor)
            finally:
                _unlink(path)
            raise
    return descriptor


def _write_and_close(descriptor: int, parts: list[bytes]) -> None:
    """Write the parts one after the other, without a copy of them."""
    try:
        left = [memoryview(part) for part in parts if part]
        while left:
            written = os.writev(descriptor, left)
            while left and written >= len(left[0]):
                written -= len(left.pop(0))
            if left:
                left[0] = left[0][written:]
    finally:
        os.close(descriptor)


def _unlink(path: Path | str) -> None:
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass


def _format_envelope(lines: Iterable[tuple[str, str]], content_begins: bytes) -> bytes:
    text = "".join(f"##{key}:{one_line(value)}\n" for key, value in lines)
    head = text.encode("utf-8", "surrogateescape")
    return head + b"##Content:\n" if content_begins.startswith(b"##") else head


def one_line(text: str) -> str:
    """``text`` without the line breaks that would end an envelope line."""
    return text.replace("\r", "").replace("\n", "")


# -- states --


def is_settled(name: str, status: os.stat_result, now: float) -> bool:
    """Whether the file is complete as far as one can tell without its lock."""
    return abs(now - status.st_ctime) >= SETTLED_S or is_our_name(name)


def time_has_come(status: os.stat_result, now: float) -> bool:
    """Whether the mail is not deferred, or no longer."""
    return status.st_mtime <= now or status.st_mtime > now + LONGEST_DELAY_S    # more was not set by a daemon


# -- reading --


class _Head(NamedTuple):
    """What was read of a file to find its message."""

    lines: list[tuple[str, str]]    # of the envelope
    content_start: int
    content_begins: bytes    # what came with it, so that it need not be read again: at most a chunk


class SpooledMail:
    """A claimed mail. Close it to end the claim.

    ``content_start`` and ``content_size`` say where in ``stream`` the message lies, whatever the stream's own position.
    """

    def __init__(self, path: Path | str, stream: BinaryIO | FileIO, head: _Head, durable: bool):
        self.location = location = os.fspath(path)    # a Path is made for those who want one: it takes as long as a call
        self.name = location.rpartition("/")[2]
        self.stream = stream
        self.durable = durable    # whether what is recorded of it has to survive a power cut
        self.status = status = os.fstat(stream.fileno())
        self.content_start = head.content_start
        self.content_size = status.st_size - head.content_start
        self._content_begins = head.content_begins
        self._lines = head.lines
        self.notes = notes = dict(head.lines)    # what the envelope says, by key
        # Its ctime is when it came, also where a stranger set an mtime of his own; later versions of it say so themselves.
        self.queued_at = min(_parse_time(notes.get("Queued", ""), status.st_ctime), max(status.st_ctime, 0.0))
        self.attempts = _parse_count(notes.get("Attempts", ""))
        self.lost_sessions = _parse_count(notes.get("Lost-Sessions", ""))
        self.recipients_text = notes["To"]    # as it stands there
        self.is_unsettled = "Committed" in notes    # its transaction is not known to have committed, see set_orphan_aside
        self._sender_text = notes.get("From", "")

    @property
    def path(self) -> Path:
        return Path(self.location)

    @property
    def identity(self) -> str:
        """What tells this mail from every other one, the same in each attempt. A stranger may use a name again."""
        name = self.name
        if is_our_name(name):
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
        return Envelope.parse(self._sender_text, self.recipients_text)

    def read_sender(self) -> str:
        """Who hears of a failure: "" for nobody, also where there is no usable sender."""
        try:
            return parse_sender(self._sender_text)
        except MalformedEnvelope:
            return ""

    def content(self) -> Iterator[bytes]:
        """The message in chunks, as often as it is asked for. Raises OSError if the file has become shorter."""
        return self._beginning(self.content_size)

    def header(self) -> bytes:
        """The message's header fields, each line ended by LF: what stands before its first blank line, at most 1 MB."""
        text = self._content_begins
        end = _end_of_header(text)
        if end is None and len(text) < self.content_size:
            text = b"".join(self._beginning(min(_LARGEST_HEADER, self.content_size)))
            end = _end_of_header(text)
        header = text[:end]
        return _CR.sub(b"\n", header) if b"\r" in header else header

    def body(self) -> Iterator[bytes]:
        """The message's body in chunks, as it stands there: what comes after the first blank line, if that is within 1 MB."""
        text = b"".join(self._beginning(min(_LARGEST_HEADER, self.content_size)))
        blank = _EMPTY_HEADER.match(text) or _BLANK_LINE.search(text)
        if blank:
            yield text[blank.end() :]
            done = len(text)
            while done < self.content_size:
                chunk = os.pread(self.stream.fileno(), min(_CHUNK, self.content_size - done), self.content_start + done)
                if not chunk:
                    raise OSError(f"{self.path} became shorter while it was read")
                yield chunk
                done += len(chunk)

    def _beginning(self, size: int) -> Iterator[bytes]:
        chunk = self._content_begins[: max(size, 0)]
        done = 0
        while done < size:
            if not chunk:
                chunk = os.pread(self.stream.fileno(), min(_CHUNK, size - done), self.content_start + done)
            if not chunk:
                raise OSError(f"{self.path} became shorter while it was read")
            yield chunk
            done += len(chunk)
            chunk = b""

    def lines_with(self, changes: Mapping[str, str]) -> list[tuple[str, str]]:
        """The envelope's lines with some of them replaced; To comes first."""
        merged = {**dict(self._lines), **changes}
        return [("To", merged.pop("To")), *merged.items()]

    def names_path(self) -> bool:
        """Whether the mail's path still leads to this very file. Raises OSError where that cannot be told."""
        try:
            there = os.lstat(self.location)
        except (FileNotFoundError, NotADirectoryError):
            return False
        return (there.st_dev, there.st_ino) == (self.status.st_dev, self.status.st_ino)

    def close(self) -> None:
        self.stream.close()

    def __enter__(self) -> SpooledMail:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()


def claim(path: Path | str, now: float, durable: bool = True) -> SpooledMail:
    """Take a mail that is due at ``now`` (infinity: whenever it is due), so that no other process sends it.

    Raises SpoolBusy, NotAMail, or OSError where the file cannot be read.
    """
    location = os.fspath(path)
    if location.endswith(LOCK_SUFFIX):    # which may be a locked mail's other name
        raise NotAMail("a lock")
    stream, status = _open_regular(location)
    try:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise SpoolBusy(f"{path} is claimed by another process") from None
        if not (time_has_come(status, now) and is_settled(location.rpartition("/")[2], status, now)):
            raise SpoolBusy(f"{path} is deferred")
        mail = SpooledMail(location, stream, _read_envelope_lines(stream), durable)
        released = mail.status.st_nlink < status.st_nlink    # its lock was its second name: only the ctime tells
        if (mail.status.st_size, mail.status.st_mtime_ns) != (status.st_size, status.st_mtime_ns) or (
            mail.status.st_ctime_ns != status.st_ctime_ns and not released
        ):
            raise SpoolBusy(f"{path} is being written")
        # Since it was listed it may have been locked, replaced or moved. An abort removes the mail before the lock: if there
        # is no lock now, and then the mail is still there, it is not being aborted.
        if os.path.lexists(location + LOCK_SUFFIX) or not mail.names_path():
            raise SpoolBusy(f"{path} was locked or moved")
        return mail
    except BaseException:
        stream.close()
        raise


def look_at(path: Path) -> SpooledMail:
    """A mail to be read and nothing else: it is not claimed, and whoever may change or remove it does so meanwhile.

    Raises SpoolBusy where it is gone, NotAMail, or OSError where the file cannot be read.
    """
    stream, _ = _open_regular(path)
    try:
        return SpooledMail(path, stream, _read_envelope_lines(stream), durable=False)
    except BaseException:
        stream.close()
        raise


def _open_regular(path: Path | str) -> tuple[FileIO, os.stat_result]:
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
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        os.close(descriptor)
        raise NotAMail("no regular file")
    return FileIO(descriptor, "rb"), status


def _read_envelope_lines(stream: BinaryIO | FileIO) -> _Head:
    """Read up to the message and a little more, wherever ``stream`` stands. Raises NotAMail."""
    data = os.pread(stream.fileno(), _CHUNK, 0)
    if not data.startswith(b"##To:"):
        raise NotAMail("does not begin with ##To:")
    lines: list[tuple[str, str]] = []
    start = 0
    while start < _LARGEST_ENVELOPE and len(lines) < _MOST_ENVELOPE_LINES:
        end = data.find(b"\n", start) + 1
        if not end:
            data = _with_whole_line(stream, data, start)
            end = data.find(b"\n", start) + 1 or len(data)
        if not data.startswith(b"##", start):
            return _Head(lines, start, data[start : start + _CHUNK])
        key, _, value = _decode(data[start + 2 : end].rstrip(b"\r\n")).partition(":")
        start = end
        if key == "Content":
            return _Head(lines, start, data[start : start + _CHUNK])
        lines.append((key, value))
    raise NotAMail("has no end of the envelope")


def _with_whole_line(stream: BinaryIO | FileIO, data: bytes, start: int) -> bytes:
    """``data`` and as much more of the file as it takes to end the line at ``start``, if that is one of the envelope."""
    end = -1
    searched = start
    while end < 0 and b"##".startswith(data[start : start + 2]) and len(data) - start < _LARGEST_ENVELOPE:
        more = os.pread(stream.fileno(), max(_CHUNK, len(data)), len(data))    # each time twice as much: linear time
        if not more:
            break
        searched, data = len(data), data + more
        end = data.find(b"\n", searched)
    return data


# A CR alone ends a line too; the one of CR LF must not count as a line of its own
_BLANK_LINE = re.compile(rb"(?:\r\n|\n|\r(?!\n))(?:\r\n?|\n)")
_EMPTY_HEADER = re.compile(rb"\r\n?|\n")
_CR = re.compile(rb"\r\n?")


def _end_of_header(text: bytes) -> int | None:
    """Where the first blank line of a message begins, or the end of the line before it; None without one."""
    if text.startswith((b"\n", b"\r")):
        return 0
    end = text.find(b"\n\n")
    if end >= 0 and text.find(b"\r", 0, end) < 0:    # the usual mail
        return end
    blank = _BLANK_LINE.search(text)
    return blank and blank.start()


def read_note(path: Path, key: str) -> str:
    """The value of an envelope line in a file that may be a mail or its lock; "" where it has none, or is no mail.

    Raises OSError where it cannot be read.
    """
    try:
        with _open_regular(path)[0] as stream:
            return dict(_read_envelope_lines(stream).lines).get(key, "")
    except (NotAMail, SpoolBusy):
        return ""


def _decode(raw: bytes) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


def _format_time(seconds: float, form: str = "%Y-%m-%dT%H:%M:%S.%f+00:00") -> str:
    return datetime.fromtimestamp(seconds, timezone.utc).strftime(form)


def _parse_count(text: str) -> int:
    return int(text) if text and re.fullmatch(r"\s*[0-9]{1,6}\s*", text) else 0


def _parse_time(text: str, otherwise: float) -> float:
    try:
        seconds = datetime.fromisoformat(text.strip()).timestamp() if text else otherwise
    except (ValueError, OverflowError):
        seconds = otherwise
    return min(max(seconds, 0.0), _LATEST_S)


# -- recording an attempt --


class TmpMail:
    """A mail that is complete in ``tmp/`` and waits to be renamed to where it belongs."""

    def __init__(self, path: Path, stream: BinaryIO, durable: bool):
        self.path = path
        self._stream = stream    # open as long as it is needed: its flock keeps ``clean`` off, and later is the claim
        self._durable = durable

    def close(self) -> None:
        self._stream.close()

    def __enter__(self) -> TmpMail:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def drop(self) -> None:
        """It is not needed after all."""
        self.path.unlink(missing_ok=True)
        self.close()

    def as_mail(self, path: Path) -> SpooledMail:
        """The claimed mail that it has become at ``path``."""
        return SpooledMail(path, self._stream, _read_envelope_lines(self._stream), self._durable)


def draft_remainder(
    mail: SpooledMail, recipients: Iterable[str], due_at: float, attempts: int, last_reply: str, lost_sessions: int = 0
) -> TmpMail:
    """Prepare the mail's next version: only these recipients, so many attempts, due at ``due_at``."""
    changes = {
        "To": ", ".join(recipients),
        "Queued": _format_time(mail.queued_at),
        "Attempts": str(attempts),
        "Last-Reply": last_reply,
    }
    if lost_sessions:
        changes["Lost-Sessions"] = str(lost_sessions)
    return _copy(mail, mail.lines_with(changes), due_at)


def postpone(mail: SpooledMail, remainder: TmpMail) -> SpooledMail | None:
    """Put the remainder in the mail's place: one call. Returns the new mail, claimed; the old claim still has to be closed.

    None where the mail was taken away or replaced by somebody while it was on its way: then nothing is changed.
    """
    if not mail.names_path():
        remainder.drop()
        return None
    os.rename(remainder.path, mail.path)
    return remainder.as_mail(mail.path)


def remove(mail: SpooledMail) -> None:
    """Nobody waits for the mail any more: one call."""
    if mail.names_path():
        _unlink(mail.location)


def failed_path(mail: SpooledMail, label: str) -> Path:
    """Where ``set_aside`` keeps what failed. ``label`` tells the failures of one mail apart.

    The same failure always gets the same name, so that setting it aside again after a crash changes nothing.
    """
    return mail.path.parent / FAILED / f"{mail.identity}.{label}"


def set_aside(
    mail: SpooledMail, recipients: Iterable[str] | None, reason: str, label: str, attempts: int | None = None
) -> Path:
    """Keep a copy for these recipients (None: the list as it is) in ``failed/``; on the disk when this returns its path.

    ``attempts``: how many there were, if not just one more than the mail knows of.
    """
    changes = {"Queued": _format_time(mail.queued_at), "Attempts": str(attempts or mail.attempts + 1), "Failed": reason}
    if recipients is not None:
        changes["To"] = ", ".join(recipients)
    kept = failed_path(mail, label)
    copy = _copy(mail, mail.lines_with(changes), time.time())
    os.rename(copy.path, kept)
    copy.close()
    if mail.durable:
        flush_directory(kept.parent)
    return kept


def set_orphan_aside(path: Path, reason: str, is_known: bool) -> Path | None:
    """Keep a copy of a locked mail in ``failed/``; returns its path, None where there is no such mail.

    It says in ``##Committed:`` that its transaction did not commit (``is_known``), or that nobody knows. The mail itself
    stays, locked; before it goes, the caller has the copy and its directory on the disk. Raises OSError, NotAMail.
    """
    try:
        stream, _ = _open_regular(path)
    except SpoolBusy:
        return None
    with stream:
        mail = SpooledMail(path, stream, _read_envelope_lines(stream), durable=False)
        changes = {"Queued": _format_time(mail.queued_at), "Failed": reason, "Committed": "no" if is_known else "unknown"}
        kept = failed_path(mail, "0")
        with _copy(mail, mail.lines_with(changes), time.time()) as copy:
            os.rename(copy.path, kept)
    return kept


def add_whole(beside: SpooledMail, name: str, sender: str, recipients: str, content: bytes) -> None:
    """Put another mail into the spool of ``beside``, complete and due in one step, unless one of that name is there.

    Its bytes and its name are on the disk when this returns. Raises OSError.
    """
    path = _spool_of(beside.path) / name
    if path.exists():
        return
    new = _new_file(beside, [("To", recipients), ("From", sender)], [content], time.time())
    os.rename(new.path, path)
    new.close()
    if beside.durable:
        flush_directory(path.parent)


def hasten(mail: SpooledMail) -> None:
    """Make a deferred mail due now; how often it was tried, and since when it waits, stays known. Raises OSError."""
    try:
        os.utime(mail.stream.fileno())
    except PermissionError:    # a stranger's file that we may not write to
        hastened = postpone(mail, _copy(mail, mail.lines_with({}), time.time()))
        if hastened is None:
            raise SpoolBusy(f"{mail.path} was moved") from None
        hastened.close()


def renew(mail: SpooledMail) -> Path:
    """Make a mail due now that was deferred or has failed, as if it had never been tried. Returns its path.

    A failed mail is cleared first and then moved by one rename: at no time are there two of it.
    """
    notes = ("Queued", "Attempts", "Last-Reply", "Lost-Sessions", "Failed", "Committed")
    lines = [(key, value) for key, value in mail.lines_with({}) if key not in notes]
    copy = _copy(mail, lines, time.time())
    renewed = postpone(mail, copy)
    if renewed is None:
        raise SpoolBusy(f"{mail.path} was moved")
    with renewed:
        if mail.path.parent.name != FAILED:
            return mail.path
        path = mail.path.parent.parent / new_name()
        os.rename(mail.path, path)
        if mail.durable:
            flush_directory(path.parent)
        return path


def _spool_of(path: Path) -> Path:
    """The spool that a mail, waiting or failed, belongs to."""
    return path.parent.parent if path.parent.name == FAILED else path.parent


def _copy(mail: SpooledMail, lines: list[tuple[str, str]], mtime: float) -> TmpMail:
    """A new file in ``tmp/`` with the mail's content and these envelope lines; its bytes on the disk."""
    return _new_file(mail, lines, mail.content(), mtime)


def _new_file(beside: SpooledMail, lines: list[tuple[str, str]], content: Iterable[bytes], mtime: float) -> TmpMail:
    """A complete mail in ``tmp/``, with mode and owner of the mail ``beside`` it; its bytes on the disk."""
    path = _spool_of(beside.path) / TMP / new_name()
    stream = os.fdopen(_create(path, stat.S_IMODE(beside.status.st_mode)), "w+b")
    try:
        fcntl.flock(stream, fcntl.LOCK_EX)
        _give_like(stream.fileno(), beside.status)
        chunks = iter(content)
        begin = b"".join(islice(chunks, 2))    # the first alone may be a single byte
        stream.write(_format_envelope(lines, begin[:2]))
        for chunk in chain([begin], chunks):
            stream.write(chunk)
        stream.flush()
        os.utime(stream.fileno(), (mtime, mtime))
        if beside.durable:
            os.fsync(stream.fileno())
        return TmpMail(path, stream, beside.durable)
    except BaseException:
        path.unlink(missing_ok=True)
        stream.close()
        raise


def _give_like(descriptor: int, like: os.stat_result) -> None:
    """Give a new file to the owner and the group of another one, as far as this account may."""
    status = os.fstat(descriptor)
    if status.st_gid != like.st_gid:    # a group of ours may be given, a file only by root
        with suppress(PermissionError):
            os.fchown(descriptor, -1, like.st_gid)
    if status.st_uid != like.st_uid:
        with suppress(PermissionError):
            os.fchown(descriptor, like.st_uid, -1)


def clean(directory: Path) -> None:
    """Remove what a process that has died left in ``tmp/``."""
    with suppress(OSError), os.scandir(directory / TMP) as entries:
        for entry in entries:
            with suppress(OSError, SpoolBusy, NotAMail), _open_regular(Path(entry.path))[0] as stream:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if time.time() - os.fstat(stream.fileno()).st_ctime > SETTLED_S:    # not between open and flock
                    os.unlink(entry.path)

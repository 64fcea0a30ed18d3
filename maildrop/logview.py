"""Reading the maildrop log: its last lines, those that tell of a mail or an address, and the ones to come."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import suppress
from itertools import islice
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from maildrop.logfile import printable
from maildrop.paths import open_to_read

_CHUNK = 64 * 1024
_LONGEST_LINE = 128 * 1024    # bytes, more than a line of a hundred recipients has; longer ones are broken
_LOOK_EVERY_S = 0.2
_WORDS = {"OK": "delivered", "BAD": "deferred", "FATAL": "failed"}


class LogLine(NamedTuple):
    """A line of the log, taken apart as far as it tells of an attempt with a mail."""

    text: str    # printable, but for the TABs that the log has
    outcome: str = ""    # delivered, deferred or failed; "trouble" where an outage begins; "" for anything else
    recipients: tuple[str, ...] = ()
    mail: str = ""    # name of its file
    reply: str = ""    # of a deferral or a failure

    def as_json(self) -> dict[str, Any]:
        return {
            "text": self.text,
            "outcome": self.outcome or None,
            "recipients": list(self.recipients),
            "mail": self.mail or None,
            "reply": self.reply or None,
        }


def parse(text: str) -> LogLine:
    """Take a line apart."""
    text = "\t".join(part if part.isprintable() else printable(part) for part in text.split("\t"))
    if text.startswith("!!!!!"):
        return LogLine(text, "trouble")
    word, *rest = text.split("\t")
    word, _, reply = word.partition(":")
    if word not in _WORDS or not rest:
        return LogLine(text)
    recipients = tuple(filter(None, rest[0].strip().split(",")))
    mail = rest[1].split(" ", 1)[0] if len(rest) > 1 else ""
    return LogLine(text, _WORDS[word], recipients, mail, reply.strip())


def last_lines(path: Path, most: int, about: str = "") -> list[LogLine]:
    """The last lines, oldest first. ``about``: only those with this text, upper and lower case being one.

    Reads from the end, and no more than it takes. No log is no lines. Raises OSError where it cannot be read.
    """
    with suppress(FileNotFoundError), open_log(path) as stream:
        return _last_of(stream, most, about.lower())
    return []


def newest_lines(stream: BinaryIO, about: str = "", within: int | None = None) -> Iterator[LogLine]:
    """The lines of an open log, newest first, read as they are asked for. ``within``: its last bytes, so many; None: all."""
    wanted = about.lower()
    for raw in _backwards(stream, within):
        text = _decode(raw)
        if wanted in text.lower():
            yield parse(text)


def open_log(path: Path) -> BinaryIO:
    """The log, to be read. Raises OSError."""
    return os.fdopen(open_to_read(path), "rb", buffering=0)


def follow(path: Path, most: int, about: str = "") -> Iterator[LogLine]:
    """The last lines and then those to come, for ever. When the log is moved away, the one in its place is read.

    Raises OSError where it cannot be read.
    """
    wanted = about.lower()
    stream = _open_if_there(path)
    if stream is not None:
        yield from _last_of(stream, most, wanted)
    rest = b""
    while True:
        is_moved = stream is None or not _is_at(path, stream)    # looked at first: what it still gets is read below
        if stream is not None:
            while chunk := stream.read(_CHUNK):
                *lines, rest = (rest + chunk).split(b"\n")
                yield from (parse(text) for text in map(_decode, lines) if wanted in text.lower())
            if stream.tell() > os.fstat(stream.fileno()).st_size:    # it was emptied
                stream.seek(0)
                continue
        if is_moved:
            if stream is not None:
                stream.close()
            stream, rest = _open_if_there(path), b""
        if not is_moved or stream is None:
            time.sleep(_LOOK_EVERY_S)


def _last_of(stream: BinaryIO, most: int, wanted: str) -> list[LogLine]:
    """The stream then stands where these lines end."""
    stream.seek(0, os.SEEK_END)    # for none at all
    found = list(islice(newest_lines(stream, wanted), most))
    found.reverse()
    return found


def _open_if_there(path: Path) -> BinaryIO | None:
    try:
        return open_log(path)
    except FileNotFoundError:
        return None


def _is_at(path: Path, stream: BinaryIO) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(stream.fileno()))
    except FileNotFoundError:
        return False


def _backwards(stream: BinaryIO, within: int | None = None) -> Iterator[bytes]:
    """The lines of a file, the last one first. ``within``: of its last bytes, so many, whole lines only; None: of all."""
    position = stream.seek(0, os.SEEK_END)
    begin = 0 if within is None else max(0, position - within)
    parts: list[bytes] = []    # of a line whose beginning has not been read, the last part first
    length = 0
    is_end = True
    while position > begin:
        size = min(_CHUNK, position - begin)
        position -= size
        chunk = os.pread(stream.fileno(), size, position)
        if is_end:
            chunk = chunk.removesuffix(b"\n")
            is_end = False
        first, *lines = chunk.split(b"\n")
        if lines or length > _LONGEST_LINE:
            yield b"".join(reversed([*parts, lines.pop() if lines else b""]))
            yield from reversed(lines)
            parts, length = [], 0
        parts.append(first)
        length += len(first)
    if not is_end and not begin:    # else the line is most likely cut
        yield b"".join(reversed(parts))


def _decode(raw: bytes) -> str:
    return raw.decode("utf-8", "backslashreplace")

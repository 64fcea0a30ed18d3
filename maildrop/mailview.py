"""One mail as a person looks at it: envelope, header fields, body. Nothing that is told can do anything to a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maildrop import spool
from maildrop.headerfields import fields
from maildrop.logfile import printable
from maildrop.queue import Entry, Row, entry_at, row_of
from maildrop.spool import FAILED

_LONGEST_LINE = 64 * 1024    # bytes; longer ones are broken


@dataclass(frozen=True)
class MailView:
    """What a mail consists of, but for its body. Texts are printable, each in one line."""

    row: Row
    envelope: list[tuple[str, str]]    # the ## lines as they stand in the file: key, value
    header: list[tuple[str, str]]    # name and decoded text of each field

    def as_json(self) -> dict[str, Any]:
        return {
            **self.row.as_json(),
            "envelope": [list(line) for line in self.envelope],
            "header": [list(field) for field in self.header],
        }


def entry_of(path: Path, spools: Iterable[Path], now: float) -> Entry:
    """The mail at a path that ``handling.find`` has found. Raises FileNotFoundError where it is gone."""
    directory = next(directory for directory in spools if path.parent in (directory, directory / FAILED))
    return entry_at(directory, str(path.relative_to(directory)), now)


def view(entry: Entry, now: float) -> MailView:
    """Read a mail. Raises SpoolBusy where it is gone, NotAMail, or OSError where it cannot be read."""
    with spool.look_at(entry.path) as mail:
        envelope = [(printable(key), printable(value)) for key, value in mail.lines_with({})]
        return MailView(row_of(mail, entry, now), envelope, list(fields(mail.header())))


def body_lines(entry: Entry, limit: int | None = None) -> Iterator[str]:
    """The lines of a mail's body, printable, at most ``limit`` bytes of it. Raises as ``view`` does."""
    with spool.look_at(entry.path) as mail:
        rest = b""
        left = mail.content_size if limit is None else limit
        for chunk in mail.body():
            *lines, rest = (rest + chunk[:left]).splitlines(keepends=True) or [b""]
            left -= len(chunk)
            yield from map(_printable_line, lines)
            if len(rest) > _LONGEST_LINE:
                yield _printable_line(rest)
                rest = b""
            if left <= 0:
                break
        if rest:
            yield _printable_line(rest)


def _printable_line(raw: bytes) -> str:
    line = raw.rstrip(b"\r\n")
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        text = line.decode("latin-1")
    text = text.expandtabs()
    return text if text.isprintable() else "".join(char if char.isprintable() else _escaped(char) for char in text)


def _escaped(char: str) -> str:
    return char.encode("unicode_escape").decode("ascii")

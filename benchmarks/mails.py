"""Mails for the benchmarks, and queues full of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from maildrop import spool

SENDER, RECIPIENT = "zoe@example.org", "ann@example.org"
_HEADER = f"From: {SENDER}\nTo: {RECIPIENT}\nSubject: benchmark\n\n".encode()
_LINE = b"One line of seventy characters, as people write them in their letters\n"
_LINES_PER_CHUNK = 1000


def text_of(size: int) -> str:
    """The text of a mail of about so many bytes."""
    return (_LINE * (size // len(_LINE) + 1)).decode()


def fill_spool(directory: Path, mails: int, size: int) -> None:
    """A spool of the daemon with mails that are due."""
    directory.mkdir(parents=True)
    envelope = f"##To:{RECIPIENT}\n##From:{SENDER}\n".encode()
    for _ in range(mails):
        _write(directory / spool.new_name(), envelope, size)


def fill_maildir(directory: Path, mails: int, size: int) -> None:
    """A queue of zope.sendmail."""
    for name in ("cur", "new", "tmp"):
        (directory / name).mkdir(parents=True)
    envelope = f"X-Zope-From: {SENDER}\nX-Zope-To: {RECIPIENT}\n".encode()
    for number in range(mails):
        _write(directory / "new" / f"{number:09}.benchmark", envelope, size)


def _write(path: Path, envelope: bytes, size: int) -> None:
    with path.open("wb") as stream:
        stream.write(envelope + _HEADER)
        for chunk in _chunks(size - len(_HEADER)):
            stream.write(chunk)
    os.chmod(path, 0o600)


def _chunks(size: int) -> Iterator[bytes]:
    lines = max(1, size // len(_LINE))
    for _ in range(lines // _LINES_PER_CHUNK):
        yield _LINE * _LINES_PER_CHUNK
    yield _LINE * (lines % _LINES_PER_CHUNK)

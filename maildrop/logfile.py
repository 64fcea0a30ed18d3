"""The maildrop log: shape of a block and of a line.

One block for each pass, or part of one between two looks at the spools, that has something to say::

    ### Started at 2026/11/22 14:00:05...
    OK<TAB> recipients<TAB>NAME what else is known
    BAD: reply<TAB> recipients<TAB>NAME ...
    FATAL: reply<TAB> recipients<TAB>NAME ...
    ### Finished at 2026/11/22 14:00:06

The file is opened for a block and closed after it, so it can be moved away at any time. Each line is one write, so several
daemons may share a log.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path
from typing import TextIO

from maildrop.paths import open_to_write

_APPEND = os.O_WRONLY | os.O_APPEND | os.O_CREAT


class MaildropLog:
    """The log of one daemon. Writing to it never raises: a full disk must not stop the mail."""

    def __init__(self, path: Path, mode: int = 0o600, echo: bool = False):
        """``mode``: of a new log file; ``echo``: print what is logged."""
        self.path = path
        self.mode = mode
        self._echo = echo
        self._descriptor: int | None = None
        self._lock = threading.Lock()    # several connections write to it

    def delivered(self, recipients: Iterable[str], facts: str) -> None:
        self._entry(f"OK\t {_listed(recipients)}\t{printable(facts)}")

    def deferred(self, recipients: Iterable[str], reply: str, facts: str) -> None:
        self._entry(f"BAD: {printable(reply)}\t {_listed(recipients)}\t{printable(facts)}")

    def failed(self, recipients: Iterable[str], reply: str, facts: str) -> None:
        self._entry(f"FATAL: {printable(reply)}\t {_listed(recipients)}\t{printable(facts)}")

    def outage_begins(self, stage: str, reason: str) -> None:
        self._entry(f"!!!!! {stage} at {_now()}\t {printable(reason)}")

    def outage_ends(self) -> None:
        self._entry(f"### Relay available again at {_now()}")

    def notice(self, text: str) -> None:
        """Something an administrator should know that is no attempt to send a mail."""
        self._entry(f"### {printable(text)}")

    def end_block(self) -> None:
        """The pass is over: close the file, and with a last line if the pass had anything to say."""
        with self._lock:
            if self._descriptor is not None:
                self._write(f"### Finished at {_now()}")
                descriptor, self._descriptor = self._descriptor, None
                with suppress(OSError):
                    os.close(descriptor)

    def _entry(self, line: str) -> None:
        with self._lock:
            if self._descriptor is None:
                try:
                    self._descriptor = open_to_write(self.path, _APPEND, self.mode)
                except OSError as error:
                    self._complain(error, line)
                    return
                self._write(f"### Started at {_now()}...")
            self._write(line)

    def _write(self, line: str) -> None:
        if self._echo:
            _print(line, sys.stdout)
        try:
            os.write(self._descriptor, line.encode("utf-8", "backslashreplace") + b"\n")    # type: ignore[arg-type]
        except OSError as error:
            self._complain(error, line)

    def _complain(self, error: OSError, line: str) -> None:
        _print(f"{self.path}: {error.strerror}: {line}", sys.stderr)


def _print(line: str, stream: TextIO | None) -> None:
    if stream is None:    # closed from the beginning
        return
    try:
        encoding = stream.encoding or "ascii"
        print(line.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
    except (OSError, ValueError):    # the terminal is gone
        pass


def printable(text: bytes | str) -> str:
    """One line of printable text, whatever a relay sent: line breaks become a blank, the rest is escaped."""
    if isinstance(text, bytes):
        text = text.decode("utf-8", "backslashreplace")
    text = text.strip()
    if text.isprintable():
        return text
    joined = re.sub(r"\s*\n\s*", " ", text)
    escaped = {ord(char): char.encode("unicode_escape").decode("ascii") for char in set(joined) if not char.isprintable()}
    return joined.translate(escaped)


def stamp(seconds: float) -> str:
    """A local time as the log writes it."""
    return time.strftime("%Y/%m/%d %H:%M:%S", time.localtime(seconds))


def _now() -> str:
    return stamp(time.time())


def _listed(recipients: Iterable[str]) -> str:
    return printable(",".join(recipients))

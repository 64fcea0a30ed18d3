"""SMTP servers that take all mail and count it: Postfix's smtp-sink where it is installed, else one of our own."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from support.ports import free_port
from support.requires import find_command

from benchmarks.processes import open_files, wait_until

CHECKOUT = Path(__file__).parents[1]
T = TypeVar("T", bound="Server")
_PATIENCE_S = 200    # the longest time without a mail: a daemon looks at its spool every 120 seconds


class Server:
    """A process that listens on ``port`` of 127.0.0.1; a context manager."""

    port: int

    def __init__(self, command: Sequence[str]):
        self._process = subprocess.Popen(command, cwd=CHECKOUT, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self._idle_files = 0

    def wait_for_connection(self) -> float:
        """Wait until a client is connected. Returns when it was seen, which is asked every millisecond.

        A server has one more file open for each client: that costs less to see than anything it could tell.
        """
        wait_until(lambda: open_files(self._process.pid) > self._idle_files, "a connection to the relay")
        return time.monotonic()

    def __enter__(self: T) -> T:
        self._idle_files = open_files(self._process.pid)
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.stdin.close()
        self._process.terminate()
        self._process.wait()
        self._process.stdout.close()

    def _read_port(self) -> int:
        """The port that a server of ours has chosen; it listens when this returns."""
        return int(self._process.stdout.readline().split()[-1])


class Sink(Server, ABC):
    """A server that counts the mails it has taken."""

    taken = 0

    def __init__(self, command: Sequence[str]):
        super().__init__(command)
        self._changed = threading.Condition()
        self._taken_at = time.monotonic()
        self._reader = threading.Thread(target=self._read, daemon=True)

    def wait_for(self, mails: int, patience_s: float = _PATIENCE_S) -> float:
        """Wait until so many mails were taken. Returns when the last one was.

        Raises TimeoutError if none has come for ``patience_s`` seconds.
        """
        with self._changed:
            while self.taken < mails:
                before = self.taken
                if not self._changed.wait(patience_s) and self.taken == before:
                    raise TimeoutError(f"{self.taken} of {mails} mails arrived, and none for {patience_s} seconds")
            return self._taken_at

    def __exit__(self, *exc: object) -> None:
        self._process.terminate()
        self._reader.join()
        super().__exit__(*exc)

    def _read(self) -> None:
        while said := os.read(self._process.stdout.fileno(), 1 << 16):
            with self._changed:
                self._hear(said)
                self._taken_at = time.monotonic()
                self._changed.notify_all()

    @abstractmethod
    def _hear(self, said: bytes) -> None:
        """Count what the server has told of."""


class SmtpSink(Sink):
    """Postfix's smtp-sink: its counter, printed at each mail and each end of a session, is what we read.

    ``address``: where it listens, if not on 127.0.0.1 alone; "" is everywhere.
    """

    def __init__(self, address: str = "127.0.0.1"):
        self.port = free_port()
        account = ["-u", "postfix"] if os.geteuid() == 0 else []
        super().__init__([find_command("smtp-sink"), *account, "-c", f"{address}:{self.port}", "256"])
        self._sessions = 0
        self._reader.start()
        wait_until(self._answers, "smtp-sink listens")
        wait_until(lambda: self._sessions, "smtp-sink sees the end of a session")
        time.sleep(0.05)    # it counts the session, and then closes it

    def _answers(self) -> bool:
        with suppress(OSError), socket.create_connection(("127.0.0.1", self.port)):
            return True
        return False

    def _hear(self, said: bytes) -> None:
        for sessions, mails in re.findall(rb"sess=(\d+) quit=\d+ mesg=(\d+)\r", said):
            self._sessions, self.taken = int(sessions), int(mails)


class OwnSink(Sink):
    """Our own sink. ``arrivals``: when the mail with a subject was there, by the system's monotonic clock."""

    def __init__(self):
        super().__init__([sys.executable, "-m", "benchmarks.own_sink"])
        self.port = self._read_port()
        self.arrivals: dict[str, float] = {}
        self._unread = b""
        self._reader.start()

    def _hear(self, said: bytes) -> None:
        *lines, self._unread = (self._unread + said).split(b"\n")
        for line in lines:
            at, subject = line.decode().split(" ", 1)
            self.arrivals[subject] = float(at)
            self.taken += 1


def counting_sink() -> Sink:
    """The fastest sink there is here."""
    return SmtpSink() if find_command("smtp-sink") else OwnSink()

"""Closing the files of mails that are over, many at a time and in a thread of its own.

When the last handle of a removed file is closed, the disk takes its space back, which takes longer than anything else
that is done for a small mail. Nobody has to wait for that, nor be woken for each of them.
"""

from __future__ import annotations

import queue
import socket
import threading
from contextlib import suppress

from maildrop.spool import SpooledMail

_TOGETHER = 32    # mails
_MOST_LOTS = 2    # that wait, with files that are open for nothing else


class Closer:
    """Closes mails, and thereby ends the claims on them. For any thread."""

    def __init__(self) -> None:
        self._waiting: list[SpooledMail] = []
        self._lots: queue.SimpleQueue[socket.socket | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def close(self, mail: SpooledMail) -> None:
        """Close it soon."""
        with self._lock:
            self._waiting.append(mail)
            is_enough = len(self._waiting) >= _TOGETHER
        if is_enough:
            self.close_waiting()

    def close_waiting(self) -> None:
        """Close soon what waits for others to be closed together with."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
            is_running = bool(waiting) and self._lots.qsize() < _MOST_LOTS and self._is_running()
        lot = _pack(waiting) if is_running else None
        for mail in waiting:
            mail.close()
        if lot:
            self._lots.put(lot)

    def finish(self) -> None:
        """All of them are closed when this returns."""
        self.close_waiting()
        if self._thread is not None:
            self._lots.put(None)
            self._thread.join()
            self._thread = None

    def _is_running(self) -> bool:
        if self._thread is None:
            with suppress(RuntimeError):    # that of a system without a thread to spare
                thread = threading.Thread(target=self._run, daemon=True)
                thread.start()
                self._thread = thread
        return self._thread is not None

    def _run(self) -> None:
        while (lot := self._lots.get()) is not None:
            lot.close()


def _pack(mails: list[SpooledMail]) -> socket.socket | None:
    """A socket to which one more handle of each file is on its way: one call closes it and them all.

    A thread that makes a call for each has to get the interpreter back after each, which holds up the others.
    None where handles cannot be sent.
    """
    with suppress(OSError):
        sender, lot = socket.socketpair()
        with sender:
            try:
                socket.send_fds(sender, [b"."], [mail.stream.fileno() for mail in mails])
                return lot
            except OSError:
                lot.close()
    return None

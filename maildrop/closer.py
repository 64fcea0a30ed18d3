"""Closing the files of mails that are over, in a thread of its own.

When the last handle of a removed file is closed, the disk takes its space back, which takes longer than anything else that
is done for a small mail. Nobody has to wait for that.
"""

from __future__ import annotations

import queue
import threading
from contextlib import suppress

from maildrop.spool import SpooledMail

_MOST_WAITING = 64    # files that are open for nothing else


class Closer:
    """Closes mails, and thereby ends the claims on them. For any thread."""

    def __init__(self) -> None:
        self._waiting: queue.SimpleQueue[SpooledMail | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def close(self, mail: SpooledMail) -> None:
        """Close it soon."""
        if self._waiting.qsize() < _MOST_WAITING and self._is_running():
            self._waiting.put(mail)
        else:
            mail.close()

    def finish(self) -> None:
        """All of them are closed when this returns."""
        if self._thread is not None:
            self._waiting.put(None)
            self._thread.join()
            self._thread = None

    def _is_running(self) -> bool:
        if self._thread is None:
            with self._lock, suppress(RuntimeError):    # that of a system without a thread to spare
                if self._thread is None:
                    thread = threading.Thread(target=self._run, daemon=True)
                    thread.start()
                    self._thread = thread
        return self._thread is not None

    def _run(self) -> None:
        while (mail := self._waiting.get()) is not None:
            mail.close()

"""The mails that a pass has still to send: whose turn is next, and the claim on it."""

from __future__ import annotations

import os
import threading
import time
import traceback
from collections import deque
from collections.abc import Iterable

from maildrop import spool
from maildrop.logfile import MaildropLog
from maildrop.recording import SUSPICIOUS, Recorder
from maildrop.spool import NotAMail, SpooledMail


class Backlog:
    """Mails that wait for a connection: new ones first, then those that were deferred, last those that make trouble.

    Each is in it once at most, from ``add`` until ``done``. For any thread.
    """

    def __init__(self, recorder: Recorder, log: MaildropLog):
        self._recorder = recorder
        self._log = log
        self._lock = threading.Lock()
        self._new: deque[str] = deque()
        self._retries: deque[str] = deque()
        self._last: deque[str] = deque()
        self._were_last: set[str] = set()
        self._in_hand: set[str] = set()
        self._told: set[str] = set()    # files of which the log has said that they are no mails
        self._is_closed = False
        self.last_taken = 0.0    # monotonic time

    def __len__(self) -> int:
        return 0 if self._is_closed else len(self._new) + len(self._retries) + len(self._last)

    def begin_pass(self) -> None:
        with self._lock:
            for waiting in (self._new, self._retries, self._last, self._were_last, self._in_hand):
                waiting.clear()
            self._told = {path for path in self._told if os.path.lexists(path)}
            self._is_closed = False
            self.last_taken = time.monotonic()

    def add(self, new: Iterable[str], retries: Iterable[str] = (), last: frozenset[str] = frozenset()) -> None:
        """Add the paths of mails, oldest first. ``last``: those of them that have to wait behind all others."""
        with self._lock:
            for waiting, paths in ((self._new, new), (self._retries, retries)):
                for path in paths:
                    if path not in self._in_hand:
                        self._in_hand.add(path)
                        (self._last if path in last else waiting).append(path)

    def take(self, durable: bool) -> SpooledMail | None:
        """The mail whose turn it is, claimed; None if there is none. ``durable``: see ``spool.claim``."""
        while path := self._next():
            mail = self._claim(path, durable)
            if mail and mail.lost_sessions >= SUSPICIOUS and self._put_last(path):
                mail.close()
            elif mail:
                return mail
            else:
                self.done(path)
        return None

    def _next(self) -> str | None:
        with self._lock:
            if self._is_closed:
                return None
            self.last_taken = time.monotonic()
            for waiting in (self._new, self._retries, self._last):
                if waiting:
                    return waiting.popleft()
            return None

    def _put_last(self, path: str) -> bool:
        """Let it wait behind all others. False if it has done so already."""
        with self._lock:
            if path in self._were_last:
                return False
            self._were_last.add(path)
            self._last.append(path)
            return True

    def _claim(self, path: str, durable: bool) -> SpooledMail | None:
        if self._recorder.is_stuck(path):
            return None
        try:
            return spool.claim(path, time.time(), durable)
        except spool.SpoolBusy:
            pass
        except NotAMail as why:
            if path not in self._told:
                self._told.add(path)
                self._log.notice(f"{path}: not a mail, left as it is: {why}")
        except OSError as error:
            self._log.notice(f"{path}: cannot be read, left as it is: {error.strerror or error}")
        except Exception:    # the guard of the mail
            self._log.notice(f"{path}: unexpected error: {traceback.format_exc()}")
        return None

    def put_back(self, path: str) -> None:
        """It was not tried after all, and is next."""
        with self._lock:
            self._new.appendleft(path)

    def done(self, path: str) -> None:
        """It was tried, or is left as it is: from now on it may be added again."""
        with self._lock:
            self._in_hand.discard(path)
            self._were_last.discard(path)

    def close(self) -> None:
        """No more mails are handed out in this pass."""
        with self._lock:
            self._is_closed = True

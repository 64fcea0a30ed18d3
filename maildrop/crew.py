"""How many connections there are: opened as the backlog asks for them, fewer when the relay refuses some."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable

from maildrop.backlog import Backlog
from maildrop.closer import Closer
from maildrop.connection import Connection
from maildrop.logfile import MaildropLog
from maildrop.recording import Recorder
from maildrop.relay import RelayUnavailable
from maildrop.relaystate import RelayState
from maildrop.settings import Settings

_MAILS_EACH = 4    # for fewer, one more connection is not worth while
LONG_WAIT_S = 0.25    # unless nobody has taken one for so long
_SATURATED = 0.6    # of a processor: then more threads would only get into each other's way
_MEASURE_S = 0.005    # what is measured for a shorter time says nothing


class Crew:
    """The connections of a pass, a thread each. The first one has to be heard by the relay before there are more."""

    def __init__(
        self,
        settings: Settings,
        log: MaildropLog,
        backlog: Backlog,
        relay: RelayState,
        recorder: Recorder,
        closer: Closer,
        stopping: threading.Event,
        ended: Callable[[], None],
    ):
        """``ended`` is called by the thread of each connection when that is over."""
        self._shared = (settings, log, backlog, relay, recorder, closer, stopping)
        self._log = log
        self._backlog = backlog
        self._relay = relay
        self._stopping = stopping
        self._ended = ended
        self._lock = threading.Lock()
        self._at_work: set[Connection] = set()
        self._most = self._allowed = 1 if settings.wait_s else settings.connections
        self._grown_at = self._grown_at_cpu = 0.0
        self.outage: RelayUnavailable | None = None    # what ended the last of them

    def __len__(self) -> int:
        return len(self._at_work)

    def allow_more(self) -> None:
        """The relay may take one more connection than it took lately."""
        self._allowed = min(self._allowed + 1, self._most)

    def cut(self) -> None:
        """Break off all mails whose end is not out yet. From any thread; ``stopping`` is set before."""
        with self._lock:
            for connection in self._at_work:
                connection.cut()

    def is_only_connecting(self) -> bool:
        """Whether there is nothing to wait for but connections that cannot be cut."""
        with self._lock:
            return bool(self._at_work) and all(connection.is_connecting for connection in self._at_work)

    def grow(self) -> None:
        """Open a connection if the backlog asks for one. Called whenever something has changed, by any thread."""
        with self._lock:
            if self._is_wanted():
                connection = Connection(*self._shared, is_alone=lambda: len(self) == 1)
                is_first = not self._at_work
                self._at_work.add(connection)
                self._grown_at, self._grown_at_cpu = time.monotonic(), time.process_time()
                try:
                    threading.Thread(target=self._run, args=(connection, not is_first), daemon=True).start()
                except RuntimeError:    # the system has no thread to spare
                    self._at_work.remove(connection)
                    self._allowed = len(self._at_work)
                    if is_first:
                        raise

    def _is_wanted(self) -> bool:
        waiting, at_work = len(self._backlog), len(self._at_work)
        if not waiting or at_work >= self._allowed or self._stopping.is_set():
            return False
        if not at_work:
            return self.outage is None
        now = time.monotonic()
        if not self._relay.has_heard or waiting <= _MAILS_EACH * at_work and now - self._backlog.last_taken < LONG_WAIT_S:
            return False
        measured = now - self._grown_at
        return measured > _MEASURE_S and time.process_time() - self._grown_at_cpu < _SATURATED * measured

    def _run(self, connection: Connection, connect_first: bool) -> None:
        failure = None
        try:
            connection.run(after_mail=self.grow, connect_first=connect_first)
        except RelayUnavailable as unavailable:
            failure = unavailable
        except Exception:    # the guard of the session: the others go on
            self._log.notice(f"a connection: unexpected error: {traceback.format_exc()}")
        with self._lock:
            self._at_work.remove(connection)
            if failure and self._at_work:
                if len(self._at_work) < self._allowed:
                    self._log.notice(f"no more connections now than there are ({len(self._at_work)}): {failure}")
                self._allowed = len(self._at_work)
            elif failure:
                self.outage = failure
                self._backlog.close()
        self._ended()

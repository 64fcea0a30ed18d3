"""How many connections there are: opened as the backlog asks for them, fewer when the relay refuses some."""

from __future__ import annotations

import threading
import time
import traceback
from collections.abc import Callable

from maildrop.connection import Connection, OneTooMany, Shared
from maildrop.relay import RelayUnavailable

_MAILS_EACH = 4    # for fewer, one more connection is not worth while
LONG_WAIT_S = 0.25    # unless nobody has taken one for so long
_SATURATED = 0.6    # of a processor: then more threads would only get into each other's way
_MEASURE_S = 0.005    # what is measured for a shorter time says nothing


class Crew:
    """The connections of a pass, a thread each. The first one has to be heard by the relay before there are more."""

    def __init__(self, shared: Shared, ended: Callable[[], None]):
        """``ended`` is called by the thread of each connection when that is over."""
        self._shared = shared
        self._log = shared.log
        self._backlog = shared.backlog
        self._relay = shared.relay
        self._stopping = shared.stopping
        self._ended = ended
        self._lock = threading.Lock()
        self._at_work: set[Connection] = set()
        self._most = self._allowed = 1 if shared.settings.wait_s else shared.settings.connections
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
        """Open connections if the backlog asks for more. Called whenever something has changed, by any thread."""
        with self._lock:
            for _ in range(self._how_many_more()):
                if not self._add():
                    break

    def _how_many_more(self) -> int:
        waiting, at_work = len(self._backlog), len(self._at_work)
        if not waiting or at_work >= self._allowed or self._stopping.is_set():
            return 0
        if not at_work:
            return 1 if self.outage is None else 0
        now = time.monotonic()
        measured = now - self._grown_at
        if measured < _MEASURE_S or not self._relay.has_heard:
            return 0
        if not any(connection.has_session for connection in self._at_work):    # the relay may have gone meanwhile
            return 0
        worth_while = waiting // _MAILS_EACH
        if now - self._backlog.last_taken > LONG_WAIT_S:
            worth_while = max(worth_while, at_work + 1)
        busy = (time.process_time() - self._grown_at_cpu) / measured / at_work    # of a processor, each
        return min(self._allowed, worth_while, int(_SATURATED / max(busy, 0.001))) - at_work

    def _add(self) -> bool:
        connection = Connection(self._shared, is_alone=lambda: len(self) == 1)
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
            return False
        return True

    def _run(self, connection: Connection, connect_first: bool) -> None:
        failure, has_crashed = None, False
        try:
            connection.run(after_mail=self.grow, connect_first=connect_first)
        except RelayUnavailable as unavailable:
            failure = unavailable
        except Exception:    # the guard of the session: the others go on
            has_crashed = True
            self._log.notice(f"a connection: unexpected error: {traceback.format_exc()}")
        with self._lock:
            self._at_work.remove(connection)
            if failure and self._at_work:
                if len(self._at_work) < self._allowed:
                    self._log.notice(f"no more connections now than there are ({len(self._at_work)}): {failure}")
                self._allowed = len(self._at_work)
            elif isinstance(failure, OneTooMany):
                pass    # the others have ended meanwhile: if there is anything left, one that is alone will find out
            elif failure or has_crashed and not self._at_work:
                self.outage = failure
                self._backlog.close()    # so that it is not tried for ever
        self._ended()

"""What the connections of a pass know of the relay: which host serves, whether it hears mails, whether there is an outage."""

from __future__ import annotations

import math
import threading

from maildrop.logfile import MaildropLog
from maildrop.relay import RelayUnavailable

_PROBES = 5    # so many mails in a row have to be refused before it is the relay that refuses


class RelayState:
    """What one mail's fate says about the others. For any thread."""

    def __init__(self, log: MaildropLog):
        self._log = log
        self._lock = threading.Lock()
        self._hosts: tuple[str, ...] = ()
        self._plain: set[str] = set()    # hosts that take one command at a time
        self._passed_over: set[tuple[str, str]] = set()    # hosts that could not be used, and what that was called
        self.last_mail_at = -math.inf    # monotonic time
        self._outages: set[str] = set()    # what the present one has been called so far
        self.has_heard = False    # whether the relay has taken a mail's sender in this pass
        self._refused: list[str] = []    # mails whose sender it would not hear of, since it last heard one
        self._in_a_row = 0    # how many of them count
        self._refusal: RelayUnavailable | None = None
        self._to_be_last: set[str] = set()    # mails that were refused so in the last passes
        self._blamed: set[str] = set()    # mails for which alone the relay said what else would be said of all

    def begin_pass(self, hosts: tuple[str, ...]) -> None:
        """``hosts``: in the order in which they are to be tried."""
        self._hosts = hosts
        self.has_heard = False
        self._refused = []
        self._in_a_row = 0

    def end_pass(self) -> None:
        """Raises RelayUnavailable if the relay has heard no mail at all."""
        with self._lock:
            if not self._refused:
                return
            if self.has_heard:
                self._blamed.update(self._refused)
            elif self._refusal:
                raise self._refusal

    # -- which of the hosts --

    def hosts(self) -> tuple[str, ...]:
        """The one that serves, then those that could take its place."""
        return self._hosts

    def move_on_from(self, host: str) -> None:
        """This one cannot be used now: it is tried last, unless another connection has found that out before."""
        with self._lock:
            if self._hosts[0] == host:
                self._hosts = (*self._hosts[1:], host)

    def passed_over(self, host: str, why: RelayUnavailable) -> None:
        """It cannot be used while others might. Told once, until it serves again: mail may go another way than it should."""
        with self._lock:
            is_news = len(self._hosts) > 1 and (host, why.stage) not in self._passed_over
            self._passed_over.add((host, why.stage))
        if is_news:
            self._log.notice(f"{host} cannot be used: {why}")

    def serves(self, host: str) -> None:
        """There is a session with it."""
        if self._passed_over:
            with self._lock:
                self._passed_over = {(other, stage) for other, stage in self._passed_over if other != host}

    def takes_flights(self, host: str) -> bool:
        """Whether it may be sent several commands at once, if it says so."""
        return host not in self._plain

    def fell_silent(self, host: str) -> None:
        """It has not answered when it got several commands at once: from now on it gets one at a time."""
        with self._lock:
            is_news = host not in self._plain
            self._plain.add(host)
        if is_news:
            self._log.notice(f"{host} has not answered several commands at once in time: from now on one at a time")

    # -- what it says of mails --

    def heard(self, path: str) -> None:
        """The relay has spoken about this mail: what it said of others before was meant for them, and an outage is over."""
        if self.is_blamed(path):    # it might say of all others what it would say of them anyway
            return
        with self._lock:
            self.has_heard = True
            self._blamed.update(self._refused)
            self._refused.clear()
            self._in_a_row = 0
            is_over = bool(self._outages)
            self._outages.clear()
        if is_over:
            self._log.outage_ends()

    def refused(self, path: str, refusal: RelayUnavailable) -> None:
        """The relay would not hear of this mail; whether that is about the relay or the mail, other mails will show.

        Raises RelayUnavailable when they have shown it.
        """
        with self._lock:
            self._refused.append(path)
            self._refusal = refusal
            if not (self.has_heard and path in self._to_be_last):    # else it is known for that
                self._in_a_row += 1
            self._to_be_last.add(path)
            if self._in_a_row >= _PROBES:
                self._refused.clear()
                raise refusal

    def is_blamed(self, path: str) -> bool:
        """Whether what the relay says of this mail is not taken for what it would say of all."""
        return bool(self._blamed) and path in self._blamed

    def settled(self, path: str) -> None:
        """An attempt with this mail is over."""
        if self._blamed or self._to_be_last:
            with self._lock:
                self._blamed.discard(path)
                self._to_be_last.discard(path)

    def to_be_last(self) -> frozenset[str]:
        """Paths of the mails whose turn has to come after all others."""
        with self._lock:
            return frozenset(self._to_be_last)

    # -- outages --

    @property
    def is_out(self) -> bool:
        return bool(self._outages)

    def outage_began(self, unavailable: RelayUnavailable) -> None:
        """Told once for each kind of it."""
        with self._lock:
            is_news = unavailable.stage not in self._outages
            self._outages.add(unavailable.stage)
        if is_news:
            self._log.outage_begins(unavailable.stage, unavailable.reason)

"""One pass: what is due in the spools goes to the relay."""

from __future__ import annotations

import threading
import time
import traceback
from pathlib import Path

from maildrop import spool
from maildrop.backlog import Backlog
from maildrop.closer import Closer
from maildrop.connection import Shared
from maildrop.credentials import Credentials
from maildrop.crew import LONG_WAIT_S, Crew
from maildrop.figures import Bookkeeper
from maildrop.logfile import MaildropLog
from maildrop.recording import Recorder
from maildrop.relay import RelayUnavailable
from maildrop.relaystate import RelayState
from maildrop.scan import scan
from maildrop.settings import Settings
from maildrop.wake import WakeUp, Woken

EVERYTHING = Woken([], look=True)


class Delivery:
    """Sends what is due, pass after pass, and remembers what it has to between two passes."""

    def __init__(self, settings: Settings, log: MaildropLog, wake: WakeUp | None = None):
        """``wake`` tells of mails that come while a pass goes on."""
        self.settings = settings
        self.stopping = threading.Event()
        self.interrupted = threading.Event()    # a pass ends soon, and none does anything, until that is cleared
        self.next_look = 0.0    # monotonic time
        self._log = log
        self._wake = wake or WakeUp()
        self.figures = Bookkeeper(settings)
        self._recorder = Recorder(settings, log, self.figures)
        self._credentials = Credentials(settings)
        self._relay = RelayState(log)
        self._backlog = Backlog(self._recorder, log)
        self._crew: Crew | None = None
        self._unreadable: set[Path] = set()    # spools of which the log has said it

    def run_pass(self, woken: Woken = EVERYTHING) -> None:
        """Send what is due now: the mails that ``woken`` names, or all that a look at the spools finds. Never raises.

        What comes meanwhile is sent too. In an outage, one word from a writer is no reason to bother the relay.
        """
        if self._relay.is_out and not self._is_to_look(woken):
            return
        self.figures.settings = self.settings
        self.figures.pass_began()
        try:
            self._send_all(woken)
        except RelayUnavailable as unavailable:
            if not self.stopping.is_set():
                self._relay.outage_began(unavailable)
                self.figures.outage(str(unavailable))
        except Exception:    # the guard of the pass: no surprise may end the daemon
            self._log.notice(f"this pass: unexpected error: {traceback.format_exc()}")
            self.figures.error("unexpected error, see the log")
        finally:
            self._recorder.flush()
            self._log.end_block()
            self.figures.pass_ended()
            self._keep_figures()
            if self._recorder.take_news():
                self._look_soon()

    def interrupt(self) -> None:
        """Begin no new mail until ``interrupted`` is cleared. From another thread."""
        self.interrupted.set()
        self._wake.ring()

    def cut(self) -> None:
        """Begin no new mail, and break off those under way unless their end is already out. From another thread."""
        self.stopping.set()
        self._wake.ring()
        if crew := self._crew:
            crew.cut()
        self._credentials.cut()

    def is_only_connecting(self) -> bool:
        """Whether there is nothing to wait for but connections that cannot be cut."""
        crew = self._crew
        return crew is not None and crew.is_only_connecting()

    def record_late(self) -> None:
        """Try once more to record what could not be recorded."""
        self._recorder.record_late()

    def _send_all(self, woken: Woken) -> None:
        self._recorder.settings = self.settings
        if self._credentials.settings is not self.settings:    # else a token that was got goes on being used
            self._credentials = Credentials(self.settings)
        self._relay.begin_pass(self.settings.smtp_hosts)
        self._backlog.begin_pass()
        closer = Closer()
        shared = Shared(
            self.settings,
            self._credentials,
            self._log,
            self._backlog,
            self._relay,
            self._recorder,
            closer,
            self.stopping,
        )
        self._crew = crew = Crew(shared, self._wake.ring)
        try:
            while True:
                if self.interrupted.is_set() or self.stopping.is_set():
                    self._backlog.close()
                if self._is_to_look(woken):
                    self._look()
                    crew.allow_more()
                self._backlog.add(map(str, woken.paths))
                crew.grow()
                if not (len(crew) or len(self._backlog)):
                    break
                woken = self._wake.wait(self._patience_s())
                self._recorder.flush_if_due()
                closer.close_waiting()
                self._keep_figures()
        finally:
            self._backlog.close()
            while len(crew):    # where the loop was left by an error
                self._wake.wait(1.0)
            self._crew = None
            closer.finish()
        if crew.outage:
            raise crew.outage
        self._relay.end_pass()

    def _keep_figures(self) -> None:
        if not self._relay.is_out:
            self.figures.relay_answers()
        self.figures.save_if_due()

    def _patience_s(self) -> float:
        """How long the pass may go on without another look at what goes on in it."""
        if len(self._backlog):
            return LONG_WAIT_S    # then another connection may be wanted
        return max(0.0, min(1.0, self.next_look - time.monotonic()))    # and something may have to be flushed

    # -- what is due --

    def _is_to_look(self, woken: Woken) -> bool:
        return woken.look or time.monotonic() >= self.next_look

    def _look(self) -> None:
        """Add to the backlog what is due in the spools. Mails that are not settled yet are looked at again soon."""
        self.next_look = time.monotonic() + self.settings.interval_s
        self._recorder.flush()    # what a look finds is as it is on the disk
        self._log.end_block()    # so that the file can be moved away, however long the pass
        self._recorder.record_late()
        last = self._relay.to_be_last()
        for directory in self.settings.spools:
            try:
                spool.make_spool(directory, self.settings.directory_mode)
                spool.clean(directory)
                found = scan(directory, time.time())
            except OSError as error:
                if directory not in self._unreadable:
                    self._unreadable.add(directory)
                    self._log.notice(f"{directory}: the spool cannot be read: {error.strerror}")
                self.figures.error(f"{directory}: the spool cannot be read: {error.strerror}")
                continue
            self._unreadable.discard(directory)
            self._backlog.add(
                (f"{directory}/{name}" for name in found.names), (f"{directory}/{name}" for name in found.retries), last
            )
            if found.unsettled:
                self._look_soon()

    def _look_soon(self) -> None:
        self.next_look = min(self.next_look, time.monotonic() + spool.SETTLED_S)

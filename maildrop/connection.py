"""One connection with the relay: it carries mail after mail, over one session after the other, until there are none left."""

from __future__ import annotations

import threading
import time
import traceback
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass
from itertools import chain

from maildrop import policy
from maildrop.attempt import Attempt
from maildrop.backlog import Backlog
from maildrop.closer import Closer
from maildrop.credentials import Credentials
from maildrop.envelope import Envelope, MalformedEnvelope
from maildrop.logfile import MaildropLog
from maildrop.policy import Outcome, Reply
from maildrop.recording import Recorder
from maildrop.relay import RelayUnavailable, Session, SessionLost
from maildrop.relaystate import RelayState
from maildrop.settings import Settings
from maildrop.spool import MalformedMail, SpooledMail

_MANY = 16    # mails that wait: so many are enough for all connections
_LARGE = 1024 * 1024    # bytes; the mail behind such a one is left to the other connections


class OneTooMany(RelayUnavailable):
    """A session could not be had while there were other connections: that says nothing of those, nor of other hosts."""


class _Stopped(Exception):
    """The daemon stops: what was under way is no attempt."""


@dataclass(frozen=True)
class Shared:
    """What the connections of a pass have in common."""

    settings: Settings
    credentials: Credentials
    log: MaildropLog
    backlog: Backlog
    relay: RelayState
    recorder: Recorder
    closer: Closer
    stopping: threading.Event


class Connection:
    """Takes mails from the backlog, claims them and sends them. Used by one thread, but for ``cut``."""

    def __init__(self, shared: Shared, is_alone: Callable[[], bool]):
        """``is_alone``: whether no other connection is at work now."""
        self._settings = shared.settings
        self._credentials = shared.credentials
        self._log = shared.log
        self._backlog = shared.backlog
        self._relay = shared.relay
        self._recorder = shared.recorder
        self._closer = shared.closer
        self._stopping = shared.stopping
        self._is_alone = is_alone
        self._session: Session | None = None
        self._began_alone = False    # whether there were no others when the session began
        self._sent_on_session = 0
        self._is_for_one_mail = False    # the session is plain because the mail's flight broke
        self._taken: deque[Attempt] = deque()    # claimed; the envelope of the first may be out already
        self.is_connecting = False    # then it cannot be cut

    @property
    def has_session(self) -> bool:
        return self._session is not None

    def cut(self) -> None:
        """Break off the mail under way unless its end is already out. From another thread; ``stopping`` is set before."""
        if session := self._session:
            session.cut()

    def run(self, after_mail: Callable[[], None], connect_first: bool) -> None:
        """Send until the backlog is empty or the daemon stops; ``after_mail`` is called after each mail.

        ``connect_first``: before it takes a mail, which others could send meanwhile. Raises RelayUnavailable.
        """
        try:
            if connect_first:
                self._open_session()
            while attempt := self._take():
                if self._recorder.is_stuck(attempt.mail.location):    # it was not yet when the mail was claimed
                    self._drop_session()
                    attempt.mail.close()
                    self._backlog.done(attempt.mail.location)
                    continue
                self._keep_distance()
                self._carry_guarded(attempt)
                after_mail()
        except _Stopped:
            pass
        finally:
            while self._taken:
                self._put_back(self._taken.pop())
            self._hang_up()

    def _keep_distance(self) -> None:
        """Wait until as much time has passed since the last mail as the settings want. (There is one connection then.)"""
        if self._settings.wait_s:
            self._stopping.wait(max(0.0, self._relay.last_mail_at + self._settings.wait_s - time.monotonic()))

    # -- which mail --

    def _take(self) -> Attempt | None:
        """The first attempt of the mail that is next, claimed; None if there is none."""
        return self._taken.popleft() if self._taken else self._take_another()

    def _take_another(self) -> Attempt | None:
        while not self._stopping.is_set() and (mail := self._backlog.take(self._settings.fsync)):
            if attempt := self._begin(mail):
                return attempt
            self._backlog.done(mail.location)
        return None

    def _take_ahead(self) -> Attempt | None:
        """The mail that is next, which stays so."""
        if not self._taken and (attempt := self._take_another()):
            self._taken.append(attempt)
        return self._taken[0] if self._taken else None

    def _begin(self, mail: SpooledMail) -> Attempt | None:
        """A mail's first attempt; None if it cannot be sent, which is recorded then."""
        try:
            try:
                return Attempt.first(mail, self._settings)
            except (MalformedEnvelope, MalformedMail) as error:
                self._recorder.set_malformed_aside(mail, str(error))
        except OSError as error:
            self._disk_trouble(mail, error)
        except Exception:    # the guard of the mail: it stays where it is
            self._unexpected(mail)
        if not self._recorder.holds(mail):
            mail.close()
        return None

    def _put_back(self, attempt: Attempt) -> None:
        attempt.mail.close()
        self._backlog.put_back(attempt.mail.location)

    # -- one mail --

    def _carry_guarded(self, attempt: Attempt) -> None:
        """Send a mail, whatever comes between. Raises RelayUnavailable."""
        mail = attempt.mail
        try:
            self._carry(attempt)
        except RelayUnavailable as unavailable:
            self._drop_session()
            if not unavailable.answers_mail:
                self._backlog.put_back(mail.location)
                raise
            self._backlog.done(mail.location)
            self._relay.refused(mail.location, unavailable)
            return
        except OSError as error:    # the disk, not the relay
            self._disk_trouble(mail, error)
            self._drop_session()
        except _Stopped:
            raise
        except Exception:    # the guard of the mail: it stays where it is
            self._unexpected(mail)
            self._drop_session()
        self._relay.last_mail_at = time.monotonic()
        self._backlog.done(mail.location)

    def _carry(self, attempt: Attempt | None) -> None:
        """Send to a hundred recipients at a time; the file says after each group what is still owed."""
        while attempt:
            try:
                self._attempt(attempt)
                renewed = self._recorder.settle(attempt)
                self._relay.settled(attempt.mail.location)
                self._recorder.tell(attempt)
            except BaseException:
                if not self._recorder.holds(attempt.mail):
                    attempt.mail.close()
                raise
            if not self._recorder.holds(attempt.mail):
                self._closer.close(attempt.mail)
            if renewed and not (attempt.is_last or attempt.lost or self._stopping.is_set()):
                attempt = attempt.following(renewed)
            else:
                if renewed:
                    renewed.close()
                attempt = None

    def _attempt(self, attempt: Attempt) -> None:
        """One mail transaction; what it calls for is on the disk when this returns, but for the settling."""
        for text in attempt.envelope.unusable:
            attempt.replies[text] = Reply("RCPT", 553, "5.1.3 not an address")
        try:
            session = self._offer(attempt)
            accepted = attempt.recipients(Outcome.DELIVERED)
            self._recorder.prepare(attempt)
            reply = None
            if accepted:
                content = attempt.mail.content()
                if attempt.added:
                    content = chain([attempt.added], content)
                reply = session.transmit(content, self._what_goes_ahead(attempt), self._while_the_relay_works)
                attempt.replies.update(dict.fromkeys(accepted, reply))
                if policy.outcome_of(reply) is not Outcome.DELIVERED:    # what it calls for was not known before
                    self._recorder.prepare_or_remember(attempt)
            if (reply is None or reply.command == "DATA") and not session.withdraw():
                self._drop_session()
        except SessionLost as lost:
            self._session_lost(attempt, lost)
        if any(reply.code == 421 for reply in attempt.replies.values()):
            self._drop_session()
        elif self._is_for_one_mail:
            self._hang_up()

    def _what_goes_ahead(self, attempt: Attempt) -> tuple[Envelope, int] | None:
        """Envelope and size of the mail that comes next on this session, if it may go out before this one is answered."""
        batch = self._settings.batch
        if not self._settings.pipelining or self._settings.wait_s or 0 < batch <= self._sent_on_session:
            return None
        if not attempt.is_last or attempt.size > _LARGE:
            return None
        following = self._take_ahead()
        return (following.envelope, following.size) if following else None

    def _while_the_relay_works(self) -> None:
        """Take the mail behind the next one already: later the relay would have to wait for it. Never raises."""
        if len(self._taken) == 1 and len(self._backlog) > _MANY and (attempt := self._take_another()):
            self._taken.append(attempt)

    def _offer(self, attempt: Attempt) -> Session:
        """Offer the mail's envelope. A relay may end a session that has carried mails: then in a new one.

        Where a flight breaks in a new one too, it is offered one command at a time, and what comes of that counts.
        """
        refused_by: set[str] = set()
        is_plain = False
        while True:
            session = self._open_session(is_plain, refused_by)
            is_fresh = self._sent_on_session == 0
            self._sent_on_session += 1
            try:
                replies = session.offer(attempt.envelope, attempt.size)
            except SessionLost as lost:
                if self._stopping.is_set():
                    raise
                if session.pipelining:
                    if lost.is_silent:
                        self._relay.fell_silent(session.host)
                    is_plain = is_fresh
                elif is_fresh or lost.replies:
                    raise
            else:
                refusal = self._about_relay(attempt, replies)
                if refusal is None:
                    self._relay.heard(attempt.mail.location)
                    attempt.replies.update(replies)
                    return session
                if is_fresh:
                    if refusal.code == 421 and not (self._began_alone and self._is_alone()):    # there are too many
                        raise OneTooMany("Connection error", str(refusal))
                    self._relay.move_on_from(session.host)
                    refused_by.add(session.host)
                    if refused_by.issuperset(self._relay.hosts()):
                        stage = "Connection error" if refusal.code == 421 else "Authentication unavailable"
                        raise RelayUnavailable(stage, str(refusal), answers_mail=True)
            self._drop_session()

    def _about_relay(self, attempt: Attempt, replies: dict[str, Reply]) -> Reply | None:
        """The reply among these that every mail would get, if there is one."""
        if self._relay.is_blamed(attempt.mail.location):
            return None
        return next((reply for reply in replies.values() if policy.is_about_the_relay(reply)), None)

    def _session_lost(self, attempt: Attempt, lost: SessionLost) -> None:
        self._drop_session()
        if self._stopping.is_set() and not lost.after_content:    # our own doing: no attempt
            self._recorder.drop_remainder(attempt)
            raise _Stopped
        attempt.lost = lost
        attempt.replies |= lost.replies
        text = str(lost) + (" (the relay may have it: may arrive twice)" if lost.after_content else "")
        for recipient in attempt.envelope.recipients:
            reply = attempt.replies.get(recipient)
            if reply is None or policy.outcome_of(reply) is Outcome.DELIVERED:
                attempt.replies[recipient] = Reply("." if lost.after_content else "RCPT", 0, text)
        if lost.recipient:    # it may be because of this one, who comes last from now on
            attempt.replies[lost.recipient] = attempt.replies.pop(lost.recipient)
        if lost.after_content:
            self._recorder.prepare_or_remember(attempt)
        else:    # without it, the mail may be sent again at any time
            self._recorder.prepare(attempt)

    # -- the session --

    def _open_session(self, is_plain: bool = False, refused_by: Collection[str] = ()) -> Session:
        """The session there is, else a new one: a plain one if need be, and not with these hosts. Raises RelayUnavailable."""
        if self._session and 0 < self._settings.batch <= self._sent_on_session:
            self._hang_up()
        if self._session is None:
            self._began_alone = self._is_alone()    # others may end before an answer comes that is given because of them
            self.is_connecting = True
            try:
                self._session = self._connect(is_plain, refused_by)
            finally:
                self.is_connecting = False
            self._sent_on_session = 0
            self._is_for_one_mail = is_plain
        if self._stopping.is_set():
            raise _Stopped
        return self._session

    def _connect(self, is_plain: bool, refused_by: Collection[str]) -> Session:
        """A session with the relay that serves, else with the next one that can be used.

        While others are at work, the one that serves them is enough: it may just not take one more.
        """
        unavailable = None
        for host in (host for host in self._relay.hosts() if host not in refused_by):
            try:
                takes_flights = not is_plain and self._relay.takes_flights(host)
                session = Session(host, self._settings, self._credentials, takes_flights)
                self._relay.serves(host)
                return session
            except RelayUnavailable as error:
                unavailable = error
                if not self._began_alone:
                    raise OneTooMany(error.stage, error.reason) from error
                if self._stopping.is_set():
                    break
                self._relay.passed_over(host, error)
                self._relay.move_on_from(host)
        assert unavailable
        raise unavailable

    def _drop_session(self) -> None:
        if self._session:
            self._session.close()
            self._session = None

    def _hang_up(self) -> None:
        if self._session:
            self._session.quit()
            self._session = None

    # -- telling --

    def _disk_trouble(self, mail: SpooledMail, error: OSError) -> None:
        self._log.notice(f"{mail.location}: left as it is: {error.strerror or error}")

    def _unexpected(self, mail: SpooledMail) -> None:
        self._log.notice(f"{mail.location}: unexpected error: {traceback.format_exc()}")

"""What writers that died left locked in a spool is settled by what they voted, and by the ZODB's own record.

A lock of a dead writer, an orphan, is judged like this:

- Its transaction had not voted: it did not commit. The mail goes.
- It had voted and nobody else had a say: it committed. The mail leaves.
- A database has its token: it committed. The mail leaves.
- Each database that took part is open here, and none has its token: the mail goes to ``failed/``, with the reason. If
  that may be for want of a history (packed, or not kept), the reason says that nobody knows. A database without a history
  need not be open: in memory, as for sessions, it is another one after each start.
- Anything else is left as it is, and reported: it is for another Zope to settle, or for a person.

It can be broken off at any point and done again, also by two processes at a time: who settles what a writer left
holds that writer's file, each mail goes by steps between which it stays locked, and the writer's file goes last.
"""

import logging
import stat
import time
from collections import Counter, defaultdict
from enum import Enum
from typing import NamedTuple

from maildrop import spool
from maildrop.wake import announce
from maildrop.writers import dead_writers, is_alive, locks, settling
from Products.MaildropHost.history import History

LOG = logging.getLogger("MaildropHost")
_PAUSES_S = (0.05, 0.2)
_MOST_WRITERS = 100    # at a time: each is an open file


class Outcome(Enum):
    RELEASED = "released, as their transactions committed"
    REMOVED = "removed, as their transactions did not commit"
    SET_ASIDE = "kept in failed, as their transactions are not known to have committed"
    LEFT = "left locked"


class Verdict(NamedTuple):
    outcome: Outcome
    reason: str = ""
    is_known: bool = True    # whether the transaction is known not to have committed


RELEASE = Verdict(Outcome.RELEASED)
REMOVE = Verdict(Outcome.REMOVED)
NO_RECORD = Verdict(Outcome.SET_ASIDE, "its transaction did not commit: the database has no record of it")


def _unknown(why):
    return Verdict(Outcome.SET_ASIDE, f"unknown whether its transaction committed: {why}", is_known=False)


def _left(why):
    return Verdict(Outcome.LEFT, why)


def recover(directory, databases, durable):
    """Settle the orphans of a spool; returns a Counter of what became of mails, by Outcome.

    ``databases``: the ZODB databases that are open here. What goes wrong with a mail is logged, and it stays locked.
    Raises OSError where the spool cannot be read, or others are settling it for too long.
    """
    settled, found = [], []
    with settling(directory) as names:
        for begin in range(0, len(names), _MOST_WRITERS):
            with dead_writers(directory, names[begin : begin + _MOST_WRITERS]) as dead:
                if dead:
                    found = list(locks(directory))
                    settled += _settle(directory, found, dead, databases, durable)
        others = {lock.writer for lock in found}
        unknown = {writer for writer in others if is_alive(directory, writer) is None}
    settled_mails = {lock.mail for lock, _ in settled}
    strangers = [lock for lock in found if lock.writer in unknown and lock.mail not in settled_mails]
    if strangers:
        first = strangers[0].mail.name
        LOG.warning("%d locks in %s are of unknown origin, %s the first", len(strangers), directory, first)
    _log(directory, settled)
    return Counter(verdict.outcome for _, verdict in settled)


def _settle(directory, found, dead, databases, durable):
    """Settle what these dead writers left; returns (lock, verdict) for each, as it went."""
    orphans = [lock for lock in found if lock.writer in dead]
    settled = _carry_out(directory, _judge(orphans, dead, databases), durable)
    left = {lock.writer for lock, verdict in settled if verdict.outcome is Outcome.LEFT}
    if durable and orphans:
        spool.flush_directory(directory)    # the votes are needed until then
    for name, writer in dead.items():
        if name not in left:
            try:
                writer.remove()
            except OSError as error:    # it is for the next time
                LOG.warning("The file of the dead writer %s in %s cannot be removed: %s", name, directory, error)
    return settled


def _log(directory, settled):
    """One line for all that went the same way: there may be thousands, and their names are in the spool."""
    names = defaultdict(list)
    for lock, verdict in settled:
        names[verdict.outcome, verdict.reason].append(lock.mail.name)
    for (outcome, reason), alike in names.items():
        level = logging.WARNING if reason else logging.INFO
        told = f"{outcome.value}: {reason}" if reason else outcome.value
        text = "%d mails that dead processes had locked in %s, %s the first: %s"
        LOG.log(level, text, len(alike), directory, alike[0], told)


# -- judging --


def _judge(orphans, dead, databases):
    """(lock, verdict) for each orphan, in their order."""
    wanted = [vote for lock in orphans if (vote := dead[lock.writer].votes.get(lock.token)) and vote.others]
    witnesses = _Witnesses(databases, _by_writer(orphans, dead)) if wanted else None
    return [(lock, _judge_one(lock, dead[lock.writer], witnesses)) for lock in orphans]


def _by_writer(orphans, dead):
    """The databases that votes name: {(writer, place): their ``last``}. Of one writer, one place is one database."""
    named = defaultdict(set)
    for lock in orphans:
        vote = dead[lock.writer].votes.get(lock.token)
        for database in vote.databases if vote else ():
            named[lock.writer, database.place].add(database.last)
    return named


def _judge_one(lock, writer, witnesses):
    vote = writer.votes.get(lock.token)
    if vote is None:
        return _left(f"the file of its writer, {writer.name}, is damaged") if writer.is_damaged else REMOVE
    if lock.mail.name in vote.discarded:
        return REMOVE
    if not vote.others:
        return RELEASE
    if not vote.databases:
        return _unknown("no database took part that would have a record of it")
    return witnesses.judge(vote, writer.name)


class _Known(NamedTuple):
    """A database of a vote, as it was found here."""

    history: History
    is_certain: bool    # it has the transaction that the vote says was its newest; else only the place is the same


class _Witnesses:
    """The histories of the databases that are open here, read as far as votes ask for it."""

    def __init__(self, databases, named):
        self._histories = [History(database) for database in databases]
        self._broken = set()
        self._found = set()    # tokens
        self._packed = {}    # history -> its newest transaction that was packed
        self._known = {key: self._find(key[1], max(lasts)) for key, lasts in named.items()}
        starts = defaultdict(set)
        for key, known in self._known.items():
            if known is not None and known.history.is_usable:
                starts[known.history] |= named[key] - {""}
        for history, lasts in starts.items():
            if lasts:
                tokens, self._packed[history] = self._ask(history, history.tokens_since, min(lasts)) or (set(), "")
                self._found |= tokens

    def _find(self, place, newest):
        for history in self._histories:
            if newest and history.is_usable and self._ask(history, history.has, newest):
                return _Known(history, is_certain=True)
        same = [history for history in self._histories if place and history.place == place]
        return _Known(same[0], is_certain=False) if same else None

    def _ask(self, history, question, tid):
        for pause_s in _PAUSES_S:
            try:
                return question(tid)
            except Exception:    # any storage may be behind it
                time.sleep(pause_s)    # perhaps somebody is writing its end
        try:
            return question(tid)
        except Exception:
            LOG.exception("The history of the database %s cannot be read", history.name)
            self._broken.add(history)
            return None

    def judge(self, vote, writer):
        if vote.token in self._found:
            return RELEASE
        doubts = []
        is_certain = False
        for place, last, has_history in vote.databases:
            known = self._known[writer, place]
            if known is None and not has_history:    # in memory, as sessions are: it is gone, and what it knew
                continue
            if known is None:
                return _left("a database that took part in its transaction is not open here")
            history = known.history
            if history in self._broken:
                return _left(f"the history of the database {history.name} cannot be read")
            if not history.is_usable:
                doubts.append(f"the database {history.name} keeps no history")
            elif self._packed.get(history, "") >= (last or "\0"):
                doubts.append(f"the database {history.name} has been packed since")
            elif not known.is_certain:
                return _left(f"the database {history.name} lacks the transaction before it: another one, or an older copy")
            else:
                is_certain = True
        if not (doubts or is_certain):
            doubts.append("only databases took part that are not open here and keep no history")
        return _unknown(", ".join(doubts)) if doubts else NO_RECORD


# -- carrying it out --


def _carry_out(directory, verdicts, durable):
    """Do as the verdicts say; returns (lock, verdict) for each, as it went."""
    done, aside, released = [], [], []
    for lock, verdict in verdicts:
        try:
            if verdict.outcome is Outcome.RELEASED:
                spool.Draft(lock.mail).release()
                released.append(lock.mail.name)
            elif verdict.outcome is Outcome.REMOVED:
                spool.Draft(lock.mail).discard()
        except OSError as error:
            verdict = _left(str(error))
        (aside if verdict.outcome is Outcome.SET_ASIDE else done).append((lock, verdict))
    if released:
        announce(directory, released)
    if aside:
        try:
            done += _set_aside(directory, aside, durable)
        except OSError as error:    # perhaps for some of them; the copies are the same when they are made again
            done += [(lock, _left(str(error))) for lock, _ in aside]
    return done


def _set_aside(directory, verdicts, durable):
    """Move mails to ``failed/``; returns (lock, verdict) for each, as it went. Raises OSError where that ended before."""
    spool.make_spool(directory, stat.S_IMODE(directory.stat().st_mode))    # no daemon may have been there yet
    done, copies = [], {}

    def each(going, step):
        """Take a step with each; returns those with which it went well."""
        well = []
        for lock, verdict in going:
            try:
                step(lock, verdict)
            except (OSError, spool.NotAMail) as error:
                done.append((lock, _left(str(error))))
            else:
                well.append((lock, verdict))
        return well

    def copy(lock, verdict):
        kept = spool.set_orphan_aside(lock.mail, verdict.reason, verdict.is_known)
        if kept is not None:
            copies[lock] = spool.Draft(kept)

    going = each(verdicts, copy)
    if durable:    # the mails themselves go only when their copies are on the disk
        for draft in copies.values():
            draft.begin_flush()
        going = each(going, lambda lock, _: lock not in copies or copies[lock].flush())
        spool.flush_directory(directory / spool.FAILED)
    return done + each(going, lambda lock, _: spool.Draft(lock.mail).discard())


# -- when Zope starts --


def recover_all(spools, databases):
    """Settle the orphans of spools, ``{directory: durable}``. What goes wrong is logged; never raises."""
    for directory, durable in spools.items():
        try:
            recover(directory, databases, durable)
        except Exception:    # Zope has to start
            LOG.exception("What dead processes left locked in %s cannot be settled", directory)

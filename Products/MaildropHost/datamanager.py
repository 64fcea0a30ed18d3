"""The mails of a transaction: sealed at vote, let go at finish, discarded on abort."""

import logging
import os
import threading

import transaction
from transaction.interfaces import IDataManagerSavepoint, ISavepointDataManager
from ZODB.Connection import Connection
from zope.interface import implementer

from maildrop.spool import flush_directory, lock_path
from maildrop.wake import announce
from maildrop.writers import Database, Vote, join
from Products.MaildropHost.history import INFO, has_history, last_transaction, place_of
from Products.MaildropHost.troubles import Troubles

LOG = logging.getLogger("MaildropHost")


class FinishWatch:
    """Sorts before every other data manager, to know when the finish phase has begun anywhere.

    From then on the transaction may be committed for good in some database, and its mails must not be discarded:
    ``transaction`` calls ``tpc_abort`` after a finish that failed in another manager, and ``abort`` after a commit that
    has after-commit hooks.
    """

    transaction_manager = transaction.manager

    def __init__(self, token):
        self._token = token
        self.finishing = False

    def sortKey(self):
        return "\0maildrophost"

    def tpc_finish(self, txn):
        self.finishing = True

    def tpc_begin(self, txn):
        txn.setExtendedInfo(INFO, self._token)    # again: other software may have assigned an extension of its own

    def commit(self, txn):
        pass

    tpc_vote = abort = tpc_abort = commit

    def savepoint(self):
        return _NothingToRollBack()


@implementer(IDataManagerSavepoint)
class _NothingToRollBack:
    def rollback(self):
        pass


@implementer(ISavepointDataManager)
class MailDataManager:
    """All mails that one transaction has sent so far."""

    transaction_manager = transaction.manager

    def __init__(self):
        self._pid = os.getpid()
        self._drafts = []
        self._flushed = 0    # how many of them, from the first on, are on the disk
        self._taken_back = []    # drafts that were rolled back
        self._writers = {}    # spool -> what this process is there
        self._ends = {}    # spool -> how many transactions had left it when it was last put on the disk
        self.token = os.urandom(16).hex()    # goes into the envelope of each mail, and into the database's record
        self.watch = FinishWatch(self.token)
        self._sealed = False
        self.is_over = False    # whatever of it is still in a spool is to be released or discarded

    def enter(self, directory, mode):
        """The name of this process among the writers of that spool. ``mode``: of a mail. Raises OSError."""
        if directory not in self._writers:
            self._writers[directory] = join(directory, mode, self.token)
        return self._writers[directory].name

    def leave(self):
        """Nothing of the transaction is in a spool any more, locked. Never raises."""
        for writer in self._writers.values():
            writer.leave(self.token)

    def add(self, draft):
        """The draft is in the spool, locked; what becomes of it is the transaction's."""
        self._drafts.append(draft)

    @property
    def sealed(self):
        """Whether it takes no more mails: the transaction is over, or about to be, or another process's."""
        return self._sealed or self._is_parents()

    def _is_parents(self):
        # This process was forked off in the middle of the transaction, which is still its parent's.
        return self._pid != os.getpid()

    def sortKey(self):
        # After the databases, whose keys are paths or addresses; before "~sqlalchemy", which commits in its vote.
        return "~maildrophost"

    def savepoint(self):
        return _Savepoint(self, len(self._drafts))

    def discard_from(self, number):
        """Take back the drafts from that one on; never raises."""
        if self._is_parents():
            return
        drafts = self._drafts[number:]
        del self._drafts[number:]
        self._flushed = min(self._flushed, number)
        self._taken_back += drafts
        _do(self, [draft.discard for draft in drafts])

    def _flush(self):
        # All that can fail has to fail by the vote; each directory is flushed once, however many mails there are.
        if self._is_parents():
            raise RuntimeError("a fork cannot commit the mails of its parent's transaction")
        drafts, self._flushed = self._drafts[self._flushed :], len(self._drafts)
        if len(drafts) > 1:
            for draft in drafts:
                draft.begin_flush()
        for draft in drafts:
            draft.flush()
        for directory in {draft.directory for draft in drafts}:
            self._ends[directory] = self._writers[directory].ends
        for directory in {draft.directory for draft in drafts if draft.durable}:
            flush_directory(directory)

    def tpc_begin(self, txn):
        pass

    def commit(self, txn):    # called for all managers before the first votes
        self._flush()

    def tpc_vote(self, txn):
        self._flush()    # what others sent while they committed
        self._vote(txn)
        self._sealed = True

    def _vote(self, txn):
        durable = {}    # of each spool with mails
        for draft in self._drafts:
            directory = draft.directory
            durable[directory] = durable.get(directory, False) or draft.durable
        if not durable:
            return
        others, databases = _who_else(txn)
        others = others or len(durable) > 1    # each spool's vote is another's doubt
        for directory, is_durable in durable.items():
            left = [draft.path for draft in self._taken_back if draft.directory == directory]
            discarded = frozenset(path.name for path in left if os.path.lexists(lock_path(path)))
            vote = Vote(self.token, others, databases, discarded)
            self._writers[directory].vote(vote, is_durable, self._ends[directory])

    def tpc_finish(self, txn):
        drafts, self._drafts = self._drafts, []
        self.is_over = True
        _do(self, [draft.release for draft in drafts])

    def abort(self, txn):    # may come twice, and even after a commit
        self._sealed = True
        if not self.watch.finishing:
            self.is_over = True
            self.discard_from(0)

    tpc_abort = abort


@implementer(IDataManagerSavepoint)
class _Savepoint:
    def __init__(self, manager, number):
        self._manager = manager
        self._number = number

    def rollback(self):
        self._manager.discard_from(self._number)


def _who_else(txn):
    """Whether anybody else has a say in whether it commits, and the databases that will have a record of it if it does."""
    try:
        others = [each for each in txn._resources if not isinstance(each, (MailDataManager, FinishWatch))]
        others = [each for each in others if _has_a_say(each)]
    except AttributeError:    # another version of transaction
        return True, ()
    connections = [each for each in others if isinstance(each, Connection)]
    found = {each.db() for each in connections}
    return bool(others), tuple(Database(place_of(each), last_transaction(each), has_history(each)) for each in found)


def _has_a_say(manager):
    # A connection that has stored nothing leaves no record, and nothing of it can fail any more.
    return not isinstance(manager, Connection) or bool(manager._modified or manager._creating)


_KEY = object()


def current_manager():
    """The data manager of the current transaction, joined if it is new.

    Raises what ``transaction`` raises where nothing can join any more: ValueError, TransactionFailedError.
    """
    txn = transaction.get()
    try:
        manager = txn.data(_KEY)
    except KeyError:
        manager = None
    if manager is None or manager.sealed:    # rolled back to a savepoint from before it joined, or over
        manager = MailDataManager()
        txn.join(manager)
        txn.join(manager.watch)
        txn.set_data(_KEY, manager)
        txn.setExtendedInfo(INFO, manager.token)    # what a database records of the transaction
    return manager


_undone = []    # (manager, step)
_unsettled = Troubles()    # where some of them are
_undone_lock = threading.Lock()


def _begin_fork():
    global _undone_lock
    _undone_lock = threading.Lock()    # a thread that is not in the fork may hold the other one
    _undone.clear()    # that is the parent's to do


os.register_at_fork(after_in_child=_begin_fork)


def _do(manager, steps):
    """Release or discard a transaction's drafts; never raises. What the disk refuses is tried again with the next one's."""
    released = []
    with _undone_lock:
        waiting = _undone + [(manager, step) for step in steps]
        _undone.clear()
        for owner, step in waiting:
            try:
                step()
            except OSError:
                _undone.append((owner, step))
                if _unsettled.begin(step.__self__.directory):
                    said = "Will try again, and say nothing of further mails there until all are done: %s of %s"
                    LOG.exception(said, step.__name__, step.__self__.path)
            else:
                if step.__name__ == "release":
                    released.append(step.__self__)
        busy = {owner for owner, _ in _undone}
        left = {step.__self__.directory for _, step in _undone}
    for directory in {step.__self__.directory for _, step in waiting} - left:
        if _unsettled.end(directory):
            LOG.info("All mails of ended transactions in %s are released or discarded now", directory)
    for owner in {manager, *(owner for owner, _ in waiting)} - busy:
        if owner.is_over:
            owner.leave()
    _announce(released)


def _announce(drafts):
    """Tell the daemons of mails that are due now, each spool's once; never raises."""
    names = {}
    for draft in drafts:
        names.setdefault(draft.directory, []).append(draft.path.name)
    for directory, names_there in names.items():
        announce(directory, names_there)

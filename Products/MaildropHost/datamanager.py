"""The mails of a transaction: sealed at vote, let go at finish, discarded on abort."""

import logging
import os
import socket
import threading
import uuid
from functools import cache

import transaction
from transaction.interfaces import IDataManagerSavepoint, ISavepointDataManager
from zope.interface import implementer

from maildrop.spool import flush_directory
from maildrop.wake import announce

LOG = logging.getLogger("MaildropHost")


@cache
def _writer(pid):
    """The name of this process among all writers, on every host; a fork gets one of its own."""
    return f"{socket.gethostname()}-{pid}-{uuid.uuid4().hex[:12]}"


class FinishWatch:
    """Sorts before every other data manager, to know when the finish phase has begun anywhere.

    From then on the transaction may be committed for good in some database, and its mails must not be discarded:
    ``transaction`` calls ``tpc_abort`` after a finish that failed in another manager, and ``abort`` after a commit that
    has after-commit hooks.
    """

    transaction_manager = transaction.manager

    def __init__(self):
        self.finishing = False

    def sortKey(self):
        return "\0maildrophost"

    def tpc_finish(self, txn):
        self.finishing = True

    def tpc_begin(self, txn):
        pass

    commit = tpc_vote = abort = tpc_abort = tpc_begin

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

    def __init__(self, watch):
        self._watch = watch
        self._drafts = []
        self._flushed = 0    # how many of them, from the first on, are on the disk
        self.identity = f"{_writer(os.getpid())} {os.urandom(16).hex()}"    # goes into the envelope of each mail
        self.sealed = False    # no more mails: the transaction is over, or about to be

    def add(self, draft):
        """The draft is in the spool, locked; what becomes of it is the transaction's."""
        self._drafts.append(draft)

    def sortKey(self):
        # After the databases, whose keys are paths or addresses; before "~sqlalchemy", which commits in its vote.
        return "~maildrophost"

    def savepoint(self):
        return _Savepoint(self, len(self._drafts))

    def discard_from(self, number):
        """Take back the drafts from that one on; never raises."""
        _do([draft.discard for draft in self._drafts[number:]])
        del self._drafts[number:]
        self._flushed = min(self._flushed, number)

    def _flush(self):
        # All that can fail has to fail by the vote; each directory is flushed once, however many mails there are.
        drafts, self._flushed = self._drafts[self._flushed :], len(self._drafts)
        if len(drafts) > 1:
            for draft in drafts:
                draft.begin_flush()
        for draft in drafts:
            draft.flush()
        for directory in {draft.path.parent for draft in drafts if draft.durable}:
            flush_directory(directory)

    def tpc_begin(self, txn):
        pass

    def commit(self, txn):    # called for all managers before the first votes
        self._flush()

    def tpc_vote(self, txn):
        self._flush()    # what others sent while they committed
        self.sealed = True

    def tpc_finish(self, txn):
        drafts, self._drafts = self._drafts, []
        _do([draft.release for draft in drafts])

    def abort(self, txn):    # may come twice, and even after a commit
        self.sealed = True
        if not self._watch.finishing:
            self.discard_from(0)

    tpc_abort = abort


@implementer(IDataManagerSavepoint)
class _Savepoint:
    def __init__(self, manager, number):
        self._manager = manager
        self._number = number

    def rollback(self):
        self._manager.discard_from(self._number)


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
        watch = FinishWatch()
        manager = MailDataManager(watch)
        txn.join(manager)
        txn.join(watch)
        txn.set_data(_KEY, manager)
    return manager


_undone = []
_undone_lock = threading.Lock()


def _do(steps):
    """Release or discard drafts; never raises. What the disk refuses is tried again with the next transaction's."""
    released = []
    with _undone_lock:
        waiting = _undone + steps
        _undone.clear()
        for step in waiting:
            try:
                step()
            except OSError:
                LOG.exception("Will try again: %s of %s", step.__name__, step.__self__.path)
                _undone.append(step)
            else:
                if step.__name__ == "release":
                    released.append(step.__self__.path)
    _announce(released)


def _announce(paths):
    """Tell the daemons of mails that are due now, each spool's once; never raises."""
    names = {}
    for path in paths:
        names.setdefault(path.parent, []).append(path.name)
    for directory, names_there in names.items():
        announce(directory, names_there)

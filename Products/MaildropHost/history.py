"""Which database this is, and what its history says: the ZODB's own record of what has committed.

A transaction that sends mail has its token in its extended info, so that each record that a database writes of it
has that too. A vote names the databases that will have a record, each by two things:

``last``
    the newest transaction id before. It is a time of high resolution in one database's history: a database that has
    this transaction is the one, or a copy that was made later. What the vote is about comes after it, so the history
    is read from there on, whatever the clocks said.
``place``
    a digest of the host's name, the database's name, the storage's sort key (path or address) and the serial of its
    root object. Only where ``last`` was packed away, or where a storage tells nothing of its history, does it tell
    whose database it was, and then only to say that nobody can know any more.

What they cannot tell: a copy of a database that has itself gone on in another place, on the same spool, has ``last`` too.
"""

import hashlib
import logging
import re
import socket
from weakref import WeakKeyDictionary

from ZODB.interfaces import IStorageIteration, IStorageUndoable
from ZODB.utils import load_current, z64

LOG = logging.getLogger("MaildropHost")
INFO = "MaildropHost"    # the key of the token in a transaction's extended info
_PACKED = "p"

_places = WeakKeyDictionary()


def place_of(database):
    """What a ZODB is called and where it lies, to be compared; "" if that cannot be told."""
    try:
        if database not in _places:
            root_serial = load_current(database.storage, z64)[1].hex()
            key = re.sub("0x[0-9a-f]+", "", database.storage.sortKey())    # RelStorage's shows addresses in memory
            parts = (socket.gethostname(), database.database_name, key, root_serial)
            _places[database] = hashlib.sha256("\0".join(parts).encode("utf-8", "surrogateescape")).hexdigest()[:32]
        return _places[database]
    except Exception:    # any storage may be behind it, and gone
        LOG.warning("Cannot tell which database this is: %r", database, exc_info=True)
        return ""


def last_transaction(database):
    """The id of its newest transaction, in hexadecimal; "" if that cannot be told."""
    try:
        tid = database.lastTransaction()
    except Exception:
        LOG.warning("Cannot tell the newest transaction of %r", database, exc_info=True)
        return ""
    return "" if not tid or tid == z64 else tid.hex()


def has_history(database):
    """Whether it keeps a record of each transaction."""
    # Who cannot undo keeps only what is current, or not what transactions said of themselves: RelStorage with
    # keep-history off can be iterated over, and shows transactions without their extended info.
    storage = database.storage
    return IStorageIteration.providedBy(storage) and IStorageUndoable.providedBy(storage)


class History:
    """What a database of this process says of its past."""

    def __init__(self, database):
        self._storage = database.storage
        self.name = database.database_name or "unnamed"
        self.place = place_of(database)
        self.is_usable = has_history(database)

    def has(self, tid):
        """Whether there is a transaction of that id (hexadecimal)."""
        return tid in [record.tid.hex() for record in self._records(tid, tid)]

    def tokens_since(self, tid):
        """The tokens of the transactions that came after that id, and the newest one that was packed ("": none was).

        Packing takes away a transaction if others have replaced what it wrote; it leaves one of those, marked.
        """
        tokens, packed = set(), ""
        for record in self._records(tid):
            token = record.extension.get(INFO)
            if isinstance(token, str):
                tokens.add(token)
            if record.status == _PACKED:
                packed = record.tid.hex()
        return tokens, packed

    def _records(self, start, stop=None):
        # To be read to its end: only then do all storages close what they opened for it.
        return self._storage.iterator(bytes.fromhex(start), stop and bytes.fromhex(stop))

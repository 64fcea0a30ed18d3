"""Recovery with databases that are no plain FileStorage, each a real one in a process that is killed."""

from contextlib import contextmanager

import pytest
import relstorage.storage
import transaction
import ZEO
from ZEO.ClientStorage import ClientStorage
import ZODB.config
from persistent.mapping import PersistentMapping
from support.orphans import STEPS, Site, change, die_at

from maildrop import spool
from Products.MaildropHost.recovery import Outcome, recover

RELSTORAGE = """
%import relstorage
<zodb>
  <relstorage>
    keep-history {keep_history}
    <sqlite3>
      data-dir {directory}
    </sqlite3>
  </relstorage>
</zodb>
"""
KINDS = ["ZEO", "RelStorage with history", "RelStorage without history"]


@pytest.fixture(params=KINDS)
def kind(request):
    return request.param


@pytest.fixture
def open_database(kind, tmp_path):
    """A function that opens the database, in this process or in a fork."""
    if kind == "ZEO":
        address, stop = ZEO.server(path=str(tmp_path / "Data.fs"), threaded=False)
        yield lambda: ZEO.DB(address, wait_timeout=30)
        stop()
    else:
        keep_history = "true" if kind.endswith("with history") else "false"
        text = RELSTORAGE.format(keep_history=keep_history, directory=tmp_path / "sqlite")
        yield lambda: ZODB.config.databaseFromString(text)


@pytest.fixture
def site(open_database, kind, tmp_path, monkeypatch):
    spool.make_spool(tmp_path / "spool", 0o700)
    site = Site(tmp_path / "site", tmp_path / "spool")

    @contextmanager
    def opened():
        database = open_database()
        try:
            yield database
        finally:
            database.close()

    storage = ClientStorage if kind == "ZEO" else relstorage.storage.RelStorage
    monkeypatch.setitem(STEPS, "database's finish", (storage, "tpc_finish"))
    site.opened = opened
    with opened() as database, database.transaction() as connection:
        connection.root()["content"] = PersistentMapping()
    yield site
    transaction.abort()


def die_in_transaction(site, step, open_database):
    kept = []

    def work():
        database = open_database()
        connection = database.open()
        kept.extend([database, connection])
        site.send()
        change(connection, step)

    die_at(step, work)


def start(site):
    with site.opened() as database:
        return recover(site.spool, list(database.databases.values()), durable=True)


def test_a_mail_whose_transaction_committed_leaves_or_is_kept_where_nobody_can_know(site, kind, open_database):
    die_in_transaction(site, "release", open_database)
    if kind == "RelStorage without history":
        assert start(site) == {Outcome.SET_ASIDE: 1}
        assert site.states() == ["unknown whether its transaction committed: the database unnamed keeps no history"]
    else:
        assert start(site) == {Outcome.RELEASED: 1}
        assert site.states() == ["due"]


def test_a_mail_whose_transaction_did_not_commit_is_kept(site, kind, open_database):
    die_in_transaction(site, "database's finish", open_database)
    assert start(site) == {Outcome.SET_ASIDE: 1}
    (reason,) = site.states()
    assert reason.startswith("unknown") == (kind == "RelStorage without history")


def test_a_mail_whose_transaction_had_not_voted_is_removed(site, open_database):
    die_in_transaction(site, "vote", open_database)
    assert start(site) == {Outcome.REMOVED: 1}
    assert site.states() == []

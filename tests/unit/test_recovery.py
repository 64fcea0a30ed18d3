"""What becomes of the mails of a process that died in the midst of a transaction: committed means sent."""

import logging
import os
import resource
import shutil
import signal
import time

import pytest
import transaction
from persistent.mapping import PersistentMapping
from support.orphans import Site, change, die, die_at, in_fork, opened
from support.spooling import files_in, make_host
from ZODB.DB import DB
from ZODB.DemoStorage import DemoStorage
from ZODB.FileStorage import FileStorage
from ZODB.MappingStorage import MappingStorage
from zope.processlifetime import DatabaseOpenedWithRoot

from maildrop import spool, writers
from maildrop.wake import WakeUp
from Products.MaildropHost import _recover
from Products.MaildropHost.history import INFO, History
from Products.MaildropHost.MaildropHost import CONFIG_PATHS
from Products.MaildropHost.recovery import Outcome, recover, recover_all

NO_RECORD = "its transaction did not commit: the database has no record of it"


@pytest.fixture(autouse=True)
def clean_transaction():
    transaction.abort()
    yield
    transaction.abort()


@pytest.fixture
def directory(tmp_path):
    path = tmp_path / "spool"
    spool.make_spool(path, 0o700)
    return path


@pytest.fixture
def site(tmp_path, directory):
    return Site(tmp_path / "site", directory)


@pytest.fixture
def two(tmp_path, directory):
    """A site with two databases."""
    return Site(tmp_path / "two", directory, ("main", "second"))


def start(site, paths=None):
    """What happens when Zope starts."""
    with opened(*(paths or site.paths)) as database:
        return recover(site.spool, list(database.databases.values()), durable=True)


def everything_in(directory):
    return {path: path.read_bytes() for path in directory.rglob("*") if path.is_file()}


# -- what is known --


def test_mails_of_a_transaction_that_had_not_voted_are_removed(site):
    site.dies_at("vote", mails=2)
    assert site.states() == ["locked", "locked"]
    assert start(site) == {Outcome.REMOVED: 2}
    assert site.states() == []


def test_mails_of_a_transaction_whose_database_committed_leave(site):
    site.dies_at("release", mails=2)
    assert site.states() == ["locked", "locked"]
    assert start(site) == {Outcome.RELEASED: 2}
    assert site.states() == ["due", "due"]


def test_mails_of_a_transaction_whose_database_did_not_commit_are_kept_with_the_reason(site):
    site.dies_at("database's finish", mails=2)
    assert start(site) == {Outcome.SET_ASIDE: 2}
    assert site.states() == [NO_RECORD, NO_RECORD]
    (kept, _) = (site.spool / "failed").iterdir()
    assert spool.read_note(kept, "Committed") == "no"
    assert kept.name.endswith(".0") and kept.read_bytes().endswith(b"Hello")


def test_a_transaction_that_only_mails_has_committed_when_it_has_voted(site):
    site.dies_with_mails_only("release")
    site.dies_with_mails_only("vote")
    assert start(site) == {Outcome.RELEASED: 1, Outcome.REMOVED: 1}
    assert site.states() == ["due"]


def test_mails_whose_commit_failed_as_the_vote_could_not_be_flushed_are_removed_also_if_it_dies_in_the_abort(site):
    def work():
        flush = spool.flush_directory

        def fails(directory):
            if directory.name == "writers":
                raise OSError(24, "Too many open files")
            flush(directory)

        site.send()
        spool.flush_directory, spool.Draft.discard = fails, die
        transaction.commit()

    assert in_fork(work) == -signal.SIGKILL
    assert start(site) == {Outcome.REMOVED: 1}


def test_a_connection_that_stores_nothing_has_no_say(site):
    def work():
        connection = site.connect()
        site.send()
        change(connection, 1)
        connection.root()["content"]._p_changed = False

    die_at("database's finish", work)
    assert start(site) == {Outcome.RELEASED: 1}


def test_one_writer_leaves_mails_of_every_kind(site):
    def work():
        connection = site.connect()
        site.send("committed")
        change(connection, 1)
        release = spool.Draft.release
        spool.Draft.release = lambda draft: (_ for _ in ()).throw(OSError(5, "Input/output error"))
        transaction.commit()    # its lock stays
        site.send("committed too")
        change(connection, 2)
        transaction.commit()
        site.send("open")
        spool.Draft.release = release
        die()

    assert in_fork(work) == -signal.SIGKILL
    assert start(site) == {Outcome.RELEASED: 2, Outcome.REMOVED: 1}
    assert all(b"Subject: committed" in (site.spool / name).read_bytes() for name in files_in(site.spool))


def test_a_mail_that_was_rolled_back_and_could_not_be_removed_is_not_sent(site):
    def work():
        connection = site.connect()
        site.send("kept")
        savepoint = transaction.savepoint()
        site.send("rolled back")
        discard = spool.Draft.discard
        spool.Draft.discard = lambda draft: (_ for _ in ()).throw(OSError(5, "Input/output error"))
        savepoint.rollback()
        spool.Draft.discard = discard
        change(connection, 1)

    die_at("release", work)
    assert site.states() == ["locked", "locked"]
    assert start(site) == {Outcome.RELEASED: 1, Outcome.REMOVED: 1}
    (name,) = files_in(site.spool)
    assert b"Subject: kept" in (site.spool / name).read_bytes()


@pytest.mark.parametrize("content", [b"", b"##To:ann@example.org\n"])
def test_a_lock_without_its_mail_goes_if_its_writer_has_died_before_or_after_it_had_said_who_it_is(site, content):
    def work():
        site.send()
        draft = spool.Draft(site.spool / spool.new_name())
        if content:
            says = spool.read_note(site.spool / files_in(site.spool)[0], "Transaction")
            draft.write("zoe@example.org", "ann@example.org", b"x", {"Transaction": says})
            draft.path.unlink()
        else:
            spool.lock_path(draft.path).touch()
        die()

    assert in_fork(work) == -signal.SIGKILL
    assert site.states() == ["lock alone", "locked"]
    assert start(site) == {Outcome.REMOVED: 2}
    assert site.states() == []


def test_a_lock_that_is_cut_in_the_midst_of_a_long_list_of_recipients_goes(site):
    def work():
        def half(descriptor, parts):
            os.write(descriptor, b"".join(parts)[:8192])
            die()

        spool._write_and_close = half
        site.host.send("Hello", mto=",".join(f"ann{n}@example.org" for n in range(600)), mfrom="zoe@example.org", subject="x")

    assert in_fork(work) == -signal.SIGKILL
    assert site.states() == ["lock alone"]
    assert start(site) == {Outcome.REMOVED: 1}
    assert site.states() == []


# -- several databases --


def test_a_record_in_the_first_of_two_databases_is_enough(two):
    def work():
        connection = two.connect()
        two.send()
        change(connection, 1)
        change(connection.get_connection("second"), 1)
        finish = FileStorage.tpc_finish

        def finish_or_die(storage, *arguments):
            if storage.getName().endswith("second.fs"):
                die()
            return finish(storage, *arguments)

        FileStorage.tpc_finish = finish_or_die

    die_at("release", work)
    with opened(*two.paths) as database:
        assert database.open().root()["content"] == {"value": 1}
        assert database.databases["second"].open().root()["content"] == {}
        transaction.abort()
    assert start(two) == {Outcome.RELEASED: 1}
    assert two.states() == ["due"]


def test_without_a_record_in_any_of_two_databases_it_did_not_commit(two):
    two.dies_at("database's finish")
    assert start(two) == {Outcome.SET_ASIDE: 1}
    assert two.states() == [NO_RECORD]


def test_a_record_in_one_database_is_enough_where_the_other_is_not_open(two):
    two.dies_at("release")
    assert start(two, two.paths[1:]) == {Outcome.RELEASED: 1}


def test_without_a_record_nothing_is_settled_where_one_of_the_databases_is_not_open(two):
    two.dies_at("database's finish")
    before = everything_in(two.spool)
    for path in two.paths:
        assert start(two, [path]) == {Outcome.LEFT: 1}
    assert everything_in(two.spool) == before
    assert start(two) == {Outcome.SET_ASIDE: 1}


def test_a_database_that_takes_no_part_need_not_be_open(two):
    two.dies_at("database's finish", in_all=False)
    assert start(two, two.paths[:1]) == {Outcome.SET_ASIDE: 1}


@pytest.mark.parametrize("storage", [MappingStorage, DemoStorage])
@pytest.mark.parametrize(
    ("step", "in_main", "expected"),
    [
        ("release", True, "due"),
        ("database's finish", True, NO_RECORD),
        ("release", False, "unknown whether its transaction committed: only databases took part"),
    ],
)
def test_a_database_in_memory_that_took_part_leaves_the_word_to_the_others(site, storage, step, in_main, expected):
    def in_memory(database):
        sessions = DB(storage(), databases=database.databases, database_name="sessions")
        with sessions.transaction() as connection:
            connection.root()["content"] = PersistentMapping()

    def work():
        connection = site.connect()
        in_memory(connection.db())
        site.send()
        if in_main:
            change(connection, 1)
        change(connection.get_connection("sessions"), 1)

    die_at(step, work)
    with opened(*site.paths) as database:
        in_memory(database)
        recover(site.spool, list(database.databases.values()), durable=True)
    (state,) = site.states()
    assert state.startswith(expected)


# -- two sites, one spool --


@pytest.mark.parametrize("step", ["release", "database's finish"])
def test_the_start_of_another_site_on_the_spool_changes_nothing(site, tmp_path, step):
    other = Site(tmp_path / "other", site.spool)
    site.dies_at(step)
    before = everything_in(site.spool)
    assert start(other) == {Outcome.LEFT: 1}
    assert everything_in(site.spool) == before
    assert start(site) == {Outcome.RELEASED if step == "release" else Outcome.SET_ASIDE: 1}


@pytest.mark.parametrize("step", ["release", "database's finish"])
def test_the_start_of_a_site_from_the_same_template_in_the_same_place_changes_nothing(site, step):
    """As in two containers that share a volume with the spool, and call all else by the same names."""
    template = site.paths[0].with_name("template")
    shutil.copyfile(site.paths[0], template)
    with opened(*site.paths) as database, database.transaction() as connection:
        change(connection, "own")
    site.dies_at(step)
    own = site.paths[0].rename(site.paths[0].with_name("own"))
    template.rename(site.paths[0])
    before = everything_in(site.spool)
    assert start(site) == {Outcome.LEFT: 1}
    assert everything_in(site.spool) == before
    own.rename(site.paths[0])
    assert start(site) == {Outcome.RELEASED if step == "release" else Outcome.SET_ASIDE: 1}


def test_a_database_that_has_been_moved_is_still_known(site):
    site.dies_at("release")
    site.dies_at("database's finish")
    moved = site.paths[0].rename(site.paths[0].with_name("moved.fs"))
    assert start(site, [moved]) == {Outcome.RELEASED: 1, Outcome.SET_ASIDE: 1}


def test_an_older_copy_of_the_database_settles_nothing(site):
    backup = shutil.copyfile(site.paths[0], site.paths[0].with_name("backup"))
    with opened(*site.paths) as database, database.transaction() as connection:
        change(connection, "later")
    site.dies_at("release")
    os.replace(backup, site.paths[0])
    assert start(site) == {Outcome.LEFT: 1}


# -- packed histories --


def pack(site, replace):
    time.sleep(0.01)
    with opened(*site.paths) as database:
        if replace:
            with database.transaction() as connection:
                change(connection, "replaced")
        database.pack(time.time() + 1)


def test_what_has_been_packed_away_is_unknown_and_kept_with_that_reason(site):
    site.dies_at("release")
    pack(site, replace=True)
    assert start(site) == {Outcome.SET_ASIDE: 1}
    assert site.states() == ["unknown whether its transaction committed: the database main has been packed since"]
    (kept,) = (site.spool / "failed").iterdir()
    assert spool.read_note(kept, "Committed") == "unknown"


def test_a_record_that_packing_has_left_is_found(site):
    site.dies_at("release")
    pack(site, replace=False)
    assert start(site) == {Outcome.RELEASED: 1}


def test_a_history_that_was_packed_before_the_transaction_says_that_it_did_not_commit(site):
    with opened(*site.paths) as database, database.transaction() as connection:
        change(connection, "to be replaced")
    pack(site, replace=True)
    with opened(*site.paths) as database, database.transaction() as connection:
        change(connection, "after")
    site.dies_at("database's finish")
    assert start(site) == {Outcome.SET_ASIDE: 1}
    assert site.states() == [NO_RECORD]


def test_another_site_that_has_been_packed_settles_nothing(site, tmp_path):
    other = Site(tmp_path / "other", site.spool)
    site.dies_at("release")
    pack(other, replace=True)
    assert start(other) == {Outcome.LEFT: 1}
    assert site.states() == ["locked"]


# -- what nobody can know --


class Other:
    """A manager that is no database of ours."""

    def sortKey(self):
        return "~~ other"

    def tpc_begin(self, txn):
        pass

    commit = tpc_vote = tpc_finish = tpc_abort = abort = tpc_begin


def test_where_others_took_part_and_no_database_nobody_can_know(site):
    die_at("release", lambda: (site.send(), transaction.get().join(Other())))
    assert start(site) == {Outcome.SET_ASIDE: 1}
    (why,) = site.states()
    assert why.startswith("unknown whether its transaction committed: no database took part")


def test_where_others_took_part_the_databases_record_decides(site):
    def work():
        connection = site.connect()
        site.send()
        change(connection, 1)
        transaction.get().join(Other())

    die_at("release", work)
    die_at("database's finish", work)
    assert start(site) == {Outcome.RELEASED: 1, Outcome.SET_ASIDE: 1}


def test_where_mails_went_to_two_spools_and_no_database_nobody_can_know(site, tmp_path):
    other = Site(tmp_path / "other", tmp_path / "other spool")
    die_at("release", lambda: (site.send(), other.send()))
    for each in (site, other):
        assert start(each) == {Outcome.SET_ASIDE: 1}


def test_a_vote_that_cannot_be_read_settles_nothing_that_has_none(site):
    site.dies_at("release")
    site.dies_at("release")
    first = min((site.spool / "writers").iterdir(), key=lambda path: path.stat().st_mtime_ns)
    first.write_bytes(b"garbage\n")
    assert start(site) == {Outcome.LEFT: 1, Outcome.RELEASED: 1}
    assert first.exists() and site.states() == ["due", "locked"]


def test_a_vote_without_its_end_is_none(site):
    site.dies_at("release")
    (path,) = (site.spool / "writers").iterdir()
    path.write_bytes(path.read_bytes().rstrip(b"\0")[:-1])
    assert start(site) == {Outcome.REMOVED: 1}


# -- what is none of its business --


def test_locks_of_other_programs_are_never_touched(site, caplog):
    names = [spool.new_name(), "stranger"]
    for name in names:
        (site.spool / name).write_text("##To:ann@example.org\n##From:zoe@example.org\n\nx\n")
        spool.lock_path(site.spool / name).touch()
    draft = spool.Draft(site.spool / spool.new_name())
    draft.write("zoe@example.org", "ann@example.org", b"x", {"Transaction": f"host-1-0badc0de-1 {'0' * 32}"})
    spool.lock_path(site.spool / spool.new_name()).touch()
    before = everything_in(site.spool)
    site.dies_at("vote")
    assert start(site) == {Outcome.REMOVED: 1}
    assert everything_in(site.spool) == before
    assert "4 locks" in caplog.text and "unknown origin" in caplog.text


def test_a_lock_that_a_person_put_beside_a_mail_of_a_dead_writer_is_not_touched(site):
    def work():
        site.send("released")
        transaction.commit()
        site.send("open")
        die()

    assert in_fork(work) == -signal.SIGKILL
    (released,) = [name for name in files_in(site.spool) if b"released" in (site.spool / name).read_bytes()]
    spool.lock_path(site.spool / released).touch()
    assert start(site) == {Outcome.REMOVED: 1}
    assert site.state() == {released: "locked"}


def test_an_open_transaction_of_a_living_process_is_not_touched(site):
    site.send("open here")
    reading, writing = os.pipe()

    def other():
        site.send("open there")
        os.read(reading, 1)
        transaction.commit()

    pid = os.fork()
    if pid == 0:
        transaction.abort()
        other()
        os._exit(0)
    while len(files_in(site.spool)) < 4:
        assert os.waitpid(pid, os.WNOHANG) == (0, 0)
        time.sleep(0.01)
    site.dies_at("vote")
    assert start(site) == {Outcome.REMOVED: 1}
    assert site.states() == ["locked", "locked"]
    os.write(writing, b"x")
    assert os.waitpid(pid, 0)[1] == 0
    transaction.commit()
    assert site.states() == ["due", "due"]


# -- again, and at the same time --


@pytest.mark.parametrize("step", ["vote", "database's finish", "release"])
def test_recovery_that_is_killed_at_any_step_is_done_again(site, monkeypatch, step):
    calls = ["unlink", "rename", "fsync", "mkdir", "open"]
    expected = {"vote": [], "database's finish": [NO_RECORD] * 2, "release": ["due"] * 2}[step]

    def recover_until(number):
        steps = iter(range(number))

        def counted(really):
            def counting(*arguments, **keywords):
                if next(steps, None) is None:
                    die()
                return really(*arguments, **keywords)

            return counting

        for name in calls:
            setattr(os, name, counted(getattr(os, name)))
        start(site)

    for number in range(300):
        for path in [*site.spool.glob("2*"), *site.spool.glob("failed/*")]:
            path.unlink()
        site.dies_at(step, mails=2, value=number)
        status = in_fork(lambda number=number: recover_until(number))
        between = site.states()
        assert set(between) <= {"locked", "lock alone", *expected}, number
        start(site)
        assert site.states() == expected, number
        assert os.listdir(site.spool / "writers") == []
        if status == 0:
            break
        assert status == -signal.SIGKILL
    assert number > 5


def test_of_processes_that_recover_at_the_same_time_each_settles_something_else_or_nothing(site):
    for _ in range(5):
        site.dies_at("release", mails=20)
        site.dies_at("vote", mails=20)
    with opened(*site.paths) as database:    # which the others only read
        databases = [database]
        pids = []
        for _ in range(4):
            pid = os.fork()
            if pid == 0:
                try:
                    recover(site.spool, databases, durable=True)
                    os._exit(0)
                finally:
                    os._exit(1)
            pids.append(pid)
        assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 4
    start(site)
    assert site.states() == ["due"] * 100


def test_when_all_is_settled_the_dead_writers_files_are_gone(site):
    site.dies_at("release")
    assert len(os.listdir(site.spool / "writers")) == 1
    start(site)
    assert os.listdir(site.spool / "writers") == []
    assert start(site) == {}


def test_mails_that_recovery_releases_are_named_to_who_listens(site):
    site.dies_at("release")
    waker = WakeUp()
    try:
        waker.listen([site.spool], 0o700)
        start(site)
        assert [path.name for path in waker.wait(0).paths] == files_in(site.spool)
    finally:
        waker.close()


# -- fast, and never in the way --


def test_the_history_is_read_from_the_last_transaction_before_the_oldest_orphan_on(site, monkeypatch):
    with opened(*site.paths) as database:
        for number in range(20):
            with database.transaction() as connection:
                change(connection, number)
        last = database.lastTransaction()
    site.dies_at("release")
    with opened(*site.paths) as database, database.transaction() as connection:
        change(connection, "after")
    seen = []
    records = History._records

    def watched(*asked):
        for record in records(*asked):
            seen.append(record.tid)
            yield record

    monkeypatch.setattr(History, "_records", watched)
    assert start(site) == {Outcome.RELEASED: 1}
    assert min(seen) == last and len(set(seen)) == 3


@pytest.mark.parametrize("orphan", ["none", "not voted", "only mails"])
def test_no_history_is_read_where_nothing_has_to_be_looked_up(site, monkeypatch, orphan):
    if orphan != "none":
        site.dies_at("vote") if orphan == "not voted" else site.dies_with_mails_only("release")
    monkeypatch.setattr(History, "__init__", lambda *_: pytest.fail("a database was asked"))
    assert len(start(site)) == (orphan != "none")


def test_a_history_that_cannot_be_read_is_logged_and_settles_nothing_but_what_needs_none(site, monkeypatch, caplog):
    site.dies_at("release")
    site.dies_at("vote")

    def fails(*arguments):
        raise RuntimeError("a broken storage")

    monkeypatch.setattr(FileStorage, "iterator", fails)
    monkeypatch.setattr("Products.MaildropHost.recovery._PAUSES_S", ())
    assert start(site) == {Outcome.LEFT: 1, Outcome.REMOVED: 1}
    assert "a broken storage" in caplog.text
    monkeypatch.undo()
    assert start(site) == {Outcome.RELEASED: 1}


def test_a_problem_with_one_mail_or_one_spool_is_logged_and_stops_nothing(site, tmp_path, monkeypatch, caplog):
    site.dies_at("release", mails=2)
    first = files_in(site.spool)[1]
    unlink = os.unlink

    def fails_once(path, *arguments, **keywords):
        if os.fspath(path).endswith(first):
            raise OSError(5, "Input/output error")
        unlink(path, *arguments, **keywords)

    monkeypatch.setattr(os, "unlink", fails_once)
    no_spool = tmp_path / "no spool"
    no_spool.mkdir()
    (no_spool / "writers").write_text("")
    caplog.set_level(logging.INFO)
    with opened(*site.paths) as database:
        recover_all({no_spool: True, site.spool: True}, [database])
    assert site.states() == ["due", "locked"]
    assert f"left locked in {no_spool}" in caplog.text
    assert "left locked: [Errno 5] Input/output error" in caplog.text
    monkeypatch.undo()
    assert start(site) == {Outcome.RELEASED: 1}


def test_the_file_of_another_writer_that_makes_no_sense_stops_nothing(site):
    site.dies_at("release")
    (site.spool / "writers" / "a-00000000-1").write_bytes(b"[" * 50_000 + b"\n")
    assert start(site) == {Outcome.RELEASED: 1}


def test_a_dead_writers_file_that_cannot_be_removed_stops_nothing(site, monkeypatch, caplog):
    site.dies_at("release")
    site.dies_at("release")
    first = min(os.listdir(site.spool / "writers"))
    unlink = os.unlink

    def fails(path, *arguments, **keywords):
        if os.fspath(path).endswith(first):
            raise PermissionError(1, "Operation not permitted")
        unlink(path, *arguments, **keywords)

    monkeypatch.setattr(os, "unlink", fails)
    assert start(site) == {Outcome.RELEASED: 2}
    assert os.listdir(site.spool / "writers") == [first] and f"{first} in " in caplog.text


def test_a_mail_that_cannot_be_copied_stops_none_of_the_others(site, monkeypatch):
    site.dies_at("database's finish", mails=3)
    second = sorted(site.state())[1]
    aside = spool.set_orphan_aside

    def fails(path, *arguments):
        if path.name == second:
            raise OSError(5, "Input/output error")
        return aside(path, *arguments)

    monkeypatch.setattr(spool, "set_orphan_aside", fails)
    assert start(site) == {Outcome.SET_ASIDE: 2, Outcome.LEFT: 1}
    assert site.states() == [NO_RECORD, NO_RECORD, "locked"]
    monkeypatch.undo()
    assert start(site) == {Outcome.SET_ASIDE: 1}


def test_more_dead_writers_than_files_may_be_open_are_settled(site):
    def ends_without_cleaning_up():
        transaction.abort()
        site.send()
        transaction.commit()

    for _ in range(120):
        in_fork(ends_without_cleaning_up)
    site.dies_at("release")
    open_files = len(os.listdir("/proc/self/fd"))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (open_files + 115, limits[1]))
    try:
        assert start(site) == {Outcome.RELEASED: 1}
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert site.states() == ["due"] * 121 and os.listdir(site.spool / "writers") == []


def test_sites_that_start_at_the_same_time_each_settle_their_own(site, tmp_path, monkeypatch):
    other = Site(tmp_path / "other", site.spool)
    site.dies_at("release")
    other.dies_at("release")
    reading, writing = os.pipe()
    tokens_since = History.tokens_since

    def slow(history, tid):
        os.write(writing, b"x")
        time.sleep(0.3)    # longer than somebody looks who does not wait for the other
        return tokens_since(history, tid)

    pid = os.fork()
    if pid == 0:
        History.tokens_since = slow
        start(other)
        os._exit(0)
    os.read(reading, 1)
    assert start(site)[Outcome.RELEASED] == 1
    assert os.waitpid(pid, 0)[1] == 0
    assert site.states() == ["due", "due"]


def test_zope_starts_where_a_spool_cannot_be_looked_at(site, tmp_path, caplog, monkeypatch):
    unusable = make_host(tmp_path, MAILDROP_SPOOL="/" + "x" * 300)
    monkeypatch.setitem(CONFIG_PATHS, "unusable", unusable.getConfigPath())
    monkeypatch.setitem(CONFIG_PATHS, "site", site.host.getConfigPath())
    site.dies_at("release")
    with opened(*site.paths) as database:
        _recover(DatabaseOpenedWithRoot(database))
        assert site.states() == ["due"]
        monkeypatch.setitem(CONFIG_PATHS, "wrong", object())
        _recover(DatabaseOpenedWithRoot(database))
    assert "cannot be settled" in caplog.text


def test_where_nothing_can_be_kept_in_failed_it_stays_locked_and_all_else_is_settled(site):
    site.dies_at("release")
    site.dies_at("database's finish")
    site.dies_at("vote")
    (site.spool / "failed").rmdir()
    (site.spool / "failed").write_text("")
    assert start(site) == {Outcome.RELEASED: 1, Outcome.REMOVED: 1, Outcome.LEFT: 1}
    (site.spool / "failed").unlink()
    assert site.states() == ["due", "locked"]
    assert start(site) == {Outcome.SET_ASIDE: 1}


def test_writers_whose_files_may_not_be_read_are_not_judged(site, monkeypatch):
    site.dies_at("release")
    (name,) = os.listdir(site.spool / "writers")
    really_open = os.open

    def forbids(path, *arguments, **keywords):
        if os.fspath(path).endswith(name):
            raise PermissionError(13, "Permission denied")
        return really_open(path, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", forbids)
        assert start(site) == {}
        assert writers.is_alive(site.spool, name) is None
    assert start(site) == {Outcome.RELEASED: 1}


# -- what stands in the database --


def test_the_token_stands_in_the_databases_record_beside_what_other_software_put_there(site):
    with opened(*site.paths) as database:
        connection = database.open()
        transaction.get().setExtendedInfo("other", "software's")
        site.send()
        site.send()
        change(connection, 1)
        transaction.commit()
        connection.close()
        *_, record = database.storage.iterator()
        tokens = {spool.read_note(site.spool / name, "Transaction").split()[1] for name in files_in(site.spool)}
        assert record.extension == {"other": "software's", INFO: tokens.pop()} and not tokens


def test_the_token_stands_there_also_where_other_software_replaced_the_extension(site):
    def work():
        connection = site.connect()
        site.send()
        change(connection, 1)
        transaction.get().extension = {"other": "software's"}

    die_at("release", work)
    assert start(site) == {Outcome.RELEASED: 1}


def test_five_thousand_mails_and_a_change_commit_in_one_transaction(site):
    with opened(*site.paths) as database:
        connection = database.open()
        site.send(mails=5000)
        change(connection, 1)
        transaction.commit()
        connection.close()
        *_, record = database.storage.iterator()
        assert len(record.extension_bytes) < 200
    assert site.states() == ["due"] * 5000
    (path,) = (site.spool / "writers").iterdir()
    assert path.stat().st_size < 5000


def test_recovery_of_fifty_mails_sends_all_or_none(site):
    site.dies_at("release", mails=50)
    site.dies_at("vote", mails=50)
    start(site)
    assert site.states() == ["due"] * 50
    assert writers.names_of_writers(site.spool) == []

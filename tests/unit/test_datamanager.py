"""What becomes of a transaction's mails in every way a transaction can go."""

import os
import sys
import threading

import pytest
import transaction
from persistent.mapping import PersistentMapping
from support.spooling import MODULE, files_in, make_host, read_mails
from ZODB.DB import DB
from ZODB.FileStorage import FileStorage

from maildrop import spool
from maildrop.wake import WakeUp


@pytest.fixture
def host(tmp_path):
    transaction.abort()
    yield make_host(tmp_path)
    transaction.abort()


def send(host, subject):
    host.send("Hello", mto="ann@example.org", mfrom="zoe@example.org", subject=subject)


def subjects(tmp_path):
    messages = [message for _, _, message in read_mails(tmp_path / "spool")]
    return [message.split(b"\r\n")[0].decode() for message in messages]


class Resource:
    """A data manager that can be told to fail."""

    def __init__(self, fails_in="", key="a database"):
        self.fails_in = fails_in
        self.key = key

    def sortKey(self):
        return self.key

    def _step(name):
        def step(self, txn):
            if self.fails_in == name:
                raise RuntimeError(f"{name} fails")

        return step

    tpc_begin, commit, tpc_vote = _step("tpc_begin"), _step("commit"), _step("tpc_vote")
    tpc_finish, tpc_abort, abort = _step("tpc_finish"), _step("tpc_abort"), _step("abort")


def test_an_open_transactions_mail_is_two_files_a_committed_one_and_an_aborted_none(host, tmp_path):
    send(host, "first")
    names = files_in(tmp_path / "spool")
    assert len(names) == 2 and names[1] == names[0] + ".lck"
    transaction.commit()
    assert files_in(tmp_path / "spool") == names[:1]
    send(host, "second")
    transaction.abort()
    assert files_in(tmp_path / "spool") == names[:1]


def test_a_rollback_removes_the_mails_sent_after_the_savepoint_and_only_those(host, tmp_path):
    send(host, "one")
    first = transaction.savepoint()
    send(host, "two")
    second = transaction.savepoint()
    send(host, "three")
    second.rollback()
    send(host, "four")
    first.rollback()
    send(host, "five")
    assert len(files_in(tmp_path / "spool")) == 4
    transaction.commit()
    assert subjects(tmp_path) == ["Subject: one", "Subject: five"]
    assert len(files_in(tmp_path / "spool")) == 2


def test_after_a_rollback_to_before_the_first_mail_exactly_the_later_mail_arrives(host, tmp_path):
    savepoint = transaction.savepoint()
    send(host, "first")
    savepoint.rollback()
    assert files_in(tmp_path / "spool") == []
    send(host, "second")
    transaction.commit()
    assert subjects(tmp_path) == ["Subject: second"]
    assert len(files_in(tmp_path / "spool")) == 1


def test_a_mail_made_before_a_savepoint_and_sent_after_it_is_rolled_back(host, tmp_path):
    host._makeTempPath()
    (tmp_path / "spool").mkdir()
    email = MODULE.TransactionalEmail("zoe@example.org", "ann@example.org", "Subject: x\n\nx", host._makeTempPath())
    savepoint = transaction.savepoint()
    email.send()
    savepoint.rollback()
    assert files_in(tmp_path / "spool") == []
    transaction.commit()
    assert files_in(tmp_path / "spool") == []


def test_a_mail_made_in_a_transaction_that_is_over_belongs_to_the_next(host, tmp_path):
    (tmp_path / "spool").mkdir()
    email = MODULE.TransactionalEmail("zoe@example.org", "ann@example.org", "Subject: x\n\nx", host._makeTempPath())
    transaction.commit()
    email.send()
    assert len(files_in(tmp_path / "spool")) == 2
    transaction.commit()
    assert len(files_in(tmp_path / "spool")) == 1


def test_a_commit_with_an_after_commit_hook_leaves_its_mail(host, tmp_path):
    called = []
    transaction.get().addAfterCommitHook(called.append)
    send(host, "hooked")
    transaction.commit()
    assert called == [True]
    assert subjects(tmp_path) == ["Subject: hooked"]


def test_an_after_commit_hook_that_sends_gets_an_error_and_leaves_nothing_locked(host, tmp_path):
    errors = []

    def hook(success):
        with pytest.raises(ValueError) as caught:
            send(host, "too late")
        errors.append(caught.value)

    transaction.get().addAfterCommitHook(hook)
    send(host, "in time")
    transaction.commit()
    assert len(errors) == 1
    assert subjects(tmp_path) == ["Subject: in time"]
    assert len(files_in(tmp_path / "spool")) == 1


@pytest.mark.parametrize("step", ["tpc_begin", "commit", "tpc_vote"])
@pytest.mark.parametrize("key", ["a database", "~~late"])
def test_a_transaction_that_fails_before_the_finish_phase_leaves_no_mail(host, tmp_path, step, key):
    transaction.get().join(Resource(step, key))
    send(host, "never")
    with pytest.raises(RuntimeError):
        transaction.commit()
    transaction.abort()
    assert files_in(tmp_path / "spool") == []


def test_a_finish_that_fails_in_another_manager_loses_no_mail(host, tmp_path):
    database, other = Resource(), Resource("tpc_finish", key="another")
    transaction.get().join(database)
    transaction.get().join(other)
    send(host, "kept")
    with pytest.raises(RuntimeError):
        transaction.commit()
    transaction.abort()
    names = files_in(tmp_path / "spool")
    assert len(names) == 2 and names[1].endswith(".lck")    # kept for whoever can tell whether the database committed


def test_after_an_aborted_transaction_the_next_one_sends(host, tmp_path):
    send(host, "aborted")
    transaction.abort()
    send(host, "committed")
    transaction.commit()
    assert subjects(tmp_path) == ["Subject: committed"]


def test_a_failed_transaction_takes_no_more_mails(host, tmp_path):
    transaction.get().join(Resource("tpc_vote"))
    with pytest.raises(RuntimeError):
        transaction.commit()
    with pytest.raises(transaction.interfaces.TransactionFailedError):
        send(host, "never")
    transaction.abort()
    assert not (tmp_path / "spool").exists() or files_in(tmp_path / "spool") == []


def test_a_doomed_transaction_leaves_no_mail(host, tmp_path):
    send(host, "doomed")
    transaction.doom()
    with pytest.raises(transaction.interfaces.DoomedTransaction):
        transaction.commit()
    transaction.abort()
    assert files_in(tmp_path / "spool") == []


def test_a_lock_that_cannot_be_removed_does_not_break_the_commit_and_is_tried_again(host, tmp_path):
    send(host, "stuck")
    lock = next((tmp_path / "spool").glob("*.lck"))
    lock.unlink()
    lock.mkdir()    # even root cannot unlink this
    transaction.commit()
    assert lock.exists()
    lock.rmdir()
    lock.touch()
    send(host, "next")
    transaction.commit()
    assert subjects(tmp_path) == ["Subject: stuck", "Subject: next"]
    assert len(files_in(tmp_path / "spool")) == 2


def test_zopes_log_says_once_that_locks_cannot_be_removed_however_many_and_again_after_they_could(host, tmp_path, caplog):
    caplog.set_level("INFO", "MaildropHost")
    for _ in range(2):
        for _ in range(3):
            send(host, "first")
            send(host, "second")
            locks = [path for path in (tmp_path / "spool").glob("*.lck") if path.is_file()]
            for lock in locks:
                lock.unlink()
                lock.mkdir()    # even root cannot unlink this
            transaction.commit()
        stuck = list((tmp_path / "spool").glob("*.lck"))
        assert len(stuck) == 6 and caplog.records[-1].levelname == "ERROR"
        for lock in stuck:
            lock.rmdir()
            lock.touch()
        send(host, "last")
        transaction.commit()
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"] * 2
    assert len(read_mails(tmp_path / "spool")) == 14


def test_non_transactional_mail_is_there_unlocked_when_send_returns(tmp_path):
    host = make_host(tmp_path, transactional=False)
    send(host, "at once")
    assert subjects(tmp_path) == ["Subject: at once"]
    transaction.abort()
    assert subjects(tmp_path) == ["Subject: at once"]


def test_immediate_changes_nothing_in_transactional_mode(host, tmp_path):
    host.send("Hello", mto="ann@example.org", mfrom="zoe@example.org", subject="now", immediate=True)
    assert subjects(tmp_path) == []
    transaction.abort()
    assert files_in(tmp_path / "spool") == []


def test_the_mails_of_one_transaction_name_one_writer_and_token_and_of_two_transactions_two(host, tmp_path):
    send(host, "one")
    send(host, "two")
    transaction.commit()
    send(host, "three")
    transaction.commit()
    lines = []
    for name in files_in(tmp_path / "spool"):
        lines += [line for line in (tmp_path / "spool" / name).read_text().splitlines() if line.startswith("##Transaction:")]
    assert len(lines) == 3
    assert lines[0] == lines[1] != lines[2]
    assert lines[0].split()[0] == lines[2].split()[0]


def test_eight_threads_with_a_database_connection_each_commit_at_the_same_time(tmp_path):
    host = make_host(tmp_path)
    database = DB(FileStorage(str(tmp_path / "Data.fs")))
    with database.transaction() as connection:
        for number in range(8):
            connection.root()[number] = PersistentMapping()
    failures = []

    def work(number):
        try:
            manager = transaction.manager
            connection = database.open(manager)
            for count in range(25):
                with manager:
                    connection.root()[number][count] = True
                    send(host, f"{number}-{count}")
            connection.close()
        except Exception as error:    # a thread's exception would go unseen
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    with database.transaction() as connection:
        assert [len(connection.root()[number]) for number in range(8)] == [25] * 8
    database.close()
    assert failures == []
    assert sorted(subjects(tmp_path)) == sorted(f"Subject: {n}-{c}" for n in range(8) for c in range(25))
    assert len(files_in(tmp_path / "spool")) == 200
    assert {message.partition(b"\r\n\r\n")[2] for _, _, message in read_mails(tmp_path / "spool")} == {b"Hello"}


# -- durability --


@pytest.fixture
def flushes(monkeypatch):
    """What was flushed of mails so far, in this order: "mail" for each, the name of a directory otherwise."""
    told = []
    flush = spool._flush

    def flushing(path):
        if path.name != "writers":
            told.append(path.name if path.is_dir() else "mail")
        flush(path)

    monkeypatch.setattr(spool, "_flush", flushing)
    return told


def test_each_mail_is_flushed_in_the_commit_and_its_directory_once(host, flushes):
    for number in range(7):
        send(host, f"{number}")
    assert flushes == []
    transaction.commit()
    assert flushes == ["mail"] * 7 + ["spool"]


def test_all_is_flushed_before_any_manager_votes(host, flushes):
    seen = []
    early = Resource(key="\0 first of all")
    early.tpc_vote = lambda txn: seen.extend(flushes)
    transaction.get().join(early)
    send(host, "x")
    transaction.commit()
    assert seen == ["mail", "spool"]


def test_each_of_several_directories_is_flushed_once(host, tmp_path, flushes):
    others = [make_host(tmp_path / name, MAILDROP_SPOOL=tmp_path / name) for name in ("one", "two")]
    for each in (host, *others) * 3:
        send(each, "x")
    transaction.commit()
    assert flushes[:9] == ["mail"] * 9
    assert sorted(flushes[9:]) == ["one", "spool", "two"]


def test_a_mail_that_was_rolled_back_is_not_flushed(host, flushes):
    send(host, "kept")
    savepoint = transaction.savepoint()
    send(host, "rolled back")
    savepoint.rollback()
    transaction.commit()
    assert flushes == ["mail", "spool"]


def test_what_others_send_while_they_commit_is_flushed_by_the_vote(host, tmp_path, flushes):
    late = Resource(key="~~ after the mails")
    late.commit = lambda txn: send(host, "late")
    transaction.get().join(late)
    send(host, "early")
    transaction.commit()
    assert flushes == ["mail", "spool", "mail", "spool"]
    assert sorted(subjects(tmp_path)) == ["Subject: early", "Subject: late"]


@pytest.mark.parametrize("failing", ["the mail", "the directory"])
def test_a_flush_that_fails_aborts_the_transaction_and_leaves_nothing(host, tmp_path, monkeypatch, failing):
    def fails(path):
        if path.is_dir() == (failing == "the directory"):
            raise OSError(5, "Input/output error")

    database = Resource()
    finished = []
    database.tpc_finish = finished.append
    transaction.get().join(database)
    send(host, "one")
    send(host, "two")
    with monkeypatch.context() as patch:
        patch.setattr(spool, "_flush", fails)
        with pytest.raises(OSError, match="Input/output error"):
            transaction.commit()
    transaction.abort()
    assert finished == []
    assert files_in(tmp_path / "spool") == []
    send(host, "three")
    transaction.commit()
    assert subjects(tmp_path) == ["Subject: three"]


def test_nothing_is_flushed_where_the_config_says_so(tmp_path, flushes):
    transaction.abort()
    for transactional in (True, False):
        host = make_host(tmp_path, transactional=transactional, MAILDROP_FSYNC=0)
        send(host, "quick")
        transaction.commit()
    assert flushes == []
    assert subjects(tmp_path) == ["Subject: quick"] * 2


def test_only_the_directories_of_mails_that_have_to_last_are_flushed(host, tmp_path, flushes):
    quick = make_host(tmp_path / "quick", MAILDROP_SPOOL=tmp_path / "quick", MAILDROP_FSYNC=0)
    send(host, "durable")
    send(quick, "quick")
    transaction.commit()
    assert flushes == ["mail", "spool"]


def test_a_non_transactional_mail_is_flushed_with_its_directory_before_send_returns(tmp_path, flushes):
    send(make_host(tmp_path, transactional=False), "at once")
    assert flushes.count("mail") == 1
    assert flushes[-1] == "spool"


def test_a_non_transactional_mail_that_cannot_be_flushed_is_an_error_and_leaves_nothing(tmp_path, monkeypatch):
    def fails(path):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(spool, "_flush", fails)
    with pytest.raises(MODULE.MaildropHostError, match="Input/output error"):
        send(make_host(tmp_path, transactional=False), "never")
    assert files_in(tmp_path / "spool") == []


def test_a_large_transaction_keeps_no_file_open(host):
    send(host, "first")    # for which the writer's own file is opened, once
    before = set(os.listdir("/dev/fd"))
    for number in range(50):
        send(host, f"{number}")
    assert set(os.listdir("/dev/fd")) == before


def test_of_many_mails_all_are_begun_with_before_the_first_is_waited_for(host, flushes, monkeypatch):
    begin = spool.Draft.begin_flush
    monkeypatch.setattr(spool.Draft, "begin_flush", lambda draft: (flushes.append("begun"), begin(draft)))
    for number in range(3):
        send(host, f"{number}")
    transaction.commit()
    assert flushes == ["begun"] * 3 + ["mail"] * 3 + ["spool"]


@pytest.mark.parametrize("error", [OSError(5, "Input/output error"), AttributeError("no such call")])
def test_where_the_disk_cannot_be_told_to_begin_the_mails_are_flushed_all_the_same(
    host, tmp_path, flushes, monkeypatch, error
):
    def refuses(*arguments):
        raise error

    monkeypatch.setattr(os, "posix_fadvise", refuses, raising=False)
    send(host, "one")
    before = set(os.listdir("/dev/fd"))
    send(host, "two")
    transaction.commit()
    assert flushes == ["mail", "mail", "spool"]
    assert subjects(tmp_path) == ["Subject: one", "Subject: two"]
    assert set(os.listdir("/dev/fd")) == before


# -- the wake-up --


@pytest.fixture
def listen():
    """A function that makes somebody listen at spools; it returns a function that tells what was heard since."""
    made = []

    def listen_at(*directories):
        waker = WakeUp()
        made.append(waker)
        waker.listen(directories, 0o700)

        def hear():
            woken = waker.wait(0)
            return sorted(woken.paths), woken.look

        return hear

    yield listen_at
    for waker in made:
        waker.close()


def mails_in(directory):
    return sorted(path for path in directory.iterdir() if path.is_file())


def test_the_mails_of_a_transaction_are_named_when_they_are_due_and_not_before(host, tmp_path, listen):
    hear = listen(tmp_path / "spool")
    for number in range(3):
        send(host, f"{number}")
    assert hear() == ([], False)
    late = Resource(key="~~ after the mails")
    heard_at_vote = []
    late.tpc_vote = lambda txn: heard_at_vote.append(hear())
    transaction.get().join(late)
    transaction.commit()
    assert heard_at_vote == [([], False)]
    assert hear() == (mails_in(tmp_path / "spool"), False)
    assert len(mails_in(tmp_path / "spool")) == 3


def test_they_are_named_when_all_locks_have_gone_and_once_a_spool(host, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr(
        sys.modules["Products.MaildropHost.datamanager"],
        "announce",
        lambda directory, names: told.append((directory.name, len(names), len(list(tmp_path.glob("*/*.lck"))))),
    )
    other = make_host(tmp_path / "other", MAILDROP_SPOOL=tmp_path / "other")
    for each in (host, other, host):
        send(each, "x")
    transaction.commit()
    assert sorted(told) == [("other", 1, 0), ("spool", 2, 0)]


def test_an_abort_names_nothing(host, tmp_path, listen):
    hear = listen(tmp_path / "spool")
    send(host, "aborted")
    transaction.abort()
    send(host, "kept")
    savepoint = transaction.savepoint()
    send(host, "rolled back")
    savepoint.rollback()
    assert hear() == ([], False)
    transaction.get().join(Resource("tpc_vote", key="~~late"))
    with pytest.raises(RuntimeError):
        transaction.commit()
    transaction.abort()
    assert hear() == ([], False)


def test_a_rolled_back_mail_is_not_named_with_the_others(host, tmp_path, listen):
    hear = listen(tmp_path / "spool")
    send(host, "kept")
    savepoint = transaction.savepoint()
    send(host, "rolled back")
    savepoint.rollback()
    transaction.commit()
    (mail,) = mails_in(tmp_path / "spool")
    assert hear() == ([mail], False)


def test_a_mail_whose_lock_stays_is_named_when_it_goes(host, tmp_path, listen):
    hear = listen(tmp_path / "spool")
    send(host, "stuck")
    lock = next((tmp_path / "spool").glob("*.lck"))
    lock.unlink()
    lock.mkdir()
    transaction.commit()
    assert hear() == ([], False)
    lock.rmdir()
    lock.touch()
    send(host, "next")
    transaction.commit()
    assert hear() == (mails_in(tmp_path / "spool"), False)
    assert len(mails_in(tmp_path / "spool")) == 2


def test_for_more_mails_than_one_word_names_a_look_is_asked_for(host, tmp_path, listen):
    hear = listen(tmp_path / "spool")
    for number in range(130):
        send(host, f"{number}")
    transaction.commit()
    assert hear() == ([], True)


def test_a_non_transactional_mail_is_named_when_it_is_due(tmp_path, listen):
    hear = listen(tmp_path / "spool")
    send(make_host(tmp_path, transactional=False), "at once")
    assert hear() == (mails_in(tmp_path / "spool"), False)


def test_a_non_transactional_mail_that_cannot_be_sent_is_not_named(tmp_path, listen, monkeypatch):
    def fails(path):
        raise OSError(5, "Input/output error")

    hear = listen(tmp_path / "spool")
    monkeypatch.setattr(spool, "_flush", fails)
    with pytest.raises(MODULE.MaildropHostError):
        send(make_host(tmp_path, transactional=False), "never")
    assert hear() == ([], False)


@pytest.mark.parametrize("call", ["scandir", "open", "write", "fstat"])
def test_a_finish_never_fails_because_of_who_listens(host, tmp_path, listen, monkeypatch, call):
    def fails(*arguments, **keywords):
        raise OSError(5, "Input/output error")

    listen(tmp_path / "spool")
    send(host, "x")
    late = Resource(key="~~ after the mails")
    late.tpc_vote = lambda txn: monkeypatch.setattr(os, call, fails)
    transaction.get().join(late)
    try:
        transaction.commit()
    finally:
        monkeypatch.undo()
    assert subjects(tmp_path) == ["Subject: x"]
    assert len(files_in(tmp_path / "spool")) == 1


# -- one file with two names --


def test_an_open_transactions_mail_is_one_file_with_two_names(host, tmp_path):
    send(host, "x")
    mail, lock = (tmp_path / "spool" / name for name in files_in(tmp_path / "spool"))
    assert lock.name == mail.name + ".lck"
    assert mail.samefile(lock)
    transaction.commit()
    assert mail.stat().st_nlink == 1


@pytest.fixture(params=[1, 13, 31, 38, 95])    # EPERM, EACCES, EMLINK, ENOSYS, EOPNOTSUPP
def no_links(request, monkeypatch):
    """A file system where a file has one name."""

    def refuses(*arguments, **keywords):
        raise OSError(request.param, os.strerror(request.param))

    monkeypatch.setattr(os, "link", refuses)


def test_where_a_file_has_one_name_all_goes_the_same_way(no_links, host, tmp_path):
    send(host, "committed")
    mail, lock = (tmp_path / "spool" / name for name in files_in(tmp_path / "spool"))
    assert lock.name == mail.name + ".lck"
    transaction.commit()
    assert subjects(tmp_path) == ["Subject: committed"]
    send(host, "aborted")
    transaction.abort()
    assert files_in(tmp_path / "spool") == [mail.name]


def test_where_a_file_has_one_name_nobody_elses_file_is_overwritten(no_links, tmp_path):
    (tmp_path / "1").write_text("precious")
    with pytest.raises(FileExistsError):
        MODULE.Email("zoe@example.org", "ann@example.org", "x", tmp_path / "1").send()
    assert (tmp_path / "1").read_text() == "precious"
    assert files_in(tmp_path) == ["1"]


def test_where_a_file_has_one_name_nothing_is_left_of_a_mail_that_cannot_be_written(no_links, tmp_path, monkeypatch):
    writes, really_write = [], os.writev

    def fails_the_second_time(descriptor, parts):
        writes.append(descriptor)
        if len(writes) == 2:
            raise OSError(28, "No space left on device")
        return really_write(descriptor, parts)

    monkeypatch.setattr(os, "writev", fails_the_second_time)
    with pytest.raises(OSError, match="No space left"):
        MODULE.Email("zoe@example.org", "ann@example.org", "x", tmp_path / "1").send()
    assert len(writes) == 2
    assert files_in(tmp_path) == []


@pytest.mark.parametrize("taken", [False, True])
def test_nothing_is_left_of_a_mail_that_cannot_be_written_but_what_was_there(tmp_path, monkeypatch, taken):
    def fails(*arguments):
        raise OSError(28, "No space left on device")

    if taken:
        (tmp_path / "1").write_text("precious")
    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", fails)
        with pytest.raises(OSError, match="No space left"):
            MODULE.Email("zoe@example.org", "ann@example.org", "x", tmp_path / "1").send()
    assert files_in(tmp_path) == ["1"] * taken
    if taken:
        assert (tmp_path / "1").read_text() == "precious"


def test_a_mail_that_is_interrupted_after_it_got_its_name_is_taken_back(tmp_path, monkeypatch):
    really_link = os.link

    def interrupted(*arguments, **how):
        really_link(*arguments, **how)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(os, "link", interrupted)
        with pytest.raises(KeyboardInterrupt):
            MODULE.Email("zoe@example.org", "ann@example.org", "x", tmp_path / "1").send()
    assert files_in(tmp_path) == []


def test_a_mail_is_whole_where_a_write_takes_only_a_part_of_it(host, tmp_path, monkeypatch):
    really_write = os.writev

    def writes_seven_bytes(descriptor, parts):
        return really_write(descriptor, [b"".join(parts)[:7]])

    with monkeypatch.context() as patch:
        patch.setattr(os, "writev", writes_seven_bytes)
        send(host, "x" * 100)
    transaction.commit()
    assert subjects(tmp_path) == ["Subject: " + "x" * 100]
    assert {message.partition(b"\r\n\r\n")[2] for _, _, message in read_mails(tmp_path / "spool")} == {b"Hello"}


def test_the_message_is_handed_to_the_system_without_a_copy(tmp_path, monkeypatch):
    handed, really_write = [], os.writev

    def writing(descriptor, parts):
        handed.extend(part.obj for part in parts)
        return really_write(descriptor, parts)

    monkeypatch.setattr(os, "writev", writing)
    body = b"Subject: large\n\n" + b"x" * 1_000_000
    MODULE.Email("zoe@example.org", "ann@example.org", body, tmp_path / "1").send()
    assert any(part is body for part in handed)

"""Who writes to a spool, who of them is alive, and what they have voted for: with real processes and real locks."""

import fcntl
import os
import signal
import subprocess
import sys
import threading
import time

import pytest
import transaction
from support.orphans import die, in_fork
from support.spooling import files_in, make_host

from maildrop import spool, writers
from maildrop.writers import (
    Database,
    DeadWriter,
    Vote,
    WriterAlive,
    dead_writers,
    is_alive,
    join,
    lock_of,
    locks,
    settling,
    take,
)

VOTE = Vote("0" * 32, True, (Database("place", "03f2", True), Database("", "", False)), frozenset({"NAME"}))


@pytest.fixture
def directory(spool_directory):
    yield spool_directory
    writers._end()    # what this process is there


@pytest.fixture
def host(tmp_path):
    transaction.abort()
    yield make_host(tmp_path)
    transaction.abort()


def send(host):
    host.send("Hello", mto="ann@example.org", mfrom="zoe@example.org", subject="x")


def names(directory):
    return os.listdir(directory / "writers")


def dead_one(directory, work=lambda writer: None):
    """The name of a writer that has died after it had done its work."""

    def live_and_die():
        work(join(directory, 0o600, "token"))
        die()

    before = set(names(directory)) if (directory / "writers").exists() else set()
    assert in_fork(live_and_die) == -signal.SIGKILL
    (name,) = set(names(directory)) - before
    return name


# -- alive or dead --


def test_a_writer_is_alive_as_long_as_its_process_runs_whoever_looks(directory):
    name = join(directory, 0o600, "token").name
    assert is_alive(directory, name) is True
    assert in_fork(lambda: os._exit(is_alive(directory, name) is not True)) == 0
    with pytest.raises(WriterAlive):
        take(directory, name)
    with dead_writers(directory, names(directory)) as dead:
        assert dead == {}


def test_a_writer_that_was_killed_is_dead(directory):
    name = dead_one(directory)
    assert is_alive(directory, name) is False
    with dead_writers(directory, names(directory)) as dead:
        assert list(dead) == [name]


@pytest.mark.parametrize("name", ["", ".", "..", "../failed", "host-1-0badc0de-1", "host-1", "a/b-1-0badc0de-1"])
def test_of_a_writer_without_a_file_nothing_is_known(directory, name):
    dead_one(directory)
    assert is_alive(directory, name) is None
    assert take(directory, name) is None


def test_a_process_is_one_writer_for_all_its_threads_and_transactions(directory):
    found = []
    threads = [threading.Thread(target=lambda n=n: found.append(join(directory, 0o600, str(n)))) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(set(found)) == 1 and len(names(directory)) == 1


def test_a_fork_is_another_writer_and_does_not_keep_its_parent_alive(directory):
    reading, writing = os.pipe()
    reading_end, writing_end = os.pipe()

    def parent():
        name = join(directory, 0o600, "token").name
        if os.fork() == 0:
            own = join(directory, 0o600, "another").name
            os.write(writing, f"{name} {own} {os.getpid()}".encode())
            signal.pause()
        os.read(reading_end, 1)
        die()

    pid = os.fork()
    if pid == 0:
        parent()
    name, own, child = os.read(reading, 1000).decode().split()
    try:
        assert name != own and is_alive(directory, name) and is_alive(directory, own)
        os.write(writing_end, b"x")
        os.waitpid(pid, 0)
        assert is_alive(directory, name) is False
        assert is_alive(directory, own) is True
    finally:
        os.kill(int(child), signal.SIGKILL)


def test_a_fork_while_the_file_is_made_does_not_keep_its_parent_alive(directory):
    reading, writing = os.pipe()

    def parent():
        really_rename = os.rename

        def rename(source, target):
            if os.fork() == 0:
                os.write(writing, str(os.getpid()).encode())
                signal.pause()
            really_rename(source, target)

        os.rename = rename
        join(directory, 0o600, "token")
        die()

    assert in_fork(parent) == -signal.SIGKILL
    child = int(os.read(reading, 100))
    (name,) = names(directory)
    try:
        assert is_alive(directory, name) is False
    finally:
        os.kill(child, signal.SIGKILL)


def test_a_program_that_the_process_starts_does_not_keep_it_alive(directory):
    reading, writing = os.pipe()

    def parent():
        join(directory, 0o600, "token")
        child = subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
        os.write(writing, str(child.pid).encode())
        die()

    assert in_fork(parent) == -signal.SIGKILL
    child = int(os.read(reading, 100))
    (name,) = names(directory)
    try:
        assert is_alive(directory, name) is False
    finally:
        os.kill(child, signal.SIGKILL)


def test_the_file_is_locked_before_anybody_can_see_it(directory, monkeypatch):
    seen, really_rename = [], os.rename

    def rename(source, target):
        seen.append(names(directory))
        with dead_writers(directory, names(directory)) as dead:
            assert dead == {}
        really_rename(source, target)

    monkeypatch.setattr(os, "rename", rename)
    writer = join(directory, 0o600, "token")
    assert seen == [[f".{writer.name}"]] and names(directory) == [writer.name]


def test_a_writer_that_died_before_it_had_locked_its_file_leaves_nothing_in_the_end(directory, monkeypatch):
    def live_and_die():
        os.rename = die
        join(directory, 0o600, "token")

    assert in_fork(live_and_die) == -signal.SIGKILL
    (name,) = names(directory)
    with dead_writers(directory, names(directory)) as dead:
        assert dead == {}
    with settling(directory):
        assert names(directory) == [name]    # it may be about to
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 61)
    with settling(directory):
        assert names(directory) == []


def test_who_just_looks_does_not_keep_a_dead_writer_from_being_settled(directory):
    name = dead_one(directory)
    descriptor = os.open(directory / "writers" / name, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    timer = threading.Timer(0.01, os.close, [descriptor])
    timer.start()
    with dead_writers(directory, names(directory)) as dead:
        assert list(dead) == [name]


def test_who_settles_a_dead_writer_does_so_alone(directory):
    name = dead_one(directory)
    with dead_writers(directory, names(directory)) as dead:
        assert list(dead) == [name]
        assert is_alive(directory, name) is True
        with dead_writers(directory, names(directory)) as again:
            assert again == {}


def test_who_settles_waits_for_another_who_does_and_not_for_ever(directory, monkeypatch):
    reading, writing = os.pipe()
    name = dead_one(directory)

    def other():
        with settling(directory):
            os.write(writing, b"x")
            signal.pause()

    pid = os.fork()
    if pid == 0:
        other()
    try:
        os.read(reading, 1)
        with monkeypatch.context() as patch:
            patch.setattr(writers, "_SETTLING_S", 0)
            with pytest.raises(TimeoutError, match="somebody else"), settling(directory):
                pass
        pauses = []
        really_sleep = time.sleep

        def ends_the_other(seconds):
            if not pauses:
                os.kill(pid, signal.SIGKILL)
            pauses.append(seconds)
            really_sleep(seconds)

        monkeypatch.setattr(time, "sleep", ends_the_other)
        with settling(directory) as found:
            assert found == [name] and pauses
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)


def test_where_a_folder_cannot_be_locked_it_is_settled_all_the_same(directory, monkeypatch):
    name = dead_one(directory)

    def fails(*_):
        raise OSError(9, "Bad file descriptor")

    monkeypatch.setattr(fcntl, "flock", fails)
    with settling(directory) as found:
        assert found == [name]


# -- its end --


JOIN = "import sys; from pathlib import Path; from maildrop.writers import join; writer = join(Path(sys.argv[1]), 0o600, 't')"


def test_a_process_that_ends_well_leaves_no_file(directory):
    subprocess.run([sys.executable, "-c", f"{JOIN}; writer.leave('t')", directory], check=True)
    assert names(directory) == []


def test_a_process_that_ends_in_the_midst_of_a_transaction_leaves_its_file(directory):
    subprocess.run([sys.executable, "-c", JOIN, directory], check=True)
    (name,) = names(directory)
    assert is_alive(directory, name) is False


def test_a_file_that_was_taken_away_is_made_anew_for_the_next_transaction(directory):
    first = join(directory, 0o600, "one")
    (directory / "writers" / first.name).unlink()
    second = join(directory, 0o600, "two")
    assert second.name != first.name and names(directory) == [second.name]
    for writer, token in ((first, "one"), (second, "two")):
        writer.leave(token)


def test_a_file_in_the_writers_place_is_an_error(directory):
    (directory / "writers").write_text("")
    with pytest.raises(OSError):
        join(directory, 0o600, "token")
    with pytest.raises(FileNotFoundError):
        join(directory / "none", 0o600, "token")


@pytest.mark.parametrize(("mode", "of_spool"), [(0o600, 0o700), (0o660, 0o2770)])
def test_who_works_in_the_spool_works_with_the_writers(directory, mode, of_spool):
    directory.chmod(of_spool)
    name = join(directory, mode, "token").name
    assert (directory / "writers").stat().st_mode & 0o7777 == of_spool
    assert (directory / "writers" / name).stat().st_mode & 0o7777 == mode


# -- votes --


def read(directory, name):
    descriptor = os.open(directory / "writers" / name, os.O_RDONLY)
    with DeadWriter(directory / "writers" / name, descriptor) as dead:
        return dead


def test_a_vote_is_read_as_it_was_written(directory):
    name = dead_one(directory, lambda writer: writer.vote(VOTE, durable=True, ends=writer.ends))
    with dead_writers(directory, names(directory)) as dead:
        assert dead[name].votes == {VOTE.token: VOTE} and not dead[name].is_damaged


@pytest.mark.parametrize("line", [b"", b"x", b"{}", b"[]", b"null", b"\xff", b'{"token": "a"}', b"\0" * 50, b"[" * 50_000])
def test_a_line_that_is_no_vote_is_damage(directory, line):
    with pytest.raises(ValueError, match="no vote|Expecting|decode"):
        Vote.parse(line)
    name = dead_one(directory, lambda writer: writer.vote(VOTE, durable=True, ends=writer.ends))
    path = directory / "writers" / name
    path.write_bytes(line + b"\n" + path.read_bytes())
    dead = read(directory, name)
    assert dead.is_damaged and dead.votes == {VOTE.token: VOTE}


def test_a_line_without_its_end_was_no_vote(directory):
    name = dead_one(directory, lambda writer: writer.vote(VOTE, durable=True, ends=writer.ends))
    path = directory / "writers" / name
    path.write_bytes(path.read_bytes().rstrip(b"\0") + b'{"token": "1')
    assert (read(directory, name).votes, read(directory, name).is_damaged) == ({VOTE.token: VOTE}, False)


def test_votes_stay_as_long_as_a_transaction_is_open_that_they_are_about(directory):
    writer = join(directory, 0o600, "1")
    for token in ("1", "2", "3"):
        join(directory, 0o600, token)
        writer.vote(Vote(token, False), durable=False, ends=writer.ends)
    assert list(read(directory, writer.name).votes) == ["1", "2", "3"]
    writer.leave("1")
    writer.leave("3")
    join(directory, 0o600, "4")
    writer.vote(Vote("4", False), durable=False, ends=writer.ends)
    assert list(read(directory, writer.name).votes) == ["1", "2", "3", "4"]
    writer.leave("2")
    writer.leave("4")
    join(directory, 0o600, "5")
    writer.vote(Vote("5", False), durable=False, ends=writer.ends)
    assert list(read(directory, writer.name).votes) == ["5"]
    writer.leave("5")


def test_a_vote_that_takes_the_place_of_longer_ones_leaves_nothing_of_them(directory):
    writer = join(directory, 0o600, "1")
    join(directory, 0o600, "2")
    for token in ("1", "2"):
        writer.vote(Vote(token, True, discarded=frozenset({"x" * 100})), durable=False, ends=writer.ends)
    for token in ("1", "2"):
        writer.leave(token)
    join(directory, 0o600, "3")
    writer.vote(Vote("3", False), durable=False, ends=writer.ends)
    dead = read(directory, writer.name)
    assert list(dead.votes) == ["3"] and not dead.is_damaged
    writer.leave("3")


def test_a_file_that_cannot_be_emptied_for_long_is_followed_by_another(directory):
    first = join(directory, 0o600, "stays open")
    first.vote(Vote("stays open", False), durable=False, ends=first.ends)
    for number in range(10_000):
        writer = join(directory, 0o600, str(number))
        if writer is not first:
            break
        writer.vote(Vote(str(number), False), durable=False, ends=writer.ends)
        writer.leave(str(number))
    assert writer is not first and sorted(names(directory)) == sorted([first.name, writer.name])
    assert is_alive(directory, first.name) and (directory / "writers" / first.name).stat().st_size < 100_000
    first.leave("stays open")
    assert names(directory) == [writer.name]
    writer.leave(str(number))


def test_a_vote_of_which_the_disk_takes_only_a_part_is_an_error_and_leaves_nothing(directory, monkeypatch):
    writer = join(directory, 0o600, "1")
    join(directory, 0o600, "2")
    writer.vote(Vote("1", False), durable=True, ends=writer.ends)
    really_write = os.pwrite
    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", lambda descriptor, line, begin: really_write(descriptor, line[:7], begin))
        with pytest.raises(OSError, match="No space left"):
            writer.vote(Vote("2", False), durable=True, ends=writer.ends)
    assert list(read(directory, writer.name).votes) == ["1"]
    writer.vote(Vote("2", False), durable=True, ends=writer.ends)
    assert list(read(directory, writer.name).votes) == ["1", "2"] and not read(directory, writer.name).is_damaged
    for token in ("1", "2"):
        writer.leave(token)


def test_a_vote_that_could_not_be_flushed_was_none_and_those_behind_it_stay(directory, monkeypatch):
    writer = join(directory, 0o600, "1")
    join(directory, 0o600, "2")

    def fails(descriptor):
        writer.vote(Vote("2", False), durable=False, ends=writer.ends)
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(writers, "_flush", fails)
        with pytest.raises(OSError, match="Input/output"):
            writer.vote(Vote("1", False), durable=True, ends=writer.ends)
    dead = read(directory, writer.name)
    assert list(dead.votes) == ["2"] and not dead.is_damaged
    for token in ("1", "2"):
        writer.leave(token)


# -- locks --


def test_a_lock_says_who_wrote_it_and_one_of_somebody_else_does_not(directory):
    draft = spool.Draft(directory / spool.new_name())
    draft.write("zoe@example.org", "ann@example.org", b"x", {"Transaction": "host-1-0badc0de-1 token"})
    for name, content in (("empty", ""), ("other", "x"), ("no token", "##To:a\n##Transaction:host-1-0badc0de-1\n\n")):
        (directory / name).touch()
        spool.lock_path(directory / name).write_text(content)
    (directory / "dir.lck").mkdir()
    found = {lock.mail.name: lock[1:] for lock in locks(directory)}
    ours = ("host-1-0badc0de-1", "token")
    assert found == {draft.path.name: ours, "empty": ("", ""), "other": ("", ""), "no token": ("", "")}
    assert lock_of(draft.path)[1:] == ours and lock_of(directory / "none") is None


def test_an_empty_lock_alone_belongs_to_the_process_that_made_its_name(directory):
    reading, writing = os.pipe()

    def work(writer):
        lock = spool.lock_path(directory / spool.new_name())
        lock.touch()
        os.write(writing, lock.name.encode())

    name = dead_one(directory, work)
    made = os.read(reading, 100).decode()
    spool.lock_path(directory / spool.new_name()).touch()    # this process is no writer
    found = {f"{lock.mail.name}.lck": lock.writer for lock in locks(directory)}
    assert found.pop(made) == name
    assert list(found.values()) == [""]


# -- other transactions meanwhile --


class Late:
    """Somebody who does something when all others have voted."""

    def __init__(self, work):
        self.tpc_vote = lambda txn: work()

    def sortKey(self):
        return "~~ late"

    def tpc_begin(self, txn):
        pass

    commit = tpc_finish = tpc_abort = abort = tpc_begin


def test_a_vote_stays_until_its_transaction_is_over_also_where_it_was_rolled_back_in_part(host, tmp_path):
    def other_transaction():
        send(host)
        transaction.commit()

    def meanwhile():
        thread = threading.Thread(target=other_transaction)
        thread.start()
        thread.join()
        (name,) = names(tmp_path / "spool")
        votes.extend(read(tmp_path / "spool", name).votes)

    votes = []
    send(host)
    savepoint = transaction.savepoint(optimistic=True)
    send(host)
    savepoint.rollback()
    transaction.get().join(Late(meanwhile))
    transaction.commit()
    assert len(votes) == 2


def test_a_vote_stays_whose_transaction_ended_after_the_spool_had_been_put_on_the_disk(host, tmp_path):
    """Its lock may be there again after a power cut."""

    class Between(Late):
        def __init__(self):
            pass

        def tpc_vote(self, txn):
            votes.extend(read(tmp_path / "spool", names(tmp_path / "spool")[0]).votes)

        def commit(self, txn):
            thread = threading.Thread(target=lambda: (send(host), transaction.commit()))
            thread.start()
            thread.join()

    votes = []
    send(host)
    transaction.get().join(Between())
    transaction.commit()
    assert len(votes) == 2


# -- forks in the midst of a transaction --


def test_a_fork_in_the_midst_of_a_transaction_takes_nothing_of_it_away_and_sends_nothing_of_it(host, tmp_path):
    send(host)
    savepoint = transaction.savepoint()
    send(host)
    before = files_in(tmp_path / "spool")

    def roll_back_and_abort():
        savepoint.rollback()
        transaction.abort()

    def commit():
        with pytest.raises(RuntimeError, match="a fork"):
            transaction.commit()
        transaction.abort()

    for work in (roll_back_and_abort, commit):
        assert in_fork(work) == 0
        assert files_in(tmp_path / "spool") == before
    transaction.commit()
    assert len(files_in(tmp_path / "spool")) == 2


def test_a_fork_sends_in_transactions_of_its_own(host, tmp_path):
    send(host)

    def work():
        transaction.abort()
        send(host)
        transaction.commit()

    assert in_fork(work) == 0
    assert len(files_in(tmp_path / "spool")) == 3
    transaction.commit()
    told = [spool.read_note(tmp_path / "spool" / name, "Transaction").split() for name in files_in(tmp_path / "spool")]
    assert told[0][0] != told[1][0] and told[0][1] != told[1][1]

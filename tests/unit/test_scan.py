import errno
import math
import os
import random
import socket
import sys
import time
from contextlib import contextmanager

import pytest

from maildrop import spool
from maildrop.scan import Scan, count, scan
from maildrop.spool import Draft, SpoolBusy

HEAD = b"##To:ann@example.org\n##From:bob@example.org\n"
MESSAGE = b"Subject: x\n\nbody\n"
HOUR = 3600
LATER = time.time() + HOUR    # when all that the tests write has long been settled


def add(directory, name="a mail", content=HEAD + MESSAGE, mtime=None):
    path = directory / name
    path.write_bytes(content)
    if mtime is not None:
        os.utime(path, (mtime, mtime))
    return path


def postpone(path, due_at):
    with spool.claim(path, math.inf) as mail:
        remainder = spool.draft_remainder(
            mail, ["ann@example.org"], due_at, attempts=mail.attempts + 1, last_reply="451 later"
        )
        spool.postpone(mail, remainder).close()


def fails(*_):
    raise OSError(errno.EIO, os.strerror(errno.EIO))


@pytest.fixture
def listed_in_order(monkeypatch):
    """A function that has directories list their entries by name, or the other way round."""
    listing = os.scandir

    def list_in_order(is_reversed):
        @contextmanager
        def in_order(directory):
            with listing(directory) as entries:
                yield iter(sorted(entries, key=lambda entry: entry.name, reverse=is_reversed))

        monkeypatch.setattr(os, "scandir", in_order)

    return list_in_order


# -- what is due --


def test_mails_are_due_oldest_first_whatever_their_names(spool_directory):
    now = time.time()
    for name, age in (("b", 30), ("a", 10), ("c", 20), ("z", 40)):
        add(spool_directory, name, mtime=now - age)
    assert scan(spool_directory, LATER) == Scan(["z", "b", "c", "a"], [], unsettled=False)


def test_mails_of_the_same_moment_are_due_in_the_order_of_their_names(spool_directory):
    for name in ("b", "c", "a"):
        add(spool_directory, name, mtime=1000)
    assert scan(spool_directory, LATER) == Scan(["a", "b", "c"], [], unsettled=False)


def test_a_nanosecond_is_enough_to_be_older(spool_directory):
    for name, mtime_ns in (("a", 10**18 + 2), ("b", 10**18), ("c", 10**18 + 1)):
        os.utime(add(spool_directory, name), ns=(0, mtime_ns))
    if (spool_directory / "a").stat().st_mtime_ns != 10**18 + 2:
        pytest.skip("the file system does not keep such a time")
    assert scan(spool_directory, LATER).names == ["b", "c", "a"]


def test_a_scan_tells_the_names_of_files_that_are_mails_under_their_directory(spool_directory):
    path = add(spool_directory)
    (name,) = scan(spool_directory, LATER).names
    assert spool_directory / name == path


def test_a_spool_may_be_a_link_to_a_directory(spool_directory, tmp_path):
    add(spool_directory)
    (tmp_path / "another name").symlink_to(spool_directory)
    assert scan(tmp_path / "another name", LATER).names == ["a mail"]


def test_locks_and_locked_mails_are_not_due(spool_directory):
    for name in ("locked", "locked.lck", "orphan.lck", "free", "a.lck.lck", "dirlocked"):
        add(spool_directory, name)
    (spool_directory / "dirlocked.lck").mkdir()
    assert scan(spool_directory, LATER) == Scan(["free"], [], unsettled=False)


def test_what_is_no_regular_file_and_dot_files_are_no_mails(spool_directory, monkeypatch):
    (spool_directory / "directory").mkdir()
    add(spool_directory, ".hidden")
    add(spool_directory / "directory", "inner")
    add(spool_directory / "failed", "kept")
    add(spool_directory / "tmp", "draft")
    (spool_directory / "link").symlink_to(add(spool_directory, "mail"))
    (spool_directory / "dangling").symlink_to("nowhere")
    os.mkfifo(spool_directory / "fifo")
    monkeypatch.chdir(spool_directory)    # the path of a socket has to be short
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        assert scan(spool_directory, LATER) == Scan(["mail"], [], unsettled=False)
        assert count(spool_directory) == 1


def test_a_scan_opens_no_file_but_the_directory(spool_directory):
    path = add(spool_directory, mtime=1000)
    add(spool_directory, "locked")
    add(spool_directory, "locked.lck")
    opened = []
    watching = True
    sys.addaudithook(lambda event, args: watching and event == "open" and opened.append(args[0]))    # stays for good
    scan(spool_directory, LATER)
    count(spool_directory)
    assert set(map(str, opened)) <= {str(spool_directory)}
    spool.claim(path, LATER).close()
    watching = False
    assert str(path) in map(str, opened)


def test_a_scan_leaves_nothing_open(spool_directory, monkeypatch):
    add(spool_directory)
    before = set(os.listdir("/dev/fd"))
    scan(spool_directory, LATER)
    with pytest.raises(OSError):
        scan(spool_directory / "none", LATER)
    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(os, "scandir", fails)
        scan(spool_directory, LATER)
    assert set(os.listdir("/dev/fd")) == before


@pytest.mark.parametrize("is_reversed", [False, True])
def test_what_is_locked_or_no_mail_is_not_even_looked_at(spool_directory, monkeypatch, listed_in_order, is_reversed):
    for number in range(20):
        add(spool_directory, f"free {number}")
        add(spool_directory, f"locked {number}")
        add(spool_directory, f"locked {number}.lck")
        add(spool_directory, f"orphan {number}.lck")
        add(spool_directory, f".hidden {number}")
        (spool_directory / f"directory {number}").mkdir()
    listed_in_order(is_reversed)
    looked_at = []
    look = os.stat
    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", lambda path, **how: (looked_at.append(path), look(path, **how))[1])
        found = scan(spool_directory, LATER)
    assert sorted(looked_at) == sorted(found.names) == sorted(f"free {number}" for number in range(20))


@pytest.mark.parametrize("is_reversed", [False, True])
def test_a_mail_is_locked_whether_its_lock_is_listed_before_or_after_it(spool_directory, listed_in_order, is_reversed):
    for name in ("a", "a.lck", "b", "b.lck", "b.lck.lck", "c", "d.lck", "e.lck.lck", "e"):
        add(spool_directory, name)
    listed_in_order(is_reversed)
    assert scan(spool_directory, LATER) == Scan(["c", "e"], [], unsettled=False)


def test_mails_that_go_while_they_are_looked_at_are_not_due_and_harm_no_other(spool_directory, monkeypatch):
    for number in range(10):
        add(spool_directory, f"{number}", mtime=1000)
    look = os.stat

    def looking(path, **how):    # the moment after the listing
        if path in ("0", "4", "9"):
            os.unlink(spool_directory / path)
        return look(path, **how)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", looking)
        found = scan(spool_directory, LATER)
    assert found == Scan(["1", "2", "3", "5", "6", "7", "8"], [], unsettled=False)


def test_what_becomes_of_the_directorys_name_meanwhile_is_none_of_a_scans_business(spool_directory, monkeypatch):
    add(spool_directory, mtime=1000)
    look = os.stat

    def looking(path, **how):
        spool_directory.rename(spool_directory.with_name("moved"))
        return look(path, **how)

    with monkeypatch.context() as patch:
        patch.setattr(os, "stat", looking)
        found = scan(spool_directory, LATER)
    assert found.names == ["a mail"]


def test_a_strangers_file_is_left_alone_until_it_has_not_changed_for_two_seconds(spool_directory):
    path = add(spool_directory, mtime=1000)
    changed = path.stat().st_ctime
    for now in (changed, changed + 1, changed + 1.9):
        assert scan(spool_directory, now) == Scan([], [], unsettled=True)
        with pytest.raises(SpoolBusy):
            spool.claim(path, now)
    assert scan(spool_directory, changed + 2.1) == Scan([path.name], [], unsettled=False)
    spool.claim(path, changed + 2.1).close()


def test_a_strangers_file_from_the_future_is_not_waited_for(spool_directory):
    path = add(spool_directory, mtime=1000)
    before = path.stat().st_ctime - 60
    assert scan(spool_directory, before) == Scan([path.name], [], unsettled=False)


def test_a_locked_stranger_is_not_waited_for(spool_directory):
    path = add(spool_directory)
    add(spool_directory, path.name + ".lck")
    assert not scan(spool_directory, path.stat().st_ctime).unsettled


@pytest.mark.parametrize(
    "name",
    [
        "20261122T140005.123456-0123abc",
        "20261122T140005.123456-0123abcg",
        "20261122T140005.123456-0123ABCD",
        "20261122T140005-0123abcd",
        "x20261122T140005.123456-0123abcd",
        "20261122T140005.123456-0123abcd.eml",
        "20261122T140005.123456-0123abcd\n",
    ],
)
def test_a_name_that_is_only_similar_to_ours_is_a_strangers(spool_directory, name):
    path = add(spool_directory, name)
    assert scan(spool_directory, path.stat().st_ctime + 1).unsettled


def test_a_mail_with_an_mtime_in_the_future_is_deferred_until_then(spool_directory):
    path = add(spool_directory, mtime=LATER + 10)
    for now in (LATER, LATER + 9.9):
        assert scan(spool_directory, now) == Scan([], [], unsettled=False)
        with pytest.raises(SpoolBusy):
            spool.claim(path, now)
    assert scan(spool_directory, LATER + 10) == Scan([], ["a mail"], unsettled=False)
    spool.claim(path, LATER + 10).close()


def test_an_mtime_more_than_four_hours_ahead_was_not_set_by_a_daemon_and_counts_as_due(spool_directory):
    path = add(spool_directory, mtime=LATER + 4 * HOUR)
    assert scan(spool_directory, LATER) == Scan([], [], unsettled=False)
    os.utime(path, (LATER + 4 * HOUR + 1, LATER + 4 * HOUR + 1))
    assert scan(spool_directory, LATER) == Scan([], ["a mail"], unsettled=False)
    spool.claim(path, LATER).close()


def test_names_that_are_no_text_are_mails_too(spool_directory):
    name = os.fsdecode(b"gr\xfc\xdfe\n")
    path = add(spool_directory, name)
    assert scan(spool_directory, LATER).names == [name]
    with spool.claim(path, LATER) as mail:
        assert spool.set_aside(mail, None, "why", "1").exists()


def test_a_spool_that_cannot_be_read_is_an_error(tmp_path):
    with pytest.raises(OSError):
        scan(tmp_path / "none", LATER)


# -- new mails and retries --


def test_a_mail_that_was_deferred_is_a_retry_as_soon_as_it_is_due_and_not_before(spool_directory):
    path = add(spool_directory, mtime=1000)
    assert scan(spool_directory, LATER) == Scan(["a mail"], [], unsettled=False)
    postpone(path, LATER + 300)
    assert scan(spool_directory, LATER + 299) == Scan([], [], unsettled=False)
    assert scan(spool_directory, LATER + 300) == Scan([], ["a mail"], unsettled=False)
    postpone(path, LATER - 300)
    assert scan(spool_directory, LATER) == Scan([], ["a mail"], unsettled=False)


@pytest.mark.parametrize("delay_s", [0.2, 1, 60, 4 * HOUR])
def test_a_mail_is_a_retry_however_short_the_time_for_which_it_was_deferred(spool_directory, delay_s):
    path = spool_directory / spool.new_name()
    add(spool_directory, path.name)
    due_at = time.time() + delay_s
    postpone(path, due_at)
    assert scan(spool_directory, due_at + 1) == Scan([], [path.name], unsettled=False)


def test_a_retry_stays_one_when_it_is_claimed_and_let_go(spool_directory):
    path = add(spool_directory)
    postpone(path, LATER - 60)
    for _ in range(2):
        with spool.claim(path, LATER) as mail:
            assert mail.attempts == 1
            assert scan(spool_directory, LATER) == Scan([], ["a mail"], unsettled=False)


def test_a_retry_that_is_locked_is_not_due(spool_directory):
    postpone(add(spool_directory), LATER - 60)
    add(spool_directory, "a mail.lck")
    assert scan(spool_directory, LATER) == Scan([], [], unsettled=False)


@pytest.mark.parametrize("directory", [".", "failed"])
def test_a_renewed_mail_is_as_good_as_new(spool_directory, directory):
    path = add(spool_directory / directory)
    postpone(path, LATER - 60)
    with spool.claim(path, LATER) as mail:
        renewed = spool.renew(mail)
    assert renewed.parent == spool_directory
    assert scan(spool_directory, LATER) == Scan([renewed.name], [], unsettled=False)


def test_our_own_new_mails_are_no_retries_however_slowly_the_file_systems_clock_ticks(spool_directory):
    drafts = [Draft(spool_directory / spool.new_name()) for _ in range(200)]
    for draft in drafts:
        draft.write("bob@example.org", "ann@example.org", MESSAGE)
        draft.release()
    names = [draft.path.name for draft in drafts]
    found = scan(spool_directory, LATER)
    assert sorted(found.names) == names
    assert found.retries == []


def test_a_notice_that_was_added_whole_is_no_retry(spool_directory):
    with spool.claim(add(spool_directory), LATER) as mail:
        for number in range(50):
            spool.add_whole(mail, f"notice {number}", "", "zoe@example.org", MESSAGE)
    found = scan(spool_directory, LATER)
    assert len(found.names) == 51
    assert found.retries == []


def test_new_mails_and_retries_are_each_told_oldest_first(spool_directory):
    for name, due_at in (("b", 30), ("d", 20), ("a", 30), ("c", 40)):
        add(spool_directory, f"new {name}", mtime=1000 + due_at)
        postpone(add(spool_directory, f"old {name}"), LATER - due_at)
    assert scan(spool_directory, LATER) == Scan(
        ["new d", "new a", "new b", "new c"], ["old c", "old a", "old b", "old d"], unsettled=False
    )


def test_a_strangers_file_with_an_mtime_ahead_of_the_clock_is_due_all_the_same(spool_directory):
    add(spool_directory, "ahead", mtime=LATER - 60)
    add(spool_directory, "far ahead", mtime=LATER + 5 * HOUR)
    add(spool_directory, "new", mtime=1000)
    assert scan(spool_directory, LATER) == Scan(["new"], ["ahead", "far ahead"], unsettled=False)


# -- large spools --


def test_in_a_spool_of_five_thousand_entries_everything_is_told_apart(spool_directory):
    choose = random.Random(31)
    hour_ago, soon = time.time() - HOUR, LATER - HOUR / 2
    new, retries = [], []
    mails = entries = 0
    while entries < 5000:
        name = choose.choice([spool.new_name, lambda: f"{choose.getrandbits(64):x}"])()
        path = spool_directory / name
        mtime = choose.choice([hour_ago, soon]) + choose.randrange(20)    # many are of the same moment
        kind = choose.choice(["mail", "locked", "orphan", "deferred", "hidden", "directory", "link"])
        entries += 1
        if kind in ("mail", "locked", "deferred"):
            mails += 1
            add(spool_directory, name, mtime=LATER + mtime - hour_ago + 1 if kind == "deferred" else mtime)
            if kind == "mail":
                (new if mtime < soon else retries).append((mtime, name))
        if kind in ("locked", "orphan"):
            entries += kind == "locked"
            spool.lock_path(path).touch()
        elif kind == "hidden":
            add(spool_directory, f".{name}")
        elif kind == "directory":
            path.mkdir()
        elif kind == "link":
            path.symlink_to("elsewhere")
    assert min(len(new), len(retries)) > 200
    assert scan(spool_directory, LATER) == Scan(
        [name for _, name in sorted(new)], [name for _, name in sorted(retries)], unsettled=False
    )
    assert count(spool_directory) == mails


# -- counting --


def test_all_mails_are_counted_locked_and_deferred_ones_too(spool_directory):
    for name in ("a", "locked", "locked.lck", ".hidden"):
        add(spool_directory, name)
    add(spool_directory, "deferred", mtime=LATER + HOUR)
    add(spool_directory / "failed", "kept")
    assert count(spool_directory) == 3


def test_there_is_no_mail_where_there_is_no_spool(tmp_path):
    assert count(tmp_path / "none") == 0

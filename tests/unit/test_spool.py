import errno
import math
import os
import random
import re
import resource
import socket
import stat
import tempfile
import threading
import time
import tracemalloc
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.accounts import Account
from support.requires import requires_root

from maildrop import spool
from maildrop.scan import Scan, scan
from maildrop.spool import Draft, MalformedMail, NotAMail, SpoolBusy

SAMPLE = Path(__file__).parents[2] / "SAMPLE_MAIL.txt"
HEAD = b"##To:ann@example.org\n##From:bob@example.org\n"
MESSAGE = b"Subject: x\n\nbody\n"
CHUNK = spool._CHUNK    # how much is read at once
HOUR = 3600
LATER = time.time() + HOUR    # when all that the tests write has long been settled


def add(directory, name="a mail", content=HEAD + MESSAGE, mtime=None):
    path = directory / name
    path.write_bytes(content)
    if mtime is not None:
        os.utime(path, (mtime, mtime))
    return path


def due_names(directory, now=LATER):
    found = scan(directory, now)
    return found.names + found.retries


def claimed(directory, content, name="a mail"):
    return spool.claim(add(directory, name, content), LATER)


def draft_remainder(mail, recipients, due_at, last_reply):
    return spool.draft_remainder(mail, recipients, due_at, attempts=mail.attempts + 1, last_reply=last_reply)


def postpone(mail, recipients, due_at, last_reply):
    spool.postpone(mail, draft_remainder(mail, recipients, due_at, last_reply)).close()


def message_of(mail):
    return b"".join(mail.content())


def files_below(directory):
    return sorted(str(path.relative_to(directory)) for path in directory.rglob("*") if not path.is_dir())


def mode_of(path):
    return stat.S_IMODE(path.lstat().st_mode)


@contextmanager
def no_file_larger_than(size):
    """What a full disk does: writing beyond ``size`` is an OSError."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def set_clock(monkeypatch):
    """A function that sets the clock of the spool: the time a file was changed cannot be set."""

    def set_to(seconds):
        clock = SimpleNamespace(time=lambda: seconds, time_ns=lambda: int(seconds * 1e9))
        monkeypatch.setattr(spool, "time", clock)

    return set_to


as_root = os.geteuid() == 0


# -- names --


def test_names_from_many_threads_are_unique_and_sort_in_the_order_of_each_thread():
    names = [[] for _ in range(8)]
    start = threading.Barrier(len(names))

    def ask(found):
        start.wait()
        found.extend(spool.new_name() for _ in range(1250))

    threads = [threading.Thread(target=ask, args=(found,)) for found in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({name for found in names for name in found}) == 10000
    assert all(found == sorted(found) for found in names)


def test_names_sort_by_the_order_in_which_they_were_asked_for_also_when_the_clock_goes_back(set_clock, monkeypatch):
    monkeypatch.setattr(spool, "_last_us", 0)
    names = []
    for now in (1000.0, 1000.0, 990.0, 1000.000001, 1e9, 5.0):
        set_clock(now)
        names.append(spool.new_name())
    assert names == sorted(names)
    assert names[4].startswith("20010909T014640.000000-")


def test_two_processes_that_ask_at_the_same_moment_get_two_names(set_clock, monkeypatch):
    set_clock(1000.0)
    monkeypatch.setattr(spool, "_last_us", 0)
    reading, writing = os.pipe()
    if os.fork() == 0:
        try:
            os.write(writing, spool.new_name().encode())
        finally:
            os._exit(0)
    os.wait()
    forks_name, own_name = os.read(reading, 100).decode(), spool.new_name()
    os.close(reading)
    os.close(writing)
    assert forks_name[:-8] == own_name[:-8] and forks_name != own_name
    assert spool.process_id_in(own_name) == spool.process_id() != spool.process_id_in(forks_name) != ""


def test_a_mail_whose_lock_goes_while_it_is_made_is_an_error_and_is_not_there(spool_directory, monkeypatch):
    really_link = os.link

    def without_lock(lock, path, **how):
        os.unlink(lock)
        really_link(lock, path, **how)

    monkeypatch.setattr(os, "link", without_lock)
    with pytest.raises(FileNotFoundError):
        spool.Draft(spool_directory / spool.new_name()).write("zoe@example.org", "ann@example.org", b"x")
    assert [path for path in spool_directory.iterdir() if path.is_file()] == []


def test_a_file_that_a_symbolic_link_in_the_place_of_the_lock_leads_to_gets_no_name_in_the_spool(
    spool_directory, tmp_path, monkeypatch
):
    precious = tmp_path / "precious"
    precious.write_text("kept")
    really_link = os.link

    def of_another_file(lock, path, **how):
        assert how == {"follow_symlinks": False}    # Pythons differ in what they do by default
        os.unlink(lock)
        os.symlink(precious, lock)
        really_link(lock, path, **how)

    monkeypatch.setattr(os, "link", of_another_file)
    spool.Draft(spool_directory / spool.new_name()).write("zoe@example.org", "ann@example.org", b"x")
    assert precious.stat().st_nlink == 1


def test_a_lock_is_named_after_its_mail():
    assert spool.lock_path(Path("/spool/a.b")) == Path("/spool/a.b.lck")


# -- directories --


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
@pytest.mark.parametrize("mode", [0o700, 0o2770])
def test_all_directories_of_a_spool_are_made_with_the_mode_whatever_the_umask(tmp_path, set_umask, mode, umask):
    set_umask(umask)
    spool.make_spool(tmp_path / "var" / "spool", mode)
    for name in ("var", "var/spool", "var/spool/failed", "var/spool/tmp"):
        assert mode_of(tmp_path / name) == mode, name


def test_a_directory_that_is_there_is_left_as_it_is(tmp_path):
    directory = tmp_path / "spool"
    directory.mkdir()
    directory.chmod(0o755)
    mail = add(directory)
    spool.make_spool(directory, 0o700)
    spool.make_spool(directory, 0o700)
    assert mode_of(directory) == 0o755
    assert mail.exists()


def test_a_directory_may_be_a_link_to_one(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "spool").symlink_to("real")
    spool.make_spool(tmp_path / "spool", 0o700)
    assert (tmp_path / "real" / "failed").is_dir()


def test_a_file_in_a_directorys_place_is_an_error(tmp_path):
    (tmp_path / "spool").write_text("")
    with pytest.raises(OSError):
        spool.make_spool(tmp_path / "spool", 0o700)


# -- writing --


def test_a_draft_is_a_locked_mail_with_the_lines_of_its_envelope(spool_directory):
    Draft(spool_directory / "m").write("bob@x.test", "ann@x.test, Jo <jo@x.test>", MESSAGE, {"Attempts": "1"})
    assert (spool_directory / "m").read_bytes() == (
        b"##To:ann@x.test, Jo <jo@x.test>\n##From:bob@x.test\n##Attempts:1\n" + MESSAGE
    )
    assert (spool_directory / "m.lck").exists()
    assert due_names(spool_directory) == []
    with pytest.raises(SpoolBusy):
        spool.claim(spool_directory / "m", LATER)


def test_a_released_mail_of_our_own_is_due_at_once(spool_directory):
    draft = Draft(spool_directory / spool.new_name())
    draft.write("bob@example.org", "ann@example.org", MESSAGE)
    draft.release()
    now = draft.path.stat().st_mtime
    assert scan(spool_directory, now) == Scan([draft.path.name], [], unsettled=False)
    with spool.claim(draft.path, now) as mail:
        envelope = mail.read_envelope()
        assert (envelope.sender, envelope.recipients) == ("bob@example.org", ("ann@example.org",))
        assert message_of(mail) == MESSAGE


def test_releasing_twice_is_no_error(spool_directory):
    draft = Draft(spool_directory / "m")
    draft.write("", "ann@example.org", MESSAGE)
    draft.release()
    draft.release()
    assert files_below(spool_directory) == ["m"]


def test_discarding_takes_mail_and_lock_away_and_may_come_twice(spool_directory):
    draft = Draft(spool_directory / "m")
    draft.write("", "ann@example.org", MESSAGE)
    draft.discard()
    draft.discard()
    assert files_below(spool_directory) == []


def test_discarding_keeps_the_lock_where_the_mail_cannot_be_removed(spool_directory):
    draft = Draft(spool_directory / "m")
    draft.write("", "ann@example.org", MESSAGE)
    draft.path.unlink()
    draft.path.mkdir()
    with pytest.raises(OSError):
        draft.discard()
    assert spool.lock_path(draft.path).exists()


def test_the_lock_comes_before_the_mail(spool_directory):
    add(spool_directory, "m.lck", b"another's lock")
    with pytest.raises(FileExistsError):
        Draft(spool_directory / "m").write("", "ann@example.org", MESSAGE)
    assert files_below(spool_directory) == ["m.lck"]
    assert (spool_directory / "m.lck").read_bytes() == b"another's lock"


def test_another_mail_of_the_same_name_is_left_alone_and_our_lock_is_gone_again(spool_directory):
    path = add(spool_directory, "m", b"another's mail")
    before = path.stat()
    with pytest.raises(FileExistsError):
        Draft(path).write("", "ann@example.org", MESSAGE)
    assert files_below(spool_directory) == ["m"]
    assert path.read_bytes() == b"another's mail"
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)


@pytest.mark.parametrize("name", ["m", "m.lck"])
def test_a_draft_does_not_follow_links(spool_directory, tmp_path, name):
    (spool_directory / name).symlink_to(tmp_path / "elsewhere")
    with pytest.raises(FileExistsError):
        Draft(spool_directory / "m").write("", "ann@example.org", MESSAGE)
    assert not (tmp_path / "elsewhere").exists()
    assert files_below(spool_directory) == [name]


@pytest.mark.parametrize("size", [0, 10, 100_000])
def test_nothing_is_left_of_a_mail_that_cannot_be_written(spool_directory, size):
    draft = Draft(spool_directory / "m")
    with no_file_larger_than(size), pytest.raises(OSError):
        draft.write("bob@example.org", "ann@example.org", b"x" * 200_000)
    assert files_below(spool_directory) == []


def test_a_spool_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        Draft(tmp_path / "none" / "m").write("", "ann@example.org", MESSAGE)


@pytest.mark.parametrize("umask", [0o000, 0o022, 0o077])
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o660])
def test_mail_and_lock_have_the_mode_whatever_the_umask(spool_directory, set_umask, mode, umask):
    set_umask(umask)
    Draft(spool_directory / "m", mode).write("", "ann@example.org", MESSAGE)
    assert mode_of(spool_directory / "m") == mode
    assert mode_of(spool_directory / "m.lck") == mode


def test_nobody_else_may_read_a_mail_unless_it_was_asked_for(spool_directory, set_umask):
    set_umask(0)
    Draft(spool_directory / "m").write("", "ann@example.org", MESSAGE)
    assert mode_of(spool_directory / "m") == 0o600


def test_line_breaks_in_the_envelope_cannot_begin_a_line(spool_directory):
    draft = Draft(spool_directory / "m")
    draft.write("bob@x.test\n##To:eve@x.test", "ann@x.test\r\n\r\nSubject: y", MESSAGE, {"Note": "a\rb\nc"})
    assert draft.path.read_bytes() == (
        b"##To:ann@x.testSubject: y\n##From:bob@x.test##To:eve@x.test\n##Note:abc\n" + MESSAGE
    )


@pytest.mark.parametrize("content", [b"##To:eve@example.org\n\nbody", b"##", b"##Content:\n##\n", b"###\n"])
def test_a_message_that_begins_like_the_envelope_stays_message(spool_directory, content):
    draft = Draft(spool_directory / "m")
    draft.write("bob@example.org", "ann@example.org", content)
    draft.release()
    assert draft.path.read_bytes() == HEAD + b"##Content:\n" + content
    with spool.claim(draft.path, LATER) as mail:
        assert message_of(mail) == content
        assert mail.read_envelope().recipients == ("ann@example.org",)


@pytest.mark.parametrize("content", [b"#\n", b"#", b"\n##X:y\n", b" ##", bytes(range(256)), b"\r\n", b"no line end"])
def test_any_other_message_follows_the_envelope_as_it_is(spool_directory, content):
    draft = Draft(spool_directory / "m")
    draft.write("bob@example.org", "ann@example.org", content)
    draft.release()
    assert draft.path.read_bytes() == HEAD + content
    with spool.claim(draft.path, LATER) as mail:
        assert message_of(mail) == content


def test_names_that_are_not_ascii_pass_in_utf_8_and_bytes_that_were_no_text_as_they_were(spool_directory):
    draft = Draft(spool_directory / "m")
    draft.write("Jürgen <bob@x.test>", "J\udcfcrgen <ann@x.test>", MESSAGE)
    assert draft.path.read_bytes() == b"##To:J\xfcrgen <ann@x.test>\n##From:J\xc3\xbcrgen <bob@x.test>\n" + MESSAGE


@pytest.mark.parametrize(("text", "line"), [("a", "a"), ("", ""), ("a\r\nb", "ab"), ("\na\r", "a"), (" a\t", " a\t")])
def test_one_line_takes_the_line_breaks_out(text, line):
    assert spool.one_line(text) == line


# -- claiming --


def test_a_mail_can_be_claimed_once_at_a_time(spool_directory):
    path = add(spool_directory)
    with spool.claim(path, LATER):
        with pytest.raises(SpoolBusy):
            spool.claim(path, LATER)
    spool.claim(path, LATER).close()


def test_a_failed_claim_is_no_claim(spool_directory):
    path = add(spool_directory, content=b"no mail")
    with pytest.raises(NotAMail):
        spool.claim(path, LATER)
    path.write_bytes(HEAD + MESSAGE)
    spool.claim(path, LATER).close()


def test_a_claim_changes_nothing_on_disk(spool_directory):
    path = add(spool_directory, mtime=1000)

    def status():
        found = path.stat()
        return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns

    before = status()
    spool.claim(path, LATER).close()
    assert status() == before
    assert files_below(spool_directory) == ["a mail"]


def test_a_lock_that_appeared_after_the_scan_is_heeded(spool_directory):
    path = add(spool_directory)
    assert due_names(spool_directory) == [path.name]
    lock = add(spool_directory, path.name + ".lck")
    with pytest.raises(SpoolBusy):
        spool.claim(path, LATER)
    lock.unlink()
    spool.claim(path, LATER).close()


def test_a_lock_may_be_a_dangling_link(spool_directory):
    path = add(spool_directory)
    spool.lock_path(path).symlink_to("writer-4711")
    with pytest.raises(SpoolBusy):
        spool.claim(path, LATER)


def test_the_other_name_of_a_locked_mail_is_no_mail(spool_directory):
    draft = Draft(spool_directory / spool.new_name())
    draft.write("bob@example.org", "ann@example.org", MESSAGE)
    lock = spool.lock_path(draft.path)
    assert lock.read_bytes() == draft.path.read_bytes()
    for now in (LATER, math.inf):
        with pytest.raises(NotAMail, match="lock"):
            spool.claim(lock, now)
    draft.release()
    spool.claim(draft.path, LATER).close()


def test_a_mail_with_the_name_of_a_lock_is_no_mail_also_where_it_locks_nothing(spool_directory):
    path = add(spool_directory, "orphan.lck", mtime=1000)
    with pytest.raises(NotAMail):
        spool.claim(path, LATER)
    assert path.read_bytes() == HEAD + MESSAGE


def test_a_mail_that_is_gone_since_the_scan_is_not_claimed(spool_directory):
    with pytest.raises(SpoolBusy):
        spool.claim(spool_directory / "gone", LATER)


@pytest.mark.parametrize("happens", ["replaced", "moved", "locked"])
def test_what_happens_to_a_mail_while_it_is_claimed_is_noticed(spool_directory, monkeypatch, happens):
    path = add(spool_directory)
    add(spool_directory, "other")
    read = spool._read_envelope_lines

    def reading(stream):    # the moment between opening the file and the last look at its path
        if happens == "replaced":
            os.rename(spool_directory / "other", path)
        elif happens == "moved":
            os.rename(path, spool_directory / "away")
        else:
            spool.lock_path(path).write_bytes(b"")
        return read(stream)

    monkeypatch.setattr(spool, "_read_envelope_lines", reading)
    with pytest.raises(SpoolBusy):
        spool.claim(path, LATER)


def test_a_fifo_is_no_mail_and_is_not_waited_for(spool_directory):
    os.mkfifo(spool_directory / "fifo")
    with pytest.raises(NotAMail):
        spool.claim(spool_directory / "fifo", LATER)


def test_a_link_is_no_mail_and_not_followed(spool_directory):
    add(spool_directory)
    (spool_directory / "link").symlink_to("a mail")
    with pytest.raises(NotAMail):
        spool.claim(spool_directory / "link", LATER)


def test_a_directory_is_no_mail(spool_directory):
    with pytest.raises(NotAMail):
        spool.claim(spool_directory / "tmp", LATER)


def test_a_socket_is_no_mail(spool_directory, monkeypatch):
    monkeypatch.chdir(spool_directory)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind("socket")
        with pytest.raises(NotAMail):
            spool.claim(spool_directory / "socket", LATER)


@pytest.mark.skipif(as_root, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_no_mail(spool_directory):
    path = add(spool_directory)
    path.chmod(0)
    with pytest.raises(NotAMail):
        spool.claim(path, LATER)


def test_a_file_that_may_only_be_read_is_claimed_all_the_same(spool_directory):
    path = add(spool_directory)
    path.chmod(0o400)
    with spool.claim(path, LATER) as mail:
        assert message_of(mail) == MESSAGE
        with pytest.raises(SpoolBusy):
            spool.claim(path, LATER)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"#",
        b"##To",
        b"Subject: x\n\nbody",
        b"\n" + HEAD,
        b"##From:bob@example.org\n##To:ann@example.org\n\n",
        b"##to:ann@example.org\n\n",
        b"##To :ann@example.org\n\n",
        b" ##To:ann@example.org\n\n",
        b"\xef\xbb\xbf" + HEAD,
    ],
)
def test_a_file_that_does_not_begin_with_to_is_no_mail(spool_directory, content):
    path = add(spool_directory, content=content)
    with pytest.raises(NotAMail):
        spool.claim(path, LATER)
    assert path.read_bytes() == content


@pytest.mark.parametrize("unit", [b"x" * 1024, b"x" * 1021 + b"\n##"])
def test_an_envelope_without_an_end_is_no_mail(spool_directory, unit):
    path = add(spool_directory, content=b"##To:" + unit * (17 * 1024))
    with pytest.raises(NotAMail):
        spool.claim(path, LATER)


# -- the envelope --


def test_the_sample_mail_is_a_mail(spool_directory):
    sample = SAMPLE.read_bytes()
    with claimed(spool_directory, sample) as mail:
        envelope = mail.read_envelope()
        assert envelope.sender == "sender@example.org"
        assert envelope.recipients == ("recipient@example.com",)
        assert envelope.unusable == ()
        assert message_of(mail) == sample.split(b"\n", 2)[2]
        assert mail.header().splitlines() == [
            b'From: "Sandra Sender" <sender@example.org>',
            b'To: "Richard Recipient" <recipient@example.com>',
            b"Subject: A mail file for the spool",
        ]


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_envelope_lines_end_with_lf_or_cr_lf(spool_directory, end):
    head = end.join([b"##To:ann@example.org", b"##From:bob@example.org", b"##Attempts:3", b""])
    with claimed(spool_directory, head + b"Subject: x\r\n\r\n") as mail:
        envelope = mail.read_envelope()
        assert (envelope.sender, envelope.recipients) == ("bob@example.org", ("ann@example.org",))
        assert mail.attempts == 3
        assert message_of(mail) == b"Subject: x\r\n\r\n"


def test_the_last_line_of_a_key_counts(spool_directory):
    head = b"##To:a@x\n##From:b@x\n##Attempts:1\n##To:c@x, d@x\n##From:e@x\n##Attempts:2\n"
    with claimed(spool_directory, head + MESSAGE) as mail:
        envelope = mail.read_envelope()
        assert (envelope.sender, envelope.recipients, mail.attempts) == ("e@x", ("c@x", "d@x"), 2)


@pytest.mark.parametrize("message", [b"A: b\n##To:eve@x\n\n##From:eve@x\n", b"\n##To:eve@x\n", b"#\n##To:eve@x\n"])
def test_such_lines_behind_the_envelope_are_message_text(spool_directory, message):
    with claimed(spool_directory, HEAD + message) as mail:
        assert message_of(mail) == message
        assert mail.read_envelope().recipients == ("ann@example.org",)


@pytest.mark.parametrize("end", [b"\n", b"\r\n"])
def test_a_content_line_ends_the_envelope(spool_directory, end):
    with claimed(spool_directory, HEAD + b"##Content:" + end + b"##To:eve@x\n##Content:\n") as mail:
        assert message_of(mail) == b"##To:eve@x\n##Content:\n"
        assert mail.read_envelope().recipients == ("ann@example.org",)


@pytest.mark.parametrize("line", [b"##no colon\n", b"##\n", b"##:\n", b"##X:y\n", b"###\n", b"##X:a:b##c\n"])
def test_an_unknown_line_in_the_envelope_is_passed_over(spool_directory, line):
    with claimed(spool_directory, HEAD + line + b"##Attempts:4\n" + MESSAGE) as mail:
        assert mail.read_envelope().recipients == ("ann@example.org",)
        assert mail.attempts == 4
        assert message_of(mail) == MESSAGE


@pytest.mark.parametrize("line", [b"", b"##From:\n", b"##From: \r\n", b"##From:<>\n", b"##From\n"])
def test_no_or_an_empty_from_is_the_null_sender(spool_directory, line):
    with claimed(spool_directory, b"##To:ann@example.org\n" + line + MESSAGE) as mail:
        assert mail.read_envelope().sender == ""


@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_an_envelope_is_in_utf_8_or_latin_1(spool_directory, encoding):
    head = "##To:Jürgen <jürgen@example.org>\n".encode(encoding)
    with claimed(spool_directory, head + MESSAGE) as mail:
        assert mail.read_envelope().recipients == ("jürgen@example.org",)


@pytest.mark.parametrize("content", [HEAD, HEAD.rstrip(b"\n"), b"##To:ann@example.org", HEAD + b"##Content:\n"])
def test_an_envelope_without_a_message_is_malformed(spool_directory, content):
    with claimed(spool_directory, content) as mail, pytest.raises(MalformedMail):
        mail.read_envelope()


@pytest.mark.parametrize("head", [b"##To:\n", b"##To:nobody:;\n", b"##To:ann@example.org\n##From:not an address\n"])
def test_an_envelope_without_a_usable_recipient_or_sender_is_malformed(spool_directory, head):
    with claimed(spool_directory, head + MESSAGE) as mail, pytest.raises(ValueError, match="no usable"):
        mail.read_envelope()


@pytest.mark.parametrize(
    ("value", "attempts"),
    [("", 0), ("0", 0), ("7", 7), (" 7 ", 7), ("-1", 0), ("1.5", 0), ("many", 0), ("²", 0)],
)
def test_attempts_that_are_no_number_count_as_none(spool_directory, value, attempts):
    with claimed(spool_directory, HEAD + f"##Attempts:{value}\n".encode() + MESSAGE) as mail:
        assert mail.attempts == attempts


def test_an_enormous_number_of_attempts_does_not_keep_a_mail_from_being_claimed(spool_directory):
    with claimed(spool_directory, HEAD + b"##Attempts:" + b"9" * 5000 + b"\n" + MESSAGE) as mail:
        assert mail.read_envelope().recipients == ("ann@example.org",)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        ("2026-11-22T14:00:05.250000+00:00", 1795356005.25),
        ("2026-11-22T15:00:05.250000+01:00", 1795356005.25),
        (" 2026-11-22T14:00:05+00:00 ", 1795356005.0),
        ("yesterday", None),
        ("", None),
        ("2026-13-45T99:00:00", None),
        ("2066-11-22T14:00:05+00:00", None),
    ],
)
def test_a_mail_was_queued_when_its_envelope_says_or_else_when_the_file_came(spool_directory, value, seconds):
    path = add(spool_directory, content=HEAD + f"##Queued:{value}\n".encode() + MESSAGE, mtime=1000)
    with spool.claim(path, LATER) as mail:
        assert mail.queued_at == (path.stat().st_ctime if seconds is None else seconds)


def envelope_of_size(choose, size):
    """An envelope of so many bytes, and what it says, its keys in order. It may end with ##Content:."""
    end = choose.choice(["\n", "\r\n"])
    lines = {"To": "ann@example.org", "From": "bob@example.org"}
    head = "".join(f"##{key}:{value}{end}" for key, value in lines.items())
    tail = choose.choice(["", f"##Content:{end}"])
    least = len("##X0000:") + len(end)
    while left := size - len(head) - len(tail):
        taken = choose.choice([left, choose.randint(least, left)])
        if 0 < left - taken < least:
            taken = left
        key, value = f"X{len(lines):04}", "x" * (taken - least)
        lines[key] = value
        head += f"##{key}:{value}{end}"
    return (head + tail).encode(), list(lines.items())


@pytest.mark.parametrize("border", [CHUNK, 2 * CHUNK, 3 * CHUNK, 4 * CHUNK])
def test_a_mail_is_read_the_same_wherever_its_envelope_ends(spool_directory, border):
    choose = random.Random(border)
    messages = [b"", b"x", b"\n", b"#", b"#\n##X:y\n", b"A: b\r\n\r\nc", choose.randbytes(2 * CHUNK)]
    for size in [border - 100, *range(border - 9, border + 10), border + 100]:
        head, lines = envelope_of_size(choose, size)
        assert len(head) == size
        message = choose.choice(messages)
        if b"##Content:" in head:
            message = choose.choice([b"##To:eve@x\n", b"##", b""]) + message
        with claimed(spool_directory, head + message) as mail:
            assert (mail.content_start, mail.content_size) == (size, len(message))
            assert mail.lines_with({}) == lines
            assert message_of(mail) == message_of(mail) == message
            assert mail.header() == header_of(message)


@pytest.mark.parametrize("offset", range(-4, 5))
def test_a_line_of_the_envelope_may_lie_across_the_end_of_what_is_read_at_once(spool_directory, offset):
    filled = HEAD + b"##X:" + b"x" * (CHUNK + offset - len(HEAD) - len("##X:\n")) + b"\n"
    assert len(filled) == CHUNK + offset
    for line in (b"##Attempts:7\r\n", b"##Attempts:7\n##Content:\r\n", b"##Content:\n"):
        with claimed(spool_directory, filled + line + MESSAGE) as mail:
            assert mail.attempts == (7 if b"Attempts" in line else 0)
            assert message_of(mail) == MESSAGE


@pytest.mark.parametrize("end", [b"", b"##Content:\n"])
def test_a_claim_does_not_read_a_message_however_long_its_lines_are(spool_directory, monkeypatch, end):
    path = add(spool_directory, content=HEAD + end + b"x" * (10 * CHUNK))
    read = os.pread
    sizes = []
    with monkeypatch.context() as patch:
        patch.setattr(os, "pread", lambda *where: (sizes.append(where[1]), read(*where))[1])
        with spool.claim(path, LATER):
            assert sizes == [CHUNK]


@pytest.mark.parametrize("chunk", [5, 6, 7, 11, 16, 31])
def test_a_mail_is_read_the_same_however_little_is_read_at_once(spool_directory, monkeypatch, chunk):
    monkeypatch.setattr(spool, "_CHUNK", chunk)
    choose = random.Random(chunk)
    parts = [b"##", b"#", b"\n", b"\r\n", b"\r", b"a", b"Content:", b"##Content:\n", b"##To:eve@x\n", b"b: c\n"]
    for _ in range(300):
        head, lines = envelope_of_size(choose, choose.randint(80, 160))
        message = b"".join(choose.choices(parts, k=choose.randint(0, 8)))
        if b"##Content:" not in head:
            message = message.lstrip(b"#")
        with claimed(spool_directory, head + message) as mail:
            assert mail.lines_with({}) == lines
            assert message_of(mail) == message_of(mail) == message
            assert mail.header() == header_of(message)


# -- the message --


def header_of(message, most=1 << 20):
    """What a header is, in fewer words than the spool's."""
    return re.split(rb"\A\n|\n\n", re.sub(rb"\r\n?", b"\n", message[:most]), maxsplit=1)[0]


@pytest.mark.parametrize(
    ("message", "header"),
    [
        (b"A: b\nC: d\n\nbody\n\nmore", b"A: b\nC: d"),
        (b"A: b\r\nC: d\r\n\r\nbody\r\n\r\n", b"A: b\nC: d"),
        (b"A: b\n", b"A: b\n"),
        (b"A: b", b"A: b"),
        (b"\nbody\n\nmore", b""),
        (b"\r\nbody", b""),
        (b"\n", b""),
    ],
)
def test_the_header_is_what_stands_before_the_first_blank_line(spool_directory, message, header):
    with claimed(spool_directory, HEAD + message) as mail:
        assert mail.header() == header
        assert message_of(mail) == message


def test_no_more_than_a_megabyte_is_taken_for_the_header(spool_directory):
    with claimed(spool_directory, HEAD + b"x" * (3 << 20)) as mail:
        assert mail.header() == b"x" * (1 << 20)


def test_the_header_of_any_short_message_ends_at_its_first_blank_line(spool_directory):
    for size in range(7):
        for message in map(bytes, product(b"\r\na", repeat=size)):
            with claimed(spool_directory, HEAD + message) as mail:
                assert mail.header() == header_of(message), message


@pytest.mark.parametrize(("chunk", "most"), [(5, 5), (5, 17), (8, 20), (16, 40), (64, 1000)])
def test_a_header_is_the_same_however_little_is_read_at_once(spool_directory, monkeypatch, chunk, most):
    monkeypatch.setattr(spool, "_CHUNK", chunk)
    monkeypatch.setattr(spool, "_LARGEST_HEADER", most)
    choose = random.Random(chunk * most)
    parts = [b"\r", b"\n", b" ", b"a", b":", b"a: a", b"aaaaaaaa"]
    for _ in range(500):
        message = b"".join(choose.choices(parts, k=choose.randint(0, 20)))
        with claimed(spool_directory, HEAD + message) as mail:
            assert mail.header() == header_of(message, most), message


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_a_header_may_be_longer_than_what_is_read_at_once(spool_directory, end):
    for border in (CHUNK - len(HEAD), CHUNK, 2 * CHUNK, 5 * CHUNK):
        for size in range(border - 5, border + 6):
            line = b"A: " + b"b" * (size - 3)
            for message in (line, line + end, line + end + b"C: d" + end + end + b"body" + end + end, line + end * 2):
                with claimed(spool_directory, HEAD + message) as mail:
                    assert mail.header() == header_of(message)
                    assert message_of(mail) == message


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_a_blank_line_about_a_megabyte_from_the_beginning_ends_a_header_or_comes_too_late(spool_directory, end):
    for size in range((1 << 20) - 5, (1 << 20) + 2):
        message = b"x" * size + end + end + b"body"
        with claimed(spool_directory, HEAD + message) as mail:
            assert mail.header() == header_of(message)


def test_a_large_message_comes_in_chunks_and_as_often_as_it_is_asked_for(spool_directory):
    message = random.Random(1).randbytes(300_000)
    with claimed(spool_directory, HEAD + b"\n" + message) as mail:
        assert mail.content_size == 300_001
        for _ in range(2):
            chunks = list(mail.content())
            assert max(map(len, chunks)) <= 65536
            assert b"".join(chunks) == b"\n" + message


def test_a_file_that_became_shorter_while_it_was_read_is_an_error(spool_directory):
    with claimed(spool_directory, HEAD + b"x" * 300_000) as mail:
        chunks = mail.content()
        next(chunks)
        os.truncate(mail.path, 200_000)
        with pytest.raises(OSError, match="became shorter"):
            list(chunks)


@pytest.mark.parametrize("size", [1, 1000, CHUNK, CHUNK + 1, 3 * CHUNK])
def test_a_message_of_a_file_that_became_shorter_is_read_whole_or_is_an_error(spool_directory, size):
    choose = random.Random(size)
    message = choose.randbytes(size)
    outcomes = set()
    for left in (0, len(HEAD), len(HEAD) + size - 1, *(choose.randrange(len(HEAD) + size) for _ in range(20))):
        with claimed(spool_directory, HEAD + message) as mail:
            os.truncate(mail.path, left)
            try:
                assert message_of(mail) == message
                outcomes.add("whole")
            except OSError:
                outcomes.add("error")
    assert outcomes == ({"error"} if size >= CHUNK else {"whole"})


def test_the_header_of_a_file_that_became_shorter_is_an_error_and_not_a_part_of_it(spool_directory):
    with claimed(spool_directory, HEAD + b"A: " + b"b" * 200_000 + b"\n\nbody") as mail:
        os.truncate(mail.path, 150_000)
        with pytest.raises(OSError, match="became shorter"):
            mail.header()


def test_the_message_may_be_read_by_several_at_once(spool_directory):
    message = random.Random(3).randbytes(5 * CHUNK)
    with claimed(spool_directory, HEAD + b"\n" + message) as mail:
        first, second = mail.content(), mail.content()
        pairs = []
        for chunk in first:
            assert mail.header() == b""
            pairs.append((chunk, next(second)))
        assert next(second, None) is None
        assert all(one == other for one, other in pairs)
        assert b"".join(one for one, _ in pairs) == b"\n" + message


def test_a_message_of_fifty_megabytes_takes_less_than_two_of_memory(spool_directory):
    path = add(spool_directory, content=HEAD + b"Subject: x\n\n")
    megabyte = random.Random(4).randbytes(1 << 20)
    with path.open("ab") as stream:
        for _ in range(50):
            stream.write(megabyte)
    size = 0
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        with spool.claim(path, LATER) as mail:
            assert mail.header() == b"Subject: x"
            for chunk in mail.content():
                size += len(chunk)
            assert size == mail.content_size
        _, most = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert size == len(b"Subject: x\n\n") + (50 << 20)
    assert most - before < 2 << 20


def test_what_is_added_to_a_file_after_the_claim_is_not_read(spool_directory):
    with claimed(spool_directory, HEAD + b"x" * 100_000) as mail:
        with mail.path.open("ab") as stream:
            stream.write(b"y" * 100_000)
        assert message_of(mail) == b"x" * 100_000


# -- identity --


def test_the_identity_of_our_own_mail_is_its_name(spool_directory):
    name = spool.new_name()
    with claimed(spool_directory, HEAD + MESSAGE, name) as mail:
        assert mail.identity == name


def test_a_strangers_name_that_is_used_again_is_another_identity(spool_directory):
    identities = set()
    for mtime in (1000, 1000.5, 1001):
        with spool.claim(add(spool_directory, mtime=mtime), LATER) as mail:
            identities.add(mail.identity)
    assert len(identities) == 3


def test_strangers_names_that_look_alike_are_different_identities(spool_directory):
    identities = set()
    for name in ("a b", "a_b", "a@b", "x" * 200, "x" * 201, "ü", "ö", "20261123T060000.00000٠-00000000"):
        with spool.claim(add(spool_directory, name, mtime=1000), LATER) as mail:
            identities.add(mail.identity)
            assert mail.identity.isascii() and "/" not in mail.identity and len(mail.identity) < 150
    assert len(identities) == 8


def test_an_identity_stays_the_same_in_all_attempts(spool_directory):
    choose = random.Random(8)
    for number in range(200):
        path = add(spool_directory, f"stranger {number}", mtime=choose.uniform(0, LATER))
        identities = set()
        for _ in range(3):
            with spool.claim(path, LATER) as mail:
                identities.add(mail.identity)
                postpone(mail, ["ann@example.org"], LATER - number, "later")
        assert len(identities) == 1


# -- postponing --


def test_a_postponed_mail_is_the_same_for_fewer_recipients_and_due_later(spool_directory):
    message = b"Subject: x\r\n\r\n\x00\xff##\n.\r" + random.Random(2).randbytes(200_000)
    head = b"##To:ann@x, bob@x, Jo <jo@x>\n##From:Zoe <zoe@x>\n##Queued:2026-11-22T14:00:05+00:00\n"
    path = add(spool_directory, content=head + message)
    with spool.claim(path, LATER) as mail:
        postpone(mail, ["bob@x", "jo@x"], LATER + 300, "451 4.3.0 try\nlater")
    assert path.stat().st_mtime == LATER + 300
    assert files_below(spool_directory) == ["a mail"]
    assert path.read_bytes() == (
        b"##To:bob@x, jo@x\n##From:Zoe <zoe@x>\n##Queued:2026-11-22T14:00:05.000000+00:00\n"
        b"##Attempts:1\n##Last-Reply:451 4.3.0 trylater\n" + message
    )
    assert due_names(spool_directory, LATER + 299) == []
    assert due_names(spool_directory, LATER + 300) == ["a mail"]


def test_a_mail_can_be_postponed_again_and_again(spool_directory):
    path = add(spool_directory, mtime=1000)
    came = path.stat().st_ctime
    for attempts in range(5):
        with spool.claim(path, LATER) as mail:
            assert (mail.attempts, mail.queued_at) == (attempts, pytest.approx(came, abs=1e-5))
            postpone(mail, ["ann@example.org"], LATER - 5, f"45{attempts} later")
    with spool.claim(path, LATER) as mail:
        assert message_of(mail) == MESSAGE
    assert path.read_bytes().count(b"##Last-Reply:") == 1
    assert b"##Last-Reply:454 later\n" in path.read_bytes()


@pytest.mark.parametrize("message", [b"##To:eve@x\n\n", b"##", b"#", b"#\n##", b"\n", b"x"])
def test_a_postponed_message_is_kept_byte_for_byte(spool_directory, message):
    path = add(spool_directory, content=HEAD + b"##Content:\n" + message)
    for _ in range(2):
        with spool.claim(path, LATER) as mail:
            postpone(mail, ["ann@example.org"], LATER - 5, "later")
    with spool.claim(path, LATER) as mail:
        assert message_of(mail) == message
        assert mail.read_envelope().recipients == ("ann@example.org",)


@pytest.mark.parametrize("offset", range(-3, 4))
def test_a_postponed_message_that_begins_like_the_envelope_stays_message_wherever_it_begins(spool_directory, offset):
    message = b"##To:eve@x\n##From:eve@x\n"
    end = b"\n##Content:\n"
    head = HEAD + b"##X:" + b"x" * (CHUNK + offset - len(HEAD) - len(b"##X:") - len(end)) + end
    assert len(head) == CHUNK + offset
    path = add(spool_directory, content=head + message)
    for _ in range(2):
        with spool.claim(path, LATER) as mail:
            postpone(mail, ["ann@example.org"], LATER - 5, "later")
    with spool.claim(path, LATER) as mail:
        assert message_of(mail) == message
        assert mail.read_envelope().recipients == ("ann@example.org",)


def test_a_postponed_message_is_kept_however_little_is_read_at_once(spool_directory, monkeypatch):
    choose = random.Random(9)
    for _ in range(200):
        monkeypatch.setattr(spool, "_CHUNK", choose.randint(5, 20))
        head, _ = envelope_of_size(choose, choose.randint(80, 120))
        message = b"".join(choose.choices([b"#", b"##To:eve@x\n", b"\n", b"\r", b"a"], k=choose.randint(1, 9)))
        if b"##Content:" not in head:
            message = b"a" + message
        path = add(spool_directory, content=head + message)
        for _ in range(2):
            with spool.claim(path, LATER, durable=False) as mail:
                postpone(mail, ["ann@example.org"], LATER - 5, "later")
        with spool.claim(path, LATER) as mail:
            assert message_of(mail) == message
            assert mail.read_envelope().recipients == ("ann@example.org",)


def test_a_postponed_mail_keeps_unknown_lines_of_its_envelope(spool_directory):
    lines = b"##X-Tag:a:b ##c\n##no colon\n##X-Tag:last\n##Transaction:17\n"
    path = add(spool_directory, content=HEAD + lines + MESSAGE)
    with spool.claim(path, LATER) as mail:
        postpone(mail, ["ann@example.org"], LATER, "later")
    kept = path.read_bytes().splitlines()
    assert kept[:2] == [b"##To:ann@example.org", b"##From:bob@example.org"]
    assert {b"##X-Tag:last", b"##no colon:", b"##Transaction:17"} <= set(kept)
    assert b"##X-Tag:a:b ##c" not in kept


def test_to_is_the_first_line_again_wherever_its_last_one_was(spool_directory):
    path = add(spool_directory, content=b"##To:a@x\n##X:1\n##To:b@x\n" + MESSAGE)
    with spool.claim(path, LATER) as mail:
        assert mail.lines_with({})[0] == ("To", "b@x")
        postpone(mail, ["b@x"], LATER, "later")
    assert path.read_bytes().startswith(b"##To:b@x\n##X:1\n")


@pytest.mark.parametrize("umask", [0o000, 0o077])
@pytest.mark.parametrize("mode", [0o600, 0o640, 0o660, 0o664, 0o400])
def test_a_postponed_mail_keeps_its_mode(spool_directory, set_umask, mode, umask):
    path = add(spool_directory)
    path.chmod(mode)
    set_umask(umask)
    with spool.claim(path, LATER) as mail:
        postpone(mail, ["ann@example.org"], LATER, "later")
    assert mode_of(path) == mode


@pytest.mark.skipif(not as_root, reason="only root may give files away")
def test_a_postponed_mail_keeps_its_owner(spool_directory):
    path = add(spool_directory)
    os.chown(path, 12345, 23456)
    path.chmod(0o640)
    with spool.claim(path, LATER) as mail:
        postpone(mail, ["ann@example.org"], LATER, "later")
    assert (path.stat().st_uid, path.stat().st_gid, mode_of(path)) == (12345, 23456, 0o640)


def test_a_postponed_mail_keeps_its_group_where_the_account_may_not_keep_its_owner():
    requires_root()
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        path = Path(directory) / "spool" / "mail"
        spool.make_spool(path.parent, 0o770)    # no setgid bit passes the group on
        add(path.parent, path.name)
        path.chmod(0o660)
        for shared in (path.parent, path.parent / "tmp", path):
            os.chown(shared, 12345, 23456)
        Account(12346, (23456,)).do(postpone_by_itself, path)
        assert (path.stat().st_uid, path.stat().st_gid, mode_of(path)) == (12346, 23456, 0o660)


def postpone_by_itself(path):
    with spool.claim(path, LATER) as mail:
        postpone(mail, ["ann@example.org"], LATER, "later")


def test_postponing_hands_the_claim_over_to_the_new_mail(spool_directory):
    path = add(spool_directory, content=HEAD + b"##Content:\n##x\n\nbody")
    with spool.claim(path, LATER) as mail:
        remainder = draft_remainder(mail, ["jo@example.org"], LATER, "451 later")
        with pytest.raises(SpoolBusy):
            spool.claim(path, LATER)
        with spool.postpone(mail, remainder) as renewed:
            mail.close()
            with pytest.raises(SpoolBusy):
                spool.claim(path, LATER)
            assert (renewed.path, renewed.attempts, renewed.identity) == (path, 1, mail.identity)
            assert renewed.read_envelope().recipients == ("jo@example.org",)
            assert message_of(renewed) == b"##x\n\nbody"
            assert renewed.names_path()
    spool.claim(path, LATER).close()


def test_a_mail_that_is_closed_without_its_remainder_can_be_claimed_again(spool_directory):
    path = add(spool_directory)
    with spool.claim(path, LATER) as mail:
        draft_remainder(mail, ["ann@example.org"], LATER, "later").drop()
    spool.claim(path, LATER).close()


def test_a_draft_of_the_remainder_leaves_the_mail_as_it_is(spool_directory):
    path = add(spool_directory)
    with spool.claim(path, LATER) as mail:
        remainder = draft_remainder(mail, ["ann@example.org"], LATER, "later")
        assert remainder.path.parent == spool_directory / "tmp"
        assert path.read_bytes() == HEAD + MESSAGE
        assert due_names(spool_directory) == ["a mail"]
        remainder.drop()
    assert files_below(spool_directory) == ["a mail"]


def test_a_mail_that_was_replaced_on_its_way_is_not_overwritten(spool_directory):
    path = add(spool_directory)
    with spool.claim(path, LATER) as mail:
        assert mail.names_path()
        remainder = draft_remainder(mail, ["ann@example.org"], LATER, "later")
        path.unlink()
        add(spool_directory, content=b"another's")
        assert not mail.names_path()
        assert spool.postpone(mail, remainder) is None
    assert path.read_bytes() == b"another's"
    assert files_below(spool_directory) == ["a mail"]


def test_a_mail_that_was_taken_away_on_its_way_does_not_come_back(spool_directory):
    path = add(spool_directory)
    with spool.claim(path, LATER) as mail:
        remainder = draft_remainder(mail, ["ann@example.org"], LATER, "later")
        path.unlink()
        assert spool.postpone(mail, remainder) is None
    assert files_below(spool_directory) == []


def test_nothing_is_left_of_a_remainder_that_cannot_be_written(spool_directory):
    path = add(spool_directory, content=HEAD + b"x" * 200_000)
    with spool.claim(path, LATER) as mail:
        with no_file_larger_than(100_000), pytest.raises(OSError):
            draft_remainder(mail, ["ann@example.org"], LATER, "later")
        with no_file_larger_than(100_000), pytest.raises(OSError):
            spool.set_aside(mail, None, "why", "1")
    assert files_below(spool_directory) == ["a mail"]
    assert path.stat().st_size == len(HEAD) + 200_000


@pytest.mark.parametrize("queued", ["9999-12-31T23:59:59-23:00", "0001-01-01T00:00:00+23:00", "0001-01-01T00:00:00"])
def test_a_mail_with_an_impossible_time_in_its_envelope_can_be_recorded_too(spool_directory, queued):
    path = add(spool_directory, content=HEAD + f"##Queued:{queued}\n".encode() + MESSAGE)
    with spool.claim(path, LATER) as mail:
        assert spool.set_aside(mail, None, "why", "1").exists()
        postpone(mail, ["ann@example.org"], LATER, "later")
    with spool.claim(path, LATER) as mail:
        assert mail.attempts == 1


@pytest.mark.parametrize("mtime", [-(10**11), 10**12])
def test_a_file_with_an_impossible_time_can_be_recorded_too(mtime):
    try:
        place = tempfile.TemporaryDirectory(dir="/dev/shm")    # other file systems do not keep such a time
    except OSError:
        pytest.skip("no /dev/shm here")
    with place as directory:
        path = add(Path(directory), mtime=mtime)
        if path.stat().st_mtime != mtime:
            pytest.skip("/dev/shm does not keep such a time")
        spool.make_spool(path.parent, 0o700)
        with spool.claim(path, LATER) as mail:
            assert spool.set_aside(mail, None, "why", "1").exists()
            postpone(mail, ["ann@example.org"], LATER, "later")
        spool.claim(path, LATER).close()


# -- removing --


def test_a_mail_nobody_waits_for_is_removed(spool_directory):
    with spool.claim(add(spool_directory), LATER) as mail:
        spool.remove(mail)
        spool.remove(mail)
    assert files_below(spool_directory) == []


def test_a_mail_that_was_replaced_on_its_way_is_not_removed(spool_directory):
    path = add(spool_directory)
    with spool.claim(path, LATER) as mail:
        path.unlink()
        add(spool_directory, content=b"another's")
        spool.remove(mail)
    assert path.read_bytes() == b"another's"


# -- setting aside --


def test_a_copy_for_those_who_were_refused_is_kept_and_says_why(spool_directory):
    head = b"##To:ann@x, bob@x\n##From:zoe@x\n##X:1\n##Queued:1970-01-01T00:00:10+00:00\n"
    path = add(spool_directory, content=head + MESSAGE)
    path.chmod(0o640)
    with spool.claim(path, LATER) as mail:
        kept = spool.set_aside(mail, ["bob@x"], "550 5.1.1 no such\nuser", "1")
        assert kept == spool_directory / "failed" / f"{mail.identity}.1"
    assert kept.read_bytes() == (
        b"##To:bob@x\n##From:zoe@x\n##X:1\n##Queued:1970-01-01T00:00:10.000000+00:00\n"
        b"##Attempts:1\n##Failed:550 5.1.1 no suchuser\n" + MESSAGE
    )
    assert mode_of(kept) == 0o640
    assert path.exists()
    assert list((spool_directory / "tmp").iterdir()) == []


def test_a_copy_for_nobody_in_particular_keeps_the_list_as_it_is(spool_directory):
    with claimed(spool_directory, b"##To:not an address, \"x\n##From:zoe@x\n" + MESSAGE) as mail:
        kept = spool.set_aside(mail, None, "no usable recipient", "1")
    assert kept.read_bytes().startswith(b'##To:not an address, "x\n##From:zoe@x\n')


@pytest.mark.parametrize("name", ["20261122T140005.000001-0123abcd", "a stranger's"])
def test_setting_the_same_failure_aside_again_changes_nothing(spool_directory, name):
    path = add(spool_directory, name)
    kept = []
    for _ in range(2):
        with spool.claim(path, LATER) as mail:
            copy = spool.set_aside(mail, ["ann@example.org"], "550 no", "1")
            kept.append((copy, copy.read_bytes()))
    assert kept[0] == kept[1]
    assert files_below(spool_directory / "failed") == [kept[0][0].name]


def test_failures_of_different_attempts_are_kept_side_by_side(spool_directory):
    path = add(spool_directory)
    with spool.claim(path, LATER) as mail:
        first = spool.set_aside(mail, ["ann@example.org"], "550 no", "1")
        second = spool.set_aside(mail, ["ann@example.org"], "550 no", "1-data")
    assert sorted([first, second]) == sorted((spool_directory / "failed").iterdir())


def test_a_copy_is_never_overwritten_by_another_mail_that_uses_the_name_again(spool_directory):
    kept = set()
    for number in range(3):
        path = add(spool_directory, "report", HEAD + b"\n%d" % number, mtime=1000 + number)
        with spool.claim(path, LATER) as mail:
            kept.add(spool.set_aside(mail, None, "550 no", "1"))
            spool.remove(mail)
    assert sorted(path.read_bytes()[-1:] for path in kept) == [b"0", b"1", b"2"]


# -- cleaning up --


def test_what_a_dead_process_left_is_removed_when_it_is_two_seconds_old(spool_directory, set_clock):
    leftover = add(spool_directory / "tmp", "leftover")
    changed = leftover.stat().st_ctime
    set_clock(changed + 1.9)    # somebody may be between creating the file and locking it
    spool.clean(spool_directory)
    assert leftover.exists()
    set_clock(changed + 2.1)
    spool.clean(spool_directory)
    assert not leftover.exists()


def test_what_somebody_holds_is_not_removed(spool_directory, set_clock):
    with claimed(spool_directory, HEAD + MESSAGE) as mail:
        remainder = draft_remainder(mail, ["ann@example.org"], LATER, "later")
    set_clock(LATER)
    spool.clean(spool_directory)
    assert remainder.path.exists()
    remainder.close()
    spool.clean(spool_directory)
    assert files_below(spool_directory) == ["a mail"]


def test_cleaning_touches_nothing_else(spool_directory, set_clock, tmp_path):
    target = add(tmp_path, "elsewhere")
    add(spool_directory, "mail")
    add(spool_directory / "failed", "kept")
    (spool_directory / "tmp" / "directory").mkdir()
    (spool_directory / "tmp" / "link").symlink_to(target)
    os.mkfifo(spool_directory / "tmp" / "fifo")
    add(spool_directory / "tmp", "z leftover")
    set_clock(LATER)
    spool.clean(spool_directory)
    assert files_below(spool_directory) == ["failed/kept", "mail", "tmp/fifo", "tmp/link"]
    assert (spool_directory / "tmp" / "directory").is_dir()
    assert target.exists()


def test_there_may_be_nothing_to_clean(tmp_path):
    spool.clean(tmp_path / "none")
    spool.make_spool(tmp_path / "spool", 0o700)
    spool.clean(tmp_path / "spool")
    assert (tmp_path / "spool" / "tmp").is_dir()


# -- making sure that it is on the disk --


@pytest.fixture
def flushed(monkeypatch):
    """What was flushed so far: names below the spool, "." for the spool itself; flushing is still done."""
    told = []
    flush = spool._flush

    def flushing(path):
        told.append(path.name)
        flush(path)

    monkeypatch.setattr(spool, "_flush", flushing)
    return told


def fails(*_):
    raise OSError(errno.EIO, os.strerror(errno.EIO))


def test_a_published_mail_is_due_and_was_flushed_before_its_lock_went(spool_directory, monkeypatch):
    steps = []
    flush, release = spool._flush, Draft.release
    monkeypatch.setattr(spool, "_flush", lambda path: (steps.append(path.name), flush(path)))
    monkeypatch.setattr(Draft, "release", lambda draft: (steps.append("release"), release(draft)))
    draft = Draft(spool_directory / "m")
    draft.write("bob@example.org", "ann@example.org", MESSAGE)
    assert steps == []
    draft.publish()
    assert steps == ["m", "spool", "release", "spool"]
    assert files_below(spool_directory) == ["m"]


def test_flushing_a_draft_changes_nothing_on_disk(spool_directory, flushed):
    draft = Draft(spool_directory / "m")
    draft.write("bob@example.org", "ann@example.org", MESSAGE)
    draft.flush()
    assert flushed == ["m"]
    assert files_below(spool_directory) == ["m", "m.lck"]
    assert draft.path.read_bytes() == HEAD + MESSAGE


def test_a_draft_that_need_not_last_is_never_flushed(spool_directory, flushed):
    draft = Draft(spool_directory / "m", durable=False)
    draft.write("bob@example.org", "ann@example.org", MESSAGE)
    draft.flush()
    draft.publish()
    assert flushed == []
    assert files_below(spool_directory) == ["m"]


def test_nothing_is_left_of_a_mail_that_cannot_be_flushed(spool_directory, monkeypatch):
    draft = Draft(spool_directory / "m")
    draft.write("bob@example.org", "ann@example.org", MESSAGE)
    monkeypatch.setattr(spool, "_flush", fails)
    with pytest.raises(OSError, match="Input/output error"):
        draft.publish()
    assert files_below(spool_directory) == []


def test_an_error_of_publishing_and_a_mail_that_is_due_never_come_together(spool_directory, monkeypatch):
    draft = Draft(spool_directory / "m")
    draft.write("bob@example.org", "ann@example.org", MESSAGE)
    monkeypatch.setattr(spool, "flush_directory", fails)
    try:
        draft.publish()
    except OSError:    # whoever is told that it failed sends it again
        assert files_below(spool_directory) == []
    else:
        assert files_below(spool_directory) == ["m"]


def test_a_flush_of_a_draft_that_fails_leaves_it_to_its_owner(spool_directory, monkeypatch):
    draft = Draft(spool_directory / "m")
    draft.write("bob@example.org", "ann@example.org", MESSAGE)
    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(os, "fsync", fails)
        draft.flush()
    assert files_below(spool_directory) == ["m", "m.lck"]
    draft.discard()
    assert files_below(spool_directory) == []


def test_a_flush_leaves_nothing_open_also_when_it_fails(spool_directory, monkeypatch):
    before = set(os.listdir("/dev/fd"))
    spool.flush_directory(spool_directory)
    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises(OSError):
        spool.flush_directory(spool_directory)
    with pytest.raises(FileNotFoundError):
        spool.flush_directory(spool_directory / "none")
    assert set(os.listdir("/dev/fd")) == before


@pytest.mark.parametrize("durable", [True, False])
def test_what_is_recorded_of_a_mail_is_flushed_where_it_has_to_last(spool_directory, monkeypatch, flushed, durable):
    synced = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(os.fstat(descriptor).st_ino), sync(descriptor)))
    with spool.claim(add(spool_directory), LATER, durable) as mail:
        kept = spool.set_aside(mail, ["ann@example.org"], "550 no", "1")
        assert (kept.stat().st_ino in synced) is durable
        assert flushed == (["failed"] if durable else [])
        with spool.postpone(mail, draft_remainder(mail, ["ann@example.org"], LATER, "later")) as renewed:
            assert (renewed.status.st_ino in synced) is durable
            assert renewed.durable is durable


def test_a_copy_that_cannot_be_flushed_is_an_error_and_leaves_nothing(spool_directory, monkeypatch):
    with spool.claim(add(spool_directory), LATER) as mail:
        monkeypatch.setattr(os, "fsync", fails)
        with pytest.raises(OSError):
            spool.set_aside(mail, None, "why", "1")
        with pytest.raises(OSError):
            draft_remainder(mail, ["ann@example.org"], LATER, "later")
        with pytest.raises(OSError):
            spool.add_whole(mail, "another", "", "zoe@example.org", b"x")
    assert files_below(spool_directory) == ["a mail"]


# -- claims and what happens meanwhile --


@pytest.mark.parametrize(
    "moment", ["before the lock is looked for", "after it", "before the path is looked at", "after that"]
)
def test_a_mail_that_is_discarded_while_it_is_claimed_is_never_claimed(spool_directory, monkeypatch, moment):
    draft = Draft(spool_directory / spool.new_name())
    draft.write("bob@example.org", "ann@example.org", MESSAGE)
    looked_for, at_path = os.path.lexists, spool.SpooledMail.names_path

    def around(look, *moments):
        def looking(argument):
            if moment == moments[0]:
                draft.discard()
            found = look(argument)
            if moment == moments[1]:
                draft.discard()
            return found

        return looking

    monkeypatch.setattr(os.path, "lexists", around(looked_for, "before the lock is looked for", "after it"))
    monkeypatch.setattr(spool.SpooledMail, "names_path", around(at_path, "before the path is looked at", "after that"))
    with pytest.raises(SpoolBusy):
        spool.claim(draft.path, LATER)
    assert draft.path.exists() is (moment in ("before the path is looked at", "after that"))    # which never come


@pytest.mark.parametrize("is_read", [False, True])
def test_a_mail_that_is_released_while_it_is_claimed_may_be_claimed(spool_directory, monkeypatch, is_read):
    draft = Draft(spool_directory / spool.new_name())
    draft.write("bob@example.org", "ann@example.org", MESSAGE)
    before = draft.path.stat()
    read = spool._read_envelope_lines

    def reading(stream):
        head = read(stream) if is_read else None
        while draft.path.stat().st_ctime_ns == before.st_ctime_ns:    # the file system's clock ticks slowly
            spool.lock_path(draft.path).chmod(0o600)
        draft.release()
        return head or read(stream)

    monkeypatch.setattr(spool, "_read_envelope_lines", reading)
    with spool.claim(draft.path, LATER) as mail:
        assert (before.st_nlink, mail.status.st_nlink) == (2, 1)
        assert message_of(mail) == MESSAGE


@pytest.mark.parametrize("is_released", [False, True])
@pytest.mark.parametrize("happens", ["longer", "shorter", "other"])
def test_a_mail_whose_bytes_change_while_it_is_claimed_is_refused_released_or_not(
    spool_directory, monkeypatch, happens, is_released
):
    draft = Draft(spool_directory / spool.new_name())
    draft.write("bob@example.org", "ann@example.org", MESSAGE)
    other = draft.path.read_bytes().replace(b"ann", b"eve")
    before = draft.path.stat().st_mtime_ns
    read = spool._read_envelope_lines

    def reading(stream):
        head = read(stream)
        if happens == "shorter":
            os.truncate(draft.path, len(other) - 1)
        while draft.path.stat().st_mtime_ns == before:
            with draft.path.open("r+b") as writer:
                writer.write(other + b"more" if happens == "longer" else other)
        if is_released:
            draft.release()
        return head

    monkeypatch.setattr(spool, "_read_envelope_lines", reading)
    with pytest.raises(SpoolBusy, match="being written"):
        spool.claim(draft.path, LATER)


@pytest.mark.parametrize("happens", ["longer", "shorter", "other"])
def test_a_file_that_changes_while_its_envelope_is_read_is_still_being_written(spool_directory, monkeypatch, happens):
    path = add(spool_directory)
    before = path.stat().st_ctime_ns
    read = spool._read_envelope_lines

    def reading(stream):
        lines = read(stream)
        if happens == "longer":
            with path.open("ab") as writer:
                writer.write(b"more")
        elif happens == "shorter":
            os.truncate(path, len(HEAD) + 3)
        while happens == "other" and path.stat().st_ctime_ns == before:    # the file system's clock ticks slowly
            with path.open("r+b") as writer:
                writer.write(HEAD.replace(b"ann", b"eve"))
        return lines

    monkeypatch.setattr(spool, "_read_envelope_lines", reading)
    with pytest.raises(SpoolBusy, match="being written"):
        spool.claim(path, LATER)
    monkeypatch.undo()
    spool.claim(path, LATER).close()


def test_whatever_is_deferred_can_be_claimed_by_whoever_does_not_ask_for_the_time(spool_directory):
    path = add(spool_directory, mtime=LATER + HOUR)
    with pytest.raises(SpoolBusy):
        spool.claim(path, LATER)
    spool.claim(path, math.inf).close()
    add(spool_directory, path.name + ".lck")
    with pytest.raises(SpoolBusy):
        spool.claim(path, math.inf)


@contextmanager
def hidden(directory):
    """As for an account that may not enter ``directory``."""
    mode = mode_of(directory)
    directory.chmod(0o000)
    if as_root:
        os.seteuid(65534)
    try:
        yield
    finally:
        if as_root:
            os.seteuid(0)
        directory.chmod(mode)


def test_a_path_that_cannot_be_looked_at_is_an_error_and_not_a_mail_that_is_gone(spool_directory):
    path = add(spool_directory)
    with spool.claim(path, LATER) as mail:
        remainder = draft_remainder(mail, ["ann@example.org"], LATER, "later")
        with hidden(spool_directory):
            with pytest.raises(PermissionError):
                mail.names_path()
            with pytest.raises(PermissionError):
                spool.remove(mail)
            with pytest.raises(PermissionError):
                spool.postpone(mail, remainder)
        assert mail.names_path()
        assert remainder.path.exists()
        assert path.read_bytes() == HEAD + MESSAGE


# -- adding a whole mail --


def test_a_whole_mail_is_there_in_one_step_with_the_mode_of_the_mail_it_comes_from(spool_directory, monkeypatch):
    path = add(spool_directory)
    path.chmod(0o640)
    seen = []
    rename = os.rename
    monkeypatch.setattr(os, "rename", lambda old, new: (seen.append(Path(old).read_bytes()), rename(old, new)))
    with spool.claim(path, LATER) as mail:
        spool.add_whole(mail, "notice", "", "zoe@example.org", MESSAGE)
    added = spool_directory / "notice"
    assert added.read_bytes() == b"##To:zoe@example.org\n##From:\n" + MESSAGE
    assert seen == [added.read_bytes()]
    assert mode_of(added) == 0o640
    assert files_below(spool_directory) == ["a mail", "notice"]
    with spool.claim(added, LATER) as notice:
        assert notice.read_envelope().sender == ""
        assert message_of(notice) == MESSAGE


def test_a_whole_mail_is_flushed_and_then_its_directory(spool_directory, flushed, monkeypatch):
    synced = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.append(os.fstat(descriptor).st_ino), sync(descriptor)))
    with spool.claim(add(spool_directory), LATER) as mail:
        spool.add_whole(mail, "notice", "", "zoe@example.org", MESSAGE)
    assert synced == [(spool_directory / "notice").stat().st_ino, spool_directory.stat().st_ino]
    assert flushed == ["spool"]


def test_a_whole_mail_never_takes_the_place_of_another(spool_directory):
    with spool.claim(add(spool_directory), LATER) as mail:
        spool.add_whole(mail, "notice", "", "zoe@example.org", b"first")
        spool.add_whole(mail, "notice", "", "zoe@example.org", b"second")
    assert (spool_directory / "notice").read_bytes().endswith(b"first")
    assert files_below(spool_directory) == ["a mail", "notice"]


def test_a_whole_mail_that_begins_like_the_envelope_stays_message(spool_directory):
    with spool.claim(add(spool_directory), LATER) as mail:
        spool.add_whole(mail, "notice", "", "zoe@example.org", b"##To:eve@example.org\n\n")
    with spool.claim(spool_directory / "notice", LATER) as notice:
        assert notice.read_envelope().recipients == ("zoe@example.org",)
        assert message_of(notice) == b"##To:eve@example.org\n\n"


def test_nothing_is_left_of_a_whole_mail_that_cannot_be_written(spool_directory):
    with spool.claim(add(spool_directory), LATER) as mail:
        with no_file_larger_than(100_000), pytest.raises(OSError):
            spool.add_whole(mail, "notice", "", "zoe@example.org", b"x" * 200_000)
    assert files_below(spool_directory) == ["a mail"]


# -- renewing --

NOTES = (
    b"##Queued:2026-11-22T14:00:05+00:00\n##Attempts:7\n##Last-Reply:451 later\n##Lost-Sessions:3\n##Failed:550 no\n"
)


def test_a_renewed_mail_is_due_now_under_its_name_as_if_it_had_never_been_tried(spool_directory):
    path = add(spool_directory, content=HEAD + b"##X-Tag:1\n" + NOTES + MESSAGE, mtime=LATER + HOUR)
    path.chmod(0o640)
    with spool.claim(path, math.inf) as mail:
        assert spool.renew(mail) == path
    assert path.read_bytes() == HEAD + b"##X-Tag:1\n" + MESSAGE
    assert mode_of(path) == 0o640
    now = path.stat().st_mtime
    assert abs(time.time() - now) < 60
    assert due_names(spool_directory, path.stat().st_ctime + spool.SETTLED_S + 1) == ["a mail"]
    with spool.claim(path, LATER) as mail:
        assert (mail.attempts, mail.lost_sessions, mail.queued_at) == (0, 0, path.stat().st_ctime)
        assert message_of(mail) == MESSAGE
    assert files_below(spool_directory) == ["a mail"]


def test_a_renewed_mail_that_had_failed_gets_a_new_name_without_what_was_noted_of_it(spool_directory, flushed):
    path = add(spool_directory / "failed", "a mail.1", HEAD + NOTES + MESSAGE)
    with spool.claim(path, math.inf) as mail:
        renewed = spool.renew(mail)
    assert flushed == ["spool"]
    assert files_below(spool_directory) == [renewed.name]
    assert renewed.parent == spool_directory
    assert renewed.read_bytes() == HEAD + MESSAGE
    assert scan(spool_directory, time.time() + 1) == Scan([renewed.name], [], unsettled=False)
    spool.claim(renewed, LATER).close()


@pytest.mark.parametrize("directory", [".", "failed"])
def test_at_any_time_there_is_one_file_of_a_mail_that_is_renewed(spool_directory, monkeypatch, directory):
    path = add(spool_directory / directory, "a mail", HEAD + NOTES + MESSAGE, mtime=LATER)
    found = []

    def watched(step):
        def stepping(*arguments):
            look()
            step(*arguments)
            look()

        return stepping

    def look():
        found.append([name for name in files_below(spool_directory) if not name.startswith("tmp/")])

    with spool.claim(path, math.inf) as mail:
        monkeypatch.setattr(os, "rename", watched(os.rename))
        monkeypatch.setattr(os, "unlink", watched(os.unlink))
        spool.renew(mail)
    assert len(found) >= 2
    assert {len(names) for names in found} == {1}


@pytest.mark.parametrize("failing", [1, 2])
def test_a_failed_mail_that_cannot_be_renewed_stays_in_its_place(spool_directory, monkeypatch, failing):
    path = add(spool_directory / "failed", "a mail.1", HEAD + NOTES + MESSAGE)
    rename = os.rename
    calls = []

    def renaming(old, new):
        calls.append(old)
        (fails if len(calls) == failing else rename)(old, new)

    with spool.claim(path, math.inf) as mail:
        monkeypatch.setattr(os, "rename", renaming)
        with pytest.raises(OSError):
            spool.renew(mail)
    left = [name for name in files_below(spool_directory) if not name.startswith("tmp/")]
    assert left == ["failed/a mail.1"]
    with spool.claim(path, math.inf) as mail:
        assert message_of(mail) == MESSAGE


def test_a_mail_that_is_gone_by_then_is_not_renewed(spool_directory):
    path = add(spool_directory / "failed", "a mail.1", HEAD + NOTES + MESSAGE)
    with spool.claim(path, math.inf) as mail:
        path.unlink()
        with pytest.raises(SpoolBusy, match="moved"):
            spool.renew(mail)
    assert files_below(spool_directory) == []


def test_nobody_else_gets_a_mail_while_it_is_renewed(spool_directory, monkeypatch):
    path = add(spool_directory, content=HEAD + NOTES + MESSAGE, mtime=1000)
    rename = os.rename
    refused = []

    def renaming(old, new):
        for _ in range(2):
            with pytest.raises(SpoolBusy):
                spool.claim(path, LATER)
            refused.append(new)
            if len(refused) == 1:
                rename(old, new)

    with spool.claim(path, math.inf) as mail:
        monkeypatch.setattr(os, "rename", renaming)
        spool.renew(mail)
    assert len(refused) == 2
    spool.claim(path, LATER).close()


# -- lost sessions --


def test_lost_sessions_are_counted_in_the_envelope_and_kept_by_further_attempts(spool_directory):
    path = add(spool_directory)
    for lost in (1, 1, 2):
        with spool.claim(path, LATER) as mail:
            remainder = spool.draft_remainder(
                mail, ["ann@example.org"], LATER, attempts=mail.attempts + 1, last_reply="x", lost_sessions=lost
            )
            spool.postpone(mail, remainder).close()
        with spool.claim(path, LATER) as mail:
            assert mail.lost_sessions == lost
    with spool.claim(path, LATER) as mail:
        postpone(mail, ["ann@example.org"], LATER, "451 later")
    with spool.claim(path, LATER) as mail:
        assert (mail.attempts, mail.lost_sessions) == (4, 2)


@pytest.mark.parametrize(("value", "lost"), [("", 0), ("3", 3), (" 3 ", 3), ("-1", 0), ("many", 0), ("9" * 5000, 0)])
def test_lost_sessions_that_are_no_number_count_as_none(spool_directory, value, lost):
    with claimed(spool_directory, HEAD + f"##Lost-Sessions:{value}\n".encode() + MESSAGE) as mail:
        assert mail.lost_sessions == lost

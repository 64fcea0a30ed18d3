"""The files of mails that are over are closed, soon and many at a time, and with that the claims on them end."""

import os
import resource
import threading
import time

import pytest

from maildrop import spool
from maildrop.closer import _TOGETHER, Closer


@pytest.fixture
def closer():
    closer = Closer()
    yield closer
    closer.finish()


def write_mails(directory, count):
    drafts = [spool.Draft(directory / spool.new_name(), durable=False) for _ in range(count)]
    for draft in drafts:
        draft.write("zoe@example.org", "ann@example.org", b"Subject: test\n\nbody\n")
        draft.release()
    return [draft.path for draft in drafts]


def claim_all(paths):
    return [spool.claim(path, time.time()) for path in paths]


def is_claimed(path):
    try:
        spool.claim(path, time.time()).close()
    except spool.SpoolBusy:
        return True
    return False


def open_files():
    return len(os.listdir("/dev/fd"))


def test_that_all_claims_have_ended_when_it_has_finished(closer, spool_directory):
    before = open_files()
    paths = write_mails(spool_directory, 3 * _TOGETHER + 1)
    for mail in claim_all(paths):
        closer.close(mail)
    closer.finish()
    assert not any(map(is_claimed, paths))
    assert open_files() == before


def test_that_a_few_wait_until_they_are_asked_for(closer, spool_directory):
    [path] = write_mails(spool_directory, 1)
    [mail] = claim_all([path])
    closer.close(mail)
    assert is_claimed(path)
    closer.close_waiting()
    closer.finish()
    assert not is_claimed(path)


def test_that_their_thread_has_the_last_handles(closer, spool_directory, monkeypatch):
    paths = write_mails(spool_directory, _TOGETHER)
    may_go_on = threading.Event()
    run = Closer._run
    monkeypatch.setattr(Closer, "_run", lambda self: may_go_on.wait() and run(self))
    try:
        for mail in claim_all(paths):
            closer.close(mail)
        assert mail.stream.closed
        assert all(map(is_claimed, paths))
    finally:
        may_go_on.set()
    closer.finish()
    assert not any(map(is_claimed, paths))


def test_that_they_are_closed_where_no_more_files_can_be_opened(closer, spool_directory):
    paths = write_mails(spool_directory, _TOGETHER)
    mails = claim_all(paths)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(mail.stream.fileno() for mail in mails) + 1, hard))
    try:
        for mail in mails:
            closer.close(mail)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert not any(map(is_claimed, paths))


def test_that_they_are_closed_where_there_is_no_thread_to_spare(closer, spool_directory, monkeypatch):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    paths = write_mails(spool_directory, _TOGETHER)
    mails = claim_all(paths)
    monkeypatch.setattr(threading.Thread, "start", refuse)
    for mail in mails:
        closer.close(mail)
    assert not any(map(is_claimed, paths))

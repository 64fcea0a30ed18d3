"""The wake-up: the real daemon, by its own scripts, sends at once what a real MaildropHost commits."""

import os
import signal
import stat
import threading
from collections import Counter

import pytest
import transaction
from support.daemon import MaildropDaemon, process_runs, wait_until
from support.relay_server import RelayServer
from support.spooling import MODULE

from maildrop.wake import announce

NEVER_S = 3600    # an interval that no test lives to see the end of
BOUND_S = 20.0


@pytest.fixture
def relay():
    with RelayServer() as server:
        yield server


@pytest.fixture(autouse=True)
def clean_transaction():
    transaction.abort()
    yield
    transaction.abort()


def make_host(daemon, transactional=True):
    """A MaildropHost with the daemon's config file."""
    host = MODULE.MaildropHost("MailHost")
    host.config_path = str(daemon.config)
    host._transactional = transactional
    return host


def send(host, recipient):
    host.send("Hello", mto=recipient, mfrom="zoe@example.org", subject="x")


def sleeping(daemon):
    """Wait until a daemon has had its first look, and then waits for the next."""
    daemon.wait_until(lambda: len(fifos(daemon.spool)) == 1)
    daemon.add_mail("first@example.org")
    announce(daemon.spool)
    daemon.wait_until_empty()


def fifos(spool):
    directory = spool / "wake"
    if not directory.is_dir():
        return []
    return sorted(path for path in directory.iterdir() if stat.S_ISFIFO(path.lstat().st_mode))


# -- writers --


@pytest.mark.parametrize("transactional", [True, False])
def test_a_mail_leaves_when_its_transaction_has_committed_whatever_the_interval(tmp_path, relay, transactional):
    with MaildropDaemon(tmp_path, relay.port, MAILDROP_INTERVAL=NEVER_S) as daemon:
        sleeping(daemon)
        host = make_host(daemon, transactional)
        for number in range(5):
            send(host, f"r{number}@example.org")
            transaction.commit()
            wait_until(lambda number=number: f"r{number}@example.org" in relay.recipients(), told=daemon.read_log)
        daemon.wait_until_empty()
    wanted = ["first@example.org", *(f"r{number}@example.org" for number in range(5))]
    assert Counter(relay.recipients()) == Counter(wanted)


def test_hundreds_of_mails_of_one_transaction_leave_each_once(tmp_path, relay):
    recipients = [f"r{number:03}@example.org" for number in range(300)]    # more names than fit into one word
    with MaildropDaemon(tmp_path, relay.port, MAILDROP_INTERVAL=NEVER_S, MAILDROP_FSYNC=0) as daemon:
        sleeping(daemon)
        host = make_host(daemon)
        for recipient in recipients:
            send(host, recipient)
        transaction.commit()
        daemon.wait_until_empty()
    assert Counter(relay.recipients()) == Counter(["first@example.org", *recipients])


def test_mails_of_a_transaction_that_is_open_or_aborted_do_not_leave(tmp_path, relay):
    with MaildropDaemon(tmp_path, relay.port, MAILDROP_INTERVAL=NEVER_S) as daemon:
        sleeping(daemon)
        host = make_host(daemon)
        send(host, "aborted@example.org")
        transaction.abort()
        send(host, "ann@example.org")
        locked = daemon.waiting()
        assert len(locked) == 2
        other = threading.Thread(target=commit_elsewhere, args=(daemon, "bob@example.org"))
        other.start()
        other.join(BOUND_S)
        wait_until(lambda: "bob@example.org" in relay.recipients(), told=daemon.read_log)
        daemon.wait_until(lambda: daemon.waiting() == locked)
        transaction.commit()
        daemon.wait_until_empty()
    assert relay.recipients() == ["ann@example.org", "bob@example.org", "first@example.org"]


def commit_elsewhere(daemon, recipient):
    """In a thread, which has a transaction of its own."""
    send(make_host(daemon), recipient)
    transaction.commit()


def test_mails_of_many_writers_at_a_time_leave_each_once(tmp_path, relay):
    with MaildropDaemon(tmp_path, relay.port, MAILDROP_INTERVAL=NEVER_S, MAILDROP_FSYNC=0) as daemon:
        sleeping(daemon)

        def write(writer):
            for number in range(20):
                commit_elsewhere(daemon, f"w{writer}-{number}@example.org")

        writers = [threading.Thread(target=write, args=(writer,)) for writer in range(4)]
        for writer in writers:
            writer.start()
        for writer in writers:
            writer.join(BOUND_S)
        daemon.wait_until_empty()
    wanted = [f"w{writer}-{number}@example.org" for writer in range(4) for number in range(20)]
    assert Counter(relay.recipients()) == Counter(["first@example.org", *wanted])


# -- the FIFO --


def test_without_the_trigger_there_is_no_fifo_and_mails_wait_for_the_next_look(tmp_path, relay):
    with MaildropDaemon(tmp_path, relay.port, MAILDROP_TRIGGER=0, MAILDROP_INTERVAL=1) as daemon:
        daemon.add_mail("first@example.org")
        daemon.wait_until_empty()
        assert fifos(daemon.spool) == []
        send(make_host(daemon), "ann@example.org")
        transaction.commit()
        daemon.wait_until_empty()
        assert fifos(daemon.spool) == []
    assert relay.recipients() == ["ann@example.org", "first@example.org"]


@pytest.mark.parametrize("how", ["script", signal.SIGTERM, signal.SIGINT], ids=["stop script", "SIGTERM", "SIGINT"])
def test_the_fifo_is_gone_when_the_daemon_has_ended(tmp_path, relay, how):
    with MaildropDaemon(tmp_path, relay.port, MAILDROP_INTERVAL=NEVER_S) as daemon:
        sleeping(daemon)
        pid = daemon.pid
        if how == "script":
            assert daemon.stop().returncode == 0
        else:
            daemon.signal(how)
        wait_until(lambda: not process_runs(pid))
        assert fifos(daemon.spool) == []
        host = make_host(daemon)
        send(host, "ann@example.org")    # and nobody listens, which is no error
        transaction.commit()
        assert len(daemon.waiting()) == 1
        daemon.start()
        daemon.wait_until_empty()
    assert relay.recipients() == ["ann@example.org", "first@example.org"]


def test_a_fifo_that_was_removed_is_made_again_by_the_next_look(tmp_path, relay):
    with MaildropDaemon(tmp_path, relay.port, MAILDROP_INTERVAL=0.5) as daemon:
        wait_until(lambda: fifos(daemon.spool))
        [before] = fifos(daemon.spool)
        before.unlink()
        (daemon.spool / "wake").rmdir()
        wait_until(lambda: fifos(daemon.spool), told=daemon.read_log)
        assert fifos(daemon.spool) != [before]
        send(make_host(daemon), "ann@example.org")
        transaction.commit()
        daemon.wait_until_empty()
    assert relay.recipients() == ["ann@example.org"]
    assert fifos(daemon.spool) == []


def test_the_fifo_of_a_daemon_that_was_killed_holds_up_neither_writers_nor_the_next_daemon(tmp_path, relay):
    with MaildropDaemon(tmp_path, relay.port, MAILDROP_INTERVAL=NEVER_S) as daemon:
        sleeping(daemon)
        daemon.kill()
        [left] = fifos(daemon.spool)
        written = threading.Thread(target=commit_elsewhere, args=(daemon, "ann@example.org"), daemon=True)
        written.start()
        written.join(BOUND_S)
        assert not written.is_alive()
        daemon.start()
        wait_until(lambda: relay.recipients() == ["ann@example.org", "first@example.org"], told=daemon.read_log)
        commit_elsewhere(daemon, "bob@example.org")
        daemon.wait_until_empty()
        assert len(set(fifos(daemon.spool)) - {left}) == 1
    assert relay.recipients() == ["ann@example.org", "bob@example.org", "first@example.org"]


def test_two_daemons_on_one_spool_both_listen_and_each_mail_arrives_once(tmp_path, relay):
    spool = tmp_path / "spool"
    first, second = (
        MaildropDaemon(tmp_path / name, relay.port, MAILDROP_SPOOL=spool, MAILDROP_INTERVAL=NEVER_S)
        for name in ("first", "second")
    )
    recipients = [f"r{number}@example.org" for number in range(40)]
    with first:
        with second:
            wait_until(lambda: len(fifos(spool)) == 2)
            host = make_host(first)
            for recipient in recipients[:20]:
                send(host, recipient)
                transaction.commit()
            wait_until(lambda: relay.recipients() == sorted(recipients[:20]))
        wait_until(lambda: len(fifos(spool)) == 1)
        for recipient in recipients[20:]:
            send(host, recipient)
            transaction.commit()
        wait_until(lambda: not any(entry.is_file() for entry in spool.iterdir()), told=first.read_log)
    assert Counter(relay.recipients()) == Counter(recipients)
    assert fifos(spool) == []


def test_nonsense_in_the_fifo_does_no_harm(tmp_path, relay):
    with MaildropDaemon(tmp_path, relay.port, MAILDROP_INTERVAL=NEVER_S) as daemon:
        sleeping(daemon)
        [fifo] = fifos(daemon.spool)
        descriptor = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
        try:
            for saying in (b"\0" * 1000, b"../../etc/passwd\n", b"no line end", b"\xff" * 4096, b"\n" * 4096):
                os.write(descriptor, saying)
        finally:
            os.close(descriptor)
        commit_elsewhere(daemon, "ann@example.org")
        daemon.wait_until_empty()
        assert "unexpected" not in daemon.read_log()
    assert relay.recipients() == ["ann@example.org", "first@example.org"]


# -- signals --


def test_a_signal_right_after_a_mail_ends_the_daemon_though_its_next_look_is_far_off(tmp_path, relay):
    recipients = [f"r{number}@example.org" for number in range(5)]
    with MaildropDaemon(tmp_path, relay.port, MAILDROP_INTERVAL=NEVER_S) as daemon:
        for recipient in recipients:
            sent = relay.recipients()
            commit_elsewhere(daemon, recipient)
            wait_until(lambda sent=sent: len(relay.recipients()) > len(sent), told=daemon.read_log)
            pid = daemon.pid
            daemon.signal(signal.SIGTERM)
            wait_until(lambda pid=pid: not process_runs(pid), timeout_s=BOUND_S, told=daemon.read_log)
            assert fifos(daemon.spool) == []
            assert not daemon.waiting()
            daemon.start()
    assert relay.recipients() == recipients


def test_a_hangup_signal_right_after_a_mail_is_heeded_though_the_next_look_is_far_off(tmp_path, relay):
    with RelayServer() as other, MaildropDaemon(tmp_path, relay.port, MAILDROP_INTERVAL=NEVER_S) as daemon:
        sleeping(daemon)
        commit_elsewhere(daemon, "ann@example.org")
        wait_until(lambda: "ann@example.org" in relay.recipients(), told=daemon.read_log)
        daemon.configure(SMTP_PORT=other.port)
        daemon.signal(signal.SIGHUP)
        daemon.wait_for_log("config reloaded")
        commit_elsewhere(daemon, "bob@example.org")
        wait_until(lambda: other.recipients() == ["bob@example.org"], told=daemon.read_log)
    assert relay.recipients() == ["ann@example.org", "first@example.org"]


def test_a_hangup_signal_turns_the_trigger_off_and_on(tmp_path, relay):
    with MaildropDaemon(tmp_path, relay.port, MAILDROP_INTERVAL=NEVER_S) as daemon:
        sleeping(daemon)
        daemon.configure(MAILDROP_TRIGGER=0)
        daemon.signal(signal.SIGHUP)
        wait_until(lambda: not fifos(daemon.spool), told=daemon.read_log)
        commit_elsewhere(daemon, "ann@example.org")    # heard by nobody
        daemon.configure(MAILDROP_TRIGGER=1)
        daemon.signal(signal.SIGHUP)    # which takes a look
        daemon.wait_until_empty()
        wait_until(lambda: len(fifos(daemon.spool)) == 1, told=daemon.read_log)
        commit_elsewhere(daemon, "bob@example.org")
        daemon.wait_until_empty()
    assert relay.recipients() == ["ann@example.org", "bob@example.org", "first@example.org"]

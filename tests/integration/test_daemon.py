"""The real daemon, by its own scripts, with a real SMTP server."""

import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections import Counter

import pytest

from maildrop import figures, settings
from maildrop.pidfile import running_pid
from support.certificates import write_authority
from support.config_file import write_config
from support.daemon import CHECKOUT, MaildropDaemon, process_runs, run_script, wait_until
from support.ports import free_port
from support.relay_server import RelayServer

SAMPLE = (CHECKOUT / "SAMPLE_MAIL.txt").read_bytes()
SAMPLE_MESSAGE = SAMPLE.split(b"\n", 2)[2]
TIME = r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d"
ANN, BOB, EVE = "ann@example.org", "bob@example.org", "eve@example.org"

pytestmark = pytest.mark.filterwarnings("ignore:Requiring AUTH while not requiring TLS")


@pytest.fixture
def relay():
    with RelayServer() as server:
        yield server


def crlf(text: bytes) -> bytes:
    return text.replace(b"\n", b"\r\n")


def run_daemon(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The daemon by the path of its file, as some start it without the scripts."""
    command = [sys.executable, str(CHECKOUT / "maildrop" / "maildrop.py"), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


# -- what is in the spool --


def test_sample_mail_copied_into_the_spool_is_delivered_as_it_is(tmp_path, relay):
    with MaildropDaemon(tmp_path, relay.port) as daemon:
        daemon.add_foreign_file("SAMPLE_MAIL.txt", SAMPLE)
        daemon.wait_until_empty()
    [mail] = relay.accepted
    assert (mail.sender, mail.recipients) == ("sender@example.org", ("recipient@example.com",))
    assert mail.content == crlf(SAMPLE_MESSAGE)


def test_foreign_file_that_grows_is_sent_only_when_it_is_complete(tmp_path, relay):
    with MaildropDaemon(tmp_path, relay.port) as daemon:
        path = daemon.add_foreign_file("growing", f"##To:{ANN}\n##From:\nSubject: slow\n\n".encode())
        for number in range(6):
            with path.open("ab") as stream:
                stream.write(b"line %d\n" % number)
            time.sleep(0.5)    # slower in all than the time a file has to rest
        daemon.wait_until_empty()
    [mail] = relay.accepted
    assert mail.content == b"Subject: slow\r\n\r\n" + b"".join(b"line %d\r\n" % number for number in range(6))


def test_spool_of_version_2_3_is_delivered_except_for_its_locked_mails(tmp_path, relay):
    daemon = MaildropDaemon(tmp_path, relay.port)
    text = "##To:{}\n##From:zoe@example.org\nSubject: from 2.3\n\nbody\n"
    daemon.add_foreign_file("483215.9321", text.format(ANN).encode())
    daemon.add_foreign_file("77", text.format(f"Bob <{BOB}>, {EVE}").encode())
    locked = daemon.add_foreign_file("120398457", text.format("locked@example.org").encode())
    daemon.add_foreign_file("120398457.lck", b"")
    daemon.add_foreign_file("9984", text.format("locked-too@example.org").encode())
    daemon.add_foreign_file("9984.lck", b"locked")
    left = ["120398457", "120398457.lck", "9984", "9984.lck"]
    with daemon:
        daemon.wait_until(lambda: daemon.waiting() == left)
        locked.with_name("120398457.lck").unlink()
        daemon.wait_until(lambda: daemon.waiting() == left[2:])
    assert relay.recipients() == [ANN, BOB, EVE, "locked@example.org"]
    assert {mail.content for mail in relay.accepted} == {b"Subject: from 2.3\r\n\r\nbody\r\n"}


def test_mails_of_two_spools_are_delivered(tmp_path, relay):
    spools = [tmp_path / "first", tmp_path / "with blank"]
    with MaildropDaemon(tmp_path, relay.port, MAILDROP_SPOOL=";".join(map(str, spools))) as daemon:
        first, second = (daemon.add_mail(recipient, spool=spool) for recipient, spool in zip((ANN, BOB), spools))
        wait_until(lambda: not first.exists() and not second.exists(), told=daemon.read_log)
    assert relay.recipients() == [ANN, BOB]


def test_nothing_that_lies_in_the_spool_stops_the_good_mails(tmp_path, relay):
    daemon = MaildropDaemon(tmp_path, relay.port)
    good_before = daemon.add_mail(ANN)
    good_mail = f"##To:{EVE}\n##From:\nSubject: x\n\n".encode()
    os.mkfifo(daemon.spool / "fifo")
    (daemon.spool / "directory").mkdir()
    (daemon.spool / "directory" / "mail").write_bytes(good_mail)
    (daemon.spool / "dangling").symlink_to(tmp_path / "nowhere")
    (tmp_path / "mail").write_bytes(good_mail)
    (daemon.spool / "link").symlink_to(tmp_path / "mail")
    daemon.add_foreign_file(".hidden", good_mail)
    daemon.add_foreign_file("lone.lck", good_mail)
    daemon.add_foreign_file("empty", b"")
    daemon.add_foreign_file("no envelope", b"Subject: hello\n\n##To:eve@example.org\n")
    daemon.add_foreign_file("binary", b"\xff\xfe\x00\x80" * 1000)
    daemon.add_foreign_file(b"name \xff\n", b"\x00")
    left = [name for name in daemon.waiting() if name != good_before.name]
    daemon.add_foreign_file("no recipient", b"##To:\n##From:zoe@example.org\nSubject: x\n\n")
    daemon.add_foreign_file("no address", b"##To:no one, @, <>\n##From:zoe@example.org\nSubject: x\n\n")
    daemon.add_foreign_file("no message", f"##To:{EVE}\n##From:zoe@example.org\n".encode())
    daemon.add_foreign_file("no colon", f"##To:{BOB}\n##From:\n##nonsense\nSubject: x\n\n".encode())
    daemon.add_foreign_file("latin-1", b"##To:J\xfcrgen <jo@example.org>\n##From:\nSubject: \xfc\n\n")
    with daemon:
        good_after = daemon.add_mail(ANN)
        daemon.wait_until(lambda: daemon.waiting() == left and relay.recipients() == [ANN, ANN, BOB, "jo@example.org"])
        assert not good_before.exists() and not good_after.exists()
        failed = sorted(path.name.split("-")[0] for path in daemon.failed())
        assert failed == ["no_address", "no_message", "no_recipient"]
        time.sleep(0.5)    # some passes more
        log = daemon.read_log()
    assert [log.count(f"spool/{name}: not a mail") for name in ("empty", "no envelope", "binary")] == [1, 1, 1]
    assert "Traceback" not in log
    assert (tmp_path / "mail").read_bytes() == (daemon.spool / "directory" / "mail").read_bytes() == good_mail


def test_missing_spool_directory_is_made_again(tmp_path, relay):
    with MaildropDaemon(tmp_path, relay.port) as daemon:
        daemon.spool.rename(tmp_path / "moved away")
        wait_until(daemon.spool.is_dir)
        daemon.add_mail(ANN)
        daemon.wait_until_empty()
    assert relay.recipients() == [ANN]


def test_empty_spool_writes_nothing_to_the_log(tmp_path, relay):
    with MaildropDaemon(tmp_path, relay.port) as daemon:
        time.sleep(1)    # some passes
        assert not daemon.log_file.exists()
    assert not daemon.log_file.exists()
    assert relay.connections == 0


def test_two_daemons_on_one_spool_deliver_every_mail_once(tmp_path, relay):
    first, second = (
        MaildropDaemon(tmp_path / name, relay.port, MAILDROP_SPOOL=tmp_path / "spool") for name in ("first", "second")
    )
    recipients = [f"rcpt{number:03}@example.org" for number in range(100)]
    for recipient in recipients[:50]:
        first.add_mail(recipient, spool=tmp_path / "spool")
    with first, second:
        assert first.pid != second.pid
        for recipient in recipients[50:]:
            first.add_mail(recipient, spool=tmp_path / "spool")
        wait_until(
            lambda: not any(entry.is_file() for entry in (tmp_path / "spool").iterdir()),
            told=lambda: first.read_log() + second.read_log(),
        )
    assert relay.recipients() == recipients
    assert (first.read_log() + second.read_log()).count("OK\t ") == 100


# -- the message on the wire --


MESSAGES = {
    "lf": (b"Subject: x\n\nbody\n", b"Subject: x\r\n\r\nbody\r\n"),
    "crlf": (b"Subject: x\r\n\r\nbody\r\n", b"Subject: x\r\n\r\nbody\r\n"),
    "lone-cr": (b"Subject: x\r\rone\rtwo\n\r\nthree\r", b"Subject: x\r\n\r\none\r\ntwo\r\n\r\nthree\r\n"),
    "no-last-line-end": (b"Subject: x\n\nbody", b"Subject: x\r\n\r\nbody\r\n"),
    "blank-lines-at-the-end": (b"Subject: x\n\nbody\n\n\n", b"Subject: x\r\n\r\nbody\r\n\r\n\r\n"),
    "dots": (b".\nSubject: x\n\n.\n..\n.x\n a.\n.", b".\r\nSubject: x\r\n\r\n.\r\n..\r\n.x\r\n a.\r\n.\r\n"),
    "dot-after-lone-cr": (b"Subject: x\n\n\r.\r.\n.\r\n", b"Subject: x\r\n\r\n\r\n.\r\n.\r\n.\r\n"),
    "no-header": (b"\nbody\n", b"\r\nbody\r\n"),
    "nothing-but-a-line-end": (b"\n", b"\r\n"),
    "envelope-like-body": (b"Subject: x\n\n##To:eve@example.org\n", b"Subject: x\r\n\r\n##To:eve@example.org\r\n"),
    "envelope-like-start": (b"##To:eve@example.org\n##x\n", b"##To:eve@example.org\r\n##x\r\n"),
    "8-bit": ("Subject: Grüße\n\n€uro\n".encode(), "Subject: Grüße\r\n\r\n€uro\r\n".encode()),
    "blanks-and-tabs": (b"Subject: x \n\n\t \nline \t\n", b"Subject: x \r\n\r\n\t \r\nline \t\r\n"),
    "binary": (
        b"Subject: x\n\n" + bytes(range(1, 256)) * 300,
        b"Subject: x\r\n\r\n" + (bytes(range(1, 10)) + b"\r\n\x0b\x0c\r\n" + bytes(range(14, 256))) * 300 + b"\r\n",
    ),
    "larger-than-a-chunk": ((b"x" * 62 + b"\r\n") * 5000, (b"x" * 62 + b"\r\n") * 5000),
    "crlf-between-two-chunks": (b"\n" + (b"." * 62 + b"\r\n") * 5000, b"\r\n" + (b"." * 62 + b"\r\n") * 5000),
    "lf-and-dot-between-two-chunks": (
        (b"x" * 63 + b"\n") * 1024 + b".\n.y\n",
        (b"x" * 63 + b"\r\n") * 1024 + b".\r\n.y\r\n",
    ),
}


@pytest.fixture(scope="module")
def arrived(tmp_path_factory) -> dict[str, bytes]:
    """What arrived of each of MESSAGES."""
    with RelayServer() as relay:
        daemon = MaildropDaemon(tmp_path_factory.mktemp("wire"), relay.port)
        for name, (message, _) in MESSAGES.items():
            daemon.add_mail(f"{name}@example.org", message=message)
        with daemon:
            daemon.wait_until_empty()
    return {mail.recipients[0].partition("@")[0]: mail.content for mail in relay.accepted}


@pytest.mark.parametrize("name", MESSAGES)
def test_message_arrives_with_crlf_line_ends_and_every_other_byte_unchanged(arrived, name):
    assert arrived[name] == MESSAGES[name][1]


def test_message_id_is_added_only_where_none_is(tmp_path, relay):
    daemon = MaildropDaemon(tmp_path, relay.port, ADD_MESSAGEID=1)
    without = b"Subject: x\n\nMessage-Id: <of.the.body@example.org>\n"
    own = b"Subject: x\nmessage-ID: <own@example.org>\n\nbody\n"
    daemon.add_mail(ANN, message=without)
    daemon.add_mail(BOB, message=own)
    with daemon:
        daemon.wait_until_empty()
    content = {mail.recipients[0]: mail.content for mail in relay.accepted}
    added, rest = content[ANN].split(b"\r\n", 1)
    assert re.fullmatch(rb"Message-Id: <[^\s<>@]+@[^\s<>@]+>", added)
    assert rest == crlf(without)
    assert content[BOB] == crlf(own)


def test_no_message_id_is_added_without_add_messageid(tmp_path, relay):
    daemon = MaildropDaemon(tmp_path, relay.port, ADD_MESSAGEID=0)
    daemon.add_mail(ANN, message=b"Subject: x\n\nbody\n")
    with daemon:
        daemon.wait_until_empty()
    assert relay.accepted[0].content == b"Subject: x\r\n\r\nbody\r\n"


@pytest.mark.parametrize("foreign", [False, True], ids=["our-file", "foreign-file"])
def test_added_message_id_is_the_same_in_each_attempt(tmp_path, relay, foreign):
    relay.replies[f"RCPT {BOB}"] = "451 4.3.0 try later"
    daemon = MaildropDaemon(tmp_path, relay.port, ADD_MESSAGEID=1, MAILDROP_RETRY=0.5)
    if foreign:
        daemon.add_foreign_file("strange name", f"##To:{ANN},{BOB}\n##From:\nSubject: x\n\nbody\n".encode())
    else:
        daemon.add_mail(ANN, BOB)
    with daemon:
        daemon.wait_for_log("BAD: 451")
        relay.replies.clear()
        daemon.wait_until_empty()
    first, second = relay.accepted
    assert (first.recipients, second.recipients) == ((ANN,), (BOB,))
    assert first.content.startswith(b"Message-Id: <")
    assert first.content == second.content


# -- recipients that are refused --


def test_recipient_refused_for_good_is_kept_and_the_others_get_the_mail(tmp_path, relay):
    relay.replies[f"RCPT {BOB}"] = "550 5.1.1 no such user"
    with MaildropDaemon(tmp_path, relay.port) as daemon:
        path = daemon.add_mail(ANN, BOB, EVE, message=b"Subject: x\n\nbody\n")
        daemon.wait_until_empty()
        [kept] = daemon.failed()
    assert [mail.recipients for mail in relay.accepted] == [(ANN, EVE)]
    assert re.fullmatch(rf"{path.name}\.1-[0-9a-f]{{8}}", kept.name)
    envelope, message = re.fullmatch(rb"((?:##.*\n)+)((?s:.*))", kept.read_bytes()).groups()
    assert envelope.startswith(f"##To:{BOB}\n##From:zoe@example.org\n".encode())
    assert b"##Failed:550 5.1.1 no such user\n" in envelope
    assert message == b"Subject: x\n\nbody\n"
    assert f"OK\t {ANN},{EVE}\t{path.name} " in daemon.read_log()
    assert f"FATAL: 550 5.1.1 no such user\t {BOB}\t{path.name} kept as failed/{kept.name}\n" in daemon.read_log()


def test_recipient_refused_for_now_is_tried_again_alone(tmp_path, relay):
    relay.replies[f"RCPT {BOB}"] = "451 4.3.0 try later"
    with MaildropDaemon(tmp_path, relay.port, MAILDROP_RETRY=1) as daemon:
        path = daemon.add_mail(ANN, BOB, EVE)
        daemon.wait_for_log("BAD: 451")
        assert daemon.waiting() == [path.name]
        envelope = path.read_bytes().split(b"Subject:")[0].splitlines()
        assert envelope[0] == f"##To:{BOB}".encode()
        assert {b"##Attempts:1", b"##Last-Reply:451 4.3.0 try later"} <= set(envelope)
        relay.replies.clear()
        daemon.wait_until_empty()
    assert [mail.recipients for mail in relay.accepted] == [(ANN, EVE), (BOB,)]
    assert re.search(rf"BAD: 451 4\.3\.0 try later\t {BOB}\t{path.name} attempt=1 next={TIME}\n", daemon.read_log())
    assert daemon.failed() == []


def test_mail_that_all_recipients_are_refused_for_is_kept(tmp_path, relay):
    relay.replies["RCPT"] = "550 5.1.1 no such user"
    with MaildropDaemon(tmp_path, relay.port) as daemon:
        path = daemon.add_mail(ANN, BOB, EVE)
        original = b"Subject: test\n\nbody\n"
        daemon.wait_until_empty()
        [kept] = daemon.failed()
        relay.replies.clear()
        daemon.add_mail("next@example.org")
        daemon.wait_until_empty()
    assert re.fullmatch(rf"{path.name}\.1-[0-9a-f]{{8}}", kept.name)
    assert kept.read_bytes().startswith(f"##To:{ANN}, {BOB}, {EVE}\n".encode())
    assert kept.read_bytes().endswith(b"\n" + original)
    assert relay.recipients() == ["next@example.org"]


@pytest.mark.parametrize("stage", ["MAIL", "DATA"])
def test_mail_that_is_refused_as_a_whole_is_kept_or_tried_again(tmp_path, relay, stage):
    relay.replies[stage] = "550 5.7.1 not that"
    with MaildropDaemon(tmp_path, relay.port, MAILDROP_RETRY=0.5) as daemon:
        daemon.add_mail(ANN)
        daemon.wait_for_log(f"FATAL: 550 5.7.1 not that\t {ANN}\t")
        daemon.wait_until_empty()
        assert len(daemon.failed()) == 1
        relay.replies[stage] = "451 4.7.1 not yet"
        daemon.add_mail(BOB)
        daemon.wait_for_log(f"BAD: 451 4.7.1 not yet\t {BOB}\t")
        relay.replies.clear()
        daemon.wait_until_empty()
        assert len(daemon.failed()) == 1
    assert relay.recipients() == [BOB]


def test_null_sender_gets_through(tmp_path, relay):
    daemon = MaildropDaemon(tmp_path, relay.port)
    daemon.add_mail(ANN, sender="")
    with daemon:
        daemon.wait_until_empty()
    assert relay.accepted[0].sender == "<>"    # that is what aiosmtpd makes of it


# -- connections --


@pytest.mark.parametrize(("batch", "connections"), [(0, 1), (1, 5), (2, 3)])
def test_batch_is_the_number_of_mails_per_connection(tmp_path, relay, batch, connections):
    daemon = MaildropDaemon(tmp_path, relay.port, MAILDROP_BATCH=batch)
    for number in range(5):
        daemon.add_mail(f"rcpt{number}@example.org")
    with daemon:
        daemon.wait_until_empty()
    assert len(relay.accepted) == 5
    assert relay.connections == connections


def test_wait_interval_passes_between_two_mails(tmp_path, relay):
    daemon = MaildropDaemon(tmp_path, relay.port, WAIT_INTERVAL=0.5)
    for _ in range(3):
        daemon.add_mail(ANN)
    with daemon:
        daemon.wait_until_empty()
    times = [mail.at for mail in relay.accepted]
    assert [later - earlier >= 0.45 for earlier, later in zip(times, times[1:])] == [True, True]


@pytest.mark.parametrize("tls", [1, 2])
def test_mail_goes_over_tls_with_a_login(tmp_path, tls):
    settings = {"MAILDROP_TLS": tls, "MAILDROP_LOGIN": "zope", "MAILDROP_PASSWORD": "pass word"}
    settings["MAILDROP_TLS_CAFILE"] = write_authority(tmp_path)
    with RelayServer(tls=True, login=("zope", "pass word")) as relay:
        with MaildropDaemon(tmp_path, relay.port, **settings) as daemon:
            daemon.add_mail(ANN)
            daemon.wait_until_empty()
    assert [(mail.recipients, mail.over_tls, mail.login) for mail in relay.accepted] == [((ANN,), True, "zope")]


def test_tls_is_not_used_when_it_is_switched_off(tmp_path):
    with RelayServer(tls=True) as relay, MaildropDaemon(tmp_path, relay.port, MAILDROP_TLS=0) as daemon:
        daemon.add_mail(ANN)
        daemon.wait_until_empty()
    assert [mail.over_tls for mail in relay.accepted] == [False]


def test_optional_tls_delivers_to_a_relay_without_tls(tmp_path, relay):
    with MaildropDaemon(tmp_path, relay.port, MAILDROP_TLS=1) as daemon:
        daemon.add_mail(ANN)
        daemon.wait_until_empty()
    assert [mail.over_tls for mail in relay.accepted] == [False]


# -- a relay that cannot be used --


LOGIN = {"MAILDROP_LOGIN": "zope", "MAILDROP_PASSWORD": "secret"}
OUTAGES = {
    "tls-missing": ({"MAILDROP_TLS": 2}, {}, "TLS unavailable"),
    "password-wrong": (LOGIN, {"login": ("zope", "other")}, "Authentication failed"),
    "auth-missing": (LOGIN, {}, "Authentication unavailable"),
    "login-wanted": ({}, {"login": ("zope", "secret")}, "Authentication unavailable"),
}


@pytest.mark.parametrize(("settings", "offers", "stage"), OUTAGES.values(), ids=OUTAGES)
def test_relay_that_cannot_be_used_is_logged_once_and_no_mail_is_touched(tmp_path, settings, offers, stage):
    with RelayServer(**offers) as relay, MaildropDaemon(tmp_path, relay.port, **settings) as daemon:
        mails = [daemon.add_mail(ANN), daemon.add_mail(BOB)]
        before = [(path.read_bytes(), path.stat().st_ino) for path in mails]
        daemon.wait_until(lambda: relay.connections >= 4)
        log = daemon.read_log()
        assert [(path.read_bytes(), path.stat().st_ino) for path in mails] == before
    assert len(re.findall(rf"(?m)^!!!!! {stage} at {TIME}", log)) == 1
    assert log.count("!!!!!") == log.count("### Started at") == 1
    assert "secret" not in log
    assert relay.accepted == []
    assert daemon.failed() == []


def test_mail_leaves_without_a_restart_when_the_relay_comes_up(tmp_path):
    port = free_port()
    with MaildropDaemon(tmp_path, port) as daemon:
        for _ in range(2):
            mail = daemon.add_mail(ANN)
            before = mail.read_bytes(), mail.stat().st_ino
            times_down = daemon.read_log().count("!!!!!") + 1
            daemon.wait_until(lambda times_down=times_down: daemon.read_log().count("!!!!!") == times_down)
            time.sleep(0.6)    # some passes more
            assert (mail.read_bytes(), mail.stat().st_ino) == before
            with RelayServer(port=port) as relay:
                daemon.wait_until_empty()
            assert relay.recipients() == [ANN]
        log = daemon.read_log()
    outage = rf"!!!!! Connection error at {TIME}\t .*{port}.*\n### Finished at {TIME}\n"
    delivery = rf"### Relay available again at {TIME}\nOK\t {ANN}\t.*\n### Finished at {TIME}\n"
    assert re.fullmatch(rf"(### Started at {TIME}\.\.\.\n{outage}### Started at {TIME}\.\.\.\n{delivery}){{2}}", log)


def test_relay_that_hangs_up_at_once_does_not_end_the_daemon(tmp_path):
    port = free_port()
    with socket.create_server(("127.0.0.1", port)) as listening, MaildropDaemon(tmp_path, port) as daemon:
        daemon.add_mail(ANN)
        listening.settimeout(20)
        for _ in range(3):
            listening.accept()[0].close()
        listening.close()
        with RelayServer(port=port) as relay:
            daemon.wait_until_empty()
        log = daemon.read_log()
    assert log.count("!!!!! Connection error at") == 1
    assert relay.recipients() == [ANN]


# -- the log --


def test_block_of_the_log_has_the_frame_and_a_line_for_each_mail(tmp_path, relay):
    daemon = MaildropDaemon(tmp_path, relay.port)
    first = daemon.add_mail(ANN, BOB, message=b"Message-Id: <one@example.org>\n\n")
    second = daemon.add_mail(EVE)
    with daemon:
        daemon.wait_until_empty()
    assert re.fullmatch(
        rf"### Started at {TIME}\.\.\.\n"
        rf'OK\t {ANN},{BOB}\t{first.name} id=<one@example\.org> reply="250 2\.0\.0 Ok: queued as 1" \d+\.\d+s\n'
        rf'OK\t {EVE}\t{second.name} reply="250 2\.0\.0 Ok: queued as 2" \d+\.\d+s\n'
        rf"### Finished at {TIME}\n",
        daemon.read_log(),
    )


def test_log_can_be_moved_away_while_the_daemon_runs(tmp_path, relay):
    with MaildropDaemon(tmp_path, relay.port, MAILDROP_LOG_FILE=tmp_path / "logs" / "mail.log") as daemon:
        daemon.add_mail(ANN)
        daemon.wait_until_empty()
        old = daemon.log_file.read_text()
        moved = daemon.log_file.rename(tmp_path / "mail.log.1")
        daemon.add_mail(BOB)
        daemon.wait_until_empty()
    assert moved.read_text() == old
    assert old.count("### Started at") == daemon.read_log().count("### Started at") == 1
    assert (ANN in old, BOB in old) == (True, False)
    assert (ANN in daemon.read_log(), BOB in daemon.read_log()) == (False, True)


# -- start, stop, signals --


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_daemon_and_removes_its_pid_file(tmp_path, relay, number):
    with MaildropDaemon(tmp_path, relay.port) as daemon:
        pid = daemon.pid
        assert process_runs(pid)
        daemon.signal(number)
        wait_until(lambda: not process_runs(pid))
        assert not daemon.pid_file.exists()


def test_stop_script_returns_when_the_daemon_has_ended(tmp_path, relay):
    with MaildropDaemon(tmp_path, relay.port) as daemon:
        pid = daemon.pid
        result = daemon.stop()
        assert (result.returncode, result.stderr) == (0, "")
        assert running_pid(daemon.pid_file) is None
        assert not daemon.pid_file.exists()
        wait_until(lambda: not process_runs(pid))


def test_daemon_leads_no_session_and_has_no_terminal(tmp_path, relay):
    with MaildropDaemon(tmp_path, relay.port) as daemon:
        pid = daemon.pid
        assert os.getsid(pid) not in (pid, os.getsid(0))
        assert os.getpgid(pid) != os.getpgid(0)


def test_second_start_is_an_error_and_the_first_daemon_goes_on(tmp_path, relay):
    with MaildropDaemon(tmp_path, relay.port) as daemon:
        pid = daemon.pid
        result = run_script("start_maildrop", daemon.config)
        assert result.returncode == 1
        assert "already running" in result.stderr and str(pid) in result.stderr
        assert daemon.pid == pid
        daemon.add_mail(ANN)
        daemon.wait_until_empty()
    assert relay.recipients() == [ANN]


def test_daemon_starts_after_it_was_killed(tmp_path, relay):
    with MaildropDaemon(tmp_path, relay.port) as daemon:
        killed = daemon.pid
        daemon.kill()
        assert daemon.pid_file.exists()
        daemon.start()
        assert daemon.pid != killed
        daemon.add_mail(ANN)
        daemon.wait_until_empty()
    assert relay.recipients() == [ANN]


def test_hangup_signal_makes_the_daemon_read_its_config_again(tmp_path, relay):
    with RelayServer() as other, MaildropDaemon(tmp_path, relay.port) as daemon:
        pid = daemon.pid
        daemon.add_mail(ANN)
        daemon.wait_until_empty()
        daemon.configure(SMTP_PORT=other.port)
        daemon.signal(signal.SIGHUP)
        daemon.wait_for_log("config reloaded")
        daemon.add_mail(BOB)
        daemon.wait_until_empty()
        assert daemon.pid == pid
    assert (relay.recipients(), other.recipients()) == ([ANN], [BOB])


def test_bad_config_at_a_hangup_signal_is_logged_and_the_old_one_stays(tmp_path, relay):
    with MaildropDaemon(tmp_path, relay.port) as daemon:
        good = daemon.config.read_bytes()
        daemon.configure(SMTP_PORT=70000)
        daemon.signal(signal.SIGHUP)
        daemon.wait_for_log("SMTP_PORT=70000")
        daemon.add_mail(ANN)
        daemon.wait_until_empty()
        daemon.config.write_bytes(good)    # the stop script reads it too
    assert relay.recipients() == [ANN]


def test_the_figures_say_by_which_file_and_settings_the_daemon_goes(tmp_path, relay):
    def serving():
        known = figures.read(settings.load(daemon.config)).serving
        return known and (known.pid, known.config, known.digest)

    with MaildropDaemon(tmp_path, relay.port) as daemon:
        served = (daemon.pid, str(daemon.config), settings.load(daemon.config).digest)
        wait_until(lambda: serving() == served)
        good = daemon.config.read_bytes()
        daemon.configure(SMTP_PORT=70000)
        daemon.signal(signal.SIGHUP)
        daemon.wait_for_log("config not reloaded")
        daemon.config.write_bytes(good)
        assert serving() == served
        daemon.configure(SMTP_PORT=relay.port, MAILDROP_RETRY=17)
        daemon.signal(signal.SIGHUP)
        daemon.wait_for_log("config reloaded")
        wait_until(lambda: serving() == (*served[:2], settings.load(daemon.config).digest))


def test_debug_daemon_stays_in_the_foreground_and_prints_what_it_logs(tmp_path, relay):
    daemon = MaildropDaemon(tmp_path, relay.port, DEBUG=1)
    daemon.add_mail(ANN)
    with daemon.in_foreground() as process:
        daemon.wait_until_empty()
        wait_until(lambda: daemon.read_log() in daemon.stdout_file.read_text(), told=daemon.stdout_file.read_text)
        assert process.poll() is None
        process.terminate()
        assert process.wait(20) == 0
    assert f"OK\t {ANN}\t" in daemon.read_log()
    assert not daemon.pid_file.exists()


def test_supervised_daemon_stays_in_the_foreground_quietly(tmp_path, relay):
    daemon = MaildropDaemon(tmp_path, relay.port, SUPERVISED_DAEMON=1)
    daemon.add_mail(ANN)
    with daemon.in_foreground() as process:
        daemon.wait_until_empty()
        assert process.poll() is None
        process.terminate()
        assert process.wait(20) == 0
    assert f"OK\t {ANN}\t" in daemon.read_log()
    assert daemon.stdout_file.read_text() == ""
    complaints = daemon.stderr_file.read_text().splitlines()
    assert [line for line in complaints if "does not survive a restart of this machine" not in line] == []


# -- what it says of its arguments and its config --


@pytest.mark.parametrize("arguments", [(), ("config", "another")], ids=["none", "two"])
def test_wrong_number_of_arguments_is_an_error(arguments):
    result = run_daemon(*arguments)
    assert (result.returncode, result.stdout) == (1, "")
    assert re.match(r"Usage: .*config", result.stderr)


@pytest.mark.parametrize("name", ["missing", "."])
def test_config_that_cannot_be_read_is_an_error(tmp_path, name):
    result = run_daemon(tmp_path / name)
    assert (result.returncode, result.stdout) == (1, "")
    assert re.match(r"Usage: .*config.*\n", result.stderr)
    assert str(tmp_path / name) in result.stderr
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    ("line", "told"),
    [
        ("SMTP_PORT=70000", "SMTP_PORT=70000"),
        ('MAILDROP_TLS="maybe"', "MAILDROP_TLS='maybe'"),
        ("MAILDROP_INTERVAL=0", "MAILDROP_INTERVAL=0"),
        ("import os", "expected KEY=value"),
        ('SMTP_HOST="localhost', "SMTP_HOST"),
    ],
)
def test_bad_config_is_an_error_that_names_key_value_and_line(tmp_path, line, told):
    config = write_config(tmp_path / "config", PYTHON=sys.executable, MAILDROP_HOME=tmp_path / "home")
    text = config.read_text() + f"{line}\n"
    config.write_text(text)
    for result in (run_daemon(config), run_script("start_maildrop", config)):
        assert (result.returncode, result.stdout) == (1, "")
        assert re.match(r"Usage: .*config.*\n", result.stderr)
        assert told in result.stderr
        assert f"line {text.count(chr(10))}" in result.stderr
        assert str(config) in result.stderr
        assert "Traceback" not in result.stderr
    assert not (tmp_path / "home").exists()


def test_bad_password_is_not_told_when_the_config_is_bad(tmp_path):
    config = write_config(tmp_path / "config", MAILDROP_HOME=tmp_path / "home", MAILDROP_PASSWORD=123456)
    result = run_daemon(config)
    assert result.returncode == 1
    assert "MAILDROP_PASSWORD" in result.stderr
    assert "123456" not in result.stderr


def test_config_without_a_required_key_is_an_error_that_names_it(tmp_path):
    config = tmp_path / "config"
    config.write_text(f'MAILDROP_HOME="{tmp_path}/home"\nSMTP_HOST="localhost"\nSMTP_PORT=25\nMAILDROP_TLS=0\n')
    result = run_daemon(config)
    assert result.returncode == 1
    assert "MAILDROP_INTERVAL" in result.stderr


# -- what it is made of --


@pytest.mark.parametrize("module", ["maildrop.daemon", "maildrop.ctl", "maildrop.spool"])
def test_daemon_needs_nothing_but_the_standard_library(module):
    program = f"import sys; sys.path.insert(0, '.'); import {module}; print(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-S", "-c", program], cwd=CHECKOUT, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr
    top_level = {name.partition(".")[0] for name in result.stdout.split()}
    assert top_level - sys.stdlib_module_names == {"__main__", "maildrop"}


def test_daemon_delivers_in_an_interpreter_without_site_packages(tmp_path, relay):
    bare = tmp_path / "bare python"
    bare.write_text(f'#!/bin/sh\nexec "{sys.executable}" -S -E "$@"\n')
    bare.chmod(0o755)
    with MaildropDaemon(tmp_path / "blank here", relay.port, PYTHON=bare) as daemon:
        daemon.add_mail(ANN)
        daemon.wait_until_empty()
    assert Counter(relay.recipients()) == {ANN: 1}

"""What is promised to whoever sends mail: refusals, kills, two daemons, outages, bad things in the spool, notices."""

import ctypes
import email
import hashlib
import itertools
import os
import queue
import random
import re
import socket
import stat
import time
from collections import Counter
from contextlib import contextmanager, suppress

import pytest
from support.certificates import write_authority
from support.config_file import write_config
from support.daemon import MaildropDaemon, wait_until
from support.requires import skip_unless_ci
from support.scripted_relay import Fault, ScriptedRelay, subject_of

from maildrop import scan, settings, spool
from maildrop.delivery import Delivery
from maildrop.logfile import MaildropLog

NO_SUCH_USER = "550 5.1.1 no such user here"
LATER = "451 4.2.1 mailbox busy"
_SAFE = rb"[^<>\x00-\x20\x7f]"
COMMAND = re.compile(
    rb"EHLO [\w.-]+|MAIL FROM:<%b*>( SIZE=\d+| BODY=8BITMIME)*|RCPT TO:<%b+>|DATA|RSET|QUIT" % (_SAFE, _SAFE),
    re.IGNORECASE,
)


class Post:
    """A spool and its delivery in this process."""

    def __init__(self, directory, relay, **values):
        values = {
            "MAILDROP_HOME": directory / "home",
            "SMTP_HOST": "127.0.0.1",
            "SMTP_PORT": relay.port,
            "MAILDROP_HELO": "daemon.example.org",
            "MAILDROP_TIMEOUT": 10,
            "MAILDROP_DATA_TIMEOUT": 10,
            "MAILDROP_RETRY": 0,
            "MAILDROP_FSYNC": 0,
            **values,
        }
        self.settings = settings.load(write_config(directory / "config", **values))
        self.spool = self.settings.spools[0]
        spool.make_spool(self.spool, 0o700)
        self.settings.log_file.parent.mkdir(exist_ok=True)
        self.log = MaildropLog(self.settings.log_file)
        self.delivery = Delivery(self.settings, self.log)

    def place(self):
        """A path in the spool that is due at once, later than those before."""
        return self.spool / spool.new_name()

    def add(self, *recipients, subject="test", sender="zoe@example.org", body=b"body\r\n"):
        draft = spool.Draft(self.place(), durable=False)
        draft.write(sender, ", ".join(recipients), b"Subject: %s\r\n\r\n%s" % (subject.encode(), body))
        draft.release()
        return draft.path

    def run_pass(self):
        time.sleep(0.002)    # a mail put off by no time at all is due a moment later
        return self.delivery.run_pass()

    def told(self):
        return self.settings.log_file.read_text() if self.settings.log_file.exists() else ""

    def failed(self):
        return sorted((self.spool / spool.FAILED).iterdir())


@pytest.fixture
def relay():
    with ScriptedRelay() as running:
        yield running
    assert not running.errors


def arrivals(relay):
    return [mail.recipients for mail in relay.accepted]


# -- refusals --


def test_of_three_recipients_a_refused_one_is_in_failed_with_the_reply_and_two_get_the_mail(tmp_path, relay):
    relay.replies["RCPT bob@example.org"] = NO_SUCH_USER
    post = Post(tmp_path, relay)
    path = post.add("ann@example.org", "bob@example.org", "eve@example.org")

    for _ in range(3):
        post.run_pass()

    assert arrivals(relay) == [("ann@example.org", "eve@example.org")]
    assert scan.count(post.spool) == 0
    [kept] = post.failed()
    text = kept.read_text()
    assert text.startswith("##To:bob@example.org\n")
    assert f"##Failed:{NO_SUCH_USER}\n" in text
    assert text.endswith("Subject: test\n\nbody\n")
    assert f"OK\t ann@example.org,eve@example.org\t{path.name} " in post.told()
    assert f"FATAL: {NO_SUCH_USER}\t bob@example.org\t{path.name} kept as failed/{kept.name}\n" in post.told()


def test_of_three_recipients_only_the_one_put_off_is_tried_again(tmp_path, relay):
    relay.replies["RCPT bob@example.org"] = LATER
    post = Post(tmp_path, relay)
    path = post.add("ann@example.org", "bob@example.org", "eve@example.org")

    post.run_pass()
    assert path.read_text().startswith("##To:bob@example.org\n")
    post.run_pass()
    del relay.replies["RCPT bob@example.org"]
    post.run_pass()
    post.run_pass()

    assert arrivals(relay) == [("ann@example.org", "eve@example.org"), ("bob@example.org",)]
    assert [line for line in relay.commands if line.startswith(b"RCPT TO:<ann")] == [b"RCPT TO:<ann@example.org>"]
    assert not path.exists()
    assert not post.failed()
    assert post.told().count(f"BAD: {LATER}\t bob@example.org\t{path.name} attempt=") == 2


def test_too_many_recipients_is_no_failure(tmp_path, relay):
    relay.replies |= {
        "RCPT ann@example.org": NO_SUCH_USER,
        "RCPT bob@example.org": LATER,
        "RCPT eve@example.org": "552 5.5.3 Too many recipients",
    }
    post = Post(tmp_path, relay)
    post.add("ann@example.org", "bob@example.org", "eve@example.org", "joe@example.org")

    post.run_pass()
    assert arrivals(relay) == [("joe@example.org",)]
    relay.replies.clear()
    post.run_pass()

    assert arrivals(relay) == [("joe@example.org",), ("bob@example.org", "eve@example.org")]
    assert [path.read_text().partition("\n")[0] for path in post.failed()] == ["##To:ann@example.org"]
    assert scan.count(post.spool) == 0


# -- kills --


def recipients_in(path):
    with suppress(FileNotFoundError):
        return {to.strip() for to in path.read_text().partition("\n")[0].removeprefix("##To:").split(",")}
    return set()


@pytest.mark.fault_kind("daemon killed under load")
def test_a_thousand_recipients_get_the_mail_though_the_daemon_is_killed_after_each_group(tmp_path, relay, ledger):
    recipients = [f"reader{number}@example.org" for number in range(1000)]
    delays = itertools.cycle([0.05, 0.0, 0.005, 0.001, 0.01, 0.002])
    groups = queue.Queue()
    daemon = MaildropDaemon(tmp_path, relay.port, MAILDROP_HELO="daemon.example.org")

    def kill(mail):
        time.sleep(next(delays))
        daemon.kill()
        groups.put(mail)

    relay.after_final = kill
    path = daemon.add_mail(*recipients)
    excuses = Counter()
    kills = 0
    with daemon:
        while kills < 30:
            mail = groups.get(timeout=20)
            kills += 1
            assert len(mail.recipients) == 100
            owed = recipients_in(path)
            excuses.update(owed & set(mail.recipients))    # killed between the reply and the record of it
            if not owed:
                break
            daemon.start()

    received = Counter(to for mail in relay.accepted for to in mail.recipients)
    missed = [to for to in recipients if not received[to]]
    twice = [to for to in received for _ in range(received[to] - 1 - excuses[to])]
    stuck = len(recipients_in(path))
    ledger.add(tried=kills, lost=len(missed), stuck=stuck, duplicates=len(twice), excused=excuses.total())
    assert (missed, twice, set(received)) == ([], [], set(recipients)), daemon.read_log()
    assert kills >= 10
    assert not path.exists()
    assert not daemon.failed()


def two_daemons(tmp_path, relay):
    one = MaildropDaemon(tmp_path / "one", relay.port, MAILDROP_HELO="one.example.org", WAIT_INTERVAL=0.002)
    two = MaildropDaemon(
        tmp_path / "two",
        relay.port,
        MAILDROP_HELO="two.example.org",
        MAILDROP_SPOOL=one.spool,
        WAIT_INTERVAL=0.002,
    )
    two.spool = one.spool
    subjects = [b"mail %d" % number for number in range(500)]
    for subject in subjects:
        one.add_mail("ann@example.org", message=b"Subject: %s\n\nbody\n" % subject)
    return one, two, subjects


def test_two_daemons_on_one_spool_deliver_each_mail_once(tmp_path, relay):
    one, two, subjects = two_daemons(tmp_path, relay)

    with one, two:
        one.wait_until(lambda: not one.waiting())

    assert sorted(subject_of(mail.content) for mail in relay.accepted) == sorted(subjects)
    assert {mail.helo for mail in relay.accepted} == {"one.example.org", "two.example.org"}
    assert not one.failed()


@pytest.mark.fault_kind("daemon killed under load")
def test_when_one_of_two_daemons_is_killed_the_other_delivers_the_rest(tmp_path, relay, ledger):
    one, two, subjects = two_daemons(tmp_path, relay)

    with one, two:
        wait_until(lambda: len(relay.accepted) >= 200)
        one.kill()
        left = {path.name for path in one.spool.iterdir() if path.is_file()}
        assert left
        two.wait_until(lambda: not two.waiting())

    received = Counter(subject_of(mail.content) for mail in relay.accepted)
    last = [subject_of(mail.content) for mail in relay.accepted if mail.helo == "one.example.org"][-1]
    excused = received[last] - 1
    missed = [subject for subject in subjects if not received[subject]]
    twice = [subject for subject in subjects if received[subject] > 1 and subject != last]
    ledger.add(lost=len(missed), duplicates=len(twice), excused=excused)
    assert (missed, twice) == ([], [])
    assert excused in (0, 1)
    assert not one.failed()


# -- outages --


def test_a_daemon_that_started_before_its_relay_delivers_when_the_relay_comes_up(tmp_path):
    relay = ScriptedRelay()    # the port is taken and nobody answers
    with MaildropDaemon(tmp_path, relay.port, MAILDROP_HELO="daemon.example.org") as daemon:
        pid = daemon.pid
        path = daemon.add_mail("ann@example.org")
        daemon.wait_for_log("!!!!! Connection error")
        time.sleep(1)    # several more looks
        assert "##Attempts:" not in path.read_text()
        with relay:
            daemon.wait_until_empty()
        assert daemon.pid == pid
        log = daemon.read_log()

    assert arrivals(relay) == [("ann@example.org",)]
    assert log.count("!!!!! ") == 1
    assert log.count("### Relay available again at ") == 1
    assert "BAD:" not in log


REFUSING_RELAYS = {
    "is down": None,
    "greets with 421": Fault("greeting", "421 and close", sessions=99),
    "greets with 554": Fault("greeting", "5yz", sessions=99),
    "does not greet": Fault("greeting", "stall", sessions=99),
    "refuses STARTTLS": Fault("starttls", "4yz", sessions=99),
    "fails in TLS": Fault("handshake", "alert", sessions=99),
    "hangs in TLS": Fault("handshake", "stall", sessions=99),
    "refuses the login": Fault("auth", "5yz", sessions=99),
}


@pytest.mark.parametrize("why", REFUSING_RELAYS)
def test_the_next_relay_is_tried_when_the_first(why, tmp_path):
    fault = REFUSING_RELAYS[why]
    options = {"tls": True, "login": ("zope", "secret")}
    first = ScriptedRelay(*filter(None, [fault]), host="127.0.0.2", **options)
    with ScriptedRelay(port=first.port, **options) as second:
        if fault:
            first.start()
        post = Post(
            tmp_path,
            second,
            SMTP_HOST="127.0.0.2;127.0.0.1",
            MAILDROP_TLS=2,
            MAILDROP_TLS_CAFILE=write_authority(tmp_path),
            MAILDROP_LOGIN="zope",
            MAILDROP_PASSWORD="secret",
            MAILDROP_TIMEOUT=0.5,
        )
        post.add("ann@example.org")
        post.add("bob@example.org")

        post.run_pass()
        first.stop()

    assert arrivals(second) == [("ann@example.org",), ("bob@example.org",)]
    assert not first.accepted
    assert all(mail.over_tls for mail in second.accepted)
    assert second.sessions == 1
    assert first.sessions == (1 if fault else 0)
    assert "!!!!!" not in post.told()
    assert post.told().count("### 127.0.0.2 cannot be used: ") == 1, "mail goes another way: that is told, once"


# -- bad things in the spool --


@contextmanager
def without_powers_over_files():
    """In this thread, root is like any owner of a file."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    data = (ctypes.c_uint32 * 6)()

    def call(function):
        if function(header, data):
            raise OSError(ctypes.get_errno(), "capabilities cannot be set")

    call(libc.capget)
    effective = data[0]
    data[0] &= ~(1 << 1 | 1 << 2)    # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH
    call(libc.capset)
    try:
        yield
    finally:
        data[0] = effective
        call(libc.capset)


FOREIGN = b"##To:spy@example.org\n##From:zoe@example.org\nSubject: foreign\n\nsecret\n"


def make_device(path, _):
    try:
        os.mknod(path, stat.S_IFCHR | 0o600, os.makedev(1, 5))
    except PermissionError:
        skip_unless_ci("device nodes can be made only by root, and not in every container")


def make_socket(path, tmp_path):
    with socket.socket(socket.AF_UNIX) as sock:
        here = os.getcwd()
        os.chdir(path.parent)    # such names have to be short
        try:
            sock.bind(path.name)
        finally:
            os.chdir(here)


def make_unreadable(path, _):
    path.write_bytes(FOREIGN)
    path.chmod(0)


def link_to_foreign(path, tmp_path):
    target = tmp_path / "foreign"
    target.write_bytes(FOREIGN)
    path.symlink_to(target)


def link_to_neighbour(path, _):
    neighbour = path.with_name(".hidden")
    neighbour.write_bytes(FOREIGN)
    path.symlink_to(neighbour)


def file_of(content):
    return lambda path, _: path.write_bytes(content)


JUNK = random.Random(20).randbytes(300_000)
PRINTABLE = bytes(range(0x20, 0x7F))
LEFT_ALONE = {
    "a FIFO": lambda path, _: os.mkfifo(path),
    "a socket": make_socket,
    "a device": make_device,
    "a directory": lambda path, _: path.mkdir(),
    "a dangling link": lambda path, tmp_path: path.symlink_to(tmp_path / "nothing"),
    "a link to a foreign mail": link_to_foreign,
    "a link to a hidden mail": link_to_neighbour,
    "a link to itself": lambda path, _: path.symlink_to(path),
    "a link to an endless device": lambda path, _: path.symlink_to("/dev/zero"),
    "an unreadable mail": make_unreadable,
    "an empty file": file_of(b""),
    "binary junk": file_of(JUNK),
    "zero bytes": file_of(bytes(100_000)),
    "text that is no mail": file_of(b"Subject: no mail\n\nspy@example.org\n"),
    "an envelope without end": file_of(b"##To:spy@example.org\n" + b"##X:%b\n" % bytes(100) * 170_000),
    "an envelope line without end": file_of(b"##To:" + b"a" * (17 * 1024 * 1024)),
}


def state_of(path):
    status = path.lstat()
    return stat.S_IFMT(status.st_mode), status.st_size, status.st_ino, status.st_mtime_ns


@pytest.mark.fault_kind("bad things in the spool")
@pytest.mark.parametrize("thing", LEFT_ALONE)
def test_what_is_no_mail_is_left_alone_and_good_mails_leave_in_the_same_pass(thing, tmp_path, relay, ledger):
    post = Post(tmp_path, relay)
    post.add("ann@example.org")
    bad = post.place()
    LEFT_ALONE[thing](bad, tmp_path)
    before = state_of(bad)
    post.add("bob@example.org")

    with without_powers_over_files():
        post.run_pass()
        in_first_pass = sorted(arrivals(relay))
        post.run_pass()
        post.run_pass()

    missed = {("ann@example.org",), ("bob@example.org",)} - set(in_first_pass)
    ledger.add(lost=len(missed), duplicates=len(relay.accepted) + len(missed) - 2)
    assert in_first_pass == [("ann@example.org",), ("bob@example.org",)] == sorted(arrivals(relay)), post.told()
    assert state_of(bad) == before
    assert not post.failed()
    assert "unexpected error" not in post.told()
    assert post.told().count(bad.name) <= 1    # said once, if at all


FROM_ZOE = b"##From:zoe@example.org\n"
BODY = b"Subject: bad\n\nbody\n"
SET_ASIDE = {
    "no recipient": b"##To:\n" + FROM_ZOE + BODY,
    "recipients that are junk": b"##To:" + JUNK.translate(None, b"\n" + PRINTABLE) + b"\n" + FROM_ZOE + BODY,
    "recipients in invalid UTF-8": b"##To:\xff\xfe\x80 @ \xc3\n" + FROM_ZOE + BODY,
    "a sender that is none": b"##To:spy@example.org\n##From:<>>><\x00 zoe\n" + BODY,
    "no message": b"##To:spy@example.org\n##From:zoe@example.org\n",
    "a sender with a line break": b"##To:spy@example.org\n##From:<zoe@example.org\rRSET>\n" + BODY,
    "a recipient with a NUL": b"##To:spy@example.org\x00\n" + FROM_ZOE + BODY,
    "a recipient cut by a line end": b'##To:"spy\r\nRCPT TO:<evil@example.com>\r\nSubject: bad\n\nbody\n',
}


@pytest.mark.fault_kind("bad things in the spool")
@pytest.mark.parametrize("thing", SET_ASIDE)
def test_a_mail_that_cannot_be_sent_is_set_aside_and_good_mails_leave_in_the_same_pass(thing, tmp_path, relay, ledger):
    post = Post(tmp_path, relay)
    post.add("ann@example.org")
    bad = post.place()
    bad.write_bytes(SET_ASIDE[thing])
    post.add("bob@example.org")

    post.run_pass()

    missed = {("ann@example.org",), ("bob@example.org",)} - set(arrivals(relay))
    lost = len(missed) + (not post.failed())
    ledger.add(lost=lost, stuck=bad.exists(), duplicates=len(relay.accepted) + len(missed) - 2)
    assert arrivals(relay) == [("ann@example.org",), ("bob@example.org",)], post.told()
    assert not bad.exists()
    [kept] = post.failed()
    assert b"\n##Failed:" in kept.read_bytes()
    assert [line for line in relay.commands if not COMMAND.fullmatch(line)] == []


TRICKS = {
    "CR and a command behind a recipient": b"##To:ann@example.org\rRCPT TO:<evil@example.com>\n" + FROM_ZOE,
    "CR and a command in a recipient": b"##To:<ann@example.org\rRCPT TO:evil@example.com>, bob@example.org\n",
    "NUL in a recipient": b"##To:ann@example.org\x00, <bob\x00@example.org>, eve@example.org\n" + FROM_ZOE,
    "NUL and a command": b"##To:eve@example.org\n##From:zoe@example.org\x00\rRSET\n",
    "other line separators": "##To:<ann@example.org\x85RSET>, <bob@example.org\u2028RSET>, eve@example.org\n".encode(),
    "vertical tab and form feed": b"##To:<ann@example.org\x0bRSET>, <bob\x0c@example.org>, eve@example.org\n",
    "CR in a quoted local part": b'##To:"ann\rRSET"@example.org, eve@example.org\n' + FROM_ZOE,
    "an escaped CR in a quoted local part": b'##To:"ann\\\rRSET"@example.org, eve@example.org\n' + FROM_ZOE,
    "angle brackets in a quoted local part": b'##To:"ann>\rRCPT TO:<evil"@example.org, eve@example.org\n',
    "parameters behind a recipient": b"##To:<ann@example.org> NOTIFY=NEVER, eve@example.org\n" + FROM_ZOE,
    "parameters in a sender": b"##To:eve@example.org\n##From:<zoe@example.org> SIZE=1\n",
    "blanks in a sender": b"##To:eve@example.org\n##From:<zoe@example.org SIZE=1>\n",
    "CR in a sender": b"##To:eve@example.org\n##From:zoe@example.org\rRCPT TO:<evil@example.com>\n",
    "invalid UTF-8 beside an address": b"##To:\xff\xfe <ann\xc3@example.org>, eve@example.org\n" + FROM_ZOE,
    "CR in a note": b"##To:eve@example.org\n##From:zoe@example.org\n##Attempts:1\rRSET\n##Last-Reply:\r.\rRSET\n",
    "two senders": b"##To:eve@example.org\n" + FROM_ZOE + b"##From:amy@example.org\rMAIL FROM:<evil@example.com>\n",
    "two lists of recipients": b"##To:eve@example.org\n##To:<ann@example.org>\rDATA\n" + FROM_ZOE,
}


@pytest.mark.fault_kind("bad things in the spool")
@pytest.mark.parametrize("trick", TRICKS)
def test_no_envelope_smuggles_a_command_in(trick, tmp_path, relay, ledger):
    post = Post(tmp_path, relay)
    post.add("good1@example.org")
    bad = post.place()
    bad.write_bytes(TRICKS[trick] + b"Subject: trick\n\nbody\n")
    post.add("good2@example.org")

    post.run_pass()

    received = Counter(to for mail in relay.accepted for to in mail.recipients)
    missed = {"good1@example.org", "good2@example.org"} - set(received)
    ledger.add(lost=len(missed), stuck=bad.exists(), duplicates=received.total() - len(received))
    assert [line for line in relay.commands if not COMMAND.fullmatch(line)] == []
    assert relay.commands.count(b"DATA") == len(relay.accepted) in (2, 3)
    assert max(received.values()) == 1
    assert not missed
    assert not bad.exists()
    assert post.failed() or len(relay.accepted) == 3    # it is somewhere
    assert "unexpected error" not in post.told()


ENDS = {
    "LF": b"\n.\n",
    "CRLF": b"\r\n.\r\n",
    "CR": b"\r.\r",
    "LF, CRLF": b"\n.\r\n",
    "CRLF, LF": b"\r\n.\n",
    "CR, CRLF": b"\r.\r\n",
    "CRLF, CR": b"\r\n.\r",
    "CRCRLF": b"\r\r\n.\r\r\n",
    "NUL": b"\n.\x00\n",
    "split between two reads": b"\r\n.\r\n",
}
SMUGGLED = (
    b"MAIL FROM:<evil@example.com>\r\nRCPT TO:<evil@example.com>\r\nDATA\r\nSubject: smuggled\r\n\r\nx\r\n.\r\nRSET\r\n"
)


@pytest.mark.fault_kind("bad things in the spool")
@pytest.mark.parametrize("end", ENDS)
def test_no_content_smuggles_a_command_in(end, tmp_path, relay, ledger):
    post = Post(tmp_path, relay)
    filling = 64 * 1024 - len(b"Subject: trick\r\n\r\n") - 2 if end.startswith("split") else 2
    body = b"a" * filling + ENDS[end] + SMUGGLED
    post.add("eve@example.org", subject="trick", body=body)
    post.add("good@example.org")

    post.run_pass()

    ledger.add(lost=2 - len(set(arrivals(relay))), duplicates=len(relay.accepted) - len(set(arrivals(relay))))
    assert arrivals(relay) == [("eve@example.org",), ("good@example.org",)]
    assert relay.accepted[0].content == re.sub(rb"\r\n|\r|\n", b"\r\n", b"Subject: trick\r\n\r\n" + body)
    assert not any(b"evil" in line for line in relay.commands)
    assert [line for line in relay.commands if not COMMAND.fullmatch(line)] == []


@pytest.mark.fault_kind("bad things in the spool")
def test_a_mail_of_a_hundred_megabytes_arrives_whole(tmp_path, relay, ledger):
    post = Post(tmp_path, relay, MAILDROP_TIMEOUT=30, MAILDROP_DATA_TIMEOUT=60)
    post.add("ann@example.org")
    path = post.place()
    with path.open("wb") as stream:
        stream.write(b"##To:eve@example.org\n##From:zoe@example.org\n")
        start = stream.tell()
        stream.write(b"Subject: large\r\n\r\n")
        for megabyte in range(1, 100, 7):
            stream.seek(start + megabyte * 1024 * 1024)
            stream.write(b"megabyte %d\r\n" % megabyte)
        stream.seek(start + 100 * 1024 * 1024)
        stream.write(b"end\r\n")
    with path.open("rb") as stream:
        stream.seek(start)
        wanted = hashlib.file_digest(stream, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else None
        if wanted is None:    # Python 3.10
            wanted = hashlib.sha256(stream.read()).hexdigest()
    post.add("bob@example.org")

    post.run_pass()

    arrived = len(set(arrivals(relay)))
    ledger.add(lost=3 - arrived, stuck=path.exists(), duplicates=len(relay.accepted) - arrived)
    assert sorted(arrivals(relay)) == [("ann@example.org",), ("bob@example.org",), ("eve@example.org",)], post.told()
    (large,) = [mail for mail in relay.accepted if mail.recipients == ("eve@example.org",)]
    assert hashlib.sha256(large.content).hexdigest() == wanted
    assert not path.exists()


@pytest.mark.fault_kind("bad things in the spool")
def test_each_of_ten_thousand_recipients_gets_the_mail_once(tmp_path, relay, ledger):
    recipients = [f"reader{number}@example.org" for number in range(10_000)]
    post = Post(tmp_path, relay)
    post.add("ann@example.org")
    path = post.add(*recipients)
    post.add("bob@example.org")

    post.run_pass()

    received = Counter(to for mail in relay.accepted for to in mail.recipients)
    missed = {*recipients, "ann@example.org", "bob@example.org"} - set(received)
    ledger.add(lost=len(missed), stuck=path.exists(), duplicates=received.total() - len(received))
    assert not missed
    assert set(received.values()) == {1}
    assert len(received) == 10_002
    assert not path.exists()


def grow(path):
    with path.open("ab") as stream:
        stream.write(b"grown\r\n" * 1000)


def shrink(path):
    os.truncate(path, path.stat().st_size // 2)


def shrink_to_nothing(path):
    os.truncate(path, 0)


def shrink_to_its_envelope(path):
    os.truncate(path, path.read_bytes().index(b"Subject:"))


def replace(path):
    other = path.with_name(".other")
    other.write_bytes(b"##To:amy@example.org\n##From:zoe@example.org\nSubject: other\r\n\r\nbody\r\n")
    os.replace(other, path)


CHANGES = {
    "grows": grow,
    "shrinks": shrink,
    "shrinks to nothing": shrink_to_nothing,
    "shrinks to its envelope": shrink_to_its_envelope,
    "vanishes": lambda path: path.unlink(),
    "is replaced": replace,
    "is locked": lambda path: spool.lock_path(path).touch(),
}


@pytest.mark.fault_kind("bad things in the spool")
@pytest.mark.parametrize("change", CHANGES)
def test_a_mail_that_changes_while_it_is_read_is_no_harm_to_others(change, tmp_path, relay, ledger):
    post = Post(tmp_path, relay)
    post.add("ann@example.org")
    path = post.add("eve@example.org", subject="victim", body=b"0123456789abcd\r\n" * 500_000)
    whole = path.read_bytes().partition(b"Subject:")[2]
    post.add("bob@example.org")
    changes = [CHANGES[change]]

    def meddle(line):
        if line == b"DATA" and relay.commands[-2] == b"RCPT TO:<eve@example.org>" and changes:
            changes.pop()(path)

    relay.at_command = meddle

    post.run_pass()
    in_first_pass = set(arrivals(relay))
    spool.lock_path(path).unlink(missing_ok=True)
    for _ in range(3):
        post.run_pass()

    received = Counter(arrivals(relay))
    missed = {("ann@example.org",), ("bob@example.org",)} - in_first_pass
    stuck = path.exists() and change != "shrinks to nothing"    # which is no mail any more
    lost = change != "shrinks to nothing" and not received[("eve@example.org",)] and not post.failed() and not stuck
    ledger.add(lost=len(missed) + lost, stuck=stuck, duplicates=received.total() - len(received))
    assert not changes
    assert not missed, post.told()
    assert set(received.values()) == {1}
    assert not stuck, post.told()
    assert not lost, post.told()
    assert "unexpected error" not in post.told()
    [victim] = [mail for mail in relay.accepted if mail.recipients == ("eve@example.org",)] or [None]
    if change in ("grows", "vanishes", "is replaced", "is locked"):
        assert victim.content.partition(b"Subject:")[2] == whole
    if change == "is replaced":
        assert received[("amy@example.org",)] == 1


# -- notices --


def notices(relay):
    return [mail for mail in relay.accepted if mail.sender == ""]


def run_until_empty(post):
    deadline = time.monotonic() + 15
    while scan.count(post.spool):
        assert time.monotonic() < deadline, post.told()
        post.run_pass()
        time.sleep(0.05)


def test_a_refused_recipient_causes_exactly_one_notice_to_the_sender(tmp_path, relay):
    relay.replies["RCPT bob@example.org"] = NO_SUCH_USER
    relay.replies["RCPT eve@example.org"] = "553 5.1.3 not here"
    post = Post(tmp_path, relay, MAILDROP_BOUNCE=1)
    post.add("ann@example.org", "bob@example.org", "eve@example.org", subject="hello", sender="zoe@example.org")

    post.run_pass()
    assert [path.name.startswith("bounce-") for path in post.spool.iterdir() if path.is_file()] == [True]
    run_until_empty(post)
    post.run_pass()

    assert b"MAIL FROM:<>" in {line.partition(b" SIZE")[0] for line in relay.commands}
    [notice] = notices(relay)
    assert notice.recipients == ("zoe@example.org",)
    report = email.message_from_bytes(notice.content)
    assert report.get_content_type() == "multipart/report"
    assert report.get_param("report-type") == "delivery-status"
    text, status, header = report.get_payload()
    assert status.get_content_type() == "message/delivery-status"
    about_mail, *about_recipients = status.get_payload()
    assert about_mail["Reporting-MTA"] == "dns; daemon.example.org"
    fields = ("Final-Recipient", "Action", "Status", "Diagnostic-Code")
    assert [tuple(part[field] for field in fields) for part in about_recipients] == [
        ("rfc822; bob@example.org", "failed", "5.1.1", f"smtp; {NO_SUCH_USER}"),
        ("rfc822; eve@example.org", "failed", "5.1.3", "smtp; 553 5.1.3 not here"),
    ]
    assert header.get_content_type() == "text/rfc822-headers"
    assert "Subject: hello" in header.get_payload()
    assert len(post.failed()) == 1
    assert [mail.recipients for mail in relay.accepted] == [("ann@example.org",), ("zoe@example.org",)]


@pytest.mark.parametrize("command", ["MAIL", "DATA", "."])
def test_a_mail_refused_as_a_whole_causes_exactly_one_notice(command, tmp_path, relay):
    relay.replies[command] = "554 5.7.1 not from here"
    post = Post(tmp_path, relay, MAILDROP_BOUNCE=1)
    post.add("ann@example.org", "bob@example.org")

    post.run_pass()
    del relay.replies[command]
    run_until_empty(post)

    [notice] = notices(relay)
    assert notice.content.count(b"5.7.1 not from here") >= 2
    assert len(relay.accepted) == 1


def test_the_null_sender_gets_no_notice(tmp_path, relay):
    relay.replies["RCPT bob@example.org"] = NO_SUCH_USER
    post = Post(tmp_path, relay, MAILDROP_BOUNCE=1)
    post.add("ann@example.org", "bob@example.org", sender="")

    post.run_pass()
    time.sleep(spool.SETTLED_S + 0.1)
    post.run_pass()

    assert arrivals(relay) == [("ann@example.org",)]
    assert len(post.failed()) == 1
    assert scan.count(post.spool) == 0


def test_a_notice_that_is_refused_itself_causes_no_other_one(tmp_path, relay):
    relay.replies["RCPT bob@example.org"] = NO_SUCH_USER
    relay.replies["RCPT zoe@example.org"] = NO_SUCH_USER
    post = Post(tmp_path, relay, MAILDROP_BOUNCE=1)
    post.add("bob@example.org", sender="zoe@example.org")

    post.run_pass()
    run_until_empty(post)
    time.sleep(spool.SETTLED_S + 0.1)
    post.run_pass()

    assert not relay.accepted
    assert len(post.failed()) == 2
    assert scan.count(post.spool) == 0


def test_without_the_setting_there_is_no_notice(tmp_path, relay):
    relay.replies["RCPT bob@example.org"] = NO_SUCH_USER
    post = Post(tmp_path, relay)
    post.add("bob@example.org")

    post.run_pass()

    assert len(post.failed()) == 1
    assert scan.count(post.spool) == 0

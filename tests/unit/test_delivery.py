"""What becomes of mails in one pass over the spool and the next, by real sessions with a real relay."""

import dataclasses
import errno
import math
import os
import re
import shutil
import socket
import socketserver
import subprocess
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
from support.ports import free_port
from support.relay_server import RelayServer

from maildrop import settings, spool
from maildrop.delivery import Delivery
from maildrop.logfile import MaildropLog

MESSAGE = b"Subject: x\n\nbody\n"
LONG_AGO = "2020-01-01T00:00:00+00:00"
WAYS = {
    "pipelining on eight connections": {"pipelining": True, "connections": 8},
    "one command a round trip": {"pipelining": False, "connections": 1},
}
HANG_UP = object()


class AnsweringRelay:
    """A relay that keeps to the order of commands, and answers as told.

    ``answers`` maps the beginning of a command line, or "." for the end of the content, to a reply, to HANG_UP, or to a
    function of the session that returns one of them or None for the usual reply. "content": called when that begins.
    """

    def __init__(self, host="127.0.0.1", port=0):
        self.answers = {}
        self.accepted = []    # the recipients of each mail
        self.sessions = []
        relay = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self):
                _Session(relay, self.rfile, self.wfile).run()

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True

        self._server = Server((host, port), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)

    def __enter__(self):
        self._thread.start()
        return self

    def __exit__(self, *exc):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def commands(self):
        """The commands of all sessions, without their arguments."""
        return [line.split(" ")[0] for session in self.sessions for line in session.lines]


class _Session:
    def __init__(self, relay, reading, writing):
        self.relay, self._reading, self._writing = relay, reading, writing
        self.lines = []
        self.mails = 0    # that it took over
        self.recipients = None    # of the mail that is being offered
        relay.sessions.append(self)

    def run(self):
        try:
            self._say("220 relay.example.org")
            while line := self._reading.readline().decode().rstrip("\r\n"):
                line = line[:4].upper() + line[4:]
                self.lines.append(line)
                if not self._answer(line) or line == "QUIT":
                    return
        except OSError:
            pass

    def _answer(self, line):
        told = self._told(line)
        if told is HANG_UP:
            return False
        if told:
            self._say(told)
            return not told.startswith("421")
        return self._usual(line)

    def _told(self, line):
        for beginning, answer in self.relay.answers.items():
            if line.startswith(beginning):
                return answer(self) if callable(answer) else answer
        return None

    def _usual(self, line):
        verb = line.split(":")[0]
        if verb.startswith("EHLO"):
            self._say("250-relay.example.org\r\n250-PIPELINING\r\n250 8BITMIME")
        elif verb == "MAIL FROM" and self.recipients is not None:
            self._say("503 5.5.1 nested MAIL")
        elif verb == "MAIL FROM":
            self.recipients = []
            self._say("250 2.1.0 ok")
        elif verb in ("RCPT TO", "DATA") and self.recipients is None:
            self._say("503 5.5.1 no sender")
        elif verb == "RCPT TO":
            self.recipients.append(line[len("RCPT TO:<"):-1])
            self._say("250 2.1.5 ok")
        elif verb == "DATA" and not self.recipients:
            self._say("554 5.5.1 no valid recipients")
        elif verb == "RSET":
            self.recipients = None
            self._say("250 2.0.0 ok")
        elif verb == "DATA":
            return self._take_content()
        else:
            self._say("221 2.0.0 bye" if verb == "QUIT" else "500 what")
        return True

    def _take_content(self):
        self._say("354 go on")
        line = self._reading.readline()
        self._told("content")
        while line != b".\r\n":
            if not line:
                return False
            line = self._reading.readline()
        told = self._told(".")
        if told is HANG_UP:
            return False
        if not told or told.startswith("2"):
            self.relay.accepted.append(tuple(self.recipients))
            self.mails += 1
        self.recipients = None
        self._say(told or "250 2.0.0 ok")
        return True

    def _say(self, text):
        self._writing.write(text.encode() + b"\r\n")


def in_turn(*answers):
    """Answers to give one after the other, then the usual ones."""
    left = list(answers)
    return lambda session: left.pop(0) if left else None


class Site:
    """A spool and what serves it. A new ``run()`` is what a restarted daemon is."""

    way = {}

    def __init__(self, directory, port, **fields):
        self.spool = directory / "spool"
        self.log_file = directory / "log"
        self.settings = dataclasses.replace(
            settings.defaults(),
            **{
                "spools": (self.spool,),
                "var": directory,
                "smtp_hosts": ("127.0.0.1",),
                "smtp_port": port,
                "helo": "zope.example.org",
                "timeout_s": 5.0,
                "data_timeout_s": 5.0,
                "fsync": False,
                **self.way,
                **fields,
            },
        )
        spool.make_spool(self.spool, 0o700)
        self.run()

    def run(self):
        self.delivery = Delivery(self.settings, MaildropLog(self.log_file))

    def run_pass(self):
        self.delivery.run_pass()

    def add(self, *recipients, sender="zoe@example.org", **notes):
        draft = spool.Draft(self.spool / spool.new_name())
        lines = {key.replace("_", "-"): note for key, note in notes.items()}
        draft.write(sender, ", ".join(recipients), MESSAGE, lines)
        draft.release()
        return draft.path

    def read(self, path):
        """What the envelope of a mail says."""
        lines = path.read_text().splitlines()
        return dict(line[2:].split(":", 1) for line in lines if line.startswith("##"))

    def recipients(self, path):
        return self.read(path)["To"].split(", ")

    def make_due(self, path):
        os.utime(path, (time.time() - 60, time.time() - 60))

    def delay_s(self, path):
        return path.stat().st_mtime - time.time()

    def waiting(self):
        return sorted(path for path in self.spool.iterdir() if path.is_file())

    def failed(self):
        return sorted((self.spool / "failed").iterdir())

    def in_tmp(self):
        return sorted((self.spool / "tmp").iterdir())

    def log(self):
        return self.log_file.read_text() if self.log_file.exists() else ""


@pytest.fixture(params=WAYS, autouse=True)
def way(request, monkeypatch):
    monkeypatch.setattr(Site, "way", WAYS[request.param])
    return WAYS[request.param]


@pytest.fixture
def relay():
    with AnsweringRelay() as relay:
        yield relay


@pytest.fixture
def site(tmp_path, relay):
    site = Site(tmp_path, relay.port, retry_s=300.0)
    yield site
    log = site.log()
    assert "unexpected error" not in log, log


# -- after a refusal of the content --


@pytest.mark.parametrize("reply", ["451 4.3.0 later", "550 5.7.1 no"])
def test_after_a_refusal_of_the_data_command_the_next_mail_goes_out_on_the_same_session(site, relay, reply):
    relay.answers["DATA"] = in_turn(reply)
    first, _ = site.add("ann@example.org"), site.add("bob@example.org")
    site.run_pass()
    assert relay.accepted == [("bob@example.org",)]
    assert len(relay.sessions) == 1
    assert relay.commands() == ["EHLO", "MAIL", "RCPT", "DATA", "RSET", "MAIL", "RCPT", "DATA", "QUIT"]
    if reply.startswith("4"):
        assert site.waiting() == [first]
        assert site.read(first)["Last-Reply"] == reply
        assert 290 < site.delay_s(first) <= 300
        assert site.failed() == []
    else:
        assert site.waiting() == []
        (kept,) = site.failed()
        assert re.fullmatch(rf"{first.name}\.1-[0-9a-f]{{8}}", kept.name)
        assert (site.read(kept)["Failed"], site.recipients(kept)) == (reply, ["ann@example.org"])


@pytest.mark.parametrize("reply", ["451 4.3.0 later", "550 5.7.1 no"])
def test_after_a_refusal_of_the_content_the_next_mail_goes_out(tmp_path, reply):
    with RelayServer() as relay:
        site = Site(tmp_path, relay.port)
        first = site.add("ann@example.org")
        relay.replies["DATA"] = reply
        site.run_pass()
        del relay.replies["DATA"]
        site.add("bob@example.org")
        site.run_pass()
        assert relay.recipients() == ["bob@example.org"]
    assert site.waiting() == ([first] if reply.startswith("4") else [])
    assert len(site.failed()) == (0 if reply.startswith("4") else 1)


def test_after_all_recipients_were_refused_the_next_mail_goes_out_on_the_same_session(site, relay):
    relay.answers["RCPT TO:<ann@"] = "550 5.1.1 no such user"
    site.add("ann@example.org")
    site.add("bob@example.org")
    site.run_pass()
    assert relay.accepted == [("bob@example.org",)]
    assert len(relay.sessions) == 1


def test_a_session_that_cannot_be_reset_is_not_used_again(site, relay):
    relay.answers["DATA"] = lambda session: "451 later" if session.recipients == ["ann@example.org"] else None
    relay.answers["RSET"] = "502 5.5.1 no such command"
    site.add("ann@example.org")
    site.add("bob@example.org")
    site.run_pass()
    assert relay.accepted == [("bob@example.org",)]
    for session in relay.sessions:
        assert session.lines.count("RSET") <= 1
        assert "RSET" not in session.lines or session.lines[-1] == "RSET"


def test_a_refusal_after_the_content_goes_with_what_was_refused_before(site, relay):
    relay.answers.update({"RCPT TO:<bob@": "550 5.1.1 no", "RCPT TO:<eve@": "451 4.2.1 later", ".": "554 5.6.0 spam"})
    path = site.add("ann@example.org", "bob@example.org", "eve@example.org")
    site.run_pass()
    assert sorted(site.recipients(kept) for kept in site.failed()) == [["ann@example.org"], ["bob@example.org"]]
    assert site.recipients(path) == ["eve@example.org"]
    assert site.in_tmp() == []


# -- lost sessions --


@pytest.mark.parametrize("end", [HANG_UP, "421 4.3.2 closing", "no SMTP at all"])
def test_what_the_relay_said_of_recipients_counts_although_the_session_was_lost_then(site, relay, end):
    relay.answers.update({"RCPT TO:<bob@": "550 5.1.1 no such user", "RCPT TO:<eve@": end})
    path = site.add("ann@example.org", "bob@example.org", "eve@example.org", "jo@example.org")
    site.run_pass()
    assert relay.accepted == []
    (kept,) = site.failed()
    assert (site.recipients(kept), site.read(kept)["Failed"]) == (["bob@example.org"], "550 5.1.1 no such user")
    assert site.recipients(path) == ["ann@example.org", "jo@example.org", "eve@example.org"]    # with eve it broke
    assert (site.read(path)["Attempts"], site.read(path)["Lost-Sessions"]) == ("1", "1")
    assert 290 < site.delay_s(path) <= 300
    assert "may arrive twice" not in site.log()

    del relay.answers["RCPT TO:<eve@"]
    site.make_due(path)
    site.run_pass()
    assert relay.accepted == [("ann@example.org", "jo@example.org"), ("eve@example.org",)]
    assert site.failed() == [kept]


def test_a_recipient_at_whom_the_relay_always_hangs_up_does_not_keep_the_mail_from_the_others(site, relay):
    relay.answers["RCPT TO:<bob@"] = "421 4.3.2 closing"
    path = site.add("ann@example.org", "bob@example.org", "eve@example.org")
    for _ in range(2):
        site.run_pass()
        site.make_due(path)
    assert relay.accepted == [("ann@example.org", "eve@example.org")]
    assert site.recipients(path) == ["bob@example.org"]


def test_a_failure_after_a_retry_does_not_overwrite_an_earlier_one(site, relay):
    relay.answers.update({"RCPT TO:<ann@": "550 5.1.1 no", "RCPT TO:<bob@": "450 4.2.1 later"})
    path = site.add("ann@example.org", "bob@example.org")
    site.run_pass()
    with spool.claim(path, math.inf) as mail:
        spool.renew(mail)
    relay.answers["RCPT TO:<bob@"] = "550 5.1.1 no"
    site.run_pass()
    assert sorted(site.recipients(kept) for kept in site.failed()) == [["ann@example.org"], ["bob@example.org"]]


def test_an_expiry_in_the_same_attempt_does_not_overwrite_a_refusal(tmp_path, relay):
    site = Site(tmp_path, relay.port, max_age_s=0.0)
    relay.answers.update({"RCPT TO:<bob@": "451 4.2.1 later", "RCPT TO:<ann@": "451 4.2.1 later"})
    path = site.add("ann@example.org", "bob@example.org")
    site.run_pass()
    site.make_due(path)
    relay.answers.update({"RCPT TO:<ann@": "550 5.1.1 no", "DATA": "451 4.3.0 later"})
    del relay.answers["RCPT TO:<bob@"]
    site.run_pass()
    assert sorted(site.recipients(kept) for kept in site.failed()) == [["ann@example.org"], ["bob@example.org"]]
    assert site.waiting() == []


@pytest.mark.parametrize("reply", ["530 5.7.0 login wanted", "421 4.3.2 busy"])
def test_senders_that_the_relay_never_hears_of_do_not_hold_up_the_others(site, relay, reply):
    relay.answers["MAIL FROM:<bad@"] = reply
    for number in range(12):
        site.add(f"r{number}@example.org", sender="bad@example.org")
    for number in range(3):
        site.add(f"good{number}@example.org")
    for _ in range(4):
        site.run_pass()
    assert sorted(relay.accepted) == [("good0@example.org",), ("good1@example.org",), ("good2@example.org",)]
    assert site.failed() == []


def test_an_outage_between_two_groups_counts_no_attempt_and_the_untried_come_first(site, relay):
    everybody = [f"r{number:03}@example.org" for number in range(150)]
    path = site.add(*everybody)
    relay.answers["RCPT"] = "450 4.2.1 later"
    relay.answers["MAIL"] = in_turn("250 ok", "421 4.3.2 closing", "421 4.3.2 closing", "421 4.3.2 closing")
    site.run_pass()
    assert site.read(path).get("Attempts", "0") == "0"
    assert site.recipients(path)[:50] == everybody[100:]


def test_a_spool_that_takes_no_changes_gets_few_mails_sent(site, relay, monkeypatch):
    def fails(*arguments):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(spool, "remove", fails)
    for number in range(20):
        site.add(f"r{number}@example.org")
    site.run_pass()
    site.run_pass()
    assert 10 <= len(relay.accepted) < 10 + site.settings.connections
    monkeypatch.undo()
    site.run_pass()
    site.run_pass()
    assert len(relay.accepted) == len(set(relay.accepted)) == 20


def test_a_session_that_is_lost_does_not_keep_the_other_mails_from_being_sent(site, relay):
    relay.answers["RCPT TO:<ann@"] = HANG_UP
    path = site.add("ann@example.org")
    site.add("bob@example.org")
    site.run_pass()
    assert relay.accepted == [("bob@example.org",)]
    assert site.waiting() == [path]


def test_a_mail_that_loses_its_session_after_the_content_may_arrive_twice_and_is_tried_late(site, relay):
    relay.answers["."] = HANG_UP
    path = site.add("ann@example.org")
    site.run_pass()
    assert "may arrive twice" in site.log()
    assert 8 * 290 < site.delay_s(path) <= 8 * 300
    assert site.read(path)["Attempts"] == "1"


def test_a_mail_that_was_under_way_in_three_lost_sessions_waits_behind_all_others(site, relay):
    suspicious = site.add("ann@example.org", Lost_Sessions="3")
    site.make_due(suspicious)
    site.add("bob@example.org")
    site.add("eve@example.org")
    site.run_pass()
    assert relay.accepted == [("bob@example.org",), ("eve@example.org",), ("ann@example.org",)]


def test_a_mail_that_loses_three_sessions_gets_suspicious(site, relay):
    relay.answers["RCPT TO:<ann@"] = HANG_UP
    path = site.add("ann@example.org")
    for number in (1, 2, 3):
        site.make_due(path)
        site.run_pass()
        assert site.read(path)["Lost-Sessions"] == str(number)


# -- several relays --


def test_where_the_first_relay_cannot_be_reached_the_second_is_used(tmp_path):
    with RelayServer() as relay:
        site = Site(tmp_path, relay.port, smtp_hosts=("127.0.0.2", "127.0.0.1"))
        for name in ("ann", "bob"):
            site.add(f"{name}@example.org")
        site.run_pass()
        assert relay.recipients() == ["ann@example.org", "bob@example.org"]
        assert relay.connections == 1
    assert site.waiting() == []
    assert "!!!!!" not in site.log()


def test_a_first_relay_that_greets_with_a_refusal_gives_way_to_the_second(tmp_path):
    with socket.socket() as listener, RelayServer() as relay:
        listener.bind(("127.0.0.2", relay.port))
        listener.listen()

        def refuse():
            connection, _ = listener.accept()
            connection.sendall(b"554 5.3.2 no service here\r\n")
            connection.close()

        threading.Thread(target=refuse, daemon=True).start()
        site = Site(tmp_path, relay.port, smtp_hosts=("127.0.0.2", "127.0.0.1"))
        site.add("ann@example.org")
        site.run_pass()
        assert relay.recipients() == ["ann@example.org"]
    assert site.waiting() == []


@pytest.mark.parametrize("refusal", ["421 4.3.2 not now", "530 5.7.0 Authentication required"])
def test_a_first_relay_that_takes_no_mail_at_all_gives_way_to_the_second(tmp_path, relay, refusal):
    with AnsweringRelay("127.0.0.2", relay.port) as first:
        first.answers["MAIL"] = refusal
        site = Site(tmp_path, relay.port, smtp_hosts=("127.0.0.2", "127.0.0.1"))
        for name in ("ann", "bob"):
            site.add(f"{name}@example.org")
        site.run_pass()
        assert relay.accepted == [("ann@example.org",), ("bob@example.org",)]
        assert first.commands().count("MAIL") == 1
        relay.answers["MAIL"] = refusal
        path = site.add("jo@example.org")
        content = path.read_bytes()
        for _ in range(2):
            site.run_pass()
    assert path.read_bytes() == content
    assert site.log().count("!!!!!") == 1


@pytest.mark.parametrize("refusal", ["451 4.3.0 later", "550 5.7.1 no"])
def test_a_mail_that_the_first_relay_refuses_is_not_offered_to_the_second(tmp_path, relay, refusal):
    with AnsweringRelay("127.0.0.2", relay.port) as first:
        first.answers["RCPT"] = refusal
        site = Site(tmp_path, relay.port, smtp_hosts=("127.0.0.2", "127.0.0.1"))
        site.add("ann@example.org")
        site.run_pass()
    assert relay.sessions == []


def test_each_pass_begins_with_the_first_relay_again(tmp_path):
    with RelayServer() as second:
        site = Site(tmp_path, second.port, smtp_hosts=("127.0.0.2", "127.0.0.1"))
        site.add("ann@example.org")
        site.run_pass()
        with socket.socket() as first:    # it is there now, and hears of the next mail
            first.bind(("127.0.0.2", second.port))
            first.listen()
            first.settimeout(5)
            site.delivery.settings = dataclasses.replace(site.settings, timeout_s=0.2)
            site.add("bob@example.org")
            site.run_pass()
            first.accept()[0].close()
        assert second.recipients() == ["ann@example.org", "bob@example.org"]


def test_where_no_relay_can_be_reached_every_mail_stays_as_it_is_and_the_outage_is_told_once(tmp_path):
    site = Site(tmp_path, free_port(), smtp_hosts=("127.0.0.2", "127.0.0.1"), max_age_s=0.0)
    path = site.add("ann@example.org", Queued=LONG_AGO)
    before = path.stat()
    for _ in range(3):
        site.run_pass()
    assert (path.stat().st_ino, path.stat().st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    assert site.log().count("!!!!!") == 1
    assert site.failed() == site.in_tmp() == []


def test_the_end_of_an_outage_is_told(tmp_path):
    port = free_port()
    site = Site(tmp_path, port)
    site.add("ann@example.org")
    site.run_pass()
    with RelayServer(port=port) as relay:
        site.run_pass()
        assert relay.recipients() == ["ann@example.org"]
    assert site.log().count("Relay available again") == 1


# -- relays that end sessions --


@pytest.mark.parametrize("end", ["421 4.7.0 too many mails in one session", HANG_UP])
def test_a_relay_that_takes_few_mails_a_session_costs_no_mail_an_attempt(site, relay, end):
    relay.answers["MAIL"] = lambda session: end if session.mails >= 2 else None
    for number in range(7):
        site.add(f"r{number}@example.org")
    site.run_pass()
    assert sorted(relay.accepted) == [(f"r{number}@example.org",) for number in range(7)]
    assert [session.mails for session in relay.sessions] == [2, 2, 2, 1]
    assert site.waiting() == site.failed() == []
    assert "BAD" not in site.log() and "!!!!!" not in site.log()


def test_421_to_the_first_mail_of_a_session_is_an_outage_and_costs_no_mail_an_attempt(site, relay):
    relay.answers["MAIL"] = "421 4.3.2 not now"
    path = site.add("ann@example.org")
    content = path.read_bytes()
    site.run_pass()
    assert path.read_bytes() == content
    assert site.log().count("!!!!! Connection error") == 1
    assert len(relay.sessions) == 1


def test_a_batch_is_as_many_mails_as_the_settings_say(tmp_path, relay):
    site = Site(tmp_path, relay.port, batch=3)
    for number in range(7):
        site.add(f"r{number}@example.org")
    site.run_pass()
    assert [session.mails for session in relay.sessions] == [3, 3, 1]


# -- back-off and expiry --


def test_each_deferral_waits_twice_as_long_as_the_one_before(site, relay):
    relay.answers["RCPT"] = "451 4.3.0 later"
    path = site.add("ann@example.org")
    for number in range(1, 9):
        site.run_pass()
        wanted = min(300 * 2 ** (number - 1), spool.LONGEST_DELAY_S)
        assert wanted - 10 < site.delay_s(path) <= wanted
        assert site.read(path)["Attempts"] == str(number)
        site.make_due(path)


def test_a_mail_expires_at_its_second_failed_attempt_in_this_run(site, relay):
    relay.answers["RCPT"] = "451 4.3.0 later"
    path = site.add("ann@example.org", Queued=LONG_AGO, Attempts="20")
    for _ in range(3):    # a daemon that has just started has not tried for a while
        site.run()
        site.make_due(path)
        site.run_pass()
        assert site.failed() == []
    site.make_due(path)
    site.run_pass()
    assert site.waiting() == []
    (kept,) = site.failed()
    assert site.read(kept)["Failed"] == "554 5.4.7 delivery time expired; last reply: 451 4.3.0 later"
    assert site.read(kept)["Queued"].startswith("2020-01-01T00:00:00")


def test_a_mail_that_is_young_enough_does_not_expire(site, relay):
    relay.answers["RCPT"] = "451 4.3.0 later"
    path = site.add("ann@example.org")
    for _ in range(5):
        site.make_due(path)
        site.run_pass()
    assert site.failed() == []


def test_only_who_is_still_deferred_expires(site, relay):
    relay.answers["RCPT TO:<ann@"] = in_turn("451 later", "451 later")
    relay.answers["RCPT TO:<bob@"] = in_turn("451 later")
    path = site.add("ann@example.org", "bob@example.org", Queued=LONG_AGO)
    site.run_pass()
    site.make_due(path)
    site.run_pass()
    assert relay.accepted == [("bob@example.org",)]
    (kept,) = site.failed()
    assert site.recipients(kept) == ["ann@example.org"]


def test_an_outage_is_no_failed_attempt(tmp_path):
    port = free_port()
    site = Site(tmp_path, port)
    path = site.add("ann@example.org", Queued=LONG_AGO)
    for _ in range(3):
        site.run_pass()
    with RelayServer(port=port) as relay:
        relay.replies["RCPT"] = "451 4.3.0 later"
        site.run_pass()
    assert site.waiting() == [path]
    assert site.failed() == []


def test_a_lost_session_does_not_make_a_mail_expire_before_it_looks_like_the_mails_own_fault(site, relay):
    relay.answers["RCPT"] = HANG_UP
    path = site.add("ann@example.org", Queued=LONG_AGO)
    for number in (1, 2, 3):
        site.make_due(path)
        site.run_pass()
        assert site.failed() == []
    site.make_due(path)
    site.run_pass()
    assert site.waiting() == []
    assert len(site.failed()) == 1


# -- many recipients --


def names(count):
    return [f"r{number:03}@example.org" for number in range(count)]


def test_many_recipients_are_served_a_hundred_at_a_time_and_each_exactly_once(tmp_path):
    with RelayServer() as relay:
        site = Site(tmp_path, relay.port)
        site.add(*names(250))
        site.run_pass()
        assert [len(mail.recipients) for mail in relay.accepted] == [100, 100, 50]
        assert relay.recipients() == names(250)
        assert relay.connections == 1
    assert site.waiting() == site.failed() == site.in_tmp() == []


def test_at_any_time_the_file_says_who_is_still_owed_the_mail(site, relay):
    owed = []
    path = site.add(*names(250))
    relay.answers["MAIL"] = lambda session: owed.append(site.recipients(path))
    site.run_pass()
    assert owed == [names(250), names(250)[100:], names(250)[200:]]
    assert Counter(name for group in relay.accepted for name in group) == Counter(names(250))


def test_nobody_else_can_claim_a_mail_between_two_groups(site, relay):
    path = site.add(*names(250))
    claimed = []

    def try_to_claim(session):
        try:
            spool.claim(path, math.inf).close()
            claimed.append(path)
        except spool.SpoolBusy:
            pass

    relay.answers.update({"MAIL": try_to_claim, "RCPT": try_to_claim})
    site.run_pass()
    assert claimed == []
    assert sum(map(len, relay.accepted)) == 250


def test_who_is_deferred_or_refused_in_one_of_the_groups_is_treated_alone(site, relay):
    relay.answers.update({f"RCPT TO:<r{number}@": "451 4.2.1 later" for number in ("007", "150", "249")})
    relay.answers.update({f"RCPT TO:<r{number}@": "550 5.1.1 no" for number in ("008", "009", "151")})
    path = site.add(*names(250))
    site.run_pass()
    assert [len(group) for group in relay.accepted] == [97, 98, 49]
    assert site.recipients(path) == [f"r{number}@example.org" for number in ("007", "150", "249")]
    assert site.read(path)["Attempts"] == "1"
    assert 290 < site.delay_s(path) <= 300
    refused = sorted(name for kept in site.failed() for name in site.recipients(kept))
    assert refused == [f"r{number}@example.org" for number in ("008", "009", "151")]
    assert len(site.failed()) == 2


def test_a_session_lost_in_the_second_group_does_not_send_to_the_first_again(site, relay):
    relay.answers["RCPT TO:<r150@"] = HANG_UP
    path = site.add(*names(250))
    site.run_pass()
    del relay.answers["RCPT TO:<r150@"]
    assert [len(group) for group in relay.accepted] == [100]
    assert sorted(site.recipients(path)) == names(250)[100:]
    assert site.delay_s(path) > 290
    site.make_due(path)
    site.run_pass()
    assert Counter(name for group in relay.accepted for name in group) == Counter(names(250))
    assert site.waiting() == []


def test_an_outage_between_two_groups_does_not_send_to_the_first_again(site, relay):
    relay.answers["MAIL"] = lambda session: "421 4.3.2 closing" if relay.accepted else None
    path = site.add(*names(250))
    site.run_pass()
    assert sorted(site.recipients(path)) == names(250)[100:]
    del relay.answers["MAIL"]
    site.run_pass()
    assert Counter(name for group in relay.accepted for name in group) == Counter(names(250))


def test_a_daemon_that_stops_between_two_groups_leaves_the_others_due(site, relay):
    def stop(session):
        site.delivery.stopping.set()

    relay.answers["."] = stop
    path = site.add(*names(250))
    site.run_pass()
    assert [len(group) for group in relay.accepted] == [100]
    assert site.recipients(path) == names(250)[100:]
    site.run()
    relay.answers.clear()
    site.run_pass()
    assert Counter(name for group in relay.accepted for name in group) == Counter(names(250))


def test_the_groups_of_one_mail_keep_their_failures_under_different_names(site, relay):
    relay.answers["RCPT"] = "550 5.1.1 no"
    site.add(*names(250), "not an address")
    site.run_pass()
    assert relay.accepted == []
    kept = [name for path in site.failed() for name in site.recipients(path)]
    assert Counter(kept) == Counter([*names(250), "not an address"])


# -- what is no address --


def test_what_is_no_address_is_kept_and_the_others_get_the_mail(site, relay):
    site.add("ann@example.org", "not an address", "(never closed, bob@example.org")
    site.run_pass()
    assert relay.accepted == [("ann@example.org",)]
    (kept,) = site.failed()
    assert "not an address" in site.read(kept)["To"] and "(never closed, bob@example.org" in site.read(kept)["To"]
    assert site.waiting() == []


# -- what cannot be recorded --


def refusing(step, path, times=math.inf, number=errno.EIO):
    """``step`` of ``os`` that fails for ``path`` so many times."""
    left = [times]

    def stepping(*arguments, **options):
        if str(path) in map(str, arguments) and left[0] > 0:
            left[0] -= 1
            raise OSError(number, os.strerror(number))
        return step(*arguments, **options)

    return stepping


def test_what_is_no_address_does_not_swallow_those_it_is_kept_with_when_they_are_tried_again(site, relay):
    relay.answers["RCPT TO:<ann@"] = in_turn("550 5.1.1 no such user")
    site.add("ann@example.org", '"never closed')
    site.run_pass()
    (kept,) = site.failed()
    with spool.claim(kept, math.inf) as mail:
        spool.renew(mail)
    site.run_pass()
    assert relay.accepted == [("ann@example.org",)]


def test_a_delivered_mail_that_cannot_be_removed_is_not_sent_again_and_removed_later(site, relay, monkeypatch):
    path = site.add("ann@example.org")
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refusing(os.unlink, path))
        for _ in range(3):
            site.run_pass()
            assert path.exists()
            with pytest.raises(spool.SpoolBusy):    # another daemon must not send it either
                spool.claim(path, math.inf)
        assert "cannot be recorded, will try again" in site.log()
        site.add("bob@example.org")
        site.run_pass()
    site.run_pass()
    assert relay.accepted == [("ann@example.org",), ("bob@example.org",)]
    assert site.waiting() == []
    assert site.log().count("OK\t ann@example.org") == 1


def test_a_delivered_mail_is_not_sent_again_whatever_goes_wrong_when_that_is_recorded(site, relay, monkeypatch):
    path = site.add("ann@example.org")
    with monkeypatch.context() as patch:
        patch.setattr(spool, "remove", lambda mail: [][0])
        site.run_pass()
        site.run_pass()
    assert path.exists()
    assert "cannot be recorded, will try again: IndexError" in site.log()
    with pytest.raises(spool.SpoolBusy, match="claimed by another process"):
        spool.claim(path, time.time())
    site.delivery.run_pass()
    assert relay.accepted == [("ann@example.org",)]
    assert site.waiting() == []
    log = site.log()
    site.log_file.write_text(log.replace("unexpected error", "expected error"))    # for what looks for it after each test


def test_a_deferred_mail_that_cannot_be_replaced_is_not_tried_again_and_recorded_later(site, relay, monkeypatch):
    relay.answers["RCPT TO:<bob@"] = "451 4.2.1 later"
    path = site.add("ann@example.org", "bob@example.org")
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", refusing(os.rename, path))
        for _ in range(3):
            site.run_pass()
        assert site.recipients(path) == ["ann@example.org", "bob@example.org"]
    site.run_pass()
    assert relay.accepted == [("ann@example.org",)]
    assert site.recipients(path) == ["bob@example.org"]
    assert site.in_tmp() == []
    spool.claim(path, math.inf).close()
    del relay.answers["RCPT TO:<bob@"]
    site.make_due(path)
    site.run_pass()
    assert relay.accepted == [("ann@example.org",), ("bob@example.org",)]


def test_a_group_that_cannot_be_recorded_keeps_the_others_waiting_and_is_not_served_twice(site, relay, monkeypatch):
    path = site.add(*names(250))
    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", refusing(os.rename, path))
        for _ in range(3):
            site.run_pass()
        assert [len(group) for group in relay.accepted] == [100]
    for _ in range(2):
        site.run_pass()
    assert Counter(name for group in relay.accepted for name in group) == Counter(names(250))
    assert site.waiting() == site.in_tmp() == []


@pytest.fixture
def freeze():
    """A function that makes a file one that not even root can remove, until what it returns is called."""
    frozen = []

    def freezing(path):
        if not shutil.which("chattr") or subprocess.run(["chattr", "+i", path], capture_output=True).returncode:
            pytest.skip("no file can be made immutable here")
        frozen.append(path)
        return thaw

    def thaw():
        while frozen:
            subprocess.run(["chattr", "-i", frozen.pop()], check=True)

    yield freezing
    thaw()


def test_a_mail_that_is_immutable_is_sent_once_and_removed_when_it_can_be(site, relay, freeze):
    path = site.add("ann@example.org")
    thaw = freeze(path)
    for _ in range(3):
        site.run_pass()
    assert relay.accepted == [("ann@example.org",)]
    assert site.waiting() == [path]
    thaw()
    site.run_pass()
    assert relay.accepted == [("ann@example.org",)]
    assert site.waiting() == []


def test_a_mail_that_was_taken_away_before_it_could_be_recorded_is_forgotten(site, relay, monkeypatch):
    path = site.add("ann@example.org")
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refusing(os.unlink, path))
        site.run_pass()
    path.unlink()
    path.write_bytes(b"##To:bob@example.org\n##From:\n" + MESSAGE)
    for _ in range(2):
        site.run_pass()
    assert relay.accepted == [("ann@example.org",), ("bob@example.org",)]
    assert site.waiting() == []


# -- a full disk --


@pytest.fixture
def full_disk(monkeypatch):
    """A function that lets nothing be written into the spool until what it returns is called."""
    patch = pytest.MonkeyPatch()

    def fill():
        def full(*_):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        patch.setattr(spool, "_new_file", full)
        return patch.undo

    yield fill
    patch.undo()


def test_with_a_full_disk_a_mail_whose_session_is_lost_after_the_content_is_not_sent_again(site, relay, full_disk):
    relay.answers["."] = HANG_UP
    path = site.add("ann@example.org")
    free = full_disk()
    for _ in range(3):
        site.run_pass()
    assert relay.commands().count("DATA") == 1
    assert "may arrive twice" in site.log()
    assert site.read(path).get("Attempts") is None
    free()
    site.run_pass()
    assert relay.commands().count("DATA") == 1
    assert (site.read(path)["Attempts"], site.read(path)["Lost-Sessions"]) == ("1", "1")
    assert 8 * 290 < site.delay_s(path) <= 8 * 300
    assert site.in_tmp() == []


@pytest.mark.parametrize("reply", ["550 5.7.1 no", "451 4.3.0 later"])
@pytest.mark.parametrize("command", ["DATA", "."])
def test_with_a_full_disk_a_refused_content_is_remembered_and_recorded_later(site, relay, full_disk, command, reply):
    relay.answers[command] = reply
    path = site.add("ann@example.org")
    free = full_disk()
    for _ in range(3):
        site.run_pass()
    assert relay.commands().count("DATA") == 1
    assert reply in site.log()
    free()
    site.run_pass()
    assert relay.commands().count("DATA") == 1
    if reply.startswith("5"):
        assert site.waiting() == []
        assert [site.read(kept)["Failed"] for kept in site.failed()] == [reply]
    else:
        assert site.read(path)["Last-Reply"] == reply
        assert site.failed() == []


def test_with_a_full_disk_a_refused_recipient_keeps_the_mail_from_being_sent_to_the_others(site, relay, full_disk):
    relay.answers["RCPT TO:<bob@"] = "550 5.1.1 no"
    path = site.add("ann@example.org", "bob@example.org")
    content = path.read_bytes()
    free = full_disk()
    site.add("jo@example.org")
    site.run_pass()
    assert relay.accepted == [("jo@example.org",)]    # nothing has to be written for this one
    assert path.read_bytes() == content
    assert "No space left on device" in site.log()
    free()
    site.run_pass()
    assert relay.accepted == [("jo@example.org",), ("ann@example.org",)]
    assert [site.recipients(kept) for kept in site.failed()] == [["bob@example.org"]]


# -- telling the sender --


def bounces(site):
    return sorted(site.spool.glob("bounce-*"))


@pytest.mark.parametrize("command", ["MAIL", "RCPT", "DATA", "."])
def test_a_failure_is_told_to_the_sender_if_the_settings_say_so(tmp_path, relay, command):
    relay.answers[command] = in_turn("550 5.7.1 no")
    site = Site(tmp_path, relay.port, bounce=True)
    site.add("ann@example.org")
    site.run_pass()
    (kept,) = site.failed()
    (notice,) = bounces(site)
    assert notice.name == f"bounce-{kept.name}"
    assert site.read(notice) == {"To": "zoe@example.org", "From": ""}
    os.rename(notice, site.spool / spool.new_name())    # a name that need not settle
    site.run_pass()
    assert relay.accepted[-1:] == [("zoe@example.org",)]
    assert "MAIL FROM:<> BODY=8BITMIME" in relay.sessions[-1].lines


def test_a_failure_is_not_told_where_the_settings_do_not_say_so(site, relay):
    relay.answers["RCPT"] = "550 5.1.1 no"
    site.add("ann@example.org")
    site.run_pass()
    assert len(site.failed()) == 1
    assert bounces(site) == []


def test_a_failure_of_a_mail_from_the_null_sender_is_told_to_nobody(tmp_path, relay):
    relay.answers["RCPT"] = "550 5.1.1 no"
    site = Site(tmp_path, relay.port, bounce=True)
    site.add("ann@example.org", sender="")
    site.run_pass()
    assert len(site.failed()) == 1
    assert bounces(site) == []


def test_a_failure_that_is_kept_again_after_a_crash_is_told_once(tmp_path, relay, monkeypatch):
    relay.answers["RCPT"] = "550 5.1.1 no"
    site = Site(tmp_path, relay.port, bounce=True)
    path = site.add("ann@example.org")
    with monkeypatch.context() as patch:
        patch.setattr(os, "unlink", refusing(os.unlink, path))
        site.run_pass()
    (notice,) = bounces(site)
    notice.unlink()    # it has been sent meanwhile
    site.delivery._recorder._unrecorded[str(path)].mail.close()    # as when the process dies
    site.run()
    site.run_pass()
    assert site.waiting() == []
    assert len(site.failed()) == 1


def test_an_expired_mail_is_told_to_its_sender(tmp_path, relay):
    relay.answers["RCPT"] = "451 4.3.0 later"
    site = Site(tmp_path, relay.port, bounce=True)
    path = site.add("ann@example.org", Queued=LONG_AGO)
    site.run_pass()
    assert bounces(site) == []
    site.make_due(path)
    site.run_pass()
    (notice,) = bounces(site)
    assert "5.4.7 delivery time expired; last reply: 451 4.3.0 later" in notice.read_text()


def test_a_mail_without_a_usable_recipient_is_kept_and_told_to_its_sender(tmp_path, relay):
    site = Site(tmp_path, relay.port, bounce=True)
    site.add("not an address")
    site.run_pass()
    assert len(site.failed()) == 1
    assert len(bounces(site)) == 1


@pytest.mark.parametrize("to", ["ann@example.org", "not an address"])
def test_a_mail_without_a_usable_sender_is_kept_and_told_to_nobody(tmp_path, relay, to):
    site = Site(tmp_path, relay.port, bounce=True)
    site.add(to, sender="not an address")
    site.run_pass()
    assert len(site.failed()) == 1
    assert site.waiting() == relay.accepted == []
    assert "unexpected error" not in site.log()


# -- durability --


@pytest.mark.parametrize("durable", [True, False])
def test_the_spool_is_flushed_after_a_pass_and_not_after_each_mail(tmp_path, relay, monkeypatch, durable):
    flushed = []
    flush = spool.flush_directory
    monkeypatch.setattr(spool, "flush_directory", lambda directory: (flushed.append(directory), flush(directory)))
    site = Site(tmp_path, relay.port, fsync=durable)
    for number in range(20):
        site.add(f"r{number}@example.org")
    site.run_pass()
    assert len(relay.accepted) == 20
    assert set(flushed) == ({site.spool} if durable else set())
    assert len(flushed) < 10
    flushed.clear()
    site.run_pass()
    assert flushed == []


def test_what_failed_and_what_remains_is_on_the_disk_before_the_content_goes_out(tmp_path, relay, monkeypatch):
    site = Site(tmp_path, relay.port, fsync=True)
    synced, needed = set(), []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (synced.add(os.fstat(descriptor).st_ino), sync(descriptor)))

    def look(session):
        paths = [*site.failed(), site.spool / "failed", *site.in_tmp()]
        needed.extend((path.stat().st_ino, path.stat().st_ino in synced) for path in paths)

    relay.answers.update({"RCPT TO:<bob@": "550 5.1.1 no", "RCPT TO:<eve@": "451 4.2.1 later", "content": look})
    site.add("ann@example.org", "bob@example.org", "eve@example.org")
    site.run_pass()
    assert [done for _, done in needed] == [True] * 3


# -- the log --


def test_each_outcome_is_a_line_with_the_name_of_the_mail(site, relay):
    relay.answers.update({"RCPT TO:<bob@": "550 5.1.1 no", "RCPT TO:<eve@": "451 4.2.1 later"})
    path = site.add("ann@example.org", "bob@example.org", "eve@example.org")
    site.run_pass()
    log = site.log()
    assert re.search(rf'(?m)^OK\t ann@example.org\t{path.name} reply="250 2.0.0 ok" [0-9.]+s$', log)
    assert re.search(rf"(?m)^FATAL: 550 5.1.1 no\t bob@example.org\t{path.name} kept as failed/{path.name}\.1-[0-9a-f]{{8}}$", log)
    assert re.search(rf"(?m)^BAD: 451 4.2.1 later\t eve@example.org\t{path.name} attempt=1 next=\S+ \S+$", log)
    assert Path(site.spool / re.search(r"kept as (\S+)", log)[1]).exists()

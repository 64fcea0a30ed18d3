"""A relay may misbehave in every way, at every step of the dialogue: no mail is lost, stuck or sent twice."""

import threading
import time
from dataclasses import dataclass

import pytest
from support.certificates import write_authority
from support.config_file import write_config
from support.scripted_relay import Fault, ScriptedRelay, account_for, subject_of

from maildrop import scan, settings, spool
from maildrop.delivery import Delivery
from maildrop.logfile import MaildropLog

FIRST, VICTIM, LATER = "first@example.org", "victim@example.org", "later@example.org"
THREE = ("ann@example.org", "bob@example.org", "eve@example.org")
REFUSED = "550 5.1.1 no such user here"
TIMEOUT_S = 0.3
LARGE_TIMEOUT_S = 3.0    # so long may a busy machine take for a large mail
MOST_PASSES = 8
PATIENCE_S = 25.0
LARGE = 8 * 1024 * 1024    # more than the sockets between daemon and relay hold

SILENT = ("close", "reset", "half", "stall", "drip", "long line", "endless reply")
SPOKEN = (
    "text", "bytes", "4yz", "5yz", "421 and close", "421", "1yz", "3yz", "600", "mixed", "mixed, one bad", "two",
    "two, one bad", "good, then close",
)
OF_THE_RELAY = ("greeting", "ehlo", "starttls", "ehlo after tls", "auth")    # says nothing about any mail
OF_THE_MAIL = ("mail", "rcpt first", "rcpt middle", "rcpt last", "data", "final")
WAYS = {
    "pipelining": {"MAILDROP_PIPELINING": 1, "MAILDROP_CONNECTIONS": 8},
    "plain": {"MAILDROP_PIPELINING": 0, "MAILDROP_CONNECTIONS": 1},
}
LATE = ("two", "two, one bad", "good, then close")    # seen only in the next command, which is that of a mail


@dataclass(frozen=True)
class Case:
    step: str
    kind: str
    refused: str | None = None    # a recipient of the victim that the relay never takes
    large: bool = False
    once: bool = False    # only the first time instead of throughout the first session
    times: int = 1    # how often, for a fault in a mail
    also: tuple[tuple[str, str], ...] = ()    # what else goes wrong with the victim, once

    def __str__(self):
        words = [self.step, self.kind]
        words += [f"{self.refused.split('@')[0]} refused"] if self.refused else []
        words += ["large"] if self.large else []
        words += ["once"] if self.once else []
        words += [f"{self.times} times"] if self.times > 1 else []
        return ", ".join([*words, *(f"then {kind} to {step}" for step, kind in self.also)])

    @property
    def is_of_the_relay(self):
        return self.step in (*OF_THE_RELAY, "connect", "handshake", "auth offer")

    def faults(self):
        if self.is_of_the_relay:
            yield Fault(self.step, self.kind, sessions=0 if self.once else 1)
        elif self.step == "idle":
            yield Fault("idle", self.kind, sender=FIRST)
        elif self.step in ("rset", "quit"):
            yield Fault(self.step, self.kind)
        else:
            yield Fault(self.step, self.kind, sender=VICTIM, times=self.times)
        for step, kind in self.also:
            yield Fault(step, kind, sender=VICTIM)

    def may_fail(self):
        """Recipients to whom the relay says a 5yz that is meant for them."""
        told = {"rcpt first": THREE[:1], "rcpt middle": THREE[1:2], "rcpt last": THREE[2:]}
        recipients = {self.refused} - {None}
        for step, kind in ((self.step, self.kind), *self.also):
            if kind == "5yz" and step in (*OF_THE_MAIL, "content"):
                recipients |= set(told.get(step, THREE))
        return recipients


@pytest.fixture(params=WAYS)
def way(request):
    return WAYS[request.param]


def _kinds_at(step):
    return [kind for kind in (*SILENT, *SPOKEN) if (step, kind) != ("data", "3yz")]    # which would be right


def _cases():
    yield Case("connect", "refuse")
    for kind in ("close", "reset", "stall"):
        yield Case("connect", kind)
    for step in OF_THE_RELAY:
        for kind in (*SILENT, *SPOKEN):
            yield Case(step, kind)
    for kind in ("4yz", "5yz", "421", "1yz", "3yz"):    # and HELO is answered well
        yield Case("ehlo", kind, once=True)
    for kind in ("4yz", "5yz", "text", "close", "two"):    # and the other mechanism is answered well
        yield Case("auth", kind, once=True)
    yield Case("auth", "454")
    yield Case("auth", "535")
    yield Case("auth offer", "missing")
    for kind in ("close", "reset", "stall", "drip", "text", "bytes", "alert", "421", "plain text"):
        yield Case("handshake", kind)
    for step in OF_THE_MAIL:
        for kind in _kinds_at(step):
            yield Case(step, kind)
    for step, refused in zip(OF_THE_MAIL, (THREE[0], THREE[1], THREE[0], THREE[0], THREE[1], THREE[2])):
        for kind in _kinds_at(step):
            yield Case(step, kind, refused)
        for kind in ("close", "stall", "text", "4yz", "421 and close"):
            yield Case(step, kind, refused, times=4)    # more often than makes a mail suspicious
    for kind in (
        "close", "reset", "half", "stall", "slow reader", "text", "bytes", "4yz", "5yz", "421", "421 and close",
    ):
        yield Case("content", kind)
        yield Case("content", kind, large=True)
    yield Case("content", "two", large=True)    # a small one is out as a whole before that can be seen
    yield Case("data", "two", also=(("final", "4yz"),))
    for kind in (*SILENT, *SPOKEN):
        yield Case("rset", kind, also=(("data", "4yz"),))
        yield Case("quit", kind)
    for kind in (
        *SILENT, "text", "bytes", "2yz", "3yz", "4yz", "5yz", "421", "421 and close", "mixed, one bad",
    ):
        yield Case("idle", kind)


def _settings(directory, relay, way, timeout_s):
    values = dict(way)
    if relay.tls:
        values |= {"MAILDROP_TLS": 2, "MAILDROP_TLS_CAFILE": write_authority(directory)}
    if relay.login:
        values |= {"MAILDROP_LOGIN": relay.login[0], "MAILDROP_PASSWORD": relay.login[1]}
    return settings.load(write_config(
        directory / "config",
        MAILDROP_HOME=directory / "home",
        SMTP_HOST="127.0.0.1",
        SMTP_PORT=relay.port,
        MAILDROP_HELO="daemon.example.org",
        MAILDROP_TIMEOUT=timeout_s,
        MAILDROP_DATA_TIMEOUT=timeout_s,
        MAILDROP_RETRY=0,
        MAILDROP_FSYNC=0,
        **values,
    ))


def _message(subject, large):
    lines = b"Subject: %s\r\n\r\n.a line that begins with a dot\r\n..two\r\n.\r\nend\r\n" % subject
    return lines + b"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcd\r\n" * (LARGE // 64 if large else 0)


def _notes_in(directory):
    return b"".join(path.read_bytes().partition(b"Subject:")[0] for path in directory.iterdir() if path.is_file())


class Stage:
    """Three mails in a spool, and what delivers them to the relay."""

    def __init__(self, directory, relay, way, large=False, senders=(FIRST, VICTIM, LATER)):
        config = _settings(directory, relay, way, LARGE_TIMEOUT_S if large else TIMEOUT_S)
        config.log_file.parent.mkdir(parents=True)
        self.spool = config.spools[0]
        self.failed = self.spool / spool.FAILED
        self.log_file = config.log_file
        self.delivery = Delivery(config, MaildropLog(config.log_file))
        self.messages = {}
        self.wanted = []
        spool.make_spool(self.spool, 0o700)
        for sender in senders:
            recipients = {FIRST: ("fay@example.org",), VICTIM: THREE, LATER: ("lee@example.org",)}[sender]
            subject = sender.split("@")[0].encode()
            self.messages[subject] = _message(subject, large and sender == VICTIM)
            self.wanted += [(subject, recipient) for recipient in recipients]
            draft = spool.Draft(self.spool / spool.new_name(), durable=False)
            draft.write(sender, ", ".join(recipients), self.messages[subject])
            draft.release()

    def run_pass(self):
        time.sleep(0.01)    # a mail put off by no time at all is due a moment later
        results = []
        thread = threading.Thread(target=lambda: results.append(self.delivery.run_pass()), daemon=True)
        thread.start()
        thread.join(PATIENCE_S)
        assert results, "a pass does not end"

    def run_passes(self):
        for _ in range(MOST_PASSES):
            if scan.count(self.spool):
                self.run_pass()

    def told(self):
        return self.log_file.read_text()

    def check_order(self, relay):
        """What has to be so however the relay behaves."""
        assert not relay.errors
        assert "unexpected error" not in self.told()
        assert not list((self.spool / spool.TMP).iterdir())
        assert not list(self.spool.glob("*.lck"))
        for mail in (*relay.accepted, *relay.unanswered):
            assert mail.content == self.messages[subject_of(mail.content)]


@pytest.mark.fault_kind("relay misbehaves")
@pytest.mark.parametrize("case", list(_cases()), ids=str)
def test_each_recipient_gets_the_mail_once_or_is_in_failed_with_the_reply(case, way, tmp_path, ledger):
    tls = case.step in ("starttls", "handshake", "ehlo after tls")
    login = ("zope", "secret") if case.step in ("auth", "auth offer") else None
    replies = {f"RCPT {case.refused}": REFUSED} if case.refused else {}
    is_down = case.kind == "refuse"
    relay = ScriptedRelay(*([] if is_down else case.faults()), tls=tls, login=login, replies=replies)
    stage = Stage(tmp_path, relay, way, case.large)

    try:
        if not is_down:
            relay.start()
        stage.run_pass()
        assert is_down or relay.fired[case.step, case.kind], "the fault has not happened"
        if case.is_of_the_relay and case.kind not in LATE:
            assert b"##Attempts:" not in _notes_in(stage.spool)
            assert not list(stage.failed.iterdir())
        if is_down:
            relay.start()
        stage.run_passes()
    finally:
        relay.stop()

    account = account_for(stage.wanted, [relay], stage.spool, case.may_fail())
    ledger.add(**account.figures())
    assert (account.lost, account.stuck, account.duplicates) == ([], [], []), stage.told()
    stage.check_order(relay)
    for (_, recipient), reasons in account.failed.items():
        said = {REFUSED} if recipient == case.refused else set()
        said |= {"554 5.3.0 scripted, go away"} if recipient != case.refused or case.step == "mail" else set()
        assert any(reply in reason for reason in reasons for reply in said)
    if case.refused:
        assert (b"victim", case.refused) in account.failed
    if case.step == "idle":
        assert "attempt=" not in stage.told()    # no mail was at fault


def _again_and_again():
    for kind in ("close", "reset", "stall", "text", "4yz", "421", "421 and close", "two", "530", "535"):
        for step in OF_THE_MAIL:
            yield pytest.param(step, kind, False, id=f"{step}, {kind}")
        yield pytest.param("mail", kind, True, id=f"mail, {kind}, the first in the spool")


@pytest.mark.fault_kind("relay misbehaves")
@pytest.mark.parametrize(("step", "kind", "is_first"), list(_again_and_again()))
def test_what_a_relay_does_to_one_mail_again_and_again_does_not_hold_up_others(step, kind, is_first, way, tmp_path, ledger):
    relay = ScriptedRelay(Fault(step, kind, sender=VICTIM, times=1000))
    stage = Stage(tmp_path, relay, way, senders=(VICTIM, FIRST, LATER) if is_first else (FIRST, VICTIM, LATER))

    with relay:
        for _ in range(4):
            stage.run_pass()

    account = account_for(stage.wanted, [relay], stage.spool, THREE if kind in ("530", "535") else ())
    stuck = [pair for pair in account.stuck if pair[0] != b"victim"]
    ledger.add(**account.figures() | {"stuck": len(stuck)})
    assert (account.lost, stuck, account.duplicates) == ([], [], []), stage.told()
    stage.check_order(relay)

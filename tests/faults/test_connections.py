"""A relay may misbehave on some of several connections: no mail is lost, stuck or sent twice, on none of them."""

import random
import threading
import time
from dataclasses import dataclass

import pytest
from support.config_file import write_config
from support.scripted_relay import Fault, ScriptedRelay, account_for, subject_of

from maildrop import scan, settings, spool
from maildrop.delivery import Delivery
from maildrop.logfile import MaildropLog

MAILS = 40
TIMEOUT_S = 1.0
DELAY_S = 0.02    # so that one connection is not enough
MOST_PASSES = 10
PATIENCE_S = 60.0

KINDS = (
    "close", "reset", "half", "stall", "text", "bytes", "4yz", "5yz", "421 and close", "421", "mixed", "two",
    "two, one bad", "good, then close", "600",
)
OF_THE_RELAY = ("greeting", "ehlo")    # says nothing about any mail
OF_THE_MAIL = ("mail", "rcpt first", "rcpt middle", "data", "content", "final", "idle")
ONLY = {    # where not all of them are something to try
    "content": ("close", "reset", "stall", "text", "4yz", "5yz", "421 and close"),
    "idle": ("close", "reset", "stall", "text", "4yz", "5yz", "421 and close", "2yz", "3yz"),
}


@dataclass(frozen=True)
class Case:
    step: str
    kind: str
    struck: tuple[int, ...]    # numbers of the mails in which it happens; for the relay, as many times

    def __str__(self):
        return f"{self.step}, {self.kind}"

    def faults(self):
        if self.step in OF_THE_RELAY:
            return [Fault(self.step, self.kind, times=len(self.struck))]
        return [Fault(self.step, self.kind, sender=_sender(number)) for number in self.struck]

    def may_fail(self):
        """Recipients to whom the relay says a 5yz that is meant for them."""
        if self.kind != "5yz" or self.step in (*OF_THE_RELAY, "idle"):
            return set()
        told = {"rcpt first": slice(0, 1), "rcpt middle": slice(1, 2)}.get(self.step, slice(0, 2))
        return {recipient for number in self.struck for recipient in _recipients(number)[told]}


def _sender(number):
    return f"sender{number}@example.org"


def _recipients(number):
    return [f"ann{number}@example.org", f"bob{number}@example.org"]


def _cases():
    choose = random.Random(20261123)
    for step in (*OF_THE_RELAY, *OF_THE_MAIL):
        for kind in choose.sample(ONLY.get(step, KINDS), 4):
            yield Case(step, kind, tuple(choose.sample(range(MAILS), choose.randint(3, 8))))


@pytest.fixture(params=[1, 0], ids=["pipelining", "plain"])
def pipelining(request):
    return request.param


class Stage:
    """Many mails in a spool, and what delivers them to the relay."""

    def __init__(self, directory, relay, pipelining):
        config = settings.load(write_config(
            directory / "config",
            MAILDROP_HOME=directory / "home",
            SMTP_HOST="127.0.0.1",
            SMTP_PORT=relay.port,
            MAILDROP_HELO="daemon.example.org",
            MAILDROP_TIMEOUT=TIMEOUT_S,
            MAILDROP_DATA_TIMEOUT=TIMEOUT_S,
            MAILDROP_RETRY=0,
            MAILDROP_FSYNC=0,
            MAILDROP_CONNECTIONS=8,
            MAILDROP_PIPELINING=pipelining,
        ))
        config.log_file.parent.mkdir(parents=True)
        self.spool = config.spools[0]
        self.log_file = config.log_file
        self.delivery = Delivery(config, MaildropLog(config.log_file))
        self.messages = {}
        self.wanted = []
        spool.make_spool(self.spool, 0o700)
        for number in range(MAILS):
            subject = b"mail %d" % number
            self.messages[subject] = b"Subject: %s\r\n\r\n.a line that begins with a dot\r\n.\r\nend\r\n" % subject
            self.wanted += [(subject, recipient) for recipient in _recipients(number)]
            draft = spool.Draft(self.spool / spool.new_name(), durable=False)
            draft.write(_sender(number), ", ".join(_recipients(number)), self.messages[subject])
            draft.release()

    def run_passes(self):
        for _ in range(MOST_PASSES):
            if scan.count(self.spool):
                time.sleep(0.01)    # a mail put off by no time at all is due a moment later
                thread = threading.Thread(target=self.delivery.run_pass, daemon=True)
                thread.start()
                thread.join(PATIENCE_S)
                assert not thread.is_alive(), "a pass does not end"

    def told(self):
        return self.log_file.read_text()

    def check_order(self, relay):
        """What has to be so however the relay behaves."""
        assert not relay.errors
        assert "unexpected error" not in self.told()
        assert not list((self.spool / spool.TMP).iterdir())
        for mail in (*relay.accepted, *relay.unanswered):
            assert mail.content == self.messages[subject_of(mail.content)]


@pytest.mark.fault_kind("relay misbehaves on several connections")
@pytest.mark.parametrize("case", list(_cases()), ids=str)
def test_each_recipient_gets_the_mail_once_on_whichever_connection_the_relay_misbehaves(
    case, pipelining, tmp_path, ledger
):
    with ScriptedRelay(*case.faults(), delay_s=DELAY_S) as relay:
        stage = Stage(tmp_path, relay, pipelining)
        stage.run_passes()

    account = account_for(stage.wanted, [relay], stage.spool, case.may_fail())
    ledger.add(**account.figures())
    assert relay.fired[case.step, case.kind] == len(case.struck), "the fault has not happened as often as it should"
    assert relay.most_open > 1
    assert (account.lost, account.stuck, account.duplicates) == ([], [], []), stage.told()
    stage.check_order(relay)
    if case.step == "idle":
        assert "attempt=" not in stage.told()    # no mail was at fault


@pytest.mark.fault_kind("relay misbehaves on several connections")
@pytest.mark.parametrize("kind", ["421 and close", "close", "5yz"])
@pytest.mark.parametrize("most", [1, 2, 5])
def test_with_a_relay_that_takes_few_connections_at_a_time_each_recipient_gets_the_mail_in_one_pass(
    kind, most, pipelining, tmp_path, ledger
):
    said = {"421 and close": "421 4.7.0 too many", "close": None, "5yz": "554 5.3.2 too many"}[kind]
    refused = []

    def answer(dialogue, step, good):
        if step == "greeting" and relay.open > most:
            refused.append(dialogue.number)
            return said
        return "554 5.5.1 no service" if dialogue.number in refused and step != "quit" else good

    with ScriptedRelay(delay_s=DELAY_S) as relay:
        relay.answer = answer
        stage = Stage(tmp_path, relay, pipelining)
        stage.delivery.run_pass()

    account = account_for(stage.wanted, [relay], stage.spool)
    ledger.add(**account.figures())
    assert refused
    assert (account.lost, account.stuck, account.duplicates, account.excused) == ([], [], [], []), stage.told()
    stage.check_order(relay)
    assert "attempt=" not in stage.told() and "!!!!!" not in stage.told()

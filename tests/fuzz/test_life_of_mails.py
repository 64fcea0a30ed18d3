"""Mails of a spool in any order of events: each recipient gets the mail once, is owed it, or is told of in failed/."""

import dataclasses
import math
import os
import shutil
import tempfile
import time
from collections import Counter
from pathlib import Path

from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from support import fuzzing
from support.scripted_relay import Fault, ScriptedRelay, subject_of

from maildrop import attempt, settings, spool
from maildrop.delivery import Delivery
from maildrop.logfile import MaildropLog

RECIPIENTS = tuple(f"{name}@example.org" for name in ("ann", "bob", "eve", "fay", "kim"))
JUNK = ("no address", '"unclosed', "<@unclosed", "(unclosed", "<>")
CODES = ("250 2.1.5 ok", "451 4.2.1 later", "550 5.1.1 no", "552 5.2.2 full", "421 4.3.2 closing")
STEPS = ("mail", "rcpt first", "rcpt middle", "data", "content", "final", "idle")
KINDS = ("close", "text", "4yz", "5yz", "421 and close", "two", "good, then close")
faults = st.builds(Fault, st.sampled_from(STEPS), st.sampled_from(KINDS), times=st.integers(1, 3)).filter(
    lambda fault: not (fault.step == "content" and fault.kind in ("two", "good, then close"))    # which would be believed
)
AT_A_TIME = 2    # recipients, so that several groups are few


class Mails(RuleBasedStateMachine):
    """What a writer, a daemon, a relay, a person and a crash may do with a spool, one after the other."""

    def __init__(self):
        super().__init__()
        self.home = tempfile.mkdtemp()
        self.spool = Path(self.home, "spool")
        self.log_file = Path(self.home, "log")
        spool.make_spool(self.spool, 0o700)
        self.number = 0
        self.locked = {}    # drafts, and pairs of a subject and a recipient that wait for it
        self.wanted = Counter()    # pairs of a subject and a recipient
        self.accepted = Counter()
        self.excused = set()    # pairs that may be there twice: a crash, or a relay that hung up instead of its final reply
        self.start_daemon(True, 1)

    def teardown(self):
        shutil.rmtree(self.home)

    # -- the writer --

    @rule(
        recipients=st.lists(st.sampled_from(RECIPIENTS), min_size=1, unique=True),
        junk=st.lists(st.sampled_from(JUNK), max_size=1),
        junk_is_last=st.booleans(),
        is_locked=st.booleans(),
    )
    def write(self, recipients, junk, junk_is_last, is_locked):
        self.number += 1
        subject = b"%d" % self.number
        draft = spool.Draft(self.spool / spool.new_name(), durable=False)
        if not junk_is_last:    # an unclosed one would swallow who comes behind it
            junk = [entry for entry in junk if "unclosed" not in entry]
        entries = recipients + junk if junk_is_last else junk + recipients
        draft.write("zoe@example.org", ", ".join(entries), b"Subject: %s\n\n.\nbody\n" % subject)
        self.locked[draft] = [(subject, recipient) for recipient in recipients]
        if not is_locked:
            self.publish(draft)

    def publish(self, draft):
        draft.release()
        self.wanted.update(self.locked.pop(draft))

    @precondition(lambda self: self.locked)
    @rule(chance=st.randoms(use_true_random=False), is_committed=st.booleans())
    def end_transaction(self, chance, is_committed):
        draft = chance.choice(list(self.locked))
        if is_committed:
            self.publish(draft)
        else:
            draft.discard()
            del self.locked[draft]

    # -- the daemon --

    @rule(pipelining=st.booleans(), connections=st.sampled_from((1, 3)))
    def start_daemon(self, pipelining, connections):
        found = dataclasses.replace(
            settings.defaults(), spools=(self.spool,), smtp_hosts=("127.0.0.1",), retry_s=0.0, fsync=False, bounce=False,
            helo="daemon.example.org", timeout_s=5.0, data_timeout_s=5.0, log_file=self.log_file, pipelining=pipelining,
            connections=connections,
        )    # fmt: skip
        self.delivery = Delivery(found, MaildropLog(self.log_file))

    @rule(
        replies=st.dictionaries(st.sampled_from([f"RCPT {recipient}" for recipient in RECIPIENTS]), st.sampled_from(CODES)),
        final=st.sampled_from((CODES[0], *CODES)),
        faults=st.lists(faults, max_size=2),
        has_expired=st.sampled_from((False, False, True)),
    )
    def deliver(self, replies, final, faults, has_expired):
        if not any(fault.step == "final" for fault in faults):    # else that is the reply
            replies = {**replies, ".": final}
        with ScriptedRelay(*faults, replies=replies) as relay:
            max_age_s = -1.0 if has_expired else 1000.0
            self.delivery.settings = dataclasses.replace(self.delivery.settings, smtp_port=relay.port, max_age_s=max_age_s)
            time.sleep(0.002)    # a mail put off by no time at all is due a moment later
            self.delivery.run_pass()
        assert not relay.errors
        for mail in relay.accepted:
            assert mail.content.endswith(b"\r\n\r\n.\r\nbody\r\n")
        self.accepted.update(self.pairs_of(relay.accepted))
        self.excused.update(self.pairs_of(relay.unanswered))

    @staticmethod
    def pairs_of(mails):
        return [(subject_of(mail.content), recipient) for mail in mails for recipient in mail.recipients]

    @precondition(lambda self: self.mails())
    @rule(chance=st.randoms(use_true_random=False), step=st.integers(0, 3))
    def crash(self, chance, step):
        """A daemon that dies in the midst of recording an attempt: what it has put on the disk stays there."""
        with spool.claim(chance.choice(self.mails()), math.inf, durable=False) as mail:
            if not self.pairs_in(mail):
                return
            envelope = mail.read_envelope()
            subject = self.subject(mail)
            if step >= 1:
                spool.set_aside(mail, envelope.recipients[:1], "550 no", f"{chance.randint(1, 9)}-crash")
                self.excused.add((subject, envelope.recipients[0]))
            if step >= 2:
                spool.draft_remainder(mail, envelope.recipients[1:], time.time(), 1, "451 later").close()
            if step >= 3:
                Path(self.spool, spool.TMP, spool.new_name()).write_bytes(b"##To:half@exam")

    @rule(name=st.sampled_from((b"x.lck", b".hidden", b"no mail", b"\xff")))
    def leave_a_strangers_file(self, name):
        Path(os.fsdecode(bytes(self.spool) + b"/" + name)).write_bytes(b"no mail\n")

    # -- a person --

    @precondition(lambda self: self.mails() + self.failed())
    @rule(chance=st.randoms(use_true_random=False), is_deleted=st.sampled_from((False, False, True)))
    def retry_or_delete(self, chance, is_deleted):
        with spool.claim(chance.choice(self.mails() + self.failed()), math.inf, durable=False) as mail:
            if not is_deleted:
                spool.renew(mail)
                return
            for pair in self.pairs_in(mail):
                self.wanted.pop(pair, None)    # None where a crash has left two
            spool.remove(mail)

    # -- what is there --

    def mails(self):
        """Those that are not locked."""
        paths = sorted(path for path in self.spool.iterdir() if spool.is_our_name(path.name))
        return [path for path in paths if not spool.lock_path(path).exists()]

    def failed(self):
        return sorted(Path(self.spool, spool.FAILED).iterdir())

    @staticmethod
    def subject(mail):
        return subject_of(b"".join(mail.content()))

    def pairs_in(self, mail):
        return [(self.subject(mail), text) for text in mail.recipients_text.split(", ") if text in RECIPIENTS]

    @invariant()
    def each_is_accounted_for(self):
        here = Counter(self.accepted)
        for path in self.mails() + self.failed():
            with spool.claim(path, math.inf, durable=False) as mail:
                here.update(self.pairs_in(mail))
                envelope_says = mail.read_envelope().recipients if self.pairs_in(mail) else ()
                assert set(envelope_says) == {recipient for _, recipient in self.pairs_in(mail)}
        log = self.log_file.read_text() if self.log_file.exists() else ""
        assert "unexpected error" not in log, log
        for pair in here.keys() | self.wanted.keys():
            if pair not in self.excused:
                assert here[pair] == self.wanted[pair], (pair, log)
            elif self.wanted[pair]:
                assert here[pair] >= 1, (pair, log)
        for draft in self.locked:
            assert draft.path.exists()


def test_each_recipient_is_served_once_whatever_happens_to_the_mails_of_a_spool(fuzz_seconds, monkeypatch):
    monkeypatch.setattr(attempt, "RECIPIENTS_AT_A_TIME", AT_A_TIME)

    class Counted(Mails):
        def __init__(self):
            fuzzing.examples_tried["lives of mails"] += 1
            super().__init__()

    profile = fuzzing.profile(30, fuzz_seconds, stateful_step_count=20)
    fuzzing.again_and_again(lambda: run_state_machine_as_test(Counted, settings=profile), fuzz_seconds)

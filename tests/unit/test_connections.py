"""Several connections at a time: how many there are, what they carry, and what becomes of that when some end."""

import dataclasses
import errno
import fcntl
import os
import re
import threading
import time
from collections import Counter

import pytest
from support.daemon import wait_until
from support.scripted_relay import ScriptedRelay, subject_of

from maildrop import crew, settings, spool
from maildrop.delivery import Delivery
from maildrop.logfile import MaildropLog
from maildrop.wake import WakeUp, announce

PATIENCE_S = 30.0
QUIET_S = 0.05    # so long is listened for what must not come


class Site:
    """A spool and what serves it."""

    def __init__(self, directory, port, name="log", **fields):
        self.spool = directory / "spool"
        self.log_file = directory / name
        self.settings = dataclasses.replace(
            settings.defaults(),
            **{
                "spools": (self.spool,),
                "var": directory,
                "smtp_hosts": ("127.0.0.1",),
                "smtp_port": port,
                "helo": "zope.example.org",
                "timeout_s": PATIENCE_S,
                "data_timeout_s": PATIENCE_S,
                "interval_s": 3600.0,
                "retry_s": 300.0,
                "fsync": False,
                **fields,
            },
        )
        spool.make_spool(self.spool, 0o700)
        self.wake = WakeUp()
        self.wake.listen([self.spool], 0o700)
        self.delivery = Delivery(self.settings, MaildropLog(self.log_file), self.wake)

    def add(self, subject, sender="zoe@example.org", **notes):
        draft = spool.Draft(self.spool / spool.new_name(), durable=False)
        lines = {key.replace("_", "-"): note for key, note in notes.items()}
        draft.write(sender, "ann@example.org", f"Subject: {subject}\n\nbody\n".encode(), lines)
        draft.release()
        return draft.path

    def add_many(self, number, beginning="mail"):
        return [self.add(f"{beginning} {each}") for each in range(number)]

    def begin_pass(self):
        thread = threading.Thread(target=self.delivery.run_pass, daemon=True)
        thread.start()
        return thread

    def run_pass(self):
        self.end(self.begin_pass())

    def end(self, thread):
        thread.join(PATIENCE_S * 2)
        assert not thread.is_alive(), "a pass does not end"

    def waiting(self):
        return sorted(path for path in self.spool.iterdir() if path.is_file())

    def log(self):
        return self.log_file.read_text() if self.log_file.exists() else ""

    def told_delivered(self):
        """The names of mails in the order of their OK lines."""
        return re.findall(r"(?m)^OK\t \S+\t(\S+) ", self.log())

    def check_untouched(self, paths):
        """These mails are due, have cost no attempt, and nobody has a claim on them."""
        assert self.waiting() == sorted(paths)
        for path in paths:
            assert b"##Attempts:" not in path.read_bytes()
            spool.claim(path, time.time()).close()
        assert not list((self.spool / spool.TMP).iterdir())
        assert not list((self.spool / spool.FAILED).iterdir())


@pytest.fixture
def relay():
    with ScriptedRelay() as relay:
        yield relay
    assert not relay.errors


@pytest.fixture
def make_site(tmp_path, relay):
    """A function that makes a site at the relay, which at the end has met with nothing unexpected."""
    made = []

    def make(**fields):
        made.append(Site(tmp_path, relay.port, **fields))
        return made[-1]

    yield make
    for site in made:
        site.wake.close()
        assert "unexpected error" not in site.log(), site.log()


@pytest.fixture(params=[True, False], ids=["pipelining", "one command a round trip"])
def pipelining(request):
    return request.param


def subjects(relay):
    return [subject_of(mail.content).decode() for mail in relay.accepted]


class Gate:
    """Lets no reply to a content go out until so many sessions wait for theirs. ``then`` is called at that moment."""

    def __init__(self, relay, sessions, then=lambda: None, step="final"):
        self._sessions = sessions
        self._then = then
        self._step = step
        self._lock = threading.Lock()
        self._there = set()
        self._opened = threading.Event()
        relay.answer = self.answer

    def answer(self, dialogue, step, good):
        if step == self._step and not self._opened.is_set():
            with self._lock:
                self._there.add(dialogue.number)
                is_last = len(self._there) == self._sessions
            if is_last:
                try:
                    self._then()
                finally:
                    self._opened.set()
            assert self._opened.wait(PATIENCE_S), f"only {len(self._there)} sessions came"
        return good


# -- how many --


@pytest.mark.parametrize("wanted", [None, 3, 1])
def test_there_are_as_many_connections_as_the_settings_say_and_never_more(relay, make_site, pipelining, wanted):
    number = wanted or 8
    site = make_site(pipelining=pipelining, **({"connections": wanted} if wanted else {}))
    assert site.settings.connections == number
    paths = site.add_many(60)

    def listen_for_more():
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline and relay.sessions <= number:
            time.sleep(0.02)

    Gate(relay, number, then=listen_for_more)
    site.run_pass()
    assert (relay.sessions, relay.most_open) == (number, number)
    assert Counter(site.told_delivered()) == Counter(path.name for path in paths)
    assert len({mail.session for mail in relay.accepted}) == number
    assert site.waiting() == []


@pytest.mark.parametrize("mails", [1, 4, 5])
def test_for_few_mails_there_is_one_connection(relay, make_site, pipelining, monkeypatch, mails):
    monkeypatch.setattr(crew, "LONG_WAIT_S", 3600.0)    # however busy the machine is
    site = make_site(pipelining=pipelining)
    site.add_many(mails)
    site.run_pass()
    assert relay.sessions == 1
    assert len(relay.accepted) == mails


def test_few_mails_are_not_kept_waiting_by_one_that_hangs(relay, make_site, pipelining):
    site = make_site(pipelining=pipelining)
    site.add_many(4)
    Gate(relay, 2)
    site.run_pass()
    assert sorted(subjects(relay)) == ["mail 0", "mail 1", "mail 2", "mail 3"]


def test_there_is_no_second_connection_before_the_relay_has_heard_a_mail(relay, make_site, pipelining):
    seen = []

    def answer(dialogue, step, good):
        if step == "mail" and not seen:
            seen.append(dialogue.has_more(0) or time.sleep(2 * crew.LONG_WAIT_S))    # time enough for another to come
            seen.append(relay.sessions)
        return good

    relay.answer = answer
    site = make_site(pipelining=pipelining)
    site.add_many(30)
    site.run_pass()
    assert seen[1] == 1
    assert len(relay.accepted) == 30


# -- what goes ahead --


def what_comes_ahead(relay, quiet):
    """Notes whether something comes behind each content before its reply. ``quiet``: where nothing should."""
    ahead = []

    def answer(dialogue, step, good):
        if step == "final":
            number = sum(1 for session, _ in ahead if session == dialogue.number) + 1
            ahead.append((dialogue.number, dialogue.has_more(QUIET_S if quiet(number) else PATIENCE_S)))
        return good

    relay.answer = answer
    return ahead


def test_on_one_connection_each_envelope_goes_ahead(relay, make_site):
    ahead = what_comes_ahead(relay, quiet=lambda number: number == 10)
    site = make_site(connections=1)
    site.add_many(10)
    site.run_pass()
    assert [more for _, more in ahead] == [True] * 9 + [False]


def test_with_a_wait_between_mails_there_is_one_connection_and_nothing_goes_ahead(relay, make_site):
    ahead = what_comes_ahead(relay, quiet=lambda number: True)
    site = make_site(wait_s=0.001)
    site.add_many(30)
    site.run_pass()
    assert [more for _, more in ahead] == [False] * 30
    assert relay.sessions == 1


@pytest.mark.parametrize("batch", [1, 3])
def test_no_session_carries_more_mails_than_a_batch_and_no_envelope_goes_ahead_past_it(relay, make_site, batch):
    ahead = what_comes_ahead(relay, quiet=lambda number: number == batch)
    site = make_site(connections=1, batch=batch)
    site.add_many(9)
    site.run_pass()
    assert [more for _, more in ahead] == ([True] * (batch - 1) + [False]) * (9 // batch)
    assert [mail.session for mail in relay.accepted] == [1 + each // batch for each in range(9)]


def test_a_batch_is_that_of_each_of_several_connections(relay, make_site, pipelining):
    senders = Counter()
    gate = Gate(relay, 8)

    def answer(dialogue, step, good):
        if step == "mail":
            senders[dialogue.number] += 1
        return gate.answer(dialogue, step, good)

    relay.answer = answer
    site = make_site(pipelining=pipelining, batch=3)
    site.add_many(60)
    site.run_pass()
    assert max(senders.values()) == 3
    assert sum(senders.values()) == 60
    assert sorted(subjects(relay)) == sorted(f"mail {each}" for each in range(60))


# -- each mail once --


def test_each_of_many_mails_arrives_once_and_is_told_once(relay, make_site, pipelining):
    site = make_site(pipelining=pipelining)
    paths = site.add_many(300)
    Gate(relay, 8)
    site.run_pass()
    assert Counter(subjects(relay)) == Counter(f"mail {each}" for each in range(300))
    assert Counter(site.told_delivered()) == Counter(path.name for path in paths)
    assert site.waiting() == []
    assert (site.log().count("### Started"), site.log().count("### Finished")) == (1, 1)


def test_on_one_connection_mails_leave_in_the_order_in_which_they_came(relay, make_site, pipelining):
    site = make_site(pipelining=pipelining, connections=1)
    site.add_many(50)
    site.run_pass()
    assert subjects(relay) == [f"mail {each}" for each in range(50)]


@pytest.mark.parametrize("connections", [1, 8])
def test_new_mails_leave_before_hundreds_that_were_deferred(relay, make_site, pipelining, connections):
    site = make_site(pipelining=pipelining, connections=connections)
    retries = [site.add(f"retry {each}", Attempts="1") for each in range(200)]
    due = time.time() + 0.5
    for path in retries:
        os.utime(path, (due, due))    # a deferred mail has its time ahead
    wait_until(lambda: time.time() > due + 0.1)
    new = [f"new {each}" for each in range(20)]
    for subject in new:
        site.add(subject)
    site.run_pass()
    arrived = subjects(relay)
    assert len(arrived) == len(set(arrived)) == 220
    assert set(new) <= set(arrived[: 20 + 4 * (connections - 1)])    # those of other connections may come between
    if connections == 1:
        assert arrived[:20] == new


def test_two_daemons_on_one_spool_send_each_mail_once(relay, make_site, pipelining):
    first, second = (make_site(pipelining=pipelining, name=name) for name in ("first.log", "second.log"))
    paths = first.add_many(200)
    Gate(relay, 6)
    passes = [site.begin_pass() for site in (first, second)]
    for site, thread in zip((first, second), passes):
        site.end(thread)
    for site in (first, second):    # one that was claimed by the other for a moment is due still
        site.run_pass()
    assert Counter(subjects(relay)) == Counter(f"mail {each}" for each in range(200))
    assert Counter(first.told_delivered() + second.told_delivered()) == Counter(path.name for path in paths)
    assert first.waiting() == []


def test_mails_that_cannot_be_removed_are_sent_once_whichever_connection_carried_them(
    relay, make_site, pipelining, monkeypatch
):
    def fails(mail):
        raise OSError(errno.EROFS, os.strerror(errno.EROFS))

    site = make_site(pipelining=pipelining)
    paths = site.add_many(60)
    with monkeypatch.context() as patch:
        patch.setattr(spool, "remove", fails)
        Gate(relay, 8)
        for _ in range(3):
            site.run_pass()
        assert 10 <= len(relay.accepted) <= 10 + 8    # those under way
        assert len(set(subjects(relay))) == len(relay.accepted)
        assert site.waiting() == sorted(paths)
    for _ in range(2):
        site.run_pass()
    assert Counter(subjects(relay)) == Counter(f"mail {each}" for each in range(60))
    assert Counter(site.told_delivered()) == Counter(path.name for path in paths)
    assert site.waiting() == []


# -- a relay that takes no more connections --


def busy_greeting(dialogue, step, good):
    return "421 4.7.0 too many connections" if step == "greeting" else good


def closed_door(dialogue, step, good):
    return None if step == "greeting" else good


def no_service(dialogue, step, good):
    return "554 5.3.2 too many connections" if step == "greeting" else good


def busy_ehlo(dialogue, step, good):
    return "421 4.7.0 too many connections" if step == "ehlo" else good


def busy_at_mail(dialogue, step, good):
    return "421 4.7.0 too many connections" if step == "mail" else good


refuses = pytest.mark.parametrize(
    "refuse", [busy_greeting, closed_door, no_service, busy_ehlo, busy_at_mail], ids=lambda each: each.__name__
)


@pytest.mark.parametrize("most", [1, 3])
@refuses
def test_where_the_relay_takes_no_more_connections_those_there_are_carry_all_mails(
    relay, make_site, pipelining, refuse, most
):
    refused = threading.Event()

    def answer(dialogue, step, good):
        if dialogue.number > most:
            said = refuse(dialogue, step, good)
            if said != good:
                refused.set()
            return said
        if step == "final":
            assert refused.wait(PATIENCE_S), "no connection too many came"
        return good

    relay.answer = answer
    site = make_site(pipelining=pipelining)
    paths = site.add_many(60)
    site.run_pass()
    assert Counter(subjects(relay)) == Counter(f"mail {each}" for each in range(60))
    assert Counter(site.told_delivered()) == Counter(path.name for path in paths)
    assert {mail.session for mail in relay.accepted} == set(range(1, most + 1))
    assert "!!!!!" not in site.log() and "attempt=" not in site.log()
    assert site.waiting() == []


@pytest.mark.parametrize("later", [0, 1], ids=["nothing is left", "another mail comes"])
@pytest.mark.parametrize("too_many", [1, 3])
@refuses
def test_connections_too_many_are_no_outage_when_the_others_have_ended_before_they_were_refused(
    relay, make_site, pipelining, refuse, too_many, later
):
    come = set()

    def answer(dialogue, step, good):
        number = dialogue.number
        if 1 < number <= 1 + too_many and (said := refuse(dialogue, step, good)) != good:
            come.add(number)
            wait_until(lambda: len(site.delivery._crew) <= too_many, PATIENCE_S)    # the first has sent all and ended
            if number == 2:
                paths.extend(site.add_many(later, "later"))
                announce(site.spool)
            return said
        if step == "final" and number == 1:
            wait_until(lambda: len(come) == too_many, PATIENCE_S)
        return good

    relay.answer = answer
    site = make_site(pipelining=pipelining, connections=1 + too_many)
    paths = site.add_many(60)
    site.run_pass()
    assert "!!!!!" not in site.log() and "attempt=" not in site.log()
    site.run_pass()
    assert Counter(site.told_delivered()) == Counter(path.name for path in paths)
    assert len(relay.accepted) == 60 + later and site.waiting() == []


def test_a_relay_that_refused_connections_is_asked_for_more_at_the_next_look(relay, make_site):
    refused = threading.Event()

    def few(dialogue, step, good):
        if step == "greeting" and dialogue.number > 1:
            refused.set()
            return "421 4.7.0 too many connections"
        if step == "final":
            assert refused.wait(PATIENCE_S)
        return good

    relay.answer = few
    site = make_site()
    site.add_many(20)
    site.run_pass()
    assert {mail.session for mail in relay.accepted} == {1}
    Gate(relay, 3)
    site.add_many(40, "later")
    site.run_pass()
    assert len(subjects(relay)) == len(set(subjects(relay))) == 60
    assert len({mail.session for mail in relay.accepted}) >= 1 + 3


def test_a_relay_that_refused_connections_while_one_hangs_is_asked_for_more_at_the_next_look_too(relay, make_site, pipelining):
    refused, release = threading.Event(), threading.Event()

    def answer(dialogue, step, good):
        if dialogue.number == 1 and step == "final":
            assert release.wait(PATIENCE_S)
        if dialogue.number == 2 and step == "greeting":
            refused.set()
            return "421 4.7.0 too many connections"
        return good

    relay.answer = answer
    site = make_site(pipelining=pipelining, connections=2)
    site.add_many(20)
    sending = site.begin_pass()
    try:
        assert refused.wait(PATIENCE_S)
        wait_until(lambda: "no more connections now" in site.log(), PATIENCE_S)
        announce(site.spool)
        wait_until(lambda: len(relay.accepted) >= 17, PATIENCE_S)    # all but those that the first one has claimed
    finally:
        release.set()
        site.end(sending)
    assert len(subjects(relay)) == len(set(subjects(relay))) == 20
    assert site.waiting() == []


def test_a_relay_that_goes_away_while_all_connections_are_busy_is_one_outage_and_costs_no_mail_anything(
    relay, make_site, pipelining
):
    gone = threading.Event()
    gate = Gate(relay, 8, then=lambda: (relay.refuse(), gone.set()))

    def answer(dialogue, step, good):
        return None if step == "mail" and gone.is_set() else gate.answer(dialogue, step, good)

    relay.answer = answer
    site = make_site(pipelining=pipelining)
    paths = site.add_many(60)
    site.run_pass()
    assert len(relay.accepted) == len(set(subjects(relay))) == 8
    site.check_untouched([path for path in paths if path.name not in site.told_delivered()])
    assert len(site.waiting()) == 52
    site.run_pass()
    assert site.log().count("!!!!!") == 1
    assert "attempt=" not in site.log() and "may arrive twice" not in site.log()
    with ScriptedRelay(port=relay.port) as again:
        Gate(again, 8)
        site.run_pass()
    assert Counter(subjects(relay) + subjects(again)) == Counter(f"mail {each}" for each in range(60))
    assert Counter(site.told_delivered()) == Counter(path.name for path in paths)
    assert site.log().count("Relay available again") == 1
    assert site.waiting() == []


def test_when_all_connections_lose_the_relay_at_the_same_moment_the_next_host_gets_the_mails(relay, make_site, pipelining):
    gone, turned_away = threading.Event(), set()
    gate = Gate(relay, 8, then=gone.set)

    def answer(dialogue, step, good):
        if step == "mail" and gone.is_set():
            return None
        if step == "greeting" and gone.is_set():
            turned_away.add(dialogue.number)
            if len(turned_away) == 8:    # they all know of one another until all have failed
                site.delivery._crew._lock.acquire()
                threading.Timer(10 * QUIET_S, site.delivery._crew._lock.release).start()
            wait_until(lambda: len(turned_away) >= 8, PATIENCE_S)
            return None
        return gate.answer(dialogue, step, good)

    relay.answer = answer
    site = make_site(pipelining=pipelining, smtp_hosts=("127.0.0.1", "127.0.0.2"))
    site.add_many(60)
    with ScriptedRelay(host="127.0.0.2", port=relay.port) as other:
        site.run_pass()
    assert len(relay.accepted) == 8
    assert Counter(subjects(relay) + subjects(other)) == Counter(f"mail {each}" for each in range(60))
    assert "!!!!!" not in site.log() and site.waiting() == []


def test_while_a_relay_that_served_lets_connections_hang_no_more_are_opened_whatever_comes(relay, make_site, pipelining):
    second_came, gone = threading.Event(), threading.Event()

    def answer(dialogue, step, good):
        if dialogue.number == 1:
            if step == "final":
                assert second_came.wait(PATIENCE_S)
        elif dialogue.number == 2 and not gone.is_set():
            second_came.set()
            if step == "final":    # the only one by now, and more mails have come
                wait_until(lambda: len(site.delivery._crew) == 1, PATIENCE_S)
                site.add_many(6, "later")
                announce(site.spool)
                wait_until(lambda: len(site.delivery._backlog) >= 4, PATIENCE_S)
                gone.set()
                return "421 4.3.2 shutting down"
        elif gone.is_set() and step == "greeting":
            announce(site.spool)    # a look, which may ask for one more connection
            time.sleep(2 * crew.LONG_WAIT_S)
            return None
        return good

    relay.answer = answer
    site = make_site(pipelining=pipelining, connections=2)
    site.add_many(8)
    site.run_pass()
    assert site.log().count("!!!!!") == 1
    assert relay.sessions <= 2 + 3


# -- mails that come while a pass goes on --


@pytest.mark.parametrize("named", [True, False], ids=["by name", "by a look"])
@pytest.mark.parametrize("hanging", [1, 3])
def test_mails_whose_reply_does_not_come_do_not_keep_later_ones_from_being_sent(
    relay, make_site, pipelining, hanging, named
):
    release = threading.Event()
    hang = set()

    def answer(dialogue, step, good):
        if step == "final" and dialogue.sender == "hang@example.org":
            hang.add(dialogue.number)
            assert release.wait(PATIENCE_S)
        return good

    relay.answer = answer
    site = make_site(pipelining=pipelining)
    site.add("hanging 0", sender="hang@example.org")
    under_way = site.begin_pass()
    try:
        wait_until(lambda: len(hang) == 1)
        for number in range(1, hanging):
            path = site.add(f"hanging {number}", sender="hang@example.org")
            announce(site.spool, [path.name])
            wait_until(lambda number=number: len(hang) == number + 1, told=site.log)
        later = site.add_many(10, "later")
        announce(site.spool, [path.name for path in later] if named else ())
        wait_until(lambda: len(relay.accepted) == 10, told=site.log)
        assert sorted(subjects(relay)) == [f"later {each}" for each in range(10)]
        last = site.add("last")    # and again, when the other connections have ended
        announce(site.spool, [last.name])
        wait_until(lambda: len(relay.accepted) == 11, told=site.log)
        assert under_way.is_alive()
    finally:
        release.set()
        site.end(under_way)
    assert len(relay.accepted) == len(set(subjects(relay))) == 11 + hanging
    assert site.waiting() == []


def test_the_file_of_a_mail_that_has_left_is_closed_while_another_one_hangs(relay, make_site, tmp_path):
    release = threading.Event()
    hanging = threading.Event()

    def answer(dialogue, step, good):
        if step == "final" and dialogue.sender == "hang@example.org":
            hanging.set()
            assert release.wait(PATIENCE_S)
        return good

    def is_open():
        with kept.open() as stream:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                return True
        return False

    relay.answer = answer
    site = make_site()
    site.add("hanging", sender="hang@example.org")
    kept = tmp_path / "kept"
    under_way = site.begin_pass()
    try:
        assert hanging.wait(PATIENCE_S)
        path = site.add("later")
        os.link(path, kept)
        announce(site.spool, [path.name])
        wait_until(lambda: len(relay.accepted) == 1 and not path.exists(), told=site.log)
        wait_until(lambda: not is_open(), told=site.log)
        assert under_way.is_alive()
    finally:
        release.set()
        site.end(under_way)


def test_a_mail_that_is_named_again_while_it_is_under_way_is_sent_once(relay, make_site, pipelining):
    site = make_site(pipelining=pipelining)
    paths = site.add_many(10)

    def answer(dialogue, step, good):
        if step in ("mail", "final"):
            announce(site.spool, [path.name for path in paths])
            announce(site.spool)
        return good

    relay.answer = answer
    site.run_pass()
    relay.answer = lambda dialogue, step, good: good
    site.run_pass()
    assert Counter(subjects(relay)) == Counter(f"mail {each}" for each in range(10))
    assert site.waiting() == []


# -- stopping --


def test_a_daemon_that_stops_records_what_is_out_and_leaves_the_rest_as_it_was(relay, make_site, pipelining):
    stopped = threading.Event()
    lock = threading.Lock()
    there = {}

    def answer(dialogue, step, good):
        held_at = "final" if dialogue.number % 2 else "data"    # half of them wait for the content, half have it
        if step == held_at and not stopped.is_set():
            with lock:
                there[dialogue.number] = step
                is_last = len(there) == 8
            if is_last:
                site.delivery.cut()
                stopped.set()
            assert stopped.wait(PATIENCE_S), f"only {there} came"
        return good

    relay.answer = answer
    site = make_site(pipelining=pipelining)
    paths = site.add_many(60)
    site.run_pass()
    assert sorted(mail.session for mail in relay.accepted) == [1, 3, 5, 7]
    delivered = site.told_delivered()
    assert len(delivered) == len(set(delivered)) == 4
    site.check_untouched([path for path in paths if path.name not in delivered])
    assert "BAD" not in site.log() and "!!!!!" not in site.log()

    again = make_site(pipelining=pipelining, name="again.log")
    again.run_pass()
    assert Counter(subjects(relay)) == Counter(f"mail {each}" for each in range(60))
    assert site.waiting() == []


def test_a_pass_that_is_interrupted_finishes_what_is_under_way_and_begins_nothing_more(relay, make_site, pipelining):
    site = make_site(pipelining=pipelining)
    paths = site.add_many(400)
    Gate(relay, 8, then=lambda: site.delivery.interrupt())
    site.run_pass()
    assert 8 <= len(relay.accepted) < 400
    assert len(set(subjects(relay))) == len(relay.accepted)
    site.check_untouched([path for path in paths if path.name not in site.told_delivered()])
    site.delivery.interrupted.clear()
    site.run_pass()
    assert Counter(subjects(relay)) == Counter(f"mail {each}" for each in range(400))

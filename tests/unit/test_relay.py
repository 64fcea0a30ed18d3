"""One session with a relay that goes by a script: what is sent when, and to whom each reply is given."""

import dataclasses
import random
import socket
import threading
from contextlib import contextmanager, suppress

import pytest

from maildrop import settings
from maildrop.credentials import Credentials
from maildrop.envelope import Envelope
from maildrop.policy import Reply
from maildrop.relay import RelayUnavailable, Session, SessionLost

PATIENCE_S = 20.0
QUIET_S = 0.05    # so long is listened for what must not come
ANN, BOB, EVE = "ann@example.org", "bob@example.org", "eve@example.org"
CONTENT = b"Subject: x\n\nbody\n"
LINES = [b"line %d\n" % number for number in range(100)]
ON_THE_WIRE = "Subject: x\r\n\r\nbody\r\n.\r\n"
OK = "250 2.0.0 ok\r\n"
GO_ON = "354 go on\r\n"
NO = "550 5.1.1 no such user\r\n"
LATER = "451 4.2.1 later\r\n"
NO_RECIPIENTS = "554 5.5.1 no valid recipients\r\n"
BAD_SEQUENCE = "503 5.5.1 bad sequence\r\n"
NOT_YOU = "550 5.7.1 not you\r\n"
BUSY = "421 4.3.2 closing\r\n"


# -- the relay and its script --


@dataclasses.dataclass(frozen=True)
class Comes:
    """What has to come next, and nothing behind it."""

    text: str


@dataclasses.dataclass(frozen=True)
class Says:
    text: str


END = object()    # the other side hangs up without another word
NO_DOT = object()    # content comes, and the other side hangs up without a final dot
HANG_UP = object()
RESET_OR_END = object()    # RSET may come, and gets its reply, before the other side hangs up


def flight(*recipients, sender="zoe@example.org"):
    return "\r\n".join([f"MAIL FROM:<{sender}>", *(f"RCPT TO:<{recipient}>" for recipient in recipients), "DATA", ""])


class Relay:
    """Plays its script with the first session that comes. A step may also be a function, which is called."""

    def __init__(self, steps, features):
        said = "".join(f"250-{feature}\r\n" for feature in features) + "250 ENHANCEDSTATUSCODES\r\n"
        greeting = [Says("220 relay.example.org\r\n"), Comes("ehlo zope.example.org\r\n"), Says(f"250-relay\r\n{said}")]
        self._steps = [*greeting, *steps]
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._listener.settimeout(PATIENCE_S)
        self.port = self._listener.getsockname()[1]
        self._failure = None
        self._thread = threading.Thread(target=self._play, daemon=True)
        self._thread.start()

    def _play(self):
        try:
            connection, _ = self._listener.accept()
            with connection:
                connection.settimeout(PATIENCE_S)
                connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                for step in self._steps:
                    self._do(step, connection)
        except BaseException as failure:
            self._failure = failure
        finally:
            self._listener.close()

    def _do(self, step, connection):
        if isinstance(step, Comes):
            self._expect(step.text.encode(), connection)
        elif isinstance(step, Says):
            connection.sendall(step.text.encode())
        elif step is END:
            assert connection.recv(1000) == b""
        elif step is NO_DOT:
            came = b"".join(iter(lambda: connection.recv(1 << 16), b""))
            assert came.startswith(b"line 0\r\nline 1\r\n")
            assert b"\r\n.\r\n" not in came and b"MAIL" not in came
        elif step is RESET_OR_END:
            came = connection.recv(1000)
            assert came in (b"", b"RSET\r\n")
            if came:
                connection.sendall(OK.encode())
                assert connection.recv(1000) == b""
        elif step is HANG_UP:
            connection.shutdown(socket.SHUT_WR)
            while connection.recv(1000):
                pass
        else:
            step()

    def _expect(self, wanted, connection):
        came = b""
        while len(came) < len(wanted):
            piece = connection.recv(len(wanted) - len(came))
            assert piece, f"only {came!r} came of {wanted!r}"
            came += piece
        assert came == wanted
        connection.settimeout(QUIET_S)
        try:
            more = connection.recv(1000)
        except TimeoutError:
            more = b""
        finally:
            connection.settimeout(PATIENCE_S)
        assert not more, f"{more!r} came behind {came!r}"

    def end(self):
        """Raises what went wrong here."""
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive(), "the script did not come to its end"
        if self._failure:
            raise self._failure


def open_session(port, **fields):
    limits = {"timeout_s": PATIENCE_S, "data_timeout_s": PATIENCE_S}
    changed = {"smtp_port": port, "helo": "zope.example.org", **limits, **fields}
    wanted = dataclasses.replace(settings.defaults(), **changed)
    return Session("127.0.0.1", wanted, Credentials(wanted))


@contextmanager
def session_with(*steps, features=("PIPELINING",), **fields):
    """A session with a relay that plays these steps, and has played them all at the end."""
    relay = Relay(steps, features)
    session = None
    try:
        session = open_session(relay.port, **fields)
        yield session
    finally:
        if session:
            session.close()
        relay.end()


def mail(*recipients, sender="zoe@example.org"):
    return Envelope(sender, recipients)


def codes(replies):
    return {recipient: (reply.command, reply.code) for recipient, reply in replies.items()}


# -- what goes out when --


def test_an_envelope_goes_out_in_one_flight_before_any_reply():
    with session_with(
        Comes(flight(ANN, BOB)), Says("250 2.1.0 ok\r\n250 2.1.5 ok\r\n250 2.1.5 ok\r\n354 go on\r\n"),
        Comes(ON_THE_WIRE), Says("250 2.0.0 queued\r\n"), Comes("quit\r\n"), Says("221 bye\r\n"), END,
    ) as session:
        replies = session.offer(mail(ANN, BOB), 100)
        assert replies == {ANN: Reply("RCPT", 250, "2.1.5 ok"), BOB: Reply("RCPT", 250, "2.1.5 ok")}
        assert session.transmit(iter([CONTENT])) == Reply(".", 250, "2.0.0 queued")
        session.quit()


def test_the_flight_names_size_and_body_where_the_relay_takes_them():
    size = "MAIL FROM:<zoe@example.org> SIZE=123 BODY=8BITMIME\r\nRCPT TO:<ann@example.org>\r\nDATA\r\n"
    with session_with(Comes(size), Says(OK * 2 + GO_ON), features=("PIPELINING", "SIZE 1000", "8BITMIME")) as session:
        session.offer(mail(ANN), 123)


def test_the_next_flight_goes_out_right_behind_the_final_dot_before_its_reply():
    first, second, third = mail(ANN), mail(BOB, EVE), mail(EVE)
    with session_with(
        Comes(flight(ANN)), Says(OK * 2 + GO_ON),
        Comes(ON_THE_WIRE + flight(BOB, EVE)), Says("250 first\r\n"), Says(OK * 3 + GO_ON),
        Comes(ON_THE_WIRE + flight(EVE)), Says("250 second\r\n" + OK * 2 + GO_ON),
        Comes(ON_THE_WIRE), Says("250 third\r\n"), Comes("quit\r\n"), Says("221 bye\r\n"), END,
    ) as session:
        session.offer(first, 1)
        assert session.transmit(iter([CONTENT]), (second, 1)).text == "first"
        assert codes(session.offer(second, 1)) == {BOB: ("RCPT", 250), EVE: ("RCPT", 250)}
        assert session.transmit(iter([CONTENT]), (third, 1)).text == "second"
        session.offer(third, 1)
        assert session.transmit(iter([CONTENT])).text == "third"
        session.quit()


def test_the_next_flight_goes_out_behind_a_content_of_many_pieces_and_behind_that_of_none():
    first, second, third = mail(ANN), mail(BOB), mail(EVE)
    pieces = [b"line %d\n" % number for number in range(1000)]
    with session_with(
        Comes(flight(ANN)), Says(OK * 2 + GO_ON),
        Comes("".join(f"line {number}\r\n" for number in range(1000)) + ".\r\n" + flight(BOB)), Says(OK * 3 + GO_ON),
        Comes(".\r\n" + flight(EVE)), Says(OK * 3 + GO_ON),
    ) as session:
        session.offer(first, 1)
        session.transmit(iter(pieces), (second, 1))
        session.offer(second, 1)
        session.transmit(iter([]), (third, 1))
        assert codes(session.offer(third, 1)) == {EVE: ("RCPT", 250)}


@pytest.mark.parametrize(
    ("features", "pipelining"), [(("SIZE 1000000000",), True), (("PIPELINING", "SIZE 1000000000"), False)],
    ids=["not offered", "not wanted"],
)
def test_without_pipelining_each_command_waits_for_the_reply_before(features, pipelining):
    with session_with(
        Comes("MAIL FROM:<zoe@example.org> SIZE=1\r\n"), Says(OK), Comes(f"RCPT TO:<{ANN}>\r\n"), Says(OK),
        Comes(f"RCPT TO:<{BOB}>\r\n"), Says(NO), Comes("DATA\r\n"), Says(GO_ON), Comes(ON_THE_WIRE), Says(OK),
        Comes("MAIL FROM:<zoe@example.org> SIZE=2\r\n"), Says(OK), Comes(f"RCPT TO:<{EVE}>\r\n"), Says(OK),
        Comes("DATA\r\n"), Says(GO_ON), Comes(ON_THE_WIRE), Says(OK), Comes("quit\r\n"), Says("221 bye\r\n"), END,
        features=features, pipelining=pipelining,
    ) as session:
        second = mail(EVE)
        assert codes(session.offer(mail(ANN, BOB), 1)) == {ANN: ("RCPT", 250), BOB: ("RCPT", 550)}
        session.transmit(iter([CONTENT]), (second, 2))
        session.offer(second, 2)
        session.transmit(iter([CONTENT]))
        session.quit()


def test_replies_may_come_in_any_pieces():
    with session_with(
        Comes(flight(ANN, BOB)), *(Says(char) for char in OK + "250-one\r\n250-two\r\n250 three\r\n" + NO + GO_ON),
        Comes(ON_THE_WIRE), Says(OK),
    ) as session:
        replies = session.offer(mail(ANN, BOB), 1)
        assert replies == {ANN: Reply("RCPT", 250, "one two three"), BOB: Reply("RCPT", 550, "5.1.1 no such user")}
        session.transmit(iter([CONTENT]))


LONGEST_LINE = "250 " + "x" * (4096 - 6) + "\r\n"
MOST_LINES = "250-x\r\n" * 499 + "250 x\r\n"


def in_pieces(text):
    return [Says(text[begin : begin + 1000]) for begin in range(0, len(text), 1000)]


@pytest.mark.parametrize("cut", [lambda text: [Says(text)], in_pieces], ids=["in one piece", "in pieces"])
@pytest.mark.parametrize("reply", [LONGEST_LINE, MOST_LINES], ids=["a long line", "many lines"])
def test_a_reply_may_be_as_long_as_the_limit(reply, cut):
    with session_with(Comes(flight(ANN)), *cut(OK + reply + GO_ON), Comes(ON_THE_WIRE), Says(OK)) as session:
        assert codes(session.offer(mail(ANN), 1)) == {ANN: ("RCPT", 250)}
        session.transmit(iter([CONTENT]))


@pytest.mark.parametrize("cut", [lambda text: [Says(text)], in_pieces], ids=["in one piece", "in pieces"])
@pytest.mark.parametrize(
    ("reply", "reason"),
    [("250 x" + LONGEST_LINE[4:], "a reply line without end"), ("250-x\r\n" + MOST_LINES, "a reply without end")],
    ids=["a longer line", "more lines"],
)
def test_a_reply_that_is_longer_than_the_limit_breaks_the_session(reply, reason, cut):
    with session_with(Comes(flight(ANN)), *cut(OK + reply + GO_ON)) as session:
        with pytest.raises(SessionLost, match=reason):
            session.offer(mail(ANN), 1)


def test_an_envelope_that_nobody_can_be_told_of_does_not_go_out():
    with session_with(
        Comes(flight(ANN)), Says(OK * 2 + GO_ON), Comes(ON_THE_WIRE), Says(OK), Comes("RSET\r\n"), Says(OK),
    ) as session:
        strange = mail("ünal@example.org")
        session.offer(mail(ANN), 1)
        session.transmit(iter([CONTENT]), (strange, 1))
        assert codes(session.offer(strange, 1)) == {"ünal@example.org": ("RCPT", 553)}
        assert session.withdraw()


# -- whose reply it is --


@pytest.mark.parametrize("is_ahead", [False, True], ids=["first", "ahead"])
@pytest.mark.parametrize("refusal", [NO, LATER, "552 5.2.2 too many\r\n", "252 2.0.0 perhaps\r\n"])
def test_each_recipient_is_given_the_reply_to_its_own_command(refusal, is_ahead):
    code = int(refusal[:3])
    said = Says(OK + OK + refusal + OK + GO_ON)
    with offering(mail(ANN, BOB, EVE), said, is_ahead, Comes(ON_THE_WIRE), Says(OK)) as (session, envelope):
        assert codes(session.offer(envelope, 1)) == {ANN: ("RCPT", 250), BOB: ("RCPT", code), EVE: ("RCPT", 250)}
        assert session.transmit(iter([CONTENT])).code == 250


@contextmanager
def offering(envelope, said, is_ahead, *steps, **options):
    """A session and a mail whose flight is out if ``is_ahead``; ``said`` are the replies to it."""
    one = [said] if isinstance(said, Says) else said
    its_flight = flight(*envelope.recipients, sender=envelope.sender)
    if not is_ahead:
        with session_with(Comes(its_flight), *one, *steps, **options) as session:
            yield session, envelope
        return
    with session_with(
        Comes(flight("first@example.org")), Says(OK * 2 + GO_ON), Comes(ON_THE_WIRE + its_flight), Says(OK), *one,
        *steps, **options,
    ) as session:
        session.offer(mail("first@example.org"), 1)
        assert session.transmit(iter([CONTENT]), (envelope, 1)).code == 250
        yield session, envelope


@pytest.mark.parametrize("is_ahead", [False, True], ids=["first", "ahead"])
@pytest.mark.parametrize("dot", [NO_RECIPIENTS, OK, LATER, BAD_SEQUENCE])
def test_a_mail_that_nobody_gets_is_ended_by_a_lone_dot_where_data_was_taken_and_the_session_goes_on(dot, is_ahead):
    with offering(
        mail(ANN, BOB), Says(OK + NO + LATER + GO_ON), is_ahead, Comes(".\r\n"), Says(dot),
        Comes(flight(EVE)), Says(OK * 2 + GO_ON), Comes(ON_THE_WIRE), Says("250 eve's\r\n"),
    ) as (session, envelope):
        assert codes(session.offer(envelope, 1)) == {ANN: ("RCPT", 550), BOB: ("RCPT", 451)}
        assert session.withdraw()
        assert codes(session.offer(mail(EVE), 1)) == {EVE: ("RCPT", 250)}
        assert session.transmit(iter([CONTENT])).text == "eve's"


@pytest.mark.parametrize("is_ahead", [False, True], ids=["first", "ahead"])
@pytest.mark.parametrize("data", [NO_RECIPIENTS, BAD_SEQUENCE, LATER])
def test_a_mail_that_nobody_gets_is_reset_where_data_was_refused_and_the_session_goes_on(data, is_ahead):
    with offering(
        mail(ANN, BOB), Says(OK + NO + LATER + data), is_ahead, Comes("RSET\r\n"), Says(OK),
        Comes(flight(EVE)), Says(OK * 2 + GO_ON), Comes(ON_THE_WIRE), Says("250 eve's\r\n"),
    ) as (session, envelope):
        assert codes(session.offer(envelope, 1)) == {ANN: ("RCPT", 550), BOB: ("RCPT", 451)}
        assert session.withdraw()
        assert codes(session.offer(mail(EVE), 1)) == {EVE: ("RCPT", 250)}
        assert session.transmit(iter([CONTENT])).text == "eve's"


@pytest.mark.parametrize("is_ahead", [False, True], ids=["first", "ahead"])
@pytest.mark.parametrize("refusal", [LATER, NOT_YOU, "530 5.7.0 login wanted\r\n", "552 5.3.4 too big\r\n"])
@pytest.mark.parametrize("others", [BAD_SEQUENCE * 2 + BAD_SEQUENCE, NO_RECIPIENTS * 3, OK + NO + LATER])
def test_a_refused_sender_is_a_refusal_of_all_whatever_is_said_to_the_other_commands(others, refusal, is_ahead):
    with offering(
        mail(ANN, BOB), Says(refusal + others), is_ahead, Comes("RSET\r\n"), Says(OK), Comes(flight(EVE)),
        Says(OK * 2 + GO_ON),
    ) as (session, envelope):
        assert codes(session.offer(envelope, 1)) == dict.fromkeys((ANN, BOB), ("MAIL", int(refusal[:3])))
        assert session.withdraw()
        assert codes(session.offer(mail(EVE), 1)) == {EVE: ("RCPT", 250)}


@pytest.mark.parametrize("is_ahead", [False, True], ids=["first", "ahead"])
@pytest.mark.parametrize("recipients", [BAD_SEQUENCE * 2, OK * 2, OK + NO])
def test_a_refused_sender_is_a_refusal_of_all_although_the_relay_takes_the_data_command(recipients, is_ahead):
    with offering(
        mail(ANN, BOB), Says(NOT_YOU + recipients + GO_ON), is_ahead, Comes(".\r\n"), Says(NO_RECIPIENTS),
        Comes(flight(EVE)), Says(OK * 2 + GO_ON),
    ) as (session, envelope):
        assert codes(session.offer(envelope, 1)) == dict.fromkeys((ANN, BOB), ("MAIL", 550))
        assert session.withdraw()
        assert codes(session.offer(mail(EVE), 1)) == {EVE: ("RCPT", 250)}


@pytest.mark.parametrize("is_ahead", [False, True], ids=["first", "ahead"])
@pytest.mark.parametrize("refusal", [LATER, "550 5.7.1 no\r\n"])
def test_a_refusal_of_data_is_that_of_those_who_were_accepted_and_the_mail_is_reset(refusal, is_ahead):
    with offering(
        mail(ANN, BOB), Says(OK + OK + NO + refusal), is_ahead, Comes("RSET\r\n"), Says(OK),
        Comes(flight(EVE)), Says(OK * 2 + GO_ON), Comes(ON_THE_WIRE), Says(OK),
    ) as (session, envelope):
        assert codes(session.offer(envelope, 1)) == {ANN: ("RCPT", 250), BOB: ("RCPT", 550)}
        following = mail(EVE)
        reply = session.transmit(iter([CONTENT]), (following, 1))
        assert (reply.command, reply.code) == ("DATA", int(refusal[:3]))
        assert session.withdraw()
        session.offer(following, 1)    # it had not gone ahead
        assert session.transmit(iter([CONTENT])).code == 250


@pytest.mark.parametrize("answer", ["250 2.0.0 fine\r\n", "355 what\r\n"])
@pytest.mark.parametrize("pipelining", [True, False])
def test_a_data_command_that_is_answered_with_neither_354_nor_a_refusal_breaks_the_session(pipelining, answer):
    commands = (
        [Comes(flight(ANN)), Says(OK * 2 + answer)]
        if pipelining
        else [Comes("MAIL FROM:<zoe@example.org>\r\n"), Says(OK), Comes(f"RCPT TO:<{ANN}>\r\n"), Says(OK),
              Comes("DATA\r\n"), Says(answer)]
    )
    with session_with(*commands, END, pipelining=pipelining) as session:
        with pytest.raises(SessionLost) as lost:
            session.offer(mail(ANN), 1)
            session.transmit(iter([CONTENT]))
        assert not lost.value.after_content
        session.close()


@pytest.mark.parametrize("is_ahead", [False, True], ids=["first", "ahead"])
def test_503_to_the_sender_is_not_believed(is_ahead):
    with offering(mail(ANN, BOB), Says(BAD_SEQUENCE * 4), is_ahead) as (session, envelope):
        with pytest.raises(SessionLost) as lost:
            session.offer(envelope, 1)
        assert lost.value.replies == {}


# -- sessions that end in a flight --


ENDS = {"hang up": [HANG_UP], "421": [Says(BUSY), HANG_UP], "garbage": [Says("what?\r\n"), HANG_UP]}


@pytest.mark.parametrize("is_ahead", [False, True], ids=["first", "ahead"])
@pytest.mark.parametrize("end", ENDS)
def test_of_a_flight_in_which_the_session_breaks_nothing_is_believed(end, is_ahead):
    with offering(mail(ANN, BOB, EVE), [Says(OK + NO + OK), *ENDS[end]], is_ahead) as (session, envelope):
        with pytest.raises(SessionLost) as lost:
            session.offer(envelope, 1)
        session.close()
    assert (lost.value.replies, lost.value.recipient, lost.value.after_content) == ({}, None, False)


@pytest.mark.parametrize("end", ENDS)
def test_without_pipelining_what_was_said_of_recipients_before_the_session_broke_counts(end):
    with session_with(
        Comes("MAIL FROM:<zoe@example.org>\r\n"), Says(OK), Comes(f"RCPT TO:<{ANN}>\r\n"), Says(NO),
        Comes(f"RCPT TO:<{BOB}>\r\n"), Says(OK), Comes(f"RCPT TO:<{EVE}>\r\n"), *ENDS[end], pipelining=False,
    ) as session:
        with pytest.raises(SessionLost) as lost:
            session.offer(mail(ANN, BOB, EVE), 1)
        session.close()
    wanted = {ANN: 550, BOB: 250} | ({EVE: 421} if end == "421" else {})
    assert {recipient: reply.code for recipient, reply in lost.value.replies.items()} == wanted
    assert (lost.value.recipient, lost.value.after_content) == (EVE, False)


@pytest.mark.parametrize("is_ahead", [False, True], ids=["first", "ahead"])
@pytest.mark.parametrize("said", [OK + NO, OK + NO + OK], ids=["behind a recipient", "behind all recipients"])
def test_a_session_that_breaks_in_a_flight_breaks_before_the_content(said, is_ahead):
    with offering(mail(ANN, BOB), [Says(said), HANG_UP], is_ahead) as (session, envelope):
        with pytest.raises(SessionLost) as lost:
            session.offer(envelope, 1)
        assert not lost.value.after_content
        session.close()


@pytest.mark.parametrize("is_ahead", [False, True], ids=["first", "ahead"])
def test_421_to_the_sender_is_a_reply_for_all(is_ahead):
    with offering(mail(ANN, BOB), [Says(BUSY), HANG_UP], is_ahead) as (session, envelope):
        assert codes(session.offer(envelope, 1)) == dict.fromkeys((ANN, BOB), ("MAIL", 421))
        session.close()


def test_a_session_that_breaks_behind_the_final_dot_says_nothing_of_the_mail_whose_flight_is_ahead():
    following = mail(BOB)
    with session_with(
        Comes(flight(ANN)), Says(OK * 2 + GO_ON), Comes(ON_THE_WIRE + flight(BOB)), HANG_UP,
    ) as session:
        session.offer(mail(ANN), 1)
        with pytest.raises(SessionLost) as lost:
            session.transmit(iter([CONTENT]), (following, 1))
        assert lost.value.after_content
        session.close()


def test_a_refused_content_says_nothing_of_the_mail_whose_flight_is_ahead():
    following = mail(BOB)
    with session_with(
        Comes(flight(ANN)), Says(OK * 2 + GO_ON), Comes(ON_THE_WIRE + flight(BOB)),
        Says("554 5.6.0 spam\r\n" + OK * 2 + GO_ON), Comes(ON_THE_WIRE), Says(OK),
    ) as session:
        session.offer(mail(ANN), 1)
        assert session.transmit(iter([CONTENT]), (following, 1)).code == 554
        assert codes(session.offer(following, 1)) == {BOB: ("RCPT", 250)}
        assert session.transmit(iter([CONTENT])).code == 250


def test_a_content_that_cannot_be_read_takes_nothing_ahead_and_has_no_end():
    def content():
        yield from LINES
        raise OSError("Input/output error")

    with session_with(Comes(flight(ANN)), Says(OK * 2 + GO_ON), NO_DOT) as session:
        session.offer(mail(ANN), 1)
        with pytest.raises(SessionLost) as lost:
            session.transmit(content(), (mail(BOB), 1))
        assert not lost.value.after_content
        session.close()


# -- replies that are too many --


SURPLUS = [OK, NO, LATER, GO_ON, NO_RECIPIENTS, BAD_SEQUENCE]
RIGHT = [    # to sender, two recipients and DATA
    (OK, OK, OK, GO_ON), (OK, OK, NO, GO_ON), (OK, NO, OK, GO_ON), (OK, LATER, NO, GO_ON), (OK, NO, NO, NO_RECIPIENTS),
    (OK, NO, LATER, BAD_SEQUENCE), (OK, OK, NO, LATER), (OK, OK, OK, NO),
    (LATER, BAD_SEQUENCE, BAD_SEQUENCE, BAD_SEQUENCE),
    (NO, BAD_SEQUENCE, BAD_SEQUENCE, NO_RECIPIENTS), (NO, BAD_SEQUENCE, BAD_SEQUENCE, GO_ON), (NO, OK, OK, GO_ON),
]


class Answering:
    """A relay with PIPELINING that answers each line of a session with the next of its sayings, then with 250."""

    def __init__(self, *sayings):
        self._sayings = list(sayings)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port = self._listener.getsockname()[1]
        self._thread = threading.Thread(target=self._serve, daemon=True)
        self._thread.start()

    def _serve(self):
        with suppress(OSError):    # when the other side has had enough
            self._converse()

    def _converse(self):
        with self._listener, self._listener.accept()[0] as connection, connection.makefile("rb") as lines:
            connection.settimeout(PATIENCE_S)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            connection.sendall(b"220 relay.example.org\r\n")
            lines.readline()
            connection.sendall(b"250-relay\r\n250 PIPELINING\r\n")
            for saying in self._sayings:
                if not lines.readline():
                    return
                connection.sendall(saying.encode())
            while lines.readline():
                connection.sendall(OK.encode())

    def end(self):
        self._thread.join(PATIENCE_S)
        assert not self._thread.is_alive()


def truth(sender, ann, bob, data):
    """What each recipient was told, as codes."""
    said = [int(reply[:3]) for reply in (sender, ann, bob)]
    return {ANN: said[1], BOB: said[2]} if said[0] < 300 else {ANN: said[0], BOB: said[0]}


@pytest.mark.parametrize("is_ahead", [False, True], ids=["first", "ahead"])
@pytest.mark.parametrize("place", range(4), ids=["before all", "behind the sender", "behind ann", "behind bob"])
@pytest.mark.parametrize("surplus", SURPLUS, ids=lambda reply: reply[:3])
def test_with_a_surplus_reply_in_a_flight_nobody_is_given_the_reply_of_another(surplus, place, is_ahead):
    for right in RIGHT:
        sayings = list(right)
        if is_ahead and not place:
            sayings = [OK + surplus, *sayings]
        else:
            sayings[place] = surplus + sayings[place]
            sayings = [OK, *sayings] if is_ahead else sayings
        if is_ahead:
            before = [OK, OK, GO_ON, *([""] * (ON_THE_WIRE.count("\n") - 1))]
            sayings = before + sayings
        relay = Answering(*sayings)
        session = open_session(relay.port)
        envelope = mail(ANN, BOB)
        try:
            if is_ahead:
                session.offer(mail(EVE), 1)
                assert session.transmit(iter([CONTENT]), (envelope, 1)).code == 250
            told = session.offer(envelope, 1)
            assert {recipient: reply.code for recipient, reply in told.items()} == truth(*right), right
        except SessionLost as lost:
            assert lost.replies == {}, right
        finally:
            session.close()
            relay.end()


@pytest.mark.parametrize("is_ahead", [False, True], ids=["first", "ahead"])
@pytest.mark.parametrize("surplus", SURPLUS, ids=lambda reply: reply[:3])
def test_with_a_surplus_reply_behind_354_no_content_is_ended(surplus, is_ahead):
    with offering(mail(ANN, BOB), Says(OK * 3 + GO_ON + surplus), is_ahead, END) as (session, envelope):
        session.offer(envelope, 1)
        with pytest.raises(SessionLost) as lost:
            session.transmit(iter([CONTENT]), (mail(EVE), 1))
        assert not lost.value.after_content
        session.close()


@pytest.mark.parametrize("is_ahead", [False, True], ids=["first", "ahead"])
@pytest.mark.parametrize("surplus", SURPLUS, ids=lambda reply: reply[:3])
def test_with_a_surplus_reply_behind_354_no_refusal_is_believed(surplus, is_ahead):
    with offering(mail(ANN, BOB), Says(OK * 2 + NO + GO_ON + surplus), is_ahead, END) as (session, envelope):
        with pytest.raises(SessionLost) as lost:
            session.offer(envelope, 1)
        assert lost.value.replies == {}
        session.close()


@pytest.mark.parametrize("is_ahead", [False, True], ids=["first", "ahead"])
@pytest.mark.parametrize("surplus", SURPLUS, ids=lambda reply: reply[:3])
@pytest.mark.parametrize("data", [NO_RECIPIENTS, LATER])
def test_with_a_surplus_reply_behind_a_refusal_of_data_nobody_is_given_the_reply_of_another(data, surplus, is_ahead):
    with offering(
        mail(ANN, BOB), Says(OK + NO + NO + data + surplus), is_ahead, RESET_OR_END,
    ) as (session, envelope):
        try:
            told = session.offer(envelope, 1)
            assert surplus == OK    # which is what RSET gets, so that the refusals are true
            assert codes(told) == dict.fromkeys((ANN, BOB), ("RCPT", 550))
        except SessionLost as lost:
            assert lost.replies == {}
        session.close()


@pytest.mark.parametrize("surplus", SURPLUS, ids=lambda reply: reply[:3])
def test_with_a_surplus_reply_to_rset_the_session_is_not_used_again(surplus):
    with session_with(
        Comes(flight(ANN)), Says(OK + NO + NO_RECIPIENTS), Comes("RSET\r\n"), Says(OK + surplus), END,
    ) as session:
        with pytest.raises(SessionLost) as lost:
            session.offer(mail(ANN), 1)
        assert lost.value.replies == {}
        session.close()


@pytest.mark.parametrize("surplus", SURPLUS, ids=lambda reply: reply[:3])
def test_with_a_surplus_reply_behind_the_final_one_no_other_mail_is_offered(surplus):
    with session_with(
        Comes(flight(ANN)), Says(OK * 2 + GO_ON), Comes(ON_THE_WIRE), Says("250 2.0.0 queued\r\n" + surplus), END,
    ) as session:
        session.offer(mail(ANN), 1)
        assert session.transmit(iter([CONTENT])).text == "2.0.0 queued"
        with pytest.raises(SessionLost):
            session.offer(mail(BOB), 1)
        session.close()


@pytest.mark.parametrize("surplus", SURPLUS, ids=lambda reply: reply[:3])
def test_with_a_surplus_reply_to_a_lone_dot_no_other_mail_is_offered(surplus):
    with session_with(
        Comes(flight(ANN)), Says(OK + NO + GO_ON), Comes(".\r\n"), Says(NO_RECIPIENTS + surplus), END,
    ) as session:
        session.offer(mail(ANN), 1)
        session.withdraw()
        with pytest.raises(SessionLost):
            session.offer(mail(BOB), 1)
        session.close()


@pytest.mark.parametrize(
    "said", [GO_ON, NO_RECIPIENTS, BUSY, "25", "what?\r\n", ""], ids=["354", "554", "421", "half", "garbage", "nothing"]
)
def test_where_rset_is_not_answered_as_it_should_be_no_refusal_is_believed(said):
    with session_with(
        Comes(flight(ANN)), Says(OK + NO + NO_RECIPIENTS), Comes("RSET\r\n"), Says(said), HANG_UP,
    ) as session:
        with pytest.raises(SessionLost) as lost:
            session.offer(mail(ANN), 1)
        assert lost.value.replies == {}
        session.close()


# -- withdrawing a mail --


def test_a_mail_withdrawn_after_the_plain_dialogue_is_reset():
    with session_with(
        Comes("MAIL FROM:<zoe@example.org>\r\n"), Says(OK), Comes(f"RCPT TO:<{ANN}>\r\n"), Says(NO),
        Comes("RSET\r\n"), Says(OK), Comes("MAIL FROM:<zoe@example.org>\r\n"), Says(OK),
        Comes(f"RCPT TO:<{BOB}>\r\n"), Says(OK), pipelining=False,
    ) as session:
        session.offer(mail(ANN), 1)
        assert session.withdraw()
        assert codes(session.offer(mail(BOB), 1)) == {BOB: ("RCPT", 250)}


@pytest.mark.parametrize("steps", [[Says("502 what\r\n")], [Says(BUSY)], [HANG_UP]], ids=["502", "421", "hang up"])
def test_a_session_that_cannot_be_reset_is_no_longer_of_use(steps):
    with session_with(
        Comes("MAIL FROM:<zoe@example.org>\r\n"), Says(OK), Comes(f"RCPT TO:<{ANN}>\r\n"), Says(NO),
        Comes("RSET\r\n"), *steps, pipelining=False,
    ) as session:
        session.offer(mail(ANN), 1)
        assert not session.withdraw()
        session.close()


@pytest.mark.parametrize("steps", [[Says(BUSY)], [HANG_UP], [Says("what\r\n")]], ids=["421", "hang up", "garbage"])
def test_a_session_that_ends_at_a_lone_dot_is_no_longer_of_use(steps):
    with session_with(Comes(flight(ANN)), Says(OK + NO + GO_ON), Comes(".\r\n"), *steps) as session:
        session.offer(mail(ANN), 1)
        assert not session.withdraw()
        session.close()


def test_a_mail_is_withdrawn_once_by_a_lone_dot_and_then_reset():
    with session_with(
        Comes(flight(ANN)), Says(OK + NO + GO_ON), Comes(".\r\n"), Says(NO_RECIPIENTS), Comes("RSET\r\n"), Says(OK),
    ) as session:
        session.offer(mail(ANN), 1)
        assert session.withdraw()
        assert session.withdraw()


# -- the end --


def test_quit_hangs_up_without_a_word_where_an_envelope_is_ahead():
    with session_with(
        Comes(flight(ANN)), Says(OK * 2 + GO_ON), Comes(ON_THE_WIRE + flight(BOB)), Says(OK), END,
    ) as session:
        session.offer(mail(ANN), 1)
        session.transmit(iter([CONTENT]), (mail(BOB), 1))
        session.quit()


def test_quit_hangs_up_without_a_word_where_the_relay_waits_for_a_content():
    with session_with(Comes(flight(ANN)), Says(OK * 2 + GO_ON), END) as session:
        session.offer(mail(ANN), 1)
        session.quit()


def test_quit_is_said_after_a_mail_that_was_withdrawn():
    with session_with(
        Comes(flight(ANN)), Says(OK + NO + GO_ON), Comes(".\r\n"), Says(NO_RECIPIENTS), Comes("quit\r\n"),
        Says("221 bye\r\n"), END,
    ) as session:
        session.offer(mail(ANN), 1)
        session.withdraw()
        session.quit()


@pytest.mark.parametrize("steps", [[HANG_UP], [Says("what\r\n"), END], [Says("221 bye\r\n250 more\r\n"), END]])
def test_quit_never_fails(steps):
    with session_with(Comes("quit\r\n"), *steps) as session:
        session.quit()
        session.quit()


# -- being cut --


def test_a_session_that_is_cut_in_the_content_sends_no_final_dot_and_nothing_ahead():
    def content():
        yield from LINES
        session.cut()
        yield b"the end\n"

    with session_with(Comes(flight(ANN)), Says(OK * 2 + GO_ON), NO_DOT) as session:
        session.offer(mail(ANN), 1)
        with pytest.raises(SessionLost) as lost:
            session.transmit(content(), (mail(BOB), 1))
        assert not lost.value.after_content
        session.close()


def test_a_session_that_is_cut_right_before_the_final_dot_does_not_send_it():
    with session_with(Comes(flight(ANN)), Says(OK * 2 + GO_ON), END) as session:
        session.offer(mail(ANN), 1)
        session.cut()
        with pytest.raises(SessionLost) as lost:
            session.transmit(iter([CONTENT]))
        assert not lost.value.after_content
        session.close()


@pytest.mark.parametrize("ahead", [None, mail(BOB)], ids=["alone", "with an envelope ahead"])
def test_a_session_that_is_cut_behind_the_final_dot_hears_its_reply(ahead):
    with session_with(
        Comes(flight(ANN)), Says(OK * 2 + GO_ON), Comes(ON_THE_WIRE + (flight(BOB) if ahead else "")),
        lambda: session.cut(), Says("250 2.0.0 queued\r\n"), END,
    ) as session:
        session.offer(mail(ANN), 1)
        assert session.transmit(iter([CONTENT]), ahead and (ahead, 1)) == Reply(".", 250, "2.0.0 queued")
        session.close()


@pytest.mark.parametrize("pipelining", [True, False])
def test_a_session_that_is_cut_while_an_envelope_waits_for_its_reply_is_lost_at_once(pipelining):
    first = flight(ANN) if pipelining else "MAIL FROM:<zoe@example.org>\r\n"
    with session_with(Comes(first), lambda: session.cut(), END, pipelining=pipelining, timeout_s=1000.0) as session:
        with pytest.raises(SessionLost) as lost:
            session.offer(mail(ANN), 1)
        assert not lost.value.after_content
        session.close()


def test_a_session_that_is_cut_while_a_flight_ahead_waits_for_its_reply_is_lost_at_once():
    following = mail(BOB)
    with session_with(
        Comes(flight(ANN)), Says(OK * 2 + GO_ON), Comes(ON_THE_WIRE + flight(BOB)), Says(OK), timeout_s=1000.0,
    ) as session:
        session.offer(mail(ANN), 1)
        session.transmit(iter([CONTENT]), (following, 1))
        session.cut()
        with pytest.raises(SessionLost) as lost:
            session.offer(following, 1)
        assert (lost.value.replies, lost.value.after_content) == ({}, False)


def test_cutting_a_session_that_is_closed_does_nothing():
    with session_with(END) as session:
        session.close()
        session.cut()


# -- limits of time --


def test_the_longest_limit_that_the_settings_allow_can_be_waited_for():
    year_s = 366 * 24 * 3600.0
    with session_with(
        Comes(flight(ANN)), Says(OK * 2 + GO_ON), Comes(ON_THE_WIRE), Says(OK), timeout_s=year_s, data_timeout_s=year_s,
    ) as session:
        assert codes(session.offer(mail(ANN), 1)) == {ANN: ("RCPT", 250)}
        assert session.transmit(iter([CONTENT])).code == 250


# -- anything a relay may answer --


class Improvised:
    """What a relay answers to each of some mails, by chance, and the same each time a mail is offered."""

    def __init__(self, seed):
        choose = random.Random(seed)
        self.mails = []
        for number in range(choose.randint(4, 10)):
            recipients = tuple(f"r{number}-{each}@example.org" for each in range(choose.randint(1, 5)))
            self.mails.append(Envelope(f"m{number}@example.org", recipients))
        good_sender = ["250 2.1.0 ok"] * 8 + ["252 hm"]
        self._sender = {
            each.sender: choose.choice([*good_sender, LATER[:-2], NO[:-2], "552 5.3.4 too big", "421 4.3.2 no", None])
            for each in self.mails
        }
        pool = choose.choice([["250 2.1.5 ok"], ["250 2.1.5 ok", NO[:-2], LATER[:-2]], [NO[:-2], LATER[:-2]]])
        rare = ["250-so\r\n250 fine", "251 moved", "552 5.5.3 too many", "354 what", "421 4.3.2 no", None]
        self._recipient = {
            recipient: choose.choice(rare) if choose.random() < 0.05 else choose.choice(pool)
            for each in self.mails for recipient in each.recipients
        }
        refused = [LATER[:-2], NO[:-2], "250 what", "421 4.3.2 no", None]
        self._data = {
            each.sender: choose.choice(refused) if choose.random() < 0.25 else "354 go on" for each in self.mails
        }
        out_of_place = ["354 go on", NO_RECIPIENTS[:-2], BAD_SEQUENCE[:-2], LATER[:-2]]
        self._data_for_nobody = {each.sender: choose.choice(out_of_place) for each in self.mails}
        self._out_of_place = {
            recipient: choose.choice([BAD_SEQUENCE[:-2], NO[:-2], "250 ok"]) for recipient in self._recipient
        }
        ends = ["250 2.0.0 queued"] * 6 + [LATER[:-2], "554 5.6.0 spam", "421 4.3.2 no", None]
        self._end = {each.sender: choose.choice(ends) for each in self.mails}
        ends = [NO_RECIPIENTS[:-2], "250 ok", LATER[:-2]]
        self._end_for_nobody = {each.sender: choose.choice(ends) for each in self.mails}
        self._pieces = random.Random(seed)
        self.taken = []    # (sender, recipients) of what got a final 250

    def serve(self, connection):
        """One session."""
        with connection, connection.makefile("rb") as lines:
            connection.settimeout(PATIENCE_S)
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._say(connection, "220 relay.example.org")
            sender, recipients, is_heard = None, [], False
            while line := lines.readline().decode().rstrip("\r\n"):
                verb, _, argument = line.partition(":<")
                verb = verb.upper()
                argument = argument.partition(">")[0]
                if verb.startswith("EHLO"):
                    said = "250-relay\r\n250 PIPELINING"
                elif verb == "MAIL FROM":
                    sender, recipients, said = argument, [], self._sender[argument]
                    is_heard = said is not None and said.startswith("2")
                elif verb == "RCPT TO":
                    said = self._recipient[argument] if is_heard else self._out_of_place[argument]
                    if is_heard and said is not None and said.startswith("2"):
                        recipients.append(argument)
                elif verb == "DATA":
                    said = (self._data if recipients else self._data_for_nobody)[sender]
                    if said is not None and said.startswith("354"):
                        self._say(connection, said)
                        while (text := lines.readline()) != b".\r\n":
                            if not text:
                                return
                        said = (self._end if recipients else self._end_for_nobody)[sender]
                        if recipients and said is not None and said.startswith("250"):
                            self.taken.append((sender, tuple(recipients)))
                elif verb == "QUIT":
                    said = "221 bye"
                else:
                    said = "250 reset"
                if said is not None:
                    self._say(connection, said)
                if said is None or said.startswith(("421", "221")):
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(65536):
                        pass
                    return

    def _say(self, connection, text):
        text = text.encode() + b"\r\n"
        border = self._pieces.randint(0, len(text))
        for piece in (text[:border], text[border:]):
            connection.sendall(piece)


def results_of(improvised, pipelining):
    """What a sender of mails hears of each recipient; a text where the session was lost."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def accept():
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                threading.Thread(target=serve_quietly, args=(connection,), daemon=True).start()

        def serve_quietly(connection):
            with suppress(OSError):
                improvised.serve(connection)

        threading.Thread(target=accept, daemon=True).start()
        results, session = {}, None
        following = [*improvised.mails[1:], None]
        for envelope, ahead in zip(improvised.mails, following):
            if session is None:
                session = open_session(listener.getsockname()[1], pipelining=pipelining)
            told, is_usable = carry(session, envelope, ahead)
            results.update({(envelope.sender, recipient): told[recipient] for recipient in envelope.recipients})
            if not is_usable:
                session.close()
                session = None
        if session:
            session.quit()
        listener.shutdown(socket.SHUT_RDWR)
    return results


def carry(session, envelope, ahead):
    try:
        told = session.offer(envelope, 1)
        accepted = [recipient for recipient, reply in told.items() if 200 <= reply.code < 300]
        reply = None
        if accepted:
            reply = session.transmit(iter([CONTENT]), ahead and (ahead, 1))
            if (reply.command, reply.code) == ("DATA", 421):    # in a flight nothing is believed then
                raise SessionLost(str(reply))
            told |= dict.fromkeys(accepted, reply)
        is_usable = not any(reply.code == 421 for reply in told.values())
        if is_usable and (reply is None or reply.command == "DATA"):
            is_usable = session.withdraw()
        return told, is_usable
    except SessionLost as lost:
        return dict.fromkeys(envelope.recipients, f"lost, {lost.after_content=}"), False


@pytest.mark.parametrize("first", range(0, 400, 50))
def test_whatever_a_relay_answers_each_recipient_hears_the_same_with_and_without_pipelining(first):
    for seed in range(first, first + 50):
        plain, pipelined = Improvised(seed), Improvised(seed)
        assert results_of(pipelined, True) == results_of(plain, False), seed
        assert pipelined.taken == plain.taken, seed


def test_a_relay_that_cannot_be_used_leaves_no_session():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refuse():
            with listener.accept()[0] as connection:
                connection.sendall(b"554 5.3.2 no service here\r\n")

        thread = threading.Thread(target=refuse, daemon=True)
        thread.start()
        with pytest.raises(RelayUnavailable, match="554 5.3.2 no service here"):
            open_session(listener.getsockname()[1])
        thread.join(PATIENCE_S)

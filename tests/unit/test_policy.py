import pytest

from maildrop.policy import (
    Outcome, Reply, expired, has_expired, is_about_the_relay, late_attempt, next_attempt, outcome_of,
)

LONGEST_S = 4 * 3600
COMMANDS = ["MAIL", "RCPT", "DATA", "."]


@pytest.mark.parametrize("command", ["MAIL", "RCPT", "."])
@pytest.mark.parametrize("code", [200, 250, 251, 252, 299])
def test_a_reply_of_2yz_is_a_success(command, code):
    assert outcome_of(Reply(command, code, "ok")) is Outcome.DELIVERED


@pytest.mark.parametrize("code", [200, 250, 299])
def test_a_success_before_the_content_was_sent_delivers_nothing(code):
    assert outcome_of(Reply("DATA", code, "ok")) is Outcome.DEFERRED


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("code", [400, 421, 450, 451, 452, 454, 499])
def test_a_reply_of_4yz_is_for_later(command, code):
    assert outcome_of(Reply(command, code, "later")) is Outcome.DEFERRED


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("code", [500, 504, 521, 550, 551, 553, 554, 599])
def test_a_reply_of_5yz_is_for_good(command, code):
    assert outcome_of(Reply(command, code, "no")) is Outcome.FAILED


def test_552_to_a_recipient_says_too_many_of_them_and_is_for_later():
    assert outcome_of(Reply("RCPT", 552, "too many recipients")) is Outcome.DEFERRED


@pytest.mark.parametrize("command", ["MAIL", "DATA", "."])
def test_552_to_anything_else_is_for_good(command):
    assert outcome_of(Reply(command, 552, "too large")) is Outcome.FAILED


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize("code", [-1, 0, 1, 99, 100, 199, 300, 354, 399, 600, 999, 5500])
def test_garbage_a_lost_session_and_codes_that_end_no_command_are_for_later(command, code):
    assert outcome_of(Reply(command, code, "?")) is Outcome.DEFERRED


@pytest.mark.parametrize("code", [421, 530, 534, 535, 538])
def test_a_refusal_of_the_session_at_mail_is_about_the_relay(code):
    assert is_about_the_relay(Reply("MAIL", code, "no"))


@pytest.mark.parametrize("code", [0, 250, 450, 451, 500, 550, 552, 553, 554])
def test_any_other_reply_to_mail_is_about_this_mail(code):
    assert not is_about_the_relay(Reply("MAIL", code, "no"))


@pytest.mark.parametrize("command", ["RCPT", "DATA", "."])
@pytest.mark.parametrize("code", [421, 530, 535])
def test_a_reply_behind_mail_is_not_about_the_relay(command, code):
    assert not is_about_the_relay(Reply(command, code, "no"))


def test_a_reply_is_written_as_code_and_text():
    assert str(Reply("RCPT", 550, "5.1.1 no such user")) == "550 5.1.1 no such user"


def test_no_reply_is_written_without_a_code():
    assert str(Reply("RCPT", 0, "Connection closed")) == "Connection closed"


# -- when to try again, and when to give up --


def test_a_deferred_recipient_is_tried_again_after_the_retry_time():
    assert next_attempt(1000.5, 1, 300, LONGEST_S) == 1300.5


def test_each_attempt_waits_twice_as_long_as_the_one_before():
    waits = [next_attempt(0, attempts, 300, LONGEST_S) for attempts in range(1, 7)]
    assert waits == [300, 600, 1200, 2400, 4800, 9600]


def test_no_attempt_waits_longer_than_the_limit_however_many_there_were():
    for attempts in (7, 8, 31, 32, 1000, 999_999):
        assert next_attempt(1000, attempts, 300, LONGEST_S) == 1000 + LONGEST_S


@pytest.mark.parametrize("retry_s", [0, 0.001, 1, 14400])
def test_no_retry_time_makes_it_come_later_than_the_limit_or_before_now(retry_s):
    for attempts in (0, 1, 5, 50, 999_999):
        assert 1000 <= next_attempt(1000, attempts, retry_s, LONGEST_S) <= 1000 + LONGEST_S


def test_without_a_retry_time_every_attempt_is_at_once():
    assert {next_attempt(1000, attempts, 0, LONGEST_S) for attempts in (1, 2, 50)} == {1000}


def test_a_mail_the_relay_may_have_waits_eight_times_as_long_up_to_the_same_limit():
    assert late_attempt(1000.5, 1, 300, LONGEST_S) == 1000.5 + 8 * 300
    assert late_attempt(0, 2, 300, LONGEST_S) == 8 * next_attempt(0, 2, 300, LONGEST_S)
    assert late_attempt(0, 4, 300, LONGEST_S) == late_attempt(0, 999_999, 300, LONGEST_S) == LONGEST_S


def test_a_mail_has_expired_when_it_is_older_than_it_may_become():
    assert not has_expired(1000 + 432000, 1000, 432000)
    assert has_expired(1000.001 + 432000, 1000, 432000)


def test_a_mail_from_the_future_has_not_expired():
    assert not has_expired(1000, 5000, 0)


@pytest.mark.parametrize(
    "last", [Reply("RCPT", 451, "4.3.0 later"), Reply(".", 0, "timed out"), Reply("RCPT", 552, "full")]
)
def test_an_expired_deferral_is_a_failure_that_tells_the_last_reply(last):
    reply = expired(last)
    assert outcome_of(last) is Outcome.DEFERRED
    assert outcome_of(reply) is Outcome.FAILED
    assert reply.command == last.command
    assert str(reply) == f"554 5.4.7 delivery time expired; last reply: {last}"

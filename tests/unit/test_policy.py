import pytest

from maildrop.policy import Outcome, Reply, is_about_the_relay, next_attempt, outcome_of

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


def test_a_deferred_recipient_is_tried_again_after_the_retry_time():
    assert next_attempt(1000.5, 300) == 1300.5

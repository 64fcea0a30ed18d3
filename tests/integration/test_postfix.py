"""The real daemon with a real Postfix that wants STARTTLS and AUTH."""

import re
from pathlib import Path

import pytest

from support.certificates import write_authority
from support.daemon import CHECKOUT, MaildropDaemon
from support.postfix import Postfix

SAMPLE = (CHECKOUT / "SAMPLE_MAIL.txt").read_bytes()
SAMPLE_MESSAGE = SAMPLE.split(b"\n", 2)[2]
ANN, BOB = "ann@example.org", "bob@example.org"


@pytest.fixture
def daemon(tmp_path, postfix):
    """A daemon that knows the login, not yet started."""
    login = {"MAILDROP_LOGIN": postfix.login, "MAILDROP_PASSWORD": postfix.password}
    return MaildropDaemon(
        tmp_path, postfix.port, MAILDROP_TLS=2, MAILDROP_TLS_CAFILE=write_authority(tmp_path), **login
    )


def run_until_delivered(daemon: MaildropDaemon, postfix: Postfix, mails: int) -> dict[str, bytes]:
    """What is in the mailbox when so many mails are there: the message for each recipient, without trace fields."""
    with daemon:
        daemon.wait_until_empty()
    daemon.wait_until(lambda: len(postfix.delivered()) >= mails)
    assert len(postfix.delivered()) == mails
    return dict(map(untraced, postfix.delivered()))


def untraced(mail: bytes) -> tuple[str, bytes]:
    """Recipient and message of a mail in a Maildir; Postfix has put trace fields on top (RFC 5321 4.4)."""
    field = rb"(?:Return-Path|X-Original-To|Delivered-To|Received):.*\n(?:[ \t].*\n)*"
    trace = re.match(rb"(?:%s)+" % field, mail)[0]
    recipient = re.search(rb"(?m)^X-Original-To: (.*)$", trace)[1]
    return recipient.decode(), mail[len(trace) :]


def test_sample_mail_arrives_over_tls_with_a_login(daemon, postfix):
    daemon.add_foreign_file("SAMPLE_MAIL.txt", SAMPLE)
    assert run_until_delivered(daemon, postfix, 1) == {"recipient@example.com": SAMPLE_MESSAGE}
    [mail] = postfix.delivered()
    assert mail.startswith(b"Return-Path: <sender@example.org>\n")
    assert b"with ESMTPSA id" in mail
    assert "OK\t recipient@example.com\tSAMPLE_MAIL.txt " in daemon.read_log()


def test_spool_of_version_2_3_is_delivered_except_for_its_locked_mail(daemon, postfix):
    text = "##To:{}\n##From:zoe@example.org\nSubject: from 2.3\n\nbody\n"
    daemon.add_foreign_file("483215.9321", text.format(ANN).encode())
    daemon.add_foreign_file("77", text.format(f"Bob <{BOB}>, jo@example.com").encode())
    daemon.add_foreign_file("120398457", text.format("locked@example.org").encode())
    daemon.add_foreign_file("120398457.lck", b"")
    with daemon:
        daemon.wait_until(lambda: daemon.waiting() == ["120398457", "120398457.lck"])
    daemon.wait_until(lambda: len(postfix.delivered()) >= 3)
    message = b"Subject: from 2.3\n\nbody\n"
    assert sorted(map(untraced, postfix.delivered())) == [(name, message) for name in (ANN, BOB, "jo@example.com")]


def test_message_arrives_with_its_dots_and_every_other_byte_unchanged(daemon, postfix):
    messages = {
        "dots": b"Subject: x\n\n.\n..\n.hidden\n a.\n.",
        "crlf": b"Subject: x\r\n\r\n.\r\n\r\nbody\r\n",
        "no-last-line-end": b"Subject: x\n\nbody",
        "blank-lines-at-the-end": b"Subject: x\n\nbody\n\n\n",
        "blanks": b"Subject: x \n\n \t\nline \t\n",
        "8-bit": "Subject: Grüße\n\n€uro\n".encode() + bytes(range(128, 256)) + b"\n",
        "controls": b"Subject: x\n\n" + bytes(set(range(1, 32)) - {10, 13}) + b"\x7f\n",
        "long-line": b"Subject: x\n\n" + b"x" * 5000 + b"\n.\n",
        "large": b"Subject: x\n\n" + b"".join(b".%d\n" % number for number in range(200_000)),
    }
    for name, message in messages.items():
        daemon.add_mail(f"{name}@example.org", message=message)
    arrived = run_until_delivered(daemon, postfix, len(messages))
    expected = {name: message.replace(b"\r\n", b"\n") for name, message in messages.items()}
    expected["dots"] += b"\n"
    expected["no-last-line-end"] += b"\n"
    assert {recipient.partition("@")[0]: message for recipient, message in arrived.items()} == expected


def test_added_message_id_is_the_one_that_the_log_names(daemon, postfix):
    daemon.configure(ADD_MESSAGEID=1)
    daemon.add_mail(ANN, message=b"Subject: x\n\nbody\n")
    arrived = run_until_delivered(daemon, postfix, 1)[ANN]
    added = re.fullmatch(rb"Message-Id: (<\S+>)\nSubject: x\n\nbody\n", arrived)[1].decode()
    assert f" id={added} " in daemon.read_log()
    postfix.wait_for_log(f"message-id={added}")


def test_wrong_password_leaves_the_mail_in_the_spool(daemon, postfix):
    daemon.configure(MAILDROP_PASSWORD="not the one")
    mail = daemon.add_mail(ANN)
    before = mail.read_bytes()
    with daemon:
        daemon.wait_for_log("!!!!! Authentication failed at")
        daemon.wait_for_log("### Finished at")
    assert mail.read_bytes() == before
    assert postfix.delivered() == []


def test_mail_for_150_recipients_arrives_once_for_each(daemon, postfix):
    recipients = [f"rcpt{number:03}@example.org" for number in range(150)]
    daemon.add_mail(*recipients)
    assert sorted(run_until_delivered(daemon, postfix, 150)) == recipients


def test_address_that_is_not_ascii_gets_its_mail(daemon, postfix):
    daemon.add_mail("jörg@example.org", sender="zoë@example.org")
    assert list(run_until_delivered(daemon, postfix, 1)) == ["jörg@example.org"]


def test_unknown_recipient_is_kept_and_the_others_get_the_mail(daemon, postfix):
    daemon.add_mail(ANN, "unknown@example.org", BOB)
    assert sorted(run_until_delivered(daemon, postfix, 2)) == [ANN, BOB]
    [kept] = daemon.failed()
    assert kept.read_bytes().startswith(b"##To:unknown@example.org\n")
    assert re.search(r"(?m)^FATAL: 550 5\.1\.1 .*\t unknown@example\.org\t", daemon.read_log())


def test_postfix_hanging_up_after_many_unknown_recipients_keeps_no_one_from_their_mail(daemon, postfix):
    unknown = [f"unknown{number:02}@example.org" for number in range(25)]    # Postfix puts up with 20 errors
    daemon.configure(MAILDROP_RETRY=0.5)
    daemon.add_mail(*unknown, ANN)
    assert list(run_until_delivered(daemon, postfix, 1)) == [ANN]
    assert sorted(re.findall(r"unknown\d\d@example\.org", "".join(map(first_line, daemon.failed())))) == unknown


def test_mail_larger_than_the_relay_takes_is_kept(daemon, postfix):
    daemon.add_mail(ANN, message=b"Subject: x\n\n" + b"x" * 79 + b"\n" * 12_000_000)
    daemon.add_mail(BOB)
    assert list(run_until_delivered(daemon, postfix, 1)) == [BOB]
    assert len(daemon.failed()) == 1
    assert f"FATAL: 552 5.3.4 Message size exceeds fixed limit\t {ANN}\t" in daemon.read_log()


def first_line(path: Path) -> str:
    return path.read_text().partition("\n")[0]

import dataclasses
import email
import email.policy
import re
import time
from email.utils import parsedate_to_datetime

import pytest

from maildrop import bounce, settings, spool
from maildrop.policy import Reply, expired
from maildrop.relay import own_name

LATER = time.time() + 3600
HEAD = b"##To:ann@example.org, bob@example.org\n##From:zoe@example.org\n"
MESSAGE = b"Subject: Hello\nTo: ann@example.org\n\nThe body.\n"
NO_SUCH_USER = Reply("RCPT", 550, "5.1.1 no such user")
TOO_LARGE = Reply(".", 552, "too large")
KEPT = "20261122T140005.123456-0123abcd.1"


@pytest.fixture
def claim(spool_directory):
    """A function that puts a mail into the spool and claims it."""
    claimed = []

    def claiming(content=HEAD + MESSAGE):
        path = spool_directory / spool.new_name()
        path.write_bytes(content)
        claimed.append(spool.claim(path, LATER))
        return claimed[-1]

    yield claiming
    for mail in claimed:
        mail.close()


def settings_with(**fields):
    return dataclasses.replace(settings.defaults(), **{"helo": "zope.example.org", **fields})


def notice_for(mail, failed, kept=KEPT, host="zope.example.org", sender="zoe@example.org"):
    return email.message_from_bytes(bounce.message(mail, sender, failed, kept, host), policy=email.policy.default)


def status_blocks(notice):
    """The blocks of the part for programs; the first is about the mail."""
    return notice.get_payload(1).get_payload()


def text_of(notice):
    return notice.get_payload(0).get_content()


# -- the message --


def test_a_notice_is_a_report_of_a_text_a_delivery_status_and_the_header(claim):
    notice = notice_for(claim(), {"ann@example.org": NO_SUCH_USER})
    assert notice.get_content_type() == "multipart/report"
    assert notice.get_param("report-type") == "delivery-status"
    kinds = [part.get_content_type() for part in notice.get_payload()]
    assert kinds == ["text/plain", "message/delivery-status", "text/rfc822-headers"]


def test_a_notice_says_whom_it_is_for_and_that_no_program_should_answer_it(claim):
    notice = notice_for(claim(), {"ann@example.org": NO_SUCH_USER})
    assert notice["From"] == "Mail Delivery System <MAILER-DAEMON@zope.example.org>"
    assert notice["To"] == "zoe@example.org"
    assert notice["Auto-Submitted"] == "auto-replied"
    assert abs(parsedate_to_datetime(notice["Date"]).timestamp() - time.time()) < 60
    assert [notice.get_all(name) for name in ("MIME-Version", "Subject")] == [["1.0"], ["Mail could not be delivered"]]


def test_each_recipient_has_a_block_of_its_own_for_programs(claim):
    notice = notice_for(claim(), {"ann@example.org": NO_SUCH_USER, "bob@example.org": TOO_LARGE})
    about_mail, ann, bob = status_blocks(notice)
    assert about_mail["Reporting-MTA"] == "dns; zope.example.org"
    assert (ann["Final-Recipient"], ann["Action"], ann["Status"]) == ("rfc822; ann@example.org", "failed", "5.1.1")
    assert ann["Diagnostic-Code"] == "smtp; 550 5.1.1 no such user"
    assert (bob["Final-Recipient"], bob["Action"], bob["Status"]) == ("rfc822; bob@example.org", "failed", "5.0.0")
    assert bob["Diagnostic-Code"] == "smtp; 552 too large"


def test_a_notice_tells_when_the_mail_came(claim):
    mail = claim(HEAD + b"##Queued:2026-11-22T14:00:05+00:00\n" + MESSAGE)
    about_mail, about_ann = status_blocks(notice_for(mail, {"ann@example.org": NO_SUCH_USER}))
    assert parsedate_to_datetime(about_mail["Arrival-Date"]).timestamp() == 1795356005
    assert abs(parsedate_to_datetime(about_ann["Last-Attempt-Date"]).timestamp() - time.time()) < 60


@pytest.mark.parametrize(
    ("reply", "status"),
    [
        (Reply("RCPT", 550, "5.7.1 relaying denied"), "5.7.1"),
        (Reply("RCPT", 550, "5.123.456"), "5.123.456"),
        (Reply("RCPT", 550, "no such user"), "5.0.0"),
        (Reply("RCPT", 550, ""), "5.0.0"),
        (Reply("RCPT", 550, "4.2.2 says the wrong class"), "5.0.0"),
        (Reply("RCPT", 550, "5.1.1.1 no status"), "5.0.0"),
        (Reply("RCPT", 550, "user 5.1.1 unknown"), "5.0.0"),
        (expired(Reply("RCPT", 451, "4.3.0 later")), "5.4.7"),
    ],
)
def test_the_status_is_the_relays_enhanced_one_or_says_no_more_than_its_code(claim, reply, status):
    assert status_blocks(notice_for(claim(), {"ann@example.org": reply}))[1]["Status"] == status


def test_people_read_who_was_refused_why_and_where_the_mail_is(claim):
    text = text_of(notice_for(claim(), {"ann@example.org": NO_SUCH_USER, "bob@example.org": TOO_LARGE}))
    assert "<ann@example.org>: 550 5.1.1 no such user\n<bob@example.org>: 552 too large\n" in text
    assert f"kept on zope.example.org as {KEPT}." in text


def test_the_header_of_the_mail_is_in_the_notice_and_its_body_is_not(claim):
    notice = notice_for(claim(), {"ann@example.org": NO_SUCH_USER})
    assert notice.get_payload(2).get_content() == "Subject: Hello\nTo: ann@example.org\n"
    assert "The body." not in notice.as_string()


@pytest.mark.parametrize("message", [b"\nbody only\n", b"Subject: header only"])
def test_a_mail_of_a_header_or_a_body_only_gets_a_notice_too(claim, message):
    notice = notice_for(claim(HEAD + message), {"ann@example.org": NO_SUCH_USER})
    assert notice.get_payload(2).get_content().strip() == message.partition(b"\nbody")[0].decode()


def test_a_notice_has_a_message_id_that_is_the_same_whenever_it_is_written(claim):
    mail = claim()
    ids = [notice_for(mail, {"ann@example.org": NO_SUCH_USER})["Message-Id"] for _ in range(2)]
    assert ids == [f"<bounce-{KEPT}@zope.example.org>"] * 2
    assert notice_for(mail, {}, kept="other.1")["Message-Id"] != ids[0]


# -- what is not ASCII --


def test_addresses_that_are_not_ascii_are_told_in_ascii_to_programs_and_as_they_are_to_people(claim):
    notice = notice_for(claim(), {"jürgen@exämple.org": NO_SUCH_USER}, sender="zoë@example.org")
    (_, block) = status_blocks(notice)
    assert block["Final-Recipient"].startswith("utf-8; ")
    assert block["Final-Recipient"].isascii()
    assert "<jürgen@exämple.org>: 550" in text_of(notice)
    assert notice.as_bytes().isascii()


def test_an_address_that_is_not_ascii_is_written_in_the_form_for_such_addresses(claim):
    (_, block) = status_blocks(notice_for(claim(), {"jürgen@example.org": NO_SUCH_USER}))
    assert block["Final-Recipient"] == r"utf-8; j\x{FC}rgen@example.org"    # RFC 6533 section 3


def test_a_reply_that_is_not_ascii_can_be_read_by_people_and_programs(claim):
    notice = notice_for(claim(), {"ann@example.org": Reply("RCPT", 550, "5.1.1 größer €")})
    assert "550 5.1.1 größer €" in text_of(notice)
    assert status_blocks(notice)[1]["Diagnostic-Code"].startswith("smtp; 550 5.1.1 gr")
    assert notice.as_bytes().isascii()


@pytest.mark.parametrize(
    ("header", "text"),
    [
        ("Subject: größer".encode(), "Subject: größer\n"),
        (b"Subject: gr\xf6\xdfer", "Subject: gr\ufffd\ufffder\n"),
        (b"Subject: x\r\nTo: y", "Subject: x\nTo: y\n"),
        (b"Subject: a\x00b\x0bc\x85d", None),
        (b"From zoe@example.org Mon\nSubject: x", "From zoe@example.org Mon\nSubject: x\n"),
        (b"--===============1==\nSubject: x", None),
        (b"no header at all \xff", None),
    ],
)
def test_any_header_gets_into_a_notice_that_can_be_read(claim, header, text):
    notice = notice_for(claim(HEAD + header + b"\n\nbody\n"), {"ann@example.org": NO_SUCH_USER})
    assert len(notice.get_payload()) == 3
    assert not notice.defects
    if text is not None:
        assert notice.get_payload(2).get_content() == text
    assert notice.as_bytes().isascii()


@pytest.mark.parametrize(
    "recipient", ["a\rb", "a\x0bb", "a\x00b", "a\u2028b", "a\x85b", "x " * 5000, "Ann <ann@example.org", "[", "\t"]
)
def test_what_is_no_address_is_told_without_breaking_the_notice(claim, recipient):
    notice = notice_for(claim(), {recipient: Reply("RCPT", 553, "5.1.3 not an address"), "bob@example.org": TOO_LARGE})
    _, first, second = status_blocks(notice)
    assert first["Status"] == "5.1.3"
    assert list(first.keys()) == list(second.keys())
    assert second["Final-Recipient"] == "rfc822; bob@example.org"


def test_no_line_of_a_notice_is_longer_than_a_relay_has_to_take(claim):
    content = HEAD + b"Subject: " + b"x" * 5000 + b"\nReferences: " + b"<a@b> " * 1000 + b"\n\nbody\n"
    failed = {"ann@example.org": Reply("RCPT", 550, "5.1.1 " + "no " * 1000), "b" * 400: NO_SUCH_USER}
    written = bounce.message(claim(content), "zoe@example.org", failed, KEPT, "zope.example.org")
    assert max(map(len, written.splitlines())) <= 998    # RFC 5322 section 2.1.1


# -- into the spool --


def test_a_notice_goes_to_the_sender_from_the_null_sender(claim, spool_directory):
    mail = claim()
    bounce.write(mail, "zoe@example.org", {"ann@example.org": NO_SUCH_USER}, KEPT, settings_with())
    with spool.claim(spool_directory / f"bounce-{KEPT}", LATER) as notice:
        envelope = notice.read_envelope()
        assert (envelope.sender, envelope.recipients) == ("", ("zoe@example.org",))
        written = email.message_from_bytes(b"".join(notice.content()))
        assert written.get_content_type() == "multipart/report"
        assert written["To"] == "zoe@example.org"
        assert written["Message-Id"] == f"<bounce-{KEPT}@zope.example.org>"


def test_the_debug_receiver_gets_the_notice_and_it_still_says_whom_it_is_for(claim, spool_directory):
    used = settings_with(debug_receiver="dev@example.org, qa@example.org")
    bounce.write(claim(), "zoe@example.org", {"ann@example.org": NO_SUCH_USER}, KEPT, used)
    with spool.claim(spool_directory / f"bounce-{KEPT}", LATER) as notice:
        assert notice.read_envelope().recipients == ("dev@example.org", "qa@example.org")
        assert email.message_from_bytes(b"".join(notice.content()))["To"] == "zoe@example.org"


def test_there_is_one_notice_for_one_kept_mail_and_another_for_another(claim, spool_directory):
    mail = claim()
    for kept in (KEPT, KEPT, f"{KEPT}-data"):
        bounce.write(mail, "zoe@example.org", {"ann@example.org": NO_SUCH_USER}, kept, settings_with())
    notices = sorted(path.name for path in spool_directory.glob("bounce-*"))
    assert notices == [f"bounce-{KEPT}", f"bounce-{KEPT}-data"]


def test_without_a_name_of_its_own_the_host_is_called_what_it_calls_itself(claim, spool_directory):
    bounce.write(claim(), "zoe@example.org", {"ann@example.org": NO_SUCH_USER}, KEPT, settings_with(helo=""))
    text = (spool_directory / f"bounce-{KEPT}").read_text()
    assert re.search(rf"(?m)^Reporting-MTA: dns; {re.escape(own_name())}$", text)


def test_a_sender_that_is_not_ascii_gets_the_notice_at_that_address(claim, spool_directory):
    bounce.write(claim(), "zoë@exämple.org", {"ann@example.org": NO_SUCH_USER}, KEPT, settings_with())
    with spool.claim(spool_directory / f"bounce-{KEPT}", LATER) as notice:
        assert notice.read_envelope().recipients == ("zoë@exämple.org",)


def test_a_notice_that_cannot_be_written_is_an_error_and_leaves_nothing(claim, spool_directory, monkeypatch):
    mail = claim()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(spool.os, "utime", full)
    with pytest.raises(OSError):
        bounce.write(mail, "zoe@example.org", {"ann@example.org": NO_SUCH_USER}, KEPT, settings_with())
    assert [path.name for path in spool_directory.rglob("*") if path.is_file()] == [mail.path.name]

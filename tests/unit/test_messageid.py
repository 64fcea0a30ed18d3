import re
import time

import pytest

from maildrop import spool
from maildrop.messageid import message_id, new_message_id

LATER = time.time() + 3600
HEAD = b"##To:ann@example.org\n##From:bob@example.org\n"


def claimed(directory, content, name="a mail"):
    path = directory / name
    path.write_bytes(HEAD + content)
    return spool.claim(path, LATER)


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"Message-Id: <a@example.org>\n\nbody", "<a@example.org>"),
        (b"Subject: x\nMessage-ID: <a@example.org>\nTo: y\n\n", "<a@example.org>"),
        (b"MESSAGE-ID:<a@example.org>\n\n", "<a@example.org>"),
        (b"message-id : <a@example.org>  \n\n", "<a@example.org>"),
        (b"Subject: x\r\nMessage-Id: <a@example.org>\r\nTo: y\r\n\r\nbody", "<a@example.org>"),
        (b"Message-Id:\n <a@example.org>\nTo: y\n\n", "<a@example.org>"),
        (b"Message-Id:\r\n\t<a@example.org>\r\n\r\n", "<a@example.org>"),
        (b"Message-Id: <a@example.org>", "<a@example.org>"),
        (b"Message-Id: <first@example.org>\nMessage-Id: <second@example.org>\n\n", "<first@example.org>"),
        (b"Message-Id: <\xfc@example.org>\n\n", "<\\xfc@example.org>"),
        (b"Message-Id:\nTo: y\n\n", ""),
    ],
)
def test_the_message_id_of_a_mail_is_what_stands_in_its_field(spool_directory, content, expected):
    with claimed(spool_directory, content) as mail:
        assert message_id(mail) == expected


@pytest.mark.parametrize(
    "content",
    [
        b"Subject: x\n\nMessage-Id: <in.the@body>\n",
        b"Subject: x\r\n\r\nMessage-Id: <in.the@body>\r\n",
        b"\nMessage-Id: <in.the@body>\n",
        b"\r\nMessage-Id: <in.the@body>\r\n",
        b"Subject: x\n Message-Id: <in.a.folded@line>\n\n",
        b"X-Message-Id: <another@field>\n\n",
        b"Message-Id-X: <another@field>\n\n",
        b"Resent-Message-Id: <another@field>\n\n",
        b"Subject: Message-Id: <x@y>\n\n",
        b"Subject: x\n\n",
        b"\n",
        b"",
    ],
)
def test_a_mail_without_the_field_has_no_message_id(spool_directory, content):
    with claimed(spool_directory, content) as mail:
        assert message_id(mail) is None


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_the_field_may_stand_anywhere_in_a_header_longer_than_what_is_read_at_once(spool_directory, end):
    field = b"Message-Id:" + end + b" <a@example.org>"
    for border in (spool._CHUNK - len(HEAD), spool._CHUNK, 3 * spool._CHUNK):
        for size in range(border - len(field) - 5, border + 5):
            before = b"A: " + b"a" * (size - len(b"A: ") - len(end)) + end
            with claimed(spool_directory, before + field + end + end + b"body") as mail:
                assert message_id(mail) == "<a@example.org>"


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_what_looks_like_the_field_behind_a_long_header_is_none(spool_directory, end):
    border = spool._CHUNK - len(HEAD)
    for size in range(border - 5, border + 5):
        header = b"A: " + b"a" * (size - len(b"A: "))
        with claimed(spool_directory, header + end + end + b"Message-Id: <in.the@body>" + end + end) as mail:
            assert message_id(mail) is None


def test_a_message_id_in_the_envelope_is_none_of_the_message(spool_directory):
    with claimed(spool_directory, b"##Message-Id:<a@example.org>\nSubject: x\n\n") as mail:
        assert message_id(mail) is None


def test_a_new_message_id_is_the_name_of_the_mail_at_the_host(spool_directory):
    name = spool.new_name()
    with claimed(spool_directory, b"Subject: x\n\n", name) as mail:
        assert new_message_id(mail, "zope.example.org") == f"<{name}@zope.example.org>"


@pytest.mark.parametrize("name", ["1234", "a b@c", "<evil>\n", "größe", ".." * 40 + "x", "n" * 250, "a\"b\\c'", "%s"])
def test_a_new_message_id_is_well_formed_whatever_the_file_is_called(spool_directory, name):
    name = name.lstrip(".") or "x"
    with claimed(spool_directory, b"Subject: x\n\n", name) as mail:
        assert re.fullmatch(r"<[A-Za-z0-9._+-]{1,150}@zope\.example\.org>", new_message_id(mail, "zope.example.org"))


@pytest.mark.parametrize("name", ["20261122T140005.000001-0123abcd", "a stranger's"])
def test_a_mail_gets_the_same_new_message_id_in_every_attempt(spool_directory, name):
    with claimed(spool_directory, b"Subject: x\n\n", name) as mail:
        first = new_message_id(mail, "h")
        remainder = spool.draft_remainder(mail, ["ann@example.org"], LATER - 60, attempts=1, last_reply="451 later")
        spool.postpone(mail, remainder).close()
    with spool.claim(spool_directory / name, LATER) as mail:
        assert mail.attempts == 1
        assert new_message_id(mail, "h") == first


def test_different_mails_get_different_message_ids(spool_directory):
    ids = set()
    for name in ("a b", "a_b", "a@b", spool.new_name(), spool.new_name()):
        with claimed(spool_directory, b"\n", name) as mail:
            ids.add(new_message_id(mail, "h"))
    assert len(ids) == 5

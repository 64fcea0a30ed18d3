"""Header fields as a person reads them."""

import pytest

from maildrop.headerfields import decoded, fields, subject


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b" plain ", "plain"),
        (b" folded\n  over\n\tlines", "folded over lines"),
        (b"=?utf-8?q?Gr=C3=BC=C3=9Fe_an?= alle", "Gr\u00fc\u00dfe an alle"),
        (b"=?UTF-8?B?w7w=?=", "\u00fc"),
        (b"=?iso-8859-1?Q?=FC?= =?utf-8?q?=C3=BC?=", "\u00fc\u00fc"),
        (b"=?utf-8?q?=C3?=\n =?utf-8?q?=BC?=", "\u00fc"),
        (b"=?utf-8*de?q?a?= b", "a b"),
        (b"=?no-such-charset?q?a?= b", "=?no-such-charset?q?a?= b"),
        (b"=?hex?q?61?=", "=?hex?q?61?="),
        (b"=?utf-8?b?w7w?= =?utf-8?b?%%%?=", "\u00fc"),
        (b"=?utf-8?x?a?=", "=?utf-8?x?a?="),
        ("\u00fc".encode(), "\u00fc"),
        (b"\xfc", "\u00fc"),
        (b"\x1b[31mred \x07", r"\x1b[31mred \x07"),
        (b"=?utf-8?q?=1B[31m=0Ared?=", r"\x1b[31m red"),
        (b"=?utf-8?q?=E2=80=AEabc?=", r"\u202eabc"),
    ],
)
def test_text_is_decoded_unfolded_and_printable(raw, text):
    assert decoded(raw) == text


def test_enormous_fields_take_no_enormous_time():
    assert len(decoded(b"=?utf-8?q?a?= " * 1_000_000)) < 20_000
    assert len(decoded(b"=?" * 1_000_000)) < 20_000


def test_each_field_has_its_name_and_lines_that_are_none_are_passed_over():
    header = b"From: zoe@example.org\nno field\nX-Empty:\nSubject : a\n b\n: none\nSubject: second"
    assert list(fields(header)) == [("From", "zoe@example.org"), ("X-Empty", ""), ("Subject", "a b"), ("Subject", "second")]


def test_the_subject_is_the_first_field_of_that_name():
    assert subject(b"X-Subject: no\nSUBJECT: yes\nSubject: no") == "yes"
    assert subject(b"From: zoe@example.org") == ""

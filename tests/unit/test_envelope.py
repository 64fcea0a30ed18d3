import dataclasses
import random
import re
import subprocess
import sys
from contextlib import suppress
from itertools import product
from pathlib import Path

import pytest

from maildrop import envelope as parser
from maildrop.envelope import Envelope, MalformedEnvelope, is_address, parse_sender


def recipients(text):
    return Envelope.parse("", text).recipients


# -- lists of recipients --


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("ann@example.org", ["ann@example.org"]),
        ("ann@example.org,bob@example.org", ["ann@example.org", "bob@example.org"]),
        (" ann@example.org ,\t bob@example.org ", ["ann@example.org", "bob@example.org"]),
        ("ann@example.org; bob@example.org", ["ann@example.org", "bob@example.org"]),
        (",, ann@example.org,,", ["ann@example.org"]),
        ("<ann@example.org>", ["ann@example.org"]),
        ("< ann@example.org >", ["ann@example.org"]),
        ("Ann Example <ann@example.org>", ["ann@example.org"]),
        ('"Example, Ann" <ann@example.org>, bob@example.org', ["ann@example.org", "bob@example.org"]),
        ('"a <b@c> d" <ann@example.org>', ["ann@example.org"]),
        ('"Ann \\"<x@y>, Doe" <ann@example.org>', ["ann@example.org"]),
        ("ann@example.org (Ann, of <b@c>)", ["ann@example.org"]),
        ("(first (nested) one) ann@example.org", ["ann@example.org"]),
        ("ann@example.org (an odd \\) one), bob@example.org", ["ann@example.org", "bob@example.org"]),
        ("friends: ann@example.org, Bob <bob@example.org>;", ["ann@example.org", "bob@example.org"]),
        ("a: ann@example.org; b: bob@example.org;", ["ann@example.org", "bob@example.org"]),
        ("nobody:;, ann@example.org", ["ann@example.org"]),
        ("friends: ann@example.org", ["ann@example.org"]),
        ("<@relay.example,@other.example:ann@example.org>", ["ann@example.org"]),
        ('"ann doe"@example.org', ['"ann doe"@example.org']),
        ('"ann,doe"@example.org, bob@example.org', ['"ann,doe"@example.org', "bob@example.org"]),
        ('<"ann>doe"@example.org>', ['"ann>doe"@example.org']),
        ("ann@[192.0.2.1]", ["ann@[192.0.2.1]"]),
        ("ann@[IPv6:2001:db8::1], bob@example.org", ["ann@[IPv6:2001:db8::1]", "bob@example.org"]),
        ("ann . doe @ example . org", ["ann.doe@example.org"]),
        ("ann (a) @ (b) example (c) . (d) org", ["ann@example.org"]),
        ("Ann <ann (a) . doe @ example (b) .org>", ["ann.doe@example.org"]),
        ("Ann\r\n <ann@example.org>,\r\n\tbob@example.org", ["ann@example.org", "bob@example.org"]),
        ("root", ["root"]),
        ("Jürgen <jürgen@exämple.org>", ["jürgen@exämple.org"]),
        ("=?utf-8?q?J=C3=BCrgen?= <ann@example.org>", ["ann@example.org"]),
        ("a+b=c/d%e!f@example.org", ["a+b=c/d%e!f@example.org"]),
    ],
)
def test_recipients_stand_in_a_list_as_in_a_header_field(text, expected):
    envelope = Envelope.parse("", text)
    assert envelope.recipients == tuple(expected)
    assert envelope.unusable == ()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        # A.1.2
        ('"Joe Q. Public" <john.q.public@example.com>', ["john.q.public@example.com"]),
        (
            "Mary Smith <mary@x.test>, jdoe@example.org, Who? <one@y.test>",
            ["mary@x.test", "jdoe@example.org", "one@y.test"],
        ),
        (
            '<boss@nil.test>, "Giant; \\"Big\\" Box" <sysservices@example.net>',
            ["boss@nil.test", "sysservices@example.net"],
        ),
        # A.1.3
        (
            "A Group:Ed Jones <c@a.test>,joe@where.test,John <jdoe@one.test>;",
            ["c@a.test", "joe@where.test", "jdoe@one.test"],
        ),
        # A.5
        ("Pete(A nice \\) chap) <pete(his account)@silly.test(his host)>", ["pete@silly.test"]),
        (
            "A Group(Some people) :Chris Jones <c@(Chris's host.)public.example>, joe@example.org,"
            " John <jdoe@one.test> (my dear friend); (the end of the group)",
            ["c@public.example", "joe@example.org", "jdoe@one.test"],
        ),
        # A.6.1
        ("Joe Q. Public <john.q.public@example.com>", ["john.q.public@example.com"]),
        ("Mary Smith <@node.test:mary@example.net>, , jdoe@test  . example", ["mary@example.net", "jdoe@test.example"]),
        # A.6.3
        ("John Doe <jdoe@machine(comment).  example>", ["jdoe@machine.example"]),
    ],
)
def test_the_examples_of_rfc_5322_are_understood(text, expected):
    envelope = Envelope.parse("", text)
    assert envelope.recipients == tuple(expected)
    assert envelope.unusable == ()


def test_blanks_in_a_quoted_name_belong_to_it():
    assert recipients('"ann . doe"@example.org, "a @ b" @ example.org') == (
        '"ann . doe"@example.org',
        '"a @ b"@example.org',
    )


def test_a_recipient_that_stands_there_twice_counts_once_as_it_stood_first():
    assert recipients("Ann <ann@Example.ORG>, bob@x.test, ann@example.org") == ("ann@Example.ORG", "bob@x.test")


def test_only_the_domain_is_compared_without_regard_to_case():
    assert recipients("Ann@example.org, ann@example.org") == ("Ann@example.org", "ann@example.org")


def test_recipients_keep_their_order():
    names = [f"r{number}@example.org" for number in range(500)]
    random.Random(5).shuffle(names)
    assert recipients(", ".join(names)) == tuple(names)


@pytest.mark.parametrize(
    ("text", "unusable"),
    [
        ("ann doe", "ann doe"),
        ("Ann ann@example.org", "Ann ann@example.org"),
        ("ann@exa mple.org", "ann@exa mple.org"),
        ("ann@", "ann@"),
        ("@example.org", "@example.org"),
        ("a@b@example.org", "a@b@example.org"),
        ("<>", "<>"),
        ("Ann <>", "Ann <>"),
        ("Ann <ann@example.org", "Ann <ann@example.org"),
        ("ann>@example.org", "ann>@example.org"),
        ("ann\x00@example.org", "ann\x00@example.org"),
        ("ann\x7f@example.org", "ann\x7f@example.org"),
        ("ann\x85@example.org", "ann\x85@example.org"),
        ("ann\u2028@example.org", "ann\u2028@example.org"),
        ("<ann@example.org>\r\n<@example.org>", "<ann@example.org>\r\n<@example.org>"),
        ("<ann@example.org\r\nDATA>", "<ann@example.org\r\nDATA>"),
        ('"never closed@example.org', '"never closed@example.org'),
        ("ann@[192.0.2.1", "ann@[192.0.2.1"),
        ("x" * 501, "x" * 501),
    ],
)
def test_what_is_no_address_is_told_as_it_stood_there(text, unusable):
    envelope = Envelope.parse("", f"bob@example.org, {text}")
    assert envelope.recipients == ("bob@example.org",)
    assert "".join(envelope.unusable) == unusable


@pytest.mark.parametrize(
    ("text", "usable", "unusable"),
    [
        ("ann@x.test (never closed, bob@x.test", ["ann@x.test"], "(never closed, bob@x.test"),
        ("Ann <ann@x.test> (her, bob@x.test", ["ann@x.test"], "(her, bob@x.test"),
        ("ann@x.test, bob@x.test, (one (two) jo@x.test, eve@x.test ", ["ann@x.test", "bob@x.test"],
         "(one (two) jo@x.test, eve@x.test"),
        ("ann@x.test,\t(jo@x.test \\)", ["ann@x.test"], "(jo@x.test \\)"),
        ("ann@x.test (", ["ann@x.test"], "("),
    ],
)
def test_what_stands_behind_an_unclosed_bracket_is_told_and_not_swallowed(text, usable, unusable):
    envelope = Envelope.parse("", text)
    assert envelope.recipients == tuple(usable)
    assert envelope.unusable == (unusable,)


def test_a_list_that_is_all_in_an_unclosed_bracket_is_malformed_and_told():
    with pytest.raises(MalformedEnvelope, match="bob@x.test"):
        Envelope.parse("", "(ann@x.test, bob@x.test")


@pytest.mark.parametrize("text", ["(ann@x.test", "ann@x.test <(never closed"])
def test_a_sender_behind_an_unclosed_bracket_is_malformed(text):
    with pytest.raises(MalformedEnvelope, match="no usable sender"):
        parse_sender(text)


def test_an_error_tells_no_more_of_a_text_than_an_address_may_be_long():
    for parse in (parse_sender, lambda text: Envelope.parse("", text)):
        with pytest.raises(MalformedEnvelope) as caught:
            parse("a b " * 10_000)
        assert len(str(caught.value)) < 600
        assert str(caught.value).endswith("...'")


def test_what_is_no_address_does_not_hide_what_follows():
    envelope = Envelope.parse("", "a b, ann@example.org, c d; bob@example.org")
    assert envelope.recipients == ("ann@example.org", "bob@example.org")
    assert envelope.unusable == ("a b", "c d")


@pytest.mark.parametrize("text", ["", " ", ",;", "undisclosed-recipients:;", "(a comment)", "<>", "not an address"])
def test_a_list_without_a_usable_recipient_is_malformed(text):
    with pytest.raises(MalformedEnvelope, match="no usable recipient"):
        Envelope.parse("ann@example.org", text)


def test_an_error_tells_the_text_on_one_line():
    with pytest.raises(MalformedEnvelope) as caught:
        Envelope.parse("", "a\nb")
    assert str(caught.value) == r"no usable recipient in 'a\nb'"


# -- entries of a list --


@pytest.mark.parametrize(
    "entries",
    [
        ["ann@x.test"],
        ["Ann <ann@x.test>", '"Doe, Jo" <jo@x.test>'],
        ["ann@x.test (her, own)", "bob@x.test"],
        ["ann doe", "bob@x.test"],
        ["", "bob@x.test"],
        ["friends: ann@x.test;", "bob@x.test"],
        ["<@r.test,@s.test:ann@x.test>", "bob@x.test"],
        ["ann@x.test\r\n", "bob@x.test"],
    ],
)
def test_entries_are_joined_to_a_list_in_which_each_counts_for_one(entries):
    alone = []
    for entry in entries:
        with suppress(MalformedEnvelope):
            alone += recipients(entry)
    assert recipients(parser.join_recipients(entries)) == tuple(alone)


@pytest.mark.parametrize(
    "entry",
    ["ann@x.test, eve@y.test", "ann@x.test\n,eve@y.test", "ann@x.test; <eve@y.test>", "g: a@x, b@y;", "ann@x.test ("],
)
def test_an_entry_with_several_addresses_is_malformed(entry):
    with pytest.raises(MalformedEnvelope, match="more than one recipient"):
        parser.join_recipients(["bob@x.test", entry])


@pytest.mark.parametrize("entry", ['"ann@x.test', "ann@[x.test", "("])
def test_an_entry_that_would_swallow_those_behind_it_is_malformed(entry):
    with pytest.raises(MalformedEnvelope):
        parser.join_recipients([entry, "bob@x.test"])


# -- the sender --


@pytest.mark.parametrize(
    ("text", "sender"),
    [
        ("ann@example.org", "ann@example.org"),
        ("<ann@example.org>", "ann@example.org"),
        ("Ann Example <ann@example.org>", "ann@example.org"),
        ('"Example, Ann" <ann@example.org>', "ann@example.org"),
        ("Ann <ann@example.org>, Bob <bob@example.org>", "ann@example.org"),
        ("root", "root"),
        (" ann@example.org ", "ann@example.org"),
    ],
)
def test_the_sender_is_the_first_address(text, sender):
    assert parse_sender(text) == sender
    assert Envelope.parse(text, "bob@example.org").sender == sender


@pytest.mark.parametrize("text", ["", "  ", "<>", "< >", "Mailer <>", "<> (nobody)"])
def test_the_null_sender_is_written_as_nothing_or_empty_brackets(text):
    assert parse_sender(text) == ""
    assert Envelope.parse(text, "bob@example.org").sender == ""


@pytest.mark.parametrize(
    "text",
    ["Ann Example", "ann@exa mple", "ann@", "Ann <ann", "a b, ann@x.test", "ann\x00@b", "ann@b> SIZE=1",
     "ann@b>\rRCPT TO:<eve@x.test", "<ann@b\rRSET>", "ann@b\nDATA", "ann@b\x0b", "ann@b\u2028c"],
)
def test_a_sender_that_is_no_address_is_malformed(text):
    with pytest.raises(MalformedEnvelope, match="no usable sender"):
        parse_sender(text)
    with pytest.raises(MalformedEnvelope, match="no usable sender"):
        Envelope.parse(text, "bob@example.org")


@pytest.mark.parametrize("text", ["(only a comment)", "Nobody:;"])
def test_text_without_an_address_is_not_taken_for_the_null_sender(text):
    with pytest.raises(MalformedEnvelope, match="no usable sender"):
        parse_sender(text)


# -- addresses --


@pytest.mark.parametrize(
    "text",
    [
        "ann@example.org",
        "ann",
        "ann@localhost",
        "a.b-c_d@example.org",
        '"ann doe"@example.org',
        '"<>,;:()@[]"@example.org',
        r'"a\"b\\c"@example.org',
        '""@example.org',
        "ann@[192.0.2.1]",
        "ann@[IPv6:::1]",
        "ü@exämple.org",
        "x" * 500,
    ],
)
def test_an_address_may_be_anything_that_can_stand_in_angle_brackets(text):
    assert is_address(text)


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "@",
        "@example.org",
        "ann@",
        "ann@@example.org",
        " ann@example.org",
        "ann@example.org\n",
        "ann@example.org\r",
        "an n@example.org",
        "ann@a@b",
        "<ann@example.org>",
        "ann@example.org>",
        "a,b@example.org",
        "a(b)@example.org",
        'a"b@example.org',
        '"a"b@example.org',
        '"a@example.org',
        '"a\nb"@example.org',
        '"a\\\nb"@example.org',
        '"a\tb"@example.org',
        "a\\b@example.org",
        "ann@[]",
        "ann@[a b]",
        "ann@[a]b",
        "ann\x00@example.org",
        "ann\xa0@example.org",
        "x" * 501,
    ],
)
def test_what_is_not_safe_in_angle_brackets_is_no_address(text):
    assert not is_address(text)


def test_a_list_of_bare_addresses_is_read_as_it_was_written():
    choose = random.Random(17)
    texts = ["a", "b.c", "ü", ".", "-", "'", "#", "="]
    quoted = ['"x, y"', '"(<>)"', '"q\\"@,\\\\"', '"[;:"', '""']
    literals = ["[192.0.2.1]", "[IPv6:::1]", '[a"b(c,d;e:f@g]']
    addresses = {}
    for _ in range(500):
        local = choose.choice(["".join(choose.choices(texts, k=choose.randint(1, 4))), choose.choice(quoted)])
        domain = choose.choice(["".join(choose.choices(texts, k=choose.randint(1, 4))), choose.choice(literals)])
        addresses[choose.choice([local, f"{local}@{domain}"])] = None
    assert list(filter(is_address, addresses)) == list(addresses)
    assert [address for address in addresses if recipients(f"0, {address}, 1") != ("0", address, "1")] == []
    assert recipients(", ".join(addresses)) == tuple(addresses)


def test_whatever_a_list_holds_the_recipients_are_addresses():
    choose = random.Random(23)
    parts = [*'"\\<>()[],;:@. \t\r\nab', "\x00", "ann@example.org"]
    for _ in range(20000):
        text = "".join(choose.choices(parts, k=choose.randint(0, 12)))
        try:
            envelope = Envelope.parse(text, text)
        except MalformedEnvelope:
            continue
        assert all(map(is_address, envelope.recipients)), text
        assert envelope.sender == "" or is_address(envelope.sender), text


# -- the short way through a list --

FRAGMENTS = [
    *("ann@example.org", "Bob@Example.ORG", "jo", "a.b@c", ".", "@", "a@b@c", "@c", "x" * 499, "x" * 501, "a" * 1100),
    *("Ann Example", "O'Neil", "J\xfcrgen", "\u4f60\u597d@x", "e\u0301", "\U0001f600", "\udcfc", "\xa0", "\x85"),
    *('"Doe, Jo"', '"a <b@c> d"', '"q\\"@,"', '"never closed', '"', '""', "\\", "\\,", '\\"'),
    *(",", ",", ",", ", ", ";", ";;", " , ,", ",\r\n "),
    *("<", ">", "<>", "< >", "<ann@example.org>", "< ann@example.org >", "<<a@b>>", "<a@b", "a@b>", "<a@b><c@d>"),
    *("(", ")", "(a comment)", "(one (in) another)", "(a, b@c)", "(never closed", "(\\)"),
    *("<@r.test:a@b>", "<@r.test,@s.test:a@b>", "< @r.test:a@b>", "@r.test:", "<.a@b>", "<a@b.>"),
    *("friends:", "nobody:;", "friends: a@b, c@d;", ":", "::", "a:b:"),
    *("[", "]", "[192.0.2.1]", "a@[192.0.2.1]", "a@[IPv6:::1]", "a@[never closed"),
    *(" ", " ", "\t", "\n", "\r\n", "  ", "\x00", "\x0b", "\x0c", "\x1f", "\x7f", "\xad", "\u3000"),
    *("<a b>", "\u2028", " . ", " @ ", "a . b @ c", "a@b c@d"),
]


def all_that_is_told_of(text):
    told = [list(parser._addresses(text))]
    for sender, list_of_recipients in (("", text), (text, "x@x"), (text, text)):
        try:
            told.append(Envelope.parse(sender, list_of_recipients))
        except MalformedEnvelope as error:
            told.append(str(error))
    return told


def told_the_long_way(text, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(parser, "_PLAIN_ENTRY", re.compile(r"(?!)"))
        return all_that_is_told_of(text)


@pytest.mark.parametrize("seed", range(8))
def test_a_list_is_the_same_whether_its_plain_entries_are_read_the_short_or_the_long_way(monkeypatch, seed):
    choose = random.Random(seed)
    for _ in range(2500):
        text = choose.choice(["", "", " ", ","]).join(choose.choices(FRAGMENTS, k=choose.randint(0, 8)))
        assert all_that_is_told_of(text) == told_the_long_way(text, monkeypatch), ascii(text)


def test_any_short_list_of_single_characters_is_the_same_the_short_and_the_long_way(monkeypatch):
    for size in range(5):
        for characters in product('a@., <>:"(', repeat=size):
            text = "".join(characters)
            assert all_that_is_told_of(text) == told_the_long_way(text, monkeypatch), ascii(text)


def test_any_character_in_a_plain_entry_is_the_same_the_short_and_the_long_way(monkeypatch):
    for character in map(chr, [*range(0x250), 0x2028, 0x2029, 0x3000, 0xD800, 0xDCFC, 0xFEFF, 0x1F600]):
        for entry in ("{}a@x", "a{}@x", "a@x{}", "A{} <a@x>", "<a{}@x>", "<a@x{}>", "<a@x>{}", "<{}a@x>"):
            text = f"bob@x, {entry.format(character)},jo@x"
            assert all_that_is_told_of(text) == told_the_long_way(text, monkeypatch), ascii(text)


def test_what_most_lists_look_like_is_read_the_short_way(monkeypatch):
    monkeypatch.setattr(parser, "_TOKEN", None)    # which the long way needs
    assert recipients("ann@x, Bob <bob@x>; <jo@x> ,, eve@x ,") == ("ann@x", "bob@x", "jo@x", "eve@x")


# -- any list --


def parse_or_be_killed(expression, times):
    """Parse a list in a process that ends after a minute of work: far more than it needs, far less than quadratic time."""
    code = f"""
import ast, resource, sys
resource.setrlimit(resource.RLIMIT_CPU, (60, 60))
from maildrop.envelope import Envelope, MalformedEnvelope
try:
    Envelope.parse("", ast.literal_eval(sys.stdin.read()) * {times})
except MalformedEnvelope:
    pass
"""
    subprocess.run([sys.executable, "-c", code], input=expression, text=True, check=True, cwd=Path(__file__).parents[2])


@pytest.mark.parametrize(
    "unit",
    ["a@b,", "<", "<<>", "(", "()", "\\(", '"', '"\\', "[", "[]", ":", "@", " . ", "a ", '<"a"', '<[\\"]', '<(\\")'],
)
def test_a_long_list_is_read_to_its_end(unit):
    parse_or_be_killed(repr(unit), 1_000_000 // len(unit))


@pytest.mark.parametrize("begin", ["< @", "<@", "@", '"', "(", "x "])
def test_a_long_word_before_many_commas_is_read_to_its_end(begin):
    parse_or_be_killed(repr(begin + "a" * 3_000_000 + "," * 300_000), 1)


def test_an_envelope_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Envelope.parse("", "ann@example.org").sender = "eve@example.org"

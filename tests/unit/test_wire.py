import random
import re

import pytest

from maildrop.wire import wire_format


def on_the_wire(*chunks):
    return b"".join(wire_format(iter(chunks)))


def reference(content):
    """What has to go over the wire, the plain way, for content in one piece."""
    lines = re.split(rb"\r\n|\r|\n", content)
    if lines[-1] == b"":
        del lines[-1]
    return b"".join((b"." if line.startswith(b".") else b"") + line + b"\r\n" for line in lines) + b".\r\n"


def cut(content, choose):
    borders = sorted(choose.randint(0, len(content)) for _ in range(choose.randint(0, 6)))
    return [content[start:end] for start, end in zip([0, *borders], [*borders, len(content)])]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"a\nb\n", b"a\r\nb\r\n.\r\n"),
        (b"a\r\nb\r\n", b"a\r\nb\r\n.\r\n"),
        (b"a\rb\r", b"a\r\nb\r\n.\r\n"),
        (b"a\r\r\nb\n\r", b"a\r\n\r\nb\r\n\r\n.\r\n"),
        (b"a", b"a\r\n.\r\n"),
        (b"a\n\n", b"a\r\n\r\n.\r\n"),
        (b"", b".\r\n"),
        (b"\n", b"\r\n.\r\n"),
        (b"\r", b"\r\n.\r\n"),
        (b".", b"..\r\n.\r\n"),
        (b".\n..\n.a\na.\n", b"..\r\n...\r\n..a\r\na.\r\n.\r\n"),
        (b"a\r.b", b"a\r\n..b\r\n.\r\n"),
        (b"\r\n.\r\n", b"\r\n..\r\n.\r\n"),
    ],
)
def test_line_ends_become_cr_lf_and_a_dot_that_begins_a_line_is_doubled(content, expected):
    assert on_the_wire(content) == expected
    assert reference(content) == expected


def test_every_other_byte_passes_unchanged():
    others = bytes(byte for byte in range(256) if byte not in b"\r\n")
    assert on_the_wire(others) == others + b"\r\n.\r\n"


@pytest.mark.parametrize("content", [b"a\r\nb", b"a\r\n.b\r\n", b".\r\n.\r\n.", b"\r\n\r\n", b"\r\r\n\n", b"\n.\r"])
def test_it_does_not_matter_where_the_content_is_cut(content):
    for first in range(len(content) + 1):
        for second in range(first, len(content) + 1):
            chunks = content[:first], content[first:second], content[second:]
            assert on_the_wire(*chunks) == reference(content), chunks


def test_random_content_in_random_chunks_is_what_the_plain_way_makes_of_it():
    choose = random.Random(354)
    for _ in range(20000):
        content = bytes(choose.choices(b"\r\n.a", k=choose.randint(0, 14)))
        chunks = cut(content, choose)
        assert on_the_wire(*chunks) == reference(content), chunks


def test_content_without_any_chunk_is_the_final_dot():
    assert on_the_wire() == b".\r\n"


def test_the_final_dot_travels_with_the_last_of_the_content():
    choose = random.Random(250)
    for _ in range(5000):
        chunks = cut(bytes(choose.choices(b"\r\n.a", k=choose.randint(1, 14))), choose)
        sent = list(wire_format(iter(chunks)))
        assert sent[-1].endswith(b"\r\n.\r\n"), chunks
        assert all(sent), chunks


def test_content_goes_out_before_all_of_it_was_read():
    read = []

    def content():
        for number in range(10):
            read.append(number)
            yield b"x" * 1000

    next(wire_format(content()))
    assert len(read) <= 2


def test_content_that_cannot_be_read_to_its_end_gets_no_final_dot():
    def content():
        yield b"a\n"
        yield b"b\n"
        raise OSError("became shorter")

    sent = []
    with pytest.raises(OSError, match="became shorter"):
        for chunk in wire_format(content()):
            sent.append(chunk)
    assert b"".join(sent) in (b"", b"a\r\n")

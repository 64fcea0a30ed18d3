"""Strategies for what may stand in a mail file: arbitrary, and made of pieces that mean something there."""

from hypothesis import strategies as st

PIECES_OF_A_LIST = (
    "ann@example.org", "bob@example.org", "eve@xn--bcher-kva.example", "jörg@bücher.example", "local", '"Doe, Jon"', '"a b"@x.y',
    '"a\\"b"@x', "<", ">", "<>", "(", ")", "(a comment)", ",", ";", ":", " ", "\t", "\r\n ", "\r", "group:", "@a,@b:", "<@a:", '"',
    "\\", "[", "]", "[127.0.0.1]", "@", ".", "..", "\0", "\x7f", "\x85", "\u2028", "\xa0", "a" * 500, "RCPT TO:<x@y>",
    "=?utf-8?q?x?=",
)
ENTRIES = (
    "ann@example.org", "bob@example.org", '"Doe, Jon" <jon@example.org>', "Eve (a comment) <eve@EXAMPLE.org>",
    "jörg@bücher.example",
    '"a b"@example.org', "<@a,@b:old@example.org>", "staff: lee@example.org, kim@example.org;", "local", '"a\\"b"@[127.0.0.1]',
    "no address", "<>", '"unclosed', "<unclosed", "<@unclosed", "(unclosed", "",
)
scrambled = st.lists(st.sampled_from(PIECES_OF_A_LIST), max_size=12).map("".join)
entries = st.one_of(st.sampled_from(ENTRIES[:8]), st.sampled_from(ENTRIES), scrambled)
address_lists = st.one_of(
    st.tuples(st.sampled_from((", ", ",", ",\r\n ", ";")), st.lists(entries, max_size=6)).map(
        lambda parts: parts[0].join(parts[1])
    ),
    scrambled,
    st.text(max_size=60),
)

PIECES_OF_CONTENT = (
    b"\n", b"\r", b"\r\n", b".", b"..", b".\r\n", b"\r\n.\r\n", b"\n.\n", b"\r.\r", b"##", b"##To:x@y\n", b"##Content:\n", b"#",
    b"Subject: x\n", b"Message-Id: <a@b>\n", b"Message-Id:", b"text", b"\0", b"\xff", b" ", "ü".encode(), b"x" * 1000, b"QUIT\r\n",
)
contents = st.one_of(st.lists(st.sampled_from(PIECES_OF_CONTENT), min_size=1, max_size=12).map(b"".join), st.binary(max_size=80))


@st.composite
def mutated(draw, original, pieces):
    """Bytes like these, with some pieces put in, taken out or put elsewhere."""
    text = draw(original)
    for _ in range(draw(st.integers(0, 4))):
        begin, end = sorted(draw(st.integers(0, len(text))) for _ in range(2))
        put_in = draw(st.one_of(st.sampled_from(pieces), st.binary(max_size=4), st.just(text[begin:end] * 2)))
        text = text[:begin] + put_in + text[draw(st.sampled_from((begin, end))) :]
    return text

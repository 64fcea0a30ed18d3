"""The header fields of a message as a person reads them: unfolded, decoded, printable."""

from __future__ import annotations

import binascii
import codecs
import re
from collections.abc import Iterator

from maildrop.logfile import printable

_FIELD = re.compile(rb"^([!-9;-~]+)[ \t]*:((?:[^\n]|\n[ \t])*)", re.MULTILINE)
_SUBJECT = re.compile(rb"^subject[ \t]*:((?:[^\n]|\n[ \t])*)", re.IGNORECASE | re.MULTILINE)
_ENCODED_WORD = re.compile(r"=\?([^?*\s]+)(?:\*[^?\s]*)?\?([bBqQ])\?([^?\s]*)\?=")
_ENCODED_WORDS = re.compile(rf"{_ENCODED_WORD.pattern}(?:\s*{_ENCODED_WORD.pattern})*")    # blanks between two are none
_LONGEST = 10_000    # bytes of a field's body: decoding takes time


def subject(header: bytes) -> str:
    """What stands in the Subject field; "" without one. ``header``: see ``SpooledMail.header``."""
    found = _SUBJECT.search(header)
    return decoded(found[1]) if found else ""


def fields(header: bytes) -> Iterator[tuple[str, str]]:
    """Name and text of each field, in their order. Lines that belong to none are passed over."""
    for found in _FIELD.finditer(header):
        yield found[1].decode("ascii"), decoded(found[2])


def decoded(raw: bytes) -> str:
    """The text of a field's body in one printable line: encoded words (RFC 2047) and raw UTF-8 or Latin-1 decoded."""
    raw = raw[:_LONGEST]
    try:
        text = raw.decode("utf-8")
    except UnicodeDecodeError:
        text = raw.decode("latin-1")
    if "\n" in text:
        text = re.sub(r"\n[ \t]+", " ", text)
    if "=?" in text:
        text = _ENCODED_WORDS.sub(lambda found: _decoded_words(found[0]), text)
    return printable(text)


def _decoded_words(words: str) -> str:
    """Several encoded words in a row: a character may begin in one and end in the next. As they are if that cannot be."""
    parts: list[tuple[str, bytes]] = []
    try:
        for charset, encoding, text in _ENCODED_WORD.findall(words):
            raw = text.encode("ascii")
            data = binascii.a2b_base64(raw + b"==") if encoding in "bB" else binascii.a2b_qp(raw, header=True)
            charset = codecs.lookup(charset).name
            if parts and parts[-1][0] == charset:
                data = parts.pop()[1] + data
            parts.append((charset, data))
        return "".join(data.decode(charset, "replace") for charset, data in parts)
    except (LookupError, ValueError):    # what claims to be encoded and is not
        return words

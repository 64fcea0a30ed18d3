"""Envelope: sender and recipients, parsed and checked once.

The lists come from people and programs, so the parser takes whatever a header field may hold (RFC 5322 3.4, with the
obsolete forms): display names, quoted commas, comments, groups, source routes. It runs in linear time on any input.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import groupby
from operator import itemgetter


class MalformedEnvelope(ValueError):
    """An envelope without a usable sender or recipient; says which and why."""


@dataclass(frozen=True)
class Envelope:
    """Who gets a mail and who hears of its failure: bare addresses that are safe in an SMTP command (RFC 5321 2.3.1)."""

    sender: str    # reverse-path without <>; "" for the null sender
    recipients: tuple[str, ...]    # at least one, none twice
    unusable: tuple[str, ...] = ()    # what else stood in the list of recipients, as it stood there

    @property
    def is_ascii(self) -> bool:
        """Whether any relay can be told of them (RFC 6531)."""
        return self.sender.isascii() and all(map(str.isascii, self.recipients))

    @classmethod
    def parse(cls, sender: str, recipients: str) -> Envelope:
        """Read the texts behind ``##From:`` and ``##To:``.

        Raises MalformedEnvelope if there is a sender without an address, or no recipient with one.
        """
        usable: dict[str, str] = {}
        unusable: list[str] = []
        for text, address in _addresses(recipients):
            if is_address(address):
                usable.setdefault(_identity(address), address)
            else:
                unusable.append(text)
        if not usable:
            raise MalformedEnvelope(f"no usable recipient in {_shortened(recipients)!r}")
        return cls(parse_sender(sender), tuple(usable.values()), tuple(unusable))


def parse_sender(text: str) -> str:
    """The address in ``text``, the first one of several; "" for the null sender, which is written "" or ``<>``.

    Raises MalformedEnvelope if there is text but no address.
    """
    first = next(_addresses(text), None)
    if first is None and not text.strip():
        return ""
    if first is None or first[1] and not is_address(first[1]):
        raise MalformedEnvelope(f"no usable sender in {_shortened(text)!r}")
    return first[1]


def join_recipients(entries: Iterable[str]) -> str:
    """A list of recipients in which each entry counts for one, whatever it holds.

    Raises MalformedEnvelope for an entry with more than one address, or one that would change those behind it.
    """
    texts = [text.replace("\r", "").replace("\n", "") for text in entries]
    expected: list[str] = []
    for text in texts:
        found = [address for _, address in _addresses(text)]
        if len(found) > 1:
            raise MalformedEnvelope(f"more than one recipient in {_shortened(text)!r}")
        expected += found
    joined = ",".join(texts)
    if len(texts) > 1 and [address for _, address in _addresses(joined)] != expected:
        raise MalformedEnvelope(f"a quote or bracket that is never closed in {_shortened(joined)!r}")
    return joined


_UNSAFE = r"\s\x00-\x1f\x7f-\x9f"
_ADDRESS = re.compile(
    rf"""(?: "(?:[^"\\{_UNSAFE}]|[ ]|\\[\x20-\x7e])*" | [^"\\<>()\[\],;:@{_UNSAFE}]+ )
        (?: @ (?: [^"\\<>()\[\],;:@{_UNSAFE}]+ | \[[^\[\]\\<>{_UNSAFE}]+\] ) )?""",
    re.VERBOSE,
)
_LONGEST_ADDRESS = 500    # RFC 5321 4.5.3.1 asks for 256; the rest is for the relay to judge


def is_address(text: str) -> bool:
    """Whether ``text`` is a bare address, with or without a domain, that can stand between ``<`` and ``>``."""
    return len(text) <= _LONGEST_ADDRESS and _ADDRESS.fullmatch(text) is not None


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST_ADDRESS else f"{text[:_LONGEST_ADDRESS]}..."


def _identity(address: str) -> str:
    """What makes two addresses one: only the domain may be folded (RFC 5321 2.4)."""
    local, at, domain = address.rpartition("@")
    return f"{local}{at}{domain.lower()}"


_TOKEN = re.compile(
    r"""(?P<quoted>"(?:[^"\\]|\\.)*"?)
      | (?P<literal>\[[^\[\]]*\]?)
      | (?P<comment>\()
      | (?P<special>[<>,;:])
      | (?P<text>[^"\[(<>,;:]+)""",
    re.VERBOSE | re.DOTALL,
)
_BLANKS = " \t\r\n"
_OLD_BLANKS = re.compile(rf"[{_BLANKS}]*([.@])[{_BLANKS}]*")    # old forms have them around dots and @
_SPECIALS = r'"()<>,:;\[\]\\'
_PLAIN_ENTRY = re.compile(
    rf"""(?: [{_BLANKS}]* (?: ([^{_SPECIALS}{_BLANKS}]+) [{_BLANKS}]* )?    # an address or nothing
           | [^{_SPECIALS}]* < (?!@) ([^{_SPECIALS}{_BLANKS}]*) > [{_BLANKS}]* )    # a name and an address, no route
        (?: [,;] | \Z )""",
    re.VERBOSE,
)
_COMMENT_PART = re.compile(r"\\.|[()]", re.DOTALL)


def _addresses(text: str) -> Iterator[tuple[str, str]]:
    """Each entry of an address list: as it stands there, and its address ("" in ``<>``)."""
    entry: _Entry | None = None    # the one at ``position``; None where it begins there
    position = 0
    while position < len(text):
        if entry is None:
            # What most entries look like is read in one go, to the same effect as by what follows, only faster
            if plain := _PLAIN_ENTRY.match(text, position):
                if plain.lastindex:
                    yield plain[0].rstrip(",;").strip(_BLANKS), plain[plain.lastindex]
                position = plain.end()
                continue
            entry = _Entry(position)
        token = _TOKEN.match(text, position)
        assert token    # each character begins one
        begin, position = position, token.end()
        special = token["special"]
        if token["comment"]:
            end = _end_of_comment(text, position)
            if end is None:    # it would swallow whoever else stands there
                yield from entry.found(text, begin)
                yield text[begin:].strip(_BLANKS), text[begin:]
                return
            position = end
        elif special == ";" or special == "," and not entry.in_route:
            yield from entry.found(text, begin)
            entry = None
        elif special == ":" and entry.in_route:
            entry.end_route()
        elif special == ":" and not entry.has_angle:
            entry = None    # what stood before it was a group's name
        elif special == "<":
            entry.open_angle()
        elif special == ">" and entry.in_angle:
            entry.in_angle = False
        else:
            entry.add(token[0], verbatim=token["quoted"] is not None)
    if entry is not None:
        yield from entry.found(text, position)


class _Entry:
    """One entry of an address list while it is read."""

    def __init__(self, begin: int):
        self.begin = begin
        self.in_angle = False
        self.in_route = False
        self.has_angle = False
        self.broken = False
        self._parts: list[tuple[bool, str]] = []    # is it to be kept as it is; text

    def open_angle(self) -> None:
        self.broken = self.has_angle
        self.has_angle = self.in_angle = True
        self._parts = []    # what stood before it was a display name

    def end_route(self) -> None:
        self.in_route = False
        self._parts = []

    def add(self, text: str, verbatim: bool) -> None:
        if self.has_angle and not self.in_angle:
            return
        if self.in_angle and not self._parts and text.lstrip(_BLANKS).startswith("@"):
            self.in_route = True    # a source route, which ends with a colon (RFC 5321 appendix C)
        if text.strip(_BLANKS) or self._parts:
            self._parts.append((verbatim, text))

    def found(self, text: str, end: int) -> Iterator[tuple[str, str]]:
        whole = text[self.begin : end].strip(_BLANKS)
        address = self._address() if not (self.broken or self.in_angle) else whole    # and that is none
        if self.has_angle or address:
            yield whole, address

    def _address(self) -> str:
        pieces = []
        for verbatim, group in groupby(self._parts, key=itemgetter(0)):
            piece = "".join(text for _, text in group)
            if not verbatim and len(piece) < 2 * _LONGEST_ADDRESS:
                piece = _OLD_BLANKS.sub(r"\1", piece)
            pieces.append(piece)
        return "".join(pieces).strip(_BLANKS)


def _end_of_comment(text: str, position: int) -> int | None:
    depth = 1
    for part in _COMMENT_PART.finditer(text, position):
        depth += {"(": 1, ")": -1}.get(part[0], 0)
        if depth == 0:
            return part.end()
    return None

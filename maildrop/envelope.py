"""Envelope: sender and recipients, parsed and checked once.

The lists come from people and programs, so the parser takes whatever a header field may hold (RFC 5322 3.4, with the
obsolete forms): display names, quoted commas, comments, groups, source routes. It runs in linear time on any input.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass


class MalformedEnvelope(ValueError):
    """An envelope without a usable sender or recipient; says which and why."""


@dataclass(frozen=True)
class Envelope:
    """Who gets a mail and who hears of its failure: bare addresses that are safe in an SMTP command (RFC 5321 2.3.1)."""

    sender: str    # reverse-path without <>; "" for the null sender
    recipients: tuple[str, ...]    # at least one, none twice
    unusable: tuple[str, ...] = ()    # what else stood in the list of recipients, as it stood there

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
            raise MalformedEnvelope(f"no usable recipient in {recipients!r}")
        return cls(parse_sender(sender), tuple(usable.values()), tuple(unusable))


def parse_sender(text: str) -> str:
    """The address in ``text``, the first one of several; "" for the null sender, which is written "" or ``<>``.

    Raises MalformedEnvelope if there is text but no address.
    """
    address = next((address for _, address in _addresses(text)), "")
    if address and not is_address(address):
        raise MalformedEnvelope(f"no usable sender in {text!r}")
    return address


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


def _identity(address: str) -> str:
    """What makes two addresses one: only the domain may be folded (RFC 5321 2.4)."""
    local, at, domain = address.rpartition("@")
    return f"{local}{at}{domain.lower()}"


_TOKEN = re.compile(
    r"""(?P<quoted>"(?:[^"\\]|\\.)*"?)
      | (?P<literal>\[[^\[\]]*\]?)
      | <(?P<angle>(?:"(?:[^"\\]|\\.)*"|[^"<>])*)>
      | (?P<comment>\()
      | (?P<end>[,;])
      | (?P<group>:)
      | (?P<text>[^"\[<(,;:]+|.)""",
    re.VERBOSE | re.DOTALL,
)
_COMMENT_PART = re.compile(r"\\.|[()]", re.DOTALL)


def _addresses(text: str) -> Iterator[tuple[str, str]]:
    """Each entry of an address list: as it stands there, and its address ("" in ``<>``)."""
    begin = position = 0
    words: list[str] = []
    angle: str | None = None
    while position <= len(text):
        token = _TOKEN.match(text, position)
        if token is None or token["end"]:
            if angle is not None or "".join(words).strip():
                yield text[begin:position].strip(), _bare("".join(words) if angle is None else angle)
            begin, words, angle = (token.end() if token else position), [], None
        elif token["group"]:    # what stood before it was the group's name
            begin, words, angle = token.end(), [], None
        elif token["angle"] is not None:
            angle = token["angle"]
        elif not token["comment"]:
            words.append(token[0])
        if token is None:
            return
        position = _end_of_comment(text, token.end()) if token["comment"] else token.end()


def _end_of_comment(text: str, position: int) -> int:
    depth = 1
    for part in _COMMENT_PART.finditer(text, position):
        depth += {"(": 1, ")": -1}.get(part[0], 0)
        if depth == 0:
            return part.end()
    return len(text)


def _bare(address: str) -> str:
    """Without a source route and the blanks that old forms allow around dots and ``@``."""
    address = address.strip()
    if len(address) > 2 * _LONGEST_ADDRESS:
        return address
    if address.startswith("@") and ":" in address:
        address = address.partition(":")[2]
    return re.sub(r"[ \t]*([.@])[ \t]*", r"\1", address)

"""The syntax of the config file: ``KEY=value`` lines that both Python and ``sh`` read. Nothing is executed."""

from __future__ import annotations

import ast
import re
import warnings
from typing import Any, NamedTuple


class AssignmentError(ValueError):
    """Source that is no list of assignments; names the line and the key, never a value: it may be secret."""


class Assignment(NamedTuple):
    name: str
    value: str | int | float | bool | None
    line: int
    source: str    # the value as it stands in the file
    is_plain: bool    # whether sh reads the line to the same effect


def decode(raw: bytes) -> str:
    """Text of a config file. Old files have comments in Latin-1."""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError:
        return raw.decode("latin-1")


_BLANK = re.compile(r"(?:\s+|\\\n|\#[^\n]*)+")
_KEY = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)[ \t]*=[ \t]*")
_STRING = re.compile(
    r"""(?P<prefix>[rR]|[uU]|[uU][rR])?
        (?:\"\"\"(?:[^\\]|\\.)*?\"\"\" | '''(?:[^\\]|\\.)*?''' | "(?:[^"\\\n]|\\.)*" | '(?:[^'\\\n]|\\.)*')""",
    re.VERBOSE | re.DOTALL,
)
_NUMBER = re.compile(r"0[xX][0-9a-fA-F]+|0[oO][0-7]+|0[bB][01]+|(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?")
_LONGEST_NUMBER = 30
_SPECIAL = {"True": True, "False": False, "None": None}
_WORD = re.compile(r"[^\s#;]+")
_TEXT = re.compile(r"[ \t\f]*[^\s#]")
_PLAIN_LINE = re.compile(
    r"""[ \t]* \w+ = (?: (?: "[^"$`\\]*" | '[^'\\]*' )+ | [\w.+-]+ ) (?: [ \t]+ (?:\#.*)? )?""", re.VERBOSE
)


def parse_assignments(source: str) -> list[Assignment]:
    """Read assignments of strings, numbers, True, False and None, in the order of the file.

    Strings are Python literals, with or without an ``r`` or ``u`` before them. A number with a leading 0 is octal.
    Raises AssignmentError, naming the line, for anything else.
    """
    source = source.replace("\r\n", "\n")
    assignments: list[Assignment] = []
    position = 0
    while True:
        if blank := _BLANK.match(source, position):
            position = blank.end()
        if position == len(source):
            return assignments
        line = source.count("\n", 0, position) + 1
        key = _KEY.match(source, position)
        if key is None:
            raise AssignmentError(f"line {line}: expected KEY=value")
        value, end = _parse_value(source, key.end(), f"line {line}: {key[1]}")
        whole = source[source.rfind("\n", 0, position) + 1 : (source + "\n").index("\n", end)]
        is_plain = _PLAIN_LINE.fullmatch(whole) is not None
        assignments.append(Assignment(key[1], value, line, source[key.end() : end], is_plain))
        position = end


def _parse_value(source: str, start: int, where: str) -> tuple[Any, int]:
    if literal := _STRING.match(source, start):
        value: Any = _string_value(literal, where)
    elif literal := _NUMBER.match(source, start):
        value = _number_value(literal[0], where)
    elif (literal := _WORD.match(source, start)) and literal[0] in _SPECIAL:
        value = _SPECIAL[literal[0]]
    else:
        raise AssignmentError(f"{where}: a value is a string in quotes, a number, True, False or None")
    if _TEXT.match(source, literal.end()):
        raise AssignmentError(f"{where}: more text after the value")
    return value, literal.end()


def _string_value(literal: re.Match[str], where: str) -> str:
    text = literal[0]
    if (literal["prefix"] or "").lower() == "ur":    # Python 2 only
        text = text[1:]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")    # an unknown escape means itself, as ever
            value = ast.literal_eval(text)
    except (SyntaxError, ValueError):
        raise AssignmentError(f"{where}: not a valid string") from None
    return str(value)


def _number_value(text: str, where: str) -> int | float:
    if len(text) > _LONGEST_NUMBER:
        raise AssignmentError(f"{where}: too large a number")
    if re.fullmatch(r"0[0-9]+", text):
        if re.search("[89]", text):
            raise AssignmentError(f"{where}: a number with a leading 0 is octal and has no digits 8 and 9")
        return int(text, 8)
    value: int | float = ast.literal_eval(text)
    if isinstance(value, float) and value == float("inf"):
        raise AssignmentError(f"{where}: too large a number")
    return value

"""Output for people on a terminal, and for programs everywhere else: tables, colours, a progress bar, a question."""

from __future__ import annotations

import os
import shutil
import sys
import time
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import TextIO, TypeVar

Item = TypeVar("Item")

_COLOURS = {"red": "31", "green": "32", "yellow": "33", "blue": "34", "bold": "1", "dim": "2"}
_GAP = "  "
_BELOW = "    "
_BAR = 30    # characters
_REDRAW_S = 0.1


class Screen:
    """Where output goes."""

    def __init__(self, stream: TextIO):
        self.stream = stream
        self.is_terminal = stream.isatty()
        self._has_colours = self.is_terminal and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"

    @property
    def width(self) -> int:
        return shutil.get_terminal_size().columns

    def say(self, text: str = "") -> None:
        print(text, file=self.stream)

    def coloured(self, text: str, colour: str) -> str:
        """``text`` in a colour, or "bold" or "dim"; as it is where there are none."""
        return f"\033[{_COLOURS[colour]}m{text}\033[0m" if self._has_colours and colour else text

    def table(
        self,
        head: Sequence[str],
        rows: Iterable[Sequence[str]],
        right: str = "",
        colours: Sequence[str] = (),
        below: Sequence[str] = (),
    ) -> None:
        """Rows of cells, aligned under ``head`` on a terminal; elsewhere cells with a TAB between them, and no head.

        ``right``: an "r" for each column that is aligned to the right, in its place. ``colours``, and what stands ``below``
        on a terminal: one for each row. What is too long for the terminal is cut.
        """
        if not self.is_terminal:
            for row in rows:
                self.say("\t".join(row))
            return
        lines = [list(head), *map(list, rows)]
        widths = [max(map(columns_of, column)) for column in zip(*lines)]
        sides = right.ljust(len(head))
        for number, line in enumerate(lines):
            cells = [_padded(cell, width, side == "r") for cell, width, side in zip(line, widths, sides)]
            colour = "bold" if number == 0 else colours[number - 1] if colours else ""
            self.say(self.coloured(cut(_GAP.join(cells).rstrip(), self.width), colour))
            if number and below and below[number - 1]:
                self.say(cut(_BELOW + below[number - 1], self.width))


def columns_of(text: str) -> int:
    """How many columns of a terminal printable text takes: wide characters take two, combining ones none."""
    if text.isascii():
        return len(text)
    return sum(0 if unicodedata.combining(char) else 1 + (unicodedata.east_asian_width(char) in "WF") for char in text)


def cut(text: str, width: int) -> str:
    """As much of the text as fits, with three dots where it goes on."""
    if columns_of(text) <= width:
        return text
    kept, left = [], width - 3
    for char in text:
        left -= columns_of(char)
        if left < 0:
            break
        kept.append(char)
    return "".join(kept).rstrip() + "..."


def _padded(text: str, width: int, to_the_right: bool) -> str:
    blanks = " " * (width - columns_of(text))
    return blanks + text if to_the_right else text + blanks


def progress(items: Iterable[Item], total: int, what: str, stream: TextIO | None = None) -> Iterator[Item]:
    """The items, with a bar on a terminal that shows how many of ``total`` have been dealt with. Goes when all are done."""
    stream = stream or sys.stderr
    if not stream.isatty():
        yield from items
        return
    began = drawn = time.monotonic()
    try:
        for done, item in enumerate(items, 1):
            now = time.monotonic()
            if now - drawn >= _REDRAW_S:
                drawn = now
                left_s = (now - began) / done * max(total - done, 0)
                stream.write(f"\r{what} [{_bar(done, total)}] {done}/{total}, {left_s:.0f}s left \033[K")
                stream.flush()
            yield item
    finally:
        if drawn != began:
            stream.write("\r\033[K")
            stream.flush()


def _bar(done: int, total: int) -> str:
    filled = min(_BAR, done * _BAR // max(total, 1))
    return "#" * filled + "." * (_BAR - filled)


def confirmed(question: str) -> bool:
    """Ask, on standard error; whether the answer, a line of standard input, is yes."""
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    answer = sys.stdin.readline()
    if not answer.endswith("\n"):
        print(file=sys.stderr)
    return answer.strip().lower() in ("y", "yes")

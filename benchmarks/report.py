"""What the benchmarks print: the machine, and tables of medians, bests and ratios."""

from __future__ import annotations

import argparse
import os
import platform
import signal
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TypeVar

from benchmarks.peers import OURS

_LEGEND = f"ratio: {OURS}'s figure divided by this row's in the same round; below 1, {OURS} takes less"

T = TypeVar("T")
Round = Mapping[str, float]    # figure -> value; less is better in all of them


@dataclass(frozen=True)
class Figure:
    """A measured quantity: its median, best and ratio are a column each."""

    name: str
    unit: str
    digits: int = 2


def options(description: str | None, rounds: int) -> argparse.ArgumentParser:
    """A parser with the options that all benchmarks have."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=rounds, help="each contestant runs once in each (%(default)s)")
    parser.add_argument("--dir", type=Path, default=Path("/var/tmp"), help="where queues are made (%(default)s)")
    parser.add_argument("--quick", action="store_true", help="a few mails and one round: proves that it works, no more")
    return parser


def in_turn(contestants: Sequence[T], rounds: int) -> Iterator[T]:
    """Each contestant once in each round; each round begins with another one."""
    for number in range(rounds):
        first = number % len(contestants)
        yield from contestants[first:]
        yield from contestants[:first]


def begin(left_out: Iterable[str] = ()) -> None:
    """Print the first lines of a benchmark. ``left_out``: what cannot be compared here, a sentence each."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)    # ends what runs and removes what was made, like Ctrl-C
    load = os.getloadavg()[0]
    print(
        f"{_processor()}, {os.cpu_count()} cores, load {load:.2f}; Linux {platform.release()}, "
        f"Python {platform.python_version()}"
    )
    for reason in left_out:
        print(f"left out: {reason}")
    print(flush=True)


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def print_table(title: str, figures: Sequence[Figure], results: Mapping[str, Sequence[Round]]) -> None:
    """A row for each contestant. ``results``: what it needed in each round; OURS is one of them.

    A figure that a contestant does not have is missing in its rounds.
    """
    head = ["", *[f"{figure.name}, {what}" for figure in figures for what in (f"median {figure.unit}", "best", "ratio")]]
    rows = [[name, *_cells(figures, rounds, results[OURS])] for name, rounds in results.items()]
    print(title)
    print_columns([head, *rows])
    print(f"({_LEGEND})\n", flush=True)


def _cells(figures: Sequence[Figure], rounds: Sequence[Round], ours: Sequence[Round]) -> Iterable[str]:
    for figure in figures:
        if any(figure.name not in values for values in rounds):
            yield from ("-", "-", "-")
            continue
        values = [values[figure.name] for values in rounds]
        ratio = median(our[figure.name] / value if value else float("nan") for our, value in zip(ours, values))
        yield f"{median(values):.{figure.digits}f}"
        yield f"{min(values):.{figure.digits}f}"
        yield f"{ratio:.3g}"


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    """The first column is flush left, the others flush right; the first row may take several lines."""
    head, *others = rows
    split = [cell.split(", ") for cell in head]
    height = max(map(len, split))
    lines = [[cell[line] if line < len(cell) else "" for cell in split] for line in range(height)]
    widths = [max(map(len, column)) for column in zip(*lines, *others)]
    for row in [*lines, *others]:
        print("  ".join([row[0].ljust(widths[0]), *[cell.rjust(width) for cell, width in zip(row[1:], widths[1:])]]).rstrip())

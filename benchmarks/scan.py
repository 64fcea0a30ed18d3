"""A look at a large spool: seconds, and how they grow with the spool.

A directory with so many entries: half of the mails are locked, so of three entries one is a mail that is due, one a locked
mail, one its lock. In comparison, the listing of a queue of zope.sendmail with as many entries, all of them mails: its
locked ones are in another directory. The directories' blocks and inodes are in memory, as they are when mails have just come.
"""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from statistics import median

from zope.sendmail.maildir import Maildir

from benchmarks.peers import OURS
from benchmarks.report import Figure, begin, in_turn, options, print_columns, print_table
from maildrop import spool
from maildrop.scan import scan

_TIME = Figure("scan", "s", 4)
_PEER = "zope.sendmail"


def look_at_spool(directory: Path) -> int:
    """What the daemon does at the beginning of a pass. Returns how many mails are due."""
    return len(scan(directory, time.time()).names)


def look_at_maildir(directory: Path) -> int:
    """What the queue processor does instead."""
    return sum(1 for _ in Maildir(str(directory)))


def grow_spool(directory: Path, entries: int) -> None:
    """Add mails, every other one locked, until there are so many entries."""
    for _ in range(len(os.listdir(directory)), entries - 2, 3):
        (directory / spool.new_name()).touch()
        locked = directory / spool.new_name()
        locked.touch()
        os.link(locked, spool.lock_path(locked))


def grow_maildir(directory: Path, entries: int) -> None:
    new = directory / "new"
    for number in range(len(os.listdir(new)), entries):
        (new / f"{number:09}.benchmark").touch()


def measure(look: Callable[[], int], least: int) -> dict[str, float]:
    begun_at = time.perf_counter()
    found = look()
    figures = {_TIME.name: time.perf_counter() - begun_at}
    if found < least:
        raise RuntimeError(f"{found} mails were found instead of {least}")
    return figures


def main() -> None:
    parser = options(__doc__, rounds=5)
    parser.add_argument("--entries", type=int, nargs="+", default=[10_000, 30_000, 100_000], help="(10000 30000 100000)")
    parser.add_argument("--large", action="store_true", help="up to a million entries, which takes long to make")
    chosen = parser.parse_args()
    if chosen.large:
        chosen.entries += [200_000, 500_000, 1_000_000]
    if chosen.quick:
        chosen.entries, chosen.rounds = [300, 900], 1
    begin()
    medians: dict[str, list[float]] = {OURS: [], _PEER: []}
    with tempfile.TemporaryDirectory(dir=chosen.dir, prefix="bench-") as place:
        spool_directory, maildir = Path(place) / "spool", Path(place) / "maildir"
        spool_directory.mkdir()
        Maildir(str(maildir), create=True)
        for entries in sorted(chosen.entries):
            grow_spool(spool_directory, entries)
            grow_maildir(maildir, entries)
            contestants = [
                (OURS, lambda: look_at_spool(spool_directory), entries // 3 - 1),
                (_PEER, lambda: look_at_maildir(maildir), entries),
            ]
            results: dict[str, list[dict[str, float]]] = {name: [] for name, _, _ in contestants}
            for name, look, least in in_turn(contestants, chosen.rounds):
                results[name].append(measure(look, least))
            print_table(f"{entries} entries, {chosen.rounds} rounds", [_TIME], results)
            for name, rounds in results.items():
                medians[name].append(median(values[_TIME.name] for values in rounds))
    _print_growth(sorted(chosen.entries), medians)


def _print_growth(sizes: list[int], medians: dict[str, list[float]]) -> None:
    """How many times as long each size takes as the one before."""
    head = ["entries", "as many", *medians]
    rows = [
        [f"{before} -> {after}", f"{after / before:.1f}", *[f"{times[i + 1] / times[i]:.1f}" for times in medians.values()]]
        for i, (before, after) in enumerate(pairwise(sizes))
    ]
    print("growth: how many times as long a scan takes")
    print_columns([head, *rows])


if __name__ == "__main__":
    main()

"""What a mail costs the process that sends it: ``send()`` and its share of the transaction's commit.

A MaildropHost, with and without MAILDROP_FSYNC, and the stock MailHost with a queue, on the same disk; each in a ZODB in
memory, in which each transaction also changes an object. The stock MailHost does not start its queue thread
(MAILHOST_QUEUE_ONLY), whose CPU would count here though it is spent on delivery. It never waits for the disk: its time
compares with that of MAILDROP_FSYNC=0.

"header work alone" is what both share: MailHost's handling of the header fields, and the transaction; nothing is written.
The second table has what is left without it: the spool's, or the queue's, own part.
"""

from __future__ import annotations

import gc
import os
import shutil
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import transaction
import ZODB
from Products.MailHost.MailHost import MailHost
from support.config_file import write_config

from benchmarks.mails import RECIPIENT, SENDER, text_of
from benchmarks.peers import OURS
from benchmarks.report import Figure, begin, in_turn, options, print_table
from Products.MaildropHost.MaildropHost import MaildropHost

_TIME = Figure("time/mail", "ms", 3)
_CPU = Figure("CPU/mail", "ms", 3)
_HEADER_WORK = "header work alone"


class HeaderWork(MailHost):
    """A mail host that stops where the others begin to write."""

    def _send(self, mfrom, mto, messageText, immediate=False):
        pass


@dataclass(frozen=True)
class Contestant:
    name: str
    host: Any
    written: Path    # where its mails are


def contestants(directory: Path) -> list[Contestant]:
    found = []
    for name, settings in ((OURS, {}), (f"{OURS}, FSYNC=0", {"MAILDROP_FSYNC": 0})):
        home = directory / name
        host = MaildropHost("MailHost")
        host.config_path = str(write_config(home / "config", MAILDROP_HOME=home, **settings))
        found.append(Contestant(name, host, home / "spool"))
    queue = directory / "queue"
    stock = MailHost("MailHost", smtp_queue=True, smtp_queue_directory=str(queue))
    return [*found, Contestant("MailHost, queue", stock, queue), Contestant(_HEADER_WORK, HeaderWork("MailHost"), queue)]


def measure(contestant: Contestant, root: Any, transactions: int, mails: int, size: int) -> dict[str, float]:
    """Send so many mails in each of so many transactions. Returns the figures per mail."""
    host = root[contestant.name]
    text = text_of(size)
    gc.collect()
    begun_at, cpu_before = time.perf_counter(), time.process_time()
    for _ in range(transactions):
        for _ in range(mails):
            host.send(text, mto=RECIPIENT, mfrom=SENDER, subject="benchmark")
        root["transactions"] += 1
        transaction.commit()
    cpu, elapsed = time.process_time() - cpu_before, time.perf_counter() - begun_at
    shutil.rmtree(contestant.written, ignore_errors=True)
    return {_TIME.name: elapsed / transactions / mails * 1000, _CPU.name: cpu / transactions / mails * 1000}


def without_header_work(results: Mapping[str, Sequence[Mapping[str, float]]]) -> dict[str, list[dict[str, float]]]:
    """The same figures less the median of the header work."""
    shared = {
        figure.name: median(values[figure.name] for values in results[_HEADER_WORK]) for figure in (_TIME, _CPU)
    }
    return {
        name: [{figure: value - shared[figure] for figure, value in values.items()} for values in rounds]
        for name, rounds in results.items()
        if name != _HEADER_WORK
    }


def main() -> None:
    parser = options(__doc__, rounds=5)
    parser.add_argument("--mails", type=int, default=500, help="sent by each contestant in each round (%(default)s)")
    parser.add_argument("--per-transaction", type=int, nargs="+", default=[1, 100], help="mails (1 100)")
    parser.add_argument("--size", type=int, default=4096, help="bytes of a mail (%(default)s)")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.mails, chosen.per_transaction, chosen.rounds = 10, [1, 5], 1
    begin()
    os.environ["MAILHOST_QUEUE_ONLY"] = "1"
    with tempfile.TemporaryDirectory(dir=chosen.dir, prefix="bench-") as place:
        all_of_them = contestants(Path(place))
        root = ZODB.DB(None).open().root()
        root["transactions"] = 0
        for contestant in all_of_them:
            root[contestant.name] = contestant.host
        transaction.commit()
        for contestant in all_of_them:    # the first mail of a process finds out about its host and its files
            measure(contestant, root, 1, 1, chosen.size)
        for mails in chosen.per_transaction:
            transactions = max(1, chosen.mails // mails)
            results: dict[str, list[dict[str, float]]] = {contestant.name: [] for contestant in all_of_them}
            for contestant in in_turn(all_of_them, chosen.rounds):
                results[contestant.name].append(measure(contestant, root, transactions, mails, chosen.size))
            title = f"{transactions} x {mails} mails a transaction, {chosen.size} bytes each, {chosen.rounds} rounds"
            print_table(title, [_TIME, _CPU], results)
            print_table("the same without the header work", [_TIME, _CPU], without_header_work(results))


if __name__ == "__main__":
    main()

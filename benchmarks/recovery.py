"""What Zope's start takes longer because of what dead processes left locked in the spool: seconds.

A FileStorage with so many transactions, and so many orphans, mails of a transaction each. "across": those transactions lie
evenly in all of the history, so that all of it has to be read; "newest": they are the newest ones, as after a crash.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import transaction
from persistent.mapping import PersistentMapping
from ZODB.DB import DB
from ZODB.FileStorage import FileStorage

from benchmarks.report import begin, options, print_columns
from maildrop import spool, writers
from Products.MaildropHost.history import INFO, last_transaction, place_of
from Products.MaildropHost.recovery import recover

CONTENT = b"Subject: x\n\n" + b"One line of seventy characters, as people write them in their letters.\n" * 50
Votes = list[tuple[str, str]]    # token of a transaction, and what was the newest one before


def fill(path: Path, transactions: int) -> tuple[DB, Votes]:
    """A database with so many transactions, each with a token."""
    sys.modules[FileStorage.__module__].fsync = None    # it would take minutes
    database = DB(FileStorage(str(path)))
    votes = []
    connection = database.open()
    for number in range(1000):
        connection.root()[number] = PersistentMapping()
    transaction.commit()
    for number in range(transactions):
        votes.append((os.urandom(16).hex(), last_transaction(database)))
        transaction.get().setExtendedInfo(INFO, votes[-1][0])
        connection.root()[number % 1000]["number"] = number
        transaction.commit()
    connection.close()
    return database, votes


def leave_orphans(directory: Path, database: DB, votes: Votes, voted: bool, committed: bool) -> None:
    """Have a process die in the midst of these transactions."""
    place = place_of(database)
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        return
    for token, last in votes:
        token = token if committed else os.urandom(16).hex()
        writer = writers.join(directory, 0o600, token)
        spool.Draft(directory / spool.new_name()).write(
            "zoe@example.org", "ann@example.org", CONTENT, {"Transaction": f"{writer.name} {token}"}
        )
        if voted:
            writer.vote(writers.Vote(token, True, (writers.Database(place, last, True),)), durable=False, ends=writer.ends)
    os._exit(0)


def main() -> None:
    parser = options(__doc__, rounds=1)
    parser.add_argument("--transactions", type=int, default=100_000, help="(%(default)s)")
    parser.add_argument("--orphans", type=int, default=10_000, help="(%(default)s)")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.transactions, chosen.orphans = 200, 20
    begin()
    rows = [["", "s", "CPU s", "mails"]]
    with tempfile.TemporaryDirectory(dir=chosen.dir, prefix="bench-") as place:
        database, votes = fill(Path(place) / "Data.fs", chosen.transactions)
        across, newest = votes[:: chosen.transactions // chosen.orphans], votes[-chosen.orphans :]
        cases = [
            ("no orphan", [], True, True),
            ("not voted", newest, False, False),
            ("committed, newest", newest, True, True),
            ("committed, across", across, True, True),
            ("not committed, newest", newest, True, False),
            ("not committed, across", across, True, False),
        ]
        for number, (name, taken, voted, committed) in enumerate(cases):
            directory = Path(place) / f"spool{number}"
            spool.make_spool(directory, 0o700)
            leave_orphans(directory, database, taken, voted, committed)
            begun_at, cpu_s = time.perf_counter(), time.process_time()
            done = recover(directory, [database], durable=True)
            taken_s, cpu_s = time.perf_counter() - begun_at, time.process_time() - cpu_s
            rows.append([name, f"{taken_s:.2f}", f"{cpu_s:.2f}", str(sum(done.values()))])
        database.close()
    print(f"{chosen.transactions} transactions, {chosen.orphans} orphans")
    print_columns(rows)


if __name__ == "__main__":
    main()

"""Processes that die in the midst of a transaction with mails, and what they leave in the spool."""

from __future__ import annotations

import os
import signal
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path

import transaction
from persistent.mapping import PersistentMapping
from ZODB.DB import DB
from ZODB.FileStorage import FileStorage

from maildrop import spool, writers
from support.spooling import files_in, make_host

STEPS = {    # of a commit; the process dies instead of taking it
    "vote": (writers.Writer, "vote"),
    "database's finish": (FileStorage, "tpc_finish"),
    "release": (spool.Draft, "release"),
}


def in_fork(work: Callable[[], object]) -> int:
    """Do ``work`` in a fork of this process; returns its exit code, or minus the signal that it died of."""
    pid = os.fork()
    if pid == 0:
        try:
            work()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def die(*_: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def die_at(step: str, work: Callable[[], object]) -> None:
    """Do ``work`` and commit, in a process that is killed at that step."""

    def fork() -> None:
        transaction.abort()
        work()
        owner, name = STEPS[step]
        setattr(owner, name, die)
        transaction.commit()

    assert in_fork(fork) == -signal.SIGKILL


def leave_orphan(directory: Path, subject: str = "x") -> str:
    """A process dies with a mail in its transaction, which has not voted. Returns the mail's name."""
    name = spool.new_name()
    content = f"Subject: {subject}\n\nbody\n".encode()

    def work() -> None:
        writer = writers.join(directory, 0o600, "token").name
        spool.Draft(directory / name).write("zoe@example.org", "ann@example.org", content, {"Transaction": f"{writer} token"})
        die()

    assert in_fork(work) == -signal.SIGKILL
    return name


@contextmanager
def opened(*paths: Path):
    """FileStorages as one multi-database; yields the first one's DB."""
    databases: dict[str, DB] = {}
    for path in paths:
        DB(FileStorage(str(path)), databases=databases, database_name=path.stem)
    try:
        yield databases[paths[0].stem]
    finally:
        for database in databases.values():
            database.close()


def change(connection, value: object) -> None:
    """Change an object of the database, together with others in the transaction."""
    connection.root()["content"]["value"] = value


class Site:
    """A site with databases in ``directory`` of its own, and a spool that it may share."""

    def __init__(self, directory: Path, spool_directory: Path, names: tuple[str, ...] = ("main",)):
        directory.mkdir(exist_ok=True)
        self.paths = [directory / f"{name}.fs" for name in names]
        self.spool = spool_directory
        self._open: list[object] = []
        self.host = make_host(directory, MAILDROP_SPOOL=spool_directory)
        with opened(*self.paths) as database:
            for each in database.databases.values():
                with each.transaction() as connection:
                    connection.root()["content"] = PersistentMapping()

    def connect(self):
        """A connection to the first database, for a process that will not close it."""
        databases = opened(*self.paths)
        self._open = [*self._open, databases]
        return databases.__enter__().open()

    def send(self, subject: str = "x", mails: int = 1) -> None:
        for _ in range(mails):
            self.host.send("Hello", mto="ann@example.org", mfrom="zoe@example.org", subject=subject)

    def dies_at(self, step: str, mails: int = 1, value: object = "changed", in_all: bool = True) -> None:
        """A process of the site dies at that step of a transaction that sends and changes an object in each database."""

        def work() -> None:
            connection = self.connect()
            self.send(mails=mails)
            for name in connection.db().databases if in_all else ["main"]:
                change(connection.get_connection(name), value)

        die_at(step, work)

    def dies_with_mails_only(self, step: str) -> None:
        die_at(step, self.send)

    def state(self) -> dict[str, str]:
        """What became of each mail: "due", "locked", or why it is kept in ``failed``."""
        names = files_in(self.spool)
        mails = [name for name in names if not name.endswith(".lck")]
        state = {name: "locked" if f"{name}.lck" in names else "due" for name in mails}
        state.update({name: "lock alone" for name in names if name.endswith(".lck") and name[:-4] not in mails})
        for path in (self.spool / "failed").glob("*"):
            state[path.name] = spool.read_note(path, "Failed")
        return state

    def states(self) -> list[str]:
        return sorted(self.state().values())

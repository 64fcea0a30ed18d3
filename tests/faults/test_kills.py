"""The daemon is killed at each of its system calls, or one of them fails: no mail is lost, stuck or sent twice."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import pytest
from support.config_file import write_config
from support.relay_server import RelayServer
from support.tracing import Trace, attached, requires_strace

from maildrop import spool

INTERPRETER = os.path.realpath(sys.executable)    # not a script that starts the interpreter
DAEMON = Path(__file__).parents[2] / "maildrop" / "maildrop.py"
PATIENCE_S = 10.0

REFUSED, LATER, ANN, BOB, EVE = (f"{name}@example.org" for name in ("refused", "later", "ann", "bob", "eve"))
MAILS = {"many": (REFUSED, LATER, ANN), "simple": (BOB,), "put-off": (EVE,)}
PAIRS = [(mail, recipient) for mail, recipients in MAILS.items() for recipient in recipients]

# strace counts names one by one, so only what is one call under several names stands together.
CALLS = {
    "openat": "openat",
    "write": "write",
    "sendto": "sendto",
    "recvfrom": "recvfrom",
    "fsync": "fsync",
    "rename": "/^rename",
    "unlink": "/^unlink",
    "flock": "flock",
    "read": "read",
    "socket": "socket",
    "connect": "connect",
    "utimensat": "utimensat",
}
KILLED = ["openat", "write", "sendto", "recvfrom", "fsync", "rename", "unlink", "flock"]
ERRORS = {
    "openat": ["EMFILE", "EACCES", "ENOSPC"],
    "read": ["EIO"],
    "write": ["ENOSPC", "EIO"],
    "fsync": ["EIO", "ENOSPC"],
    "rename": ["EIO", "EACCES", "ENOSPC"],
    "unlink": ["EIO", "EACCES"],
    "flock": ["EIO", "ENOLCK"],
    "utimensat": ["EIO"],
    "socket": ["EMFILE"],
    "connect": ["ENETUNREACH"],
    "sendto": ["ECONNRESET", "EIO"],
    "recvfrom": ["ECONNRESET", "EIO"],
}


@pytest.fixture(autouse=True)
def _strace():
    requires_strace()


@pytest.fixture(params=["pipelining", "plain"])
def relay(request):
    with MoodyRelay() as server:
        server.pipelining = request.param == "pipelining"
        yield server


@pytest.mark.fault_kind("daemon killed at a system call")
@pytest.mark.parametrize("call", KILLED)
def test_a_daemon_killed_at_any_call_leaves_each_mail_to_the_next_one(call, tmp_path, relay, ledger):
    try_each(call, "signal=SIGKILL", tmp_path, relay, ledger)


@pytest.mark.fault_kind("a system call of the daemon fails")
@pytest.mark.parametrize(("call", "error"), [(call, error) for call, errors in ERRORS.items() for error in errors])
def test_a_daemon_of_which_any_call_fails_once_goes_on_and_sends_each_mail(call, error, tmp_path, relay, ledger):
    try_each(call, f"error={error}", tmp_path, relay, ledger)


def try_each(call: str, fault: str, directory: Path, relay: MoodyRelay, ledger) -> None:
    """Let the fault happen at the 1st, 2nd, … such call of a run until a run has no more of them."""
    told = []
    for options in (("-f",), ()):    # with -f the main thread, which mostly waits, never comes first: then it alone
        for number in count(1):
            case = Case(directory / f"{'all' if options else 'main'}-{number}", relay)
            case.run(f"{CALLS[call]}:{fault}:when={number}", options)
            if case.fired:
                ledger.add(1, len(case.lost), len(case.stuck), len(case.duplicates), len(case.excused))
            if trouble := case.trouble():
                where = "in any thread" if options else "in the main thread"
                told.append(f"{call} {fault} number {number} {where} {case.injected!r}:\n{trouble}")
            if not case.fired:
                break
            assert number < 1000, f"the daemon calls {call} without end"
        assert number > 1 or not options, f"the daemon never calls {call}"
    assert not told, "\n\n".join(told)


# -- the relay --


@dataclass(frozen=True)
class Taken:
    """A mail that the relay has taken over by its final reply."""

    session: object
    mail: str
    recipients: tuple[str, ...]


class MoodyRelay(RelayServer):
    """Refuses one recipient for good, puts off another one and one mail the first time."""

    def begin(self) -> None:
        """A new case: nobody has been put off.

        ``uncertain`` are those mails of ``taken`` whose sender may not have heard of it: it has said nothing since.
        """
        self.taken: list[Taken] = []
        self.uncertain: list[Taken] = []
        self._put_off: set[str] = set()

    async def handle_EHLO(self, server, session, envelope, hostname, responses):
        responses = await super().handle_EHLO(server, session, envelope, hostname, responses)
        return ["\r\n".join(responses)]    # one packet, so that each run reads it by one call

    async def handle_MAIL(self, server, session, envelope, address, options):
        if not self.pipelining:    # else it may have come before the reply to the mail before
            self._goes_on(session)
        return await super().handle_MAIL(server, session, envelope, address, options)

    async def handle_RCPT(self, server, session, envelope, address, options):
        if address == REFUSED:
            return "550 5.1.1 no such user"
        if address == LATER and self._is_first_time(LATER):
            return "451 4.3.0 try later"
        return await super().handle_RCPT(server, session, envelope, address, options)

    async def handle_DATA(self, server, session, envelope):
        self._goes_on(session)    # the content comes after the replies to all that went before
        mail = _mail_of(envelope.original_content)
        if mail == "put-off" and self._is_first_time(mail):
            return "451 4.3.0 try later"
        taken = Taken(session, mail, tuple(envelope.rcpt_tos))
        self.taken.append(taken)
        self.uncertain.append(taken)
        return "250 2.0.0 Ok"

    async def handle_QUIT(self, server, session, envelope):
        self._goes_on(session)
        return "221 2.0.0 Bye"

    def _goes_on(self, session) -> None:
        self.uncertain = [taken for taken in self.uncertain if taken.session is not session]

    def _is_first_time(self, who: str) -> bool:
        is_first = who not in self._put_off
        self._put_off.add(who)
        return is_first


def _mail_of(raw: bytes) -> str:
    return re.search(rb"^Subject: ([a-z-]+)\r?$", raw, re.MULTILINE)[1].decode()


# -- a case --


@dataclass
class Case:
    """A daemon with a home of its own that is to send MAILS while one thing goes wrong."""

    home: Path
    relay: MoodyRelay
    fired: bool = False
    injected: str = ""
    notes: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)
    stuck: list[str] = field(default_factory=list)
    duplicates: list[str] = field(default_factory=list)
    excused: list[str] = field(default_factory=list)

    @property
    def log(self) -> Path:
        return self.home / "var" / "maildrop.log"

    def run(self, injection: str, options: tuple[str, ...]) -> None:
        self.relay.begin()
        with self._idle_daemon() as process:
            with attached(process.pid, self.home / "strace", injection.split(":")[0], [injection], options) as trace:
                self._put_mails_in()
                self._configure(interval_s=0.05)
                self._wait_until_settled(process, None if "SIGKILL" in injection else trace)
                self._end(process)
            self.fired, self.injected = trace.fired, trace.injected()
        if "SIGKILL" in injection:
            uncertain = list(self.relay.uncertain)
            with self._daemon() as process:
                self._wait_until_settled(process)
                self._end(process)
        else:    # a call that fails was not made: there is doubt only where it was to fetch the reply to the content
            in_doubt = injection.startswith("recvfrom:") and "may arrive twice" in self._text(self.log)
            uncertain = self.relay.uncertain if in_doubt else []
        self._account(uncertain)

    def trouble(self) -> str:
        """What must not be, for the message of the failed test; empty if all is well."""
        kinds = {"lost": self.lost, "stuck": self.stuck, "duplicates": self.duplicates, "daemon": self.notes}
        found = [f"  {kind}: {', '.join(what)}" for kind, what in kinds.items() if what]
        if found:
            found.append(f"  taken by the relay: {[(taken.mail, taken.recipients) for taken in self.relay.taken]}")
            for path in (self.log, self.home / "stderr"):
                found += [f"  {line}" for line in self._text(path).splitlines()[:30]]
        return "\n".join(found)

    # -- the daemon --

    def _configure(self, interval_s: float) -> None:
        write_config(
            self.home / "config",
            MAILDROP_HOME=self.home,
            SMTP_HOST="127.0.0.1",
            SMTP_PORT=self.relay.port,
            MAILDROP_HELO="daemon.example.org",
            MAILDROP_INTERVAL=interval_s,
            MAILDROP_RETRY=0.005,    # even four times doubled it is over by the next pass
            MAILDROP_TIMEOUT=5,
            SUPERVISED_DAEMON=1,
        )

    @contextmanager
    def _daemon(self) -> Iterator[subprocess.Popen]:
        command = [INTERPRETER, "-S", "-I", str(DAEMON), str(self.home / "config")]
        with (self.home / "stderr").open("ab") as stderr:
            process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=stderr)
        try:
            pid_file = self.home / "var" / "maildrop.pid"
            _wait_until(lambda: self._text(pid_file) == f"{process.pid}\n", process)    # from here on it heeds signals
            yield process
        finally:
            process.kill()
            process.wait()

    @contextmanager
    def _idle_daemon(self) -> Iterator[subprocess.Popen]:
        """A daemon that has looked at its spool and will not again until it is told to.

        What each run does from here on is the same, so that the N-th call is the N-th call.
        """
        spool.make_spool(self.home / "spool", 0o700)
        no_mail = self.home / "spool" / spool.new_name()    # makes it tell of its first look
        no_mail.write_bytes(b"no mail")
        self._configure(interval_s=600)
        with self._daemon() as process:
            _wait_until(lambda: "### Finished" in self._text(self.log), process)
            no_mail.unlink()
            self.log.unlink()
            yield process

    def _put_mails_in(self) -> None:
        """All mails are complete before the first one is in the spool, as when Zope commits."""
        beside = self.home / "prepared"
        beside.mkdir()
        for mail, recipients in MAILS.items():
            draft = spool.Draft(beside / spool.new_name(), durable=False)
            draft.write("zoe@example.org", ", ".join(recipients), f"Subject: {mail}\n\nbody\n".encode())
            draft.release()
        for path in sorted(beside.iterdir()):
            path.rename(self.home / "spool" / path.name)

    def _wait_until_settled(self, process: subprocess.Popen, trace: Trace | None = None) -> None:
        """Until the daemon has died, or has nothing to send and has told so (which it cannot where its log fails)."""
        deadline = time.monotonic() + PATIENCE_S
        nudge_at = time.monotonic()
        empty_since = None
        while process.poll() is None and time.monotonic() < deadline:
            if trace and trace.fired:
                trace.let_go()
                trace = None
            now = time.monotonic()
            log = self._text(self.log)
            if self._waiting():
                empty_since = None
            else:
                empty_since = empty_since or now
                if log.count("### Started") == log.count("### Finished") or now > empty_since + 0.3:
                    return
            if now >= nudge_at and "### config reloaded" not in log:    # again where reading the config is what fails
                process.send_signal(signal.SIGHUP)
                nudge_at = now + 1
            time.sleep(0.005)

    def _end(self, process: subprocess.Popen) -> None:
        if process.poll() is None:
            process.terminate()
        try:
            status = process.wait(PATIENCE_S)
        except subprocess.TimeoutExpired:
            self.notes.append("did not end within ten seconds after SIGTERM")
            return
        if status not in (0, -signal.SIGKILL):
            self.notes.append(f"ended with status {status}")

    # -- what became of the mails --

    def _account(self, uncertain: list[Taken]) -> None:
        """``uncertain``: what the relay had taken without the daemon having heard of it, so that it may come again."""
        arrived = Counter((taken.mail, recipient) for taken in self.relay.taken for recipient in taken.recipients)
        waiting = Counter(self._pairs_in(self.home / "spool"))
        kept = Counter(self._pairs_in(self.home / "spool" / spool.FAILED))
        may_come_again = {(taken.mail, recipient) for taken in uncertain for recipient in taken.recipients}
        for pair in PAIRS:
            told = " to ".join(pair)
            due, other = (kept, arrived) if pair[1] == REFUSED else (arrived, kept)
            if waiting[pair]:
                self.stuck.append(told)
            elif not due[pair]:
                self.lost.append(told)
            more = max(0, due[pair] - 1) + other[pair]
            if more == 1 and pair in may_come_again and not other[pair]:
                self.excused.append(told)
            elif more:
                self.duplicates.append(told)

    def _waiting(self) -> list[Path]:
        return [path for path in (self.home / "spool").iterdir() if not path.is_dir()]

    def _pairs_in(self, directory: Path) -> list[tuple[str, str]]:
        pairs = []
        for path in directory.iterdir():
            if path.is_file():
                raw = path.read_bytes()
                recipients = re.match(rb"##To:(.*)", raw)[1].decode().split(", ")
                pairs += [(_mail_of(raw), recipient) for recipient in recipients]
        return pairs

    @staticmethod
    def _text(path: Path) -> str:
        with suppress(FileNotFoundError):
            return path.read_text("utf-8", "replace")
        return ""


def _wait_until(condition, process: subprocess.Popen) -> None:
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        assert process.poll() is None and time.monotonic() < deadline, "the daemon does not start"
        time.sleep(0.005)

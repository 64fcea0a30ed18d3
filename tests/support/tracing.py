"""strace: what system calls a process makes, and making the N-th one of a kind fail or kill.

What strace is told: ``calls`` is ``"openat,write"``, a regular expression among them begins with a slash. An injection
is ``"write:error=ENOSPC:when=3"`` or ``"write:signal=SIGKILL:when=3"``; each name of a call and each thread is counted
for itself. A call that fails or kills by injection was not made.
"""

from __future__ import annotations

import re
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from support.requires import find_command, requires_command, skip_unless_ci

PATIENCE_S = 20.0


def requires_strace() -> None:
    """Skip the test unless strace is there and may attach to a process of ours."""
    requires_command("strace")
    if reason := _cannot_attach():
        skip_unless_ci(f"strace may not trace here: {reason}")


@cache
def _cannot_attach() -> str:
    with subprocess.Popen([sys.executable, "-S", "-c", "input()"], stdin=subprocess.PIPE) as process:
        try:
            with attached(process.pid, Path("/dev/null"), "write"):
                return ""
        except RuntimeError as error:
            return str(error)
        finally:
            process.kill()


class Trace:
    """What strace has written to its file so far. It is complete when strace has ended."""

    def __init__(self, output: Path, strace: subprocess.Popen):
        self.output = output
        self._strace = strace

    def let_go(self) -> None:
        """No more injections: threads that begin later would each get one of their own."""
        self._strace.terminate()

    def text(self) -> str:
        return self.output.read_text("utf-8", "replace") if self.output.exists() else ""

    @property
    def fired(self) -> bool:
        """Whether an injected error was returned, or the process was killed, which has to be strace's doing."""
        return re.search(r"\(INJECTED\)|\+\+\+ killed by SIGKILL", self.text()) is not None

    def injected(self) -> str:
        """The first call that was made to fail or kill, as strace tells it; empty if there is none."""
        return next((line for line in self.text().splitlines() if re.search(r"\(INJECTED\)$| = \?$", line)), "")


def strace_command(
    output: Path, calls: str, injections: Sequence[str] = (), options: Sequence[str] = ("-f",)
) -> list[str]:
    """The beginning of a command line, for ``-p PID`` or for a command that runs under strace from its first call on.

    Without ``-f`` among the options one thread is traced alone.
    """
    injected = [argument for injection in injections for argument in ("-e", f"inject={injection}")]
    command = [find_command("strace") or "strace", *options, "-o", str(output)]
    return [*command, "-e", f"trace={calls}", "-e", "signal=SIGKILL", *injected]


@contextmanager
def attached(
    pid: int, output: Path, calls: str, injections: Sequence[str] = (), options: Sequence[str] = ("-f",)
) -> Iterator[Trace]:
    """Trace a running process, or the thread ``pid``, from here on; let go of it at the end if it still runs.

    Raises RuntimeError where that is not permitted.
    """
    command = [*strace_command(output, calls, injections, options), "-p", str(pid)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as strace:
        said = strace.stderr.readline()
        draining = threading.Thread(target=strace.stderr.read, daemon=True)    # what it says of threads that begin
        draining.start()
        try:
            if "attached" not in said:
                raise RuntimeError(said.strip() or "strace says nothing")
            yield Trace(output, strace)
        finally:
            if _runs(pid):    # else it has the last lines to write, and then ends
                strace.terminate()
            try:
                strace.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                strace.kill()
            draining.join()


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in ("Z", "X")
    except OSError:
        return False

"""What a process has used so far, told by Linux."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


def cpu_s(pids: Iterable[int]) -> float:
    """CPU seconds, user and system, of all threads of these processes and of the children that they have waited for.

    A process that has ended counts as long as nobody has waited for it, and then among its parent's children.
    """
    used = 0.0
    for pid in pids:
        with suppress(OSError):
            used += time.clock_gettime(_cpu_clock(pid)) + _cpu_s_of_children(pid)
    return used


def _cpu_clock(pid: int) -> int:
    return ~pid << 3 | 2    # what clock_getcpuclockid(3) makes of it


def _cpu_s_of_children(pid: int) -> float:
    user, system = _status(pid)[13:15]
    return (int(user) + int(system)) / _TICKS_PER_S


def _status(pid: int) -> list[str]:
    """The fields of /proc/PID/stat that follow the name: state, parent, ..."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()


def family(pid: int) -> list[int]:
    """A process and all that descend from it."""
    children: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            children.setdefault(int(_status(int(path.name))[1]), []).append(int(path.name))
        except OSError:    # has ended since
            continue
    found = [pid]
    for one in found:    # grows while it is walked
        found += children.get(one, [])
    return found


def peak_memory_mb(pid: int) -> float:
    """The most memory a process has had since it began to run its program; 0 if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM:")), 0)


def open_files(pid: int) -> int:
    """How many files and sockets a process has open."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def wait_until(condition: Callable[[], object], wanted: str, timeout_s: float = 30, pause_s: float = 0.001) -> None:
    """Wait until ``condition()`` is true. Raises TimeoutError saying what was ``wanted`` if it never is."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"not within {timeout_s:.0f} seconds: {wanted}")
        time.sleep(pause_s)

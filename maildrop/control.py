"""Starting and stopping the daemon of a config file."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from maildrop.pidfile import Holder, holder, running_pid
from maildrop.settings import Settings


class ControlError(Exception):
    """The daemon is not as it was expected to be; says how."""


def start(config: Path, settings: Settings) -> None:
    """Become the daemon: this does not return. Raises ControlError where it runs already."""
    pid = running_pid(settings.pid_file)
    if pid is not None:
        raise ControlError(f"maildrop daemon already started (process {pid}).")
    if settings.pid_file.exists():
        print("Warning: maildrop daemon not found, its pid file is stale.", file=sys.stderr, flush=True)
    daemon = str(Path(__file__).with_name("maildrop.py"))
    os.execv(sys.executable, [sys.executable, daemon, str(config)])


def stop(settings: Settings) -> None:
    """End the daemon, and wait until it has ended. Raises ControlError."""
    found = holder(settings.pid_file)
    if found is None:
        raise ControlError("maildrop daemon already stopped.")
    pid = found.pid
    try:
        _terminate(found)
    except ProcessLookupError:
        return
    except PermissionError:
        raise ControlError(f"process {pid} belongs to another account") from None
    patience_s = settings.data_timeout_s + 10    # as long as it may wait for a relay that has a whole mail
    deadline = time.monotonic() + patience_s
    while running_pid(settings.pid_file) == pid:
        if time.monotonic() > deadline:
            raise ControlError(f"process {pid} has not ended within {patience_s:.0f} seconds")
        time.sleep(0.05)


def _terminate(daemon: Holder) -> None:
    """Send SIGTERM with no more rights than those of the pid file's owner, who can put any number there.

    Raises ProcessLookupError, PermissionError.
    """
    if daemon.uid in (0, os.geteuid()):
        os.kill(daemon.pid, signal.SIGTERM)
        return
    if os.geteuid() != 0:
        raise PermissionError
    command = ["/bin/sh", "-c", 'kill "$0"', str(daemon.pid)]
    if subprocess.run(command, user=daemon.uid, extra_groups=[], stderr=subprocess.DEVNULL).returncode:
        os.kill(daemon.pid, 0)
        raise PermissionError

"""Running a command on a terminal, as a person does."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import subprocess
import termios
from contextlib import suppress


def run_on_terminal(command: list[object], columns: int = 120, answer: str = "", **environment: str) -> tuple[int, str]:
    """Exit status and all that was shown, with the terminal's line ends. ``answer``: what is typed."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))
    values = {key: value for key, value in os.environ.items() if key not in ("NO_COLOR", "MAILDROP_CONFIG", "COLUMNS")}
    values |= {"TERM": "xterm", "PYTHONIOENCODING": "utf-8", **environment}
    process = subprocess.Popen(list(map(str, command)), stdin=theirs, stdout=theirs, stderr=theirs, env=values)
    os.close(theirs)
    if answer:
        os.write(ours, answer.encode())
    shown = b""
    with suppress(OSError):    # what reading from a terminal ends with
        while chunk := os.read(ours, 65536):
            shown += chunk
    os.close(ours)
    return process.wait(60), shown.decode()

"""Telling systemd how the daemon is: sd_notify(3), without its library."""

from __future__ import annotations

import os
import socket
import time
from contextlib import suppress


class Supervisor:
    """Whoever started us with ``NOTIFY_SOCKET``, if anybody has. Telling it never raises."""

    def __init__(self) -> None:
        address = os.environ.pop("NOTIFY_SOCKET", "")    # what we start does not speak for us
        self._address = "\0" + address[1:] if address.startswith("@") else address

    def ready(self) -> None:
        """We serve, with the settings that the config file has now."""
        self._tell("READY=1")

    def reloading(self) -> None:
        self._tell(f"RELOADING=1\nMONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def stopping(self) -> None:
        self._tell("STOPPING=1")

    def _tell(self, state: str) -> None:
        if self._address:
            with suppress(OSError), socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as notify:
                notify.setblocking(False)
                notify.sendto(state.encode(), self._address)

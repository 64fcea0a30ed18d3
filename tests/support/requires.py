"""What a test needs of the machine: where it is missing the test is skipped, but in CI it fails."""

import os
import shutil
import socket

import pytest

_SEARCHED = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/local/sbin", "/usr/sbin", "/sbin"])


def find_command(name: str) -> str | None:
    """Path of a command, also of one that only administrators have on their PATH."""
    return shutil.which(name, path=_SEARCHED)


def requires_command(*names: str) -> None:
    """Skip the test unless all these commands are installed."""
    if missing := [name for name in names if find_command(name) is None]:
        skip_unless_ci(f"not installed: {', '.join(missing)}")


def requires_root() -> None:
    """Skip the test unless it runs as root."""
    if os.geteuid() != 0:
        skip_unless_ci("only root can do this")


def requires_own_address() -> str:
    """An address of this machine that is no loopback address; skip the test if it has none."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            sock.connect(("192.0.2.1", 9))    # nothing is sent; it only tells what would be
            return sock.getsockname()[0]
        except OSError:
            skip_unless_ci("this machine is on no network")
            raise


def skip_unless_ci(reason: str) -> None:
    """Skip the test; where the environment variable CI is set nothing may be left out, so there it fails."""
    if os.environ.get("CI"):
        pytest.fail(f"{reason}, and in CI no test may be skipped for that", pytrace=False)
    pytest.skip(reason)

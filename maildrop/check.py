"""``maildropctl check``: whether a config file, the places it names and the relay are fit for use.

Nothing is changed or sent.
"""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from maildrop import account, paths, permissions, spool
from maildrop import settings as settings_module
from maildrop.credentials import Credentials
from maildrop.logfile import printable
from maildrop.pidfile import running_pid
from maildrop.relay import RelayUnavailable, Session
from maildrop.scan import count, scan
from maildrop.settings import Settings, SettingsError

_PYTHON_TIMEOUT_S = 20
_RECENT = "import sys; print(sys.version.split()[0]); sys.exit(sys.version_info < (3, 10))"


class Finding(NamedTuple):
    """One line of the report."""

    level: str    # "ok", "warning" or "error"
    text: str


def main(config: Path) -> int:
    """Print what there is to say of a config file. Returns the exit status: 1 with an error, else 0."""
    has_error = False
    for finding in findings(config):
        print(f"{finding.level:<8} {printable(finding.text)}", flush=True)
        has_error = has_error or finding.level == "error"
    return int(has_error)


def findings(config: Path) -> Iterator[Finding]:
    """As root, the process becomes the account of MAILDROP_USER on the way, to see what that may do."""
    try:
        settings = settings_module.load(config)
    except SettingsError as error:
        yield Finding("error", str(error))
        return
    yield Finding("ok", f"config: {config}")
    for warning in settings.warnings:
        yield Finding("warning", f"config: {warning}")
    may_make_all = os.geteuid() == 0    # root makes what is missing when it starts the daemon
    yield _of_account(settings)
    yield _of_python(settings)
    for path, key in permissions.places(settings).items():
        yield _of_directory(path, key, may_make_all)
    for warning in permissions.warnings(config, settings):
        yield Finding("warning", f"permissions: {warning}")
    yield _of_daemon(settings)
    for directory in settings.spools:
        yield _of_spool(directory)
    credentials = Credentials(settings)
    for host in settings.smtp_hosts:
        yield _of_relay(host, settings, credentials)


def _of_account(settings: Settings) -> Finding:
    if not settings.user:
        level = "warning" if os.geteuid() == 0 else "ok"
        text = f"MAILDROP_USER: empty: the daemon serves as whoever starts it, here as account {os.geteuid()}"
        return Finding(level, text)
    try:
        account.become(settings)
    except account.OtherAccount as error:
        return Finding("warning", f"{error}; what follows is what account {os.geteuid()} may do")
    except SettingsError as error:
        return Finding("error", str(error))
    return Finding("ok", f"MAILDROP_USER: {settings.user}")


def _of_python(settings: Settings) -> Finding:
    about = f"PYTHON: {settings.python}"
    try:
        command = [settings.python, "-c", _RECENT]
        result = subprocess.run(command, capture_output=True, text=True, timeout=_PYTHON_TIMEOUT_S)
    except (OSError, ValueError, subprocess.TimeoutExpired) as error:
        said = error.strerror if isinstance(error, OSError) else "does not work"
        return Finding("warning", f"{about}: {said}; the scripts take python3 instead")
    if result.returncode:
        return Finding("warning", f"{about}: is no Python 3.10 or newer; the scripts take python3 instead")
    return Finding("ok", f"{about}, version {result.stdout.strip()}")


# -- places --


def _of_directory(path: Path, key: str, may_make_all: bool) -> Finding:
    try:
        above = paths.nearest(path)
    except OSError as error:
        return Finding("error", f"{key}: {error}")
    is_there = above == path
    what = f"{key}: {path}"
    if not os.path.isdir(above):
        return Finding("error", f"{what}: {above} is no directory")
    if not os.access(above, os.W_OK | os.X_OK) and (is_there or not may_make_all):
        return Finding("error", f"{what}: this account may not write to {above}")
    return Finding("ok", what if is_there else f"{what} will be made")


def _of_daemon(settings: Settings) -> Finding:
    try:
        pid = running_pid(settings.pid_file)
    except OSError as error:
        return Finding("warning", f"daemon: {settings.pid_file}: {error.strerror}")
    return Finding("ok", f"daemon: running as process {pid}") if pid else Finding("warning", "daemon: not running")


def _of_spool(directory: Path) -> Finding:
    about = f"spool: {directory}"
    try:
        spool.check_spool(directory)
        found = scan(directory, time.time())
        failed = count(directory / spool.FAILED)
        waiting = count(directory)
    except FileNotFoundError:
        return Finding("ok", f"{about}: not there yet")
    except OSError as error:
        return Finding("error", f"{about}: {error.strerror}")
    due = len(found.names) + len(found.retries)
    return Finding("ok", f"{about}: {due} due, {max(0, waiting - due)} deferred or locked, {failed} failed")


# -- the relay --


def _of_relay(host: str, settings: Settings, credentials: Credentials) -> Finding:
    about = f"relay: {host}:{settings.smtp_port}"
    try:
        session = Session(host, settings, credentials)
    except RelayUnavailable as error:
        return Finding("error", f"{about}: {error}")
    try:
        return Finding("ok", f"{about}: {_told_by(session, credentials)}")
    finally:
        session.quit()


def _told_by(session: Session, credentials: Credentials) -> str:
    facts = [f"calls itself {session.relay_name}" if session.relay_name else "gives no name"]
    facts.append("TLS" if session.is_encrypted else "no TLS")
    if credentials.are_given:
        facts.append("login accepted")
    return f"{', '.join(facts)}; offers {' '.join(session.extensions) or 'nothing'}"

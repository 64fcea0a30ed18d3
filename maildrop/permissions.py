"""The places that the settings name, and who else can read or change what is there."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from maildrop import paths, spool
from maildrop.settings import Settings, SettingsError
from maildrop.wake import WAKE
from maildrop.writers import WRITERS

_EVERYBODY = "every account of this machine"


def places(settings: Settings) -> dict[Path, str]:
    """The directories that the daemon needs beside what is in the spools, and the key that each comes from."""
    found = {
        settings.log_file.parent: "MAILDROP_LOG_FILE",
        settings.pid_file.parent: "MAILDROP_PID_FILE",
        settings.var: "MAILDROP_VAR",
        **dict.fromkeys(settings.spools, "MAILDROP_SPOOL"),
    }
    return {path: "MAILDROP_HOME" if path.is_relative_to(settings.home) else key for path, key in found.items()}


def make_directories(settings: Settings) -> None:
    """Make what is missing of them. Raises SettingsError, which names directory and key."""
    for path, key in places(settings).items():
        try:
            if path in settings.spools:
                spool.make_spool(path, settings.directory_mode)
            else:
                paths.make_directory(path, settings.directory_mode)
        except OSError as error:
            raise SettingsError(f"{key}: {error}") from error


def warnings(config: Path, settings: Settings) -> list[str]:
    """What other accounts may do that they should not, and what ours may not do that it should, a sentence each.

    As this process's account sees it: the one that serves or is to serve. Looks only, changes nothing, never raises.
    """
    found: dict[str, None] = {}    # each once
    for sentences in (_of_config(config, settings), _of_directories(settings), _of_log(settings)):
        with suppress(OSError):    # something has gone meanwhile
            for sentence in sentences:
                found[sentence] = None
    return list(found)


# -- files --


def _of_config(config: Path, settings: Settings) -> Iterator[str]:
    if _others_may(config, stat.S_IWOTH):
        yield f"{config} can be written by {_EVERYBODY}: chmod o-w {config}"
    if (settings.login or settings.password) and _others_may(config, stat.S_IROTH):
        yield f"{config} holds a login and can be read by {_EVERYBODY}: chmod o-r {config}"
    if settings.password_file:
        yield from _open_to_everybody(settings.password_file, stat.S_IROTH | stat.S_IWOTH)
    owner = _status(config)
    if owner and owner.st_uid != 0 and (settings.user or os.geteuid() == 0):
        runs = "root runs what it says when it starts the daemon"
        yield f"{config} belongs to account {owner.st_uid}, and {runs}: chown root {config}"
    if not os.access(config, os.R_OK):
        yield f"{config} cannot be read by this account, so that SIGHUP will not make it read the file again"


def _of_log(settings: Settings) -> Iterator[str]:
    log = settings.log_file
    yield from _open_to_everybody(log, stat.S_IROTH | stat.S_IWOTH)
    status = _status(log)
    if status and status.st_uid not in (0, os.geteuid()) and status.st_uid == log.parent.stat().st_uid:
        return    # this is not the daemon's account
    try:
        os.close(paths.open_to_write(log, os.O_WRONLY | os.O_APPEND, 0))
    except FileNotFoundError:
        if log.parent.is_dir() and not os.access(log.parent, os.W_OK):
            yield f"{log}: the log cannot be made by this account"
    except OSError as error:
        yield f"{log}: the log cannot be written: {error.strerror}"


# -- directories --


def _of_directories(settings: Settings) -> Iterator[str]:
    for path, key in places(settings).items():
        status = _status(path)
        if status is None:
            continue
        is_spool = path in settings.spools
        is_private = is_spool or status.st_uid != 0    # a directory of the system's may be read by all
        yield from _open_to_everybody(path, stat.S_IWOTH | (stat.S_IROTH if is_private else 0))
        for parent in _real(path).parents:
            if _others_may(parent, stat.S_IWOTH) and not parent.stat().st_mode & stat.S_ISVTX:
                yield f"{parent} can be written by {_EVERYBODY}, which can replace {path} ({key}): chmod o-w {parent}"
        if is_spool:
            yield from _of_spool(path, status, settings)


def _of_spool(directory: Path, status: os.stat_result, settings: Settings) -> Iterator[str]:
    inner = [path for name in (spool.FAILED, spool.TMP, WAKE, WRITERS) if _status(path := directory / name) is not None]
    for path in inner:
        yield from _open_to_everybody(path, stat.S_IROTH | stat.S_IWOTH)
    if os.geteuid() == 0 != status.st_uid:
        advice = "name that account in MAILDROP_USER"
        yield f"{directory} belongs to account {status.st_uid}, and the daemon runs as root: {advice}"
    if settings.directory_mode & stat.S_IRWXG:
        for path in (directory, *inner):
            yield from _not_open_to_the_group(path)
        for parent in _real(directory).parents:
            found = parent.stat()
            if not found.st_mode & (stat.S_IXGRP if found.st_gid == status.st_gid else stat.S_IXOTH):
                shared = f"{parent}: MAILDROP_SPOOL_MODE shares {directory} with group {status.st_gid}"
                yield f"{shared}, which cannot get through here"


def _not_open_to_the_group(path: Path) -> Iterator[str]:
    status = path.stat()
    shared = f"{path}: MAILDROP_SPOOL_MODE shares it with group {status.st_gid}, but"
    if status.st_mode & stat.S_IRWXG != stat.S_IRWXG:
        yield f"{shared} that may not write there: chmod g+rwxs {path}"
    elif not status.st_mode & stat.S_ISGID:
        yield f"{shared} what is made there may get another group: chmod g+s {path}"
    if status.st_mode & stat.S_ISVTX:
        yield f"{shared} by its sticky bit one account cannot remove what another one has made: chmod -t {path}"
    if os.geteuid() != 0 and status.st_gid not in (os.getegid(), *os.getgroups()):
        yield f"{shared} this account does not belong to that group"


def _open_to_everybody(path: Path, bits: int) -> Iterator[str]:
    may = [word for word, bit in (("read", stat.S_IROTH), ("written", stat.S_IWOTH)) if _others_may(path, bits & bit)]
    if may:
        yield f"{path} can be {' and '.join(may)} by {_EVERYBODY}: chmod o-rwx {path}"


def _others_may(path: Path, bits: int) -> bool:
    """Whether accounts outside owner and group have one of these rights, and can get there."""
    real = _real(path)
    try:
        return bool(real.stat().st_mode & bits) and all(above.stat().st_mode & stat.S_IXOTH for above in real.parents)
    except OSError:
        return False


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _status(path: Path) -> os.stat_result | None:
    try:
        return path.stat()
    except OSError:
        return None

"""Config file -> frozen Settings: every value checked, nothing executed.

The file is also sourced by ``sh`` (``maildrop/bin``), so it keeps to what both read: ``KEY="string"`` or
``KEY=number`` a line, no blank around ``=``, comments after ``#``.
"""

from __future__ import annotations

import difflib
import errno
import hashlib
import json
import os
import re
import shlex
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from maildrop.assignments import Assignment, AssignmentError, decode, parse_assignments
from maildrop.spool import LONGEST_DELAY_S


_LARGEST = 1024 * 1024    # bytes of a config file


class SettingsError(ValueError):
    """A config file that cannot be read, parsed or used; names the file, the key and the line."""


class MissingSettings(SettingsError):
    """A config file without one of the keys that have to be there."""


@dataclass(frozen=True)
class Settings:
    """What a config file says, with defaults for what it does not say. Field names: see KEYS."""

    python: str
    home: Path
    spools: tuple[Path, ...]    # Zope writes to the first, the daemon serves all
    var: Path
    pid_file: Path
    log_file: Path
    smtp_hosts: tuple[str, ...]    # tried in this order
    smtp_port: int
    interval_s: float
    debug: bool
    debug_receiver: str    # comma-separated addresses, "" for none
    batch: int    # mails per connection, 0: all
    connections: int    # at a time, at most
    pipelining: bool
    trigger: bool
    tls: int    # 0: never, 1: if offered, 2: STARTTLS, 3: from the first byte
    tls_verify: bool    # where tls is 2 or 3
    tls_cafile: Path | None    # None: the system's authorities
    tls_certfile: Path | None    # our own certificate
    tls_keyfile: Path | None    # None: it is in tls_certfile
    login: str
    password: str = field(repr=False)
    password_file: Path | None
    password_command: tuple[str, ...] = field(repr=False)    # program and arguments, () for none
    auth: str    # "": what smtplib chooses; "xoauth2" or "oauthbearer": the password is an access token
    auth_clear: bool    # log in without TLS too, wherever the relay is
    wait_s: float
    add_messageid: bool
    supervised: bool
    retry_s: float
    max_age_s: float
    bounce: bool
    timeout_s: float
    data_timeout_s: float
    helo: str    # "": this host's name
    spool_mode: int
    fsync: bool
    user: str    # account that the daemon drops to when started as root, "" for none
    warnings: tuple[str, ...] = ()    # what is odd in the file, a sentence each

    @property
    def has_password(self) -> bool:
        """Whether there is one, wherever it comes from."""
        return bool(self.password or self.password_file or self.password_command)

    @property
    def digest(self) -> str:
        """The same for the same settings, so that two processes can compare theirs. No secret and no warning is in it."""
        values = {key.name: getattr(self, key.field) for key in KEYS.values() if not key.secret}
        return hashlib.sha256(json.dumps(values, default=str).encode()).hexdigest()

    @property
    def directory_mode(self) -> int:
        """Mode of spool and var: the group that may read mails works there too."""
        return 0o2770 if self.spool_mode & 0o060 else 0o700

    @property
    def log_mode(self) -> int:
        return 0o640 if self.spool_mode & 0o060 else 0o600


def load(path: str | os.PathLike[str]) -> Settings:
    """Read the config file at ``path``.

    Raises MissingSettings where a required key is missing, SettingsError for everything else that is wrong,
    with file, key and line in the message.
    """
    # No local variable here and ``from None``: whoever shows a traceback with its variables shows no password.
    try:
        return _build(parse_assignments(decode(_read(path))))
    except OSError as error:
        raise SettingsError(f"{path}: cannot be read: {error.strerror}") from None
    except AssignmentError as error:
        raise SettingsError(f"{path}: {error}") from None
    except SettingsError as error:
        raise type(error)(f"{path}: {error}") from None


def _read(path: str | os.PathLike[str]) -> bytes:
    """The file's bytes. It may have been replaced by anything: neither waits nor fills the memory. Raises OSError."""
    with open(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC), "rb") as stream:
        if not stat.S_ISREG(os.fstat(stream.fileno()).st_mode):
            raise OSError(errno.EINVAL, "no regular file")
        source = stream.read(_LARGEST + 1)
    if len(source) > _LARGEST:
        raise OSError(errno.EFBIG, f"larger than {_LARGEST} bytes")
    return source


def defaults() -> Settings:
    """The settings of an empty file: what Zope's pages show where no file can be read."""
    return _from_values({})


def shipped_config() -> Path:
    """Where the config file that came with this package lies: inside it, or above it in a checkout or a copied tree."""
    package = Path(__file__).resolve().parent
    inside = package / "config"
    return inside if inside.is_file() else package.parent / "config"


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError("a string in quotes")
    if re.search(r"[\x00\r\n]", value):
        raise ValueError("a string without line breaks")
    return value


def _filled_text(value: Any) -> str:
    text = _text(value).strip()
    if not text:
        raise ValueError("a string that is not empty")
    return text


def _path(value: Any) -> Path:
    path = Path(_filled_text(value))
    if not path.is_absolute():
        raise ValueError("an absolute path")
    return path


def _paths(value: Any) -> tuple[Path, ...]:
    parts = [part for part in _filled_text(value).split(";") if part.strip()]
    if not parts:
        raise ValueError("absolute paths, split by ;")
    return tuple(dict.fromkeys(_path(part) for part in parts))


def _hosts(value: Any) -> tuple[str, ...]:
    hosts = tuple(part.strip() for part in _filled_text(value).split(";") if part.strip())
    if not hosts or re.search(r"\s", "".join(hosts)):
        raise ValueError("the name of a host, or several split by ;")
    return hosts


def _command(value: Any) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(_filled_text(value)))
    except ValueError:
        raise ValueError("a program and its arguments, quoted as in sh") from None


def _auth(value: Any) -> str:
    if not isinstance(value, str) or value.lower() not in ("xoauth2", "oauthbearer"):
        raise ValueError('"xoauth2", "oauthbearer" or ""')
    return value.lower()


def _number(kind: type, least: float, most: float, wanted: str) -> Callable[[Any], Any]:
    def check(value: Any) -> Any:
        try:
            number = kind(value) if isinstance(value, str) else value
            if isinstance(number, (int, float)) and least <= number <= most and number == kind(number):
                return kind(number)
        except ValueError:
            pass
        raise ValueError(wanted)

    return check


def _flag(value: Any) -> bool:
    return bool(_number(int, 0, 10**9, "0 or 1")(value))    # 2.3 took any number for yes


def _mode(value: Any) -> int:
    mode = int(value, 8) if isinstance(value, str) and re.fullmatch("[0-7]+", value) else value
    if mode not in (0o600, 0o640, 0o660):
        raise ValueError("0600, 0640 or 0660")
    return int(mode)


_DAY_S = 86400
_seconds = _number(float, 0, 366 * _DAY_S, "a number of seconds")
_some_seconds = _number(float, 0.01, 366 * _DAY_S, "a number of seconds above 0")


@dataclass(frozen=True)
class Key:
    """A key of the config file: ``check`` turns its value into the field's, or raises ValueError saying what it wants.

    ``default`` is the field's value for a file without the key; None where it is made up of other keys.
    """

    name: str
    field: str
    default: Any
    check: Callable[[Any], Any]
    required: bool = False
    secret: bool = False


KEYS = {
    key.name: key
    for key in (
        Key("PYTHON", "python", "/usr/bin/python", _text),
        Key("MAILDROP_HOME", "home", Path("/tmp/maildrop"), _path, required=True),
        Key("MAILDROP_SPOOL", "spools", None, _paths),
        Key("MAILDROP_VAR", "var", None, _path),
        Key("MAILDROP_PID_FILE", "pid_file", None, _path),
        Key("MAILDROP_LOG_FILE", "log_file", None, _path),
        Key("SMTP_HOST", "smtp_hosts", ("localhost",), _hosts, required=True),
        Key("SMTP_PORT", "smtp_port", 25, _number(int, 1, 65535, "a port, 1 to 65535"), required=True),
        Key("MAILDROP_INTERVAL", "interval_s", 120.0, _some_seconds, required=True),
        Key("DEBUG", "debug", False, _flag),
        Key("DEBUG_RECEIVER", "debug_receiver", "", _text),
        Key("MAILDROP_BATCH", "batch", 0, _number(int, 0, 10**9, "a number of mails, 0 for all")),
        Key("MAILDROP_CONNECTIONS", "connections", 8, _number(int, 1, 100, "a number of connections, 1 to 100")),
        Key("MAILDROP_PIPELINING", "pipelining", True, _flag),
        Key("MAILDROP_TRIGGER", "trigger", True, _flag),
        Key("MAILDROP_TLS", "tls", 0, _number(int, 0, 3, "0, 1, 2 or 3"), required=True),
        Key("MAILDROP_TLS_VERIFY", "tls_verify", False, _flag),
        Key("MAILDROP_TLS_CAFILE", "tls_cafile", None, _path),
        Key("MAILDROP_TLS_CERTFILE", "tls_certfile", None, _path),
        Key("MAILDROP_TLS_KEYFILE", "tls_keyfile", None, _path),
        Key("MAILDROP_LOGIN", "login", "", _text),
        Key("MAILDROP_PASSWORD", "password", "", _text, secret=True),
        Key("MAILDROP_PASSWORD_FILE", "password_file", None, _path),
        Key("MAILDROP_PASSWORD_COMMAND", "password_command", (), _command, secret=True),
        Key("MAILDROP_AUTH", "auth", "", _auth),
        Key("MAILDROP_AUTH_CLEAR", "auth_clear", True, _flag),
        Key("WAIT_INTERVAL", "wait_s", 0.0, _seconds),
        Key("ADD_MESSAGEID", "add_messageid", False, _flag),
        Key("SUPERVISED_DAEMON", "supervised", False, _flag),
        Key("MAILDROP_RETRY", "retry_s", 300.0, _number(float, 0, LONGEST_DELAY_S, "0 to 14400 seconds")),
        Key("MAILDROP_MAX_AGE", "max_age_s", 432000.0, _seconds),
        Key("MAILDROP_BOUNCE", "bounce", False, _flag),
        Key("MAILDROP_TIMEOUT", "timeout_s", 60.0, _some_seconds),
        Key("MAILDROP_DATA_TIMEOUT", "data_timeout_s", 600.0, _some_seconds),
        Key("MAILDROP_HELO", "helo", "", _text),
        Key("MAILDROP_FSYNC", "fsync", True, _flag),
        Key("MAILDROP_SPOOL_MODE", "spool_mode", 0o600, _mode),
        Key("MAILDROP_USER", "user", "", _text),
    )
}


def _build(assignments: list[Assignment]) -> Settings:
    found = {}
    for assignment in assignments:
        found[assignment.name] = assignment    # as in sh, the last one counts
    missing = [key.name for key in KEYS.values() if key.required and _is_unset(found.get(key.name))]
    if missing:
        raise MissingSettings(f"{', '.join(missing)}: missing")
    values = {}
    for name, key in KEYS.items():
        if name in found and not _is_unset(found[name]):
            values[name] = _checked(key, found[name])
    settings = _from_values(values)
    _check_together(settings)
    return replace(settings, warnings=tuple(_oddities(assignments, values, settings)))


def _is_unset(assignment: Assignment | None) -> bool:
    """None unsets a key, and so does "" for all that is not plain text."""
    if assignment is None or assignment.value is None:
        return True
    return assignment.value == "" and KEYS[assignment.name].check is not _text


def _checked(key: Key, assignment: Assignment) -> Any:
    try:
        return key.check(assignment.value)
    except ValueError as wanted:
        value = "" if key.secret else f"={assignment.value!r}"
        raise SettingsError(f"line {assignment.line}: {key.name}{value}: has to be {wanted}") from None


def _check_together(settings: Settings) -> None:
    """Raises SettingsError for keys that are right on their own and contradict each other."""
    passwords = [KEYS[name].name for name in _PASSWORDS if getattr(settings, KEYS[name].field)]
    if len(passwords) > 1:
        raise SettingsError(f"{' and '.join(passwords)}: only one of them may be set")
    if settings.auth and not (settings.login and passwords):
        raise SettingsError(f'MAILDROP_AUTH="{settings.auth}": needs MAILDROP_LOGIN and one of {", ".join(_PASSWORDS)}')
    if settings.tls_keyfile and not settings.tls_certfile:
        raise SettingsError("MAILDROP_TLS_KEYFILE: needs MAILDROP_TLS_CERTFILE")


_PASSWORDS = ("MAILDROP_PASSWORD", "MAILDROP_PASSWORD_FILE", "MAILDROP_PASSWORD_COMMAND")


def _from_values(values: dict[str, Any]) -> Settings:
    fields = {key.field: values.get(name, key.default) for name, key in KEYS.items()}
    fields["spools"] = fields["spools"] or (fields["home"] / "spool",)
    fields["var"] = fields["var"] or fields["home"] / "var"
    fields["pid_file"] = fields["pid_file"] or fields["var"] / "maildrop.pid"
    fields["log_file"] = fields["log_file"] or fields["var"] / "maildrop.log"
    return Settings(**fields)


def _oddities(assignments: list[Assignment], values: dict[str, Any], settings: Settings) -> Iterator[str]:
    """What deserves a warning though the file can be used."""
    for name, _, line, _, is_plain in assignments:
        if name not in KEYS:
            near = difflib.get_close_matches(name, KEYS, n=1)
            hint = f"; did you mean {near[0]}?" if near else ""
            yield f"line {line}: {name} is no key of this file and is passed over{hint}"
        elif not is_plain:
            yield f"line {line}: {name}: sh and Python read this line differently"
    if settings.tls >= 2 and "MAILDROP_TLS_VERIFY" not in values:
        yield "MAILDROP_TLS_VERIFY is missing, so the relay's certificate is not checked, as in 2.3; set it to 1"
    if settings.tls < 3 and settings.smtp_port == 465:
        yield "SMTP_PORT=465: there, relays speak TLS from the first byte, which is MAILDROP_TLS=3"
    if settings.login and not settings.has_password:
        yield f"MAILDROP_LOGIN is set and no password is ({', '.join(_PASSWORDS)}): there will be no login"
    if settings.login and settings.has_password and settings.tls < 2 and "MAILDROP_AUTH_CLEAR" not in values:
        yield "MAILDROP_AUTH_CLEAR is missing, so the login may go out without TLS, as in 2.3; set it to 0, and MAILDROP_TLS to 2"
    for spool in settings.spools:
        if spool.is_relative_to("/tmp") or _is_tmpfs(spool):
            yield f"{spool} does not survive a restart of this machine: put the spool on a disk"


def _is_tmpfs(path: Path) -> bool:
    """Whether the nearest mount point above ``path`` is memory. False where the system does not tell."""
    best, kind = "", ""
    try:
        mounts = Path("/proc/mounts").read_text("utf-8", "replace").splitlines()
    except OSError:
        return False
    for mount in mounts:
        _, point, filesystem = mount.split(" ", 3)[:3]
        if path.is_relative_to(point) and len(point) >= len(best):
            best, kind = point, filesystem
    return kind in ("tmpfs", "ramfs")

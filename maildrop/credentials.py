"""What we log in with: where the password or token comes from, and when it is asked for again."""

from __future__ import annotations

import os
import select
import shutil
import signal
import threading
import time
from contextlib import suppress

from maildrop import sasl
from maildrop.settings import Settings, SettingsError

_LONGEST = 64 * 1024    # bytes; tokens have a few thousand
_PATIENCE_S = 1.0    # what was killed ends sooner
_TELLING = 12    # so many bytes of a secret are not there by chance; what is cut off behind them is caught too


class PasswordUnavailable(Exception):
    """The password cannot be had now; says why."""


class Credentials:
    """Login and password of the settings. For any thread."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self._lock = threading.Lock()
        self._printed: str | None = None    # by the command, and not refused since
        self._has_worked = False    # that
        self._secrets: tuple[bytes, ...] = ()    # how all that must not be repeated begins
        self._command = _Command(settings.password_command, settings.timeout_s)

    @property
    def are_given(self) -> bool:
        """Whether the settings ask for a login at all."""
        return bool(self.settings.login) and self.settings.has_password

    def password(self) -> str:
        """The password as it is now: a file is read each time, a command is run once. Raises PasswordUnavailable."""
        password = self._password()
        forms = sasl.forms(self.settings.login, password)
        self._secrets = tuple(form.encode("utf-8", "replace")[:_TELLING] for form in forms)
        return password

    def _password(self) -> str:
        if self.settings.password_file:
            return self._read_file()
        if not self.settings.password_command:
            return self.settings.password
        with self._lock:
            if self._printed is None:
                self._printed = self._command.run()
                self._has_worked = False
            return self._printed

    def concealed(self, said: bytes) -> bytes:
        """What a relay said, up to where it repeats what only we and it should know."""
        for secret in self._secrets:
            said, repeats, _ = said.partition(secret)
            if repeats:
                said += b"******"
        return said

    def accepted(self, password: str) -> None:
        """The relay has taken this one."""
        with self._lock:
            self._has_worked = self._has_worked or password == self._printed

    def refused(self, password: str) -> bool:
        """The relay has not taken this one. Whether it is one that worked once, so that another try is worth while."""
        with self._lock:
            if password != self._printed:    # another thread had it refused before, or it is not from a command
                return bool(self.settings.password_command)
            self._printed = None
            return self._has_worked

    def cut(self) -> None:
        """End the command if it runs, and do not run it again: nobody waits for it any more. From another thread."""
        self._command.cut()

    def check(self) -> None:
        """Raises SettingsError where the file cannot be read or the command does not exist."""
        command = self.settings.password_command
        if command and not shutil.which(command[0]):
            raise SettingsError(f"MAILDROP_PASSWORD_COMMAND: there is no program {command[0]}")
        if self.settings.password_file:
            try:
                self._read_file()
            except PasswordUnavailable as error:
                raise SettingsError(str(error)) from None

    def _read_file(self) -> str:
        path = self.settings.password_file
        assert path
        try:
            descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)    # a FIFO must not block
            with os.fdopen(descriptor, "rb") as stream:
                raw = stream.read(_LONGEST + 1) or b""
        except OSError as error:
            raise PasswordUnavailable(f"MAILDROP_PASSWORD_FILE={str(path)!r}: {error.strerror}") from None
        return _one_line(raw, f"MAILDROP_PASSWORD_FILE={str(path)!r}")


def _one_line(raw: bytes, source: str) -> str:
    try:
        text = raw.decode("utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise PasswordUnavailable(f"{source}: has to be UTF-8") from None
    if not text or len(raw) > _LONGEST or any(mark in text for mark in "\r\n\0"):
        raise PasswordUnavailable(f"{source}: has to give one line and nothing else")
    return text


class _Command:
    """The command that prints the password. One thread at a time runs it."""

    def __init__(self, words: tuple[str, ...], timeout_s: float):
        self._words = words
        self._timeout_s = timeout_s
        self._lock = threading.Lock()    # held while a process begins or is collected
        self._pid: int | None = None    # of the one that runs
        self._was_cut = False

    def run(self) -> str:
        """What it prints. Nothing of it, nor of its errors, is told to anybody: it may hold the secret."""
        deadline = time.monotonic() + self._timeout_s
        reading, writing = os.pipe()
        try:
            try:
                self._start(writing)
            finally:
                os.close(writing)
            try:
                printed = _read(reading, deadline)
                status = self._wait(deadline)
            finally:
                self._end()
        finally:
            os.close(reading)
        if status:
            raise PasswordUnavailable(f"MAILDROP_PASSWORD_COMMAND: ended with status {status}")
        return _one_line(printed, "MAILDROP_PASSWORD_COMMAND")

    def cut(self) -> None:
        with self._lock:
            self._was_cut = True
            self._kill()

    def _kill(self) -> None:
        if self._pid:
            with suppress(ProcessLookupError, PermissionError):    # the latter where it has become another account's
                os.killpg(self._pid, signal.SIGKILL)

    def _start(self, output: int) -> None:
        """Raises PasswordUnavailable."""
        with self._lock:
            if self._was_cut:
                raise PasswordUnavailable("MAILDROP_PASSWORD_COMMAND: the daemon is about to end")
            if self._pid and not os.waitpid(self._pid, os.WNOHANG)[0]:
                raise PasswordUnavailable("MAILDROP_PASSWORD_COMMAND: it still runs since the last time, and cannot be ended")
            try:
                # Not subprocess, which would hand on the signals that the daemon blocks: nobody could end what this starts
                self._pid = os.posix_spawnp(
                    self._words[0],
                    self._words,
                    os.environ,
                    file_actions=[
                        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                        (os.POSIX_SPAWN_DUP2, output, 1),
                        (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
                    ],
                    setpgroup=0,
                    setsigmask=(),
                    setsigdef=(signal.SIGPIPE, signal.SIGXFSZ),    # which Python ignores
                )
            except OSError as error:
                raise PasswordUnavailable(f"MAILDROP_PASSWORD_COMMAND: {self._words[0]}: {error.strerror}") from None

    def _wait(self, deadline: float) -> int:
        """The exit status, once the process has ended; negative for a signal. Raises PasswordUnavailable."""
        while True:
            with self._lock:
                assert self._pid
                ended, status = os.waitpid(self._pid, os.WNOHANG)
                if ended:
                    self._pid = None
                    return os.waitstatus_to_exitcode(status)
            if time.monotonic() >= deadline:
                raise PasswordUnavailable("MAILDROP_PASSWORD_COMMAND: has not ended within MAILDROP_TIMEOUT")
            time.sleep(0.01)

    def _end(self) -> None:
        """Kill what still runs. What cannot be killed is remembered."""
        patience = time.monotonic() + _PATIENCE_S
        with self._lock:
            self._kill()
            while self._pid and time.monotonic() < patience:
                if os.waitpid(self._pid, os.WNOHANG)[0]:
                    self._pid = None
                else:
                    time.sleep(0.01)


def _read(pipe: int, deadline: float) -> bytes:
    """All that comes until the other end is closed. Raises PasswordUnavailable."""
    printed = b""
    while len(printed) <= _LONGEST:
        if not select.select([pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise PasswordUnavailable("MAILDROP_PASSWORD_COMMAND: has not ended within MAILDROP_TIMEOUT")
        more = os.read(pipe, _LONGEST)
        if not more:
            return printed
        printed += more
    raise PasswordUnavailable("MAILDROP_PASSWORD_COMMAND: has to print one line")

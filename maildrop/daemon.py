"""The daemon: the loop, signals, detaching."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from maildrop import account, permissions
from maildrop import settings as settings_module
from maildrop.credentials import Credentials
from maildrop.delivery import EVERYTHING, Delivery
from maildrop.logfile import MaildropLog
from maildrop.pidfile import AlreadyRunning, PidFile
from maildrop.settings import Settings, SettingsError
from maildrop.supervisor import Supervisor
from maildrop.tls import client_context
from maildrop.wake import WakeUp, Woken

USAGE = "Usage: maildrop.py /path/to/config"
_SIGNALS = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


def main(arguments: list[str]) -> int:
    """Run the daemon with the config file that is the only argument. Returns the exit status."""
    if len(arguments) != 1:
        print(USAGE, file=sys.stderr)
        return 1
    config = Path(arguments[0]).absolute()
    os.closerange(3, os.sysconf("SC_OPEN_MAX"))    # what whoever starts us had open is none of our, or our account's, business
    try:
        settings = settings_module.load(config)
    except SettingsError as error:
        print(f"{USAGE}\n{error}", file=sys.stderr)
        return 1
    for warning in settings.warnings:
        print(f"{config}: warning: {warning}", file=sys.stderr, flush=True)
    try:
        account.become(settings, making_directories=True)
        _check_files(config, settings)
        permissions.make_directories(settings)
        for warning in permissions.warnings(config, settings):
            print(f"Warning: {warning}", file=sys.stderr, flush=True)
        pid_file = PidFile(settings.pid_file)
    except (AlreadyRunning, SettingsError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    if settings.debug:
        print("maildrop in DEBUG mode: it stays in the foreground and prints what it logs", flush=True)
    if settings.debug or settings.supervised:
        return Daemon(config, settings, pid_file).run()
    return _detached(lambda ready: Daemon(config, settings, pid_file).run(ready))


def _check_files(config: Path, settings: Settings) -> None:
    """Raises SettingsError where a file or command that the settings name cannot be used by this account."""
    try:
        if settings.tls:
            client_context(settings)
        if (credentials := Credentials(settings)).are_given:
            credentials.check()
    except SettingsError as error:
        raise SettingsError(f"{config}: {error}") from error


def _detached(run: Callable[[Callable[[], None]], int]) -> int:
    """Do ``run`` in a process of its own without a terminal; return when it is ready."""
    sys.stdout.flush()
    sys.stderr.flush()
    reading, writing = os.pipe()
    if os.fork():
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            said = pipe.read()
        if said == b"ready":
            return 0
        print(f"Error: {said.decode() or 'the daemon has ended'}", file=sys.stderr)
        return 1
    os.close(reading)
    os.setsid()
    if os.fork():    # so that the daemon leads no session and never gets a terminal again
        os._exit(0)
    status = 1
    try:
        os.chdir("/")
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)

        def ready() -> None:
            os.write(writing, b"ready")
            os.close(writing)

        status = run(ready)
    except OSError as error:
        with suppress(OSError):    # nobody listens any more once it was ready
            os.write(writing, str(error).encode())
    finally:
        os._exit(status)


class Daemon:
    """Passes over the spool until a signal says stop."""

    def __init__(self, config: Path, settings: Settings, pid_file: PidFile):
        self._config = config
        self._pid_file = pid_file
        self._log = MaildropLog(settings.log_file, settings.log_mode, echo=settings.debug)
        self._wake = WakeUp()
        self._supervisor = Supervisor()
        self._delivery = Delivery(settings, self._log, self._wake)
        self._broken = False

    def run(self, ready: Callable[[], None] = lambda: None) -> int:
        """Serve until SIGTERM or SIGINT; SIGHUP re-reads the config. Returns the exit status."""
        os.umask(0o027)
        signal.pthread_sigmask(signal.SIG_BLOCK, _SIGNALS)    # they are waited for below, whichever thread is hit
        self._pid_file.write()
        self._delivery.figures.serves(self._config)
        try:
            ready()
            self._supervisor.ready()
            worker = threading.Thread(target=self._work, name="delivery", daemon=True)
            worker.start()
            while signal.sigwait(_SIGNALS) == signal.SIGHUP:
                self._delivery.interrupt()
            self._supervisor.stopping()
            self._delivery.cut()
            while worker.is_alive() and not self._delivery.is_only_connecting():
                worker.join(0.1)
            return 1 if self._broken and not worker.is_alive() else 0
        finally:
            self._wake.close()
            self._pid_file.remove()

    def _work(self) -> None:
        self._broken = True
        woken = EVERYTHING
        try:
            while not self._delivery.stopping.is_set():
                self._listen()
                self._delivery.run_pass(woken)
                if self._delivery.interrupted.is_set():
                    self._delivery.interrupted.clear()
                    self._supervisor.reloading()
                    self._load_config()
                    self._supervisor.ready()
                    woken = EVERYTHING
                elif not self._delivery.stopping.is_set():
                    woken = self._wait()
            self._delivery.record_late()
            self._delivery.figures.save()
            self._broken = False
        finally:
            os.kill(os.getpid(), signal.SIGTERM)    # whatever happened, the main thread has to hear of it

    def _wait(self) -> Woken:
        """Wait until there is something to do. The figures are kept up to date meanwhile."""
        delivery = self._delivery
        while True:
            until_look_s = delivery.next_look - time.monotonic()
            woken = self._wake.wait(min(until_look_s, delivery.figures.save_in_s))
            delivery.figures.save_if_due()
            is_called = delivery.interrupted.is_set() or delivery.stopping.is_set()
            if woken.paths or woken.look or is_called or time.monotonic() >= delivery.next_look:
                return woken

    def _listen(self) -> None:
        settings = self._delivery.settings
        self._wake.listen(settings.spools if settings.trigger else (), settings.directory_mode)

    def _read_config(self) -> Settings:
        """Raises SettingsError."""
        try:
            return settings_module.load(self._config)
        except SettingsError as error:
            user = self._delivery.settings.user
            if user and not os.access(self._config, os.R_OK):
                raise SettingsError(f"{error}; the daemon serves as {user}") from error
            raise

    def _load_config(self) -> None:
        try:
            settings = self._read_config()
            _check_files(self._config, settings)
            if settings.pid_file != self._pid_file.path:
                raise SettingsError("MAILDROP_PID_FILE has changed, which takes a restart")
            if settings.user != self._delivery.settings.user:
                raise SettingsError("MAILDROP_USER has changed, which takes a restart")
            permissions.make_directories(settings)
        except (SettingsError, OSError) as error:
            self._log.notice(f"config not reloaded, the old one stays: {error}")
        else:
            self._delivery.settings = self._delivery.figures.settings = settings
            self._delivery.figures.serves(self._config)
            self._log.path, self._log.mode = settings.log_file, settings.log_mode
            self._log.notice("config reloaded")
        self._log.end_block()

"""The contestants of the delivery benchmarks: each has a queue full of mails and hands them to a relay."""

from __future__ import annotations

import os
import subprocess
import sys
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path

from support.config_file import write_config
from support.requires import find_command

from benchmarks import mails as made_mails
from benchmarks.postfix import PrivatePostfix
from benchmarks.sinks import CHECKOUT

OURS = "MaildropHost"
_PATIENCE_S = 5


class Contestant(ABC):
    """``fill`` it, ``start`` it, look at what it uses, ``stop`` it; then it can be filled again, elsewhere."""

    one_at_a_time = False    # waits for each reply before it goes on: as slow as the relay is far

    def __init__(self, name: str):
        self.name = name

    @abstractmethod
    def fill(self, directory: Path, relay_port: int, mails: int, size: int) -> None:
        """Make a queue in the empty ``directory`` with so many mails of ``size`` bytes, for the relay on that port."""

    @abstractmethod
    def start(self) -> None:
        """Begin to deliver."""

    @abstractmethod
    def pids(self) -> list[int]:
        """The processes that deliver."""

    @abstractmethod
    def read_output(self) -> str:
        """What it has printed and logged, for those who wonder why it fails."""

    @abstractmethod
    def stop(self) -> None: ...


class Program(Contestant):
    """A contestant that is one process."""

    def start(self) -> None:
        with (self._directory / "output").open("wb") as output:
            self._process = subprocess.Popen(self._command(), cwd=CHECKOUT, stdout=output, stderr=output)

    def fill(self, directory: Path, relay_port: int, mails: int, size: int) -> None:
        self._directory, self._relay_port, self._mails, self._size = directory, relay_port, mails, size
        self._fill()

    def pids(self) -> list[int]:
        return [self._process.pid]

    def read_output(self) -> str:
        return (self._directory / "output").read_text("utf-8", "replace")

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(_PATIENCE_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    @abstractmethod
    def _fill(self) -> None: ...

    @abstractmethod
    def _command(self) -> Sequence[object]: ...


class Maildrop(Program):
    """Our daemon, with the settings of the config file that comes with it and these ones."""

    def __init__(self, name: str = OURS, settings: Mapping[str, object] | None = None):
        super().__init__(name)
        self._settings = settings or {}

    @property
    def config(self) -> Path:
        return self._directory / "config"

    def _fill(self) -> None:
        home = self._directory / "home"
        relay = {"SMTP_HOST": "127.0.0.1", "SMTP_PORT": self._relay_port}
        write_config(self.config, MAILDROP_HOME=home, SUPERVISED_DAEMON=1, **{**relay, **self._settings})
        made_mails.fill_spool(home / "spool", self._mails, self._size)

    def _command(self) -> Sequence[object]:
        return [sys.executable, "-m", "maildrop", self.config]

    def read_output(self) -> str:
        log = self._directory / "home" / "var" / "maildrop.log"
        return super().read_output() + (log.read_text("utf-8", "replace") if log.exists() else "")


class ZopeSendmail(Program):
    """The queue processor that the stock MailHost's mails wait for, as a program of its own."""

    one_at_a_time = True

    def _fill(self) -> None:
        made_mails.fill_maildir(self._directory / "queue", self._mails, self._size)

    def _command(self) -> Sequence[object]:
        relay = ["--hostname", "127.0.0.1", "--port", str(self._relay_port)]
        return [sys.executable, "-m", "zope.sendmail.queue", *relay, self._directory / "queue"]


class SmtplibLoop(Program):
    one_at_a_time = True

    def _fill(self) -> None:
        made_mails.fill_spool(self._directory / "spool", self._mails, self._size)

    def _command(self) -> Sequence[object]:
        return [sys.executable, "-m", "benchmarks.smtplib_loop", self._directory / "spool", str(self._relay_port)]


class SmtpSource(Program):
    """Postfix's load generator: no queue, no files, no waiting. What the sink and this machine allow."""

    def __init__(self, name: str, sessions: int):
        super().__init__(name)
        self._sessions = sessions
        self.one_at_a_time = sessions == 1

    def _fill(self) -> None:
        pass

    def _command(self) -> Sequence[object]:
        load = ["-d", "-s", str(self._sessions), "-m", str(self._mails), "-l", str(self._size)]
        envelope = ["-f", made_mails.SENDER, "-t", made_mails.RECIPIENT]
        return [find_command("smtp-source"), *load, *envelope, f"127.0.0.1:{self._relay_port}"]


class Postfix(Contestant):
    """Postfix as the client of a relay, with these settings of main.cf."""

    def __init__(self, name: str, settings: Mapping[str, object] | None = None):
        super().__init__(name)
        self._settings = settings or {}

    def fill(self, directory: Path, relay_port: int, mails: int, size: int) -> None:
        self._postfix = PrivatePostfix(directory, relay_port, self._settings)
        self._postfix.start(delivering=False)
        load = ["-d", "-s", "10", "-m", str(mails), "-l", str(size)]
        envelope = ["-f", made_mails.SENDER, "-t", made_mails.RECIPIENT]
        try:
            command = [find_command("smtp-source"), *load, *envelope, f"127.0.0.1:{self._postfix.port}"]
            subprocess.run(command, check=True)
        except BaseException:
            self._postfix.stop()
            raise

    def start(self) -> None:
        self._postfix.begin_to_deliver()

    def pids(self) -> list[int]:
        return self._postfix.pids()

    def read_output(self) -> str:
        return self._postfix.read_log()

    def stop(self) -> None:
        self._postfix.stop()


def why_no_postfix() -> str:
    """Why no private Postfix can run here, as a sentence; "" if it can."""
    if find_command("postfix") is None:
        return "Postfix: not installed"
    if os.geteuid() != 0:
        return "Postfix: only root can run it"
    return ""


def why_no_smtp_source() -> str:
    return "" if find_command("smtp-source") else "smtp-source: not installed (Debian's postfix has it)"

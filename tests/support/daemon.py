"""The real daemon, started and stopped by its own scripts."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from maildrop import spool as spool_module
from support.accounts import Account
from support.config_file import write_config

CHECKOUT = Path(__file__).parents[2]
SCRIPTS = CHECKOUT / "maildrop" / "bin"
PATIENCE_S = 20.0


def wait_until(condition: Callable[[], Any], timeout_s: float = PATIENCE_S, told: Callable[[], str] = str) -> None:
    """Wait until ``condition()`` is true. ``told()`` is what the failure says if it never is."""
    deadline = time.monotonic() + timeout_s
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"has not come true within {timeout_s:.0f} seconds\n{told()}")
        time.sleep(0.02)


def process_runs(pid: int) -> bool:
    """Whether there is such a process; one that has ended and was not yet collected does not count."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except ProcessLookupError:
        return False
    except OSError:    # a system without /proc
        return True


def run_script(
    name: str, *arguments: object, account: Account | None = None, scripts: Path = SCRIPTS
) -> subprocess.CompletedProcess[str]:
    """Run a script of ``maildrop/bin``, or of a copy of that, to its end; ``account``: as that one."""
    if account is not None:
        return account.run(scripts / name, *arguments)
    command = [str(scripts / name), *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=_environment())


class MaildropDaemon:
    """A daemon with a home of its own in ``directory``, which looks at its spool five times a second.

    As a context manager it runs and is always stopped. ``values`` are keys of its config file, ``template`` is the text of
    another one than the shipped. ``account`` starts and stops it, with ``scripts``.
    """

    def __init__(
        self,
        directory: Path,
        relay_port: int,
        template: str | None = None,
        *,
        account: Account | None = None,
        scripts: Path = SCRIPTS,
        **values: object,
    ):
        self.directory = directory
        self._account = account
        self._scripts = scripts
        self.home = Path(str(values.get("MAILDROP_HOME", directory / "home")))
        self.spool = Path(str(values.get("MAILDROP_SPOOL", self.home / "spool")))
        self.config = directory / "config"
        self.log_file = Path(str(values.get("MAILDROP_LOG_FILE", self.home / "var" / "maildrop.log")))
        self.pid_file = Path(str(values.get("MAILDROP_PID_FILE", self.home / "var" / "maildrop.pid")))
        self.stdout_file = directory / "stdout"
        self.stderr_file = directory / "stderr"
        self._started: set[int] = set()
        self._untold: set[str] = set()    # mails added of which the log has not been seen to tell
        self._template = template
        self._values: dict[str, object] = {
            "PYTHON": sys.executable,
            "MAILDROP_HOME": self.home,
            "MAILDROP_INTERVAL": 0.2,
            "SMTP_HOST": "127.0.0.1",
            "SMTP_PORT": relay_port,
        }
        self.configure(**values)

    def configure(self, **values: object) -> None:
        """Change keys of the config file. A daemon that runs does not notice before SIGHUP."""
        self._values |= values
        write_config(self.config, self._template, **self._values)

    # -- running it --

    def start(self) -> str:
        """Start it detached, as an administrator does; what it said. Raises AssertionError if it does not start."""
        result = self.try_start()
        assert result.returncode == 0, result.stderr
        self._started.add(self.pid)
        return result.stdout + result.stderr

    def try_start(self) -> subprocess.CompletedProcess[str]:
        return run_script("start_maildrop", self.config, account=self._account, scripts=self._scripts)

    def stop(self) -> subprocess.CompletedProcess[str]:
        return run_script("stop_maildrop", self.config, account=self._account, scripts=self._scripts)

    def ctl(self, *arguments: object, account: Account | None = None) -> subprocess.CompletedProcess[str]:
        """Run ``maildropctl`` for this config file; ``account``: as that one."""
        return run_script("maildropctl", "--config", self.config, *arguments, account=account, scripts=self._scripts)

    def signal(self, number: signal.Signals) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        """End it as a crash does: it cannot tidy up."""
        pid = self.pid
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: not process_runs(pid))

    @property
    def pid(self) -> int:
        return int(self.pid_file.read_text())

    def __enter__(self) -> MaildropDaemon:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        try:
            if self.pid_file.exists():
                self.stop()
        finally:
            for pid in filter(self._is_ours, self._started):
                with suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)

    @contextmanager
    def in_foreground(self) -> Iterator[subprocess.Popen]:
        """The process of a daemon that does not detach. Its output goes to ``stdout_file`` and ``stderr_file``."""
        with self.stdout_file.open("wb") as stdout, self.stderr_file.open("wb") as stderr:
            command = [str(SCRIPTS / "start_maildrop"), str(self.config)]
            process = subprocess.Popen(command, stdout=stdout, stderr=stderr, env=_environment())
        try:
            self.wait_until(lambda: process.poll() is not None or self._has_written_pid(process.pid))
            yield process
        finally:
            process.terminate()
            try:
                process.wait(PATIENCE_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()

    def _has_written_pid(self, pid: int) -> bool:
        with suppress(OSError, ValueError):
            return self.pid == pid
        return False

    def _is_ours(self, pid: int) -> bool:
        with suppress(OSError):
            return os.fsencode(self.config) in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return False

    # -- looking --

    def read_log(self) -> str:
        """The log so far, empty if there is none."""
        try:
            return self.log_file.read_text()
        except FileNotFoundError:
            return ""

    def waiting(self) -> list[str]:
        """Names of everything in the spool that is no directory, locks included."""
        return sorted(entry.name for entry in os.scandir(self.spool) if not entry.is_dir(follow_symlinks=False))

    def failed(self) -> list[Path]:
        return sorted((self.spool / spool_module.FAILED).iterdir())

    def wait_until(self, condition: Callable[[], Any]) -> None:
        wait_until(condition, told=lambda: f"waiting: {self.waiting()}\nlog:\n{self.read_log()}")

    def outages(self) -> list[str]:
        """The lines of the log with which an outage begins."""
        return [line for line in self.read_log().splitlines() if line.startswith("!!!!!")]

    def wait_for_log(self, text: str) -> None:
        self.wait_until(lambda: text in self.read_log())

    def wait_until_empty(self) -> None:
        """Wait until no mail waits and the log has told of each that was added, in blocks that are complete."""
        self.wait_until(lambda: not self.waiting())
        self.wait_until(lambda: self._log_is_complete(self.read_log()))

    def _log_is_complete(self, log: str) -> bool:
        self._untold = {name for name in self._untold if f"\t{name} " not in log}
        return not self._untold and log.count("### Started at") == log.count("### Finished at")

    # -- mails --

    def add_mail(
        self,
        *recipients: str,
        message: bytes = b"Subject: test\n\nbody\n",
        sender: str = "zoe@example.org",
        spool: Path | None = None,
    ) -> Path:
        """Put a mail into the spool the way Zope does, so that it is due at once."""
        directory = spool or self.spool
        spool_module.make_spool(directory, 0o700)
        draft = spool_module.Draft(directory / spool_module.new_name())
        draft.write(sender, ",".join(recipients), message)
        draft.release()
        self._untold.add(draft.path.name)
        return draft.path

    def add_foreign_file(self, name: str | bytes, content: bytes) -> Path:
        """Put a file into the spool as any other program may do it. The daemon lets it rest for two seconds."""
        spool_module.make_spool(self.spool, 0o700)
        path = self.spool / os.fsdecode(name)
        path.write_bytes(content)
        self._untold.add(path.name)
        return path


def _environment() -> dict[str, str]:
    return {key: value for key, value in os.environ.items() if key != "MAILDROP_CONFIG"}

"""A Postfix that hands all mail to a relay, with a configuration, queue and port of its own."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path

from support.ports import free_port
from support.requires import find_command

from benchmarks.processes import family, wait_until

_MAIN_CF = """\
compatibility_level = 3.6
config_directory = {directory}/etc
queue_directory = {directory}/queue
data_directory = {directory}/data
maillog_file = {directory}/log
maillog_file_prefixes = {directory}
myhostname = mail.example.net
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mydestination =
alias_maps =
alias_database =
local_recipient_maps =
biff = no
relayhost = [127.0.0.1]:{relay_port}
mynetworks = 127.0.0.0/8
message_size_limit = 0
mailbox_size_limit = 0

# These speed up how mails get into it, which is not measured.
in_flow_delay = 0
smtpd_peername_lookup = no
"""

# service type private unpriv chroot wakeup maxproc command
_MASTER_CF = """\
127.0.0.1:{port} inet n - n - - smtpd
cleanup unix n - n - 0 cleanup
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
proxymap unix - - n - - proxymap
smtp unix - - n - - smtp
relay unix - - n - - smtp
error unix - - n - - error
retry unix - - n - - error
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""
_QUEUE_MANAGER = "qmgr unix n - n 300 1 qmgr\n"
_PATIENCE_S = 30


class PrivatePostfix:
    """Listens on a free ``port`` of 127.0.0.1 once it is started, and takes all mail.

    ``directory`` is empty, and every account may go there. ``settings``: further lines of main.cf.
    """

    def __init__(self, directory: Path, relay_port: int, settings: Mapping[str, object]):
        self._directory = directory
        self._etc = directory / "etc"
        self.port = free_port()
        for name in ("etc", "queue", "data"):
            (directory / name).mkdir()
        shutil.chown(directory / "data", "postfix")
        lines = "".join(f"{key} = {value}\n" for key, value in settings.items())
        (self._etc / "main.cf").write_text(_MAIN_CF.format(directory=directory, relay_port=relay_port) + lines)

    def start(self, delivering: bool = True) -> None:
        """Run it. Where it is not ``delivering`` yet there is no queue manager: mails wait in the queue as they came."""
        self._write_services(delivering)
        with (self._directory / "output").open("wb") as output:
            command = [find_command("postfix"), "-c", str(self._etc), "start-fg"]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)
        try:
            wait_until(self._serves, "Postfix runs", pause_s=0.02)
        except TimeoutError as error:
            self.stop()
            raise TimeoutError(f"{error}\n{self.read_log()}") from None

    def begin_to_deliver(self) -> None:
        self._write_services(delivering=True)
        self._command("reload")

    def stop(self) -> None:
        if self._process.poll() is None:
            self._command("stop")
        self._process.wait(_PATIENCE_S)

    def pids(self) -> list[int]:
        return family(self._process.pid)

    def read_log(self) -> str:
        """What Postfix has logged, and printed before it could log."""
        logs = (self._directory / "log", self._directory / "output")
        return "\n".join(path.read_text(errors="replace") for path in logs if path.exists())

    def _write_services(self, delivering: bool) -> None:
        services = _MASTER_CF.format(port=self.port) + (_QUEUE_MANAGER if delivering else "")
        (self._etc / "master.cf").write_text(services)

    def _serves(self) -> bool:
        return "daemon started" in self.read_log()

    def _command(self, verb: str) -> None:
        command = [find_command("postfix"), "-c", str(self._etc), verb]
        subprocess.run(command, check=True, capture_output=True)

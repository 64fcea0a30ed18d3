"""What the daemon does in one pass and the next, without a process of its own: a spool, a config file, a log."""

from __future__ import annotations

import threading
import time
from dataclasses import replace
from pathlib import Path

from maildrop import settings, spool
from maildrop.delivery import Delivery
from maildrop.logfile import MaildropLog
from support.certificates import write_authority
from support.config_file import write_config

PATIENCE_S = 20.0


class DeliverySite:
    """Mails in a spool under ``directory``, and what delivers them. ``values`` are keys of the config file.

    It believes the tests' own authority.
    """

    def __init__(self, directory: Path, relay_port: int, **values: object):
        config = write_config(directory / "config", **{
            "MAILDROP_HOME": directory / "home",
            "SMTP_HOST": "localhost",
            "SMTP_PORT": relay_port,
            "MAILDROP_HELO": "zope.example.org",
            "MAILDROP_TLS_CAFILE": write_authority(directory),
            "MAILDROP_TIMEOUT": PATIENCE_S,
            "MAILDROP_RETRY": 0,
            "MAILDROP_FSYNC": 0,
            **values,
        })
        self.settings = settings.load(config)
        self.spool = self.settings.spools[0]
        self.log_file = self.settings.log_file
        self.log_file.parent.mkdir(parents=True)
        spool.make_spool(self.spool, 0o700)
        self.delivery = Delivery(self.settings, MaildropLog(self.log_file))

    def add_mail(self, *recipients: str) -> None:
        draft = spool.Draft(self.spool / spool.new_name(), durable=False)
        draft.write("zoe@example.org", ", ".join(recipients), b"Subject: test\n\nbody\n")
        draft.release()

    def run_pass(self) -> None:
        """Raises AssertionError if it does not end."""
        time.sleep(0.01)    # a mail put off by no time at all is due a moment later
        thread = threading.Thread(target=self.delivery.run_pass, daemon=True)
        thread.start()
        thread.join(2 * PATIENCE_S)
        assert not thread.is_alive(), f"a pass does not end\n{self.told()}"

    def change(self, **fields: object) -> None:
        """Go on with other settings, as the daemon does after SIGHUP."""
        self.delivery.settings = replace(self.delivery.settings, **fields)

    def mails(self) -> dict[str, tuple[bytes, float]]:
        """What each mail in the spool holds, and when it is due."""
        return {path.name: (path.read_bytes(), path.stat().st_mtime) for path in self.spool.iterdir() if path.is_file()}

    def failed(self) -> list[Path]:
        return sorted((self.spool / spool.FAILED).iterdir())

    def everything_written(self) -> bytes:
        """Log and mails, also those that have failed."""
        return b"".join(path.read_bytes() for path in self.spool.parent.rglob("*") if path.is_file())

    def told(self) -> str:
        """The log so far, empty if there is none."""
        return self.log_file.read_text() if self.log_file.exists() else ""

    def outages(self) -> list[str]:
        """The lines of the log with which an outage begins."""
        return [line for line in self.told().splitlines() if line.startswith("!!!!!")]

"""MaildropHosts with a spool of their own, and what their spool holds."""

import sys
import tempfile
from pathlib import Path

import Products.MaildropHost.MaildropHost    # noqa: F401
from persistent.list import PersistentList
from support.config_file import write_config

from maildrop import spool

MODULE = sys.modules["Products.MaildropHost.MaildropHost"]    # the package has the class under the same name


def make_host(directory: Path, host_class=MODULE.MaildropHost, transactional=True, **settings):
    """A MaildropHost whose config file and spool are in ``directory``."""
    config = write_config(directory / "config", MAILDROP_HOME=directory, **settings)
    host = host_class("MailHost")
    host.config_path = str(config)
    host._transactional = transactional
    return host


class SpoolingMailHost(MODULE.MaildropHost):
    """Stands where the tests of other software have a mail host that keeps what it was sent; reads that from its spool.

    As with theirs, what a test has sent is forgotten when the database is put back to where it was: the names are there.
    """

    meta_type = "Spooling Mail Host"

    def __init__(self, id):
        super().__init__(id)
        home = Path(tempfile.mkdtemp())
        self.config_path = str(write_config(home / "config", MAILDROP_HOME=home))
        self.reset()

    def reset(self):
        self.names = PersistentList()

    @property
    def messages(self):
        """The messages of all mails, in the order in which they were sent; those of transactions still open, too."""
        return [read_locked_mail(Path(self.spool, name))[2] for name in self.names]

    @property
    def sent(self):
        return self.messages[-1]

    def _send(self, mfrom, mto, body, immediate=False):
        super()._send(mfrom, mto, body, immediate)
        self.names.append(self._v_last_name)
        self.immediate = immediate


def files_in(directory: Path) -> list[str]:
    """Names of the plain files in a spool, sorted; locks included."""
    return sorted(path.name for path in directory.glob("*") if path.is_file())


def read_mails(directory: Path) -> list[tuple[str, tuple[str, ...], bytes]]:
    """Sender, recipients and message of each unlocked mail, oldest first."""
    return [_read(path) for path in sorted(directory.glob("*")) if _is_unlocked_mail(path)]


def read_locked_mail(path: Path) -> tuple[str, tuple[str, ...], bytes]:
    return _read(path)


def _is_unlocked_mail(path: Path) -> bool:
    return path.is_file() and path.suffix != spool.LOCK_SUFFIX and not spool.lock_path(path).exists()


def _read(path: Path) -> tuple[str, tuple[str, ...], bytes]:
    with open(path, "rb") as stream:
        lines = spool._read_envelope_lines(stream)
        mail = spool.SpooledMail(path, stream, lines, durable=False)
        envelope = mail.read_envelope()
        return envelope.sender, envelope.recipients, b"".join(mail.content())

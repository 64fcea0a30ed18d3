"""MaildropHosts with a spool of their own, and what their spool holds."""

import sys
from pathlib import Path

import Products.MaildropHost.MaildropHost    # noqa: F401
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

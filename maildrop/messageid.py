"""The Message-Id of a mail: the one it has, or one of ours that is the same in every attempt (RFC 5322 3.6.4)."""

from __future__ import annotations

import re

from maildrop.spool import SpooledMail

_FIELD = re.compile(rb"^message-id[ \t]*:((?:[^\n]|\n[ \t])*)", re.IGNORECASE | re.MULTILINE)


def message_id(mail: SpooledMail) -> str | None:
    """What stands in the mail's Message-Id field, None without one."""
    field = _FIELD.search(mail.header())
    return field and field[1].strip().decode("ascii", "backslashreplace")


def new_message_id(mail: SpooledMail, host: str) -> str:
    """A Message-Id made of the mail's identity, so that receivers can drop a duplicate."""
    return f"<{mail.identity}@{host}>"

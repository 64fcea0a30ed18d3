"""A delivery status notification from a failure (RFC 3464): who was refused, why, and the header of the mail."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from email.message import Message
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from email.utils import formatdate

from maildrop import spool
from maildrop.logfile import printable
from maildrop.policy import Reply
from maildrop.relay import own_name
from maildrop.settings import Settings
from maildrop.spool import SpooledMail

_LONGEST_LINE = 900    # RFC 5321 4.5.3.1.6 allows 998
_TEXT = """\
This is the maildrop daemon at {host}.

Your mail could not be delivered to these recipients, and it will not be tried again:

{recipients}

Its header is below. The mail is kept on {host} as {kept}.
"""


def write(mail: SpooledMail, sender: str, failed: Mapping[str, Reply], kept: str, settings: Settings) -> None:
    """Put a notice for the sender (or DEBUG_RECEIVER) into the mail's spool, once for each ``kept``.

    It comes from the null sender, so that it never causes another one (RFC 5321 4.5.5). Raises OSError.
    """
    content = message(mail, sender, failed, kept, settings.helo or own_name())
    spool.add_whole(mail, f"bounce-{kept}", "", settings.debug_receiver or sender, content)


def message(mail: SpooledMail, sender: str, failed: Mapping[str, Reply], kept: str, host: str) -> bytes:
    """The notice: a text for people, one for programs, and the header of the mail."""
    report = MIMEMultipart("report")
    report.set_param("report-type", "delivery-status")
    report["From"] = f"Mail Delivery System <MAILER-DAEMON@{host}>"
    report["To"] = _ascii(sender)
    report["Subject"] = "Mail could not be delivered"
    report["Date"] = formatdate(localtime=True)
    report["Message-Id"] = f"<bounce-{kept}@{host}>"
    report["Auto-Submitted"] = "auto-replied"    # RFC 3834
    recipients = "\n".join(f"<{recipient}>: {reply}" for recipient, reply in failed.items())
    report.attach(_text(_TEXT.format(host=host, recipients=recipients, kept=kept), "plain"))
    report.attach(_delivery_status(mail, failed, host))
    report.attach(_text(mail.header().decode("utf-8", "replace") + "\n", "rfc822-headers"))
    return report.as_bytes()


def _delivery_status(mail: SpooledMail, failed: Mapping[str, Reply], host: str) -> Message:
    status = Message()
    status["Content-Type"] = "message/delivery-status"
    of_mail = Message()
    of_mail["Reporting-MTA"] = f"dns; {host}"
    of_mail["Arrival-Date"] = formatdate(mail.queued_at, localtime=True)
    status.attach(of_mail)
    for recipient, reply in failed.items():
        block = Message()
        block["Final-Recipient"] = f"{'rfc822' if recipient.isascii() else 'utf-8'}; {_ascii(recipient)}"
        block["Action"] = "failed"
        block["Status"] = _status(reply)
        block["Diagnostic-Code"] = f"smtp; {_ascii(str(reply))}"
        block["Last-Attempt-Date"] = formatdate(time.time(), localtime=True)
        status.attach(block)
    return status


def _status(reply: Reply) -> str:
    """The enhanced status of a refusal (RFC 3463); where the relay gave none, one that says no more than its code."""
    found = re.match(r"5\.[0-9]{1,3}\.[0-9]{1,3}(?= |$)", reply.text)
    return found[0] if found else "5.0.0"


def _text(text: str, subtype: str) -> MIMEText:
    fits = text.isascii() and max(map(len, text.splitlines()), default=0) < _LONGEST_LINE
    return MIMEText(text, subtype, "us-ascii" if fits else "utf-8")    # the latter is encoded in short lines


def _ascii(text: str) -> str:
    """For a header field: one line, with other letters as in an address of RFC 6533 section 3."""
    line = "".join(char if char.isascii() else f"\\x{{{ord(char):X}}}" for char in printable(text))
    return line[:_LONGEST_LINE]

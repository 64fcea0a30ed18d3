"""Whatever is sent, the spool gets the envelope and the message bytes that the stock MailHost hands to its mailer."""

from email.message import EmailMessage
from email.mime.application import MIMEApplication
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from email.utils import parseaddr

import pytest
import transaction
from Products.MailHost.MailHost import MailHost
from support.spooling import make_host, read_mails


def multipart():
    message = MIMEMultipart(boundary="=-=-=")
    message["Subject"] = "With attachments"
    message["From"] = "zoe@example.org"
    message["To"] = "ann@example.org, Bob <bob@example.org>"
    message["Bcc"] = "hidden@example.org"
    message.attach(MIMEText("Gr\u00fc\u00dfe", "plain", "utf-8"))
    message.attach(MIMEApplication(bytes(range(256)) * 50, Name="data.bin"))
    return message


def modern():
    message = EmailMessage()
    message["Subject"] = "Modern \u20ac"
    message["From"] = "Zo\u00eb <zoe@example.org>"
    message["To"] = "ann@example.org"
    message.set_content("Text \u20ac\n.\n..\n")
    message.add_alternative("<p>HTML</p>", subtype="html")
    message.set_boundary("=-=-=")
    return message


LONG = "x" * 2000
HEADED = "From: zoe@example.org\nTo: ann@example.org\nCc: cat@example.org\nBcc: bob@example.org\nSubject: Hi\n\nText\n.dot\n"
CALLS = {
    "text with header fields": dict(messageText=HEADED),
    "plain text": dict(messageText="Hello\n", mto="ann@example.org", mfrom="zoe@example.org", subject="Hi"),
    "bytes": dict(messageText="Gr\u00fc\u00dfe".encode(), mto="ann@example.org", mfrom="zoe@example.org", charset="utf-8"),
    "latin-1 bytes": dict(
        messageText="Gr\u00fc\u00dfe".encode("latin-1"), mto="ann@example.org", mfrom="zoe@example.org",
        charset="iso-8859-1", subject="\u00dcber",
    ),
    "unicode": dict(messageText="\u20ac \u4e2d\u6587", mto="ann@example.org", mfrom="zoe@example.org", charset="utf-8"),
    "unicode without charset": dict(messageText="Gr\u00fc\u00dfe", mto="ann@example.org", mfrom="zoe@example.org"),
    "unicode subject": dict(
        messageText="x", mto="ann@example.org", mfrom="zoe@example.org", subject="\u4e2d\u6587", charset="utf-8"
    ),
    "no subject": dict(messageText="x", mto="ann@example.org", mfrom="zoe@example.org"),
    "several in one string": dict(messageText="x", mto="ann@example.org, bob@example.org", mfrom="zoe@example.org"),
    "a list": dict(messageText="x", mto=["ann@example.org", "Bob <bob@example.org>"], mfrom="zoe@example.org"),
    "a tuple": dict(messageText="x", mto=("ann@example.org", "bob@example.org"), mfrom="zoe@example.org"),
    "quoted commas": dict(
        messageText="x", mto='"Doe, Jane" <jane@example.org>, "Roe, Jon" <jon@example.org>', mfrom="zoe@example.org"
    ),
    "quoted commas in a list": dict(
        messageText="x", mto=['"Doe, Jane" <jane@example.org>', "jon@example.org"], mfrom="zoe@example.org"
    ),
    "unicode names": dict(
        messageText="x", mto="J\u00e4ne <jane@example.org>", mfrom="Zo\u00eb <zoe@example.org>", charset="utf-8"
    ),
    "sender with a name": dict(messageText="x", mto="ann@example.org", mfrom='"Zoe (Sales)" <zoe@example.org>'),
    "unicode sender in the header": dict(
        messageText="From: Zo\u00eb <zoe@example.org>\nTo: ann@example.org\nSubject: x\n\nx", charset="utf-8"
    ),
    "bcc only": dict(messageText="From: zoe@example.org\nBcc: ann@example.org\nSubject: x\n\nx"),
    "base64": dict(messageText="Gr\u00fc\u00dfe", mto="ann@example.org", mfrom="zoe@example.org", encode="base64"),
    "quoted-printable": dict(messageText="a=b\n", mto="ann@example.org", mfrom="zoe@example.org", encode="quoted-printable"),
    "7bit": dict(messageText="x\n", mto="ann@example.org", mfrom="zoe@example.org", encode="7bit"),
    "8bit": dict(messageText="x\n", mto="ann@example.org", mfrom="zoe@example.org", encode="8bit"),
    "msg_type": dict(messageText="<p>x</p>", mto="ann@example.org", mfrom="zoe@example.org", msg_type="text/html"),
    "msg_type and charset": dict(
        messageText="<p>\u20ac</p>", mto="ann@example.org", mfrom="zoe@example.org", msg_type="text/html", charset="utf-8"
    ),
    "crlf": dict(messageText=HEADED.replace("\n", "\r\n")),
    "long lines": dict(messageText=LONG, mto="ann@example.org", mfrom="zoe@example.org"),
    "empty body": dict(messageText="", mto="ann@example.org", mfrom="zoe@example.org"),
    "dots and hashes": dict(messageText="##To:x\n.\n..\nFrom me\n", mto="ann@example.org", mfrom="zoe@example.org"),
    "message object": dict(messageText=MIMEText("x"), mto="ann@example.org", mfrom="zoe@example.org"),
    "attachments": dict(messageText=multipart()),
    "attachments to others": dict(messageText=multipart(), mto="eve@example.org", mfrom="root@example.org", subject="Z"),
    "attachments with charset": dict(messageText=multipart(), charset="utf-8"),
    "modern message": dict(messageText=modern()),
    "immediate": dict(messageText="x", mto="ann@example.org", mfrom="zoe@example.org", immediate=True),
    "own message-id": dict(messageText="Message-Id: <1@example.org>\n" + HEADED),
}


def stock_mail(arguments):
    """What the stock MailHost hands to its mailer: ``immediate`` takes the shortest way there."""
    handed_over = []

    class Mailer:
        def send(self, mfrom, mto, message):
            handed_over.append((mfrom, mto, message))

    class Stock(MailHost):
        def _makeMailer(self):
            return Mailer()

    Stock("MailHost").send(**{**arguments, "immediate": True})
    (mfrom, mto, message), = handed_over
    recipients = [mto] if isinstance(mto, str) else mto
    return parseaddr(str(mfrom))[1], tuple(parseaddr(recipient)[1] for recipient in recipients), message


@pytest.mark.parametrize("arguments", CALLS.values(), ids=CALLS.keys())
@pytest.mark.parametrize("transactional", [True, False])
def test_envelope_and_bytes_are_those_of_the_stock_mailhost(tmp_path, arguments, transactional, monkeypatch):
    monkeypatch.setattr("Products.MailHost.MailHost.DateTime", FixedDateTime)
    host = make_host(tmp_path, transactional=transactional)
    host.send(**arguments)
    transaction.commit()
    assert read_mails(tmp_path / "spool") == [stock_mail(arguments)]


class FixedDateTime:
    """The one thing that may differ between two calls: the Date field."""

    def rfc822(self):
        return "Mon, 23 Nov 2026 12:00:00 +0000"

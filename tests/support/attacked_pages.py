"""Pages of a site under attack: stored in its database, so this module has to be importable there."""

import json
import sys

from AccessControl.class_init import InitializeClass
from AccessControl.SecurityInfo import ClassSecurityInfo
from Acquisition import aq_base
from email.mime.multipart import MIMEMultipart
from email.mime.text import MIMEText
from OFS.SimpleItem import SimpleItem


def _changeable(host):
    state = dict(aq_base(host).__getstate__())
    state.pop("_EtagSupport__etag", None)  # which Zope renews when anybody asks for it
    return sorted(state.items())


class AttackedPages(SimpleItem):
    """Public pages of trusted code, which pass on what a visitor types; ``state`` tells what must not change."""

    security = ClassSecurityInfo()
    id = "attacked"

    @security.public
    def contact(self, REQUEST, text="Hello", mto="ann@example.org", mfrom="zoe@example.org", subject="Hi"):
        """A contact form: everything may be typed, also the charset, encoding and type."""
        more = {name: REQUEST.form[name] for name in ("charset", "encode", "msg_type") if name in REQUEST.form}
        self.MailHost.send(text, mto, mfrom, subject, **more)
        return "sent"

    @security.public
    def composed(self, to="ann@example.org", sender="zoe@example.org", subject="Hi", text="Hello"):
        """The page writes the header fields into the text, as DTML does."""
        self.MailHost.send(f"To: {to}\nFrom: {sender}\nSubject: {subject}\n\n{text}\n")
        return "sent"

    @security.public
    def simple(self, mto="ann@example.org", mfrom="zoe@example.org", subject="Hi", body="Hello"):
        """The short way."""
        self.MailHost.simple_send(mto, mfrom, subject, body)
        return "sent"

    @security.public
    def attached(self, subject="Hi", name="report.txt"):
        """A message object whose fields and attachment's name are typed."""
        message = MIMEMultipart()
        message["Subject"] = subject
        part = MIMEText("data")
        part.add_header("Content-Disposition", "attachment", filename=name)
        message.attach(part)
        self.MailHost.send(message, "ann@example.org", "zoe@example.org")
        return "sent"

    @security.public
    def copied(self, visitor):
        """To the visitor and to two of the site's own."""
        self.MailHost.send("Hello", ["ann@example.org", visitor, "bob@example.org"], "zoe@example.org", "Hi")
        return "sent"

    @security.public
    def state(self):
        """All that could be changed."""
        app = self.getPhysicalRoot()
        module = sys.modules["Products.MaildropHost.MaildropHost"]
        told = {
            "objects": app.objectIds(),
            "states": [repr(_changeable(host)) for host in app.objectValues("Maildrop Host")],
            "choices": repr(sorted(module.CONFIG_PATHS.items(), key=repr)),
            "module": [module.DEFAULT_CONFIG_PATH, repr(module.MaildropHost.getLog), repr(module.Email.send)],
        }
        return json.dumps(told)


InitializeClass(AttackedPages)

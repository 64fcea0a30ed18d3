"""Pages of a site that sends mail: stored in the test site's database, so this module has to be importable there."""

import transaction
from AccessControl.class_init import InitializeClass
from AccessControl.SecurityInfo import ClassSecurityInfo
from OFS.SimpleItem import SimpleItem
from ZODB.POSException import ConflictError

_calls = {}


class MailPages(SimpleItem):
    """Each method is a page; ``subject`` tells its mails apart."""

    security = ClassSecurityInfo()
    id = "pages"
    counter = 0

    def _send(self, subject):
        self.MailHost.send("Hello", mto="ann@example.org", mfrom="zoe@example.org", subject=subject)

    @security.public
    def send(self, subject):
        """Send one mail and change an object."""
        self._send(subject)
        return "sent"

    @security.public
    def conflict(self, subject, times):
        """Send, change an object, and fail with a conflict the first ``times`` times this is called for the subject."""
        self._send(subject)
        self.counter += 1
        _calls[subject] = _calls.get(subject, 0) + 1
        if _calls[subject] <= int(times):
            raise ConflictError("on purpose")
        return f"{_calls[subject]} calls, counter {self.counter}"

    @security.public
    def fail(self, subject):
        """Send and fail."""
        self._send(subject)
        raise ValueError("on purpose")

    @security.public
    def fail_in_commit(self, subject):
        """Send, and store what cannot be stored."""
        self._send(subject)
        self.bad = lambda: None
        return "never seen"

    @security.public
    def savepoints(self, subject):
        """Of three mails, the second is rolled back."""
        self._send(f"{subject} one")
        self.counter += 1
        savepoint = transaction.savepoint()
        self._send(f"{subject} two")
        savepoint.rollback()
        self._send(f"{subject} three")
        return "sent"


InitializeClass(MailPages)

"""What other software can look up or register for."""

from Products.MailHost.interfaces import IMailHost
from zope.publisher.interfaces.browser import IDefaultBrowserLayer


class IMaildropHost(IMailHost):
    """A mail host that writes into a spool, from which a daemon sends."""


class IMaildropHostLayer(IDefaultBrowserLayer):
    """Marks requests to a Plone site in which the add-on is installed."""

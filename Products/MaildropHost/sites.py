"""The mail host of a site with components of its own, such as Plone's: an object, and the utility ``IMailHost``.

A site's code asks for either. The utility is registered once, for the object of that time; here it follows when somebody
replaces the object.
"""

from Acquisition import aq_base
from Products.MailHost.interfaces import IMailHost
from zope.component import adapter
from zope.component.interfaces import ISite
from zope.lifecycleevent.interfaces import IObjectAddedEvent, IObjectRemovedEvent

from Products.MaildropHost.interfaces import IMaildropHost

TOOL_ID = "MailHost"    # what a site's mail host is called


@adapter(IMailHost, IObjectAddedEvent)
def take_over(mail_host, event):
    """A MaildropHost that is the site's mail host now is its utility, too; so is any mail host where there is no utility."""
    if not mail_host.getId():    # GenericSetup makes tools without one
        mail_host._setId(event.newName)
    components = _components_of(event.newParent)
    if components is None or event.newName != TOOL_ID:
        return
    if IMaildropHost.providedBy(mail_host) or not _has_utility(components):
        components.registerUtility(aq_base(mail_host), IMailHost)


@adapter(IMaildropHost, IObjectRemovedEvent)
def leave(mail_host, event):
    """A MaildropHost that is in the site no longer is not its utility any more."""
    components = _components_of(event.oldParent)
    if components is not None:
        components.unregisterUtility(aq_base(mail_host), IMailHost)


def _components_of(folder):
    return folder.getSiteManager() if ISite.providedBy(folder) else None


def _has_utility(components):
    return any(each.provided is IMailHost and not each.name for each in components.registeredUtilities())

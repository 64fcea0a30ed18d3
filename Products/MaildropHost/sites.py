"""The mail host of a site with components of its own, such as Plone's: an object, and the utility ``IMailHost``.

A site's code asks for either. The utility is registered once, for the object of that time; here it follows when somebody
replaces the object.
"""

from Acquisition import aq_base
from Products.MailHost.interfaces import IMailHost
from zope.component import adapter
from zope.component.interfaces import ISite
from zope.interface.interfaces import ComponentLookupError
from zope.lifecycleevent.interfaces import IObjectMovedEvent

from Products.MaildropHost.interfaces import IMaildropHost

TOOL_ID = "MailHost"    # what a site's mail host is called


@adapter(IMailHost, IObjectMovedEvent)    # it was added, removed, moved or renamed
def follow(mail_host, event):
    """A MaildropHost is the utility of the site whose mail host it is, and of no other; so is any other where there is none."""
    if aq_base(event.object) is not aq_base(mail_host):
        return    # it is where it was, in a folder that was moved
    if event.newName and not mail_host.getId():    # GenericSetup makes tools without one
        mail_host._setId(event.newName)
    is_ours = IMaildropHost.providedBy(mail_host)
    components = _components_of(event.oldParent)
    if components is not None and is_ours:
        components.unregisterUtility(aq_base(mail_host), IMailHost)
    components = _components_of(event.newParent) if event.newName == TOOL_ID else None
    if components is not None and (is_ours or not _has_utility(components)):
        components.registerUtility(aq_base(mail_host), IMailHost)


def _components_of(folder):
    try:
        return folder.getSiteManager() if ISite.providedBy(folder) else None
    except ComponentLookupError:    # a site that is still being made
        return None


def _has_utility(components):
    # Asked for by name, a utility that was registered by its path and is gone would be an error
    registered = components.utilities.registered((), IMailHost)
    return registered is not None or any(map(_has_utility, components.__bases__))

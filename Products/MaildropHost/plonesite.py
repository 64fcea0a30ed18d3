"""Plone: what its install and uninstall profiles do that no XML file can say, and a word on its Mail control panel."""

import logging

from Acquisition import aq_base, aq_inner, aq_parent
from plone.base.interfaces import INonInstallable
from plone.registry.interfaces import IRegistry
from Products.CMFCore.utils import getToolByName
from Products.CMFPlone.controlpanel.browser import mail
from Products.MailHost.MailHost import MailHost
from zope.component import getUtility
from zope.interface import implementer

from Products.MaildropHost.interfaces import IMaildropHost
from Products.MaildropHost.MaildropHost import CONFIG_PATHS, MaildropHost
from Products.MaildropHost.sites import TOOL_ID

LOG = logging.getLogger("MaildropHost")


@implementer(INonInstallable)
class HiddenProfiles:
    """The profiles that are no add-on to choose."""

    def getNonInstallableProfiles(self):
        return ["Products.MaildropHost:uninstall"]


def install(setup_tool):
    """Put a MaildropHost in the place of the site's mail host, unless there is one.

    (The step "toolset" would do so too, but leave it without a config file of its own.)
    """
    site = aq_parent(aq_inner(setup_tool))
    if _replace_mail_host(site, MaildropHost):
        _choose_config(site[TOOL_ID])
    registry = getUtility(IRegistry)
    if not registry.get("plone.smtp_host", "unknown"):    # without one, Plone says that mail is not configured, and sends none
        registry["plone.smtp_host"] = site[TOOL_ID].smtp_host.partition(";")[0]


def uninstall(setup_tool):
    """Put a stock MailHost in the place of the site's mail host. What is in the spool stays there, and is sent."""
    _replace_mail_host(aq_parent(aq_inner(setup_tool)), MailHost)


def _replace_mail_host(site, kind):
    """Whether the site's mail host was of another class, and is a new one of this class now."""
    existing = getattr(aq_base(site), TOOL_ID, None)
    if type(aq_base(existing)) is kind:    # the step "toolset" takes no subclass for one, either
        return False
    if existing is not None:
        site._delObject(TOOL_ID)
    site._setObject(TOOL_ID, kind(TOOL_ID))
    return True


def _choose_config(mail_host):
    """Where zope.conf names one config file, that is the one that is meant."""
    keys = {path: key for key, path in CONFIG_PATHS.items() if key != "DEFAULT"}
    problem = "zope.conf names several, choose one on its Edit tab" if len(keys) > 1 else ""
    if len(keys) == 1:
        try:
            mail_host.setConfigPath(*keys.values())
        except (ValueError, RuntimeError) as error:
            problem = error
    if problem:
        LOG.warning("%s stays with the default config file: %s", "/".join(mail_host.getPhysicalPath()), problem)


class _MailControlPanelForm(mail.MailControlPanelForm):
    @property
    def description(self):
        if not IMaildropHost.providedBy(getToolByName(self.context, TOOL_ID, None)):
            return (
                "The add-on MaildropHost is installed, but the site's MailHost is another mail host. To have the MaildropHost back,"
                " import the add-on's profile again, in portal_setup."
            )
        return (
            "Mail of this site goes through the MaildropHost. Server, port, user and password are those of its configuration file;"
            " what is entered for them here has no effect. Server and \"From\" address must not be empty all the same, or Plone"
            " does not send some of its mail. The test mail is written into the spool: whether it has left, the object's tab"
            " Maildrop Log tells, at MailHost/manage_log."
        )


class MailControlPanel(mail.MailControlPanel):
    """Plone's own, which says that some of it has no effect."""

    form = _MailControlPanelForm

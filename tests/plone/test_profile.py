"""The add-on of a Plone site: installed, among other add-ons, replaced by hand, uninstalled; in a real Zope of this process."""

import html
import logging
import re
from contextlib import contextmanager
from pathlib import Path

import pytest
import transaction
import Zope2
from AccessControl.SecurityManagement import newSecurityManager, noSecurityManager
from Acquisition import aq_base
from five.localsitemanager import make_objectmanager_site
from plone import api
from plone.base.utils import get_installer
from plone.browserlayer.utils import registered_layers
from plone.registry.interfaces import IRegistry
from Products.CMFCore.exportimport.mailhost import exportMailHost, importMailHost
from Products.CMFPlone.controlpanel.browser.quickinstaller import ManageProductsView
from Products.GenericSetup.interfaces import EXTENSION
from Products.GenericSetup.registry import _profile_registry
from Products.GenericSetup.tests.common import DummyExportContext, DummyImportContext
from Products.MailHost.interfaces import IMailHost
from Products.MailHost.MailHost import MailHost
from support.config_file import write_config
from support.spooling import MODULE
from Testing.makerequest import makerequest
from zope.component import getUtility, queryUtility
from zope.component.hooks import setSite
from zope.interface import Interface, alsoProvides

from Products.MaildropHost.interfaces import IMaildropHost, IMaildropHostLayer

MaildropHost = MODULE.MaildropHost


class IOther(Interface):
    """What another add-on registers."""


ADD_ON = "Products.MaildropHost"


@pytest.fixture(scope="module")
def zope(copied_site):
    """Zope's application factory, with all of its configuration, ZCML included, in this process."""
    from Zope2.Startup.run import configure_wsgi

    level = logging.getLogger().level
    configure_wsgi(str(copied_site.directory / "etc" / "zope.conf"))
    logging.getLogger().setLevel(level)
    return Zope2.app


@pytest.fixture
def portal(zope):
    """The site, with the user admin; all that a test changes is forgotten."""
    app = makerequest(zope())
    newSecurityManager(None, app.acl_users.getUserById("admin").__of__(app.acl_users))
    site = app["Plone"]
    setSite(site)
    yield site
    transaction.abort()
    setSite(None)
    noSecurityManager()
    app._p_jar.close()


@pytest.fixture
def installed(portal):
    assert get_installer(portal).install_product(ADD_ON)
    return portal


@contextmanager
def add_on_with_toolset(directory, toolset):
    """The id of a profile with this ``toolset.xml``."""
    (directory / "toolset.xml").write_text(f'<?xml version="1.0"?><tool-setup>{toolset}</tool-setup>')
    _profile_registry.registerProfile("other", "Other", "", str(directory), product="support", profile_type=EXTENSION)
    yield "profile-support:other"
    _profile_registry.unregisterProfile("other", "support")


@pytest.fixture
def other_add_on(tmp_path):
    """The id of a profile whose ``toolset.xml`` does not speak of mail hosts."""
    with add_on_with_toolset(tmp_path, "") as profile:
        yield profile


def utility():
    return aq_base(getUtility(IMailHost))


def is_the_mail_host(portal, kind):
    """Whether whoever asks for the site's mail host, in either way, gets one of this class, and the same one."""
    tool = api.portal.get_tool("MailHost")
    return type(aq_base(tool)) is kind and tool.getId() == "MailHost" and utility() is aq_base(tool)


# -- install and uninstall --


def test_plone_begins_with_a_stock_mail_host(portal):
    assert is_the_mail_host(portal, MailHost)


def test_the_add_on_can_be_chosen_and_its_uninstall_profile_cannot(portal):
    available = ManageProductsView(portal, portal.REQUEST).get_available()
    assert [each["title"] for each in available if each["id"] == ADD_ON] == ["MaildropHost"]
    profiles = [each["id"] for each in get_installer(portal)._install_profile_info(ADD_ON)]
    assert sorted(profiles) == [f"{ADD_ON}:default", f"{ADD_ON}:uninstall"]


def test_the_add_on_puts_a_maildrophost_in_the_place_of_tool_and_utility(installed, daemon):
    assert is_the_mail_host(installed, MaildropHost)
    assert installed.MailHost.absolute_url_path() == "/Plone/MailHost"
    assert IMaildropHost.providedBy(getUtility(IMailHost))
    assert installed.MailHost.getConfigPath() == str(daemon.config)    # the only one in zope.conf


def test_the_one_choice_of_zope_conf_is_left_alone_if_it_cannot_be_used(portal, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(MODULE.CONFIG_PATHS, "config-path-1", str(tmp_path / "gone"))
    get_installer(portal).install_product(ADD_ON)
    assert portal.MailHost.getConfigPath() == MODULE.DEFAULT_CONFIG_PATH
    assert f"/Plone/MailHost stays with the default config file: Invalid config file path {tmp_path / 'gone'}" in caplog.text


def test_among_several_choices_none_is_taken_and_the_log_says_so(portal, tmp_path, monkeypatch, caplog):
    monkeypatch.setitem(MODULE.CONFIG_PATHS, "config-path-2", str(write_config(tmp_path / "other")))
    get_installer(portal).install_product(ADD_ON)
    assert portal.MailHost.getConfigPath() == MODULE.DEFAULT_CONFIG_PATH
    assert "/Plone/MailHost stays with the default config file: zope.conf names several" in caplog.text


def test_a_choice_that_stands_there_under_two_keys_is_one(portal, daemon, monkeypatch):
    monkeypatch.setitem(MODULE.CONFIG_PATHS, "config-path-2", str(daemon.config))
    get_installer(portal).install_product(ADD_ON)
    assert portal.MailHost.getConfigPath() == str(daemon.config)


def test_a_maildrophost_that_is_there_already_is_kept(portal):
    portal.manage_delObjects(["MailHost"])
    MODULE.manage_addMaildropHost(portal, "MailHost", "By hand")
    portal.MailHost._transactional = False
    get_installer(portal).install_product(ADD_ON)
    assert (portal.MailHost.title, portal.MailHost.isTransactional()) == ("By hand", False)
    assert is_the_mail_host(portal, MaildropHost)


def test_an_empty_smtp_server_which_would_keep_plone_from_sending_is_filled_in(portal):
    api.portal.set_registry_record("plone.smtp_host", "")
    get_installer(portal).install_product(ADD_ON)
    assert api.portal.get_registry_record("plone.smtp_host") == "127.0.0.1"    # the daemon's relay


def test_an_smtp_server_that_stands_there_is_kept(portal):
    api.portal.set_registry_record("plone.smtp_host", "relay.example.org")
    get_installer(portal).install_product(ADD_ON)
    assert api.portal.get_registry_record("plone.smtp_host") == "relay.example.org"


def test_after_uninstalling_the_stock_mail_host_is_back_and_stays(installed, other_add_on):
    assert get_installer(installed).uninstall_product(ADD_ON)
    assert is_the_mail_host(installed, MailHost)
    installed.portal_setup.runAllImportStepsFromProfile(other_add_on)
    assert is_the_mail_host(installed, MailHost)


def test_what_another_add_on_has_left_registered_keeps_it_from_nothing(portal):
    portal._setObject("old", MaildropHost("old"))
    portal.getSiteManager().registerUtility(portal.old, IOther, "left")    # by its path
    portal._delObject("old")
    assert get_installer(portal).install_product(ADD_ON) and is_the_mail_host(portal, MaildropHost)
    assert get_installer(portal).uninstall_product(ADD_ON) and is_the_mail_host(portal, MailHost)


def test_mails_that_wait_stay_in_the_spool_when_the_add_on_goes(installed):
    installed.MailHost._transactional = False
    spool = Path(installed.MailHost.spool)
    config = write_config(spool.parent / "undelivered", MAILDROP_HOME=spool.parent / "undelivered-home")
    installed.MailHost.config_path = str(config)
    installed.MailHost.send("Text", mto="ann@example.org", mfrom="zoe@example.org", subject="stays")
    spool = Path(installed.MailHost.spool)
    before = sorted(path.name for path in spool.iterdir() if path.is_file())
    get_installer(installed).uninstall_product(ADD_ON)
    assert before and sorted(path.name for path in spool.iterdir() if path.is_file()) == before


def test_the_mail_control_panel_speaks_of_the_maildrophost_only_while_the_add_on_is_installed(installed):
    assert IMaildropHostLayer in registered_layers()
    get_installer(installed).uninstall_product(ADD_ON)
    assert IMaildropHostLayer not in registered_layers()


# -- other add-ons, and profiles of plone's own --


def test_another_add_ons_toolset_leaves_the_maildrophost_where_it_is(installed, other_add_on, daemon):
    before = aq_base(installed.MailHost)
    installed.portal_setup.runAllImportStepsFromProfile(other_add_on)
    assert aq_base(installed.MailHost) is before
    assert is_the_mail_host(installed, MaildropHost)
    assert installed.MailHost.getConfigPath() == str(daemon.config)


def test_without_the_add_on_a_maildrophost_would_not_survive_that(portal, other_add_on):
    portal.manage_delObjects(["MailHost"])
    MODULE.manage_addMaildropHost(portal, "MailHost")
    portal.portal_setup.runAllImportStepsFromProfile(other_add_on)
    assert type(aq_base(portal.MailHost)) is MailHost    # what GenericSetup does, and why there is a profile
    assert utility() is aq_base(portal.MailHost)


def test_plones_own_mailhost_and_component_steps_change_nothing(installed, daemon):
    before = dict(aq_base(installed.MailHost).__dict__)
    for step in ("mailhost", "componentregistry"):
        installed.portal_setup.runImportStepFromProfile("profile-Products.CMFPlone:plone", step, run_dependencies=False)
    assert aq_base(installed.MailHost).__dict__ == before
    assert installed.MailHost.smtp_port == daemon_port(daemon)
    assert is_the_mail_host(installed, MaildropHost)


def daemon_port(daemon):
    return int(re.search(r"(?m)^SMTP_PORT=(\d+)", daemon.config.read_text())[1])


def test_after_plones_own_toolset_the_add_ons_profile_is_imported_again(installed):
    installed.portal_setup.runImportStepFromProfile("profile-Products.CMFPlone:plone", "toolset", run_dependencies=False)
    assert is_the_mail_host(installed, MailHost)
    alsoProvides(installed.REQUEST, IMaildropHostLayer)    # as when the site is traversed
    panel = api.content.get_view("mail-controlpanel", installed, installed.REQUEST)
    assert "import the add-on's profile again" in html.unescape(panel())
    installed.portal_setup.runAllImportStepsFromProfile(f"profile-{ADD_ON}:default")
    assert is_the_mail_host(installed, MaildropHost)


def test_a_policy_package_may_require_the_maildrophost_by_its_own_toolset(portal, tmp_path):
    toolset = '<required tool_id="MailHost" class="Products.MaildropHost.MaildropHost.MaildropHost"/>'
    with add_on_with_toolset(tmp_path, toolset) as profile:
        portal.portal_setup.runAllImportStepsFromProfile(profile)
    assert is_the_mail_host(portal, MaildropHost)


# -- by hand --


def test_the_utility_follows_when_the_object_is_replaced_in_the_zmi(portal):
    portal.manage_delObjects(["MailHost"])
    assert utility().meta_type == "Mail Host"    # Zope's own stays registered, though it is gone
    MODULE.manage_addMaildropHost(portal, "MailHost")
    assert is_the_mail_host(portal, MaildropHost)


def test_the_utility_follows_back_to_a_stock_mail_host(installed):
    installed.manage_delObjects(["MailHost"])
    assert queryUtility(IMailHost) is None
    installed.manage_addProduct["MailHost"].manage_addMailHost("MailHost")
    assert is_the_mail_host(installed, MailHost)


def test_the_utility_follows_a_maildrophost_that_gets_the_name(portal):
    MODULE.manage_addMaildropHost(portal, "maildrop")
    transaction.savepoint()
    portal.manage_delObjects(["MailHost"])
    portal.manage_renameObject("maildrop", "MailHost")
    assert is_the_mail_host(portal, MaildropHost)


def test_the_utility_follows_a_maildrophost_that_is_pasted(portal):
    portal.aq_parent._setObject("MailHost", MaildropHost("MailHost"))
    transaction.savepoint()
    portal.manage_delObjects(["MailHost"])
    portal.manage_pasteObjects(portal.aq_parent.manage_cutObjects(["MailHost"]))
    assert is_the_mail_host(portal, MaildropHost)


def test_the_utility_follows_when_the_maildrophost_makes_room_for_another_mail_host(installed):
    transaction.savepoint()
    installed.manage_renameObject("MailHost", "old")
    installed.manage_addProduct["MailHost"].manage_addMailHost("MailHost")
    assert is_the_mail_host(installed, MailHost)


def test_a_maildrophost_of_another_name_or_in_a_folder_is_not_the_sites(portal):
    MODULE.manage_addMaildropHost(portal, "newsletter")
    folder = api.content.create(portal, "Folder", "folder")
    folder._setObject("MailHost", MaildropHost("MailHost"))
    assert is_the_mail_host(portal, MailHost)
    folder._delObject("MailHost")
    portal._delObject("newsletter")
    assert is_the_mail_host(portal, MailHost)


def test_what_happens_to_its_folder_says_nothing_of_a_mail_host(portal):
    folder = api.content.create(portal, "Folder", "folder")
    folder._setObject("inside", MaildropHost("inside"))
    folder.inside.id = ""
    transaction.savepoint()
    portal.manage_delObjects(["MailHost"])
    portal.manage_renameObject("folder", "MailHost")
    assert portal["MailHost"]["inside"].id == ""
    assert utility().meta_type == "Mail Host"


def test_a_site_below_with_a_stock_mail_host_still_mails_by_the_utility_above(installed):
    folder = api.content.create(installed, "Folder", "folder")
    make_objectmanager_site(folder)
    folder._setObject("MailHost", MailHost("MailHost"))
    setSite(folder)
    assert utility() is aq_base(installed.MailHost)
    folder._delObject("MailHost")
    folder._setObject("MailHost", MaildropHost("MailHost"))
    assert utility() is aq_base(folder.MailHost)
    folder._delObject("MailHost")
    assert utility() is aq_base(installed.MailHost)


def test_a_site_with_a_maildrophost_can_be_deleted(installed):
    app = installed.aq_parent
    app._delObject("Plone")
    assert "Plone" not in app.objectIds()


# -- what a mail host is asked and told --


def test_what_plone_and_genericsetup_set_changes_nothing_and_no_login_is_kept(installed):
    mail_host = installed.MailHost
    shown = {"smtp_host": "other.example.org", "smtp_port": 2525, "smtp_uid": "jo", "smtp_pwd": "guess-me", "smtp_queue": False}
    before = {name: getattr(mail_host, name) for name in shown}
    unused = {"smtp_queue_directory": "/elsewhere", "force_tls": True, "implicit_tls": True}
    for name, value in (shown | unused).items():
        setattr(mail_host, name, value)
    assert {name: getattr(mail_host, name) for name in shown} == before
    assert not set(shown) & set(aq_base(mail_host).__dict__)
    assert mail_host.smtp_queue is True and mail_host.smtp_pwd == mail_host.smtp_uid == ""


@pytest.fixture
def exported(installed, daemon):
    login = {"MAILDROP_LOGIN": "jo", "MAILDROP_PASSWORD": "guess-me"}
    with_password = write_config(daemon.directory / "secret", daemon.config.read_text(), **login)
    MODULE.CONFIG_PATHS["config-path-secret"] = str(with_password)
    installed.MailHost.manage_makeChanges("A title & more", False, "config-path-secret")
    context = DummyExportContext(installed, installed.portal_setup)
    exportMailHost(context)
    yield {name: text for name, text, _ in context._wrote}["mailhost.xml"].decode()
    del MODULE.CONFIG_PATHS["config-path-secret"]


def import_mail_host(portal, text):
    context = DummyImportContext(portal, purge=False, tool=portal.portal_setup)
    context._files["mailhost.xml"] = text
    importMailHost(context)


def test_an_export_has_title_mode_and_config_key_and_no_secret(exported):
    attributes = dict(re.findall(r'(\w+)="([^"]*)"', exported.partition("<object")[2]))
    assert attributes == {
        "name": "MailHost", "meta_type": "Maildrop Host", "title": "A title &amp; more", "transactional": "False",
        "path_key": "config-path-secret",
    }


def test_an_export_does_not_say_default_where_zope_conf_has_a_key_for_that_file(installed, monkeypatch):
    monkeypatch.setitem(MODULE.CONFIG_PATHS, "config-path-2", MODULE.DEFAULT_CONFIG_PATH)
    installed.MailHost.setConfigPath("DEFAULT")
    context = DummyExportContext(installed, installed.portal_setup)
    exportMailHost(context)
    assert b'path_key="config-path-2"' in context._wrote[0][1]


def test_an_import_sets_what_was_exported(installed, exported, daemon):
    installed.MailHost.manage_makeChanges("Another", True, "DEFAULT")
    import_mail_host(installed, exported)
    assert (installed.MailHost.title, installed.MailHost.isTransactional()) == ("A title & more", False)
    assert installed.MailHost.getConfigPath() == str(daemon.directory / "secret")


def test_an_import_without_an_attribute_leaves_that_as_it_is(installed, daemon):
    installed.MailHost._transactional = False
    import_mail_host(installed, '<?xml version="1.0"?><object name="MailHost" meta_type="Maildrop Host" title="New"/>')
    assert (installed.MailHost.title, installed.MailHost.isTransactional()) == ("New", False)
    assert installed.MailHost.getConfigPath() == str(daemon.config)


def test_an_import_of_an_unknown_config_key_says_so_and_changes_nothing(installed, daemon):
    text = '<?xml version="1.0"?><object name="MailHost" meta_type="Maildrop Host" title="New" path_key="config-path-9"/>'
    with pytest.raises(ValueError, match=r"mailhost\.xml: path_key='config-path-9' of MailHost: Invalid path key 'config-path-9'"):
        import_mail_host(installed, text)
    assert installed.MailHost.title == "Maildrop Host"
    assert installed.MailHost.getConfigPath() == str(daemon.config)


def test_an_export_of_a_file_that_is_no_choice_any_more_leaves_it_out_and_says_so(installed):
    installed.MailHost.config_path = "/gone/config"
    context = DummyExportContext(installed, installed.portal_setup)
    exportMailHost(context)
    assert b"path_key" not in context._wrote[0][1] and b"/gone/config" not in context._wrote[0][1]
    assert any("is no choice any more" in message for _, _, message in context._notes)


# -- what the edit tab says of plone --


def findings(portal):
    return [(each["level"], each["text"]) for each in portal.MailHost.getSetupFindings() if each["topic"] == "Plone"]


def test_the_edit_tab_says_what_of_plones_mail_panel_has_an_effect(installed):
    (level, text), = findings(installed)
    assert level == "ok" and text.startswith("Server, port, user and password of Plone's Mail control panel have no effect here")


@pytest.mark.parametrize(
    "key, said", [("plone.smtp_host", "SMTP server"), ("plone.email_from_address", "Site 'From' address")]
)
def test_where_plone_says_that_mail_is_not_configured_the_edit_tab_says_why(installed, key, said):
    getUtility(IRegistry)[key] = None
    overview = api.content.get_view("overview-controlpanel", installed, installed.REQUEST)
    assert overview.mailhost_warning()
    (level, text), = findings(installed)
    assert level == "warning" and said in text


def test_the_edit_tab_says_when_plones_utility_is_another_object(installed):
    installed._setObject("other", MailHost("other"))
    installed.getSiteManager().registerUtility(aq_base(installed.other), IMailHost)
    level, text = findings(installed)[0]
    assert level == "warning" and text.startswith("Some of Plone's mail goes another way: import the profile")
    installed.getSiteManager().registerUtility(installed.other, IMailHost)    # by its path
    installed._delObject("other")
    assert findings(installed)[0] == (level, text)


def test_the_edit_tab_of_another_maildrophost_says_nothing_of_plone(installed):
    MODULE.manage_addMaildropHost(installed, "newsletter")
    assert not [each for each in installed.newsletter.getSetupFindings() if each["topic"] == "Plone"]

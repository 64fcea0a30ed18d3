"""The mails that Plone itself sends, by its own pages: from a running site through spool and daemon to a relay."""

import re
from base64 import b64encode
from email import message_from_bytes, policy

import pytest
from support.daemon import PATIENCE_S, wait_until
from support.plone_site import FROM
from zope.testbrowser.browser import Browser

CONTENT = '''
from plone import api
from plone.app.contentrules.actions.mail import MailAction
from plone.app.contentrules.rule import Rule
from plone.base.utils import get_installer
from plone.contentrules.engine.assignments import RuleAssignment
from plone.contentrules.engine.interfaces import IRuleAssignmentManager, IRuleStorage
from zope.component import getUtility
from zope.lifecycleevent.interfaces import IObjectAddedEvent

assert get_installer(portal).install_product("Products.MaildropHost")
api.user.create(username="ann", email="ann@example.org", password="correct horse battery", properties={"fullname": "Ann Müller"})
api.portal.set_registry_record("plone.enable_self_reg", True)
portal.manage_permission("Add portal member", ["Anonymous", "Manager"], 1)

rule = Rule()
rule.title, rule.event, rule.enabled = "Tell of new pages", IObjectAddedEvent, True
action = MailAction()
action.subject, action.recipients = "New: ${title}", "bob@example.org, eve@example.org"
action.message = "A page was added: ${absolute_url}"
rule.actions.append(action)
getUtility(IRuleStorage)["tell"] = rule
assignment = RuleAssignment("tell")
assignment.bubbles = assignment.enabled = True
IRuleAssignmentManager(portal)["tell"] = assignment
transaction.commit()
'''


@pytest.fixture(scope="module")
def site(copied_site):
    copied_site.run_in_site(CONTENT)
    copied_site.start()
    yield copied_site
    copied_site.stop()


@pytest.fixture
def browse(site):
    """Opens a page of the site in a browser; ``login``: as the Manager."""

    def browse(page, login=False):
        browser = Browser()
        if login:
            token = b64encode(f"admin:{site.password}".encode()).decode()
            browser.addHeader("Authorization", f"Basic {token}")
        browser.open(f"{site.portal_url}/{page}")
        return browser

    return browse


@pytest.fixture
def arrived(relay, daemon):
    """Waits until so many mails have arrived since the test began; returns (envelope, message) for each."""
    before = len(relay.accepted)

    def arrived(count=1):
        wait_until(lambda: len(relay.accepted) >= before + count, PATIENCE_S, daemon.read_log)
        daemon.wait_until_empty()
        mails = relay.accepted[before:]
        assert len(mails) == count
        return [(mail, message_from_bytes(mail.content, policy=policy.default)) for mail in mails]

    return arrived


def test_the_reset_of_a_password(site, browse, arrived):
    browser = browse("login-help")
    browser.getControl(name="form.widgets.reset_password").value = "ann"
    browser.getControl(name="form.buttons.reset").click()
    assert "An email has been sent" in browser.contents
    (envelope, message), = arrived()
    assert (envelope.sender, envelope.recipients) == (FROM, ("ann@example.org",))
    link = re.search(r"http\S+/passwordreset/\S+", message.get_content())[0]
    browser = browse(link.removeprefix(f"{site.portal_url}/"))
    assert "Set your password" in browser.contents


def test_the_reminder_of_a_login_name(browse, arrived):
    browser = browse("login-help")
    browser.getControl(name="form.widgets.recover_username").value = "ann@example.org"
    browser.getControl(name="form.buttons.get_username").click()
    (envelope, message), = arrived()
    assert envelope.recipients == ("ann@example.org",)
    assert "Dear Ann Müller" in message.get_content() and re.search(r"is: ann\b", message.get_content())


def test_the_contact_form(browse, arrived):
    browser = browse("contact-info")
    browser.getControl(name="form.widgets.sender_fullname").value = "Jürgen"
    browser.getControl(name="form.widgets.sender_from_address").value = "jo@example.org"
    browser.getControl(name="form.widgets.subject").value = "Grüße"
    browser.getControl(name="form.widgets.message").value = "Text\n.\nFrom here"
    browser.getControl(name="form.buttons.send").click()
    assert "A mail has now been sent to the site administrator" in browser.contents
    (envelope, message), = arrived()
    assert (envelope.sender, envelope.recipients) == (FROM, (FROM,))
    assert (message["Subject"], message["Reply-To"]) == ("Grüße", "jo@example.org")
    assert "Text\r\n.\r\nFrom here" in message.get_content() and "Jürgen" in message.get_content()


def test_a_registration(browse, arrived):
    browser = browse("@@register")
    browser.getControl(name="form.widgets.username").value = "newcomer"
    browser.getControl(name="form.widgets.email").value = "newcomer@example.org"
    browser.getControl(name="form.buttons.register").click()
    (envelope, message), = arrived()
    assert envelope.recipients == ("newcomer@example.org",)
    assert "passwordreset" in message.get_content()


def test_a_content_rule(browse, arrived):
    browser = browse("++add++Document", login=True)
    browser.getControl(name="form.widgets.IDublinCore.title").value = "Neues für alle"
    browser.getControl(name="form.buttons.save").click()
    mails = arrived(2)
    assert sorted(envelope.recipients for envelope, _ in mails) == [("bob@example.org",), ("eve@example.org",)]
    assert {message["Subject"] for _, message in mails} == {"New: Neues für alle"}


def test_plone_api_in_and_after_a_commit(site, arrived):
    code = '''
from plone import api
for immediate in (False, True):
    api.portal.send_email(recipient="ann@example.org", subject=f"immediate={immediate}", body="Text ä", immediate=immediate)
transaction.commit()
api.portal.send_email(recipient="ann@example.org", subject="aborted", body="Text", immediate=True)
transaction.abort()
'''
    with pytest.raises(RuntimeError, match="Data.fs.lock"):    # the site runs: it has its database for itself
        site.run_in_site(code)
    site.stop()
    try:
        site.run_in_site(code)
    finally:
        site.start()
    assert {message["Subject"] for _, message in arrived(2)} == {"immediate=False", "immediate=True"}


def test_the_test_mail_of_the_mail_control_panel(browse, arrived):
    browser = browse("@@mail-controlpanel", login=True)
    assert "what is entered for them here has no effect" in browser.contents
    browser.getControl(name="form.buttons.test").click()
    assert "Success! Check your mailbox for the test message." in browser.contents
    (envelope, message), = arrived()
    assert (envelope.recipients, message["Subject"]) == ((FROM,), "Test e-mail from Plone")


def test_what_the_mail_control_panel_says_of_a_server_has_no_effect(browse, arrived):
    browser = browse("@@mail-controlpanel", login=True)
    browser.getControl(name="form.widgets.smtp_host").value = "relay.invalid"
    browser.getControl(name="form.widgets.smtp_port").value = "9"
    browser.getControl(name="form.buttons.test").click()
    assert "Success! Check your mailbox for the test message." in browser.contents
    arrived()


def test_the_edit_tabs_test_mail_in_a_site(browse, arrived):
    browser = browse("MailHost/manage_main", login=True)
    browser.getControl(name="address").value = "ann@example.org"
    browser.getControl("Send a test mail").click()
    assert "The test mail is in the spool" in browser.contents
    (envelope, message), = arrived()
    assert (envelope.recipients, message["Subject"]) == (("ann@example.org",), "Test mail of /Plone/MailHost")


@pytest.fixture
def broken_spool(daemon):
    """Zope's, for a while; the daemon goes on as it was."""
    daemon.configure(MAILDROP_HOME=daemon.config / "below a file")
    yield
    daemon.configure(MAILDROP_HOME=daemon.home)


def test_where_no_mail_can_be_written_plones_pages_say_so_and_go_on(browse, broken_spool):
    browser = browse("contact-info")
    for field in ("sender_fullname", "subject", "message"):
        browser.getControl(name=f"form.widgets.{field}").value = "Text"
    browser.getControl(name="form.widgets.sender_from_address").value = "jo@example.org"
    browser.getControl(name="form.buttons.send").click()
    assert "Unable to send mail: The mail cannot be written to" in browser.contents
    browser = browse("@@mail-controlpanel", login=True)
    browser.getControl(name="form.buttons.test").click()
    assert "Unable to send test e-mail The mail cannot be written to" in browser.contents
    browser = browse("++add++Document", login=True)
    browser.getControl(name="form.widgets.IDublinCore.title").value = "Saved all the same"
    browser.getControl(name="form.buttons.save").click()    # its content rule cannot send
    assert "Saved all the same" in browse("saved-all-the-same", login=True).contents


def test_looking_at_its_pages_writes_nothing(site, browse):
    data = site.directory / "var" / "Data.fs"
    for page in ("manage_main", "manage_queue", "manage_log", "manage_access"):
        before = data.stat().st_size
        browser = browse(f"MailHost/{page}", login=True)
        assert browser.url.endswith(f"MailHost/{page}")    # plone.protect sends who would write on GET elsewhere
        assert data.stat().st_size == before, page


def test_its_forms_get_plones_token_and_are_refused_without(site, browse):
    browser = browse("MailHost/manage_main", login=True)
    assert 'name="_authenticator"' in browser.contents
    browser.getControl(name="title").value = "A new title"
    browser.getControl("Save Changes").click()
    assert "updated" in browser.contents
    status, text = site.post("/Plone/MailHost/manage_makeChanges", {"title": "By another site"})
    assert status in (200, 302, 403) and "By another site" not in browse("MailHost/manage_main", login=True).contents

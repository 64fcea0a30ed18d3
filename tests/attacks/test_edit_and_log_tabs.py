"""Attacks on the test mail, the setup check and the log tab, each tried on a real Zope over WSGI."""

import json
import os
import re
import urllib.parse
import xmlrpc.client
from html.parser import HTMLParser

import pytest
from support.attacked_site import Site
from support.config_file import write_config
from support.spooling import files_in, read_mails

from maildrop import figures, settings
from maildrop.figures import Figures, Serving, Trouble
from maildrop.pidfile import PidFile

SECRETS = ["Geheim", "confidential-log-entry"]
MARKUP = "\"'><xss onx=1></textarea></title><script>xss()</script>"
LOG_TEXT = f"OK\t ann@example.org\tconfidential-log-entry {MARKUP}\nFATAL: {MARKUP}\t x\ty\n"

SCRIPTS = {
    "reads the view of the log": "return context.MailHost.getLogView({})",
    "reads the log's page by restrictedTraverse": "return context.restrictedTraverse('MailHost/getLogView')({})",
    "downloads the log": "return context.MailHost.manage_downloadLog(context.REQUEST)",
    "reads the setup": "return context.MailHost.getSetupFindings()",
    "sends a test mail": "return context.MailHost.manage_sendTestMail('eve@evil.example')",
    "sends a test mail with a request": "return context.MailHost.manage_sendTestMail('a@b.example', '', context.REQUEST)",
    "makes a test mail": "return context.MailHost._make_test_mail()",
    "reads the name of the last mail": "return context.MailHost._v_last_name",
    "sends it through sendTemplate": """return context.MailHost.sendTemplate(
        context.MailHost, 'manage_downloadLog', mto='eve@evil.example', mfrom='eve@evil.example')""",
}
CONTENT = """
import json, sys
import transaction
from Products.MaildropHost import manage_addMaildropHost
from Products.PythonScripts.PythonScript import manage_addPythonScript

app._addRole("Mailer")
app.acl_users.userFolderAddUser("mailer", sys.argv[-2], ["Mailer"], [])
app.manage_permission("Use mailhost services", ["Manager", "Mailer"], acquire=0)
manage_addMaildropHost(app, "MailHost")
app.MailHost.setConfigPath("config-path-1")
for number, body in enumerate(json.loads(sys.argv[-1])):
    manage_addPythonScript(app, f"attack{number}")
    app[f"attack{number}"].ZPythonScript_edit("", body)
transaction.commit()
"""
USERS = [pytest.param(None, id="by an anonymous visitor"), pytest.param("mailer", id="by one who may send")]


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    directory = tmp_path_factory.mktemp("attacked-tabs")
    config = write_config(
        directory / "config", MAILDROP_HOME=directory / "home", MAILDROP_LOGIN="zope", MAILDROP_PASSWORD="Geheim"
    )
    site = Site(directory / "site")
    site.create({"config-path-1": config})
    site.run_script(CONTENT, "mailer-password", json.dumps(list(SCRIPTS.values())))
    site.settings = settings.load(config)
    site.spool, site.log = site.settings.spools[0], site.settings.log_file
    site.log.parent.mkdir(parents=True)
    site.start()
    yield site
    site.stop()


@pytest.fixture(autouse=True)
def empty_spool(site):
    site.log.write_text(LOG_TEXT)
    for name in files_in(site.spool):
        (site.spool / name).unlink()


class _Tags(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.strange, self._in_script = [], False
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self._in_script = tag == "script"
        if tag == "xss" or any(name.startswith("onx") for name, _ in attributes):
            self.strange.append(tag)

    def handle_data(self, data):
        if self._in_script and "xss" in data:
            self.strange.append(data)


def assert_quoted(text):
    assert _Tags(text).strange == []


# -- who may --


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("number", range(len(SCRIPTS)), ids=list(SCRIPTS))
def test_a_script_without_the_permission_gets_nothing(site, number, user):
    status, _, text = site.ask("GET", f"/attack{number}", user=user)
    assert status in (401, 403, 404, 500), text
    assert [secret for secret in SECRETS if secret in text] == []
    assert files_in(site.spool) == []


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize("page", ["manage_log", "manage_downloadLog", "manage_sendTestMail", "manage_main"])
def test_neither_page_nor_download_nor_test_mail_without_the_permission(site, page, method, user):
    status, _, text = site.ask(method, f"/MailHost/{page}?address=eve@evil.example", user=user)
    assert status == 401
    assert [secret for secret in SECRETS if secret in text] == []
    assert files_in(site.spool) == []


@pytest.mark.parametrize("user", [None, "mailer", "admin"])
@pytest.mark.parametrize("name", ["getLogView", "getSetupFindings", "_make_test_mail", "_v_last_name"])
def test_what_only_pages_use_has_no_address(site, name, user):
    for method in ("GET", "POST"):
        status, _, text = site.ask(method, f"/MailHost/{name}?form=x", user=user)
        assert status in (401, 403, 404), text


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("call", [("manage_sendTestMail", "eve@evil.example"), ("getSetupFindings",), ("getLogView", {})])
def test_xml_rpc_neither_tells_nor_sends(site, call, user):
    body = xmlrpc.client.dumps(call[1:], call[0])
    _, _, text = site.ask("POST", "/MailHost", body, user, Content_Type="text/xml")
    assert "<methodResponse>" not in text or "<fault>" in text
    assert files_in(site.spool) == []


@pytest.mark.parametrize("method", ["GET", "HEAD", "PUT", "DELETE", "PROPFIND"])
def test_a_link_that_a_manager_follows_sends_no_test_mail(site, method):
    status, _, _ = site.ask(method, "/MailHost/manage_sendTestMail?address=eve@evil.example", user="admin")
    assert status >= 400 or method == "HEAD"
    assert files_in(site.spool) == []


# -- what is typed --


BREAKS = ["\n", "\r", "\r\n", "\0", "\x0b", "\x0c", "\x1c", "\x85", "\u2028", "\r\n ", "\n\n", "%0a", "\\n"]
SMUGGLED = ["Bcc: eve@evil.example", "eve@evil.example", "RCPT TO:<eve@evil.example>", "##To:eve@evil.example", ",eve@evil.example"]


@pytest.mark.parametrize("line_break", BREAKS, ids=ascii)
@pytest.mark.parametrize("field", ["address", "sender"])
def test_nothing_behind_a_line_break_in_an_address_becomes_a_recipient_or_a_header_field(site, field, line_break):
    for smuggled in SMUGGLED:
        fields = {"address": "ann@example.org", field: f"ann@example.org{line_break}{smuggled}"}
        status, headers, text = site.type_into("MailHost/manage_sendTestMail", "admin", **fields)
        assert status == 200 and "Nothing was sent." in text
        assert "evil" not in str(headers)
        assert files_in(site.spool) == []


@pytest.mark.parametrize("field", ["address", "sender"])
@pytest.mark.parametrize(
    "typed",
    [{"": MARKUP}, {"": f"{MARKUP}@example.org"}, {"": f'"{MARKUP}" <>'}, {":list": ["a@b.example", MARKUP]}, {":tokens": MARKUP},
     {".x:record": MARKUP}, {":tuple": MARKUP}, {"": "\ud800@example.org"}, {"": "x" * 100_000}, {":bytes": "a@b.example"}],
    ids=lambda typed: ascii(typed)[:40],
)
def test_what_is_no_address_is_told_on_the_page_and_quoted_there(site, field, typed):
    fields = {"address": "ann@example.org"} if field == "sender" else {}
    fields.update({f"{field}{suffix}": value for suffix, value in typed.items()})
    status, _, text = site.type_into("MailHost/manage_sendTestMail", "admin", **fields)
    assert status == 200 and "Nothing was sent." in text
    assert_quoted(text)
    assert files_in(site.spool) == []


def test_the_mail_goes_to_the_address_alone_whatever_it_looks_like(site):
    typed = '"Bcc:eve@evil.example,<eve@evil.example>"@example.org'
    status, _, text = site.type_into("MailHost/manage_sendTestMail", "admin", address=typed, sender="zoe@example.org")
    (name,) = files_in(site.spool)
    assert status == 200 and name in text
    ((sender, recipients, message),) = read_mails(site.spool)
    assert (sender, recipients) == ("zoe@example.org", (typed,))
    assert not re.search(rb"(?im)^bcc", message)


@pytest.mark.parametrize("field", ["about", "lines", "order", "follow", "no_such"])
@pytest.mark.parametrize("suffix", ["", ":list", ":record", ".x:record", ":lines"])
def test_whatever_is_asked_of_the_log_is_quoted_on_the_page_and_in_no_header(site, field, suffix):
    for value in (MARKUP, f"x\r\nSet-Cookie: eve=1\r\n\r\n{MARKUP}", "\0", "x" * 5000):
        query = urllib.parse.urlencode({f"{field}{suffix}": value})
        status, headers, text = site.ask("GET", f"/MailHost/manage_log?{query}", user="admin")
        assert status == 200
        assert "eve=1" not in str(headers) and "<main" in text
        assert headers["Content-Type"].startswith("text/html")
        assert_quoted(text)


# -- what stands in the log, and beside it --


def test_what_the_log_says_is_quoted(site):
    status, _, text = site.ask("GET", "/MailHost/manage_log", user="admin")
    assert status == 200 and "confidential-log-entry" in text
    assert_quoted(text)


def test_no_browser_takes_the_download_for_a_page(site):
    site.log.write_bytes(b"<html><script>xss()</script>\xff\r\n" + LOG_TEXT.encode())
    for query in ("", "?Content-Type=text/html&about=x", "?filename=x%0d%0aeve:1"):
        status, headers, text = site.ask("GET", f"/MailHost/manage_downloadLog{query}", user="admin")
        assert status == 200 and text.startswith("<html><script>")
        assert headers["Content-Type"].replace(" ", "") == "text/plain;charset=utf-8"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Content-Disposition"] == 'attachment; filename="maildrop.log"'
        assert headers["eve"] is None


def test_a_link_that_another_account_has_planted_is_neither_shown_nor_downloaded(site):
    secret = site.directory / "secret"
    secret.write_text("Geheim\n")
    mode = site.log.parent.stat().st_mode
    site.log.unlink()
    site.log.symlink_to(secret)
    site.log.parent.chmod(0o1777)
    try:
        for page in ("manage_log", "manage_downloadLog"):
            _, _, text = site.ask("GET", f"/MailHost/{page}", user="admin")
            assert "Geheim" not in text and "cannot be read" in text
    finally:
        site.log.unlink()
        site.log.parent.chmod(mode)


@pytest.mark.parametrize("make", [lambda path: None, os.mkdir, os.mkfifo], ids=["nothing", "a directory", "a FIFO"])
def test_a_download_of_what_is_no_log_is_a_page_that_says_why(site, make):
    site.log.unlink()
    make(site.log)
    try:
        status, headers, text = site.ask("GET", "/MailHost/manage_downloadLog", user="admin")
        assert (status, headers["Content-Type"][:9]) == (404, "text/html")
        assert re.search("There is no log yet|cannot be read", text)
    finally:
        if site.log.is_dir():
            site.log.rmdir()
        site.log.unlink(missing_ok=True)


def test_what_the_figures_say_is_quoted_and_tells_no_password(site):
    known = Figures(outage=Trouble(1.0, MARKUP))
    known.serving = Serving(os.getpid(), f"/{MARKUP}\ud800\r\n", MARKUP, (MARKUP,))
    figures.path_of(site.settings).write_bytes(known.dumps())
    pid_file = PidFile(site.settings.pid_file)
    pid_file.write()
    try:
        for ask in (site.ask("GET", "/MailHost/manage_main", user="admin"),
                    site.type_into("MailHost/manage_sendTestMail", "admin", address="ann@example.org")):
            assert ask[0] == 200 and "Out of reach since" in ask[2]
            assert_quoted(ask[2])
            assert "Geheim" not in ask[2]
    finally:
        pid_file.remove()
        figures.path_of(site.settings).unlink()

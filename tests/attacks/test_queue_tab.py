"""Attacks on the Queue tab: by what stands in mails, replies and file names, by links, and by who lacks the permission."""

import http.client
import os
import time
import urllib.parse
from base64 import b64encode
from html.parser import HTMLParser

import pytest
from support.config_file import write_config
from support.orphans import leave_orphan
from support.spooling import files_in
from support.zope_site import ZopeSite

from maildrop import figures, settings, spool
from maildrop.figures import Figures, Trouble

MARKUP = "\"'><xss onx=1></textarea></title></pre></svg><script>xss()</script>"
FILE_NAME = "\"'><xss onx=1>&amp;%3Cxss onx=1%3E"    # no slash
SECRET = "root:x:0:0"
CONTENT = """
import transaction
from Products.MaildropHost import manage_addMaildropHost
manage_addMaildropHost(app, "MailHost")
app.MailHost.setConfigPath("config-path-1")
app._addRole("Mailer")
app.acl_users.userFolderAddUser("mailer", "mailer-password", ["Mailer"], [])
app.manage_permission("Use mailhost services", ["Manager", "Mailer"], acquire=0)
app.manage_permission("View management screens", ["Manager", "Mailer"], acquire=0)
transaction.commit()
"""
PAGES = ["manage_queue", "manage_mail", "manage_confirmDelete"]
ACTIONS = ["manage_retryMails", "manage_deleteMails", "manage_releaseMails", "manage_settleOrphans"]
INNER = ["_queue_page", "_mail_page", "_delete_page", "_named", "_act", "_tell", "_show", "queuetab", "queueview"]


class Site(ZopeSite):
    def ask(self, method, path, user=None, **fields):
        """Status and text of a reply. Fields go into the link of a GET, and into the body of a POST."""
        data = urllib.parse.urlencode(fields, doseq=True, errors="surrogatepass")
        headers = {"Content-Type": "application/x-www-form-urlencoded"} if method == "POST" else {}
        if user:
            password = self.password if user == "admin" else "mailer-password"
            headers["Authorization"] = f"Basic {b64encode(f'{user}:{password}'.encode()).decode()}"
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            target = f"/MailHost/{path}"
            connection.request(method, target if method == "POST" else f"{target}?{data}", data, headers)
            response = connection.getresponse()
            return response.status, response.read().decode("utf-8", "replace")
        finally:
            connection.close()


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    directory = tmp_path_factory.mktemp("queue-attacked")
    config = write_config(directory / "config", MAILDROP_HOME=directory / "maildrop", MAILDROP_FSYNC=0)
    site = Site(directory / "site")
    site.create({"config-path-1": config})
    site.run_script(CONTENT)
    site.settings = settings.load(config)
    site.spool = site.settings.spools[0]
    spool.make_spool(site.spool, 0o700)
    site.settings.var.mkdir(parents=True)
    (directory / "maildrop" / "secret").write_text(f"##To:ann@example.org\n\n{SECRET}\n")
    (directory / "maildrop" / "link").symlink_to("/etc/passwd")
    site.start()
    yield site
    site.stop()


@pytest.fixture
def mails(site):
    """One deferred mail, one that has failed, an orphan: their names."""
    for folder in (site.spool, site.spool / "failed"):
        for name in files_in(folder):
            (folder / name).unlink()
    names = [spool.new_name() for _ in range(2)]
    for name in names:
        (site.spool / name).write_bytes(b"##To:ann@example.org\n##From:zoe@example.org\nSubject: private\n\nbody\n")
    os.utime(site.spool / names[0], (time.time() + 900,) * 2)
    (site.spool / names[1]).rename(site.spool / "failed" / f"{names[1]}.1")
    return [names[0], f"failed/{names[1]}.1", leave_orphan(site.spool, "private")]


def contents(site):
    """Names, bytes and times of all that is in the spool."""
    files = [path for folder in (site.spool, site.spool / "failed") for path in sorted(folder.iterdir()) if path.is_file()]
    return [(path, path.read_bytes(), path.stat().st_mtime_ns, path.stat().st_ino) for path in files]


class Page(HTMLParser):
    """Whether something that came as text has become an element, an attribute or a script."""

    def __init__(self, text):
        super().__init__()
        self.injected = []
        self._in_script = False
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        if tag == "xss" or "onx" in dict(attributes):
            self.injected.append(self.get_starttag_text())
        self._in_script = tag == "script"

    def handle_data(self, data):
        if self._in_script and "xss" in data:
            self.injected.append(data)


# -- who, and how --


@pytest.mark.parametrize("user", [None, "mailer"], ids=["an anonymous visitor", "one who may send and see management pages"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_without_the_permission_nothing_is_shown_or_done(site, mails, method, user):
    before = contents(site)
    for name in PAGES + ACTIONS + INNER:
        status, text = site.ask(method, name, user, mail=mails, sure="1", body="1")
        assert status in (401, 403, 404), name
        assert "private" not in text and "example.org" not in text, name
    assert contents(site) == before


def test_a_link_that_a_manager_follows_changes_nothing(site, mails):
    before = contents(site)
    for name in ACTIONS:
        assert site.ask("GET", name, "admin", mail=mails, sure="1")[0] == 403
    for name in PAGES + INNER:
        site.ask("GET", name, "admin", mail=mails, sure="1", retry="1", delete="1", release="1", settle="1")
    assert contents(site) == before


def test_the_question_before_deleting_deletes_nothing(site, mails):
    before = contents(site)
    assert "for good?" in site.ask("POST", "manage_confirmDelete", "admin", mail=mails)[1]
    assert contents(site) == before


def test_a_manager_does_it_by_post_all_the_same(site, mails):
    assert "1 mail was made due." in site.ask("POST", "manage_retryMails", "admin", mail=mails[0])[1]
    assert "2 mails were deleted." in site.ask("POST", "manage_deleteMails", "admin", mail=mails[1:])[1]
    assert files_in(site.spool) == mails[:1] and files_in(site.spool / "failed") == []


@pytest.mark.parametrize("name", INNER)
def test_inner_parts_cannot_be_called_by_url(site, name):
    assert site.ask("GET", name, "admin")[0] == 404


# -- names of mails --

WAYS_OUT = [
    "../secret", "../link", "..", ".", "", "/", "/etc/passwd", "//etc/passwd", "failed/../../secret", "0/../secret", "1/x",
    "-1/x", "..%2Fsecret", "%2e%2e/secret", "%252e%252e/secret", "failed", "tmp", "writers", "wake", "x\0", "x%00y",
    "\udcff", "\ud800", "..\\secret", "~/secret", "*", "?" * 5000, "../../../../../../../../etc/passwd", MARKUP,
]


@pytest.mark.parametrize("action", [*PAGES, *ACTIONS[:3]])
def test_no_name_leads_out_of_the_spool(site, mails, action):
    secret = site.spool.parent / "secret"
    before = contents(site)
    for name in WAYS_OUT:
        status, text = site.ask("POST", action, "admin", mail=name, sure="1", body="1")
        assert status == 200, name
        assert SECRET not in text and Page(text).injected == [], name
    assert contents(site) == before and SECRET in secret.read_text()


def test_a_link_in_the_spool_is_not_followed(site, mails):
    (site.spool / "planted").symlink_to(site.spool.parent / "secret")
    try:
        for action in ("manage_mail", "manage_retryMails", "manage_deleteMails"):
            status, text = site.ask("POST", action, "admin", mail="planted", body="1", sure="1")
            assert status == 200 and SECRET not in text
        assert SECRET in (site.spool.parent / "secret").read_text()
    finally:
        (site.spool / "planted").unlink()


@pytest.mark.parametrize(
    "fields",
    [{"mail:int": "1"}, {"mail:record": "1"}, {"mail.x:record": "1"}, {"mail.x:records": "1"}, {"mail:list:int": "1"},
     {"mail:bytes": "1"}, {"mail:tuple": "1"}, {"state:list": "due"}, {"state.x:record": "due"}, {"start:int": "-5"},
     {"start": "1" * 5000}, {"size:float": "nan"}, {"size": "0"}, {"newest:list": "1"}, {"subject:bytes": "x"},
     {"older": "9" * 400}, {"state": MARKUP}, {"name": "[" * 500}, {"sender": "*a" * 100}, {"name": "\0\udcff\ud800"}],
    ids=repr,
)
def test_odd_fields_spoil_no_page(site, mails, fields):
    for action in PAGES + ACTIONS[:3]:
        status, text = site.ask("POST", action, "admin", **fields)
        assert status in (200, 400), action
        assert Page(text).injected == []


# -- quoting --


def hostile_mail(name, address=f'"{MARKUP}"@example.org'):
    lines = [
        f"##To:{address}", f"##From:{address}", f"##Last-Reply:451 4.3.0 {MARKUP}",
        "##Attempts:2", f"##X{MARKUP}:{MARKUP}", f"Subject: {MARKUP}", f"From: {MARKUP}",
        f"X-{MARKUP.partition('>')[0]}: {MARKUP}", "", MARKUP, "]]>-->",
    ]
    name.write_bytes("\n".join(lines).encode())
    os.utime(name, (time.time() - 10,) * 2)


@pytest.fixture
def hostile(site, mails):
    """All that others write says the same; returns the keys of the mails."""
    names = [FILE_NAME, f"failed/{FILE_NAME}.1"]
    for name in names:
        hostile_mail(site.spool / name)
    names.append(spool.new_name())
    hostile_mail(site.spool / names[-1], '"<xss onx=1>"@example.org')    # an address that can be used
    trouble = Trouble(time.time() - 60, MARKUP)
    figures.path_of(site.settings).write_bytes(Figures(outage=trouble, error=trouble).dumps())
    yield [urllib.parse.quote(name) for name in names]
    figures.path_of(site.settings).unlink()


def test_what_stands_in_mails_replies_and_names_is_quoted(site, hostile):
    for action in ("manage_queue", "manage_mail", "manage_confirmDelete", "manage_retryMails", "manage_deleteMails"):
        for mail in hostile:
            status, text = site.ask("POST", action, "admin", mail=[mail], body="1")
            assert status == 200 and "&lt;xss onx=1&gt;" in text
            assert Page(text).injected == [], action


@pytest.mark.parametrize(
    "field", ["state", "sender", "recipient", "subject", "name", "older", "start", "size", "newest", "mail", "sure"]
)
def test_what_stands_in_a_link_is_quoted(site, mails, field):
    for action in PAGES:
        for more in ({}, {"mail": mails[0]}):
            status, text = site.ask("GET", action, "admin", **{**more, field: MARKUP})
            assert status == 200 and Page(text).injected == [], action


def test_the_check_for_quoting_finds_what_is_not_quoted():
    for text in (f"<p>{MARKUP}</p>", f'<input value="{MARKUP}">', f"<input value='{FILE_NAME}'>", "<script>xss()</script>"):
        assert Page(text).injected


def test_a_body_is_text_and_not_html(site, mails):
    (site.spool / mails[0]).write_bytes(b"##To:ann@example.org\nContent-Type: text/html\n\n</pre><xss onx=1>\x1b[31m\0</pre>")
    text = site.ask("GET", "manage_mail", "admin", mail=mails[0], body="1")[1]
    assert "&lt;/pre&gt;&lt;xss onx=1&gt;\\x1b[31m\\x00&lt;/pre&gt;" in text and Page(text).injected == []


def test_a_huge_mail_makes_no_huge_page(site, mails):
    (site.spool / mails[0]).write_bytes(
        b"##To:" + b", ".join(b"user%d@example.org" % number for number in range(50_000))
        + b"\n##From:" + b"z" * 100_000 + b"\nSubject: " + b"x" * 500_000 + b"\n" + b"X: y\n" * 50_000 + b"\n" + b"body\n" * 400_000
    )
    for action in PAGES:
        status, text = site.ask("GET", action, "admin", mail=mails[0], body="1")
        assert status == 200 and len(text) < 400_000

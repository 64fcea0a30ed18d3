"""A real Zope over WSGI with a database on disk: transactions, permissions, pages, and the way to the daemon."""

import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.config_file import write_config
from support.daemon import MaildropDaemon
from support.orphans import leave_orphan
from support.ports import free_port
from support.relay_server import RelayServer
from support.spooling import files_in, read_mails
from support.zope_site import ZopeSite

CONTENT = '''
import sys
import transaction
from OFS.DTMLMethod import addDTMLMethod
from Products.MaildropHost import manage_addMaildropHost
from Products.PythonScripts.PythonScript import manage_addPythonScript
from support.pages import MailPages

app.manage_addProduct["MaildropHost"].manage_addMaildropHost("MailHost", title="Test")
app.MailHost.setConfigPath("config-path-1")
app._setObject("pages", MailPages())
for number in range(8):
    app._setObject(f"pages{number}", MailPages())
addDTMLMethod(app, "by_dtml", file="""<dtml-sendmail mailhost="MailHost">
To: <dtml-var to>
From: zoe@example.org
Subject: by DTML

Text
</dtml-sendmail>sent""")
def script(name, params, body):
    manage_addPythonScript(app, name)
    app[name].ZPythonScript_edit(params, body)
send = "context.MailHost.send('Text', mto='ann@example.org', mfrom='zoe@example.org', subject='by Script')"
script("by_script", "", send + "\\nreturn 'sent'")
script("read_log", "", "return context.MailHost.getLog()")
script("choose_config", "", "context.MailHost.setConfigPath('DEFAULT')\\nreturn 'chosen'")
script("add_config", "", "context.MailHost.addConfigPath('x', '/etc/passwd')\\nreturn 'added'")
script("read_login", "", "return context.MailHost.login")
script("low_level", "", "context.MailHost._send('a@example.org', 'b@example.org', 'x')\\nreturn 'sent'")
transaction.commit()
'''


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    directory = tmp_path_factory.mktemp("zope")
    daemon = MaildropDaemon(directory, free_port(), MAILDROP_LOGIN="relay-login")
    other = write_config(directory / "other", MAILDROP_HOME=directory / "other-maildrop", SMTP_HOST="other.example.org")
    site = ZopeSite(directory / "site", extra_path=(Path(__file__).parents[1],))
    site.create({"config-path-1": daemon.config, "config-path-2": other})
    site.run_script(CONTENT)
    site.start()
    site.daemon, site.config, site.spool, site.log = daemon, daemon.config, daemon.spool, daemon.log_file
    site.log.parent.mkdir(parents=True)
    yield site
    site.stop()


@pytest.fixture(autouse=True)
def empty_spool(site):
    if site.spool.exists():
        for path in site.spool.iterdir():
            path.unlink() if path.is_file() else None


def subjects(site):
    found = [re.search(rb"(?m)^Subject: (.*?)\r?$", message)[1].decode() for _, _, message in read_mails(site.spool)]
    return found


# -- transactions --


def test_a_page_sends_one_mail(site):
    assert site.get("/pages/send?subject=one") == (200, "sent")
    assert subjects(site) == ["one"]
    assert len(files_in(site.spool)) == 1


def test_a_page_that_conflicts_twice_before_it_succeeds_sends_exactly_one_mail(site):
    status, text = site.get("/pages/conflict?subject=conflicted&times=2")
    assert (status, text.split(",")[0]) == (200, "3 calls")
    assert subjects(site) == ["conflicted"]
    assert len(files_in(site.spool)) == 1


def test_a_page_that_conflicts_too_often_sends_none(site):
    status, _ = site.get("/pages/conflict?subject=hopeless&times=99")
    assert status >= 500
    assert files_in(site.spool) == []


@pytest.mark.parametrize("page", ["fail", "fail_in_commit"])
def test_a_page_that_fails_sends_none(site, page):
    assert site.get(f"/pages/{page}?subject=never")[0] == 500
    assert files_in(site.spool) == []


def test_a_rollback_to_a_savepoint_removes_the_mail_sent_after_it(site):
    assert site.get("/pages/savepoints?subject=save") == (200, "sent")
    assert subjects(site) == ["save one", "save three"]
    assert len(files_in(site.spool)) == 2


def test_many_requests_at_a_time_each_send_their_mail(site):
    def request(number):
        return site.get(f"/pages{number % 8}/conflict?subject=many{number}&times=0")[0]

    with ThreadPoolExecutor(8) as pool:
        statuses = list(pool.map(request, range(80)))
    assert statuses == [200] * 80
    assert sorted(subjects(site)) == sorted(f"many{number}" for number in range(80))
    assert len(files_in(site.spool)) == 80


# -- permissions --


def test_dtml_and_scripts_send_for_those_who_may(site):
    assert site.get("/by_dtml?to=ann@example.org", login=True)[0] == 200
    assert site.get("/by_script", login=True) == (200, "sent")
    assert subjects(site) == ["by DTML", "by Script"]


@pytest.mark.parametrize("page", ["by_script", "read_log", "choose_config", "add_config", "read_login"])
def test_anonymous_visitors_may_neither_send_nor_read_nor_change(site, page):
    assert site.get(f"/{page}")[0] == 401
    assert files_in(site.spool) == []


@pytest.mark.parametrize(
    "page", ["manage_main", "manage_log", "getLog", "getConfigPath", "getCandidateConfigPaths", "login", "spool", "queueLength"]
)
def test_anonymous_visitors_see_nothing_by_url(site, page):
    status, text = site.get(f"/MailHost/{page}")
    assert status in (401, 403, 404)
    assert str(site.config) not in text and "relay-login" not in text


def test_managers_read_log_and_settings_from_a_script(site):
    site.log.write_text("OK\t <ann@example.org>\n")
    assert site.get("/read_log", login=True) == (200, "OK\t <ann@example.org>\n")
    assert site.get("/read_login", login=True) == (200, "relay-login")
    site.log.unlink()


def test_a_script_cannot_go_round_the_api(site):
    assert site.get("/low_level", login=True)[0] in (401, 403, 500)
    assert files_in(site.spool) == []


@pytest.mark.parametrize("method", ["setConfigPath?path_key=DEFAULT", "addConfigPath?path_key=x&path=/etc/passwd",
                                    "send?messageText=x&mto=a@example.org&mfrom=b@example.org"])
def test_what_changes_things_cannot_be_called_by_url(site, method):
    assert site.get(f"/MailHost/{method}", login=True)[0] in (401, 403, 404)
    assert files_in(site.spool) == []


def test_the_configuration_is_not_changed_by_a_get(site):
    assert site.get("/MailHost/manage_makeChanges?title=Hacked&path_key=config-path-2", login=True)[0] == 403
    assert 'value="Hacked"' not in site.get("/MailHost/manage_main", login=True)[1]


# -- pages --


def test_the_edit_tab_shows_settings_and_choices(site):
    status, page = site.get("/MailHost/manage_main", login=True)
    assert status == 200
    assert re.search(rf'<option value="config-path-1" selected="selected">\s*{site.config}', page)
    assert '<option value="config-path-2">' in page and '<option value="DEFAULT">' in page
    assert "relay-login" in page and str(site.spool) in page
    assert re.search(r'name="transactional:boolean"[^>]*checked="checked"', page)


def test_the_edit_tab_changes_title_mode_and_config_path(site):
    status, page = site.post("/MailHost/manage_makeChanges", {"title": "<b>New</b>", "path_key": "config-path-2"})
    assert status == 200
    assert "updated" in page and "other.example.org" in page
    assert 'value="&lt;b&gt;New&lt;/b&gt;"' in page and "<b>New" not in page.partition("<main")[2]
    assert not re.search(r'name="transactional:boolean"[^>]*checked', page)
    fields = {"title": "Test", "path_key": "config-path-1", "transactional:boolean": "1"}
    assert "updated" in site.post("/MailHost/manage_makeChanges", fields)[1]


def test_a_wrong_choice_is_told_on_the_page_and_changes_nothing(site):
    status, page = site.post("/MailHost/manage_makeChanges", {"title": "Bad", "path_key": "/etc/passwd"})
    assert status == 200
    assert "Nothing was changed" in page and "alert-danger" in page
    assert 'value="Bad"' not in page


def test_a_changed_config_file_shows_after_a_reload(site):
    site.daemon.configure(SMTP_HOST="changed.example.org")
    assert "changed.example.org" in site.get("/MailHost/manage_main", login=True)[1]
    site.daemon.configure(SMTP_HOST="127.0.0.1")
    assert "changed.example.org" not in site.get("/MailHost/manage_main", login=True)[1]


def test_the_log_tab_quotes_what_it_shows(site):
    assert "no log yet" in site.get("/MailHost/manage_log", login=True)[1]
    site.log.write_text("OK\t <script>alert(1)</script>\n")
    page = site.get("/MailHost/manage_log", login=True)[1]
    assert "&lt;script&gt;alert(1)" in page and "<script>alert" not in page
    site.log.unlink()


def test_the_add_form_adds_a_maildrophost_and_goes_to_its_edit_tab(site):
    form = site.get("/manage_addProduct/MaildropHost/addMaildropHostForm", login=True)[1]
    assert re.search(r'name="id" value="MailHost"', form)
    fields = {"id": "Second", "title": "Two", "submit": "Add"}
    status, page = site.post("/manage_addProduct/MaildropHost/manage_addMaildropHost", fields)
    assert status == 200
    assert 'value="Two"' in page and "Added MaildropHost." in page


def test_the_contents_list_offers_the_product(site):
    assert "Maildrop Host" in site.get("/manage_main", login=True)[1]


# -- what died --


def test_orphans_are_settled_on_demand_by_post_and_by_who_may_configure(site):
    site.get("/pages/send?subject=one")
    lock = f"{leave_orphan(site.spool)}.lck"
    assert site.post("/MailHost/manage_settleOrphans", {}, login=False)[0] == 401
    assert site.get("/MailHost/manage_settleOrphans", login=True)[0] == 403
    assert lock in files_in(site.spool)
    status, page = site.post("/MailHost/manage_settleOrphans", {})
    assert status == 200 and "1 mails: removed, as their transactions did not commit" in page
    assert subjects(site) == ["one"] and len(files_in(site.spool)) == 1
    assert "No dead process has left a mail locked." in site.post("/MailHost/manage_settleOrphans", {})[1]


def test_orphans_are_settled_when_zope_starts(site):
    site.stop()
    lock = f"{leave_orphan(site.spool)}.lck"
    site.start()
    assert lock not in files_in(site.spool)
    assert "as their transactions did not commit" in (site.directory / "var" / "log" / "event.log").read_text()


# -- starting again --


def test_zope_starts_and_the_object_loads_when_its_config_file_is_gone(site):
    hidden = site.config.with_name("hidden")
    site.stop()
    site.config.rename(hidden)
    try:
        site.start()
        page = site.get("/MailHost/manage_main", login=True)[1]
        assert "cannot be used" in page and str(site.config) in page
        assert "localhost" in page
        event_log = (site.directory / "var" / "log" / "event.log").read_text()
        assert f"{site.config}: cannot be read" in event_log
    finally:
        hidden.rename(site.config)
    assert "cannot be used" not in site.get("/MailHost/manage_main", login=True)[1]


def test_a_mail_goes_from_a_page_through_spool_and_daemon_to_the_relay(site):
    with RelayServer() as relay:
        site.daemon.configure(SMTP_PORT=relay.port)
        with site.daemon:
            site.get("/by_dtml?to=ann@example.org", login=True)
            site.get("/by_script", login=True)
            site.daemon.wait_until(lambda: len(relay.accepted) == 2 and not files_in(site.spool))
    texts = [mail.content.partition(b"\r\n\r\n")[2] for mail in relay.accepted]
    assert texts == [b"Text\r\n", b"Text\r\n"]
    assert {mail.recipients for mail in relay.accepted} == {("ann@example.org",)}

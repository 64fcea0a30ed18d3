"""The Edit tab's test mail and setup check, and the Maildrop Log tab, in a real browser, with and without JavaScript."""

import re
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.browser import browser_page
from support.daemon import MaildropDaemon, wait_until
from support.pictures import assert_nothing_sticks_out, picture
from support.relay_server import RelayServer
from support.requires import requires_command
from support.spooling import files_in
from support.zope_site import ZopeSite

from maildrop import figures, permissions, settings

ADD = """
import transaction
from Products.MaildropHost import manage_addMaildropHost
for name in ("MailHost", "Direct"):
    manage_addMaildropHost(app, name)
    app[name].setConfigPath("config-path-1")
app.Direct._transactional = False
transaction.commit()
"""
LOG = """### Started at 2026/11/22 14:00:05...
OK\t ann@example.org\t20261122T140001.000001-00000001 id=<1@example.org> reply="250 2.0.0 Ok: queued as 4F2" 0.012s
BAD: 451 4.3.0 try later\t bob@example.org\t20261122T140001.000002-00000002 attempt=2 next=2026/11/22 14:10:05
FATAL: 550 5.1.1 <b>no such user</b>\t eve@example.org\t20261122T140001.000003-00000003 kept as failed/x.1
### Finished at 2026/11/22 14:00:06
"""


@pytest.fixture(scope="module")
def relay():
    with RelayServer() as relay:
        yield relay


@pytest.fixture(scope="module")
def site(tmp_path_factory, relay):
    requires_command("chromium")
    directory = tmp_path_factory.mktemp("tabs")
    daemon = MaildropDaemon(directory, relay.port, MAILDROP_INTERVAL=3)
    site = ZopeSite(directory / "site")
    site.create({"config-path-1": daemon.config})
    site.run_script(ADD)
    site.daemon = daemon
    permissions.make_directories(settings.load(daemon.config))    # as the daemon does, which not every test starts
    site.start()
    yield site
    site.stop()


@pytest.fixture(autouse=True)
def nothing_waits(site, relay):
    """Each test begins with an empty spool, without a log, and with what the config file says at first."""
    site.daemon.log_file.unlink(missing_ok=True)
    for name in files_in(site.daemon.spool):
        (site.daemon.spool / name).unlink()
    relay.accepted.clear()
    original = site.daemon.config.read_text()
    yield
    site.daemon.config.write_text(original)


@pytest.fixture(params=[(1280, True), (1280, False), (400, True), (400, False)], ids=["wide", "wide-nojs", "narrow", "narrow-nojs"])
def page(site, request):
    width, javascript = request.param
    with browser_page("admin", site.password, width, javascript) as page:
        page.set_default_timeout(20000)
        yield page


@contextmanager
def running(site):
    """The daemon runs, and has said by what it goes."""
    known = settings.load(site.daemon.config)
    with site.daemon as daemon:
        wait_until(lambda: (serving := figures.read(known).serving) and serving.pid == daemon.pid)
        wait_until(lambda: figures.read(known).pass_ended)
        yield daemon


def findings(page):
    """{topic: (word of the badge, text)}"""
    rows = page.locator("#findings tr").all()
    words = [row.locator(".badge").inner_text() for row in rows]
    topics = [row.locator("th").inner_text().removesuffix(word).strip() for row, word in zip(rows, words)]
    return {topic: (word, row.locator("td").inner_text()) for topic, word, row in zip(topics, words, rows)}


def send(page, address, sender=""):
    page.fill("#address", address)
    page.fill("#sender", sender)
    with page.expect_navigation():
        page.click("input[value='Send a test mail']")


def told(page):
    return page.inner_text("main .alert")


def lines(page):
    return page.inner_text("main pre").splitlines()


# -- the Edit tab --


@pytest.mark.parametrize("host", ["MailHost", "Direct"])
def test_a_test_mail_goes_the_whole_way_and_the_page_tells_where_to_watch_it(site, relay, page, host):
    with running(site) as daemon:
        page.goto(f"{site.url}/{host}/manage_main")
        found = findings(page)
        assert {word for word, _ in found.values()} == {"OK"}
        assert f"Running as process {daemon.pid}" in found["Daemon"][1]
        assert found["Configuration"][1] == f"Zope and daemon both use {daemon.config}."
        picture(page, "setup")
        assert_nothing_sticks_out(page)
        send(page, "ann@example.org", "zoe@example.org")
        assert "The test mail is in the spool." in page.inner_text("body")
        picture(page, "sent")
        assert_nothing_sticks_out(page)
        assert f"Running as process {daemon.pid}" in told(page) and "Last look" in told(page)
        name, message_id = page.locator("main .alert-success code").all_inner_texts()
        assert page.get_attribute("main .alert a >> nth=0", "href") == "manage_queue"
        daemon.wait_for_log(f"\t{name} ")
        with page.expect_navigation():
            page.click("main .alert a >> nth=1")
        (line,) = lines(page)
        assert line.startswith("OK") and name in line
        assert page.input_value("#about") == name
    (mail,) = relay.accepted
    assert (mail.sender, mail.recipients) == ("zoe@example.org", ("ann@example.org",))
    assert f"Message-Id: {message_id}".encode() in mail.content
    assert f"Subject: Test mail of /{host}".encode() in mail.content


def test_without_a_daemon_no_success_is_claimed(site, page):
    page.goto(f"{site.url}/MailHost/manage_main")
    assert findings(page)["Daemon"][0] == "Error"
    send(page, "ann@example.org")
    assert page.locator(".alert-success").count() == 0
    assert "what may keep it from arriving" in page.inner_text("body") and "Not running" in told(page)
    assert page.locator("main .alert code").first.inner_text() in files_in(site.daemon.spool)
    picture(page, "not-running")
    assert_nothing_sticks_out(page)


def test_a_daemon_that_did_not_reload_and_a_debug_receiver_are_told_with_the_mail(site, page):
    with running(site):
        site.daemon.config.write_text(site.daemon.config.read_text() + 'DEBUG_RECEIVER="dev@example.org"\n')
        page.goto(f"{site.url}/MailHost/manage_main")
        send(page, "ann@example.org")
        assert page.locator(".alert-success").count() == 0
        assert "it has changed since the daemon read it" in told(page)
        assert "All mail goes to dev@example.org instead of its recipients" in told(page)


def test_an_address_that_is_none_is_told_beside_the_field_and_stays_there(site, page):
    page.goto(f"{site.url}/MailHost/manage_main")
    send(page, "ann@example.org, eve@example.org")
    assert "Nothing was sent. Enter one address" in told(page)
    assert page.input_value("#address") == "ann@example.org, eve@example.org"
    assert files_in(site.daemon.spool) == []
    picture(page, "no-address")
    assert_nothing_sticks_out(page)


def test_a_spool_that_cannot_be_written_is_on_the_page_before_and_after_and_once_in_zopes_log(site, page, request):
    place = site.directory / "file"
    place.write_text("in its place")
    spool = place / request.node.callspec.id
    site.daemon.config.write_text(site.daemon.config.read_text() + f'MAILDROP_SPOOL="{spool}"\n')
    log = site.directory / "var" / "log" / "event.log"
    before = log.read_text() if log.exists() else ""
    page.goto(f"{site.url}/MailHost/manage_main")
    assert findings(page)["Spool"][0] == "Error"
    for _ in range(3):
        send(page, "ann@example.org")
        assert "Nothing was sent." in told(page) and "Not a directory" in told(page)
    assert_nothing_sticks_out(page)
    said = log.read_text()[len(before) :]
    assert said.count(f"cannot be written to {spool}") == 1


# -- the Maildrop Log tab --


def test_the_log_is_filtered_and_turned_by_a_form(site, page):
    site.daemon.log_file.write_text(LOG)
    page.goto(f"{site.url}/MailHost/manage_log")
    assert lines(page) == LOG.splitlines()[::-1]
    picture(page, "log-newest-first")
    assert_nothing_sticks_out(page)
    page.select_option("#order", "oldest")
    page.select_option("#lines", "50")
    with page.expect_navigation():
        page.click("input[value=Show]")
    assert lines(page) == LOG.splitlines()
    page.fill("#about", "<B>No such")
    with page.expect_navigation():
        page.click("input[value=Show]")
    assert lines(page) == [LOG.splitlines()[3]]
    assert (page.input_value("#order"), page.input_value("#lines")) == ("oldest", "50")
    with page.expect_navigation():
        page.click("#reload")
    assert (page.input_value("#about"), page.input_value("#order"), page.input_value("#lines")) == ("<B>No such", "oldest", "50")
    page.fill("#about", "nothing like that")
    with page.expect_navigation():
        page.click("input[value=Show]")
    assert "No line has this text." in page.inner_text("main")


def test_who_follows_the_log_sees_what_is_added_until_he_stops(site, page):
    site.daemon.log_file.write_text(LOG)
    page.goto(f"{site.url}/MailHost/manage_log?about=example.org")
    with page.expect_response("**/manage_log?*") as response, page.expect_navigation():
        page.click("#follow")
    assert response.value.headers["refresh"] == "10"
    picture(page, "log-followed")
    with site.daemon.log_file.open("a") as log:
        log.write("OK\t new@example.org\t20261122T140009.000001-00000001 id=<1@example.org>\nOK\t elsewhere\n")
    page.wait_for_selector("text=new@example.org")
    assert "elsewhere" not in page.inner_text("main pre")
    with page.expect_response("**/manage_log?*") as response, page.expect_navigation():
        page.click("#follow")
    assert "refresh" not in response.value.headers


def test_the_log_is_downloaded_as_it_is(site, page, tmp_path):
    content = LOG.encode() + b"\xff\x00<script>\r\n" * 100_000
    site.daemon.log_file.write_bytes(content)
    page.goto(f"{site.url}/MailHost/manage_log")
    with page.expect_download() as download:
        page.click("#download")
    assert download.value.suggested_filename == "maildrop.log"
    assert Path(download.value.path()).read_bytes() == content


@pytest.mark.parametrize("place", ["config", "spool", "log", "figures", "var"])
def test_both_pages_come_whatever_stands_in_the_way(site, page, place):
    path = {
        "config": site.daemon.config,
        "spool": site.daemon.spool,
        "log": site.daemon.log_file,
        "figures": figures.path_of(settings.load(site.daemon.config)),
        "var": site.daemon.log_file.parent,
    }[place]
    aside = path.with_name("aside")
    is_there = path.exists()
    if is_there:
        path.rename(aside)
    try:
        for make, undo in ((Path.touch, Path.unlink), (Path.mkdir, Path.rmdir), (lambda path: None, lambda path: None)):
            make(path)
            for tab in ("manage_main", "manage_log"):
                assert page.goto(f"{site.url}/MailHost/{tab}").status == 200
                assert page.locator("main").count() == 1
                assert_nothing_sticks_out(page)
                picture(page, f"{tab}-{place}")
            undo(path)
    finally:
        if is_there:
            aside.rename(path)


def test_nothing_runs_out_of_the_page_however_long_it_is(site, page):
    site.daemon.log_file.write_text(f"FATAL: {'x' * 3000}\t {'a' * 400}@example.org\tNAME{'y' * 3000}\n")
    page.goto(f"{site.url}/MailHost/manage_log?about={'x' * 900}")
    assert_nothing_sticks_out(page)
    long = "/".join(["", *["d" * 200] * 5])
    site.daemon.config.write_text(re.sub('(?m)^MAILDROP_HOME=.*', f'MAILDROP_HOME="{long}"', site.daemon.config.read_text()))
    for tab in ("manage_main", "manage_log"):
        page.goto(f"{site.url}/MailHost/{tab}")
        assert_nothing_sticks_out(page)
        picture(page, f"{tab}-long")

"""The Queue tab in a real browser, with and without JavaScript."""

import html
import os
import re
import subprocess
import time

import pytest
from support.browser import browser_page
from support.config_file import write_config
from support.orphans import leave_orphan
from support.pictures import assert_nothing_sticks_out, picture
from support.requires import requires_command
from support.spooling import files_in
from support.zope_site import ZopeSite

from maildrop import figures, settings, spool
from maildrop.figures import Counts, Figures

HOUR = 3600
ADD = """
import sys
import transaction
from Products.MaildropHost import manage_addMaildropHost
manage_addMaildropHost(app, "MailHost", title="Mail of the site")
app.MailHost.setConfigPath("config-path-1")
transaction.commit()
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    requires_command("chromium")
    directory = tmp_path_factory.mktemp("queue")
    config = write_config(directory / "config", MAILDROP_HOME=directory / "maildrop", MAILDROP_FSYNC=0)
    site = ZopeSite(directory / "site")
    site.create({"config-path-1": config})
    site.run_script(ADD)
    site.config, site.settings = config, settings.load(config)
    site.spool = site.settings.spools[0]
    site.settings.var.mkdir(parents=True)
    site.start()
    yield site
    site.stop()


@pytest.fixture(autouse=True)
def mails(site):
    """Some mails of each state; {what they are: file name}."""
    subprocess.run(["rm", "-rf", site.spool], check=True)
    spool.make_spool(site.spool, 0o700)
    tried = {"Attempts": "3", "Last-Reply": "451 4.3.0 try later"}
    refused = {"Failed": "550 5.1.1 no such user"}
    unknown = {"Failed": "unknown whether its transaction committed", "Committed": "unknown"}
    names = {
        "due": put(site, 600, "Your invoice"),
        "deferred": put(site, 7000, "Grüße aus Köln", notes=tried, due_in=900),
        "failed": put(site, 90000, "Welcome", notes=refused, failed="1-5c1d9a07"),
        "unsettled": put(site, 90100, "Order 17", notes=unknown, failed="0-77"),
    }
    known = Figures()
    for hour in range(0, 160, 3):
        known.add(Counts(40 + hour, hour % 9, hour % 4 == 0), time.time() - (160 - hour) * HOUR)
    figures.path_of(site.settings).write_bytes(known.dumps())
    return names


def put(
    site, age_s, subject, sender="zoe@example.org", to="ann@example.org", notes=None, due_in=0, failed="", locked=False
):
    """Write a mail as of then; its name as the tab has it."""
    made_at = time.time() - age_s
    name = time.strftime("%Y%m%dT%H%M%S", time.gmtime(made_at)) + spool.new_name()[15:]
    draft = spool.Draft(site.spool / name, durable=False)
    content = f"Subject: {subject}\nFrom: {sender}\nTo: {to}\n\nDear Ann,\n\n<b>here</b> it is.\n".encode()
    draft.write(sender, to, content, notes or {})
    if locked:
        return name
    draft.release()
    os.utime(draft.path, (time.time() + due_in,) * 2)
    if failed:
        name = f"failed/{name}.{failed}"
        os.rename(draft.path, site.spool / name)
    return name


@pytest.fixture(params=[(1280, True), (400, False)], ids=["wide", "narrow, without JavaScript"])
def page(site, request):
    width, javascript = request.param
    with browser_page("admin", site.password, width, javascript) as page:
        page.set_default_timeout(15000)
        yield page


def show(site, page, query=""):
    page.goto(f"{site.url}/MailHost/manage_queue{query}")
    page.wait_for_load_state()


def press(page, text):
    with page.expect_navigation():
        page.click(f"main button:has-text('{text}'), main input[value='{text}']")


def follow(page, text):
    with page.expect_navigation():
        page.click(f"main a:has-text('{text}')")


def choose(page, *subjects):
    for subject in subjects:
        page.check(f".maildrop-rows tr:has-text('{subject}') input[type=checkbox]")


def subjects(page):
    return page.locator(".maildrop-rows tbody td[data-label=Subject]").all_inner_texts()


def message(page):
    return page.inner_text("body > .alert, body .alert[role=alert]")


def is_due(site, name):
    return os.stat(site.spool / name).st_mtime <= time.time()


# -- looking --


def test_the_tab_shows_counts_the_oldest_age_pictures_and_the_mails(site, page):
    put(site, 3 * 86400, "Long " + "x" * 300, sender=f"{'y' * 300}@example.org", to=f"{'z' * 300}@example.org", due_in=900)
    show(site, page)
    picture(page, "queue")
    assert_nothing_sticks_out(page)
    counts = page.inner_text("main p:has(#count-due)").split()
    assert counts == "due 1 deferred 2 locked 0 orphaned 0 failed 2 unusable 0".split()
    assert "has waited for 3d, since" in page.inner_text("#oldest")
    assert page.locator("#history svg[role=img]").count() == 2
    assert "deferred" in page.get_attribute("#history svg >> nth=0", "aria-label")
    assert subjects(page)[1:] == ["Order 17", "Welcome", "Grüße aus Köln", "Your invoice"]
    row = page.inner_text(".maildrop-rows tr:has-text('Köln')")
    for told in ("deferred", "1h 56m", "zoe@example.org", "ann@example.org", "3", "in 14m", "451 4.3.0 try later"):
        assert told in row
    assert "The daemon is not running" in page.inner_text("main")


def test_the_pictures_have_a_table_too(site, page):
    show(site, page)
    page.click("#history summary >> nth=1")
    assert "Delivered" in page.inner_text("#history table >> nth=1")
    assert_nothing_sticks_out(page)


def test_filter_and_pages(site, page):
    for number in range(120):
        put(site, 1000 - number, f"Number {number}", to=f"user{number}@example.{'com' if number % 2 else 'net'}")
    show(site, page)
    assert page.inner_text("#where") == "Mails 1 to 50 of 124"
    follow(page, "Next")
    assert page.inner_text("#where") == "Mails 51 to 100 of 124"
    follow(page, "Last")
    assert (page.inner_text("#where"), len(subjects(page))) == ("Mails 101 to 124 of 124", 24)
    follow(page, "Previous")
    follow(page, "First")
    with page.expect_navigation():
        page.click("#count-failed")
    assert subjects(page) == ["Order 17", "Welcome"]
    page.select_option("#state", "")
    page.fill("#recipient", "*@example.com")
    press(page, "Show")
    assert len(subjects(page)) == 50 and subjects(page)[:2] == ["Number 1", "Number 3"]
    assert page.input_value("#recipient") == "*@example.com"
    picture(page, "filtered")
    assert_nothing_sticks_out(page)
    follow(page, "Search on")
    assert subjects(page)[-1] == "Number 119" and len(subjects(page)) == 10
    page.fill("#recipient", "")
    page.fill("#subject", "number 77")
    press(page, "Show")
    assert (subjects(page), page.inner_text("#where")) == (["Number 77"], "Mails 1 to 1 of 1")
    page.fill("#subject", "")
    page.fill("#older", "1d")
    page.select_option("#newest", "1")
    press(page, "Show")
    assert subjects(page) == ["Welcome", "Order 17"]
    page.fill("#older", "soon")
    press(page, "Show")
    assert "'soon' is no span of time" in message(page)
    follow(page, "All mails")
    assert page.inner_text("#where") == "Mails 1 to 50 of 124"


def test_look_at_a_mail_and_on_request_at_its_body(site, page):
    show(site, page, "?state=deferred")
    follow(page, "Köln")
    picture(page, "mail")
    assert_nothing_sticks_out(page)
    assert "waits for its next attempt" in page.inner_text("#facts")
    assert "451 4.3.0 try later" in page.inner_text("#envelope")
    assert "Grüße aus Köln" in page.inner_text("#header")
    assert "here" not in page.inner_text("main")
    follow(page, "Show the body")
    assert page.inner_text("#body") == "Dear Ann,\n\n<b>here</b> it is."
    follow(page, "Back to the queue")
    assert page.input_value("#state") == "deferred"
    assert subjects(page) == ["Grüße aus Köln"]


# -- acting --


def test_retry_makes_chosen_mails_due(site, page, mails):
    show(site, page)
    choose(page, "Köln", "Welcome")
    press(page, "Retry")
    assert "2 mails were made due." in message(page)
    assert is_due(site, mails["deferred"])
    assert not (site.spool / mails["failed"]).exists() and len(files_in(site.spool)) == 3
    picture(page, "retried")


def test_a_mail_whose_transaction_may_not_have_committed_is_retried_only_if_the_box_is_ticked(site, page, mails):
    show(site, page)
    choose(page, "Order 17")
    press(page, "Retry")
    assert "tick the box to send it all the same" in message(page)
    assert (site.spool / mails["unsettled"]).exists()
    follow(page, "Order 17")
    picture(page, "unsettled")
    press(page, "Retry")
    assert (site.spool / mails["unsettled"]).exists()
    follow(page, "Order 17")
    page.check("#sure")
    press(page, "Retry")
    assert "1 mail was made due." in message(page)
    assert not (site.spool / mails["unsettled"]).exists() and len(files_in(site.spool)) == 3


def test_delete_asks_on_a_page_of_its_own_and_keeps_filter_and_other_mails(site, page, mails):
    show(site, page, "?state=failed")
    choose(page, "Welcome")
    press(page, "Delete")
    picture(page, "delete")
    assert_nothing_sticks_out(page)
    assert "Delete this mail for good?" in page.inner_text("main") and "Order 17" not in page.inner_text("main")
    follow(page, "Keep")
    assert subjects(page) == ["Order 17", "Welcome"]
    choose(page, "Welcome")
    press(page, "Delete")
    press(page, "Delete for good")
    assert "1 mail was deleted." in message(page)
    assert subjects(page) == ["Order 17"]
    assert [path.name for path in (site.spool / "failed").iterdir()] == [os.path.basename(mails["unsettled"])]


def test_all_mails_of_a_page_are_ticked_by_a_link(site, page):
    show(site, page)
    follow(page, "Tick all")
    page.uncheck(".maildrop-rows tr:has-text('Order 17') input")
    press(page, "Delete")
    assert "Delete these 3 mails for good?" in page.inner_text("main")
    press(page, "Delete for good")
    assert subjects(page) == ["Order 17"]
    assert not page.is_checked(".maildrop-rows input")


def test_orphans_are_settled(site, page):
    name = leave_orphan(site.spool, "Of the dead")
    show(site, page)
    assert "dead processes left locked: 1." in page.inner_text("main")
    picture(page, "orphans")
    assert_nothing_sticks_out(page)
    press(page, "Settle them now")
    assert "1 mails: removed, as their transactions did not commit" in message(page)
    assert "Of the dead" not in subjects(page) and f"{name}.lck" not in files_in(site.spool)


def test_an_orphan_is_released_only_if_the_box_is_ticked(site, page):
    name = leave_orphan(site.spool, "Of the dead")
    show(site, page)
    follow(page, "Of the dead")
    assert "sends it, whether or not its transaction committed" in page.inner_text("main")
    picture(page, "orphan")
    assert_nothing_sticks_out(page)
    press(page, "Release")
    assert "Nothing was released" in message(page) and f"{name}.lck" in files_in(site.spool)
    follow(page, "Of the dead")
    page.check("#sure")
    press(page, "Release")
    assert "1 mail was released." in message(page)
    assert name in files_in(site.spool) and f"{name}.lck" not in files_in(site.spool)


def test_a_mail_that_is_gone_or_locked_or_not_chosen_is_told_of(site, page, mails):
    put(site, 50, "Open transaction", locked=True)
    show(site, page)
    choose(page, "Your invoice", "Open transaction")
    (site.spool / mails["due"]).unlink()
    press(page, "Retry")
    assert f"there is no mail {mails['due']}" in message(page) and "was locked or moved" in message(page)
    press(page, "Retry")
    assert "No mail was chosen." in message(page)


# -- whatever is wrong --


def tab(site):
    status, text = site.get("/MailHost/manage_queue", login=True)
    assert status == 200
    return text


def test_the_page_comes_without_a_spool(site):
    subprocess.run(["rm", "-rf", site.spool], check=True)
    text = tab(site)
    assert "is not there yet" in text and "No mail waits to be sent." in text


def test_the_page_comes_where_the_spool_is_no_directory(site):
    subprocess.run(["rm", "-rf", site.spool], check=True)
    site.spool.write_text("")
    assert "cannot be read: Not a directory" in tab(site)


@pytest.mark.parametrize(
    "content", [b"", b"\0" * 99, b"[]", b'{"version": 1, "total": [1, 2', b'{"total": [1e999, 0, 0]}'], ids=repr
)
def test_the_page_comes_with_damaged_figures(site, content):
    figures.path_of(site.settings).write_bytes(content)
    assert "has not counted anything yet" in tab(site)


def test_the_page_comes_with_a_wrong_config_file(site):
    before = site.config.read_text()
    try:
        site.config.write_text("SMTP_PORT=ninety\n")
        assert "The configuration file:" in tab(site)
        assert "Your invoice" in tab(site)    # what it said before serves
    finally:
        site.config.write_text(before)


def test_the_page_comes_with_odd_files_in_the_spool(site):
    mail = b"##To:ann@example.org\n##From:zoe@example.org\nSubject: odd name\n\n"
    (site.spool / os.fsdecode(b"caf\xe9")).write_bytes(mail)
    (site.spool / "no mail").write_bytes(b"\0\xff")
    (site.spool / "alone.lck").write_bytes(b"")
    (site.spool / "endless").write_bytes(b"##To:" + b"x" * 100_000 + b"\n" + b"##From:zoe\nSubject: " + b"y" * 100_000)
    text = tab(site)
    assert "odd name" in text and "caf%25E9" in text and len(text) < 200_000
    for link in re.findall(r'href="(manage_mail[^"]*)"', text):
        status, page = site.get(f"/MailHost/{html.unescape(link)}", login=True)
        assert status == 200 and len(page) < 200_000

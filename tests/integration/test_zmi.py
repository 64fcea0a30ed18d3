"""The management pages in a real browser."""

import pytest
from support.browser import browser_page
from support.config_file import write_config
from support.pictures import assert_nothing_sticks_out, picture
from support.requires import requires_command
from support.zope_site import ZopeSite

LOG = """
### Started at 2026/11/22 14:00:05...
OK\t ann@example.org\t20261122T140001.000001-00000001 id=<1@example.org> reply="250 2.0.0 Ok: queued as 4F2" 0.012s
BAD: 451 4.3.0 try later\t bob@example.org\t20261122T140001.000002-00000002 attempt=2 next=2026/11/22 14:10:05
FATAL: 550 5.1.1 <b>no such user</b>\t eve@example.org\t20261122T140001.000003-00000003 kept as failed/x.1
### Finished at 2026/11/22 14:00:06
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory):
    requires_command("chromium")
    directory = tmp_path_factory.mktemp("zmi")
    config = write_config(directory / "config", MAILDROP_HOME=directory / "maildrop", SMTP_HOST="relay.example.org")
    site = ZopeSite(directory / "site")
    site.create({"config-path-1": config})
    site.start()
    site.config = config
    log = directory / "maildrop" / "var" / "maildrop.log"
    log.parent.mkdir(parents=True)
    log.write_text(LOG)
    yield site
    site.stop()


@pytest.fixture(params=[1280, 400])
def page(site, request):
    with browser_page("admin", site.password, request.param) as page:
        yield page


def submit(page):
    with page.expect_navigation():
        page.click("main input[type=submit]")


def test_add_edit_choose_a_config_path_and_read_the_log(site, page):
    name = f"MailHost{page.viewport_size['width']}"
    page.goto(f"{site.url}/manage_addProduct/MaildropHost/addMaildropHostForm")
    assert page.input_value("#id") == "MailHost"
    picture(page, "add")
    assert_nothing_sticks_out(page)
    page.fill("#id", name)
    page.fill("#title", "Mail of the site")
    submit(page)
    assert "Added MaildropHost." in page.inner_text("body")
    assert page.input_value("#title") == "Mail of the site"
    assert page.is_checked("#transactional")
    picture(page, "edit")
    assert_nothing_sticks_out(page)

    page.select_option("#path_key", "config-path-1")
    page.uncheck("#transactional")
    submit(page)
    assert f'MaildropHost "{name}" updated.' in page.inner_text("body")
    assert "relay.example.org" in page.inner_text("#settings")
    assert page.eval_on_selector("#path_key", "select => select.value") == "config-path-1"
    assert not page.is_checked("#transactional")
    picture(page, "edited")

    page.goto(f"{site.url}/{name}/manage_log")
    assert "550 5.1.1 <b>no such user</b>" in page.inner_text("main pre")
    picture(page, "log")
    assert_nothing_sticks_out(page)


def test_the_add_list_opens_the_form_as_a_dialog(site, page):
    page.goto(f"{site.url}/manage_main")
    page.wait_for_load_state("networkidle")
    if page.viewport_size["width"] < 800:    # Zope's own header hides the list there
        return
    page.select_option("select[name=':action']", label="Maildrop Host")
    dialog = page.wait_for_selector(".modal.show #id")
    page.wait_for_timeout(500)    # the dialog fades in
    assert dialog.input_value() == "MailHost"
    picture(page, "dialog")
    page.fill(".modal.show #id", "FromDialog")
    page.click(".modal.show input[type=submit]")
    page.wait_for_load_state("networkidle")
    assert site.get("/FromDialog/manage_main", login=True)[0] == 200

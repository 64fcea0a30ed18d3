"""What a site leaves behind that ran MaildropHost 2.3 under Python 2.7 and Zope 2.13: its database and its spool."""

import itertools
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import transaction
from support.daemon import MaildropDaemon
from support.from_2_3.make import CONFIG, SITE
from support.relay_server import RelayServer
from support.spooling import MODULE, make_host
from support.zope_site import ZopeSite

LEFT_BEHIND = Path(__file__).parents[1] / "support" / "from_2_3"

STATES = """
import json
print(json.dumps([
    [host.absolute_url_path(), host.title, host.getConfigPath(), host.isTransactional(), host.smtp_port,
     host.debug_receiver]
    for host in (app.MailHost, app.newsletter, app.untouched, app.intranet.MailHost)
]))
"""

SAVE = """
import transaction
app.intranet.MailHost.manage_makeChanges("Changed", transactional=True)
transaction.commit()
print(app._p_jar.db().storage.load(app.intranet.MailHost._p_oid)[0].decode("latin-1"))
"""


@pytest.fixture(scope="module")
def relay():
    with RelayServer() as relay:
        yield relay


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Where the site lies now: a path of the same length, so that it can replace the old one in the database."""
    parent = tmp_path_factory.mktemp("from")
    place = parent / ("x" * (len(SITE) - len(str(parent)) - 1))
    place.mkdir()
    return place


def make_daemon(directory, relay):
    """A daemon with a config file that has 2.3's keys and no other."""
    template = CONFIG.replace("{receiver}", "")
    return MaildropDaemon(directory, relay.port, template, MAILDROP_LOGIN="", MAILDROP_PASSWORD="")


@pytest.fixture(scope="module")
def daemons(place, relay):
    """The daemons of both config files that the site still has."""
    with make_daemon(place / "maildrop", relay) as first, make_daemon(place / "newsletter", relay) as second:
        yield first, second


@pytest.fixture(scope="module")
def site(place, daemons):
    """A Zope of today with the database of 2.3, converted as Zope's documentation says."""
    site = ZopeSite(place / "zope")
    site.create({"config-path-1": daemons[0].config, "config-path-2": daemons[1].config})
    database = site.directory / "var" / "Data.fs"
    database.write_bytes((LEFT_BEHIND / "Data.fs").read_bytes().replace(SITE.encode(), str(place).encode()))
    convert = [Path(sys.executable).with_name("zodbupdate"), "--convert-py3", "--encoding", "utf-8", "--pack"]
    subprocess.run([*convert, "--file", database], check=True, capture_output=True)
    site.states = json.loads(site.run_script(STATES))
    site.start()
    yield site
    site.stop()


def subjects(relay):
    found = [re.search(rb"(?m)^Subject: (.*?)\r$", mail.content)[1].decode() for mail in relay.accepted]
    relay.accepted.clear()
    return sorted(found)


def test_objects_keep_title_mode_and_config_path(site, place):
    assert [state[:4] for state in site.states] == [
        ["/MailHost", "Post für alle", f"{place}/maildrop/config", True],
        ["/newsletter", "Newsletter", f"{place}/newsletter/config", False],
        ["/untouched", "Maildrop Host", MODULE.DEFAULT_CONFIG_PATH, True],
        ["/intranet/MailHost", "Intranet", f"{place}/removed/config", True],
    ]


def test_settings_are_those_of_the_files_and_not_those_that_2_3_stored(site, relay):
    assert [state[4:] for state in site.states] == [[relay.port, "(not set)"]] * 2 + [[25, "(not set)"]] * 2


@pytest.mark.parametrize(
    "page, subject",
    [
        ("by_dtml", "DTML Method"),
        ("by_template", "Page Template"),
        ("by_script", "Script"),
        ("by_simple_send", "simple_send"),
        ("by_newsletter", "newsletter"),
    ],
)
def test_what_sent_mail_in_2_3_sends_it_now(site, daemons, relay, page, subject):
    status, text = site.get(f"/{page}", login=True)
    assert status == 200 and "sent" in text
    for daemon in daemons:
        daemon.wait_until_empty()
    assert subjects(relay) == [subject]


def test_the_transactional_mode_is_kept(site, daemons, relay):
    assert site.get("/by_both_and_fail", login=True)[0] == 500
    for daemon in daemons:
        daemon.wait_until_empty()
    assert subjects(relay) == ["at once"]


def test_permissions_are_kept(site):
    assert site.get("/by_script")[0] == 401


def test_an_object_whose_config_file_is_gone_says_so_and_sends_when_another_is_chosen(site, place, daemons, relay):
    page = site.get("/intranet/MailHost/manage_main", login=True)[1]
    assert f"{place}/removed/config" in page and "cannot be read" in page
    fields = {"title": "Intranet", "path_key": "config-path-1", "transactional:boolean": "1"}
    assert "updated" in site.post("/intranet/MailHost/manage_makeChanges", fields)[1]
    status, text = site.get("/intranet/by_dtml_arguments", login=True)
    assert status == 200 and "sent" in text
    daemons[0].wait_until_empty()
    assert subjects(relay) == ["DTML arguments"]


def test_what_2_3_stored_in_an_object_is_gone_when_it_is_saved(site):
    site.stop()
    try:
        state = site.run_script(SAVE)
    finally:
        site.start()
    assert "Changed" in state and "config_path" in state
    assert "debug-receiver-of-2.3" not in state and "relay-of-2.3" not in state and "smtp_port" not in state


# -- the spool --


def read_2_3(path):
    """Recipients' addresses and message, as a relay gets them, of a file that 2.3 wrote."""
    to, _, message = path.read_bytes().split(b"\n", 2)
    addresses = tuple(address.decode() for address in re.findall(rb"[\w.]+@[\w.]+", to))
    return addresses, message.replace(b"\n", b"\r\n")


def test_a_full_spool_that_2_3_left_behind_is_delivered_once_and_what_it_had_locked_stays(tmp_path):
    left = [path for path in (LEFT_BEHIND / "spool").iterdir() if path.suffix != ".lck"]
    locked = "7654323"
    with RelayServer() as relay:
        daemon = make_daemon(tmp_path, relay)
        shutil.copytree(LEFT_BEHIND / "spool", daemon.spool)
        for number in range(50):
            for path in left:
                if path.name != locked:
                    shutil.copy(path, daemon.spool / f"{number}{path.name}")
        with daemon:
            daemon.wait_until(lambda: daemon.waiting() == [locked, f"{locked}.lck"])
            assert locked not in daemon.read_log()
            daemon.ctl("release", locked)
            daemon.wait_until_empty()
    sent = [(mail.recipients, mail.content) for mail in relay.accepted]
    wanted = [read_2_3(path) for path in left for _ in range(1 if path.name == locked else 51)]
    assert sorted(sent) == sorted(wanted)
    assert not (daemon.spool / "failed").exists() or not daemon.failed()


# -- the way back --


def test_what_is_written_now_has_the_form_that_a_2_3_daemon_reads(tmp_path):
    """It reads lines as long as they begin with ``##``, fails on one without a colon, and sends all the rest.

    This checks that form and no more: a daemon of 2.3 needs Python 2.
    """
    host = make_host(tmp_path)
    message = b"Subject: back\n\nGr\xfc\xdfe\n## no envelope\n"
    host._send("Zoe <zoe@example.org>", ['"Bob, the other" <bob@example.org>', "ann@example.org"], message)
    transaction.commit()
    (path,) = [path for path in (tmp_path / "spool").iterdir() if not path.is_dir()]
    lines = path.read_bytes().split(b"\n")
    envelope = list(itertools.takewhile(lambda line: line.startswith(b"##"), lines))
    assert envelope[:2] == [b'##To:"Bob, the other" <bob@example.org>,ann@example.org', b"##From:Zoe <zoe@example.org>"]
    assert all(b":" in line for line in envelope)
    assert b"\n".join(lines[len(envelope) :]) == message

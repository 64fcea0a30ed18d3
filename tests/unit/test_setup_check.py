"""What the Edit tab says of the setup, and the test mail."""

import errno
import os
import time
from email import message_from_bytes

import pytest
import transaction
from support.accounts import Account, open_directory
from support.config_file import write_config
from support.spooling import MODULE, files_in, make_host, read_mails

from maildrop import figures, settings
from maildrop.figures import Figures, Serving, Trouble
from maildrop.pidfile import PidFile
from Products.MaildropHost import setup_check

INTERVAL_S = 120


@pytest.fixture
def config(tmp_path):
    path = write_config(tmp_path / "config", MAILDROP_HOME=tmp_path / "home", MAILDROP_INTERVAL=INTERVAL_S)
    (tmp_path / "home" / "var").mkdir(parents=True)
    (tmp_path / "home" / "spool").mkdir()
    return path


@pytest.fixture
def daemon(config):
    """This process holds the pid file, as a daemon that uses the file ``config``."""
    pid_file = PidFile(settings.load(config).pid_file)
    pid_file.write()
    yield pid_file
    pid_file.remove()


def serves(config, settings_of=None, passes=((-5, -4),), now=None, **changes):
    """Write what a daemon keeps that is this process."""
    used = settings.load(settings_of or config)
    now = time.time() if now is None else now
    known = Figures(**changes)
    known.serving = Serving(os.getpid(), str(settings_of or config), used.digest, tuple(map(str, used.spools)))
    for began, ended in passes:
        known.pass_began, known.pass_ended = now + began, None if ended is None else now + ended
    figures.path_of(settings.load(config)).write_bytes(known.dumps())
    return known


def look(config, problem="", now=None):
    found = setup_check.findings(config, settings.load(config), problem, time.time() if now is None else now)
    return {finding.topic: (finding.level, finding.text) for finding in found}


def test_where_all_is_well_four_sentences_say_so(config, daemon):
    serves(config)
    found = look(config)
    assert list(found) == ["Daemon", "Spool", "Configuration", "Last look"]
    assert {level for level, _ in found.values()} == {"ok"}
    assert found["Daemon"][1].startswith(f"Running as process {os.getpid()}, since ")
    assert found["Spool"][1] == f"Zope can write to {config.parent / 'home' / 'spool'}."
    assert found["Configuration"][1] == f"Zope and daemon both use {config}."
    assert ", 4s ago. It is to look every 2m" in found["Last look"][1]


# -- the daemon, and its last look --


def test_a_daemon_that_does_not_run_is_an_error_and_its_last_look_is_history(config):
    serves(config, passes=((-7200, -7199),))
    found = look(config)
    assert found["Daemon"][0] == "error" and found["Daemon"][1].startswith("Not running")
    assert found["Configuration"] == (
        "warning",
        f"Zope uses {config}. Without a daemon there is nothing to compare it with.",
    )
    level, text = found["Last look"]
    assert level == "warning" and "1h 59m ago, by a daemon that does not run any more" in text


def test_where_no_daemon_has_ever_been_nothing_is_claimed(config):
    found = look(config)
    assert (found["Daemon"][0], found["Last look"][0]) == ("error", "warning")
    assert found["Last look"][1].startswith("None is known")


def test_a_pid_file_that_cannot_be_read_is_not_taken_for_a_daemon_that_does_not_run(config):
    settings.load(config).pid_file.mkdir()
    level, text = look(config)["Daemon"]
    assert level == "warning" and text.startswith("Whether it is running cannot be told")


@pytest.mark.parametrize(
    ("ago_s", "level"),
    [(1, "ok"), (INTERVAL_S, "ok"), (2 * INTERVAL_S + 50, "ok"), (2 * INTERVAL_S + 70, "warning"), (86400, "warning")],
)
def test_a_look_that_is_later_than_it_should_be_is_noted(config, daemon, ago_s, level):
    serves(config, passes=((-ago_s - 1, -ago_s),))
    assert look(config)["Last look"][0] == level


@pytest.mark.parametrize(
    ("ago_s", "delivered", "level"), [(5, 0, "ok"), (7200, 1, "ok"), (7200, 0, "warning")]
)
def test_a_long_pass_is_well_as_long_as_something_comes_of_it(config, daemon, ago_s, delivered, level):
    known = serves(config, passes=((-ago_s, None),))
    known.add(figures.Counts(delivered), time.time())
    figures.path_of(settings.load(config)).write_bytes(known.dumps())
    found = look(config)["Last look"]
    assert found[0] == level and found[1].startswith("One goes on since")
    assert ("nothing has come of it" in found[1]) == (level == "warning")


def test_a_pass_that_began_after_the_last_one_ended_is_under_way(config, daemon):
    serves(config, passes=((-5, -7200),))
    level, text = look(config)["Last look"]
    assert level == "ok" and text.startswith("One goes on since")


def test_an_outage_of_the_relay_is_told_with_its_reason_while_the_daemon_runs(config, daemon):
    serves(config, outage=Trouble(time.time() - 60, "Connection error: refused"))
    level, text = look(config)["Relay"]
    assert level == "error" and text.endswith("Connection error: refused")
    daemon.remove()
    assert "Relay" not in look(config)
    PidFile(settings.load(config).pid_file).write()


# -- the spool --


def test_a_spool_that_zope_can_make_is_well(config):
    (config.parent / "home" / "spool").rmdir()
    level, text = look(config)["Spool"]
    assert level == "ok" and "Zope can make it" in text
    assert not (config.parent / "home" / "spool").exists()


@pytest.mark.parametrize("inner", ["", "writers"])
def test_a_file_in_the_place_of_the_spool_is_an_error_that_names_it(config, inner):
    place = config.parent / "home" / "spool" / inner
    if not inner:
        place.rmdir()
    place.write_text("in its place")
    level, text = look(config)["Spool"]
    assert level == "error" and f"{place}: Not a directory" in text


def test_a_look_leaves_nothing_in_the_spool(config):
    spool = config.parent / "home" / "spool"
    before = spool.stat().st_mtime_ns
    assert look(config)["Spool"][0] == "ok"
    assert (os.listdir(spool), spool.stat().st_mtime_ns) == ([], before)


@pytest.mark.parametrize("way", ["a file without a name", "permissions alone"])
@pytest.mark.parametrize("place", ["spool", "spool/writers", "."])
def test_a_spool_of_another_account_is_an_error(place, way, monkeypatch):
    if way == "permissions alone":
        monkeypatch.delattr(os, "O_TMPFILE", raising=False)
    with open_directory() as folder:
        home = folder / "home"
        for directory in (home, home / "spool", home / "spool" / "writers"):
            directory.mkdir()
            directory.chmod(0o777)
        closed = home / place
        if place == ".":
            (home / "spool" / "writers").rmdir()
            (home / "spool").rmdir()
        closed.chmod(0o755)
        used = settings.load(write_config(folder / "config", MAILDROP_HOME=home))
        other = Account(4711)
        level, text = other.do(setup_check._of_spool, used.spools[0])
        assert level == "error" and f"{closed}: Permission denied" in text.replace("/.:", ":")
        closed.chmod(0o1777)
        assert other.do(setup_check._of_spool, used.spools[0])[0] == "ok"


def test_a_full_disk_is_an_error(config, monkeypatch):
    def full(descriptor, data):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", full)
    level, text = look(config)["Spool"]
    assert level == "error" and "No space left on device" in text


def test_a_file_system_without_nameless_files_is_asked_for_its_permissions(config, monkeypatch):
    def lacking(path, flags, mode=0o777, original=os.open):
        if flags & os.O_TMPFILE == os.O_TMPFILE:
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP), str(path))
        return original(path, flags, mode)

    monkeypatch.setattr(os, "open", lacking)
    assert look(config)["Spool"][0] == "ok"


# -- the same configuration --


def test_a_file_that_has_changed_since_the_daemon_read_it_is_noted(config, daemon):
    serves(config)
    with config.open("a") as stream:
        stream.write("MAILDROP_RETRY=17\n")
    level, text = look(config)["Configuration"]
    assert level == "warning" and "it has changed since the daemon read it" in text and "SIGHUP" in text


def test_a_comment_is_no_change(config, daemon):
    serves(config)
    with config.open("a") as stream:
        stream.write("# a comment\n")
    assert look(config)["Configuration"][0] == "ok"


def test_a_daemon_that_does_not_serve_zopes_spool_is_an_error(config, daemon):
    serves(config)
    elsewhere = config.parent / "elsewhere"
    write_config(config, config.read_text(), MAILDROP_SPOOL=elsewhere)
    level, text = look(config)["Configuration"]
    assert level == "error" and f"does not serve Zope's spool, {elsewhere}" in text


def test_two_files_are_told_apart_by_what_they_say(config, daemon):
    other = config.with_name("other")
    other.write_text(config.read_text())
    serves(config, settings_of=other)
    assert look(config)["Configuration"] == (
        "ok",
        f"Zope uses {config}, the daemon {other}: two files with the same settings.",
    )
    other.write_text(config.read_text() + "MAILDROP_RETRY=17\n")
    serves(config, settings_of=other)
    level, text = look(config)["Configuration"]
    assert level == "warning" and "the settings differ" in text


def test_a_link_to_the_file_is_the_same_file(config, daemon):
    link = config.with_name("link")
    link.symlink_to(config)
    serves(config, settings_of=link)
    assert look(config)["Configuration"] == ("ok", f"Zope and daemon both use {config}.")


@pytest.mark.parametrize("figures_are", ["missing", "of a daemon that has ended", "damaged"])
def test_what_the_daemon_uses_is_not_guessed(config, daemon, figures_are):
    path = figures.path_of(settings.load(config))
    if figures_are == "of a daemon that has ended":
        known = serves(config)
        known.serving = known.serving._replace(pid=os.getppid())
        path.write_bytes(known.dumps())
    elif figures_are == "damaged":
        path.write_bytes(b"{")
    level, text = look(config)["Configuration"]
    assert level == "warning" and "cannot be told" in text


@pytest.mark.parametrize("hostile", ["/a\0b", "\ud800", "/a\nb<script>\x1b", "x" * 100_000])
def test_figures_that_name_no_possible_file_keep_no_page_from_coming(config, daemon, hostile):
    known = serves(config)
    known.serving = known.serving._replace(config=hostile, spools=(hostile,))
    figures.path_of(settings.load(config)).write_bytes(known.dumps())
    level, text = look(config)["Configuration"]
    assert level in ("warning", "error")
    assert text.isprintable()


def test_a_file_that_zope_cannot_use_is_an_error_with_the_reason(config, daemon):
    serves(config)
    level, text = look(config, problem="line 3: nonsense")["Configuration"]
    assert level == "error" and text.endswith("line 3: nonsense")


def test_without_any_settings_there_is_one_thing_to_say(config):
    assert setup_check.findings(config, None, "gone", time.time()) == [
        ("error", "Configuration", "No configuration file can be used, so no mail can be sent: gone")
    ]


def test_a_debug_receiver_is_always_mentioned(config):
    write_config(config, config.read_text(), DEBUG_RECEIVER="dev@example.org")
    level, text = look(config)["Recipients"]
    assert level == "warning" and "dev@example.org instead of its recipients" in text


def test_the_objects_own_list_is_that_of_its_file(tmp_path):
    host = make_host(tmp_path)
    found = host.getSetupFindings()
    assert [entry["topic"] for entry in found] == ["Daemon", "Spool", "Configuration", "Last look"]
    assert str(tmp_path / "config") in found[2]["text"]


# -- the test mail --


@pytest.fixture(autouse=True)
def no_transaction():
    transaction.abort()
    yield
    transaction.abort()


@pytest.mark.parametrize("transactional", [True, False])
def test_the_test_mail_is_named_when_it_is_written_and_leaves_as_any_other(tmp_path, transactional):
    host = make_host(tmp_path, transactional=transactional)
    name = host.manage_sendTestMail(" ann@example.org\n")
    files = files_in(tmp_path / "spool")
    assert files == ([name, f"{name}.lck"] if transactional else [name])
    transaction.commit()
    assert files_in(tmp_path / "spool") == [name]
    ((sender, recipients, content),) = read_mails(tmp_path / "spool")
    assert (sender, recipients) == ("ann@example.org", ("ann@example.org",))
    message = message_from_bytes(content)
    assert (message["To"], message["From"]) == ("ann@example.org", "ann@example.org")
    assert message["Subject"] == "Test mail of MailHost"
    assert message["Message-Id"].startswith("<") and message["Date"]
    assert str(tmp_path) not in message.get_payload(decode=True).decode()


def test_an_aborted_transaction_takes_the_test_mail_along(tmp_path):
    host = make_host(tmp_path)
    host.manage_sendTestMail("ann@example.org")
    transaction.abort()
    assert files_in(tmp_path / "spool") == []


def test_the_test_mail_may_have_another_sender(tmp_path):
    host = make_host(tmp_path, transactional=False)
    host.manage_sendTestMail('"jo, eve"@example.org', "zoe@example.org")
    ((sender, recipients, _),) = read_mails(tmp_path / "spool")
    assert (sender, recipients) == ("zoe@example.org", ('"jo, eve"@example.org',))


@pytest.mark.parametrize("field", ["address", "sender"])
@pytest.mark.parametrize(
    "typed",
    ["   ", "ann", "ann example.org", "<>", "ann@example.org, eve@example.org", "ann@example.org;eve@example.org", "ann@",
     "friends: ann@example.org, eve@example.org;", "ann@example.org\nBcc: eve@example.org", "ann@\udc80", "a\0@b", "(x",
     "x" * 600 + "@example.org", ["ann@example.org"], 7, "ann@example.org\u2028x", "ann@example.org <eve@example.org",
     "ann@example.org,<>", "Ann <ann@example.org>", "<ann@example.org>", "ann@example.org (Ann)", "a: ann@example.org",
     "@example.org",
     "j\u00fcrgen@example.org", "ann@ex\u00e4mple.org"],
    ids=ascii,
)
def test_what_is_not_exactly_one_address_is_an_error_and_no_mail(tmp_path, field, typed):
    host = make_host(tmp_path, transactional=False)
    with pytest.raises(MODULE.MaildropHostError):
        host.manage_sendTestMail(**{"address": "ann@example.org", field: typed})
    assert files_in(tmp_path / "spool") == []


def test_a_test_mail_that_cannot_be_written_is_an_error(tmp_path):
    host = make_host(tmp_path, MAILDROP_SPOOL=tmp_path / "config" / "spool")
    with pytest.raises(MODULE.MaildropHostError, match="cannot be written"):
        host.manage_sendTestMail("ann@example.org")

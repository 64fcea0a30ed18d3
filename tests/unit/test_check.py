"""``maildropctl check``: what it says of a config file, of the places it names and of real relays."""

import errno
import os
import sys
import time

import pytest
from support.config_file import write_config
from support.ports import free_port
from support.relay_server import RelayServer
from support.requires import requires_root

from maildrop import check, ctl, permissions, settings, spool
from maildrop.pidfile import PidFile

SECRET = "s3cret-pass"


@pytest.fixture
def relay():
    with RelayServer() as relay:
        yield relay


@pytest.fixture
def write(tmp_path, relay):
    """Writes a config file that is well, but for these values."""

    def write(**values):
        usual = {"PYTHON": sys.executable, "MAILDROP_HOME": tmp_path / "home"}
        at_relay = {"SMTP_HOST": "127.0.0.1", "SMTP_PORT": relay.port}
        config = write_config(tmp_path / "config", **{**usual, **at_relay, **values})
        config.chmod(0o600)
        return config

    return write


def lines(config, capsys):
    """The report, split into (level, text), and the exit status."""
    status = ctl.main(["-c", str(config), "check"])
    output = capsys.readouterr()
    assert output.err == ""
    return [tuple(line.split(maxsplit=1)) for line in output.out.splitlines()], status


def about(found, beginning):
    """The findings whose text begins like that."""
    return [(level, text) for level, text in found if text.startswith(beginning)]


def everything_below(directory):
    return sorted((str(path), path.lstat().st_mtime_ns) for path in directory.rglob("*"))


def test_a_fit_site_has_no_errors_and_nothing_is_made_for_it(write, tmp_path, capsys):
    config = write()
    before = everything_below(tmp_path)
    found, status = lines(config, capsys)
    assert status == 0
    assert {level for level, _ in found} <= {"ok", "warning"}
    assert about(found, "MAILDROP_HOME: ") == [
        ("ok", f"MAILDROP_HOME: {tmp_path / 'home' / 'var'} will be made"),
        ("ok", f"MAILDROP_HOME: {tmp_path / 'home' / 'spool'} will be made"),
    ]
    assert about(found, "daemon") == [("warning", "daemon: not running")]
    assert about(found, "permissions") == []
    assert everything_below(tmp_path) == before


# -- the config file --


def test_a_wrong_value_is_an_error_with_key_and_line(write, capsys):
    config = write(SMTP_PORT="abc")
    found, status = lines(config, capsys)
    [(level, text)] = found
    assert (level, status) == ("error", 1)
    assert f"{config}: line " in text
    assert "SMTP_PORT='abc': has to be a port" in text


def test_a_missing_config_is_an_error(tmp_path, capsys):
    [(level, text)], status = lines(tmp_path / "missing", capsys)
    assert (level, status) == ("error", 1)
    assert text == f"{tmp_path / 'missing'}: cannot be read: No such file or directory"


def test_warnings_of_the_file_are_warnings_and_no_errors(write, capsys):
    found, status = lines(write(MAILDROP_INTERVALL=5), capsys)
    assert status == 0
    assert any(level == "warning" and "did you mean MAILDROP_INTERVAL?" in text for level, text in found)


def test_what_permissions_warns_of_is_in_the_report(write, tmp_path, capsys):
    config = write()
    permissions.make_directories(settings.load(config))
    (tmp_path / "home" / "spool").chmod(0o700)
    found, _ = lines(write(MAILDROP_SPOOL_MODE="0660"), capsys)
    told = about(found, f"permissions: {tmp_path / 'home' / 'spool'}: ")
    assert told
    assert {level for level, _ in told} == {"warning"}


# -- PYTHON --


def test_the_version_of_python_is_told(write, capsys):
    found, _ = lines(write(), capsys)
    version = ".".join(map(str, sys.version_info[:3]))
    assert about(found, "PYTHON") == [("ok", f"PYTHON: {sys.executable}, version {version}")]


@pytest.mark.parametrize("script", [None, "#!/bin/sh\nexit 1\n", "no program"])
def test_a_python_that_does_not_do_is_a_warning_since_the_scripts_find_another(write, tmp_path, capsys, script):
    python = tmp_path / "python"
    if script:
        python.write_text(script)
        python.chmod(0o755)
    found, status = lines(write(PYTHON=python), capsys)
    [(level, text)] = about(found, "PYTHON")
    assert (level, status) == ("warning", 0)
    assert text.endswith("; the scripts take python3 instead")


# -- MAILDROP_USER --


def test_an_unknown_account_is_an_error(write, capsys):
    requires_root()
    found, status = lines(write(MAILDROP_USER="no-such-account"), capsys)
    assert about(found, "MAILDROP_USER") == [("error", 'MAILDROP_USER="no-such-account": there is no such account')]
    assert status == 1


# -- places --


def test_root_that_may_not_become_the_account_is_an_error(write, capsys, monkeypatch):
    """As in a container without that right."""
    requires_root()

    def refuse(name, group):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "initgroups", refuse)
    found, status = lines(write(MAILDROP_USER="nobody"), capsys)
    [(level, text)] = about(found, "MAILDROP_USER")
    assert (level, status) == ("error", 1)
    assert "root may not become that account" in text


def test_a_failed_folder_that_anybody_can_have_made_is_an_error(write, tmp_path, capsys):
    spool.make_spool(tmp_path / "open" / "spool", 0o700)
    (tmp_path / "open" / "spool" / "failed").rmdir()
    (tmp_path / "open" / "spool").chmod(0o1777)
    (tmp_path / "open" / "spool" / "failed").symlink_to(tmp_path)
    found, status = lines(write(MAILDROP_SPOOL=tmp_path / "open" / "spool"), capsys)
    [(level, text)] = about(found, "spool:")
    assert (level, status) == ("error", 1)
    assert "is a link in a directory that everybody may write to" in text


def test_a_file_in_a_directorys_place_is_an_error(write, tmp_path, capsys):
    (tmp_path / "home").write_text("")
    found, status = lines(write(), capsys)
    assert {level for level, _ in about(found, "MAILDROP_HOME")} == {"error"}
    assert status == 1


def test_a_link_that_anybody_can_have_made_is_an_error(write, tmp_path, capsys):
    world = tmp_path / "world"
    world.mkdir()
    world.chmod(0o1777)
    (world / "spool").symlink_to(tmp_path)
    found, status = lines(write(MAILDROP_SPOOL=world / "spool"), capsys)
    assert about(found, "MAILDROP_SPOOL") == [
        ("error", f"MAILDROP_SPOOL: {world / 'spool'} is a link in a directory that everybody may write to")
    ]
    assert status == 1


def test_a_running_daemon_is_told_with_its_process(write, capsys):
    config = write()
    found = settings.load(config)
    permissions.make_directories(found)
    pid_file = PidFile(found.pid_file)
    pid_file.write()
    try:
        report, _ = lines(config, capsys)
        assert about(report, "daemon") == [("ok", f"daemon: running as process {os.getpid()}")]
    finally:
        pid_file.remove()


def test_mails_in_the_spool_are_counted(write, tmp_path, capsys):
    config = write()
    directory = tmp_path / "home" / "spool"
    permissions.make_directories(settings.load(config))
    for number in range(6):
        draft = spool.Draft(directory / spool.new_name())
        draft.write("zoe@example.org", "ann@example.org", b"Subject: x\n\n")
        if number == 0:
            continue
        draft.release()
        if number < 3:
            os.utime(draft.path, (time.time() + 3600, time.time() + 3600))
        elif number == 3:
            draft.path.rename(directory / "failed" / "x.1")
    found, _ = lines(config, capsys)
    assert about(found, "spool") == [("ok", f"spool: {directory}: 2 due, 3 deferred or locked, 1 failed")]


# -- the relay --


def test_what_the_relay_calls_itself_and_offers_is_told_and_nothing_is_sent(write, relay, capsys):
    relay.pipelining = False
    found, status = lines(write(), capsys)
    [(level, text)] = about(found, "relay")
    assert (level, status) == ("ok", 0)
    assert text.startswith(f"relay: 127.0.0.1:{relay.port}: calls itself relay.example.org, no TLS; offers ")
    assert "SIZE" in text
    assert (relay.accepted, relay.connections) == ([], 1)


def test_each_relay_has_a_line_and_one_that_is_down_is_an_error(write, relay, capsys):
    port = free_port()
    config = write(SMTP_HOST="127.0.0.1;localhost", SMTP_PORT=port)
    found, status = lines(config, capsys)
    assert [(level, text.split(": ")[1]) for level, text in about(found, "relay")] == [
        ("error", f"127.0.0.1:{port}"),
        ("error", f"localhost:{port}"),
    ]
    assert status == 1


@pytest.mark.parametrize("password", [SECRET, "another"])
@pytest.mark.parametrize("source", ["MAILDROP_PASSWORD", "MAILDROP_PASSWORD_FILE"])
def test_the_login_is_tried_and_no_password_is_printed(write, tmp_path, capsys, source, password):
    (tmp_path / "password").write_text(f"{password}\n")
    (tmp_path / "password").chmod(0o600)
    with RelayServer(tls=True, login=("joe", SECRET)) as relay:
        value = password if source == "MAILDROP_PASSWORD" else tmp_path / "password"
        config = write(SMTP_PORT=relay.port, MAILDROP_TLS=2, MAILDROP_TLS_VERIFY=0, MAILDROP_LOGIN="joe", **{source: value})
        status = ctl.main(["-c", str(config), "check"])
        output = capsys.readouterr().out
        if password == SECRET:
            assert "TLS, login accepted; offers" in output
        else:
            assert "Authentication failed" in output
        assert status == (password != SECRET)
        assert SECRET not in output
        assert "another" not in output
        assert relay.accepted == []


def test_a_relay_without_the_tls_that_is_required_is_an_error(write, capsys):
    found, status = lines(write(MAILDROP_TLS=2), capsys)
    [(level, text)] = about(found, "relay")
    assert (level, status) == ("error", 1)
    assert "TLS unavailable" in text


def test_levels_come_first_and_lines_are_single_ones(write, capsys):
    ctl.main(["-c", str(write()), "check"])
    for line in capsys.readouterr().out.splitlines():
        assert line[:9] in ("ok       ", "warning  ", "error    ")


def test_findings_are_in_the_order_in_which_they_are_made(write):
    kinds = [text.split(":")[0] for _, text in check.findings(write())]
    assert list(dict.fromkeys(kinds)) == ["config", "MAILDROP_USER", "PYTHON", "MAILDROP_HOME", "daemon", "spool", "relay"]

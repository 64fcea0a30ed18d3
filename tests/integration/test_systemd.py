"""The systemd unit and the logrotate snippet, as far as they can be tried without booting a machine."""

import grp
import os
import pwd
import re
import socket
import subprocess
from pathlib import Path

import pytest
from support.daemon import SCRIPTS, MaildropDaemon
from support.relay_server import RelayServer
from support.requires import find_command, requires_command

from maildrop.supervisor import Supervisor

UNIT = SCRIPTS / "maildrop.service"
LOGROTATE = SCRIPTS / "maildrop.logrotate"


# -- the unit --


@pytest.fixture
def unit(tmp_path):
    """A copy of the unit with its path to the package edited, as its comments say."""
    requires_command("systemd-analyze")
    copy = tmp_path / "maildrop.service"
    text, edited = re.subn(r"(?m)^ExecStart=\S+/start_maildrop ", f"ExecStart={SCRIPTS}/start_maildrop ", UNIT.read_text())
    assert edited == 1
    copy.write_text(text)
    return copy


def test_systemd_finds_nothing_wrong_with_the_unit(unit):
    result = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


def test_systemd_would_tell_of_a_wrong_line(unit):
    unit.write_text(unit.read_text().replace("ProtectSystem=", "ProtectSystm="))
    result = subprocess.run(["systemd-analyze", "verify", unit], capture_output=True, text=True)
    assert "ProtectSystm" in result.stderr


def test_systemd_finds_little_that_the_service_is_exposed_to(unit):
    result = subprocess.run(
        ["systemd-analyze", "security", "--offline=yes", "--threshold=25", unit], capture_output=True, text=True
    )
    assert result.returncode == 0, result.stdout    # of 100, where 100 is a service without any restriction


# -- what the daemon tells systemd --


class Listener:
    """What systemd is for a service of Type=notify."""

    def __init__(self, address):
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.socket.bind(address)
        self.socket.settimeout(20)

    def hear(self):
        return self.socket.recv(4096).decode()


@pytest.fixture(params=["path", "abstract"])
def told(request, tmp_path, monkeypatch):
    """Listens at NOTIFY_SOCKET, which is in the environment."""
    address = str(tmp_path / "notify")
    listener = Listener(f"\0{address}" if request.param == "abstract" else address)
    monkeypatch.setenv("NOTIFY_SOCKET", f"@{address}" if request.param == "abstract" else address)
    yield listener
    listener.socket.close()


def test_systemd_hears_when_the_daemon_serves_reloads_and_ends(told, tmp_path):
    with RelayServer() as relay:
        daemon = MaildropDaemon(tmp_path, relay.port, SUPERVISED_DAEMON=1)
        with daemon.in_foreground() as process:
            assert told.hear() == "READY=1"
            process.send_signal(1)
            assert re.fullmatch(r"RELOADING=1\nMONOTONIC_USEC=\d+", told.hear())
            assert told.hear() == "READY=1"
            process.terminate()
            assert told.hear() == "STOPPING=1"
            assert process.wait(20) == 0


def test_a_daemon_whose_supervisor_does_not_listen_serves_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "nobody"))
    with RelayServer() as relay:
        daemon = MaildropDaemon(tmp_path, relay.port)
        with daemon:
            daemon.add_mail("ann@example.org")
            daemon.wait_until_empty()


def test_what_the_daemon_starts_cannot_speak_for_it(told):
    Supervisor().ready()
    assert told.hear() == "READY=1"
    assert "NOTIFY_SOCKET" not in os.environ


# -- logrotate --


def test_a_log_that_logrotate_moves_away_is_begun_anew_and_no_line_is_lost(tmp_path):
    requires_command("logrotate")
    account = pwd.getpwuid(os.geteuid()).pw_name, grp.getgrgid(os.getegid()).gr_name
    with RelayServer() as relay:
        daemon = MaildropDaemon(tmp_path, relay.port)
        snippet = LOGROTATE.read_text().replace("/var/spool/maildrop/var/maildrop.log", str(daemon.log_file))
        snippet = re.sub(r"su maildrop maildrop", f"su {account[0]} {account[1]}", snippet)
        (tmp_path / "snippet").write_text(snippet)
        rotated = Path(f"{daemon.log_file}.1")
        with daemon:
            first = daemon.add_mail("ann@example.org").name
            daemon.wait_until_empty()
            command = [find_command("logrotate"), "--force", "--state", str(tmp_path / "state"), str(tmp_path / "snippet")]
            done = subprocess.run(command, capture_output=True, text=True)
            assert (done.returncode, done.stderr) == (0, "")
            assert not daemon.log_file.exists()
            second = daemon.add_mail("jo@example.org").name
            daemon.wait_for_log(second)
        assert first in rotated.read_text() and first not in daemon.read_log()
        assert second not in rotated.read_text()

"""A hostile account of the same machine plants links, directories and files where ours are looked for.

Each attack has to be refused, with nothing touched outside of where it was made. The daemon, Zope and ``maildropctl`` are
real, and so are the accounts.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.accounts import ROOT, Account, contents, open_directory, python_for_all
from support.config_file import write_config
from support.daemon import MaildropDaemon, process_runs
from support.ports import free_port
from support.relay_server import RelayServer
from support.spooling import MODULE

from maildrop import spool

VICTIM, MALLORY = Account(41001), Account(41002)
MAIL = b"##To:ann@example.org\n##From:zoe@example.org\nSubject: private\n\nbody\n"


@dataclass
class Site:
    """A directory that everybody may write to, and one with what nobody but the victim may touch."""

    root: Path
    world: Path    # where the attack is made
    precious: Path    # whatever happens there is the damage
    victim: Account

    @property
    def scripts(self) -> Path:
        return self.root.parent / "package" / "maildrop" / "bin"

    @property
    def home(self) -> Path:
        return self.world / "maildrop"

    def directory(self, path: Path, mode: int = 0o700, owner: Account | None = None) -> Path:
        path.mkdir()
        (owner or self.victim).own(path)
        path.chmod(mode)
        return path

    def link(self, path: Path, target: object) -> None:
        """Mallory makes a link."""
        path.symlink_to(str(target))
        MALLORY.own(path)

    def daemon(self, relay_port: int, **values: object) -> MaildropDaemon:
        values = {"PYTHON": python_for_all(), "MAILDROP_HOME": self.home, **values}
        return MaildropDaemon(self.root, relay_port, account=self.victim, scripts=self.scripts, **values)


@pytest.fixture(scope="module")
def shared_root():
    with open_directory() as directory:
        yield directory


@pytest.fixture
def root(shared_root):
    """A directory for one test, beside the package that all can read."""
    directory = Path(tempfile.mkdtemp(dir=shared_root))
    directory.chmod(0o755)
    yield directory
    shutil.rmtree(directory)


@pytest.fixture(params=[0o1777, 0o777], ids=["like /tmp", "without a sticky bit"])
def site(request, root):
    """Where everybody may write."""
    return make_site(root, request.param)


@pytest.fixture
def old_site(root):
    """Where everybody may write, as version 2.3 left its directories."""
    return make_site(root, 0o777)


def make_site(root, mode):
    site = Site(root, root / "world", root / "precious", VICTIM)
    site.directory(site.world, mode, owner=ROOT)
    fill_precious(site)
    return site


def fill_precious(site):
    site.directory(site.precious)
    site.directory(site.precious / "directory")
    for name, text in (("file", b"4711\n"), ("mail", MAIL), ("directory/inner", b"private\n")):
        (site.precious / name).write_bytes(text)
        site.victim.own(site.precious / name).chmod(0o600)


# -- directories: the daemon does not start --


def plant_link(site, path):
    site.link(path, site.precious / "directory")
    return path


def plant_dangling_link(site, path):
    site.link(path, site.precious / "new")
    return path


def plant_link_to_mallorys(site, path):
    site.directory(site.root / "mallorys", 0o777, owner=MALLORY)
    site.link(path, site.root / "mallorys")
    return path


def plant_directory(site, path):
    site.directory(path, 0o777, owner=MALLORY)
    return path


def plant_directory_of_ours_group(site, path):
    site.directory(path, 0o2770, owner=MALLORY)
    os.chown(path, MALLORY.uid, VICTIM.uid)
    return path


PLANTED = {
    "a link to a directory of ours": plant_link,
    "a dangling link": plant_dangling_link,
    "a link to a directory of mallory's": plant_link_to_mallorys,
    "a directory of mallory's": plant_directory,
    "a directory of mallory's and our group": plant_directory_of_ours_group,
}
PLACES = {
    "MAILDROP_HOME": ("maildrop", {}),
    "MAILDROP_SPOOL": ("spool", {"MAILDROP_SPOOL": "{world}/spool"}),
    "a second spool": ("second", {"MAILDROP_SPOOL": "{root}/ours/spool;{world}/second"}),
    "above the spool": ("above", {"MAILDROP_SPOOL": "{world}/above/a/b/spool"}),
    "MAILDROP_VAR": ("var", {"MAILDROP_VAR": "{world}/var"}),
    "MAILDROP_PID_FILE": ("run", {"MAILDROP_PID_FILE": "{world}/run/maildrop.pid"}),
    "MAILDROP_LOG_FILE": ("log", {"MAILDROP_LOG_FILE": "{world}/log/maildrop.log"}),
}


@pytest.mark.parametrize("plant", PLANTED.values(), ids=PLANTED)
@pytest.mark.parametrize("place", PLACES)
def test_a_planted_directory_is_refused_by_the_daemon(site, place, plant):
    name, values = PLACES[place]
    ours = site.directory(site.root / "ours")
    values = {key: value.format(world=site.world, root=site.root) for key, value in values.items()}
    path = plant(site, site.world / name)
    if place != "MAILDROP_HOME":
        values["MAILDROP_HOME"] = ours
    daemon = site.daemon(free_port(), **values)
    before = contents(site.precious), contents(path.resolve()) if path.exists() else None
    result = daemon.try_start()
    assert result.returncode == 1
    key = place if place.startswith("MAILDROP") else "MAILDROP_SPOOL"
    assert f"Error: {key}: {path} " in result.stderr
    assert "a directory that everybody may write to" in result.stderr
    assert (contents(site.precious), contents(path.resolve()) if path.exists() else None) == before


@pytest.mark.parametrize("plant", PLANTED.values(), ids=PLANTED)
@pytest.mark.parametrize("name", ["tmp", "failed"])
def test_a_planted_directory_in_a_spool_that_everybody_may_write_to_is_refused(old_site, name, plant):
    site = old_site
    ours = site.directory(site.root / "ours")
    site.directory(site.world / "spool", 0o777)
    path = plant(site, site.world / "spool" / name)
    daemon = site.daemon(free_port(), MAILDROP_HOME=ours, MAILDROP_SPOOL=site.world / "spool")
    before = contents(site.precious), contents(path)
    result = daemon.try_start()
    assert result.returncode == 1
    assert f"Error: MAILDROP_SPOOL: {path} " in result.stderr
    assert (contents(site.precious), contents(path)) == before


def test_an_administrators_link_that_leads_to_a_planted_directory_is_refused(old_site):
    site = old_site
    ours = site.directory(site.root / "ours", 0o755)
    plant_directory(site, site.world / "spool")
    (ours / "spool").symlink_to(site.world / "spool")
    result = site.daemon(free_port(), MAILDROP_HOME=ours).try_start()
    assert result.returncode == 1
    assert f"MAILDROP_HOME: {site.world / 'spool'} belongs to another account (41002)" in result.stderr
    assert os.listdir(site.world / "spool") == []


def test_a_planted_link_is_not_left_by_two_dots(old_site):
    site = old_site
    plant_link(site, site.world / "link")
    result = site.daemon(free_port(), MAILDROP_HOME=f"{site.world}/link/../maildrop").try_start()
    assert result.returncode == 1
    assert f"{site.world / 'link'} is a link" in result.stderr
    assert sorted(os.listdir(site.precious)) == ["directory", "file", "mail"]


def test_a_chain_of_links_without_end_ends_in_an_error(old_site):
    site = old_site
    ours = site.directory(site.root / "ours", 0o755)
    (ours / "a").symlink_to("b")
    (ours / "b").symlink_to("a")
    result = site.daemon(free_port(), MAILDROP_HOME=ours / "a").try_start()
    assert result.returncode == 1
    assert "MAILDROP_HOME" in result.stderr
    assert "Traceback" not in result.stderr


# -- the pid file: the daemon does not start --


def file_link(site, path):
    site.link(path, site.precious / "file")


def dangling_file_link(site, path):
    site.link(path, site.precious / "new")


def second_name(site, path):
    os.link(site.precious / "file", path)    # as root, since most systems do not let mallory do it


def fifo(site, path):
    os.mkfifo(path, 0o666)
    MALLORY.own(path).chmod(0o666)


def mallorys_file(site, path):
    path.write_text("4711\n")
    MALLORY.own(path).chmod(0o666)


def device_link(site, path):
    site.link(path, "/dev/zero")


FILES = {
    "a link to a file of ours": file_link,
    "a dangling link": dangling_file_link,
    "a second name of a file of ours": second_name,
    "a FIFO": fifo,
    "a file of mallory's": mallorys_file,
    "a link to a device": device_link,
}


@pytest.mark.parametrize("plant", FILES.values(), ids=FILES)
def test_a_planted_pid_file_is_refused(site, plant):
    ours = site.directory(site.root / "ours")
    pid_file = site.world / "maildrop.pid"
    plant(site, pid_file)
    daemon = site.daemon(free_port(), MAILDROP_HOME=ours, MAILDROP_PID_FILE=pid_file)
    before = contents(site.precious), contents(site.world)
    result = daemon.try_start()
    assert result.returncode == 1
    assert str(pid_file) in result.stderr
    assert "Traceback" not in result.stderr
    assert (contents(site.precious), contents(site.world)) == before


@pytest.mark.parametrize("victim", [VICTIM, ROOT], ids=["another account", "root"])
def test_a_pid_file_of_mallorys_makes_nobody_end_another_process(site, victim):
    """She holds it locked, with the number of a process of the caller's."""
    ours = site.directory(site.root / "ours", 0o755)
    pid_file = site.world / "maildrop.pid"
    target = subprocess.Popen(["sleep", "600"], user=victim.uid, group=victim.uid, extra_groups=[])
    try:
        pid_file.write_text(f"{target.pid}\n")
        MALLORY.own(pid_file).chmod(0o644)
        values = {"PYTHON": python_for_all(), "MAILDROP_HOME": ours, "MAILDROP_PID_FILE": pid_file}
        config = write_config(site.root / "config", MAILDROP_DATA_TIMEOUT=0.01, **values)
        with pid_file.open() as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            result = victim.run(site.scripts / "stop_maildrop", config)
        assert result.returncode == 1
        assert f"process {target.pid} belongs to another account" in result.stderr
        assert target.poll() is None
        assert process_runs(target.pid)
    finally:
        target.kill()
        target.wait()


# -- the log: the daemon serves and does not write there --


@pytest.mark.parametrize("plant", FILES.values(), ids=FILES)
def test_a_planted_log_is_not_written_to_and_mail_is_sent(site, plant):
    ours = site.directory(site.root / "ours")
    log = site.world / "maildrop.log"
    plant(site, log)
    with RelayServer() as relay:
        daemon = site.daemon(relay.port, MAILDROP_HOME=ours, MAILDROP_LOG_FILE=log)
        before = contents(site.precious), contents(site.world)
        listening = os.open(log, os.O_RDONLY | os.O_NONBLOCK) if plant is fifo else None
        assert f"warning  permissions: {log}" in daemon.ctl("check", account=site.victim).stdout
        with daemon:
            site.victim.do(put_mail, daemon.spool)
            daemon.wait_until(lambda: relay.accepted and not daemon.waiting())
        if listening is not None:
            assert os.read(listening, 100) == b""
            os.close(listening)
    assert (contents(site.precious), contents(site.world)) == before


def put_mail(directory):
    draft = spool.Draft(directory / spool.new_name())
    draft.write("zoe@example.org", "ann@example.org", b"Subject: x\n\nbody\n")
    draft.release()


# -- what is in the spool: the daemon serves and does not touch it --


@pytest.mark.parametrize("plant", [plant_link, plant_dangling_link, plant_link_to_mallorys, plant_directory])
def test_no_fifo_is_made_in_a_planted_wake_directory_and_mail_is_sent(old_site, plant):
    site = old_site
    ours = site.directory(site.root / "ours")
    directory = site.directory(site.world / "spool", 0o777)
    path = plant(site, directory / "wake")
    with RelayServer() as relay:
        daemon = site.daemon(relay.port, MAILDROP_HOME=ours, MAILDROP_SPOOL=directory)
        before = contents(site.precious), contents(path)
        with daemon:
            site.victim.do(put_mail, directory)
            daemon.wait_until(lambda: relay.accepted)
    assert (contents(site.precious), contents(path)) == before


def mail_link(site, path):
    site.link(path, site.precious / "mail")


@pytest.mark.parametrize(
    "plant",
    [mail_link, file_link, second_name, device_link, fifo],
    ids=["a link to a mail", "a link to a file", "a second name of a file", "a link to a device", "a FIFO"],
)
@pytest.mark.parametrize("where", ["", "tmp/"], ids=["as a mail", "as a leftover"])
def test_what_is_planted_in_a_spool_is_not_sent_and_what_it_leads_to_is_not_touched(old_site, where, plant):
    site = old_site
    ours = site.directory(site.root / "ours")
    directory = site.directory(site.world / "spool", 0o777)
    site.directory(directory / "tmp", 0o777)
    name = spool.new_name()
    plant(site, directory / f"{where}{name}")
    with RelayServer() as relay:
        daemon = site.daemon(relay.port, MAILDROP_HOME=ours, MAILDROP_SPOOL=directory)
        before = contents(site.precious)
        with daemon:
            site.victim.do(put_mail, directory)
            daemon.wait_until(lambda: relay.accepted)
            daemon.wait_for_log("### Finished")
        assert len(relay.accepted) == 1
    assert contents(site.precious) == before


# -- Zope --


def send(config):
    host = MODULE.MaildropHost("MailHost")
    host.config_path = str(config)
    host._transactional = False
    host.send("body", mto="ann@example.org", mfrom="zoe@example.org", subject="private")


def read_log(config):
    host = MODULE.MaildropHost("MailHost")
    host.config_path = str(config)
    return host.getLog()


@pytest.fixture(scope="module", autouse=True)
def all_modules_are_loaded(tmp_path_factory):
    """Other accounts may not be able to read them."""
    send(write_config(tmp_path_factory.mktemp("zope") / "config", MAILDROP_HOME=tmp_path_factory.mktemp("home")))


@pytest.mark.parametrize("plant", PLANTED.values(), ids=PLANTED)
@pytest.mark.parametrize("name", ["maildrop", "maildrop/spool"], ids=["home", "spool"])
def test_zope_writes_no_mail_into_a_planted_directory(site, name, plant):
    if name != "maildrop":
        site.directory(site.home, 0o777)
    path = plant(site, site.world / name)
    if plant is not plant_dangling_link and name == "maildrop":
        site.directory(path / "spool", 0o777, owner=MALLORY)
    config = write_config(site.root / "config", MAILDROP_HOME=site.home)
    before = contents(site.precious), contents(path.resolve()) if path.exists() else None
    with pytest.raises(Exception, match=rf"The mail cannot be written to .*{path} (is a link|belongs to another account)"):
        site.victim.do(send, config)
    assert (contents(site.precious), contents(path.resolve()) if path.exists() else None) == before


@pytest.mark.parametrize("plant", [file_link, fifo, device_link])
def test_zope_does_not_show_a_planted_log(old_site, plant):
    site = old_site
    log = site.world / "maildrop.log"
    plant(site, log)
    config = write_config(site.root / "config", MAILDROP_HOME=site.home, MAILDROP_LOG_FILE=log)
    shown = site.victim.do(read_log, config)
    assert shown.startswith(f"{log} cannot be read: ")
    assert "4711" not in shown


# -- maildropctl --


@pytest.mark.parametrize("plant", PLANTED.values(), ids=PLANTED)
def test_maildropctl_makes_no_mails_in_a_planted_directory(old_site, plant):
    site = old_site
    path = plant(site, site.home)
    config = write_config(site.root / "config", PYTHON=python_for_all(), MAILDROP_HOME=site.home)
    before = contents(site.precious), contents(path.resolve()) if path.exists() else None
    result = site.victim.run(site.scripts / "maildropctl", "--config", config, "make-emails", "ann@example.org")
    assert result.returncode == 1
    assert str(path) in result.stderr
    assert (contents(site.precious), contents(path.resolve()) if path.exists() else None) == before


@pytest.mark.parametrize("plant", PLANTED.values(), ids=PLANTED)
def test_check_names_a_planted_directory(old_site, plant):
    site = old_site
    path = plant(site, site.home)
    config = write_config(site.root / "config", PYTHON=python_for_all(), MAILDROP_HOME=site.home, SMTP_PORT=free_port())
    before = contents(site.root)
    result = site.victim.run(site.scripts / "maildropctl", "--config", config, "check", PYTHONDONTWRITEBYTECODE="1")
    assert result.returncode == 1
    assert any(line.startswith(f"error    MAILDROP_HOME: {path} ") for line in result.stdout.splitlines()), result.stdout
    assert contents(site.root) == before


# -- root, in directories of an account that is not to be trusted --


@pytest.fixture
def account_site(root):
    """The home directory of an account; what is precious is root's, and so is the daemon."""
    site = Site(root, root / "world", root / "precious", ROOT)
    site.directory(site.world, 0o755, owner=MALLORY)
    fill_precious(site)
    return site


ROOT_PLACES = {
    "MAILDROP_HOME": ("maildrop", {}),
    "MAILDROP_SPOOL": ("spool", {"MAILDROP_SPOOL": "{world}/spool"}),
    "MAILDROP_VAR": ("var", {"MAILDROP_VAR": "{world}/var"}),
}


@pytest.mark.parametrize("place", ROOT_PLACES)
@pytest.mark.parametrize("plant", [plant_link, plant_dangling_link], ids=["a link", "a dangling link"])
@pytest.mark.parametrize("user", ["", "nobody"], ids=["root", "MAILDROP_USER"])
def test_root_follows_no_link_of_an_account(account_site, place, plant, user):
    site = account_site
    name, values = ROOT_PLACES[place]
    ours = site.directory(site.root / "ours", 0o755)
    values = {key: value.format(world=site.world) for key, value in values.items()}
    if place != "MAILDROP_HOME":
        values["MAILDROP_HOME"] = ours
    path = plant(site, site.world / name)
    before = contents(site.precious)
    result = site.daemon(free_port(), MAILDROP_USER=user, **values).try_start()
    assert result.returncode == 1
    assert f"Error: {place}: {path} is a link of another account" in result.stderr
    assert contents(site.precious) == before


@pytest.mark.parametrize("plant", [file_link, dangling_file_link, second_name, fifo], ids=list(FILES)[:4])
def test_root_writes_no_log_through_what_an_account_has_planted(account_site, plant):
    site = account_site
    ours = site.directory(site.root / "ours")
    log = site.world / "maildrop.log"
    plant(site, log)
    with RelayServer() as relay:
        daemon = site.daemon(relay.port, MAILDROP_HOME=ours, MAILDROP_LOG_FILE=log)
        before = contents(site.precious)
        with daemon:
            put_mail(daemon.spool)
            daemon.wait_until(lambda: relay.accepted and not daemon.waiting())
    assert contents(site.precious) == before


@pytest.mark.parametrize("kind", ["a link", "a second name"])
def test_root_ends_no_process_that_a_planted_pid_file_leads_to(account_site, kind):
    """The daemon's account puts something in the place of its pid file that leads to root's, and holds its lock."""
    site = account_site
    roots = site.precious / "root.pid"
    target = subprocess.Popen(["sleep", "600"])
    try:
        roots.write_text(f"{target.pid}\n")
        roots.chmod(0o644)
        pid_file = site.world / "maildrop.pid"
        if kind == "a link":
            site.link(pid_file, roots)
        else:
            os.link(roots, pid_file)
        values = {"PYTHON": python_for_all(), "MAILDROP_HOME": site.root / "ours", "MAILDROP_PID_FILE": pid_file}
        config = write_config(site.root / "config", MAILDROP_DATA_TIMEOUT=0.01, **values)
        with roots.open() as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            result = ROOT.run(site.scripts / "stop_maildrop", config)
        assert result.returncode == 1
        assert target.poll() is None
    finally:
        target.kill()
        target.wait()


@pytest.mark.parametrize("command", [("queue",), ("show", "failed/M", "--body"), ("delete", "--all", "--yes"), ("retry", "--all")])
def test_root_looks_after_no_mails_that_a_planted_directory_leads_to(account_site, command):
    site = account_site
    ours = site.directory(site.root / "ours")
    spool.make_spool(site.world / "spool", 0o700)
    (site.world / "spool" / "failed").rmdir()
    (site.precious / "M").write_bytes(MAIL)
    site.link(site.world / "spool" / "failed", site.precious)
    for path in (site.world / "spool", site.world / "spool" / "tmp"):
        MALLORY.own(path)
    config = write_config(
        site.root / "config", PYTHON=python_for_all(), MAILDROP_HOME=ours, MAILDROP_SPOOL=site.world / "spool"
    )
    before = contents(site.precious)
    result = ROOT.run(site.scripts / "maildropctl", "-c", config, *command)
    assert result.returncode == 1
    assert "is a link of another account" in result.stderr
    assert "private" not in result.stdout
    assert contents(site.precious) == before


def test_nothing_that_root_had_open_is_open_in_the_daemon(root):
    """Not even where root starts the daemon from a shell with a file of its own open."""
    nobody = Account(65534)
    site = Site(root, root / "world", root / "precious", ROOT)
    site.directory(site.world, 0o755, owner=nobody)
    fill_precious(site)
    (site.precious / "secret").write_text("x")
    with RelayServer() as relay:
        daemon = site.daemon(relay.port, MAILDROP_USER="nobody")
        start = f'exec 7<"{site.precious}/secret"; exec "{site.scripts}/start_maildrop" "{daemon.config}"'
        result = ROOT.run("/bin/sh", "-c", start)
        try:
            assert result.returncode == 0, result.stderr
            opened = [os.readlink(entry) for entry in Path(f"/proc/{daemon.pid}/fd").iterdir()]
            assert str(site.precious / "secret") not in opened
        finally:
            ROOT.run(site.scripts / "stop_maildrop", daemon.config)


def test_root_makes_nothing_in_directories_of_the_account_it_drops_to(root):
    """The account could put a link there at any time: it makes them itself, and has no rights where the link leads."""
    nobody = Account(65534)
    site = Site(root, root / "world", root / "precious", ROOT)
    site.directory(site.world, 0o755, owner=nobody)
    fill_precious(site)
    site.directory(site.home, 0o700, owner=nobody)
    (site.home / "spool").symlink_to(site.precious / "new")
    nobody.own(site.home / "spool")
    before = contents(site.precious)
    result = site.daemon(free_port(), MAILDROP_USER="nobody").try_start()
    assert result.returncode == 1
    assert "Permission denied" in result.stderr
    assert contents(site.precious) == before

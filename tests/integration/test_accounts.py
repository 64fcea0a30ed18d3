"""Zope and the daemon as two accounts of one group, a third account that has no business there, and MAILDROP_USER."""

from __future__ import annotations

import os
import pwd
import signal
import stat

import pytest
import transaction
from support.accounts import ROOT, Account, open_directory, python_for_all
from support.config_file import write_config
from support.daemon import MaildropDaemon, process_runs
from support.ports import free_port
from support.relay_server import RelayServer
from support.spooling import MODULE

from maildrop import spool

GROUP = 42000
ZOPE, DAEMON, THIRD = Account(42001, (GROUP,)), Account(42002, (GROUP,)), Account(42003)
NOBODY = pwd.getpwnam("nobody")
UNUSED = "no-such-account"
HOUR = 3600


@pytest.fixture(scope="module", autouse=True)
def zope_is_loaded(tmp_path_factory):
    """Other accounts may not be able to read its modules."""
    directory = tmp_path_factory.mktemp("zope")
    before = os.umask(0o077)
    send(write_config(directory / "config", MAILDROP_HOME=directory), 0o077)
    os.umask(before)


def send(config, umask, subject="x"):
    """What a request does that sends a mail."""
    os.umask(umask)
    host = MODULE.MaildropHost("MailHost")
    host.config_path = str(config)
    host.send("body", mto="ann@example.org", mfrom="zoe@example.org", subject=subject)
    transaction.commit()


@pytest.fixture
def relay():
    with RelayServer() as relay:
        yield relay


@pytest.fixture
def root():
    with open_directory() as directory:
        yield directory


@pytest.fixture(params=[0, 0o077], ids=["umask 0", "umask 077"])
def umask(request):
    before = os.umask(request.param)
    yield request.param
    os.umask(before)


@pytest.fixture
def site(root, relay, umask):
    """The daemon's account serves a home that is shared with the group, and looks at the spool only when it is woken."""
    home = root / "home"
    home.mkdir()
    os.chown(home, DAEMON.uid, GROUP)
    home.chmod(0o2770)
    daemon = MaildropDaemon(
        root,
        relay.port,
        account=DAEMON,
        scripts=root / "package" / "maildrop" / "bin",
        PYTHON=python_for_all(),
        MAILDROP_SPOOL_MODE="0660",
        MAILDROP_INTERVAL=HOUR,
        MAILDROP_RETRY=HOUR,
        MAILDROP_BOUNCE=1,
    )
    daemon.config.chmod(0o644)
    daemon.umask = umask
    return daemon


def zope_sends(site, **options):
    ZOPE.do(send, site.config, site.umask, **options)


def listening(site):
    return any(stat.S_ISFIFO(path.lstat().st_mode) for path in (site.spool / "wake").glob("*"))


def everything(site):
    return sorted([site.home, *site.home.rglob("*")])


def make_one_of_each(site, relay):
    """Mails that wait, that were put off and that have failed, a notice of that, log, pid file and FIFO."""
    site.wait_until(lambda: listening(site))
    relay.replies |= {"RCPT ann@example.org": "550 5.1.1 no such user", "RCPT zoe@example.org": "451 4.3.0 try later"}
    zope_sends(site, subject="fails")
    site.wait_for_log("FATAL:")
    site.wait_for_log("BAD:")    # the notice
    relay.replies["RCPT ann@example.org"] = "451 4.3.0 try later"
    zope_sends(site, subject="is put off")
    site.wait_until(lambda: is_quiet(site.read_log()))
    assert (len(names(site)), len(site.failed())) == (2, 1)


def is_quiet(log):
    return log.count("BAD:") == 2 and log.count("### Started") == log.count("### Finished")


def names(site):
    return [name for name in site.waiting() if not name.endswith(".lck")]


# -- two accounts of one group --


def test_a_mail_from_zopes_account_is_sent_at_once_by_the_daemons(site, relay):
    with site:
        site.wait_until(lambda: listening(site))
        zope_sends(site)
        site.wait_until(lambda: relay.accepted and not site.waiting())
    assert [mail.recipients for mail in relay.accepted] == [("ann@example.org",)]


def test_the_daemon_of_a_well_shared_home_has_nothing_to_warn_of(site, relay):
    with site:
        zope_sends(site)
        site.wait_until(lambda: relay.accepted)
        for account in (ZOPE, DAEMON):
            shown = site.ctl("check", account=account).stdout
            assert "permissions:" not in shown
            assert "error" not in shown
            assert f"ok       daemon: running as process {site.pid}\n" in shown


def test_what_either_account_makes_belongs_to_the_group_and_to_nobody_else(site, relay):
    with site:
        make_one_of_each(site, relay)
        kinds = {stat.S_IFDIR: 0o2770, stat.S_IFREG: 0o660, stat.S_IFIFO: 0o660}
        in_spool = sorted([site.spool, *site.spool.rglob("*")])
        found = {path: path.lstat() for path in in_spool}
        zopes = [path.relative_to(site.spool) for path, status in found.items() if status.st_uid == ZOPE.uid]
        assert {path.parts[0] for path in zopes} == {"writers"}
        assert {status.st_uid for status in found.values()} == {ZOPE.uid, DAEMON.uid}
        assert {path: (status.st_gid, oct(stat.S_IMODE(status.st_mode))) for path, status in found.items()} == {
            path: (GROUP, oct(kinds[stat.S_IFMT(status.st_mode)])) for path, status in found.items()
        }
        assert {path.name for path in in_spool if path.is_dir()} == {"spool", "failed", "tmp", "wake", "writers"}
        log = site.log_file.stat()
        assert (log.st_gid, stat.S_IMODE(log.st_mode)) == (GROUP, 0o640)
        assert stat.S_IMODE(site.log_file.parent.stat().st_mode) == 0o2770


def test_what_zope_has_just_written_belongs_to_the_group(site):
    site.configure(MAILDROP_TRIGGER=0)
    zope_sends(site)
    [name] = names(site)
    status = (site.spool / name).stat()
    assert (status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)) == (ZOPE.uid, GROUP, 0o660)
    assert stat.S_IMODE(site.spool.stat().st_mode) == 0o2770


@pytest.mark.parametrize("account", [ZOPE, DAEMON], ids=["zope", "daemon"])
@pytest.mark.parametrize("state", ["put off", "failed"])
def test_either_account_retries_mails(site, relay, account, state):
    with site:
        make_one_of_each(site, relay)
        name = next(iter(sorted(names(site)))) if state == "put off" else f"failed/{site.failed()[0].name}"
        relay.replies.clear()
        before = len(relay.accepted)
        result = site.ctl("retry", name, account=account)
        assert (result.returncode, result.stderr) == (0, "")
        site.wait_until(lambda: len(relay.accepted) > before)
        site.wait_until(lambda: not (site.spool / name).exists())


@pytest.mark.parametrize("account", [ZOPE, DAEMON], ids=["zope", "daemon"])
@pytest.mark.parametrize("state", ["put off", "failed", "just written"])
def test_either_account_deletes_mails(site, relay, account, state):
    if state == "just written":
        zope_sends(site)
        path = site.spool / names(site)[0]
        result = site.ctl("delete", "--yes", path.name, account=account)
    else:
        with site:
            make_one_of_each(site, relay)
            path = site.spool / names(site)[0] if state == "put off" else site.failed()[0]
            result = site.ctl("delete", "--yes", path.name, account=account)
    assert (result.returncode, result.stderr) == (0, "")
    assert not path.exists()
    assert relay.accepted == []


def test_zopes_account_cannot_stop_the_daemon_and_is_told_why(site):
    with site:
        result = site.ctl("stop", account=ZOPE)
        assert (result.returncode, "belongs to another account" in result.stderr) == (1, True)
        assert process_runs(site.pid)


# -- a third account --


def outcomes(paths, directories):
    """What an account may do with each of these paths; nothing, if all is well."""
    done = []
    for path in paths:
        for what, flags in (("read", os.O_RDONLY), ("written", os.O_WRONLY), ("both", os.O_RDWR), ("found", os.O_PATH)):
            try:
                os.close(os.open(path, flags | os.O_NONBLOCK))
                done.append((str(path), what))
            except PermissionError:
                pass
        for action in (os.unlink, os.readlink, os.listdir, os.utime, lambda path: os.rename(path, f"{path}.x")):
            try:
                action(path)
                done.append((str(path), "changed"))
            except PermissionError:
                pass
    for directory in directories:
        for name, make in (("file", lambda path: open(path, "x").close()), ("dir", os.mkdir), ("fifo", os.mkfifo)):
            try:
                make(os.path.join(directory, name))
                done.append((directory, f"made {name}"))
            except PermissionError:
                pass
    return done


def test_a_third_account_can_neither_read_nor_write(site, relay):
    with site:
        make_one_of_each(site, relay)
        inside = [path for path in everything(site) if path != site.home]
        before = everything(site)
        assert len(inside) >= 10
        assert THIRD.do(outcomes, inside, [site.home, *(path for path in inside if path.is_dir())]) == []
        with pytest.raises(PermissionError):
            THIRD.do(os.listdir, site.home)
        for command in (["retry", names(site)[0]], ["delete", names(site)[0]], ["make-emails", "ann@example.org"], ["stop"]):
            assert site.ctl(*command, account=THIRD).returncode == 1
        with pytest.raises(Exception, match="cannot be written"):
            THIRD.do(send, site.config, 0)
        assert everything(site) == before
        assert process_runs(site.pid)


def test_with_the_modes_as_shipped_the_group_has_no_access_either(root, relay, umask):
    home = root / "home"
    home.mkdir()
    os.chown(home, DAEMON.uid, GROUP)
    home.chmod(0o755)
    site = MaildropDaemon(
        root, relay.port, account=DAEMON, scripts=root / "package" / "maildrop" / "bin", PYTHON=python_for_all()
    )
    site.config.chmod(0o644)
    with site:
        DAEMON.do(send, site.config, umask)
        site.wait_until(lambda: relay.accepted)
        relay.replies["RCPT"] = "451 4.3.0 try later"
        DAEMON.do(send, site.config, umask)
        site.wait_for_log("BAD:")
        inside = [path for path in everything(site) if path != home]
        for account in (ZOPE, THIRD):
            directories = [path for path in inside if path.is_dir()]
            assert account.do(outcomes, [path for path in inside if path.parent != home], directories) == []


# -- MAILDROP_USER --


@pytest.fixture
def user_site(root, relay):
    """Root starts the daemon, which serves as nobody. There is no home yet, and only root can make one."""
    directory = root / "srv"
    directory.mkdir()
    return MaildropDaemon(
        root,
        relay.port,
        scripts=root / "package" / "maildrop" / "bin",
        PYTHON=python_for_all(),
        MAILDROP_HOME=directory / "deep" / "home",
        MAILDROP_USER="nobody",
    )


def ids_of(pid):
    """Real, effective, saved and file system ids of a process, of user and group, and its other groups."""
    with open(f"/proc/{pid}/status") as status:
        lines = dict(line.rstrip("\n").split(":\t", 1) for line in status if ":\t" in line)
    return tuple([int(number) for number in lines[key].split()] for key in ("Uid", "Gid", "Groups"))


def test_a_daemon_that_root_starts_is_the_named_account_for_good(user_site, relay):
    with user_site:
        uids, gids, groups = ids_of(user_site.pid)
        assert uids == [NOBODY.pw_uid] * 4
        assert gids == [NOBODY.pw_gid] * 4
        assert set(groups) == set(os.getgrouplist("nobody", NOBODY.pw_gid))
        Account(NOBODY.pw_uid).do(send, user_site.config, 0o022)
        user_site.wait_until(lambda: relay.accepted)
        user_site.wait_for_log("OK\t")
        found = [user_site.home.parent, *everything(user_site)]
        assert {(path.lstat().st_uid, path.lstat().st_gid) for path in found} == {(NOBODY.pw_uid, NOBODY.pw_gid)}
        assert {oct(path.lstat().st_mode & 0o7777) for path in found if path.is_dir()} == {"0o700"}


def test_root_stops_a_daemon_that_serves_as_another_account(user_site):
    with user_site:
        pid = user_site.pid
        result = user_site.stop()
        assert (result.returncode, result.stderr) == (0, "")
        assert not process_runs(pid)


def test_root_stops_a_daemon_of_its_own_after_maildrop_user_was_set(user_site):
    user_site.configure(MAILDROP_USER="")
    with user_site:
        pid = user_site.pid
        assert ids_of(pid)[0] == [0] * 4
        user_site.configure(MAILDROP_USER="nobody")
        assert user_site.stop().returncode == 0
        assert not process_runs(pid)


def test_maildropctl_start_and_restart_drop_to_the_account_too(user_site):
    with user_site:
        assert user_site.ctl("restart").returncode == 0
        assert ids_of(user_site.pid)[0] == [NOBODY.pw_uid] * 4


def test_home_and_names_in_the_environment_are_the_accounts(root, user_site):
    code = (
        "import os, sys; from pathlib import Path; from maildrop import account, settings\n"
        "account.become(settings.load(sys.argv[1]))\n"
        "print(*(os.environ[name] for name in ('HOME', 'USER', 'LOGNAME')), os.getuid())"
    )
    result = ROOT.run(python_for_all(), "-c", code, user_site.config, PYTHONPATH=str(root / "package"), HOME="/root", USER="root")
    assert (result.stdout, result.stderr) == (f"{NOBODY.pw_dir} nobody nobody {NOBODY.pw_uid}\n", "")


def test_a_package_that_the_account_cannot_read_is_an_error(root, user_site):
    (root / "package" / "maildrop").chmod(0o700)
    result = user_site.try_start()
    assert (result.returncode, "that account cannot read" in result.stderr) == (1, True)


def test_the_password_file_is_read_as_the_account(root, user_site):
    password = root / "password"
    password.write_text("s3cret\n")
    password.chmod(0o600)
    user_site.configure(MAILDROP_LOGIN="joe", MAILDROP_PASSWORD_FILE=password)
    result = user_site.try_start()
    assert (result.returncode, f"MAILDROP_PASSWORD_FILE='{password}': Permission denied" in result.stderr) == (1, True)
    Account(NOBODY.pw_uid).own(password)
    with user_site:
        assert process_runs(user_site.pid)


def test_a_check_by_root_tells_what_the_account_may_do(root, user_site):
    shown = user_site.ctl("check")
    assert shown.returncode == 0
    assert "ok       MAILDROP_USER: nobody\n" in shown.stdout
    assert f"ok       MAILDROP_HOME: {user_site.home / 'spool'} will be made\n" in shown.stdout
    assert not user_site.home.parent.exists()
    user_site.home.mkdir(parents=True)
    shown = user_site.ctl("check")
    assert shown.returncode == 0    # root can still make what is in it
    (user_site.home / "spool").mkdir()
    shown = user_site.ctl("check")
    problem = f"this account may not write to {user_site.home / 'spool'}"
    assert (shown.returncode, f"error    MAILDROP_HOME: {user_site.home / 'spool'}: {problem}" in shown.stdout) == (1, True)


def test_a_check_by_another_account_says_whose_view_it_is(user_site):
    shown = user_site.ctl("check", account=THIRD)
    assert 'warning  MAILDROP_USER="nobody": only root and that account can start the daemon; what follows' in shown.stdout
    assert f"is what account {THIRD.uid} may do" in shown.stdout


def test_what_root_does_to_the_spool_it_does_as_the_account(user_site, relay):
    relay.replies["RCPT"] = "451 4.3.0 try later"
    with user_site:
        assert user_site.ctl("make-emails", "--locked", 0, "--unlocked", 1, "ann@example.org").returncode == 0
        user_site.wait_for_log("BAD:")
        [name] = names(user_site)
        relay.replies.clear()
        assert user_site.ctl("retry", name).returncode == 0
        user_site.wait_until(lambda: relay.accepted)
        assert {path.lstat().st_uid for path in everything(user_site)} == {NOBODY.pw_uid}


def test_the_account_itself_starts_the_daemon_as_well(root, user_site):
    (root / "srv").chmod(0o777)
    user_site._account = Account(NOBODY.pw_uid)
    with user_site:
        assert ids_of(user_site.pid)[0] == [NOBODY.pw_uid] * 4


def test_another_account_is_told_who_may_start_the_daemon(user_site):
    user_site._account = DAEMON
    result = user_site.try_start()
    assert result.returncode == 1
    assert 'Error: MAILDROP_USER="nobody": only root and that account can start the daemon' in result.stderr
    assert not user_site.home.exists()


def test_an_unknown_account_is_an_error_that_names_the_key(user_site):
    user_site.configure(MAILDROP_USER=UNUSED)
    result = user_site.try_start()
    assert (result.returncode, f'Error: MAILDROP_USER="{UNUSED}": there is no such account' in result.stderr) == (1, True)
    assert not user_site.home.exists()


def test_a_config_that_only_root_can_read_serves_and_is_not_read_again(user_site, relay):
    user_site.config.chmod(0o600)
    result = user_site.try_start()
    assert (result.returncode, "cannot be read by this account" in result.stderr) == (0, True)
    try:
        user_site.signal(signal.SIGHUP)
        user_site.wait_for_log("config not reloaded, the old one stays: ")
        assert f"{user_site.config}: cannot be read: Permission denied; the daemon serves as nobody" in user_site.read_log()
        Account(NOBODY.pw_uid).do(put_mail, user_site.spool)
        user_site.wait_until(lambda: relay.accepted)
    finally:
        assert user_site.stop().returncode == 0


def put_mail(directory):
    draft = spool.Draft(directory / spool.new_name())
    draft.write("zoe@example.org", "ann@example.org", b"Subject: x\n\nbody\n")
    draft.release()


def test_another_account_takes_a_restart(user_site):
    with user_site:
        user_site.configure(MAILDROP_USER="")
        user_site.signal(signal.SIGHUP)
        user_site.wait_for_log("MAILDROP_USER has changed, which takes a restart")


def test_a_pid_file_where_the_account_may_not_write_is_an_error(root, user_site):
    user_site.configure(MAILDROP_PID_FILE=root / "maildrop.pid")
    result = user_site.try_start()
    assert (result.returncode, str(root / "maildrop.pid") in result.stderr) == (1, True)
    assert not (root / "maildrop.pid").exists()


def test_the_daemon_says_at_start_what_others_could_read(root):
    site = MaildropDaemon(
        root,
        free_port(),
        account=ROOT,
        scripts=root / "package" / "maildrop" / "bin",
        PYTHON=python_for_all(),
        MAILDROP_LOGIN="joe",
        MAILDROP_PASSWORD="s3cret",
    )
    site.config.chmod(0o644)
    result = site.try_start()
    try:
        assert result.returncode == 0
        assert f"Warning: {site.config} holds a login and can be read by every account of this machine" in result.stderr
        assert "s3cret" not in result.stderr
    finally:
        site.stop()

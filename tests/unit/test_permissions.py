"""What is said of modes and owners; nothing is changed for it."""

import os
import shutil
import stat
import tempfile
from pathlib import Path

import pytest
from support.accounts import Account
from support.config_file import write_config
from support.requires import requires_root

from maildrop import permissions, settings


@pytest.fixture
def home():
    """A home that all accounts can get to; pytest's own directories are closed to them."""
    directory = Path(tempfile.mkdtemp(prefix="maildrop-permissions-"))
    directory.chmod(0o755)
    home = directory / "home"
    home.mkdir()
    home.chmod(0o755)
    yield home
    shutil.rmtree(directory)


def make(home, mode=0o600, **values):
    """The config file and its settings, and the directories that the daemon makes for them."""
    config = write_config(home.parent / "config", MAILDROP_HOME=home, MAILDROP_SPOOL_MODE=f"{mode:04o}", **values)
    config.chmod(0o600)
    found = settings.load(config)
    permissions.make_directories(found)
    return config, found


def warnings(config, found):
    return permissions.warnings(config, found)


def test_what_the_daemon_makes_itself_gives_no_warning(home):
    assert warnings(*make(home)) == []


def test_what_the_daemon_makes_for_a_group_gives_no_warning(home):
    assert warnings(*make(home, 0o660)) == []


# -- the config file --


@pytest.mark.parametrize("key", ["MAILDROP_PASSWORD", "MAILDROP_LOGIN"])
def test_a_config_with_a_login_that_others_can_read_is_named_without_its_secret(home, key):
    config, found = make(home, **{key: "s3cret"})
    config.chmod(0o644)
    [warning] = warnings(config, found)
    assert warning == f"{config} holds a login and can be read by every account of this machine: chmod o-r {config}"


@pytest.mark.parametrize("mode", [0o600, 0o640])
def test_a_config_with_a_login_that_a_group_can_read_is_fine(home, mode):
    config, found = make(home, MAILDROP_LOGIN="joe", MAILDROP_PASSWORD="s3cret")
    config.chmod(mode)
    assert warnings(config, found) == []


def test_a_config_without_a_login_may_be_read_by_all(home):
    config, found = make(home)
    config.chmod(0o644)
    assert warnings(config, found) == []


def test_a_config_in_a_directory_that_others_cannot_get_into_is_not_readable_by_them(home):
    directory = home.parent / "closed"
    directory.mkdir(0o700)
    _, found = make(home, MAILDROP_PASSWORD="s3cret")
    config = write_config(directory / "config", MAILDROP_HOME=home)
    config.chmod(0o666)
    assert warnings(config, found) == []


def test_a_config_that_others_can_write_is_named(home):
    config, found = make(home)
    config.chmod(0o602)
    assert warnings(config, found) == [f"{config} can be written by every account of this machine: chmod o-w {config}"]


def test_a_config_of_another_account_is_named_where_root_is_to_start_the_daemon(home):
    requires_root()
    config, found = make(home, MAILDROP_USER="nobody")
    assert warnings(config, found) == []
    os.chown(config, 12345, 0)
    [warning] = warnings(config, found)
    runs = "root runs what it says when it starts the daemon"
    assert warning == f"{config} belongs to account 12345, and {runs}: chown root {config}"


@pytest.mark.parametrize(("mode", "can"), [(0o644, "read"), (0o600, None), (0o640, None)])
def test_a_password_file_that_others_can_read_is_named(home, mode, can):
    password = home.parent / "password"
    password.write_text("s3cret\n")
    password.chmod(mode)
    told = warnings(*make(home, MAILDROP_LOGIN="joe", MAILDROP_PASSWORD_FILE=password))
    wanted = [f"{password} can be {can} by every account of this machine: chmod o-rwx {password}"]
    assert told == (wanted if can else [])


# -- directories and log --


@pytest.mark.parametrize("where", ["spool", "spool/failed", "spool/tmp", "var"])
@pytest.mark.parametrize(
    ("mode", "can"), [(0o777, "read and written"), (0o705, "read"), (0o703, "written"), (0o1777, "read and written")]
)
def test_what_2_3_left_open_is_named_and_left_as_it_is(home, where, mode, can):
    made = make(home)
    path = home / where
    if os.geteuid() == 0:
        os.chown(home / "var", 12345, -1)    # one of root's may be the system's, which all may read
    path.parent.chmod(0o711)
    path.chmod(mode)
    told = warnings(*made)
    assert f"{path} can be {can} by every account of this machine: chmod o-rwx {path}" in told
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_directory_that_others_can_only_get_through_is_fine(home):
    made = make(home)
    (home / "spool").chmod(0o711)
    assert warnings(*made) == []


def test_a_var_of_roots_may_be_read_by_all(home):
    requires_root()
    made = make(home)
    (home / "var").chmod(0o755)
    assert warnings(*made) == []


@pytest.mark.parametrize("where", ["home", ".."])
def test_a_directory_above_the_spool_that_others_can_write_is_named(home, where):
    made = make(home)
    path = home if where == "home" else home.parent
    path.chmod(0o777)
    told = warnings(*made)
    assert (
        f"{path} can be written by every account of this machine, which can replace {home / 'spool'} (MAILDROP_HOME): "
        f"chmod o-w {path}" in told
    )
    path.chmod(0o1777)
    assert not any("replace" in line for line in warnings(*made))


@pytest.mark.parametrize(("mode", "can"), [(0o644, "read"), (0o666, "read and written")])
def test_a_log_that_others_can_read_or_write_is_named(home, mode, can):
    made = make(home)
    (home / "var").chmod(0o755)
    log = home / "var" / "maildrop.log"
    log.write_text("")
    log.chmod(mode)
    assert f"{log} can be {can} by every account of this machine: chmod o-rwx {log}" in warnings(*made)


def test_a_log_that_cannot_be_written_is_named(home):
    made = make(home)
    (home / "var" / "maildrop.log").mkdir()
    assert f"{home / 'var' / 'maildrop.log'}: the log cannot be written: Is a directory" in warnings(*made)


def test_the_key_of_a_place_is_the_one_that_the_file_has(tmp_path):
    config = write_config(
        tmp_path / "config",
        MAILDROP_HOME="/h",
        MAILDROP_SPOOL="/h/a;/b",
        MAILDROP_LOG_FILE="/log/x",
        MAILDROP_PID_FILE="/run/x",
    )
    assert {str(path): key for path, key in permissions.places(settings.load(config)).items()} == {
        "/h/a": "MAILDROP_HOME",
        "/h/var": "MAILDROP_HOME",
        "/b": "MAILDROP_SPOOL",
        "/log": "MAILDROP_LOG_FILE",
        "/run": "MAILDROP_PID_FILE",
    }


# -- a group --


@pytest.mark.parametrize(
    ("mode", "says"),
    [
        (0o700, "may not write there: chmod g+rwxs"),
        (0o2750, "may not write there: chmod g+rwxs"),
        (0o770, "may get another group: chmod g+s"),
        (0o3770, "sticky bit"),
    ],
)
@pytest.mark.parametrize("where", ["spool", "spool/failed", "spool/tmp"])
def test_a_directory_that_cannot_be_shared_with_the_group_is_named(home, where, mode, says):
    made = make(home, 0o660)
    path = home / where
    path.chmod(mode)
    told = [line for line in warnings(*made) if line.startswith(f"{path}: MAILDROP_SPOOL_MODE shares it")]
    assert len(told) == 1
    assert says in told[0]


def test_a_home_that_the_group_cannot_get_through_is_named(home):
    made = make(home, 0o660)
    home.chmod(0o700)
    [told] = warnings(*made)
    assert told.startswith(f"{home}: MAILDROP_SPOOL_MODE shares {home / 'spool'} with group ")


def test_an_account_outside_the_group_is_told(home):
    requires_root()
    made = make(home, 0o660)
    for path in (home / "spool", home / "spool" / "failed", home / "spool" / "tmp"):
        os.chown(path, 12345, 23456)
        path.chmod(0o2770)
    said = "but this account does not belong to that group"
    assert any(said in line for line in Account(12345).do(permissions.warnings, *made))
    assert not any(said in line for line in Account(12345, (23456,)).do(permissions.warnings, *made))


def test_a_daemon_of_roots_with_a_spool_of_another_account_is_told_of_maildrop_user(home):
    requires_root()
    made = make(home)
    os.chown(home / "spool", 12345, -1)
    [told] = warnings(*made)
    assert told == (
        f"{home / 'spool'} belongs to account 12345, and the daemon runs as root: name that account in MAILDROP_USER"
    )


def test_a_missing_place_gives_no_warning(tmp_path):
    config = write_config(tmp_path / "config", MAILDROP_HOME=tmp_path / "missing")
    config.chmod(0o600)
    assert permissions.warnings(config, settings.load(config)) == []
    assert os.listdir(tmp_path) == ["config"]


def test_a_directory_that_cannot_be_made_is_an_error_with_its_key(tmp_path):
    (tmp_path / "file").write_text("")
    config = write_config(tmp_path / "config", MAILDROP_HOME=tmp_path, MAILDROP_VAR=tmp_path / "file")
    with pytest.raises(settings.SettingsError, match=rf"^MAILDROP_HOME: .*{tmp_path / 'file'}"):
        permissions.make_directories(settings.load(config))

"""The MaildropHost's own names: settings, config paths, mails, log."""

import os
import pickle
import shutil

import pytest
import transaction
from AccessControl import Unauthorized
from AccessControl.Permissions import change_configuration
from AccessControl.SecurityManagement import newSecurityManager, noSecurityManager
from AccessControl.ZopeGuards import guarded_getattr
from AccessControl.users import nobody, system
from Products.MailHost.interfaces import IMailHost
from Products.MailHost.MailHost import MailHost
from support.config_file import SHIPPED, write_config
from support.spooling import MODULE, files_in, make_host, read_mails
from zope.interface.verify import verifyObject

MaildropHost = MODULE.MaildropHost


@pytest.fixture(autouse=True)
def clean_choices(monkeypatch):
    monkeypatch.setattr(MODULE, "CONFIG_PATHS", dict(MODULE.CONFIG_PATHS))
    transaction.abort()
    yield
    transaction.abort()


def test_it_is_a_mailhost_under_its_old_dotted_name():
    host = MaildropHost()
    assert isinstance(host, MailHost)
    assert verifyObject(IMailHost, host)
    assert MaildropHost.meta_type == "Maildrop Host"
    assert f"{MaildropHost.__module__}.{MaildropHost.__name__}" == "Products.MaildropHost.MaildropHost.MaildropHost"
    assert (host.id, host.title, host.isTransactional()) == ("", "Maildrop Host", True)


def test_the_packages_names_are_those_of_2_3():
    import Products.MaildropHost as package

    assert package.MaildropHost is MaildropHost
    assert package.manage_addMaildropHost is MODULE.manage_addMaildropHost
    assert MODULE.CONFIG_PATHS["DEFAULT"] == MODULE.DEFAULT_CONFIG_PATH == str(SHIPPED)


# -- settings --


def test_attributes_show_the_settings_of_the_config_file(tmp_path):
    host = make_host(
        tmp_path, SMTP_HOST="mail.example.org", SMTP_PORT=2525, DEBUG=1, DEBUG_RECEIVER="dev@example.org",
        MAILDROP_INTERVAL=30, MAILDROP_TLS=2, MAILDROP_LOGIN="site", MAILDROP_PASSWORD="secret", ADD_MESSAGEID=1,
        MAILDROP_LOG_FILE="/var/log/maildrop.log",
    )
    assert (host.smtp_host, host.smtp_port, host.debug) == ("mail.example.org", 2525, "On")
    assert (host.debug_receiver, host.polling, host.use_tls) == ("dev@example.org", 30, "Forced")
    assert (host.login, host.password, host.add_messageid) == ("site", "******", "On")
    assert (host.spool, host.maildrop_log_file) == (str(tmp_path / "spool"), "/var/log/maildrop.log")


def test_attributes_of_an_unset_setting_say_so(tmp_path):
    host = make_host(tmp_path)
    assert (host.debug, host.debug_receiver, host.use_tls) == ("Off", "(not set)", "No")
    assert (host.login, host.password, host.add_messageid) == ("(not set)", "(not set)", "Off")
    assert host.maildrop_log_file == str(tmp_path / "var" / "maildrop.log")


def test_tls_if_offered_reads_yes_and_the_first_of_several_spools_is_shown(tmp_path):
    host = make_host(tmp_path, MAILDROP_TLS=1, MAILDROP_SPOOL=f"{tmp_path}/a;{tmp_path}/b")
    assert (host.use_tls, host.spool) == ("Yes", f"{tmp_path}/a")


def test_a_changed_config_file_shows_without_a_restart_and_nothing_is_stored(tmp_path):
    host = make_host(tmp_path, SMTP_HOST="old.example.org")
    before = dict(host.__dict__)
    assert host.smtp_host == "old.example.org"
    write_config(tmp_path / "config", MAILDROP_HOME=tmp_path, SMTP_HOST="new.example.org")
    assert host.smtp_host == "new.example.org"
    assert host.__dict__ == before


def test_assigning_to_a_setting_changes_nothing(tmp_path):
    host = make_host(tmp_path, SMTP_HOST="mail.example.org")
    host.smtp_host = ""
    assert host.smtp_host == "mail.example.org"
    assert "smtp_host" not in host.__dict__


def test_a_login_that_is_assigned_to_the_object_as_to_a_stock_one_is_not_kept(tmp_path):
    host = make_host(tmp_path)
    host.smtp_uid, host.smtp_pwd, host.smtp_queue = "jo", "guess-me", False
    assert (host.smtp_uid, host.smtp_pwd, host.smtp_queue) == ("", "", True)
    assert "guess-me" not in host.__dict__.values()


def test_settings_that_2_3_stored_are_ignored_and_dropped_at_the_next_save(tmp_path):
    host = make_host(tmp_path, SMTP_HOST="mail.example.org")
    state = {**host.__getstate__(), "smtp_host": "stale", "spool": "/gone", "_debug_receiver": "old@example.org"}
    loaded = MaildropHost.__new__(MaildropHost)
    loaded.__setstate__(state)
    assert (loaded.smtp_host, loaded.spool) == ("mail.example.org", str(tmp_path / "spool"))
    assert not {"smtp_host", "spool"} & set(loaded.__getstate__())
    assert loaded.getConfigPath() == host.getConfigPath()


def test_it_survives_pickling(tmp_path):
    host = make_host(tmp_path)
    again = pickle.loads(pickle.dumps(host))
    assert again.getConfigPath() == str(tmp_path / "config")


def test_a_vanished_config_file_gives_way_to_the_default_one(tmp_path):
    host = make_host(tmp_path, SMTP_HOST="mail.example.org")
    (tmp_path / "config").unlink()
    assert host.smtp_host == "localhost"
    assert str(tmp_path / "config") in host.getConfigProblem()
    assert host.getConfigPath() == str(tmp_path / "config")


def test_a_wrong_config_file_gives_way_to_the_default_one_and_its_page_says_why(tmp_path):
    host = make_host(tmp_path, SMTP_HOST="mail.example.org")
    (tmp_path / "config").write_text('SMTP_HOST="x"\nSMTP_PORT=oops\n')
    assert host.smtp_host == "localhost"
    assert "line 2: SMTP_PORT" in host.getConfigProblem()


def test_without_any_readable_config_file_the_pages_work_and_sending_is_an_error(tmp_path, monkeypatch):
    host = make_host(tmp_path)
    (tmp_path / "config").unlink()
    monkeypatch.setattr(MODULE, "DEFAULT_CONFIG_PATH", str(tmp_path / "none"))
    assert host.smtp_host == "localhost"
    with pytest.raises(MODULE.MaildropHostError, match="none: cannot be read"):
        host.send("Hello", mto="ann@example.org", mfrom="zoe@example.org")


def test_load_config_reads_the_file_again(tmp_path):
    host = make_host(tmp_path, SMTP_HOST="aaa.example.org")
    assert host.smtp_host == "aaa.example.org"
    status = os.stat(tmp_path / "config")
    write_config(tmp_path / "config", MAILDROP_HOME=tmp_path, SMTP_HOST="bbb.example.org")
    os.utime(tmp_path / "config", ns=(status.st_atime_ns, status.st_mtime_ns))
    host._load_config()
    assert host.smtp_host == "bbb.example.org"


# -- choosing a config file --


def test_the_config_path_is_chosen_by_key_and_stored_as_a_path(tmp_path):
    host = MaildropHost("MailHost")
    assert host.getConfigPath() == MODULE.DEFAULT_CONFIG_PATH
    path = str(write_config(tmp_path / "mine", SMTP_HOST="mine.example.org"))
    host.addConfigPath("config-path-1", path)
    assert ("config-path-1", path) in host.getCandidateConfigPaths()
    assert host.getCandidateConfigPaths() == tuple(sorted(MODULE.CONFIG_PATHS.items()))
    host.setConfigPath("config-path-1")
    assert host.config_path == host.getConfigPath() == path
    assert host.smtp_host == "mine.example.org"


@pytest.mark.parametrize("key", ["no such key", "", None, "/etc/passwd"])
def test_an_unknown_key_is_a_value_error(key):
    host = MaildropHost("MailHost")
    with pytest.raises(ValueError):
        host.setConfigPath(key)
    assert host.getConfigPath() == MODULE.DEFAULT_CONFIG_PATH


def test_a_path_is_no_key(tmp_path):
    host = MaildropHost("MailHost")
    with pytest.raises(ValueError):
        host.setConfigPath(MODULE.DEFAULT_CONFIG_PATH)


def test_a_missing_file_is_a_value_error_and_the_old_one_stays(tmp_path):
    host = make_host(tmp_path)
    host.addConfigPath("gone", str(tmp_path / "gone"))
    with pytest.raises(ValueError, match="gone"):
        host.setConfigPath("gone")
    assert host.getConfigPath() == str(tmp_path / "config")


@pytest.mark.parametrize("key", ["SMTP_HOST", "SMTP_PORT", "MAILDROP_INTERVAL", "MAILDROP_HOME", "MAILDROP_TLS"])
def test_a_file_that_lacks_a_required_setting_is_a_runtime_error(tmp_path, key):
    host = make_host(tmp_path)
    lines = [line for line in SHIPPED.read_text().splitlines() if not line.startswith(f"{key}=")]
    (tmp_path / "poor").write_text("\n".join(lines))
    host.addConfigPath("poor", str(tmp_path / "poor"))
    with pytest.raises(RuntimeError, match=key):
        host.setConfigPath("poor")
    assert host.getConfigPath() == str(tmp_path / "config")


def test_a_file_with_a_wrong_line_is_a_value_error_that_names_it(tmp_path):
    host = make_host(tmp_path)
    (tmp_path / "wrong").write_text(SHIPPED.read_text() + "import os\n")
    host.addConfigPath("wrong", str(tmp_path / "wrong"))
    with pytest.raises(ValueError, match="line"):
        host.setConfigPath("wrong")
    assert host.getConfigPath() == str(tmp_path / "config")


def test_manage_make_changes_sets_title_mode_and_config_path_and_ignores_the_rest(tmp_path):
    host = make_host(tmp_path)
    host.manage_makeChanges("New", transactional=True, path_key="DEFAULT", smtp_host="elsewhere", submit="x")
    assert (host.title, host.isTransactional(), host.getConfigPath()) == ("New", True, MODULE.DEFAULT_CONFIG_PATH)
    host.manage_makeChanges("Newer")
    assert (host.title, host.isTransactional(), host.getConfigPath()) == ("Newer", False, MODULE.DEFAULT_CONFIG_PATH)
    with pytest.raises(ValueError):
        host.manage_makeChanges("Newest", path_key="nowhere")
    assert host.title == "Newer"


@pytest.mark.parametrize(
    "name",
    ["getConfigPath", "setConfigPath", "addConfigPath", "getCandidateConfigPaths", "manage_makeChanges",
     "isTransactional", "getLog", "manage_main", "manage_log", "queueLength", "manage_queue", "manage_mail",
     "manage_confirmDelete", "manage_retryMails", "manage_deleteMails", "manage_releaseMails", "manage_settleOrphans"],
)
def test_what_tells_or_changes_the_configuration_is_protected(name):
    assert getattr(MaildropHost, f"{name}__roles__").__name__ == change_configuration


def test_the_tabs_are_ours_and_then_mailhosts():
    labels = [tab["label"] for tab in MaildropHost.manage_options]
    assert labels[:3] == ["Edit", "Queue", "Maildrop Log"] and "Security" in labels[3:]


# -- mails --


def test_an_email_joins_its_recipients_and_drops_line_breaks(tmp_path):
    to = ['"Root" <root@example.org>\r\n', '"Post" <post@example.org>']
    email = MODULE.Email("Zoe\r\n <zoe@example.org>\n", to, "body", str(tmp_path / "1"))
    assert email.m_to == '"Root" <root@example.org>,"Post" <post@example.org>'
    assert (email.m_from, email.body, email._tempfile) == ("Zoe <zoe@example.org>", "body", str(tmp_path / "1"))
    assert MODULE.Email("a", "one@example.org,\rtwo@example.org", "b", "c").m_to == "one@example.org,two@example.org"


def test_an_email_is_in_the_spool_when_send_returns(tmp_path):
    path = MODULE._makeTempPath(str(tmp_path))
    email = MODULE.Email("zoe@example.org", "ann@example.org", "Subject: hi\n\nHello\n", path)
    email.send()
    assert files_in(tmp_path) == [os.path.basename(path)]
    assert email._tempfile == path
    assert read_mails(tmp_path) == [("zoe@example.org", ("ann@example.org",), b"Subject: hi\n\nHello\n")]


def test_bytes_and_text_reach_the_spool_as_they_are(tmp_path):
    for number, body in enumerate(["Subject: \u20ac\n\n\u20ac", b"Subject: x\r\n\r\n\xff\xfe\r\n.\r\n"]):
        MODULE.Email("zoe@example.org", "ann@example.org", body, str(tmp_path / f"{number}")).send()
    assert [message for _, _, message in read_mails(tmp_path)] == [
        "Subject: \u20ac\n\n\u20ac".encode(), b"Subject: x\r\n\r\n\xff\xfe\r\n.\r\n",
    ]


def test_a_message_that_begins_with_hashes_stays_a_message(tmp_path):
    MODULE.Email("zoe@example.org", "ann@example.org", "##From:evil@example.org\n\nx", str(tmp_path / "1")).send()
    assert read_mails(tmp_path) == [("zoe@example.org", ("ann@example.org",), b"##From:evil@example.org\n\nx")]


def test_an_email_never_overwrites_a_file(tmp_path):
    (tmp_path / "1").write_text("precious")
    with pytest.raises(FileExistsError):
        MODULE.Email("zoe@example.org", "ann@example.org", "x", str(tmp_path / "1")).send()
    assert (tmp_path / "1").read_text() == "precious"
    assert files_in(tmp_path) == ["1"]


def test_the_debug_receiver_gets_all_mail_and_the_header_fields_stay(tmp_path):
    host = make_host(tmp_path, transactional=False, DEBUG_RECEIVER="dev@example.org, qa@example.org")
    host.send("Hello", mto="ann@example.org", mfrom="zoe@example.org", subject="x")
    (sender, recipients, message), = read_mails(tmp_path / "spool")
    assert (sender, recipients) == ("zoe@example.org", ("dev@example.org", "qa@example.org"))
    assert b"To: ann@example.org" in message


def test_mails_are_private_to_the_account_whatever_the_umask(tmp_path):
    old = os.umask(0)
    try:
        make_host(tmp_path, transactional=False).send("x", mto="ann@example.org", mfrom="zoe@example.org")
    finally:
        os.umask(old)
    mail, = (tmp_path / "spool").iterdir()
    assert mail.stat().st_mode & 0o777 == 0o600
    assert (tmp_path / "spool").stat().st_mode & 0o777 == 0o700


def test_mails_can_be_shared_with_a_group_whatever_the_umask(tmp_path):
    old = os.umask(0o077)
    try:
        host = make_host(tmp_path, transactional=False, MAILDROP_SPOOL_MODE=0o660)
        host.send("x", mto="ann@example.org", mfrom="zoe@example.org")
    finally:
        os.umask(old)
    mail, = (tmp_path / "spool").iterdir()
    assert mail.stat().st_mode & 0o777 == 0o660
    assert (tmp_path / "spool").stat().st_mode & 0o7777 == 0o2770


def test_a_spool_that_cannot_be_written_is_a_mailhost_error(tmp_path):
    host = make_host(tmp_path, MAILDROP_SPOOL=str(tmp_path / "config" / "spool"))
    with pytest.raises(MODULE.MaildropHostError, match="cannot be written"):
        host.send("x", mto="ann@example.org", mfrom="zoe@example.org")


@pytest.mark.parametrize("transactional", [True, False])
def test_zopes_log_says_once_that_a_spool_cannot_be_written_and_again_after_it_could(tmp_path, caplog, transactional):
    def fail(directory):
        with pytest.raises(MODULE.MaildropHostError, match=f"cannot be written to {directory}"):
            host.send("x", mto="ann@example.org", mfrom="zoe@example.org")

    caplog.set_level("INFO", "MaildropHost")
    spool, other = tmp_path / "spool", tmp_path / "other"
    host = make_host(tmp_path, transactional=transactional)
    for _ in range(2):
        spool.write_text("in its place")
        for _ in range(3):
            fail(spool)
        spool.unlink()
        for _ in range(3):
            host.send("x", mto="ann@example.org", mfrom="zoe@example.org")
        transaction.abort()
        shutil.rmtree(spool)
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"] * 2
    assert str(spool) in caplog.text and "Not a directory" in caplog.text
    for path in (spool, other):    # one spool's trouble is not another's
        path.write_text("in its place")
        write_config(tmp_path / "config", MAILDROP_HOME=tmp_path, MAILDROP_SPOOL=path)
        fail(path)
        fail(path)
    assert [record.levelname for record in caplog.records] == ["ERROR", "INFO"] * 2 + ["ERROR"] * 2
    assert str(other) in caplog.text


# -- log and queue --


def test_the_log_is_empty_text_where_there_is_none(tmp_path):
    assert make_host(tmp_path).getLog() == ""


def test_the_log_shows_its_newest_bytes_in_whole_lines(tmp_path):
    host = make_host(tmp_path)
    (tmp_path / "var").mkdir()
    lines = [f"line {number:05} \u20ac\n" for number in range(10000)]
    (tmp_path / "var" / "maildrop.log").write_text("".join(lines))
    log = host.getLog()
    assert log.endswith(lines[-1])
    assert log.startswith("line ")
    assert 49_900 < len(log.encode()) <= 50_000
    assert host.getLog(max_bytes=20) == lines[-1]
    assert host.getLog(10**9) == "".join(lines)


def test_a_log_that_is_not_utf8_is_shown_all_the_same(tmp_path):
    host = make_host(tmp_path)
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "maildrop.log").write_bytes(b"OK\t caf\xe9@example.org\n")
    assert host.getLog() == "OK\t caf\ufffd@example.org\n"


def test_what_other_software_asks_of_a_queue_is_answered_for_the_spool(tmp_path):
    host = make_host(tmp_path)
    assert (host.queueLength(), host.queueThreadAlive(), host.smtp_queue) == (0, False, True)
    host.send("x", mto="ann@example.org", mfrom="zoe@example.org")
    assert host.queueLength() == 1
    with pytest.raises(MODULE.MaildropHostError):
        host.manage_restartQueueThread()


# -- what becomes of the settings when the file goes wrong --


@pytest.mark.parametrize("happens", ["wrong", "poor", "gone", "a directory"])
def test_a_file_that_goes_wrong_while_zope_runs_leaves_the_settings_it_had(tmp_path, happens):
    host = make_host(tmp_path, transactional=False, SMTP_HOST="mail.example.org")
    assert (host.smtp_host, host.getConfigProblem()) == ("mail.example.org", "")
    config = tmp_path / "config"
    if happens in ("gone", "a directory"):
        config.unlink()
    if happens == "a directory":
        config.mkdir()
    if happens in ("wrong", "poor"):
        config.write_text('SMTP_HOST="x"\nSMTP_PORT=oops\n' if happens == "wrong" else 'SMTP_HOST="x"\n')
    for _ in range(2):
        assert (host.smtp_host, host.spool) == ("mail.example.org", str(tmp_path / "spool"))
        assert str(config) in host.getConfigProblem()
    host.send("x", mto="ann@example.org", mfrom="zoe@example.org")
    assert len(read_mails(tmp_path / "spool")) == 1


def test_a_file_that_is_mended_is_used_again(tmp_path):
    host = make_host(tmp_path, SMTP_HOST="old.example.org")
    assert host.smtp_host == "old.example.org"
    (tmp_path / "config").write_text("SMTP_PORT=oops\n")
    assert host.smtp_host == "old.example.org"
    write_config(tmp_path / "config", MAILDROP_HOME=tmp_path, SMTP_HOST="new.example.org")
    assert (host.smtp_host, host.getConfigProblem()) == ("new.example.org", "")


def test_a_wrong_file_is_read_and_told_once_and_not_for_each_setting(tmp_path, monkeypatch, caplog):
    host = make_host(tmp_path)
    (tmp_path / "config").write_text("SMTP_PORT=oops\n")
    read = []
    load = MODULE.maildrop_settings.load
    monkeypatch.setattr(MODULE.maildrop_settings, "load", lambda path: (read.append(str(path)), load(path))[1])
    for _ in range(5):
        host.smtp_host, host.spool, host.getConfigProblem()
    assert read.count(str(tmp_path / "config")) == 1
    assert len([record for record in caplog.records if "cannot be used" in record.getMessage()]) == 1


def test_the_last_good_settings_of_one_file_are_not_those_of_another(tmp_path):
    good = make_host(tmp_path / "good", SMTP_HOST="good.example.org")
    bad = make_host(tmp_path / "bad")
    (tmp_path / "bad" / "config").write_text("SMTP_PORT=oops\n")
    assert (good.smtp_host, bad.smtp_host) == ("good.example.org", "localhost")


def test_several_relays_are_shown_as_the_file_has_them(tmp_path):
    host = make_host(tmp_path, SMTP_HOST="a.example.org; b.example.org")
    assert host.smtp_host == "a.example.org;b.example.org"


# -- who may see what --


@pytest.fixture
def anybody():
    """As in a Script that an anonymous visitor runs."""
    newSecurityManager(None, nobody)
    yield
    noSecurityManager()


def test_a_script_of_anybody_sees_the_relay_and_no_other_setting(tmp_path, anybody):
    host = make_host(tmp_path, SMTP_HOST="mail.example.org", SMTP_PORT=2525)
    assert guarded_getattr(host, "smtp_host") == "mail.example.org"
    assert guarded_getattr(host, "smtp_port") == 2525
    assert guarded_getattr(host, "smtp_queue") is True
    shown = [name for name, value in vars(MaildropHost).items() if isinstance(value, MODULE._Setting)]
    for name in {"config_path", *shown} - {"smtp_host", "smtp_port", "smtp_queue"}:
        with pytest.raises(Unauthorized):
            guarded_getattr(host, name)


def test_a_manager_may_see_the_config_path(tmp_path):
    host = make_host(tmp_path)
    newSecurityManager(None, system)
    try:
        assert guarded_getattr(host, "config_path") == str(tmp_path / "config")
        assert guarded_getattr(host, "login") == "(not set)"
    finally:
        noSecurityManager()


# -- a mail is sent once --


@pytest.mark.parametrize("kind", ["Email", "TransactionalEmail"])
def test_sending_a_mail_twice_is_an_error_and_makes_no_second_mail(tmp_path, kind):
    email = getattr(MODULE, kind)("zoe@example.org", "ann@example.org", "Subject: x\n\nx", str(tmp_path / "1"))
    email.send()
    with pytest.raises(ValueError, match="sent already"):
        email.send()
    transaction.commit()
    assert read_mails(tmp_path) == [("zoe@example.org", ("ann@example.org",), b"Subject: x\n\nx")]
    with pytest.raises(ValueError, match="sent already"):
        email.send()
    assert files_in(tmp_path) == ["1"]


def test_a_mail_that_could_not_be_written_can_be_sent_again(tmp_path):
    email = MODULE.Email("zoe@example.org", "ann@example.org", "Subject: x\n\nx", str(tmp_path / "spool" / "1"))
    with pytest.raises(FileNotFoundError):
        email.send()
    (tmp_path / "spool").mkdir()
    email.send()
    assert read_mails(tmp_path / "spool") == [("zoe@example.org", ("ann@example.org",), b"Subject: x\n\nx")]


# -- a log that cannot be read --


def test_a_log_that_cannot_be_read_says_so_in_its_place(tmp_path, monkeypatch):
    host = make_host(tmp_path)
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "maildrop.log").write_text("secret\n")

    def refuse(path, mode):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(MODULE, "open", refuse, raising=False)
    assert host.getLog() == f"{tmp_path / 'var' / 'maildrop.log'} cannot be read: Permission denied"


@pytest.mark.parametrize(
    ("kind", "shown"),
    [("directory", "no regular file"), ("fifo", "no regular file"), ("device", "no regular file"), ("dangling link", "")],
)
def test_what_is_no_log_file_is_not_read(tmp_path, kind, shown):
    log = tmp_path / "var" / "maildrop.log"
    log.parent.mkdir()
    if kind == "directory":
        log.mkdir()
    elif kind == "fifo":
        os.mkfifo(log)
    else:
        log.symlink_to("/dev/zero" if kind == "device" else "nowhere")
    assert make_host(tmp_path).getLog() == (f"{log} cannot be read: {shown}" if shown else "")


@pytest.mark.parametrize("max_bytes", [0, -5, "20"])
def test_any_number_of_bytes_may_be_asked_of_the_log(tmp_path, max_bytes):
    host = make_host(tmp_path)
    (tmp_path / "var").mkdir()
    (tmp_path / "var" / "maildrop.log").write_text("first line\nsecond line\n")
    assert host.getLog(max_bytes) in ("", "second line\n")


def test_a_spool_that_cannot_be_listed_is_told_in_place_of_its_length(tmp_path):
    host = make_host(tmp_path)
    (tmp_path / "spool").write_text("no directory")
    assert host.queueLength() == "n/a - the spool cannot be read: Not a directory"

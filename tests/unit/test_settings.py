import dataclasses
import os
import re
import shutil
import subprocess
import sys
import traceback
from pathlib import Path

import pytest
from support.config_file import SHIPPED, write_config

from maildrop import policy, settings, spool
from maildrop.assignments import parse_assignments
from maildrop.settings import KEYS, MissingSettings, Settings, SettingsError

# What every file has to say; /srv, as tmp_path is where a spool should not be.
REQUIRED = """\
MAILDROP_HOME="/srv/maildrop"
SMTP_HOST="mail.example.org"
SMTP_PORT=25
MAILDROP_INTERVAL=120
MAILDROP_TLS=0
"""
REQUIRED_LINES = REQUIRED.count("\n")


def load(tmp_path, text="", required=REQUIRED):
    """Settings of a file with these bytes behind the required keys, the first of them on line 6."""
    path = tmp_path / "config"
    path.write_bytes(required.encode() + (text if isinstance(text, bytes) else text.encode()))
    return settings.load(path)


def error_of(tmp_path, text, **options):
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, text, **options)
    return str(caught.value)


def line_warnings(found):
    """Without those about the spool's place, which depend on the machine."""
    return [warning for warning in found.warnings if warning.startswith("line ")]


# -- the shipped file --


def keys_in(text):
    return re.findall(r"(?m)^(?:# )?([A-Z_]+)=", text)


def test_the_shipped_config_has_every_key_exactly_once_and_no_other():
    assert sorted(keys_in(SHIPPED.read_text())) == sorted(KEYS)


def test_every_key_is_a_field_of_the_settings_and_every_field_has_a_key():
    fields = [field.name for field in dataclasses.fields(Settings) if field.name != "warnings"]
    assert sorted(key.field for key in KEYS.values()) == sorted(fields)


def test_the_shipped_values_are_the_defaults():
    safe = {"tls_verify": True, "auth_clear": False}    # a file of 2.3 goes on as before
    assert dataclasses.replace(settings.load(SHIPPED), warnings=()) == dataclasses.replace(settings.defaults(), **safe)


def test_the_shipped_values_in_comments_can_be_used(tmp_path):
    found = load(tmp_path, re.sub(r"(?m)^# ([A-Z_]+=)", r"\1", SHIPPED.read_text()), required="")
    assert found.log_file == Path("/var/log/maildrop/maildrop.log")
    assert found.spools == settings.defaults().spools
    assert found.var == settings.defaults().var


def test_the_shipped_file_is_found_where_the_package_lies():
    assert settings.shipped_config().samefile(SHIPPED)


def test_a_copied_package_finds_the_config_beside_it_and_rather_the_one_inside(tmp_path):
    shutil.copytree(Path(settings.__file__).parent, tmp_path / "maildrop", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-c", "from maildrop.settings import shipped_config; print(shipped_config())"]

    def told():
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout.strip()

    assert told() == str(tmp_path / "config")
    (tmp_path / "maildrop" / "config").write_text(REQUIRED)
    assert told() == str(tmp_path / "maildrop" / "config")


def test_sh_reads_the_shipped_file_as_python_does():
    assignments = parse_assignments(SHIPPED.read_text())
    told = "".join(f'; printf "%s\\n" "${found.name}"' for found in assignments)
    result = subprocess.run(["sh", "-c", f'. "$0"{told}', SHIPPED], capture_output=True, text=True, check=True)
    expected = [found.value if isinstance(found.value, str) else found.source for found in assignments]
    assert result.stdout.split("\n") == [*expected, ""]
    assert result.stderr == ""


def test_the_shipped_spool_under_tmp_is_warned_of():
    (warning,) = settings.load(SHIPPED).warnings
    assert warning.startswith("/tmp/maildrop/spool does not survive a restart")


# -- values --


def test_a_file_with_the_required_keys_only_gets_the_default_of_every_other_key(tmp_path):
    expected = dataclasses.replace(
        settings.defaults(),
        home=Path("/srv/maildrop"),
        spools=(Path("/srv/maildrop/spool"),),
        var=Path("/srv/maildrop/var"),
        pid_file=Path("/srv/maildrop/var/maildrop.pid"),
        log_file=Path("/srv/maildrop/var/maildrop.log"),
        smtp_hosts=("mail.example.org",),
    )
    assert dataclasses.replace(load(tmp_path), warnings=()) == expected


@pytest.mark.parametrize(
    ("line", "field", "value"),
    [
        ('PYTHON="/opt/python/bin/python"', "python", "/opt/python/bin/python"),
        ('MAILDROP_HOME="/var/maildrop"', "home", Path("/var/maildrop")),
        ('MAILDROP_SPOOL="/var/spool/maildrop"', "spools", (Path("/var/spool/maildrop"),)),
        ('MAILDROP_VAR="/var/lib/maildrop"', "var", Path("/var/lib/maildrop")),
        ('MAILDROP_PID_FILE="/run/m.pid"', "pid_file", Path("/run/m.pid")),
        ('MAILDROP_LOG_FILE="/var/log/m.log"', "log_file", Path("/var/log/m.log")),
        ('SMTP_HOST=" relay.example.org "', "smtp_hosts", ("relay.example.org",)),
        ('SMTP_HOST="b.example.org; a.example.org ;;b;"', "smtp_hosts", ("b.example.org", "a.example.org", "b")),
        ('SMTP_HOST="::1"', "smtp_hosts", ("::1",)),
        ("SMTP_PORT=65535", "smtp_port", 65535),
        ('SMTP_PORT="587"', "smtp_port", 587),
        ("MAILDROP_INTERVAL=0.5", "interval_s", 0.5),
        ('MAILDROP_INTERVAL="30"', "interval_s", 30.0),
        ("DEBUG=1", "debug", True),
        ("DEBUG=True", "debug", True),
        ('DEBUG="1"', "debug", True),
        ("DEBUG=2", "debug", True),
        ("DEBUG=False", "debug", False),
        ('DEBUG="0"', "debug", False),
        ('DEBUG_RECEIVER="a@example.org, b@example.org"', "debug_receiver", "a@example.org, b@example.org"),
        ("MAILDROP_BATCH=100", "batch", 100),
        ("MAILDROP_TLS=2", "tls", 2),
        ("MAILDROP_TLS=3", "tls", 3),
        ("MAILDROP_TLS_VERIFY=1", "tls_verify", True),
        ('MAILDROP_TLS_CAFILE="/etc/ca.pem"', "tls_cafile", Path("/etc/ca.pem")),
        ('MAILDROP_TLS_CAFILE=""', "tls_cafile", None),
        ('MAILDROP_TLS_CERTFILE="/etc/our.pem"', "tls_certfile", Path("/etc/our.pem")),
        ('MAILDROP_PASSWORD_FILE="/etc/pw"', "password_file", Path("/etc/pw")),
        ("MAILDROP_PASSWORD_COMMAND=\"token 'a b' c\"", "password_command", ("token", "a b", "c")),
        ('MAILDROP_PASSWORD_COMMAND=""', "password_command", ()),
        ('MAILDROP_AUTH=""', "auth", ""),
        ("MAILDROP_AUTH_CLEAR=0", "auth_clear", False),
        ('MAILDROP_LOGIN="zope"', "login", "zope"),
        ('MAILDROP_PASSWORD=" blanks count "', "password", " blanks count "),
        ("WAIT_INTERVAL=0.25", "wait_s", 0.25),
        ("WAIT_INTERVAL=0", "wait_s", 0.0),
        ("ADD_MESSAGEID=1", "add_messageid", True),
        ("SUPERVISED_DAEMON=1", "supervised", True),
        ("MAILDROP_RETRY=600", "retry_s", 600.0),
        ("MAILDROP_RETRY=0", "retry_s", 0.0),
        ("MAILDROP_MAX_AGE=86400", "max_age_s", 86400.0),
        ("MAILDROP_MAX_AGE=0", "max_age_s", 0.0),
        ("MAILDROP_BOUNCE=1", "bounce", True),
        ("MAILDROP_BOUNCE=False", "bounce", False),
        ("MAILDROP_FSYNC=0", "fsync", False),
        ('MAILDROP_FSYNC="1"', "fsync", True),
        ("MAILDROP_TIMEOUT=5", "timeout_s", 5.0),
        ("MAILDROP_DATA_TIMEOUT=1200", "data_timeout_s", 1200.0),
        ('MAILDROP_HELO="zope.example.org"', "helo", "zope.example.org"),
        ("MAILDROP_SPOOL_MODE=0640", "spool_mode", 0o640),
        ("MAILDROP_SPOOL_MODE=0o660", "spool_mode", 0o660),
        ('MAILDROP_SPOOL_MODE="0660"', "spool_mode", 0o660),
    ],
)
def test_a_value_is_checked_and_turned_into_the_type_of_its_field(tmp_path, line, field, value):
    found = getattr(load(tmp_path, line), field)
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize(
    ("key", "literal"),
    [
        ("PYTHON", "3"),
        ("PYTHON", r'"two\nlines"'),
        ("PYTHON", r'"nul\x00"'),
        ("MAILDROP_HOME", '"relative/path"'),
        ("MAILDROP_HOME", '"~/maildrop"'),
        ("MAILDROP_HOME", '"  "'),
        ("MAILDROP_HOME", "5"),
        ("MAILDROP_SPOOL", '"/var/spool/a;relative"'),
        ("MAILDROP_SPOOL", '";"'),
        ("MAILDROP_SPOOL", "True"),
        ("MAILDROP_VAR", '"var"'),
        ("MAILDROP_PID_FILE", '"maildrop.pid"'),
        ("MAILDROP_LOG_FILE", "1"),
        ("SMTP_HOST", '" "'),
        ("SMTP_HOST", "127"),
        ("SMTP_HOST", '" ; "'),
        ("SMTP_HOST", '"a.example.org b.example.org"'),
        ("SMTP_HOST", '"a.example.org;b .example.org"'),
        ("SMTP_PORT", "0"),
        ("SMTP_PORT", "65536"),
        ("SMTP_PORT", "25.5"),
        ("SMTP_PORT", '"smtp"'),
        ("MAILDROP_INTERVAL", "0"),
        ("MAILDROP_INTERVAL", "1e10"),
        ("MAILDROP_INTERVAL", '"nan"'),
        ("MAILDROP_INTERVAL", '"inf"'),
        ("MAILDROP_INTERVAL", '"1m"'),
        ("DEBUG", '"yes"'),
        ("DEBUG", "0.5"),
        ("DEBUG_RECEIVER", "0"),
        ("MAILDROP_BATCH", "1.5"),
        ("MAILDROP_BATCH", '"all"'),
        ("MAILDROP_TLS", "4"),
        ("MAILDROP_TLS_CAFILE", '"ca.pem"'),
        ("MAILDROP_AUTH", '"gssapi"'),
        ("MAILDROP_LOGIN", "7"),
        ("WAIT_INTERVAL", '"-1"'),
        ("ADD_MESSAGEID", '"-1"'),
        ("MAILDROP_RETRY", '"-1"'),
        ("MAILDROP_MAX_AGE", '"-1"'),
        ("MAILDROP_MAX_AGE", '"5d"'),
        ("MAILDROP_BOUNCE", '"yes"'),
        ("MAILDROP_FSYNC", "0.5"),
        ("MAILDROP_TIMEOUT", "0"),
        ("MAILDROP_DATA_TIMEOUT", "0.0"),
        ("MAILDROP_HELO", "1"),
        ("MAILDROP_SPOOL_MODE", "0666"),
        ("MAILDROP_SPOOL_MODE", "600"),
        ("MAILDROP_SPOOL_MODE", '"0680"'),
        ("MAILDROP_SPOOL_MODE", '"rw"'),
    ],
)
def test_a_wrong_value_is_an_error_that_names_file_line_key_and_value(tmp_path, key, literal):
    (value,) = [found.value for found in parse_assignments(f"{key}={literal}")]
    message = error_of(tmp_path, f"\n{key}={literal}\n")
    assert message.startswith(f"{tmp_path / 'config'}: line {REQUIRED_LINES + 2}: {key}={value!r}: has to be ")


@pytest.mark.parametrize("key", ["SMTP_HOST", "SMTP_PORT", "MAILDROP_INTERVAL"])
@pytest.mark.parametrize(
    "literal",
    [
        pytest.param("1" + "0" * 400, id="more than a float holds"),
        pytest.param("9" * 5000, id="more digits than Python reads"),
        pytest.param("0x" + "f" * 5000, id="more digits than Python writes"),
    ],
)
def test_an_enormous_number_is_an_error_like_any_other(tmp_path, key, literal):
    with pytest.raises(SettingsError, match=key):
        load(tmp_path, f"{key}={literal}\n")


@pytest.mark.parametrize(
    "line",
    [
        "MAILDROP_PASSWORD=4711",
        r'MAILDROP_PASSWORD="4711\n"',
        "MAILDROP_PASSWORD=4711x",
        'MAILDROP_PASSWORD="4711',
        'MAILDROP_PASSWORD="47" 4711"',
    ],
)
def test_no_error_tells_the_password(tmp_path, line):
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, line)
    assert f"line {REQUIRED_LINES + 1}" in str(caught.value)
    assert "4711" not in "".join(traceback.format_exception(caught.value)).replace(str(tmp_path), "")


def test_the_password_is_not_in_the_text_of_the_settings(tmp_path):
    found = load(tmp_path, 'MAILDROP_LOGIN="zope"\nMAILDROP_PASSWORD="4711$"\nMAILDROP_PASWORD="4711"\n')
    assert found.password == "4711$"
    assert "login='zope'" in repr(found)
    assert "4711" not in repr(found)
    assert "4711" not in str(found)


def test_the_digest_is_the_same_for_the_same_settings_whatever_the_file_looks_like(tmp_path):
    digest = settings.load(write_config(tmp_path / "config")).digest
    other = tmp_path / "other"
    other.write_text((tmp_path / "config").read_text() + "# a comment\nNO_SUCH_KEY=1\n")
    assert settings.load(other).digest == digest


@pytest.mark.parametrize("key", [key for key in KEYS.values() if not key.secret], ids=lambda key: key.name)
def test_any_other_setting_makes_another_digest(key):
    before = settings.defaults()
    assert dataclasses.replace(before, **{key.field: "another"}).digest != before.digest


def test_the_digest_gives_nobody_a_password_to_guess():
    before = settings.defaults()
    assert dataclasses.replace(before, password="geheim", password_command=("print", "geheim")).digest == before.digest


def test_settings_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.defaults().tls = 2


def test_the_last_assignment_of_a_key_counts_as_in_sh(tmp_path):
    assert load(tmp_path, "SMTP_PORT=26\nSMTP_PORT=27\n").smtp_port == 27


def test_a_wrong_value_that_a_later_line_replaces_does_not_matter(tmp_path):
    assert load(tmp_path, "SMTP_PORT=0\nSMTP_PORT=27\n").smtp_port == 27


def test_a_later_none_unsets_what_was_set_before(tmp_path):
    assert load(tmp_path, "MAILDROP_BATCH=5\nMAILDROP_BATCH=None\n").batch == 0


@pytest.mark.parametrize("key", [key.name for key in KEYS.values() if not key.required])
def test_none_unsets_a_key(tmp_path, key):
    assert dataclasses.replace(load(tmp_path, f"{key}=None"), warnings=()) == dataclasses.replace(
        load(tmp_path), warnings=()
    )


@pytest.mark.parametrize(
    "key", [key.name for key in KEYS.values() if not key.required and not isinstance(key.default, str)]
)
def test_an_empty_string_unsets_a_key_that_is_no_plain_text(tmp_path, key):
    found = load(tmp_path, f'{key}=""')
    assert getattr(found, KEYS[key].field) == getattr(load(tmp_path), KEYS[key].field)


def test_an_empty_string_is_a_text(tmp_path):
    assert load(tmp_path, 'PYTHON=""').python == ""


def test_the_helo_name_may_be_empty_again(tmp_path):
    assert load(tmp_path, 'MAILDROP_HELO="a.example.org"\nMAILDROP_HELO=""').helo == ""


def test_no_warning_tells_the_password(tmp_path):
    try:
        found = load(tmp_path, 'MAILDROP_PASSWORD="my" hunter2="x"\n')
    except SettingsError as error:
        assert "hunter2" not in str(error)
    else:
        assert "hunter2" not in " ".join(found.warnings)


# -- TLS and login --


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ('MAILDROP_PASSWORD="hunter2"\nMAILDROP_PASSWORD_FILE="/x"', ["MAILDROP_PASSWORD and MAILDROP_PASSWORD_FILE"]),
        ('MAILDROP_PASSWORD_COMMAND="a"\nMAILDROP_PASSWORD_FILE="/x"', ["MAILDROP_PASSWORD_COMMAND", "only one"]),
        ('MAILDROP_AUTH="xoauth2"', ["MAILDROP_AUTH", "MAILDROP_LOGIN"]),
        ('MAILDROP_AUTH="xoauth2"\nMAILDROP_LOGIN="me"', ["MAILDROP_AUTH", "MAILDROP_PASSWORD"]),
        ('MAILDROP_TLS_KEYFILE="/x"', ["MAILDROP_TLS_KEYFILE", "MAILDROP_TLS_CERTFILE"]),
    ],
)
def test_keys_that_contradict_each_other_are_an_error_that_names_them(tmp_path, text, named):
    error = error_of(tmp_path, text)
    assert all(name in error for name in [str(tmp_path), *named]), error
    assert "hunter2" not in error


def test_a_command_with_an_open_quote_is_an_error_that_does_not_repeat_it(tmp_path):
    error = error_of(tmp_path, "MAILDROP_PASSWORD_COMMAND=\"print 'hunter2\"")
    assert "line 6: MAILDROP_PASSWORD_COMMAND" in error
    assert "hunter2" not in error


def test_the_password_may_come_from_a_file_or_a_command(tmp_path):
    assert not load(tmp_path).has_password
    for text in ('MAILDROP_PASSWORD="x"', 'MAILDROP_PASSWORD_FILE="/x"', 'MAILDROP_PASSWORD_COMMAND="x"'):
        assert load(tmp_path, text).has_password


@pytest.mark.parametrize(
    ("text", "begin"),
    [
        ("MAILDROP_TLS=2", "MAILDROP_TLS_VERIFY is missing"),
        ("MAILDROP_TLS=3", "MAILDROP_TLS_VERIFY is missing"),
        ('MAILDROP_LOGIN="me"\nMAILDROP_PASSWORD="hunter2"', "MAILDROP_AUTH_CLEAR is missing"),
        ('MAILDROP_LOGIN="me"', "MAILDROP_LOGIN is set and no password is"),
        ("MAILDROP_TLS=2\nMAILDROP_TLS_VERIFY=1\nSMTP_PORT=465", "SMTP_PORT=465"),
    ],
)
def test_what_is_unsafe_or_unlikely_gets_a_warning(tmp_path, text, begin):
    warnings = [warning for warning in load(tmp_path, text).warnings if not warning.startswith("/srv")]
    assert len(warnings) == 1
    assert warnings[0].startswith(begin)


@pytest.mark.parametrize(
    "text",
    [
        "MAILDROP_TLS=1",
        "MAILDROP_TLS=2\nMAILDROP_TLS_VERIFY=1",
        "MAILDROP_TLS=2\nMAILDROP_TLS_VERIFY=0",
        "MAILDROP_TLS=3\nMAILDROP_TLS_VERIFY=1\nSMTP_PORT=465",
        'MAILDROP_LOGIN="me"\nMAILDROP_PASSWORD="x"\nMAILDROP_AUTH_CLEAR=0',
        'MAILDROP_LOGIN="me"\nMAILDROP_PASSWORD="x"\nMAILDROP_TLS=2\nMAILDROP_TLS_VERIFY=1',
    ],
)
def test_what_somebody_decided_gets_none(tmp_path, text):
    assert [warning for warning in load(tmp_path, text).warnings if not warning.startswith("/srv")] == []


def test_a_file_without_the_new_keys_behaves_as_one_of_2_3_did(tmp_path):
    found = load(tmp_path, "MAILDROP_TLS=2")
    assert (found.tls_verify, found.auth_clear) == (False, True)


def test_the_shipped_file_checks_certificates_and_logs_in_over_tls_alone():
    found = settings.load(SHIPPED)
    assert (found.tls_verify, found.auth_clear) == (True, False)


# -- places --


def test_spools_are_split_by_semicolons_and_none_comes_twice(tmp_path):
    found = load(tmp_path, 'MAILDROP_SPOOL=" /srv/b ;/srv/a; ;/srv/b/;"')
    assert found.spools == (Path("/srv/b"), Path("/srv/a"))


@pytest.mark.parametrize("literal", ['""', "None"])
def test_an_unset_spool_is_the_one_in_the_home(tmp_path, literal):
    found = load(tmp_path, f'MAILDROP_HOME="/srv/other"\nMAILDROP_SPOOL={literal}')
    assert found.spools == (Path("/srv/other/spool"),)


def test_log_and_pid_file_lie_in_var_wherever_that_is(tmp_path):
    found = load(tmp_path, 'MAILDROP_VAR="/var/lib/maildrop"')
    assert found.pid_file == Path("/var/lib/maildrop/maildrop.pid")
    assert found.log_file == Path("/var/lib/maildrop/maildrop.log")
    assert found.spools == (Path("/srv/maildrop/spool"),)


@pytest.mark.parametrize(
    ("mode", "directory_mode", "log_mode"),
    [("0600", 0o700, 0o600), ("0640", 0o2770, 0o640), ("0660", 0o2770, 0o640)],
)
def test_a_group_that_may_read_mails_may_use_the_directories_and_read_the_log(tmp_path, mode, directory_mode, log_mode):
    found = load(tmp_path, f"MAILDROP_SPOOL_MODE={mode}")
    assert (found.directory_mode, found.log_mode) == (directory_mode, log_mode)


def test_a_retry_that_the_spool_would_take_for_no_delay_is_refused(tmp_path):
    four_hours = load(tmp_path, f"MAILDROP_RETRY={spool.LONGEST_DELAY_S}")
    assert policy.next_attempt(0, 1, four_hours.retry_s, spool.LONGEST_DELAY_S) <= spool.LONGEST_DELAY_S
    assert "MAILDROP_RETRY" in error_of(tmp_path, f"MAILDROP_RETRY={spool.LONGEST_DELAY_S + 1}")


# -- required keys --


@pytest.mark.parametrize("key", [key.name for key in KEYS.values() if key.required])
@pytest.mark.parametrize("instead", ["", "# {}=1\n", "{}=None\n", '{}=""\n'])
def test_a_file_without_a_required_key_is_an_error_that_names_file_and_key(tmp_path, key, instead):
    text = re.sub(rf"(?m)^{key}=.*\n", lambda _: instead.format(key), REQUIRED)
    with pytest.raises(MissingSettings) as caught:
        load(tmp_path, required=text)
    assert str(caught.value) == f"{tmp_path / 'config'}: {key}: missing"


def test_all_missing_keys_are_named_at_once(tmp_path):
    with pytest.raises(MissingSettings) as caught:
        load(tmp_path, required="")
    named = str(caught.value).removeprefix(f"{tmp_path / 'config'}: ").removesuffix(": missing")
    assert sorted(named.split(", ")) == sorted(key.name for key in KEYS.values() if key.required)


def test_the_keys_that_have_to_be_there_are_these_five():
    required = {key.name for key in KEYS.values() if key.required}
    assert required == {"MAILDROP_HOME", "SMTP_HOST", "SMTP_PORT", "MAILDROP_INTERVAL", "MAILDROP_TLS"}


def test_a_wrong_value_is_no_missing_one(tmp_path):
    with pytest.raises(SettingsError) as caught:
        load(tmp_path, "SMTP_PORT=0")
    assert not isinstance(caught.value, MissingSettings)


# -- the file --


def test_a_file_of_version_2_3_is_read_as_it_is(tmp_path):
    text = (
        b"# Configuration f\xfcr MaildropHost\r\n"
        b'PYTHON="/usr/bin/python"\r\n'
        b'MAILDROP_HOME="/srv/maildrop"\r\n'
        b'MAILDROP_SPOOL="/srv/maildrop/spool;/srv/other/spool"\r\n'
        b"SMTP_HOST='localhost'\r\n"
        b"SMTP_PORT=25\r\n"
        b"MAILDROP_INTERVAL=120\r\n"
        b"DEBUG=0\r\n"
        b'DEBUG_RECEIVER=""\r\n'
        b"MAILDROP_BATCH=0\r\n"
        b"MAILDROP_TLS=0\r\n"
        b'MAILDROP_LOGIN=""\r\n'
        b'MAILDROP_PASSWORD=""\r\n'
        b"WAIT_INTERVAL=0.0\r\n"
        b"SUPERVISED_DAEMON=0\r\n"
    )
    found = load(tmp_path, text, required="")
    assert found.spools == (Path("/srv/maildrop/spool"), Path("/srv/other/spool"))
    assert found.add_messageid is False
    assert line_warnings(found) == []


def test_comments_may_be_in_latin_1(tmp_path):
    assert load(tmp_path, b"# Gr\xf6\xdfe\nMAILDROP_BATCH=7 # St\xfcck\n").batch == 7


def test_a_value_in_utf_8_is_read_as_such(tmp_path):
    assert load(tmp_path, 'MAILDROP_PASSWORD="grün€"').password == "grün€"


@pytest.mark.parametrize("prefix", ["u", "r", "ur"])
def test_a_string_with_a_prefix_is_a_string(tmp_path, prefix):
    assert load(tmp_path, f'MAILDROP_LOGIN={prefix}"zope"').login == "zope"


def test_three_quotes_are_well_where_the_value_may_have_them(tmp_path):
    assert load(tmp_path, 'MAILDROP_LOGIN="""zope"""').login == "zope"
    assert "MAILDROP_LOGIN" in error_of(tmp_path, 'MAILDROP_LOGIN="""zo\npe"""')


def test_a_file_with_a_line_that_is_no_assignment_is_an_error_that_names_file_and_line(tmp_path):
    message = error_of(tmp_path, "MAILDROP_BATCH=5\nimport os\n")
    assert message.startswith(f"{tmp_path / 'config'}: line {REQUIRED_LINES + 2}: ")


def test_nothing_in_the_file_is_executed(tmp_path):
    proof = tmp_path / "proof"
    error_of(tmp_path, f"MAILDROP_BATCH=open({str(proof)!r}, 'w').write('')\n")
    assert not proof.exists()


def test_a_file_that_is_not_there_is_an_error_that_names_it(tmp_path):
    with pytest.raises(SettingsError, match=re.escape(f"{tmp_path / 'none'}: cannot be read: No such file")):
        settings.load(tmp_path / "none")


@pytest.mark.parametrize("make", [os.mkfifo, lambda path: path.symlink_to("/dev/zero"), lambda path: path.symlink_to(path)],
                         ids=["a FIFO", "a device", "a link to itself"])
def test_what_is_no_file_is_no_config_file_and_keeps_nobody_waiting(tmp_path, make):
    make(tmp_path / "config")
    with pytest.raises(SettingsError, match="config: cannot be read: "):
        settings.load(tmp_path / "config")


def test_a_huge_file_is_no_config_file(tmp_path):
    with (tmp_path / "config").open("wb") as stream:
        stream.truncate(2**40)
    with pytest.raises(SettingsError, match="cannot be read: larger than 1048576 bytes"):
        settings.load(tmp_path / "config")


def test_a_directory_is_no_config_file(tmp_path):
    with pytest.raises(SettingsError, match=re.escape(f"{tmp_path}: cannot be read")):
        settings.load(tmp_path)


def test_the_path_may_be_text(tmp_path):
    path = write_config(tmp_path / "config", SMTP_PORT=2525)
    assert settings.load(str(path)).smtp_port == 2525


# -- warnings --


def test_an_unknown_key_is_passed_over_with_a_warning_that_names_a_near_one(tmp_path):
    (warning,) = line_warnings(load(tmp_path, "\nMAILDROP_TLSS=2\n"))
    assert warning.startswith(f"line {REQUIRED_LINES + 2}: MAILDROP_TLSS is no key of this file and is passed over")
    assert warning.endswith("; did you mean MAILDROP_TLS?")


def test_an_unknown_key_that_is_near_to_none_is_passed_over_with_a_warning(tmp_path):
    (warning,) = line_warnings(load(tmp_path, "COLOUR='red'\n"))
    assert warning == f"line {REQUIRED_LINES + 1}: COLOUR is no key of this file and is passed over"


@pytest.mark.parametrize("literal", ["None", '""', "5", '"$HOME"'])
def test_an_unknown_key_may_have_any_value(tmp_path, literal):
    assert len(line_warnings(load(tmp_path, f"COLOUR={literal}\n"))) == 1


@pytest.mark.parametrize(
    "text",
    [
        *('="a$b"', '="a`b"', r'="a\\b"', r'="a\x41"', r"='a\'b'", '=r"ab"', '=R"ab"', '=u"ab"'),
        *(' ="ab"', '= "ab"', '="ab"#c', '="ab"\f', '="ab"\xa0', '="""a"b"""', "='''a'b'''"),
    ],
)
def test_a_line_that_sh_reads_differently_gets_a_warning_that_names_line_and_key_only(tmp_path, text):
    (warning,) = line_warnings(load(tmp_path, f"\n\nMAILDROP_PASSWORD{text}\n"))
    assert warning == f"line {REQUIRED_LINES + 3}: MAILDROP_PASSWORD: sh and Python read this line differently"


@pytest.mark.parametrize(
    "line",
    [
        'MAILDROP_LOGIN="a b#c;d"',
        "  MAILDROP_LOGIN='ab'  # $5 `a` \\",
        "MAILDROP_LOGIN='a$b'",
        'MAILDROP_LOGIN="""a"""',
        "WAIT_INTERVAL=0.5",
    ],
)
def test_a_line_that_sh_reads_alike_gets_no_warning(tmp_path, line):
    assert line_warnings(load(tmp_path, line)) == []


def test_a_spool_under_tmp_gets_a_warning_that_names_it(tmp_path):
    found = load(tmp_path, 'MAILDROP_SPOOL="/var/spool/maildrop;/tmp/a;/tmporary/b;/tmp/c"')
    told = [warning.split(" ")[0] for warning in found.warnings if "/tmp" in warning]
    assert told == ["/tmp/a", "/tmp/c"]


def test_a_spool_under_the_home_is_looked_at_too(tmp_path):
    (warning,) = load(tmp_path, 'MAILDROP_HOME="/tmp"').warnings
    assert warning.startswith("/tmp/spool does not survive a restart")


def test_a_spool_in_memory_gets_a_warning(tmp_path):
    try:
        mounts = [line.split(" ") for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        pytest.skip("this system does not tell its mounts")
    if ["/dev/shm", "tmpfs"] not in [mount[1:3] for mount in mounts]:
        pytest.skip("/dev/shm is not in memory here")
    found = load(tmp_path, 'MAILDROP_SPOOL="/dev/shm/maildrop/spool"')
    assert found.warnings[0].startswith("/dev/shm/maildrop/spool does not survive a restart")


def test_a_file_without_oddities_gets_no_warnings(tmp_path):
    if settings._is_tmpfs(Path(os.sep)):
        pytest.skip("all of this machine is in memory")
    assert load(tmp_path).warnings == ()

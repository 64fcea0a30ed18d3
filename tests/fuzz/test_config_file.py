"""Whatever stands in a config file: it is read as sh reads it, or an error says what is wrong, and never a password."""

import subprocess
import tempfile
import traceback
from pathlib import Path

from hypothesis import strategies as st
from support.config_file import SHIPPED
from support.examples import mutated
from support.fuzzing import fuzzed

from maildrop import settings
from maildrop.assignments import decode, parse_assignments
from maildrop.settings import KEYS, SettingsError

SECRET = "s3cr3t-4711"
REQUIRED = """\
MAILDROP_HOME="/srv/maildrop"
SMTP_HOST="mail.example.org"
SMTP_PORT=25
MAILDROP_INTERVAL=120
MAILDROP_TLS=0
"""
BLANKS = ("", "", "", " ", "\t", "  ", "\f", "\v", "\r", "\xa0", "\\\n")
VALUES = (
    '"a"', "'a'", '""', "''", '"a b"', '"a#b"', '"a;b"', '"""a"""', "'''a'''", '"""a"b"""', "'''a\"b'''", "'it\"s'", '"it\'s"',
    '"$HOME"', '"a`id`"', '"a\\"b"', "'a\\'b'", '"a\\\nb"', 'r"a"', 'u"a"', 'ur"a"', 'b"a"', '"ü"', "'~'", '"*"', '"a" "b"',
    '"a"\'b\'',
    "0", "1", "25", "007", "08", "0600", "0x19", "1e3", ".5", "5.", "1_000", "-1", "+1", "9" * 31, "1e999", "nan", "True", "False",
    "None", "a", "$HOME", "(1)", "[]", "/srv/x", '"/srv/x"', '"/srv/x;/srv/y"', '"ur"', "'a", '"a', '"""a', "",
)
PIECES = (*(text.encode() for text in (*VALUES, *BLANKS, *KEYS)), b"\n", b"=", b"#", b"\\", b'"', b"'", b"\xff", b"\0", b"export ")

lines = st.one_of(
    st.builds(
        "{}{}{}={}{}{}{}".format,
        st.sampled_from(BLANKS), st.sampled_from((*KEYS, "X", "maildrop_tls")), st.sampled_from(BLANKS), st.sampled_from(BLANKS),
        st.sampled_from(VALUES), st.sampled_from(BLANKS), st.sampled_from(("", "", "# c", "#c", ";", "x", "\\")),
    ),
    st.sampled_from(("", "# a comment", "#", "\f", "\\", "# \\", "X", "=", "export X=1")),
)
keyed_lines = st.lists(lines, max_size=4).map("\n".join)
files = st.one_of(
    st.builds("{}{}{}".format, st.just(REQUIRED), keyed_lines, st.sampled_from(("", "\n"))).map(str.encode),
    st.builds("{}\n{}".format, keyed_lines, st.just(REQUIRED)).map(str.encode),
    mutated(st.just(REQUIRED.encode()), PIECES),
    mutated(st.just(SHIPPED.read_bytes()), PIECES),
    st.binary(max_size=80),
)


def load(file):
    with tempfile.TemporaryDirectory() as home:
        path = Path(home, "config")
        path.write_bytes(file)
        return settings.load(path)


@fuzzed("config files", 500, file=files)
def test_a_file_can_be_used_or_an_error_names_it(file):
    try:
        load(file)
    except SettingsError as error:
        assert "/config: " in str(error)


def read_by_sh(file, names):
    """What sh has in these variables when it has sourced the file."""
    with tempfile.TemporaryDirectory() as home:
        Path(home, "config").write_bytes(file)
        show = "; ".join([". ./config", *(f'printf "%s\\0" "${name}"' for name in names)])
        command = ["sh", "-c", show]
        ran = subprocess.run(command, cwd=home, env={"PATH": "/usr/bin:/bin"}, capture_output=True, check=False)
        return ran.stdout.split(b"\0")[:-1]


def is_of_the_file(warning):
    return warning.startswith("line ")


@fuzzed("config files that sh reads too", 400, file=files)
def test_sh_reads_the_same_in_a_file_that_is_taken_without_a_warning(file):
    try:
        file.decode()    # what is in Latin-1 has other bytes
        if b"\r\n" in file or any(map(is_of_the_file, load(file).warnings)):    # files of 2.3 had such line ends
            return
    except (UnicodeDecodeError, SettingsError):
        return
    last = {found.name: found for found in parse_assignments(decode(file))}
    expected = [found.value if isinstance(found.value, str) else found.source for found in last.values()]
    assert read_by_sh(file, last) == [value.encode() for value in expected]


SECRETS = (
    f'"{SECRET}"', f"'{SECRET}'", SECRET, f'"{SECRET}', f'"""{SECRET}\n"""', f'"{SECRET}" x', f'r"{SECRET}"', f'"\\x{SECRET}"',
)    # fmt: skip


@st.composite
def files_with_a_secret(draw):
    password = draw(st.sampled_from(("MAILDROP_PASSWORD", "MAILDROP_PASWORD", " MAILDROP_PASSWORD ")))
    parts = [REQUIRED, draw(keyed_lines), "\n", password, "=", draw(st.sampled_from(SECRETS)), "\n", draw(keyed_lines)]
    return "".join(parts).encode()


@fuzzed("config files with a password", 400, file=files_with_a_secret())
def test_no_error_no_warning_and_no_settings_tell_the_password(file):
    try:
        found = load(file)
    except SettingsError as error:
        told = "".join(traceback.format_exception(error))
    else:
        told = f"{found!r}{found.warnings}"
    assert SECRET not in told

"""The scripts in maildrop/bin, run by real shells in copied trees; the daemons they start are real ones."""

from __future__ import annotations

import compileall
import os
import pwd
import re
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from support.config_file import write_config
from support.relay_server import RelayServer
from support.requires import requires_command, requires_root

ROOT = Path(__file__).parents[2]
BIN = ROOT / "maildrop" / "bin"
SCRIPTS = ("start_maildrop", "stop_maildrop", "maildropctl", "maildrop-redhat", "maildrop-suse")
SYSV = ("maildrop-redhat", "maildrop-suse")
SHELLS = {"dash": ["dash"], "bash": ["bash", "--posix"]}
ACCOUNT = "nobody"

# As an administrator of 2.3 has it: its keys, in its shape, and a comment in Latin-1.
CONFIG_OF_2_3 = """\
# B\xfcro
PYTHON="{python}"
MAILDROP_HOME="{home}"
SMTP_HOST="127.0.0.1"
SMTP_PORT={port}
MAILDROP_INTERVAL=0.2
DEBUG=0
DEBUG_RECEIVER=""
MAILDROP_BATCH=0
MAILDROP_TLS=0
MAILDROP_LOGIN=""
MAILDROP_PASSWORD=""
WAIT_INTERVAL=0.0
ADD_MESSAGEID=0
SUPERVISED_DAEMON=0
"""

# Like the system's own, these expand the command a second time and know nothing of quotes around it.
REDHAT_FUNCTIONS = """\
success() { printf '[  OK  ]'; }
failure() { printf '[FAILED]'; return 1; }
daemon() {
    user=root
    while [ "$1" != "${1##-}" ]; do
        case $1 in
            --user=*) user=${1#--user=} ;;
            *) echo "daemon: what is $1?" >&2; return 1 ;;
        esac
        shift
    done
    if runuser -s /bin/sh $user -c "ulimit -S -c 0 >/dev/null 2>&1 ; $*"; then success; else failure; fi
}
action() {
    printf '%s' "$1"
    shift
    if "$@"; then success; else failure; fi
    result=$?
    echo
    return $result
}
"""
SUSE_RC_STATUS = """\
rc_reset() { rc_all=0; }
rc_status() {
    rc_last=$?
    [ $rc_last -eq 0 ] || rc_all=$rc_last
    if [ "$1" = -v ]; then
        if [ $rc_last -eq 0 ]; then echo ..done; else echo ..failed; fi
    fi
    return $rc_last
}
rc_exit() { exit $rc_all; }
"""


class Site:
    """A copied tree with a config file, and the daemons that are started from it."""

    def __init__(self, root: Path, compiled: Path, python: str = sys.executable):
        self.root = root
        self.tree = root / "soft ware"
        self.package = self.tree / "maildrop"
        self.bin = self.package / "bin"
        self.home = root / "mail home"
        self.pid_file = self.home / "var" / "maildrop.pid"
        self.python = python
        shutil.copytree(compiled, self.package)
        self.config = self.write_config(self.tree / "config")

    def write_config(self, path: Path, **values: object) -> Path:
        mine = {
            "PYTHON": self.python,
            "MAILDROP_HOME": self.home,
            "MAILDROP_INTERVAL": 0.2,
            "SMTP_HOST": "127.0.0.1",
            "SMTP_PORT": 1,
        }
        return write_config(path, **(mine | values))

    def run(self, *command: object, cwd: Path | None = None, **environment: object) -> subprocess.CompletedProcess:
        return subprocess.run(
            [str(word) for word in command],
            cwd=cwd or self.root,
            env=_environment(environment),
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=20,
        )

    def script(self, name: str, *arguments: object, **how: object) -> subprocess.CompletedProcess:
        return self.run(self.bin / name, *arguments, **how)

    @property
    def pid(self) -> int | None:
        try:
            return int(self.pid_file.read_text())
        except (FileNotFoundError, ValueError):
            return None

    def runs(self) -> bool:
        return is_alive(self.pid)

    def end_daemons(self) -> None:
        pids = set()
        for pid_file in self.root.rglob("*.pid"):
            text = pid_file.read_text().strip()
            if text.isdecimal() and b"maildrop.py" in command_line(int(text)):
                pids.add(int(text))
        for process in Path("/proc").glob("[0-9]*"):
            if os.fsencode(self.root) in command_line(int(process.name)):
                pids.add(int(process.name))
        for pid in pids - {os.getpid()}:
            for number in (signal.SIGCONT, signal.SIGKILL):
                try:
                    os.kill(pid, number)
                except ProcessLookupError:
                    break


def _environment(changes: dict[str, object]) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if not key.startswith(("MAILDROP", "PYTHON"))}
    return kept | {key: str(value) for key, value in changes.items()}


def command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""


def is_alive(pid: int | None) -> bool:
    """Whether the process runs; one that has ended and waits for its parent does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def wait_until(condition: Callable[[], object], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen in time"
        time.sleep(0.02)


def edit(script: Path, **lines: object) -> Path:
    """Put values into the lines at the top of a script, as the comments there say."""
    text = script.read_text()
    for key, value in lines.items():
        text, found = re.subn(rf'(?m)^{key}=""', lambda _, new=f'{key}="{value}"': new, text)
        assert found == 1, f"{script.name} has no line to edit for {key}"
    script.write_text(text)
    return script


def executable(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(0o755)
    return path


def wrapped_python(path: Path, python: str = sys.executable) -> Path:
    """A Python that leaves the file NAME.ran beside itself."""
    return executable(path, f'#!/bin/sh\n: > "$0.ran"\nexec {shlex.quote(python)} "$@"\n')


def was_run(python: Path) -> bool:
    return Path(f"{python}.ran").exists()


def succeeds(result: subprocess.CompletedProcess) -> subprocess.CompletedProcess:
    assert result.returncode == 0, result
    return result


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> Path:
    """The package with its bytecode: compiling each copy of it anew would take a fifth of the time."""
    package = tmp_path_factory.mktemp("compiled") / "maildrop"
    shutil.copytree(ROOT / "maildrop", package, ignore=shutil.ignore_patterns("__pycache__", "config"))
    compileall.compile_dir(package, quiet=1)
    return package


@pytest.fixture
def site(tmp_path: Path, compiled: Path) -> Iterator[Site]:
    site = Site(tmp_path / "with blank", compiled)
    try:
        yield site
    finally:
        site.end_daemons()


@pytest.fixture
def open_site(compiled: Path) -> Iterator[Site]:
    """A site that the account nobody can use too. pytest's own directories are closed to it."""
    requires_root()
    root = Path(tempfile.mkdtemp(prefix="maildrop scripts "))
    root.chmod(0o755)
    old_umask = os.umask(0o022)
    try:
        site = Site(root, compiled, _python_for_all())
        site.home.mkdir()
        shutil.chown(site.home, ACCOUNT)
        try:
            yield site
        finally:
            site.end_daemons()
    finally:
        os.umask(old_umask)
        shutil.rmtree(root)


def _python_for_all() -> str:
    for python in (sys.executable, os.path.realpath(sys.executable), "/usr/bin/python3", "/usr/local/bin/python3"):
        new_enough = f"{shlex.quote(python)} -c 'import sys; sys.exit(sys.version_info < (3, 10))'"
        if subprocess.run(["su", "-s", "/bin/sh", "-c", new_enough, ACCOUNT], capture_output=True).returncode == 0:
            return python
    pytest.skip(f"there is no Python that the account {ACCOUNT} may run")


@pytest.fixture(params=SHELLS)
def shell(request) -> list[str]:
    if request.param == "dash":
        requires_command("dash")
    elif shutil.which(request.param) is None:
        pytest.skip(f"{request.param} is not installed")
    return SHELLS[request.param]


# -- the files --


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_can_be_executed(name):
    assert os.access(BIN / name, os.X_OK)
    assert (BIN / name).read_text().startswith("#!/bin/sh\n")


@pytest.mark.parametrize("name", (*SCRIPTS, "find_python.sh"))
def test_a_script_passes_shellcheck(name):
    requires_command("shellcheck")
    command = ["shellcheck", "--shell=sh", "--external-sources", f"maildrop/bin/{name}"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr) == (0, "", "")


@pytest.mark.parametrize("name", (*SCRIPTS, "find_python.sh"))
def test_every_shell_understands_a_script(name, shell):
    result = subprocess.run([*shell, "-n", str(BIN / name)], capture_output=True, text=True)
    assert (result.returncode, result.stderr) == (0, "")


def test_the_readme_tells_of_every_file():
    readme = (BIN / "README").read_text()
    assert [path.name for path in BIN.iterdir() if path.name not in readme and path.name != "README"] == []


# -- the config file --


def test_every_shell_starts_and_stops_the_daemon(site, shell):
    config = site.write_config(site.root / "my configs" / "the config")
    site.config.unlink()
    started = succeeds(site.run(*shell, site.bin / "start_maildrop", config))
    assert started.stdout == ""
    pid = site.pid
    assert is_alive(pid)
    assert str(config) in command_line(pid).decode().split("\0")
    stopped = succeeds(site.run(*shell, site.bin / "stop_maildrop", config))
    assert (stopped.stdout, stopped.stderr) == ("", "")
    assert not is_alive(pid)
    assert not site.pid_file.exists()


def test_every_shell_runs_maildropctl(site, shell):
    config = site.write_config(site.root / "my configs" / "the config")
    site.config.unlink()
    control = [*shell, site.bin / "maildropctl"]
    succeeds(site.run(*control, "-c", config, "start"))
    pid = site.pid
    assert is_alive(pid)
    succeeds(site.run(*control, f"--config={config}", "restart"))
    assert site.runs()
    assert site.pid != pid
    succeeds(site.run(*control, "stop", "-c", config))
    assert not site.pid_file.exists()


@pytest.mark.parametrize("options", (["-c", "{}"], ["-c{}"], ["--config", "{}"], ["--config={}"]), ids=" ".join)
def test_maildropctl_takes_python_from_the_config_its_option_names(site, options):
    python = wrapped_python(site.root / "a python" / "python")
    config = site.write_config(site.root / "other config", PYTHON=python)
    site.config.unlink()
    options = [option.format(config) for option in options]
    succeeds(site.script("maildropctl", *options, "make-emails", "ann@example.org"))
    assert was_run(python)


def test_without_a_name_the_config_beside_the_package_is_used(site):
    succeeds(site.script("start_maildrop", cwd=Path("/")))
    assert str(site.tree / "config") in command_line(site.pid).decode().split("\0")
    succeeds(site.script("maildropctl", "restart", cwd=Path("/")))
    assert site.runs()
    succeeds(site.script("stop_maildrop", cwd=Path("/")))
    assert not site.runs()


def test_without_a_name_the_config_inside_an_installed_package_is_used(site):
    site.config.rename(site.package / "config")
    write_config(site.config, MAILDROP_HOME=site.root / "wrong home")
    succeeds(site.script("start_maildrop"))
    assert site.runs()
    assert str(site.package / "config") in command_line(site.pid).decode().split("\0")
    succeeds(site.script("maildropctl", "restart"))
    succeeds(site.script("stop_maildrop"))
    assert not (site.root / "wrong home").exists()


@pytest.mark.parametrize(
    "start, stop", ((["start_maildrop"], ["stop_maildrop"]), (["maildropctl", "start"], ["maildropctl", "stop"]))
)
def test_the_environment_names_the_config(site, start, stop):
    config = site.config.rename(site.root / "my config")
    succeeds(site.script(*start, MAILDROP_CONFIG=config))
    assert site.runs()
    succeeds(site.script(*stop, MAILDROP_CONFIG=config))
    assert not site.runs()


def test_a_config_on_the_command_line_beats_the_environment_and_that_beats_the_script(site):
    homes = [site.root / f"home {number}" for number in range(3)]
    named, environment, edited = (site.write_config(home / "config", MAILDROP_HOME=home) for home in homes)
    edit(site.bin / "start_maildrop", MAILDROP_CONFIG_FILE=edited)
    succeeds(site.script("start_maildrop", named, MAILDROP_CONFIG=environment))
    assert [(home / "var").exists() for home in homes] == [True, False, False]
    succeeds(site.script("start_maildrop", MAILDROP_CONFIG=environment))
    assert [(home / "var").exists() for home in homes] == [True, True, False]
    succeeds(site.script("start_maildrop"))
    assert [(home / "var").exists() for home in homes] == [True, True, True]


@pytest.mark.parametrize("config", ("config", "../soft ware/config"))
def test_a_relative_config_path_counts_from_the_working_directory(site, config, shell):
    succeeds(site.run(*shell, "maildrop/bin/start_maildrop", config, cwd=site.tree))
    assert site.runs()
    succeeds(site.run(*shell, "maildrop/bin/maildropctl", "-c", config, "restart", cwd=site.tree))
    assert site.runs()
    succeeds(site.run(*shell, "maildrop/bin/stop_maildrop", cwd=site.tree, MAILDROP_CONFIG=config))
    assert not site.runs()


def test_a_script_is_found_by_its_bare_name_in_its_own_folder(site):
    succeeds(site.run("sh", "start_maildrop", cwd=site.bin))
    succeeds(site.run("sh", "maildropctl", "restart", cwd=site.bin))
    succeeds(site.run("sh", "stop_maildrop", cwd=site.bin))
    assert not site.runs()


def test_scripts_are_found_on_the_path(site):
    path = f"{site.bin}:{os.environ['PATH']}"
    succeeds(site.run("sh", "-c", "start_maildrop && maildropctl restart && stop_maildrop", PATH=path))
    assert not site.runs()


@pytest.mark.parametrize("name", ("start_maildrop", "stop_maildrop"))
def test_a_second_argument_is_a_usage_error(site, name):
    result = site.script(name, site.config, "more")
    assert result.returncode == 2
    assert result.stderr == f"Usage: {site.bin / name} [CONFIG]\n"


CALLS = (["start_maildrop", "{}"], ["stop_maildrop", "{}"], ["maildropctl", "-c", "{}", "start"])


@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_a_missing_config_is_an_error_that_names_it(site, call):
    missing = site.root / "no such config"
    result = site.script(*(word.format(missing) for word in call))
    assert result.returncode == 1
    assert result.stderr == f"Error: cannot read the config file {missing}\n"


@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_a_folder_is_no_config(site, call):
    result = site.script(*(word.format(site.tree) for word in call))
    assert result.returncode == 1
    assert result.stderr == f"Error: cannot read the config file {site.tree}\n"


@pytest.mark.parametrize("call", CALLS, ids=" ".join)
def test_an_unreadable_config_is_an_error_that_names_it(open_site, call):
    open_site.config.chmod(0o600)
    name, *arguments = (word.format(open_site.config) for word in call)
    command = shlex.join([str(open_site.bin / name), *arguments])
    result = open_site.run("su", "-s", "/bin/sh", "-c", command, ACCOUNT)
    assert result.returncode == 1
    assert result.stderr == f"Error: cannot read the config file {open_site.config}\n"


@pytest.mark.parametrize("wrong", ('MAILDROP_LOGIN="never closed', "MAILDROP_LOGIN=(", "if true", "fi"))
@pytest.mark.parametrize("start", (["start_maildrop"], ["maildropctl", "start"]), ids=" ".join)
def test_a_config_that_no_shell_understands_is_an_error_that_names_the_line(site, start, wrong, shell):
    lines = site.config.read_text().splitlines()
    site.config.write_text("\n".join([*lines, wrong, "MAILDROP_HELO=''"]) + "\n")
    result = site.run(*shell, site.bin / start[0], *start[1:])
    assert result.returncode == 1
    assert f"{site.config}: line {len(lines) + 1}: " in result.stderr
    assert "using python3" not in result.stderr
    assert "Traceback" not in result.stderr
    assert not site.pid_file.exists()


def test_nothing_that_a_config_sets_gets_into_the_script(site):
    with site.config.open("a") as stream:
        for name in ("config", "python", "PATH", "MAILDROP_DIR", "MAILDROP_CONFIG"):
            stream.write(f'{name}="/nowhere"\n')
    succeeds(site.script("start_maildrop"))
    assert site.runs()


def test_what_the_shell_complains_of_in_a_config_that_python_reads_is_not_shown(site, shell):
    with site.config.open("a") as stream:
        stream.write('MAILDROP_HELO = "mail.example.org"\n')
    started = succeeds(site.run(*shell, site.bin / "start_maildrop"))
    assert "not found" not in started.stderr
    assert site.runs()


@pytest.mark.parametrize("start", (["start_maildrop"], ["maildropctl", "start"]), ids=" ".join)
def test_a_config_of_version_2_3_works_as_it_is(site, start):
    with RelayServer() as relay:
        text = CONFIG_OF_2_3.format(python=site.python, home=site.home, port=relay.port)
        site.config.write_bytes(text.encode("latin-1"))
        succeeds(site.script("maildropctl", "make-emails", "--unlocked", "1", "--locked", "0", "ann@example.org"))
        started = succeeds(site.script(*start))
        assert "using python3" not in started.stderr
        wait_until(lambda: relay.accepted)
        assert site.script("maildropctl", "start").returncode == 1
        succeeds(site.script("stop_maildrop"))
        assert relay.recipients() == ["ann@example.org"]


# -- links and copies --


def test_scripts_are_called_through_links(site, shell):
    links = site.root / "links"
    links.mkdir()
    for name in ("start_maildrop", "stop_maildrop", "maildropctl"):
        (links / f"second {name}").symlink_to(site.bin / name)
        (links / name).symlink_to(f"second {name}")
    succeeds(site.run(*shell, links / "start_maildrop"))
    assert site.runs()
    succeeds(site.run(*shell, "links/maildropctl", "restart"))
    assert site.runs()
    succeeds(site.run(*shell, "maildropctl", "stop", cwd=links))
    assert site.script("stop_maildrop").returncode == 1


def test_a_linked_package_folder_works(site, shell):
    link = site.root / "link to maildrop"
    link.symlink_to(site.package)
    succeeds(site.run(*shell, link / "bin" / "start_maildrop"))
    assert site.runs()
    succeeds(site.run(*shell, link / "bin" / "maildropctl", "stop"))
    assert not site.runs()


@pytest.fixture
def copies(site) -> Path:
    folder = site.root / "my scripts"
    folder.mkdir()
    for name in ("start_maildrop", "stop_maildrop", "maildropctl"):
        shutil.copy(site.bin / name, folder)
    return folder


def test_edited_copies_serve_their_own_configuration(site, copies, shell):
    config = site.config.rename(site.root / "my config")
    for script in copies.iterdir():
        edit(script, MAILDROP_DIR=site.package, MAILDROP_CONFIG_FILE=config)
    succeeds(site.run(*shell, copies / "start_maildrop"))
    pid = site.pid
    assert is_alive(pid)
    succeeds(site.run(*shell, "my scripts/maildropctl", "restart"))
    assert site.runs()
    assert site.pid != pid
    succeeds(site.run(*shell, "stop_maildrop", cwd=copies))
    assert not site.runs()


def test_edited_copies_can_have_other_names_and_links(site, copies):
    link = site.root / "maildrop@mine"
    link.symlink_to(edit(copies / "start_maildrop", MAILDROP_DIR=site.package).rename(copies / "start mine"))
    succeeds(site.run(link))
    assert site.runs()


@pytest.mark.parametrize("name", ("start_maildrop", "stop_maildrop", "maildropctl"))
def test_an_unedited_copy_says_which_line_to_edit(site, copies, name, shell):
    result = site.run(*shell, copies / name, "start")
    assert result.returncode == 1
    assert result.stderr == f"Error: no maildrop package in {site.root}; edit MAILDROP_DIR in {copies / name}\n"


@pytest.mark.parametrize("name", ("start_maildrop", "stop_maildrop", "maildropctl"))
def test_an_unedited_copy_of_the_whole_folder_says_which_line_to_edit(site, name):
    copy = site.root / "copy of bin"
    shutil.copytree(site.bin, site.root / "bin").rename(copy)
    (site.root / "bin").symlink_to(copy)    # so that the file the scripts share seems to be in its place
    result = site.run("sh", copy / name, "start")
    assert result.returncode == 1
    assert result.stderr == f"Error: no maildrop package in {site.root}; edit MAILDROP_DIR in {copy / name}\n"


# -- Python --


def mark_imports(site: Site) -> Path:
    """Let the copied package leave a file when its daemon is imported."""
    mark = site.root / "the copy was imported"
    with (site.package / "daemon.py").open("a") as stream:
        stream.write(f"\nPath({str(mark)!r}).touch()\n")
    return mark


def other_package(site: Site) -> Path:
    """A folder with another package named maildrop, which does not work."""
    folder = site.root / "other"
    for name in ("maildrop/__init__.py", "maildrop/daemon.py", "maildrop/ctl.py"):
        executable(folder / name, "raise SystemExit('the other package named maildrop was imported')\n")
    return folder


@pytest.mark.parametrize(
    "cwd, script, config",
    (
        ("/", "{tree}/maildrop/maildrop.py", "{tree}/config"),
        ("{tree}", "maildrop/maildrop.py", "config"),
        ("{tree}", "./maildrop/../maildrop/maildrop.py", "./config"),
        ("{tree}/maildrop", "maildrop.py", "../config"),
        ("{tree}/maildrop/bin", "../maildrop.py", "../../config"),
        ("{tree}/maildrop/bin", "{tree}/maildrop/maildrop.py", "{tree}/config"),
    ),
)
def test_python_starts_the_daemon_by_its_path_from_anywhere(site, cwd, script, config):
    mark = mark_imports(site)
    cwd, script, config = (text.format(tree=site.tree) for text in (cwd, script, config))
    succeeds(site.run(site.python, script, config, cwd=Path(cwd)))
    assert site.runs()
    assert mark.exists()
    succeeds(site.script("stop_maildrop"))


@pytest.mark.parametrize("cwd", ("/", "{tree}/maildrop", "{other}/maildrop"))
def test_the_package_beside_the_script_wins_over_one_on_pythonpath(site, cwd):
    mark = mark_imports(site)
    other = other_package(site)
    cwd = Path(cwd.format(tree=site.tree, other=other))
    succeeds(site.run(site.python, site.package / "maildrop.py", site.config, cwd=cwd, PYTHONPATH=other))
    assert site.runs()
    assert mark.exists()
    succeeds(site.script("maildropctl", "restart", cwd=cwd, PYTHONPATH=other))
    succeeds(site.script("stop_maildrop", cwd=cwd, PYTHONPATH=other))
    assert not site.runs()


@pytest.mark.parametrize("variable", ("PYTHONSAFEPATH", "PYTHONNOUSERSITE", "PYTHONPATH"))
def test_the_package_beside_the_script_is_found_whatever_python_was_told(site, variable):
    mark = mark_imports(site)
    values = {"PYTHONPATH": site.package}
    succeeds(site.script("start_maildrop", **{variable: values.get(variable, "1")}))
    assert site.runs()
    assert mark.exists()


@pytest.mark.parametrize("link, target", (("link.py", "maildrop/maildrop.py"), ("link", "maildrop")))
def test_a_link_to_maildrop_py_or_its_folder_starts_the_package_it_leads_to(site, link, target):
    mark = mark_imports(site)
    link = site.root / link
    link.symlink_to(site.tree / target)
    succeeds(site.run(site.python, link if link.suffix else link / "maildrop.py", site.config))
    assert site.runs()
    assert mark.exists()


@pytest.mark.parametrize("arguments", ([], ["one", "two"]))
def test_python_without_exactly_one_config_says_the_usage(site, arguments):
    result = site.run(site.python, site.package / "maildrop.py", *arguments)
    assert result.returncode != 0
    assert "Usage: maildrop.py" in result.stderr


def test_neighbours_of_the_package_never_shadow_the_standard_library(site):
    tree = site.tree.rename(site.root / "site-packages")
    mark = site.root / "shadows"
    for name in sys.stdlib_module_names - set(sys.builtin_module_names):
        shadow = f"open({str(mark)!r}, 'a').write({name!r} + ' ')\nraise ImportError('a shadow of {name}')\n"
        (tree / f"{name}.py").write_text(shadow)
    with RelayServer() as relay:
        config = site.write_config(tree / "config", SMTP_PORT=relay.port, ADD_MESSAGEID=1)
        scripts = tree / "maildrop" / "bin"
        made = site.run(scripts / "maildropctl", "make-emails", "--unlocked", "1", "ann@example.org", cwd=scripts)
        assert not mark.exists(), mark.read_text()
        succeeds(made)
        started = site.run(scripts / "start_maildrop", config, cwd=scripts)
        assert not mark.exists(), mark.read_text()
        succeeds(started)
        wait_until(lambda: relay.accepted)
        succeeds(site.run(scripts / "maildropctl", "restart", cwd=scripts))
        succeeds(site.run(scripts / "stop_maildrop", cwd=scripts))
    assert not mark.exists(), mark.read_text()


@pytest.mark.parametrize("name", ("python", "python with blank"))
def test_the_config_says_which_python_runs(site, name, shell):
    python = wrapped_python(site.root / "some where" / name)
    fallback = wrapped_python(site.root / "fallback" / "python3")
    site.write_config(site.config, PYTHON=python)
    path = f"{fallback.parent}:{os.environ['PATH']}"
    started = succeeds(site.run(*shell, site.bin / "start_maildrop", PATH=path))
    assert site.runs()
    assert "using python3" not in started.stderr
    assert was_run(python)
    assert not was_run(fallback)


def unusable_python(site: Site, kind: str) -> str:
    folder = site.root / "bad python"
    return {
        "missing": str(folder / "none"),
        "too old": str(executable(folder / "old", "#!/bin/sh\nexit 1\n")),
        "a folder": str(folder),
        "not executable": str(site.config),
        "empty": "",
    }[kind]


KINDS = ("missing", "too old", "a folder", "not executable", "empty")


@pytest.mark.parametrize("kind", KINDS)
def test_in_place_of_an_unusable_python_python3_is_taken_and_the_script_says_so(site, kind):
    fallback = wrapped_python(site.root / "fallback" / "python3")
    path = f"{fallback.parent}:{os.environ['PATH']}"
    python = unusable_python(site, kind)
    site.write_config(site.config, PYTHON=python)
    said = f'PYTHON="{python}" in {site.config} is no Python 3.10 or newer: using python3\n'
    for name, *arguments in (["start_maildrop"], ["maildropctl", "restart"], ["stop_maildrop"]):
        result = succeeds(site.run("sh", site.bin / name, *arguments, PATH=path))
        assert result.stderr.startswith(said)
        assert was_run(fallback)
        assert site.runs() == (name != "stop_maildrop")


@pytest.mark.parametrize("call", (["start_maildrop"], ["stop_maildrop"], ["maildropctl", "start"]), ids=" ".join)
def test_where_python3_is_too_old_as_well_the_script_says_so(site, call):
    old = executable(site.root / "old" / "python3", "#!/bin/sh\nexit 1\n")
    site.write_config(site.config, PYTHON="/no/python")
    result = site.run("sh", site.bin / call[0], *call[1:], PATH=f"{old.parent}:{os.environ['PATH']}")
    assert result.returncode == 1
    assert result.stderr == f'Error: neither PYTHON="/no/python" in {site.config} nor python3 is Python 3.10 or newer\n'


def test_a_config_without_python_uses_python3_and_not_one_from_the_environment(site):
    fallback = wrapped_python(site.root / "fallback" / "python3")
    stray = wrapped_python(site.root / "stray" / "python")
    site.config.write_text(re.sub("(?m)^PYTHON=.*\n", "", site.config.read_text()))
    path = f"{fallback.parent}:{os.environ['PATH']}"
    result = succeeds(site.script("start_maildrop", PATH=path, PYTHON=stray))
    assert "using python3" in result.stderr
    assert was_run(fallback)
    assert not was_run(stray)


# -- start, stop, restart --


def control(site: Site, *arguments: object, **how: object) -> subprocess.CompletedProcess:
    return site.script("maildropctl", *arguments, **how)


@pytest.mark.parametrize(
    "again, said", ((["start_maildrop"], "already running"), (["maildropctl", "start"], "already started"))
)
def test_starting_what_runs_is_an_error_and_leaves_it_alone(site, again, said):
    succeeds(site.script("start_maildrop"))
    pid = site.pid
    result = site.script(*again)
    assert result.returncode == 1
    assert said in result.stderr
    assert str(pid) in result.stderr
    assert site.pid == pid
    assert site.runs()


@pytest.mark.parametrize("call", (["stop_maildrop"], ["maildropctl", "stop"]), ids=" ".join)
def test_stopping_what_does_not_run_is_an_error(site, call):
    result = site.script(*call)
    assert result.returncode == 1
    assert "already stopped" in result.stderr
    succeeds(site.script("start_maildrop"))
    succeeds(site.script(*call))
    result = site.script(*call)
    assert result.returncode == 1
    assert "already stopped" in result.stderr


def test_a_pid_file_left_by_a_killed_daemon_is_told_and_start_works(site):
    succeeds(control(site, "start"))
    pid = site.pid
    os.kill(pid, signal.SIGKILL)
    wait_until(lambda: not is_alive(pid))
    assert site.pid_file.exists()
    stopped = control(site, "stop")
    assert stopped.returncode == 1
    assert "already stopped" in stopped.stderr
    started = succeeds(control(site, "start"))
    assert "stale" in started.stderr
    assert site.pid != pid
    assert site.runs()


def test_a_pid_file_that_names_a_foreign_process_is_stale(site):
    site.pid_file.parent.mkdir(parents=True)
    site.pid_file.write_text(f"{os.getpid()}\n")
    stopped = control(site, "stop")
    assert stopped.returncode == 1
    assert "already stopped" in stopped.stderr
    started = succeeds(control(site, "start"))
    assert "stale" in started.stderr
    assert site.pid != os.getpid()
    assert site.runs()


def test_start_maildrop_takes_over_a_stale_pid_file(site):
    site.pid_file.parent.mkdir(parents=True)
    site.pid_file.write_text(f"{os.getpid()}\n")
    succeeds(site.script("start_maildrop"))
    assert site.pid != os.getpid()
    assert site.runs()


def test_restart_replaces_the_daemon_by_another_process(site):
    succeeds(control(site, "start"))
    pid = site.pid
    succeeds(control(site, "restart"))
    assert not is_alive(pid)
    assert site.runs()
    assert site.pid != pid


def test_restart_starts_what_does_not_run(site):
    succeeds(control(site, "restart"))
    assert site.runs()


@pytest.mark.parametrize("call", (["stop_maildrop"], ["maildropctl", "stop"]), ids=" ".join)
def test_stop_waits_until_the_daemon_has_ended(site, call):
    succeeds(site.script("start_maildrop"))
    pid = site.pid
    os.kill(pid, signal.SIGSTOP)
    with subprocess.Popen([str(site.bin / call[0]), *call[1:]], env=_environment({})) as stopping:
        try:
            time.sleep(0.7)
            assert stopping.poll() is None
            os.kill(pid, signal.SIGCONT)
            assert stopping.wait(10) == 0
        finally:
            stopping.kill()
    assert not is_alive(pid)
    assert not site.pid_file.exists()


@pytest.mark.parametrize(
    "arguments",
    (
        [],
        ["no-such-command"],
        ["start", "too", "much"],
        ["make-emails"],
        ["make-emails", "--unlocked", "some", "ann@example.org"],
        ["--no-such-option", "start"],
    ),
    ids=" ".join,
)
def test_wrong_usage_of_maildropctl_has_status_2(site, arguments):
    result = site.run("sh", site.bin / "maildropctl", *arguments)
    assert result.returncode == 2
    assert result.stderr.startswith("usage: maildropctl")
    assert not site.home.exists()


def test_maildropctl_tells_how_it_is_used(site):
    result = succeeds(control(site, "--help"))
    for command in ("start", "stop", "restart", "make-emails"):
        assert command in result.stdout


# -- make-emails --


def test_of_the_mails_that_make_emails_writes_exactly_the_unlocked_ones_arrive(site):
    ann, bob, eve = "ann@example.org", "bob@example.org", "eve@example.org"
    with RelayServer() as relay:
        site.write_config(site.config, SMTP_PORT=relay.port)
        numbers = ("--unlocked", 7, "--locked", 4)
        succeeds(control(site, "make-emails", *numbers, "--sender", "zoe@example.org", ann, bob, eve))
        spool = site.home / "spool"
        locks = sorted(path.name for path in spool.glob("*.lck"))
        assert len(locks) == 4
        succeeds(control(site, "start"))
        wait_until(lambda: len(relay.accepted) >= 7)
        wait_until(lambda: len([path for path in spool.iterdir() if path.is_file()]) == 2 * 4)
        time.sleep(0.5)    # two more passes, for the ones that must not arrive
        succeeds(control(site, "stop"))
    assert relay.recipients() == [ann] * 3 + [bob] * 2 + [eve] * 2
    assert {mail.sender for mail in relay.accepted} == {"zoe@example.org"}
    subjects = sorted(re.search(rb"(?m)^Subject: (.*?)\r?$", mail.content)[1].decode() for mail in relay.accepted)
    assert subjects == [f"unlocked {number}" for number in range(1, 8)]
    assert sorted(path.name for path in spool.glob("*.lck")) == locks
    for lock in locks:
        assert (spool / lock.removesuffix(".lck")).is_file()


def test_mails_made_while_the_daemon_runs_arrive_too(site):
    with RelayServer() as relay:
        site.write_config(site.config, SMTP_PORT=relay.port)
        succeeds(control(site, "start"))
        succeeds(control(site, "make-emails", "--unlocked", 3, "--locked", 1, "ann@example.org"))
        wait_until(lambda: len(relay.accepted) >= 3)
        time.sleep(0.5)
        assert relay.recipients() == ["ann@example.org"] * 3


# -- accounts --


def owner(path: Path) -> str:
    return pwd.getpwuid(path.stat().st_uid).pw_name


def test_maildropctl_works_as_the_account_at_its_top(open_site, shell):
    site = open_site
    edit(site.bin / "maildropctl", MAILDROP_USER=ACCOUNT)
    sender = "Zoe 'Z' \"$HOME\" <zoe@example.org>"
    control = [*shell, site.bin / "maildropctl"]
    succeeds(site.run(*control, "make-emails", "--sender", sender, "ann@example.org", "-c", site.config))
    mails = [path for path in (site.home / "spool").iterdir() if path.is_file()]
    assert {owner(path) for path in mails} == {ACCOUNT}
    assert any(f"##From:{sender}\n" in path.read_text() for path in mails)
    succeeds(site.run(*control, "start"))
    assert owner(Path(f"/proc/{site.pid}")) == ACCOUNT
    assert owner(site.pid_file) == ACCOUNT
    succeeds(site.run(*shell, "maildropctl", "restart", cwd=site.bin))
    assert owner(Path(f"/proc/{site.pid}")) == ACCOUNT
    succeeds(site.run(*control, "stop"))
    assert not site.runs()
    assert site.run(*control, "stop").returncode == 1
    assert site.run(*control, "no-such-command").returncode == 2


def test_the_account_gets_the_config_that_the_environment_names(open_site):
    site = open_site
    edit(site.bin / "maildropctl", MAILDROP_USER=ACCOUNT)
    config = site.config.rename(site.root / "my config")
    succeeds(site.script("maildropctl", "start", MAILDROP_CONFIG=config))
    assert owner(Path(f"/proc/{site.pid}")) == ACCOUNT


def test_maildropctl_stays_with_the_account_that_calls_it_if_that_is_the_one(site):
    edit(site.bin / "maildropctl", MAILDROP_USER=pwd.getpwuid(os.geteuid()).pw_name)
    executable(site.root / "no su" / "su", "#!/bin/sh\necho su was called\nexit 9\n")
    succeeds(site.script("maildropctl", "start", PATH=f"{site.root / 'no su'}:{os.environ['PATH']}"))
    assert site.runs()


def test_an_account_that_does_not_exist_is_an_error(open_site):
    edit(open_site.bin / "maildropctl", MAILDROP_USER="no-such-account")
    result = open_site.script("maildropctl", "start")
    assert result.returncode != 0
    assert "no-such-account" in result.stderr
    assert not open_site.pid_file.exists()


# -- SysV init scripts --


class SysV:
    """An init script, copied to another folder and edited, with stand-ins for what the system gives it."""

    def __init__(self, site: Site, name: str, **lines: object):
        etc = site.root / "etc"
        etc.mkdir()
        self.site = site
        self.is_redhat = name == "maildrop-redhat"
        self.script = Path(shutil.copy(site.bin / name, etc / "maildrop"))
        edit(self.script, **lines)
        self.lock = etc / "lock"
        (etc / "functions").write_text(REDHAT_FUNCTIONS)
        (etc / "rc.status").write_text(SUSE_RC_STATUS)
        self.environment = {
            "MAILDROP_FUNCTIONS": etc / "functions",
            "MAILDROP_LOCK_FILE": self.lock,
            "MAILDROP_RC_STATUS": etc / "rc.status",
        }
        self.good, self.bad = ("[  OK  ]", "[FAILED]") if self.is_redhat else ("..done", "..failed")

    def __call__(self, *arguments: str, shell: Sequence[str] = ("sh",), **environment: object):
        return self.site.run(*shell, self.script, *arguments, cwd=Path("/"), **self.environment | environment)


@pytest.mark.parametrize("name", SYSV)
def test_an_init_script_starts_and_stops_the_daemon_as_its_account(open_site, name, shell):
    site = open_site
    sysv = SysV(site, name, MAILDROP_USER=ACCOUNT, SOFTWARE_HOME=site.tree)
    started = succeeds(sysv("start", shell=shell))
    assert "Starting maildrop" in started.stdout
    assert sysv.good in started.stdout
    pid = site.pid
    assert is_alive(pid)
    assert owner(Path(f"/proc/{pid}")) == ACCOUNT
    assert sysv.lock.exists() == sysv.is_redhat
    stopped = succeeds(sysv("stop", shell=shell))
    assert "Stopping maildrop" in stopped.stdout
    assert sysv.good in stopped.stdout
    assert not is_alive(pid)
    assert not sysv.lock.exists()


@pytest.mark.parametrize("name", SYSV)
def test_an_init_script_restarts_the_daemon_whether_it_runs_or_not(open_site, name):
    sysv = SysV(open_site, name, MAILDROP_USER=ACCOUNT, SOFTWARE_HOME=open_site.tree)
    succeeds(sysv("restart"))
    pid = open_site.pid
    assert is_alive(pid)
    succeeds(sysv("restart"))
    assert not is_alive(pid)
    assert open_site.runs()
    assert open_site.pid != pid
    assert sysv.lock.exists() == sysv.is_redhat


@pytest.mark.parametrize("name", SYSV)
def test_an_init_script_shows_and_returns_a_failure(open_site, name):
    sysv = SysV(open_site, name, MAILDROP_USER=ACCOUNT, SOFTWARE_HOME=open_site.tree)
    stopped = sysv("stop")
    assert stopped.returncode == 1
    assert sysv.bad in stopped.stdout
    assert "already stopped" in stopped.stderr
    succeeds(sysv("start"))
    pid = open_site.pid
    again = sysv("start")
    assert again.returncode == 1
    assert sysv.bad in again.stdout
    assert "already running" in again.stderr
    assert open_site.pid == pid
    assert sysv.lock.exists() == sysv.is_redhat


@pytest.mark.parametrize("name", SYSV)
def test_an_init_script_that_could_not_start_the_daemon_leaves_no_lock(open_site, name):
    open_site.write_config(open_site.config, SMTP_PORT=0)
    sysv = SysV(open_site, name, MAILDROP_USER=ACCOUNT, SOFTWARE_HOME=open_site.tree)
    started = sysv("start")
    assert started.returncode == 1
    assert sysv.bad in started.stdout
    assert "SMTP_PORT" in started.stderr
    assert not sysv.lock.exists()


@pytest.mark.parametrize("name", SYSV)
def test_an_init_script_takes_the_config_inside_an_installed_package(open_site, name):
    site = open_site
    config = site.config.rename(site.package / "config")
    sysv = SysV(site, name, MAILDROP_USER=ACCOUNT, SOFTWARE_HOME=site.tree)
    succeeds(sysv("start", MAILDROP_CONFIG="/nowhere"))
    assert str(config) in command_line(site.pid).decode().split("\0")
    succeeds(sysv("stop"))


@pytest.mark.parametrize("name", SYSV)
def test_an_init_script_takes_the_config_at_its_top(open_site, name):
    site = open_site
    config = site.config.rename(site.root / "my config")
    sysv = SysV(site, name, MAILDROP_USER=ACCOUNT, SOFTWARE_HOME=site.tree, CONFIG=config)
    succeeds(sysv("start", MAILDROP_CONFIG="/nowhere"))
    assert str(config) in command_line(site.pid).decode().split("\0")
    succeeds(sysv("stop"))


@pytest.mark.parametrize("arguments", ([], ["status"], [""]), ids=str)
@pytest.mark.parametrize("name", SYSV)
def test_an_init_script_says_how_it_is_used(site, name, arguments):
    sysv = SysV(site, name, MAILDROP_USER=ACCOUNT, SOFTWARE_HOME=site.tree)
    result = sysv(*arguments)
    assert result.returncode == 2
    assert result.stderr == f"Usage: {sysv.script} {{start|stop|restart}}\n"


@pytest.mark.parametrize("lines", ({}, {"MAILDROP_USER": ACCOUNT}, {"SOFTWARE_HOME": "/"}), ids=str)
@pytest.mark.parametrize("name", SYSV)
def test_an_unedited_init_script_says_which_lines_to_edit(site, name, lines):
    sysv = SysV(site, name, **lines)
    result = sysv("start")
    assert result.returncode == 6
    assert result.stderr == f"Error: edit MAILDROP_USER and SOFTWARE_HOME in {sysv.script}\n"


@pytest.mark.parametrize("name", SYSV)
def test_an_init_script_with_a_wrong_folder_names_it(site, name):
    sysv = SysV(site, name, MAILDROP_USER=ACCOUNT, SOFTWARE_HOME="/no/such/folder")
    result = sysv("start")
    assert result.returncode == 5
    assert "/no/such/folder" in result.stderr
    assert result.stdout == ""


@pytest.mark.parametrize("name", SYSV)
def test_an_init_script_has_the_headers_that_its_system_reads(name):
    text = (BIN / name).read_text()
    assert re.search(r"(?m)^# chkconfig: \d+ \d\d \d\d$", text)
    assert re.search(r"(?m)^# description: \S", text)
    header = text.partition("### BEGIN INIT INFO\n")[2].partition("### END INIT INFO\n")[0]
    keys = re.findall(r"(?m)^# ([A-Z][A-Za-z-]+): +\S", header)
    assert {"Provides", "Required-Start", "Required-Stop", "Default-Start", "Default-Stop"} <= set(keys)
    assert len(keys) == len(header.splitlines())

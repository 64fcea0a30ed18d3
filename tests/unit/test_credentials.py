"""Where the password comes from."""

import dataclasses
import errno
import os
import shlex
import signal
import sys
import threading

import pytest
from support.daemon import wait_until

from maildrop import settings
from maildrop.credentials import Credentials, PasswordUnavailable
from maildrop.settings import SettingsError


def credentials(**changes):
    return Credentials(dataclasses.replace(settings.defaults(), login="site", **changes))


def by_command(script, **changes):
    return credentials(password_command=(sys.executable, "-c", script), **changes)


def counting(tmp_path, printed="'token %d' % n"):
    """A command that prints how often it has been run."""
    count = tmp_path / "count"
    count.write_text("0")
    return by_command(
        f"n = int(open({str(count)!r}).read()) + 1; open({str(count)!r}, 'w').write(str(n)); print({printed})"
    )


def test_a_login_needs_a_name_and_a_password():
    assert credentials(password="x").are_given
    assert not credentials().are_given
    assert not Credentials(dataclasses.replace(settings.defaults(), password="x")).are_given


def test_the_password_of_the_settings_is_taken_as_it_is():
    assert credentials(password=" blanks count ").password() == " blanks count "


def test_a_file_is_read_each_time(tmp_path):
    file = tmp_path / "password"
    file.write_text("old\n")
    found = credentials(password_file=file)
    assert found.password() == "old"
    file.write_bytes("neu ü\r\n".encode())
    assert found.password() == "neu ü"


@pytest.mark.parametrize(
    "content", [b"", b"\n", b"one\ntwo\n", b"a\0b", b"\xff", b"x" * 70_000], ids=repr
)
def test_a_file_that_holds_no_password_is_said_so_without_what_it_holds(tmp_path, content):
    file = tmp_path / "password"
    file.write_bytes(content)
    with pytest.raises(PasswordUnavailable, match="MAILDROP_PASSWORD_FILE=.*has to") as caught:
        credentials(password_file=file).password()
    assert "two" not in str(caught.value)


def test_a_missing_file_is_said_so(tmp_path):
    with pytest.raises(PasswordUnavailable, match="MAILDROP_PASSWORD_FILE=.*No such file"):
        credentials(password_file=tmp_path / "none").password()


def test_a_fifo_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(PasswordUnavailable):
        credentials(password_file=tmp_path / "fifo").password()


def test_a_command_is_run_once(tmp_path):
    found = counting(tmp_path)
    assert [found.password() for _ in range(3)] == ["token 1"] * 3


def test_a_token_that_worked_once_and_is_refused_is_asked_for_anew(tmp_path):
    found = counting(tmp_path)
    token = found.password()
    found.accepted(token)
    assert found.refused(token) is True
    assert found.password() == "token 2"


def test_a_new_token_that_is_refused_at_once_is_no_reason_to_try_again(tmp_path):
    found = counting(tmp_path)
    assert found.refused(found.password()) is False
    assert found.password() == "token 2"


def test_a_token_that_another_connection_has_got_renewed_is_a_reason_to_try_again(tmp_path):
    found = counting(tmp_path)
    token = found.password()
    found.accepted(token)
    found.refused(token)
    found.password()
    assert found.refused(token) is True
    assert found.password() == "token 2"


def test_a_password_that_is_not_from_a_command_is_not_tried_twice(tmp_path):
    found = credentials(password="x")
    found.accepted("x")
    assert found.refused("x") is False


def test_a_command_gets_its_arguments_without_a_shell(tmp_path):
    script = tmp_path / "token"
    script.write_text("#!/bin/sh\nprintf %s \"$1\"")
    script.chmod(0o700)
    argument = "$HOME `id` ; echo * 'x'"
    assert credentials(password_command=(str(script), argument)).password() == argument


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("print('hunter2'); raise SystemExit(3)", "status 3"),
        ("import os, signal; print('hunter2', flush=True); os.kill(os.getpid(), signal.SIGKILL)", "status -9"),
        ("pass", "one line"),
        ("print('hunter2'); print('more')", "one line"),
        ("print('hunter2' * 100_000)", "one line"),
    ],
)
def test_a_command_that_fails_is_said_so_without_what_it_printed(script, says):
    with pytest.raises(PasswordUnavailable, match=f"MAILDROP_PASSWORD_COMMAND: .*{says}") as caught:
        by_command(script).password()
    assert "hunter2" not in str(caught.value)


@pytest.mark.parametrize(
    "script",
    [
        "import time; time.sleep(600)",
        "import os, time; os.close(1); time.sleep(600)",
        "import os, time; os.fork() or time.sleep(600); print('a')",    # a child that keeps the pipe open
    ],
)
def test_a_command_that_hangs_is_killed_with_all_it_has_started(script, tmp_path):
    pids = tmp_path / "pid"
    note = f"import os; open({str(pids)!r}, 'w').write(str(os.getpgrp())); "
    with pytest.raises(PasswordUnavailable, match="has not ended within MAILDROP_TIMEOUT"):
        by_command(note + script, timeout_s=1.0).password()
    group = int(pids.read_text())
    wait_until(lambda: not processes_of_group(group))    # those that the command left behind are killed, not waited for


def test_a_command_is_ended_when_nobody_waits_for_it_any_more_and_not_begun_again(tmp_path):
    runs = tmp_path / "runs"
    found = by_command(f"import time; open({str(runs)!r}, 'a').write('x'); time.sleep(600)", timeout_s=600.0)
    failures = []

    def ask():
        try:
            found.password()
        except PasswordUnavailable as error:
            failures.append(error)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    wait_until(lambda: runs.exists() and runs.read_text())
    found.cut()
    asking.join(20)
    assert len(failures) == 1
    with pytest.raises(PasswordUnavailable):
        found.password()
    assert runs.read_text() == "x"


def processes_of_group(group):
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            state, _, its_group = open(f"/proc/{pid}/stat").read().rpartition(")")[2].split()[:3]
        except OSError:
            continue
        if int(its_group) == group and state != "Z":
            found.append(pid)
    return found


def test_what_a_command_writes_to_standard_error_is_nobodys_business(capfd):
    assert by_command("import sys; print('hunter2', file=sys.stderr); print('token')").password() == "token"
    assert capfd.readouterr() == ("", "")


def test_a_command_that_cannot_be_ended_is_run_once_and_stops_nothing(tmp_path, monkeypatch):
    """As one that has become another account's."""
    runs = tmp_path / "runs"
    found = by_command(f"import time; open({str(runs)!r}, 'a').write('x'); time.sleep(600)", timeout_s=1.0)
    killpg = os.killpg

    def refuse(group, number):
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "killpg", refuse)
    try:
        with pytest.raises(PasswordUnavailable, match="has not ended within MAILDROP_TIMEOUT"):
            found.password()
        with pytest.raises(PasswordUnavailable, match="still runs since the last time"):
            found.password()
        found.cut()
        assert runs.read_text() == "x"
    finally:
        monkeypatch.setattr(os, "killpg", killpg)
        found.cut()


def test_a_command_can_be_ended_by_signals_though_the_daemon_blocks_them():
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    try:
        printed = by_command("import signal; print(sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())))").password()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    assert printed == "[]"


def test_the_password_is_in_no_text_of_the_object():
    assert "hunter2" not in repr(credentials(password="hunter2"))
    assert "hunter2" not in repr(credentials(password_command=("echo", "hunter2")).settings)


@pytest.mark.parametrize(
    "changes",
    [{"password_command": ("no-such-program", "x")}, {"password_file": "missing"}],
    ids=["no program", "no file"],
)
def test_what_cannot_work_is_found_before_it_is_needed(tmp_path, changes):
    if "password_file" in changes:
        changes = {"password_file": tmp_path / "missing"}
    with pytest.raises(SettingsError, match="MAILDROP_PASSWORD_"):
        credentials(**changes).check()


def test_what_can_work_is_not_run_before_it_is_needed(tmp_path):
    trace = tmp_path / "ran"
    credentials(password_command=("touch", shlex.quote(str(trace)))).check()
    credentials(password="x").check()
    assert not trace.exists()

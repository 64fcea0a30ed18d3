import os
import stat
import subprocess
import sys
import threading
from contextlib import contextmanager
from pathlib import Path

import pytest

from maildrop import pidfile
from maildrop.pidfile import AlreadyRunning, PidFile, holder, running_pid

has_proc = pytest.mark.skipif(not Path("/proc/self/cmdline").exists(), reason="no /proc here")


@pytest.fixture(autouse=True)
def little_patience(monkeypatch):
    """A lock that stays is waited for no longer than a test may take."""
    monkeypatch.setattr(pidfile, "_PATIENCE_S", 0.05)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "maildrop.pid"


@contextmanager
def process(*arguments):
    """Another process that lives until the block ends; ``arguments`` stand in its command line."""
    command = [sys.executable, "-c", "print('ready', flush=True); input()", *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as running:
        assert running.stdout.readline() == b"ready\n"    # before, its command line may not be there yet
        try:
            yield running.pid
        finally:
            running.communicate(b"\n")


def ended_pid():
    with process() as pid:
        return pid


def test_the_file_has_the_id_of_this_process_until_it_is_removed(path):
    ours = PidFile(path)
    ours.write()
    assert path.read_text() == f"{os.getpid()}\n"
    assert running_pid(path) == os.getpid()
    ours.remove()
    assert not path.exists()
    assert running_pid(path) is None


@pytest.mark.parametrize("umask", [0, 0o077])
def test_everybody_may_read_it_and_nobody_else_write(path, set_umask, umask):
    set_umask(umask)
    ours = PidFile(path)
    ours.write()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644
    ours.remove()


def test_the_owner_of_the_file_is_told_with_the_process(path):
    ours = PidFile(path)
    ours.write()
    assert holder(path) == (os.getpid(), os.geteuid())
    ours.remove()
    assert holder(path) is None


def test_a_second_daemon_is_refused_and_told_which_is_the_first(path):
    first = PidFile(path)
    first.write()
    with pytest.raises(AlreadyRunning) as caught:
        PidFile(path)
    assert f"process {os.getpid()}" in str(caught.value)
    assert str(path) in str(caught.value)
    assert path.read_text() == f"{os.getpid()}\n"
    assert running_pid(path) == os.getpid()
    first.remove()


def test_a_second_daemon_is_refused_before_the_first_has_written_its_id(path):
    first = PidFile(path)
    with pytest.raises(AlreadyRunning, match="already running; it holds"):
        PidFile(path)
    assert running_pid(path) is None
    first.remove()


def test_a_refused_daemon_leaves_nothing_open(path):
    first = PidFile(path)
    first.write()
    before = set(os.listdir("/dev/fd"))
    with pytest.raises(AlreadyRunning):
        PidFile(path)
    running_pid(path)
    assert set(os.listdir("/dev/fd")) == before
    first.remove()


def test_a_file_that_nobody_holds_is_taken_over(path):
    path.write_text(f"{ended_pid()} and more text than an id\n")
    assert running_pid(path) is None
    ours = PidFile(path)
    ours.write()
    assert path.read_text() == f"{os.getpid()}\n"
    ours.remove()


@pytest.mark.parametrize("text", ["", "\n", "0\n", "-1\n", "what\n", "12 34\n", "\udcff", "²", "9" * 20])
def test_a_file_without_an_id_that_nobody_holds_is_no_daemon(path, text):
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    assert running_pid(path) is None
    ours = PidFile(path)
    ours.write()
    assert running_pid(path) == os.getpid()
    ours.remove()


@pytest.mark.parametrize("text", ["9" * 10, "9" * 20, " " * 19 + "12", "0" * 19 + "12"])
def test_what_cannot_be_an_id_or_is_too_long_for_one_is_none_although_somebody_holds_the_file(path, text):
    ours = PidFile(path)
    path.write_text(text)
    assert running_pid(path) is None
    ours.remove()


def test_a_stale_file_with_the_id_of_some_other_live_process_is_no_daemon(path):
    with process() as pid:
        path.write_text(f"{pid}\n")
        assert running_pid(path) is None
        PidFile(path).remove()


def test_a_stale_file_with_our_own_id_is_no_daemon(path):
    path.write_text(f"{os.getpid()}\n")
    assert running_pid(path) is None
    PidFile(path).remove()


@has_proc
def test_what_may_be_a_daemon_of_version_2_3_is_not_doubled_and_not_taken_for_ours(path):
    with process("/opt/maildrop/maildrop.py", "config") as pid:
        path.write_text(f"{pid}")
        assert running_pid(path) is None    # it may be any process that got the id since: nobody should end it
        with pytest.raises(AlreadyRunning, match=f"version 2.3, process {pid}; stop it, or remove the file"):
            PidFile(path)
        assert path.read_text() == f"{pid}"
    assert running_pid(path) is None
    PidFile(path).remove()


@has_proc
def test_a_refusal_for_a_daemon_of_version_2_3_leaves_the_file_to_be_taken_over(path):
    with process("/opt/maildrop/maildrop.py", "config") as pid:
        path.write_text(f"{pid}")
        before = set(os.listdir("/dev/fd"))
        with pytest.raises(AlreadyRunning):
            PidFile(path)
        assert set(os.listdir("/dev/fd")) == before
        path.unlink()
        PidFile(path).remove()


def test_a_file_that_somebody_looks_at_for_a_moment_is_waited_for(path, monkeypatch):
    monkeypatch.setattr(pidfile, "_PATIENCE_S", 5)
    first = PidFile(path)
    timer = threading.Timer(0.03, os.close, [first._descriptor])    # as when a process dies
    timer.start()
    second = PidFile(path)
    timer.join()
    second.write()
    assert running_pid(path) == os.getpid()
    second.remove()


def test_a_file_that_its_owner_removes_while_it_is_waited_for_is_made_anew(path, monkeypatch):
    monkeypatch.setattr(pidfile, "_PATIENCE_S", 5)
    first = PidFile(path)
    timer = threading.Timer(0.03, first.remove)
    timer.start()
    second = PidFile(path)
    timer.join()
    second.write()
    assert running_pid(path) == os.getpid()
    second.remove()
    assert not path.exists()


def test_a_daemon_that_has_just_started_is_waited_for_until_it_has_written_its_id(path, monkeypatch):
    monkeypatch.setattr(pidfile, "_PATIENCE_S", 5)
    ours = PidFile(path)
    timer = threading.Timer(0.03, ours.write)
    timer.start()
    assert running_pid(path) == os.getpid()
    timer.join()
    ours.remove()


def test_many_may_look_at_once_and_none_takes_another_for_a_daemon(path):
    path.write_text(f"{ended_pid()}\n")
    found = []

    def look():
        found.extend(running_pid(path) for _ in range(200))

    threads = [threading.Thread(target=look) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == [None] * 800


def test_a_file_that_is_somebody_elses_by_now_is_not_removed(path):
    ours = PidFile(path)
    ours.write()
    path.unlink()
    path.write_text("another's\n")
    ours.remove()
    assert path.read_text() == "another's\n"


def test_a_file_that_is_gone_already_need_not_be_removed(path):
    ours = PidFile(path)
    path.unlink()
    ours.remove()
    assert not path.exists()


def test_without_a_file_there_is_no_daemon(path):
    assert running_pid(path) is None
    assert running_pid(path / "none") is None


def test_a_link_is_not_followed(path, tmp_path):
    path.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(OSError):
        PidFile(path)
    assert not (tmp_path / "elsewhere").exists()


def test_a_directory_that_is_not_there_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError):
        PidFile(tmp_path / "none" / "maildrop.pid")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_cannot_be_read_is_an_error(path):
    path.write_text("1\n")
    path.chmod(0)
    with pytest.raises(PermissionError):
        running_pid(path)
    with pytest.raises(PermissionError):
        PidFile(path)


def test_the_lock_is_free_when_its_process_has_died(path):
    code = (
        "import os, sys; from pathlib import Path; from maildrop.pidfile import PidFile\n"
        "ours = PidFile(Path(sys.argv[1])); ours.write(); print('ready', flush=True); input(); os.kill(os.getpid(), 9)"
    )
    command = [sys.executable, "-c", code, str(path)]
    root = Path(pidfile.__file__).parents[1]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as daemon:
        assert daemon.stdout.readline() == b"ready\n"
        assert running_pid(path) == daemon.pid
        with pytest.raises(AlreadyRunning, match=f"process {daemon.pid}"):
            PidFile(path)
        daemon.communicate(b"\n")
    assert path.read_text() == f"{daemon.pid}\n"
    assert running_pid(path) is None
    PidFile(path).remove()

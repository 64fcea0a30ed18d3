"""The wake-up, with real FIFOs: what a writer says, a daemon hears, and nothing that is said does harm."""

import fcntl
import os
import select
import socket
import stat
import subprocess
import sys
import threading
import time

import pytest
from support.requires import requires_root

from maildrop import spool, wake
from maildrop.wake import WakeUp, announce

PATIENCE_S = 30
NOTHING = ([], False)
LOOK = ([], True)


@pytest.fixture
def make_waker():
    made = []

    def make(*directories, mode=0o700):
        waker = WakeUp()
        made.append(waker)
        waker.listen(directories, mode)
        return waker

    yield make
    for waker in made:
        waker.close()


@pytest.fixture
def waker(make_waker, spool_directory):
    return make_waker(spool_directory)


def heard(waker, timeout_s=0):
    woken = waker.wait(timeout_s)
    return woken.paths, woken.look


def fifos(directory):
    return sorted((directory / "wake").iterdir())


def say(directory, *sayings):
    """Write into the only FIFO, each saying at once."""
    (fifo,) = fifos(directory)
    descriptor = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    try:
        for saying in sayings:
            os.write(descriptor, saying)
    finally:
        os.close(descriptor)


def descriptors():
    return set(os.listdir("/dev/fd"))


# -- what is said is heard --


def test_without_a_word_the_time_goes_by(waker):
    assert heard(waker, 0) == NOTHING
    assert heard(waker, 0.01) == NOTHING


@pytest.mark.parametrize("timeout_s", [-1, 0.0001])
def test_a_time_that_is_over_or_hardly_any_is_waited_for_too(waker, timeout_s):
    assert heard(waker, timeout_s) == NOTHING


def test_a_named_mail_is_heard_as_its_path(waker, spool_directory):
    name = spool.new_name()
    announce(spool_directory, [name])
    assert heard(waker) == ([spool_directory / name], False)
    assert heard(waker) == NOTHING


def test_a_burst_is_heard_at_once_in_its_order_and_each_mail_once(waker, spool_directory):
    names = [spool.new_name() for _ in range(5)]
    announce(spool_directory, names[:2])
    announce(spool_directory, names[1:])
    announce(spool_directory, names[:1])
    assert heard(waker) == ([spool_directory / name for name in names], False)
    assert heard(waker) == NOTHING


def test_without_names_a_look_is_asked_for(waker, spool_directory):
    announce(spool_directory)
    assert heard(waker) == LOOK
    announce(spool_directory, [])
    assert heard(waker) == LOOK
    assert heard(waker) == NOTHING


def test_names_and_a_look_are_heard_together(waker, spool_directory):
    name = spool.new_name()
    announce(spool_directory, [name])
    announce(spool_directory)
    assert heard(waker) == ([spool_directory / name], True)


def test_as_many_names_as_a_pipe_takes_at_once_are_told_and_one_more_asks_for_a_look(waker, spool_directory):
    most = select.PIPE_BUF // len(f"{spool.new_name()}\n")
    names = [spool.new_name() for _ in range(most)]
    announce(spool_directory, names)
    assert heard(waker) == ([spool_directory / name for name in names], False)
    announce(spool_directory, [*names, spool.new_name()])
    assert heard(waker) == LOOK


def test_names_may_come_from_a_generator(waker, spool_directory):
    names = [spool.new_name() for _ in range(2)]
    announce(spool_directory, (name for name in names))
    assert heard(waker) == ([spool_directory / name for name in names], False)


@pytest.mark.parametrize("name", ["1", "", "two\nlines", "a/b", "..", "\0", "bounce-x", "é", "\udcff"])
def test_for_a_name_that_no_writer_of_ours_makes_a_look_is_asked_for(waker, spool_directory, name):
    announce(spool_directory, [spool.new_name(), name])
    assert heard(waker) == LOOK


def test_each_of_several_spools_is_heard(make_waker, tmp_path):
    spools = [tmp_path / "one", tmp_path / "two", tmp_path / "three"]
    waker = make_waker(*spools)
    names = [spool.new_name() for _ in spools]
    for directory, name in zip(spools, names, strict=True):
        announce(directory, [name])
    woken = waker.wait(PATIENCE_S)
    assert sorted(woken.paths) == sorted(directory / name for directory, name in zip(spools, names, strict=True))
    assert not woken.look
    announce(spools[1])
    assert heard(waker) == LOOK


def test_every_daemon_hears(make_waker, spool_directory):
    wakers = [make_waker(spool_directory) for _ in range(3)]
    name = spool.new_name()
    announce(spool_directory, [name])
    for waker in wakers:
        assert heard(waker) == ([spool_directory / name], False)


def test_a_waiting_daemon_is_woken_by_another_process(waker, spool_directory):
    name = spool.new_name()
    code = "import sys; from maildrop.wake import announce; announce(sys.argv[1], sys.argv[2:])"
    with subprocess.Popen([sys.executable, "-c", code, spool_directory, name]) as writer:
        assert heard(waker, PATIENCE_S) == ([spool_directory / name], False)
    assert writer.returncode == 0


def test_many_writers_at_once_are_all_heard(waker, spool_directory):
    names = [[spool.new_name() for _ in range(50)] for _ in range(8)]
    ready = threading.Barrier(len(names))

    def write(mine):
        ready.wait()
        for name in mine:
            announce(spool_directory, [name])

    writers = [threading.Thread(target=write, args=(mine,)) for mine in names]
    for writer in writers:
        writer.start()
    wanted, found, deadline = {name for mine in names for name in mine}, set(), time.monotonic() + PATIENCE_S
    looked = False
    while found != wanted and not looked and time.monotonic() < deadline:
        woken = waker.wait(1)
        found |= {path.name for path in woken.paths}
        looked = woken.look
    for writer in writers:
        writer.join()
    assert found == wanted or looked
    assert found <= wanted


# -- what is no word of ours --

NAME = "20261123T101112.123456-0123abcd"


@pytest.mark.parametrize(
    "saying",
    [
        b"\n",
        b"\n\n\n",
        b"garbage\n",
        b"garbage",
        b"../../etc/passwd\n",
        b"/etc/passwd\n",
        b"\0\n",
        b"\xff\xfe\n",
        b"x" * 4096,
        NAME.encode(),
        NAME.encode()[:-1] + b"\n",
        b"/" + NAME.encode() + b"\n",
        b"../" + NAME.encode() + b"\n",
        NAME.encode() + b".lck\n",
        NAME.encode() + b"\0\n",
        NAME.encode() + b" \n",
        NAME.encode() + b"\r\n",
        NAME.replace("2", "\u0662").encode() + b"\n",
        b"failed/" + NAME.encode() + b".1\n",
    ],
)
def test_what_is_no_name_of_ours_only_asks_for_a_look(waker, spool_directory, saying):
    say(spool_directory, saying)
    assert heard(waker) in (LOOK, ([spool_directory / NAME], True))
    if saying != NAME.encode():
        assert heard(waker) == NOTHING


def test_a_path_is_never_anything_but_a_name_in_the_spool(waker, spool_directory):
    say(spool_directory, b"../" + NAME.encode() + b"\n", b"x/" + NAME.encode() + b"\n\n", NAME.encode() + b"\n")
    assert heard(waker) == ([spool_directory / NAME], True)


def test_the_words_around_garbage_are_heard(waker, spool_directory):
    first, second = spool.new_name(), spool.new_name()
    announce(spool_directory, [first])
    say(spool_directory, b"garbage\n")
    announce(spool_directory, [second])
    assert heard(waker) == ([spool_directory / first, spool_directory / second], True)


@pytest.mark.parametrize("size", [1, 31, 33, 100, 2049, 4096])
def test_a_writer_that_finds_the_pipe_full_does_not_wait_and_the_daemon_looks(waker, spool_directory, size):
    (fifo,) = fifos(spool_directory)
    descriptor = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
    message = (NAME + "\n").encode() * (size // 32) + b"x" * (size % 32 - 1) + b"\n" * (size % 32 > 0)
    with pytest.raises(BlockingIOError):
        while True:
            os.write(descriptor, message)
    announce(spool_directory, [spool.new_name()])
    os.close(descriptor)
    assert waker.wait(0).look
    name = spool.new_name()
    announce(spool_directory, [name])
    assert spool_directory / name in waker.wait(0).paths


@pytest.mark.skipif(not hasattr(fcntl, "F_SETPIPE_SZ"), reason="pipes of any size are Linux's")
@pytest.mark.parametrize("size", [4096, 8192, 1 << 20])
def test_a_pipe_of_another_size_loses_no_word(waker, spool_directory, size):
    (fifo,) = fifos(spool_directory)
    keeper = os.open(fifo, os.O_RDWR | os.O_NONBLOCK)
    try:
        fcntl.fcntl(keeper, fcntl.F_SETPIPE_SZ, size)
    finally:
        os.close(keeper)
    names = [spool.new_name() for _ in range(100)]
    for _ in range(30):
        announce(spool_directory, names)
    look, paths = False, []
    while (woken := waker.wait(0)).paths or woken.look:
        look, paths = look or woken.look, paths + woken.paths
    assert look
    assert {path.name for path in paths} <= set(names)


# -- the writer disturbs nobody --


def test_without_a_daemon_nothing_is_made(spool_directory):
    before = sorted(spool_directory.iterdir())
    announce(spool_directory, [spool.new_name()])
    announce(spool_directory / "none")
    assert sorted(spool_directory.iterdir()) == before


@pytest.mark.parametrize("there", ["file", "link to nothing", "fifo"])
def test_something_else_in_the_place_of_the_directory_is_no_error(spool_directory, there):
    if there == "file":
        (spool_directory / "wake").write_text("precious")
    elif there == "fifo":
        os.mkfifo(spool_directory / "wake")
    else:
        (spool_directory / "wake").symlink_to("nowhere")
    announce(spool_directory, [spool.new_name()])
    waker = WakeUp()
    waker.listen([spool_directory], 0o700)
    assert heard(waker, 0.01) == NOTHING
    waker.close()
    if there == "file":
        assert (spool_directory / "wake").read_text() == "precious"


def test_what_is_no_fifo_is_never_opened(waker, spool_directory, monkeypatch):
    directory = spool_directory / "wake"
    (directory / "file").write_text("precious")
    (directory / "directory").mkdir()
    (directory / "link").symlink_to(fifos(spool_directory)[-1])
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(directory / "socket"))
        opened, really_open = [], os.open

        def opening(path, *arguments, **keywords):
            opened.append(os.path.basename(path))
            return really_open(path, *arguments, **keywords)

        monkeypatch.setattr(os, "open", opening)
        name = spool.new_name()
        announce(spool_directory, [name])
    assert not {"file", "directory", "link", "socket"} & set(opened)
    assert (directory / "file").read_text() == "precious"
    assert heard(waker) == ([spool_directory / name], False)


def test_what_becomes_a_file_before_it_is_opened_is_not_written_to(spool_directory, monkeypatch):
    directory = spool_directory / "wake"
    directory.mkdir()
    os.mkfifo(directory / "x")
    really_open = os.open

    def exchanging(path, *arguments, **keywords):
        os.unlink(path)
        (directory / "x").write_text("precious")
        return really_open(path, *arguments, **keywords)

    with monkeypatch.context() as patch:
        patch.setattr(os, "open", exchanging)
        announce(spool_directory, [spool.new_name()])
    assert (directory / "x").read_text() == "precious"


def test_a_fifo_that_nobody_reads_stops_neither_the_writer_nor_the_others(make_waker, spool_directory):
    (spool_directory / "wake").mkdir()
    for name in ("0", "zzz"):
        os.mkfifo(spool_directory / "wake" / name)
    waker = make_waker(spool_directory)
    name = spool.new_name()
    announce(spool_directory, [name])
    assert heard(waker) == ([spool_directory / name], False)


@pytest.mark.parametrize("error", [BrokenPipeError, BlockingIOError, PermissionError, OSError])
def test_no_error_of_a_write_reaches_the_writer_and_nothing_stays_open(waker, spool_directory, monkeypatch, error):
    def fails(*arguments):
        raise error

    before = descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(os, "write", fails)
        announce(spool_directory, [spool.new_name()])
    assert descriptors() == before


@pytest.mark.parametrize("directory", ["a\0b", "x" * 5000, ""])
def test_a_path_that_cannot_be_is_no_error(directory):
    announce(directory, [spool.new_name()])


def test_a_reader_that_goes_away_does_not_kill_the_writer(spool_directory):
    (spool_directory / "wake").mkdir()
    os.mkfifo(spool_directory / "wake" / "x")
    reading = os.open(spool_directory / "wake" / "x", os.O_RDONLY | os.O_NONBLOCK)
    announce(spool_directory)
    os.close(reading)
    announce(spool_directory)


# -- ringing --


def test_a_ring_ends_the_wait_without_a_word(waker):
    thread = threading.Thread(target=waker.ring)
    thread.start()
    assert heard(waker, PATIENCE_S) == NOTHING
    thread.join()


def test_rings_before_the_wait_end_it_and_count_once(waker, monkeypatch):
    for _ in range(10):
        waker.ring()
    begun = time.monotonic()
    assert heard(waker, PATIENCE_S) == NOTHING
    assert time.monotonic() - begun < PATIENCE_S
    assert waker._poll.poll(0) == []


def test_rings_without_end_never_wait(waker):
    for _ in range(100_000):
        waker.ring()
    for _ in range(100):
        assert heard(waker) == NOTHING


def test_after_the_end_a_ring_does_nothing(waker, tmp_path):
    waker.close()
    files = [open(tmp_path / str(number), "wb") for number in range(8)]    # they get the descriptors that are free now
    waker.ring()
    for file in files:
        file.close()
    assert all((tmp_path / str(number)).read_bytes() == b"" for number in range(8))


def test_a_ring_and_a_word_at_the_same_time_are_taken_together(waker, spool_directory):
    announce(spool_directory, [NAME])
    waker.ring()
    assert heard(waker) == ([spool_directory / NAME], False)
    assert waker._poll.poll(0) == []


# -- the FIFO --


def test_a_fifo_is_there_while_somebody_listens_and_gone_afterwards(make_waker, spool_directory):
    waker = make_waker(spool_directory)
    (fifo,) = fifos(spool_directory)
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    other = make_waker(spool_directory)
    assert len(fifos(spool_directory)) == 2
    waker.close()
    assert len(fifos(spool_directory)) == 1 and not fifo.exists()
    other.close()
    assert fifos(spool_directory) == []


@pytest.mark.parametrize(("mode", "of_the_fifo"), [(0o700, 0o600), (0o2770, 0o660)])
@pytest.mark.parametrize("umask", [0, 0o077])
def test_its_mode_is_as_configured_whatever_the_umask(make_waker, spool_directory, set_umask, mode, of_the_fifo, umask):
    set_umask(umask)
    make_waker(spool_directory, mode=mode)
    (fifo,) = fifos(spool_directory)
    assert stat.S_IMODE(fifo.stat().st_mode) == of_the_fifo
    assert stat.S_IMODE(fifo.parent.stat().st_mode) == mode


def test_to_listen_again_changes_nothing_and_takes_one_look_a_spool(make_waker, tmp_path, monkeypatch):
    spools = [tmp_path / "one", tmp_path / "two"]
    waker = make_waker(*spools)
    before, opened = [fifos(directory) for directory in spools], descriptors()
    looked, lstat = [], os.lstat
    with monkeypatch.context() as patch:
        patch.setattr(os, "lstat", lambda path: (looked.append(path), lstat(path))[1])
        for call in ("open", "mkfifo", "stat", "scandir", "mkdir", "unlink"):
            patch.setattr(os, call, None)
        waker.listen(spools, 0o700)
    assert len(looked) == 2
    assert [fifos(directory) for directory in spools] == before
    assert descriptors() == opened
    assert heard(waker) == NOTHING


@pytest.mark.parametrize("happens", ["removed", "replaced", "a file instead", "directory gone", "spool gone"])
def test_a_fifo_that_has_gone_is_made_again_and_a_look_makes_up_for_what_was_not_heard(waker, spool_directory, happens):
    (fifo,) = fifos(spool_directory)
    fifo.unlink()
    if happens == "replaced":
        os.mkfifo(fifo)
    elif happens == "a file instead":
        fifo.write_text("no FIFO")
    elif happens == "directory gone":
        fifo.parent.rmdir()
    elif happens == "spool gone":
        spool_directory.rename(spool_directory.with_name("aside"))
    opened = descriptors()
    waker.listen([spool_directory], 0o700)
    assert descriptors() == opened
    assert heard(waker, PATIENCE_S) == LOOK
    announce(spool_directory, [NAME])
    assert heard(waker) == ([spool_directory / NAME], False)


def test_what_was_said_into_a_fifo_that_went_is_made_up_for_by_a_look(waker, spool_directory):
    announce(spool_directory, [NAME])
    fifos(spool_directory)[0].unlink()
    waker.listen([spool_directory], 0o700)
    assert waker.wait(PATIENCE_S).look


def test_a_spool_that_is_not_named_any_more_is_not_listened_at(make_waker, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    before = descriptors()
    waker = make_waker(one, two)
    announce(one, [NAME])
    waker.listen([two], 0o700)
    assert fifos(one) == [] and len(fifos(two)) == 1
    assert heard(waker) == NOTHING
    waker.listen([], 0o700)
    assert fifos(two) == []
    waker.close()
    assert descriptors() == before


def test_a_spool_that_is_named_twice_has_one_fifo(make_waker, spool_directory):
    make_waker(spool_directory, spool_directory)
    assert len(fifos(spool_directory)) == 1


def test_without_spools_only_time_and_ring_end_the_wait(make_waker):
    waker = make_waker()
    assert heard(waker, 0.01) == NOTHING
    waker.ring()
    assert heard(waker, PATIENCE_S) == NOTHING


def test_a_spool_where_no_fifo_can_be_made_is_served_later_if_it_can(make_waker, tmp_path):
    directory = tmp_path / "spool"
    directory.write_text("no directory")
    other = tmp_path / "other"
    waker = make_waker(directory, other)
    assert heard(waker, 0.01) == NOTHING
    announce(other, [NAME])
    assert heard(waker) == ([other / NAME], False)
    directory.unlink()
    waker.listen([directory, other], 0o700)
    assert heard(waker, PATIENCE_S) == LOOK
    announce(directory, [NAME])
    assert heard(waker) == ([directory / NAME], False)


@pytest.mark.parametrize("call", ["mkfifo", "open", "fchmod", "scandir"])
@pytest.mark.parametrize("error", [PermissionError(13, "x"), OSError(30, "Read-only file system"), OSError(1, "x")])
def test_whatever_the_system_refuses_is_no_error_and_leaves_nothing(spool_directory, monkeypatch, call, error):
    def refuses(*arguments, **keywords):
        raise error

    (spool_directory / "wake").mkdir()
    waker = WakeUp()
    before = descriptors()
    with monkeypatch.context() as patch:
        patch.setattr(os, call, refuses)
        waker.listen([spool_directory], 0o700)
    assert descriptors() == before
    assert fifos(spool_directory) == []
    assert heard(waker, 0.01) == NOTHING
    waker.close()


def test_a_fifo_of_a_name_that_is_taken_is_not_made(spool_directory, monkeypatch):
    class Same:
        hex = "same"

    monkeypatch.setattr(wake.uuid, "uuid4", Same)
    (spool_directory / "wake").mkdir()
    (spool_directory / "wake" / "same").write_text("precious")
    waker = WakeUp()
    waker.listen([spool_directory], 0o700)
    waker.close()
    assert (spool_directory / "wake" / "same").read_text() == "precious"


def test_the_end_removes_only_what_is_ours_and_never_fails(make_waker, spool_directory):
    before = descriptors()
    waker = make_waker(spool_directory)
    (fifo,) = fifos(spool_directory)
    fifo.unlink()
    fifo.write_text("precious")
    waker.close()
    assert fifo.read_text() == "precious"
    waker.close()
    assert descriptors() == before


def test_a_wake_directory_that_is_a_link_leads_nowhere(make_waker, spool_directory, tmp_path):
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (spool_directory / "wake").symlink_to(elsewhere)
    make_waker(spool_directory)
    assert list(elsewhere.iterdir()) == []


def test_descriptors_above_what_select_takes_serve_too(spool_directory, tmp_path):
    code = (
        "import os, resource, sys\n"
        "from pathlib import Path\n"
        "from maildrop.wake import WakeUp, announce\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (2048, resource.getrlimit(resource.RLIMIT_NOFILE)[1]))\n"
        "held = [os.open('/dev/null', os.O_RDONLY) for _ in range(1100)]\n"
        "waker = WakeUp()\n"
        "directory = Path(sys.argv[1])\n"
        "waker.listen([directory], 0o700)\n"
        "announce(directory)\n"
        "assert waker.wait(30).look\n"
        "waker.close()\n"
    )
    done = subprocess.run([sys.executable, "-c", code, spool_directory], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_a_daemon_of_roots_listens_to_the_account_of_the_spool(make_waker, spool_directory):
    requires_root()
    os.chown(spool_directory, 12345, 12346)
    make_waker(spool_directory)
    (fifo,) = fifos(spool_directory)
    for path in (fifo, fifo.parent):
        assert (path.stat().st_uid, path.stat().st_gid) == (12345, 12346)


# -- what dead daemons left --


@pytest.fixture
def later(monkeypatch):
    """Time is two minutes ahead of that of the files."""
    now = time.time
    monkeypatch.setattr(wake.time, "time", lambda: now() + 120)


def test_an_old_fifo_that_nobody_reads_is_removed_and_nothing_else(make_waker, spool_directory, later):
    directory = spool_directory / "wake"
    directory.mkdir()
    for name in ("dead", "alive"):
        os.mkfifo(directory / name)
    (directory / "file").write_text("precious")
    (directory / "link").symlink_to("dead")
    (directory / "directory").mkdir()
    alive = os.open(directory / "alive", os.O_RDONLY | os.O_NONBLOCK)
    before = descriptors()
    waker = make_waker(spool_directory)
    os.close(alive)
    names = {path.name for path in fifos(spool_directory)}
    assert {"alive", "file", "link", "directory"} < names and "dead" not in names
    assert len(names) == 5
    waker.close()
    assert descriptors() < before


def test_a_young_fifo_may_be_about_to_be_read(make_waker, spool_directory):
    (spool_directory / "wake").mkdir()
    os.mkfifo(spool_directory / "wake" / "young")
    make_waker(spool_directory)
    assert len(fifos(spool_directory)) == 2


def test_what_is_dead_is_looked_for_only_when_a_fifo_is_made(make_waker, spool_directory, later):
    waker = make_waker(spool_directory)
    os.mkfifo(spool_directory / "wake" / "dead")
    waker.listen([spool_directory], 0o700)
    assert len(fifos(spool_directory)) == 2
    fifos(spool_directory)[0 if fifos(spool_directory)[1].name == "dead" else 1].unlink()
    waker.listen([spool_directory], 0o700)
    assert [path.name for path in fifos(spool_directory)] != ["dead"] and len(fifos(spool_directory)) == 1


def test_a_killed_daemons_fifo_goes_with_the_next_start(make_waker, spool_directory, later):
    code = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from maildrop.wake import WakeUp\n"
        "waker = WakeUp()\n"
        "waker.listen([Path(sys.argv[1])], 0o700)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    assert subprocess.run([sys.executable, "-c", code, spool_directory]).returncode < 0
    (left,) = fifos(spool_directory)
    announce(spool_directory)
    make_waker(spool_directory)
    assert not left.exists() and len(fifos(spool_directory)) == 1

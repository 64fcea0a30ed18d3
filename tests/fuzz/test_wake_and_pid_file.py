"""Whatever stands in a wake-up FIFO or a pid file: nothing but mails of the spool is meant, and no wrong process."""

import fcntl
import os
import tempfile
from contextlib import suppress
from pathlib import Path

from hypothesis import strategies as st
from support.examples import mutated
from support.fuzzing import fuzzed

from maildrop import pidfile, spool
from maildrop.wake import WAKE, WakeUp

NAME = b"20261123T101112.123456-0123abcd"
PIECES = (NAME, b"\n", b"\r\n", b"../", b"/", b"\0", b".lck", b"failed/", b"/etc/passwd\n", b"\xd9\xa2", b" ", b"x" * 4096)
sayings = st.one_of(
    st.lists(st.sampled_from(PIECES), max_size=8).map(b"".join), mutated(st.just(NAME + b"\n"), PIECES), st.binary(max_size=40)
)


@fuzzed("sayings in the wake-up", 150, said=st.lists(sayings, min_size=1, max_size=5))
def test_what_is_heard_are_names_of_mails_in_the_spool_and_all_else_asks_for_a_look(said):
    with tempfile.TemporaryDirectory() as home:
        directory = Path(home)
        waker = WakeUp()
        try:
            waker.listen([directory], 0o700)
            (fifo,) = (directory / WAKE).iterdir()
            pipe = os.open(fifo, os.O_WRONLY | os.O_NONBLOCK)
            for saying in said:
                with suppress(BlockingIOError):
                    os.write(pipe, saying)
            os.close(pipe)
            lines = b"".join(said).split(b"\n")
            woken = waker.wait(0)
        finally:
            waker.close()
        assert all(path.parent == directory and spool.is_our_name(path.name) for path in woken.paths)
        assert {os.fsencode(path.name) for path in woken.paths} <= set(lines)
        assert woken.look or all(line == NAME for line in lines[:-1]) and not lines[-1]


numbers = st.one_of(st.integers(-10, 10**25), st.sampled_from((0, 1, 2**31, 2**32, 2**63, 2**64))).map(b"%d".__mod__)
padded = st.tuples(st.sampled_from((b"", b" " * 15, b"0" * 19)), numbers, st.binary(max_size=9)).map(b"".join)
pid_files = st.one_of(numbers, padded, st.binary(max_size=30))


@fuzzed("pid files", 200, text=pid_files)
def test_a_pid_file_tells_of_no_process_where_it_is_not_locked_and_else_of_one_there_may_be(text):
    with tempfile.TemporaryDirectory() as home:
        path = Path(home, "pid")
        path.write_bytes(text)
        assert pidfile.running_pid(path) is None
        with open(path, "rb") as stream:
            fcntl.flock(stream, fcntl.LOCK_EX)
            before, pidfile._PATIENCE_S = pidfile._PATIENCE_S, 0
            try:
                pid = pidfile.running_pid(path)
            finally:
                pidfile._PATIENCE_S = before
        if pid is not None:
            assert text.strip().isdigit() and int(text) == pid
            with suppress(OSError):
                os.kill(pid, 0)
        with suppress(pidfile.AlreadyRunning):
            ours = pidfile.PidFile(path)
            ours.write()
            assert path.read_bytes() == b"%d\n" % os.getpid()
            ours.remove()

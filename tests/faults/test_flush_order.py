"""What a power cut would find: each step is on the disk before the next one relies on it."""

from __future__ import annotations

import os
import re
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.daemon import MaildropDaemon
from support.relay_server import RelayServer
from support.tracing import attached, requires_strace

CALLS = "openat,close,write,pwrite64,?ftruncate,utimensat,fsync,fdatasync,sendto,/^rename,/^unlink"
CHANGES = ("write", "pwrite64", "ftruncate", "utimensat")


def test_the_daemon_flushes_each_step_before_the_next_one_relies_on_it(tmp_path):
    requires_strace()
    with MoodyRelay() as relay:
        daemon = MaildropDaemon(
            tmp_path,
            relay.port,
            PYTHON=os.path.realpath(sys.executable),    # not a script that starts the interpreter
            SUPERVISED_DAEMON=1,
            MAILDROP_RETRY=0.01,
            MAILDROP_BOUNCE=1,
        )
        with daemon.in_foreground() as process:
            with attached(process.pid, tmp_path / "strace", CALLS, (), ("-f", "-y", "-s", "65536")) as trace:
                daemon.add_mail("no@example.org", "451@example.org", "ann@example.org", message=message("in part"))
                daemon.add_mail("no@example.org", message=message("refused"))
                daemon.add_mail("ann@example.org", message=message("451 after its content"))
                daemon.add_mail("ann@example.org", message=message("554 after its content"))
                daemon.add_mail("ann@example.org", message=message("simple"))
                daemon.wait_until_empty()
    calls = parse(trace.text())
    assert count_renames(calls, into=daemon.spool / "failed") == 3
    assert count_renames(calls, into=daemon.spool) == 5, "two remainders, three notices"
    assert sum(call.ends_a_mail for call in calls) == 9, "two mails twice, two once, three notices"
    assert violations(calls, daemon.spool) == []


class MoodyRelay(RelayServer):
    """Refuses no@example.org; gives a recipient and a mail that begin with a code that code, the first time."""

    def __init__(self):
        super().__init__()
        self._said: set[str] = set()

    async def handle_RCPT(self, server, session, envelope, address, options):
        if address == "no@example.org":
            return "550 5.1.1 no such user"
        return self._refusal(address) or await super().handle_RCPT(server, session, envelope, address, options)

    async def handle_DATA(self, server, session, envelope):
        subject = re.search(rb"^Subject: (.*)\r$", envelope.original_content, re.MULTILINE)[1].decode()
        return self._refusal(subject) or await super().handle_DATA(server, session, envelope)

    def _refusal(self, text: str) -> str | None:
        if not text[0].isdigit() or text in self._said:
            return None
        self._said.add(text)
        return f"{text[:3]} not now"


def message(subject: str) -> bytes:
    return f"Subject: {subject}\n\nbody\n".encode()


# -- the checker --


@dataclass(frozen=True)
class Call:
    name: str
    arguments: str

    @property
    def paths(self) -> list[Path]:
        """The paths named by its arguments, or, where it has a descriptor, of its file."""
        if described := re.match(r"\d+<(/[^>]*)>", self.arguments):
            return [Path(described[1])]
        return [Path(text) for text in re.findall(r'"(/[^"]*)"', self.arguments)]

    @property
    def begins_a_pass(self) -> bool:
        return self.name == "openat" and "O_DIRECTORY" in self.arguments

    @property
    def ends_a_mail(self) -> bool:
        return self.name == "sendto" and re.search(r'(?:\\n|")\.\\r\\n", \d+, ', self.arguments) is not None


def parse(text: str) -> list[Call]:
    """The calls that succeeded, in the order in which they ended. Takes what ``strace -f -y`` writes."""
    calls = []
    unfinished: dict[str, str] = {}
    for line in text.splitlines():
        thread, _, rest = line.partition(" ")
        rest = rest.lstrip()
        if rest.endswith("<unfinished ...>"):
            unfinished[thread] = rest.removesuffix("<unfinished ...>").rstrip()
            continue
        if resumed := re.match(r"<\.\.\. \w+ resumed>", rest):
            rest = unfinished.pop(thread) + rest[resumed.end() :]
        if done := re.fullmatch(r"(\w+)\((.*)\) += \d+(?:<.*>)?", rest):
            calls.append(Call(done[1], done[2]))
    return calls


def violations(calls: list[Call], spool: Path) -> list[str]:
    """Where the order of calls relies on what a power cut may have undone, a sentence each."""
    found = []
    unflushed: set[Path] = set()    # files with bytes that are not on the disk
    copies: set[Path] = set()    # names in failed/ that are not on the disk
    removals: set[Path] = set()    # names in the spool that were removed or renamed to, not on the disk

    def copies_must_be_safe(what: str, whose: str = "") -> None:
        found.extend(f"{copy.name} not flushed before {what}" for copy in sorted(copies) if copy.name.startswith(whose))

    for call in calls:
        paths = call.paths
        if call.begins_a_pass and paths == [spool]:
            found += [f"{path.name} not flushed at the end of the pass" for path in sorted(removals)]
            removals.clear()
        elif call.name in CHANGES or (call.name == "openat" and "O_CREAT" in call.arguments):
            unflushed.update(paths[:1])
        elif call.name in ("fsync", "fdatasync"):
            unflushed.discard(paths[0])
            copies = {copy for copy in copies if copy.parent != paths[0]}
            removals = {path for path in removals if path.parent != paths[0]}
        elif call.name.startswith(("rename", "unlink")):
            target = paths[-1]
            is_of_the_spool = target.is_relative_to(spool)    # the daemon's figures promise nothing
            if call.name.startswith("rename") and paths[0] in unflushed and is_of_the_spool:
                found.append(f"{target.name} renamed before its bytes were flushed")
            if target.parent == spool:
                copies_must_be_safe(f"{target.name} was changed", target.name)
                removals.add(target)
            elif target.parent == spool / "failed":
                if spool / f"bounce-{target.name}" in removals:
                    found.append(f"{target.name} says that its notice was sent, which is not flushed")
                copies.add(target)
        elif call.ends_a_mail:
            copies_must_be_safe("the content's end was sent")
    return found + [f"{path.name} not flushed at the end" for path in sorted(removals)]


def count_renames(calls: list[Call], into: Path) -> int:
    return sum(call.name.startswith("rename") and call.paths[-1].parent == into for call in calls)


# -- the checker, checked --

A_TRACE = r"""
7 openat(AT_FDCWD</>, "/s/tmp", O_RDONLY|O_NONBLOCK|O_CLOEXEC|O_DIRECTORY) = 4</s/tmp>
7 close(4</s/tmp>) = 0
7 openat(AT_FDCWD</>, "/s", O_RDONLY|O_NONBLOCK|O_CLOEXEC|O_DIRECTORY) = 4</s>
7 close(4</s>) = 0
7 openat(AT_FDCWD</>, "/s/M", O_RDWR|O_NOFOLLOW|O_CLOEXEC) = 4</s/M>
7 openat(AT_FDCWD</>, "/s/tmp/A", O_RDWR|O_CREAT|O_EXCL|O_CLOEXEC, 0600) = 6</s/tmp/A>
7 write(6</s/tmp/A>, "##To:no@example.org\n\n.\r\n", 24) = 24
7 utimensat(6</s/tmp/A>, NULL, [{tv_sec=1, tv_nsec=0} /* 1970 */, {tv_sec=1, tv_nsec=0} /* 1970 */], 0) = 0
7 fsync(6</s/tmp/A>) = 0
7 rename("/s/tmp/A", "/s/failed/M.1") = 0
7 openat(AT_FDCWD</>, "/s/failed", O_RDONLY|O_NOFOLLOW|O_CLOEXEC) = 7</s/failed>
7 fsync(7</s/failed> <unfinished ...>
8 write(9</var/log>, "### Started\n", 12) = 12
7 <... fsync resumed>) = 0
7 openat(AT_FDCWD</>, "/s/tmp/B", O_RDWR|O_CREAT|O_EXCL|O_CLOEXEC, 0600) = 7</s/tmp/B>
7 write(7</s/tmp/B>, "##To:later@example.org\n\n", 24) = 24
7 fsync(7</s/tmp/B>) = 0
7 sendto(5<socket:[1]>, "DATA\r\n", 6, 0, NULL, 0) = 6
7 sendto(5<socket:[1]>, "Subject: a\r\n\r\n.\r\n", 17, 0, NULL, 0) = 17
7 rename("/s/tmp/B", "/s/M") = 0
7 unlink("/s/N") = 0
7 openat(AT_FDCWD</>, "/s", O_RDONLY|O_NOFOLLOW|O_CLOEXEC) = 4</s>
7 fsync(4</s>) = 0
7 openat(AT_FDCWD</>, "/s", O_RDONLY|O_NONBLOCK|O_CLOEXEC|O_DIRECTORY) = 4</s>
"""
FLUSH_FAILED = r"""7 fsync(7</s/failed> <unfinished ...>
8 write(9</var/log>, "### Started\n", 12) = 12
7 <... fsync resumed>) = 0
"""
FLUSH_SPOOL = "7 fsync(4</s>) = 0\n"
FINAL_DOT = r'7 sendto(5<socket:[1]>, "Subject: a\r\n\r\n.\r\n", 17, 0, NULL, 0) = 17' + "\n"
REPLACE = '7 rename("/s/tmp/B", "/s/M") = 0\n'
COPY = '7 rename("/s/tmp/A", "/s/failed/M.1") = 0\n'
NOTICE = '7 rename("/s/tmp/C", "/s/bounce-M.1") = 0\n'


def test_the_checker_finds_nothing_wrong_with_a_trace_in_good_order():
    calls = parse(A_TRACE)
    assert len(calls) == A_TRACE.strip().count("\n")    # a call that is on two lines, and each other line one
    assert violations(calls, Path("/s")) == []


@pytest.mark.parametrize(
    ("what", "instead", "violation"),
    [
        ("7 fsync(6</s/tmp/A>) = 0\n", "", "M.1 renamed before its bytes were flushed"),
        ("7 fsync(6</s/tmp/A>) = 0\n", "7 fsync(6</s/tmp/A>) = -1 EIO\n", "M.1 renamed before its bytes were flushed"),
        ("7 fsync(7</s/tmp/B>) = 0\n", "", "M renamed before its bytes were flushed"),
        (REPLACE, '7 write(7</s/tmp/B>, "x", 1) = 1\n' + REPLACE, "M renamed before its bytes were flushed"),
        (FLUSH_FAILED, "", "M.1 not flushed before the content's end was sent"),
        (FLUSH_FAILED, FLUSH_SPOOL, "M.1 not flushed before the content's end was sent"),
        (FLUSH_FAILED, FINAL_DOT + FLUSH_FAILED, "M.1 not flushed before the content's end was sent"),
        (FLUSH_FAILED, REPLACE + FLUSH_FAILED, "M.1 not flushed before M was changed"),
        (FLUSH_FAILED, '7 unlink("/s/M") = 0\n' + FLUSH_FAILED, "M.1 not flushed before M was changed"),
        (COPY, NOTICE + COPY, "M.1 says that its notice was sent, which is not flushed"),
        (FLUSH_SPOOL, "", "N not flushed at the end of the pass"),
        (FLUSH_SPOOL, FLUSH_SPOOL + '7 unlink("/s/O") = 0\n', "O not flushed at the end of the pass"),
        (A_TRACE[A_TRACE.index(FLUSH_SPOOL) :], "", "N not flushed at the end"),
    ],
)
def test_the_checker_finds_each_step_that_comes_too_early(what, instead, violation):
    assert A_TRACE.count(what) == 1
    assert violation in violations(parse(A_TRACE.replace(what, instead)), Path("/s"))

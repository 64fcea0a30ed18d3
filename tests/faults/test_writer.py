"""Mail, database and spool when the writer is killed, when a call fails, when the disk is full or the power is cut."""

import os
import re
import shutil
import subprocess
import tempfile
from collections import Counter
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, product
from pathlib import Path

import pytest
import transaction
from support.config_file import write_config
from support.requires import find_command, requires_command, requires_root, skip_unless_ci
from support.spooling import MODULE, files_in, make_host, read_mails
from support.tracing import attached, requires_strace
from support.writer_process import LAST_LINE, TEXT_LINE, Writers
from support.zope_site import ZopeSite

from maildrop.wake import WakeUp

NOBODY = 65534
MOST_CALLS = 300    # far more than any request makes: a guard against a loop without end
CALLS = [
    "openat", "write", "writev", "pwrite64", "fsync", "fdatasync", "rename", "linkat", "unlink", "close", "fchmod",
    "fadvise64", "ftruncate", "newfstatat", "mkdir", "chmod",
]    # fmt: skip
NO_LINKS = "linkat:error=EPERM:when=1+"    # as on a file system where a file has one name
ERRORS = ["ENOSPC", "EIO", "EACCES", "EMFILE"]
DATABASE_GAVE_UP = "Failure in _finish. Closing."    # FileStorage cannot know whether it has committed


@dataclass(frozen=True)
class Page:
    """A page of the writer's, and the mails that its transaction sends if it commits."""

    name: str
    fields: tuple[tuple[str, int], ...] = ()
    mails: tuple[str, ...] = ("one 0", "one 1")
    lines: int = 1


    def has_committed(self, writers):
        """Whether any database has the transaction; one that only mails has committed when its mails are due."""
        if self.name == "only_mail":
            return bool(Found(writers, self.lines).unlocked)
        return "one" in writers.committed() or self.name == "work_in_two" and writers.committed_in_second() == "one"


PAGES = [
    Page("work", (("mails", 2), ("lines", 200)), lines=200),    # more than fits a buffer: several writes
    Page("roll_back"),
    Page("fail", mails=()),
]
FURTHER_PAGES = [
    Page("work_in_two", (("mails", 2),)),
    Page("only_mail", (("mails", 2),)),
    Page("work", (("mails", 50),), tuple(f"one {number}" for number in range(50))),
]
every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
every_call = pytest.mark.parametrize("call", CALLS)


@pytest.fixture(scope="module")
def writers(tmp_path_factory):
    requires_strace()
    with Writers(tmp_path_factory.mktemp("writers"), MAILDROP_SPOOL_MODE="0660") as writers:
        yield writers


@pytest.fixture
def waker(writers):
    """Who listens at the spool, as a daemon does."""
    waker = WakeUp()
    yield waker
    waker.close()


def start_heard(writers, waker):
    """A writer whose word is heard from now on."""
    waker.listen([writers.spool], 0o2770)
    writer = writers.start()
    waker.wait(0)
    return writer


def told_too_early(waker, found):
    """What is wrong with the mails that the writer has named: they have to be there, unlocked."""
    wrong = [path.name for path in waker.wait(0).paths if path.name not in found.unlocked_names]
    return [f"named and not due: {wrong}"] if wrong else []


class Found:
    """What the database and the spool hold."""

    def __init__(self, writers, lines):
        self.committed = writers.committed()
        self.unlocked, self.locked, self.bare_locks, self.torn = Counter(), Counter(), [], []
        self.unlocked_names = set()
        names = files_in(writers.spool)
        for name in names:
            if name.endswith(".lck"):
                self.bare_locks += [] if name.removesuffix(".lck") in names else [name]
                continue
            text = (writers.spool / name).read_bytes()
            subject = (re.findall(rb"(?m)^Subject: (.*?)\r?$", text) or [b"(none)"])[0].decode()
            whole = text.startswith(b"##To:ann@example.org\n") and text.endswith(LAST_LINE.encode())
            if f"{name}.lck" in names:
                self.locked[subject] += 1
            elif whole and text.count(TEXT_LINE.encode()) == lines:
                self.unlocked[subject] += 1
                self.unlocked_names.add(name)
            else:
                self.torn.append(subject)

    def duplicates(self):
        return (self.unlocked - Counter(set(self.unlocked))).total()

    def is_clean(self):
        return not (self.locked or self.bare_locks or self.torn)

    def __str__(self):
        mails = f"unlocked {dict(self.unlocked)}, locked {dict(self.locked)}, torn {self.torn}"
        return f"committed {self.committed}, {mails}, locks alone {self.bare_locks}"


def prepare(writers, call):
    """Where it is about making directories, there are none yet."""
    if call in ("mkdir", "chmod"):
        shutil.rmtree(writers.spool.parent)


def report(record_property, **figures):
    for name, figure in figures.items():
        record_property(name.replace("_", " "), figure)
        print(f"{name.replace('_', ' ')}: {figure}")


# -- killed --


@pytest.mark.fault_kind("writer killed at a system call")
@every_page
@every_call
def test_a_killed_writer_sends_what_was_committed_and_nothing_else(
    writers, waker, tmp_path, ledger, record_property, page, call
):
    judge_killed_writers(writers, waker, tmp_path, ledger, record_property, page, call)


@pytest.mark.fault_kind("writer killed at a system call")
@pytest.mark.parametrize("page", PAGES[:2], ids=lambda page: page.name)
@pytest.mark.parametrize("call", ["openat", "writev", "close", "fchmod", "unlink"])
def test_a_killed_writer_that_cannot_link_files_sends_what_was_committed_and_nothing_else(
    writers, waker, tmp_path, ledger, record_property, page, call
):
    judge_killed_writers(writers, waker, tmp_path, ledger, record_property, page, call, further=[NO_LINKS])


@pytest.mark.fault_kind("writer killed at a system call")
@pytest.mark.parametrize("page", FURTHER_PAGES[:2], ids=lambda page: page.name)
@every_call
def test_a_killed_writer_of_two_databases_or_none_sends_what_was_committed_and_nothing_else(
    writers, waker, tmp_path, ledger, record_property, page, call
):
    judge_killed_writers(writers, waker, tmp_path, ledger, record_property, page, call)


@pytest.mark.fault_kind("writer killed at a system call")
@pytest.mark.parametrize("call", ["openat", "writev", "write", "fsync", "linkat", "unlink"])
def test_a_killed_writer_of_fifty_mails_sends_all_or_none(writers, waker, tmp_path, ledger, record_property, call):
    judge_killed_writers(writers, waker, tmp_path, ledger, record_property, FURTHER_PAGES[2], call, step=7)


def judge_killed_writers(writers, waker, tmp_path, ledger, record_property, page, call, further=(), step=1):
    """Kill a writer at each call (each ``step``-th one), and look at the spool then and after the next start of Zope."""
    problems, figures = [], Counter(killed=0, locked_after_commit=0, kept_in_failed=0)
    calls = ",".join([call, *(injection.partition(":")[0] for injection in further)])
    for number in count(1, step):
        assert number < MOST_CALLS
        with start_heard(writers, waker) as writer:
            prepare(writers, call)
            injections = [f"{call}:signal=SIGKILL:when={number}", *further]
            with attached(writer.pid, tmp_path / str(number), calls, injections, ("-f", "-y")) as trace:
                answer = writer.get(page.name, subject="one", **dict(page.fields))
        found = Found(writers, page.lines)
        problems += [f"{wrong}: {page.name} killed at {call} number {number}" for wrong in told_too_early(waker, found)]
        case = f"{page.name} killed at {call} number {number}: {trace.injected()}: {found}"
        if answer is not None:
            assert further or not trace.fired, case
            assert found.unlocked == Counter(page.mails) and found.is_clean(), case
            break
        assert trace.fired, case
        figures["killed"] += 1
        expected = Counter(page.mails if page.has_committed(writers) else ())
        if found.unlocked - expected or found.torn:
            problems.append(f"sent of an aborted transaction, twice, or half: {case}")
        figures["locked_after_commit"] += (expected & found.locked).total()
        problems += judge_the_next_start(writers, page, ledger, figures, case)
    report(record_property, **figures)
    assert not problems, "\n".join(problems)


def judge_the_next_start(writers, page, ledger, figures, case):
    """What is wrong when Zope has started again: all is settled then."""
    with writers.start_again():
        pass
    found = Found(writers, page.lines)
    expected = Counter(page.mails if page.has_committed(writers) else ())
    lost, kept = (expected - found.unlocked).total(), kept_aside(writers)
    ledger.add(lost=lost, duplicates=found.duplicates(), stuck=found.locked.total())
    figures["kept_in_failed"] += len(kept)
    case = f"{case}; after the next start: {found}, kept {kept}"
    if lost:
        yield f"lost: {case}"
    if found.unlocked - expected or found.torn:
        yield f"sent of an aborted transaction, twice, or half: {case}"
    if not found.is_clean():
        yield f"left locked: {case}"
    if set(kept) - {"its transaction did not commit: the database has no record of it"}:
        yield f"kept for another reason: {case}"
    if files_in(writers.spool / "tmp") if (writers.spool / "tmp").exists() else ():
        yield f"left in tmp: {case}"


def kept_aside(writers):
    """Why each mail in ``failed`` is there."""
    texts = [path.read_text() for path in sorted((writers.spool / "failed").glob("*"))]
    return [re.search("(?m)^##Failed:(.*)$", text)[1] for text in texts]


@every_page
@pytest.mark.parametrize("further", [[], [NO_LINKS]], ids=["links", "no links"])
def test_the_mails_of_a_transaction_are_named_to_who_listens_once_they_are_due(writers, waker, tmp_path, page, further):
    with start_heard(writers, waker) as writer:
        with attached(writer.pid, tmp_path / "trace", "linkat", further):
            writer.get(page.name, subject="one", **dict(page.fields))
        found = Found(writers, page.lines)
        assert found.unlocked == Counter(page.mails) and found.is_clean()
        woken = waker.wait(0)
        assert ({path.name for path in woken.paths}, woken.look) == (found.unlocked_names, False)


# -- a call fails --


@pytest.mark.fault_kind("a system call of the writer fails")
@every_page
@every_call
def test_a_failing_call_ends_the_whole_transaction_or_nothing_of_it(
    writers, waker, tmp_path, ledger, record_property, page, call
):
    problems, figures = [], Counter(locked_after_commit=0, locked_until_the_next_commit=0, left_locked_by_an_abort=0)
    for number, error in product(range(1, MOST_CALLS), ERRORS):
        with start_heard(writers, waker) as writer:
            prepare(writers, call)
            injection = f"{call}:error={error}:when={number}"
            with attached(writer.pid, tmp_path / f"{number}{error}", call, [injection], ("-f", "-y")) as trace:
                answer = writer.get(page.name, subject="one", **dict(page.fields))
            if not trace.fired:
                break
            said = f"{page.name}, {error} at {call} number {number}: {trace.injected()}: {answer}"
            found = Found(writers, page.lines)
            problems += [f"{wrong}: {said}" for wrong in told_too_early(waker, found)]
            lost = (Counter(page.mails if "one" in found.committed else ()) - found.unlocked - found.locked).total()
            ledger.add(lost=lost, duplicates=found.duplicates())
            if answer is None:
                problems.append(f"the writer died: {said}")
            elif DATABASE_GAVE_UP in writers.event_log.read_text():
                figures["locked_after_commit"] += found.locked.total() if "one" in found.committed else 0
                problems += judge_after_the_database_gave_up(writers, writer, found, said)
            else:
                problems += judge(page, call, trace.injected(), answer[0], found, said)
                left = found.locked["one never"] if "one" in found.committed else found.locked.total()
                figures["left_locked_by_an_abort"] += left + len(found.bare_locks)
                figures["locked_until_the_next_commit"] += (found.locked & Counter(page.mails)).total()
                problems += judge_the_next_request(writers, writer, page, call, found, said)
    else:
        pytest.fail(f"no end of {call}")
    report(record_property, **figures)
    assert not problems, "\n".join(problems)


def judge(page, call, injected, status, found, said):
    """What is wrong after the request with the failing call."""
    expected = Counter(page.mails)
    failed_release = call == "unlink" and ".lck" in injected
    if found.torn:
        yield f"a half-written mail: {said}: {found}"
    if status == 200:
        if "one" not in found.committed:
            yield f"not committed: {said}: {found}"
        if failed_release and found.unlocked + found.locked == expected:
            return    # the next transaction removes the lock
        if call == "unlink" and found.unlocked == expected and not set(found.locked) - {"one never"}:
            return    # what was rolled back stays locked
        if found.unlocked != expected or not found.is_clean():
            yield f"the request succeeded: {said}: {found}"
        return
    if "one" in found.committed:
        yield f"committed: {said}: {found}"
    if found.unlocked:
        yield f"sent of an aborted transaction: {said}: {found}"
    if (found.locked or found.bare_locks) and call != "unlink":
        yield f"something is left in the spool: {said}: {found}"


def judge_the_next_request(writers, writer, page, call, before, said):
    """What is wrong after a further request, which nothing disturbs."""
    answer = writer.get("work", subject="two", **dict(page.fields or [("lines", 1)]))
    found = Found(writers, page.lines)
    if answer != (200, "sent") or "two" not in found.committed or not found.unlocked["two 0"]:
        yield f"the next request, {answer}, after {said}: {found}"
    sent = Counter(page.mails if "one" in before.committed else ())
    if Counter({subject: n for subject, n in found.unlocked.items() if not subject.startswith("two")}) != sent:
        yield f"not the mails of the first request after {said} and the next: {found}"
    if found.locked - (before.locked if call == "unlink" else Counter()) or any(found.locked[mail] for mail in sent):
        yield f"locked after {said} and the next request: {found}"


def judge_after_the_database_gave_up(writers, writer, found, said):
    """FileStorage closes itself, committed or not: the mails wait for somebody who knows, and a new process works."""
    if found.unlocked or found.torn or found.bare_locks:
        yield f"the database gave up, and yet: {said}: {found}"
    if writer.get("work", subject="two") is None:
        yield f"the writer died at the request after {said}"
    writer.close()
    with writers.start_again() as another:
        if another.get("work", subject="three") != (200, "sent") or Found(writers, 1).unlocked["three 0"] != 1:
            yield f"a new writer does not work after {said}"


@pytest.mark.fault_kind("a system call of the writer fails")
@every_page
@pytest.mark.parametrize("unremovable", ["1", "1+"], ids=["first", "any"])
@pytest.mark.parametrize(
    ("call", "no_links"),
    [("linkat", []), *product(["openat", "write", "writev", "fsync", "fchmod", "close"], ([], [NO_LINKS]))],
)
def test_a_failing_call_after_which_removing_fails_too_sends_nothing_too_early(
    writers, tmp_path, ledger, page, call, unremovable, no_links
):
    problems = []
    for number in count(1):
        assert number < MOST_CALLS
        with writers.start() as writer:
            injections = [f"{call}:error=EIO:when={number}", f"unlink:error=EIO:when={unremovable}", *no_links]
            with attached(writer.pid, tmp_path / str(number), f"{call},unlink,linkat", injections, ("-f", "-y")) as trace:
                answer = writer.get(page.name, subject="one", **dict(page.fields))
            lines = [line for line in trace.text().splitlines() if line.endswith("(INJECTED)")]
            if not (injected := [line for line in lines if " EIO " in line and " unlink(" not in line]):
                break
            found = Found(writers, page.lines)
            expected = Counter(page.mails if "one" in found.committed else ())
            lost = (expected - found.unlocked - found.locked).total()
            ledger.add(lost=lost, duplicates=found.duplicates())
            if answer is None or lost or found.torn or found.unlocked - expected:
                case = f"{page.name}, EIO at {call} number {number}, then at unlink"
                problems.append(f"{case}: {injected[0]}: {answer}: {found}")
    assert not problems, "\n".join(problems)


def test_a_lock_that_cannot_be_removed_goes_with_the_next_transactions(writers, tmp_path):
    with writers.start() as writer:
        with attached(writer.pid, tmp_path / "trace", "unlink", ["unlink:error=EIO:when=1+"]):
            assert writer.get("work", subject="one", mails=2) == (200, "sent")
            assert writer.get("work", subject="two") == (200, "sent")
        found = Found(writers, 1)
        assert found.locked == Counter(["one 0", "one 1", "two 0"]) and not found.unlocked
        assert set(found.committed) >= {"one", "two"}
        assert writer.get("work", subject="three") == (200, "sent")
        found = Found(writers, 1)
        assert found.unlocked == Counter(["one 0", "one 1", "two 0", "three 0"]) and found.is_clean()


# -- the order, for power cuts --


@dataclass(frozen=True)
class Call:
    name: str
    path: str
    creates: bool = False


_LINE = re.compile(r"(?:\d+ +)?(\w+)\((.*)\) = (-?\d+)(?:<(.*?)>)?$")


def read_trace(lines):
    """The calls that succeeded, each with the path that it is about."""
    for line in lines:
        if not (found := _LINE.match(line)) or found[3].startswith("-"):
            continue
        name, arguments, _, opened = found.groups()
        if name == "openat":
            yield Call(name, opened, "O_CREAT" in arguments)
        elif name in ("unlink", "mkdir"):
            yield Call(name, arguments.split('"')[1])
        elif name == "linkat":
            yield Call(name, arguments.split('"')[3], creates=True)
        elif path := re.match(r"\d+<(.*?)>", arguments):
            yield Call(name, path[1])


def find_disorder(lines, spool, data_fs, mails):
    """What of a commit's order a power cut could turn into a lost mail, or one sent too early; ``mails``: how many."""
    calls = list(read_trace(lines))

    def places(name, path):
        return [place for place, call in enumerate(calls) if call == Call(name, str(path))]

    def birth(path):
        return next((place for place, call in enumerate(calls) if call.creates and call.path == path), len(calls))

    database_writes = places("write", data_fs) + places("pwrite64", data_fs)
    database_flushes = places("fsync", data_fs) + places("fdatasync", data_fs)
    directory_flushes = places("fsync", spool)
    if not database_writes or not database_flushes:
        yield "the database wrote or flushed nothing"
        return
    commit_begins, committed = min(database_writes), max(database_flushes)
    if max(database_writes) > committed:
        yield "the database was written after its flush"
    if len(directory_flushes) != 1:
        yield f"{len(directory_flushes)} flushes of the directory"
    votes = [place for place, call in enumerate(calls) if call.name == "pwrite64" and Path(call.path).parent == spool / "writers"]
    if len(votes) != 1:
        yield f"{len(votes)} votes"
    for vote in votes:
        if not any(flush < vote for flush in directory_flushes):
            yield "voted before the directory was flushed"
        if not any(vote < flush < max(database_writes) for flush in places("fdatasync", calls[vote].path)):
            yield "no flush of the vote before the end of the commit"
    created = [call.path for call in calls if call.creates and Path(call.path).parent == spool]
    if (found := sum(not path.endswith(".lck") for path in created)) != mails:
        yield f"{found} mails"
    for path in created:
        if not any(birth(path) < flush < commit_begins for flush in directory_flushes):
            yield f"no flush of the directory between the creation of {path} and the commit"
        if path.endswith(".lck"):
            continue
        lock = f"{path}.lck"
        if birth(path) <= birth(lock):
            yield f"{path} was created before its lock"
        names = [path, lock] if calls[birth(path)].name == "linkat" else [path]    # of one file
        last_write = max((place for name in names for place in places("writev", name)), default=None)
        if last_write is None:
            yield f"{path} was not written"
        elif not any(last_write < flush < commit_begins for name in names for flush in places("fsync", name)):
            yield f"no flush of {path} between its last byte and the commit"
        if len(names) == 2 and last_write is not None and last_write > birth(path):
            yield f"{path} was written after it got its name"
        if len(places("unlink", lock)) != 1 or places("unlink", lock)[0] < committed:
            yield f"the lock of {path} was not removed once, after the commit"
        if places("unlink", path):
            yield f"{path} was removed"


def trace_of_a_request(writers, output, injections, **fields):
    with writers.start() as writer:
        with attached(writer.pid, output, "file,desc", injections, ("-f", "-y", "-s", "32")) as trace:
            assert writer.get("work", subject="one", **fields) == (200, "sent")
    return trace.text().splitlines()


@pytest.mark.parametrize("no_links", [[], [NO_LINKS]], ids=["links", "no links"])
@pytest.mark.parametrize(("mails", "lines"), [(1, 1), (2, 2000), (50, 1)])
def test_a_power_cut_at_any_time_loses_nothing_because_each_step_is_on_the_disk_before_the_next(
    writers, tmp_path, mails, lines, no_links
):
    trace = trace_of_a_request(writers, tmp_path / "trace", no_links, mails=mails, lines=lines)
    assert list(find_disorder(trace, writers.spool, writers.data_fs, mails)) == []


RIGHT_ORDER = '''
7 openat(AT_FDCWD</>, "/spool/a.lck", O_RDWR|O_CREAT|O_EXCL|O_NOFOLLOW|O_CLOEXEC, 0600) = 9</spool/a.lck>
7 openat(AT_FDCWD</>, "/spool/a", O_RDWR|O_CREAT|O_EXCL|O_NOFOLLOW|O_CLOEXEC, 0600) = 9</spool/a>
7 writev(9</spool/a>, [{iov_base="##To:ann@example.org\\n"..., iov_len=312}], 1) = 312
7 openat(AT_FDCWD</>, "/spool/a", O_RDONLY|O_NOFOLLOW|O_CLOEXEC) = 9</spool/a>
7 fsync(9</spool/a>) = 0
7 fsync(9</spool>) = 0
7 write(7</var/Data.fs>, "c", 173) = 173
7 pwrite64(8</spool/writers/host-7-0badc0de-1>, "{\\"token\\": "..., 150, 0) = 150
7 fdatasync(8</spool/writers/host-7-0badc0de-1>) = 0
7 write(7</var/Data.fs>, " ", 1) = 1
7 fsync(7</var/Data.fs>) = 0
7 unlink("/spool/a.lck") = 0
'''.strip().splitlines()
RIGHT_ORDER_WITH_A_LINK = [
    RIGHT_ORDER[0],
    RIGHT_ORDER[2].replace("</spool/a>", "</spool/a.lck>"),
    '7 linkat(AT_FDCWD</>, "/spool/a.lck", AT_FDCWD</>, "/spool/a", 0) = 0',
    *RIGHT_ORDER[3:],
]


def disorder_in(lines):
    return list(find_disorder(lines, Path("/spool"), Path("/var/Data.fs"), 1))


@pytest.mark.parametrize("lines", [RIGHT_ORDER, RIGHT_ORDER_WITH_A_LINK])
def test_the_check_of_the_order_finds_nothing_in_the_right_order(lines):
    assert disorder_in(lines) == []


@pytest.mark.parametrize(
    ("moved", "to", "complaint"),
    [
        (0, 2, "created before its lock"),
        (1, 2, "was written after it got its name"),
        (1, 5, "no flush of /spool/a between its last byte"),
        (2, 5, "no flush of the directory between the creation of /spool/a and"),
        (4, 7, "no flush of /spool/a between its last byte"),
        (11, 10, "the lock of /spool/a was not removed once, after the commit"),
    ],
)
def test_the_check_of_the_order_finds_a_step_at_the_wrong_place_where_files_are_linked(moved, to, complaint):
    lines = [*RIGHT_ORDER_WITH_A_LINK]
    lines.insert(to, lines.pop(moved))
    assert any(complaint in found for found in disorder_in(lines))


@pytest.mark.parametrize(
    ("moved", "to", "complaint"),
    [
        (0, 2, "created before its lock"),
        (2, 5, "no flush of /spool/a between its last byte"),
        (4, 7, "no flush of /spool/a between its last byte"),
        (5, 0, "no flush of the directory between the creation of /spool/a and"),
        (5, 1, "no flush of the directory between the creation of /spool/a and"),
        (5, 8, "no flush of the directory between the creation of /spool/a.lck"),
        (5, 7, "no flush of the directory between the creation of /spool/a and"),
        (7, 5, "voted before the directory was flushed"),
        (7, 9, "no flush of the vote"),
        (8, 9, "no flush of the vote"),
        (11, 10, "the lock of /spool/a was not removed once, after the commit"),
        (11, 3, "the lock of /spool/a was not removed once, after the commit"),
        (10, 6, "the database was written after its flush"),
    ],
)
def test_the_check_of_the_order_finds_a_step_at_the_wrong_place(moved, to, complaint):
    lines = [*RIGHT_ORDER]
    lines.insert(to, lines.pop(moved))
    assert any(complaint in found for found in disorder_in(lines))


@pytest.mark.parametrize("missing", [0, 1, 2, 4, 5, 7, 8, 10, 11])
def test_the_check_of_the_order_finds_a_step_that_is_left_out_or_failed(missing):
    assert disorder_in(RIGHT_ORDER[:missing] + RIGHT_ORDER[missing + 1 :])
    failed = re.sub(r"= \d+(<.*>)?$", "= -1 EIO (Input/output error)", RIGHT_ORDER[missing])
    assert disorder_in([*RIGHT_ORDER[:missing], failed, *RIGHT_ORDER[missing + 1 :]])


def test_the_check_of_the_order_finds_a_second_flush_of_the_directory():
    assert disorder_in([*RIGHT_ORDER[:6], *RIGHT_ORDER[5:]]) == ["2 flushes of the directory"]


# -- a full disk, and a spool that cannot be written --


@contextmanager
def small_disk(directory, options="size=1m"):
    """A file system of its own in the directory, which is made if missing; what was in it before is back at the end."""
    requires_root()
    requires_command("mount", "umount")
    directory.mkdir(parents=True, exist_ok=True)
    command = [find_command("mount"), "-t", "tmpfs", "-o", options, "tmpfs", directory]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        skip_unless_ci(f"no tmpfs can be mounted here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run([find_command("umount"), "-l", directory], check=True)


def fill(spool, most=None):
    """Fill the disk, or ``most`` bytes of it, with files in a directory of the spool; returns them."""
    directory = spool / "ballast"
    directory.mkdir(exist_ok=True)
    paths = [directory / str(number) for number in range(3)]
    for path in paths:
        with open(path, "ab", buffering=0) as stream:
            try:
                while most is None or stream.tell() < most / len(paths):
                    stream.write(b"x" * 4096)
            except OSError as error:
                assert error.strerror == "No space left on device"
    return paths


def make_room(ballast):
    for path in ballast:
        path.unlink()


def send_large(host, number):
    host.send("x\n" * 100_000, mto="ann@example.org", mfrom="zoe@example.org", subject=f"number {number}")


@pytest.fixture
def clean_transaction():
    transaction.abort()
    yield
    transaction.abort()


@pytest.mark.parametrize("options", ["size=1m", "size=64m,nr_inodes=10", "size=64m,nr_inodes=11"])
def test_a_disk_that_fills_up_in_the_middle_of_a_transaction_ends_it_all(tmp_path, clean_transaction, options):
    host, spool = make_host(tmp_path), tmp_path / "spool"
    with small_disk(spool, options):
        ballast = fill(spool, 300_000)
        send_large(host, 0)
        transaction.commit()
        before = files_in(spool)
        assert len(before) == 1
        with pytest.raises(MODULE.MaildropHostError) as raised:
            for sent in count(1):
                send_large(host, sent)
        assert sent > 1, "the first mail of the transaction found no room: this test is about a later one"
        assert str(raised.value) == f"The mail cannot be written to {spool}: No space left on device"
        locked = [name for name in files_in(spool) if name.endswith(".lck")]
        assert len(locked) == sent - 1 and len(files_in(spool)) == len(before) + 2 * len(locked)
        transaction.abort()
        assert files_in(spool) == before
        make_room(ballast)
        for number in range(1, sent + 1):
            send_large(host, number)
        transaction.commit()
        assert len(files_in(spool)) == sent + 1
        assert all(len(text) > 200_000 for _, _, text in read_mails(spool))


def test_a_full_disk_does_not_stop_mails_from_leaving_or_being_taken_back(tmp_path, clean_transaction):
    host, spool = make_host(tmp_path), tmp_path / "spool"
    with small_disk(spool):
        send_large(host, 1)
        savepoint = transaction.savepoint()
        send_large(host, 2)
        fill(spool)
        savepoint.rollback()
        assert len(files_in(spool)) == 2
        fill(spool)
        transaction.commit()
        assert [b"number 1" in text for _, _, text in read_mails(spool)] == [True]
        assert len(files_in(spool)) == 1


def test_a_full_disk_is_told_by_the_page_and_later_the_same_process_works(tmp_path):
    home, tests = tmp_path / "maildrop", Path(__file__).parents[1]
    site = ZopeSite(tmp_path / "site", extra_path=(tests,))
    site.create({"config-path-1": write_config(tmp_path / "config", MAILDROP_HOME=home)})
    site.run_script(
        "import transaction\n"
        "from support.pages import MailPages\n"
        "app.manage_addProduct['MaildropHost'].manage_addMaildropHost('MailHost')\n"
        "app.MailHost.setConfigPath('config-path-1')\n"
        "app._setObject('pages', MailPages())\n"
        "transaction.commit()\n"
    )
    spool = home / "spool"
    with small_disk(spool):
        site.start()
        try:
            assert site.get("/pages/conflict?subject=a&times=0") == (200, "1 calls, counter 1")
            ballast = fill(spool)
            before = files_in(spool)
            status, page = site.get("/pages/conflict?subject=b&times=0")
            assert status == 500
            assert "<html" in page.lower() or "error" in page.lower()
            assert files_in(spool) == before
            log = (site.directory / "var" / "log" / "event.log").read_text()
            assert f"The mail cannot be written to {spool}: No space left on device" in log
            make_room(ballast)
            assert site.get("/pages/conflict?subject=c&times=0") == (200, "1 calls, counter 2")
            assert [re.search(rb"Subject: (\w)", text)[1] for _, _, text in read_mails(spool)] == [b"a", b"c"]
        finally:
            site.stop()


@pytest.fixture
def open_writers():
    """Writers in a directory that every account may enter."""
    with tempfile.TemporaryDirectory() as directory:
        os.chmod(directory, 0o755)
        with Writers(Path(directory)) as writers:
            yield writers


@pytest.mark.parametrize("forbidden", ["spool", "directory above it"])
def test_a_spool_without_permission_to_write_is_told_and_works_when_it_is_granted(open_writers, forbidden):
    requires_root()
    spool = open_writers.spool
    with open_writers.start() as writer:
        spool.parent.chmod(0o755 if forbidden == "spool" else 0o700)
        spool.chmod(0o755)
        writer.become(NOBODY)
        error = f"MaildropHostError: The mail cannot be written to {spool}: Permission denied"
        assert writer.get("work", subject="one") == (500, error)
        found = Found(open_writers, 1)
        assert "one" not in found.committed and not files_in(spool)
        spool.parent.chmod(0o755)
        for path in (spool, spool / "writers"):
            path.chmod(0o777)
        assert writer.get("work", subject="two") == (200, "sent")
        found = Found(open_writers, 1)
        assert "two" in found.committed and found.unlocked == Counter(["two 0"]) and found.is_clean()


def test_a_file_in_the_place_of_the_spool_is_told_and_all_works_when_it_is_gone(open_writers):
    spool = open_writers.spool
    with open_writers.start() as writer:
        aside = spool.rename(spool.with_name("aside"))
        spool.write_text("not a directory")
        error = f"MaildropHostError: The mail cannot be written to {spool}: Not a directory"
        assert writer.get("work", subject="one") == (500, error)
        assert "one" not in open_writers.committed()
        assert spool.read_text() == "not a directory" and files_in(aside) == []
        spool.unlink()
        assert writer.get("work", subject="two") == (200, "sent")
        found = Found(open_writers, 1)
        assert "two" in found.committed and found.unlocked == Counter(["two 0"]) and found.is_clean()


def test_a_spool_that_is_replaced_between_send_and_commit_ends_the_transaction(tmp_path, clean_transaction):
    host, spool = make_host(tmp_path), tmp_path / "spool"
    host.send("Text", mto="ann@example.org", mfrom="zoe@example.org", subject="one")
    aside = spool.rename(tmp_path / "aside")
    spool.write_text("not a directory")
    with pytest.raises(NotADirectoryError):
        transaction.commit()
    transaction.abort()
    assert read_mails(aside) == []
    spool.unlink()
    host.send("Text", mto="ann@example.org", mfrom="zoe@example.org", subject="two")
    transaction.commit()
    assert [b"Subject: two" in text for _, _, text in read_mails(spool)] == [True]

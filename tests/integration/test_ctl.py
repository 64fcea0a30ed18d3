"""maildropctl retry, release, delete and flush, by the real script on a spool as it lies on disk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.daemon import SCRIPTS, MaildropDaemon, run_script, wait_until
from support.ports import free_port
from support.relay_server import RelayServer

from maildrop import spool, writers
from maildrop.scan import scan
from maildrop.wake import WakeUp

HEAD = b"##To:ann@example.org\n##From:zoe@example.org\n"
NOTES = b"##Queued:2026-11-22T14:00:05+00:00\n##Attempts:3\n##Last-Reply:451 later\n##Failed:550 no\n"
MESSAGE = b"Subject: x\n\nbody\n"
HOUR = 3600


@pytest.fixture
def site(tmp_path):
    """A home with an empty spool, and no daemon running."""
    site = MaildropDaemon(tmp_path, relay_port=free_port())
    spool.make_spool(site.spool, 0o700)
    return site


def ctl(site, command, *arguments):
    """Nobody is there to be asked."""
    sure = ["--yes"] if command == "delete" else []
    return run_script("maildropctl", "--config", site.config, command, *sure, *arguments)


def put(directory: Path, name: str, notes: bytes = NOTES, due_in_s: float = 0) -> Path:
    path = directory / name
    path.write_bytes(HEAD + notes + MESSAGE)
    when = time.time() + due_in_s
    os.utime(path, (when, when))
    return path


def deferred(site) -> Path:
    return put(site.spool, spool.new_name(), due_in_s=HOUR)


def failed(site) -> Path:
    return put(site.spool / "failed", f"{spool.new_name()}.1")


def locked(site, writer: str = "") -> Path:
    name = spool.new_name()
    if writer:    # each process makes names of its own
        name = name[:-8] + writer.rsplit("-", 2)[1]
    draft = spool.Draft(site.spool / name)
    draft.write("zoe@example.org", "ann@example.org", MESSAGE, {"Transaction": f"{writer} token"} if writer else {})
    return draft.path


def dead_writer(site) -> str:
    """The name of a writer that has died."""
    command = [sys.executable, "-c", "import os, sys; print(join(Path(sys.argv[1]), 0o600, 't').name, flush=True); os._exit(1)"]
    command[2] = f"from pathlib import Path; from maildrop.writers import join; {command[2]}"
    return subprocess.run([*command, site.spool], stdout=subprocess.PIPE, text=True).stdout.strip()


def mails_and_locks(site) -> list[str]:
    return sorted(path.name for path in site.spool.iterdir() if path.is_file())


def everything_in(directory: Path) -> dict[str, bytes]:
    """The content of each file in it and below."""
    return {str(path.relative_to(directory)): path.read_bytes() for path in directory.rglob("*") if path.is_file()}


def due(site) -> list[Path]:
    found = scan(site.spool, time.time() + 1)
    return [site.spool / name for name in [*found.names, *found.retries]]


# -- retry --


def test_a_deferred_mail_is_due_at_once_under_its_name(site):
    path = deferred(site)
    result = ctl(site, "retry", path.name)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == f"{path}: due as {path.name}\n"
    assert everything_in(site.spool) == {path.name: HEAD + MESSAGE}
    assert due(site) == [path]


def test_a_failed_mail_comes_back_as_if_it_had_never_been_tried(site):
    path = failed(site)
    result = ctl(site, "retry", f"failed/{path.name}")
    assert (result.returncode, result.stderr) == (0, "")
    (renewed,) = due(site)
    assert result.stdout == f"{path}: due as {renewed.name}\n"
    assert everything_in(site.spool) == {renewed.name: HEAD + MESSAGE}


def test_a_failed_mail_is_found_by_its_name_alone_too(site):
    path = failed(site)
    assert ctl(site, "retry", path.name).returncode == 0
    assert not path.exists()
    assert len(due(site)) == 1


def test_several_mails_are_retried_at_once(site):
    paths = [deferred(site), failed(site), deferred(site)]
    result = ctl(site, "retry", *(path.name for path in paths))
    assert (result.returncode, len(result.stdout.splitlines())) == (0, 3)
    assert len(due(site)) == 3


def test_mails_of_every_spool_are_found(site, tmp_path):
    other = tmp_path / "other"
    spool.make_spool(other, 0o700)
    site.configure(MAILDROP_SPOOL=f"{site.spool};{other}")
    first, second = put(other, spool.new_name(), due_in_s=HOUR), put(other / "failed", "kept.1")
    assert ctl(site, "retry", first.name, f"failed/{second.name}").returncode == 0
    assert list(everything_in(site.spool)) == []
    assert len(everything_in(other)) == 2


def test_a_retried_mail_is_sent_by_the_daemon(tmp_path):
    with RelayServer() as relay:
        site = MaildropDaemon(tmp_path, relay.port)
        with site:
            waiting, kept = deferred(site), failed(site)
            assert ctl(site, "retry", waiting.name, f"failed/{kept.name}").returncode == 0
            site.wait_until(lambda: len(relay.accepted) == 2 and not site.waiting())
        assert site.failed() == []
        assert len(relay.accepted) == 2


@pytest.fixture
def waker(site):
    """Who listens at the spool of the site, as a daemon does."""
    waker = WakeUp()
    waker.listen([site.spool], 0o700)
    yield waker
    waker.close()


def test_who_listens_is_asked_for_a_look_also_where_not_all_can_be_retried(site, waker):
    paths = [deferred(site), failed(site)]
    assert ctl(site, "retry", *(path.name for path in paths)).returncode == 0
    assert waker.wait(0).look
    locked = deferred(site)
    spool.lock_path(locked).touch()
    assert ctl(site, "retry", deferred(site).name, locked.name).returncode == 1
    assert waker.wait(0).look


def test_who_listens_is_asked_for_a_look_when_mails_were_made(site, waker):
    assert ctl(site, "make-emails", "ann@example.org").returncode == 0
    assert waker.wait(0).look


def test_a_delete_wakes_nobody(site, waker):
    assert ctl(site, "delete", deferred(site).name).returncode == 0
    assert (waker.wait(0).paths, waker.wait(0).look) == ([], False)


# -- delete --


@pytest.mark.parametrize("kind", [deferred, failed])
def test_a_mail_is_deleted_for_good_and_only_that_one(site, kind):
    path, other = kind(site), kind(site)
    result = ctl(site, "delete", str(path.relative_to(site.spool)))
    assert (result.returncode, result.stdout, result.stderr) == (0, f"{path}: deleted\n", "")
    assert list(everything_in(site.spool)) == [str(other.relative_to(site.spool))]


def test_a_mail_that_is_due_can_be_deleted(site):
    path = put(site.spool, spool.new_name())
    assert ctl(site, "delete", path.name).returncode == 0
    assert everything_in(site.spool) == {}


def asked_to_delete(site, *names, answer):
    command = [SCRIPTS / "maildropctl", "--config", site.config, "delete", *names]
    return subprocess.run(command, input=answer, capture_output=True, text=True, timeout=60)


@pytest.mark.parametrize("answer", ["y\n", "YES\n"])
def test_a_mail_is_deleted_when_the_answer_is_yes(site, answer):
    path = deferred(site)
    result = asked_to_delete(site, path.name, answer=answer)
    assert (result.returncode, result.stderr) == (0, f"Delete {path.name} for good? [y/N] ")
    assert not path.exists()


@pytest.mark.parametrize("answer", ["n\n", "\n", "", "yesterday\n"])
def test_nothing_is_deleted_when_the_answer_is_anything_else(site, answer):
    path = deferred(site)
    result = asked_to_delete(site, path.name, answer=answer)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.endswith("Error: nothing was deleted\n")
    assert path.exists()


def test_the_question_tells_how_many_there_are(site):
    for _ in range(12):
        deferred(site)
    result = asked_to_delete(site, "--all", answer="y\n")
    assert result.stderr.startswith("Delete 12 mails, ")
    assert everything_in(site.spool) == {}


# -- flush --


def test_a_flush_makes_all_deferred_mails_due_and_forgets_nothing_of_them(site, waker):
    paths, kept = [deferred(site), deferred(site)], failed(site)
    before = everything_in(site.spool)
    result = ctl(site, "flush")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout == "".join(f"{path}: due\n" for path in paths)
    assert sorted(due(site)) == paths
    assert everything_in(site.spool) == before and kept.exists()
    assert waker.wait(0).look


def test_a_flush_passes_over_a_mail_that_somebody_has_claimed_and_says_so(site):
    claimed, free = deferred(site), deferred(site)
    with spool.claim(claimed, time.time() + 2 * HOUR):
        result = ctl(site, "flush")
    assert (result.returncode, result.stdout) == (1, f"{free}: due\n")
    assert result.stderr == f"Error: {claimed}: {claimed} is claimed by another process\n"


def test_a_flushed_mail_is_sent_by_the_daemon(tmp_path):
    with RelayServer() as relay, MaildropDaemon(tmp_path, relay.port) as daemon:
        deferred(daemon)
        assert ctl(daemon, "flush").returncode == 0
        daemon.wait_until(lambda: len(relay.accepted) == 1 and not daemon.waiting())


# -- mails that are described instead of named --


@pytest.fixture
def three(site):
    """A deferred mail of an hour ago, a failed one to somebody else, and one that is due, of another sender."""
    first, second, third = deferred(site), failed(site), put(site.spool, spool.new_name(), notes=b"")
    second.write_bytes(second.read_bytes().replace(b"ann@example.org", b"Bob@Example.com"))
    third.write_bytes(third.read_bytes().replace(b"zoe@", b"eve@"))
    return {"deferred": first, "failed": second, "due": third}


CHOICES = {
    "--all": {"deferred", "failed"},
    "--recipient ann@example.org": {"deferred"},
    "--recipient *@EXAMPLE.com": {"failed"},
    "--recipient *@example.* --state failed": {"failed"},
    "--sender zoe@*": {"deferred", "failed"},
    "--sender eve@example.org --state due": {"due"},
    "--state deferred --state due": {"deferred", "due"},
    "--subject X": {"deferred", "failed"},
    "--subject y": set(),
    "--older-than 1s --state due": set(),
}


@pytest.mark.parametrize("options", CHOICES)
def test_those_mails_are_retried_that_fit_the_description(site, three, options):
    result = ctl(site, "retry", *options.split())
    assert result.returncode == 0
    told = {line.partition(":")[0] for line in result.stdout.splitlines()}
    assert told == {str(three[kind]) for kind in CHOICES[options]}
    assert (result.stderr == "no mail is like that\n") == (not told)


def test_delete_all_removes_what_waits_and_what_has_failed(site, three):
    assert ctl(site, "delete", "--all").returncode == 0
    assert everything_in(site.spool) == {}


def test_older_than_counts_from_when_a_mail_was_queued(site):
    put(site.spool, spool.new_name())
    old = put(site.spool, "20260101T000000.000000-00000000")
    assert ctl(site, "delete", "--older-than", "2h").stdout == f"{old}: deleted\n"
    assert len(everything_in(site.spool)) == 1


def test_a_locked_mail_is_not_among_all(site, three):
    locked = put(site.spool, spool.new_name())
    spool.lock_path(locked).touch()
    assert ctl(site, "delete", "--all").returncode == 0
    assert sorted(everything_in(site.spool)) == [locked.name, f"{locked.name}.lck"]


def test_a_wrong_name_is_an_error_that_names_near_ones(site):
    path, kept = deferred(site), failed(site)
    assert f"; did you mean {path.name}" in ctl(site, "retry", path.name[:-1]).stderr
    assert f"; did you mean failed/{kept.name}" in ctl(site, "delete", kept.name[:-2]).stderr


# -- what is refused --

COMMANDS = pytest.mark.parametrize("command", ["retry", "delete"])


def assert_refused(site, command, *names, because):
    before = everything_in(site.directory)
    result = ctl(site, command, *names)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ") and result.stderr.count("\n") == 1
    assert because in result.stderr
    assert everything_in(site.directory) == before


@COMMANDS
def test_without_a_name_nothing_is_done(site, command):
    assert ctl(site, command).returncode == 2


@COMMANDS
def test_names_and_descriptions_do_not_go_together(site, command):
    path = deferred(site)
    result = ctl(site, command, path.name, "--all")
    assert (result.returncode, path.exists()) == (2, True)


@COMMANDS
@pytest.mark.parametrize("option", ["--state=lost", "--older-than=soon", "--sent-by=zoe@example.org"])
def test_a_description_that_cannot_be_understood_is_wrong_usage(site, command, option):
    path = deferred(site)
    assert (ctl(site, command, option).returncode, path.exists()) == (2, True)


@COMMANDS
def test_a_name_that_no_mail_has_is_an_error_that_names_it_and_the_spool(site, command):
    deferred(site)
    assert_refused(site, command, "nothing", because=f"there is no mail nothing in {site.spool}")


@COMMANDS
def test_where_one_name_is_wrong_nothing_is_done_to_the_others(site, command):
    path = deferred(site)
    assert_refused(site, command, path.name, "nothing", because="there is no mail nothing")


def test_a_retry_of_a_locked_mail_is_refused(site):
    assert_refused(site, "retry", locked(site).name, because="locked")


@pytest.mark.parametrize("command", ["delete", "release"])
def test_a_locked_mail_of_a_living_process_is_refused(site, command):
    writer = writers.join(site.spool, 0o600, "token")
    path = locked(site, writer.name)
    try:
        assert_refused(site, command, path.name, because="alive")
    finally:
        writer.leave("token")


@pytest.mark.parametrize("command", ["delete", "release"])
def test_a_locked_mail_that_is_being_settled_is_refused(site, command):
    name = dead_writer(site)
    path = locked(site, name)
    with writers.dead_writers(site.spool, writers.names_of_writers(site.spool)):
        assert_refused(site, command, path.name, because="being settled")
    assert ctl(site, command, path.name).returncode == 0


@pytest.mark.parametrize("of_whom", ["a dead writer", "nobody knows"])
def test_a_locked_mail_of_a_dead_or_unknown_writer_is_released_or_deleted_by_a_person(site, waker, of_whom):
    name = dead_writer(site) if of_whom == "a dead writer" else "host-1-0badc0de-1"
    first, second = locked(site, name), locked(site, name)
    result = ctl(site, "release", first.name)
    assert (result.returncode, result.stdout) == (0, f"{first}: released\n")
    assert due(site) == [first]
    assert waker.wait(0).paths == [first]
    result = ctl(site, "delete", second.name)
    assert (result.returncode, result.stdout) == (0, f"{second}: deleted\n")
    assert mails_and_locks(site) == [first.name]


def test_a_lock_without_a_mail_is_released_too(site):
    path = site.spool / spool.new_name()
    spool.lock_path(path).touch()
    assert ctl(site, "release", path.name).returncode == 0
    assert mails_and_locks(site) == []


def test_a_mail_that_is_not_locked_cannot_be_released(site):
    assert_refused(site, "release", deferred(site).name, because="not locked")
    assert_refused(site, "release", failed(site).name, because="not locked")
    assert_refused(site, "release", locked(site).name, "nothing", because="there is no mail nothing")


# -- what waits for a decision --


def test_the_queue_tells_of_locks_of_the_dead_and_the_unknown_and_of_mails_that_may_not_be_sent(site):
    deferred(site)
    failed(site)
    writer = writers.join(site.spool, 0o600, "token")
    alive = locked(site, writer.name)
    name = dead_writer(site)
    orphan, stranger = locked(site, name), put(site.spool, "stranger", b"")
    spool.lock_path(stranger).touch()
    unsettled = put(site.spool / "failed", f"{spool.new_name()}.0", b"##Failed:nobody knows\n##Committed:unknown\n")
    before = everything_in(site.spool)
    result = ctl(site, "queue", "--json", "--state", "locked", "--state", "orphaned", "--state", "failed")
    writer.leave("token")
    assert (result.returncode, result.stderr) == (0, "")
    found = {mail["name"]: (mail["state"], mail["reply"], mail["unsettled"]) for mail in json.loads(result.stdout)}
    del found[next(name for name in found if name.endswith(".1"))]
    assert found == {
        alive.name: ("locked", "", False),
        orphan.name: ("orphaned", f"locked by {name}, which has died: its Zope settles that when it starts", False),
        stranger.name: ("locked", "nobody knows by whom: release or delete it if you do", False),
        f"failed/{unsettled.name}": ("failed", "nobody knows", True),
    }
    assert everything_in(site.spool) == before


def test_the_queue_of_a_spool_that_is_not_there_yet_tells_nothing(site, tmp_path):
    site.configure(MAILDROP_SPOOL=tmp_path / "none")
    assert (ctl(site, "queue").returncode, ctl(site, "queue").stdout) == (0, "")


def test_orphans_are_released_or_deleted_all_together_and_no_others(site):
    name = dead_writer(site)
    writer = writers.join(site.spool, 0o600, "token")
    alive, first, second = locked(site, writer.name), locked(site, name), locked(site, name)
    try:
        assert ctl(site, "release", "--all").stdout == f"{first}: released\n{second}: released\n"
        third = locked(site, name)
        assert ctl(site, "delete", "--state", "orphaned").stdout == f"{third}: deleted\n"
    finally:
        writer.leave("token")
    assert mails_and_locks(site) == sorted([alive.name, f"{alive.name}.lck", first.name, second.name])


@pytest.mark.parametrize("committed", [b"no", b"unknown"])
def test_a_mail_whose_transaction_is_not_known_to_have_committed_is_retried_only_with_yes(site, committed):
    notes = b"##Failed:its transaction did not commit\n##Committed:" + committed + b"\n"
    path = put(site.spool / "failed", f"{spool.new_name()}.0", notes)
    assert_refused(site, "retry", path.name, because="not known to have committed")
    assert ctl(site, "retry", "--yes", path.name).returncode == 0
    (renewed,) = due(site)
    assert renewed.read_bytes() == HEAD + MESSAGE
    assert not path.exists()


def test_a_mail_whose_transaction_is_not_known_to_have_committed_is_deleted_like_any_other(site):
    path = put(site.spool / "failed", f"{spool.new_name()}.0", b"##Failed:x\n##Committed:no\n")
    assert ctl(site, "delete", f"failed/{path.name}").returncode == 0
    assert not path.exists()


@COMMANDS
def test_a_lock_is_no_mail_though_it_may_be_the_same_file(site, command):
    draft = spool.Draft(site.spool / spool.new_name())
    draft.write("zoe@example.org", "ann@example.org", MESSAGE)
    assert_refused(site, command, f"{draft.path.name}.lck", because="a lock")


@COMMANDS
@pytest.mark.parametrize("kind", [deferred, failed])
def test_a_mail_that_somebody_else_has_claimed_is_refused(site, command, kind):
    path = kind(site)
    with spool.claim(path, time.time() + 2 * HOUR):
        assert_refused(site, command, path.name, because="claimed by another process")
    assert ctl(site, command, path.name).returncode == 0


@COMMANDS
def test_what_is_no_mail_is_refused(site, command):
    (site.spool / "notes.txt").write_text("no mail")
    (site.spool / "link").symlink_to(deferred(site))
    os.mkfifo(site.spool / "fifo")
    for name in ("notes.txt", "link", "fifo", "failed", "tmp"):
        assert_refused(site, command, name, because=name)


@COMMANDS
@pytest.mark.parametrize(
    "name",
    [
        "../x",
        "./../x",
        "../home/../x",
        "failed/../../x",
        "failed/../../../x",
        "failed/deep/x",
        "tmp/x",
        "..",
        ".",
        "",
        "failed/..",
        "failed/.",
        "/",
    ],
)
def test_a_name_does_not_lead_out_of_the_spool(site, command, name):
    (site.spool / "failed" / "deep").mkdir()
    for directory in (site.spool.parent, site.directory, site.spool / "tmp", site.spool / "failed" / "deep"):
        put(directory, "x")
    assert_refused(site, command, name, because="Error")


@COMMANDS
def test_an_absolute_path_does_not_lead_out_of_the_spool(site, command):
    elsewhere = put(site.directory, "x")
    assert_refused(site, command, str(elsewhere), because="there is no mail")


@COMMANDS
def test_the_path_of_a_spool_that_is_not_the_configured_one_is_no_name(site, command, tmp_path):
    other = tmp_path / "other"
    spool.make_spool(other, 0o700)
    waiting, kept = put(other, "x"), put(other / "failed", "y.1")
    for path in (waiting, kept):
        assert_refused(site, command, str(path), because="there is no mail")
        assert_refused(site, command, os.path.relpath(path, site.spool), because="there is no mail")


@COMMANDS
def test_without_a_config_file_nothing_is_done(site, command):
    path = deferred(site)
    site.config.unlink()
    result = ctl(site, command, path.name)
    assert result.returncode != 0
    assert path.exists()


@pytest.mark.parametrize("command", ["retry", "delete"])
def test_a_mail_that_another_program_may_be_writing_is_left_alone(site, command):
    path = site.spool / "from-cron"
    with open(path, "wb", buffering=0) as writing:
        writing.write(HEAD + MESSAGE)
        done = ctl(site, command, "from-cron")
        assert done.returncode == 1 and "being written" in done.stderr
        writing.write(b"second half\n")
    assert path.read_bytes() == HEAD + MESSAGE + b"second half\n"


def test_a_name_does_nothing_to_the_terminal_whatever_is_said_of_it(site):
    name = "abc\033]0;title\007"
    (site.spool / name).write_bytes(b"no mail")
    said = [ctl(site, "retry", "abc").stderr, ctl(site, "show", name).stderr]
    put(site.spool, name, due_in_s=HOUR)

    def is_due():    # when it is old enough to be complete
        done = ctl(site, "retry", name)
        said.append(done.stdout or done.stderr)
        return done.returncode == 0

    wait_until(is_due)
    for text in said:
        assert r"abc\x1b]0;title\x07" in text and text.replace("\n", "").isprintable()

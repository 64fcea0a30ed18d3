"""The mails of the spools as an administrator sees them."""

import errno
import os
import time
from pathlib import Path

import pytest

from maildrop import queue, spool
from maildrop.queue import Filter, State
from maildrop.shape import COLUMNS, shape

NOW = 1_795_000_000.0
HOUR = 3600
MESSAGE = b"Subject: hello\n\nbody\n"


def name_at(seconds, suffix="00000000"):
    """A name of our making, as if it had been made then."""
    return time.strftime("%Y%m%dT%H%M%S", time.gmtime(seconds)) + f".250000-{suffix}"


def put(path: Path, to=b"ann@example.org", sender=b"zoe@example.org", notes=b"", message=MESSAGE, due_at=NOW - 10):
    path.write_bytes(b"##To:" + to + b"\n##From:" + sender + b"\n" + notes + message)
    os.utime(path, (due_at, due_at))
    return path


def survey(directory):
    return queue.survey([directory], NOW)


def rows(directory, **wanted):
    return list(queue.rows(survey(directory), Filter(**wanted), NOW))


def only_row(directory):
    (row,) = rows(directory)
    return row


# -- states --


def test_names_and_times_tell_the_states(spool_directory):
    put(spool_directory / name_at(NOW - 50, "00000001"))
    put(spool_directory / name_at(NOW - 40, "00000002"), due_at=NOW + 60)
    locked = put(spool_directory / name_at(NOW - 30, "00000003"))
    spool.lock_path(locked).touch()
    put(spool_directory / "failed" / f"{name_at(NOW - 20)}.1-abc")
    (spool_directory / "notes.txt").write_text("no mail")
    found = {entry.name: entry.state for entry in survey(spool_directory)}
    assert list(found.values()) == [State.DUE, State.DEFERRED, State.LOCKED, State.FAILED, State.UNUSABLE]
    assert list(found)[3].startswith("failed/")
    assert queue.counts(survey(spool_directory)) == {**dict.fromkeys(State, 1), State.ORPHANED: 0}


def test_a_time_too_far_ahead_was_not_set_by_a_daemon_and_counts_as_due(spool_directory):
    put(spool_directory / name_at(NOW), due_at=NOW + spool.LONGEST_DELAY_S + 60)
    assert only_row(spool_directory).state is State.DUE


def test_what_can_be_no_mail_is_not_listed(spool_directory):
    (spool_directory / ".hidden").write_bytes(b"##To:a\n\n")
    (spool_directory / "link").symlink_to(spool_directory / ".hidden")
    os.mkfifo(spool_directory / "fifo")
    (spool_directory / f"{name_at(NOW)}.lck").touch()
    assert survey(spool_directory) == []


def test_a_name_that_goes_on_behind_one_of_ours_is_a_strangers(spool_directory):
    (spool_directory / f"{name_at(NOW)}.bak").write_text("no mail")
    put(spool_directory / f"{name_at(NOW)}~")
    assert sorted(entry.state.value for entry in survey(spool_directory)) == ["due", "unusable"]


def test_a_spool_that_does_not_exist_has_no_mails(tmp_path):
    assert queue.survey([tmp_path / "nowhere"], NOW) == []


def test_mails_of_several_spools_are_listed_together_the_oldest_first(spool_directory, tmp_path):
    other = tmp_path / "other"
    spool.make_spool(other, 0o700)
    for seconds in (30, 10):
        put(spool_directory / name_at(NOW - seconds))
    put(other / name_at(NOW - 20))
    found = queue.survey([spool_directory, other], NOW)
    assert [round(NOW - entry.queued_at) for entry in found] == [30, 20, 10]
    assert [entry.path.parent for entry in found] == [spool_directory, other, spool_directory]


@pytest.mark.parametrize("name", [name_at(NOW), "a stranger's"])
def test_a_mail_that_may_not_be_read_is_unusable(spool_directory, monkeypatch, name):
    put(spool_directory / name)
    real_open = os.open

    def refusing_open(path, *args, **kwargs):    # root, who may run this, may read everything
        if os.path.basename(path) == name:
            raise PermissionError(errno.EACCES, "Permission denied")
        return real_open(path, *args, **kwargs)

    monkeypatch.setattr(os, "open", refusing_open)
    assert (only_row(spool_directory).state, only_row(spool_directory).reply) == (State.UNUSABLE, "Permission denied")


def test_a_file_of_our_name_that_is_no_mail_proves_unusable_when_it_is_read(spool_directory):
    (spool_directory / name_at(NOW)).write_bytes(b"nothing")
    assert queue.counts(survey(spool_directory))[State.DUE] == 1
    row = only_row(spool_directory)
    assert (row.state, row.reply, row.sender) == (State.UNUSABLE, "does not begin with ##To:", None)
    assert rows(spool_directory, states=frozenset({State.UNUSABLE})) == [row]
    assert rows(spool_directory, states=frozenset({State.DUE})) == []


def test_a_locked_mail_that_is_not_written_yet_is_locked(spool_directory):
    path = spool_directory / name_at(NOW)
    path.touch()
    spool.lock_path(path).touch()
    assert only_row(spool_directory).state is State.LOCKED


# -- reading --


def test_a_row_has_all_that_is_known_of_a_deferred_mail(spool_directory):
    notes = b"##Queued:2026-11-18T12:00:00.500000+00:00\n##Attempts:3\n##Last-Reply:451 4.3.0 try \x1b[31mlater\n"
    message = b"subject: =?utf-8?q?Gr=C3=BC?=\n =?utf-8?b?w58=?= x\n\nbody\n"
    to = b"Ann <ann@example.org>, jo@example.org"
    path = put(spool_directory / "a stranger's", to=to, notes=notes, message=message, due_at=NOW + 60)
    row = only_row(spool_directory)
    assert (row.name, row.spool, row.path, row.state) == (path.name, spool_directory, path, State.DEFERRED)
    assert (row.sender, row.recipients) == ("zoe@example.org", ("ann@example.org", "jo@example.org"))
    assert (row.subject, row.attempts, row.next_at) == ("Grüß x", 3, NOW + 60)
    assert row.reply == r"451 4.3.0 try \x1b[31mlater"
    assert row.queued_at == 1795003200.5
    assert row.size == path.stat().st_size


def test_a_failed_mail_says_why_and_since_when_it_is_there(spool_directory):
    name = name_at(NOW - HOUR)
    put(spool_directory / "failed" / f"{name}.3-abc", notes=b"##Attempts:3\n##Last-Reply:451 later\n##Failed:550 no\n")
    row = only_row(spool_directory)
    assert (row.state, row.reply, row.attempts, row.next_at) == (State.FAILED, "550 no", 3, None)
    assert round(row.age_s) == HOUR


def test_a_new_mail_was_queued_when_its_name_was_made(spool_directory):
    put(spool_directory / name_at(NOW - 2 * HOUR))
    assert NOW - only_row(spool_directory).queued_at == pytest.approx(2 * HOUR - 0.25)


def test_a_name_that_only_looks_like_one_of_ours_stops_nothing(spool_directory):
    put(spool_directory / "99999999T999999.000000-00000000")
    assert only_row(spool_directory).state is State.DUE


def test_a_time_in_the_future_is_no_negative_age(spool_directory):
    put(spool_directory / name_at(NOW + HOUR))
    assert only_row(spool_directory).age_s == 0


def test_the_null_sender_is_told_from_one_that_cannot_be_used(spool_directory):
    put(spool_directory / name_at(NOW - 2), sender=b"")
    put(spool_directory / name_at(NOW - 1), sender=b"<<>")
    assert [row.sender for row in rows(spool_directory)] == ["", None]


def test_recipients_that_cannot_be_used_are_shown_as_they_are(spool_directory):
    put(spool_directory / name_at(NOW), to=b"nobody at \x07all <")
    assert only_row(spool_directory).recipients == (r"nobody at \x07all <",)


def test_mails_that_go_while_they_are_looked_at_are_not_there(spool_directory):
    paths = [put(spool_directory / name_at(NOW - number)) for number in range(3)]
    entries = survey(spool_directory)
    paths[1].unlink()
    assert [row.path for row in queue.rows(entries, queue.EVERYTHING, NOW)] == [paths[2], paths[0]]


def test_a_mail_that_has_become_deferred_meanwhile_is_shown_as_such(spool_directory):
    path = put(spool_directory / name_at(NOW))
    entries = survey(spool_directory)
    os.utime(path, (NOW + 60, NOW + 60))
    (row,) = queue.rows(entries, queue.EVERYTHING, NOW)
    assert row.state is State.DEFERRED


def test_a_mail_that_is_being_sent_is_read_and_stays_claimed(spool_directory):
    path = put(spool_directory / name_at(NOW))
    with spool.claim(path, NOW):
        assert only_row(spool_directory).state is State.DUE
        with pytest.raises(spool.SpoolBusy):
            spool.claim(path, NOW)


def test_reading_never_keeps_a_daemon_from_a_mail(spool_directory):
    path = put(spool_directory / name_at(NOW))
    with spool.look_at(path), spool.claim(path, NOW) as mail:
        assert mail.path == path


def test_addresses_are_printable(spool_directory):
    put(spool_directory / name_at(NOW), "\u202egro@example.org".encode(), "\u202elive@example.org".encode())
    row = only_row(spool_directory)
    assert (row.sender, row.recipients) == (r"\u202elive@example.org", (r"\u202egro@example.org",))


# -- choosing --


@pytest.fixture
def four(spool_directory):
    put(spool_directory / name_at(NOW - 4 * HOUR, "00000001"), to=b"ann@example.org")
    put(spool_directory / name_at(NOW - 3 * HOUR, "00000002"), to=b"Bob@Example.COM, ann@example.org", due_at=NOW + 60)
    put(spool_directory / name_at(NOW - 2 * HOUR, "00000003"), sender=b"", message=b"Subject: Bill 42\n\nbody\n")
    put(spool_directory / "failed" / f"{name_at(NOW - HOUR, '00000004')}.1", to=b"eve@example.net")
    return spool_directory


CHOICES = [
    ({}, "1234"),
    ({"states": frozenset({State.FAILED})}, "4"),
    ({"states": frozenset({State.DUE, State.DEFERRED})}, "123"),
    ({"recipient": "ann@example.org"}, "123"),
    ({"recipient": "*@example.com"}, "2"),
    ({"recipient": "bob@*"}, "2"),
    ({"recipient": "example.com"}, ""),
    ({"sender": "<>"}, "3"),
    ({"sender": "zoe@*"}, "124"),
    ({"subject": "bill"}, "3"),
    ({"older_than_s": 2.5 * HOUR}, "12"),
    ({"name": "failed/*"}, "4"),
    ({"recipient": "ann@*", "older_than_s": 3.5 * HOUR}, "1"),
]


def told(wanted):
    """The same in every process, which the order of a set is not."""
    return str({key: sorted(state.value for state in value) if key == "states" else value for key, value in wanted.items()})


@pytest.mark.parametrize(("wanted", "numbers"), CHOICES, ids=[told(wanted) for wanted, _ in CHOICES])
def test_a_filter_lets_pass_what_fits_all_of_it(four, wanted, numbers):
    found = rows(four, **wanted)
    assert "".join(row.name.split("-")[1][7] for row in found) == numbers
    chosen = list(queue.select(survey(four), Filter(**wanted), NOW))
    assert [entry.name for entry in chosen] == [row.name for row in found]


def test_what_names_and_times_can_tell_is_told_without_reading(four):
    assert not Filter(frozenset({State.DUE}), name="2*", older_than_s=1).has_to_read
    assert not queue.EVERYTHING.has_to_read
    for wanted in (Filter(sender="x"), Filter(recipient="x"), Filter(subject="x"), Filter(frozenset({State.UNUSABLE}))):
        assert wanted.has_to_read


def test_a_page_has_its_part_of_the_mails_and_how_many_there_are(four):
    for wanted, total in ((queue.EVERYTHING, 4), (Filter(recipient="ann@*"), 3)):
        whole = list(queue.rows(survey(four), wanted, NOW))
        page = queue.page(survey(four), wanted, NOW, 1, 2)
        assert (page.rows, page.total) == (whole[1:3], total)
    assert queue.page(survey(four), queue.EVERYTHING, NOW, 4, 2) == ([], 4)


# -- age by domain --


def test_the_shape_counts_recipients_by_domain_and_age(spool_directory):
    ages_min = [0, 4.9, 5.1, 79, 1281, 100_000]
    for number, age in enumerate(ages_min):
        put(spool_directory / name_at(NOW - age * 60, f"{number:08}"), to=b"a@b.org, c@B.org, d@a.org, root")
    found = shape(rows(spool_directory))
    ages = (2, 1, 0, 0, 1, 0, 0, 0, 0, 2)
    assert COLUMNS == ("5", "10", "20", "40", "80", "160", "320", "640", "1280", "1280+")
    assert [(line.domain, line.total) for line in found] == [("TOTAL", 24), ("b.org", 12), ("", 6), ("a.org", 6)]
    assert found[3].ages == ages
    assert found[0].ages == tuple(4 * count for count in ages)


def test_the_shape_of_nothing_is_a_total_of_nothing():
    assert [(line.domain, line.total) for line in shape([])] == [("TOTAL", 0)]


# -- making due --


@pytest.mark.parametrize("may_write", [True, False])
def test_a_mail_is_hastened_and_stays_as_it_is(spool_directory, monkeypatch, may_write):
    path = put(spool_directory / name_at(NOW), notes=b"##Attempts:3\n", due_at=time.time() + HOUR)
    before = path.read_bytes()
    if not may_write:    # what a stranger's file answers to an account that is not root

        def refuse(*args, **kwargs):
            monkeypatch.undo()
            raise PermissionError

        monkeypatch.setattr(os, "utime", refuse)
    with spool.claim(path, float("inf")) as mail:
        spool.hasten(mail)
    assert path.read_bytes() == before
    assert path.stat().st_mtime <= time.time()
    assert list((spool_directory / "tmp").iterdir()) == []

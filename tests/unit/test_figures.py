"""What a daemon keeps of what it has done."""

import os
import threading
import time

import pytest
from support.config_file import write_config

from maildrop import figures, settings
from maildrop.figures import Bookkeeper, Counts, Figures, Serving, Trouble
from maildrop.policy import Outcome

HOUR = 3600
NOW = 1_795_000_000.0    # 26 minutes and 40 seconds past an hour


@pytest.fixture
def site(tmp_path):
    """Settings with a VAR that exists."""
    (tmp_path / "home" / "var").mkdir(parents=True)
    return settings.load(write_config(tmp_path / "config", MAILDROP_HOME=tmp_path / "home"))


# -- counts --


def test_the_last_hour_is_sixty_minutes_and_the_last_day_is_24_hours_by_the_clock():
    known = Figures()
    for ago_s, count in ((25 * HOUR, 10000), (23 * HOUR, 1000), (61 * 60, 100), (59 * 60, 10), (0, 1)):
        known.add(Counts(count), NOW - ago_s)
    assert known.last_hour(NOW) == Counts(delivered=11)
    assert known.last_day(NOW) == Counts(delivered=1111)


def test_what_is_added_counts_for_its_minute_its_hour_and_in_all():
    known = Figures()
    known.add(Counts(1, 2, 3), NOW)
    known.add(Counts(1, 0, 0), NOW + 1)
    known.add(Counts(5, 0, 0), NOW + HOUR)
    assert known.total == Counts(7, 2, 3)
    assert known.last_hour(NOW + HOUR) == Counts(5, 0, 0)
    assert known.last_day(NOW + HOUR) == known.total
    assert [counts for _, counts in known.by_hour(NOW + HOUR, 3)] == [Counts(), Counts(2, 2, 3), Counts(5, 0, 0)]


def test_the_hours_of_a_week_are_kept_and_no_more():
    known = Figures()
    for hour in range(400):
        known.add(Counts(1, 1, 1), NOW + hour * HOUR)
    assert len(known.hours) == figures.WEEK_H
    assert len(known.minutes) == 1
    assert len(known.dumps()) < 8000
    shown = known.by_hour(NOW + 399 * HOUR, figures.WEEK_H)
    assert [counts for _, counts in shown] == [Counts(1, 1, 1)] * figures.WEEK_H
    assert shown[-1][0] <= NOW + 399 * HOUR < shown[-1][0] + HOUR


def test_a_clock_that_was_set_back_leaves_no_counts_of_the_future():
    known = Figures()
    known.add(Counts(1), NOW + 1000 * HOUR)
    known.add(Counts(2), NOW)
    assert list(known.hours.values()) == [Counts(2)]


# -- the file --


def test_what_is_written_is_what_is_read():
    known = Figures(pass_began=NOW, pass_ended=NOW + 1, error=Trouble(NOW, "it broke"), outage=Trouble(NOW, "gone"))
    known.serving = Serving(1234, "/etc/maildrop/gr\udcfcn", "0f", ("/spool/a", "/spool/b"))
    known.add(Counts(1, 2, 3), NOW)
    assert Figures.loads(known.dumps()) == known
    assert Figures.loads(Figures().dumps()) == Figures()


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[: len(data) // 2],
        lambda data: b"\x00" * len(data),
        lambda data: b"[]",
        lambda data: b"{}",
        lambda data: b"null",
        lambda data: b"[" * 100_000,
        lambda data: data.replace(b"[1, 2, 3]", b"[1, 2]"),
        lambda data: data.replace(b"[1, 2, 3]", b'"abc"'),
        lambda data: data.replace(b'"minutes": {', b'"minutes": {"x": [1, 2, 3], '),
        lambda data: data.replace(b'"pass_began": 1795000000.0', b'"pass_began": 1e300'),
        lambda data: data.replace(b'"pass_began": 1795000000.0', b'"pass_began": NaN'),
        lambda data: data.replace(b'"serving": null', b'"serving": [1, "x"]'),
        lambda data: data.replace(b'"serving": null', b'"serving": [1, "x", "y", 2]'),
        lambda data: data.replace(b'"pass_began": 1795000000.0', b'"pass_began": 1e15'),
        lambda data: data.replace(b'"pass_began": 1795000000.0', b'"pass_began": -1e14'),
        lambda data: data.replace(b"[1, 2, 3]", b"[1, 2, -3]"),
        lambda data: data.replace(b"[1, 2, 3]", b"[%s, 2, 3]" % (b"9" * 400)),
    ],
)
def test_a_damaged_file_is_as_good_as_none(site, damage):
    known = Figures(pass_began=NOW)
    known.add(Counts(1, 2, 3), NOW)
    path = figures.path_of(site)
    damaged = damage(known.dumps())
    assert damaged != known.dumps()
    path.write_bytes(damaged)
    assert figures.read(site) == Figures()
    keeper = Bookkeeper(site)
    keeper.count(Outcome.DELIVERED, 1)
    keeper.save()
    assert figures.read(site).total == Counts(1)


def test_a_file_that_does_not_say_who_serves_keeps_its_counts(site):
    known = Figures()
    known.add(Counts(1, 2, 3), NOW)
    figures.path_of(site).write_bytes(known.dumps().replace(b', "serving": null', b""))
    assert figures.read(site) == known


def test_no_file_and_what_is_no_file_are_as_good_as_none(site):
    path = figures.path_of(site)
    assert figures.read(site) == Figures()
    os.mkfifo(path)
    assert figures.read(site) == Figures()
    path.unlink()
    path.symlink_to("/dev/zero")
    assert figures.read(site) == Figures()


def test_daemons_with_different_pid_files_have_different_figures(site, tmp_path):
    config = write_config(tmp_path / "other", MAILDROP_HOME=site.home, MAILDROP_PID_FILE=site.var / "second.pid")
    assert figures.path_of(settings.load(config)) != figures.path_of(site)


# -- keeping them --


def test_a_daemon_goes_on_counting_where_the_one_before_has_ended(site):
    for _ in range(3):
        keeper = Bookkeeper(site)
        keeper.count(Outcome.DELIVERED, 2)
        keeper.count(Outcome.DEFERRED, 1)
        keeper.count(Outcome.FAILED, 3)
        keeper.save()
    assert figures.read(site).total == Counts(6, 3, 9)
    assert figures.read(site).last_hour(time.time()) == Counts(6, 3, 9)


def test_the_file_is_for_those_who_may_read_the_log_and_nothing_else_is_left(site):
    Bookkeeper(site).save()
    path = figures.path_of(site)
    assert path.stat().st_mode & 0o777 == site.log_mode == 0o600
    assert os.listdir(site.var) == [path.name]


def test_what_a_crash_left_half_written_is_in_nobodys_way(site):
    path = figures.path_of(site)
    path.with_name(f".{path.name}").write_bytes(b"half")
    Bookkeeper(site).save()
    assert os.listdir(site.var) == [path.name]


def test_a_link_in_the_place_of_the_new_file_is_not_followed(site, tmp_path):
    precious = tmp_path / "precious"
    precious.write_text("precious")
    path = figures.path_of(site)
    path.with_name(f".{path.name}").symlink_to(precious)
    path.symlink_to(precious)
    Bookkeeper(site).save()
    assert precious.read_text() == "precious"
    assert not path.is_symlink()


def test_where_nothing_can_be_written_the_counts_wait_in_memory(site):
    keeper = Bookkeeper(site)
    keeper.count(Outcome.DELIVERED, 1)
    site.var.rename(site.var.with_name("away"))
    keeper.save()
    site.var.mkdir()
    keeper.save()
    assert figures.read(site).total == Counts(1)


def test_the_file_says_which_process_serves_and_by_which_settings_but_tells_no_secret(site, tmp_path):
    path = write_config(tmp_path / "config", MAILDROP_HOME=site.home, MAILDROP_LOGIN="zope", MAILDROP_PASSWORD="geheim")
    keeper = Bookkeeper(settings.load(path))
    keeper.serves(path)
    keeper.save()
    digest = settings.load(path).digest
    assert figures.read(site).serving == Serving(os.getpid(), str(path), digest, (str(site.spools[0]),))
    assert digest != site.digest
    assert b"geheim" not in figures.path_of(site).read_bytes()


def test_there_is_something_to_save_only_after_news_and_not_at_once_again(site):
    keeper = Bookkeeper(site)
    assert keeper.save_in_s == float("inf")
    keeper.count(Outcome.DELIVERED, 1)
    assert keeper.save_in_s == 0
    keeper.save_if_due()
    assert figures.read(site).total == Counts(1)
    assert keeper.save_in_s == float("inf")
    keeper.pass_ended()
    assert 0 < keeper.save_in_s < 10


def test_an_outage_lasts_from_its_first_error_until_the_relay_answers(site):
    keeper = Bookkeeper(site)
    keeper.outage("Connection error: refused")
    keeper.save()
    began = figures.read(site).outage
    assert began.text == "Connection error: refused"
    keeper.outage("Connection error: timed\x1bout")
    keeper.save()
    known = figures.read(site)
    assert (known.outage.at, known.outage.text) == (began.at, r"Connection error: timed\x1bout")
    assert known.error.at > began.at
    keeper.relay_answers()
    keeper.save()
    assert (figures.read(site).outage, figures.read(site).error) == (None, known.error)


def test_no_count_of_several_threads_is_lost(site):
    keeper = Bookkeeper(site)

    def count():
        for _ in range(1000):
            keeper.count(Outcome.DELIVERED, 1)

    threads = [threading.Thread(target=count) for _ in range(8)]
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        keeper.save()
    keeper.save()
    assert figures.read(site).total == Counts(8000)

import io
import os
import random
import re
import stat
import sys
import threading
import time
from pathlib import Path

import pytest

from maildrop.logfile import MaildropLog, printable, stamp

TIME = r"\d{4}/\d\d/\d\d \d\d:\d\d:\d\d"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "maildrop.log"


@pytest.fixture
def log(path):
    return MaildropLog(path)


def entries(path):
    """The lines of a log between first and last of its only block."""
    first, *lines, last = path.read_text().splitlines()
    assert re.fullmatch(rf"### Started at {TIME}\.\.\.", first)
    assert re.fullmatch(rf"### Finished at {TIME}", last)
    return lines


# -- lines --


def test_a_delivery_is_a_line_with_ok_recipients_and_facts(log, path):
    log.delivered(["ann@example.org", "jo@example.org"], 'NAME reply="250 ok" 0.012s')
    log.end_block()
    assert entries(path) == ['OK\t ann@example.org,jo@example.org\tNAME reply="250 ok" 0.012s']


def test_a_deferral_is_a_line_with_bad_reply_recipients_and_facts(log, path):
    log.deferred(["bob@example.org"], "451 4.3.0 try later", "NAME attempt=2")
    log.end_block()
    assert entries(path) == ["BAD: 451 4.3.0 try later\t bob@example.org\tNAME attempt=2"]


def test_a_failure_is_a_line_with_fatal_reply_recipients_and_facts(log, path):
    log.failed(["eve@example.org"], "550 5.1.1 no such user", "NAME kept as failed/NAME.1")
    log.failed([], "no usable recipient", "NAME")
    log.end_block()
    assert entries(path) == [
        "FATAL: 550 5.1.1 no such user\t eve@example.org\tNAME kept as failed/NAME.1",
        "FATAL: no usable recipient\t \tNAME",
    ]


def test_the_beginning_of_an_outage_is_a_line_that_stands_out(log, path):
    log.outage_begins("Connection error", "refused")
    log.end_block()
    (line,) = entries(path)
    assert re.fullmatch(rf"!!!!! Connection error at {TIME}\t refused", line)


def test_the_end_of_an_outage_is_a_line(log, path):
    log.outage_ends()
    log.end_block()
    (line,) = entries(path)
    assert re.fullmatch(rf"### Relay available again at {TIME}", line)


def test_a_notice_is_a_line(log, path):
    log.notice("config reloaded")
    log.end_block()
    assert entries(path) == ["### config reloaded"]


def test_nothing_that_is_logged_can_begin_a_line_or_a_column_of_its_own(log, path):
    evil = "x\nOK\t eve@example.org\r\x1b[2J"
    log.delivered([evil], evil)
    log.deferred([evil], evil, evil)
    log.failed([evil], evil, evil)
    log.outage_begins("Connection error", evil)
    log.notice(evil)
    log.end_block()
    lines = entries(path)
    assert [re.match(r"OK|BAD|FATAL|!!!!!|###", line)[0] for line in lines] == ["OK", "BAD", "FATAL", "!!!!!", "###"]
    assert [line.count("\t") for line in lines] == [2, 2, 2, 1, 0]
    assert all(line.replace("\t", "").isprintable() for line in lines)
    assert path.read_bytes().count(b"\r") == 0


def test_text_that_is_not_ascii_is_in_utf_8_and_what_cannot_be_is_escaped(log, path):
    log.notice("größer €")
    log.notice("gr\udcf6\udcdfer")
    log.end_block()
    assert entries(path) == ["### größer €", "### gr\\udcf6\\udcdfer"]


def test_times_are_local(monkeypatch):
    monkeypatch.setenv("TZ", "XST-5:30")
    time.tzset()
    try:
        assert stamp(1795356005.9) == "2026/11/22 19:30:05"
    finally:
        monkeypatch.undo()
        time.tzset()


# -- blocks --


def test_a_pass_that_has_nothing_to_say_writes_nothing(log, path):
    log.end_block()
    assert not path.exists()


def test_each_pass_has_a_block_of_its_own_behind_what_is_there(log, path):
    path.write_text("from before\n")
    for number in range(2):
        log.notice(f"pass {number}")
        log.end_block()
        log.end_block()
    words = [line.split(" ")[1] for line in path.read_text().splitlines()[1:]]
    assert path.read_text().startswith("from before\n")
    assert words == ["Started", "pass", "Finished"] * 2


def test_a_line_is_in_the_file_as_soon_as_it_is_logged(log, path):
    log.notice("now")
    assert path.read_text().endswith("### now\n")
    log.end_block()


def test_the_file_is_closed_after_a_pass_so_that_it_can_be_moved_away(log, path):
    before = set(os.listdir("/dev/fd"))
    log.notice("one")
    path.rename(path.with_suffix(".0"))
    log.notice("two")
    log.end_block()
    assert set(os.listdir("/dev/fd")) == before
    assert entries(path.with_suffix(".0")) == ["### one", "### two"]
    log.notice("three")
    log.end_block()
    assert entries(path) == ["### three"]


def test_another_path_is_used_from_the_next_block_on(log, path):
    log.notice("one")
    log.end_block()
    log.path = path.with_name("other.log")
    log.notice("two")
    log.end_block()
    assert entries(path) == ["### one"]
    assert entries(path.with_name("other.log")) == ["### two"]


def test_several_daemons_may_share_a_log(path):
    def work(number):
        log = MaildropLog(path)
        for _ in range(20):
            for _ in range(5):
                log.notice(f"{number}" * 3000)
            log.end_block()

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lines = path.read_text().splitlines()
    assert sorted(line for line in lines if len(line) > 100) == sorted(["### " + f"{n}" * 3000 for n in range(6)] * 100)
    assert len([line for line in lines if re.fullmatch(rf"### (Started|Finished) at {TIME}(\.\.\.)?", line)]) == 240
    assert len(lines) == 840


@pytest.mark.parametrize("mode", [0o600, 0o640])
def test_a_new_log_has_the_mode_that_was_asked_for(path, set_umask, mode):
    set_umask(0o027)
    log = MaildropLog(path, mode)
    log.notice("x")
    log.end_block()
    assert stat.S_IMODE(path.stat().st_mode) == mode


def test_a_log_is_for_its_owner_alone_unless_it_was_asked_for(log, path, set_umask):
    set_umask(0)
    log.notice("x")
    log.end_block()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_log_that_is_there_keeps_its_mode(log, path):
    path.write_text("")
    path.chmod(0o644)
    log.notice("x")
    log.end_block()
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


# -- echo --


def test_what_is_logged_is_printed_if_that_was_asked_for(path, capsys):
    log = MaildropLog(path, echo=True)
    log.delivered(["ann@example.org"], "größer")
    log.end_block()
    assert capsys.readouterr().out == path.read_text()


def test_nothing_is_printed_otherwise(log, capfd):
    log.notice("x")
    log.end_block()
    assert capfd.readouterr() == ("", "")


def test_a_terminal_that_is_gone_does_not_stop_the_mail(path, monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    raw = io.FileIO(writing, "w")
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(raw, write_through=True))
    log = MaildropLog(path, echo=True)
    log.notice("x")
    log.end_block()
    monkeypatch.undo()
    assert entries(path) == ["### x"]


def test_a_terminal_that_cannot_show_a_letter_does_not_stop_the_mail(path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "ascii"))
    log = MaildropLog(path, echo=True)
    log.delivered(["jürgen@example.org"], "facts")
    log.end_block()
    monkeypatch.undo()
    assert entries(path) == ["OK\t jürgen@example.org\tfacts"]


# -- trouble --


def test_a_log_that_cannot_be_opened_stops_nothing_and_its_lines_go_to_stderr(tmp_path, capsys):
    log = MaildropLog(tmp_path / "none" / "maildrop.log")
    log.failed(["ann@example.org"], "550 no", "NAME")
    log.end_block()
    error = capsys.readouterr().err
    assert str(log.path) in error
    assert error.endswith(": FATAL: 550 no\t ann@example.org\tNAME\n")


def test_a_log_that_can_be_opened_again_is_written_again(tmp_path, capsys):
    log = MaildropLog(tmp_path / "var" / "maildrop.log")
    log.notice("one")
    log.path.parent.mkdir()
    log.notice("two")
    log.end_block()
    assert entries(log.path) == ["### two"]
    assert "one" in capsys.readouterr().err


def test_a_directory_in_the_logs_place_stops_nothing(tmp_path, capsys):
    log = MaildropLog(tmp_path)
    log.notice("x")
    log.end_block()
    assert "### x" in capsys.readouterr().err


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full here")
def test_a_full_disk_stops_nothing(capsys):
    log = MaildropLog(Path("/dev/full"))
    log.notice("x")
    log.end_block()
    assert "/dev/full: No space left on device: ### x" in capsys.readouterr().err


def test_a_fifo_without_a_reader_in_the_logs_place_is_not_waited_for(path, log, capsys):
    os.mkfifo(path)
    log.notice("x")
    log.end_block()
    assert "### x" in capsys.readouterr().err


def test_a_log_stops_nothing_where_stderr_is_gone_too(tmp_path, monkeypatch):
    reading, writing = os.pipe()
    os.close(reading)
    raw = io.FileIO(writing, "w")
    monkeypatch.setattr(sys, "stderr", io.TextIOWrapper(raw, write_through=True))
    log = MaildropLog(tmp_path / "none" / "maildrop.log")
    log.notice("x")
    log.end_block()
    monkeypatch.undo()
    assert not log.path.exists()


def test_a_log_stops_nothing_in_a_process_without_stdout_and_stderr(path, tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "stdout", None)    # so Python begins where the descriptors are closed
    monkeypatch.setattr(sys, "stderr", None)
    for log in MaildropLog(path, echo=True), MaildropLog(tmp_path / "none" / "maildrop.log", echo=True):
        log.notice("x")
        log.end_block()
    assert entries(path) == ["### x"]


# -- text for the log --


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (b"2.0.0 Ok: queued as 4F2", "2.0.0 Ok: queued as 4F2"),
        (b" two\nlines \n", "two lines"),
        (b"a  \r\n\r\n  b", "a b"),
        ("größer €", "größer €"),
        ("größer €".encode(), "größer €"),
        (b"gr\xf6\xdfer", "gr\\xf6\\xdfer"),
        (b"a\rb", "a\\rb"),
        (b"a\tb", "a\\tb"),
        (b"\x1b[31mred\x00", "\\x1b[31mred\\x00"),
        ("a\x85b", "a\\x85b"),
        ("a\u2028b\u202ec", "a\\u2028b\\u202ec"),
        ("a\udc80b", "a\\udc80b"),
        ("a\xa0b", "a\\xa0b"),
        ("\U0001f4e7\U000e0001", "\U0001f4e7\\U000e0001"),
        (b"", ""),
        ("", ""),
        (b"\r\n", ""),
    ],
)
def test_what_a_relay_says_becomes_one_printable_line(text, expected):
    assert printable(text) == expected


def test_any_bytes_become_one_printable_line():
    choose = random.Random(421)
    for _ in range(3000):
        text = printable(choose.randbytes(choose.randint(0, 30)))
        assert text.isprintable()
        assert text.splitlines() in ([], [text])

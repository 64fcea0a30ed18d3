"""Reading the log from its end."""

import os

import pytest

from maildrop import logview


@pytest.mark.parametrize("chunk", [1, 2, 7, 64, 65536])
@pytest.mark.parametrize("end", ["", "\n"])
def test_the_last_lines_are_found_wherever_the_file_is_cut_for_reading(tmp_path, monkeypatch, chunk, end):
    monkeypatch.setattr(logview, "_CHUNK", chunk)
    lines = ["first", "", "a long line " * 20, "x", "\u00fc and \U0001f600", "last"]
    path = tmp_path / "log"
    path.write_text("\n".join(lines) + end)
    for most in range(8):
        found = [line.text for line in logview.last_lines(path, most)]
        assert found == lines[len(lines) - min(most, len(lines)) :]


def test_a_line_without_end_takes_no_unlimited_memory(tmp_path, monkeypatch):
    monkeypatch.setattr(logview, "_CHUNK", 10)
    monkeypatch.setattr(logview, "_LONGEST_LINE", 100)
    path = tmp_path / "log"
    path.write_text("x" * 1000)
    found = logview.last_lines(path, 1000)
    assert "".join(line.text for line in found) == "x" * 1000
    assert max(len(line.text) for line in found) <= 120


def test_nothing_in_the_log_can_do_anything_to_a_terminal(tmp_path):
    path = tmp_path / "log"
    path.write_bytes(b"OK\t \x1b[2Jann@example.org\tNAME \x9b1m\r\xff\n")
    (line,) = logview.last_lines(path, 1)
    assert line.text.replace("\t", "").isprintable()
    assert (line.recipients, line.mail) == ((r"\x1b[2Jann@example.org",), "NAME")


@pytest.mark.parametrize("chunk", [1, 7, 65536])
def test_of_the_last_bytes_the_whole_lines_are_shown_newest_first(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(logview, "_CHUNK", chunk)
    path = tmp_path / "log"
    path.write_text("one\ntwo\nthree\n")
    for within, expected in ((None, 3), (14, 3), (100, 3), (13, 2), (10, 1), (5, 0), (0, 0)):
        with logview.open_log(path) as stream:
            found = [line.text for line in logview.newest_lines(stream, within=within)]
        assert found == ["three", "two", "one"][:expected]


def test_nothing_old_is_followed_where_no_line_is_asked_for(tmp_path, monkeypatch):
    path = tmp_path / "log"
    path.write_text("old\n")
    lines = logview.follow(path, 0)
    monkeypatch.setattr(logview.time, "sleep", lambda seconds: add(path, "new\n"))
    assert next(lines).text == "new"


def add(path, text):
    with path.open("a") as stream:
        stream.write(text)


def test_a_link_is_not_followed_where_everybody_may_have_made_it(tmp_path):
    (tmp_path / "secret").write_text("secret\n")
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "log").symlink_to(tmp_path / "secret")
    assert logview.last_lines(shared / "log", 1)[0].text == "secret"
    shared.chmod(0o1777)
    with pytest.raises(OSError):
        logview.last_lines(shared / "log", 1)


def test_what_is_no_file_is_an_error_and_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "fifo")
    for path in (tmp_path / "fifo", tmp_path):
        with pytest.raises(OSError):
            logview.last_lines(path, 1)
        with pytest.raises(OSError):
            next(logview.follow(path, 1))


def test_an_emptied_log_is_followed_from_its_new_beginning(tmp_path):
    path = tmp_path / "log"
    path.write_text("one\ntwo\n")
    lines = logview.follow(path, 1)
    assert next(lines).text == "two"
    path.write_text("3\n")
    assert next(lines).text == "3"


def test_a_log_that_does_not_exist_yet_is_followed_from_its_beginning(tmp_path, monkeypatch):
    path = tmp_path / "log"
    monkeypatch.setattr(logview.time, "sleep", lambda seconds: path.write_text("first\n"))
    assert next(logview.follow(path, 20)).text == "first"

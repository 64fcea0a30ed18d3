"""What people see, and what programs get."""

import io

import pytest

from maildrop.terminal import Screen, columns_of, cut, progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def plain_environment(monkeypatch):
    for name in ("NO_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")


def test_a_terminal_gets_aligned_columns_also_of_wide_and_combining_characters():
    stream = Terminal()
    Screen(stream).table(("A", "N", "LAST"), [("\u65e5\u672c", "1", "x"), ("e\u0301", "22", "y")], right="lr")
    lines = stream.getvalue().replace("\033[1m", "").replace("\033[0m", "").splitlines()
    assert lines == ["A      N  LAST", "\u65e5\u672c   1  x", "e\u0301     22  y"]


def test_what_is_no_terminal_gets_tabs_and_neither_head_nor_colours():
    stream = io.StringIO()
    Screen(stream).table(("A", "B"), [("1", "2"), ("3", "")], colours=["red", "red"], below=["x", "y"])
    assert stream.getvalue() == "1\t2\n3\t\n"
    assert Screen(stream).coloured("x", "red") == "x"


@pytest.mark.parametrize(
    ("text", "width", "shown"),
    [("abcdef", 6, "abcdef"), ("abcdefg", 6, "abc..."), ("\u65e5\u672c\u65e5\u672c", 7, "\u65e5\u672c...")],
)
def test_text_that_does_not_fit_is_cut(text, width, shown):
    assert cut(text, width) == shown
    assert columns_of(shown) <= width


def test_items_come_through_with_a_bar_and_without(monkeypatch):
    monkeypatch.setattr("maildrop.terminal._REDRAW_S", 0)
    for stream, bars in ((Terminal(), 3), (io.StringIO(), 0)):
        assert list(progress(iter("abc"), 3, "Work", stream)) == ["a", "b", "c"]
        assert stream.getvalue().count("Work [") == bars
    assert list(progress(iter(""), 0, "Work", Terminal())) == []


def test_the_bar_goes_also_when_the_work_is_broken_off(monkeypatch):
    monkeypatch.setattr("maildrop.terminal._REDRAW_S", 0)
    stream = Terminal()
    work = progress(iter("abc"), 3, "Work", stream)
    next(work)
    work.close()
    assert stream.getvalue().endswith("\r\033[K")

"""What the Maildrop Log tab shows of the daemon's log."""

import os
from urllib.parse import parse_qs

import pytest
from support.spooling import make_host

from Products.MaildropHost import logtab

NAME = "20261122T140001.000002-00000002"
LOG = f"""### Started at 2026/11/22 14:00:05...
OK\t ann@example.org\t20261122T140001.000001-00000001 id=<1@example.org>
BAD: 451 try later\t bob@example.org\t{NAME} attempt=1
FATAL: 550 no such user\t eve@example.org\t20261122T140001.000003-00000003
!!!!! Connection error at 2026/11/22 14:00:06\t refused
"""


@pytest.fixture
def host(tmp_path):
    host = make_host(tmp_path)
    host.log = tmp_path / "var" / "maildrop.log"
    host.log.parent.mkdir()
    host.log.write_text(LOG)
    return host


def texts(host, **form):
    return [entry["text"] for entry in host.getLogView(form)["entries"]]


def test_the_newest_line_comes_first_or_last(host):
    assert texts(host) == LOG.splitlines()[::-1] == texts(host, order="newest")
    assert texts(host, order="oldest") == LOG.splitlines()


def test_only_the_newest_lines_are_shown_in_either_order(host):
    host.log.write_text("".join(f"line {number}\n" for number in range(300)))
    assert texts(host, lines="50", order="oldest") == [f"line {number}" for number in range(250, 300)]
    assert texts(host, lines="50") == [f"line {number}" for number in range(299, 249, -1)]


def test_the_filter_leaves_the_lines_with_that_text(host):
    assert texts(host, about=f"  {NAME}\n") == [LOG.splitlines()[2]]
    assert texts(host, about="BOB@Example.org") == [LOG.splitlines()[2]]
    assert texts(host, about="no such text") == []


def test_what_went_wrong_is_marked(host):
    assert [entry["bad"] for entry in host.getLogView({"order": "oldest"})["entries"]] == [False, False, False, True, True]


@pytest.mark.parametrize(
    "form",
    [
        {"lines": "7"}, {"lines": "x"}, {"lines": ["50"]}, {"lines": 10**30}, {"lines": "\u0665\u0660"}, {"order": "x"},
        {"order": ["oldest"]}, {"about": ["x"]}, {"about": None}, {"about": b"x"}, {"follow": ""}, {"no": "such"},
    ],
    ids=ascii,
)
def test_what_makes_no_sense_is_as_good_as_not_chosen(host, form):
    assert host.getLogView(form) == host.getLogView({})


def test_the_links_repeat_what_was_chosen(host):
    view = host.getLogView({"about": "a&b=\u00fc\ud800", "lines": "1000", "order": "oldest"})
    assert parse_qs(view["query"]) == {"about": ["a&b=\u00fc?"], "lines": ["1000"], "order": ["oldest"]}
    assert parse_qs(view["follow_query"]) == {**parse_qs(view["query"]), "follow": ["1"]}
    assert host.getLogView({"follow": "1"})["follow"] is True


def test_a_log_that_is_not_there_or_cannot_be_read_is_told(host):
    host.log.unlink()
    assert host.getLogView({})["problem"].startswith("There is no log yet")
    host.log.mkdir()
    assert "no regular file" in host.getLogView({})["problem"]
    host.log.rmdir()
    os.mkfifo(host.log)
    assert "no regular file" in host.getLogView({})["problem"]


def test_whatever_bytes_are_in_the_log_what_is_shown_can_be_printed(host):
    host.log.write_bytes(bytes(range(256)) * 3 + b"\n\xff\xfe\x00\x1b[2J\n")
    for text in texts(host):
        assert text.replace("\t", "").isprintable()


def test_long_lines_are_cut_and_many_of_them_are_not_all_shown(host):
    host.log.write_text(("x" * 100_000 + "\n") * 300)
    view = host.getLogView({"lines": "5000"})
    shown = [entry["text"] for entry in view["entries"]]
    assert max(map(len, shown)) < 4100 and sum(map(len, shown)) <= 1_000_000
    assert len(shown) < 300 and "too long" in view["note"]


def test_of_a_huge_log_only_the_end_is_looked_through_and_the_page_says_so(host, monkeypatch):
    monkeypatch.setattr(logtab, "_WITHIN", 10_000)
    host.log.write_text("the needle\n" + "hay\n" * 3000)
    view = host.getLogView({"about": "needle"})
    assert view["entries"] == [] and "Only the newest 9.8 KB were looked through" in view["note"]
    assert host.getLogView({"about": "hay"})["note"] == ""
    host.log.write_text("the needle\n" + "hay\n" * 30)
    assert texts(host, about="needle") == ["the needle"]


def test_a_download_is_what_the_log_has_at_its_begin_and_ends_well_where_the_log_shrinks(host):
    stream = logtab.open_log(host.log)
    download = logtab._Download(stream)
    with host.log.open("a") as log:
        log.write("added meanwhile\n")
    assert b"".join(download) == LOG.encode()
    assert stream.closed
    download = logtab._Download(logtab.open_log(host.log))
    host.log.write_text("")
    assert b"".join(download) == b""
    download.close()    # as a server may do once more

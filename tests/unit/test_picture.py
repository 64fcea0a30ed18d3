"""The picture of what a daemon has done."""

import re
import time
from xml.etree import ElementTree

import pytest

from maildrop.figures import HOUR_S, Counts
from Products.MaildropHost import picture

SVG = "{http://www.w3.org/2000/svg}"
NOON = 1_795_003_200    # of a Wednesday, in UTC


@pytest.fixture(autouse=True)
def utc(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


def hours(*counts, until=NOON):
    return [(until - (len(counts) - 1 - number) * HOUR_S, Counts(*each)) for number, each in enumerate(counts)]


def drawn(of, title="The last 24 hours"):
    return ElementTree.fromstring(picture.draw("x", title, of))


def texts(svg):
    return [element.text for element in svg.iter(f"{SVG}text")]


def columns(svg):
    """Of each hour: what it says, and the bars in it."""
    groups = list(svg.iter(f"{SVG}g"))
    return [(group.find(f"{SVG}title").text, group.findall(f"{SVG}rect")[1:]) for group in groups]


def test_each_hour_has_a_column_that_says_its_counts():
    found = columns(drawn(hours((1234, 2, 0), (0, 0, 0))))
    assert [said for said, _ in found] == [
        "Wed 11:00: 1,234 delivered, 2 deferred, 0 failed", "Wed 12:00: 0 delivered, 0 deferred, 0 failed",
    ]
    assert [len(bars) for _, bars in found] == [2, 0]


def test_the_outcomes_differ_by_place_pattern_and_text():
    svg = drawn(hours((5, 5, 5)))
    ((_, bars),) = columns(svg)
    assert len({bar.get("fill") for bar in bars}) == 3
    tops = [float(bar.get("y")) for bar in bars]
    bottoms = [float(bar.get("y")) + float(bar.get("height")) for bar in bars]
    assert all(bottom < top for bottom, top in zip(bottoms, tops[1:]))
    for bar in bars[1:]:
        name = re.fullmatch(r"url\(#(.+)\)", bar.get("fill"))[1]
        assert svg.find(f".//{SVG}pattern[@id='{name}']") is not None
    assert texts(svg)[-6:] == [
        "5 delivered", "at most 5 in an hour", "5 deferred", "at most 5 in an hour", "5 failed", "at most 5 in an hour",
    ]


def test_it_says_as_a_whole_what_it_shows():
    svg = drawn(hours((3, 0, 1), (4, 2, 0)))
    assert svg.get("role") == "img"
    assert svg.get("aria-label") == "The last 24 hours: 7 delivered, 2 deferred, 1 failed"


def test_heights_are_in_proportion_and_one_among_thousands_is_seen():
    (_, full), (_, half), (_, least) = columns(drawn(hours((100_000, 0, 0), (50_000, 0, 0), (1, 0, 0))))
    high = [float(bars[0].get("height")) for bars in (full, half, least)]
    assert high[0] == 2 * high[1] and high[2] >= 2


def test_the_axis_has_hours_in_a_day_and_days_in_a_week():
    assert texts(drawn(hours(*[(0, 0, 0)] * 24)))[:4] == ["18:00", "00:00", "06:00", "12:00"]
    assert texts(drawn(hours(*[(0, 0, 0)] * 168)))[:7] == ["Thu", "Fri", "Sat", "Sun", "Mon", "Tue", "Wed"]


@pytest.mark.parametrize("counts", [(-5, 0, 0), (10**4000, 10**300, -(10**4000))], ids=["negative", "huge"])
def test_figures_that_no_daemon_wrote_are_drawn_within_the_picture(counts):
    svg = drawn(hours(counts, (1, 1, 1)))
    _, _, width, height = map(float, svg.get("viewBox").split())
    for bar in svg.iter(f"{SVG}rect"):
        assert 0 <= float(bar.get("y")) and float(bar.get("y")) + float(bar.get("height")) <= height
        assert 0 <= float(bar.get("x")) and float(bar.get("x")) + float(bar.get("width")) <= width + 0.02
    assert len("".join(texts(svg))) < 300


def test_a_week_as_days():
    days = picture.by_day(hours(*[(1, 0, 2)] * 30))
    assert days == [
        ("2026/11/17", {"delivered": 17, "deferred": 0, "failed": 34}),
        ("2026/11/18", {"delivered": 13, "deferred": 0, "failed": 26}),
    ]

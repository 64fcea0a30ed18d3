"""Times and spans of time as people and programs read them."""

import pytest

from maildrop.durations import iso_time, parse_duration, tell_duration, tell_size


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90", 90), ("0", 0), ("1.5h", 5400), ("90s", 90), ("15m", 900), ("2H", 7200), ("1d 12h", 129600), ("1w", 604800),
        (" 3d ", 259200),
    ],
)
def test_a_span_of_time_is_understood(text, seconds):
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", " ", "h", "-1h", "2x", "2h later", "1e3", "soon", "9" * 400])
def test_what_is_no_span_of_time_is_refused(text):
    with pytest.raises(ValueError, match="no span of time"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-5, "0s"), (0.9, "0s"), (59, "59s"), (60, "1m"), (3599, "59m"), (3600, "1h"), (11100, "3h 5m"), (86400, "1d"),
        (187200, "2d 4h"),
    ],
)
def test_a_span_of_time_is_told_by_its_two_largest_units(seconds, text):
    assert tell_duration(seconds) == text


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (1023, "1023 B"), (1024, "1.0 KB"), (31 * 1024, "31 KB"), (5 << 20, "5.0 MB"), (3 << 40, "3072 GB")],
)
def test_a_size_is_told_in_few_digits(size, text):
    assert tell_size(size) == text


def test_a_time_is_told_in_utc():
    assert iso_time(1795000000.9) == "2026-11-18T11:06:40+00:00"

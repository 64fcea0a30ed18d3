"""What a daemon has done, as a picture: SVG with a column for each hour.

Delivered, deferred and failed have a band of their own each, with its name, its sum and a pattern of its own: colours say
nothing that the rest does not say.
"""

import time
from html import escape

from maildrop.figures import DAY_H

_WIDTH = 360    # units; about pixels where the window is narrow
_TEXT = 15    # height of a line
_BAR = 34    # height of the highest column
_BAND = _TEXT + _BAR + 9
_AXIS = _TEXT + 3
_LEAST = 2    # height of the lowest column: one among thousands is seen
_LABEL = 34    # width that a label of the axis needs
_STYLE = "width: 100%; max-width: 34rem; height: auto"
_MOST = 10**12    # more was not counted by a daemon

_COLOURS = {"delivered": "#1b6e3c", "deferred": "#8a5a00", "failed": "#a3161f"}
_PATTERNS = {
    "deferred": '<path d="M-1,1 l2,-2 M0,6 l6,-6 M5,7 l2,-2" stroke="{colour}" stroke-width="2"/>',
    "failed": '<path d="M0,0 l6,6 M0,6 l6,-6" stroke="{colour}" stroke-width="1.5"/>',
}


def draw(name, title, hours):
    """The SVG element for ``hours``, pairs of begin (seconds since the epoch) and ``figures.Counts``, oldest first.

    ``name`` is for ids, and has to differ from that of other pictures of the page. The axis shows days where there are
    more hours than in one, else hours; in local time.
    """
    height = _BAND * len(_COLOURS) + _AXIS
    sums = totals(hours)
    most = {outcome: max((_count(counts, outcome) for _, counts in hours), default=0) for outcome in _COLOURS}
    told = f"{title}: {', '.join(f'{total:,} {outcome}' for outcome, total in sums.items())}"
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {height}" style="{_STYLE}" fill="currentColor"',
        f' font-size="11" role="img" aria-label="{escape(told)}">',
        f"<defs>{''.join(_pattern(name, outcome) for outcome in _PATTERNS)}</defs>",
        *_axis(hours, height),
        *(_heading(number, outcome, sums[outcome], most[outcome]) for number, outcome in enumerate(_COLOURS)),
        *(_column(name, index, hours, most, height) for index in range(len(hours))),
        "</svg>",
    ]
    return "".join(parts)


def totals(hours):
    """The sum of each outcome: {name of the outcome: how many}."""
    return {outcome: sum(_count(counts, outcome) for _, counts in hours) for outcome in _COLOURS}


def by_day(hours):
    """Hours as days, in local time: a list of (day as text, {outcome: how many}), oldest first."""
    days = {}
    for at, counts in hours:
        days.setdefault(time.strftime("%Y/%m/%d", time.localtime(at)), []).append((at, counts))
    return [(day, totals(of_day)) for day, of_day in days.items()]


def _count(counts, outcome):
    return min(max(0, getattr(counts, outcome)), _MOST)


def _pattern(name, outcome):
    drawn = _PATTERNS[outcome].format(colour=_COLOURS[outcome])
    return f'<pattern id="{name}-{outcome}" width="6" height="6" patternUnits="userSpaceOnUse">{drawn}</pattern>'


def _base(number):
    """Where the columns of a band stand."""
    return number * _BAND + _TEXT + _BAR


def _heading(number, outcome, total, most):
    y = number * _BAND + _TEXT - 4
    return (
        f'<text x="0" y="{y}">{total:,} {outcome}</text>'
        f'<text x="{_WIDTH}" y="{y}" text-anchor="end">at most {most:,} in an hour</text>'
        f'<path d="M0,{_base(number) + 0.5} h{_WIDTH}" stroke="currentColor" stroke-width="0.5"/>'
    )


def _column(name, index, hours, most, height):
    """One hour: what a pointer over it is told, and a bar in each band that has something to show."""
    at, counts = hours[index]
    width = _WIDTH / len(hours)
    x = index * width
    said = ", ".join(f"{_count(counts, outcome):,} {outcome}" for outcome in _COLOURS)
    parts = [
        f"<g><title>{escape(time.strftime('%a %H:%M', time.localtime(at)))}: {said}</title>",
        f'<rect x="{x:.2f}" y="0" width="{width:.2f}" height="{height - _AXIS}" fill="transparent"/>',
    ]
    for number, (outcome, colour) in enumerate(_COLOURS.items()):
        count = _count(counts, outcome)
        if count:
            high = max(_LEAST, count / most[outcome] * _BAR)
            fill = f"url(#{name}-{outcome})" if outcome in _PATTERNS else colour
            parts.append(
                f'<rect x="{x + width * 0.1:.2f}" y="{_base(number) - high:.2f}" width="{width * 0.8:.2f}"'
                f' height="{high:.2f}" fill="{fill}" stroke="{colour}" stroke-width="{min(1, width / 10):.2f}"/>'
            )
    return "".join(parts) + "</g>"


def _axis(hours, height):
    """Labels below, each with a thin line behind the columns."""
    width = _WIDTH / max(1, len(hours))
    of_days = len(hours) > DAY_H
    lines = " ".join(f"M{{x:.2f}},{_base(number)} v-{_BAR}" for number in range(len(_COLOURS)))
    for index, (at, _) in enumerate(hours):
        local = time.localtime(at)
        if local.tm_hour % (DAY_H if of_days else 6) == 0:
            x = index * width
            label = escape(time.strftime("%a" if of_days else "%H:%M", local))
            where = f'x="{x:.2f}"' if x + _LABEL <= _WIDTH else f'x="{_WIDTH}" text-anchor="end"'
            yield f'<path d="{lines.format(x=x)}" stroke="currentColor" stroke-width="0.5" stroke-opacity="0.3"/>'
            yield f'<text {where} y="{height - 3}">{label}</text>'

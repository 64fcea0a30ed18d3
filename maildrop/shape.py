"""How old the mails for each domain are, as Postfix's ``qshape`` shows it."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable
from typing import Any, NamedTuple

from maildrop.queue import Row

LIMITS_MIN = (5, 10, 20, 40, 80, 160, 320, 640, 1280)    # minutes
COLUMNS = (*map(str, LIMITS_MIN), f"{LIMITS_MIN[-1]}+")
TOTAL = "TOTAL"


class Line(NamedTuple):
    """The recipients of one domain, or all of them: how many there are of each age."""

    domain: str    # in lower case; TOTAL for all, "" for addresses without one
    ages: tuple[int, ...]    # one for each of COLUMNS: younger than that, and not younger than the one before

    @property
    def total(self) -> int:
        return sum(self.ages)

    def as_json(self) -> dict[str, Any]:
        return {"domain": self.domain, "total": self.total, "ages": dict(zip(COLUMNS, self.ages))}


def shape(rows: Iterable[Row]) -> list[Line]:
    """Counts of recipients by domain and age: all of them first, then the domains with the most."""
    counted: dict[str, list[int]] = {TOTAL: [0] * len(COLUMNS)}
    for row in rows:
        column = bisect_right(LIMITS_MIN, row.age_s / 60)
        for recipient in row.recipients:
            domain = recipient.rpartition("@")[2].lower() if "@" in recipient else ""
            for key in (TOTAL, domain):
                counted.setdefault(key, [0] * len(COLUMNS))[column] += 1
    total, *domains = (Line(domain, tuple(ages)) for domain, ages in counted.items())
    return [total, *sorted(domains, key=lambda line: (-line.total, line.domain))]

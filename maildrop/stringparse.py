"""The module with which products written for 2.3 read a config file."""

from __future__ import annotations

from maildrop import assignments


def parse_assignments(source: str) -> list[tuple[str, str | int | float | bool | None]]:
    """The assignments of a config file as pairs of name and value, in the order of the file.

    Raises ``assignments.AssignmentError``, a ValueError, naming the line that is none.
    """
    return [(assignment.name, assignment.value) for assignment in assignments.parse_assignments(source)]

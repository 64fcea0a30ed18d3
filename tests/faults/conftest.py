"""The ledger of the fault tests: how many cases were tried, and what became of each mail and recipient in them."""

from collections import Counter

import pytest

_NAME = "fault ledger"
_COUNTED = ("tried", "lost", "stuck", "duplicates", "excused")


class Ledger:
    """What one test tried. ``lost`` and ``stuck`` have to stay 0; the test itself asserts that.

    A duplicate counts as ``excused`` where SMTP itself cannot know better: the daemon was killed between the relay's final
    reply and the record of it, or the relay hung up without its final reply. All other ones count as ``duplicates``.
    """

    def __init__(self, kind: str):
        self.kind = kind
        self.counts = Counter(dict.fromkeys(_COUNTED, 0))

    def add(self, tried: int = 1, lost: int = 0, stuck: int = 0, duplicates: int = 0, excused: int = 0) -> None:
        """Enter cases. ``lost``, ``stuck``, ``duplicates`` and ``excused`` count pairs of a mail and a recipient."""
        self.counts.update(tried=tried, lost=lost, stuck=stuck, duplicates=duplicates, excused=excused)


@pytest.fixture
def ledger(request, record_property):
    """A ledger of the test's kind, which is what its marker ``fault_kind`` says."""
    entries = Ledger(request.node.get_closest_marker("fault_kind").args[0])
    yield entries
    record_property(_NAME, [entries.kind, dict(entries.counts)])    # a property, so that it crosses processes

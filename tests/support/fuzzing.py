"""Tests that try many examples: a fixed few in every run, others again and again for as long as asked for."""

from __future__ import annotations

import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any

from hypothesis import HealthCheck, given, settings
from hypothesis.strategies import SearchStrategy

LONGEST_EXAMPLE_S = 30    # what takes longer hangs

examples_tried: Counter[str] = Counter()    # by what it is that was fuzzed


class Hangs(Exception):
    """An example has not come to an end."""


def fuzzed(kind: str, examples: int, **arguments: SearchStrategy) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Make a test of a function that checks one example. ``kind``: what the examples are counted as.

    ``examples``: how many are tried in every run.
    """

    def decorate(check: Callable[..., None]) -> Callable[..., None]:
        @wraps(check)
        def counted(**example: Any) -> None:
            examples_tried[kind] += 1
            with limited():
                check(**example)

        def test(fuzz_seconds: float | None) -> None:
            once = profile(examples, fuzz_seconds)(given(**arguments)(counted))
            again_and_again(once, fuzz_seconds)

        test.__name__ = test.__qualname__ = check.__name__
        test.__module__ = check.__module__
        return test

    return decorate


def profile(examples: int, seconds: float | None, **values: Any) -> settings:
    """The same examples in every run; where there is time to be filled, others."""
    return settings(
        max_examples=examples,
        derandomize=seconds is None,
        database=None,
        deadline=None,
        print_blob=True,
        suppress_health_check=list(HealthCheck),
        **values,
    )


def again_and_again(once: Callable[[], None], seconds: float | None) -> None:
    """Try so many examples until the time is up, at least once."""
    until = time.monotonic() + (seconds or 0)
    once()
    while time.monotonic() < until:
        once()


@contextmanager
def limited() -> Iterator[None]:
    """What hangs is a failure like any other. In the main thread only."""
    before = signal.signal(signal.SIGALRM, _hangs)
    signal.alarm(LONGEST_EXAMPLE_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def _hangs(number: int, frame: object) -> None:
    raise Hangs(f"no end after {LONGEST_EXAMPLE_S} seconds")

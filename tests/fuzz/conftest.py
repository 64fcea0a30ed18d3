"""How long the properties are tried, and how many examples that were."""

import pytest
from support import fuzzing

_NAME = "fuzz ledger"


@pytest.fixture
def fuzz_seconds(request):
    """For how long this test may try examples; None where a fixed number of them is enough."""
    minutes = request.config.getoption("--fuzz-minutes")
    if not minutes:
        return None
    workers = getattr(request.config, "workerinput", {}).get("workercount", 1)
    tests = sum("fuzz_seconds" in item.fixturenames for item in request.session.items)
    return minutes * 60 * workers / tests


@pytest.fixture(autouse=True)
def ledger(record_property):
    fuzzing.examples_tried.clear()
    yield
    record_property(_NAME, dict(fuzzing.examples_tried))    # a property, so that it crosses processes

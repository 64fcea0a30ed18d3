"""Options and summary of the whole test run."""

import signal
from collections import Counter

_NAME = "fault ledger"
_FUZZ = "fuzz ledger"


def pytest_addoption(parser):
    parser.addoption("--least-fault-cases", type=int, default=0, help="fail if fewer fault cases than this were tried")
    parser.addoption("--fuzz-minutes", type=float, default=0, help="try examples in the fuzz tests for so long")


def pytest_configure(config):
    # A shell starts what is to run in the background with Ctrl-C ignored, and so would all that the tests start
    # (workers import this file, too).
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.addinivalue_line("markers", "fault_kind(kind): what the cases of this test are counted as")


def _told(terminalreporter, wanted):
    """What the tests have recorded under this name."""
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == wanted and getattr(report, "when", "") == "teardown":
                    yield value


def _figures(terminalreporter):
    figures = {}
    for kind, counts in _told(terminalreporter, _NAME):
        figures.setdefault(kind, Counter()).update(counts)
    return figures


def pytest_terminal_summary(terminalreporter, config):
    figures = _figures(terminalreporter)
    if figures:
        terminalreporter.section("faults, kills and errors")
        for kind, counts in [*sorted(figures.items()), ("all", sum(figures.values(), Counter()))]:
            told = ", ".join(f"{counts[name]} {name}" for name in ("tried", "lost", "stuck", "duplicates", "excused"))
            terminalreporter.write_line(f"{kind}: {told}")
    tried = sum(map(Counter, _told(terminalreporter, _FUZZ)), Counter())
    if tried:
        terminalreporter.section("examples tried by the fuzz tests")
        for kind, count in [*sorted(tried.items()), ("all", tried.total())]:
            terminalreporter.write_line(f"{kind}: {count}")


def pytest_sessionfinish(session, exitstatus):
    least = session.config.getoption("--least-fault-cases")
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if least and reporter and not hasattr(session.config, "workerinput"):
        tried = sum(_figures(reporter).values(), Counter())["tried"]
        if tried < least:
            reporter.write_line(f"\nonly {tried} fault cases were tried, at least {least} have to be")
            session.exitstatus = 1

"""Options and summary of the whole test run."""

from collections import Counter

_NAME = "fault ledger"


def pytest_addoption(parser):
    parser.addoption("--least-fault-cases", type=int, default=0, help="fail if fewer fault cases than this were tried")


def pytest_configure(config):
    config.addinivalue_line("markers", "fault_kind(kind): what the cases of this test are counted as")


def _figures(terminalreporter):
    figures = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            for name, value in getattr(report, "user_properties", ()):
                if name == _NAME and getattr(report, "when", "") == "teardown":
                    figures.setdefault(value[0], Counter()).update(value[1])
    return figures


def pytest_terminal_summary(terminalreporter, config):
    figures = _figures(terminalreporter)
    if figures:
        terminalreporter.section("faults, kills and errors")
        for kind, counts in [*sorted(figures.items()), ("all", sum(figures.values(), Counter()))]:
            told = ", ".join(f"{counts[name]} {name}" for name in ("tried", "lost", "stuck", "duplicates", "excused"))
            terminalreporter.write_line(f"{kind}: {told}")


def pytest_sessionfinish(session, exitstatus):
    least = session.config.getoption("--least-fault-cases")
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if least and reporter and not hasattr(session.config, "workerinput"):
        tried = sum(_figures(reporter).values(), Counter())["tried"]
        if tried < least:
            reporter.write_line(f"\nonly {tried} fault cases were tried, at least {least} have to be")
            session.exitstatus = 1

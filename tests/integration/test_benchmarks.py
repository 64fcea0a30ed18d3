"""The benchmarks run and compare; how fast anything is, no test says."""

import re
import subprocess
import sys
from functools import cache

import pytest

from support.daemon import CHECKOUT
from support.requires import requires_command, requires_root

PEERS = {
    "drain": ("MaildropHost, 1 connection", "smtplib loop", "zope.sendmail"),
    "scan": ("zope.sendmail",),
    "writer": ("MaildropHost, FSYNC=0", "MailHost, queue", "header work alone"),
    "memory": ("smtplib loop", "zope.sendmail"),
    "wakeup": ("MailHost, queue",),
}
PEERS_WITH_POSTFIX = {
    "drain": ("smtp-source, 1 session", "smtp-source, 10 sessions", "Postfix", "Postfix, 20 from the start"),
    "wakeup": ("MailHost, Postfix",),
}


@cache
def output_of(benchmark: str) -> str:
    command = [sys.executable, "-m", f"benchmarks.{benchmark}", "--quick"]
    result = subprocess.run(command, cwd=CHECKOUT, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def rows(output: str, name: str) -> list[str]:
    """What stands in the rows of a contestant, each as one text of numbers."""
    return re.findall(rf"(?m)^{re.escape(name)}  +(\S.*)$", output)


@pytest.mark.parametrize(("benchmark", "peers"), PEERS.items())
def test_benchmark_prints_ratios_to_its_peers(benchmark, peers):
    output = output_of(benchmark)
    assert re.search(r"(?m) ratio$", output)
    assert all(row.split()[2] == "1" for row in rows(output, "MaildropHost"))
    for name in ("MaildropHost", *peers):
        assert rows(output, name), output


@pytest.mark.parametrize(("benchmark", "peers"), PEERS_WITH_POSTFIX.items())
def test_benchmark_compares_with_postfix(benchmark, peers):
    requires_command("postfix", "smtp-sink", "smtp-source")
    requires_root()
    output = output_of(benchmark)
    for name in peers:
        assert rows(output, name), output

"""The benchmarks run and compare; how fast anything is, no test says."""

import re
import subprocess
import sys
from functools import cache

import pytest

from support.daemon import CHECKOUT
from support.requires import requires_command, requires_root, skip_unless_ci

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


def test_benchmark_compares_hosts():
    requires_command("ip", "smtp-sink", "unshare")
    requires_root()
    output = output_of("hosts")
    if "allows no network namespaces" in output:    # as in many a container
        skip_unless_ci("no network namespaces")
    for name in ("MaildropHost", "1 daemon, 2 spools", "2 daemons, 1 spool", "2 hosts", "3 hosts"):
        assert len(rows(output, name)) == 2, output
    shares = re.findall(r"(?m)^2 daemons, 1 spool, last round: the daemons have sent (\d+) and (\d+) mails$", output)
    assert [sum(map(int, share)) for share in shares] == [60, 60]


@pytest.mark.parametrize(("benchmark", "peers"), PEERS_WITH_POSTFIX.items())
def test_benchmark_compares_with_postfix(benchmark, peers):
    requires_command("postfix", "smtp-sink", "smtp-source")
    requires_root()
    output = output_of(benchmark)
    for name in peers:
        assert rows(output, name), output

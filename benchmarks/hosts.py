"""Several hosts and several daemons: how long it takes until one relay has all their mails.

A host is a network namespace with a cable (veth) to the one in which the relay is, an smtp-sink. All of them are on
this machine and share its processors and its disk, so without a delay there is not more to be had than those give. With
one, the hosts wait for a distant relay, each behind a proxy that delays it, as they would on machines of their own.

Each setup has the same number of mails, in spools that are filled before the daemons start, on each host an equal
share. The clock runs from the moment the relay sees the first connection until it has taken the last mail. That it got
each mail once, and that the spools are empty then, is checked.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from support.requires import find_command

from benchmarks import mails as made_mails
from benchmarks.delay_proxy import DelayProxy
from benchmarks.peers import OURS, Maildrop
from benchmarks.report import Figure, begin, in_turn, options, print_table
from benchmarks.sinks import SmtpSink

_TIME = Figure("time/mail", "ms", 3)


@dataclass(frozen=True)
class Setup:
    """``daemons`` and ``spools`` are those of each host; each of its daemons serves all of its spools."""

    name: str
    hosts: int = 1
    daemons: int = 1
    spools: int = 1


SETUPS = [
    Setup(OURS),
    Setup("1 daemon, 2 spools", spools=2),
    Setup("2 daemons, 1 spool", daemons=2),
    Setup("2 hosts", hosts=2),
    Setup("3 hosts", hosts=3),
]


class Host:
    """A network namespace that has a cable to ours, a context manager."""

    def __init__(self, number: int):
        self.name = f"maildrop-{os.getpid()}-{number}"
        self.relay_address = f"198.18.{number}.1"    # RFC 2544: for benchmarks
        self.entering = [find_command("ip"), "netns", "exec", self.name]
        self._cable, self._address = f"host{number}", f"198.18.{number}.2"

    def __enter__(self) -> Host:
        _ip("netns", "add", self.name)
        try:
            _ip("link", "add", self._cable, "type", "veth", "peer", "name", "relay", "netns", self.name)
            _ip("address", "add", f"{self.relay_address}/30", "dev", self._cable)
            _ip("link", "set", self._cable, "up")
            _ip("-n", self.name, "address", "add", f"{self._address}/30", "dev", "relay")
            _ip("-n", self.name, "link", "set", "relay", "up")
            _ip("-n", self.name, "link", "set", "lo", "up")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        _ip("netns", "delete", self.name)


class DaemonOnHost(Maildrop):
    """Our daemon on a host, for spools that others may serve too. It has a home of its own, with log and pid file."""

    def __init__(self, host: Host, spools: Sequence[Path], relay_host: str):
        super().__init__(settings={"MAILDROP_SPOOL": ";".join(map(str, spools)), "SMTP_HOST": relay_host})
        self._host = host

    def _command(self) -> Sequence[object]:
        return [*self._host.entering, *super()._command()]

    def count_sent(self) -> int:
        return len(re.findall(r"(?m)^OK\t", self.read_output()))


def measure(
    setup: Setup, mails: int, size: int, latency_ms: float, directory: Path
) -> tuple[dict[str, float], list[int]]:
    """Have so many mails of ``size`` bytes delivered. Returns the figures, and how many each daemon has sent."""
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=directory, prefix="bench-")))
        sink = stack.enter_context(SmtpSink(address=""))
        spools: list[Path] = []
        daemons: list[DaemonOnHost] = []
        for number in range(setup.hosts):
            host = stack.enter_context(Host(number))
            own_spools = [place / f"{host.name}-spool{i}" for i in range(setup.spools)]
            spools += own_spools
            relay_host, relay_port = host.relay_address, sink.port
            if latency_ms:
                proxy = stack.enter_context(DelayProxy(relay_port, latency_ms, relay_host, host.entering))
                relay_host, relay_port = "127.0.0.1", proxy.port
            for i in range(setup.daemons):
                home = place / f"{host.name}-daemon{i}"
                home.mkdir()
                daemons.append(DaemonOnHost(host, own_spools, relay_host))
                daemons[-1].fill(home, relay_port, 0, 0)
        for number, spool in enumerate(spools):
            share = mails * (number + 1) // len(spools) - mails * number // len(spools)
            made_mails.fill_spool(spool, share, size)
        os.sync()
        for daemon in daemons:
            daemon.start()
            stack.callback(daemon.stop)
        begun_at = sink.wait_for_connection()
        try:
            ended_at = sink.wait_for(mails)
        except TimeoutError:
            print(*[daemon.read_output()[-2000:] for daemon in daemons], sep="\n")
            raise
        for daemon in daemons:
            daemon.stop()    # then its log has told of all that it has sent
        sent = [daemon.count_sent() for daemon in daemons]
        left = [path for spool in spools for path in spool.iterdir() if path.is_file()]
        if left or (sink.taken, sum(sent)) != (mails, mails):
            raise RuntimeError(f"{setup.name}: {sink.taken} of {mails} arrived, {sent} were sent, {len(left)} are left")
        return {_TIME.name: (ended_at - begun_at) / mails * 1000}, sent


def _ip(*arguments: str) -> None:
    subprocess.run([find_command("ip"), *arguments], check=True)


def why_no_hosts() -> str:
    """Why no hosts can be made here, as a sentence; "" if they can."""
    if missing := [name for name in ("ip", "smtp-sink", "unshare") if find_command(name) is None]:
        return f"several hosts: not installed: {', '.join(missing)} (Debian's iproute2, postfix and util-linux)"
    if os.geteuid() != 0:
        return "several hosts: only root can make network namespaces"
    if subprocess.run([find_command("unshare"), "--net", "true"], capture_output=True).returncode:
        return "several hosts: the system allows no network namespaces"
    return ""


def main() -> None:
    parser = options(__doc__, rounds=3)
    parser.add_argument("--mails", type=int, default=3000, help="in all spools together, without latency (%(default)s)")
    parser.add_argument("--mails-at-distance", type=int, default=2000, help="the same with latency (%(default)s)")
    parser.add_argument("--size", type=int, default=4096, help="bytes of a mail (%(default)s)")
    parser.add_argument("--latency-ms", type=float, nargs="+", default=[0, 10, 50], help="round trips (0 10 50)")
    parser.add_argument("--within", action="store_true", help=argparse.SUPPRESS)
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.mails, chosen.mails_at_distance, chosen.rounds, chosen.latency_ms = 60, 60, 1, [0, 10]
    if not chosen.within:
        if reason := why_no_hosts():
            begin([reason])
            return
        # The relay's namespace has no name and nothing of this machine's own network: it ends with this process.
        again = [sys.executable, "-m", "benchmarks.hosts", "--within", *sys.argv[1:]]
        os.execv(find_command("unshare"), ["unshare", "--net", *again])
    begin()
    _ip("link", "set", "lo", "up")
    for latency_ms in chosen.latency_ms:
        _compare(latency_ms, chosen)


def _compare(latency_ms: float, chosen: argparse.Namespace) -> None:
    results: dict[str, list[dict[str, float]]] = {setup.name: [] for setup in SETUPS}
    shares: dict[str, list[int]] = {}
    mails = chosen.mails_at_distance if latency_ms else chosen.mails
    for setup in in_turn(SETUPS, chosen.rounds):
        figures, shares[setup.name] = measure(setup, mails, chosen.size, latency_ms, chosen.dir)
        results[setup.name].append(figures)
    title = f"{mails} mails of {chosen.size} bytes, round trip {latency_ms:g} ms, {chosen.rounds} rounds"
    print_table(title, [_TIME], results)
    for name, sent in shares.items():
        if len(sent) > 1:
            print(f"{name}, last round: the daemons have sent {' and '.join(map(str, sent))} mails")
    print(flush=True)


if __name__ == "__main__":
    main()

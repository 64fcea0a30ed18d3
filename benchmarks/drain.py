"""A full spool is emptied: time and CPU per mail, and how often a mail's turn waits for the relay's distance.

All contestants hand the same number of mails to the same kind of sink, each in its turn in each round. Their queues are
filled, and the disk is done with it, before they start. The clock runs from the moment the relay sees the first connection
until it has taken the last mail: loading a program, which takes a Python longer than anything else, and reading a directory
(see ``scan``) are not in it. The CPU is user and system time of all processes of the contestant over the same time, and
until it has come to rest.

At a distance, all goes through a proxy that delays it. "turns" are round trips per mail: how often a client went on after
something had come from the relay, over all of its connections. Who sends one mail at a time takes as long as that, so it
gets only a tenth of the mails there, and what a connection costs at its beginning weighs more.

The sink and the proxy share the machine with the contestants: on few cores, a contestant that keeps several cores busy
cannot show it.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path

from benchmarks.delay_proxy import DelayProxy
from benchmarks.peers import (
    Contestant,
    Maildrop,
    Postfix,
    SmtplibLoop,
    SmtpSource,
    ZopeSendmail,
    why_no_postfix,
    why_no_smtp_source,
)
from benchmarks.processes import cpu_s
from benchmarks.report import Figure, begin, in_turn, options, print_table
from benchmarks.sinks import Server, counting_sink

_TIME = Figure("time/mail", "ms", 3)
_CPU = Figure("CPU/mail", "ms", 3)
_TURNS = Figure("turns/mail", "")
_REST_S = 0.1


def contestants(settings: Mapping[str, object]) -> list[Contestant]:
    """All that can run here. ``settings``: what our daemon's config file says beside what it says anyway."""
    found: list[Contestant] = [
        Maildrop(settings=settings),
        Maildrop("MaildropHost, 1 connection", {**settings, "MAILDROP_CONNECTIONS": 1}),
    ]
    if not why_no_smtp_source():
        found += [SmtpSource("smtp-source, 1 session", 1), SmtpSource("smtp-source, 10 sessions", 10)]
    found += [SmtplibLoop("smtplib loop"), ZopeSendmail("zope.sendmail")]
    if not why_no_postfix():
        at_once = {"initial_destination_concurrency": 20, "default_destination_concurrency_limit": 20}
        found += [Postfix("Postfix"), Postfix("Postfix, 20 from the start", at_once)]
    return found


def measure(contestant: Contestant, mails: int, size: int, latency_ms: float, directory: Path) -> dict[str, float]:
    """Let a contestant empty a queue of so many mails of ``size`` bytes. Returns its figures per mail."""
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=directory, prefix="bench-")))
        place.chmod(0o755)    # Postfix's processes have an account of their own
        sink = stack.enter_context(counting_sink())
        relay: Server = stack.enter_context(DelayProxy(sink.port, latency_ms)) if latency_ms else sink
        contestant.fill(place, relay.port, mails, size)
        try:
            os.sync()
            contestant.start()
            begun_at = relay.wait_for_connection()
            cpu_before = cpu_s(contestant.pids())
            ended_at = sink.wait_for(mails)
            cpu = _cpu_at_rest(contestant) - cpu_before
        except Exception:
            print(f"{contestant.name} has failed:\n{contestant.read_output()[-5000:]}", flush=True)
            raise
        finally:
            contestant.stop()
        if sink.taken != mails:
            raise RuntimeError(f"{contestant.name} has sent {sink.taken} mails instead of {mails}")
        figures = {_TIME.name: (ended_at - begun_at) / mails * 1000, _CPU.name: cpu / mails * 1000}
        if isinstance(relay, DelayProxy):
            figures[_TURNS.name] = relay.end_and_count_turns() / mails
        return figures


def _cpu_at_rest(contestant: Contestant) -> float:
    """The CPU seconds that it has used when it uses no more."""
    before, now = -1.0, cpu_s(contestant.pids())
    while now - before > 0.001:
        time.sleep(_REST_S)
        before, now = now, cpu_s(contestant.pids())
    return now


def _setting(text: str) -> tuple[str, object]:
    key, _, value = text.partition("=")
    return key, int(value) if value.isdigit() else value


def main() -> None:
    parser = options(__doc__, rounds=3)
    parser.add_argument("--mails", type=int, default=1000, help="in each queue, without latency (%(default)s)")
    parser.add_argument("--mails-at-distance", type=int, default=200, help="the same with latency (%(default)s)")
    parser.add_argument("--size", type=int, default=4096, help="bytes of a mail (%(default)s)")
    parser.add_argument("--latency-ms", type=float, nargs="+", default=[0, 10, 50], help="round trips (0 10 50)")
    parser.add_argument("--only", nargs="+", default=[], metavar="PART", help="peers with one of these in their name")
    parser.add_argument("--set", type=_setting, nargs="+", default=[], metavar="KEY=VALUE", help="our daemon's settings")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.mails, chosen.mails_at_distance, chosen.rounds, chosen.latency_ms = 20, 20, 1, [0, 10]
    begin(filter(None, [why_no_smtp_source(), why_no_postfix()]))
    ours, *peers = contestants(dict(chosen.set))
    if chosen.only:
        peers = [peer for peer in peers if any(part.lower() in peer.name.lower() for part in chosen.only)]
    for latency_ms in chosen.latency_ms:
        _compare([ours, *peers], latency_ms, chosen)


def _compare(all_of_them: list[Contestant], latency_ms: float, chosen: argparse.Namespace) -> None:
    results: dict[str, list[dict[str, float]]] = {contestant.name: [] for contestant in all_of_them}
    mails = chosen.mails_at_distance if latency_ms else chosen.mails
    for contestant in in_turn(all_of_them, chosen.rounds):
        share = max(1, mails // 10) if latency_ms and contestant.one_at_a_time else mails
        results[contestant.name].append(measure(contestant, share, chosen.size, latency_ms, chosen.dir))
    title = f"{mails} mails of {chosen.size} bytes, round trip {latency_ms:g} ms, {chosen.rounds} rounds"
    print_table(title, [_TIME, _CPU, _TURNS] if latency_ms else [_TIME, _CPU], results)


if __name__ == "__main__":
    main()

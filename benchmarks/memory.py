"""The most memory that a contestant needs to deliver large mails.

It is the resident set at its largest (VmHWM) from the start of the program until it has sent all of its mails. What a
Python with its modules takes is in it; a queue of small mails, the first table, shows how much that is. One huge mail is
delivered by our daemon alone, unless --peers says otherwise: the others hold it in memory several times.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from benchmarks.peers import Contestant, Maildrop, SmtplibLoop, ZopeSendmail
from benchmarks.processes import peak_memory_mb, wait_until
from benchmarks.report import Figure, begin, in_turn, options, print_table
from benchmarks.sinks import counting_sink

_PEAK = Figure("peak memory", "MB", 1)
_MB = 1_000_000
_PATIENCE_S = 300


def measure(contestant: Contestant, mails: int, size: int, directory: Path) -> dict[str, float]:
    with tempfile.TemporaryDirectory(dir=directory, prefix="bench-") as place, counting_sink() as sink:
        contestant.fill(Path(place), sink.port, mails, size)
        os.sync()
        contestant.start()
        peaks = []

        def all_taken() -> bool:
            peaks.append(sum(map(peak_memory_mb, contestant.pids())))
            return sink.taken >= mails

        try:
            wait_until(all_taken, "all mails at the relay", _PATIENCE_S, pause_s=0.005)
        except TimeoutError:
            print(f"{contestant.name} has failed:\n{contestant.read_output()[-5000:]}", flush=True)
            raise
        finally:
            contestant.stop()
        return {_PEAK.name: max(peaks)}


def main() -> None:
    parser = options(__doc__, rounds=2)
    parser.add_argument("--mails", type=int, default=20, help="large mails in a queue (%(default)s)")
    parser.add_argument("--size-mb", type=float, default=20, help="of a large mail (%(default)s)")
    parser.add_argument("--huge-mb", type=float, default=500, help="of a single huge mail (%(default)s)")
    parser.add_argument("--peers", action="store_true", help="the huge mail for all contestants")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.mails, chosen.size_mb, chosen.huge_mb, chosen.rounds = 3, 1, 3, 1
    begin()
    ours, *peers = Maildrop(), SmtplibLoop("smtplib loop"), ZopeSendmail("zope.sendmail")
    huge_for = [ours, *peers] if chosen.peers else [ours]
    for mails, size_mb, all_of_them in (
        (chosen.mails, 0.004, [ours, *peers]),
        (chosen.mails, chosen.size_mb, [ours, *peers]),
        (1, chosen.huge_mb, huge_for),
    ):
        results: dict[str, list[dict[str, float]]] = {contestant.name: [] for contestant in all_of_them}
        for contestant in in_turn(all_of_them, chosen.rounds):
            results[contestant.name].append(measure(contestant, mails, int(size_mb * _MB), chosen.dir))
        print_table(f"mails: {mails}, MB each: {size_mb:g}, {chosen.rounds} rounds", [_PEAK], results)


if __name__ == "__main__":
    main()

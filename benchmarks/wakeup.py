"""How long a mail takes from its commit to the relay while nothing else is to be done.

A process sends one mail a transaction, with pauses between them, first by one mail host, then by the next. The clock runs
from the call of ``transaction.commit()`` until the relay has the mail's last byte. Contestants: a MaildropHost with our
daemon, with the settings of the config file that comes with it; the stock MailHost with its queue, whose thread, in the same
process, looks for mail every three seconds; the stock MailHost without a queue, which hands each mail during its commit to a
Postfix on this machine, which has the relay as its relayhost.
"""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import transaction
from Products.MailHost.MailHost import MailHost

from benchmarks.mails import RECIPIENT, SENDER, text_of
from benchmarks.peers import OURS, Maildrop, why_no_postfix
from benchmarks.postfix import PrivatePostfix
from benchmarks.report import Figure, begin, in_turn, options, print_table
from benchmarks.sinks import OwnSink
from Products.MaildropHost.MaildropHost import MaildropHost

_TEXT = text_of(4096)
_FIGURES = [Figure(name, "ms", 1) for name in ("half within", "90% within", "all within")]


@dataclass(frozen=True)
class Contestant:
    name: str
    host: Any

    def send(self, subject: str) -> float:
        """Send a mail. Returns when its commit began."""
        self.host.send(_TEXT, mto=RECIPIENT, mfrom=SENDER, subject=subject)
        begun_at = time.monotonic()
        transaction.commit()
        return begun_at


@contextmanager
def our_daemon(directory: Path, relay_port: int, settings: Mapping[str, object]) -> Iterator[Contestant]:
    daemon = Maildrop(settings=settings)
    directory.mkdir()
    daemon.fill(directory, relay_port, 0, 0)
    host = MaildropHost("MailHost")
    host.config_path = str(daemon.config)
    contestant = Contestant(OURS, host)
    contestant.send("a mail to be found by the daemon's first look")
    daemon.start()
    try:
        yield contestant
    finally:
        daemon.stop()


@contextmanager
def queue_thread(directory: Path, relay_port: int) -> Iterator[Contestant]:
    host = MailHost("MailHost", smtp_host="127.0.0.1", smtp_port=relay_port, smtp_queue=True)
    host.smtp_queue_directory = str(directory)
    contestant = Contestant("MailHost, queue", host)
    contestant.send("a mail that starts the thread")
    try:
        yield contestant
    finally:
        host._stopQueueProcessorThread()


@contextmanager
def local_postfix(directory: Path, relay_port: int) -> Iterator[Contestant]:
    directory.mkdir()
    postfix = PrivatePostfix(directory, relay_port, {})
    postfix.start()
    try:
        contestant = Contestant("MailHost, Postfix", MailHost("MailHost", smtp_host="127.0.0.1", smtp_port=postfix.port))
        contestant.send("a mail that starts Postfix's processes")
        yield contestant
    finally:
        postfix.stop()


def measure(contestant: Contestant, sink: OwnSink, mails: int, pause_s: float) -> dict[str, float]:
    """Send so many mails. Returns how many milliseconds they took."""
    before = sink.taken
    committed: dict[str, float] = {}
    for number in range(mails):
        time.sleep(random.uniform(0.5, 1.5) * pause_s)    # else all mails meet a clock of others at the same moment
        subject = f"{contestant.name} {before + number}"
        committed[subject] = contestant.send(subject)
    sink.wait_for(before + mails)
    taken_ms = sorted((sink.arrivals[subject] - at) * 1000 for subject, at in committed.items())
    nine_tenths = quantiles(taken_ms, n=10, method="inclusive")[-1]
    return dict(zip((figure.name for figure in _FIGURES), (median(taken_ms), nine_tenths, taken_ms[-1])))


def main() -> None:
    parser = options(__doc__, rounds=3)
    parser.add_argument("--mails", type=int, default=20, help="sent by each contestant in each round (%(default)s)")
    parser.add_argument("--pause-s", type=float, default=0.2, help="before each mail, on average (%(default)s)")
    parser.add_argument("--interval-s", type=float, help="MAILDROP_INTERVAL, if not that of the config file")
    chosen = parser.parse_args()
    if chosen.quick:
        chosen.mails, chosen.rounds, chosen.interval_s = 3, 1, 0.2
    begin(filter(None, [why_no_postfix()]))
    settings = {"MAILDROP_INTERVAL": chosen.interval_s} if chosen.interval_s else {}
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory(dir=chosen.dir, prefix="bench-")))
        place.chmod(0o755)    # Postfix's processes have an account of their own
        sink = stack.enter_context(OwnSink())
        all_of_them = [
            stack.enter_context(our_daemon(place / "maildrop", sink.port, settings)),
            stack.enter_context(queue_thread(place / "queue", sink.port)),
        ]
        if not why_no_postfix():
            all_of_them.append(stack.enter_context(local_postfix(place / "postfix", sink.port)))
        sink.wait_for(len(all_of_them))
        results: dict[str, list[dict[str, float]]] = {contestant.name: [] for contestant in all_of_them}
        for contestant in in_turn(all_of_them, chosen.rounds):
            results[contestant.name].append(measure(contestant, sink, chosen.mails, chosen.pause_s))
        title = f"{chosen.mails} mails, every {chosen.pause_s:g} s, {chosen.rounds} rounds"
        print_table(title, _FIGURES, results)


if __name__ == "__main__":
    main()

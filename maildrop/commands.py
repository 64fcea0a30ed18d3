"""The commands of ``maildropctl``: what each of them prints, and the status it ends with (0 well, 1 not)."""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from maildrop import control, handling, logview, mailview, queue, status, testmails
from maildrop.durations import iso_time, tell_duration, tell_size
from maildrop.handling import Handled
from maildrop.logfile import printable, stamp
from maildrop.pidfile import running_pid
from maildrop.queue import Entry, Filter, Row, State
from maildrop.settings import Settings
from maildrop.shape import COLUMNS, shape
from maildrop.spool import NotAMail, SpoolBusy
from maildrop.terminal import Screen, confirmed, cut, progress

STATE_COLOURS = dict.fromkeys(State, "red") | {State.DUE: "green", State.DEFERRED: "yellow", State.LOCKED: "blue"}
_OUTCOME_COLOURS = {"delivered": "green", "deferred": "yellow", "failed": "red", "trouble": "red"}
_LONGEST_SUBJECT = 40    # columns
_TOLD_ONE_BY_ONE = 50    # mails, on a terminal
_ASKED_FOR_BY_NAME = 10    # so many names are told in a question


class CommandFailed(Exception):
    """A command that could not do what it was asked for; says why."""


# -- the daemon --


def start(options: argparse.Namespace, config: Path, settings: Settings) -> int:
    control.start(config, settings)
    return 0


def stop(options: argparse.Namespace, config: Path, settings: Settings) -> int:
    control.stop(settings)
    return 0


def restart(options: argparse.Namespace, config: Path, settings: Settings) -> int:
    if running_pid(settings.pid_file) is not None:
        control.stop(settings)
    return start(options, config, settings)


def show_status(options: argparse.Namespace, config: Path, settings: Settings) -> int:
    found = status.look(settings)
    limits = status.Limits(options.max_age, options.max_size, options.max_failed)
    if limits != status.Limits():
        level, line = status.check(found, limits)
        print(line)
        return level
    if options.prometheus:    # that it does not run is one of the values, and no reason to throw them away
        sys.stdout.write(status.prometheus(found, config))
        return 0
    if options.json:
        _print_json(found.as_json())
    else:
        screen = Screen(sys.stdout)
        for label, text, colour in _status_lines(found):
            screen.say(f"{label + ':':<12}{screen.coloured(printable(text), colour)}")
    return 0 if found.pid is not None else 1


def _status_lines(found: status.Status) -> Iterator[tuple[str, str, str]]:
    known = found.figures
    if found.pid is None:
        yield "daemon", "not running", "red"
    else:
        since = f" since {stamp(found.since)}" if found.since is not None else ""
        yield "daemon", f"running{since} (process {found.pid})", "green"
    if known.pass_began is None:
        yield "last pass", "none", ""
    elif known.pass_ended is None or known.pass_ended < known.pass_began:
        yield "last pass", f"began at {stamp(known.pass_began)}", ""
    else:
        yield "last pass", f"{stamp(known.pass_began)}, took {tell_duration(known.pass_ended - known.pass_began)}", ""
    if found.outage:
        yield "relay", f"out of reach since {stamp(found.outage.at)}: {found.outage.text}", "red"
    yield "mails", ", ".join(f"{count} {state.value}" for state, count in found.counts.items()), ""
    if found.oldest:
        yield "oldest", f"{tell_duration(found.oldest_age_s)}: {found.oldest.name}", ""
    for label, counts in (("last hour", known.last_hour(found.now)), ("last day", known.last_day(found.now))):
        yield label, f"{counts.delivered} delivered, {counts.deferred} deferred, {counts.failed} failed", ""
    if known.error:
        yield "last error", f"{stamp(known.error.at)}: {known.error.text}", ""


# -- looking at mails --


def show_queue(options: argparse.Namespace, config: Path, settings: Settings) -> int:
    now = time.time()
    wanted = _filter(options, frozenset(State))
    if options.names:
        entries = _named(options.names, settings, now)
    else:
        entries = queue.survey(settings.spools, now)
    if options.newest:
        entries.reverse()
    rows = queue.rows(entries, wanted, now)
    if options.shape:
        _print_shape(rows if options.state else (row for row in rows if row.state in queue.WAITING), options.json)
        return 0
    if options.limit is not None:
        rows = _first(rows, options.limit)
    if options.json:
        _print_json_list(row.as_json() for row in rows)
    elif sys.stdout.isatty():
        _print_rows(list(rows), len(entries), now)
    else:
        for row in rows:
            print("\t".join(_plain_cells(row)))
    return 0


def _first(rows: Iterator[Row], limit: int) -> Iterator[Row]:
    for _, row in zip(range(limit), rows):
        yield row


def _print_rows(rows: list[Row], of: int, now: float) -> None:
    screen = Screen(sys.stdout)
    head = ("NAME", "STATE", "AGE", "SIZE", "TRIED", "NEXT", "FROM", "TO")
    cells = [
        (
            printable(row.name),
            row.state.value,
            tell_duration(row.age_s),
            tell_size(row.size),
            str(row.attempts or ""),
            "" if row.next_at is None else f"in {tell_duration(row.next_at - now)}",
            _sender(row),
            _recipients(row),
        )
        for row in rows
    ]
    below = [" - ".join(filter(None, (cut(row.subject, _LONGEST_SUBJECT), row.reply))) for row in rows]
    screen.table(head, cells, "llrrrr", [STATE_COLOURS[row.state] for row in rows], below)
    screen.say(f"{len(rows)} of {of} mails")


def _sender(row: Row) -> str:
    return "?" if row.sender is None else row.sender or "<>"


def _recipients(row: Row) -> str:
    first = row.recipients[0] if row.recipients else ""
    return first if len(row.recipients) < 2 else f"{first} and {len(row.recipients) - 1} more"


def _plain_cells(row: Row) -> tuple[str, ...]:
    """What README.txt says of the columns."""
    return (
        printable(row.name),
        row.state.value,
        iso_time(row.queued_at),
        str(row.size),
        str(row.attempts),
        "-" if row.next_at is None else iso_time(row.next_at),
        _sender(row),
        ",".join(row.recipients) or "?",
        row.subject,
        row.reply,
    )


def _print_shape(rows: Iterable[Row], as_json: bool) -> None:
    lines = shape(rows)
    if as_json:
        _print_json_list(line.as_json() for line in lines)
        return
    cells = [(line.domain or "-", str(line.total), *map(str, line.ages)) for line in lines]
    Screen(sys.stdout).table(("", "T", *COLUMNS), cells, right="l" + "r" * (len(COLUMNS) + 1))


def show(options: argparse.Namespace, config: Path, settings: Settings) -> int:
    now = time.time()
    (entry,) = _named([options.name], settings, now)
    try:
        view = mailview.view(entry, now)
        if options.json:
            body = "\n".join(mailview.body_lines(entry)) if options.body else None
            _print_json({**view.as_json(), "body": body})
            return 0
        screen = Screen(sys.stdout)
        for label, text in _facts(view.row):
            screen.say(f"{screen.coloured(f'{label}:'.ljust(12), 'dim')}{text}")
        screen.say()
        for name, text in view.header:
            screen.say(f"{screen.coloured(name + ':', 'bold')} {text}")
        if options.body:
            screen.say()
            for line in mailview.body_lines(entry):
                screen.say(line)
    except (SpoolBusy, NotAMail) as why:
        raise CommandFailed(f"{entry.path}: {why}") from why
    return 0


def _facts(row: Row) -> Iterator[tuple[str, str]]:
    yield "name", printable(str(row.path))
    next_at = "" if row.next_at is None else f", next attempt at {stamp(row.next_at)}"
    yield "state", f"{row.state.value}{next_at}"
    yield "queued", f"{stamp(row.queued_at)} ({tell_duration(row.age_s)} ago)"
    yield "size", tell_size(row.size)
    yield "sender", _sender(row)
    for recipient in row.recipients:
        yield "recipient", recipient
    yield "attempts", str(row.attempts)
    if row.reply:
        yield "reply", row.reply


def show_log(options: argparse.Namespace, config: Path, settings: Settings) -> int:
    if options.follow:
        lines: Iterable[logview.LogLine] = logview.follow(settings.log_file, options.lines, options.about)
    else:
        lines = logview.last_lines(settings.log_file, options.lines, options.about)
    if options.json and not options.follow:
        _print_json_list(line.as_json() for line in lines)
        return 0
    screen = Screen(sys.stdout)
    for line in lines:
        text = screen.coloured(line.text, _OUTCOME_COLOURS.get(line.outcome, ""))
        screen.say(json.dumps(line.as_json()) if options.json else text)
        sys.stdout.flush()
    return 0


# -- doing something to mails --


def retry(options: argparse.Namespace, config: Path, settings: Settings) -> int:
    chosen = _chosen(options, settings, frozenset({State.DEFERRED, State.FAILED}))
    handled = handling.retry((entry.path for entry in chosen), settings, also_unsettled=options.yes)
    return _tell(handled, chosen, options, lambda done: f"due as {printable(done.name)}")


def release(options: argparse.Namespace, config: Path, settings: Settings) -> int:
    chosen = _chosen(options, settings, frozenset({State.ORPHANED}))
    return _tell(handling.release(entry.path for entry in chosen), chosen, options, lambda done: "released")


def delete(options: argparse.Namespace, config: Path, settings: Settings) -> int:
    chosen = _chosen(options, settings, frozenset({State.DUE, State.DEFERRED, State.FAILED}))
    if chosen and not options.yes:
        names = [printable(entry.name) for entry in chosen]
        told = ", ".join(names) if len(names) <= _ASKED_FOR_BY_NAME else f"{len(names)} mails, {names[0]} to {names[-1]},"
        if not confirmed(f"Delete {told} for good?"):
            raise CommandFailed("nothing was deleted")
    handled = handling.delete((entry.path for entry in chosen), settings)
    return _tell(handled, chosen, options, lambda done: "deleted")


def flush(options: argparse.Namespace, config: Path, settings: Settings) -> int:
    chosen = [entry for entry in queue.survey(settings.spools, time.time()) if entry.state is State.DEFERRED]
    return _tell(handling.flush((entry.path for entry in chosen), settings), chosen, options, lambda done: "due")


def _chosen(options: argparse.Namespace, settings: Settings, states: frozenset[State]) -> list[Entry]:
    """The mails that the options name, or those that they describe, of these states if they name none."""
    now = time.time()
    if options.names:
        return _named(options.names, settings, now)
    entries = queue.survey(settings.spools, now)
    return list(queue.select(progress(entries, len(entries), "Looking"), _filter(options, states), now))


def _filter(options: argparse.Namespace, states: frozenset[State]) -> Filter:
    return Filter(
        frozenset(options.state) or states, options.sender, options.recipient, options.subject, older_than_s=options.older_than
    )


def _named(names: Iterable[str], settings: Settings, now: float) -> list[Entry]:
    """The mails of these names; all of them, or none. Raises CommandFailed."""
    try:
        paths = dict.fromkeys(handling.find(name, settings.spools) for name in names)
        return [mailview.entry_of(path, settings.spools, now) for path in paths]
    except handling.NoSuchMail as error:
        raise CommandFailed(str(error)) from error


def _tell(
    handled: Iterator[Handled], entries: list[Entry], options: argparse.Namespace, says: Callable[[Handled], str]
) -> int:
    """Tell of one mail after the other, or where a person sees a bar instead, how many there were.

    That a mail has left the spool meanwhile is no error, unless it was named.
    """
    in_one = sys.stdout.isatty() and len(entries) > _TOLD_ONE_BY_ONE
    told: Counter[str] = Counter()
    problems = []
    for done in progress(handled, len(entries), options.command):
        if not done.problem:
            told[says(done).partition(" ")[0]] += 1
            if not in_one:
                print(f"{printable(str(done.path))}: {says(done)}")
        elif not done.is_gone or getattr(options, "names", None):
            problems.append(f"Error: {printable(str(done.path))}: {printable(done.problem)}")
    for problem in problems:
        print(problem, file=sys.stderr)
    if in_one:
        print(", ".join(f"{count} mails: {word}" for word, count in told.items()))
    if not entries:
        print("no mail is like that", file=sys.stderr)
    return 1 if problems else 0


def make_emails(options: argparse.Namespace, config: Path, settings: Settings) -> int:
    testmails.make(settings, options.sender, options.recipients, options.unlocked, options.locked)
    print(f"{options.unlocked} unlocked and {options.locked} locked mails are in {', '.join(map(str, settings.spools))}")
    return 0


# -- JSON --


def _print_json(value: Any) -> None:
    print(json.dumps(value, indent=2))


def _print_json_list(values: Iterable[Any]) -> None:
    """A list, with a line for each of its elements."""
    before = "["
    for value in values:
        sys.stdout.write(f"{before}{json.dumps(value)}")
        before = ",\n "
    print("]" if before != "[" else "[]")

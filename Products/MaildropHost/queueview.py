"""What the Queue tab shows, as plain texts, numbers, lists and dicts: which mails are asked for, which of them are on a page.

Nothing here knows of Zope, and nothing changes a mail.
"""

import errno
import glob
import os
import time
from dataclasses import dataclass, fields, replace
from typing import NamedTuple
from urllib.parse import quote, unquote_to_bytes, urlencode

from maildrop import figures, handling, mailview, queue
from maildrop.durations import iso_time, parse_duration, tell_duration, tell_size
from maildrop.figures import DAY_H, WEEK_H, Figures
from maildrop.logfile import printable, stamp
from maildrop.queue import WAITING, Filter, State
from maildrop.spool import NotAMail, SpoolBusy
from Products.MaildropHost import picture

SIZES = (50, 200, 1000)    # rows on a page
MOST_READ = 10_000    # mails for one page, where names and times alone do not tell which are wanted
_LONGEST_TYPED = 200    # characters of a filter
_LONGEST_CELL = 120    # characters of a cell of the table
_LONGEST_TEXT = 2000    # characters of a text on the page of one mail
_MOST_RECIPIENTS = 1000    # on the page of one mail
_MOST_FIELDS = 300    # header fields there
BODY_LIMIT = 64 * 1024    # bytes

_BADGES = dict.fromkeys(State, "badge-danger") | {
    State.DUE: "badge-success", State.DEFERRED: "badge-warning", State.LOCKED: "badge-secondary",
}
MEANINGS = {
    State.DUE: "goes out in the next pass",
    State.DEFERRED: "waits for its next attempt",
    State.LOCKED: "its transaction is open, or nobody knows who locked it",
    State.ORPHANED: "the process that locked it has died",
    State.FAILED: "waits for you, in the folder failed",
    State.UNUSABLE: "is no mail or cannot be read",
}


# -- which mails --


@dataclass(frozen=True)
class Query:
    """What the form and the links of the tab ask for. Any text may stand in any field but the last four."""

    state: str = ""    # "": all
    sender: str = ""    # a part of it, or a pattern with * or ?
    recipient: str = ""
    subject: str = ""    # a part of it
    name: str = ""
    older: str = ""    # a duration
    newest: bool = False    # first
    size: int = SIZES[0]
    start: int = 0
    ticked: bool = False    # all on the page

    @classmethod
    def parse(cls, form):
        """Of a request's form, whatever stands in it."""
        values = {}
        for field in fields(cls):
            typed = form.get(field.name)
            if not isinstance(typed, str):
                continue
            if field.type is str:
                values[field.name] = printable(typed)[:_LONGEST_TYPED]
            elif field.type is bool:
                values[field.name] = typed == "1"
            elif typed.isascii() and typed.isdigit() and len(typed) < 10:
                values[field.name] = int(typed)
        if values.get("size") not in SIZES:
            values.pop("size", None)
        return cls(**values)

    def filter(self):
        """Raises ValueError for what is no state or no duration; says which."""
        return Filter(
            frozenset({State(self.state)}) if self.state else frozenset(State),
            _pattern(self.sender),
            _pattern(self.recipient),
            self.subject,
            _pattern(self.name),
            parse_duration(self.older) if self.older else 0.0,
        )

    @property
    def is_filtered(self):
        return any((self.state, self.sender, self.recipient, self.subject, self.name, self.older))

    def fields(self, **changes):
        """What is not as it is by default: a list of (name, value), for links and hidden fields."""
        changed = replace(self, **changes)
        return [
            (field.name, str(int(value)) if isinstance(value, int) else value)
            for field in fields(self)
            if (value := getattr(changed, field.name)) != field.default
        ]

    def link(self, **changes):
        return f"manage_queue?{urlencode(self.fields(**changes))}"

    def mail_link(self, key, **more):
        """To the page of a mail, which leads back to where it was linked."""
        return f"manage_mail?{urlencode([('mail', key), *more.items(), *self.fields(ticked=False)])}"


def _pattern(typed):
    """A shell's pattern for it: as it is, or any text that has it in it. ``<>`` is the null sender."""
    return typed if not typed or typed == "<>" or "*" in typed or "?" in typed else f"*{glob.escape(typed)}*"


class Listing(NamedTuple):
    """The mails of one page."""

    rows: list    # of queue.Row
    start: int    # number of the first mail that was looked at
    total: int | None    # wanted ones on all pages; None where not all were looked at
    looked_at: int    # how many this page took
    end: int | None    # where the next page starts; None: nothing is left


def listing(entries, wanted, query, now):
    """The page of ``query``, of the mails that ``wanted`` wants. At most MOST_READ mails are read for it."""
    start, size = query.start, query.size
    left = [entry for entry in entries if wanted.may_want(entry, now)] if query.is_filtered else entries
    if query.newest:
        left = left[::-1]
    if not wanted.has_to_read:
        if start >= len(left):    # some have gone since that page was linked to
            start = max(0, len(left) - 1) // size * size
        shown = left[start : start + size]
        rows = [row for entry in shown if (row := queue.read(entry, now)) is not None]
        end = start + len(shown)
        return Listing(rows, start, len(left), len(shown), end if end < len(left) else None)
    rows = []
    end = start
    for entry in left[start : start + MOST_READ]:
        end += 1
        row = queue.read(entry, now)
        if row is not None and wanted.wants(row):
            rows.append(row)
            if len(rows) == size:
                break
    is_all = end >= len(left)
    return Listing(rows, start, len(rows) if is_all and not start else None, end - start, None if is_all else end)


def pages(shown, query):
    """Where the listing stands, and the links to where it goes on; "" for one that leads nowhere."""
    count, size = len(shown.rows), query.size

    def link(start):
        return query.link(start=start, ticked=False)

    view = {
        "first": link(0) if shown.start else "",
        "previous": "",
        "next": "" if shown.end is None else link(shown.end),
        "last": "",
        "next_says": "Next",
    }
    if shown.total is None:
        until = shown.start + shown.looked_at
        view["where"] = f"{count:,} found; mails {shown.start + 1:,} to {until:,} were looked into."
        view["next_says"] = "Search on"
    elif count:
        view["where"] = f"Mails {shown.start + 1:,} to {shown.start + count:,} of {shown.total:,}"
        view["previous"] = link(max(0, shown.start - size)) if shown.start else ""
        view["last"] = link((shown.total - 1) // size * size) if view["next"] else ""
    else:
        view["where"] = "No mail is like that." if query.is_filtered else "No mails."
    return view


def form(query):
    """What the filter's form shows, and the links that tick all boxes or none."""
    return {
        "filter": {field.name: getattr(query, field.name) for field in fields(query)},
        "states": [state.value for state in State],
        "sizes": SIZES,
        "tick_all": query.link(ticked=True),
        "tick_none": query.link(ticked=False),
    }


# -- names of mails --


def key_of(entry, spools):
    """What names a mail in forms and links: ASCII, whatever its name is. With several spools it says which."""
    name = quote(os.fsencode(entry.name))
    return name if len(spools) == 1 else f"{spools.index(entry.spool)}/{name}"


def find(key, spools, now):
    """The Entry of a key; a plain name will do. Raises NoSuchMail, OSError where it has just gone."""
    number, _, name = key.partition("/")
    if name and number.isascii() and number.isdigit() and len(number) < 4:
        spools, key = spools[int(number) : int(number) + 1], name
    path = handling.find(os.fsdecode(unquote_to_bytes(key.encode("utf-8", "replace"))), spools)
    return mailview.entry_of(path, spools, now)


# -- rows, and one mail --


def _cut(text, most=_LONGEST_TEXT):
    return text if len(text) <= most else f"{text[:most]}\u2026 ({len(text) - most:,} characters more)"


def _sender(row):
    return "?" if row.sender is None else row.sender or "<>"


def cells(row, query, spools, now):
    """A row of the table."""
    key = key_of(row, spools)
    first = _cut(row.recipients[0] if row.recipients else "?", _LONGEST_CELL)
    return {
        "key": key,
        "link": query.mail_link(key),
        "name": printable(row.name),
        "state": row.state.value,
        "meaning": MEANINGS[row.state],
        "badge": _BADGES[row.state],
        "age": tell_duration(row.age_s),
        "queued": stamp(row.queued_at),
        "queued_iso": iso_time(row.queued_at),
        "size": tell_size(row.size),
        "sender": _cut(_sender(row), _LONGEST_CELL),
        "recipients": first if len(row.recipients) < 2 else f"{first} and {len(row.recipients) - 1:,} more",
        "subject": _cut(row.subject, _LONGEST_CELL),
        "attempts": row.attempts,
        "next": "" if row.next_at is None else f"in {tell_duration(row.next_at - now)}",
        "next_at": "" if row.next_at is None else stamp(row.next_at),
        "reply": _cut(row.reply, _LONGEST_CELL),
        "is_unsettled": row.is_unsettled,
    }


def one_mail(entry, query, spools, now, with_body):
    """What the page of a mail shows; None where it has gone."""
    row = queue.read(entry, now)
    if row is None:
        return None
    header, envelope, body = [], [], None
    try:
        view = mailview.view(entry, now)
        header, envelope = view.header, view.envelope
        if with_body:
            body = "\n".join(mailview.body_lines(entry, BODY_LIMIT))
    except (SpoolBusy, NotAMail, OSError):    # the row says why
        pass
    may_be_handled = row.state in (State.DUE, State.DEFERRED, State.FAILED)
    is_stuck = row.state is State.ORPHANED or row.state is State.LOCKED and bool(entry.note)
    return {
        **cells(row, query, spools, now),
        "path": printable(str(row.path)),
        "sender": _cut(_sender(row)),
        "subject": _cut(row.subject),
        "reply": _cut(row.reply),
        "all_recipients": [_cut(recipient) for recipient in row.recipients[:_MOST_RECIPIENTS]],
        "more_recipients": max(0, len(row.recipients) - _MOST_RECIPIENTS),
        "envelope": [(_cut(key), _cut(value)) for key, value in envelope],
        "header": [(_cut(name), _cut(text)) for name, text in header[:_MOST_FIELDS]],
        "more_fields": max(0, len(header) - _MOST_FIELDS),
        "body": body,
        "body_link": query.mail_link(key_of(row, spools), body="1"),
        "is_cut": row.size > BODY_LIMIT,
        "is_readable": bool(envelope),
        "may_retry": row.state in (State.DEFERRED, State.FAILED),
        "may_delete": may_be_handled or is_stuck,
        "may_release": is_stuck,
        "is_orphaned": row.state is State.ORPHANED,
    }


# -- the whole spool --


class Survey(NamedTuple):
    """All mails of all spools that can be read."""

    entries: list    # of queue.Entry, oldest first
    problems: list    # a sentence for each spool that cannot be read, or is not there


def survey(spools, now):
    entries, problems = [], []
    for directory in spools:
        try:
            entries += queue.survey([directory], now)
            if not directory.exists():
                problems.append(f"The spool {printable(str(directory))} is not there yet: the first mail makes it.")
        except OSError as error:
            problems.append(f"The spool {printable(str(directory))} cannot be read: {why(error.strerror or str(error))}")
    if len(spools) > 1:
        entries.sort(key=lambda entry: entry.queued_at)
    return Survey(entries, problems)


_DENIED = {os.strerror(errno.EACCES), os.strerror(errno.EPERM)}
_HINT = (
    "The account that Zope runs as may not do that. Where Zope and the daemon are two accounts of one group,"
    " MAILDROP_SPOOL_MODE=0660 lets both; else use maildropctl as the daemon's account."
)


def why(problem):
    """A problem that the library has told, for the page."""
    if problem.startswith(handling.UNSETTLED):
        return f"{handling.UNSETTLED}; tick the box to send it all the same"
    return f"{printable(problem)}. {_HINT}" if problem in _DENIED else printable(problem)


def top(found, query, spools, now):
    """Counts by state with a link each, and the oldest mail that is still to be sent."""
    counted = queue.counts(found.entries)
    oldest = next((entry for entry in found.entries if entry.state in WAITING), None)
    return {
        "counts": [
            {
                "state": state.value,
                "count": f"{count:,}",
                "meaning": MEANINGS[state],
                "badge": _BADGES[state] if count else "badge-light",
                "link": Query(state=state.value, size=query.size, newest=query.newest).link(),
            }
            for state, count in counted.items()
        ],
        "total": len(found.entries),
        "orphaned": counted[State.ORPHANED],
        "oldest": oldest
        and {
            "age": tell_duration(now - oldest.queued_at),
            "queued": stamp(oldest.queued_at),
            "link": query.mail_link(key_of(oldest, spools)),
        },
    }


def history(settings, now):
    """The pictures of the last day and week with their tables; and whether there is anything to show."""
    known = figures.read(settings)
    day, week = known.by_hour(now, DAY_H), known.by_hour(now, WEEK_H)
    return {
        "is_known": known != Figures(),
        "file": printable(str(figures.path_of(settings))),
        "outage": known.outage and {"since": stamp(known.outage.at), "text": known.outage.text},
        "pictures": [
            {
                "title": "The last 24 hours",
                "svg": picture.draw("day", "The last 24 hours", day),
                "unit": "Hour",
                "rows": _table((time.strftime("%H:%M", time.localtime(at)), picture.totals([(at, one)])) for at, one in day),
            },
            {
                "title": "The last 7 days",
                "svg": picture.draw("week", "The last 7 days", week),
                "unit": "Day",
                "rows": _table(picture.by_day(week)),
            },
        ],
    }


def _table(lines):
    return [{"when": when, **{outcome: f"{count:,}" for outcome, count in counts.items()}} for when, counts in lines]

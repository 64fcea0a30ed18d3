"""Which mails a page of the Queue tab shows, and as what."""

import os
import time
from urllib.parse import parse_qs, urlsplit

import pytest
from support.accounts import open_directory
from support.orphans import in_fork

from maildrop import handling, spool
from maildrop.queue import State
from Products.MaildropHost import queueview
from Products.MaildropHost.queueview import Query

NOW = time.time()


def put(directory, number, to="ann@example.org", sender="zoe@example.org", subject="", due_in=-10, notes=None):
    name = time.strftime("%Y%m%dT%H%M%S", time.gmtime(NOW - 5000 + number)) + f".250000-{number:08x}"
    draft = spool.Draft(directory / name, durable=False)
    draft.write(sender, to, f"Subject: {subject or f'mail {number}'}\n\nbody\n".encode(), notes or {})
    draft.release()
    os.utime(draft.path, (NOW + due_in,) * 2)
    return draft.path


def page(directory, **asked):
    query = Query.parse({name: str(value) for name, value in asked.items()})
    entries = queueview.survey((directory,), NOW).entries
    return queueview.listing(entries, query.filter(), query, NOW), query


def numbers(shown):
    return [int(row.subject.split()[1]) for row in shown.rows]


@pytest.fixture
def small_pages(monkeypatch):
    monkeypatch.setattr(queueview, "SIZES", (3, 5))


# -- what is asked for --


def test_what_is_no_text_or_no_number_is_as_if_it_was_not_there():
    form = {"state": ["due"], "sender": b"x", "start": "-1", "size": "7", "newest": 1, "ticked": "yes", "older": None}
    assert Query.parse(form) == Query()
    assert Query.parse({"start": "9" * 5000}) == Query.parse({"start": "\u0663"}) == Query()


def test_links_ask_for_the_same_again():
    query = Query.parse({"state": "due", "sender": 'a"b&c', "newest": "1", "start": "50", "size": "200"})
    asked = {name: value for name, (value,) in parse_qs(urlsplit(query.link()).query).items()}
    assert Query.parse(asked) == query
    assert Query.parse(dict(query.fields())) == query
    assert Query().link() == "manage_queue?"


@pytest.mark.parametrize("asked", [{"state": "lost"}, {"older": "soon"}])
def test_a_filter_that_cannot_be_is_an_error(asked):
    with pytest.raises(ValueError):
        Query.parse(asked).filter()


@pytest.mark.parametrize(
    ("typed", "found"),
    [("example.org", 2), ("ZOE", 1), ("*@example.org", 2), ("zoe@*", 1), ("<>", 1), ("[::1]", 1), ("oe@example", 1),
     ("z?e@*", 1), ("", 4)],
)
def test_a_part_of_an_address_will_do_or_a_pattern(spool_directory, typed, found):
    for number, sender in enumerate(["zoe@example.org", "amy@example.org", "<>", "a@[::1]"]):
        put(spool_directory, number, sender=sender)
    assert len(page(spool_directory, sender=typed)[0].rows) == found


# -- pages --


def test_pages_by_number_read_only_what_they_show(spool_directory, small_pages, monkeypatch):
    for number in range(8):
        put(spool_directory, number, due_in=100 if number % 2 else -10)
    shown, query = page(spool_directory, size=3, start=3)
    assert (numbers(shown), shown.total, shown.looked_at) == ([3, 4, 5], 8, 3)
    links = queueview.pages(shown, query)
    assert links["where"] == "Mails 4 to 6 of 8"
    assert [links[name].rpartition("?")[2] for name in ("first", "previous", "next", "last")] == [
        "size=3", "size=3", "size=3&start=6", "size=3&start=6",
    ]
    assert numbers(page(spool_directory, size=3, newest=1)[0]) == [7, 6, 5]
    assert numbers(page(spool_directory, size=3, state="deferred", start=3)[0]) == [7]


def test_a_page_that_is_not_there_any_more_is_the_last_one(spool_directory, small_pages):
    for number in range(5):
        put(spool_directory, number)
    assert numbers(page(spool_directory, size=3, start=300)[0]) == [3, 4]
    assert queueview.pages(*page(spool_directory, size=3, state="failed", start=9))["where"] == "No mail is like that."


def test_a_search_looks_into_so_many_mails_and_goes_on_from_there(spool_directory, small_pages, monkeypatch):
    monkeypatch.setattr(queueview, "MOST_READ", 4)
    for number in range(10):
        put(spool_directory, number, to="bob@example.org" if number in (0, 2, 6, 9) else "ann@example.org")
    found, start, times = [], 0, 0
    while start is not None:
        shown, query = page(spool_directory, size=3, recipient="bob", start=start)
        assert shown.looked_at <= 4
        found += numbers(shown)
        start, times = shown.end, times + 1
    assert (found, times) == ([0, 2, 6, 9], 3)
    shown, query = page(spool_directory, size=3, recipient="bob")
    assert queueview.pages(shown, query)["where"] == "2 found; mails 1 to 4 were looked into."


def test_a_search_stops_where_the_page_is_full(spool_directory, small_pages):
    for number in range(10):
        put(spool_directory, number)
    shown, query = page(spool_directory, size=3, subject="mail")
    assert (numbers(shown), shown.end) == ([0, 1, 2], 3)
    assert queueview.pages(shown, query)["next_says"] == "Search on"


# -- names --


def test_a_key_names_its_mail_whatever_its_name_and_in_whichever_spool(tmp_path):
    spools = (tmp_path / "one", tmp_path / "two")
    for directory in spools:
        spool.make_spool(directory, 0o700)
        for name in (b"caf\xe9", b'a"b', b"50%25", b"1", b"failed/x.1"):
            (directory / os.fsdecode(name)).write_bytes(b"##To:ann@example.org\n\nx")
    for some in (spools, spools[:1]):
        entries = queueview.survey(some, NOW).entries
        keys = {queueview.key_of(entry, some): entry.path for entry in entries}
        assert len(keys) == 5 * len(some) and all(key.isascii() for key in keys)
        assert {key: queueview.find(key, some, NOW).path for key in keys} == keys


@pytest.mark.parametrize(
    "key",
    ["", "..", "../x", "failed/../../x", "9/x", "0/../../x", "%2e%2e/x", "/etc/passwd", "%2Fetc%2Fpasswd",
     "0//etc/passwd", "writers/x", "x\0", "x%00", "\udcff", "0/", "failed/", "\u0660/x"],
)
def test_what_names_no_mail_of_the_spool_is_not_found(tmp_path, key):
    (tmp_path / "x").write_bytes(b"##To:ann@example.org\n\nsecret")
    directory = tmp_path / "spool"
    spool.make_spool(directory, 0o700)
    try:
        entry = queueview.find(key, (directory,), NOW)
    except (handling.NoSuchMail, OSError):
        return
    assert entry.path.parent in (directory, directory / "failed")
    assert queueview.one_mail(entry, Query(), (directory,), NOW, with_body=True)["body"] is None


# -- what is shown --


def test_one_mail_is_shown_within_limits(spool_directory):
    to = ", ".join(f"user{number}@example.org" for number in range(1500))
    fields = "".join(f"X-{number}: {'y' * 5000}\n" for number in range(100)) + "X: y\n" * 400
    path = put(spool_directory, 1, to=to, subject=f"{'s' * 5000}\n{fields}X-Last: 1")
    (entry,) = queueview.survey((spool_directory,), NOW).entries
    shown = queueview.one_mail(entry, Query(), (spool_directory,), NOW, with_body=True)
    assert (len(shown["all_recipients"]), shown["more_recipients"]) == (1000, 500)
    assert len(shown["header"]) == 300 and shown["more_fields"] == 202
    assert max(len(text) for _, text in shown["header"] + shown["envelope"]) < 2100
    assert shown["body"] == "body" and shown["path"] == str(path)
    row = queueview.cells(queueview.queue.read(entry, NOW), Query(), (spool_directory,), NOW)
    assert row["recipients"] == "user0@example.org and 1,499 more" and len(row["subject"]) < 160


def test_a_body_is_cut_and_comes_on_request_only(spool_directory):
    path = put(spool_directory, 1)
    path.write_bytes(path.read_bytes() + b"line\n" * 100_000)
    (entry,) = queueview.survey((spool_directory,), NOW).entries
    assert queueview.one_mail(entry, Query(), (spool_directory,), NOW, with_body=False)["body"] is None
    shown = queueview.one_mail(entry, Query(), (spool_directory,), NOW, with_body=True)
    assert shown["is_cut"] and 60_000 < len(shown["body"]) <= queueview.BODY_LIMIT


@pytest.mark.parametrize(
    ("state", "may"),
    [("due", "delete"), ("deferred", "retry delete"), ("failed", "retry delete"), ("locked", ""),
     ("a stranger's lock", "release delete"), ("no mail", "")],
)
def test_what_may_be_done_is_offered(spool_directory, state, may):
    path = put(spool_directory, 1, due_in=100 if state == "deferred" else -10)
    if state == "failed":
        path.rename(spool_directory / "failed" / f"{path.name}.1-a")
    elif state == "a stranger's lock":
        spool.lock_path(path).touch()
    elif state == "locked":
        path.unlink()
        writer = queueview.queue.writers.join(spool_directory, 0o600, "token").name
        notes = {"Transaction": f"{writer} token"}
        spool.Draft(path, durable=False).write("zoe@example.org", "ann@example.org", b"\nx", notes)
    elif state == "no mail":
        path.write_bytes(b"x")
    (entry,) = queueview.survey((spool_directory,), NOW).entries
    shown = queueview.one_mail(entry, Query(), (spool_directory,), NOW, with_body=False)
    assert [what for what in ("retry", "release", "delete") if shown[f"may_{what}"]] == may.split()


def test_a_mail_that_has_gone_is_none(spool_directory):
    put(spool_directory, 1).unlink()
    put(spool_directory, 2)
    (entry,) = queueview.survey((spool_directory,), NOW).entries
    entry.path.unlink()
    assert queueview.one_mail(entry, Query(), (spool_directory,), NOW, with_body=True) is None


def test_each_state_has_a_meaning():
    assert set(queueview.MEANINGS) == set(State)


# -- two accounts --


@pytest.mark.skipif(os.getuid() != 0, reason="takes root, who may become another account")
def test_what_zopes_account_may_not_do_is_said_in_a_sentence():
    with open_directory() as shared:
        directory = shared / "spool"
        spool.make_spool(directory, 0o700)
        put(directory, 1)

        def look():
            os.setuid(41003)
            found = queueview.survey((directory,), NOW)
            assert found.entries == []
            assert "cannot be read: Permission denied. The account that Zope runs as may not do that." in found.problems[0]

        assert in_fork(look) == 0

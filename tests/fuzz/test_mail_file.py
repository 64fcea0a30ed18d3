"""Whatever stands in a mail file: it is sent as it is, or said to be no mail; what is recorded of it loses nothing."""

import math
import os
import re
import tempfile
import time
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

from hypothesis import strategies as st
from support.examples import (
    ENTRIES,
    PIECES_OF_A_LIST,
    PIECES_OF_CONTENT,
    address_lists,
    contents,
    mutated,
)
from support.fuzzing import fuzzed

from maildrop import scan, spool
from maildrop.bounce import message
from maildrop.envelope import Envelope, MalformedEnvelope, parse_sender
from maildrop.messageid import message_id
from maildrop.policy import Reply
from maildrop.wire import wire_format

SAMPLE = Path(__file__, "../../../SAMPLE_MAIL.txt").resolve().read_bytes()
NO_MAIL = (spool.SpoolBusy, spool.NotAMail)
MALFORMED = (spool.MalformedMail, MalformedEnvelope)
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029]")
NOTES = (b"##Queued:", b"##Attempts:", b"##Last-Reply:", b"##Failed:", b"##Lost-Sessions:")
TIMES = ("2026-11-23T06:00:00.000000+00:00", "0001-01-01", "9999-12-31T23:59:59-23:59", "2026-11-23", "20261123T06Z", "1", "")
PIECES = (
    *PIECES_OF_CONTENT, *NOTES, b"##From:", b"##", b":", *(text.encode() for text in (*PIECES_OF_A_LIST, *TIMES)),
    b"##From:<>\n", b"##Attempts:999999\n", b"\xe4", b"##X\n", b"##:\n",
)


@st.composite
def mail_files(draw):
    """Files with the parts of a mail in their order, and each part as it may be."""
    def line(key, values):
        return f"##{key}:{draw(values)}".encode("utf-8", "surrogatepass") + draw(st.sampled_from((b"\n", b"\r\n", b"\n\n", b"")))

    parts = [line("To", address_lists), line("From", st.one_of(st.sampled_from(ENTRIES[:8]), address_lists))]
    for key in draw(st.lists(st.sampled_from(("To", "From", "Queued", "Attempts", "Failed", "Content", "X", "")), max_size=4)):
        parts.append(line(key, st.one_of(st.sampled_from(TIMES), address_lists)))
    return b"".join([*parts, draw(contents)])


files = st.one_of(
    mail_files(),
    mutated(st.just(SAMPLE), PIECES),
    mutated(mail_files(), PIECES),
    st.binary(max_size=200).map(lambda tail: b"##To:" + tail),
    st.binary(max_size=50),
)


@contextmanager
def spool_with(file):
    """A spool, and the path of a mail of ours in it with these bytes."""
    with tempfile.TemporaryDirectory() as home:
        directory = Path(home, "spool")
        spool.make_spool(directory, 0o700)
        path = directory / spool.new_name()
        path.write_bytes(file)
        yield path


def whole(mail):
    return b"".join(mail.content())


def is_safe(address):
    """Whether it cannot end the command it stands in: blanks and angles are in quotes (RFC 5321 4.1.2), the rest nowhere."""
    unquoted = re.sub(r'^"(?:[^"\\]|\\.)*"', "quoted", address)
    return not CONTROL.search(address) and not re.search(r"[\s<>]", unquoted)


@fuzzed("mail files", 500, file=files)
def test_a_file_is_a_mail_that_can_be_sent_or_an_error_says_why_it_is_none(file):
    with spool_with(file) as path:
        found = scan.scan(path.parent, time.time() + 1)
        assert found.names + found.retries == [path.name]
        try:
            mail = spool.claim(path, math.inf, durable=False)
        except NO_MAIL:
            assert path.read_bytes() == file
            return
        with mail:
            assert file.endswith(whole(mail)) and len(whole(mail)) == max(mail.content_size, 0)
            assert whole(mail).startswith(mail.header()[:1]) or b"\r" in file
            message_id(mail)
            assert is_safe(mail.read_sender())
            try:
                envelope = mail.read_envelope()
            except MALFORMED:
                return
            assert envelope.recipients and all(envelope.recipients)
            assert all(map(is_safe, envelope.recipients))
            notice = message(mail, "zoe@example.org", {envelope.recipients[0]: Reply("RCPT", 550, "no")}, "kept", "host")
            assert max(map(len, notice.splitlines())) < 998


@fuzzed("mail files", 400, file=files, chosen=st.randoms(use_true_random=False), attempts=st.integers(1, 99))
def test_what_is_recorded_of_a_mail_keeps_its_content_its_sender_and_who_is_owed_it(file, chosen, attempts):
    with spool_with(file) as path:
        try:
            mail = spool.claim(path, math.inf, durable=False)
            envelope = mail.read_envelope()
        except (*NO_MAIL, *MALFORMED):
            return
        with mail:
            content, queued_at = whole(mail), mail.queued_at
            owed = chosen.sample(envelope.recipients, chosen.randint(1, len(envelope.recipients)))
            failed = [*envelope.recipients, *envelope.unusable]
            kept = spool.set_aside(mail, failed, "550 no\r\nway", f"{attempts}-label")
            due_at = time.time() + 1000
            with spool.postpone(mail, spool.draft_remainder(mail, owed, due_at, attempts, "451 later")) as renewed:
                assert list(renewed.read_envelope().recipients) == owed
        with spool.claim(path, math.inf, durable=False) as again:
            assert list(again.read_envelope().recipients) == owed
            assert (again.read_envelope().sender, whole(again), again.attempts) == (envelope.sender, content, attempts)
            assert abs(again.queued_at - queued_at) < 0.001
            assert not scan.scan(path.parent, time.time()).names
            assert spool.renew(again) == path
        with spool.claim(path, time.time() + 1, durable=False) as due:
            assert list(due.read_envelope().recipients) == owed
            assert (whole(due), due.attempts) == (content, 0)
        with spool.claim(kept, math.inf, durable=False) as copy:
            assert copy.read_envelope().recipients == envelope.recipients
            assert whole(copy) == content
            path = spool.renew(copy)
        with spool.claim(path, time.time() + 1, durable=False) as retried:
            assert retried.read_envelope().recipients == envelope.recipients
            assert (retried.read_envelope().sender, whole(retried)) == (envelope.sender, content)


encodable = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)


@fuzzed("mail files", 200, sender=address_lists, recipients=address_lists, content=contents, note=encodable)
def test_what_is_written_reads_back_the_same(sender, recipients, content, note):
    with tempfile.TemporaryDirectory() as home:
        draft = spool.Draft(Path(home, spool.new_name()), durable=False)
        try:
            draft.write(sender, recipients, content, {"X-Note": note})
        except UnicodeEncodeError:    # half a character
            assert not os.listdir(home)
            return
        draft.release()
        with spool.claim(draft.path, time.time() + 1, durable=False) as mail:
            assert whole(mail) == content
            try:
                wanted = Envelope.parse(spool.one_line(sender), spool.one_line(recipients))
                assert mail.read_envelope() == wanted
            except MalformedEnvelope:
                pass
            except spool.MalformedMail:
                assert not content
            assert dict(mail.lines_with({}))["X-Note"] == spool.one_line(note)


@fuzzed("address lists", 1000, text=address_lists)
def test_a_recipient_is_safe_in_a_command_and_what_is_written_of_several_is_read_as_the_same(text):
    try:
        parse_sender(text)
    except MalformedEnvelope:
        pass
    try:
        envelope = Envelope.parse("", text)
    except MalformedEnvelope:
        return
    assert all(map(is_safe, envelope.recipients))
    assert not set(envelope.recipients) & set(envelope.unusable)
    assert Envelope.parse("", ", ".join(envelope.recipients)).recipients == envelope.recipients
    for recipient in envelope.recipients:
        assert parse_sender(recipient) == recipient


@fuzzed("address lists", 30, pieces=st.lists(st.sampled_from(PIECES_OF_A_LIST), min_size=1, max_size=5))
def test_a_long_list_takes_no_longer_than_its_length_calls_for(pieces):
    text = "".join(pieces)
    try:
        Envelope.parse("", text * (100_000 // len(text)))
    except MalformedEnvelope:
        pass


@fuzzed("contents on the wire", 500, content=contents, cuts=st.lists(st.integers(0, 100), max_size=8))
def test_what_goes_over_the_wire_is_the_content_with_its_line_ends_made_right_however_it_is_cut(content, cuts):
    borders = sorted({0, len(content), *(cut for cut in cuts if cut < len(content))})
    chunks = [content[begin:end] for begin, end in pairwise(borders)]
    wire = b"".join(wire_format(iter(chunks)))
    lines = wire.split(b"\r\n")
    assert lines[-2:] == [b".", b""]
    assert b"." not in lines[:-2]
    text = b"\r\n".join(line.removeprefix(b".") for line in lines[:-2])
    assert not re.search(rb"\r|\n", text.replace(b"\r\n", b""))
    sent = re.sub(rb"\r\n?|\n", b"\n", content).removesuffix(b"\n")
    assert text.replace(b"\r\n", b"\n") == sent


names = st.binary(min_size=1, max_size=255).filter(lambda name: not re.search(rb"[/\0]", name) and name not in (b".", b".."))


like_ours = st.from_regex(r"\d{8}T\d{6}\.\d{6}-[0-9a-f]{8}", fullmatch=True).map(str.encode)    # with digits of any script


@fuzzed("names of files", 150, name=st.one_of(names, like_ours))
def test_a_file_of_any_name_is_listed_or_passed_over_and_what_is_recorded_of_it_stays_in_the_spool(name):
    with tempfile.TemporaryDirectory() as home:
        directory = Path(home, "spool")
        spool.make_spool(directory, 0o700)
        path = directory / os.fsdecode(name)
        path.write_bytes(SAMPLE)
        later = time.time() + spool.SETTLED_S + 1
        found = scan.scan(directory, later)
        is_mail = not (name.startswith(b".") or name.endswith(b".lck"))
        assert found.names + found.retries == [path.name] * is_mail
        if not is_mail:
            return
        stream, _ = spool._open_regular(path)    # a claim would have to wait until the file is settled
        mail = spool.SpooledMail(path, stream, spool._read_envelope_lines(stream), durable=False)
        with mail:
            kept = spool.set_aside(mail, ["ann@example.org"], "550 no", "1-label")
            assert kept.parent == directory / spool.FAILED and mail.identity.isascii()
            with spool.postpone(mail, spool.draft_remainder(mail, ["bob@example.org"], later, 1, "451 later")) as renewed:
                assert renewed.identity == mail.identity
        assert set(os.listdir(home)) == {"spool"}
        assert set(os.listdir(directory)) == {path.name, spool.FAILED, spool.TMP}

"""What came with a request, in the text of a mail."""

import json
from email.message import Message
from email.mime.message import MIMEMessage
from email.mime.multipart import MIMEMultipart
from smtplib import SMTPException

import pytest
from OFS.SimpleItem import SimpleItem
from Products.MailHost.MailHost import MailHostError
from Products.MaildropHost.typed import MaildropHostError, one_line_each, parse
from Testing.makerequest import makerequest
from zope.globalrequest import clearRequest, setRequest
from ZPublisher.HTTPRequest import record

TYPED = "ann@example.org\r\nBcc: eve@evil.example"
PAGE = "To: {}\nFrom: zoe@example.org\nSubject: Hi\n\n{}\n"


@pytest.fixture
def request_():
    request = makerequest(SimpleItem()).REQUEST
    setRequest(request)
    yield request
    clearRequest()


def bring_json(request, value):
    request.environ["CONTENT_TYPE"] = "application/json"
    request.other["BODY"] = json.dumps(value)


def as_record(value):
    made = record()
    made.name = value
    return made


@pytest.mark.parametrize(
    "bring",
    [
        lambda request: request.form.update(to=TYPED),
        lambda request: request.form.update(to=f"  {TYPED}\r\n"),
        lambda request: request.form.update(to=["x", TYPED]),
        lambda request: request.form.update(to=as_record(TYPED)),
        lambda request: request.form.update(to=[as_record([TYPED])]),
        lambda request: request.cookies.update(to=TYPED),
        lambda request: setattr(request, "args", ("x", TYPED)),
        lambda request: request.other.update(traverse_subpath=["x", TYPED]),
        lambda request: request.form.update({TYPED: "x"}),
        lambda request: bring_json(request, {"to": [TYPED]}),
    ],
    ids=[
        "a field",
        "a field with blanks around",
        "a list",
        "a record",
        "a list of records",
        "a cookie",
        "an argument",
        "the path",
        "the name of a field",
        "JSON",
    ],
)
def test_a_line_break_that_came_with_the_request_is_refused_in_the_header(request_, bring):
    parse(PAGE.format(TYPED, ""), None, is_body=False)  # the page's own
    bring(request_)
    with pytest.raises(MaildropHostError, match="line break in what was typed"):
        parse(PAGE.format(TYPED, ""), None, is_body=False)
    with pytest.raises(MaildropHostError, match="line break in what was typed"):
        parse(PAGE.format(TYPED, "").encode(), "utf-8", is_body=True)


@pytest.mark.parametrize("typed", ["\nBcc: v@x", "\r\nBcc: v@x\r\n", " \t\n \nBcc: v@x", "\rBcc: v@x"])
def test_a_line_break_before_what_was_typed_is_refused_in_the_header(request_, typed):
    request_.form.update(subject=typed)
    with pytest.raises(MaildropHostError, match="line break in what was typed"):
        parse(f"To: ann@example.org\nSubject: {typed}\n\nHi", None, is_body=False)


def test_blank_lines_before_what_was_typed_stay_in_the_body(request_):
    request_.form.update(text="\n\nHello")
    message = parse(PAGE.format("ann@example.org", "\n\nHello"), None, is_body=False)
    assert message.get_payload() == "\n\nHello\n"


def test_what_is_no_json_though_it_says_so_is_passed_over(request_):
    bring_json(request_, None)
    request_.other["BODY"] = "{"
    assert parse(PAGE.format("ann@example.org", ""), None, is_body=False)["To"] == "ann@example.org"


def test_the_fields_of_a_forwarded_mail_are_its_own_matter():
    inner = Message()
    inner["Subject"] = "a form feed: \x0c"
    outer = MIMEMultipart(_subparts=[MIMEMessage(inner)])
    assert parse(outer, None, is_body=False) is outer
    outer.attach(inner)
    with pytest.raises(MaildropHostError, match="Subject"):
        parse(outer, None, is_body=False)


def test_lines_that_were_typed_for_the_body_stay_as_they_are(request_):
    typed = "Subject: Hi\r\n\r\nHi"
    request_.form.update(text=typed, empty="\r\n", one="T", to="To: ann@example.org")
    message = parse(PAGE.format("ann@example.org", typed), None, is_body=False)
    assert message.keys() == ["To", "From", "Subject"]
    assert message.get_payload() == f"{typed}\n"
    message = parse(typed, None, is_body=True)
    assert (message.keys(), message.get_payload()) == ([], typed)


def test_a_page_for_whole_mails_gets_the_mail_that_was_typed(request_):
    typed = PAGE.format("ann@example.org", "Hello")
    request_.form.update(mail=typed)
    assert parse(typed, None, is_body=False)["To"] == "ann@example.org"


def test_without_a_request_a_text_is_what_it_says():
    assert parse(PAGE.format(TYPED, ""), None, is_body=True)["Bcc"] == "eve@evil.example"


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("Hi", "Hi"),
        ("Hi\r\n", "Hi"),
        ("a@x,\r\n b@x", "a@x,\r\n b@x"),
        (["a@x\n", "b@x"], ["a@x", "b@x"]),
        (b"Hi\n", "Hi"),
    ],
)
def test_an_honest_argument_is_passed_on(value, expected):
    assert one_line_each("mto", value, "utf-8") == expected


def test_windows_ellipsis_in_a_subject_becomes_a_blank():
    assert one_line_each("subject", "Well\x85 yes") == "Well  yes"


@pytest.mark.parametrize("caught", [MailHostError, RuntimeError, OSError, SMTPException])
def test_whatever_a_caller_of_a_mail_host_catches_is_our_error(caught):
    error = MaildropHostError("why")
    assert isinstance(error, caught) and str(error) == "why"

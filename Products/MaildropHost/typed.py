"""What a visitor types must not become header fields or recipients.

MailHost takes a mail's header fields from the text that a page made up, and what it is given besides as it comes. So a line
break in a form field can add header fields and recipients. Here such texts are refused, or kept to the body.
"""

import json
import re
from contextlib import suppress
from email.message import Message
from smtplib import SMTPException

from Products.MailHost.MailHost import MailHostError, message_from_string
from zope.globalrequest import getRequest


class MaildropHostError(MailHostError, RuntimeError, SMTPException):
    """A mail that cannot be put into the spool; says why. Whatever a caller of a mail host catches, this is one."""


# Python's ``email`` begins a new line of a header field wherever ``str.splitlines`` does
_BREAKS_FIELD = re.compile(r"[\x00\x0b\x0c\x1c-\x1e\x85\u2028\u2029]|\r(?!\n)|\n(?![ \t])")
_BREAKS_ARGUMENT = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x85\u2028\u2029]|\r(?!\n)|\n(?![ \t]+\S)")
_WIDE_BREAKS = re.compile(r"[\x85\u2028\u2029]")    # in a subject they are no attack: the first is Windows' ellipsis
_LAST_LINE_ENDS = re.compile(r"(?:\r?\n)+\Z")


def one_line_each(name, value, charset=None):
    """An argument of ``send``, each str in it on one line, and bytes as MailHost reads them.

    Line ends behind it go, and it may be folded like a header field. Raises MaildropHostError for any other line break or
    control character.
    """
    if isinstance(value, (list, tuple)):
        return [one_line_each(name, part) if isinstance(part, str) else part for part in value]
    text = value.decode(charset) if isinstance(value, bytes) else value
    if not isinstance(text, str):
        return text
    text = _LAST_LINE_ENDS.sub("", text)
    if name == "subject":
        text = _WIDE_BREAKS.sub(" ", text)
    if _BREAKS_ARGUMENT.search(text):
        raise MaildropHostError(f"A line break or control character in {name}: {text[:500]!r}")
    return text


def parse(message_text, charset, is_body):
    """The ``Message`` that MailHost makes of this text, bytes or ``Message``.

    ``is_body``: recipients and sender were given besides. Then text that begins with what the visitor typed has no header
    fields, whatever it looks like. Raises MaildropHostError if what he typed goes from one header field on to the next.
    """
    message = message_text
    if not isinstance(message, Message):
        text = message.decode(charset) if isinstance(message, bytes) else message
        message = message_from_string(_without_typed_fields(text, is_body) if isinstance(text, str) else text)
    for part in _own_parts(message):
        for name, value in part.raw_items():
            field = f"{name}: {value}"
            if _BREAKS_FIELD.search(_WIDE_BREAKS.sub(" ", field) if name.lower() == "subject" else field):
                raise MaildropHostError(f"A line break or control character in the header field {name[:500]!r}")
    return message


def _own_parts(message):
    """The message and its parts, but for those of a message that it forwards: nothing is read from their fields."""
    yield message
    if message.is_multipart() and message.get_content_maintype() != "message":
        for part in message.get_payload():
            yield from _own_parts(part)


_FIELDS = re.compile(r"(?:(?:From |[!-9;-~]*:|[ \t])[^\n]*(?:\n|\Z))*")    # as ``email`` knows them


def _without_typed_fields(text, is_body):
    """``text`` with a blank line before it if the visitor has typed the name of its first header field.

    Raises MaildropHostError if he has typed a line break in its header fields.
    """
    lines = _with_lf(text)
    header = _FIELDS.match(lines)[0]
    if not header:
        return text
    for typed in _typed():
        if (begin := lines.find(typed, 0, len(header) + len(typed))) < 0:
            continue
        if not lines[:begin].strip():    # a page for whole mails, or one whose text is all the visitor's
            if is_body and ":" in lines[: begin + len(typed)]:
                return "\n" + text
        elif "\n" in typed and begin + typed.index("\n") < len(header):
            raise MaildropHostError(f"A line break in what was typed for a header field: {typed[:500]!r}")
    return text


def _typed():
    """All that came with the request as text, blanks at its ends taken off; once more with a line break before it."""
    request = getRequest()
    if request is None:
        return
    waiting = [getattr(request, name, None) for name in ("form", "cookies", "args")] + [request.get("traverse_subpath")]
    if "json" in request.get("CONTENT_TYPE", "").lower():
        with suppress(ValueError, TypeError, RecursionError):    # it is none
            waiting.append(json.loads(request.get("BODY")))
    while waiting:
        value = waiting.pop()
        if isinstance(value, str):
            lines = _with_lf(value).rstrip()
            if value := lines.strip():
                yield value
                if "\n" in lines[: -len(value)]:
                    yield f"\n{value}"
        elif isinstance(value, (list, tuple)):
            waiting.extend(value)
        elif hasattr(value, "values"):    # a form, or a record in one: also its names are typed by whoever wants to
            waiting.extend(value.keys())
            waiting.extend(value.values())


def _with_lf(text):
    return text.replace("\r\n", "\n").replace("\r", "\n")

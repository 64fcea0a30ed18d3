"""The Maildrop Log tab: the daemon's log, newest or oldest first, what is about a mail, and all of it as a file."""

import os
from urllib.parse import urlencode

from AccessControl.class_init import InitializeClass
from AccessControl.Permissions import change_configuration
from AccessControl.SecurityInfo import ClassSecurityInfo
from Products.PageTemplates.PageTemplateFile import PageTemplateFile
from zope.interface import implementer
from ZPublisher.Iterators import IUnboundStreamIterator

from maildrop.durations import tell_size
from maildrop.logview import newest_lines, open_log

LINES = (50, 200, 1000, 5000)    # to choose from
_LINES = 200    # where nothing was chosen
_LONGEST_LINE = 4000    # characters; what is longer is cut
_MOST_CHARACTERS = 1_000_000    # on a page
_WITHIN = 64 * 1024 * 1024    # bytes of the log that are looked through, the newest ones
_LONGEST_TEXT = 1000    # characters to look for
RELOAD_S = 10
_CHUNK = 64 * 1024
_BAD = ("failed", "trouble")


class LogTab:
    """The pages about the daemon's log."""

    security = ClassSecurityInfo()

    security.declareProtected(change_configuration, "manage_log")
    manage_log = PageTemplateFile("www/log", globals(), __name__="manage_log")

    @security.protected(change_configuration)
    def getLogView(self, form):
        # What the page shows, a dict. ``form``: what was chosen, from whom it may be, ``about``, ``lines``, ``order`` and
        # ``follow``; what makes no sense is as good as not chosen. (No docstring: not to be called by URL.)
        about = _text(form.get("about"))[:_LONGEST_TEXT]
        most = _number(form.get("lines"))
        oldest_first = form.get("order") == "oldest"
        view = {
            "about": about,
            "lines": most,
            "choices": LINES,
            "order": "oldest" if oldest_first else "newest",
            "follow": bool(form.get("follow")),
            "reload_s": RELOAD_S,
            "size": "",
            "problem": "",
            "note": "",
            "entries": [],
        }
        chosen = {"about": about, "lines": most, "order": view["order"]}
        view["query"], view["follow_query"] = urlencode(chosen), urlencode({**chosen, "follow": 1})
        try:
            with open_log(self._settings().log_file) as stream:
                _fill(view, stream)
        except FileNotFoundError:
            view["problem"] = "There is no log yet: the daemon begins one when it has something to say."
        except OSError as error:
            view["problem"] = f"The log cannot be read: {error.strerror}."
        if oldest_first:
            view["entries"].reverse()
        return view

    @security.protected(change_configuration)
    def manage_downloadLog(self, REQUEST):
        """The whole log as a file, byte for byte; the page, which says why, where it cannot be read."""
        try:
            stream = open_log(self._settings().log_file)
        except OSError:
            REQUEST.RESPONSE.setStatus(404)
            return self.manage_log()
        REQUEST.RESPONSE.setHeader("Content-Type", "text/plain; charset=utf-8")
        REQUEST.RESPONSE.setHeader("Content-Disposition", 'attachment; filename="maildrop.log"')
        REQUEST.RESPONSE.setHeader("X-Content-Type-Options", "nosniff")
        REQUEST.RESPONSE.setHeader("Cache-Control", "no-store")
        return _Download(stream)


InitializeClass(LogTab)


def _text(typed):
    """What was typed into a field, "" where it was something else."""
    return typed.encode("utf-8", "replace").decode().strip() if isinstance(typed, str) else ""


def _number(typed):
    return int(typed) if typed in map(str, LINES) else _LINES


def _fill(view, stream):
    size = os.fstat(stream.fileno()).st_size
    view["size"] = tell_size(size)
    characters = 0
    for line in newest_lines(stream, view["about"], _WITHIN):
        if len(view["entries"]) == view["lines"]:
            return
        text = line.text if len(line.text) <= _LONGEST_LINE else f"{line.text[:_LONGEST_LINE]} [...]"
        characters += len(text)
        if characters > _MOST_CHARACTERS:
            view["note"] = "These are too long to show more of them here."
            return
        view["entries"].append({"text": text, "bad": line.outcome in _BAD})
    if size > _WITHIN:
        view["note"] = f"Only the newest {tell_size(_WITHIN)} were looked through; maildropctl log looks through all."


@implementer(IUnboundStreamIterator)
class _Download:
    """The bytes that a file has now, read as they are sent, however many there are."""

    def __init__(self, stream):
        self._stream = stream
        self._left = os.fstat(stream.fileno()).st_size

    def __iter__(self):
        return self

    def __next__(self):
        data = self._stream.read(min(_CHUNK, self._left)) if self._left else b""
        if not data:
            self.close()
            raise StopIteration
        self._left -= len(data)
        return data

    def close(self):
        self._stream.close()
        self._left = 0

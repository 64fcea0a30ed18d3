"""The Queue tab: the mails in the spools, and what a person does to them.

A GET only reads. What a form names is looked for by the library, in the spools of the config file and nowhere else, and
each mail is claimed before anything is done to it.
"""

import time
from collections import Counter

from AccessControl.class_init import InitializeClass
from AccessControl.Permissions import change_configuration
from AccessControl.requestmethod import postonly
from AccessControl.SecurityInfo import ClassSecurityInfo
from Products.PageTemplates.PageTemplateFile import PageTemplateFile

from maildrop import handling, queue
from maildrop.logfile import printable
from maildrop.pidfile import running_pid
from Products.MaildropHost import queueview
from Products.MaildropHost.queueview import Query
from Products.MaildropHost.recovery import recover

_TOLD = 5    # problems, one by one


class QueueTab:
    """What a MaildropHost has for its Queue tab."""

    security = ClassSecurityInfo()

    _queue_page = PageTemplateFile("www/queue", globals(), __name__="manage_queue")
    _mail_page = PageTemplateFile("www/mail", globals(), __name__="manage_mail")
    _delete_page = PageTemplateFile("www/delete", globals(), __name__="manage_confirmDelete")

    # -- looking --

    @security.protected(change_configuration)
    def manage_queue(self, REQUEST):
        """The Queue tab: counts, pictures, and one page of the mails that the form asks for."""
        now = time.time()
        query = Query.parse(REQUEST.form)
        settings, problem = self._find_settings()
        view = {"query": query.fields(ticked=False), "problems": [f"The configuration file: {problem}"] if problem else []}
        if settings is not None:
            spools = settings.spools
            found = queueview.survey(spools, now)
            view["problems"] += found.problems
            try:
                wanted = query.filter()
            except ValueError as error:
                view["problems"].append(f"The filter cannot be used: {printable(str(error))}")
                shown = queueview.Listing([], 0, 0, 0, None)
            else:
                shown = queueview.listing(found.entries, wanted, query, now)
            view.update(queueview.top(found, query, spools, now))
            view.update(queueview.form(query))
            view.update(queueview.pages(shown, query))
            view["rows"] = [queueview.cells(row, query, spools, now) for row in shown.rows]
            view["has_unsettled"] = any(row.is_unsettled for row in shown.rows)
            view["history"] = queueview.history(settings, now)
            view["daemon"] = _daemon(settings)
        return self._show(self._queue_page, REQUEST, view)

    @security.protected(change_configuration)
    def manage_mail(self, REQUEST):
        """One mail: envelope and header fields; its body on request."""
        now = time.time()
        query = Query.parse(REQUEST.form)
        spools = self._settings().spools
        entries, problems = self._named(REQUEST, spools, now)
        mail = None
        if entries:
            mail = queueview.one_mail(entries[0], query, spools, now, with_body=REQUEST.form.get("body") == "1")
            if mail is None:
                problems = [f"{printable(entries[0].name)} is not there any more."]
        if mail is None:
            return self._tell(REQUEST, " ".join(problems) or "No mail was named.", "danger")
        view = {"mail": mail, "query": query.fields(ticked=False), "back": query.link(ticked=False)}
        return self._show(self._mail_page, REQUEST, view)

    @security.protected(change_configuration)
    def manage_confirmDelete(self, REQUEST):
        """The question whether the named mails are to be deleted."""
        now = time.time()
        query = Query.parse(REQUEST.form)
        spools = self._settings().spools
        entries, problems = self._named(REQUEST, spools, now)
        read = (queue.read(entry, now) for entry in entries)
        rows = [queueview.cells(row, query, spools, now) for row in read if row is not None]
        if not rows:
            return self._tell(REQUEST, _sentences("Nothing was deleted.", problems), "warning")
        view = {
            "rows": rows,
            "problems": problems,
            "query": query.fields(ticked=False),
            "back": query.link(ticked=False),
        }
        return self._show(self._delete_page, REQUEST, view)

    # -- acting --

    security.declareProtected(change_configuration, "manage_retryMails")

    @postonly
    def manage_retryMails(self, REQUEST):
        """Make the named mails due now, as if they had never been tried; show the Queue tab.

        Those whose transaction is not known to have committed only if the box is ticked.
        """
        settings = self._settings()
        sure = _is_sure(REQUEST)
        return self._act(REQUEST, lambda paths: handling.retry(paths, settings, also_unsettled=sure), "made due")

    security.declareProtected(change_configuration, "manage_deleteMails")

    @postonly
    def manage_deleteMails(self, REQUEST):
        """Remove the named mails for good; show the Queue tab."""
        settings = self._settings()
        return self._act(REQUEST, lambda paths: handling.delete(paths, settings), "deleted")

    security.declareProtected(change_configuration, "manage_releaseMails")

    @postonly
    def manage_releaseMails(self, REQUEST):
        """Take the locks of the named mails away, if the box is ticked and their writers have died or are unknown."""
        if not _is_sure(REQUEST):
            return self._tell(REQUEST, "Nothing was released: tick the box to send the mail all the same.", "warning")
        return self._act(REQUEST, handling.release, "released")

    security.declareProtected(change_configuration, "manage_settleOrphans")

    @postonly
    def manage_settleOrphans(self, REQUEST=None):
        """Settle the mails that dead processes left locked in the spools; with REQUEST, show the Queue tab.

        Returns what became of them otherwise, {sentence: how many}. Raises OSError where the spool cannot be read.
        """
        settings = self._settings()
        databases = list(self._p_jar.db().databases.values())
        try:
            done = sum((recover(each, databases, settings.fsync) for each in settings.spools if each.is_dir()), Counter())
        except OSError as error:
            if REQUEST is None:
                raise
            return self._tell(REQUEST, f"Nothing was settled. {queueview.why(error.strerror or str(error))}", "danger")
        done = {outcome.value: number for outcome, number in done.items()}
        if REQUEST is None:
            return done
        message = "; ".join(f"{number} mails: {sentence}" for sentence, number in done.items())
        return self._tell(REQUEST, message or "No dead process has left a mail locked.", "success")

    # -- how --

    @security.private
    def _named(self, REQUEST, spools, now):
        # The entries of all mails that the form names, and a sentence for each that is not there.
        entries, problems = {}, []
        for key in _keys(REQUEST):
            try:
                entry = queueview.find(key, spools, now)
                entries[entry.path] = entry
            except handling.NoSuchMail as error:
                problems.append(f"{printable(str(error))}.")
            except OSError as error:
                problems.append(f"{printable(key)}: {queueview.why(error.strerror or str(error))}.")
        return list(entries.values()), problems

    @security.private
    def _act(self, REQUEST, handle, done):
        # Do that to all mails that the form names, and show the tab with what came of it.
        entries, problems = self._named(REQUEST, self._settings().spools, time.time())
        number = 0
        for handled in handle([entry.path for entry in entries]):
            if handled.problem:
                problems.append(f"{printable(handled.path.name)}: {queueview.why(handled.problem)}.")
            else:
                number += 1
        if not number and not problems:
            return self._tell(REQUEST, "No mail was chosen.", "warning")
        told = f"{number:,} {'mail was' if number == 1 else 'mails were'} {done}." if number else f"Nothing was {done}."
        return self._tell(REQUEST, _sentences(told, problems), "warning" if problems else "success")

    @security.private
    def _tell(self, REQUEST, message, kind):
        REQUEST.set("manage_tabs_message", message)
        REQUEST.set("manage_tabs_type", kind)
        return self.manage_queue(REQUEST)

    @security.private
    def _show(self, page, REQUEST, view):
        REQUEST.set("management_view", "Queue")    # which tab is the active one, whatever the method is called
        return page(view=view)


InitializeClass(QueueTab)


def _keys(REQUEST):
    typed = REQUEST.form.get("mail")
    return [key for key in (typed if isinstance(typed, list) else [typed]) if isinstance(key, str)]


def _is_sure(REQUEST):
    return REQUEST.form.get("sure") == "1"


def _sentences(told, problems):
    more = [f"And {len(problems) - _TOLD:,} more problems."] if len(problems) > _TOLD else []
    return "\n".join([told, *problems[:_TOLD], *more])


def _daemon(settings):
    """Whether the daemon runs, as a sentence if not; "" if it does."""
    try:
        return "" if running_pid(settings.pid_file) is not None else "The daemon is not running: nothing is sent."
    except OSError as error:
        return f"Whether the daemon is running cannot be told: {queueview.why(error.strerror or str(error))}"

"""Whether mail goes the whole way: the setup in words, and a test mail."""

import errno
import os
import socket
import time
from email.message import Message
from email.utils import formatdate, make_msgid
from typing import NamedTuple

from AccessControl.class_init import InitializeClass
from AccessControl.Permissions import change_configuration
from AccessControl.requestmethod import postonly
from AccessControl.SecurityInfo import ClassSecurityInfo
from Acquisition import aq_base
from Products.MailHost.interfaces import IMailHost
from zExceptions import NotFound
from zope.component import queryUtility
from zope.component.hooks import getSite

from maildrop import figures, paths, status
from maildrop.durations import tell_duration
from maildrop.envelope import is_address
from maildrop.logfile import printable, stamp
from maildrop.writers import WRITERS
from Products.MaildropHost.sites import TOOL_ID
from Products.MaildropHost.typed import MaildropHostError

try:
    from plone.registry.interfaces import IRegistry
except ImportError:    # a Zope without Plone
    IRegistry = None

OK, WARNING, ERROR = "ok", "warning", "error"
DAEMON, SPOOL, CONFIGURATION, LAST_LOOK, PLONE = "Daemon", "Spool", "Configuration", "Last look", "Plone"
_PATIENCE_S = 60    # so much later than expected may a look be
_BLOCK = bytes(4096)
_LONGEST_SHOWN = 100    # characters of what was typed


class Finding(NamedTuple):
    """One thing that was looked at."""

    level: str
    topic: str
    text: str    # sentences, printable

    def as_dict(self):
        """For a page template, which may not look into a class that it does not know."""
        return self._asdict()


def findings(config, settings, problem, now):
    """What there is to say of the setup, as this process sees it; never raises, changes nothing, connects to nobody.

    ``config``: path of the file in use; ``settings``: those that serve, None without any; ``problem``: with the file.
    """
    if settings is None:
        text = f"No configuration file can be used, so no mail can be sent: {problem}"
        return [Finding(ERROR, CONFIGURATION, printable(text))]
    found = []
    known = figures.read(settings)
    pid, finding = _of_daemon(config, settings)
    found.append(finding)
    for topic, look in (
        (SPOOL, lambda: _of_spool(settings.spools[0])),
        (CONFIGURATION, lambda: _of_config(config, settings, problem, pid, known)),
        (LAST_LOOK, lambda: _of_last_pass(settings, pid, known, now)),
    ):
        try:
            level, text = look()
        except (OSError, ValueError) as error:    # also for what no path can be, in a damaged file of figures
            level, text = WARNING, f"Cannot be told: {error}."
        found.append(Finding(level, topic, printable(text)))
    if pid is not None and known.outage:
        text = f"Out of reach since {stamp(known.outage.at)}, mails wait: {known.outage.text}"
        found.append(Finding(ERROR, "Relay", printable(text)))
    if settings.debug_receiver:
        text = f"All mail goes to {settings.debug_receiver} instead of its recipients: DEBUG_RECEIVER is set."
        found.append(Finding(WARNING, "Recipients", printable(text)))
    return found


def _of_daemon(config, settings):
    try:
        pid, since = status.running_daemon(settings)
    except OSError as error:
        text = f"Whether it is running cannot be told: Zope cannot read {settings.pid_file}: {error.strerror}."
        return None, Finding(WARNING, DAEMON, printable(text))
    if pid is None:
        text = f"Not running: no process holds {settings.pid_file}. Mails wait in the spool until it is started."
        return None, Finding(ERROR, DAEMON, printable(text))
    begun = f", since {stamp(since)}" if since is not None else ""
    return pid, Finding(OK, DAEMON, f"Running as process {pid}{begun}.")


# -- the spool --


def _of_spool(directory):
    above = directory
    try:
        above = paths.nearest(directory)
        _try_to_write(above)
        writers = directory / WRITERS
        if above == directory and os.path.lexists(writers):
            above = writers
            _try_to_write(writers)
    except OSError as error:
        reason = str(error) if isinstance(error, paths.UnsafePath) else f"{error.filename or above}: {error.strerror}"
        return ERROR, f"Zope cannot write to {directory}, so sending is an error. {reason}."
    if directory not in (above, above.parent):
        return OK, f"{directory} is not there yet; Zope can make it with the first mail."
    return OK, f"Zope can write to {directory}."


def _try_to_write(directory):
    """Write a block to a file without a name there: what permissions, disk and quota say. Raises OSError."""
    if hasattr(os, "O_TMPFILE"):
        try:
            descriptor = os.open(directory, os.O_WRONLY | os.O_TMPFILE | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if error.errno not in (errno.EOPNOTSUPP, errno.EISDIR):    # a file system or kernel without such files
                raise
        else:
            try:
                os.write(descriptor, _BLOCK)
            finally:
                os.close(descriptor)
            return
    if not os.access(directory, os.W_OK | os.X_OK):
        raise OSError(errno.EACCES, os.strerror(errno.EACCES), str(directory))


# -- whether Zope and the daemon mean the same --


def _of_config(config, settings, problem, pid, known):
    if problem:
        return ERROR, f"Zope cannot use its file now, and goes by what it knew before or by the default file: {problem}"
    if pid is None:
        return WARNING, f"Zope uses {config}. Without a daemon there is nothing to compare it with."
    serving = known.serving
    if serving is None or serving.pid != pid:
        where = figures.path_of(settings)
        return WARNING, f"Zope uses {config}. What the daemon uses cannot be told: Zope finds nothing of it in {where}."
    same_file = os.path.realpath(config) == os.path.realpath(serving.config)
    same_settings = settings.digest == serving.digest
    both = f"Zope uses {config}, the daemon {serving.config}"
    if str(settings.spools[0]) not in serving.spools:
        return ERROR, f"{both}, and that does not serve Zope's spool, {settings.spools[0]}. Its own: {', '.join(serving.spools)}."
    if same_settings:
        return OK, f"Zope and daemon both use {config}." if same_file else f"{both}: two files with the same settings."
    if same_file:
        advice = "send the daemon SIGHUP, or restart it; if that does not help, its log says why"
        return WARNING, f"Both use {config}, but it has changed since the daemon read it: {advice}."
    return WARNING, f"{both}, and the settings differ. Choose the daemon's file for this object, or restart it with Zope's."


# -- the daemon's last look at the spools --


def _of_last_pass(settings, pid, known, now):
    began, ended = known.pass_began, known.pass_ended
    if began is None:
        return WARNING, f"None is known: Zope finds nothing of it in {figures.path_of(settings)}."
    if pid is None:
        last = began if ended is None else ended
        return WARNING, f"{stamp(last)}, {tell_duration(now - last)} ago, by a daemon that does not run any more."
    every = f"It is to look every {tell_duration(settings.interval_s)}, or as soon as Zope wakes it."
    late_s = 2 * settings.interval_s + _PATIENCE_S
    if ended is None or ended < began:
        is_stuck = now - began > late_s and not any(known.last_hour(now))
        nothing = " In the last hour nothing has come of it: its log may say why." if is_stuck else ""
        return WARNING if is_stuck else OK, f"One goes on since {stamp(began)}.{nothing}"
    is_late = now - ended > late_s
    return WARNING if is_late else OK, f"{stamp(ended)}, {tell_duration(now - ended)} ago. {every}"


# -- the test mail --

_TEXT = """\
This is a test mail of the MaildropHost

    {url}

It was written into the spool at {time}. If you read this, mail goes the whole way: from Zope into the spool, from
there by the maildrop daemon to the relay, and on to you.
"""


def _one_address(typed):
    """The one address, and nothing besides, that was typed into a field. Raises MaildropHostError for anything else."""
    text = typed.strip() if isinstance(typed, str) else ""
    if not text:
        raise MaildropHostError("Enter an address.")
    if not is_address(text) or "@" not in text:
        raise MaildropHostError(f"Enter one address, such as ann@example.org, not {text[:_LONGEST_SHOWN]!r}.")
    if not (text.isascii() and text.isprintable()):    # MailHost has no other ones in a header field
        raise MaildropHostError(f"Enter an address in plain ASCII, its domain in the form xn--..., not {text!r}.")
    return text


# -- Plone --


def _of_plone(mail_host):
    """What Plone makes of its site's mail host: a list of findings, empty for any other one and without Plone."""
    registry = queryUtility(IRegistry) if IRegistry is not None else None
    if registry is None or aq_base(getattr(aq_base(getSite()), TOOL_ID, None)) is not aq_base(mail_host):
        return []
    found = []
    if not _is_utility(mail_host):
        text = "Some of Plone's mail goes another way: import the profile of the add-on MaildropHost again, in portal_setup."
        found.append(Finding(WARNING, PLONE, text))
    missing = [title for title, key in _NEEDED_BY_PLONE.items() if not registry.get(key)]
    if missing:
        text = (
            f"Plone says that the mail host is not configured, and sends only some of its mail: {' and '.join(missing)} in its"
            " Mail control panel must not be empty. Any server will do there: it is not used."
        )
        found.append(Finding(WARNING, PLONE, text))
    else:
        text = "Server, port, user and password of Plone's Mail control panel have no effect here; its From name and address have."
        found.append(Finding(OK, PLONE, text))
    return found


def _is_utility(mail_host):
    try:
        return aq_base(queryUtility(IMailHost)) is aq_base(mail_host)
    except (KeyError, AttributeError, NotFound):    # five.localsitemanager: registered by its path, and gone
        return False


_NEEDED_BY_PLONE = {"SMTP server": "plone.smtp_host", "Site 'From' address": "plone.email_from_address"}


class SetupCheck:
    """What the Edit tab says of the setup, and the test mail that is sent from there."""

    security = ClassSecurityInfo()

    @security.protected(change_configuration)
    def getSetupFindings(self):
        # A list of dicts, for each thing that was looked at: ``topic``, ``text``, and ``level``: ok, warning or error.
        # (No docstring: not to be called by URL.)
        return [finding.as_dict() for finding in self._findings() + _of_plone(self)]

    def _findings(self):
        settings, problem = self._find_settings()
        return findings(self.getConfigPath(), settings, problem, time.time())

    security.declareProtected(change_configuration, "manage_sendTestMail")

    @postonly
    def manage_sendTestMail(self, address="", sender="", REQUEST=None):
        """Send a mail to this one address; with REQUEST, show the Edit tab again, which tells where to watch it.

        ``sender``: its sender's address, "" for the same one. Returns the name of the mail's file otherwise. Raises
        MaildropHostError.
        """
        try:
            to = _one_address(address)
            message = self._make_test_mail()
            self.send(message, mto=[to], mfrom=_one_address(sender or address))
        except MaildropHostError as error:
            if REQUEST is None:
                raise
            problem = f"Nothing was sent. {error}"
            REQUEST.set("manage_tabs_message", problem)
            REQUEST.set("manage_tabs_type", "danger")
            return self.manage_main(problem=problem, typed={"address": _shown(address), "sender": _shown(sender)})
        name = self._v_last_name
        if REQUEST is None:
            return name
        found = [finding.as_dict() for finding in self._findings()]
        told = [each for each in found if each["level"] != OK or each["topic"] in (DAEMON, LAST_LOOK)]
        is_well = all(finding["level"] == OK for finding in told)
        more = "A daemon serves it: watch what becomes of it." if is_well else "But see below what may keep it from arriving."
        REQUEST.set("manage_tabs_message", f"The test mail is in the spool. {more}")
        REQUEST.set("manage_tabs_type", "success" if is_well else "warning")
        sent = {"name": name, "message_id": message["Message-Id"], "address": to, "is_well": is_well, "findings": told}
        return self.manage_main(sent=sent, typed={"address": to, "sender": _shown(sender)})

    def _make_test_mail(self):
        message = Message()
        message["Subject"] = f"Test mail of {'/'.join(self.getPhysicalPath())}"
        message["Date"] = formatdate(localtime=True)
        message["Message-Id"] = make_msgid(domain=self._settings().helo or socket.gethostname())
        message["Auto-Submitted"] = "auto-generated"    # RFC 3834: no vacation notices
        message["Content-Type"] = "text/plain; charset=utf-8"
        message.set_payload(_TEXT.format(url=self.absolute_url(), time=stamp(time.time())), "utf-8")
        return message


def _shown(typed):
    return printable(typed) if isinstance(typed, str) else ""


InitializeClass(SetupCheck)

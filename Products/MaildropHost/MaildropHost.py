"""The persistent class: settings, management pages, sending.

``Products.MaildropHost.MaildropHost.MaildropHost`` stands in every database that has such an object: module and class are
never moved or renamed.
"""

import html
import logging
import os
from pathlib import Path
from urllib.parse import quote

from AccessControl.class_init import InitializeClass
from AccessControl.Permissions import change_configuration, delete_objects, use_mailhost_services, view_management_screens
from AccessControl.requestmethod import postonly, requestmethod
from AccessControl.SecurityInfo import ClassSecurityInfo
from AccessControl.SecurityManagement import getSecurityManager
from AccessControl.ZopeGuards import guarded_getattr
from Acquisition import aq_base
from App.config import getConfiguration
from Products.MailHost.MailHost import MailHost
from Products.PageTemplates.PageTemplateFile import PageTemplateFile
from zope.interface import implementer

from maildrop import paths, spool
from maildrop import settings as maildrop_settings
from maildrop.envelope import Envelope, MalformedEnvelope, join_recipients
from maildrop.pidfile import running_pid
from maildrop.scan import count
from maildrop.settings import MissingSettings, SettingsError
from maildrop.wake import announce
from Products.MaildropHost.datamanager import current_manager
from Products.MaildropHost.interfaces import IMaildropHost
from Products.MaildropHost.logtab import LogTab
from Products.MaildropHost.queuetab import QueueTab
from Products.MaildropHost.setup_check import SetupCheck
from Products.MaildropHost.troubles import Troubles
from Products.MaildropHost.typed import MaildropHostError, one_line_each, parse

LOG = logging.getLogger("MaildropHost")

DEFAULT_CONFIG_PATH = str(maildrop_settings.shipped_config())
CONFIG_PATHS = {"DEFAULT": DEFAULT_CONFIG_PATH}


def read_product_config():
    """Add the choices of zope.conf: every key that begins with ``config-path`` in ``<product-config maildrophost>``."""
    product_config = getattr(getConfiguration(), "product_config", None) or {}
    for key, path in product_config.get("maildrophost", {}).items():
        if key.startswith("config-path"):
            CONFIG_PATHS[key] = path


addMaildropHostForm = PageTemplateFile("www/add", globals(), __name__="addMaildropHostForm")


@postonly
def manage_addMaildropHost(self, id, title="Maildrop Host", REQUEST=None):
    """Add a MaildropHost to the folder ``self``; with REQUEST, go on to its Edit tab."""
    self._setObject(id, MaildropHost(id, title))
    if REQUEST is not None:
        message = quote("Added MaildropHost.")
        REQUEST["RESPONSE"].redirect(f"{self.absolute_url()}/{quote(id)}/manage_main?manage_tabs_message={message}")


def _makeTempPath(spool_path):
    """A free path in the directory ``spool_path``, as a str."""
    return os.path.join(spool_path, spool.new_name())


# -- settings --

_cache = {}    # config path -> (what the file was when it was read, its last good settings or None, what is wrong with it)


def _read_config(path):
    """The settings of a config file, and what is wrong with it ("": nothing). It is read again only if it has changed.

    A file that has become wrong or is gone leaves the settings it had before; None if there are none.
    """
    try:
        status = os.stat(path)
        state = (status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)
    except OSError as error:
        state = error.errno
    known, settings, problem = _cache.get(path, ("never", None, ""))
    if known != state:
        try:
            settings, problem = maildrop_settings.load(path), ""
        except SettingsError as error:
            problem = str(error)
            LOG.warning("A config file cannot be used: %s", problem)
        _cache[path] = state, settings, problem
    return settings, problem


_MOST_LOG_BYTES = 16 * 1024 * 1024    # of the daemon's log, held in memory at a time
_safe_spools = set()    # that no other account can have planted, nor can later
_unwritable = Troubles()


def known_spools():
    """The spools of all config files to choose from, if they are there: {directory: whether MAILDROP_FSYNC is set}."""
    spools = {}
    for path in dict.fromkeys(CONFIG_PATHS.values()):
        settings, _ = _read_config(path)
        if settings is not None:
            spools.update((directory, settings.fsync) for directory in settings.spools if os.path.isdir(directory))
    return spools


class _Setting:
    """An attribute that shows a setting of the config file as it is now.

    Other software assigns to such attributes of every mail host (Plone to ``smtp_host``); that changes nothing.
    """

    def __init__(self, show):
        self._show = show

    def __get__(self, instance, owner=None):
        return self if instance is None else self._show(instance._settings())

    def __set__(self, instance, value):
        pass


def _plain(number):
    return int(number) if number == int(number) else number


@implementer(IMaildropHost)
class MaildropHost(SetupCheck, QueueTab, LogTab, MailHost):
    """A mail host that writes mails into a spool, from which a separate daemon sends them."""

    security = ClassSecurityInfo()
    meta_type = "Maildrop Host"
    zmi_icon = "far fa-envelope"

    security.declareProtected(change_configuration, "manage", "manage_main")
    manage = manage_main = PageTemplateFile("www/edit", globals(), __name__="manage_main")

    manage_options = (
        {"label": "Edit", "action": "manage_main"},
        {"label": "Queue", "action": "manage_queue"},
        {"label": "Maildrop Log", "action": "manage_log"},
    ) + MailHost.manage_options[1:]

    smtp_host = _Setting(lambda settings: ";".join(settings.smtp_hosts))
    smtp_port = _Setting(lambda settings: settings.smtp_port)
    smtp_uid = smtp_pwd = _Setting(lambda settings: "")    # whoever hands a login to the object: it is not kept in the database
    smtp_queue = _Setting(lambda settings: True)    # nobody waits for a mail server here

    debug = _Setting(lambda settings: "On" if settings.debug else "Off")
    debug_receiver = _Setting(lambda settings: settings.debug_receiver or "(not set)")
    _debug_receiver = _Setting(lambda settings: settings.debug_receiver)    # for a ``_send`` written for 2.3
    polling = _Setting(lambda settings: _plain(settings.interval_s))
    spool = _Setting(lambda settings: str(settings.spools[0]))
    use_tls = _Setting(lambda settings: ("No", "Yes", "Forced", "Forced")[settings.tls])
    login = _Setting(lambda settings: settings.login or "(not set)")
    password = _Setting(lambda settings: "******" if settings.has_password else "(not set)")
    add_messageid = _Setting(lambda settings: "On" if settings.add_messageid else "Off")
    maildrop_log_file = _Setting(lambda settings: str(settings.log_file))

    def __allow_access_to_unprotected_subobjects__(self, name, value=None):
        # Every mail host shows its relay to Scripts and templates; the other settings are for those who may configure it.
        # (A security declaration does not serve here: Zope would deny plain strings and numbers to everybody.)
        setting = getattr(type(aq_base(self)), name, None) if isinstance(name, str) else None
        if name == "config_path" or isinstance(setting, _Setting) and name not in ("smtp_host", "smtp_port", "smtp_queue"):
            return bool(getSecurityManager().checkPermission(change_configuration, self))
        return True

    def __init__(self, id="", title="Maildrop Host"):
        self.id = id
        self.title = title
        self._transactional = True

    def __setstate__(self, state):
        # Version 2.3 stored the settings in the object. They are ignored, and gone when it is saved the next time.
        shown = type(self)
        super().__setstate__(
            {name: value for name, value in state.items() if not isinstance(getattr(shown, name, None), _Setting)}
        )

    # -- the config file --

    @security.protected(change_configuration)
    def getConfigPath(self):
        # The path of the config file in use, as a str. (No docstring, here and where else text is returned: not to be called
        # by URL, where what looks like HTML would be taken for it.)
        return getattr(aq_base(self), "config_path", DEFAULT_CONFIG_PATH)

    @security.protected(change_configuration)
    def setConfigPath(self, path_key):
        # Use another config file. ``path_key`` is a key of CONFIG_PATHS, never a path. Raises ValueError for an unknown
        # key and a file that is missing or wrong, RuntimeError for one that lacks a required setting; then the old one
        # stays in use. (No docstring: not to be called by URL.)
        path = CONFIG_PATHS.get(path_key) if isinstance(path_key, str) else None
        if path is None:
            raise ValueError(f"Invalid path key {path_key!r}")
        if not os.path.isfile(path):
            raise ValueError(f"Invalid config file path {path}")
        try:
            maildrop_settings.load(path)
        except MissingSettings as error:
            raise RuntimeError(f"Invalid configuration file: {error}") from error
        self.config_path = path

    @security.protected(change_configuration)
    def addConfigPath(self, path_key, path):
        # Add a choice of config file until Zope ends. Raises ValueError for what is no str. (No docstring: as above.)
        if not (isinstance(path_key, str) and isinstance(path, str)):
            raise ValueError(f"Key and path of a config file have to be str: {path_key!r}, {path!r}")
        CONFIG_PATHS[path_key] = path

    @security.protected(change_configuration)
    def getCandidateConfigPaths(self):
        # The config files to choose from: a sorted tuple of (key, path).
        return tuple(sorted(CONFIG_PATHS.items()))

    @security.protected(change_configuration)
    def getConfigProblem(self):
        # What is wrong with the config file in use, as a sentence; "" if nothing is.
        return self._find_settings()[1]

    @security.private
    def _load_config(self):
        # Read the config file again, even if it seems unchanged.
        _cache.pop(self.getConfigPath(), None)    # with what it said before: this is how one starts anew
        self._find_settings()

    @security.private
    def _settings(self):
        return self._find_settings()[0] or maildrop_settings.defaults()

    @security.private
    def _find_settings(self):
        # The settings in use, and what is wrong with them. A missing or wrong file keeps neither Zope from starting nor
        # this object from loading: what it said before serves, else the default file; None where there is neither.
        path = self.getConfigPath()
        settings, problem = _read_config(path)
        if settings is None and path != DEFAULT_CONFIG_PATH:
            settings, further = _read_config(DEFAULT_CONFIG_PATH)
            problem = "; ".join(filter(None, (problem, further)))
        return settings, problem

    @security.private
    def _makeTempPath(self):
        return _makeTempPath(self.spool)

    # -- the pages --

    @security.protected(view_management_screens)
    def manage_page_header(self, *arguments, **named):
        # As Zope's own, which shows the title without quoting it.
        title = str(self.title_or_id())
        header = super().manage_page_header(*arguments, **named)
        return header.replace(f"<title>{title}</title>", f"<title>{html.escape(title)}</title>", 1)

    security.declareProtected(change_configuration, "manage_makeChanges")

    @postonly
    def manage_makeChanges(self, title, transactional=False, path_key=None, REQUEST=None, **ignored):
        """Change title, transactional mode and config file; with REQUEST, show the Edit tab again."""
        message, kind = f'MaildropHost "{self.id}" updated.', "success"
        try:
            if path_key is not None:
                self.setConfigPath(path_key)
            self.title = title
            self._transactional = bool(transactional)
        except (ValueError, RuntimeError) as error:
            if REQUEST is None:
                raise
            message, kind = f"Nothing was changed. {error}", "danger"
        if REQUEST is not None:
            REQUEST.set("manage_tabs_message", message)
            REQUEST.set("manage_tabs_type", kind)
            return self.manage_main()

    security.declareProtected(delete_objects, "DELETE")

    @requestmethod("DELETE")
    def DELETE(self, REQUEST, RESPONSE):
        """As Zope's own, but no link to it deletes the object."""
        return super().DELETE(REQUEST, RESPONSE)

    @security.protected(change_configuration)
    def isTransactional(self):
        """Whether a mail is sent only if its transaction commits."""
        return getattr(self, "_transactional", True)

    @security.protected(change_configuration)
    def getLog(self, max_bytes=50000):
        # The newest text of the daemon's log, at most ``max_bytes`` bytes of it, in whole lines; "" without a log.
        path = self._settings().log_file
        most = min(max(0, int(max_bytes)), _MOST_LOG_BYTES)
        try:
            with open(paths.open_to_read(path), "rb") as log:
                begin = max(0, os.fstat(log.fileno()).st_size - most)
                log.seek(begin)
                text = log.read(most)
        except FileNotFoundError:
            return ""
        except OSError as error:
            return f"{path} cannot be read: {error.strerror}"
        if begin and b"\n" in text:    # the first line is most likely cut
            text = text.partition(b"\n")[2]
        return text.decode("utf-8", "replace")

    # -- what MailHost's pages and other software ask every mail host --

    @security.protected(change_configuration)
    def queueLength(self):
        """How many mails are in the spool, locked and deferred ones included."""
        try:
            return count(Path(self.spool))
        except OSError as error:
            return f"n/a - the spool cannot be read: {error.strerror}"

    @security.protected(change_configuration)
    def queueThreadAlive(self):
        """Whether the daemon is running, as far as this account can see."""
        try:
            return running_pid(self._settings().pid_file) is not None
        except OSError:
            return False

    @security.protected(change_configuration)
    def queueNonDeliveryMode(self):
        """False: the daemon delivers whenever it runs."""
        return False

    @security.protected(change_configuration)
    def manage_restartQueueThread(self, action="start", REQUEST=None):
        # MailHost's own queue thread plays no part here. (No docstring: not to be called by URL.)
        raise MaildropHostError("The maildrop daemon is started and stopped by its own scripts, see maildrop/bin.")

    # -- sending --

    @security.protected(use_mailhost_services)
    def send(
        self, messageText, mto=None, mfrom=None, subject=None, encode=None, immediate=False, charset=None, msg_type=None
    ):
        # As MailHost's, but nothing that was typed adds header fields or recipients: MaildropHostError where it would.
        charset = one_line_each("charset", charset)
        mto, mfrom = one_line_each("mto", mto, charset), one_line_each("mfrom", mfrom, charset)
        message = parse(messageText, charset, is_body=bool(mto and mfrom))
        super().send(
            message, mto, mfrom, one_line_each("subject", subject, charset), one_line_each("encode", encode), immediate,
            charset, one_line_each("msg_type", msg_type),
        )

    scheduledSend = send

    @security.protected(use_mailhost_services)
    def simple_send(self, mto, mfrom, subject, body, immediate=False):
        # As MailHost's, which makes up the header fields of these texts. Raises MaildropHostError for a line break in them.
        mto, mfrom, subject = one_line_each("mto", mto), one_line_each("mfrom", mfrom), one_line_each("subject", subject)
        super().simple_send(mto, mfrom, subject, body, immediate)

    @security.protected(use_mailhost_services)
    def sendTemplate(trueself, self, messageTemplate, statusTemplate=None, *arguments, **named):
        # As MailHost's, which calls any method by its name. A Script has to be allowed to call it by itself.
        if getSecurityManager().calledByExecutable():
            for name in filter(None, (messageTemplate, statusTemplate)):
                guarded_getattr(self, name, None)
        return super().sendTemplate(self, messageTemplate, statusTemplate, *arguments, **named)

    # Or Products.PrintingMailHost, which keeps the ``_send`` that it replaces under this name, would take MailHost's for ours
    _monkey__send = None

    @security.private
    def _send(self, mfrom, mto, body, immediate=False):
        # Put a mail into the spool. ``immediate`` changes nothing: in transactional mode no mail leaves before the commit.
        # Raises MaildropHostError, also for an envelope that could never be sent.
        settings, problem = self._find_settings()
        if settings is None:
            raise MaildropHostError(f"No config file can be read: {problem}")
        directory = settings.spools[0]
        try:
            recipients = mto if isinstance(mto, str) else join_recipients(map(str, mto))
            Envelope.parse(spool.one_line(str(mfrom)), spool.one_line(recipients))
        except MalformedEnvelope as error:
            raise MaildropHostError(f"The mail cannot be sent: {error}") from error
        kind = TransactionalEmail if self.isTransactional() else Email
        email = kind(mfrom, settings.debug_receiver or recipients, body, _makeTempPath(directory))
        email._mode, email._durable = settings.spool_mode, settings.fsync
        try:
            try:
                if directory not in _safe_spools:
                    paths.check(directory)
                    _safe_spools.add(directory)
                email.send()
            except (FileNotFoundError, NotADirectoryError):
                paths.make_directory(directory, settings.directory_mode)
                email.send()
        except OSError as error:
            reason = str(error) if isinstance(error, paths.UnsafePath) else error.strerror
            problem = f"The mail cannot be written to {directory}: {reason}"
            if _unwritable.begin(directory):
                LOG.error("%s. Nothing is said of further mails until one can be written there again.", problem)
            raise MaildropHostError(problem) from error
        self._v_last_name = os.path.basename(email._tempfile)    # for who has called ``send``, which returns nothing
        if _unwritable.end(directory):
            LOG.info("Mails can be written to %s again", directory)


InitializeClass(MaildropHost)


# -- mails --

class Email:
    """One mail: ``send()`` puts it into the spool.

    ``m_to`` and ``m_from`` are str without line breaks, ``body`` is what was passed, ``_tempfile`` the file's path.
    """

    _mode = 0o600
    _durable = True

    def __init__(self, mfrom, mto, body, temp_path):
        """``mto``: a str or a sequence of them; ``body``: str or bytes, header fields first."""
        self.m_to = spool.one_line(mto if isinstance(mto, str) else ",".join(map(str, mto)))
        self.m_from = spool.one_line(str(mfrom))
        self.body = body
        self._tempfile = str(temp_path)

    def send(self):
        """Write the mail; it is due and on the disk when this returns. Raises OSError."""
        draft = self._draft()
        self._write(draft)
        draft.publish()
        self._forget()
        announce(draft.directory, [draft.path.name])

    def _draft(self):
        return spool.Draft(Path(self._tempfile), self._mode, self._durable)

    def _write(self, draft, **notes):
        if self.body is None:
            raise ValueError("this mail has been sent already")
        content = self.body if isinstance(self.body, bytes) else self.body.encode("utf-8", "surrogateescape")
        draft.write(self.m_from, self.m_to, content, notes)

    def _forget(self):
        self.m_to = self.m_from = ""
        self.body = None    # it may be large, and is on disk now


class TransactionalEmail(Email):
    """A mail that leaves when the current transaction commits, and is gone if that aborts."""

    def __init__(self, mfrom, mto, body, temp_path):
        super().__init__(mfrom, mto, body, temp_path)
        self._manager = current_manager()

    def send(self):
        """Write the mail, locked. Raises OSError; ValueError where the transaction is already being committed."""
        if self._manager.sealed:    # rolled back, or another transaction's
            self._manager = current_manager()
        draft = self._draft()
        writer = self._manager.enter(draft.directory, self._mode)
        self._write(draft, Transaction=f"{writer} {self._manager.token}")
        self._manager.add(draft)
        self._forget()

"""Writers: processes with one publisher and a database on disk each, forked off one process that has Zope loaded."""

from __future__ import annotations

import json
import logging
import os
import select
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from urllib.parse import urlencode
from wsgiref.util import setup_testing_defaults

import transaction
import ZODB.config
from AccessControl.class_init import InitializeClass
from AccessControl.SecurityInfo import ClassSecurityInfo
from OFS.SimpleItem import SimpleItem
from support.config_file import write_config
from support.zope_site import ZopeSite

PATIENCE_S = 60
TEXT_LINE = "One line of seventy characters, as people write them in their letters."
LAST_LINE = "This is the end of the mail."
_LARGEST_MESSAGE = 32 * 1024
_TESTS = Path(__file__).parents[1]
_SECOND_DATABASE = """
<zodb_db second>
  <filestorage>
    path $INSTANCE/var/Second.fs
  </filestorage>
  mount-point /second
</zodb_db>
"""
CONTENT = """
import transaction
from support.writer_process import WriterPages
app.manage_addProduct["MaildropHost"].manage_addMaildropHost("MailHost")
app.MailHost.setConfigPath("config-path-1")
app._setObject("pages", WriterPages())
transaction.commit()
"""


# -- in the writer --


class WriterPages(SimpleItem):
    """Pages that send mail and add the subject to ``done``: if it is there, the transaction has committed."""

    security = ClassSecurityInfo()
    id = "pages"
    done = ()

    def _send(self, subject, lines=1):
        text = "\n".join([*[TEXT_LINE] * int(lines), LAST_LINE])
        self.MailHost.send(text, mto="ann@example.org", mfrom="zoe@example.org", subject=subject)

    @security.public
    def work(self, subject, mails=1, lines=1):
        """Send mails and change an object."""
        for number in range(int(mails)):
            self._send(f"{subject} {number}", lines)
        self.done += (subject,)
        return "sent"

    @security.public
    def work_in_two(self, subject, mails=1):
        """Send mails and change an object in each of two databases."""
        self._p_jar.get_connection("second").root()["done"] = subject
        return self.work(subject, mails)

    @security.public
    def only_mail(self, subject, mails=1):
        """Send mails and change nothing."""
        for number in range(int(mails)):
            self._send(f"{subject} {number}")
        return "sent"

    @security.public
    def roll_back(self, subject):
        """Of three mails, the second is rolled back."""
        self._send(f"{subject} 0")
        self.done += (subject,)
        savepoint = transaction.savepoint()
        self._send(f"{subject} never")
        savepoint.rollback()
        self._send(f"{subject} 1")
        return "sent"

    @security.public
    def fail(self, subject):
        """Send, change an object, and fail."""
        self._send(f"{subject} never")
        self.done += (subject,)
        raise ValueError("on purpose")


InitializeClass(WriterPages)


def _fork_writers(zope_conf: str, descriptor: str) -> None:
    """Fork a writer for each socket that comes in; end when nobody can send one any more."""
    import OFS.Application    # noqa: F401
    import Zope2.App.startup    # noqa: F401
    import ZODB.FileStorage    # noqa: F401

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)    # nobody waits for the writers
    with socket.socket(fileno=int(descriptor)) as control:
        while True:
            message, received, _, _ = socket.recv_fds(control, 16, 1)
            if not message:
                return
            with socket.socket(fileno=received[0]) as channel:
                if os.fork() == 0:
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    control.close()
                    _write(zope_conf, channel)
                    os._exit(0)


def _write(zope_conf: str, channel: socket.socket) -> None:
    from Zope2.Startup.run import make_wsgi_app

    log = logging.FileHandler(Path(zope_conf).parents[1] / "var" / "log" / "event.log")
    logging.basicConfig(level=logging.INFO, handlers=[log])
    application = make_wsgi_app({}, zope_conf)
    answer = str(os.getpid())
    while True:
        # Sent and received by calls that no test counts or makes fail.
        channel.sendall(answer.encode()[:_LARGEST_MESSAGE])
        message = channel.recv(_LARGEST_MESSAGE)
        if not message:
            return
        asked = json.loads(message)
        if "uid" in asked:
            os.setgroups([])
            os.setgid(asked["uid"])
            os.setuid(asked["uid"])
            answer = "done"
        else:
            answer = json.dumps(_call(application, asked["path"], asked["query"]))


def _call(application, path: str, query: str) -> tuple[int, str]:
    environment = {"PATH_INFO": path, "QUERY_STRING": query, "REQUEST_METHOD": "GET", "wsgi.input": BytesIO()}
    setup_testing_defaults(environment)
    statuses = []
    try:
        chunks = application(environment, lambda status, *_: statuses.append(status))
        return int(statuses[-1].split()[0]), b"".join(chunks).decode()
    except Exception as error:    # what a WSGI server makes an error 500 of
        return 500, f"{type(error).__name__}: {error}"


# -- in the test --


@contextmanager
def _read_only(path: Path) -> Iterator[Mapping]:
    storage = ZODB.config.storageFromString(f"<filestorage>\npath {path}\nread-only true\n</filestorage>")
    database = ZODB.DB(storage)
    try:
        with database.transaction() as connection:
            yield connection.root()
    finally:
        database.close()


class Writers:
    """A Zope instance in ``directory`` and its spool; ``start()`` a writer, one at a time, and look what it leaves."""

    def __init__(self, directory: Path, **settings: object):
        self.directory = directory
        self.config = write_config(directory / "config", MAILDROP_HOME=directory / "maildrop", **settings)
        self.spool = directory / "maildrop" / "spool"
        site = ZopeSite(directory / "site", extra_path=(_TESTS,))
        site.create({"config-path-1": self.config})
        with open(site.directory / "etc" / "zope.conf", "a") as conf:
            conf.write(_SECOND_DATABASE)
        site.run_script(CONTENT)
        var = site.directory / "var"
        self.data_fs, self.second_fs, self.event_log = var / "Data.fs", var / "Second.fs", var / "log" / "event.log"
        self._pristine = directory / "pristine"
        self._pristine.mkdir()
        for path in (self.data_fs, self.second_fs):
            shutil.copyfile(path, self._pristine / path.name)
        code = "import sys; from support.writer_process import _fork_writers; _fork_writers(*sys.argv[1:])"
        self._control, far_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with far_end:
            command = [sys.executable, "-c", code, site.directory / "etc" / "zope.conf", str(far_end.fileno())]
            paths = os.pathsep.join(filter(None, [str(_TESTS), os.environ.get("PYTHONPATH", "")]))
            environment = {**os.environ, "PYTHONPATH": paths}
            self._process = subprocess.Popen(command, env=environment, pass_fds=[far_end.fileno()])

    def close(self) -> None:
        self._control.close()
        self._process.wait(PATIENCE_S)

    def __enter__(self) -> Writers:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def start(self) -> Writer:
        """A writer with fresh databases and an empty spool, which has imported by now whatever a request needs."""
        for path in self.data_fs.parent.glob("*.fs*"):
            path.unlink()
        for path in (self.data_fs, self.second_fs):
            shutil.copyfile(self._pristine / path.name, path)
        self.empty_spool()
        self.event_log.unlink(missing_ok=True)
        writer = self.start_again()
        writer.get("roll_back", subject="warm-up")
        writer.get("fail", subject="warm-up")
        self.empty_spool()
        return writer

    def start_again(self) -> Writer:
        """A writer with the database and the spool as they are."""
        channel, far_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with far_end:
            socket.send_fds(self._control, [b"fork"], [far_end.fileno()])
        return Writer(channel)

    def empty_spool(self) -> None:
        for path in [*self.spool.glob("*"), *self.spool.glob("failed/*")]:
            if path.is_file():
                path.unlink()

    def committed(self) -> tuple[str, ...]:
        """The subjects whose transactions the first database has, also while a writer has it open."""
        with _read_only(self.data_fs) as root:
            return root["Application"].pages.done

    def committed_in_second(self) -> str | None:
        """The subject of the last transaction that the second database has."""
        with _read_only(self.second_fs) as root:
            return root.get("done")


class Writer:
    """A running writer."""

    def __init__(self, channel: socket.socket):
        self._channel = channel
        channel.settimeout(PATIENCE_S)
        self.pid = int(channel.recv(_LARGEST_MESSAGE))
        self._life = os.pidfd_open(self.pid)

    def get(self, page: str, **fields: object) -> tuple[int, str] | None:
        """Call a page; status and text, None if the writer died at it."""
        answer = self._ask({"path": f"/pages/{page}", "query": urlencode(fields)})
        return tuple(json.loads(answer)) if answer else None

    def become(self, uid: int) -> None:
        """Be another account from now on."""
        self._ask({"uid": uid})

    def _ask(self, message: dict[str, object]) -> bytes:
        self._channel.sendall(json.dumps(message).encode())
        answer = self._channel.recv(_LARGEST_MESSAGE)
        if not answer:
            self._wait()
        return answer

    def _wait(self) -> None:
        if not select.select([self._life], [], [], PATIENCE_S)[0]:
            signal.pidfd_send_signal(self._life, signal.SIGKILL)
            raise TimeoutError("the writer does not end")

    def close(self) -> None:
        """End it; its database is free when this returns."""
        if self._channel.fileno() < 0:
            return
        self._channel.close()
        try:
            self._wait()
        finally:
            os.close(self._life)

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

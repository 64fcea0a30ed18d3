"""Software written for 2.3: the names it imports, calls, overrides and patches, and the config files it wrote."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import transaction
from AccessControl.class_init import InitializeClass
from OFS.Folder import Folder
from support.config_file import write_config
from support.daemon import MaildropDaemon
from support.relay_server import RelayServer
from support.spooling import MODULE, make_host, read_mails
from support.zope_site import ZopeSite

from maildrop import settings

MESSAGE = "Subject: old\nTo: ann@example.org\nFrom: zoe@example.org\n\nGrüße\n"


@pytest.fixture(autouse=True)
def nothing_is_left():
    yield
    transaction.abort()


@pytest.fixture
def choices(monkeypatch):
    """``CONFIG_PATHS`` as products import it, restored afterwards."""
    from Products.MaildropHost.MaildropHost import CONFIG_PATHS

    before = dict(CONFIG_PATHS)
    yield CONFIG_PATHS
    CONFIG_PATHS.clear()
    CONFIG_PATHS.update(before)


# -- adding and changing --


def test_a_product_adds_an_object_by_the_imported_factory_and_finds_it_by_its_meta_type():
    from Products.MaildropHost import manage_addMaildropHost

    root = Folder("root")
    manage_addMaildropHost(root, "service_mailhost", "Mail service")
    assert root.objectIds("Maildrop Host") == ["service_mailhost"]
    assert (root.service_mailhost.meta_type, root.service_mailhost.title) == ("Maildrop Host", "Mail service")


def test_products_and_scripts_add_an_object_by_the_folders_dispatcher(tmp_path):
    site = ZopeSite(tmp_path / "site")
    site.create({"config-path-1": write_config(tmp_path / "config")})
    code = """
from Products.PythonScripts.PythonScript import manage_addPythonScript
app.manage_addProduct["MaildropHost"].manage_addMaildropHost("MaildropHost", title="Gazette")
manage_addPythonScript(app, "add")
app.add.ZPythonScript_edit("", "context.manage_addProduct['MaildropHost'].manage_addMaildropHost('MailHost')")
from AccessControl.SecurityManagement import newSecurityManager
newSecurityManager(None, app.acl_users.getUserById("admin").__of__(app.acl_users))
app.add()
print([(host.getId(), host.title) for host in app.objectValues("Maildrop Host")])
"""
    assert site.run_script(code) == "[('MaildropHost', 'Gazette'), ('MailHost', 'Maildrop Host')]\n"


def test_a_product_switches_the_mode_by_the_edit_tabs_method(tmp_path):
    host = make_host(tmp_path, transactional=False)
    host.manage_makeChanges("Mail", transactional=1)
    assert host.isTransactional() is True
    host.manage_makeChanges("Mail")
    assert host.isTransactional() is False


# -- the choice of config files --


def test_a_product_adds_and_removes_choices_as_in_any_dict(tmp_path, choices):
    assert type(choices) is dict
    host = make_host(tmp_path / "first")
    other = write_config(tmp_path / "other", MAILDROP_HOME=tmp_path, SMTP_HOST="other.example.org")
    choices["of-a-product"] = str(other)
    host.setConfigPath("of-a-product")
    assert host.smtp_host == "other.example.org"
    assert ("of-a-product", str(other)) in host.getCandidateConfigPaths()
    del choices["of-a-product"]
    with pytest.raises(ValueError):
        host.setConfigPath("of-a-product")


def test_a_product_replaces_the_methods_that_choose_and_reads_config_files_itself(tmp_path, monkeypatch):
    from Products.MaildropHost.maildrop.stringparse import parse_assignments

    path = write_config(tmp_path / "product", MAILDROP_HOME=tmp_path / "product-home", SMTP_HOST="product.example.org")

    def choose(self, path_key):
        with open(path_key) as config:
            if dict(parse_assignments(config.read())).get("SMTP_HOST") is None:
                raise RuntimeError(path_key)
        self.config_path = path_key
        self._load_config()

    host = make_host(tmp_path / "host")
    del host.config_path
    monkeypatch.setattr(MODULE.MaildropHost, "getConfigPath", lambda self: getattr(self, "config_path", str(path)))
    monkeypatch.setattr(MODULE.MaildropHost, "setConfigPath", choose)
    assert (host.smtp_host, host.spool) == ("product.example.org", str(tmp_path / "product-home" / "spool"))
    host.setConfigPath(str(write_config(tmp_path / "chosen", MAILDROP_HOME=tmp_path, SMTP_HOST="chosen.example.org")))
    assert host.smtp_host == "chosen.example.org"


def test_a_config_file_is_parsed_to_a_list_of_pairs_in_its_order():
    from Products.MaildropHost.maildrop.stringparse import parse_assignments

    source = "A=\"text\"\nB=r'\\raw'\nC=u\"\\xfc\"\nD=0600\nE=0.5\n# none\nF=None\nA=True\n"
    pairs = parse_assignments(source)
    assert pairs == [("A", "text"), ("B", "\\raw"), ("C", "ü"), ("D", 0o600), ("E", 0.5), ("F", None), ("A", True)]
    assert {type(pair) for pair in pairs} == {tuple}
    with pytest.raises(ValueError, match="line 2"):
        parse_assignments("A=1\nimport os\n")


def test_the_daemons_package_has_one_copy_under_both_its_names():
    import Products.MaildropHost.maildrop.stringparse

    import maildrop.stringparse

    assert Products.MaildropHost.maildrop is maildrop
    assert sys.modules["Products.MaildropHost.maildrop.stringparse"] is maildrop.stringparse


# -- sending --


class Calling(MODULE.MaildropHost):
    """A subclass that changes a mail and hands it on, as text and by position."""

    def _send(self, mfrom, mto, messageText, immediate=False):
        text = messageText.decode() if isinstance(messageText, bytes) else messageText
        return MODULE.MaildropHost._send(self, mfrom, mto, "X-Changed: yes\n" + text)


class Replacing(MODULE.MaildropHost):
    """A subclass that does by itself what 2.3 did."""

    def _send(self, m_from, m_to, body, immediate=False):
        if self._debug_receiver != "":
            m_to = self._debug_receiver
        kind = MODULE.TransactionalEmail if self.isTransactional() else MODULE.Email
        return kind(m_from, m_to, body, self._makeTempPath()).send()


InitializeClass(Calling)
InitializeClass(Replacing)


@pytest.mark.parametrize("transactional", [True, False])
def test_a_subclass_calls_the_inherited_method_with_text(tmp_path, transactional):
    host = make_host(tmp_path, Calling, transactional)
    host.send(MESSAGE, charset="utf-8")
    transaction.commit()
    ((sender, recipients, message),) = read_mails(tmp_path / "spool")
    assert (sender, recipients) == ("zoe@example.org", ("ann@example.org",))
    assert message.startswith(b"X-Changed: yes\n") and b"Subject: old" in message


@pytest.mark.parametrize("receiver, expected", [("", "ann@example.org"), ("debug@example.org", "debug@example.org")])
def test_a_subclass_makes_its_mails_by_the_classes_of_the_module(tmp_path, receiver, expected):
    host = make_host(tmp_path, Replacing, DEBUG_RECEIVER=receiver)
    host._makeTempPath()
    (tmp_path / "spool").mkdir()
    host.send(MESSAGE, charset="utf-8")
    assert read_mails(tmp_path / "spool") == []
    transaction.commit()
    ((_, recipients, _),) = read_mails(tmp_path / "spool")
    assert recipients == (expected,)


def test_a_product_that_patches_send_gets_each_mail_and_can_hand_it_to_the_original(tmp_path, monkeypatch):
    original, seen = MODULE.MaildropHost._send, []

    def patched(self, mfrom, mto, messageText, immediate=False, debug=False):
        seen.append((mfrom, mto))
        original(self, mfrom, ["fixed@example.org"], messageText, immediate=immediate)

    monkeypatch.setattr(MODULE.MaildropHost, "_send", patched)
    make_host(tmp_path).send(MESSAGE, charset="utf-8")
    transaction.commit()
    assert seen == [("zoe@example.org", ["ann@example.org"])]
    assert [mail[1] for mail in read_mails(tmp_path / "spool")] == [("fixed@example.org",)]


PRINTED = """
import logging, sys, transaction
import Products.PrintingMailHost as product
from support.spooling import make_host, read_mails
from pathlib import Path

logging.basicConfig(level=logging.INFO, stream=sys.stdout)
product.initialize(None)
host = make_host(Path(sys.argv[1]))
host.send("Subject: old\\n\\nText", mto="ann@example.org", mfrom="zoe@example.org", immediate=True)
transaction.commit()
print([recipients for _, recipients, _ in read_mails(Path(host.spool))])
"""


def test_products_printingmailhost_prints_mails_and_has_them_sent_to_its_fixed_address_by_the_spool(tmp_path):
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parents[1]),
        "ENABLE_PRINTING_MAILHOST": "on",
        "PRINTING_MAILHOST_FIXED_ADDRESS": "fixed@example.org",
    }
    command = [sys.executable, "-c", PRINTED, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    assert "To: ann@example.org" in done.stdout
    assert done.stdout.splitlines()[-1] == "[('fixed@example.org',)]"


@pytest.mark.parametrize("recipients", ["ann@example.org", ["ann@example.org"], ("ann@example.org",)])
def test_a_product_calls_send_of_the_object_itself_with_text(tmp_path, recipients):
    make_host(tmp_path)._send("zoe@example.org", recipients, MESSAGE)
    transaction.commit()
    assert read_mails(tmp_path / "spool") == [("zoe@example.org", ("ann@example.org",), MESSAGE.encode())]


# -- config files that buildout recipes wrote --

OF_INFRAE = """
PYTHON=r"{python}"
MAILDROP_HOME=r"{home}"
MAILDROP_VAR=r"{home}"
MAILDROP_SPOOL=r"{home}/spool"
MAILDROP_PID_FILE=r"{home}/maildrop.pid"

SMTP_HOST="127.0.0.1"
SMTP_PORT={port}

MAILDROP_INTERVAL=1
DEBUG=0
DEBUG_RECEIVER=""

MAILDROP_BATCH=0
MAILDROP_TLS=0

MAILDROP_LOGIN=""
MAILDROP_PASSWORD=""

WAIT_INTERVAL=0.0
ADD_MESSAGEID=0

SUPERVISED_DAEMON=0
"""

# It put its line in the place of each that began with a key, comments and longer keys included.
OF_CNS = """
PYTHON="{python}"

# where it is
MAILDROP_HOME="{home}"
MAILDROP_HOME="{home}"
MAILDROP_SPOOL="{home}/spool"
MAILDROP_VAR="{home}"
MAILDROP_PID_FILE="{home}/maildrop.pid"
#MAILDROP_LOG_FILE="/var/log/maildrop.log"
SMTP_HOST="127.0.0.1"
SMTP_PORT={port}
SMTP_PORT={port}
MAILDROP_INTERVAL=1
DEBUG=0
DEBUG=0
DEBUG_RECEIVER=""
MAILDROP_BATCH=0
MAILDROP_TLS=0
MAILDROP_LOGIN=""
MAILDROP_PASSWORD=""
WAIT_INTERVAL=0.0
ADD_MESSAGEID=0
SUPERVISED_DAEMON=0
MAILDROP_USER=""
"""


@pytest.mark.parametrize("text", [OF_INFRAE, OF_CNS], ids=["infrae.maildrophost", "cns.recipe.maildrophost"])
def test_zope_and_daemon_work_with_the_config_file_of_a_buildout_recipe(tmp_path, text):
    home = tmp_path / "var" / "maildrop"
    home.mkdir(parents=True)
    with RelayServer() as relay:
        files = {"MAILDROP_PID_FILE": home / "maildrop.pid", "MAILDROP_LOG_FILE": home / "maildrop.log"}
        daemon = MaildropDaemon(tmp_path / "daemon", relay.port, MAILDROP_HOME=home, **files)
        daemon.config.write_text(text.format(python=sys.executable, home=home, port=relay.port))
        assert settings.load(daemon.config).spools == (home / "spool",)
        host = MODULE.MaildropHost("MailHost")
        host.config_path = str(daemon.config)
        with daemon:
            host.send(MESSAGE, charset="utf-8")
            transaction.commit()
            daemon.wait_until_empty()
    assert relay.recipients() == ["ann@example.org"]

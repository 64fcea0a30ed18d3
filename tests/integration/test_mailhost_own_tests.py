"""Products.MailHost's own tests, with a MaildropHost in the MailHost's place: each mail goes through a real spool.

Left out, because they are about the stock MailHost's own parts:

- ``test_manage_makeChanges``: the fields of its edit form; ours come from the config file
- ``test_createDefaultMailer``, ``test_createSMPTSMailer``: its mailer, made from a MailHost of their own
- ``TestMailHostQueuing``: its queue thread and maildir
"""

import tempfile
import unittest
from pathlib import Path
from unittest import mock

import transaction
from Products.MailHost.tests import test_SendMailTag, testMailHost
from support.spooling import MODULE, read_locked_mail
from support.config_file import write_config


class SpoolingMailHost(MODULE.MaildropHost):
    """Tells what it sent by reading it back from its spool."""

    meta_type = "Spooling Mail Host"

    def __init__(self, id):
        super().__init__(id)
        home = Path(tempfile.mkdtemp())
        self.config_path = str(write_config(home / "config", MAILDROP_HOME=home))

    @property
    def sent(self):
        mails = [path for path in Path(self.spool).iterdir() if path.is_file() and path.suffix != ".lck"]
        return read_locked_mail(max(mails))[2]

    def _send(self, mfrom, mto, body, immediate=False):
        super()._send(mfrom, mto, body, immediate)
        self.immediate = immediate


class TestSendMailTag(test_SendMailTag.SendMailTagTests):
    def setUp(self):
        patch = mock.patch.object(test_SendMailTag, "DummyMailHost", SpoolingMailHost)
        patch.start()
        self.addCleanup(patch.stop)
        self.addCleanup(transaction.abort)
        super().setUp()


class TestMailHost(testMailHost.TestMailHost):
    def _getTargetClass(self):
        return SpoolingMailHost

    def tearDown(self):
        transaction.abort()

    test_manage_makeChanges = None
    test_createDefaultMailer = None
    test_createSMPTSMailer = None


def test_none_of_mailhosts_tests_is_missing_without_being_named():
    ours = unittest.TestLoader().loadTestsFromTestCase(TestMailHost).countTestCases()
    theirs = unittest.TestLoader().loadTestsFromTestCase(testMailHost.TestMailHost).countTestCases()
    assert ours == theirs - 3

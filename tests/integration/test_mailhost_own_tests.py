"""Products.MailHost's own tests, with a MaildropHost in the MailHost's place: each mail goes through a real spool.

Left out, because they are about the stock MailHost's own parts:

- ``test_manage_makeChanges``: the fields of its edit form; ours come from the config file
- ``test_createDefaultMailer``, ``test_createSMPTSMailer``: its mailer, made from a MailHost of their own
- ``TestMailHostQueuing``: its queue thread and maildir
"""

import unittest
from unittest import mock

import transaction
from Products.MailHost.tests import test_SendMailTag, testMailHost
from support.spooling import SpoolingMailHost


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
    ours = unittest.TestLoader().getTestCaseNames(TestMailHost)
    theirs = unittest.TestLoader().getTestCaseNames(testMailHost.TestMailHost)
    left_out = {"test_manage_makeChanges", "test_createDefaultMailer", "test_createSMPTSMailer"}    # some are new
    assert ours and set(theirs) - set(ours) <= left_out

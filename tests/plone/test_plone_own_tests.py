"""Plone's own tests of what it mails, with a MaildropHost in the place of the mail host they use: none fails that did not."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

TESTS = Path(__file__).parents[1]

# Modules of tests that speak of mail hosts or mails, found by ``grep -il mailhost`` in each package
PACKAGES = {
    "Products.CMFPlone": (
        "mail|testRegistrationTool|testControlPanel$|test_login_help|passwordreset|testPortalCreation|testSiteAdminRole"
        "|redirect_after|test_functional"
    ),
    "plone.app.users": "test_doctests|test_new_user",
    "plone.app.discussion": "notifications",
    "plone.api": "test_portal$",
}


def run(host, package, modules):
    """How many tests were run, and which failed, modules that cannot be imported among them."""
    command = [sys.executable, "-W", "ignore", "-m", "support.plone_own_tests", host, "-s", package, "-m", modules]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=TESTS)
    output = done.stdout + done.stderr
    summary = re.search(r"Total: (\d+) tests, ", output) or re.search(r"Ran (\d+) tests with ", output)
    if summary:
        return int(summary[1]), set(re.findall(r"(?m)^(?:(?:Failure|Error) in test .*|Module: .*)", output))
    raise AssertionError(output[-5000:])


@pytest.mark.parametrize("package", PACKAGES)
def test_no_test_fails_that_does_not_fail_with_a_stock_mail_host(package):
    count, failed = run("maildrop", package, PACKAGES[package])
    assert count
    if failed:
        assert (count, failed) == run("stock", package, PACKAGES[package])

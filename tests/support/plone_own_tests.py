"""Runs tests that come with Plone, with zope.testrunner: ``python -m support.plone_own_tests HOST ARGUMENTS``.

HOST is ``stock``, or ``maildrop`` to put a MaildropHost with a real spool in the place of the mail host that keeps what it
was sent, wherever these tests have one. ARGUMENTS are zope.testrunner's.
"""

import importlib
import sys
from importlib.util import find_spec
from pathlib import Path

from support.spooling import SpoolingMailHost
from zope.testrunner import run

# Where a class MockMailHost is made, or taken into before these tests can be told to take another
_MODULES = [
    "plone.app.testing.utils",
    "plone.app.testing.layers",
    "Products.CMFPlone.tests.utils",
    "Products.CMFPlone.testing",
    "plone.app.discussion.tests.test_notifications",
]


def main() -> None:
    host, *arguments = sys.argv[1:]
    if host == "maildrop":
        for name in _MODULES:
            module = importlib.import_module(name)
            assert hasattr(module, "MockMailHost"), name
            module.MockMailHost = SpoolingMailHost
    site_packages = Path(find_spec("Products.CMFPlone").origin).parents[2]
    run([f"--test-path={site_packages}"], [sys.argv[0], *arguments])


if __name__ == "__main__":
    main()

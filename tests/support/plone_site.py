"""A real Plone site on disk, in an instance of its own."""

from __future__ import annotations

import shutil
from pathlib import Path

from support.zope_site import ZopeSite

TESTS = Path(__file__).parents[1]
SITE_ID = "Plone"
FROM = "site@example.org"    # of the site's mails

_AS_ADMIN = f"""
import transaction
from AccessControl.SecurityManagement import newSecurityManager
from Testing.makerequest import makerequest
from zope.component.hooks import setSite
app = makerequest(app)
newSecurityManager(None, app.acl_users.getUserById("admin").__of__(app.acl_users))
if "{SITE_ID}" in app.objectIds():
    portal = app["{SITE_ID}"]
    setSite(portal)
"""

_ADD_SITE = f"""
from Products.CMFPlone.factory import addPloneSite
profiles = ["plone.app.contenttypes:default", "plonetheme.barceloneta:default"]
portal = addPloneSite(app, "{SITE_ID}", title="Test", setup_content=False, default_language="en", extension_ids=profiles)
setSite(portal)
from plone import api
api.portal.set_registry_record("plone.email_from_name", "Site")
api.portal.set_registry_record("plone.email_from_address", "{FROM}")
transaction.commit()
"""


class PloneSite(ZopeSite):
    """A Zope for one Plone site, which mails by the stock MailHost until an add-on is installed."""

    def __init__(self, directory: Path, password: str | None = None):
        super().__init__(directory, password, extra_path=(TESTS,))

    @property
    def portal_url(self) -> str:
        return f"{self.url}/{SITE_ID}"

    def add_portal(self) -> None:
        """Make the site, in an instance that has been created."""
        self.run_in_site(_ADD_SITE)

    def copy_database(self, other: PloneSite) -> None:
        """Take over the database of another instance, which does not run."""
        shutil.copy2(other.directory / "var" / "Data.fs", self.directory / "var" / "Data.fs")

    def run_in_site(self, code: str) -> str:
        """Run Python code as the Manager, with ``app`` and, where there is one, ``portal``; it commits itself."""
        return self.run_script(_AS_ADMIN + code)

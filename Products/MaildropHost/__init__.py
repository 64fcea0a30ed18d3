"""MaildropHost: mail that is sent when the transaction commits, by a separate daemon."""

import importlib.util
import logging
import sys
from pathlib import Path


def _find_daemon_package():
    """Where all of it was copied by hand into one product folder, the ``maildrop`` package lies in it."""
    beside = Path(__file__).with_name("maildrop")
    if importlib.util.find_spec("maildrop") is None and beside.is_dir():
        spec = importlib.util.spec_from_file_location(
            "maildrop", beside / "__init__.py", submodule_search_locations=[str(beside)]
        )
        sys.modules["maildrop"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(sys.modules["maildrop"])


_find_daemon_package()

import maildrop.stringparse  # noqa: E402

# In 2.3 the daemon's package lay in the product; products of that time import it from there.
sys.modules[f"{__name__}.maildrop"] = maildrop
sys.modules[f"{__name__}.maildrop.stringparse"] = maildrop.stringparse

from Products.MaildropHost.MaildropHost import MaildropHost  # noqa: E402
from Products.MaildropHost.MaildropHost import addMaildropHostForm  # noqa: E402
from Products.MaildropHost.MaildropHost import known_spools  # noqa: E402
from Products.MaildropHost.MaildropHost import manage_addMaildropHost  # noqa: E402
from Products.MaildropHost.MaildropHost import read_product_config  # noqa: E402
from Products.MaildropHost.recovery import recover_all  # noqa: E402


def _recover(event):
    try:
        recover_all(known_spools(), list(event.database.databases.values()))
    except Exception:    # Zope has to start
        logging.getLogger("MaildropHost").exception("What dead processes left locked cannot be settled")


def initialize(context):
    """Tell Zope about the class, and settle what dead processes left in the spools once it has its databases open."""
    import zope.component.event  # noqa: F401 - brings events to their handlers
    from AccessControl.Permissions import add_mailhost_objects
    from zope.component import provideHandler
    from zope.processlifetime import IDatabaseOpenedWithRoot

    read_product_config()
    provideHandler(_recover, (IDatabaseOpenedWithRoot,))
    context.registerClass(
        MaildropHost,
        permission=add_mailhost_objects,
        constructors=(addMaildropHostForm, manage_addMaildropHost),
    )

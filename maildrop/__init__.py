"""The maildrop daemon and its spool: standard library only, nothing of Zope."""

__version__ = "3.0.dev0"

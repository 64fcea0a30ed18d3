"""The account that the daemon serves as: MAILDROP_USER."""

from __future__ import annotations

import os
import pwd

from maildrop import paths, permissions
from maildrop.settings import Settings, SettingsError


class AccountError(SettingsError):
    """This process cannot be the account that MAILDROP_USER names; says why."""


class OtherAccount(AccountError):
    """This process belongs neither to that account nor to root."""


def become(settings: Settings, making_directories: bool = False) -> None:
    """Be the account that MAILDROP_USER names from now on, for good; nothing to do where it is empty.

    ``making_directories``: before that, make those that only root can make. Raises SettingsError.
    """
    if not settings.user:
        return
    account = _find(settings.user)
    if account.pw_uid == os.geteuid() == os.getuid():
        return
    if os.geteuid() != 0:
        raise OtherAccount(f'MAILDROP_USER="{settings.user}": only root and that account can start the daemon')
    if making_directories:
        _give_directories(settings, account)
    _drop_to(account)
    for name, value in (("HOME", account.pw_dir), ("USER", account.pw_name), ("LOGNAME", account.pw_name)):
        os.environ[name] = value
    package = os.path.dirname(__file__)
    if not os.access(package, os.R_OK | os.X_OK):    # more of it is read later
        raise AccountError(f'MAILDROP_USER="{settings.user}": that account cannot read {package}')


def _find(name: str) -> pwd.struct_passwd:
    try:
        return pwd.getpwnam(name)
    except (KeyError, ValueError):
        raise AccountError(f'MAILDROP_USER="{name}": there is no such account') from None


def _give_directories(settings: Settings, account: pwd.struct_passwd) -> None:
    for path, key in permissions.places(settings).items():
        try:
            paths.give_directory(path, settings.directory_mode, account.pw_uid, account.pw_gid)
        except OSError as error:
            raise SettingsError(f"{key}: {error}") from error


def _drop_to(account: pwd.struct_passwd) -> None:
    """Raises AccountError where that is not allowed, or a way back is left."""
    try:
        os.initgroups(account.pw_name, account.pw_gid)
        os.setgid(account.pw_gid)    # for root, these set the real, the effective and the saved id
        os.setuid(account.pw_uid)
    except OSError as error:    # root without that right, as in some containers
        raise AccountError(f'MAILDROP_USER="{account.pw_name}": root may not become that account: {error.strerror}') from None
    ids = {os.getuid(), os.geteuid()}, {os.getgid(), os.getegid()}
    try:
        os.setuid(0)
    except PermissionError:
        if ids == ({account.pw_uid}, {account.pw_gid}):
            return
    raise AccountError(f'MAILDROP_USER="{account.pw_name}": this process has kept rights of root')

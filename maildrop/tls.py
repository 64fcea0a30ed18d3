"""How we speak TLS: settings -> ssl context."""

from __future__ import annotations

import os
import ssl
import stat
from functools import lru_cache
from pathlib import Path

from maildrop.settings import Settings, SettingsError


def client_context(settings: Settings) -> ssl.SSLContext:
    """What MAILDROP_TLS and its kin ask for: TLS 1.2 at least, and the relay checked if they say so.

    The files they name are read again when they have changed. Raises SettingsError for one that cannot be used.
    """
    files = (settings.tls_cafile, settings.tls_certfile, settings.tls_keyfile)
    states = tuple(map(_state, ("MAILDROP_TLS_CAFILE", "MAILDROP_TLS_CERTFILE", "MAILDROP_TLS_KEYFILE"), files))
    return _context(settings.tls >= 2 and settings.tls_verify, *files, states)


def _state(key: str, path: Path | None) -> tuple[int, int, int] | None:
    """What changes when the file does. Raises SettingsError for what is no file: OpenSSL would wait for a FIFO."""
    if path is None:
        return None
    try:
        status = os.stat(path)
    except OSError as error:
        raise SettingsError(f"{key}={str(path)!r}: {error.strerror}") from error
    if not stat.S_ISREG(status.st_mode):
        raise SettingsError(f"{key}={str(path)!r}: no regular file")
    return status.st_ino, status.st_size, status.st_mtime_ns


@lru_cache(maxsize=1)    # reading the authorities takes longer than sending many mails
def _context(
    verify: bool, cafile: Path | None, certfile: Path | None, keyfile: Path | None, states: tuple[object, ...]
) -> ssl.SSLContext:
    if verify:
        try:
            context = ssl.create_default_context(cafile=cafile)
        except OSError as error:    # that of ssl is one too
            raise SettingsError(f"MAILDROP_TLS_CAFILE={str(cafile)!r}: {_reason(error)}") from error
    else:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    context.minimum_version = max(context.minimum_version, ssl.TLSVersion.TLSv1_2)
    if certfile:
        try:
            context.load_cert_chain(certfile, keyfile, password=_no_passphrase)
        except (OSError, ValueError) as error:
            key = f", MAILDROP_TLS_KEYFILE={str(keyfile)!r}" if keyfile else ""
            raise SettingsError(f"MAILDROP_TLS_CERTFILE={str(certfile)!r}{key}: {_reason(error)}") from error
    return context


def _no_passphrase() -> str:    # without this, OpenSSL would ask for one at the terminal
    raise ValueError("the key must not be encrypted")


def _reason(error: Exception) -> str:
    if isinstance(error, ssl.SSLError):
        return f"no usable PEM file ({error.reason or error})"
    return getattr(error, "strerror", None) or str(error)

"""Certificates of a private authority, and of every kind that must not be believed."""

from __future__ import annotations

import ssl
import warnings
from datetime import datetime, timedelta, timezone
from functools import cache
from pathlib import Path

import trustme

NAMES = ("localhost", "127.0.0.1")    # of the relays in tests
_DAY = timedelta(days=1)

# What a relay may show instead of a good certificate, and what is wrong with it
BAD = ("of another authority", "self-signed", "expired", "not yet valid", "for another host", "name beside the point")


@cache
def authority() -> trustme.CA:
    """The one that the tests' daemons are told to believe."""
    return trustme.CA()


@cache
def another_authority() -> trustme.CA:
    return trustme.CA()


@cache
def certificate(kind: str = "good") -> trustme.LeafCert:
    """A relay's certificate: "good", "by an intermediate", or one of BAD."""
    now = datetime.now(timezone.utc)
    if kind == "good":
        return authority().issue_cert(*NAMES)
    if kind == "by an intermediate":
        return authority().create_child_ca().issue_cert(*NAMES)
    if kind == "of another authority":
        return another_authority().issue_cert(*NAMES)
    if kind == "self-signed":    # as "openssl req -x509" makes it
        alone = trustme.CA()
        return trustme.LeafCert(alone.private_key_pem.bytes(), alone.cert_pem.bytes(), [])
    if kind == "expired":
        return authority().issue_cert(*NAMES, not_before=now - 2 * _DAY, not_after=now - _DAY)
    if kind == "not yet valid":
        return authority().issue_cert(*NAMES, not_before=now + _DAY, not_after=now + 2 * _DAY)
    if kind == "for another host":
        return authority().issue_cert("elsewhere.example.org", "127.0.0.9")
    if kind == "name beside the point":    # RFC 6125 6.4.4: a common name is no host name
        return authority().issue_cert("elsewhere.example.org", common_name=NAMES[0])
    raise ValueError(kind)


@cache
def client_certificate(is_ours: bool = True) -> trustme.LeafCert:
    """One for the daemon; else one that another authority has issued."""
    return (authority() if is_ours else another_authority()).issue_cert("zope.example.org")


@cache
def server_tls_context(kind: str = "good") -> ssl.SSLContext:
    """How a relay that shows such a certificate speaks TLS."""
    return _server_context(kind)


def _server_context(kind: str = "good") -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    certificate(kind).configure_cert(context)
    return context


def outdated_tls_context(version: ssl.TLSVersion) -> ssl.SSLContext:
    """How a relay speaks TLS that knows nothing newer than ``version``. Its certificate is good."""
    context = _server_context()
    context.set_ciphers("ALL:@SECLEVEL=0")
    context.minimum_version = ssl.TLSVersion.MINIMUM_SUPPORTED
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        context.maximum_version = version
    return context


def demanding_tls_context() -> ssl.SSLContext:
    """How a relay speaks TLS that wants a certificate of the authority's from the other side. Its own is good."""
    context = _server_context()
    context.verify_mode = ssl.CERT_REQUIRED
    authority().configure_trust(context)
    return context


def write_authority(directory: Path, name: str = "ca.pem") -> Path:
    """The file that MAILDROP_TLS_CAFILE names."""
    path = directory / name
    authority().cert_pem.write_to_path(str(path))
    return path

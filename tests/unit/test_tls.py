"""Settings -> ssl context. What a relay gets to see of it is tested with real ones."""

import dataclasses
import os
import ssl

import pytest
import trustme

from maildrop import settings
from maildrop.settings import SettingsError
from maildrop.tls import client_context


def context(**changes):
    return client_context(dataclasses.replace(settings.defaults(), **changes))


@pytest.fixture
def files(tmp_path):
    """A CA, and a certificate of our own with its key."""
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    ours = ca.issue_cert("client.example.org")
    ours.cert_chain_pems[0].write_to_path(tmp_path / "cert.pem")
    ours.private_key_pem.write_to_path(tmp_path / "key.pem")
    ours.private_key_and_cert_chain_pem.write_to_path(tmp_path / "both.pem")
    return tmp_path


@pytest.mark.parametrize("tls", [2, 3])
def test_certificate_and_name_are_checked_where_tls_is_required(tls):
    made = context(tls=tls, tls_verify=True)
    assert (made.verify_mode, made.check_hostname) == (ssl.CERT_REQUIRED, True)


@pytest.mark.parametrize(("tls", "verify"), [(1, True), (1, False), (2, False), (3, False)])
def test_nothing_is_checked_where_it_is_not_wanted(tls, verify):
    made = context(tls=tls, tls_verify=verify)
    assert (made.verify_mode, made.check_hostname) == (ssl.CERT_NONE, False)


@pytest.mark.parametrize("tls", [1, 2, 3])
def test_tls_is_1_2_at_least(tls):
    assert context(tls=tls).minimum_version >= ssl.TLSVersion.TLSv1_2


def test_a_ca_file_takes_the_place_of_the_system_s(files):
    made = context(tls=2, tls_verify=True, tls_cafile=files / "ca.pem")
    assert [dict(pair for (pair,) in ca["subject"])["organizationName"] for ca in made.get_ca_certs()] == [
        f"trustme v{trustme.__version__}"
    ]


def test_a_ca_file_that_changes_is_read_again(files):
    before = context(tls=2, tls_verify=True, tls_cafile=files / "ca.pem")
    assert context(tls=2, tls_verify=True, tls_cafile=files / "ca.pem") is before
    trustme.CA().cert_pem.write_to_path(files / "new.pem")
    os.replace(files / "new.pem", files / "ca.pem")
    assert context(tls=2, tls_verify=True, tls_cafile=files / "ca.pem").get_ca_certs() != before.get_ca_certs()


def test_our_certificate_may_have_its_key_in_the_same_file_or_in_another(files):
    context(tls=2, tls_certfile=files / "both.pem")
    context(tls=2, tls_certfile=files / "cert.pem", tls_keyfile=files / "key.pem")


@pytest.mark.parametrize("name", ["missing.pem", "", "empty.pem"], ids=["missing", "directory", "no certificate"])
def test_a_ca_file_that_is_none_is_named(files, name):
    (files / "empty.pem").write_text("no certificate")
    with pytest.raises(SettingsError, match=f"MAILDROP_TLS_CAFILE='{files / name}': ."):
        context(tls=2, tls_verify=True, tls_cafile=files / name)


@pytest.mark.parametrize("key", ["tls_cafile", "tls_certfile", "tls_keyfile"])
def test_a_fifo_is_not_waited_for(tmp_path, key):
    os.mkfifo(tmp_path / "fifo")
    with pytest.raises(SettingsError, match=f"MAILDROP_{key.upper()}=.*no regular file"):
        context(tls=2, tls_verify=True, **{key: tmp_path / "fifo"})


def test_a_key_that_does_not_belong_to_the_certificate_is_named(files):
    trustme.CA().issue_cert("x.example.org").private_key_pem.write_to_path(files / "other.pem")
    with pytest.raises(SettingsError, match="MAILDROP_TLS_CERTFILE=.*cert.pem.*MAILDROP_TLS_KEYFILE=.*other.pem"):
        context(tls=2, tls_certfile=files / "cert.pem", tls_keyfile=files / "other.pem")


def test_an_encrypted_key_is_an_error_and_nobody_is_asked_for_a_passphrase(files):
    from cryptography.hazmat.primitives import serialization

    key = serialization.load_pem_private_key((files / "key.pem").read_bytes(), None)
    encrypted = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")
    )
    (files / "key.pem").write_bytes(encrypted)
    with pytest.raises(SettingsError, match="MAILDROP_TLS_CERTFILE=.*must not be encrypted"):
        context(tls=2, tls_certfile=files / "cert.pem", tls_keyfile=files / "key.pem")

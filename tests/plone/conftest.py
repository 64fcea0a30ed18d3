"""A Plone site for all tests, made once; each test module takes a copy."""

import pytest
from support.daemon import MaildropDaemon
from support.plone_site import PloneSite
from support.relay_server import RelayServer


@pytest.fixture(scope="session")
def first_site(tmp_path_factory):
    """A site that nobody starts: its database is copied."""
    directory = tmp_path_factory.mktemp("plone")
    site = PloneSite(directory / "site")
    site.create({})
    site.add_portal()
    return site


@pytest.fixture(scope="session")
def relay():
    with RelayServer() as server:
        yield server


@pytest.fixture(scope="module")
def daemon(tmp_path_factory, relay):
    with MaildropDaemon(tmp_path_factory.mktemp("daemon"), relay.port) as daemon:
        yield daemon


@pytest.fixture(scope="module")
def copied_site(tmp_path_factory, first_site, daemon):
    """A site of the module's own, with the daemon's config file as the one to choose. It is not started."""
    site = PloneSite(tmp_path_factory.mktemp("plone") / "site", first_site.password)
    site.create({"config-path-1": daemon.config})
    site.copy_database(first_site)
    return site

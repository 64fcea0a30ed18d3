"""Fixtures of the integration tests."""

import pytest

from support.postfix import Postfix


@pytest.fixture(scope="session")
def running_postfix():
    with Postfix() as server:
        yield server


@pytest.fixture
def postfix(running_postfix):
    """The server, with an empty mailbox and an empty log."""
    running_postfix.forget()
    return running_postfix

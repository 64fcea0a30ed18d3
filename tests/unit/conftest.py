"""Fixtures of the unit tests."""

import os

import pytest

from maildrop import spool


@pytest.fixture
def set_umask():
    """A function that sets the umask until the test ends."""
    before = os.umask(0o077)
    os.umask(before)
    yield os.umask
    os.umask(before)


@pytest.fixture
def spool_directory(tmp_path):
    """An empty spool with its directories."""
    directory = tmp_path / "spool"
    spool.make_spool(directory, 0o700)
    return directory

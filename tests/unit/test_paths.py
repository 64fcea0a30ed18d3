"""What is used of directories and files that other accounts may have made. Attacks by real accounts: tests/attacks."""

import os
import stat

import pytest

from maildrop import paths
from maildrop.paths import UnsafePath


def mode_of(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def world(tmp_path):
    """A directory that everybody may write to."""
    directory = tmp_path / "world"
    directory.mkdir()
    directory.chmod(0o1777)
    return directory


@pytest.mark.parametrize("umask", [0o000, 0o077, 0o777])
@pytest.mark.parametrize("mode", [0o700, 0o2770])
def test_all_that_is_missing_is_made_with_the_mode_whatever_the_umask(world, set_umask, mode, umask):
    set_umask(umask)
    paths.make_directory(world / "a" / "b", mode)
    assert (mode_of(world / "a"), mode_of(world / "a" / "b")) == (mode, mode)
    assert mode_of(world) == 0o1777


def test_a_directory_of_our_own_in_one_that_everybody_may_write_to_is_used_and_left_as_it_is(world):
    (world / "ours").mkdir()
    (world / "ours").chmod(0o777)    # as 2.3 made it
    paths.make_directory(world / "ours" / "spool", 0o700)
    assert (mode_of(world / "ours"), mode_of(world / "ours" / "spool")) == (0o777, 0o700)


def test_a_link_that_not_everybody_can_have_made_is_followed(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "relative").symlink_to("data/../data/./missing")
    (tmp_path / "absolute").symlink_to(tmp_path / "data")
    paths.make_directory(tmp_path / "relative" / "a", 0o700)
    paths.make_directory(tmp_path / "absolute" / "b", 0o700)
    assert sorted(str(path.relative_to(tmp_path)) for path in (tmp_path / "data").rglob("*")) == [
        "data/b", "data/missing", "data/missing/a",
    ]    # fmt: skip


def test_our_own_link_in_a_directory_that_everybody_may_write_to_is_not_followed(world, tmp_path):
    (world / "link").symlink_to(tmp_path)
    with pytest.raises(UnsafePath, match=rf"^{world / 'link'} is a link in a directory that everybody may write to$"):
        paths.make_directory(world / "link" / "a", 0o700)
    assert os.listdir(tmp_path) == ["world"]


def test_links_that_lead_to_each_other_are_an_error(tmp_path):
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    with pytest.raises(OSError, match="Too many levels"):
        paths.make_directory(tmp_path / "a", 0o700)


@pytest.mark.parametrize("rest", ["", "below"])
def test_a_file_in_a_directorys_place_is_an_error_that_names_it(tmp_path, rest):
    (tmp_path / "file").write_text("precious")
    with pytest.raises(NotADirectoryError, match=str(tmp_path / "file")):
        paths.make_directory(tmp_path / "file" / rest, 0o700)


def test_looking_makes_nothing(tmp_path):
    with pytest.raises(FileNotFoundError):
        paths.check(tmp_path / "a" / "b")
    assert os.listdir(tmp_path) == []
    paths.check(tmp_path)


def test_a_directory_that_another_process_makes_meanwhile_is_used(tmp_path, monkeypatch):
    really_make = os.mkdir

    def make_twice(path, mode=0o777):
        really_make(path, mode)
        really_make(path, mode)

    monkeypatch.setattr(paths.os, "mkdir", make_twice)
    paths.make_directory(tmp_path / "a", 0o700)
    assert (tmp_path / "a").is_dir()


def test_a_link_planted_between_looking_and_making_is_not_followed(world, tmp_path, monkeypatch):
    (tmp_path / "precious").mkdir(0o755)
    really_make = os.mkdir

    def make_and_lose(path, mode=0o777):
        really_make(path, mode)
        os.rmdir(path)
        os.symlink(tmp_path / "precious", path)

    monkeypatch.setattr(paths.os, "mkdir", make_and_lose)
    with pytest.raises(OSError):
        paths.make_directory(world / "a", 0o2770)
    assert mode_of(tmp_path / "precious") == 0o755


# -- files --


def test_a_file_is_made_with_its_mode_or_opened_as_it_is(world, set_umask):
    set_umask(0)
    for _ in range(2):
        descriptor = paths.open_to_write(world / "log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o640)
        os.write(descriptor, b"line\n")
        os.close(descriptor)
    assert ((world / "log").read_text(), mode_of(world / "log")) == ("line\nline\n", 0o640)


def test_a_link_that_not_everybody_can_have_made_may_stand_for_a_file(tmp_path):
    (tmp_path / "log").symlink_to("elsewhere")
    os.close(paths.open_to_write(tmp_path / "log", os.O_WRONLY | os.O_CREAT, 0o600))
    assert (tmp_path / "elsewhere").exists()


@pytest.mark.parametrize("kind", ["link", "second name", "fifo", "directory"])
def test_what_everybody_can_have_planted_is_not_written_to(world, tmp_path, kind):
    path, precious = world / "log", tmp_path / "precious"
    precious.write_text("precious")
    if kind == "link":
        path.symlink_to(precious)
    elif kind == "second name":
        os.link(precious, path)
    elif kind == "fifo":
        os.mkfifo(path)
    else:
        path.mkdir()
    before = len(os.listdir("/proc/self/fd")) if os.path.exists("/proc/self/fd") else 0
    with pytest.raises(OSError):
        paths.open_to_write(path, os.O_RDWR | os.O_CREAT, 0o600)
    assert precious.read_text() == "precious"
    assert before == (len(os.listdir("/proc/self/fd")) if before else 0)


def test_the_error_says_what_is_wrong_with_which_file(world):
    (world / "log").symlink_to("elsewhere")
    with pytest.raises(UnsafePath) as caught:
        paths.open_to_write(world / "log", os.O_RDWR | os.O_CREAT, 0o600)
    error = caught.value
    assert (error.filename, error.strerror) == (str(world / "log"), "is a link that another account may have made")
    assert not (world / "elsewhere").exists()

"""Other accounts of this machine, by their numbers alone, and a folder that they can reach."""

from __future__ import annotations

import os
import pickle
import shutil
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from support.requires import requires_root, skip_unless_ci

CHECKOUT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Account:
    """An account that need not have a name."""

    uid: int
    groups: tuple[int, ...] = ()

    def run(self, *command: object, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a command as this account to its end."""
        variables = {**os.environ, **environment}
        variables.pop("MAILDROP_CONFIG", None)
        return subprocess.run(
            [str(part) for part in command],
            capture_output=True,
            text=True,
            timeout=60,
            cwd="/",
            env=variables,
            user=self.uid,
            group=self.uid,
            extra_groups=self.groups,
        )

    def do(self, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        """Call a function in a process of this account's. Returns what it returns, raises what it raises."""
        reading, writing = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(reading)
            try:
                self._become()
                answer = pickle.dumps((True, function(*arguments, **options)))
            except BaseException as error:
                traceback.print_exc()
                try:
                    answer = pickle.dumps((False, error))
                    pickle.loads(answer)
                except Exception:
                    answer = pickle.dumps((False, RuntimeError(repr(error))))
            with os.fdopen(writing, "wb") as pipe:
                pipe.write(answer)
            os._exit(0)
        os.close(writing)
        with os.fdopen(reading, "rb") as pipe:
            answer = pipe.read()
        os.waitpid(child, 0)
        went_well, result = pickle.loads(answer)
        if not went_well:
            raise result
        return result

    def _become(self) -> None:
        os.setgroups(self.groups)
        os.setgid(self.uid)
        os.setuid(self.uid)

    def own(self, path: Path) -> Path:
        """Give a file or directory to this account, itself and not what it links to."""
        os.lchown(path, self.uid, self.uid)
        return path


ROOT = Account(0)


@cache
def python_for_all() -> str:
    """A Python that every account can run: the one of these tests may be closed to others."""
    for python in (sys.executable, os.path.realpath(sys.executable), "/usr/bin/python3", "/usr/local/bin/python3"):
        with suppress(OSError):
            if Account(12345).run(python, "-c", "import sys; sys.exit(sys.version_info < (3, 10))").returncode == 0:
                return python
    skip_unless_ci("there is no Python that all accounts may run")
    raise AssertionError("not reached")


@contextmanager
def open_directory() -> Iterator[Path]:
    """A directory of root's that all accounts can get into, with a copy of the package, which they may not reach here."""
    requires_root()
    directory = Path(tempfile.mkdtemp(prefix="maildrop-accounts-"))
    try:
        directory.chmod(0o755)
        compiled = shutil.ignore_patterns("__pycache__")
        shutil.copytree(CHECKOUT / "maildrop", directory / "package" / "maildrop", ignore=compiled)
        shutil.copy(CHECKOUT / "config", directory / "package" / "config")
        command = ["find", str(directory / "package"), "-exec", "chmod", "a+rX", "{}", "+"]
        subprocess.run(command, check=True)
        yield directory
    finally:
        shutil.rmtree(directory)


def contents(directory: Path) -> dict[str, tuple]:
    """All that is in a directory and below: kind and mode, owner, group, size and content of each."""
    found = {}
    for path in sorted([directory, *directory.rglob("*")]):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() and not path.is_symlink() else None
        found[str(path.relative_to(directory))] = (oct(status.st_mode), status.st_uid, status.st_gid, content)
    return found

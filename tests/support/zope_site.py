"""A real Zope instance on disk, served by waitress in a process of its own."""

from __future__ import annotations

import base64
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from support.ports import free_port

_BIN = Path(sys.executable).parent


class ZopeSite:
    """An instance in ``directory``. ``create()`` it once, ``run_script`` as often as needed, ``start()`` and ``stop()``.

    ``scripts``: where Zope's own are, if it is not the Zope of this environment.
    """

    def __init__(
        self, directory: Path, password: str | None = None, extra_path: tuple[Path, ...] = (), *, scripts: Path = _BIN
    ):
        self.directory = directory
        self._scripts = scripts
        self.password = password or secrets.token_urlsafe(9)
        self.port = free_port()
        self._process: subprocess.Popen[bytes] | None = None
        paths = [*map(str, extra_path), os.environ.get("PYTHONPATH", "")]
        self._environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))}

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def create(self, config_paths: dict[str, Path]) -> None:
        """Make the instance; ``config_paths`` go into zope.conf's ``<product-config maildrophost>``."""
        command = [self._scripts / "mkwsgiinstance", "-d", self.directory, "-u", f"admin:{self.password}"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=self._environment)
        ini = self.directory / "etc" / "zope.ini"
        ini.write_text(re.sub(r"(?m)^port = .*$", f"port = {self.port}", ini.read_text()))
        lines = "".join(f"  {key} {path}\n" for key, path in config_paths.items())
        with open(self.directory / "etc" / "zope.conf", "a") as conf:
            conf.write(f"\n<product-config maildrophost>\n{lines}</product-config>\n")

    def run_script(self, code: str, *arguments: str) -> str:
        """Run Python code with Zope's root object as ``app`` and return what it prints; it commits itself."""
        script = self.directory / "script.py"
        script.write_text(code)
        command = [self._scripts / "zconsole", "run", self.directory / "etc" / "zope.conf", script, *arguments]
        done = subprocess.run(command, capture_output=True, text=True, env=self._environment)
        if done.returncode:
            raise RuntimeError(done.stderr)
        return done.stdout

    def start(self) -> None:
        log = open(self.directory / "var" / "log" / "console.log", "ab")
        with log:
            self._process = subprocess.Popen(
                [self._scripts / "runwsgi", self.directory / "etc" / "zope.ini"],
                stdout=log,
                stderr=log,
                env=self._environment,
                start_new_session=True,    # Ctrl-C is for whoever runs the site, who then stops it
            )
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                break
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
                return
            except OSError:
                time.sleep(0.1)
        self.stop()
        raise RuntimeError(f"Zope does not start: {Path(log.name).read_text()[-3000:]}")

    def stop(self) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(30)
            self._process = None

    def kill(self) -> None:
        """End it as a crash does: it cannot tidy up."""
        self._process.kill()
        self._process.wait()
        self._process = None

    def get(self, path: str, login: bool = False) -> tuple[int, str]:
        """Fetch a page; status and text."""
        return self._request(urllib.request.Request(self.url + path), login)

    def post(self, path: str, fields: dict[str, str], login: bool = True) -> tuple[int, str]:
        data = urllib.parse.urlencode(fields).encode()
        return self._request(urllib.request.Request(self.url + path, data), login)

    def _request(self, request: urllib.request.Request, login: bool) -> tuple[int, str]:
        if login:
            token = base64.b64encode(f"admin:{self.password}".encode()).decode()
            request.add_header("Authorization", f"Basic {token}")
        try:
            with urllib.request.urlopen(request, timeout=60) as response:
                return response.status, response.read().decode()
        except urllib.error.HTTPError as error:
            return error.code, error.read().decode()

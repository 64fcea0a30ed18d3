"""The demonstration behind ``make run``: a Zope, the daemon and an SMTP server of its own, and a mail through all three.

``python tests/support/demo.py [--once] DIRECTORY``: with ``--once`` it ends when the mails have arrived; exit status 0 if
they did, 1 if not.
"""

from __future__ import annotations

import argparse
import mailbox
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from aiosmtpd.controller import Controller
from aiosmtpd.handlers import Mailbox

sys.path.insert(0, str(Path(__file__).parents[1]))

from maildrop.pidfile import running_pid
from support.config_file import write_config
from support.ports import free_port
from support.zope_site import ZopeSite

SCRIPTS = Path(__file__).parents[2] / "maildrop" / "bin"
PATIENCE_S = 30


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--once", action="store_true")
    parser.add_argument("directory", type=Path)
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)    # ends as cleanly as Ctrl-C
    directory = options.directory.absolute()
    if running := running_pid(directory / "maildrop" / "var" / "maildrop.pid"):
        print(f"A demonstration is running in {directory} already; its daemon is process {running}.", file=sys.stderr)
        return 1
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    try:
        return demonstrate(directory, options.once)
    except KeyboardInterrupt:
        return 0 if not options.once else 1


def demonstrate(directory: Path, once: bool) -> int:
    inbox = directory / "inbox"
    relay = Controller(Mailbox(inbox), hostname="127.0.0.1", port=free_port())
    relay.start()
    config = write_config(
        directory / "config",
        PYTHON=sys.executable,
        MAILDROP_HOME=directory / "maildrop",
        SMTP_HOST="127.0.0.1",
        SMTP_PORT=relay.port,
        MAILDROP_INTERVAL=1,
    )
    site = ZopeSite(directory / "zope")
    try:
        print("Creating a Zope instance ...", flush=True)
        site.create({"config-path-demo": config})
        site.run_script(Path(__file__).with_name("demo_content.py").read_text(), "config-path-demo")
        subprocess.run([SCRIPTS / "start_maildrop", config], check=True)
        site.start()
        arrived = all([
            send(site, inbox, "<dtml-sendmail>", "/send_by_dtml?to=jane@example.com", "Sent by a DTML Method"),
            send(site, inbox, "Script (Python)", "/send_by_script?to=jon@example.com", "Sent by a Script"),
        ])
        tell(site, directory)
        if once:
            return 0 if arrived else 1
        print("\nCtrl-C ends all of it.", flush=True)
        while True:
            time.sleep(3600)
    finally:
        site.stop()
        subprocess.run([SCRIPTS / "stop_maildrop", config], check=False)
        relay.stop(no_assert=True)


def send(site: ZopeSite, inbox: Path, way: str, path: str, subject: str) -> bool:
    """Open a page that sends a mail; whether that mail arrives."""
    print(f"\n{way}: GET {site.url}{path}", flush=True)
    status, text = site.get(path)
    print(f"  {status} {text.strip()[:200]}", flush=True)
    deadline = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline:
        for mail in mailbox.Maildir(inbox):
            if mail["Subject"] == subject:
                print("  arrived:\n" + "".join(f"    {line}\n" for line in str(mail).splitlines()), end="", flush=True)
                return True
        time.sleep(0.1)
    print("  has not arrived", flush=True)
    return False


def tell(site: ZopeSite, directory: Path) -> None:
    print(f"""
The ZMI:      {site.url}/manage   (user admin, password {site.password})
MaildropHost: {site.url}/MailHost/manage_main
Mails:        {directory / "inbox" / "new"}
Log:          {directory / "maildrop" / "var" / "maildrop.log"}
Config:       {directory / "config"}""", flush=True)


if __name__ == "__main__":
    sys.exit(main())

"""The command line ``maildropctl``: arguments -> Settings -> the rest; exit codes 0 well, 1 not, 2 usage."""

from __future__ import annotations

import argparse
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from itertools import cycle
from pathlib import Path

from maildrop import account, check, spool, wake, writers
from maildrop import settings as settings_module
from maildrop.pidfile import Holder, holder, running_pid
from maildrop.settings import Settings, SettingsError


class CommandFailed(Exception):
    """A command that could not do what it was asked for; says why."""


def main(arguments: list[str] | None = None) -> int:
    options = _parser().parse_args(arguments)
    config = Path(options.config).absolute()
    if options.command == "check":    # a config file that is wrong is one of the things it tells
        return check.main(config)
    try:
        settings = settings_module.load(config)
        if options.touches_spool and os.geteuid() == 0:
            account.become(settings)
        options.run(options, config, settings)
    except (CommandFailed, SettingsError, OSError) as error:
        print(f"Error: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="maildropctl",
        description="Control the maildrop daemon and its spool.",
        epilog=f"The config file that came with this package:\n  {settings_module.shipped_config()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,    # the script that calls this looks for --config too, and for nothing shorter
    )
    default = os.environ.get("MAILDROP_CONFIG") or str(settings_module.shipped_config())
    config_help = "the config file (default: $MAILDROP_CONFIG, else the one that came with this package)"
    parser.add_argument("-c", "--config", default=default, help=config_help)
    after_command = argparse.ArgumentParser(add_help=False)
    after_command.add_argument("-c", "--config", default=argparse.SUPPRESS, help=config_help)
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")

    for name, run, says in (
        ("start", start, "start the daemon; an error if it is already running"),
        ("stop", stop, "stop the daemon and wait until it has ended; an error if it is not running"),
        ("restart", restart, "stop the daemon if it is running, then start it"),
    ):
        command = commands.add_parser(name, parents=[after_command], help=says, description=says, allow_abbrev=False)
        command.set_defaults(run=run, touches_spool=False)

    says = "list what waits for a decision: locks that dead processes or other programs left, mails that may not be sent"
    command = commands.add_parser("queue", parents=[after_command], help=says, description=says, allow_abbrev=False)
    command.set_defaults(run=queue, touches_spool=True)

    for name, run, says in (
        ("retry", retry, "make deferred or failed mails due now; failed ones as if they had never been tried"),
        ("release", release, "take the lock of a mail away whose writer has died or is unknown: it will be sent"),
        ("delete", delete, "remove mails for good, failed ones too, and locked ones whose writer has died or is unknown"),
    ):
        command = commands.add_parser(name, parents=[after_command], help=says, description=says, allow_abbrev=False)
        command.set_defaults(run=run, touches_spool=True)
        command.add_argument("names", nargs="+", metavar="NAME", help="file name of a mail, as the log has it: NAME or failed/NAME.N")
        if run is retry:
            yes = "also those whose transaction is not known to have committed"
            command.add_argument("--yes", action="store_true", help=yes)

    says = "tell whether config file, permissions, spool and relay are fit for use; changes and sends nothing"
    commands.add_parser("check", parents=[after_command], help=says, description=says, allow_abbrev=False)

    says = "fill the spool with mails, to prove a setup: what arrives must be exactly the unlocked ones"
    make = commands.add_parser("make-emails", parents=[after_command], help=says, description=says, allow_abbrev=False)
    make.set_defaults(run=make_emails, touches_spool=True)
    make.add_argument("recipients", nargs="+", metavar="RECIPIENT", help="who gets them, in turn; ask them before")
    make.add_argument("--unlocked", type=_count, default=10, metavar="N", help="mails to be sent (default: %(default)s)")
    make.add_argument("--locked", type=_count, default=2, metavar="M", help="mails not to be sent (default: %(default)s)")
    make.add_argument("--sender", default="root@localhost", help="whom they are from (default: %(default)s)")
    return parser


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of mails")
    return int(text)


# -- the daemon --


def start(options: argparse.Namespace, config: Path, settings: Settings) -> None:
    pid = running_pid(settings.pid_file)
    if pid is not None:
        raise CommandFailed(f"maildrop daemon already started (process {pid}).")
    if settings.pid_file.exists():
        print("Warning: maildrop daemon not found, its pid file is stale.", file=sys.stderr, flush=True)
    daemon = str(Path(__file__).with_name("maildrop.py"))
    os.execv(sys.executable, [sys.executable, daemon, str(config)])


def stop(options: argparse.Namespace, config: Path, settings: Settings) -> None:
    found = holder(settings.pid_file)
    if found is None:
        raise CommandFailed("maildrop daemon already stopped.")
    pid = found.pid
    try:
        _terminate(found)
    except ProcessLookupError:
        return
    except PermissionError:
        raise CommandFailed(f"process {pid} belongs to another account") from None
    patience_s = settings.data_timeout_s + 10    # as long as it may wait for a relay that has a whole mail
    deadline = time.monotonic() + patience_s
    while running_pid(settings.pid_file) == pid:
        if time.monotonic() > deadline:
            raise CommandFailed(f"process {pid} has not ended within {patience_s:.0f} seconds")
        time.sleep(0.05)


def _terminate(daemon: Holder) -> None:
    """Send SIGTERM with no more rights than those of the pid file's owner, who can put any number there.

    Raises ProcessLookupError, PermissionError.
    """
    if daemon.uid in (0, os.geteuid()):
        os.kill(daemon.pid, signal.SIGTERM)
        return
    if os.geteuid() != 0:
        raise PermissionError
    command = ["/bin/sh", "-c", 'kill "$0"', str(daemon.pid)]
    if subprocess.run(command, user=daemon.uid, extra_groups=[], stderr=subprocess.DEVNULL).returncode:
        os.kill(daemon.pid, 0)
        raise PermissionError


def restart(options: argparse.Namespace, config: Path, settings: Settings) -> None:
    if running_pid(settings.pid_file) is not None:
        stop(options, config, settings)
    start(options, config, settings)


# -- the spool --


def queue(options: argparse.Namespace, config: Path, settings: Settings) -> None:
    for directory in settings.spools:
        locks = list(writers.locks(directory)) if directory.is_dir() else []
        alive = {name: writers.is_alive(directory, name) for name in {lock.writer for lock in locks}}
        for lock in locks:
            if alive[lock.writer] is None:
                print(f"{lock.mail}: locked, nobody knows by whom: release or delete it if you do")
            elif not alive[lock.writer]:
                print(f"{lock.mail}: locked by {lock.writer}, which has died: its Zope settles that when it starts")
        for path in sorted((directory / spool.FAILED).glob("*")):
            if spool.read_note(path, "Committed"):
                print(f"{path}: {spool.read_note(path, 'Failed')}: retry it with --yes, or delete it")


def retry(options: argparse.Namespace, config: Path, settings: Settings) -> None:
    try:
        for path, mail in _claimed(options.names, settings):
            with mail:
                if mail.is_unsettled and not options.yes:
                    raise CommandFailed(f"{path}: its transaction is not known to have committed; send it with --yes")
                print(f"{path}: due as {spool.renew(mail).name}")
    finally:
        for directory in settings.spools:
            wake.announce(directory)


def delete(options: argparse.Namespace, config: Path, settings: Settings) -> None:
    paths = [_find(name, settings) for name in options.names]
    for name, path in zip(options.names, paths, strict=True):
        if _is_locked(path):
            with _held(path):
                spool.Draft(path).discard()
        else:
            for _, mail in _claimed([name], settings):
                with mail:
                    spool.remove(mail)
        print(f"{path}: deleted")


def release(options: argparse.Namespace, config: Path, settings: Settings) -> None:
    paths = [_find(name, settings) for name in options.names]
    for path in paths:
        if not _is_locked(path):
            raise CommandFailed(f"{path}: is not locked")
    for path in paths:
        with _held(path):
            spool.Draft(path).release()
        print(f"{path}: released")
        wake.announce(path.parent, [path.name])


def _is_locked(path: Path) -> bool:
    return path.parent.name != spool.FAILED and os.path.lexists(spool.lock_path(path))


@contextmanager
def _held(path: Path) -> Iterator[None]:
    """The lock of a mail is ours to end, and nobody else settles it meanwhile. Raises CommandFailed."""
    lock = writers.lock_of(path)
    try:
        dead = writers.take(path.parent, lock.writer) if lock else None
    except writers.WriterAlive:
        raise CommandFailed(f"{path}: locked by a process that is alive, or is being settled") from None
    with dead or nullcontext():
        if not _is_locked(path):
            raise CommandFailed(f"{path}: was settled by somebody else")
        yield


def _claimed(names: list[str], settings: Settings) -> Iterator[tuple[Path, spool.SpooledMail]]:
    """The mails of these names, claimed one by one so that no daemon is sending them. Raises CommandFailed."""
    for path in [_find(name, settings) for name in names]:
        try:
            yield path, spool.claim(path, math.inf, settings.fsync)
        except (spool.SpoolBusy, spool.NotAMail) as error:
            raise CommandFailed(f"{path}: {error}") from error


def _find(name: str, settings: Settings) -> Path:
    for directory in settings.spools:
        for path in (directory / name, directory / spool.FAILED / name):
            below = path.parent in (directory, directory / spool.FAILED)
            if below and (os.path.lexists(path) or name and _is_locked(path)):
                return path
    raise CommandFailed(f"there is no mail {name} in {', '.join(map(str, settings.spools))}")


def make_emails(options: argparse.Namespace, config: Path, settings: Settings) -> None:
    spools = cycle(settings.spools)
    recipients = cycle(options.recipients)
    for directory in settings.spools:
        spool.make_spool(directory, settings.directory_mode)
    for number in range(options.unlocked + options.locked):
        locked = number >= options.unlocked
        draft = spool.Draft(next(spools) / spool.new_name(), settings.spool_mode)
        draft.write(options.sender, recipient := next(recipients), _test_mail(options.sender, recipient, number, locked))
        if not locked:
            draft.release()
    for directory in settings.spools:
        wake.announce(directory)
    print(f"{options.unlocked} unlocked and {options.locked} locked mails are in {', '.join(map(str, settings.spools))}")


def _test_mail(sender: str, recipient: str, number: int, locked: bool) -> bytes:
    subject = f"***LOCKED*** {number + 1}: must not arrive" if locked else f"unlocked {number + 1}"
    return (
        f"From: Maildrop test <{sender}>\nTo: {recipient}\nSubject: {spool.one_line(subject)}\n\n"
        "Written by maildropctl make-emails.\n"
    ).encode("utf-8", "surrogateescape")


if __name__ == "__main__":
    sys.exit(main())

"""The command line ``maildropctl``: arguments -> Settings -> ``commands``; exit codes 0 well, 1 not, 2 usage."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from maildrop import account, check, commands, spool
from maildrop import settings as settings_module
from maildrop.commands import CommandFailed
from maildrop.control import ControlError
from maildrop.durations import parse_duration
from maildrop.logfile import printable
from maildrop.queue import State
from maildrop.settings import Settings, SettingsError
from maildrop.status import UNKNOWN, Limit


def main(arguments: list[str] | None = None) -> int:
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):    # what the terminal's encoding does not have must not end us
            stream.reconfigure(errors="backslashreplace")
    options = _parser().parse_args(arguments)
    config = Path(options.config).absolute()
    if options.command == "check":    # a config file that is wrong is one of the things it tells
        return check.main(config)
    try:
        settings = settings_module.load(config)
        if options.command not in ("start", "stop", "restart"):
            if os.geteuid() == 0:
                account.become(settings)
            for directory in settings.spools:
                spool.check_spool(directory)
        status: int = options.run(options, config, settings)
        sys.stdout.flush()
        return status
    except BrokenPipeError:    # whoever read what we print has enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except KeyboardInterrupt:
        return 1
    except (CommandFailed, ControlError, SettingsError, OSError) as error:
        if options.command == "status" and _is_check(options):
            print(f"MAILDROP UNKNOWN - {printable(str(error))}")
            return UNKNOWN
        print(f"Error: {printable(str(error))}", file=sys.stderr)
        return 1


Run = Callable[[argparse.Namespace, Path, Settings], int]    # returns the exit status


class Command(NamedTuple):
    """One of the commands, as ``--help`` tells of it."""

    name: str
    run: Run | None    # None: it needs no settings
    says: str
    add_arguments: Callable[[argparse.ArgumentParser], None] = lambda parser: None


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="maildropctl",
        description="Control the maildrop daemon and its spool.",
        epilog=f"COMMAND --help tells what a command takes.\nExit status: 0 well, 1 not, 2 wrong usage.\n\n"
        f"The config file that came with this package:\n  {settings_module.shipped_config()}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,    # the script that calls this looks for --config too, and for nothing shorter
    )
    default = os.environ.get("MAILDROP_CONFIG") or str(settings_module.shipped_config())
    config_help = "the config file (default: $MAILDROP_CONFIG, else the one that came with this package)"
    parser.add_argument("-c", "--config", default=default, help=config_help)
    after_command = argparse.ArgumentParser(add_help=False)
    after_command.add_argument("-c", "--config", default=argparse.SUPPRESS, help=config_help)
    subparsers = parser.add_subparsers(required=True, metavar="COMMAND", dest="command")
    for command in COMMANDS:
        added = subparsers.add_parser(
            command.name, parents=[after_command], help=command.says, description=command.says, allow_abbrev=False
        )
        command.add_arguments(added)
        added.set_defaults(run=command.run, refuse=added.error)
    return parser


# -- their arguments --


def _status_arguments(parser: argparse.ArgumentParser) -> None:
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--json", action="store_true", help="as a JSON object")
    how.add_argument("--prometheus", action="store_true", help="in Prometheus's text format, for node_exporter's textfile folder")
    check = parser.add_argument_group(
        "as a Nagios plugin",
        "With one of these, one line is printed, and the exit status is 0 for OK, 1 for WARNING, 2 for CRITICAL, 3 for UNKNOWN. "
        "MAX is the limit above which it is CRITICAL, or two with a comma between them: WARNING,CRITICAL.",
    )
    check.add_argument("--max-age", type=_age_limit, metavar="MAX", help="of the oldest mail that waits: 90s, 15m, 2h, 3d")
    check.add_argument("--max-size", type=_count_limit, metavar="MAX", help="mails that wait")
    check.add_argument("--max-failed", type=_count_limit, metavar="MAX", help="failed mails that nobody has looked after")


def _is_check(options: argparse.Namespace) -> bool:
    return any((options.max_age, options.max_size, options.max_failed))


def _queue_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="only these mails")
    _filter_arguments(parser)
    parser.add_argument("-n", "--limit", type=_count, metavar="N", help="at most so many")
    parser.add_argument("--newest", action="store_true", help="the newest first, instead of the oldest")
    shape = "count recipients by domain and age in minutes instead, as qshape does; without --state, of what is to be sent"
    parser.add_argument("--shape", action="store_true", help=shape)
    parser.add_argument("--json", action="store_true", help="as a JSON array, a line for each mail")


def _show_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="file name of a mail, as the log has it: NAME or failed/NAME.N")
    parser.add_argument("--body", action="store_true", help="the body too")
    parser.add_argument("--json", action="store_true", help="as a JSON object")


def _choice_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="*", metavar="NAME", help="file name of a mail, as the log has it: NAME or failed/NAME.N")
    _filter_arguments(parser)
    parser.add_argument("--all", action="store_true", help="all of them")


def _retry_arguments(parser: argparse.ArgumentParser) -> None:
    _choice_arguments(parser)
    unsettled = "also those whose transaction is not known to have committed"
    parser.add_argument("-y", "--yes", action="store_true", help=unsettled)


def _delete_arguments(parser: argparse.ArgumentParser) -> None:
    _choice_arguments(parser)
    parser.add_argument("-y", "--yes", action="store_true", help="do not ask")


def _filter_arguments(parser: argparse.ArgumentParser) -> None:
    says = "Those that fit all of what is given. PATTERN is one as the shell has them: '*@example.org'."
    chosen = parser.add_argument_group("which mails", says)
    chosen.add_argument("--sender", default="", metavar="PATTERN", help="by the sender's address")
    chosen.add_argument("--recipient", default="", metavar="PATTERN", help="by the address of one of the recipients")
    chosen.add_argument("--subject", default="", metavar="TEXT", help="by text in the subject")
    states = f"{', '.join(state.value for state in State)}; may be repeated"
    chosen.add_argument("--state", action="append", default=[], type=_state, metavar="STATE", help=states)
    chosen.add_argument("--older-than", default=0.0, type=_duration, metavar="AGE", help="90s, 15m, 2h, 3d")


def _log_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("about", nargs="?", default="", metavar="TEXT", help="only lines with it: a mail's name, an address")
    parser.add_argument(
        "-n", "--lines", type=_count, default=20, metavar="N", help="so many of the last ones (default: %(default)s)"
    )
    parser.add_argument("-f", "--follow", action="store_true", help="go on with those to come; Ctrl-C ends it")
    parser.add_argument("--json", action="store_true", help="as a JSON array; with --follow an object a line")


def _make_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("recipients", nargs="+", metavar="RECIPIENT", help="who gets them, in turn; ask them before")
    parser.add_argument("--unlocked", type=_count, default=10, metavar="N", help="mails to be sent (default: %(default)s)")
    parser.add_argument("--locked", type=_count, default=2, metavar="M", help="mails not to be sent (default: %(default)s)")
    parser.add_argument("--sender", default="root@localhost", help="whom they are from (default: %(default)s)")


def _chosen(run: Run) -> Run:
    """A command that does something to mails: it has to be told to which."""

    def run_with_a_choice(options: argparse.Namespace, config: Path, settings: Settings) -> int:
        described = [options.sender, options.recipient, options.subject, options.state, options.older_than, options.all]
        if not options.names and not any(described):
            options.refuse("say which mails: NAME, --sender, --recipient, --subject, --state, --older-than or --all")
        if options.names and any(described):
            options.refuse("names of mails and other ways to choose them do not go together")
        return run(options, config, settings)

    return run_with_a_choice


# -- their values --


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of mails")
    return int(text)


def _duration(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


def _state(text: str) -> State:
    try:
        return State(text.lower())
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text!r} is none of {', '.join(state.value for state in State)}") from None


def _age_limit(text: str) -> Limit:
    return _limit(text, _duration)


def _count_limit(text: str) -> Limit:
    return _limit(text, _count)


def _limit(text: str, value: Callable[[str], float]) -> Limit:
    *warning, critical = map(value, text.split(","))
    if len(warning) > 1 or warning and warning[0] > critical:
        raise argparse.ArgumentTypeError(f"{text!r} is neither MAX nor WARNING,CRITICAL")
    return Limit(critical, *warning)


COMMANDS = (
    Command("start", commands.start, "start the daemon; an error if it is already running"),
    Command("stop", commands.stop, "stop the daemon and wait until it has ended; an error if it is not running"),
    Command("restart", commands.restart, "stop the daemon if it is running, then start it"),
    Command(
        "status",
        commands.show_status,
        "tell how daemon and spools are, at a glance; exit status 1 if the daemon is not running",
        _status_arguments,
    ),
    Command("queue", commands.show_queue, "list the mails in the spools, the oldest first", _queue_arguments),
    Command("show", commands.show, "show a mail: envelope and header fields", _show_arguments),
    Command(
        "retry",
        _chosen(commands.retry),
        "make deferred or failed mails due now, as if they had never been tried",
        _retry_arguments,
    ),
    Command(
        "release",
        _chosen(commands.release),
        "take the lock of mails away whose writer has died or is unknown: they will be sent",
        _choice_arguments,
    ),
    Command(
        "delete",
        _chosen(commands.delete),
        "remove mails for good, failed and orphaned ones too; asks first",
        _delete_arguments,
    ),
    Command("flush", commands.flush, "make all deferred mails due now"),
    Command("check", None, "tell whether config file, permissions, spool and relay are fit for use; changes and sends nothing"),
    Command("log", commands.show_log, "show the last lines of the daemon's log", _log_arguments),
    Command(
        "make-emails",
        commands.make_emails,
        "fill the spool with mails, to prove a setup: what arrives must be exactly the unlocked ones",
        _make_arguments,
    ),
)


if __name__ == "__main__":
    sys.exit(main())

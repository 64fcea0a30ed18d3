"""maildropctl status, queue, show and log, by the real script."""

import json
import os
import re
import signal
import subprocess
import time

import jsonschema
import pytest
from prometheus_client.parser import text_string_to_metric_families
from support import json_schemas
from support.daemon import SCRIPTS, MaildropDaemon, run_script, wait_until
from support.ports import free_port
from support.relay_server import RelayServer
from support.terminals import run_on_terminal

from maildrop import spool
from maildrop.ctl import COMMANDS
from maildrop.queue import State

HOUR = 3600
README = SCRIPTS.parents[1] / "README.txt"


@pytest.fixture
def site(tmp_path):
    """A home with an empty spool, and no daemon running."""
    site = MaildropDaemon(tmp_path, relay_port=free_port())
    spool.make_spool(site.spool, 0o700)
    return site


def ctl(site, *arguments):
    return run_script("maildropctl", "--config", site.config, *arguments)


def output(site, *arguments):
    result = ctl(site, *arguments)
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


def checked_json(site, schema, *arguments, status=0):
    result = ctl(site, *arguments, "--json")
    assert (result.returncode, result.stderr) == (status, "")
    value = json.loads(result.stdout)
    jsonschema.Draft202012Validator(schema).validate(value)
    return value


def put(path, notes=b"", to=b"ann@example.org", message=b"Subject: hello\n\nbody\n", due_in_s=-10.0):
    path.write_bytes(b"##To:" + to + b"\n##From:zoe@example.org\n" + notes + message)
    os.utime(path, (time.time() + due_in_s,) * 2)
    return path


@pytest.fixture
def one_of_each(site):
    """Mails in each state, in the order of their age."""
    notes = b"##Queued:2026-01-02T00:00:00+00:00\n##Attempts:2\n##Last-Reply:451 4.3.0 try later\n"
    mails = [
        put(site.spool / "20260101T000000.000000-00000001"),
        put(site.spool / "20260102T000000.000000-00000002", notes, b"bob@example.com, eve@example.org", due_in_s=HOUR),
        put(site.spool / "20260103T000000.000000-00000003"),
        put(site.spool / "failed" / "20260104T000000.000000-00000004.1-abc", b"##Attempts:1\n##Failed:550 no\n"),
    ]
    spool.lock_path(mails[2]).touch()
    mails.append(site.spool / "notes.txt")
    mails[-1].write_text("no mail")
    return mails


NONE = {state.value: 0 for state in State}
STATES = ["due", "deferred", "locked", "failed", "unusable"]


def test_the_readmes_table_has_all_commands_and_no_others():
    table = README.read_text().partition("\nOperating\n=")[2].split("=====\n")[2]
    first_column = [line[:31] for line in table.splitlines() if line.startswith("``")]
    listed = re.findall(r"``([a-z-]+)[^`]*``", " ".join(first_column))
    assert sorted(listed) == sorted(command.name for command in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.name)
def test_help_tells_what_each_command_takes(site, command):
    assert command.name in output(site, "--help")
    assert command.says.split(";")[0].split(",")[0][:30] in output(site, command.name, "--help").replace("\n", " ")


# -- status --


def test_status_tells_of_a_daemon_that_runs_and_what_it_has_done(tmp_path):
    with RelayServer() as relay, MaildropDaemon(tmp_path, relay.port) as daemon:
        relay.replies |= {"RCPT no@example.org": "550 5.1.1 no", "RCPT later@example.org": "451 4.3.0 later"}
        daemon.add_mail("ann@example.org", "jo@example.org")
        daemon.add_mail("no@example.org", "later@example.org")
        daemon.wait_until(lambda: len(daemon.failed()) == 1 and len(daemon.waiting()) == 1)

        def told():
            return checked_json(daemon, json_schemas.STATUS, "status")

        wait_until(lambda: sum(told()["recipients"]["total"].values()) == 4)
        found = told()
        assert (found["running"], found["pid"]) == (True, daemon.pid)
        counted = {"delivered": 2, "deferred": 1, "failed": 1}
        assert found["recipients"] == {"last_hour": counted, "last_day": counted, "total": counted}
        assert found["queue"] == {**NONE, "deferred": 1, "failed": 1}
        assert found["oldest"]["name"] == daemon.waiting()[0]
        assert found["last_pass"]["ended"] and (found["outage"], found["last_error"]) == (None, None)
        text = output(daemon, "status")
        assert re.match(rf"daemon:     running since [\d/]+ [\d:]+ \(process {daemon.pid}\)\n", text)
        assert "last hour:  2 delivered, 1 deferred, 1 failed\n" in text
        assert "mails:      0 due, 1 deferred, 0 locked, 0 orphaned, 1 failed, 0 unusable\n" in text


def test_status_tells_of_an_outage_and_of_its_end(tmp_path):
    port = free_port()
    with MaildropDaemon(tmp_path, port) as daemon:
        daemon.add_mail("ann@example.org")
        wait_until(lambda: checked_json(daemon, json_schemas.STATUS, "status")["outage"])
        assert "relay:      out of reach since" in output(daemon, "status")
        assert ctl(daemon, "status", "--max-size", "9").stdout.startswith("MAILDROP WARNING - the relay has been out of reach")
        with RelayServer(port=port):
            wait_until(lambda: not checked_json(daemon, json_schemas.STATUS, "status")["outage"])
            found = checked_json(daemon, json_schemas.STATUS, "status")
        assert found["last_error"]["text"].startswith("Connection error: ")


def test_without_a_daemon_status_says_so_and_is_not_well(site, one_of_each):
    result = ctl(site, "status")
    assert result.returncode == 1
    assert result.stdout.startswith("daemon:     not running\nlast pass:  none\n")
    found = checked_json(site, json_schemas.STATUS, "status", status=1)
    assert (found["running"], found["pid"], found["since"]) == (False, None, None)
    assert found["queue"] == NONE | dict.fromkeys(STATES, 1)
    assert found["oldest"]["name"] == one_of_each[0].name


CHECKS = [
    (["--max-age", "2h"], 0, "OK - waiting: 1, failed: 0"),
    (["--max-age", "0"], 2, "CRITICAL - oldest: "),
    (["--max-age", "0,2h"], 1, "WARNING - oldest: "),
    (["--max-size", "1"], 0, "OK - waiting: 1, failed: 0"),
    (["--max-size", "0"], 2, "CRITICAL - waiting: 1"),
    (["--max-size", "0,1", "--max-failed", "0"], 1, "WARNING - waiting: 1"),
    (["--max-failed", "0"], 0, "OK - waiting: 1, failed: 0"),
]


def test_with_limits_status_is_a_nagios_plugin(site):
    with site:
        put(site.spool / spool.new_name(), due_in_s=HOUR)
        for limits, status, said in CHECKS:
            result = ctl(site, "status", *limits)
            assert (result.returncode, result.stderr) == (status, "")
            assert result.stdout.startswith(f"MAILDROP {said}")
            assert re.fullmatch(r".* \| age=\d+s waiting=1 failed=0\n", result.stdout)
        put(site.spool / "failed" / f"{spool.new_name()}.1")
        assert ctl(site, "status", "--max-failed", "0").returncode == 2
        assert ctl(site, "status", "--max-failed", "0,1").returncode == 1


def test_a_daemon_that_does_not_run_is_critical_for_nagios(site):
    result = ctl(site, "status", "--max-size", "100")
    assert (result.returncode, result.stdout.partition(" |")[0]) == (2, "MAILDROP CRITICAL - the daemon is not running")


def test_what_cannot_be_told_is_unknown_to_nagios(site):
    site.config.write_text('MAILDROP_HOME="relative"\n')
    result = ctl(site, "status", "--max-size", "100")
    assert (result.returncode, result.stdout.partition(" - ")[0]) == (3, "MAILDROP UNKNOWN")


@pytest.mark.parametrize("limit", ["--max-age=soon", "--max-size=-1", "--max-failed=3,2", "--max-size=1,2,3", "--max-size="])
def test_limits_that_cannot_be_understood_are_wrong_usage(site, limit):
    assert ctl(site, "status", limit).returncode == 2


def test_prometheus_can_read_what_it_is_given(site, one_of_each):
    with site:
        wait_until(lambda: checked_json(site, json_schemas.STATUS, "status")["last_pass"]["ended"])
        families = {family.name: family for family in text_string_to_metric_families(output(site, "status", "--prometheus"))}
        samples = {
            (sample.name, sample.labels.get("state") or sample.labels.get("outcome")): sample.value
            for family in families.values()
            for sample in family.samples
        }
        labels = {sample.labels["config"] for family in families.values() for sample in family.samples}
        assert labels == {str(site.config)}
        assert samples["maildrop_up", None] == 1
        assert {state: samples["maildrop_mails", state] for state in ("locked", "failed", "unusable")} == dict.fromkeys(
            ("locked", "failed", "unusable"), 1
        )
        assert samples["maildrop_recipients_total", "delivered"] == 0
        assert families["maildrop_recipients"].type == "counter"
        assert abs(samples["maildrop_last_pass_timestamp_seconds", None] - time.time()) < 3600
        assert samples["maildrop_oldest_mail_age_seconds", None] > HOUR
    stopped = output(site, "status", "--prometheus")
    assert f'maildrop_up{{config="{site.config}"}} 0\n' in stopped


# -- queue --


def test_queue_lists_a_line_for_each_mail_with_tabs_between_its_columns(site, one_of_each):
    lines = [line.split("\t") for line in output(site, "queue").splitlines()]
    assert [line[1] for line in lines] == STATES
    assert lines[2][-1] == "nobody knows by whom: release or delete it if you do"
    assert [line[0] for line in lines] == [str(path.relative_to(site.spool)) for path in one_of_each]
    size = str(one_of_each[1].stat().st_size)
    assert lines[1][1:5] == ["deferred", "2026-01-02T00:00:00+00:00", size, "2"]
    assert lines[1][6:] == ["zoe@example.org", "bob@example.com,eve@example.org", "hello", "451 4.3.0 try later"]
    assert lines[3][5:] == ["-", "zoe@example.org", "ann@example.org", "hello", "550 no"]
    assert lines[4][6:] == ["?", "?", "", "does not begin with ##To:"]


def test_queue_as_json_has_the_fields_of_the_readme(site, one_of_each):
    found = checked_json(site, json_schemas.QUEUE, "queue")
    assert [mail["state"] for mail in found] == STATES
    assert found[1]["recipients"] == ["bob@example.com", "eve@example.org"]
    operating = README.read_text()
    assert [field for field in found[0] if f"``{field}``" not in operating] == []


def test_an_empty_queue_is_an_empty_list(site):
    assert checked_json(site, json_schemas.QUEUE, "queue") == []
    assert output(site, "queue") == ""


@pytest.mark.parametrize(
    ("options", "states"),
    [
        ("--state failed --state due", ["due", "failed"]),
        ("--recipient bob@*", ["deferred"]),
        ("--sender zoe@example.org --older-than 1w", ["due", "deferred", "locked", "failed"]),
        ("--subject HELL -n 2", ["due", "deferred"]),
        ("--newest -n 2", ["unusable", "failed"]),
        ("--state unusable", ["unusable"]),
        ("20260102T000000.000000-00000002 notes.txt", ["deferred", "unusable"]),
    ],
)
def test_queue_lists_only_what_is_asked_for(site, one_of_each, options, states):
    assert [mail["state"] for mail in checked_json(site, json_schemas.QUEUE, "queue", *options.split())] == states


def test_queue_shape_counts_by_domain_and_age(site, one_of_each):
    found = checked_json(site, json_schemas.SHAPE, "queue", "--shape")
    assert [(line["domain"], line["total"], line["ages"]["1280+"]) for line in found] == [
        ("TOTAL", 4, 4),
        ("example.org", 3, 3),
        ("example.com", 1, 1),
    ]
    assert output(site, "queue", "--shape", "--state", "failed").splitlines() == [
        "TOTAL\t1\t" + "0\t" * 9 + "1",
        "example.org\t1\t" + "0\t" * 9 + "1",
    ]


def test_queue_of_a_spool_that_cannot_be_read_is_an_error(site):
    site.configure(MAILDROP_SPOOL=site.config)
    result = ctl(site, "queue")
    assert (result.returncode, result.stderr.partition(":")[0]) == (1, "Error")


def test_who_has_read_enough_gets_no_traceback(site):
    for number in range(3000):
        put(site.spool / f"20260101T000000.000000-{number:08x}")
    command = f"{SCRIPTS}/maildropctl -c {site.config} queue | head -n 1"
    done = subprocess.run(["sh", "-c", command], capture_output=True, text=True, timeout=60)
    assert (done.stdout.count("\n"), done.stderr) == (1, "")


# -- show --

ODD = b"Subject: =?utf-8?q?=1B[31mred?= \x1b]0;title\x07\nX-Long: a\n b\n\nbody \x1b[2J\xff\n\tend\x9b31m"


def test_show_tells_envelope_and_header_and_the_body_on_request(site, one_of_each):
    name = one_of_each[1].name
    text = output(site, "show", name)
    assert f"name:       {one_of_each[1]}\nstate:      deferred, next attempt at " in text
    assert "recipient:  bob@example.com\nrecipient:  eve@example.org\nattempts:   2\nreply:      451 4.3.0 try later\n" in text
    assert text.endswith("\n\nSubject: hello\n")
    assert output(site, "show", name, "--body") == text + "\nbody\n"


def test_nothing_of_a_mail_gets_to_the_terminal_that_it_would_obey(site):
    path = put(site.spool / "\x1b[31mname", message=ODD, to=b"\x1b[31m <ann@example.org>")
    for command in (["show", path.name, "--body"], ["queue"], ["log"], ["queue", "--shape"]):
        status, shown = run_on_terminal([SCRIPTS / "maildropctl", "-c", site.config, *command], NO_COLOR="1")
        assert status == 0
        assert re.sub(r"[\r\n]", "", shown).isprintable()


def test_show_as_json(site, one_of_each):
    put(one_of_each[1], message=ODD)
    found = checked_json(site, json_schemas.SHOW, "show", one_of_each[1].name, "--body")
    assert found["header"] == [["Subject", r"\x1b[31mred \x1b]0;title\x07"], ["X-Long", "a b"]]
    assert found["envelope"][0] == ["To", "ann@example.org"]
    assert found["body"] == "body \\x1b[2J\u00ff\n        end\\x9b31m"
    assert checked_json(site, json_schemas.SHOW, "show", one_of_each[3].name)["body"] is None


def test_what_is_no_mail_or_not_there_cannot_be_shown(site, one_of_each):
    assert "does not begin with ##To:" in ctl(site, "show", "notes.txt").stderr
    result = ctl(site, "show", one_of_each[1].name[:-1] + "9")
    assert result.returncode == 1
    assert f"did you mean {one_of_each[1].name}" in result.stderr


# -- log --

LOG = [
    "### Started at 2026/11/22 14:00:05...",
    'OK\t ann@example.org,jo@example.org\tNAME-1 id=<1@x> reply="250 2.0.0 Ok" 0.012s',
    "BAD: 451 4.3.0 try later\t bob@example.org\tNAME-2 attempt=2 next=2026/11/22 14:10:05",
    "FATAL: 550 5.1.1 no such user\t eve@example.org\tNAME-3 kept as failed/NAME-3.1",
    "!!!!! Connection error at 2026/11/22 14:00:06\t refused",
    "### Finished at 2026/11/22 14:00:06",
]


@pytest.fixture
def log(site):
    site.log_file.parent.mkdir(parents=True, exist_ok=True)
    site.log_file.write_text("\n".join(LOG) + "\n")
    return site.log_file


def test_log_shows_the_last_lines(site, log):
    assert output(site, "log").splitlines() == LOG
    assert output(site, "log", "-n", "2").splitlines() == LOG[-2:]
    log.write_text("".join(f"line {number}\n" for number in range(100_000)))
    assert output(site, "log").splitlines() == [f"line {number}" for number in range(99_980, 100_000)]


def test_log_shows_what_is_about_a_mail_or_an_address(site, log):
    assert output(site, "log", "NAME-2").splitlines() == [LOG[2]]
    assert output(site, "log", "EVE@example.org").splitlines() == [LOG[3]]
    assert output(site, "log", "-n", "1", "example.org").splitlines() == [LOG[3]]


def test_log_as_json_takes_the_lines_apart(site, log):
    found = checked_json(site, json_schemas.LOG, "log")
    assert [line["outcome"] for line in found] == [None, "delivered", "deferred", "failed", "trouble", None]
    assert found[1] == {
        "text": LOG[1],
        "outcome": "delivered",
        "recipients": ["ann@example.org", "jo@example.org"],
        "mail": "NAME-1",
        "reply": None,
    }
    assert (found[2]["mail"], found[2]["reply"]) == ("NAME-2", "451 4.3.0 try later")


def test_without_a_log_there_are_no_lines(site):
    assert output(site, "log") == ""


def test_log_follows_what_the_daemon_writes_also_when_the_log_is_moved_away(tmp_path):
    seen = tmp_path / "seen"
    with RelayServer() as relay, MaildropDaemon(tmp_path, relay.port) as daemon:
        first = daemon.add_mail("ann@example.org").name
        daemon.wait_until_empty()
        with seen.open("wb") as stream:
            command = [SCRIPTS / "maildropctl", "-c", daemon.config, "log", "--follow", "--json", "-n", "3", "example.org"]
            process = subprocess.Popen(command, stdout=stream, stderr=subprocess.STDOUT)
        try:
            wait_until(lambda: first in seen.read_text())
            second = daemon.add_mail("jo@example.org").name
            wait_until(lambda: second in seen.read_text())
            daemon.wait_until_empty()
            daemon.log_file.rename(tmp_path / "moved")
            third = daemon.add_mail("eve@example.org").name
            wait_until(lambda: third in seen.read_text())
        finally:
            process.send_signal(signal.SIGINT)
            assert process.wait(20) == 1
    lines = [json.loads(line) for line in seen.read_text().splitlines()]
    assert [line["mail"] for line in lines] == [first, second, third]


# -- on a terminal --


def on_terminal(site, *arguments, **how):
    return run_on_terminal([SCRIPTS / "maildropctl", "-c", site.config, *arguments], **how)


def test_on_a_terminal_the_queue_is_a_table_with_colours_that_fits(site, one_of_each):
    status, shown = on_terminal(site, "queue", columns=100)
    assert status == 0
    assert re.search("\033\\[1mNAME +STATE +AGE", shown) and "\033[31mfailed/" in shown
    plain = re.sub("\033\\[[0-9;]*m", "", shown).splitlines()
    assert max(map(len, plain)) <= 100
    assert plain[-1] == "5 of 5 mails"
    at = plain[0].index("STATE")
    assert [line[at:].split()[0] for line in plain[1:-1] if not line.startswith(" ")] == STATES
    assert "    hello - 451 4.3.0 try later" in plain


@pytest.mark.parametrize("environment", [{"NO_COLOR": "1"}, {"TERM": "dumb"}])
def test_without_colours_the_table_has_none(site, one_of_each, environment):
    assert "\033" not in on_terminal(site, "queue", **environment)[1]
    assert "\033" not in on_terminal(site, "status", **environment)[1]


def test_on_a_terminal_status_and_log_have_colours(site, log):
    assert "\033[31mnot running\033[0m" in on_terminal(site, "status")[1]
    assert "\033[32mOK" in on_terminal(site, "log")[1]


def test_long_work_has_a_progress_bar_on_a_terminal_that_goes_when_it_is_done(site):
    for number in range(3000):
        put(site.spool / f"20260101T000000.000000-{number:08x}", due_in_s=HOUR)
    status, shown = on_terminal(site, "retry", "--all")
    assert status == 0
    assert re.search(r"\rretry \[#*\.+\] \d+/3000, \d+s left", shown)
    assert shown.endswith("\r\033[K3000 mails: due\r\n")

"""The real daemon: TLS, certificates and logins, with a real Postfix and with relays whose mind changes."""

import os
import re
import signal
import stat
from contextlib import suppress
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
    load_pem_private_key,
)

from support.certificates import (
    BAD,
    certificate,
    client_certificate,
    demanding_tls_context,
    server_tls_context,
    write_authority,
)
from support.config_file import SHIPPED
from support.daemon import MaildropDaemon, process_runs, run_script, wait_until
from support.delivering import DeliverySite
from support.requires import requires_own_address
from support.scripted_relay import ScriptedRelay

ANN, BOB = "ann@example.org", "bob@example.org"
USER, TOKEN = "zope@example.org", "ya29.a-token-that-nobody-sees"
STARTTLS, IMPLICIT = 2, 3
WAYS = pytest.mark.parametrize("tls", [STARTTLS, IMPLICIT], ids=["STARTTLS", "implicit TLS"])
CONFIG_OF_2_3 = """\
PYTHON="/usr/bin/python"
MAILDROP_HOME="/tmp/maildrop"
SMTP_HOST="localhost"
SMTP_PORT=25
MAILDROP_INTERVAL=120
DEBUG=0
DEBUG_RECEIVER=""
MAILDROP_BATCH=0
MAILDROP_TLS=0
MAILDROP_LOGIN=""
MAILDROP_PASSWORD=""
WAIT_INTERVAL=0.0
ADD_MESSAGEID=0
SUPERVISED_DAEMON=0
"""


def for_postfix(postfix, service, tls, **values):
    """Keys of a config file for a service of Postfix, with its login."""
    return {
        "SMTP_HOST": "localhost",
        "SMTP_PORT": postfix.ports[service, tls == IMPLICIT],
        "MAILDROP_TLS": tls,
        "MAILDROP_LOGIN": postfix.login,
        "MAILDROP_PASSWORD": postfix.password,
        **values,
    }


def site_for(postfix, directory, service, tls, **values):
    """A mail, and what sends it in one pass."""
    values = for_postfix(postfix, service, tls, **values)
    site = DeliverySite(directory, values.pop("SMTP_PORT"), **values)
    site.add_mail(ANN)
    return site


def daemon_for(postfix, directory, service, tls, **values):
    """A daemon that knows Postfix's login and authority, not yet started."""
    values = for_postfix(postfix, service, tls, MAILDROP_TLS_CAFILE=write_authority(directory), **values)
    return MaildropDaemon(directory, values.pop("SMTP_PORT"), **values)


def arrives(sender, postfix):
    """The mail, which a pass sends, or a daemon that runs."""
    if isinstance(sender, DeliverySite):
        sender.run_pass()
        assert sender.mails() == {} and sender.outages() == [], sender.told()
    else:
        with sender:
            sender.wait_until_empty()
    wait_until(postfix.delivered)
    [mail] = postfix.delivered()
    return mail


def stays(site, postfix, told):
    """The only line in which the log says why, after two passes that leave the mail as it is."""
    before = site.mails()
    site.run_pass()
    site.run_pass()
    assert site.mails() == before
    assert site.failed() == []
    postfix.wait_for_log(": disconnect from ", times=2)
    assert " auth=" not in postfix.read_log()    # of what the clients said, in the lines that tell of their end
    assert postfix.delivered() == []
    [line] = site.outages()
    assert told in line
    return line


def runs_in_vain(daemon, sessions, mail, told):
    """The only line in which the log says why, after three sessions of the daemon that leave the mail as it is."""
    before = mail.read_bytes(), mail.stat().st_mtime
    with daemon:
        daemon.wait_until(lambda: sessions() >= 3)
        daemon.wait_until(daemon.outages)
    assert (mail.read_bytes(), mail.stat().st_mtime) == before
    assert daemon.failed() == []
    [line] = daemon.outages()
    assert told in line
    return line


# -- certificates --


@WAYS
def test_mail_leaves_over_tls_with_a_login(tls, tmp_path, postfix):
    daemon = daemon_for(postfix, tmp_path, "good", tls)
    daemon.add_mail(ANN)
    assert b"with ESMTPSA id" in arrives(daemon, postfix)    # RFC 3848: S for TLS, A for the login
    assert daemon.outages() == []


@WAYS
@pytest.mark.parametrize("mechanism", ["PLAIN", "LOGIN", "CRAM-MD5"])
def test_login_works_with_the_only_mechanism_there_is(mechanism, tls, tmp_path, postfix):
    assert b"with ESMTPSA id" in arrives(site_for(postfix, tmp_path, mechanism, tls), postfix)
    postfix.wait_for_log(f"sasl_method={mechanism}, sasl_username={postfix.login}")
    postfix.wait_for_log(" auth=1 ")


def test_a_login_that_is_not_ascii_goes_out_as_utf_8(tmp_path):
    with ScriptedRelay(login=("zöe", "pässwörd"), mechanisms="LOGIN PLAIN") as relay:
        site = DeliverySite(tmp_path, relay.port, MAILDROP_LOGIN="zöe", MAILDROP_PASSWORD="pässwörd")
        site.add_mail(ANN)
        site.run_pass()
    assert (len(relay.accepted), relay.logins) == (1, ["PLAIN"])


def test_a_login_that_is_not_ascii_is_said_to_be_where_the_relay_takes_no_other(tmp_path):
    with ScriptedRelay(login=("zöe", "pässwörd"), mechanisms="LOGIN") as relay:
        site = DeliverySite(tmp_path, relay.port, MAILDROP_LOGIN="zöe", MAILDROP_PASSWORD="pässwörd")
        site.add_mail(ANN)
        site.run_pass()
    assert not relay.accepted
    assert "login and password have to be ASCII, as the relay does not offer AUTH PLAIN" in site.told()


@WAYS
def test_certificate_for_an_address_is_good_for_that_address(tls, tmp_path, postfix):
    arrives(site_for(postfix, tmp_path, "good", tls, SMTP_HOST="127.0.0.1"), postfix)


@WAYS
@pytest.mark.parametrize("kind", BAD)
def test_neither_mail_nor_login_leaves_where_the_certificate_cannot_be_believed(kind, tls, tmp_path, postfix):
    line = stays(site_for(postfix, tmp_path, kind, tls), postfix, "TLS unavailable")
    reason = {"expired": "expired", "not yet valid": "not yet valid", "for another host": "localhost",
              "name beside the point": "localhost", "self-signed": "self-signed"}
    assert reason.get(kind, "issuer certificate") in line


@WAYS
def test_authorities_of_the_system_do_not_vouch_for_a_private_one(tls, tmp_path, postfix):
    stays(site_for(postfix, tmp_path, "good", tls, MAILDROP_TLS_CAFILE=""), postfix, "TLS unavailable")


@WAYS
@pytest.mark.parametrize("kind", BAD)
def test_any_certificate_will_do_where_none_is_asked_for(kind, tls, tmp_path, postfix):
    arrives(site_for(postfix, tmp_path, kind, tls, MAILDROP_TLS_VERIFY=0), postfix)


def test_authority_that_is_replaced_is_believed_without_a_restart(tmp_path):
    authorities = tmp_path / "authorities.pem"
    certificate("self-signed").cert_chain_pems[0].write_to_path(str(authorities))
    with ScriptedRelay(tls=True) as relay:
        daemon = MaildropDaemon(tmp_path, relay.port, MAILDROP_TLS=2, MAILDROP_TLS_CAFILE=authorities)
        daemon.add_mail(ANN)
        with daemon:
            daemon.wait_for_log("!!!!! TLS unavailable at")
            os.replace(write_authority(tmp_path), authorities)
            daemon.wait_until_empty()
    assert len(relay.accepted) == 1


def test_certificate_of_an_intermediate_authority_is_good_where_that_one_is_shown(tmp_path):
    with ScriptedRelay(implicit_tls=True, tls_context=server_tls_context("by an intermediate")) as relay:
        site = DeliverySite(tmp_path, relay.port, MAILDROP_TLS=3)
        site.add_mail(ANN)
        site.run_pass()
    assert len(relay.accepted) == 1


@WAYS
@pytest.mark.parametrize("files", [1, 2], ids=["key in the same file", "key in its own file"])
def test_relay_that_asks_for_a_certificate_gets_ours(files, tls, tmp_path, postfix):
    ours = client_certificate()
    both, chain, key = tmp_path / "both.pem", tmp_path / "chain.pem", tmp_path / "key.pem"
    ours.private_key_and_cert_chain_pem.write_to_path(str(both))
    ours.cert_chain_pems[0].write_to_path(str(chain))
    ours.private_key_pem.write_to_path(str(key))
    shown = {"MAILDROP_TLS_CERTFILE": both} if files == 1 else {
        "MAILDROP_TLS_CERTFILE": chain, "MAILDROP_TLS_KEYFILE": key,
    }
    arrives(site_for(postfix, tmp_path, "client certificate", tls, **shown), postfix)
    postfix.wait_for_log("Trusted TLS connection established from")


@WAYS
@pytest.mark.parametrize("shown", ["none", "of another authority"])
def test_relay_that_does_not_get_the_certificate_it_asks_for_gets_no_mail_either(shown, tls, tmp_path, postfix):
    """Postfix says so only in the reply to EHLO, and behind STARTTLS it hangs up without a word."""
    path = tmp_path / "theirs.pem"
    client_certificate(is_ours=False).private_key_and_cert_chain_pem.write_to_path(str(path))
    values = {} if shown == "none" else {"MAILDROP_TLS_CERTFILE": path}
    stays(site_for(postfix, tmp_path, "client certificate", tls, **values), postfix, "Connection error")


@WAYS
def test_relay_that_refuses_to_speak_tls_without_our_certificate_is_told_apart(tls, tmp_path):
    context = demanding_tls_context()
    with ScriptedRelay(tls=tls == STARTTLS, implicit_tls=tls == IMPLICIT, tls_context=context) as relay:
        site = DeliverySite(tmp_path, relay.port, MAILDROP_TLS=tls)
        site.add_mail(ANN)
        site.run_pass()
    assert relay.accepted == []
    [line] = site.outages()
    assert "TLS unavailable" in line and "certificate required" in line.replace("_", " ").lower()


# -- what a config file says --


def test_config_of_2_3_goes_on_sending_to_a_relay_with_any_certificate_and_gets_a_warning(tmp_path, postfix):
    daemon = MaildropDaemon(
        tmp_path, postfix.ports["self-signed", False], CONFIG_OF_2_3,
        MAILDROP_TLS=2, MAILDROP_LOGIN=postfix.login, MAILDROP_PASSWORD=postfix.password,
    )
    assert "VERIFY" not in daemon.config.read_text()
    daemon.add_mail(ANN)
    try:
        said = daemon.start()
        daemon.wait_until_empty()
    finally:
        daemon.__exit__()
    assert re.search(r"(?m)^.*config: warning: MAILDROP_TLS_VERIFY is missing", said)
    daemon.wait_until(postfix.delivered)


def test_shipped_config_with_tls_does_not_send_to_a_relay_with_a_certificate_of_its_own_making(tmp_path, postfix):
    login = {"MAILDROP_LOGIN": postfix.login, "MAILDROP_PASSWORD": postfix.password}
    daemon = MaildropDaemon(tmp_path, postfix.ports["self-signed", False], MAILDROP_TLS=2, **login)
    ours = {line for line in daemon.config.read_text().splitlines() if line and not line.startswith("#")}
    shipped = {line for line in SHIPPED.read_text().splitlines() if line and not line.startswith("#")}
    changed = {"PYTHON", "MAILDROP_HOME", "MAILDROP_INTERVAL", "SMTP_HOST", "SMTP_PORT", "MAILDROP_TLS"}
    assert {line.partition("=")[0] for line in ours - shipped} == {*changed, *login}
    mail = daemon.add_mail(ANN)
    runs_in_vain(daemon, lambda: postfix.read_log().count(": disconnect from "), mail, "TLS unavailable")
    assert " auth=" not in postfix.read_log()    # of what the clients said, in the lines that tell of their end
    assert postfix.delivered() == []


def test_tls_if_offered_sends_without_it_where_it_is_not(tmp_path, postfix):
    assert b"with ESMTPA id" in arrives(site_for(postfix, tmp_path, "no TLS", 1), postfix)


@pytest.mark.parametrize("kind", BAD)
def test_tls_if_offered_takes_any_certificate(kind, tmp_path, postfix):
    assert b"with ESMTPSA id" in arrives(site_for(postfix, tmp_path, kind, 1), postfix)


def test_tls_that_is_wanted_and_not_offered_sends_nothing(tmp_path, postfix):
    assert "STARTTLS" in stays(site_for(postfix, tmp_path, "no TLS", 2), postfix, "TLS unavailable")


@pytest.mark.parametrize(
    ("key", "content"),
    [
        ("MAILDROP_TLS_CAFILE", None),
        ("MAILDROP_TLS_CAFILE", b"no PEM"),
        ("MAILDROP_TLS_CERTFILE", None),
        ("MAILDROP_TLS_CERTFILE", b"no PEM"),
        ("MAILDROP_TLS_CERTFILE", "without a key"),
        ("MAILDROP_TLS_CERTFILE", "with a passphrase"),
        ("MAILDROP_PASSWORD_FILE", None),
        ("MAILDROP_PASSWORD_FILE", b""),
        ("MAILDROP_PASSWORD_FILE", b"two\nlines\n"),
    ],
    ids=lambda value: {None: "missing", b"": "empty"}.get(value, str(value)),
)
def test_file_that_cannot_be_used_ends_the_daemon_at_its_start(key, content, tmp_path):
    path = tmp_path / "file"
    if content == "without a key":
        content = client_certificate().cert_chain_pems[0].bytes()
    elif content == "with a passphrase":
        key_pem = load_pem_private_key(client_certificate().private_key_pem.bytes(), None)
        locked = key_pem.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"secret"))
        content = locked + client_certificate().cert_chain_pems[0].bytes()
    if content is not None:
        path.write_bytes(content)
    daemon = MaildropDaemon(tmp_path, 1, MAILDROP_TLS=2, MAILDROP_LOGIN=USER, **{key: path})
    result = run_script("start_maildrop", daemon.config)
    assert result.returncode == 1
    assert key in result.stderr and str(path) in result.stderr and str(daemon.config) in result.stderr
    assert "Traceback" not in result.stderr and "lines" not in result.stderr
    assert not daemon.pid_file.exists()


# -- where the password comes from --


def password_command(directory, script):
    """A command that notes each time it runs, then does what the script says, which may use "$times"."""
    path = directory / "print password"
    path.write_text(f'#!/bin/sh\nexec 9>>"{directory}/ran"\necho $$ >&9\nexec 9>&-\n'
                    f'times=$(wc -l < "{directory}/ran")\n{script}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return f"'{path}' argument"


def runs(directory):
    """The process numbers that the command has had."""
    path = directory / "ran"
    return list(map(int, path.read_text().split())) if path.exists() else []


@pytest.fixture
def relay():
    """One that wants a login, over TLS."""
    with ScriptedRelay(tls=True, login=(USER, TOKEN), mechanisms="PLAIN LOGIN") as server:
        yield server


def daemon_of(relay, directory, **values):
    ours = {"MAILDROP_TLS": 2, "MAILDROP_TLS_CAFILE": write_authority(directory), "MAILDROP_LOGIN": USER}
    return MaildropDaemon(directory, relay.port, **ours | values)


@pytest.mark.parametrize("end", ["", "\n", "\r\n"], ids=["nothing", "LF", "CRLF"])
def test_password_in_a_file_may_end_with(end, tmp_path, postfix):
    path = tmp_path / "password"
    path.write_bytes(f"{postfix.password}{end}".encode())
    arrives(site_for(postfix, tmp_path, "good", STARTTLS, MAILDROP_PASSWORD="", MAILDROP_PASSWORD_FILE=path), postfix)


def test_wrong_password_is_told_once_and_a_right_one_ends_the_outage(tmp_path, postfix):
    path = tmp_path / "password"
    path.write_text("not the one")
    daemon = daemon_for(postfix, tmp_path, "PLAIN", STARTTLS, MAILDROP_PASSWORD="", MAILDROP_PASSWORD_FILE=path)
    mail = daemon.add_mail(ANN)
    before = mail.read_bytes()
    with daemon:
        postfix.wait_for_log("authentication failed", times=3)    # so many passes
        assert mail.read_bytes() == before
        assert postfix.delivered() == []
        path.write_text(postfix.password)
        daemon.wait_until_empty()
    assert len(daemon.outages()) == 1
    assert "Authentication failed" in daemon.outages()[0]
    assert daemon.read_log().count("### Relay available again at ") == 1


def test_password_file_that_vanishes_keeps_the_mail_and_one_that_comes_back_lets_it_go(tmp_path, relay):
    path = tmp_path / "password"
    path.write_text(TOKEN)
    with daemon_of(relay, tmp_path, MAILDROP_PASSWORD_FILE=path) as daemon:
        path.unlink()
        daemon.add_mail(ANN)
        daemon.wait_for_log("!!!!! Authentication unavailable at")
        assert f"MAILDROP_PASSWORD_FILE='{path}'" in daemon.outages()[0]
        path.write_text(TOKEN)
        daemon.wait_until_empty()
    assert len(relay.accepted) == 1


def test_password_command_runs_once_for_many_mails_sessions_and_passes(tmp_path, relay):
    command = password_command(tmp_path, f"echo '{TOKEN}'")
    with daemon_of(relay, tmp_path, MAILDROP_PASSWORD_COMMAND=command, MAILDROP_BATCH=2) as daemon:
        for _ in range(3):
            for _ in range(20):
                daemon.add_mail(ANN)
            daemon.wait_until_empty()
    assert len(relay.accepted) == 60
    assert len(relay.logins) >= 30
    assert len(runs(tmp_path)) == 1


@pytest.mark.parametrize("mechanism", ["plain", "xoauth2", "oauthbearer"])
def test_password_command_runs_again_when_the_relay_no_longer_takes_what_it_printed(mechanism, tmp_path, relay):
    relay.mechanisms = mechanism.upper()
    relay.login = (USER, f"{TOKEN}-1")
    values = {"MAILDROP_AUTH": mechanism} if mechanism != "plain" else {}
    command = password_command(tmp_path, f'echo "{TOKEN}-$times"')
    with daemon_of(relay, tmp_path, MAILDROP_PASSWORD_COMMAND=command, **values) as daemon:
        daemon.add_mail(ANN)
        daemon.wait_until_empty()
        relay.login = (USER, f"{TOKEN}-2")
        daemon.add_mail(BOB)
        daemon.wait_until_empty()
    assert len(relay.accepted) == 2
    assert len(runs(tmp_path)) == 2
    assert daemon.outages() == []    # it was no outage
    assert TOKEN not in daemon.read_log()


def test_sessions_that_lose_their_password_at_the_same_time_get_the_new_one_from_one_run(tmp_path, relay):
    relay.login = (USER, f"{TOKEN}-1")

    def expire(taken):
        if len(relay.accepted) >= 30:    # several sessions count at a time
            relay.login = (USER, f"{TOKEN}-2")

    relay.after_final = expire
    command = password_command(tmp_path, f'sleep 0.2; echo "{TOKEN}-$times"')
    site = DeliverySite(
        tmp_path, relay.port, MAILDROP_TLS=2, MAILDROP_LOGIN=USER, MAILDROP_PASSWORD_COMMAND=command, MAILDROP_BATCH=1,
    )
    for _ in range(90):
        site.add_mail(ANN)
    site.run_pass()
    assert len(relay.accepted) == 90
    assert relay.most_open > 1
    assert len(runs(tmp_path)) == 2
    assert site.outages() == []


@pytest.mark.parametrize("mechanism", ["xoauth2", "oauthbearer"])
def test_token_that_is_refused_is_told_once_and_asked_for_in_each_pass(mechanism, tmp_path, relay):
    relay.mechanisms = mechanism.upper()
    command = password_command(tmp_path, f'[ $times -lt 4 ] && echo old || echo "{TOKEN}"')
    with daemon_of(relay, tmp_path, MAILDROP_PASSWORD_COMMAND=command, MAILDROP_AUTH=mechanism) as daemon:
        daemon.add_mail(ANN)
        daemon.wait_until_empty()
    assert len(relay.accepted) == 1
    assert len(runs(tmp_path)) == 4
    [line] = daemon.outages()
    assert "Authentication failed" in line
    assert daemon.read_log().count("### Relay available again at ") == 1


@pytest.mark.parametrize(
    "script",
    [
        pytest.param(f"echo '{TOKEN}'; exit 3", id="fails"),
        pytest.param(f"echo '{TOKEN}' >&2; exit 1", id="prints it as an error"),
        pytest.param("exit 0", id="prints nothing"),
        pytest.param("echo", id="prints an empty line"),
        pytest.param(f"echo one; echo '{TOKEN}'", id="prints two lines"),
        pytest.param("kill -9 $$", id="is killed"),
        pytest.param("head -c 1000000 /dev/zero | tr '\\0' x", id="prints a long line"),
        pytest.param("yes", id="prints for ever"),
        pytest.param("printf '\\377\\376\\n'", id="prints bytes"),
    ],
)
def test_password_command_that_gives_no_password_keeps_the_mail(script, tmp_path, relay):
    command = password_command(tmp_path, script)
    site = DeliverySite(
        tmp_path, relay.port, MAILDROP_TLS=2, MAILDROP_LOGIN=USER, MAILDROP_PASSWORD_COMMAND=command
    )
    site.add_mail(ANN)
    before = site.mails()
    site.run_pass()
    site.run_pass()
    assert relay.sessions == len(runs(tmp_path)) == 2
    assert relay.logins == relay.accepted == []
    assert site.mails() == before
    [line] = site.outages()
    assert "Authentication unavailable" in line and "MAILDROP_PASSWORD_COMMAND" in line
    assert TOKEN not in site.told()


def test_password_command_that_does_not_exist_ends_the_daemon_at_its_start(tmp_path, relay):
    daemon = daemon_of(relay, tmp_path, MAILDROP_PASSWORD_COMMAND="/nonexistent/command --for me")
    result = run_script("start_maildrop", daemon.config)
    assert result.returncode == 1
    assert "MAILDROP_PASSWORD_COMMAND" in result.stderr and "/nonexistent/command" in result.stderr


def test_password_command_that_hangs_is_ended_and_so_is_what_it_has_started(tmp_path, relay):
    command = password_command(tmp_path, f'sleep 600 & echo $! >> "{tmp_path}/children"; wait')
    with daemon_of(relay, tmp_path, MAILDROP_PASSWORD_COMMAND=command, MAILDROP_TIMEOUT=0.5) as daemon:
        mail = daemon.add_mail(ANN)
        daemon.wait_for_log("!!!!! Authentication unavailable at")
        daemon.wait_until(lambda: len(runs(tmp_path)) >= 2)
        first = int((tmp_path / "children").read_text().split()[0])
        wait_until(lambda: not process_runs(first) and not process_runs(runs(tmp_path)[0]))
    assert mail.exists()
    assert len(daemon.outages()) == 1
    assert relay.accepted == []


def test_password_command_that_leaves_something_behind_does_not_hold_up_the_mail_for_ever(tmp_path, relay):
    command = password_command(tmp_path, f"sleep 600 & echo '{TOKEN}'")
    with daemon_of(relay, tmp_path, MAILDROP_PASSWORD_COMMAND=command, MAILDROP_TIMEOUT=0.5) as daemon:
        daemon.add_mail(ANN)
        daemon.wait_until(lambda: relay.accepted or daemon.outages())


def test_daemon_stops_while_the_password_command_hangs_and_leaves_nothing_behind(tmp_path, relay):
    command = password_command(tmp_path, "exec sleep 600")
    with daemon_of(relay, tmp_path, MAILDROP_PASSWORD_COMMAND=command, MAILDROP_TIMEOUT=600) as daemon:
        mail = daemon.add_mail(ANN)
        daemon.wait_until(lambda: runs(tmp_path))
        assert daemon.stop().returncode == 0
    [process] = runs(tmp_path)
    try:
        wait_until(lambda: not process_runs(process))
    finally:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    assert mail.exists()


@pytest.mark.parametrize("source", ["MAILDROP_PASSWORD", "MAILDROP_PASSWORD_FILE", "MAILDROP_PASSWORD_COMMAND"])
def test_password_is_in_no_command_line_environment_or_log(source, tmp_path, relay):
    token = f"{TOKEN}-{os.getpid()}"    # that no other test has at the same time
    relay.login = (USER, token)
    path = tmp_path / "password"
    path.write_text(token)
    value = {
        "MAILDROP_PASSWORD": token,
        "MAILDROP_PASSWORD_FILE": path,
        "MAILDROP_PASSWORD_COMMAND": password_command(tmp_path, f"cat '{path}'"),
    }[source]
    seen = []

    def look(dialogue, step, good):
        if step in ("login", "mail", "final"):
            seen.append(what_processes_show())
        return good

    relay.answer = look
    with daemon_of(relay, tmp_path, **{source: value}) as daemon:
        daemon.add_mail(ANN)
        daemon.wait_until_empty()
        assert str(daemon.config).encode() in seen[0]    # the daemon is among them
    assert len(seen) >= 3
    assert not any(token.encode() in shown for shown in seen)
    assert token not in daemon.read_log()


def what_processes_show():
    """Command lines and environments of all processes but this one."""
    shown = []
    for process in Path("/proc").glob("[0-9]*"):
        for name in ("cmdline", "environ"):
            try:
                shown.append((process / name).read_bytes() if process.name != str(os.getpid()) else b"")
            except OSError:
                pass
    return b"\n".join(shown)


# -- without TLS --


def daemon_in_clear(relay, directory, host, **values):
    login = {"MAILDROP_LOGIN": USER, "MAILDROP_PASSWORD": TOKEN}
    return MaildropDaemon(directory, relay.port, SMTP_HOST=host, **login | values)


@pytest.mark.parametrize("tls", [0, 1], ids=["TLS never", "TLS if offered"])
def test_login_does_not_go_out_in_clear(tls, tmp_path):
    host = requires_own_address()
    with ScriptedRelay(login=(USER, TOKEN), host=host) as relay:
        daemon = daemon_in_clear(relay, tmp_path, host, MAILDROP_TLS=tls)
        mail = daemon.add_mail(ANN)
        line = runs_in_vain(daemon, lambda: relay.sessions, mail, "Authentication unavailable")
    assert "MAILDROP_AUTH_CLEAR" in line
    assert relay.logins == relay.accepted == []
    assert b"AUTH" not in relay.in_clear


def test_login_goes_out_in_clear_where_it_may(tmp_path):
    host = requires_own_address()
    with ScriptedRelay(login=(USER, TOKEN), host=host) as relay:
        with daemon_in_clear(relay, tmp_path, host, MAILDROP_AUTH_CLEAR=1) as daemon:
            daemon.add_mail(ANN)
            daemon.wait_until_empty()
    assert len(relay.accepted) == 1
    assert b"AUTH" in relay.in_clear


def test_config_of_2_3_goes_on_logging_in_without_tls_and_gets_a_warning(tmp_path):
    host = requires_own_address()
    with ScriptedRelay(login=(USER, TOKEN), host=host) as relay:
        daemon = MaildropDaemon(tmp_path, relay.port, CONFIG_OF_2_3,
                                SMTP_HOST=host, MAILDROP_LOGIN=USER, MAILDROP_PASSWORD=TOKEN)
        daemon.add_mail(ANN)
        try:
            said = daemon.start()
            daemon.wait_until_empty()
        finally:
            daemon.__exit__()
    assert len(relay.accepted) == 1
    assert re.search(r"(?m)^.*config: warning: MAILDROP_AUTH_CLEAR is missing", said)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.0.0.2", "localhost", "0.0.0.0"])
def test_loopback_is_where_the_connection_leads(host, tmp_path):
    """Of the unspecified address, the system makes that of this machine."""
    listens = host if host[:3] == "127" else "127.0.0.1"
    with ScriptedRelay(login=(USER, TOKEN), host=listens) as relay:
        site = DeliverySite(tmp_path, relay.port, SMTP_HOST=host, MAILDROP_LOGIN=USER, MAILDROP_PASSWORD=TOKEN)
        site.add_mail(ANN)
        site.run_pass()
    assert len(relay.accepted) == len(relay.logins) == 1


def test_login_goes_over_tls_to_any_address(tmp_path):
    host = requires_own_address()
    with ScriptedRelay(tls=True, login=(USER, TOKEN), host=host) as relay:
        login = {"MAILDROP_LOGIN": USER, "MAILDROP_PASSWORD": TOKEN}
        site = DeliverySite(tmp_path, relay.port, SMTP_HOST=host, MAILDROP_TLS=2, MAILDROP_TLS_VERIFY=0, **login)
        site.add_mail(ANN)
        site.run_pass()
    assert len(relay.accepted) == len(relay.logins) == 1
    assert b"AUTH" not in relay.in_clear

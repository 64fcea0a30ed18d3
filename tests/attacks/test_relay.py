"""A hostile relay, or who stands between it and the daemon: no mail and no login reaches them, and nothing is lost.

After each attack comes a relay that is what it should be, and gets every mail once.
"""

import base64
import select
import socket
import ssl
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from support.certificates import BAD, outdated_tls_context, server_tls_context, write_authority
from support.daemon import MaildropDaemon, wait_until
from support.delivering import PATIENCE_S, DeliverySite
from support.requires import requires_own_address
from support.scripted_relay import Fault, ScriptedRelay, well_behaved

USER, SECRET = "zope@example.org", "Correct.horse_7.battery"
MECHANISMS = "CRAM-MD5 PLAIN LOGIN"
SOON_S = 0.4    # for attacks that last until time runs out
RCPT = ("ann@example.org", "bob@example.org")
STARTTLS, IMPLICIT = {"MAILDROP_TLS": 2}, {"MAILDROP_TLS": 3}
IN_CLEAR = {"MAILDROP_TLS": 0}
SOON = {"MAILDROP_TIMEOUT": SOON_S}
XOAUTH2, OAUTHBEARER = {"MAILDROP_AUTH": "xoauth2"}, {"MAILDROP_AUTH": "oauthbearer"}


# -- what the other side says --


def says(step, text):
    """Says this at that step, whatever comes."""
    return lambda dialogue, now, good: text if now == step else good


def echoes(step, reply):
    """Says at that step, with what came last in place of ``{}``."""
    return lambda dialogue, now, good: reply.format(dialogue.last_line) if now == step else good


def ehlo(*lines, after_tls=False):
    """Offers this and nothing else."""
    text = "\r\n".join(["250-relay.example.org", *(f"250-{line}" for line in lines), "250 SIZE 1000000"])
    return says("ehlo after tls" if after_tls else "ehlo", text)


def only_helo(step):
    """Knows no EHLO, and offers nothing thereby."""

    def answer(dialogue, now, good):
        return "502 5.5.2 no such command" if now == step and dialogue.last_line.startswith("ehlo") else good

    return answer


def together(*answers):
    """All of these; the first that does not leave the good reply as it is counts."""

    def answer(dialogue, step, good):
        return next((said for one in answers if (said := one(dialogue, step, good)) != good), good)

    return answer


def plain_text_to_the_handshake(dialogue, step, good):
    """Says yes to STARTTLS, waits for the beginning of TLS, and goes on as if there were none."""
    if step == "starttls":
        dialogue.send(b"220 2.0.0 go ahead\r\n")
        select.select([dialogue.sock], [], [], PATIENCE_S)
        dialogue.send(b"250-relay.example.org\r\n250 AUTH PLAIN LOGIN\r\n")
        return None
    return good


def drips_the_handshake(at):
    """Answers the beginning of TLS with a long record, byte by byte."""

    def answer(dialogue, step, good):
        if step != at:
            return good
        if at == "starttls":
            dialogue.send(b"220 2.0.0 go ahead\r\n")
        select.select([dialogue.sock], [], [], PATIENCE_S)
        dialogue.relay.fired["handshake", "drip"] += 1
        with suppress(OSError):
            dialogue.send(b"\x16\x03\x03\x40\x00")    # the head of the record
            while not dialogue.relay.stopped.wait(SOON_S / 10):
                dialogue.send(b"\x02")
        return None

    return answer


def cut_within_tls(dialogue, step, good):
    """Ends the connection below TLS in the middle of a reply, as anybody on the way can do it."""
    if step == "ehlo after tls":
        dialogue.send(b"250-relay.example.org\r\n250-SIZE 100")
        socket.socket.shutdown(dialogue.sock, socket.SHUT_RDWR)
        return None
    return good


def takes_only(mechanism, otherwise):
    """Refuses every mechanism but this one, so that others are tried."""

    def answer(dialogue, step, good):
        is_wanted = dialogue.relay.logins[-1:] == [mechanism]
        return otherwise if step in ("challenge", "login") and not is_wanted else good

    return answer


def anonymous_tls():
    """TLS without any certificate."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("aNULL:@SECLEVEL=0")
    return context


def echoes_login(step, reply):
    """Says at that step, with what came with AUTH in place of ``{}``."""

    def answer(dialogue, now, good):
        if now != step:
            return good
        logins = [line.decode("latin-1") for line in dialogue.relay.commands if line.startswith(b"AUTH")]
        return reply.format(logins[-1]) if logins else good

    return answer


# -- the attacks --


@dataclass(frozen=True)
class Attack:
    """Something hostile before the first mail. ``log``: what the log calls it."""

    name: str
    log: str
    answer: Any = well_behaved
    settings: Mapping[str, Any] = field(default_factory=lambda: STARTTLS)
    relay: Mapping[str, Any] = field(default_factory=dict)    # what is otherwise with a relay that is what it should be
    faults: tuple[Fault, ...] = ()    # in the first two sessions
    is_login_due: bool = False    # what is hostile comes only once TLS is there as it should be

    def __str__(self):
        tls = {0: "in clear", 1: "TLS if offered", 2: "STARTTLS", 3: "implicit TLS"}[self.settings["MAILDROP_TLS"]]
        return f"{self.name}, {tls}"


NO_TLS, TLS, BROKEN = "TLS unavailable", "TLS ", "Connection error"
NO_AUTH, REFUSED = "Authentication unavailable", "Authentication failed"


def _in_the_greeting():
    yield "escape-sequences-in-a-refusal", "554 5.0.0 \x1b[2J\x1b]0;title\x07 \x9b31m go away"
    yield "refusal-that-would-be-a-line-of-the-log", "554 5.0.0 no\r### Relay available again\x85OK\u2028 ann"
    yield "long-refusal", "554-" + "x" * 3000 + "\r\n554 " + "y" * 3000
    yield "greeting-with-everything-after-it", b"220 hello\r\n250-relay\r\n250 AUTH PLAIN\r\n235 welcome\r\n250 Ok\r\n"
    yield "binary-greeting", bytes(range(256)) * 20
    yield "http-greeting", b"HTTP/1.1 400 Bad Request\r\nServer: x\r\n\r\n"
    yield "ssh-greeting", b"SSH-2.0-OpenSSH_9.2\r\n"


def _in_clear_attacks():
    for name, text in _in_the_greeting():
        yield Attack(name, BROKEN, says("greeting", text))
    yield Attack("starttls-is-stripped", NO_TLS, ehlo("AUTH PLAIN LOGIN"))
    yield Attack("starttls-is-stripped-and-nothing-else-offered", NO_TLS, ehlo())
    yield Attack("starttls-is-misspelt", NO_TLS, ehlo("XSTARTTLS", "STARTTLSX", "AUTH PLAIN"))
    yield Attack("ehlo-is-refused", NO_TLS, only_helo("ehlo"))
    yield Attack("ehlo-reply-without-end", BROKEN, faults=(Fault("ehlo", "endless reply", sessions=2),))
    yield Attack("ehlo-line-without-end", BROKEN, faults=(Fault("ehlo", "long line", sessions=2),))
    yield Attack("ehlo-reply-with-8-bit-bytes", NO_TLS, says("ehlo", b"250-\xff\xfe\r\n250 \x80STARTTLS\xff\r\n"))
    yield Attack("greeting-and-ehlo-reply-in-one", BROKEN,
                 says("greeting", b"220 hello\r\n250-relay\r\n250 AUTH PLAIN\r\n"))
    for code in ("454 4.7.0 not now", "501 5.5.4 what", "502 5.5.1 no", "503 5.5.1 not so", "554 5.7.0 never",
                 "250 Ok", "235 welcome", "354 go on"):
        yield Attack(f"starttls-is-answered-{code[:3]}", NO_TLS, says("starttls", code))
    yield Attack("starttls-is-answered-421", TLS, says("starttls", "421 4.3.0 closing"))
    yield Attack("starttls-is-answered-by-hanging-up", TLS, says("starttls", None))
    yield Attack("starttls-is-answered-by-nothing", TLS, settings=STARTTLS | SOON,
                 faults=(Fault("starttls", "stall", sessions=2),))
    yield Attack("starttls-is-answered-byte-by-byte", TLS, settings=STARTTLS | SOON,
                 faults=(Fault("starttls", "drip", sessions=2),))
    yield Attack("starttls-is-answered-with-garbage", TLS, says("starttls", b"\x16\x03\x01\x02\x00\r\n"))
    yield Attack("starttls-is-answered-without-end", TLS, says("starttls", b"220 " + b"x" * 100_000))
    yield Attack("ehlo-reply-is-injected-behind-starttls", TLS,
                 says("starttls", b"220 go ahead\r\n250-relay\r\n250 AUTH PLAIN\r\n"))
    yield Attack("login-is-injected-behind-starttls", TLS,
                 says("starttls", b"220 go ahead\r\n250 Ok\r\n235 welcome\r\n"))
    yield Attack("one-byte-is-injected-behind-starttls", TLS, says("starttls", b"220 go ahead\r\n2"))
    yield Attack("plain-text-instead-of-the-handshake", TLS, plain_text_to_the_handshake)
    yield Attack("pre-tls-offer-of-auth-is-kept-from-the-relay", NO_AUTH,
                 together(ehlo("STARTTLS", "AUTH PLAIN LOGIN"), ehlo(after_tls=True)))
    yield Attack("starttls-is-refused-with-tls-if-offered", NO_TLS, says("starttls", "454 4.7.0 not now"),
                 {"MAILDROP_TLS": 1})
    yield Attack("injection-with-tls-if-offered", TLS, says("starttls", b"220 go ahead\r\n250 AUTH PLAIN\r\n"),
                 {"MAILDROP_TLS": 1})


def _handshake_attacks():
    for ways in (STARTTLS, IMPLICIT):
        for kind in BAD:
            yield Attack(f"certificate-{kind.replace(' ', '-')}", "certificate is not accepted", settings=ways,
                         relay={"tls_context": server_tls_context(kind)})
        for version in (ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1):
            context = outdated_tls_context(version)
            yield Attack(f"only-{version.name}", TLS, settings=ways, relay={"tls_context": context})
        yield Attack("tls-without-a-certificate", TLS, settings=ways, relay={"tls_context": anonymous_tls()})
        yield Attack("cut-within-tls", "", cut_within_tls, ways, is_login_due=True)
        yield Attack("auth-only-before-tls", NO_AUTH, ehlo(after_tls=True), ways, is_login_due=True)
        yield Attack("ehlo-after-tls-is-refused", NO_AUTH, only_helo("ehlo after tls"), ways, is_login_due=True)
    for kind in ("alert", "bytes", "text", "close", "reset"):
        yield Attack(f"handshake-{kind}", TLS, faults=(Fault("handshake", kind, sessions=2),))
    yield Attack("handshake-stall", TLS, settings=STARTTLS | SOON, faults=(Fault("handshake", "stall", sessions=2),))
    yield Attack("connection-stall", "", settings=IMPLICIT | SOON, faults=(Fault("connect", "stall", sessions=2),))
    yield Attack("handshake-drip", "timed out", drips_the_handshake("starttls"), STARTTLS | SOON)
    yield Attack("handshake-drip", "timed out", drips_the_handshake("greeting"), IMPLICIT | SOON,
                 {"implicit_tls": False})
    for kind in ("close", "reset", "text", "bytes", "long line"):
        yield Attack(f"connection-{kind}", "", settings=IMPLICIT, faults=(Fault("connect", kind, sessions=2),))
    yield Attack("plain-text-on-the-tls-port", "", ehlo("AUTH PLAIN LOGIN"), IMPLICIT, {"implicit_tls": False})
    yield Attack("starttls-on-the-tls-port", "", settings=IMPLICIT, relay={"implicit_tls": False, "tls": True})


def _login_attacks():
    for code in ("535 5.7.8 wrong", "454 4.7.0 not now", "432 4.7.12 change your password", "504 5.5.4 what",
                 "534 5.7.9 too weak", "538 5.7.11 no encryption", "500 5.5.6 too long", "501 5.5.2 what",
                 "250 Ok", "220 hello", "354 go on"):
        yield Attack(f"login-is-answered-{code[:3]}", REFUSED, says("login", code), is_login_due=True)
    for code in ("535 5.7.8 no", "504 5.5.4 no such thing", "538 5.7.11 no encryption"):
        yield Attack(f"auth-is-answered-{code[:3]}", REFUSED, says("challenge", code),
                     relay={"mechanisms": "CRAM-MD5"}, is_login_due=True)
    yield Attack("challenges-for-ever", "Authentication", says("login", "334 VXNlcm5hbWU6"), is_login_due=True)
    yield Attack("long-challenge", "", says("challenge", "334 " + "QUFB" * 100_000), is_login_due=True)
    yield Attack("challenge-as-long-as-a-line-may-be", "", takes_only("LOGIN", "334 " + "QUFB" * 900),
                 is_login_due=True)
    yield Attack("challenge-that-is-no-base64", "", says("challenge", "334 !!?*"), is_login_due=True,
                 relay={"mechanisms": "CRAM-MD5"})
    yield Attack("challenge-with-half-a-quantum", "", says("challenge", "334 QUFBQ"), is_login_due=True,
                 relay={"mechanisms": "CRAM-MD5"})
    yield Attack("challenge-with-8-bit-bytes", "", says("challenge", b"334 \xff\xfe\x80\r\n"), is_login_due=True,
                 relay={"mechanisms": "CRAM-MD5"})
    yield Attack("challenge-of-nothing", "", says("challenge", b"334\r\n"), is_login_due=True,
                 relay={"mechanisms": "CRAM-MD5"})
    yield Attack("reply-to-the-login-of-thousands-of-lines", "", says("login", b"535-no\r\n" * 5000 + b"535 no\r\n"),
                 is_login_due=True)
    yield Attack("reply-to-the-login-with-8-bit-bytes", REFUSED, says("login", b"535 \xff\xfe\x1b[2J\r\n"),
                 is_login_due=True)
    yield Attack("reply-to-the-login-without-end", "", says("login", b"535 " + b"x" * 100_000), is_login_due=True)
    yield Attack("reply-to-the-login-is-binary", "", says("login", bytes(range(256)) + b"\r\n"), is_login_due=True)
    yield Attack("hangs-up-on-the-login", "", says("login", None), is_login_due=True)
    yield Attack("says-nothing-to-the-login", "", settings=STARTTLS | SOON, is_login_due=True,
                 faults=(Fault("auth", "stall", sessions=2),))
    yield Attack("answers-the-login-byte-by-byte", "", settings=STARTTLS | SOON, is_login_due=True,
                 faults=(Fault("auth", "drip", sessions=2),))
    yield Attack("refuses-and-welcomes", "", says("login", b"535 no\r\n235 welcome\r\n"), is_login_due=True)
    yield Attack("says-that-we-are-logged-in-already", REFUSED, says("login", "503 5.5.1 already"), is_login_due=True)
    yield Attack("unknown-mechanisms", NO_AUTH, relay={"mechanisms": "GSSAPI NTLM SCRAM-SHA-256 EXTERNAL"},
                 is_login_due=True)
    yield Attack("mechanisms-without-end", "", relay={"mechanisms": " ".join(f"X{n}" for n in range(2000))},
                 is_login_due=True)
    yield Attack("no-mechanism", NO_AUTH, relay={"mechanisms": ""}, is_login_due=True)


def _echoing_attacks():
    for step in ("login", "challenge"):
        for number, reply in enumerate(
            ("535 5.7.8 you said {0}", "454 4.7.0 you said {0}", "535-you said\r\n535-{0}\r\n535 {0}"), start=1
        ):
            yield Attack(f"{step}-echoes-what-it-got-{number}", "Authentication", echoes(step, reply),
                         relay={"mechanisms": "LOGIN"}, is_login_due=True)
    yield Attack("plain-login-is-echoed", REFUSED, echoes("login", "535 5.7.8 {0}"), is_login_due=True,
                 relay={"mechanisms": "PLAIN"})
    yield Attack("password-is-echoed-as-it-is", REFUSED, says("login", f"535 5.7.8 {USER} is not {SECRET}."),
                 is_login_due=True)
    yield Attack("challenges-with-what-it-got", "Authentication", echoes("login", "334 {0}"), is_login_due=True)
    yield Attack("garbage-with-what-it-got", "", echoes("login", "You said {0}"), is_login_due=True)
    yield Attack("wants-a-login-and-echoes-the-last-one", "", echoes_login("mail", "530 5.7.0 {0}"), is_login_due=True,
                 relay={"mechanisms": "PLAIN"})
    yield Attack("closes-and-echoes-the-last-login", "", echoes_login("mail", "421 4.7.0 {0}"), is_login_due=True,
                 relay={"mechanisms": "PLAIN"})


def _token_attacks():
    for way in (XOAUTH2, OAUTHBEARER):
        name = way["MAILDROP_AUTH"]
        offered = {"mechanisms": name.upper()}

        def attack(what, log, answer=well_behaved, relay=offered, way=way, name=name, faults=()):
            return Attack(f"{name}-{what}", log, answer, STARTTLS | way, relay, faults, is_login_due=True)

        yield attack("token-is-refused", REFUSED, says("login", "535 5.7.8 expired"))
        yield attack("refusal-in-a-challenge", REFUSED, relay=offered | {"login": (USER, "another token")})
        yield attack("refusals-in-challenges-for-ever", "Authentication", says("login", "334 eyJzdGF0dXMiOiI0MDAifQ=="))
        yield attack("challenge-that-is-no-base64", "Authentication", answer=says("challenge", "334 {}{!"),
                     relay=offered | {"login": (USER, "another token")})
        yield attack("challenge-that-is-no-json", REFUSED, relay=offered | {"login": (USER, "another token")},
                     answer=says("challenge", "334 //79/A=="))
        yield attack("token-is-echoed", REFUSED, echoes("login", "535 5.7.8 {0}"))
        yield attack("token-is-echoed-in-the-challenge", REFUSED, relay=offered | {"login": (USER, "another token")},
                     answer=says("challenge", "334 " + base64.b64encode(b'{"token":"%s"}' % SECRET.encode()).decode()))
        yield attack("only-plain-is-offered", NO_AUTH, relay={"mechanisms": "PLAIN LOGIN CRAM-MD5"})
        yield attack("the-other-way-is-offered", NO_AUTH, relay={"mechanisms": "XOAUTH"})


ATTACKS = [*_in_clear_attacks(), *_handshake_attacks(), *_login_attacks(), *_echoing_attacks(), *_token_attacks()]


# -- who is attacked --


def shapes_of_secrets():
    """How a password could be told from what is logged: as it is, and inside of base64, wherever it begins there."""
    shapes = {SECRET.encode()}
    for before in range(3):
        encoded = base64.b64encode(b"\0" * before + SECRET.encode())
        shapes.add(encoded[4 * bool(before) : -4])
    return shapes


def check_that_no_secret_is_in(text):
    for shape in shapes_of_secrets():
        assert shape not in text


def site_of(directory, relay, **values):
    """Two mails, and a login for the relay."""
    site = DeliverySite(directory, relay.port, MAILDROP_LOGIN=USER, MAILDROP_PASSWORD=SECRET, **values)
    for _ in range(2):
        site.add_mail(*RCPT)
    return site


def a_good_relay(values, *faults, **fields):
    tls = values["MAILDROP_TLS"]
    relay = {"tls": tls in (1, 2), "implicit_tls": tls == 3, "login": (USER, SECRET), "mechanisms": MECHANISMS}
    if auth := values.get("MAILDROP_AUTH"):
        relay["mechanisms"] = auth.upper()
    return ScriptedRelay(*faults, **relay | fields)


def change(relay, fields):
    for name, value in fields.items():
        setattr(relay, name, value)


@pytest.mark.parametrize("attack", ATTACKS, ids=str)
def test_nothing_is_sent_and_nothing_is_lost(attack, tmp_path):
    relay = a_good_relay(attack.settings, *attack.faults)
    changed = {"answer": attack.answer, **attack.relay}
    good = {name: getattr(relay, name) for name in changed}
    change(relay, changed)
    with relay:
        site = site_of(tmp_path, relay, **attack.settings)
        before = site.mails()

        site.run_pass()
        site.run_pass()

        assert relay.sessions >= 2
        assert relay.accepted == relay.unanswered == []
        assert site.mails() == before
        assert site.failed() == []
        for line in site.outages():
            assert attack.log in line
            assert line.replace("\t", "").isprintable()
            assert len(line) < 3000
        # Where there is no telling who finds out first that the connection has ended, it may be one thing, then another
        assert 1 <= len(site.outages()) <= (1 if attack.log else 2), site.told()
        assert "unexpected error" not in site.told()
        check_that_no_secret_is_in(site.everything_written())
        check_that_no_secret_is_in(bytes(relay.in_clear))
        assert b"AUTH" not in relay.in_clear
        if not attack.is_login_due:
            assert relay.logins == []
        if attack.settings.get("MAILDROP_AUTH"):
            assert set(relay.responses) <= {"", "AQ=="}    # what RFC 7628 3.2.3 wants, and Google

        change(relay, good)
        site.change(timeout_s=PATIENCE_S)
        site.run_pass()
    assert not relay.errors
    assert site.mails() == {}
    assert sorted(mail.recipients for mail in relay.accepted) == [RCPT, RCPT]
    assert site.told().count("### Relay available again at ") == 1


@pytest.mark.parametrize("pipelining", [1, 0], ids=["pipelining", "one command at a time"])
@pytest.mark.parametrize("forged", [b"", b"250 2.0.0 Ok\r\n", b"\x17\x03\x03\x00\x20" + b"x" * 32],
                         ids=["the end", "a reply", "a TLS record"])
@pytest.mark.parametrize("at", ["mail", "rcpt first", "data", "final"])
def test_what_is_forged_within_a_session_is_not_believed(at, forged, pipelining, tmp_path):
    """Who stands between can break a session at any time, and nothing more."""
    relay = a_good_relay(STARTTLS)
    broken = []

    def answer(dialogue, step, good):
        if step == at and not broken:
            broken.append(step)
            socket.socket.sendall(dialogue.sock, forged)
            return None
        return good

    relay.answer = answer
    with relay:
        site = site_of(tmp_path, relay, MAILDROP_PIPELINING=pipelining, MAILDROP_CONNECTIONS=1, **STARTTLS)
        site.run_pass()
        assert broken
        site.run_pass()
    assert not relay.errors
    assert site.mails() == {} and site.failed() == []
    taken = [recipient for mail in relay.accepted for recipient in mail.recipients]    # with a reply of the relay's own
    assert sorted(taken) == sorted(RCPT * 2)
    assert len(relay.unanswered) == (at == "final")
    assert ("may arrive twice" in site.told()) == (at == "final")
    assert "unexpected error" not in site.told()


@pytest.mark.parametrize("values", [STARTTLS, IMPLICIT], ids=["STARTTLS", "implicit TLS"])
def test_who_comes_between_later_gets_nothing_either(values, tmp_path):
    relay = a_good_relay(values)
    with relay:
        site = site_of(tmp_path, relay, **values)
        site.run_pass()
        assert len(relay.accepted) == len(relay.logins) + 1 == 2
        relay.tls_context = server_tls_context("of another authority")
        site.add_mail(*RCPT)
        before = site.mails()
        site.run_pass()
    assert site.mails() == before
    assert len(relay.accepted) == len(relay.logins) + 1 == 2
    assert len(site.outages()) == 1


@pytest.mark.parametrize("values", [STARTTLS, IMPLICIT], ids=["STARTTLS", "implicit TLS"])
def test_next_host_gets_the_mail_where_the_first_one_shows_the_certificate_of_the_next(values, tmp_path):
    first = a_good_relay(values, host="127.0.0.2")
    second = a_good_relay(values, host="127.0.0.1", port=first.port)
    with first, second:
        site = site_of(tmp_path, second, SMTP_HOST="127.0.0.2;127.0.0.1", **values)
        site.run_pass()
    assert site.mails() == {}
    assert len(second.accepted) == 2
    assert first.sessions >= 1
    assert first.logins == first.accepted == first.unanswered == []


@pytest.mark.parametrize("pipelining", [1, 0], ids=["pipelining", "one command at a time"])
@pytest.mark.parametrize(
    ("step", "reply"),
    [
        ("login", "235 ok\r\n250 {}"),
        ("mail", "451 4.7.0 {}"),
        ("mail", "554 5.7.0 {}"),
        ("mail", "No SMTP but {}"),
        ("mail", "250 ok\r\n250 {}"),
        ("rcpt first", "450 4.2.0 {}"),
        ("rcpt first", "550 5.1.1 {}"),
        ("rcpt middle", "421 4.3.0 {}"),
        ("data", "451 4.3.0 {}"),
        ("data", "554 5.6.0 {}"),
        ("data", "250 {}"),
        ("final", "250 2.0.0 {}"),
        ("final", "250-2.0.0 {0}\r\n250 {0}"),
        ("final", "452 4.3.1 {}"),
        ("final", "554 5.6.0 {}"),
        ("final", "You said {}"),
    ],
    ids=lambda text: text.replace("\r\n", " / "),
)
def test_login_that_comes_back_in_a_mail_is_written_nowhere(step, reply, pipelining, tmp_path):
    relay = a_good_relay(STARTTLS, mechanisms="PLAIN")
    relay.answer = echoes_login(step, reply)
    with relay:
        site = site_of(tmp_path, relay, MAILDROP_PIPELINING=pipelining, **STARTTLS)
        site.run_pass()
        site.run_pass()
    assert relay.logins
    assert not relay.errors
    assert site.told()
    assert "unexpected error" not in site.told()
    check_that_no_secret_is_in(site.everything_written())


@pytest.mark.parametrize("step", ["greeting", "ehlo", "starttls", "ehlo after tls"])
@pytest.mark.parametrize("reply", ["554 5.7.1 {}", "421 4.3.0 {}", "You said {}"])
def test_login_that_comes_back_in_the_next_session_is_written_nowhere(step, reply, tmp_path):
    relay = a_good_relay(STARTTLS, mechanisms="PLAIN")
    relay.answer = together(says("login", "535 5.7.8 come again"), echoes_login(step, reply))
    with relay:
        site = site_of(tmp_path, relay, **STARTTLS)
        site.run_pass()
        site.run_pass()
    assert len(relay.logins) == 1
    assert len(site.outages()) == 2
    check_that_no_secret_is_in(site.everything_written())


@pytest.mark.parametrize("tls", [0, 1], ids=["TLS never", "TLS if offered"])
@pytest.mark.parametrize("host", ["own address", "localhost"])
@pytest.mark.parametrize("offer", ["AUTH PLAIN LOGIN", "AUTH CRAM-MD5", "STARTTLS stripped"])
def test_who_is_asked_in_clear_on_the_network_gets_no_login(tls, host, offer, tmp_path, monkeypatch):
    """A name counts for nothing: "localhost" is where the resolver says."""
    address = requires_own_address()
    if host == "localhost":
        found = socket.getaddrinfo
        monkeypatch.setattr(socket, "getaddrinfo", lambda host, *more, **and_more: found(address, *more, **and_more))
    relay = ScriptedRelay(login=(USER, SECRET), host=address)
    relay.answer = ehlo(*([offer] if offer.startswith("AUTH") else []))
    with relay:
        name = address if host == "own address" else host
        site = site_of(tmp_path, relay, SMTP_HOST=name, MAILDROP_TLS=tls, MAILDROP_AUTH_CLEAR=0)
        before = site.mails()
        site.run_pass()
        site.run_pass()
    assert relay.sessions >= 2
    assert relay.logins == relay.accepted == relay.unanswered == []
    assert b"AUTH" not in relay.in_clear and b"MAIL" not in relay.in_clear
    assert site.mails() == before
    assert len(site.outages()) == 1, site.told()
    assert NO_AUTH in site.outages()[0]


# -- the daemon as a whole --

BY_NAME = {str(attack): attack for attack in ATTACKS}
OF_THE_DAEMON = (
    "starttls-is-stripped, STARTTLS",
    "login-is-injected-behind-starttls, STARTTLS",
    "certificate-of-another-authority, STARTTLS",
    "certificate-for-another-host, implicit TLS",
    "login-echoes-what-it-got-1, STARTTLS",
)


@pytest.mark.parametrize("attack", [BY_NAME[name] for name in OF_THE_DAEMON], ids=str)
def test_daemon_outlives_it_and_says_it_once(attack, tmp_path):
    relay = a_good_relay(attack.settings)
    changed = {"answer": attack.answer, **attack.relay}
    good = {name: getattr(relay, name) for name in changed}
    change(relay, changed)
    daemon = MaildropDaemon(
        tmp_path, relay.port, SMTP_HOST="localhost", MAILDROP_LOGIN=USER, MAILDROP_PASSWORD=SECRET,
        MAILDROP_TLS_CAFILE=write_authority(tmp_path), **attack.settings,
    )
    mail = daemon.add_mail(*RCPT)
    before = mail.read_bytes()
    with relay, daemon:
        wait_until(lambda: relay.sessions >= 4, told=daemon.read_log)    # so many passes
        assert mail.read_bytes() == before
        assert relay.accepted == relay.unanswered == []
        assert b"AUTH" not in relay.in_clear
        change(relay, good)
        daemon.wait_until_empty()
    [taken] = relay.accepted
    assert taken.recipients == RCPT and taken.over_tls
    [line] = daemon.outages()
    assert attack.log in line
    assert daemon.read_log().count("### Relay available again at ") == 1
    check_that_no_secret_is_in(daemon.log_file.read_bytes())


@pytest.mark.parametrize(
    ("values", "changed", "step"),
    [
        (STARTTLS, {"answer": drips_the_handshake("starttls")}, ("handshake", "drip")),
        (IMPLICIT, {"answer": drips_the_handshake("greeting"), "implicit_tls": False}, ("handshake", "drip")),
        (STARTTLS, {}, ("handshake", "stall")),
        (STARTTLS, {}, ("auth", "drip")),
    ],
    ids=["handshake dripped, STARTTLS", "handshake dripped, implicit TLS", "handshake not answered", "login dripped"],
)
def test_daemon_ends_at_once_though_the_relay_keeps_it_waiting(values, changed, step, tmp_path):
    relay = a_good_relay(values, Fault(*step, sessions=99))
    change(relay, changed)
    daemon = MaildropDaemon(
        tmp_path, relay.port, SMTP_HOST="localhost", MAILDROP_LOGIN=USER, MAILDROP_PASSWORD=SECRET,
        MAILDROP_TLS_CAFILE=write_authority(tmp_path), MAILDROP_TIMEOUT=600, **values,
    )
    mail = daemon.add_mail(*RCPT)
    with relay, daemon:
        wait_until(lambda: relay.fired[step])
        stopped = daemon.stop()
        assert stopped.returncode == 0, stopped.stderr
        assert mail.exists()
    assert daemon.outages() == []
    assert relay.accepted == relay.unanswered == []

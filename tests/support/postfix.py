"""A real Postfix with a configuration, queue and port of its own; nothing of the system's installation is touched."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from support.certificates import BAD, certificate, write_authority
from support.daemon import wait_until
from support.ports import free_ports
from support.requires import find_command, requires_command, requires_root

DOMAINS = ("example.org", "example.com")
_REALM = "mail.example.net"
_MAILBOX_USER = "nobody"    # virtual(8) does not deliver as root

_MAIN_CF = """\
compatibility_level = 3.6
config_directory = {directory}/etc
queue_directory = {directory}/queue
data_directory = {directory}/data
maillog_file = {directory}/log
maillog_file_prefixes = {directory}
myhostname = mail.example.net
inet_interfaces = 127.0.0.1
inet_protocols = ipv4
mydestination =
mynetworks =
alias_maps =
alias_database =
local_recipient_maps =
smtpd_peername_lookup = no
smtpd_error_sleep_time = 0s
biff = no

# Nothing ever leaves this machine.
default_transport = error:5.4.4 no mail is sent from here
relay_transport = error:5.4.4 no mail is sent from here

# Else Postfix completes the header fields of its own host's mails.
local_header_rewrite_clients =

smtpd_tls_security_level = may
smtpd_tls_auth_only = yes
smtpd_tls_chain_files = {directory}/etc/good.pem
smtpd_tls_CAfile = {directory}/etc/ca.pem
smtpd_tls_loglevel = 1

smtpd_sasl_auth_enable = yes
smtpd_sasl_path = smtpd
smtpd_sasl_local_domain = {realm}
cyrus_sasl_config_path = {directory}/etc/sasl
smtpd_relay_restrictions = permit_sasl_authenticated, reject
smtpd_recipient_restrictions = permit_sasl_authenticated, reject

virtual_mailbox_domains = {domains}
virtual_mailbox_base = {directory}/mail
virtual_mailbox_maps = regexp:{directory}/etc/mailboxes
virtual_uid_maps = static:{uid}
virtual_gid_maps = static:{gid}
virtual_transport = virtual
"""

# service type private unpriv chroot wakeup maxproc command
_MASTER_CF = """\
{services}
cleanup unix n - n - 0 cleanup
qmgr unix n - n 300 1 qmgr
tlsmgr unix - - n 1000? 1 tlsmgr
rewrite unix - - n - - trivial-rewrite
bounce unix - - n - 0 bounce
defer unix - - n - 0 bounce
trace unix - - n - 0 bounce
proxymap unix - - n - - proxymap
error unix - - n - - error
virtual unix - n n - - virtual
anvil unix - - n - 1 anvil
scache unix - - n - 1 scache
postlog unix-dgram n - n - 1 postlogd
"""

_MECHANISMS = ("PLAIN", "LOGIN", "CRAM-MD5")
# What main.cf says otherwise for some ports
_SERVICES = {
    "good": [],
    **{kind: [f"smtpd_tls_chain_files={{directory}}/etc/{kind.replace(' ', '-')}.pem"] for kind in BAD},
    **{mechanism: [f"smtpd_sasl_mechanism_filter={mechanism.lower()}"] for mechanism in _MECHANISMS},
    "client certificate": ["smtpd_tls_security_level=encrypt", "smtpd_tls_req_ccert=yes"],
    "no TLS": ["smtpd_tls_security_level=none", "smtpd_tls_auth_only=no"],
}

_MAILBOXES = "!/^unknown/ box/\n"

_SASL_CONF = """\
pwcheck_method: auxprop
auxprop_plugin: sasldb
sasldb_path: {directory}/etc/sasldb2
mech_list: PLAIN LOGIN CRAM-MD5 DIGEST-MD5
"""


class Postfix:
    """Listens on free ports of 127.0.0.1, as a context manager.

    It offers STARTTLS, and after that AUTH, without which it accepts no mail. Mail for DOMAINS goes to one Maildir,
    but addresses that begin with "unknown" are refused.

    ``ports``: by what is otherwise there, and whether it is TLS from the first byte. "good" is as said above, the names
    of bad certificates show one of those, those of mechanisms take no other one, "client certificate" demands one, and
    "no TLS" has none and takes a login without it.
    """

    def __init__(self, login: str = "zope", password: str = "let me in"):
        requires_command("postfix", "saslpasswd2")
        requires_root()
        self.login = login
        self.password = password
        offers = [(service, implicit_tls) for service in _SERVICES for implicit_tls in (False, True)]
        offers.remove(("no TLS", True))
        self.ports = dict(zip(offers, free_ports(len(offers)), strict=True))
        self.port = self.ports["good", False]

    def __enter__(self) -> Postfix:
        # Not pytest's temporary directory: Postfix's account cannot go there, and names of sockets have to be short.
        self.directory = Path(tempfile.mkdtemp(prefix="postfix-"))
        try:
            self._configure()
            self._process = self._run_in_foreground()
            wait_until(self._serves, told=self.read_log)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc: object) -> None:
        process = getattr(self, "_process", None)
        if process and process.poll() is None:
            self._command("postfix", "-c", self._etc, "stop")
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.directory)

    def delivered(self) -> list[bytes]:
        """The mails in the Maildir as they are on disk, in no certain order."""
        return [path.read_bytes() for path in (self.directory / "mail" / "box" / "new").glob("*")]

    def forget(self) -> None:
        """Empty the Maildir and the log."""
        for path in (self.directory / "mail" / "box" / "new").glob("*"):
            path.unlink()
        (self.directory / "log").write_bytes(b"")    # postlogd opens it anew for each line

    def read_log(self) -> str:
        """What Postfix has logged, and printed before it could log."""
        logs = (self.directory / "log", self.directory / "output")
        return "\n".join(path.read_text(errors="replace") for path in logs if path.exists())

    def wait_for_log(self, text: str, times: int = 1) -> None:
        """Wait until the log has this: a process of its own writes it, in its own time."""
        wait_until(lambda: self.read_log().count(text) >= times, told=self.read_log)

    # -- setting it up --

    @property
    def _etc(self) -> Path:
        return self.directory / "etc"

    def _configure(self) -> None:
        self.directory.chmod(0o755)
        mailbox_user = pwd.getpwnam(_MAILBOX_USER)
        for name in ("etc", "etc/sasl", "queue", "data", "mail"):
            (self.directory / name).mkdir()
        shutil.chown(self.directory / "data", "postfix")
        os.chown(self.directory / "mail", mailbox_user.pw_uid, mailbox_user.pw_gid)
        values: dict[str, Any] = {
            "directory": self.directory,
            "domains": ", ".join(DOMAINS),
            "gid": mailbox_user.pw_gid,
            "realm": _REALM,
            "uid": mailbox_user.pw_uid,
        }
        values["services"] = "\n".join(self._services())
        (self._etc / "main.cf").write_text(_MAIN_CF.format(**values))
        (self._etc / "master.cf").write_text(_MASTER_CF.format(**values))
        (self._etc / "mailboxes").write_text(_MAILBOXES)
        (self._etc / "sasl" / "smtpd.conf").write_text(_SASL_CONF.format(**values))
        write_authority(self._etc)
        for kind in ("good", *BAD):
            path = self._etc / f"{kind.replace(' ', '-')}.pem"
            certificate(kind).private_key_and_cert_chain_pem.write_to_path(str(path))
        passwords = self._etc / "sasldb2"
        self._command("saslpasswd2", "-p", "-c", "-f", passwords, "-u", _REALM, self.login, given=self.password)
        shutil.chown(passwords, "postfix")

    def _services(self) -> Iterator[str]:
        for (service, implicit_tls), port in self.ports.items():
            changed = [*_SERVICES[service], *(["smtpd_tls_wrappermode=yes"] if implicit_tls else [])]
            options = "".join(f" -o {setting.format(directory=self.directory)}" for setting in changed)
            yield f"127.0.0.1:{port} inet n - n - - smtpd{options}"

    def _run_in_foreground(self) -> subprocess.Popen[bytes]:
        with (self.directory / "output").open("wb") as output:
            command = [str(find_command("postfix")), "-c", str(self._etc), "start-fg"]
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=output, stderr=output)

    def _serves(self) -> bool:
        assert self._process.poll() is None, f"Postfix did not start\n{self.read_log()}"
        return "daemon started" in self.read_log()

    def _command(self, name: str, *arguments: object, given: str = "") -> None:
        command = [str(find_command(name)), *map(str, arguments)]
        result = subprocess.run(command, input=given, capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, f"{name}: {result.stdout}{result.stderr}"

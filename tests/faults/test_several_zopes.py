"""Zope processes with one database (ZEO) send through one spool, which two daemons serve, while one Zope is killed."""

import re
import threading
from collections import Counter
from contextlib import ExitStack
from http.client import HTTPException
from itertools import count
from pathlib import Path

import pytest
import ZEO
from support.daemon import MaildropDaemon, wait_until
from support.relay_server import RelayServer
from support.scripted_relay import subject_of
from support.writer_process import CONTENT
from support.zope_site import ZopeSite

KILLS = 3
REQUESTS_BETWEEN = 20
CLIENTS = 2    # for each Zope: their requests change the same object, so some conflict and are tried again
PATIENCE_S = 60


class Clients:
    """Threads that ask a Zope for a page which sends a mail and changes the database, again and again."""

    def __init__(self, name: str, site: ZopeSite):
        self.answered = 0
        self._site = site
        self._subjects = (f"{name}-{number}" for number in count())
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._threads = [threading.Thread(target=self._run) for _ in range(CLIENTS)]

    def _run(self) -> None:
        while not self._ended.is_set():
            with self._lock:
                subject = next(self._subjects)
            try:
                status, _ = self._site.get(f"/pages/work?subject={subject}")
            except (OSError, HTTPException):    # it has just been killed, or is not up again yet
                self._ended.wait(0.1)
                continue
            with self._lock:
                self.answered += status == 200

    def wait_for_more(self) -> None:
        enough = self.answered + REQUESTS_BETWEEN
        wait_until(lambda: self.answered >= enough, PATIENCE_S)

    def __enter__(self):
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc):
        self._ended.set()
        for thread in self._threads:
            thread.join()


@pytest.fixture
def address(tmp_path):
    """That of a ZEO server."""
    address, stop = ZEO.server(path=str(tmp_path / "Data.fs"), threaded=False)
    yield address
    stop()


def make_site(directory, address, config):
    site = ZopeSite(directory, extra_path=(Path(__file__).parents[1],))
    site.create({"config-path-1": config})
    conf = directory / "etc" / "zope.conf"
    client = f"<zeoclient>\n server {address[0]}:{address[1]}\n</zeoclient>"
    text, found = re.subn(r"(?s)<filestorage>.*?</filestorage>", client, conf.read_text(), count=1)
    assert found
    conf.write_text(f"%import ZEO\n{text}")
    return site


@pytest.mark.fault_kind("one of two Zopes killed under load")
def test_what_two_zopes_send_through_one_spool_arrives_once_though_one_is_killed(tmp_path, address, ledger):
    with ExitStack() as stack:
        relay = stack.enter_context(RelayServer())
        one = stack.enter_context(MaildropDaemon(tmp_path / "one", relay.port))
        other = stack.enter_context(MaildropDaemon(tmp_path / "other", relay.port, MAILDROP_SPOOL=one.spool))
        sites = [make_site(tmp_path / name, address, one.config) for name in ("zope1", "zope2")]
        sites[0].run_script(CONTENT)
        for site in sites:
            site.start()
            stack.callback(site.stop)
        with Clients("victim", sites[0]) as victims, Clients("survivor", sites[1]) as survivors:
            for _ in range(KILLS):
                victims.wait_for_more()
                sites[0].kill()
                survivors.wait_for_more()
                sites[0].start()
            victims.wait_for_more()
        one.wait_until(lambda: not one.waiting())
        for site in sites:
            site.stop()
        logs = one.read_log(), other.read_log()

    database = ZEO.DB(address, wait_timeout=30)
    try:
        with database.transaction() as connection:
            done = connection.root()["Application"].pages.done
    finally:
        database.close()
    arrived = Counter(subject_of(mail.content).decode().removesuffix(" 0") for mail in relay.accepted)
    missed = [subject for subject in done if not arrived[subject]]
    too_many = {subject: number for subject, number in arrived.items() if number > 1 or subject not in done}
    ledger.add(tried=KILLS, lost=len(missed), duplicates=len(too_many))
    assert (missed, too_many) == ([], {})
    assert len(done) >= (2 * KILLS + 1) * REQUESTS_BETWEEN
    assert all("OK\t" in log for log in logs)    # both daemons had a part in it

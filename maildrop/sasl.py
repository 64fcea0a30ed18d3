"""What is said in a login that smtplib has no mechanism for, and what of a login must not be repeated."""

from __future__ import annotations

import base64
from collections.abc import Callable

_SHORTEST_SECRET = 6    # characters; shorter ones are found in any text

Said = Callable[..., str]    # as smtplib calls it: without argument for the beginning, with a challenge for what follows


def xoauth2(login: str, token: str, host: str, port: int) -> Said:
    """Google's and Microsoft's mechanism. Their challenge tells of an error; an empty answer gets the final reply."""
    begin = f"user={login}\x01auth=Bearer {token}\x01\x01"
    return lambda challenge=None: begin if challenge is None else ""


def oauthbearer(login: str, token: str, host: str, port: int) -> Said:
    """RFC 7628 sections 3.1 and 3.2.3: the challenge tells of an error, which is to be answered with one byte."""
    name = login.replace("=", "=3D").replace(",", "=2C")    # RFC 5801 section 4
    begin = f"n,a={name},\x01host={host}\x01port={port}\x01auth=Bearer {token}\x01\x01"
    return lambda challenge=None: begin if challenge is None else "\x01"


def plain(login: str, password: str) -> str:
    """What follows AUTH PLAIN, of any characters, which smtplib cannot say (RFC 4616 section 2, RFC 4954 section 4)."""
    return base64.b64encode(f"\0{login}\0{password}".encode()).decode()


MECHANISMS = {"xoauth2": xoauth2, "oauthbearer": oauthbearer}


def forms(login: str, password: str) -> list[str]:
    """In which shapes a login goes out, so that a relay which quotes it can be kept from spreading it."""
    said = (password, f"\0{login}\0{password}", *(m(login, password, "", 0)() for m in MECHANISMS.values()))
    encoded = (base64.b64encode(text.encode("utf-8", "replace")).decode() for text in said)
    return [text for text in (password, *encoded) if len(text) >= _SHORTEST_SECRET]

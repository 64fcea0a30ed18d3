"""Message bytes -> what goes over the wire: line ends, dots, the final dot (RFC 5321 2.3.8, 4.5.2)."""

from __future__ import annotations

from collections.abc import Iterator


def wire_format(chunks: Iterator[bytes]) -> Iterator[bytes]:
    """Turn message bytes, however they are cut, into what goes over the wire; the last chunk has the final dot.

    LF, CRLF and a lone CR become CRLF, a missing last line end is added, a dot that begins a line is doubled.
    """
    ready = b""    # one chunk behind, so that the final dot does not travel alone
    at_line_start = True
    held_cr = b""    # a CR at the end of a chunk may be half of a CRLF
    for chunk in chunks:
        chunk = held_cr + chunk
        held_cr = b"\r" if chunk.endswith(b"\r") else b""
        lines = _with_crlf(chunk[: len(chunk) - len(held_cr)]).replace(b"\n.", b"\n..")
        if not lines:
            continue
        if at_line_start and lines.startswith(b"."):
            lines = b"." + lines
        at_line_start = lines.endswith(b"\n")
        if ready:
            yield ready
        ready = lines
    yield ready + (b"\r\n" if held_cr or not at_line_start else b"") + b".\r\n"


def _with_crlf(text: bytes) -> bytes:
    if b"\r" in text:
        text = text.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    return text.replace(b"\n", b"\r\n")

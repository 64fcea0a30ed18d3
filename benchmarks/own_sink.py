"""An SMTP server that takes all mail and prints when each was there: ``python -m benchmarks.own_sink``.

The first line of its output has the port of 127.0.0.1 that it listens on, each further one a time of the system's monotonic
clock and a mail's subject. It runs until it is terminated.
"""

from __future__ import annotations

import asyncio
import re
import time

_END = b"\r\n.\r\n"
_HEAD_SIZE = 4096
_REPLIES = {
    b"EHLO": b"250-sink.example.org\r\n250-PIPELINING\r\n250 8BITMIME\r\n",
    b"DATA": b"354 go on\r\n",
    b"QUIT": b"221 bye\r\n",
}


class Session(asyncio.Protocol):
    def connection_made(self, transport: asyncio.Transport) -> None:
        self._transport = transport
        self._received = b""
        self._head: bytes | None = None    # the beginning of a mail's content; None while commands come
        transport.write(b"220 sink.example.org ESMTP\r\n")

    def data_received(self, data: bytes) -> None:
        self._received += data
        while self._take_content() if self._head is not None else self._take_command():
            pass

    def _take_command(self) -> bool:
        line, end, rest = self._received.partition(b"\r\n")
        if not end:
            return False
        self._received = rest
        verb = line[:4].upper()
        self._transport.write(_REPLIES.get(verb, b"250 fine\r\n"))
        if verb == b"DATA":
            self._head = b""
            self._received = b"\r\n" + rest    # so that the end of a mail without a line is an end too
        elif verb == b"QUIT":
            self._transport.close()
        return True

    def _take_content(self) -> bool:
        content, end, rest = self._received.partition(_END)
        self._head = (self._head + content)[:_HEAD_SIZE]
        if not end:
            self._received = self._received[-len(_END) + 1 :]    # may be the end's beginning
            return False
        found = re.search(rb"(?im)^Subject: ([^\r\n]*)", self._head)
        print(time.monotonic(), found[1].decode() if found else "", flush=True)
        self._head, self._received = None, rest
        self._transport.write(b"250 taken\r\n")
        return True


async def main() -> None:
    server = await asyncio.get_running_loop().create_server(Session, "127.0.0.1", 0, backlog=256)
    print("listening", server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main())

"""A distant relay: all that passes arrives later, and the turns of the clients are counted.

``python -m benchmarks.delay_proxy HOST PORT MILLISECONDS`` passes connections on to PORT of HOST. Each direction takes
half of the round trip of so many milliseconds, on a busy machine one millisecond more; how much is on the way at a time
is not limited. It prints the port of 127.0.0.1 that it listens on, and when its standard input ends, how many turns
there were: a turn begins when a client sends something for the first time after it was sent something. A client has
waited for that many round trips, or for fewer where it sends on while replies come in.
"""

from __future__ import annotations

import asyncio
import os
import selectors
import sys
import time
from collections.abc import Callable, Sequence

from benchmarks.sinks import Server

_turns = 0


class DelayProxy(Server):
    """The proxy, running, for a relay. ``entering``: the beginning of a command that runs it somewhere else."""

    def __init__(
        self, relay_port: int, round_trip_ms: float, relay_host: str = "127.0.0.1", entering: Sequence[str] = ()
    ):
        relay = [relay_host, str(relay_port)]
        super().__init__([*entering, sys.executable, "-m", "benchmarks.delay_proxy", *relay, str(round_trip_ms)])
        self.port = self._read_port()

    def end_and_count_turns(self) -> int:
        output, _ = self._process.communicate()
        return int(output.split()[-1])


# -- in the proxy's process --


class Side(asyncio.Protocol):
    """One of the two connections: what it receives is written to ``other`` after the delay."""

    def __init__(self, delay_s: float):
        self.transport: asyncio.Transport | None = None
        self.other: Side | None = None
        self.delay_s = delay_s
        self._on_the_way: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue()    # b"" for the end

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        self._on_the_way.put_nowait((time.monotonic() + self.delay_s, data))

    def connection_lost(self, error: Exception | None) -> None:
        self._on_the_way.put_nowait((time.monotonic() + self.delay_s, b""))

    async def pass_on(self) -> None:
        while True:
            arrives_at, data = await self._on_the_way.get()
            await asyncio.sleep(max(0, arrives_at - time.monotonic()))
            if not data:
                self.other.transport.close()
                return
            self.other.write(data)

    def write(self, data: bytes) -> None:
        self.transport.write(data)


class ClientSide(Side):
    """The connection to the client, whose turns are counted."""

    def __init__(self, delay_s: float, relay: tuple[str, int]):
        super().__init__(delay_s)
        self._relay = relay
        self._has_spoken = False

    def connection_made(self, transport: asyncio.Transport) -> None:
        super().connection_made(transport)
        self._task = asyncio.ensure_future(self._connect())

    async def _connect(self) -> None:
        await asyncio.sleep(3 * self.delay_s)    # until the relay hears of the connection: SYN, SYN and ACK, ACK
        _, self.other = await asyncio.get_running_loop().create_connection(
            lambda: Side(self.delay_s), *self._relay
        )
        self.other.other = self
        await asyncio.gather(self.pass_on(), self.other.pass_on())

    def data_received(self, data: bytes) -> None:
        global _turns
        if not self._has_spoken:
            _turns += 1
            self._has_spoken = True
        super().data_received(data)

    def write(self, data: bytes) -> None:
        self._has_spoken = False
        super().write(data)


async def _serve(client_side: Callable[[], ClientSide]) -> None:
    loop = asyncio.get_running_loop()
    server = await loop.create_server(client_side, "127.0.0.1", 0, backlog=256)
    print("listening", server.sockets[0].getsockname()[1], flush=True)
    await loop.run_in_executor(None, sys.stdin.read)
    print("turns", _turns, flush=True)
    os._exit(0)    # whatever is still on the way


if __name__ == "__main__":
    relay, delay_s = (sys.argv[1], int(sys.argv[2])), float(sys.argv[3]) / 2000
    # epoll, asyncio's choice, rounds each sleep up to a full millisecond
    loop = asyncio.SelectorEventLoop(selectors.SelectSelector())
    loop.run_until_complete(_serve(lambda: ClientSide(delay_s, relay)))

"""A TCP proxy with a bad character, for tests: it stalls, delays, cuts, duplicates connections.

It runs in a thread and an event loop of its own, so that sync and async tests drive it alike; every control
returns when it is in force. What is stalled is not lost: after `heal` the old connections go on with what the
kernel still holds, as after a real partition. Bytes are only ever lost together with their connection.
"""

import asyncio
import random
import socket
import struct
import threading
from collections.abc import Callable, Coroutine
from types import TracebackType
from typing import Any, Self

UP, DOWN = "up", "down"  # client to server, server to client


class Proxy:
    """Between clients of `address` and the server at `target`. Use as a context manager."""

    def __init__(self, target: tuple[str, int], *, port: int = 0, seed: int = 0) -> None:
        self.target = target
        self.accepted = 0
        self._random = random.Random(seed)
        self._wanted_port = port
        self._links: set[_Link] = set()
        self._open = {UP: asyncio.Event(), DOWN: asyncio.Event()}
        self._delay_s = 0.0
        self._jitter_s = 0.0
        self._refusing = False
        self._duplicating = False
        self._cut_after: int | None = None
        self._tasks: set[asyncio.Task[None]] = set()
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="proxy", daemon=True)

    # Controls.

    def stall(self, up: bool = True, down: bool = True) -> None:
        """A partition: nothing passes, nobody is told, new connections hang. Or in one direction only."""
        self._do(lambda: self._set_open(up=not up, down=not down))

    def heal(self) -> None:
        """The partition is over; connections that nobody closed meanwhile go on."""
        self._do(lambda: self._set_open(up=True, down=True))

    def cut(self) -> int:
        """Reset every connection, both ways; how many there were."""
        return self._do(self._cut_all)

    def refuse(self, refusing: bool = True) -> None:
        """Reset each new connection at once, as a port without listener does; the old ones stay."""
        self._do(lambda: setattr(self, "_refusing", refusing))

    def delay(self, delay_s: float, jitter_s: float = 0.0) -> None:
        """Hold every piece of either direction for `delay_s` plus up to `jitter_s`; the order stays."""
        self._do(lambda: self._set_delay(delay_s, jitter_s))

    def duplicate(self, duplicating: bool = True) -> None:
        """Give the server each new connection twice: it hears both; what it answers the second is lost."""
        self._do(lambda: setattr(self, "_duplicating", duplicating))

    def cut_after(self, size: int | None) -> None:
        """Reset each connection, the open ones too, once that many more bytes have passed, both ways."""
        self._do(lambda: self._set_cut_after(size))

    def redirect(self, target: tuple[str, int]) -> None:
        """Where new connections go from now on."""
        self._do(lambda: setattr(self, "target", target))

    @property
    def connections(self) -> int:
        return self._do(lambda: len(self._links))

    @property
    def port(self) -> int:
        return self.address[1]

    # Life.

    def __enter__(self) -> Self:
        self._thread.start()
        self._set_open(up=True, down=True)
        self._server = self._run(asyncio.start_server(self._accept, "127.0.0.1", self._wanted_port))
        self.address: tuple[str, int] = self._server.sockets[0].getsockname()[:2]
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._run(self._close())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(5)
        assert not self._thread.is_alive(), "the proxy's thread does not end"
        self._loop.close()

    async def _close(self) -> None:
        self._server.close()
        self._cut_all()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def _run(self, coroutine: Coroutine[Any, Any, Any]) -> Any:
        return asyncio.run_coroutine_threadsafe(coroutine, self._loop).result(10)

    def _do(self, act: Callable[[], Any]) -> Any:
        async def in_loop() -> Any:
            return act()

        return self._run(in_loop())

    def _set_open(self, *, up: bool, down: bool) -> None:
        for direction, is_open in ((UP, up), (DOWN, down)):
            event = self._open[direction]
            event.set() if is_open else event.clear()

    def _set_delay(self, delay_s: float, jitter_s: float) -> None:
        self._delay_s, self._jitter_s = delay_s, jitter_s

    def _set_cut_after(self, size: int | None) -> None:
        self._cut_after = size
        for link in self._links:
            link.left = size

    def _cut_all(self) -> int:
        links = list(self._links)
        for link in links:
            link.reset()
        return len(links)

    # Connections.

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.accepted += 1
        self._begin(self._on_client(reader, writer))

    def _begin(self, coroutine: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(coroutine)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _on_client(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            _reset(writer)
            return
        await self._open[UP].wait()
        try:
            server_reader, server_writer = await asyncio.open_connection(*self.target)
        except OSError:
            _reset(writer)
            return
        link = _Link(writer, server_writer, self._cut_after)
        if self._duplicating:
            await self._add_shadow(link)
        self._links.add(link)
        try:
            await asyncio.gather(
                self._pump(link, UP, reader, link.server), self._pump(link, DOWN, server_reader, link.client)
            )
        finally:
            link.reset()
            self._links.discard(link)

    async def _add_shadow(self, link: "_Link") -> None:
        reader, link.shadow = await asyncio.open_connection(*self.target)

        async def swallow() -> None:
            try:
                while await reader.read(1 << 16):
                    pass
            except OSError:
                return

        self._begin(swallow())

    async def _pump(
        self, link: "_Link", direction: str, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        try:
            while True:
                data = await reader.read(1 << 16)
                if self._delay_s or self._jitter_s:
                    await asyncio.sleep(self._delay_s + self._random.random() * self._jitter_s)
                await self._open[direction].wait()
                if not data:
                    writer.write_eof()
                    return
                data = link.take(data)
                writer.write(data)
                if direction == UP and link.shadow is not None and not link.shadow.is_closing():
                    link.shadow.write(data)
                await writer.drain()
                if link.left == 0:
                    link.reset()
                    return
        except OSError:
            link.reset()


class _Link:
    """One client's connection and the server's side of it."""

    def __init__(self, client: asyncio.StreamWriter, server: asyncio.StreamWriter, left: int | None) -> None:
        self.client = client
        self.server = server
        self.shadow: asyncio.StreamWriter | None = None
        self.left = left

    def take(self, data: bytes) -> bytes:
        """What may still pass of it."""
        if self.left is None:
            return data
        data = data[: self.left]
        self.left -= len(data)
        return data

    def reset(self) -> None:
        for writer in (self.client, self.server, self.shadow):
            if writer is not None:
                _reset(writer)


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close with a reset, not with a polite end."""
    connection = writer.get_extra_info("socket")
    if connection is not None and connection.fileno() >= 0:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()

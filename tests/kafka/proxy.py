"""A TCP proxy whose line can be cut, slowed and made to swallow everything while it runs."""

import asyncio
import contextlib
import threading
from collections.abc import Coroutine
from enum import Enum, auto


class _Line(Enum):
    PASSES = auto()
    REFUSES = auto()
    SWALLOWS = auto()


_Chunks = asyncio.Queue[tuple[float, bytes]]
"""What was read and when it may arrive; empty bytes: the end."""

_CHUNK_BYTES, _MAX_CHUNKS = 64 * 1024, 1024


class Proxy:
    """Between clients on a port of its own and a server on another; in a thread of its own.

    What a method says is so when it returns. Where the server is away, clients are accepted, and
    their connection closed.
    """

    def __init__(self, port: int, server_port: int) -> None:
        self.port = port
        self._server_port = server_port
        self._line = _Line.PASSES
        self._delay_s = 0.0
        self._connections: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name=f"proxy-{port}", daemon=True)
        self._thread.start()
        try:
            self._do(self._switch(_Line.PASSES))
        except OSError:
            self.close()
            raise

    # Faults

    def restore(self) -> None:
        """Pass everything on, at once. Connections that something was swallowed of are closed."""
        self._delay_s = 0.0
        self._do(self._switch(_Line.PASSES))

    def refuse(self) -> None:
        """Close everything and listen no more."""
        self._do(self._switch(_Line.REFUSES))

    def black_hole(self) -> None:
        """Accept, and swallow what either side says, on connections old and new. None ends."""
        self._do(self._switch(_Line.SWALLOWS))

    def delay(self, seconds: float) -> None:
        """Have what the server says from now on arrive so much later."""
        self._delay_s = seconds

    def cut(self) -> None:
        """Close all connections. New ones are welcome."""
        self._do(self._cut())

    def close(self) -> None:
        """End it for good."""
        if self._thread.is_alive():
            self._do(self._switch(_Line.REFUSES))
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join()

    # In its thread

    def _do(self, what: Coroutine[None, None, None]) -> None:
        asyncio.run_coroutine_threadsafe(what, self._loop).result(10)

    def _run(self) -> None:
        try:
            self._loop.run_forever()
        finally:
            self._loop.close()

    async def _switch(self, line: _Line) -> None:
        before, self._line = self._line, line
        if line is _Line.REFUSES and self._listener is not None:
            self._listener.close()
            self._listener = None
        elif line is not _Line.REFUSES and self._listener is None:
            self._listener = await asyncio.start_server(self._serve, "127.0.0.1", self.port)
        if line is _Line.REFUSES or (before is _Line.SWALLOWS and line is not before):
            await self._cut()

    async def _cut(self) -> None:
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.current_task()
        assert connection is not None
        self._connections.add(connection)
        try:
            if self._line is _Line.PASSES:
                await self._relay(reader, writer)
            while self._line is _Line.SWALLOWS and await reader.read(_CHUNK_BYTES):
                pass
        except (OSError, asyncio.CancelledError):
            pass  # one side is gone, or we cut it, and so is the other now
        finally:
            writer.transport.abort()
            self._connections.discard(connection)

    async def _relay(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        from_server, to_server = await asyncio.open_connection("127.0.0.1", self._server_port)
        up, down = _Chunks(_MAX_CHUNKS), _Chunks(_MAX_CHUNKS)
        reading = [
            asyncio.create_task(self._read(reader, up, delayed=False)),
            asyncio.create_task(self._read(from_server, down, delayed=True)),
        ]
        writing = [
            asyncio.create_task(self._write(up, to_server)),
            asyncio.create_task(self._write(down, writer)),
        ]
        try:
            await asyncio.wait(writing, return_when=asyncio.FIRST_COMPLETED)
        finally:
            to_server.transport.abort()  # first: who cuts the line may come while we wait
            for task in (*reading, *writing):
                task.cancel()
            await asyncio.gather(*reading, *writing, return_exceptions=True)

    async def _read(self, reader: asyncio.StreamReader, chunks: _Chunks, *, delayed: bool) -> None:
        data = b"more"
        while data:
            data = b""
            with contextlib.suppress(OSError):
                data = await reader.read(_CHUNK_BYTES)
            due = self._loop.time() + (self._delay_s if delayed else 0)
            await chunks.put((due, data))

    async def _write(self, chunks: _Chunks, writer: asyncio.StreamWriter) -> None:
        """Until the end is reached. A line that swallows swallows that too."""
        while True:
            due, data = await chunks.get()
            if (wait_s := due - self._loop.time()) > 0:
                await asyncio.sleep(wait_s)
            if self._line is _Line.SWALLOWS:
                continue
            if not data:
                return
            writer.write(data)
            await writer.drain()

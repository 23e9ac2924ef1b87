"""What the tests of the listener share: a websocket server, the API that names it, a log.

The server sends nothing again, as the provider does not, and sends everything to everybody.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from typing import Any

from websockets.asyncio.server import ServerConnection, serve
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response

from ingest.errors import PublishError
from ingest.eventlog.lanes import Group
from ingest.eventlog.log import Record
from tests.kit import SECRET

SOON_S = 30.0

#: Part of every address; must turn up nowhere.
TOKEN = "token-that-nobody-may-see"


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(SOON_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.005)


class Peer:
    """A websocket server; ``welcome`` is what it does with who has connected."""

    def __init__(self) -> None:
        self.port = 0
        #: The loop's clock at each handshake.
        self.opened: list[float] = []
        self.clients: list[ServerConnection] = []
        #: Close code that each client has given, by its number.
        self.codes: list[int | None] = []
        self.welcome: Callable[[ServerConnection], Awaitable[object]] | None = None
        #: Status of the answer to handshakes; None: they succeed.
        self.refusal: int | None = None
        self.life_s: float | None = None

    @property
    def url(self) -> str:
        return f"ws://127.0.0.1:{self.port}/events/{TOKEN}"

    async def send(self, frame: bytes | str, *, text: bool = True) -> int:
        """To everybody; to how many."""
        sent = 0
        for client in list(self.clients):
            with suppress(ConnectionClosed):
                await client.send(frame, text=text)
                sent += 1
        return sent

    def cut(self) -> None:
        for client in self.clients:
            client.transport.abort()

    def _answer(self, connection: ServerConnection, _: Request) -> Response | None:
        return None if self.refusal is None else connection.respond(self.refusal, "no\n")

    async def _serve(self, connection: ServerConnection) -> None:
        loop = asyncio.get_running_loop()
        self.opened.append(loop.time())
        if self.welcome is not None:
            await self.welcome(connection)
        self.clients.append(connection)
        try:
            async with asyncio.timeout(self.life_s):
                await connection.wait_closed()
        except TimeoutError:
            connection.transport.abort()
        finally:
            self.clients.remove(connection)
            self.codes.append(connection.close_code)


@asynccontextmanager
async def peer() -> AsyncIterator[Peer]:
    """A server that pings nobody; who is connected at its end is cut."""
    found = Peer()
    async with serve(
        found._serve,
        "127.0.0.1",
        0,
        process_request=found._answer,
        ping_interval=None,
        compression=None,
        max_size=None,
        close_timeout=1,
    ) as server:
        found.port = next(iter(server.sockets)).getsockname()[1]
        try:
            yield found
        finally:
            found.cut()


class Api:
    """As much of Dialpad's API as gives the address of a peer."""

    def __init__(self, at: Peer) -> None:
        self.peer = at
        self.port = 0
        self.asked: list[str] = []
        #: Status and body of every answer; None: it does what it is asked for.
        self.answer: tuple[int, bytes] | None = None

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.IncompleteReadError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                method, target, _ = head.split(" ", 2)
                path = target.partition("?")[0]
                self.asked.append(f"{method} {path}")
                status, body = self.answer or (200, self._body(path))
                writer.write(
                    f"HTTP/1.1 {status} X\r\ncontent-type: application/json\r\n"
                    f"content-length: {len(body)}\r\n\r\n".encode()
                    + body
                )
                await writer.drain()
        writer.close()

    def _body(self, path: str) -> bytes:
        websocket = {
            "id": "5000000000004101",
            "websocket_url": self.peer.url,
            "signature": {"algo": "HS256", "secret": SECRET, "type": "jwt"},
        }
        found = {"items": [websocket]} if path == "/api/v2/websockets" else websocket
        return json.dumps(found).encode()


@asynccontextmanager
async def api_of(at: Peer) -> AsyncIterator[Api]:
    found = Api(at)
    async with await asyncio.start_server(found._serve, "127.0.0.1", 0) as server:
        found.port = server.sockets[0].getsockname()[1]
        yield found


class PlayLog:
    """An event log in memory that does as a test says. Records of one key have one story."""

    def __init__(self) -> None:
        self.records: list[Record] = []
        self.refusal: str | None = None
        #: What becomes of the next calls: "refuse" at once, "fail" later; then all is well.
        self.script: list[str] = []
        #: How long everything takes, in seconds.
        self.takes_s = 0.0
        self.published = 0

    def publish(self, records: Sequence[Record]) -> Group:
        self.published += 1
        fate = self.script.pop(0) if self.script else "store"
        if self.refusal is not None or fate == "refuse":
            raise PublishError(self.refusal or "overload")
        loop = asyncio.get_running_loop()
        group = Group(loop)

        def settle() -> None:
            if fate == "fail":
                group.settle("", PublishError("disk_error"))
            else:
                self.records += records
                group.settle("memory")

        loop.call_later(self.takes_s, settle)
        return group

    def spools(self, topic: str) -> bool:
        return False

    def degraded(self) -> Sequence[str]:
        return ()

    def refusing(self) -> str | None:
        return self.refusal

    @property
    def queued_bytes(self) -> int:
        return 0

    def reconnect(self) -> None:
        pass

    def values(self, topic: str) -> list[dict[str, Any]]:
        return [json.loads(r.value) for r in self.records if r.topic == topic and r.value]

    def legs(self) -> dict[str, list[str]]:
        """What calls' events say, by leg, each once, by its first occurrence."""
        found: dict[str, dict[str, None]] = {}
        for event in self.values("calls"):
            found.setdefault(event["data"]["call_id"], {})[event["data"]["custom_data"]] = None
        return {leg: list(said) for leg, said in found.items()}

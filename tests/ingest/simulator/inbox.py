"""A receiver that answers as it is told to, and keeps what it got."""

import asyncio
import base64
import hmac
import itertools
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, TypeAlias

#: A status; `BREAK_OFF`: close without one; `SAY_NOTHING`: leave the connection open.
BREAK_OFF, SAY_NOTHING = None, 0
Answer: TypeAlias = Callable[[bytes], int | None]


def accept(_: bytes) -> int:
    return 204


class Inbox:
    def __init__(self, answer: Answer) -> None:
        self.answer = answer
        self.bodies: list[bytes] = []
        #: Names in small letters.
        self.headers: list[dict[str, str]] = []
        self.connections = 0
        #: Further lines of an answer's head.
        self.more = b""
        self.url = ""
        self._writers: set[asyncio.StreamWriter] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        self._writers.add(writer)
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode()
                lines = (line.split(": ", 1) for line in head.split("\r\n")[1:] if line)
                headers = {name.lower(): value for name, value in lines}
                body = await reader.readexactly(int(headers["content-length"]))
                self.bodies.append(body)
                self.headers.append(headers)
                status = self.answer(body)
                if status is BREAK_OFF:
                    return
                if status != SAY_NOTHING:
                    rest = b"\r\n" if status == 204 else b"Content-Length: 2\r\n\r\nok"
                    writer.write(b"HTTP/1.1 %d So\r\n" % status + self.more + rest)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            self._writers.discard(writer)
            writer.close()

    @property
    def types(self) -> list[str]:
        return [headers["content-type"] for headers in self.headers]

    @property
    def events(self) -> list[dict[str, Any]]:
        return [event_in(body) for body in self.bodies]

    def close(self) -> None:
        for writer in list(self._writers):
            writer.close()


@asynccontextmanager
async def open_inbox(answer: Answer = accept) -> AsyncIterator[Inbox]:
    inbox = Inbox(answer)
    server = await asyncio.start_server(inbox.serve, "127.0.0.1", 0)
    inbox.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/webhooks/dev?a=b"
    try:
        yield inbox
    finally:
        server.close()
        inbox.close()


def event_in(body: bytes | str) -> dict[str, Any]:
    """What was posted or framed, signed or not."""
    if isinstance(body, str):
        body = body.encode()
    event = json.loads(body if body.startswith(b"{") else unpadded(body.split(b".")[1]))
    assert isinstance(event, dict)
    return event


def is_signed(body: bytes | str, secret: str) -> bool:
    if isinstance(body, str):
        body = body.encode()
    if body.startswith(b"{"):
        return False
    signed, _, signature = body.rpartition(b".")
    return unpadded(signature) == hmac.digest(secret.encode(), signed, "sha256")


def unpadded(text: bytes) -> bytes:
    return base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))


async def until(enough: Callable[[], bool]) -> None:
    """Look again and again."""
    async with asyncio.timeout(30):
        for _ in itertools.takewhile(lambda _: not enough(), itertools.count()):
            await asyncio.sleep(0.01)

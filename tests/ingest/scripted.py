"""A server on a real socket that answers what a test says, byte for byte."""

import asyncio
import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlsplit

Writer = asyncio.StreamWriter


@dataclass(frozen=True, slots=True)
class Asked:
    method: str
    target: str
    #: Names in lower case.
    headers: dict[str, str]
    body: bytes

    @property
    def path(self) -> str:
        return urlsplit(self.target).path

    @property
    def query(self) -> dict[str, str]:
        return dict(parse_qsl(urlsplit(self.target).query, keep_blank_values=True))


#: What to send; or what to do, after which the connection is closed.
Response = bytes | Callable[[Writer], Awaitable[object]]


class Scripted:
    """Use `scripted`. ``respond`` may be set anew at any time."""

    def __init__(self, respond: Callable[[Asked], Response]) -> None:
        self.respond = respond
        self.asked: list[Asked] = []
        self.connections = 0
        self.port = 0
        self.scheme = "http"

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}"

    def play(self, *responses: Response) -> None:
        """From now on these, one after the other; the last one for ever."""
        left = list(responses)
        self.respond = lambda _: left.pop(0) if len(left) > 1 else left[0]

    async def _serve(self, reader: asyncio.StreamReader, writer: Writer) -> None:
        self.connections += 1
        try:
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode("latin-1")
                first, *lines = head.split("\r\n")
                headers = {
                    name.lower(): value.strip()
                    for name, _, value in (line.partition(":") for line in lines if line)
                }
                body = await reader.readexactly(int(headers.get("content-length", 0)))
                method, target, _ = first.split(" ")
                self.asked.append(Asked(method, target, headers, body))
                response = self.respond(self.asked[-1])
                if not isinstance(response, bytes):
                    await response(writer)
                    return
                writer.write(response)
                await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            return
        finally:
            writer.close()


@asynccontextmanager
async def scripted(
    *responses: Response, tls: ssl.SSLContext | None = None
) -> AsyncIterator[Scripted]:
    """A server on this machine that answers ``responses``, the last one for ever."""
    server = Scripted(lambda _: b"")
    server.play(*responses or (good({}),))
    serving: set[asyncio.Task[None]] = set()

    async def serve(reader: asyncio.StreamReader, writer: Writer) -> None:
        task = asyncio.create_task(server._serve(reader, writer))
        serving.add(task)
        task.add_done_callback(serving.discard)

    listening = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=tls)
    server.port = listening.sockets[0].getsockname()[1]
    server.scheme = "https" if tls else "http"
    try:
        yield server
    finally:
        listening.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)


def answer(status: int, body: bytes = b"", **headers: str) -> bytes:
    """A whole answer; ``headers`` with underscores for hyphens."""
    lines = {"content-type": "application/json", "content-length": str(len(body))}
    lines |= {name.replace("_", "-"): value for name, value in headers.items()}
    head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
    return f"HTTP/1.1 {status} Whatever\r\n{head}\r\n".encode() + body


def good(value: Any) -> bytes:
    return answer(200, json.dumps(value).encode())


def cut(sent: bytes = b"") -> Response:
    """Sends so much and hangs up."""

    async def respond(writer: Writer) -> None:
        writer.write(sent)
        await writer.drain()

    return respond


def dripping(sent: bytes, drop: bytes, every_s: float = 0.02) -> Response:
    """Sends, and then a little more again and again."""

    async def respond(writer: Writer) -> None:
        writer.write(sent)
        while not writer.is_closing():
            writer.write(drop)
            await writer.drain()
            await asyncio.sleep(every_s)

    return respond


def silent() -> Response:
    """Sends nothing and waits."""

    async def respond(writer: Writer) -> None:
        await asyncio.sleep(3600)

    return respond

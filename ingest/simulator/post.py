"""The part of HTTP that posting needs, for a quarter of the CPU time of a whole client."""

import asyncio
import re
import ssl
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from http import HTTPStatus
from typing import TypeAlias
from urllib.parse import urlsplit

#: Connections at a time; further posts wait.
MOST_CONNECTIONS = 200
_MOST_HEAD_BYTES = 64 * 1024
_STATUS = re.compile(rb"HTTP/1\.[01] (\d{3})\b")
_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+) *\r\n", re.IGNORECASE)
_RETRY_AFTER = re.compile(rb"\r\nretry-after: *(\d{1,9}) *\r\n", re.IGNORECASE)
_CLOSES = re.compile(rb"\r\nconnection: *close *\r\n", re.IGNORECASE)
_NO_BODY = frozenset({204, 304})

_Place: TypeAlias = tuple[str, int, bool]
_Line: TypeAlias = tuple[asyncio.StreamReader, asyncio.StreamWriter]


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    #: What `Retry-After` asks for, where it is a number.
    retry_after_s: int | None = None


class PostError(Exception):
    """There is no answer: refused, broken off, or none that HTTP knows."""


class Poster:
    """Posts, and keeps connections for the next post."""

    def __init__(self) -> None:
        self._idle: defaultdict[_Place, list[_Line]] = defaultdict(list)
        self._room = asyncio.Semaphore(MOST_CONNECTIONS)

    async def post(
        self, url: str, headers: Mapping[str, str], body: bytes, timeout_s: float
    ) -> Answer:
        """Post, and give the answer. Raises PostError, also after ``timeout_s``."""
        parts = urlsplit(url)
        secure = parts.scheme == "https"
        place = parts.hostname or "", parts.port or (443 if secure else 80), secure
        target = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
        host = parts.netloc.rpartition("@")[2]
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        head = (
            f"POST {target} HTTP/1.1\r\nHost: {host}\r\n{lines}Content-Length: {len(body)}\r\n\r\n"
        )
        async with self._room:
            try:
                async with asyncio.timeout(timeout_s):
                    line = await self._line(place)
                    try:
                        line[1].write(head.encode("ascii") + body)
                        answer, again = await _answer(line[0])
                    except BaseException:
                        line[1].transport.abort()
                        raise
            except (OSError, EOFError, TimeoutError, asyncio.LimitOverrunError) as error:
                raise PostError(type(error).__name__) from None
        if again:
            self._idle[place].append(line)
        else:
            line[1].close()
        return answer

    def close(self) -> None:
        """Close what is kept."""
        for lines in self._idle.values():
            for _, writer in lines:
                writer.transport.abort()
        self._idle.clear()

    async def _line(self, place: _Place) -> _Line:
        idle = self._idle[place]
        while idle:
            reader, writer = idle.pop()
            if not reader.at_eof() and not writer.is_closing():
                return reader, writer
            writer.close()
        host, port, secure = place
        return await asyncio.open_connection(
            host, port, ssl=self._tls if secure else None, limit=_MOST_HEAD_BYTES
        )

    @cached_property
    def _tls(self) -> ssl.SSLContext:
        return ssl.create_default_context()


async def _answer(reader: asyncio.StreamReader) -> tuple[Answer, bool]:
    """Read an answer, and whether the connection is good for another post."""
    head = await reader.readuntil(b"\r\n\r\n")
    found = _STATUS.match(head)
    if found is None:
        raise PostError("no HTTP")
    status = int(found[1])
    wait = _RETRY_AFTER.search(head) if status >= HTTPStatus.MULTIPLE_CHOICES else None
    answer = Answer(status, None if wait is None else int(wait[1]))
    if status in _NO_BODY:
        return answer, not _CLOSES.search(head)
    length = _LENGTH.search(head)
    if length is None:
        return answer, False
    left = int(length[1])
    while left:
        piece = await reader.read(min(left, _MOST_HEAD_BYTES))
        if not piece:
            raise PostError("the answer ends too early")
        left -= len(piece)
    return answer, not _CLOSES.search(head)

"""Not written yet."""

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import TYPE_CHECKING

from schemas.event import Event

if TYPE_CHECKING:
    from ingest.settings import Connection


class DialgoodRecords:
    def calls(self, from_ms: int, to_ms: int, via: str) -> AsyncIterator[Sequence[Event]]:
        raise NotImplementedError

    def also(self, what: str, call_ids: Sequence[str], via: str) -> AsyncIterator[Sequence[Event]]:
        raise NotImplementedError

    def agents(self, via: str) -> AsyncIterator[Sequence[Event]]:
        raise NotImplementedError

    def calls_of(
        self, agent_id: str, from_ms: int, to_ms: int, via: str
    ) -> AsyncIterator[Sequence[Event]]:
        raise NotImplementedError

    def versions_of(self, agent_id: str, via: str) -> AsyncIterator[Sequence[Event]]:
        raise NotImplementedError


def open_records(
    name: str, connection: "Connection"
) -> AbstractAsyncContextManager[DialgoodRecords]:
    raise NotImplementedError

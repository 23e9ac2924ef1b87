"""Dialgood's own lists, read back: agents, the call logs of each, the versions of each.

https://apidocs.dialgood.com/partner-api-2171894m0
"""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from typing import TYPE_CHECKING, Literal

import structlog

from ingest.api import ApiError, remembered
from ingest.delivery import DAY_MS
from ingest.errors import UnreadableError
from ingest.fields import Fields
from ingest.logs import short_id
from ingest.providers.dialgood.api import DialgoodApi, can_be_asked, open_api
from ingest.providers.dialgood.assumptions import Assumptions
from ingest.providers.dialgood.record_events import (
    CallWords,
    agent_listed,
    agent_versioned,
    call_recorded,
)
from ingest.reading import Reading
from schemas.event import Event
from schemas.times import now_ms

if TYPE_CHECKING:
    from ingest.settings import Connection

log = structlog.get_logger()

_Page = Sequence[Event]
_Pages = AsyncIterator[_Page]
_Unit = Literal["ms", "s"]

#: What was found out of the unit of times stands under it.
_UNIT = "dialgood time unit"


class DialgoodRecords:
    """One connection's lists at Dialgood. Use `open_records`.

    Everything comes as it stands now, whether it was read before or not, and some of it more than
    once: whoever publishes it leaves out what was published already. That has the same id; only
    the ids of the directory end in the minute in which it was read.
    """

    def __init__(
        self,
        name: str,
        region: str | None,
        api: DialgoodApi,
        assume: Assumptions,
        now: Callable[[], int] = now_ms,
    ) -> None:
        """``now``: our clock, milliseconds since 1970."""
        self._name = name
        self._region = region
        self._api = api
        self._words = CallWords.of(assume)
        self._unit: _Unit | None = None if assume.time_unit == "auto" else assume.time_unit
        self._now = now

    async def agents(self, via: str) -> _Pages:
        """``directory.listed`` of every agent that the key may read now, a page at a time.

        One whose id cannot stand in a path is a reject: nothing can be asked of it.
        """
        async for items in self._api.agents():
            yield self._reading(via).events(items, _agent)

    async def calls_of(self, agent_id: str, from_ms: int, to_ms: int, via: str) -> _Pages:
        """``call.recorded`` of an agent's calls in [from, to), a page at a time.

        Dialgood filters by ``created_at`` and takes both bounds in (A-DG-5): one that began at
        ``to`` may be among them. Raises ApiError ``not_found`` if the agent is gone, or not shared
        any more.
        """
        from_ms = max(0, from_ms)
        unit = self._unit or remembered(self._name).get(_UNIT)
        if unit is not None:
            async for page in self._call_logs(agent_id, from_ms, to_ms, unit, via):
                yield page
            return
        # A-DG-1. Nothing in a window says nothing of the unit, and it must not be believed either:
        # while the unit is not known, what is empty is asked for in seconds as well. That is one
        # more request a window, until the first call of the whole account.
        async for page in self._call_logs(agent_id, from_ms, to_ms, "ms", via):
            if _has_calls_of(page, from_ms, to_ms):
                remembered(self._name).setdefault(_UNIT, "ms")
            yield page
        if remembered(self._name).get(_UNIT) == "ms":
            return
        async for page in self._call_logs(agent_id, from_ms, to_ms, "s", via):
            if remembered(self._name).get(_UNIT) != "s":
                # In milliseconds this window is a day in 1970: what was made then proves nothing.
                if not _has_calls_of(page, from_ms, to_ms):
                    return
                remembered(self._name)[_UNIT] = "s"
                log.info("time_unit_found", connection=self._name, unit="s")
            yield page

    async def versions_of(self, agent_id: str, via: str) -> _Pages:
        """``change.versioned`` of all versions of an agent, as Dialgood orders them.

        Raises ApiError ``not_found`` like `calls_of`.
        """
        async for items in self._api.versions(agent_id):
            yield self._reading(via).events(items, partial(agent_versioned, agent_id=agent_id))

    async def calls(self, from_ms: int, to_ms: int, via: str) -> _Pages:
        """`calls_of` all agents, one after the other; those that vanish meanwhile are left out."""
        read = partial(self.calls_of, from_ms=from_ms, to_ms=to_ms, via=via)
        async for page in self._of_all(read, via):
            yield page

    def also(self, what: str, call_ids: Sequence[str], via: str) -> _Pages:
        """What the setting `poll.also` names: ``directory``, the agents; ``versions``, of all."""
        if what == "directory":
            return self.agents(via)
        return self._of_all(partial(self.versions_of, via=via), via)

    async def _of_all(self, read: Callable[[str], _Pages], via: str) -> _Pages:
        agent_ids: dict[str, None] = {}
        async for page in self.agents(via):
            listed = (event for event in page if event.subject_kind == "directory")
            agent_ids |= {event.data["id"]: None for event in listed}
        for agent_id in agent_ids:
            try:
                async for page in read(agent_id):
                    yield page
            except ApiError as error:
                if error.reason != "not_found":
                    raise
                log.info(
                    "agent_gone",
                    connection=self._name,
                    agent=short_id(agent_id),
                    reason=error.reason,
                )

    async def _call_logs(
        self, agent_id: str, from_ms: int, to_ms: int, unit: _Unit, via: str
    ) -> _Pages:
        bounds = (from_ms, to_ms)
        if unit == "s":  # outwards: whole seconds around the window
            bounds = (from_ms // 1000, -(-to_ms // 1000))
        read = partial(call_recorded, agent_id=agent_id, words=self._words)
        async for items in self._api.call_logs(agent_id, *bounds):
            yield self._reading(via).events(items, read)

    def _reading(self, via: str) -> Reading:
        return Reading("dialgood", self._name, self._region, via, self._now())


@asynccontextmanager
async def open_records(name: str, connection: "Connection") -> AsyncIterator[DialgoodRecords]:
    """Be ready to read back; the key is read anew. Raises ConfigError if there is none."""
    async with open_api(name, connection) as api:
        yield DialgoodRecords(name, connection.region, api, Assumptions.of(connection))


def _agent(reading: Reading, fields: Fields) -> Event:
    event = agent_listed(reading, fields)
    if not can_be_asked(event.data["id"]):
        raise UnreadableError("unexpected_shape", "agentId is no id that can stand in a path")
    return event


def _has_calls_of(page: _Page, from_ms: int, to_ms: int) -> bool:
    """Whether a call among them began in a window, or so near that a zone may explain it."""
    for event in page:
        started_at = event.data.get("started_at")
        if event.subject_kind == "call" and started_at is not None:
            started_ms = datetime.fromisoformat(started_at).timestamp() * 1000
            if from_ms - DAY_MS <= started_ms <= to_ms + DAY_MS:
                return True
    return False

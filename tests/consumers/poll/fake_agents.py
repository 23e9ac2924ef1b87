"""A provider that keeps records by agent, which a test can change while they are read."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

from consumers.poll.agents import AgentsPoller
from consumers.poll.gaps import Gaps
from consumers.poll.seen import Seen
from ingest.api import ApiError
from ingest.delivery import AgentRecords
from ingest.eventlog.log import Spooling
from ingest.settings import Connection, Poll
from schemas.event import Event
from schemas.times import minute, now_ms
from tests.consumers.poll.fakes import Call, CurrentGaps, FakeJob


def agent_listed(agent_id: str, version: int = 1) -> Event:
    return Event(
        type="dialstream.directory.listed",
        subject_kind="directory",
        id=f"fake:acme:directory:agent:{agent_id}:{version:016x}:{minute(now_ms())}",
        subject=f"directory/agent/{agent_id}",
        key=f"acme/agent/{agent_id}",
        time_ms=now_ms(),
        recorded_ms=now_ms(),
        via="poll",
        provider="fake",
        connection="acme",
        data={"kind": "agent", "id": agent_id, "numbers": []},
        raw=b"{}",
    )


def versioned(agent_id: str, version_id: int) -> Event:
    return Event(
        type="dialstream.change.versioned",
        subject_kind="change",
        id=f"fake:acme:change:{agent_id}:{version_id}",
        subject=f"change/{agent_id}",
        key="acme",
        time_ms=now_ms(),
        recorded_ms=now_ms(),
        via="poll",
        provider="fake",
        connection="acme",
        data={"action": "versioned"},
        raw=b"{}",
    )


class FakeAgents:
    """Agents with calls and versions, the newest first, by pages."""

    def __init__(self, agents: Sequence[str], page: int = 3) -> None:
        #: Agent → which version of it is listed.
        self.listed = dict.fromkeys(agents, 1)
        self.calls_by: dict[str, list[Call]] = defaultdict(list)
        self.versions: dict[str, list[int]] = defaultdict(list)
        self.page = page
        #: What requests at a place raise: ``agents``, ``versions``, an agent's calls by its id.
        self.broken: dict[str, BaseException] = {}
        #: How long an agent, or the list of ``agents``, takes to fail or to be read, in seconds.
        self.takes_s: dict[str, float] = {}
        #: (agent, from, to) of each window, when its first page is asked for.
        self.windows: list[tuple[str, int, int]] = []
        #: Those of which the last page was given.
        self.read: list[str] = []
        #: Agent and page of each request for versions.
        self.asked: list[tuple[str, int]] = []
        self.lists = 0
        self.opened = 0

    def add(self, agent_id: str, first: int, count: int, minutes_ago: float = 60.0) -> None:
        began_ms = now_ms() - round(minutes_ago * 60_000)
        self.calls_by[agent_id] += [
            Call(first + n, began_ms + n, began_ms + n + 1000) for n in range(count)
        ]

    @asynccontextmanager
    async def open(self) -> AsyncIterator[AgentRecords]:
        self.opened += 1
        yield self

    async def agents(self, via: str) -> AsyncIterator[Sequence[Event]]:
        await asyncio.sleep(self.takes_s.get("agents", 0))
        listed = list(self.listed.items())
        for at in range(0, len(listed), self.page):
            yield [agent_listed(*each) for each in listed[at : at + self.page]]
            self._fail("agents later")
        self._fail("agents")
        self.lists += 1

    async def calls_of(
        self, agent_id: str, from_ms: int, to_ms: int, via: str
    ) -> AsyncIterator[Sequence[Event]]:
        self.windows.append((agent_id, from_ms, to_ms))
        await asyncio.sleep(self.takes_s.get(agent_id, 0))
        self._fail("calls")
        self._fail(agent_id)
        found = sorted(
            (c for c in self.calls_by[agent_id] if from_ms <= c.began_ms < to_ms),
            key=lambda call: -call.began_ms,
        )
        for at in range(0, len(found), self.page):
            yield [call.event(via) for call in found[at : at + self.page]]
            self._fail(f"{agent_id} later")
        self.read.append(agent_id)

    async def versions_of(self, agent_id: str, via: str) -> AsyncIterator[Sequence[Event]]:
        found = sorted(self.versions[agent_id], reverse=True)
        for at in range(0, max(1, len(found)), self.page):
            self.asked.append((agent_id, at // self.page))
            self._fail("versions")
            self._fail(f"versions {agent_id}")
            if found[at : at + self.page]:
                yield [versioned(agent_id, each) for each in found[at : at + self.page]]

    def calls(self, from_ms: int, to_ms: int, via: str) -> AsyncIterator[Sequence[Event]]:
        raise AssertionError("they are read agent by agent")

    def also(self, what: str, call_ids: Sequence[str], via: str) -> AsyncIterator[Sequence[Event]]:
        raise AssertionError(f"{what} is not asked for by itself")

    def _fail(self, place: str) -> None:
        if place in self.broken:
            raise self.broken[place]


#: Everything at once, so that tests need not wait.
QUICK: dict[str, Any] = {
    "enabled": True,
    "every_s": 0.05,
    "overlap_s": 7200.0,
    "sweep_every_s": 3600.0,
    "lag_s": 0.001,
}


def agents_poller(
    records: FakeAgents,
    job: FakeJob,
    publisher: Spooling,
    seen: Seen,
    gaps: Gaps | None = None,
    **settings: Any,
) -> AgentsPoller:
    connection = Connection(provider="dialgood", poll=Poll(**{**QUICK, **settings}))
    return AgentsPoller(
        job,
        connection,
        records.open,
        publisher,
        gaps or CurrentGaps(),
        seen,
        backoff_s=(0.01, 0.05),
        look_s=0.01,
    )


def unavailable() -> ApiError:
    return ApiError("unavailable", "GET: answered 500", status=500)

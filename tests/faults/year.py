"""``python -m tests.faults.year``: an account with many agents is read back for a year, in minutes.

A model of the account, the poller as it is, an event log in memory, and a loop whose time passes
only while nobody has anything to do. The reader's truth is what it was served: each content of each
record must be on the log exactly once, and no watermark may pass a record that is not.
"""

import asyncio
import random
import sys
import tempfile
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import typer

from consumers.poll.agents import AgentsPoller
from consumers.poll.loops import Clock
from consumers.poll.seen import Seen
from ingest.api import ApiError, Reason
from ingest.delivery import AgentRecords
from ingest.eventlog.log import Record
from ingest.settings import Connection, Poll
from schemas.event import Event
from schemas.times import minute
from tests.consumers.poll.fakes import CurrentGaps, FakeJob
from tests.faults.fast import Durable, clock_from, run_fast

BEGIN_MS = 1_790_000_000_000
MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS
DAY_MS = 24 * HOUR_MS
DAY_S = 86_400.0

#: As slow as one request a second allows, so that a year takes minutes.
POLL = Poll(
    enabled=True,
    every_s=6 * 3600.0,
    sweep_every_s=DAY_S,
    # A day of changes, a day between two sweeps, and room for lag and the rota.
    sweep_overlap_s=54 * 3600.0,
    also=("directory", "versions"),
)
LAG_MS = round(POLL.lag_s * 1000)

_PAGE = 100
_AGENTS_A_PAGE = 25


# The account


@dataclass(frozen=True, slots=True)
class Row:
    """A record: when it is made, when it is listed, and when it changes."""

    number: int
    made_ms: int
    listed_ms: int
    changes_ms: tuple[int, ...]

    def version(self, at_ms: int) -> int:
        return sum(change_ms <= at_ms for change_ms in self.changes_ms)


@dataclass(slots=True)
class Agent:
    """One agent; ``there``: when it may be read, from and to, the first stretch first."""

    ident: str
    there: list[tuple[int, int]]
    #: By `made_ms`.
    rows: list[Row]
    made: list[int]
    #: By `listed_ms`; of those up to `checked` it is known that they are on the log.
    by_listed: list[Row]
    versions_ms: list[int]
    checked: int = 0
    left: list[Row] = field(default_factory=list)

    def is_there(self, at_ms: int) -> bool:
        return any(from_ms <= at_ms < to_ms for from_ms, to_ms in self.there)

    def since_ms(self, at_ms: int) -> int | None:
        """Since when it has been there without a break."""
        return next((from_ms for from_ms, to_ms in self.there if from_ms <= at_ms < to_ms), None)


def make_account(agents: int, days: float, seed: int) -> list[Agent]:
    """Some very busy, most quiet; some there all the time, some come, go and are shared again."""
    chance = random.Random(seed)
    end_ms = BEGIN_MS + round(days * DAY_MS)
    numbers = iter(range(10**9))
    found = []
    for n in range(agents):
        there = _stretches(chance, end_ms, always=chance.random() < 0.6)
        a_day = chance.uniform(40, 120) if n % 25 == 0 else chance.uniform(0.1, 3)
        rows = []
        at_ms = float(there[0][0])
        while (at_ms := at_ms + chance.expovariate(a_day) * DAY_MS) < end_ms:
            rows.append(_row(chance, next(numbers), round(at_ms)))
        found.append(
            Agent(
                ident=f"{n:024x}",
                there=there,
                rows=rows,
                made=[row.made_ms for row in rows],
                by_listed=sorted(rows, key=lambda row: row.listed_ms),
                versions_ms=sorted(
                    chance.randrange(there[0][0], end_ms) for _ in range(chance.randrange(5))
                ),
            )
        )
    return found


def _row(chance: random.Random, number: int, made_ms: int) -> Row:
    soon = chance.random() < 0.95
    delay_s = chance.uniform(1, 290) if soon else chance.uniform(290, 5400)
    listed_ms = made_ms + round(delay_s * 1000)
    changes = chance.choices((0, 1, 2, 3), (60, 25, 10, 5))[0]
    last_ms = made_ms + DAY_MS
    changes_ms = sorted(chance.randrange(listed_ms, last_ms) for _ in range(changes))
    return Row(number, made_ms, listed_ms, tuple(changes_ms))


def _stretches(chance: random.Random, end_ms: int, *, always: bool) -> list[tuple[int, int]]:
    if always:
        return [(BEGIN_MS, end_ms + 100 * DAY_MS)]
    span_ms = end_ms - BEGIN_MS
    at_ms = BEGIN_MS + round(chance.uniform(0, 0.5) * span_ms)
    found = []
    while at_ms < end_ms:
        to_ms = at_ms + round(chance.uniform(0.5, 60) * DAY_MS)
        found.append((at_ms, to_ms))
        at_ms = to_ms + round(chance.uniform(0.01, 20) * DAY_MS)
    return found


class Account:
    """The provider: one request a second, pages, and now and then an hour in which it is away."""

    def __init__(self, agents: Sequence[Agent], seed: int, clock: Clock) -> None:
        self.agents_by = {agent.ident: agent for agent in agents}
        self._chance = random.Random(seed + 1)
        self._clock = clock
        #: Ids of everything that a reader was given.
        self.served: set[str] = set()
        self.requests = self.failures = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[AgentRecords]:
        yield self

    async def agents(self, via: str) -> AsyncIterator[Sequence[Event]]:
        at = 0
        while True:
            await self._request()
            # The pages shift when agents go: the next page hides some.
            now_ms = self._clock.now_ms()
            listed = [agent for agent in self.agents_by.values() if agent.is_there(now_ms)]
            page = listed[at : at + _AGENTS_A_PAGE]
            if page:
                yield [_agent_event(agent, now_ms) for agent in page]
            at += _AGENTS_A_PAGE
            if at >= len(listed):
                return

    async def calls_of(
        self, agent_id: str, from_ms: int, to_ms: int, via: str
    ) -> AsyncIterator[Sequence[Event]]:
        agent = self.agents_by[agent_id]
        at = 0
        while True:
            await self._request(agent)
            now_ms = self._clock.now_ms()
            first, last = (bisect_left(agent.made, ms) for ms in (from_ms, to_ms))
            found = [row for row in reversed(agent.rows[first:last]) if row.listed_ms <= now_ms]
            page = [_call_event(row, now_ms) for row in found[at : at + _PAGE]]
            if page:
                self.served.update(event.id for event in page)
                yield page
            at += _PAGE
            if at >= len(found):
                return

    async def versions_of(self, agent_id: str, via: str) -> AsyncIterator[Sequence[Event]]:
        agent = self.agents_by[agent_id]
        await self._request(agent)
        now_ms = self._clock.now_ms()
        page = [_version_event(agent, at_ms) for at_ms in agent.versions_ms if at_ms <= now_ms]
        self.served.update(event.id for event in page)
        if page:
            yield page

    async def _request(self, agent: Agent | None = None) -> None:
        self.requests += 1
        await asyncio.sleep(1.0)
        now_ms = self._clock.now_ms()
        if (now_ms // HOUR_MS) % 997 in (500, 501, 502):
            await self._fail("unavailable")
        chance = self._chance.random()
        if chance < 0.002:
            await self._fail("unavailable")
        if chance < 0.003:
            await self._fail("rate_limited")
        if chance < 0.004:
            await self._fail("unexpected")
        if agent is not None and not agent.is_there(now_ms):
            await self._fail("not_found")

    async def _fail(self, reason: Reason) -> None:
        self.failures += 1
        if reason == "unavailable":
            await asyncio.sleep(40.0)  # it was tried again, and again
        raise ApiError(reason)

    def calls(self, from_ms: int, to_ms: int, via: str) -> AsyncIterator[Sequence[Event]]:
        raise NotImplementedError

    def also(self, what: str, call_ids: Sequence[str], via: str) -> AsyncIterator[Sequence[Event]]:
        raise NotImplementedError


def call_id(row: Row, version: int) -> str:
    return f"fake:acme:record:{row.number}:{version:016x}"


def _event(type_: str, ident: str, subject: str, now_ms: int, data: dict[str, Any]) -> Event:
    return Event(
        type=f"dialstream.{type_}",
        subject_kind=type_.partition(".")[0],
        id=ident,
        subject=subject,
        key=f"acme/{subject}",
        time_ms=now_ms,
        recorded_ms=now_ms,
        via="poll",
        provider="fake",
        connection="acme",
        data=data,
    )


def _call_event(row: Row, now_ms: int) -> Event:
    ident = call_id(row, row.version(now_ms))
    data = {"call_id": str(row.number)}
    return _event("call.recorded", ident, f"call/{row.number}", now_ms, data)


def _agent_event(agent: Agent, now_ms: int) -> Event:
    version = sum(at_ms <= now_ms for at_ms in agent.versions_ms)
    ident = f"fake:acme:directory:agent:{agent.ident}:{version:016x}:{minute(now_ms)}"
    data = {"kind": "agent", "id": agent.ident}
    return _event("directory.listed", ident, f"directory/agent/{agent.ident}", now_ms, data)


def _version_event(agent: Agent, at_ms: int) -> Event:
    ident = f"fake:acme:change:{agent.ident}:{at_ms}"
    return _event("change.versioned", ident, f"change/{agent.ident}", at_ms, {})


# The log


class MemoryLog:
    """An event log that keeps how often each id of calls and changes is on it."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()

    def spools(self, topic: str) -> bool:
        return False

    def publish(self, records: Sequence[Record]) -> Durable:
        for record in records:
            if record.topic in ("calls", "changes"):
                self.counts[dict(record.headers)["ce_id"].decode()] += 1
        return Durable()


# The judge


@dataclass
class Year:
    """What became of it."""

    agents: int
    days: float
    records: int = 0
    contents: int = 0
    requests: int = 0
    failures: int = 0
    lives: int = 0
    remembered: int = 0
    cpu_s: float = 0.0
    worst_age_s: float = 0.0
    #: What went wrong, at most a few of each kind.
    lost: list[str] = field(default_factory=list)
    repeated: list[str] = field(default_factory=list)
    never_final: list[str] = field(default_factory=list)
    passed: list[str] = field(default_factory=list)

    @property
    def problems(self) -> dict[str, list[str]]:
        kinds = ("lost", "repeated", "never_final", "passed")
        return {kind: found[:5] for kind in kinds if (found := getattr(self, kind))}


class _Judge:
    """Looks at every checkpoint, and at the whole in the end."""

    def __init__(self, year: Year, account: Account, log: MemoryLog, job: FakeJob) -> None:
        self._year = year
        self._account = account
        self._log = log
        self._job = job
        self._saves = 0

    def is_told(self, row: Row) -> bool:
        versions = range(len(row.changes_ms), -1, -1)
        return any(call_id(row, version) in self._log.counts for version in versions)

    def look(self, source: str, checkpoint: Any, now_ms: int) -> None:
        """Before a checkpoint is saved."""
        mark_ms = checkpoint.get("watermark_ms")
        if mark_ms is None:
            return
        _, _, agent_id = source.partition("/")
        if agent_id:
            self._look_at(self._account.agents_by[agent_id], mark_ms)
            return
        self._saves += 1
        known = (self._job.saved.get("calls") or {}).get("watermark_ms")
        if known is not None and mark_ms < known:
            self._year.passed.append(f"it goes back from {known} to {mark_ms}")
        if now_ms - BEGIN_MS > 2 * DAY_MS:
            self._year.worst_age_s = max(self._year.worst_age_s, (now_ms - mark_ms) / 1000)
        if self._saves % 50 == 0:
            for agent in self._account.agents_by.values():
                since_ms = agent.since_ms(now_ms)
                if since_ms is not None and now_ms - since_ms > DAY_MS:
                    own = self._job.saved.get(f"calls/{agent.ident}") or {}
                    if own.get("watermark_ms", 0) < mark_ms:
                        self._year.passed.append(f"{agent.ident} by the whole, at {mark_ms}")

    def _look_at(self, agent: Agent, mark_ms: int) -> None:
        """Whatever was listed when the window was read, and was made before its end, is told."""
        due, agent.left = agent.left, []
        while agent.checked < len(agent.by_listed):
            row = agent.by_listed[agent.checked]
            if row.listed_ms > mark_ms + LAG_MS:
                break
            due.append(row)
            agent.checked += 1
        for row in due:
            if row.made_ms >= mark_ms:
                agent.left.append(row)
            elif not self.is_told(row):
                self._year.passed.append(call_id(row, 0))

    def conclude(self, end_ms: int) -> None:
        year, counts = self._year, self._log.counts
        year.lost = sorted(self._account.served - counts.keys())
        year.repeated = [ident for ident, count in counts.items() if count != 1]
        # Two sweeps ago nothing changes any more that will not have been seen.
        settled_ms = end_ms - round(2.5 * DAY_MS)
        for agent in self._account.agents_by.values():
            since_ms = agent.since_ms(end_ms)
            if since_ms is None or since_ms > settled_ms:
                continue
            for row in agent.rows:
                if row.made_ms < settled_ms - DAY_MS:
                    final = call_id(row, len(row.changes_ms))
                    if final not in counts:
                        year.never_final.append(final)
        year.contents = len(counts)


# The run


def live(agents: int, days: float, seed: int, folder: Path) -> Year:
    """Let so many days pass, and judge."""
    begun_s = time.process_time()
    year = run_fast(_live(agents, days, seed, folder))
    year.cpu_s = time.process_time() - begun_s
    return year


async def _live(agents: int, days: float, seed: int, folder: Path) -> Year:
    loop = asyncio.get_running_loop()
    clock = clock_from(BEGIN_MS)
    account = Account(make_account(agents, days, seed), seed, clock)
    log, job = MemoryLog(), FakeJob()
    year = Year(agents, days, records=sum(len(a.rows) for a in account.agents_by.values()))
    judge = _Judge(year, account, log, job)
    save = job.save

    async def looked_at(source: str, checkpoint: Any) -> None:
        judge.look(source, checkpoint, clock.now_ms())
        await save(source, checkpoint)

    job.save = looked_at  # type: ignore[method-assign]
    chance = random.Random(seed + 2)
    end_s = loop.time() + days * DAY_S
    while loop.time() < end_s:
        year.lives += 1
        life_s = min(end_s - loop.time(), chance.uniform(1, 20) * DAY_S)
        await _one_life(account, log, job, clock, folder, life_s)
        # It is away for a while, now and then for days.
        await asyncio.sleep(chance.choice((0.0, 10.0, 3600.0, 3 * DAY_S / 10)))
    # As long as it takes for the last changes to be seen.
    await _one_life(account, log, job, clock, folder, 3.5 * DAY_S)
    judge.conclude(clock.now_ms())
    year.requests, year.failures = account.requests, account.failures
    seen = Seen.glance(folder / "acme.sqlite")
    assert seen is not None
    year.remembered = int(seen._db.execute("select count(*) from seen").get)
    seen.close()
    return year


async def _one_life(
    account: Account, log: MemoryLog, job: FakeJob, clock: Clock, folder: Path, life_s: float
) -> None:
    seen = Seen.open(folder / "acme.sqlite")
    poller = AgentsPoller(
        job,
        Connection(provider="dialgood", poll=POLL),
        account.open,
        log,
        CurrentGaps(),
        seen,
        look_s=600.0,
        clock=clock,
    )
    running = asyncio.ensure_future(poller.run())
    await asyncio.wait([running], timeout=life_s)
    if running.done():
        running.result()
        raise AssertionError("it has ended")
    running.cancel()
    await asyncio.wait([running])
    seen.close()


def main(
    *,
    agents: Annotated[int, typer.Option(help="How many there are.")] = 500,
    days: Annotated[float, typer.Option(help="How long they are read.")] = 365,
    seed: Annotated[int, typer.Option(help="Of the account.")] = 1,
) -> None:
    """Read an account back for long, and look for what was lost, repeated, or passed over."""
    with tempfile.TemporaryDirectory(prefix="dialstream-year-", dir="/var/tmp") as folder:
        year = live(agents, days, seed, Path(folder))
    for name in (
        *("agents", "days", "records", "contents", "requests", "failures", "lives"),
        *("remembered", "worst_age_s", "cpu_s"),
    ):
        print(f"{name:>12} {getattr(year, name):,.0f}")
    for kind, found in year.problems.items():
        print(f"{kind}: {', '.join(found)}")
    sys.exit(int(bool(year.problems)))


if __name__ == "__main__":
    typer.run(main)

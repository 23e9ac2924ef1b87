"""The poller of a connection whose provider keeps records by agent: agent after agent, by a rota.

An agent that cannot be read is put back and holds up nobody else. How far each has come is a
checkpoint of its own, ``calls/<agent>``; the connection's, ``calls``, is the least of all of them.
"""

from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any

import apsw
import structlog

from consumers.poll.gaps import Gaps, close_gap, found_in
from consumers.poll.loops import (
    BACKOFF_S,
    CLOCK,
    FAILING,
    LOOK_S,
    OF_ALL,
    SOURCE,
    STOPPED_S,
    VIA,
    Clock,
    Loops,
    Storing,
    closing_pages,
    pause_s,
    whole,
)
from consumers.poll.rota import Marks, Rota
from consumers.poll.seen import CALLS, Seen
from consumers.poll.windows import Gap, Window
from ingest.api import ApiError
from ingest.delivery import AgentRecords
from ingest.errors import PublishError
from ingest.eventlog.log import Spooling
from ingest.logs import short_id
from ingest.metrics import (
    POLL_AGENTS,
    POLL_BEHIND_SECONDS,
    POLL_GAPS_OPEN,
    POLL_WATERMARK_AGE_SECONDS,
)
from ingest.providers import PROVIDERS
from ingest.settings import Connection
from ingest.work import Job
from schemas.event import Event

log = structlog.get_logger()

#: The loop that lists the agents, and where what it has listed is remembered.
AGENTS = "agents"

#: What the setting ``also`` names.
DIRECTORY, VERSIONS = "directory", "versions"

#: What stands for single agents that cannot be read, among what is wrong.
AGENT = "agent"

#: The list of agents, and versions where there is no time for them, take one part in so many.
_SHARE = 20

#: An agent that cannot be read takes one part in so many: a failure may last a minute.
_FAILED_SHARE = 10

#: While no agent at all can be read, the pause from one to the next, at most.
_REST_MOST_S = 30.0

#: After a failure others have their turn at once.
_AT_ONCE_S = 0.001

#: Between two checkpoints of the connection.
_SAVE_EVERY_S = 10.0

#: So much of ``every_s`` is no delay yet.
_IN_TIME = 0.25


class AgentsPoller:
    """Reads back one connection while it is ours."""

    def __init__(
        self,
        job: Job,
        connection: Connection,
        open_records: Callable[[], AbstractAsyncContextManager[AgentRecords]],
        publisher: Spooling,
        gaps: Gaps,
        seen: Seen,
        *,
        stopped_s: float = STOPPED_S,
        backoff_s: tuple[float, float] = BACKOFF_S,
        look_s: float = LOOK_S,
        clock: Clock = CLOCK,
    ) -> None:
        self.name = job.connection
        self._job = job
        self._poll = connection.poll
        self._gaps = gaps
        self._seen = seen
        self._clock = clock
        self._look_s = look_s
        self._loops = Loops(
            self.name,
            open_records,
            CALLS,
            stopped_s=stopped_s,
            backoff_s=backoff_s,
            look_s=look_s,
        )
        self._storing = Storing(self.name, publisher, connection.privacy.drop)
        self._rota = Rota(self._poll, self._marks, slice_ms=PROVIDERS[connection.provider].slice_ms)
        checkpoint = job.checkpoint(SOURCE) or {}
        self._mark: str | None = checkpoint.get("cache")
        self._watermark_ms = whole(checkpoint, "watermark_ms")
        self._saved: dict[str, Any] = {}
        self._saved_s = -float("inf")
        #: The turn of the sweep that is under way, by agent.
        self._sweep_turns: dict[str, int] = {}
        #: Agents that could not be read several times in a row.
        self._failing: set[str] = set()
        #: Agents that could not be read since one could.
        self._in_a_row: set[str] = set()
        self._rests_until_s = -float("inf")
        #: Agents that are listed and cannot be found all the same.
        self._gone: set[str] = set()
        #: Agents that were not listed the last time. One that is missing twice is gone: a list
        #: that changes while it is read may hide one.
        self._missed: set[str] = set()
        #: Our clock when the last list that was read to its end was begun.
        self._listed_ms: int | None = None
        self._list_at_s = self._versions_at_s = self._schedule_at_s = -float("inf")
        #: Whether no agent is waiting to be read.
        self._idle = False
        self._behind = False
        #: Since when that has seemed to be otherwise.
        self._unlike_s: float | None = None

    def troubles(self) -> Sequence[str]:
        return self._loops.troubles()

    def reload(self) -> None:
        """Secrets may have changed: whoever has stopped tries again."""
        self._loops.reload()

    async def run(self) -> None:
        """Read until cancelled, which may be at any moment: what is half done is done again."""
        mark = self._seen.adopt(self._mark)
        if mark != self._mark:
            # From now on what is remembered belongs to what the log holds.
            checkpoint = self._checkpoint()
            await self._storing.patiently(partial(self._job.save, SOURCE, checkpoint))
            self._note_saved(checkpoint)
        await self._gaps.current()
        POLL_WATERMARK_AGE_SECONDS.labels(self.name).set_function(self._watermark_age_s)
        POLL_BEHIND_SECONDS.labels(self.name).set_function(self._behind_s)
        POLL_AGENTS.labels(self.name).set_function(lambda: len(self._rota))
        loops: dict[str, Callable[[AgentRecords], Awaitable[float]]] = {
            AGENTS: self._list_agents,
            CALLS: self._read_calls,
        }
        if VERSIONS in self._poll.also:
            loops[VERSIONS] = self._read_versions
        try:
            await self._loops.run(loops)
        finally:
            for gauge in (
                POLL_WATERMARK_AGE_SECONDS,
                POLL_BEHIND_SECONDS,
                POLL_AGENTS,
                POLL_GAPS_OPEN,
            ):
                gauge.remove(self.name)

    # Agents

    async def _list_agents(self, records: AgentRecords) -> float:
        """Go through the list of agents, if it is time to."""
        begun_s, begun_ms = self._clock.steady_s(), self._clock.now_ms()
        if begun_s < self._list_at_s:
            return self._list_at_s - begun_s
        turns = {what: self._seen.begin(what) for what in (AGENTS, DIRECTORY)}
        listed: set[str] = set()
        requests = 0
        async with closing_pages(records.agents(VIA)) as pages:
            async for page in pages:
                requests += 1
                await self._take_listed(page)
                listed.update(event.data["id"] for event in page if _is_agent(event))
                self._set_agents({*self._rota, *listed})
        missed = {*self._rota} - listed
        for agent_id in missed & self._missed:
            self._leave(agent_id, "not_listed")
        self._missed = missed - self._missed
        self._gone &= listed
        self._listed_ms = begun_ms
        for what, turn in turns.items():
            self._seen.forget_before(what, turn - 1)
        # Where it was tried again and again, that has taken long and is no measure.
        took_s = min(self._clock.steady_s() - begun_s, requests / self._poll.requests_per_s)
        self._list_at_s = begun_s + max(self._poll.every_s, _SHARE * took_s)
        return 0.0

    async def _take_listed(self, page: Sequence[Event]) -> None:
        if DIRECTORY in self._poll.also:
            fresh = self._seen.fresh(DIRECTORY, page)
            await self._storing.page(DIRECTORY, page, fresh)
            self._seen.remember(DIRECTORY, page)
        if VERSIONS in self._poll.also:
            changed = self._seen.fresh(AGENTS, page)
            idents = [event.data["id"] for event in changed if _is_agent(event)]
            self._seen.want(VERSIONS, idents, self._clock.now_ms())
            self._seen.remember(AGENTS, page)

    def _set_agents(self, agent_ids: set[str]) -> None:
        # In order, so that what happens can be told from the settings and the answers alone.
        self._rota.set_agents(sorted(agent_ids), self._clock.now_ms(), self._clock.steady_s())

    def _leave(self, agent_id: str, reason: str) -> None:
        self._rota.gone(agent_id)
        self._sweep_turns.pop(agent_id, None)
        self._in_a_row.discard(agent_id)
        self._note_well(agent_id)
        if agent_id not in self._gone:
            log.info("agent_gone", connection=self.name, agent=short_id(agent_id), reason=reason)

    def _marks(self, agent_id: str) -> Marks:
        """How far an agent was read, be it by an earlier owner."""
        checkpoint = self._job.checkpoint(f"{SOURCE}/{agent_id}") or {}
        return whole(checkpoint, "watermark_ms"), whole(checkpoint, "swept_ms")

    # Calls

    async def _read_calls(self, records: AgentRecords) -> float:
        """Read a window of the agent whose turn it is, if there is one."""
        steady_s = self._clock.steady_s()
        if steady_s < self._rests_until_s:
            return self._rests_until_s - steady_s
        gaps = await self._open_gaps()
        self._note_schedule()
        turn = self._rota.next(self._clock.now_ms(), steady_s, gaps)
        self._idle = not isinstance(turn, tuple)
        if not isinstance(turn, tuple):
            await self._save_at_times()
            return min(max(turn, _AT_ONCE_S), self._look_s)  # there may be others by then
        agent_id, window = turn
        try:
            await self._read_window(records, agent_id, window)
        except ApiError as error:
            if error.reason in OF_ALL:
                raise
            if error.reason != "not_found":
                return self._put_back(agent_id, error, steady_s)
            self._leave(agent_id, "not_found")
            self._gone.add(agent_id)
        except Exception as error:
            # The connection may be somebody else's; a memory that is damaged is opened anew.
            if isinstance(error, (PublishError, apsw.Error)):
                raise
            return self._put_back(agent_id, error, steady_s)
        else:
            self._gone.discard(agent_id)
            self._in_a_row.clear()
            self._note_well(agent_id)
        await self._save_at_times()
        return 0.0

    async def _read_window(self, records: AgentRecords, agent_id: str, window: Window) -> None:
        seen, list_ = self._seen, f"{CALLS}/{agent_id}"
        if window.kind == "sweep" and agent_id not in self._sweep_turns:
            self._sweep_turns[agent_id] = seen.begin(list_)
        begun_s = self._clock.steady_s()
        read = published = 0
        calls = records.calls_of(agent_id, window.from_ms, window.to_ms, VIA)
        async with closing_pages(calls) as pages:
            async for page in pages:
                fresh = seen.fresh(list_, page)
                await self._storing.page(CALLS, page, fresh)
                seen.remember(list_, page, gaps=found_in(window.gaps, page))
                read += len(page)
                published += len(fresh)
        ended_s = self._clock.steady_s()
        self._rota.done(agent_id, window, ended_s, published)
        if window.kind == "sweep" and window.last and agent_id in self._sweep_turns:
            # Calls that were not in this sweep lie behind its window for good.
            seen.forget_before(list_, self._sweep_turns.pop(agent_id))
        if window.kind != "gap":
            await self._save_agent(agent_id)
        log.debug(
            "poll_pass",
            connection=self.name,
            agent=short_id(agent_id),
            kind=window.kind,
            read=read,
            published=published,
            window_s=round((window.to_ms - window.from_ms) / 1000, 3),
            seconds=round(ended_s - begun_s, 3),
        )

    def _put_back(self, agent_id: str, error: Exception, begun_s: float) -> float:
        """An agent cannot be read: the others go on; for how long to wait before they do."""
        now_s = self._clock.steady_s()
        failures = self._rota.failures(agent_id) + 1
        # What takes long to fail must not take the others' time.
        least_s = _FAILED_SHARE * (now_s - begun_s)
        ident = short_id(agent_id)
        if isinstance(error, ApiError):
            wait_s = self._loops.fail(AGENT, error, failures, least_s=least_s, agent=ident)
        else:
            wait_s = max(least_s, self._loops.fault(AGENT, error, failures))
        self._rota.failed(agent_id, now_s + wait_s)
        if failures >= FAILING:
            self._failing.add(agent_id)
        self._in_a_row.add(agent_id)
        rests = len(self._in_a_row) - FAILING
        if rests >= 0:  # it is not these agents
            self._loops.note_failing(CALLS, len(self._in_a_row))
            self._rests_until_s = now_s + pause_s(
                rests + 1, self._loops.backoff_s[0], min(_REST_MOST_S, self._loops.backoff_s[1])
            )
        return _AT_ONCE_S

    def _note_well(self, agent_id: str) -> None:
        self._failing.discard(agent_id)
        if not self._failing:
            self._loops.mended(AGENT)

    # Gaps

    async def _open_gaps(self) -> Sequence[Gap]:
        """Those that are open, once those that all agents have read back are closed."""
        gaps = self._gaps.of(self.name, None)
        for gap in [gap for gap in gaps if self._rota.has_read(gap)]:
            await close_gap(
                self.name, gap, self._gaps, self._seen, self._storing, self._clock.now_ms()
            )
            gaps.remove(gap)
        POLL_GAPS_OPEN.labels(self.name).set(len(gaps))
        return gaps

    # How far it is

    async def _save_agent(self, agent_id: str) -> None:
        marks = self._rota.marks(agent_id)
        if marks is None:  # it has left meanwhile, and reads this again when it is back
            return
        named = zip(("watermark_ms", "swept_ms"), marks, strict=True)
        checkpoint = {name: mark for name, mark in named if mark is not None}
        await self._storing.save(self._job, f"{SOURCE}/{agent_id}", checkpoint)

    async def _save_at_times(self) -> None:
        """Save how far the connection is, if that is worth a record."""
        waits = self._clock.steady_s() - self._saved_s < _SAVE_EVERY_S
        first = self._watermark_ms is None
        other = self._seen.mark != self._saved.get("cache")
        if waits and not first and not other:
            return
        self._note_watermark()
        # A first watermark does not wait, nor does a memory that is another one.
        waits = waits and not other and not (first and self._watermark_ms is not None)
        checkpoint = self._checkpoint()
        if (
            not waits
            and checkpoint != self._saved
            and await self._storing.save(self._job, SOURCE, checkpoint)
        ):
            self._note_saved(checkpoint)

    def _note_saved(self, checkpoint: dict[str, Any]) -> None:
        self._saved, self._saved_s = checkpoint, self._clock.steady_s()

    def _checkpoint(self) -> dict[str, Any]:
        checkpoint: dict[str, Any] = {"cache": self._seen.mark, "agents": len(self._rota)}
        if self._watermark_ms is not None:
            checkpoint["watermark_ms"] = self._watermark_ms
        return checkpoint

    def _note_watermark(self) -> None:
        """All calls that began before it, of all agents, are on the log.

        It never goes back, also when an agent comes back that has not been read for long; unless
        it lies ahead, where a clock that was wrong has set it.
        """
        least_ms = self._rota.watermark_ms
        # Of who was made after the list was begun we do not know.
        if least_ms is None or self._listed_ms is None:
            return
        mark_ms = min(least_ms, self._listed_ms)
        known_ms = self._watermark_ms
        if known_ms is None or mark_ms > known_ms or known_ms > self._clock.now_ms():
            self._watermark_ms = mark_ms

    def _watermark_age_s(self) -> float:
        mark_ms = self._watermark_ms
        return float("nan") if mark_ms is None else (self._clock.now_ms() - mark_ms) / 1000

    def _behind_s(self) -> float:
        return self._rota.behind_s(self._clock.now_ms(), self._clock.steady_s())

    def _note_schedule(self) -> None:
        """Say that there are too many agents, or no longer: once it has been so for a while."""
        every_s, now_s = self._poll.every_s, self._clock.steady_s()
        # While the provider is away nobody can say that there are too many.
        if now_s < self._schedule_at_s or len(self._in_a_row) >= FAILING:
            return
        self._schedule_at_s = now_s + min(_SAVE_EVERY_S, every_s)
        behind_s = self._behind_s()
        if (behind_s > _IN_TIME * every_s) == self._behind:
            self._unlike_s = None
            return
        if self._unlike_s is None:
            self._unlike_s = now_s
        if now_s - self._unlike_s < every_s:
            return
        self._behind, self._unlike_s = not self._behind, None
        if self._behind:
            log.warning(
                "poll_behind_schedule",
                connection=self.name,
                agents=len(self._rota),
                behind_s=round(behind_s, 1),
            )
        else:
            log.info("poll_on_schedule", connection=self.name, agents=len(self._rota))

    # Versions

    async def _read_versions(self, records: AgentRecords) -> float:
        """Read the versions of an agent, if they are due and the calls leave time for it."""
        wanted = self._seen.next_wanted(VERSIONS)
        if wanted is None or self._listed_ms is None:
            return self._look_s
        agent_id, due_ms, _ = wanted
        now_s, now_ms = self._clock.steady_s(), self._clock.now_ms()
        every_s = self._poll.sweep_every_s
        # Nothing waits longer than that: what does was put off by a clock that was ahead.
        if 0 < due_ms - now_ms <= every_s * 1000:
            return (due_ms - now_ms) / 1000
        if not self._idle and now_s < self._versions_at_s:
            return self._versions_at_s - now_s
        if agent_id in self._rota:
            try:
                await self._take_versions(records, agent_id)
            except ApiError as error:
                if error.reason in OF_ALL:
                    raise
                if error.reason != "not_found":
                    # It may be this one agent: it waits, and the others have their turn.
                    every_s = max(self._poll.every_s, self._loops.fail(VERSIONS, error, 1))
            took_s = self._clock.steady_s() - now_s
            self._versions_at_s = now_s + _SHARE * took_s
        self._seen.put_off(VERSIONS, agent_id, self._clock.now_ms() + round(every_s * 1000))
        return 0.0

    async def _take_versions(self, records: AgentRecords, agent_id: str) -> None:
        """Publish those that are new. All are read: in which order they come is not documented."""
        list_ = f"{VERSIONS}/{agent_id}"
        async with closing_pages(records.versions_of(agent_id, VIA)) as pages:
            async for page in pages:
                fresh = self._seen.fresh(list_, page)
                await self._storing.page(VERSIONS, page, fresh)
                self._seen.remember(list_, page)


def _is_agent(event: Event) -> bool:
    return event.subject_kind == "directory" and event.data.get("kind") == "agent"

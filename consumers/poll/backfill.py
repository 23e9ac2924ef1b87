"""`dialstream backfill`: reads a stretch of time back, for people.

It runs beside whatever else does. Where it was is kept in ``backfill/<connection>.sqlite`` below
the data directory until it is done: killed and run again with the same times, it goes on there.
"""

import asyncio
import difflib
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass
from datetime import datetime
from functools import partial
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from consumers.instants import instant
from consumers.poll.loops import OF_ALL, SOURCE, closing_pages, pause_s
from consumers.poll.role import memory_path
from consumers.poll.seen import CALLS, Seen
from ingest.api import ApiError
from ingest.checkpoints import read_checkpoints
from ingest.commands.work import waiting_in_spool
from ingest.delivery import DAY_MS, AgentRecords, Records
from ingest.errors import ConfigError, PublishError
from ingest.eventlog.kinds import open_log
from ingest.eventlog.log import Publisher
from ingest.eventlog.ownership import sole_owner
from ingest.logs import quietly
from ingest.pipeline import store
from ingest.providers import PROVIDERS
from ingest.runner import Stopping, run
from ingest.settings import Connection, Settings
from schemas.event import Event
from schemas.times import rfc3339

ROLE = "backfill"

_PUBLISH_S = 30.0

#: Where the pages of a slice are in no order that is known, after so many it stands at the half.
_HALF_PAGES = 20

#: So many agents that cannot be read end it.
_FAILED_AGENTS = 3


@dataclass(slots=True)
class Progressed:
    """How far a backfill has come. Counts are those since its beginning, restarts included."""

    from_ms: int
    to_ms: int
    #: Everything that began before it is on the log.
    at_ms: int
    calls: int = 0
    #: Not known to be on the event log; published, unless it was only asked for.
    new: int = 0
    unreadable: int = 0

    @property
    def done(self) -> bool:
        return self.at_ms >= self.to_ms


def backfill(
    settings: Settings,
    name: str,
    from_: str,
    to: str,
    *,
    dry_run: bool,
    rate: float | None,
    as_json: bool,
) -> int:
    """Read the calls of a connection that began in [from, to); 0 once all are on the event log.

    1 if it has to be run again. ``rate``: requests a second instead of those in the settings.
    Raises ConfigError.
    """
    connection = _connection(settings, name, rate)
    from_ms, to_ms = instant("--from", from_), instant("--to", to)
    if from_ms >= to_ms:
        raise ConfigError("--to is not after --from: there is nothing between them")
    with quietly(settings.logging.format):
        if dry_run:
            work = _Work(settings, name, connection, Progressed(from_ms, to_ms, from_ms), None)
            code = run(work.count)
        else:
            with _own_memory(settings.eventlog.path, name) as own:
                work = _Work(
                    settings, name, connection, _resume(own, _where(settings), from_ms, to_ms), own
                )
                code = run(work.publish)
                if work.progressed.done:
                    own.set_note("done", 1)
    waiting = 0 if dry_run else waiting_in_spool(settings, ROLE)
    out = Console(highlight=False, markup=False, soft_wrap=True)
    if as_json:
        out.print(json.dumps(work.summary(dry_run=dry_run, waiting=waiting)))
    else:
        out.print(work.story(dry_run=dry_run, waiting=waiting))
    return code or (0 if work.progressed.done and not waiting else 1)


@dataclass(frozen=True, slots=True)
class _To:
    """Where what is read goes: to the log, or to nobody; and what is there already."""

    publisher: Publisher | None
    poller: Seen


class _Work:
    """Reads, counts, publishes."""

    def __init__(
        self,
        settings: Settings,
        name: str,
        connection: Connection,
        progressed: Progressed,
        own: Seen | None,
    ) -> None:
        """``own``: what this backfill remembers; None if it only counts."""
        self.progressed = progressed
        self._resumed = progressed.calls > 0 or progressed.at_ms > progressed.from_ms
        self._settings = settings
        self._name = name
        self._connection = connection
        self._own = own
        self._failed: ApiError | None = None
        #: A slice of a day comes from its end to its beginning; longer ones in whatever order.
        self._in_order = PROVIDERS[connection.provider].slice_ms <= DAY_MS
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f} %"),
            TextColumn("{task.fields[calls]:,} calls, {task.fields[new]:,} new"),
            TimeRemainingColumn(),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self._bar = self._progress.add_task(
            name, total=progressed.to_ms - progressed.from_ms, calls=0, new=0
        )

    async def count(self, stopping: Stopping) -> None:
        await self._until_stopped(stopping, None)

    async def publish(self, stopping: Stopping) -> None:
        async with open_log(self._settings, ROLE) as publisher:
            await self._until_stopped(stopping, publisher)

    async def _until_stopped(self, stopping: Stopping, publisher: Publisher | None) -> None:
        with self._progress:
            taking = asyncio.create_task(self._take_all(publisher))
            asked = asyncio.create_task(stopping.wait())
            try:
                await asyncio.wait([taking, asked], return_when=asyncio.FIRST_COMPLETED)
            finally:
                # What is half done is done again; what is durable is remembered.
                for task in (taking, asked):
                    task.cancel()
                await asyncio.wait([taking, asked])
            if not taking.cancelled():
                taking.result()

    async def _poller(self) -> Seen:
        """What the connection's poller knows to be on the event log, if it can be believed."""
        path = memory_path(self._settings.eventlog.path, self._name)
        seen = Seen.glance(path)
        if seen is not None:
            checkpoints = await read_checkpoints(self._settings)
            checkpoint = checkpoints.get((self._name, SOURCE), {})
            if seen.note("mark") == checkpoint.get("cache"):
                return seen
            seen.close()
        return Seen.nothing()

    async def _take_all(self, publisher: Publisher | None) -> None:
        provider = PROVIDERS[self._connection.provider]
        with closing(await self._poller()) as poller:
            self._to = _To(publisher, poller)
            try:
                if provider.agent_records is not None:
                    async with provider.agent_records(self._name, self._connection) as by_agent:
                        await self._take_slices(partial(self._take_agents, by_agent))
                else:
                    assert provider.records is not None
                    async with provider.records(self._name, self._connection) as records:
                        await self._take_slices(partial(self._take_slice, records))
            except ApiError as error:
                self._failed = error

    async def _take_slices(self, take: Callable[[int], Awaitable[None]]) -> None:
        progressed = self.progressed
        slice_ms = PROVIDERS[self._connection.provider].slice_ms
        while not progressed.done:
            to_ms = min(progressed.at_ms + slice_ms, progressed.to_ms)
            await take(to_ms)
            progressed.at_ms = to_ms
            self._note()

    async def _take_slice(self, records: Records, to_ms: int) -> None:
        at_ms = self.progressed.at_ms
        count = 0
        async for page in self._taken(CALLS, records.calls(at_ms, to_ms, "backfill")):
            count += 1
            if self._in_order:
                self._show(_from_the_end(page, at_ms, to_ms), to_ms)
            else:  # how many pages there are nobody knows
                self._show(count / (count + _HALF_PAGES), to_ms)

    async def _take_agents(self, records: AgentRecords, to_ms: int) -> None:
        """Of all agents that there are now; one that goes meanwhile is left out.

        One that cannot be read does not keep the others from it, but this slice is not done.
        """
        agent_ids: dict[str, None] = {}
        async with closing_pages(records.agents("backfill")) as pages:
            async for page in pages:
                agent_ids |= {e.data["id"]: None for e in page if e.subject_kind == "directory"}
        failed: list[ApiError] = []
        for done, agent_id in enumerate(agent_ids):
            calls = records.calls_of(agent_id, self.progressed.at_ms, to_ms, "backfill")
            try:
                async for _ in self._taken(f"{CALLS}/{agent_id}", calls):
                    self._show(done / len(agent_ids), to_ms)
            except ApiError as error:
                if error.reason == "not_found":
                    continue
                failed.append(error)
                if error.reason in OF_ALL or len(failed) == _FAILED_AGENTS:
                    break
        if failed:
            raise failed[-1]

    async def _taken(
        self, list_: str, pages: AsyncIterator[Sequence[Event]]
    ) -> AsyncIterator[Sequence[Event]]:
        """The pages, each once it is counted, and durable unless it is only counted.

        ``list_``: what the poller remembers these by.
        """
        progressed = self.progressed
        turn = 0 if self._own is None else self._own.begin(list_)
        async with closing_pages(pages):
            async for page in pages:
                own = page if self._own is None else self._own.fresh(list_, page)
                fresh = self._to.poller.fresh(list_, own)
                if self._to.publisher is not None and fresh:
                    await self._put(self._to.publisher, fresh)
                # Those that are remembered were counted before it was interrupted.
                calls = [event for event in own if event.subject_kind == "call"]
                progressed.calls += len(calls)
                progressed.unreadable += len(own) - len(calls)
                progressed.new += sum(event.subject_kind == "call" for event in fresh)
                if self._own is not None:
                    self._own.remember(list_, page)
                self._note()
                yield page
        if self._own is not None:
            self._own.forget_before(list_, turn)

    async def _put(self, publisher: Publisher, events: Sequence[Event]) -> None:
        """Return once they are durable."""
        for tries in itertools.count(1):
            deadline = asyncio.get_running_loop().time() + _PUBLISH_S
            try:
                await store(publisher, events, deadline, self._settings.drops)
            except PublishError as error:
                self._progress.update(self._bar, description=f"event log: {error.reason}")
                await asyncio.sleep(pause_s(tries, 0.2, 10.0))
            else:
                self._progress.update(self._bar, description=self._name)
                return

    def _note(self) -> None:
        if self._own is not None:
            self._own.set_note("progressed", json.dumps(asdict(self.progressed)))

    def _show(self, part: float, to_ms: int) -> None:
        """``part``: of the slice that is read, from 0 to 1."""
        progressed = self.progressed
        done_ms = progressed.at_ms - progressed.from_ms + part * (to_ms - progressed.at_ms)
        self._progress.update(
            self._bar, completed=done_ms, calls=progressed.calls, new=progressed.new
        )

    def summary(self, *, dry_run: bool, waiting: int) -> dict[str, object]:
        """For programs."""
        progressed = self.progressed
        return {
            "connection": self._name,
            "from": rfc3339(progressed.from_ms),
            "to": rfc3339(progressed.to_ms),
            "read_to": rfc3339(progressed.at_ms),
            "done": progressed.done,
            "calls": progressed.calls,
            "new": progressed.new,
            "unreadable": progressed.unreadable,
            "published": not dry_run,
            "waiting_in_spool": waiting,
            "error": None if self._failed is None else str(self._failed),
        }

    def story(self, *, dry_run: bool, waiting: int) -> str:
        """For people."""
        progressed = self.progressed
        what = "not known to the poller; nothing was published" if dry_run else "published"
        resumed = ", restarts included" if self._resumed else ""
        stretch = f"from {rfc3339(progressed.from_ms)} to {rfc3339(progressed.to_ms)}"
        counts = f"{progressed.calls:,} calls{resumed}, {progressed.new:,} of them {what}"
        lines = [f"{self._name}, {stretch}: {counts}"]
        if progressed.unreadable:
            kept = "" if dry_run else ": they are kept on the topic of rejects"
            lines.append(f"{progressed.unreadable:,} could not be read{kept}")
        if waiting:
            lines.append(
                f"{waiting:,} records wait for Kafka: `dialstream spool drain` brings them there"
            )
        if not progressed.done:
            if self._failed is not None:
                lines.append(f"the provider cannot be read: {self._failed}")
            again = "run it again" + ("" if dry_run else " to go on there")
            lines.append(f"not done: it has come to {rfc3339(progressed.at_ms)}; {again}")
        return "\n  ".join(lines)


def _from_the_end(page: Sequence[Event], from_ms: int, to_ms: int) -> float:
    """How much of the time lies behind the earliest call of a page, from 0 to 1."""
    begun = [
        text
        for event in page
        if event.subject_kind == "call" and (text := event.data.get("started_at"))
    ]
    if not begun:
        return 0.0
    earliest_ms = round(datetime.fromisoformat(min(begun)).timestamp() * 1000)
    return max(0, to_ms - max(earliest_ms, from_ms)) / (to_ms - from_ms)


@contextmanager
def _own_memory(path: Path, name: str) -> Iterator[Seen]:
    """What a backfill remembers; gone once it is done. Raises ConfigError if one is running."""
    file = path / ROLE / f"{name}.sqlite"
    with sole_owner(path, ROLE):
        with closing(Seen.open(file)) as own:
            yield own
            done = own.note("done") is not None
        if done:
            for suffix in ("", "-wal", "-shm"):
                file.with_name(file.name + suffix).unlink(missing_ok=True)


def _resume(own: Seen, where: str, from_ms: int, to_ms: int) -> Progressed:
    """Where an earlier run with the same times was; else the beginning, and nothing remembered.

    ``where``: the event log; what was published on another one is not on this.
    """
    try:
        found = Progressed(**json.loads(str(own.note("progressed"))))
    except (ValueError, TypeError):
        found = Progressed(from_ms, to_ms, from_ms)
    if (found.from_ms, found.to_ms, own.note("log")) != (from_ms, to_ms, where):
        found = Progressed(from_ms, to_ms, from_ms)
        own.forget_all()
        own.set_note("progressed", json.dumps(asdict(found)))
        own.set_note("log", where)  # last: until then the next run begins anew, too
    return found


def _where(settings: Settings) -> str:
    """The event log in a word."""
    if settings.eventlog.kind == "journal":
        return "journal"
    return f"{settings.kafka.bootstrap_servers} {settings.kafka.topic_prefix}"


def _connection(settings: Settings, name: str, rate: float | None) -> Connection:
    """Raises ConfigError if it cannot be read back."""
    if name not in settings.connections:
        near = difflib.get_close_matches(name, settings.connections, 1, 0.5)
        known = ", ".join(settings.connections) or "none"
        mend = f"did you mean {near[0]!r}?" if near else f"known: {known}"
        raise ConfigError(f"there is no connection {name!r}: {mend}")
    connection = settings.connections[name]
    if PROVIDERS[connection.provider].records is None:
        raise ConfigError(f"connections.{name}: {connection.provider} has no records to read back")
    try:
        connection.key()
    except ConfigError as error:
        raise ConfigError(*(f"connections.{name}.{fault}" for fault in error.faults)) from None
    if rate is None:
        return connection
    poll = connection.poll.model_copy(update={"requests_per_s": rate})
    return connection.model_copy(update={"poll": poll})

"""A subscriber while it runs: fetching, committing, measuring, and beginning anew when it fails."""

import asyncio
import sys
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Any, Literal, Protocol

import structlog

from consumers.subscribe.blocking import watch_loop
from consumers.subscribe.outlet import Outlet
from consumers.subscribe.routes import Routes
from consumers.subscribe.work import Work
from ingest.errors import ConfigError, PublishError
from ingest.eventlog.kinds import open_group_reader
from ingest.eventlog.log import GroupReader, LostError, Place, Record, StoredRecord, records_of
from ingest.gaps import gap_event
from ingest.logs import Sample, setup_logs
from ingest.metrics import (
    SUBSCRIBER_AGE_SECONDS,
    SUBSCRIBER_BLOCKED,
    SUBSCRIBER_EVENTS,
    SUBSCRIBER_LAG,
)
from ingest.rejects import group_reject, group_topic
from ingest.runner import Stopping
from ingest.runner import run as run_process
from ingest.settings import Settings
from schemas.times import now_ms

if TYPE_CHECKING:
    from ingest.logs import LineWriter

log = structlog.get_logger()

#: What waits for a handler, at most, before more is fetched: so many events.
_QUEUE = 1_000

_FETCH_S = 0.5

#: How often what is done is committed, and how often the lag is measured, in seconds.
_COMMIT_S, _MEASURE_S = 1.0, 10.0

#: How late a handler may be cancelled that takes too long, in seconds.
_LOOK_S = 0.1

#: A commit that takes longer when partitions go is given up, in seconds: those events come again.
_LAST_COMMIT_S = 3.0

#: From one failure of the event log to the next try, in seconds.
_PAUSES_S = (0.5, 1.0, 2.0, 5.0, 10.0)

#: What has gone well for so long was mended, in seconds.
_WELL_S = 60.0


class Options(Protocol):
    """What `Subscriber` is told."""

    group: str
    parallel: int
    start: Literal["earliest", "latest"]
    leave_s: float
    seen_max: int


class Running:
    """One run of a subscriber. It is the Watcher of its reader."""

    def __init__(self, options: Options, routes: Routes, settings: Settings) -> None:
        self._options = options
        self._group = options.group
        self._routes = routes
        self._settings = settings
        self._outlet = Outlet(settings)
        self._stopping = asyncio.Event()
        self._reader: GroupReader | None = None
        self._work = Work(
            self._group,
            routes,
            self._reject,
            self._hold,
            parallel=options.parallel,
            queue_max=_QUEUE,
            seen_max=options.seen_max,
        )
        #: Places of which something had gone → until when there was something, if that is known.
        self._gaps: dict[Place, int | None] = {}
        self._gap_records: list[Record] = []
        self._untold = Sample()

    def stop(self) -> None:
        self._work.end()
        self._stopping.set()

    @property
    def waiting(self) -> int:
        return self._work.waiting

    async def run(self) -> None:
        topics = [*self._routes.topics, group_topic(self._group)]
        said, failures, has_begun = "", 0, False
        try:
            with watch_loop(self._blocked):
                while not self._stopping.is_set() and not self._work.fault.done():
                    begun = time.monotonic()
                    try:
                        async with open_group_reader(
                            self._settings,
                            topics,
                            self,
                            group=self._group,
                            start=self._options.start,
                        ) as reader:
                            if not has_begun:
                                await self._check(topics)
                                log.info("subscribed", group=self._group, topics=topics)
                            has_begun = True
                            await self._follow(reader)
                    except Exception as error:
                        if not has_begun:
                            raise
                        if time.monotonic() - begun > _WELL_S:
                            said, failures = "", 0
                        trouble = type(error).__name__
                        if said != trouble:  # once for each kind
                            said = trouble
                            log.warning("subscriber_waits", group=self._group, error=trouble)
                        await self._rest(_PAUSES_S[min(failures, len(_PAUSES_S) - 1)])
                        failures += 1
        finally:
            await self._outlet.close()
            self._forget_metrics()
        if self._work.fault.done():
            self._work.fault.result()

    async def _check(self, topics: Sequence[str]) -> None:
        """Raises ConfigError if one is missing: a part would not be read, or nothing set aside."""
        if self._settings.eventlog.kind == "journal":
            return  # there each is made with its first record
        from ingest.eventlog.cluster import client_options  # noqa: PLC0415
        from ingest.eventlog.kafka_reader import find_partitions, no_topic  # noqa: PLC0415

        prefix = self._settings.kafka.topic_prefix
        places = await find_partitions(client_options(self._settings.kafka), prefix, topics)
        found = {place.topic for place in places}
        missing = [topic for topic in topics if prefix + topic not in found]
        if missing:
            raise no_topic(prefix, missing)

    async def _follow(self, reader: GroupReader) -> None:
        """Handle what comes until there is a reason to end; then nothing is under way any more."""
        self._reader = reader
        stopping = asyncio.ensure_future(self._stopping.wait())
        jobs = (self._fetch(reader), self._keep(reader), self._look_at_handlers(), self._tell())
        doing = [asyncio.ensure_future(each) for each in jobs]
        waiting: list[asyncio.Future[Any]] = [*doing, stopping]
        grace_s = self._options.leave_s
        try:
            await asyncio.wait([*waiting, self._work.fault], return_when=asyncio.FIRST_COMPLETED)
            for each in doing:
                if each.done():
                    each.result()
        except asyncio.CancelledError:
            grace_s = 0.0
            raise
        finally:
            for task in waiting:
                task.cancel()
            await asyncio.wait(waiting)
            if grace_s:
                await self._tell_gaps()
            await self._leave(None, grace_s)
            self._reader = None

    async def _fetch(self, reader: GroupReader) -> None:
        while True:
            found = await reader.fetch(_FETCH_S)
            for stored in found:
                if self._gaps:
                    self._note_gap(stored)
                self._work.add(stored)
            await self._work.room()
            await asyncio.sleep(0)

    async def _keep(self, reader: GroupReader) -> None:
        """Commit and measure, again and again."""
        measured = -_MEASURE_S
        while True:
            # Before what comes behind it is committed: else nobody finds the gap again.
            await self._tell_gaps()
            if not self._gap_records:
                await self._commit(reader)
            if time.monotonic() - measured > _MEASURE_S:
                measured = time.monotonic()
                await self._measure(reader)
            await asyncio.sleep(_COMMIT_S)

    async def _tell(self) -> None:
        """Also while a commit waits for a log that is away."""
        while True:
            self._count()
            await asyncio.sleep(_COMMIT_S)

    async def _look_at_handlers(self) -> None:
        while True:
            self._work.cancel_late()
            self._work.make_room()
            await asyncio.sleep(_LOOK_S)

    async def _commit(self, reader: GroupReader) -> None:
        handled = self._work.handled()
        if handled.records:
            with suppress(LostError):  # then we hear of it as the Watcher
                await reader.commit(handled.records)
                handled.committed()

    async def _rest(self, pause_s: float) -> None:
        with suppress(TimeoutError):
            async with asyncio.timeout(pause_s):
                await self._stopping.wait()

    # The Watcher

    async def revoked(self, places: Collection[Place], *, lost: bool) -> None:
        await self._leave(places, 0.0 if lost else self._options.leave_s, commit=not lost)

    def skipped(self, place: Place, expected: int, found: int) -> None:
        log.error(
            "records_skipped",
            group=self._group,
            topic=place[0],
            partition=place[1],
            expected=expected,
            found=found,
        )
        self._gaps[place] = self._work.written_ms(place)

    async def _leave(
        self, places: Collection[Place] | None, grace_s: float, *, commit: bool = True
    ) -> None:
        handled = await self._work.leave(places, grace_s)
        self._count()
        # Where nothing has come behind a gap, whoever goes on there finds it again.
        for place in [*self._gaps] if places is None else places:
            self._gaps.pop(place, None)
        # Behind a gap that nobody has heard of nothing is committed: the next one finds it again.
        commit = commit and not self._gap_records
        if commit and handled.records and self._reader is not None:
            # What fails here only comes again.
            with suppress(Exception):
                async with asyncio.timeout(_LAST_COMMIT_S):
                    await self._reader.commit(handled.records)

    # Rejects and gaps

    async def _reject(self, stored: StoredRecord, reason: str, detail: str) -> None:
        await self._outlet.put(group_reject(stored, self._group, reason, detail, now_ms()))

    def _note_gap(self, stored: StoredRecord) -> None:
        place = stored.topic, stored.partition
        if place not in self._gaps:
            return
        from_ms = self._gaps.pop(place)
        # Nobody reads it back, so it is closed. Whose records they were nobody knows.
        event = gap_event(
            "-",
            f"group.{self._group}.{place[0]}.{place[1]}",
            stored.written_ms if from_ms is None else from_ms,
            to_ms=stored.written_ms,
            reason="deleted_unread",
            found=0,
            now_ms=now_ms(),
        )
        self._gap_records += records_of(event)

    async def _tell_gaps(self) -> None:
        try:
            while self._gap_records:
                await self._outlet.put(self._gap_records[0])
                del self._gap_records[0]
        except PublishError as error:
            suppressed = self._untold.take(time.monotonic())
            if suppressed is not None:
                log.warning(
                    "gap_not_told", group=self._group, reason=error.reason, suppressed=suppressed
                )

    # What is told

    def _hold(self, places: Collection[Place]) -> None:
        if self._reader is not None:
            self._reader.hold(places)

    def _count(self) -> None:
        counts = self._work.counts
        for route in self._routes:
            counts[route.name, "handled"] += route.handled
            route.handled = 0
        for (handler, outcome), count in counts.items():
            SUBSCRIBER_EVENTS.labels(self._group, handler, outcome).inc(count)
        counts.clear()
        oldest_ms = self._work.oldest_ms()
        age_s = 0.0 if oldest_ms is None else max(0.0, (now_ms() - oldest_ms) / 1000)
        SUBSCRIBER_AGE_SECONDS.labels(self._group).set(age_s)

    async def _measure(self, reader: GroupReader) -> None:
        left, nexts = await reader.left(), self._work.next_positions()
        behind = dict.fromkeys(self._routes.topics, 0)
        for place, positions in left.items():
            if place[0] in behind:
                behind[place[0]] += max(0, positions.stop - nexts.get(place, positions.start))
        for topic, count in behind.items():
            SUBSCRIBER_LAG.labels(self._group, topic).set(count)

    def _forget_metrics(self) -> None:
        with suppress(KeyError):
            SUBSCRIBER_AGE_SECONDS.remove(self._group)
        for topic in self._routes.topics:
            with suppress(KeyError):
                SUBSCRIBER_LAG.remove(self._group, topic)

    def _blocked(
        self, task: "asyncio.Task[object] | None", seconds: float, where: list[str]
    ) -> None:
        """Called in another thread."""
        route = next((w.route for w in list(self._work.workers) if w.task is task), None)
        name = "-" if route is None else route.name
        SUBSCRIBER_BLOCKED.labels(self._group, name).inc()
        log.error(
            "loop_blocked", group=self._group, handler=name, seconds=round(seconds, 1), where=where
        )


def run_alone(subscriber: "Runs", settings: Settings | None, load: Callable[[], Settings]) -> int:
    """Run as a process; the exit code."""
    logs: LineWriter | None = None
    try:
        settings = settings or load()
        if not structlog.is_configured():
            logs = setup_logs(settings.logging.format, settings.logging.level)

        async def main(stopping: Stopping) -> None:
            running = asyncio.create_task(subscriber.run())
            asked = asyncio.create_task(stopping.wait())
            await asyncio.wait([running, asked], return_when=asyncio.FIRST_COMPLETED)
            asked.cancel()
            subscriber.stop()
            await running

        return run_process(main)
    except ConfigError as error:
        sys.stderr.write("".join(f"{fault}\n" for fault in error.faults))
        return 2
    finally:
        if logs is not None:
            logs.close()


class Runs(Protocol):
    async def run(self) -> None: ...

    def stop(self) -> None: ...

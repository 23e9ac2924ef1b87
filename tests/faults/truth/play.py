"""Lives through the week: the real pollers and the real reconciler, on a log in memory.

One process and one loop, in whose time only waiting takes time. The socket is cut, the reconciler
is killed, loses its state, and stands still for a day.
"""

import asyncio
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from consumers.poll.agents import AgentsPoller
from consumers.poll.loops import Clock
from consumers.poll.poller import Poller
from consumers.poll.seen import Seen
from consumers.reconcile.role import Habits, Reconciler, state_path
from ingest.checkpoints import save_checkpoint
from ingest.delivery import Delivery
from ingest.eventlog.log import Receipt, Record, records_of
from ingest.gaps import gap_event
from ingest.pipeline import Pipeline
from ingest.providers import PROVIDERS
from ingest.settings import Connection, EventLog, Pair, Poll, Reconcile, Settings, Stream
from tests.consumers.poll.fakes import CurrentGaps, FakeJob
from tests.faults.fast import clock_from, run_fast
from tests.faults.truth.heard import TOPICS, Heard
from tests.faults.truth.judge import Judge
from tests.faults.truth.log import MemoryLog
from tests.faults.truth.verdict import Found
from tests.faults.truth.world import (
    DAY_MS,
    HOUR_MS,
    DialgoodLists,
    DialpadList,
    Weather,
    World,
)
from tests.kit import SECRET

#: A Monday, midnight in UTC.
BEGIN_MS = 1_789_948_800_000

#: As in the settings that nobody has changed, but for the window: a record may come a day late.
WINDOW_S = 36 * 3600.0

#: After the last call: a record comes a day late, and is found by the next sweep.
DRAIN_MS = 33 * HOUR_MS

#: Between two looks at what there is to do; a gap may wait so long for nothing.
LOOK_S = 10.0

#: A reader looks at what came in so long, all at once.
_READ_S = 30.0

WEBSOCKET = "websocket"


@dataclass(frozen=True, slots=True, kw_only=True)
class Week:
    """How much of it. ``calls``: legs, about."""

    calls: int
    seed: int
    days: float = 7
    kills: int = 8
    losses: int = 1
    standstill_s: float = 86_400.0
    weather: Weather = field(default_factory=Weather)


def settings_in(folder: Path) -> Settings:
    return Settings(
        eventlog=EventLog(path=folder),
        reconcile=Reconcile(window_s=WINDOW_S, pairs=(Pair(pushed="acme", recorded="voice"),)),
        connections={
            "acme": Connection(
                provider="dialpad",
                secrets=(SECRET,),
                api_key="invented",
                region="US",
                stream=Stream(enabled=True),
            ),
            "voice": Connection(
                provider="dialgood",
                api_key="invented",
                region="US",
                poll=Poll(requests_per_s=1.0, also=("directory",)),
            ),
        },
    )


def live(week: Week, folder: Path) -> Found:
    """Let it pass, and judge."""
    begun_s = time.process_time()
    found = play(week, folder).judge()
    found.cpu_s = time.process_time() - begun_s
    return found


def play(week: Week, folder: Path) -> Judge:
    """Let it pass; who may judge it."""
    random.seed(week.seed)  # the jitter of pauses
    return run_fast(_Playing(week, folder).live())


class Killed(Exception):  # noqa: N818 - nothing is wrong
    pass


class Fragile:
    """A publisher whose owner dies while it writes, if that is asked for."""

    def __init__(self, log: MemoryLog) -> None:
        self._log = log
        #: So many records are written before.
        self.lasts: int | None = None

    def publish(self, records: Sequence[Record]) -> Receipt:
        if self.lasts is not None:
            if self.lasts <= 0:
                raise Killed
            self.lasts -= 1
        return self._log.publish(records)


class LoggedJob(FakeJob):
    """A job whose checkpoints stand on the log."""

    def __init__(self, connection: str, log: MemoryLog) -> None:
        super().__init__(connection)
        self._log = log

    async def save(self, source: str, checkpoint: Mapping[str, Any]) -> None:
        self.saved[source] = await save_checkpoint(
            self._log, self.connection, source, checkpoint, 1
        )


class _Playing:
    def __init__(self, week: Week, folder: Path) -> None:
        self._week, self._folder = week, folder
        self._settings = settings_in(folder)
        self._chance = random.Random(f"{week.seed} kills")
        self._is_deaf = False
        #: From when to when there was no socket.
        self._interruptions: dict[int, int] = {}
        self._lives = 0
        self.clock: Clock
        self.log: MemoryLog

    async def live(self) -> Judge:
        week = self._week
        self.clock = clock = clock_from(BEGIN_MS)
        keep_ms = round((WINDOW_S + 2 * 3600) * 1000)
        self.log = log = MemoryLog(clock.now_ms, keep_ms)
        # Somebody has been there for an hour before the first call.
        world = World(week.seed, BEGIN_MS + HOUR_MS, week.days, week.calls, week.weather)
        polls = {name: one.poll for name, one in self._settings.connections.items()}
        dialpad = DialpadList(world, clock.now_ms, polls["acme"].requests_per_s)
        dialgood = DialgoodLists(world, clock.now_ms, polls["voice"].requests_per_s)
        heard = Heard()
        for topic in TOPICS:
            log.listeners[topic].append(heard.hear)
        gaps = CurrentGaps()
        log.listeners["gaps"].append(lambda stored: gaps.read([stored]))
        acme, voice = LoggedJob("acme", log), LoggedJob("voice", log)
        connections = self._settings.connections
        pollers = (
            Poller(
                acme,
                connections["acme"],
                dialpad.open,
                log,
                gaps,
                Seen.nothing(),
                look_s=LOOK_S,
                clock=clock,
            ),
            AgentsPoller(
                voice,
                connections["voice"],
                dialgood.open,
                log,
                gaps,
                Seen.nothing(),
                look_s=LOOK_S,
                clock=clock,
            ),
        )
        tasks = [
            asyncio.ensure_future(each)
            for each in (
                *(poller.run() for poller in pollers),
                self._reconcile(),
                self._push(world),
                self._cut(world, acme),
            )
        ]
        await self._until(world.end_ms + 3 * HOUR_MS + DRAIN_MS, tasks)
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
        return Judge(world, dialpad.asked, heard, self._interruptions, self._lives, LOOK_S)

    async def _until(self, at_ms: int, tasks: Sequence[asyncio.Future[None]]) -> None:
        while self.clock.now_ms() < at_ms:
            wait_s = (at_ms - self.clock.now_ms()) / 1000
            done, _ = await asyncio.wait(tasks, timeout=wait_s, return_when=asyncio.FIRST_EXCEPTION)
            for task in done:
                task.result()
            tasks = [task for task in tasks if not task.done()]

    async def _sleep_until(self, at_ms: int) -> None:
        wait_ms = at_ms - self.clock.now_ms()
        if wait_ms > 0:
            await asyncio.sleep(wait_ms / 1000)

    # What comes to us

    async def _push(self, world: World) -> None:
        connection = self._settings.connections["acme"]
        source = PROVIDERS["dialpad"].webhook(connection)
        # Every repeat comes as far as the log: that it is one nobody remembers.
        pipeline = Pipeline(self.log, 0)
        for push in world.arrivals():
            await self._sleep_until(push.at_ms)
            if self._is_deaf:
                continue
            push.at_ms = self.clock.now_ms()
            push.has_come()
            delivery = Delivery(
                connection="acme",
                via=WEBSOCKET,
                headers=(),
                body=push.body,
                received_ms=push.at_ms,
            )
            assert pipeline.accept(delivery, source).outcome == "stored"

    async def _cut(self, world: World, job: LoggedJob) -> None:
        """The socket breaks, and is there again, as the listener tells of it."""
        for from_ms, to_ms in world.interruptions():
            await self._sleep_until(from_ms)
            self._is_deaf = True
            gap = gap_event(
                "acme", WEBSOCKET, from_ms, to_ms=None, reason="closed", found=None, now_ms=from_ms
            )
            self.log.publish(records_of(gap))
            await self._sleep_until(to_ms)
            self._is_deaf = False
            self._interruptions[from_ms] = to_ms
            await job.save(WEBSOCKET, {"connected_ms": to_ms, "alive_ms": to_ms})

    # Who reconciles

    async def _reconcile(self) -> None:
        """One life after the other, until it is killed, loses its state, or is away for long."""
        week, job = self._week, LoggedJob("acme", self.log)
        path = state_path(self._folder, "acme")
        for at_ms, how in self._ends_of_lives():
            self._lives += 1
            publisher = Fragile(self.log)
            reconciler = Reconciler(
                self._settings,
                publisher,
                job,
                self.log.open_reader,
                now_ms=self.clock.now_ms,
                habits=Habits(fetch_s=_READ_S, commit_s=_READ_S),
            )
            running = asyncio.ensure_future(reconciler.run())
            try:
                wait_s = max(0.0, (at_ms - self.clock.now_ms()) / 1000)
                await asyncio.wait([running], timeout=wait_s)
                if how == "killed" and self._chance.random() < 0.7:
                    publisher.lasts = self._chance.randrange(20)
                    await asyncio.wait([running], timeout=HOUR_MS / 1000)
            finally:
                running.cancel()
                await asyncio.wait([running])
            if not running.cancelled() and not isinstance(running.exception(), Killed):
                running.result()
            if how == "lost":
                for suffix in ("", "-wal", "-shm"):
                    path.with_name(path.name + suffix).unlink(missing_ok=True)
            if how == "still":
                await asyncio.sleep(week.standstill_s)
            else:
                await asyncio.sleep(self._chance.choice((1.0, 60.0, 600.0)))

    def _ends_of_lives(self) -> list[tuple[int, str]]:
        """When, and how. It comes to itself before it loses its memory as well."""
        week, chance = self._week, self._chance
        span_ms = round(week.days * DAY_MS)
        still_ms = chance.randrange(span_ms // 2)
        awake_ms = still_ms + round(week.standstill_s * 1000) + HOUR_MS
        ends = [
            (at_ms, how)
            for how, count in (("killed", week.kills), ("lost", week.losses))
            for at_ms in (chance.randrange(span_ms) for _ in range(count))
            if not still_ms <= at_ms < awake_ms
        ]
        ends += [(still_ms, "still"), (100 * span_ms, "")]
        return [(BEGIN_MS + HOUR_MS + at_ms, how) for at_ms, how in sorted(ends)]

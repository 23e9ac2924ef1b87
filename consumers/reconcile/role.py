"""The role ``reconcile``: reads the log, and writes what the core makes of it.

One process reconciles a connection at a time, the others stand by. What is written comes out of a
file in which it stands together with how far the log was read, so a crash repeats and never skips.
"""

import asyncio
import itertools
import secrets
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractAsyncContextManager, closing
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import orjson
import structlog
from msgspec import Struct

from consumers.reconcile.core import Core
from consumers.reconcile.entries import PairSetup
from consumers.reconcile.facts import LATE_MS, TOPICS, Fact, read_fact
from consumers.reconcile.matching import PairRules
from consumers.reconcile.order import SKEW_MS, Order
from consumers.reconcile.state import State
from consumers.reconcile.verdicts import Rules
from ingest.errors import ConfigError, PublishError
from ingest.eventlog.kinds import open_reader
from ingest.eventlog.log import Behind, Publisher, Reader, Record, StoredRecord
from ingest.metrics import (
    COMPLETENESS,
    RECONCILE_BEHIND_SECONDS,
    RECONCILE_TOO_LATE,
    VERDICTS,
)
from ingest.runner import Stopping
from ingest.service import Service, open_standby_service
from ingest.settings import Reconcile, Settings
from ingest.work import Job, save_patiently, share_until_stopping
from schemas.times import now_ms

log = structlog.get_logger()

P = ParamSpec("P")
T = TypeVar("T")

ROLE = "reconciler"

#: Whose work is shared; and the name of our checkpoint.
_WORK = SOURCE = "reconcile"

#: What was worked out is remembered at once when so many records wait to be written; of these, so
#: many are handed over at a time.
_COMMIT_RECORDS = 5_000
_WRITE_RECORDS = 500

#: Facts that are taken in, and records that are read, before others in the process have their turn.
_AT_A_TIME, _READ_AT_A_TIME = 50, 200

_PUBLISH_S = 30.0
_PAUSES_S = (0.2, 0.5, 1.0, 2.0, 5.0)

#: What has become too old is dropped so often, by the log's clock.
_TIDY_MS = 3_600_000

#: A log that is read from the middle tells of calls of which the beginning is missing.
_WHOLE_MS = 3_600_000


class Habits(Struct, frozen=True, kw_only=True):
    """How a reconciler spends its time, in seconds."""

    #: It waits so long for something new on the log.
    fetch_s: float = 0.5
    #: What was worked out is remembered, and then written, so often.
    commit_s: float = 1.0


#: Opens a reader of topics that begins behind what was dealt with.
Open = Callable[[Sequence[str], Behind], AbstractAsyncContextManager[Reader]]


def rules_of(settings: Reconcile) -> Rules:
    return Rules(
        settle_ms=round(settings.settle_s * 1000),
        hold_max_ms=round(settings.hold_max_s * 1000),
        start_tolerance_ms=round(settings.start_tolerance_s * 1000),
        duration_tolerance_s=settings.duration_tolerance_s,
        duration_tolerance_ratio=settings.duration_tolerance_ratio,
    )


def reconciled_connections(settings: Settings) -> list[str]:
    """Those whose calls are on the stream."""
    return [
        name
        for name, connection in settings.connections.items()
        if connection.has_secrets or connection.stream.enabled or connection.polled
    ]


def judged_connections(settings: Settings) -> dict[str, int]:
    """Those that are both pushed and read back → how far a near pass reaches, in milliseconds."""
    return {
        name: round(connection.poll.overlap_s * 1000)
        for name, connection in settings.connections.items()
        if connection.judged
    }


def components(settings: Settings) -> dict[str, list[str]]:
    """Connections that pairs join, directly or not, by their smallest name: where they are at home.

    Each is in one; most are by themselves.
    """
    found = {name: {name} for name in reconciled_connections(settings)}
    for each in settings.reconcile.pairs:
        joined = found.get(each.pushed, {each.pushed}) | found.get(each.recorded, {each.recorded})
        found |= dict.fromkeys(joined, joined)
    return {min(names): sorted(names) for names in found.values()}


def pairs_of(settings: Settings, names: Collection[str]) -> list[PairSetup]:
    """The pairs of these connections."""
    common = settings.reconcile
    return [
        PairSetup(
            pushed=each.pushed,
            recorded=each.recorded,
            numbers=frozenset(each.numbers),
            rules=PairRules(
                gate_ms=round(each.gate_s * 1000),
                ambiguity_margin_ms=round(each.ambiguity_margin_s * 1000),
                start_tolerance_ms=round(common.start_tolerance_s * 1000),
                duration_tolerance_ms=round(common.duration_tolerance_s * 1000),
                duration_tolerance_ratio=common.duration_tolerance_ratio,
            ),
            from_end=each.recorded_start == "end",
            from_connect=each.recorded_duration == "connected",
            overlap_ms=round(settings.connections[each.recorded].poll.overlap_s * 1000),
        )
        for each in common.pairs
        if each.pushed in names
    ]


def state_path(path: Path, home: str) -> Path:
    """What is remembered of a connection's reconciliation."""
    return path / "reconcile" / f"{home}.sqlite"


async def reconcile_alone(settings: Settings, stopping: Stopping) -> None:
    """Be a reconciler and nothing else. Raises ConfigError if there is nothing to reconcile."""
    if not settings.reconciled:
        raise ConfigError(
            "connections: none is both pushed and read back: set secrets and api_key_file of one, "
            "or say with [[reconcile.pairs]] which see the same calls, "
            "or reconcile.enabled = true to keep the ledger all the same"
        )
    async with open_standby_service(settings, ROLE, stopping) as service:
        await reconcile(service)


async def reconcile(service: Service) -> None:
    """Reconcile the connections that are ours until the service is stopping."""

    async def run(job: Job) -> None:
        await Reconciler(service.settings, service.eventlog, job).run()

    homes = list(components(service.settings))
    await share_until_stopping(service, ROLE, _WORK, homes, run)


class Reconciler:
    """Connections that have to do with each other, while they are ours."""

    def __init__(
        self,
        settings: Settings,
        publisher: Publisher,
        job: Job,
        open_log: Open | None = None,
        *,
        now_ms: Callable[[], int] = now_ms,
        habits: Habits = Habits(),  # noqa: B008 - frozen
    ) -> None:
        """``open_log``: the event log of the settings if nothing else is given.

        ``now_ms``: our clock, milliseconds since 1970.
        """
        self._settings = settings
        self._publisher = publisher
        self._job = job
        self._open_log = open_log or (
            lambda topics, start: open_reader(settings, topics, start=start)
        )
        self._now_ms = now_ms
        self._habits = habits
        self._name = job.connection
        self._connections = components(settings)[job.connection]
        self._pairs = pairs_of(settings, self._connections)
        self._prefixes = tuple(f"{name}/".encode() for name in self._connections)
        self._order = Order()

    async def run(self) -> None:
        path = state_path(self._settings.eventlog.path, self._name)
        state = await asyncio.to_thread(State.open, path)
        checkpoint = self._job.checkpoint(SOURCE) or {}
        is_ours = bool(checkpoint) and state.note("mark") == checkpoint.get("cache")
        if not is_ours or state.note("about") != self._about():
            # It belongs to another log, somebody else has gone on meanwhile, or it lacks what is
            # asked for since.
            state.close()
            await asyncio.to_thread(State.remove, path)
            state = await asyncio.to_thread(State.open, path)
        with closing(state):
            since_ms = await self._adopt(state, checkpoint)
            core = self._core(state, since_ms)
            await self._write(state.outbox())
            from_ms = self._from_ms(state)
            # Who is whose is in the directory, however long ago it was listed.
            start = Behind(state.positions(), {"calls": from_ms, "checkpoints": from_ms})
            async with self._open_log(TOPICS, start) as reader:
                await self._follow(reader, core, state)

    async def _adopt(self, state: State, checkpoint: Any) -> int:
        """Make the state ours; since when calls are judged, milliseconds since 1970."""
        mark = state.note("mark")
        first_ms = checkpoint.get("since_ms") or self._now_ms()
        if mark is None:
            mark = secrets.token_hex(8)
            state.set_note("begun_ms", self._now_ms())
        # In the checkpoint first: a state that nobody knows of is not believed.
        await save_patiently(self._job, SOURCE, {"cache": mark, "since_ms": first_ms})
        state.set_note("mark", mark)
        state.set_note("about", self._about())
        since = self._settings.reconcile.since
        return first_ms if since is None else round(since.timestamp() * 1000)

    def _about(self) -> list[Any]:
        """Which facts have come into the state."""
        pairs = [[each.pushed, each.recorded, *sorted(each.numbers)] for each in self._pairs]
        return [self._connections, pairs]

    def _from_ms(self, state: State) -> int:
        """From where the log is read that nobody has read for us yet."""
        return int(state.note("begun_ms")) - self._window_ms

    def _core(self, state: State, since_ms: int) -> Core:
        settings = self._settings
        judged = judged_connections(settings)
        core = Core(
            state,
            rules_of(settings.reconcile),
            connections=self._connections,
            judged={name: judged[name] for name in self._connections if name in judged},
            pairs=self._pairs,
            since_ms=since_ms,
            window_ms=self._window_ms,
        )
        core.floor_ms = self._from_ms(state) + _WHOLE_MS
        clock_ms = state.note("clock_ms")
        if clock_ms is not None:
            core.restore(clock_ms, state.watermarks(), state.timers(), state.every_conversation())
        return core

    async def _follow(self, reader: Reader, core: Core, state: State) -> None:
        loop = asyncio.get_running_loop()
        committed_s = looked_s = loop.time()
        tidied_ms = core.clock_ms
        behind_gauge = RECONCILE_BEHIND_SECONDS.labels(self._name)
        behind_gauge.set_function(lambda: max(0.0, (self._now_ms() - core.clock_ms) / 1000))
        try:
            while True:
                found = await reader.fetch(wait_s=self._habits.fetch_s)
                for nth, stored in enumerate(found, 1):
                    self._order.add(stored, self._fact(stored))
                    if nth % _READ_AT_A_TIME == 0:
                        await asyncio.sleep(0)
                if not found or loop.time() - looked_s > self._habits.commit_s:
                    looked_s = loop.time()
                    now = self._now_ms()
                    behind = await reader.behind()
                    clock_ms = self._order.reached_ms(behind) if behind else now - LATE_MS - SKEW_MS
                    if clock_ms is not None:
                        await self._advance(core, state, clock_ms)
                    reader.hold(self._order.too_far_ahead(behind))
                if loop.time() - committed_s > self._habits.commit_s:
                    committed_s = loop.time()
                    await self._commit(core, state)
                    if core.clock_ms > tidied_ms + _TIDY_MS:
                        tidied_ms = core.clock_ms
                        await self._tidy(core, state)
        finally:
            RECONCILE_BEHIND_SECONDS.remove(self._name)

    def _fact(self, stored: StoredRecord) -> Fact | None:
        if not stored.key.startswith(self._prefixes):
            return None
        try:
            return read_fact(stored)
        except ValueError:
            log.warning("fact_unreadable", topic=stored.topic, position=stored.position)
            return None

    async def _advance(self, core: Core, state: State, clock_ms: int) -> None:
        """Up to the clock, however much that is: in small steps, with commits between them."""
        steps = 0
        for fact in self._order.until(clock_ms):
            core.take(fact)
            steps += 1
            if steps % _AT_A_TIME == 0:
                await self._pause(core, state)
        while core.wake_ms is not None and core.wake_ms <= clock_ms:
            core.advance(core.wake_ms)
            steps += 1
            if steps % _AT_A_TIME == 0:
                await self._pause(core, state)
        core.advance(clock_ms)

    async def _pause(self, core: Core, state: State) -> None:
        if len(core.out) > _COMMIT_RECORDS:
            await self._commit(core, state)
        await asyncio.sleep(0)

    async def _commit(self, core: Core, state: State) -> None:
        out, core.out = core.out, []
        await _whole(state.commit, self._order.positions, core.clock_ms, core.watermarks, out)
        await self._write(out)
        self._tell(out)
        if core.too_late:
            RECONCILE_TOO_LATE.labels(self._name).inc(core.too_late)
            core.too_late = 0

    async def _tidy(self, core: Core, state: State) -> None:
        core.forget(await _whole(state.tidy, core.clock_ms, self._window_ms))

    @property
    def _window_ms(self) -> int:
        """What is not settled by then never will be."""
        settings = self._settings.reconcile
        hold_s = settings.settle_s + settings.hold_max_s + _WHOLE_MS / 1000
        return round(max(settings.window_s, hold_s) * 1000)

    async def _write(self, out: Sequence[Record]) -> None:
        """Return once all of it is durable, in its order for each key."""
        for first in range(0, len(out), _WRITE_RECORDS):
            await self._write_some(out[first : first + _WRITE_RECORDS])

    async def _write_some(self, out: Sequence[Record]) -> None:
        for tries in itertools.count():
            try:
                receipts = [self._publisher.publish([record]) for record in out]
                deadline = asyncio.get_running_loop().time() + _PUBLISH_S
                for receipt in receipts:
                    await receipt.wait(deadline)
            except PublishError as error:
                log.warning("reconcile_waits", connection=self._name, reason=error.reason)
                await asyncio.sleep(_PAUSES_S[min(tries, len(_PAUSES_S) - 1)])
            else:
                return

    def _tell(self, out: Sequence[Record]) -> None:
        for record in out:
            if record.topic != "verdicts" or record.value is None:
                continue
            event = orjson.loads(record.value)
            what = event["type"].removeprefix("dialstream.")
            data = event["data"]
            if what.startswith("verdict."):
                VERDICTS.labels(event["connection"], data["verdict"]).inc()
                continue
            if data["figure"] is not None:
                COMPLETENESS.labels(event["connection"]).set(data["figure"])
            log.info(
                "completeness",
                connection=event["connection"],
                hour=data["hour"],
                n=data["n"],
                pushed=data["pushed"],
                recorded=data["recorded"],
                both=data["both"],
                figure=data["figure"],
            )


async def _whole(do: Callable[P, T], *args: P.args, **more: P.kwargs) -> T:
    """Do it in a thread, and to its end: nobody closes the file under it."""
    doing = asyncio.ensure_future(asyncio.to_thread(do, *args, **more))
    try:
        return await asyncio.shield(doing)
    except asyncio.CancelledError:
        await asyncio.wait([doing])
        raise

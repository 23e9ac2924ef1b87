"""What pollers share: loops that stay alive, each with its own failures, and patient storing."""

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Generic, TypeVar

import apsw
import structlog

from ingest.api import ApiError
from ingest.errors import ConfigError, PublishError
from ingest.eventlog.log import Spooling
from ingest.metrics import POLL_PUBLISHED, POLL_READ, TALLIES
from ingest.pipeline import store
from ingest.privacy import Drops
from ingest.settings import PrivacyClass
from ingest.work import Checkpoint, Job
from schemas.event import Event
from schemas.times import now_ms
from schemas.topics import TOPIC_OF

log = structlog.get_logger()

VIA = "poll"

#: The name of a poller's checkpoint, and the beginning of the names of those of agents.
SOURCE = "calls"

#: A key that is refused is tried again after so long, or when secrets are read again.
STOPPED_S = 900.0

#: Between two looks at whether there is something to do, at most.
LOOK_S = 1.0

#: From one failure to the next try, at first and at most.
BACKOFF_S = (1.0, 300.0)

#: What a loop's reading returns when there will never be anything to do.
NEVER = float("inf")

#: Why a request fails whatever it asks for.
OF_ALL = ("unauthorized", "forbidden", "rate_limited")

#: So many failures in a row make it degraded.
FAILING = 3

_PUBLISH_BACKOFF_S = (0.2, 30.0)
_PUBLISH_S = 30.0

R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Clock:
    """The clock on the wall, in milliseconds since 1970, and the one that only goes forward."""

    now_ms: Callable[[], int] = now_ms
    steady_s: Callable[[], float] = time.monotonic


CLOCK = Clock()


class Loops(Generic[R]):
    """Several loops that read one connection. One that fails leaves the others alone."""

    def __init__(
        self,
        connection: str,
        open_records: Callable[[], AbstractAsyncContextManager[R]],
        main: str,
        *,
        stopped_s: float = STOPPED_S,
        backoff_s: tuple[float, float] = BACKOFF_S,
        look_s: float = LOOK_S,
    ) -> None:
        """``main``: the loop whose troubles are called by the connection alone."""
        self._connection = connection
        self._open = open_records
        self._main = main
        self._stopped_s = stopped_s
        self._look_s = look_s
        self.backoff_s = backoff_s
        #: What is wrong, by the loop or by what else has a name.
        self._troubles: dict[str, str] = {}
        self._nudges: dict[str, asyncio.Event] = {}

    def troubles(self) -> Sequence[str]:
        return list(self._troubles.values())

    def reload(self) -> None:
        """Secrets may have changed: whoever has stopped tries again."""
        for nudge in self._nudges.values():
            nudge.set()

    async def run(self, loops: Mapping[str, Callable[[R], Awaitable[float]]]) -> None:
        """Keep each of them alive until cancelled, or until all have returned `NEVER`.

        Each reads once, and returns 0 if there may be more to read, else for how many seconds
        there is not. Raises what no new try can mend: PublishError, apsw.Error.
        """
        async with asyncio.TaskGroup() as tasks:
            for what, read_once in loops.items():
                tasks.create_task(self._keep(what, read_once))

    async def _keep(self, what: str, read_once: Callable[[R], Awaitable[float]]) -> None:
        """Read again and again; wait as ``read_once`` says, or as its error asks for."""
        nudge = self._nudges[what] = asyncio.Event()
        failures = 0
        while True:
            try:
                async with self._open() as records:
                    while True:
                        wait_s = await read_once(records)
                        if wait_s <= 0:
                            failures = 0
                            self.mended(what)
                        elif wait_s == NEVER:
                            return
                        # Even 0: others have their turn.
                        await asyncio.sleep(min(wait_s, self._look_s))
            except (ApiError, ConfigError) as error:
                failures += 1
                wait_s = self.fail(what, error, failures)
            except (asyncio.CancelledError, Exception) as error:
                task = asyncio.current_task()
                # The connection may be somebody else's; a memory that is damaged is opened anew.
                if isinstance(error, (PublishError, apsw.Error)) or (task and task.cancelling()):
                    raise
                failures += 1
                wait_s = self.fault(what, error, failures)
            nudge.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await nudge.wait()

    def fail(
        self,
        what: str,
        error: ApiError | ConfigError,
        failures: int,
        *,
        least_s: float = 0.0,
        agent: str | None = None,
    ) -> float:
        """Tell what went wrong; for how many seconds to leave it: ``least_s`` at least.

        ``agent``: the end of the id of whose records they are.
        """
        if isinstance(error, ConfigError) or error.reason in ("unauthorized", "forbidden"):
            self._troubles[what] = f"poll_stopped:{self._place(what)}"
            log.error(
                "poll_stopped",
                connection=self._connection,
                what=what,
                reason="no_key" if isinstance(error, ConfigError) else error.reason,
                detail=str(error),
                retry_in_s=self._stopped_s,
                said=_said(error),
            )
            return self._stopped_s
        wait_s = max(pause_s(failures, *self.backoff_s), least_s, error.retry_after_s or 0.0)
        self.note_failing(what, failures)
        say = log.warning
        if error.reason in ("cursor_loop", "unexpected"):  # waiting alone will hardly mend it
            say = log.error
        say(
            "poll_failed",
            connection=self._connection,
            what=what,
            reason=error.reason,
            detail=str(error),
            failures=failures,
            retry_in_s=round(wait_s, 1),
            said=_said(error),
            agent=agent,
        )
        return wait_s

    def fault(self, what: str, error: BaseException, failures: int) -> float:
        """The same for a fault of ours."""
        log.error("unexpected_error", connection=self._connection, exc_info=error)
        self.note_failing(what, failures)
        return pause_s(failures, *self.backoff_s)

    def note_failing(self, what: str, failures: int) -> None:
        if failures >= FAILING:
            self._troubles.setdefault(what, f"poll_failing:{self._place(what)}")

    def mended(self, what: str) -> None:
        if self._troubles.pop(what, None):
            log.info("poll_resumed", connection=self._connection, what=what)

    def _place(self, what: str) -> str:
        return self._connection if what == self._main else f"{self._connection}:{what}"


def _said(error: ApiError | ConfigError) -> str | None:
    """What the provider said itself, if anything."""
    return error.said or None if isinstance(error, ApiError) else None


class Storing:
    """Puts what was read of one connection on the event log, for as long as that takes."""

    def __init__(
        self, connection: str, publisher: Spooling, drop: frozenset[PrivacyClass] = frozenset()
    ) -> None:
        self._connection = connection
        self._drops: Drops = {connection: drop}
        self._publisher = publisher
        self._tally = TALLIES.of(connection, VIA)

    async def page(self, what: str, page: Sequence[Event], fresh: Sequence[Event]) -> None:
        """Return once ``fresh``, which is new in a page, is durable."""
        POLL_READ.labels(self._connection, what).inc(len(page))
        if not fresh:
            return
        await self.events(fresh)
        POLL_PUBLISHED.labels(self._connection, what).inc(len(fresh))
        self._tally.count(fresh)

    async def events(self, events: Sequence[Event]) -> None:
        """Return once they are durable."""
        await self.patiently(partial(self._put, events))

    async def _put(self, events: Sequence[Event]) -> None:
        await store(
            self._publisher, events, asyncio.get_running_loop().time() + _PUBLISH_S, self._drops
        )

    async def save(self, job: Job, source: str, checkpoint: Checkpoint) -> bool:
        """Save how far it was read; False while that is only in a spool, then it is not saved.

        Whoever reads a mark takes what was read up to it for what stands on the log.
        """
        if self._publisher.spools(TOPIC_OF["call"]):
            return False
        await self.patiently(partial(job.save, source, checkpoint))
        return True

    async def patiently(self, put: Callable[[], Awaitable[None]]) -> None:
        """Do it until it is durable: what was read is never skipped."""
        for tries in itertools.count(1):
            try:
                return await put()
            except PublishError as error:
                if error.reason == "not_owner":
                    raise
                wait_s = pause_s(tries, *_PUBLISH_BACKOFF_S)
                log.warning(
                    "poll_waits",
                    connection=self._connection,
                    reason=error.reason,
                    retry_in_s=round(wait_s, 1),
                )
            await asyncio.sleep(wait_s)
        raise AssertionError


def whole(checkpoint: Mapping[str, Any], name: str) -> int | None:
    """A number of a checkpoint, if it is one."""
    value = checkpoint.get(name)
    return value if type(value) is int else None


@asynccontextmanager
async def closing_pages(
    pages: AsyncIterator[Sequence[Event]],
) -> AsyncIterator[AsyncIterator[Sequence[Event]]]:
    """End what reads the pages with the block, and not some time later."""
    try:
        yield pages
    finally:
        close = getattr(pages, "aclose", None)
        if close is not None:
            await close()


def pause_s(failures: int, first_s: float, most_s: float) -> float:
    """How long to wait after so many failures in a row: longer each time, never quite alike."""
    return min(most_s, first_s * 2.0 ** min(failures - 1, 30)) * random.uniform(0.75, 1.0)  # noqa: S311 - jitter

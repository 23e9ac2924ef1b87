"""A loop in whose time only waiting takes time, so that a year passes in minutes."""

import asyncio
import contextlib
import selectors
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import structlog

from consumers.poll.loops import Clock
from ingest.eventlog.log import Settled

T = TypeVar("T")


class _Idle(selectors.SelectSelector):
    """Where others wait for time to pass, it has passed."""

    passed_s = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        if timeout is None:
            raise RuntimeError("nobody will ever do anything again")
        if timeout <= 0:
            return []
        self.passed_s += timeout
        return super().select(0)


class FastLoop(asyncio.SelectorEventLoop):
    """A loop in whose time nothing takes time but waiting. What is for a thread is done at once."""

    def __init__(self) -> None:
        self._idle = _Idle()
        super().__init__(self._idle)
        # After half a year a nanosecond is less than such a number can tell.
        self._clock_resolution = 1e-6

    def time(self) -> float:
        return 1000.0 + self._idle.passed_s

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., T], *args: Any
    ) -> asyncio.Future[T]:
        future: asyncio.Future[T] = self.create_future()
        try:
            future.set_result(func(*args))
        except Exception as error:  # noqa: BLE001 - for whoever waits for it
            future.set_exception(error)
        return future


def run_fast(main: Coroutine[Any, Any, T]) -> T:
    """Run it to its end on such a loop, without a word in the log."""
    with _quiet(), contextlib.closing(FastLoop()) as loop:
        asyncio.set_event_loop(loop)
        try:
            return loop.run_until_complete(main)
        finally:
            asyncio.set_event_loop(None)


def clock_from(begin_ms: int) -> Clock:
    """The running loop's clock; now it is ``begin_ms``, milliseconds since 1970."""
    loop = asyncio.get_running_loop()
    first_s = loop.time()
    return Clock(lambda: begin_ms + round((loop.time() - first_s) * 1000), loop.time)


class Durable:
    """A receipt of what is durable at once."""

    durable = True
    where = "memory"

    def then(self, deadline: float, settled: Settled) -> None:
        settled(None)

    async def wait(self, deadline: float) -> str:
        return self.where


@contextmanager
def _quiet() -> Iterator[None]:
    known = structlog.get_config()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))
    try:
        yield
    finally:
        structlog.configure(**known)

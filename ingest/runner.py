"""One process: an event loop, its signals, its exit code."""

import asyncio
import gc
import os
import signal
import sys
import threading
from collections.abc import Awaitable, Callable

import structlog
import uvloop

from ingest.errors import ConfigError

log = structlog.get_logger()

#: Once all has ended, in seconds, for threads that nobody can stop, as those that look up names.
_THREADS_S = 2.0

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopping:
    """Tells everybody in the process to come to an end."""

    def __init__(self) -> None:
        self._asked = asyncio.Event()
        #: Ctrl-C means now; SIGTERM leaves a moment for load balancers to see that we go.
        self.at_once = False

    @property
    def asked(self) -> bool:
        return self._asked.is_set()

    def ask(self, *, at_once: bool = False) -> None:
        self.at_once = at_once
        self._asked.set()

    async def wait(self) -> None:
        await self._asked.wait()


def run(main: Callable[[Stopping], Awaitable[None]]) -> int:
    """Run ``main`` until it returns; the exit code. A second signal ends the process at once.

    Raises ConfigError if that is what ended it.
    """
    # What is loaded stays; and what a delivery leaves behind has no cycles to look for so often.
    gc.freeze()
    gc.set_threshold(20_000, 20, 100)
    leaving = threading.Timer(_THREADS_S, _leave)
    leaving.daemon = True
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        try:
            runner.run(_with_signals(main))
            leaving.start()
        except Exception as error:
            faults = _config_error(error)
            if faults is not None:
                raise faults from None
            log.error("unexpected_error", exc_info=error)
            return 1
    leaving.cancel()
    return 0


def _leave() -> None:
    try:
        sys.stdout.flush()
    finally:  # nobody may read it, or it may be closed
        os._exit(0)


def _config_error(error: BaseException) -> ConfigError | None:
    """The ConfigError that has ended a task group, if one has."""
    if isinstance(error, BaseExceptionGroup):
        return next(filter(None, map(_config_error, error.exceptions)), None)
    return error if isinstance(error, ConfigError) else None


async def _with_signals(main: Callable[[Stopping], Awaitable[None]]) -> None:
    loop = asyncio.get_running_loop()
    loop.set_exception_handler(_report)
    stopping = Stopping()

    def on_signal(number: signal.Signals) -> None:
        if stopping.asked:
            os._exit(128 + number)
        log.info("stopping", signal=number.name)
        stopping.ask(at_once=number == signal.SIGINT)

    for number in _SIGNALS:
        loop.add_signal_handler(number, on_signal, number)
    try:
        await main(stopping)
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


def _report(_: asyncio.AbstractEventLoop, context: dict[str, object]) -> None:
    # The default handler would log the context's message, which quotes exceptions.
    log.error("unexpected_error", exc_info=context.get("exception"))

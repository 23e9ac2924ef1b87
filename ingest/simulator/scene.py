"""Where a simulated provider stands: a company, and the time that goes by in it."""

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from random import Random
from typing import Any, TypeVar

from ingest.simulator.api_server import DAY_MS
from ingest.simulator.clock import Clock
from ingest.simulator.courier import Courier
from ingest.simulator.facts import Happening
from ingest.simulator.story import Tempo
from ingest.simulator.world import World

#: Happenings, before others have their turn; deliveries, before more happens.
TOLD_AT_ONCE, MOST_UNDER_WAY = 20, 1000

T = TypeVar("T")


def now_ms() -> int:
    """What our clock says."""
    return time.time_ns() // 1_000_000


def set_scene(
    world: World | None,
    clock: Clock | None,
    *,
    tempo: Tempo,
    seed: int,
    start_ms: int,
    days: float,
    pace: float | None,
) -> tuple[World, Clock]:
    """What was given of world and clock, the rest new; its story is told until the clock's time.

    ``start_ms``: the time of a new clock; ``days``: how much of past a new world has.
    """
    if clock is not None:
        start_ms = clock.now_ms
    if world is None:
        world = World(seed, start_ms - int(days * DAY_MS), tempo)
    world.advance(start_ms)
    return world, clock or Clock(start_ms, pace)


@asynccontextmanager
async def playing(
    happenings: Iterator[Happening],
    clock: Clock,
    happen: Callable[[Happening], None],
    courier: Courier[Any],
    told: asyncio.Event | None = None,
) -> AsyncIterator[None]:
    """Let everything happen at its time, and give up at the end what is under way then.

    ``told`` is set once a story that has an end was told.
    """

    async def tell() -> None:
        for nth, happening in enumerate(happenings):
            await clock.sleep_until(happening.at_ms)
            happen(happening)
            if nth % TOLD_AT_ONCE == 0:
                # A fast clock would let nobody else work, and pile up what is under way.
                await asyncio.sleep(0)
                await courier.at_most(MOST_UNDER_WAY)
        if told is not None:
            told.set()

    failure: BaseException | None = None
    # Nobody would notice otherwise that nothing happens any more.
    async with asyncio.TaskGroup() as group:
        courier.group = group
        telling = group.create_task(tell())
        try:
            yield
        except asyncio.CancelledError:
            raise
        except BaseException as error:  # noqa: BLE001 - the user's own, and no group's
            failure = error
        finally:
            telling.cancel()
            courier.give_up()
    if failure is not None:
        raise failure


def scatter_equal(items: Sequence[T], key: Callable[[T], Any], random: Random) -> list[T]:
    """What is sorted by a key, and in no order where the keys are equal."""
    ordered: list[T] = []
    first = 0
    while first < len(items):
        last, at = first + 1, key(items[first])
        while last < len(items) and key(items[last]) == at:
            last += 1
        together = list(items[first:last])
        if len(together) > 1:
            random.shuffle(together)
        ordered += together
        first = last
    return ordered

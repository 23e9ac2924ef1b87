"""Where a simulated provider stands: a company, and the time that goes by in it."""

import time

from ingest.simulator.api_server import DAY_MS
from ingest.simulator.clock import Clock
from ingest.simulator.story import Tempo
from ingest.simulator.world import World


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
    if clock is None:
        clock = Clock(start_ms, pace)
    else:
        start_ms = clock.now_ms
    if world is None:
        world = World(seed, start_ms - int(days * DAY_MS), tempo)
    world.advance(start_ms)
    return world, clock

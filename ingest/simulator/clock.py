"""The time of a simulated world: as fast as one likes, or moved by hand."""

import asyncio
import time
from heapq import heappop, heappush
from itertools import count

#: How often those who woke are given the chance to go to sleep again before time goes on.
_TURNS = 5


class Clock:
    """World time: ``start_ms`` and what has passed since, times ``pace``.

    Without a pace it stands still, and goes on when it is told to.
    """

    def __init__(self, start_ms: int, pace: float | None = 1.0) -> None:
        if pace is not None and not pace > 0:
            raise ValueError("pace must be above 0")
        self._start_ms = start_ms
        self._pace = pace
        self._began_s = time.monotonic()
        self._by_hand_ms = float(start_ms)
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []
        self._order = count()

    @property
    def now_ms(self) -> int:
        if self._pace is None:
            return int(self._by_hand_ms)
        return int(self._start_ms + (time.monotonic() - self._began_s) * 1000 * self._pace)

    async def sleep(self, s: float) -> None:
        """Wait so many seconds of the world's."""
        if self._pace is not None:
            await asyncio.sleep(s / self._pace)
        else:
            await self._sleep_by_hand(self._by_hand_ms + s * 1000)

    async def sleep_until(self, at_ms: int) -> None:
        """Wait for a moment; not at all if it has passed."""
        if self._pace is None:
            if at_ms > self._by_hand_ms:
                await self._sleep_by_hand(at_ms)
            return
        wait_ms = (at_ms - self._start_ms) / self._pace - (time.monotonic() - self._began_s) * 1000
        if wait_ms > 0:
            await asyncio.sleep(wait_ms / 1000)

    async def step(self, s: float) -> None:
        """Move a clock without a pace; who waits for a moment in between wakes at that moment."""
        if self._pace is not None:
            raise RuntimeError("this clock goes by itself")
        until_ms = self._by_hand_ms + s * 1000
        while True:
            await self._let_them_work()
            if not self._sleepers or self._sleepers[0][0] > until_ms:
                break
            at_ms, _, sleeper = heappop(self._sleepers)
            self._by_hand_ms = max(self._by_hand_ms, at_ms)
            if not sleeper.done():
                sleeper.set_result(None)
        self._by_hand_ms = until_ms

    async def _let_them_work(self) -> None:
        for _ in range(_TURNS):
            await asyncio.sleep(0)

    async def _sleep_by_hand(self, at_ms: float) -> None:
        sleeper = asyncio.get_running_loop().create_future()
        heappush(self._sleepers, (at_ms, next(self._order), sleeper))
        await sleeper

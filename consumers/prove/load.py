"""Many legs at once, their events in order: the load of the experiment."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable
from contextlib import AsyncExitStack, asynccontextmanager

import httpx

from consumers.prove.deliveries import Delivery, Maker
from consumers.prove.oracle import acknowledged
from schemas.times import now_ms

#: Dialpad's.
TIMEOUT_S = 5.0

#: Sooner than a provider would try again, who waits for minutes: the experiment is short.
_PAUSES_S = (0.1, 0.2, 0.5, 1.0)

#: Events of a leg.
_EVENTS = 12

#: So far behind its rate it stops trying to catch up.
_BEHIND_S = 1.0


class Load:
    """Senders; each plays one leg after the other. Use `open_load`.

    The next event of a leg is posted once the last one was acknowledged, on another connection:
    the one that has been idle for longest. An event is posted until it is acknowledged, unless it
    is refused for good (4xx), which ends its leg: no provider tries that again.
    """

    def __init__(self, url: str, maker: Maker, rate: float) -> None:
        self._url = url
        self._maker = maker
        self._rate = rate
        self._idle: asyncio.Queue[httpx.AsyncClient] = asyncio.Queue()
        self._next_at = time.monotonic()
        self._legs = 0
        self.offered: list[Delivery] = []
        self.acknowledged = 0
        #: Seconds from the first byte of each post that was answered to its answer.
        self.answered_s: list[float] = []

    def add(self, client: httpx.AsyncClient) -> None:
        self._idle.put_nowait(client)

    async def play(self, senders: int, ended: Callable[[], bool], wait_s: float) -> None:
        """Until ``ended``; then what is under way is posted on for ``wait_s`` at most."""
        tasks = [asyncio.create_task(self._play_legs(ended)) for _ in range(senders)]
        try:
            # One that failed is told at once: the others would go on for long.
            while not ended() and not any(task.done() for task in tasks):
                await asyncio.wait(tasks, timeout=0.1, return_when=asyncio.FIRST_EXCEPTION)
            await asyncio.wait(tasks, timeout=wait_s, return_when=asyncio.FIRST_EXCEPTION)
            for task in tasks:
                if task.done():
                    task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def post_first(self) -> int | None:
        """One delivery by itself, a leg of its own, before the others; the status."""
        self._legs += 1
        delivery = Delivery(self._maker, self._legs, 0, now_ms())
        self.offered.append(delivery)
        status = await self._post(delivery)
        self.acknowledged += acknowledged(delivery.tries)
        return status

    async def _post(self, delivery: Delivery) -> int | None:
        """One try; the status, or None without an answer."""
        signed = self._maker.sign(delivery)
        client = await self._idle.get()
        begun = time.monotonic()
        status = None
        try:
            answer = await client.post(self._url, content=signed.body, headers=dict(signed.headers))
            status = answer.status_code
            self.answered_s.append(time.monotonic() - begun)
        except httpx.HTTPError:
            pass
        finally:
            # Also where it is given up: it may have been stored, and was not acknowledged.
            delivery.tries.append(status)
            self._idle.put_nowait(client)
        return status

    async def _play_legs(self, ended: Callable[[], bool]) -> None:
        while not ended():
            self._legs += 1
            await self._play_leg(self._legs, ended)

    async def _play_leg(self, leg: int, ended: Callable[[], bool]) -> None:
        at_ms = now_ms()
        for seq in range(_EVENTS):
            await self._turn()
            if ended():
                return
            at_ms = max(now_ms(), at_ms + 1)
            delivery = Delivery(self._maker, leg, seq, at_ms)
            self.offered.append(delivery)
            if not await self._deliver(delivery):
                return

    async def _deliver(self, delivery: Delivery) -> bool:
        """Whether it was acknowledged; False if it was refused for good."""
        while True:
            status = await self._post(delivery)
            if acknowledged(delivery.tries):
                self.acknowledged += 1
                return True
            if status is not None and 400 <= status < 500:  # noqa: PLR2004
                return False
            await asyncio.sleep(_PAUSES_S[min(len(delivery.tries), len(_PAUSES_S)) - 1])

    async def _turn(self) -> None:
        now = time.monotonic()
        self._next_at = max(self._next_at + 1 / self._rate, now - _BEHIND_S)
        await asyncio.sleep(self._next_at - now)


@asynccontextmanager
async def open_load(url: str, maker: Maker, *, senders: int, rate: float) -> AsyncIterator[Load]:
    """``rate``: deliveries a second, of all senders together."""
    load = Load(url, maker, rate)
    trusted = ssl.create_default_context()
    async with AsyncExitStack() as stack:
        for _ in range(senders + 1):
            client = httpx.AsyncClient(
                timeout=TIMEOUT_S,
                trust_env=False,
                verify=trusted,
                limits=httpx.Limits(max_connections=1, max_keepalive_connections=1),
            )
            load.add(await stack.enter_async_context(client))
        yield load

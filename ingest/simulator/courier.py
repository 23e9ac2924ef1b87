"""What goes wrong between a provider that delivers and us, and what is under way meanwhile.

As long as no fault strikes, the first attempts of one subject go out one after the other; a retry
comes whenever it comes.
"""

import asyncio
from collections.abc import Coroutine, Hashable, Iterator
from contextlib import contextmanager
from typing import Any, Generic, TypeAlias, TypeVar
from weakref import WeakValueDictionary

from ingest.simulator.clock import Clock
from ingest.simulator.facts import CallHappening, CallStep, Happening
from ingest.simulator.faults import Faults

#: What a repeat or a reordered delivery waits for at most.
A_MOMENT_S = 10.0

#: To whom, about what.
Key: TypeAlias = Hashable
D = TypeVar("D")


class Courier(Generic[D]):
    """Everything that is under way. A provider says how one attempt is made, and the retries."""

    def __init__(self, clock: Clock, faults: Faults) -> None:
        self.clock = clock
        self.faults = faults
        #: Calls of which nothing is sent any more → when they ended, in milliseconds since 1970.
        self.lost_calls: dict[int, int] = {}
        #: Where everything is under way that takes time.
        self.group: asyncio.TaskGroup
        self._tasks: set[asyncio.Task[None]] = set()
        #: Whose turn it is; gone when nobody is under way.
        self._turns: WeakValueDictionary[Key, asyncio.Lock] = WeakValueDictionary()
        #: What waits for the next one of its subject.
        self._held: dict[Key, list[asyncio.Event]] = {}
        self._busy = 0
        self._waiting_for_few: list[tuple[int, asyncio.Event]] = []

    # What a provider says

    async def attempt(self, delivery: D) -> int | None:
        """Try once; what was answered, None if nothing."""
        raise NotImplementedError

    async def retry(self, delivery: D, said: int | None) -> None:
        """Try again, until it is accepted, refused for good, or has had its retries."""
        raise NotImplementedError

    async def forge(self, delivery: D) -> None:
        """Play somebody who knows the address and not the secret."""
        raise NotImplementedError

    def copy(self, delivery: D) -> D:
        """The same once more, as if it had not been tried yet."""
        raise NotImplementedError

    def go(self, key: Key, delivery: D) -> None:
        """Send it now, when its subject's turn has come."""
        turn = self._turns.setdefault(key, asyncio.Lock())
        self.start(self._in_turn(turn, key, delivery))

    async def deliver(self, delivery: D) -> None:
        """Send it, out of turn."""
        await self.retry(delivery, await self.attempt(delivery))

    # What is the same for all

    def loses(self, happening: Happening) -> bool:
        """Whether a fault keeps it from everybody. Asked once for each that would be sent."""
        if not isinstance(happening, CallHappening):
            return False
        if happening.step is CallStep.ENDED and self.faults.strikes("endings_dropped"):
            self.lost_calls[happening.leg.id] = happening.at_ms
        return happening.leg.id in self.lost_calls

    def bring(self, key: Key, delivery: D) -> None:
        """Send it, late, twice or out of order where a fault strikes."""
        faults = self.faults
        if faults.strikes("delayed"):
            self.start(self._after(faults.between(0, faults.delay_s), delivery))
        elif faults.strikes("reordered"):
            gone = asyncio.Event()
            self._held.setdefault(key, []).append(gone)
            self.start(self._after_the_next(key, gone, delivery))
        else:
            self.go(key, delivery)
        if faults.strikes("repeated"):
            self.start(self._after(faults.between(0, A_MOMENT_S), self.copy(delivery)))
        if faults.strikes("forged"):
            self.start(self.forge(self.copy(delivery)))

    def release(self, key: Key) -> None:
        """Let go what has waited for one of its subject."""
        for gone in self._held.pop(key, ()):
            gone.set()

    async def wait(self, s: float) -> None:
        """Wait for a delivery's time: it is not under way meanwhile."""
        with self._waiting():
            await self.clock.sleep(s)

    async def at_most(self, many: int) -> None:
        """Wait until so many are under way; what waits for its time is not."""
        if self._busy > many:
            few = asyncio.Event()
            self._waiting_for_few.append((many, few))
            await few.wait()

    def give_up(self) -> None:
        """Give up everything that is under way."""
        for task in self._tasks:
            task.cancel()

    def start(self, doing: Coroutine[Any, Any, None]) -> None:
        task = self.group.create_task(doing)
        self._count(+1)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    async def _in_turn(self, turn: asyncio.Lock, key: Key, delivery: D) -> None:
        async with turn:
            said = await self.attempt(delivery)
            self.release(key)
        await self.retry(delivery, said)

    async def _after(self, wait_s: float, delivery: D) -> None:
        await self.wait(wait_s)
        await self.deliver(delivery)

    async def _after_the_next(self, key: Key, gone: asyncio.Event, delivery: D) -> None:
        """Wait until the next of its subject is there, or has not come for long."""
        with self._waiting():
            waiting = [
                asyncio.ensure_future(it) for it in (gone.wait(), self.clock.sleep(A_MOMENT_S))
            ]
            try:
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for it in waiting:
                    it.cancel()
                held = self._held.get(key, [])
                if gone in held:
                    held.remove(gone)
                if not held:
                    self._held.pop(key, None)
        await self.deliver(delivery)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._count(-1)

    def _count(self, change: int) -> None:
        self._busy += change
        for waiting in [w for w in self._waiting_for_few if w[0] >= self._busy]:
            self._waiting_for_few.remove(waiting)
            waiting[1].set()

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Not be under way meanwhile."""
        self._count(-1)
        try:
            yield
        finally:
            self._count(+1)

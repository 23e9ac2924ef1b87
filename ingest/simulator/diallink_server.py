"""DialLink as a server: its API and its notifications, over a simulated company."""

from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

from ingest.simulator.api_server import ApiServer, Asked, Served
from ingest.simulator.clock import Clock
from ingest.simulator.diallink import call_record, key_id
from ingest.simulator.diallink_delivery import (
    Deliveries,
    Delivery,
    Subscription,
    check_secret,
    new_secret,
)
from ingest.simulator.diallink_lists import Calls
from ingest.simulator.diallink_rest import KEY_LIFE_MS, Key, Rest, new_key
from ingest.simulator.facts import Happening
from ingest.simulator.faults import Faults
from ingest.simulator.scene import now_ms, playing, set_scene
from ingest.simulator.story import COMPRESSED, Tempo
from ingest.simulator.world import World


class SimulatedDialLink(Served):
    """What tests and people see of a running one; made by `simulated_diallink`."""

    def __init__(
        self,
        world: World,
        clock: Clock,
        faults: Faults,
        *,
        api_key: str,
        key_expires_ms: int | None,
        most_a_page: int,
        clock_off_s: float,
        requests_per_s: float | None,
        remember: int | None,
    ) -> None:
        #: The company, and the truth about it as far as it was told.
        self.world = world
        self.clock = clock
        self.faults = faults
        #: An admin's; that of `key`.
        self.api_key = api_key
        self._off_ms = round(clock_off_s * 1000)
        if key_expires_ms is None:
            key_expires_ms = clock.now_ms + self._off_ms + KEY_LIFE_MS
        self.key = Key(key_id(1), "dialstream", world.company.admin, key_expires_ms)
        #: All keys, by their text.
        self.keys = {api_key: self.key}
        #: Requests, by which a test proves what was asked for, and how often.
        self.requests: deque[Asked] = deque(maxlen=remember)
        #: Notifications, with what came back; by first attempts.
        self.delivered: deque[Delivery] = deque(maxlen=remember)
        self.calls = Calls(world, faults)
        self._rest = Rest(
            world,
            clock,
            faults,
            self.calls,
            self.keys,
            self.requests,
            off_ms=self._off_ms,
            most_a_page=most_a_page,
            requests_per_s=requests_per_s,
        )
        self._server = ApiServer(self._rest, faults)
        self._deliveries = Deliveries(
            clock, faults, self.delivered, self._off_ms, self.calls.late_change_of
        )
        #: How many answers the API gave, by status, and how many attempts to deliver there were,
        #: by what came back; also of what was forgotten.
        self.answers: Counter[str] = self._rest.sums
        self.deliveries: Counter[str] = self._deliveries.sums

    @asynccontextmanager
    async def running(self, happenings: Iterator[Happening], port: int) -> AsyncIterator[None]:
        """Serve, while all this happens."""
        await self._server.open(port)
        try:
            async with playing(happenings, self.clock, self.happen, self._deliveries):
                yield
        finally:
            self._deliveries.close()
            await self._server.close()

    def happen(self, happening: Happening) -> None:
        """Notify of something now, whatever the story says."""
        self._deliveries.send(happening)

    async def settled(self) -> None:
        """Wait until no delivery is under way but those that wait for their time."""
        await self._deliveries.at_most(0)

    async def step(self, s: float) -> None:
        """Move a clock without a pace, and wait for all deliveries that come of it."""
        while s > 0:
            await self.clock.step(min(s, 1))
            await self.settled()
            s -= 1

    def subscribe(self, url: str, *secrets: str) -> Subscription:
        """Notify an address of everything; each secret (``whsec_…``) signs, without one a new one.

        Raises ValueError for a secret that is none.
        """
        subscription = Subscription(url, list(secrets) or [new_secret()])
        for secret in subscription.secrets:
            check_secret(secret)
        self._deliveries.subscriptions.append(subscription)
        return subscription

    def records(self, at_ms: int | None = None) -> list[dict[str, Any]]:
        """Every call record that is there at a time (None: now), as an admin is told it."""
        at_ms = self.clock.now_ms if at_ms is None else at_ms
        self.calls.hear(at_ms)
        return [
            call_record(leg, at_ms, self.calls.late_change_of(leg), self._off_ms)
            for _, leg in self.calls.begun(at_ms)
        ]


@asynccontextmanager
async def simulated_diallink(
    *,
    world: World | None = None,
    tempo: Tempo = COMPRESSED,
    seed: int = 1,
    start_ms: int | None = None,
    days: float = 0,
    lasts_s: float | None = None,
    pace: float | None = 1.0,
    clock: Clock | None = None,
    faults: Faults | None = None,
    api_key: str | None = None,
    key_expires_ms: int | None = None,
    port: int = 0,
    most_a_page: int = 100,
    clock_off_s: float = -1.5,
    requests_per_s: float | None = None,
    remember: int | None = None,
) -> AsyncIterator[SimulatedDialLink]:
    """Serve a simulated DialLink on this machine.

    ``world``, ``clock``: a company and a time that others have, too; else they are made of
    ``tempo``, ``seed``, ``days`` of past, ``start_ms`` (None: now) and ``pace``: how many seconds
    of the world go by in one of ours; None: none by themselves, `step` moves the clock.
    ``lasts_s``: after so many of its seconds nobody is notified of anything any more.
    ``key_expires_ms``: None: in a year. ``most_a_page``: the largest ``pageSize``. ``clock_off_s``:
    what its clock is ahead of the world's. ``requests_per_s``: what goes beyond is answered with
    429 or 403; None: nothing is. ``remember``: how many requests and deliveries are kept at most.
    Raises OSError if the port is taken.
    """
    faults = faults or Faults()
    faults.seed(seed)
    if clock is not None:
        start_ms = clock.now_ms
    elif start_ms is None:
        start_ms = now_ms()
    world, clock = set_scene(
        world, clock, tempo=tempo, seed=seed, start_ms=start_ms, days=days, pace=pace
    )
    ear = world.ear()
    happenings = ear if lasts_s is None else ear.until(start_ms + int(lasts_s * 1000))
    diallink = SimulatedDialLink(
        world,
        clock,
        faults,
        api_key=api_key or new_key(),
        key_expires_ms=key_expires_ms,
        most_a_page=most_a_page,
        clock_off_s=clock_off_s,
        requests_per_s=requests_per_s,
        remember=remember,
    )
    async with diallink.running(happenings, port):
        yield diallink

"""Dialpad as a server: its API, its deliveries, its websockets, over a simulated company.

What it does is what is known of the real one; the pages are named where it is done.
"""

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from typing import Any, TypeVar

from ingest.simulator.api_server import HOST, ApiServer, Asked, Served
from ingest.simulator.clock import Clock
from ingest.simulator.dialpad import MAX_LAG_MS
from ingest.simulator.dialpad_delivery import Deliveries, Delivery
from ingest.simulator.dialpad_resources import SCOPES, Resources, Webhook, Websocket
from ingest.simulator.dialpad_rest import Key, Rates, Rest
from ingest.simulator.dialpad_sockets import Sockets
from ingest.simulator.facts import CallHappening, CallStep, Happening
from ingest.simulator.faults import Faults
from ingest.simulator.scene import now_ms, playing, set_scene
from ingest.simulator.story import COMPRESSED, Tempo
from ingest.simulator.world import World

#: Kind and fields of the subscriptions that bring everything.
EVERYTHING: Sequence[tuple[str, dict[str, Any]]] = (
    ("call", {}),
    ("sms", {"direction": "all", "include_internal": True, "status": True}),
    ("contact", {"contact_type": "shared"}),
    ("contact", {"contact_type": "local"}),
    ("agent_status", {"agent_type": "callcenter"}),
    ("changelog", {}),
)

T = TypeVar("T", Webhook, Websocket)


class SimulatedDialpad(Served):
    """What tests and people see of a running one; made by `simulated_dialpad`."""

    def __init__(
        self,
        world: World,
        clock: Clock,
        faults: Faults,
        rates: Rates,
        *,
        api_key: str,
        page_size: int,
        remember: int | None,
    ) -> None:
        #: The company, and the truth about it as far as it was told.
        self.world = world
        self.clock = clock
        self.faults = faults
        self.api_key = api_key
        #: Keys that are good, by their text.
        self.keys = {self.api_key: Key()}
        #: Requests to the API, by which a test proves that a rate was kept.
        self.requests: deque[Asked] = deque(maxlen=remember)
        #: Calls that are listed later than they ended → when.
        self.late_calls: dict[int, int] = {}
        self.resources = Resources("", secrets.token_urlsafe(32), lambda: clock.now_ms)
        #: What went to webhooks and sockets, with what came back; by first attempts.
        self.delivered: deque[Delivery] = deque(maxlen=remember)
        self._rest = Rest(
            clock,
            self.resources,
            world,
            self.late_calls,
            faults,
            self.keys,
            rates,
            self.requests,
            page_size,
        )
        self._server = ApiServer(self._rest, faults)
        #: How many are connected is its length.
        self.sockets = Sockets(HOST, clock, self.resources, faults)
        self._deliveries = Deliveries(
            clock, self.resources, self.sockets, faults, self.delivered, world.seed
        )
        #: Calls of which nobody is told any more that they have ended → when they did.
        self.lost_calls = self._deliveries.lost_calls
        #: How many answers the API gave, by status, and how many attempts to deliver there were,
        #: by what came back; also of what was forgotten.
        self.answers = self._rest.sums
        self.deliveries = self._deliveries.sums
        #: Set once a story that has an end was told.
        self.told = asyncio.Event()

    @asynccontextmanager
    async def running(self, happenings: Iterator[Happening], port: int) -> AsyncIterator[None]:
        """Serve, while all this happens."""
        await self._server.open(port)
        await self.sockets.open(0)
        self.resources.sockets_url = f"ws://{HOST}:{self.sockets.port}"
        try:
            async with playing(happenings, self.clock, self.happen, self._deliveries, self.told):
                yield
        finally:
            self._deliveries.close()
            await self.sockets.close()
            await self.go_down()

    def happen(self, happening: Happening) -> None:
        """Let something happen now, whatever the story says."""
        if (
            isinstance(happening, CallHappening)
            and happening.step is CallStep.ENDED
            and self.faults.strikes("records_late")
        ):
            late_ms = self.faults.between(0, self.faults.records_late_s * 1000)
            self.late_calls[happening.leg.id] = happening.at_ms + int(late_ms)
        self._deliveries.send(happening)

    async def settled(self) -> None:
        """Wait until no delivery is under way but those that wait for their time."""
        await self._deliveries.at_most(0)

    async def step(self, s: float) -> None:
        """Move a clock without a pace, and wait for all deliveries that come of it.

        A second at a time: what is sent meanwhile is sent in the order of the world's time.
        """
        while s > 0:
            await self.clock.step(min(s, 1))
            await self.settled()
            s -= 1

    def subscribe(self, hook_url: str, secret: str | None = None) -> Webhook:
        """Make a webhook, and subscriptions to everything, as a key with all rights would."""
        body = {"hook_url": hook_url, "secret": secret}
        return self._subscribe(self.resources.create_webhook(body))

    def subscribe_socket(self, secret: str | None = None) -> Websocket:
        """Make a websocket, and subscriptions to everything."""
        return self._subscribe(self.resources.create_websocket({"secret": secret}))

    def _subscribe(self, endpoint: T) -> T:
        for kind, fields in EVERYTHING:
            body = {**fields, "endpoint_id": endpoint.id}
            self.resources.create_subscription(kind, body, SCOPES)
        return endpoint

    def websocket_url(self, websocket: Websocket) -> str:
        """A new address of it."""
        return str(self.resources.show_websocket(websocket)["websocket_url"])

    def send_frame(self, frame: str | bytes) -> int:
        """Send anything to all who are connected, and say to how many."""
        return self.sockets.send(None, None, frame)


@asynccontextmanager
async def simulated_dialpad(
    *,
    world: World | None = None,
    tempo: Tempo = COMPRESSED,
    seed: int = 1,
    start_ms: int | None = None,
    days: float = 0,
    lasts_s: float | None = None,
    pace: float | None = 1.0,
    faults: Faults | None = None,
    rates: Rates = Rates(),  # noqa: B008 - frozen
    page_size: int = 50,
    api_key: str | None = None,
    port: int = 0,
    remember: int | None = None,
    clock: Clock | None = None,
) -> AsyncIterator[SimulatedDialpad]:
    """Serve a simulated Dialpad on this machine.

    ``world``: the company; else one is made of ``tempo``, ``seed`` and ``days`` of past.
    ``start_ms``: its time at the start; None: now. ``lasts_s``: after so many of its seconds
    nothing happens any more, and `told` is set. ``pace``: how many of its seconds go by in one of
    ours; None: none by themselves, `step` moves its clock. ``remember``: how many requests and
    deliveries are kept at most. ``clock``: instead of ``start_ms`` and ``pace``, one that others
    have too. Raises OSError if the port is taken.
    """
    faults = faults or Faults()
    faults.seed(seed)
    if clock is not None:
        start_ms = clock.now_ms
    elif start_ms is None:
        # No payload's clock is ahead of ours when it is sent.
        start_ms = now_ms() - MAX_LAG_MS
    world, clock = set_scene(
        world, clock, tempo=tempo, seed=seed, start_ms=start_ms, days=days, pace=pace
    )
    # Others may have the story told, who tell of the same company.
    ear = world.ear()
    happenings = ear if lasts_s is None else ear.until(start_ms + int(lasts_s * 1000))
    dialpad = SimulatedDialpad(
        world,
        clock,
        faults,
        rates,
        api_key=api_key or secrets.token_urlsafe(24),
        page_size=page_size,
        remember=remember,
    )
    async with dialpad.running(happenings, port):
        yield dialpad

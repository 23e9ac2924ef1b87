"""A week of a simulated company, through webhook, websocket and poller at once, on a bad week.

Whose clock is whose: the provider's goes from a week ago to about now, as fast as this machine
delivers what happens (`STEP_S` of it, then everything that came of it, then the next); ours is the
wall's, and goes on for the half minute that this takes. Therefore

- windows of the poller are by our clock, and what happens lies up to a week before it: it reads
  `BACK_S` at its first pass and at each later one (``first_read_s``, ``overlap_s``,
  ``sweep_overlap_s``), and need not wait for anything (``lag_s``). A gap is by our clock as well,
  and reading it back reads the same;
- an hour of the provider's would be a fifth of a second, and nobody could open a socket as often:
  here a connection, and an address, lasts `SOCKET_LIFE_S`. The listener asks for a new one after
  `REFRESH_S` of ours, mostly before the old one is cut, and then not. The hour itself has a test of
  its own (`test_processes`);
- all pushes but the last ones are more than a day old, hence ``stale``, which changes nothing else.

Before the week there was a receiver that gave its last sign of life ten minutes ago, so it begins
with a gap of the webhook's as well. In the week the process is killed and started again.
"""

import asyncio
import json
import random
import time
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from ingest.checkpoints import save_checkpoint
from ingest.eventlog.journal import open_journal
from ingest.simulator import dialpad_resources, dialpad_sockets
from ingest.simulator.dialpad import Oddities, rest_call
from ingest.simulator.dialpad_delivery import Delivery
from ingest.simulator.dialpad_server import SimulatedDialpad, simulated_dialpad
from ingest.simulator.faults import ODDITIES, Faults
from ingest.simulator.story import real_tempo
from tests.faults.week.truth import Judge, ToldWorld, Verdict, most_in, record_id
from tests.kit import SCRIPT, SECRET, Product, clean_environment

DAY_S = 86_400

#: What the provider's clock moves at a time.
STEP_S = 600.0

#: After the last thing that is told: texts are tried again for hours, recaps come later.
AFTER_S = 6 * 3600

BACK_S = 9.0 * DAY_S

SOCKET_LIFE_S = DAY_S
REFRESH_S = 2.5

REQUESTS_PER_S = 15.0

#: So many deliveries in a step that some will be lost if nobody is there for two.
_BUSY = 20

#: A line of the stream may be as long as that.
_LONGEST_LINE = 8 * 2**20


def bad_week(calls: int) -> Faults:
    """Everything that the simulated Dialpad can do, but a revoked key.

    What ends a pass of the poller does so now and then, however many pages a pass has.
    """
    rarely = min(0.003, 3 / calls)
    return Faults(
        dropped=0.03,
        repeated=0.03,
        delayed=0.03,
        delay_s=3600.0,
        reordered=0.05,
        forged=0.02,
        late_bodies=0.05,
        text_ids=0.1,
        missing_keys=0.1,
        empty_objects=0.1,
        missed_and_hangup=0.1,
        refused=0.01,
        limited=0.01,
        broken=0.01,
        slow=0.01,
        slow_s=0.5,
        cut=0.01,
        html=rarely,
        page_changes=0.1,
        page_repeats=rarely,
        page_skips=0.05,
        cursor_loops=rarely,
        records_late=0.2,
        records_late_s=3600.0,
        sockets_refused=0.1,
        sockets_closed=0.1,
        sockets_cut=0.0004,
        frames_binary=0.002,
        frames_html=0.002,
        frames_odd=0.002,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Week:
    """How much of it."""

    #: Conversations; a call of them has one to five legs.
    calls: int
    seed: int
    kills: int = 1
    days: float = 7
    #: It takes so long at least: sockets that were lost come back after a second or two.
    lasts_s: float = 25.0
    #: To read everything back once all has happened.
    patience_s: float = 60.0


def settings_of(dialpad: SimulatedDialpad, **poll: Any) -> dict[str, Any]:
    """Of a connection that is pushed to, listened to, and polled."""
    return {
        "logging": {"format": "json"},
        # What is judged here is what came in, and not what we make of it.
        "reconcile": {"enabled": False},
        "connections": {
            "acme": {
                "provider": "dialpad",
                "secrets": [SECRET],
                "api_key": dialpad.api_key,
                "base_url": dialpad.base_url,
                "region": "US",
                "stream": {"enabled": True, "refresh_s": REFRESH_S},
                "poll": {
                    "every_s": 1.0,
                    "lag_s": 0.5,
                    "overlap_s": BACK_S,
                    "sweep_overlap_s": BACK_S,
                    "first_read_s": BACK_S,
                    "requests_per_s": REQUESTS_PER_S,
                    **poll,
                },
            }
        },
    }


async def play(week: Week, folder: Path, tell: Callable[[str], object] = lambda _: None) -> Verdict:
    """Live through a week; ``tell`` hears how far it is."""
    begun_s = time.monotonic()
    faults = bad_week(week.calls)
    oddities = Oddities(seed=week.seed, **{name: getattr(faults, name) for name in ODDITIES})
    length_s = week.days * DAY_S
    start_ms = time.time_ns() // 1_000_000 - int((length_s + AFTER_S) * 1000)
    world = ToldWorld(week.seed, start_ms, real_tempo(week.calls / week.days), oddities)
    async with (
        long_lived_sockets(),
        simulated_dialpad(
            world=world,
            seed=week.seed,
            start_ms=start_ms,
            lasts_s=length_s,
            pace=None,
            faults=faults,
        ) as dialpad,
    ):
        # A pass over all of a long week takes long, and is not to leave no time for gaps.
        every_s = max(1.0, week.calls / 150 - 5)
        product = Product(folder, settings_of(dialpad, every_s=every_s), command=("up",))
        playing = _Playing(week, world, dialpad, product)
        try:
            await playing.prepare()
            async with recorded_on(product) as records:
                await playing.live(tell)
                tell("reading back")
                await playing.until_all_is_read(records, week.patience_s)
            code = await asyncio.to_thread(product.stop)
            assert code == 0, product.stderr
        finally:
            await asyncio.to_thread(product.close)
        tell("judging")
        await playing.read_stream()
        found = playing.judge.verdict(dialpad.clock.now_ms)
        found.kills = week.kills
        found.strikes = faults.counts
        found.requests_per_s = most_in([asked.at_s for asked in dialpad.requests], 1.0)
        # Some that a fault gave were cut off, and are in no sum.
        found.over_rate = max(0, dialpad.answers["429"] - faults.counts["limited"])
        found.seconds = time.monotonic() - begun_s
        return found


@asynccontextmanager
async def long_lived_sockets() -> AsyncIterator[None]:
    with (
        mock.patch.object(dialpad_sockets, "CONNECTION_LIFE_S", SOCKET_LIFE_S),
        mock.patch.object(dialpad_resources, "TOKEN_LIFE_S", SOCKET_LIFE_S),
    ):
        yield


class _Playing:
    def __init__(
        self, week: Week, world: ToldWorld, dialpad: SimulatedDialpad, product: Product
    ) -> None:
        self.judge = Judge(world)
        self._week, self._world, self._dialpad, self._product = week, world, dialpad, product
        self._random = random.Random(week.seed)
        #: In the last step.
        self._delivered = 0
        #: Deliveries that may be tried again, and when they went out by our clock.
        self._under_way: deque[tuple[int, int, Delivery]] = deque()

    async def prepare(self) -> None:
        """Subscribe, leave the sign of life of a receiver that has been gone for long, start."""
        self._dialpad.subscribe(self._product.url, SECRET)
        self._dialpad.subscribe_socket(SECRET)
        async with open_journal(self._product.data) as journal:
            sign = {"alive_ms": now_ms() - 600_000}
            await save_checkpoint(journal, "acme", "webhook", sign, 0)
        await self._start()
        await asyncio.to_thread(self._product.wait_for_log, "stream_connected", 1, 60)

    async def _start(self) -> None:
        await asyncio.to_thread(self._product.start)

    async def live(self, tell: Callable[[str], object]) -> None:
        """Let the week pass, and what is still to come of it."""
        dialpad, week = self._dialpad, self._week
        steps = int((week.days * DAY_S + AFTER_S) / STEP_S) + 1
        begun_s = time.monotonic()
        kills = [int(steps * (nth + 0.5) / week.kills) for nth in range(week.kills)]
        for step in range(steps):
            if step % 72 == 0:
                tell(f"day {step * STEP_S / DAY_S:.1f}")
            # Somebody is on the phone when it dies.
            if kills and step >= kills[0] and self._delivered > _BUSY:
                del kills[0]
                dying = asyncio.create_task(self._die(self._random.uniform(0, 0.05)))
                await self._step()
                await self._step()
                await dying
                await self._start()
            else:
                await self._step()
            await asyncio.sleep(begun_s + week.lasts_s * step / steps - time.monotonic())
        assert not kills
        await dialpad.told.wait()
        self._fold(to_ms=None)

    async def _die(self, after_s: float) -> None:
        await asyncio.sleep(after_s)
        await asyncio.to_thread(self._product.kill)

    async def _step(self) -> None:
        dialpad = self._dialpad
        begun_ms = now_ms()
        await dialpad.clock.step(STEP_S)
        await dialpad.settled()
        while any(not client.frames.empty() for client in dialpad.sockets._clients):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        ended_ms = now_ms()
        self._delivered = len(dialpad.delivered)
        while dialpad.delivered:
            self._under_way.append((begun_ms, ended_ms, dialpad.delivered.popleft()))
        # A text is tried again for up to four hours.
        self._fold(dialpad.clock.now_ms - 5 * 3_600_000)

    def _fold(self, to_ms: int | None) -> None:
        """Hand those to the judge that will not be tried again."""
        while self._under_way:
            from_ms, until_ms, delivery = self._under_way[0]
            assert delivery.at_ms is not None
            if to_ms is not None and delivery.at_ms >= to_ms:
                return
            self._under_way.popleft()
            self.judge.deliver(delivery, from_ms, until_ms)

    async def until_all_is_read(self, records: dict[str, str], patience_s: float) -> None:
        """Return once the last record of every leg is there and no gap is open, or never will."""
        at_ms = self._dialpad.clock.now_ms
        wanted = {str(leg.id): record_id(rest_call(leg)) for leg in self._world.concluded(at_ms)}
        until_s = time.monotonic() + patience_s
        while time.monotonic() < until_s:
            await asyncio.sleep(0.2)
            metrics = await asyncio.to_thread(self._product.metrics)
            connected = metrics.sum("dialstream_stream_connected", connection="acme")
            gaps = metrics.sum("dialstream_poll_gaps_open", connection="acme")
            if connected and not gaps and wanted.items() <= records.items():
                return

    async def read_stream(self) -> None:
        async with tail(self._product) as lines:
            async for line in lines:
                self.judge.read(json.loads(line))


@asynccontextmanager
async def recorded_on(product: Product) -> AsyncIterator[dict[str, str]]:
    """Call → the id of its last record, as they come."""
    found: dict[str, str] = {}

    async def follow(lines: AsyncIterator[bytes]) -> None:
        async for line in lines:
            event = json.loads(line)
            found[event["data"]["call_id"]] = event["id"]

    async with tail(product, "call", "--type", "call.recorded", "--follow") as lines:
        following = asyncio.create_task(follow(lines))
        try:
            yield found
        finally:
            following.cancel()


@asynccontextmanager
async def tail(product: Product, *arguments: str) -> AsyncIterator[AsyncIterator[bytes]]:
    """The lines of `dialstream tail`."""
    process = await asyncio.create_subprocess_exec(
        *(str(SCRIPT), "tail", *arguments, "--from-beginning", "--json"),
        cwd=product.folder,
        env=clean_environment(),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        limit=_LONGEST_LINE,
    )
    assert process.stdout is not None
    try:
        yield aiter(process.stdout)
    finally:
        # What has ended by itself must not be looked for: asyncio does.
        if not process.stdout.at_eof():
            process.kill()
        await process.wait()


def now_ms() -> int:
    return time.time_ns() // 1_000_000

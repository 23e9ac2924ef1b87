"""Listeners and pollers as processes against a simulated Dialpad: the hour's end, and a bad day."""

import asyncio
import json
import signal
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from ingest.simulator.dialpad import NO_ODDITIES, rest_call
from ingest.simulator.dialpad_server import SimulatedDialpad, simulated_dialpad
from ingest.simulator.story import COMPRESSED
from tests.faults.week.play import now_ms, recorded_on, settings_of, tail
from tests.faults.week.truth import Judge, ToldWorld, clock, most_in, record_id
from tests.kit import SECRET, Product

#: There are machines that do something else for a while.
SOON_S = 45.0

HOUR_S = 3600
#: Dialpad cuts a connection after an hour, and the settings ask for a new one by then.
REFRESH_AFTER_S = 3000

REQUESTS_PER_S = 8.0


async def until(holds: Callable[[], Awaitable[object] | object], what: str) -> None:
    give_up_s = time.monotonic() + SOON_S
    while True:
        found = holds()
        if isinstance(found, Awaitable):
            found = await found
        if found:
            return
        assert time.monotonic() < give_up_s, f"not in time: {what}"
        await asyncio.sleep(0.02)


async def logged(product: Product, event: str, count: int = 1) -> list[dict[str, Any]]:
    """Its lines of that event, once there are so many."""
    return await asyncio.to_thread(product.wait_for_log, event, count, SOON_S)


class Day:
    """A company whose time goes on as a test says, and what its Dialpad has sent."""

    def __init__(self, world: ToldWorld, dialpad: SimulatedDialpad) -> None:
        self.world, self.dialpad = world, dialpad
        self.judge = Judge(world)

    async def go_on(self, s: float) -> None:
        begun_ms = now_ms()
        await self.dialpad.clock.step(s)
        await self.dialpad.settled()
        ended_ms = now_ms()
        while self.dialpad.delivered:
            self.judge.deliver(self.dialpad.delivered.popleft(), begun_ms, ended_ms)

    async def keep_time(self) -> None:
        """Go as our clock does."""
        dialpad = self.dialpad
        while True:
            await self.go_on(max(0, now_ms() - dialpad.clock.now_ms) / 1000)
            await asyncio.sleep(0.02)

    @property
    def ended(self) -> int:
        """How many calls have."""
        return sum(1 for _ in self.world.concluded(self.dialpad.clock.now_ms))

    async def newest_is_heard(self) -> None:
        """Return once whoever is connected has had the time to know it."""
        for _ in range(3):
            for client in list(self.dialpad.sockets._clients):
                await asyncio.wait_for(await client.connection.ping(), SOON_S)


def listening_to(dialpad: SimulatedDialpad, path: Path, **stream: Any) -> dict[str, Any]:
    settings = settings_of(dialpad)
    acme = settings["connections"]["acme"]
    acme["stream"] = {"enabled": True, **stream}
    acme["poll"] = {"enabled": False, "requests_per_s": 20.0}
    return {**settings, "eventlog": {"path": str(path)}}


def polling(dialpad: SimulatedDialpad, path: Path) -> dict[str, Any]:
    minute = dict.fromkeys(("overlap_s", "first_read_s", "sweep_overlap_s"), 60.0)
    # The simulated clock may be late where the machine is busy.
    late = {"lag_s": 3.0, "sweep_every_s": 5.0, "requests_per_s": REQUESTS_PER_S}
    settings = settings_of(dialpad, **late, **minute)
    del settings["connections"]["acme"]["stream"]
    logging = {"format": "json", "level": "debug"}
    return {**settings, "eventlog": {"path": str(path)}, "logging": logging}


async def test_a_day_of_hours_each_with_a_socket_of_its_own_and_nothing_is_missing(
    tmp_path: Path,
) -> None:
    """The provider's clock goes on once there is the next socket, and past the old one's hour."""
    hours = 26
    start_ms = now_ms() - hours * HOUR_S * 1000
    tempo = replace(COMPRESSED, calls_a_day=1000)
    world = ToldWorld(3, start_ms, tempo, NO_ODDITIES)
    # The first thing happens when somebody is there to hear it.
    quiet_s = 1
    dialpads = simulated_dialpad(
        world=world,
        start_ms=start_ms - quiet_s * 1000,
        lasts_s=quiet_s + hours * REFRESH_AFTER_S,
        pace=None,
    )
    async with dialpads as dialpad:
        day = Day(world, dialpad)
        dialpad.subscribe_socket(SECRET)
        settings = listening_to(dialpad, tmp_path / "data", refresh_s=0.6)
        product = Product(tmp_path / "listen", settings, command=("listen",))
        try:
            await asyncio.to_thread(product.start)
            await logged(product, "stream_connected")
            for _ in range(hours):
                opened = dialpad.sockets.opened
                await until(lambda: dialpad.sockets.opened > opened, "the next socket")  # noqa: B023
                await day.newest_is_heard()
                for _ in range(10):
                    await day.go_on(REFRESH_AFTER_S / 10)
            await day.go_on(quiet_s)
            await asyncio.wait_for(dialpad.told.wait(), SOON_S)
            stored = "dialstream_events_total"
            await until(
                lambda: asyncio.to_thread(
                    lambda: product.metrics().sum(stored, via="websocket") >= len(world.facts)
                ),
                "all that was sent",
            )
            lost = [line["code"] for line in product.log("stream_lost")]
            assert await asyncio.to_thread(product.stop) == 0
        finally:
            await asyncio.to_thread(product.close)
        async with tail(product) as lines:
            async for line in lines:
                day.judge.read(json.loads(line))
        found = day.judge.verdict(start_ms)
    assert found.problems == []
    assert not found.gaps_opened
    assert found.facts > 2000
    assert found.pushed["websocket"] == found.on_stream == found.facts
    assert dialpad.sockets.opened > hours
    # The hour's end is no other end; mostly it came before we had left.
    assert set(lost) == {1001}


async def test_two_of_each_killed_cut_and_refused_under_traffic(tmp_path: Path) -> None:
    """The world's time is ours, so that a gap says how many calls ended in it, and that is so."""
    tempo = replace(COMPRESSED, calls_a_day=250_000, members=60, outsiders=200)
    start_ms = now_ms() - 1000
    world = ToldWorld(5, start_ms, tempo, NO_ODDITIES)
    data = tmp_path / "data"
    async with simulated_dialpad(
        world=world, start_ms=start_ms, lasts_s=HOUR_S, pace=None
    ) as dialpad:
        day = Day(world, dialpad)
        dialpad.subscribe_socket(SECRET)
        listeners, pollers = pairs_for(dialpad, tmp_path)
        everybody = (*listeners, *pollers)
        passing = asyncio.create_task(day.keep_time())
        try:
            await asyncio.gather(*map(start_both, (listeners, pollers)))
            await logged(listeners[0], "stream_connected")
            await logged(pollers[0], "poll_pass", 3)
            assert pollers[1].log("poll_pass") == []

            # Each once, then both at once.
            for pair, said in ((listeners, "stream_connected"), (pollers, "poll_pass")):
                await die_and_come_back(pair, said)
                await die_and_come_back(pair[::-1], said)
            await asyncio.gather(
                die_and_come_back(listeners, "stream_connected"),
                die_and_come_back(pollers, "poll_pass"),
            )
            await refuse_key_for_a_while(day, pollers[1])
            dialpad.sockets.cut()
            await logged(listeners[1], "stream_connected", 3)

            # From now on nothing happens any more.
            passing.cancel()
            await asyncio.wait([passing])
            await day.go_on(0)
            await until_all_is_read(day, pollers[1])
            for product in everybody:
                assert await asyncio.to_thread(product.stop) == 0
        finally:
            passing.cancel()
            for product in everybody:
                await asyncio.to_thread(product.close)

        closed: dict[tuple[str, str], int] = {}
        async with tail(pollers[1]) as lines:
            async for line in lines:
                event = json.loads(line)
                day.judge.read(event)
                if event["type"] == "dialstream.gap.closed":
                    data = event["data"]
                    closed[data["from"], data["to"]] = data["found"]
        found = day.judge.verdict(dialpad.clock.now_ms)
    found.kills = 6
    assert found.problems == []
    assert found.legs > 100
    # Four times nobody listened, and each time so many calls ended as the gap says.
    assert found.gaps_opened == {"websocket": 4}
    last = clock(dialpad.clock.now_ms) or ""
    ends = [text for leg in world.legs.values() if (text := clock(leg.ended_ms))]
    assert closed == {
        gap: sum(gap[0] <= text <= gap[1] for text in ends if text <= last) for gap in closed
    }
    assert sum(closed.values()) > 0
    # No process that takes over begins with a rush.
    asked = [each.at_s for each in dialpad.requests if each.path == "/api/v2/call"]
    assert most_in(asked, 5.0) <= 5 * REQUESTS_PER_S + REQUESTS_PER_S
    assert dialpad.answers["429"] == 0


Pair = tuple[Product, Product]


def pairs_for(dialpad: SimulatedDialpad, folder: Path) -> tuple[Pair, Pair]:
    """Two listeners and two pollers, on one journal."""

    def pair(command: str, settings: dict[str, Any]) -> Pair:
        one, other = (
            Product(folder / f"{command}-{n}", settings, command=(command,)) for n in range(2)
        )
        return one, other

    data = folder / "data"
    return pair("listen", listening_to(dialpad, data)), pair("poll", polling(dialpad, data))


async def start_both(pair: Pair) -> None:
    one, other = pair
    await asyncio.to_thread(one.start)
    await logged(one, "connection_taken")
    await asyncio.to_thread(other.start)
    await logged(other, "standing_by")


async def die_and_come_back(pair: Pair, said: str) -> None:
    """Kill the first, who works; the other takes over and says so; the first stands by."""
    one, other = pair
    told, waits = len(other.log(said)), len(one.log("standing_by"))
    begun_s = time.monotonic()
    await asyncio.to_thread(one.kill)
    await logged(other, said, told + 1)
    assert time.monotonic() - begun_s < 60
    await asyncio.to_thread(one.start)
    await logged(one, "standing_by", waits + 1)


async def refuse_key_for_a_while(day: Day, poller: Product) -> None:
    """Until some calls have ended that it could not read."""
    dialpad = day.dialpad
    dialpad.faults.key_revoked = True
    (stopped,) = await logged(poller, "poll_stopped")
    assert (stopped["reason"], stopped["connection"]) == ("unauthorized", "acme")
    assert "api_key" in stopped["detail"]
    assert dialpad.api_key not in poller.stderr
    assert poller.readyz() == 200
    assert b"poll_stopped:acme" in poller.admin("/readyz").body
    passed, ended = len(poller.log("poll_pass")), day.ended
    await until(lambda: day.ended > ended + 20, "calls that nobody reads")
    assert len(poller.log("poll_pass")) == passed
    dialpad.faults.key_revoked = False
    poller.signal(signal.SIGHUP)
    await logged(poller, "poll_resumed")
    assert b"poll_stopped" not in poller.admin("/readyz").body


async def until_all_is_read(day: Day, poller: Product) -> None:
    """Return once every leg has its last record and no gap is open."""
    concluded = day.world.concluded(day.dialpad.clock.now_ms)
    wanted = {str(leg.id): record_id(rest_call(leg)) for leg in concluded}
    async with recorded_on(poller) as records:
        await until(lambda: wanted.items() <= records.items(), "the last records")
    gaps = "dialstream_poll_gaps_open"
    await until(
        lambda: asyncio.to_thread(lambda: poller.metrics().sum(gaps) == 0), "the end of all gaps"
    )

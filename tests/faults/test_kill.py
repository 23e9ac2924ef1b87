"""Ended in every way, under load: what was acknowledged is on the log, whole, once, in order."""

import asyncio
import json
import os
import random
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from signal import SIGINT, SIGTERM, Signals
from typing import Any

from tests.conftest import MakeProduct
from tests.kit import OUTCOMES, Load, Product, Sent, call, new_leg, request, sign

#: How often it is killed; the more the better, two seconds each.
KILLS = int(os.environ.get("DIALSTREAM_TEST_KILLS", "5"))


def assert_kept(sent: Sequence[Sent], events: Sequence[dict[str, Any]]) -> None:
    """Every acknowledged delivery is there, intact; once if nobody sent it twice; in order."""
    stored: defaultdict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
    places: dict[tuple[str, str], int] = {}
    for place, event in enumerate(events):
        key = event["subject"], event["data"]["custom_data"]
        stored[key].append(event)
        places.setdefault(key, place)
    by_leg: defaultdict[int, list[int]] = defaultdict(list)
    for each in sent:
        key = f"call/{each.leg}", f"leg {each.leg}, event {each.seq}"
        if not each.acknowledged:
            continue
        found = stored[key]
        assert found, f"acknowledged and lost: {key}, {each.tries}"
        for event in found:
            assert event["data"]["raw"] == json.loads(each.payload), "changed"
        assert len({event["id"] for event in found}) == 1
        if each.tries == [204]:
            assert len(found) == 1, f"acknowledged at the first try, {len(found)} times there"
        assert len(found) <= len(each.tries)
        by_leg[each.leg].append(places[key])
    # The load posts an event of a leg once the one before is acknowledged.
    for leg, order in by_leg.items():
        assert order == sorted(order), f"leg {leg} is out of order"
    posted = {(f"call/{each.leg}", f"leg {each.leg}, event {each.seq}") for each in sent}
    assert stored.keys() <= posted, "there are events that nobody posted"


async def test_nothing_acknowledged_is_lost_however_often_it_is_killed(
    make_product: MakeProduct,
) -> None:
    product = make_product()
    dice = random.Random()
    async with Load(product.port, pause_s=0.01) as load:
        for _ in range(KILLS):
            await asyncio.to_thread(product.start)
            before = len(load.acknowledged)
            until = time.monotonic() + 10
            while len(load.acknowledged) - before < 200:
                assert time.monotonic() < until, "there is no load"
                await asyncio.sleep(0.05)
            await asyncio.sleep(dice.uniform(0, 0.5))
            assert product.alive
            product.kill()
        await asyncio.sleep(0.1)  # what it had answered has been read
        before = load.acknowledgements
        await asyncio.to_thread(product.start)
        await asyncio.sleep(0.2)
        await load.end()
        found = (await asyncio.to_thread(product.settled)).outcomes()
    # What it has counted since its start is what its senders have seen.
    assert found["stored"] + found["repeat"] == load.acknowledgements - before
    assert found["refused"] == found["rejected"] == 0
    assert any(None in each.tries for each in load.sent), "no kill has hit a delivery"
    assert load.statuses <= {204, 503, None}
    assert product.stop() == 0
    assert_kept(load.sent, product.events("call"))
    assert not product.log("unexpected_error")
    assert not product.log("segment_damaged")


async def test_what_is_killed_at_its_start_starts_again(make_product: MakeProduct) -> None:
    product = make_product().start()
    leg = new_leg()
    for seq in range(20):
        assert product.post(sign(call(leg, seq))).status == 204
    product.kill()
    for number in range(3):
        product.spawn()
        await asyncio.sleep(0.15 + number * 0.15)
        product.kill()
    product.start()
    assert product.post(sign(call(leg, 20))).status == 204
    assert [e["data"]["custom_data"] for e in product.story(leg)] == [
        f"leg {leg}, event {seq}" for seq in range(21)
    ]


async def _ended_under_load(
    product: Product, *signals: Signals, pause_s: float = 0.0
) -> tuple[Load, int, float, list[int | None]]:
    """The load, exit code, seconds to the end, and what /readyz said meanwhile."""
    await asyncio.to_thread(product.start)
    async with Load(product.port, connections=24, pause_s=0.02) as load:
        await asyncio.sleep(0.7)
        begun = time.monotonic()
        for number in signals:
            product.signal(number)
            await asyncio.sleep(pause_s)
        said = []
        while product.alive and time.monotonic() - begun < 15:
            said.append(await asyncio.to_thread(product.readyz))
            await asyncio.sleep(0.05)
        taken_s = time.monotonic() - begun
        code = product.running.wait(1)
        statuses = load.statuses
        assert statuses <= {204, 503, None}, statuses
        await asyncio.to_thread(product.start)
    return load, code, taken_s, said


async def test_sigterm_says_first_that_it_is_not_ready_and_then_loses_nothing(
    make_product: MakeProduct,
) -> None:
    product = make_product()
    load, code, taken_s, said = await _ended_under_load(product, SIGTERM)
    assert code == 0
    assert 0.5 < taken_s < 8
    # Load balancers see it while deliveries are still answered.
    assert said[0] == 503
    assert said.count(503) >= 3
    assert 200 not in said[1:]
    assert product.stop() == 0
    assert_kept(load.sent, product.events("call"))
    for line in ("stopping", "stopped"):
        assert len(product.log(line)) == 2
    for sums in product.log("stopped"):
        assert sums["received"] == sum(sums[outcome] for outcome in OUTCOMES)
    assert product.log()[-1]["event"] == "stopped"


async def test_between_sigterm_and_the_end_deliveries_are_still_stored(
    make_product: MakeProduct,
) -> None:
    product = make_product().start()
    leg = new_leg()
    with product.wire() as kept:
        assert kept.ask(request("/webhooks/acme", sign(call(leg, 0)))).status == 204
        product.signal(SIGTERM)
        until = time.monotonic() + 3
        while product.readyz() == 200:
            assert time.monotonic() < until
        # On a connection that was there, and on a new one.
        assert kept.ask(request("/webhooks/acme", sign(call(leg, 1)))).status == 204
        assert product.post(sign(call(leg, 2))).status == 204
    assert product.running.wait(10) == 0
    assert len(product.events("call")) == 3


async def test_a_delivery_that_is_half_here_at_sigterm_is_finished(
    make_product: MakeProduct,
) -> None:
    product = make_product().start()
    body = sign(call(new_leg(), 0))
    with product.wire() as wire:
        wire.send(request("/webhooks/acme", body[:100], length=len(body)))
        product.signal(SIGTERM)
        await asyncio.sleep(1.5)  # the listener is closed by now
        answer = wire.ask(body[100:])
        assert answer.status == 204
        assert answer.headers["connection"] == "close"
    assert product.running.wait(10) == 0
    assert len(product.events("call")) == 1


async def test_connections_that_say_nothing_do_not_hold_up_the_end(
    make_product: MakeProduct,
) -> None:
    product = make_product().start()
    with product.wire() as silent, product.wire() as begun, product.wire() as idle:
        begun.send(b"POST /webhooks/acme HTTP/1.1\r\n")
        idle.ask(request("/webhooks/acme", sign(call(new_leg(), 0))))
        at = time.monotonic()
        assert product.stop() == 0
        assert time.monotonic() - at < 4
        assert silent.closed_after(1) is not None


async def test_a_second_signal_ends_it_at_once(make_product: MakeProduct) -> None:
    product = make_product()
    load, code, taken_s, _ = await _ended_under_load(product, SIGTERM, SIGTERM, pause_s=0.2)
    assert code == 128 + SIGTERM
    assert taken_s < 0.8
    assert product.stop() == 0
    assert_kept(load.sent, product.events("call"))


async def test_sigint_ends_it_without_waiting_for_load_balancers(
    make_product: MakeProduct,
) -> None:
    product = make_product(command=("up",))
    load, code, taken_s, _ = await _ended_under_load(product, SIGINT)
    assert code == 0
    assert taken_s < 3
    assert product.stop() == 0
    assert_kept(load.sent, product.events("call"))


async def test_the_books_balance_with_the_log(make_product: MakeProduct) -> None:
    product = make_product().start()
    async with Load(product.port, connections=8, pause_s=0.01) as load:
        until = time.monotonic() + 1
        while time.monotonic() < until:
            again = load.sent[-1].body if load.sent else b""
            for body in (b"forged", sign({"unknown": new_leg()}), again):
                await asyncio.to_thread(product.post, body)
            await asyncio.sleep(0.02)
    metrics = product.settled()
    found = metrics.outcomes()
    assert min(found[word] for word in ("stored", "repeat", "refused", "rejected")) > 0
    stored = Counter(event["type"].split(".")[1] for event in product.events())
    assert stored["call"] == found["stored"] == metrics.sum("dialstream_events_total")
    assert stored["reject"] == found["rejected"] == metrics.sum("dialstream_rejects_total")
    assert found["refused"] == metrics.sum("dialstream_refusals_total")
    assert metrics.sum("dialstream_answer_seconds_count") == sum(
        found[word] for word in ("stored", "repeat", "rejected")
    )


def test_a_signal_in_the_middle_of_the_start_is_no_crash(make_product: MakeProduct) -> None:
    product = make_product()
    for number, pause_s in ((SIGTERM, 0.1), (SIGTERM, 0.5), (SIGINT, 0.4)):
        product.spawn()
        time.sleep(pause_s)
        product.signal(number)
        assert product.running.wait(10) in (0, -number, 128 + number, 1)
    assert "unexpected_error" not in product.stderr
    assert product.start().stop() == 0

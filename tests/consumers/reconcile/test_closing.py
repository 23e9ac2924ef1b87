"""Gaps that reconciliation finds are read back at once: real pollers, real and simulated lists."""

import asyncio
import time
from typing import Any

import pytest

from ingest.eventlog.journal import open_journal
from ingest.gaps import gap_event
from ingest.pipeline import store
from ingest.simulator.diallink_delivery import new_secret
from ingest.simulator.diallink_server import simulated_diallink
from schemas.times import now_ms
from tests.conftest import MakeProduct
from tests.consumers.poll.small_dialgood import SmallDialgood
from tests.consumers.poll.small_dialpad import HOUR_MS, SmallDialpad
from tests.consumers.reconcile.processes import push, up_with, verdicts, wait_until
from tests.kit import SECRET, Product

#: No pass but the first, and those of gaps.
SELDOM_S = 3600.0


def early_in_an_hour() -> float:
    """How many hours ago that was of the last one, in UTC: what begins then belongs together."""
    now = time.time() * 1000
    return (now % HOUR_MS + HOUR_MS * 0.9) / HOUR_MS


def gaps(product: Product, what: str, channel: str) -> list[dict[str, Any]]:
    events = product.events("gap", "--type", f"gap.{what}")
    return [event for event in events if event["data"]["channel"] == channel]


def recorded(product: Product) -> set[str]:
    events = product.events("call", "--type", "call.recorded")
    return {event["data"]["call_id"] for event in events}


def closed_count(product: Product, channel: str) -> int:
    return product.metrics().sum(
        "dialstream_gap_closed_seconds_count", connection="acme", channel=channel
    )


def test_too_many_lost_pushes_make_the_poller_read_that_stretch_at_once(
    make_product: MakeProduct, dialpad: SmallDialpad
) -> None:
    dialpad.add(8, hours_ago=early_in_an_hour())
    began_ms = int(dialpad.calls[0]["date_started"])
    connection = {**dialpad.connection(every_s=SELDOM_S), "secrets": [SECRET]}
    product = up_with(make_product, connection)

    def list_late(number: int) -> None:
        if number == 2:  # the first pass was one request
            hours_ago = time.time() * 1000 - (began_ms + 3500)
            dialpad.add(1, hours_ago=hours_ago / HOUR_MS)

    dialpad.on_request = list_late
    product.start()
    for item in dialpad.calls[:2]:
        push(product, item)
    (closed,) = wait_until(lambda: gaps(product, "closed", "push"), product)
    (opened,) = gaps(product, "opened", "push")
    assert len(dialpad.asked_at) == 2
    assert len(recorded(product)) == 9
    assert opened["data"]["reason"] == closed["data"]["reason"] == "push_missing"
    assert closed["data"]["to"] == opened["data"]["to"]
    # Within the stretch of the lost calls all nine have ended, pushed or not.
    assert closed["data"]["found"] in (8, 9)
    assert closed_count(product, "push") == 1
    assert product.stop() == 0


def test_a_list_that_nobody_has_read_in_time_is_read_as_soon_as_it_can_be(
    make_product: MakeProduct, dialpad: SmallDialpad
) -> None:
    dialpad.add(2, hours_ago=early_in_an_hour())
    connection = {**dialpad.connection(), "secrets": [SECRET]}
    product = up_with(make_product, connection, hold_max_s=1)
    dialpad.status = 500
    product.start()
    for item in dialpad.calls:
        push(product, item)
    missing = {str(item["call_id"]): "record_missing" for item in dialpad.calls}
    wait_until(lambda: verdicts(product) == missing, product)
    found = wait_until(lambda: gaps(product, "opened", "records"), product)
    assert {event["data"]["reason"] for event in found} == {"list_not_read"}
    assert gaps(product, "closed", "records") == []
    dialpad.status = None
    wait_until(lambda: len(gaps(product, "closed", "records")) == len(found), product)
    assert closed_count(product, "records") == len(found)
    assert recorded(product) == missing.keys()
    assert product.stop() == 0


async def test_diallink_reads_back_what_was_not_pushed(make_product: MakeProduct) -> None:
    async with simulated_diallink(days=0.001, pace=None) as diallink:
        connection = {
            "provider": "diallink",
            "api_key": diallink.api_key,
            "secrets": [new_secret()],
            "base_url": diallink.base_url,
            "region": "US",
            "poll": {"requests_per_s": 20.0, "every_s": SELDOM_S, "lag_s": 3.0},
        }
        product = up_with(make_product, connection)

        def run() -> None:
            product.start()
            closed, *_ = wait_until(lambda: gaps(product, "closed", "push"), product)
            assert closed["data"]["found"] >= 5
            assert closed_count(product, "push") >= 1  # another, if an hour has begun meanwhile
            assert product.stop() == 0

        await asyncio.to_thread(run)


@pytest.mark.parametrize("channel", ["push", "records"])
def test_dialgood_reads_it_back_agent_by_agent(make_product: MakeProduct, channel: str) -> None:
    with SmallDialgood() as dialgood:
        for agent_id in dialgood.logs:
            dialgood.add(agent_id, 5, hours_ago=50)  # longer ago than the first pass reads
        connection = dialgood.connection(every_s=SELDOM_S, lag_s=1.0)
        product = make_product(command=("poll",), settings={"connections": {"acme": connection}})
        from_ms = now_ms() - 51 * HOUR_MS

        async def put() -> None:
            opened = gap_event(
                "acme",
                channel,
                from_ms,
                to_ms=from_ms + 2 * HOUR_MS,
                reason="list_not_read",
                found=None,
                now_ms=now_ms(),
            )
            async with open_journal(product.data) as journal:
                await store(journal, [opened], asyncio.get_running_loop().time() + 10)

        asyncio.run(put())
        product.start()
        (closed,) = wait_until(lambda: gaps(product, "closed", channel), product)
        assert closed["data"]["found"] == 5 * len(dialgood.logs)
        assert len(recorded(product)) == 5 * len(dialgood.logs)
        assert closed_count(product, channel) == 1
        assert product.stop() == 0

"""Two processes that reconcile: one works, the other stands by, and takes over when it is gone."""

import asyncio
import time
from collections import defaultdict
from datetime import datetime

import pytest

from ingest.checkpoints import save_checkpoint
from ingest.eventlog.kinds import open_log
from ingest.eventlog.log import records_of
from ingest.settings import load_settings
from schemas.times import now_ms
from tests.conftest import MakeProduct
from tests.consumers.reconcile.test_killed import call, settings_with, written
from tests.faults.stage import settings_for
from tests.kafka.cluster import Cluster
from tests.kit import Product

TAKES_OVER_WITHIN_S = 60

_PLACES = ("started", "connection_taken", "connection_left", "standing_by")


def tell(product: Product, nth: int) -> None:
    """A call has ended, was pushed and recorded, and the list was read up to it."""

    async def write() -> None:
        at_ms = now_ms()
        environment = {"DIALSTREAM_EVENTLOG__PATH": str(product.data)}
        async with open_log(load_settings(product.config, environment), "test") as log:
            for what in ("ended", "recorded"):
                await written(log, records_of(call(nth, what, at_ms)))
            mark = {"watermark_ms": at_ms, "swept_ms": at_ms}
            await save_checkpoint(log, "acme", "calls", mark, 1)

    asyncio.run(write())


def place(product: Product) -> str:
    """What it has said last of its part."""
    return str([line["event"] for line in product.log() if line["event"] in _PLACES][-1])


def wait_for_verdicts(product: Product, other: Product, *calls: int) -> None:
    """Until each of these calls has one verdict and no more: ids of the same are the same."""
    wanted = {str(10_000 + nth) for nth in calls}
    until = time.monotonic() + 120
    while True:
        found = defaultdict(set)
        for event in product.events("verdict", "--type", "verdict.matched"):
            found[event["data"]["call_id"]].add(event["id"])
        if found.keys() >= wanted:
            break
        assert time.monotonic() < until, product.stderr + other.stderr
        time.sleep(0.5)
    assert {call_id: len(ids) for call_id, ids in found.items()} == dict.fromkeys(wanted, 1)


def stand_by(one: Product, other: Product) -> None:
    one.start()
    one.wait_for_log("connection_taken")
    other.start()
    # Whoever was first may have to give it up when the second one joins.
    until = time.monotonic() + 90
    while sorted((place(one), place(other))) != ["connection_taken", "standing_by"]:
        assert time.monotonic() < until, one.stderr + other.stderr
        time.sleep(0.5)
    owner, second = (one, other) if place(one) == "connection_taken" else (other, one)
    tell(one, 0)
    wait_for_verdicts(owner, second, 0)
    assert place(second) == "standing_by"
    taken = len(second.log("connection_taken"))

    owner.kill()
    killed_s = time.time()
    tell(one, 1)
    line = second.wait_for_log("connection_taken", taken + 1)[-1]
    taken_s = datetime.fromisoformat(line["timestamp"]).timestamp()
    assert taken_s - killed_s < TAKES_OVER_WITHIN_S
    # What was judged already is not judged otherwise, and what came meanwhile is not forgotten.
    wait_for_verdicts(second, owner, 0, 1)
    assert second.stop() == 0


@pytest.mark.timeout(400)
def test_when_the_owner_is_killed_the_other_takes_over(make_product: MakeProduct) -> None:
    one = make_product("one", command=("reconcile",), settings=settings_with())
    shared = {**settings_with(), "eventlog": {"path": str(one.data)}}
    stand_by(one, make_product("other", command=("reconcile",), settings=shared))


@pytest.mark.timeout(400)
def test_when_the_owner_is_killed_the_other_takes_over_on_kafka(
    make_product: MakeProduct, kafka: Cluster, topic_prefix: str
) -> None:
    settings = settings_with(**settings_for(kafka, topic_prefix))
    one, other = (make_product(name, command=("reconcile",), settings=settings) for name in "ab")
    assert one.run("topics", "create").code == 0
    stand_by(one, other)

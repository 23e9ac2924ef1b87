"""The sink on a real cluster: two of them, of which one works; and its group's rejects."""

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from ingest.eventlog.kinds import open_log
from ingest.eventlog.log import records_of
from ingest.settings import load_settings
from ingest.simulator.dialedin_server import SimulatedDialedIn, simulated_dialedin
from schemas.event import Event
from schemas.times import now_ms
from tests.conftest import MakeProduct
from tests.consumers.sinks.dialedin.events import conversation, event, message
from tests.ingest.commands.on_kafka import settings_for
from tests.ingest.commands.running import running
from tests.kafka.cluster import Cluster
from tests.kit import Product


@pytest.fixture
def dialedin() -> Iterator[SimulatedDialedIn]:
    with running(simulated_dialedin()) as server:
        yield server


def put_on(product: Product, *events: Event) -> None:
    async def put() -> None:
        async with open_log(load_settings(product.config), "tests") as log:
            for each in events:
                deadline = asyncio.get_running_loop().time() + 60
                await log.publish(records_of(each)).wait(deadline)

    asyncio.run(put())


def wait(until: Callable[[], object], *products: Product) -> None:
    deadline = time.monotonic() + 120
    while not until():
        if time.monotonic() > deadline:
            raise AssertionError("\n".join(product.stderr for product in products))
        time.sleep(0.2)


@pytest.mark.timeout(500)
def test_one_of_two_tells_and_the_other_takes_over(
    make_product: MakeProduct, dialedin: SimulatedDialedIn, kafka: Cluster, topic_prefix: str
) -> None:
    def settings(**sink: Any) -> dict[str, Any]:
        floor = {
            "provider": "dialedin",
            "api_key": dialedin.token,
            "account_id": dialedin.account,
            "base_url": dialedin.base_url,
            "sink": {
                "dnc_on_stop": True,
                "lead_on_missed": True,
                "lead_campaign": "Example Campaign",
                "requests_per_s": 20,
                **sink,
            },
            "assume": {"look_after_s": 1},
        }
        return {**settings_for(kafka, topic_prefix), "connections": {"floor": floor}}

    made = make_product("before", settings=settings()).run("topics", "create")
    assert made.code == 0, made.output
    for group in ("dnc", "leads"):
        assert f"rejects.sink-floor-{group}" in made.stdout
    assert "updates" not in made.stdout
    # A rule that is on since, and has no topic for its rejects yet, stops itself alone.
    one, other = (
        make_product(name, command=("sink",), settings=settings(update_on_contact=True))
        for name in "ab"
    )
    both = (one.start(), other.start())
    wait(lambda: any(len(each.log("subscribed")) == 2 for each in both), *both)
    at_ms = now_ms()
    put_on(
        one,
        event(message(), at_ms=at_ms),
        event(message(ident="m2", from_number="+447700900001"), at_ms=at_ms),
        *(event(conversation(f"12{n}"), at_ms=at_ms) for n in range(3)),
    )
    floor = dialedin.floor
    wait(lambda: floor.dnc == {"5551230001"} and floor.leads, *both)
    wait(lambda: any(each.log("event_rejected") for each in both), *both)
    first = next(each for each in both if each.log("sink_told"))
    [stopped] = first.log("sink_stopped")[:1]
    assert stopped["group"] == "sink-floor-updates"
    assert "topics create --group sink-floor-updates" in stopped["detail"]
    second = other if first is one else one
    assert not second.log("sink_told")
    # Its first reading may still go on; what it has begun the second one does again, or finds.
    first.kill()
    put_on(
        second,
        event(message(ident="m3", from_number="+15551230003"), at_ms=now_ms()),
        event(conversation("130", external={"number": "+15551230130"}), at_ms=now_ms()),
    )
    wait(lambda: len(floor.dnc) == 2 and len(floor.leads) == 2, second)
    assert second.stop() == 0
    # Three conversations of one caller are one lead: the campaign has the number already.
    assert sorted(lead.fields["PrimaryPhone"] for lead in floor.leads) == [
        "5551230001",
        "5551230130",
    ]
    assert floor.rung == []
    ids = [lead.fields["ClientId"] for lead in floor.leads]
    assert len(set(ids)) == 2
    told = [json.dumps(line) for each in both for line in each.log()]
    assert not any("5551230001" in line or dialedin.token in line for line in told)

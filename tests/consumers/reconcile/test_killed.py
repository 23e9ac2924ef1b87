"""Killed again and again while calls come in: the log has what one run would have written."""

import asyncio
import os
import random
import shutil
import signal
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import orjson
import pytest

from ingest.checkpoints import save_checkpoint
from ingest.eventlog.kinds import open_log, open_reader
from ingest.eventlog.log import EventLog, Record, StoredRecord, records_of
from ingest.reading import unknown_call
from ingest.settings import Settings, load_settings
from schemas.event import Event
from schemas.times import now_ms, rfc3339
from tests.conftest import MakeProduct
from tests.consumers.poll.small_dialpad import SmallDialpad
from tests.faults.stage import settings_for
from tests.kafka.cluster import Cluster
from tests.kit import SECRET, Product

KILLS = int(os.environ.get("DIALSTREAM_TEST_KILLS", "5"))

CALLS = 150
_OURS = ("calls", "verdicts", "ledger", "gaps")


def call(nth: int, what: str, at_ms: int, **more: Any) -> Event:
    """A call of two seconds that has just ended; some belong to the one before."""
    call_id = str(10_000 + nth)
    end_ms = at_ms - 100
    related = [str(10_000 + nth - 1)] if nth % 7 == 0 else []
    data = {
        **unknown_call(call_id, what),
        "related_call_ids": related,
        "started_at": rfc3339(end_ms - 2000),
        "ended_at": rfc3339(end_ms),
        "outcome": "answered",
        "total_duration_s": 2.0,
        **more,
    }
    return Event(
        type=f"dialstream.call.{what}",
        subject_kind="call",
        id=f"dialpad:acme:{what}:{call_id}",
        subject=f"call/{call_id}",
        key=f"acme/{call_id}",
        time_ms=end_ms,
        recorded_ms=at_ms,
        via="poll" if what == "recorded" else "webhook",
        provider="dialpad",
        connection="acme",
        data=data,
        raw=b"{}",
    )


async def tell(settings: Settings, seconds: float) -> None:
    """Calls come in: some are never pushed, some never listed, some told otherwise."""
    async with open_log(settings, "test") as log:
        for nth in range(CALLS):
            at_ms = now_ms()
            events = []
            if nth % 10:
                events.append(call(nth, "ended", at_ms))
            if nth % 10 != 1:
                total_s = 20.0 if nth % 10 == 2 else 2.0
                events.append(call(nth, "recorded", at_ms, total_duration_s=total_s))
            for event in events:
                await written(log, records_of(event))
            if nth % 10 == 9:
                mark = {"watermark_ms": at_ms, "swept_ms": at_ms}
                await save_checkpoint(log, "acme", "calls", mark, 1)
            await asyncio.sleep(seconds / CALLS)


async def written(log: EventLog, records: Sequence[Record]) -> None:
    await log.publish(records).wait(asyncio.get_running_loop().time() + 20)


WANTED = {
    str(10_000 + nth): {0: "push_missing", 1: "record_missing", 2: "mismatch"}.get(
        nth % 10, "matched"
    )
    for nth in range(CALLS)
}


async def read(settings: Settings) -> list[StoredRecord]:
    found: list[StoredRecord] = []
    async with open_reader(settings, _OURS) as reader:
        while not await reader.caught_up():
            found += await reader.fetch(wait_s=0.5)
    return found


def derived(found: Sequence[StoredRecord]) -> dict[str, set[bytes]]:
    """Id → what was written under it; but for hours, which are measured when they are over."""
    by_id: dict[str, set[bytes]] = defaultdict(set)
    for stored in found:
        headers = dict(stored.headers)
        ident = headers.get("ce_id", b"").decode() or f"tombstone {stored.key.decode()}"
        if stored.topic != "calls" or ident.endswith(":backfilled"):
            by_id[ident].add(stored.value or b"")
    return {ident: each for ident, each in by_id.items() if not ident.startswith("completeness")}


def final(found: Sequence[StoredRecord]) -> Mapping[str, str]:
    events = [orjson.loads(each.value) for each in found if each.topic == "verdicts" and each.value]
    return {
        event["data"]["call_id"]: event["data"]["verdict"]
        for event in sorted(
            (event for event in events if "verdict" in event["data"]),
            key=lambda event: int(event["data"]["n"]),
        )
    }


def complete(found: Sequence[StoredRecord]) -> set[str]:
    """Calls of which only artefacts may follow, and what was mended was read again, too."""
    rows = [orjson.loads(each.value) for each in found if each.topic == "ledger" and each.value]
    return {
        leg["call_id"]
        for row in rows
        if row["data"]["complete"]
        for leg in row["data"]["legs"]
        if leg["states"]
    }


def wait_until(holds: Callable[[], bool], product: Product) -> None:
    until = time.monotonic() + 120
    while not holds():
        if time.monotonic() > until:
            product.running.send_signal(signal.SIGABRT)  # it tells where it stands
            product.running.wait(5)
            raise AssertionError(product.stderr)
        if not product.alive:
            product.spawn()
        time.sleep(1)


def settings_with(**more: Any) -> dict[str, Any]:
    with SmallDialpad() as dialpad:  # nobody asks it
        connection = {**dialpad.connection(), "secrets": [SECRET]}
    return {
        "connections": {"acme": connection},
        "reconcile": {"settle_s": 1, "since": "2020-01-01T00:00:00Z"},
        **more,
    }


def stand(product: Product, kills: int) -> None:
    """Kill it while calls come in; then let another one begin anew on the same log."""
    random.seed(7)
    environment = {"DIALSTREAM_EVENTLOG__PATH": str(product.data)}
    settings = load_settings(product.config, environment)
    telling = threading.Thread(target=lambda: asyncio.run(tell(settings, 3.0 * kills)))
    telling.start()
    for _ in range(kills):
        product.spawn()
        time.sleep(random.uniform(2.0, 6.0))
        product.kill()
    telling.join(120)
    product.spawn()

    def is_done() -> bool:
        found = asyncio.run(read(settings))
        return final(found) == WANTED and complete(found) == WANTED.keys()

    wait_until(is_done, product)
    time.sleep(3)  # what was due together with the last of it
    product.kill()
    first = asyncio.run(read(settings))

    shutil.rmtree(product.data / "reconcile")
    product.spawn()
    ids = derived(first).keys()

    places = {(each.topic, each.partition, each.position) for each in first}

    def is_told_again() -> bool:
        found = asyncio.run(read(settings))
        again = [
            each for each in found if (each.topic, each.partition, each.position) not in places
        ]
        return ids <= derived(again).keys()

    wait_until(is_told_again, product)
    product.kill()
    both = derived(asyncio.run(read(settings)))
    assert both.keys() == ids
    assert {ident: len(each) for ident, each in both.items() if len(each) > 1} == {}


@pytest.mark.timeout(600)
def test_killed_again_and_again_it_writes_what_one_run_would(make_product: MakeProduct) -> None:
    stand(make_product(command=("reconcile",), settings=settings_with()), KILLS)


@pytest.mark.timeout(600)
def test_on_kafka_too(make_product: MakeProduct, kafka: Cluster, topic_prefix: str) -> None:
    settings = settings_with(**settings_for(kafka, topic_prefix))
    product = make_product(command=("reconcile",), settings=settings)
    assert product.run("topics", "create").code == 0
    stand(product, min(KILLS, 3))

"""What is on the spool when the receiver ends, when the spool is full, when its disk has rotted."""

import asyncio
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.faults.judge import judge
from tests.faults.scenario import running
from tests.faults.stage import Stage, until
from tests.kafka.cluster import Cluster

MakeStage = Callable[..., Stage]


@pytest.fixture
def make_stage(proxied_kafka: Cluster, tmp_path: Path, topic_prefix: str) -> Iterator[MakeStage]:
    """Takes settings of the event log."""
    made: list[Stage] = []

    def make(**settings: Any) -> Stage:
        made.append(Stage.build(proxied_kafka, tmp_path / "product", topic_prefix, **settings))
        return made[-1]

    yield make
    for stage in made:
        stage.product.close()


async def test_sigterm_in_an_outage(make_stage: MakeStage) -> None:
    stage = await asyncio.to_thread(make_stage)
    product = stage.product
    async with running(stage) as load:
        stage.lines[0].black_hole()
        await until(lambda: stage.waiting() > 200, "the spool fills")
        assert await asyncio.to_thread(product.stop) == 0
        waited = len(load.acknowledged)
        # It starts without Kafka, too, and says what is the matter.
        await asyncio.to_thread(product.start)
        degraded = await asyncio.to_thread(stage.degraded)
        assert {"kafka_unreachable", "spooled:calls:unreachable"} & set(degraded)
        await until(lambda: len(load.acknowledged) > waited, "deliveries are taken")
        stage.restore_lines()
        await until(stage.whole, "the spool is empty")
    assert await asyncio.to_thread(product.stop) == 0
    verdict = judge(load.sent, await asyncio.to_thread(stage.log))
    assert verdict.problems == []
    assert len(product.log("spool_found")) == 1
    assert len(product.log("stopped")) == 2


async def test_a_full_spool(make_stage: MakeStage) -> None:
    stage = await asyncio.to_thread(make_stage, spool_max_bytes=2_000_000)
    product = stage.product
    async with running(stage) as load:
        stage.lines[0].refuse()
        await until(lambda: load.statuses == {204, 503}, "deliveries get 503")
        said = await asyncio.to_thread(product.admin, "/readyz")
        assert said.status == 503
        assert json.loads(said.body)["reason"] == "spool_full"
        found = await asyncio.to_thread(product.metrics)
        assert found.sum("dialstream_unavailable_total", reason="spool_full")
        stage.restore_lines()
        await until(stage.whole, "the spool is empty")
        await until(lambda: product.readyz() == 200, "it is ready")
        # And again: what has been drained has made room.
        stored = len(load.acknowledged)
        stage.lines[0].refuse()
        await until(lambda: stage.waiting() > 100, "the spool fills once more")
        assert len(load.acknowledged) > stored + 100
        stage.restore_lines()
        await until(stage.whole, "the spool is empty")
    found = await asyncio.to_thread(product.settled)
    assert found.outcomes()["unavailable"] == found.sum(
        "dialstream_unavailable_total", reason="spool_full"
    )
    assert await asyncio.to_thread(product.stop) == 0
    verdict = judge(load.sent, await asyncio.to_thread(stage.log))
    assert verdict.problems == []
    assert verdict.refused


async def test_a_disk_that_has_rotted_under_the_spool(make_stage: MakeStage) -> None:
    stage = await asyncio.to_thread(make_stage)
    product = stage.product
    stage.lines[0].refuse()
    async with running(stage, direct=False) as load:
        await until(lambda: stage.waiting() > 1000, "the spool fills")
    assert await asyncio.to_thread(product.stop) == 0
    folder = product.data / "spool" / "receiver" / "calls"
    [segment] = folder.glob("*.sqlite")
    with segment.open("r+b") as file:
        file.seek(segment.stat().st_size // 2)
        file.write(b"\xa5" * 32_768)
    await asyncio.to_thread(product.start)
    stage.restore_lines()
    await until(stage.whole, "all that can be read is drained")
    assert await asyncio.to_thread(product.stop) == 0
    verdict = judge(load.sent, await asyncio.to_thread(stage.log))
    # Those bytes are gone. Everything else is there, in order, as it was.
    assert 0 < len(verdict.lost) < 100
    assert verdict.changed == verdict.disordered == []
    assert list(folder.glob("*.sqlite.damaged"))
    [line] = product.log("segment_damaged")
    assert line["rescued"] == len(load.acknowledged) - len(verdict.lost)

"""The cells of the matrix that CI has time for; ``make faults`` plays all."""

import os
from pathlib import Path

import pytest

from tests.faults.scenario import MATRIX, Cell, Kills, Moment, Row
from tests.faults.ways import On
from tests.kafka.cluster import Cluster

#: How often it is killed; the more the better, two seconds each.
KILLS = int(os.environ.get("DIALSTREAM_TEST_KILLS", "5"))

_FIXTURES = {On.ONE: "proxied_kafka", On.SECURED: "sasl_kafka", On.THREE: "three_brokers"}

# Each way to fail once that one broker can have; before, during and after; with a kill and without.
BEFORE, DURING, AFTER = Moment
CHOSEN = {
    ("stopped", DURING, True),
    ("black hole", BEFORE, False),
    ("slow by 2.5 s", BEFORE, False),
    ("topic deleted", AFTER, True),
    ("record too large", DURING, False),
    ("producer fenced", BEFORE, False),
    ("access revoked", BEFORE, False),
}


def assert_well(row: Row) -> None:
    assert row.verdict.problems == [], row


@pytest.mark.parametrize(
    "cell", [c for c in MATRIX if (c.way.name, c.moment, c.kill) in CHOSEN], ids=str
)
async def test_faults(
    cell: Cell, request: pytest.FixtureRequest, tmp_path: Path, topic_prefix: str
) -> None:
    kafka: Cluster = request.getfixturevalue(_FIXTURES[cell.way.on])
    assert_well(await cell.play(kafka, tmp_path / "product", topic_prefix))


async def test_kills(proxied_kafka: Cluster, tmp_path: Path, topic_prefix: str) -> None:
    assert_well(await Kills(KILLS, On.ONE).play(proxied_kafka, tmp_path / "product", topic_prefix))

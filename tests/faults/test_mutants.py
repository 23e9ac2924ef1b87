"""Receivers that break the promise on purpose: who does not notice them proves nothing."""

from pathlib import Path

import pytest

from tests.faults.scenario import MATRIX
from tests.kafka.cluster import Cluster

# Each is a sitecustomize: what Python runs before the receiver.

FORGETS = """
# What an earlier run has left in the spool counts as drained.
from ingest.eventlog import spool

class Topic(spool._Topic):
    def __init__(self, folder):
        super().__init__(folder)
        self.drained_to = self.stored_to

spool._Topic = Topic
"""

OVERTAKES = """
# What is new does not wait for the end of the drain.
from ingest.eventlog import kafka
from ingest.eventlog.lanes import add_to, size_of

class Lane(kafka.KafkaLane):
    def publish(self, records):
        if self._switch.spooled and self.trouble != "draining":
            return super().publish(records)
        size = size_of(records)
        self._log.room.take(size)
        group = add_to(self._switch.waiting, records, size, self._loop)
        self._go_on()
        return group

    async def _drain(self):
        while self._switch.waiting:
            group = self._switch.waiting.popleft()
            await self._deliver(group.records)
            self._settle(group, "kafka")
        await super()._drain()

kafka.KafkaLane = Lane
"""


@pytest.mark.parametrize(
    ("mutant", "cell", "found"),
    [
        (FORGETS, "refused, before a drain, receiver killed", "lost"),
        (OVERTAKES, "slow by 1.5 s, during", "out of order"),
    ],
    ids=["forgets", "overtakes"],
)
async def test_a_mutant_is_found(
    proxied_kafka: Cluster, tmp_path: Path, topic_prefix: str, mutant: str, cell: str, found: str
) -> None:
    (tmp_path / "sitecustomize.py").write_text(mutant)
    [chosen] = [each for each in MATRIX if str(each) == cell]
    environment = {"PYTHONPATH": str(tmp_path)}
    row = await chosen.play(proxied_kafka, tmp_path / "product", topic_prefix, environment)
    told = [problem.partition(",")[0] for problem in row.verdict.problems]
    assert any(problem.endswith(found) for problem in told)

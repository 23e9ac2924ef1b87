"""Scenarios: from a healthy start through faults to a healthy end, under load, and the verdict.

A cell of the matrix is a way to fail, the moment in which it does, and whether the receiver is
killed in the middle of it:

    before a drain   while records go straight to Kafka
    during           while what an outage has left in the spool drains
    after            in the moment in which the spool is empty
"""

import asyncio
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from consumers.prove.oracle import Verdict
from ingest.eventlog.producer import HUNG_S
from tests.faults.judge import REFUSED_SHARE, judge
from tests.faults.stage import OnJournal, Stage, until
from tests.faults.ways import TOPIC_BYTES, WAYS, On, Way, fenced, too_large
from tests.kafka.cluster import Cluster
from tests.kit import Load

LEGS, PAUSE_S = 200, 0.5

#: What the outage before a drain brings to the spool: a dozen chunks.
_BACKLOG = 1000
#: Of the line while a drain is to last: a chunk takes so long, and load brings more than it takes.
_DRAINING_S = 0.4


@dataclass(slots=True)
class Row:
    """What came of a scenario."""

    name: str
    verdict: Verdict = field(default_factory=Verdict)
    #: Records that went to the spool.
    spooled: int = 0


class Scenario(Protocol):
    """Its text is its name."""

    @property
    def on(self) -> On:
        """What it plays on."""

    async def play(self, kafka: Cluster, folder: Path, prefix: str) -> Row:
        """Raises AssertionError or ClusterError where it cannot be played to its end."""


# The matrix


class Moment(StrEnum):
    BEFORE = "before a drain"
    DURING = "during"
    AFTER = "after"


@dataclass(frozen=True, slots=True)
class Cell:
    """One cell of the matrix."""

    way: Way
    moment: Moment
    kill: bool

    def __str__(self) -> str:
        return f"{self.way.name}, {self.moment}{', receiver killed' if self.kill else ''}"

    @property
    def on(self) -> On:
        return self.way.on

    async def play(
        self,
        kafka: Cluster,
        folder: Path,
        prefix: str,
        environment: Mapping[str, str] | None = None,
    ) -> Row:
        way = self.way
        stage = await asyncio.to_thread(Stage.build, kafka, folder, prefix, way.topic)
        stage.product.environment.update(environment or {})
        row = Row(str(self))
        async with playing(stage, row) as receiver:
            if self.moment is not Moment.BEFORE:
                await _outage(stage, self.moment)
            fault = way.breaks(stage)
            await asyncio.to_thread(fault.__enter__)
            if self.moment is Moment.DURING:
                assert await asyncio.to_thread(stage.waiting), "the drain was over before the fault"
            await asyncio.sleep(way.hold_s)
            if way.word:
                word = f"spooled:{stage.name}:{way.word}"
                await until(lambda: word in stage.degraded(), f"/readyz says {word}")
            if self.kill:
                await receiver.kill()
                await asyncio.sleep(1.5)
            await asyncio.to_thread(fault.__exit__, None, None, None)
            await asyncio.to_thread(stage.restore_lines)
        if not row.spooled and (way.spools or self.moment is not Moment.BEFORE):
            row.verdict.others.append("no record has seen the spool")
        if way.breaks is too_large and not row.verdict.set_aside:
            row.verdict.others.append("no record was set aside")
        return row


MATRIX = [Cell(way, moment, kill) for way in WAYS for moment in Moment for kill in (False, True)]


async def _outage(stage: Stage, moment: Moment) -> None:
    """Fill the spool, and let it drain: for long, or to its end."""
    for line in stage.lines:
        await asyncio.to_thread(line.refuse)
    await until(lambda: stage.waiting() >= _BACKLOG, "the spool fills")
    await asyncio.to_thread(stage.restore_lines)
    if moment is Moment.DURING:
        for line in stage.lines:
            line.delay(_DRAINING_S)
        await until(stage.drained, "the drain begins")
    else:
        await until(lambda: not stage.waiting(), "the spool is empty")


# Others


@dataclass(frozen=True, slots=True)
class Kills:
    """The receiver is killed again and again."""

    count: int
    on: On

    def __str__(self) -> str:
        return f"receiver killed {self.count} times{', journal' * (self.on is On.JOURNAL)}"

    async def play(self, kafka: Cluster, folder: Path, prefix: str) -> Row:
        build = OnJournal.build if self.on is On.JOURNAL else Stage.build
        stage = await asyncio.to_thread(build, kafka, folder, prefix)
        row = Row(str(self))
        async with playing(stage, row) as receiver:
            for _ in range(self.count):
                await asyncio.sleep(random.uniform(0.2, 1))
                await receiver.kill()
        if not any(None in each.tries for each in receiver.load.sent):
            row.verdict.others.append("no kill has hit a delivery")
        return row


@dataclass(frozen=True, slots=True)
class AtRandom:
    """One broker's faults and kills, short and long, the next before the last is over."""

    count: int
    seed: int

    on = On.ONE

    def __str__(self) -> str:
        return f"{self.count} faults at random, seed {self.seed}"

    async def play(self, kafka: Cluster, folder: Path, prefix: str) -> Row:
        chance = random.Random(self.seed)
        # Whether a producer was fenced cannot be said of one that may be on its way out.
        ways = [w for w in WAYS if w.on is self.on and w.hold_s < HUNG_S and w.breaks is not fenced]
        stage = await asyncio.to_thread(Stage.build, kafka, folder, prefix)
        row = Row(str(self))
        async with playing(stage, row) as receiver:
            for _ in range(self.count):
                fault = chance.choice(ways).breaks(stage)
                await asyncio.to_thread(fault.__enter__)
                await asyncio.sleep(chance.uniform(0, 4))
                if chance.random() < 0.3:
                    await receiver.kill()
                    await asyncio.sleep(chance.uniform(0, 3))
                await asyncio.to_thread(fault.__exit__, None, None, None)
                await asyncio.sleep(chance.uniform(0, 1))
        if not row.spooled:
            row.verdict.others.append("no record has seen the spool")
        return row


# The receiver under load


@dataclass(slots=True)
class Receiver:
    """The receiver of a stage, under load."""

    stage: Stage
    load: Load
    row: Row
    #: What was acknowledged before its last start; None: it was started once.
    acknowledged: int | None = None

    async def kill(self) -> None:
        """End it with SIGKILL, and start it on the same data."""
        self.row.spooled += await asyncio.to_thread(self.stage.spooled)
        self.stage.product.kill()
        await asyncio.sleep(0.2)  # answers that were written are read
        self.acknowledged = self.load.acknowledgements
        await asyncio.to_thread(self.stage.product.start)

    def books(self) -> list[str]:
        """What is wrong in the books: they balance, and tell what the senders have seen."""
        books = self.stage.product.settled().outcomes()
        tries = [status for each in self.load.sent for status in each.tries]
        seen = self.load.acknowledgements - (self.acknowledged or 0)
        found = []
        if books["stored"] + books["repeat"] != seen or books["refused"] or books["rejected"]:
            found.append(f"the books say {books}, senders saw {seen} acknowledged")
        if self.acknowledged is None and None in tries:
            found.append(f"{tries.count(None)} connections ended without an answer")
        if self.acknowledged is None and books["unavailable"] != tries.count(503):
            found.append(f"the books say {books}, senders saw {tries.count(503)} refused")
        if tries.count(503) > REFUSED_SHARE * len(tries):
            found.append(f"{tries.count(503)} of {len(tries)} answers were 503")
        return found


@asynccontextmanager
async def playing(stage: Stage, row: Row) -> AsyncIterator[Receiver]:
    """What is to go wrong within goes wrong; all is well in the end, and ``row`` is filled."""
    try:
        async with running(stage) as load:
            receiver = Receiver(stage, load, row)
            yield receiver
            await until(stage.whole, "the spool is empty and nothing is wrong", 90)
        row.spooled += await asyncio.to_thread(stage.spooled)
        row.verdict = await asyncio.to_thread(_judge, receiver)
    finally:
        stage.product.close()


@asynccontextmanager
async def running(stage: Stage, *, direct: bool = True) -> AsyncIterator[Load]:
    """The receiver under load; ``direct``: which Kafka takes. The load ends with its last 2xx."""
    product = stage.product
    await asyncio.to_thread(product.start)
    async with Load(product.port, connections=LEGS + 1, pause_s=PAUSE_S, more=bulky) as load:
        await until(lambda: load.acknowledgements > LEGS, "deliveries are acknowledged")
        if direct:
            await until(stage.whole, "they go straight to Kafka")
        yield load
        await asyncio.sleep(0.5)


def bulky(leg: int, seq: int) -> Mapping[str, object]:
    """Make some events of some legs larger than what a topic takes for a while."""
    large = leg % 20 == 0 and seq % 4 == 3
    return {"integrations": {"filler": "x" * 2 * TOPIC_BYTES}} if large else {}


def _judge(receiver: Receiver) -> Verdict:
    stage, load = receiver.stage, receiver.load
    wrong = receiver.books()
    stage.product.kill()
    verdict = judge(load.sent, stage.log(), stage.values(stage.rejects))
    verdict.worst_s = load.worst_s
    verdict.others += wrong
    verdict.others += map(str, stage.product.log("unexpected_error"))
    return verdict

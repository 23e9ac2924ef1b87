"""One fault from a healthy start to a healthy end, under load, and the verdict on the log.

┌ before: while records go straight to Kafka
load ─ fault ─┼ during: while the spool of an outage drains        ─ [kill -9] ─ mend ─ verdict
└ after:  in the moment in which it is empty
"""

import asyncio
import random
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from ingest.eventlog.producer import HUNG_S
from tests.faults.judge import REFUSED_SHARE, Verdict, judge
from tests.faults.stage import OnJournal, Stage, until
from tests.faults.ways import TOPIC_BYTES, WAYS, On, Way, fenced
from tests.kafka.cluster import Cluster
from tests.kit import Load

LEGS, PAUSE_S = 200, 0.5

#: What the outage before a drain brings to the spool: a dozen chunks.
_BACKLOG = 1000
#: Of the line while a drain is to last: a chunk takes so long, and load brings more than it takes.
_DRAINING_S = 0.4


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


MATRIX = [Cell(way, moment, kill) for way in WAYS for moment in Moment for kill in (False, True)]


@dataclass(slots=True)
class Row:
    """What came of a scenario."""

    name: str
    verdict: Verdict
    #: Records that went to the spool.
    spooled: int = 0
    taken_s: float = 0.0


async def play(
    cell: Cell,
    kafka: Cluster,
    folder: Path,
    prefix: str,
    environment: Mapping[str, str] | None = None,
) -> Row:
    """Raises AssertionError or ClusterError where it cannot be played to its end."""
    begun = time.monotonic()
    way = cell.way
    stage = await asyncio.to_thread(Stage.build, kafka, folder, prefix, way.topic)
    stage.product.environment.update(environment or {})
    row = Row(str(cell), Verdict())
    async with running(stage) as load:
        if cell.moment is not Moment.BEFORE:
            await _outage(stage, cell.moment)
        with_fault = way.breaks(stage)
        await asyncio.to_thread(with_fault.__enter__)
        if cell.moment is Moment.DURING:
            assert await asyncio.to_thread(stage.waiting), "the drain was over before the fault"
        await asyncio.sleep(way.hold_s)
        if way.word:
            word = f"spooled:{stage.name}:{way.word}"
            await until(lambda: word in stage.degraded(), f"/readyz says {word}")
        acknowledged = 0
        if cell.kill:
            row.spooled += await asyncio.to_thread(stage.spooled)
            acknowledged = await _kill(stage, load)
            await asyncio.sleep(1.5)
        await asyncio.to_thread(with_fault.__exit__, None, None, None)
        await asyncio.to_thread(stage.restore_lines)
        await until(stage.whole, "the spool is empty and nothing is wrong", 90)
        row.spooled += await asyncio.to_thread(stage.spooled)
    row.verdict = await asyncio.to_thread(_verdict, stage, load, acknowledged, killed=cell.kill)
    found = row.verdict.others
    if not row.spooled and (way.spools or cell.moment is not Moment.BEFORE):
        found.append("no record has seen the spool")
    if way.name == "record too large" and not row.verdict.set_aside:
        found.append("no record was set aside")
    row.taken_s = time.monotonic() - begun
    return row


def kills_name(count: int, *, journal: bool) -> str:
    return f"receiver killed {count} times{', journal' if journal else ''}"


async def play_kills(count: int, kafka: Cluster, folder: Path, prefix: str) -> Row:
    """The receiver is killed again and again. Where there is no broker: on the journal."""
    begun = time.monotonic()
    build = Stage.build if kafka.brokers else OnJournal.build
    stage = await asyncio.to_thread(build, kafka, folder, prefix)
    row = Row(kills_name(count, journal=not kafka.brokers), Verdict())
    acknowledged = 0
    async with running(stage) as load:
        for _ in range(count):
            await asyncio.sleep(random.uniform(0.2, 1))
            row.spooled += await asyncio.to_thread(stage.spooled)
            acknowledged = await _kill(stage, load)
        await until(stage.whole, "the spool is empty and nothing is wrong", 90)
        row.spooled += await asyncio.to_thread(stage.spooled)
    row.verdict = await asyncio.to_thread(_verdict, stage, load, acknowledged, killed=True)
    if not any(None in each.tries for each in load.sent):
        row.verdict.others.append("no kill has hit a delivery")
    row.taken_s = time.monotonic() - begun
    return row


async def play_at_random(count: int, seed: int, kafka: Cluster, folder: Path, prefix: str) -> Row:
    """One broker's faults and the receiver's, short and long, the next before the last is over."""
    begun = time.monotonic()
    chance = random.Random(seed)
    # Whether a producer was fenced cannot be said of one that may be on its way out.
    ways = [w for w in WAYS if w.on is On.ONE and w.hold_s < HUNG_S and w.breaks is not fenced]
    stage = await asyncio.to_thread(Stage.build, kafka, folder, prefix)
    row = Row(random_name(count, seed), Verdict())
    acknowledged = 0
    async with running(stage) as load:
        for _ in range(count):
            fault = chance.choice(ways).breaks(stage)
            await asyncio.to_thread(fault.__enter__)
            await asyncio.sleep(chance.uniform(0, 4))
            if chance.random() < 0.3:
                row.spooled += await asyncio.to_thread(stage.spooled)
                acknowledged = await _kill(stage, load)
                await asyncio.sleep(chance.uniform(0, 3))
            await asyncio.to_thread(fault.__exit__, None, None, None)
            await asyncio.sleep(chance.uniform(0, 1))
        await until(stage.whole, "the spool is empty and nothing is wrong", 90)
        row.spooled += await asyncio.to_thread(stage.spooled)
    row.verdict = await asyncio.to_thread(_verdict, stage, load, acknowledged, killed=True)
    if not row.spooled:
        row.verdict.others.append("no record has seen the spool")
    row.taken_s = time.monotonic() - begun
    return row


def random_name(count: int, seed: int) -> str:
    return f"{count} faults at random, seed {seed}"


async def _kill(stage: Stage, load: Load) -> int:
    """Kill the receiver and start it on the same data; what was acknowledged before."""
    stage.product.kill()
    await asyncio.sleep(0.2)  # answers that were written are read
    acknowledged = load.acknowledgements
    await asyncio.to_thread(stage.product.start)
    return acknowledged


@asynccontextmanager
async def running(stage: Stage, *, direct: bool = True) -> AsyncIterator[Load]:
    """The receiver under load; ``direct``: which Kafka takes. The load ends with its last 2xx."""
    product = stage.product
    try:
        await asyncio.to_thread(product.start)
        async with Load(product.port, connections=LEGS + 1, pause_s=PAUSE_S, more=bulky) as load:
            await until(lambda: load.acknowledgements > LEGS, "it is acknowledged")
            if direct:
                await until(stage.whole, "it goes straight to Kafka")
            yield load
            await asyncio.sleep(0.5)
    except BaseException:
        product.close()
        raise


def bulky(leg: int, seq: int) -> Mapping[str, object]:
    """One event of some legs is larger than a topic may take for a while."""
    large = leg % 20 == 0 and seq % 4 == 3
    return {"integrations": {"filler": "x" * 2 * TOPIC_BYTES}} if large else {}


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


def _verdict(stage: Stage, load: Load, acknowledged: int, *, killed: bool) -> Verdict:
    """``acknowledged``: before the receiver's last start."""
    product = stage.product
    books = product.settled().outcomes()
    product.kill()
    verdict = judge(load.sent, stage.log(), stage.values(stage.rejects))
    verdict.worst_s = load.worst_s
    verdict.others += checks(load, books, acknowledged, killed=killed)
    verdict.others += [
        f"{line['event']}: {line}"
        for event in ("unexpected_error", "segment_damaged")
        for line in product.log(event)
    ]
    return verdict


def checks(load: Load, books: Mapping[str, int], acknowledged: int, *, killed: bool) -> list[str]:
    """Whether the books, which balance, also tell what the senders have seen."""
    tries = [status for each in load.sent for status in each.tries]
    seen = load.acknowledgements - acknowledged
    found = []
    if books["stored"] + books["repeat"] != seen or books["refused"] or books["rejected"]:
        found.append(f"the books say {dict(books)}, senders saw {seen} acknowledged")
    if not killed and None in tries:
        found.append(f"{tries.count(None)} connections ended without an answer")
    if tries.count(503) > REFUSED_SHARE * len(tries):
        found.append(f"{tries.count(503)} of {len(tries)} answers were 503")
    return found

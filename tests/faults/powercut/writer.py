"""Publishes for ever, and says what is durable: the process that the power is cut from.

Usage: writer.py FOLDER ROUND STORE. ``POWERCUT_MUTANT`` names what is to be done wrong. What is
taken off a spool is said, too, with a ``-`` before it: Kafka would have it.
"""

import asyncio
import math
import os
import random
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path

import structlog

from ingest.eventlog import segments, topic
from ingest.eventlog import spool as spool_module
from ingest.eventlog.journal import journal_folder, open_journal
from ingest.eventlog.log import Record, StoredRecord
from ingest.eventlog.retention import tidy
from ingest.eventlog.segments import Segment
from ingest.eventlog.spool import Spool, spool_folder
from schemas.times import now_ms

#: Small enough to be sealed and followed many times before the power goes.
SEGMENT_BYTES = 512 * 1024

#: So that there are checkpoints within a segment too.
CHECKPOINT_PAGES = 24

#: Only the last record of each of its keys has to survive.
COMPACTED = "contacts"
TOPICS = ("calls", "messages", COMPACTED)


def value_of(name: str) -> bytes:
    chance = random.Random(name)
    return f"{name}:".encode() + chance.randbytes(chance.choice([10, 1000, 3000, 30_000]))


Publish = Callable[[list[Record]], Awaitable[object]]
"""Returns once records are durable."""


async def publish(durable: Publish, source: str) -> None:
    chance = random.Random(source)
    number = 0
    while True:
        name = chance.choice(TOPICS)
        records = []
        for _ in range(chance.choice([1, 1, 1, 4])):
            key = f"{source}.{number % 3 if name == COMPACTED else number}"
            value = value_of(f"{key}.{number}")
            records.append(Record(name, key.encode(), value, (("n", b"%d" % number),)))
            number += 1
        await durable(records)
        say(name, records)


def say(name: str, records: Sequence[Record | StoredRecord]) -> None:
    lines = [f"{name} {one.key.decode()} {one.headers[0][1].decode()}\n" for one in records]
    os.write(1, "".join(lines).encode())


async def keep_house(path: Path) -> None:
    """Compact, as if all records were two days old."""
    while True:
        later_ms = now_ms() + 2 * 86_400_000
        await asyncio.to_thread(tidy, journal_folder(path), max_bytes=10**12, now_ms=later_ms)
        await asyncio.sleep(0.01)


async def drain(spool: Spool, name: str) -> None:
    """Take off a part of what comes, as if Kafka had it."""
    while True:
        found = await spool.read(name, 100_000)
        if found:
            say(f"-{name}", found)
            spool.drained(name, found[-1].position, len(found))
        await spool.tidy(name, empty=found == [])
        await asyncio.sleep(random.uniform(0.0, 0.1))


async def write_journal(path: Path, round_: str) -> None:
    async with (
        open_journal(path, segment_bytes=SEGMENT_BYTES) as publisher,
        asyncio.TaskGroup() as tasks,
    ):
        tasks.create_task(keep_house(path))
        for source in range(16):
            tasks.create_task(
                publish(
                    lambda records: publisher.publish(records).wait(math.inf), f"{round_}.{source}"
                )
            )


async def write_spool(path: Path, round_: str) -> None:
    # A mutant loses little of small segments, and less of what is drained at once.
    drains = not os.environ.get("POWERCUT_MUTANT")
    segment_bytes = SEGMENT_BYTES // 4 if drains else SEGMENT_BYTES
    spool = Spool(spool_folder(path, "receiver"), 10**12, segment_bytes)
    for name in TOPICS:
        spool.open(name)

    async def durable(records: list[Record]) -> None:
        await spool.publish(records, lambda _: None).wait(math.inf)

    async with asyncio.TaskGroup() as tasks:
        for name in TOPICS if drains else ():
            tasks.create_task(drain(spool, name))
        for source in range(16):
            tasks.create_task(publish(durable, f"{round_}.{source}"))


STORES = {"journal": write_journal, "spool": write_spool}


def mutate(mutant: str) -> None:
    """Do what the journal must never do."""
    open_segment = Segment.__init__

    def open_carelessly(self: Segment, path: Path) -> None:
        open_segment(self, path)
        self._db.pragma("synchronous", mutant)

    def forget_names(folder: Path) -> None:
        pass

    match mutant:
        case "off" | "normal":
            Segment.__init__ = open_carelessly  # type: ignore[method-assign]
        case "names":
            for module in (segments, topic):
                vars(module)["sync_folder"] = forget_names
        case "":
            segments._CHECKPOINT_PAGES = CHECKPOINT_PAGES
            spool_module._REMEMBER_S = 0.05
            spool_module._KEEP_BYTES = 100_000
        case _:
            sys.exit(f"no mutant {mutant!r}")


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())  # stdout is for the report
    mutate(os.environ.get("POWERCUT_MUTANT", ""))
    asyncio.run(STORES[sys.argv[3]](Path(sys.argv[1]), sys.argv[2]))

"""Publishes for ever, and says what is durable: the process that the power is cut from.

Usage: writer.py FOLDER ROUND. ``POWERCUT_MUTANT`` names what is to be done wrong.
"""

import asyncio
import math
import os
import random
import sys
from pathlib import Path

import structlog

from ingest.eventlog import segments, topic
from ingest.eventlog.journal import JournalPublisher, journal_folder, open_journal
from ingest.eventlog.log import Record
from ingest.eventlog.retention import tidy
from ingest.eventlog.segments import Segment
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


async def publish(publisher: JournalPublisher, source: str) -> None:
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
        await publisher.publish(records).wait(math.inf)
        lines = [f"{name} {one.key.decode()} {one.headers[0][1].decode()}\n" for one in records]
        os.write(1, "".join(lines).encode())


async def keep_house(path: Path) -> None:
    """Compact, as if all records were two days old."""
    while True:
        later_ms = now_ms() + 2 * 86_400_000
        await asyncio.to_thread(tidy, journal_folder(path), max_bytes=10**12, now_ms=later_ms)
        await asyncio.sleep(0.01)


async def main(path: Path, round_: str) -> None:
    async with (
        open_journal(path, segment_bytes=SEGMENT_BYTES) as publisher,
        asyncio.TaskGroup() as tasks,
    ):
        tasks.create_task(keep_house(path))
        for source in range(16):
            tasks.create_task(publish(publisher, f"{round_}.{source}"))


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
        case _:
            sys.exit(f"no mutant {mutant!r}")


if __name__ == "__main__":
    structlog.configure(logger_factory=structlog.ReturnLoggerFactory())  # stdout is for the report
    mutate(os.environ.get("POWERCUT_MUTANT", ""))
    asyncio.run(main(Path(sys.argv[1]), sys.argv[2]))

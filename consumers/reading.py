"""Reading the stream once, up to where it ends now: for commands that answer a question."""

import asyncio
from collections.abc import AsyncIterator, Sequence

from ingest.eventlog.kinds import open_reader
from ingest.eventlog.log import Keys, Start, StoredRecord
from ingest.settings import Settings


async def read_once(
    settings: Settings,
    topics: Sequence[str],
    start: Start = "earliest",
    keys: Keys | None = None,
) -> AsyncIterator[StoredRecord]:
    """Everything on these topics from ``start`` to the end; with ``keys``, of these keys alone."""
    async with open_reader(settings, topics, start=start, keys=keys) as reader:
        while True:
            found = await reader.fetch(wait_s=0.1)
            for stored in found:
                if keys is None or stored.key in keys[stored.topic]:
                    yield stored
            if not found and await reader.caught_up():
                return
            await asyncio.sleep(0)

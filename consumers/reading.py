"""Reading the stream once, up to where it ends now: for commands that answer a question."""

import asyncio
from collections.abc import AsyncIterator, Sequence

from ingest.eventlog.kinds import open_reader
from ingest.eventlog.log import Start, StoredRecord
from ingest.settings import Settings


async def read_once(
    settings: Settings, topics: Sequence[str], start: Start = "earliest"
) -> AsyncIterator[StoredRecord]:
    """Everything on these topics from ``start`` to the end."""
    async with open_reader(settings, topics, start=start) as reader:
        while True:
            found = await reader.fetch(wait_s=0.1)
            for stored in found:
                yield stored
            if not found and await reader.caught_up():
                return
            await asyncio.sleep(0)

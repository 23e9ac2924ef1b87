"""Where a subscriber puts what it has to say itself: rejects, and gaps."""

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack

from ingest.errors import PublishError
from ingest.eventlog.journal import open_journal
from ingest.eventlog.log import Record
from ingest.settings import Settings

#: A record that is not durable by then is given up, in seconds; it may still turn up.
_PUT_S = 10.0

_Put = Callable[[Record], Awaitable[None]]


class Outlet:
    """A way to the event log without a spool: who cannot write there cannot read there either.

    Opened when there is something to put.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._stack = AsyncExitStack()
        self._turn = asyncio.Lock()
        self._put: _Put | None = None
        #: What Kafka says is in the way.
        self._trouble = ""

    async def put(self, record: Record) -> None:
        """Return once it is durable. Raises PublishError."""
        async with self._turn:
            self._trouble = ""
            try:
                async with asyncio.timeout(_PUT_S):
                    if self._put is None:
                        is_journal = self._settings.eventlog.kind == "journal"
                        self._put = await (self._journal() if is_journal else self._kafka())
                    await self._put(record)
            except BaseException as error:
                # Also if it was cancelled: the producer cannot know whether Kafka has this one, and
                # Kafka would take the next one for the same.
                await self.close()
                if isinstance(error, PublishError) or not isinstance(error, Exception):
                    raise
                raise PublishError(self._trouble or "log_away", type(error).__name__) from None

    async def close(self) -> None:
        self._put = None
        await self._stack.aclose()

    async def _journal(self) -> _Put:
        journal = await self._stack.enter_async_context(open_journal(self._settings.eventlog.path))

        async def put(record: Record) -> None:
            await journal.publish([record]).wait(asyncio.get_running_loop().time() + _PUT_S)

        return put

    async def _kafka(self) -> _Put:
        from ingest.eventlog.cluster import client_options  # noqa: PLC0415
        from ingest.eventlog.producer import Producer  # noqa: PLC0415

        prefix = self._settings.kafka.topic_prefix
        producer = Producer(client_options(self._settings.kafka))
        self._stack.push_async_callback(producer.close)
        await producer.start()

        async def put(record: Record) -> None:
            for _, reason in await producer.send(prefix + record.topic, [record], self._note):
                raise PublishError(reason)

        return put

    def _note(self, trouble: str) -> None:
        self._trouble = trouble

"""A lane: the FIFO of one topic, emptied by group commit.

One task takes all that is there, commits it as one group, and then takes what has come meanwhile.
While one group is being committed the next one forms: batches grow with the load, and no timer
makes anybody wait. At most one group is in flight, so the order on the log is that of the calls.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from ingest.errors import PublishError
from ingest.eventlog.log import Record

#: What one commit takes at most.
GROUP_MAX_RECORDS = 1000
GROUP_MAX_BYTES = 1024 * 1024

#: What a record costs beside its key and value, roughly.
_RECORD_OVERHEAD = 300

Commit = Callable[[Sequence[Record]], Awaitable[str]]
"""Makes records durable, all or none, and says where; raises PublishError."""


class Room:
    """How much may wait, in bytes, over all lanes of a publisher."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes = max_bytes
        self.used = 0

    def take(self, size: int) -> None:
        """Raises PublishError with reason ``overload`` when it is full."""
        if self.used + size > self.max_bytes:
            raise PublishError("overload")
        self.used += size

    def give(self, size: int) -> None:
        self.used -= size


class Group:
    """Records that become durable together, and the receipt of everybody who waits for them."""

    __slots__ = ("_answer", "_error", "_loop", "_timer", "_where", "durable", "records", "size")

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.records: list[Record] = []
        self.size = 0
        self.durable: bool | None = None
        self._loop = loop
        self._answer: _Answer | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._where = ""
        self._error: PublishError | None = None

    async def wait(self, deadline: float) -> str:
        if self.durable is None:
            # One future and one timer serve all who wait: they came within one commit's time.
            if self._answer is None or self._answer.done():
                self._answer = _Answer(loop=self._loop)
                self._timer = self._loop.call_at(deadline, self._expire)
            return await self._answer
        if self._error is not None:
            raise self._error
        return self._where

    def settle(self, where: str, error: PublishError | None = None) -> None:
        """The commit has ended."""
        self.durable = error is None
        self._where, self._error = where, error
        self.records = []  # receipts are remembered longer than records
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._answer is not None and not self._answer.done():
            if error is None:
                self._answer.set_result(where)
            else:
                self._fail(self._answer, error)
        self._answer = None

    def _expire(self) -> None:
        if self._answer is not None and not self._answer.done():
            self._fail(self._answer, PublishError("timeout"))

    @staticmethod
    def _fail(answer: "_Answer", error: PublishError) -> None:
        answer.set_exception(error)
        answer.exception()  # everybody may have gone: then nobody is left to retrieve it


class _Answer(asyncio.Future[str]):
    """Shared by many, so that one who is cancelled must not cancel it for the others."""

    def cancel(self, msg: object = None) -> bool:  # noqa: ARG002 - the base class has it
        return False


class Lane:
    """The way of one topic's records into the log."""

    def __init__(self, commit: Commit, room: Room) -> None:
        self._commit = commit
        self._room = room
        self._loop = asyncio.get_running_loop()
        self._groups: deque[Group] = deque()
        self._task: asyncio.Task[None] | None = None

    def append(self, records: Sequence[Record]) -> Group:
        """Put records at the end. They are committed together; the group is their receipt."""
        size = 0
        for record in records:
            size += len(record.key) + len(record.value or b"") + _RECORD_OVERHEAD
        self._room.take(size)
        groups = self._groups
        if (
            groups
            and len(groups[-1].records) < GROUP_MAX_RECORDS
            and groups[-1].size + size <= GROUP_MAX_BYTES
        ):
            group = groups[-1]
        else:
            group = Group(self._loop)
            groups.append(group)
        group.records += records
        group.size += size
        if self._task is None:
            self._task = self._loop.create_task(self._run())
        return group

    async def drained(self) -> None:
        """Return once everything that was appended has been committed or has failed."""
        while self._task is not None:
            await asyncio.shield(self._task)

    async def _run(self) -> None:
        # No `await` between finding the FIFO empty and clearing `_task`: nothing can slip between.
        while self._groups:
            group = self._groups.popleft()
            try:
                group.settle(await self._commit(group.records))
            except PublishError as error:
                group.settle("", error)
            except BaseException:
                group.settle("", PublishError("internal"))
                self._task = None
                raise
            finally:
                self._room.give(group.size)
        self._task = None

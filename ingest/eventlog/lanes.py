"""A lane: the FIFO of one topic, emptied by group commit.

One task takes all that is there, commits it as one group, and then takes what has come meanwhile.
While one group is being committed the next one forms: batches grow with the load, and no timer
makes anybody wait. At most one group is in flight, so the order on the log is that of the calls.
"""

import asyncio
import math
from collections import deque
from collections.abc import Awaitable, Callable, Sequence

from ingest.errors import PublishError
from ingest.eventlog.log import Receipt, Record, Settled

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

    __slots__ = (
        "_error",
        "_expires",
        "_loop",
        "_timer",
        "_waiting",
        "durable",
        "records",
        "since",
        "size",
        "where",
    )

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.records: list[Record] = []
        self.size = 0
        #: When its first record came, by the loop's clock.
        self.since = loop.time()
        self.durable: bool | None = None
        self.where = ""
        self._loop = loop
        self._error: PublishError | None = None
        self._waiting: list[tuple[float, Settled]] = []
        self._timer: asyncio.TimerHandle | None = None
        self._expires = math.inf

    def then(self, deadline: float, settled: Settled) -> None:
        if self.durable is not None:
            settled(self._error)
            return
        self._waiting.append((deadline, settled))
        if deadline < self._expires:
            # One timer serves all who wait: it is set to the first of their deadlines.
            self._set_timer(deadline)

    async def wait(self, deadline: float) -> str:
        return await wait_for(self, deadline)

    def settle(self, where: str, error: PublishError | None = None) -> None:
        """The commit has ended."""
        self.durable = error is None
        self.where, self._error = where, error
        self.records = []  # receipts are remembered longer than records
        waiting, self._waiting = self._waiting, []
        self._set_timer(math.inf)
        self._tell(waiting, error)

    def _expire(self) -> None:
        due = [one for one in self._waiting if one[0] <= self._expires]
        self._waiting = [one for one in self._waiting if one[0] > self._expires]
        self._set_timer(min((deadline for deadline, _ in self._waiting), default=math.inf))
        self._tell(due, PublishError("timeout"))

    def _set_timer(self, deadline: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._expires = deadline
        self._timer = None if deadline == math.inf else self._loop.call_at(deadline, self._expire)

    def _tell(self, waiting: Sequence[tuple[float, Settled]], error: PublishError | None) -> None:
        for _, settled in waiting:
            try:
                settled(error)
            except Exception as fault:  # noqa: BLE001 - the others must be told all the same
                self._loop.call_exception_handler({"message": "receipt", "exception": fault})


async def wait_for(receipt: Receipt, deadline: float) -> str:
    """`Receipt.wait`, for whoever has a ``then``."""
    # A future of one's own: who is cancelled must not cancel it for the others.
    done: asyncio.Future[PublishError | None] = asyncio.get_running_loop().create_future()

    def settled(error: PublishError | None) -> None:
        if not done.done():
            done.set_result(error)

    receipt.then(deadline, settled)
    error = await done
    if error is not None:
        # A new one for each: a traceback would keep alive who waited.
        raise PublishError(error.reason, error.detail)
    return receipt.where


def size_of(records: Sequence[Record]) -> int:
    """What records take up while they wait, roughly, in bytes."""
    size = 0
    for record in records:
        size += len(record.key) + len(record.value or b"") + _RECORD_OVERHEAD
    return size


def add_to(
    groups: deque[Group], records: Sequence[Record], size: int, loop: asyncio.AbstractEventLoop
) -> Group:
    """Put records at the end of a FIFO of groups: into its last one, or a new one behind it."""
    if (
        groups
        and len(groups[-1].records) + len(records) <= GROUP_MAX_RECORDS
        and groups[-1].size + size <= GROUP_MAX_BYTES
    ):
        group = groups[-1]
    else:
        group = Group(loop)
        groups.append(group)
    group.records += records
    group.size += size
    return group


class Lane:
    """The way of one topic's records into the journal."""

    def __init__(self, commit: Commit, room: Room) -> None:
        self._commit = commit
        self._room = room
        self._loop = asyncio.get_running_loop()
        self._groups: deque[Group] = deque()
        self._task: asyncio.Task[None] | None = None

    def append(self, records: Sequence[Record]) -> Group:
        """Put records at the end. They are committed together; the group is their receipt."""
        size = size_of(records)
        self._room.take(size)
        group = add_to(self._groups, records, size, self._loop)
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
                # A new one: the traceback of this one holds the records.
                group.settle("", PublishError(error.reason, error.detail))
            except Exception as fault:  # noqa: BLE001 - a fault of ours must not end the lane
                group.settle("", PublishError("internal"))
                self._loop.call_exception_handler({"message": "commit", "exception": fault})
            finally:
                self._room.give(group.size)
        self._task = None

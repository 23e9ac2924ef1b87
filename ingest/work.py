"""Sharing work: each connection has one owner among the processes of a role, the others stand by.

On Kafka the owner is the member of the role's consumer group to which the connection's partition
of the checkpoints topic is assigned; on the journal it is the process that holds the role's lock.
What a role must remember is a checkpoint: the last record of its key on that topic.
"""

import asyncio
import itertools
import random
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import suppress
from typing import Protocol

import structlog

from ingest.checkpoints import TOPIC, Checkpoint, Checkpoints, save_checkpoint
from ingest.errors import ConfigError, PublishError
from ingest.eventlog.kinds import make_member, open_reader
from ingest.eventlog.log import StoredRecord
from ingest.eventlog.ownership import next_owner, one_of_several
from ingest.metrics import OWNED
from ingest.service import Service
from schemas.times import now_ms

__all__ = ["Checkpoint", "Job", "Run", "save_patiently", "share_until_stopping", "share_work"]

log = structlog.get_logger()

#: A cancelled ``run`` may take so long to end what it has begun, in seconds.
GRACE_S = 5.0

#: Who is not heard of for so long has no work any more, where Kafka says who has, in seconds.
SESSION_S = 30.0

#: From one failure of ``run`` to its next try, in seconds; doubled each time.
_FIRST_PAUSE_S, _LAST_PAUSE_S = 1.0, 60.0

#: From one try to save a checkpoint to the next, in seconds.
_SAVE_PAUSES_S = (0.2, 0.5, 1.0, 2.0, 5.0)

#: From one failure of the group to its next try, at most.
_GROUP_PAUSE_S = 10.0


class Job(Protocol):
    """One connection while it is ours."""

    connection: str

    def checkpoint(self, source: str) -> Checkpoint | None:
        """The latest of this connection and source, be it from an earlier owner."""
        ...

    async def save(self, source: str, checkpoint: Checkpoint) -> None:
        """Remember it; return once it is durable.

        Raises PublishError; with reason ``not_owner`` once the connection is somebody else's.
        """
        ...


Run = Callable[[Job], Awaitable[None]]
"""Works on one connection until it is cancelled, which may be at any await.

It is cancelled once, and then has 5 s to end: whoever has a page half stored finishes it in an
``except asyncio.CancelledError`` or a ``finally`` (best by shielding the page's task and awaiting
it there), begins no other and lets the cancellation go on. Until it has ended, and for no more than
those 5 s, the connection stays ours and `Job.save` works. Then it is cancelled again.

What it raises is logged, and it is called again after a pause, of a second at first and of a
minute at most. If it returns it is done: it is called again only by the next owner.
"""


async def share_work(
    service: Service,
    role: str,
    connections: Sequence[str],
    run: Run,
    *,
    wait_s: float = 1.0,
    grace_s: float = GRACE_S,
    session_s: float = SESSION_S,
    goes_on: bool = False,
) -> None:
    """Run ``run`` for each of ``connections`` while this process owns it, until it is cancelled.

    A second process of the role stands by, and takes over within 60 s of the first one's end.
    ``role``: ``poll``, ``listen``, ``reconcile``; names the group and the lock. On the journal
    ``wait_s`` passes between two looks at the lock. On Kafka the work of an owner who is not heard
    of for ``session_s`` goes to others, also after it has ended: one that starts again before that
    goes on where it was. While Kafka is away, which `Service.degraded` tells, nobody is sure of
    what is his: the work stops twice the grace before the session is over, and goes on when Kafka
    is back. With ``goes_on`` it does not stop, but where another one has taken over meanwhile and
    Kafka says so: for work that two may do at once, and that must not stand still.
    Raises ConfigError if the data directory cannot be written.
    """
    works = _Works(service, role, run, grace_s)
    if service.settings.eventlog.kind == "journal":
        await _share_by_lock(service, role, connections, works, wait_s)
    else:
        await _share_by_group(service, role, connections, works, session_s, goes_on=goes_on)


async def share_until_stopping(
    service: Service, role: str, work: str, connections: Sequence[str], run: Run
) -> None:
    """`share_work` of ``work`` until the service is stopping; ``role``: what has started then."""
    sharing = asyncio.create_task(share_work(service, work, connections, run))
    try:
        service.started(role)
        stopping = asyncio.create_task(service.stopping.wait())
        await asyncio.wait([sharing, stopping], return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
    finally:
        sharing.cancel()
        await asyncio.wait([sharing])
    with suppress(asyncio.CancelledError):
        sharing.result()


async def save_patiently(job: Job, source: str, checkpoint: Checkpoint) -> None:
    """Save it however long the event log is away.

    Raises PublishError ``not_owner`` once the connection is somebody else's.
    """
    for pause_s in itertools.chain(_SAVE_PAUSES_S, itertools.repeat(_SAVE_PAUSES_S[-1])):
        try:
            await job.save(source, checkpoint)
        except PublishError as error:
            if error.reason == "not_owner":
                raise
            await asyncio.sleep(pause_s)
        else:
            return


async def _share_by_lock(
    service: Service, role: str, connections: Sequence[str], works: "_Works", wait_s: float
) -> None:
    def waiting() -> None:
        log.info("standing_by", role=role)

    async with next_owner(service.settings.eventlog.path, role, waiting, wait_s=wait_s):
        for pause_s in _pauses():
            try:
                async with open_reader(service.settings, [TOPIC]) as reader:
                    while not await reader.caught_up():
                        works.read(await reader.fetch(wait_s=0.1))
                    works.take(connections)
                    while True:
                        works.read(await reader.fetch(wait_s=1.0))
            except Exception as error:
                log.error("unexpected_error", role=role, exc_info=error)
            finally:
                await works.leave(connections)
            await asyncio.sleep(pause_s)


async def _share_by_group(
    service: Service,
    role: str,
    connections: Sequence[str],
    works: "_Works",
    session_s: float,
    *,
    goes_on: bool,
) -> None:
    with one_of_several(service.settings.eventlog.path, role) as number:
        member = make_member(
            service.settings,
            works,
            topic=TOPIC,
            keys=connections,
            group=role,
            number=number,
            session_s=session_s,
            leave_s=works.leave_s,
            goes_on=goes_on,
        )

        def troubles() -> Sequence[str]:
            return [f"ownership_unknown:{role}"] if member.lost else []

        service.troubles.append(troubles)
        told = None
        pauses = _pauses()
        try:
            while True:
                try:
                    await member.run()
                except Exception as error:  # noqa: BLE001 - whatever it is, Kafka comes back
                    if member.sure:
                        told, pauses = None, _pauses()
                    if (said := _in_a_word(error)) != told:
                        log.warning("ownership_unknown", role=role, error=said)
                        told = said
                await asyncio.sleep(min(next(pauses), _GROUP_PAUSE_S))
        finally:
            service.troubles.remove(troubles)


def _in_a_word(error: Exception) -> str:
    if isinstance(error, ExceptionGroup):
        return _in_a_word(error.exceptions[0])
    return str(error) if isinstance(error, ConfigError) else type(error).__name__


class _Job:
    """The job of one owner."""

    def __init__(self, service: Service, connection: str, checkpoints: Checkpoints) -> None:
        self.connection = connection
        #: Greater than that of every owner before us.
        self.generation = checkpoints.generation(connection) + 1
        self.claimed = False
        self._ended = False
        self._checkpoints = checkpoints
        self._service = service

    def checkpoint(self, source: str) -> Checkpoint | None:
        return self._checkpoints.found.get((self.connection, source))

    async def save(self, source: str, checkpoint: Checkpoint) -> None:
        if self._ended:
            raise PublishError("not_owner")
        self._checkpoints.ours[self.connection, source] = self.generation
        saved = await save_checkpoint(
            self._service.eventlog, self.connection, source, checkpoint, self.generation
        )
        self._checkpoints.put(self.connection, source, saved)

    async def claim(self, role: str) -> None:
        """Tell that the connection is ours. Raises PublishError.

        Before anything is done: an owner who saves nothing has a generation of its own, too.
        """
        await self.save(f"{role}_owner", {"since_ms": now_ms()})
        self.claimed = True

    def end(self) -> None:
        self._ended = True
        for place in [each for each in self._checkpoints.ours if each[0] == self.connection]:
            del self._checkpoints.ours[place]


class _Works:
    """The connections that this process works on, each in a task of its own."""

    def __init__(self, service: Service, role: str, run: Run, grace_s: float) -> None:
        self._service = service
        self._role = role
        self._run = run
        self._grace_s = grace_s
        #: What `leave` takes at most.
        self.leave_s = 2 * grace_s
        self._checkpoints = Checkpoints()
        self._held: dict[str, tuple[_Job, asyncio.Task[None]]] = {}

    def read(self, records: Sequence[StoredRecord]) -> None:
        """Take in what stands on the checkpoints topic."""
        self._checkpoints.read(records)

    def take(self, connections: Collection[str]) -> None:
        """These are ours from now on; all of their checkpoints have been read."""
        for connection in connections:
            job = _Job(self._service, connection, self._checkpoints)
            self._held[connection] = job, asyncio.create_task(self._work(job))
            OWNED.labels(self._role, connection).set(1)

    async def leave(self, connections: Collection[str]) -> None:
        """Return once nothing works on these any more, after twice the grace at the latest."""
        held = [self._held[name] for name in connections if name in self._held]
        left = {task for _, task in held}
        for _ in range(2):
            for task in left:
                task.cancel()
            if left:
                _, left = await asyncio.wait(left, timeout=self._grace_s)
        for job, task in held:
            job.end()
            self._held.pop(job.connection, None)  # not before: who is cancelled here comes again
            OWNED.labels(self._role, job.connection).set(0)
            log.info(
                "connection_left",
                role=self._role,
                connection=job.connection,
                ended=task not in left,
            )

    async def _work(self, job: _Job) -> None:
        for pause_s in _pauses():
            try:
                if not job.claimed:
                    await job.claim(self._role)
                    log.info(
                        "connection_taken",
                        role=self._role,
                        connection=job.connection,
                        generation=job.generation,
                    )
                await self._run(job)
            except asyncio.CancelledError as error:
                if _is_cancelled():
                    raise
                self._tell(job, error)  # something within was, and nobody has caught it
            except Exception as error:  # noqa: BLE001 - the other connections go on
                self._tell(job, error)
                if _is_cancelled():
                    return  # it failed at its end: that is no beginning
            else:
                return
            await asyncio.sleep(pause_s)

    def _tell(self, job: _Job, error: BaseException) -> None:
        log.error("unexpected_error", role=self._role, connection=job.connection, exc_info=error)


def _pauses() -> Iterator[float]:
    pause_s = _FIRST_PAUSE_S
    while True:
        yield pause_s * random.uniform(0.5, 1.0)  # noqa: S311 - no secret
        pause_s = min(2 * pause_s, _LAST_PAUSE_S)


def _is_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0

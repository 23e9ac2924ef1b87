"""Sharing work: each connection has one owner among the processes of a role, the others stand by.

On Kafka the owner is the member of the role's consumer group to which the connection's partition
of the checkpoints topic is assigned; on the journal it is the process that holds the role's lock.
What a role must remember is a checkpoint: the last record of its key on that topic.
"""

from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from ingest.service import Service

Checkpoint = Mapping[str, Any]
"""What a source has come to: JSON. ``generation`` and ``owner`` are added when it is saved."""


class Job(Protocol):
    """One connection while it is ours."""

    connection: str

    def checkpoint(self, source: str) -> Checkpoint | None:
        """The latest of this connection and source, be it from an earlier owner."""
        ...

    async def save(self, source: str, checkpoint: Checkpoint) -> None:
        """Remember it; return once it is durable. Raises PublishError."""
        ...


Run = Callable[[Job], Awaitable[None]]
"""Works on one connection until it is cancelled, which may be at any await."""


async def share_work(
    service: Service, role: str, connections: Sequence[str], run: Run, *, wait_s: float = 1.0
) -> None:
    """Run ``run`` for each of ``connections`` while this process owns it, until it is cancelled.

    A second process of the role stands by, and takes over within 60 s of the first one's end.
    """
    raise NotImplementedError

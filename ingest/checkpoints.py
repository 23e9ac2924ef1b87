"""Checkpoints: how far each source of a connection has come, and who has written it.

A checkpoint is a record on the topic ``checkpoints``, under ``<connection>/<source>``; its value is
JSON. Who has lost a connection without knowing it may still write one: so each carries the
generation of its writer, and readers take the greatest generation, of these the last record.
"""

import asyncio
import os
import socket
from collections.abc import Iterable, Mapping
from typing import Any

import orjson
import structlog

from ingest.eventlog.kinds import open_reader
from ingest.eventlog.log import Publisher, Record, StoredRecord
from ingest.settings import Settings

log = structlog.get_logger()

TOPIC = "checkpoints"

#: A checkpoint that is not durable by then is given up, in seconds; Kafka's spool is far quicker.
SAVE_S = 30.0

Checkpoint = Mapping[str, Any]
"""What a source has come to: JSON. ``generation`` and ``owner`` are added when it is saved."""


class Checkpoints:
    """Of each connection and source the checkpoint that counts, as far as the topic was read."""

    def __init__(self) -> None:
        self.found: dict[tuple[str, str], Checkpoint] = {}
        #: What we write ourselves, and in which generation: reading tells us nothing new of it,
        #: and may tell what is older than what we know.
        self.ours: dict[tuple[str, str], int] = {}

    def read(self, records: Iterable[StoredRecord]) -> None:
        """Take in records as they stand on the log; those of each key in order."""
        for record in records:
            try:
                connection, source = record.key.decode().split("/", 1)
                checkpoint = orjson.loads(record.value or b"")
                generation = checkpoint["generation"]
                if type(generation) is not int:
                    raise TypeError
            except (ValueError, TypeError, KeyError):  # not written by us
                log.warning("checkpoint_unreadable", position=record.position)
                continue
            if generation != self.ours.get((connection, source)):
                self.put(connection, source, checkpoint)

    def put(self, connection: str, source: str, checkpoint: Checkpoint) -> None:
        """Take in one that was written after those that are known."""
        known = self.found.get((connection, source))
        if known is None or checkpoint["generation"] >= known["generation"]:
            self.found[connection, source] = checkpoint

    def generation(self, connection: str) -> int:
        """The greatest that anybody has written for a connection; 0 if nobody has."""
        return max(
            (at["generation"] for (name, _), at in self.found.items() if name == connection),
            default=0,
        )


async def save_checkpoint(
    publisher: Publisher, connection: str, source: str, checkpoint: Checkpoint, generation: int
) -> Checkpoint:
    """Put a checkpoint on the log; as it stands there, once it is durable. Raises PublishError."""
    whole = {**checkpoint, "generation": generation, "owner": owner()}
    record = Record(
        TOPIC,
        f"{connection}/{source}".encode(),
        orjson.dumps(whole),
        (("content-type", b"application/json"),),
    )
    deadline = asyncio.get_running_loop().time() + SAVE_S
    await publisher.publish([record]).wait(deadline)
    return whole


async def read_checkpoints(settings: Settings) -> Mapping[tuple[str, str], Checkpoint]:
    """(connection, source) → its checkpoint, as they are now.

    Raises ConfigError if the event log cannot be reached, or has no such topic.
    """
    checkpoints = Checkpoints()
    async with open_reader(settings, [TOPIC]) as reader:
        while not await reader.caught_up():
            checkpoints.read(await reader.fetch(wait_s=0.5))
    return checkpoints.found


def owner() -> str:
    """What we sign with, for people to find us: host and process."""
    return f"{socket.gethostname()}:{os.getpid()}"

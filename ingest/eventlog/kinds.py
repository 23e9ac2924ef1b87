"""The event log that the settings name."""

import asyncio
import os
import re
import socket
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ingest.eventlog.journal import open_journal
from ingest.eventlog.journal import open_reader as open_journal_reader
from ingest.eventlog.log import (
    EventLog,
    GroupReader,
    Keys,
    Place,
    Reader,
    Start,
    StoredRecord,
    Watcher,
)
from ingest.settings import Settings
from schemas.event import digest_of_bytes

if TYPE_CHECKING:
    from ingest.eventlog.kafka import KafkaPublisher
    from ingest.eventlog.membership import Duty, Member

# Kafka's client is loaded where it is needed: it takes a tenth of a second.


@asynccontextmanager
async def open_log(
    settings: Settings, role: str, *, also: Sequence[str] = ()
) -> AsyncIterator[EventLog]:
    """The way in; everything that was handed over is durable when it closes.

    ``role``: whose it is; each has a spool of its own. ``also``: topics that are written beside
    `TOPICS`, such as a group's rejects.
    """
    if settings.eventlog.kind == "journal":
        async with open_journal(settings.eventlog.path) as journal:
            yield journal
        return
    from ingest.eventlog.spool import spool_folder  # noqa: PLC0415

    async with open_spool_log(
        settings, spool_folder(settings.eventlog.path, role), also=also
    ) as kafka:
        yield kafka


def open_spool_log(
    settings: Settings, folder: Path, *, also: Sequence[str] = ()
) -> "AbstractAsyncContextManager[KafkaPublisher]":
    """Kafka with the spool in ``folder``, which is drained while it is open."""
    from ingest.eventlog.cluster import client_options, weak_topics  # noqa: PLC0415
    from ingest.eventlog.kafka import open_kafka  # noqa: PLC0415

    kafka = settings.kafka
    return open_kafka(
        folder,
        options=partial(client_options, kafka),
        find_weak_topics=partial(weak_topics, kafka),
        prefix=kafka.topic_prefix,
        publish_timeout_s=kafka.publish_timeout_s,
        spool_max_bytes=settings.eventlog.spool_max_bytes,
        also=also,
    )


def open_reader(
    settings: Settings,
    topics: Sequence[str],
    *,
    group: str | None = None,
    start: Start = "earliest",
    keys: Keys | None = None,
) -> AbstractAsyncContextManager[Reader]:
    """Read topics. A group goes on behind what it has committed; ``start`` is for the rest.

    ``keys``: only what can hold records of these is read; others may be handed out as well. Not
    for groups.
    """
    if settings.eventlog.kind == "journal":
        return open_journal_reader(
            settings.eventlog.path, topics, group=group, start=start, keys=keys
        )
    from ingest.eventlog.cluster import client_options  # noqa: PLC0415
    from ingest.eventlog.kafka_reader import open_kafka_reader  # noqa: PLC0415

    kafka = settings.kafka
    return open_kafka_reader(
        client_options(kafka), kafka.topic_prefix, topics, group=group, start=start, keys=keys
    )


def _kafka_error() -> type[Exception]:
    from aiokafka.errors import KafkaError  # noqa: PLC0415

    error: type[Exception] = KafkaError
    return error


async def read_once(
    settings: Settings,
    topics: Sequence[str],
    start: Start = "earliest",
    keys: Keys | None = None,
    *,
    until_ms: int | None = None,
) -> AsyncIterator[StoredRecord]:
    """Everything on these topics from ``start`` to where they end now.

    With ``keys``, of these keys alone. ``until_ms``: not all that was written later is read,
    milliseconds since 1970. Raises ConfigError if the cluster cannot be reached, or is not there to
    the end.
    """
    #: Partitions that have come to what was written later.
    over: set[Place] = set()
    async with open_reader(settings, topics, start=start, keys=keys) as reader:
        while True:
            try:
                found = await reader.fetch(wait_s=0.1)
                behind = () if found else await reader.behind()
            except _kafka_error() as error:
                from ingest.eventlog.kafka_reader import unreadable  # noqa: PLC0415

                raise unreadable(settings.kafka.servers, error) from None
            for stored in found:
                if keys is None or stored.key in keys[stored.topic]:
                    yield stored
            if until_ms is not None:
                # One that was early with its clock ends nothing.
                over |= {(s.topic, s.partition) for s in found if s.written_ms > until_ms}
                over -= {(s.topic, s.partition) for s in found if s.written_ms <= until_ms}
                reader.hold(over)
            if not found and over.issuperset(behind):
                return
            await asyncio.sleep(0)


def open_group_reader(
    settings: Settings,
    topics: Sequence[str],
    watcher: Watcher,
    *,
    group: str,
    start: Literal["earliest", "latest"],
) -> AbstractAsyncContextManager[GroupReader]:
    """Read topics as one of a group that goes on behind what it has committed.

    ``start``: where nothing was; once it has begun there, it stays with that.
    """
    if settings.eventlog.kind == "journal":
        return open_journal_reader(
            settings.eventlog.path, topics, group=group, start=start, watcher=watcher
        )
    from ingest.eventlog.cluster import client_options  # noqa: PLC0415
    from ingest.eventlog.kafka_reader import open_kafka_reader  # noqa: PLC0415

    kafka = settings.kafka
    return open_kafka_reader(
        client_options(kafka),
        kafka.topic_prefix,
        topics,
        group=group,
        start=start,
        watcher=watcher,
    )


def make_member(
    settings: Settings,
    duty: "Duty",
    *,
    topic: str,
    keys: Sequence[str],
    group: str,
    number: int,
    session_s: float,
    leave_s: float,
    goes_on: bool,
) -> "Member":
    """A member of a group on Kafka; ``number``: which one of this data directory."""
    from ingest.eventlog.cluster import client_options  # noqa: PLC0415
    from ingest.eventlog.membership import Member  # noqa: PLC0415

    # Host and directory, so that a restart is no other member; the number, so that two are two.
    place = digest_of_bytes(os.fsencode(settings.eventlog.path.resolve()))
    host = re.sub(r"[^a-zA-Z0-9._-]", "-", socket.gethostname())
    return Member(
        partial(client_options, settings.kafka),
        duty,
        prefix=settings.kafka.topic_prefix,
        topic=topic,
        keys=keys,
        group=group,
        name=f"{host}-{place}-{number}",
        session_s=session_s,
        leave_s=leave_s,
        goes_on=goes_on,
    )

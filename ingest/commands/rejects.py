"""`dialstream rejects`: what could not be read, why, and what today's code makes of it.

A redrive reads the topic twice: first what there is, then the bytes of what is wanted, and
publishes these as it meets them, so in the order in which they came. Killed and run again, it
repeats at most what was under way; that has the same ids.
"""

import asyncio
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime

import orjson
import pybase64
from msgspec.structs import asdict
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ingest.commands.reveal import plain, print_fields, readable
from ingest.commands.work import (
    AGAIN_S,
    BATCH,
    BATCH_BYTES,
    PUBLISH_S,
    Bar,
    carry_out,
    print_rest,
)
from ingest.errors import PublishError, UnreadableError
from ingest.eventlog.kinds import open_log, read_once
from ingest.eventlog.log import Publisher, Record, StoredRecord, records_of
from ingest.logs import quietly
from ingest.providers import PROVIDERS
from ingest.redrive import Kept, Redriver, Remade, Shelf, Shelved, StaysError, read_kept
from ingest.rejects import group_topic, redriven_event, retry_request
from ingest.runner import Stopping
from ingest.settings import Settings
from ingest.superseded import LastStates
from schemas.times import now_ms
from schemas.topics import TOPIC_OF

ROLE = "redrive"

#: In the table; the newest. Programs get all.
_ROWS = 50


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which rejects are meant; without anything, all of ours that are open."""

    #: Ids, or their last part.
    ids: frozenset[str] = frozenset()
    connection: str | None = None
    reason: str | None = None
    #: Those that came last then or later, milliseconds since 1970.
    since_ms: int = 0
    #: Those of this consumer group instead of ours.
    group: str | None = None
    #: Also those that were redriven.
    again: bool = False

    @property
    def topic(self) -> str:
        return TOPIC_OF["reject"] if self.group is None else group_topic(self.group)

    def takes(self, found: Shelved) -> bool:
        return (
            (self.again or found.redriven_at is None)
            and (not self.ids or found.id in self.ids or found.id.rpartition(":")[2] in self.ids)
            and self.connection in (None, found.connection)
            and self.reason in (None, found.reason)
            and datetime.fromisoformat(found.last_at).timestamp() * 1000 >= self.since_ms
        )


# Listing


def list_rejects(settings: Settings, wanted: Wanted, *, as_json: bool) -> int:
    """Print what there is; 1 if some of it is open. Raises ConfigError."""
    with quietly(settings.logging.format):
        shelf = asyncio.run(_read_shelf(settings, wanted))
    found = [line for line in shelf.found.values() if wanted.takes(line)]
    if as_json:
        for line in found:
            print(orjson.dumps(asdict(line)).decode())
    else:
        _show(found, wanted)
    return int(any(line.redriven_at is None for line in found))


def _show(found: Sequence[Shelved], wanted: Wanted) -> None:
    console = Console(highlight=False)
    if not found:
        console.print("There are no rejects" + (" that are open." if not wanted.again else "."))
        return
    for reason, count in Counter(line.reason for line in found).most_common():
        console.print(Text(f"{count:>8,}  {plain(reason)}"))
    table = Table(box=None, pad_edge=False)
    for column in ("came last (UTC)", "connection"):
        table.add_column(column, no_wrap=True)
    for column in ("via", "reason", "detail"):
        table.add_column(column, overflow="fold")
    table.add_column("times", justify="right")
    # What stands behind its last colon tells a reject of ours from all others, and fits.
    table.add_column("id", overflow="fold", no_wrap=wanted.group is None)
    if wanted.again:
        table.add_column("redriven (UTC)")
    for line in found[-_ROWS:]:
        # A group's handler chooses its own words, and an event's id holds some of a provider's.
        cells = [
            Text(_when(line.last_at)),
            *(Text(plain(text)) for text in (line.connection, line.via, line.reason, line.detail)),
            Text(f"{line.times:,}"),
            Text(plain(line.id if wanted.group else line.id.rpartition(":")[2]), "dim"),
        ]
        if wanted.again:
            cells.append(Text("" if line.redriven_at is None else _when(line.redriven_at)))
        table.add_row(*cells)
    console.print()
    console.print(table)
    if len(found) > _ROWS:
        console.print(f"and {len(found) - _ROWS:,} that are older; --json prints all")


def _when(rfc3339: str) -> str:
    return rfc3339[:16].replace("T", " ")


# Showing one


def show_reject(settings: Settings, wanted: Wanted, *, reveal: bool, as_json: bool) -> int:
    """Print what is known of those with an id; 1 if there are none. Raises ConfigError."""
    with quietly(settings.logging.format):
        shelf, last = asyncio.run(_read_bodies(settings, wanted))
    if not last:
        print("there is no such reject: `dialstream rejects list` shows their ids", file=sys.stderr)
        return 1
    for key, kept in last.items():
        told = _told(settings, shelf.found[key], kept, reveal=reveal)
        if as_json:
            print(orjson.dumps(told).decode())
        else:
            print_fields(told)
    return 0


def _told(settings: Settings, line: Shelved, kept: Kept, *, reveal: bool) -> Mapping[str, object]:
    told: dict[str, object] = {**asdict(line), "header_names": list(kept.headers)}
    if reveal:
        told["headers"] = dict(kept.headers)
        told["body_base64"] = pybase64.b64encode(kept.body).decode()
        told["content"] = readable(_content(settings, kept))
    return told


def _content(settings: Settings, kept: Kept) -> bytes:
    """What the bytes say, out of its signature's wrapping if that can be told."""
    connection = settings.connections.get(kept.connection)
    if connection is not None and kept.topic == TOPIC_OF["reject"]:
        with suppress(UnreadableError):
            return PROVIDERS[connection.provider].payload_of(kept.body)
    return kept.body


# Redriving


@dataclass(slots=True)
class Redriven:
    """What has become of those that were wanted."""

    wanted: int = 0
    #: Published; or would be, if it was only asked for.
    redriven: int = 0
    events: int = 0
    #: Of these, those in whose place the log has a newer state: they are not published.
    superseded: int = 0
    #: Why the rest stays: a word, and what to do.
    stays: Counter[tuple[str, str]] = field(default_factory=Counter)

    @property
    def left(self) -> int:
        return self.wanted - self.redriven - sum(self.stays.values())


def redrive(settings: Settings, wanted: Wanted, *, dry_run: bool, as_json: bool) -> int:
    """Publish what is readable now; 0 if nothing of what was wanted stays. Raises ConfigError."""
    work = _Redrive(settings, wanted)
    code, waiting = carry_out(settings, ROLE, work, dry_run=dry_run)
    if code and not work.done.wanted:
        return code  # nobody knows what there is
    _report(work.done, wanted, dry_run=dry_run, waiting=waiting, as_json=as_json)
    return code or int(bool(work.done.stays or work.done.left or waiting))


class _Redrive:
    def __init__(self, settings: Settings, wanted: Wanted) -> None:
        self.done = Redriven()
        self._settings = settings
        self._wanted = wanted
        self._redriver = Redriver(settings)
        self._states = LastStates(settings)
        #: Not durable yet: what is to be published, and the notes that it was.
        self._records: list[Record] = []
        self._notes: list[Record] = []
        self._under_way = 0
        self._bytes = 0
        self._bar = Bar("redriving")

    async def count(self, stopping: Stopping) -> None:
        await self._go_through(stopping, None)

    async def publish(self, stopping: Stopping) -> None:
        async with open_log(self._settings, ROLE, also=[self._wanted.topic]) as publisher:
            await self._go_through(stopping, publisher)

    async def _go_through(self, stopping: Stopping, publisher: Publisher | None) -> None:
        shelf = await _read_shelf(self._settings, self._wanted)
        wanted = {key for key, found in shelf.found.items() if self._wanted.takes(found)}
        self.done.wanted = len(wanted)
        with self._bar:
            async for stored in read_once(self._settings, [self._wanted.topic]):
                if not wanted or stopping.asked:
                    break
                kept = read_kept(stored)
                if kept is None or kept.redriven_at is not None or kept.key not in wanted:
                    continue
                wanted.discard(kept.key)
                await self._take(stored, kept)
                if self._under_way >= BATCH or self._bytes >= BATCH_BYTES:
                    await self._store(publisher, stopping)
                    await self._states.look()
                self._bar.show(self.done.wanted - len(wanted), self.done.wanted)
            await self._store(publisher, stopping)

    async def _take(self, stored: StoredRecord, kept: Kept) -> None:
        self._bytes += len(kept.body)
        if self._wanted.group is not None:
            self._records.append(retry_request(stored, now_ms()))
            self._under_way += 1
            self.done.events += 1
            return
        try:
            made = self._redriver.remake(kept)
        except StaysError as error:
            self.done.stays[error.reason, error.detail] += 1
            return
        self._under_way += 1
        (first, *_) = made.records
        if await self._states.supersede(first.topic, first.key, made.recorded_ms):
            self.done.superseded += 1
            made = Remade((), (), made.recorded_ms)
        self.done.events += len(made.events)
        self._records += made.records
        self._notes += records_of(
            redriven_event(
                kept.connection,
                kept.digest,
                reason=kept.reason,
                via=kept.via,
                received_at=kept.received_at,
                events=made.events,
                now_ms=now_ms(),
            )
        )

    async def _store(self, publisher: Publisher | None, stopping: Stopping) -> None:
        """Return once what was taken is durable, and after that the notes that it is.

        Or once somebody has lost patience: then what is left is done the next time.
        """
        for records in (self._records, self._notes):
            while publisher is not None and not await self._stored(publisher, records):
                if stopping.asked:
                    return
                await asyncio.sleep(AGAIN_S)
            records.clear()
        self.done.redriven += self._under_way
        self._under_way = self._bytes = 0

    async def _stored(self, publisher: Publisher, records: Sequence[Record]) -> bool:
        deadline = asyncio.get_running_loop().time() + PUBLISH_S
        try:
            for receipt in [publisher.publish([record]) for record in records]:
                await receipt.wait(deadline)
        except PublishError as error:
            self._bar.wait(error.reason)
            return False
        return True


def _report(done: Redriven, wanted: Wanted, *, dry_run: bool, waiting: int, as_json: bool) -> None:
    if as_json:
        print(
            orjson.dumps(
                {
                    "wanted": done.wanted,
                    "redriven": done.redriven,
                    "events": done.events,
                    "superseded": done.superseded,
                    "stays": [
                        {"reason": reason, "detail": detail, "count": count}
                        for (reason, detail), count in done.stays.most_common()
                    ],
                    "left": done.left,
                    "published": not dry_run,
                    "waiting_in_spool": waiting,
                }
            ).decode()
        )
        return
    if not done.wanted:
        print("nothing to redrive: no reject of these is open")
        return
    if wanted.group is None:
        became = f"are readable, {done.events:,} events" if dry_run else "are published"
    else:
        became = ("would be" if dry_run else "are") + f" handed to {wanted.group} again"
    rejects = "reject" if done.wanted == 1 else "rejects"
    print(f"{done.wanted:,} {rejects}: {done.redriven:,} {became}")
    if done.superseded:
        print(f"{done.superseded:>8,} of them are not published: the log has newer states")
    for (reason, detail), count in done.stays.most_common():
        print(f"{count:>8,} stay: {reason}" + (f" ({plain(detail)})" if detail else ""))
    print_rest(done.left, waiting, dry_run=dry_run)


# Reading


async def _read_shelf(settings: Settings, wanted: Wanted) -> Shelf:
    shelf = Shelf()
    async for stored in read_once(settings, [wanted.topic]):
        shelf.put(stored)
    return shelf


async def _read_bodies(
    settings: Settings, wanted: Wanted
) -> tuple[Shelf, Mapping[tuple[str, ...], Kept]]:
    shelf = Shelf()
    last: dict[tuple[str, ...], Kept] = {}
    async for stored in read_once(settings, [wanted.topic]):
        kept = shelf.put(stored)
        if kept is None or kept.redriven_at is not None:
            continue
        if wanted.ids & {kept.id, kept.digest}:
            last[kept.key] = kept
    return shelf, last

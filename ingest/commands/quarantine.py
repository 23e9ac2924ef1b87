"""`dialstream quarantine`: what did not verify, why, and what verifies now.

A requeue is a delivery that comes late: by the channel and with the time at which it came first, so
with the ids that it would have had. No answer of ours had promised it an order. Its file goes once
its events are durable; killed before that and run again, it repeats them with the same ids.
"""

import asyncio
import sys
from collections import Counter, deque
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import orjson
import pybase64
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
from ingest.delivery import Source
from ingest.diagnosis import Diagnosis, diagnose
from ingest.errors import ConfigError, DeliveryError, PublishError, UnreadableError
from ingest.eventlog.kinds import open_log
from ingest.logs import quietly
from ingest.pipeline import Accepted, Pipeline
from ingest.quarantine import File, Refused, files_in, quarantine_folder
from ingest.receiver import make_sources
from ingest.runner import Stopping
from ingest.settings import Settings
from ingest.superseded import LastStates
from schemas.event import Event
from schemas.times import rfc3339

ROLE = "requeue"

#: In the table; the newest. Programs get all.
_ROWS = 50

#: Headers whose values tell no secret; of the others only the size is shown.
_HARMLESS = frozenset(
    (
        b"accept",
        b"accept-encoding",
        b"content-length",
        b"content-type",
        b"host",
        b"user-agent",
        b"webhook-id",
        b"webhook-timestamp",
        b"x-forwarded-for",
        b"x-request-id",
    )
)


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which files are meant; without anything, all."""

    #: Their names without the ending, or what stands behind the last dash.
    ids: frozenset[str] = frozenset()
    connection: str | None = None
    #: Those that came then or later, milliseconds since 1970.
    since_ms: int = 0

    def takes(self, file: File) -> bool:
        return (
            (not self.ids or bool(self.ids & {file.ident, file.nth}))
            and self.connection in (None, file.connection)
            and file.received_ms >= self.since_ms
        )


def _wanted_files(settings: Settings, wanted: Wanted) -> list[File]:
    """In the order in which they came. Raises ConfigError."""
    folder = quarantine_folder(settings.eventlog.path)
    try:
        folders = [path for path in folder.iterdir() if path.is_dir()] if folder.is_dir() else []
        found = [file for path in folders for file in files_in(path) if wanted.takes(file)]
    except PermissionError as error:
        raise ConfigError(
            f"eventlog.path: {error.filename} is for the eyes of the user that `receive` runs as: "
            "run this as that one"
        ) from None
    return sorted(found, key=lambda file: file.order)


def _read(files: Sequence[File]) -> Iterator[tuple[File, Refused | None]]:
    """With what is in them; None: damaged. A receiver beside us may take some away meanwhile."""
    for file in files:
        try:
            refused = file.read()
        except FileNotFoundError:
            continue
        yield file, refused


# Looking


def list_quarantine(settings: Settings, wanted: Wanted, *, as_json: bool) -> int:
    """Print what there is; 1 if that is something."""
    sources = make_sources(settings)
    count = 0
    found: Counter[str] = Counter()
    shown: deque[tuple[File, Refused | None, Diagnosis]] = deque(maxlen=_ROWS)
    with quietly(settings.logging.format):
        for file, refused in _read(_wanted_files(settings, wanted)):
            diagnosis = diagnose(refused, sources)
            count += 1
            if as_json:
                print(orjson.dumps(_line(file, refused, diagnosis)).decode())
            else:
                found[diagnosis.text] += 1
                shown.append((file, refused, diagnosis))
    if not as_json:
        _show(count, found, shown)
    return int(bool(count))


def _line(file: File, refused: Refused | None, diagnosis: Diagnosis) -> dict[str, object]:
    return {
        "id": file.ident,
        "connection": file.connection,
        "via": None if refused is None else refused.via,
        "received_at": rfc3339(file.received_ms),
        "reason": file.reason,
        "diagnosis": diagnosis.word,
        "text": diagnosis.text,
        "size_bytes": None if refused is None else len(refused.body),
        "path": str(file.path),
    }


def _show(
    count: int,
    found: Mapping[str, int],
    shown: Collection[tuple[File, Refused | None, Diagnosis]],
) -> None:
    console = Console(highlight=False)
    if not count:
        console.print("The quarantine is empty: everything has verified, or is too long ago.")
        return
    for text, times in sorted(found.items(), key=lambda item: -item[1]):
        console.print(Text(f"{times:>8,}  {text}"))
    table = Table(box=None, pad_edge=False)
    for column in ("came (UTC)", "connection"):
        table.add_column(column, no_wrap=True)
    for column in ("via", "refused for"):
        table.add_column(column, overflow="fold")
    table.add_column("diagnosis", overflow="fold")
    table.add_column("id", no_wrap=True)
    for file, refused, diagnosis in shown:
        via = "" if refused is None else refused.via
        table.add_row(
            rfc3339(file.received_ms)[:19].replace("T", " "),
            *(Text(plain(text)) for text in (file.connection, via, file.reason, diagnosis.text)),
            Text(file.nth, "dim"),
        )
    console.print()
    console.print(table)
    if count > len(shown):
        console.print(f"and {count - len(shown):,} that are older; --json prints all")


def show_quarantined(settings: Settings, wanted: Wanted, *, reveal: bool, as_json: bool) -> int:
    """Print what is known of those with an id; 1 if there are none."""
    sources = make_sources(settings)
    files = list(_read(_wanted_files(settings, wanted)))
    if not files:
        told_where = "`dialstream quarantine list` shows their ids"
        print(f"there is no such file: {told_where}", file=sys.stderr)
        return 1
    for file, refused in files:
        with quietly(settings.logging.format):
            told = _line(file, refused, diagnose(refused, sources))
        if refused is not None:
            told["header_names"] = [readable(name) for name, _ in refused.headers]
            if reveal:
                told["headers"] = [
                    [readable(name), _value(name, value)] for name, value in refused.headers
                ]
                told["body_base64"] = pybase64.b64encode(refused.body).decode()
                told["content"] = readable(refused.body)
        if as_json:
            print(orjson.dumps(told).decode())
            continue
        print_fields(told)
    return 0


def _value(name: bytes, value: bytes) -> str:
    """A token that signs for somebody is nobody else's business, even here."""
    return readable(value) if name.lower() in _HARMLESS else f"({len(value)} bytes)"


# Requeueing


@dataclass(slots=True)
class Requeued:
    """What has become of those that were wanted."""

    wanted: int = 0
    #: Verify now, and are published, or would be if it was only asked for.
    requeued: int = 0
    #: Of these: authentic, and unreadable, so on the topic of rejects.
    rejected: int = 0
    #: Of these: not published, since the log has newer states.
    superseded: int = 0
    #: Why the rest stays, in a word.
    stays: Counter[str] = field(default_factory=Counter)

    @property
    def left(self) -> int:
        return self.wanted - self.requeued - sum(self.stays.values())


def requeue(settings: Settings, wanted: Wanted, *, dry_run: bool, as_json: bool) -> int:
    """Verify again, and publish what does; 0 if nothing of it stays. Raises ConfigError."""
    work = _Requeue(settings, wanted)
    code, waiting = carry_out(settings, ROLE, work, dry_run=dry_run)
    _report(work.done, dry_run=dry_run, waiting=waiting, as_json=as_json)
    return code or int(bool(work.done.stays or work.done.left or waiting))


_Ready: TypeAlias = tuple[File, Refused]
"""A file, and what it holds, which verifies now."""


class _Requeue:
    def __init__(self, settings: Settings, wanted: Wanted) -> None:
        self.done = Requeued()
        self._settings = settings
        self._sources = make_sources(settings)
        self._files = _wanted_files(settings, wanted)
        self.done.wanted = len(self._files)
        self._states = LastStates(settings)
        self._bar = Bar("requeueing")

    async def count(self, stopping: Stopping) -> None:
        await self._go_through(stopping, None)

    async def publish(self, stopping: Stopping) -> None:
        async with open_log(self._settings, ROLE) as publisher:
            # What its sender has tried several times is one fact.
            repeat_max = self._settings.eventlog.repeat_max
            pipeline = Pipeline(publisher, repeat_max, self._settings.drops)
            await self._go_through(stopping, pipeline)

    async def _go_through(self, stopping: Stopping, pipeline: Pipeline | None) -> None:
        looked_at = 0
        with self._bar:
            for batch in _batches(self._files):
                await self._states.look()
                ready = [(file, refused) for file in batch if (refused := self._verified(file))]
                ready = await self._current(ready, really=pipeline is not None)
                if pipeline is None:
                    self.done.requeued += len(ready)
                else:
                    await self._take(ready, pipeline, stopping)
                if stopping.asked:
                    return
                looked_at += len(batch)
                self._bar.show(looked_at, len(self._files))
                await asyncio.sleep(0)

    def _verified(self, file: File) -> Refused | None:
        try:
            refused = file.read()
        except FileNotFoundError:  # made room for another meanwhile
            self.done.wanted -= 1
            return None
        diagnosis = diagnose(refused, self._sources)
        if not diagnosis.verifies:
            self.done.stays[diagnosis.word] += 1
            return None
        return refused

    async def _current(self, ready: Sequence[_Ready], *, really: bool) -> list[_Ready]:
        """Those in whose place the log has nothing newer; ``really``: the others go."""
        left = []
        for file, refused in ready:
            events = self._events_of(refused)
            if events and all([await self._is_superseded(event) for event in events]):
                self.done.superseded += 1
                self.done.requeued += 1
                if really:
                    file.path.unlink(missing_ok=True)
                continue
            if not events and not really:  # else the pipeline will say so
                self.done.rejected += 1
            left.append((file, refused))
        return left

    def _events_of(self, refused: Refused) -> Sequence[Event]:
        """None of them: it will be a reject."""
        source: Source = self._sources[refused.connection]
        delivery = refused.delivery
        try:
            return source.normalize(source.verify(delivery), delivery)
        except UnreadableError:
            return ()

    async def _is_superseded(self, event: Event) -> bool:
        return await self._states.supersede(event.topic, event.key.encode(), event.recorded_ms)

    async def _take(self, left: Sequence[_Ready], pipeline: Pipeline, stopping: Stopping) -> None:
        """Return once all are durable and their files gone, or somebody has lost patience."""
        while left:
            left = await self._try(left, pipeline)
            if not left or stopping.asked:
                return
            await asyncio.sleep(AGAIN_S)

    async def _try(self, ready: Sequence[_Ready], pipeline: Pipeline) -> list[_Ready]:
        """Publish; those that are not durable are left."""
        deadline = asyncio.get_running_loop().time() + PUBLISH_S
        batch = [(refused.delivery, self._sources[refused.connection]) for _, refused in ready]
        failed = []
        for (file, refused), result in zip(ready, pipeline.accept_all(batch), strict=True):
            error = await _settled(result, deadline)
            if isinstance(result, Accepted) and error is None:
                self.done.requeued += 1
                self.done.rejected += result.outcome == "rejected"
                file.path.unlink(missing_ok=True)
            elif isinstance(error, PublishError):
                self._bar.wait(error.reason)
                failed.append((file, refused))
            else:  # nobody has changed the secrets meanwhile
                self.done.stays["refused"] += 1
        return failed


async def _settled(result: Accepted | DeliveryError, deadline: float) -> DeliveryError | None:
    if not isinstance(result, Accepted):
        return result
    try:
        await result.receipt.wait(deadline)
    except PublishError as error:
        return error
    return None


def _batches(files: Sequence[File]) -> Iterator[Sequence[File]]:
    batch: list[File] = []
    size = 0
    for file in files:
        batch.append(file)
        size += file.size_bytes
        if len(batch) == BATCH or size > BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _report(done: Requeued, *, dry_run: bool, waiting: int, as_json: bool) -> None:
    if as_json:
        print(
            orjson.dumps(
                {
                    "wanted": done.wanted,
                    "requeued": done.requeued,
                    "rejected": done.rejected,
                    "superseded": done.superseded,
                    "stays": dict(done.stays),
                    "left": done.left,
                    "published": not dry_run,
                    "waiting_in_spool": waiting,
                }
            ).decode()
        )
        return
    if not done.wanted:
        print("nothing to requeue: there are no such files")
        return
    became = "would be published" if dry_run else "are published, and out of the quarantine"
    deliveries = "delivery" if done.wanted == 1 else "deliveries"
    print(f"{done.wanted:,} {deliveries}: {done.requeued:,} verify now and {became}")
    if done.rejected:
        print(f"{done.rejected:>8,} of them cannot be read: `dialstream rejects list`")
    if done.superseded:
        print(f"{done.superseded:>8,} of them were left out: the log has newer states")
    for word, count in done.stays.most_common():
        print(f"{count:>8,} stay: {word.replace('_', ' ')}")
    print_rest(done.left, waiting, dry_run=dry_run)

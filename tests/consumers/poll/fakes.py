"""A provider with records that a test can change while they are read, and a job of nobody's."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from consumers.poll.gaps import Gaps
from consumers.poll.poller import Poller
from consumers.poll.seen import Seen
from ingest.api import ApiError
from ingest.delivery import Records
from ingest.eventlog.journal import open_reader
from ingest.eventlog.log import Spooling
from ingest.settings import Connection, Poll
from schemas.event import Event
from schemas.times import minute, now_ms

HOUR_MS = 3_600_000


@dataclass
class Call:
    ident: int
    began_ms: int
    ended_ms: int
    version: int = 1
    recorded: bool = False

    def event(self, via: str) -> Event:
        return Event(
            type="dialstream.call.recorded",
            subject_kind="call",
            id=f"fake:acme:record:{self.ident}:{self.version:016x}",
            subject=f"call/{self.ident}",
            key=f"acme/{self.ident}",
            time_ms=self.ended_ms,
            recorded_ms=now_ms(),
            via=via,
            provider="fake",
            connection="acme",
            data={"call_id": str(self.ident), "recordings": [{}] if self.recorded else []},
            raw=b"{}",
        )


def listed(kind: str, ident: str, version: int, **data: Any) -> Event:
    """What a list says of a thing: ``contact``, ``directory``, ``consent``."""
    what = {"contact": "updated", "directory": "listed", "consent": "changed"}[kind]
    middle = f"{data['state']}:" if kind == "consent" else "updated:" if kind == "contact" else ""
    return Event(
        type=f"dialstream.{kind}.{what}",
        subject_kind=kind,
        id=f"fake:acme:{kind}:{ident}:{middle}{version:016x}:{minute(now_ms())}",
        subject=f"{kind}/{ident}",
        key=f"acme/{ident}",
        time_ms=now_ms(),
        recorded_ms=now_ms(),
        via="poll",
        provider="fake",
        connection="acme",
        data={"contact_id": ident, "change": "updated", **data},
        raw=b"{}",
    )


class FakeRecords:
    """Lists calls as Dialpad does: those that have ended, the latest start first, by pages."""

    def __init__(self, page: int = 3) -> None:
        self.list: list[Call] = []
        self.page = page
        #: What `also` yields, by its name.
        self.lists: dict[str, list[Event]] = {}
        #: Call id → the artefact's version, by the name of the list.
        self.artefacts: dict[str, dict[str, int]] = {}
        #: What the next requests raise; None: they are answered.
        self.faults: list[ApiError | None] = []
        #: As long as the place is there, all of its requests raise this.
        self.broken: dict[str, ApiError] = {}
        #: Called before each page of calls.
        self.meanwhile: Callable[[], None] = lambda: None
        self.windows: list[tuple[int, int]] = []
        self.asked: list[tuple[str, tuple[str, ...]]] = []
        self.opened = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Records]:
        self.opened += 1
        yield self

    async def calls(self, from_ms: int, to_ms: int, via: str) -> AsyncIterator[Sequence[Event]]:
        self.windows.append((from_ms, to_ms))
        at = 0
        while True:
            self._fail("calls")
            self.meanwhile()
            found = sorted(
                (c for c in self.list if from_ms <= c.began_ms < to_ms and c.ended_ms <= now_ms()),
                key=lambda c: -c.began_ms,
            )
            page = found[at : at + self.page]
            if not page:
                return
            yield [call.event(via) for call in page]
            at += self.page

    async def also(
        self, what: str, call_ids: Sequence[str], via: str
    ) -> AsyncIterator[Sequence[Event]]:
        self.asked.append((what, tuple(call_ids)))
        self._fail(what)
        if what in ("transcripts", "recaps"):
            for ident in call_ids:
                if ident in self.artefacts.get(what, {}):
                    yield [self._artefact(what, ident)]
            return
        events = self.lists.get(what, [])
        for at in range(0, len(events), self.page):
            yield events[at : at + self.page]
            self._fail(what)

    def _artefact(self, what: str, ident: str) -> Event:
        event = Call(int(ident), 0, 0).event("poll")
        word = f"{what[:-1]}_ready"
        event.type = f"dialstream.call.{word}"
        event.id = f"fake:acme:{word}:{ident}:{self.artefacts[what][ident]:016x}"
        return event

    def _fail(self, place: str) -> None:
        if place in self.broken:
            raise self.broken[place]
        if place == "calls" and self.faults:
            fault = self.faults.pop(0)
            if fault is not None:
                raise fault


@dataclass
class FakeJob:
    """The job of one who owns the connection for good; checkpoints stay in memory."""

    connection: str = "acme"
    saved: dict[str, Mapping[str, Any]] = field(default_factory=dict)
    #: Called before a checkpoint is saved.
    before: Callable[[], Awaitable[None]] | None = None

    def checkpoint(self, source: str) -> Mapping[str, Any] | None:
        return self.saved.get(source)

    async def save(self, source: str, checkpoint: Mapping[str, Any]) -> None:
        if self.before is not None:
            await self.before()
        self.saved[source] = checkpoint


#: Everything at once, so that tests need not wait.
QUICK: dict[str, Any] = {
    "enabled": True,
    "every_s": 0.05,
    "overlap_s": 7200.0,
    "sweep_every_s": 3600.0,
    "lag_s": 0.001,
}


def poller(
    records: FakeRecords,
    job: FakeJob,
    publisher: Spooling,
    seen: Seen,
    gaps: Gaps | None = None,
    **settings: Any,
) -> Poller:
    connection = Connection(provider="dialpad", poll=Poll(**{**QUICK, **settings}))
    return Poller(
        job,
        connection,
        records.open,
        publisher,
        gaps or CurrentGaps(),
        seen,
        artefact_delays_s=(0.01, 0.02, 0.03),
        backoff_s=(0.01, 0.05),
    )


class CurrentGaps(Gaps):
    """Those that a test has told of, without a topic."""

    async def current(self) -> None:
        pass


async def events_on(path: Path) -> list[dict[str, Any]]:
    """Everything on the journal below ``path``."""
    found: list[dict[str, Any]] = []
    topics = ("calls", "contacts", "consents", "directory", "agents", "gaps", "rejects")
    async with open_reader(path, topics) as reader:
        while not await reader.caught_up():
            records = await reader.fetch(wait_s=0.1)
            found += [json.loads(record.value) for record in records if record.value is not None]
    return found

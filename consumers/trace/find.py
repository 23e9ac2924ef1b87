"""Finding all that the event log has of a call, without reading all of the log.

The key says in which partition a call is, and a time where in it to begin: that of its row in the
ledger, or of an event's id. What its events name beside it is read next, until nothing is new. A
leg that names the others, and that they do not name, is found by the row of the ledger alone. Where
a topic has got more partitions, what was written before that is looked for in the wrong ones.
"""

import re
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any
from urllib.parse import unquote

import orjson

from consumers.known import check_id, known_connections
from consumers.trace.story import Spooled, Story, is_about, names, tell
from ingest.errors import ConfigError
from ingest.eventlog.kinds import read_once
from ingest.eventlog.log import Behind, Keys, StoredRecord
from ingest.eventlog.spool import SPOOLS, waiting_of
from ingest.fields import by_size
from ingest.settings import Settings
from schemas.times import now_ms

#: Between the provider's clock and the log's, where the call's start is known; and where only some
#: event of it, or of another leg, is.
_CLOCKS_MS, _LONGEST_MS = 3_600_000, 24 * 3_600_000

#: More legs than a conversation has: the reconciler stops there, too.
_MAX_IDS = 1000

_TOLD_EVERY = 1000

_EVENT_ID = re.compile(r"[a-z0-9_]+:[a-z0-9_]+:[^:]+:.+")

#: Second word but one of an id → its subject is a call.
_OF_CALLS = frozenset({"call", "record", "transcript_ready", "recap_ready", "recording_ready"})

_NUMBERS = ("from_number", "to_number")
_PARTIES = ("external", "internal", "target")


@dataclass(frozen=True, slots=True)
class Wanted:
    """What is looked for."""

    #: A call's, or a conversation's.
    ident: str
    #: None: wherever it is.
    connection: str | None = None
    #: That was asked for.
    event_id: str | None = None
    #: Nothing of it was written earlier, as far as that is known.
    since_ms: int = 0


def read_wanted(text: str, connection: str | None) -> Wanted:
    """What is meant by an id of a call, a conversation or an event.

    Raises ConfigError for what is no id, and for events of other things than calls.
    """
    check_id(text, connection)
    parts = [unquote(part) for part in text.split(":")]
    if not _EVENT_ID.fullmatch(text):
        return Wanted(text, connection)
    if parts[0] in ("verdict", "conversation"):
        return Wanted(parts[2], parts[1], text)
    if parts[2] not in _OF_CALLS:
        raise ConfigError(
            f"{text}: trace follows calls and conversations, and this is an event of something "
            f"else: `dialstream tail --from-beginning --id {text}` shows it"
        )
    clock = parts[5] if parts[2] == "call" and len(parts) > 5 else ""  # noqa: PLR2004
    since_ms = int(clock) - _LONGEST_MS if clock.isdecimal() else 0
    return Wanted(parts[3], parts[1], text, max(0, since_ms))


@dataclass(slots=True)
class _Found:
    """What has been read of one connection."""

    #: Calls and conversations that are named by what was read.
    ids: set[str] = field(default_factory=set)
    #: What was read twice is there twice: rejects, where more has been named meanwhile.
    records: list[StoredRecord] = field(default_factory=list)
    waiting: list[Spooled] = field(default_factory=list)
    #: The names that were looked for in all rejects.
    rejects_read: frozenset[str] = frozenset()
    #: Keys of the same calls at other connections: a verdict of both is there, or here.
    beside: set[bytes] = field(default_factory=set)
    #: Calls that a row of the ledger tells of: they have none of their own.
    in_rows: set[str] = field(default_factory=set)
    #: When the earliest of it began: by the provider's clock, unless that was ahead of ours.
    begun_ms: int | None = None
    #: Whether that is the start of the whole conversation.
    whole: bool = False


async def find(settings: Settings, wanted: Wanted, since_ms: int | None) -> list[Story]:
    """Everything that belongs to it, a story for each connection that knows it.

    ``since_ms``: what was written earlier is not looked at; None: as early as need be.
    """
    if since_ms is not None:
        return await _find(settings, wanted, since_ms)
    stories = await _find(settings, wanted, None)
    if wanted.since_ms and not has_event(stories, wanted.event_id):
        # The clock in its id may have been wrong.
        stories = await _find(settings, replace(wanted, since_ms=0), None)
    return stories


def has_event(stories: Iterable[Story], event_id: str | None) -> bool:
    return any(moment.id == event_id for story in stories for moment in story.moments)


async def _find(settings: Settings, wanted: Wanted, since_ms: int | None) -> list[Story]:
    connections = [wanted.connection] if wanted.connection else known_connections(settings)
    if not connections:
        raise ConfigError("there are no connections in the settings: name one with --connection")
    search = _Search(settings, {name: _Found({wanted.ident}) for name in connections})
    search.earliest_ms = min(wanted.since_ms, now_ms()) if since_ms is None else since_ms
    search.fixed = since_ms is not None
    if not search.earliest_ms:
        # A row of the ledger says where to begin with the rest.
        await search.read(search.unread("ledger"))
    while keys := search.unread("ledger", "calls", "verdicts"):
        await search.read(keys)
    await search.read_beside()
    await search.read_rejects()
    return [
        tell(name, each.records, each.waiting)
        for name, each in search.found.items()
        if each.records or each.waiting
    ]


class _Search:
    """Reads what is named, and notes what that names."""

    def __init__(self, settings: Settings, found: dict[str, _Found]) -> None:
        self._settings = settings
        self.found = found
        #: Nothing is looked for that was written earlier; ``fixed``: or later than that skipped.
        self.earliest_ms = 0
        self.fixed = False
        self._read: set[tuple[str, bytes]] = set()

    def unread(self, *topics: str) -> Keys:
        """The keys of these topics that are named and have not been read."""
        keys: defaultdict[str, set[bytes]] = defaultdict(set)
        for connection, each in self.found.items():
            for ident in sorted(each.ids, key=by_size)[:_MAX_IDS]:
                key = f"{connection}/{ident}".encode()
                for topic in topics:
                    if topic == "ledger" and ident in each.in_rows:
                        continue
                    if (topic, key) not in self._read:
                        keys[topic].add(key)
        return keys

    async def read(self, keys: Keys) -> None:
        """Read these; rejects in passing, once it is known from where on."""
        looking_for: dict[str, frozenset[str]] = {}
        if self._begin_ms:
            looking_for = {name: frozenset(each.ids) for name, each in self.found.items()}
            keys = {**keys, "rejects": {name.encode() for name in looking_for}}
        await self._take_all(keys)
        self._read |= {(topic, key) for topic, its_keys in keys.items() for key in its_keys}
        for name, ids in looking_for.items():
            self.found[name].rejects_read = ids

    async def read_beside(self) -> None:
        """Verdicts about one of these calls that stand at another connection."""
        keys = {key for each in self.found.values() for key in each.beside}
        if not keys:
            return
        async for stored in self._stored({"verdicts": keys}):
            for name, each in self.found.items():
                if stored.key in each.beside and is_about(stored, name, each.ids):
                    each.records.append(stored)

    async def read_rejects(self) -> None:
        """Those that name what was found since they were read, if any could.

        Where nothing is found, it may be that all of it was rejected.
        """
        known = {name for name, each in self.found.items() if each.records or each.waiting}
        keys = {
            name.encode()
            for name in known or self.found
            if self.found[name].rejects_read != self.found[name].ids
        }
        if keys:
            await self._take_all({"rejects": keys})

    @property
    def _begin_ms(self) -> int:
        """Nothing that is looked for was written earlier, as far as is known by now."""
        if self.fixed:
            return self.earliest_ms
        return max(self.earliest_ms, _begin_ms(self.found.values()))

    async def _take_all(self, keys: Keys) -> None:
        # In this order: what is drained in between is seen twice, and would else not be seen.
        for spooled in _waiting(self._settings, keys):
            self._take(spooled.record, spooled)
        async for stored in self._stored(keys):
            self._take(stored)

    async def _stored(self, keys: Keys) -> AsyncIterator[StoredRecord]:
        start = Behind({}, dict.fromkeys(keys, self._begin_ms))
        async for stored in read_once(self._settings, list(keys), start, keys):
            yield stored

    def _take(self, stored: StoredRecord, spooled: Spooled | None = None) -> None:
        connection, _, ident = stored.key.decode().partition("/")
        each = self.found[connection]
        event = None if stored.value is None else orjson.loads(stored.value)
        if stored.topic == "rejects" and (event is None or not names(event, each.ids)):
            return
        if spooled is None:
            each.records.append(stored)
        else:
            each.waiting.append(spooled)
        if event is None or stored.topic == "rejects":
            return
        data = event["data"]
        recorded_ms = _ms(event["recordedtime"])
        started_ms = _ms(data.get("started_at") or event["time"])
        if stored.topic == "ledger":
            each.ids |= {data["conversation_id"], *data["call_ids"], *data["merged_from"]}
            each.in_rows |= {*data["call_ids"]} - {data["conversation_id"], *data["merged_from"]}
            for other in data["counterparts"]:
                each.beside.add(f"{other['connection']}/{other['call_id']}".encode())
            is_start = data["started_at"] is not None and started_ms <= recorded_ms
            each.whole = each.whole or is_start
        elif stored.topic == "calls":
            each.ids |= {ident, data["conversation_id"], *data["related_call_ids"]}
        begun_ms = min(started_ms, recorded_ms)
        each.begun_ms = min(begun_ms, each.begun_ms or begun_ms)


def _begin_ms(found: Iterable[_Found]) -> int:
    """Nothing of these was written earlier, as far as is known by now."""
    begun = [
        each.begun_ms - (_CLOCKS_MS if each.whole else _LONGEST_MS)
        for each in found
        if each.begun_ms is not None
    ]
    return max(0, min(begun, default=0))


def _waiting(settings: Settings, keys: Keys) -> list[Spooled]:
    """What this machine's spools hold of them."""
    spools = settings.eventlog.path / SPOOLS
    if settings.eventlog.kind != "kafka" or not spools.is_dir():
        return []
    return [
        Spooled(folder.name, record)
        for folder in sorted(spools.iterdir())
        for topic, its_keys in keys.items()
        for record in waiting_of(folder, topic, its_keys)
    ]


# By phone number


@dataclass(slots=True, kw_only=True)
class Call:
    """A call in which a number took part."""

    connection: str
    call_id: str
    conversation_id: str
    direction: str
    started_at: str | None
    outcome: str | None
    events: int = 0


async def find_calls(
    settings: Settings,
    number: str,
    connection: str | None,
    since_ms: int,
    seen: Callable[[int], None],
) -> list[Call]:
    """The calls of a number of which something was written since then, oldest first.

    ``seen`` is told how far the log has been read, by its clock.
    """
    found: dict[bytes, Call] = {}
    needle = number.encode()
    prefix = f"{connection}/".encode() if connection else b""
    start = Behind({}, {"calls": since_ms})
    count = 0
    async for stored in read_once(settings, ["calls"], start):
        count += 1
        if count % _TOLD_EVERY == 1:
            seen(stored.written_ms)
        value = stored.value or b""
        if needle not in value or stored.written_ms < since_ms or not stored.key.startswith(prefix):
            continue
        event = orjson.loads(value)
        data = event["data"]
        if number not in _numbers_of(data):
            continue
        call = found.get(stored.key)
        if call is None:
            call = found[stored.key] = Call(
                connection=event["connection"],
                call_id=data["call_id"],
                conversation_id=data["conversation_id"],
                direction=data["direction"],
                started_at=data["started_at"],
                outcome=None,
            )
        call.events += 1
        call.outcome = data["outcome"] or call.outcome
        call.started_at = call.started_at or data["started_at"]
    return sorted(found.values(), key=lambda call: (call.started_at or "", call.call_id))


def _numbers_of(data: dict[str, Any]) -> Collection[str | None]:
    return {*(data[name] for name in _NUMBERS), *(data[party]["number"] for party in _PARTIES)}


def _ms(instant: str) -> int:
    return round(datetime.fromisoformat(instant).timestamp() * 1000)

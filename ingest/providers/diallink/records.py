"""DialLink's own lists, read back: calls, recordings, contacts, users.

https://developers.diallink.com   (introduction to "Get an API key"; no more is public)
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import quote

import structlog

from ingest.api import ApiError, remembered
from ingest.delivery import DAY_MS
from ingest.errors import UnreadableError
from ingest.fields import read_object
from ingest.providers.diallink.api import DialLinkApi, open_api
from ingest.providers.diallink.assumptions import Assumptions, CallFields, RecordingFields
from ingest.providers.diallink.lists import Clock, DisorderError, Pages
from ingest.providers.diallink.record_events import (
    Began,
    call_recorded,
    contact_listed,
    recording_ready,
    user_listed,
)
from ingest.reading import Reading
from schemas.event import Event
from schemas.times import now_ms

if TYPE_CHECKING:
    from ingest.settings import Connection

log = structlog.get_logger()

_CALLS = "/v1/phone-system/calls"
_RECORDINGS = "/v1/phone-system/recordings"
_CONTACTS = "/v1/phone-system/contacts"
_USERS = "/v1/phone-system/users"

#: Their clocks may be so far apart that a call changed before it began.
_CLOCKS_APART_MS = 60_000

_Page = Sequence[Event]


class DialLinkRecords:
    """One connection's lists at DialLink. Use `open_records`.

    Everything comes as it stands now, whether it was read before or not: whoever publishes it
    leaves out what was published already. That has the same id; only the ids of contacts and of the
    directory end in the minute in which they were read, and are the same up to there as long as
    their content is.
    """

    def __init__(
        self,
        name: str,
        connection: "Connection",
        api: DialLinkApi,
        now: Callable[[], int] = now_ms,
    ) -> None:
        """``now``: our clock, milliseconds since 1970."""
        self._name = name
        self._region = connection.region
        self._assumed = Assumptions.of(connection)
        self._api = api
        self._now = now
        known = remembered(name)
        #: Lists whose changes cannot be asked for → when that has turned out, and when it was told.
        self._refused: dict[str, int] = known.setdefault("diallink order refused", {})
        self._told: dict[str, int] = known.setdefault("diallink order told", {})
        self._also: Mapping[str, Callable[[str], AsyncIterator[_Page]]] = {
            "contacts": self._contacts,
            "directory": self._directory,
        }

    async def calls(self, from_ms: int, to_ms: int, via: str) -> AsyncIterator[_Page]:
        """``call.recorded``, a page at a time, in the order of the changes where there is one.

        ``poll``: of all calls that have changed since ``from_ms``, whenever they began. Where
        DialLink lists no changes, of those that began since then, the latest first: then late
        changes are found by later readings that begin earlier.
        ``backfill``: of these, the calls that began in [from, to), and those whose start is
        unknown.

        First it has the key looked after.
        """
        await self._api.watch.look(self._api)
        began = Began(from_ms, to_ms) if via == "backfill" else None
        since_ms = max(0, from_ms - (_CLOCKS_APART_MS if began else 0))
        names = self._assumed.call_fields
        read = partial(call_recorded, names=names, began=began)
        async for items in self._since(_CALLS, names, since_ms):
            if events := self._reading(via).events(items, read):
                yield events

    def also(self, what: str, call_ids: Sequence[str], via: str) -> AsyncIterator[_Page]:
        """What the setting `poll.also` names; ``call_ids`` do not matter.

        ``contacts``: all that the key may see, as ``contact.updated``. It is for the poller to make
        ``created`` of those that are new, and ``deleted`` of those that were listed and are no
        more. Since what goes while the list is read can hide another, that one is missing says
        nothing until it is missing again.
        ``directory``: the users, without their numbers, which no list tells.
        """
        return self._also[what](via)

    async def recordings(self, from_ms: int, to_ms: int, via: str) -> AsyncIterator[_Page]:
        """``call.recording_ready`` of those that have changed since ``from_ms``.

        As for `calls`: where DialLink lists no changes, of those that began since then.
        """
        names = self._assumed.recording_fields
        read = partial(recording_ready, names=names)
        async for items in self._since(_RECORDINGS, names, max(0, from_ms)):
            yield self._reading(via).events(items, read)

    async def call(self, call_id: str, via: str) -> _Page:
        """``call.recorded`` of one call as it stands now; none if there is no such call."""
        names = self._assumed.call_fields
        # That would be another path, if only to a server that decodes it more often than it should.
        if not call_id.strip(".") or ".." in call_id or "%" in call_id:
            return ()
        path = f"{_CALLS}/{quote(call_id, safe='')}"
        try:
            item = await self._api.read(path, names.id)
        except ApiError as error:
            if error.reason != "not_found":
                raise
            return ()
        read = partial(call_recorded, names=names, call_id=call_id)
        return self._reading(via).events([item], read)

    async def _contacts(self, via: str) -> AsyncIterator[_Page]:
        async for items in self._api.all(_CONTACTS):
            yield self._reading(via).events(items, contact_listed)

    async def _directory(self, via: str) -> AsyncIterator[_Page]:
        async for items in self._api.all(_USERS):
            yield self._reading(via).events(items, user_listed)

    async def _since(self, path: str, names: CallFields | RecordingFields, since_ms: int) -> Pages:
        """By change; where that is refused, or not kept to, by start (A-DL-2).

        That it is refused is remembered for a day: whatever it was may be over. Otherwise it may
        have been one moment: items that change while they are listed.
        """
        order = self._assumed.order
        if order == "auto" and self._within_a_day(self._refused, path):
            order = "started"
        if order != "started":
            changed = clock(names.updated_at)
            try:
                async for items in self._api.by_change(path, names.updated_at, changed, since_ms):
                    yield items
            except ApiError as error:
                refused = error.reason == "refused"
                if order == "updated" or not (refused or isinstance(error, DisorderError)):
                    raise
                if refused:
                    self._refused[path] = self._now()
                self._tell_order(path, error.reason)
            else:
                return
        started = clock(names.started_at)
        async for items in self._api.by_start(path, names.started_at, started, since_ms):
            yield items

    def _tell_order(self, path: str, reason: str) -> None:
        if not self._within_a_day(self._told, path):
            self._told[path] = self._now()
            what = path.rpartition("/")[2]
            log.warning("list_order_refused", connection=self._name, what=what, reason=reason)

    def _within_a_day(self, times: Mapping[str, int], path: str) -> bool:
        at_ms = times.get(path)
        return at_ms is not None and 0 <= self._now() - at_ms < DAY_MS

    def _reading(self, via: str) -> Reading:
        return Reading("diallink", self._name, self._region, via, self._now())


def clock(name: str) -> Clock:
    """Reads the instant in the field of this name; milliseconds since 1970."""

    def read(item: bytes) -> int | None:
        try:
            return read_object(item, None, lambda fields: fields.instant_ms(name))
        except UnreadableError:
            return None

    return read


@asynccontextmanager
async def open_records(name: str, connection: "Connection") -> AsyncIterator[DialLinkRecords]:
    """Be ready to read back; the key is read anew. Raises ConfigError if there is none."""
    async with open_api(name, connection) as api:
        yield DialLinkRecords(name, connection, api)

"""Dialpad's own lists, read back.

https://developers.dialpad.com/reference   (the single calls: see `record_events`)
https://developers.dialpad.com/docs/rate-limits
"""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import structlog

from ingest.api import ApiError
from ingest.providers.dialpad.api import DialpadApi, open_api, text_id
from ingest.providers.dialpad.record_events import (
    call_center_listed,
    call_recorded,
    consent_changed,
    contact_listed,
    department_listed,
    duty_status,
    number_listed,
    office_listed,
    operators_among,
    recap_ready,
    transcript_ready,
    user_listed,
)
from ingest.reading import Reading
from schemas.event import Event
from schemas.times import now_ms

if TYPE_CHECKING:
    from ingest.settings import Connection

log = structlog.get_logger()

#: Dialpad refuses a window of 30 days or more.
SLICE_MS = 29 * 24 * 3600 * 1000

#: The most that the list of calls gives at a time; its error says so.
_CALLS_A_PAGE = 50

#: The last of them wins where a number has opted out of one thing and back into another.
_OPT_OUT_STATES = ("opted_back_in", "opted_out")

#: After so many calls without a single recap it is told that there seem to be none. At the twelve
#: a minute that Dialpad allows, those of the first calls would have been made meanwhile.
_ENOUGH_CALLS = 100

_Page = Sequence[Event]


class DialpadRecords:
    """One connection's lists at Dialpad. Use `open_records`.

    Everything comes as it stands now, whether it was read before or not: whoever publishes it
    leaves out what was published already. That has the same id; only the ids of contacts, of the
    directory and of opt-outs without a date end in the minute in which they were read, and are the
    same up to there as long as their content is. No part of an id holds a bare colon.
    """

    def __init__(
        self,
        name: str,
        region: str | None,
        api: DialpadApi,
        now: Callable[[], int] = now_ms,
    ) -> None:
        """``now``: our clock, milliseconds since 1970."""
        self._name = name
        self._region = region
        self._api = api
        self._now = now
        #: Calls that have none; None once there was one, or it was told.
        self._without_recap: set[str] | None = set()
        self._also: Mapping[str, Callable[[Sequence[str], str], AsyncIterator[_Page]]] = {
            "transcripts": self._transcripts,
            "recaps": self._recaps,
            "contacts": self._contacts,
            "consents": self._consents,
            "directory": self._directory,
            "duty_status": self._duty_status,
        }

    async def calls(self, from_ms: int, to_ms: int, via: str) -> AsyncIterator[_Page]:
        """``call.recorded`` of the concluded calls that began in [from, to), a page at a time.

        Dialpad filters by the start and lists a call once it has ended: what began in a window
        can turn up in it for as long as calls last. The latest start comes first, in slices of
        less than 30 days from the earliest to the latest. One that began a millisecond too early
        may be among them: the page does not say whether its bounds belong to the window.
        """
        from_ms = max(0, from_ms)
        while from_ms < to_ms:
            end_ms = min(from_ms + SLICE_MS, to_ms)
            params = {"started_after": max(0, from_ms - 1), "started_before": end_ms}
            pages = self._pages(via, "/api/v2/call", call_recorded, params, limit=_CALLS_A_PAGE)
            async for page in pages:
                yield page
            from_ms = end_ms

    def also(self, what: str, call_ids: Sequence[str], via: str) -> AsyncIterator[_Page]:
        """What the setting `poll.also` names.

        ``transcripts``, ``recaps``: of these calls, as far as there are any; only what that answer
        tells is known of the call, the rest is null or unknown.
        ``contacts``: all shared ones, as ``contact.updated``. It is for the poller to make
        ``created`` of those that are new, and ``deleted`` of those that were listed and are no
        more: in the type, in ``data.change``, and in the fifth part of the id. Local contacts are
        not listed: that one of them is missing says nothing.
        ``consents``: ``consent.changed`` of every number that has ever opted out or back in.
        ``directory``: users, offices, departments, call centres, numbers.
        ``duty_status``: ``agent.status`` of every operator of a call centre.
        """
        return self._also[what](call_ids, via)

    async def _transcripts(self, call_ids: Sequence[str], via: str) -> AsyncIterator[_Page]:
        for call_id in call_ids:
            path = f"/api/v2/transcripts/{_in_path(call_id)}"
            if events := await self._one(via, path, partial(transcript_ready, call_id=call_id)):
                yield events

    async def _recaps(self, call_ids: Sequence[str], via: str) -> AsyncIterator[_Page]:
        for call_id in call_ids:
            path = f"/api/v2/call/{_in_path(call_id)}/ai_recap"
            events = await self._one(via, path, partial(recap_ready, call_id=call_id))
            self._note_recap(call_id, found=bool(events))
            if events:
                yield events

    def _note_recap(self, call_id: str, *, found: bool) -> None:
        """Tell once if there is never any: that is more likely a feature that is off."""
        if found or self._without_recap is None:
            self._without_recap = None
            return
        self._without_recap.add(call_id)
        if len(self._without_recap) == _ENOUGH_CALLS:
            log.warning("recaps_missing", connection=self._name, calls=_ENOUGH_CALLS)
            self._without_recap = None

    async def _contacts(self, call_ids: Sequence[str], via: str) -> AsyncIterator[_Page]:
        async for page in self._pages(via, "/api/v2/contacts", contact_listed):
            yield page

    async def _consents(self, call_ids: Sequence[str], via: str) -> AsyncIterator[_Page]:
        company = await self._api.get("/api/v2/company")
        path = f"/api/v2/company/{_in_path(text_id(company.get('id')))}/smsoptout"
        for state in _OPT_OUT_STATES:
            async for page in self._pages(via, path, consent_changed, {"opt_out_state": state}):
                yield page

    async def _directory(self, call_ids: Sequence[str], via: str) -> AsyncIterator[_Page]:
        async for page in self._pages(via, "/api/v2/users", user_listed):
            yield page
        async for page in self._pages(via, "/api/v2/offices", office_listed):
            yield page
        async for page in self._pages(via, "/api/v2/departments", department_listed):
            yield page
        async for page in self._pages(via, "/api/v2/callcenters", call_center_listed):
            yield page
        async for page in self._pages(via, "/api/v2/numbers", number_listed):
            yield page

    async def _duty_status(self, call_ids: Sequence[str], via: str) -> AsyncIterator[_Page]:
        async for users in self._api.pages("/api/v2/users"):
            for operator in operators_among(users):
                path = f"/api/v2/callcenters/operators/{_in_path(operator.id)}/dutystatus"
                if events := await self._one(via, path, partial(duty_status, operator=operator)):
                    yield events

    async def _pages(
        self,
        via: str,
        path: str,
        read: "Callable[[Reading, Any], Event | None]",
        params: Mapping[str, object] | None = None,
        *,
        limit: int | None = None,
    ) -> AsyncIterator[_Page]:
        async for items in self._api.pages(path, params, limit=limit):
            yield self._reading(via).events(items, read)

    async def _one(
        self, via: str, path: str, read: "Callable[[Reading, Any], Event | None]"
    ) -> _Page:
        """The event of one answer; none if there is no such thing."""
        try:
            answer = await self._api.read(path)
        except ApiError as error:
            if error.reason != "not_found":
                raise
            return ()
        return self._reading(via).events([answer], read)

    def _reading(self, via: str) -> Reading:
        return Reading("dialpad", self._name, self._region, via, self._now())


@asynccontextmanager
async def open_records(name: str, connection: "Connection") -> AsyncIterator[DialpadRecords]:
    """Be ready to read back; the key is read anew. Raises ConfigError if there is none."""
    async with open_api(name, connection) as api:
        yield DialpadRecords(name, connection.region, api)


def _in_path(ident: str) -> str:
    return quote(ident, safe="")

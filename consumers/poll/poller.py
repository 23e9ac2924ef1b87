"""One connection's poller: window after window, and the lists that the setting ``also`` names.

Each of these is a loop of its own with its own failures: a key without the scope for recaps stops
the recaps, and nothing else.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial

import msgspec
import orjson
import structlog

from consumers.poll.gaps import Gaps, close_gap, found_in
from consumers.poll.hints import DELAYS_S, Hinted, Hints, is_final
from consumers.poll.loops import (
    BACKOFF_S,
    CLOCK,
    LOOK_S,
    NEVER,
    SOURCE,
    STOPPED_S,
    VIA,
    Clock,
    Loops,
    Storing,
    closing_pages,
    whole,
)
from consumers.poll.seen import CALLS, UNSURE, Seen
from consumers.poll.windows import Gap, Plan, Window
from ingest.api import ApiError
from ingest.delivery import CallRecords, RecordingRecords, Records
from ingest.eventlog.log import Spooling
from ingest.logs import Sample
from ingest.metrics import POLL_GAPS_OPEN, POLL_WATERMARK_AGE_SECONDS
from ingest.providers import PROVIDERS
from ingest.settings import Connection
from ingest.work import Checkpoint, Job
from schemas.event import Event, id_part
from schemas.times import minute

log = structlog.get_logger()

DAY_S = 86_400.0

#: When a transcript or recap is asked for after its call was read, and again while there is none:
#: they are made minutes after the call, and some never.
ARTEFACT_DELAYS_S = (60.0, 300.0, 1800.0, 6 * 3600.0, DAY_S)

#: How many sweeps we know that we have those of a call.
_KEEP_SWEEPS = 8

#: What is read window by window, as calls are; also the name of its checkpoint.
RECORDINGS = "recordings"

#: What is fetched call by call.
ARTEFACTS = ("transcripts", "recaps")

#: The loop that reads calls again of which the provider has notified us.
HINTS = "hints"

#: These requests fail because of what they ask for; others may well be answered.
_ITS_OWN = ("refused", "unexpected", "conflict", "not_found")

Open = Callable[[], AbstractAsyncContextManager[Records]]


class Poller:
    """Reads back one connection while it is ours."""

    def __init__(
        self,
        job: Job,
        connection: Connection,
        open_records: Open,
        publisher: Spooling,
        gaps: Gaps,
        seen: Seen,
        hints: Hints | None = None,
        *,
        artefact_delays_s: Sequence[float] = ARTEFACT_DELAYS_S,
        hint_delays_s: Sequence[float] = DELAYS_S,
        stopped_s: float = STOPPED_S,
        backoff_s: tuple[float, float] = BACKOFF_S,
        look_s: float = LOOK_S,
        clock: Clock = CLOCK,
    ) -> None:
        """``hints``: of all connections; None if there are none of this one."""
        self.name = job.connection
        self._job = job
        self._poll = connection.poll
        self._gaps = gaps
        self._seen = seen
        self._hints = hints if connection.has_secrets else None
        self._hinted = Hinted(hint_delays_s)
        self._listening = False
        #: If single calls cannot be read there may be a line for each notification.
        self._hint_failures = Sample()
        self._delays_s = artefact_delays_s
        self._look_s = look_s
        self._clock = clock
        self._loops = Loops(
            self.name,
            open_records,
            CALLS,
            stopped_s=stopped_s,
            backoff_s=backoff_s,
            look_s=look_s,
        )
        self._storing = Storing(self.name, publisher, connection.privacy.drop)
        #: A page is compared, stored and remembered before the next one is compared.
        self._taking = asyncio.Lock()
        self._mark: str | None = (job.checkpoint(SOURCE) or {}).get("cache")
        self._slice_ms = PROVIDERS[connection.provider].slice_ms
        self._plan = self._plan_of(SOURCE)
        self._recordings_plan = self._plan_of(RECORDINGS)
        #: The turn of the sweep that is under way, of each of the two.
        self._sweep_turn = self._recordings_turn = 0

    def _plan_of(self, source: str) -> Plan:
        """It goes on where its last checkpoint was."""
        checkpoint = self._job.checkpoint(source) or {}
        marks = (whole(checkpoint, name) for name in ("watermark_ms", "swept_ms"))
        return Plan(self._poll, *marks, slice_ms=self._slice_ms)

    def troubles(self) -> Sequence[str]:
        return self._loops.troubles()

    def reload(self) -> None:
        """Secrets may have changed: whoever has stopped tries again."""
        self._loops.reload()

    async def run(self) -> None:
        """Read until cancelled, which may be at any moment: what is half done is done again."""
        mark = self._seen.adopt(self._mark)
        if mark != self._mark:
            # From now on what is remembered belongs to what the log holds.
            await self._storing.patiently(partial(self._job.save, SOURCE, self._checkpoint()))
        await self._gaps.current()
        age = POLL_WATERMARK_AGE_SECONDS.labels(self.name)
        age.set_function(self._watermark_age_s)
        loops: dict[str, Callable[[Records], Awaitable[float]]] = {CALLS: self._read_calls}
        what: str
        for what in self._poll.also:
            read = self._read_artefact if what in ARTEFACTS else self._read_list
            loops[what] = self._read_recordings if what == RECORDINGS else partial(read, what)
        if self._hints is not None:
            loops[HINTS] = self._read_hint
        try:
            await self._loops.run(loops)
        finally:
            if self._hints is not None:
                self._hints.leave(self.name)
            POLL_WATERMARK_AGE_SECONDS.remove(self.name)
            POLL_GAPS_OPEN.remove(self.name)

    # Calls

    async def _read_calls(self, records: Records) -> float:
        """Read the next window, if one is due."""
        websocket = self._job.checkpoint("websocket") or {}
        gaps = self._gaps.of(self.name, whole(websocket, "connected_ms"))
        POLL_GAPS_OPEN.labels(self.name).set(len(gaps))
        window = self._plan.next(self._clock.now_ms(), self._clock.steady_s(), gaps)
        if not isinstance(window, Window):
            return window
        if window.kind == "sweep" and self._sweep_turn == 0:
            self._sweep_turn = self._seen.begin(CALLS)
        begun_s = self._clock.steady_s()
        read = published = 0
        async with closing_pages(records.calls(window.from_ms, window.to_ms, VIA)) as pages:
            async for page in pages:
                read += len(page)
                published += await self._take_page(page, window.gaps)
        self._plan.done(window, self._clock.steady_s())
        if window.last:
            for gap in window.gaps:
                await close_gap(
                    self.name, gap, self._gaps, self._seen, self._storing, self._clock.now_ms()
                )
            if window.kind == "sweep":
                self._swept()
        if window.kind != "gap":
            await self._storing.save(self._job, SOURCE, self._checkpoint())
        log.debug(
            "poll_pass",
            connection=self.name,
            kind=window.kind,
            read=read,
            published=published,
            window_s=round((window.to_ms - window.from_ms) / 1000, 3),
            seconds=round(self._clock.steady_s() - begun_s, 3),
        )
        return 0.0

    async def _take_page(self, page: Sequence[Event], gaps: Sequence[Gap]) -> int:
        """Publish what is new in it, and remember it; how many that were."""
        async with self._taking:
            fresh = self._seen.fresh(CALLS, page)
            await self._storing.page(CALLS, page, fresh)
            due_ms = self._clock.now_ms() + round(self._delays_s[0] * 1000)
            artefacts = [what for what in self._poll.also if what in ARTEFACTS]
            self._seen.remember(
                CALLS,
                page,
                gaps=found_in(gaps, page),
                wanted=[
                    (what, event.data["call_id"], due_ms)
                    for event in fresh
                    if artefacts and was_recorded(event)
                    for what in artefacts
                ],
            )
        return len(fresh)

    def _swept(self) -> None:
        """Calls that were not in this sweep lie behind its window for good."""
        self._seen.forget_before(CALLS, self._sweep_turn)
        for what in ARTEFACTS:
            self._seen.forget_before(what, self._sweep_turn - _KEEP_SWEEPS)
            dropped = self._seen.drop_oldest_wanted(what)
            if dropped:
                log.warning("poll_behind", connection=self.name, what=what, dropped=dropped)
        self._sweep_turn = 0

    def _checkpoint(self) -> Checkpoint:
        return {"cache": self._seen.mark, **_marks(self._plan)}

    def _watermark_age_s(self) -> float:
        mark_ms = self._plan.watermark_ms
        return float("nan") if mark_ms is None else (self._clock.now_ms() - mark_ms) / 1000

    # Calls of which the provider has notified us

    async def _read_hint(self, records: Records) -> float:
        """Read one of these again, if it is due."""
        if not isinstance(records, CallRecords):
            return NEVER
        if self._hints is not None and not self._listening:
            self._listening = True
            self._hints.listen(
                self.name, lambda call_id: self._hinted.add(call_id, self._clock.steady_s())
            )
        taken = self._hinted.take(self._clock.steady_s())
        if isinstance(taken, float):
            return min(taken, self._look_s)
        call_id, tries = taken
        page: Sequence[Event] = ()
        try:
            page = await records.call(call_id, VIA)
            await self._take_page(page, ())
        except ApiError as error:
            if error.reason not in _ITS_OWN:
                raise
            if self._hint_failures.take(self._clock.steady_s()) is not None:
                self._loops.fail(HINTS, error, 1)
        finally:
            if not is_final(page):
                self._hinted.again(call_id, tries + 1, self._clock.steady_s())
        return 0.0

    # What the setting `also` names

    async def _read_artefact(self, what: str, records: Records) -> float:
        """Fetch what is wanted of one call, if something is due."""
        wanted = self._seen.next_wanted(what)
        if wanted is None:
            return self._look_s
        call_id, due_ms, tries = wanted
        # Nothing waits longer than that: what does was put off by a clock that was ahead.
        if 0 < due_ms - self._clock.now_ms() <= max(self._delays_s) * 1000:
            return self._look_s
        found: list[Event] = []
        try:
            async with closing_pages(records.also(what, [call_id], VIA)) as pages:
                async for page in pages:
                    await self._storing.page(what, page, self._seen.fresh(what, page))
                    found += page
        except ApiError as error:
            if error.reason not in _ITS_OWN:
                raise
            # It may be this one call: it waits, and the others have their turn.
            self._loops.fail(what, error, 1)
            found = []
        if found:
            self._seen.fetched(what, call_id, found)
        elif tries + 1 < len(self._delays_s):
            wait_s = self._delays_s[tries + 1]
            self._seen.put_off(what, call_id, self._clock.now_ms() + round(wait_s * 1000))
        else:
            self._seen.fetched(what, call_id)
        return 0.0

    async def _read_recordings(self, records: Records) -> float:
        """Read the next window of these, if one is due."""
        if not isinstance(records, RecordingRecords):
            return NEVER
        plan = self._recordings_plan
        window = plan.next(self._clock.now_ms(), self._clock.steady_s(), ())
        if not isinstance(window, Window):
            return window
        if window.kind == "sweep" and self._recordings_turn == 0:
            self._recordings_turn = self._seen.begin(RECORDINGS)
        async with closing_pages(records.recordings(window.from_ms, window.to_ms, VIA)) as pages:
            async for page in pages:
                await self._storing.page(RECORDINGS, page, self._seen.fresh(RECORDINGS, page))
                self._seen.remember(RECORDINGS, page)
        plan.done(window, self._clock.steady_s())
        if window.kind == "sweep" and window.last:
            # What was not in this sweep lies behind its window for good.
            self._seen.forget_before(RECORDINGS, self._recordings_turn)
            self._recordings_turn = 0
        await self._storing.patiently(partial(self._job.save, RECORDINGS, _marks(plan)))
        return 0.0

    async def _read_list(self, what: str, records: Records) -> float:
        """Go through a list once, if it is due."""
        every_s = {
            "directory": DAY_S,
            "duty_status": self._poll.every_s,
        }.get(what, self._poll.sweep_every_s)
        if self._seen.missed(what):  # look again soon
            every_s = min(every_s, self._poll.every_s)
        last_ms = self._seen.note(f"listed {what}")
        if last_ms is not None:
            since_s = (self._clock.now_ms() - int(last_ms)) / 1000
            if 0 <= since_s < every_s:
                return every_s - since_s
        begun_ms = self._clock.now_ms()
        turn = self._seen.begin(what)
        async with closing_pages(records.also(what, [], VIA)) as pages:
            async for page in pages:
                if what == "contacts":
                    page = self._compared(page, first=last_ms is None)  # noqa: PLW2901
                fresh = self._seen.fresh(what, page)
                await self._storing.page(what, page, fresh)
                self._seen.remember(what, page)
        if what == "contacts":
            await self._tell_deleted(what, turn)
        else:
            self._seen.forget_before(what, turn)
        self._seen.set_note(f"listed {what}", begun_ms)
        return 0.0

    def _compared(self, page: Sequence[Event], *, first: bool) -> list[Event]:
        """``contact.created`` of those that had not been listed; but the first list is no news."""
        known = self._seen.facts("contacts", page)
        return [
            became(event, "created")
            if fact is None and not first and event.subject_kind == "contact"
            else event
            for event, fact in zip(page, known, strict=True)
        ]

    async def _tell_deleted(self, what: str, turn: int) -> None:
        gone = self._seen.missing(what, turn)
        events = [
            deleted_contact(self.name, key, fact, self._clock.now_ms())
            for key, fact in gone
            if key.startswith("contact/")
        ]
        await self._storing.page(what, events, events)
        self._seen.forget(what, [key for key, _ in gone])


def _marks(plan: Plan) -> dict[str, int]:
    """How far it is, for a checkpoint."""
    marks = {"watermark_ms": plan.watermark_ms, "swept_ms": plan.swept_ms}
    return {name: mark for name, mark in marks.items() if mark is not None}


def was_recorded(event: Event) -> bool:
    """Whether there may be a transcript: a key may lack the scope for the recordings themselves."""
    if event.subject_kind != "call":
        return False
    if event.data.get("recordings"):
        return True
    raw = orjson.loads(event.raw) if event.raw else None
    return isinstance(raw, dict) and raw.get("was_recorded") is True


#: Provider, connection, subject, contact, change.
_CHANGE_AT = 4


def became(event: Event, change: str) -> Event:
    """The contact event with another change in its type, its id, and its data."""
    parts = event.id.split(":")
    parts[_CHANGE_AT] = change
    return msgspec.structs.replace(
        event,
        type=f"dialstream.contact.{change}",
        id=":".join(parts),
        data={**event.data, "change": change},
    )


def deleted_contact(connection: str, subject: str, fact: str, at_ms: int) -> Event:
    """``contact.deleted`` of one that is not listed any more. Of it we know only who it was."""
    provider, *_, digest = fact.removeprefix(UNSURE).split(":")
    contact_id = subject.removeprefix("contact/")
    ident = ("contact", contact_id, "deleted", digest, minute(at_ms))
    nothing = (
        "contact_kind",
        "display_name",
        "first_name",
        "last_name",
        "company_name",
        "job_title",
    )
    return Event(
        type="dialstream.contact.deleted",
        subject_kind="contact",
        id=f"{provider}:{connection}:" + ":".join(map(id_part, ident)),
        subject=subject,
        key=f"{connection}/{contact_id}",
        time_ms=at_ms,
        recorded_ms=at_ms,
        via=VIA,
        provider=provider,
        connection=connection,
        data={
            "contact_id": contact_id,
            "change": "deleted",
            **dict.fromkeys(nothing),
            "phone_numbers": [],
            "emails": [],
            "urls": [],
        },
        raw=b"null",
    )

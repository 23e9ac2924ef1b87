"""One connection's poller: window after window, and the lists that the setting ``also`` names.

Each of these is a loop of its own with its own failures: a key without the scope for recaps stops
the recaps, and nothing else.
"""

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager, suppress
from functools import partial
from typing import Any

import apsw
import msgspec
import orjson
import structlog

from consumers.poll.gaps import Gaps
from consumers.poll.seen import CALLS, UNSURE, Seen
from consumers.poll.windows import Gap, Plan, Window
from ingest.api import ApiError
from ingest.delivery import Records
from ingest.errors import ConfigError, PublishError
from ingest.eventlog.log import Publisher
from ingest.gaps import gap_event
from ingest.metrics import (
    POLL_GAPS_OPEN,
    POLL_PUBLISHED,
    POLL_READ,
    POLL_WATERMARK_AGE_SECONDS,
    TALLIES,
)
from ingest.pipeline import store
from ingest.providers import PROVIDERS
from ingest.settings import Connection
from ingest.work import Job
from schemas.event import Event, id_part
from schemas.times import minute, now_ms

log = structlog.get_logger()

VIA = "poll"

#: The name of our checkpoint.
SOURCE = "calls"

DAY_S = 86_400.0

#: A key that is refused is tried again after so long, or when secrets are read again.
STOPPED_S = 900.0

#: Between two looks at whether there is something to do, at most.
LOOK_S = 1.0

#: So many failures in a row make it degraded.
_FAILING = 3

_BACKOFF_S = (1.0, 300.0)
_PUBLISH_BACKOFF_S = (0.2, 30.0)
_PUBLISH_S = 30.0

#: When a transcript or recap is asked for after its call was read, and again while there is none:
#: they are made minutes after the call, and some never.
ARTEFACT_DELAYS_S = (60.0, 300.0, 1800.0, 6 * 3600.0, DAY_S)

#: How many sweeps we know that we have those of a call.
_KEEP_SWEEPS = 8

#: What is fetched call by call.
ARTEFACTS = ("transcripts", "recaps")

Open = Callable[[], AbstractAsyncContextManager[Records]]


class Poller:
    """Reads back one connection while it is ours."""

    def __init__(
        self,
        job: Job,
        connection: Connection,
        open_records: Open,
        publisher: Publisher,
        gaps: Gaps,
        seen: Seen,
        *,
        artefact_delays_s: Sequence[float] = ARTEFACT_DELAYS_S,
        stopped_s: float = STOPPED_S,
        backoff_s: tuple[float, float] = _BACKOFF_S,
    ) -> None:
        self.name = job.connection
        self._job = job
        self._poll = connection.poll
        self._open = open_records
        self._publisher = publisher
        self._gaps = gaps
        self._seen = seen
        self._delays_s = artefact_delays_s
        self._stopped_s = stopped_s
        self._backoff_s = backoff_s
        checkpoint = job.checkpoint(SOURCE) or {}
        self._mark: str | None = checkpoint.get("cache")
        self._plan = Plan(
            self._poll,
            _whole(checkpoint, "watermark_ms"),
            _whole(checkpoint, "swept_ms"),
            slice_ms=PROVIDERS[connection.provider].slice_ms,
        )
        self._sweep_turn = 0
        #: What is wrong, by the loop.
        self._troubles: dict[str, str] = {}
        self._nudges: dict[str, asyncio.Event] = {}

    def troubles(self) -> Sequence[str]:
        return list(self._troubles.values())

    def reload(self) -> None:
        """Secrets may have changed: whoever has stopped tries again."""
        for nudge in self._nudges.values():
            nudge.set()

    async def run(self) -> None:
        """Read until cancelled, which may be at any moment: what is half done is done again."""
        mark = self._seen.adopt(self._mark)
        if mark != self._mark:
            # From now on what is remembered belongs to what the log holds.
            await self._patiently(self._save)
        await self._gaps.current()
        age = POLL_WATERMARK_AGE_SECONDS.labels(self.name)
        age.set_function(self._watermark_age_s)
        loops: dict[str, Callable[[Records], Awaitable[float]]] = {CALLS: self._read_calls}
        what: str
        for what in self._poll.also:
            read = self._read_artefact if what in ARTEFACTS else self._read_list
            loops[what] = partial(read, what)
        try:
            async with asyncio.TaskGroup() as tasks:
                for what, read_once in loops.items():
                    tasks.create_task(self._keep(what, read_once))
        finally:
            POLL_WATERMARK_AGE_SECONDS.remove(self.name)
            POLL_GAPS_OPEN.remove(self.name)

    async def _keep(self, what: str, read_once: Callable[[Records], Awaitable[float]]) -> None:
        """Read again and again; wait as ``read_once`` says, or as its error asks for."""
        nudge = self._nudges[what] = asyncio.Event()
        failures = 0
        while True:
            try:
                async with self._open() as records:
                    while True:
                        wait_s = await read_once(records)
                        if wait_s <= 0:
                            failures = 0
                            if self._troubles.pop(what, None):
                                log.info("poll_resumed", connection=self.name, what=what)
                        # Even 0: others have their turn.
                        await asyncio.sleep(min(wait_s, LOOK_S))
            except (ApiError, ConfigError) as error:
                failures += 1
                wait_s = self._fail(what, error, failures)
            except (asyncio.CancelledError, Exception) as error:
                task = asyncio.current_task()
                # The connection may be somebody else's; a memory that is damaged is opened anew.
                if isinstance(error, (PublishError, apsw.Error)) or (task and task.cancelling()):
                    raise
                log.error("unexpected_error", connection=self.name, exc_info=error)
                failures += 1
                wait_s = pause_s(failures, *self._backoff_s)
                self._note_failing(what, failures)
            nudge.clear()
            with suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await nudge.wait()

    def _fail(self, what: str, error: ApiError | ConfigError, failures: int) -> float:
        """Tell what went wrong; for how many seconds to leave it."""
        if isinstance(error, ConfigError) or error.reason in ("unauthorized", "forbidden"):
            self._troubles[what] = f"poll_stopped:{self._place(what)}"
            log.error(
                "poll_stopped",
                connection=self.name,
                what=what,
                reason="no_key" if isinstance(error, ConfigError) else error.reason,
                detail=str(error),
                retry_in_s=self._stopped_s,
            )
            return self._stopped_s
        wait_s = pause_s(failures, *self._backoff_s)
        if error.retry_after_s is not None:
            wait_s = max(wait_s, error.retry_after_s)
        self._note_failing(what, failures)
        say = log.warning
        if error.reason in ("cursor_loop", "unexpected"):  # waiting alone will hardly mend it
            say = log.error
        say(
            "poll_failed",
            connection=self.name,
            what=what,
            reason=error.reason,
            detail=str(error),
            failures=failures,
            retry_in_s=round(wait_s, 1),
        )
        return wait_s

    def _note_failing(self, what: str, failures: int) -> None:
        if failures >= _FAILING:
            self._troubles.setdefault(what, f"poll_failing:{self._place(what)}")

    def _place(self, what: str) -> str:
        return self.name if what == CALLS else f"{self.name}:{what}"

    # Calls

    async def _read_calls(self, records: Records) -> float:
        """Read the next window, if one is due."""
        websocket = self._job.checkpoint("websocket") or {}
        gaps = self._gaps.of(self.name, _whole(websocket, "connected_ms"))
        POLL_GAPS_OPEN.labels(self.name).set(len(gaps))
        window = self._plan.next(now_ms(), time.monotonic(), gaps)
        if not isinstance(window, Window):
            return window
        if window.kind == "sweep" and self._sweep_turn == 0:
            self._sweep_turn = self._seen.begin(CALLS)
        begun_s = time.monotonic()
        read = published = 0
        async with closing_pages(records.calls(window.from_ms, window.to_ms, VIA)) as pages:
            async for page in pages:
                read += len(page)
                published += await self._take_page(page, window.gaps)
        self._plan.done(window, time.monotonic())
        if window.last:
            for gap in window.gaps:
                await self._close(gap)
            if window.kind == "sweep":
                self._swept()
        if window.kind != "gap":
            await self._patiently(self._save)
        log.debug(
            "poll_pass",
            connection=self.name,
            kind=window.kind,
            read=read,
            published=published,
            window_s=round((window.to_ms - window.from_ms) / 1000, 3),
            seconds=round(time.monotonic() - begun_s, 3),
        )
        return 0.0

    async def _take_page(self, page: Sequence[Event], gaps: Sequence[Gap]) -> int:
        """Publish what is new in it, and remember it; how many that were."""
        fresh = self._seen.fresh(CALLS, page)
        await self._store(CALLS, page, fresh)
        due_ms = now_ms() + round(self._delays_s[0] * 1000)
        artefacts = [what for what in self._poll.also if what in ARTEFACTS]
        self._seen.remember(
            CALLS,
            page,
            gaps=[(gap, e.data["call_id"]) for gap in gaps for e in page if ended_in(gap, e)],
            wanted=[
                (what, event.data["call_id"], due_ms)
                for event in fresh
                if artefacts and was_recorded(event)
                for what in artefacts
            ],
        )
        return len(fresh)

    async def _close(self, gap: Gap) -> None:
        """Say that a gap was read back; ``found``: the calls that ended in it.

        These are what the channel would have told. Whether another one has told of them, or the
        provider has sent it again, a poller cannot know.
        """
        found = self._seen.found_in(gap)
        event = gap_event(
            self.name,
            gap.channel,
            gap.from_ms,
            to_ms=gap.to_ms,
            reason=gap.reason,
            found=found,
            now_ms=now_ms(),
        )
        await self._patiently(partial(self._put, [event]))
        self._gaps.closed(self.name, gap)
        self._seen.gap_closed(gap)
        log.info(
            "gap_closed",
            connection=self.name,
            channel=gap.channel,
            reason=gap.reason,
            seconds=round((gap.end_ms - gap.from_ms) / 1000, 3),
            found=found,
        )

    def _swept(self) -> None:
        """Calls that were not in this sweep lie behind its window for good."""
        self._seen.forget_before(CALLS, self._sweep_turn)
        for what in ARTEFACTS:
            self._seen.forget_before(what, self._sweep_turn - _KEEP_SWEEPS)
            dropped = self._seen.drop_oldest_wanted(what)
            if dropped:
                log.warning("poll_behind", connection=self.name, what=what, dropped=dropped)
        self._sweep_turn = 0

    async def _save(self) -> None:
        checkpoint: dict[str, Any] = {"cache": self._seen.mark}
        if self._plan.watermark_ms is not None:
            checkpoint["watermark_ms"] = self._plan.watermark_ms
        if self._plan.swept_ms is not None:
            checkpoint["swept_ms"] = self._plan.swept_ms
        await self._job.save(SOURCE, checkpoint)

    def _watermark_age_s(self) -> float:
        mark_ms = self._plan.watermark_ms
        return float("nan") if mark_ms is None else (now_ms() - mark_ms) / 1000

    # What the setting `also` names

    async def _read_artefact(self, what: str, records: Records) -> float:
        """Fetch what is wanted of one call, if something is due."""
        wanted = self._seen.next_wanted(what)
        if wanted is None:
            return LOOK_S
        call_id, due_ms, tries = wanted
        # Nothing waits longer than that: what does was put off by a clock that was ahead.
        if 0 < due_ms - now_ms() <= max(self._delays_s) * 1000:
            return LOOK_S
        found: list[Event] = []
        try:
            async with closing_pages(records.also(what, [call_id], VIA)) as pages:
                async for page in pages:
                    await self._store(what, page, self._seen.fresh(what, page))
                    found += page
        except ApiError as error:
            if error.reason not in ("refused", "unexpected", "conflict", "not_found"):
                raise
            # It may be this one call: it waits, and the others have their turn.
            self._fail(what, error, 1)
            found = []
        if found:
            self._seen.fetched(what, call_id, found)
        elif tries + 1 < len(self._delays_s):
            wait_s = self._delays_s[tries + 1]
            self._seen.put_off(what, call_id, now_ms() + round(wait_s * 1000))
        else:
            self._seen.fetched(what, call_id)
        return 0.0

    async def _read_list(self, what: str, records: Records) -> float:
        """Go through a list once, if it is due."""
        every_s = {"directory": DAY_S, "duty_status": self._poll.every_s}.get(
            what, self._poll.sweep_every_s
        )
        if self._seen.missed(what):  # look again soon
            every_s = min(every_s, self._poll.every_s)
        last_ms = self._seen.note(f"listed {what}")
        if last_ms is not None:
            since_s = (now_ms() - int(last_ms)) / 1000
            if 0 <= since_s < every_s:
                return every_s - since_s
        begun_ms = now_ms()
        turn = self._seen.begin(what)
        async with closing_pages(records.also(what, [], VIA)) as pages:
            async for page in pages:
                if what == "contacts":
                    page = self._compared(page, first=last_ms is None)  # noqa: PLW2901
                fresh = self._seen.fresh(what, page)
                await self._store(what, page, fresh)
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
            deleted_contact(self.name, key, fact, now_ms())
            for key, fact in gone
            if key.startswith("contact/")
        ]
        await self._store(what, events, events)
        self._seen.forget(what, [key for key, _ in gone])

    # Storing

    async def _store(self, what: str, page: Sequence[Event], fresh: Sequence[Event]) -> None:
        """Return once ``fresh``, which is new in a page, is durable on the event log."""
        POLL_READ.labels(self.name, what).inc(len(page))
        if not fresh:
            return
        await self._patiently(partial(self._put, fresh))
        POLL_PUBLISHED.labels(self.name, what).inc(len(fresh))
        tally = TALLIES.of(self.name, VIA)
        for event in fresh:
            if event.subject_kind == "reject":
                tally.rejects[event.what] += 1
            else:
                tally.events[event.subject_kind] += 1
            for surprise, _ in event.surprises:
                tally.surprises[surprise] += 1

    async def _put(self, events: Sequence[Event]) -> None:
        await store(self._publisher, events, asyncio.get_running_loop().time() + _PUBLISH_S)

    async def _patiently(self, put: Callable[[], Awaitable[None]]) -> None:
        """Do it until it is durable: what was read is never skipped."""
        for tries in itertools.count(1):
            try:
                return await put()
            except PublishError as error:
                if error.reason == "not_owner":
                    raise
                wait_s = pause_s(tries, *_PUBLISH_BACKOFF_S)
                log.warning(
                    "poll_waits",
                    connection=self.name,
                    reason=error.reason,
                    retry_in_s=round(wait_s, 1),
                )
            await asyncio.sleep(wait_s)
        raise AssertionError


def _whole(checkpoint: Mapping[str, Any], name: str) -> int | None:
    value = checkpoint.get(name)
    return value if type(value) is int else None


@asynccontextmanager
async def closing_pages(
    pages: AsyncIterator[Sequence[Event]],
) -> AsyncIterator[AsyncIterator[Sequence[Event]]]:
    """End what reads the pages with the block, and not some time later."""
    try:
        yield pages
    finally:
        close = getattr(pages, "aclose", None)
        if close is not None:
            await close()


def pause_s(failures: int, first_s: float, most_s: float) -> float:
    """How long to wait after so many failures in a row: longer each time, never quite alike."""
    return min(most_s, first_s * 2.0 ** min(failures - 1, 30)) * random.uniform(0.75, 1.0)  # noqa: S311 - jitter


def ended_in(gap: Gap, event: Event) -> bool:
    """Whether a call became what its record says while the channel was deaf."""
    return event.subject_kind == "call" and gap.from_ms <= event.time_ms <= gap.end_ms


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

"""One connection is read back: nothing is left out, nothing is said twice, failures stay apart."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from consumers.poll.poller import Poller, deleted_contact
from consumers.poll.seen import Seen
from consumers.poll.windows import Gap
from ingest.api import ApiError
from ingest.errors import ConfigError, PublishError
from ingest.eventlog.journal import open_journal
from ingest.eventlog.log import Receipt, Record
from ingest.gaps import gap_event
from schemas.contact import Contact
from schemas.event import Event, encode
from schemas.times import now_ms
from tests.consumers.poll.fakes import (
    HOUR_MS,
    Call,
    CurrentGaps,
    FakeJob,
    FakeRecords,
    events_on,
    listed,
    poller,
)


@pytest.fixture
def records() -> FakeRecords:
    """Ten calls of the last hours."""
    records = FakeRecords()
    now = now_ms()
    for n in range(10):
        began = now - (n + 1) * HOUR_MS // 2
        records.list.append(Call(100 + n, began, began + 60_000))
    return records


@asynccontextmanager
async def running(one: Poller) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(one.run())
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def until(holds: Callable[[], bool]) -> None:
    async with asyncio.timeout(30):
        while not holds():  # noqa: ASYNC110 - of what is tested, nothing tells
            await asyncio.sleep(0.01)


async def passes(records: FakeRecords, count: int) -> None:
    """Wait until so many more windows have been read to their end."""
    goal = len(records.windows) + count + 1
    await until(lambda: len(records.windows) >= goal)


async def read_for(
    path: Path, records: FakeRecords, job: FakeJob, count: int = 3, **settings: Any
) -> None:
    """A poller's life of so many passes."""
    seen = Seen.open(path / "poll" / "acme.sqlite")
    async with (
        open_journal(path) as journal,
        running(poller(records, job, journal, seen, **settings)),
    ):
        await passes(records, count)
    seen.close()


def ids(events: Sequence[dict[str, Any]]) -> list[str]:
    return [event["id"] for event in events]


async def test_every_call_is_published_once_however_often_it_is_read(
    tmp_path: Path, records: FakeRecords
) -> None:
    job = FakeJob()
    before = now_ms()
    await read_for(tmp_path, records, job, 4)
    assert Counter(ids(await events_on(tmp_path))) == Counter(
        f"fake:acme:record:{100 + n}:0000000000000001" for n in range(10)
    )
    assert before - 1 <= job.saved["calls"]["watermark_ms"] <= now_ms()


async def test_a_record_that_has_changed_is_published_again(
    tmp_path: Path, records: FakeRecords
) -> None:
    job = FakeJob()
    await read_for(tmp_path, records, job)
    records.list[0].version = 2
    await read_for(tmp_path, records, job)
    records.list[0].version = 1  # and back
    await read_for(tmp_path, records, job)
    found = [i for i in ids(await events_on(tmp_path)) if ":100:" in i]
    assert [i[-1] for i in found] == ["1", "2", "1"]
    assert len(await events_on(tmp_path)) == 12


async def test_a_memory_that_is_lost_or_is_anothers_only_repeats(
    tmp_path: Path, records: FakeRecords
) -> None:
    job = FakeJob()
    await read_for(tmp_path, records, job)
    assert len(await events_on(tmp_path)) == 10
    # Another poller, elsewhere, has been at work since: whatever we knew may not be the last.
    job.saved["calls"] = {**job.saved["calls"], "cache": "of another"}
    await read_for(tmp_path, records, job)
    # It reads from the watermark on, so only what is within the overlap comes again.
    repeated = Counter(ids(await events_on(tmp_path)))
    assert set(repeated.values()) == {1, 2}
    (tmp_path / "poll" / "acme.sqlite").write_bytes(b"no database" * 1000)
    with capture_logs() as logs:
        await read_for(tmp_path, records, job)
    assert "poll_memory_lost" in [line["event"] for line in logs]
    assert set(Counter(ids(await events_on(tmp_path))).values()) == {1, 3}


async def test_a_new_event_log_gets_everything_whatever_is_remembered(
    tmp_path: Path, records: FakeRecords
) -> None:
    await read_for(tmp_path / "one", records, FakeJob())
    (tmp_path / "two").mkdir()
    (tmp_path / "one" / "poll").rename(tmp_path / "two" / "poll")
    await read_for(tmp_path / "two", records, FakeJob())
    assert len(await events_on(tmp_path / "two")) == 10


@pytest.mark.parametrize("at", range(5))
@pytest.mark.parametrize("reason", ["unavailable", "rate_limited", "cursor_loop", "unexpected"])
async def test_a_failure_at_any_page_moves_no_watermark_and_loses_nothing(
    tmp_path: Path, records: FakeRecords, at: int, reason: Any
) -> None:
    job = FakeJob()
    records.faults = [*[None] * at, *[ApiError(reason) for _ in range(3)]]
    seen = Seen.open(tmp_path / "poll.sqlite")
    async with open_journal(tmp_path) as journal:
        one = poller(records, job, journal, seen)
        with capture_logs() as logs:
            async with running(one):
                await until(lambda: not records.faults)
                failed = [line for line in logs if line["event"] == "poll_failed"]
                assert [line["failures"] for line in failed][:2] == [1, 2]
                if at < 4:  # the first pass has five requests
                    assert "watermark_ms" not in job.saved["calls"]
                await until(lambda: "watermark_ms" in job.saved["calls"])
                await passes(records, 1)
                assert one.troubles() == []
    assert len(set(ids(await events_on(tmp_path)))) == 10
    seen.close()


async def test_pages_that_change_under_the_walk(tmp_path: Path, records: FakeRecords) -> None:
    """New calls push known ones to the next page; one that shrinks the list hides some."""
    job = FakeJob()
    fresh = iter(range(200, 220))
    begun = now_ms()

    def meanwhile() -> None:
        ident = next(fresh, None)
        if ident is not None:
            records.list.append(Call(ident, begun - ident, begun - 1))
        if ident == 203:
            del records.list[0]  # call 100, which has been read

    records.meanwhile = meanwhile
    await read_for(tmp_path, records, job, 12)
    found = Counter(ids(await events_on(tmp_path)))
    assert set(found.values()) == {1}
    assert len(found) == 10 + 20


async def test_a_refused_key_stops_it_and_a_new_one_is_tried_at_once(
    tmp_path: Path, records: FakeRecords
) -> None:
    job = FakeJob()
    seen = Seen.open(tmp_path / "poll.sqlite")
    async with open_journal(tmp_path) as journal:
        one = poller(records, job, journal, seen)
        records.broken["calls"] = ApiError("forbidden", "GET: 403", status=403, mend="a scope")
        with capture_logs() as logs:
            async with running(one):
                await until(lambda: bool(one.troubles()))
                assert one.troubles() == ["poll_stopped:acme"]
                windows = len(records.windows)
                await asyncio.sleep(0.3)
                assert len(records.windows) == windows
                one.reload()
                await until(lambda: len(records.windows) == windows + 1)
                await until(lambda: sum(e["event"] == "poll_stopped" for e in logs) == 2)
                records.broken.clear()
                one.reload()
                await until(lambda: one.troubles() == [])
    told = [line for line in logs if line["event"] == "poll_stopped"]
    assert told[0]["detail"] == "GET: 403: a scope"
    assert told[0]["retry_in_s"] == 900
    assert "poll_resumed" in [line["event"] for line in logs]
    assert records.opened == 3  # the key is read anew each time
    seen.close()


async def test_a_key_that_cannot_be_read_stops_it_too(tmp_path: Path, records: FakeRecords) -> None:
    job, seen = FakeJob(), Seen.open(tmp_path / "poll.sqlite")
    refusals = [ConfigError("api_key_file: it is gone")]

    @asynccontextmanager
    async def without_key() -> AsyncIterator[Any]:
        if refusals:
            raise refusals.pop()
        yield records

    records.open = without_key  # type: ignore[method-assign]
    async with open_journal(tmp_path) as journal:
        one = poller(records, job, journal, seen)
        async with running(one):
            await until(lambda: one.troubles() == ["poll_stopped:acme"])
            one.reload()
            await until(lambda: one.troubles() == [])
    seen.close()


async def test_what_fails_beside_the_calls_stops_itself_alone(
    tmp_path: Path, records: FakeRecords
) -> None:
    job, seen = FakeJob(), Seen.open(tmp_path / "poll.sqlite")
    records.broken["consents"] = ApiError("forbidden", status=403)
    records.lists["directory"] = [listed("directory", "7", 1)]
    async with open_journal(tmp_path) as journal:
        one = poller(records, job, journal, seen, also=("consents", "directory"))
        async with running(one):
            await until(lambda: one.troubles() == ["poll_stopped:acme:consents"])
            await passes(records, 3)
    assert Counter(e["type"] for e in await events_on(tmp_path)) == {
        "dialstream.call.recorded": 10,
        "dialstream.directory.listed": 1,
    }
    seen.close()


class Reluctant:
    """A log that refuses some of what it is given, now and then."""

    def __init__(self, log: Any, refusals: int) -> None:
        self._log = log
        self.refusals = refusals
        #: Whether it is all in a spool.
        self.in_spool = False

    def spools(self, topic: str) -> bool:
        return self.in_spool and topic == "calls"

    def publish(self, records: Sequence[Record]) -> Receipt:
        if self.refusals:
            self.refusals -= 1
            raise PublishError("overload")
        found: Receipt = self._log.publish(records)
        return found


@pytest.mark.parametrize("fault", [TypeError("private"), asyncio.CancelledError()])
@pytest.mark.parametrize("place", ["directory", "calls"])
async def test_a_fault_of_ours_is_told_tried_again_and_stops_nothing_else(
    tmp_path: Path, records: FakeRecords, place: str, fault: Any
) -> None:
    job, seen = FakeJob(), Seen.open(tmp_path / "poll.sqlite")
    records.lists["directory"] = [listed("directory", "1", 1)]
    records.broken[place] = fault
    with capture_logs() as logs:
        async with (
            open_journal(tmp_path) as journal,
            running(
                one := poller(records, job, journal, seen, also=("directory",), sweep_every_s=0.05)
            ) as task,
        ):
            await until(lambda: len(one.troubles()) == 1)
            if place == "calls":
                await until(lambda: seen.note("listed directory") is not None)
                assert one.troubles() == ["poll_failing:acme"]
            else:
                await passes(records, 3)
                assert one.troubles() == ["poll_failing:acme:directory"]
            del records.broken[place]
            await until(lambda: not one.troubles())
            await passes(records, 3)
            assert not task.done()
    errors = [line for line in logs if line["event"] == "unexpected_error"]
    assert {line["connection"] for line in errors} == {"acme"}
    seen.close()


async def test_what_was_put_off_by_a_clock_that_was_ahead_is_due(
    tmp_path: Path, records: FakeRecords
) -> None:
    job, seen = FakeJob(), Seen.open(tmp_path / "poll.sqlite")
    records.artefacts["recaps"] = {"77": 1}
    seen.remember("calls", [], wanted=[("recaps", "77", now_ms() + 1000 * HOUR_MS)])
    async with (
        open_journal(tmp_path) as journal,
        running(poller(records, job, journal, seen, also=("recaps",))),
    ):
        await until(lambda: seen.next_wanted("recaps") is None)
    seen.close()


async def test_what_the_log_does_not_take_is_offered_until_it_does(
    tmp_path: Path, records: FakeRecords
) -> None:
    job, seen = FakeJob(), Seen.open(tmp_path / "poll.sqlite")
    async with open_journal(tmp_path) as journal:
        log = Reluctant(journal, 3)
        async with running(poller(records, job, log, seen)):
            await until(lambda: log.refusals == 0)
            assert "watermark_ms" not in job.saved["calls"]
            await until(lambda: "watermark_ms" in job.saved["calls"])
    assert len(set(ids(await events_on(tmp_path)))) == 10
    seen.close()


async def test_a_mark_is_not_saved_while_what_was_read_is_only_in_a_spool(
    tmp_path: Path, records: FakeRecords
) -> None:
    job, seen = FakeJob(), Seen.open(tmp_path / "poll.sqlite")
    async with open_journal(tmp_path) as journal:
        log = Reluctant(journal, 0)
        log.in_spool = True
        async with running(poller(records, job, log, seen)):
            await until(lambda: len(records.windows) > 3)
            assert "watermark_ms" not in job.saved["calls"]
            log.in_spool = False
            await until(lambda: "watermark_ms" in job.saved["calls"])
    seen.close()


async def test_cancelled_anywhere_and_begun_again_nothing_is_lost(
    tmp_path: Path, records: FakeRecords
) -> None:
    """Every life ends a little later than the last one, in the middle of whatever it does."""
    job = FakeJob()
    async with open_journal(tmp_path) as journal:
        for life in range(25):
            seen = Seen.open(tmp_path / "poll.sqlite")
            async with running(poller(records, job, journal, seen)):
                for _ in range(life):
                    await asyncio.sleep(0)
                await asyncio.sleep(life * 0.001)
            seen.close()
            records.list.append(Call(300 + life, now_ms() - 100, now_ms()))
        seen = Seen.open(tmp_path / "poll.sqlite")
        async with running(poller(records, job, journal, seen)):
            await passes(records, 2)
        seen.close()
    assert len(set(ids(await events_on(tmp_path)))) == 10 + 25


# Gaps


def opened(channel: str, from_ms: int, to_ms: int | None) -> Event:
    return gap_event(
        "acme", channel, from_ms, to_ms=to_ms, reason="test", found=None, now_ms=from_ms
    )


async def test_a_gap_is_read_back_and_closed_with_what_ended_in_it(
    tmp_path: Path, records: FakeRecords
) -> None:
    now = now_ms()
    # Longer ago than the watermark lets the near pass look.
    old = now - 30 * HOUR_MS
    records.list += [
        Call(501, old - HOUR_MS, old + 60_000),  # began before it and ended in it
        Call(502, old + 60_000, old + 120_000),
        Call(503, old + 120_000, old + 2 * HOUR_MS),  # ended after it
        Call(504, old - HOUR_MS, old - 60_000),  # before it
    ]
    gaps = CurrentGaps()
    gap = Gap(channel="webhook", from_ms=old, to_ms=old + HOUR_MS, reason="test")
    gaps._open["acme"] = {("webhook", old): gap}
    job = FakeJob(saved={"calls": {"watermark_ms": now, "swept_ms": now}})
    seen = Seen.open(tmp_path / "poll.sqlite")
    async with open_journal(tmp_path) as journal:
        with capture_logs() as logs:
            async with running(poller(records, job, journal, seen, gaps)):
                await until(lambda: gaps.of("acme", None) == [])
                await until(lambda: any(line["event"] == "gap_closed" for line in logs))
                await passes(records, 1)
    assert records.windows[0] == (old - 2 * HOUR_MS, old + HOUR_MS + 1)
    events = await events_on(tmp_path)
    (closed,) = [e for e in events if e["type"] == "dialstream.gap.closed"]
    assert closed["id"] == f"gap:acme:webhook:{old}:closed"
    assert closed["data"]["found"] == 2
    assert closed["data"]["reason"] == "test"
    of_the_gap = {
        e["subject"] for e in events if e["subject"] in {f"call/{n}" for n in range(501, 505)}
    }
    assert of_the_gap == {"call/501", "call/502", "call/503", "call/504"}
    seen.close()


async def test_a_gap_that_fails_is_read_again_and_counts_nothing_twice(
    tmp_path: Path, records: FakeRecords
) -> None:
    now = now_ms()
    old = now - 30 * HOUR_MS
    records.list = [Call(600 + n, old + n, old + 1000 + n) for n in range(7)]
    gaps = CurrentGaps()
    gap = Gap(channel="websocket", from_ms=old, to_ms=None, reason="test")
    gaps._open["acme"] = {("websocket", old): gap}
    records.faults = [None, None, ApiError("unavailable"), None, ApiError("unavailable")]
    job = FakeJob(
        saved={
            "calls": {"watermark_ms": now, "swept_ms": now},
            "websocket": {"connected_ms": old + HOUR_MS},
        }
    )
    seen = Seen.open(tmp_path / "poll.sqlite")
    async with (
        open_journal(tmp_path) as journal,
        running(poller(records, job, journal, seen, gaps)),
    ):
        await until(lambda: gaps.of("acme", None) == [])
    (closed,) = [e for e in await events_on(tmp_path) if e["type"] == "dialstream.gap.closed"]
    assert closed["data"]["found"] == 7
    assert closed["data"]["to"] is not None
    seen.close()


# Also


async def test_transcripts_of_recorded_calls_are_fetched_once_they_are_there(
    tmp_path: Path, records: FakeRecords
) -> None:
    job, seen = FakeJob(), Seen.open(tmp_path / "poll.sqlite")
    for call in records.list[:3]:
        call.recorded = True
    records.artefacts["transcripts"] = {"100": 1}
    async with (
        open_journal(tmp_path) as journal,
        running(poller(records, job, journal, seen, also=("transcripts",))),
    ):
        await until(lambda: sum(ids == ("101",) for _, ids in records.asked) == 2)
        records.artefacts["transcripts"]["101"] = 5
        await until(lambda: seen.next_wanted("transcripts") is None)
        # What is given up is not asked for any more, nor is what is there.
        asked = len(records.asked)
        records.list[0].version = 2
        await passes(records, 3)
        assert len(records.asked) == asked
    found = [
        e for e in await events_on(tmp_path) if e["type"] == "dialstream.call.transcript_ready"
    ]
    assert sorted(ids(found)) == [
        "fake:acme:transcript_ready:100:0000000000000001",
        "fake:acme:transcript_ready:101:0000000000000005",
    ]
    tries = Counter(ids for _, ids in records.asked)
    assert tries[("100",)] == 1
    assert tries[("102",)] == 3
    assert set(tries) == {("100",), ("101",), ("102",)}
    seen.close()


async def test_what_is_wanted_survives_a_restart(tmp_path: Path, records: FakeRecords) -> None:
    for call in records.list:
        call.recorded = True
    job = FakeJob()
    records.broken["recaps"] = ApiError("forbidden")
    await read_for(tmp_path, records, job, also=("recaps",))
    records.broken.clear()
    records.artefacts["recaps"] = {str(call.ident): 1 for call in records.list}
    seen = Seen.open(tmp_path / "poll" / "acme.sqlite")
    async with (
        open_journal(tmp_path) as journal,
        running(poller(records, job, journal, seen, also=("recaps",))),
    ):
        await until(lambda: seen.next_wanted("recaps") is None)
    found = [e for e in await events_on(tmp_path) if e["type"] == "dialstream.call.recap_ready"]
    assert len(found) == 10
    seen.close()


async def lists_once(path: Path, records: FakeRecords, job: FakeJob, what: str) -> None:
    """Go through a list once, as if it were due."""
    seen = Seen.open(path / "poll" / "acme.sqlite")
    async with open_journal(path) as journal:
        one = poller(records, job, journal, seen, also=(what,), every_s=1e-6, sweep_every_s=1e-6)
        assert await one._read_list(what, records) == 0.0
    seen.close()


class FakeRecordings(FakeRecords):
    """Recordings by the time of their change."""

    def __init__(self) -> None:
        super().__init__()
        self.changed: list[tuple[int, int]] = []
        #: Since when those were asked for that have changed.
        self.since: list[int] = []

    async def recordings(self, from_ms: int, to_ms: int, via: str) -> AsyncIterator[list[Event]]:
        self.since.append(from_ms)
        self._fail("recordings")
        for ident, changed_ms in self.changed:
            if changed_ms >= from_ms:
                event = Call(ident, changed_ms, changed_ms).event(via)
                event.type = "dialstream.call.recording_ready"
                event.id = f"fake:acme:recording_ready:{ident}:{ident:016x}"
                yield [event]


async def test_recordings_are_read_as_far_back_as_calls_and_told_once(tmp_path: Path) -> None:
    records, job, now = FakeRecordings(), FakeJob(), now_ms()
    seen = Seen.open(tmp_path / "poll" / "acme.sqlite")
    day_ms = 24 * HOUR_MS
    # Two within the first read, one of them within the near pass; and one from before.
    records.changed = [(1, now - 20 * HOUR_MS), (2, now - HOUR_MS), (3, now - 2 * day_ms)]
    also: dict[str, Any] = {
        "also": ("recordings",),
        "overlap_s": 7200.0,
        "sweep_overlap_s": 86_400.0,
    }

    def near(since_ms: int, hours: float) -> bool:
        """Give or take the time that the test takes."""
        return abs(now - since_ms - hours * HOUR_MS) < HOUR_MS / 2

    async with open_journal(tmp_path) as journal:
        async with running(poller(records, job, journal, seen, **also)):
            await until(lambda: len(records.since) >= 4)
        assert near(records.since[0], 24)
        assert all(near(since_ms, 2) for since_ms in records.since[1:])
        told = [e["id"].split(":")[3] for e in await events_on(tmp_path)]
        assert sorted(told) == ["1", "2"]

        # A process that comes back a week later, or another one, begins where this one was.
        for name in ("watermark_ms", "swept_ms"):
            job.saved["recordings"] = {**job.saved["recordings"], name: now - 7 * day_ms}
        records.since.clear()
        records.broken["recordings"] = ApiError("unavailable")
        async with running(poller(records, job, journal, seen, **also)):
            await until(lambda: len(records.since) >= 2)
            assert job.saved["recordings"]["watermark_ms"] == now - 7 * day_ms
            del records.broken["recordings"]
            await until(lambda: job.saved["recordings"]["swept_ms"] > now - HOUR_MS)
            await until(lambda: near(records.since[-1], 2))
        assert near(records.since[0], 7 * 24 + 2)
        # What the near pass has not read was not forgotten, nor told again by the sweep.
        told = [e["id"].split(":")[3] for e in await events_on(tmp_path)]
        assert sorted(told) == ["1", "2", "3"]
    seen.close()


async def test_contacts_are_compared_with_what_was_listed(tmp_path: Path) -> None:
    records, job = FakeRecords(), FakeJob()

    async def now_listed(*contacts: tuple[str, int]) -> list[tuple[str, str]]:
        known = len(await events_on(tmp_path))
        records.lists["contacts"] = [listed("contact", ident, v) for ident, v in contacts]
        await lists_once(tmp_path, records, job, "contacts")
        return [(e["type"], e["subject"]) for e in (await events_on(tmp_path))[known:]]

    updated, created = "dialstream.contact.updated", "dialstream.contact.created"
    assert await now_listed(("a", 1), ("b", 1)) == [
        (updated, "contact/a"),
        (updated, "contact/b"),
    ]
    assert await now_listed(("a", 1), ("b", 1)) == []
    assert await now_listed(("c", 1), ("a", 2), ("b", 1)) == [
        (created, "contact/c"),
        (updated, "contact/a"),
    ]
    # A page that moves may hide one: only who is missing twice is gone.
    assert await now_listed(("c", 1), ("a", 2)) == []
    assert await now_listed(("c", 1), ("a", 2), ("b", 1)) == []
    assert await now_listed(("c", 1), ("a", 2)) == []
    assert await now_listed(("c", 1), ("a", 2)) == [("dialstream.contact.deleted", "contact/b")]
    assert await now_listed(("c", 1), ("a", 2)) == []
    assert await now_listed(("c", 1), ("a", 2), ("b", 1)) == [(created, "contact/b")]
    (change,) = [
        e for e in await events_on(tmp_path) if e["type"] == created and e["subject"] == "contact/c"
    ]
    assert change["data"]["change"] == "created"
    assert change["id"].startswith("fake:acme:contact:c:created:0000000000000001:")


async def test_a_list_that_breaks_off_deletes_nobody(tmp_path: Path) -> None:
    records, job = FakeRecords(page=1), FakeJob()
    records.lists["contacts"] = [listed("contact", name, 1) for name in "abc"]
    await lists_once(tmp_path, records, job, "contacts")
    records.broken["contacts"] = ApiError("unavailable")
    for _ in range(3):
        with pytest.raises(ApiError):
            await lists_once(tmp_path, records, job, "contacts")
    assert [e["type"] for e in await events_on(tmp_path)] == ["dialstream.contact.updated"] * 3


async def test_a_number_that_opts_out_again_is_told_again(tmp_path: Path) -> None:
    records, job = FakeRecords(), FakeJob()

    async def now_listed(*states: str) -> list[str]:
        known = len(await events_on(tmp_path))
        records.lists["consents"] = [
            listed("consent", "+15550100", 1, state=state) for state in states
        ]
        await lists_once(tmp_path, records, job, "consents")
        return [e["data"]["state"] for e in (await events_on(tmp_path))[known:]]

    assert await now_listed("opted_out") == ["opted_out"]
    assert await now_listed("opted_out") == []
    assert await now_listed("opted_in") == ["opted_in"]
    assert await now_listed("opted_out") == ["opted_out"]
    # Of one thing back in, of another out: nothing to say again and again.
    assert await now_listed("opted_in", "opted_out") == ["opted_in"]
    assert await now_listed("opted_in", "opted_out") == []


def test_a_contact_of_which_nothing_is_known_but_its_id_fits_the_schema() -> None:
    fact = "?dialpad:acme:contact:a%3Ab:00000000000000aa"
    event = deleted_contact("acme", "contact/a:b", fact, 1_790_000_000_000)
    assert event.id == "dialpad:acme:contact:a%3Ab:deleted:00000000000000aa:202609211413"
    assert b'"raw":null' in encode(event)
    Contact.model_validate({**event.data, "raw": None})

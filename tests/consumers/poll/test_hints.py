"""A notification of a call makes its poller read that call again, once, and soon."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from structlog.testing import capture_logs

from consumers.poll import hints as module
from consumers.poll.hints import Hinted, Hints, is_final
from consumers.poll.poller import Poller
from consumers.poll.seen import Seen
from ingest.api import ApiError
from ingest.eventlog.journal import open_journal, open_reader
from ingest.eventlog.log import Reader, Spooling, StoredRecord, records_of
from ingest.pipeline import store
from ingest.reading import unknown_call
from ingest.settings import Connection, Poll
from schemas.event import Event
from tests.consumers.poll.fakes import QUICK, Call, CurrentGaps, FakeJob, FakeRecords, events_on
from tests.consumers.poll.test_poller import running, until

SECRET = "whsec_" + "A" * 32


def notified(
    call_id: str, *, of: str = "acme", via: str = "notification", what: str = "ended"
) -> Event:
    event = Call(0, 0, 0).event(via)
    event.type = f"dialstream.call.{what}"
    event.id = f"fake:{of}:call:{call_id}:{what}:1"
    event.subject, event.key = f"call/{call_id}", f"{of}/{call_id}"
    event.connection = of
    event.data = unknown_call(call_id, what)
    return event


def stored(*events: Event) -> list[StoredRecord]:
    return [
        StoredRecord(r.topic, 0, n, 1_790_000_000_000, r.key, r.value, r.headers)
        for n, event in enumerate(events)
        for r in records_of(event)
    ]


# What is heard


def test_only_notifications_of_calls_of_who_listens_are_hints() -> None:
    heard: list[str] = []
    hints = Hints()
    hints.listen("acme", heard.append)
    hints.read(
        stored(
            notified("a"),
            notified("b", of="other"),
            notified("c", of="acme_two"),
            notified("d", via="webhook"),
            notified("e", via="poll", what="recorded"),
            notified("f", via="notification", what="recorded"),
            notified("g%3A/h", what="ringing"),
        )
    )
    assert heard == ["a", "g%3A/h"]
    hints.leave("acme")
    hints.read(stored(notified("z")))
    assert heard == ["a", "g%3A/h"]


def test_what_is_none_of_ours_is_passed_by_without_being_read() -> None:
    heard: list[str] = []
    hints = Hints()
    hints.listen("acme", heard.append)
    (good,) = stored(notified("a"))
    others = []
    for key, value, headers in (
        (b"other/a", b"\xff", good.headers),
        (b"acme/a", b"\xff", (("ce_type", b"dialstream.call.recorded"),)),
        (b"acme/a", b"\xff", ()),
        (b"acme/a", b"{}", ()),
        (b"acme/a", b'{"via":"notification","data":[]}', ()),
        (b"acme/a", b'{"x":' + b"[" * 5000 + b"]" * 5000 + b"}", ()),
        (b"acme/a", None, ()),
        (b"\xff\xfe", good.value, ()),
        (b"", good.value, ()),
    ):
        others.append(StoredRecord("calls", 0, 1, 1, key, value, headers))
    hints.read([*others, good])
    assert heard == ["a"]


async def test_the_topic_is_followed_from_its_end_while_somebody_listens(tmp_path: Path) -> None:
    heard: list[str] = []
    hints, opened = Hints(), 0

    @asynccontextmanager
    async def opening() -> AsyncIterator[Reader]:
        nonlocal opened
        opened += 1
        if opened == 1:
            raise OSError
        async with open_reader(tmp_path, ["calls"], start="latest") as reader:
            await reader.fetch(wait_s=0)
            yield reader

    async with open_journal(tmp_path) as journal:
        loop = asyncio.get_running_loop()
        await store(journal, [notified("old")], loop.time() + 10)
        with capture_logs() as logs:
            following = asyncio.create_task(hints.follow(opening))
            await asyncio.sleep(0.05)
            assert opened == 0  # nobody listens
            hints.listen("acme", heard.append)
            await until(lambda: opened == 2)
            number = 0
            while not heard:
                await store(journal, [notified(f"new-{number}")], loop.time() + 10)
                number += 1
                await asyncio.sleep(0.05)
        hints.leave("acme")
        following.cancel()
        await asyncio.wait([following])
    assert "old" not in heard
    assert [line["event"] for line in logs] == ["hints_unread"]


# When it is read


def test_several_hints_of_a_call_come_to_one_reading_after_the_last() -> None:
    hinted = Hinted((5.0, 60.0))
    hinted.add("a", 100.0)
    hinted.add("b", 101.0)
    hinted.add("a", 102.0)
    assert hinted.take(103.0) == 3.0
    assert hinted.take(106.0) == ("b", 0)
    assert hinted.take(106.5) == 0.5
    assert hinted.take(107.0) == ("a", 0)
    assert hinted.take(1000.0) == float("inf")


def test_what_is_not_final_is_read_again_until_that_is_enough() -> None:
    hinted = Hinted((5.0, 60.0, 600.0))
    hinted.add("a", 0.0)
    assert hinted.take(5.0) == ("a", 0)
    hinted.again("a", 1, 5.0)
    assert hinted.take(64.0) == 1.0
    assert hinted.take(65.0) == ("a", 1)
    hinted.again("a", 2, 65.0)
    assert hinted.take(665.0) == ("a", 2)
    hinted.again("a", 3, 665.0)
    assert hinted.take(1e9) == float("inf")


def test_a_hint_that_comes_while_it_is_read_counts() -> None:
    hinted = Hinted((5.0, 60.0))
    hinted.add("a", 0.0)
    assert hinted.take(5.0) == ("a", 0)
    hinted.add("a", 6.0)
    hinted.again("a", 1, 7.0)
    assert hinted.take(11.0) == ("a", 0)
    assert hinted.take(1e9) == float("inf")


@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("add"), st.integers(0, 30)),
            st.tuples(st.just("wait"), st.floats(0, 20)),
        ),
        max_size=200,
    )
)
def test_what_waits_is_bounded_and_the_last_hints_are_kept(steps: list[tuple[str, Any]]) -> None:
    most, module.WAITING_MAX = module.WAITING_MAX, 10
    try:
        hinted, now_s, last_s = Hinted((5.0, 50.0)), 0.0, dict[str, float]()
        for step, value in steps:
            if step == "wait":
                now_s += value
                while isinstance(taken := hinted.take(now_s), tuple):
                    call_id, tries = taken
                    assert now_s >= last_s[call_id] + 5.0
                    hinted.again(call_id, tries + 1, now_s)
            else:
                hinted.add(str(value), now_s)
                last_s[str(value)] = now_s
            assert sum(map(len, hinted._waiting)) <= 10
            if step == "add":
                assert str(value) in hinted._waiting[0]
    finally:
        module.WAITING_MAX = most


def test_a_record_is_final_once_the_call_is_over() -> None:
    event = notified("a", what="recorded")
    assert not is_final([])
    assert not is_final([event])
    event.data["outcome"] = "missed"
    assert is_final([event])
    event.data["outcome"], event.data["ended_at"] = None, "2026-09-21T14:13:20.000Z"
    assert is_final([event])
    event.subject_kind, event.data = "reject", {}
    assert is_final([event])  # asking again does not make it readable


# The poller


class CallByCall(FakeRecords):
    """Also gives single calls."""

    def __init__(self) -> None:
        super().__init__()
        self.singles: list[str] = []

    async def call(self, call_id: str, via: str) -> Sequence[Event]:
        self.singles.append(call_id)
        self._fail("call")
        found = [call.event(via) for call in self.list if str(call.ident) == call_id]
        for event in found:
            event.data |= {"outcome": "answered"}
        return found


def poller(
    records: FakeRecords, publisher: Spooling, seen: Seen, hints: Hints, *, secrets: bool = True
) -> Poller:
    # The list comes but once.
    poll = Poll(**{**QUICK, "every_s": 3600.0, "lag_s": 60.0})
    connection = Connection(provider="diallink", secrets=(SECRET,) if secrets else (), poll=poll)
    return Poller(
        FakeJob(),
        connection,
        records.open,
        publisher,
        CurrentGaps(),
        seen,
        hints,
        hint_delays_s=(0.05, 0.1, 0.15),
        backoff_s=(0.01, 0.05),
    )


@asynccontextmanager
async def polling(path: Path, records: CallByCall) -> AsyncIterator[Hints]:
    hints, seen = Hints(), Seen.open(path / "poll.sqlite")
    async with (
        open_journal(path) as journal,
        running(poller(records, journal, seen, hints)),
    ):
        await until(lambda: bool(hints._listeners) and bool(records.windows))
        yield hints
    seen.close()


async def recorded(path: Path) -> list[str]:
    found = [e for e in await events_on(path) if e["type"] == "dialstream.call.recorded"]
    assert {event["via"] for event in found} <= {"poll"}
    return [event["id"].removeprefix("fake:acme:record:") for event in found]


async def test_a_hinted_call_is_read_and_published_once(tmp_path: Path) -> None:
    records = CallByCall()
    async with polling(tmp_path, records) as hints:
        records.list.append(Call(7, 10**13, 0))  # not in the list's window
        hints.read(stored(notified("7", what="ringing"), notified("7")))
        await until(lambda: records.singles == ["7"])
        hints.read(stored(notified("7")))
        await until(lambda: records.singles == ["7", "7"])
        records.list[0].version = 2
        hints.read(stored(notified("7")))
        await until(lambda: len(records.singles) == 3)
        await asyncio.sleep(0.3)
        assert len(records.singles) == 3
    assert await recorded(tmp_path) == ["7:0000000000000001", "7:0000000000000002"]


async def test_one_that_is_not_there_yet_is_asked_for_again_and_then_left_to_the_list(
    tmp_path: Path,
) -> None:
    records = CallByCall()
    async with polling(tmp_path, records) as hints:
        hints.read(stored(notified("7"), notified("8")))
        await until(lambda: records.singles.count("7") == 1)
        records.list.append(Call(7, 10**13, 0))
        await until(lambda: records.singles.count("8") == 3)
        await asyncio.sleep(0.3)
        assert sorted(records.singles) == ["7", "7", "8", "8", "8"]
    assert await recorded(tmp_path) == ["7:0000000000000001"]


async def test_where_no_single_call_can_be_read_that_is_not_told_of_each(tmp_path: Path) -> None:
    records = CallByCall()
    records.broken["call"] = ApiError("unexpected")
    with capture_logs() as logs:
        async with polling(tmp_path, records) as hints:
            hints.read(stored(*(notified(str(number)) for number in range(20))))
            await until(lambda: len(records.singles) == 60)
    told = [line for line in logs if line["event"] == "poll_failed"]
    assert 1 <= len(told) < 10
    assert {(line["what"], line["reason"]) for line in told} == {("hints", "unexpected")}


@pytest.mark.parametrize("reason", ["unavailable", "refused", "rate_limited"])
async def test_a_failure_stops_neither_the_others_nor_the_list(tmp_path: Path, reason: Any) -> None:
    records = CallByCall()
    async with polling(tmp_path, records) as hints:
        records.broken["call"] = ApiError(reason)
        hints.read(stored(notified("7")))
        await until(lambda: bool(records.singles))
        records.broken.clear()
        records.list += [Call(7, 10**13, 0), Call(8, 10**13, 0)]
        hints.read(stored(notified("8")))
        await until(lambda: {*records.singles[1:]} == {"7", "8"})
    assert sorted(await recorded(tmp_path)) == ["7:0000000000000001", "8:0000000000000001"]


async def test_who_gives_no_single_calls_or_is_not_pushed_does_not_listen(tmp_path: Path) -> None:
    records, hints = FakeRecords(), Hints()
    seen = Seen.open(tmp_path / "poll.sqlite")
    async with open_journal(tmp_path) as journal:
        async with running(poller(records, journal, seen, hints)):
            await until(lambda: records.opened == 2)  # for the calls, and to see whether it does
            await until(lambda: bool(records.windows))
            await asyncio.sleep(0.05)
            assert not hints._listeners
        single = CallByCall()
        async with running(poller(single, journal, seen, hints, secrets=False)):
            await until(lambda: bool(single.windows))
            assert single.opened == 1
            assert not hints._listeners
        async with running(poller(single, journal, seen, hints)):
            await until(lambda: bool(hints._listeners))
        assert not hints._listeners  # it has left with the poller
    seen.close()

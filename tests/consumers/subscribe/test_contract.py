"""What a subscriber promises to handlers, on the journal and on Kafka."""

import asyncio
import random
from collections import defaultdict

import pytest
from structlog.testing import capture_logs

from consumers.subscribe import (
    Deleted,
    Event,
    NotNowError,
    RejectError,
    Retry,
    Subscriber,
)
from ingest.errors import PublishError
from schemas.call import Call
from schemas.conversation import Conversation
from tests.consumers.subscribe.logs import (
    Log,
    call,
    conversation,
    read_all,
    running,
    tombstone,
    until,
)

QUICK = Retry(tries=3, first_s=0.01, most_s=0.05)


def nth(call: Call) -> int:
    return int(call.custom_data or "-1")


def noting(log: Log, seen: list[int]) -> Subscriber:
    """One that notes which calls it was given, by their number."""
    subscriber = Subscriber(group="crm", settings=log.settings)

    @subscriber.on(Call)
    async def note(call: Call) -> None:
        seen.append(nth(call))

    return subscriber


async def test_a_handler_gets_what_is_on_the_log_and_where_it_is(log: Log) -> None:
    subscriber = Subscriber(group="crm", settings=log.settings)
    calls: list[Call] = []
    events: list[Event[Call]] = []

    @subscriber.on(Call)
    async def plain(call: Call) -> None:
        calls.append(call)

    @subscriber.on(Call)
    async def with_event(call: Call, event: Event[Call]) -> None:
        assert event.data is call
        events.append(event)

    await log.write([call("1", 7)])
    async with running(subscriber) as task:
        await until(lambda: len(events) == 1, task)

    assert [(each.call_id, each.state, nth(each)) for each in calls] == [("1", "ended", 7)]
    (event,) = events
    (stored,) = await read_all(log, "calls")
    assert (event.topic, event.partition, event.position) == (
        "calls",
        stored.partition,
        stored.position,
    )
    assert (event.key, event.connection) == ("acme/1", "acme")
    assert event.id == "test:acme/1:call.ended:1789999200007"
    assert event.type == "dialstream.call.ended"
    assert event.value == stored.value
    assert event.envelope.recordedtime.timestamp() == 1_789_999_200.007
    assert event.written_at.timestamp() == stored.written_ms / 1000


async def test_only_what_was_asked_for_is_handed_out(log: Log) -> None:
    subscriber = Subscriber(group="crm", settings=log.settings)
    seen: list[str] = []

    @subscriber.on(Call, types=("call.missed", "dialstream.call.ended"))
    async def some(call: Call) -> None:
        seen.append(f"{call.call_id}:{call.state}")

    states = ("ringing", "missed", "connected", "ended")
    await log.write([call("1", n, state) for n, state in enumerate(states)])
    async with running(subscriber) as task:
        await until(lambda: len(seen) == 2, task)
        await log.write([call("2", 0, "connected"), call("2", 1, "ended")])
        await until(lambda: len(seen) == 3, task)
    assert seen == ["1:missed", "1:ended", "2:ended"]


async def test_a_group_goes_on_where_it_was(log: Log) -> None:
    seen: list[int] = []

    for first in (0, 20, 40):
        await log.write([call(f"leg{n % 3}", n) for n in range(first, first + 20)])
        async with running(noting(log, seen)) as task:
            upto = first + 20
            await until(lambda: len(seen) >= upto, task)  # noqa: B023 - it is waited for here
    assert sorted(seen) == list(range(60))  # stopped in good order, nothing came twice


async def test_latest_begins_at_the_end_and_stays_with_that(log: Log) -> None:
    seen: list[int] = []

    def make() -> Subscriber:
        subscriber = Subscriber(group="crm", start="latest", settings=log.settings)

        @subscriber.on(Call)
        async def note(call: Call) -> None:
            seen.append(nth(call))

        return subscriber

    await log.write([call("1", n) for n in range(5)])
    first = make()
    async with running(first) as task:
        for n in range(10, 1000):  # once it has begun it gets one
            await log.write([call("2", n)])
            if seen:
                break
            await asyncio.sleep(0.1)
        assert not task.done()
        await until(lambda: seen[-1] == n, task)
    begun = list(seen)
    assert begun == list(range(begun[0], n + 1))
    assert begun[0] >= 10
    await log.write([call(f"away{each}", 1000 + each) for each in range(8)])  # in all partitions
    async with running(make()) as task:
        await until(lambda: len(seen) == len(begun) + 8, task)
    assert sorted(seen[len(begun) :]) == list(range(1000, 1008))


async def test_keys_keep_their_order_and_run_side_by_side(log: Log) -> None:
    subscriber = Subscriber(group="crm", parallel=5, settings=log.settings)
    chance = random.Random(1)
    seen: dict[str, list[int]] = defaultdict(list)
    busy: set[str] = set()
    most = 0

    @subscriber.on(Call)
    async def note(call: Call) -> None:
        nonlocal most
        assert call.call_id not in busy
        busy.add(call.call_id)
        most = max(most, len(busy))
        await asyncio.sleep(chance.random() / 200)
        busy.remove(call.call_id)
        seen[call.call_id].append(nth(call))

    await log.write([call(f"leg{n % 20}", n) for n in range(400)])
    async with running(subscriber) as task:
        await until(lambda: sum(map(len, seen.values())) == 400, task)
    assert seen == {f"leg{leg}": list(range(leg, 400, 20)) for leg in range(20)}
    assert most == 5


async def test_repeats_are_not_handed_out_again(log: Log) -> None:
    subscriber = Subscriber(group="crm", settings=log.settings)
    seen: list[int] = []

    @subscriber.on(Call)
    async def note(call: Call) -> None:
        seen.append(nth(call))

    one, two = call("1", 1), call("1", 2)
    await log.write([one, two, one, two, one, call("1", 3)])
    async with running(subscriber) as task:
        await until(lambda: 3 in seen, task)
    assert seen == [1, 2, 3]


async def test_a_state_may_come_again(log: Log) -> None:
    """On a compacted topic the last of a key is what is so, whatever was before."""
    subscriber = Subscriber(group="crm", settings=log.settings)
    seen: list[str] = []

    @subscriber.on(Conversation)
    async def note(conversation: Conversation) -> None:
        seen.append(str(conversation.outcome))

    @subscriber.on_deletion(Conversation)
    async def gone(deleted: Deleted) -> None:
        assert (deleted.key, deleted.connection, deleted.name) == ("acme/7", "acme", "7")
        seen.append("deleted")

    first, second = conversation("7", "a", "answered"), conversation("7", "b", "missed")
    last = conversation("7", "c", "busy")
    await log.write([first, first, second, first, tombstone("7"), first, last])
    async with running(subscriber) as task:
        await until(lambda: "busy" in seen, task)
    assert seen == ["answered", "missed", "answered", "deleted", "answered", "busy"]


async def test_what_fails_is_tried_again_while_later_events_of_its_key_wait(log: Log) -> None:
    subscriber = Subscriber(group="crm", retry=QUICK, settings=log.settings)
    seen: list[tuple[str, int]] = []
    tries = 0

    @subscriber.on(Call)
    async def note(call: Call) -> None:
        nonlocal tries
        if call.call_id == "bad" and nth(call) == 1:
            tries += 1
            if tries < 3:
                raise OSError("not yet")
        seen.append((call.call_id, nth(call)))

    await log.write([call("bad", 0), call("bad", 1), call("bad", 2), call("good", 0)])
    async with running(subscriber) as task:
        await until(lambda: len(seen) == 4, task)
    assert [n for leg, n in seen if leg == "bad"] == [0, 1, 2]
    assert tries == 3
    assert await read_all(log, "rejects.crm") == []


async def test_a_poison_event_goes_to_the_groups_rejects_as_it_stood(log: Log) -> None:
    subscriber = Subscriber(group="crm", retry=QUICK, settings=log.settings)
    seen: list[tuple[str, int]] = []
    tries = 0

    @subscriber.on(Call)
    async def note(call: Call) -> None:
        nonlocal tries
        if nth(call) == 1:
            tries += 1
            raise RuntimeError("content that nobody must see")
        if nth(call) == 2:
            raise RejectError("no_such_account", "acme has none")
        seen.append((call.call_id, nth(call)))

    broken = call("1", 3)
    broken.value = (broken.value or b"").replace(b'"call_id":"1"', b'"call_id":""')
    await log.write([call("1", 0), call("1", 1), call("1", 2), broken, call("1", 4)])
    async with running(subscriber) as task:
        await until(lambda: ("1", 4) in seen, task)
    assert seen == [("1", 0), ("1", 4)]
    assert tries == 3

    written = await read_all(log, "calls")
    rejects = await read_all(log, "rejects.crm")
    assert [(each.key, each.value) for each in rejects] == [
        (each.key, each.value) for each in written[1:4]
    ]
    headers = [dict(each.headers) for each in rejects]
    assert [each["reject_reason"] for each in headers] == [
        b"RuntimeError",
        b"no_such_account",
        b"unreadable",
    ]
    assert headers[1]["reject_detail"] == b"acme has none"
    assert headers[2]["reject_detail"] == b"data.call_id: string_too_short"
    assert [each["reject_from"] for each in headers] == [
        f"calls/{each.partition}/{each.position}".encode() for each in written[1:4]
    ]
    assert [each["ce_id"] for each in headers] == [
        dict(each.headers)["ce_id"] for each in written[1:4]
    ]


async def test_what_is_redriven_is_handled_again_and_rejects_are_not(log: Log) -> None:
    from ingest.rejects import retry_request
    from schemas.times import now_ms

    subscriber = Subscriber(group="crm", retry=QUICK, settings=log.settings)
    mended = False
    seen: list[int] = []

    @subscriber.on(Call)
    async def note(call: Call) -> None:
        if not mended:
            raise RejectError("not_yet")
        seen.append(nth(call))

    await log.write([call("1", 0), call("1", 1)])
    async with running(subscriber) as task:
        while len(rejects := await read_all(log, "rejects.crm")) < 2:
            assert not task.done()
        await log.write([retry_request(rejects[0], now_ms())])
        while len(rejects := await read_all(log, "rejects.crm")) < 4:
            assert not task.done()
        assert dict(rejects[3].headers)["reject_from"] == dict(rejects[0].headers)["reject_from"]
        mended = True
        await log.write([retry_request(rejects[3], now_ms())])
        await until(lambda: bool(seen), task)
    assert seen == [0]


async def test_not_now_pauses_a_partition_until_it_can_be_handled(log: Log) -> None:
    subscriber = Subscriber(group="crm", settings=log.settings)
    seen: list[str] = []
    tries = 0
    away = True

    @subscriber.on(Call)
    async def note(call: Call) -> None:
        nonlocal tries
        if call.call_id == "1" and away:
            tries += 1
            raise NotNowError(0.05)
        seen.append(call.call_id)

    # Of the journal a topic is one partition; on Kafka these legs are in all of them.
    legs = [str(n) for n in range(1, 13)]
    await log.write([call(leg) for leg in legs])
    (home,) = {each.partition for each in await read_all(log, "calls") if each.key == b"acme/1"}
    others = {
        each.key.decode().partition("/")[2]
        for each in await read_all(log, "calls")
        if each.partition != home
    }
    async with running(subscriber) as task:
        await until(lambda: tries >= 3 and others <= set(seen), task)
        assert "1" not in seen
        away = False
        await until(lambda: len(seen) == 12, task)
    assert sorted(seen) == sorted(legs)


async def test_what_hangs_is_cancelled_and_fails(log: Log) -> None:
    subscriber = Subscriber(group="crm", retry=Retry(tries=2, first_s=0.01), settings=log.settings)
    ended: list[str] = []

    @subscriber.on(Call, timeout_s=0.1)
    async def hang(call: Call) -> None:
        if nth(call) == 0:
            try:
                await asyncio.Event().wait()
            finally:
                ended.append("cancelled")
        ended.append("handled")

    await log.write([call("1", 0), call("1", 1)])
    async with running(subscriber) as task:
        await until(lambda: "handled" in ended, task)
    assert ended == ["cancelled", "cancelled", "handled"]
    (reject,) = await read_all(log, "rejects.crm")
    assert dict(reject.headers)["reject_reason"] == b"TimeoutError"


async def test_a_handler_that_fails_everything_holds_and_loses_nothing(log: Log) -> None:
    """Ten in a row are not the fault of the events."""
    subscriber = Subscriber(
        group="crm", retry=Retry(tries=1, first_s=0.01, most_s=0.05), settings=log.settings
    )
    broken = True
    seen: list[int] = []
    failures = 0

    @subscriber.on(Call)
    async def note(call: Call) -> None:
        nonlocal failures
        if broken:
            failures += 1
            raise OSError
        seen.append(nth(call))

    await log.write([call("1", n) for n in range(30)])
    async with running(subscriber) as task:
        await until(lambda: failures >= 15, task)
        broken = False
        await until(lambda: len(seen) == 20, task)
    assert seen == list(range(10, 30))
    rejects = await read_all(log, "rejects.crm")
    assert [dict(each.headers)["ce_id"] for each in rejects] == [
        f"test:acme/1:call.ended:{1_789_999_200_000 + n}".encode() for n in range(10)
    ]


async def test_whoever_wants_it_is_stopped_by_a_failure_and_gets_the_event_again(log: Log) -> None:
    def make() -> Subscriber:
        subscriber = Subscriber(
            group="crm", retry=Retry(tries=1, then="stop"), settings=log.settings
        )

        @subscriber.on(Call)
        async def note(call: Call) -> None:
            if nth(call) == 1:
                raise ZeroDivisionError
            seen.append(nth(call))

        return subscriber

    seen: list[int] = []
    await log.write([call("1", 0), call("1", 1), call("1", 2)])
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            await asyncio.wait_for(make().run(), 60)
    assert seen == [0]


async def test_stopping_lets_end_what_has_begun_and_no_more(log: Log) -> None:
    subscriber = Subscriber(group="crm", parallel=2, settings=log.settings)
    begun: list[int] = []
    ended: list[int] = []
    release = asyncio.Event()

    @subscriber.on(Call)
    async def slow(call: Call) -> None:
        begun.append(nth(call))
        await release.wait()
        ended.append(nth(call))

    await log.write([call(f"leg{n}", n) for n in range(10)])
    task = asyncio.create_task(subscriber.run())
    await until(lambda: len(begun) == 2, task)
    subscriber.stop()
    await asyncio.sleep(0)
    release.set()
    async with asyncio.timeout(60):
        await task
    assert sorted(begun) == sorted(ended)
    assert len(begun) == 2

    again: list[int] = []
    other = Subscriber(group="crm", settings=log.settings)

    @other.on(Call)
    async def note(call: Call) -> None:
        again.append(nth(call))

    async with running(other) as task:
        await until(lambda: {*again, *ended} == set(range(10)), task)


@pytest.mark.parametrize("trouble", ["slow", "refused"])
async def test_a_gap_is_told_before_what_comes_behind_it_is_committed(
    log: Log, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    """Whoever dies in between must not take it along."""
    monkeypatch.setattr("consumers.subscribe.running._COMMIT_S", 0.05)
    seen: list[int] = []
    telling = asyncio.Event()

    async def fail(*_: object) -> None:
        telling.set()
        if trouble == "refused":
            raise PublishError("not_authorized")
        await asyncio.Event().wait()

    await log.write([call("1", 0)])
    async with running(noting(log, seen)) as task:
        await until(lambda: seen == [0], task)
    await log.write([call("1", 1)])
    await log.delete_all("calls")
    await log.write([call("1", 2)])
    with capture_logs() as logs, monkeypatch.context() as patch:
        patch.setattr("consumers.subscribe.outlet.Outlet.put", fail)
        task = asyncio.create_task(noting(log, seen).run())
        await until(lambda: telling.is_set() and 2 in seen, task)
        await asyncio.sleep(0.5)  # some commits
        task.cancel()
        await asyncio.wait([task])
    told = [line["reason"] for line in logs if line["event"] == "gap_not_told"]
    assert told[:1] == (["not_authorized"] if trouble == "refused" else [])
    async with running(noting(log, seen)) as task:
        while not await read_all(log, "gaps"):
            assert not task.done()
    assert seen == [0, 2, 2]


async def test_what_was_deleted_unread_is_told_as_a_gap(log: Log) -> None:
    seen: list[int] = []

    await log.write([call("1", 0)])
    async with running(noting(log, seen)) as task:
        await until(lambda: seen == [0], task)
    await log.write([call("1", n) for n in range(1, 5)])
    await log.delete_all("calls")
    await log.write([call("1", 5)])
    async with running(noting(log, seen)) as task:
        await until(lambda: 5 in seen, task)
        while not (gaps := await read_all(log, "gaps")):
            assert not task.done()
    assert seen == [0, 5]
    (gap,) = gaps
    assert dict(gap.headers)["ce_type"] == b"dialstream.gap.closed"
    assert b'"reason":"deleted_unread"' in (gap.value or b"")

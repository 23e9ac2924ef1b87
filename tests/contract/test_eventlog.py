"""What every event log promises to those who publish and those who read."""

import asyncio
import random
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

import pytest

from ingest.errors import PublishError
from ingest.eventlog.log import Behind, Publisher, Reader, Receipt, Record, StoredRecord

if TYPE_CHECKING:
    from tests.contract.conftest import Elsewhere, Harness

MIB = 1024 * 1024

#: Long enough for any machine that works at all.
SOON_S = 20.0

#: What an answer at a deadline may come late by.
SLACK_S = 0.6


def record(key: str, value: str | bytes | None, topic: str = "calls") -> Record:
    return Record(topic, key.encode(), value.encode() if isinstance(value, str) else value, ())


def soon() -> float:
    """A deadline that only what is broken misses."""
    return in_s(SOON_S)


def in_s(seconds: float) -> float:
    return asyncio.get_running_loop().time() + seconds


async def stored(publisher: Publisher, *records: Record) -> None:
    """Publish records one by one, and return once they are durable."""
    receipts = [publisher.publish([one]) for one in records]
    for receipt in receipts:
        await receipt.wait(soon())


async def read_to_end(reader: Reader) -> list[StoredRecord]:
    """Everything that the log holds for a reader now."""
    found: list[StoredRecord] = []
    until = time.monotonic() + SOON_S
    while not await reader.caught_up() or not found:
        assert time.monotonic() < until, f"not caught up after {len(found)} records"
        found += await reader.fetch(wait_s=0.1)
    return found


async def read_some(reader: Reader, count: int) -> list[StoredRecord]:
    """At least so many records."""
    found: list[StoredRecord] = []
    until = time.monotonic() + SOON_S
    while len(found) < count:
        assert time.monotonic() < until, f"{len(found)} records instead of {count}"
        found += await reader.fetch(wait_s=1.0)
    return found


async def read_between(
    first: Reader, second: Reader, count: int
) -> tuple[list[StoredRecord], list[StoredRecord]]:
    """What each of two gets, once it is so many together: who gets what takes time to agree on."""
    found: tuple[list[StoredRecord], list[StoredRecord]] = [], []
    until = time.monotonic() + SOON_S
    while len(found[0]) + len(found[1]) < count:
        assert time.monotonic() < until, f"{found} instead of {count}"
        more = await asyncio.gather(first.fetch(wait_s=0.2), second.fetch(wait_s=0.2))
        for member, fetched in zip(found, more, strict=True):
            member.extend(fetched)
    assert len(found[0]) + len(found[1]) == count
    return found


async def read_all(harness: "Harness", topics: Sequence[str]) -> list[StoredRecord]:
    """Everything on the log, as a new reader sees it."""
    async with harness.open_reader(topics) as reader:
        return await read_to_end(reader)


def values(records: Sequence[StoredRecord]) -> list[bytes | None]:
    return [one.value for one in records]


def expected_values(records: Sequence[Record]) -> list[bytes | None]:
    return [one.value for one in records]


# --- what is written is what is read ------------------------------------------------------------

ALL_BYTES = bytes(range(256))

PECULIAR = [
    Record("calls", b"acme/1", b'{"id":"1"}', (("content-type", b"application/json"),)),
    Record("calls", ALL_BYTES, ALL_BYTES, (("all", ALL_BYTES),)),
    Record("calls", b"", b"", ()),
    Record("calls", b"twice", b"x", (("h", b"1"), ("h", b""), ("h", b"1"))),
    Record("calls", b"names", b"x", (("ä ☎", "ü".encode()), ("", b"no name"))),
    Record("contacts", b"acme/gone", None, (("ce_id", b"tombstone"),)),
    Record("contacts", b"acme/gone", b"back again", ()),
    Record("rejects", b"acme", random.Random(1).randbytes(3 * MIB), ()),
    Record("rejects", b"acme", b"\0" * (3 * MIB), ()),
]


async def test_what_is_durable_is_read_back_as_it_was(harness: "Harness") -> None:
    before_ms = time.time() * 1000 - 1
    async with harness.open_publisher() as publisher:
        await stored(publisher, *PECULIAR)
        after_ms = time.time() * 1000 + 1
        found = await read_all(harness, ["calls", "contacts", "rejects"])

    for topic in ("calls", "contacts", "rejects"):
        wanted = [(p.key, p.value, p.headers) for p in PECULIAR if p.topic == topic]
        read = [(f.key, f.value, f.headers) for f in found if f.topic == topic]
        assert sorted(read, key=repr) == sorted(wanted, key=repr)
    assert all(before_ms <= one.written_ms <= after_ms for one in found)


async def test_a_record_is_there_once_its_receipt_is_durable_and_not_only_later(
    harness: "Harness",
) -> None:
    async with harness.open_publisher() as publisher, harness.open_reader(["calls"]) as reader:
        for number in range(20):
            await stored(publisher, record("k", f"{number}"))
            assert values(await read_some(reader, 1)) == [b"%d" % number]


async def test_a_topic_holds_only_its_own_records(harness: "Harness") -> None:
    async with harness.open_publisher() as publisher:
        await stored(publisher, record("k", "a call"), record("k", "a text", "messages"))
        calls = await read_all(harness, ["calls"])
        messages = await read_all(harness, ["messages"])

    assert [(one.topic, one.value) for one in calls] == [("calls", b"a call")]
    assert [(one.topic, one.value) for one in messages] == [("messages", b"a text")]


# --- order --------------------------------------------------------------------------------------


def in_keys(
    records: Sequence[StoredRecord] | Sequence[Record],
) -> dict[tuple[str, bytes], list[bytes | None]]:
    """The values of each key of each topic, in order."""
    keys: dict[tuple[str, bytes], list[bytes | None]] = defaultdict(list)
    for one in records:
        keys[one.topic, one.key].append(one.value)
    return keys


async def test_records_of_a_key_stand_in_the_order_of_the_calls(harness: "Harness") -> None:
    chance = random.Random(2)
    topics = ["calls", "messages", "agents"]
    published: list[Record] = []
    receipts: list[Receipt] = []
    async with harness.open_publisher() as publisher, harness.open_reader(topics) as reader:

        async def publish(source: int) -> None:
            for number in range(100):
                key = f"leg{chance.randrange(7)}"
                one = record(key, f"{source}:{number}", chance.choice(topics))
                one.value = (one.value or b"").ljust(chance.choice([10, 1000, 5000]))
                published.append(one)
                receipts.append(publisher.publish([one]))
                if chance.random() < 0.1:
                    await receipts[-1].wait(soon())
                elif chance.random() < 0.5:
                    await asyncio.sleep(chance.random() / 200)

        async with asyncio.TaskGroup() as tasks:
            following = tasks.create_task(read_some(reader, 1000))
            for source in range(10):
                tasks.create_task(publish(source))
        for receipt in receipts:
            await receipt.wait(soon())
        again = await read_all(harness, topics)

    assert in_keys(again) == in_keys(published)
    assert in_keys(following.result()) == in_keys(published)  # also to who reads meanwhile


async def test_records_published_together_are_neighbours_within_their_keys(
    harness: "Harness",
) -> None:
    chance = random.Random(3)
    published: list[Record] = []
    async with harness.open_publisher() as publisher:
        for number in range(300):
            group = [
                record(f"k{chance.randrange(3)}", f"{number}:{part}")
                for part in range(chance.randint(1, 6))
            ]
            published += group
            receipt = publisher.publish(group)
            if chance.random() < 0.3:
                await asyncio.sleep(0)
        await receipt.wait(soon())
        found = await read_all(harness, ["calls"])

    assert in_keys(found) == in_keys(published)


async def test_positions_rise_within_a_partition(harness: "Harness") -> None:
    topics = ["calls", "messages"]
    async with harness.open_publisher() as publisher:
        for round_ in range(5):
            await stored(
                publisher,
                *(record(f"k{n}", f"{round_}".ljust(3000), topics[n % 2]) for n in range(60)),
            )
        found = await read_all(harness, topics)

    assert len(found) == 300
    places = defaultdict(list)
    partitions: dict[tuple[str, bytes], int] = {}
    for one in found:
        places[one.topic, one.partition].append(one.position)
        assert partitions.setdefault((one.topic, one.key), one.partition) == one.partition
    for positions in places.values():
        assert all(earlier < later for earlier, later in pairwise(positions))


async def test_two_publishers_at_once_lose_nothing_and_keep_their_order(
    harness: "Harness",
) -> None:
    published: dict[str, list[Record]] = {"a": [], "b": []}

    async def publish(name: str) -> None:
        async with harness.open_publisher() as publisher:
            for number in range(150):
                published[name].append(record(name, f"{number}".ljust(4000)))
                receipt = publisher.publish(published[name][-1:])
                if number % 7 == 0:
                    await receipt.wait(soon())

    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(publish("a"))
        tasks.create_task(publish("b"))

    assert in_keys(await read_all(harness, ["calls"])) == in_keys(published["a"] + published["b"])


# --- receipts -----------------------------------------------------------------------------------


async def test_a_receipt_tells_when_and_where_records_are_durable(harness: "Harness") -> None:
    async with harness.open_publisher() as publisher:
        receipt = publisher.publish([record("k", "v")])
        assert receipt.durable is None  # `publish` has not even let the loop turn

        assert await receipt.wait(soon()) == harness.where
        assert receipt.durable is True
        assert receipt.where == harness.where
        assert await receipt.wait(in_s(-1)) == harness.where  # settled is settled


async def test_whoever_asks_a_receipt_is_told_once(harness: "Harness") -> None:
    answers: list[PublishError | None] = []
    async with harness.open_publisher() as publisher:
        await stored(publisher, record("k", "first"))  # a topic's first record may take its time
        receipt = publisher.publish([record("k", "v")])
        receipt.then(soon(), answers.append)
        receipt.then(in_s(2), answers.append)
        assert answers == []

        await receipt.wait(soon())
        assert answers == [None, None]

        receipt.then(in_s(-1), answers.append)
        assert answers == [None, None, None]  # at once: it is settled
        await asyncio.sleep(2.1)
    assert answers == [None, None, None]


async def test_who_waits_gets_a_timeout_at_the_deadline_and_the_record_may_come_later(
    harness: "Harness",
) -> None:
    async with harness.open_publisher() as publisher:
        await stored(publisher, record("k", "first"))
        async with harness.stalled("calls"):
            receipt = publisher.publish([record("k", "second")])
            begun = time.monotonic()
            with pytest.raises(PublishError) as caught:
                await receipt.wait(in_s(0.2))
            taken_s = time.monotonic() - begun
            assert caught.value.reason == "timeout"
            assert 0.19 <= taken_s < 0.2 + SLACK_S
            assert receipt.durable is None

            with pytest.raises(PublishError, match="timeout"):
                await receipt.wait(in_s(0.05))

        assert await receipt.wait(soon()) == harness.where
        assert values(await read_all(harness, ["calls"])) == [b"first", b"second"]


async def test_everybody_who_waits_has_a_deadline_of_their_own(harness: "Harness") -> None:
    async def outcome(receipt: Receipt, deadline: float) -> tuple[str, float]:
        begun = time.monotonic()
        try:
            return await receipt.wait(deadline), time.monotonic() - begun
        except PublishError as error:
            return error.reason, time.monotonic() - begun

    async with harness.open_publisher() as publisher:
        await stored(publisher, record("k", "first"))
        async with asyncio.TaskGroup() as tasks, harness.stalled("calls"):
            publisher.publish([record("k", "in flight")])
            await asyncio.sleep(0.05)
            # What waits behind what is in flight is likely to become durable together.
            one, two = publisher.publish([record("k", "1")]), publisher.publish([record("k", "2")])
            asked = [(one, 0.7), (two, 0.1), (one, SOON_S), (two, 0.4), (one, 0.2), (two, SOON_S)]
            answers = [
                tasks.create_task(outcome(receipt, in_s(wait_s))) for receipt, wait_s in asked
            ]
            await asyncio.sleep(0.9)

    for answer, (_, wait_s) in zip(answers, asked, strict=True):
        word, taken_s = answer.result()
        if wait_s == SOON_S:
            assert word == harness.where
        else:
            assert word == "timeout"
            assert wait_s - 0.01 <= taken_s < wait_s + 0.25


async def test_whoever_stops_waiting_disturbs_nobody(harness: "Harness") -> None:
    async with harness.open_publisher() as publisher:
        await stored(publisher, record("k", "first"))
        async with harness.stalled("calls"):
            receipt = publisher.publish([record("k", "second")])
            waiting = [asyncio.create_task(receipt.wait(soon())) for _ in range(3)]
            await asyncio.sleep(0.05)
            begun = time.monotonic()
            waiting[0].cancel()
            waiting[1].cancel()
            await asyncio.wait(waiting[:2])
            assert time.monotonic() - begun < SLACK_S  # it does not wait for the disk
            assert waiting[0].cancelled()
            assert waiting[1].cancelled()
            assert receipt.durable is None

        assert await waiting[2] == harness.where
        assert values(await read_all(harness, ["calls"])) == [b"first", b"second"]


async def test_closing_a_publisher_writes_what_was_handed_over(harness: "Harness") -> None:
    records = [record("k", f"{n}".ljust(2000), t) for n in range(200) for t in ("calls", "gaps")]
    async with harness.open_publisher() as publisher:
        receipts = [publisher.publish([one]) for one in records]

    assert all(receipt.durable for receipt in receipts)
    assert in_keys(await read_all(harness, ["calls", "gaps"])) == in_keys(records)


async def test_too_much_is_refused_at_once_and_what_was_taken_is_kept(
    harness: "Harness",
) -> None:
    large = bytes(MIB)
    async with harness.open_publisher() as publisher:
        taken: list[Receipt] = []

        def publish_for_ever() -> None:  # never lets the loop turn: all of it waits
            for number in range(2000):
                receipt = publisher.publish([record(f"{number}", large), record("x", b"")])
                taken.append(receipt)

        begun = time.monotonic()
        with pytest.raises(PublishError) as caught:
            publish_for_ever()
        assert caught.value.reason == "overload"
        assert time.monotonic() - begun < SLACK_S
        with pytest.raises(PublishError, match="overload"):
            publisher.publish([record("other topic", large, "messages")] * 2)

        for receipt in taken:
            await receipt.wait(soon())
        await stored(publisher, record("after", "v"))  # there is room again

        found = await read_all(harness, ["calls"])
    keys = sorted(one.key for one in found)
    assert keys == sorted([*(b"%d" % n for n in range(len(taken))), *[b"x"] * len(taken), b"after"])


async def test_a_log_that_works_refuses_nothing(harness: "Harness") -> None:
    async with harness.open_publisher() as publisher:
        assert publisher.refusing() is None
        await stored(publisher, record("k", "v"))
        assert publisher.refusing() is None


# --- reading ------------------------------------------------------------------------------------


async def test_earliest_begins_at_the_beginning_and_latest_at_the_end(harness: "Harness") -> None:
    topics = ["calls", "messages"]
    async with (
        harness.open_publisher() as publisher,
        harness.open_reader(topics, start="earliest") as whole,
    ):
        await stored(publisher, record("k", "old"))
        async with harness.open_reader(topics, start="latest") as news:
            assert await news.fetch(wait_s=0) == []
            assert await news.caught_up()
            assert values(await read_some(whole, 1)) == [b"old"]
            await stored(publisher, record("k", "new"), record("k", "first", "messages"))

            assert set(values(await read_some(news, 2))) == {b"new", b"first"}
            assert set(values(await read_some(whole, 2))) == {b"new", b"first"}


async def test_a_reader_goes_on_behind_what_was_dealt_with(harness: "Harness") -> None:
    topics = ["calls", "messages"]
    async with harness.open_publisher() as publisher:
        await stored(publisher, record("k", "1"), record("k", "2"), record("k", "a", "messages"))
        async with harness.open_reader(topics) as whole:
            assert {topic for topic, _ in await whole.behind()} == set(topics)
            read = await read_some(whole, 3)
            assert await whole.behind() == set()
        first = next(each for each in read if each.value == b"1")
        dealt_with = {(first.topic, first.partition): first.position}

        async with harness.open_reader(topics, start=Behind(dealt_with)) as reader:
            assert set(values(await read_to_end(reader))) == {b"2", b"a"}
            await stored(publisher, record("k", "3"))
            assert await reader.behind() == {(first.topic, first.partition)}


async def test_a_reader_may_begin_at_a_time(harness: "Harness") -> None:
    async with harness.open_publisher() as publisher:
        await stored(publisher, record("k", "1"))
        async with harness.open_reader(["calls"]) as reader:
            (old,) = await read_some(reader, 1)
        while time.time_ns() // 1_000_000 <= old.written_ms:  # noqa: ASYNC110 - for a clock
            await asyncio.sleep(0.001)
        await stored(publisher, record("k", "2"))

        for since_ms, wanted in ((old.written_ms, {b"1", b"2"}), (old.written_ms + 1, {b"2"})):
            start = Behind({}, {"calls": since_ms})
            async with harness.open_reader(["calls"], start=start) as reader:
                # It may begin earlier, never later.
                assert wanted <= set(values(await read_to_end(reader)))
        async with harness.open_reader(["calls"], start=Behind({})) as reader:
            assert set(values(await read_to_end(reader))) == {b"1", b"2"}


async def test_a_reader_of_keys_gets_all_of_theirs(harness: "Harness") -> None:
    records = [record(f"k{n % 40}", f"{n}".ljust(3000)) for n in range(400)]
    async with harness.open_publisher() as publisher:
        await stored(publisher, record("other", "m", topic="messages"), *records)
        keys = {"calls": [b"k3", b"k7", b"never"], "messages": [b"k3"]}
        async with harness.open_reader(["calls", "messages"], keys=keys) as reader:
            read = await read_to_end(reader)
            assert await reader.caught_up()
            await stored(publisher, record("k7", "late"))
            read += await read_to_end(reader)
    # Others may be among them, but not everything.
    assert len(read) < 401
    wanted = [each.value for each in records if each.key in keys["calls"]]
    theirs = [each for each in read if each.topic == "calls" and each.key in keys["calls"]]
    assert Counter(values(theirs)) == Counter([*wanted, b"late"])
    of_one = [each.position for each in theirs if each.key == b"k7"]
    assert of_one == sorted(of_one)


async def test_a_fetch_returns_in_time_with_nothing_and_at_once_with_something(
    harness: "Harness",
) -> None:
    async with harness.open_publisher() as publisher, harness.open_reader(["calls"]) as reader:
        for wait_s in (0.0, 0.3):
            begun = time.monotonic()
            assert await reader.fetch(wait_s=wait_s) == []
            assert wait_s - 0.01 <= time.monotonic() - begun < wait_s + SLACK_S

        fetching = asyncio.create_task(reader.fetch(wait_s=SOON_S))
        await asyncio.sleep(0.1)
        begun = time.monotonic()
        await stored(publisher, record("k", "v"))
        assert values(await fetching) == [b"v"]
        assert time.monotonic() - begun < SOON_S / 4


async def test_caught_up_says_whether_all_that_is_there_was_fetched(harness: "Harness") -> None:
    async with harness.open_publisher() as publisher, harness.open_reader(["calls"]) as reader:
        assert await reader.caught_up()  # nothing is there
        for round_ in range(3):
            records = [record("k", f"{round_}:{n}".ljust(3000)) for n in range(120)]
            await stored(publisher, *records)
            assert not await reader.caught_up()

            found = await read_some(reader, 120)
            assert values(found) == expected_values(records)
            assert await reader.caught_up()


async def test_a_fetch_that_is_given_up_loses_nothing(harness: "Harness") -> None:
    records = [record("k", f"{n}") for n in range(300)]
    found: list[StoredRecord] = []
    async with harness.open_publisher() as publisher, harness.open_reader(["calls"]) as reader:
        for number, one in enumerate(records):
            publisher.publish([one])
            try:
                async with asyncio.timeout(number % 10 / 1000):
                    found += await reader.fetch(wait_s=SOON_S)
            except TimeoutError:
                continue
        found += await read_some(reader, len(records) - len(found))
        assert await reader.fetch(wait_s=0.05) == []

        fetching = asyncio.create_task(reader.fetch(wait_s=SOON_S))
        await asyncio.sleep(0.001)
        fetching.cancel()  # and closing does not stumble over it
    assert values(found) == expected_values(records)


async def test_another_process_reads_what_is_published(
    harness: "Harness", elsewhere: "Elsewhere"
) -> None:
    records = [record("k", f"{n}".ljust(5000)) for n in range(120)]
    async with harness.open_publisher() as publisher:
        await stored(publisher, *records[:60])
        async with elsewhere("calls", 120) as process:
            assert process.stdout is not None
            assert await process.stdout.readline() == b"ready\n"
            for one in records[60:]:
                await stored(publisher, one)
            async with asyncio.timeout(SOON_S):
                lines = (await process.stdout.read()).split(b"\n")[:-1]

    assert [bytes.fromhex(line.split()[2].decode()) for line in lines] == expected_values(records)
    positions = [int(line.split()[0]) for line in lines]
    assert positions == sorted(set(positions))


# --- groups -------------------------------------------------------------------------------------


async def test_a_group_goes_on_behind_what_it_has_committed(harness: "Harness") -> None:
    topics = ["calls", "messages"]
    async with harness.open_publisher() as publisher:
        await stored(publisher, *(record("k", f"{n}", t) for n in range(10) for t in topics))
        async with harness.open_reader(topics, group="g") as reader:
            found = await read_some(reader, 20)
            done = [one for one in found if one.topic == "calls"][:4]
            # The last one stands for those before it; messages are not committed at all.
            await reader.commit(done[-1:])

        async with harness.open_reader(topics, group="g", start="latest") as reader:
            rest = await read_some(reader, 6)
            assert [one.value for one in rest if one.topic == "calls"] == [
                b"%d" % n for n in range(4, 10)
            ]

        async with harness.open_reader(topics, group="g") as reader:
            found = await read_some(reader, 16)
            await reader.commit(found)
            await reader.commit(done)  # too late to undo anything

        async with harness.open_reader(topics, group="g") as reader:
            assert await reader.fetch(wait_s=0.3) == []
            await stored(publisher, record("k", "new"))
            assert values(await read_some(reader, 1)) == [b"new"]


async def test_what_is_not_committed_is_handed_out_again(harness: "Harness") -> None:
    async with harness.open_publisher() as publisher:
        await stored(publisher, record("k", "1"), record("k", "2"))
    for _ in range(3):
        async with harness.open_reader(["calls"], group="g") as reader:
            assert values(await read_some(reader, 2)) == [b"1", b"2"]


async def test_groups_do_not_know_each_other(harness: "Harness") -> None:
    async with harness.open_publisher() as publisher:
        await stored(publisher, record("k", "1"), record("k", "2"))
    async with (
        harness.open_reader(["calls"], group="one") as one,
        harness.open_reader(["calls"], group="two") as two,
        harness.open_reader(["calls"]) as nobody,
    ):
        for reader in (one, two):
            found = await read_some(reader, 2)
            assert values(found) == [b"1", b"2"]
            await reader.commit(found)
        assert values(await read_some(nobody, 2)) == [b"1", b"2"]


async def test_members_of_a_group_share_without_loss_or_repeat(harness: "Harness") -> None:
    topics = ["calls", "messages", "agents", "gaps"]
    records = [record(f"k{n % 5}", f"{n}", topics[n % 4]) for n in range(400)]
    seen: dict[str, list[StoredRecord]] = {"a": [], "b": []}
    complete = asyncio.Event()

    async def follow(name: str, reader: Reader) -> None:
        while not complete.is_set():
            found = await reader.fetch(wait_s=0.05)
            seen[name] += found
            if found:
                await reader.commit(found)
            if len(seen["a"]) + len(seen["b"]) >= len(records):
                complete.set()

    async with (
        harness.open_publisher() as publisher,
        harness.open_reader(topics, group="g") as a,
        harness.open_reader(topics, group="g") as b,
        asyncio.timeout(SOON_S),
    ):
        await asyncio.gather(a.fetch(wait_s=0.1), b.fetch(wait_s=0.1))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(follow("a", a))
            tasks.create_task(follow("b", b))
            for one in records:
                publisher.publish([one])
                await asyncio.sleep(0.001)
        assert await a.fetch(wait_s=0.2) == await b.fetch(wait_s=0.2) == []

    assert in_keys(sorted(seen["a"] + seen["b"], key=lambda one: one.position)) == in_keys(records)
    places = [(one.topic, one.partition, one.position) for one in seen["a"] + seen["b"]]
    assert len(places) == len(set(places))


async def test_a_member_takes_over_what_another_leaves(harness: "Harness") -> None:
    async with harness.open_publisher() as publisher:
        await stored(publisher, *(record("k", f"{n}") for n in range(10)))
        async with harness.open_reader(["calls"], group="g") as second:
            async with harness.open_reader(["calls"], group="g") as first:
                # Whoever gets them: one handles a part and goes.
                found, fetched = await read_between(first, second, 10)
                if found:
                    await first.commit(found[:3])
                else:
                    await second.commit(fetched)
            await stored(publisher, record("k", "new"))
            rest = [b"%d" % n for n in range(3, 10)] if found else []
            assert values(await read_some(second, len(rest) + 1)) == [*rest, b"new"]


# --- what is over -------------------------------------------------------------------------------


async def test_positions_never_restart(harness: "Harness") -> None:
    last: dict[int, int] = defaultdict(lambda: -1)
    for round_ in range(4):
        async with harness.open_publisher() as publisher:
            await stored(publisher, *(record("k", f"{round_}".ljust(9000)) for _ in range(40)))
            if round_ == 1:
                await harness.expire()
        async with harness.open_reader(["calls"], group="g") as reader:
            found = await read_to_end(reader) if round_ != 1 else await reader.fetch(wait_s=0.2)
            assert len(found) == (0 if round_ == 1 else 40)
            for one in found:
                assert one.position > last[one.partition]
                last[one.partition] = one.position
            await reader.commit(found)
        if round_ == 2:
            await harness.expire()  # also while nobody has it open


async def test_a_reader_goes_on_behind_what_has_expired(harness: "Harness") -> None:
    async with harness.open_publisher() as publisher, harness.open_reader(["calls"]) as reader:
        await stored(publisher, *(record("k", "old".ljust(9000)) for _ in range(100)))
        assert len(await reader.fetch(wait_s=1)) > 0
        async with harness.open_reader(["calls"]) as late:
            await harness.expire()
            await stored(publisher, record("k", "new"))

            # They may have fetched ahead.
            assert values(await read_to_end(late))[-1] == b"new"
            assert values(await read_to_end(reader))[-1] == b"new"
        assert values(await read_all(harness, ["calls"])) == [b"new"]

"""What can be seen of a subscriber from outside: its metrics, and who blocks its loop."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client import generate_latest
from structlog.testing import capture_logs

from consumers.subscribe import NotNowError, RejectError, Retry, Subscriber
from ingest.eventlog.log import Place, StoredRecord, Watcher
from ingest.metrics import REGISTRY
from schemas.call import Call
from schemas.times import rfc3339
from tests.consumers.subscribe.logs import T0, JournalLog, Log, call, read_all, running, until
from tests.kit import Metrics


def metrics() -> Metrics:
    return Metrics(generate_latest(REGISTRY).decode())


async def test_events_lag_and_age_are_told(
    log: Log, topic_prefix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("consumers.subscribe.running._MEASURE_S", 0.2)
    monkeypatch.setattr("consumers.subscribe.running._COMMIT_S", 0.1)
    group = "told" + topic_prefix.partition("-")[0]  # counters stay for as long as the process
    if log.settings.eventlog.kind == "kafka":
        log.cluster.create_topic(f"{log.prefix}rejects.{group}")  # type: ignore[attr-defined]
    subscriber = Subscriber(
        group=group, retry=Retry(tries=2, first_s=0.01, most_s=0.01), settings=log.settings
    )
    away = True

    @subscriber.on(Call)
    async def handle(call: Call) -> None:
        if call.call_id == "reject":
            raise RejectError("no")
        if call.call_id == "fail":
            raise OSError
        if call.call_id == "wait" and away:
            raise NotNowError(0.02)

    def count(outcome: str) -> int:
        return metrics().sum(
            "dialstream_subscriber_events_total", group=group, handler="handle", outcome=outcome
        )

    good = [call("good", n) for n in range(5)]
    await log.write([*good, good[4], call("reject"), call("fail")])
    async with running(subscriber) as task:
        await until(lambda: count("rejected") == 2, task)
        await until(lambda: count("handled") == 5, task)
        assert count("failed") == 2
        assert count("repeat") == 1
        await until(lambda: metrics().sum("dialstream_subscriber_lag", group=group) == 0, task)
        await log.write([call("wait", n) for n in range(3)])
        await until(lambda: count("not_now") > 0, task)
        await until(lambda: metrics().sum("dialstream_subscriber_lag", group=group) == 3, task)
        await until(lambda: metrics().sum("dialstream_subscriber_age_seconds", group=group) > 0)
        away = False
        await until(lambda: metrics().sum("dialstream_subscriber_lag", group=group) == 0, task)
    text = generate_latest(REGISTRY).decode()
    assert f'dialstream_subscriber_age_seconds{{group="{group}"}}' not in text


class Scripted:
    """A reader whose member has two partitions of calls, and gets what a test puts there."""

    def __init__(self) -> None:
        self.found: asyncio.Queue[list[StoredRecord]] = asyncio.Queue()
        self.watcher: Watcher | None = None

    @asynccontextmanager
    async def open(
        self, settings: object, topics: object, watcher: Watcher, **_: object
    ) -> AsyncIterator["Scripted"]:
        self.watcher = watcher
        yield self

    async def fetch(self, wait_s: float) -> list[StoredRecord]:
        return await self.found.get()

    async def commit(self, stored: object) -> None: ...

    def hold(self, places: object) -> None: ...

    async def left(self) -> Mapping[Place, range]:
        return {("calls", 0): range(8, 10), ("calls", 1): range(40, 100)}


@pytest.fixture
def scripted(monkeypatch: pytest.MonkeyPatch) -> Scripted:
    reader = Scripted()
    monkeypatch.setattr("consumers.subscribe.running.open_group_reader", reader.open)
    return reader


def stored(position: int, *, partition: int = 0) -> StoredRecord:
    one = call("1", position)
    return StoredRecord(
        "calls", partition, position, T0 + position, one.key, one.value, one.headers
    )


async def test_the_lag_counts_partitions_of_which_nothing_was_fetched_yet(
    tmp_path: Path, scripted: Scripted, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("consumers.subscribe.running._MEASURE_S", 0.1)
    monkeypatch.setattr("consumers.subscribe.running._COMMIT_S", 0.05)
    subscriber = Subscriber(group="far", settings=JournalLog(tmp_path).settings)
    away = True

    @subscriber.on(Call)
    async def handle(call: Call) -> None:
        if call.custom_data == "5" and away:
            raise NotNowError(0.1)

    def lag() -> int:
        return metrics().sum("dialstream_subscriber_lag", group="far", topic="calls")

    scripted.found.put_nowait([stored(n) for n in range(3, 8)])
    async with running(subscriber) as task:
        await until(lambda: lag() == (10 - 5) + (100 - 40), task)
        away = False
        await until(lambda: lag() == (10 - 8) + (100 - 40), task)


async def test_a_gap_that_another_member_finds_is_not_told_by_the_first_one_later(
    tmp_path: Path, scripted: Scripted
) -> None:
    """Its time would go on until a partition comes back, over what the other one has handled."""
    log = JournalLog(tmp_path)
    subscriber = Subscriber(group="crm", settings=log.settings)
    seen: list[str | None] = []

    @subscriber.on(Call)
    async def handle(call: Call) -> None:
        seen.append(call.custom_data)

    scripted.found.put_nowait([stored(1)])
    async with running(subscriber) as task:
        await until(lambda: seen == ["1"], task)
        assert scripted.watcher is not None
        scripted.watcher.skipped(("calls", 0), 2, 9)
        await scripted.watcher.revoked([("calls", 0)], lost=False)
        scripted.found.put_nowait([stored(5000)])
        await until(lambda: seen == ["1", "5000"], task)
        scripted.watcher.skipped(("calls", 0), 5001, 9000)
        scripted.found.put_nowait([stored(9000)])
        await until(lambda: seen == ["1", "5000", "9000"], task)
    gaps = [json.loads(each.value or b"")["data"] for each in await read_all(log, "gaps")]
    assert [(gap["from"], gap["to"]) for gap in gaps] == [(rfc3339(T0 + 5000), rfc3339(T0 + 9000))]


async def test_events_are_counted_while_a_commit_waits_for_the_log(
    tmp_path: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with a broker that is away: what is told must not stand still with it."""
    monkeypatch.setattr("consumers.subscribe.running._COMMIT_S", 0.05)
    log = JournalLog(tmp_path)  # type: ignore[arg-type]
    subscriber = Subscriber(group="hangs", settings=log.settings)

    async def hang(*_: object) -> None:
        await asyncio.Event().wait()

    @subscriber.on(Call)
    async def handle(call: Call) -> None: ...

    def handled() -> int:
        return metrics().sum("dialstream_subscriber_events_total", group="hangs")

    async with running(subscriber) as task:
        monkeypatch.setattr("ingest.eventlog.journal.JournalReader.commit", hang)
        await log.write([call("1", nth) for nth in range(3)])
        await until(lambda: handled() == 3, task)
        await log.write([call("1", 3)])
        await until(lambda: handled() == 4, task)
        monkeypatch.undo()


async def test_who_blocks_the_loop_is_named_while_it_does(tmp_path: object) -> None:
    log = JournalLog(tmp_path)  # type: ignore[arg-type]
    subscriber = Subscriber(group="blocked", settings=log.settings)
    handled = asyncio.Event()

    @subscriber.on(Call)
    async def sleeps(call: Call) -> None:
        time.sleep(2)  # noqa: ASYNC251 - that is the fault
        handled.set()

    await log.write([call("1")])
    with capture_logs() as logs:
        async with running(subscriber) as task:
            await until(handled.is_set, task)
    lines = [line for line in logs if line["event"] == "loop_blocked"]
    line = next(line for line in lines if line["handler"].endswith("sleeps"))
    assert line["group"] == "blocked"
    assert any(place.startswith("test_told.py:") for place in line["where"])
    counted = metrics().sum("dialstream_subscriber_blocked_total", group="blocked")
    assert counted >= 1


async def test_a_handler_that_waits_blocks_nobody(tmp_path: object) -> None:
    log = JournalLog(tmp_path)  # type: ignore[arg-type]
    subscriber = Subscriber(group="waits", settings=log.settings)
    handled = asyncio.Event()

    @subscriber.on(Call)
    async def waits(call: Call) -> None:
        await asyncio.sleep(2)
        handled.set()

    await log.write([call("1")])
    with capture_logs() as logs:
        async with running(subscriber) as task:
            await until(handled.is_set, task)
    named = [line["handler"] for line in logs if line["event"] == "loop_blocked"]
    assert not any(name.endswith("waits") for name in named)

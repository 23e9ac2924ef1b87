"""What can be seen of a subscriber from outside: its metrics, and who blocks its loop."""

import asyncio
import time

import pytest
from prometheus_client import generate_latest
from structlog.testing import capture_logs

from consumers.subscribe import NotNowError, RejectError, Retry, Subscriber
from ingest.metrics import REGISTRY
from schemas.call import Call
from tests.consumers.subscribe.logs import JournalLog, Log, call, running, until
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

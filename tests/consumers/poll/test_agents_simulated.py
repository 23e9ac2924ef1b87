"""Simulated DialLink and Dialgood read back: whatever they list is on the log in the end."""

import asyncio
import contextlib
from collections import Counter
from pathlib import Path
from typing import Any

from consumers.poll.agents import AgentsPoller
from consumers.poll.poller import Poller
from consumers.poll.seen import Seen
from ingest.eventlog.journal import open_journal
from ingest.providers import dialgood as dialgood_provider
from ingest.providers import diallink as diallink_provider
from ingest.settings import Connection
from ingest.simulator.dialgood_server import SimulatedDialgood, simulated_dialgood
from ingest.simulator.diallink_server import simulated_diallink
from ingest.simulator.faults import RATES, Faults
from schemas.event import Envelope
from schemas.subjects import SUBJECTS
from tests.conftest import MakeProduct
from tests.consumers.poll.fakes import CurrentGaps, FakeJob, events_on
from tests.kit import Product


def connection_to(provider: str, simulated: Any, **poll: Any) -> Connection:
    return Connection.model_validate(
        {
            "provider": provider,
            "api_key": simulated.api_key,
            "base_url": simulated.base_url,
            "region": "US",
            "poll": {
                "requests_per_s": 20.0,
                "every_s": 0.5,
                "lag_s": 0.01,
                "overlap_s": 3600.0,
                **poll,
            },
        }
    )


async def until_all(poller: AgentsPoller | Poller, holds: Any) -> None:
    task = asyncio.create_task(poller.run())
    try:
        async with asyncio.timeout(220):
            while not await holds():
                assert not task.done()
                await asyncio.sleep(0.2)
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def recorded(path: Path) -> Counter[str]:
    return Counter(
        event["id"]
        for event in await events_on(path)
        if event["type"] == "dialstream.call.recorded"
    )


def fits(events: list[dict[str, Any]]) -> None:
    for event in events:
        envelope = Envelope.model_validate(event)
        SUBJECTS[event["type"].split(".")[1]].model_validate(envelope.data)


def agents_poller(dialgood: SimulatedDialgood, job: FakeJob, log: Any, seen: Seen) -> AgentsPoller:
    connection = connection_to("dialgood", dialgood, also=("directory", "versions"))
    open_records = dialgood_provider.PROVIDER.agent_records
    assert open_records is not None
    return AgentsPoller(
        job,
        connection,
        lambda: open_records("acme", connection),
        log,
        CurrentGaps(),
        seen,
        backoff_s=(0.05, 0.2),
    )


async def test_a_bad_day_of_dialgood_loses_nothing(tmp_path: Path) -> None:
    faults = Faults(
        broken=0.02,
        limited=0.01,
        cut=0.02,
        html=0.02,
        agents_vanish=0.02,
    )
    job, seen = FakeJob(), Seen.open(tmp_path / "poll.sqlite")
    async with simulated_dialgood(days=0.02, pace=1.0) as dialgood, open_journal(tmp_path) as log:
        truth = Counter(record["botId"] for record in dialgood.records())
        for name in RATES:
            setattr(dialgood.faults, name, getattr(faults, name))
        dialgood.faults.agents_vanish_s = 2.0

        async def all_is_there() -> bool:
            found = Counter(
                event["data"]["internal"]["id"]
                for event in await events_on(tmp_path)
                if event["type"] == "dialstream.call.recorded"
            )
            return "watermark_ms" in job.saved.get("calls", {}) and all(
                found[agent_id] >= count for agent_id, count in truth.items()
            )

        await until_all(agents_poller(dialgood, job, log, seen), all_is_there)
        assert dialgood.scandals == 0
        assert sum(dialgood.faults.counts.values()) > 0
    assert sum(truth.values()) > 50
    events = await events_on(tmp_path)
    assert set((await recorded(tmp_path)).values()) == {1}
    assert any(event["type"] == "dialstream.directory.listed" for event in events)
    fits(events)
    seen.close()


async def test_all_that_diallink_lists_is_read(tmp_path: Path) -> None:
    job, seen = FakeJob(), Seen.open(tmp_path / "poll.sqlite")
    async with simulated_diallink(days=0.01, pace=1.0) as diallink, open_journal(tmp_path) as log:
        connection = connection_to(
            "diallink", diallink, also=("contacts", "directory", "recordings")
        )
        open_records = diallink_provider.PROVIDER.records
        assert open_records is not None
        poller = Poller(
            job,
            connection,
            lambda: open_records("acme", connection),
            log,
            CurrentGaps(),
            seen,
            backoff_s=(0.05, 0.2),
        )

        async def lists_were_read() -> bool:
            lists = ("contacts", "directory")
            kinds = Counter(event["type"] for event in await events_on(tmp_path))
            return (
                all("watermark_ms" in job.saved.get(what, {}) for what in ("calls", "recordings"))
                and all(seen.note(f"listed {what}") for what in lists)
                and kinds["dialstream.call.recording_ready"] > 0
            )

        await until_all(poller, lists_were_read)
        assert poller.troubles() == []
    events = await events_on(tmp_path)
    kinds = Counter(event["type"] for event in events)
    assert kinds["dialstream.call.recorded"] > 10
    assert kinds["dialstream.directory.listed"] > 3
    assert not any(".reject." in kind for kind in kinds)
    # Lists are read again and again; each says nothing twice.
    assert set(Counter(event["id"] for event in events).values()) == {1}
    fits(events)
    seen.close()


def later(product: Product) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {"notification": set(), "poll": set()}
    for event in product.events("call"):
        found[event["via"]].add(event["subject"])
    return found


async def test_a_notified_call_is_read_again_long_before_the_list(
    make_product: MakeProduct,
) -> None:
    secret = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
    async with simulated_diallink(days=0, pace=1.0) as diallink:
        product = make_product(
            command=("up",),
            settings={
                "connections": {
                    "line": {
                        "provider": "diallink",
                        "secrets": [secret],
                        "api_key": diallink.api_key,
                        "base_url": diallink.base_url,
                        "region": "US",
                        # The list is read at the start, and then in an hour.
                        "poll": {"requests_per_s": 20.0, "every_s": 3600.0, "also": []},
                    }
                },
                "logging": {"level": "debug"},
            },
        )
        await asyncio.to_thread(product.start)
        await asyncio.to_thread(product.wait_for_log, "poll_pass", 1, 30)
        before = (await asyncio.to_thread(later, product))["poll"]
        diallink.subscribe(f"http://127.0.0.1:{product.port}/webhooks/line", secret)
        async with asyncio.timeout(120):
            while True:
                found = await asyncio.to_thread(later, product)
                if (found["poll"] - before) & found["notification"]:
                    break
                await asyncio.sleep(0.5)
        assert [line["kind"] for line in product.log("poll_pass")] == ["near"]
        assert await asyncio.to_thread(product.stop) == 0

"""A simulated Dialpad read back through a bad day: whatever it lists is on the log in the end."""

import asyncio
import contextlib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from consumers.poll.poller import Poller
from consumers.poll.seen import Seen
from ingest.eventlog.journal import open_journal
from ingest.providers.dialpad.records import open_records
from ingest.settings import Connection
from ingest.simulator.dialpad_rest import Rates
from ingest.simulator.dialpad_server import SimulatedDialpad, simulated_dialpad
from ingest.simulator.faults import RATES, Faults
from schemas.event import Envelope
from schemas.subjects import SUBJECTS
from tests.consumers.poll.fakes import CurrentGaps, FakeJob, events_on
from tests.ingest.providers.dialpad.test_records_simulated import listed

ALSO = ("transcripts", "recaps", "contacts", "consents", "directory", "duty_status")


def connection_to(dialpad: SimulatedDialpad, **poll: Any) -> Connection:
    return Connection.model_validate(
        {
            "provider": "dialpad",
            "api_key": dialpad.api_key,
            "base_url": dialpad.base_url,
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


async def read_until(
    path: Path, dialpad: SimulatedDialpad, job: FakeJob, holds: Any, **poll: Any
) -> None:
    connection = connection_to(dialpad, **poll)
    seen = Seen.open(path / "poll.sqlite")
    async with open_journal(path) as journal:
        poller = Poller(
            job,
            connection,
            lambda: open_records("acme", connection),
            journal,
            CurrentGaps(),
            seen,
            artefact_delays_s=(0.01, 0.02),
            backoff_s=(0.05, 0.2),
        )
        task = asyncio.create_task(poller.run())
        try:
            async with asyncio.timeout(90):
                while not await holds(seen):
                    assert not task.done()
                    await asyncio.sleep(0.2)
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task
            seen.close()


async def truth_of(dialpad: SimulatedDialpad) -> set[str]:
    """The ids of all calls that it lists, as another client walks it."""
    items: Any = await listed(dialpad)
    return {item["call_id"] for item in items}


async def recorded(path: Path) -> Counter[str]:
    return Counter(
        event["subject"].removeprefix("call/")
        for event in await events_on(path)
        if event["type"] == "dialstream.call.recorded"
    )


@pytest.mark.timeout(200)
async def test_faults_of_all_kinds_lose_nothing(tmp_path: Path) -> None:
    """A page that skips hides calls from one pass; the next ones look there again."""
    faults = Faults(
        broken=0.03,
        limited=0.03,
        cut=0.03,
        html=0.02,
        refused=0.02,
        page_changes=0.2,
        page_repeats=0.1,
        page_skips=0.2,
        cursor_loops=0.02,
    )
    struck = ("page_changes", "page_repeats", "page_skips")
    job = FakeJob()
    async with simulated_dialpad(
        days=0.01, pace=None, rates=Rates(company_per_s=10_000), page_size=25
    ) as dialpad:
        truth = await truth_of(dialpad)
        for name in RATES:
            setattr(dialpad.faults, name, getattr(faults, name))

        async def all_is_there(_: Seen) -> bool:
            return "watermark_ms" in job.saved.get("calls", {}) and (
                set(await recorded(tmp_path)) == truth
            )

        await read_until(tmp_path, dialpad, job, all_is_there)
        assert all(dialpad.faults.counts[name] for name in struck)
    assert len(truth) > 100
    assert set((await recorded(tmp_path)).values()) == {1}


@pytest.mark.timeout(200)
async def test_all_that_it_has_is_read_and_fits_the_schemas(tmp_path: Path) -> None:
    job = FakeJob()
    async with simulated_dialpad(
        days=0.003, pace=None, rates=Rates(company_per_s=10_000)
    ) as dialpad:

        async def all_lists_were_read(seen: Seen) -> bool:
            lists = ("contacts", "consents", "directory", "duty_status")
            return "watermark_ms" in job.saved.get("calls", {}) and all(
                seen.note(f"listed {what}") for what in lists
            )

        await read_until(tmp_path, dialpad, job, all_lists_were_read, also=ALSO, every_s=60.0)
        truth = await truth_of(dialpad)
    events = await events_on(tmp_path)
    kinds = Counter(event["type"] for event in events)
    assert set(await recorded(tmp_path)) == truth
    assert kinds["dialstream.directory.listed"] > 5
    assert kinds["dialstream.agent.status"] > 0
    assert not any(".reject." in kind for kind in kinds)
    assert len({event["id"] for event in events}) == len(events)
    for event in events:
        envelope = Envelope.model_validate(event)
        SUBJECTS[event["type"].split(".")[1]].model_validate(envelope.data)

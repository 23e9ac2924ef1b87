"""Agent after agent: nothing is left out, nothing is said twice, and none holds up the others."""

import asyncio
import contextlib
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from consumers.poll.agents import AgentsPoller
from consumers.poll.seen import Seen
from consumers.poll.windows import Gap
from ingest.api import ApiError
from ingest.errors import PublishError
from ingest.eventlog.journal import open_journal, open_reader
from ingest.metrics import REGISTRY
from schemas.times import now_ms
from tests.consumers.poll.fake_agents import FakeAgents, agents_poller, unavailable
from tests.consumers.poll.fakes import HOUR_MS, Call, CurrentGaps, FakeJob, events_on
from tests.consumers.poll.test_poller import Reluctant, until


@asynccontextmanager
async def running(one: AgentsPoller) -> AsyncIterator[asyncio.Task[None]]:
    task = asyncio.create_task(one.run())
    try:
        yield task
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


@asynccontextmanager
async def polling(
    path: Path, records: FakeAgents, job: FakeJob, gaps: CurrentGaps | None = None, **settings: Any
) -> AsyncIterator[AgentsPoller]:
    """A poller's life."""
    seen = Seen.open(path / "poll" / "acme.sqlite")
    async with open_journal(path) as journal:
        one = agents_poller(records, job, journal, seen, gaps, **settings)
        async with running(one):
            yield one
    seen.close()


async def rounds(records: FakeAgents, count: int = 2, but: str = "") -> None:
    """Wait until every agent has been read so many times more."""
    goal = Counter(records.read)
    for agent_id in records.listed:
        goal[agent_id] += count
    await until(
        lambda: all(Counter(records.read)[a] >= goal[a] for a in records.listed if a != but)
    )


async def recorded(path: Path) -> Counter[str]:
    return Counter(
        event["id"].split(":")[3]
        for event in await events_on(path)
        if event["type"] == "dialstream.call.recorded"
    )


async def changes_on(path: Path) -> list[str]:
    found = []
    async with open_reader(path, ["changes"]) as reader:
        while not await reader.caught_up():
            for record in await reader.fetch(wait_s=0.1):
                found += [value.decode() for name, value in record.headers if name == "ce_id"]
    return found


@pytest.fixture
def records() -> FakeAgents:
    """Five agents with ten calls each of the last hour: 0 to 9, 100 to 109, ..."""
    records = FakeAgents([f"agent-{n}" for n in range(5)])
    for n in range(5):
        records.add(f"agent-{n}", 100 * n, 10)
    return records


ALL = {str(100 * n + k) for n in range(5) for k in range(10)}


async def test_every_call_of_every_agent_is_published_once(
    tmp_path: Path, records: FakeAgents
) -> None:
    job = FakeJob()
    before = now_ms()
    async with polling(tmp_path, records, job):
        await rounds(records, 4)
        records.calls_by["agent-2"][3].version = 2
        await rounds(records)
    found = await recorded(tmp_path)
    assert set(found) == ALL
    assert {ident for ident, count in found.items() if count > 1} == {"203"}
    assert found["203"] == 2
    for n in range(5):
        mark = job.saved[f"calls/agent-{n}"]
        assert before - 1 <= mark["watermark_ms"] <= now_ms()
        assert mark["swept_ms"] <= mark["watermark_ms"]
    whole = job.saved["calls"]
    assert whole["agents"] == 5
    assert whole["cache"]
    least = min(job.saved[f"calls/agent-{n}"]["watermark_ms"] for n in range(5))
    assert whole["watermark_ms"] <= least


async def test_agents_that_are_long_in_coming_are_read(tmp_path: Path, records: FakeAgents) -> None:
    job = FakeJob()
    records.takes_s["agents"] = 0.2
    async with polling(tmp_path, records, job):
        await rounds(records)
    assert await recorded(tmp_path) == dict.fromkeys(ALL, 1)


async def test_it_goes_on_where_it_was_and_says_nothing_twice(
    tmp_path: Path, records: FakeAgents
) -> None:
    job = FakeJob()
    async with polling(tmp_path, records, job):
        await rounds(records)
    marks = {name: mark["watermark_ms"] for name, mark in job.saved.items()}
    records.windows.clear()
    records.add("agent-1", 1000, 1, minutes_ago=0.0)
    async with polling(tmp_path, records, job):
        await rounds(records)
    firsts = {agent_id: from_ms for agent_id, from_ms, _ in reversed(records.windows)}
    assert firsts == {f"agent-{n}": marks[f"calls/agent-{n}"] - 7_200_000 for n in range(5)}
    assert await recorded(tmp_path) == dict.fromkeys({*ALL, "1000"}, 1)


async def test_a_memory_that_is_anothers_only_repeats(tmp_path: Path, records: FakeAgents) -> None:
    job = FakeJob()
    async with polling(tmp_path, records, job):
        await rounds(records)
    job.saved["calls"] = {**job.saved["calls"], "cache": "of another"}
    async with polling(tmp_path, records, job):
        await rounds(records)
    found = await recorded(tmp_path)
    assert set(found) == ALL
    assert set(found.values()) == {2}


async def test_the_watermark_of_all_waits_for_an_agent_never_read_and_goes_on_without_it(
    tmp_path: Path, records: FakeAgents
) -> None:
    job = FakeJob()
    records.broken["agent-3"] = unavailable()
    async with polling(tmp_path, records, job) as one:
        await rounds(records, 3, but="agent-3")
        assert "watermark_ms" not in job.saved["calls"]
        assert one._watermark_ms is None
        del records.listed["agent-3"]
        await until(lambda: "watermark_ms" in job.saved["calls"])
        known_ms = job.saved["calls"]["watermark_ms"]
        # It comes back with what it has not been read for.
        records.listed["agent-3"] = 1
        await rounds(records, 3, but="agent-3")
        assert one._watermark_ms is not None
        assert one._watermark_ms >= known_ms
    assert "calls/agent-3" not in job.saved


async def test_an_agent_that_is_made_after_the_list_holds_the_watermark_back(
    tmp_path: Path, records: FakeAgents
) -> None:
    """Who is not listed yet may have calls, too: it is not passed without him."""
    job = FakeJob()
    async with polling(tmp_path, records, job) as one:
        await rounds(records)
        records.broken["agents"] = unavailable()
        await until(lambda: bool(one.troubles()))
        assert one._listed_ms is not None
        assert one.troubles() == ["poll_failing:acme:agents"]
        listed_ms = one._listed_ms
        await rounds(records, 4)  # calls go on
        assert one._watermark_ms is not None
        assert one._watermark_ms <= listed_ms
        records.broken.clear()
        await until(lambda: (one._watermark_ms or 0) > listed_ms)
        await until(lambda: not one.troubles())


async def test_agents_come_leave_and_come_back(tmp_path: Path, records: FakeAgents) -> None:
    job = FakeJob()
    with capture_logs() as logs:
        async with polling(tmp_path, records, job) as one:
            await rounds(records)
            records.listed["agent-new"] = 1
            records.add("agent-new", 5000, 5)
            await until(lambda: "agent-new" in records.read)
            lists = records.lists
            del records.listed["agent-1"]
            await until(lambda: "agent-1" not in one._rota)
            assert records.lists >= lists + 1
            mark_ms = job.saved["calls/agent-1"]["watermark_ms"]
            records.add("agent-1", 6000, 5, minutes_ago=0.001)
            await rounds(records)
            count = records.read.count("agent-1")
            records.windows.clear()
            records.listed["agent-1"] = 2
            await until(lambda: records.read.count("agent-1") > count)
            (first, *_) = [w for w in records.windows if w[0] == "agent-1"]
            assert first[1] == mark_ms - 7_200_000
    gone = [line for line in logs if line["event"] == "agent_gone"]
    assert [(line["agent"], line["reason"]) for line in gone] == [("…gent-1", "not_listed")]
    assert set(await recorded(tmp_path)) == ALL | {
        *map(str, range(5000, 5005)),
        *map(str, range(6000, 6005)),
    }
    directory = Counter(
        event["subject"]
        for event in await events_on(tmp_path)
        if event["type"] == "dialstream.directory.listed"
    )
    assert directory == {}  # the setting does not name it


async def test_a_list_that_hides_an_agent_once_or_breaks_off_makes_none_leave(
    tmp_path: Path, records: FakeAgents
) -> None:
    job = FakeJob()
    records.page = 1
    with capture_logs() as logs:
        async with polling(tmp_path, records, job, every_s=0.2) as one:
            await rounds(records)
            lists = records.lists
            del records.listed["agent-4"]
            await until(lambda: records.lists > lists)
            records.listed["agent-4"] = 1
            await until(lambda: records.lists > lists + 2)
            assert "agent-4" in one._rota
            records.broken["agents later"] = unavailable()
            await until(lambda: bool(one.troubles()))
            assert len(one._rota) == 5
    assert not any(line["event"] == "agent_gone" for line in logs)


async def test_an_agent_that_is_not_found_is_dropped_until_it_is_there_again(
    tmp_path: Path, records: FakeAgents
) -> None:
    job = FakeJob()
    records.broken["agent-2"] = ApiError("not_found", status=404)
    with capture_logs() as logs:
        async with polling(tmp_path, records, job) as one:
            await rounds(records, 5, but="agent-2")
            assert one.troubles() == []
            await until(lambda: "watermark_ms" in job.saved["calls"])
            del records.broken["agent-2"]
            await until(lambda: "agent-2" in records.read)
            records.broken["agent-2"] = ApiError("not_found", status=404)
            await until(lambda: sum(line["event"] == "agent_gone" for line in logs) == 2)
    # Listed each time, told once.
    assert [line["reason"] for line in logs if line["event"] == "agent_gone"] == ["not_found"] * 2
    assert await recorded(tmp_path) == dict.fromkeys(ALL, 1)


@pytest.mark.parametrize("place", ["agent-2", "agent-2 later"])
@pytest.mark.parametrize(
    "fault",
    [
        unavailable(),
        ApiError("unexpected", "GET: the answer is not what it should be", status=200),
        ApiError("refused", "GET: answered 400", status=400),
        ApiError("cursor_loop"),
        TypeError("private"),
    ],
    ids=str,
)
async def test_a_failing_agent_holds_up_nobody_else(
    tmp_path: Path, records: FakeAgents, fault: Exception, place: str
) -> None:
    job = FakeJob()
    records.broken[place] = fault
    with capture_logs() as logs:
        async with polling(tmp_path, records, job) as one:
            await rounds(records, 10, but="agent-2")
            await until(lambda: bool(one.troubles()))
            assert one.troubles() == ["poll_failing:acme:agent"]
            assert "calls/agent-2" not in job.saved
            assert job.saved["calls"].get("watermark_ms") is None
            tries = sum(window[0] == "agent-2" for window in records.windows)
            assert tries < len(records.windows) / 2
            records.broken.clear()
            await until(lambda: "agent-2" in records.read)
            await until(lambda: not one.troubles())
            await until(lambda: "watermark_ms" in job.saved["calls"])
    assert await recorded(tmp_path) == dict.fromkeys(ALL, 1)
    assert "private" not in str([line for line in logs if "exc_info" not in line])
    told = [line for line in logs if line["event"] in ("poll_failed", "unexpected_error")]
    if isinstance(fault, ApiError):
        assert {line["agent"] for line in told} == {"…gent-2"}
        assert [line["failures"] for line in told][:2] == [1, 2]


async def test_one_that_takes_long_to_fail_takes_little_of_the_time(
    tmp_path: Path, records: FakeAgents
) -> None:
    job = FakeJob()
    records.broken["agent-2"] = unavailable()
    records.takes_s["agent-2"] = 0.3
    async with polling(tmp_path, records, job):
        await until(lambda: any(window[0] == "agent-2" for window in records.windows))
        await rounds(records, 20, but="agent-2")
    tries = sum(window[0] == "agent-2" for window in records.windows)
    assert tries <= 3


async def test_when_no_agent_can_be_read_it_is_the_connection(
    tmp_path: Path, records: FakeAgents
) -> None:
    job = FakeJob()
    records.broken["calls"] = unavailable()
    async with polling(tmp_path, records, job) as one:
        with capture_logs() as logs:
            await until(lambda: "poll_failing:acme" in one.troubles())
            await until(lambda: len(records.windows) > 20)
        assert not any(line["event"] == "poll_behind_schedule" for line in logs)
        records.broken.clear()
        await until(lambda: not one.troubles())
        await until(lambda: "watermark_ms" in job.saved["calls"])
    assert await recorded(tmp_path) == dict.fromkeys(ALL, 1)


@pytest.mark.parametrize("reason", ["rate_limited", "unauthorized", "forbidden"])
async def test_what_concerns_the_key_stops_all_and_moves_no_watermark(
    tmp_path: Path, records: FakeAgents, reason: Any
) -> None:
    job = FakeJob()
    async with polling(tmp_path, records, job) as one:
        await rounds(records)
        records.broken["calls"] = records.broken["agents"] = ApiError(reason)
        stopped = reason != "rate_limited"
        word = "poll_stopped:acme" if stopped else "poll_failing:acme"
        await until(lambda: {*one.troubles()} >= {word, f"{word}:agents"})
        if stopped:
            windows = len(records.windows)
            await asyncio.sleep(0.2)
            assert len(records.windows) == windows
        marks = {name: mark.get("watermark_ms") for name, mark in job.saved.items()}
        await asyncio.sleep(0.1)
        assert {name: mark.get("watermark_ms") for name, mark in job.saved.items()} == marks
        records.broken.clear()
        one.reload()
        await rounds(records)
        await until(lambda: not one.troubles())
    assert await recorded(tmp_path) == dict.fromkeys(ALL, 1)


async def test_what_the_log_does_not_take_is_offered_until_it_does(
    tmp_path: Path, records: FakeAgents
) -> None:
    job, seen = FakeJob(), Seen.open(tmp_path / "poll.sqlite")
    async with open_journal(tmp_path) as journal:
        log = Reluctant(journal, 3)
        async with running(agents_poller(records, job, log, seen)):
            await until(lambda: log.refusals == 0)
            assert not any(name.startswith("calls/") for name in job.saved)
            await rounds(records)
    assert await recorded(tmp_path) == dict.fromkeys(ALL, 1)
    seen.close()


async def test_no_mark_is_saved_while_what_was_read_is_only_in_a_spool(
    tmp_path: Path, records: FakeAgents
) -> None:
    job, seen = FakeJob(), Seen.open(tmp_path / "poll.sqlite")

    def marks() -> list[Any]:
        return [each["watermark_ms"] for each in job.saved.values() if "watermark_ms" in each]

    async with open_journal(tmp_path) as journal:
        log = Reluctant(journal, 0)
        log.in_spool = True
        async with running(agents_poller(records, job, log, seen)):
            await rounds(records)
            assert marks() == []
            log.in_spool = False
            await until(lambda: len(marks()) == len(records.listed) + 1)
    seen.close()


async def test_once_the_connection_is_somebody_elses_it_ends(
    tmp_path: Path, records: FakeAgents
) -> None:
    async def lost() -> None:
        raise PublishError("not_owner")

    job, seen = FakeJob(before=lost), Seen.open(tmp_path / "poll.sqlite")
    async with open_journal(tmp_path) as journal:
        with pytest.raises(PublishError):
            await agents_poller(records, job, journal, seen).run()
    assert job.saved == {}
    seen.close()


async def test_cancelled_anywhere_and_begun_again_nothing_is_lost(
    tmp_path: Path, records: FakeAgents
) -> None:
    """Every life ends a little later than the last one, in the middle of whatever it does."""
    job = FakeJob()
    async with open_journal(tmp_path) as journal:
        for life in range(25):
            seen = Seen.open(tmp_path / "poll.sqlite")
            async with running(agents_poller(records, job, journal, seen)):
                for _ in range(life):
                    await asyncio.sleep(0)
                await asyncio.sleep(life * 0.001)
            seen.close()
            records.calls_by["agent-0"].append(Call(9000 + life, now_ms() - 100, now_ms()))
        seen = Seen.open(tmp_path / "poll.sqlite")
        async with running(agents_poller(records, job, journal, seen)):
            await rounds(records)
        seen.close()
    assert set(await recorded(tmp_path)) == ALL | {str(9000 + n) for n in range(25)}


async def test_a_gap_is_read_back_of_all_agents_and_closed_once(
    tmp_path: Path, records: FakeAgents
) -> None:
    now = now_ms()
    old = now - 30 * HOUR_MS
    for n in range(5):
        records.calls_by[f"agent-{n}"] += [
            Call(7000 + 10 * n, old, old + 60_000),
            Call(7001 + 10 * n, old - HOUR_MS, old - 60_000),  # ended before it
        ]
    gaps = CurrentGaps()
    gap = Gap(channel="webhook", from_ms=old, to_ms=old + HOUR_MS, reason="test")
    gaps._open["acme"] = {("webhook", old): gap}
    mark = {"watermark_ms": now, "swept_ms": now}
    job = FakeJob(saved={f"calls/agent-{n}": mark for n in range(5)})
    with capture_logs() as logs:
        async with polling(tmp_path, records, job, gaps):
            await until(lambda: gaps.of("acme", None) == [])
            await until(lambda: any(line["event"] == "gap_closed" for line in logs))
            await rounds(records)
    (closed,) = [e for e in await events_on(tmp_path) if e["type"] == "dialstream.gap.closed"]
    assert closed["data"]["found"] == 5
    assert (await recorded(tmp_path)).keys() >= {str(7000 + n) for n in (0, 1, 10, 11, 40, 41)}


async def test_the_directory_is_published_where_it_is_asked_for(
    tmp_path: Path, records: FakeAgents
) -> None:
    job = FakeJob()

    async def listed() -> Counter[str]:
        return Counter(
            event["subject"]
            for event in await events_on(tmp_path)
            if event["type"] == "dialstream.directory.listed"
        )

    async with polling(tmp_path, records, job, also=("directory",)):
        await until(lambda: records.lists > 2)
        assert await listed() == {f"directory/agent/agent-{n}": 1 for n in range(5)}
        records.listed["agent-3"] = 2
        lists = records.lists
        await until(lambda: records.lists > lists + 2)
    found = await listed()
    assert found["directory/agent/agent-3"] == 2
    assert sum(found.values()) == 6


# Versions


async def test_versions_are_read_at_first_sight_and_when_the_agent_changes(
    tmp_path: Path, records: FakeAgents
) -> None:
    job = FakeJob()
    for n in range(5):
        records.versions[f"agent-{n}"] = [1, 2, 3, 4, 5, 6, 7]
    async with polling(tmp_path, records, job, also=("versions",)):
        await until(lambda: {(f"agent-{n}", 2) for n in range(5)} <= {*records.asked})
        lists = records.lists
        await until(lambda: records.lists > lists + 3)
        assert len(records.asked) == 15
        records.versions["agent-1"].append(8)
        records.listed["agent-1"] = 2
        await until(lambda: len(records.asked) > 15)
        lists = records.lists
        await until(lambda: records.lists > lists + 2)
    assert set(records.asked[15:]) == {("agent-1", 0), ("agent-1", 1), ("agent-1", 2)}
    found = Counter(await changes_on(tmp_path))
    assert set(found.values()) == {1}
    assert len(found) == 5 * 7 + 1
    # Also in another life.
    async with polling(tmp_path, records, job, also=("versions",)):
        await rounds(records)
    assert Counter(await changes_on(tmp_path)) == found


async def test_versions_are_read_once_per_sweep_besides(
    tmp_path: Path, records: FakeAgents
) -> None:
    job = FakeJob()
    records.versions["agent-0"] = [1]
    async with polling(tmp_path, records, job, also=("versions",), sweep_every_s=0.3):
        await until(lambda: ("agent-0", 0) in records.asked)
        records.versions["agent-0"].append(2)  # that is to be seen nowhere else
        await until(lambda: records.asked.count(("agent-0", 0)) > 2)
    assert await changes_on(tmp_path) == [
        "fake:acme:change:agent-0:1",
        "fake:acme:change:agent-0:2",
    ]


async def test_versions_of_which_a_part_was_read_are_read_whole(
    tmp_path: Path, records: FakeAgents
) -> None:
    """Its end is not known to be read because its beginning is."""
    job = FakeJob()
    records.versions["agent-0"] = [1, 2, 3, 4, 5, 6, 7]
    seen = Seen.open(tmp_path / "poll.sqlite")
    async with open_journal(tmp_path) as journal:
        one = agents_poller(records, job, journal, seen, also=("versions",))
        pages = records.versions_of("agent-0", "poll")

        async def breaks_off(agent_id: str, via: str) -> AsyncIterator[Any]:
            yield await anext(pages)
            raise unavailable()

        whole, records.versions_of = records.versions_of, breaks_off  # type: ignore[method-assign]
        with pytest.raises(ApiError):
            await one._take_versions(records, "agent-0")
        records.versions_of = whole  # type: ignore[method-assign]
        await one._take_versions(records, "agent-0")
    assert set(await changes_on(tmp_path)) == {f"fake:acme:change:agent-0:{n}" for n in range(1, 8)}
    seen.close()


async def test_versions_that_may_not_be_read_stop_themselves_alone(
    tmp_path: Path, records: FakeAgents
) -> None:
    job = FakeJob()
    records.broken["versions"] = ApiError("forbidden", status=403)
    async with polling(tmp_path, records, job, also=("versions",)) as one:
        await until(lambda: one.troubles() == ["poll_stopped:acme:versions"])
        await rounds(records, 3)
        assert len(records.asked) == 1


async def test_versions_that_fail_leave_the_others_their_turn(
    tmp_path: Path, records: FakeAgents
) -> None:
    job = FakeJob()
    for n in range(5):
        records.versions[f"agent-{n}"] = [n]
    records.broken["versions agent-0"] = unavailable()
    records.broken["versions agent-1"] = ApiError("not_found")
    async with polling(tmp_path, records, job, also=("versions",)):
        await until(lambda: {("agent-4", 0), ("agent-3", 0)} <= {*records.asked})
        await until(lambda: records.asked.count(("agent-0", 0)) > 2)
        del records.broken["versions agent-0"]
        await until(lambda: records.asked.count(("agent-0", 0)) > 4 or bool(seen_of(tmp_path)))
    assert records.asked.count(("agent-1", 0)) == 1


def seen_of(path: Path) -> int:
    glance = Seen.glance(path / "poll" / "acme.sqlite")
    assert glance is not None
    found = int(glance._db.execute("select count(*) from seen where list = 'versions/agent-0'").get)
    glance.close()
    return found


# How it stands


async def test_it_says_when_it_cannot_keep_up_and_when_it_can_again(
    tmp_path: Path, records: FakeAgents
) -> None:
    job = FakeJob()
    for agent_id in records.listed:
        records.takes_s[agent_id] = 0.1
    with capture_logs() as logs:
        async with polling(tmp_path, records, job, every_s=0.1):
            await until(lambda: any(line["event"] == "poll_behind_schedule" for line in logs))
            behind = REGISTRY.get_sample_value(
                "dialstream_poll_behind_seconds", {"connection": "acme"}
            )
            assert behind is not None
            agents = REGISTRY.get_sample_value("dialstream_poll_agents", {"connection": "acme"})
            assert agents == 5
            await rounds(records, 3)
            records.takes_s.clear()
            for agent_id in list(records.listed)[1:]:
                del records.listed[agent_id]
            await until(lambda: any(line["event"] == "poll_on_schedule" for line in logs))
    told = [line for line in logs if "schedule" in line["event"]]
    assert told[0]["agents"] == 5
    assert told[0]["behind_s"] > 0
    assert metric("agents") is None


def metric(name: str) -> float | None:
    return REGISTRY.get_sample_value(f"dialstream_poll_{name}", {"connection": "acme"})


async def test_memory_follows_the_window(tmp_path: Path, records: FakeAgents) -> None:
    job = FakeJob()
    settings: Any = {"sweep_every_s": 0.1, "sweep_overlap_s": 600.0, "overlap_s": 10.0}
    records.add("agent-0", 8000, 10, minutes_ago=0.0)
    async with polling(tmp_path, records, job, **settings):
        await rounds(records, 30)
        glance = Seen.glance(tmp_path / "poll" / "acme.sqlite")
        assert glance is not None
        await until(lambda: _remembered(glance) <= 10)
        glance.close()
    assert (await recorded(tmp_path)).keys() >= ALL


def _remembered(seen: Seen) -> int:
    return int(seen._db.execute("select count(*) from seen where list like 'calls/%'").get)

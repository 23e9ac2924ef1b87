"""What can be made to go wrong, one thing at a time."""

import asyncio
import json
from collections import Counter
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.asyncio.client import connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from ingest.simulator.dialpad import payload
from ingest.simulator.dialpad_rest import Rates
from ingest.simulator.dialpad_server import SimulatedDialpad, simulated_dialpad
from ingest.simulator.facts import CallHappening, CallStep, Happening, TextHappening
from ingest.simulator.faults import ODDITIES, RATES, RECORD_ODDITIES, Faults, FaultsError
from ingest.simulator.world import World
from tests.ingest.simulator.inbox import event_in, is_signed, open_inbox, until

SECRET = "invented-secret-at-least-32-bytes-long!"
START_MS = 1_790_000_000_000
FAST = Rates(company_per_s=100_000)
STORY: list[Happening] = list(World(5, START_MS).until(START_MS + 120_000))
CALLS = [happening for happening in STORY if isinstance(happening, CallHappening)]
TEXT = next(happening for happening in STORY if isinstance(happening, TextHappening))
#: Two steps of one leg.
FIRST, SECOND = next(
    (a, b) for a in CALLS for b in CALLS if b.leg.id == a.leg.id and b.at_ms > a.at_ms
)


@asynccontextmanager
async def silent_dialpad(**options: Any) -> AsyncIterator[SimulatedDialpad]:
    """One in whose world nothing happens by itself, and whose clock is moved by hand."""
    given_: dict[str, Any] = {
        "world": World(5, START_MS),
        "start_ms": START_MS,
        "lasts_s": 0,
        "pace": None,
        "rates": FAST,
    }
    async with simulated_dialpad(**(given_ | options)) as dialpad:
        yield dialpad


def client(dialpad: SimulatedDialpad) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=f"{dialpad.base_url}/api/v2",
        headers={"Authorization": f"Bearer {dialpad.api_key}"},
        trust_env=False,
    )


# Saying what shall go wrong


def test_a_file_names_faults_and_the_rest_stays_off(tmp_path: Path) -> None:
    file = tmp_path / "faults.toml"
    file.write_text(
        "dropped = 0.25\nlimited = 1\nslow_s = 2\nkey_revoked = true\n"
        'missing_scopes = ["ai_recap"]\n'
    )
    expected = Faults(
        dropped=0.25, limited=1, slow_s=2, key_revoked=True, missing_scopes=("ai_recap",)
    )
    assert Faults.read(file) == expected
    file.write_text("")
    assert Faults.read(file) == Faults()


def test_everything_that_is_wrong_is_told_at_once(tmp_path: Path) -> None:
    file = tmp_path / "faults.toml"
    file.write_text(
        "dropt = 0.1\nlimited = 1.5\nbroken = true\nslow_s = -1\nkey_revoked = 1\n"
        'missing_scopes = "all"\nmissing_keys = -0.1\n[counts]\n'
    )
    with pytest.raises(FaultsError) as error:
        Faults.read(file)
    assert error.value.faults == (
        "dropt: there is no such fault: did you mean dropped?",
        "limited: a share between 0 and 1, not 1.5",
        "broken: a share between 0 and 1, not True",
        "slow_s: seconds, 0 or more, not -1",
        "key_revoked: true or false, not 1",
        "missing_scopes: a list of texts, not 'all'",
        "missing_keys: a share between 0 and 1, not -0.1",
        "counts: there is no such fault: did you mean cut?",
    )


def test_a_name_like_no_other_lists_all_that_there_are() -> None:
    with pytest.raises(FaultsError) as error:
        Faults.of({"x": 1})
    (told,) = error.value.faults
    assert told.startswith("x: there is no such fault: known: dropped, repeated, delayed, delay_s,")
    assert told.endswith("frames_html, frames_odd")
    assert "counts" not in told


@pytest.mark.parametrize("content", [b"dropped =", b"\xff\xfe", b"a = 1\na = 2"])
def test_what_is_no_toml_is_told(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "faults.toml"
    file.write_bytes(content)
    with pytest.raises(FaultsError, match="is no TOML"):
        Faults.read(file)


def test_a_file_that_is_not_there_is_told(tmp_path: Path) -> None:
    with pytest.raises(FaultsError, match="cannot be read"):
        Faults.read(tmp_path / "nothing.toml")


NAMES = st.sampled_from(
    [
        *sorted(RATES),
        *ODDITIES,
        *RECORD_ODDITIES,
        *("key_revoked", "missing_scopes", "page_caps", "partner_off", "slow_s"),
        *("updated_refused", "agents_vanish_s", "records_change_s"),
    ]
)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


@given(st.dictionaries(NAMES | st.text(max_size=12), VALUES, max_size=5))
def test_any_values_make_faults_or_are_refused_with_a_line_for_each(values: dict[str, Any]) -> None:
    refused: tuple[str, ...] = ()
    faults = Faults()
    try:
        faults = Faults.of(values)
    except FaultsError as error:
        refused = error.faults
    assert len(refused) <= len(values)
    assert all(any(line.startswith(name) for name in values) for line in refused)
    if not refused:
        for name, value in values.items():
            assert getattr(faults, name) == (tuple(value) if isinstance(value, list) else value)
        assert all(0 <= getattr(faults, name) <= 1 for name in RATES)


# When it does


def test_a_rate_is_a_share_of_the_occasions_and_is_counted() -> None:
    faults = Faults(dropped=0.25)
    struck = sum(faults.strikes("dropped") for _ in range(4000))
    assert 800 < struck < 1200
    assert faults.counts == {"dropped": struck}
    faults.dropped = 0
    assert not any(faults.strikes("dropped") for _ in range(100))
    faults.dropped = 1
    assert all(faults.strikes("dropped") for _ in range(100))


def test_a_seed_decides_every_chance() -> None:
    def chances(seed: int) -> list[bool]:
        faults = Faults(dropped=0.5)
        faults.seed(seed)
        return [faults.strikes("dropped") for _ in range(64)]

    assert chances(1) == chances(1) != chances(2)


def test_a_fault_can_be_forced_for_some_occasions() -> None:
    faults = Faults(broken=1)
    faults.force("broken", 2, after=1)
    faults.force("limited")
    assert [faults.strikes("broken") for _ in range(5)] == [False, True, True, True, True]
    assert [faults.strikes("limited") for _ in range(3)] == [True, False, False]
    assert faults.counts == {"broken": 4, "limited": 1}
    with pytest.raises(ValueError, match="no occasions"):
        faults.force("key_revoked")


# Deliveries


async def posted(dialpad: SimulatedDialpad, *happenings: Happening) -> list[bytes]:
    """What a webhook gets of these within two minutes."""
    async with open_inbox() as inbox:
        dialpad.subscribe(inbox.url, SECRET)
        for happening in happenings:
            dialpad.happen(happening)
        await dialpad.step(120)
        return inbox.bodies


async def test_a_dropped_delivery_never_comes() -> None:
    async with silent_dialpad() as dialpad:
        dialpad.faults.force("dropped")
        bodies = await posted(dialpad, FIRST, SECOND)
    assert [event_in(body) for body in bodies] == [payload(SECOND)]
    assert len(dialpad.delivered) == 1


async def test_of_a_lost_call_nobody_hears_from_its_end_on() -> None:
    ends = [
        happening
        for happening in CALLS
        if isinstance(happening, CallHappening) and happening.step is CallStep.ENDED
    ]
    lost = ends[1]
    async with silent_dialpad() as dialpad:
        dialpad.faults.force("endings_dropped", after=1)
        bodies = await posted(dialpad, *CALLS)
        assert dialpad.lost_calls == {lost.leg.id: lost.at_ms}
        assert dialpad.faults.counts["endings_dropped"] == 1
    before_it_was_lost = [
        happening
        for nth, happening in enumerate(CALLS)
        if happening.subject_id != lost.leg.id or nth < CALLS.index(lost)
    ]
    expected = {json.dumps(payload(happening)) for happening in before_it_was_lost}
    assert {json.dumps(event_in(body)) for body in bodies} == expected
    assert len(before_it_was_lost) < len(CALLS)


async def test_a_repeated_delivery_comes_once_more() -> None:
    async with silent_dialpad() as dialpad:
        dialpad.faults.force("repeated")
        bodies = await posted(dialpad, FIRST, SECOND)
    assert Counter(bodies) == {bodies[0]: 2, bodies[1]: 1}
    assert event_in(bodies[0]) == payload(FIRST)
    assert [delivery.accepted for delivery in dialpad.delivered] == [True] * 3


async def test_a_delayed_delivery_comes_late() -> None:
    async with silent_dialpad() as dialpad, open_inbox() as inbox:
        dialpad.subscribe(inbox.url, SECRET)
        dialpad.faults.force("delayed")
        dialpad.happen(FIRST)
        dialpad.happen(SECOND)
        await dialpad.settled()
        assert inbox.events == [payload(SECOND)]
        await dialpad.step(61)
        assert inbox.events == [payload(SECOND), payload(FIRST)]


async def test_a_reordered_delivery_comes_after_the_next_of_its_leg() -> None:
    async with silent_dialpad() as dialpad, open_inbox() as inbox:
        dialpad.subscribe(inbox.url, SECRET)
        dialpad.faults.force("reordered")
        for happening in (FIRST, TEXT, SECOND):
            dialpad.happen(happening)
        await until(lambda: len(inbox.bodies) == 3)
        calls = [event for event in inbox.events if "call_id" in event]
        assert calls == [payload(SECOND), payload(FIRST)]
        dialpad.faults.force("reordered")
        dialpad.happen(SECOND)
        await dialpad.step(9)
        assert len(inbox.bodies) == 3
        await dialpad.step(2)
        assert len(inbox.bodies) == 4  # there was no next one


async def test_a_forgery_comes_beside_the_genuine_one() -> None:
    async with silent_dialpad() as dialpad:
        dialpad.faults.forged = 1
        bodies = await posted(dialpad, *CALLS[:40])
    genuine = [body for body in bodies if is_signed(body, SECRET)]
    forged = [body for body in bodies if not is_signed(body, SECRET)]
    assert len(genuine) == len(forged) == 40
    unsigned = [body for body in forged if body.startswith(b"{")]
    assert 0 < len(unsigned) < 40
    assert Counter(d.genuine for d in dialpad.delivered) == {True: 40, False: 40}


async def test_with_faults_of_every_kind_each_event_comes_unless_it_was_dropped() -> None:
    faults = Faults(dropped=0.1, repeated=0.2, delayed=0.2, reordered=0.2, forged=0.2)
    async with silent_dialpad(faults=faults) as dialpad:
        bodies = await posted(dialpad, *CALLS)
    came = Counter(json.dumps(event_in(b)) for b in bodies if is_signed(b, SECRET))
    expected = {json.dumps(payload(happening)) for happening in CALLS}
    assert came.keys() <= expected
    assert len(came) == len(expected) - faults.counts["dropped"]
    assert came.total() == len(came) + faults.counts["repeated"]
    assert min(faults.counts[name] for name in ("delayed", "reordered", "forged")) > 5


@pytest.mark.parametrize("name", ODDITIES)
async def test_oddities_are_those_of_the_payloads(name: str) -> None:
    async with silent_dialpad() as dialpad:
        setattr(dialpad.faults, name, 1)
        bodies = await posted(dialpad, *CALLS)
    usual = {json.dumps(payload(happening)) for happening in CALLS}
    came = {json.dumps(event_in(body)) for body in bodies}
    assert came - usual
    assert dialpad.faults.counts[name] == len(CALLS)


# Answers of the API


async def test_a_refused_connection_is_reset() -> None:
    async with silent_dialpad() as dialpad:
        dialpad.faults.force("refused")
        async with client(dialpad) as api:
            with pytest.raises(httpx.TransportError):
                await api.get("/company")
        async with client(dialpad) as api:
            assert (await api.get("/company")).status_code == 200


async def test_too_many_requests_with_and_without_a_time() -> None:
    async with silent_dialpad() as dialpad, client(dialpad) as api:
        dialpad.faults.limited = 1
        answers = [await api.get("/company") for _ in range(4)]
    assert {answer.status_code for answer in answers} == {429}
    assert [answer.headers.get("retry-after") for answer in answers] == ["1", None, "1", None]
    assert dialpad.answers == {"429": 4}


async def test_the_server_is_broken_in_more_than_one_way() -> None:
    async with silent_dialpad() as dialpad, client(dialpad) as api:
        dialpad.faults.broken = 1
        statuses = {(await api.get("/company")).status_code for _ in range(40)}
    assert statuses == {500, 502, 503}


async def test_a_broken_answer_changes_nothing() -> None:
    async with silent_dialpad() as dialpad, client(dialpad) as api:
        for fault in ("broken", "limited", "html"):
            dialpad.faults.force(fault)
            await api.post("/webhooks", json={"hook_url": "http://127.0.0.1:1"})
        assert dialpad.resources.webhooks == {}


async def test_a_slow_answer_takes_its_time() -> None:
    async with silent_dialpad() as dialpad, client(dialpad) as api:
        dialpad.faults.force("slow")
        dialpad.faults.slow_s = 60
        with pytest.raises(httpx.ReadTimeout):
            await api.get("/company", timeout=0.2)
        dialpad.faults.force("slow")
        dialpad.faults.slow_s = 0.01
        assert (await api.get("/company")).status_code == 200


async def test_a_cut_answer_ends_in_the_middle_and_was_done_all_the_same() -> None:
    async with silent_dialpad() as dialpad, client(dialpad) as api:
        dialpad.faults.force("cut")
        with pytest.raises(httpx.RemoteProtocolError):
            await api.post("/webhooks", json={"hook_url": "http://127.0.0.1:1"})
        assert len(dialpad.resources.webhooks) == 1
        assert dialpad.requests[-1].status is None
        assert (await api.get("/company")).status_code == 200


async def test_a_page_for_people_comes_with_200() -> None:
    async with silent_dialpad() as dialpad, client(dialpad) as api:
        dialpad.faults.force("html")
        answer = await api.get("/company")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/html")
    assert answer.text.startswith("<!DOCTYPE html>")


async def test_keys_can_be_revoked_and_weakened_while_it_runs() -> None:
    async with silent_dialpad() as dialpad, client(dialpad) as api:

        async def status(path: str) -> int:
            return (await api.get(path)).status_code

        assert await status("/call") == 200
        dialpad.faults.key_revoked = True
        assert await status("/call") == await status("/company") == 401
        dialpad.faults.key_revoked = False
        dialpad.faults.missing_scopes = ("calls:list", "change_log")
        assert await status("/call") == await status("/subscriptions/changelog") == 403
        assert await status("/subscriptions/contact") == 200
        dialpad.faults.missing_scopes = ()
        dialpad.faults.not_admin = True
        assert await status("/call") == await status("/subscriptions/contact") == 403
        assert await status("/subscriptions/call") == 200


# Lists


async def walk(dialpad: SimulatedDialpad, *, most: int) -> tuple[list[list[str]], list[str]]:
    """Pages of ids, and cursors, of at most so many pages of calls."""
    pages: list[list[str]] = []
    cursors: list[str] = []
    params = {"limit": "20"}
    async with client(dialpad) as api:
        while len(pages) < most:
            page = (await api.get("/call", params=params)).json()
            pages.append([item["call_id"] for item in page.get("items", [])])
            if "cursor" not in page:
                break
            params["cursor"] = page["cursor"]
            cursors.append(page["cursor"])
    return pages, cursors


@pytest.fixture
async def full() -> AsyncIterator[SimulatedDialpad]:
    """One with some pages of calls."""
    async with simulated_dialpad(start_ms=START_MS, days=0.005, pace=None, rates=FAST) as dialpad:
        yield dialpad


async def test_pages_without_faults_have_everything_once(full: SimulatedDialpad) -> None:
    pages, cursors = await walk(full, most=1000)
    ids = [ident for page in pages for ident in page]
    assert len(ids) == len(set(ids)) > 100
    assert len(set(cursors)) == len(cursors) == len(pages) - 1


async def test_a_list_that_changes_repeats_items_and_loses_none(full: SimulatedDialpad) -> None:
    everything = {ident for page in (await walk(full, most=1000))[0] for ident in page}
    full.faults.page_changes = 1
    pages, _ = await walk(full, most=1000)
    assert {ident for page in pages for ident in page} == everything
    for page, following in pairwise(pages):
        assert 1 <= len(set(page) & set(following)) <= 3


async def test_a_list_may_skip_items(full: SimulatedDialpad) -> None:
    everything = [ident for page in (await walk(full, most=1000))[0] for ident in page]
    full.faults.page_skips = 1
    pages, _ = await walk(full, most=1000)
    found = [ident for page in pages for ident in page]
    missed = len(everything) - len(found)
    assert len(pages) - 1 <= missed <= 3 * (len(pages) - 1)
    assert [ident for ident in everything if ident in set(found)] == found


async def test_a_page_may_come_again_under_another_cursor(full: SimulatedDialpad) -> None:
    full.faults.page_repeats = 1
    pages, cursors = await walk(full, most=6)
    assert len(pages) == 6
    assert all(page == pages[0] for page in pages)
    assert len(set(cursors)) == 6


async def test_a_cursor_may_lead_back(full: SimulatedDialpad) -> None:
    pages, _ = await walk(full, most=1000)
    full.faults.force("cursor_loops", 3, after=2)
    looping, cursors = await walk(full, most=6)
    assert cursors[1] == cursors[2] == cursors[3]
    assert looping[:3] == pages[:3]
    assert looping[3] == looping[4] == pages[2]
    full.faults.cursor_loops = 1
    endless, cursors = await walk(full, most=6)
    assert len(endless) == 6
    assert len(set(cursors)) == 1


async def test_a_call_may_be_listed_late() -> None:
    ended = next(h for h in CALLS if h.step == "ended")
    async with silent_dialpad() as dialpad, client(dialpad) as api:
        dialpad.faults.force("records_late")
        dialpad.world.advance(START_MS + 120_000)
        dialpad.happen(ended)
        await dialpad.step((ended.at_ms - START_MS) / 1000 + 0.001)
        here = {
            "started_after": str(ended.leg.started_ms),
            "started_before": str(ended.leg.started_ms + 1),
        }
        assert (await api.get(f"/call/{ended.leg.id}")).json()["state"] == "hangup"
        assert str(ended.leg.id) not in (await api.get("/call", params=here)).text
        await dialpad.step(240)
        assert str(ended.leg.id) in (await api.get("/call", params=here)).text


# Sockets


async def test_a_handshake_may_be_refused() -> None:
    async with silent_dialpad() as dialpad:
        url = dialpad.websocket_url(dialpad.subscribe_socket(SECRET))
        dialpad.faults.force("sockets_refused")
        with pytest.raises(InvalidStatus) as refused:
            await connect(url)
        assert refused.value.response.status_code == 503
        async with connect(url):
            pass


async def test_a_socket_may_be_accepted_and_closed_at_once() -> None:
    async with silent_dialpad() as dialpad:
        url = dialpad.websocket_url(dialpad.subscribe_socket(SECRET))
        dialpad.faults.sockets_closed = 1
        for _ in range(3):
            async with connect(url) as socket, asyncio.timeout(20):
                with pytest.raises(ConnectionClosed):
                    await socket.recv()
                assert socket.close_code == 1013
        assert dialpad.sockets.opened == dialpad.faults.counts["sockets_closed"] == 3


async def test_a_socket_may_be_cut_and_its_frame_is_lost() -> None:
    async with silent_dialpad() as dialpad:
        url = dialpad.websocket_url(dialpad.subscribe_socket(SECRET))
        async with connect(url) as socket, asyncio.timeout(20):
            await until(lambda: len(dialpad.sockets) == 1)
            dialpad.happen(FIRST)
            assert event_in(await socket.recv()) == payload(FIRST)
            dialpad.faults.force("sockets_cut")
            dialpad.happen(SECOND)
            with pytest.raises(ConnectionClosed):
                await socket.recv()
            assert socket.close_code == 1006
        async with connect(url) as socket, asyncio.timeout(20):
            await until(lambda: len(dialpad.sockets) == 1)
            dialpad.happen(TEXT)
            assert event_in(await socket.recv()) == payload(TEXT)
    assert [delivery.accepted for delivery in dialpad.delivered] == [True, False, True]


async def test_strange_frames_come_beside_the_genuine_ones() -> None:
    async with silent_dialpad() as dialpad:
        url = dialpad.websocket_url(dialpad.subscribe_socket(SECRET))
        async with connect(url) as socket, asyncio.timeout(20):
            await until(lambda: len(dialpad.sockets) == 1)
            for name in ("frames_binary", "frames_html", "frames_odd", "forged"):
                dialpad.faults.force(name)
            dialpad.happen(FIRST)
            got = [await socket.recv() for _ in range(5)]
    binary = [frame for frame in got if isinstance(frame, bytes)]
    texts = [frame for frame in got if isinstance(frame, str)]
    assert len(binary) == 1
    signed = [event_in(frame) for frame in texts if _is_jws(frame) and is_signed(frame, SECRET)]
    assert signed == [payload(FIRST), {"of": "no known kind"}]
    assert sum(frame.startswith("<!DOCTYPE") for frame in texts) == 1
    assert [delivery.genuine for delivery in dialpad.delivered] == [True, False]


def _is_jws(frame: str) -> bool:
    return frame.startswith("ey")


async def test_frames_are_dropped_repeated_delayed_and_reordered_as_posts_are() -> None:
    async with silent_dialpad() as dialpad:
        url = dialpad.websocket_url(dialpad.subscribe_socket())
        async with connect(url) as socket, asyncio.timeout(20):
            await until(lambda: len(dialpad.sockets) == 1)
            for name in ("dropped", "repeated", "delayed"):
                dialpad.faults.force(name)
                dialpad.happen(FIRST)
                await dialpad.step(61)
            dialpad.faults.force("reordered")
            dialpad.happen(FIRST)
            dialpad.happen(SECOND)
            got = [event_in(await socket.recv()) for _ in range(5)]
    assert got == [payload(FIRST)] * 3 + [payload(SECOND), payload(FIRST)]

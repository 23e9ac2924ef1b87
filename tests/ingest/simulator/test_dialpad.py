"""Dialpad's clothes for the company, and the road to the receiver."""

import ast
import asyncio
import base64
import hmac
import json
import re
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from itertools import pairwise, takewhile
from pathlib import Path
from typing import Any

import pytest

import ingest.simulator
from ingest.simulator import poster
from ingest.simulator.dialpad import MAX_LAG_MS, encode, payload, retry_waits_s, sign
from ingest.simulator.poster import post
from ingest.simulator.world import CallHappening, DutyHappening, Happening, TextHappening, play

SAMPLES = Path(__file__).parents[2] / "samples" / "dialpad"
SECRET = "invented-secret-at-least-32-bytes-long!"
START_MS = 1_790_000_000_000
STORY = list(takewhile(lambda h: h.at_ms < START_MS + 240_000, play(5, START_MS)))

#: What we make, by kind and word, and the sample of its shape.
LIKE = {
    "call calling": "call-outbound-calling",
    "call ringing": "call-inbound-ringing-user",
    "call queued": "call-callcenter-leg-connected",
    "call connected": "call-inbound-connected-user",
    "call hold": "call-inbound-hold",
    "call hangup": "call-outbound-hangup-noanswer",
    "call hangup recorded": "call-inbound-hangup-user",
    "call missed": "call-inbound-missed",
    "call voicemail": "call-voicemail-no-message",
    "call voicemail_uploaded": "call-voicemail-uploaded",
    "call recording": "call-recording",
    "sms inbound pending": "sms-inbound-user",
    "sms outbound pending": "sms-outbound-pending",
    "sms outbound sent": "sms-outbound-status-sent",
    "sms outbound delivered": "sms-outbound-status-delivered",
    "sms outbound failed": "sms-outbound-status-failed",
    "contact Created": "contact-created",
    "contact Updated": "contact-updated",
    "agent available": "agent-status-available",
    "agent occupied": "agent-status-occupied",
    "agent unavailable": "agent-status-unavailable",
    "change operator_removed": "changelog-operator-removed",
    "change operator_added": "changelog-operator-removed",
}


def kind(event: dict[str, Any]) -> str:
    if "call_id" in event:
        recorded = event["state"] == "hangup" and event["was_recorded"]
        return f"call {event['state']}{' recorded' if recorded else ''}"
    if "message_status" in event:
        return f"sms {event['direction']} {event['message_status']}"
    if "event" in event:
        return f"contact {event['event']}"
    if "on_duty_status" in event:
        return f"agent {event['on_duty_status']}"
    return f"change {event['action']}"


def sample(name: str) -> dict[str, Any]:
    value = json.loads((SAMPLES / f"{name}.json").read_bytes())
    assert isinstance(value, dict)
    return value


def assert_same_shape(ours: Any, theirs: Any, where: str) -> None:
    """Find the same keys at every depth; ``{}``, ``[]`` and null may stand for what is absent."""
    match ours, theirs:
        case dict(), dict() if ours and theirs:
            assert ours.keys() == theirs.keys(), where
            for key, value in ours.items():
                assert_same_shape(value, theirs[key], f"{where}.{key}")
        case list(), list() if ours and theirs:
            assert_same_shape(ours[0], theirs[0], f"{where}[]")
        case _ if ours in (None, {}, []) or theirs in (None, {}, []):
            pass
        case int() | float(), int() | float():
            assert isinstance(ours, bool) == isinstance(theirs, bool), where
        case _:
            assert type(ours) is type(theirs), where


def test_every_payload_has_the_keys_of_a_sample() -> None:
    events = [payload(happening) for happening in STORY]
    assert {kind(event) for event in events} == LIKE.keys()
    for event in events:
        assert_same_shape(event, sample(LIKE[kind(event)]), kind(event))


def test_legs_through_the_centre_look_as_seen() -> None:
    events = [payload(happening) for happening in STORY]
    centre = next(e for e in events if e.get("operator_call_id"))
    agent = next(e for e in events if e.get("entry_point_call_id") == centre["call_id"])
    assert_same_shape(centre, sample("call-callcenter-leg-connected"), "centre")
    assert_same_shape(agent, sample("call-operator-leg-ringing"), "agent")
    assert centre["operator_call_id"] == agent["call_id"]
    assert centre["target"]["type"] == "call_center"
    assert agent["entry_point_target"] == centre["target"]
    assert centre["group_id"] == agent["group_id"] == f"CallCenter:{centre['target']['id']}"
    assert centre["date_queued"]
    assert centre["date_rang"] is agent["date_queued"] is None


POSSIBLE = re.compile(
    "ringing missed "
    "|ringing voicemail hangup voicemail_uploaded "
    "|queued (connected )?hangup "
    "|(calling )?ringing connected (hold connected )?hangup (recording )?"
    "|calling ringing hangup "
)


def test_every_leg_takes_a_possible_way_and_ends_once() -> None:
    states = defaultdict(list)
    for happening in STORY:
        if isinstance(happening, CallHappening):
            states[happening.leg.id].append(payload(happening)["state"])
    last_ms = STORY[-1].at_ms
    for call_id, way in states.items():
        if call_id < min(  # begun so late that it may not be over
            h.leg.id
            for h in STORY
            if isinstance(h, CallHappening) and h.leg.started_ms > last_ms - 40_000
        ):
            assert POSSIBLE.fullmatch("".join(f"{state} " for state in way)), way
            assert sum(state in {"hangup", "missed"} for state in way) == 1


def test_clocks_stand_a_little_after_the_fact_and_keep_the_order_of_a_leg() -> None:
    clocks = defaultdict(list)
    for happening in STORY:
        event = payload(happening)
        if "event_timestamp" in event:
            assert 0 < event["event_timestamp"] - happening.at_ms <= MAX_LAG_MS
            clocks[type(happening), happening.subject_id].append(event["event_timestamp"])
    for times in clocks.values():
        assert all(earlier < later for earlier, later in pairwise(times))


def test_durations_add_up_and_are_noisy() -> None:
    ends = [e for h in STORY if (e := payload(h)).get("date_ended") and e["date_connected"]]
    for event in ends:
        talked_ms = event["date_ended"] - event["date_connected"] - event["hold_time"]
        assert event["talk_time"] == pytest.approx(talked_ms, abs=1)
        assert event["total_duration"] >= event["duration"] >= event["talk_time"]
    assert any(len(str(event["talk_time"])) > 12 for event in ends)


def test_the_json_says_the_payload_and_the_signature_covers_it() -> None:
    body = encode(STORY[0])
    assert json.loads(body) == payload(STORY[0])
    header, claims, signature = sign(body, SECRET).split(b".")
    assert json.loads(unpadded(header)) == {"alg": "HS256", "typ": "JWT"}
    assert unpadded(claims) == body
    digest = hmac.digest(SECRET.encode(), header + b"." + claims, "sha256")
    assert unpadded(signature) == digest


def unpadded(text: bytes) -> bytes:
    return base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))


def test_retries_are_those_of_the_kind() -> None:
    spans_s = {
        type(happening): sum(retry_waits_s(happening))
        for happening in STORY
        if isinstance(happening, CallHappening | TextHappening | DutyHappening)
    }
    assert spans_s == {
        CallHappening: 14,
        TextHappening: pytest.approx(4 * 3600 + 4 * 60, abs=60),
        DutyHappening: pytest.approx(1.5),
    }


def test_the_simulator_imports_nothing_of_ours() -> None:
    (folder,) = ingest.simulator.__path__
    for path in Path(folder).glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Import(names=names):
                    modules = [name.name for name in names]
                case ast.ImportFrom(module=module, level=0) if module:
                    modules = [module]
                case ast.ImportFrom():
                    modules = ["ingest"]  # by dots: not how we write it, so not allowed
                case _:
                    continue
            for module in modules:
                ours = module.split(".")[0] in {"ingest", "schemas", "consumers"}
                assert not ours or f"{module}.".startswith("ingest.simulator."), (path, module)


class Inbox:
    """A server that answers as it is told to, and keeps what it got."""

    def __init__(self, answer: Callable[[bytes], int | None]) -> None:
        self.answer = answer
        self.bodies: list[bytes] = []
        self.accepted: list[bytes] = []
        self.types: list[bytes] = []
        self.arrived = asyncio.Event()
        self.connections = 0
        self.url = ""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while head := (await reader.readuntil(b"\r\n\r\n")).lower():
                length, content_type = (
                    re.findall(name + rb": (.*)\r\n", head)[0]
                    for name in (b"content-length", b"content-type")
                )
                body = await reader.readexactly(int(length))
                self.bodies.append(body)
                self.arrived.set()
                self.types.append(content_type)
                status = self.answer(body)
                if status is None:
                    return
                if status == NO_ANSWER:
                    continue
                if status < 300:
                    self.accepted.append(body)
                writer.write(b"HTTP/1.1 %d So\r\nContent-Length: 0\r\n\r\n" % status)
                await writer.drain()
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    async def has(self, count: int) -> None:
        await self.until(lambda: len(self.bodies) >= count)

    async def until(self, enough: Callable[[], bool]) -> None:
        async with asyncio.timeout(20):
            while not enough():
                self.arrived.clear()
                await self.arrived.wait()


NO_ANSWER = 0


@asynccontextmanager
async def playing(
    answer: Callable[[bytes], int | None], *, pace: float
) -> AsyncIterator[tuple[Inbox, asyncio.Task[None]]]:
    """Set a poster to work; it must end quickly and quietly when it is cancelled."""
    loop = asyncio.get_running_loop()
    noise: list[dict[str, Any]] = []
    loop.set_exception_handler(lambda _, context: noise.append(context))
    inbox = Inbox(answer)
    server = await asyncio.start_server(inbox.serve, "127.0.0.1", 0)
    inbox.url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}/webhooks/dev"
    task = asyncio.create_task(post(inbox.url, SECRET, seed=3, pace=pace))
    try:
        yield inbox, task
    finally:
        task.cancel()
        await asyncio.wait([task], timeout=1)
        server.close()
    assert task.cancelled()
    for _ in range(10):  # the server's side sees the end of its connections
        await asyncio.sleep(0.005)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert noise == []


@pytest.fixture
def only_the_story(monkeypatch: pytest.MonkeyPatch) -> None:
    """No forgeries, no repeats."""
    monkeypatch.setattr(poster, "_FORGED", 0)
    monkeypatch.setattr(poster, "_REPEATED", 0)


def event_in(body: bytes) -> dict[str, Any]:
    event = json.loads(unpadded(body.split(b".")[1]))
    assert isinstance(event, dict)
    return event


def is_signed(body: bytes) -> bool:
    signed, _, signature = body.rpartition(b".")
    return unpadded(signature) == hmac.digest(SECRET.encode(), signed, "sha256")


async def test_the_first_events_come_at_once_with_the_wall_clock(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("INFO")
    began_s = time.monotonic()
    async with playing(lambda _: 204, pace=1) as (inbox, _):
        await inbox.has(1)
        assert time.monotonic() - began_s < 0.8  # 0.1 where nothing else runs
        await inbox.has(3)
        now_ms = time.time() * 1000
    for body in inbox.bodies:
        assert is_signed(body)
        assert now_ms - 3000 < event_in(body)["event_timestamp"] <= now_ms
    assert set(inbox.types) == {b"application/jwt"}
    assert caplog.records == []
    assert capfd.readouterr() == ("", "")


@pytest.mark.usefixtures("only_the_story")
async def test_a_5xx_is_tried_again_before_the_rest_of_its_leg_and_holds_up_nobody_else() -> None:
    seen: Counter[bytes] = Counter()

    def refuse_openings_twice(body: bytes) -> int:
        seen[body] += 1
        opening = event_in(body).get("state") in {"calling", "queued", "ringing"}
        return 503 if opening and seen[body] <= 2 else 204

    def told_of_a_leg() -> dict[int, list[int]]:
        clocks = defaultdict(list)
        for event in map(event_in, inbox.accepted):
            if "call_id" in event:
                clocks[event["call_id"]].append(event["event_timestamp"])
        return clocks

    async with playing(refuse_openings_twice, pace=20) as (inbox, _):
        await inbox.until(lambda: any(len(clocks) > 2 for clocks in told_of_a_leg().values()))
        await inbox.has(len(inbox.bodies) + 20)
    assert max(seen.values()) == 3
    assert all(clocks == sorted(clocks) for clocks in told_of_a_leg().values())
    # Between the tries of the first that was refused, others were heard.
    refused = next(body for body, tries in seen.items() if tries == 3)
    first, second, *_ = (i for i, body in enumerate(inbox.bodies) if body == refused)
    assert second > first + 1


@pytest.mark.usefixtures("only_the_story")
async def test_a_4xx_is_final() -> None:
    async with playing(lambda _: 400, pace=40) as (inbox, _):
        await inbox.has(60)
    assert set(Counter(inbox.bodies).values()) == {1}


@pytest.mark.usefixtures("only_the_story")
async def test_a_broken_connection_is_tried_twice_more() -> None:
    async with playing(lambda _: None, pace=20) as (inbox, _):
        await inbox.has(60)
    tries = Counter(inbox.bodies)
    assert max(tries.values()) == 3
    assert tries[inbox.bodies[0]] == 3


async def test_some_deliveries_are_forged_and_some_come_again() -> None:
    async with playing(lambda _: 204, pace=60) as (inbox, _):
        await inbox.has(250)
    unsigned = [body for body in inbox.bodies if body.startswith(b"{")]
    signed = [body for body in inbox.bodies if not body.startswith(b"{")]
    genuine = Counter(filter(is_signed, signed))
    forged = len(inbox.bodies) - genuine.total()
    assert unsigned
    assert inbox.types.count(b"application/json") == len(unsigned)
    assert forged > len(unsigned)
    assert forged / genuine.total() == pytest.approx(1 / 20, abs=0.03)
    repeats = genuine.total() - len(genuine)
    assert repeats / genuine.total() == pytest.approx(1 / 15, abs=0.04)
    assert inbox.connections < len(inbox.bodies) / 2  # they are kept alive


async def test_it_can_be_cancelled_while_nobody_answers() -> None:
    async with playing(lambda _: NO_ANSWER, pace=20) as (inbox, task):
        await inbox.has(20)
        began_s = time.monotonic()
        task.cancel()
        await asyncio.wait([task], timeout=1)
        assert time.monotonic() - began_s < 1


def test_the_story_is_the_same_in_dialpads_words() -> None:
    def told() -> list[dict[str, Any]]:
        until_ms = START_MS + 20_000
        story: list[Happening] = list(takewhile(lambda h: h.at_ms < until_ms, play(5, START_MS)))
        return [payload(happening) for happening in story]

    assert told() == told()

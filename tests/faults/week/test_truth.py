"""The judge of the week finds what is amiss: a stream that is as it ought to be, with one fault."""

import copy
import time
from collections.abc import Callable
from typing import Any

import pytest

from ingest.simulator.dialpad import NO_ODDITIES, payloads, rest_call, to_json
from ingest.simulator.dialpad_delivery import Delivery
from ingest.simulator.facts import CallHappening
from ingest.simulator.story import COMPRESSED
from tests.faults.week.truth import Judge, ToldWorld, Verdict, clock, most_in, push_id, record_id

START_MS = 1_790_000_000_000
DAY_MS = 86_400_000

Stream = list[dict[str, Any]]


class Story:
    """A minute of a company, what was pushed of it, and the stream as it ought to be."""

    def __init__(self) -> None:
        self.world = ToldWorld(1, START_MS, COMPRESSED, NO_ODDITIES)
        self.pushes: list[Delivery] = []
        self.stream: Stream = []
        for happening in self.world.until(START_MS + 60_000):
            if isinstance(happening, CallHappening):
                (event,) = payloads(happening)
                self.push(event)
        for leg in self.world.concluded(START_MS + DAY_MS):
            self.record(rest_call(leg))

    def push(self, event: dict[str, Any]) -> None:
        delivery = Delivery("call", 1, 1, "webhook", to_json(event), answers=[204])
        self.pushes.append(delivery)
        ident = push_id("call", event)
        fact = self.world.facts[ident]
        data = {**fact.says, "raw": event}
        self.stream.append({"id": ident, "type": f"dialstream.{fact.type}", "data": data})

    def record(self, item: dict[str, Any]) -> None:
        leg = self.world.legs[int(item["call_id"])]
        data = {
            "call_id": item["call_id"],
            "started_at": clock(leg.started_ms),
            "connected_at": clock(leg.answered_ms),
            "ended_at": clock(leg.ended_ms),
            "raw": item,
        }
        event = {"id": record_id(item), "type": "dialstream.call.recorded", "data": data}
        self.stream.append(event)

    def judged(self, stream: Stream, at_ms: int = START_MS + 1000) -> Verdict:
        judge = Judge(self.world)
        for delivery in self.pushes:
            judge.deliver(delivery, at_ms, at_ms)
        for event in stream:
            judge.read(event)
        return judge.verdict(START_MS + DAY_MS)


@pytest.fixture(scope="module")
def story() -> Story:
    return Story()


def test_a_stream_that_tells_the_truth_is_well(story: Story) -> None:
    found = story.judged(story.stream)
    assert found.problems == []
    assert found.legs > 20
    assert found.on_stream == found.copies == len(story.pushes) > 100


def test_pushes_that_nobody_accepted_may_be_missing(story: Story) -> None:
    refused = copy.copy(story)
    refused.pushes = [copy.copy(push) for push in story.pushes]
    refused.pushes[0].answers = [503, None]
    refused.pushes[1].genuine = False
    assert refused.judged(story.stream[2:]).problems == []


def change(at: int, **data: object) -> Callable[[Stream], None]:
    def changed(stream: Stream) -> None:
        stream[at] = {**stream[at], "data": {**stream[at]["data"], **data}}

    return changed


def rename(stream: Stream) -> None:
    stream.append({**stream[0], "id": stream[0]["id"] + "0"})


@pytest.mark.parametrize(
    ("spoil", "what"),
    [
        (lambda stream: stream.pop(0), "1 lost"),
        (rename, "twice with different ids"),
        (change(0, from_number="+15550000000"), "1 wrong"),
        (change(0, started_at=None), "1 wrong"),
        (change(0, raw={}), "1 wrong"),
        (lambda stream: stream.pop(), "without their record"),
        (change(-1, ended_at=None), "1 wrong"),
        (lambda stream: stream.append(stream[-1]), "1 records published again"),
    ],
)
def test_what_is_amiss_is_found(story: Story, spoil: Callable[[Stream], None], what: str) -> None:
    stream = list(story.stream)
    spoil(stream)
    assert what in "; ".join(story.judged(stream).problems)


def test_a_record_of_before_is_old(story: Story) -> None:
    leg = next(leg for leg in story.world.legs.values() if leg.recording_ready_ms)
    assert leg.ended_ms is not None
    stream = [event for event in story.stream if event["data"]["call_id"] != str(leg.id)]
    old = copy.copy(story)
    old.stream = []
    old.record(rest_call(leg.as_of(leg.ended_ms)))
    found = old.judged([*stream, *old.stream])
    assert found.old_records == [str(leg.id)]


def test_gaps_must_be_closed_and_excuse_what_a_broken_socket_swallowed(story: Story) -> None:
    heard = copy.copy(story)
    heard.pushes = [copy.copy(push) for push in story.pushes]
    heard.pushes[0].via, heard.pushes[0].sockets, heard.pushes[0].answers = "websocket", 1, []

    def gap(what: str, from_ms: int) -> dict[str, Any]:
        to_ms = None if what == "opened" else from_ms + 5000
        data = {"channel": "websocket", "from": clock(from_ms), "to": clock(to_ms), "reason": "cut"}
        return {"id": "gap", "type": f"dialstream.gap.{what}", "data": data}

    opened, closed = gap("opened", START_MS), gap("closed", START_MS)
    rest = story.stream[1:]
    assert "1 gaps open" in "; ".join(heard.judged([*rest, opened]).problems)
    found = heard.judged([*rest, opened, closed])
    assert (found.problems, found.lost_in_gaps) == ([], 1)
    assert len(heard.judged([*rest, opened, closed], START_MS + 9000).lost) == 1
    assert len(heard.judged(rest).lost) == 1


def test_the_most_in_a_second() -> None:
    assert most_in([], 1) == 0
    assert most_in([0.0, 0.5, 0.9, 1.0, 1.1, 3.0], 1) == 4


def test_the_story_has_what_the_tests_need(story: Story) -> None:
    steps = {delivery.event["state"] for delivery in story.pushes}
    assert {"ringing", "connected", "hangup", "recording"} <= steps
    assert clock(START_MS) == time.strftime("%Y-%m-%dT%H:%M:%S.000Z", time.gmtime(START_MS // 1000))

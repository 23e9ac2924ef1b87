"""A judge who overlooks something is worse than none: whatever is done to a log is found."""

import base64
import json
from collections.abc import Sequence
from dataclasses import dataclass, field

from hypothesis import given
from hypothesis import strategies as st

from consumers.prove.oracle import Judge, judge


@dataclass(slots=True)
class Posted:
    id: str
    leg: int
    payload: bytes | None
    tries: list[int | None] = field(default_factory=lambda: [204])


def posted(leg: int, seq: int, *tries: int | None) -> Posted:
    return Posted(f"l{leg}-{seq}", leg, b'{"leg":%d,"seq":%d}' % (leg, seq), list(tries) or [204])


def event(each: Posted) -> bytes:
    return b'{"id":"%b","data":{"raw":%b}}' % (each.id.encode(), each.payload or b"null")


LEGS = 3

#: For each leg, what came of every try of each delivery; only the last may never be acknowledged.
_tries = st.lists(st.sampled_from([503, None]), max_size=2)
_legs = st.lists(
    st.tuples(st.lists(_tries, max_size=6), st.none() | _tries), min_size=1, max_size=LEGS
)


@st.composite
def runs(draw: st.DrawFn) -> tuple[list[Posted], list[Posted]]:
    """What was posted; and a log that keeps the promise: legs mixed, repeats behind the first."""
    deliveries: list[Posted] = []
    for leg, (stored, last) in enumerate(draw(_legs)):
        deliveries += [posted(leg, seq, *tries, 204) for seq, tries in enumerate(stored)]
        if last:
            deliveries.append(posted(leg, len(stored), *last))
    queues = [[each for each in deliveries if each.leg == leg] for leg in range(LEGS)]
    log: list[Posted] = []
    while any(queues):
        queue = draw(st.sampled_from([each for each in queues if each]))
        each = queue.pop(0)
        # What was not acknowledged may be there, and may not.
        if 204 in each.tries or draw(st.booleans()):
            log.append(each)
        is_repeated: bool = draw(st.booleans())
        if log and is_repeated:
            log.append(draw(st.sampled_from(log)))
    return deliveries, log


def found(deliveries: Sequence[Posted], log: Sequence[bytes]) -> list[int]:
    verdict = judge(deliveries, log)
    assert bool(verdict.broken) == any((verdict.lost, verdict.changed, verdict.disordered))
    return [len(verdict.lost), len(verdict.changed), len(verdict.disordered)]


@given(runs())
def test_a_promise_that_was_kept(run: tuple[list[Posted], list[Posted]]) -> None:
    deliveries, log = run
    verdict = judge(deliveries, map(event, log))
    assert verdict.problems == []
    assert verdict.offered == len(deliveries)
    assert verdict.acknowledged == sum(204 in each.tries for each in deliveries)
    assert verdict.repeats == len(log) - len({each.id for each in log})
    assert verdict.answers.total() == sum(len(each.tries) for each in deliveries)


@given(runs(), st.data())
def test_whatever_is_taken_away_is_lost(
    run: tuple[list[Posted], list[Posted]], data: st.DataObject
) -> None:
    deliveries, log = run
    gone = data.draw(st.sets(st.sampled_from([each.id for each in deliveries] or ["-"])))
    stored = {each.id for each in deliveries if 204 in each.tries}
    left = [event(each) for each in log if each.id not in gone]
    assert sorted(judge(deliveries, left).lost) == sorted(gone & stored)
    waiting = Judge(deliveries)
    for value in left:
        waiting.take(value)
    assert waiting.missing() == gone & stored


@given(runs(), st.data())
def test_one_letter_that_is_another_one_is_a_change(
    run: tuple[list[Posted], list[Posted]], data: st.DataObject
) -> None:
    deliveries, log = run
    if not log:
        return
    at = data.draw(st.integers(0, len(log) - 1))
    values = [event(each) for each in log]
    values[at] = values[at].replace(b'"leg"', b'"Leg"')
    assert found(deliveries, values)[1] == 1


@given(runs(), st.data())
def test_two_of_a_leg_that_have_changed_places_are_out_of_order(
    run: tuple[list[Posted], list[Posted]], data: st.DataObject
) -> None:
    deliveries, _ = run
    log = [each for each in deliveries if 204 in each.tries]
    pairs = [
        (first, second)
        for second in range(len(log))
        for first in range(second)
        if log[first].leg == log[second].leg
    ]
    if not pairs:
        return
    first, second = data.draw(st.sampled_from(pairs))
    log[first], log[second] = log[second], log[first]
    lost, changed, disordered = found(deliveries, [event(each) for each in log])
    assert (lost, changed) == (0, 0)
    assert disordered >= 1
    # Repeats behind do not mend it.
    assert found(deliveries, [event(each) for each in [*log, *deliveries]])[2] >= 1


def test_any_2xx_is_an_acknowledgement_and_nothing_else() -> None:
    for status, lost in ((200, 1), (202, 1), (299, 1), (300, 0), (401, 0), (503, 0), (None, 0)):
        assert found([posted(1, 0, status)], []) == [lost, 0, 0], status


def test_what_is_not_kept_is_not_compared() -> None:
    bare = Posted("l1-0", 1, None)
    assert found([bare], [b'{"id":"l1-0","data":{}}']) == [0, 0, 0]
    assert found([bare], [b'{"id":"l1-1","data":{}}']) == [1, 1, 0]


def reject(each: Posted, body: bytes) -> bytes:
    kept = base64.b64encode(body).decode()
    detail = f"{each.id} for calls: Kafka refuses it"
    return json.dumps({"data": {"detail": detail, "body_base64": kept}}).encode()


def test_what_was_set_aside_is_not_lost_but_may_have_changed() -> None:
    each = posted(1, 0)
    assert judge([each], [], [reject(each, event(each))]).broken == []
    assert judge([each], [], [reject(each, b"other")]).broken == ["1 changed, first l1-0"]
    stranger = posted(2, 0)
    assert judge([], [], [reject(stranger, event(stranger))]).broken == ["1 changed, first l2-0"]

"""A judge who overlooks something is worse than none."""

import base64
import json
from collections.abc import Sequence

from consumers.prove.oracle import Verdict
from tests.faults.judge import judge
from tests.kit import Sent, call


def delivery(leg: int, seq: int, *tries: int | None) -> Sent:
    payload = json.dumps(call(leg, seq)).encode()
    return Sent(leg, seq, payload, b"", list(tries) or [204])


def event(sent: Sent) -> bytes:
    posted = json.loads(sent.payload)
    ident = f"dialpad:acme:call:{sent.leg}:{posted['state']}:{posted['event_timestamp']}"
    return b'{"id": "%b", "data": {"raw": %b}}' % (ident.encode(), sent.payload)


def reject(sent: Sent) -> bytes:
    value = event(sent)
    detail = f"{json.loads(value)['id']} for calls: Kafka refuses {len(value)} bytes"
    body = base64.b64encode(value).decode()
    return json.dumps({"data": {"detail": detail, "body_base64": body}}).encode()


SENT = [delivery(leg, seq) for seq in range(4) for leg in (1, 2)]
LOG = [event(each) for each in SENT]


def counts(verdict: Verdict) -> Sequence[int]:
    return [len(verdict.lost), len(verdict.changed), len(verdict.disordered)]


def test_all_is_well() -> None:
    verdict = judge(SENT, LOG)
    assert verdict.problems == []
    assert (verdict.offered, verdict.acknowledged, verdict.refused) == (8, 8, 0)


def test_repeats_of_the_whole_are_well() -> None:
    verdict = judge(SENT, LOG[:6] + LOG)
    assert verdict.problems == []
    assert verdict.repeats == 6


def test_loss() -> None:
    assert counts(judge(SENT, LOG[:3] + LOG[4:])) == [1, 0, 0]
    assert counts(judge(SENT, [])) == [8, 0, 0]


def test_what_was_not_acknowledged_may_be_there_or_not() -> None:
    tried = delivery(3, 0, 503, None)
    assert judge([*SENT, tried], LOG).problems == []
    assert judge([*SENT, tried], [*LOG, event(tried)]).problems == []


def test_change() -> None:
    other = LOG[2].replace(b"Example Customer", b"Example Cuxtomer")
    assert counts(judge(SENT, [*LOG[:2], other, *LOG[3:]])) == [0, 1, 0]
    # White space too: what was signed is kept byte for byte.
    other = LOG[2].replace(b'"labels": [', b'"labels":[')
    assert counts(judge(SENT, [*LOG[:2], other, *LOG[3:]])) == [0, 1, 0]


def test_what_nobody_posted() -> None:
    assert counts(judge(SENT, [*LOG, event(delivery(9, 0))])) == [0, 1, 0]


def test_another_id_for_the_same_fact() -> None:
    other = LOG[0].replace(b'{"id": "', b'{"id": "x')
    assert counts(judge(SENT, [*LOG, other])) == [0, 1, 0]


def test_disorder() -> None:
    swapped = [LOG[2], LOG[1], LOG[0], *LOG[3:]]
    assert counts(judge(SENT, swapped)) == [0, 0, 1]
    # Later repeats do not heal it, nor does the order of other legs matter.
    assert counts(judge(SENT, swapped + LOG)) == [0, 0, 1]
    assert counts(judge(SENT, LOG[1::2] + LOG[::2])) == [0, 0, 0]


def test_answers() -> None:
    assert judge([delivery(1, 0, 500, 204)], [event(delivery(1, 0))]).problems == [
        "answers ['500']"
    ]
    verdict = judge([delivery(1, 0, 503, None, 204)], [event(delivery(1, 0))])
    assert verdict.problems == []
    assert verdict.refused == 1


def test_what_was_set_aside_is_not_lost() -> None:
    assert judge(SENT, LOG[1:], [reject(SENT[0])]).problems == []
    assert counts(judge(SENT, LOG, [reject(delivery(9, 0))])) == [0, 1, 0]


def test_an_answer_that_took_too_long() -> None:
    verdict = judge(SENT, LOG)
    verdict.worst_s = 4.6
    assert verdict.problems == ["worst answer 4.6 s"]

"""The judge of `dialstream prove`, over what the tests' own load has sent."""

import json
from collections.abc import Sequence
from dataclasses import dataclass

from consumers.prove import oracle
from consumers.prove.oracle import Verdict
from tests.kit import Sent

#: Of plain outages: what may get 503, of all answers.
REFUSED_SHARE = 0.02


@dataclass(frozen=True, slots=True)
class _Offered:
    id: str
    leg: int
    payload: bytes
    tries: Sequence[int | None]


def judge(sent: Sequence[Sent], log: Sequence[bytes], rejects: Sequence[bytes] = ()) -> Verdict:
    """``log``, ``rejects``: values, those of one key in their order."""
    offered = [_Offered(_id_of(each), each.leg, each.payload, each.tries) for each in sent]
    verdict = oracle.judge(offered, log, rejects)
    if odd := verdict.answers.keys() - {204, 503, None}:
        verdict.others.append(f"answers {sorted(map(str, odd))}")
    return verdict


def _id_of(sent: Sent) -> str:
    """As the design fixes it."""
    payload = json.loads(sent.payload)
    return f"dialpad:acme:call:{sent.leg}:{payload['state']}:{payload['event_timestamp']}"

"""What must be on the log after whatever has happened. Pure: posts in, verdict out.

It predicts each event's id from what was posted, as the design fixes it, and looks for the posted
bytes in the event: the judge shares no code with the accused.
"""

import base64
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field

from tests.kit import Sent

#: Dialpad hangs up after 5 s.
WORST_S = 4.5

#: Of plain outages: what may get 503, of all answers.
REFUSED_SHARE = 0.02


@dataclass(slots=True)
class Verdict:
    """What was found; `problems` says in words what must not be."""

    offered: int = 0
    acknowledged: int = 0
    #: Answers, not deliveries: one may be refused more than once.
    refused: int = 0
    lost: list[str] = field(default_factory=list)
    #: Not what was posted, or posted by nobody.
    changed: list[str] = field(default_factory=list)
    disordered: list[str] = field(default_factory=list)
    #: Too large for its topic, and on the rejects topic for that.
    set_aside: set[str] = field(default_factory=set)
    repeats: int = 0
    worst_s: float = 0.0
    #: What was found beside the log.
    others: list[str] = field(default_factory=list)

    @property
    def problems(self) -> list[str]:
        """Empty if the promise was kept."""
        found = {"lost": self.lost, "changed": self.changed, "out of order": self.disordered}
        return [
            *(f"{len(ids)} {what}, first {ids[0]}" for what, ids in found.items() if ids),
            *([f"worst answer {self.worst_s:.1f} s"] if self.worst_s >= WORST_S else []),
            *self.others,
        ]


def judge(sent: Sequence[Sent], log: Sequence[bytes], rejects: Sequence[bytes] = ()) -> Verdict:
    """``log``, ``rejects``: values, those of one key in their order."""
    posted = {_id_of(each): each for each in sent}
    answers = [status for each in sent for status in each.tries]
    verdict = Verdict(
        offered=len(sent),
        acknowledged=sum(each.acknowledged for each in sent),
        refused=answers.count(503),
    )
    if odd := set(answers) - {204, 503, None}:
        verdict.others.append(f"answers {sorted(map(str, odd))}")

    first_places: dict[str, int] = {}
    for place, value in enumerate(log):
        ident = json.loads(value)["id"]
        if ident not in posted or posted[ident].payload not in value:
            verdict.changed.append(ident)
        verdict.repeats += ident in first_places
        first_places.setdefault(ident, place)
    for value in rejects:
        data = json.loads(value)["data"]
        ident = data["detail"].partition(" ")[0]
        beginning = base64.b64decode(data["body_base64"])
        if ident not in posted or posted[ident].payload[:1000] not in beginning:
            verdict.changed.append(ident)
        verdict.set_aside.add(ident)

    last_place: defaultdict[int, int] = defaultdict(lambda: -1)
    # The events of a leg were posted one after the other, each once the last was acknowledged.
    for ident, each in posted.items():
        if ident not in first_places:
            if each.acknowledged and ident not in verdict.set_aside:
                verdict.lost.append(ident)
        elif first_places[ident] < last_place[each.leg]:
            verdict.disordered.append(ident)
        else:
            last_place[each.leg] = first_places[ident]
    return verdict


def _id_of(sent: Sent) -> str:
    payload = json.loads(sent.payload)
    return f"dialpad:acme:call:{sent.leg}:{payload['state']}:{payload['event_timestamp']}"

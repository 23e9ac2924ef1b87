"""What must be on the log after whatever has happened. Pure: deliveries in, verdict out.

Who posts says which id each delivery's event must have, from the contract of ids and not by our
code; the posted bytes are looked for in the event. So the judge shares no code with the accused.
The same judge sits in the project's own fault tests.
"""

import base64
import json
from collections import Counter, defaultdict
from collections.abc import Collection, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

#: Dialpad hangs up after 5 s.
WORST_S = 4.5

#: As much of a body as a reject of one that is too large holds at least.
_KEPT_BYTES = 1000


class Offered(Protocol):
    """One delivery, and what came of every try."""

    @property
    def id(self) -> str:
        """Of the event that it must become."""
        ...

    @property
    def leg(self) -> Hashable:
        """Whose next delivery was not posted before this one was acknowledged."""
        ...

    @property
    def payload(self) -> bytes | None:
        """What the event must hold as it was posted; None: it holds no such thing."""
        ...

    @property
    def tries(self) -> Sequence[int | None]:
        """Status of each answer; None where the connection ended before one."""
        ...


def acknowledged(tries: Sequence[int | None]) -> bool:
    return any(status is not None and 200 <= status < 300 for status in tries)  # noqa: PLR2004


@dataclass(slots=True)
class Verdict:
    """What was found; `problems` says in words what must not be."""

    offered: int = 0
    acknowledged: int = 0
    #: Status → how often it was the answer; one delivery may be refused more than once.
    answers: Counter[int | None] = field(default_factory=Counter)
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
    def refused(self) -> int:
        """Answers that ask for another try."""
        return self.answers[503]

    @property
    def broken(self) -> list[str]:
        """How the promise was not kept; empty if it was."""
        found = {"lost": self.lost, "changed": self.changed, "out of order": self.disordered}
        return [f"{len(ids)} {what}, first {ids[0]}" for what, ids in found.items() if ids]

    @property
    def problems(self) -> list[str]:
        """The same, and what else must not be."""
        slow = [f"worst answer {self.worst_s:.1f} s"] if self.worst_s >= WORST_S else []
        return [*self.broken, *slow, *self.others]


class Judge:
    """Takes what is on the log, record by record, those of one key in their order."""

    def __init__(self, offered: Collection[Offered]) -> None:
        self._posted = {each.id: each for each in offered}
        self._first_places: dict[str, int] = {}
        self._taken = 0
        self._verdict = Verdict()

    def take(self, value: bytes) -> None:
        """An event; all that are taken count as posted by us, or by nobody."""
        ident = json.loads(value)["id"]
        posted = self._posted.get(ident)
        if posted is None or (posted.payload is not None and posted.payload not in value):
            self._verdict.changed.append(ident)
        self._verdict.repeats += ident in self._first_places
        self._first_places.setdefault(ident, self._taken)
        self._taken += 1

    def take_reject(self, value: bytes) -> None:
        """What was set aside since its topic does not take it."""
        data = json.loads(value)["data"]
        ident = data["detail"].partition(" ")[0]
        beginning = base64.b64decode(data["body_base64"])
        posted = self._posted.get(ident)
        payload = None if posted is None else posted.payload
        if posted is None or (payload is not None and payload[:_KEPT_BYTES] not in beginning):
            self._verdict.changed.append(ident)
        self._verdict.set_aside.add(ident)

    def expects(self, ident: str) -> bool:
        """Whether that is the id of something that was posted."""
        return ident in self._posted

    def is_about(self, reject: bytes) -> bool:
        """Whether a reject is of something that was posted; others' may lie beside it."""
        return self.expects(json.loads(reject)["data"]["detail"].partition(" ")[0])

    def missing(self) -> set[str]:
        """Ids of what was acknowledged and has not been taken."""
        found = self._first_places.keys() | self._verdict.set_aside
        return {
            ident
            for ident, each in self._posted.items()
            if ident not in found and acknowledged(each.tries)
        }

    def verdict(self) -> Verdict:
        """To be asked once, when all has been taken."""
        verdict = self._verdict
        verdict.offered = len(self._posted)
        verdict.acknowledged = sum(acknowledged(each.tries) for each in self._posted.values())
        for each in self._posted.values():
            verdict.answers.update(each.tries)
        last_place: defaultdict[Hashable, int] = defaultdict(lambda: -1)
        # The events of a leg were posted one after the other, each once the last was acknowledged.
        for ident, each in self._posted.items():
            if ident not in self._first_places:
                if acknowledged(each.tries) and ident not in verdict.set_aside:
                    verdict.lost.append(ident)
            elif self._first_places[ident] < last_place[each.leg]:
                verdict.disordered.append(ident)
            else:
                last_place[each.leg] = self._first_places[ident]
        return verdict


def judge(
    offered: Collection[Offered], log: Iterable[bytes], rejects: Iterable[bytes] = ()
) -> Verdict:
    """``log``, ``rejects``: values, those of one key in their order."""
    found = Judge(offered)
    for value in log:
        found.take(value)
    for value in rejects:
        found.take_reject(value)
    return found.verdict()

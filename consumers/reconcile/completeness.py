"""How complete the stream is: of the calls that began in an hour, how many both sides have seen."""

import time
from collections.abc import Mapping
from typing import Any

from msgspec import Struct

from ingest.derived import derived_event
from schemas.event import Event, digest
from schemas.times import rfc3339

HOUR_MS = 3_600_000

#: Nobody talks longer than a month; sums of what is said to be longer would be no numbers.
_MAX_TALK_S = 31 * 86_400.0

#: From so many lost calls on, if they are more than so many of all that were recorded, whatever
#: told us of them counts as deaf, and the hour is read again.
_LOST_CALLS = 5
_LOST_RATIO = 0.05

#: Verdict → whether the call was pushed, recorded, and found on both sides.
_COUNTS: Mapping[str, tuple[int, int, int]] = {
    "matched": (1, 1, 1),
    "late": (1, 1, 1),
    "mismatch": (1, 1, 1),
    "ambiguous": (1, 1, 0),
    "push_missing": (0, 1, 0),
    "record_missing": (1, 0, 0),
}


class Share(Struct, gc=False, frozen=True, array_like=True):
    """What one call adds to its hour."""

    hour_ms: int
    pushed: int
    recorded: int
    both: int
    pushed_talk_ms: int
    recorded_talk_ms: int


def share_of(
    word: str, started_ms: int, pushed_talk_s: float | None, recorded_talk_s: float | None
) -> Share:
    """What a call with this verdict adds to the hour in which it began."""
    pushed, recorded, both = _COUNTS[word]
    return Share(
        started_ms // HOUR_MS * HOUR_MS,
        pushed,
        recorded,
        both,
        _talk_ms(pushed_talk_s) * pushed,
        _talk_ms(recorded_talk_s) * recorded,
    )


def _talk_ms(talk_s: float | None) -> int:
    if not talk_s or talk_s < 0:
        return 0
    return round(min(talk_s, _MAX_TALK_S) * 1000)


class Hour(Struct, kw_only=True, gc=False):
    """An hour of a connection. Whole numbers only: their sum does not depend on the order."""

    connection: str
    hour_ms: int
    pushed: int = 0
    recorded: int = 0
    both: int = 0
    pushed_talk_ms: int = 0
    recorded_talk_ms: int = 0
    #: How often it was measured, and what was said the last time.
    n: int = 0
    said: str = ""
    #: Lost calls of which no gap tells yet: how many, and from when to when they were.
    lost: int = 0
    lost_from_ms: int = 0
    lost_to_ms: int = 0
    #: Whether a gap was told of: calls that were not pushed, a list that was not read.
    gap_told: bool = False
    list_told: bool = False
    #: When it is measured next, by the log's clock.
    wake_ms: int | None = None

    def add(self, share: Share, times: int = 1) -> None:
        """``times``: -1 takes it out again."""
        self.pushed += times * share.pushed
        self.recorded += times * share.recorded
        self.both += times * share.both
        self.pushed_talk_ms += times * share.pushed_talk_ms
        self.recorded_talk_ms += times * share.recorded_talk_ms

    def lose(self, from_ms: int, to_ms: int) -> None:
        """A call that lasted from then to then was never pushed."""
        to_ms = max(from_ms, to_ms)
        if self.lost:
            from_ms = min(self.lost_from_ms, from_ms)
            to_ms = max(self.lost_to_ms, to_ms)
        self.lost += 1
        self.lost_from_ms, self.lost_to_ms = from_ms, to_ms

    @property
    def has_gap(self) -> bool:
        """Whether so many calls were lost that it is told of."""
        return self.lost >= _LOST_CALLS and self.lost > _LOST_RATIO * self.recorded


def completeness_event(hour: Hour, at_ms: int) -> Event | None:
    """``completeness.measured`` of an hour as it stands; None if that was said the last time.

    Counts up `n`. ``at_ms``: the log's clock at which it became due.
    """
    push = _ratio(hour.both, hour.recorded)
    record = _ratio(hour.both, hour.pushed)
    data: dict[str, Any] = {
        "hour": rfc3339(hour.hour_ms),
        "pushed": hour.pushed,
        "recorded": hour.recorded,
        "both": hour.both,
        "push": push,
        "record": record,
        "figure": min((each for each in (push, record) if each is not None), default=None),
        "pushed_talk_s": hour.pushed_talk_ms / 1000,
        "recorded_talk_s": hour.recorded_talk_ms / 1000,
    }
    said = digest(data)
    if said == hour.said:
        return None
    hour.said = said
    hour.n += 1
    name = time.strftime("%Y-%m-%dT%H", time.gmtime(hour.hour_ms // 1000))
    return derived_event(
        hour.connection,
        "completeness.measured",
        f"completeness:{hour.connection}:{name}:{hour.n}",
        subject=f"completeness/{name}",
        key=f"{hour.connection}/hour/{name}",
        at_ms=at_ms,
        data={**data, "n": hour.n},
    )


def _ratio(part: int, whole: int) -> float | None:
    return round(part / whole, 6) if whole else None

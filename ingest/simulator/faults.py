"""What goes wrong between a simulated provider and us, on demand.

A rate is a share of the occasions, 0 to 1; a switch is on or off. All of them can be changed while
the provider runs, and each counts how often it has struck.
"""

import tomllib
from collections import Counter
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from random import Random
from typing import Any, TypeAlias
from zlib import crc32

Rate: TypeAlias = float


class FaultsError(ValueError):
    """A file of faults that cannot be used; ``faults`` has a line for each reason."""

    def __init__(self, *faults: str) -> None:
        super().__init__("; ".join(faults))
        self.faults = faults


def _new_random() -> Random:
    return Random(0)  # noqa: S311 - weather, not a secret


@dataclass(slots=True, kw_only=True)
class Faults:
    """Everything that can be made to go wrong. As made, nothing does."""

    # Deliveries, to webhooks and sockets
    #: Never sent, and nobody is told.
    dropped: Rate = 0.0
    #: Sent once more, a moment later.
    repeated: Rate = 0.0
    #: Sent up to `delay_s` seconds of the provider's clock late.
    delayed: Rate = 0.0
    delay_s: float = 60.0
    #: Sent after the next one of the same subject.
    reordered: Rate = 0.0
    #: In addition, somebody who does not know the secret posts one, or it comes unsigned.
    forged: Rate = 0.0
    #: That a call has ended is never sent to anybody, nor what is told of it afterwards.
    endings_dropped: Rate = 0.0

    # What deliveries hold: shares of subjects (calls, texts, people), not of occasions
    #: The body is as fresh as the delivery, so it holds what happened until later.
    late_bodies: Rate = 0.0
    #: Ids are texts.
    text_ids: Rate = 0.0
    #: Keys are missing that only newer payloads have, or that are null.
    missing_keys: Rate = 0.0
    #: Who is not known by name is ``{}``.
    empty_objects: Rate = 0.0
    #: A call that was missed is told as hung up as well.
    missed_and_hangup: Rate = 0.0

    # Answers of the API
    #: The connection is reset as soon as it is there.
    refused: Rate = 0.0
    #: 429, every other time without saying when to come again.
    limited: Rate = 0.0
    #: 500, 502 or 503.
    broken: Rate = 0.0
    #: The answer takes `slow_s` seconds of ours longer.
    slow: Rate = 0.0
    slow_s: float = 5.0
    #: The answer ends in the middle, and so does the connection.
    cut: Rate = 0.0
    #: A page for people, from something in between, with status 200.
    html: Rate = 0.0
    #: No key is good any more: 401.
    key_revoked: bool = False
    #: What every key lacks: 403 where it is needed, and content left out of deliveries.
    missing_scopes: tuple[str, ...] = ()
    #: Keys are no admin's any more: 403 where one is needed, and others' private calls are hidden.
    not_admin: bool = False
    #: Partner access is off for the user of the key: 403.
    partner_off: bool = False
    #: Errors are told in another shape than usual.
    error_shapes: Rate = 0.0

    # Commands
    #: It is done, and the answer comes `answers_lost_s` seconds of ours later.
    answers_lost: Rate = 0.0
    #: It is not done, and the answer comes as late.
    undone: Rate = 0.0
    answers_lost_s: float = 60.0
    #: It is done, and answered with words that mean nothing.
    odd_texts: Rate = 0.0

    # Lists
    #: The list has grown since the page before: up to three items come again.
    page_changes: Rate = 0.0
    #: The page before comes again, with another cursor.
    page_repeats: Rate = 0.0
    #: Up to three items between two pages are in neither.
    page_skips: Rate = 0.0
    #: The cursor leads back to the page that it came with.
    cursor_loops: Rate = 0.0
    #: A call is listed only up to `records_late_s` seconds after its end.
    records_late: Rate = 0.0
    records_late_s: float = 240.0
    #: What a list says of its length is wrong.
    totals_lie: Rate = 0.0
    #: Nothing is said of a page but what is on it.
    pages_bare: Rate = 0.0
    #: Who asks for more than there may be on a page is not refused, and silently gets less.
    page_caps: bool = False
    #: No list can be had by when its items changed: 400.
    updated_refused: bool = False
    #: An agent is gone as soon as it was listed, and comes back `agents_vanish_s` of the
    #: provider's clock later.
    agents_vanish: Rate = 0.0
    agents_vanish_s: float = 1800.0

    # What records hold: shares of calls
    #: The record of a call changes once more, up to `records_change_s` after its end.
    records_change: Rate = 0.0
    records_change_s: float = 86_400.0
    #: A record's clock is that of the making of its row, at the end of the call.
    rows_at_end: Rate = 0.0

    # Sockets
    #: The handshake is answered with 503.
    sockets_refused: Rate = 0.0
    #: Accepted, and closed at once.
    sockets_closed: Rate = 0.0
    #: Broken off before a frame, which is lost.
    sockets_cut: Rate = 0.0
    #: In addition, a frame that is no signed event.
    frames_binary: Rate = 0.0
    frames_html: Rate = 0.0
    #: Signed, but JSON that is no event.
    frames_odd: Rate = 0.0

    #: How often each has struck.
    counts: Counter[str] = field(default_factory=Counter, compare=False)
    _random: Random = field(default_factory=_new_random, repr=False, compare=False)
    _seed: int = field(default=0, repr=False, compare=False)
    #: Name → occasions to let pass, occasions to strike.
    _forced: dict[str, list[int]] = field(default_factory=dict, repr=False, compare=False)

    @classmethod
    def read(cls, path: Path) -> "Faults":
        """Faults of a TOML file with these names. Raises FaultsError with everything wrong in it.

        >>> Faults.of({"dropped": 0.1, "key_revoked": True}).dropped
        0.1
        """
        try:
            values = tomllib.loads(path.read_text("utf-8"))
        except OSError as error:
            raise FaultsError(f"{path} cannot be read ({error.strerror})") from None
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise FaultsError(f"{path} is no TOML: {error}") from None
        return cls.of(values)

    @classmethod
    def of(cls, values: dict[str, Any]) -> "Faults":
        """Faults by their names. Raises FaultsError with everything that is wrong."""
        wrong = [text for name, value in values.items() if (text := _wrong(name, value))]
        if wrong:
            raise FaultsError(*wrong)
        lists = {name: tuple(v) for name, v in values.items() if isinstance(v, list)}
        return cls(**values | lists)

    def seed(self, seed: int) -> None:
        """Begin a sequence of chances that the seed decides."""
        self._seed = seed
        self._random.seed(seed)

    def has(self, name: str, subject_id: int) -> bool:
        """Whether a subject is among the share that has it: always the same for a seed."""
        share: float = getattr(self, name)
        return share > 0 and crc32(f"{self._seed} {name} {subject_id}".encode()) < share * 2**32

    def force(self, name: str, times: int = 1, *, after: int = 0) -> None:
        """Let a fault strike the next ``times`` occasions for certain, ``after`` so many without.

        Until then its rate does not count.
        """
        if name not in RATES:
            raise ValueError(f"{name} has no occasions")
        self._forced[name] = [after, times]

    def strikes(self, name: str) -> bool:
        """Whether it does, on this occasion."""
        if name in self._forced:
            struck = self._strikes_by_force(name)
        else:
            rate = getattr(self, name)
            struck = rate > 0 and self._random.random() < rate
        if struck:
            self.counts[name] += 1
        return struck

    def _strikes_by_force(self, name: str) -> bool:
        forced = self._forced[name]
        if forced[0] > 0:
            forced[0] -= 1
            return False
        forced[1] -= 1
        if forced[1] <= 0:
            del self._forced[name]
        return forced[1] >= 0

    def between(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)

    def up_to(self, most: int) -> int:
        return self._random.randint(1, most)


_FIELDS = {f.name: f for f in fields(Faults) if f.name != "counts" and not f.name.startswith("_")}
_SWITCHES = {name for name, f in _FIELDS.items() if f.type is bool}
_LISTS = {"missing_scopes"}
_SPANS = {name for name in _FIELDS if name.endswith("_s")}
#: Whether a subject has them is decided once.
ODDITIES = ("late_bodies", "text_ids", "missing_keys", "empty_objects", "missed_and_hangup")
#: The same of records.
RECORD_ODDITIES = ("records_change", "rows_at_end")
#: Those that have occasions.
RATES = frozenset(_FIELDS.keys() - _SWITCHES - _LISTS - _SPANS - {*ODDITIES, *RECORD_ODDITIES})


def _wrong(name: str, value: Any) -> str | None:
    if name not in _FIELDS:
        near = get_close_matches(name, _FIELDS, 1)
        mend = f"did you mean {near[0]}?" if near else f"known: {', '.join(_FIELDS)}"
        return f"{name}: there is no such fault: {mend}"
    if name in _SWITCHES:
        return None if isinstance(value, bool) else f"{name}: true or false, not {value!r}"
    if name in _LISTS:
        good = isinstance(value, list | tuple) and all(isinstance(text, str) for text in value)
        return None if good else f"{name}: a list of texts, not {value!r}"
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if name in _SPANS:
        good = number and value >= 0
        return None if good else f"{name}: seconds, 0 or more, not {value!r}"
    good = number and 0 <= value <= 1
    return None if good else f"{name}: a share between 0 and 1, not {value!r}"

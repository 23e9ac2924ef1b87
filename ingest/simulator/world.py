"""A company and the people around it: what happens on its phones, and the truth about it.

Pure: the same seed tells the same story. At the compressed tempo it is the same at whatever time
it starts; at a real one it depends on the hour of the day and the day of the week.
"""

from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from operator import attrgetter
from typing import TypeVar
from weakref import WeakSet

from ingest.simulator.company import Company, Number, make_company
from ingest.simulator.facts import (
    CallHappening,
    Centre,
    Change,
    ConsentHappening,
    ContactHappening,
    Department,
    Duty,
    DutyHappening,
    Happening,
    Leg,
    Member,
    Message,
    Office,
    Outsider,
    SettingHappening,
    TextHappening,
)
from ingest.simulator.story import COMPRESSED, Story, Tempo


def play(seed: int, start_ms: int) -> Iterator[Happening]:
    """Tell the compressed story without end, in the order of ``at_ms``, from ``start_ms`` on.

    Ids of calls, messages and new people grow with ``start_ms``: no two runs share one. Nothing
    is kept of what was told. Consents are left out: they are looked up, nobody is told of them.
    """
    company = make_company(COMPRESSED.members, COMPRESSED.outsiders)
    for happening in Story(company, COMPRESSED, seed, start_ms).tell():
        if not isinstance(happening, ConsentHappening):
            yield happening


@dataclass(frozen=True, slots=True)
class DutyState:
    """What a member is at, and since when; before the first change, since the story's start."""

    duty: Duty
    since_ms: int
    #: When they last came on duty; None while they are away.
    on_since_ms: int | None
    reason: str | None


@dataclass(frozen=True, slots=True)
class Consent:
    """What an outsider wants of the company's texts."""

    outsider: Outsider
    opted_out: bool
    since_ms: int


class Ear:
    """Somebody who hears what is told from now on, whoever has it told; and has it told."""

    def __init__(self, world: "World") -> None:
        self._world = world
        self._heard: deque[Happening] = deque()

    def hear(self, happening: Happening) -> None:
        self._heard.append(happening)

    def __iter__(self) -> "Iterator[Happening]":
        return self

    def __next__(self) -> Happening:
        if not self._heard:
            self._world.go_on()
        return self._heard.popleft()

    def until(self, to_ms: int) -> Iterator[Happening]:
        """All that happens before then and nothing else."""
        while (self._heard[0] if self._heard else self._world.next()).at_ms < to_ms:
            yield next(self)


class World:
    """One company whose story is told once, with everything that was told kept for questions.

    The truth reaches as far as the story was told: ask about a time only when a happening after
    it, or `until` it, was taken. Memory follows what was told: about a kilobyte a leg.
    """

    def __init__(self, seed: int, start_ms: int, tempo: Tempo = COMPRESSED) -> None:
        self.seed, self.start_ms, self.tempo = seed, start_ms, tempo
        self.company: Company = make_company(tempo.members, tempo.outsiders)
        #: By id, with everything that will have happened to them, `Leg.as_of` the end of time.
        self.legs: dict[int, Leg] = {}
        self.messages: dict[int, Message] = {}
        #: By subject, in their order.
        self.contact_changes: dict[int, list[ContactHappening]] = {}
        self.duty_changes: dict[int, list[DutyHappening]] = {}
        self.setting_changes: dict[int, list[SettingHappening]] = {}
        self.consent_changes: dict[int, list[ConsentHappening]] = {}
        self._by_start: list[Leg] = []
        self._rest = self._tell(Story(self.company, tempo, seed, start_ms))
        self._next: Happening | None = None
        self._ears: WeakSet[Ear] = WeakSet()

    @property
    def users(self) -> tuple[Member, ...]:
        return self.company.users

    @property
    def centres(self) -> tuple[Centre, ...]:
        return self.company.centres

    @property
    def offices(self) -> tuple[Office, ...]:
        return self.company.offices

    @property
    def departments(self) -> tuple[Department, ...]:
        return self.company.departments

    @property
    def numbers(self) -> tuple[Number, ...]:
        return self.company.numbers

    def happenings(self) -> Iterator[Happening]:
        """Go on with the story, without end, in the order of ``at_ms``.

        There is one story: who asks again goes on where the last one stopped. Who must not miss
        what others have told has an `ear`.
        """
        while True:
            yield self.go_on()

    def until(self, to_ms: int) -> Iterator[Happening]:
        """Go on with the story, to all that happens before then and nothing else."""
        while self.next().at_ms < to_ms:
            yield self.go_on()

    def advance(self, to_ms: int) -> None:
        """Let everything before then happen without being listened to, except by ears."""
        for _ in self.until(to_ms):
            pass

    def ear(self) -> Ear:
        """One that hears everything from here on, as several providers of one company must.

        It keeps what it has not been asked for yet, as long as there is somebody who has it.
        """
        ear = Ear(self)
        self._ears.add(ear)
        return ear

    def next(self) -> Happening:
        """What happens next; it has not been told yet."""
        if self._next is None:
            self._next = next(self._rest)
        return self._next

    def go_on(self) -> Happening:
        """Tell what happens next."""
        happening = self.next()
        self._next = None
        for ear in self._ears:
            ear.hear(happening)
        return happening

    @property
    def begun(self) -> Sequence[Leg]:
        """The legs that were told of, in the order of their starts, as `legs`."""
        return self._by_start

    def concluded(
        self, at_ms: int, *, after_ms: int | None = None, before_ms: int | None = None
    ) -> Iterator[Leg]:
        """The legs that were over at that time, as known then, the newest start first.

        Started at or after ``after_ms`` and before ``before_ms``. Looked up when taken, so a
        long list costs no more than what is read of it.
        """
        legs = self._by_start
        first = 0 if after_ms is None else bisect_left(legs, after_ms, key=_STARTED)
        last = len(legs) if before_ms is None else bisect_left(legs, before_ms, key=_STARTED)
        for nth in range(last - 1, first - 1, -1):
            leg = legs[nth]
            if leg.ended_ms is not None and leg.ended_ms <= at_ms:
                yield leg.as_of(at_ms)

    def contacts(self, at_ms: int) -> dict[int, Outsider]:
        """Everybody who was written down then, by id."""
        known = {outsider.id: outsider for outsider in self.company.outsiders if outsider.name}
        for ident, changes in self.contact_changes.items():
            change = _last(changes, at_ms)
            if change and change.change is not Change.DELETED:
                known[ident] = change.outsider
        return known

    def consents(self, at_ms: int) -> list[Consent]:
        """Of everybody who ever opted out until then, the present state; oldest first."""
        states = (_last(changes, at_ms) for changes in self.consent_changes.values())
        known = [Consent(s.outsider, s.opted_out, s.at_ms) for s in states if s]
        return sorted(known, key=lambda consent: (consent.since_ms, consent.outsider.id))

    def duty(self, member_id: int, at_ms: int) -> DutyState:
        changes = self.duty_changes.get(member_id, [])
        known = changes[: bisect_right(changes, at_ms, key=_AT)]
        if not known:
            return DutyState(Duty.FREE, self.start_ms, self.start_ms, None)
        state = known[-1]
        on_since_ms = self.start_ms
        for before, change in zip(reversed(known[:-1]), reversed(known[1:]), strict=True):
            if before.duty is Duty.AWAY:
                on_since_ms = change.at_ms
                break
        return DutyState(
            state.duty,
            state.at_ms,
            None if state.duty is Duty.AWAY else on_since_ms,
            state.reason,
        )

    def centres_of(self, member_id: int, at_ms: int) -> tuple[Centre, ...]:
        """The centres whose calls a member might take then."""
        centres = []
        for centre in self.company.centres_of.get(member_id, ()):
            changes = [
                change
                for change in self.setting_changes.get(centre.id, [])
                if change.member.id == member_id
            ]
            change = _last(changes, at_ms)
            if change is None or change.joined:
                centres.append(centre)
        return tuple(centres)

    def members_of(self, centre_id: int, at_ms: int) -> list[Member]:
        """Who might have taken a centre's calls then."""
        return [
            member
            for member in self.company.members
            if any(centre.id == centre_id for centre in self.centres_of(member.id, at_ms))
        ]

    def _tell(self, story: Story) -> Iterator[Happening]:
        for happening in story.tell():
            match happening:
                case CallHappening(leg=leg):
                    # The first that is told of a leg is told at its start.
                    if leg.id not in self.legs:
                        self.legs[leg.id] = leg
                        self._by_start.append(leg)
                case TextHappening(message=message):
                    self.messages[message.id] = message
                case ContactHappening(subject_id=ident):
                    self.contact_changes.setdefault(ident, []).append(happening)
                case DutyHappening(subject_id=ident):
                    self.duty_changes.setdefault(ident, []).append(happening)
                case SettingHappening(subject_id=ident):
                    self.setting_changes.setdefault(ident, []).append(happening)
                case ConsentHappening(subject_id=ident):
                    self.consent_changes.setdefault(ident, []).append(happening)
            yield happening


_STARTED: Callable[[Leg], int] = attrgetter("started_ms")
_AT: Callable[[Happening], int] = attrgetter("at_ms")
_Change = TypeVar("_Change", ContactHappening, SettingHappening, ConsentHappening)


def _last(changes: list[_Change], at_ms: int) -> _Change | None:
    nth = bisect_right(changes, at_ms, key=_AT)
    return changes[nth - 1] if nth else None

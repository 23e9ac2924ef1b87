"""A small company and the people around it: what happens on its phones, in no provider's words.

Pure: the same seed tells the same story, shifted to another start.

Time is compressed where the story is made: what takes a real company a minute takes two seconds
here. Talks last seconds, and half a dozen people make a lively picture. The clocks of the story
still agree with the wall clock of whoever plays it, which they would not if real durations were
played faster.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from enum import StrEnum
from heapq import heappop, heappush
from itertools import count
from random import Random
from typing import Any, TypeAlias

_ID = 5_000_000_000_000_000


@dataclass(frozen=True, slots=True)
class Member:
    """One of the company's people."""

    id: int
    name: str
    email: str
    number: str


@dataclass(frozen=True, slots=True)
class Centre:
    """A number behind which several members take calls."""

    id: int
    name: str
    number: str


@dataclass(frozen=True, slots=True)
class Outsider:
    """Somebody outside; without a name the company knows only the number."""

    id: int
    number: str
    first_name: str = ""
    last_name: str = ""
    email: str = ""
    firm: str = ""
    job: str = ""

    @property
    def name(self) -> str:
        return f"{self.first_name} {self.last_name}".strip()


class CallStep(StrEnum):
    PLACED = "placed"
    RANG = "rang"
    #: In line for a member.
    WAITED = "waited"
    ANSWERED = "answered"
    HELD = "held"
    RESUMED = "resumed"
    #: Nobody answered, a machine offers to take a message.
    DIVERTED = "diverted"
    ENDED = "ended"
    MESSAGE_READY = "message_ready"
    RECORDING_READY = "recording_ready"


class TextStep(StrEnum):
    WRITTEN = "written"
    CARRIED = "carried"
    ARRIVED = "arrived"
    REFUSED = "refused"


class Duty(StrEnum):
    FREE = "free"
    TALKING = "talking"
    AWAY = "away"


@dataclass(frozen=True, slots=True, kw_only=True)
class Leg:
    """One party's part of a call, as far as it has come."""

    id: int
    outbound: bool
    outsider: Outsider
    host: Member | Centre
    started_ms: int
    rang_ms: int | None = None
    answered_ms: int | None = None
    ended_ms: int | None = None
    held_ms: int = 0
    recorded: bool = False
    #: Whether it came to the machine, and how long a message was left there.
    diverted: bool = False
    message_ms: int = 0
    #: What a member's leg came through.
    centre: Centre | None = None
    centre_leg_id: int | None = None
    #: Who took a centre's leg.
    member_leg_id: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Happening:
    """Happenings of one subject (leg, message, person, centre) come in their order."""

    at_ms: int
    subject_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CallHappening(_Happening):
    step: CallStep
    leg: Leg


@dataclass(frozen=True, slots=True, kw_only=True)
class TextHappening(_Happening):
    step: TextStep
    outbound: bool
    outsider: Outsider
    member: Member
    text: str
    written_ms: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ContactHappening(_Happening):
    """The company has written somebody down, or knows more about them."""

    outsider: Outsider
    new: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class DutyHappening(_Happening):
    """A member takes the centre's calls, or does not."""

    member: Member
    centre: Centre
    duty: Duty
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingHappening(_Happening):
    """Somebody has put a member in the centre, or taken one out."""

    centre: Centre
    member: Member
    joined: bool
    by: Member


Happening: TypeAlias = (
    CallHappening | TextHappening | ContactHappening | DutyHappening | SettingHappening
)


def _member(n: int, name: str) -> Member:
    email = f"{name.lower().replace(' ', '.')}@example.com"
    return Member(_ID + 200 + n, name, email, f"+1415555{100 + n:04}")


MEMBERS = tuple(
    _member(n, name)
    for n, name in enumerate(
        ("Ada Marsh", "Ben Okoye", "Cleo Tanaka", "Dev Rao", "Elin Berg", "Femi Cole", "Gus Ortiz"),
        1,
    )
)
#: Keeps the settings and takes no calls.
ADMIN = _member(99, "Pat Admin")
CENTRE = Centre(_ID + 301, "Support", "+14155550150")
OUTSIDERS = (
    Outsider(_ID + 901, "+12125550111", "Maya", "Vidal", "maya@vidal.example", "Vidal Prints"),
    Outsider(_ID + 902, "+13035550122", "Joe", "Lund", "", "Lund & Sons"),
    Outsider(_ID + 903, "+12065550133", "Kim", "Adeyemi", "kim@harbor.example", "Harbor Foods"),
    Outsider(_ID + 904, "+16175550144", "Lena", "Fox"),
    Outsider(_ID + 905, "+13125550155"),
    Outsider(_ID + 906, "+15035550166"),
    Outsider(_ID + 907, "+17135550177", "Mo", "Haddad", "mo@haddad.example", "Haddad Motors"),
    Outsider(_ID + 908, "+14045550188"),
)
_TEXTS = (
    "Is my order ready?",
    "Can we move it to Thursday?",
    "Thanks, that works.",
    "Please call me back when you have a minute.",
    "The parts arrived this morning.",
    "On my way.",
)


def play(seed: int, start_ms: int) -> Iterator[Happening]:
    """Tell the story without end, in the order of ``at_ms``, from ``start_ms`` on.

    Ids of calls, messages and new people grow with ``start_ms``: no two runs share one.
    """
    story = _Story(seed, start_ms)
    due: list[tuple[int, int, Happening]] = []
    told = count()  # happenings of one moment keep the order of their plan
    opens_ms = start_ms
    for nth in count():
        for happening in story.conversation(opens_ms):
            heappush(due, (happening.at_ms, next(told), happening))
        # Several at once, so that nobody waits for the story to begin; then about one a second.
        opens_ms += 150 if nth < _QUICK_OPENINGS else story.between(450, 1550)
        while due and due[0][0] < opens_ms:
            yield heappop(due)[2]


_QUICK_OPENINGS = 4
#: Shorter talks are not interrupted.
_LONG_MS = 2000


class _Story:
    """Plans of whole conversations.

    A plan begins at once, and its member has time for no other before it is over.
    """

    def __init__(self, seed: int, start_ms: int) -> None:
        self._random = Random(seed)  # noqa: S311 - a story, not a secret
        # Nobody makes a thousand ids in a millisecond, so a later run begins above this one's.
        self._ids = count(start_ms * 1000)
        self._busy_until_ms = dict.fromkeys(MEMBERS, start_ms - 1)
        self._plans: dict[Callable[[int, Member], Iterator[Happening]], float] = {
            self._inbound: 3,
            self._through_centre: 3,
            self._outbound: 3,
            self._texts: 3,
            self._new_contact: 0.7,
            self._break: 0.7,
            self._settings: 0.3,
        }

    def between(self, low: int, high: int) -> int:
        return self._random.randint(low, high)

    def _chance(self, share: float) -> bool:
        return self._random.random() < share

    def conversation(self, at_ms: int) -> list[Happening]:
        """Plan the next one, whole."""
        free = [member for member, until_ms in self._busy_until_ms.items() if until_ms < at_ms]
        if not free:
            return list(self._waits_in_vain(at_ms))
        member = self._random.choice(free)
        (plan,) = self._random.choices([*self._plans], [*self._plans.values()])
        happenings = list(plan(at_ms, member))
        self._busy_until_ms[member] = max(happening.at_ms for happening in happenings)
        return happenings

    def _inbound(self, at_ms: int, member: Member) -> Iterator[Happening]:
        """Ring a member: answered, missed, or a message is left."""
        call = _Call(self._new_leg(at_ms, member))
        yield call.now(CallStep.RANG, at_ms, rang_ms=at_ms)
        at_ms += self.between(500, 1800)
        if self._chance(0.65):
            yield from self._talk(call, at_ms)
        elif self._chance(0.4):
            yield call.now(CallStep.ENDED, at_ms, ended_ms=at_ms)
        else:
            yield call.now(CallStep.DIVERTED, at_ms, diverted=True)
            message_ms = self.between(500, 2500)
            at_ms += 300 + message_ms
            yield call.now(CallStep.ENDED, at_ms, ended_ms=at_ms)
            at_ms += self.between(400, 1500)
            yield call.now(CallStep.MESSAGE_READY, at_ms, message_ms=message_ms)

    def _through_centre(self, at_ms: int, member: Member) -> Iterator[Happening]:
        """Ring the centre, which passes the caller to a member: two legs."""
        centre = _Call(self._new_leg(at_ms, CENTRE))
        yield centre.now(CallStep.WAITED, at_ms)
        at_ms += self.between(300, 1000)
        call = _Call(
            replace(
                self._new_leg(at_ms, member),
                outsider=centre.leg.outsider,
                centre=CENTRE,
                centre_leg_id=centre.leg.id,
            )
        )
        yield call.now(CallStep.RANG, at_ms, rang_ms=at_ms)
        centre.leg = replace(centre.leg, rang_ms=at_ms)
        at_ms += self.between(400, 1200)
        yield centre.now(CallStep.ANSWERED, at_ms, answered_ms=at_ms, member_leg_id=call.leg.id)
        yield _duty(at_ms, member, Duty.TALKING)
        for happening in self._talk(call, at_ms):
            yield happening
            if happening.step is CallStep.ENDED:
                yield centre.now(
                    CallStep.ENDED,
                    happening.at_ms,
                    ended_ms=happening.at_ms,
                    held_ms=happening.leg.held_ms,
                )
                yield _duty(happening.at_ms, member, Duty.FREE)

    def _waits_in_vain(self, at_ms: int) -> Iterator[Happening]:
        """Ring the centre while nobody is free, and give up."""
        call = _Call(self._new_leg(at_ms, CENTRE))
        yield call.now(CallStep.WAITED, at_ms)
        at_ms += self.between(1000, 3000)
        yield call.now(CallStep.ENDED, at_ms, ended_ms=at_ms)

    def _outbound(self, at_ms: int, member: Member) -> Iterator[Happening]:
        """Call somebody, who answers or does not."""
        call = _Call(replace(self._new_leg(at_ms, member), outbound=True))
        yield call.now(CallStep.PLACED, at_ms)
        at_ms += self.between(150, 400)
        yield call.now(CallStep.RANG, at_ms, rang_ms=at_ms)
        at_ms += self.between(500, 2500)
        if self._chance(0.7):
            yield from self._talk(call, at_ms)
        else:
            yield call.now(CallStep.ENDED, at_ms, ended_ms=at_ms)

    def _talk(self, call: "_Call", at_ms: int) -> Iterator[CallHappening]:
        """Tell from the answer to the end, and to the recording if there is one."""
        # Most talks are short and a few are very long, as in life; none outlasts a demo.
        talk_ms = round(min(500 + self._random.lognormvariate(7.5, 0.9), 20_000))
        yield call.now(CallStep.ANSWERED, at_ms, answered_ms=at_ms)
        if talk_ms > _LONG_MS and self._chance(0.5):
            before_ms, held_ms = talk_ms // 3, self.between(600, 2500)
            yield call.now(CallStep.HELD, at_ms + before_ms)
            at_ms += held_ms
            yield call.now(CallStep.RESUMED, at_ms + before_ms, held_ms=held_ms)
        at_ms += talk_ms
        recorded = self._chance(0.4)
        yield call.now(CallStep.ENDED, at_ms, ended_ms=at_ms, recorded=recorded)
        if recorded:
            yield call.now(CallStep.RECORDING_READY, at_ms + self.between(700, 2500))

    def _texts(self, at_ms: int, member: Member) -> Iterator[Happening]:
        """Write to each other, in turns."""
        outsider = self._random.choice(OUTSIDERS)
        outbound = self._random.choice((True, False))
        for _ in range(self.between(1, 3)):
            text = TextHappening(
                at_ms=at_ms,
                subject_id=next(self._ids),
                step=TextStep.WRITTEN,
                outbound=outbound,
                outsider=outsider,
                member=member,
                text=self._random.choice(_TEXTS),
                written_ms=at_ms,
            )
            yield text
            if outbound:
                at_ms += self.between(150, 500)
                yield replace(text, at_ms=at_ms, step=TextStep.CARRIED)
                at_ms += self.between(200, 900)
                if self._chance(0.1):
                    yield replace(text, at_ms=at_ms, step=TextStep.REFUSED)
                    return
                yield replace(text, at_ms=at_ms, step=TextStep.ARRIVED)
            at_ms += self.between(800, 2500)
            outbound = not outbound

    def _new_contact(self, at_ms: int, _member: Member) -> Iterator[Happening]:
        """Write down somebody new, and a little later what they have become."""
        like = self._random.choice([outsider for outsider in OUTSIDERS if outsider.name])
        new = replace(
            like, id=next(self._ids), number=f"+1720555{self.between(100, 199):04}", job="Buyer"
        )
        yield ContactHappening(at_ms=at_ms, subject_id=new.id, outsider=new, new=True)
        at_ms += self.between(1500, 4000)
        promoted = replace(new, job="Head of Buying")
        yield ContactHappening(at_ms=at_ms, subject_id=new.id, outsider=promoted, new=False)

    def _break(self, at_ms: int, member: Member) -> Iterator[Happening]:
        reason = self._random.choice(("Lunch", "Training", None))
        yield _duty(at_ms, member, Duty.AWAY, reason)
        yield _duty(at_ms + self.between(2000, 6000), member, Duty.FREE)

    def _settings(self, at_ms: int, member: Member) -> Iterator[Happening]:
        """Take a member out of the centre, and put them back."""
        out = SettingHappening(
            at_ms=at_ms, subject_id=CENTRE.id, centre=CENTRE, member=member, joined=False, by=ADMIN
        )
        yield out
        yield replace(out, at_ms=at_ms + self.between(2000, 5000), joined=True)

    def _new_leg(self, at_ms: int, host: Member | Centre) -> Leg:
        return Leg(
            id=next(self._ids),
            outbound=False,
            outsider=self._random.choice(OUTSIDERS),
            host=host,
            started_ms=at_ms,
        )


@dataclass(slots=True)
class _Call:
    """A leg while it is being told."""

    leg: Leg

    def now(self, step: CallStep, at_ms: int, **news: Any) -> CallHappening:
        """Take a step; ``news``: what it changes in the leg."""
        self.leg = replace(self.leg, **news)
        return CallHappening(at_ms=at_ms, subject_id=self.leg.id, step=step, leg=self.leg)


def _duty(at_ms: int, member: Member, duty: Duty, reason: str | None = None) -> DutyHappening:
    return DutyHappening(
        at_ms=at_ms, subject_id=member.id, member=member, centre=CENTRE, duty=duty, reason=reason
    )

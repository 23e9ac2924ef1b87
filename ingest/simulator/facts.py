"""What the simulated company is made of, and what happens in it; in no provider's words.

A leg or a text is told step by step, but it is one object that holds everything that will have
happened to it, with the time of each fact. What could be known earlier is ``as_of`` that time.
"""

from dataclasses import dataclass, replace
from enum import StrEnum
from random import Random
from typing import Any, TypeAlias


@dataclass(frozen=True, slots=True)
class Office:
    """A place of the company, with the number that the public knows."""

    id: int
    name: str
    number: str

    @property
    def office_id(self) -> int:
        return self.id


@dataclass(frozen=True, slots=True)
class Department:
    """A number that rings at some members, without a line to wait in."""

    id: int
    name: str
    number: str
    office_id: int


@dataclass(frozen=True, slots=True)
class Centre:
    """A number behind which callers wait in line until one of several members takes the call."""

    id: int
    name: str
    number: str
    office_id: int


@dataclass(frozen=True, slots=True)
class Member:
    """One of the company's people."""

    id: int
    name: str
    email: str
    number: str
    office_id: int
    #: Keeps the settings and takes no calls.
    admin: bool = False


Host: TypeAlias = Member | Centre | Department | Office


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
    #: The only member who has this contact; without one the whole company has it.
    owner_id: int | None = None

    @property
    def name(self) -> str:
        return f"{self.first_name} {self.last_name}".strip()


class CallStep(StrEnum):
    PLACED = "placed"
    #: A machine answers for an office, and asks where to.
    GREETED = "greeted"
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
    #: Somebody's or something's ears have put the message in words.
    MESSAGE_WORDED = "message_worded"
    RECORDING_READY = "recording_ready"
    TRANSCRIPT_READY = "transcript_ready"
    #: The four parts of a recap.
    SUMMARY_READY = "summary_ready"
    OUTCOME_READY = "outcome_ready"
    PURPOSES_READY = "purposes_ready"
    TASKS_READY = "tasks_ready"
    #: The member has said what kind of call it was.
    FILED = "filed"
    #: The caller has said how it was.
    RATED = "rated"


class TextStep(StrEnum):
    WRITTEN = "written"
    CARRIED = "carried"
    ARRIVED = "arrived"
    #: The network would not take it.
    REFUSED = "refused"
    #: The network took it and could not bring it.
    LOST = "lost"


class Change(StrEnum):
    CREATED = "created"
    UPDATED = "updated"
    DELETED = "deleted"


class Duty(StrEnum):
    FREE = "free"
    TALKING = "talking"
    #: After a talk, before the next one.
    FINISHING = "finishing"
    AWAY = "away"


@dataclass(slots=True, kw_only=True)
class Leg:
    """One party's part of a conversation. Nobody changes it once it is told."""

    id: int
    #: Of the conversation's first leg: the same for all that belong together.
    conversation_id: int
    outbound: bool
    outsider: Outsider
    host: Host
    started_ms: int
    #: What the program that placed the call wrote on it.
    tag: str | None = None
    #: What the call came through.
    through: Host | None = None
    through_leg_id: int | None = None
    #: The member's leg whose talk goes on in this one.
    handed_by_leg_id: int | None = None
    rang_ms: int | None = None
    answered_ms: int | None = None
    #: Who took a group's call; known with the answer.
    taken_by_leg_id: int | None = None
    #: From, to.
    holds: tuple[tuple[int, int], ...] = ()
    ended_ms: int | None = None
    #: The caller was not thrown out but went on to another leg.
    handed_on: bool = False
    #: The caller is not let in.
    barred: bool = False
    recorded: bool = False
    #: By a rule of the company, not by the member.
    recorded_by_rule: bool = False
    #: It came to the machine.
    diverted_ms: int | None = None
    #: How long a message was left there, of which one hears when it is ready.
    message_ms: int = 0
    message_ready_ms: int | None = None
    message_worded_ms: int | None = None
    recording_ready_ms: int | None = None
    transcript_ready_ms: int | None = None
    #: All four parts of it are there.
    recap_ready_ms: int | None = None
    filed_ms: int | None = None
    filed_as: tuple[str, ...] = ()
    rated_ms: int | None = None
    #: 1 to 5.
    rating: int | None = None

    @property
    def held_ms(self) -> int:
        """Between answer and end, in holds that are over."""
        return sum(until_ms - from_ms for from_ms, until_ms in self.holds)

    def as_of(self, at_ms: int) -> "Leg":
        """Return it as it could be known at that time."""
        unknown: dict[str, Any] = {}
        for clock, others in _KNOWN_WITH.items():
            when_ms = getattr(self, clock)
            if when_ms is not None and when_ms > at_ms:
                unknown[clock] = None
                unknown.update(others)
        if self.holds and self.holds[-1][1] > at_ms:
            unknown["holds"] = tuple(hold for hold in self.holds if hold[1] <= at_ms)
        return replace(self, **unknown) if unknown else self


#: The facts of a leg that have no time of their own, under that with which they become known,
#: and their values until then.
_KNOWN_WITH: dict[str, dict[str, Any]] = {
    "rang_ms": {},
    "answered_ms": {"taken_by_leg_id": None},
    "ended_ms": {
        "handed_on": False,
        "barred": False,
        "recorded": False,
        "recorded_by_rule": False,
    },
    "diverted_ms": {},
    "message_ready_ms": {"message_ms": 0},
    "message_worded_ms": {},
    "recording_ready_ms": {},
    "transcript_ready_ms": {},
    "recap_ready_ms": {},
    "filed_ms": {"filed_as": ()},
    "rated_ms": {"rating": None},
}


@dataclass(slots=True, kw_only=True)
class Message:
    """A text. Nobody changes it once it is told."""

    id: int
    outbound: bool
    outsider: Outsider
    #: Whose number it is.
    host: Member | Centre
    #: Who wrote it, if it comes from us.
    member: Member | None
    text: str
    #: With a picture, which has no words.
    picture: bool = False
    written_ms: int
    carried_ms: int | None = None
    arrived_ms: int | None = None
    refused_ms: int | None = None
    lost_ms: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class _Happening:
    """Happenings of one subject (leg, text, person, centre) come in their order."""

    at_ms: int
    subject_id: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CallHappening(_Happening):
    """A step of a leg; ``leg`` already knows how it will end."""

    step: CallStep
    leg: Leg

    @property
    def then(self) -> Leg:
        """The leg as it could be known when this happened."""
        return self.leg.as_of(self.at_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextHappening(_Happening):
    step: TextStep
    message: Message


@dataclass(frozen=True, slots=True, kw_only=True)
class ContactHappening(_Happening):
    """The company has written somebody down, knows more about them, or has struck them out."""

    outsider: Outsider
    change: Change


@dataclass(frozen=True, slots=True, kw_only=True)
class DutyHappening(_Happening):
    """A member takes calls of these centres, or does not."""

    member: Member
    duty: Duty
    centres: tuple[Centre, ...]
    reason: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SettingHappening(_Happening):
    """Somebody has put a member in the centre, or taken one out."""

    centre: Centre
    member: Member
    joined: bool
    by: Member


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsentHappening(_Happening):
    """An outsider wants no more texts from the company, or wants them again."""

    outsider: Outsider
    opted_out: bool


Happening: TypeAlias = (
    CallHappening
    | TextHappening
    | ContactHappening
    | DutyHappening
    | SettingHappening
    | ConsentHappening
)


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a transcript."""

    at_ms: int
    speaker: Member | Outsider
    words: str


@dataclass(frozen=True, slots=True)
class Recap:
    summary: str
    outcome: str
    purposes: tuple[str, ...]
    tasks: tuple[str, ...]


_CALLER_WORDS = (
    "Hello, I am calling about my order.",
    "It should have come on Monday.",
    "Could you look that up for me?",
    "The number is on the delivery note.",
    "That would suit me well.",
    "Thank you, goodbye.",
)
_MEMBER_WORDS = (
    "Good morning, how can I help?",
    "Let me have a look.",
    "I see it here, it left our store yesterday.",
    "Shall I ask the driver to call you?",
    "I have made a note of that.",
    "You are welcome.",
)
_PURPOSES = ("Order status", "Delivery date", "Invoice", "Complaint", "New order")
_OUTCOMES = ("Solved", "Call back", "Passed on")
_TASKS = ("Call back on Thursday", "Send the invoice again", "Ask the driver")
_MESSAGES = (
    "Hello, it is about my order. Please call me back.",
    "I could not reach you, I will try again tomorrow.",
    "The parts have not come. Please ring me.",
)


def transcript_of(leg: Leg) -> tuple[Line, ...]:
    """Say who said what; nothing if nobody talked or nobody wrote it down."""
    if leg.transcript_ready_ms is None or leg.answered_ms is None or leg.ended_ms is None:
        return ()
    if not isinstance(leg.host, Member):
        return ()
    random = Random(leg.id)  # noqa: S311 - a story, not a secret
    lines = random.randint(3, 12)
    span_ms = (leg.ended_ms - leg.answered_ms) / lines
    return tuple(
        Line(
            round(leg.answered_ms + nth * span_ms),
            leg.outsider if nth % 2 else leg.host,
            random.choice(_CALLER_WORDS if nth % 2 else _MEMBER_WORDS),
        )
        for nth in range(lines)
    )


def recap_of(leg: Leg) -> Recap:
    purpose, outcome = _PURPOSES[leg.id % 5], _OUTCOMES[leg.id % 3]
    return Recap(
        summary=f"The call was about: {purpose.lower()}. It ended with: {outcome.lower()}.",
        outcome=outcome,
        purposes=(purpose,),
        tasks=_TASKS[: leg.id % 4],
    )


def message_words_of(leg: Leg) -> str:
    return _MESSAGES[leg.id % len(_MESSAGES)]

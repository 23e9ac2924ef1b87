"""What happens in the company, planned a conversation at a time. The same seed, the same story."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from heapq import heappop, heappush
from itertools import accumulate, count
from math import log
from random import Random

from ingest.simulator.company import NEW_AREA, Company, fictional_number
from ingest.simulator.facts import (
    CallHappening,
    CallStep,
    Centre,
    Change,
    ConsentHappening,
    ContactHappening,
    Duty,
    DutyHappening,
    Happening,
    Host,
    Leg,
    Member,
    Message,
    Outsider,
    SettingHappening,
    TextHappening,
    TextStep,
)

_HOUR_MS = 3_600_000
_DAY_MS = 24 * _HOUR_MS
_WEEK_DAYS = 7
#: Shares of the day's conversations by the hour of the company's clock: night, morning, noon.
_WORKING_DAY = (
    *(1, 1, 1, 1, 1, 2, 6, 20, 60, 100, 110, 100),
    *(70, 85, 105, 110, 95, 60, 30, 15, 8, 4, 2, 1),
)
_WEEKEND_SHARE = 0.3


@dataclass(frozen=True, slots=True, kw_only=True)
class Tempo:
    """How much happens, and how long it takes."""

    #: On average over a week. A call is a conversation; it has one to five legs.
    calls_a_day: float
    members: int
    outsiders: int
    #: How long talks and waits last, as a share of what they last in life.
    pace: float = 1.0
    #: The same of breaks and of what becomes of contacts and settings.
    slow_pace: float = 1.0
    #: In life's seconds. Half of all talks are over in less than a minute and a half.
    longest_talk_s: float = 2 * 3600
    #: Between two texts of a thread, in life's seconds.
    longest_pause_s: float = 3600
    #: By chance and by the hour of day and day of week, or evenly, several at once at first.
    curved: bool = True
    #: What the company's clock is ahead of UTC.
    clock_ahead_h: int = -8


#: What takes a real company a minute takes two seconds: half a dozen people make a lively picture,
#: and the clocks of the story agree with the wall clock of whoever plays it, which they would not
#: if real durations were played faster.
COMPRESSED = Tempo(
    calls_a_day=50_000,
    members=7,
    outsiders=8,
    pace=1 / 30,
    slow_pace=1 / 600,
    longest_talk_s=600,
    longest_pause_s=75,
    curved=False,
)


def real_tempo(calls_a_day: float) -> Tempo:
    """As in life, with as many people as that many calls need."""
    members = max(7, round(calls_a_day / 60))
    return Tempo(
        calls_a_day=calls_a_day,
        members=members,
        outsiders=round(min(max(8, calls_a_day), 7200)),
    )


_QUICK_OPENINGS = 4
_SHORT_TALK_S = 60
_TEXTS = (
    "Is my order ready?",
    "Can we move it to Thursday?",
    "Thanks, that works.",
    "Please call me back when you have a minute.",
    "The parts arrived this morning.",
    "On my way.",
)
_STOP, _START = "STOP", "START"
_FILES_AS = ("Order~Status", "Order~New", "Delivery~Late", "Invoice~Question", "Other~Wrong number")
#: The clock of the leg that a step sets.
_CLOCKS = {
    CallStep.RANG: "rang_ms",
    CallStep.ANSWERED: "answered_ms",
    CallStep.DIVERTED: "diverted_ms",
    CallStep.ENDED: "ended_ms",
    CallStep.MESSAGE_READY: "message_ready_ms",
    CallStep.MESSAGE_WORDED: "message_worded_ms",
    CallStep.RECORDING_READY: "recording_ready_ms",
    CallStep.TRANSCRIPT_READY: "transcript_ready_ms",
    CallStep.TASKS_READY: "recap_ready_ms",
    CallStep.FILED: "filed_ms",
    CallStep.RATED: "rated_ms",
}


class Story:
    """Plans of whole conversations.

    A plan begins at once. A member has time for no other call before it is over.
    """

    def __init__(self, company: Company, tempo: Tempo, seed: int, start_ms: int) -> None:
        self._company, self._tempo, self._start_ms = company, tempo, start_ms
        self._random = Random(seed)  # noqa: S311 - a story, not a secret
        # Nobody makes a thousand ids in a millisecond, so a later run begins above this one's.
        self._ids = count(start_ms * 1000)
        self._free = list(company.members)
        #: Until when the others are busy.
        self._busy: list[tuple[int, int, Member]] = []
        self._centres_of = dict(company.centres_of)
        #: Until when the story of an outsider's consent is planned.
        self._consents_until_ms: dict[int, int] = {}
        self._opted_out: set[int] = set()
        self._told: list[Happening] = []
        calls: dict[Callable[[int], None], float] = {
            self._inbound: 3,
            self._to_centre: 3,
            self._to_office: 1.5,
            self._outbound: 3,
        }
        others: dict[Callable[[int], None], float] = {
            self._texts: 2.6,
            self._new_contact: 0.5,
            self._break: 0.7,
            self._settings: 0.3,
            self._consent: 0.25,
        }
        self._plans = [*calls, *others]
        self._cum_weights = [*accumulate((*calls.values(), *others.values()))]
        calls_share = sum(calls.values()) / self._cum_weights[-1]
        self._gap_ms = _DAY_MS * calls_share / tempo.calls_a_day

    def tell(self) -> Iterator[Happening]:
        """Tell it without end, in the order of ``at_ms``."""
        due: list[tuple[int, int, Happening]] = []
        told = count()  # happenings of one moment keep the order of their plan
        opens_ms = self._start_ms
        for nth in count():
            for happening in self._conversation(opens_ms):
                heappush(due, (happening.at_ms, next(told), happening))
            opens_ms = self._next_opening(opens_ms, nth)
            while due and due[0][0] < opens_ms:
                yield heappop(due)[2]

    def _next_opening(self, at_ms: int, nth: int) -> int:
        """Say when the next conversation begins."""
        if not self._tempo.curved:
            # Several at once, so that nobody waits for the story to begin; then evenly.
            if nth < _QUICK_OPENINGS:
                return at_ms + 150
            return at_ms + 1 + int(self._gap_ms * (0.45 + 1.1 * self._random.random()))
        # Within an hour of the clock the rate is the same; at its end, chance begins anew.
        while True:
            rate = self._rate(at_ms) / self._gap_ms
            gap_ms = -log(1 - self._random.random()) / rate
            hour_ends_ms = at_ms - at_ms % _HOUR_MS + _HOUR_MS
            if at_ms + gap_ms < hour_ends_ms:
                return at_ms + int(gap_ms)
            at_ms = hour_ends_ms

    def _rate(self, at_ms: int) -> float:
        """Say how much more than on average happens at this hour and day."""
        hours = at_ms // _HOUR_MS + self._tempo.clock_ahead_h
        share = _WORKING_DAY[hours % 24] * 24 / sum(_WORKING_DAY)
        # 1970 began on a Thursday.
        weekend = (hours // 24 + 3) % _WEEK_DAYS >= 5  # noqa: PLR2004
        return share * (_WEEKEND_SHARE if weekend else 1) * _WEEK_DAYS / (5 + 2 * _WEEKEND_SHARE)

    def _conversation(self, at_ms: int) -> list[Happening]:
        """Plan the next one, whole."""
        while self._busy and self._busy[0][0] < at_ms:
            self._free.append(heappop(self._busy)[2])
        self._told = []
        (plan,) = self._random.choices(self._plans, cum_weights=self._cum_weights)
        plan(at_ms)
        return self._told

    # What plans are made of.

    def _chance(self, share: float) -> bool:
        return self._random.random() < share

    def _span_ms(self, low_s: float, high_s: float) -> int:
        """Take any time between these, at the tempo's pace."""
        span_s = low_s + (high_s - low_s) * self._random.random()
        return 1 + int(span_s * 1000 * self._tempo.pace)

    def _slow_span_ms(self, low_s: float, high_s: float) -> int:
        span_s = low_s + (high_s - low_s) * self._random.random()
        return 1 + int(span_s * 1000 * self._tempo.slow_pace)

    def _long_tail_ms(self, median_s: float, spread: float, low_s: float, high_s: float) -> int:
        """Take a time that is mostly short and sometimes very long, as in life."""
        span_s = median_s * self._random.lognormvariate(0, spread)
        return 1 + int(min(max(span_s, low_s), high_s) * 1000 * self._tempo.pace)

    def _take(self, centre: Centre | None = None) -> Member | None:
        """Find a free member, of the centre if one is named; they are busy until released."""
        free = self._free
        for _ in range(8):
            if not free:
                return None
            nth = int(self._random.random() * len(free))
            if centre is None or centre in self._centres_of[free[nth].id]:
                free[nth], free[-1] = free[-1], free[nth]
                return free.pop()
        return None

    def _release(self, member: Member, at_ms: int) -> None:
        heappush(self._busy, (at_ms, member.id, member))

    def _leg(self, host: Host, started_ms: int, outsider: Outsider, like: Leg | None = None) -> Leg:
        ident = next(self._ids)
        return Leg(
            id=ident,
            conversation_id=like.conversation_id if like else ident,
            outbound=like.outbound if like else False,
            outsider=outsider,
            host=host,
            started_ms=started_ms,
        )

    def _outsider(self) -> Outsider:
        return self._random.choice(self._company.outsiders)

    def _step(self, leg: Leg, step: CallStep, at_ms: int) -> None:
        clock = _CLOCKS.get(step)
        if clock:
            setattr(leg, clock, at_ms)
        self._told.append(CallHappening(at_ms=at_ms, subject_id=leg.id, step=step, leg=leg))

    def _later(self, leg: Leg, *steps: tuple[int, CallStep]) -> None:
        """Take steps after the end, each in a moment of its own."""
        before_ms = leg.ended_ms or 0
        for at_ms, step in sorted(steps):
            before_ms = max(at_ms, before_ms + 1)
            self._step(leg, step, before_ms)

    def _duty(self, at_ms: int, member: Member, duty: Duty, reason: str | None = None) -> None:
        centres = () if duty is Duty.AWAY else self._centres_of[member.id]
        self._told.append(
            DutyHappening(
                at_ms=at_ms,
                subject_id=member.id,
                member=member,
                duty=duty,
                centres=centres,
                reason=reason,
            )
        )

    # Calls.

    def _inbound(self, at_ms: int) -> None:
        """Ring a member: answered, missed, or a message is left."""
        member = self._take()
        if member is None:
            return self._waits_in_vain(at_ms)
        return self._to_member(at_ms, self._leg(member, at_ms, self._outsider()))

    def _to_member(self, at_ms: int, leg: Leg) -> None:
        member = leg.host
        assert isinstance(member, Member)
        if leg.through is None and self._chance(0.04):
            leg.barred = True
            self._step(leg, CallStep.ENDED, at_ms)
            return self._release(member, at_ms)
        self._step(leg, CallStep.RANG, at_ms)
        if self._chance(0.65):
            at_ms += self._long_tail_ms(9, 0.5, 2, 28)
            self._talk(leg, at_ms)
            return None
        at_ms += self._span_ms(20, 30)
        if self._chance(0.4):
            self._step(leg, CallStep.ENDED, at_ms)
        else:
            at_ms = self._machine(leg, at_ms)
        return self._release(member, at_ms)

    def _machine(self, leg: Leg, at_ms: int) -> int:
        """Offer to take a message; return when the caller is gone."""
        self._step(leg, CallStep.DIVERTED, at_ms)
        at_ms += self._span_ms(5, 15)
        message_ms = self._long_tail_ms(20, 0.6, 4, 180) if self._chance(0.65) else 0
        at_ms += message_ms
        self._step(leg, CallStep.ENDED, at_ms)
        if message_ms:
            leg.message_ms = message_ms
            ready_ms = at_ms + self._span_ms(5, 40)
            steps = [(ready_ms, CallStep.MESSAGE_READY)]
            if self._chance(0.8):
                worded_ms = ready_ms + self._span_ms(10, 60)
                steps.append((worded_ms, CallStep.MESSAGE_WORDED))
            self._later(leg, *steps)
        return at_ms

    def _to_centre(self, at_ms: int) -> None:
        """Ring a centre, which passes the caller to a member: two legs."""
        member = self._take()
        if member is None:
            return self._waits_in_vain(at_ms)
        centres = self._centres_of[member.id]
        if not centres:
            return self._to_member(at_ms, self._leg(member, at_ms, self._outsider()))
        centre = self._random.choice(centres)
        return self._through(self._leg(centre, at_ms, self._outsider()), member)

    def _to_office(self, at_ms: int) -> None:
        """Ring an office, where a machine asks where to go."""
        member = self._take()
        if member is None:
            return self._waits_in_vain(at_ms)
        company = self._company
        office = next(office for office in company.offices if office.id == member.office_id)
        first = self._leg(office, at_ms, self._outsider())
        self._step(first, CallStep.GREETED, at_ms)
        at_ms += self._span_ms(5, 25)
        centres = self._centres_of[member.id]
        if self._chance(0.1):
            self._step(first, CallStep.ENDED, at_ms)
            return self._release(member, at_ms)
        first.handed_on = True
        self._step(first, CallStep.ENDED, at_ms)
        if centres and self._chance(0.6):
            group: Host = self._random.choice(centres)
        elif self._chance(0.5):
            group = company.departments[company.offices.index(office)]
        else:
            leg = self._leg(member, at_ms, first.outsider, first)
            leg.through, leg.through_leg_id = office, first.id
            return self._to_member(at_ms, leg)
        return self._through(self._leg(group, at_ms, first.outsider, first), member)

    def _through(self, group: Leg, member: Member) -> None:
        """Pass a group's caller to a member, or to another if the first does not answer."""
        at_ms = group.started_ms
        centre = group.host if isinstance(group.host, Centre) else None
        if centre:
            self._step(group, CallStep.WAITED, at_ms)
            at_ms += self._long_tail_ms(12, 0.9, 2, 600)
            if self._chance(0.07):
                self._step(group, CallStep.ENDED, at_ms)
                return self._release(member, at_ms)
            group.rang_ms = at_ms
        else:
            self._step(group, CallStep.RANG, at_ms)
            at_ms += self._span_ms(0.5, 1)
        leg = self._passed_on(group, member, at_ms)
        if self._chance(0.15):
            at_ms += self._span_ms(15, 25)
            self._step(leg, CallStep.ENDED, at_ms)
            self._release(member, at_ms)
            other = self._take(centre)
            if other is None:
                self._machine(group, at_ms)
                return None
            at_ms += self._span_ms(0.5, 2)
            leg = self._passed_on(group, other, at_ms)
        at_ms += self._long_tail_ms(6, 0.5, 1, 25)
        group.taken_by_leg_id = leg.id
        self._step(group, CallStep.ANSWERED, at_ms)
        group.ended_ms, group.holds = self._talk(leg, at_ms)
        self._step(group, CallStep.ENDED, group.ended_ms)
        if centre and self._chance(0.15):
            group.rating = self._random.randint(1, 5)
            self._later(group, (group.ended_ms + self._span_ms(10, 90), CallStep.RATED))
        return None

    def _passed_on(self, group: Leg, member: Member, at_ms: int) -> Leg:
        leg = self._leg(member, at_ms, group.outsider, group)
        leg.through, leg.through_leg_id = group.host, group.id
        self._step(leg, CallStep.RANG, at_ms)
        return leg

    def _waits_in_vain(self, at_ms: int) -> None:
        """Ring a centre while nobody is free, and give up or leave a message."""
        leg = self._leg(self._random.choice(self._company.centres), at_ms, self._outsider())
        self._step(leg, CallStep.WAITED, at_ms)
        at_ms += self._long_tail_ms(40, 0.7, 10, 300)
        if self._chance(0.8):
            self._step(leg, CallStep.ENDED, at_ms)
        else:
            self._machine(leg, at_ms)

    def _outbound(self, at_ms: int) -> None:
        """Call somebody, who answers or does not."""
        member = self._take()
        if member is None:
            return self._waits_in_vain(at_ms)
        leg = self._leg(member, at_ms, self._outsider())
        leg.outbound = True
        if self._chance(0.15):
            leg.tag = f'{{"crm_id": "{leg.id % 10_000}"}}'
        self._step(leg, CallStep.PLACED, at_ms)
        at_ms += self._span_ms(1, 5)
        self._step(leg, CallStep.RANG, at_ms)
        if self._chance(0.7):
            at_ms += self._long_tail_ms(11, 0.5, 2, 40)
            self._talk(leg, at_ms)
            return None
        at_ms += self._span_ms(15, 60)
        self._step(leg, CallStep.ENDED, at_ms)
        return self._release(member, at_ms)

    def _talk(
        self, leg: Leg, at_ms: int, *, may_hand_on: bool = True
    ) -> tuple[int, tuple[tuple[int, int], ...]]:
        """Tell from the answer to the end and to what comes of it; return the end and the holds.

        A member may hand the caller on to another: then it is the end of the other's talk.
        """
        member = leg.host
        assert isinstance(member, Member)
        tempo = self._tempo
        centre = leg.through if isinstance(leg.through, Centre) else None
        self._step(leg, CallStep.ANSWERED, at_ms)
        if centre:
            self._duty(at_ms, member, Duty.TALKING)
        talk_ms = self._long_tail_ms(80, 1.0, 10, tempo.longest_talk_s)
        holds = []
        if talk_ms > _SHORT_TALK_S * 1000 * tempo.pace and self._chance(0.5):
            parts = 2 if self._chance(0.75) else 3
            for _ in range(parts - 1):
                at_ms += talk_ms // parts
                self._step(leg, CallStep.HELD, at_ms)
                hold_ms = self._long_tail_ms(30, 0.6, 10, 300)
                holds.append((at_ms, at_ms + hold_ms))
                at_ms += hold_ms
                self._step(leg, CallStep.RESUMED, at_ms)
            at_ms += talk_ms // parts
        else:
            at_ms += talk_ms
        leg.holds = tuple(holds)
        other = self._take(centre) if may_hand_on and self._chance(0.1) else None
        leg.handed_on = other is not None
        leg.recorded = self._chance(0.4)
        leg.recorded_by_rule = leg.recorded and self._chance(0.4)
        self._step(leg, CallStep.ENDED, at_ms)
        self._afterwards(leg, member, at_ms, centre)
        if other is None:
            return at_ms, leg.holds
        handed = self._leg(other, at_ms, leg.outsider, leg)
        handed.through, handed.through_leg_id = leg.through, leg.through_leg_id
        handed.handed_by_leg_id = leg.id
        self._step(handed, CallStep.RANG, at_ms)
        at_ms += self._long_tail_ms(6, 0.5, 1, 25)
        if self._chance(0.15):
            self._step(handed, CallStep.ENDED, at_ms)
            self._release(other, at_ms)
            return at_ms, leg.holds
        ended_ms, more_holds = self._talk(handed, at_ms, may_hand_on=False)
        return ended_ms, leg.holds + more_holds

    def _afterwards(self, leg: Leg, member: Member, at_ms: int, centre: Centre | None) -> None:
        """Tell what comes of a talk that ended then."""
        steps = []
        if leg.recorded:
            steps.append((at_ms + self._long_tail_ms(45, 0.6, 15, 600), CallStep.RECORDING_READY))
        if self._chance(0.35):
            ready_ms = at_ms + self._span_ms(50, 110)
            steps.append((ready_ms, CallStep.TRANSCRIPT_READY))
            if self._chance(0.6):
                for step in _RECAP_STEPS:
                    ready_ms += self._span_ms(1, 20)
                    steps.append((ready_ms, step))
        if centre:
            finished_ms = at_ms + self._long_tail_ms(15, 0.7, 4, 300)
            if self._chance(0.5):
                leg.filed_as = (self._random.choice(_FILES_AS),)
                steps.append((finished_ms - 1, CallStep.FILED))
            self._duty(at_ms, member, Duty.FINISHING)
            self._duty(finished_ms, member, Duty.FREE)
            at_ms = finished_ms
        self._later(leg, *steps)
        self._release(member, at_ms)

    # Everything else.

    def _texts(self, at_ms: int) -> None:
        """Write to each other, in turns."""
        outsider = self._outsider()
        outbound = outsider.id not in self._opted_out and self._chance(0.5)
        member = self._random.choice(self._company.members)
        host: Member | Centre = member
        centres = self._centres_of[member.id]
        if centres and self._chance(0.2):
            host = self._random.choice(centres)
        for _ in range(1 + min(int(self._random.expovariate(0.6)), 20)):
            sent = self._text(at_ms, outsider, host, member if outbound else None)
            at_ms = sent.arrived_ms or at_ms
            if sent.refused_ms or sent.lost_ms:
                return
            at_ms += self._long_tail_ms(50, 0.9, 10, self._tempo.longest_pause_s)
            outbound = not outbound and outsider.id not in self._opted_out

    def _text(
        self,
        at_ms: int,
        outsider: Outsider,
        host: Member | Centre,
        writer: Member | None,
        text: str | None = None,
    ) -> Message:
        message = Message(
            id=next(self._ids),
            outbound=writer is not None,
            outsider=outsider,
            host=host,
            member=writer,
            text=text or self._random.choice(_TEXTS),
            picture=text is None and self._chance(0.06),
            written_ms=at_ms,
        )
        steps = [(TextStep.WRITTEN, at_ms)]
        if writer:
            message.carried_ms = at_ms = at_ms + self._span_ms(1, 15)
            steps.append((TextStep.CARRIED, at_ms))
            at_ms += self._long_tail_ms(12, 0.8, 1, self._tempo.longest_pause_s)
            if self._chance(0.07):
                message.refused_ms = at_ms
                steps.append((TextStep.REFUSED, at_ms))
            elif self._chance(0.05):
                message.lost_ms = at_ms
                steps.append((TextStep.LOST, at_ms))
            else:
                message.arrived_ms = at_ms
                steps.append((TextStep.ARRIVED, at_ms))
        self._told += (
            TextHappening(at_ms=when_ms, subject_id=message.id, step=step, message=message)
            for step, when_ms in steps
        )
        return message

    def _new_contact(self, at_ms: int) -> None:
        """Write down somebody new, later what they have become, and perhaps strike them out."""
        like = self._random.choice([o for o in self._company.outsiders[:8] if o.name])
        new = replace(
            like,
            id=next(self._ids),
            number=fictional_number(NEW_AREA, self._random.randrange(100)),
            job="Buyer",
            owner_id=self._random.choice(self._company.members).id if self._chance(0.2) else None,
        )
        told = [(at_ms, Change.CREATED, new)]
        for job in ("Head of Buying", "Partner")[: self._random.randint(1, 2)]:
            at_ms += self._slow_span_ms(900, 2400)
            new = replace(new, job=job)
            told.append((at_ms, Change.UPDATED, new))
        if self._chance(0.3):
            at_ms += self._slow_span_ms(900, 7200)
            told.append((at_ms, Change.DELETED, new))
        self._told += (
            ContactHappening(at_ms=when_ms, subject_id=new.id, outsider=outsider, change=change)
            for when_ms, change, outsider in told
        )

    def _break(self, at_ms: int) -> None:
        member = self._take()
        if member is None:
            return
        back_ms = at_ms + self._slow_span_ms(600, 3600)
        self._duty(at_ms, member, Duty.AWAY, self._random.choice(("Lunch", "Training", None)))
        self._duty(back_ms, member, Duty.FREE)
        self._release(member, back_ms)

    def _settings(self, at_ms: int) -> None:
        """Take a member out of a centre, and put them back."""
        member = self._take()
        if member is None:
            return
        back_ms = at_ms + self._slow_span_ms(600, 3600)
        self._release(member, back_ms)
        centres = self._centres_of[member.id]
        if not centres:
            return
        out = SettingHappening(
            at_ms=at_ms,
            subject_id=centres[0].id,
            centre=centres[0],
            member=member,
            joined=False,
            by=self._company.admin,
        )
        self._told += out, replace(out, at_ms=back_ms, joined=True)

    def _consent(self, at_ms: int) -> None:
        """Want no more texts from the company; mostly for good."""
        outsider = self._outsider()
        if self._consents_until_ms.get(outsider.id, 0) >= at_ms:
            return
        word = _START if outsider.id in self._opted_out else _STOP
        self._text(at_ms, outsider, self._random.choice(self._company.members), None, word)
        at_ms += self._span_ms(0.2, 2)
        self._told.append(
            ConsentHappening(
                at_ms=at_ms,
                subject_id=outsider.id,
                outsider=outsider,
                opted_out=word == _STOP,
            )
        )
        self._consents_until_ms[outsider.id] = at_ms
        if word == _STOP:
            self._opted_out.add(outsider.id)
        else:
            self._opted_out.remove(outsider.id)


_RECAP_STEPS = (
    CallStep.SUMMARY_READY,
    CallStep.OUTCOME_READY,
    CallStep.PURPOSES_READY,
    CallStep.TASKS_READY,
)

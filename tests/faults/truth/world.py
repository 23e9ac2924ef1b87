"""A simulated company's week as two providers tell it: Dialpad pushes and lists, Dialgood lists.

Everything that goes wrong between them and us goes wrong here, by chance that a seed decides; and
here it is noted what has reached us, and when. Nothing of that is for the code under test.
"""

import asyncio
import base64
import hashlib
import hmac
import random
from bisect import bisect_left, insort
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from heapq import heappop, heappush
from itertools import count

import orjson

from ingest.api import ApiError
from ingest.delivery import AgentRecords, Records
from ingest.providers.dialgood import record_events as dialgood
from ingest.providers.dialgood.assumptions import Assumptions
from ingest.providers.dialpad import record_events as dialpad
from ingest.reading import Reading
from ingest.simulator.company import Company, make_company
from ingest.simulator.dialgood import Agents, Row, rows_of
from ingest.simulator.dialpad import payload, rest_call
from ingest.simulator.facts import CallHappening, Centre, Leg
from ingest.simulator.faults import Faults
from ingest.simulator.story import Story, real_tempo
from schemas.event import Event
from tests.kit import SECRET

SECOND_MS, MINUTE_MS, HOUR_MS, DAY_MS = 1000, 60_000, 3_600_000, 86_400_000

#: What Dialgood's clock is ahead of Dialpad's, and of ours.
CLOCK_OFF_MS = 2_000

#: Legs of a conversation, as the story has it.
_LEGS = 1.56

#: Behind the end of the week until the last call has ended, and all that comes of it was told.
AFTER_MS = 6 * HOUR_MS

#: Dialpad's states that tell how a leg has ended.
ENDINGS = frozenset({"hangup", "missed", "blocked"})

_DIALPAD_PAGE, _DIALGOOD_PAGE = 50, 100

#: What was begun earlier is hardly ever listed again.
_AT_HAND_MS = 32 * HOUR_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class Weather:
    """What goes wrong; shares of occasions, and spans."""

    dropped: float = 0.02
    repeated: float = 0.03
    #: Pushes that come later than those that happened later.
    shuffled: float = 0.10
    shuffled_s: float = 120.0
    much_later: float = 0.001
    much_later_s: float = 7200.0
    #: How long the socket is down, once in an hour.
    cut_s: tuple[float, float] = (1.0, 30.0)
    outage_s: float = 7200.0
    #: How long nobody can read either list, once.
    lists_away_s: float = 5400.0
    never_made: float = 0.01
    wrong: float = 0.005
    #: Shares of all calls that come from a few numbers, or go to them.
    heavy: Sequence[float] = (0.10, 0.05, 0.03, 0.02)
    #: Shares of records, and how much later than their calls' end they are listed at most.
    listed: Sequence[tuple[float, float]] = ((0.95, 60.0), (0.04, 3600.0), (0.01, 86_400.0))


@dataclass(slots=True)
class Entry:
    """A provider's record of a call."""

    #: From when on it is listed with the end of its call; None: it was never made.
    listed_ms: int | None
    #: How much too long it says that the call was.
    wrong_ms: int
    #: When we were given it so for the first time.
    served_ms: int | None = None


@dataclass(slots=True)
class Call:
    """A leg, and what became of it between its provider and us."""

    leg: Leg
    record: Entry
    #: Dialgood's, of what one of its agents has taken.
    row: Row | None = None
    row_entry: Entry | None = None
    #: When we got the first push of it, the first that knew its end, the first that was its end.
    pushed_ms: int | None = None
    knowing_ms: int | None = None
    ending_ms: int | None = None
    #: Of what is on the lists, the last that was read: which version, and what it came to.
    listed: tuple[int, Event] | None = None
    row_listed: tuple[int, Event] | None = None

    @property
    def ended_ms(self) -> int:
        assert self.leg.ended_ms is not None
        return self.leg.ended_ms

    @property
    def is_known(self) -> bool:
        """Whether anything of it reached us from its own provider."""
        return self.pushed_ms is not None or self.record.served_ms is not None


@dataclass(order=True, slots=True)
class Push:
    at_ms: int
    nth: int
    call: Call = field(compare=False)
    state: str = field(compare=False)
    knows_end: bool = field(compare=False)
    body: bytes = field(compare=False)

    def has_come(self) -> None:
        """Note that it reached us."""
        call, at_ms = self.call, self.at_ms
        call.pushed_ms = at_ms if call.pushed_ms is None else call.pushed_ms
        if self.knows_end and call.knowing_ms is None:
            call.knowing_ms = at_ms
        if self.state in ENDINGS and call.ending_ms is None:
            call.ending_ms = at_ms


class World:
    """The company, what happens there in so many days, and the two lists of it."""

    def __init__(self, seed: int, start_ms: int, days: float, calls: int, weather: Weather) -> None:
        """``calls``: legs, about."""
        self.start_ms, self.end_ms = start_ms, start_ms + round(days * DAY_MS)
        self.weather = weather
        self._chance = random.Random(f"{seed} weather")
        tempo = real_tempo(calls / _LEGS / days)
        self.company = _with_heavy(make_company(tempo.members, tempo.outsiders), weather.heavy)
        self._story = Story(self.company, tempo, seed, start_ms)
        self._agents = Agents(self.company, web_agents=0)
        #: By the leg's id; in the order of their starts.
        self.calls: dict[int, Call] = {}
        self.by_start: list[Call] = []
        #: Agent → what it has taken, by the time of its record.
        self.rows: dict[str, list[Call]] = {agent.id: [] for agent in self._agents.all}
        self.pushes = 0
        from_ms = self._busy_ms(random.Random(f"{seed} lists"))
        #: From when to when nobody can read a list.
        self.lists_away = from_ms, from_ms + round(weather.lists_away_s * 1000)

    @property
    def agents(self) -> Agents:
        return self._agents

    def arrivals(self) -> Iterator[Push]:
        """Every push that comes as far as us, in the order in which they come."""
        weather, chance, numbers = self.weather, self._chance, count()
        due: list[Push] = []
        for happening, call in self._happenings():
            while due and due[0].at_ms <= happening.at_ms:
                yield heappop(due)
            self.pushes += 1
            copies = (chance.random() >= weather.dropped) + (chance.random() < weather.repeated)
            if not copies:
                continue
            said = payload(happening)
            body = _signed(orjson.dumps(said))
            for _ in range(copies):
                at_ms = happening.at_ms + 200 + round(self._delay_s() * 1000)
                knows_end = said["date_ended"] is not None
                heappush(due, Push(at_ms, next(numbers), call, said["state"], knows_end, body))
        while due:
            yield heappop(due)

    def _delay_s(self) -> float:
        chance, weather = self._chance, self.weather
        which = chance.random()
        if which < weather.much_later:
            return chance.uniform(0, weather.much_later_s)
        if which < weather.much_later + weather.shuffled:
            return chance.uniform(0, weather.shuffled_s)
        return chance.uniform(0, 0.3)

    def _happenings(self) -> Iterator[tuple[CallHappening, Call]]:
        """Those of conversations that begin in these days, to their end."""
        for happening in self._story.tell():
            if happening.at_ms >= self.end_ms + AFTER_MS:
                return
            if not isinstance(happening, CallHappening):
                continue
            leg = happening.leg
            call = self.calls.get(leg.id)
            if call is None:
                if leg.started_ms >= self.end_ms and leg.conversation_id not in self.calls:
                    continue
                call = self._begin(leg)
            yield happening, call

    def _begin(self, leg: Leg) -> Call:
        call = self.calls[leg.id] = Call(leg, self._entry(leg))
        self.by_start.append(call)
        for row in rows_of(leg, self._agents, _NO_FAULTS, CLOCK_OFF_MS, 1.0):
            call.row_entry = entry = self._entry(leg)
            if entry.wrong_ms:
                begun, (at_ms, word, seconds) = row.states
                row = replace(row, states=(begun, (at_ms, word, seconds + entry.wrong_ms // 1000)))  # noqa: PLW2901
            call.row = row
            insort(self.rows[row.agent_id], call, key=_created)
        return call

    def _entry(self, leg: Leg) -> Entry:
        chance, weather = self._chance, self.weather
        assert leg.ended_ms is not None
        if chance.random() < weather.never_made:
            return Entry(None, 0)
        shares, spans = zip(*weather.listed, strict=True)
        (most_s,) = chance.choices(spans, shares)
        listed_ms = leg.ended_ms + 500 + round(chance.uniform(0, most_s) * 1000)
        wrong_s = 0.0
        if chance.random() < weather.wrong:
            # Beyond any tolerance, which is a twentieth of the longer one.
            wrong_s = chance.uniform(30, 600) + (leg.ended_ms - leg.started_ms) / 10_000
        return Entry(listed_ms, round(wrong_s) * 1000)

    def interruptions(self) -> list[tuple[int, int]]:
        """When there is no socket: once in each hour for some seconds, and once for long."""
        chance = random.Random(self._chance.random())
        found = []
        for hour_ms in range(self.start_ms, self.end_ms, HOUR_MS):
            from_ms = hour_ms + chance.randrange(HOUR_MS - MINUTE_MS)
            found.append((from_ms, from_ms + round(chance.uniform(*self.weather.cut_s) * 1000)))
        from_ms = self._busy_ms(chance)
        outage = from_ms, from_ms + round(self.weather.outage_s * 1000)
        return sorted([outage, *(cut for cut in found if not _touch(cut, outage))])

    def _busy_ms(self, chance: random.Random) -> int:
        """A time at which many are on the phone; by UTC the company's day begins at three."""
        days = max(1, (self.end_ms - self.start_ms) // DAY_MS)
        day_ms = self.start_ms + chance.randrange(min(days, 5)) * DAY_MS
        return day_ms + round(chance.uniform(14, 20) * HOUR_MS)


_NO_FAULTS = Faults()


def _created(call: Call) -> int:
    assert call.row is not None
    return call.row.created_ms


def _touch(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return one[0] <= other[1] + MINUTE_MS and other[0] <= one[1] + MINUTE_MS


def _with_heavy(company: Company, shares: Sequence[float]) -> Company:
    """A few of those who are on the phone with the company are it all the time."""
    outsiders = company.outsiders
    rest = 1 - sum(shares)
    heavy = [
        outsider
        for outsider, share in zip(outsiders, shares, strict=False)
        for _ in range(round(len(outsiders) * share / rest))
    ]
    return replace(company, outsiders=(*outsiders, *heavy))


_HEADER = base64.urlsafe_b64encode(b'{"typ":"JWT","alg":"HS256"}').rstrip(b"=")


def _signed(body: bytes) -> bytes:
    signed = _HEADER + b"." + base64.urlsafe_b64encode(body).rstrip(b"=")
    seal = hmac.digest(SECRET.encode(), signed, hashlib.sha256)
    return signed + b"." + base64.urlsafe_b64encode(seal).rstrip(b"=")


def _packed(value: object) -> bytes:
    """As JSON that is kept for long: what it was written to holds several times as much."""
    return bytes(memoryview(orjson.dumps(value)))


# The lists


async def _request(world: World, clock: Callable[[], int], takes_s: float) -> int:
    """When it is answered, milliseconds since 1970. Raises ApiError."""
    await asyncio.sleep(takes_s)
    now_ms = clock()
    if world.lists_away[0] <= now_ms < world.lists_away[1]:
        raise ApiError("unavailable")
    return now_ms


@dataclass(slots=True)
class Asked:
    """A window that was read to its end; milliseconds since 1970."""

    from_ms: int
    to_ms: int
    begun_ms: int
    ended_ms: int


class DialpadList(Records):
    """Concluded calls, the latest start first; each as it stands when it is asked for."""

    def __init__(self, world: World, now_ms: Callable[[], int], requests_per_s: float) -> None:
        self._world = world
        self._now_ms = now_ms
        self._request_s = 1 / requests_per_s
        self.asked: list[Asked] = []
        self._let_go = 0

    @asynccontextmanager
    async def open(self) -> AsyncIterator[Records]:
        yield self

    async def calls(self, from_ms: int, to_ms: int, via: str) -> AsyncIterator[Sequence[Event]]:
        calls, begun_ms = self._world.by_start, self._now_ms()
        first, at = (bisect_left(calls, ms, key=_started) for ms in (from_ms, to_ms))
        while True:
            now_ms = await _request(self._world, self._now_ms, self._request_s)
            page: list[Event] = []
            while at > first and len(page) < _DIALPAD_PAGE:
                at -= 1
                listed_ms = calls[at].record.listed_ms
                if listed_ms is not None and listed_ms <= now_ms:
                    page.append(self._read(calls[at], now_ms, via))
            if page:
                yield page
            if at <= first:
                break
        self.asked.append(Asked(from_ms, to_ms, begun_ms, self._now_ms()))
        while calls and calls[self._let_go].leg.started_ms < begun_ms - _AT_HAND_MS:
            calls[self._let_go].listed = None
            self._let_go += 1

    def _read(self, call: Call, now_ms: int, via: str) -> Event:
        if call.record.served_ms is None:
            call.record.served_ms = now_ms
        leg = call.leg
        changes = (
            leg.message_ready_ms,
            leg.message_worded_ms,
            leg.recording_ready_ms,
            leg.rated_ms,
        )
        version = sum(1 for ms in changes if ms is not None and ms <= now_ms)
        if call.listed is None or call.listed[0] != version:
            item = rest_call(leg.as_of(now_ms))
            for name in ("duration", "total_duration"):
                item[name] += call.record.wrong_ms
            reading = Reading("dialpad", "acme", "US", via, now_ms)
            (event,) = reading.events([_packed(item)], dialpad.call_recorded)
            call.listed = version, event
        event = call.listed[1]
        event.recorded_ms = now_ms
        return event

    def also(self, what: str, call_ids: Sequence[str], via: str) -> AsyncIterator[Sequence[Event]]:
        raise NotImplementedError


class DialgoodLists(AgentRecords):
    """Agents, and the call logs of each, the latest first; a call that runs is there, too."""

    def __init__(self, world: World, now_ms: Callable[[], int], requests_per_s: float) -> None:
        self._world = world
        self._now_ms = now_ms
        self._request_s = 1 / requests_per_s
        self._words = dialgood.CallWords.of(Assumptions())

    @asynccontextmanager
    async def open(self) -> AsyncIterator[AgentRecords]:
        yield self

    async def agents(self, via: str) -> AsyncIterator[Sequence[Event]]:
        await _request(self._world, self._now_ms, self._request_s)
        items = [
            orjson.dumps(
                {
                    "agentId": agent.id,
                    "agentName": agent.name,
                    "userId": agent.user_id,
                    "settings": {"language": "en"},
                    "phoneNumbers": list(agent.numbers),
                    "metadata": {},
                    "owner": True,
                }
            )
            for agent in self._world.agents.all
        ]
        yield self._reading(via).events(items, dialgood.agent_listed)

    async def calls_of(
        self, agent_id: str, from_ms: int, to_ms: int, via: str
    ) -> AsyncIterator[Sequence[Event]]:
        calls = self._world.rows[agent_id]
        first, at = (bisect_left(calls, ms, key=_created) for ms in (from_ms, to_ms + 1))
        while True:
            now_ms = await _request(self._world, self._now_ms, self._request_s)
            page: list[Event] = []
            while at > first and len(page) < _DIALGOOD_PAGE:
                at -= 1
                event = self._read(calls[at], now_ms, via)
                if event is not None:
                    page.append(event)
            if page:
                yield page
            if at <= first:
                return

    def _read(self, call: Call, now_ms: int, via: str) -> Event | None:
        row, entry = call.row, call.row_entry
        assert row is not None
        assert entry is not None
        # Only what is late is not there before it is over.
        if entry.listed_ms is None:
            return None
        is_late = entry.listed_ms > call.ended_ms + MINUTE_MS + SECOND_MS
        over = now_ms >= entry.listed_ms
        if not over and (is_late or now_ms < row.shown_ms):
            return None
        if over and entry.served_ms is None:
            entry.served_ms = now_ms
        version = int(over)
        if call.row_listed is None or call.row_listed[0] != version:
            record = row.record(call.ended_ms if over else row.shown_ms)
            if not over and row.shown_ms >= call.ended_ms:
                return None
            read = partial(dialgood.call_recorded, agent_id=row.agent_id, words=self._words)
            (event,) = self._reading(via).events([_packed(record)], read)
            call.row_listed = version, event
        event = call.row_listed[1]
        event.recorded_ms = now_ms
        return event

    def versions_of(self, agent_id: str, via: str) -> AsyncIterator[Sequence[Event]]:
        raise NotImplementedError

    def calls(self, from_ms: int, to_ms: int, via: str) -> AsyncIterator[Sequence[Event]]:
        raise NotImplementedError

    def also(self, what: str, call_ids: Sequence[str], via: str) -> AsyncIterator[Sequence[Event]]:
        raise NotImplementedError

    def _reading(self, via: str) -> Reading:
        return Reading("dialgood", "voice", "US", via, self._now_ms())


def _started(call: Call) -> int:
    return call.leg.started_ms


def centre_of(call: Call) -> Centre | None:
    """Whose number one of Dialgood's agents answers."""
    return call.leg.host if isinstance(call.leg.host, Centre) else None

"""Whose turn it is among the agents of a connection. No I/O, and no clock.

Each agent has a `Plan` of its own, and one window of one agent is read at a time. Turns go round:

    longest     every second one: the agent whose near pass has been due for longest
    busy        one in six: the due one of which most new records are to be expected
    sweep       one in six: the agent whose deep sweep has been due for longest
    gap         one in six: an agent that has not read a gap back yet

What nobody is due for goes to the next kind. So a near pass that is due waits for two turns of
each other agent at most, a sweep or a gap for six, however many agents there are and whatever they
need; and while all can be read every ``every_s``, all are. Then the near passes of the agents
spread over ``every_s`` by themselves, and their sweeps over ``sweep_every_s``.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from consumers.poll.windows import Gap, Plan, Window
from ingest.delivery import DAY_MS
from ingest.settings import Poll

Marks = tuple[int | None, int | None]
"""How far an agent has been read: ``watermark_ms`` and ``swept_ms``."""

_CYCLE = ("longest", "sweep", "longest", "busy", "longest", "gap")

#: A pass may come so much of its period too early, to get to its place among the others.
_EARLIER = 0.25

#: Sooner than its place by less than the rest of this is in place.
_IN_PLACE = 0.99

#: Multiples of it fill the circle evenly, however many there are.
_GOLDEN = 0.618_033_988_749_895

#: How much the last pass counts in what is expected of the next.
_NEWEST = 0.3

_NEVER_S = float("inf")


@dataclass(slots=True)
class _Agent:
    """Times ending in ``_s`` are the steady clock's."""

    plan: Plan
    #: Its place on the circle, from 0 to 1.
    place: float
    joined_s: float
    #: Since when, or from when on, it waits for its near pass and for its sweep; none of it while
    #: it rests. The first near pass reads as deep as a sweep, which comes after it.
    near_at_s: float = -_NEVER_S
    sweep_at_s: float = _NEVER_S
    rests_until_s: float = -_NEVER_S
    #: In a row.
    failures: int = 0
    read_s: float | None = None
    #: New records in a second, as they came lately.
    rate: float = 0.0
    #: Those of the open ones that it has read back.
    gaps: set[Gap] = field(default_factory=set)

    def expected(self, steady_s: float) -> float:
        """How many new records there are by now."""
        return 0.0 if self.read_s is None else self.rate * (steady_s - self.read_s)


class Rota:
    """The agents of one connection. Ask `next`, read what it says, then tell `done` or `failed`."""

    def __init__(
        self, settings: Poll, marks: Callable[[str], Marks], *, slice_ms: int = DAY_MS
    ) -> None:
        """``marks``: how far an agent that joins was read, also by an earlier process."""
        self._settings = settings
        self._marks = marks
        self._slice_ms = slice_ms
        self._lag_ms = round(settings.lag_s * 1000)
        self._agents: dict[str, _Agent] = {}
        self._joined = 0
        self._slot = 0

    def __len__(self) -> int:
        return len(self._agents)

    def __contains__(self, agent_id: str) -> bool:
        return agent_id in self._agents

    def __iter__(self) -> Iterator[str]:
        return iter(list(self._agents))

    # Who is in it

    def set_agents(self, agent_ids: Iterable[str], now_ms: int, steady_s: float) -> None:
        """These and no others. Who was never read has the next turn, in their order."""
        wanted = dict.fromkeys(agent_ids)
        for agent_id in [known for known in self._agents if known not in wanted]:
            self.gone(agent_id)
        for agent_id in wanted:
            if agent_id not in self._agents:
                self._join(agent_id, now_ms, steady_s)

    def _join(self, agent_id: str, now_ms: int, steady_s: float) -> None:
        plan = Plan(self._settings, *self._marks(agent_id), slice_ms=self._slice_ms)
        place = (self._joined * _GOLDEN) % 1.0
        self._joined += 1
        agent = _Agent(plan, place, steady_s)
        goal_ms = now_ms - self._lag_ms
        if plan.watermark_ms is not None:
            # One that lies ahead is of a clock that was wrong: it is read now.
            age_s = (goal_ms - plan.watermark_ms) / 1000
            every_s = self._settings.every_s
            if age_s < 0:
                agent.near_at_s = steady_s
            else:
                agent.near_at_s = self._in_place(agent, steady_s - age_s, every_s)
        if plan.swept_ms is not None:
            agent.sweep_at_s = steady_s + plan.sweep_due_s(now_ms, steady_s)
        self._agents[agent_id] = agent

    def gone(self, agent_id: str) -> None:
        """It cannot be read any more. If it comes back it goes on where it was."""
        self._agents.pop(agent_id, None)

    # Whose turn it is

    def next(
        self, now_ms: int, steady_s: float, gaps: Sequence[Gap] = ()
    ) -> tuple[str, Window] | float:
        """An agent and the window of it to read now; or for how many seconds there is none.

        ``gaps``: all that are open.
        """
        everybody = self._agents.items()
        near = [it for it in everybody if it[1].near_at_s <= steady_s]
        sweep = [it for it in everybody if it[1].sweep_at_s <= steady_s]
        unread = self._unread(gaps, now_ms, steady_s) if gaps else []
        for step in range(len(_CYCLE)):
            slot = (self._slot + step) % len(_CYCLE)
            kind = _CYCLE[slot]
            if not {"sweep": sweep, "gap": unread}.get(kind, near):
                continue
            self._slot = slot + 1
            if kind == "gap":
                agent_id, agent, ready = unread[0]
                return agent_id, agent.plan.gap(ready, steady_s)
            if kind == "sweep":
                agent_id, agent = min(sweep, key=lambda it: it[1].sweep_at_s)
                return agent_id, agent.plan.sweep(now_ms, steady_s)
            if kind == "busy":
                agent_id, agent = max(near, key=lambda it: it[1].expected(steady_s))
            else:
                agent_id, agent = min(near, key=lambda it: it[1].near_at_s)
            return agent_id, agent.plan.near(now_ms, steady_s)
        waits = (min(agent.near_at_s, agent.sweep_at_s) for agent in self._agents.values())
        return min(waits, default=_NEVER_S) - steady_s

    def _unread(
        self, gaps: Sequence[Gap], now_ms: int, steady_s: float
    ) -> list[tuple[str, _Agent, list[Gap]]]:
        """Who could read which gaps back."""
        found = []
        for agent_id, agent in self._agents.items():
            agent.gaps.intersection_update(gaps)
            ready = agent.plan.ready([gap for gap in gaps if gap not in agent.gaps], now_ms)
            if ready and agent.rests_until_s <= steady_s:
                found.append((agent_id, agent, ready))
        return found

    def done(self, agent_id: str, window: Window, ended_s: float, fresh: int = 0) -> None:
        """All of ``window`` is durable on the event log; ``fresh``: of what was new in it.

        ``ended_s``: the steady clock now. Who has left meanwhile reads it again when it is back.
        """
        agent = self._agents.get(agent_id)
        if agent is None:
            return
        first_sweep = agent.plan.swept_ms is None
        agent.plan.done(window, ended_s)
        agent.failures = 0
        if window.kind == "gap":
            if window.last:
                agent.gaps.update(window.gaps)
            return
        if window.kind == "near":
            self._note_rate(agent, window, ended_s, fresh)
            agent.near_at_s = ended_s
            if window.last and agent.plan.near_s is not None:
                due_s = self._in_place(agent, agent.plan.near_s, self._settings.every_s)
                agent.near_at_s = max(ended_s, due_s)
        if window.kind == "sweep" and not window.last:
            agent.sweep_at_s = ended_s
        elif window.kind == "sweep" or (first_sweep and agent.plan.swept_ms is not None):
            due_s = self._in_place(agent, window.begun_s, self._settings.sweep_every_s)
            agent.sweep_at_s = max(ended_s, due_s)

    def _note_rate(self, agent: _Agent, window: Window, ended_s: float, fresh: int) -> None:
        if agent.read_s is None:
            agent.rate = fresh / (window.to_ms - window.from_ms) * 1000
        else:
            since_s = max(ended_s - agent.read_s, 1e-3)
            agent.rate += _NEWEST * (fresh / since_s - agent.rate)
        agent.read_s = ended_s

    @staticmethod
    def _in_place(agent: _Agent, last_s: float, every_s: float) -> float:
        """When the pass after that of ``last_s`` is due: after ``every_s``, or a little earlier.

        However they have begun, the passes of all come to lie evenly within the period.
        """
        due_s = last_s + every_s
        late = ((due_s - agent.place * every_s) / every_s) % 1.0
        return due_s - min(0.0 if late > _IN_PLACE else late, _EARLIER) * every_s

    def failures(self, agent_id: str) -> int:
        """How often in a row an agent could not be read."""
        agent = self._agents.get(agent_id)
        return 0 if agent is None else agent.failures

    def failed(self, agent_id: str, until_s: float) -> None:
        """Its window could not be read: leave it alone until then."""
        agent = self._agents.get(agent_id)
        if agent is not None:
            agent.failures += 1
            agent.rests_until_s = until_s
            # Behind all who wait by then.
            agent.near_at_s = max(agent.near_at_s, until_s)
            agent.sweep_at_s = max(agent.sweep_at_s, until_s)

    # How far it is

    def marks(self, agent_id: str) -> Marks | None:
        """How far an agent is read; None if it is not among ours."""
        agent = self._agents.get(agent_id)
        return None if agent is None else (agent.plan.watermark_ms, agent.plan.swept_ms)

    def has_read(self, gap: Gap) -> bool:
        """Whether every agent has read it back; nobody has if there is none."""
        return bool(self._agents) and all(gap in agent.gaps for agent in self._agents.values())

    @property
    def watermark_ms(self) -> int | None:
        """The least of all agents; None if one was never read, or if there are none."""
        least = None
        for agent in self._agents.values():
            mark_ms = agent.plan.watermark_ms
            if mark_ms is None:
                return None
            least = mark_ms if least is None else min(least, mark_ms)
        return least

    def behind_s(self, now_ms: int, steady_s: float) -> float:
        """How much too old the oldest watermark is: beyond ``every_s`` and ``lag_s``; else 0.

        Those that cannot be read do not count: that is no matter of time. Of who was never read
        it is the time since it joined.
        """
        goal_ms = now_ms - self._lag_ms
        ages_s = (
            steady_s - agent.joined_s
            if agent.plan.watermark_ms is None
            else (goal_ms - agent.plan.watermark_ms) / 1000
            for agent in self._agents.values()
            if not agent.failures
        )
        return max(0.0, max(ages_s, default=0.0) - self._settings.every_s)

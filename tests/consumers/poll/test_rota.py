"""Whose turn it is: nobody starves, nobody is read too often, and busy agents come first."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any
from zlib import crc32

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from consumers.poll.rota import Marks, Rota
from consumers.poll.windows import Gap, Window
from ingest.settings import Poll

BEGIN_MS = 1_790_000_000_000
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS
LAG = 300_000


@dataclass(frozen=True)
class Turn:
    at_s: float
    agent_id: str
    window: Window


@dataclass
class World:
    """A poller without a provider: clocks, and who was read when."""

    poll: Poll = field(default_factory=Poll)
    #: How long a window takes to read, in seconds.
    takes_s: Callable[[str, Window], float] = lambda agent_id, window: 1.0
    #: New records of an agent in a second.
    rates: Mapping[str, float] = field(default_factory=dict)
    now_ms: int = BEGIN_MS
    steady_s: float = 50.0
    gaps: list[Gap] = field(default_factory=list)
    marks: dict[str, Marks] = field(default_factory=dict)
    turns: list[Turn] = field(default_factory=list)
    last_s: dict[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.rota = self.restarted()

    def restarted(self) -> Rota:
        return Rota(self.poll, lambda agent_id: self.marks.get(agent_id, (None, None)))

    def agents(self, names: Iterable[str]) -> None:
        self.rota.set_agents(names, self.now_ms, self.steady_s)

    def wait(self, seconds: float) -> None:
        self.now_ms += round(seconds * 1000)
        self.steady_s += seconds

    def turn(self) -> Turn | float:
        """Read what is next, or say for how long there is nothing."""
        found = self.rota.next(self.now_ms, self.steady_s, self.gaps)
        if isinstance(found, float):
            assert found > 0
            return found
        turn = Turn(self.steady_s, *found)
        self.turns.append(turn)
        return turn

    def done(self, turn: Turn) -> None:
        self.wait(self.takes_s(turn.agent_id, turn.window))
        since_s = turn.at_s - self.last_s.get(turn.agent_id, turn.at_s - 86_400)
        self.last_s[turn.agent_id] = turn.at_s
        fresh = round(self.rates.get(turn.agent_id, 0) * since_s)
        self.rota.done(turn.agent_id, turn.window, self.steady_s, fresh)
        marks = self.rota.marks(turn.agent_id)
        if marks is not None:
            self.marks[turn.agent_id] = marks

    def read(self) -> Turn:
        turn = self.turn()
        assert isinstance(turn, Turn)
        self.done(turn)
        return turn

    def run(self, seconds: float) -> list[Turn]:
        """Read whenever there is something to read; the turns of that time."""
        until_s, first = self.steady_s + seconds, len(self.turns)
        while self.steady_s < until_s:
            turn = self.turn()
            if isinstance(turn, float):
                self.wait(min(turn, until_s - self.steady_s))
            else:
                self.done(turn)
        return self.turns[first:]


def names(count: int) -> list[str]:
    return [f"agent-{n}" for n in range(count)]


def near_times(turns: Iterable[Turn]) -> dict[str, list[float]]:
    found: dict[str, list[float]] = defaultdict(list)
    for turn in turns:
        if turn.window.kind == "near":
            found[turn.agent_id].append(turn.at_s)
    return found


def test_without_agents_there_is_nothing_to_do() -> None:
    world = World()
    assert world.turn() == float("inf")
    assert world.rota.watermark_ms is None
    assert world.rota.behind_s(world.now_ms, world.steady_s) == 0
    assert not world.rota.has_read(Gap(channel="webhook", from_ms=1, to_ms=2))


def test_new_agents_are_read_at_once_in_their_order_and_a_day_back() -> None:
    world = World()
    world.agents(names(3))
    turns = [world.read() for _ in range(3)]
    assert [turn.agent_id for turn in turns] == names(3)
    assert [turn.window.kind for turn in turns] == ["near"] * 3
    assert turns[0].window.to_ms - turns[0].window.from_ms == DAY_MS
    assert isinstance(world.turn(), float)
    world.run(1000)
    world.agents([*names(3), "late"])
    assert world.read().agent_id == "late"


def test_every_agent_is_read_every_period_and_evenly_after_a_while() -> None:
    world = World()
    world.agents(names(50))
    turns = world.run(86_400)
    for agent_id, times in near_times(turns).items():
        waits = [after - before for before, after in pairwise(times)]
        # A few seconds late where several are due; a quarter early while it finds its place.
        assert max(waits) < 300 + 20, agent_id
        assert min(waits) > 225 - 20
        assert min(waits[10:]) > 300 - 20
    last = [turn for turn in turns if turn.at_s > 80_000 and turn.window.kind == "near"]
    tenths = Counter(int(turn.at_s // 30) for turn in last)
    del tenths[min(tenths)], tenths[max(tenths)]
    assert set(tenths.values()) <= set(range(2, 9))  # five each, were it exact
    assert world.rota.behind_s(world.now_ms, world.steady_s) < 20
    sweeps = [turn for turn in turns if turn.window.kind == "sweep" and turn.window.last]
    assert 3 * 50 <= len(sweeps) <= 6 * 50


def test_the_sweeps_come_to_lie_evenly_too() -> None:
    world = World(poll=Poll(every_s=3600.0))
    world.agents(names(48))
    turns = world.run(7 * 86_400)
    last = [t for t in turns if t.window.kind == "sweep" and t.window.last]
    hours = Counter(int(t.at_s // 3600) for t in last if t.at_s > 4 * 86_400)
    del hours[min(hours)], hours[max(hours)]
    assert max(hours.values()) <= 16  # eight an hour, were it exact; 48 in one if they were not


def test_after_a_restart_nobody_is_read_before_it_is_due() -> None:
    world = World()
    world.agents(names(100))
    world.run(3600)
    times = near_times(world.turns)
    world.rota = world.restarted()
    world.steady_s += 5000  # another machine's
    shift_s = 5000.0
    world.agents(names(100))
    begun_s = world.steady_s
    turns = world.run(300)
    first = {agent_id: found[0] for agent_id, found in near_times(turns).items()}
    assert set(first) == set(names(100))
    early = [
        agent_id
        for agent_id in first
        if first[agent_id] - (times[agent_id][-1] + shift_s) < 0.75 * 300 - 5
    ]
    assert early == []
    assert sum(at_s - begun_s < 60 for at_s in first.values()) < 60


def test_after_a_downtime_the_oldest_are_read_first_from_where_they_were() -> None:
    marks: dict[str, Marks] = {
        name: (BEGIN_MS - LAG - (n + 1) * HOUR_MS, BEGIN_MS - LAG - HOUR_MS)
        for n, name in enumerate(names(5))
    }
    world = World(marks=dict(marks))
    world.agents(names(5))
    turns = [turn for turn in world.run(20) if turn.window.kind == "near"]
    assert turns[0].agent_id == "agent-4"
    assert {turn.agent_id for turn in turns} == set(names(5))
    assert turns[0].window.from_ms == BEGIN_MS - LAG - 5 * HOUR_MS - 7_200_000


def test_who_comes_back_goes_on_from_its_watermark() -> None:
    world = World()
    world.agents(names(2))
    world.run(3600)
    mark_ms, _ = world.marks["agent-1"]
    assert mark_ms is not None
    world.rota.gone("agent-1")
    assert "agent-1" not in world.rota
    assert world.rota.marks("agent-1") is None
    assert {turn.agent_id for turn in world.run(7200)} == {"agent-0"}
    world.agents(names(2))
    back = next(t for t in world.run(100) if t.agent_id == "agent-1" and t.window.kind == "near")
    assert back.window.from_ms == mark_ms - 7_200_000
    assert world.rota.watermark_ms is not None
    world.agents(["agent-0"])
    assert list(world.rota) == ["agent-0"]


def test_what_was_read_of_one_who_left_meanwhile_counts_nothing() -> None:
    world = World()
    world.agents(names(1))
    turn = world.turn()
    assert isinstance(turn, Turn)
    world.rota.gone("agent-0")
    world.rota.done(turn.agent_id, turn.window, world.steady_s, 5)
    world.rota.failed("agent-0", 1000.0)
    assert world.rota.failures("agent-0") == 0
    assert len(world.rota) == 0


def test_one_that_was_never_read_holds_the_watermark() -> None:
    world = World()
    world.agents(names(2))
    world.read()
    assert world.rota.watermark_ms is None
    world.read()
    assert world.rota.watermark_ms == min(
        mark for mark, _ in world.marks.values() if mark is not None
    )


def test_a_failing_agent_rests_and_goes_to_the_end_of_the_queue() -> None:
    world = World(poll=Poll(every_s=5.0))
    world.agents(names(10))
    world.run(100)
    failed = world.turn()
    assert isinstance(failed, Turn)
    world.rota.failed(failed.agent_id, world.steady_s + 50)
    assert world.rota.failures(failed.agent_id) == 1
    rests_until_s = world.steady_s + 50
    turns = world.run(200)
    again = next(turn for turn in turns if turn.agent_id == failed.agent_id)
    assert again.at_s >= rests_until_s
    assert world.rota.failures(failed.agent_id) == 0
    others = {turn.agent_id for turn in turns if rests_until_s <= turn.at_s < again.at_s}
    assert len(others) > 4


def test_when_it_cannot_keep_up_it_says_so_and_reads_all_the_busy_ones_more_often() -> None:
    everybody = names(500)
    busy = set(everybody[::50])
    world = World(rates={name: 0.5 if name in busy else 1e-5 for name in everybody})
    world.agents(everybody)
    turns = world.run(4 * 3600)
    # A round takes more than 500 s where there are 300.
    assert world.rota.behind_s(world.now_ms, world.steady_s) > 150
    settled = [turn for turn in turns if turn.at_s > 3600]
    counts = {name: len(found) for name, found in near_times(settled).items()}
    assert set(counts) == set(everybody)
    of_busy = sum(counts[name] for name in busy) / len(busy)
    of_quiet = sum(counts[name] for name in counts if name not in busy) / (500 - len(busy))
    assert of_busy > 1.5 * of_quiet
    # And no more often than asked for.
    for name in busy:
        times = near_times(settled)[name]
        assert min(b - a for a, b in pairwise(times)) >= 225


def test_with_time_enough_it_is_not_behind() -> None:
    world = World()
    world.agents(names(100))
    world.run(7200)
    behind = []
    for _ in range(200):
        world.run(10)
        behind.append(world.rota.behind_s(world.now_ms, world.steady_s))
    assert max(behind) < 75


def test_who_cannot_be_read_is_not_behind() -> None:
    world = World()
    world.agents(names(2))
    world.run(600)
    turn = world.turn()
    while isinstance(turn, float):
        world.wait(turn)
        turn = world.turn()
    world.rota.failed(turn.agent_id, world.steady_s + 10_000)
    world.run(5000)
    assert world.rota.behind_s(world.now_ms, world.steady_s) < 30


def test_a_gap_is_read_back_of_every_agent() -> None:
    world = World(takes_s=lambda agent_id, window: 10.0 if window.kind == "gap" else 1.0)
    world.agents(names(20))
    world.run(600)
    gap = Gap(channel="webhook", from_ms=BEGIN_MS - 50 * HOUR_MS, to_ms=BEGIN_MS - HOUR_MS)
    lasting = Gap(channel="webhook", from_ms=BEGIN_MS, to_ms=None)
    world.gaps = [gap, lasting]
    begun_s, until_s = world.steady_s, world.steady_s + 2000
    while not world.rota.has_read(gap) and world.steady_s < until_s:
        world.run(1)
    read = defaultdict(list)
    for turn in world.turns:
        if turn.window.kind == "gap":
            assert turn.window.gaps == (gap,)
            read[turn.agent_id].append(turn.window)
    assert set(read) == set(names(20))
    for windows in read.values():
        assert windows[0].from_ms == gap.from_ms - 7_200_000
        assert windows[-1].last
        assert all(a.to_ms == b.from_ms for a, b in pairwise(windows))
    assert not world.rota.has_read(lasting)
    # Near passes have had their turns.
    meanwhile = near_times(turn for turn in world.turns if turn.at_s > begun_s)
    assert set(meanwhile) == set(names(20))
    world.gaps = [lasting]
    assert not any(turn.window.kind == "gap" for turn in world.run(600))
    assert not world.rota.has_read(gap)  # it is forgotten with the gap


@pytest.mark.parametrize("jump_ms", [-7 * DAY_MS, 7 * DAY_MS])
def test_a_clock_on_the_wall_that_jumps_makes_nobody_starve(jump_ms: int) -> None:
    world = World()
    world.agents(names(20))
    world.run(3600)
    world.now_ms += jump_ms
    before = len(world.turns)
    world.run(1200)
    counts = {name: len(found) for name, found in near_times(world.turns[before:]).items()}
    assert set(counts) == set(names(20))
    if jump_ms < 0:  # they do not wait for the time to come again
        assert all(mark is not None and mark <= world.now_ms for mark, _ in world.marks.values())


@dataclass
class Watched:
    """Counts turns that others have while somebody is due."""

    waited: Counter[tuple[str, str]] = field(default_factory=Counter)
    worst: Counter[str] = field(default_factory=Counter)

    def note(self, world: World, turn: Turn) -> None:
        for agent_id, agent in world.rota._agents.items():
            if agent.rests_until_s > turn.at_s:
                continue
            for kind, since_s in (("near", agent.near_at_s), ("sweep", agent.sweep_at_s)):
                place = agent_id, kind
                if since_s > turn.at_s or (turn.agent_id, turn.window.kind) == place:
                    self.waited[place] = 0
                else:
                    self.waited[place] += 1
                    self.worst[kind] = max(self.worst[kind], self.waited[place])


@settings(max_examples=60)
@example(count=19, every_s=10.0, takes=[1.0, 30.0], rates=[0.0], events=[(34, "fail")])
@given(
    count=st.integers(1, 25),
    every_s=st.sampled_from([1.0, 10.0, 60.0]),
    takes=st.lists(st.floats(0.01, 30.0), min_size=1, max_size=7),
    rates=st.lists(st.sampled_from([0.0, 0.001, 1.0, 100.0]), min_size=1, max_size=5),
    events=st.lists(
        st.tuples(st.integers(0, 400), st.sampled_from(["fail", "leave", "join", "gap"])),
        max_size=20,
    ),
)
def test_nobody_starves(
    count: int, every_s: float, takes: list[float], rates: list[float], events: list[Any]
) -> None:
    """A near pass that is due waits for two turns of each other agent at most, a sweep for six.

    However long reading takes, and whoever fails, leaves or comes meanwhile.
    """
    poll = Poll(every_s=every_s, sweep_every_s=20 * every_s)
    everybody = names(count)
    world = World(
        poll=poll,
        takes_s=lambda agent_id, window: takes[
            crc32(f"{agent_id} {window.kind}".encode()) % len(takes)
        ],
        rates={name: rates[n % len(rates)] for n, name in enumerate(everybody)},
    )
    world.agents(everybody)
    watched = Watched()
    planned = defaultdict(list)
    for at, what in events:
        planned[at].append(what)
    joins = 0
    present = list(everybody)
    for number in range(400):
        for what in planned[number]:
            if what == "join":
                joins += 1
                present.append(f"new-{joins}")
                world.agents(present)
            elif what == "leave" and len(present) > 1:
                world.rota.gone(present.pop(0))
            elif what == "gap":
                to_ms = world.now_ms - LAG
                world.gaps = [Gap(channel="webhook", from_ms=to_ms - 1000, to_ms=to_ms)]
        turn = world.turn()
        if isinstance(turn, float):
            world.wait(turn)
            continue
        watched.note(world, turn)
        if "fail" in planned[number]:
            world.wait(1.0)
            world.rota.failed(turn.agent_id, world.steady_s + 5.0)
            # It has had its turn and is behind all others now, whatever it was to be read for.
            for kind in ("near", "sweep"):
                watched.waited[turn.agent_id, kind] = 0
        else:
            world.done(turn)
    # Those that join go first, once each, and so does whoever has slices left to read.
    most = count + joins
    assert watched.worst["near"] <= 2 * (most + joins + len(events)) + 2
    assert watched.worst["sweep"] <= 6 * (most + joins + len(events)) * 3 + 6
    mark_ms = world.rota.watermark_ms
    assert mark_ms is None or mark_ms <= world.now_ms - LAG

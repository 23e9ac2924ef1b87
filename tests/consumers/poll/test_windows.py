"""What is read next: no moment is left out whatever fails, and no pass comes too often."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import pytest
from hypothesis import given
from hypothesis import strategies as st

from consumers.poll.windows import Gap, Plan, Window
from ingest.settings import Poll

BEGIN_MS = 1_790_000_000_000
HOUR_MS = 3_600_000
DAY_MS = 24 * HOUR_MS

#: The settings as they are by default, in milliseconds.
LAG, OVERLAP, SWEEP = 300_000, 7_200_000, 111_600_000


@dataclass
class World:
    """A poller without a provider: clocks, and what was read when."""

    settings: Poll = field(default_factory=Poll)
    now_ms: int = BEGIN_MS
    steady_s: float = 50.0
    gaps: list[Gap] = field(default_factory=list)
    #: (our clock when it was asked for, window)
    reads: list[tuple[int, Window]] = field(default_factory=list)
    closed: list[Gap] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.plan = Plan(self.settings)

    def next(self) -> Window | float:
        found = self.plan.next(self.now_ms, self.steady_s, self.gaps)
        if isinstance(found, Window):
            assert found.from_ms < found.to_ms <= found.goal_ms
            assert found.to_ms - found.from_ms <= DAY_MS + self.plan._overlap_ms
        return found

    def done(self, window: Window) -> None:
        self.reads.append((self.now_ms, window))
        self.plan.done(window, self.steady_s)
        if window.last:
            self.gaps = [gap for gap in self.gaps if gap not in window.gaps]
            self.closed += window.gaps

    def read(self) -> Window:
        """Read the next window, which there has to be."""
        window = self.next()
        assert isinstance(window, Window)
        self.done(window)
        return window

    def work(self, failures: Iterable[bool] = ()) -> None:
        """Read until there is nothing to do, or something fails."""
        fails = iter(failures)
        for _ in range(10_000):
            window = self.next()
            if not isinstance(window, Window):
                assert window > 0
                return
            if next(fails, False):
                return
            self.done(window)
        raise AssertionError("it reads for ever")

    def wait(self, seconds: float) -> None:
        self.now_ms += round(seconds * 1000)
        self.steady_s += seconds

    def run(self, seconds: float) -> None:
        """Read whenever there is something to read."""
        until_s = self.steady_s + seconds
        while self.steady_s < until_s:
            self.work()
            wait_s = self.next()
            assert isinstance(wait_s, float)
            self.wait(min(wait_s, until_s - self.steady_s))

    def restart(self) -> None:
        """A new process, perhaps of a machine that has just been started."""
        self.plan = Plan(self.settings, self.plan.watermark_ms, self.plan.swept_ms)
        self.steady_s = 1.0

    def of(self, kind: str) -> list[tuple[int, Window]]:
        return [(at, window) for at, window in self.reads if window.kind == kind]


def test_the_very_first_pass_reads_a_day_back() -> None:
    world = World()
    window = world.read()
    assert (window.kind, window.from_ms, window.to_ms) == (
        "near",
        BEGIN_MS - LAG - DAY_MS,
        BEGIN_MS - LAG,
    )
    assert world.plan.watermark_ms == BEGIN_MS - LAG
    assert world.next() == 300.0


def test_the_near_pass_begins_before_the_watermark() -> None:
    world = World()
    world.read()
    world.wait(299.0)
    assert world.next() == pytest.approx(1.0)
    world.wait(1.0)
    window = world.read()
    assert (window.kind, window.from_ms, window.to_ms) == (
        "near",
        BEGIN_MS - LAG - OVERLAP,
        BEGIN_MS - LAG + 300_000,
    )


def test_what_fails_is_asked_for_again_up_to_now() -> None:
    world = World()
    world.read()
    world.wait(300.0)
    first = world.next()
    world.wait(60.0)
    second = world.next()
    assert isinstance(first, Window)
    assert isinstance(second, Window)
    assert second.from_ms == first.from_ms
    assert second.to_ms == first.to_ms + 60_000
    assert world.plan.watermark_ms == BEGIN_MS - LAG


def test_a_long_downtime_is_read_from_the_watermark_on_in_slices() -> None:
    world = World()
    world.work()
    world.wait(2.5 * 24 * 3600)
    world.restart()
    windows = [world.read() for _ in range(3)]
    mark = BEGIN_MS - LAG
    goal = mark + 60 * HOUR_MS
    assert [(w.kind, w.from_ms, w.to_ms) for w in windows] == [
        ("near", mark - OVERLAP, mark + DAY_MS),
        ("near", mark + DAY_MS - OVERLAP, mark + 2 * DAY_MS),
        ("near", mark + 2 * DAY_MS - OVERLAP, goal),
    ]
    sweeps = [world.read() for _ in range(4)]
    begin = mark - (SWEEP - 6 * HOUR_MS)  # what the last pass may have come too early for
    assert [(w.kind, w.from_ms, w.to_ms) for w in sweeps] == [
        ("sweep", begin, begin + DAY_MS),
        ("sweep", begin + DAY_MS, begin + 2 * DAY_MS),
        ("sweep", begin + 2 * DAY_MS, begin + 3 * DAY_MS),
        ("sweep", begin + 3 * DAY_MS, goal),
    ]
    assert world.plan.swept_ms == goal
    assert isinstance(world.next(), float)


def test_the_sweep_comes_every_six_hours_and_reads_deep() -> None:
    world = World()
    world.run(13 * 3600)
    sweeps = world.of("sweep")
    ends = [(at - BEGIN_MS) // 60_000 for at, window in sweeps if window.last]
    assert ends == [360, 720]
    assert sweeps[0][1].from_ms == BEGIN_MS + 6 * HOUR_MS - LAG - SWEEP
    assert {at for at, _ in world.of("near")} == {
        BEGIN_MS + n * 300_000 for n in range(13 * 12)
    } | {BEGIN_MS}


def test_a_restart_makes_no_sweep_of_its_own() -> None:
    world = World()
    world.work()
    for _ in range(5):
        world.wait(3600.0)
        world.restart()
        world.work()
    assert world.of("sweep") == []
    world.wait(3600.0)
    world.restart()
    world.work()
    assert [window.last for _, window in world.of("sweep")] == [False, True]


def test_a_gap_is_read_first_once_it_is_over_and_lag_has_passed() -> None:
    world = World()
    world.work()
    lasting = Gap(channel="websocket", from_ms=BEGIN_MS, to_ms=None)
    world.gaps = [lasting]
    world.wait(1000.0)
    assert world.read().kind == "near"
    over = Gap(channel="websocket", from_ms=BEGIN_MS, to_ms=world.now_ms - 299_999)
    world.gaps = [over]
    assert isinstance(world.next(), float)
    world.wait(301.0)
    window = world.read()
    assert window.kind == "gap"
    assert (window.from_ms, window.to_ms) == (BEGIN_MS - OVERLAP, over.end_ms + 1)
    assert window.gaps == (over,)
    assert world.closed == [over]
    assert world.read().kind == "near"


def test_gaps_near_each_other_are_read_together_and_a_long_one_in_slices() -> None:
    world = World()
    world.work()
    world.wait(5 * 24 * 3600)

    def gap(from_h: float, to_h: float) -> Gap:
        return Gap(
            channel="webhook",
            from_ms=BEGIN_MS + round(from_h * HOUR_MS),
            to_ms=BEGIN_MS + round(to_h * HOUR_MS),
        )

    near_each_other = [gap(0, 1), gap(2.5, 3), gap(2.6, 2.7)]
    long = gap(30, 70)
    world.gaps = [long, *reversed(near_each_other)]
    window = world.read()
    assert window.gaps == tuple(near_each_other)
    assert (window.from_ms, window.to_ms) == (BEGIN_MS - OVERLAP, BEGIN_MS + 3 * HOUR_MS + 1)
    assert world.closed == near_each_other
    assert world.read().kind == "near"  # its turn, although there is a gap
    world.run(600.0)
    slices = [window for _, window in world.of("gap")][1:]
    assert [(w.from_ms - BEGIN_MS, w.to_ms - BEGIN_MS) for w in slices] == [
        (28 * HOUR_MS, 52 * HOUR_MS),
        (52 * HOUR_MS, 70 * HOUR_MS + 1),
    ]
    assert world.closed == [*near_each_other, long]


def test_gaps_far_from_each_other_do_not_wait_for_each_other() -> None:
    world = World()
    world.work()
    world.wait(5 * 24 * 3600)
    world.work()
    gaps = [
        Gap(channel="push", from_ms=BEGIN_MS + day * DAY_MS, to_ms=BEGIN_MS + day * DAY_MS + 1)
        for day in (1, 2, 3)
    ]
    world.gaps = list(gaps)
    assert [world.read().gaps for _ in gaps] == [(gap,) for gap in gaps]
    # Those that come one after the other are gathered.
    world.gaps = [Gap(channel="push", from_ms=gaps[0].from_ms + 5, to_ms=gaps[0].end_ms + 5)]
    assert world.next() == pytest.approx(300, abs=10)


def test_neither_a_near_pass_that_fails_nor_a_gap_that_fails_keeps_the_other_from_its_turn() -> (
    None
):
    world = World()
    world.work()
    for day in (1, 8):
        from_ms = BEGIN_MS - day * DAY_MS
        world.gaps.append(Gap(channel="websocket", from_ms=from_ms, to_ms=from_ms + 1))
    world.now_ms += HOUR_MS
    world.steady_s += 3600
    kinds = [window.kind for window in (world.next() for _ in range(6)) if window]  # type: ignore[union-attr]
    assert kinds == ["gap", "near", "gap", "near", "gap", "near"]


def test_a_gap_that_cannot_be_read_leaves_the_sweep_its_turn_and_its_slices() -> None:
    world = World()
    world.work()
    world.gaps.append(Gap(channel="websocket", from_ms=BEGIN_MS - DAY_MS, to_ms=BEGIN_MS - HOUR_MS))
    for _ in range(8 * 60):  # hours
        world.wait(60)
        for _ in range(3):
            window = world.next()
            if isinstance(window, Window) and window.kind != "gap":
                world.done(window)
    assert len(world.of("near")) > 8 * 10
    assert {window.last for _, window in world.of("sweep")} == {False, True}
    assert world.plan.swept_ms is not None
    assert world.plan.swept_ms > BEGIN_MS
    assert world.closed == []


def test_a_clock_that_was_ahead_is_not_believed() -> None:
    world = World()
    world.now_ms += 10 * DAY_MS
    world.work()
    world.now_ms -= 10 * DAY_MS
    world.restart()
    window = world.read()
    # The watermark lies in the future: what was read before it nobody knows.
    assert (window.kind, window.from_ms) == ("near", BEGIN_MS - LAG - SWEEP)
    world.work()
    assert world.plan.watermark_ms == BEGIN_MS - LAG
    assert world.plan.swept_ms == BEGIN_MS - LAG


def test_a_pass_that_takes_longer_than_its_period_leaves_the_sweep_its_turn() -> None:
    world = World()
    world.work()
    kinds = []
    world.wait(6 * 3600 + 1)
    for _ in range(6):
        window = world.next()
        if isinstance(window, float):
            world.wait(window)
            window = world.next()
        assert isinstance(window, Window)
        world.wait(400.0)
        world.done(window)
        kinds.append(window.kind)
    assert kinds == ["near", "sweep", "near", "sweep", "near", "near"]


# Whatever happens

_SETTINGS = st.builds(
    Poll,
    every_s=st.sampled_from([0.5, 60.0, 300.0, 3600.0]),
    overlap_s=st.sampled_from([1.0, 600.0, 7200.0, 200_000.0]),
    sweep_every_s=st.sampled_from([600.0, 21_600.0, 100_000.0]),
    sweep_overlap_s=st.sampled_from([60.0, 7200.0, 111_600.0, 300_000.0]),
    lag_s=st.sampled_from([0.0, 300.0, 4000.0]),
    first_read_s=st.sampled_from([1.0, 86_400.0, 400_000.0]),
)


@dataclass(frozen=True)
class Step:
    """A stretch of time, and what becomes of the windows that are read at its end."""

    seconds: float
    failures: Sequence[bool]
    restart: bool


_STEPS = st.lists(
    st.builds(
        Step,
        seconds=st.sampled_from([0.1, 1.0, 30.0, 299.0, 301.0, 5000.0, 25_000.0, 300_000.0]),
        failures=st.lists(st.booleans(), max_size=4),
        restart=st.booleans(),
    ),
    max_size=25,
)


def covered(
    reads: Sequence[tuple[int, Window]], moment_ms: int, asked: Callable[[int], bool]
) -> bool:
    return any(w.from_ms <= moment_ms < w.to_ms and asked(at) for at, w in reads)


@given(_SETTINGS, _STEPS, st.data())
def test_every_moment_is_read_late_enough_whatever_fails(
    settings: Poll, steps: Sequence[Step], data: st.DataObject
) -> None:
    world = World(settings)
    world.work()
    first_ms = world.reads[0][1].from_ms
    for step in steps:
        world.wait(step.seconds)
        world.work(step.failures)
        if step.restart:
            world.restart()
    world.wait(settings.every_s + 1)
    world.work()
    plan = world.plan
    assert plan.watermark_ms is not None
    assert plan.swept_ms is not None
    assert plan.watermark_ms >= world.now_ms - plan._lag_ms - settings.every_s * 1000 - 1000
    moment_ms = data.draw(st.integers(first_ms, plan.watermark_ms - 1))
    assert covered(world.reads, moment_ms, lambda at: at >= moment_ms + plan._lag_ms)
    # A call that lasted as long as the overlap had ended when its start was read.
    if moment_ms + plan._overlap_ms < plan.watermark_ms:
        ended_ms = moment_ms + plan._overlap_ms
        assert covered(world.reads, moment_ms, lambda at: at >= ended_ms)
    # And what changes within the depth of the sweep is seen by one.
    if moment_ms + plan._depth_ms < plan.swept_ms:
        changed_ms = moment_ms + plan._depth_ms
        assert covered(world.reads, moment_ms, lambda at: at >= changed_ms)


@given(_SETTINGS, _STEPS, st.lists(st.tuples(st.integers(0, 10**6), st.integers(0, 10**6))))
def test_every_gap_that_is_over_is_read_as_a_whole_and_closed_once(
    settings: Poll, steps: Sequence[Step], times: Sequence[tuple[int, int]]
) -> None:
    world = World(settings)
    gaps = {
        Gap(channel="websocket", from_ms=BEGIN_MS + at * 1000, to_ms=BEGIN_MS + (at + long) * 1000)
        for at, long in times
    }
    world.gaps = sorted(gaps, key=lambda gap: -gap.end_ms)
    for step in steps:
        world.wait(step.seconds)
        world.work(step.failures)
        if step.restart:
            world.restart()
    world.wait(2_000_000)
    for _ in range(len(gaps) + 1):
        world.work()
        world.wait(settings.every_s + 1)
    assert len(world.closed) == len(gaps)
    assert set(world.closed) == gaps
    for gap in gaps:
        begin_ms = gap.from_ms - world.plan._overlap_ms
        at_ms = begin_ms
        for at, window in sorted(world.reads, key=lambda read: read[1].from_ms):
            if at >= gap.end_ms + world.plan._lag_ms and window.from_ms <= at_ms:
                at_ms = max(at_ms, window.to_ms)
        assert at_ms > gap.end_ms


@given(
    _SETTINGS,
    st.lists(
        st.tuples(st.floats(0.0, 4000.0), st.integers(-3 * DAY_MS, 3 * DAY_MS)),
        min_size=1,
        max_size=40,
    ),
)
def test_a_clock_that_jumps_turns_no_window_round_and_makes_no_pass_more_often(
    settings: Poll, jumps: Sequence[tuple[float, int]]
) -> None:
    world = World(settings)
    for seconds, jump_ms in jumps:
        world.wait(seconds)
        world.now_ms += jump_ms
        world.work()  # asserts that windows have a length, and that it ends
    elapsed_s = world.steady_s - 50.0
    ends = {kind: sum(w.last for _, w in world.of(kind)) for kind in ("near", "sweep")}
    assert ends["near"] <= elapsed_s / settings.every_s + 1
    assert ends["sweep"] <= elapsed_s / settings.sweep_every_s + 1

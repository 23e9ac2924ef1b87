"""Which window of time a connection's records are read from next. No I/O, and no clock.

A provider filters its list by a call's start and lists the call once it has ended, late changes
later still. So a moment is not read once but again and again:

    gap          first: from ``overlap_s`` before a channel went deaf until it heard again
    near pass    every ``every_s``: from ``overlap_s`` before the watermark to ``lag_s`` ago
    deep sweep   every ``sweep_every_s``: over ``sweep_overlap_s``, for long calls and late changes

The watermark is the end of the last near window that was stored as a whole; after a downtime the
near pass begins there, and the sweep where the last one left off. What is long is read in slices
of the provider's `slice_ms`, oldest first, so that a failure costs one slice.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from ingest.delivery import DAY_MS
from ingest.settings import Poll


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """A stretch of time in which a channel was deaf; milliseconds since 1970."""

    channel: str
    from_ms: int
    #: None while it lasts.
    to_ms: int | None
    reason: str = ""
    #: When it was told of; that of which it is told twice is one gap.
    opened_ms: int = field(default=0, compare=False)

    @property
    def end_ms(self) -> int:
        """Of one that is over. A clock that went back in it must not turn it round."""
        return self.from_ms if self.to_ms is None else max(self.from_ms, self.to_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What is read next: calls that began in [from, to), milliseconds since 1970."""

    kind: Literal["gap", "near", "sweep"]
    from_ms: int
    to_ms: int
    #: Where the pass ends of which this is a slice.
    goal_ms: int
    #: The steady clock when the pass was begun.
    begun_s: float
    #: Those that are read when the pass is done.
    gaps: tuple[Gap, ...] = ()

    @property
    def last(self) -> bool:
        """Whether the pass is done with it."""
        return self.to_ms >= self.goal_ms


@dataclass(frozen=True, slots=True)
class _Walk:
    """A pass that has been read in part."""

    at_ms: int
    goal_ms: int
    begun_s: float
    gaps: tuple[Gap, ...] = ()


class Plan:
    """One connection's windows. Ask `next`, read what it says, then tell `done`; or ask again.

    Times on the wall are milliseconds since 1970 and may jump either way. What is due is told by
    the steady clock, in seconds, so that a jump makes no pass more often than the settings say.
    """

    def __init__(
        self,
        settings: Poll,
        watermark_ms: int | None = None,
        swept_ms: int | None = None,
        *,
        slice_ms: int = DAY_MS,
    ) -> None:
        self._slice_ms = slice_ms
        self._every_s = settings.every_s
        self._sweep_every_s = settings.sweep_every_s
        self._overlap_ms = _ms(settings.overlap_s)
        self._sweep_overlap_ms = _ms(settings.sweep_overlap_s)
        self._lag_ms = _ms(settings.lag_s)
        self._first_read_ms = _ms(settings.first_read_s)
        #: How far behind its own end a sweep leaves nothing to later ones.
        self._depth_ms = max(0, self._sweep_overlap_ms - _ms(self._sweep_every_s))
        #: All calls that began before it, and that were listed, are on the log.
        self.watermark_ms = watermark_ms
        #: The end of the last sweep.
        self.swept_ms = swept_ms
        #: When the last near pass was begun, or counts as begun; None before the first.
        self.near_s: float | None = None
        self._sweep_s: float | None = None
        self._gap_s: float | None = None
        self._sweep: _Walk | None = None
        self._gap: _Walk | None = None
        self._after_gap = self._gap_failed = False
        #: Whether there were others, far from those that are being read. They do not wait
        #: ``every_s``: that only gathers what comes one after the other.
        self._more_gaps = False

    def next(self, now_ms: int, steady_s: float, gaps: Sequence[Gap]) -> Window | float:
        """The window to read now, or for how many seconds there is none.

        ``gaps``: all that are open, in any order. One is read once it is over and ``lag_s`` have
        passed.
        """
        near_due_s = self._due_s(self.near_s, self._every_s, steady_s)
        ready = self.ready(gaps, now_ms)
        gap_due_s = self._due_s(self._gap_s, self._every_s, steady_s)
        # By turns: neither many gaps, nor one that cannot be read, keep the near pass from its
        # turn; nor does that keep them from theirs.
        sweep_due_s = self.sweep_due_s(now_ms, steady_s)
        # Nor does one that cannot be read keep the sweep from its turn.
        others_turn = near_due_s <= 0 or (sweep_due_s <= 0 and self._gap_failed)
        gap_turn = not (self._after_gap and others_turn)
        if gap_turn and (self._gap is not None or (ready and gap_due_s <= 0)):
            self._after_gap = self._gap_failed = True  # until it is done
            return self.gap(ready, steady_s)
        self._after_gap = False
        if near_due_s <= 0:
            return self.near(now_ms, steady_s)
        if sweep_due_s <= 0:
            return self.sweep(now_ms, steady_s)
        waits = [near_due_s, sweep_due_s]
        if ready:
            waits.append(gap_due_s)
        return min(waits)

    def done(self, window: Window, ended_s: float) -> None:
        """All of ``window`` is durable on the event log; ``ended_s``: the steady clock now."""
        left = None
        if not window.last:
            left = _Walk(window.to_ms, window.goal_ms, window.begun_s, window.gaps)
        if window.kind == "gap":
            self._gap, self._gap_failed = left, False
            if left is None:
                self._gap_s = None if self._more_gaps else ended_s
        elif window.kind == "sweep":
            self._sweep = left
            if left is None:
                self.swept_ms, self._sweep_s = window.goal_ms, window.begun_s
        else:
            self.watermark_ms = window.to_ms
            if left is None:
                # A pass that takes longer than `every_s` leaves time for the sweep all the same.
                pause_s = min(1.0, self._every_s)
                self.near_s = max(window.begun_s, ended_s - self._every_s + pause_s)
                if self.swept_ms is None:  # the first pass of all has read deep enough
                    self.swept_ms, self._sweep_s = window.goal_ms, window.begun_s

    def near(self, now_ms: int, steady_s: float) -> Window:
        """The next window of the near pass, due or not."""
        goal_ms = now_ms - self._lag_ms
        if self.watermark_ms is None:
            from_ms = base_ms = goal_ms - self._first_read_ms
        elif self.watermark_ms > goal_ms:
            # Our clock was ahead then, or is behind now: that mark means nothing.
            deep_ms = max(self._overlap_ms, self._sweep_overlap_ms, self._first_read_ms)
            from_ms = base_ms = goal_ms - deep_ms
        else:
            base_ms = self.watermark_ms
            from_ms = base_ms - self._overlap_ms
        return Window(
            kind="near",
            from_ms=from_ms,
            to_ms=min(goal_ms, base_ms + self._slice_ms),
            goal_ms=goal_ms,
            begun_s=steady_s,
        )

    def sweep(self, now_ms: int, steady_s: float) -> Window:
        """The next window of the deep sweep, due or not."""
        walk = self._sweep
        if walk is None:
            goal_ms = now_ms - self._lag_ms
            from_ms = goal_ms - self._sweep_overlap_ms
            if self.swept_ms is not None:
                from_ms = min(from_ms, self.swept_ms - self._depth_ms)
            walk = _Walk(from_ms, goal_ms, steady_s)
        return self._slice("sweep", walk)

    def ready(self, gaps: Sequence[Gap], now_ms: int) -> list[Gap]:
        """Those that are over, and whose calls are listed by now."""
        goal_ms = now_ms - self._lag_ms
        return [gap for gap in gaps if gap.to_ms is not None and gap.end_ms <= goal_ms]

    def gap(self, ready: Sequence[Gap], steady_s: float) -> Window:
        """The next window of the gap that is being read, else of the first of these."""
        walk = self._gap
        if walk is None:
            # Those that lie so close that they would be read twice are read as one.
            first, *others = sorted(ready, key=lambda gap: gap.from_ms)
            together, to_ms = [first], first.end_ms
            for gap in others:
                if gap.from_ms - self._overlap_ms > to_ms:
                    break
                together.append(gap)
                to_ms = max(to_ms, gap.end_ms)
            self._more_gaps = len(together) < len(ready)
            from_ms = first.from_ms - self._overlap_ms
            walk = _Walk(from_ms, to_ms + 1, steady_s, tuple(together))
        return self._slice("gap", walk)

    def _slice(self, kind: Literal["gap", "sweep"], walk: _Walk) -> Window:
        return Window(
            kind=kind,
            from_ms=walk.at_ms,
            to_ms=min(walk.goal_ms, walk.at_ms + self._slice_ms),
            goal_ms=walk.goal_ms,
            begun_s=walk.begun_s,
            gaps=walk.gaps,
        )

    def sweep_due_s(self, now_ms: int, steady_s: float) -> float:
        """In how many seconds a sweep is due; 0 or less: now."""
        if self._sweep is not None:
            return 0.0
        if self._sweep_s is not None:
            return self._due_s(self._sweep_s, self._sweep_every_s, steady_s)
        goal_ms = now_ms - self._lag_ms
        if self.swept_ms is None or self.swept_ms > goal_ms:
            return 0.0
        return self._sweep_every_s - (goal_ms - self.swept_ms) / 1000

    @staticmethod
    def _due_s(last_s: float | None, every_s: float, steady_s: float) -> float:
        return 0.0 if last_s is None else last_s + every_s - steady_s


def _ms(seconds: float) -> int:
    """At least one, so that no window is empty."""
    return max(1, round(seconds * 1000))

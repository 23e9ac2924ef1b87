"""Which way the records of one topic go: straight to Kafka, or by way of the spool.

Pure: no Kafka, no disk, no clock. Whoever drives it calls each method in the turn of the event
loop in which the thing happens, and does what it returns before that turn ends.

Why the order holds. One sender takes a topic's groups one after the other, and goes on with one
until Kafka has taken it, also after it was given up: so what lands late lands before everything
that is sent after it. What is given up goes to the spool in order, before anything newer, and
everything newer goes behind it for as long as the spool holds something. So the topic gets one
sequence twice at most, each time in order and from one beginning: first occurrences stand in
order. The way becomes direct again in the very turn that takes the last record off the spool,
when no append is under way; what comes then is sent behind it. Under a steady load that moment
would never come: so once the end is near, what is new is held, neither sent nor appended, until
the spool is empty or takes too long to be.
"""

from collections import deque
from typing import Generic, TypeVar

G = TypeVar("G")


class Switch(Generic[G]):
    """The state of one topic's way; ``G`` is a group of records that settle together."""

    def __init__(self, *, stored_to: int = 0, drained_to: int = 0) -> None:
        """Positions of the spool: the last that is stored, and the last that Kafka has."""
        self.stored_to = stored_to
        self.drained_to = drained_to
        #: Something is in the spool, or on its way there: nothing may be sent that is newer.
        self.spooled = stored_to > drained_to
        #: What is new waits for the spool to be empty.
        self.holding = False
        #: Groups that nobody has begun to send; the last may still grow.
        self.waiting: deque[G] = deque()
        self.in_flight: G | None = None
        self._appending = 0

    @property
    def appends(self) -> bool:
        """Whether what is new goes to the spool; else it goes to `waiting`."""
        return self.spooled and not self.holding

    def next(self) -> G | None:
        """The group to send now, if any: one is in flight at a time."""
        if self.spooled or self.in_flight is not None or not self.waiting:
            return None
        self.in_flight = self.waiting.popleft()
        return self.in_flight

    def acked(self, group: G) -> bool:
        """Kafka has taken ``group``. False: too late, it has been given up."""
        if self.in_flight is not group:
            return False
        self.in_flight = None
        return True

    def give_up(self) -> list[G]:
        """Kafka takes too long: what to append to the spool, now and in this order.

        Each counts as an append under way until `appended` is told what became of it.
        """
        moved = [*self.waiting] if self.in_flight is None else [self.in_flight, *self.waiting]
        self.in_flight = None
        self.waiting.clear()
        self.holding = False
        self._appending += len(moved)
        self.spooled = self.spooled or bool(moved)
        return moved

    def hold(self) -> None:
        """The spool is nearly empty: from now on what is new waits for the rest to be drained.

        Whoever says so says `give_up` if that takes too long.
        """
        self.holding = self.spooled

    def appending(self) -> None:
        """A newer group is appended to the spool in this turn."""
        self._appending += 1

    def appended(self, position: int | None) -> None:
        """An append is done, the spool now holding records up to ``position``; None: it failed."""
        self._appending -= 1
        if position is not None:
            self.stored_to = max(self.stored_to, position)
        self._reopen()

    def drained(self, position: int) -> None:
        """Kafka has everything on the spool up to ``position``."""
        self.drained_to = max(self.drained_to, position)
        self._reopen()

    def exhausted(self, stored_to: int) -> None:
        """Of what was stored up to ``stored_to`` nothing is left that can be read."""
        if self.stored_to == stored_to:
            self.stored_to = self.drained_to
        self._reopen()

    def _reopen(self) -> None:
        if self._appending == 0 and self.drained_to >= self.stored_to:
            self.spooled = self.holding = False

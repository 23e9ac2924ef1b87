"""The way of a topic's records, model-checked: two promises, whatever happens in whatever order.

What was acknowledged is on the log in the end; and what was acknowledged before something else
was published stands before it there, by first occurrences. Kafka, the spool, crashes and late
acknowledgements are played here; no I/O, no clock.
"""

from collections.abc import Callable
from dataclasses import dataclass, field

import pytest
from hypothesis import Phase, settings, target
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    precondition,
    rule,
    run_state_machine_as_test,
)

from ingest.eventlog.switch import Switch

SETTINGS = settings(max_examples=150, stateful_step_count=50)
#: For what errs: nobody wants to see the smallest example.
FINDING = settings(SETTINGS, max_examples=5000, database=None, phases=[Phase.generate])


@dataclass(eq=False)
class Batch:
    """Records that settle together: a group on its way, or a chunk off the spool."""

    items: list[int]
    #: Of a chunk: the position of its last record.
    position: int | None = None


@dataclass
class Disk:
    """What survives a crash."""

    rows: list[tuple[int, int]] = field(default_factory=list)
    drained_to: int = 0

    @property
    def stored_to(self) -> int:
        return self.rows[-1][0] if self.rows else 0


class Way(RuleBasedStateMachine):
    """One topic, its switch, and everything around it."""

    make_switch: Callable[..., Switch[Batch]] = Switch

    def __init__(self) -> None:
        super().__init__()
        self.log: list[int] = []
        self.disk = Disk()
        self.appends: list[Batch] = []
        #: What the sender has sent and waits for; whether Kafka has it.
        self.sent: Batch | None = None
        self.landed = False
        #: Sent by a producer that is gone: it may still land, once.
        self.ghosts: list[Batch] = []
        self.published = 0
        self.step = 0
        self.published_at: dict[int, int] = {}
        self.acknowledged_at: dict[int, int] = {}

    @initialize()
    def start(self) -> None:
        disk = self.disk
        self.switch = self.make_switch(stored_to=disk.stored_to, drained_to=disk.drained_to)

    # What providers do

    @rule(joins=st.booleans())
    def publish(self, joins: bool) -> None:  # noqa: FBT001
        self.step += 1
        self.published += 1
        item = self.published
        self.published_at[item] = self.step
        if self.switch.appends:
            self.switch.appending()
            self.appends.append(Batch([item]))
        elif joins and self.switch.waiting:
            self.switch.waiting[-1].items.append(item)
        else:
            self.switch.waiting.append(Batch([item]))

    # What the sender does

    @precondition(lambda self: self.sent is None)
    @rule(rows=st.integers(1, 3))
    def send(self, rows: int) -> None:
        self.landed = False
        if not self.switch.spooled:
            self.sent = self.switch.next()
            return
        chunk = [row for row in self.disk.rows if row[0] > self.switch.drained_to][:rows]
        if chunk:
            self.sent = Batch([item for _, item in chunk], chunk[-1][0])

    @precondition(lambda self: self.sent is None and self.switch.spooled)
    @rule()
    def find_nothing(self) -> None:
        stored_to = self.switch.stored_to
        if not any(position > self.switch.drained_to for position, _ in self.disk.rows):
            self.switch.exhausted(stored_to)

    @precondition(lambda self: self.sent is not None and not self.landed)
    @rule()
    def land(self) -> None:
        assert self.sent is not None
        self.log += self.sent.items
        self.landed = True

    @precondition(lambda self: self.sent is not None and self.landed)
    @rule()
    def ack(self) -> None:
        batch, self.sent = self.sent, None
        assert batch is not None
        if batch.position is not None:
            self.switch.drained(batch.position)
        elif self.switch.acked(batch):
            self.acknowledge(batch)

    # What goes wrong

    @rule()
    def deadline(self) -> None:
        if self.switch.in_flight is not None:
            self.appends += self.switch.give_up()

    @rule()
    def hold(self) -> None:
        self.switch.hold()

    @precondition(lambda self: self.switch.holding)
    @rule()
    def hold_takes_too_long(self) -> None:
        self.appends += self.switch.give_up()

    @rule()
    def producer_breaks(self) -> None:
        self.leave_ghost()
        self.appends += self.switch.give_up()

    @precondition(lambda self: self.ghosts)
    @rule(data=st.data())
    def ghost_lands(self, data: st.DataObject) -> None:
        self.log += self.ghosts.pop(data.draw(st.integers(0, len(self.ghosts) - 1))).items

    @rule(data=st.data())
    def crash(self, data: st.DataObject) -> None:
        self.leave_ghost()
        for batch in self.appends[: data.draw(st.integers(0, len(self.appends)))]:
            self.store(batch)
        self.appends.clear()
        self.start()

    def leave_ghost(self) -> None:
        if self.sent is not None and not self.landed:
            self.ghosts.append(self.sent)
        self.sent = None

    # What the spool does

    @precondition(lambda self: self.appends)
    @rule()
    def append_succeeds(self) -> None:
        batch = self.appends.pop(0)
        self.switch.appended(self.store(batch))
        self.acknowledge(batch)

    @precondition(lambda self: self.appends)
    @rule(turns_up=st.booleans())
    def append_fails(self, turns_up: bool) -> None:  # noqa: FBT001
        batch = self.appends.pop(0)
        if turns_up:  # a flush failed, and the rows are there all the same
            self.store(batch)
        self.switch.appended(None)

    @rule(back=st.integers(0, 3))
    def remember_place(self, back: int) -> None:
        self.disk.drained_to = max(self.disk.drained_to, self.switch.drained_to - back)

    def store(self, batch: Batch) -> int:
        for item in batch.items:
            self.disk.rows.append((self.disk.stored_to + 1, item))
        return self.disk.stored_to

    # What is promised

    def acknowledge(self, batch: Batch) -> None:
        self.step += 1
        for item in batch.items:
            self.acknowledged_at.setdefault(item, self.step)

    def teardown(self) -> None:
        if not hasattr(self, "switch"):
            return
        target(float(len(self.acknowledged_at)))
        self.come_to_rest()
        first: dict[int, int] = {}
        for place, item in enumerate(self.log):
            first.setdefault(item, place)
        assert self.acknowledged_at.keys() <= first.keys(), "acknowledged and lost"
        for earlier, acknowledged in self.acknowledged_at.items():
            for later, published in self.published_at.items():
                if acknowledged < published and later in first:
                    assert first[earlier] < first[later], f"{later} stands before {earlier}"

    def come_to_rest(self) -> None:
        """Everything works from here on."""
        for _ in range(1000):
            if self.appends:
                self.append_succeeds()
            elif self.sent is not None:
                if not self.landed:
                    self.land()
                self.ack()
            elif self.switch.spooled or self.switch.waiting:
                self.send(100)
                if self.sent is None:
                    self.find_nothing()
            else:
                return
        raise AssertionError("it never comes to rest")


TestWay = Way.TestCase
TestWay.settings = SETTINGS


# Ways to get it wrong, each of which has to be found out.


class LateSwitch(Switch[Batch]):
    """Decides to be direct, and is, but a turn of the loop later."""

    due = False

    def _reopen(self) -> None:
        before = self.spooled
        super()._reopen()
        if before and not self.spooled:
            self.spooled, self.due = True, True


class LateWay(Way):
    make_switch = LateSwitch

    @rule()
    def a_turn_later(self) -> None:
        assert isinstance(self.switch, LateSwitch)
        if self.switch.due:
            self.switch.spooled = self.switch.due = False

    def come_to_rest(self) -> None:
        self.a_turn_later()
        super().come_to_rest()


class HastySwitch(Switch[Batch]):
    """Is direct although something is being appended."""

    def _reopen(self) -> None:
        if self.drained_to >= self.stored_to:
            self.spooled = False


class HastyWay(Way):
    make_switch = HastySwitch


class TrustingSwitch(Switch[Batch]):
    """Takes a late acknowledgement for one that counts, and goes on as if nothing waited."""

    def acked(self, group: Batch) -> bool:
        super().acked(group)
        self.spooled = False
        return True


class TrustingWay(Way):
    make_switch = TrustingSwitch


class BlindSwitch(Switch[Batch]):
    """Does not look into the spool at the start."""

    def __init__(self, **_: int) -> None:
        super().__init__()


class BlindWay(Way):
    make_switch = BlindSwitch


@pytest.mark.parametrize("way", [LateWay, HastyWay, TrustingWay, BlindWay])
def test_a_switch_that_errs_is_found_out(way: type[Way]) -> None:
    with pytest.raises(AssertionError, match=r"stands before|lost|rest"):
        run_state_machine_as_test(way, settings=FINDING)

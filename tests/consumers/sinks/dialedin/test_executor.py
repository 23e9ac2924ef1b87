"""Each command has its effect, and no lead is made twice: whatever breaks, and wherever.

Against a simulated DialedIn on a real socket, with the real client and the real ledger.
"""

import asyncio
import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import stamina
from msgspec.structs import replace

from consumers.sinks.dialedin.executor import Executor, KeyRefusedError
from consumers.sinks.dialedin.ledger import Ledger, LedgerError
from consumers.sinks.dialedin.rules import Command, Dnc, Lead, Update, opt_out_pending
from consumers.subscribe import NotNowError
from ingest.api import ApiError
from ingest.providers.dialedin.api import FailedError, open_api
from ingest.settings import Connection
from ingest.simulator.dialedin_server import SimulatedDialedIn, simulated_dialedin
from ingest.simulator.faults import Faults

NUMBER = "5551230001"
FIELDS = {"FirstName": "Example", "LastName": "Customer"}
DNC = Dnc("dnc", NUMBER)
LEAD = Lead("lead", NUMBER, "dialstream-1", FIELDS, dial=False)
UPDATE = Update("update", NUMBER, FIELDS)
LOOK_AFTER_S = 60.0

#: A lead that somebody else has made.
THERE = {"Campaign": "Example Campaign", "PrimaryPhone": NUMBER, "ImportOnly": "1"}
CLIENT = {"ClientId": "dialstream-1"}


@pytest.fixture(autouse=True)
def _no_backoff() -> Iterator[None]:
    with stamina.set_testing(testing=True, attempts=2):
        yield


class CrashError(BaseException):
    """The process is gone."""


class Crashes:
    """Counts the steps of a life, and ends it at one of them."""

    def __init__(self, at: int | None) -> None:
        self.at = at
        self.steps = 0

    def step(self) -> None:
        self.steps += 1
        if self.steps == self.at:
            raise CrashError

    def around(self, thing: Any) -> Any:
        """``thing``, whose calls are steps: before they begin, and before anybody hears of it."""
        return _Around(thing, self)


class _Around:
    def __init__(self, thing: Any, crashes: Crashes) -> None:
        self._thing = thing
        self._crashes = crashes

    def __getattr__(self, name: str) -> Callable[..., Any]:
        call = getattr(self._thing, name)

        async def stepping(*args: Any, **more: Any) -> Any:
            self._crashes.step()
            result = await call(*args, **more)
            self._crashes.step()
            return result

        return stepping


class Bench:
    """One account, one ledger, a clock that is moved by hand, and as many lives as are needed."""

    def __init__(self, dialedin: SimulatedDialedIn, path: Path) -> None:
        self.dialedin = dialedin
        self.path = path
        self.now_ms = 1_790_000_000_000

    @asynccontextmanager
    async def life(
        self, crashes: Crashes | None = None, *, timeout_s: float = 15, sure_from_ms: int = 0
    ) -> AsyncIterator[Executor]:
        crashes = crashes or Crashes(None)
        ledger = Ledger.open(self.path)
        connection = Connection.model_validate(
            {
                "provider": "dialedin",
                "api_key": self.dialedin.token,
                "account_id": self.dialedin.account,
                "base_url": self.dialedin.base_url,
                "sink": {"requests_per_s": 20},
                "assume": {"timeout_s": timeout_s},
            }
        )
        try:
            async with open_api("floor", connection) as api:
                yield Executor(
                    "floor",
                    crashes.around(api),
                    crashes.around(ledger),
                    campaign="Example Campaign",
                    look_after_s=LOOK_AFTER_S,
                    sure_from_ms=sure_from_ms,
                    clock_ms=lambda: self.now_ms,
                )
        finally:
            await ledger.close()

    def lose_ledger(self) -> None:
        for file in self.path.parent.iterdir():
            file.unlink()

    async def patiently(self, command: Command) -> str:
        """As the library does: again when it says so, by a clock that does not wait."""
        for _ in range(20):
            async with self.life() as executor:
                try:
                    return await executor.carry_out(command)
                except NotNowError as error:
                    self.now_ms += round(error.after_s * 1000)
        raise AssertionError("it is never done")


@asynccontextmanager
async def bench(tmp_path: Path) -> AsyncIterator[Bench]:
    async with simulated_dialedin(faults=Faults(answers_lost_s=30)) as dialedin:
        yield Bench(dialedin, tmp_path / "floor.sqlite")


async def test_each_is_done_once_however_often_it_is_told(tmp_path: Path) -> None:
    async with bench(tmp_path) as it:
        for command in (DNC, LEAD, UPDATE):
            assert await it.patiently(command) == "ok"
            assert await it.patiently(command) == "repeat"
        heard = [each.action for each in it.dialedin.heard]
        assert heard == ["InsertDnc", "SearchLead", "InjectLead", "SearchLead", "UpdateLead"]
        [lead] = it.dialedin.floor.leads
        assert lead.fields["ClientId"] == "dialstream-1"
        assert it.dialedin.floor.rung == []


@pytest.mark.parametrize("command", [DNC, LEAD, UPDATE], ids=lambda each: each.action)
@pytest.mark.parametrize("fault", [None, "answers_lost", "undone", "cut"])
async def test_a_crash_at_any_step_loses_nothing_and_makes_no_second_lead(
    tmp_path: Path, command: Command, fault: str | None
) -> None:
    timeout_s = 15 if fault is None else 0.5
    for at in itertools.count(1):
        path = tmp_path / str(at)
        path.mkdir()
        async with bench(path) as it:
            if isinstance(command, Update):
                it.dialedin.floor.inject(THERE)
            before = len(it.dialedin.floor.leads)
            crashes = Crashes(at)
            if fault is not None:
                # The last request of the life is the one that acts.
                it.dialedin.faults.force(fault, after=0 if isinstance(command, Dnc) else 1)
            try:
                async with it.life(crashes, timeout_s=timeout_s) as executor:
                    await executor.carry_out(command)
                crashed = False
            except CrashError:
                crashed = True
            except NotNowError as error:
                crashed = False
                it.now_ms += round(error.after_s * 1000)
            if fault is not None:
                it.dialedin.faults.force(fault, 0)
            # It was not committed, so it comes again; and again, as a repeat would.
            await it.patiently(command)
            assert await it.patiently(command) == "repeat"
            floor = it.dialedin.floor
            if isinstance(command, Dnc):
                assert floor.dnc == {NUMBER}
            elif isinstance(command, Lead):
                assert len(floor.leads) == len(floor.injected) == 1
                assert it.dialedin.commands["InjectLead failed"] == 0, "nor did it try to"
            else:
                assert len(floor.leads) == before
                assert floor.leads[0].fields["FirstName"] == "Example"
            assert floor.rung == []
        if not crashed and crashes.steps < at:
            assert at > 3
            return


async def test_after_a_lost_answer_it_is_looked_for_a_while_later_and_not_made_before(
    tmp_path: Path,
) -> None:
    for fault, outcome, leads in (("answers_lost", "found", 1), ("undone", "ok", 0)):
        path = tmp_path / fault
        path.mkdir()
        async with bench(path) as it:
            it.dialedin.faults.force(fault, after=1)
            async with it.life(timeout_s=2) as executor:
                with pytest.raises(NotNowError):
                    await executor.carry_out(LEAD)
                assert len(it.dialedin.floor.leads) == leads
                heard = len(it.dialedin.heard)
                it.now_ms += 1000
                with pytest.raises(NotNowError) as raised:
                    await executor.carry_out(LEAD)
                assert raised.value.after_s == LOOK_AFTER_S - 1
                assert len(it.dialedin.heard) == heard, "it was not even looked for"
                it.now_ms += round(LOOK_AFTER_S * 1000)
                assert await executor.carry_out(LEAD) == outcome
            assert len(it.dialedin.floor.injected) == 1


async def test_a_clock_that_was_set_back_keeps_no_lead_for_long(tmp_path: Path) -> None:
    async with bench(tmp_path) as it:
        it.dialedin.faults.force("undone", after=1)
        async with it.life(timeout_s=2) as executor:
            with pytest.raises(NotNowError):
                await executor.carry_out(LEAD)
        it.now_ms -= 24 * 3_600_000
        async with it.life() as executor:
            assert await executor.carry_out(LEAD) == "ok"
        assert len(it.dialedin.floor.injected) == 1


async def test_a_lost_ledger_makes_no_second_lead(tmp_path: Path) -> None:
    async with bench(tmp_path) as it:
        assert await it.patiently(LEAD) == "ok"
        it.lose_ledger()
        assert await it.patiently(LEAD) == "found"
        assert len(it.dialedin.floor.injected) == 1


async def test_what_another_one_may_have_begun_is_not_made_before_that_can_be_known(
    tmp_path: Path,
) -> None:
    async with bench(tmp_path) as it:
        assert await it.patiently(replace(LEAD, key="done", client_id="dialstream-0")) == "ok"
        sure_from_ms = it.now_ms + 20_000
        async with it.life(sure_from_ms=sure_from_ms) as executor:
            with pytest.raises(NotNowError) as raised:
                await executor.carry_out(LEAD)
            assert raised.value.after_s == 20
            assert len(it.dialedin.floor.leads) == 1
            assert await executor.carry_out(replace(LEAD, key="done")) == "repeat"
            assert await executor.carry_out(DNC) == "ok", "opt-outs wait for nothing"
            # It was under way: DialedIn has made it meanwhile.
            it.dialedin.floor.inject(THERE | {"PrimaryPhone": "5551230002", **CLIENT})
            it.now_ms += 20_000
            assert await executor.carry_out(LEAD) == "found"


async def test_conversations_that_were_joined_are_one_lead(tmp_path: Path) -> None:
    joined = replace(
        LEAD, key="other", client_id="dialstream-2", former=(("lead", "dialstream-1"),)
    )
    async with bench(tmp_path) as it:
        assert await it.patiently(LEAD) == "ok"
        assert await it.patiently(joined) == "repeat"
        it.lose_ledger()
        assert await it.patiently(joined) == "found"
        assert len(it.dialedin.floor.injected) == 1


async def test_a_search_that_says_nothing_makes_no_lead(tmp_path: Path) -> None:
    for fault in ("odd_texts", "html", "broken", "limited", "cut"):
        path = tmp_path / fault
        path.mkdir()
        async with bench(path) as it:
            setattr(it.dialedin.faults, fault, 1.0)
            async with it.life() as executor:
                with pytest.raises((NotNowError, FailedError)):
                    await executor.carry_out(LEAD)
            assert it.dialedin.floor.injected == []
            setattr(it.dialedin.faults, fault, 0.0)
            assert await it.patiently(LEAD) == "ok"


async def test_an_odd_answer_to_an_injection_makes_no_second_one(tmp_path: Path) -> None:
    async with bench(tmp_path) as it:
        it.dialedin.faults.force("odd_texts", after=1)
        async with it.life() as executor:
            with pytest.raises(FailedError):
                await executor.carry_out(LEAD)
        assert await it.patiently(LEAD) == "found"
        assert len(it.dialedin.floor.injected) == 1


async def test_nobody_is_rung_whose_opt_out_was_not_taken_yet(tmp_path: Path) -> None:
    async with bench(tmp_path) as it:
        it.dialedin.faults.force("undone")
        async with it.life() as executor:
            with pytest.raises(NotNowError):
                await executor.carry_out(DNC)
        async with it.life() as executor:
            assert await executor.carry_out(replace(LEAD, dial=True)) == "ok"
            assert len(it.dialedin.floor.leads) == 1
            assert it.dialedin.floor.rung == []
            other = Lead("other", "5551230002", "dialstream-2", FIELDS, dial=True)
            assert await executor.carry_out(other) == "ok"
            assert len(it.dialedin.floor.rung) == 1
            assert await executor.carry_out(DNC) == "ok"
        assert it.dialedin.floor.dnc == {NUMBER}
        ledger = Ledger.open(it.path)
        try:
            assert await ledger.entries([opt_out_pending(NUMBER)]) == {}
        finally:
            await ledger.close()


async def test_after_a_no_it_is_tried_again_without_a_wait(tmp_path: Path) -> None:
    async with bench(tmp_path) as it:
        it.dialedin.floor.campaigns = frozenset()
        async with it.life() as executor:
            for _ in range(2):
                with pytest.raises(FailedError):
                    await executor.carry_out(LEAD)
            it.dialedin.floor.campaigns = frozenset(["Example Campaign"])
            assert await executor.carry_out(LEAD) == "ok"
        assert len(it.dialedin.sent("SearchLead")) == 3, "it was looked for each time"


async def test_a_number_that_the_campaign_has_is_done_and_nothing_is_made(tmp_path: Path) -> None:
    async with bench(tmp_path) as it:
        it.dialedin.floor.inject(THERE)
        assert await it.patiently(LEAD) == "duplicate"
        assert len(it.dialedin.floor.leads) == 1


async def test_who_is_no_lead_is_not_updated(tmp_path: Path) -> None:
    async with bench(tmp_path) as it:
        assert await it.patiently(UPDATE) == "no_lead"
        assert it.dialedin.sent("UpdateLead") == []


async def test_a_refused_token_stops_everything_and_is_no_failure_of_the_command(
    tmp_path: Path,
) -> None:
    async with bench(tmp_path) as it:
        it.dialedin.faults.key_revoked = True
        async with it.life() as executor:
            for command in (DNC, LEAD, UPDATE):
                with pytest.raises(KeyRefusedError):
                    await executor.carry_out(command)
            it.dialedin.faults.key_revoked = False
            assert await executor.carry_out(DNC) == "ok"


async def test_it_waits_longer_each_time_and_goes_on_at_once(tmp_path: Path) -> None:
    async with bench(tmp_path) as it:
        it.dialedin.faults.html = 1.0
        async with it.life() as executor:
            waits = []
            for _ in range(8):
                with pytest.raises(NotNowError) as raised:
                    await executor.carry_out(DNC)
                waits.append(raised.value.after_s)
            assert waits == [1, 2, 4, 8, 16, 32, 60, 60]
            it.dialedin.faults.html = 0.0
            assert await executor.carry_out(DNC) == "ok"
            it.dialedin.faults.html = 1.0
            with pytest.raises(NotNowError) as raised:
                await executor.carry_out(UPDATE)
            assert raised.value.after_s == 1


class Saying:
    """An API that says the same of everything."""

    def __init__(self, error: ApiError) -> None:
        self._error = error

    async def insert_dnc(self, _: str) -> Any:
        raise self._error


@pytest.mark.parametrize("reason", ["unauthorized", "forbidden"])
async def test_no_right_to_do_it_is_no_bad_weather(tmp_path: Path, reason: Any) -> None:
    async with bench(tmp_path) as it, it.life() as executor:
        executor._api = Saying(ApiError(reason, said="no"))  # type: ignore[assignment]
        with pytest.raises(KeyRefusedError) as raised:
            await executor.carry_out(DNC)
        assert raised.value.said == "no"


async def test_who_wants_to_be_left_alone_is(tmp_path: Path) -> None:
    async with bench(tmp_path) as it, it.life() as executor:
        executor._api = Saying(ApiError("rate_limited", retry_after_s=45))  # type: ignore[assignment]
        with pytest.raises(NotNowError) as raised:
            await executor.carry_out(DNC)
        assert raised.value.after_s == 45


async def test_without_a_ledger_nothing_is_sent(tmp_path: Path) -> None:
    async with bench(tmp_path) as it, it.life() as executor:

        class Full:
            async def entries(self, _: Any) -> Any:
                return {}

            async def begin(self, *_: Any) -> None:
                raise LedgerError("FullError")

        executor._ledger = Full()  # type: ignore[assignment]
        with pytest.raises(LedgerError):
            await executor.carry_out(LEAD)
        assert it.dialedin.floor.injected == []


async def test_in_bad_weather_everybody_is_told_once(tmp_path: Path) -> None:
    """Leads and opt-outs side by side, in many lives, with whatever may go wrong going wrong."""
    numbers = [f"555123{nth:04d}" for nth in range(24)]
    commands: list[Command] = [
        *(Lead(f"lead {n}", n, f"dialstream-{n}", FIELDS, dial=False) for n in numbers),
        *(Dnc(f"dnc {n}", n) for n in numbers),
    ]
    async with bench(tmp_path) as it:
        for fault in ("answers_lost", "undone", "cut", "odd_texts", "html", "broken", "limited"):
            setattr(it.dialedin.faults, fault, 0.06)
        left = commands
        for _ in range(60):
            async with it.life(timeout_s=0.5) as executor:
                done = await asyncio.gather(
                    *(executor.carry_out(each) for each in left), return_exceptions=True
                )
            for outcome in done:
                assert isinstance(outcome, str | NotNowError | FailedError), outcome
            left = [
                each
                for each, outcome in zip(left, done, strict=True)
                if not isinstance(outcome, str)
            ]
            it.now_ms += round(LOOK_AFTER_S * 1000)
            if not left:
                break
        assert not left
        floor = it.dialedin.floor
        assert sorted(lead.fields["PrimaryPhone"] for lead in floor.leads) == numbers
        assert floor.dnc == set(numbers)
        assert floor.rung == []
        assert it.dialedin.commands["InjectLead failed"] == 0, "nor was a second one tried"
        assert it.dialedin.faults.counts.keys() >= {"answers_lost", "undone"}

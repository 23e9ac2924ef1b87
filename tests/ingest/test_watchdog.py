"""The watchdog tells what is wrong at Dialpad when it begins and when it ends, and never dies."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from ingest.eventlog.kinds import open_log
from ingest.metrics import SUBSCRIPTION_DRIFT
from ingest.providers.dialpad.api import open_api
from ingest.providers.dialpad.subscriptions import desired
from ingest.providers.dialpad.sync import look, synchronize
from ingest.runner import Stopping
from ingest.service import Service
from ingest.settings import Settings
from ingest.simulator.dialpad_rest import Rates
from ingest.simulator.dialpad_server import SimulatedDialpad, simulated_dialpad
from ingest.watchdog import watch
from tests.ingest.scripted import Scripted, answer, scripted
from tests.kit import OTHER_SECRET, SECRET

SOON_S = 30.0

OURS = ("subscription_drift", "subscriptions_in_order", "subscriptions_not_read")


@pytest.fixture
async def dialpad() -> AsyncIterator[SimulatedDialpad]:
    async with simulated_dialpad(pace=None, rates=Rates(company_per_s=10_000)) as running:
        yield running


@pytest.fixture(autouse=True)
def without_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    async def at_once(*_: object) -> None:
        pass

    monkeypatch.setattr("ingest.api.take_turn", at_once)
    monkeypatch.setattr("ingest.api.ATTEMPTS", 1)


def settings_for(
    dialpad: SimulatedDialpad | Scripted | None, path: Path, name: str, **more: Any
) -> Settings:
    at: dict[str, str] = {}
    if isinstance(dialpad, SimulatedDialpad):
        at = {"api_key": dialpad.api_key, "base_url": dialpad.base_url}
    elif dialpad is not None:
        at = {"api_key": "a-key", "base_url": dialpad.url}
    connection = {
        "provider": "dialpad",
        "secrets": [SECRET],
        **at,
        "public_url": "https://hooks.example.com",
        **more,
    }
    return Settings.model_validate(
        {"eventlog": {"path": path / "data"}, "connections": {name: connection}}
    )


async def sync(settings: Settings, name: str) -> None:
    class Nobody:
        def planned(self, plan: object) -> None: ...
        def taken(self, step: object) -> None: ...

    connection = settings.connections[name]
    async with open_api(name, connection) as api:
        await synchronize(api, desired(name, connection), await look(api), Nobody())


@asynccontextmanager
async def watching(settings: Settings, *, every_s: float = 0.02) -> AsyncIterator[Stopping]:
    """The role in a process; it has to end with it."""
    async with open_log(settings, "receiver") as eventlog:
        service = Service(settings, eventlog, Stopping(), "")
        watched = asyncio.create_task(watch(service, every_s=every_s))
        try:
            yield service.stopping
        finally:
            service.stopping.ask()
            await asyncio.wait_for(watched, SOON_S)


async def until(condition: Callable[[], Any]) -> None:
    async with asyncio.timeout(SOON_S):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


def lines(logs: list[Any], *events: str) -> list[dict[str, Any]]:
    return [line for line in logs if line["event"] in (events or OURS)]


def gauge(name: str) -> dict[tuple[str, str], float]:
    (family,) = SUBSCRIPTION_DRIFT.collect()
    return {
        (sample.labels["kind"], sample.labels["what"]): sample.value
        for sample in family.samples
        if sample.labels["connection"] == name
    }


async def test_what_is_wrong_is_told_once_and_again_when_it_is_not(
    dialpad: SimulatedDialpad, tmp_path: Path
) -> None:
    settings = settings_for(dialpad, tmp_path, "once")
    await sync(settings, "once")
    store = dialpad.resources
    with capture_logs() as logs:
        async with watching(settings):
            await looked(dialpad, times=2)
            assert lines(logs) == []
            assert not any(gauge("once").values())

            (of_calls,) = store.subscriptions["call"].values()
            of_calls.fields["enabled"] = False
            store.subscriptions["changelog"].clear()
            next(iter(store.webhooks.values())).secret = None
            await until(lambda: len(lines(logs)) >= 3)
            await looked(dialpad, times=2)
            assert sorted((line["kind"], line["what"], line["count"]) for line in lines(logs)) == [
                ("call", "disabled", 1),
                ("call", "unsigned", 1),
                ("changelog", "deleted", 1),
            ]
            assert {line["log_level"] for line in lines(logs)} == {"warning"}
            assert gauge("once")["changelog", "deleted"] == 1

            await sync(settings, "once")
            await until(lambda: lines(logs, "subscriptions_in_order"))
            assert len(lines(logs)) == 4
            assert not any(gauge("once").values())
    text = str(logs)
    assert SECRET not in text
    assert dialpad.api_key not in text


async def looked(dialpad: SimulatedDialpad, *, times: int) -> None:
    """Wait until so many looks have ended that began after this call."""

    def ends() -> int:
        return sum(each.path.endswith("/changelog") for each in dialpad.requests)

    begun = ends()
    await until(lambda: ends() > begun + times)


async def test_a_secret_that_is_not_ours_and_a_doubled_one(
    dialpad: SimulatedDialpad, tmp_path: Path
) -> None:
    settings = settings_for(dialpad, tmp_path, "two")
    await sync(settings, "two")
    store = dialpad.resources
    webhook = next(w for w in store.webhooks.values() if w.hook_url.endswith("/sms"))
    webhook.secret = OTHER_SECRET
    body = {"endpoint_id": webhook.id, "direction": "all", "status": True, "include_internal": True}
    store.create_subscription("sms", body, frozenset())
    with capture_logs() as logs:
        async with watching(settings):
            await until(lambda: len(lines(logs)) == 2)
    assert {(line["kind"], line["what"]) for line in lines(logs)} == {
        ("sms", "foreign_secret"),
        ("sms", "doubled"),
    }


async def test_an_api_that_fails_is_told_once_a_reason_and_looked_at_again(
    dialpad: SimulatedDialpad, tmp_path: Path
) -> None:
    settings = settings_for(dialpad, tmp_path, "trouble")
    await sync(settings, "trouble")
    dialpad.faults.key_revoked = True
    with capture_logs() as logs:
        async with watching(settings):
            await until(lambda: lines(logs, "subscriptions_not_read"))
            dialpad.faults.key_revoked, dialpad.faults.broken = False, 1.0
            await until(lambda: len(lines(logs)) == 2)
            dialpad.faults.broken = 0.0
            await looked(dialpad, times=2)
            dialpad.resources.subscriptions["call"].clear()
            await until(lambda: len(lines(logs)) == 3)
            dialpad.faults.broken = 1.0
            await until(lambda: len(lines(logs)) == 4)
    reasons = [line.get("reason") for line in lines(logs)]
    assert reasons == ["unauthorized", "unavailable", None, "unavailable"]


async def test_a_key_file_that_has_gone_is_no_end(
    dialpad: SimulatedDialpad, tmp_path: Path
) -> None:
    file = tmp_path / "key"
    settings = settings_for(dialpad, tmp_path, "gone", api_key=None, api_key_file=str(file))
    with capture_logs() as logs:
        async with watching(settings):
            await until(lambda: lines(logs, "subscriptions_not_read"))
            file.write_text(dialpad.api_key)
            await until(lambda: lines(logs, "subscription_drift"))
    assert lines(logs)[0]["reason"] == "settings"


@pytest.mark.parametrize("item", [b'{"id":"1","name":"\xff"}', b'{"id":1%s}' % (b"0" * 5000)])
async def test_bytes_in_a_list_that_are_no_json_are_told_and_no_end(
    tmp_path: Path, item: bytes
) -> None:
    async with scripted(answer(200, b'{"items":[%s]}' % item)) as server:
        settings = settings_for(server, tmp_path, "bytes")
        with capture_logs() as logs:
            async with watching(settings):
                await until(lambda: len(server.asked) > 2)
    assert [line["reason"] for line in lines(logs)] == ["unexpected"]


async def test_an_address_that_is_none_is_told_and_no_end(tmp_path: Path) -> None:
    settings = settings_for(None, tmp_path, "nowhere", base_url="https://[::x]", api_key="k")
    with capture_logs() as logs:
        async with watching(settings):
            await until(lambda: lines(logs))
    assert [line["reason"] for line in lines(logs)] == ["settings"]


async def test_a_fault_of_ours_is_told_and_no_end(
    dialpad: SimulatedDialpad, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    faults = iter((RuntimeError("a fault"), KeyError("another")))

    async def look_at(api: Any) -> Any:
        for fault in faults:
            raise fault
        return await look(api)

    monkeypatch.setattr("ingest.watchdog.look", look_at)
    settings = settings_for(dialpad, tmp_path, "fault")
    with capture_logs() as logs:
        async with watching(settings):
            await until(lambda: lines(logs, "subscription_drift"))
    assert [line["log_level"] for line in lines(logs, "unexpected_error")] == ["error", "error"]
    assert lines(logs)[0]["reason"] == "internal"


@pytest.mark.parametrize(
    "more",
    [{"public_url": None}, {"api_key": None}, {"secrets": []}],
)
async def test_connections_that_are_not_for_syncing_are_not_asked_about(
    dialpad: SimulatedDialpad, tmp_path: Path, more: dict[str, Any]
) -> None:
    settings = settings_for(dialpad, tmp_path, "none", **more)
    with capture_logs() as logs:
        async with watching(settings):
            await asyncio.sleep(0.1)
    assert lines(logs) == []
    assert not dialpad.requests


async def test_it_ends_in_the_middle_of_a_look(dialpad: SimulatedDialpad, tmp_path: Path) -> None:
    dialpad.faults.slow, dialpad.faults.slow_s = 1.0, 3600.0
    async with watching(settings_for(dialpad, tmp_path, "slow")):
        await until(lambda: dialpad.requests)

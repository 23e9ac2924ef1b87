"""Signs of life, and the gaps that they tell of."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from signal import SIGTERM
from typing import Any

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from ingest import life
from ingest.checkpoints import read_checkpoints
from ingest.errors import ConfigError
from ingest.eventlog.kinds import open_log, open_reader
from ingest.eventlog.log import EventLog as Log
from ingest.eventlog.log import Record
from ingest.life import signs_of_life
from ingest.runner import Stopping
from ingest.service import Service
from ingest.settings import Connection, EventLog, Settings
from schemas.times import now_ms, rfc3339
from tests.conftest import MakeProduct
from tests.kit import SECRET

SOON_S = 20.0

PUSHED = Connection(provider="dialpad", secrets=(SecretStr("invented"),))
POLLED = Connection(provider="dialpad", api_key=SecretStr("invented"))
BOTH = Connection(
    provider="dialpad", secrets=(SecretStr("invented"),), api_key=SecretStr("invented")
)


def settings_in(path: Path, **connections: Connection) -> Settings:
    return Settings(
        eventlog=EventLog(path=path / "data"), connections=connections or {"acme": BOTH}
    )


@asynccontextmanager
async def opened(settings: Settings) -> AsyncIterator[Service]:
    async with open_log(settings, "receiver") as eventlog:
        yield Service(settings, eventlog, Stopping(), "")


def receiving(service: Service) -> AbstractAsyncContextManager[None]:
    return signs_of_life(service, every_s=0.05, again_s=0.02)


async def signed_ago(log: Log, ago_s: float, connection: str = "acme") -> int:
    """Have some receiver give a sign so long ago; when it was."""
    alive_ms = now_ms() - round(ago_s * 1000)
    value = json.dumps({"alive_ms": alive_ms, "generation": 0, "owner": "host:1"}).encode()
    deadline = asyncio.get_running_loop().time() + SOON_S
    await log.publish([Record("checkpoints", f"{connection}/webhook".encode(), value, ())]).wait(
        deadline
    )
    return alive_ms


async def gaps_on(settings: Settings) -> list[dict[str, Any]]:
    found = []
    async with open_reader(settings, ["gaps"]) as reader:
        while not await reader.caught_up():
            found += [json.loads(r.value or b"") for r in await reader.fetch(wait_s=0.1)]
    return found


async def signs_on(settings: Settings) -> Mapping[str, int]:
    found = await read_checkpoints(settings)
    return {name: at["alive_ms"] for (name, source), at in found.items() if source == "webhook"}


async def until(true: Callable[[], Awaitable[object]]) -> None:
    async with asyncio.timeout(SOON_S):
        while not await true():  # noqa: ASYNC110 - it is somebody else's doing
            await asyncio.sleep(0.01)


async def test_only_what_is_pushed_and_can_be_read_back_has_signs(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, acme=BOTH, pushed=PUSHED, polled=POLLED)
    begun_ms = now_ms()
    async with opened(settings) as service, receiving(service):
        await until(lambda: signs_on(settings))
        signs = await signs_on(settings)
    assert signs.keys() == {"acme"}
    assert begun_ms <= signs["acme"] <= now_ms()
    assert await gaps_on(settings) == []  # there was nobody yet who could have missed something


async def test_signs_go_on_and_the_end_is_one(tmp_path: Path) -> None:
    settings = settings_in(tmp_path)
    seen: set[int] = set()

    async def three() -> bool:
        seen.update((await signs_on(settings)).values())
        return len(seen) >= 3

    async with opened(settings) as service:
        async with receiving(service):
            await until(three)
            ended_ms = now_ms()
        assert (await signs_on(settings))["acme"] >= ended_ms


@pytest.mark.parametrize(
    ("ago_s", "is_gap"), [(0, False), (80, False), (100, True), (86_400 * 30, True)]
)
async def test_a_start_long_after_the_last_sign_opens_a_gap(
    tmp_path: Path, ago_s: float, *, is_gap: bool
) -> None:
    settings = settings_in(tmp_path)
    async with opened(settings) as service:
        last_ms = await signed_ago(service.eventlog, ago_s)
        begun_ms = now_ms()
        async with receiving(service):

            async def signed() -> bool:
                return (await signs_on(settings))["acme"] >= begun_ms

            await until(signed)
    gaps = await gaps_on(settings)
    assert len(gaps) == is_gap
    for gap in gaps:
        assert gap["type"] == "dialstream.gap.opened"
        assert gap["id"] == f"gap:acme:webhook:{last_ms}:opened"
        assert gap["partitionkey"] == "acme"
        assert gap["data"]["channel"] == "webhook"
        assert gap["data"]["from"] == rfc3339(last_ms)
        assert rfc3339(begun_ms) <= gap["data"]["to"] <= rfc3339(now_ms())
        assert gap["data"]["found"] is None


async def test_any_receiver_counts_and_each_connection_for_itself(tmp_path: Path) -> None:
    settings = settings_in(tmp_path, acme=BOTH, line=BOTH)
    async with opened(settings) as service:
        for ago_s in (500, 20):  # one that died, another that goes on
            await signed_ago(service.eventlog, ago_s)
        await signed_ago(service.eventlog, 500, "line")
        async with receiving(service):
            await until(lambda: gaps_on(settings))
    assert [gap["connection"] for gap in await gaps_on(settings)] == ["line"]


async def test_where_the_last_sign_cannot_be_read_none_of_ours_takes_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = settings_in(tmp_path)
    away = asyncio.Event()
    tries = 0

    async def read(settings: Settings) -> Any:
        nonlocal tries
        tries += 1
        if not away.is_set():
            raise ConfigError("kafka: away")
        return await read_checkpoints(settings)

    monkeypatch.setattr(life, "read_checkpoints", read)
    async with opened(settings) as service:
        last_ms = await signed_ago(service.eventlog, 500)

        async def tried() -> bool:
            return tries >= 3

        with capture_logs() as logs:
            async with receiving(service):
                await until(tried)
        assert await signs_on(settings) == {"acme": last_ms}
        assert [(line["event"], line["reason"]) for line in logs] == [
            ("gaps_not_told", "kafka: away")
        ]

        async with receiving(service):
            up_ms = now_ms()
            await asyncio.sleep(0.1)
            away.set()
            await until(lambda: gaps_on(settings))
        [gap] = await gaps_on(settings)
        assert gap["data"]["to"] <= rfc3339(up_ms)  # since then there was a receiver


async def test_a_log_that_does_not_answer_holds_up_neither_start_nor_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def read(_: Settings) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(life, "read_checkpoints", read)
    settings = settings_in(tmp_path)
    async with opened(settings) as service, asyncio.timeout(SOON_S), receiving(service):
        pass
    assert await signs_on(settings) == {}


def test_a_receiver_that_was_away_says_so(make_product: MakeProduct) -> None:
    both = {"provider": "dialpad", "secrets": [SECRET], "api_key": "invented"}
    product = make_product(settings={"connections": {"acme": both}})
    settings = Settings(eventlog=EventLog(path=product.data))

    async def prepare() -> int:
        async with open_log(settings, "receiver") as eventlog:
            return await signed_ago(eventlog, 3600)

    last_ms = asyncio.run(prepare())
    with product:
        asyncio.run(until(lambda: gaps_on(settings)))
        asyncio.run(until(lambda: _newer(settings, last_ms)))
        before_ms = now_ms()
        assert product.stop(SIGTERM) == 0
    [gap] = product.events("gap")
    assert gap["data"]["from"] == rfc3339(last_ms)
    assert asyncio.run(signs_on(settings))["acme"] > before_ms


async def _newer(settings: Settings, than_ms: int) -> bool:
    return (await signs_on(settings))["acme"] > than_ms

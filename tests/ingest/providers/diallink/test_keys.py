"""How long a key lives, and what its user may see."""

import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import stamina
import structlog

from ingest.api import ApiError
from ingest.metrics import REGISTRY
from ingest.providers.diallink import keys
from ingest.providers.diallink.api import DialLinkApi, open_api
from ingest.providers.diallink.keys import KeyWatch, Me, key_expiry, me, watch_of
from ingest.providers.diallink.records import DialLinkRecords, open_records
from ingest.settings import Connection
from tests.ingest.providers.diallink.small_diallink import (
    CALLS,
    KEY,
    KEYS,
    SmallDialLink,
    sample,
    small_diallink,
)

DAY_MS = 24 * 3_600_000

#: That of the samples; date -u -d @1821536000: 2027-09-21T14:13:20Z.
EXPIRES_MS = 1_821_536_000_000

HUB_ME = "/v1/account-hub/users/me"
PHONE_ME = "/v1/phone-system/users/me"

MASKED = "00000000-0000-XXXX-0000-000000000501+00000000-0000-XXXX-0000-00000000"


@pytest.fixture(autouse=True)
def _no_backoff() -> Iterator[None]:
    with stamina.set_testing(testing=True, attempts=1):
        yield


@pytest.fixture(autouse=True)
def _no_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_WATCHES", {})


@asynccontextmanager
async def asking(**more: Any) -> AsyncIterator[tuple[DialLinkApi, SmallDialLink]]:
    async with small_diallink() as server, open_api("line", server.connection(**more)) as api:
        yield api, server


def key(ending: str, expires: object, **more: object) -> dict[str, Any]:
    return {"id": "x", "name": "n", "enabled": True, "key": ending, "expiresAt": expires, **more}


def listed_keys(*found: Any) -> dict[str, Any]:
    return {"data": found, "paging": {"hasNextPage": False}}


def days() -> float | None:
    return REGISTRY.get_sample_value("dialstream_key_expires_days", {"connection": "line"})


class Clock:
    def __init__(self, ms: int) -> None:
        self.ms = ms

    def __call__(self) -> int:
        return self.ms


# Which of the listed keys is ours


async def test_the_sample_of_keys() -> None:
    async with asking() as (api, server):
        server.answers[KEYS] = sample("api-keys-list")
        assert await key_expiry(api) == datetime(2027, 9, 21, 14, 13, 20, tzinfo=UTC)


@pytest.mark.parametrize(
    ("listed", "expires_ms"),
    [
        ([], None),
        ([key(MASKED + "0503", 5000)], None),
        ([key(MASKED + "0503", 4000), key(MASKED + "0502", 5000)], 5000),
        # Several that may be it: the first to expire of those that are enabled.
        ([key(MASKED + "0502", 7000), key("****0502", 6000), key("0502", 8000)], 6000),
        ([key("0502", 5000, enabled=False), key("0502", 9000)], 9000),
        ([key("0502", 5000, enabled=False)], 5000),
        ([key("0502", "1970-01-01T00:00:05Z")], 5000),
        # What says nothing.
        ([key("0502", None), key("0502", "soon"), key("502", 5000), key("", 5000)], None),
        ([{}, 7, None, key("0502", 5000)], 5000),
    ],
)
async def test_ours_is_the_key_with_the_same_end(listed: list[Any], expires_ms: int | None) -> None:
    async with asking() as (api, server):
        server.answers[KEYS] = listed_keys(*listed)
        found = await key_expiry(api)
        assert expires_ms == (None if found is None else round(found.timestamp() * 1000))


async def test_all_pages_of_keys_are_looked_through() -> None:
    async with asking() as (api, server):
        server.cap = 2
        server.lists[KEYS] = [*[key(f"{n:04}", 5000) for n in range(5)], key("0502", 6000)]
        found = await key_expiry(api)
        assert found is not None
        assert found.timestamp() == 6


# The watch


@asynccontextmanager
async def watched(
    now_ms: int = EXPIRES_MS - 40 * DAY_MS, **more: Any
) -> AsyncIterator[tuple[KeyWatch, DialLinkApi, SmallDialLink, Clock]]:
    clock = Clock(now_ms)
    async with asking(**more) as (api, server):
        server.answers[KEYS] = listed_keys(key("0502", EXPIRES_MS))
        yield KeyWatch("line", server.connection(**more), clock), api, server, clock


async def test_it_is_looked_up_once_a_day() -> None:
    async with watched() as (watch, api, server, clock):
        assert math.isnan(watch.days)
        await watch.look(api)
        assert watch.days == 40
        assert days() == 40
        clock.ms += DAY_MS - 1
        await watch.look(api)
        assert len(server.of(KEYS)) == 1
        clock.ms += 1
        await watch.look(api)
        assert len(server.of(KEYS)) == 2
        assert days() == 39
        clock.ms -= 2 * DAY_MS  # a clock that went back
        await watch.look(api)
        assert len(server.of(KEYS)) == 3


async def test_from_thirty_days_on_it_warns_once_a_day() -> None:
    async with watched(EXPIRES_MS - 31 * DAY_MS) as (watch, api, _, clock):
        told = []
        for _hour in range(49):
            with structlog.testing.capture_logs() as lines:
                await watch.look(api)
            told += [line for line in lines if line["event"] == "key_expires"]
            clock.ms += 3_600_000
        assert told == [
            {
                "event": "key_expires",
                "log_level": "warning",
                "connection": "line",
                "days": left,
                "expires_at": "2027-09-21T14:13:20.000Z",
            }
            for left in (30, 29)
        ]


@pytest.mark.parametrize("status", [401, 403, 404, 400])
async def test_a_key_that_may_not_list_keys_is_told_once(status: int) -> None:
    async with watched() as (watch, api, server, clock):
        server.answers[KEYS] = status
        with structlog.testing.capture_logs() as lines:
            for _day in range(3):
                await watch.look(api)
                clock.ms += DAY_MS
        assert [line["event"] for line in lines].count("key_expiry_unknown") == 1
        assert math.isnan(watch.days)


async def test_a_key_that_is_not_listed_is_told_once() -> None:
    async with watched() as (watch, api, server, clock):
        server.answers[KEYS] = {"data": []}
        with structlog.testing.capture_logs() as lines:
            for _day in range(3):
                await watch.look(api)
                clock.ms += DAY_MS
        told = [line for line in lines if line["event"] == "key_expiry_unknown"]
        assert [line["reason"] for line in told] == ["not_listed"]


async def test_a_trouble_of_the_moment_is_not_told_and_soon_over() -> None:
    async with watched() as (watch, api, server, clock):
        found, server.answers[KEYS] = server.answers[KEYS], 503
        with structlog.testing.capture_logs() as lines:
            await watch.look(api)
            await watch.look(api)
        assert "key_expiry_unknown" not in [line["event"] for line in lines]
        assert len(server.of(KEYS)) == 1
        server.answers[KEYS] = found
        clock.ms += 3_600_000
        await watch.look(api)
        assert 39 < watch.days < 40


async def test_another_key_is_another_matter(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(KEY)
    async with watched(api_key=None, api_key_file=str(file)) as (watch, api, _, clock):
        await watch.look(api)
        clock.ms = EXPIRES_MS
        assert watch.days == 0
        assert "expired" in watch.why_refused()
        file.write_text("another-key-with-another-end\n")
        assert math.isnan(watch.days)
        assert "has expired" not in watch.why_refused()
        file.unlink()
        assert math.isnan(watch.days)


# What is told when the key is refused


async def refusal(records: DialLinkRecords) -> ApiError:
    with pytest.raises(ApiError) as raised:
        async for _ in records.calls(0, 1, "poll"):
            pass
    return raised.value


async def test_a_key_that_expires_while_it_is_used_is_said_to_have_expired() -> None:
    async with small_diallink() as server:
        connection = server.connection()
        clock = Clock(EXPIRES_MS - DAY_MS)
        watch = KeyWatch("line", connection, clock)
        keys._WATCHES["line"] = watch
        server.answers = {
            KEYS: listed_keys(key("0502", EXPIRES_MS)),
            CALLS: {"data": []},
        }
        async with open_records("line", connection) as records:
            assert [page async for page in records.calls(0, 1, "poll")] == []
            server.answers = {KEYS: 401, CALLS: 401}
            clock.ms = EXPIRES_MS - 1
            assert "expired" not in str(await refusal(records))
            clock.ms = EXPIRES_MS
            await refusal(records)
        # The poller opens it anew.
        async with open_records("line", connection) as records:
            error = await refusal(records)
        assert error.reason == "unauthorized"
        assert "the key has expired (2027-09-21T14:13:20.000Z): make a new one" in str(error)
        assert "connections.line" in str(error)
        assert "not accepted" not in str(error)
        assert KEY[-4:] not in str(error)


async def test_a_key_of_which_nothing_is_known_may_have_expired() -> None:
    async with small_diallink() as server, open_records("line", server.connection()) as records:
        server.answers = {KEYS: 401, CALLS: 401}
        error = await refusal(records)
        assert "wrong, revoked, or older than a year" in str(error)
        assert "connections.line" in str(error)


async def test_the_key_is_looked_after_where_calls_are_read() -> None:
    async with small_diallink() as server:
        server.answers = {CALLS: {"data": []}, KEYS: listed_keys(key("0502", EXPIRES_MS))}
        for _opened in range(2):
            async with open_records("line", server.connection()) as records:
                for _pass in range(2):
                    assert [page async for page in records.calls(0, 1, "poll")] == []
        assert len(server.of(KEYS)) == 1
        assert days() is not None


async def test_that_keys_cannot_be_listed_keeps_nobody_from_reading_calls() -> None:
    for answered in (403, 404, 401, 503, "<html>", {"data": 7}):
        async with small_diallink() as server:
            server.answers[KEYS] = answered
            name = f"line_{answered}"
            async with open_records(name, server.connection()) as records:
                server.answers[CALLS] = {
                    "data": [{"id": "1", "updatedAt": 5}],
                    "paging": {"hasNextPage": False},
                }
                assert len([page async for page in records.calls(0, 1, "poll")]) == 1


def test_a_connection_has_one_watch() -> None:
    first = Connection.model_validate({"provider": "diallink", "api_key": "a"})
    other = Connection.model_validate({"provider": "diallink", "api_key": "b"})
    watch = watch_of("line", first)
    assert watch_of("line", other) is watch
    assert watch_of("other", first) is not watch
    assert watch.connection is other


# Whose key it is


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        ({"id": "u1", "admin": True, "email": "x@example.com"}, Me("u1", admin=True)),
        ({"data": {"id": "u1", "admin": False}}, Me("u1", admin=False)),
        ({"id": 7, "admin": "true"}, Me("7", admin=True)),
        ({"name": "x"}, Me(None, admin=None)),
    ],
)
async def test_what_the_keys_user_is(answer: object, expected: Me) -> None:
    async with asking() as (api, server):
        server.answers[PHONE_ME] = answer
        assert await me(api) == expected
        assert [asked.path for asked in server.asked] == [PHONE_ME]


@pytest.mark.parametrize("first", [403, 404, 400, "<html>"])
async def test_it_may_stand_in_the_account_hub(first: object) -> None:
    async with asking() as (api, server):
        server.answers = {PHONE_ME: first, HUB_ME: {"id": "u1", "admin": True}}
        assert await me(api) == Me("u1", admin=True)


async def test_it_may_stand_nowhere() -> None:
    async with asking() as (api, server):
        assert await me(api) is None
        assert [asked.path for asked in server.asked] == [PHONE_ME, HUB_ME]


@pytest.mark.parametrize("status", [401, 500])
async def test_other_refusals_are_told(status: int) -> None:
    async with asking() as (api, server):
        server.answers[PHONE_ME] = status
        with pytest.raises(ApiError):
            await me(api)
        assert {asked.path for asked in server.asked} == {PHONE_ME}

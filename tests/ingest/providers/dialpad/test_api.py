"""Dialpad's facts and lists, against a server on a real socket and the simulated Dialpad."""

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import stamina

from ingest.api import ApiError
from ingest.errors import ConfigError
from ingest.providers.dialpad.api import FACTS, DialpadApi, open_api, text_id
from ingest.settings import Connection
from ingest.simulator.dialpad_server import simulated_dialpad
from tests.ingest.scripted import Asked, Response, Scripted, answer, cut, good, scripted
from tests.kit import SAMPLES

PAGE = (SAMPLES / "rest-call-list-page.json").read_bytes()


@pytest.fixture(autouse=True)
def _no_backoff() -> Iterator[None]:
    with stamina.set_testing(testing=True, attempts=3):
        yield


def connection(base_url: str | None, key: str = "key") -> Connection:
    return Connection.model_validate(
        {
            "provider": "dialpad",
            "api_key": key,
            "base_url": base_url,
            "poll": {"requests_per_s": 20.0},
        }
    )


@asynccontextmanager
async def dialpad(*responses: Response) -> AsyncIterator[tuple[DialpadApi, Scripted]]:
    async with (
        scripted(*responses) as server,
        open_api("acme", connection(server.url)) as api,
    ):
        yield api, server


async def refused(asking: Any) -> ApiError:
    with pytest.raises(ApiError) as raised:
        await asking
    return raised.value


# One thing


async def test_each_verb_gives_the_object() -> None:
    thing = {"id": "5000000000004001", "hook_url": "https://hooks.example.com/webhooks/acme"}
    path = "/api/v2/webhooks/5000000000004001"
    async with dialpad(good(thing)) as (api, server):
        assert await api.get(path, {"a": None, "b": 2}) == thing
        assert await api.post("/api/v2/webhooks", {"hook_url": "x"}) == thing
        assert await api.patch(path, {"hook_url": "y"}) == thing
        assert await api.delete(path) == thing
        assert [(asked.method, asked.target) for asked in server.asked] == [
            ("GET", path + "?b=2"),
            ("POST", "/api/v2/webhooks"),
            ("PATCH", path),
            ("DELETE", path),
        ]
        assert [asked.body for asked in server.asked] == [
            b"",
            b'{"hook_url":"x"}',
            b'{"hook_url":"y"}',
            b"",
        ]


async def test_a_deletion_need_not_answer_anything() -> None:
    async with dialpad(answer(204), answer(200), answer(200, b" ")) as (api, _):
        for _attempt in range(3):
            assert await api.delete("/api/v2/webhooks/1") is None


@pytest.mark.parametrize(
    "body", [b"", b"<html>Sign in</html>", b'{"id": "50', b"[]", b'"ok"', b"null", b"7"]
)
async def test_an_answer_that_is_no_object_is_unexpected(body: bytes) -> None:
    async with dialpad(answer(200, body, content_type="text/html")) as (api, server):
        path = "/api/v2/webhooks"
        for asking in (api.get(path), api.post(path, {}), api.patch(path, {})):
            error = await refused(asking)
            assert (error.reason, error.status) == ("unexpected", 200)
            assert error.reached
        assert len(server.asked) == 3  # none is repeated


async def test_the_type_of_the_content_does_not_matter() -> None:
    async with dialpad(answer(200, b'{"a": 1}', content_type="text/plain")) as (api, _):
        assert await api.get("/api/v2/company") == {"a": 1}


def test_without_a_base_url_it_is_dialpads_own() -> None:
    assert FACTS.base_url == "https://dialpad.com"


async def test_without_a_key_nothing_is_opened() -> None:
    keyless = Connection.model_validate({"provider": "dialpad", "secrets": ["x"]})
    with pytest.raises(ConfigError, match="api_key"):
        async with open_api("acme", keyless):
            pass


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("5000000000004001", "5000000000004001"),
        (5000000000004001, "5000000000004001"),
        (9223372036854775807, "9223372036854775807"),
        ("shared_contact_pool_Company:1_uid_a", "shared_contact_pool_Company:1_uid_a"),
    ],
)
def test_ids_are_texts_or_numbers(value: object, text: str) -> None:
    assert text_id(value) == text


@pytest.mark.parametrize("value", [None, "", 0, True, 1.5, [], {}])
def test_what_is_no_id_is_unexpected(value: object) -> None:
    with pytest.raises(ApiError) as raised:
        text_id(value)
    assert raised.value.reason == "unexpected"


# Lists


async def test_items_come_exactly_as_they_were_written() -> None:
    items = [
        b'{"call_id" : 12345678901234567890123 , "a":1.10}',
        b'{ "b": "\\u00e9\xc3\xa9/\\/", "a": {}, "a": 1e2 }',
        b"7",
    ]
    first = b'{"items":[ ' + items[0] + b" ,\n" + items[1] + b' ],"more":{"x":[1]},"cursor":"c&1"}'
    last = b'{"cursor":null,"items":[' + items[2] + b"]}"
    async with dialpad(answer(200, first), answer(200, last)) as (api, server):
        pages = api.pages("/api/v2/call", {"started_after": 5, "cursor": None}, limit=50)
        assert [page async for page in pages] == [items[:2], items[2:]]
        assert [asked.query for asked in server.asked] == [
            {"started_after": "5", "limit": "50"},
            {"started_after": "5", "limit": "50", "cursor": "c&1"},
        ]


async def test_a_page_of_dialpads_own_making() -> None:
    async with dialpad(answer(200, PAGE), good({"items": []})) as (api, server):
        [items] = [page async for page in api.pages("/api/v2/call")]
        assert [json.loads(item) for item in items] == json.loads(PAGE)["items"]
        assert all(item in PAGE for item in items)
        assert server.asked[1].query == {"cursor": "inventedcursor"}


@pytest.mark.parametrize("page", [{}, {"items": []}, {"items": None, "cursor": None}])
async def test_an_empty_list(page: dict[str, object]) -> None:
    async with dialpad(good(page)) as (api, server):
        assert [page async for page in api.pages("/api/v2/subscriptions/call")] == []
        assert len(server.asked) == 1


@pytest.mark.parametrize(
    "body",
    [
        b'{"items": {}}',
        b'{"items": "x"}',
        b'{"items": [], "cursor": 7}',
        b'{"items": [{"a":1}, {"b":',
        b'{"items": [{"a":NaN}]}',
        b"[]",
        b"<html>",
        b'{"items":' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    ],
)
async def test_a_page_that_is_none_is_unexpected(body: bytes) -> None:
    async with dialpad(good({"items": [1], "cursor": "a"}), answer(200, body)) as (api, _):
        pages = api.pages("/api/v2/call")
        assert await anext(pages) == [b"1"]  # what came before is good
        with pytest.raises(ApiError) as raised:
            await anext(pages)
        assert raised.value.reason == "unexpected"


async def test_a_cursor_that_leads_back() -> None:
    def respond(asked: Asked) -> bytes:
        cursor = asked.query.get("cursor", "a")
        after = {"a": "b", "b": "c", "c": "b"}
        return good({"items": [f"after {cursor}"], "cursor": after[cursor]})

    async with dialpad() as (api, server):
        server.respond = respond
        pages = api.pages("/api/v2/call")
        assert await anext(pages) == [b'"after a"']
        assert await anext(pages) == [b'"after b"']
        error = await refused(anext(pages))
        assert error.reason == "cursor_loop"
        assert str(error).startswith("GET /api/v2/call: the list goes in circles")


async def test_a_page_that_fails_is_asked_for_again() -> None:
    pages = (
        good({"items": [1], "cursor": "a"}),
        answer(503),
        cut(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n{"),
        good({"items": [2]}),
    )
    async with dialpad(*pages) as (api, server):
        assert [page async for page in api.pages("/api/v2/call")] == [[b"1"], [b"2"]]
        assert [asked.query for asked in server.asked[1:]] == [{"cursor": "a"}] * 3


# What is missing


LACKS = [
    ("/api/v2/call", "scope `calls:list`"),
    ("/api/v2/call", "company admin"),
    ("/api/v2/call/5000000000001101/ai_recap", "scope `ai_recap`"),
    ("/api/v2/subscriptions/changelog", "scope `change_log`"),
    ("/api/v2/subscriptions/changelog/5000000000004201", "scope `change_log`"),
    ("/api/v2/subscriptions/contact", "company admin"),
    ("/api/v2/subscriptions/agent_status", "company admin"),
    ("/api/v2/contacts", "company admin"),
    ("/api/v2/company/1/smsoptout", "company admin"),
    ("/api/v2/callcenters", "company admin"),
    ("/api/v2/callcenters/operators/1/dutystatus", "company admin"),
    ("/api/v2/users", "company admin"),
]


@pytest.mark.parametrize(("path", "named"), LACKS)
async def test_what_a_key_lacks_is_named(path: str, named: str) -> None:
    async with dialpad(answer(403, b'{"error": {"message": "no"}}')) as (api, _):
        error = await refused(api.get(path))
        assert error.reason == "forbidden"
        assert named in error.mend
        assert ("scope" in error.mend) == any("scope" in word for at, word in LACKS if at == path)
        assert "connections.acme" in error.mend
        assert error.mend in str(error)
        assert "5000000000" not in str(error)


async def test_how_to_mend_what_is_no_lack() -> None:
    statuses = (401, 404, 409, 400, 429, 503)
    async with dialpad(*map(answer, [*statuses[:4], 429, 429, 429, 503, 503, 503])) as (api, _):
        mends = [(await refused(api.get("/api/v2/webhooks"))).mend for _ in statuses]
    assert len(set(mends)) == len(statuses)
    assert "api_key_file" in mends[0]
    assert "connections.acme.poll" in mends[4]
    assert all("{" not in mend for mend in mends)


# Rates


@pytest.mark.parametrize(
    ("path", "allowed"),
    [("/api/v2/call/{}", 10), ("/api/v2/call/{}/ai_recap", 12)],
)
async def test_narrow_limits(path: str, allowed: int) -> None:
    """A minute is not waited for; what is beyond must not have been asked."""
    async with dialpad(good({})) as (api, server):
        calls = [asyncio.create_task(api.get(path.format(ident))) for ident in range(20)]
        while sum(call.done() for call in calls) < allowed:
            await asyncio.wait(calls, timeout=0.1)
        await api.get("/api/v2/call")  # the others go on
        await api.get("/api/v2/call")
        assert len(server.asked) == allowed + 2
        for call in calls:
            call.cancel()
        assert [call.done() for call in calls] == [True] * allowed + [False] * (20 - allowed)


# Against the simulated Dialpad


async def test_the_simulated_dialpad_is_understood() -> None:
    async with (
        simulated_dialpad() as simulated,
        open_api("acme", connection(simulated.base_url, simulated.api_key)) as api,
    ):
        hook = {"hook_url": "https://hooks.example.com/webhooks/acme", "secret": "s" * 32}
        made = await api.post("/api/v2/webhooks", hook)
        ident = text_id(made["id"])
        listed = [item async for page in api.pages("/api/v2/webhooks") for item in page]
        assert [json.loads(item)["id"] for item in listed] == [made["id"]]
        path = f"/api/v2/webhooks/{ident}"
        changed = await api.patch(path, {"hook_url": hook["hook_url"] + "/call"})
        assert changed["hook_url"].endswith("/call")
        await api.delete(path)
        error = await refused(api.get(path))
        assert error.reason == "not_found"
    async with (
        simulated_dialpad() as simulated,
        open_api("acme", connection(simulated.base_url, "another")) as api,
    ):
        assert (await refused(api.get("/api/v2/webhooks"))).reason == "unauthorized"

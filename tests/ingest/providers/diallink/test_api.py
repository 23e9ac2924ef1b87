"""DialLink's facts and lists, against a server on a real socket."""

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from typing import Any
from urllib.parse import urlsplit

import pytest
import stamina
import structlog
from hypothesis import given
from hypothesis import strategies as st

from ingest.api import ApiError
from ingest.errors import ConfigError
from ingest.providers.diallink.api import DialLinkApi, error_text, facts_of, open_api
from ingest.providers.diallink.assumptions import Assumptions
from ingest.providers.diallink.keys import watch_of
from ingest.settings import Connection
from tests.ingest.providers.diallink.small_diallink import (
    CALLS,
    CONTACTS,
    KEY,
    USERS,
    SmallDialLink,
    small_diallink,
)
from tests.ingest.scripted import Asked, Response, Scripted, answer, good, scripted

NAMES = Assumptions().error_fields


@pytest.fixture(autouse=True)
def _no_backoff() -> Iterator[None]:
    with stamina.set_testing(testing=True, attempts=3):
        yield


def connection(base_url: str | None, **assume: Any) -> Connection:
    return Connection.model_validate(
        {
            "provider": "diallink",
            "api_key": KEY,
            "base_url": base_url,
            "poll": {"requests_per_s": 20.0},
            "assume": assume,
        }
    )


@asynccontextmanager
async def diallink(
    *responses: Response, name: str = "line", **assume: Any
) -> AsyncIterator[tuple[DialLinkApi, Scripted]]:
    async with (
        scripted(*responses) as server,
        open_api(name, connection(server.url, **assume)) as api,
    ):
        yield api, server


def page(*rows: object, **paging: object) -> bytes:
    return good({"data": rows, "paging": paging})


async def pages(api: DialLinkApi, path: str = CONTACTS) -> list[list[Any]]:
    return [[json.loads(item) for item in items] async for items in api.pages(path)]


async def changes(api: DialLinkApi, since_ms: int = 5) -> list[Any]:
    walk = api.by_change(CALLS, "updatedAt", lambda item: json.loads(item)["updatedAt"], since_ms)
    return [json.loads(item) async for items in walk for item in items]


async def refused(asking: Any) -> ApiError:
    with pytest.raises(ApiError) as raised:
        await asking
    assert KEY not in repr(raised.value.__dict__) + str(raised.value)
    return raised.value


# How it is asked


async def test_the_key_stands_in_its_header_as_it_is() -> None:
    async with diallink(page(hasNextPage=False)) as (api, server):
        await pages(api)
        (asked,) = server.asked
        assert asked.headers["x-api-key"] == KEY
        assert "+" in KEY
        assert "authorization" not in asked.headers
        assert asked.headers["accept"] == "application/json"
        assert KEY[:8] not in asked.target


async def test_the_plus_of_a_sort_is_percent_encoded() -> None:
    async with diallink(page(hasNextPage=False)) as (api, server):
        await changes(api)
        raw = urlsplit(server.asked[0].target).query.split("&")
        assert "sort=%2BupdatedAt" in raw
        assert server.asked[0].query == {
            "sort": "+updatedAt",
            "updatedAt": "gte::5",
            "pageNumber": "1",
            "pageSize": "100",
        }


def test_without_a_base_url_it_is_diallinks_own() -> None:
    assert facts_of(connection(None), watch_of("line", connection(None))).base_url == (
        "https://api.diallink.com"
    )


async def test_without_a_key_nothing_is_opened() -> None:
    keyless = Connection.model_validate({"provider": "diallink", "secrets": ["x"]})
    with pytest.raises(ConfigError, match="api_key"):
        async with open_api("line", keyless):
            pass


async def test_neither_key_nor_content_is_told() -> None:
    body = json.dumps({"message": f"key {KEY} of +15551230001 is no good"}).encode()
    with structlog.testing.capture_logs() as lines:
        for status in (400, 401, 403, 404, 500):
            name = f"told_{status}"
            async with diallink(answer(status, body), name=name) as (api, _):
                error = await refused(pages(api))
                assert KEY[-12:] not in str(error)
                assert "15551230001" not in str(error)
                assert KEY not in repr(api) + repr(api.__dict__)
    assert KEY[-12:] not in repr(lines)
    assert "15551230001" not in repr(lines)


# Lists


async def test_items_come_exactly_as_they_were_written() -> None:
    items = [
        b'{"id" : 12345678901234567890123 , "a":1.10}',
        b'{ "b": "\\u00e9\xc3\xa9/\\/", "a": {}, "a": 1e2 }',
        b"7",
    ]
    body = b'{"paging" : { } , "data":[ ' + b" ,\n".join(items) + b' ],"more":{"data":[1]}}'
    async with diallink(answer(200, body), answer(200, b'{"data":[]}')) as (api, server):
        assert [found async for found in api.pages(CONTACTS)] == [items]
        assert [asked.query["pageNumber"] for asked in server.asked] == ["1", "2"]


@pytest.mark.parametrize(
    "paging",
    [
        {},
        {"totalNumberOfPages": 1, "totalNumberOfRecords": 1},
        {"hasMore": False},
        {"hasNextPage": None},
        {"hasNextPage": "false"},
        {"hasNextPage": []},
        {"hasNextPage": True},
    ],
)
async def test_only_has_next_page_ends_a_list_that_has_items(paging: dict[str, Any]) -> None:
    async with diallink(page({"n": 1}, **paging), page({"n": 2}, **paging), page()) as (api, _):
        assert await pages(api) == [[{"n": 1}], [{"n": 2}]]


@pytest.mark.parametrize("paging", [b"null", b"[]", b'"x"', b"7", b'{"hasNextPage": 1}'])
async def test_a_paging_that_is_none_says_nothing(paging: bytes) -> None:
    first = answer(200, b'{"data":[{"n":1}],"paging":' + paging + b"}")
    async with diallink(first, answer(200, b'{"data": null}')) as (api, server):
        assert await pages(api) == [[{"n": 1}]]
        assert len(server.asked) == 2


async def test_no_next_page_ends_it_whatever_else_is_said() -> None:
    last = page({"n": 1}, hasNextPage=False, hasMore=True, totalNumberOfPages=9)
    async with diallink(last) as (api, server):
        assert await pages(api) == [[{"n": 1}]]
        assert len(server.asked) == 1


async def test_a_page_without_items_ends_it_whatever_else_is_said() -> None:
    async with diallink(page(hasNextPage=True, hasMore=True)) as (api, server):
        assert await pages(api) == []
        assert len(server.asked) == 1


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"<html><body>Sign in</body></html>",
        b'{"data": [{"id": "00',
        b'{"data": [{"id": 1}]',
        b'{"data": {"id": 1}}',
        b'{"data": "x"}',
        b'{"items": []}',
        b'{"message": "no"}',
        b"[]",
        b"null",
        b'{"data": [\xff]}',
        b'{"data": ' + b"[" * 100_000,
    ],
)
async def test_an_answer_that_is_no_list_is_unexpected(body: bytes) -> None:
    async with diallink(answer(200, body, content_type="text/html")) as (api, server):
        for asking in (pages(api), changes(api)):
            error = await refused(asking)
            assert (error.reason, error.status) == ("unexpected", 200)
        assert len(server.asked) == 2  # none is repeated


async def test_a_page_of_ten_mebibytes_is_a_page() -> None:
    rows = [{"id": n, "text": "x" * 104_000} for n in range(100)]
    async with diallink(page(*rows, hasNextPage=False)) as (api, _):
        assert await pages(api) == [rows]


async def test_the_same_page_for_ever_is_a_loop() -> None:
    async with diallink(page({"n": 1, "updatedAt": 7}, hasNextPage=True)) as (api, server):
        for asking in (pages(api), changes(api)):
            assert (await refused(asking)).reason == "cursor_loop"
        assert len(server.asked) < 20


# The size of pages


def sized(largest: int) -> tuple[Any, list[int]]:
    sizes: list[int] = []

    def respond(asked: Asked) -> bytes:
        size, number = int(asked.query["pageSize"]), int(asked.query["pageNumber"])
        sizes.append(size)
        if size > largest:
            return answer(400, b"too many")
        return page({"n": number, "updatedAt": 9}, hasNextPage=number < 3)

    return respond, sizes


async def test_where_a_page_is_refused_smaller_ones_are_asked_for_and_that_is_remembered() -> None:
    async with diallink() as (api, server):
        server.respond, sizes = sized(20)
        assert await pages(api) == [[{"n": n, "updatedAt": 9}] for n in (1, 2, 3)]
        assert await pages(api)
        assert sizes == [100, 20, 20, 20, 20, 20, 20]


async def test_sizes_are_settings() -> None:
    async with diallink(page_size=50, page_size_fallback=7) as (api, server):
        server.respond, sizes = sized(10)
        await pages(api)
        assert sizes == [50, 7, 7, 7]


async def test_what_is_refused_at_any_size_is_refused() -> None:
    async with diallink() as (api, server):
        server.respond, sizes = sized(5)
        assert (await refused(pages(api))).reason == "refused"
        assert (await refused(changes(api))).reason == "refused"
        # It was not the size, as far as we know.
        assert sizes == [100, 20, 100, 20]


async def test_in_the_middle_of_a_list_no_other_size_is_tried() -> None:
    first = page({"n": 1}, hasNextPage=True)
    async with diallink(first, answer(400), first) as (api, server):
        assert (await refused(pages(api))).reason == "refused"
        assert len(server.asked) == 2


async def test_a_server_may_give_less_than_it_was_asked_for() -> None:
    async with small_diallink() as server, open_api("line", server.connection()) as api:
        server.cap = 10
        rows = [{"id": n, "updatedAt": 100 + n // 25} for n in range(95)]
        server.lists = {CONTACTS: rows, CALLS: rows}
        assert [row for found in await pages(api) for row in found] == rows
        assert await changes(api) == rows


# Whole lists


async def test_the_last_changes_come_first() -> None:
    async with small_diallink() as server, open_api("line", server.connection()) as api:
        server.lists[USERS] = [{"id": n, "_updatedAt": n} for n in range(5)]
        found = [json.loads(item) async for items in api.all(USERS) for item in items]
        assert [row["id"] for row in found] == [4, 3, 2, 1, 0]
        assert [query["sort"] for query in server.of(USERS)] == ["-updatedAt"]


async def test_a_list_that_is_not_sorted_is_read_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    async with small_diallink() as server, open_api("line", server.connection()) as api:
        server.refused_sorts = ("-",)
        server.cap = 2
        rows = server.lists[USERS] = [{"id": n} for n in range(5)]
        order = SmallDialLink._list

        def moving(diallink: SmallDialLink, rows: Any, query: Any) -> bytes:
            body = order(diallink, rows, query)
            if "sort" not in query and len(server.asked) == 3:  # the first page
                rows.append(rows.pop(0))
            return body

        monkeypatch.setattr(SmallDialLink, "_list", moving)
        found = [json.loads(item) async for items in api.all(USERS) for item in items]
        assert sorted(row["id"] for row in found) == [0, 1, 2, 3, 4]
        assert rows[0]["id"] == 1
        assert [query.get("sort") for query in server.of(USERS)][:3] == [
            "-updatedAt",
            "-updatedAt",  # in smaller pages
            None,
        ]


@pytest.mark.parametrize(("status", "reason"), [(401, "unauthorized"), (404, "not_found")])
async def test_only_what_is_refused_is_asked_for_otherwise(status: int, reason: str) -> None:
    async with diallink(answer(status)) as (api, server):

        async def read() -> None:
            async for _ in api.all(USERS):
                pass

        assert (await refused(read())).reason == reason
        assert len(server.asked) == 1


# One thing


async def test_an_object_comes_as_it_is_or_out_of_its_envelope() -> None:
    inner = b'{"id":  12345678901234567890123, "x": 1.0}'
    async with diallink(
        answer(200, inner), answer(200, b' {"data" : ' + inner + b', "paging": {}} ')
    ) as (api, _):
        assert await api.read(CALLS + "/1") == inner
        assert await api.read(CALLS + "/1") == inner


async def test_an_object_may_have_data_of_its_own() -> None:
    for body, id_name in (
        (b'{"id": 1, "data": {"a": 2}}', "id"),
        (b'{"uuid": 1, "data": {"a": 2}}', "uuid"),
        (b'{"data": [1]}', "id"),
        (b'{"data": null}', "id"),
    ):
        async with diallink(answer(200, body)) as (api, _):
            assert await api.read(CALLS + "/1", id_name) == body


@pytest.mark.parametrize("body", [b"", b"<html>", b'{"id": "50', b"[]", b"null", b"7"])
async def test_an_answer_that_is_no_object_is_unexpected(body: bytes) -> None:
    async with diallink(answer(200, body)) as (api, _):
        assert (await refused(api.read(CALLS + "/1"))).reason == "unexpected"


# What an error says, and how long it is left alone after it


async def test_what_diallink_says_stands_apart() -> None:
    body = json.dumps({"error": "x", "message": f"no such field (key {KEY}, +15551230001)"})
    async with diallink(answer(400, body.encode())) as (api, _):
        error = await refused(pages(api))
        assert error.said.startswith("no such field (key ")
        assert "15551230001" not in error.said
        assert "no such field" not in str(error)


async def test_after_too_many_requests_it_is_left_alone() -> None:
    async with diallink(answer(429), name="rests", rest_s=300.0) as (api, server):
        error = await refused(pages(api))
        assert error.reason == "rate_limited"
        assert error.retry_after_s is not None
        assert 300 <= error.retry_after_s <= 400
        assert len(server.asked) == 1


def test_how_long_it_is_left_alone_is_a_setting() -> None:
    def rest_s(**assume: float) -> object:
        made = connection(None, **assume)
        return facts_of(made, watch_of("line", made)).rest_s

    assert rest_s() == (60.0, 900.0)
    assert rest_s(rest_s=5.0, rest_most_s=50.0) == (5.0, 50.0)
    assert rest_s(rest_s=1000.0) == (1000.0, 1000.0)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b'{"message": "one", "description": "two"}', "one"),
        (b'{"error": "three", "description": "two"}', "two"),
        (b'{"errors": [{"message": "a"}, {"code": 1}, {"message": "b"}], "error": ""}', "a; b"),
        (b'{"errors": ["a", 7, null, {"message": "b"}]}', "a; b"),
        (b'{"error": {"message": "inside"}}', "inside"),
        (b'{"message": 7, "error": "three"}', "three"),
        (b'{"message": null}', '{"message": null}'),
        (b'{"detail": "else"}', '{"detail": "else"}'),
        (b"plain words", "plain words"),
        (b"<html><b>Bad Gateway</b></html>", "<html><b>Bad Gateway</b></html>"),
        (b"[1]", "[1]"),
        (b"", ""),
        (b"\xff\xfe", "��"),
        (b"x" * 501, "x" * 500),
    ],
)
def test_the_text_of_an_error(body: bytes, said: str) -> None:
    assert error_text(body, NAMES) == said


def test_where_the_text_stands_is_a_setting() -> None:
    assert error_text(b'{"message": "one", "reason": "two"}', ("reason",)) == "two"


@given(
    body=st.binary(max_size=600)
    | st.recursive(
        st.none() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(st.sampled_from([*NAMES, "x"]), inner, max_size=3)
        ),
        max_leaves=8,
    ).map(lambda value: json.dumps(value).encode())
)
def test_any_body_says_something_or_nothing(body: bytes) -> None:
    assert isinstance(error_text(body, NAMES), str)

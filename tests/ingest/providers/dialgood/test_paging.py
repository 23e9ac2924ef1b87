"""Lists that change while they are read, servers that give less, count wrongly, or go in circles.

Whatever was in a list from the beginning of its reading to the end is found, or the reading fails
and is done again; and it always comes to an end.
"""

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.api import ApiError
from ingest.providers.dialgood.api import DialgoodApi
from tests.ingest.providers.dialgood import model
from tests.ingest.providers.dialgood.model import BASE_MS, Listed, Logs, Wire, row

AGENT = "agent_0001"
HOUR_MS = 3_600_000
TO_MS = BASE_MS + HOUR_MS
WINDOW = "from=1790000000000&to=1790003600000"


api_on = partial(model.api_on, direct=True)


def rows(count: int) -> list[dict[str, Any]]:
    """Newest first."""
    return [row(number, BASE_MS + number * 1000) for number in range(count, 0, -1)]


async def read_logs(api: DialgoodApi) -> list[str]:
    pages = api.call_logs(AGENT, BASE_MS, TO_MS)
    return [orjson.loads(item)["conversationId"] async for page in pages for item in page]


async def read_agents(api: DialgoodApi) -> list[str]:
    return [orjson.loads(item)["agentId"] async for page in api.agents() for item in page]


async def outcome(reading: Any) -> list[str] | ApiError:
    try:
        return await reading  # type: ignore[no-any-return]
    except ApiError as error:
        return error


def ids(items: Iterable[dict[str, Any]]) -> set[str]:
    return {item["conversationId"] for item in items}


# --- what is asked ------------------------------------------------------------------------------


async def test_a_small_window_is_one_request() -> None:
    wire = Wire(Logs(rows(3)))
    assert await read_logs(api_on(wire)) == [
        "conversation_0003",
        "conversation_0002",
        "conversation_0001",
    ]
    assert wire.targets == [
        f"/partner/v1/agents/agent_0001/call-logs?{WINDOW}&tz=UTC&page=1&limit=100"
    ]


async def test_an_empty_window_is_one_request() -> None:
    wire = Wire(Logs())
    assert await read_logs(api_on(wire)) == []
    assert len(wire.asked) == 1


async def test_all_pages_have_the_same_bounds() -> None:
    wire = Wire(Logs(rows(250)))
    assert len(await read_logs(api_on(wire))) == 250
    assert [query["page"] for query in wire.queries] == ["1", "2", "3"]
    assert {(query["from"], query["to"]) for query in wire.queries} == {
        ("1790000000000", "1790003600000")
    }


async def test_web_calls_are_left_out_only_if_it_is_set() -> None:
    wire = Wire(Logs(rows(1)))
    await read_logs(api_on(wire))
    await read_logs(api_on(wire, hide_web_calls=True))
    assert [query.get("hidewebcalls") for query in wire.queries] == [None, "true"]


async def test_a_limit_that_is_refused_is_not_asked_for_again() -> None:
    server = Logs(rows(25))
    server.refuses_over = 10
    wire = Wire(server)
    api = api_on(wire)
    assert ids(server.rows) == set(await read_logs(api))
    assert [query["limit"] for query in wire.queries] == ["100", "10", "10", "10"]
    server.rows = []
    await read_logs(api)
    assert [query["limit"] for query in wire.queries[4:]] == ["10"]


async def test_so_is_one_that_an_empty_list_refuses() -> None:
    server = Logs()
    server.refuses_over = 10
    wire = Wire(server)
    api = api_on(wire)
    await read_logs(api)
    await read_logs(api)
    assert [query["limit"] for query in wire.queries] == ["100", "10", "10"]


async def test_what_is_refused_for_something_else_is_an_error() -> None:
    server = Logs(rows(1))
    server.refuses_over = 0
    wire = Wire(server)
    api = api_on(wire)
    for _ in range(2):
        error = await outcome(read_logs(api))
        assert isinstance(error, ApiError)
        assert (error.reason, error.status) == ("refused", 400)
    assert [query["limit"] for query in wire.queries] == ["100", "10", "100", "10"]


async def test_the_limits_are_settings() -> None:
    server = Logs(rows(7))
    server.refuses_over = 3
    wire = Wire(server)
    api = api_on(wire, page_limit=50, page_limit_fallback=3)
    assert set(await read_logs(api)) == ids(server.rows)
    assert {query["limit"] for query in wire.queries} == {"50", "3"}


async def test_agents_come_by_skip_and_pages_overlap() -> None:
    server = Listed("agents", [{"agentId": f"agent_{n}"} for n in range(60)])
    server.gives_most = 25
    wire = Wire(server)
    found = await read_agents(api_on(wire))
    assert list(dict.fromkeys(found)) == [f"agent_{n}" for n in range(60)]
    assert wire.targets == [
        "/partner/v1/agents?limit=100&skip=0",
        "/partner/v1/agents?limit=100&skip=24",
        "/partner/v1/agents?limit=100&skip=48",
    ]


async def test_agents_of_a_server_that_says_nothing_of_more() -> None:
    server = Listed("agents", [{"agentId": f"agent_{n}"} for n in range(60)])
    server.gives_most = 25
    server.says = lambda more, count: {}
    found = await read_agents(api_on(Wire(server)))
    assert set(found) == {f"agent_{n}" for n in range(60)}


async def test_versions_come_likewise() -> None:
    wire = Wire(Listed("versions", [{"version_id": "version_1"}]))
    pages = [page async for page in api_on(wire).versions(AGENT)]
    assert pages == [[b'{"version_id": "version_1"}']]
    assert wire.targets == ["/partner/v1/agents/agent_0001/versions?limit=100&skip=0"]


# --- lists of call logs that change -------------------------------------------------------------

#: (pages, records) as they are → what the answer says of them.
HONEST: Callable[[int, int], dict[str, object]] = lambda pages, records: {  # noqa: E731
    "totalPages": pages,
    "totalRecords": records,
}
MODEST: list[Callable[[int, int], dict[str, object]]] = [
    HONEST,
    lambda pages, records: {},
    lambda pages, records: {"totalPages": pages},
    lambda pages, records: {"totalRecords": records},
    lambda pages, records: {"totalPages": str(pages), "totalRecords": str(records)},
    lambda pages, records: {"totalPages": None, "totalRecords": None},
    lambda pages, records: {"totalPages": "many", "totalRecords": -1},
    lambda pages, records: {"totalPages": 1, "totalRecords": records},
    lambda pages, records: {"totalPages": pages, "totalRecords": 1},
    lambda pages, records: {"totalPages": 1, "totalRecords": 1},
    lambda pages, records: {"totalPages": 0, "totalRecords": 0},
    lambda pages, records: {"totalPages": pages + 2, "totalRecords": records},
    lambda pages, records: {"totalPages": pages, "totalRecords": records + 7},
    lambda pages, records: {"totalPages": pages + 2, "totalRecords": records + 7},
]
#: Beyond all measure: to follow them would take for ever.
WILD: list[Callable[[int, int], dict[str, object]]] = [
    lambda pages, records: {"totalPages": 10**12, "totalRecords": 10**15},
    lambda pages, records: {"totalPages": 10**12},
    lambda pages, records: {"totalPages": 10**12, "totalRecords": records},
]


class Changes:
    """Between two requests one thing happens, as long as there is something left to happen."""

    def __init__(self, server: Logs, moves: list[tuple[str, int]]) -> None:
        self._server = server
        self._moves = moves
        self._number = 5000
        self.there = ids(server.rows)

    def __call__(self) -> None:
        if not self._moves:
            return
        what, at = self._moves.pop(0)
        rows = self._server.rows
        self._number += 1
        if what == "new":  # it has begun after the end of the window
            rows.insert(0, row(self._number, TO_MS + self._number))
        elif what == "late":  # it had begun in the window, and is listed only now
            rows.insert(at % (len(rows) + 1), row(self._number, BASE_MS + 1))
        elif what == "change" and rows:
            at %= len(rows)
            rows[at] = {**rows[at], "data": {**rows[at]["data"], "callStatus": "busy"}}
        elif what == "top" and rows:
            rows.insert(0, rows.pop(at % len(rows)))
        elif what == "gone" and rows:
            self.there.discard(rows.pop(at % len(rows))["conversationId"])


def changes(*kinds: str) -> st.SearchStrategy[list[tuple[str, int]]]:
    return st.lists(st.tuples(st.sampled_from(kinds), st.integers(0, 200)), max_size=8)


async def check_logs(
    server: Logs, moves: list[tuple[str, int]], limit: int
) -> tuple[list[str] | ApiError, set[str], int]:
    """What was found; what was there all the time; after how many requests."""
    happening = server.before_each = Changes(server, moves)
    wire = Wire(server)
    found = await outcome(read_logs(api_on(wire, page_limit=limit, page_limit_fallback=10)))
    assert len({(query["from"], query["to"]) for query in wire.queries}) == 1
    return found, happening.there, len(wire.asked)


@given(
    count=st.integers(0, 80),
    limit=st.integers(10, 40),
    cap=st.none() | st.integers(10, 30),
    says=st.sampled_from(MODEST),
    beyond=st.sampled_from(["empty", "last", "404", "400"]),
    moves=changes("new", "late", "change"),
)
async def test_records_that_come_and_change_hide_none(
    count: int,
    limit: int,
    cap: int | None,
    says: Callable[[int, int], dict[str, object]],
    beyond: str,
    moves: list[tuple[str, int]],
) -> None:
    server = Logs(rows(count))
    server.gives_most, server.says, server.beyond = cap, says, beyond
    came = {what for what, _ in moves}
    found, there, requests = await check_logs(server, moves, limit)
    assert requests <= 4 * (12 + 4)
    if isinstance(found, ApiError):
        # A page is promised and is not there, or is another's, and so are records: those that have
        # come meanwhile, or what is counted too much.
        assert (says is MODEST[-1] and beyond != "empty") or (
            says in MODEST[11:] and "late" in came
        )
        assert error_of(found) in (("cursor_loop", None), ("not_found", 404), ("refused", 400))
    else:
        assert there <= set(found)


def error_of(error: ApiError) -> tuple[str, int | None]:
    return error.reason, error.status


@given(
    count=st.integers(0, 80),
    cap=st.none() | st.integers(3, 30),
    moves=changes("new", "late", "change", "top", "gone").filter(
        # Who loses one place while another takes it hides it from every count.
        lambda moves: (
            not {"late"} & {what for what, _ in moves}
            or not {"top", "gone"} & {what for what, _ in moves}
        )
    ),
)
async def test_records_that_move_or_go_hide_none_from_an_honest_count(
    count: int, cap: int | None, moves: list[tuple[str, int]]
) -> None:
    server = Logs(rows(count))
    server.gives_most = cap
    few = len(moves) < 4
    found, there, requests = await check_logs(server, moves, 10)
    assert requests <= 4 * (81 + 4)
    if isinstance(found, ApiError):
        assert found.reason == "cursor_loop"
        assert not few
    else:
        assert there <= set(found)


@pytest.mark.parametrize("says", WILD)
@pytest.mark.parametrize("beyond", ["empty", "last"])
async def test_a_list_without_end_ends(
    says: Callable[[int, int], dict[str, object]], beyond: str
) -> None:
    server = Logs(rows(30))
    server.says, server.beyond = says, beyond
    wire = Wire(server)
    seen: list[str] = []
    failed = ""
    try:
        async for page in api_on(wire, page_limit=10).call_logs(AGENT, BASE_MS, TO_MS):
            seen += [orjson.loads(item)["conversationId"] for item in page]
    except ApiError as error:
        failed = error.reason
    assert failed == ("" if says is WILD[2] else "cursor_loop")
    assert set(seen) == ids(server.rows)
    assert len(wire.asked) < 120


async def test_a_server_that_takes_no_notice_of_the_page_is_an_error() -> None:
    server = Logs(rows(30))
    wire = Wire(server)

    def always_the_first(request: Any) -> tuple[int, bytes]:
        status, body = server(request)
        first = orjson.dumps(orjson.loads(body)["data"][:10])
        if request.url.params["page"] != "1":
            return status, b'{"data": %b, "totalPages": 3, "totalRecords": 30}' % kept[0]
        kept.append(first)
        return status, body

    kept: list[bytes] = []
    wire.respond = always_the_first
    error = await outcome(read_logs(api_on(wire, page_limit=10)))
    assert isinstance(error, ApiError)
    assert error.reason == "cursor_loop"
    assert len(wire.asked) == 2


async def test_a_count_that_is_always_too_high_costs_a_second_look_and_no_more() -> None:
    server = Logs(rows(25))
    server.says = lambda pages, records: {"totalPages": pages, "totalRecords": records + 1}
    wire = Wire(server)
    assert set(await read_logs(api_on(wire, page_limit=10))) == ids(server.rows)
    assert len(wire.asked) == 2 * 4


async def test_a_page_that_may_be_capped_is_not_the_last() -> None:
    server = Logs(rows(120))
    server.gives_most = 50
    server.says = lambda pages, records: {"totalPages": 1, "totalRecords": 50}
    wire = Wire(server)
    assert set(await read_logs(api_on(wire))) == ids(server.rows)
    assert len(wire.asked) == 3


async def test_a_page_behind_the_last_that_nobody_has_promised_may_be_missing() -> None:
    """404 there does not say that the agent is gone."""
    server = Logs(rows(20))
    server.beyond = "404"
    assert set(await read_logs(api_on(Wire(server), page_limit=10))) == ids(server.rows)


# --- lists by skip that change ------------------------------------------------------------------


class AgentChanges:
    def __init__(self, server: Listed, moves: list[tuple[str, int]]) -> None:
        self._server = server
        self._moves = moves
        self._number = 5000
        self.there = {item["agentId"] for item in server.items}

    def __call__(self) -> None:
        if not self._moves:
            return
        what, at = self._moves.pop(0)
        items = self._server.items
        self._number += 1
        if what == "new":
            items.insert(at % (len(items) + 1), {"agentId": f"agent_{self._number}"})
        elif items:
            item = items.pop(at % len(items))
            if what == "gone":
                self.there.discard(item["agentId"])
            elif what == "top":
                items.insert(0, item)
            elif what == "end":
                items.append(item)


SKIP_MODEST: list[Callable[[bool, int], dict[str, object]]] = [
    lambda more, count: {"hasMore": more, "totalCount": count},
    lambda more, count: {"hasMore": more},
    lambda more, count: {"totalCount": count},
    lambda more, count: {},
    lambda more, count: {"hasMore": "yes", "totalCount": "many"},
    lambda more, count: {"hasMore": False, "totalCount": count},
    lambda more, count: {"hasMore": True, "totalCount": count},
    lambda more, count: {"hasMore": more, "totalCount": 1},
    lambda more, count: {"hasMore": more, "totalCount": count + 3},
]


@given(
    count=st.integers(0, 60),
    cap=st.none() | st.integers(2, 30),
    says=st.sampled_from(SKIP_MODEST),
    clamps=st.booleans(),
    moves=st.lists(
        st.tuples(st.sampled_from(["new", "gone", "top", "end"]), st.integers(0, 200)), max_size=8
    ),
)
async def test_agents_that_come_go_and_move_hide_none(
    count: int,
    cap: int | None,
    says: Callable[[bool, int], dict[str, object]],
    clamps: bool,  # noqa: FBT001
    moves: list[tuple[str, int]],
) -> None:
    server = Listed("agents", [{"agentId": f"agent_{n}"} for n in range(count)])
    server.gives_most, server.says, server.clamps = cap, says, clamps
    happening = server.before_each = AgentChanges(server, moves)
    few = len(moves) < 2
    wire = Wire(server)
    found = await outcome(read_agents(api_on(wire, page_limit=20)))
    assert len(wire.asked) <= 4 * (61 + 110)
    if isinstance(found, ApiError):
        assert found.reason == "cursor_loop"
        assert not few or says is SKIP_MODEST[6]
    else:
        assert happening.there <= set(found)


async def test_more_for_ever_ends() -> None:
    server = Listed("agents", [{"agentId": f"agent_{n}"} for n in range(5)])
    server.says = lambda more, count: {"hasMore": True}
    wire = Wire(server)
    error = await outcome(read_agents(api_on(wire)))
    assert isinstance(error, ApiError)
    assert error.reason == "cursor_loop"
    assert len(wire.asked) < 120


async def test_agents_one_a_page() -> None:
    server = Listed("agents", [{"agentId": f"agent_{n}"} for n in range(5)])
    server.gives_most = 1
    assert await read_agents(api_on(Wire(server))) == [f"agent_{n}" for n in range(5)]

"""Dialgood as the contract has it, as far as lists go, with faults; behind the product's own API.

https://apidocs.dialgood.com/partner-api-2171894m0
"""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import httpx

from ingest.api import Api, ApiError, Budgets, Deadlines, Reason
from ingest.providers.dialgood.api import FACTS, DialgoodApi
from ingest.providers.dialgood.assumptions import Assumptions
from ingest.settings import Connection

KEY = "invented-key-of-a-dialgood-user"

Answer = tuple[int, bytes]


class Wire:
    """What reaches the other side of the connection, and what it answers."""

    def __init__(self, respond: Callable[[httpx.Request], Answer]) -> None:
        self.respond = respond
        self.asked: list[httpx.Request] = []

    def handle(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        status, body = self.respond(request)
        return httpx.Response(status, content=body, headers={"content-type": "application/json"})

    @property
    def targets(self) -> list[str]:
        """Exactly as they stand in the request line."""
        return [request.url.raw_path.decode("ascii") for request in self.asked]

    @property
    def queries(self) -> list[dict[str, str]]:
        return [dict(request.url.params) for request in self.asked]


def json_answer(value: object) -> Answer:
    return 200, json.dumps(value).encode()


def api_on(wire: Wire, *, name: str = "bots", direct: bool = False, **assume: Any) -> DialgoodApi:
    """Asks ``wire`` as fast as it can; ``direct``: without an HTTP client."""
    if direct:
        return DialgoodApi(Direct(wire), Assumptions(**assume))  # type: ignore[arg-type]
    connection = Connection.model_validate({"provider": "dialgood", "api_key": KEY})
    http = httpx.AsyncClient(
        base_url=FACTS.base_url, transport=httpx.MockTransport(wire.handle), trust_env=False
    )
    api = Api(name, connection, FACTS, http, Budgets(1e9, {}), Deadlines())
    return DialgoodApi(api, Assumptions(**assume))


class Direct:
    """`ingest.api.Api`, as far as it is used, without a client between: for very many requests."""

    name = "bots"

    def __init__(self, wire: Wire) -> None:
        self._wire = wire

    async def ask(self, method: str, path: str, *, params: Mapping[str, Any]) -> bytes:
        asked = {key: value for key, value in params.items() if value is not None}
        answer = self._wire.handle(httpx.Request(method, FACTS.base_url + path, params=asked))
        if answer.is_success:
            return answer.content
        reasons: dict[int, Reason] = {400: "refused", 404: "not_found"}
        raise ApiError(reasons[answer.status_code], status=answer.status_code)


class Logs:
    """Call logs of agents, newest first.

    Knobs are set by whoever makes it; ``unit``: what from and to are in.
    """

    def __init__(self, rows: Sequence[dict[str, Any]] = (), *, unit: str = "ms") -> None:
        self.rows = list(rows)
        self.unit = unit
        #: More on a page are refused with 400; more are silently not given.
        self.refuses_over: int | None = None
        self.gives_most: int | None = None
        #: (pages, records, limit asked, page) → what the answer says of totals.
        self.says: Callable[[int, int], dict[str, object]] = lambda pages, records: {
            "totalPages": pages,
            "totalRecords": records,
        }
        #: Behind the last page: ``empty``, ``last`` (that page again), ``404``, ``400``.
        self.beyond = "empty"
        self.before_each: Callable[[], None] = lambda: None

    def __call__(self, request: httpx.Request) -> Answer:
        self.before_each()
        query = request.url.params
        limit = int(query["limit"])
        if self.refuses_over is not None and limit > self.refuses_over:
            return 400, b'{"error": "limit"}'
        size = min(limit, self.gives_most or limit)
        agent_id = request.url.path.split("/")[4]
        scale = 1 if self.unit == "ms" else 1000
        from_ms, to_ms = int(query["from"]) * scale, int(query["to"]) * scale
        found = [
            row
            for row in self.rows
            if row["botId"] == agent_id and from_ms <= ms_of(row["created_at"]) <= to_ms
        ]
        pages = -(-len(found) // size)
        page = int(query["page"])
        if page > max(pages, 1):
            if self.beyond in ("400", "404"):
                return int(self.beyond), b'{"error": "no such page"}'
            if self.beyond == "last":
                page = max(pages, 1)
        data = found[(page - 1) * size : page * size]
        return json_answer({"data": data, **self.says(pages, len(found)), "currentPage": page})


class Listed:
    """Agents or versions, by how many to skip."""

    def __init__(self, name: str, items: Sequence[dict[str, Any]]) -> None:
        self.name = name
        self.items = list(items)
        self.refuses_over: int | None = None
        self.gives_most: int | None = None
        self.says: Callable[[bool, int], dict[str, object]] = lambda more, count: {
            "hasMore": more,
            "totalCount": count,
        }
        #: Whether skipping beyond the end gives the last page.
        self.clamps = False
        self.before_each: Callable[[], None] = lambda: None

    def __call__(self, request: httpx.Request) -> Answer:
        self.before_each()
        query: Mapping[str, str] = request.url.params
        limit, skip = int(query["limit"]), int(query["skip"])
        if self.refuses_over is not None and limit > self.refuses_over:
            return 400, b'{"error": "limit"}'
        size = min(limit, self.gives_most or limit)
        if self.clamps and skip >= len(self.items):
            skip = max(0, len(self.items) - size)
        page = self.items[skip : skip + size]
        said = self.says(skip + size < len(self.items), len(self.items))
        return json_answer({self.name: page, **said, "limit": size, "skip": skip})


def row(number: int, at_ms: int, agent_id: str = "agent_0001", **call: object) -> dict[str, Any]:
    return {
        "botId": agent_id,
        "conversationId": f"conversation_{number:04}",
        "created_at": iso(at_ms),
        "data": {
            "from": "+15551230101",
            "to": f"+1555123{number:04}",
            "direction": "outbound",
            "callStatus": "completed",
            "callDuration": 3,
            **call,
        },
    }


#: 2026-09-21T14:13:20.000Z, as in the samples.
BASE_MS = 1_790_000_000_000
_DAY_S = 86_400


def iso(ms: int) -> str:
    """Of an instant within a fortnight of BASE_MS, by hand: the 21st of September at 14:13:20."""
    seconds, millis = divmod(ms - BASE_MS + 51_200_000, 1000)
    day, second = divmod(seconds, _DAY_S)
    return (
        f"2026-09-{21 + day:02}T{second // 3600:02}:{second // 60 % 60:02}:{second % 60:02}"
        f".{millis:03}Z"
    )


def ms_of(text: str) -> int:
    """The reverse of `iso`."""
    day, hours, minutes = int(text[8:10]) - 21, int(text[11:13]), int(text[14:16])
    seconds = day * _DAY_S + hours * 3600 + minutes * 60 + int(text[17:19])
    return BASE_MS - 51_200_000 + seconds * 1000 + int(text[20:23])

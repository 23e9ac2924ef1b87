"""Dialgood as a server: its Partner API over a simulated company.

https://apidocs.dialgood.com/partner-api-2171894m0. Nothing is pushed. Assumed, as its pages leave
it open: the most records on a page, the order of a list, the unit of ``from`` and ``to``.
"""

import math
import secrets
import time
from bisect import bisect_left, bisect_right, insort
from collections import Counter, deque
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from datetime import UTC, tzinfo
from random import Random
from typing import Any, Literal
from zoneinfo import ZoneInfo

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from ingest.simulator.api_server import ApiServer, Asked, Front, Refusal, Served, Window, weather
from ingest.simulator.clock import Clock
from ingest.simulator.dialgood import (
    Agent,
    Agents,
    Row,
    Version,
    rows_of,
    show_agent,
    show_version,
    versions_of,
)
from ingest.simulator.faults import Faults
from ingest.simulator.scene import now_ms, scatter_equal, set_scene
from ingest.simulator.story import COMPRESSED, Tempo
from ingest.simulator.world import World

#: Of a page whose size nobody says.
_RECORDS, _AGENTS = 10, 25
_ZONE = "Australia/Melbourne"
_PATH = "/partner/v1/agents"


class SimulatedDialgood(Served):
    """What tests and people see of a running one; made by `simulated_dialgood`."""

    def __init__(
        self,
        world: World,
        clock: Clock,
        faults: Faults,
        *,
        api_key: str,
        most_a_page: int,
        time_unit: Literal["ms", "s"],
        clock_off_s: float,
        web_agents: int,
        requests_per_s: float | None,
        remember: int | None,
    ) -> None:
        #: The company, and the truth about it as far as it was told.
        self.world = world
        self.clock = clock
        self.faults = faults
        #: The only one that is good.
        self.api_key = api_key
        #: The largest ``limit``.
        self.most_a_page = most_a_page
        self.time_unit: Literal["ms", "s"] = time_unit
        #: Requests, by which a test proves what was asked for, and how often.
        self.requests: deque[Asked] = deque(maxlen=remember)
        #: How many answers there were, by status; also of what was forgotten.
        self.answers: Counter[str] = Counter()
        #: How often somebody has asked for decrypted secrets.
        self.scandals = 0
        self.agents = Agents(world.company, web_agents)
        self._off_ms = round(clock_off_s * 1000)
        #: By agent, by the time that they bear.
        self._rows: dict[str, list[Row]] = {agent.id: [] for agent in self.agents.all}
        #: How many legs of the world have become rows.
        self._heard = 0
        #: Agents that cannot be seen → until when.
        self._away: dict[str, float] = {}
        self._window = None if requests_per_s is None else Window(requests_per_s, 1)
        self._refusals = 0
        self._order = Random(world.seed)  # noqa: S311 - a database's whim
        app = Starlette(
            routes=[
                Route(_PATH, self._list_agents),
                Route(f"{_PATH}/{{id}}", self._one_agent),
                Route(f"{_PATH}/{{id}}/call-logs", self._call_logs),
                Route(f"{_PATH}/{{id}}/versions", self._versions),
                Route(f"{_PATH}/{{id}}/versions/{{version}}", self._one_version),
                Route(f"{_PATH}/{{id}}/settings", self._settings),
                Route(
                    f"{_PATH}/{{id}}/credentials",
                    self._credentials,
                    methods=["GET", "PATCH", "PUT", "POST", "DELETE"],
                ),
            ],
            exception_handlers={Refusal: _refused, HTTPException: _not_found},
        )
        self._server = ApiServer(
            Front(faults, self.requests, self._refuse, app, self.answers), faults
        )

    async def step(self, s: float) -> None:
        """Move a clock without a pace."""
        await self.clock.step(s)

    # The truth

    def rows(self, at_ms: int | None = None, agent_id: str | None = None) -> list[Row]:
        """Every record that is there at a time (None: now), of one agent or of all."""
        at_ms = self.clock.now_ms if at_ms is None else at_ms
        self._hear(at_ms)
        found = self._rows if agent_id is None else {agent_id: self._rows[agent_id]}
        return [row for rows in found.values() for row in rows if row.shown_ms <= at_ms]

    def records(
        self, at_ms: int | None = None, agent_id: str | None = None
    ) -> list[dict[str, Any]]:
        """The same as the API tells them."""
        at_ms = self.clock.now_ms if at_ms is None else at_ms
        return [row.record(at_ms) for row in self.rows(at_ms, agent_id)]

    def contents(self, to_ms: int | None = None) -> list[dict[str, Any]]:
        """Everything that every record has ever said until then."""
        to_ms = self.clock.now_ms if to_ms is None else to_ms
        return [record for row in self.rows(to_ms) for record in row.records(to_ms)]

    def hide(self, agent_id: str, s: float = math.inf) -> None:
        """Let an agent be gone, or be shared no more, for so many seconds of its clock."""
        self._away[agent_id] = self.clock.now_ms + s * 1000

    def show(self, agent_id: str) -> None:
        """Let it be back."""
        self._away.pop(agent_id, None)

    def _hear(self, at_ms: int) -> None:
        """Know of all that has happened until then."""
        self.world.advance(at_ms + 1)
        begun, pace = self.world.begun, self.world.tempo.pace
        for nth in range(self._heard, len(begun)):
            for row in rows_of(begun[nth], self.agents, self.faults, self._off_ms, pace):
                insort(self._rows[row.agent_id], row, key=_created)
        self._heard = len(begun)

    # Before anybody looks at what is asked

    def _refuse(self, request: Request) -> Response | None:
        if (struck := weather(self.faults, self._too_many, _error)) is not None:
            return struck
        now_s = time.monotonic()
        if self._window is not None:
            if (wait_s := self._window.wait_s(now_s)) > 0:
                return self._too_many(wait_s)
            self._window.take(now_s)
        key = request.headers.get("api_token") or request.query_params.get("api_token")
        if key != self.api_key or self.faults.key_revoked:
            return _error(401, "api_token is missing or not valid")
        if self.faults.partner_off:
            return _error(403, "partner access is not enabled for this user")
        return None

    def _too_many(self, wait_s: float) -> Response:
        """Every other time without saying when to come again."""
        self._refusals += 1
        headers = {"Retry-After": str(math.ceil(wait_s))} if self._refusals % 2 else {}
        return _error(429, "too many requests", headers)

    # Agents

    async def _list_agents(self, request: Request) -> Response:
        now = self.clock.now_ms
        self._hear(now)
        there = [agent for agent in self.agents.all if self._is_there(agent)]
        answer = self._skip(
            request, "agents", [show_agent(a, versions_of(a, self.world, now)) for a in there]
        )
        for agent in there:
            if self.faults.strikes("agents_vanish"):
                self.hide(agent.id, self.faults.agents_vanish_s)
        return answer

    async def _one_agent(self, request: Request) -> Response:
        agent = self._agent(request)
        return JSONResponse(show_agent(agent, versions_of(agent, self.world, self.clock.now_ms)))

    async def _settings(self, request: Request) -> Response:
        self._agent(request)
        return JSONResponse({"settings": {"language": "en"}})

    async def _credentials(self, request: Request) -> Response:
        self.scandals += 1
        self._agent(request)
        return JSONResponse({"credentials": {"token": "decrypted-secret-that-nobody-may-see"}})

    async def _versions(self, request: Request) -> Response:
        agent, versions = self._versions_of(request)
        newest_first = reversed(versions)
        return self._skip(request, "versions", [show_version(agent, v) for v in newest_first])

    async def _one_version(self, request: Request) -> Response:
        agent, versions = self._versions_of(request)
        for version in versions:
            if version.id == request.path_params["version"]:
                shown = {**show_version(agent, version), "updates": version.updates}
                return JSONResponse({"version": shown})
        raise Refusal(404, "version not found")

    def _versions_of(self, request: Request) -> tuple[Agent, list[Version]]:
        agent = self._agent(request)
        now = self.clock.now_ms
        self._hear(now)
        return agent, versions_of(agent, self.world, now)

    def _agent(self, request: Request) -> Agent:
        """Raises Refusal for one that is gone, that there never was, and somebody else's."""
        agent = self.agents.by_id.get(request.path_params["id"])
        if agent is None or not self._is_there(agent):
            raise Refusal(404, "agent not found")
        return agent

    def _is_there(self, agent: Agent) -> bool:
        return self._away.get(agent.id, 0) <= self.clock.now_ms

    def _skip(self, request: Request, what: str, items: Sequence[Any]) -> Response:
        limit = self._limit(request, _AGENTS)
        skip = _number(request, "skip", 0)
        total = len(items)
        if self.faults.strikes("totals_lie"):
            total = self._lie(total)
        return JSONResponse(
            {
                what: items[skip : skip + limit],
                "totalCount": total,
                "limit": limit,
                "skip": skip,
                "hasMore": skip + limit < len(items),
            }
        )

    # Call logs

    async def _call_logs(self, request: Request) -> Response:
        agent = self._agent(request)
        limit = self._limit(request, _RECORDS)
        page = _number(request, "page", 1)
        if page < 1:
            raise Refusal(400, "page must be 1 or more")
        zone = _zone(request)
        now = self.clock.now_ms
        self._hear(now)
        found = [record for _, record in self._chosen(request, agent, now, zone)]
        first = (page - 1) * limit
        pages, total = -(-len(found) // limit), len(found)
        if self.faults.strikes("totals_lie"):
            total = self._lie(total)
            # Nobody could know that a page that is not full has another one behind it.
            pages = max(page, pages + self.faults.up_to(3) - 2)
        return JSONResponse(
            {
                "data": found[first : first + limit],
                "totalPages": pages,
                "totalRecords": total,
                "currentPage": page,
            }
        )

    def _chosen(
        self, request: Request, agent: Agent, now: int, zone: tzinfo
    ) -> list[tuple[Row, dict[str, Any]]]:
        """The records that are asked for, the newest first; in no order where times are equal."""
        rows = self._rows[agent.id]
        unit = 1 if self.time_unit == "ms" else 1000
        first, last = _bound(request, "from"), _bound(request, "to")
        lowest = 0 if first is None else bisect_left(rows, first * unit, key=_created)
        highest = len(rows)
        if last is not None:
            # A second holds all of its milliseconds.
            highest = bisect_right(rows, last * unit + unit - 1, key=_created)
        shown = [row for row in reversed(rows[lowest:highest]) if row.shown_ms <= now]
        ordered = scatter_equal(shown, _created, self._order)
        records = ((row, row.record(now, zone)) for row in ordered)
        wanted = _filters(request)
        hide_web = _flag(request, "hidewebcalls")
        return [
            (row, record)
            for row, record in records
            if not (hide_web and row.web) and all(_has(record, *each) for each in wanted.items())
        ]

    def _limit(self, request: Request, usual: int) -> int:
        limit = _number(request, "limit", usual)
        if 1 <= limit <= self.most_a_page:
            return limit
        if limit > 1 and self.faults.page_caps:
            self.faults.counts["page_caps"] += 1
            return self.most_a_page
        raise Refusal(400, f"limit must be between 1 and {self.most_a_page}")

    def _lie(self, total: int) -> int:
        return max(0, total + self.faults.up_to(9) - 5)


@asynccontextmanager
async def simulated_dialgood(
    *,
    world: World | None = None,
    tempo: Tempo = COMPRESSED,
    seed: int = 1,
    start_ms: int | None = None,
    days: float = 0,
    pace: float | None = 1.0,
    clock: Clock | None = None,
    faults: Faults | None = None,
    api_key: str | None = None,
    port: int = 0,
    most_a_page: int = 100,
    time_unit: Literal["ms", "s"] = "ms",
    clock_off_s: float = 2.0,
    web_agents: int = 1,
    requests_per_s: float | None = None,
    remember: int | None = None,
) -> AsyncIterator[SimulatedDialgood]:
    """Serve a simulated Dialgood on this machine.

    ``world``, ``clock``: a company and a time that others have, too; else they are made of
    ``tempo``, ``seed``, ``days`` of past, ``start_ms`` (None: now) and ``pace``: how many seconds
    of the world go by in one of ours; None: none by themselves, `step` moves the clock.
    ``most_a_page``: the largest ``limit``. ``time_unit``: of ``from`` and ``to``. ``clock_off_s``:
    what its clock is ahead of the world's. ``web_agents``: how many share the talks on the web.
    ``requests_per_s``: what goes beyond is answered with 429; None: nothing is. ``remember``: how
    many requests are kept at most. Raises OSError if the port is taken.
    """
    faults = faults or Faults()
    faults.seed(seed)
    world, clock = set_scene(
        world,
        clock,
        tempo=tempo,
        seed=seed,
        start_ms=now_ms() if start_ms is None else start_ms,
        days=days,
        pace=pace,
    )
    dialgood = SimulatedDialgood(
        world,
        clock,
        faults,
        api_key=api_key or secrets.token_urlsafe(24),
        most_a_page=most_a_page,
        time_unit=time_unit,
        clock_off_s=clock_off_s,
        web_agents=web_agents,
        requests_per_s=requests_per_s,
        remember=remember,
    )
    async with dialgood.serving(port):
        yield dialgood


def _created(row: Row) -> int:
    return row.created_ms


#: What can be asked for by its value → where it stands in a record.
_PLACES = {
    "fromnumber": ("data", "from"),
    "tonumber": ("data", "to"),
    "status": ("data", "callStatus"),
    "direction": ("data", "direction"),
    "campaign": ("campaignId",),
    "conversationid": ("conversationId",),
}


def _filters(request: Request) -> dict[tuple[str, ...], str]:
    given = request.query_params
    return {place: given[name] for name, place in _PLACES.items() if name in given}


def _has(record: Mapping[str, Any], place: tuple[str, ...], value: str) -> bool:
    at: Any = record
    for key in place:
        at = at.get(key, {})
    return bool(at == value)


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()):
        raise Refusal(400, f"{name} must be a number")
    return int(text)


def _bound(request: Request, name: str) -> int | None:
    return _number(request, name, 0) if name in request.query_params else None


def _flag(request: Request, name: str) -> bool:
    text = request.query_params.get(name, "false")
    if text not in {"true", "false"}:
        raise Refusal(400, f"{name} must be true or false")
    return text == "true"


def _zone(request: Request) -> tzinfo:
    """Raises Refusal for one that there is not."""
    name = request.query_params.get("tz", _ZONE)
    try:
        return UTC if name == "UTC" else ZoneInfo(name)
    except (KeyError, OSError, ValueError):
        raise Refusal(400, "tz is not a time zone") from None


def _error(status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
    return JSONResponse({"error": text}, status, headers)


def _refused(_: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, Refusal)
    return _error(refusal.status, refusal.message)


def _not_found(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, error.detail)

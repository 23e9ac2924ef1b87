"""DialLink's API: keys, lists in pages, errors in several shapes.

https://developers.diallink.com (introduction to "Get an API key"). Assumed, as it is not published:
calls and recordings, the largest page, rates and what is answered beyond them.
"""

import json
import math
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from random import Random
from typing import Any, TypeVar
from uuid import uuid4

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ingest.simulator.api_server import (
    DAY_MS,
    PROXY_PAGE,
    Asked,
    Front,
    Refusal,
    Window,
    weather,
)
from ingest.simulator.clock import Clock
from ingest.simulator.diallink import (
    api_key,
    call_id,
    call_record,
    contact,
    is_listed,
    is_private,
    key_id,
    masked,
    number_of,
    recording,
    user,
)
from ingest.simulator.diallink_lists import (
    Calls,
    Condition,
    conditions,
    in_order,
    sorting,
    words,
)
from ingest.simulator.facts import Leg, Member
from ingest.simulator.faults import Faults
from ingest.simulator.scene import scatter_equal
from ingest.simulator.world import World

KEY_LIFE_MS = 365 * DAY_MS

T = TypeVar("T")

_PAGE_SIZE = 20
#: By how many places an item may stand wrong in a list that nobody sorts.
_ASTRAY = 30
_PHONES, _HUB = "/v1/phone-system", "/v1/account-hub"
_PAGING = frozenset({"pageNumber", "pageSize", "sort"})

_CALL_FIELDS = words(
    "id direction status from to startedAt answeredAt endedAt duration userId contactId "
    "recordingId updatedAt"
)
_RECORDING_FIELDS = words("id callId url startedAt duration updatedAt")
_USER_FIELDS = words("id email firstName lastName jobTitle admin updatedAt")
_CONTACT_FIELDS = words("id type firstName lastName companyName shared favorite updatedAt")
_KEY_FIELDS = words("id name enabled expiresAt")


@dataclass(slots=True)
class Key:
    """An API key: it has the rights of the user who made it."""

    id: str
    name: str
    user: Member
    #: By the provider's clock.
    expires_ms: int
    enabled: bool = True


class Rest:
    """The API as an ASGI application."""

    def __init__(
        self,
        world: World,
        clock: Clock,
        faults: Faults,
        calls: Calls,
        keys: dict[str, Key],
        asked: deque[Asked],
        *,
        off_ms: int,
        most_a_page: int,
        requests_per_s: float | None,
    ) -> None:
        self._world, self._clock, self._faults = world, clock, faults
        self._calls = calls
        self._keys = keys
        self._off_ms = off_ms
        self.most_a_page = most_a_page
        #: Answers by their status.
        self.sums: Counter[str] = Counter()
        self._window = None if requests_per_s is None else Window(requests_per_s, 1)
        self._refusals = 0
        self._numbers = count(2)
        #: Keys that have been let in.
        self._welcome: set[str] = set()
        self._order = Random(world.seed)  # noqa: S311 - a database's whim
        app = Starlette(
            routes=[
                Route(f"{_PHONES}/users", self._users),
                Route(f"{_PHONES}/users/me", self._me),
                Route(f"{_PHONES}/contacts", self._contacts),
                Route(f"{_PHONES}/calls", self._list_calls),
                Route(f"{_PHONES}/calls/{{id}}", self._one_call),
                Route(f"{_PHONES}/recordings", self._recordings),
                Route(f"{_HUB}/api-keys", self._api_keys, methods=["GET", "POST"]),
                Route(f"{_HUB}/api-keys/{{id}}", self._one_key),
            ],
            exception_handlers={Refusal: self._refused, HTTPException: self._not_found},
        )
        self._front = Front(faults, asked, self._refuse, app, self.sums)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, unless a fault does."""
        await self._front(scope, receive, send)

    # Before anybody looks at what is asked

    def _refuse(self, request: Request) -> Response | None:
        key = request.headers.get("x-api-key", "")
        too_many = self._too_often if key in self._welcome else self._too_many
        if (struck := weather(self._faults, too_many, self._error)) is not None:
            return struck
        now_s = time.monotonic()
        if self._window is not None:
            if (wait_s := self._window.wait_s(now_s)) > 0:
                return too_many(wait_s)
            self._window.take(now_s)
        found = self._keys.get(key)
        if found is None or not found.enabled or self._faults.key_revoked:
            return self._error(401, "The API key is missing or not valid")
        if found.expires_ms <= self._now_ms:
            return self._error(401, "The API key is not valid")
        self._welcome.add(key)
        request.scope["diallink.key"] = found
        return None

    def _too_many(self, wait_s: float) -> Response:
        """Every other time without saying when to come again."""
        self._refusals += 1
        headers = {"Retry-After": str(math.ceil(wait_s))} if self._refusals % 2 else {}
        return self._error(429, "Too many requests", headers)

    def _too_often(self, wait_s: float) -> Response:
        """The same to who was let in before; two of four times it is 403."""
        answer = self._too_many(wait_s)
        if self._refusals % 4 in {3, 0}:
            answer.status_code = 403
        return answer

    @property
    def _now_ms(self) -> int:
        """What the provider's clock says."""
        return self._clock.now_ms + self._off_ms

    # What can be asked

    async def _users(self, request: Request) -> Response:
        world, now = self._world, self._clock.now_ms
        items = [user(world, member, now) for member in world.users]
        changed = {item["id"]: world.start_ms + self._off_ms for item in items}
        return self._list(request, items, _USER_FIELDS, changed)

    async def _me(self, request: Request) -> Response:
        key: Key = request.scope["diallink.key"]
        shown = user(self._world, key.user, self._clock.now_ms)
        return JSONResponse({**shown, "admin": self._is_admin(request)})

    async def _contacts(self, request: Request) -> Response:
        """What was written down last can be sorted by, and is not shown."""
        now = self._clock.now_ms
        self._calls.hear(now)
        key: Key = request.scope["diallink.key"]
        items, changed = [], {}
        for outsider in self._world.contacts(now).values():
            if self._is_admin(request) or outsider.owner_id in {None, key.user.id}:
                changes = self._world.contact_changes.get(outsider.id, [])
                times = [change.at_ms for change in changes if change.at_ms <= now]
                item = contact(outsider)
                items.append(item)
                changed[item["id"]] = max(times, default=self._world.start_ms) + self._off_ms
        return self._list(request, items, _CONTACT_FIELDS, changed)

    async def _list_calls(self, request: Request) -> Response:
        now = self._clock.now_ms
        self._calls.hear(now)
        wanted = self._conditions(request, _CALL_FIELDS)
        order = self._sorting(request, _CALL_FIELDS)
        by = order[0] if order else None
        if by == "startedAt":
            found = self._calls.begun(now, self._floor(wanted, by))
        else:
            found = self._calls.changed(now, self._floor(wanted, "updatedAt"))
        seen = [(at, leg) for at, leg in found if self._may_see(request, leg)]
        is_found = by in {"startedAt", "updatedAt"} and all(_is_floor(c, by) for c in wanted)
        if order is None or not is_found:
            items = [self._show(leg) for _, leg in seen]
            return self._list(request, items, _CALL_FIELDS)
        if order[1]:
            seen.reverse()
        legs = [leg for _, leg in scatter_equal(seen, _first, self._order)]
        return self._page(request, legs, self._show)

    def _floor(self, wanted: Sequence[Condition], field: str) -> int:
        """The least time that is wanted, by the world's clock."""
        floors = [c.values[0] for c in wanted if _is_floor(c, field)]
        return max(floors, default=0) - self._off_ms

    async def _one_call(self, request: Request) -> Response:
        number = number_of(request.path_params["id"])
        self._calls.hear(self._clock.now_ms)
        leg = self._world.legs.get(number or 0)
        if (
            leg is None
            or leg.started_ms > self._clock.now_ms
            or call_id(leg.id) != request.path_params["id"]
            or not is_listed(leg)
            or not self._may_see(request, leg)
        ):
            raise Refusal(404, "Call not found")
        return JSONResponse(self._show(leg))

    def _show(self, leg: Leg) -> dict[str, Any]:
        late = self._calls.late_change_of(leg)
        return call_record(leg, self._clock.now_ms, late, self._off_ms)

    def _may_see(self, request: Request, leg: Leg) -> bool:
        key: Key = request.scope["diallink.key"]
        return self._is_admin(request) or not is_private(leg) or leg.host.id == key.user.id

    async def _recordings(self, request: Request) -> Response:
        now = self._clock.now_ms
        self._calls.hear(now)
        legs = (leg for _, leg in self._calls.recorded(now) if self._may_see(request, leg))
        items = [recording(leg, self._off_ms) for leg in legs]
        return self._list(request, items, _RECORDING_FIELDS)

    async def _api_keys(self, request: Request) -> Response:
        if request.method == "POST":
            return await self._make_key(request)
        items = [self._show_key(text, key) for text, key in self._keys.items()]
        return self._list(request, items, _KEY_FIELDS)

    async def _make_key(self, request: Request) -> Response:
        try:
            body = json.loads(await request.body())
        except ValueError:
            raise Refusal(400, "The body is not JSON") from None
        given = body if isinstance(body, dict) else {}
        name, enabled = given.get("name"), given.get("enabled")
        if not isinstance(name, str) or not isinstance(enabled, bool):
            raise Refusal(400, "name and enabled are required")
        maker: Key = request.scope["diallink.key"]
        text = new_key()
        made = Key(
            key_id(next(self._numbers)), name, maker.user, self._now_ms + KEY_LIFE_MS, enabled
        )
        self._keys[text] = made
        # It is shown this once.
        return JSONResponse(self._show_key(text, made) | {"key": text}, 201)

    async def _one_key(self, request: Request) -> Response:
        for text, key in self._keys.items():
            if key.id == request.path_params["id"]:
                return JSONResponse(self._show_key(text, key))
        raise Refusal(404, "API key not found")

    @staticmethod
    def _show_key(text: str, key: Key) -> dict[str, Any]:
        return api_key(key.id, key.name, masked(text), key.expires_ms, enabled=key.enabled)

    def _is_admin(self, request: Request) -> bool:
        key: Key = request.scope["diallink.key"]
        return key.user.admin and not self._faults.not_admin

    # Lists

    def _conditions(self, request: Request, fields: frozenset[str]) -> list[Condition]:
        params = [each for each in request.query_params.multi_items() if each[0] not in _PAGING]
        found = conditions(params, fields)
        if any(condition.field == "updatedAt" for condition in found):
            self._refuse_updated()
        return found

    def _sorting(self, request: Request, fields: frozenset[str]) -> tuple[str, bool] | None:
        # A plus that is not encoded is a space.
        order = sorting(request.query_params.get("sort"), fields)
        if order is not None and order[0] == "updatedAt":
            self._refuse_updated()
        return order

    def _refuse_updated(self) -> None:
        if self._faults.updated_refused:
            self._faults.counts["updated_refused"] += 1
            raise Refusal(400, "updatedAt is not a field of this list")

    def _list(
        self,
        request: Request,
        items: Sequence[dict[str, Any]],
        fields: frozenset[str],
        changed: Mapping[str, int] | None = None,
    ) -> Response:
        """A page of what is asked for; ``changed``: by id, an `updatedAt` that is not shown."""
        wanted, order = self._conditions(request, fields), self._sorting(request, fields)
        if changed is not None:
            items = [{**item, "updatedAt": changed[item["id"]]} for item in items]
        chosen = [item for item in items if all(c.holds(item) for c in wanted)]
        if order is None:
            # The database's order, from the bottom: the next time it is another one.
            places = {
                id(item): nth + self._order.randint(0, _ASTRAY) for nth, item in enumerate(chosen)
            }
            chosen.sort(key=lambda item: places[id(item)], reverse=True)
        else:
            by, descending = order
            chosen = in_order(chosen, by, descending=descending)
            chosen = scatter_equal(chosen, lambda item: item.get(by), self._order)
        hidden = set() if changed is None else {"updatedAt"}
        return self._page(request, chosen, lambda item: _without(item, hidden))

    def _page(
        self, request: Request, items: Sequence[T], show: Callable[[T], dict[str, Any]]
    ) -> Response:
        number = _number(request, "pageNumber", 1)
        size = self._size(request)
        if number < 1:
            raise Refusal(400, "pageNumber must be 1 or more")
        first, total = (number - 1) * size, len(items)
        there_is_more = first + size < total
        paging: dict[str, Any] = {
            "pageNumber": number,
            "pageSize": size,
            "totalNumberOfRecords": total,
            "totalNumberOfPages": -(-total // size),
            "hasNextPage": there_is_more,
            "hasPreviousPage": number > 1,
        }
        if "sort" in request.query_params:
            paging["sortingCriteria"] = request.query_params["sort"]
        paging["hasMore"] = there_is_more
        if self._faults.strikes("totals_lie"):
            paging |= {
                "totalNumberOfRecords": self._faults.up_to(total + 2) - 1,
                "totalNumberOfPages": self._faults.up_to(9),
                "hasMore": self._faults.up_to(2) == 1,
            }
        if self._faults.strikes("pages_bare"):
            paging = {}
        data = [show(item) for item in items[first : first + size]]
        return JSONResponse({"data": data, "paging": paging})

    def _size(self, request: Request) -> int:
        size = _number(request, "pageSize", min(_PAGE_SIZE, self.most_a_page))
        if 1 <= size <= self.most_a_page:
            return size
        if size > 1 and self._faults.page_caps:
            self._faults.counts["page_caps"] += 1
            return self.most_a_page
        raise Refusal(400, f"pageSize must be between 1 and {self.most_a_page}")

    # Errors

    def _error(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> Response:
        """Usually under ``message``; where the fault strikes, in any other shape."""
        if not self._faults.strikes("error_shapes"):
            return JSONResponse({"message": text}, status, headers)
        answers: Sequence[tuple[str, object]] = (
            ("application/json", {"description": text, "code": status}),
            ("application/json", {"error": text}),
            ("application/json", {"errors": [{"field": None, "message": text}]}),
            ("text/html", {"message": text}),
            ("text/plain", text),
            ("application/json", text),
            ("text/html", PROXY_PAGE.decode()),
        )
        kind, value = answers[self._faults.up_to(len(answers)) - 1]
        content = value if isinstance(value, str) else json.dumps(value)
        return Response(content, status, headers, media_type=kind)

    def _refused(self, _: Request, refusal: Exception) -> Response:
        assert isinstance(refusal, Refusal)
        return self._error(refusal.status, refusal.message)

    def _not_found(self, _: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        return self._error(error.status_code, error.detail)


def new_key() -> str:
    """Two UUIDs, joined by a plus."""
    return f"{uuid4()}+{uuid4()}"


def _is_floor(condition: Condition, field: str | None) -> bool:
    """Whether it is the least time of a field that is wanted."""
    return (
        condition.field == field
        and condition.op == "gte"
        and all(isinstance(value, int) for value in condition.values)
    )


def _first(found: tuple[int, Leg]) -> int:
    return found[0]


def _without(item: dict[str, Any], hidden: set[str]) -> dict[str, Any]:
    return {key: value for key, value in item.items() if key not in hidden}


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()):
        raise Refusal(400, f"{name} must be a number")
    return int(text)

"""Dialpad's API: keys, rates, lists in pages, and the faults between it and whoever asks.

https://developers.dialpad.com/reference, https://developers.dialpad.com/docs/rate-limits
"""

import base64
import json
import math
import time
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, groupby
from typing import Any, TypeAlias, TypeVar

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from ingest.simulator.api_server import DAY_MS, Asked, Front, Refusal, Window, weather
from ingest.simulator.clock import Clock
from ingest.simulator.dialpad import (
    rest_call,
    rest_call_center,
    rest_company,
    rest_contact,
    rest_department,
    rest_duty_status,
    rest_number,
    rest_office,
    rest_optout,
    rest_recap,
    rest_transcript,
    rest_user,
)
from ingest.simulator.dialpad_resources import (
    FIELDS,
    FOR_ADMINS,
    NEEDED_SCOPES,
    SCOPES,
    Resources,
    Subscription,
    Webhook,
    Websocket,
    is_of_target,
)
from ingest.simulator.facts import Leg, Member
from ingest.simulator.faults import Faults
from ingest.simulator.world import World

MOST_CALLS_A_PAGE = 50
MOST_A_PAGE = 100
LONGEST_WINDOW_MS = 30 * DAY_MS


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """How many requests are answered; by our clock, however fast the world's goes."""

    company_per_s: float = 20
    call_per_min: float = 10
    recap_per_min: float = 12
    webhook_per_min: float = 100
    websocket_per_min: float = 250
    optouts_per_min: float = 250


@dataclass(frozen=True, slots=True)
class Key:
    """An API key."""

    scopes: frozenset[str] = SCOPES
    admin: bool = True


T = TypeVar("T")

#: Where an item stands in a list.
Place: TypeAlias = list[int]
#: Given where to begin (None: at the start) and how many: the items, each with its place.
Walk: TypeAlias = Callable[[Place | None, int], Sequence[tuple[Place, Any]]]

#: By how many items a page may begin too early or too late.
MOST_SHIFTED = 3


@dataclass(slots=True)
class Rest:
    """The API as an ASGI application."""

    clock: Clock
    resources: Resources
    world: World
    #: Calls that are listed later than they ended → when.
    late_calls: Mapping[int, int]
    faults: Faults
    keys: dict[str, Key]
    rates: Rates
    asked: deque[Asked]
    #: Items of a page whose size nobody says.
    page_size: int = 50
    #: Answers by their status.
    sums: Counter[str] = field(default_factory=Counter)
    _front: Front = field(init=False)
    _windows: dict[str, Window] = field(init=False)
    _refusals: int = 0
    _nonces: Iterator[int] = field(default_factory=count)

    def __post_init__(self) -> None:
        rates = self.rates
        self._windows = {
            "company": Window(rates.company_per_s, 1),
            "call": Window(rates.call_per_min, 60),
            "recap": Window(rates.recap_per_min, 60),
            "webhook": Window(rates.webhook_per_min, 60),
            "websocket": Window(rates.websocket_per_min, 60),
            "optouts": Window(rates.optouts_per_min, 60),
        }
        app = Starlette(
            routes=self._routes(),
            exception_handlers={Refusal: _refused, HTTPException: _not_found},
        )
        self._front = Front(self.faults, self.asked, self._refuse, app, self.sums)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, unless a fault does."""
        await self._front(scope, receive, send)

    # Before anybody looks at what is asked

    def _refuse(self, request: Request) -> Response | None:
        response = self._fault()
        if response is None:
            try:
                self._let_in(request)
            except Refusal as refusal:
                response = _error(refusal.status, refusal.message)
        return response

    def _fault(self) -> Response | None:
        if (struck := weather(self.faults, self._too_many, _error)) is not None:
            return struck
        now_s = time.monotonic()
        window = self._windows["company"]
        if (wait_s := window.wait_s(now_s)) > 0:
            return self._too_many(wait_s)
        window.take(now_s)
        return None

    def _too_many(self, wait_s: float) -> Response:
        """Every other time without saying when to come again."""
        self._refusals += 1
        headers = {"Retry-After": str(math.ceil(wait_s))} if self._refusals % 2 else {}
        return _error(429, "too many requests", headers)

    def _limit(self, name: str) -> None:
        window, now_s = self._windows[name], time.monotonic()
        if window.wait_s(now_s) > 0:
            raise Refusal(429, "too many requests")
        window.take(now_s)

    def _let_in(self, request: Request) -> None:
        scheme, _, given = request.headers.get("authorization", "").partition(" ")
        name = given if scheme.lower() == "bearer" else request.query_params.get("apikey", "")
        key = self.keys.get(name)
        if key is None or self.faults.key_revoked:
            raise Refusal(401, "the API key is missing or not valid")
        request.scope["dialpad.key"] = key

    def _scopes(self, request: Request) -> frozenset[str]:
        key: Key = request.scope["dialpad.key"]
        return key.scopes - set(self.faults.missing_scopes)

    def _needs(self, request: Request, *, scope: str | None = None, admin: bool = False) -> None:
        key: Key = request.scope["dialpad.key"]
        if admin and (not key.admin or self.faults.not_admin):
            raise Refusal(403, "a company admin's API key is needed")
        if scope is not None and scope not in self._scopes(request):
            raise Refusal(403, f"the API key lacks the scope {scope}")

    # What can be asked

    def _routes(self) -> list[Route]:
        return [
            *self._resource("/api/v2/webhooks", self._webhooks, self._webhook),
            *self._resource("/api/v2/websockets", self._websockets, self._websocket),
            *self._resource(
                "/api/v2/subscriptions/{kind}", self._subscriptions, self._subscription
            ),
            Route("/api/v2/call", self._calls),
            Route("/api/v2/call/{id}", self._call),
            Route("/api/v2/company", self._company),
            Route("/api/v2/company/{id}/smsoptout", self._optouts),
            Route("/api/v2/call/{id}/ai_recap", self._recap),
            Route("/api/v2/transcripts/{id}", self._transcript),
            Route("/api/v2/contacts", self._contacts),
            Route("/api/v2/contacts/{id}", self._contact),
            Route("/api/v2/users", self._users),
            Route("/api/v2/users/{id}", self._user),
            Route("/api/v2/offices", self._offices),
            Route("/api/v2/departments", self._departments),
            Route("/api/v2/callcenters", self._call_centers),
            Route("/api/v2/callcenters/operators/{id}/dutystatus", self._duty_status),
            Route("/api/v2/numbers", self._numbers),
        ]

    @staticmethod
    def _resource(path: str, many: "Handler", one: "Handler") -> list[Route]:
        return [
            Route(path, many, methods=["GET", "POST"]),
            Route(f"{path}/{{id}}", one, methods=["GET", "PATCH", "DELETE"]),
        ]

    async def _webhooks(self, request: Request) -> Response:
        resources = self.resources
        if request.method == "POST":
            self._limit("webhook")
            return JSONResponse(
                resources.show_webhook(resources.create_webhook(await _body(request)))
            )
        return self._list(request, _by_id(resources.webhooks, resources.show_webhook))

    async def _webhook(self, request: Request) -> Response:
        resources = self.resources
        webhook: Webhook = _found(resources.webhooks, request)
        if request.method == "PATCH":
            resources.patch_webhook(webhook, await _body(request))
        shown = resources.show_webhook(webhook)
        if request.method == "DELETE":
            del resources.webhooks[webhook.id]
        return JSONResponse(shown)

    async def _websockets(self, request: Request) -> Response:
        resources = self.resources
        if request.method == "POST":
            self._limit("websocket")
            return JSONResponse(
                resources.show_websocket(resources.create_websocket(await _body(request)))
            )
        return self._list(request, _by_id(resources.websockets, resources.show_websocket))

    async def _websocket(self, request: Request) -> Response:
        resources = self.resources
        websocket: Websocket = _found(resources.websockets, request)
        if request.method == "PATCH":
            resources.patch_websocket(websocket, await _body(request))
        shown = resources.show_websocket(websocket)
        if request.method == "DELETE":
            del resources.websockets[websocket.id]
        return JSONResponse(shown)

    async def _subscriptions(self, request: Request) -> Response:
        kind = self._kind(request)
        if request.method == "POST":
            made = self.resources.create_subscription(
                kind, await _body(request), self._scopes(request)
            )
            return JSONResponse(self.resources.show_subscription(made))
        wanted = {
            name: request.query_params[name]
            for name in ("target_type", "target_id")
            if name in FIELDS[kind] and name in request.query_params
        }
        chosen = {
            subscription.id: subscription
            for subscription in self.resources.subscriptions[kind].values()
            if all(str(subscription.fields.get(n)) == value for n, value in wanted.items())
        }
        return self._list(request, _by_id(chosen, self.resources.show_subscription))

    async def _subscription(self, request: Request) -> Response:
        kind = self._kind(request)
        there = self.resources.subscriptions[kind]
        subscription: Subscription = _found(there, request)
        if request.method == "PATCH":
            self.resources.patch_subscription(subscription, await _body(request))
        shown = self.resources.show_subscription(subscription)
        if request.method == "DELETE":
            del there[subscription.id]
        return JSONResponse(shown)

    def _kind(self, request: Request) -> str:
        kind: str = request.path_params["kind"]
        if kind not in FIELDS:
            raise Refusal(404, "there is no such kind of subscription")
        self._needs(request, scope=NEEDED_SCOPES.get(kind), admin=kind in FOR_ADMINS)
        return kind

    async def _calls(self, request: Request) -> Response:
        self._needs(request, scope="calls:list", admin=True)
        now_ms = self.clock.now_ms
        before_ms = _number(request, "started_before", now_ms + 1)
        after_ms = _number(request, "started_after", before_ms - LONGEST_WINDOW_MS + 1)
        if not 0 <= before_ms - after_ms < LONGEST_WINDOW_MS:
            raise Refusal(400, "started_after and started_before must span less than 30 days")

        def walk(place: Place | None, most: int) -> list[tuple[Place, Any]]:
            """Places are starts and ids: what is listed later shifts nothing."""
            found: list[tuple[Place, Any]] = []
            last_ms = before_ms if place is None else min(before_ms, place[0] + 1)
            legs = self.world.concluded(now_ms, after_ms=after_ms, before_ms=last_ms)
            for start_ms, together in groupby(legs, key=lambda leg: leg.started_ms):
                for leg in sorted(together, key=lambda leg: leg.id, reverse=True):
                    at = [start_ms, leg.id]
                    if (place and at > place) or self.late_calls.get(leg.id, 0) > now_ms:
                        continue
                    item = rest_call(leg)
                    if _is_about(request, item):
                        found.append((at, item))
                        if len(found) == most:
                            return found
            return found

        return self._list(request, walk, most=MOST_CALLS_A_PAGE)

    async def _call(self, request: Request) -> Response:
        self._limit("call")
        return JSONResponse(rest_call(self._leg(request)))

    def _leg(self, request: Request) -> Leg:
        """A call as it is known now; 404 before it has begun."""
        leg = _found(self.world.legs, request)
        if leg.started_ms > self.clock.now_ms:
            raise Refusal(404, "there is none with this id")
        return leg.as_of(self.clock.now_ms)

    async def _company(self, request: Request) -> Response:
        return JSONResponse(rest_company(self.world.company))

    async def _optouts(self, request: Request) -> Response:
        self._needs(request, admin=True)
        company = self.world.company
        if request.path_params["id"] != str(company.id):
            raise Refusal(404, "there is none with this id")
        state = request.query_params.get("opt_out_state")
        if state not in {"opted_out", "opted_back_in"}:
            raise Refusal(400, "opt_out_state is required")
        self._limit("optouts")
        chosen = {
            consent.outsider.id: consent
            for consent in self.world.consents(self.clock.now_ms)
            if consent.opted_out == (state == "opted_out")
        }
        return self._list(request, _by_id(chosen, lambda consent: rest_optout(company, consent)))

    async def _recap(self, request: Request) -> Response:
        self._limit("recap")
        self._needs(request, scope="ai_recap")
        recap = rest_recap(self._leg(request))
        if recap is None:
            raise Refusal(404, "there is no recap of this call")
        return JSONResponse(recap)

    async def _transcript(self, request: Request) -> Response:
        leg = self._leg(request)
        if leg.transcript_ready_ms is None:
            raise Refusal(404, "there is no transcript of this call")
        return JSONResponse(rest_transcript(leg))

    async def _contacts(self, request: Request) -> Response:
        """The company's; with `include_local` everybody's too, with `owner_id` only one user's."""
        owner_id = request.query_params.get("owner_id")
        with_local = request.query_params.get("include_local", "").lower() == "true"
        chosen = {
            ident: outsider
            for ident, outsider in self.world.contacts(self.clock.now_ms).items()
            if (with_local and owner_id is None) or (owner_id or "None") == str(outsider.owner_id)
        }
        return self._list(request, _by_id(chosen, rest_contact))

    async def _contact(self, request: Request) -> Response:
        return JSONResponse(rest_contact(_found(self.world.contacts(self.clock.now_ms), request)))

    async def _users(self, request: Request) -> Response:
        return self._list(request, _by_id(self._people(), self._show_user))

    async def _user(self, request: Request) -> Response:
        return JSONResponse(self._show_user(_found(self._people(), request)))

    def _people(self) -> dict[int, Member]:
        return {member.id: member for member in self.world.users}

    def _show_user(self, member: Member) -> dict[str, Any]:
        return rest_user(self.world, member, self.clock.now_ms)

    async def _offices(self, request: Request) -> Response:
        company = self.world.company
        offices = {office.id: office for office in company.offices}
        return self._list(request, _by_id(offices, lambda office: rest_office(company, office)))

    async def _departments(self, request: Request) -> Response:
        departments = {department.id: department for department in self.world.departments}
        return self._list(request, _by_id(departments, rest_department))

    async def _call_centers(self, request: Request) -> Response:
        centres = {centre.id: centre for centre in self.world.centres}
        return self._list(request, _by_id(centres, rest_call_center))

    async def _duty_status(self, request: Request) -> Response:
        member = _found(self._people(), request)
        return JSONResponse(rest_duty_status(self.world, member, self.clock.now_ms))

    async def _numbers(self, request: Request) -> Response:
        company = self.world.company
        numbers = {int(number.number[1:]): number for number in company.numbers}
        return self._list(request, _by_id(numbers, lambda number: rest_number(company, number)))

    # Lists

    def _list(self, request: Request, walk: Walk, *, most: int = MOST_A_PAGE) -> Response:
        """A page, and the cursor of the next one; an empty page has no items at all."""
        size = _number(request, "limit", min(most, self.page_size))
        if not 1 <= size <= most:
            raise Refusal(400, f"limit must be {most} at most")
        place = _place(request)
        found = walk(place, size + 1 + MOST_SHIFTED)
        page = found[:size]
        answer: dict[str, Any] = {}
        if len(found) > size:
            answer["cursor"] = self._cursor(request, found, size)
        elif self.faults.strikes("cursor_loops"):
            answer["cursor"] = request.query_params.get("cursor", _cursor(place))
        if page:
            answer["items"] = [item for _, item in page]
        return JSONResponse(answer)

    def _cursor(self, request: Request, found: Sequence[tuple[Place, Any]], size: int) -> str:
        """Where the next page begins, or where a fault has it begin."""
        faults = self.faults
        if faults.strikes("cursor_loops"):
            return request.query_params.get("cursor", _cursor(_place(request)))
        if faults.strikes("page_repeats"):
            return _cursor(found[0][0], next(self._nonces))
        shift = 0
        if faults.strikes("page_changes"):
            shift = -min(faults.up_to(MOST_SHIFTED), size)
        elif faults.strikes("page_skips"):
            shift = faults.up_to(MOST_SHIFTED)
        return _cursor(found[min(size + shift, len(found) - 1)][0])


Handler: TypeAlias = Callable[[Request], Awaitable[Response]]


def _cursor(place: Place | None, nonce: int | None = None) -> str:
    return base64.urlsafe_b64encode(json.dumps([place, nonce]).encode()).decode()


def _place(request: Request) -> Place | None:
    """Where the page begins that a request asks for; None: at the start."""
    cursor = request.query_params.get("cursor")
    if cursor is None:
        return None
    try:
        place, _ = json.loads(base64.urlsafe_b64decode(cursor))
        if place is None or (place and all(type(part) is int for part in place)):
            return place
    except (ValueError, TypeError):
        pass
    raise Refusal(400, "cursor is not valid")


def _number(request: Request, name: str, default: int) -> int:
    text = request.query_params.get(name)
    if text is None:
        return default
    if not (text.isascii() and text.isdigit()):
        raise Refusal(400, f"{name} is not valid")
    return int(text)


def _by_id(there: Mapping[int, T], show: Callable[[T], Any]) -> Walk:
    """Walk through what has ids, the oldest first."""

    def walk(place: Place | None, most: int) -> list[tuple[Place, Any]]:
        ids = sorted(ident for ident in there if place is None or [ident] >= place)
        return [([ident], show(there[ident])) for ident in ids[:most]]

    return walk


def _found(there: Mapping[int, T], request: Request) -> T:
    text = request.path_params["id"]
    found = there.get(int(text)) if text.isascii() and text.isdigit() else None
    if found is None:
        raise Refusal(404, "there is none with this id")
    return found


def _is_about(request: Request, item: Mapping[str, Any]) -> bool:
    """Whether a call is of the target that a request names, if it does."""
    kind, ident = (request.query_params.get(name) for name in ("target_type", "target_id"))
    if kind is None or ident is None:
        return True
    return is_of_target(item, kind, ident)


async def _body(request: Request) -> dict[str, Any]:
    try:
        body = json.loads(await request.body() or b"{}")
    except ValueError:
        raise Refusal(400, "the body is no JSON") from None
    if not isinstance(body, dict):
        raise Refusal(400, "the body is no object")
    return body


def _error(status: int, message: str, headers: Mapping[str, str] | None = None) -> Response:
    error = {"code": status, "message": message, "errors": [{"message": message}]}
    return JSONResponse({"error": error}, status, headers)


def _refused(_: Request, refusal: Exception) -> Response:
    assert isinstance(refusal, Refusal)
    return _error(refusal.status, refusal.message)


def _not_found(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    return _error(error.status_code, error.detail)

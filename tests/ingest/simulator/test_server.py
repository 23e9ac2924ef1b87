"""The simulated Dialpad as somebody sees it who calls its API, and to whom it delivers."""

import asyncio
import json
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from itertools import accumulate
from pathlib import Path
from typing import Any

import httpx
import jwt
import pytest
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidStatus

from ingest.simulator import dialpad_delivery
from ingest.simulator.clock import Clock
from ingest.simulator.dialpad import kind_of, payload
from ingest.simulator.dialpad_rest import Key, Rates
from ingest.simulator.dialpad_server import SimulatedDialpad, simulated_dialpad
from ingest.simulator.facts import (
    CallHappening,
    CallStep,
    ContactHappening,
    DutyHappening,
    Happening,
    Member,
    SettingHappening,
    TextHappening,
    TextStep,
)
from ingest.simulator.world import World
from tests.ingest.simulator.inbox import (
    BREAK_OFF,
    SAY_NOTHING,
    event_in,
    is_signed,
    open_inbox,
    until,
)

SAMPLES = Path(__file__).parents[2] / "samples" / "dialpad"
SECRET = "invented-secret-at-least-32-bytes-long!"
OTHER_SECRET = "another-invented-secret-of-some-length!!"
START_MS = 1_790_000_000_000
HOUR_MS, DAY_MS = 3_600_000, 86_400_000
FAST = Rates(company_per_s=100_000)

STORY: list[Happening] = list(World(5, START_MS).until(START_MS + 240_000))
CALLS = [happening for happening in STORY if isinstance(happening, CallHappening)]
TEXTS = [happening for happening in STORY if isinstance(happening, TextHappening)]
CONTACT = next(h for h in STORY if isinstance(h, ContactHappening))
DUTY = next(h for h in STORY if isinstance(h, DutyHappening))
SETTING = next(h for h in STORY if isinstance(h, SettingHappening))
RINGING = next(h for h in CALLS if payload(h)["state"] == "ringing")

EVERY_KIND: tuple[Happening, ...] = (RINGING, TEXTS[0], CONTACT, DUTY, SETTING)


@asynccontextmanager
async def silent_dialpad(**options: Any) -> AsyncIterator[SimulatedDialpad]:
    """One in whose world nothing happens by itself, and whose clock is moved by hand."""
    world = World(5, START_MS)
    given: dict[str, Any] = {
        "world": world,
        "start_ms": START_MS,
        "lasts_s": 0,
        "pace": None,
        "rates": FAST,
    }
    async with simulated_dialpad(**(given | options)) as dialpad:
        yield dialpad


def client(dialpad: SimulatedDialpad, key: str | None = None) -> httpx.AsyncClient:
    return httpx.AsyncClient(
        base_url=f"{dialpad.base_url}/api/v2",
        headers={"Authorization": f"Bearer {key or dialpad.api_key}"},
        trust_env=False,
    )


async def call(
    api: httpx.AsyncClient, method: str, path: str, body: object = None, *, status: int = 200
) -> Any:
    answer = await api.request(method, path, json=body)
    assert answer.status_code == status, answer.text
    return answer.json()


def sample(name: str) -> dict[str, Any]:
    value = json.loads((SAMPLES / f"{name}.json").read_bytes())
    assert isinstance(value, dict)
    return value


def shape(value: Any) -> Any:
    """Keys and types, without values."""
    if isinstance(value, dict):
        return {key: shape(inner) for key, inner in value.items()}
    return type(value)


async def frames(socket: ClientConnection, count: int) -> list[str]:
    async with asyncio.timeout(20):
        found = [await socket.recv() for _ in range(count)]
    assert all(isinstance(frame, str) for frame in found)
    return [str(frame) for frame in found]


# Webhooks, websockets, subscriptions


async def test_a_webhook_is_made_read_changed_and_deleted() -> None:
    hook_url = "https://hooks.example.com/dialpad/call"
    async with silent_dialpad() as dialpad, client(dialpad) as api:
        made = await call(api, "POST", "/webhooks", {"hook_url": hook_url, "secret": SECRET})
        assert shape(made) == shape(sample("rest-webhook-create-response"))
        assert made["signature"] == {"algo": "HS256", "secret": SECRET, "type": "jwt"}
        path = f"/webhooks/{made['id']}"
        assert await call(api, "GET", path) == made
        assert await call(api, "GET", "/webhooks") == {"items": [made]}
        changed = await call(api, "PATCH", path, {"secret": OTHER_SECRET})
        assert changed["hook_url"] == hook_url
        assert changed["signature"]["secret"] == OTHER_SECRET
        unsigned = await call(api, "POST", "/webhooks", {"hook_url": hook_url})
        assert shape(unsigned) == shape(sample("rest-webhook-no-secret"))
        assert unsigned["id"] != made["id"]
        assert await call(api, "DELETE", path) == changed
        assert await call(api, "GET", "/webhooks") == {"items": [unsigned]}
        for method in ("GET", "PATCH", "DELETE"):
            await call(api, method, path, status=404)


async def test_a_websocket_tells_a_new_address_each_time() -> None:
    async with silent_dialpad() as dialpad, client(dialpad) as api:
        made = await call(api, "POST", "/websockets", {"secret": SECRET})
        assert shape(made) == shape(sample("rest-websocket-create-response"))
        await dialpad.step(10)
        read = await call(api, "GET", f"/websockets/{made['id']}")
        assert read.pop("websocket_url") != made.pop("websocket_url")
        assert read == made
        plain = await call(api, "POST", "/websockets", {})
        assert plain.keys() == {"id", "websocket_url"}
        patched = await call(api, "PATCH", f"/websockets/{plain['id']}", {"secret": SECRET})
        assert patched["signature"]["secret"] == SECRET
        assert (await call(api, "DELETE", f"/websockets/{made['id']}"))["id"] == made["id"]
        assert len((await call(api, "GET", "/websockets"))["items"]) == 1


async def test_the_token_in_the_address_is_as_seen() -> None:
    async with silent_dialpad() as dialpad, client(dialpad) as api:
        made = await call(api, "POST", "/websockets", {})
        body = {"endpoint_id": int(made["id"])}
        subscription = await call(api, "POST", "/subscriptions/call", body)
    of_all = made["websocket_url"].rpartition("/events/")[2]
    of_one = subscription["websocket"]["websocket_url"].rpartition("/events/")[2]
    assert jwt.get_unverified_header(of_all)["typ"] == "vnd.dialpad.websocket+jwt"
    claims, claims_of_one = (
        jwt.decode(token, options={"verify_signature": False}) for token in (of_all, of_one)
    )
    assert claims.keys() == {"iss", "iat", "exp", "sub"}
    assert claims["exp"] - claims["iat"] == 3600
    assert claims["iat"] == START_MS // 1000
    assert claims["sub"] == f"endpoint:{made['id']}:*"
    assert claims_of_one["sub"] == f"endpoint:{made['id']}:call:{subscription['id']}"


@pytest.mark.parametrize(
    ("kind", "body", "like"),
    [
        (
            "call",
            {
                "call_states": ["connected", "hangup"],
                "group_calls_only": False,
                "target_type": "callcenter",
                "target_id": 5_000_000_000_000_301,
            },
            "rest-subscription-call-response",
        ),
        (
            "sms",
            {"direction": "all", "include_internal": True, "status": True},
            "rest-subscription-sms-response",
        ),
        ("contact", {"contact_type": "shared"}, "rest-subscription-contact-response"),
        ("agent_status", {"agent_type": "callcenter"}, "rest-subscription-agent-status-response"),
        ("changelog", {}, "rest-subscription-changelog-response"),
    ],
)
async def test_a_subscription_is_made_read_moved_and_deleted(
    kind: str, body: dict[str, Any], like: str
) -> None:
    async with silent_dialpad() as dialpad, client(dialpad) as api:
        hook = {"hook_url": "https://hooks.example.com/x", "secret": SECRET}
        first = await call(api, "POST", "/webhooks", hook)
        second = await call(api, "POST", "/webhooks", hook)
        here = f"/subscriptions/{kind}"
        assert await call(api, "GET", here) == {}
        made = await call(api, "POST", here, {**body, "endpoint_id": int(first["id"])})
        assert shape(made) == shape(sample(like))
        assert made["webhook"] == first
        assert made["enabled"] is True
        path = f"{here}/{made['id']}"
        assert await call(api, "GET", path) == made
        needed = {"contact_type": "shared"} if kind == "contact" else {}
        moved = await call(api, "PATCH", path, {**needed, "endpoint_id": second["id"]})
        assert moved == {**made, "webhook": second}
        off = await call(api, "PATCH", path, {**needed, "enabled": False})
        assert off == {**moved, "enabled": False}
        again = await call(api, "POST", here, {**body, "webhook_id": int(second["id"])})
        listed = (await call(api, "GET", here))["items"]
        assert [item["id"] for item in listed] == [made["id"], again["id"]]
        assert await call(api, "DELETE", path) == off
        await call(api, "GET", path, status=404)


async def test_what_is_unset_is_not_told_and_can_be_unset_again() -> None:
    async with silent_dialpad() as dialpad, client(dialpad) as api:
        socket = await call(api, "POST", "/websockets", {})
        made = await call(api, "POST", "/subscriptions/call", {"endpoint_id": int(socket["id"])})
        assert made.keys() == {"id", "enabled", "websocket"}
        path = f"/subscriptions/call/{made['id']}"
        target = {"target_type": "user", "target_id": 7}
        set_ = await call(api, "PATCH", path, target)
        assert (set_["target_type"], set_["target_id"]) == ("user", "7")
        unset = await call(api, "PATCH", path, {"target_type": None, "target_id": None})
        assert unset.keys() == made.keys()


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        ("call", {"call_states": ["sleeping"]}),
        ("call", {"call_states": "all"}),
        ("call", {"enabled": "FALSE"}),
        ("call", {"target_type": "user"}),
        ("call", {"target_type": "planet", "target_id": 1}),
        ("call", {"target_type": "user", "target_id": 2**63}),
        ("sms", {}),
        ("sms", {"direction": "both"}),
        ("contact", {}),
        ("contact", {"contact_type": "google"}),
        ("agent_status", {}),
        ("changelog", {"enabled": 1}),
    ],
)
async def test_a_body_that_is_wrong_makes_nothing(kind: str, body: dict[str, Any]) -> None:
    async with silent_dialpad() as dialpad, client(dialpad) as api:
        hook = await call(api, "POST", "/webhooks", {"hook_url": "http://127.0.0.1:1"})
        body = {"endpoint_id": int(hook["id"]), **body}
        error = await call(api, "POST", f"/subscriptions/{kind}", body, status=400)
        assert error["error"]["code"] == 400
        assert await call(api, "GET", f"/subscriptions/{kind}") == {}


async def test_what_is_needed_must_be_there() -> None:
    async with silent_dialpad() as dialpad, client(dialpad) as api:
        await call(api, "POST", "/subscriptions/call", {}, status=400)
        await call(api, "POST", "/subscriptions/call", {"endpoint_id": 12}, status=404)
        await call(api, "POST", "/webhooks", {}, status=400)
        await call(api, "POST", "/webhooks", {"hook_url": "ftp://x"}, status=400)
        await call(api, "POST", "/webhooks", {"hook_url": "http://x", "secret": 1}, status=400)
        hook = await call(api, "POST", "/webhooks", {"hook_url": "http://127.0.0.1:1"})
        local = {"endpoint_id": int(hook["id"]), "contact_type": "local"}
        contact = await call(api, "POST", "/subscriptions/contact", local)
        path = f"/subscriptions/contact/{contact['id']}"
        await call(api, "PATCH", path, {"enabled": False}, status=400)
        for content in (b"{", b"[]", b"\xff"):
            answer = await api.post("/webhooks", content=content)
            assert answer.status_code == 400
        await call(api, "GET", "/subscriptions/fax", status=404)
        await call(api, "GET", "/nothing", status=404)


async def test_subscriptions_are_limited() -> None:
    async with silent_dialpad() as dialpad, client(dialpad) as api:
        hook = await call(api, "POST", "/webhooks", {"hook_url": "http://127.0.0.1:1"})
        body = {"endpoint_id": int(hook["id"])}
        for _ in range(10):
            await call(api, "POST", "/subscriptions/call", body)
        await call(api, "POST", "/subscriptions/call", body, status=400)
        for target in range(90):
            of_one = {**body, "target_type": "user", "target_id": target}
            await call(api, "POST", "/subscriptions/call", of_one)
        of_one = {**body, "target_type": "user", "target_id": 91}
        await call(api, "POST", "/subscriptions/call", of_one, status=400)
        page = await call(api, "GET", "/subscriptions/call")
        assert len(page["items"]) == 50
        rest = await call(api, "GET", f"/subscriptions/call?cursor={page['cursor']}")
        assert rest.keys() == {"items"}
        ids = [item["id"] for item in page["items"] + rest["items"]]
        assert len(set(ids)) == 100
        chosen = await call(api, "GET", "/subscriptions/call?target_type=user&target_id=17")
        assert [item["target_id"] for item in chosen["items"]] == ["17"]


# Keys and rates


async def test_a_key_is_needed_and_may_be_too_weak() -> None:
    async with silent_dialpad() as dialpad:
        dialpad.keys["weak"] = Key(frozenset(), admin=False)
        async with client(dialpad, "wrong") as api:
            await call(api, "GET", "/company", status=401)
            await call(api, "GET", f"/company?apikey={dialpad.api_key}", status=401)
        async with httpx.AsyncClient(base_url=f"{dialpad.base_url}/api/v2") as api:
            await call(api, "GET", "/company", status=401)
            await call(api, "GET", f"/company?apikey={dialpad.api_key}")
        async with client(dialpad, "weak") as api:
            await call(api, "GET", "/company")
            await call(api, "GET", "/webhooks")
            await call(api, "GET", "/subscriptions/call")
            for path in (
                "/call",
                "/subscriptions/contact",
                "/subscriptions/agent_status",
                "/subscriptions/changelog",
                f"/company/{dialpad.world.company.id}/smsoptout?opt_out_state=opted_out",
            ):
                await call(api, "GET", path, status=403)


async def test_so_many_requests_a_second_and_no_more() -> None:
    async with silent_dialpad(rates=Rates()) as dialpad, client(dialpad) as api:
        answers = [await api.get("/company") for _ in range(22)]
        while answers[-1].status_code == 429:
            await asyncio.sleep(0.05)
            answers.append(await api.get("/company"))
        refused = [answer for answer in answers if answer.status_code == 429]
        if len(answers) > 22:  # otherwise this machine took a second for 20 of them
            with_time = [answer.headers.get("retry-after") for answer in refused]
            assert set(with_time) <= {"1", None}
            assert with_time[0] == "1"
            assert with_time[1:2] in ([None], [])
        assert len(dialpad.requests) == len(answers)
        assert [asked.status for asked in dialpad.requests] == [a.status_code for a in answers]
        answered = [asked.at_s for asked in dialpad.requests if asked.status == 200]
        for first, last in zip(answered, answered[20:], strict=False):
            assert last - first > 0.99


async def test_some_calls_are_rarer() -> None:
    rates = Rates(company_per_s=1000, call_per_min=3, recap_per_min=2)
    async with (
        simulated_dialpad(start_ms=START_MS, days=0.01, pace=None, rates=rates) as dialpad,
        client(dialpad) as api,
    ):
        ended = next(leg for leg in dialpad.world.legs.values() if leg.recap_ready_ms)
        for status in (200, 200, 200, 429):
            await call(api, "GET", f"/call/{ended.id}", status=status)
        for status in (200, 200, 429):
            await call(api, "GET", f"/call/{ended.id}/ai_recap", status=status)
        await call(api, "GET", "/call")


async def test_a_request_is_remembered_without_what_is_secret() -> None:
    async with silent_dialpad() as dialpad, client(dialpad) as api:
        await api.get("/call", params={"limit": "3", "started_after": "5"})
        await api.post("/webhooks", json={"hook_url": "http://x", "secret": SECRET})
    listing, making = dialpad.requests
    assert (listing.method, listing.path) == ("GET", "/api/v2/call")
    assert listing.params == {"limit": "3", "started_after": "5"}
    assert (making.method, making.path, making.status) == ("POST", "/api/v2/webhooks", 200)
    assert SECRET not in repr(dialpad.requests)
    assert dialpad.api_key not in repr(dialpad.requests)


# The list of calls


async def all_pages(api: httpx.AsyncClient, path: str, **params: str) -> list[list[Any]]:
    pages = []
    while True:
        answer = await api.get(path, params=params)
        assert answer.status_code == 200, answer.text
        page = answer.json()
        pages.append(page.get("items", []))
        if "cursor" not in page:
            return pages
        params["cursor"] = page["cursor"]


async def test_the_list_has_every_call_that_is_over_and_the_newest_first() -> None:
    async with (
        simulated_dialpad(start_ms=START_MS, days=0.02, pace=None, rates=FAST) as dialpad,
        client(dialpad) as api,
    ):
        pages = await all_pages(api, "/call")
        assert {len(page) for page in pages[:-1]} == {50}
        items = [item for page in pages for item in page]
        over = {
            str(leg.id)
            for leg in dialpad.world.legs.values()
            if leg.ended_ms is not None and leg.ended_ms <= START_MS
        }
        assert len(over) > 500
        running = dialpad.world.legs.keys() - {int(ident) for ident in over}
        assert running
        assert Counter(item["call_id"] for item in items) == dict.fromkeys(over, 1)
        starts = [int(item["date_started"]) for item in items]
        assert starts == sorted(starts, reverse=True)
        for running_id in running:
            assert (await call(api, "GET", f"/call/{running_id}"))["state"] == "connected"
            break


async def test_the_list_looks_at_the_start_and_waits_for_the_end() -> None:
    async with (
        simulated_dialpad(start_ms=START_MS, days=0.02, pace=None, rates=FAST) as dialpad,
        client(dialpad) as api,
    ):
        legs = [leg for leg in dialpad.world.legs.values() if leg.ended_ms is not None]
        after_ms, before_ms = START_MS - 600_000, START_MS - 300_000
        within = {
            str(leg.id)
            for leg in legs
            if after_ms <= leg.started_ms < before_ms and (leg.ended_ms or 0) <= START_MS
        }
        window = {"started_after": str(after_ms), "started_before": str(before_ms)}
        pages = await all_pages(api, "/call", **window, limit="7")
        assert {item["call_id"] for page in pages for item in page} == within
        assert len(pages) == -(-len(within) // 7)
        long = next(
            leg for leg in legs if leg.started_ms < START_MS and (leg.ended_ms or 0) > START_MS
        )
        here = {"started_after": str(long.started_ms), "started_before": str(long.started_ms + 1)}
        assert str(long.id) not in (await api.get("/call", params=here)).text
        await dialpad.step((long.ended_ms or 0) / 1000 - START_MS / 1000 + 1)
        assert str(long.id) in (await api.get("/call", params=here)).text


async def test_a_page_does_not_move_when_the_list_grows() -> None:
    async with (
        simulated_dialpad(start_ms=START_MS, days=0.01, pace=None, rates=FAST) as dialpad,
        client(dialpad) as api,
    ):
        before = [item["call_id"] for page in await all_pages(api, "/call") for item in page]
        first = await call(api, "GET", "/call")
        await dialpad.step(60)
        pages = await all_pages(api, "/call", cursor=first["cursor"])
        rest = [item["call_id"] for page in pages for item in page]
        assert len(set(rest)) == len(rest)
        # Calls that were running may have come in between; nothing of before is missing.
        assert set(before[50:]) <= set(rest)
        assert not set(before[:50]) & set(rest)


@pytest.mark.parametrize(
    ("params", "status"),
    [
        ({"limit": "50"}, 200),
        ({"limit": "51"}, 400),
        ({"limit": "0"}, 400),
        ({"limit": "many"}, 400),
        ({"cursor": "nonsense"}, 400),
        ({"cursor": "WzEsIDJd"}, 400),
        ({"started_after": "yesterday"}, 400),
        ({"started_after": str(START_MS - 30 * DAY_MS + 1), "started_before": str(START_MS)}, 200),
        ({"started_after": str(START_MS - 30 * DAY_MS), "started_before": str(START_MS)}, 400),
        ({"started_after": str(START_MS), "started_before": str(START_MS - 1)}, 400),
        ({"started_before": str(START_MS - 90 * DAY_MS)}, 200),
    ],
)
async def test_what_the_list_refuses(params: dict[str, str], status: int) -> None:
    async with silent_dialpad() as dialpad, client(dialpad) as api:
        assert (await api.get("/call", params=params)).status_code == status


async def test_the_list_can_be_of_one_target() -> None:
    async with (
        simulated_dialpad(start_ms=START_MS, days=0.01, pace=None, rates=FAST) as dialpad,
        client(dialpad) as api,
    ):
        pages = await all_pages(api, "/call")
        member = next(m for m in dialpad.world.users if not m.admin)
        expected = [
            item["call_id"]
            for page in pages
            for item in page
            if item["target"]["id"] == str(member.id)
        ]
        chosen = await all_pages(api, "/call", target_type="user", target_id=str(member.id))
        assert [item["call_id"] for page in chosen for item in page] == expected
        assert expected


# Everything else that can be read


async def test_every_list_has_everything_once() -> None:
    async with (
        simulated_dialpad(
            start_ms=START_MS, days=0.05, pace=None, rates=FAST, page_size=3
        ) as dialpad,
        client(dialpad) as api,
    ):
        world = dialpad.world
        contacts = world.contacts(START_MS).values()
        local = [c for c in contacts if c.owner_id is not None]
        shared = [c for c in contacts if c.owner_id is None]
        assert local
        assert shared
        consents = world.consents(START_MS)
        company = str(world.company.id)
        optouts = f"/company/{company}/smsoptout"
        lists: list[tuple[str, dict[str, str], str, Iterable[object]]] = [
            ("/users", {}, "id", (m.id for m in world.users)),
            ("/offices", {}, "id", (o.id for o in world.offices)),
            ("/departments", {}, "id", (d.id for d in world.departments)),
            ("/callcenters", {}, "id", (c.id for c in world.centres)),
            ("/numbers", {}, "number", (n.number for n in world.numbers)),
            ("/contacts", {}, "id", (c.id for c in shared)),
            ("/contacts", {"include_local": "true"}, "id", (c.id for c in contacts)),
            (
                "/contacts",
                {"owner_id": str(local[0].owner_id)},
                "id",
                (c.id for c in local if c.owner_id == local[0].owner_id),
            ),
            (
                optouts,
                {"opt_out_state": "opted_out"},
                "external_endpoint",
                (c.outsider.number for c in consents if c.opted_out),
            ),
            (
                optouts,
                {"opt_out_state": "opted_back_in"},
                "external_endpoint",
                (c.outsider.number for c in consents if not c.opted_out),
            ),
        ]
        for path, params, key, expected in lists:
            pages = await all_pages(api, path, **params)
            found = [item[key] for page in pages for item in page]
            assert Counter(found) == Counter(map(str, expected)), path
            assert max(len(page) for page in pages) <= 3
        await call(api, "GET", optouts, status=400)
        await call(api, "GET", "/company/1/smsoptout?opt_out_state=opted_out", status=404)


async def test_single_things_can_be_read() -> None:
    async with (
        simulated_dialpad(start_ms=START_MS, days=0.02, pace=None, rates=FAST) as dialpad,
        client(dialpad) as api,
    ):
        world = dialpad.world
        legs = [leg for leg in world.legs.values() if (leg.recap_ready_ms or 0) < START_MS]
        whole = next(leg for leg in legs if leg.recap_ready_ms and leg.transcript_ready_ms)
        recap = await call(api, "GET", f"/call/{whole.id}/ai_recap")
        assert recap["call_id"] == str(whole.id)
        transcript = await call(api, "GET", f"/transcripts/{whole.id}")
        assert transcript.keys() == {"call_id", "lines"}
        assert transcript["lines"]
        item = await call(api, "GET", f"/call/{whole.id}")
        assert shape(item["target"]) == shape(sample("rest-call-get")["target"])
        bare = next(leg for leg in legs if not leg.recap_ready_ms and not leg.transcript_ready_ms)
        await call(api, "GET", f"/transcripts/{bare.id}", status=404)
        await call(api, "GET", f"/call/{bare.id}/ai_recap", status=404)
        for path in ("/call/1", "/call/x", "/contacts/1", "/users/1", "/transcripts/1"):
            await call(api, "GET", path, status=404)
        member = world.users[0]
        duty = await call(api, "GET", f"/callcenters/operators/{member.id}/dutystatus")
        assert duty["user_id"] == str(member.id)
        assert (await call(api, "GET", f"/users/{member.id}"))["emails"] == [member.email]
        contact = next(iter(world.contacts(START_MS).values()))
        assert (await call(api, "GET", f"/contacts/{contact.id}"))["id"] == str(contact.id)
        assert (await call(api, "GET", "/company"))["id"] == str(world.company.id)


# Deliveries to webhooks


async def test_everything_is_posted_signed_as_one_jws() -> None:
    async with silent_dialpad() as dialpad, open_inbox() as inbox:
        dialpad.subscribe(inbox.url, SECRET)
        for happening in EVERY_KIND:
            dialpad.happen(happening)
            await dialpad.settled()
    assert inbox.events == [payload(happening) for happening in EVERY_KIND]
    assert all(is_signed(body, SECRET) for body in inbox.bodies)
    assert set(inbox.types) == {"application/jwt"}
    told = [delivery.kind for delivery in dialpad.delivered]
    assert told == ["call", "sms", "contact", "agent_status", "changelog"]
    assert [delivery.event for delivery in dialpad.delivered] == inbox.events
    assert all(d.accepted and d.answers == [204] and d.genuine for d in dialpad.delivered)
    assert dialpad.deliveries == {"204": 5}


async def test_without_a_secret_it_is_plain_json() -> None:
    async with silent_dialpad() as dialpad, open_inbox() as inbox:
        dialpad.subscribe(inbox.url)
        dialpad.happen(RINGING)
        await dialpad.settled()
    assert [json.loads(body) for body in inbox.bodies] == [payload(RINGING)]
    assert inbox.types == ["application/json"]


async def test_a_doubled_subscription_doubles_events_and_one_that_is_off_gives_none() -> None:
    async with (
        silent_dialpad() as dialpad,
        open_inbox() as inbox,
        client(dialpad) as api,
    ):
        hook = await call(api, "POST", "/webhooks", {"hook_url": inbox.url})
        body = {"endpoint_id": int(hook["id"])}
        ids = [(await call(api, "POST", "/subscriptions/call", body))["id"] for _ in range(3)]
        await call(api, "PATCH", f"/subscriptions/call/{ids[0]}", {"enabled": False})
        dialpad.happen(RINGING)
        await dialpad.settled()
        assert inbox.events == [payload(RINGING)] * 2
        assert {str(d.subscription_id) for d in dialpad.delivered} == set(ids[1:])
        for ident in ids[1:]:
            await call(api, "DELETE", f"/subscriptions/call/{ident}")
        dialpad.happen(RINGING)
        await dialpad.settled()
        assert len(inbox.bodies) == 2


async def told_to(dialpad: SimulatedDialpad, kind: str, fields: dict[str, Any]) -> list[Any]:
    """What a subscription with these fields hears of the story."""
    async with open_inbox() as inbox, client(dialpad) as api:
        hook = await call(api, "POST", "/webhooks", {"hook_url": inbox.url})
        body = {"endpoint_id": int(hook["id"]), **fields}
        made = await call(api, "POST", f"/subscriptions/{kind}", body)
        for happening in STORY:
            if kind_of(happening) == kind:
                dialpad.happen(happening)
        await dialpad.settled()
        await call(api, "DELETE", f"/subscriptions/{kind}/{made['id']}")
        return inbox.events


async def test_a_subscription_hears_what_it_asked_for() -> None:
    calls, texts = [payload(h) for h in CALLS], [payload(h) for h in TEXTS]
    member = next(h.leg.host for h in CALLS if isinstance(h.leg.host, Member))
    centre = next(event["target"] for event in calls if event["target"]["type"] == "call_center")

    def about(events: list[Any], *idents: int) -> list[Any]:
        return [
            e
            for e in events
            if e["target"]["id"] in idents
            or (e.get("entry_point_target") or {}).get("id") in idents
        ]

    written = [payload(h) for h in TEXTS if h.step is TextStep.WRITTEN]
    everything = {"direction": "all", "status": True}
    expected: list[tuple[str, dict[str, Any], list[Any]]] = [
        ("call", {"call_states": []}, calls),
        ("call", {"call_states": ["all", "hangup"]}, calls),
        (
            "call",
            {"call_states": ["hangup", "missed"]},
            [e for e in calls if e["state"] in {"hangup", "missed"}],
        ),
        ("call", {"group_calls_only": True}, [e for e in calls if e["group_id"]]),
        ("call", {"target_type": "user", "target_id": member.id}, about(calls, member.id)),
        (
            "call",
            {"target_type": "callcenter", "target_id": centre["id"]},
            about(calls, centre["id"]),
        ),
        (
            "call",
            {"target_type": "office", "target_id": member.office_id},
            [e for e in calls if e["target"]["office_id"] == member.office_id],
        ),
        ("sms", everything, texts),
        ("sms", {"direction": "all"}, written),
        ("sms", {"direction": "inbound"}, [e for e in written if e["direction"] == "inbound"]),
        (
            "sms",
            everything | {"direction": "outbound"},
            [e for e in texts if e["direction"] == "outbound"],
        ),
        (
            "sms",
            everything | {"target_type": "user", "target_id": member.id},
            about(texts, member.id),
        ),
    ]
    for contact_type in ("shared", "local"):
        contacts = [payload(h) for h in STORY if isinstance(h, ContactHappening)]
        expected.append(
            (
                "contact",
                {"contact_type": contact_type},
                [e for e in contacts if e["contact"]["type"] == contact_type],
            )
        )
    async with silent_dialpad() as dialpad:
        for kind, fields, events in expected:
            heard = await told_to(dialpad, kind, fields)
            assert sorted(map(json.dumps, heard)) == sorted(map(json.dumps, events)), fields
    assert sum(bool(events) for _, _, events in expected) >= len(expected) - 1


async def test_content_depends_on_the_key_that_made_the_subscription() -> None:
    recorded = next(h for h in CALLS if h.step is CallStep.RECORDING_READY)
    written = next(h for h in TEXTS if payload(h)["text"])
    async with silent_dialpad() as dialpad, open_inbox() as inbox:
        dialpad.keys["weak"] = Key(frozenset({"message_content_export"}))
        async with client(dialpad, "weak") as api:
            hook = await call(api, "POST", "/webhooks", {"hook_url": inbox.url})
            body = {"endpoint_id": int(hook["id"])}
            await call(api, "POST", "/subscriptions/call", body)
            sms = {**body, "direction": "all"}
            await call(api, "POST", "/subscriptions/sms", sms)
            target = {"target_type": "user", "target_id": payload(written)["target"]["id"]}
            await call(api, "POST", "/subscriptions/sms", sms | target)
        dialpad.happen(recorded)
        dialpad.happen(written)
        await dialpad.settled()
    of_call, *of_text = inbox.events
    whole = payload(recorded)
    assert whole["recording_details"]
    assert of_call["recording_details"] == of_call["recording_url"] == []
    assert of_call["was_recorded"] is True
    assert {event["text"] for event in of_text} == {None, payload(written)["text"]}


@pytest.mark.parametrize(
    ("happening", "waits_s"),
    [
        (RINGING, [2, 4, 8]),
        (TEXTS[0], [30, 60, 120, 240, 480, 960, 1920, 3600, 3600, 3600]),
        (DUTY, [0.1, 0.2, 0.4, 0.8]),
        (CONTACT, [0.1, 0.2, 0.4, 0.8]),
        (SETTING, [0.1, 0.2, 0.4, 0.8]),
    ],
)
async def test_after_a_5xx_it_comes_again_at_the_times_of_its_kind(
    happening: Happening, waits_s: list[float]
) -> None:
    async with silent_dialpad() as dialpad, open_inbox(lambda _: 503) as inbox:
        dialpad.subscribe(inbox.url, SECRET)
        dialpad.happen(happening)
        await dialpad.settled()
        for tries, due_s in enumerate(accumulate(waits_s), 1):
            passed_s = (dialpad.clock.now_ms - START_MS) / 1000
            await dialpad.step(due_s - 0.02 - passed_s)
            assert len(inbox.bodies) == tries
            await dialpad.step(0.04)
            assert len(inbox.bodies) == tries + 1
        await dialpad.step(2 * 3600)
    assert len(set(inbox.bodies)) == 1
    (delivery,) = dialpad.delivered
    assert delivery.answers == [503] * (len(waits_s) + 1)
    assert not delivery.accepted


@pytest.mark.parametrize("status", [200, 202, 204, 299, 301, 400, 404, 408, 413, 429])
async def test_what_is_no_5xx_is_final(status: int) -> None:
    async with silent_dialpad() as dialpad, open_inbox(lambda _: status) as inbox:
        dialpad.subscribe(inbox.url, SECRET)
        dialpad.happen(RINGING)
        await dialpad.step(60)
    assert len(inbox.bodies) == 1
    (delivery,) = dialpad.delivered
    assert delivery.accepted == (status < 300)


async def test_who_breaks_off_is_tried_twice_more() -> None:
    async with silent_dialpad() as dialpad, open_inbox(lambda _: BREAK_OFF) as inbox:
        dialpad.subscribe(inbox.url, SECRET)
        dialpad.happen(TEXTS[0])
        await dialpad.step(3600)
        assert len(inbox.bodies) == 3
    assert dialpad.delivered[0].answers == [None] * 3


async def test_who_does_not_answer_and_who_refuses_is_tried_twice_more(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert dialpad_delivery.TIMEOUT_S == 5.0
    monkeypatch.setattr(dialpad_delivery, "TIMEOUT_S", 0.05)
    async with silent_dialpad() as dialpad:
        async with open_inbox(lambda _: SAY_NOTHING) as inbox:
            dialpad.subscribe(inbox.url, SECRET)
            dialpad.happen(RINGING)
            await dialpad.step(60)
            assert len(inbox.bodies) == 3
        dialpad.happen(RINGING)
        await dialpad.step(60)
    assert [delivery.answers for delivery in dialpad.delivered] == [[None] * 3] * 2


async def test_the_secret_is_the_one_of_the_moment_and_a_deleted_webhook_gets_no_retry() -> None:
    answers = iter((503, 503, 204))
    async with silent_dialpad() as dialpad, open_inbox(lambda _: next(answers)) as inbox:
        webhook = dialpad.subscribe(inbox.url, SECRET)
        dialpad.happen(RINGING)
        await dialpad.settled()
        webhook.secret = OTHER_SECRET
        await dialpad.step(3)
        assert is_signed(inbox.bodies[0], SECRET)
        assert is_signed(inbox.bodies[1], OTHER_SECRET)
        del dialpad.resources.webhooks[webhook.id]
        await dialpad.step(60)
    assert len(inbox.bodies) == 2


async def test_one_leg_goes_out_in_order_and_holds_up_nobody_else() -> None:
    def refuse_openings(body: bytes) -> int:
        return 503 if event_in(body).get("state") in {"calling", "queued", "ringing"} else 204

    async with silent_dialpad() as dialpad, open_inbox(refuse_openings) as inbox:
        dialpad.subscribe(inbox.url, SECRET)
        for happening in CALLS:
            dialpad.happen(happening)
        await dialpad.settled()
        first_tries = len(inbox.bodies)
        assert first_tries == len(CALLS)
        by_leg: dict[int, list[int]] = defaultdict(list)
        for event in inbox.events:
            by_leg[event["call_id"]].append(event["event_timestamp"])
        assert all(clocks == sorted(clocks) for clocks in by_leg.values())
        await dialpad.step(3)
        openings = sum(refuse_openings(body) == 503 for body in inbox.bodies[:first_tries])
        # Retries come after what was newer.
        assert len(inbox.bodies) == first_tries + openings
        assert inbox.connections < 210


async def test_the_story_is_told_with_the_wall_clock_and_at_once() -> None:
    began_ms = time.time() * 1000
    async with simulated_dialpad(seed=3) as dialpad, open_inbox() as inbox:
        dialpad.subscribe(inbox.url, SECRET)
        await until(lambda: len(inbox.bodies) >= 5)
        now_ms = time.time() * 1000
        await dialpad.settled()
    clocks = [e["event_timestamp"] for e in inbox.events if "event_timestamp" in e]
    assert all(began_ms - 1000 < clock <= now_ms + 500 for clock in clocks)


async def test_a_fast_clock_brings_minutes_in_a_moment_and_tells_when_it_is_over() -> None:
    async with (
        open_inbox() as inbox,
        simulated_dialpad(start_ms=START_MS, lasts_s=300, pace=1000) as dialpad,
    ):
        dialpad.subscribe(inbox.url, SECRET)
        async with asyncio.timeout(60):
            await dialpad.told.wait()
            await dialpad.settled()
    expected = [payload(h) for h in World(1, START_MS).until(START_MS + 300_000) if _is_told(h)]
    assert len(expected) > 500
    assert sorted(map(json.dumps, inbox.events)) == sorted(map(json.dumps, expected))


def _is_told(happening: Happening) -> bool:
    return isinstance(
        happening,
        CallHappening | TextHappening | ContactHappening | DutyHappening | SettingHappening,
    )


# Sockets


async def test_frames_are_texts_one_an_event_signed_or_plain() -> None:
    async with silent_dialpad() as dialpad:
        signed, plain = dialpad.subscribe_socket(SECRET), dialpad.subscribe_socket()
        async with (
            connect(dialpad.websocket_url(signed)) as one,
            connect(dialpad.websocket_url(signed)) as same,
            connect(dialpad.websocket_url(plain)) as other,
        ):
            await until(lambda: len(dialpad.sockets) == 3)
            for happening in EVERY_KIND:
                dialpad.happen(happening)
            expected = [payload(happening) for happening in EVERY_KIND]
            for socket in (one, same, other):
                got = await frames(socket, 5)
                assert [event_in(frame) for frame in got] == expected
                assert all(is_signed(f, SECRET) != (socket is other) for f in got)
                assert all(f.startswith("{") == (socket is other) for f in got)
    assert {d.sockets for d in dialpad.delivered if d.endpoint_id == signed.id} == {2}


async def test_the_address_of_one_subscription_brings_only_its_events() -> None:
    async with silent_dialpad() as dialpad, client(dialpad) as api:
        socket = dialpad.subscribe_socket()
        listed = (await call(api, "GET", "/subscriptions/sms"))["items"]
        assert listed[0]["websocket"]["id"] == str(socket.id)
        async with connect(listed[0]["websocket"]["websocket_url"]) as client_:
            for happening in (*EVERY_KIND, TEXTS[0]):
                dialpad.happen(happening)
            got = await frames(client_, 2)
            assert [event_in(frame) for frame in got] == [payload(TEXTS[0])] * 2


async def test_nobody_gets_later_what_was_sent_while_nobody_was_there() -> None:
    async with silent_dialpad() as dialpad:
        socket = dialpad.subscribe_socket(SECRET)
        dialpad.happen(RINGING)
        async with connect(dialpad.websocket_url(socket)) as client_:
            dialpad.happen(DUTY)
            assert event_in((await frames(client_, 1))[0]) == payload(DUTY)
    assert [d.accepted for d in dialpad.delivered] == [False, True]


async def test_an_address_is_good_for_an_hour() -> None:
    async with silent_dialpad() as dialpad, client(dialpad) as api:
        socket = dialpad.subscribe_socket(SECRET)
        url = dialpad.websocket_url(socket)
        await dialpad.clock.step(3599)
        async with connect(url):
            pass
        await dialpad.clock.step(1)
        with pytest.raises(InvalidStatus) as refused:
            await connect(url)
        assert refused.value.response.status_code == 401
        fresh = (await call(api, "GET", f"/websockets/{socket.id}"))["websocket_url"]
        async with connect(fresh):
            pass
        for wrong in (fresh[:-1], f"{fresh}x", fresh.replace("/events/", "/"), f"{fresh}/x"):
            with pytest.raises(InvalidStatus):
                await connect(wrong)
        await call(api, "DELETE", f"/websockets/{socket.id}")
        with pytest.raises(InvalidStatus):
            await connect(fresh)


async def test_a_connection_lasts_an_hour() -> None:
    async with silent_dialpad() as dialpad:
        socket = dialpad.subscribe_socket(SECRET)
        async with connect(dialpad.websocket_url(socket), ping_interval=None) as client_:
            dialpad.happen(RINGING)
            await frames(client_, 1)
            await dialpad.clock.step(3599)
            dialpad.happen(DUTY)
            assert event_in((await frames(client_, 1))[0]) == payload(DUTY)
            await dialpad.clock.step(2)
            async with asyncio.timeout(20):
                with pytest.raises(ConnectionClosed):
                    await client_.recv()
            assert client_.close_code == 1001
            assert len(dialpad.sockets) == 0


async def test_sockets_can_be_cut_and_sent_anything() -> None:
    async with silent_dialpad() as dialpad:
        socket = dialpad.subscribe_socket(SECRET)
        async with connect(dialpad.websocket_url(socket), max_size=None) as client_:
            await until(lambda: len(dialpad.sockets) == 1)
            huge = "x" * 10 * 2**20
            for frame in (b"\x00", "<html>", huge):
                assert dialpad.send_frame(frame) == 1
            async with asyncio.timeout(60):
                assert [await client_.recv() for _ in range(3)] == [b"\x00", "<html>", huge]
            assert dialpad.sockets.cut() == 1
            async with asyncio.timeout(20):
                with pytest.raises(ConnectionClosed):
                    await client_.recv()
            assert client_.close_code == 1006
        assert dialpad.sockets.opened == 1
        await dialpad.sockets.close()
        with pytest.raises(OSError):  # noqa: PT011 - which one is the system's
            await connect(dialpad.websocket_url(socket))
        await dialpad.sockets.open()
        async with connect(dialpad.websocket_url(socket)):
            pass


# Coming and going


async def test_the_api_can_go_down_and_come_up_at_the_same_address() -> None:
    async with silent_dialpad() as dialpad, client(dialpad) as api:
        url = dialpad.base_url
        await call(api, "GET", "/company")
        await dialpad.go_down()
        with pytest.raises(httpx.TransportError):
            await api.get("/company")
        with pytest.raises(httpx.ConnectError):
            await api.get("/company")
        await dialpad.come_up()
        assert dialpad.base_url == url
        await call(api, "GET", "/company")


async def test_it_ends_quickly_and_quietly_whatever_is_under_way(
    caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    caplog.set_level("INFO")
    noise: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: noise.append(context))
    async with open_inbox(lambda _: SAY_NOTHING) as inbox:
        async with simulated_dialpad(pace=20) as dialpad, client(dialpad) as api:
            dialpad.subscribe(inbox.url, SECRET)
            socket = dialpad.subscribe_socket(SECRET)
            dialpad.faults.slow, dialpad.faults.slow_s = 1, 60
            asking = asyncio.create_task(api.get("/company"))
            # Not held up by what nobody reads.
            client_ = await connect(dialpad.websocket_url(socket), max_queue=None)
            await until(lambda: len(inbox.bodies) >= 20 and bool(dialpad.requests))
            began_s = time.monotonic()
        assert time.monotonic() - began_s < 5
        with pytest.raises(httpx.TransportError):
            await asking
        await client_.close()
    for _ in range(20):
        await asyncio.sleep(0.01)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    assert noise == []
    told = [r for r in caplog.records if not r.name.startswith(("httpx", "httpcore", "websockets"))]
    assert told == []
    assert capfd.readouterr() == ("", "")


async def test_what_its_user_raises_comes_out_as_it_is() -> None:
    with pytest.raises(LookupError, match="mine"):
        async with silent_dialpad():
            raise LookupError("mine")


async def test_a_story_that_fails_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise LookupError("broken story")

    monkeypatch.setattr(dialpad_delivery.Deliveries, "send", fail)
    with pytest.raises(ExceptionGroup) as group:
        async with simulated_dialpad(start_ms=START_MS, pace=100):
            await asyncio.sleep(20)
    assert group.group_contains(LookupError, match="broken story")


async def test_a_port_that_is_taken_is_told() -> None:
    async with silent_dialpad() as dialpad:
        port = int(dialpad.base_url.rpartition(":")[2])
        with pytest.raises(OSError, match="address already in use"):
            async with silent_dialpad(port=port):
                pass


async def test_memory_can_be_bounded() -> None:
    async with silent_dialpad(remember=2) as dialpad, client(dialpad) as api, open_inbox() as inbox:
        dialpad.subscribe(inbox.url, SECRET)
        for happening in EVERY_KIND:
            dialpad.happen(happening)
            await call(api, "GET", "/company")
        await dialpad.settled()
        assert len(dialpad.requests) == len(dialpad.delivered) == 2
        assert dialpad.answers == {"200": 5}
        assert dialpad.deliveries == {"204": 5}


# The clock


async def test_a_clock_by_hand_wakes_sleepers_at_their_time_and_in_their_order() -> None:
    clock, woken = Clock(1000, None), []

    async def sleep_twice(name: str, s: float) -> None:
        for _ in range(2):
            await clock.sleep(s)
            woken.append((name, clock.now_ms))

    tasks = [asyncio.create_task(sleep_twice(name, s)) for name, s in (("a", 2), ("b", 3))]
    await clock.sleep_until(1000)
    await clock.step(1)
    assert (woken, clock.now_ms) == ([], 2000)
    await clock.step(4.5)
    assert woken == [("a", 3000), ("b", 4000), ("a", 5000)]
    assert clock.now_ms == 6500
    await clock.step(10)
    assert woken[3:] == [("b", 7000)]
    await asyncio.gather(*tasks)


async def test_a_clock_with_a_pace_goes_by_itself() -> None:
    clock = Clock(1000, 100)
    await clock.sleep(10)
    assert clock.now_ms >= 11_000 - 1
    await clock.sleep_until(21_000)
    assert clock.now_ms >= 21_000 - 1
    with pytest.raises(RuntimeError):
        await clock.step(1)
    for wrong in (0, -1):
        with pytest.raises(ValueError, match="pace"):
            Clock(0, wrong)

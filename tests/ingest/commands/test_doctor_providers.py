"""`doctor` of DialLink and Dialgood: does the key work, how long, does the poller keep up."""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import stamina

from ingest.checkpoints import save_checkpoint
from ingest.commands.doctor_providers import (
    judge_agents,
    judge_expiry,
    judge_marks,
    judge_round,
    judge_user,
)
from ingest.commands.findings import Finding
from ingest.eventlog.kinds import open_log
from ingest.providers.diallink import keys
from ingest.settings import Poll, load_settings
from ingest.simulator.dialgood_server import SimulatedDialgood, simulated_dialgood
from ingest.simulator.diallink_server import SimulatedDialLink, simulated_diallink
from schemas.times import now_ms
from tests.conftest import MakeProduct
from tests.ingest.commands.on_kafka import run_here
from tests.ingest.commands.running import running
from tests.ingest.scripted import Asked, Response, Scripted, answer, good, scripted, silent
from tests.kit import Product, assert_no_traceback

WHSEC = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
KEY = "00000000-0000-4000-8000-00000000a501+00000000-0000-4000-8000-000000000502"
NOW = datetime(2026, 9, 21, 14, 0, tzinfo=UTC)
NOW_MS = round(NOW.timestamp() * 1000)


@pytest.fixture(autouse=True)
def _quickly(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(keys, "_WATCHES", {})
    with stamina.set_testing(testing=True, attempts=1):
        yield


def connection(provider: str, base_url: str, key: str, **more: Any) -> dict[str, Any]:
    return {
        "provider": provider,
        "api_key": key,
        "base_url": base_url,
        "region": "US",
        "poll": {"requests_per_s": 20},
        **more,
    }


def told(product: Product, name: str = "line") -> dict[str, list[str]]:
    """What is said of a connection, by state; each that is not good with its mend."""
    ran = run_here(product, "doctor", "--json")
    assert ran.stderr == ""
    assert_no_traceback(ran.stdout)
    assert KEY not in ran.stdout
    findings = json.loads(ran.stdout)
    assert ran.code == int(any(each["state"] == "bad" for each in findings))
    found: dict[str, list[str]] = {}
    for each in findings:
        if each["what"].startswith(f"{name}: "):
            assert each["mend"] or each["state"] == "good"
            text = each["what"].removeprefix(f"{name}: ")
            found.setdefault(each["state"], []).append(
                " → ".join(filter(None, [text, each["mend"]]))
            )
    return found


# Judging


@pytest.mark.parametrize(
    ("days", "state", "what"),
    [
        (365, "good", "in 365 days, on 2027-09-21"),
        (30.1, "good", "in 30 days, on 2026-10-21"),
        (30, "odd", "in 30 days, on 2026-10-21"),
        (7.1, "odd", "in 7 days, on 2026-09-28"),
        (7, "bad", "in 7 days, on 2026-09-28"),
        (0.1, "bad", "in 0 days, on 2026-09-21"),
        (-1, "bad", "has expired on 2026-09-20"),
    ],
)
def test_a_key_that_will_end_is_told_in_time(days: float, state: str, what: str) -> None:
    finding = judge_expiry("line", NOW + timedelta(days=days), NOW)
    assert finding.state == state
    assert what in finding.what
    assert bool(finding.mend) == (state != "good")
    if finding.mend:
        assert "connections.line" in finding.mend


def test_that_it_is_not_known_when_a_key_ends_is_told() -> None:
    assert judge_expiry("line", None, NOW).state == "odd"


@pytest.mark.parametrize(("is_admin", "state"), [(True, "good"), (False, "odd"), (None, "odd")])
def test_what_a_key_never_shows_is_said_in_any_case(
    is_admin: bool | None,  # noqa: FBT001 - what is judged
    state: str,
) -> None:
    finding = judge_user("line", is_admin)
    assert finding.state == state
    assert "private messages of users are shown to nobody else" in finding.what


@pytest.mark.parametrize(
    ("agents", "poll", "state", "mend"),
    [
        (1, Poll(requests_per_s=1), "good", ""),
        # a sweep takes 250 of 21600 s
        (250, Poll(requests_per_s=1), "good", ""),
        (270, Poll(requests_per_s=1), "odd", "set every_s = 360 in connections.bots.poll"),
        # 500 / (1 - 500 / 21600 - 0.1) = 570.2
        (500, Poll(requests_per_s=1), "odd", "set every_s = 600 in connections.bots.poll"),
        (500, Poll(requests_per_s=1, every_s=600), "good", ""),
        (500, Poll(requests_per_s=5), "good", ""),
        (20_000, Poll(requests_per_s=1), "odd", "set poll.sweep_every_s and poll.every_s"),
    ],
)
def test_a_round_that_takes_too_long_is_told_with_what_would_do(
    agents: int, poll: Poll, state: str, mend: str
) -> None:
    finding = judge_round("bots", agents, poll)
    assert finding.state == state
    assert (
        f"reading {agents} agent(s) takes {agents / poll.requests_per_s:,.0f} s or more"
        in finding.what
    )
    assert finding.mend.startswith(mend)
    assert bool(finding.mend) == bool(mend)
    if mend.startswith("set every_s"):
        longer = poll.model_copy(update={"every_s": float(mend.split()[3])})
        assert judge_round("bots", agents, longer).state == "good"


def marks(**ages_s: float | None) -> Mapping[tuple[str, str], Mapping[str, Any]]:
    """Checkpoints of agents that are so far behind; None: there is one, without a watermark."""
    found: dict[tuple[str, str], Mapping[str, Any]] = {
        ("bots", f"calls/{agent}"): (
            {} if age_s is None else {"watermark_ms": NOW_MS - round(age_s * 1000)}
        )
        for agent, age_s in ages_s.items()
    }
    # That of the whole connection, and others' agents, say nothing.
    found["bots", "calls"] = {"watermark_ms": 0}
    found["other", "calls/a"] = {"watermark_ms": 0}
    return found


#: Late is what is older than 3 * 300 + 300 s.
@pytest.mark.parametrize(
    ("found", "state", "what"),
    [
        (marks(), "good", "no agent was read yet"),
        (marks(a=None), "good", "no agent was read yet"),
        (marks(a=360, b=1200), "good", "all agents are read up to 20 min ago"),
        (marks(a=-5, b=0), "good", "all agents are read up to 0 min ago"),
        (marks(a=360, b=1201), "odd", "up to 20 min ago, 1 of them not for more than 20 min"),
        (marks(a=9000, b=1201), "odd", "up to 2 h ago, 2 of them not for more than 20 min"),
        (marks(a=360), "odd", "1 agent(s) are read up to 6 min ago, the other 1 not yet"),
        (marks(a=360, b=360, gone=90_000), "good", "all agents are read up to 6 min ago"),
    ],
    ids=str,
)
def test_how_far_the_agents_are_read(
    found: Mapping[tuple[str, str], Mapping[str, Any]], state: str, what: str
) -> None:
    finding = judge_marks("bots", ["a", "b"], found, Poll(), NOW_MS)
    assert (finding.state, what in finding.what) == (state, True), finding.what


def test_without_agents_there_is_nothing_to_read() -> None:
    assert judge_agents("bots", 0, 0, is_whole=True).state == "odd"
    assert judge_agents("bots", 3, 2, is_whole=True) == Finding(
        "good", "bots: 5 agent(s), 3 own and 2 shared"
    )
    assert "at least 5 agent(s)" in judge_agents("bots", 3, 2, is_whole=False).what


# DialLink's side


@pytest.fixture
def diallink() -> Iterator[SimulatedDialLink]:
    with running(simulated_diallink(days=0.01, pace=None)) as server:
        yield server


def line(server: SimulatedDialLink, **more: Any) -> dict[str, Any]:
    return connection("diallink", server.base_url, server.api_key, **more)


def test_a_diallink_in_order_is_good(
    make_product: MakeProduct, diallink: SimulatedDialLink
) -> None:
    product = make_product(settings={"connections": {"line": line(diallink)}})
    off, takes, user, expires = told(product).pop("good")
    assert off == "notifications are off: there is no secret"
    assert takes == "DialLink takes the key"
    assert user.startswith("the key's user is an admin and sees everything; private messages")
    assert expires.startswith("the key expires in 365 days, on ")
    assert told(product).keys() == {"good"}
    product.configure({"connections": {"line": line(diallink, secrets=[WHSEC])}})
    assert told(product)["good"][0] == "notifications are taken at /webhooks/line"


def test_notifications_without_a_key_are_told(make_product: MakeProduct) -> None:
    only = {"provider": "diallink", "secrets": [WHSEC], "region": "US"}
    product = make_product(settings={"connections": {"line": only}})
    (what,) = told(product)["odd"]
    assert what.startswith("notifications are taken, but they are hints")


def test_a_key_that_ends_soon_ends_doctor_with_1(make_product: MakeProduct) -> None:
    ends_ms = now_ms() + 6 * 24 * 3600 * 1000
    with running(simulated_diallink(pace=None, key_expires_ms=ends_ms)) as server:
        product = make_product(settings={"connections": {"line": line(server)}})
        (what,) = told(product)["bad"]
    assert what.startswith("the key expires in 6 days")


def test_a_key_of_who_is_no_admin_still_tells_what_it_can(
    make_product: MakeProduct, diallink: SimulatedDialLink
) -> None:
    diallink.faults.not_admin = True
    product = make_product(settings={"connections": {"line": line(diallink)}})
    found = told(product)
    assert "bad" not in found
    assert "DialLink takes the key" in found["good"]
    assert found["odd"][0].startswith("the key's user is no admin")


def test_a_key_of_diallinks_that_is_refused_is_told(
    make_product: MakeProduct, diallink: SimulatedDialLink
) -> None:
    diallink.faults.key_revoked = True
    product = make_product(settings={"connections": {"line": line(diallink)}})
    (what,) = told(product)["bad"]
    assert what.startswith("GET /v1/phone-system/calls: answered 401")
    assert "wrong, revoked, or older than a year" in what
    assert told(product)["good"] == ["notifications are off: there is no secret"]


ME = {"id": "u", "admin": True}
LIST: dict[str, Any] = {"data": [], "paging": {"hasNextPage": False}}


@asynccontextmanager
async def scripting(respond: Callable[[Asked], Response]) -> AsyncIterator[Scripted]:
    """A server that answers so."""
    async with scripted() as server:
        server.respond = respond
        yield server


def test_what_the_provider_said_is_told_masked(make_product: MakeProduct) -> None:
    said = f"No: {KEY} of bo@example.com, +15551230001\\u001b[31m"
    refusal = answer(400, f'{{"description": "{said}"}}'.encode())
    with running(scripting(lambda _: refusal)) as server:
        table = connection("diallink", server.url, KEY)
        product = make_product(settings={"connections": {"line": table}})
        (what,) = told(product)["bad"]
    assert "answered 400 (it said: No: … of …, +… [31m)" in what


@pytest.mark.parametrize("closed", [403, 404])
def test_what_may_not_be_seen_is_no_reason_not_to_go_on(
    make_product: MakeProduct, closed: int
) -> None:
    """That 403 may mean the rate, and a rest of a minute, does not keep `doctor`."""

    def respond(asked: Asked) -> bytes:
        return good(LIST) if asked.path == "/v1/phone-system/calls" else answer(closed)

    with running(scripting(respond)) as server:
        table = connection("diallink", server.url, KEY)
        product = make_product(settings={"connections": {"line": table}})
        found = told(product)
    assert "DialLink takes the key" in found["good"]
    assert [what.partition(" does")[0] for what in found["odd"]] == ["DialLink", "DialLink"]
    assert "bad" not in found


def test_a_rate_that_is_reached_is_told(make_product: MakeProduct) -> None:
    def respond(asked: Asked) -> bytes:
        return good(LIST) if asked.path == "/v1/phone-system/calls" else answer(429)

    with running(scripting(respond)) as server:
        table = connection("diallink", server.url, KEY)
        product = make_product(settings={"connections": {"line": table}})
        (what,) = told(product)["bad"]
    assert "answered 429" in what
    assert "requests_per_s" in what


# Dialgood's side


@pytest.fixture
def dialgood() -> Iterator[SimulatedDialgood]:
    with running(simulated_dialgood(days=0.01, pace=None)) as server:
        yield server


def bots(server: SimulatedDialgood, **more: Any) -> dict[str, Any]:
    return connection("dialgood", server.base_url, server.api_key, **more)


def test_a_dialgood_in_order_is_good(
    make_product: MakeProduct, dialgood: SimulatedDialgood
) -> None:
    agents = dialgood.agents.all
    shared = sum(agent.shared_by is not None for agent in agents)
    assert 0 < shared < len(agents)
    product = make_product(settings={"connections": {"bots": bots(dialgood)}})
    found = told(product, "bots")
    assert found.keys() == {"good"}
    takes, counts, rounds, marks = found["good"]
    assert takes == "Dialgood takes the key"
    assert counts == f"{len(agents)} agent(s), {len(agents) - shared} own and {shared} shared"
    assert rounds.startswith(f"reading {len(agents)} agent(s) takes ")
    assert marks == "no agent was read yet"
    assert dialgood.scandals == 0


def test_too_many_agents_for_the_rate_are_told(
    make_product: MakeProduct, dialgood: SimulatedDialgood
) -> None:
    poll = {"requests_per_s": 20, "every_s": 0.1}
    product = make_product(settings={"connections": {"bots": bots(dialgood, poll=poll)}})
    (what,) = told(product, "bots")["odd"]
    assert "it cannot keep up, and calls come late → set every_s = 60" in what


def test_agents_that_nobody_has_read_for_long_are_told(
    make_product: MakeProduct, dialgood: SimulatedDialgood
) -> None:
    product = make_product(settings={"connections": {"bots": bots(dialgood)}})

    async def save(hours: float) -> None:
        settings = load_settings(product.config, {})
        settings = settings.model_copy(
            update={"eventlog": settings.eventlog.model_copy(update={"path": product.data})}
        )
        async with open_log(settings, "poll") as log:
            for agent in dialgood.agents.all:
                mark = {"watermark_ms": now_ms() - round(hours * 3_600_000)}
                await save_checkpoint(log, "bots", f"calls/{agent.id}", mark, 1)

    asyncio.run(save(5))
    (what,) = told(product, "bots")["odd"]
    assert what.startswith("all agents are read up to 5 h ago, ")
    asyncio.run(save(0.1))
    assert "all agents are read up to 6 min ago" in told(product, "bots")["good"]


def test_access_that_dialgood_has_not_switched_on_is_told(
    make_product: MakeProduct, dialgood: SimulatedDialgood
) -> None:
    dialgood.faults.partner_off = True
    product = make_product(settings={"connections": {"bots": bots(dialgood)}})
    (what,) = told(product, "bots")["bad"]
    assert "answered 403" in what
    assert "partner access has to be switched on" in what


def test_a_list_of_agents_that_takes_long_is_told_as_far_as_it_came(
    make_product: MakeProduct, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.commands.doctor_providers.AGENTS_S", 1.0)
    agents = [{"agentId": "a", "owner": False}, {"agentId": "b"}, {"agentId": 5}, "none"]
    page = good({"agents": agents, "totalCount": 9, "limit": 4, "skip": 0, "hasMore": True})

    def respond(asked: Asked) -> Response:
        return page if asked.query["skip"] == "0" else silent()

    with running(scripting(respond)) as server:
        table = connection("dialgood", server.url, KEY)
        product = make_product(settings={"connections": {"bots": table}})
        found = told(product, "bots")
    assert found["good"][:2] == [
        "Dialgood takes the key",
        "at least 2 agent(s), 1 own and 1 shared: the list has not come to its end within 1 s",
    ]


def test_a_dialgood_that_does_not_answer_holds_nobody_up(
    make_product: MakeProduct, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ingest.commands.doctor_providers.PROVIDERS_S", 0.3)
    with running(scripting(lambda _: silent())) as server:
        tables = {
            "bots": connection("dialgood", server.url, KEY),
            "line": connection("diallink", server.url, KEY),
        }
        product = make_product(settings={"connections": tables})
        for name, label in (("bots", "Dialgood"), ("line", "DialLink")):
            (what,) = told(product, name)["bad"]
            assert what.startswith(f"{label} has not told everything within 0 s")

"""From any state that Dialpad may be in to the one that the settings ask for.

Nothing is lost on the way, nothing doubled, nothing of others touched, whichever step fails.
Dialpad is the simulated one's own store of resources, in memory.
"""

import asyncio
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.api import ApiError
from ingest.errors import ConfigError
from ingest.providers.dialpad.api import DialpadApi
from ingest.providers.dialpad.subscriptions import (
    KINDS,
    WEBSOCKET,
    Desired,
    Endpoint,
    Plan,
    Step,
    desired,
    drift,
    our_websocket,
    plan,
    read_endpoint,
    read_subscription,
    syncs,
)
from ingest.providers.dialpad.sync import look, synchronize
from ingest.settings import Connection
from ingest.simulator.api_server import Refusal
from ingest.simulator.dialpad_resources import (
    SCOPES,
    Resources,
    Subscription,
    Webhook,
    Websocket,
)
from tests.kit import OTHER_SECRET, SAMPLES, SECRET

HOOKS = "https://hooks.example.com/webhooks/acme"
FOREIGN = "a-secret-that-somebody-else-has-made-up!"


def connection(**more: Any) -> Connection:
    values = {
        "provider": "dialpad",
        "secrets": [SECRET],
        "api_key": "key",
        "public_url": "https://hooks.example.com",
    }
    return Connection.model_validate(values | more)


def wanted(**subscriptions: Any) -> Desired:
    return desired("acme", connection(subscriptions=subscriptions))


# A Dialpad in memory


Change = Callable[[], None]


@dataclass
class Dialpad(DialpadApi):
    """Answers as the simulated one does. ``fails``: at the n-th change, before or after it."""

    store: Resources = field(
        default_factory=lambda: Resources("ws://127.0.0.1:1", "s" * 32, lambda: 0)
    )
    #: Ids as numbers, as some clients have seen them.
    numbers: bool = False
    fails: tuple[int, str] | None = None
    forbidden: frozenset[str] = frozenset()
    forbids_by: Literal["forbidden", "not_found"] = "forbidden"
    changes: list[str] = field(default_factory=list)
    #: Called after each change.
    watch: Change = lambda: None

    def __repr__(self) -> str:
        return "Dialpad"

    async def get(self, path: str, params: Mapping[str, object] | None = None) -> Any:
        return self._shown(path, self._one(path))

    async def post(self, path: str, body: Any) -> Any:
        def make() -> Any:
            if path.endswith("/webhooks"):
                return self.store.create_webhook(body)
            if path.endswith("/websockets"):
                return self.store.create_websocket(body)
            return self.store.create_subscription(path.rpartition("/")[2], body, SCOPES)

        return self._shown(path + "/new", self._change(f"POST {path}", make))

    async def patch(self, path: str, body: Any) -> Any:
        one = self._one(path)

        def change() -> None:
            match one:
                case Webhook():
                    self.store.patch_webhook(one, body)
                case Websocket():
                    self.store.patch_websocket(one, body)
                case Subscription():
                    self.store.patch_subscription(one, body)

        self._change(f"PATCH {path}", change)
        return self._shown(path, one)

    async def delete(self, path: str) -> Any:
        self._one(path)
        many, ident = self._many(path)
        self._change(f"DELETE {path}", lambda: many.pop(ident))

    async def pages(
        self, path: str, params: Mapping[str, object] | None = None, *, limit: int | None = None
    ) -> AsyncIterator[list[bytes]]:
        if path in self.forbidden:
            raise ApiError(self.forbids_by, "no", reached=False)
        many, _ = self._many(path + "/0")
        items = [json.dumps(self._shown(f"{path}/{each}", many[each])).encode() for each in many]
        for at in range(0, len(items), 2):
            yield items[at : at + 2]

    def _change(self, what: str, change: Callable[[], Any]) -> Any:
        self.changes.append(what)
        failing = None
        if self.fails is not None and len(self.changes) == self.fails[0]:
            failing = self.fails[1]
        if failing == "before":
            raise ApiError("unavailable", "no connection", reached=False)
        try:
            result = change()
        except Refusal as error:
            raise ApiError("refused", str(error), status=error.status, reached=False) from None
        self.watch()
        if failing == "after":
            raise ApiError("unavailable", "no answer", reached=True)
        return result

    def _many(self, path: str) -> tuple[dict[int, Any], int]:
        *_, name, ident = path.split("/")
        if name == "webhooks":
            return self.store.webhooks, int(ident)
        if name == "websockets":
            return self.store.websockets, int(ident)
        return self.store.subscriptions[name], int(ident)

    def _one(self, path: str) -> Any:
        many, ident = self._many(path)
        if ident not in many:
            raise ApiError("not_found", "none", status=404, reached=False)
        return many[ident]

    def _shown(self, path: str, one: Any) -> Any:
        match one:
            case Webhook():
                shown = self.store.show_webhook(one)
            case Websocket():
                shown = self.store.show_websocket(one)
            case _:
                shown = self.store.show_subscription(one)
        return _with_numbers(shown) if self.numbers else shown


def _with_numbers(shown: Any) -> Any:
    if isinstance(shown, dict):
        return {
            key: int(value) if key in ("id", "target_id") else _with_numbers(value)
            for key, value in shown.items()
        }
    return shown


class Ear:
    """Hears of steps, and keeps them."""

    def __init__(self) -> None:
        self.plans: list[Plan] = []
        self.steps: list[Step] = []

    def planned(self, plan: Plan) -> None:
        self.plans.append(plan)

    def taken(self, step: Step) -> None:
        self.steps.append(step)


def sync(dialpad: Dialpad, to: Desired, *, adopt: bool = False) -> Ear:
    ear = Ear()

    async def go() -> None:
        await synchronize(dialpad, to, await look(dialpad), ear, adopt=adopt)

    asyncio.run(go())
    return ear


def todo(dialpad: Dialpad, to: Desired, *, adopt: bool = False) -> list[Step]:
    return plan(to, asyncio.run(look(dialpad)), adopt=adopt).todo


def shown(dialpad: Dialpad) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """Per kind and address (a URL, or `websocket`) what subscribes, without ids."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for kind, many in dialpad.store.subscriptions.items():
        for each in many.values():
            webhook = dialpad.store.webhooks.get(each.endpoint_id)
            is_socket = each.endpoint_id in dialpad.store.websockets
            address = webhook.hook_url if webhook else "websocket" if is_socket else "nowhere"
            found.setdefault(kind, {}).setdefault(address, []).append(each.fields)
    return found


ALL_OF_THEM: dict[str, list[dict[str, Any]]] = {
    "call": [{"call_states": ["all"], "group_calls_only": False, "enabled": True}],
    "sms": [{"direction": "all", "include_internal": True, "status": True, "enabled": True}],
    "contact": [
        {"contact_type": "shared", "enabled": True},
        {"contact_type": "local", "enabled": True},
    ],
    "agent_status": [{"agent_type": "callcenter", "enabled": True}],
    "changelog": [{"enabled": True}],
}


# Examples


def test_in_an_empty_account_everything_is_made_one_webhook_a_kind() -> None:
    dialpad = Dialpad()
    assert not sync(dialpad, wanted()).plans[1:]
    assert shown(dialpad) == {
        kind: {f"{HOOKS}/{kind}": found} for kind, found in ALL_OF_THEM.items()
    }
    assert {each.secret for each in dialpad.store.webhooks.values()} == {SECRET}
    assert not dialpad.store.websockets
    assert todo(dialpad, wanted()) == []


def test_or_one_websocket_for_all() -> None:
    dialpad = Dialpad()
    to = desired("acme", connection(public_url=None, subscriptions={"transport": "websocket"}))
    sync(dialpad, to)
    assert shown(dialpad) == {kind: {"websocket": found} for kind, found in ALL_OF_THEM.items()}
    assert [each.secret for each in dialpad.store.websockets.values()] == [SECRET]
    assert not dialpad.store.webhooks


def test_settings_become_bodies() -> None:
    dialpad = Dialpad()
    to = wanted(
        kinds=["call", "sms", "contact"],
        call_states=["hangup", "connected"],
        sms_direction="inbound",
        contact_types=["local"],
        target_type="call_center",
        target_id="5000000000000301",
    )
    sync(dialpad, to)
    target = {"target_type": "callcenter", "target_id": 5000000000000301}
    assert shown(dialpad) == {
        "call": {
            f"{HOOKS}/call": [
                {
                    "call_states": ["connected", "hangup"],
                    "group_calls_only": False,
                    "enabled": True,
                    **target,
                }
            ]
        },
        "sms": {
            f"{HOOKS}/sms": [
                {
                    "direction": "inbound",
                    "include_internal": True,
                    "status": True,
                    "enabled": True,
                    **target,
                }
            ]
        },
        "contact": {f"{HOOKS}/contact": [{"contact_type": "local", "enabled": True}]},
    }
    assert todo(dialpad, to) == []


def test_from_webhook_to_websocket_subscriptions_move_and_the_webhooks_go() -> None:
    dialpad = Dialpad()
    sync(dialpad, wanted())
    before = {kind: set(many) for kind, many in dialpad.store.subscriptions.items()}
    sync(dialpad, desired("acme", connection(subscriptions={"transport": "websocket"})))
    assert {kind: set(many) for kind, many in dialpad.store.subscriptions.items()} == before
    assert not dialpad.store.webhooks
    sync(dialpad, wanted())
    assert {kind: set(many) for kind, many in dialpad.store.subscriptions.items()} == before
    assert not dialpad.store.websockets


def test_a_websocket_that_somebody_listens_to_stays_without_subscriptions() -> None:
    dialpad = Dialpad()
    dialpad.store.create_websocket({"secret": SECRET})
    listening = desired("acme", connection(stream={"enabled": True}))
    sync(dialpad, listening)
    assert len(dialpad.store.websockets) == 1
    sync(dialpad, wanted())
    assert not dialpad.store.websockets


def test_each_thing_that_can_have_happened_has_its_word() -> None:
    dialpad = Dialpad()
    sync(dialpad, wanted())
    store = dialpad.store
    calls, texts, agents = (store.subscriptions[kind] for kind in ("call", "sms", "agent_status"))
    next(iter(calls.values())).fields["enabled"] = False
    next(iter(texts.values())).fields["status"] = False
    agents.clear()
    by_url = {each.hook_url: each for each in store.webhooks.values()}
    by_url[f"{HOOKS}/contact"].secret = None
    by_url[f"{HOOKS}/changelog"].secret = FOREIGN
    body = {"endpoint_id": by_url[f"{HOOKS}/sms"].id, "direction": "all"}
    store.create_subscription("sms", body, SCOPES)
    found = plan(wanted(), asyncio.run(look(dialpad)))
    assert drift(found) == {
        ("call", "disabled"): 1,
        ("sms", "changed"): 1,
        ("sms", "doubled"): 1,
        ("agent_status", "deleted"): 1,
        ("contact", "unsigned"): 1,
        ("changelog", "foreign_secret"): 1,
    }
    sync(dialpad, wanted())
    assert drift(plan(wanted(), asyncio.run(look(dialpad)))) == {}


def test_what_is_of_others_is_left_and_can_be_adopted() -> None:
    dialpad = Dialpad()
    store = dialpad.store
    theirs = store.create_webhook({"hook_url": "https://crm.example/hook?token=abc", "secret": "x"})
    mine = store.create_subscription("call", {"endpoint_id": theirs.id}, SCOPES)
    other = store.create_subscription("call", {"endpoint_id": theirs.id}, SCOPES)
    target = {"target_type": "office", "target_id": 7}
    office = store.create_subscription("call", {"endpoint_id": theirs.id, **target}, SCOPES)
    sync(dialpad, wanted(kinds=["call"]))
    assert {mine.id, other.id, office.id} < set(store.subscriptions["call"])
    assert len(store.subscriptions["call"]) == 4

    steps = sync(dialpad, wanted(kinds=["call"]), adopt=True).steps
    assert [(step.verb, step.id) for step in steps] == [
        ("delete", str(mine.id)),
        ("delete", str(other.id)),
    ], "we have one already"
    (kept,) = (each for each in store.subscriptions["call"] if each != office.id)
    store.subscriptions["call"].pop(kept)
    again = store.create_subscription("call", {"endpoint_id": theirs.id}, SCOPES)
    (step,) = sync(dialpad, wanted(kinds=["call"]), adopt=True).steps
    assert (step.verb, step.id) == ("change", str(again.id))
    assert "token" not in step.reasons[0].text
    assert "crm.example" in step.reasons[0].text
    assert theirs.id in store.webhooks
    assert store.subscriptions["call"][office.id].endpoint_id == theirs.id


def test_an_address_of_others_that_is_none_can_be_adopted_from() -> None:
    dialpad = Dialpad()
    theirs = dialpad.store.create_webhook({"hook_url": "https://crm.example/", "secret": "x"})
    theirs.hook_url = "https://[token"
    dialpad.store.create_subscription("call", {"endpoint_id": theirs.id}, SCOPES)
    (change,) = (
        step for step in todo(dialpad, wanted(kinds=["call"]), adopt=True) if step.is_subscription
    )
    assert change.verb == "change"
    assert change.reasons[0].text.startswith("webhook at no host → ")


@pytest.mark.parametrize(
    ("url", "is_ours"),
    [
        (HOOKS, True),
        (f"{HOOKS}/", True),
        (f"{HOOKS}/call", True),
        ("HTTPS://Hooks.Example.COM/webhooks/acme/call", True),
        (f"{HOOKS}_two/call", False),
        (f"{HOOKS}2", False),
        (f"{HOOKS}?call", False),
        ("https://hooks.example.com/webhooks/ACME", False),
        ("https://hooks.example.com.evil.example/webhooks/acme", False),
        ("https://hooks.example.com/x/webhooks/acme", False),
        ("http://hooks.example.com/webhooks/acme", False),
        ("", False),
    ],
)
def test_which_webhooks_are_ours(url: str, is_ours: bool) -> None:  # noqa: FBT001
    item = {"id": "1", "hook_url": url, "signature": {"secret": SECRET}}
    assert wanted().owns(read_endpoint("webhook", item)) == is_ours


def test_our_websocket_is_the_first_made_with_the_first_of_our_secrets() -> None:
    sockets = [
        Endpoint("websocket", "1000", "", OTHER_SECRET),
        Endpoint("websocket", "999", "", SECRET),
        Endpoint("websocket", "1001", "", SECRET),
        Endpoint("websocket", "7", "", None),
        Endpoint("webhook", "8", HOOKS, SECRET),
    ]
    assert our_websocket(sockets, [SECRET]) == sockets[1]
    assert our_websocket(sockets, [OTHER_SECRET, SECRET]) == sockets[0]
    assert our_websocket(sockets, [SECRET, OTHER_SECRET]) == sockets[1]
    assert our_websocket(sockets, [FOREIGN]) is None


def test_samples_of_the_api_are_read() -> None:
    for path in SAMPLES.glob("rest-subscription-*-response.json"):
        kind = path.stem.removeprefix("rest-subscription-").removesuffix("-response")
        item = json.loads(path.read_text())
        read = read_subscription(kind.replace("-", "_"), item)
        assert read.endpoint == Endpoint(
            "webhook", "5000000000004001", "https://hooks.example.com/dialpad/call", SECRET
        )
        assert read.target == (("callcenter", "5000000000000301") if kind == "call" else ("", ""))
    unsigned = read_endpoint("webhook", json.loads(sample("rest-webhook-no-secret")))
    assert unsigned.secret is None
    socket = read_endpoint("websocket", json.loads(sample("rest-websocket-create-response")))
    assert (socket.id, socket.url, socket.secret) == ("5000000000004101", "", SECRET)
    assert "secret" not in repr(socket)


def sample(name: str) -> str:
    return Path(SAMPLES / f"{name}.json").read_text()


def test_a_new_endpoint_signs_with_the_secret_that_is_in_use() -> None:
    """Receivers may not know the first one yet while secrets are rotated."""
    dialpad = Dialpad()
    sync(dialpad, wanted(kinds=["call"]))
    two = connection(secrets=[OTHER_SECRET, SECRET])
    sync(dialpad, desired("acme", two))
    assert {each.secret for each in dialpad.store.webhooks.values()} == {SECRET}
    assert todo(dialpad, desired("acme", two)) == []


@pytest.mark.parametrize("by", ["forbidden", "not_found"])
def test_kinds_that_may_not_be_read_are_left_and_no_endpoint_goes(
    by: Literal["forbidden", "not_found"],
) -> None:
    dialpad = Dialpad(forbidden=frozenset({"/api/v2/subscriptions/changelog"}), forbids_by=by)
    old = dialpad.store.create_webhook({"hook_url": HOOKS, "secret": SECRET})
    dialpad.store.create_subscription("changelog", {"endpoint_id": old.id}, SCOPES)
    ear = sync(dialpad, wanted())
    assert ear.plans[0].hidden == ("changelog",)
    assert old.id in dialpad.store.webhooks
    assert len(dialpad.store.subscriptions["changelog"]) == 1
    assert len(dialpad.store.subscriptions["call"]) == 1
    assert drift(ear.plans[0])["changelog", "hidden"] == 1
    sync(dialpad, wanted(kinds=["call"]))
    assert old.id not in dialpad.store.webhooks, "nobody wants what is hidden"


@pytest.mark.parametrize(
    ("more", "fault"),
    [
        ({"public_url": None}, "connections.acme.public_url: there is none"),
        ({"secrets": []}, "connections.acme.there is no secret"),
        (
            {"subscriptions": {"target_type": "office"}},
            "connections.acme.subscriptions: set both target_type and target_id",
        ),
    ],
)
def test_settings_that_cannot_be_met(more: dict[str, Any], fault: str) -> None:
    with pytest.raises(ConfigError) as caught:
        desired("acme", connection(**more))
    assert any(each.startswith(fault) for each in caught.value.faults), caught.value.faults


def test_who_is_synced() -> None:
    assert syncs(connection())
    assert not syncs(connection(api_key=None))
    assert not syncs(connection(secrets=[]))
    assert not syncs(connection(public_url=None))
    assert syncs(connection(public_url=None, subscriptions={"transport": "websocket"}))


def test_what_is_made_and_not_listed_yet_is_not_made_again() -> None:
    class Slow(Dialpad):
        """Lists what there was some time ago."""

        async def pages(self, path: str, *_: Any, **__: Any) -> AsyncIterator[list[bytes]]:
            return
            yield

    dialpad = Slow()
    sync(dialpad, wanted())
    assert [len(many) for many in dialpad.store.subscriptions.values()] == [1, 1, 2, 1, 1]


def test_what_others_delete_meanwhile_is_made_again_or_is_gone_as_it_should() -> None:
    dialpad = Dialpad()
    old = dialpad.store.create_webhook({"hook_url": f"{HOOKS}/old", "secret": SECRET})
    surplus = dialpad.store.create_subscription("call", {"endpoint_id": old.id}, SCOPES)
    surplus.fields["call_states"] = ["hangup"]
    unwanted = dialpad.store.create_subscription("changelog", {"endpoint_id": old.id}, SCOPES)
    turns = [unwanted.id]

    def another() -> None:
        made = dialpad.store.subscriptions["sms"]
        if made and turns:
            turns.clear()
            made.clear()
            dialpad.store.subscriptions["changelog"].clear()

    dialpad.watch = another
    ear = sync(dialpad, wanted(kinds=["call", "sms"]))
    assert len(ear.plans) == 2
    assert len(dialpad.store.subscriptions["sms"]) == 1
    assert todo(dialpad, wanted(kinds=["call", "sms"])) == []


def test_a_dialpad_that_keeps_nothing_is_given_up() -> None:
    class Stubborn(Dialpad):
        async def patch(self, path: str, body: Any) -> Any:
            return {}

    dialpad = Stubborn()
    sync(dialpad, wanted())
    next(iter(dialpad.store.subscriptions["call"].values())).fields["enabled"] = False
    with pytest.raises(ApiError, match="does not keep what it is told"):
        sync(dialpad, wanted())


# Any state


SECRETS = [SECRET, OTHER_SECRET, FOREIGN, None]
URLS = [
    *(f"{HOOKS}/{kind}" for kind in KINDS),
    HOOKS,
    f"{HOOKS}/",
    f"{HOOKS}/other",
    "https://HOOKS.example.com/webhooks/acme/call",
    "https://hooks.example.com/webhooks/acme_two/call",
    "https://crm.example/hook",
]
TARGETS: list[dict[str, Any]] = [{}, {"target_type": "office", "target_id": 7}]


def fields_of(kind: str) -> st.SearchStrategy[dict[str, Any]]:
    enabled = {"enabled": st.booleans()}
    if kind == "call":
        own: dict[str, st.SearchStrategy[Any]] = {
            "call_states": st.sampled_from([["all"], [], ["hangup"], ["hangup", "connected"]]),
            "group_calls_only": st.booleans(),
        }
    elif kind == "sms":
        own = {
            "direction": st.sampled_from(["all", "inbound"]),
            "include_internal": st.booleans(),
            "status": st.booleans(),
        }
    elif kind == "contact":
        return st.fixed_dictionaries(
            {"contact_type": st.sampled_from(["local", "shared"])}, optional=enabled
        )
    else:
        return st.fixed_dictionaries({}, optional=enabled)
    made = st.fixed_dictionaries({}, optional={**own, **enabled})
    return st.tuples(made, st.sampled_from(TARGETS)).map(lambda both: both[0] | both[1])


@st.composite
def stores(draw: st.DrawFn) -> Resources:
    store = Resources("ws://127.0.0.1:1", "s" * 32, lambda: 0)
    for url, secret in draw(
        st.lists(st.tuples(st.sampled_from(URLS), st.sampled_from(SECRETS)), max_size=6)
    ):
        store.create_webhook({"hook_url": url, "secret": secret})
    for secret in draw(st.lists(st.sampled_from(SECRETS), max_size=3)):
        store.create_websocket({"secret": secret})
    endpoints = [*store.webhooks, *store.websockets, 404]
    for kind in draw(st.lists(st.sampled_from(KINDS), max_size=8)):
        made = Subscription(
            store._new_id(), kind, draw(st.sampled_from(endpoints)), draw(fields_of(kind)), SCOPES
        )
        made.fields.setdefault("enabled", True)
        store.subscriptions[kind][made.id] = made
    return store


wishes = st.builds(
    lambda transport, kinds, states, types, target, listens, secrets: desired(
        "acme",
        connection(
            secrets=secrets,
            stream={"enabled": listens},
            subscriptions={
                "transport": transport,
                "kinds": kinds,
                "call_states": states,
                "contact_types": types,
                **{key: str(value) for key, value in target.items()},
            },
        ),
    ),
    st.sampled_from(["webhook", "websocket"]),
    st.lists(st.sampled_from(KINDS), unique=True),
    st.sampled_from([[], ["hangup"], ["connected", "hangup"]]),
    st.lists(st.sampled_from(["shared", "local"]), unique=True, min_size=1),
    st.sampled_from(TARGETS),
    st.booleans(),
    st.sampled_from([[SECRET], [SECRET, OTHER_SECRET]]),
)


def is_ours(to: Desired, store: Resources, endpoint_id: int) -> bool:
    """Said in other words than in the code."""
    webhook, socket = store.webhooks.get(endpoint_id), store.websockets.get(endpoint_id)
    if webhook is not None:
        return (webhook.hook_url.lower() + "/").startswith(HOOKS + "/")
    return socket is not None and socket.secret in to.secrets


def foreign(to: Desired, store: Resources, *, adopt: bool) -> dict[int, Any]:
    """Everything that must not be touched."""
    endpoints = {
        ident: deepcopy(one)
        for ident, one in [*store.webhooks.items(), *store.websockets.items()]
        if not is_ours(to, store, ident)
    }
    identities = {each.identity for each in to.subscriptions}
    subscriptions = {
        ident: deepcopy(one)
        for kind, many in store.subscriptions.items()
        for ident, one in many.items()
        if not is_ours(to, store, one.endpoint_id)
        and not (adopt and identity_of(kind, one, store) in identities)
    }
    return endpoints | subscriptions


def identity_of(kind: str, one: Subscription, store: Resources) -> tuple[str, str, Any]:
    return read_subscription(kind, store.show_subscription(one)).identity


def same_as(store: Resources, before: dict[int, Any]) -> bool:
    now: dict[int, Any] = {**store.webhooks, **store.websockets}
    for many in store.subscriptions.values():
        now |= many
    return {ident: now.get(ident) for ident in before} == before


def delivering(to: Desired, store: Resources) -> set[tuple[str, str, tuple[str, str]]]:
    """What is wanted, and comes to us signed with what we know."""
    found = set()
    for kind, many in store.subscriptions.items():
        for one in many.values():
            if not one.enabled or not is_ours(to, store, one.endpoint_id):
                continue
            endpoints: dict[int, Any] = {**store.webhooks, **store.websockets}
            if endpoints[one.endpoint_id].secret in to.secrets:
                found.add(identity_of(kind, one, store))
    return found & {each.identity for each in to.subscriptions}


def most_alike(to: Desired, store: Resources) -> dict[object, int]:
    counts: dict[object, int] = {}
    for kind, many in store.subscriptions.items():
        for one in many.values():
            if is_ours(to, store, one.endpoint_id):
                identity = identity_of(kind, one, store)
                counts[identity] = counts.get(identity, 0) + 1
    return counts


def assert_as_wanted(to: Desired, store: Resources) -> None:
    """Each wanted subscription once, where it belongs, and nothing else of ours."""
    ours = [
        (kind, one)
        for kind, many in store.subscriptions.items()
        for one in many.values()
        if is_ours(to, store, one.endpoint_id)
    ]
    assert len(ours) == len(to.subscriptions)
    by_identity = {each.identity: each for each in to.subscriptions}
    for kind, one in ours:
        read = read_subscription(kind, store.show_subscription(one))
        want = by_identity.pop(read.identity)
        assert read.terms == want.terms
        if want.address == WEBSOCKET:
            assert one.endpoint_id in store.websockets
        else:
            assert store.webhooks[one.endpoint_id].hook_url.lower() == want.address
    urls = [
        each.hook_url.lower() for each in store.webhooks.values() if is_ours(to, store, each.id)
    ]
    assert sorted(urls) == sorted(each for each in to.addresses if each != WEBSOCKET)
    sockets = [each for each in store.websockets.values() if is_ours(to, store, each.id)]
    if to.addresses == (WEBSOCKET,):
        assert len(sockets) == 1
    elif not to.keeps_websockets:
        assert sockets == []
    for each in store.webhooks.values():
        if is_ours(to, store, each.id):
            assert each.secret in to.secrets


class Watched:
    """Looks after each change whether something was lost, doubled, or touched that is not ours."""

    def __init__(self, to: Desired, dialpad: Dialpad, *, adopt: bool) -> None:
        self.to, self.store = to, dialpad.store
        self.untouched = foreign(to, dialpad.store, adopt=adopt)
        self.came = delivering(to, dialpad.store)
        self.counts = most_alike(to, dialpad.store)
        dialpad.watch = self.look

    def look(self) -> None:
        assert same_as(self.store, self.untouched)
        assert self.came <= delivering(self.to, self.store), "something no longer comes"
        self.came = delivering(self.to, self.store)
        for identity, count in most_alike(self.to, self.store).items():
            assert count <= max(1, self.counts.get(identity, 0)), "doubled"


@given(store=stores(), to=wishes, adopt=st.booleans(), numbers=st.booleans())
@settings(max_examples=300)
def test_after_a_sync_a_second_one_has_nothing_to_do(
    *,
    store: Resources,
    to: Desired,
    adopt: bool,
    numbers: bool,
) -> None:
    dialpad = Dialpad(store=store, numbers=numbers)
    Watched(to, dialpad, adopt=adopt)
    ear = sync(dialpad, to, adopt=adopt)
    assert len(ear.plans) <= 1, "one round is enough where nothing fails"
    assert_as_wanted(to, store)
    assert todo(dialpad, to, adopt=adopt) == []
    changes = len(dialpad.changes)
    sync(dialpad, to, adopt=adopt)
    assert len(dialpad.changes) == changes


@given(store=stores(), to=wishes, adopt=st.booleans(), how=st.sampled_from(["before", "after"]))
@settings(max_examples=100)
def test_whichever_step_fails_running_again_reaches_the_same_end(
    *,
    store: Resources,
    to: Desired,
    adopt: bool,
    how: str,
) -> None:
    steps = Dialpad(store=deepcopy(store))
    sync(steps, to, adopt=adopt)
    for number in range(1, len(steps.changes) + 1):
        dialpad = Dialpad(store=deepcopy(store), fails=(number, how))
        Watched(to, dialpad, adopt=adopt)
        with suppress(ApiError):
            sync(dialpad, to, adopt=adopt)
        dialpad.fails = None
        sync(dialpad, to, adopt=adopt)
        assert_as_wanted(to, dialpad.store)
        assert shown(dialpad) == shown(steps)


@given(stores(), wishes)
@settings(max_examples=100)
def test_what_is_kept_does_not_depend_on_the_order_of_lists(store: Resources, to: Desired) -> None:
    found = asyncio.run(look(Dialpad(store=store)))
    turned = type(found)(
        list(reversed(found.endpoints)), list(reversed(found.subscriptions)), found.hidden
    )

    def said(of: Plan) -> set[tuple[object, ...]]:
        return {(step.verb, step.path, step.id) for step in of.steps}

    assert said(plan(to, found)) == said(plan(to, turned))


def words_of(step: Step) -> Iterator[str]:
    yield step.text
    yield repr(step)
    yield from (reason.text for reason in step.reasons)


@given(store=stores(), to=wishes, adopt=st.booleans())
@settings(max_examples=100)
def test_no_secret_and_no_address_of_others_is_told(
    *,
    store: Resources,
    to: Desired,
    adopt: bool,
) -> None:
    found = plan(to, asyncio.run(look(Dialpad(store=store))), adopt=adopt)
    text = " ".join(word for step in found.steps for word in words_of(step))
    for private in (SECRET, OTHER_SECRET, FOREIGN, "crm.example/", "ws://", HOOKS + "/other"):
        assert private not in text

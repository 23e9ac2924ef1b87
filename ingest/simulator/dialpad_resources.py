"""Dialpad's webhooks, websockets and subscriptions, as its API keeps them.

https://developers.dialpad.com/docs/event-subscriptions and the pages of the single calls.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from urllib.parse import urlsplit

import jwt

from ingest.simulator.api_server import Refusal


def words(text: str) -> frozenset[str]:
    return frozenset(text.split())


#: What a subscription to calls may name.
CALL_STATES = words(
    "admin admin_recording ai_playbook all barge blocked call_transcription calling connected "
    "csat dispositions eavesdrop hangup hold merged missed monitor parked pcsat postcall "
    "preanswer queued recap_action_items recap_outcome recap_purposes recap_summary recording "
    "ringing takeover transcription voicemail voicemail_uploaded"
)
TARGET_TYPES = words(
    "callcenter callrouter channel coachinggroup coachingteam department office room "
    "staffgroup unknown user"
)
SCOPES = words(
    "recordings_export message_content_export message_content_export:all conference:all "
    "calls:list change_log fax_message ai_recap"
)

#: Of one kind, and of them for the whole company.
MOST_SUBSCRIPTIONS, MOST_FOR_THE_COMPANY = 100, 10

#: How long the address of a websocket is good for, and how long a connection lasts.
TOKEN_LIFE_S = 3600
TOKEN_TYPE = "vnd.dialpad.websocket+jwt"  # noqa: S105 - no password


@dataclass(slots=True)
class Webhook:
    id: int
    hook_url: str
    secret: str | None


@dataclass(slots=True)
class Websocket:
    id: int
    secret: str | None


@dataclass(slots=True)
class Subscription:
    id: int
    kind: str
    endpoint_id: int
    #: Those of the kind that have been set.
    fields: dict[str, Any]
    #: Of the key that made it.
    scopes: frozenset[str]

    @property
    def enabled(self) -> bool:
        return bool(self.fields["enabled"])


Check = Callable[[Any], bool]


def _one_of(*words: str) -> Check:
    return lambda value: isinstance(value, str) and value in words


def _flag(value: Any) -> bool:
    return isinstance(value, bool)


def _id(value: Any) -> bool:
    return (isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**63) or (
        isinstance(value, str) and value.isascii() and value.isdigit() and int(value) < 2**63
    )


def _states(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) and v in CALL_STATES for v in value)


_ENABLED: Mapping[str, Check] = {"enabled": _flag}
_TARGET: Mapping[str, Check] = {"target_type": _one_of(*TARGET_TYPES), "target_id": _id}

#: Kind → what its body may hold beside `endpoint_id`.
FIELDS: Mapping[str, Mapping[str, Check]] = {
    "call": {"call_states": _states, "group_calls_only": _flag, **_ENABLED, **_TARGET},
    "sms": {
        "direction": _one_of("all", "inbound", "outbound"),
        "include_internal": _flag,
        "status": _flag,
        **_ENABLED,
        **_TARGET,
    },
    "contact": {"contact_type": _one_of("local", "shared"), **_ENABLED},
    "agent_status": {"agent_type": _one_of("callcenter"), **_ENABLED},
    "changelog": _ENABLED,
}
_NEEDED_TO_CREATE = {
    "sms": ("direction",),
    "contact": ("contact_type",),
    "agent_status": ("agent_type",),
}
_NEEDED_TO_PATCH = {"contact": ("contact_type",)}
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "sms": {"include_internal": False, "status": False},
}
#: What a key needs for them.
FOR_ADMINS = frozenset({"contact", "agent_status", "changelog"})
NEEDED_SCOPES = {"changelog": "change_log"}


@dataclass(slots=True)
class Resources:
    """All of one company's. Methods raise Refusal."""

    #: Where sockets are, such as ``ws://127.0.0.1:1234``.
    sockets_url: str
    #: Whatever signs the tokens in the addresses of websockets.
    token_secret: str
    now_ms: Callable[[], int]
    webhooks: dict[int, Webhook] = field(default_factory=dict)
    websockets: dict[int, Websocket] = field(default_factory=dict)
    subscriptions: dict[str, dict[int, Subscription]] = field(
        default_factory=lambda: {kind: {} for kind in FIELDS}
    )
    _ids: Iterable[int] = field(default_factory=lambda: count(5_000_000_000_004_001))

    # Webhooks and websockets

    def create_webhook(self, body: Mapping[str, Any]) -> Webhook:
        if "hook_url" not in body:
            raise Refusal(400, "hook_url is required")
        webhook = Webhook(self._new_id(), _url(body["hook_url"]), _secret(body))
        self.webhooks[webhook.id] = webhook
        return webhook

    def patch_webhook(self, webhook: Webhook, body: Mapping[str, Any]) -> None:
        hook_url = _url(body["hook_url"]) if "hook_url" in body else webhook.hook_url
        if "secret" in body:
            webhook.secret = _secret(body)
        webhook.hook_url = hook_url

    def create_websocket(self, body: Mapping[str, Any]) -> Websocket:
        websocket = Websocket(self._new_id(), _secret(body))
        self.websockets[websocket.id] = websocket
        return websocket

    def patch_websocket(self, websocket: Websocket, body: Mapping[str, Any]) -> None:
        if "secret" in body:
            websocket.secret = _secret(body)

    def show_webhook(self, webhook: Webhook) -> dict[str, Any]:
        return {
            "hook_url": webhook.hook_url,
            "id": str(webhook.id),
            **_signature(webhook.secret),
        }

    def show_websocket(
        self, websocket: Websocket, subscription: Subscription | None = None
    ) -> dict[str, Any]:
        """The object, with a new address: of all its subscriptions, or of one."""
        reach = "*" if subscription is None else f"{subscription.kind}:{subscription.id}"
        token = self._token(f"endpoint:{websocket.id}:{reach}")
        return {
            "id": str(websocket.id),
            "websocket_url": f"{self.sockets_url}/events/{token}",
            **_signature(websocket.secret),
        }

    def _token(self, subject: str) -> str:
        now_s = self.now_ms() // 1000
        claims = {
            "iss": "https://dialpad.example",
            "iat": now_s,
            "exp": now_s + TOKEN_LIFE_S,
            "sub": subject,
        }
        # ES256 in production; HS256 in the samples of the API's description.
        return jwt.encode(claims, self.token_secret, "HS256", headers={"typ": TOKEN_TYPE})

    def reach_of(self, token: str) -> tuple[int, int | None] | None:
        """Whose address that is: a websocket, and one of its subscriptions if it is only that.

        None: nobody's, or not any more.
        """
        try:
            # Its clock is the simulated one, so PyJWT cannot look at `exp`.
            claims = jwt.decode(
                token,
                self.token_secret,
                ["HS256"],
                options={"verify_exp": False, "verify_iat": False},
            )
            _, websocket_id, *reach = claims["sub"].split(":")
        except (jwt.InvalidTokenError, ValueError, KeyError):
            return None
        websocket = self.websockets.get(int(websocket_id))
        if websocket is None or self.now_ms() // 1000 >= claims["exp"]:
            return None
        return websocket.id, (None if reach == ["*"] else int(reach[1]))

    # Subscriptions

    def create_subscription(
        self, kind: str, body: Mapping[str, Any], scopes: frozenset[str]
    ) -> Subscription:
        for name in _NEEDED_TO_CREATE.get(kind, ()):
            if name not in body:
                raise Refusal(400, f"{name} is required")
        values = {"enabled": True, **_DEFAULTS.get(kind, {}), **_checked(kind, body)}
        endpoint_id = self._endpoint_id(body)
        if endpoint_id is None:
            raise Refusal(400, "endpoint_id is required")
        self._must_have_room(kind, for_the_company="target_id" not in values)
        subscription = Subscription(
            self._new_id(), kind, endpoint_id, _without_nulls(values), scopes
        )
        self.subscriptions[kind][subscription.id] = subscription
        return subscription

    def patch_subscription(self, subscription: Subscription, body: Mapping[str, Any]) -> None:
        for name in _NEEDED_TO_PATCH.get(subscription.kind, ()):
            if name not in body:
                raise Refusal(400, f"{name} is required")
        values = _checked(subscription.kind, body)
        endpoint_id = self._endpoint_id(body)
        if endpoint_id is not None:
            subscription.endpoint_id = endpoint_id
        subscription.fields = _without_nulls({**subscription.fields, **values})

    def show_subscription(self, subscription: Subscription) -> dict[str, Any]:
        """The subscription as the API tells it: its endpoint in it, `endpoint_id` not."""
        shown: dict[str, Any] = {**subscription.fields, "id": str(subscription.id)}
        if "target_id" in shown:
            shown["target_id"] = str(shown["target_id"])
        if subscription.endpoint_id in self.webhooks:
            shown["webhook"] = self.show_webhook(self.webhooks[subscription.endpoint_id])
        elif subscription.endpoint_id in self.websockets:
            websocket = self.websockets[subscription.endpoint_id]
            shown["websocket"] = self.show_websocket(websocket, subscription)
        return shown

    def _endpoint_id(self, body: Mapping[str, Any]) -> int | None:
        """Read it from where it belongs, or from its old name."""
        given = body.get("endpoint_id", body.get("webhook_id"))
        if given is None:
            return None
        if not _id(given):
            raise Refusal(400, "endpoint_id is not valid")
        if int(given) not in self.webhooks and int(given) not in self.websockets:
            raise Refusal(404, "there is no such endpoint")
        return int(given)

    def _must_have_room(self, kind: str, *, for_the_company: bool) -> None:
        there = self.subscriptions[kind].values()
        of_the_company = sum("target_id" not in other.fields for other in there)
        if len(there) >= MOST_SUBSCRIPTIONS or (
            for_the_company and of_the_company >= MOST_FOR_THE_COMPANY
        ):
            raise Refusal(400, "too many subscriptions of this kind")

    def _new_id(self) -> int:
        return next(iter(self._ids))


def _url(value: Any) -> str:
    if isinstance(value, str):
        parts = urlsplit(value)
        if parts.scheme in {"http", "https"} and parts.hostname:
            return value
    raise Refusal(400, "hook_url is not valid")


def _secret(body: Mapping[str, Any]) -> str | None:
    secret = body.get("secret")
    if secret is not None and not isinstance(secret, str):
        raise Refusal(400, "secret is not valid")
    return secret or None


def _signature(secret: str | None) -> dict[str, Any]:
    if secret is None:
        return {}
    return {"signature": {"algo": "HS256", "secret": secret, "type": "jwt"}}


def _checked(kind: str, body: Mapping[str, Any]) -> dict[str, Any]:
    """What the body says of the fields of this kind; null takes a value away."""
    values = {}
    for name, is_good in FIELDS[kind].items():
        if name not in body:
            continue
        if body[name] is not None and not is_good(body[name]):
            raise Refusal(400, f"{name} is not valid")
        values[name] = body[name]
    if values.get("target_id") is not None:
        values["target_id"] = int(values["target_id"])
    if (values.get("target_id") is None) != (values.get("target_type") is None):
        raise Refusal(400, "target_type and target_id go together")
    return values


def _without_nulls(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def is_of_target(event: Mapping[str, Any], kind: str, ident: str) -> bool:
    """Whether a call or a message is of a target, as subscriptions and lists name it."""
    kind = kind.replace("_", "").lower()
    if kind == "office":
        return str(event["target"].get("office_id")) == ident
    for key in ("target", "entry_point_target"):
        party = event.get(key) or {}
        if str(party.get("id")) == ident and party["type"].replace("_", "").lower() == kind:
            return True
    return False

"""How Dialpad's events come to those who subscribed to them.

https://developers.dialpad.com/docs/webhook-delivery-failures: what an answer causes. Order and
uniqueness are promised nowhere; as long as no fault strikes, the first attempts of one subject go
out one after the other, and a retry comes whenever it comes.
"""

import json
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any, Literal, TypeAlias

from ingest.simulator.clock import Clock
from ingest.simulator.courier import Courier, Key
from ingest.simulator.dialpad import (
    NO_ODDITIES,
    QUICK_RETRY_WAITS_S,
    Oddities,
    kind_of,
    payloads,
    retry_waits_s,
    sign,
    to_json,
)
from ingest.simulator.dialpad_resources import (
    Resources,
    Subscription,
    Webhook,
    Websocket,
    is_of_target,
)
from ingest.simulator.dialpad_sockets import Sockets
from ingest.simulator.facts import (
    Happening,
    TextHappening,
    TextStep,
)
from ingest.simulator.faults import ODDITIES, Faults
from ingest.simulator.post import Poster, PostError

TIMEOUT_S = 5.0

Event: TypeAlias = dict[str, Any]


@dataclass(slots=True, eq=False)
class Delivery:
    """One event on its way to one subscription, and what became of it."""

    kind: str
    subscription_id: int
    endpoint_id: int
    via: Literal["webhook", "websocket"]
    #: The JSON that was sent, or will be.
    body: bytes
    #: Made by Dialpad, and signed if it should be.
    genuine: bool = True
    #: World time of the first attempt.
    at_ms: int | None = None
    #: A webhook's statuses, one an attempt; None: refused, broken off, or 5 s without an answer.
    answers: list[int | None] = field(default_factory=list)
    #: To how many sockets the frame was given.
    sockets: int = 0
    #: How long to wait, each time that the answer is 5xx, before the next attempt.
    waits_s: Sequence[float] = ()

    @property
    def accepted(self) -> bool:
        """A webhook has said 2xx, so Dialpad never sends it again; or a socket was there."""
        if self.via == "websocket":
            return self.sockets > 0
        return any(status is not None and 200 <= status < 300 for status in self.answers)  # noqa: PLR2004

    @property
    def event(self) -> Any:
        return json.loads(self.body)


class Deliveries(Courier[Delivery]):
    """Everything under way to webhooks and sockets."""

    def __init__(
        self,
        clock: Clock,
        resources: Resources,
        sockets: Sockets,
        faults: Faults,
        done: deque[Delivery],
        seed: int,
    ) -> None:
        super().__init__(clock, faults)
        self._resources = resources
        self._sockets = sockets
        self._done = done
        self._seed = seed
        #: Attempts, by what came back.
        self.sums: Counter[str] = Counter()
        self._poster = Poster()

    def close(self) -> None:
        self._poster.close()

    def send(self, happening: Happening) -> None:
        """Send it to all who subscribed to it."""
        kind = kind_of(happening)
        if kind is None:
            return
        events = payloads(happening, self._oddities(happening))
        subscriptions = list(self._resources.subscriptions[kind].values())
        if not events or not subscriptions or self.loses(happening):
            return
        for subscription in subscriptions:
            for event in events:
                if subscription.enabled and _wants(subscription, event, happening):
                    self._send(subscription, happening, event)

    def _oddities(self, happening: Happening) -> Oddities:
        faults = self.faults
        rates = {name: rate for name in ODDITIES if (rate := getattr(faults, name)) > 0}
        if not rates:
            return NO_ODDITIES
        oddities = Oddities(seed=self._seed, **rates)
        for name in rates:
            faults.counts[name] += oddities.has(name, happening.subject_id)
        return oddities

    def _send(self, subscription: Subscription, happening: Happening, event: Event) -> None:
        if self.faults.strikes("dropped"):
            return
        if (endpoint := self._endpoint(subscription.endpoint_id)) is None:
            return
        delivery = Delivery(
            subscription.kind,
            subscription.id,
            endpoint.id,
            "webhook" if isinstance(endpoint, Webhook) else "websocket",
            to_json(_without_what_is_not_allowed(event, subscription)),
            waits_s=retry_waits_s(happening),
        )
        self.bring((subscription.id, happening.subject_id), delivery)
        if delivery.via == "websocket":
            self._send_strange_frames(delivery)

    def go(self, key: Key, delivery: Delivery) -> None:
        """To sockets at once, to a webhook when its subject's turn has come."""
        if delivery.via == "websocket":
            self._frame(delivery)
            self.release(key)
        else:
            super().go(key, delivery)

    async def forge(self, delivery: Delivery) -> None:
        delivery.genuine = False
        unsigned = self.faults.up_to(2) == 1
        secret = None if unsigned else "not-the-secret-of-this-endpoint!"
        if delivery.via == "websocket":
            self._frame(delivery, secret)
        else:
            webhook = self._resources.webhooks.get(delivery.endpoint_id)
            if webhook is not None:
                await self._post(delivery, webhook, secret)

    # Sockets

    def _frame(self, delivery: Delivery, *forged: str | None) -> None:
        websocket = self._resources.websockets.get(delivery.endpoint_id)
        if websocket is None:
            return
        (secret,) = forged or (websocket.secret,)
        body = delivery.body if secret is None else sign(delivery.body, secret)
        self._begin(delivery)
        delivery.sockets = self._sockets.send(websocket.id, delivery.subscription_id, body.decode())
        self.sums["frames" if delivery.sockets else "no socket"] += 1

    def _send_strange_frames(self, delivery: Delivery) -> None:
        """What is no signed event, beside what is."""
        websocket = self._resources.websockets[delivery.endpoint_id]
        to = websocket.id, delivery.subscription_id
        if self.faults.strikes("frames_binary"):
            self._sockets.send(*to, bytes(range(256)))
        if self.faults.strikes("frames_html"):
            self._sockets.send(*to, "<!DOCTYPE html><html><body>Bad Gateway</body></html>")
        if self.faults.strikes("frames_odd"):
            odd = b'{"of":"no known kind"}'
            self._sockets.send(*to, sign(odd, websocket.secret or "").decode())

    # Webhooks

    async def deliver(self, delivery: Delivery) -> None:
        if delivery.via == "websocket":
            self._frame(delivery)
        else:
            await super().deliver(delivery)

    async def retry(self, delivery: Delivery, said: int | None) -> None:
        after_5xx, after_failure = iter(delivery.waits_s), iter(QUICK_RETRY_WAITS_S)
        while True:
            if said is None:
                wait_s = next(after_failure, None)
            else:
                wait_s = next(after_5xx, None) if said >= HTTPStatus.INTERNAL_SERVER_ERROR else None
            if wait_s is None:
                return
            await self.wait(wait_s)
            said = await self.attempt(delivery)

    async def attempt(self, delivery: Delivery) -> int | None:
        """Post it with the secret that the webhook has now."""
        webhook = self._resources.webhooks.get(delivery.endpoint_id)
        if webhook is None:
            return HTTPStatus.GONE
        return await self._post(delivery, webhook, webhook.secret)

    def copy(self, delivery: Delivery) -> Delivery:
        return replace(delivery, at_ms=None, answers=[], sockets=0)

    async def _post(self, delivery: Delivery, webhook: Webhook, secret: str | None) -> int | None:
        content = delivery.body if secret is None else sign(delivery.body, secret)
        # The type of signed ones was seen; that of others is what JSON needs to be read.
        content_type = "application/json" if secret is None else "application/jwt"
        self._begin(delivery)
        status: int | None
        try:
            headers = {"Content-Type": content_type}
            answer = await self._poster.post(webhook.hook_url, headers, content, TIMEOUT_S)
            status = answer.status
        except PostError:
            status = None
        delivery.answers.append(status)
        self.sums["no answer" if status is None else str(status)] += 1
        return status

    # Bookkeeping

    def _endpoint(self, ident: int) -> Webhook | Websocket | None:
        return self._resources.webhooks.get(ident) or self._resources.websockets.get(ident)

    def _begin(self, delivery: Delivery) -> None:
        if delivery.at_ms is None:
            delivery.at_ms = self.clock.now_ms
            self._done.append(delivery)


def _wants(subscription: Subscription, event: Event, happening: Happening) -> bool:
    """Whether a subscription is about an event."""
    fields = subscription.fields
    if "target_id" in fields and not is_of_target(
        event, fields["target_type"], str(fields["target_id"])
    ):
        return False
    match subscription.kind:
        case "call":
            states = fields.get("call_states") or ["all"]
            if fields.get("group_calls_only") and not event["group_id"]:
                return False
            return "all" in states or event["state"] in states
        case "sms":
            is_update = isinstance(happening, TextHappening) and (
                happening.step is not TextStep.WRITTEN
            )
            return (
                fields["direction"] in {"all", event["direction"]}
                and (fields["status"] or not is_update)
                and (fields["include_internal"] or not event["is_internal"])
            )
        case "contact":
            return bool(event["contact"]["type"] == fields["contact_type"])
        case _:
            return True


def _without_what_is_not_allowed(event: Event, subscription: Subscription) -> Event:
    """Leave out what the key that made the subscription lacks the scope for."""
    scopes = subscription.scopes
    of_a_target = "target_id" in subscription.fields
    if subscription.kind == "sms":
        is_allowed = "message_content_export:all" in scopes or (
            of_a_target and "message_content_export" in scopes
        )
        return event if is_allowed else event | {"text": None, "text_content": None}
    if subscription.kind == "call" and "recordings_export" not in scopes:
        recordings: Event = {
            "admin_recording_urls": [],
            "recording_details": [],
            "recording_url": [],
            "voicemail_link": None,
        }
        return event | {key: value for key, value in recordings.items() if key in event}
    return event

"""How Dialpad's events come to those who subscribed to them.

https://developers.dialpad.com/docs/webhook-delivery-failures: what an answer causes. Order and
uniqueness are promised nowhere; as long as no fault strikes, the first attempts of one subject go
out one after the other, and a retry comes whenever it comes.
"""

import asyncio
import json
from collections import Counter, deque
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any, Literal, TypeAlias
from weakref import WeakValueDictionary

from ingest.simulator.clock import Clock
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
from ingest.simulator.dialpad_post import Poster, PostError
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

TIMEOUT_S = 5.0

#: What a repeat or a reordered delivery waits for at most.
A_MOMENT_S = 10.0
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

    @property
    def accepted(self) -> bool:
        """A webhook has said 2xx, so Dialpad never sends it again; or a socket was there."""
        if self.via == "websocket":
            return self.sockets > 0
        return any(status is not None and 200 <= status < 300 for status in self.answers)  # noqa: PLR2004

    @property
    def event(self) -> Any:
        return json.loads(self.body)


class Deliveries:
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
        self._clock = clock
        self._resources = resources
        self._sockets = sockets
        self._faults = faults
        self._done = done
        self._seed = seed
        #: Attempts, by what came back.
        self.sums: Counter[str] = Counter()
        self._poster = Poster()
        #: Where everything is under way that takes time.
        self.group: asyncio.TaskGroup
        self._tasks: set[asyncio.Task[None]] = set()
        #: A subscription's subject → whose turn it is; gone when nobody is under way.
        self._turns: WeakValueDictionary[tuple[int, int], asyncio.Lock] = WeakValueDictionary()
        #: What waits for the next one of its subject.
        self._held: dict[tuple[int, int], list[asyncio.Event]] = {}
        self._busy = 0
        self._waiting_for_few: list[tuple[int, asyncio.Event]] = []

    def give_up(self) -> None:
        """Give up everything that is under way."""
        for task in self._tasks:
            task.cancel()

    def close(self) -> None:
        self._poster.close()

    async def at_most(self, many: int) -> None:
        """Wait until so many are under way; what waits for its time is not."""
        if self._busy > many:
            few = asyncio.Event()
            self._waiting_for_few.append((many, few))
            await few.wait()

    def send(self, happening: Happening) -> None:
        """Send it to all who subscribed to it."""
        kind = kind_of(happening)
        if kind is None:
            return
        events = payloads(happening, self._oddities(happening))
        for subscription in list(self._resources.subscriptions[kind].values()):
            for event in events:
                if subscription.enabled and _wants(subscription, event, happening):
                    self._send(subscription, happening, event)

    def _oddities(self, happening: Happening) -> Oddities:
        faults = self._faults
        rates = {name: rate for name in ODDITIES if (rate := getattr(faults, name)) > 0}
        if not rates:
            return NO_ODDITIES
        oddities = Oddities(seed=self._seed, **rates)
        for name in rates:
            faults.counts[name] += oddities.has(name, happening.subject_id)
        return oddities

    def _send(self, subscription: Subscription, happening: Happening, event: Event) -> None:
        faults = self._faults
        if faults.strikes("dropped"):
            return
        if (endpoint := self._endpoint(subscription.endpoint_id)) is None:
            return
        delivery = Delivery(
            subscription.kind,
            subscription.id,
            endpoint.id,
            "webhook" if isinstance(endpoint, Webhook) else "websocket",
            to_json(_without_what_is_not_allowed(event, subscription)),
        )
        key = subscription.id, happening.subject_id
        if faults.strikes("delayed"):
            self._start(self._after(faults.between(0, faults.delay_s), delivery, happening))
        elif faults.strikes("reordered"):
            gone = asyncio.Event()
            self._held.setdefault(key, []).append(gone)
            self._start(self._after_the_next(key, gone, delivery, happening))
        else:
            self._go(key, delivery, happening)
        if faults.strikes("repeated"):
            again = _copy(delivery)
            self._start(self._after(faults.between(0, A_MOMENT_S), again, happening))
        if faults.strikes("forged"):
            self._start(self._forge(_copy(delivery)))
        if delivery.via == "websocket":
            self._send_strange_frames(delivery)

    def _go(self, key: tuple[int, int], delivery: Delivery, happening: Happening) -> None:
        """Send it now: to sockets at once, to a webhook when its subject's turn has come."""
        if delivery.via == "websocket":
            self._frame(delivery)
            self._release(key)
        else:
            turn = self._turns.setdefault(key, asyncio.Lock())
            self._start(self._post_in_turn(turn, key, delivery, happening))

    async def _after(self, wait_s: float, delivery: Delivery, happening: Happening) -> None:
        with self._waiting():
            await self._clock.sleep(wait_s)
        await self._deliver(delivery, happening)

    async def _after_the_next(
        self,
        key: tuple[int, int],
        gone: asyncio.Event,
        delivery: Delivery,
        happening: Happening,
    ) -> None:
        """Wait until the next of its subject is there, or has not come for long."""
        with self._waiting():
            waiting = [
                asyncio.ensure_future(it) for it in (gone.wait(), self._clock.sleep(A_MOMENT_S))
            ]
            try:
                await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for it in waiting:
                    it.cancel()
                held = self._held.get(key, [])
                if gone in held:
                    held.remove(gone)
                if not held:
                    self._held.pop(key, None)
        await self._deliver(delivery, happening)

    def _release(self, key: tuple[int, int]) -> None:
        for gone in self._held.pop(key, ()):
            gone.set()

    async def _forge(self, delivery: Delivery) -> None:
        """Play somebody who knows the address and not the secret."""
        delivery.genuine = False
        unsigned = self._faults.up_to(2) == 1
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
        if self._faults.strikes("frames_binary"):
            self._sockets.send(*to, bytes(range(256)))
        if self._faults.strikes("frames_html"):
            self._sockets.send(*to, "<!DOCTYPE html><html><body>Bad Gateway</body></html>")
        if self._faults.strikes("frames_odd"):
            odd = b'{"of":"no known kind"}'
            self._sockets.send(*to, sign(odd, websocket.secret or "").decode())

    # Webhooks

    async def _deliver(self, delivery: Delivery, happening: Happening) -> None:
        """Send it, out of turn."""
        if delivery.via == "websocket":
            self._frame(delivery)
            return
        await self._retry(delivery, happening, await self._try(delivery))

    async def _post_in_turn(
        self,
        turn: asyncio.Lock,
        key: tuple[int, int],
        delivery: Delivery,
        happening: Happening,
    ) -> None:
        async with turn:
            said = await self._try(delivery)
            self._release(key)
        await self._retry(delivery, happening, said)

    async def _retry(self, delivery: Delivery, happening: Happening, said: int | None) -> None:
        """Try again, until it is accepted, refused for good, or has had its retries."""
        after_5xx, after_failure = iter(retry_waits_s(happening)), iter(QUICK_RETRY_WAITS_S)
        while True:
            if said is None:
                wait_s = next(after_failure, None)
            else:
                wait_s = next(after_5xx, None) if said >= HTTPStatus.INTERNAL_SERVER_ERROR else None
            if wait_s is None:
                return
            with self._waiting():
                await self._clock.sleep(wait_s)
            said = await self._try(delivery)

    async def _try(self, delivery: Delivery) -> int | None:
        """Post it with the secret that the webhook has now."""
        webhook = self._resources.webhooks.get(delivery.endpoint_id)
        if webhook is None:
            return HTTPStatus.GONE
        return await self._post(delivery, webhook, webhook.secret)

    async def _post(self, delivery: Delivery, webhook: Webhook, secret: str | None) -> int | None:
        content = delivery.body if secret is None else sign(delivery.body, secret)
        # The type of signed ones was seen; that of others is what JSON needs to be read.
        content_type = "application/json" if secret is None else "application/jwt"
        self._begin(delivery)
        status: int | None
        try:
            status = await self._poster.post(webhook.hook_url, content_type, content, TIMEOUT_S)
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
            delivery.at_ms = self._clock.now_ms
            self._done.append(delivery)

    def _start(self, doing: Coroutine[Any, Any, None]) -> None:
        task = self.group.create_task(doing)
        self._count(+1)
        self._tasks.add(task)
        task.add_done_callback(self._ended)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        self._count(-1)

    def _count(self, change: int) -> None:
        self._busy += change
        for waiting in [w for w in self._waiting_for_few if w[0] >= self._busy]:
            self._waiting_for_few.remove(waiting)
            waiting[1].set()

    @contextmanager
    def _waiting(self) -> Iterator[None]:
        """Not be under way meanwhile."""
        self._count(-1)
        try:
            yield
        finally:
            self._count(+1)


def _copy(delivery: Delivery) -> Delivery:
    return replace(delivery, at_ms=None, answers=[], sockets=0)


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

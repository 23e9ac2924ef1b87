"""How DialLink's notifications come to those who want them: Standard Webhooks.

https://www.standardwebhooks.com: what an answer causes, and when it is tried again. That DialLink
notifies at all is assumed.
"""

import base64
import json
import secrets as chance
import time
from collections import Counter, deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from http import HTTPStatus
from typing import Any

from ingest.simulator.clock import Clock
from ingest.simulator.courier import Courier
from ingest.simulator.diallink import LateChange, Notification, notification, signed_headers
from ingest.simulator.facts import CallHappening, Happening, Leg
from ingest.simulator.faults import Faults
from ingest.simulator.post import Answer, Poster, PostError

#: Waits after the attempts that have failed: ten attempts in 75 h 35 min 5 s.
RETRY_WAITS_S = (5, 300, 1800, 7200, 18_000, 36_000, 50_400, 72_000, 86_400)
#: Of ours, not of the world's.
TIMEOUT_S = 15.0

_OTHER_SECRET = "whsec_" + base64.b64encode(b"not-the-secret-of-this-endpoint!").decode()


@dataclass(slots=True, eq=False)
class Subscription:
    """An address that is notified of everything."""

    url: str
    #: Each signs: two while one is replaced by the other.
    secrets: list[str]
    #: Off once the address has said that it is gone for good.
    enabled: bool = True


@dataclass(slots=True, eq=False)
class Delivery:
    """One notification on its way to one address, and what became of it."""

    subscription: Subscription
    #: ``webhook-id``: the same on every attempt.
    id: str
    type: str
    body: bytes
    #: Made by DialLink, and signed.
    genuine: bool = True
    #: World time of the first attempt.
    at_ms: int | None = None
    #: Statuses, one an attempt; None: refused, broken off, or no answer in time.
    answers: list[int | None] = field(default_factory=list)
    #: What the last answer asked to wait for.
    rest_s: int = 0

    @property
    def accepted(self) -> bool:
        return any(status is not None and 200 <= status < 300 for status in self.answers)  # noqa: PLR2004

    @property
    def event(self) -> Any:
        return json.loads(self.body)


class Deliveries(Courier[Delivery]):
    """Everything under way to those who subscribed."""

    def __init__(
        self,
        clock: Clock,
        faults: Faults,
        done: deque[Delivery],
        off_ms: int,
        late_change_of: Callable[[Leg], LateChange | None],
    ) -> None:
        super().__init__(clock, faults)
        self.subscriptions: list[Subscription] = []
        #: Attempts, by what came back.
        self.sums: Counter[str] = Counter()
        self._done = done
        self._off_ms = off_ms
        self._late_change_of = late_change_of
        self._poster = Poster()

    def close(self) -> None:
        self._poster.close()

    def send(self, happening: Happening) -> None:
        """Send it to all who want it."""
        if not self.subscriptions:
            return
        late = None
        if isinstance(happening, CallHappening):
            late = self._late_change_of(happening.leg)
        told = notification(happening, late, self._off_ms)
        if told is None or self.loses(happening):
            return
        for subscription in self.subscriptions:
            self.notify(subscription, told, happening.subject_id)

    def notify(self, subscription: Subscription, told: Notification, subject_id: int) -> None:
        if self.faults.strikes("dropped") or not subscription.enabled:
            return
        body = json.dumps(told.body, separators=(",", ":")).encode()
        delivery = Delivery(subscription, told.id, told.type, body)
        self.bring((id(subscription), subject_id), delivery)

    async def attempt(self, delivery: Delivery) -> int | None:
        """Post it with the secrets of the moment; not at all to who is gone."""
        if not delivery.subscription.enabled:
            return HTTPStatus.GONE
        status = await self._post(delivery, delivery.subscription.secrets)
        if status == HTTPStatus.GONE:
            delivery.subscription.enabled = False
        return status

    async def retry(self, delivery: Delivery, said: int | None) -> None:
        for wait_s in RETRY_WAITS_S:
            if said == HTTPStatus.GONE or (said is not None and 200 <= said < 300):  # noqa: PLR2004
                return
            await self.wait(max(wait_s, delivery.rest_s))
            said = await self.attempt(delivery)

    async def forge(self, delivery: Delivery) -> None:
        delivery.genuine = False
        unsigned = self.faults.up_to(2) == 1
        await self._post(delivery, [] if unsigned else [_OTHER_SECRET])

    def copy(self, delivery: Delivery) -> Delivery:
        return replace(delivery, at_ms=None, answers=[], rest_s=0)

    async def _post(self, delivery: Delivery, secrets: list[str]) -> int | None:
        if delivery.at_ms is None:
            delivery.at_ms = self.clock.now_ms
            self._done.append(delivery)
        # Our clock's, however fast the world's goes: who verifies it has no other.
        headers = signed_headers(delivery.id, delivery.body, secrets, time.time())
        answer: Answer | None = None
        with suppress(PostError):
            answer = await self._poster.post(
                delivery.subscription.url, headers, delivery.body, TIMEOUT_S
            )
        status = None if answer is None else answer.status
        delivery.rest_s = (answer and answer.retry_after_s) or 0
        delivery.answers.append(status)
        self.sums["no answer" if status is None else str(status)] += 1
        return status


def new_secret() -> str:
    """``whsec_`` and 32 random bytes."""
    return "whsec_" + base64.b64encode(chance.token_bytes(32)).decode()


def check_secret(secret: str) -> None:
    """Raises ValueError for what cannot sign."""
    encoded = secret.removeprefix("whsec_")
    try:
        key = base64.b64decode(encoded + "=" * (-len(encoded) % 4), validate=True)
    except ValueError:
        key = b""
    if not key:
        raise ValueError("a secret is whsec_ and base64 of 24 to 64 bytes")

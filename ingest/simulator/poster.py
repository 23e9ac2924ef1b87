"""Plays the simulated company over HTTP, as Dialpad would post it."""

import asyncio
import time
from collections import deque
from dataclasses import dataclass
from random import Random
from weakref import WeakValueDictionary

import httpx

from ingest.simulator.dialpad import (
    MAX_LAG_MS,
    QUICK_RETRY_WAITS_S,
    encode,
    retry_waits_s,
    sign,
)
from ingest.simulator.world import play

_TIMEOUT_S = 5.0
_FORGED, _REPEATED = 1 / 20, 1 / 15


async def post(url: str, secret: str, *, seed: int, pace: float = 1.0) -> None:
    """Post the story as it happens until cancelled; print and log nothing.

    At ``pace`` 1 the company's clock is the wall clock. At another, everything goes by that much
    faster, the waits before retries included, and the company's clock runs away from ours.

    The deliveries of one subject wait for each other and for no others. Now and then somebody
    posts a forgery, and now and then an earlier delivery comes again.
    """
    random = Random(seed)  # noqa: S311 - a story, not a secret
    recent: deque[_Delivery] = deque(maxlen=50)
    # A turn is gone once no delivery of its subject is under way or recent.
    turns: WeakValueDictionary[int, asyncio.Lock] = WeakValueDictionary()
    # The transport alone: the client around it would log every request and heed proxies.
    # Without TLS it need not read the trust store, which would hold up the loop.
    transport = httpx.AsyncHTTPTransport(verify=url.startswith("https:"))
    async with transport, asyncio.TaskGroup() as group:
        mailbox = _Mailbox(transport, url, pace)
        began_s = time.monotonic()
        # No payload's clock is ahead of ours when it is posted.
        start_ms = time.time_ns() // 1_000_000 - MAX_LAG_MS
        for happening in play(seed, start_ms):
            due_s = began_s + (happening.at_ms - start_ms) / 1000 / pace
            await asyncio.sleep(due_s - time.monotonic())
            body = encode(happening)
            turn = turns.setdefault(happening.subject_id, asyncio.Lock())
            recent.append(_Delivery(sign(body, secret), retry_waits_s(happening), turn))
            group.create_task(mailbox.deliver(recent[-1]))
            if random.random() < _REPEATED:
                group.create_task(mailbox.deliver(random.choice(recent)))
            if random.random() < _FORGED:
                forged = random.choice((body, sign(body, f"not {secret}")))
                group.create_task(mailbox.deliver(_Delivery(forged, (), asyncio.Lock())))


@dataclass(frozen=True, slots=True)
class _Delivery:
    body: bytes
    #: After each 5xx.
    retry_waits_s: tuple[float, ...]
    #: One delivery of a subject at a time, in the order of their happenings.
    turn: asyncio.Lock


@dataclass(frozen=True, slots=True)
class _Mailbox:
    """Where deliveries go."""

    transport: httpx.AsyncHTTPTransport
    url: str
    pace: float

    async def deliver(self, delivery: _Delivery) -> None:
        """Post until it is accepted, refused for good (4xx), or has had its retries."""
        async with delivery.turn:
            after_5xx, after_failure = iter(delivery.retry_waits_s), iter(QUICK_RETRY_WAITS_S)
            while True:
                try:
                    status = await self._post(delivery.body)
                except (httpx.TransportError, TimeoutError):
                    wait_s = next(after_failure, None)
                else:
                    wait_s = next(after_5xx, None) if httpx.codes.is_server_error(status) else None
                if wait_s is None:
                    return
                await asyncio.sleep(wait_s / self.pace)

    async def _post(self, body: bytes) -> int:
        content_type = "application/json" if body.startswith(b"{") else "application/jwt"
        request = httpx.Request(
            "POST", self.url, headers={"Content-Type": content_type}, content=body
        )
        async with asyncio.timeout(_TIMEOUT_S):
            response = await self.transport.handle_async_request(request)
            await response.aread()  # gives the connection back
        return response.status_code

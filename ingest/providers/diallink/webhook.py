"""What DialLink would post: notifications, signed in the way of Standard Webhooks (A-DL-7).

Nothing is published of them at https://developers.diallink.com, so how they are signed is a
setting, and each way a `Verifier`. They are hints: the poller reads a call again that one names.
"""

import secrets
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ingest.delivery import Delivery, Signed, Verified
from ingest.fields import BREAKS_TO_SPACES, read_object
from ingest.notifications import SignedByHeaders
from ingest.providers.diallink.assumptions import Assumptions
from ingest.providers.diallink.events import notification_event
from ingest.signing import (
    StandardWebhooks,
    StaticToken,
    Verifier,
    sign_standard_webhooks,
    with_static_token,
)
from schemas.event import Event
from schemas.times import now_ms

if TYPE_CHECKING:
    from ingest.settings import Connection

_WEBHOOK_ID = b"webhook-id"


class Webhook(SignedByHeaders):
    """One connection's notifications."""

    def __init__(
        self, verifier: Verifier, *, is_rotated: bool, region: str | None, assumed: Assumptions
    ) -> None:
        super().__init__(verifier, is_rotated=is_rotated)
        self._region = region
        self._assumed = assumed

    @classmethod
    def of(cls, connection: "Connection") -> "Webhook":
        """Raises ConfigError where secrets are wrong."""
        assumed = Assumptions.of(connection)
        found = connection.signing_secrets()
        verifier: Verifier
        if assumed.notifications == "token":
            verifier = StaticToken(found, assumed.token_header.encode())
        else:
            verifier = StandardWebhooks(found, assumed.tolerance_s)
        return cls(verifier, is_rotated=len(found) > 1, region=connection.region, assumed=assumed)

    def normalize(self, payload: Verified, delivery: Delivery) -> Sequence[Event]:
        webhook_id = None
        if _WEBHOOK_ID in self._verifier.headers:
            webhook_id = dict(delivery.headers).get(_WEBHOOK_ID)
        event = read_object(
            payload,
            self._region,
            lambda fields: notification_event(fields, delivery, payload, webhook_id, self._assumed),
        )
        event.raw = payload.translate(BREAKS_TO_SPACES)
        return (event,)


def sign(payload: bytes, connection: "Connection") -> Signed:
    """``payload`` as a new notification of this moment. Raises ConfigError for a wrong secret."""
    assumed = Assumptions.of(connection)
    secret, *_ = connection.signing_secrets()
    if assumed.notifications == "token":
        headers = with_static_token(secret, assumed.token_header)
    else:
        ident = "msg_" + secrets.token_urlsafe(18)
        headers = sign_standard_webhooks(payload, secret, ident, now_ms() // 1000)
    return Signed({"content-type": "application/json", **headers}, payload)

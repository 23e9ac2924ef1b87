"""A push of Dialgood's, should there ever be one (A-DG-8): off unless the setting says otherwise.

None is documented at https://apidocs.dialgood.com/partner-api-2171894m0; a sister product posts
with a static ``Authorization`` header, and nothing signs the body. So it is a hint and no more:
what has become of calls, the poller reads.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ingest.delivery import Delivery, Signed, Verified
from ingest.errors import ConfigError
from ingest.fields import BREAKS_TO_SPACES, Fields, read_object
from ingest.providers.dialgood.assumptions import Assumptions
from ingest.signing import StaticToken, signing_headers, with_static_token
from schemas.event import Event, digest_of_bytes

if TYPE_CHECKING:
    from ingest.settings import Connection

_HEADER = "authorization"


class Webhook:
    """One connection's pushes."""

    via = "notification"

    def __init__(self, secrets: Sequence[bytes], region: str | None) -> None:
        self._verifier = StaticToken(secrets, _HEADER.encode())
        self.signing_headers: Sequence[bytes] = self._verifier.kept
        self._is_rotated = len(secrets) > 1
        self._region = region

    @classmethod
    def of(cls, connection: "Connection") -> "Webhook":
        """Raises ConfigError where secrets are wrong, or where there are any though it is off."""
        if Assumptions.of(connection).push == "off":
            raise ConfigError(
                "secrets: Dialgood is not known to push: leave them out, or, should it post to you "
                'with `Authorization: Bearer <secret>`, set assume.push to "token"'
            )
        return cls(connection.signing_secrets(), connection.region)

    @property
    def former_seen(self) -> int | None:
        return self._verifier.former_seen if self._is_rotated else None

    def verify(self, delivery: Delivery) -> Verified:
        headers = signing_headers(delivery.headers, self._verifier.headers)
        self._verifier.verify(headers, delivery.body, delivery.received_ms)
        return Verified(delivery.body)

    def normalize(self, payload: Verified, delivery: Delivery) -> Sequence[Event]:
        word = read_object(payload, self._region, _word)
        digest = digest_of_bytes(payload)
        event = Event(
            type="dialstream.notification.received",
            subject_kind="notification",
            id=f"dialgood:{delivery.connection}:notification:{digest}",
            subject=f"notification/{digest}",
            key=delivery.connection,
            time_ms=delivery.received_ms,
            recorded_ms=delivery.received_ms,
            via=delivery.via,
            provider="dialgood",
            connection=delivery.connection,
            data={"notification_type": word, "details": None},
            raw=payload.translate(BREAKS_TO_SPACES),
        )
        return (event,)


def _word(fields: Fields) -> str | None:
    """What it calls itself, wherever it may say that."""
    return fields.text("type") or fields.text("event")


def sign(payload: bytes, connection: "Connection") -> Signed:
    """``payload`` with the secret as a bearer's token. Raises ConfigError if it cannot be one."""
    secret, *_ = connection.signing_secrets()
    token = with_static_token(secret, _HEADER)
    return Signed({"content-type": "application/json", **token}, payload)

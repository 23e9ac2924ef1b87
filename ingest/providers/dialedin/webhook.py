"""A push of DialedIn's, should an account have one (A-DI-6): off unless the setting says otherwise.

An integrator says that it pushes calls (https://docs.unified.to/integrations/dialedin); its fields
and how it proves itself are not public. So it is a notification and no more: JSON or a form, with a
static token, kept whole.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING
from urllib.parse import parse_qsl

import msgspec

from ingest.delivery import Delivery, Signed, Verified
from ingest.errors import ConfigError, UnreadableError
from ingest.fields import BREAKS_TO_SPACES, Fields, read_object
from ingest.providers.dialedin.assumptions import Assumptions
from ingest.signing import StaticToken, signing_headers, with_static_token
from schemas.event import Event, digest_of_bytes

if TYPE_CHECKING:
    from ingest.settings import Connection

_MOST_FIELDS = 1000


class Webhook:
    """One connection's pushes."""

    via = "notification"

    def __init__(self, secrets: Sequence[bytes], header: str, region: str | None) -> None:
        self._verifier = StaticToken(secrets, header.encode())
        self.signing_headers: Sequence[bytes] = self._verifier.kept
        self._is_rotated = len(secrets) > 1
        self._region = region

    @classmethod
    def of(cls, connection: "Connection") -> "Webhook":
        """Raises ConfigError where secrets are wrong, or where there are any though it is off."""
        assume = Assumptions.of(connection)
        if assume.push == "off":
            raise ConfigError(
                "secrets: DialedIn is not known to push: leave them out, or, should it post to you "
                'with a static token, set assume.push to "token"'
            )
        return cls(connection.signing_secrets(), assume.push_header, connection.region)

    @property
    def former_seen(self) -> int | None:
        return self._verifier.former_seen if self._is_rotated else None

    def verify(self, delivery: Delivery) -> Verified:
        headers = signing_headers(delivery.headers, self._verifier.headers)
        self._verifier.verify(headers, delivery.body, delivery.received_ms)
        return Verified(delivery.body)

    def normalize(self, payload: Verified, delivery: Delivery) -> Sequence[Event]:
        value = _as_json(payload)
        word = read_object(value, self._region, _word)
        digest = digest_of_bytes(payload)
        event = Event(
            type="dialstream.notification.received",
            subject_kind="notification",
            id=f"dialedin:{delivery.connection}:notification:{digest}",
            subject=f"notification/{digest}",
            key=delivery.connection,
            time_ms=delivery.received_ms,
            recorded_ms=delivery.received_ms,
            via=delivery.via,
            provider="dialedin",
            connection=delivery.connection,
            data={"notification_type": word, "details": None},
            raw=value.translate(BREAKS_TO_SPACES),
        )
        return (event,)


def _as_json(payload: Verified) -> Verified:
    """A form as an object of texts; of a name that comes twice the last. Raises UnreadableError."""
    if payload.lstrip()[:1] in (b"{", b"[", b"") or not payload.count(b"="):
        return payload
    try:
        pairs = parse_qsl(
            payload.decode(),
            keep_blank_values=True,
            strict_parsing=True,
            errors="strict",
            max_num_fields=_MOST_FIELDS,
        )
    except ValueError:
        raise UnreadableError("not_json", "neither JSON nor a form") from None
    return Verified(msgspec.json.encode(dict(pairs)))


def _word(fields: Fields) -> str | None:
    """What it calls itself, wherever it may say that."""
    return fields.text("type") or fields.text("event")


def sign(payload: bytes, connection: "Connection") -> Signed:
    """``payload`` with the secret as a static token. Raises ConfigError if it cannot be one."""
    secret, *_ = connection.signing_secrets()
    token = with_static_token(secret, Assumptions.of(connection).push_header)
    return Signed({"content-type": "application/json", **token}, payload)

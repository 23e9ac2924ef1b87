"""What Dialpad pushes: one compact JWS per event, signed with HS256.

https://developers.dialpad.com/docs/event-subscriptions   (signature)
https://developers.dialpad.com/docs/webhook-delivery-failures   (retries, so repeats)
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ingest.delivery import Delivery, Verified
from ingest.errors import UnreadableError
from ingest.fields import BREAKS_TO_SPACES, Fields, read_object
from ingest.providers.dialpad.events import KINDS, classify, usual_call_event
from ingest.signing import CompactJws, check_claims
from schemas.event import Event

if TYPE_CHECKING:
    from ingest.settings import Connection

#: As numbers, of which one looks for the first as quickly as memory goes.
_LF, _CR = b"\n\r"


class Webhook:
    """One connection's pushes; the websocket's frames mean the same."""

    via = "webhook"
    signing_headers: Sequence[bytes] = ()

    def __init__(
        self, secrets: Sequence[bytes], region: str | None, claims_leeway_s: float
    ) -> None:
        self._jws = CompactJws(secrets)
        self._is_rotated = len(secrets) > 1
        self._region = region
        self._claims_leeway_s = claims_leeway_s

    @classmethod
    def of(cls, connection: "Connection") -> "Webhook":
        return cls(connection.signing_secrets(), connection.region, connection.claims_leeway_s)

    @property
    def former_seen(self) -> int | None:
        return self._jws.former_seen if self._is_rotated else None

    def verify(self, delivery: Delivery) -> Verified:
        return Verified(self._jws.verify(delivery.body))

    def normalize(self, payload: Verified, delivery: Delivery) -> Sequence[Event]:
        event = usual_call_event(payload, self._region, delivery)
        if event is None:
            # A usual call has no claims: it has no fields but those that we know.
            check_claims(payload, delivery.received_ms, self._claims_leeway_s)
            event = self._read(payload, delivery)
        raw: bytes = payload
        if _LF in raw or _CR in raw:
            # They stand between values only; inside strings JSON escapes them.
            raw = raw.translate(BREAKS_TO_SPACES)
        event.raw = raw
        return (event,)

    def _read(self, payload: bytes, delivery: Delivery) -> Event:
        def translated(fields: Fields) -> Event:
            kind = classify(fields.value)
            if kind is None:
                raise UnreadableError("unknown_kind", "its keys are those of no kind that we know")
            return KINDS[kind](fields, delivery)

        return read_object(payload, self._region, translated)

"""What Dialpad pushes: one compact JWS per event, signed with HS256.

https://developers.dialpad.com/docs/event-subscriptions   (signature)
https://developers.dialpad.com/docs/webhook-delivery-failures   (retries, so repeats)
"""

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import orjson

from ingest.delivery import Delivery, Verified
from ingest.errors import UnreadableError
from ingest.providers.dialpad.events import KINDS, classify, usual_call_event
from ingest.providers.dialpad.fields import Fields, InexactIdError
from ingest.signing import CompactJws, check_claims
from schemas.event import Event

if TYPE_CHECKING:
    from ingest.settings import Connection

#: Readers must be able to read the event around it: pydantic's parser goes 200 levels deep, and
#: orjson writes 254.
MAX_DEPTH = 190

_DIGITS_OF_64_BITS = 18

#: As numbers, of which one looks for the first as quickly as memory goes.
_LF, _CR = b"\n\r"

_BREAKS_TO_SPACES = bytes.maketrans(b"\r\n", b"  ")


class Webhook:
    """One connection's pushes; the websocket's frames mean the same."""

    signing_headers: Sequence[bytes] = ()

    def __init__(
        self, secrets: Sequence[bytes], region: str | None, claims_leeway_s: float
    ) -> None:
        self._jws = CompactJws(secrets)
        self._region = region
        self._claims_leeway_s = claims_leeway_s

    @classmethod
    def of(cls, connection: "Connection") -> "Webhook":
        return cls(connection.signing_secrets(), connection.region, connection.claims_leeway_s)

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
            raw = raw.translate(_BREAKS_TO_SPACES)
        event.raw = raw
        return (event,)

    def _read(self, payload: bytes, delivery: Delivery) -> Event:
        value = _parse(payload)
        may_be_deep = payload.count(b"[") + payload.count(b"{") > MAX_DEPTH
        if may_be_deep and _depth(value) > MAX_DEPTH:
            raise UnreadableError("not_json", f"nested more than {MAX_DEPTH} deep")
        if type(value) is not dict:
            raise UnreadableError("unexpected_shape", "the payload is no JSON object")
        kind = classify(value)
        if kind is None:
            raise UnreadableError("unknown_kind", "its keys are those of no kind that we know")
        try:
            return KINDS[kind](Fields(value, self._region), delivery)
        except InexactIdError:
            value = _parse_exactly(payload)
            return KINDS[kind](Fields(value, self._region, exact=True), delivery)


def _parse(payload: bytes) -> Any:
    """The JSON value. Refuses NaN, infinities, invalid UTF-8, half surrogates."""
    try:
        return orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise UnreadableError("not_json", f"at character {error.pos}") from None


def _parse_exactly(payload: bytes) -> Any:
    """The same with long integers as texts: the quick parser makes floats of them."""

    def integer(digits: str) -> int | str:
        return int(digits) if len(digits) <= _DIGITS_OF_64_BITS else digits

    return json.loads(payload, parse_int=integer)


def _depth(value: Any) -> int:
    """How deep it is nested, in rounds over all that is nested."""
    depth = 0
    level = [value] if type(value) in (dict, list) else []
    while level:
        depth += 1
        level = [
            inner
            for outer in level
            for inner in (outer.values() if type(outer) is dict else outer)
            if type(inner) in (dict, list)
        ]
    return depth

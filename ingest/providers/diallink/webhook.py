"""Not written yet."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ingest.delivery import Delivery, Signed, Verified
from schemas.event import Event

if TYPE_CHECKING:
    from ingest.settings import Connection


class Webhook:
    via = "notification"
    signing_headers: Sequence[bytes] = ()

    @classmethod
    def of(cls, connection: "Connection") -> "Webhook":
        raise NotImplementedError

    @property
    def former_seen(self) -> int | None:
        raise NotImplementedError

    def verify(self, delivery: Delivery) -> Verified:
        raise NotImplementedError

    def normalize(self, payload: Verified, delivery: Delivery) -> Sequence[Event]:
        raise NotImplementedError


def sign(payload: bytes, secret: bytes) -> Signed:
    raise NotImplementedError

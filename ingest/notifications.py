"""Notifications: what a provider posts whose headers sign it, or hold a token. No I/O.

How they are signed is a `Verifier`, what they mean is the provider's. Where nobody knows what they
mean, `TokenWebhook` keeps them whole.
"""

from collections.abc import Callable, Sequence

from ingest.delivery import Delivery, Verified
from ingest.fields import BREAKS_TO_SPACES, Fields, read_object
from ingest.signing import StaticToken, Verifier, signing_headers
from schemas.event import Event, digest_of_bytes


class SignedByHeaders:
    """The half of a `Source` that does not depend on what is said."""

    via = "notification"

    def __init__(self, verifier: Verifier, *, is_rotated: bool) -> None:
        """``is_rotated``: there is another secret than the first."""
        self._verifier = verifier
        self._is_rotated = is_rotated
        self.signing_headers: Sequence[bytes] = verifier.kept

    @property
    def former_seen(self) -> int | None:
        return self._verifier.former_seen if self._is_rotated else None

    def verify(self, delivery: Delivery) -> Verified:
        headers = signing_headers(delivery.headers, self._verifier.headers)
        self._verifier.verify(headers, delivery.body, delivery.received_ms)
        return Verified(delivery.body)


class TokenWebhook(SignedByHeaders):
    """Pushes with a static token, of which nothing else is known: hints, kept whole."""

    def __init__(
        self,
        provider: str,
        secrets: Sequence[bytes],
        header: str,
        region: str | None,
        *,
        as_json: Callable[[Verified], Verified] = lambda payload: payload,
    ) -> None:
        """``as_json``: what was posted as JSON; it may raise UnreadableError.

        Raises ConfigError for secrets that cannot be used.
        """
        super().__init__(StaticToken(secrets, header.encode()), is_rotated=len(secrets) > 1)
        self._provider = provider
        self._region = region
        self._as_json = as_json

    def normalize(self, payload: Verified, delivery: Delivery) -> Sequence[Event]:
        value = self._as_json(payload)
        word = read_object(value, self._region, _word)
        digest = digest_of_bytes(payload)
        event = Event(
            type="dialstream.notification.received",
            subject_kind="notification",
            id=f"{self._provider}:{delivery.connection}:notification:{digest}",
            subject=f"notification/{digest}",
            key=delivery.connection,
            time_ms=delivery.received_ms,
            recorded_ms=delivery.received_ms,
            via=delivery.via,
            provider=self._provider,
            connection=delivery.connection,
            data={"notification_type": word, "details": None},
            raw=value.translate(BREAKS_TO_SPACES),
        )
        return (event,)


def _word(fields: Fields) -> str | None:
    """What it calls itself, wherever it may say that."""
    return fields.text("type") or fields.text("event")

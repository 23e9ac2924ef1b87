"""Rejects: what is authentic and cannot go where it should, kept with the reason."""

from collections.abc import Mapping

import pybase64

from ingest.derived import derived_event
from schemas.event import Event, digest_of_bytes
from schemas.times import rfc3339


def reject_event(
    connection: str,
    reason: str,
    detail: str,
    *,
    via: str,
    received_ms: int,
    body: bytes,
    headers: Mapping[str, str],
    kept_bytes: int | None = None,
) -> Event:
    """The reject of ``body``; of a body that is too large, its first ``kept_bytes``."""
    digest = digest_of_bytes(body)
    return derived_event(
        connection,
        f"reject.{reason}",
        f"reject:{connection}:{reason}:{digest}",
        subject=f"reject/{digest}",
        key=connection,
        at_ms=received_ms,
        data={
            "reason": reason,
            "detail": detail,
            "via": via,
            "received_at": rfc3339(received_ms),
            "headers": headers,
            "body_base64": pybase64.b64encode(body[:kept_bytes]).decode(),
        },
    )

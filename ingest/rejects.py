"""Rejects: what is authentic and cannot go where it should, kept with the reason.

Ours stand on the topic ``rejects``, as events. What one consumer group cannot handle stands on
``rejects.<group>``, each record as it stood where the group met it, with the reason in headers:

| header | holds |
|---|---|
| ``reject_reason``, ``reject_detail`` | why, without content |
| ``reject_from`` | where the group met it: topic, partition, position, joined by ``/`` |
| ``reject_at`` | when the group gave it up, RFC 3339 |
| ``redriven_at`` | somebody asks the group to handle it again: it is no reject but a request |

A request stands behind its reject, since both have the key of the record. So what is open can be
read from the topic alone: a reject is, until a request with the same ``reject_from`` follows, and
is again once the group has given that up, too.
"""

from collections.abc import Mapping, Sequence

import pybase64

from ingest.derived import derived_event
from ingest.eventlog.log import Record, StoredRecord
from schemas.event import Event, digest_of_bytes
from schemas.times import rfc3339

REASON, DETAIL, FROM, AT = "reject_reason", "reject_detail", "reject_from", "reject_at"
REDRIVEN_AT = "redriven_at"

_GROUPS = "rejects."

_OURS = frozenset((REASON, DETAIL, FROM, AT, REDRIVEN_AT))


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


def redriven_event(
    connection: str,
    digest: str,
    *,
    reason: str,
    via: str,
    received_at: str,
    events: Sequence[str],
    now_ms: int,
) -> Event:
    """``reject.redriven``: what was rejected for ``reason`` is on the log, as ``events`` (ids).

    ``digest``: of the bytes, which stay with the reject.
    """
    return derived_event(
        connection,
        "reject.redriven",
        f"reject:{connection}:redriven:{digest}",
        subject=f"reject/{digest}",
        key=connection,
        at_ms=now_ms,
        data={
            "reason": "redriven",
            "detail": f"it was {reason}",
            "via": via,
            "received_at": received_at,
            "headers": {},
            "body_base64": "",
            "events": events,
        },
    )


def group_topic(group: str) -> str:
    """Where a consumer group puts what it cannot handle."""
    return f"{_GROUPS}{group}"


def group_of(topic: str) -> str | None:
    """Whose rejects these are, if they are a group's."""
    return topic.removeprefix(_GROUPS) if topic.startswith(_GROUPS) else None


def group_reject(stored: StoredRecord, group: str, reason: str, detail: str, now_ms: int) -> Record:
    """The reject of a record that ``group`` can never handle, or has been asked to again in vain.

    ``reason``: a word; ``detail``: what exactly, without content.
    """
    came_from = dict(stored.headers).get(FROM)
    if came_from is None:
        came_from = f"{stored.topic}/{stored.partition}/{stored.position}".encode()
    why = (
        (REASON, reason.encode()),
        (DETAIL, detail.encode()),
        (FROM, came_from),
        (AT, rfc3339(now_ms).encode()),
    )
    headers = (*as_it_was(stored), *why)
    return Record(group_topic(group), stored.key, stored.value, headers)


def retry_request(rejected: StoredRecord, now_ms: int) -> Record:
    """Asks the group on whose topic ``rejected`` stands to handle that record again."""
    headers = dict(rejected.headers)
    why = ((FROM, headers[FROM]), (REDRIVEN_AT, rfc3339(now_ms).encode()))
    return Record(rejected.topic, rejected.key, rejected.value, (*as_it_was(rejected), *why))


def is_retry_request(stored: StoredRecord) -> bool:
    """Whether a record on a group's topic is to be handled; else it is a reject."""
    return any(name == REDRIVEN_AT for name, _ in stored.headers)


def as_it_was(stored: StoredRecord) -> tuple[tuple[str, bytes], ...]:
    """The headers that a record had where the group met it."""
    return tuple((name, value) for name, value in stored.headers if name not in _OURS)

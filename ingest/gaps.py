"""Gaps: stretches of time in which a channel was deaf, told when they begin and once read back."""

from ingest.derived import derived_event
from schemas.event import Event
from schemas.times import rfc3339


def gap_event(
    connection: str,
    channel: str,
    from_ms: int,
    *,
    to_ms: int | None,
    reason: str,
    found: int | None,
    now_ms: int,
) -> Event:
    """``gap.opened``, or ``gap.closed`` if the events ``found`` in it are counted.

    ``channel``: ``webhook`` or ``websocket`` that was deaf, ``push`` of which too much was lost,
    ``records`` that nobody has read. Times in milliseconds since 1970; ``to_ms`` is None while it
    lasts.
    """
    what = "opened" if found is None else "closed"
    return derived_event(
        connection,
        f"gap.{what}",
        f"gap:{connection}:{channel}:{from_ms}:{what}",
        subject=f"gap/{channel}",
        key=connection,
        at_ms=now_ms,
        data={
            "channel": channel,
            "from": rfc3339(from_ms),
            "to": None if to_ms is None else rfc3339(to_ms),
            "reason": reason,
            "found": found,
        },
    )

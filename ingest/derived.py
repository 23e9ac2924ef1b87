"""Events that we derive ourselves: one envelope for all of them."""

from typing import Any

from schemas.event import Event


def derived_event(
    connection: str, type_: str, ident: str, *, subject: str, key: str, at_ms: int, data: Any
) -> Event:
    """An event of our own making that became due at ``at_ms``, milliseconds since 1970.

    ``type_``: subject and what, ``gap.opened``; ``ident``: the whole id.
    """
    return Event(
        type=f"dialstream.{type_}",
        subject_kind=type_.partition(".")[0],
        id=ident,
        subject=subject,
        key=key,
        time_ms=at_ms,
        recorded_ms=at_ms,
        via="derived",
        provider="dialstream",
        connection=connection,
        data=data,
    )

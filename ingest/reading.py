"""From an item of a provider's lists to our event, or to a reject. No I/O.

What an item means is a function of the provider's; what is the same for all of them is here.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from ingest.errors import UnreadableError
from ingest.fields import BREAKS_TO_SPACES, Fields, read_object
from ingest.numbers import is_withheld, normalize_number
from ingest.rejects import reject_event
from schemas.event import Event, id_part
from schemas.times import minute


def nobody() -> dict[str, Any]:
    """`schemas.base.Party` of whom nothing is known."""
    nothing = ("kind", "id", "name", "email", "number", "number_raw")
    return {**dict.fromkeys(nothing), "withheld": False}


def party_by_number(fields: Fields, key: str) -> dict[str, Any]:
    """The same of whom only the number is known."""
    raw = fields.text(key)
    if raw is None:
        return nobody()
    withheld = is_withheld(raw)
    number = None if withheld else normalize_number(raw, fields.region)
    return {**nobody(), "number": number, "number_raw": raw, "withheld": withheld}


def unknown_call(call_id: str, state: str) -> dict[str, Any]:
    """`schemas.call.Call` without ``raw`` of a call of which nothing else is known."""
    return {
        "call_id": call_id,
        "conversation_id": call_id,
        "related_call_ids": [],
        "state": state,
        "provider_state": None,
        "direction": "unknown",
        "from_number": None,
        "to_number": None,
        "external": nobody(),
        "internal": nobody(),
        "target": nobody(),
        "group": None,
        "started_at": None,
        "rang_at": None,
        "connected_at": None,
        "ended_at": None,
        "ring_duration_s": None,
        "talk_duration_s": None,
        "hold_duration_s": None,
        "total_duration_s": None,
        "outcome": None,
        "provider_outcome": None,
        "transferred": None,
        "recordings": [],
        "voicemail": None,
        "transcript": None,
        "recap": None,
        "labels": [],
        "dispositions": [],
        "quality": None,
        "campaign_id": None,
        "custom_data": None,
    }


@dataclass(frozen=True, slots=True)
class Reading:
    """One answer of a provider's API: whose it is, how we came to it, and when."""

    provider: str
    connection: str
    region: str | None
    #: ``poll`` or ``backfill``.
    via: str
    #: Our clock, milliseconds since 1970.
    read_ms: int

    def events(
        self, items: Iterable[bytes], read: "Callable[[Reading, Fields], Event | None]"
    ) -> list[Event]:
        """What ``read`` makes of each, in their order; a reject of what it cannot read."""
        found = []
        for item in items:
            try:
                event = read_object(item, self.region, lambda fields: read(self, fields))
            except UnreadableError as error:
                found.append(self._reject(item, error))
                continue
            if event is not None:
                event.raw = item.translate(BREAKS_TO_SPACES)
                found.append(event)
        return found

    def _reject(self, item: bytes, error: UnreadableError) -> Event:
        return reject_event(
            self.connection,
            error.reason,
            error.detail,
            via=self.via,
            received_ms=self.read_ms,
            body=item,
            headers={},
        )

    def event(
        self,
        type_: str,
        ident: tuple[str | int | None, ...],
        key: str,
        data: dict[str, Any],
        time_ms: int | None,
        fields: Fields,
    ) -> Event:
        """``type_``: subject and what; ``ident``: the id's parts after the connection."""
        subject_kind, _, _ = type_.partition(".")
        return Event(
            type=f"dialstream.{type_}",
            subject_kind=subject_kind,
            id=f"{self.provider}:{self.connection}:" + ":".join(map(id_part, ident)),
            subject=f"{subject_kind}/{key}",
            key=f"{self.connection}/{key}",
            time_ms=time_ms or self.read_ms,
            recorded_ms=self.read_ms,
            via=self.via,
            provider=self.provider,
            connection=self.connection,
            data=data,
            surprises=tuple(fields.surprises),
        )

    @property
    def minute(self) -> str:
        return minute(self.read_ms)

"""What Dialpad remembers of the company: who is in it, and every call that has ended.

Shapes of what it answers: the API description at https://developers.dialpad.com/reference.
"""

from bisect import bisect_left, bisect_right, insort
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ingest.simulator.dialpad import payload
from ingest.simulator.dialpad_resources import words
from ingest.simulator.world import (
    ADMIN,
    CallHappening,
    CallStep,
    Happening,
    Member,
)

OFFICE_ID = 5_000_000_000_000_100
COMPANY_ID = 5_000_000_000_000_001

#: What an item of the list of calls has; the rest is told by events only.
_ITEM = words(
    "call_id contact csat_score custom_data date_connected date_ended date_rang date_started "
    "direction duration entry_point_call_id entry_point_target event_timestamp "
    "external_number group_id internal_number is_transferred labels master_call_id mos_score "
    "operator_call_id proxy_target recording_details routing_breadcrumbs state target "
    "total_duration transcription_text was_recorded"
)
_PARTY = ("email", "id", "name", "phone", "type")


@dataclass(slots=True)
class Records:
    """Fed with what happens, in its order."""

    #: How long after its end a leg is listed.
    listing_takes_ms: Callable[[], int] = lambda: 0
    #: Leg → the latest step of it.
    legs: dict[int, CallHappening] = field(default_factory=dict)
    #: Leg → the step with which it ended, or a later one.
    concluded: dict[int, CallHappening] = field(default_factory=dict)
    #: Leg → from when on the list has it.
    listed_ms: dict[int, int] = field(default_factory=dict)
    #: (start, id) of each concluded leg, earliest first.
    _by_start: list[tuple[int, int]] = field(default_factory=list)

    def hear(self, happening: Happening) -> None:
        match happening:
            case CallHappening(leg=leg, step=step):
                self.legs[leg.id] = happening
                if step is CallStep.ENDED:
                    insort(self._by_start, (leg.started_ms, leg.id))
                    self.listed_ms[leg.id] = happening.at_ms + self.listing_takes_ms()
                if step is CallStep.ENDED or leg.id in self.concluded:
                    self.concluded[leg.id] = happening

    def starts(
        self, after_ms: int, before_ms: int, place: Sequence[int] | None
    ) -> Iterator[tuple[int, int]]:
        """(start, id) of concluded legs that started in [after, before), latest first.

        From a place on, which is one of these pairs, if there is one.
        """
        first = bisect_left(self._by_start, (after_ms, -1))
        last = bisect_left(self._by_start, (before_ms, -1))
        if place is not None:
            last = min(last, bisect_right(self._by_start, tuple(place)))
        for nth in range(last - 1, first - 1, -1):
            yield self._by_start[nth]


def call_item(happening: CallHappening) -> dict[str, Any]:
    """A leg as the list of calls tells it: ids and times are texts, what is unset is absent."""
    event = payload(happening)
    item = {key: event[key] for key in sorted(_ITEM) if event.get(key) not in (None, [], {})}
    item["proxy_target"] = event["proxy_target"]
    for key in ("contact", "target", "entry_point_target"):
        if key in item:
            item[key] = {part: _text(part, item[key].get(part)) for part in _PARTY}
    item = {key: _text(key, value) for key, value in item.items()}
    if "recording_details" in item:
        item["recording_details"] = [
            {key: str(value) for key, value in details.items()}
            for details in item["recording_details"]
        ]
    return item


def _text(key: str, value: Any) -> Any:
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return value


def company() -> dict[str, Any]:
    return {
        "account_type": "enterprise",
        "country": "us",
        "domain": "example.com",
        "id": str(COMPANY_ID),
        "name": "Example Company",
        "office_count": 1,
        "state": "active",
    }


def user_item(member: Member) -> dict[str, Any]:
    first_name, _, last_name = member.name.partition(" ")
    return {
        "company_id": str(COMPANY_ID),
        "country": "us",
        "display_name": member.name,
        "emails": [member.email],
        "first_name": first_name,
        "id": str(member.id),
        "is_admin": member == ADMIN,
        "is_available": True,
        "is_on_duty": False,
        "is_online": True,
        "language": "en",
        "last_name": last_name,
        "license": "agents",
        "muted": False,
        "office_id": str(OFFICE_ID),
        "phone_numbers": [member.number],
        "state": "active",
        "timezone": "US/Pacific",
        "type": "user",
    }


def is_of_target(event: Mapping[str, Any], kind: str, ident: str) -> bool:
    """Whether a call or a message is of a target, as subscriptions and lists name it."""
    kind = kind.replace("_", "").lower()
    if kind == "office":
        return str(event["target"].get("office_id")) == ident
    for key in ("target", "entry_point_target"):
        party = event.get(key) or {}
        if str(party.get("id")) == ident and party["type"].replace("_", "").lower() == kind:
            return True
    return False

"""From Dialpad's payload to our event: which kind it is, and what makes it this fact and no other.

Payloads carry no kind, no event id and no time of sending. Kinds are told by their keys; an id is
made of what the fact is. `event_timestamp` is when it happened, and there may be none.
"""

from collections.abc import Callable, Mapping
from typing import Any

from ingest.delivery import Delivery
from ingest.fields import Fields
from ingest.providers.dialpad.calls import CallPayload, call_data, patient_call, usual_call
from ingest.providers.dialpad.others import read_agent, read_change, read_contact, read_message
from ingest.providers.dialpad.tables import CONTACT_CHANGES, CONTACT_FIELDS
from schemas.event import Event, digest, id_part
from schemas.times import minute

#: A push that is older by the provider's clock is flagged. Refusing it would be final.
STALE_MS = 24 * 3600 * 1000

_AGENT_KEYS = ("on_duty_status", "availability_status", "call_center_ids")
_MESSAGE_KEYS = ("to_number", "from_number", "message_status")


def classify(value: dict[str, Any]) -> str | None:
    """Dialpad's name for the kind of a payload; None for one that we do not know.

    The order matters: calls and SMS share `direction`, `target` and `contact`.
    """
    if "call_id" in value and type(value.get("state")) is str:
        return "call"
    event = value.get("event")
    if type(event) is str and event in CONTACT_CHANGES and type(value.get("contact")) is dict:
        return "contact"
    if "action" in value and ("changed_by" in value or "note" in value):
        return "changelog"
    if any(key in value for key in _AGENT_KEYS):
        return "agent_status"
    if "call_id" not in value and "id" in value and any(key in value for key in _MESSAGE_KEYS):
        return "sms"
    return None


def usual_call_event(payload: bytes, region: str | None, delivery: Delivery) -> Event | None:
    """The event of a call that comes as calls usually do; None: read it as any other payload."""
    call = usual_call(payload)
    if call is None or call.event_timestamp is None:
        return None
    surprises: list[tuple[str, str]] = []
    data = call_data(call, region, surprises)
    return _call_event(call, data, call.event_timestamp, surprises, delivery)


def call_event(fields: Fields, delivery: Delivery) -> Event:
    call = patient_call(fields)
    data = call_data(call, fields.region, fields.surprises)
    clock = call.event_timestamp or digest(fields.value)
    return _call_event(call, data, clock, fields.surprises, delivery)


def _call_event(
    call: CallPayload,
    data: dict[str, Any],
    clock: int | str,
    surprises: list[tuple[str, str]],
    delivery: Delivery,
) -> Event:
    # `state` alone does not tell two events apart: connected and hold repeat.
    call_id = data["call_id"]
    return _event(
        delivery,
        subject_kind="call",
        what=data["state"],
        ident=f"call:{id_part(call_id)}:{id_part(data['provider_state'])}:{clock}",
        key=call_id,
        time_ms=call.event_timestamp,
        data=data,
        kind="call",
        surprises=surprises,
    )


def message_event(fields: Fields, delivery: Delivery) -> Event:
    data = read_message(fields)
    if data["status"] not in (None, "pending"):
        what = "updated"
    else:
        # `pending` was seen on inbound messages too.
        what = _FIRST_NEWS.get(data["direction"], "updated")
    parts = (
        data["message_id"],
        data["provider_status"],
        data["delivery_result"],
        data["target"]["id"],
    )
    return _event(
        delivery,
        subject_kind="message",
        what=what,
        ident="message:" + ":".join(map(id_part, parts)),
        key=data["message_id"],
        time_ms=fields.ms("event_timestamp"),
        data=data,
        kind="sms",
        surprises=fields.surprises,
    )


_FIRST_NEWS = {"inbound": "received", "outbound": "sent"}


def contact_event(fields: Fields, delivery: Delivery) -> Event:
    # There is no clock, and a contact may return to an earlier value: the minute of arrival tells
    # that from a retry, which comes within seconds.
    fields.note_unknown(CONTACT_FIELDS)
    data = read_contact(fields.object("contact"), fields.value["event"])
    parts = (data["contact_id"], data["change"], digest(fields.value), minute(delivery.received_ms))
    return _event(
        delivery,
        subject_kind="contact",
        what=data["change"],
        ident="contact:" + ":".join(map(id_part, parts)),
        key=data["contact_id"],
        time_ms=None,
        data=data,
        kind="contact",
        surprises=fields.surprises,
    )


def agent_event(fields: Fields, delivery: Delivery) -> Event:
    # `date` is the only clock in one live capture, so it is in the id; two changes may share it.
    data = read_agent(fields)
    date = fields.ms("date")
    digested = digest(fields.value)
    parts = (data["agent_id"], date or digested, data["provider_duty_status"], digested)
    return _event(
        delivery,
        subject_kind="agent",
        what="status",
        ident="agent:" + ":".join(map(id_part, parts)),
        key=data["agent_id"],
        time_ms=fields.ms("event_timestamp") or date,
        data=data,
        kind="agent_status",
        surprises=fields.surprises,
    )


def change_event(fields: Fields, delivery: Delivery) -> Event:
    data = read_change(fields)
    date = fields.ms("date")
    target_id = data["target"]["id"]
    digested = digest(fields.value)
    parts = (date or digested, data["action"], target_id, digested)
    event = _event(
        delivery,
        subject_kind="change",
        what="logged",
        ident="change:" + ":".join(map(id_part, parts)),
        key=target_id or "-",
        time_ms=date,
        data=data,
        kind="changelog",
        surprises=fields.surprises,
    )
    event.key = delivery.connection  # the changes of a connection stay in one order
    return event


def _event(
    delivery: Delivery,
    *,
    subject_kind: str,
    what: str,
    ident: str,
    key: str,
    time_ms: int | None,
    data: dict[str, Any],
    kind: str,
    surprises: list[tuple[str, str]],
) -> Event:
    if delivery.hint is not None and delivery.hint != kind:
        surprises.append(("hint", delivery.hint))
    return Event(
        type=f"dialstream.{subject_kind}.{what}",
        subject_kind=subject_kind,
        id=f"dialpad:{delivery.connection}:{ident}",
        subject=f"{subject_kind}/{key}",
        key=f"{delivery.connection}/{key}",
        time_ms=time_ms or delivery.received_ms,
        recorded_ms=delivery.received_ms,
        via=delivery.via,
        provider="dialpad",
        connection=delivery.connection,
        data=data,
        stale=time_ms is not None and delivery.received_ms - time_ms > STALE_MS,
        surprises=tuple(surprises),
    )


KINDS: Mapping[str, Callable[[Fields, Delivery], Event]] = {
    "call": call_event,
    "sms": message_event,
    "contact": contact_event,
    "agent_status": agent_event,
    "changelog": change_event,
}
"""Dialpad's name of a kind, as in its subscriptions and our hook's path → its translation."""

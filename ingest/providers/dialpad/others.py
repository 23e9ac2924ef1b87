"""SMS, contact, duty and change-log events, and what is read back of them.

https://developers.dialpad.com/docs/sms-events
https://developers.dialpad.com/docs/contact-events
https://developers.dialpad.com/docs/agent-status-events
https://developers.dialpad.com/docs/change-log-events
"""

from typing import Any

from ingest.errors import UnreadableError
from ingest.fields import Fields
from ingest.numbers import normalize_number
from ingest.providers.dialpad.parties import PARTY_FIELDS, party
from ingest.providers.dialpad.tables import (
    AGENT_FIELDS,
    CARD_FIELDS,
    CHANGE_FIELDS,
    CONSENT_FIELDS,
    CONSENT_STATES,
    CONTACT_CHANGES,
    DIRECTIONS,
    DUTY_FIELDS,
    DUTY_STATUSES,
    MESSAGE_FIELDS,
    MESSAGE_STATUSES,
)


def read_message(fields: Fields) -> dict[str, Any]:
    """`schemas.message.Message` without ``raw``; raises UnreadableError without an id."""
    fields.note_unknown(MESSAGE_FIELDS)
    contact, target = fields.object("contact"), fields.object("target")
    word = fields.text("direction") or ""
    direction = DIRECTIONS.get(word, "unknown")
    if word and direction == "unknown":
        fields.surprises.append(("direction", word))
    provider_status = fields.word("message_status")
    status = None
    if provider_status is not None:
        status = MESSAGE_STATUSES.get(provider_status, "unknown")
        if status == "unknown":
            fields.surprises.append(("status", provider_status))
    text = fields.text("text") or fields.text("text_content")
    return {
        "message_id": fields.key_id("id"),
        "direction": direction,
        "from_number": fields.number("from_number"),
        "to_numbers": fields.numbers("to_number"),
        "text": text,
        "text_available": text is not None,
        "media": [{"url": url} for url in fields.texts("mms_url")],
        "status": status,
        "provider_status": provider_status,
        "delivery_result": fields.word("message_delivery_result"),
        "internal": fields.flag("is_internal") or False,
        # The page says that target.phone_number is E.164; seen are national numbers.
        "contact": party(contact, contact.text("phone_number")),
        "target": party(target, target.text("phone_number")),
        "sender_id": fields.id("sender_id"),
    }


def read_contact(fields: Fields, event: str) -> dict[str, Any]:
    """`schemas.contact.Contact` without ``raw``; raises UnreadableError without an id."""
    fields.note_unknown(CARD_FIELDS)
    phones = _with_primary(fields, "phones", "primary_phone")
    return {
        "contact_id": fields.key_id("id"),
        "contact_kind": fields.text("type"),
        "change": CONTACT_CHANGES[event],
        "display_name": fields.text("display_name"),
        "first_name": fields.text("first_name"),
        "last_name": fields.text("last_name"),
        "phone_numbers": [
            {"number": normalize_number(raw, fields.region), "number_raw": raw} for raw in phones
        ],
        "emails": _with_primary(fields, "emails", "primary_email"),
        "company_name": fields.text("company_name"),
        "job_title": fields.text("job_title"),
        "urls": fields.texts("urls"),
    }


def read_agent(fields: Fields) -> dict[str, Any]:
    """`schemas.agent.Agent` without ``raw``; raises UnreadableError without a target's id."""
    fields.note_unknown(AGENT_FIELDS)
    target = fields.object("target")
    target.note_unknown(PARTY_FIELDS)
    word = fields.word("on_duty_status")
    return {
        "agent_id": target.key_id("id"),
        "name": target.text("name"),
        "email": target.text("email"),
        "duty_status": _duty(fields, word),
        "provider_duty_status": word,
        "duty_reason": fields.text("on_duty_status_reason"),
        "available": _availability(fields),
        "call_center_ids": fields.ids("call_center_ids"),
    }


def read_duty(fields: Fields, agent_id: str) -> dict[str, Any]:
    """Of `schemas.agent.Agent` what an operator's present duty tells, without ``raw``."""
    fields.note_unknown(DUTY_FIELDS)
    user_id = fields.id("user_id")
    if user_id is not None and user_id != agent_id:
        raise UnreadableError("unexpected_shape", "user_id is that of another user")
    word = fields.word("on_duty_status")
    return {
        "agent_id": agent_id,
        "duty_status": _duty(fields, word),
        "provider_duty_status": word,
        "duty_reason": fields.text("duty_status_reason"),
        "available": None,  # that is about calls and undisturbed hours, not about duty
    }


def read_consent(fields: Fields) -> dict[str, Any]:
    """`schemas.consent.Consent` without ``raw``; raises UnreadableError without a number."""
    fields.note_unknown(CONSENT_FIELDS)
    fields.key_id("external_endpoint")
    number = fields.number("external_endpoint")
    if number is None:
        raise UnreadableError("unexpected_shape", "external_endpoint is no number")
    word = fields.word("opt_out_state") or ""
    state = CONSENT_STATES.get(word, "unknown")
    if state == "unknown":
        fields.surprises.append(("consent_state", word))
    return {
        "number": number,
        "state": state,
        "channel": "sms",
        "scope": fields.object("opt_out_scope_info").text("opt_out_scope_level"),
    }


def read_change(fields: Fields) -> dict[str, Any]:
    """`schemas.change.Change` without ``raw``."""
    fields.note_unknown(CHANGE_FIELDS)
    return {
        "action": fields.word("action"),
        "note": fields.text("note"),
        "target": party(fields.object("target"), None),
        # Redacted in an unknown form where Dialpad's own staff did it.
        "changed_by": party(fields.object("changed_by"), None),
        "details": fields.value.get("additional_data"),
    }


def _duty(fields: Fields, word: str | None) -> str | None:
    duty = None if word is None else DUTY_STATUSES.get(word, "unknown")
    if duty == "unknown":
        fields.surprises.append(("duty_status", word or ""))
    return duty


def _availability(fields: Fields) -> bool | None:
    """Documented as a word; one integration has a bool."""
    if type(fields.value.get("availability_status")) is bool:
        return fields.flag("availability_status")
    word = fields.text("availability_status")
    return None if word is None else word == "available"


def _with_primary(fields: Fields, key: str, primary_key: str) -> list[str]:
    """The list, with the primary one in it even if the list lacks it."""
    found, primary = fields.texts(key), fields.text(primary_key)
    return found if primary is None or primary in found else [primary, *found]

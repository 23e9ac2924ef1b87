"""Call events. https://developers.dialpad.com/docs/call-events-logging

Nearly all calls come in the one shape that `CallPayload` declares, and are read into it by a
typed parser. What it does not take (a new field, a value of another type) is read with patience
into the same class, so that there is one meaning for both.
"""

from functools import lru_cache
from typing import Annotated, Any

from msgspec import Meta, MsgspecError, Struct
from msgspec.json import Decoder

from ingest.fields import MAX_ID, Fields, by_size, time_text
from ingest.numbers import is_withheld, normalize_number
from ingest.providers.dialpad.parties import snake_kind
from ingest.providers.dialpad.tables import CLAIMS, DIRECTIONS, ENDING_STATES, STATES
from schemas.call import CallState
from schemas.times import LAST_MS

#: Of every enum.
UNKNOWN = "unknown"

#: Milliseconds since 1970, and a duration in milliseconds with binary noise.
Ms = Annotated[int, Meta(gt=0, le=LAST_MS)] | None
Span = float | None

#: Integers in events, texts of a contact and in REST answers.
Id = (
    Annotated[int, Meta(gt=0, le=2**63 - 1)] | Annotated[str, Meta(min_length=2, max_length=MAX_ID)]
)
Word = Annotated[str, Meta(max_length=MAX_ID)]
Text = str | None
Texts = list[str] | None


_Scalar = str | int | float | bool | None
Shallow = _Scalar | dict[str, _Scalar] | list[_Scalar | dict[str, _Scalar | list[_Scalar]]]
"""Anything that is not nested deep, as nothing in a usual call is."""


class Who(Struct, forbid_unknown_fields=True, frozen=True, gc=False):
    """A contact or target. Group legs have no e-mail; `office_id` stands on targets only."""

    id: Id | None = None
    type: Text = None
    email: Text = None
    phone: Text = None
    name: Text = None
    office_id: Id | None = None


class Details(Struct, forbid_unknown_fields=True, gc=False):
    """An item of ``recording_details``."""

    id: Id | None = None
    url: Text = None
    duration: Span = None
    start_time: Ms = None
    recording_type: Text = None


class CallPayload(Struct, forbid_unknown_fields=True):
    """Everything that a call event may have, and the usual type of what we read.

    In the order in which Dialpad sends it: there the parser looks first. What is `Shallow` we know
    and leave in `raw`.
    """

    call_id: Id
    state: Word | None
    direction: Text = None
    event_timestamp: Ms = None
    date_started: Ms = None
    date_rang: Ms = None
    date_first_rang: Ms = None
    date_queued: Shallow = None
    date_connected: Ms = None
    date_ended: Ms = None
    duration: Shallow = None
    total_duration: Span = None
    talk_time: Span = None
    hold_time: Span = None
    external_number: Text = None
    internal_number: Text = None
    selected_caller_id: Shallow = None
    contact: Who | None = None
    target: Who | None = None
    target_availability_status: Shallow = None
    callback_requested: Shallow = None
    entry_point_call_id: Id | None = None
    entry_point_target: Shallow = None
    operator_call_id: Id | None = None
    proxy_target: Shallow = None
    group_id: Text = None
    master_call_id: Id | None = None
    is_internal: bool | None = None
    is_transferred: bool | None = None
    transferred_from: Shallow = None
    csat_score: str | int | float | None = None
    mos_score: float | None = None
    labels: Texts = None
    routing_breadcrumbs: Shallow = None
    was_recorded: Shallow = None
    voicemail_link: Text = None
    voicemail_recording_id: Id | None = None
    call_recording_ids: Texts = None
    recording_details: list[Details] | None = None
    recording_url: Texts = None
    admin_recording_urls: Texts = None
    transcription_text: Text = None
    recap_summary: Text = None
    recap_outcome: Text = None
    recap_purposes: Texts = None
    recap_action_items: Texts = None
    integrations: Shallow = None
    company_call_review_share_link: Shallow = None
    public_call_review_share_link: Shallow = None
    call_recording_share_links: Shallow = None
    admin_call_recording_share_links: Shallow = None
    csat_recording_urls: Shallow = None
    csat_transcriptions: Shallow = None
    pcsat_score: Shallow = None
    screen_recording_urls: Shallow = None
    call_dispositions: Texts = None
    custom_data: Text = None


CALL_FIELDS = frozenset(CallPayload.__struct_fields__) | CLAIMS
_WHO_FIELDS = frozenset(Who.__struct_fields__)
_DETAILS_FIELDS = frozenset(Details.__struct_fields__)

#: Of an item of the list of calls; https://developers.dialpad.com/reference/calllist
RECORD_FIELDS = CALL_FIELDS | {"voicemail_share_link"}

_USUAL = Decoder(CallPayload)


def usual_call(payload: bytes) -> CallPayload | None:
    """The call event in ``payload``, if it is one and has the usual shape throughout."""
    try:
        call = _USUAL.decode(payload)
    except (MsgspecError, UnicodeDecodeError):
        return None
    # A text is no usual id, and an empty state is none.
    return call if type(call.call_id) is int and call.state else None


def patient_call(fields: Fields, known: frozenset[str] = CALL_FIELDS) -> CallPayload:
    """The same from any shape; raises UnreadableError without a call id."""
    fields.note_unknown(known)
    return CallPayload(
        call_id=fields.key_id("call_id"),
        state=fields.word("state"),
        direction=fields.text("direction"),
        event_timestamp=fields.ms("event_timestamp"),
        date_started=fields.ms("date_started"),
        date_rang=fields.ms("date_rang"),
        date_first_rang=fields.ms("date_first_rang"),
        date_connected=fields.ms("date_connected"),
        date_ended=fields.ms("date_ended"),
        total_duration=fields.span("total_duration"),
        talk_time=fields.span("talk_time"),
        hold_time=fields.span("hold_time"),
        external_number=fields.text("external_number"),
        internal_number=fields.text("internal_number"),
        contact=_patient_who(fields.object("contact")),
        target=_patient_who(fields.object("target")),
        entry_point_call_id=fields.id("entry_point_call_id"),
        operator_call_id=fields.id("operator_call_id"),
        master_call_id=fields.id("master_call_id"),
        group_id=fields.text("group_id"),
        is_internal=fields.flag("is_internal"),
        is_transferred=fields.flag("is_transferred"),
        custom_data=fields.text("custom_data"),
        labels=fields.texts("labels"),
        call_dispositions=fields.texts("call_dispositions"),
        mos_score=fields.span("mos_score"),
        csat_score=_patient_score(fields.value.get("csat_score")),
        recording_details=_patient_details(fields),
        recording_url=fields.texts("recording_url"),
        admin_recording_urls=fields.texts("admin_recording_urls"),
        call_recording_ids=fields.ids("call_recording_ids"),
        voicemail_link=fields.text("voicemail_link"),
        voicemail_recording_id=fields.id("voicemail_recording_id"),
        transcription_text=fields.text("transcription_text"),
        recap_summary=fields.text("recap_summary"),
        recap_outcome=fields.text("recap_outcome"),
        recap_purposes=fields.texts("recap_purposes"),
        recap_action_items=fields.texts("recap_action_items"),
    )


def _patient_who(fields: Fields) -> Who:
    fields.note_unknown(_WHO_FIELDS)
    return Who(
        id=fields.id("id"),
        type=fields.text("type"),
        email=fields.text("email"),
        phone=fields.text("phone"),
        name=fields.text("name"),
    )


def _patient_details(fields: Fields) -> list[Details]:
    found = []
    for item in fields.items("recording_details"):
        if type(item) is not dict:
            fields.surprises.append(("type", "recording_details"))
            continue
        details = fields.inner(item)
        details.note_unknown(_DETAILS_FIELDS)
        found.append(
            Details(
                id=details.id("id"),
                url=details.text("url"),
                duration=details.span("duration"),
                start_time=details.ms("start_time"),
                recording_type=details.text("recording_type"),
            )
        )
    return found


def _patient_score(value: object) -> str | int | float | None:
    return value if type(value) in (str, int, float) else None  # type: ignore[return-value]


def call_data(
    call: CallPayload, region: str | None, surprises: list[tuple[str, str]]
) -> dict[str, Any]:
    """`schemas.call.Call` without ``raw``. Words that we have none for join ``surprises``."""
    call_id = str(call.call_id)
    related = _related(call, call_id)
    word = call.state or None
    state = STATES.get(word or "", UNKNOWN)
    if state == UNKNOWN:
        surprises.append(("state", word or ""))
    direction = DIRECTIONS.get(call.direction or "", UNKNOWN)
    if direction == UNKNOWN and call.direction:
        surprises.append(("direction", call.direction))

    contact, target = call.contact or _NOBODY, call.target or _NOBODY
    external = _party(contact, call.external_number or contact.phone, region)
    target_party = _party(target, target.phone, region)
    internal = target_party
    if call.internal_number and call.internal_number != target.phone:
        internal = _party(target, call.internal_number, region)
    outside, inside = external["number"], internal["number"]
    outbound = direction == "outbound"

    rang = call.date_rang or call.date_first_rang
    connected, ended = call.date_connected, call.date_ended
    voicemail = _voicemail(call, state)
    if ended is None and state not in ENDING_STATES:
        outcome = None
    else:
        outcome = _outcome(state, direction, call, voicemail)
    return {
        "call_id": call_id,
        "conversation_id": min(call_id, *related, key=by_size) if related else call_id,
        "related_call_ids": related,
        "state": state,
        "provider_state": word,
        "direction": "internal" if call.is_internal else direction,
        "from_number": inside if outbound else outside,
        "to_number": outside if outbound else inside,
        "external": external,
        "internal": internal,
        "target": target_party,
        "group": _group(call.group_id) if call.group_id else None,
        "started_at": time_text(call.date_started),
        "rang_at": time_text(rang),
        "connected_at": time_text(connected),
        "ended_at": time_text(ended),
        "ring_duration_s": _between(rang, connected or ended),
        "talk_duration_s": _seconds(call.talk_time),
        "hold_duration_s": _seconds(call.hold_time),
        "total_duration_s": _seconds(call.total_duration),
        "outcome": outcome,
        "provider_outcome": None,
        "transferred": call.is_transferred,
        "recordings": _recordings(call),
        "voicemail": voicemail,
        "transcript": None,  # `call_transcription` only says that it can be fetched
        "recap": _recap(call),
        "labels": call.labels or [],
        "dispositions": call.call_dispositions or [],
        "quality": _quality(call),
        "campaign_id": None,
        "custom_data": call.custom_data or None,
    }


_NOBODY = Who()


def record_data(fields: Fields) -> tuple[CallPayload, dict[str, Any]]:
    """An item of the list of calls, and `schemas.call.Call` of it without ``raw``.

    Raises UnreadableError without a call id. What only events have (talk and hold time, whether it
    is internal, dispositions) is null.
    """
    call = patient_call(fields, RECORD_FIELDS)
    call.voicemail_link = fields.text("voicemail_share_link") or call.voicemail_link
    data = call_data(call, fields.region, fields.surprises)
    if call.state is None:
        fields.surprises.remove(("state", ""))  # a record says what it is without
    if data["voicemail"] is None and _tells_message(call):
        data["voicemail"] = _message(call)
        if data["outcome"] is not None:
            direction = DIRECTIONS.get(call.direction or "", UNKNOWN)
            data["outcome"] = _outcome(data["state"], direction, call, data["voicemail"])
    data["state"] = CallState.RECORDED.value
    return call, data


def _tells_message(call: CallPayload) -> bool:
    """Whether a caller left a message: events name it, records have only what it became."""
    if any(details.recording_type == "voicemail" for details in call.recording_details or ()):
        return True
    # By its description this is any call's text; seen is a message's only.
    return bool(call.transcription_text) and call.date_connected is None


def _related(call: CallPayload, call_id: str) -> list[str]:
    """The other legs of the conversation that this one names.

    No single id stands on every leg, so legs are united by all four.
    """
    others = (call.entry_point_call_id, call.operator_call_id, call.master_call_id)
    if others == (None, None, None):
        return []
    return sorted({str(leg) for leg in others if leg} - {call_id}, key=by_size)


@lru_cache(maxsize=4096)  # the same people come again and again; nobody changes what is made here
def _party(who: Who, number_raw: str | None, region: str | None) -> dict[str, Any]:
    """`schemas.base.Party`, with the number that is its own in this call."""
    withheld = number_raw is not None and number_raw != "" and is_withheld(number_raw)
    return {
        "kind": snake_kind(who.type) if who.type else None,
        "id": str(who.id) if who.id else None,
        "name": who.name or None,
        "email": who.email or None,
        "number": normalize_number(number_raw, region) if number_raw and not withheld else None,
        "number_raw": number_raw or None,
        "withheld": withheld,
    }


def _group(group_id: str) -> dict[str, Any]:
    """``CallCenter:5000000000000301``"""
    kind, _, ident = group_id.partition(":")
    return {"kind": snake_kind(kind), "id": ident} if ident else {"kind": None, "id": group_id}


def _outcome(
    state: str, direction: str, call: CallPayload, voicemail: dict[str, Any] | None
) -> str:
    if state == "blocked":
        return "blocked"
    # Voicemail picking up may count as connecting; then nobody has talked.
    if voicemail is not None and not (call.date_connected and call.talk_time):
        return "voicemail"
    if call.date_connected is not None:
        return "answered"
    if direction == UNKNOWN:
        return UNKNOWN
    return "unanswered" if direction == "outbound" else "missed"


def _voicemail(call: CallPayload, state: str) -> dict[str, Any] | None:
    """A link alone proves nothing: it is set without a message too, and then answers 404."""
    if not call.voicemail_recording_id and state not in (
        "voicemail_uploaded",
        "voicemail_transcribed",
    ):
        return None
    return _message(call)


def _message(call: CallPayload) -> dict[str, Any]:
    is_voicemail = (d for d in call.recording_details or () if d.recording_type == "voicemail")
    details = next(is_voicemail, Details())
    ident = call.voicemail_recording_id or details.id
    return {
        "recording_id": str(ident) if ident else None,
        "url": call.voicemail_link or details.url or None,
        "text": call.transcription_text or None,
        "duration_s": _seconds(details.duration),
    }


def _recordings(call: CallPayload) -> list[dict[str, Any]]:
    """Of every recording once; the kinds of list overlap."""
    if not (
        call.recording_details
        or call.recording_url
        or call.admin_recording_urls
        or call.call_recording_ids
    ):
        return []
    found = [
        _recording(details)
        for details in call.recording_details or ()
        if details.recording_type != "voicemail"
    ]
    urls = {recording["url"] for recording in found}
    lists = ((call.recording_url, None), (call.admin_recording_urls, "admincallrecording"))
    for links, kind in lists:
        for url in links or ():
            if url and url not in urls:
                urls.add(url)
                found.append(_recording(Details(url=url, recording_type=kind)))
    if not found:  # ids without links, where our key may not read links
        found = [_recording(Details(id=ident)) for ident in call.call_recording_ids or ()]
    return found


def _recording(details: Details) -> dict[str, Any]:
    return {
        "recording_id": str(details.id) if details.id else None,
        "url": details.url or None,
        "kind": details.recording_type or None,
        "started_at": time_text(details.start_time),
        "duration_s": _seconds(details.duration),
    }


def _recap(call: CallPayload) -> dict[str, Any] | None:
    if not (
        call.recap_summary or call.recap_outcome or call.recap_purposes or call.recap_action_items
    ):
        return None
    return {
        "summary": call.recap_summary or None,
        "outcome": call.recap_outcome or None,
        "purposes": call.recap_purposes or [],
        "action_items": call.recap_action_items or [],
    }


def _quality(call: CallPayload) -> dict[str, Any] | None:
    csat = str(call.csat_score) if call.csat_score else None
    if call.mos_score is None and csat is None:
        return None
    return {"mos": call.mos_score, "csat": csat}


def _seconds(span_ms: float | None) -> float | None:
    """Exact to 1 ms: the rest is binary noise."""
    return None if span_ms is None else round(span_ms) / 1000


def _between(begin_ms: int | None, end_ms: int | None) -> float | None:
    if begin_ms is None or end_ms is None or end_ms < begin_ms:
        return None
    return (end_ms - begin_ms) / 1000

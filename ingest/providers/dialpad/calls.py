"""Call events. https://developers.dialpad.com/docs/call-events-logging"""

from typing import Any

from ingest.providers.dialpad.fields import Fields, by_size, party, snake_kind, time_text
from ingest.providers.dialpad.tables import CALL_FIELDS, DIRECTIONS, ENDING_STATES, STATES

#: Of every enum.
UNKNOWN = "unknown"

RECAP_FIELDS = frozenset(("recap_summary", "recap_outcome", "recap_purposes", "recap_action_items"))
RECORDING_FIELDS = (
    "recording_details",
    "recording_url",
    "admin_recording_urls",
    "call_recording_ids",
)

#: Besides ``call_id``.
OTHER_LEG_IDS = ("entry_point_call_id", "operator_call_id", "master_call_id")


def read_call(fields: Fields) -> dict[str, Any]:
    """`schemas.call.Call` without ``raw``; raises UnreadableError without call id or state."""
    fields.note_unknown(CALL_FIELDS)
    call_id = fields.key_id("call_id")
    related = _related(fields, call_id)
    provider_state = fields.word("state")
    state = STATES.get(provider_state or "", UNKNOWN)
    if state == UNKNOWN:
        fields.surprises.append(("state", provider_state or ""))
    word = fields.text("direction") or ""
    direction = DIRECTIONS.get(word, UNKNOWN)
    if direction == UNKNOWN and word:
        fields.surprises.append(("direction", word))

    contact, target = fields.object("contact"), fields.object("target")
    external = party(contact, fields.text("external_number") or contact.text("phone"))
    target_party = party(target, target.text("phone"))
    internal = _internal(fields, target_party)
    outside, inside = external["number"], internal["number"]
    outbound = direction == "outbound"

    started = fields.ms("date_started")
    rang = fields.ms("date_rang") or fields.ms("date_first_rang")
    connected, ended = fields.ms("date_connected"), fields.ms("date_ended")
    talk_s = fields.seconds("talk_time")
    voicemail = _voicemail(fields, state)
    if ended is None and state not in ENDING_STATES:
        outcome = None
    else:
        outcome = _outcome(
            state,
            direction,
            connected=connected is not None,
            talk_s=talk_s,
            voicemail=voicemail is not None,
        )
    return {
        "call_id": call_id,
        "conversation_id": min(call_id, *related, key=by_size) if related else call_id,
        "related_call_ids": related,
        "state": state,
        "provider_state": provider_state,
        "direction": "internal" if fields.flag("is_internal") else direction,
        "from_number": inside if outbound else outside,
        "to_number": outside if outbound else inside,
        "external": external,
        "internal": internal,
        "target": target_party,
        "group": _group(fields.text("group_id")),
        "started_at": time_text(started),
        "rang_at": time_text(rang),
        "connected_at": time_text(connected),
        "ended_at": time_text(ended),
        "ring_duration_s": _between(rang, connected or ended),
        "talk_duration_s": talk_s,
        "hold_duration_s": fields.seconds("hold_time"),
        "total_duration_s": fields.seconds("total_duration"),
        "outcome": outcome,
        "provider_outcome": None,
        "transferred": fields.flag("is_transferred"),
        "recordings": _recordings(fields),
        "voicemail": voicemail,
        "transcript": None,  # `call_transcription` only says that it can be fetched
        "recap": None if RECAP_FIELDS.isdisjoint(fields.value) else _recap(fields),
        "labels": fields.texts("labels"),
        "dispositions": fields.texts("call_dispositions"),
        "quality": _quality(fields),
        "campaign_id": None,
        "custom_data": fields.text("custom_data"),
    }


def _related(fields: Fields, call_id: str) -> list[str]:
    """The other legs of the conversation that this one names.

    No single id stands on every leg, so legs are united by all four.
    """
    named = {*filter(None, map(fields.id, OTHER_LEG_IDS))}
    named.discard(call_id)
    return sorted(named, key=by_size) if named else []


def _internal(fields: Fields, target: dict[str, Any]) -> dict[str, Any]:
    """Our side: the target, at the number that this call uses."""
    raw = fields.text("internal_number")
    if raw is None or raw == target["number_raw"]:
        return target
    return {**target, **{key: party(Fields({}, fields.region), raw)[key] for key in _NUMBER_KEYS}}


_NUMBER_KEYS = ("number", "number_raw", "withheld")


def _group(group_id: str | None) -> dict[str, Any] | None:
    """``CallCenter:5000000000000301``"""
    if group_id is None:
        return None
    kind, _, ident = group_id.partition(":")
    return {"kind": snake_kind(kind), "id": ident} if ident else {"kind": None, "id": group_id}


def _outcome(
    state: str, direction: str, *, connected: bool, talk_s: float | None, voicemail: bool
) -> str:
    if state == "blocked":
        return "blocked"
    # Voicemail picking up may count as connecting; then nobody has talked.
    if voicemail and not (connected and talk_s):
        return "voicemail"
    if connected:
        return "answered"
    if direction == UNKNOWN:
        return UNKNOWN
    return "unanswered" if direction == "outbound" else "missed"


def _voicemail(fields: Fields, state: str) -> dict[str, Any] | None:
    """A link alone proves nothing: it is set without a message too, and then answers 404."""
    recording_id = fields.id("voicemail_recording_id")
    if recording_id is None and state not in ("voicemail_uploaded", "voicemail_transcribed"):
        return None
    details = next((d for d in _details(fields) if d.text("recording_type") == "voicemail"), None)
    return {
        "recording_id": recording_id or (details and details.id("id")),
        "url": fields.text("voicemail_link") or (details and details.text("url")),
        "text": fields.text("transcription_text"),
        "duration_s": details and details.seconds("duration"),
    }


def _recordings(fields: Fields) -> list[dict[str, Any]]:
    """Of every recording once; the kinds of list overlap."""
    if not any(map(fields.value.get, RECORDING_FIELDS)):
        return []
    found = [
        {
            "recording_id": details.id("id"),
            "url": details.text("url"),
            "kind": details.text("recording_type"),
            "started_at": time_text(details.ms("start_time")),
            "duration_s": details.seconds("duration"),
        }
        for details in _details(fields)
        if details.text("recording_type") != "voicemail"
    ]
    urls = {recording["url"] for recording in found}
    for key, kind in (("recording_url", None), ("admin_recording_urls", "admincallrecording")):
        for url in fields.texts(key):
            if url not in urls:
                urls.add(url)
                found.append(_bare_recording(url=url, kind=kind))
    if not found:  # ids without links, where our key may not read links
        found = [_bare_recording(recording_id=i) for i in fields.ids("call_recording_ids")]
    return found


def _bare_recording(
    *, recording_id: str | None = None, url: str | None = None, kind: str | None = None
) -> dict[str, Any]:
    return {
        "recording_id": recording_id,
        "url": url,
        "kind": kind,
        "started_at": None,
        "duration_s": None,
    }


def _details(fields: Fields) -> list[Fields]:
    """``recording_details``; what is no object in it is left out."""
    found = []
    for item in fields.items("recording_details"):
        if type(item) is dict:
            found.append(fields.inner(item))
        else:
            fields.surprises.append(("type", "recording_details"))
    return found


def _recap(fields: Fields) -> dict[str, Any] | None:
    recap = {
        "summary": fields.text("recap_summary"),
        "outcome": fields.text("recap_outcome"),
        "purposes": fields.texts("recap_purposes"),
        "action_items": fields.texts("recap_action_items"),
    }
    return recap if any(recap.values()) else None


def _quality(fields: Fields) -> dict[str, Any] | None:
    mos, csat = fields.value.get("mos_score"), fields.value.get("csat_score")
    mos = mos if type(mos) in (int, float) else None
    csat = str(csat) if csat and type(csat) in (str, int, float) else None
    if mos is None and csat is None:
        return None
    return {"mos": mos, "csat": csat}


def _between(begin_ms: int | None, end_ms: int | None) -> float | None:
    if begin_ms is None or end_ms is None or end_ms < begin_ms:
        return None
    return (end_ms - begin_ms) / 1000

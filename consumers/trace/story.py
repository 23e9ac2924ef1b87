"""The life of one conversation as the event log tells it. Pure: records in, a timeline out.

Three clocks stand next to each other: the provider's when it happened, ours when the message had
been read, and the log's when the record was written. What lies between two of them is a hop.
"""

import base64
import binascii
import heapq
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

import orjson

from consumers.reconcile.legs import BACKFILLED
from consumers.render import masked
from ingest.eventlog.log import StoredRecord
from ingest.fields import by_size
from schemas.times import rfc3339

#: What may follow when a call is long over, and is not late for that.
_ARTEFACTS = frozenset(
    {
        *("recording_ready", "transcript_ready", "recap_ready", "voicemail_uploaded"),
        *("voicemail_transcribed", "dispositioned", "wrapped_up", "surveyed"),
    }
)

#: Dialpad hangs up after 5 s: what came to the log later than that lay in a spool meanwhile.
_DIRECTLY_MS = 5_000

#: A shorter id would be found in any text.
_LONG_ENOUGH = 6


@dataclass(slots=True, kw_only=True)
class Moment:
    """One record of the timeline. Times are milliseconds since 1970."""

    topic: str
    #: Of the topic; None for what still waits in a spool.
    partition: int | None
    #: On the topic, or in the spool.
    position: int
    #: Whose spool it waits in.
    spool: str | None = None
    written_ms: int
    #: Empty for a tombstone, as all that follows.
    id: str = ""
    type: str = ""
    via: str = ""
    #: The leg; the conversation, of a row of the ledger. Of a verdict that stands at another
    #: connection: the call there.
    of: str = ""
    time_ms: int | None = None
    recorded_ms: int | None = None
    #: Words for programs: see `tell`.
    marks: list[str] = field(default_factory=list)
    #: What it says, without content, names and numbers.
    said: str = ""

    @property
    def what(self) -> str:
        return self.type.rpartition(".")[2]

    @property
    def to_us_ms(self) -> int | None:
        """How long it was on its way to us."""
        if self.recorded_ms is None or self.time_ms is None:
            return None
        return self.recorded_ms - self.time_ms

    @property
    def to_log_ms(self) -> int | None:
        """How long it was on its way from us to the log."""
        return None if self.recorded_ms is None else self.written_ms - self.recorded_ms

    def as_data(self) -> dict[str, Any]:
        return {
            "time": _text(self.time_ms),
            "recordedtime": _text(self.recorded_ms),
            "writtentime": rfc3339(self.written_ms),
            "to_us_s": _seconds(self.to_us_ms),
            "to_log_s": _seconds(self.to_log_ms),
            "type": self.type or None,
            "id": self.id or None,
            "of": self.of,
            "via": self.via or None,
            "topic": self.topic,
            "partition": self.partition,
            "position": self.position,
            "spool": self.spool,
            "marks": self.marks,
            "said": self.said,
        }


@dataclass(slots=True, kw_only=True)
class Story:
    """What is known of one conversation at one connection."""

    connection: str
    conversation_id: str
    #: The legs of which there is something, in the order in which they began.
    call_ids: list[str]
    direction: str | None
    #: The other party's number, masked.
    external: str | None
    outcome: str | None
    #: None without a row in the ledger.
    complete: bool | None
    flags: list[str]
    #: The same call at other connections: (connection, call id).
    counterparts: list[tuple[str, str]]
    moments: list[Moment]

    def as_data(self) -> dict[str, Any]:
        return {
            "connection": self.connection,
            "conversation_id": self.conversation_id,
            "call_ids": self.call_ids,
            "direction": self.direction,
            "external": self.external,
            "outcome": self.outcome,
            "complete": self.complete,
            "flags": self.flags,
            "counterparts": [
                {"connection": connection, "call_id": call_id}
                for connection, call_id in self.counterparts
            ],
            "moments": [moment.as_data() for moment in self.moments],
        }


@dataclass(frozen=True, slots=True)
class Spooled:
    """A record that waits in a role's spool."""

    role: str
    record: StoredRecord


def tell(
    connection: str, records: Collection[StoredRecord], waiting: Collection[Spooled] = ()
) -> Story:
    """The story in all records of one conversation: calls, verdicts, ledger, rejects that name it.

    Among them may be verdicts of other connections that are about one of its calls, too.

    Marks: ``repeat`` (an id that was there before), ``spooled`` (it waited for the log for longer
    than a delivery may), ``in_spool`` (it waits still), ``out_of_order`` (something later of this
    leg was on the log before), ``stale``, ``late`` (its leg had a verdict already), ``mended`` (its
    push was lost), ``redriven`` (it was a reject), ``revised`` (a verdict that a later one has
    voided), ``tombstone``.
    """
    events = {id(r): orjson.loads(r.value) for r in records if r.value is not None}
    moments = [_moment(connection, record, events.get(id(record))) for record in _in_order(records)]
    on_log = {moment.id for moment in moments}
    on_spools: set[tuple[str, str, int]] = set()
    for each in waiting:
        event = orjson.loads(each.record.value or b"{}")
        place = (each.role, each.record.topic, each.record.position)
        # What has just been drained may still lie there.
        if event and event["id"] not in on_log and place not in on_spools:
            moment = _moment(connection, each.record, event)
            on_spools.add(place)
            moment.partition, moment.spool = None, each.role
            moment.marks.append("in_spool")
            moments.append(moment)
            events[id(each.record)] = event
    marker = _Marker()
    for moment in moments:
        marker.mark(moment)
    _mark_revised(moments, events.values())
    return _story(connection, moments, list(events.values()))


def _in_order(records: Collection[StoredRecord]) -> list[StoredRecord]:
    """As they were written, each partition in its own order whatever the clock did."""
    places: defaultdict[tuple[str, int], dict[int, StoredRecord]] = defaultdict(dict)
    for record in records:
        places[record.topic, record.partition][record.position] = record
    in_places = [[found[at] for at in sorted(found)] for _, found in sorted(places.items())]
    return list(heapq.merge(*in_places, key=lambda record: record.written_ms))


def _moment(connection: str, record: StoredRecord, event: Mapping[str, Any] | None) -> Moment:
    home, _, of = record.key.decode().partition("/")
    moment = Moment(
        topic=record.topic,
        partition=record.partition,
        position=record.position,
        written_ms=record.written_ms,
        of=of,
    )
    if event is None:
        moment.marks.append("tombstone")
        return moment
    moment.id, moment.via = event["id"], event["via"]
    moment.type = event["type"].removeprefix("dialstream.")
    moment.time_ms, moment.recorded_ms = _ms(event["time"]), _ms(event["recordedtime"])
    moment.said = _SAYS[moment.type.partition(".")[0]](event["data"])
    if home != connection:
        moment.said = f"of {of} at {home}, {moment.said}"
    if event.get("stale"):
        moment.marks.append("stale")
    return moment


class _Marker:
    """What the order on the log tells; to be asked of one moment after the other."""

    def __init__(self) -> None:
        self._seen: set[str] = set()
        #: Leg → the latest that was on the log of it, by the provider's clock.
        self._latest_ms: dict[str, int] = {}
        self._judged: set[str] = set()

    def mark(self, moment: Moment) -> None:
        subject = moment.type.partition(".")[0]
        if subject == "verdict":
            self._judged.add(moment.of)
        if moment.id in self._seen:
            moment.marks.append("repeat")
        elif subject == "call":
            moment.marks += self._of_call(moment)
        if moment.via == "replay":
            moment.marks.append("redriven")
        elif _waited(moment):
            moment.marks.append("spooled")
        if moment.id:
            self._seen.add(moment.id)

    def _of_call(self, moment: Moment) -> Iterator[str]:
        if moment.id.endswith(BACKFILLED):
            yield "mended"
            return
        if moment.what != "recorded" and moment.time_ms is not None:
            latest_ms = self._latest_ms.get(moment.of, 0)
            if moment.time_ms < latest_ms:
                yield "out_of_order"
            self._latest_ms[moment.of] = max(moment.time_ms, latest_ms)
        if moment.of in self._judged and moment.what not in _ARTEFACTS:
            yield "late"


def _waited(moment: Moment) -> bool:
    """Whether it came to the log later than a delivery may that does so directly."""
    # What we derive is written when it is due by the log's clock, which may be behind.
    derived = moment.via == "derived" or moment.id.endswith(BACKFILLED)
    return not derived and moment.spool is None and (moment.to_log_ms or 0) > _DIRECTLY_MS


def _mark_revised(moments: Sequence[Moment], events: Collection[Mapping[str, Any]]) -> None:
    revised = {e["data"]["revises"] for e in events if e["type"].startswith("dialstream.verdict.")}
    for moment in moments:
        if moment.id in revised:
            moment.marks.append("revised")


def _story(connection: str, moments: list[Moment], events: Sequence[Mapping[str, Any]]) -> Story:
    calls = [e["data"] for e in events if e["type"].startswith("dialstream.call.")]
    last_rows: dict[str, Mapping[str, Any]] = {}
    ids = {event["id"]: event for event in events}
    for moment in moments:
        if moment.topic == "ledger":
            last_rows.pop(moment.of, None)
            if moment.id:
                last_rows[moment.of] = ids[moment.id]["data"]
    row = last_rows[min(last_rows, key=by_size)] if last_rows else None
    begun = {call["call_id"]: call["started_at"] or "~" for call in reversed(calls)}
    call_ids = sorted({*begun, *(row["call_ids"] if row else ())}, key=by_size)
    call_ids.sort(key=lambda call_id: begun.get(call_id, "~"))
    facts = [row] if row else calls[::-1]
    direction = next((f["direction"] for f in facts if f["direction"] != "unknown"), None)
    external = next((f["external"] for f in facts if any(f["external"].values())), None)
    conversation_id = min((call["conversation_id"] for call in calls), key=by_size, default="")
    return Story(
        connection=connection,
        conversation_id=row["conversation_id"] if row else conversation_id,
        call_ids=call_ids,
        direction=direction,
        external=external and _who(external),
        outcome=next((f["outcome"] for f in facts if f["outcome"]), None),
        complete=row["complete"] if row else None,
        flags=row["flags"] if row else [],
        counterparts=[(c["connection"], c["call_id"]) for c in row["counterparts"]] if row else [],
        moments=moments,
    )


# What an event says


def _call_says(data: Mapping[str, Any]) -> str:
    word = data["provider_state"] if data["state"] == "unknown" else None
    talk = data["talk_duration_s"] if data["ended_at"] else None
    return ", ".join(filter(None, [word, data["outcome"], talk and f"talk {talk:g} s"]))


def _verdict_says(data: Mapping[str, Any]) -> str:
    other = data["recorded_connection"]
    differing = ", ".join(each["field"] for each in data["differences"])
    told = [
        f"no. {data['n']}",
        (data["reason"] or "").replace("_", " "),
        f"against {other}" if other != data["pushed_connection"] and other else "",
        f"differs: {differing}" if differing else "",
    ]
    return ", ".join(filter(None, told))


def _row_says(data: Mapping[str, Any]) -> str:
    legs = len(data["legs"])
    told = [
        "1 leg" if legs == 1 else f"{legs} legs",
        data["outcome"],
        "complete" if data["complete"] else "open",
        *(flag.replace("_", " ") for flag in data["flags"]),
        f"merged from {', '.join(data['merged_from'])}" if data["merged_from"] else "",
    ]
    return ", ".join(filter(None, told))


_SAYS: Mapping[str, Callable[[Mapping[str, Any]], str]] = {
    "call": _call_says,
    "verdict": _verdict_says,
    "conversation": _row_says,
    "reject": lambda data: f"{data['detail']} ({data['via']})",
}


def _who(party: Mapping[str, Any]) -> str | None:
    return "withheld" if party["withheld"] else masked(party["number"])


# What belongs to it by what it says


def is_about(verdict: StoredRecord, connection: str, ids: Collection[str]) -> bool:
    """Whether a verdict of two connections is about one of these calls."""
    if verdict.value is None:
        return False
    data = orjson.loads(verdict.value)["data"]
    return any(
        data[f"{side}_connection"] == connection and data[f"{side}_call_id"] in ids
        for side in ("pushed", "recorded")
    )


def names(event: Mapping[str, Any], ids: Collection[str]) -> bool:
    """Whether a reject is of a delivery about one of these calls, as far as that can be known."""
    wanted = [re.escape(ident).encode() for ident in ids if len(ident) >= _LONG_ENOUGH]
    if not wanted:
        return False
    data = event["data"]
    pattern = re.compile(rb"(?<![0-9A-Za-z_-])(?:" + b"|".join(wanted) + rb")(?![0-9A-Za-z_-])")
    body = base64.b64decode(data["body_base64"])
    ids_told = " ".join(data.get("events", ()))  # what it became when it was redriven
    told = f"{data['detail']} {ids_told}".encode()
    return any(map(pattern.search, (told, body, *_payload_of(body))))


def _payload_of(body: bytes) -> list[bytes]:
    """What a compact JWS signs, if the body is one."""
    parts = body.strip().split(b".")
    if len(parts) != 3:  # noqa: PLR2004
        return []
    try:
        return [base64.urlsafe_b64decode(parts[1] + b"=" * (-len(parts[1]) % 4))]
    except binascii.Error:
        return []


def _ms(instant: str) -> int:
    return round(datetime.fromisoformat(instant).timestamp() * 1000)


def _text(ms: int | None) -> str | None:
    return None if ms is None else rfc3339(ms)


def _seconds(ms: int | None) -> float | None:
    return None if ms is None else ms / 1000

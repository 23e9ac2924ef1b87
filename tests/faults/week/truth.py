"""What a simulated company's week has been, and whether a stream tells it. Pure.

Ids, words and times are put down as the design fixes them, from what has happened in the company
and from what the provider has said of it: the judge shares no code with the accused.
"""

import hashlib
import json
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from ingest.simulator.dialpad import Oddities, kind_of, payloads, rest_call
from ingest.simulator.dialpad_delivery import Delivery
from ingest.simulator.facts import (
    CallHappening,
    ContactHappening,
    DutyHappening,
    Happening,
    TextHappening,
)
from ingest.simulator.story import Tempo
from ingest.simulator.world import World

CHANNELS = ("webhook", "websocket")

#: A frame that a broken socket has swallowed was given to it so long before we were deaf, at most.
SLACK_MS = 3000

#: Dialpad's state of a call → ours, where they differ.
_STATES = {
    "hold": "held",
    "hangup": "ended",
    "transcription": "voicemail_transcribed",
    "recording": "recording_ready",
    "admin_recording": "recording_ready",
    "call_transcription": "transcript_ready",
    "recap_summary": "recap_ready",
    "recap_outcome": "recap_ready",
    "recap_purposes": "recap_ready",
    "recap_action_items": "recap_ready",
    "dispositions": "dispositioned",
    "csat": "surveyed",
}


def digest(value: object) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def push_id(kind: str, event: dict[str, Any]) -> str:
    """The id of what is pushed; a contact's without the minute, which nobody can foretell."""
    parts: tuple[object, ...]
    match kind:
        case "call":
            parts = "call", event["call_id"], event["state"], event["event_timestamp"]
        case "sms":
            status, result = event["message_status"], event["message_delivery_result"]
            parts = "message", event["id"], status, result, event["target"]["id"]
        case "contact":
            contact, change = event["contact"], event["event"].lower()
            parts = "contact", contact["id"], change, digest(event)
        case "agent_status":
            duty = event["on_duty_status"]
            parts = "agent", event["target"]["id"], event["date"], duty, digest(event)
        case _:
            target = event["target"]["id"]
            parts = "change", event["date"], event["action"], target, digest(event)
    return "dialpad:acme:" + ":".join("-" if part is None else str(part) for part in parts)


def record_id(item: dict[str, Any]) -> str:
    return f"dialpad:acme:record:{item['call_id']}:{digest(item)}"


@dataclass(frozen=True, slots=True)
class Fact:
    #: Of what the provider says of it.
    digest: str
    type: str
    #: Fields of `data`, and what stands in them.
    says: dict[str, Any]


class ToldWorld(World):
    """A company that notes every fact that a provider tells of it."""

    def __init__(self, seed: int, start_ms: int, tempo: Tempo, oddities: Oddities) -> None:
        super().__init__(seed, start_ms, tempo)
        self.oddities = oddities
        #: By id.
        self.facts: dict[str, Fact] = {}

    def go_on(self) -> Happening:
        happening = super().go_on()
        self.note(happening)
        return happening

    def note(self, happening: Happening) -> None:
        kind = kind_of(happening)
        if kind is None:
            return
        for event in payloads(happening, self.oddities):
            fact = Fact(digest(event), *self._says(happening, event))
            known = self.facts.setdefault(push_id(kind, event), fact)
            assert known.digest == fact.digest, "two facts have one id"

    def _says(self, happening: Happening, event: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """Type, and what is in its data; by what has happened where that is to be seen."""
        match happening:
            case CallHappening(leg=leg):
                late = self.oddities.has("late_bodies", leg.id)
                known = leg.as_of(happening.at_ms + (self.oddities.late_by_ms if late else 0))
                ours, theirs = leg.host.number, leg.outsider.number
                state = _STATES.get(event["state"], event["state"])
                return f"call.{state}", {
                    "call_id": str(leg.id),
                    "state": state,
                    "provider_state": event["state"],
                    "direction": "outbound" if leg.outbound else "inbound",
                    "from_number": ours if leg.outbound else theirs,
                    "to_number": theirs if leg.outbound else ours,
                    "started_at": clock(known.started_ms),
                    "connected_at": clock(known.answered_ms),
                    "ended_at": clock(known.ended_ms),
                    "custom_data": leg.tag,
                }
            case TextHappening(message=message):
                ours, theirs = message.host.number, message.outsider.number
                first = event["message_status"] == "pending"
                news = "sent" if message.outbound else "received"
                return f"message.{news if first else 'updated'}", {
                    "message_id": str(message.id),
                    "direction": "outbound" if message.outbound else "inbound",
                    "from_number": ours if message.outbound else theirs,
                    "to_numbers": [theirs if message.outbound else ours],
                    "text": None if message.picture else message.text,
                }
            case ContactHappening(outsider=outsider, change=change):
                return f"contact.{change.value}", {
                    "contact_id": str(outsider.id),
                    "first_name": outsider.first_name or None,
                    "last_name": outsider.last_name or None,
                    "job_title": outsider.job or None,
                }
            case DutyHappening(member=member):
                return "agent.status", {
                    "agent_id": str(member.id),
                    "name": member.name,
                    "email": member.email,
                }
            case _:
                return "change.logged", {"action": event["action"]}


def clock(ms: int | None) -> str | None:
    if ms is None:
        return None
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(ms // 1000)) + f".{ms % 1000:03d}Z"


@dataclass(slots=True)
class Verdict:
    """What was found. `problems` says in words what must not be."""

    legs: int = 0
    facts: int = 0
    #: Facts that were accepted, by channel.
    pushed: Counter[str] = field(default_factory=Counter)
    #: Facts of pushes on the stream, and how often all of them are there.
    on_stream: int = 0
    copies: int = 0
    records: int = 0
    lost: list[str] = field(default_factory=list)
    #: Given to sockets that broke, and to be read back.
    lost_in_gaps: int = 0
    two_ids: list[str] = field(default_factory=list)
    #: Not what the truth has, or nothing that it has.
    wrong: list[str] = field(default_factory=list)
    missing_records: list[str] = field(default_factory=list)
    #: The last record is not what the provider lists.
    old_records: list[str] = field(default_factory=list)
    #: How many records are there that were there before.
    record_repeats: int = 0
    gaps_opened: Counter[str] = field(default_factory=Counter)
    open_gaps: list[str] = field(default_factory=list)
    rejects: int = 0
    #: At the provider, in any second; and how often it said 429 of its own accord.
    requests_per_s: int = 0
    over_rate: int = 0
    kills: int = 0
    strikes: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0

    @property
    def problems(self) -> list[str]:
        """Empty if nothing is wrong."""
        found = {
            "lost": self.lost,
            "twice with different ids": self.two_ids,
            "wrong": self.wrong,
            "without their record": self.missing_records,
            "with an old record": self.old_records,
            "gaps open": self.open_gaps,
        }
        several = self.over_rate, self.record_repeats if self.kills == 0 else 0
        return [
            *(f"{len(ids)} {what}, first {ids[0]}" for what, ids in found.items() if ids),
            *([f"{several[0]} requests above the rate"] if several[0] else []),
            *([f"{several[1]} records published again"] if several[1] else []),
        ]


class Judge:
    """Is told of every delivery, then reads the stream, then judges."""

    def __init__(self, world: ToldWorld) -> None:
        self.world = world
        self.accepted: dict[str, set[str]] = {channel: set() for channel in CHANNELS}
        #: Frame → when it was given to a socket, by our clock: earliest begin, latest end.
        self._frames: dict[str, tuple[int, int]] = {}
        self._verdict = Verdict()
        #: Fact → how often; said → ids that say it.
        self._seen: Counter[str] = Counter()
        self._sayings: defaultdict[tuple[str, str], set[str]] = defaultdict(set)
        self._records: Counter[str] = Counter()
        self._last_records: dict[str, str] = {}
        #: Channel, from → to; those that were closed.
        self._gaps: dict[tuple[str, str], str | None] = {}
        self._closed: dict[tuple[str, str], str | None] = {}

    def deliver(self, delivery: Delivery, from_ms: int, to_ms: int) -> None:
        """Take in a delivery of which no more will become; it went out in this time of ours."""
        if not (delivery.genuine and delivery.accepted):
            return
        ident = push_id(delivery.kind, delivery.event)
        self.accepted[delivery.via].add(ident)
        if delivery.via == "websocket":
            first = self._frames.get(ident, (from_ms, to_ms))
            self._frames[ident] = min(from_ms, first[0]), max(to_ms, first[1])

    def read(self, event: dict[str, Any]) -> None:
        """Take in the next event of the stream."""
        found, data = self._verdict, event["data"]
        _, subject, what = event["type"].split(".")
        if subject == "gap":
            gap = data["channel"], data["from"]
            if what == "opened" and data["reason"] == "left":
                pass  # when all was over we have asked it to stop, and nobody is there to close it
            elif what == "opened":
                found.gaps_opened[data["channel"]] += gap not in self._gaps
                self._gaps[gap] = data["to"]
            else:
                self._closed[gap] = data["to"]
        elif subject == "reject":
            found.rejects += 1
            # Nothing else is no event and signed.
            if what != "unknown_kind":
                found.wrong.append(event["id"])
        elif what == "recorded":
            self._read_record(event)
        else:
            self._read_push(event)

    def _read_record(self, event: dict[str, Any]) -> None:
        data = event["data"]
        leg = self.world.legs.get(int(data["call_id"]))
        says = None
        if leg is not None:
            says = str(leg.id), clock(leg.started_ms), clock(leg.answered_ms), clock(leg.ended_ms)
        times = (data[name] for name in ("call_id", "started_at", "connected_at", "ended_at"))
        if says != tuple(times) or event["id"] != record_id(data["raw"]):
            self._verdict.wrong.append(event["id"])
        self._verdict.record_repeats += event["id"] in self._records
        self._records[event["id"]] += 1
        self._last_records[data["call_id"]] = event["id"]

    def _read_push(self, event: dict[str, Any]) -> None:
        ident, data, kind = event["id"], event["data"], event["type"].removeprefix("dialstream.")
        if kind.startswith("contact."):
            ident = ident.rpartition(":")[0]
        said = digest(data["raw"])
        self._seen[ident] += 1
        self._sayings[kind, said].add(ident)
        fact = self.world.facts.get(ident)
        if (
            fact is None
            or (fact.digest, fact.type) != (said, kind)
            or any(data[name] != value for name, value in fact.says.items())
        ):
            self._verdict.wrong.append(event["id"])

    def verdict(self, at_ms: int) -> Verdict:
        """Judge by what the provider knows at ``at_ms`` of its time."""
        found, world = self._verdict, self.world
        found.legs, found.facts = len(world.legs), len(world.facts)
        for channel, accepted in self.accepted.items():
            found.pushed[channel] = len(accepted)
        found.on_stream, found.copies = len(self._seen), sum(self._seen.values())
        found.lost += sorted(self.accepted["webhook"] - self._seen.keys())
        for ident in sorted(self.accepted["websocket"] - self._seen.keys()):
            if self._in_gap(*self._frames[ident]):
                found.lost_in_gaps += 1
            else:
                found.lost.append(ident)
        found.two_ids += [str(ids) for ids in self._sayings.values() if len(ids) > 1]
        found.records = len(self._records)
        for leg in world.concluded(at_ms):
            last = self._last_records.get(str(leg.id))
            if last is None:
                found.missing_records.append(str(leg.id))
            elif last != record_id(rest_call(leg)):
                found.old_records.append(str(leg.id))
        found.open_gaps += [f"{channel} {at}" for channel, at in self._gaps.keys() - self._closed]
        return found

    def _in_gap(self, from_ms: int, to_ms: int) -> bool:
        begin, end = clock(from_ms), clock(to_ms + SLACK_MS)
        assert begin is not None
        assert end is not None
        return any(
            opened <= end and (closed is None or begin <= closed)
            for (channel, opened), closed in {**self._gaps, **self._closed}.items()
            if channel == "websocket"
        )


def most_in(times_s: Sequence[float], span_s: float) -> int:
    """The most of them that lie in any ``span_s``; they are in order."""
    first = most = 0
    for nth, at_s in enumerate(times_s):
        while times_s[first] <= at_s - span_s:
            first += 1
        most = max(most, nth - first + 1)
    return most

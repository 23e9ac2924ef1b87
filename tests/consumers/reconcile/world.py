"""Facts to reconcile, made by hand: what a log would tell of calls at one connection."""

from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from typing import Any

import orjson

from consumers.reconcile.agents import Agent
from consumers.reconcile.completeness import Hour
from consumers.reconcile.core import Conversation, Core, Key
from consumers.reconcile.entries import Entry
from consumers.reconcile.facts import CallFact, Fact, Mark, read_fact
from consumers.reconcile.legs import Leg
from consumers.reconcile.verdicts import Rules
from ingest.eventlog.log import Record, StoredRecord
from ingest.reading import unknown_call

#: 2026-09-21T14:00:00Z, in milliseconds since 1970.
T0 = 1_789_999_200_000
SECOND, MINUTE, HOUR = 1000, 60_000, 3_600_000


class Memory:
    """Where the core's things lie, in a test."""

    def __init__(self) -> None:
        self.legs: dict[Key, Leg] = {}
        self.conversations: dict[Key, Conversation] = {}
        self.hours: dict[Key, Hour] = {}
        self.entry: dict[Key, Entry] = {}
        self.agent: dict[Key, Agent] = {}

    def leg(self, key: Key) -> Leg | None:
        return self.legs.get(key)

    def put_leg(self, leg: Leg) -> None:
        self.legs[leg.connection, leg.call_id] = leg

    def conversation(self, key: Key) -> Conversation | None:
        return self.conversations.get(key)

    def put_conversation(self, conversation: Conversation) -> None:
        self.conversations[conversation.connection, conversation.name] = conversation

    def every_conversation(self) -> Iterable[Conversation]:
        return list(self.conversations.values())

    def drop_conversation(self, key: Key) -> None:
        self.conversations.pop(key, None)

    def entries(self) -> Iterable[Entry]:
        return list(self.entry.values())

    def put_entry(self, entry: Entry) -> None:
        self.entry[entry.key] = entry

    def drop_entry(self, key: Key) -> None:
        self.entry.pop(key, None)

    def agents(self) -> Iterable[Agent]:
        return list(self.agent.values())

    def put_agent(self, agent: Agent) -> None:
        self.agent[agent.connection, agent.agent_id] = agent

    def hour(self, key: Key) -> Hour | None:
        return self.hours.get(key)

    def put_hour(self, hour: Hour) -> None:
        self.hours[hour.connection, str(hour.hour_ms)] = hour


def text(ms: int | None) -> str | None:
    if ms is None:
        return None
    return datetime.fromtimestamp(ms / 1000, UTC).isoformat(timespec="milliseconds")


def event(
    call_id: str,
    what: str,
    at_ms: int,
    *,
    time_ms: int | None = None,
    via: str = "webhook",
    connection: str = "acme",
    ident: str | None = None,
    **data: Any,
) -> CallFact:
    """A call event that was written at ``at_ms``; times in ``data`` are in milliseconds."""
    time_ms = at_ms - 500 if time_ms is None else time_ms
    for name in ("started_at", "rang_at", "connected_at", "ended_at"):
        if name in data:
            data[name] = text(data[name])
    envelope = {
        "specversion": "1.0",
        "id": ident or f"dialpad:{connection}:call:{call_id}:{what}:{time_ms}",
        "type": f"dialstream.call.{what}",
        "time": text(time_ms),
        "recordedtime": text(at_ms),
        "via": via,
        "provider": "dialpad",
        "connection": connection,
        "data": {**unknown_call(call_id, what), **data, "raw": {"id": call_id}},
    }
    fact = read_fact(StoredRecord("calls", 0, 0, at_ms, b"", orjson.dumps(envelope), ()))
    assert isinstance(fact, CallFact)
    return fact


def ended(call_id: str, at_ms: int, *, length_ms: int = 2 * MINUTE, **more: Any) -> CallFact:
    """The push of an end half a second ago, of an answered call."""
    end_ms = at_ms - 500
    data = {
        "started_at": end_ms - length_ms,
        "connected_at": end_ms - length_ms + 10 * SECOND,
        "ended_at": end_ms,
        "direction": "inbound",
        "outcome": "answered",
        "total_duration_s": length_ms / 1000,
        "talk_duration_s": length_ms / 1000 - 10,
        **more,
    }
    return event(call_id, "ended", at_ms, **data)


def record(
    call_id: str, end_ms: int, at_ms: int, *, length_ms: int = 2 * MINUTE, **more: Any
) -> CallFact:
    """The provider's own entry for the same call, read at ``at_ms``."""
    data = {
        "time_ms": end_ms,
        "via": "poll",
        "ident": f"dialpad:acme:record:{call_id}:{end_ms}:{length_ms}",
        "started_at": end_ms - length_ms,
        "connected_at": end_ms - length_ms + 10 * SECOND,
        "ended_at": end_ms,
        "direction": "inbound",
        "outcome": "answered",
        "total_duration_s": length_ms / 1000,
        "talk_duration_s": length_ms / 1000 - 10,
        **more,
    }
    return event(call_id, "recorded", at_ms, **data)


def mark(watermark_ms: int, at_ms: int, swept_ms: int | None = None) -> Mark:
    """The list was read up to there."""
    return Mark(
        connection="acme",
        agent_id="",
        watermark_ms=watermark_ms,
        swept_ms=swept_ms,
        at_ms=at_ms,
    )


def new_core(store: Memory | None = None, **more: Any) -> Core:
    options: dict[str, Any] = {
        "connections": ["acme", "quiet"],
        "judged": {"acme": 2 * HOUR},
        "since_ms": 0,
        "window_ms": 72 * HOUR,
        **more,
    }
    return Core(store or Memory(), Rules(), **options)


def history(core: Core, facts: Sequence[Fact], until_ms: int | None = None) -> list[Record]:
    """Everything that comes of facts, in the order of the log's clock, and of a long silence."""
    for fact in sorted(facts, key=lambda each: (each.at_ms, getattr(each, "id", ""))):
        core.take(fact)
    core.advance(until_ms or max(fact.at_ms for fact in facts) + 12 * HOUR)
    out, core.out = core.out, []
    return out


def events(out: Sequence[Record], topic: str) -> list[dict[str, Any]]:
    return [orjson.loads(each.value) for each in out if each.topic == topic and each.value]

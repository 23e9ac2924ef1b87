"""What reconciliation knows: facts, as the event log tells them. No I/O, and no clock.

A fact stands in the order of the **log's clock**. That is our clock when the provider's message had
been read (`recordedtime`), but not earlier than `LATE_MS` before the record was written: what lay
in a spool during an outage counts from when it came to the log. So the order is a property of the
log, and whoever reads it again finds the same one.
"""

from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any, TypeAlias

import msgspec
from msgspec import Meta, Struct

from ingest.eventlog.log import StoredRecord
from schemas.call import PROVE_STATE

#: A record is written so soon after its message was read, unless something was wrong. Beyond the
#: deadline of an answer, with room for clocks that differ.
LATE_MS = 10_000

#: Topics with facts.
TOPICS: Sequence[str] = ("calls", "checkpoints", "directory")


class Who(Struct, frozen=True, gc=False, omit_defaults=True):
    """A party of a call, see `schemas.base.Party`."""

    kind: str | None = None
    id: str | None = None
    name: str | None = None
    email: str | None = None
    number: str | None = None
    number_raw: str | None = None
    withheld: bool = False


NOBODY = Who()

Instant: TypeAlias = Annotated[datetime, Meta(tz=True)]


class CallData(Struct, gc=False, omit_defaults=True):
    """What `schemas.call.Call` says, but for what nobody here asks for."""

    call_id: str
    conversation_id: str
    related_call_ids: tuple[str, ...] = ()
    provider_state: str | None = None
    direction: str = "unknown"
    from_number: str | None = None
    to_number: str | None = None
    external: Who = NOBODY
    internal: Who = NOBODY
    target: Who = NOBODY
    started_at: Instant | None = None
    rang_at: Instant | None = None
    connected_at: Instant | None = None
    ended_at: Instant | None = None
    ring_duration_s: float | None = None
    talk_duration_s: float | None = None
    hold_duration_s: float | None = None
    total_duration_s: float | None = None
    outcome: str | None = None
    provider_outcome: str | None = None
    recordings: tuple[dict[str, Any], ...] = ()
    voicemail: dict[str, Any] | None = None
    transcript: dict[str, Any] | None = None
    recap: dict[str, Any] | None = None


class CallFact(Struct, gc=False):
    """One event about a leg."""

    #: The event's.
    id: str
    provider: str
    connection: str
    #: The last word of its type: ``ended``, ``recorded``, …
    what: str
    via: str
    #: The provider's clock, and the log's, in milliseconds since 1970.
    time_ms: int
    at_ms: int
    call: CallData
    #: Of a record, the whole event as it stands on the log: a lost push is mended from it.
    value: bytes | None = None

    @property
    def is_record(self) -> bool:
        """Whether it is the provider's own entry for the call, and no push."""
        return self.what == "recorded"


class Mark(Struct, gc=False, kw_only=True):
    """How far a connection's own records have been read."""

    connection: str
    #: Empty for the whole connection, else the agent whose records these are.
    agent_id: str
    #: All calls that began before it, and were listed then, are on the log.
    watermark_ms: int | None
    #: The end of the last deep sweep.
    swept_ms: int | None
    at_ms: int


class Listed(Struct, gc=False, kw_only=True):
    """An agent and its numbers, as the directory has them."""

    connection: str
    agent_id: str
    name: str | None
    numbers: tuple[str, ...]
    at_ms: int


Fact: TypeAlias = CallFact | Mark | Listed


class _CallEvent(Struct, gc=False):
    id: str
    type: str
    time: Instant
    recordedtime: Instant
    via: str
    provider: str
    connection: str
    data: CallData


class _DirectoryData(Struct, gc=False):
    kind: str
    id: str
    name: str | None = None
    numbers: tuple[str, ...] = ()


class _DirectoryEvent(Struct, gc=False):
    recordedtime: Instant
    connection: str
    data: _DirectoryData


class _Checkpoint(Struct, gc=False):
    generation: int
    watermark_ms: int | None = None
    swept_ms: int | None = None


_decode_call = msgspec.json.Decoder(_CallEvent).decode
_decode_directory = msgspec.json.Decoder(_DirectoryEvent).decode
_decode_checkpoint = msgspec.json.Decoder(_Checkpoint).decode


def read_fact(stored: StoredRecord) -> Fact | None:
    """The fact in a record of `TOPICS`; None if there is none in it.

    Raises ValueError if it was not written by us.
    """
    if stored.value is None:
        return None
    try:
        if stored.topic == "calls":
            return _call_fact(stored, stored.value)
        if stored.topic == "directory":
            return _listed(stored, stored.value)
        return _mark(stored, stored.value)
    except msgspec.MsgspecError as error:
        raise ValueError(f"{stored.topic}: no event of ours") from error


def _call_fact(stored: StoredRecord, value: bytes) -> CallFact | None:
    event = _decode_call(value)
    if event.data.provider_state == PROVE_STATE:
        return None  # nobody was on the phone
    what = event.type.rpartition(".")[2]
    return CallFact(
        event.id,
        event.provider,
        event.connection,
        what,
        event.via,
        ms_of(event.time),
        _at_ms(stored, ms_of(event.recordedtime)),
        event.data,
        value if what == "recorded" else None,
    )


def _listed(stored: StoredRecord, value: bytes) -> Listed | None:
    event = _decode_directory(value)
    if event.data.kind != "agent":
        return None
    return Listed(
        connection=event.connection,
        agent_id=event.data.id,
        name=event.data.name,
        numbers=event.data.numbers,
        at_ms=_at_ms(stored, ms_of(event.recordedtime)),
    )


def _mark(stored: StoredRecord, value: bytes) -> Mark | None:
    connection, _, source = stored.key.decode().partition("/")
    what, _, agent_id = source.partition("/")
    if what != "calls":
        return None
    checkpoint = _decode_checkpoint(value)
    return Mark(
        connection=connection,
        agent_id=agent_id,
        watermark_ms=checkpoint.watermark_ms,
        swept_ms=checkpoint.swept_ms,
        at_ms=stored.written_ms,
    )


def _at_ms(stored: StoredRecord, recorded_ms: int) -> int:
    # Neither may a clock that was ahead hold up everything behind it.
    written_ms = stored.written_ms
    if recorded_ms > written_ms:
        return written_ms
    return max(recorded_ms, written_ms - LATE_MS)


def ms_of(instant: datetime) -> int:
    """Milliseconds since 1970."""
    since = instant - _EPOCH
    # Half of what dividing by a timedelta takes.
    return (since.days * 86_400 + since.seconds) * 1000 + since.microseconds // 1000


_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

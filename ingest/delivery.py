"""What a transport hands over, and what a provider makes of it."""

from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NewType, Protocol, TypeAlias, TypeVar, runtime_checkable

from msgspec import Struct

from schemas.event import Event

if TYPE_CHECKING:
    from ingest.settings import Connection, Section


class Delivery(Struct, kw_only=True, gc=False):
    """One message as a transport received it. Nothing in it is trusted yet."""

    #: Name of the connection that it claims to be for.
    connection: str
    via: str
    #: As on the wire, names in lower case.
    headers: Sequence[tuple[bytes, bytes]]
    body: bytes
    #: Our clock when the last byte had been read, milliseconds since 1970.
    received_ms: int
    #: Kind of event that the address names, if any. The keys of the payload decide.
    hint: str | None = None


DAY_MS = 24 * 3600 * 1000

Verified = NewType("Verified", bytes)
"""Bytes that a signature covers. Only `Source.verify` makes them, and `ingest.redrive` of what that
has let in before."""


class Source(Protocol):
    """One connection's way of pushing events to us. No I/O, no clock of its own."""

    #: The channel that its events came by when they came over HTTP: ``webhook``, ``notification``.
    via: str
    #: Names of the headers that sign a body; kept with what cannot be read.
    signing_headers: Sequence[bytes]

    @property
    def former_seen(self) -> int | None:
        """How many deliveries another secret than the first has signed; None if there is one."""
        ...

    def verify(self, delivery: Delivery) -> Verified:
        """Return the signed bytes, or raise VerificationError."""
        ...

    def normalize(self, payload: Verified, delivery: Delivery) -> Sequence[Event]:
        """Translate signed bytes, or raise UnreadableError. One fact, one id, always.

        Raises VerificationError if they say of themselves that they are not valid now.
        """
        ...


class Stream(Protocol):
    """One connection's websocket at the provider. Its frames are read by the same `Source`."""

    async def url(self) -> str:
        """A fresh address to connect to, good for one connection. It is a secret.

        Takes the websocket that is ours, and makes it if there is none. Raises ApiError.
        """
        ...


class Records(Protocol):
    """One connection's own lists at the provider, read back.

    Everything comes as events, an item that cannot be read as a reject. Raises ApiError; what was
    yielded before is good.
    """

    def calls(self, from_ms: int, to_ms: int, via: str) -> AsyncIterator[Sequence[Event]]:
        """``call.recorded`` of the calls that began in [from, to), a page at a time.

        Others may be among them. ``via``: ``poll`` or ``backfill``.
        """
        ...

    def also(self, what: str, call_ids: Sequence[str], via: str) -> AsyncIterator[Sequence[Event]]:
        """What the setting `poll.also` names; transcripts and recaps of these calls."""
        ...


@runtime_checkable
class CallRecords(Records, Protocol):
    """The same where a single call can be read again."""

    async def call(self, call_id: str, via: str) -> Sequence[Event]:
        """``call.recorded`` of it as it stands now; none if the provider has no such call (yet)."""
        ...


@runtime_checkable
class RecordingRecords(Records, Protocol):
    """The same where recordings are a list of their own."""

    def recordings(self, from_ms: int, to_ms: int, via: str) -> AsyncIterator[Sequence[Event]]:
        """``call.recording_ready`` of those that have changed in [from, to), a page at a time.

        Others may be among them.
        """
        ...


class AgentRecords(Records, Protocol):
    """The same where a provider keeps its records by agent: they are read agent by agent."""

    def agents(self, via: str) -> AsyncIterator[Sequence[Event]]:
        """``directory.listed`` of every agent that the key may read now, a page at a time."""
        ...

    def calls_of(
        self, agent_id: str, from_ms: int, to_ms: int, via: str
    ) -> AsyncIterator[Sequence[Event]]:
        """As `calls`, of one agent. Raises ApiError ``not_found`` if it is gone, or not shared."""
        ...

    def versions_of(self, agent_id: str, via: str) -> AsyncIterator[Sequence[Event]]:
        """``change.versioned`` of all versions of an agent, in no order that is known."""
        ...


class Signed(Struct, frozen=True):
    """A payload as a provider would send it."""

    headers: Mapping[str, str]
    body: bytes


T = TypeVar("T")
Open: TypeAlias = "Callable[[str, Connection], AbstractAsyncContextManager[T]]"


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """What a provider has; registered in `ingest.providers`."""

    name: str
    #: Makes the source of a connection that is pushed to us.
    webhook: "Callable[[Connection], Source]"
    #: Signs a payload as the provider would, with the connection's first secret. Raises ConfigError
    #: if that cannot be used.
    sign: "Callable[[bytes, Connection], Signed]"
    #: What a body says, without a look at its signature. Only for what was let in before. Raises
    #: UnreadableError.
    payload_of: Callable[[bytes], bytes] = bytes
    #: Opens what it has of these for a connection by its name.
    stream: "Open[Stream] | None" = None
    records: "Open[Records] | None" = None
    #: The same records, where they are kept by agent.
    agent_records: "Open[AgentRecords] | None" = None
    #: What the setting `poll.also` may name.
    also: Sequence[str] = ()
    #: The longest stretch of time that its records are asked for at once, in milliseconds. If that
    #: fails, it is read again as a whole.
    slice_ms: int = DAY_MS
    #: Whether it can be told something: the section `sink` of the settings.
    takes_commands: bool = False
    #: The model of the setting `assume`: what the provider's documentation leaves open.
    assumptions: "type[Section] | None" = None

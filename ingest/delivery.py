"""What a transport hands over, and what a provider makes of it."""

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, NewType, Protocol

from msgspec import Struct

from schemas.event import Event

if TYPE_CHECKING:
    from ingest.settings import Connection


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


Verified = NewType("Verified", bytes)
"""Bytes that a signature covers. Only `Source.verify` makes them."""


class Source(Protocol):
    """One connection's way of pushing events to us. No I/O, no clock of its own."""

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

        ``via``: ``poll`` or ``backfill``.
        """
        ...

    def also(self, what: str, call_ids: Sequence[str], via: str) -> AsyncIterator[Sequence[Event]]:
        """What the setting `poll.also` names; transcripts and recaps of these calls."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Provider:
    """What a provider has; registered in `ingest.providers`."""

    name: str
    #: Makes the source of a connection that is pushed to us.
    webhook: "Callable[[Connection], Source]"
    #: Signs a payload as the provider would: (payload, secret) -> body.
    sign: Callable[[bytes, bytes], bytes]
    #: Opens what it has of these for a connection by its name.
    stream: "Callable[[str, Connection], AbstractAsyncContextManager[Stream]] | None" = None
    records: "Callable[[str, Connection], AbstractAsyncContextManager[Records]] | None" = None

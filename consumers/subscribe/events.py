"""What handlers get, and what they may say of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Generic, Literal, TypeVar

from ingest.eventlog.log import StoredRecord
from schemas.base import Model
from schemas.event import Envelope

M_co = TypeVar("M_co", bound=Model, covariant=True)


class RejectError(Exception):
    """Raised by a handler: this can never be handled, however often it is tried.

    The event goes to ``rejects.<group>``, its bytes as they stood, and the group goes on.
    ``reason``: a short word; ``detail``: more, without content. Whoever looks at rejects sees both,
    as far as `REASON_MAX` and `DETAIL_MAX` letters go.
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(reason)
        self.reason = _text(reason)[:REASON_MAX]
        self.detail = _text(detail)[:DETAIL_MAX]


REASON_MAX, DETAIL_MAX = 100, 1000


def _text(given: object) -> str:
    """What can be written down, also if it is no text: an exception's could be content."""
    text = given if isinstance(given, str) else type(given).__name__
    return text.encode(errors="replace").decode()


_LEAST_S, _MOST_S = 0.1, 86_400.0


class NotNowError(Exception):
    """Raised by a handler: not now; what it needs is away, and the event is not to blame.

    Nothing of the event's partition is handled for ``after_s`` seconds, a tenth at least and a day
    at most, then this is tried again, for as long as it takes. Other partitions go on.
    """

    def __init__(self, after_s: float = 5.0) -> None:
        super().__init__(f"again in {after_s} s")
        self.after_s = min(max(_LEAST_S, after_s), _MOST_S)


@dataclass(frozen=True, slots=True, kw_only=True)
class Retry:
    """What follows when a handler raises anything else, or takes longer than it may.

    Anything but KeyboardInterrupt and SystemExit: with those the subscriber ends, as by "stop".

    It is called again ``first_s`` later, then after twice as long each time, ``most_s`` at most;
    meanwhile later events of the key wait, other keys go on, those of its partition as far as some
    thousand events behind it. After ``tries`` calls (None: never):

    * ``then="reject"``, the default: the event goes to ``rejects.<group>`` and the group goes on,
      unless it is not the event's fault: once `BROKEN` events in a row have come to that in one
      handler, it holds instead until one can be handled. Nothing is lost, and nothing spins.
    * ``then="hold"``: as `NotNowError`, every ``most_s``, until it can be handled.
    * ``then="stop"``: the subscriber ends, and `Subscriber.run` raises what the handler raised.
      Nothing is committed of the event: it comes again at the next start.
    """

    tries: int | None = 5
    first_s: float = 0.5
    most_s: float = 30.0
    then: Literal["reject", "hold", "stop"] = "reject"

    def __post_init__(self) -> None:
        if (self.tries is not None and self.tries < 1) or not 0 < self.first_s <= self.most_s:
            raise ValueError("tries is at least 1, and 0 < first_s <= most_s")

    def pause_s(self, failures: int) -> float:
        """How long to wait after so many failures of one event."""
        return min(self.most_s, self.first_s * 2.0 ** min(failures - 1, 30))


#: So many events in a row that a handler fails for good are not to blame themselves.
BROKEN = 10


class _Placed:
    """Something at a place on the log."""

    __slots__ = ("_stored",)

    def __init__(self, stored: StoredRecord) -> None:
        self._stored = stored

    @property
    def key(self) -> str:
        """What order is kept of: the connection, then the rest of its topic's key, by ``/``."""
        return self._stored.key.decode(errors="replace")

    @property
    def connection(self) -> str:
        return self.key.partition("/")[0]

    @property
    def topic(self) -> str:
        """Without the prefix."""
        return self._stored.topic

    @property
    def partition(self) -> int:
        return self._stored.partition

    @property
    def position(self) -> int:
        """Rises within a partition, and so within a key; never used twice."""
        return self._stored.position

    @property
    def written_at(self) -> datetime:
        """When it was written to the log, by our clock."""
        return datetime.fromtimestamp(self._stored.written_ms / 1000, UTC)

    def __repr__(self) -> str:  # no content
        return f"<{type(self).__name__} {self.topic}/{self.partition}/{self.position}>"


class Event(_Placed, Generic[M_co]):
    """An event where it stands on the log; a handler gets it as its second argument."""

    __slots__ = ("_envelope", "data")

    def __init__(self, stored: StoredRecord, data: M_co) -> None:
        super().__init__(stored)
        self._envelope: Envelope | None = None
        #: What a handler gets as its first argument.
        self.data = data

    @property
    def id(self) -> str:
        """The same for every repeat of the fact."""
        return self._header("ce_id") or self.envelope.id

    @property
    def type(self) -> str:
        """Such as ``dialstream.call.ended``."""
        return self._header("ce_type") or self.envelope.type

    @property
    def value(self) -> bytes:
        """The CloudEvent as it was written."""
        return self._stored.value or b""

    @property
    def envelope(self) -> Envelope:
        """All attributes of the event; read when somebody asks, which takes a while."""
        if self._envelope is None:
            self._envelope = Envelope.model_validate_json(self.value)
        return self._envelope

    def _header(self, name: str) -> str:
        found: Mapping[str, bytes] = dict(self._stored.headers)
        return found.get(name, b"").decode(errors="replace")


class Deleted(_Placed):
    """A key of a compacted topic of which nothing is left: whatever was known of it is void."""

    __slots__ = ()

    @property
    def name(self) -> str:
        """The key without its connection: the id of the conversation, of the contact, …"""
        return self.key.partition("/")[2]

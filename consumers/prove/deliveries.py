"""What is posted: marked deliveries of calls that nobody has made, and the ids that they must get.

Dialpad has no word like ours for a state, and DialLink no such type. So readers see
``dialstream.call.unknown`` with ``provider_state: "dialstream_prove"``, or
``dialstream.notification.received`` with ``notification_type: "dialstream.prove"``: nothing rings,
ends, or counts as a call that somebody missed. Ids are written here as the contract has them.
"""

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

from ingest.delivery import Signed
from ingest.errors import ConfigError
from ingest.providers import PROVIDERS
from ingest.settings import Connection
from ingest.signing import sign_standard_webhooks
from schemas.call import PROVE_STATE
from schemas.times import now_ms, rfc3339

TYPE = "dialstream.prove"

#: Above every id that Dialpad gives, and below what it could.
_FIRST_ID, _IDS = 9 * 10**18, 10**17

#: Of the usual size of an event, so that batches and pages are as large as they are in earnest.
_FILLING = "filling of the usual size " * 10


@dataclass(slots=True)
class Delivery:
    """One delivery, and what came of every try."""

    maker: "Maker"
    leg: int
    seq: int
    #: Of the happening, milliseconds since 1970; rises within a leg.
    at_ms: int
    tries: list[int | None] = field(default_factory=list)

    @property
    def id(self) -> str:
        return self.maker.event_id(self)

    @property
    def payload(self) -> bytes | None:
        """Made anew each time: a long experiment posts more than fits into memory."""
        return self.maker.payload(self) if self.maker.raw_is_kept else None


class Maker(Protocol):
    """Makes deliveries of one connection."""

    #: Where their events go.
    topic: str
    #: Whether events hold what was posted; the setting `privacy.drop` may say otherwise.
    raw_is_kept: bool
    #: In every event, and in no other.
    mark: bytes

    def event_id(self, delivery: Delivery) -> str: ...

    def payload(self, delivery: Delivery) -> bytes: ...

    def sign(self, delivery: Delivery) -> Signed:
        """As the provider would send it now."""
        ...


def maker_for(name: str, connection: Connection) -> Maker:
    """Raises ConfigError where the provider pushes nothing, or without a secret."""
    made: type[_Dialpad | _DialLink]
    if connection.provider == "dialpad":
        made = _Dialpad
    elif connection.provider == "diallink" and connection.assume.get("notifications") != "token":
        made = _DialLink
    else:
        raise ConfigError(
            f"connections.{name}: prove signs what Dialpad or DialLink would post, and "
            f"{connection.provider} signs nothing: name another one with --connection"
        )
    try:
        connection.signing_secrets()
    except ConfigError as error:
        raise ConfigError(*(f"connections.{name}.{fault}" for fault in error.faults)) from None
    return made(name, connection)


class _Dialpad:
    topic = "calls"

    def __init__(self, name: str, connection: Connection) -> None:
        self._name = name
        self._connection = connection
        self._first_id = _FIRST_ID + secrets.randbelow(_IDS)
        self._run = f"{PROVE_STATE} {secrets.token_hex(4)}"
        self.mark = self._run.encode()
        self.raw_is_kept = "raw" not in connection.privacy.drop

    def event_id(self, delivery: Delivery) -> str:
        call_id = self._first_id + delivery.leg
        return f"dialpad:{self._name}:call:{call_id}:{PROVE_STATE}:{delivery.at_ms}"

    def payload(self, delivery: Delivery) -> bytes:
        number = f"+1206555{100 + delivery.leg % 100:04d}"  # set aside for fiction
        who = {"email": "", "phone": number, "name": "dialstream prove"}
        return _json(
            {
                "call_id": self._first_id + delivery.leg,
                "state": PROVE_STATE,
                "direction": "inbound",
                "event_timestamp": delivery.at_ms,
                "date_started": delivery.at_ms - 1000 * delivery.seq,
                "date_rang": delivery.at_ms - 1000 * delivery.seq,
                "date_connected": None,
                "date_ended": None,
                "duration": delivery.seq * 1000.25,
                "total_duration": delivery.seq * 1000.75,
                "external_number": number,
                "internal_number": "+12065550199",
                "contact": {"id": 1_000_001, "type": "local", **who},
                "target": {"id": 1_000_002, "type": "user", "office_id": 1_000_003, **who},
                "target_availability_status": "open",
                "entry_point_call_id": None,
                "entry_point_target": {},
                "operator_call_id": None,
                "proxy_target": {},
                "group_id": None,
                "master_call_id": None,
                "is_transferred": False,
                "labels": [],
                "routing_breadcrumbs": [],
                "was_recorded": False,
                "call_recording_ids": [],
                "recording_details": [],
                "integrations": {},
                "custom_data": f"{self._run}, leg {delivery.leg}, event {delivery.seq}: {_FILLING}",
            }
        )

    def sign(self, delivery: Delivery) -> Signed:
        return PROVIDERS["dialpad"].sign(self.payload(delivery), self._connection)


class _DialLink:
    topic = "notifications"

    def __init__(self, name: str, connection: Connection) -> None:
        self._name = name
        self._connection = connection
        self._run = f"prove_{secrets.token_hex(8)}"
        self.mark = self._run.encode()
        self.raw_is_kept = "raw" not in connection.privacy.drop

    def event_id(self, delivery: Delivery) -> str:
        return f"diallink:{self._name}:notification:{self._webhook_id(delivery)}"

    def payload(self, delivery: Delivery) -> bytes:
        about = {"leg": delivery.leg, "event": delivery.seq, "filling": _FILLING * 5}
        return _json(
            {
                "type": TYPE,
                "timestamp": rfc3339(delivery.at_ms),
                "data": {"run": self._run, **about},
            }
        )

    def sign(self, delivery: Delivery) -> Signed:
        payload = self.payload(delivery)
        secret, *_ = self._connection.signing_secrets()
        ident = self._webhook_id(delivery)
        headers = sign_standard_webhooks(payload, secret, ident, now_ms() // 1000)
        return Signed({"content-type": "application/json", **headers}, payload)

    def _webhook_id(self, delivery: Delivery) -> str:
        return f"{self._run}_{delivery.leg}_{delivery.seq}"


def _json(value: Mapping[str, object]) -> bytes:
    return json.dumps(value).encode()

"""What stands on the log of what was judged there, as whoever reads it in the end finds it."""

import hashlib
from collections import defaultdict
from copy import deepcopy
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import msgspec
import orjson
from msgspec import Struct

from ingest.eventlog.log import StoredRecord

#: Topics that are listened to.
TOPICS = ("calls", "gaps", "ledger", "verdicts")


class Said(Struct):
    """`data` of a verdict."""

    verdict: str
    n: int
    call_id: str
    pushed_call_id: str | None
    recorded_call_id: str | None
    pushed_connection: str
    recorded_connection: str
    reason: str | None
    differences: list[dict[str, Any]]
    revises: str | None

    @property
    def fields(self) -> str:
        """Those that differ."""
        return ",".join(sorted(each["field"] for each in self.differences))

    @property
    def is_within(self) -> bool:
        """Whether it is about a call's own provider, and not about a pair."""
        return self.pushed_connection == self.recorded_connection


class GivenVerdict(Struct):
    id: str
    subject: str
    time: str
    data: Said

    @property
    def at_ms(self) -> int:
        return ms_of(self.time)


class _GapData(Struct):
    channel: str
    since: str = msgspec.field(name="from")
    to: str | None = None


class _Gap(Struct):
    type: str
    data: _GapData


_decode_verdict = msgspec.json.Decoder(GivenVerdict).decode
_decode_gap = msgspec.json.Decoder(_Gap).decode


@dataclass(slots=True)
class HeardGap:
    """Times in milliseconds since 1970; opened and closed by the log's clock."""

    channel: str
    from_ms: int
    to_ms: int | None
    opened_ms: int
    closed_ms: int | None = None


class Heard:
    """Listens to what is written."""

    def __init__(self) -> None:
        #: By id.
        self.verdicts: dict[str, GivenVerdict] = {}
        #: Of ids that stand for two contents.
        self.unlike: set[str] = set()
        #: Calls of which an ending was published in the place of a lost one.
        self.mended: set[str] = set()
        self.gaps: dict[tuple[str, str], HeardGap] = {}
        #: Key → what stands there.
        self.last_hours: dict[bytes, bytes] = {}
        self.ledger: dict[bytes, bytes] = {}
        self._digests: dict[str, bytes] = {}

    def copy(self) -> "Heard":
        """The same once more."""
        return deepcopy(self)

    def hear(self, stored: StoredRecord) -> None:
        """Take in a record of `TOPICS`."""
        if stored.topic == "ledger":
            if stored.value is None:
                self.ledger.pop(stored.key, None)
            else:
                self.ledger[stored.key] = stored.value
            return
        headers = dict(stored.headers)
        assert stored.value is not None
        if stored.topic == "gaps":
            self._hear_gap(stored, stored.value)
        elif stored.topic == "calls":
            if headers["ce_id"].endswith(b":backfilled"):
                self.mended.add(stored.key.decode().partition("/")[2])
        elif self._is_new(headers["ce_id"].decode(), stored.value):
            if headers["ce_type"].startswith(b"dialstream.completeness"):
                self.last_hours[stored.key] = stored.value
            else:
                verdict = _decode_verdict(stored.value)
                self.verdicts[verdict.id] = verdict

    def _is_new(self, ident: str, value: bytes) -> bool:
        """Whoever says it again, after a crash or without a memory, says the same."""
        digest = hashlib.sha256(value).digest()
        known = self._digests.setdefault(ident, digest)
        if known != digest:
            self.unlike.add(ident)
        return known is digest

    def _hear_gap(self, stored: StoredRecord, value: bytes) -> None:
        gap = _decode_gap(value)
        key, to = (gap.data.channel, gap.data.since), gap.data.to
        if gap.type.endswith("opened"):
            to_ms = None if to is None else ms_of(to)
            heard = HeardGap(key[0], ms_of(key[1]), to_ms, stored.written_ms)
            self.gaps.setdefault(key, heard)
        elif self.gaps[key].closed_ms is None:
            self.gaps[key].closed_ms = stored.written_ms

    def standing(self) -> list[GivenVerdict]:
        """Of each subject and two connections that with the highest n, unless it is void."""
        last: dict[tuple[str, str, str], GivenVerdict] = {}
        void = set()
        for each in self.verdicts.values():
            key = each.subject, each.data.pushed_connection, each.data.recorded_connection
            if key not in last or last[key].data.n < each.data.n:
                last[key] = each
            if each.data.revises is not None:
                void.add(each.data.revises)
        return [each for each in last.values() if each.id not in void]

    def hours(self) -> dict[int, dict[str, Any]]:
        """Hour, in milliseconds since 1970 → what was measured last."""
        found = [orjson.loads(value)["data"] for value in self.last_hours.values()]
        return {ms_of(data["hour"]): data for data in found}

    def rows(self) -> dict[tuple[str, str], list[dict[str, Any]]]:
        """Connection and call → the rows of the ledger in which it is."""
        rows: defaultdict[tuple[str, str], list[dict[str, Any]]] = defaultdict(list)
        for key, value in self.ledger.items():
            data = orjson.loads(value)["data"]
            for call_id in data["call_ids"]:
                rows[key.decode().partition("/")[0], call_id].append(data)
        return dict(rows)


def ms_of(text: str) -> int:
    """Milliseconds since 1970 of RFC 3339."""
    return round(datetime.fromisoformat(text).timestamp() * 1000)

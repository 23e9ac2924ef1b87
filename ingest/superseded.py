"""What comes late must not take the place of what is newer where a topic keeps each key's last."""

from datetime import datetime

import orjson

from ingest.eventlog.kinds import read_once
from ingest.eventlog.log import Behind, Place, StoredRecord
from ingest.settings import Settings
from schemas.topics import TOPICS


class LastStates:
    """When the last states of the compacted topics were recorded, as far as was looked.

    Others write meanwhile: whoever works in batches looks before each.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        #: Topic → key → our clock, milliseconds since 1970.
        self._known: dict[str, dict[bytes, int]] = {}
        #: What was read last in each partition.
        self._positions: dict[Place, int] = {}

    async def look(self) -> None:
        """Read what has come since on the topics that have mattered so far."""
        for topic in self._known:
            await self._read(topic)

    async def supersede(self, topic: str, key: bytes, recorded_ms: int) -> bool:
        """Whether a state that was recorded later is there; if not, this one counts from now on."""
        if not TOPICS[topic].compacted:
            return False
        if topic not in self._known:
            self._known[topic] = {}
            await self._read(topic)
        known = self._known[topic]
        if known.get(key, 0) > recorded_ms:
            return True
        known[key] = recorded_ms
        return False

    async def _read(self, topic: str) -> None:
        known = self._known[topic]
        async for stored in read_once(self._settings, [topic], Behind(dict(self._positions))):
            self._positions[topic, stored.partition] = stored.position
            known[stored.key] = max(known.get(stored.key, 0), _recorded_ms(stored))


def _recorded_ms(stored: StoredRecord) -> int:
    try:
        text = orjson.loads(stored.value or b"")["recordedtime"]
        return round(datetime.fromisoformat(text).timestamp() * 1000)
    except (ValueError, TypeError, KeyError):  # a tombstone, or none of ours
        return stored.written_ms

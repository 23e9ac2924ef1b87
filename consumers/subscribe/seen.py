"""What was handled lately, to know repeats by."""

from ingest.eventlog.log import StoredRecord
from schemas.topics import TOPICS

_STATES = frozenset(topic.name for topic in TOPICS.values() if topic.compacted)


def is_state(stored: StoredRecord) -> bool:
    """Whether its topic keeps the last state of each key."""
    return stored.topic in _STATES


class Seen:
    """Remembers at least half of ``most`` ids, the latest.

    Where a topic keeps the last state of each key, an earlier state may come again: there only what
    equals the last one of its key is a repeat.
    """

    def __init__(self, most: int) -> None:
        self._half = most // 2
        self._young: dict[bytes | tuple[str, bytes], bytes] = {}
        self._old: dict[bytes | tuple[str, bytes], bytes] = {}

    def is_repeat(self, stored: StoredRecord, ident: bytes) -> bool:
        name = (stored.topic, stored.key) if is_state(stored) else ident
        known = self._young.get(name)
        if known is None:
            known = self._old.get(name)
        return known == ident

    def note(self, stored: StoredRecord, ident: bytes) -> None:
        """This was handled; a deletion has the id ``b""``."""
        name = (stored.topic, stored.key) if is_state(stored) else ident
        self._young[name] = ident
        if len(self._young) > self._half:
            self._old, self._young = self._young, {}

    def forget_states(self) -> None:
        """Others may have handled what came meanwhile."""
        for names in (self._young, self._old):
            for name in [name for name in names if isinstance(name, tuple)]:
                del names[name]

"""The topics, each in one line. Names are without the prefix, which is a setting."""

from collections.abc import Mapping
from dataclasses import dataclass

DAY_S = 86_400


@dataclass(frozen=True, slots=True, kw_only=True)
class Topic:
    """Where events of some subjects go, and for how long they stay."""

    name: str
    #: What the key is made of, joined by ``/``.
    key: tuple[str, ...]
    #: Subjects of the events in it; none where it holds no events.
    subjects: tuple[str, ...]
    holds: str
    #: How long a record stays, in seconds; None: compacted, the last record of each key stays.
    retention_s: int | None = 30 * DAY_S
    #: Compacted, but not before a record is this old, in seconds.
    compaction_lag_s: int = 0
    #: The partition is computed from the connection, the key's first part, and not from all of it.
    by_connection: bool = False

    @property
    def compacted(self) -> bool:
        return self.retention_s is None


TOPICS: Mapping[str, Topic] = {
    topic.name: topic
    for topic in (
        Topic(
            name="calls",
            key=("connection", "call_id"),
            subjects=("call",),
            holds="call events, pushed and from records alike",
        ),
        Topic(
            name="messages",
            key=("connection", "message_id"),
            subjects=("message",),
            holds="message events",
        ),
        Topic(
            name="contacts",
            key=("connection", "contact_id"),
            subjects=("contact",),
            holds="contact events; after a deletion its tombstone",
            retention_s=None,
        ),
        Topic(
            name="agents",
            key=("connection", "agent_id"),
            subjects=("agent",),
            holds="agent status",
        ),
        Topic(
            name="changes",
            key=("connection",),
            subjects=("change",),
            holds="change log, agent versions",
            retention_s=90 * DAY_S,
        ),
        Topic(
            name="consents",
            key=("connection", "number"),
            subjects=("consent",),
            holds="opt-outs",
            retention_s=None,
        ),
        Topic(
            name="directory",
            key=("connection", "kind", "id"),
            subjects=("directory",),
            holds="users, agents, offices, centres, numbers",
            retention_s=None,
        ),
        Topic(
            name="notifications",
            key=("connection",),
            subjects=("notification",),
            holds="notifications of no other subject",
        ),
        Topic(
            name="gaps",
            key=("connection",),
            subjects=("gap",),
            holds="gaps opened and closed",
            retention_s=90 * DAY_S,
        ),
        Topic(
            name="verdicts",
            key=("connection", "call"),
            subjects=("verdict", "completeness"),
            holds="verdicts, completeness per hour",
            retention_s=90 * DAY_S,
        ),
        Topic(
            name="ledger",
            key=("connection", "conversation"),
            subjects=("conversation",),
            holds="one record per conversation: all legs, merged",
            retention_s=None,
        ),
        Topic(
            name="rejects",
            key=("connection",),
            subjects=("reject",),
            holds="rejects: bytes, reason, where they came from",
        ),
        Topic(
            name="checkpoints",
            key=("connection", "source"),
            subjects=(),
            holds="how far each poller has come, who owns it",
            retention_s=None,
            compaction_lag_s=3 * DAY_S,  # reconciliation replays its window
            by_connection=True,  # whoever is assigned the partition owns the connection
        ),
    )
}

TOPIC_OF: Mapping[str, str] = {
    subject: topic.name for topic in TOPICS.values() for subject in topic.subjects
}
"""Subject of an event → name of its topic."""


def partition_key(topic: str, key: bytes) -> bytes:
    """What the partition of a record is computed from."""
    known = TOPICS.get(topic)
    return key.partition(b"/")[0] if known is not None and known.by_connection else key


#: The largest record, in bytes; ``max.message.bytes`` of every topic.
MAX_RECORD_BYTES = 4 * 1024 * 1024

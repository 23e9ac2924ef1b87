"""Effects exactly once: a handler remembers in its own transaction what it has handled."""

from typing import Any, Protocol

from consumers.subscribe.events import Deleted, Event
from schemas.base import Model
from schemas.topics import TOPICS

ONCE_TABLE = """
create table if not exists handled_events (
    name text primary key,
    topic text not null,
    log_partition bigint not null,
    log_position bigint not null,
    at timestamp not null default current_timestamp
)
"""
"""Makes the table that `once` needs; for SQLite and PostgreSQL."""

_INSERT = """
insert into handled_events (name, topic, log_partition, log_position)
values ({0}, {0}, {0}, {0}) on conflict (name) do
"""

_UPDATE = """
update set log_partition = excluded.log_partition, log_position = excluded.log_position,
    at = current_timestamp
where excluded.log_partition <> handled_events.log_partition
    or excluded.log_position > handled_events.log_position
"""


class Cursor(Protocol):
    """A cursor of the DB-API (PEP 249)."""

    @property
    def rowcount(self) -> int: ...

    def execute(self, statement: str, parameters: tuple[Any, ...], /) -> Any: ...


def once(
    cursor: Cursor, event: Event[Model] | Deleted, mark: str = "?", *, effect: str = ""
) -> bool:
    """Whether the event is handled for the first time; says so in the cursor's transaction.

    If it is, write what follows from it in the same transaction, then commit: either both are kept
    or none is, and however often the event comes, it has its effects once. ``mark``: of parameters,
    ``?`` in SQLite, ``%s`` in PostgreSQL. ``effect``: a name for what follows; groups and handlers
    that share the table each need their own, or the second is told that all is done.

    Handlers run side by side: one that awaits before it commits needs a connection of its own, or
    others commit with theirs what it has half done.

    An event is known by its id; where the topic keeps the last state of each key, by the key and
    the position, which has to be behind the last one, so that a state may come again. Rows of other
    topics can be deleted once a provider does not repeat itself after so long, some days; a topic's
    own have to be once it is made anew.
    """
    keeps_states = TOPICS[event.topic].compacted if event.topic in TOPICS else False
    statement = _INSERT.format(mark) + (_UPDATE if keeps_states else "nothing")
    name = f"{event.topic}/{event.key}" if isinstance(event, Deleted) or keeps_states else event.id
    if effect:
        name = f"{effect}/{name}"
    cursor.execute(statement, (name, event.topic, event.partition, event.position))
    return cursor.rowcount == 1

# ruff: noqa: INP001
"""Every call that has ended, in a database of one's own, exactly once.

    python deploy/examples/exactly_once.py calls.sqlite

It reads the stream that `dialstream.toml`, or DIALSTREAM_…, names. Kill it as often as you like.
"""

import sqlite3
import sys

from consumers.subscribe import ONCE_TABLE, Event, Subscriber, once
from schemas.call import Call

subscriber = Subscriber(group="reporting")

db = sqlite3.connect(sys.argv[1])
db.execute("pragma journal_mode = wal")
db.execute(ONCE_TABLE)
db.execute("create table if not exists agents (name text primary key, calls integer not null)")


@subscriber.on(Call, types=("call.ended",))
async def count(call: Call, event: Event[Call]) -> None:
    """Add one to the calls of an agent: an effect that must not happen twice."""
    # One transaction: what the event has done, and that it was handled. Nothing is awaited in it,
    # so all handlers can share the connection.
    with db:
        if once(db.cursor(), event):
            db.execute(
                "insert into agents values (?, 1)"
                " on conflict (name) do update set calls = agents.calls + 1",
                (call.target.name or "nobody",),
            )


subscriber.run_forever()

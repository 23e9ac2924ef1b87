"""`dialstream tail`: the stream on a terminal, or a line of JSON for each event."""

import asyncio
import difflib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import orjson
from rich.console import Console
from rich.text import Text

from consumers.render import line, printable
from ingest.errors import ConfigError
from ingest.eventlog.kinds import open_reader
from ingest.eventlog.log import Start, StoredRecord
from ingest.logs import setup_logs
from ingest.settings import Settings
from schemas.topics import TOPIC_OF, TOPICS


@dataclass(frozen=True, slots=True)
class Wanted:
    """Which events are shown."""

    subjects: frozenset[str]
    type: str | None
    connection: str | None
    id: str | None
    tombstones: bool

    @classmethod
    def of(
        cls,
        subjects: Sequence[str],
        type_: str | None,
        connection: str | None,
        ident: str | None,
        *,
        tombstones: bool,
    ) -> "Wanted":
        """Raises ConfigError for subjects that do not exist."""
        faults = []
        for subject in subjects:
            if subject not in TOPIC_OF:
                near = difflib.get_close_matches(subject, TOPIC_OF, 1, 0.5)
                mend = f"did you mean {near[0]}?" if near else f"known: {', '.join(TOPIC_OF)}"
                faults.append(f"there is no subject {subject!r}: {mend}")
        if faults:
            raise ConfigError(*faults)
        if type_ is not None:
            type_ = f"dialstream.{type_.removeprefix('dialstream.')}"
        return cls(frozenset(subjects), type_, connection, ident, tombstones)

    @classmethod
    def everything(cls) -> "Wanted":
        return cls(frozenset(), None, None, None, tombstones=False)

    @property
    def topics(self) -> list[str]:
        if self.subjects:
            return sorted({TOPIC_OF[subject] for subject in self.subjects})
        return [topic.name for topic in TOPICS.values() if topic.subjects]

    def matches(self, stored: StoredRecord) -> bool:
        """By the headers, so that what is not shown is not parsed."""
        if self.connection not in (None, _text(stored.key).split("/")[0]):
            return False
        if stored.value is None:
            return self.tombstones and self.type is None and self.id is None
        headers = dict(stored.headers)
        kind = headers.get("ce_type", b"").decode(errors="replace")
        return (
            (
                not self.subjects
                or kind.removeprefix("dialstream.").partition(".")[0] in self.subjects
            )
            and self.type in (None, kind)
            and self.id in (None, headers.get("ce_id", b"").decode(errors="replace"))
        )


def follow_stream(
    settings: Settings,
    wanted: Wanted,
    *,
    from_beginning: bool,
    until_end: bool,
    count: int | None,
    as_json: bool,
) -> int:
    """Show what is wanted until ``count``, the end if ``until_end``, or Ctrl-C; the exit code."""
    logs = setup_logs(settings.logging.format, "warning")
    console = _Console(highlight=False, soft_wrap=True)
    show = _show_json if as_json else partial(_show, console)

    async def run() -> None:
        shown = 0
        start: Start = "earliest" if from_beginning else "latest"
        async with open_reader(settings, wanted.topics, start=start) as reader:
            while True:
                for stored in await reader.fetch(wait_s=0.2):
                    if wanted.matches(stored):
                        show(stored)
                        shown += 1
                        if shown == count:
                            return
                sys.stdout.flush()
                if until_end and await reader.caught_up():
                    return

    try:
        asyncio.run(run())
    except KeyboardInterrupt:
        return 0
    except BrokenPipeError:  # `dialstream tail | head`
        # Python would complain once more when it flushes what nobody reads.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    finally:
        logs.close()
    return 0


class _Console(Console):
    def on_broken_pipe(self) -> None:
        raise BrokenPipeError  # rich would end the process with 1


def _show(console: Console, stored: StoredRecord) -> None:
    """A line for people."""
    where = printable(f"{stored.topic} {_text(stored.key)}")
    if stored.value is None:
        console.print(Text(f"          deleted  {where}", "dim"))
        return
    try:
        text = line(orjson.loads(stored.value))
    except (ValueError, LookupError, TypeError, AttributeError):  # somebody else's, on our topic
        text = Text(f"          no event of ours  {where}", "dim")
    console.print(text)


def _text(key: bytes) -> str:
    return key.decode(errors="replace")


def _show_json(stored: StoredRecord) -> None:
    if stored.value is None:
        tombstone = {"topic": stored.topic, "key": _text(stored.key), "data": None}
        sys.stdout.buffer.write(orjson.dumps(tombstone) + b"\n")
    else:
        sys.stdout.buffer.write(stored.value + b"\n")

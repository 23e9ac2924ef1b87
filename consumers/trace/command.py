"""`dialstream trace`: by a call, a conversation, an event, or a phone number."""

import asyncio
import contextlib
import json
import re
from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from consumers.known import known_connections
from consumers.trace.find import Call, Wanted, find, find_calls, has_event, read_wanted
from consumers.trace.show import Show
from consumers.trace.story import Story
from ingest.errors import ConfigError
from ingest.logs import quietly
from ingest.numbers import normalize_number
from ingest.settings import Settings
from schemas.times import now_ms, rfc3339

#: How far back calls of a number are looked for, unless told otherwise.
_NUMBER_MS = 24 * 3_600_000

_BETWEEN_DIGITS = re.compile(r"[\s().-]")
_LIKE_A_NUMBER = re.compile(r"[\d\s().-]{7,20}")


def trace(
    settings: Settings,
    what: str,
    connection: str | None,
    since_ms: int | None,
    *,
    as_json: bool,
) -> int:
    """Print the life of what is meant by ``what``; 1 if the stream does not know it.

    Raises ConfigError where that cannot be found out.
    """
    with quietly(settings.logging.format):
        if what.startswith("+"):
            begin_ms = now_ms() - _NUMBER_MS if since_ms is None else since_ms
            return _trace_number(settings, what, connection, begin_ms, as_json=as_json)
        wanted = read_wanted(what, connection)
        with _waiting():
            stories = asyncio.run(find(settings, wanted, since_ms))
        return _tell(settings, wanted, stories, as_json=as_json)


def _trace_number(
    settings: Settings, text: str, connection: str | None, since_ms: int, *, as_json: bool
) -> int:
    number = normalize_number(_BETWEEN_DIGITS.sub("", text), None)
    if not number[1:].isdecimal():
        raise ConfigError("a phone number begins with + and its country: +15551230001")
    with _progress(since_ms) as seen:
        calls = asyncio.run(find_calls(settings, number, connection, since_ms, seen))
    conversations = {(call.connection, call.conversation_id) for call in calls}
    stories: list[Story] = []
    if len(conversations) == 1:
        wanted = Wanted(calls[0].call_id, calls[0].connection)
        with _waiting():
            stories = asyncio.run(find(settings, wanted, None))
    if as_json:
        print(json.dumps({"calls": [_call_data(call) for call in calls], **_data(stories)}))  # noqa: T201
        return 0 if calls else 1
    show = Show()
    if not calls:
        since = rfc3339(since_ms)[:19].replace("T", " ")
        show.say(f"The stream knows of no call with that number since {since} UTC: see --since.")
        return 1
    if stories:
        for story in stories:
            show.story(story, None)
        return 0
    show.calls(calls)
    show.say("\nTrace one of them by its id.")
    return 0


def _tell(settings: Settings, wanted: Wanted, stories: Sequence[Story], *, as_json: bool) -> int:
    asked = wanted.event_id
    known = bool(stories) and (asked is None or has_event(stories, asked))
    if as_json:
        print(json.dumps(_data(stories)))  # noqa: T201
        return 0 if known else 1
    show = Show()
    for story in stories:
        show.story(story, asked)
    if not stories:
        where = wanted.connection or ", ".join(known_connections(settings))
        show.say(f"The stream knows of no call or conversation {wanted.ident!r} at {where}.")
        if _LIKE_A_NUMBER.fullmatch(wanted.ident):
            show.say("A phone number is looked for by + and its country: +15551230001.")
    elif not known:
        show.say(f"It has no event {asked!r} (any more).")
    return 0 if known else 1


def _data(stories: Sequence[Story]) -> dict[str, object]:
    return {"stories": [story.as_data() for story in stories]}


def _call_data(call: Call) -> dict[str, object]:
    return {
        "connection": call.connection,
        "call_id": call.call_id,
        "conversation_id": call.conversation_id,
        "direction": call.direction,
        "started_at": call.started_at,
        "outcome": call.outcome,
        "events": call.events,
    }


def _waiting() -> contextlib.AbstractContextManager[object]:
    """Says on a terminal that there is something to wait for."""
    console = Console(stderr=True)
    return console.status("reading the log") if console.is_terminal else contextlib.nullcontext()


@contextlib.contextmanager
def _progress(since_ms: int) -> Iterator[Callable[[int], None]]:
    """How far the log has been read, by its clock; nothing where nobody looks."""
    console = Console(stderr=True)
    begin_ms = 0
    columns = TextColumn("reading the log"), BarColumn(), TaskProgressColumn()
    with Progress(
        *columns,
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task("", total=None)

        def seen(written_ms: int) -> None:
            nonlocal begin_ms
            if not begin_ms:
                begin_ms = max(since_ms, written_ms)
                progress.update(task, total=max(1, now_ms() - begin_ms))
            progress.update(task, completed=max(0, written_ms - begin_ms))

        yield seen

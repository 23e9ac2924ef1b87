"""`dialstream sink --dry-run`: what DialedIn would be told, and by which event."""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import orjson
from msgspec import Struct
from msgspec.structs import replace
from pydantic import ValidationError
from rich.console import Console
from rich.text import Text

from consumers.render import masked, printable
from consumers.sinks.dialedin.events import MODELS, Rules
from consumers.sinks.dialedin.ledger import glance
from consumers.sinks.dialedin.role import ledger_path, sink_connections
from consumers.sinks.dialedin.rules import Command, Dnc, Lead
from consumers.subscribe import Event
from ingest.errors import ConfigError
from ingest.eventlog.kinds import read_once
from ingest.eventlog.log import Behind, StoredRecord
from ingest.logs import quietly
from ingest.settings import Settings
from schemas.base import Model
from schemas.subjects import SUBJECTS
from schemas.times import now_ms, rfc3339
from schemas.topics import TOPIC_OF


class Intent(Struct):
    """A command, and why."""

    connection: str
    #: Of the event: whose it is, its type, when it was recorded.
    told_by: str
    type: str
    recorded_ms: int
    #: None: a number that DialedIn cannot take.
    command: Command | None = None
    told_before: bool = False


def show_commands(settings: Settings, since_ms: int, *, reveal: bool, as_json: bool) -> int:
    """Print what follows from the events that were recorded since then; the exit code.

    Milliseconds since 1970. Without ``reveal`` neither numbers nor names are shown. Raises
    ConfigError if there is nobody to be told anything.
    """
    if not sink_connections(settings):
        raise ConfigError(
            "connections: no rule of [connections.<name>.sink] is on: set what you want to try, "
            "such as dnc_on_stop = true; --dry-run tells nobody anything"
        )
    console = Console(stderr=True)
    waiting = console.status("reading the log") if console.is_terminal else nullcontext()
    with quietly(settings.logging.format), waiting:
        intents = asyncio.run(_intents(settings, since_ms))
    if as_json:
        for each in intents:
            print(json.dumps(_as_json(each, reveal=reveal)))  # noqa: T201
    else:
        _print(intents, since_ms, reveal=reveal)
    return 0


async def _intents(settings: Settings, since_ms: int) -> list[Intent]:
    found: list[Intent] = []
    for name in sink_connections(settings):
        connection = settings.connections[name]
        rules = Rules(connection, dict.fromkeys(connection.sink.rules, 0))
        models = {MODELS[rule] for rule in connection.sink.rules}
        commands: dict[str, Intent] = {}
        async for event in _events(settings, models, since_ms):
            recorded_ms = round(event.envelope.recordedtime.timestamp() * 1000)
            if recorded_ms < since_ms:
                continue
            _, decision = rules.decide(event, now_ms)
            if not decision.commands and not decision.outside:
                continue
            intent = Intent(
                connection=name,
                told_by=event.connection,
                type=event.type.removeprefix("dialstream."),
                recorded_ms=recorded_ms,
            )
            for command in decision.commands:
                # What was told once is not told again.
                commands.setdefault(command.key, replace(intent, command=command))
            found += [intent] * decision.outside
        done = glance(ledger_path(settings.eventlog.path, name), list(commands))
        for key, intent in commands.items():
            intent.told_before = key in done
        found += commands.values()
    return sorted(found, key=lambda each: each.recorded_ms)


async def _events(
    settings: Settings, models: set[type[Model]], since_ms: int
) -> AsyncIterator[Event[Model]]:
    subjects = {subject for subject, model in SUBJECTS.items() if model in models}
    topics = sorted({TOPIC_OF[subject] for subject in subjects})
    start = Behind({}, dict.fromkeys(topics, since_ms))
    async for stored in read_once(settings, topics, start):
        event = _event(stored, subjects)
        if event is not None:
            yield event


def _event(stored: StoredRecord, subjects: set[str]) -> Event[Model] | None:
    """None if it is none of these, or cannot be read, which the sink rejects."""
    if stored.value is None:
        return None
    type_ = dict(stored.headers).get("ce_type", b"").decode(errors="replace")
    subject = type_.removeprefix("dialstream.").partition(".")[0]
    if subject not in subjects:
        return None
    try:
        data = SUBJECTS[subject].model_validate(orjson.loads(stored.value)["data"])
    except (ValidationError, ValueError, TypeError, KeyError):
        return None
    return Event(stored, data)


def _as_json(intent: Intent, *, reveal: bool) -> dict[str, Any]:
    shown: dict[str, Any] = {
        "connection": intent.connection,
        "because": {
            "connection": intent.told_by,
            "type": intent.type,
            "recorded": rfc3339(intent.recorded_ms),
        },
    }
    command = intent.command
    if command is None:
        return {**shown, "action": None, "reason": "not_plus_one"}
    shown |= {
        "action": command.action,
        "number": _number(command.number, reveal=reveal),
        "told_before": intent.told_before,
    }
    if not isinstance(command, Dnc):
        shown["fields"] = _fields(command.fields, reveal=reveal)
    if isinstance(command, Lead):
        shown |= {"client_id": command.client_id, "dial": command.dial}
    return shown


def _print(intents: Sequence[Intent], since_ms: int, *, reveal: bool) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for each in intents:
        console.print(_line(each, reveal=reveal))
    told = sum(each.command is not None and not each.told_before for each in intents)
    console.print(
        Text(f"{told:,} command(s) since {rfc3339(since_ms)[:19]}Z. Nothing was told.", "dim")
    )


def _line(intent: Intent, *, reveal: bool) -> Text:
    text = Text(rfc3339(intent.recorded_ms)[:19].replace("T", " "), "dim")
    text.append(f"  {intent.connection}  ", "not dim")
    command = intent.command
    if command is None:
        text.append("nothing: a number that is none of +1", "not dim red")
    else:
        text.append(f"{command.action} {_number(command.number, reveal=reveal)}", "not dim bold")
        if isinstance(command, Lead):
            text.append("  DIALS AT ONCE" if command.dial else "  stored only", "not dim bold")
        if not isinstance(command, Dnc):
            fields = _fields(command.fields, reveal=reveal).items()
            shown = "  ".join(f"{name}={printable(value)}" for name, value in fields)
            text.append(f"  {shown}", "not dim")
        if intent.told_before:
            text.append("  told before", "dim")
    return text.append(f"  because of {intent.type} of {intent.told_by}", "dim")


def _number(number: str, *, reveal: bool) -> str:
    return number if reveal else masked(f"+1{number}") or ""


def _fields(fields: Mapping[str, str], *, reveal: bool) -> dict[str, str]:
    return {name: text if reveal else "…" for name, text in fields.items()}

"""`dialstream erase`: takes somebody out of the compacted topics, and says what stays elsewhere.

Compacted topics keep the last record of a key for good; only a tombstone ends that. All others lose
what they hold by age, and nobody can take a single record out of them before.
"""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson
import pybase64
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.prompt import Confirm
from rich.table import Table

from ingest.errors import ConfigError, PublishError
from ingest.eventlog.kinds import open_log, read_once
from ingest.eventlog.log import Record, StoredRecord
from ingest.logs import setup_logs
from ingest.settings import Settings
from schemas.event import CONTENT_TYPE
from schemas.times import rfc3339
from schemas.topics import TOPICS

ROLE = "erase"

#: Where tombstones are written, in this order: a contact's numbers are read from the first.
ERASED = ("contacts", "ledger")

#: An opt-out has to be remembered to be honoured; it goes only by a wish of its own.
CONSENTS = "consents"

_NUMBER = re.compile(r"\+[1-9]\d{4,14}")
#: Somebody means a number; ids have no such signs.
_LIKE_A_NUMBER = re.compile(r"(?=.*[+() ])\+?[\d\s()./-]+")

_PUBLISH_S = 30.0
_AT_A_TIME = 500


@dataclass
class Whom:
    """Somebody: by number, or by a contact's id and the numbers that it has had."""

    #: E.164, or the id.
    given: str
    connection: str | None
    numbers: set[str] = field(default_factory=set)
    contact_id: str | None = None

    @classmethod
    def of(cls, given: str, connection: str | None) -> "Whom":
        """Raises ConfigError for a number that is not in E.164."""
        if _NUMBER.fullmatch(given):
            return cls(given, connection, numbers={given})
        if _LIKE_A_NUMBER.fullmatch(given):
            raise ConfigError(f"{given!r}: write numbers with their country: +14155550100")
        return cls(given, connection, contact_id=given)

    def is_at(self, key: bytes) -> bool:
        """Whether a record may be about them, by its connection."""
        return self.connection in (None, key.decode().partition("/")[0])

    def is_in(self, topic: str, key: bytes, data: Any) -> bool:
        """Whether a record of a compacted topic is about them. Notes a contact's numbers."""
        ident = key.decode().partition("/")[2]
        if topic == "contacts":
            numbers = {each["number"] for each in data["phone_numbers"]}
            if self.contact_id is not None and ident == self.contact_id:
                self.numbers |= numbers
                return True
            return self.contact_id is None and bool(numbers & self.numbers)
        if topic == CONSENTS:
            return data["number"] in self.numbers
        outside = data["external"]
        is_contact = self.contact_id is not None and outside["id"] == self.contact_id
        return is_contact or outside["number"] in self.numbers

    @property
    def marks(self) -> list[bytes]:
        """What stands in a record that tells of them, whatever its shape."""
        ident = [] if self.contact_id is None else [self.contact_id.encode()]
        return [*ident, *(number[1:].encode() for number in sorted(self.numbers))]


@dataclass
class Left:
    """What a topic keeps of them until its retention ends."""

    records: int = 0
    newest_ms: int = 0


@dataclass
class Erased:
    """What was found, and what becomes of it."""

    #: Topic → keys whose last record is about them.
    keys: dict[str, set[bytes]] = field(default_factory=dict)
    left: dict[str, Left] = field(default_factory=dict)


def erase(
    settings: Settings,
    whom: Whom,
    *,
    with_consents: bool,
    dry_run: bool,
    sure: bool,
    as_json: bool,
) -> int:
    """Write the tombstones; 0 once they are durable, 1 if some could not be written.

    ``sure``: do not ask. Raises ConfigError if nobody can be asked.
    """
    topics = [*ERASED, *([CONSENTS] if with_consents else [])]
    logs = setup_logs(settings.logging.format, "error")
    try:
        erased = asyncio.run(_find(settings, whom, topics))
        count = sum(map(len, erased.keys.values()))
        if count and not dry_run:
            _make_sure(count, sure=sure)
            asyncio.run(_bury(settings, erased))
    except PublishError as error:
        Console(stderr=True).print(f"Not all is written ({error.reason}): run it again.")
        return 1
    finally:
        logs.close()
    if as_json:
        print(json.dumps(_summary(erased)))  # noqa: T201
    else:
        _print(settings, erased, dry_run=dry_run)
    return 0


async def _find(settings: Settings, whom: Whom, topics: Sequence[str]) -> Erased:
    erased = Erased()
    for topic in topics:
        keys: set[bytes] = set()
        async for stored in _read(settings, topic):
            if whom.is_at(stored.key):
                data = stored.value and orjson.loads(stored.value)["data"]
                # The last of each key decides: what is before it goes with compaction.
                keep = keys.add if data and whom.is_in(topic, stored.key, data) else keys.discard
                keep(stored.key)
        erased.keys[topic] = keys
    for aging in TOPICS.values():
        if not aging.compacted:
            async for stored in _read(settings, aging.name):
                if whom.is_at(stored.key) and _tells(stored, whom.marks):
                    left = erased.left.setdefault(aging.name, Left())
                    left.records += 1
                    left.newest_ms = max(left.newest_ms, stored.written_ms)
    return erased


async def _read(settings: Settings, topic: str) -> AsyncIterator[StoredRecord]:
    """A whole topic, with how far it is on a terminal."""
    console = Console(stderr=True)
    with Progress(
        SpinnerColumn(),
        TextColumn("{task.description}: {task.completed:,} records"),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    ) as progress:
        task = progress.add_task(topic)
        async for stored in read_once(settings, [topic]):
            progress.advance(task)
            yield stored


def _tells(stored: StoredRecord, marks: Sequence[bytes]) -> bool:
    value = stored.value or b""
    if any(mark in value for mark in marks):
        return True
    if stored.topic != "rejects":
        return False
    body = pybase64.b64decode(orjson.loads(value)["data"].get("body_base64") or "")
    # The payload of a JWS is base64 once more.
    parts = [body, *map(_unfold, body.split(b".")[1:2])]
    return any(mark in part for mark in marks for part in parts)


def _unfold(part: bytes) -> bytes:
    try:
        return pybase64.urlsafe_b64decode(part + b"=" * (-len(part) % 4))
    except ValueError:
        return b""


def _make_sure(count: int, *, sure: bool) -> None:
    console = Console(stderr=True)
    if sure:
        return
    if not console.is_terminal:
        raise ConfigError("erase: nobody can be asked here: add --yes, or --dry-run to look first")
    records = "1 record" if count == 1 else f"{count:,} records"
    if not Confirm.ask(f"Erase {records} for good?", console=console, default=False):
        raise ConfigError("erase: nothing was erased")


async def _bury(settings: Settings, erased: Erased) -> None:
    headers = (("content-type", CONTENT_TYPE),)
    records = [
        Record(topic, key, None, headers)
        for topic, keys in erased.keys.items()
        for key in sorted(keys)
    ]
    async with open_log(settings, ROLE) as log:
        for first in range(0, len(records), _AT_A_TIME):
            some = records[first : first + _AT_A_TIME]
            receipts = [log.publish([record]) for record in some]
            deadline = asyncio.get_running_loop().time() + _PUBLISH_S
            for receipt in receipts:
                await receipt.wait(deadline)


def _summary(erased: Erased) -> dict[str, Any]:
    return {
        "erased": {topic: len(keys) for topic, keys in erased.keys.items()},
        "left": {
            topic: {"records": left.records, "gone": rfc3339(_gone_ms(topic, left))}
            for topic, left in erased.left.items()
        },
    }


def _print(settings: Settings, erased: Erased, *, dry_run: bool) -> None:
    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False)
    for column in ("topic", "records", "what becomes of them"):
        table.add_column(column, justify="right" if column == "records" else "left")
    done = "would be erased" if dry_run else "erased"
    for topic, keys in erased.keys.items():
        table.add_row(topic, f"{len(keys):,}", done if keys else "")
    for topic, left in erased.left.items():
        day = time.strftime("%Y-%m-%d", time.gmtime(_gone_ms(topic, left) / 1000))
        table.add_row(topic, f"{left.records:,}", f"stay until {day}: retention takes them")
    console.print(table)
    for line in _what_stays(settings):
        console.print(f"- {line}")


def _gone_ms(topic: str, left: Left) -> int:
    return left.newest_ms + (TOPICS[topic].retention_s or 0) * 1000


def _what_stays(settings: Settings) -> list[str]:
    """What nobody should believe to be gone."""
    window = f"{settings.reconcile.window_s / 86_400:g} days"
    if settings.eventlog.kind == "journal":
        when = "when their segment does, by journal_max_bytes"
    else:
        when = "when Kafka compacts their segment, which segment.ms of the topic allows"
    return [
        f"Earlier records of erased keys go {when}.",
        "What subscribers have stored is theirs: each is given the tombstone.",
        (
            f"What is heard of a call within {window} (reconcile.window_s) writes its row again, "
            "and what the provider tells of a contact its record: erase at the provider first, and "
            "here once more after that time."
        ),
        (
            "Your own agents and numbers (directory) are not touched; opt-outs go only with "
            "--with-consents, since they must be remembered to be honoured."
        ),
        "Quarantine, spool and backups of these folders keep what they hold, by limits of theirs.",
    ]

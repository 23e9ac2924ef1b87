"""`dialstream erase`: takes somebody out of the compacted topics, and says what stays elsewhere.

Compacted topics keep the last record of a key for good; only a tombstone ends that. All others lose
what they hold by age, and nobody can take a single record out of them before.
"""

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any

import orjson
import pybase64
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn
from rich.prompt import Confirm
from rich.table import Table

from ingest.commands.work import waiting_in_spool
from ingest.errors import ConfigError, PublishError
from ingest.eventlog.kinds import open_log, read_once
from ingest.eventlog.log import Record, StoredRecord
from ingest.eventlog.ownership import sole_owner
from ingest.logs import quietly
from ingest.numbers import normalize_number
from ingest.settings import Settings
from schemas.event import CONTENT_TYPE
from schemas.times import rfc3339
from schemas.topics import DAY_S, TOPICS

ROLE = "erase"

#: Where tombstones are written, in this order: a contact's numbers are read from the first.
ERASED = ("contacts", "ledger")

#: An opt-out has to be remembered to be honoured; it goes only by a wish of its own.
CONSENTS = "consents"

_NUMBER = re.compile(r"\+[1-9][0-9]{4,14}")
#: Somebody means a number; ids have no such signs.
_LIKE_A_NUMBER = re.compile(r"(?=.*[+() ])\+?[\d\s()./-]+")

#: Records go by segments, and the journal's, as Kafka's unless its topics say otherwise, take
#: records for a week.
_SEGMENT_S = 7 * DAY_S

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
    #: Of a number: the others that its contacts have.
    more: set[str] = field(default_factory=set)

    @classmethod
    def of(cls, given: str, connection: str | None) -> "Whom":
        """Raises ConfigError for a number without its country, and for nobody."""
        if not given.strip():
            raise ConfigError("erase: name a number, or a contact's id")
        if _LIKE_A_NUMBER.fullmatch(given):
            number = normalize_number(given, None)
            if not _NUMBER.fullmatch(number):
                raise ConfigError(f"{given!r}: write numbers with their country: +14155550100")
            return cls(number, connection, numbers={number})
        # Numbers that were stored without their country, or are too short to have one, are digits.
        numbers = {given} if given.isdigit() else set()
        return cls(given, connection, numbers=numbers, contact_id=given)

    def is_at(self, key: bytes) -> bool:
        """Whether a record may be about them, by its connection."""
        return self.connection is None or key.partition(b"/")[0] == self.connection.encode()

    def is_in(self, topic: str, key: bytes, data: Any) -> bool:
        """Whether a record of a compacted topic is about them. Notes a contact's numbers."""
        if topic == "contacts":
            ident = key.partition(b"/")[2].decode(errors="replace")
            numbers = {each["number"] for each in data["phone_numbers"]}
            if self.contact_id is not None and ident == self.contact_id:
                self.numbers |= numbers
                return True
            if bool(numbers & self.numbers) and self.contact_id is None:
                self.more |= numbers - self.numbers
                return True
            return False
        if topic == CONSENTS:
            return data["number"] in self.numbers
        outside = data["external"]
        is_contact = self.contact_id is not None and outside["id"] == self.contact_id
        return is_contact or outside["number"] in self.numbers

    @property
    def mark(self) -> re.Pattern[bytes]:
        """What stands in a record that tells of them, whatever its shape: no part of an id."""
        marks = {number.removeprefix("+") for number in self.numbers}
        if self.contact_id is not None:
            marks.add(self.contact_id)
        any_of = b"|".join(re.escape(mark.encode()) for mark in sorted(marks))
        return re.compile(b"(?<![0-9A-Za-z])(?:%b)(?![0-9A-Za-z])" % any_of)


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
    #: Opt-outs that are kept, since nobody asked for more.
    consents: int = 0
    left: dict[str, Left] = field(default_factory=dict)
    #: Tombstones that Kafka has not taken yet.
    waiting: int = 0

    @property
    def count(self) -> int:
        return sum(map(len, self.keys.values()))


def erase(
    settings: Settings,
    whom: Whom,
    *,
    with_consents: bool,
    dry_run: bool,
    sure: bool,
    as_json: bool,
) -> int:
    """Write the tombstones; 0 once they are on the log, 1 if some are not yet.

    ``sure``: do not ask. Raises ConfigError if nobody can be asked, or another one is at it.
    """
    with quietly(settings.logging.format):
        erased = asyncio.run(_find(settings, whom, with_consents=with_consents))
        if erased.count and not dry_run:
            if not sure and not _agreed(erased):
                print("nothing was erased")  # noqa: T201
                return 1
            try:
                with sole_owner(settings.eventlog.path, ROLE):
                    asyncio.run(_bury(settings, erased))
            except PublishError as error:
                Console(stderr=True).print(f"Not all is written ({error.reason}): run it again.")
                return 1
            erased.waiting = waiting_in_spool(settings, ROLE)
    if as_json:
        print(json.dumps(_summary(erased)))  # noqa: T201
    else:
        _print(settings, whom, erased, dry_run=dry_run)
    return int(bool(erased.waiting))


async def _find(settings: Settings, whom: Whom, *, with_consents: bool) -> Erased:
    erased = Erased()
    for topic in (*ERASED, CONSENTS):
        keys: set[bytes] = set()
        async for stored in _read(settings, topic):
            if whom.is_at(stored.key):
                # The last of each key decides: what is before it goes with compaction.
                keep = keys.add if _is_about(whom, stored) else keys.discard
                keep(stored.key)
        if topic == CONSENTS and not with_consents:
            erased.consents = len(keys)
        else:
            erased.keys[topic] = keys
    mark = whom.mark
    for aging in TOPICS.values():
        if not aging.compacted:
            async for stored in _read(settings, aging.name):
                if whom.is_at(stored.key) and _tells(stored, mark):
                    left = erased.left.setdefault(aging.name, Left())
                    left.records += 1
                    left.newest_ms = max(left.newest_ms, stored.written_ms)
    return erased


def _is_about(whom: Whom, stored: StoredRecord) -> bool:
    if stored.value is None:
        return False
    try:
        return whom.is_in(stored.topic, stored.key, orjson.loads(stored.value)["data"])
    except (ValueError, KeyError, TypeError):  # it is none of ours
        return False


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


def _tells(stored: StoredRecord, mark: re.Pattern[bytes]) -> bool:
    value = stored.value or b""
    if mark.search(value):
        return True
    if stored.topic != "rejects":
        return False
    try:
        body = pybase64.b64decode(orjson.loads(value)["data"]["body_base64"])
    except (ValueError, KeyError, TypeError):  # it is none of ours
        return False
    # The payload of a JWS is base64 once more.
    parts = [body, *map(_unfold, body.split(b".")[1:2])]
    return any(map(mark.search, parts))


def _unfold(part: bytes) -> bytes:
    try:
        return pybase64.urlsafe_b64decode(part + b"=" * (-len(part) % 4))
    except ValueError:
        return b""


def _agreed(erased: Erased) -> bool:
    console = Console(stderr=True)
    if not console.is_terminal:
        raise ConfigError("erase: nobody can be asked here: add --yes, or --dry-run to look first")
    what = ", ".join(f"{len(keys):,} of {topic}" for topic, keys in erased.keys.items() if keys)
    return Confirm.ask(f"Erase for good: {what}?", console=console, default=False)


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
        "kept": {CONSENTS: erased.consents},
        "left": {
            topic: {"records": left.records, "gone": rfc3339(_gone_ms(topic, left))}
            for topic, left in erased.left.items()
        },
        "waiting_in_spool": erased.waiting,
    }


def _print(settings: Settings, whom: Whom, erased: Erased, *, dry_run: bool) -> None:
    console = Console(highlight=False)
    table = Table(box=None, pad_edge=False)
    for column in ("topic", "records", "what becomes of them"):
        table.add_column(column, justify="right" if column == "records" else "left")
    done = "would be erased" if dry_run else "erased"
    for topic, keys in erased.keys.items():
        table.add_row(topic, f"{len(keys):,}", done if keys else "")
    if erased.consents:
        table.add_row(CONSENTS, f"{erased.consents:,}", "stay: opt-outs have to be honoured")
    for topic, left in erased.left.items():
        day = time.strftime("%Y-%m-%d", time.gmtime(_gone_ms(topic, left) / 1000))
        table.add_row(topic, f"{left.records:,}", f"stay until {day}: retention takes them")
    if erased.count or erased.consents or erased.left:
        console.print(table)
    else:
        console.print("Nothing on the log tells of them.")
    if erased.waiting:
        console.print(
            f"{erased.waiting:,} tombstones wait for Kafka: `dialstream spool drain` brings them "
            "there"
        )
    for line in _what_stays(settings, whom):
        console.print(f"- {line}", soft_wrap=True)


def _gone_ms(topic: str, left: Left) -> int:
    return left.newest_ms + ((TOPICS[topic].retention_s or 0) + _SEGMENT_S) * 1000


def _what_stays(settings: Settings, whom: Whom) -> list[str]:
    """What nobody should believe to be gone."""
    window_days = settings.reconcile.window_s / DAY_S
    if settings.eventlog.kind == "journal":
        compacted = "the journal compacts their topic: within 8 days while dialstream runs."
    else:
        compacted = (
            "Kafka compacts their topic: once half of it is out of date. To bound that, set "
            "max.compaction.lag.ms on these topics."
        )
    lines = [
        f"Earlier records of erased keys are on the log until {compacted}",
        "What subscribers have stored is theirs: each is given the tombstone.",
        (
            "A call that settles, or of which anything is heard within "
            f"{window_days:g} days (reconcile.window_s), writes its row again, and what the "
            "provider tells of a contact its record; so do backfill, redrive and requeue. Erase at "
            "the provider first, and here once more after that time."
        ),
        (
            "Your own agents and numbers (directory) are not touched; opt-outs go only with "
            "--with-consents, since they must be remembered to be honoured."
        ),
        (
            f"Below eventlog.path the reconciler keeps calls for up to {2 * window_days:g} days, "
            "pollers the ids of contacts and the numbers of opt-outs that the provider lists, "
            "quarantine and spool what is in them, by limits of theirs; so do backups."
        ),
        "Rejects of consumer groups (rejects.<group>) are not counted; they stay for 30 days.",
    ]
    if whom.more:
        lines.insert(
            0,
            "Its contact has other numbers, too: erase by the contact's id to erase their calls.",
        )
    return lines

"""The drift radar: what providers send that nobody has told us of.

Each new field, word and type is remembered with when it was seen first, how often, and what its
value looks like; never with the value. `dialstream drift` shows it.
"""

import asyncio
import itertools
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec
import orjson
import structlog
from msgspec import Struct

from schemas.event import Event

log = structlog.get_logger()

#: So many different ones of a connection; who sends more sends names that are made of content.
MAX_A_CONNECTION = 500

#: The name of all that is beyond, a line for each subject and what it is.
OTHERS = "…"

#: So many of one event are looked at: whoever sends more must not keep other deliveries waiting.
_MOST_OF_AN_EVENT = 100

_LONGEST_NAME = 64
_LONGEST_SAMPLE = 40

#: So far down, and among so many values of a level, a field's value is looked for.
_DEEPEST_SAMPLE = 5
_WIDEST_SAMPLE = 200

#: What a provider calls its fields, and its states; anything else may be what somebody has said,
#: or an id.
_FIELD = re.compile(r"[A-Za-z][A-Za-z0-9_.-]*")
_WORD = re.compile(r"([A-Z]?[a-z]+|[A-Z]+)[0-9]*(([_. -]([A-Z]?[a-z]+|[A-Z]+)|[A-Z][a-z]+)[0-9]*)*")
_MOST_DIGITS = 4
_MOST_SPACES = 3

#: These name a field; others a word that stands in one.
_IN_FIELDS = ("field", "type")


class Sighting(Struct):
    """Something that we have no place or word for."""

    provider: str
    connection: str
    #: Of the events in which it stood.
    subject: str
    #: ``field``; ``type``, of a known field with a value of another type; else the field of ours
    #: for which the provider has a new word.
    what: str
    #: The provider's name of it.
    name: str
    #: Our clock, milliseconds since 1970.
    first_ms: int
    last_ms: int
    count: int
    #: What the first one looked like: see `look_of`.
    sample: str

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        return self.provider, self.connection, self.subject, self.what, self.name


class Radar:
    """What this process has seen, and those before it that wrote to the same file."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, str, str, str, str], Sighting] = {}
        self._counts: Counter[str] = Counter()
        self._path: Path | None = None
        self._changed = False

    def note(self, event: Event) -> None:
        """Take in what is surprising in an event that is stored: all, or a hundred of it."""
        raw: Any = None
        for what, given in event.surprises[:_MOST_OF_AN_EVENT]:
            name = _name(given, _FIELD if what in _IN_FIELDS else _WORD)
            about = event.provider, event.connection, event.subject_kind, what
            seen = self._seen.get((*about, name))
            if seen is None and self._counts[event.connection] >= MAX_A_CONNECTION:
                name = OTHERS
                seen = self._seen.get((*about, name))
            if seen is not None:
                seen.count += 1
                seen.last_ms = max(seen.last_ms, event.recorded_ms)
                continue
            sample = ""
            if what in _IN_FIELDS and name != OTHERS:
                raw = _parsed(event) if raw is None else raw
                sample = _sample(raw, given)
            self._seen[*about, name] = Sighting(
                *about,
                name,
                first_ms=event.recorded_ms,
                last_ms=event.recorded_ms,
                count=1,
                sample=sample,
            )
            self._counts[event.connection] += 1
            # Its name may be what somebody has said; the command tells it to who asks.
            log.info("drift_seen", connection=event.connection, kind=event.subject_kind, what=what)
        self._changed = True

    @property
    def counts(self) -> Mapping[str, int]:
        """How many different ones were seen, by connection."""
        return self._counts

    def open(self, path: Path) -> None:
        """Go on with what a file tells; one that cannot be read is begun anew."""
        self._path = path
        try:
            seen = _read(path)
        except (OSError, ValueError) as error:
            log.warning("drift_unreadable", path=str(path), error=type(error).__name__)
            seen = []
        self._seen = {each.key: each for each in seen}
        self._counts = Counter(each.connection for each in seen)

    async def save(self) -> None:
        """Write what has changed. Raises OSError."""
        if self._changed and self._path is not None:
            self._changed = False
            content = msgspec.json.encode([*self._seen.values()])
            try:
                await asyncio.to_thread(_write, self._path, content)
            except OSError:
                self._changed = True
                raise


RADAR = Radar()
"""Of the process, as its counters are."""


def drift_folder(path: Path) -> Path:
    """Where each process keeps what it has seen, below ``eventlog.path``."""
    return path / "drift"


def all_sightings(path: Path) -> tuple[list[Sighting], list[Path]]:
    """What all processes on a data directory have seen, the newest first.

    And the files that cannot be read.
    """
    found: dict[tuple[str, str, str, str, str], Sighting] = {}
    unreadable = []
    for file in sorted(drift_folder(path).glob("*.json")):
        try:
            sightings = _read(file)
        except (OSError, ValueError):
            unreadable.append(file)
            continue
        for seen in sightings:
            known = found.setdefault(seen.key, seen)
            if known is not seen:
                known.count += seen.count
                known.last_ms = max(known.last_ms, seen.last_ms)
                if seen.first_ms < known.first_ms:
                    known.first_ms, known.sample = seen.first_ms, seen.sample
    return sorted(found.values(), key=lambda seen: (-seen.first_ms, seen.key)), unreadable


def look_of(value: object) -> str:
    """What a JSON value looks like: ``text "Xx 9"``, ``integer of 13 digits``, ``object of 3``."""
    if value is None or isinstance(value, bool):
        return "null" if value is None else "boolean"
    if isinstance(value, int):
        return f"integer of {len(str(abs(value)))} digits"
    if isinstance(value, float):
        return "number"
    if isinstance(value, str):
        masked = "".join(map(_mask, value[:_LONGEST_SAMPLE]))
        return f'text "{masked}{"…" if len(value) > _LONGEST_SAMPLE else ""}"'
    if isinstance(value, list):
        return f"list of {len(value)}" + (f", first {look_of(value[0])}" if value else "")
    return f"object of {len(value)}" if isinstance(value, dict) else "?"


def _mask(letter: str) -> str:
    if letter.isnumeric():
        return "9"
    if letter.isalpha():
        return "X" if letter.isupper() else "x"
    # Of the rest, an emoji or a vowel sign may say something, too.
    return letter if letter.isascii() and letter.isprintable() else "?"


def _name(name: str, usual: re.Pattern[str]) -> str:
    """As the provider has it, if it looks like a name."""
    if (
        len(name) <= _LONGEST_NAME
        and usual.fullmatch(name)
        and sum(map(str.isdigit, name)) <= _MOST_DIGITS
        and name.count(" ") <= _MOST_SPACES
    ):
        return name
    return look_of(name)


def _parsed(event: Event) -> object:
    try:
        return orjson.loads(event.raw or b"{}")
    except ValueError:
        return {}


def _sample(value: object, name: str) -> str:
    """What the value of a field looks like, at the place that is nearest to the top."""
    level = [value]
    for _ in range(_DEEPEST_SAMPLE):
        for at in level:
            if isinstance(at, dict) and name in at:
                return look_of(at[name])
        inner = (
            inner
            for at in level
            if isinstance(at, (dict, list))
            for inner in (at.values() if isinstance(at, dict) else at)
        )
        level = [*itertools.islice(inner, _WIDEST_SAMPLE)]
    return ""


def _read(path: Path) -> Sequence[Sighting]:
    """What a file tells, nothing if there is none. Raises OSError; ValueError if it is damaged."""
    try:
        return msgspec.json.decode(path.read_bytes(), type=list[Sighting])
    except FileNotFoundError:
        return []


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".new")
    temporary.write_bytes(content)
    temporary.replace(path)

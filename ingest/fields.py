"""Reading a provider's objects: every key optional, every type doubtful, nothing refused for it."""

import json
import math
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

import orjson

from ingest.errors import UnreadableError
from ingest.numbers import is_withheld, normalize_number
from schemas.times import LAST_MS, rfc3339

#: Longer texts are no ids: they would end up in keys and headers.
MAX_ID = 256

#: Readers must be able to read the event around it: pydantic's parser goes 200 levels deep, and
#: orjson writes 254.
MAX_DEPTH = 190

#: `raw` is one line: breaks stand between values only, as inside strings JSON escapes them.
BREAKS_TO_SPACES = bytes.maketrans(b"\r\n", b"  ")

_DIGITS_OF_64_BITS = 18

#: Longer texts are no instants.
_LONGEST_TIME = 40

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MILLISECOND = timedelta(milliseconds=1)

T = TypeVar("T")

_ABSENT: tuple[object, ...] = (None, "", 0, {}, [])


class InexactIdError(Exception):
    """An id came as a float: an integer beyond 64 bits that the quick parser has rounded."""


def read_object(payload: bytes, region: str | None, read: "Callable[[Fields], T]") -> T:
    """What ``read`` makes of the JSON object in ``payload``.

    Raises UnreadableError if it is none, or nested too deep, and what ``read`` raises.
    """
    value = _parse(payload)
    may_be_deep = payload.count(b"[") + payload.count(b"{") > MAX_DEPTH
    if may_be_deep and _depth(value) > MAX_DEPTH:
        raise UnreadableError("not_json", f"nested more than {MAX_DEPTH} deep")
    if type(value) is not dict:
        raise UnreadableError("unexpected_shape", "the payload is no JSON object")
    try:
        return read(Fields(value, region))
    except InexactIdError:
        return read(Fields(_parse_exactly(payload), region, exact=True))


class Fields:
    """One JSON object and what was surprising in it.

    Absent are null, ``""``, ``{}``, id ``0``, and values of a wrong type; the latter are noted in
    ``surprises`` as (``type``, key).
    """

    __slots__ = ("exact", "region", "surprises", "value")

    def __init__(self, value: dict[str, Any], region: str | None, *, exact: bool = False) -> None:
        """``exact``: integers beyond 64 bits are in ``value`` as texts; a float is no id."""
        self.exact = exact
        self.value = value
        self.region = region
        self.surprises: list[tuple[str, str]] = []

    def note_unknown(self, known: frozenset[str]) -> None:
        """Note the keys that we have never heard of."""
        if not known.issuperset(self.value):
            self.surprises += [("field", key) for key in sorted(self.value.keys() - known)]

    def _wrong(self, key: str, value: object) -> None:
        if value not in _ABSENT:
            self.surprises.append(("type", key))

    def text(self, key: str) -> str | None:
        value = self.value.get(key)
        if type(value) is str:
            return value or None
        if value is not None:
            self._wrong(key, value)
        return None

    def id(self, key: str) -> str | None:
        """Ids are integers or texts; both become texts."""
        value = self.value.get(key)
        if value is None:
            return None
        if type(value) is int:
            return str(value) if value else None
        try:
            return id_text(value, exact=self.exact)
        except ValueError:
            self._wrong(key, value)
            return None

    def key_id(self, key: str) -> str:
        """An id without which there is no event."""
        found = self.id(key)
        if found is None:
            raise UnreadableError("unexpected_shape", f"{key} is no id")
        return found

    def word(self, key: str) -> str | None:
        """A word of an open list, short enough to be part of an id."""
        value = self.text(key)
        if value is not None and len(value) > MAX_ID:
            raise UnreadableError("unexpected_shape", f"{key} is longer than {MAX_ID} letters")
        return value

    def ms(self, key: str) -> int | None:
        """An instant in milliseconds since 1970."""
        value = self.value.get(key)
        if type(value) is int:
            if 0 < value <= LAST_MS:
                return value
        elif value is None:
            return None
        else:
            number = _number(value)
            if number is not None and 1 <= number <= LAST_MS:
                return int(number)
        self._wrong(key, value)
        return None

    def span(self, key: str) -> float | None:
        """A number, such as a duration in milliseconds."""
        value = self.value.get(key)
        number = _number(value)
        if number is None and value is not None:
            self._wrong(key, value)
        return number

    def instant_ms(self, key: str) -> int | None:
        """The same from ISO 8601, too; UTC without a zone. Parts of a millisecond are cut off.

        So it is never later than what was meant: whoever asks for what is from then on gets it.
        """
        value = self.value.get(key)
        if type(value) is str and ":" in value and len(value) <= _LONGEST_TIME:
            try:
                instant = datetime.fromisoformat(value)
            except ValueError:
                return self.ms(key)
            if instant.tzinfo is None:
                instant = instant.replace(tzinfo=UTC)
            ms = (instant - _EPOCH) // _MILLISECOND
            if 0 < ms <= LAST_MS:
                return ms
        return self.ms(key)

    def seconds(self, key: str) -> float | None:
        """A duration, exact to 1 ms."""
        span = self.span(key)
        if span is None:
            return None
        if not 0 <= span <= LAST_MS / 1000:
            self._wrong(key, span)
            return None
        return round(float(span), 3)

    def flag(self, key: str) -> bool | None:
        value = self.value.get(key)
        if value is None or type(value) is bool:
            return value
        if type(value) is str and value.lower() in ("true", "false"):
            return value.lower() == "true"
        self._wrong(key, value)
        return None

    def object(self, key: str) -> "Fields":
        """The object under ``key``, empty if there is none."""
        value = self.value.get(key)
        if type(value) is dict:
            return self.inner(value)
        if value is not None:
            self._wrong(key, value)
        return self.inner({})

    def inner(self, value: dict[str, Any]) -> "Fields":
        """An object inside this one; its surprises join ours."""
        inner = Fields(value, self.region, exact=self.exact)
        inner.surprises = self.surprises
        return inner

    def items(self, key: str) -> list[Any]:
        """The list under ``key``; a lone text counts as a list of one."""
        value = self.value.get(key)
        if type(value) is list:
            return value
        if type(value) is str and value:
            return [value]
        if value is not None:
            self._wrong(key, value)
        return []

    def texts(self, key: str) -> list[str]:
        """The list under ``key`` as texts: ids as ids, anything stranger as compact JSON."""
        items = self.items(key)
        return [_as_text(item) for item in items if item not in _ABSENT] if items else []

    def ids(self, key: str) -> list[str]:
        """The ids in the list under ``key``."""
        found = []
        for item in self.items(key):
            try:
                ident = id_text(item, exact=self.exact)
            except ValueError:
                self._wrong(key, item)
                continue
            if ident is not None:
                found.append(ident)
        return found

    def number(self, key: str) -> str | None:
        """A phone number; None if there is none or it is withheld."""
        value = self.text(key)
        if value is None or is_withheld(value):
            return None
        return normalize_number(value, self.region)

    def numbers(self, key: str) -> list[str]:
        texts = self.texts(key)
        return [normalize_number(text, self.region) for text in texts if not is_withheld(text)]


def id_text(value: object, *, exact: bool = False) -> str | None:
    """An id as a text; None for the absent ones.

    Raises ValueError if it cannot be one; InexactIdError, unless ``exact``, if the payload has to
    be read by another parser.
    """
    if type(value) is int:
        return str(value) if value else None
    if type(value) is str:
        if len(value) > MAX_ID or not value.isprintable():
            raise ValueError("too long for an id, or with control characters")
        return value if value and value != "0" else None
    if type(value) is float:
        if exact:
            raise ValueError("decimals")
        raise InexactIdError
    if value in _ABSENT:
        return None
    raise ValueError("no id")


def time_text(ms: int | None) -> str | None:
    return None if ms is None else rfc3339(ms)


def by_size(ident: str) -> tuple[int, str]:
    """Orders ids that are numbers as numbers, and any others in some fixed way."""
    return len(ident), ident


def _number(value: object) -> float | None:
    """A number that may have come as a text, as in REST answers."""
    if type(value) in (int, float):
        return value  # type: ignore[return-value]
    if type(value) is str and len(value) < 32:  # noqa: PLR2004 - longer is no sensible number
        try:
            number = float(value)
        except ValueError:
            return None
        return number if math.isfinite(number) else None
    return None


def _as_text(item: object) -> str:
    return item if type(item) is str else orjson.dumps(item, option=orjson.OPT_SORT_KEYS).decode()


def _parse(payload: bytes) -> Any:
    """The JSON value. Refuses NaN, infinities, invalid UTF-8, half surrogates."""
    try:
        return orjson.loads(payload)
    except orjson.JSONDecodeError as error:
        raise UnreadableError("not_json", f"at character {error.pos}") from None


def _parse_exactly(payload: bytes) -> Any:
    """The same with long integers as texts: the quick parser makes floats of them."""

    def integer(digits: str) -> int | str:
        return int(digits) if len(digits) <= _DIGITS_OF_64_BITS else digits

    return json.loads(payload, parse_int=integer)


def _depth(value: Any) -> int:
    """How deep it is nested, in rounds over all that is nested."""
    depth = 0
    level = [value] if type(value) in (dict, list) else []
    while level:
        depth += 1
        level = [
            inner
            for outer in level
            for inner in (outer.values() if type(outer) is dict else outer)
            if type(inner) in (dict, list)
        ]
    return depth

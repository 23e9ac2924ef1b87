"""Times as people give them to a command."""

import re
from datetime import UTC, datetime

from ingest.errors import ConfigError
from schemas.times import LAST_MS, now_ms

_DATE = re.compile(r"\d{4}-\d{2}-\d{2}")
_AGO = re.compile(r"(\d{1,6})([mhd])")
_UNIT_MS = {"m": 60_000, "h": 3_600_000, "d": 86_400_000}


def since(option: str, text: str) -> int:
    """The same, or so long ago: 30m, 24h, 7d."""
    ago = _AGO.fullmatch(text)
    if ago is not None:
        return max(0, now_ms() - int(ago[1]) * _UNIT_MS[ago[2]])
    return instant(option, text)


def instant(option: str, text: str) -> int:
    """Milliseconds since 1970 of RFC 3339, or of a date's beginning in UTC.

    Raises ConfigError that names the option.
    """
    try:
        when = datetime.fromisoformat(text)
        if _DATE.fullmatch(text):
            when = when.replace(tzinfo=UTC)
        if when.tzinfo is None:
            raise ConfigError(f"{option}: {text!r} has no zone: add Z, or one like -05:00")
        ms = round(when.timestamp() * 1000)
    except (ValueError, OverflowError):
        raise ConfigError(
            f"{option}: {text!r} is no time: write 2026-09-21, or 2026-09-21T14:00:00Z"
        ) from None
    if not 0 <= ms <= LAST_MS:
        raise ConfigError(f"{option}: {text!r} is before 1970")
    return ms

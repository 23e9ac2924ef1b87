"""How long a connection's key lives, and what its user may see.

A key lives for 365 days; then DialLink answers 401 as for any wrong one. The list of keys tells
until when, and shows of each key its last four characters. https://developers.diallink.com
"""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import structlog
from msgspec import Struct

from ingest.api import ApiError
from ingest.delivery import DAY_MS
from ingest.errors import ConfigError, UnreadableError
from ingest.fields import Fields, read_object
from ingest.metrics import KEY_EXPIRES_DAYS
from ingest.settings import Connection
from schemas.times import now_ms, rfc3339

if TYPE_CHECKING:
    from ingest.providers.diallink.api import DialLinkApi

log = structlog.get_logger()

#: From then on it is told every day.
WARN_DAYS = 30

_KEYS = "/v1/account-hub/api-keys"

#: The documentation names the path without its service.
_ME = ("/v1/phone-system/users/me", "/v1/account-hub/users/me")

#: So many last characters of a key are shown.
_SHOWN = 4

_HOUR_MS = 3_600_000

_NEW_KEY = (
    "make a new one at DialLink (Account, API key) and put it into api_key_file (or api_key) of "
    "connections.{name}"
)


class Me(Struct, frozen=True):
    """The user whose key it is."""

    user_id: str | None
    #: An admin sees everything but private messages; others see what is theirs. None: not told.
    admin: bool | None


async def me(api: "DialLinkApi") -> Me | None:
    """None if DialLink tells it at none of the places where it may stand. Raises ApiError."""
    for path in _ME:
        try:
            answer = await api.read(path)
            return read_object(answer, None, _me)
        except ApiError as error:
            if not _is_closed(error) or error.reason == "unauthorized":
                raise
        except UnreadableError:
            continue
    return None


def _me(fields: Fields) -> Me:
    return Me(fields.id("id"), fields.flag("admin"))


async def key_expiry(api: "DialLinkApi") -> datetime | None:
    """Until when the key lives; None if it is not listed, or without an end. Raises ApiError.

    Of several keys with the same last characters, the one that is enabled and expires first.
    """
    found: list[tuple[bool, int]] = []
    async for items in api.pages(_KEYS):
        for item in items:
            try:
                shown, enabled, expires_ms = read_object(item, None, _key)
            except UnreadableError:
                continue
            if expires_ms is not None and api.is_ours(shown):
                found.append((not enabled, expires_ms))
    if not found:
        return None
    return datetime.fromtimestamp(min(found)[1] / 1000, UTC)


def _key(fields: Fields) -> tuple[str, bool, int | None]:
    """What is shown of it, whether it is enabled, when it expires."""
    return (
        fields.text("key") or "",
        fields.flag("enabled") is not False,
        fields.instant_ms("expiresAt"),
    )


def shows(shown: str, key: str) -> bool:
    """Whether ``shown``, where all but the last characters are masked, may stand for ``key``."""
    return len(shown) >= _SHOWN and shown[-_SHOWN:] == key[-_SHOWN:]


def _is_closed(error: ApiError) -> bool:
    """Whether asking again will hardly help. 403 may be told as too many requests (A-DL-5)."""
    return error.status == 403 or error.reason not in ("rate_limited", "unavailable")  # noqa: PLR2004


@dataclass(slots=True)
class _Known:
    """Of one key."""

    mark: int
    expires_ms: int | None = None
    #: When it was looked up, and when to do so again; milliseconds since 1970.
    looked_ms: int | None = None
    again_ms: int = 0
    warned_ms: int | None = None
    #: Whether it was told that nothing can be found out.
    told: bool = False


class KeyWatch:
    """What a process knows of how long one connection's key lives. Use `watch_of`.

    It outlives the API that it was asked of: a key that has expired cannot ask any more.
    """

    def __init__(self, name: str, connection: Connection, now: Callable[[], int] = now_ms) -> None:
        """``now``: our clock, milliseconds since 1970."""
        self._name = name
        self._now = now
        self.connection = connection
        self._known = _Known(0)

    def _of_key(self) -> _Known:
        """What is known of the key that the settings have now; nothing, if it is another."""
        try:
            mark = hash(self.connection.key().strip())
        except ConfigError:
            mark = 0
        if mark != self._known.mark:
            self._known = _Known(mark)
        return self._known

    @property
    def days(self) -> float:
        """How many are left, below 0 after the end; NaN if that is not known."""
        expires_ms = self._of_key().expires_ms
        return float("nan") if expires_ms is None else (expires_ms - self._now()) / DAY_MS

    def why_refused(self) -> str:
        """What to do if the key is not accepted."""
        expires_ms = self._of_key().expires_ms
        if expires_ms is not None and expires_ms <= self._now():
            return f"the key has expired ({rfc3339(expires_ms)}): {_NEW_KEY}"
        return f"the key is not accepted: it is wrong, revoked, or older than a year: {_NEW_KEY}"

    async def look(self, api: "DialLinkApi") -> None:
        """Find out until when the key lives, once a day, and warn in time. Raises nothing."""
        known, now = self._of_key(), self._now()
        if known.looked_ms is not None and known.looked_ms <= now < known.again_ms:
            return
        known.looked_ms, known.again_ms = now, now + DAY_MS
        try:
            expires = await key_expiry(api)
        except ApiError as error:
            if _is_closed(error):
                self._tell_unknown(known, error.reason)
            else:
                known.again_ms = now + _HOUR_MS
        else:
            if expires is None:
                self._tell_unknown(known, "not_listed")
            else:
                known.expires_ms = round(expires.timestamp() * 1000)
                KEY_EXPIRES_DAYS.labels(self._name).set_function(lambda: self.days)
        self._warn(known, now)

    def _tell_unknown(self, known: _Known, reason: str) -> None:
        if not known.told and known.expires_ms is None:
            known.told = True
            log.warning("key_expiry_unknown", connection=self._name, reason=reason)

    def _warn(self, known: _Known, now: int) -> None:
        if known.expires_ms is None or known.expires_ms - now > WARN_DAYS * DAY_MS:
            return
        if known.warned_ms is not None and known.warned_ms <= now < known.warned_ms + DAY_MS:
            return
        known.warned_ms = now
        log.warning(
            "key_expires",
            connection=self._name,
            days=(known.expires_ms - now) // DAY_MS,
            expires_at=rfc3339(known.expires_ms),
        )


#: By connection; a process has one of each.
_WATCHES: dict[str, KeyWatch] = {}


def watch_of(name: str, connection: Connection) -> KeyWatch:
    """The one watch that a connection has in this process, with the settings last given."""
    watch = _WATCHES.setdefault(name, KeyWatch(name, connection))
    watch.connection = connection
    return watch

"""Why a delivery did not verify, as far as it can be found out. No I/O.

All configured secrets are tried; so it tells what is the matter by the settings of now, which may
have been mended since. Nothing of what it says is content.
"""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import orjson
import structlog
from msgspec import Struct

from ingest.delivery import Source
from ingest.errors import UnreadableError, VerificationError
from ingest.quarantine import Refused

log = structlog.get_logger()

#: Authentic, but not of this time.
_UNTIMELY = frozenset(("too_old", "in_future"))

_TIMESTAMP = b"webhook-timestamp"

_CENTURY_S = 100 * 365 * 86_400


class Diagnosis(Struct, frozen=True):
    """What was found out: ``word`` from a fixed set, ``text`` for people."""

    word: str
    text: str

    @property
    def verifies(self) -> bool:
        return self.word == "verifies_now"


_DAMAGED = Diagnosis("damaged", "the file is damaged")
_FAULT = Diagnosis("internal", "verifies now, but a fault of ours keeps it from being read")
_GARBAGE = Diagnosis("garbage", "garbage")

#: What is left to say of what no secret has signed.
_BY_REASON: Mapping[str, Diagnosis] = {
    "empty": Diagnosis("empty", "empty: nothing was posted"),
    "not_a_jws": _GARBAGE,
    "wrong_algorithm": Diagnosis("wrong_algorithm", "a JWT that is not signed with HS256"),
    "bad_token": Diagnosis("unknown_secret", "its token is in no connection's settings"),
}
_UNKNOWN_SECRET = Diagnosis("unknown_secret", "signed with a secret that is not in the settings")
_BAD_HEADER = Diagnosis("bad_header", "what should sign it is malformed")


def diagnose(refused: Refused | None, sources: Mapping[str, Source]) -> Diagnosis:
    """``sources``: of all connections that have secrets; None: what cannot be read any more."""
    if refused is None:
        return _DAMAGED
    own = sources.get(refused.connection)
    if own is not None and (found := _by_its_own(refused, own)) is not None:
        return found
    for name, source in sources.items():
        if name != refused.connection and _has_signed(refused, source):
            return Diagnosis("other_connection", f"signed with the secret of connection {name}")
    if refused.former:
        return Diagnosis("old_secret", "signed with the old secret")
    return _by_its_looks(refused)


def _by_its_looks(refused: Refused) -> Diagnosis:
    if refused.reason in ("unsigned", "missing_header"):
        return _unsigned(refused)
    if refused.reason == "bad_header":
        return _BAD_HEADER if _is_json(refused.body) else _GARBAGE
    return _BY_REASON.get(refused.reason, _UNKNOWN_SECRET)


def _by_its_own(refused: Refused, source: Source) -> Diagnosis | None:
    """What its own connection's secrets say; None if none of them has signed it."""
    delivery = refused.delivery
    try:
        payload = source.verify(delivery)
    except VerificationError as error:
        return _clock(refused) if error.reason in _UNTIMELY else None
    try:
        source.normalize(payload, delivery)
    except VerificationError:
        return _claims(payload, refused)
    except UnreadableError:
        pass  # then it becomes a reject
    except Exception as fault:
        log.error("unexpected_error", connection=refused.connection, exc_info=fault)
        return _FAULT
    return Diagnosis("verifies_now", "verifies now: requeue it")


def _has_signed(refused: Refused, source: Source) -> bool:
    try:
        source.verify(refused.delivery)
    except VerificationError as error:
        return error.reason in _UNTIMELY
    return True


def _clock(refused: Refused) -> Diagnosis:
    late_s = refused.received_ms / 1000
    with suppress(ValueError, KeyError):
        late_s -= int({name.lower(): value for name, value in refused.headers}[_TIMESTAMP])
    if late_s < 0:
        return Diagnosis("clock", f"clock {_span(-late_s)} off: signed after it came")
    return Diagnosis("clock", f"clock {_span(late_s)} off, or sent again that much later")


def _claims(payload: bytes, refused: Refused) -> Diagnosis:
    try:
        claims: Any = orjson.loads(payload)
        came_s = refused.received_ms / 1000
        if came_s > (ends_s := claims.get("exp", came_s)):
            span = _span(came_s - ends_s)
            return Diagnosis("expired", f"signed, but expired {span} before it came")
        span = _span(claims["nbf"] - came_s)
        return Diagnosis("not_yet_valid", f"signed, but not valid for another {span}")
    except (ValueError, TypeError, KeyError, AttributeError):
        return Diagnosis("expired", "signed, but it says of itself that it is not valid")


def _unsigned(refused: Refused) -> Diagnosis:
    if not _is_json(refused.body):
        return _GARBAGE
    if refused.reason == "unsigned":
        return Diagnosis("unsigned", "unsigned JSON: the webhook has no secret at Dialpad")
    return Diagnosis("unsigned", "unsigned JSON: the header that should sign it is missing")


def _is_json(body: bytes) -> bool:
    try:
        return isinstance(orjson.loads(body), (dict, list))
    except orjson.JSONDecodeError:
        return False


def _span(seconds: float) -> str:
    """``9 min``"""
    if seconds > _CENTURY_S:
        return "more than 100 years"
    for unit, size in (("d", 86_400), ("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{round(seconds / size):,} {unit}"
    return f"{round(seconds)} s"

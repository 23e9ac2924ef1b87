"""Every signature primitive. What is wrong in whatever way ends in one VerificationError.

JWS: https://www.rfc-editor.org/rfc/rfc7515
Standard Webhooks: https://github.com/standard-webhooks/standard-webhooks
    (spec/standard-webhooks.md)
"""

import hashlib
import hmac
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Protocol

import orjson
import pybase64

from ingest.errors import ConfigError, UnreadableError, VerificationError

#: Longer JOSE headers than this are not looked into, in bytes of base64.
_MAX_HEADER = 4096

_B64_OF_SHA256 = 43
_PLUS, _SLASH, _DOT = b"+/."

#: The same, padded, in Standard Webhooks.
_PADDED_B64_OF_SHA256 = 44

#: Of a Standard Webhooks secret, and of the key in it, in bytes.
_WHSEC = b"whsec_"
_LEAST_KEY, _MOST_KEY = 24, 64

#: More digits are no time in seconds.
_DIGITS_OF_SECONDS = 12

#: Of a static token, in bytes.
_LEAST_TOKEN = 16

#: What to do about a secret that cannot be used.
_SIGNING_MEND = (
    "take it as the sender shows it, or make one: whsec_ and behind it what "
    "`openssl rand -base64 32` prints"
)
_STATIC_MEND = "make one with `openssl rand -hex 32`, and give it to the sender, too"

#: Of SHA-256, in bytes.
_BLOCK = 64


class Verifier(Protocol):
    """One scheme in which a provider signs a whole body, by headers beside it."""

    #: Names of the headers that it needs, in lower case.
    headers: Sequence[bytes]
    #: Those of them that may be kept beside the body: what is a secret itself may not.
    kept: Sequence[bytes]
    #: How many deliveries another secret than the first has signed.
    former_seen: int

    def verify(self, headers: Mapping[bytes, bytes], body: bytes, now_ms: int) -> None:
        """Raise VerificationError unless one of the secrets has signed ``body``, and lately.

        ``headers``: at least those that it needs, as `signing_headers` finds them. ``now_ms``: our
        clock.
        """
        ...


def signing_headers(
    received: Iterable[tuple[bytes, bytes]], names: Sequence[bytes]
) -> dict[bytes, bytes]:
    """Those of ``names`` that came, with their values as received.

    Raises VerificationError if one came twice: nobody could say which of them was signed.
    """
    found: dict[bytes, bytes] = {}
    for name, value in received:
        if name in names:
            if name in found:
                raise VerificationError("bad_header")
            found[name] = value
    return found


class CompactJws:
    """Checks compact JWS with HS256, and nothing else, against the current secrets.

    Written by hand because it is the hot path: a third of what the quickest library takes, two of
    which are its oracles in the tests. The secret's UTF-8 bytes are the key.
    """

    def __init__(self, secrets: Sequence[bytes]) -> None:
        """``secrets``: one, or several while they are rotated; none may be empty."""
        if not secrets or not all(secret.strip(b"\0") for secret in secrets):
            # HMAC pads keys with zeros: one of zeros is the empty one.
            raise ValueError("an empty secret would let anybody sign")
        self._keys = [_prepare(secret) for secret in secrets]
        self._newest = self._keys[0][0]
        #: How many tokens another secret than the first has signed.
        self.former_seen = 0
        # Headers of tokens that did verify. A sender uses one or two, and only a holder of the
        # secret can add one, so this needs little room and no clearing.
        self._known_headers: set[bytes] = set()

    def verify(self, token: bytes) -> bytes:
        """Return the payload of a token that one of the secrets has signed.

        Raises VerificationError; its reason is ``empty``, ``unsigned``, ``not_a_jws``,
        ``bad_header``, ``wrong_algorithm`` or ``bad_signature``.
        """
        token = token.strip()
        first, last = token.find(_DOT), token.rfind(_DOT)
        if first == last or token[:1] in b"{[":
            raise VerificationError(_shape_of(token))
        header, signature = token[:first], token[last + 1 :]
        known = header in self._known_headers
        if not known:
            if not _has_three_parts(token):
                raise VerificationError("not_a_jws")
            _check_header(header)
        # The encoded forms are compared: base64 has several spellings for one signature.
        if len(signature) != _B64_OF_SHA256:
            raise _mismatch(token)
        signed = memoryview(token)[:last]
        for inner, outer in self._keys:
            # HMAC from hashes that have taken the padded key already (RFC 2104 section 4).
            digest = inner.copy()
            digest.update(signed)
            mac = outer.copy()
            mac.update(digest.digest())
            if hmac.compare_digest(_b64(mac.digest()), signature):
                break
        else:
            raise _mismatch(token)
        if inner is not self._newest:
            self.former_seen += 1
        if not known and len(self._known_headers) < 16:  # noqa: PLR2004
            self._known_headers.add(header)
        try:
            return _unb64(token[first + 1 : last])  # refuses a further dot
        except ValueError:
            raise VerificationError("not_a_jws") from None


def payload_of_jws(token: bytes) -> bytes:
    """What a compact JWS says, whoever has signed it. Raises UnreadableError if it is none."""
    parts = token.strip().split(b".")
    try:
        _, payload, _ = parts
        return _unb64(payload)
    except ValueError:
        raise UnreadableError("not_a_jws", "what was kept is no JWS") from None


def _prepare(secret: bytes) -> "tuple[hashlib._Hash, hashlib._Hash]":
    """The inner and the outer hash of HMAC-SHA256, up to the message."""
    key = hashlib.sha256(secret).digest() if len(secret) > _BLOCK else secret
    key = key.ljust(_BLOCK, b"\0")
    inner = hashlib.sha256(bytes(byte ^ 0x36 for byte in key))
    outer = hashlib.sha256(bytes(byte ^ 0x5C for byte in key))
    return inner, outer


def sign_compact_jws(payload: bytes, secret: bytes) -> bytes:
    """The compact JWS of ``payload`` with HS256."""
    signed = _b64(b'{"alg":"HS256","typ":"JWT"}') + b"." + _b64(payload)
    return signed + b"." + _b64(hmac.digest(secret, signed, "sha256"))


class StandardWebhooks:
    """Checks HMAC-SHA256 over id, time and body (``v1``), and nothing else.

    A sender signs with several secrets while it rotates them, and so may we have several: any pair
    will do. What stands beside in the header, of other versions or of no form at all, is skipped.
    """

    headers: Sequence[bytes] = (b"webhook-id", b"webhook-timestamp", b"webhook-signature")
    kept = headers

    def __init__(self, secrets: Sequence[bytes], tolerance_s: float) -> None:
        """``secrets``: base64 of 24 to 64 bytes, usually behind ``whsec_``; the newest first.

        ``tolerance_s``: how far from our clock an attempt's may be, either way. Raises ConfigError
        with one fault for each secret that cannot be used.
        """
        self._keys = [
            _prepare(key) for key in _usable(secrets, standard_webhooks_key, _SIGNING_MEND)
        ]
        self._tolerance_ms = tolerance_s * 1000
        self.former_seen = 0

    def verify(self, headers: Mapping[bytes, bytes], body: bytes, now_ms: int) -> None:
        """Raise VerificationError unless one of the secrets has signed ``body``, and lately.

        Its reason is ``missing_header``, ``bad_header``, ``bad_signature``, ``too_old`` or
        ``in_future``.
        """
        ident, timestamp, signatures = (headers.get(name) for name in self.headers)
        if not (ident and timestamp and signatures):
            raise VerificationError("missing_header")
        # Of bytes, `isdigit` takes ASCII's digits only.
        if not timestamp.isdigit() or len(timestamp) > _DIGITS_OF_SECONDS:
            raise VerificationError("bad_header")
        number = self._signer(b"%b.%b." % (ident, timestamp), body, _v1_signatures(signatures))
        late_ms = now_ms - int(timestamp) * 1000
        if abs(late_ms) > self._tolerance_ms:
            raise VerificationError("too_old" if late_ms > 0 else "in_future")
        if number > 0:
            self.former_seen += 1

    def _signer(self, wrapping: bytes, body: bytes, claimed: Sequence[bytes]) -> int:
        """Which of the secrets has signed it. Raises VerificationError if none has."""
        for number, (inner, outer) in enumerate(self._keys):
            digest = inner.copy()
            digest.update(wrapping)
            digest.update(body)
            mac = outer.copy()
            mac.update(digest.digest())
            # The encoded forms are compared: base64 has several spellings for one signature.
            signature = pybase64.b64encode(mac.digest())
            if any(hmac.compare_digest(signature, claim) for claim in claimed):
                return number
        raise VerificationError("bad_signature")


def _v1_signatures(header: bytes) -> list[bytes]:
    """The values in ``v1,<base64> v1,<base64>`` that may be signatures."""
    values = [entry[3:] for entry in header.split(b" ") if entry[:3] == b"v1,"]
    return [value for value in values if len(value) == _PADDED_B64_OF_SHA256]


def standard_webhooks_key(secret: bytes) -> bytes:
    """The key that stands in a secret as the sender shows it. Raises ValueError: why there is none.

    The specification asks for 24 to 64 bytes.
    """
    text = secret.removeprefix(_WHSEC)
    try:
        key = pybase64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except ValueError:
        raise ValueError("is no base64") from None
    if not _LEAST_KEY <= len(key) <= _MOST_KEY:
        raise ValueError(f"is base64 of {len(key)} bytes and not of {_LEAST_KEY} to {_MOST_KEY}")
    if not key.strip(b"\0"):
        raise ValueError("is all zeros: HMAC takes it for an empty one, and lets anybody sign")
    return key


def sign_standard_webhooks(
    body: bytes, secret: bytes, ident: str, timestamp_s: int
) -> dict[str, str]:
    """The headers of ``body``. Raises ConfigError if it is no secret for this."""
    (key,) = _usable([secret], standard_webhooks_key, _SIGNING_MEND)
    signed = f"{ident}.{timestamp_s}.".encode() + body
    signature = pybase64.b64encode(hmac.digest(key, signed, "sha256")).decode()
    return {
        "webhook-id": ident,
        "webhook-timestamp": str(timestamp_s),
        "webhook-signature": f"v1,{signature}",
    }


class StaticToken:
    """Checks that a header holds one of the secrets. It says nothing of the body, nor of the time.

    In ``Authorization`` it is a bearer's: https://www.rfc-editor.org/rfc/rfc6750#section-2.1
    """

    kept: Sequence[bytes] = ()

    def __init__(self, secrets: Sequence[bytes], header: bytes) -> None:
        """``secrets``: of 16 bytes or more, the newest first. ``header``: any other holds it bare.

        Raises ConfigError with one fault for each secret that cannot be used.
        """
        self.headers: Sequence[bytes] = (header.lower(),)
        self._is_bearer = self.headers[0] == b"authorization"
        self._tokens = _usable(secrets, _token, _STATIC_MEND)
        self.former_seen = 0

    def verify(self, headers: Mapping[bytes, bytes], body: bytes, now_ms: int) -> None:
        """Raise VerificationError unless the header holds one of the secrets.

        Its reason is ``missing_header``, ``bad_header`` or ``bad_token``.
        """
        value = headers.get(self.headers[0])
        if not value:
            raise VerificationError("missing_header")
        if self._is_bearer:
            scheme, _, value = value.partition(b" ")
            if scheme.lower() != b"bearer":
                raise VerificationError("bad_header")
            value = value.lstrip(b" ")
        for number, token in enumerate(self._tokens):
            if hmac.compare_digest(token, value):
                if number:
                    self.former_seen += 1
                return
        raise VerificationError("bad_token")


def with_static_token(secret: bytes, header: str) -> dict[str, str]:
    """What `StaticToken` asks for. Raises ConfigError if it is no secret for this."""
    (token,) = _usable([secret], _token, _STATIC_MEND)
    scheme = "Bearer " if header.lower() == "authorization" else ""
    return {header.lower(): f"{scheme}{token.decode()}"}


def _token(secret: bytes) -> bytes:
    if len(secret) < _LEAST_TOKEN:
        raise ValueError(f"has less than {_LEAST_TOKEN} bytes, and could be guessed")
    if not secret.isascii() or not secret.decode().isprintable() or secret != secret.strip():
        raise ValueError("has something in it that no header can hold")
    return secret


def _usable(secrets: Sequence[bytes], key_of: Callable[[bytes], bytes], mend: str) -> list[bytes]:
    """The key in each secret. Raises ConfigError, which says how to mend it and never shows one."""
    keys, faults = [], []
    for number, secret in enumerate(secrets, 1):
        try:
            keys.append(key_of(secret))
        except ValueError as error:
            faults.append(f"secrets: number {number} {error}: {mend}")
    if not secrets:
        faults.append(f"secrets: there is none: {mend}")
    if faults:
        raise ConfigError(*faults)
    return keys


def check_claims(payload: bytes, now_ms: int, leeway_s: float) -> None:
    """Check ``exp`` and ``nbf`` of a signed JSON object, if it has them, give or take ``leeway_s``.

    Raises VerificationError with reason ``expired`` or ``not_yet_valid``. What is no number is
    no claim.
    """
    if b'"exp"' not in payload and b'"nbf"' not in payload:
        return
    try:
        claims = orjson.loads(payload)
    except orjson.JSONDecodeError:
        return  # authentic, so not ours to refuse: normalizing sets it aside
    if not isinstance(claims, dict):
        return
    now_s = now_ms / 1000
    expires: Any = claims.get("exp")
    begins: Any = claims.get("nbf")
    if type(expires) in (int, float) and now_s > expires + leeway_s:
        raise VerificationError("expired")
    if type(begins) in (int, float) and now_s < begins - leeway_s:
        raise VerificationError("not_yet_valid")


def _mismatch(token: bytes) -> VerificationError:
    return VerificationError("bad_signature" if _has_three_parts(token) else "not_a_jws")


def _has_three_parts(token: bytes) -> bool:
    """Header, payload, signature. Asked where it may matter: it is another walk over the token."""
    return token.count(b".") == 2  # noqa: PLR2004


def _shape_of(token: bytes) -> str:
    if not token:
        return "empty"
    return "unsigned" if token[:1] in b"{[" else "not_a_jws"


def _check_header(header: bytes) -> None:
    if not header or len(header) > _MAX_HEADER:
        raise VerificationError("bad_header")
    try:
        fields = orjson.loads(_unb64(header))
    except ValueError:
        raise VerificationError("bad_header") from None
    if not isinstance(fields, dict) or "crit" in fields:  # RFC 7515 section 4.1.11
        raise VerificationError("bad_header")
    if fields.get("alg") != "HS256":
        raise VerificationError("wrong_algorithm")


def _b64(data: bytes) -> bytes:
    return pybase64.b64encode(data, altchars=b"-_").rstrip(b"=")


def _unb64(text: bytes) -> bytes:
    """Raises ValueError unless ``text`` is unpadded base64url."""
    if text[-1:] == b"=" or _PLUS in text or _SLASH in text:
        raise ValueError("padded, or of the other alphabet")
    return pybase64.b64decode(text + b"=" * (-len(text) % 4), altchars=b"-_", validate=True)

"""Every signature primitive. What is wrong in whatever way ends in one VerificationError.

JWS: https://www.rfc-editor.org/rfc/rfc7515
"""

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import orjson
import pybase64

from ingest.errors import VerificationError

#: Longer JOSE headers than this are not looked into, in bytes of base64.
_MAX_HEADER = 4096

_B64_OF_SHA256 = 43
_PLUS, _SLASH, _DOT = b"+/."

#: Of SHA-256, in bytes.
_BLOCK = 64


class Verifier(Protocol):
    """One scheme in which a provider signs a whole body, by headers beside it."""

    #: Names of the headers that it needs, in lower case.
    headers: Sequence[bytes]
    #: How many deliveries another secret than the first has signed.
    former_seen: int

    def verify(self, headers: Mapping[bytes, bytes], body: bytes, now_ms: int) -> None:
        """Raise VerificationError unless one of the secrets has signed ``body``, and lately.

        ``headers``: names in lower case; of one that came twice, the last. ``now_ms``: our clock.
        """
        ...


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

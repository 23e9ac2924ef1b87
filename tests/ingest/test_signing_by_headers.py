"""Standard Webhooks and static tokens: the secret's holder gets through, and nobody else."""

import base64
import hashlib
import hmac
import json
import time
import warnings
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from standardwebhooks.webhooks import Webhook as Library
from standardwebhooks.webhooks import WebhookVerificationError

from ingest.errors import ConfigError, VerificationError
from ingest.signing import (
    StandardWebhooks,
    StaticToken,
    sign_standard_webhooks,
    signing_headers,
    with_static_token,
)

SAMPLES = Path(__file__).parents[1] / "samples" / "diallink"

REASONS = {"missing_header", "bad_header", "bad_signature", "too_old", "in_future"}

TOLERANCE_S = 300.0

# The vector of the project's own tests (standard-webhooks/standard-webhooks,
# libraries/python/tests), computed anew with Python's hmac.
SECRET = b"whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER_SECRET = b"whsec_aW52ZW50ZWQtb3RoZXItc2VjcmV0LW5vLTAwMDA="
IDENT = b"msg_p5jXN8AQM9LWM0D4loKWxJek"
TIMESTAMP = b"1614265330"
NOW_MS = 1_614_265_330_000
BODY = b'{"test": 2432232314}'
SIGNATURE = b"v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def headers(
    signature: bytes | None = SIGNATURE,
    ident: bytes | None = IDENT,
    timestamp: bytes | None = TIMESTAMP,
) -> dict[bytes, bytes]:
    """A delivery's; None: without it."""
    found = {
        b"webhook-id": ident,
        b"webhook-timestamp": timestamp,
        b"webhook-signature": signature,
    }
    return {name: value for name, value in found.items() if value is not None}


def signature_of(
    body: bytes = BODY,
    secret: bytes = SECRET,
    ident: bytes = IDENT,
    timestamp: bytes = TIMESTAMP,
    key: bytes | None = None,
) -> bytes:
    """Made without our code; ``key``: what to sign with in the place of the secret's."""
    if key is None:
        key = base64.b64decode(secret.removeprefix(b"whsec_"))
    signed = ident + b"." + timestamp + b"." + body
    return b"v1," + base64.b64encode(hmac.new(key, signed, "sha256").digest())


def verify(
    given: Mapping[bytes, bytes],
    body: bytes = BODY,
    now_ms: int = NOW_MS,
    *secrets: bytes,
) -> None:
    StandardWebhooks(secrets or [SECRET], TOLERANCE_S).verify(given, body, now_ms)


def refusal(
    given: Mapping[bytes, bytes], body: bytes = BODY, now_ms: int = NOW_MS, *secrets: bytes
) -> str:
    """The reason; anything but a VerificationError fails the test, and so does a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(VerificationError) as caught:
            verify(given, body, now_ms, *secrets)
    assert type(caught.value) is VerificationError
    assert caught.value.reason in REASONS
    return caught.value.reason


# --- known answers ------------------------------------------------------------------------------


def test_the_official_vector_verifies() -> None:
    verify(headers())


def test_the_samples_verify_with_the_secrets_that_they_name() -> None:
    plain = json.loads((SAMPLES / "notification-signed.json").read_bytes())
    rotated = json.loads((SAMPLES / "notification-signed-rotation.json").read_bytes())
    cases = [
        (plain, [plain["secret"]]),
        (rotated, [rotated["secrets"]["new"]]),
        (rotated, [rotated["secrets"]["old"]]),
        (rotated, [rotated["secrets"]["old"], rotated["secrets"]["new"]]),
    ]
    for sample, secrets in cases:
        given = {name.encode(): value.encode() for name, value in sample["headers"].items()}
        now_ms = int(sample["headers"]["webhook-timestamp"]) * 1000
        verify(given, sample["body"].encode(), now_ms, *(text.encode() for text in secrets))
    # Parsed and written again it is another body: the one with white space does not survive that.
    again = json.dumps(json.loads(rotated["body"])).encode()
    given = {name.encode(): value.encode() for name, value in rotated["headers"].items()}
    now_ms = int(rotated["headers"]["webhook-timestamp"]) * 1000
    assert refusal(given, again, now_ms, rotated["secrets"]["new"].encode()) == "bad_signature"


def test_what_we_sign_is_the_official_vector() -> None:
    assert sign_standard_webhooks(BODY, SECRET, IDENT.decode(), int(TIMESTAMP)) == {
        "webhook-id": IDENT.decode(),
        "webhook-timestamp": TIMESTAMP.decode(),
        "webhook-signature": SIGNATURE.decode(),
    }


@pytest.mark.parametrize(
    "body", [b"", b"no json", b"\xff\xfe\x00", b"[]", b"x" * 1_000_000, b"\r\n"]
)
def test_bodies_are_bytes_and_are_not_judged(body: bytes) -> None:
    verify(headers(signature_of(body)), body)
    assert refusal(headers(signature_of(body)), body + b" ") == "bad_signature"


def test_header_values_are_signed_as_they_were_received() -> None:
    for ident, timestamp in ((b"msg.with.dots", TIMESTAMP), ("é☎".encode(), b"01614265330")):
        signature = signature_of(ident=ident, timestamp=timestamp)
        verify(headers(signature, ident, timestamp))
        assert refusal(headers(signature, ident, b"1614265331")) == "bad_signature"


# --- several signatures, several secrets --------------------------------------------------------


def test_any_signature_with_any_of_our_secrets_will_do() -> None:
    new, old = signature_of(), signature_of(secret=OTHER_SECRET)
    third = signature_of(secret=b"whsec_" + base64.b64encode(b"3" * 24))
    for entries in ([new], [old], [third, new], [old, third], [third, third, old, new]):
        verify(headers(b" ".join(entries)), BODY, NOW_MS, SECRET, OTHER_SECRET)
    assert refusal(headers(third), BODY, NOW_MS, SECRET, OTHER_SECRET) == "bad_signature"
    assert refusal(headers(old)) == "bad_signature"


SKIPPED = {
    "doubled spaces": b"  " + SIGNATURE + b"  ",
    "no comma": b"v1 garbage " + SIGNATURE,
    "two commas": b"v1,a,b " + SIGNATURE,
    "bad base64": b"v1,!!!! v1,AAA= " + SIGNATURE,
    "no base64 of the right length": b"v1," + b"!" * 44 + b" " + SIGNATURE,
    "not ASCII": b"v1," + "é".encode() * 22 + b" " + SIGNATURE,
    "unknown versions": b"v2,AAAA v1a,AAAA v0, " + SIGNATURE,
    "commas alone": b", ,, " + SIGNATURE,
    "behind a good one": SIGNATURE + b" v1,! v9",
}


@pytest.mark.parametrize("name", SKIPPED)
def test_entries_of_no_known_form_are_skipped(name: str) -> None:
    verify(headers(SKIPPED[name]))


def test_it_counts_what_only_a_former_secret_has_signed() -> None:
    verifier = StandardWebhooks([SECRET, OTHER_SECRET], TOLERANCE_S)
    new, old = signature_of(), signature_of(secret=OTHER_SECRET)
    for entries in (new, old + b" " + new, new + b" " + old):
        verifier.verify(headers(entries), BODY, NOW_MS)
    assert verifier.former_seen == 0
    verifier.verify(headers(old), BODY, NOW_MS)
    assert verifier.former_seen == 1
    with pytest.raises(VerificationError):  # a replay says nothing of what they sign with today
        verifier.verify(headers(old), BODY, NOW_MS + 301_000)
    assert verifier.former_seen == 1


# --- hostile deliveries -------------------------------------------------------------------------

VALUE = SIGNATURE.removeprefix(b"v1,")
RAW = base64.b64decode(VALUE)

HOSTILE: dict[str, tuple[dict[bytes, bytes], str]] = {
    "nothing": ({}, "missing_header"),
    "no id": (headers(ident=None), "missing_header"),
    "no timestamp": (headers(timestamp=None), "missing_header"),
    "no signature": (headers(None), "missing_header"),
    "empty id": (headers(ident=b""), "missing_header"),
    "empty timestamp": (headers(timestamp=b""), "missing_header"),
    "empty signature": (headers(b""), "missing_header"),
    "another id": (headers(ident=b"msg_1"), "bad_signature"),
    "id and a space": (headers(ident=IDENT + b" "), "bad_signature"),
    "a boundary that is moved": (
        headers(signature_of(ident=b"a.1", timestamp=TIMESTAMP), b"a", b"1"),
        "bad_signature",
    ),
    "another time": (headers(timestamp=b"1614265331"), "bad_signature"),
    "v1a": (headers(b"v1a," + VALUE), "bad_signature"),
    "v2": (headers(b"v2," + VALUE), "bad_signature"),
    "V1": (headers(b"V1," + VALUE), "bad_signature"),
    "no version": (headers(VALUE), "bad_signature"),
    "a version alone": (headers(b"v1,"), "bad_signature"),
    "an equals sign for the comma": (headers(b"v1=" + VALUE), "bad_signature"),
    "a space behind the comma": (headers(b"v1, " + VALUE), "bad_signature"),
    "joined by commas": (headers(b"v1,AAAA," + SIGNATURE), "bad_signature"),
    "joined by a tab": (headers(b"v1,AAAA\t" + SIGNATURE), "bad_signature"),
    "quoted": (headers(b'"' + SIGNATURE + b'"'), "bad_signature"),
    "in hex": (headers(b"v1," + RAW.hex().encode()), "bad_signature"),
    "not padded": (headers(SIGNATURE.rstrip(b"=")), "bad_signature"),
    "in the other alphabet": (
        headers(b"v1," + base64.urlsafe_b64encode(RAW)),
        "bad_signature",
    ),
    "another spelling of the signature": (
        # The last letter before the padding has two bits that mean nothing.
        headers(SIGNATURE[:-2] + b"F="),
        "bad_signature",
    ),
    "cut": (headers(b"v1," + base64.b64encode(RAW[:16])), "bad_signature"),
    "zeros": (headers(b"v1," + base64.b64encode(bytes(32))), "bad_signature"),
    "signed with SHA-512": (
        headers(
            b"v1,"
            + base64.b64encode(
                hmac.new(
                    base64.b64decode(SECRET[6:]), IDENT + b"." + TIMESTAMP + b"." + BODY, "sha512"
                ).digest()[:32]
            )
        ),
        "bad_signature",
    ),
    "the secret's text as the key": (headers(signature_of(key=SECRET)), "bad_signature"),
    "the secret's base64 as the key": (headers(signature_of(key=SECRET[6:])), "bad_signature"),
    "an empty key": (headers(signature_of(key=b"")), "bad_signature"),
    "the body alone": (
        headers(
            b"v1,"
            + base64.b64encode(hmac.new(base64.b64decode(SECRET[6:]), BODY, "sha256").digest())
        ),
        "bad_signature",
    ),
    "a plain hash": (
        headers(
            b"v1,"
            + base64.b64encode(
                hashlib.sha256(IDENT + b"." + TIMESTAMP + b"." + BODY).digest(),
            )
        ),
        "bad_signature",
    ),
    "another secret": (headers(signature_of(secret=OTHER_SECRET)), "bad_signature"),
    "60 kB of spaces": (headers(b" " * 60_000), "bad_signature"),
    "20,000 entries": (headers(b"v1, " * 20_000), "bad_signature"),
    "1,000 entries of the right length": (
        headers(b" ".join([b"v1," + b"A" * 44] * 1000)),
        "bad_signature",
    ),
}

#: None of them is made of ASCII's digits alone, or is a time; all are rightly signed.
_NO_TIMES: list[bytes] = [
    b"1614265330.9",
    b"1614265330.0",
    b"+1614265330",
    b"-1614265330",
    b" 1614265330",
    b"1614265330 ",
    b"1614 265330",
    b"1_614_265_330",
    b"1614265330\n",
    b"1614265330\0",
    b"1.61426533e9",
    b"0x60378f72",
    b"nan",
    b"inf",
    b"null",
    b"now",
    b"2021-02-25T15:02:10Z",
    "\u0661\u0666\u0661\u0664\u0662\u0666\u0665\u0663\u0663\u0660".encode(),
    b"\xb2\xb3",
    b"\xff",
    b"9" * 13,
    b"9" * 5000,
]
for _time in _NO_TIMES:
    HOSTILE[f"timestamp {_time[:24]!r}"] = (
        headers(signature_of(timestamp=_time), timestamp=_time),
        "bad_header",
    )


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_headers_are_refused_for_their_reason(name: str) -> None:
    given, reason = HOSTILE[name]
    assert refusal(given) == reason


def test_no_other_byte_anywhere_in_the_body_or_the_headers_verifies() -> None:
    verifier = StandardWebhooks([SECRET], TOLERANCE_S)

    def must_fail(given: Mapping[bytes, bytes], body: bytes) -> None:
        try:
            verifier.verify(given, body, NOW_MS)
        except VerificationError as error:
            assert error.reason in REASONS  # noqa: PT017 - thousands of rounds
        else:
            pytest.fail(f"{given} {body!r} verifies")

    for place in range(len(BODY)):
        for other in set(range(256)) - {BODY[place]}:
            must_fail(headers(), BODY[:place] + bytes([other]) + BODY[place + 1 :])
    for name, value in headers().items():
        for place in range(len(value)):
            for other in set(range(256)) - {value[place]}:
                mutant = value[:place] + bytes([other]) + value[place + 1 :]
                must_fail({**headers(), name: mutant}, BODY)


# --- freshness ----------------------------------------------------------------------------------


def test_five_minutes_either_way_are_fresh_and_no_more() -> None:
    for now_ms in (NOW_MS, NOW_MS + 300_000, NOW_MS - 300_000):
        verify(headers(), BODY, now_ms)
    assert refusal(headers(), BODY, NOW_MS + 300_001) == "too_old"
    assert refusal(headers(), BODY, NOW_MS - 300_001) == "in_future"
    assert refusal(headers(), BODY, NOW_MS * 2) == "too_old"
    assert refusal(headers(), BODY, 0) == "in_future"


def test_the_time_is_looked_at_after_the_signature() -> None:
    """Otherwise a stranger could learn our clock, and see what a right signature would do."""
    assert refusal(headers(b"v1,AAAA"), BODY, NOW_MS + 10**9) == "bad_signature"
    late = b"999999999999"
    signed = headers(signature_of(timestamp=late), timestamp=late)
    assert refusal(signed) == "in_future"


def test_the_tolerance_is_a_setting() -> None:
    verifier = StandardWebhooks([SECRET], 0.5)
    verifier.verify(headers(), BODY, NOW_MS + 500)
    with pytest.raises(VerificationError, match="too_old"):
        verifier.verify(headers(), BODY, NOW_MS + 501)


# --- secrets ------------------------------------------------------------------------------------


def _whsec(size: int) -> bytes:
    return b"whsec_" + base64.b64encode(bytes(range(1, size + 1)))


@pytest.mark.parametrize(
    "secret",
    [
        _whsec(24),
        _whsec(25),
        _whsec(26),
        _whsec(64),
        _whsec(32).removeprefix(b"whsec_"),
        _whsec(25).rstrip(b"="),
        _whsec(26).removeprefix(b"whsec_").rstrip(b"="),
    ],
)
def test_secrets_come_with_and_without_prefix_and_padding(secret: bytes) -> None:
    text = secret.removeprefix(b"whsec_")
    key = base64.b64decode(text + b"=" * (-len(text) % 4))
    verify(headers(signature_of(key=key)), BODY, NOW_MS, secret)


@pytest.mark.parametrize(
    "secret",
    [
        b"",
        b"whsec_",
        b"whsec_ ",
        b"whsec_" + base64.b64encode(b"x" * 23),
        b"whsec_" + base64.b64encode(b"x" * 65),
        b"whsec_" + base64.b64encode(bytes(24)),  # to HMAC the empty key
        b"whsec_" + base64.urlsafe_b64encode(b"\xff" * 24),
        b"whsec_" + base64.b64encode(b"x" * 24) + b"\n",
        b"whsec_ " + base64.b64encode(b"x" * 24),
        b"whsec_" + base64.b64encode(b"x" * 24)[:-1] + b"!",
        b"whsec_" + "é".encode() * 20,
        b"WHSEC_" + base64.b64encode(b"x" * 24),
        b"whsk_" + base64.b64encode(b"x" * 64),
        b"whpk_" + base64.b64encode(b"x" * 32),
        b"invented-secret-at-least-32-bytes-long!",
    ],
)
def test_secrets_that_are_none_stop_the_start_and_are_not_shown(secret: bytes) -> None:
    with pytest.raises(ConfigError) as caught:
        StandardWebhooks([SECRET, secret], TOLERANCE_S)
    (fault,) = caught.value.faults
    assert "number 2" in fault
    assert "openssl rand -base64 32" in fault
    assert "whsec_" in fault
    told = secret.removeprefix(b"whsec_").strip().decode()
    assert not told or told not in fault


def test_every_bad_secret_is_a_fault_of_its_own() -> None:
    with pytest.raises(ConfigError) as caught:
        StandardWebhooks([b"", SECRET, b"whsec_x"], TOLERANCE_S)
    assert len(caught.value.faults) == 2
    with pytest.raises(ConfigError, match="there is none"):
        StandardWebhooks([], TOLERANCE_S)
    with pytest.raises(ConfigError):
        sign_standard_webhooks(BODY, b"short", "msg_1", 1)


# --- which headers ------------------------------------------------------------------------------


def test_of_the_headers_only_those_that_are_needed_are_taken() -> None:
    received = [(b"host", b"a"), (b"webhook-id", b"1"), (b"host", b"b"), (b"x", b"")]
    assert signing_headers(received, StandardWebhooks.headers) == {b"webhook-id": b"1"}


def test_a_signing_header_that_comes_twice_is_refused() -> None:
    """Even with one value: whoever stands between may take the other one of two."""
    for name in StandardWebhooks.headers:
        for second in (b"other", headers()[name]):
            with pytest.raises(VerificationError) as caught:
                signing_headers([*headers().items(), (name, second)], StandardWebhooks.headers)
            assert caught.value.reason == "bad_header"


# --- properties ---------------------------------------------------------------------------------

_values = st.one_of(
    st.binary(max_size=60),
    st.text(alphabet="v1a2, ;=AZaz09+/-_.\t", max_size=80).map(str.encode),
    st.sampled_from([b"", SIGNATURE, VALUE, TIMESTAMP, IDENT, b"v1,", b"v1," + b"A" * 44]),
)


@settings(max_examples=400)
@given(
    given=st.dictionaries(st.sampled_from([*headers(), b"other"]), _values),
    body=st.binary(max_size=40),
)
def test_headers_of_strangers_are_refused_and_nothing_else(
    given: dict[bytes, bytes], body: bytes
) -> None:
    refusal(given, body)  # only of the vector's own body could a signature be right


_entries = st.lists(
    st.one_of(st.sampled_from(["good", "old", "gone"]), _values.map(lambda v: v.split(b" ")[0])),
    max_size=6,
)


@settings(max_examples=300)
@given(
    entries=_entries,
    ident=st.binary(min_size=1, max_size=20),
    body=st.binary(max_size=80),
    late_s=st.integers(-700, 700),
)
@example(entries=[b"v1", b"v1,", b",", b"", "good"], ident=b"a", body=b"{}", late_s=0)
def test_a_delivery_verifies_if_and_only_if_it_is_fresh_and_rightly_signed(
    entries: list[bytes | str], ident: bytes, body: bytes, late_s: int
) -> None:
    made = {
        "good": signature_of(body, ident=ident),
        "old": signature_of(body, OTHER_SECRET, ident),
        "gone": signature_of(body, b"whsec_" + base64.b64encode(b"g" * 24), ident),
    }
    header = b" ".join(made[entry] if isinstance(entry, str) else entry for entry in entries)
    given = headers(header, ident)
    now_ms = NOW_MS + late_s * 1000
    signed = "good" in entries or "old" in entries
    if signed and abs(late_s) <= 300:
        verify(given, body, now_ms, SECRET, OTHER_SECRET)
        return
    reason = refusal(given, body, now_ms, SECRET, OTHER_SECRET)
    if signed:
        assert reason == ("too_old" if late_s > 0 else "in_future")
    else:
        assert reason in ("bad_signature", "missing_header")


# --- the reference library as oracle ------------------------------------------------------------


def by_library(given: Mapping[bytes, bytes], body: bytes, secret: bytes) -> bool:
    """Whether the reference library takes it; its other errors are refusals, too."""
    texts = {name.decode("latin-1"): value.decode("latin-1") for name, value in given.items()}
    try:
        Library(secret.decode()).verify(body, texts, json_parse=False)
    except (WebhookVerificationError, ValueError):  # binascii's and Unicode's are ValueErrors
        return False
    return True


def by_us(given: Mapping[bytes, bytes], body: bytes, secret: bytes) -> bool:
    try:
        verify(given, body, time.time_ns() // 1_000_000, secret)
    except VerificationError:
        return False
    return True


_idents = st.text(alphabet=st.characters(min_codepoint=33, max_codepoint=126), min_size=1)
_keys = st.binary(min_size=24, max_size=64).filter(lambda key: key.strip(b"\0"))


@settings(max_examples=200)
@given(body=st.text(max_size=100), ident=_idents, key=_keys)
def test_what_the_library_signs_we_verify_and_the_other_way_round(
    body: str, ident: str, key: bytes
) -> None:
    now = datetime.now(tz=UTC)
    secret = b"whsec_" + base64.b64encode(key)
    theirs = {
        b"webhook-id": ident.encode(),
        b"webhook-timestamp": str(int(now.timestamp())).encode(),
        b"webhook-signature": Library(secret.decode()).sign(ident, now, body).encode(),
    }
    assert by_us(theirs, body.encode(), secret)
    ours = sign_standard_webhooks(body.encode(), secret, ident, int(now.timestamp()))
    given = {name.encode(): value.encode() for name, value in ours.items()}
    assert given == theirs
    assert by_library(given, body.encode(), secret)


_edits = st.lists(
    st.tuples(
        st.sampled_from(["webhook-id", "webhook-timestamp", "webhook-signature", "body"]),
        st.integers(0, 80),
        st.text(alphabet=" ,.v1aA=+/0\u00e9", max_size=2),
    ),
    max_size=2,
)


@settings(max_examples=300)
@given(edits=_edits, late_s=st.sampled_from([0, 0, 0, -250, 250, -600, 600]))
def test_what_we_take_the_library_takes_and_the_other_way_round_but_where_we_are_known_to_differ(
    edits: list[tuple[str, int, str]], late_s: int
) -> None:
    signed = sign_standard_webhooks(BODY, SECRET, "msg_1", int(time.time()) - late_s)
    parts = {**signed, "body": BODY.decode()}
    for name, place, text in edits:
        parts[name] = parts[name][:place] + text + parts[name][place:]
    body = parts.pop("body").encode()
    given = {name.encode(): value.encode("latin-1") for name, value in parts.items()}
    ours, theirs = by_us(given, body, SECRET), by_library(given, body, SECRET)
    if ours and not theirs:
        # One entry of no form lets the library give up, even before a good one.
        entries = parts["webhook-signature"].split(" ")
        assert signed["webhook-signature"] in entries
        assert len(entries) > 1
    if theirs and not ours:
        # It reads base64 with patience, and times with fractions, signs, zeros in front and spaces.
        value = parts["webhook-signature"].rpartition(",")[2]
        same_time = parts["webhook-timestamp"] == signed["webhook-timestamp"]
        assert value != signed["webhook-signature"][3:] or not same_time


# --- static tokens ------------------------------------------------------------------------------

TOKEN = b"invented-token-0001"
OLD_TOKEN = b"invented-token-0000"


def token_refusal(verifier: StaticToken, given: Mapping[bytes, bytes]) -> str:
    with pytest.raises(VerificationError) as caught:
        verifier.verify(given, BODY, NOW_MS)
    assert type(caught.value) is VerificationError
    return caught.value.reason


def test_a_bearers_token_opens_the_door_whatever_the_body_and_the_time() -> None:
    verifier = StaticToken([TOKEN], b"Authorization")
    for scheme in (b"Bearer ", b"bearer ", b"BEARER  "):
        verifier.verify({b"authorization": scheme + TOKEN}, b"\xff", 0)
    assert with_static_token(TOKEN, "Authorization") == {
        "authorization": "Bearer invented-token-0001"
    }
    assert with_static_token(TOKEN, "X-Token") == {"x-token": "invented-token-0001"}


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        (None, "missing_header"),
        (b"", "missing_header"),
        (TOKEN, "bad_header"),
        (b"Basic " + TOKEN, "bad_header"),
        (b"Bearer" + TOKEN, "bad_header"),
        (b"Bearer\t" + TOKEN, "bad_header"),
        (b"Bearer:" + TOKEN, "bad_header"),
        (b"Bearer", "bad_token"),
        (b"Bearer ", "bad_token"),
        (b"Bearer " + TOKEN[:-1], "bad_token"),
        (b"Bearer " + TOKEN + b"x", "bad_token"),
        (b"Bearer " + TOKEN.upper(), "bad_token"),
        (b"Bearer " + TOKEN + b", Bearer " + TOKEN, "bad_token"),
        (b'Bearer "' + TOKEN + b'"', "bad_token"),
        (b"Bearer " + "é".encode() * 9, "bad_token"),
        (b"Bearer \xff\x00", "bad_token"),
    ],
)
def test_other_bearers_are_refused(value: bytes | None, reason: str) -> None:
    given = {} if value is None else {b"authorization": value}
    assert token_refusal(StaticToken([TOKEN], b"authorization"), given) == reason


def test_in_any_other_header_it_stands_bare() -> None:
    verifier = StaticToken([TOKEN], b"X-Token")
    assert list(verifier.headers) == [b"x-token"]
    verifier.verify({b"x-token": TOKEN}, BODY, NOW_MS)
    assert token_refusal(verifier, {b"x-token": b"Bearer " + TOKEN}) == "bad_token"
    assert token_refusal(verifier, {b"authorization": b"Bearer " + TOKEN}) == "missing_header"


def test_a_token_is_a_secret_and_is_not_kept_beside_bodies() -> None:
    assert list(StaticToken([TOKEN], b"x-token").kept) == []
    assert set(StandardWebhooks([SECRET], TOLERANCE_S).kept) == set(headers())


def test_while_tokens_are_rotated_both_will_do() -> None:
    verifier = StaticToken([TOKEN, OLD_TOKEN], b"authorization")
    verifier.verify({b"authorization": b"Bearer " + TOKEN}, BODY, NOW_MS)
    assert verifier.former_seen == 0
    verifier.verify({b"authorization": b"Bearer " + OLD_TOKEN}, BODY, NOW_MS)
    assert verifier.former_seen == 1


@pytest.mark.parametrize(
    "secret",
    [
        b"",
        b"15-letters-long",
        b" invented-token-0001",
        b"invented-token-0001\n",
        b"invented\0token-00001",
        "inventéd-token-0001".encode(),
        b"\xff" * 16,
    ],
)
def test_tokens_that_can_be_guessed_or_sent_by_nobody_stop_the_start(secret: bytes) -> None:
    with pytest.raises(ConfigError) as caught:
        StaticToken([TOKEN, secret], b"authorization")
    (fault,) = caught.value.faults
    assert "number 2" in fault
    assert "openssl rand -hex 32" in fault
    assert b"token-" not in fault.encode()
    with pytest.raises(ConfigError):
        with_static_token(secret, "authorization")


@settings(max_examples=200)
@given(value=st.binary(max_size=60) | st.binary(max_size=40).map(lambda v: b"Bearer " + v))
def test_values_of_strangers_are_refused_and_nothing_else(value: bytes) -> None:
    assert token_refusal(StaticToken([TOKEN], b"authorization"), {b"authorization": value})
    assert token_refusal(StaticToken([TOKEN], b"x-token"), {b"x-token": value})

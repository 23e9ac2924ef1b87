"""What is said of deliveries that did not verify, each made by hand; nothing of it is content."""

import base64
import hashlib
import hmac
import json
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.delivery import Source
from ingest.diagnosis import diagnose
from ingest.providers import PROVIDERS
from ingest.providers.dialpad.webhook import Webhook
from ingest.quarantine import Refused
from ingest.settings import Connection
from tests.kit import OTHER_SECRET, SECRET, call, sign

#: 2026-09-21T14:13:20Z
CAME_MS = 1_790_000_000_000

LINE_KEY = bytes(range(1, 33))
LINE_SECRET = "whsec_" + base64.b64encode(LINE_KEY).decode()
TOKEN = "invented-token-of-the-bots"


def source(provider: str, secret: str, **more: object) -> Source:
    table = {"provider": provider, "secrets": [secret], "api_key": "invented", **more}
    return PROVIDERS[provider].webhook(Connection.model_validate(table))


SOURCES = {
    "acme": source("dialpad", SECRET),
    "beta": source("dialpad", OTHER_SECRET),
    "line": source("diallink", LINE_SECRET),
    "bots": source("dialgood", TOKEN, assume={"push": "token"}),
}


def refused(
    body: bytes,
    reason: str,
    connection: str = "acme",
    headers: Sequence[tuple[bytes, bytes]] = (),
    *,
    former: bool = False,
) -> Refused:
    return Refused(
        connection=connection,
        via="webhook",
        hint=None,
        reason=reason,
        received_ms=CAME_MS,
        headers=headers,
        body=body,
        former=former,
    )


def notified(body: bytes, at_s: int, key: bytes = LINE_KEY) -> list[tuple[bytes, bytes]]:
    mac = hmac.new(key, b"msg_1.%d.%b" % (at_s, body), hashlib.sha256).digest()
    return [
        (b"webhook-id", b"msg_1"),
        (b"webhook-timestamp", b"%d" % at_s),
        (b"webhook-signature", b"v1," + base64.b64encode(mac)),
    ]


def said(one: Refused | None) -> tuple[str, str]:
    found = diagnose(one, SOURCES)
    return found.word, found.text


CALL = json.dumps(call(1, 0)).encode()
NOTE = b'{"type":"call.started","data":{}}'
CAME_S = CAME_MS // 1000

CASES: list[tuple[Refused, str, str]] = [
    (
        refused(sign(call(1, 0)), "bad_signature"),
        "verifies_now",
        "verifies now: requeue it",
    ),
    (
        refused(sign(b"no json"), "bad_signature"),
        "verifies_now",
        "verifies now: requeue it",
    ),
    (
        refused(sign(call(1, 0), OTHER_SECRET), "bad_signature"),
        "other_connection",
        "signed with the secret of connection beta",
    ),
    (
        refused(NOTE, "unsigned", "acme", notified(NOTE, CAME_S)),
        "other_connection",
        "signed with the secret of connection line",
    ),
    (
        refused(NOTE, "unsigned", "acme", notified(NOTE, CAME_S - 5400)),
        "other_connection",
        "signed with the secret of connection line",
    ),
    (
        refused(NOTE, "unsigned", "acme", [(b"authorization", b"Bearer " + TOKEN.encode())]),
        "other_connection",
        "signed with the secret of connection bots",
    ),
    (
        refused(
            sign(call(1, 0), "one-of-last-year, longer than 32 bytes"), "bad_signature", former=True
        ),
        "old_secret",
        "signed with the old secret",
    ),
    (
        refused(sign(call(1, 0), "one-of-somebody-else, more than 32 bytes"), "bad_signature"),
        "unknown_secret",
        "signed with a secret that is not in the settings",
    ),
    (refused(CALL, "unsigned"), "unsigned", "unsigned JSON: the webhook has no secret at Dialpad"),
    (refused(b"{not json", "unsigned"), "garbage", "garbage"),
    (
        refused(NOTE, "missing_header", "line"),
        "unsigned",
        "unsigned JSON: the header that should sign it is missing",
    ),
    (refused(b"\xff\x00", "missing_header", "line"), "garbage", "garbage"),
    (
        refused(NOTE, "too_old", "line", notified(NOTE, CAME_S - 540)),
        "clock",
        "clock 9 min off, or sent again that much later",
    ),
    (
        refused(NOTE, "in_future", "line", notified(NOTE, CAME_S + 540)),
        "clock",
        "clock 9 min off: signed after it came",
    ),
    (
        refused(NOTE, "bad_signature", "line", notified(NOTE, CAME_S, b"x" * 32)),
        "unknown_secret",
        "signed with a secret that is not in the settings",
    ),
    (
        refused(NOTE, "bad_token", "bots", [(b"authorization", b"Bearer no-such-token-here")]),
        "unknown_secret",
        "its token is in no connection's settings",
    ),
    (
        refused(sign({"exp": CAME_S - 3600 * 8}), "expired"),
        "expired",
        "signed, but expired 8 h before it came",
    ),
    (
        refused(sign({"nbf": CAME_S + 86_400 * 2}), "not_yet_valid"),
        "not_yet_valid",
        "signed, but not valid for another 2 d",
    ),
    (
        refused(sign({"nbf": 1e300}), "not_yet_valid"),
        "not_yet_valid",
        "signed, but not valid for another more than 100 years",
    ),
    (refused(b"", "empty"), "empty", "empty: nothing was posted"),
    (refused(b"a.b", "not_a_jws"), "garbage", "garbage"),
    (
        refused(b"eyJhbGciOiJub25lIn0.e30.", "wrong_algorithm"),
        "wrong_algorithm",
        "a JWT that is not signed with HS256",
    ),
    (
        refused(NOTE, "bad_header", "line", 2 * notified(NOTE, CAME_S)),
        "bad_header",
        "what should sign it is malformed",
    ),
    (refused(b"!.!.!", "bad_header"), "garbage", "garbage"),
    (
        refused(sign(call(1, 0), SECRET), "bad_signature", "gone"),
        "other_connection",
        "signed with the secret of connection acme",
    ),
]


@pytest.mark.parametrize(
    ("one", "word", "text"), CASES, ids=[f"{n}-{case[1]}" for n, case in enumerate(CASES)]
)
def test_what_is_the_matter_is_said(one: Refused, word: str, text: str) -> None:
    assert said(one) == (word, text)


def test_a_file_that_is_damaged_is_said_to_be() -> None:
    assert said(None) == ("damaged", "the file is damaged")


def test_a_fault_of_ours_is_said_to_be_one_and_keeps_the_others_from_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fails(*_: object) -> None:
        raise RuntimeError(CANARY)

    monkeypatch.setattr(Webhook, "normalize", fails)
    assert said(refused(sign(call(1, 0)), "bad_signature")) == (
        "internal",
        "verifies now, but a fault of ours keeps it from being read",
    )


REASONS = [
    "empty",
    "unsigned",
    "not_a_jws",
    "bad_header",
    "wrong_algorithm",
    "bad_signature",
    "missing_header",
    "too_old",
    "in_future",
    "bad_token",
    "expired",
    "not_yet_valid",
    "of a later version",
]

CANARY = "Canary5550123"
jsons = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.just(CANARY),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["exp", "nbf", CANARY]), inner, max_size=3)
    ),
    max_leaves=8,
)


@given(
    body=st.one_of(
        st.binary(max_size=200),
        jsons.map(lambda value: json.dumps(value).encode()),
        st.tuples(jsons, st.sampled_from([SECRET, OTHER_SECRET, "x" * 32])).map(
            lambda pair: sign(json.dumps(pair[0]).encode(), pair[1])
        ),
    ),
    reason=st.sampled_from(REASONS),
    connection=st.sampled_from([*SOURCES, "gone"]),
    headers=st.lists(
        st.tuples(
            st.sampled_from(
                [b"webhook-id", b"webhook-timestamp", b"webhook-signature", b"authorization"]
            ),
            st.one_of(st.binary(max_size=30), st.just(CANARY.encode())),
        ),
        max_size=5,
    ),
)
def test_whatever_it_is_something_is_said_and_nothing_of_it_repeated(
    body: bytes, reason: str, connection: str, headers: list[tuple[bytes, bytes]]
) -> None:
    word, text = said(refused(body, reason, connection, headers))
    assert word
    assert CANARY not in text
    assert text.isprintable()
    assert len(text) < 100

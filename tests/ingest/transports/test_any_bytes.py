"""Whatever comes over real HTTP: 401, 204 or 413; never 5xx, never a word of surprise from us.

One running receiver takes it all. What is posted is drawn by hypothesis: noise, tokens that were
signed and then mutated, and any JSON at all under the right signature.
"""

import base64
import json
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from tests.kit import (
    SECRET,
    Product,
    Wire,
    assert_no_traceback,
    call,
    chunked,
    request,
    samples,
    sign,
)

SAMPLES = samples()

#: So many examples for each test: about 10 s for all of them.
EXAMPLES = int(os.environ.get("DIALSTREAM_TEST_EXAMPLES", "150"))
_SETTINGS = settings(
    max_examples=EXAMPLES,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
    phases=[Phase.explicit, Phase.reuse, Phase.generate, Phase.shrink],
)


class Receiver:
    """The product, and one connection to it that is opened again when it has been closed."""

    def __init__(self, product: Product) -> None:
        self.product = product
        self._wire: Wire | None = None

    def post(self, body: bytes, path: str = "/webhooks/acme", *, in_chunks: bool = False) -> int:
        """The status of the answer."""
        if in_chunks:
            pieces = [body[at : at + 4096] for at in range(0, len(body), 4096)]
            data = request(path, chunked(pieces), headers=[("Transfer-Encoding", "chunked")])
        else:
            data = request(path, body)
        if self._wire is None:
            self._wire = self.product.wire()
        answer = self._wire.ask(data)
        if answer.headers.get("connection") == "close":
            self.close()
        return answer.status

    def close(self) -> None:
        if self._wire is not None:
            self._wire.close()
            self._wire = None

    def assert_unmoved(self) -> None:
        """It lives, it has nothing to say about faults of its own, and its books balance."""
        self.close()
        assert self.product.alive
        self.product.settled()
        lines = self.product.log()  # each of them JSON
        assert {line["event"] for line in lines} <= {
            "started",
            "delivery_refused",
            "delivery_rejected",
            "rejects_alarm",
            "delivery_slow",  # the machine's
            "drift_seen",  # what is authentic and odd
        }
        assert_no_traceback(self.product.stderr)


@pytest.fixture(scope="module")
def receiver(product: Product) -> Iterator[Receiver]:
    receiver = Receiver(product)
    yield receiver
    receiver.assert_unmoved()


# Noise


@_SETTINGS
@given(body=st.binary(max_size=3000), in_chunks=st.booleans())
@example(body=b"." * 1_000_000, in_chunks=False)
@example(body=b".." + b"=" * 500_000, in_chunks=True)
@example(body=b"\0" * 1_048_576, in_chunks=False)
@example(body=b"[" * 1_000_000, in_chunks=False)
def test_noise_is_refused(receiver: Receiver, body: bytes, in_chunks: bool) -> None:  # noqa: FBT001
    assert receiver.post(body, in_chunks=in_chunks) == 401


def _b64(data: bytes) -> bytes:
    return base64.urlsafe_b64encode(data).rstrip(b"=")


_HEADERS = st.one_of(
    st.binary(max_size=60),
    st.dictionaries(
        st.sampled_from(["alg", "typ", "kid", "jwk", "crit", "b64", "enc", "zip"]),
        st.one_of(
            st.sampled_from(["HS256", "none", "HS512", "RS256", "hs256", "JWT", ""]),
            st.none(),
            st.integers(),
            st.lists(st.text(max_size=5), max_size=2),
            st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2),
        ),
    ).map(lambda fields: json.dumps(fields).encode()),
)


@_SETTINGS
@given(header=_HEADERS, payload=st.binary(max_size=200), signature=st.binary(max_size=40))
def test_tokens_that_nobody_has_signed_are_refused(
    receiver: Receiver, header: bytes, payload: bytes, signature: bytes
) -> None:
    token = b".".join(map(_b64, (header, payload, signature)))
    assert receiver.post(token) == 401


# Mutations of what is right


def _mutations(token: bytes) -> st.SearchStrategy[bytes]:
    """The token with a part replaced, cut, doubled, or put elsewhere."""
    places = st.integers(0, len(token))

    def replaced(at: int, length: int, piece: bytes) -> bytes:
        return token[:at] + piece + token[at + length :]

    return st.one_of(
        st.builds(replaced, places, st.integers(0, 8), st.binary(max_size=8)),
        st.builds(replaced, places, st.integers(0, 3), st.sampled_from([b".", b"=", b"\n", b"+"])),
        st.builds(lambda at: token[:at], places),
        st.builds(lambda at: token[at:], places),
        st.builds(lambda at: token[at:] + token[:at], places),
        st.builds(
            lambda at, n: token[:at] + token[at : at + n] * 2 + token[at + n :], places, places
        ),
        st.permutations(token.split(b".")).map(b".".join),
    )


@_SETTINGS
@given(data=st.data(), name=st.sampled_from(sorted(SAMPLES)))
def test_a_mutated_token_is_refused_unless_it_says_the_same(
    receiver: Receiver, data: st.DataObject, name: str
) -> None:
    token = sign(SAMPLES[name])
    mutant = data.draw(_mutations(token))
    # White space around the token is no part of it.
    assert receiver.post(mutant) == (204 if mutant.strip() == token else 401)


# Anything under the right signature

_NUMBERS = st.one_of(
    st.integers(-(2**70), 2**70),
    st.integers(0, 3),
    st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from([0, -1, 2**53 + 1, 2**63, 2**64, 10**30, 1e300, -1e300, 1790000000000]),
)
_TEXTS = st.one_of(
    st.text(max_size=20),
    st.sampled_from(
        [
            "",
            "0",
            "hangup",
            "connected",
            "inbound",
            "blocked",
            "Created",
            "Deleted",
            "+15551230001",
            "\x00",
            "\u2028",
            "a:b%c",
            "x" * 300,
            "+" * 40,
            "9" * 400,
            "📞",
            "true",
            "nan",
        ]
    ),
)
_ANY = st.recursive(
    st.one_of(st.none(), st.booleans(), _NUMBERS, _TEXTS),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(_TEXTS, inner, max_size=3)
    ),
    max_leaves=6,
)
_KEYS = sorted({key for payload in SAMPLES.values() for key in payload})


def _dump(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


@_SETTINGS
@given(value=_ANY)
def test_any_json_that_is_signed_is_kept(receiver: Receiver, value: object) -> None:
    assert receiver.post(sign(_dump(value))) == 204


@_SETTINGS
@given(value=st.dictionaries(st.sampled_from(_KEYS), _ANY, max_size=12))
@example(value={"event": [], "contact": {}})
@example(value={"event": {}, "contact": {"id": 1}})
@example(value={"event": "Created", "contact": {"id": {}}})
@example(value={"call_id": True, "state": "hold"})
@example(value={"call_id": 1, "state": []})
def test_any_object_of_keys_that_we_know_is_kept(
    receiver: Receiver, value: dict[str, object]
) -> None:
    assert receiver.post(sign(_dump(value))) == 204


def _paths(value: object, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    yield path
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _paths(inner, (*path, key))
    elif isinstance(value, list):
        for at, inner in enumerate(value):
            yield from _paths(inner, (*path, at))


_PATHS = {name: list(_paths(payload))[1:] for name, payload in SAMPLES.items()}


@_SETTINGS
@given(data=st.data(), name=st.sampled_from(sorted(SAMPLES)))
def test_a_sample_with_anything_in_any_place_is_kept(
    receiver: Receiver, data: st.DataObject, name: str
) -> None:
    payload = json.loads(json.dumps(SAMPLES[name]))
    for _ in range(data.draw(st.integers(1, 3))):
        *way, last = data.draw(st.sampled_from(_PATHS[name]))
        at = payload
        try:
            for step in way:
                at = at[step]
            if data.draw(st.booleans()):
                at[last] = data.draw(_ANY)
            else:
                del at[last]
        except (KeyError, IndexError, TypeError):
            pass  # an earlier change took it away
    assert receiver.post(sign(_dump(payload))) == 204


DEEP: dict[str, Callable[[Any], object]] = {
    "at the top": lambda deep: deep,
    "under a key that we do not know": lambda deep: {**call(1, 1), "x": deep},
    "in a call without a clock": lambda deep: {**call(1, 1), "event_timestamp": None, "x": deep},
    "in a list of texts": lambda deep: {**call(1, 1), "labels": [deep]},
    "in an id": lambda deep: {**call(1, 1), "call_id": deep},
    "in an object that we read": lambda deep: {**call(1, 1), "contact": deep},
    "in a recording": lambda deep: {**call(1, 1), "recording_details": [deep]},
    "in a call whose id is large": lambda deep: {**call(1, 1), "call_id": 10**30, "x": deep},
    "in the details of a change": lambda deep: {
        "action": "a",
        "note": "b",
        "additional_data": deep,
    },
    "in a contact": lambda deep: {"event": "Created", "contact": {"id": "1", "phones": [deep]}},
    "in an agent": lambda deep: {"on_duty_status": "busy", "target": {"id": 1}, "x": deep},
    "in a message": lambda deep: {"id": 1, "message_status": "sent", "to_number": deep},
}


@pytest.mark.parametrize("depth", [100, 253, 255, 300, 850, 1100, 20_000])
@pytest.mark.parametrize("brackets", ["[]", "{}"])
@pytest.mark.parametrize("place", DEEP)
def test_depth_is_kept_or_set_aside_wherever_it_is(
    receiver: Receiver, place: str, brackets: str, depth: int
) -> None:
    opening = '{"a":' if brackets == "{}" else "["
    deep = (opening * depth + "1" + brackets[1] * depth).encode()
    payload = _dump(DEEP[place]("DEEP")).replace(b'"DEEP"', deep)
    assert receiver.post(sign(payload)) == 204


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"no json",
        b"NaN",
        b'{"call_id": NaN, "state": "hold"}',
        b'{"call_id": 1, "state": "hold", "talk_time": Infinity}',
        b'{"call_id": 1, "state": "hold", "talk_time": -1e999}',
        b'{"call_id": 1, "state": "hold", "x": "\xff\xfe"}',
        b'{"call_id": 1, "state": "hold", "x": "\\ud800"}',
        b'{"call_id": 1, "state": "hold", "x": "\\u0000"}',
        b'{"call_id": 1, "state": "hold", "state": "hangup"}',
        b'\xef\xbb\xbf{"call_id": 1, "state": "hold"}',
        '{"call_id": 1, "state": "hold"}'.encode("utf-16"),
        b'{"call_id": 1, "state": "hold"} trailing',
        b'{"call_id": 1, "state": "hold", "x": ' + b"9" * 6000 + b"}",
        b'{"call_id": ' + b"9" * 6000 + b', "state": "hold"}',
        b'{"call_id": 1.5, "state": "hold"}',
        b'{"call_id": 1e400, "state": "hold"}',
        b'{"call_id": 1, "state": "hold", "exp": "soon", "nbf": []}',
        b'{"call_id": 1, "state": "hold", "exp": 1e308, "nbf": -1e308}',
        b'{"call_id": 1, "state": "hold", "exp": 99999999999999999999999999}',
        b'{"call_id": 1, "state": "hold", "event_timestamp": 9e18}',
        b'{"call_id": 1, "state": "hold", "event_timestamp": -1}',
        b'{"call_id": 1, "state": "hold", "talk_time": 1e308}',
        b'{"call_id": 1, "state": "hold", "talk_time": "1e308"}',
        b'{"call_id": 1, "state": "hold", "mos_score": 1e308}',
        b"\r\n" * 1000 + b'{"call_id": 1, "state": "hold"}',
    ],
    ids=lambda payload: repr(payload[:50]),
)
def test_odd_payloads_are_kept_or_set_aside(receiver: Receiver, payload: bytes) -> None:
    assert receiver.post(sign(payload)) == 204


def test_a_signed_payload_that_fills_the_limit_is_kept(receiver: Receiver) -> None:
    """Whatever it says, it has to fit into a record with all that we make of it."""
    room = 780_000
    for payload in (
        _dump({**call(1, 1), "custom_data": "x" * room}),
        _dump({**call(1, 1), "custom_data": "\x01" * (room // 6)}),
        _dump({**call(1, 1), "labels": ["y"] * (room // 6)}),
        _dump({**call(1, 1), "x": {str(n): n for n in range(room // 20)}}),
        _dump({"event": "Created", "contact": {"id": 1, "phones": ["5"] * (room // 6)}}),
        _dump({"id": 1, "message_status": "sent", "text": "\U0001f4de" * (room // 5)}),
        _dump({"id": 1, "message_status": "sent", "to_number": ["5551230001"] * (room // 15)}),
        b"[" + b"1," * (room // 2 - 10) + b"1]",
    ):
        assert len(sign(payload)) <= 1_048_576
        assert receiver.post(sign(payload)) == 204


# Any HTTP


@_SETTINGS
@given(
    path=st.one_of(
        st.text(st.characters(min_codepoint=33, max_codepoint=126), max_size=40),
        st.lists(
            st.sampled_from(["webhooks", "acme", "call", "", "..", "%00", "%2f", "?", "#"])
        ).map("/".join),
    ),
    method=st.sampled_from(["POST", "GET", "HEAD", "PUT", "OPTIONS", "DELETE", "TRACE"]),
    body=st.binary(max_size=20),
)
def test_any_address_gets_a_4xx(receiver: Receiver, path: str, method: str, body: bytes) -> None:
    with receiver.product.wire() as wire:
        wire.send(request("/" + path, body, method=method, headers=[("Connection", "close")]))
        try:
            status, _ = wire.head()
        except ConnectionError:
            return
        assert 400 <= status < 500


def test_it_is_the_right_secret_that_these_tests_sign_with(receiver: Receiver) -> None:
    assert receiver.post(sign(call(1, 1), SECRET)) == 204
    assert receiver.post(sign(call(1, 1), SECRET + "x")) == 401

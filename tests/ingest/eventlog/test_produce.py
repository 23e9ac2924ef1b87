"""Requests and answers are those that aiokafka's own classes write and read."""

import struct
from collections.abc import Sequence
from io import BytesIO

from aiokafka.protocol.api import RequestStruct
from aiokafka.protocol.produce import ProduceRequest_v7 as TheirRequest
from aiokafka.protocol.produce import ProduceResponse_v7 as TheirResponse
from hypothesis import example, given
from hypothesis import strategies as st

from ingest.eventlog.produce import ProduceRequest, ProduceResponse

INT32 = st.integers(-(2**31), 2**31 - 1)
INT64 = st.integers(-(2**63), 2**63 - 1)

#: Kafka's own rule is narrower; the protocol is not.
TOPICS = st.one_of(
    st.from_regex(r"[a-zA-Z0-9._-]{1,249}", fullmatch=True), st.text(min_size=1, max_size=60)
).filter(lambda text: text.isprintable())

BATCHES = st.lists(st.tuples(st.integers(0, 2**31 - 1), st.binary(max_size=300)), max_size=20)


@given(TOPICS, BATCHES, st.integers(0, 2**31 - 1))
@example("t", [], 0)
@example("telephony.calls", [(11, bytes(5 * 1024 * 1024))], 10_000)
def test_a_request_is_what_aiokafka_writes(
    topic: str, batches: list[tuple[int, bytes]], timeout_ms: int
) -> None:
    theirs = on_the_wire(TheirRequest(None, -1, timeout_ms, [(topic, batches)]))
    assert on_the_wire(ProduceRequest(topic, batches, timeout_ms).prepare({0: (3, 11)})) == theirs
    mutable = [(partition, bytearray(batch)) for partition, batch in batches]
    assert on_the_wire(ProduceRequest(topic, mutable, timeout_ms).prepare({0: (0, 7)})) == theirs


def on_the_wire(request: RequestStruct) -> bytes:
    """As aiokafka's connections write it, but for its length in front."""
    header = request.build_request_header(correlation_id=5, client_id="dialstream")
    return bytes(header.encode() + request.encode())


def test_a_request_that_is_prepared_again_has_a_header_of_its_own() -> None:
    request = ProduceRequest("t", [(0, b"batch")], 1)
    first = on_the_wire(request.prepare({0: (3, 11)}))
    assert on_the_wire(request.prepare({0: (3, 11)})) == first


def test_the_header_of_a_request_says_version_7() -> None:
    struct_ = ProduceRequest("t", [], 1).prepare({0: (3, 11)})
    assert (struct_.API_KEY, struct_.API_VERSION) == (0, 7)
    assert struct_.parse_response_header(BytesIO(struct.pack(">i", 5))).correlation_id == 5


RESULTS = st.lists(
    st.tuples(INT32, st.integers(-1, 130), INT64, INT64, st.integers(-1, 2**63 - 1)), max_size=30
)


@given(TOPICS, RESULTS, INT32)
@example("t", [(0, 0, 0, -1, 0)], 0)
def test_an_answer_is_what_aiokafka_reads(
    topic: str, results: Sequence[tuple[int, int, int, int, int]], throttle_ms: int
) -> None:
    body = TheirResponse([(topic, list(results))], throttle_ms).encode()
    (_, read) = TheirResponse.decode(body).topics[0]
    for data in (body, BytesIO(body)):
        found = ProduceResponse.decode(data).results
        assert list(found) == [tuple(result[:2]) for result in read]
        assert list(found) == [result[:2] for result in results]

"""Kafka's Produce request and its answer, version 7.

aiokafka's own classes walk a schema field by field: at a dozen partitions a request that costs as
much CPU as the record batches in it.

https://kafka.apache.org/protocol#The_Messages_Produce
"""

import struct
from collections.abc import Sequence
from io import BytesIO
from typing import ClassVar, Self

from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.types import Schema

_API_KEY, _VERSION = 0, 7

_NULL = b"\xff\xff"
_ALL_IN_SYNC = -1

_HEAD = struct.Struct(">hii")  # acks, timeout, count of topics
_LENGTH = struct.Struct(">h")
_COUNT = struct.Struct(">i")
_BATCH = struct.Struct(">ii")  # partition, length of its batch
_RESULT = struct.Struct(">ihqqq")  # partition, error, offset, append time, start of its log


class ProduceResponse(Response):  # type: ignore[misc]
    """What became of each partition's batch."""

    API_KEY = _API_KEY
    API_VERSION = _VERSION
    SCHEMA: ClassVar = Schema()

    #: (partition, error code)
    results: Sequence[tuple[int, int]]

    @classmethod
    def decode(cls, data: BytesIO | bytes) -> Self:
        answer = cls()
        body = data if isinstance(data, bytes) else data.read()
        # One topic, since we asked for one: skip its count and its name.
        (length,) = _LENGTH.unpack_from(body, _COUNT.size)
        at = _COUNT.size + _LENGTH.size + length
        (count,) = _COUNT.unpack_from(body, at)
        at += _COUNT.size
        results = body[at : at + count * _RESULT.size]
        answer.results = [found[:2] for found in _RESULT.iter_unpack(results)]
        return answer


class _NoHeader:
    def encode(self) -> bytes:
        return b""


class _ProduceRequest(RequestStruct):  # type: ignore[misc]
    API_KEY = _API_KEY
    API_VERSION = _VERSION
    RESPONSE_TYPE = ProduceResponse
    SCHEMA: ClassVar = Schema()

    parts: Sequence[bytes | bytearray]
    header: bytes

    def build_request_header(self, correlation_id: int, client_id: str) -> "_NoHeader":
        # It goes in with the rest: put in front by aiokafka it would cost a copy of the whole.
        self.header = super().build_request_header(correlation_id, client_id).encode()
        return _NoHeader()

    def encode(self) -> bytes:
        return b"".join((self.header, *self.parts))


class ProduceRequest(Request[_ProduceRequest]):  # type: ignore[misc]
    """Record batches for partitions of one topic, to be in sync on all replicas."""

    API_KEY = _API_KEY

    def __init__(
        self, topic: str, batches: Sequence[tuple[int, bytes | bytearray]], timeout_ms: int
    ) -> None:
        """``batches``: (partition, record batch)"""
        name = topic.encode()
        parts: list[bytes | bytearray] = [
            _NULL,  # it is in no transaction
            _HEAD.pack(_ALL_IN_SYNC, timeout_ms, 1),
            _LENGTH.pack(len(name)),
            name,
            _COUNT.pack(len(batches)),
        ]
        for partition, batch in batches:
            parts += (_BATCH.pack(partition, len(batch)), batch)
        self._parts = parts

    def build(self, request_struct_class: type[_ProduceRequest]) -> _ProduceRequest:
        request = request_struct_class()
        request.parts = self._parts
        return request

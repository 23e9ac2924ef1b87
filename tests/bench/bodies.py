"""Signed call events, no two alike: five of each leg, 1.4 to 1.6 KB as they are posted.

Made once per run, one a line of a file, by another library than the one under test.
"""

import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jwt

SECRET = "bench-0123456789-abcdefghijklmnopqrstuvwxyz"

_SAMPLES = Path(__file__).parents[1] / "samples/dialpad"
_LEG = ("ringing-user", "connected-user", "hold", "connected-after-hold", "hangup-user")
_SAMPLES_BEGAN_MS = 1_790_000_000_000
_LEFT_OUT = ("_urls", "_link", "_availability_status")
_CLOCKS = ("date_", "event_")

_LEGS_PER_CHUNK = 500
_CHUNK = _LEGS_PER_CHUNK * len(_LEG)


@dataclass(frozen=True, slots=True)
class Slice:
    """Lines of a file. Every round and peer has its own, or the same at another server."""

    path: Path
    offset: int
    count: int

    def lines(self) -> Iterator[bytes]:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            for _ in range(self.count):
                yield file.readline().rstrip()


def make_slices(path: Path, counts: Sequence[int], made: Callable[[int], None]) -> list[Slice]:
    """Write at least ``counts`` bodies; ``made`` is told how many more there are, as they come."""
    chunks = [-(-count // _CHUNK) for count in counts]
    # Numbered by the clock: never those of an earlier file, and not stale when they are posted.
    now_ms = time.time_ns() // 1_000_000
    first_leg = now_ms * 1000
    firsts = range(first_leg, first_leg + sum(chunks) * _LEGS_PER_CHUNK, _LEGS_PER_CHUNK)
    slices = []
    workers = ProcessPoolExecutor(os.cpu_count(), get_context("spawn"))
    with workers, path.open("wb") as file:
        signed = workers.map(_sign_chunk, firsts, repeat(now_ms))
        for count in chunks:
            slices.append(Slice(path, file.tell(), count * _CHUNK))
            for _ in range(count):
                file.write(next(signed))
                made(_CHUNK)
    return slices


def _sign_chunk(first_leg: int, began_ms: int) -> bytes:
    signer = jwt.PyJWS()
    samples = [json.loads((_SAMPLES / f"call-inbound-{name}.json").read_text()) for name in _LEG]
    lines = []
    for leg in range(first_leg, first_leg + _LEGS_PER_CHUNK):
        for sample in samples:
            body = json.dumps(_call(sample, leg, began_ms), separators=(",", ":")).encode()
            lines.append(signer.encode(body, SECRET, "HS256", {"typ": "JWT"}).encode() + b"\n")
    return b"".join(lines)


def _call(sample: dict[str, Any], leg: int, began_ms: int) -> dict[str, Any]:
    """Make another call of a sample; callers, agents and clocks are as varied as in life."""
    agent, caller, since_ms = leg % 40, leg % 9_000_000, began_ms + leg % 100_000
    numbers = {"internal_number": f"+1555123{agent:04}", "external_number": f"+1555{caller:07}"}
    return {
        **{key: value for key, value in sample.items() if not key.endswith(_LEFT_OUT)},
        **{
            key: value - _SAMPLES_BEGAN_MS + since_ms
            for key, value in sample.items()
            if key.startswith(_CLOCKS) and value is not None
        },
        **numbers,
        "call_id": leg,
        "target": sample["target"] | {"id": 200 + agent, "phone": numbers["internal_number"]},
        "contact": sample["contact"] | {"id": caller, "phone": numbers["external_number"]},
    }

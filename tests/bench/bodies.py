"""Signed call events, no two alike: five of each leg, 1.4 to 1.6 KB as they are posted.

Made once per run, one a line of a file, by another library than the one under test.
"""

import json
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import repeat
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import jwt

SECRET = "bench-0123456789-abcdefghijklmnopqrstuvwxyz"  # noqa: S105

_STATES = ("ringing", "connected", "hold", "connected", "hangup")
_LEGS_PER_CHUNK = 500
CHUNK = _LEGS_PER_CHUNK * len(_STATES)

_FIRST_ID = 5_000_000_000_000_000


@dataclass(frozen=True, slots=True)
class Slice:
    """Lines of a file. Every round and peer has its own, or the same at another server."""

    path: Path
    offset: int
    count: int

    def read(self) -> list[bytes]:
        with self.path.open("rb") as file:
            file.seek(self.offset)
            return [file.readline().rstrip() for _ in range(self.count)]


def make_slices(path: Path, counts: Sequence[int], made: Callable[[int], None]) -> list[Slice]:
    """Write at least ``counts`` bodies; ``made`` is told how many more there are, as they come."""
    chunks = [-(-count // CHUNK) for count in counts]
    # Not stale when they are posted, and never those of an earlier file of the run.
    now_ms = time.time_ns() // 1_000_000
    first_leg = now_ms * 1000 % _FIRST_ID
    firsts = range(first_leg, first_leg + sum(chunks) * _LEGS_PER_CHUNK, _LEGS_PER_CHUNK)
    slices = []
    workers = ProcessPoolExecutor(os.cpu_count(), get_context("spawn"))
    with workers, path.open("wb") as file:
        signed = workers.map(_sign_chunk, firsts, repeat(now_ms))
        for count in chunks:
            slices.append(Slice(path, file.tell(), count * CHUNK))
            for _ in range(count):
                file.write(next(signed))
                made(CHUNK)
    return slices


def _sign_chunk(first_leg: int, now_ms: int) -> bytes:
    signer = jwt.PyJWS()
    lines = []
    for leg in range(first_leg, first_leg + _LEGS_PER_CHUNK):
        for nth in range(len(_STATES)):
            body = json.dumps(_call(leg, nth, now_ms), separators=(",", ":")).encode()
            lines.append(signer.encode(body, SECRET, "HS256", {"typ": "JWT"}).encode())
    return b"\n".join(lines) + b"\n"


def _call(leg: int, nth: int, now_ms: int) -> dict[str, Any]:
    """Make an event as Dialpad words it; callers, agents and clocks are as varied as in life."""
    started = now_ms - 300_000 + leg % 100_000
    rang, connected, ended = started + 300, started + 9_000, started + 120_000
    times = (rang, connected, started + 50_000, started + 65_000, ended)
    over = nth == len(_STATES) - 1
    caller, agent = f"+1555{leg % 9_000_000 + 1_000_000}", f"+1555123{leg % 40:04}"
    return {
        "call_id": _FIRST_ID + leg,
        "state": _STATES[nth],
        "direction": "outbound" if leg % 3 else "inbound",
        "event_timestamp": times[nth] + 100,
        "date_started": started,
        "date_rang": rang,
        "date_first_rang": rang,
        "date_queued": None,
        "date_connected": connected if nth else None,
        "date_ended": ended if over else None,
        "duration": 111000.00000000001 if over else 0,
        "total_duration": 120000.91 if over else 0,
        "talk_time": 96000.3 if over else 0,
        "hold_time": 15000 if over else 0,
        "external_number": caller,
        "internal_number": agent,
        "selected_caller_id": None,
        "contact": {
            "id": _FIRST_ID + leg % 9_000_000,
            "type": "local",
            "email": "",
            "phone": caller,
            "name": f"Example Customer {leg % 9_000_000}",
        },
        "target": {
            "id": _FIRST_ID + 200 + leg % 40,
            "type": "user",
            "email": "agent@example.com",
            "phone": agent,
            "name": f"Agent {leg % 40}",
            "office_id": _FIRST_ID + 100,
        },
        "entry_point_call_id": None,
        "entry_point_target": {},
        "operator_call_id": None,
        "proxy_target": {},
        "group_id": None,
        "master_call_id": None,
        "is_internal": False,
        "is_transferred": False,
        "csat_score": None,
        "mos_score": 4.38 if over else None,
        "labels": ["answered", "inbound"] if over else [],
        "was_recorded": False,
        "voicemail_link": None,
        "voicemail_recording_id": None,
        "call_recording_ids": [],
        "recording_details": [],
        "transcription_text": None,
        "integrations": {},
    }

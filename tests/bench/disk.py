"""What the disk under the data directory is, and how long it takes to make something durable."""

import os
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

_WRITES = 50
_BLOCK = bytes(4096)


@dataclass(frozen=True, slots=True)
class Disk:
    file_system: str
    fsync_median_ms: float
    fsync_p99_ms: float


def file_system(path: Path) -> str:
    """The type of the file system that holds ``path``, such as ext4 or tmpfs."""
    mounts = {Path(p.mountpoint): p.fstype for p in psutil.disk_partitions(all=True)}
    real = path.resolve()
    return next(mounts[folder] for folder in (real, *real.parents) if folder in mounts)


def measure(path: Path) -> Disk:
    taken_ms = []
    with tempfile.TemporaryFile(dir=path, buffering=0) as file:
        for _ in range(_WRITES):
            begun = time.perf_counter()
            file.write(_BLOCK)
            os.fsync(file.fileno())
            taken_ms.append(1000 * (time.perf_counter() - begun))
    return Disk(file_system(path), at(0.5, taken_ms), at(0.99, taken_ms))


def at(share: float, values: Sequence[float]) -> float:
    """The value below which ``share`` of them lie."""
    return sorted(values)[int(len(values) * share)]

"""Who may write where, and who works on what: one process a role and data directory."""

import asyncio
import fcntl
import itertools
import os
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path

from ingest.errors import ConfigError
from ingest.eventlog.segments import make_folder


@contextmanager
def sole_owner(path: Path, role: str) -> Iterator[None]:
    """Be the only one that plays ``role`` on a data directory; raises ConfigError if there is one.

    It lasts as long as the process: a crash gives the role free.
    """
    with _lock_file(path, role) as descriptor:
        if not _lock(descriptor):
            raise ConfigError(
                f"eventlog.path: a {role} is running on {path.resolve()}: stop that one, or give "
                "this one a folder of its own"
            )
        yield


@asynccontextmanager
async def next_owner(
    path: Path, role: str, waiting: Callable[[], None], *, wait_s: float
) -> AsyncIterator[None]:
    """Wait until nobody else plays ``role`` on a data directory, then be the one that does.

    ``waiting`` is called once if there is somebody; ``wait_s``: between two looks. Raises
    ConfigError if the directory cannot be written.
    """
    with _lock_file(path, role) as descriptor:
        if not _lock(descriptor):
            waiting()
            while not _lock(descriptor):  # noqa: ASYNC110 - it is another process
                await asyncio.sleep(wait_s)
        yield


@contextmanager
def one_of_several(path: Path, role: str) -> Iterator[int]:
    """Be one of those that play ``role`` on a data directory; the number is nobody else's.

    From 1, the least that is free: who starts again gets the same as before. Raises ConfigError if
    the directory cannot be written.
    """
    for number in itertools.count(1):
        name = role if number == 1 else f"{role}-{number}"
        with _lock_file(path, name) as descriptor:
            if _lock(descriptor):
                yield number
                return


@contextmanager
def _lock_file(path: Path, role: str) -> Iterator[int]:
    try:
        make_folder(path)
        descriptor = os.open(path / f"{role}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ConfigError(
            f"eventlog.path: {path} cannot be written ({error.strerror}): "
            "set it to a folder that this user can write to"
        ) from None
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _lock(descriptor: int) -> bool:
    """Lock a file until it is closed; False if somebody else has."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True

"""Who may write where: one process a role and data directory."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from ingest.errors import ConfigError
from ingest.eventlog.segments import make_folder


@contextmanager
def sole_owner(path: Path, role: str) -> Iterator[None]:
    """Be the only one that plays ``role`` on a data directory; raises ConfigError if there is one.

    It lasts as long as the process: a crash gives the role free.
    """
    try:
        make_folder(path)
        descriptor = os.open(path / f"{role}.lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise ConfigError(
            f"eventlog.path: {path} cannot be written ({error.strerror}): "
            "set it to a folder that this user can write to"
        ) from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    except BlockingIOError:
        raise ConfigError(
            f"eventlog.path: a {role} is running on {path.resolve()}: stop that one, or give "
            "this one a folder of its own"
        ) from None
    finally:
        os.close(descriptor)

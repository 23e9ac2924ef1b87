"""What tests of consumers ask for."""

from collections.abc import Iterator

import pytest

from tests.consumers.poll.small_dialpad import SmallDialpad


@pytest.fixture
def dialpad() -> Iterator[SmallDialpad]:
    with SmallDialpad() as serving:
        yield serving

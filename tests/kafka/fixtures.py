"""Kafka for tests: shared by all, or by those of a module, or of a test's own.

Each starts when a test first asks for it. A broker that nobody uses costs some of a processor all
the time: only the one that most tests use stays until the end.
Faults of the shared ones are undone after each test.
"""

import itertools
import os
import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest

from tests.kafka.cluster import Cluster, Foreign

#: Where a Kafka is that tests shall use instead of starting one.
ELSEWHERE = "DIALSTREAM_TEST_KAFKA"

MakeCluster = Callable[..., Cluster]

_shared: list[Cluster] = []
_numbers = itertools.count(1)


def _share(cluster: Cluster) -> Iterator[Cluster]:
    with cluster:
        _shared.append(cluster)
        try:
            yield cluster
        finally:
            _shared.remove(cluster)


@pytest.fixture(scope="session")
def kafka() -> Iterator[Cluster]:
    """One broker, or what DIALSTREAM_TEST_KAFKA names; tests keep to their `topic_prefix`."""
    bootstrap = os.environ.get(ELSEWHERE)
    yield from _share(Foreign(bootstrap) if bootstrap else Cluster())


@pytest.fixture(scope="module")
def proxied_kafka() -> Iterator[Cluster]:
    """One broker, behind a proxy."""
    yield from _share(Cluster(proxied=True))


@pytest.fixture(scope="module")
def three_brokers() -> Iterator[Cluster]:
    """Three brokers, each behind a proxy."""
    yield from _share(Cluster(3, proxied=True))


@pytest.fixture(scope="module")
def sasl_kafka() -> Iterator[Cluster]:
    """One broker that wants SASL_SSL, and gives rights."""
    yield from _share(Cluster(secured=True))


@pytest.fixture(scope="module")
def creating_kafka() -> Iterator[Cluster]:
    """One broker that makes a topic when somebody asks for it, as brokers do by default."""
    yield from _share(Cluster(properties={"auto.create.topics.enable": "true"}))


@pytest.fixture
def make_cluster() -> Iterator[MakeCluster]:
    """Starts clusters of a test's own; takes what `Cluster` takes."""
    with ExitStack() as made:

        def make(count: int = 1, **more: Any) -> Cluster:
            return made.enter_context(Cluster(count, **more))

        yield make


@pytest.fixture
def topic_prefix(request: pytest.FixtureRequest) -> str:
    """What the names of this test's topics begin with; no other test's do, in no other run."""
    name = re.sub(r"[^a-zA-Z0-9]+", "-", request.node.name)[:60]
    return f"t{os.urandom(3).hex()}-{next(_numbers)}-{name}."


@pytest.fixture(autouse=True)
def _mended() -> Iterator[None]:
    yield
    for cluster in _shared:
        cluster.mend()

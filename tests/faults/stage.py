"""Where a scenario plays: a cluster, a receiver, and what was on topics that are no more."""

import asyncio
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self

from tests.kafka.cluster import Cluster
from tests.kafka.proxy import Proxy
from tests.kit import Product


@dataclass(slots=True)
class Stage:
    kafka: Cluster
    product: Product
    prefix: str
    #: How the topic of calls is made.
    topic_options: Mapping[str, Any]
    gone: list[bytes] = field(default_factory=list)

    name = "calls"

    @classmethod
    def build(
        cls,
        kafka: Cluster,
        folder: Path,
        prefix: str,
        topic: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Self:
        """Make topics, and a receiver that is not started yet; ``settings``: of the event log."""
        product = Product(folder, settings_for(kafka, prefix, **settings))
        stage = cls(kafka, product, prefix, topic or {"partitions": 4})
        stage.create_topic()
        kafka.create_topic(stage.rejects)
        return stage

    @property
    def topic(self) -> str:
        return self.prefix + self.name

    @property
    def rejects(self) -> str:
        return f"{self.prefix}rejects"

    @property
    def lines(self) -> list[Proxy]:
        """Between the receiver and each broker."""
        return [broker.proxy for broker in self.kafka.brokers if broker.proxy is not None]

    def create_topic(self) -> None:
        self.kafka.create_topic(self.topic, **self.topic_options)

    def restore_lines(self) -> None:
        for line in self.lines:
            line.restore()

    def values(self, topic: str) -> list[bytes]:
        return [message.value() or b"" for message in self.kafka.records(topic)]

    def log(self) -> list[bytes]:
        """All that has ever been on the topic, those of one key in their order."""
        return self.gone + self.values(self.topic)

    # The receiver

    def degraded(self) -> list[str]:
        found: list[str] = json.loads(self.product.admin("/readyz").body)["degraded"]
        return found

    def spooled(self) -> int:
        return self.product.metrics().sum("dialstream_spooled_total")

    def waiting(self) -> int:
        return self.product.metrics().sum("dialstream_spool_records")

    def drained(self) -> int:
        return self.product.metrics().sum("dialstream_drained_total")

    def whole(self) -> bool:
        """Kafka is there, and all records go straight to it."""
        away = [word for word in self.degraded() if word.startswith(("kafka_", "spooled:"))]
        return not away and not self.waiting()


class OnJournal(Stage):
    """The same without Kafka."""

    @classmethod
    def build(
        cls,
        kafka: Cluster,
        folder: Path,
        prefix: str,
        topic: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> Self:
        return cls(kafka, Product(folder, {"eventlog": settings}), prefix, topic or {})

    def log(self) -> list[bytes]:
        tail = ("tail", "call", "--from-beginning", "--json")
        return [
            line.encode() for line in self.product.run(*tail, timeout_s=300).stdout.splitlines()
        ]

    def values(self, topic: str) -> list[bytes]:
        return []


async def until(true: Callable[[], object], what: str, timeout_s: float = 120) -> None:
    """Raises AssertionError if ``true``, asked in a thread, does not become so in time."""
    end = time.monotonic() + timeout_s
    while not await asyncio.to_thread(true):
        assert time.monotonic() < end, f"not within {timeout_s} s: {what}"
        await asyncio.sleep(0.05)


def settings_for(kafka: Cluster, prefix: str, **eventlog: Any) -> dict[str, Any]:
    """Settings of a receiver on this cluster."""
    count = max(1, len(kafka.brokers))
    values = kafka.settings(prefix) | {
        "replication_factor": min(3, count),
        "min_insync_replicas": min(2, count),
    }
    return {"eventlog": {"kind": "kafka", **eventlog}, "kafka": values}

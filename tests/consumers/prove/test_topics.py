"""Topics of an experiment's own: no others are touched, and what stays is not said to be gone."""

import pytest

from consumers.prove.topics import delete_topics, make_topics
from ingest.errors import ConfigError
from ingest.settings import Kafka, Settings
from tests.kafka.cluster import PASSWORDS, READER, Cluster


def settings_of(cluster: Cluster, prefix: str, **more: object) -> Kafka:
    small = {"partitions": 1, "replication_factor": 1, "min_insync_replicas": 1}
    found = {"kafka": {**cluster.settings(prefix), **small, **more}}
    return Settings.model_validate(found).kafka


async def test_what_may_not_be_deleted_is_not_said_to_be_gone(
    sasl_kafka: Cluster, topic_prefix: str
) -> None:
    kafka = settings_of(sasl_kafka, topic_prefix)
    reader = {"sasl_username": READER, "sasl_password": PASSWORDS[READER]}
    await make_topics(kafka, ["rejects"])
    assert not await delete_topics(settings_of(sasl_kafka, topic_prefix, **reader), ["rejects"])
    assert f"{topic_prefix}rejects" in sasl_kafka.topics()
    assert await delete_topics(kafka, ["rejects"])
    assert await delete_topics(kafka, ["rejects"])  # nor is what is gone said to be there


async def test_where_one_cannot_be_made_none_is_left_but_those_that_were_there(
    kafka: Cluster, topic_prefix: str
) -> None:
    kafka.create_topic(f"{topic_prefix}rejects", partitions=1)
    with pytest.raises(ConfigError, match="rejects cannot be made"):
        await make_topics(settings_of(kafka, topic_prefix), ["calls", "rejects"])
    ours = [name for name in kafka.topics() if name.startswith(topic_prefix)]
    assert ours == [f"{topic_prefix}rejects"]

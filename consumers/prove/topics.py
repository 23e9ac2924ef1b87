"""Topics of the experiment's own on Kafka, made before it and deleted after it."""

from collections.abc import Sequence

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError, NoError

from ingest.commands.topics import wanted_configs, why_not_made
from ingest.errors import ConfigError
from ingest.eventlog.cluster import (
    ClusterError,
    NewTopic,
    client_options,
    create,
    describe,
    open_cluster,
)
from ingest.settings import Kafka
from schemas.topics import TOPICS


async def make_topics(kafka: Kafka, names: Sequence[str]) -> None:
    """Make topics, named without the prefix, as ours are made. Raises ConfigError."""
    topics = [
        NewTopic(
            name=kafka.topic_prefix + name,
            partitions=kafka.partitions,
            replication_factor=kafka.replication_factor,
            configs=wanted_configs(TOPICS[name], kafka),
        )
        for name in names
    ]
    try:
        async with open_cluster(kafka) as link:
            cluster = await describe(link, [])
            for name, (error, words) in (await create(link, topics)).items():
                if error is not NoError:
                    fault = why_not_made(error, words, cluster.brokers, kafka)
                    raise ConfigError(f"{name} cannot be made: {fault.what}: {fault.mend}")
    except ClusterError as error:
        raise ConfigError(*(f"{fault.what}: {fault.mend}" for fault in error.faults)) from None


async def delete_topics(kafka: Kafka, names: Sequence[str]) -> bool:
    """Whether that could be done."""
    admin = AIOKafkaAdminClient(**client_options(kafka))
    try:
        await admin.start()
        await admin.delete_topics([kafka.topic_prefix + name for name in names])
    except (KafkaError, OSError):
        return False
    finally:
        await admin.close()
    return True

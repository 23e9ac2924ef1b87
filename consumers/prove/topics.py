"""Topics of the experiment's own on Kafka, made before it and deleted after it."""

from collections.abc import Sequence

from aiokafka.admin import AIOKafkaAdminClient
from aiokafka.errors import KafkaError, NoError, UnknownTopicOrPartitionError, for_code

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
            results = await create(link, topics)
        if faults := [
            f"{name} cannot be made: {fault.what}: {fault.mend}"
            for name, (error, words) in results.items()
            if error is not NoError
            for fault in (why_not_made(error, words, cluster.brokers, kafka),)
        ]:
            made = [name for name, (error, _) in results.items() if error is NoError]
            await delete_topics(kafka, [name.removeprefix(kafka.topic_prefix) for name in made])
            raise ConfigError(*faults)
    except ClusterError as error:
        raise ConfigError(*(f"{fault.what}: {fault.mend}" for fault in error.faults)) from None


async def delete_topics(kafka: Kafka, names: Sequence[str]) -> bool:
    """Whether they are gone."""
    admin = AIOKafkaAdminClient(**client_options(kafka))
    try:
        await admin.start()
        answer = await admin.delete_topics([kafka.topic_prefix + name for name in names])
    except (KafkaError, OSError):
        return False
    finally:
        await admin.close()
    errors = {for_code(code) for _, code in answer.topic_error_codes}
    return errors <= {NoError, UnknownTopicOrPartitionError}

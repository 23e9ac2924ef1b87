"""`dialstream topics create`."""

import asyncio
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace

from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    InvalidReplicationFactorError,
    KafkaError,
    NoError,
    TopicAlreadyExistsError,
    TopicAuthorizationFailedError,
)

from ingest.eventlog.cluster import (
    MIN_INSYNC_REPLICAS,
    Cluster,
    ClusterError,
    Fault,
    FoundTopic,
    Link,
    NewTopic,
    create,
    describe,
    open_cluster,
)
from ingest.eventlog.journal import journal_folder
from ingest.settings import Kafka, Settings, sink_groups
from schemas.topics import DAY_S, MAX_RECORD_BYTES, TOPICS, Topic

#: For everything after the connection: Kafka makes a topic in moments, or not at all.
WORK_S = 45.0
LEADERS_S = 20.0


def create_topics(settings: Settings, group: str | None = None) -> int:
    """Make the topics that are missing, print what there is and what differs; the exit code.

    Those for what the sinks of the settings, and ``group``, cannot handle are among them.
    """
    groups = [
        name for at, each in settings.connections.items() for name in sink_groups(at, each.sink)
    ]
    if group is not None and group not in groups:
        groups.append(group)
    topics = [*TOPICS.values(), *map(rejects_of, groups)]
    if settings.eventlog.kind == "kafka":
        return asyncio.run(_create_on_kafka(settings.kafka, topics))
    folder = journal_folder(settings.eventlog.path)
    for topic in topics:
        is_new = not (folder / topic.name).exists()
        (folder / topic.name).mkdir(parents=True, exist_ok=True)
        print(_line("made" if is_new else "there", topic, topic.name))
    return 0


def rejects_of(group: str) -> Topic:
    """Where a consumer group puts what it cannot handle."""
    return replace(
        TOPICS["rejects"], name=f"rejects.{group}", holds=f"events that {group} could not handle"
    )


def _line(state: str, topic: Topic, name: str) -> str:
    keeps = "compacted" if topic.retention_s is None else f"{topic.retention_s // DAY_S} days"
    return f"{state:<7} {name:<23} {keeps:<10} {topic.holds}"


# What a topic ought to be


def wanted_configs(topic: Topic, kafka: Kafka) -> dict[str, str]:
    """Configuration with which a topic is made."""
    configs = {
        "cleanup.policy": "compact" if topic.compacted else "delete",
        "max.message.bytes": str(MAX_RECORD_BYTES),
        MIN_INSYNC_REPLICAS: str(kafka.min_insync_replicas),
    }
    if topic.retention_s is not None:
        configs["retention.ms"] = str(topic.retention_s * 1000)
    if topic.compaction_lag_s:
        configs["min.compaction.lag.ms"] = str(topic.compaction_lag_s * 1000)
    return configs


def what_differs(found: FoundTopic, topic: Topic, kafka: Kafka) -> list[Fault]:
    """Compare a topic as it is with what it ought to be."""
    differences = [*_partitions(found, kafka), *_replicas(found, kafka)]
    if found.configs is None:
        what = "the configuration may not be read"
        return [*differences, Fault(what, grant(kafka, "DescribeConfigs"), "odd")]
    for key, wanted in wanted_configs(topic, kafka).items():
        value = found.configs.get(key, "")
        if value != wanted:
            what = f"{key} is {_spelt(key, value)}, not {_spelt(key, wanted)}"
            mend = _set(found.name, key, wanted, kafka)
            if _is_more(key, value, wanted):
                differences.append(Fault(what, f"nothing, if it is meant; else {mend}", "odd"))
            else:
                differences.append(Fault(what, mend))
    if int(found.configs.get(MIN_INSYNC_REPLICAS, 1)) > found.replication_factor:
        differences.append(
            Fault(
                f"{MIN_INSYNC_REPLICAS} is above the replication factor: nothing can be written",
                _set(found.name, MIN_INSYNC_REPLICAS, str(kafka.min_insync_replicas), kafka),
            )
        )
    # A topic is made without the next two: clusters for hire refuse them, and the brokers' own
    # defaults are as we want them.
    if found.configs.get("unclean.leader.election.enable") == "true":
        differences.append(
            Fault(
                "unclean.leader.election.enable is true: acknowledged events can be lost",
                _set(found.name, "unclean.leader.election.enable", "false", kafka),
            )
        )
    if not topic.compacted and found.configs.get("retention.bytes", "-1") != "-1":
        differences.append(
            Fault(
                f"retention.bytes is {found.configs['retention.bytes']}: events may go earlier "
                "than by their age",
                _set(found.name, "retention.bytes", "-1", kafka),
                "odd",
            )
        )
    return differences


def _partitions(found: FoundTopic, kafka: Kafka) -> list[Fault]:
    count = len(found.partitions)
    if count == kafka.partitions:
        return []
    mend = f"set kafka.partitions = {count}, if they are meant; they cannot be taken away"
    if count < kafka.partitions:
        mend = (
            f"set kafka.partitions = {count}, if they are enough; or stop the receivers, for keys "
            f"move, and: kafka-topics.sh {_access(kafka)} --alter --topic {found.name} "
            f"--partitions {kafka.partitions}"
        )
    what = f"it has {count} partition(s), not {kafka.partitions}"
    return [Fault(what, mend, "odd")]


def _replicas(found: FoundTopic, kafka: Kafka) -> list[Fault]:
    factor, wanted = found.replication_factor, kafka.replication_factor
    if factor == wanted:
        return []
    return [
        Fault(
            f"the replication factor is {factor}, not {wanted}",
            f"give each partition {wanted} replicas: kafka-reassign-partitions.sh "
            f"{_access(kafka)}; or set kafka.replication_factor = {factor}, if it is meant",
            "bad" if factor < wanted else "odd",
        )
    ]


def _is_more(key: str, value: str, wanted: str) -> bool:
    """Whether a promise is kept all the same: all of our numbers are the least that will do."""
    if key == "cleanup.policy":
        return False
    return int(value or 0) >= int(wanted) or (key == "retention.ms" and value == "-1")


def _spelt(key: str, value: str) -> str:
    if key == "retention.ms" and value == "-1":
        return "-1 (for ever)"
    if key.endswith(".ms") and value.isdigit():
        return f"{value} ({int(value) / (DAY_S * 1000):.3g} days)"
    return value or "not set"


# Commands that mend; those of Kafka's own scripts


def _access(kafka: Kafka) -> str:
    access = f"--bootstrap-server {','.join(kafka.servers)}"
    return access if kafka.security_protocol == "PLAINTEXT" else f"{access} --command-config FILE"


def _set(name: str, key: str, value: str, kafka: Kafka) -> str:
    return (
        f"kafka-configs.sh {_access(kafka)} --alter --entity-type topics --entity-name {name} "
        f"--add-config {key}={value}"
    )


def grant(kafka: Kafka, *operations: str) -> str:
    """The command that gives us rights to all of our topics."""
    prefix = kafka.topic_prefix
    topics = f"{prefix} --resource-pattern-type prefixed" if prefix else "'*'"
    who = kafka.sasl_username if kafka.with_sasl else "NAME"
    asked = " ".join(f"--operation {operation}" for operation in operations)
    return (
        f"kafka-acls.sh {_access(kafka)} --add --allow-principal User:{who} {asked} "
        f"--topic {topics}"
    )


# Making them


async def _create_on_kafka(kafka: Kafka, topics: Sequence[Topic]) -> int:
    try:
        async with open_cluster(kafka) as link:
            _complain(link.faults)
            async with asyncio.timeout(WORK_S):
                made, failed, cluster = await _make_missing(link, kafka, topics)
    except ClusterError as error:
        _complain(error.faults)
        return 1
    except TimeoutError:
        _complain([Fault(f"Kafka has not made them within {WORK_S:.0f} s", "look at the brokers")])
        return 1
    return _report(kafka, topics, cluster, made, failed)


async def _make_missing(
    link: Link, kafka: Kafka, topics: Sequence[Topic]
) -> tuple[set[str], dict[str, Fault], Cluster]:
    """Names of the topics that were made, why others were not, and the cluster after it."""
    names = [kafka.topic_prefix + topic.name for topic in topics]
    cluster = await describe(link, names)
    failed = {name: hidden(kafka) for name in cluster.hidden}
    missing = [
        NewTopic(
            name=name,
            partitions=kafka.partitions,
            replication_factor=kafka.replication_factor,
            configs=wanted_configs(topic, kafka),
        )
        for name, topic in zip(names, topics, strict=True)
        if name not in cluster.topics and name not in failed
    ]
    if not missing:
        return set(), failed, cluster
    made = set()
    for name, (error, words) in (await create(link, missing)).items():
        if error is NoError:
            made.add(name)
        elif error is not TopicAlreadyExistsError:  # somebody else was quicker
            failed[name] = why_not_made(error, words, cluster.brokers, kafka)
    return made, failed, await _with_leaders(link, [name for name in names if name not in failed])


async def _with_leaders(link: Link, names: Sequence[str]) -> Cluster:
    """The cluster, once topics can be written to: people start the service next."""
    loop = asyncio.get_running_loop()
    give_up = loop.time() + LEADERS_S
    while True:
        cluster = await describe(link, names)
        found = [cluster.topics.get(name) for name in names]
        if all(topic and topic.has_leaders for topic in found) or loop.time() > give_up:
            return cluster
        await asyncio.sleep(0.2)


def hidden(kafka: Kafka) -> Fault:
    """We may not see a topic; it may be there or not."""
    return Fault("the right Describe is missing", grant(kafka, "Describe", "DescribeConfigs"))


def leaderless(topic: FoundTopic) -> list[Fault]:
    """Whether partitions are without a leader."""
    if topic.has_leaders:
        return []
    without = sum(partition.leader < 0 for partition in topic.partitions)
    what = f"{without} of {len(topic.partitions)} partitions have no leader: they take no events"
    return [Fault(what, "start the brokers that have them")]


def why_not_made(error: type[KafkaError], words: str, brokers: int, kafka: Kafka) -> Fault:
    """Why the cluster has not made a topic, in our words where we have some."""
    if error in (TopicAuthorizationFailedError, ClusterAuthorizationFailedError):
        return Fault("the right Create is missing", grant(kafka, "Create", "DescribeConfigs"))
    if error is InvalidReplicationFactorError and brokers < kafka.replication_factor:
        return Fault(
            f"the cluster has {brokers} broker(s), and kafka.replication_factor is "
            f"{kafka.replication_factor}",
            f"start more brokers, or set kafka.replication_factor = {brokers} "
            f"(and kafka.min_insync_replicas to no more than that)",
        )
    return Fault(
        f"the cluster refuses: {words or error.__name__}",
        "mend what it names, here or there, then try again",
    )


def _report(
    kafka: Kafka,
    topics: Sequence[Topic],
    cluster: Cluster,
    made: set[str],
    failed: Mapping[str, Fault],
) -> int:
    """Print what has become of each topic; the exit code."""
    gone = Fault("it was there, and is gone again", "find out who deletes topics, then try again")
    faults: dict[Fault, list[str]] = {}
    is_bad = False
    for topic in topics:
        name = kafka.topic_prefix + topic.name
        found = cluster.topics.get(name)
        if found is None:
            print(_line("failed", topic, name))
            faults.setdefault(failed.get(name, gone), []).append(name)
            continue
        differences = [*leaderless(found), *what_differs(found, topic, kafka)]
        differs = "differs" if differences and found.configs is not None else "there"
        print(_line("made" if name in made else differs, topic, name))
        for fault in differences:
            print(f"        {fault.what}\n          → {fault.mend}")
            is_bad = is_bad or fault.state == "bad"
    sys.stdout.flush()
    _complain(
        [
            replace(fault, what=f"{fault.what}: {', '.join(names)}")
            for fault, names in faults.items()
        ]
    )
    return int(is_bad or bool(faults))


def _complain(faults: Sequence[Fault]) -> None:
    for fault in faults:
        print(f"{fault.what}\n    → {fault.mend}", file=sys.stderr)

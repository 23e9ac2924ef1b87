"""What a Kafka cluster is, as it says itself: brokers, topics, configurations, rights.

For commands and for a look at the start; events go by `kafka`. Nothing here writes a record, alters
a topic, or has one made by the way: a request that names topics forbids it to the broker.
"""

import asyncio
import logging
import random
import socket
import ssl
from collections.abc import AsyncIterator, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Any, Literal

from aiokafka.client import AIOKafkaClient
from aiokafka.conn import collect_hosts, create_conn
from aiokafka.errors import (
    ClusterAuthorizationFailedError,
    IllegalSaslStateError,
    InvalidTopicError,
    KafkaConnectionError,
    KafkaError,
    NoError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
    UnknownTopicOrPartitionError,
    UnsupportedSaslMechanismError,
    for_code,
)
from aiokafka.protocol.admin import CreateTopicsRequest, DescribeConfigsRequest
from aiokafka.protocol.api import Request, RequestStruct, Response
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.transaction import InitProducerIdRequest
from aiokafka.protocol.types import Array, Boolean, Int16, Int32, Schema, String

from ingest.settings import Kafka
from schemas.topics import TOPICS

REQUEST_TIMEOUT_S = 10.0

#: For everything until a broker answers, and of that for each address.
CONNECT_S = 10.0
ADDRESS_S = 4.0

#: Saying goodbye must not hold up a command: TLS may wait for the other side.
CLOSE_S = 1.0

#: Less than a request may take, so that it is the cluster who says that it is too slow.
MAKING_S = 8.0

MIN_INSYNC_REPLICAS = "min.insync.replicas"

_TOPIC_RESOURCE = 2

#: Other errors of a topic are of one that is there, e.g. that somebody makes at this moment.
_NOT_THERE = (TopicAuthorizationFailedError, UnknownTopicOrPartitionError, InvalidTopicError)


def client_options(kafka: Kafka) -> dict[str, Any]:
    """How aiokafka connects; the same for each of its clients.

    Made anew for each connection: password and certificates are read again. Raises ConfigError.
    """
    options: dict[str, Any] = {
        # In any order: one that says nothing must not keep us from the others each time.
        "bootstrap_servers": random.sample(kafka.servers, len(kafka.servers)),
        "client_id": "dialstream",
        "request_timeout_ms": round(REQUEST_TIMEOUT_S * 1000),
        "security_protocol": kafka.security_protocol,
    }
    if kafka.with_ssl:
        options["ssl_context"] = kafka.ssl_context()
    if kafka.with_sasl:
        options["sasl_mechanism"] = kafka.sasl_mechanism
        options["sasl_plain_username"] = kafka.sasl_username
        options["sasl_plain_password"] = kafka.password()
    return options


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong, and its mend."""

    what: str
    mend: str
    #: ``bad`` breaks a promise; ``odd`` somebody may have meant.
    state: Literal["odd", "bad"] = "bad"


class ClusterError(Exception):
    """The cluster does not answer what it was asked. ``faults`` says why."""

    def __init__(self, *faults: Fault) -> None:
        super().__init__("; ".join(fault.what for fault in faults))
        self.faults = faults


class Operation(IntEnum):
    """What a principal may do with a topic: those of Kafka's operations that matter here."""

    READ = 3
    WRITE = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Partition:
    #: -1 where there is none.
    leader: int
    replicas: int
    in_sync: int


@dataclass(frozen=True, slots=True, kw_only=True)
class FoundTopic:
    """A topic as it is."""

    name: str
    partitions: Sequence[Partition]
    #: What is in force, the brokers' defaults included; None: we may not read it.
    configs: Mapping[str, str] | None
    #: What we may do.
    operations: frozenset[Operation]

    @property
    def replication_factor(self) -> int:
        return min((partition.replicas for partition in self.partitions), default=0)

    @property
    def has_leaders(self) -> bool:
        """Whether every partition can be written to and read."""
        leaders = [partition.leader for partition in self.partitions]
        return bool(leaders) and min(leaders) >= 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A connection to a cluster."""

    client: AIOKafkaClient
    #: Ids of the brokers that can be asked.
    brokers: Sequence[int]
    #: What is wrong with addresses.
    faults: Sequence[Fault] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """A cluster as one of its brokers sees it."""

    cluster_id: str
    #: Those that live.
    brokers: int
    topics: Mapping[str, FoundTopic]
    #: Topics which we may not even see.
    hidden: Sequence[str]


# Connecting


@asynccontextmanager
async def open_cluster(kafka: Kafka) -> AsyncIterator[Link]:
    """Connect to those brokers of the cluster that can be reached.

    Raises ClusterError if none can, within CONNECT_S; ConfigError for secrets that are gone.
    """
    options = client_options(kafka)
    with _quiet():
        client = None
        try:
            try:
                async with asyncio.timeout(CONNECT_S):
                    servers = await _look(kafka, options, kafka.servers)
                    reached = [server for server, fault in servers.items() if fault is None]
                    if not reached:
                        raise ClusterError(*filter(None, servers.values()))
                    client = AIOKafkaClient(**{**options, "bootstrap_servers": reached})
                    await client.bootstrap()
                    link = await _link(kafka, options, servers, client)
            except (TimeoutError, KafkaError):
                where = ", ".join(kafka.servers)
                raise ClusterError(
                    Fault(f"Kafka at {where} lets us in and says no more", "look at its logs")
                ) from None
            yield link
        finally:
            if client is not None:
                await _close(client)


async def _look(
    kafka: Kafka, options: Mapping[str, Any], servers: Sequence[str]
) -> dict[str, Fault | None]:
    """Address → why it does not let us in. aiokafka only logs that, one after the other."""
    found = await asyncio.gather(*(_why_not(kafka, options, server) for server in servers))
    return dict(zip(servers, found, strict=True))


async def _why_not(kafka: Kafka, options: Mapping[str, Any], server: str) -> Fault | None:
    ((host, port, _),) = collect_hosts([server])
    of_connection = {key: value for key, value in options.items() if key != "bootstrap_servers"}
    connection = None
    try:
        async with asyncio.timeout(ADDRESS_S):
            connection = await create_conn(host, port, **of_connection)
            # A listener that asks for a user hangs up only now on one who has named none.
            await connection.send(MetadataRequest([]))
    except Exception as error:  # noqa: BLE001 - whatever the other side makes of a handshake
        return explain(error, server, kafka)
    finally:
        if connection is not None:
            await _close(connection)
    return None


async def _close(connected: Any) -> None:
    with suppress(TimeoutError):
        async with asyncio.timeout(CLOSE_S):
            await connected.close()


async def _link(
    kafka: Kafka,
    options: Mapping[str, Any],
    servers: Mapping[str, Fault | None],
    client: AIOKafkaClient,
) -> Link:
    """Look where the cluster says that its brokers are, too. Raises ClusterError if nobody is."""
    brokers = {
        each.nodeId: f"{_bracketed(each.host)}:{each.port}" for each in client.cluster.brokers()
    }
    unknown = [address for address in brokers.values() if address not in servers]
    named = await _look(kafka, options, unknown)
    faults = [
        # One that the cluster does without is no harm as long as the others answer.
        replace(fault, state="bad" if server in brokers.values() else "odd")
        for server, fault in servers.items()
        if fault is not None
    ]
    faults += [
        Fault(
            f"{fault.what}; the cluster names it as a broker's address",
            "set advertised.listeners of the broker to what can be reached from here; "
            f"or {fault.mend}",
        )
        for fault in named.values()
        if fault is not None
    ]
    looked = {**servers, **named}
    reached = [broker for broker, address in brokers.items() if looked[address] is None]
    if not reached:
        raise ClusterError(*faults)
    return Link(client=client, brokers=reached, faults=faults)


def _bracketed(host: str) -> str:
    return f"[{host}]" if ":" in host else host


_LISTENER = "set kafka.security_protocol to that of the listener (it is {protocol})"

#: What can go wrong at an address, the particular before the general: what it is, its mend.
_REASONS: Sequence[tuple[type[BaseException], str, str]] = (
    (
        SaslAuthenticationFailed,
        "refuses the user {user!r} ({mechanism})",
        "set kafka.sasl_username, sasl_password(_file), sasl_mechanism as the cluster has them",
    ),
    (
        UnsupportedSaslMechanismError,
        "does not know {mechanism}",
        "set kafka.sasl_mechanism to one that the listener has",
    ),
    (IllegalSaslStateError, "asks for no user", _LISTENER),
    (
        ssl.SSLCertVerificationError,
        "has a certificate that does not verify: {detail}",
        "set kafka.ssl_cafile to who signed it, kafka.bootstrap_servers to names that are in it",
    ),
    (
        ssl.SSLError,
        "and we find no common TLS ({detail})",
        "set kafka.ssl_certfile and kafka.ssl_keyfile where the cluster asks for them; or "
        + _LISTENER,
    ),
    (
        socket.gaierror,
        "is a name that nobody knows ({detail})",
        "mend kafka.bootstrap_servers, or the DNS",
    ),
    (
        TimeoutError,
        f"does not answer within {ADDRESS_S:.0f} s",
        "start the broker, open the firewall; or " + _LISTENER,
    ),
    (
        ConnectionRefusedError,
        "refuses the connection: nobody listens",
        "start the broker, or mend kafka.bootstrap_servers",
    ),
    (ConnectionResetError, "hangs up before it says a word", _LISTENER),
    (KafkaConnectionError, "hangs up before it says a word", _LISTENER),
    (OSError, "cannot be reached: {detail}", "mend kafka.bootstrap_servers, or the network"),
    (Exception, "does not talk like Kafka ({kind})", _LISTENER),
)


def explain(error: Exception, server: str, kafka: Kafka) -> Fault:
    """Why an address does not let us in, in words; nothing of what was sent."""
    what, mend = next(texts for kind, *texts in _REASONS if isinstance(error, kind))
    words = {
        "user": kafka.sasl_username,
        "mechanism": kafka.sasl_mechanism,
        "protocol": kafka.security_protocol,
        "kind": type(error).__name__,
        "detail": getattr(error, "verify_message", None)
        or getattr(error, "reason", None)
        or getattr(error, "strerror", None)
        or type(error).__name__,
    }
    return Fault(f"Kafka at {server} {what.format(**words)}", mend.format(**words))


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep aiokafka from logging what we say in our own words."""
    logger = logging.getLogger("aiokafka")
    level = logger.level
    logger.setLevel(logging.CRITICAL + 1)
    try:
        yield
    finally:
        logger.setLevel(level)


# Asking


async def describe(link: Link, names: Sequence[str]) -> Cluster:
    """The cluster, and those of some topics that it has. Raises ClusterError."""
    answer = await _ask(link, _DescribeRequest(names))
    topics = {topic["topic"]: topic for topic in answer["topics"]}
    errors = {name: for_code(topic["error_code"]) for name, topic in topics.items()}
    hidden = [name for name in names if errors[name] is TopicAuthorizationFailedError]
    known = [name for name in names if errors[name] not in _NOT_THERE]
    configs = await _configs(link, known)
    return Cluster(
        cluster_id=answer["cluster_id"],
        brokers=len(answer["brokers"]),
        topics={name: _found(topics[name], configs.get(name)) for name in known},
        hidden=hidden,
    )


def _found(topic: Mapping[str, Any], configs: Mapping[str, str] | None) -> FoundTopic:
    allowed = topic["authorized_operations"]
    return FoundTopic(
        name=topic["topic"],
        partitions=[
            Partition(
                leader=partition["leader"],
                replicas=len(partition["replicas"]),
                in_sync=len(partition["isr"]),
            )
            for partition in topic["partitions"]
        ],
        configs=configs,
        operations=frozenset(each for each in Operation if allowed >> each & 1),
    )


async def _configs(
    link: Link, names: Sequence[str], keys: Sequence[str] | None = None
) -> dict[str, dict[str, str]]:
    """Topic → what is in force of it; without topics that are missing or may not be read."""
    if not names:
        return {}
    asked = [(_TOPIC_RESOURCE, name, keys) for name in names]
    answer = await _ask(link, DescribeConfigsRequest(asked))
    return {
        resource["resource_name"]: {
            entry["config_names"]: entry["config_value"] for entry in resource["config_entries"]
        }
        for resource in answer["resources"]
        if for_code(resource["error_code"]) is NoError
    }


async def weak_topics(kafka: Kafka, client: AIOKafkaClient) -> Sequence[str]:
    """Topics, named without the prefix, whose min.insync.replicas in force is below the setting.

    Topics that are missing, or whose configuration we may not read, are not among them. ``client``
    may be that of a producer or a consumer; the deadline is the caller's. Raises ClusterError.
    """
    names = {kafka.topic_prefix + name: name for name in TOPICS}
    link = Link(client=client, brokers=[each.nodeId for each in client.cluster.brokers()])
    found = await _configs(link, list(names), [MIN_INSYNC_REPLICAS])
    wanted = kafka.min_insync_replicas
    return [
        names[topic]
        for topic, configs in found.items()
        if int(configs.get(MIN_INSYNC_REPLICAS, wanted)) < wanted
    ]


async def may_write(link: Link) -> bool:
    """Whether we have the right with which an idempotent producer begins. Raises ClusterError."""
    answer = await _ask(link, InitProducerIdRequest(None, 0))
    # Other errors pass by: a broker that is just up has no numbers to hand out yet.
    return for_code(answer["error_code"]) is not ClusterAuthorizationFailedError


@dataclass(frozen=True, slots=True, kw_only=True)
class NewTopic:
    name: str
    partitions: int
    replication_factor: int
    configs: Mapping[str, str]


async def create(
    link: Link, topics: Sequence[NewTopic]
) -> Mapping[str, tuple[type[KafkaError], str]]:
    """Topic → how its making ended: NoError, or an error and the broker's words for it.

    Raises ClusterError.
    """
    request = CreateTopicsRequest(
        [
            (
                topic.name,
                topic.partitions,
                topic.replication_factor,
                [],
                list(topic.configs.items()),
            )
            for topic in topics
        ],
        round(MAKING_S * 1000),
        False,  # noqa: FBT003 - not only to be validated
    )
    # Without ZooKeeper every broker passes it on.
    controller = link.client.cluster.controller
    if controller is not None and controller.nodeId in link.brokers:
        link = replace(link, brokers=[controller.nodeId])
    answer = await _ask(link, request)
    return {
        topic["topic"]: (for_code(topic["error_code"]), topic["error_message"] or "")
        for topic in answer["topic_errors"]
    }


async def _ask(link: Link, request: Request[Any]) -> dict[str, Any]:
    """The answer of the first broker that gives one."""
    refusals: list[str] = []
    for broker in link.brokers:
        try:
            return dict((await link.client.send(broker, request)).to_object())
        except NotImplementedError:
            raise ClusterError(
                Fault("the brokers are too old", "use Kafka 2.3 or newer on them")
            ) from None
        except KafkaError as error:
            refusals.append(f"broker {broker}: {type(error).__name__}")
    raise ClusterError(
        Fault(
            f"no broker answers {type(request).__name__} ({', '.join(refusals) or 'none known'})",
            "look at the brokers' logs, then try again",
        )
    )


# The protocol. aiokafka has metadata up to version 5; what we may do comes with version 8.


class _DescribeResponse(Response):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 8
    SCHEMA = Schema(
        ("throttle_time_ms", Int32),
        (
            "brokers",
            Array(
                ("node_id", Int32),
                ("host", String("utf-8")),
                ("port", Int32),
                ("rack", String("utf-8")),
            ),
        ),
        ("cluster_id", String("utf-8")),
        ("controller_id", Int32),
        (
            "topics",
            Array(
                ("error_code", Int16),
                ("topic", String("utf-8")),
                ("is_internal", Boolean),
                (
                    "partitions",
                    Array(
                        ("error_code", Int16),
                        ("partition", Int32),
                        ("leader", Int32),
                        ("leader_epoch", Int32),
                        ("replicas", Array(Int32)),
                        ("isr", Array(Int32)),
                        ("offline_replicas", Array(Int32)),
                    ),
                ),
                ("authorized_operations", Int32),
            ),
        ),
        ("cluster_authorized_operations", Int32),
    )


class _DescribeRequestStruct(RequestStruct):  # type: ignore[misc]
    API_KEY = 3
    API_VERSION = 8
    RESPONSE_TYPE = _DescribeResponse
    SCHEMA = Schema(
        ("topics", Array(String("utf-8"))),
        ("allow_auto_topic_creation", Boolean),
        ("include_cluster_authorized_operations", Boolean),
        ("include_topic_authorized_operations", Boolean),
    )


class _DescribeRequest(Request[_DescribeRequestStruct]):  # type: ignore[misc]
    API_KEY = 3

    def __init__(self, topics: Sequence[str]) -> None:
        self._topics = topics

    def build(self, request_struct_class: type[_DescribeRequestStruct]) -> _DescribeRequestStruct:
        return request_struct_class(
            list(self._topics),
            False,  # noqa: FBT003 - never makes a topic by the way
            False,  # noqa: FBT003 - nothing of the cluster's rights
            True,  # noqa: FBT003 - the topics' rights
        )

"""Topics as they should be, settings for the clusters of the tests, and commands run at once."""

import gc
import io
import os
import sys
from contextlib import chdir, redirect_stderr, redirect_stdout
from typing import Any
from unittest.mock import patch
from warnings import catch_warnings, simplefilter

from pydantic import SecretStr

from consumers.cli import main
from ingest.commands.topics import wanted_configs
from ingest.eventlog.cluster import FoundTopic, Operation, Partition
from ingest.settings import Kafka
from schemas.topics import TOPICS
from tests.kafka.cluster import Cluster
from tests.kit import Product, Ran, clean_environment

SETTINGS = Kafka(sasl_password=SecretStr("invented-and-secret"), sasl_username="us")


def found(topic: str = "calls", count: int = 12, replicas: int = 3, **configs: str) -> FoundTopic:
    """A topic as it should be, but for what is given."""
    more = {key.replace("_", "."): value for key, value in configs.items()}
    return FoundTopic(
        name=f"telephony.{topic}",
        partitions=[Partition(leader=1, replicas=replicas, in_sync=replicas)] * count,
        configs={
            "retention.bytes": "-1",
            "unclean.leader.election.enable": "false",
            **wanted_configs(TOPICS[topic], SETTINGS),
            **more,
        },
        operations=frozenset(Operation),
    )


def settings_for(kafka: Cluster, prefix: str, **more: Any) -> dict[str, Any]:
    """Settings for one broker, and whatever it asks of us."""
    usual = kafka.settings(prefix) | {
        "partitions": 2,
        "replication_factor": 1,
        "min_insync_replicas": 1,
    }
    return {"eventlog": {"kind": "kafka"}, "kafka": usual | more}


def run_here(product: Product, *arguments: str) -> Ran:
    """As `Product.run`, in this process: without the half second that a start takes."""
    code: object = 0
    with (
        redirect_stdout(io.StringIO()) as output,
        redirect_stderr(io.StringIO()) as errors,
        chdir(product.folder),
        patch.object(sys, "argv", ["dialstream", *arguments]),
        patch.dict(os.environ, clean_environment(**product.environment), clear=True),
    ):
        try:
            main()
        except SystemExit as ended:
            code = ended.code
    assert isinstance(code, int)
    with catch_warnings():  # the end of a process closes what libraries forget
        simplefilter("ignore", ResourceWarning)
        gc.collect()
    return Ran(code, output.getvalue(), errors.getvalue())

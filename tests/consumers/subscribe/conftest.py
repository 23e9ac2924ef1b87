"""Both event logs, for every test that asks for one."""

from pathlib import Path

import pytest

from tests.consumers.subscribe.logs import JournalLog, KafkaLog, Log


@pytest.fixture(params=["journal", "kafka"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Log:
    if request.param == "journal":
        return JournalLog(tmp_path)
    cluster = request.getfixturevalue("kafka")
    return KafkaLog.make(cluster, request.getfixturevalue("topic_prefix"), tmp_path)


@pytest.fixture
def kafka_log(request: pytest.FixtureRequest, tmp_path: Path) -> KafkaLog:
    cluster = request.getfixturevalue("kafka")
    return KafkaLog.make(cluster, request.getfixturevalue("topic_prefix"), tmp_path)

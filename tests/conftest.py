"""What every test can ask for."""

import logging
import signal
import threading
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
import structlog

pytest.register_assert_rewrite("tests.kit")

pytest_plugins = ["tests.kafka.fixtures"]

# How long an example takes says something of the machine, not of what is tested.
hypothesis.settings.register_profile("ours", hypothesis.settings(), deadline=None)
hypothesis.settings.load_profile("ours")

# Whoever is started in the background of a shell ignores Ctrl-C, and so do all that it starts.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

from tests.kit import Product  # noqa: E402 - its asserts are rewritten

#: Files that take longest, the longest first. Whoever begins one last keeps all waiting.
LONG = (
    "consumers/prove/test_command.py",
    "consumers/reconcile/test_role.py",
    "consumers/reconcile/test_standby.py",
    "consumers/reconcile/test_killed.py",
    "faults/test_matrix.py",
    "consumers/reconcile/test_closing.py",
    "consumers/trace/test_command.py",
    "ingest/commands/test_rejects.py",
    "consumers/test_demo.py",
    "faults/week/test_processes.py",
    "ingest/test_listener.py",
    "consumers/sinks/dialedin/test_role.py",
    "consumers/reconcile/test_role_pairs.py",
    "consumers/subscribe/test_troubles.py",
    "consumers/poll/test_agents_role.py",
    "consumers/poll/test_on_kafka.py",
)


def pytest_configure(config: pytest.Config) -> None:
    # By itself xdist begins with the files that have most tests, which are the quickest.
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first; the others in the order that chance has given them."""
    place = {Path(__file__).parent / name: number for number, name in enumerate(LONG)}
    items.sort(key=lambda item: place.get(item.path, len(LONG)))


@pytest.fixture(autouse=True)
def logs_as_they_were(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """What a command sets up in the process of a test ends with the test."""
    configure, known = structlog.configure, structlog.get_config()
    handlers, level = logging.root.handlers[:], logging.root.level
    hooks = threading.excepthook, warnings.showwarning

    def uncached(**options: Any) -> None:
        # A logger that was cached could not be listened to by any later test.
        configure(**{**options, "cache_logger_on_first_use": False})

    monkeypatch.setattr(structlog, "configure", uncached)
    yield
    configure(**known)
    logging.root.handlers[:], logging.root.level = handlers, level
    threading.excepthook, warnings.showwarning = hooks


@pytest.fixture(scope="module")
def product(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Product]:
    """A receiver with one connection, ``acme``, for all tests of a module."""
    with Product(tmp_path_factory.mktemp("product")) as running:
        yield running


MakeProduct = Callable[..., Product]


@pytest.fixture
def make_product(tmp_path: Path) -> Iterator[MakeProduct]:
    """Makes receivers that are not started yet, and ends them with the test."""
    made: list[Product] = []

    def make(name: str = "product", **more: Any) -> Product:
        made.append(Product(tmp_path / name, **more))
        return made[-1]

    yield make
    for each in made:
        each.close()

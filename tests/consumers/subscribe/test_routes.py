"""What can be a handler, and of what. mypy reads this, too: a wrong handler is a type error."""

import functools
from collections.abc import Callable
from typing import Any, assert_type

import pytest

from consumers.subscribe import Deleted, Event, Retry, Subscriber
from consumers.subscribe.subscriber import Done
from schemas.base import Model
from schemas.call import Call
from schemas.contact import Contact
from schemas.conversation import Conversation
from schemas.message import Message
from tests.kit import PROJECT, clean_environment


def test_types_of_handlers_are_inferred_from_the_model() -> None:
    subscriber = Subscriber(group="crm")

    @subscriber.on(Conversation)
    async def one(conversation: Conversation) -> None: ...

    @subscriber.on(Call, types=("call.ended",))
    async def two(call: Call, event: Event[Call]) -> None:
        assert_type(event.data, Call)

    @subscriber.on(Call)
    async def wider(call: Model) -> None: ...

    @subscriber.on_deletion(Contact)
    async def gone(deleted: Deleted) -> None: ...

    @subscriber.on(Call)  # type: ignore[arg-type]
    async def wrong_model(message: Message) -> None: ...

    @subscriber.on(Call)  # type: ignore[arg-type]
    async def wrong_event(call: Call, event: Event[Message]) -> None: ...

    def not_async(call: Call) -> None: ...

    with pytest.raises(TypeError, match="not_async is no `async def`"):
        subscriber.on(Call)(not_async)  # type: ignore[arg-type]

    reveal: Any = subscriber.on(Call)(two)
    assert reveal is two  # it can be called as before
    handler: Callable[[Conversation], Done] = one
    assert handler is one


@pytest.mark.parametrize("package", ["consumers", "ingest", "schemas"])
def test_types_are_told_to_those_who_install_it(package: str) -> None:
    """PEP 561: without the marker mypy takes all of it for Any in others' projects."""
    assert (PROJECT / package / "py.typed").is_file()


def test_what_cannot_be_a_handler_is_said_at_once() -> None:
    subscriber = Subscriber(group="crm")

    async def none() -> None: ...

    async def three(call: Call, event: Event[Call], more: int) -> None: ...

    async def good(call: Call) -> None: ...

    for handler in (none, three):
        with pytest.raises(TypeError, match="takes a Call, or that and its Event"):
            subscriber.on(Call)(handler)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="no event has"):
        subscriber.on(Model)(good)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"message\.received is no type of call"):
        subscriber.on(Call, types=("message.received",))(good)
    with pytest.raises(TypeError, match="types are several"):
        subscriber.on(Call, types="call.ended")(good)
    with pytest.raises(ValueError, match="nothing is deleted of calls"):
        subscriber.on_deletion(Call)(good)  # type: ignore[arg-type]


async def test_other_kinds_of_handlers() -> None:
    """Methods, partials, objects, and arguments that have a default."""
    subscriber = Subscriber(group="crm")

    class Sink:
        async def method(self, call: Call) -> None: ...

        async def __call__(self, call: Call, event: Event[Call]) -> None: ...

    async def more(sink: Sink, call: Call, *, quickly: bool = False) -> None: ...

    async def default(call: Call, limit: int = 3) -> None: ...

    subscriber.on(Call)(Sink().method)
    subscriber.on(Call)(Sink())
    subscriber.on(Call)(functools.partial(more, Sink()))
    subscriber.on(Call)(default)
    names = [route.name for route in subscriber._routes]
    assert [name.rpartition(".")[2] for name in names] == ["method", "Sink", "partial", "default"]


@pytest.mark.parametrize("group", ["", "a b", "poll", "reconcile", "listen", "x" * 101, "a/b"])
def test_groups_have_names_that_can_be_topics_and_are_none_of_ours(group: str) -> None:
    with pytest.raises(ValueError, match="group"):
        Subscriber(group=group)


def test_a_policy_that_would_spin_is_none() -> None:
    for wrong in ({"tries": 0}, {"first_s": 0.0}, {"first_s": 10.0, "most_s": 1.0}):
        with pytest.raises(ValueError, match="tries"):
            Retry(**wrong)
    retry = Retry(first_s=0.5, most_s=30.0)
    assert [retry.pause_s(n) for n in (1, 2, 3, 7, 8, 10**9)] == [0.5, 1.0, 2.0, 30.0, 30.0, 30.0]


def test_it_is_light_to_import() -> None:
    import subprocess
    import sys

    done = subprocess.run(
        [sys.executable, "-c", "import sys, consumers.subscribe; print(*sys.modules)"],
        check=True,
        cwd=PROJECT,
        env=clean_environment(),
        capture_output=True,
        text=True,
    )
    loaded = done.stdout.split()
    heavy = "starlette uvicorn httpx aiokafka apsw typer rich phonenumbers prometheus_client"
    for name in (*heavy.split(), "structlog", "websockets", "ingest.settings"):
        assert name not in loaded

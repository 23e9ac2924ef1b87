"""Who handles what."""

import inspect
from collections.abc import Awaitable, Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

from pydantic import TypeAdapter
from typing_extensions import TypedDict

from consumers.subscribe.events import Deleted, Event, Retry
from ingest.eventlog.log import StoredRecord
from schemas.base import Model
from schemas.subjects import SUBJECTS
from schemas.topics import TOPIC_OF, TOPICS

_SUBJECT_OF: Mapping[type[Model], str] = {model: subject for subject, model in SUBJECTS.items()}

_PREFIX = "dialstream."


@dataclass(slots=True, kw_only=True)
class Route:
    """A handler, and what it is for."""

    #: Names it in logs and metrics.
    name: str
    subject: str
    #: None: all of the subject.
    types: frozenset[str] | None
    #: Makes the handler's coroutine; raises ValueError if the record is not what it ought to be.
    call: Callable[[StoredRecord], Awaitable[object]]
    retry: Retry
    #: None: as long as it likes.
    timeout_s: float | None
    is_for_deletions: bool = False
    #: Events in a row that it has failed for good.
    given_up: int = 0
    #: Events that it has handled.
    handled: int = 0

    @property
    def topic(self) -> str:
        return TOPIC_OF[self.subject]


def event_route(
    model: type[Model],
    handler: Callable[..., Awaitable[object]],
    types: Collection[str],
    retry: Retry,
    timeout_s: float | None,
) -> Route:
    """Raises TypeError or ValueError if it cannot be one."""
    subject = _subject_of(model)
    read = _reader_of(model)
    arguments = _count_arguments(handler)
    if arguments not in {1, 2}:
        raise TypeError(f"{_name_of(handler)} takes a {model.__name__}, or that and its Event")

    if arguments == 1:

        def call(stored: StoredRecord) -> Awaitable[object]:
            return handler(read(stored.value or b"")["data"])

    else:

        def call(stored: StoredRecord) -> Awaitable[object]:
            event = Event(stored, read(stored.value or b"")["data"])
            return handler(event.data, event)

    return Route(
        name=_name_of(handler),
        subject=subject,
        types=_full_types(subject, types),
        call=call,
        retry=retry,
        timeout_s=timeout_s,
    )


def deletion_route(
    model: type[Model],
    handler: Callable[[Deleted], Awaitable[object]],
    retry: Retry,
    timeout_s: float | None,
) -> Route:
    """Raises TypeError or ValueError if it cannot be one."""
    subject = _subject_of(model)
    topic = TOPICS[TOPIC_OF[subject]]
    if not topic.compacted:
        raise ValueError(
            f"nothing is deleted of {topic.name}: only compacted topics have deletions"
        )
    if _count_arguments(handler) != 1:
        raise TypeError(f"{_name_of(handler)} takes a Deleted")
    return Route(
        name=_name_of(handler),
        subject=subject,
        types=None,
        call=lambda stored: handler(Deleted(stored)),
        retry=retry,
        timeout_s=timeout_s,
        is_for_deletions=True,
    )


@cache  # there are as many as subjects
def _reader_of(model: type[Model]) -> Callable[[bytes], Any]:
    # What else is in an event is in the headers, too, or read when somebody asks for it.
    class Shape(TypedDict):
        data: model  # type: ignore[valid-type]

    return TypeAdapter(Shape).validator.validate_json


def _subject_of(model: type[Model]) -> str:
    subject = _SUBJECT_OF.get(model)
    if subject is None:
        known = ", ".join(sorted(each.__name__ for each in _SUBJECT_OF))
        raise TypeError(f"no event has a {model!r} as its data: there are {known}")
    return subject


def _full_types(subject: str, types: Collection[str]) -> frozenset[str] | None:
    if isinstance(types, str):
        raise TypeError("types are several: types=('call.ended',)")
    full = frozenset(_PREFIX + each.removeprefix(_PREFIX) for each in types)
    for each in full:
        if not each.startswith(f"{_PREFIX}{subject}."):
            raise ValueError(f"{each} is no type of {subject}: they begin with {subject}.")
    return full or None


def _name_of(handler: Callable[..., object]) -> str:
    name: str = getattr(handler, "__qualname__", type(handler).__qualname__)
    return name.rpartition("<locals>.")[2]


def _count_arguments(handler: Callable[..., object]) -> int:
    """How many it must be given, by place."""
    call = handler if inspect.isroutine(handler) else type(handler).__call__
    if not (inspect.iscoroutinefunction(handler) or inspect.iscoroutinefunction(call)):
        raise TypeError(f"{_name_of(handler)} is no `async def`")
    return sum(
        each.default is each.empty
        and each.kind in (each.POSITIONAL_ONLY, each.POSITIONAL_OR_KEYWORD)
        for each in inspect.signature(handler).parameters.values()
    )


class Routes:
    """The handlers of a subscriber."""

    def __init__(self) -> None:
        self._all: list[Route] = []
        self._found: dict[tuple[str, str | None], tuple[Route, ...]] = {}

    def add(self, route: Route) -> None:
        self._all.append(route)
        self._found.clear()

    def __iter__(self) -> Iterator[Route]:
        return iter(self._all)

    @property
    def topics(self) -> list[str]:
        return sorted({route.topic for route in self._all})

    def find(self, topic: str, type_: str | None) -> tuple[Route, ...]:
        """Whose an event of this type is, or, without a type, a deletion; in their order."""
        key = topic, type_
        found = self._found.get(key)
        if found is None:
            found = tuple(route for route in self._all if _is_for(route, topic, type_))
            self._found[key] = found
        return found


def _is_for(route: Route, topic: str, type_: str | None) -> bool:
    if type_ is None:
        return route.is_for_deletions and route.topic == topic
    return (
        not route.is_for_deletions
        and type_.startswith(f"{_PREFIX}{route.subject}.")
        and (route.types is None or type_ in route.types)
    )

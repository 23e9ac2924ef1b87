"""The subscriber: handlers are named to it, then it runs."""

import re
import sys
from collections.abc import Callable, Collection, Coroutine
from typing import TYPE_CHECKING, Any, Generic, Literal, TypeVar, overload

from consumers.subscribe.events import Deleted, Event, Retry
from consumers.subscribe.routes import Routes, deletion_route, event_route
from schemas.base import Model

if TYPE_CHECKING:
    from consumers.subscribe.running import Running
    from ingest.settings import Settings

M = TypeVar("M", bound=Model)

Done = Coroutine[Any, Any, None]

_GROUP = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,99}")

#: Groups of our own roles, whose partitions say who works on what.
_TAKEN = frozenset(("poll", "listen", "reconcile", "sink"))

_TIMEOUT_S = 60.0


class Subscriber:
    """Reads the stream for a group, and calls handlers with what is on it.

        subscriber = Subscriber(group="crm")

        @subscriber.on(Conversation)
        async def file_in_crm(conversation: Conversation) -> None: ...

        subscriber.run_forever()

    What it promises, on Kafka and on the journal:

    * A position is committed once everything before it was handled, or stands on
      ``rejects.<group>``. Killed at any instant it handles a little again and skips nothing.
    * The events of one key are handled one after the other, in the order in which they stand on the
      log; different keys side by side, at most ``parallel``. All members of a group share the
      partitions; on the journal a topic has one reader at a time, the others stand by.
    * Repeats of an id are not handed out again, as far as the last ``seen_max`` ids tell: memory of
      one process. For effects exactly once see `once`.
    * Before a partition goes to another member, handlers get ``leave_s`` to end, then they are
      cancelled, and the event comes to the other member.
    * The event log may be away for as long as it likes.

    ``start``: where the group begins that has never run: at what is on the log, or at what comes.
    So does one that was away for longer than Kafka keeps its positions, a week unless told else.
    ``retry``: of handlers that have none of their own. ``settings``: found as everywhere if None.
    """

    def __init__(
        self,
        group: str,
        *,
        parallel: int = 16,
        start: Literal["earliest", "latest"] = "earliest",
        retry: Retry | None = None,
        leave_s: float = 5.0,
        seen_max: int = 100_000,
        settings: "Settings | None" = None,
    ) -> None:
        if not _GROUP.fullmatch(group) or group in _TAKEN:
            raise ValueError(
                f"group {group!r}: letters, digits, '.', '_', '-', and none of {sorted(_TAKEN)}"
            )
        if parallel < 1:
            raise ValueError("parallel is at least 1")
        self.group = group
        self.parallel = parallel
        self.start = start
        self.leave_s = leave_s
        self.seen_max = seen_max
        self._retry = retry or Retry()
        self._settings = settings
        self._routes = Routes()
        self._running: Running | None = None

    def on(
        self,
        model: type[M],
        *,
        types: Collection[str] = (),
        retry: Retry | None = None,
        timeout_s: float | None = _TIMEOUT_S,
    ) -> "_On[M]":
        """Decorates a handler of a subject: it takes the model, or the model and its `Event`.

        ``types``: some of the subject's only, such as ``("call.ended", "call.missed")``.
        ``timeout_s``: a call that takes longer is cancelled, which is a failure; None: none is.
        Several handlers of one event are called one after the other. What does not fit its model
        is rejected. See `Retry` for what follows when a handler fails.
        """
        return _On(self._routes, model, types, retry or self._retry, timeout_s)

    def on_deletion(
        self,
        model: type[Model],
        *,
        retry: Retry | None = None,
        timeout_s: float | None = _TIMEOUT_S,
    ) -> "Callable[[Callable[[Deleted], Done]], Callable[[Deleted], Done]]":
        """Decorates a handler of what is deleted of a compacted topic.

        Such as a conversation that was merged into another one. The log forgets deletions after a
        day: who was away for longer reads anew from the beginning to know them all.
        """

        def add(handler: Callable[[Deleted], Done]) -> Callable[[Deleted], Done]:
            self._routes.add(deletion_route(model, handler, retry or self._retry, timeout_s))
            return handler

        return add

    async def run(self) -> None:
        """Handle what comes until `stop` is called, or it is cancelled.

        Raises ConfigError if it cannot begin, and what a handler raised whose policy is to stop.
        """
        from consumers.subscribe.running import Running  # noqa: PLC0415 - it loads the event log
        from ingest.settings import load_settings  # noqa: PLC0415

        if self._running is not None:
            raise RuntimeError("it is running")
        if not self._routes.topics:
            raise ValueError("there is no handler")
        settings = self._settings or load_settings()
        self._running = Running(self, self._routes, settings)
        try:
            await self._running.run()
        finally:
            self._running = None

    def stop(self) -> None:
        """Let what is being handled end, commit it, and return from `run`."""
        if self._running is not None:
            self._running.stop()

    @property
    def waiting(self) -> int:
        """Events that were fetched and are not handled yet; large ones count several times.

        But for those of partitions that are paused, or in which nothing gets done.
        """
        return 0 if self._running is None else self._running.waiting

    def run_forever(self) -> None:
        """Be a process of its own: run until SIGTERM or Ctrl-C. A second signal ends it at once.

        Logs go to stderr as those of `dialstream`, unless structlog is set up already. Raises
        SystemExit if it ends otherwise: 2 if it cannot begin, else 1.
        """
        from consumers.subscribe.running import run_alone  # noqa: PLC0415
        from ingest.settings import load_settings  # noqa: PLC0415

        code = run_alone(self, self._settings, load_settings)
        if code:
            sys.exit(code)


class _On(Generic[M]):
    """Takes the handler that `Subscriber.on` is put above."""

    def __init__(
        self,
        routes: Routes,
        model: type[M],
        types: Collection[str],
        retry: Retry,
        timeout_s: float | None,
    ) -> None:
        self._routes = routes
        self._model = model
        self._types = types
        self._retry = retry
        self._timeout_s = timeout_s

    @overload
    def __call__(self, handler: Callable[[M], Done]) -> Callable[[M], Done]: ...

    @overload
    def __call__(self, handler: Callable[[M, Event[M]], Done]) -> Callable[[M, Event[M]], Done]: ...

    def __call__(self, handler: Callable[..., Done]) -> Callable[..., Done]:
        self._routes.add(
            event_route(self._model, handler, self._types, self._retry, self._timeout_s)
        )
        return handler

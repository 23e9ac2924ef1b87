"""`dialstream prove`: load and trouble, then everything read back and judged."""

import asyncio
import contextlib
import json
import os
import re
import secrets
import shutil
import signal
import sys
import time
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager
from datetime import UTC, datetime

import structlog
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from consumers.prove.deliveries import Maker, maker_for
from consumers.prove.load import Load, open_load
from consumers.prove.oracle import Judge
from consumers.prove.receiver import OwnReceiver
from consumers.prove.report import Plan, Result, as_data, show
from consumers.prove.trouble import END_S, Happened, Trouble
from ingest.errors import ConfigError
from ingest.eventlog.kinds import open_reader
from ingest.eventlog.log import Behind, StoredRecord
from ingest.logs import quietly
from ingest.runner import Stopping
from ingest.service import url_of
from ingest.settings import Settings
from schemas.times import now_ms

log = structlog.get_logger()

_SPAN = re.compile(r"(\d+(?:\.\d+)?)(s|m|h)?")
_UNIT_S = {None: 1, "s": 1, "m": 60, "h": 3600}

#: The clock of the receiver may differ from ours by so much.
_CLOCKS_MS = 600_000

#: For the first answer.
_FIRST_S = 10.0

_FETCH_S, _PROGRESS_S = 0.2, 0.2

#: Whoever has to wait longer for the trouble to end is told why.
_TROUBLE_S = 2.0

REJECTS = "rejects"

_RECORDED = re.compile(rb'"recordedtime": ?"([^"]+)"')


def span_s(option: str, text: str) -> float:
    """Seconds of ``90``, ``90s``, ``5m`` or ``1h``. Raises ConfigError that names the option."""
    found = _SPAN.fullmatch(text)
    if found is None or not float(found[1]):
        raise ConfigError(f"{option}: {text!r} is no span of time: write 60s, 5m or 1h")
    return float(found[1]) * _UNIT_S[found[2]]


def pushed_connection(settings: Settings, name: str | None) -> str:
    """The connection to post to. Raises ConfigError if that is not clear."""
    names = [each for each, connection in settings.connections.items() if connection.has_secrets]
    if name is None and len(names) == 1:
        return names[0]
    if name not in settings.connections:
        known = ", ".join(names) or "none has a secret"
        what = "name it with --connection" if name is None else f"there is no connection {name!r}"
        raise ConfigError(f"{what}: {known}")
    return name


def prove(settings: Settings, plan: Plan, *, as_json: bool) -> int:
    """Play the experiment and print what came of it; 1 if the promise was broken.

    Raises ConfigError if it cannot be played.
    """
    if plan.to is not None and not plan.really:
        raise ConfigError(
            "--to posts to a receiver that writes to the real topics: say --really, too"
        )
    maker = maker_for(plan.connection, settings.connections[plan.connection])
    with quietly(settings.logging.format):
        result = asyncio.run(_experiment(settings, plan, maker, quiet=as_json))
    if as_json:
        print(json.dumps(as_data(result, plan)))  # noqa: T201
    else:
        show(result, plan)
    if not result.verdict.acknowledged:
        raise ConfigError("nothing was acknowledged: that proves nothing")
    return int(bool(result.verdict.broken))


async def _experiment(settings: Settings, plan: Plan, maker: Maker, *, quiet: bool) -> Result:
    stopping = Stopping()
    loop = asyncio.get_running_loop()
    #: What lies about until the end.
    about: list[str] = []

    def on_signal(number: signal.Signals) -> None:
        """End sooner, and tell what was found; a second one ends it at once."""
        if stopping.asked:
            for where in about:
                sys.stderr.write(f"left behind: {where}\n")
            os._exit(128 + number)
        stopping.ask()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, on_signal, number)
    if plan.really:
        url = plan.to or f"{url_of(settings.receiver)}/webhooks/{plan.connection}"
        return await _Run(settings, plan, maker, url, None, stopping, quiet=quiet).play()
    own = OwnReceiver.of(settings, new_name(), plan.config)
    url = f"{own.url}/webhooks/{plan.connection}"
    folder = own.settings.eventlog.path
    about.append(str(folder))
    topics = [maker.topic, REJECTS] if settings.eventlog.kind == "kafka" else []
    their_names = f"topics {own.settings.kafka.topic_prefix}*"
    result: Result | None = None
    if topics:
        # Kafka's client is loaded where it is needed.
        from consumers.prove.topics import delete_topics, make_topics  # noqa: PLC0415

        about.append(their_names)
        await make_topics(own.settings.kafka, topics)
    try:
        async with own.running():
            run = _Run(own.settings, plan, maker, url, own, stopping, quiet=quiet)
            result = await run.play()
    finally:
        if result is not None and result.verdict.broken:
            result.left = about
        else:
            await asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True)
            if topics and not await delete_topics(own.settings.kafka, topics) and result:
                result.left = [f"{their_names}, which could not be deleted"]
    return result


def new_name() -> str:
    """Of an experiment; two that begin in one second have nothing in common, either."""
    return f"prove-{datetime.now(UTC):%Y%m%dT%H%M%S}-{secrets.token_hex(4)}"


class _Run:
    """The experiment itself, at a receiver that is there."""

    def __init__(
        self,
        settings: Settings,
        plan: Plan,
        maker: Maker,
        url: str,
        own: OwnReceiver | None,
        stopping: Stopping,
        *,
        quiet: bool,
    ) -> None:
        """``settings``: those of the receiver at ``url``."""
        self._settings = settings
        self._plan = plan
        self._maker = maker
        self._url = url
        self._own = own
        self._stopping = stopping
        self._console = Console(stderr=True, highlight=False, quiet=quiet)
        #: From the receiver to the log, of each record, in seconds.
        self._to_log_s: list[float] = []

    async def play(self) -> Result:
        plan = self._plan
        begun, begun_ms = time.monotonic(), now_ms()
        until = begun + plan.for_s
        troubles: list[Happened] = []

        def ended() -> bool:
            return self._stopping.asked or time.monotonic() > until

        async with open_load(self._url, self._maker, senders=plan.senders, rate=plan.rate) as load:
            await self._try_one(load)
            with self._progress(load, until):
                async with self._in_trouble(troubles):
                    await load.play(plan.senders, ended, plan.wait_s)
                    # What makes trouble may take its time to end.
                    took_s = time.monotonic() - begun
        judge = Judge(load.offered)
        await self._read_back(judge, begun_ms - _CLOCKS_MS)
        verdict = judge.verdict()
        verdict.worst_s = max(load.answered_s, default=0.0)
        return Result(
            verdict=verdict,
            url=self._url,
            answered_s=sorted(load.answered_s),
            to_log_s=sorted(self._to_log_s),
            took_s=took_s,
            troubles=troubles,
            starts=None if self._own is None else self._own.starts,
            raw_is_kept=self._maker.raw_is_kept,
        )

    async def _try_one(self, load: Load) -> None:
        """Whoever posts to the wrong place, or with the wrong secret, need not wait for the end."""
        until = time.monotonic() + _FIRST_S
        status = await load.post_first()
        while status is None and time.monotonic() < until:  # it may be on its way up
            await asyncio.sleep(_PROGRESS_S)
            status = await load.post_first()
        if status is None:
            raise ConfigError(f"{self._url} does not answer: is a receiver there?")
        if not 200 <= status < 300:  # noqa: PLR2004
            raise ConfigError(
                f"{self._url} answers {status} before anything has gone wrong: `dialstream send` "
                "and the receiver's log say more"
            )

    @asynccontextmanager
    async def _in_trouble(self, happened: list[Happened]) -> AsyncIterator[None]:
        plan = self._plan
        if plan.trouble is None:
            yield
            return
        trouble = Trouble(plan.trouble, plan.every_s, self._variables, self._tell)
        playing = asyncio.create_task(trouble.play())
        try:
            yield
        finally:
            trouble.end()
            await asyncio.wait([playing], timeout=_TROUBLE_S)
            if not playing.done():
                self._console.print(f"the trouble has not ended: it has {END_S:.0f} s")
                await asyncio.wait([playing])
            happened += trouble.happened
        playing.result()

    def _variables(self) -> Mapping[str, str]:
        pid = None if self._own is None else self._own.pid
        found = {"DIALSTREAM_PROVE_URL": self._url}
        return found if pid is None else {**found, "DIALSTREAM_PROVE_PID": str(pid)}

    def _tell(self, happened: Happened) -> None:
        how = "was killed: it did not end" if happened.code is None else f"exit {happened.code}"
        self._console.print(f"{happened.at_s:6.1f} s  trouble: {how}", markup=False)
        for line in happened.output.splitlines():
            self._console.print(f"          {line}", markup=False, style="dim")

    @contextlib.contextmanager
    def _progress(self, load: Load, until: float) -> Iterator[None]:
        columns = BarColumn(), TimeElapsedColumn(), TextColumn("{task.description}")
        with Progress(
            *columns,
            console=self._console,
            transient=True,
            disable=not self._console.is_terminal or self._console.quiet,
        ) as progress:
            task = progress.add_task("", total=self._plan.for_s)

            async def update() -> None:
                while True:
                    open_ = len(load.offered) - load.acknowledged
                    progress.update(
                        task,
                        completed=self._plan.for_s - max(0.0, until - time.monotonic()),
                        description=f"{load.acknowledged:,} acknowledged, {open_:,} open",
                    )
                    await asyncio.sleep(_PROGRESS_S)

            updating = asyncio.create_task(update())
            try:
                yield
            finally:
                updating.cancel()

    # Reading back

    async def _read_back(self, judge: Judge, since_ms: int) -> None:
        """All that is there of ours, once what was acknowledged is there, or has had its time."""
        until = time.monotonic() + self._plan.wait_s
        topics = [self._maker.topic, REJECTS]
        start = Behind({}, dict.fromkeys(topics, since_ms))
        said_at = 0.0
        async with open_reader(self._settings, topics, start=start) as reader:
            while True:
                found = await reader.fetch(wait_s=_FETCH_S)
                for stored in found:
                    self._take(judge, stored)
                if found or not await reader.caught_up():
                    continue
                missing = judge.missing()
                if not missing or time.monotonic() > until or self._stopping.asked:
                    return
                if time.monotonic() > said_at:
                    said_at = time.monotonic() + 10
                    self._console.print(
                        f"{len(missing):,} are not on the log yet: in a spool, it may be"
                    )

    def _take(self, judge: Judge, stored: StoredRecord) -> None:
        value = stored.value
        if value is None:
            return
        if stored.topic == REJECTS:
            if judge.is_about(value):
                judge.take_reject(value)
            return
        ident = dict(stored.headers).get("ce_id", b"").decode()
        # Where nobody else writes, what is none of ours is a change, whatever it looks like.
        if self._own is not None or judge.expects(ident) or self._maker.mark in value:
            judge.take(value)
            recorded = _RECORDED.search(value)
            if recorded is not None:
                recorded_s = datetime.fromisoformat(recorded[1].decode()).timestamp()
                self._to_log_s.append(stored.written_ms / 1000 - recorded_s)

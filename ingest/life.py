"""Signs of life of the receiver: they tell the next one how long nobody was there to receive.

Every receiver gives them, and any of them counts: they are no matter of ownership.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager

import structlog

from ingest.checkpoints import Checkpoint, read_checkpoints, save_checkpoint
from ingest.errors import ConfigError, PublishError
from ingest.gaps import gap_event
from ingest.pipeline import store
from ingest.service import Service
from ingest.settings import Settings
from schemas.times import now_ms

log = structlog.get_logger()

#: The channel, and the source of its checkpoint, ``{"alive_ms": …}``.
SOURCE = "webhook"

EVERY_S = 30.0

#: With the last sign longer ago, there was nobody: two may be late, or lost on the way.
SILENT_S = 90.0

#: Between two tries to find the last sign, and what the last sign of all may take.
_AGAIN_S, _GOODBYE_S = 10.0, 3.0

#: A gap that is not on the log by then is told again.
_STORE_S = 30.0


def watched(settings: Settings) -> list[str]:
    """The connections that are pushed to us, and can be read back."""
    return [name for name, at in settings.connections.items() if at.has_secrets and at.polled]


@asynccontextmanager
async def signs_of_life(
    service: Service, *, every_s: float = EVERY_S, again_s: float = _AGAIN_S
) -> AsyncIterator[None]:
    """During the block say every now and then that we receive, and once more at its end.

    Before that a ``gap.opened`` tells from when to now nobody did. Nothing of it holds anybody up:
    where the last signs cannot be read yet, there are none of ours that could take their place.
    """
    living = asyncio.create_task(_live(service, now_ms(), every_s, again_s))
    try:
        yield
    finally:
        living.cancel()
        await asyncio.wait([living])


async def _live(service: Service, since_ms: int, every_s: float, again_s: float) -> None:
    names = watched(service.settings)
    if not names:
        return
    told = ""
    while True:
        try:
            await _tell_gaps(service, names, since_ms)
            break
        except (ConfigError, PublishError) as error:
            reason = error.reason if isinstance(error, PublishError) else str(error)
        except Exception as error:  # noqa: BLE001 - the receiver is not to end for it
            reason = type(error).__name__
        if reason != told:
            log.warning("gaps_not_told", reason=reason)
            told = reason
        await asyncio.sleep(again_s)
    try:
        while True:
            await _sign(service, names)
            await asyncio.sleep(every_s)
    finally:
        try:
            async with asyncio.timeout(_GOODBYE_S):
                await _sign(service, names)
        except TimeoutError:
            log.warning("sign_not_saved", reason="timeout")


async def _tell_gaps(service: Service, names: Sequence[str], since_ms: int) -> None:
    signs = await read_checkpoints(service.settings)
    gaps = [
        gap_event(
            name,
            SOURCE,
            from_ms,
            to_ms=since_ms,
            reason="not_receiving",
            found=None,
            now_ms=now_ms(),
        )
        for name in names
        if (from_ms := _alive_ms(signs, name)) is not None and since_ms - from_ms > SILENT_S * 1000
    ]
    await store(service.eventlog, gaps, asyncio.get_running_loop().time() + _STORE_S)


def _alive_ms(signs: Mapping[tuple[str, str], Checkpoint], name: str) -> int | None:
    alive_ms = signs.get((name, SOURCE), {}).get("alive_ms")
    return alive_ms if isinstance(alive_ms, int) else None


async def _sign(service: Service, names: Sequence[str]) -> None:
    alive_ms = now_ms()

    async def save(name: str) -> None:
        try:
            # All receivers write in one generation: the last of them counts.
            await save_checkpoint(service.eventlog, name, SOURCE, {"alive_ms": alive_ms}, 0)
        except PublishError as error:
            log.warning("sign_not_saved", connection=name, reason=error.reason)
        except Exception as error:
            log.error("unexpected_error", connection=name, exc_info=error)

    await asyncio.gather(*map(save, names))

"""The watchdog: says when what Dialpad sends is no longer what the settings ask for.

Dialpad tells nobody that a subscription was deleted, switched off or changed: events just stop.

https://developers.dialpad.com/docs/webhook-delivery-failures : only developers disable or delete.
"""

import asyncio
from collections import Counter
from collections.abc import Sequence

import structlog

from ingest.api import ApiError
from ingest.errors import ConfigError
from ingest.metrics import SUBSCRIPTION_DRIFT
from ingest.providers.dialpad.api import open_api
from ingest.providers.dialpad.subscriptions import Drift, desired, drift, plan, syncs
from ingest.providers.dialpad.sync import look
from ingest.service import Service
from ingest.settings import Connection

log = structlog.get_logger()

EVERY_S = 900.0

#: For one look at one connection; its requests wait for their turn among those of the poller.
LOOK_S = 300.0


async def watch(service: Service, *, every_s: float = EVERY_S) -> None:
    """Look at each Dialpad connection that is for syncing, until the service is stopping.

    Whatever Dialpad answers is logged; nothing of it ends this.
    """
    watches = [
        _Watch(name, connection)
        for name, connection in service.settings.connections.items()
        if syncs(connection)
    ]
    looking = asyncio.create_task(_look_again(watches, every_s))
    stopping = asyncio.create_task(service.stopping.wait())
    try:
        await asyncio.wait((looking, stopping), return_when=asyncio.FIRST_COMPLETED)
        if looking.done():
            looking.result()
    finally:
        looking.cancel()
        stopping.cancel()
        await asyncio.wait((looking, stopping))


async def _look_again(watches: "Sequence[_Watch]", every_s: float) -> None:
    while True:
        async with asyncio.TaskGroup() as tasks:
            for each in watches:
                tasks.create_task(each.look())
        await asyncio.sleep(every_s)


class _Watch:
    """One connection, and what was wrong with it at the last look."""

    def __init__(self, name: str, connection: Connection) -> None:
        self._name = name
        self._connection = connection
        self._before: Counter[Drift] = Counter()
        self._unread: str | None = None

    async def look(self) -> None:
        """Tell what has changed since the last look; the metric has what is wrong now."""
        try:
            async with asyncio.timeout(LOOK_S):
                now = await find_drift(self._name, self._connection)
        except ApiError as error:
            self._not_read(error.reason, error.status)
        except TimeoutError:
            self._not_read("slow", None)
        except ConfigError:
            self._not_read("settings", None)
        except Exception as error:
            # A fault of ours, but deliveries are taken in this process, too.
            log.error("unexpected_error", connection=self._name, exc_info=error)
            self._not_read("internal", None)
        else:
            self._unread = None
            self._tell(now)

    def _not_read(self, reason: str, status: int | None) -> None:
        if reason != self._unread:
            log.warning(
                "subscriptions_not_read", connection=self._name, reason=reason, status=status
            )
        self._unread = reason

    def _tell(self, now: Counter[Drift]) -> None:
        for kind, what in self._before.keys() | now.keys():
            SUBSCRIPTION_DRIFT.labels(self._name, kind, what).set(now[kind, what])
        for (kind, what), count in now.items():
            if count != self._before[kind, what]:
                log.warning(
                    "subscription_drift", connection=self._name, kind=kind, what=what, count=count
                )
        if self._before and not now:
            log.info("subscriptions_in_order", connection=self._name)
        self._before = now


async def find_drift(name: str, connection: Connection) -> Counter[Drift]:
    """What differs from the settings. Raises ApiError, and ConfigError where those are wrong."""
    wanted = desired(name, connection)
    async with open_api(name, connection) as api:
        return drift(plan(wanted, await look(api)))

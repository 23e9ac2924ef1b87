"""Rotating a secret: when the former one is not used any more, it can go."""

from collections.abc import Mapping

import structlog
from msgspec import Struct

from ingest.delivery import Source
from ingest.metrics import FORMER_SECRET

log = structlog.get_logger()

#: An SMS is tried again for about 4 h, with the signature of its first try, maybe.
#: https://developers.dialpad.com/docs/webhook-delivery-failures
UNSEEN_S = 5 * 3600


class _Use(Struct):
    source: Source
    count: int
    since: float
    told: bool = False


class FormerSecrets:
    """How much one channel of each connection still signs with a secret that is not the first."""

    def __init__(self) -> None:
        self._uses: dict[str, _Use] = {}

    def look(self, sources: Mapping[str, Source], now: float) -> None:
        """Count, and say it once when a former secret was unseen for five hours.

        ``now``: seconds by a clock that only rises. To be called now and then.
        """
        for name, source in sources.items():
            count = source.former_seen
            if count is None:  # there is one secret
                self._uses.pop(name, None)
                continue
            use = self._uses.setdefault(name, _Use(source, 0, now))
            if use.source is not source:  # secrets were read again, and the former may be another
                use.source, use.count, use.since, use.told = source, 0, now, False
            if count > use.count:
                FORMER_SECRET.labels(name).inc(count - use.count)
                use.count, use.since, use.told = count, now, False
            elif now - use.since >= UNSEEN_S and not use.told:
                use.told = True
                log.info("former_secret_unseen", connection=name, hours=UNSEEN_S // 3600)

"""What every transport does with what has become of a delivery: count it, and say it."""

import logging
import time

import structlog

from ingest.delivery import Source
from ingest.logs import Sample, short_id
from ingest.metrics import TALLIES
from ingest.pipeline import Accepted

log = structlog.get_logger()

#: A stored delivery that took longer is worth a line.
SLOW_S = 1.0


class Door:
    """A connection's way in by one channel: its source, its counts, its lines in the log."""

    def __init__(self, name: str, source: Source, via: str) -> None:
        self.name = name
        #: May be replaced, when secrets are read again.
        self.source = source
        self.via = via
        self.tally = TALLIES.of(name, via)
        self._samples: dict[str, Sample] = {}
        self._debugging = log.is_enabled_for(logging.DEBUG)

    def accept(self, accepted: Accepted, size_bytes: int, taken_s: float) -> None:
        self.tally.accept(accepted, taken_s)
        suppressed: int | None = 0
        if accepted.outcome == "rejected":
            say, line = log.warning, "delivery_rejected"
        elif taken_s > SLOW_S:
            say, line = log.warning, "delivery_slow"
            suppressed = self._sample("slow")
            if suppressed is None:
                return
        elif self._debugging:
            say, line = log.debug, "delivery_stored"
        else:
            return
        say(
            line,
            connection=self.name,
            via=self.via,
            kind=accepted.events[0].type,
            ids=short_id(accepted.events[0].id),
            outcome=accepted.outcome,
            stored_in=accepted.receipt.where,
            size_bytes=size_bytes,
            duration_ms=round(taken_s * 1000, 1),
            suppressed=suppressed,
        )

    def refuse(self, reason: str, size_bytes: int | None) -> None:
        self.tally.refuse(reason)
        self._say("delivery_refused", reason, size_bytes, None)

    def be_unavailable(self, reason: str, size_bytes: int | None, taken_s: float | None) -> None:
        self.tally.be_unavailable(reason)
        self._say("delivery_unavailable", reason, size_bytes, taken_s)

    def _say(self, line: str, reason: str, size_bytes: int | None, taken_s: float | None) -> None:
        suppressed = self._sample(reason)
        if suppressed is not None:
            log.warning(
                line,
                connection=self.name,
                via=self.via,
                reason=reason,
                size_bytes=size_bytes,
                duration_ms=None if taken_s is None else round(taken_s * 1000, 1),
                suppressed=suppressed,
            )

    def _sample(self, reason: str) -> int | None:
        """A flood is told by a line every now and then, with the count of those it stands for."""
        return self._samples.setdefault(reason, Sample()).take(time.monotonic())

"""Logs: one JSON object a line on stderr, by a catalogue, without content and without waiting.

Every line's ``event`` stands in `CATALOGUE` with the fields that it may have; the tests hold the
code to it. No field is content: connection names, words of ours, counts, sizes, times, and the
last letters of ids.
"""

import logging
import os
import queue
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Mapping, MutableMapping
from contextlib import AbstractContextManager, closing
from types import TracebackType
from typing import Any, TextIO

import orjson
import structlog

from ingest.metrics import LOG_LINES_DROPPED

log = structlog.get_logger()

_DELIVERY = "connection via kind outcome reason ids size_bytes duration_ms stored_in suppressed"

CATALOGUE: Mapping[str, tuple[str, str]] = {
    # event: (what has happened, fields beside event, level, timestamp)
    "started": ("A role is ready.", "role address admin_address connections eventlog path"),
    "stopping": ("Not ready any more; what is in flight is finished.", "signal"),
    "stopped": (
        "The end, with the sums since the start.",
        "received stored repeat refused rejected unavailable",
    ),
    "delivery_stored": ("A delivery is durable (level debug).", _DELIVERY),
    "delivery_rejected": (
        "Authentic but unreadable: kept on the rejects topic.",
        _DELIVERY + " detail",
    ),
    "delivery_refused": (
        "It did not verify, or is too large; one line in 10 s for each reason.",
        _DELIVERY,
    ),
    "delivery_unavailable": ("Answered with 503: it was not stored.", _DELIVERY),
    "delivery_slow": (
        "Stored, but that took more than a second; one line in 10 s.",
        _DELIVERY,
    ),
    "drift_seen": (
        "A provider sends what nobody has told us of, for the first time: see `dialstream drift`.",
        "connection kind what",
    ),
    "drift_unreadable": ("What was seen before is forgotten.", "path error"),
    "quarantine_failed": (
        "What did not verify cannot be kept for people to look at; told once a kind.",
        "error",
    ),
    "rejects_alarm": (
        "More than 5 % of 5 minutes were unreadable: the provider has changed its payloads.",
        "connection rejected received",
    ),
    "secrets_reloaded": ("SIGHUP: secrets were read again.", "connections"),
    "former_secret_unseen": (
        "Nothing has come with the former secret for so long: it can go from the settings.",
        "connection hours",
    ),
    "secrets_not_reloaded": ("SIGHUP: they are wrong; the old ones stay.", "faults"),
    "degraded": ("Records are still accepted, but something is wrong.", "reasons"),
    "recovered": ("What was wrong no longer is.", "reasons"),
    "disk_refuses": (
        "The disk under journal or spool does not take records: deliveries get 503.",
        "store topic reason",
    ),
    "kafka_connected": ("There is a producer.", ""),
    "kafka_unreachable": (
        "There is no producer; it is tried again for as long as it takes, told once a kind.",
        "error",
    ),
    "kafka_given_up": ("The producer is of no use any more; a new one is made.", "reason"),
    "topics_weak": (
        "Their min.insync.replicas is below the setting: what is stored may go with a broker.",
        "topics",
    ),
    "topics_not_checked": ("Whether topics are weak could not be found out.", "error"),
    "spool_found": ("An earlier run has left records in the spool.", "topic records"),
    "spool_begun": ("Kafka takes too long: this topic's records go to the spool.", "topic reason"),
    "spool_drained": (
        "Kafka has all of the spool; new ones go there directly.",
        "topic seconds",
    ),
    "topics_missing": ("The cluster has no such topics; the others are read.", "topics"),
    "reader_not_closed": ("Saying goodbye to Kafka took too long.", "error"),
    "record_refused": (
        "Kafka refuses a record for good; its beginning is kept on the rejects topic.",
        "topic reason size_bytes",
    ),
    "housekeeping_failed": ("Tidying the journal failed; it is tried again.", "error where"),
    "segment_abandoned": (
        "The disk failed to write this file; a new one was begun.",
        "topic error",
    ),
    "segment_damaged": (
        "A file is corrupt: it was kept as *.damaged, and what can be read of it is used.",
        "topic file rescued",
    ),
    "segment_unreadable": (
        "A file, or a part of it, cannot be read; the reader goes on behind it.",
        "topic file",
    ),
    "segment_expired": (
        "All records in a file were older than the topic keeps them.",
        "topic file",
    ),
    "segment_trimmed": (
        "The journal is larger than journal_max_bytes: its oldest file went.",
        "topic file",
    ),
    "segment_compacted": (
        "What was still the last of its key was copied forward.",
        "topic file kept",
    ),
    "api_trouble": (
        "A provider's API did not do as asked (404, 409 are answers); one line in 10 s of a kind.",
        "connection call reason status suppressed",
    ),
    "standing_by": ("Another process does this work; should it end, we take over.", "role"),
    "connection_taken": (
        "This process works on the connection from now on.",
        "role connection generation",
    ),
    "connection_left": (
        "It does so no longer; not ended: its work went on in spite of being cancelled.",
        "role connection ended",
    ),
    "ownership_unknown": (
        "Kafka does not say who works on what: nobody does here; tried again, told once a kind.",
        "role error",
    ),
    "ownership_unsure": (
        "Kafka has not been heard of for so long that others may have our work: it stops.",
        "role",
    ),
    "gaps_not_told": (
        "Until when there was a receiver cannot be found out; tried again, told once a kind.",
        "reason",
    ),
    "checkpoint_unreadable": ("A record among the checkpoints is none of ours.", "position"),
    "recaps_missing": (
        "None of so many calls has a recap: is it off at Dialpad? Told once.",
        "connection calls",
    ),
    "key_expires": (
        "An API key ends in `days` (below 0: it has ended): make a new one; told once a day.",
        "connection days expires_at",
    ),
    "key_expiry_unknown": (
        "When an API key ends cannot be found out: it may not list keys, or is not among them.",
        "connection reason",
    ),
    "list_order_refused": (
        "A list is not given in the order of its changes: it is read by start; told once a day.",
        "connection what reason",
    ),
    "stream_connected": ("A connection's websocket is open, and stays open.", "connection"),
    "stream_lost": (
        "It has ended: closed (by the provider), cut, silent, too_large (a frame), not_websocket.",
        "connection reason code lasted_s",
    ),
    "stream_refused": (
        "It could not be opened; it is tried again.",
        "connection reason status mend again_s",
    ),
    "stream_held": (
        "The event log takes nothing, and no more frames may wait: none are read.",
        "connection waiting size_bytes",
    ),
    "sign_not_saved": ("A sign of life could not be stored; the next may be.", "connection reason"),
    "publish_retried": (
        "What nobody would send again was not stored; it is tried again; one line in 10 s.",
        "reason waiting suppressed",
    ),
    "subscription_drift": (
        "Something at Dialpad is not as configured; `dialstream dialpad sync` mends it.",
        "connection kind what count",
    ),
    "subscriptions_in_order": ("What Dialpad sends is as configured again.", "connection"),
    "subscriptions_not_read": (
        "Whether Dialpad sends what is configured could not be found out.",
        "connection reason status",
    ),
    "poll_pass": (
        "A window of a provider's records is on the event log (level debug).",
        "connection agent kind read published window_s seconds",
    ),
    "poll_failed": (
        "A provider, or an agent, could not be read; it is tried again, and the watermark stays.",
        "connection what agent reason detail said failures retry_in_s",
    ),
    "poll_stopped": (
        "A provider refuses our key; it is tried again after a while, and at SIGHUP.",
        "connection what reason detail said retry_in_s",
    ),
    "poll_resumed": ("A provider that had failed can be read again.", "connection what"),
    "poll_waits": (
        "The event log does not take what was read back; it is tried until it does.",
        "connection reason retry_in_s",
    ),
    "poll_behind": (
        "Too many transcripts or recaps were waiting: the oldest were given up.",
        "connection what dropped",
    ),
    "poll_memory_lost": (
        "What was published cannot be remembered on this disk; some of it is published again.",
        "path error",
    ),
    "gap_closed": (
        "A gap was read back; `found`: the calls that ended in it.",
        "connection channel reason seconds found",
    ),
    "reconcile_state_lost": (
        "What reconciliation remembered cannot be read: it is found again on the log.",
        "path error",
    ),
    "reconcile_waits": (
        "What was worked out cannot be written yet; it is tried again.",
        "connection reason",
    ),
    "fact_unreadable": (
        "A record that reconciliation reads was not written by us.",
        "topic position",
    ),
    "completeness": (
        "How many calls of an hour were pushed, recorded, and both.",
        "connection hour n pushed recorded both figure",
    ),
    "poll_behind_schedule": (
        "There are too many agents to read each of them every `every_s`: all are read, later.",
        "connection agents behind_s",
    ),
    "poll_on_schedule": ("All agents are read in time again.", "connection agents"),
    "agent_gone": (
        "An agent is not_listed any more, or not_found: left alone until it is listed again.",
        "connection agent reason",
    ),
    "hints_unread": (
        "Notifications of calls cannot be read from the log; calls are found by the list alone.",
        "error",
    ),
    "time_unit_found": (
        "A provider that nothing is known of reads times in this unit; asked so from now on.",
        "connection unit",
    ),
    "gaps_unread": ("The topic of gaps cannot be read; it is tried until it can.", "error"),
    "gap_unreadable": ("A record on the topic of gaps is none of ours.", "position"),
    "subscribed": ("A subscriber reads the stream.", "group topics"),
    "subscriber_waits": (
        "The event log cannot be read or committed to; tried again, told once a kind.",
        "group error",
    ),
    "handler_failed": (
        "A handler raised, or took too long; without retry_in_s its policy says what follows.",
        "group handler topic partition position error where retry_in_s suppressed",
    ),
    "event_rejected": (
        "A group cannot handle an event: it is kept on rejects.<group>.",
        "group handler topic partition position reason retry_in_s suppressed",
    ),
    "partition_paused": (
        "Nothing of a partition is handled for a while: not_now, failed, or a reject not stored.",
        "group handler topic partition position reason retry_in_s suppressed",
    ),
    "handler_given_up": (
        "A handler was cancelled, for its partition goes to another member.",
        "group handler topic partition position reason retry_in_s suppressed",
    ),
    "handler_does_not_end": (
        "A handler goes on in spite of being cancelled; if its partition goes, so may another.",
        "group handler topic partition position reason retry_in_s suppressed",
    ),
    "records_skipped": (
        "What came next was deleted before it was read; the group goes on with what is left.",
        "group topic partition expected found",
    ),
    "gap_not_told": (
        "A group's gap cannot be put on the log: until it is there, nothing is committed.",
        "group reason suppressed",
    ),
    "loop_blocked": (
        "A handler (-: something else) keeps the event loop from turning; heartbeats wait, too.",
        "group handler seconds where",
    ),
    "sink_told": ("A provider has done what it was told.", "connection action outcome"),
    "sink_refused": (
        "Numbers that it cannot take: none of +1; the event is among the group's rejects.",
        "connection rule count",
    ),
    "sink_failed": (
        "A provider said no; it is tried again, and then the event is among the group's rejects.",
        "connection action said",
    ),
    "sink_waits": (
        "A provider, or our disk, is away: nothing is lost, it is tried again; one line in 10 s.",
        "connection reason said retry_in_s suppressed",
    ),
    "sink_stopped": (
        "A group tells a provider nothing: our token or account is refused, or a topic is missing.",
        "connection group detail said retry_in_s",
    ),
    "sink_resumed": ("It takes them again.", "connection group"),
    "sink_ledger_lost": (
        "What was told before cannot be read: leads are looked for, the rest is told again.",
        "path error",
    ),
    "unexpected_error": ("A fault of ours.", "error where logger role connection"),
    "library": (
        "A library has something to say; one line in 10 s of each kind.",
        "logger message error where suppressed",
    ),
}

_ALWAYS = frozenset(("event", "level", "timestamp"))
_FIELDS = {event: frozenset(fields.split()) | _ALWAYS for event, (_, fields) in CATALOGUE.items()}

#: Lines that may wait for a slow reader of stderr.
_QUEUE_LINES = 10_000


def setup_logs(format_: str, level: str) -> "LineWriter":
    """Send everybody's logs to stderr; close what is returned at the end."""
    console = format_ == "console" or (format_ == "auto" and sys.stderr.isatty())
    writer = LineWriter(sys.stderr.fileno())
    renderer: Any = structlog.processors.JSONRenderer(serializer=orjson_text)
    if console:
        renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty())
    structlog.configure(
        processors=[
            structlog.stdlib.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            without_content,
            only_catalogued,
            renderer,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(level),
        logger_factory=lambda *_: writer,
        cache_logger_on_first_use=True,
    )
    # uvicorn warns of everything that is no HTTP, a line each; whoever likes could fill our disk.
    logging.getLogger("uvicorn.error").setLevel(logging.ERROR)
    # What becomes of connections to Kafka is told by lines of our own.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    logging.basicConfig(handlers=[_FromLibraries()], level=logging.WARNING, force=True)
    # What Python itself would print there, with messages that may quote content.
    threading.excepthook = lambda fault: log.error("unexpected_error", exc_info=fault.exc_value)
    sys.unraisablehook = lambda fault: log.error("unexpected_error", exc_info=fault.exc_value)
    warnings.showwarning = _log_warning
    return writer


def quietly(format_: str) -> AbstractContextManager[object]:
    """In the block only what is wrong is said, on stderr: of commands that people wait for."""
    return closing(setup_logs(format_, "error"))


def _log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    log.warning(
        "library", logger="warnings", message=category.__name__, where=[f"{filename}:{lineno}"]
    )


def orjson_text(value: object, **_: object) -> str:
    return orjson.dumps(value, default=str).decode()


def only_catalogued(
    _logger: object, _method: str, line: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Drop fields that the catalogue does not allow: it is better to know less than to leak."""
    allowed = _FIELDS.get(line["event"], _ALWAYS)
    if line.keys() <= allowed:
        return line
    return {key: value for key, value in line.items() if key in allowed}


def without_content(
    _logger: object, _method: str, line: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    """Of an exception keep its type and its places in the code; its message may quote content."""
    error = line.pop("exc_info", None)
    if error is True:
        error = sys.exc_info()[1]
    if isinstance(error, BaseException):
        line["error"] = type(error).__name__
        line["where"] = places(error.__traceback__)
    return line


def places(trace: TracebackType | None) -> list[str]:
    """The innermost frames, as ``file:line function``."""
    return [
        f"{os.path.relpath(frame.filename)}:{frame.lineno} {frame.name}"
        for frame in traceback.extract_tb(trace)[-5:]
    ]


def short_id(ident: str) -> str:
    """Enough of an id to find it, too little to be one."""
    return ident if len(ident) <= 6 else f"…{ident[-6:]}"  # noqa: PLR2004


class LineWriter:
    """Writes lines to a descriptor from a thread. Who logs never waits for who reads."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._lines: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, name="logs", daemon=True)
        self._thread.start()

    def msg(self, line: str) -> None:
        if self._lines.qsize() >= _QUEUE_LINES:
            LOG_LINES_DROPPED.inc()
            return
        self._lines.put(line.encode(errors="replace") + b"\n")

    debug = info = warning = error = critical = exception = msg

    def close(self) -> None:
        """Write what is waiting, for a second at most."""
        self._lines.put(None)
        self._thread.join(timeout=1)

    def _run(self) -> None:
        while True:
            line = self._lines.get()
            if line is None:
                return
            try:
                while line:
                    line = line[os.write(self._descriptor, line) :]
            except OSError:
                LOG_LINES_DROPPED.inc()


class Sample:
    """Lets one in `EVERY_S` through and counts the others."""

    EVERY_S = 10.0

    def __init__(self) -> None:
        self._last: float | None = None
        self._suppressed = 0

    def take(self, now: float) -> int | None:
        """How many were held back since the last one; None if this one is held back."""
        if self._last is not None and now - self._last < self.EVERY_S:
            self._suppressed += 1
            return None
        suppressed, self._suppressed, self._last = self._suppressed, 0, now
        return suppressed


class _FromLibraries(logging.Handler):
    """Lines of libraries that use the standard logging. Some have one for every try."""

    def __init__(self) -> None:
        super().__init__()
        self._samples: dict[str, Sample] = {}

    def emit(self, record: logging.LogRecord) -> None:
        error = record.exc_info[1] if record.exc_info else None
        suppressed = self._samples.setdefault(str(record.msg), Sample()).take(time.monotonic())
        if suppressed is None:
            return
        structlog.get_logger().log(
            record.levelno,
            "library" if error is None else "unexpected_error",
            logger=record.name,
            message=record.getMessage().strip(),
            **({} if error is None else {"exc_info": error}),
            **({"suppressed": suppressed} if suppressed else {}),
        )

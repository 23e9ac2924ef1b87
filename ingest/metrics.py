"""Every metric, in one place. Labels are from fixed sets; nothing private, nothing unbounded."""

from bisect import bisect_left
from collections import Counter as Counts
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, get_args

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.registry import Collector

from ingest.drift import RADAR
from ingest.pipeline import Accepted, Outcome
from schemas.event import Event

if TYPE_CHECKING:
    from ingest.eventlog.spool import Spool

REGISTRY = CollectorRegistry()

OUTCOMES = (*get_args(Outcome), "refused", "unavailable")

_ANSWER_BUCKETS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0)


class Tally:
    """What has come through one channel of one connection.

    Plain numbers, turned into metrics when somebody asks: it counts at every delivery, and the
    library's counters with their labels and locks would be a tenth of a delivery's CPU.
    """

    def __init__(self, connection: str, via: str) -> None:
        self.connection = connection
        self.via = via
        self.received = 0
        self.outcomes = dict.fromkeys(OUTCOMES, 0)
        self.refusals: Counts[str] = Counts()
        self.unavailable: Counts[str] = Counts()
        self.rejects: Counts[str] = Counts()
        self.events: Counts[str] = Counts()
        self.surprises: Counts[str] = Counts()
        self.stale = 0
        self.answered = [0] * (len(_ANSWER_BUCKETS_S) + 1)
        self.answer_sum_s = 0.0

    def accept(self, accepted: Accepted, taken_s: float) -> None:
        """Count a delivery that is durable, ``taken_s`` after its first byte."""
        self.outcomes[accepted.outcome] += 1
        self.answered[bisect_left(_ANSWER_BUCKETS_S, taken_s)] += 1
        self.answer_sum_s += taken_s
        if accepted.outcome != "repeat":
            self.count(accepted.events)

    def count(self, events: Iterable[Event]) -> None:
        """Count events that are on the log now, and were not before."""
        for event in events:
            if event.subject_kind == "reject":
                self.rejects[event.what] += 1
                continue
            self.events[event.subject_kind] += 1
            self.stale += event.stale
            if event.surprises:
                RADAR.note(event)
                for what, _ in event.surprises:
                    self.surprises[what] += 1

    def refuse(self, reason: str) -> None:
        self.outcomes["refused"] += 1
        self.refusals[reason] += 1

    def be_unavailable(self, reason: str) -> None:
        self.outcomes["unavailable"] += 1
        self.unavailable[reason] += 1


class Tallies(Collector):
    """All tallies of the process, as metrics."""

    def __init__(self) -> None:
        self._tallies: dict[tuple[str, str], Tally] = {}

    def of(self, connection: str, via: str) -> Tally:
        """The one tally of a channel; it lives as long as the process, as counters must."""
        key = connection, via
        if key not in self._tallies:
            self._tallies[key] = Tally(connection, via)
        return self._tallies[key]

    def __iter__(self) -> Iterator[tuple[tuple[str, str], Tally]]:
        return iter(list(self._tallies.items()))

    def sums(self) -> dict[str, int]:
        """``received``, and each outcome, over all channels."""
        sums = dict.fromkeys(("received", *OUTCOMES), 0)
        for tally in self._tallies.values():
            sums["received"] += tally.received
            for outcome, count in tally.outcomes.items():
                sums[outcome] += count
        return sums

    def collect(
        self,
    ) -> Iterable[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]:
        received = CounterMetricFamily(
            "dialstream_received",
            "Deliveries for a known connection, whatever became of them.",
            labels=["connection", "via"],
        )
        deliveries = CounterMetricFamily(
            "dialstream_deliveries",
            "What became of them: stored, repeat, rejected, refused, unavailable. Their sum is "
            "dialstream_received once nothing is in flight.",
            labels=["connection", "via", "outcome"],
        )
        stale = CounterMetricFamily(
            "dialstream_stale_events",
            "Pushed events older than 24 h by the provider's clock.",
            labels=["connection", "via"],
        )
        answers = HistogramMetricFamily(
            "dialstream_answer_seconds",
            "From the first byte of a delivery to its 204. Dialpad hangs up after 5 s.",
            labels=["connection", "via"],
        )
        counts = {
            "refusals": CounterMetricFamily(
                "dialstream_refusals",
                "Deliveries that did not verify or were too large.",
                labels=["connection", "via", "reason"],
            ),
            "unavailable": CounterMetricFamily(
                "dialstream_unavailable",
                "Deliveries answered with 503.",
                labels=["connection", "via", "reason"],
            ),
            "rejects": CounterMetricFamily(
                "dialstream_rejects",
                "Authentic deliveries that could not be read. A rise means that a provider has "
                "changed its payloads.",
                labels=["connection", "via", "reason"],
            ),
            "events": CounterMetricFamily(
                "dialstream_events", "Events stored.", labels=["connection", "via", "subject"]
            ),
            "surprises": CounterMetricFamily(
                "dialstream_surprises",
                "What payloads held that we have no place or word for: field, type, state, "
                "direction, status, duty_status, agent, notification_type, hint.",
                labels=["connection", "via", "what"],
            ),
        }
        for channel, tally in self._tallies.items():
            received.add_metric(channel, tally.received)
            stale.add_metric(channel, tally.stale)
            for outcome, count in tally.outcomes.items():
                deliveries.add_metric((*channel, outcome), count)
            for name, family in counts.items():
                for word, count in getattr(tally, name).items():
                    family.add_metric((*channel, word), count)
            buckets, sum_so_far = [], 0
            for limit, count in zip((*_ANSWER_BUCKETS_S, "+Inf"), tally.answered, strict=True):
                sum_so_far += count
                buckets.append((str(limit), sum_so_far))
            answers.add_metric(channel, buckets, tally.answer_sum_s)
        drift = GaugeMetricFamily(
            "dialstream_drift",
            "Different fields, words and types that we have no place or word for, seen so far.",
            labels=["connection"],
        )
        for connection, different in RADAR.counts.items():
            drift.add_metric([connection], different)
        return received, deliveries, stale, answers, drift, *counts.values()


TALLIES = Tallies()
REGISTRY.register(TALLIES)

COMMIT_SECONDS = Histogram(
    "dialstream_commit_seconds",
    "How long a store (journal, kafka, spool) takes to make a group of records durable.",
    ["topic", "store"],
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 4),
    registry=REGISTRY,
)
QUEUE_BYTES = Gauge(
    "dialstream_queue_bytes", "Records that wait to be committed, in bytes.", registry=REGISTRY
)
OWNED = Gauge(
    "dialstream_owned",
    "Whether this process works on a connection, by role; elsewhere it stands by.",
    ["role", "connection"],
    registry=REGISTRY,
)
IN_FLIGHT = Gauge("dialstream_in_flight", "Deliveries that are being answered.", registry=REGISTRY)
HTTP_CONNECTIONS = Gauge(
    "dialstream_http_connections", "Open connections to the public port.", registry=REGISTRY
)
JOURNAL_BYTES = Gauge(
    "dialstream_journal_bytes", "Size of the journal.", ["topic"], registry=REGISTRY
)
JOURNAL_SEGMENTS = Gauge(
    "dialstream_journal_segments", "Files of the journal.", ["topic"], registry=REGISTRY
)
DISK_FREE_BYTES = Gauge(
    "dialstream_disk_free_bytes",
    "Free on the file system of the data directory. Below 5 % deliveries get 503.",
    registry=REGISTRY,
)
SPOOLED = Counter(
    "dialstream_spooled",
    "Records that went to the spool because Kafka took too long.",
    ["topic"],
    registry=REGISTRY,
)
DRAINED = Counter(
    "dialstream_drained",
    "Records that Kafka got from the spool; some of them again after a crash.",
    ["topic"],
    registry=REGISTRY,
)
FORMER_SECRET = Counter(
    "dialstream_former_secret",
    "Deliveries that another secret than the first of the connection has signed.",
    ["connection"],
    registry=REGISTRY,
)
QUARANTINED = Counter(
    "dialstream_quarantined",
    "Deliveries that did not verify: kept in the quarantine, sampled_out of many, no_room on disk.",
    ["connection", "outcome"],
    registry=REGISTRY,
)
KAFKA_REBUILDS = Counter(
    "dialstream_kafka_rebuilds",
    "Producers that were given up: out_of_order, fenced, unknown_producer, hung, settings.",
    ["reason"],
    registry=REGISTRY,
)
KAFKA_CONNECTED = Gauge(
    "dialstream_kafka_connected", "Whether there is a producer that works.", registry=REGISTRY
)

API_REQUESTS = Counter(
    "dialstream_api_requests",
    "Requests to providers' APIs, each try counted: ok, or what went wrong.",
    ["connection", "outcome"],
    registry=REGISTRY,
)
API_SECONDS = Histogram(
    "dialstream_api_request_seconds",
    "From a request to a provider's API to the last byte of its answer.",
    ["connection"],
    buckets=(0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 60),
    registry=REGISTRY,
)
API_WAITED_SECONDS = Counter(
    "dialstream_api_waited_seconds",
    "How long requests to providers' APIs have waited for their turn within the rate.",
    ["connection"],
    registry=REGISTRY,
)
STREAM_CONNECTED = Gauge(
    "dialstream_stream_connected",
    "Whether the connection's websocket is open; of connections that this process owns.",
    ["connection"],
    registry=REGISTRY,
)
STREAM_AGE = Gauge(
    "dialstream_stream_connection_age_seconds",
    "Age of its oldest socket; 0 without one.",
    ["connection"],
    registry=REGISTRY,
)
STREAM_LAST_FRAME = Gauge(
    "dialstream_stream_last_frame_timestamp_seconds",
    "When its last frame came, whatever became of it; 0 before the first.",
    ["connection"],
    registry=REGISTRY,
)
STREAM_RECONNECTS = Counter(
    "dialstream_stream_reconnects",
    "Why another socket was needed: refresh (before the provider would cut it), or what has ended "
    "one or kept it from being opened.",
    ["connection", "reason"],
    registry=REGISTRY,
)

POLL_WATERMARK_AGE_SECONDS = Gauge(
    "dialstream_poll_watermark_age_seconds",
    "How long ago the end of what was read back of a connection is, where we own it. Rises while "
    "its provider cannot be read.",
    ["connection"],
    registry=REGISTRY,
)
POLL_AGENTS = Gauge(
    "dialstream_poll_agents",
    "Agents whose records are read, where we own the connection and it keeps them by agent.",
    ["connection"],
    registry=REGISTRY,
)
POLL_BEHIND_SECONDS = Gauge(
    "dialstream_poll_behind_seconds",
    "How much longer than `every_s` the agent that has waited longest has not been read; 0 while "
    "the poller keeps up. Agents that cannot be read do not count.",
    ["connection"],
    registry=REGISTRY,
)
POLL_READ = Counter(
    "dialstream_poll_read",
    "Items of providers' lists that were read back, every time that they were.",
    ["connection", "what"],
    registry=REGISTRY,
)
POLL_PUBLISHED = Counter(
    "dialstream_poll_published",
    "Of these, what was new or had changed, and is on the event log.",
    ["connection", "what"],
    registry=REGISTRY,
)
POLL_GAPS_OPEN = Gauge(
    "dialstream_poll_gaps_open",
    "Gaps that are not read back yet, where we own the connection.",
    ["connection"],
    registry=REGISTRY,
)
GAP_CLOSED_SECONDS = Histogram(
    "dialstream_gap_closed_seconds",
    "From the end of a gap, or from when it was found if that was later, until it was read back.",
    ["connection", "channel"],
    buckets=(5, 15, 30, 60, 120, 300, 600, 1800, 3600, 14_400, 86_400),
    registry=REGISTRY,
)
VERDICTS = Counter(
    "dialstream_verdicts",
    "Verdicts that were given, revisions included.",
    ["connection", "verdict"],
    registry=REGISTRY,
)
COMPLETENESS = Gauge(
    "dialstream_completeness",
    "Of the hour that was measured last: which share of its calls both sides have seen, 0 to 1.",
    ["connection"],
    registry=REGISTRY,
)
RECONCILE_BEHIND_SECONDS = Gauge(
    "dialstream_reconcile_behind_seconds",
    "How far behind now the log's clock is for reconciliation; some 15 s are usual.",
    ["connection"],
    registry=REGISTRY,
)
RECONCILE_TOO_LATE = Counter(
    "dialstream_reconcile_too_late",
    "Facts of calls that had been forgotten, or were never known whole: they change nothing.",
    ["connection"],
    registry=REGISTRY,
)
SUBSCRIBER_EVENTS = Counter(
    "dialstream_subscriber_events",
    "What became of events in a handler: handled, failed (a try), rejected, not_now, repeat.",
    ["group", "handler", "outcome"],
    registry=REGISTRY,
)
SUBSCRIBER_LAG = Gauge(
    "dialstream_subscriber_lag",
    "Positions between what a group has handled and the end, in the partitions of this process.",
    ["group", "topic"],
    registry=REGISTRY,
)
SUBSCRIBER_AGE_SECONDS = Gauge(
    "dialstream_subscriber_age_seconds",
    "How long ago the oldest event was written that was fetched and is not handled.",
    ["group"],
    registry=REGISTRY,
)
SUBSCRIBER_BLOCKED = Counter(
    "dialstream_subscriber_blocked",
    "How often a handler (-: something else) kept the event loop from turning for long.",
    ["group", "handler"],
    registry=REGISTRY,
)

KEY_EXPIRES_DAYS = Gauge(
    "dialstream_key_expires_days",
    "Days until a connection's API key expires, below 0 after it has; NaN if that is not known of "
    "the key in the settings. Only of providers that tell it.",
    ["connection"],
    registry=REGISTRY,
)


class SpoolGauge(Collector):
    """How much waits in the spool, and for how long it lasts; nothing while there is no spool."""

    def __init__(self) -> None:
        self._spool: Spool | None = None

    def watch(self, spool: "Spool | None") -> None:
        """From now on tell of this one."""
        self._spool = spool

    def collect(self) -> Iterable[GaugeMetricFamily]:
        if self._spool is None:
            return
        records = GaugeMetricFamily(
            "dialstream_spool_records", "Records that wait for Kafka.", labels=["topic"]
        )
        size = GaugeMetricFamily(
            "dialstream_spool_bytes", "The files that they are in.", labels=["topic"]
        )
        oldest = GaugeMetricFamily(
            "dialstream_spool_oldest_seconds", "Age of the first of them.", labels=["topic"]
        )
        waiting = self._spool.waiting()
        for topic in self._spool.places:
            found = waiting.get(topic)
            records.add_metric([topic], found.records if found else 0)
            size.add_metric([topic], found.size_bytes if found else 0)
            oldest.add_metric([topic], found.oldest_s if found else 0)
        yield from (records, size, oldest)
        yield GaugeMetricFamily(
            "dialstream_spool_minutes_left",
            "For how long the spool has room at the pace of the last minute. Full, it means 503.",
            value=self._spool.minutes_left(),
        )


SPOOL = SpoolGauge()
REGISTRY.register(SPOOL)

SUBSCRIPTION_DRIFT = Gauge(
    "dialstream_subscription_drift",
    "How many webhooks, websockets and subscriptions at Dialpad are not as configured: deleted, "
    "disabled, changed, doubled, unsigned, foreign_secret, surplus, hidden (may not be read).",
    ["connection", "kind", "what"],
    registry=REGISTRY,
)

SINK_COMMANDS = Counter(
    "dialstream_sink_commands",
    "What a provider was told, and what came of it: ok, duplicate, found (a lead that was there), "
    "no_lead (to be updated), repeat (told before), failed (it said no; tried again).",
    ["connection", "action", "outcome"],
    registry=REGISTRY,
)
SINK_PASSED_OVER = Counter(
    "dialstream_sink_passed_over",
    "Events that a rule makes nothing of, by the reason; not_plus_one: numbers that the provider "
    "cannot take, which are among the group's rejects.",
    ["connection", "rule", "reason"],
    registry=REGISTRY,
)

LOG_LINES_DROPPED = Counter(
    "dialstream_log_lines_dropped",
    "Log lines that nobody took from us in time.",
    registry=REGISTRY,
)

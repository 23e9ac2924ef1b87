"""Every metric, in one place. Labels are from fixed sets; nothing private, nothing unbounded."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

REGISTRY = CollectorRegistry()

RECEIVED = Counter(
    "dialstream_received",
    "Deliveries for a known connection, whatever became of them.",
    ["connection", "via"],
    registry=REGISTRY,
)
DELIVERIES = Counter(
    "dialstream_deliveries",
    "What became of them: stored, repeat, rejected, refused, unavailable. "
    "Their sum is dialstream_received.",
    ["connection", "via", "outcome"],
    registry=REGISTRY,
)
REFUSALS = Counter(
    "dialstream_refusals",
    "Deliveries that did not verify or were too large, by reason.",
    ["connection", "reason"],
    registry=REGISTRY,
)
REJECTS = Counter(
    "dialstream_rejects",
    "Authentic deliveries that could not be read, by reason. A rise means that a provider has "
    "changed its payloads.",
    ["connection", "reason"],
    registry=REGISTRY,
)
UNAVAILABLE = Counter(
    "dialstream_unavailable",
    "Deliveries answered with 503, by reason.",
    ["connection", "reason"],
    registry=REGISTRY,
)
EVENTS = Counter(
    "dialstream_events",
    "Events stored, by subject.",
    ["connection", "subject"],
    registry=REGISTRY,
)
SURPRISES = Counter(
    "dialstream_surprises",
    "Things in payloads that we had no place or word for: field, type, state, direction, status, "
    "duty_status, hint.",
    ["connection", "what"],
    registry=REGISTRY,
)
STALE = Counter(
    "dialstream_stale_events",
    "Pushed events older than 24 h by the provider's clock.",
    ["connection"],
    registry=REGISTRY,
)
ANSWER_SECONDS = Histogram(
    "dialstream_answer_seconds",
    "From the first byte of a delivery to its answer. Dialpad hangs up after 5 s.",
    buckets=(0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 4),
    registry=REGISTRY,
)
COMMIT_SECONDS = Histogram(
    "dialstream_commit_seconds",
    "How long the event log takes to make a group of records durable.",
    ["topic"],
    buckets=(0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 4),
    registry=REGISTRY,
)
QUEUE_BYTES = Gauge(
    "dialstream_queue_bytes", "Records that wait to be committed, in bytes.", registry=REGISTRY
)
IN_FLIGHT = Gauge(
    "dialstream_in_flight", "Deliveries that are being answered.", registry=REGISTRY
)
CONNECTIONS = Gauge("dialstream_http_connections", "Open HTTP connections.", registry=REGISTRY)
JOURNAL_BYTES = Gauge(
    "dialstream_journal_bytes", "Size of the journal, by topic.", ["topic"], registry=REGISTRY
)
JOURNAL_SEGMENTS = Gauge(
    "dialstream_journal_segments", "Files of the journal, by topic.", ["topic"], registry=REGISTRY
)
DISK_FREE_BYTES = Gauge(
    "dialstream_disk_free_bytes",
    "Free on the file system of the data directory. Below 5 % deliveries are answered with 503.",
    registry=REGISTRY,
)
LOG_LINES_DROPPED = Counter(
    "dialstream_log_lines_dropped",
    "Log lines that nobody took from us in time.",
    registry=REGISTRY,
)


def totals() -> dict[str, int]:
    """Sums since the start: ``received``, and each outcome of deliveries."""
    sums = dict.fromkeys(("received", "stored", "repeat", "refused", "rejected", "unavailable"), 0)
    for counter, label in ((RECEIVED, None), (DELIVERIES, "outcome")):
        for family in counter.collect():
            for sample in family.samples:
                if sample.name.endswith("_total"):
                    sums[sample.labels[label] if label else "received"] += int(sample.value)
    return sums

"""The metrics: names, types, labels and help."""

from __future__ import annotations

from dataclasses import dataclass

_LATENCY_MS = (1, 2, 3, 5, 7.5, 10, 15, 20, 25, 35, 50, 75, 100, 150, 250, 500, 1000, 2500, 5000, 10_000)
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_TEXTS = (1, 2, 4, 6, 8, 10, 16, 32, 64, 128, 256, 512)


@dataclass(frozen=True)
class MetricSpec:
    """One metric.

    Attributes:
        name: as Prometheus shows it.
        type: "histogram", "counter" or "gauge".
        help: what it measures.
        labels: names of its labels.
        buckets: upper bounds, for a histogram.
    """

    name: str
    type: str
    help: str
    labels: tuple[str, ...] = ("model",)
    buckets: tuple[float, ...] = ()


LATENCY = MetricSpec(
    "embedding_latency_ms",
    "histogram",
    "Time from a request to its vectors in milliseconds, including the wait; answered requests only.",
    ("model", "kind"),
    _LATENCY_MS,
)
BATCH_SIZE = MetricSpec("embedding_batch_size", "histogram", "Texts in a batch.", buckets=_TEXTS)
BATCH_DURATION = MetricSpec(
    "embedding_batch_duration_seconds", "histogram", "Time the model took for a batch.", buckets=_SECONDS
)
BATCH_WAIT = MetricSpec(
    "embedding_batch_wait_seconds",
    "histogram",
    "Time from the first request of a batch to its start.",
    buckets=_SECONDS,
)
QUEUE_WAIT = MetricSpec(
    "embedding_queue_wait_seconds",
    "histogram",
    "Time from a request to the start of its first batch.",
    buckets=_SECONDS,
)
REQUESTS = MetricSpec(
    "embedding_requests_total",
    "counter",
    "Requests by outcome: ok, invalid, refused (queue full), deadline, cancelled, error.",
    ("model", "kind", "outcome"),
)
TEXTS = MetricSpec(
    "embedding_texts_total", "counter", "Texts embedded, and pairs of texts scored (kind pair).", ("model", "kind")
)
TOKENS = MetricSpec("embedding_tokens_total", "counter", "Tokens embedded, including prompts and special tokens.")
TRUNCATED = MetricSpec(
    "embedding_truncated_texts_total", "counter", "Texts and pairs truncated at the model's maximum length."
)
QUEUE_LENGTH = MetricSpec("embedding_queue_length", "gauge", "Texts waiting for the model.")
LOAD_SECONDS = MetricSpec("embedding_model_load_seconds", "gauge", "Time the model took to load.")
CACHE_BYTES = MetricSpec("embedding_cache_bytes", "gauge", "Size of the model cache on disk.", ())
MEMORY_BYTES = MetricSpec("process_resident_memory_bytes", "gauge", "Resident memory of the process.", ())

METRICS = (
    LATENCY,
    REQUESTS,
    TEXTS,
    TOKENS,
    TRUNCATED,
    BATCH_SIZE,
    BATCH_DURATION,
    BATCH_WAIT,
    QUEUE_LENGTH,
    QUEUE_WAIT,
    LOAD_SECONDS,
    CACHE_BYTES,
    MEMORY_BYTES,
)

"""/metrics: what a Prometheus server reads, in vLLM's shapes. No text, no names of people.

Two kinds: what is counted while it happens (times to tokens, of each request that `follow` is given) and what
is read from the database and the engine at the moment somebody asks.
"""

from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Histogram, generate_latest
from prometheus_client.core import GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from chatbot.kept import Kept
from data import rankings, runs
from data.database import Database

if TYPE_CHECKING:
    from chatbot.generation import Generation
    from chatbot.turns import Turns

FIRST_TOKEN_SECONDS = (0.02, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 2.0, 5.0, 10.0, 30.0)
BETWEEN_TOKENS_SECONDS = (0.005, 0.01, 0.02, 0.04, 0.06, 0.1, 0.2, 0.5, 1.0, 2.0)
COMMIT_SECONDS = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0, 3.0)

_OF_A_NIGHT = (
    ("nightschool_refresh_kl", "KL of the last policy from the reference, nats a reply.", "ppo", "kl"),
    ("nightschool_refresh_win_rate", "How often the judge preferred the last candidate.", "gate", "win_rate"),
)


class Metrics:
    """The numbers of one server process, in a registry of their own."""

    def __init__(self, db: Database) -> None:
        self.registry = CollectorRegistry()
        self.turns: Turns | None = None
        self.first_token = Histogram(
            "nightschool_time_to_first_token_seconds",
            "From a request's arrival to the first token of each reply.",
            registry=self.registry,
            buckets=FIRST_TOKEN_SECONDS,
        )
        self.between_tokens = Histogram(
            "nightschool_inter_token_latency_seconds",
            "Mean time between two tokens of a reply.",
            registry=self.registry,
            buckets=BETWEEN_TOKENS_SECONDS,
        )
        db.timed = Histogram(
            "nightschool_commit_seconds",
            "Until a transaction was on the disk.",
            registry=self.registry,
            buckets=COMMIT_SECONDS,
        ).time
        self.registry.register(_Now(db, self))

    def text(self) -> str:
        """Everything, in Prometheus' text format."""
        return generate_latest(self.registry).decode()

    def count(self, generation: "Generation") -> None:
        """Count the times of a request that has ended."""
        for reply in generation.replies:
            if reply.first_token_at is None or reply.last_token_at is None:
                continue
            self.first_token.observe(reply.first_token_at - generation.submitted_at)
            if reply.tokens > 1:
                written = reply.last_token_at - reply.first_token_at
                self.between_tokens.observe(written / (reply.tokens - 1))


class _Now(Collector):
    """What the engine and the database say when the metrics are read."""

    def __init__(self, db: Database, metrics: Metrics) -> None:
        self._db = db
        self._metrics = metrics
        self._count = Kept(rankings.count)

    def describe(self) -> Iterator[Metric]:
        """Nothing: registering must not read the database."""
        return iter(())

    def collect(self) -> Iterator[Metric]:
        turns = self._metrics.turns
        running, waiting = turns.engine.load_now if turns else (0, 0)
        yield GaugeMetricFamily("nightschool_requests_running", "Requests being written.", running)
        yield GaugeMetricFamily("nightschool_requests_waiting", "Requests in the queue.", waiting)
        yield GaugeMetricFamily("nightschool_rankings", "Rankings that teach.", self._count(self._db))
        yield from self._refreshes()
        serving = InfoMetricFamily("nightschool_serving", "The version that answers.")
        if turns:
            serving.add_metric([], {"version": turns.engine.version})
        yield serving

    def _refreshes(self) -> Iterator[Metric]:
        ended = [run for run in runs.list_all(self._db, limit=10_000) if run.finished_at is not None]
        results = GaugeMetricFamily(
            "nightschool_refreshes", "Refreshes by how they ended.", labels=["result"]
        )
        for state in sorted({run.state for run in ended}):
            results.add_metric([state], sum(run.state == state for run in ended))
        yield results
        if ended:
            last = max(run.finished_at for run in ended if run.finished_at is not None)
            yield GaugeMetricFamily(
                "nightschool_last_refresh_timestamp_seconds", "When one ended last.", last
            )
        for name, what, stage, metric in _OF_A_NIGHT:
            if (value := runs.newest_metric(self._db, stage, metric)) is not None:
                yield GaugeMetricFamily(name, what, value)

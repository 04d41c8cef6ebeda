"""Prometheus metrics of a server, in a registry of their own."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from flows.serve.state import ServingState

BUCKETS = (0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300)


class Metrics:
    """What is counted."""

    def __init__(self, name: str, state: ServingState) -> None:
        self.name, self.state = name, state
        self.registry = registry = CollectorRegistry()
        self.requests = Counter(
            "precis_requests",
            "Answered requests",
            ["endpoint", "status", "version"],
            registry=registry,
        )
        self.seconds = Histogram(
            "precis_request_seconds", "Until the answer's end", ["endpoint"], buckets=BUCKETS,
            registry=registry,
        )  # fmt: skip
        self.running = Gauge("precis_requests_running", "Requests now", registry=registry)
        self.prompt_tokens = Counter("precis_prompt_tokens", "Tokens read", registry=registry)
        self.output_tokens = Counter("precis_output_tokens", "Tokens written", registry=registry)
        self.truncated = Counter(
            "precis_truncated_documents",
            "Documents that were cut to fit the prompt",
            registry=registry,
        )
        self.retried = Counter(
            "precis_requests_retried", "Asked again, since their engine ended", registry=registry
        )
        self._served = Gauge(
            "precis_served_version", "1: the version that is served", ["name", "version", "digest"],
            registry=registry,
        )  # fmt: skip
        for about, text, value in (
            ("precis_ready", "Whether requests are answered", lambda: float(state.is_ready)),
            ("precis_refused_versions", "Versions refused since the start", lambda: state.refused_count),
            ("precis_engine_restarts", "Engines started again", lambda: state.restarts),
            ("precis_registry_reachable", "Whether MLflow answered last",
             lambda: float(state.registry_error is None)),
        ):  # fmt: skip
            Gauge(about, text, registry=registry).set_function(value)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        self._served.clear()
        if engine := self.state.engine:
            target = engine.target
            self._served.labels(self.name, str(target.number), target.digest).set(1)
        return generate_latest(self.registry)

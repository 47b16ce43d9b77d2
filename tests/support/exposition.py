"""What a server's `/metrics` says."""

from __future__ import annotations

from prometheus_client.parser import text_string_to_metric_families

from support.worker import Worker


def samples(server: Worker, **labels: str) -> dict[str, float]:
    """Those with these labels, by name."""
    return {
        sample.name: sample.value
        for family in text_string_to_metric_families(server.get("/metrics"))
        for sample in family.samples
        if labels.items() <= sample.labels.items()
    }


def sums(server: Worker, **labels: str) -> dict[str, float]:
    """The sums of those with these labels, by name."""
    totals: dict[str, float] = {}
    for family in text_string_to_metric_families(server.get("/metrics")):
        for sample in family.samples:
            if labels.items() <= sample.labels.items():
                totals[sample.name] = totals.get(sample.name, 0.0) + sample.value
    return totals


def ended(server: Worker, end: str) -> float:
    """Sessions that ended that way."""
    return sums(server, end=end)["moshi_sessions_ended_total"]


def values_of(server: Worker, metric: str, label: str) -> set[str]:
    """The values that a label of a metric has."""
    return {
        sample.labels[label]
        for family in text_string_to_metric_families(server.get("/metrics"))
        for sample in family.samples
        if sample.name == metric
    }

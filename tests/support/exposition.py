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


def total(server: Worker, name: str, **labels: str) -> float:
    """The sum of a metric's samples with these labels."""
    return sum(
        sample.value
        for family in text_string_to_metric_families(server.get("/metrics"))
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    )

"""How a part shows its state to Prometheus: a registry, and families that are read from state when they are asked for.

Labels are few and fixed: no digest, no peer, no image. Every value of a label is shown from the start, as 0: a series
that appears with its first event has no rate at that event.
"""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, ProcessCollector, disable_created_metrics
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily
from prometheus_client.registry import Collector

disable_created_metrics()  # type: ignore[no-untyped-call] # they would double the number of series


def new_registry(*collectors: Collector) -> CollectorRegistry:
    """Make a registry that has the figures of this process (CPU, memory, open files, start) and those of collectors."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    for collector in collectors:
        registry.register(collector)
    return registry


def gauge(name: str, meaning: str, value: float) -> GaugeMetricFamily:
    """Show what is now."""
    return GaugeMetricFamily(name, meaning, value=value)


def gauges(name: str, meaning: str, label: str, values: Mapping[str, float]) -> GaugeMetricFamily:
    """Show what is now, by the values of one label."""
    family = GaugeMetricFamily(name, meaning, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family


def counter(name: str, meaning: str, value: float) -> CounterMetricFamily:
    """Show what has happened since the start; "_total" is added to the name."""
    return CounterMetricFamily(name, meaning, value=value)


def counters(name: str, meaning: str, label: str, values: Mapping[str, float]) -> CounterMetricFamily:
    """Show what has happened since the start, by the values of one label."""
    family = CounterMetricFamily(name, meaning, labels=[label])
    for key, value in values.items():
        family.add_metric([key], value)
    return family

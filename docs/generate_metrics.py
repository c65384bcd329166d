"""Writes docs/metrics.md from what the parts show to Prometheus; --check only tells whether it is up to date."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace as Stub

from generate_configuration import write_or_check
from prometheus_client import CollectorRegistry, Metric

from stafett.common.metrics import new_registry
from stafett.gateway.metrics import GatewayMetrics
from stafett.gateway.settings import GatewaySettings
from stafett.gateway.state_metrics import StateCollector
from stafett.node.admission import StreamSlots
from stafett.node.health import Tally
from stafett.node.metrics import NodeCollector
from stafett.node.settings import NodeSettings
from stafett.tracker.metrics import TrackerCollector
from stafett.tracker.settings import TrackerSettings

PAGE = Path(__file__).parent / "metrics.md"
SETTINGS = {"tracker": TrackerSettings, "node": NodeSettings, "gateway": GatewaySettings}
INTRODUCTION = """\
# Metrics

Generated from the parts by `make docs`; do not edit. [Operations](operations.md#metrics-and-alerts) says how to scrape
them and what the alerts mean.

Each part answers `GET /metrics`, in plain HTTP, on its `metrics_host` (loopback unless told otherwise) and port:
"""
NOTES = """
There is no label for a digest, an image or a peer, so the number of series does not grow with what is pulled. Each
value of a label is there from the start, as 0. A gateway shows the same series at `/metrics` of its mirror port.
"""


def page() -> str:
    """Render the whole page."""
    ports = "".join(f"- {part}: {model.model_fields['metrics_port'].default}\n" for part, model in SETTINGS.items())
    common = {metric.name for metric in new_registry().collect()}
    sections = "".join(_section(part, registry, common) for part, registry in _registries().items())
    return f"{INTRODUCTION}\n{ports}{NOTES}{sections}{_table('every part', new_registry().collect())}"


def _registries() -> dict[str, CollectorRegistry]:
    """Make each part's registry around nothing."""
    no_nodes = Stub(members={}, watchers=0)
    servicer = Stub(sessions=0, lookups={"fresh": 0, "stale": 0})
    tracker = TrackerCollector(
        Stub(available=True), no_nodes, Stub(guarded=False, guards_raised=0), Stub(trees=0), Stub(live=1), servicer
    )
    indexer = Stub(held_blobs=0, held_bytes=0, condemned_blobs=0, listed_at=0.0, store_available=True)
    gateway = GatewayMetrics()
    relay = Stub(book=Stub(streams_open=0), locator=Stub(stale_lookups=0))
    gateway.registry.register(StateCollector(Stub(connected=True), relay, Stub(claims=0), Stub(running=0)))
    return {
        "tracker": new_registry(tracker),
        "node": new_registry(NodeCollector(StreamSlots(1), Tally(), indexer, lambda: True)),
        "gateway": gateway.registry,
    }


def _section(part: str, registry: CollectorRegistry, common: set[str]) -> str:
    return _table(f"stafett {part}", (metric for metric in registry.collect() if metric.name not in common))


def _table(title: str, metrics: Iterator[Metric]) -> str:
    head = f"\n## {title}\n\n| series | type | labels | meaning |\n|---|---|---|---|\n"
    return head + "".join(map(_row, sorted(metrics, key=lambda metric: metric.name)))


def _row(metric: Metric) -> str:
    name = f"{metric.name}_total" if metric.type == "counter" else metric.name
    labels: dict[str, list[str]] = {}
    for sample in metric.samples:
        for label, value in sample.labels.items():
            if label != "le" and value not in labels.setdefault(label, []):
                labels[label].append(value)
    described = "; ".join(f"`{label}`: {', '.join(values)}" for label, values in labels.items())
    return f"| `{name}` | {metric.type} | {described} | {metric.documentation} |\n"


if __name__ == "__main__":
    sys.exit(write_or_check(PAGE, page()))

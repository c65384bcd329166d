"""Alert rules and dashboard fit what the parts really show, and Debian's Prometheus makes an alert of a killed node."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families

from stafett.cli.local_cluster.cluster import Host, LocalCluster
from stafett.cli.local_cluster.images import MadeImage, make_image
from stafett.cli.local_cluster.parts import run
from stafett.cli.local_cluster.processes import free_port, wait_until
from tests.e2e.bed import PLATFORM
from tests.e2e.expressions import OF_PROMETHEUS, Series, mistakes, series_in

ROOT = Path(__file__).parents[2]
MONITORING = ROOT / "deploy" / "monitoring"
ALERTS = MONITORING / "alerts.yaml"
DASHBOARD = MONITORING / "dashboard.json"
SCRAPE_INTERVAL = "500ms"
LAYER_BYTES = 3_000_000


@dataclass
class Monitored:
    """Two hosts without containerd, one of which has pulled from the other, and where each part shows its metrics."""

    cluster: LocalCluster
    image: MadeImage
    metrics_ports: dict[str, list[int]] = field(default_factory=lambda: {"tracker": [], "node": [], "gateway": []})

    def port_of(self, part: str) -> dict[str, object]:
        """Settings with a new port for a part."""
        self.metrics_ports[part].append(free_port())
        return {"metrics_port": self.metrics_ports[part][-1]}

    def pages(self, part: str) -> list[str]:
        """What all parts of a kind show."""
        urls = [f"http://127.0.0.1:{port}/metrics" for port in self.metrics_ports[part]]
        return [httpx2.get(url, trust_env=False).text for url in urls]

    def start(self) -> None:
        """Start all; the first host has the image, the second one reads its layer through its gateway."""
        self.cluster.start_redis()
        self.cluster.start_tracker(self.port_of("tracker"))
        for name in ("h1", "h2"):
            host = self.cluster.add_host(name, zone=name)
            if name == "h1":
                make_image(host.content_root, self.image.name, {PLATFORM: [LAYER_BYTES]})
            self.cluster.start_node(host, self.port_of("node"))
            self.cluster.start_gateway(host, self.port_of("gateway"))
        layer = self.image.blobs[PLATFORM][1].digest
        url = f"{self.hosts[1].gateway_url}/v2/lib/app/blobs/{layer}?ns=reg.test"
        wait_until(lambda: httpx2.head(url, trust_env=False).status_code == 200, "the layer is known")
        assert len(httpx2.get(url, trust_env=False).content) == self.image.blobs[PLATFORM][1].size_bytes

    @property
    def hosts(self) -> list[Host]:
        return self.cluster.hosts


@pytest.fixture(scope="module")
def monitored(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Monitored]:
    layout = tmp_path_factory.mktemp("image")
    with LocalCluster() as cluster:
        started = Monitored(cluster, make_image(layout, "reg.test/lib/app:1", {PLATFORM: [LAYER_BYTES]}))
        started.start()
        yield started


@pytest.fixture(scope="module")
def series(monitored: Monitored) -> Series:
    return {**series_in(page for part in monitored.metrics_ports for page in monitored.pages(part)), **OF_PROMETHEUS}


def figures(page: str) -> dict[tuple[str, ...], float]:
    """Values by name and label values, these in the order of the labels' names."""
    samples = (sample for family in text_string_to_metric_families(page) for sample in family.samples)
    return {(each.name, *(value for _, value in sorted(each.labels.items()))): each.value for each in samples}


def rules() -> list[dict[str, Any]]:
    """All alert rules."""
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    """All panels of the dashboard, rows too."""
    found: list[dict[str, Any]] = json.loads(DASHBOARD.read_text())["panels"]
    return found


def expressions() -> list[str]:
    """Everything that rules and dashboard ask of Prometheus."""
    return [rule["expr"] for rule in rules()] + [t["expr"] for panel in panels() for t in panel.get("targets", [])]


def test_rules_and_dashboard_ask_only_for_what_the_parts_show(series: Series) -> None:
    wrong = {expression: found for expression in expressions() if (found := mistakes(expression, series))}
    assert len(expressions()) > 40
    assert not wrong, json.dumps(wrong, indent=2)


def test_no_label_grows_with_what_is_pulled_or_from_whom(series: Series) -> None:
    labels = {label for name in series.keys() - OF_PROMETHEUS.keys() for label in series[name]}
    assert labels == {"kind", "source", "outcome", "reason", "blob", "state", "answer", "le"}


@pytest.mark.parametrize(
    "typo",
    [
        "sum(rate(stafett_gateway_request_total[5m]))",
        'stafett_tracker_nodes{stat="down"}',
        'stafett_tracker_nodes{state="dwn"}',
        'stafett_tracker_nodes{state!="dwn"}',
        'stafett_gateway_requests_total{outcome=~"hit|mis"}',
        "max by (stat) (stafett_tracker_nodes)",
        "stafett_node_streams / on (host) stafett_node_streams_max",
        "histogram_quantile(0.9, rate(stafett_gateway_first_byte_seconds[5m]))",
    ],
)
def test_a_typo_in_an_expression_is_found(series: Series, typo: str) -> None:
    assert mistakes(typo, series)


def test_the_page_of_metrics_lists_what_the_parts_show(series: Series) -> None:
    listed = set(re.findall(r"^\| `(\w+)`", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE))
    shown = {re.sub("_seconds_(bucket|count|sum)$", "_seconds", name) for name in series.keys() - OF_PROMETHEUS.keys()}
    assert listed == shown


def test_what_the_parts_count_is_what_has_happened(monitored: Monitored) -> None:
    size = monitored.image.blobs[PLATFORM][1].size_bytes
    tracker, holder, asking = (
        figures(monitored.pages(part)[index]) for part, index in (("tracker", 0), ("node", 0), ("gateway", 1))
    )
    assert tracker["stafett_tracker_nodes", "ready"] == 2
    assert tracker["stafett_tracker_sessions",] == 2
    assert tracker["stafett_tracker_watchers",] == 2
    assert tracker["stafett_tracker_redis_available",] == 1
    assert holder["stafett_node_served_bytes_total", "finished"] == size
    assert holder["stafett_node_held_blobs",] == 4
    assert holder["stafett_node_session_open",] == 1
    assert asking["stafett_gateway_bytes_total", "peer_region"] == size
    assert asking["stafett_gateway_upstream_saved_bytes_total",] == size
    assert asking["stafett_gateway_cross_zone_bytes_total",] == size
    assert asking["stafett_gateway_requests_total", "blobs", "hit", "peer_region"] == 2
    assert asking["stafett_gateway_first_byte_seconds_count", "peer_region"] == 2
    assert asking["stafett_gateway_tracker_connected",] == 1


def test_the_mirror_port_shows_the_same_series(monitored: Monitored) -> None:
    mirror = httpx2.get(f"{monitored.hosts[1].gateway_url}/metrics", trust_env=False).text
    assert series_in([mirror]).keys() == series_in(monitored.pages("gateway")).keys()


def test_each_alert_says_what_to_do() -> None:
    headings = re.findall("^#+ (.+)$", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE)
    anchors = {f"docs/operations.md#{heading.lower().replace(' ', '-')}" for heading in headings}
    for rule in rules():
        assert rule["labels"]["severity"] in ("warning", "critical")
        assert rule["annotations"].keys() == {"summary", "description", "runbook"}
        assert rule["annotations"]["runbook"] in anchors


def test_panels_of_the_dashboard_do_not_overlap() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in panels():
        place = panel["gridPos"]
        for x in range(place["x"], place["x"] + place["w"]):
            for y in range(place["y"], place["y"] + place["h"]):
                assert x < 24, panel["title"]
                assert taken.setdefault((x, y), panel["title"]) == panel["title"]
    assert len({panel["id"] for panel in panels()}) == len(panels())


@pytest.mark.needs_program("promtool")
def test_promtool_finds_nothing_wrong_and_rules_fire_when_they_should() -> None:
    for action, file in (("check", ALERTS), ("test", Path(__file__).with_name("alerts_test.yaml"))):
        done = run(["promtool", action, "rules", file])
        assert done.returncode == 0, done.stdout + done.stderr


class Prometheus:
    """Debian's Prometheus, scraping the cluster with the project's rules, which wait for nothing here."""

    def __init__(self, monitored: Monitored, directory: Path) -> None:
        loaded = yaml.safe_load(ALERTS.read_text())
        for group in loaded["groups"]:
            for rule in group["rules"]:
                rule["for"] = "0s"
        (directory / "alerts.yaml").write_text(yaml.safe_dump(loaded))
        jobs = [
            {"job_name": f"stafett-{part}", "static_configs": [{"targets": [f"127.0.0.1:{port}" for port in ports]}]}
            for part, ports in monitored.metrics_ports.items()
        ]
        intervals = {"scrape_interval": SCRAPE_INTERVAL, "evaluation_interval": SCRAPE_INTERVAL}
        config = {"global": intervals, "rule_files": ["alerts.yaml"], "scrape_configs": jobs}
        (directory / "prometheus.yaml").write_text(yaml.safe_dump(config))
        self.url = f"http://127.0.0.1:{free_port()}"
        monitored.cluster.processes.start(
            "prometheus",
            [
                "prometheus",
                f"--config.file={directory}/prometheus.yaml",
                f"--storage.tsdb.path={directory}/data",
                f"--web.listen-address={self.url.removeprefix('http://')}",
            ],
            ready=lambda: self._is_ready(),
        )

    def _is_ready(self) -> bool:
        try:
            return httpx2.get(f"{self.url}/-/ready", trust_env=False).status_code == 200
        except httpx2.TransportError:
            return False

    def ask(self, path: str, **query: str) -> Any:
        """Ask its API."""
        return httpx2.get(f"{self.url}/api/v1/{path}", params=query, trust_env=False).json()["data"]

    def health(self) -> list[str]:
        """How scraping each part goes."""
        return [target["health"] for target in self.ask("targets")["activeTargets"]]

    def value(self, expression: str) -> float | None:
        """First value of an expression now."""
        result = self.ask("query", query=expression)["result"]
        return float(result[0]["value"][1]) if result else None

    def firing(self) -> set[str]:
        """Names of the alerts that fire."""
        return {each["labels"]["alertname"] for each in self.ask("alerts")["alerts"] if each["state"] == "firing"}


@pytest.fixture(scope="module")
def prometheus(monitored: Monitored, tmp_path_factory: pytest.TempPathFactory) -> Prometheus:
    return Prometheus(monitored, tmp_path_factory.mktemp("prometheus"))


@pytest.mark.needs_program("prometheus")
def test_prometheus_scrapes_a_live_cluster_and_an_alert_fires_when_a_node_is_killed(
    monitored: Monitored, prometheus: Prometheus
) -> None:
    wait_until(lambda: prometheus.health() == ["up"] * 5, "all parts are scraped")
    wait_until(lambda: prometheus.value('max(stafett_tracker_nodes{state="ready"})') == 2, "two nodes are ready")
    evaluated = [rule for group in prometheus.ask("rules")["groups"] for rule in group["rules"]]
    assert len(evaluated) == len(rules())
    assert {rule["health"] for rule in evaluated} <= {"ok", "unknown"}, evaluated
    wait_until(lambda: prometheus.firing() == set(), "nothing fires")
    holder, asking = (host.node for host in monitored.hosts)
    assert holder is not None
    assert asking is not None
    asking.stop()
    wait_until(lambda: prometheus.value('max(stafett_tracker_nodes{state="left"})') == 1, "a node has left")
    assert "StafettNodesDown" not in prometheus.firing()
    holder.kill()
    wait_until(lambda: "StafettNodesDown" in prometheus.firing(), "the alert fires")
    assert {rule["health"] for group in prometheus.ask("rules")["groups"] for rule in group["rules"]} == {"ok"}
    [lost] = [each for each in prometheus.ask("alerts")["alerts"] if each["labels"]["alertname"] == "StafettNodesDown"]
    assert lost["annotations"]["description"].startswith("Nodes that have lost their lease without draining first: 1.")
    for host, port in zip(monitored.hosts, monitored.metrics_ports["node"], strict=True):
        monitored.cluster.start_node(host, {"metrics_port": port})
    wait_until(lambda: prometheus.firing() == set(), "the alert ends when the node is back")


@pytest.mark.needs_program("prometheus")
def test_alerts_fire_while_redis_or_the_trackers_are_away(monitored: Monitored, prometheus: Prometheus) -> None:
    cluster = monitored.cluster
    assert cluster.redis is not None
    cluster.redis.kill()
    wait_until(lambda: "StafettRedisAway" in prometheus.firing(), "the alert for Redis fires")
    cluster.trackers[0].process.kill()
    gone = {"StafettTrackersGone", "StafettTrackerUnreached"}
    wait_until(lambda: gone <= prometheus.firing(), "the alerts for trackers fire")
    cluster.start_redis()
    cluster.start_tracker({"metrics_port": monitored.metrics_ports["tracker"][0]}, port=cluster.trackers[0].port)
    wait_until(lambda: prometheus.firing() == set(), "all alerts end")

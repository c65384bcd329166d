"""What the chart gives is what Kubernetes takes, whatever value is set differently."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from deploy.kubernetes.render import ALERTS, ALERTS_COPY, CHART, rendered
from stafett.cli.configure.distros import DISTROS
from tests.deploy.conftest import EVERYTHING
from tests.deploy.rendering import (
    FAST,
    REPOSITORY,
    Chart,
    Object,
    Values,
    container,
    containers,
    environment,
    helm_programs,
    merged,
    named,
    pods,
)
from tests.deploy.schemas import NEWEST, OLDEST, faults

SECRETS = {"tracker": "t", "node": "n", "redis": "r"}
TERMS = {"nodeSelectorTerms": [{"matchExpressions": [{"key": "k", "operator": "Exists"}]}]}
AFFINITY = {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": TERMS}}
RESOURCES = {"requests": {"cpu": "1", "memory": "1Gi"}, "limits": {"memory": "2Gi"}}
TOLERATIONS = [{"key": "dedicated", "operator": "Exists"}]
DIGEST = "sha256:" + "a" * 64
METRICS: Values = {"metrics": {"enabled": True}}
OTHER: dict[str, Any] = {
    "global.imageRegistry": "registry.example.com/mirror",
    "global.imagePullSecrets": ["pull"],
    "nameOverride": "relay",
    "fullnameOverride": "relay-run",
    "image.registry": "registry.example.com",
    "image.repository": "team/stafett",
    "image.tag": "9.9",
    "image.digest": DIGEST,
    "image.pullPolicy": "Always",
    "logLevel": "debug",
    "registries": [{"name": "r.example.com:5000", "upstream": "http://10.0.0.1:5000"}, {"name": "_default"}],
    "containerd.distro": "k3s",
    "containerd.socket": "/run/other/containerd.sock",
    "containerd.contentRoot": "/data/content",
    "containerd.hostsDir": "/etc/other/certs.d",
    "topology.enabled": False,
    "topology.regionLabel": "example.com/region",
    "topology.zoneLabel": "example.com/zone",
    "topology.rackLabel": "example.com/rack",
    "tls.enabled": False,
    "tls.source": ({"tls": {"secrets": SECRETS}}, "secret"),
    "tls.days": ({"tls": {"source": "chart"}}, 7),
    "tls.certManager.issuer.name": "company",
    "tls.certManager.issuer.kind": ({"tls": {"certManager": {"issuer": {"name": "company"}}}}, "ClusterIssuer"),
    "tls.certManager.issuer.group": ({"tls": {"certManager": {"issuer": {"name": "company"}}}}, "example.com"),
    "tls.certManager.duration": "24h",
    "tls.certManager.renewBefore": "8h",
    "tls.secrets.tracker": ({"tls": {"source": "secret", "secrets": SECRETS}}, "other"),
    "tls.secrets.node": ({"tls": {"source": "secret", "secrets": SECRETS}}, "other"),
    "tls.secrets.redis": ({"tls": {"source": "secret", "secrets": SECRETS}}, "other"),
    "tracker.replicas": 5,
    "tracker.port": 1460,
    "tracker.settings": {"forget_after_seconds": 600, "score_weights": {"load": 2}},
    "tracker.resources": RESOURCES,
    "tracker.podDisruptionBudget.enabled": False,
    "tracker.podDisruptionBudget.maxUnavailable": "50%",
    "tracker.spread.zone": "DoNotSchedule",
    "tracker.spread.host": "ScheduleAnyway",
    "tracker.rollingUpdate.maxSurge": "25%",
    "tracker.rollingUpdate.maxUnavailable": 1,
    "tracker.priorityClassName": "system-cluster-critical",
    "tracker.nodeSelector": {"role": "control"},
    "tracker.tolerations": TOLERATIONS,
    "tracker.affinity": AFFINITY,
    "tracker.podLabels": {"team": "a"},
    "tracker.podAnnotations": {"note": "a"},
    "node.port": 1461,
    "node.settings": {"upload_limit_bytes_per_second": 20000000, "namespaces": ["k8s.io"], "drain_grace_seconds": 1.5},
    "node.resources": RESOURCES,
    "gateway.mirrorPort": 1462,
    "gateway.tagPort": 1463,
    "gateway.settings": {"deny": ["docker.io/secret/*", "x"], "follow": False},
    "gateway.resources": RESOURCES,
    "host.nodeSelector": {"pool": "a"},
    "host.affinity": AFFINITY,
    "host.tolerations": TOLERATIONS,
    "host.priorityClassName": "high",
    "host.maxUnavailable": 1,
    "host.terminationGracePeriodSeconds": 90,
    "host.seLinuxOptions": {"type": "spc_t"},
    "host.podLabels": {"team": "a"},
    "host.podAnnotations": {"note": "a"},
    "startupTaint.enabled": True,
    "startupTaint.key": ({"startupTaint": {"enabled": True}}, "example.com/wait"),
    "startupTaint.resources": ({"startupTaint": {"enabled": True}}, RESOURCES),
    "redis.url": "redis+sentinel://s-1:26379,s-2:26379/main/0",
    "redis.existingSecret.name": "redis-url",
    "redis.existingSecret.key": ({"redis": {"existingSecret": {"name": "redis-url"}}}, "other"),
    "redis.authoritySecret": ({"redis": {"url": "rediss://redis.example.com/0"}}, "redis-authority"),
    "redis.image.registry": "registry.example.com",
    "redis.image.repository": "valkey",
    "redis.image.tag": "9",
    "redis.image.digest": DIGEST,
    "redis.image.pullPolicy": "Always",
    "redis.maxMemory": "1gb",
    "redis.resources": RESOURCES,
    "redis.priorityClassName": "system-cluster-critical",
    "redis.nodeSelector": {"role": "control"},
    "redis.tolerations": TOLERATIONS,
    "redis.affinity": AFFINITY,
    "networkPolicy.enabled": False,
    "networkPolicy.trackerClients": [{"ipBlock": {"cidr": "192.0.2.0/24"}}],
    "networkPolicy.metricsClients": (METRICS, [{"namespaceSelector": {"matchLabels": {"name": "monitoring"}}}]),
    "metrics.enabled": True,
    "metrics.trackerPort": (METRICS, 1464),
    "metrics.nodePort": (METRICS, 1465),
    "metrics.gatewayPort": (METRICS, 1466),
    "metrics.serviceMonitor.enabled": (METRICS, True),
    "metrics.serviceMonitor.interval": ({"metrics": {"enabled": True, "serviceMonitor": {"enabled": True}}}, "5s"),
    "metrics.serviceMonitor.labels": ({"metrics": {"enabled": True, "serviceMonitor": {"enabled": True}}}, {"a": "b"}),
    "metrics.prometheusRule.enabled": (METRICS, True),
    "metrics.prometheusRule.labels": ({"metrics": {"enabled": True, "prometheusRule": {"enabled": True}}}, {"a": "b"}),
    "tracing.endpoint": "http://collector:4317",
    "tracing.protocol": ({"tracing": {"endpoint": "http://collector:4318"}}, "http/protobuf"),
    "tracing.environment": ({"tracing": {"endpoint": "http://collector:4317"}}, {"OTEL_TRACES_SAMPLER_ARG": 0.5}),
    "cleanup.enabled": False,
    "cleanup.timeoutSeconds": 30,
    "resourceQuota.enabled": True,
    "namespace.create": True,
}
"""For each value of values.yaml another one, with what else has to be set for it to matter."""


def documented(values: Values, above: str = "") -> Iterator[str]:
    """Yield the paths of all values; maps that a user fills are one value."""
    for key, value in values.items():
        path = f"{above}{key}"
        if isinstance(value, dict) and value and path not in OTHER:
            yield from documented(value, f"{path}.")
        else:
            yield path


def set_at(path: str, value: Any) -> dict[str, Any]:
    for key in reversed(path.split(".")):
        value = {key: value}
    return dict(value)


def test_every_documented_value_is_tried() -> None:
    assert sorted(documented(yaml.safe_load((CHART / "values.yaml").read_text()))) == sorted(OTHER)


@pytest.mark.parametrize("path", OTHER)
def test_a_value_set_differently_changes_what_is_made_and_stays_valid(chart: Chart, path: str) -> None:
    context, value = OTHER[path] if isinstance(OTHER[path], tuple) else ({}, OTHER[path])
    before = chart.objects(FAST, context)
    after = chart.objects(FAST, context, set_at(path, value))
    assert after != before
    assert [fault for item in after if item not in before for fault in faults(item, NEWEST)] == []


@pytest.mark.parametrize("version", [OLDEST, NEWEST])
@pytest.mark.parametrize(
    "values", [{"tls": {"source": "chart"}}, {}, EVERYTHING], ids=["default", "usual", "everything"]
)
def test_manifests_follow_the_schemas(chart: Chart, values: Values, version: str) -> None:
    objects = chart.objects(FAST, values)
    assert [fault for item in objects for fault in faults(item, version)] == []
    assert {item["kind"] for item in objects} >= {"Deployment", "DaemonSet", "Job", "NetworkPolicy"}


@pytest.mark.parametrize(
    "broken", [{"replicas": "many"}, {"replicas": 3, "template": {"spec": {"containers": [{"nmae": "x"}]}}}]
)
def test_a_mistake_in_a_manifest_is_found(broken: Values) -> None:
    item = {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "x"}, "spec": broken}
    assert faults(item, NEWEST)


@pytest.mark.parametrize("helm", helm_programs(), ids=lambda path: path.rpartition("/")[2])
def test_every_helm_finds_the_chart_good_and_makes_the_same_of_it(helm: str) -> None:
    for values in ({}, merged(FAST, EVERYTHING)):
        done = Chart(helm).lint(values)
        assert done.returncode == 0, done.stdout
    for path, text in rendered(helm).items():
        assert path.read_text() == text, f"{path.name} is not up to date: run make manifests"


def test_install_yaml_has_no_hook_no_key_and_each_object_once(chart: Chart) -> None:
    text = (REPOSITORY / "deploy/kubernetes/install.yaml").read_text()
    assert "helm.sh/hook" not in text
    assert "PRIVATE KEY" not in text
    assert not re.search(r"^  tls\.key:", text, re.MULTILINE)
    objects = list(yaml.safe_load_all(text))
    names = [(item["kind"], item["metadata"].get("namespace"), item["metadata"]["name"]) for item in objects]
    assert len(set(names)) == len(names)
    assert {
        namespace for kind, namespace, _ in names if kind not in ("Namespace", "ClusterRole", "ClusterRoleBinding")
    } == {"stafett"}


def test_the_chart_has_the_version_of_the_product() -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    version = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]["version"]
    assert (chart["version"], chart["appVersion"]) == (version, version)


def test_the_chart_s_alerts_are_the_monitoring_s(chart: Chart) -> None:
    assert ALERTS_COPY.read_text() == ALERTS.read_text(), "run make manifests"
    values = {"metrics": {"enabled": True, "prometheusRule": {"enabled": True}}}
    rule = named(chart.objects(FAST, values), "PrometheusRule", "stafett-alerts")
    assert rule["spec"] == yaml.safe_load(ALERTS.read_text())


def test_every_distribution_s_paths_are_those_of_configure(chart: Chart) -> None:
    for name, distro in DISTROS.items():
        objects = chart.objects(FAST, {"containerd": {"distro": name.value}})
        host = named(objects, "DaemonSet", "stafett-host")["spec"]["template"]["spec"]
        mounted = {volume["name"]: volume.get("hostPath", {}).get("path") for volume in host["volumes"]}
        assert mounted["containerd-configuration"] == str(distro.hosts_dir.parent)
        assert mounted["containerd-configuration"] == str(distro.config.parent)
        assert f"--distro={name.value}" in container(objects, "DaemonSet/stafett-host/configure")["args"]
        node = environment(container(objects, "DaemonSet/stafett-host/node"))
        assert node["STAFETT_NODE_CONTAINERD_SOCKET"].startswith(mounted["containerd-socket"] + "/")
        assert node["STAFETT_NODE_CONTENT_ROOT"] == mounted["content"]


def test_all_images_come_from_the_given_registry(chart: Chart) -> None:
    objects = chart.objects(FAST, EVERYTHING, {"global": {"imageRegistry": "registry.example.com/mirror"}})
    images = {found["image"] for _, found in containers(objects)}
    assert {image.rpartition(":")[0] for image in images} == {
        "registry.example.com/mirror/stafett",
        "registry.example.com/mirror/valkey/valkey",
    }
    pinned = chart.objects(FAST, {"image": {"digest": DIGEST, "registry": "r.example.com"}})
    assert container(pinned, "DaemonSet/stafett-host/node")["image"] == f"r.example.com/stafett@{DIGEST}"


def test_selectors_find_the_pods_that_they_are_for(everything: list[Object]) -> None:
    labels = {
        item["metadata"]["name"]: item["spec"]["template"]["metadata"]["labels"]
        for item in everything
        if item["kind"] in ("Deployment", "DaemonSet")
    }
    expected = {
        ("Service", "stafett-tracker"): {"stafett-tracker"},
        ("Service", "stafett-redis"): {"stafett-redis"},
        ("Service", "stafett-host-metrics"): {"stafett-host"},
        ("PodDisruptionBudget", "stafett-tracker"): {"stafett-tracker"},
        ("NetworkPolicy", "stafett-tracker"): {"stafett-tracker"},
        ("NetworkPolicy", "stafett-redis"): {"stafett-redis"},
    }
    for (kind, name), workloads in expected.items():
        spec = named(everything, kind, name)["spec"]
        selector = spec.get("podSelector", spec.get("selector"))
        wanted = selector.get("matchLabels", selector)
        assert {workload for workload, found in labels.items() if wanted.items() <= found.items()} == workloads


def test_where_metrics_are_scraped_a_port_of_that_name_is_there(everything: list[Object]) -> None:
    monitor = named(everything, "ServiceMonitor", "stafett-metrics")["spec"]
    services = [
        item
        for item in everything
        if item["kind"] == "Service"
        and monitor["selector"]["matchLabels"].items() <= item["metadata"]["labels"].items()
    ]
    ports = {port["name"]: port["targetPort"] for item in services for port in item["spec"]["ports"]}
    open_ports = {port["name"] for _, found in containers(everything) for port in found.get("ports", [])}
    for endpoint in monitor["endpoints"]:
        assert ports[endpoint["port"]] in open_ports


def test_a_redis_of_one_s_own_takes_the_place_of_the_chart_s(chart: Chart) -> None:
    for redis in ({"url": "redis://redis.example.com:6379/0"}, {"existingSecret": {"name": "s", "key": "k"}}):
        objects = chart.objects(FAST, {"redis": redis})
        assert not [item for item in objects if "redis" in item["metadata"]["name"]]
    tracker = container(objects, "Deployment/stafett-tracker/tracker")
    assert "STAFETT_TRACKER_REDIS_URL" not in environment(tracker)
    [settings] = [v for v in dict(pods(objects))["Deployment/stafett-tracker"]["volumes"] if v["name"] == "settings"]
    assert settings["secret"]["items"] == [{"key": "k", "path": "STAFETT_TRACKER_REDIS_URL"}]
    [mount] = [mount for mount in tracker["volumeMounts"] if mount["name"] == "settings"]
    assert environment(tracker)["STAFETT_SETTINGS_DIR"] == mount["mountPath"]


def test_the_clean_up_waits_for_the_daemonset_that_it_may_read(usual: list[Object]) -> None:
    cleanup = named(usual, "DaemonSet", "stafett-cleanup")
    weights = {
        item["kind"]: int(item["metadata"]["annotations"].get("helm.sh/hook-weight", 0))
        for item in usual
        if "helm.sh/hook" in item["metadata"].get("annotations", {})
    }
    assert weights["ServiceAccount"] < weights["DaemonSet"] < weights["Job"]
    assert weights["Role"] < weights["Job"]
    [rule] = named(usual, "Role", "stafett-cleanup")["rules"]
    args = container(usual, "Job/stafett-cleanup/wait")["args"]
    assert rule["resourceNames"] == [cleanup["metadata"]["name"]] == [args[2]]
    host = named(usual, "DaemonSet", "stafett-host")["spec"]["template"]["spec"]
    for key in ("nodeSelector", "tolerations", "priorityClassName"):
        assert cleanup["spec"]["template"]["spec"][key] == host[key]


def test_values_put_over_one_another() -> None:
    assert merged({"a": {"b": 1, "c": 2}}, {"a": {"b": 3}, "d": [1]}) == {"a": {"b": 3, "c": 2}, "d": [1]}

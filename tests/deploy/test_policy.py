"""What a pod may do on a host and in the cluster, and how it is kept alive; exceptions are named here, argued there."""

from __future__ import annotations

import re
from typing import Any

import pytest

from stafett.cli.trackers import CALL_SECONDS
from stafett.gateway.settings import GatewaySettings
from stafett.node.settings import NodeSettings
from tests.deploy.rendering import FAST, REPOSITORY, Chart, Object, container, containers, environment, named, pods

ROOT = {"DaemonSet/stafett-host/node", "DaemonSet/stafett-host/configure", "DaemonSet/stafett-cleanup/configure"}
NOT_SERVING = {"DaemonSet/stafett-host/untaint", "DaemonSet/stafett-cleanup/done", "Job/stafett-cleanup/wait"}
ASKS_API = {"DaemonSet/stafett-host/topology", "DaemonSet/stafett-host/untaint", "Job/stafett-cleanup/wait"}
WRITES_HOST = {"DaemonSet/stafett-host/configure", "DaemonSet/stafett-cleanup/configure"}
SECRET = re.compile(r"PRIVATE KEY|://[^/\s]*:[^/\s]*@|password|token", re.IGNORECASE)


def test_no_container_has_privileges_and_only_the_argued_ones_are_root(everything: list[Object]) -> None:
    root = set()
    for name, found in containers(everything):
        context = found["securityContext"]
        assert not context.get("privileged"), name
        assert context["allowPrivilegeEscalation"] is False, name
        assert context["readOnlyRootFilesystem"] is True, name
        assert context["capabilities"] == {"drop": ["ALL"]}, name
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}, name
        if not (context.get("runAsNonRoot") and context["runAsUser"] > 0):
            root.add(name)
    assert root == ROOT


@pytest.mark.parametrize("file", ["install.yaml", "uninstall.yaml"])
def test_each_root_container_is_argued_in_a_comment(file: str) -> None:
    lines = (REPOSITORY / "deploy/kubernetes" / file).read_text().splitlines()
    users = [number for number, line in enumerate(lines) if line.strip() == "runAsUser: 0"]
    assert users
    for user in users:
        begin = max(n for n in range(user) if re.match(r" {8}- name:", lines[n]))
        assert lines[begin - 1].strip().startswith("# Root,")


def test_only_the_host_s_pod_is_on_its_network_and_none_in_its_other_namespaces(everything: list[Object]) -> None:
    for workload, pod in pods(everything):
        assert bool(pod.get("hostNetwork")) is (workload == "DaemonSet/stafett-host")
        assert not any(pod.get(key) for key in ("hostPID", "hostIPC", "shareProcessNamespace"))


def test_files_of_the_host_are_three_folders_and_only_configure_writes(everything: list[Object]) -> None:
    writers = set()
    for workload, pod in pods(everything):
        paths = {volume["name"] for volume in pod.get("volumes", []) if "hostPath" in volume}
        assert paths <= {"containerd-socket", "content", "containerd-configuration"}
        for found in [*pod.get("initContainers", []), *pod["containers"]]:
            mounts = [mount for mount in found.get("volumeMounts", []) if mount["name"] in paths]
            if any(not mount.get("readOnly") for mount in mounts):
                writers.add(f"{workload}/{found['name']}")
                assert [mount["name"] for mount in mounts] == ["containerd-configuration"]
    assert writers == WRITES_HOST
    gateway = container(everything, "DaemonSet/stafett-host/gateway")
    assert {mount["name"] for mount in gateway["volumeMounts"]} == {"tmp", "settings", "tls"}


def test_every_mount_has_its_volume_and_no_volume_is_left_over(everything: list[Object]) -> None:
    for workload, pod in pods(everything):
        mounted = {
            mount["name"]
            for found in [*pod.get("initContainers", []), *pod["containers"]]
            for mount in found.get("volumeMounts", [])
        }
        assert mounted == {volume["name"] for volume in pod.get("volumes", [])}, workload


def test_resources_are_set_without_a_limit_of_cpu(everything: list[Object]) -> None:
    for name, found in containers(everything):
        assert set(found["resources"]["requests"]) == {"cpu", "memory"}, name
        assert set(found["resources"]["limits"]) == {"memory"}, name


def test_what_serves_is_probed(everything: list[Object]) -> None:
    for workload, pod in pods(everything):
        for found in pod["containers"]:
            if f"{workload}/{found['name']}" not in NOT_SERVING:
                assert {"readinessProbe", "livenessProbe"} <= found.keys()


def test_nothing_that_needs_redis_or_trackers_kills_a_pod(everything: list[Object]) -> None:
    probes = {
        f"{name} {probe}": found[probe]
        for name, found in containers(everything)
        for probe in ("livenessProbe", "startupProbe")
        if probe in found and "redis" not in name
    }
    assert probes["Deployment/stafett-tracker/tracker livenessProbe"]["tcpSocket"] == {"port": 7460}
    startup = probes["Deployment/stafett-tracker/tracker startupProbe"]
    assert startup["failureThreshold"] * startup["periodSeconds"] >= 24 * 3600
    assert probes["DaemonSet/stafett-host/node livenessProbe"]["tcpSocket"] == {"port": 7461}
    # The gateway says "ok" here whatever it can reach: tests/integration/gateway asks it without tracker and node.
    assert probes["DaemonSet/stafett-host/gateway livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert len(probes) == 4


def numbers(value: Any) -> set[int]:
    """All numbers in an object, also those in "host:port"."""
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return set().union(*map(numbers, inner))
    return {value} if isinstance(value, int) else set()


def test_the_gateway_s_ports_are_nowhere_but_on_loopback(everything: list[Object]) -> None:
    ports = {7462, 7463}
    for item in everything:
        if item["kind"] in ("Service", "NetworkPolicy", "ServiceMonitor"):
            assert not numbers(item) & ports
            assert item["spec"].get("type", "ClusterIP") == "ClusterIP"
    for _, found in containers(everything):
        assert not numbers(found.get("ports", [])) & ports
        for probe in ("readinessProbe", "livenessProbe"):
            action = found.get(probe, {}).get("httpGet", {})
            assert action.get("host") == "127.0.0.1" or not numbers(action) & ports


def test_no_secret_is_in_the_environment_or_among_arguments(chart: Chart, everything: list[Object]) -> None:
    with_password = chart.objects(FAST, {"redis": {"existingSecret": {"name": "redis-password", "key": "url"}}})
    for name, found in [*containers(everything), *containers(with_password)]:
        assert "envFrom" not in found, name
        assert not [variable for variable in found.get("env", []) if "secretKeyRef" in variable.get("valueFrom", {})]
        words = [*environment(found).values(), *found.get("args", []), *found.get("command", [])]
        assert not [word for word in words if SECRET.search(word)], name


def test_only_who_asks_the_api_server_has_a_token_and_service_variables_are_off(everything: list[Object]) -> None:
    holders = {
        name for name, found in containers(everything) if "token" in {m["name"] for m in found.get("volumeMounts", [])}
    }
    assert holders == ASKS_API
    for workload, pod in pods(everything):
        assert pod["automountServiceAccountToken"] is False, workload
        assert pod["enableServiceLinks"] is False, f"{workload}: STAFETT_TRACKER_PORT would be an unknown setting"


@pytest.mark.parametrize(
    ("values", "verbs"),
    [
        ({}, ["get"]),
        ({"startupTaint": {"enabled": True}}, ["get", "patch"]),
        ({"startupTaint": {"enabled": True}, "topology": {"enabled": False}}, ["get", "patch"]),
        ({"topology": {"enabled": False}}, None),
    ],
)
def test_the_cluster_is_open_for_reading_nodes_only(
    chart: Chart, values: dict[str, Any], verbs: list[str] | None
) -> None:
    rules = [rule for item in chart.objects(FAST, values) if item["kind"] == "ClusterRole" for rule in item["rules"]]
    assert rules == ([{"apiGroups": [""], "resources": ["nodes"], "verbs": verbs}] if verbs else [])


def test_the_pod_outlives_the_drain(usual: list[Object]) -> None:
    pod = named(usual, "DaemonSet", "stafett-host")["spec"]["template"]["spec"]
    assert pod["priorityClassName"] == "system-node-critical"
    assert pod["tolerations"] == [{"operator": "Exists"}]
    longest = max(
        NodeSettings.model_fields["drain_grace_seconds"].default,
        GatewaySettings.model_fields["stop_grace_seconds"].default,
    )
    assert pod["terminationGracePeriodSeconds"] >= longest + CALL_SECONDS
    assert container(usual, "DaemonSet/stafett-host/node")["lifecycle"]["preStop"]["exec"]["command"] == [
        "stafett",
        "drain",
    ]


def test_images_are_pinned(everything: list[Object]) -> None:
    for _, found in containers(everything):
        assert re.search(r":v?\d+\.\d+\.\d+[^/]*$", found["image"]), found["image"]

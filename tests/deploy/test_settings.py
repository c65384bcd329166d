"""What the chart tells the product, the product understands; and what a user gets wrong, the chart's schema refuses."""

from __future__ import annotations

import base64
import json
import os
from collections.abc import Mapping, Sequence
from typing import Any

import pytest
from cryptography import x509
from typer.core import TyperGroup
from typer.main import get_command

from deploy.kubernetes.render import CHART
from stafett.cli.app import app
from stafett.common.settings import ServiceSettings, load
from stafett.common.topology import Topology
from stafett.gateway.settings import GatewaySettings
from stafett.node.settings import NodeSettings
from stafett.tracker.settings import TrackerSettings
from tests.deploy.conftest import EVERYTHING
from tests.deploy.rendering import FAST, Chart, Object, RenderingFailed, Values, container, containers, environment

MODELS: dict[str, type[ServiceSettings]] = {
    "tracker": TrackerSettings,
    "node": NodeSettings,
    "gateway": GatewaySettings,
}
_EACH = {"log_level", "tls_certificate", "tls_key", "tls_authority", "tls_peer_name", "allow_plaintext"} | {
    "metrics_host",
    "metrics_port",
}
CHART_S_OWN = {
    "tracker": _EACH | {"listen_host", "listen_port", "advertise_host", "redis_url", "redis_authority"},
    "node": _EACH | {"node_id", "listen_host", "listen_port", "tracker", "store", "containerd_socket", "content_root"},
    "gateway": _EACH
    | {"listen_port", "tag_port", "tracker", "node_id", "node_target", "content_root", "upstream_urls"},
}
"""Settings that the chart sets itself, by other values."""
PLACES = {
    "tracker": "Deployment/stafett-tracker",
    "node": "DaemonSet/stafett-host",
    "gateway": "DaemonSet/stafett-host",
}
VARIANTS: dict[str, Values] = {
    "default": {},
    "everything": EVERYTHING,
    "plain text": {"tls": {"enabled": False}},
    "k3s": {"containerd": {"distro": "k3s"}},
    "no topology": {"topology": {"enabled": False}},
    "external": {"redis": {"url": "rediss://redis.example.com:6379/0", "authoritySecret": "redis-authority"}},
    "upstreams": {"registries": [{"name": "r.example.com:5000", "upstream": "http://10.0.0.1:5000"}]},
    "settings": {
        "tracker": {"settings": {"forget_after_seconds": 600, "score_weights": {"load": 2}}},
        "node": {"settings": {"upload_limit_bytes_per_second": 20000000, "namespaces": ["k8s.io", "b"]}},
        "gateway": {"settings": {"deny": ["docker.io/secret/*", "x"], "follow": False}},
    },
}


def read(objects: Sequence[Object], part: str, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Read a part's settings as it would in its container."""
    with monkeypatch.context() as patch:
        for name in [name for name in os.environ if name.startswith("STAFETT_")]:
            patch.delenv(name)
        for name, value in environment(container(objects, f"{PLACES[part]}/{part}")).items():
            if name != "STAFETT_SETTINGS_DIR":  # a folder in the pod
                patch.setenv(name, value)
        return load(MODELS[part], [], f"stafett {part}")


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("part", MODELS)
def test_each_part_understands_its_environment(
    chart: Chart, monkeypatch: pytest.MonkeyPatch, part: str, variant: str
) -> None:
    settings = read(chart.objects(FAST, VARIANTS[variant]), part, monkeypatch)
    assert (settings.tls is None) is (variant == "plain text")
    assert settings.allow_plaintext is (variant == "plain text")


def test_no_variable_of_ours_is_one_that_nobody_reads(everything: list[Object]) -> None:
    known = {f"STAFETT_{part.upper()}_{name.upper()}" for part, model in MODELS.items() for name in model.model_fields}
    known |= {f"STAFETT_{name.upper()}" for name in ServiceSettings.model_fields}
    known |= {"STAFETT_TRACKER", "STAFETT_SETTINGS_DIR"}
    used = {name for _, found in containers(everything) for name in environment(found) if name.startswith("STAFETT_")}
    assert used <= known


def test_values_arrive_as_they_were_meant(chart: Chart, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = chart.objects(FAST, VARIANTS["settings"], VARIANTS["upstreams"])
    tracker, node, gateway = (read(objects, part, monkeypatch) for part in MODELS)
    assert (tracker.forget_after_seconds, tracker.score_weights["load"]) == (600, 2)
    assert (node.upload_limit_bytes_per_second, node.namespaces) == (20000000, ("k8s.io", "b"))
    assert (gateway.deny, gateway.follow) == (("docker.io/secret/*", "x"), False)
    assert gateway.upstream_urls == {"r.example.com:5000": "http://10.0.0.1:5000"}


def test_parts_find_one_another(everything: list[Object], monkeypatch: pytest.MonkeyPatch) -> None:
    tracker, node, gateway = (read(everything, part, monkeypatch) for part in MODELS)
    assert node.tracker == gateway.tracker == f"dns:///stafett-tracker.stafett.svc:{tracker.listen_port}"
    assert (gateway.node_address.host, gateway.node_address.port) == (node.listen_host, node.listen_port)
    assert node.node_id == gateway.node_id == "host-1"
    assert tracker.advertised(1).host == tracker.listen_host == "192.0.2.2"
    assert tracker.redis_url == "rediss://stafett-redis.stafett.svc:6379/0"
    for part in (tracker, node, gateway):
        assert part.metrics_host != "127.0.0.1"
    assert node.topology == Topology()


def test_metrics_stay_on_loopback_unless_asked_for(usual: list[Object], monkeypatch: pytest.MonkeyPatch) -> None:
    assert {read(usual, part, monkeypatch).metrics_host for part in MODELS} == {"127.0.0.1"}


def parses(words: Sequence[str], variables: Mapping[str, str]) -> None:
    """Let the command's own parser read a command line. Raises UsageError."""
    command: Any = get_command(app)
    name, rest = "stafett", list(words)
    while isinstance(command, TyperGroup):
        name = rest.pop(0)
        assert name in command.commands, f"there is no command {name}"
        command = command.commands[name]
    with pytest.MonkeyPatch.context() as patch:
        for variable, value in variables.items():
            patch.setenv(variable, value)
        command.make_context(name, rest)


def command_lines(found: Object) -> list[list[str]]:
    """All command lines of stafett in a container: its own, its probes', its hooks'."""
    lines = [] if "command" in found else [found["args"]]
    actions = [found.get(key, {}) for key in ("readinessProbe", "livenessProbe", "startupProbe")]
    actions += found.get("lifecycle", {}).values()
    words = [action["exec"]["command"] for action in actions if "exec" in action]
    return lines + [line[1:] for line in words if line[0] == "stafett"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_command_line_is_one_of_stafett(chart: Chart, variant: str) -> None:
    seen = []
    for name, found in containers(chart.objects(FAST, VARIANTS[variant])):
        if name.startswith("Deployment/stafett-redis"):
            continue
        for line in command_lines(found):
            parses([word.replace("$(NODE)", "host-1") for word in line], environment(found))
            seen.append(line[0])
    assert {"tracker", "node", "gateway", "configure", "healthy", "drain", "kubernetes"} >= set(seen) >= {"configure"}


@pytest.mark.parametrize("words", [["configure", "--no-such"], ["kubernetes", "topology"], ["drain"]])
def test_a_wrong_command_line_is_found(words: list[str]) -> None:
    with pytest.raises(Exception, match=r"No such option|Missing parameter"):
        parses(words, {})


def test_the_schema_knows_just_the_settings_that_are_left_to_the_user() -> None:
    schema = json.loads((CHART / "values.schema.json").read_text())
    for part, model in MODELS.items():
        names = schema["properties"][part]["properties"]["settings"]["propertyNames"]["enum"]
        assert sorted(names) == sorted(model.model_fields.keys() - CHART_S_OWN[part])
        assert CHART_S_OWN[part] <= model.model_fields.keys()


@pytest.mark.parametrize(
    "wrong",
    [
        {"trackers": {"replicas": 3}},
        {"tracker": {"replica": 3}},
        {"tracker": {"replicas": 0}},
        {"tracker": {"replicas": "three"}},
        {"tracker": {"settings": {"redis_url": "redis://x"}}},
        {"tracker": {"settings": {"lease_ttl": 4}}},
        {"tracker": {"resources": {"limits": {"memory": None}}}},
        {"tracker": {"spread": {"zone": "Always"}}},
        {"node": {"port": 70000}},
        {"node": {"settings": {"max-streams": 3}}},
        {"gateway": {"settings": {"listen_port": 80}}},
        {"logLevel": "trace"},
        {"registries": []},
        {"registries": ["docker.io"]},
        {"registries": [{"name": "https://docker.io"}]},
        {"registries": [{"name": "a", "upstream": "a.example.com"}]},
        {"containerd": {"distro": "docker"}},
        {"containerd": {"socket": "containerd.sock"}},
        {"tls": {"source": "none"}},
        {"tls": {"source": "secret"}},
        {"tls": {"source": "secret", "secrets": {"tracker": "a", "node": "b"}}},
        {"tls": {"enabled": "yes"}},
        {"redis": {"url": "redis://:password@host:6379/0"}},
        {"redis": {"url": "host:6379"}},
        {"redis": {"url": "redis://a:6379/0", "existingSecret": {"name": "b"}}},
        {"redis": {"maxMemory": "256Mi"}},
        {"metrics": {"serviceMonitor": {"interval": "soon"}}},
        {"tracing": {"environment": {"PYTHONPATH": "/tmp"}}},
        {"tracing": {"endpoint": "collector:4317"}},
        {"image": {"digest": "latest"}},
        {"host": {"maxUnavailable": "10"}},
        {"node": {"settings": {"drain_grace_seconds": 60}}},
        {"gateway": {"settings": {"stop_grace_seconds": 45}}},
    ],
    ids=json.dumps,
)
def test_a_mistake_among_the_values_is_refused(chart: Chart, wrong: Values) -> None:
    with pytest.raises(RenderingFailed, match=r"values|tls\.secrets\.redis|terminationGracePeriodSeconds"):
        chart.text(FAST, wrong)


def test_without_a_priority_class_there_is_no_quota_for_it(chart: Chart) -> None:
    gke: Values = {"containerd": {"distro": "gke"}}
    assert "ResourceQuota" in chart.text(FAST, gke)
    assert "ResourceQuota" not in chart.text(FAST, gke, {"host": {"priorityClassName": ""}})


def test_the_charts_authority_outlives_every_certificate_of_it(chart: Chart) -> None:
    ends = {
        each["metadata"]["name"]: x509.load_pem_x509_certificate(
            base64.b64decode(each["data"]["tls.crt"])
        ).not_valid_after_utc
        for each in chart.objects({"tls": {"days": 7000}})
        if each["kind"] == "Secret"
    }
    authority = ends.pop("stafett-authority")
    assert ends
    assert max(ends.values()) < authority

"""Renders the chart and finds its way in what comes out."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from deploy.kubernetes.render import CHART, COMMAND

REPOSITORY = Path(__file__).parents[2]
Object = dict[str, Any]
Values = Mapping[str, Any]

FAST: Values = {"tls": {"source": "cert-manager"}}
"""The default but for keys that would have to be made, which takes a second."""


def helm_programs() -> list[str]:
    """Find Helm: those that make helm has put into .build, or else the one of the PATH; the newest last."""
    made = [str(path) for path in sorted((REPOSITORY / ".build" / "helm").glob("helm-?"))]
    return made or [path for path in [shutil.which("helm")] if path]


class RenderingFailed(Exception):
    """Helm refused; the message is what it said."""


def merged(*layers: Values) -> dict[str, Any]:
    """Put values over one another, the last on top."""
    result: dict[str, Any] = {}
    for layer in layers:
        for key, value in layer.items():
            below = result.get(key)
            both = isinstance(below, dict) and isinstance(value, Mapping)
            result[key] = merged(below, value) if both and below is not None else value
    return result


class Chart:
    """The chart, rendered by one Helm; what was rendered once is kept."""

    def __init__(self, helm: str) -> None:
        self._helm = helm
        self._kept: dict[str, str] = {}

    def text(self, *layers: Values, options: Sequence[str] = ()) -> str:
        """Render with these values. Raises RenderingFailed."""
        values = json.dumps(merged(*layers))
        key = repr((values, tuple(options)))
        if key not in self._kept:
            done = subprocess.run(
                [self._helm, *COMMAND, "--values", "-", *options], input=values, capture_output=True, text=True
            )
            if done.returncode:
                raise RenderingFailed(done.stderr)
            self._kept[key] = done.stdout
        return self._kept[key]

    def objects(self, *layers: Values) -> list[Object]:
        """Render to objects, hooks included. Raises RenderingFailed."""
        return parse(self.text(*layers))

    def lint(self, *layers: Values) -> subprocess.CompletedProcess[str]:
        """Let Helm look at the chart."""
        command = [self._helm, "lint", "--strict", "--kube-version", "1.34", str(CHART), "--values", "-"]
        return subprocess.run(command, input=json.dumps(merged(*layers)), capture_output=True, text=True)


def parse(text: str) -> list[Object]:
    """Read the objects of a manifest."""
    return [document for document in yaml.load_all(text, Loader=yaml.CSafeLoader) if document]


def named(objects: Sequence[Object], kind: str, name: str) -> Object:
    """Find the one object of this kind and name."""
    [found] = [item for item in objects if item["kind"] == kind and item["metadata"]["name"] == name]
    return found


def pods(objects: Sequence[Object]) -> Iterator[tuple[str, Object]]:
    """Yield (name of the workload, pod) of all that make pods."""
    for item in objects:
        if item["kind"] in ("Deployment", "DaemonSet", "Job"):
            yield f"{item['kind']}/{item['metadata']['name']}", item["spec"]["template"]["spec"]


def containers(objects: Sequence[Object]) -> Iterator[tuple[str, Object]]:
    """Yield (workload/container, container) of all pods, initial ones too."""
    for workload, pod in pods(objects):
        for container in [*pod.get("initContainers", []), *pod["containers"]]:
            yield f"{workload}/{container['name']}", container


def container(objects: Sequence[Object], name: str) -> Object:
    """Find a container by "Kind/workload/name"."""
    return dict(containers(objects))[name]


def environment(found: Object) -> dict[str, str]:
    """Give a container's variables as kubelet would: fields with examples, references put in."""
    fields = {"spec.nodeName": "host-1", "status.hostIP": "192.0.2.1", "status.podIP": "192.0.2.2"}
    result: dict[str, str] = {}
    for variable in found.get("env", []):
        value = variable.get("value")
        if value is None:
            value = fields[variable["valueFrom"]["fieldRef"]["fieldPath"]]
        for name, text in result.items():
            value = value.replace(f"$({name})", text)
        result[variable["name"]] = value
    return result

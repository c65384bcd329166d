"""The chart's containers as processes on this machine: their variables, arguments, certificates and probes, for real.

What only a cluster has is replaced: names by addresses, mounts by folders, Valkey by Redis.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from stafett.cli.local_cluster.processes import free_port
from tests.deploy.rendering import FAST, Chart, Object, container, environment, named, pods

START_SECONDS = 60.0
STAFETT = [sys.executable, "-m", "stafett"]


class Pods:
    """What the chart renders for free ports of this machine, with a folder for each mount."""

    def __init__(self, chart: Chart, folder: Path) -> None:
        names = ("tracker", "node", "mirror", "tags", "redis", "m1", "m2", "m3")
        self.ports = {name: free_port() for name in names}
        self.objects = chart.objects(
            {
                "tracker": {"port": self.ports["tracker"]},
                "node": {"port": self.ports["node"]},
                "gateway": {"mirrorPort": self.ports["mirror"], "tagPort": self.ports["tags"]},
                "metrics": {
                    "enabled": True,
                    "trackerPort": self.ports["m1"],
                    "nodePort": self.ports["m2"],
                    "gatewayPort": self.ports["m3"],
                },
            }
        )
        self.folder = folder
        self.running: list[subprocess.Popen[bytes]] = []

    def environment(self, name: str) -> dict[str, str]:
        """Give a container's variables, and this machine's search path."""
        found = environment(container(self.objects, name))
        return {"PATH": os.environ["PATH"]} | {key: self.here(name, value) for key, value in found.items()}

    def here(self, name: str, text: str) -> str:
        """Put a text of the manifest in terms of this machine."""
        tracker, redis = f"ipv4:127.0.0.1:{self.ports['tracker']}", f"127.0.0.1:{self.ports['redis']}"
        replaced = {
            "192.0.2.1": "127.0.0.1",
            "192.0.2.2": "127.0.0.1",
            f"dns:///stafett-tracker.stafett.svc:{self.ports['tracker']}": tracker,
            "stafett-redis.stafett.svc:6379": redis,
            "6379": str(self.ports["redis"]),
            "valkey-server": "redis-server",
            "valkey-cli": f"redis-cli -p {self.ports['redis']}",
            "/run/containerd": str(self.folder),
        }
        for mount, folder in self.mounts(name).items():
            replaced[mount] = str(folder)
        for there, here in replaced.items():
            text = text.replace(there, here)
        return text

    def mounts(self, name: str) -> dict[str, Path]:
        """Make the folders of a container's secrets and empty volumes; what a Secret holds is in it."""
        volumes = {volume["name"]: volume for volume in dict(pods(self.objects))[name.rpartition("/")[0]]["volumes"]}
        result = {}
        for mount in container(self.objects, name)["volumeMounts"]:
            volume = volumes[mount["name"]]
            if ("secret" in volume or "emptyDir" in volume) and mount["name"] != "tmp":
                folder = self.folder / name.replace("/", "-") / mount["name"]
                folder.mkdir(parents=True, exist_ok=True)
                if "secret" in volume and not any(folder.iterdir()):
                    self._fill(folder, volume["secret"]["secretName"])
                result[mount["mountPath"]] = folder
        return result

    def start(self, name: str) -> None:
        """Run a container's process."""
        found = container(self.objects, name)
        words = [self.here(name, word) for word in [*found.get("command", []), *found["args"]]]
        words = words if "command" in found else STAFETT + words
        log = (self.folder / f"{name.replace('/', '-')}.log").open("wb")
        with log:
            self.running.append(
                subprocess.Popen(words, env=self.environment(name), stdout=log, stderr=subprocess.STDOUT)
            )

    def run(self, name: str, command: Sequence[str], **more: str) -> subprocess.CompletedProcess[str]:
        """Run a command in a container, as a probe or an operator would."""
        words = STAFETT + list(command[1:]) if command[0] == "stafett" else [self.here(name, word) for word in command]
        return subprocess.run(words, env=self.environment(name) | more, capture_output=True, text=True, timeout=30)

    def probe(self, name: str, kind: str) -> bool:
        """Tell whether a probe that is a command succeeds."""
        return self.run(name, container(self.objects, name)[kind]["exec"]["command"]).returncode == 0

    def _fill(self, folder: Path, secret: str) -> None:
        for key, text in named(self.objects, "Secret", secret)["data"].items():
            (folder / key).write_bytes(base64.b64decode(text))


def until(what: str, condition: Any) -> None:
    """Wait until a condition holds."""
    deadline = time.monotonic() + START_SECONDS
    while not condition():
        assert time.monotonic() < deadline, f"{what}: not within {START_SECONDS} s"
        time.sleep(0.1)


TRACKER, NODE, GATEWAY = (
    "Deployment/stafett-tracker/tracker",
    "DaemonSet/stafett-host/node",
    "DaemonSet/stafett-host/gateway",
)
REDIS = "Deployment/stafett-redis/redis"


@pytest.fixture
def installed(chart: Chart, tmp_path: Path) -> Iterator[Pods]:
    pods = Pods(chart, tmp_path)
    try:
        yield pods
    finally:
        for process in pods.running:
            process.kill()
            process.wait()


def nodes(installed: Pods) -> dict[str, Mapping[str, Any]]:
    listed = installed.run(TRACKER, ["stafett", "nodes", "--json"])
    with contextlib.suppress(ValueError):
        return {node["id"]: node for node in json.loads(listed.stdout)["nodes"]}
    return {}


@pytest.mark.needs_program("redis-server")
def test_the_parts_meet_under_the_chart_s_certificates_and_a_host_drains_before_it_stops(installed: Pods) -> None:
    (installed.mounts(NODE)["/run/stafett"] / "STAFETT_NODE_ZONE").write_text("z7")
    installed.start(TRACKER)
    assert not installed.probe(TRACKER, "startupProbe")
    installed.start(REDIS)
    until("tracker ready", lambda: installed.probe(TRACKER, "startupProbe"))
    installed.start(NODE)
    installed.start(GATEWAY)
    until("host listed", lambda: nodes(installed).get("host-1", {}).get("state") == "ready")
    assert nodes(installed)["host-1"]["topology"]["zone"] == "z7"
    with urllib.request.urlopen(f"http://127.0.0.1:{installed.ports['mirror']}/readyz", timeout=5) as answer:
        ready = json.load(answer)
    assert ready["tracker_reachable"]
    for port in ("m1", "m2", "m3"):
        with urllib.request.urlopen(f"http://127.0.0.1:{installed.ports[port]}/metrics", timeout=5) as answer:
            assert b"stafett_" in answer.read()
    stranger = {f"STAFETT_TLS_{key}": "" for key in ("CERTIFICATE", "KEY", "AUTHORITY")}
    refused = installed.run(TRACKER, ["stafett", "nodes"], **stranger)
    assert refused.returncode == 1
    doctor = json.loads(installed.run(NODE, ["stafett", "doctor", "--json"]).stdout)
    levels = {verdict["check"]: verdict["level"] for verdict in doctor["verdicts"]}
    assert {levels[check] for check in ("gateway", "tag-port", "tracker", "lease")} == {"ok"}
    drained = installed.run(NODE, container(installed.objects, NODE)["lifecycle"]["preStop"]["exec"]["command"])
    assert drained.returncode == 0, drained.stderr
    until("host draining", lambda: nodes(installed)["host-1"]["state"] == "draining")


@pytest.mark.needs_program("redis-server")
def test_valkey_is_alive_until_it_has_older_certificates_than_there_are(installed: Pods) -> None:
    installed.start(REDIS)
    until("Redis alive", lambda: installed.probe(REDIS, "livenessProbe"))
    without = installed.run(REDIS, ["redis-cli", "-p", str(installed.ports["redis"]), "ping"])
    assert "PONG" not in without.stdout
    certificate = installed.mounts(REDIS)["/etc/stafett/tls"] / "tls.crt"
    os.utime(certificate, (time.time() + 5, time.time() + 5))
    assert not installed.probe(REDIS, "livenessProbe")


@pytest.mark.needs_root
def test_root_without_a_capability_writes_mirror_files_and_puts_them_back(chart: Chart, tmp_path: Path) -> None:
    (own := tmp_path / "certs.d" / "quay.io").mkdir(parents=True)
    (own / "hosts.toml").write_text('server = "https://quay.example.com"\n')
    before = {path: path.read_text() for path in tmp_path.rglob("*.toml")}
    objects = chart.objects(FAST, {"containerd": {"hostsDir": str(tmp_path / "certs.d")}})
    bare = ["setpriv", "--bounding-set=-all", "--inh-caps=-all", "--no-new-privs", *STAFETT]
    for workload, files in (("DaemonSet/stafett-host", 4), ("DaemonSet/stafett-cleanup", 1)):
        done = subprocess.run(
            [*bare, *container(objects, f"{workload}/configure")["args"]], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        assert len(list(tmp_path.rglob("hosts.toml"))) == files
    assert {path: path.read_text() for path in tmp_path.rglob("*") if path.is_file()} == before


def test_certificates_of_the_chart_name_who_is_dialled_and_are_of_one_authority(chart: Chart) -> None:
    from cryptography import x509

    objects: list[Object] = chart.objects({"tls": {"days": 7}})
    secrets = {
        item["metadata"]["name"]: {key: base64.b64decode(text) for key, text in item["data"].items()}
        for item in objects
        if item["kind"] == "Secret"
    }
    authority = x509.load_pem_x509_certificate(secrets["stafett-authority"]["tls.crt"])
    peer_name = environment(container(objects, NODE))["STAFETT_NODE_TLS_PEER_NAME"]
    for part in ("tracker", "node", "redis"):
        secret = secrets[f"stafett-{part}-tls"]
        assert secret["ca.crt"] == secrets["stafett-authority"]["tls.crt"]
        certificate = x509.load_pem_x509_certificate(secret["tls.crt"])
        certificate.verify_directly_issued_by(authority)
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        assert {peer_name, f"stafett-{part}.stafett.svc"} <= set(names.get_values_for_type(x509.DNSName))
        assert (certificate.not_valid_after_utc - certificate.not_valid_before_utc).days == 7

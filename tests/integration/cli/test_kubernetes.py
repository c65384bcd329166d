from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from stafett.cli.app import app
from stafett.cli.kubernetes import api as kubernetes_api
from stafett.cli.kubernetes import cleanup
from stafett.cli.kubernetes.api import ApiFailed, own_cluster
from stafett.cli.kubernetes.taint import gateway_answers, remove_taint
from stafett.common.settings import load
from stafett.common.topology import Topology
from stafett.gateway.settings import GatewaySettings
from stafett.node.settings import NodeSettings
from tests.integration.cli.kube_api import FakeApi

NODE = "/api/v1/nodes/n1"
CLEANUP = "/apis/apps/v1/namespaces/ns/daemonsets/cleanup"
OURS, OTHER = {"key": "stafett.io/not-ready", "effect": "NoSchedule"}, {"key": "other", "effect": "NoExecute"}


@pytest.fixture
def kube(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeApi]:
    (credentials := tmp_path / "serviceaccount").mkdir()
    with FakeApi(credentials) as server:
        monkeypatch.setattr(kubernetes_api, "CREDENTIALS", credentials)
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", str(server.port))
        yield server


def node(labels: dict[str, str] | None = None, *taints: dict[str, str]) -> dict[str, Any]:
    return {"metadata": {"labels": labels, "resourceVersion": "7"}, "spec": {"taints": list(taints)}}


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["kubernetes", *words])


def test_a_host_s_place_is_read_from_its_node_and_taken_over_by_its_parts(
    kube: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kube.objects[NODE] = node({"topology.kubernetes.io/zone": "z1", "topology.kubernetes.io/region": "eu", "r": "r7"})
    (folder := tmp_path / "settings").mkdir()
    ended = run("topology", "--node", "n1", "--rack-label", "r", "--to", str(folder))
    assert ended.exit_code == 0, ended.output
    monkeypatch.setenv("STAFETT_SETTINGS_DIR", str(folder))
    assert load(NodeSettings, [], "stafett node").topology == Topology("eu", "z1", "r7")
    assert load(GatewaySettings, [], "stafett gateway").topology == Topology("eu", "z1", "r7")


def test_a_label_that_has_gone_is_forgotten(kube: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STAFETT_SETTINGS_DIR", str(tmp_path))
    for labels in ({"topology.kubernetes.io/rack": "r1"}, None):
        kube.objects[NODE] = node(labels)
        assert run("topology", "--node", "n1", "--to", str(tmp_path)).exit_code == 0
    assert load(NodeSettings, [], "stafett node").topology == Topology()


@pytest.mark.parametrize("fault", ["unknown node", "token", "authority", "nobody listens", "no pod"])
def test_what_the_api_server_does_not_tell_is_said(
    kube: FakeApi, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    credentials = tmp_path / "serviceaccount"
    if fault == "token":
        (credentials / "token").write_text("old")
    elif fault == "authority":
        (other := tmp_path / "other").mkdir()
        with FakeApi(other):
            (credentials / "ca.crt").write_bytes((other / "ca.crt").read_bytes())
    elif fault == "nobody listens":
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", "1")
    elif fault == "no pod":
        monkeypatch.delenv("KUBERNETES_SERVICE_HOST")
    ended = run("topology", "--node", "n1", "--to", str(tmp_path))
    said = {"unknown node": "says 404", "token": "says 401", "no pod": "KUBERNETES_SERVICE_HOST"}
    assert ended.exit_code == 1
    assert said.get(fault, "does not answer") in ended.output
    assert not list(tmp_path.glob("STAFETT_*"))


def test_only_the_start_up_taint_goes(kube: FakeApi) -> None:
    kube.objects[NODE] = node({}, OURS, OTHER)
    with own_cluster() as api:
        assert remove_taint(api, "n1", OURS["key"])
        assert kube.objects[NODE]["spec"]["taints"] == [OTHER]
        assert not remove_taint(api, "n1", OURS["key"])
    assert len(kube.patches) == 1


def test_a_taint_that_somebody_else_puts_on_meanwhile_stays(kube: FakeApi) -> None:
    kube.objects[NODE] = node({}, OURS)

    def meddle() -> None:
        kube.objects[NODE] = node({}, OURS, OTHER)
        kube.objects[NODE]["metadata"]["resourceVersion"] = "8"

    kube.meddle = meddle
    with own_cluster() as api:
        assert remove_taint(api, "n1", OURS["key"])
    assert kube.objects[NODE]["spec"]["taints"] == [OTHER]


class Gateway:
    """Answers /readyz as it is told to."""

    def __init__(self) -> None:
        self.ready = False
        gateway = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                self.send_response(200 if gateway.ready and self.path == "/readyz" else 503)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                """Keep quiet."""

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"


@pytest.fixture
def gateway() -> Iterator[Gateway]:
    made = Gateway()
    threading.Thread(target=made.server.serve_forever, args=(0.05,)).start()
    yield made
    made.server.shutdown()
    made.server.server_close()


def test_the_taint_stays_until_the_gateway_answers_and_sigterm_ends_the_watch(
    kube: FakeApi, gateway: Gateway, tmp_path: Path
) -> None:
    kube.objects[NODE] = node({}, OURS, OTHER)
    assert not gateway_answers(gateway.url)
    assert not gateway_answers("http://127.0.0.1:1")
    program = (
        "from pathlib import Path; from stafett.cli.kubernetes import api, taint; taint.RETRY_SECONDS = 0.05; "
        f"api.CREDENTIALS = Path({str(tmp_path / 'serviceaccount')!r}); "
        f"taint.keep_untainted('n1', {OURS['key']!r}, {gateway.url!r})"
    )
    watch = subprocess.Popen([sys.executable, "-c", program], env=os.environ, stdout=subprocess.PIPE, text=True)
    try:
        threading.Event().wait(1.0)
        assert not kube.patches
        kube.refuses = 2
        gateway.ready = True
        assert watch.stdout
        assert watch.stdout.readline() == f"took {OURS['key']} off n1\n"
        assert kube.objects[NODE]["spec"]["taints"] == [OTHER]
        watch.send_signal(signal.SIGTERM)
        assert watch.wait(10) == 0
    finally:
        watch.kill()
        watch.communicate()


def daemonset(ready: int, wanted: int, generation: int = 2, observed: int = 2) -> dict[str, Any]:
    status = {"numberReady": ready, "desiredNumberScheduled": wanted, "observedGeneration": observed}
    return {"metadata": {"generation": generation}, "status": status}


@pytest.mark.parametrize(("found", "code"), [(daemonset(3, 3), 0), (daemonset(0, 0), 0), (daemonset(2, 3), 1)])
def test_the_clean_up_is_done_when_every_host_is(kube: FakeApi, found: dict[str, Any], code: int) -> None:
    kube.objects[CLEANUP] = found
    ended = run("await-daemonset", "cleanup", "--namespace", "ns", "--timeout-seconds", "0")
    assert ended.exit_code == code
    assert ("gave up" in ended.output) is bool(code)


@pytest.mark.parametrize("found", [daemonset(0, 0, observed=1), {"metadata": {"generation": 1}}])
def test_a_daemonset_that_its_controller_has_not_seen_is_not_done(kube: FakeApi, found: dict[str, Any]) -> None:
    kube.objects[CLEANUP] = found
    assert run("await-daemonset", "cleanup", "--namespace", "ns", "--timeout-seconds", "0").exit_code == 1


def test_an_api_server_that_is_away_for_a_moment_is_waited_for(kube: FakeApi, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleanup, "POLL_SECONDS", 0.01)
    kube.objects[CLEANUP] = daemonset(1, 1)
    kube.refuses = 3
    ended = run("await-daemonset", "cleanup", "--namespace", "ns")
    assert ended.exit_code == 0
    assert "says 503" in ended.output
    assert "1 of 1 hosts done" in ended.output


def test_a_pod_without_its_token_is_told_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "::1")
    with pytest.raises(ApiFailed, match="service account"), own_cluster(tmp_path):
        pass

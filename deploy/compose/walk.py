"""Plays with the cluster of docker-compose.yml and checks what it sees: `make compose-demo`.

Starts what is not running, pulls an image on one host after the other, kills the host that the third one is pulling
from, and starts it again. Ends with 1 at the first thing that is not as promised. Needs nothing but Python and
docker compose 2 or docker-compose 1.29. Each run loads images of its own, so that it can be run again.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

START_SECONDS = 300.0
PATIENCE_SECONDS = 60.0
INGESTS = "/var/lib/containerd/io.containerd.content.v1.content/ingest"
METRICS = "import sys, urllib.request as u; print(u.urlopen(f'http://127.0.0.1:{sys.argv[1]}/metrics').read().decode())"
GATEWAY_METRICS, NODE_METRICS = "7466", "7465"
PARTS = {"stafett-gateway", "stafett-tracker", "stafett-node"}
BLOB = re.compile(r'"GET (/v2/\S+/blobs/sha256:\S+) HTTP/1.1" 2\d\d')


class Unexpected(Exception):
    """Something is not as promised."""


@dataclass(frozen=True)
class Image:
    """An image that the registry has."""

    name: str
    repository: str
    size_bytes: int


class Cluster:
    """The services of docker-compose.yml. Compose starts them; then docker itself is asked, which is much cheaper."""

    def __init__(self) -> None:
        self._compose = compose_command()
        self._containers: dict[str, str] = {}

    def run(self, *arguments: str) -> str:
        """Run docker compose with arguments; return what it prints. Raises Unexpected if it fails."""
        return run(*self._compose, *arguments)

    def start(self) -> None:
        """Start what is not running, and wait until all is healthy. Raises Unexpected."""
        self.run("up", "-d")
        labels = {each["Id"]: each["Config"]["Labels"] for each in inspect(self.run("ps", "-a", "-q").split())}
        self._containers = {
            own["com.docker.compose.service"]: container
            for container, own in labels.items()
            if own["com.docker.compose.oneoff"] == "False"
        }
        wait_until(lambda: not self._unhealthy(), lambda: f"not healthy: {self._unhealthy()}", START_SECONDS)

    def _unhealthy(self) -> list[str]:
        """Services that have a health check and do not pass it, and those that have ended badly."""
        found = zip(self._containers, inspect(list(self._containers.values())), strict=True)
        return [service for service, container in found if not is_well(container["State"])]

    def ids(self, *services: str) -> list[str]:
        """Containers of services."""
        return [self._containers[service] for service in services]

    def runs(self, service: str) -> bool:
        """Tell whether a service has been started."""
        return service in self._containers

    def inside(self, service: str, *command: str) -> str:
        """Run a program in a service's container."""
        return run("docker", "exec", self._containers[service], *command)

    def pull_command(self, host: int, image: Image) -> list[str]:
        """What pulls an image on a host as Kubernetes does, by the mirror files."""
        command = ["ctr", "images", "pull", "--hosts-dir", "/etc/containerd/certs.d", image.name]
        return ["docker", "exec", self._containers[f"host-{host}"], *command]

    def pull(self, host: int, image: Image) -> None:
        """Pull an image on a host, to the end."""
        run(*self.pull_command(host, image))

    def load(self, name: str, *sizes_mib: int) -> Image:
        """Put an image of random bytes into the registry."""
        printed = self.run("run", "--rm", "-T", "sample", name, *map(str, sizes_mib)).split()
        return Image(printed[-2], name.partition(":")[0], int(printed[-1]))

    def upstream_blobs(self, image: Image) -> list[str]:
        """Blobs of an image's repository that the registry has served so far, by its access log."""
        log = run("docker", "logs", *self.ids("registry"), errors_too=True)
        return [path for path in BLOB.findall(log) if path.startswith(f"/v2/{image.repository}/")]

    def nodes(self) -> dict[str, dict[str, object]]:
        """What the trackers believe of each node."""
        listed = json.loads(self.inside("tracker-2", "stafett", "nodes", "--json"))
        return {node["id"]: node for node in listed["nodes"]}

    def copies(self, image: Image) -> list[str]:
        """Hosts that have all of an image, by the trackers."""
        listed = json.loads(self.inside("tracker-2", "stafett", "images", "--json"))["images"]
        return [node for each in listed if each["name"] == image.name for node in each["complete_node_ids"]]

    def counted(self, host: int, metric: str, label: str = "", port: str = GATEWAY_METRICS) -> int:
        """Sum a metric of a host's gateway (or node) over the series that have a label, e.g. 'source="peer_zone"'."""
        lines = self.inside(f"gateway-{host}", "python", "-c", METRICS, port).splitlines()
        return int(sum(float(line.split()[-1]) for line in lines if line.startswith(metric) and label in line))


def main() -> None:
    """Walk through all steps; the exit code is 1 if one fails."""
    try:
        walk(Cluster())
    except Unexpected as error:
        print(f"  FAILED  {error}", file=sys.stderr)
        raise SystemExit(1) from error


def walk(cluster: Cluster) -> None:
    """Take all steps. Raises Unexpected."""
    step("start", "what is not running, and wait until all is healthy")
    cluster.start()
    wait_until(lambda: ready(cluster) == ["host-1", "host-2", "host-3"], lambda: f"only {ready(cluster)} are ready")
    note("three hosts are ready")

    run = int(time.time())
    small, large = cluster.load(f"walk/small-{run}:1", 1, 4, 16), cluster.load(f"walk/large-{run}:1", 64)
    pull_on_two_hosts(cluster, small)
    show_trace(cluster)
    dead = kill_the_source(cluster, large)

    step("mend", f"{dead} comes back")
    cluster.start()
    wait_until(lambda: dead in ready(cluster), lambda: f"{dead} did not come back")
    note("all is as it was: docker compose down -v takes it away")


def pull_on_two_hosts(cluster: Cluster, image: Image) -> None:
    """Pull an image on host 1, then on host 2, which must get all of it from host 1."""
    step("pull", f"{image.name} on host 1, which is the first to have it")
    cluster.pull(1, image)
    fetched = cluster.upstream_blobs(image)
    expect(len(fetched) == 4, f"upstream was asked for {len(fetched)} blobs, not for configuration and three layers")
    wait_until(lambda: cluster.copies(image) == ["host-1"], lambda: f"complete copies: {cluster.copies(image)}")
    note("upstream served each of its 4 blobs once")

    step("pull", "the same on host 2")
    before = cluster.counted(2, "stafett_gateway_bytes_total", "peer_")
    cluster.pull(2, image)
    expect(cluster.upstream_blobs(image) == fetched, "upstream was asked for blobs again")
    from_peers = cluster.counted(2, "stafett_gateway_bytes_total", "peer_") - before
    expect(from_peers == image.size_bytes, f"{from_peers} of {image.size_bytes} bytes came from peers")
    note(f"all {from_peers} bytes came from host 1, none from upstream")


def kill_the_source(cluster: Cluster, image: Image) -> str:
    """Kill the host that host 3 pulls from, which is host 1 as a rule: the pull must go on from the other one."""
    step("kill", f"the host that host 3 gets {image.name} from")
    cluster.pull(1, image)
    cluster.pull(2, image)
    wait_until(lambda: sorted(cluster.copies(image)) == ["host-1", "host-2"], lambda: "host 2 does not have all of it")
    fetched, failovers = cluster.upstream_blobs(image), cluster.counted(3, "stafett_gateway_failovers_total")
    pulling = subprocess.Popen(cluster.pull_command(3, image), stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        wait_until(lambda: received_kib(cluster) > 4 * 1024, lambda: "host 3 receives nothing")
        source = next((n for n in (1, 2) if cluster.counted(n, "stafett_node_streams ", port=NODE_METRICS)), 0)
        expect(source > 0, "neither host 1 nor host 2 sends it")
        run("docker", "kill", *cluster.ids(f"host-{source}", f"node-{source}", f"gateway-{source}"))
        expect(received_kib(cluster) > 0, f"host {source} died after the pull: lower HOST_UPLOAD_BYTES_PER_SECOND")
        printed, _ = pulling.communicate(timeout=120)
    finally:
        pulling.kill()
    expect(pulling.returncode == 0, f"the pull on host 3 failed:\n{printed[-2000:].decode()}")
    expect(cluster.upstream_blobs(image) == fetched, "upstream was asked for what a host has")
    moved = cluster.counted(3, "stafett_gateway_failovers_total") - failovers
    expect(moved > 0, f"host 3 did not notice the end of host {source}")
    dead = f"host-{source}"
    wait_until(lambda: dead not in ready(cluster), lambda: f"{dead} is still called ready")
    note(f"{dead} was killed in the middle, and the pull went on from the other host, without upstream")
    return dead


def show_trace(cluster: Cluster) -> None:
    """Find a trace of the pulls in Jaeger, if that runs, with a span of each part."""
    if not cluster.runs("jaeger"):
        note("no Jaeger runs: COMPOSE_PROFILES=core,observability make compose-demo looks for the trace, too")
        return
    step("trace", "of a pull, in Jaeger")
    address = "http://" + cluster.run("port", "jaeger", "16686").strip()
    wait_until(lambda: bool(complete_trace(address)), lambda: "no trace has spans of gateway, tracker and node")
    note(f"{address}/trace/{complete_trace(address)}")


def complete_trace(address: str) -> str:
    """Id of a trace that all three parts have spans in; empty if there is none yet."""
    for trace in ask(f"{address}/api/traces?service=stafett-gateway&limit=100"):
        if {process["serviceName"] for process in trace["processes"].values()} >= PARTS:
            return str(trace["traceID"])
    return ""


def ask(url: str) -> Any:
    """Fetch a JSON document's `data`."""
    with urllib.request.urlopen(url, timeout=5) as answer:
        return json.load(answer)["data"]


def ready(cluster: Cluster) -> list[str]:
    """Names of the nodes that take new streams."""
    return sorted(name for name, node in cluster.nodes().items() if node["state"] == "ready")


def received_kib(cluster: Cluster) -> int:
    """What host 3 has of blobs that it is still receiving."""
    command = f"cat {INGESTS}/*/data 2>/dev/null | wc -c"  # a download may end meanwhile
    return int(cluster.inside("host-3", "sh", "-c", command)) // 1024


def compose_command() -> list[str]:
    """Version 2 where it is, else docker-compose."""
    found = shutil.which("docker") and subprocess.run(
        ["docker", "compose", "version"], capture_output=True, check=False
    )
    return ["docker", "compose"] if found and found.returncode == 0 else ["docker-compose"]


def run(*command: str, errors_too: bool = False) -> str:
    """Run a program; return what it prints. Raises Unexpected if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    expect(done.returncode == 0, f"{shlex.join(command)}:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    return done.stdout + done.stderr if errors_too else done.stdout


def inspect(ids: list[str]) -> list[dict[str, Any]]:
    """What docker knows of containers."""
    found: list[dict[str, Any]] = json.loads(run("docker", "inspect", *ids))
    return found


def is_well(state: dict[str, Any]) -> bool:
    """Tell whether a container is healthy, or has done what it was for."""
    if state["Status"] != "running":
        return bool(state["Status"] == "exited" and state["ExitCode"] == 0)
    return bool(state.get("Health", {"Status": "healthy"})["Status"] == "healthy")


def wait_until(condition: Callable[[], bool], problem: Callable[[], str], seconds: float = PATIENCE_SECONDS) -> None:
    """Look again and again until the condition holds. Raises Unexpected with the problem if it does not in time."""
    deadline = time.monotonic() + seconds
    while not condition():
        expect(time.monotonic() < deadline, problem())
        time.sleep(1.0)


def expect(fact: bool, otherwise: str) -> None:
    """Go on if it is so. Raises Unexpected."""
    if not fact:
        raise Unexpected(otherwise)


def step(name: str, what: str) -> None:
    """Say what is done next."""
    print(f"\n{name:<6}  {what}", flush=True)


def note(fact: str) -> None:
    """Say what has been seen."""
    print(f"    ok  {fact}", flush=True)


if __name__ == "__main__":
    main()

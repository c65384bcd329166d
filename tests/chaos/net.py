"""Hosts in network namespaces of their own, whose packets can be dropped or slowed. Needs root, `ip`, `tc` and `nft`.

    with Network.open() as network:
        place = network.add()         # for LocalCluster.add_host(..., place=place)
        network.cut_off(place)        # no packet in, no packet out, and nobody is told
        network.slow(place, 1e6)      # it sends at most 1 MB/s
        network.heal()

The bridge is in a namespace too, so that no firewall of this machine touches its frames. This machine has the address
`network.address` on it, for trackers and the upstream registry.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from stafett.cli.local_cluster.parts import run
from stafett.cli.local_cluster.processes import Place
from stafett.common.errors import StartupFailed

NAMESPACES = Path("/run/netns")
_NETWORKS_MAX = 250
_CLONE_NEWNET = 0x40000000
_CUT = """
table inet stafett_cut {
  chain incoming { type filter hook input priority 0; iifname "eth0" drop; }
  chain outgoing { type filter hook output priority 0; oifname "eth0" drop; }
}
"""


@dataclass
class Network:
    """A bridge with this machine and any number of places on it. Parallel runs get networks of their own."""

    number: int
    places: list[Place] = field(default_factory=list)

    @classmethod
    @contextlib.contextmanager
    def open(cls) -> Iterator[Network]:
        """Make a network; leaving removes it with all its places.

        Raises:
            StartupFailed: if the system refuses.
        """
        network = cls(_take_number())
        try:
            network._lay_bridge()
            yield network
        finally:
            network._remove()

    @property
    def address(self) -> str:
        """This machine's address on it."""
        return f"10.213.{self.number}.1"

    def add(self) -> Place:
        """Make a namespace with an interface on the bridge."""
        index = len(self.places) + 2
        place = Place(f"10.213.{self.number}.{index}", f"{self._bridge}-{index}")
        _ip(f"netns add {place.namespace}")
        self.places.append(place)
        _ip(f"-n {self._bridge} link add port{index} type veth peer name eth0 netns {place.namespace}")
        _ip(f"-n {self._bridge} link set port{index} master bridge up")
        _ip(f"-n {place.namespace} link set lo up")
        _ip(f"-n {place.namespace} address add {place.address}/24 dev eth0")
        _ip(f"-n {place.namespace} link set eth0 up")
        return place

    def cut_off(self, place: Place) -> None:
        """Drop all packets between a place and the others, silently and both ways; its own loopback goes on."""
        _run([*place.prefix, "nft", _CUT])

    def slow(self, place: Place, bytes_per_second: float) -> None:
        """Let a place send at most so much."""
        rate = f"{round(bytes_per_second * 8)}bit"
        bucket = f"tbf rate {rate} burst 64kb latency 100ms"
        _run([*place.prefix, *f"tc qdisc replace dev eth0 root {bucket}".split()])

    def limit(self, place: Place, bytes_per_second: float) -> None:
        """Give a place a link of that speed, both ways."""
        bucket = f"root tbf rate {round(bytes_per_second * 8)}bit burst 32kb latency 50ms"
        _run([*place.prefix, *f"tc qdisc replace dev eth0 {bucket}".split()])
        # BBR takes the delay of acknowledgements behind data for a slow link when both ways are full, reno does not.
        _run([*place.prefix, "sysctl", "-qw", "net.ipv4.tcp_congestion_control=reno"])
        port = f"port{self.places.index(place) + 2}"
        _run(f"ip netns exec {self._bridge} tc qdisc replace dev {port} {bucket}".split())

    def heal(self) -> None:
        """Undo every cut and every slowness."""
        for place in self.places:
            run([*place.prefix, "nft", "delete table inet stafett_cut"])
            run([*place.prefix, "tc", "qdisc", "delete", "dev", "eth0", "root"])

    def sent_bytes(self, place: Place) -> int:
        """Bytes that a place has sent to the others."""
        shown = run([*place.prefix, "cat", "/proc/net/dev"]).stdout
        (counters,) = (line.split(":")[1].split() for line in shown.splitlines() if line.strip().startswith("eth0:"))
        return int(counters[8])

    @property
    def _bridge(self) -> str:
        return f"stafett{self.number}"

    def _lay_bridge(self) -> None:
        _ip(f"-n {self._bridge} link add bridge type bridge")
        _ip(f"-n {self._bridge} link set bridge up")
        _ip(f"link add {self._bridge} type veth peer name here netns {self._bridge}")
        _ip(f"-n {self._bridge} link set here master bridge up")
        _ip(f"address add {self.address}/24 dev {self._bridge}")
        _ip(f"link set {self._bridge} up")

    def _remove(self) -> None:
        run(["ip", "link", "delete", self._bridge])
        for namespace in (*(place.namespace for place in self.places), self._bridge):
            run(["ip", "netns", "delete", namespace])


def connect(place: Place, port: int, timeout_seconds: float = 10.0) -> socket.socket:
    """Open a TCP connection to a place's loopback, from inside."""
    opened: list[socket.socket] = []

    def dial() -> None:
        opened.append(socket.create_connection(("127.0.0.1", port), timeout_seconds))

    if place.namespace:
        _inside(place, dial)
    else:
        dial()
    return opened[0]


def _inside(place: Place, work: Callable[[], None]) -> None:
    """Run work in a thread that is in the place's namespace: a socket stays in the one it was made in."""
    failures: list[BaseException] = []

    def enter_and_work() -> None:
        try:
            with (NAMESPACES / place.namespace).open() as namespace:
                if ctypes.CDLL(None, use_errno=True).setns(namespace.fileno(), _CLONE_NEWNET):
                    raise OSError(ctypes.get_errno(), "setns failed")
            work()
        except BaseException as error:  # noqa: BLE001 - handed to the caller's thread
            failures.append(error)

    thread = threading.Thread(target=enter_and_work)
    thread.start()
    thread.join()
    if failures:
        raise failures[0]


def _take_number() -> int:
    """Reserve a number by making its namespace, which succeeds only once."""
    first = os.getpid() % _NETWORKS_MAX
    numbers: list[int] = [*range(first, _NETWORKS_MAX), *range(first)]
    for number in numbers:
        made = run(["ip", "netns", "add", f"stafett{number}"])
        if made.returncode == 0:
            return number
        if "File exists" not in made.stderr:
            raise StartupFailed(f"no network namespace: {made.stderr.strip()}")
    raise StartupFailed("no free network number")


def _ip(arguments: str) -> None:
    _run(["ip", *arguments.split()])


def _run(command: Sequence[str]) -> None:
    done = run(command)
    if done.returncode != 0:
        raise StartupFailed(f"{' '.join(command)}: {done.stderr.strip()}")

"""Everything on every host is restarted in turn, gracefully, while clients pull without pause: no pull fails."""

from __future__ import annotations

import signal
import time
from statistics import median

import httpx2
import pytest

from stafett.api.v1 import types_pb2
from stafett.cli.local_cluster.cluster import Host
from stafett.cli.local_cluster.processes import wait_until
from tests.chaos.pullers import Pulling, Tally
from tests.chaos.soak_bed import SoakBed, ended, events
from tests.chaos.watchers import Watchers

PUSHED_SECONDS = 0.5
SLOWEST_PUSH_SECONDS = 2.0
"""Half a second is promised: most keep it, and none takes four times as long, also on a busy machine."""
GRACE_SECONDS = 20.0
PULLS_BETWEEN = 4
READY, DRAINING = "NODE_STATE_READY", "NODE_STATE_DRAINING"


def failovers(host: Host) -> dict[str, float]:
    """Holders that a gateway has left, by reason."""
    text = httpx2.get(f"{host.gateway_url}/metrics", trust_env=False).text
    lines = [line for line in text.splitlines() if line.startswith("stafett_gateway_failovers_total{")]
    return {line.partition('reason="')[2].partition('"')[0]: float(line.rpartition(" ")[2]) for line in lines}


def restart(bed: SoakBed, host: Host, watchers: Watchers) -> float:
    """Restart a node by SIGTERM; return after how long its draining was known to all trackers."""
    old = host.node
    assert old is not None
    asked_at, trackers = watchers.elapsed(), {tracker.port for tracker in bed.cluster.trackers}
    old.signal(signal.SIGTERM)

    def told() -> dict[int, float]:
        return {
            seen.tracker: seen.at
            for seen in reversed(list(watchers.seen))
            if seen.node == host.name and seen.state == DRAINING and seen.at > asked_at
        }

    wait_until(lambda: set(told()) == trackers, f"{host.name} draining at all trackers", GRACE_SECONDS)
    assert ended(old) == 0
    assert "drain_cut_short" not in events(old), "streams that were running could finish"
    bed.start_node(host)
    bed.wait_ready([host.name])
    return max(told().values()) - asked_at


@pytest.mark.timeout(300)
def test_no_pull_fails_while_all_nodes_are_restarted_one_after_the_other() -> None:
    tally = Tally()
    with SoakBed(holder_count=3, through_proxies=False) as bed:
        with (
            Watchers([tracker.port for tracker in bed.cluster.trackers]) as watchers,
            Pulling([*bed.http_pullers(tally), *bed.containerd_pullers(tally)], bed.images, tally, seed=0) as clients,
        ):
            clients.wait_pulls(PULLS_BETWEEN)
            told_after: dict[str, float] = {}
            for host in bed.cluster.hosts:
                told_after[host.name] = restart(bed, host, watchers)
                bed.wait_held()
                clients.wait_pulls(PULLS_BETWEEN)
        left = {host.name: failovers(host) for host in bed.clients}
        print(f"\n{tally}\ndraining known everywhere after {told_after}\nholders left: {left}")
        assert not tally.failures, "\n".join(map(str, tally.failures))
        assert median(told_after.values()) < PUSHED_SECONDS, told_after
        assert max(told_after.values()) < SLOWEST_PUSH_SECONDS, told_after
        stalls = watchers.other_than(
            types_pb2.NODE_STATE_READY, types_pb2.NODE_STATE_DRAINING, types_pb2.NODE_STATE_DOWN
        )
        assert not stalls, "a node that leaves politely is never suspected"
        assert not any(reasons["stalled"] for reasons in left.values()), left


@pytest.mark.timeout(300)
def test_no_response_is_cut_while_gateways_are_restarted_one_after_the_other() -> None:
    """A client whose gateway is not there asks its next host, as containerd does; what has begun is never cut."""
    tally = Tally()
    with SoakBed(with_containerd=False, through_proxies=False) as bed:
        with Pulling(bed.http_pullers(tally, passes_over=True), bed.images, tally, seed=0) as clients:
            clients.wait_pulls(PULLS_BETWEEN)
            for host in bed.clients * 2:
                assert host.gateway is not None
                old = host.gateway
                began = time.monotonic()
                assert old.stop(timeout_seconds=GRACE_SECONDS + 5) == 0
                print(f"\n{host.name}: gone after {time.monotonic() - began:.1f} s")
                bed.start_gateway(host)
                clients.wait_pulls(PULLS_BETWEEN)
        print(tally)
        assert not tally.failures, "\n".join(map(str, tally.failures))
        assert tally.passed_over > 0, "the gateways really were away"

"""What gateways report moves a node's score, for every replica, and only under the session that it was met in."""

from __future__ import annotations

import grpc
import pytest

from stafett.api.v1 import tracker_pb2
from stafett.common.digest import Digest
from tests.integration.tracker.cluster import RunningTracker, Session, tracker
from tests.integration.valkey import ValkeyServer

D = Digest.of(b"a layer")


async def report(at: RunningTracker, session: Session, **outcome: float) -> None:
    met = tracker_pb2.PeerOutcomes(node_id=session.node_id, epoch=session.epoch, **outcome)  # type: ignore[arg-type]
    await at.stub.ReportOutcomes(tracker_pb2.ReportOutcomesRequest(reporter="g1", outcomes=[met]), timeout=5)


@pytest.fixture(autouse=True)
def looks_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """Replicas look every two seconds; here whenever they are asked."""
    monkeypatch.setattr("stafett.tracker.health_view.FRESH_SECONDS", 0.0)


async def scores(at: RunningTracker) -> dict[str, dict[str, float]]:
    nodes = await at.nodes()
    return {
        node.id: {**node.score.components, "total": node.score.total}
        for node in nodes.values()
        if node.score is not None
    }


async def test_failures_and_slowness_lower_the_score_at_every_replica(valkey: ValkeyServer) -> None:
    async with tracker(valkey.url, lease_ttl_seconds=20) as one, tracker(valkey.url, lease_ttl_seconds=20) as other:
        await one.ready()
        await other.ready()
        good, bad, slow = [Session(one, name) for name in ("good", "bad", "slow")]
        for session in (good, bad, slow):
            await session.register()
            await session.announce(D)
            await session.beat()
        await report(one, good, succeeded=20, first_byte_seconds=0.01, seconds_per_mib=0.02)
        await report(other, bad, stalled=10, refused=10)
        await report(one, slow, first_byte_seconds=0.01, seconds_per_mib=0.4)  # left as slow: no success, no failure
        for session in (good, bad, slow):
            await session.beat()
        for at in (one, other):
            seen = await scores(at)
            assert seen["good"]["outcomes"] > 0.99
            assert seen["slow"]["outcomes"] == 1.0
            assert seen["bad"]["outcomes"] < 0.2
            assert seen["slow"]["speed"] < 0.6 < seen["good"]["speed"]
            assert seen["bad"]["total"] < seen["slow"]["total"] < seen["good"]["total"]
        holders, _ = await other.locate(D)
        by_name = {holder.node.id: holder.node for holder in holders}
        assert by_name["slow"].score is not None
        assert by_name["slow"].score.seconds_per_mib == pytest.approx(0.4)
        assert by_name["good"].health is not None


async def test_a_full_node_is_loaded_a_late_one_is_slow_and_one_that_had_a_part_in_wrong_bytes_has_failed(
    valkey: ValkeyServer,
) -> None:
    async with tracker(valkey.url, lease_ttl_seconds=20) as at:
        await at.ready()
        usual, full, late, wrong = [Session(at, name) for name in ("usual", "full", "late", "wrong")]
        for session in (usual, full, late, wrong):
            await session.register()
            await session.beat()
        met = {"succeeded": 20, "first_byte_seconds": 0.01, "seconds_per_mib": 0.02}
        await report(at, usual, **met)
        await report(at, full, **met, overloaded=20)
        await report(at, late, **{**met, "first_byte_seconds": 0.5})
        await report(at, wrong, **met, corrupt_digests=[str(D)])  # type: ignore[arg-type]
        seen = await scores(at)
        assert seen["full"]["load"] < 0.6 < seen["usual"]["load"]
        assert seen["full"]["outcomes"] > 0.99, "to be full is no failure"
        assert seen["late"]["speed"] < 0.6 < seen["usual"]["speed"]
        assert seen["wrong"]["outcomes"] < 0.97 < seen["usual"]["outcomes"]
        assert seen["usual"]["total"] > max(seen[name]["total"] for name in ("full", "late", "wrong"))


async def test_what_was_met_under_an_older_session_is_dropped(valkey: ValkeyServer) -> None:
    async with tracker(valkey.url, lease_ttl_seconds=20) as at:
        await at.ready()
        old = Session(at, "n1")
        await old.register()
        new = Session(at, "n1", incarnation=2)
        await new.register()
        await report(at, old, stalled=50)
        assert (await scores(at))["n1"]["outcomes"] == 1.0


async def test_impossible_seconds_are_refused(valkey: ValkeyServer) -> None:
    async with tracker(valkey.url, lease_ttl_seconds=20) as at:
        await at.ready()
        session = Session(at, "n1")
        await session.register()
        for nonsense in (-1.0, float("nan"), float("inf")):
            with pytest.raises(grpc.aio.AioRpcError) as refused:
                await report(at, session, succeeded=1, seconds_per_mib=nonsense)
            assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT

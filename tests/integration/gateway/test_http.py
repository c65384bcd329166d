"""What clients of a real gateway get, over real HTTP and gRPC."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator
from pathlib import Path

import httpx2
import pytest

from stafett.common import oci
from stafett.common.digest import Digest
from tests.integration.gateway.bed import GatewayBed, Peer, broken_after, gateway_bed, whole

CONTENT = random.Random(1).randbytes(3_000_000)
D = Digest.of(CONTENT)
CONFIG = b"{}"
MANIFEST = json.dumps(
    {
        "schemaVersion": 2,
        "mediaType": oci.DOCKER_MANIFEST,
        "config": {"mediaType": oci.OCI_CONFIG, "digest": str(Digest.of(CONFIG)), "size": len(CONFIG)},
        "layers": [{"mediaType": oci.OCI_LAYER_GZIP, "digest": str(D), "size": len(CONTENT)}],
    }
).encode()
M = Digest.of(MANIFEST)
HITS = 'stafett_gateway_requests_total{kind="blobs",outcome="hit",source="peer_region"}'
BLOB = f"/v2/lib/app/blobs/{D}?ns=reg.test"


def blobs() -> dict[Digest, bytes]:
    return {D: CONTENT, M: MANIFEST, Digest.of(CONFIG): CONFIG}


@pytest.fixture
async def client() -> AsyncIterator[httpx2.AsyncClient]:
    async with httpx2.AsyncClient(trust_env=False, timeout=20) as http:
        yield http


async def metrics(client: httpx2.AsyncClient, bed: GatewayBed) -> dict[str, float]:
    text = (await client.get(f"{bed.url}/metrics")).text
    lines = [line.rpartition(" ") for line in text.splitlines() if not line.startswith("#")]
    return {name: float(value) for name, _, value in lines}


async def test_a_blob_comes_whole_in_parts_and_by_head(tmp_path: Path, client: httpx2.AsyncClient) -> None:
    async with gateway_bed(tmp_path, [Peer("n1", blobs())]) as bed:
        answer = await client.get(bed.url + BLOB)
        assert (answer.status_code, answer.content) == (200, CONTENT)
        assert answer.headers["Docker-Content-Digest"] == str(D)
        assert answer.headers["Content-Length"] == str(len(CONTENT))
        assert answer.headers["Accept-Ranges"] == "bytes"
        assert answer.headers["OCI-Namespace"] == "reg.test"
        assert (answer.headers["Stafett-Source"], answer.headers["Stafett-Node"]) == ("peer_region", "n1")
        assert "Content-Encoding" not in answer.headers
        head = await client.head(bed.url + BLOB)
        assert (head.status_code, head.headers["Content-Length"], head.content) == (200, str(len(CONTENT)), b"")
        part = await client.get(bed.url + BLOB, headers={"Range": "bytes=-10"})
        assert (part.status_code, part.content) == (206, CONTENT[-10:])
        assert part.headers["Content-Range"] == f"bytes {len(CONTENT) - 10}-{len(CONTENT) - 1}/{len(CONTENT)}"
        outside = await client.get(bed.url + BLOB, headers={"Range": f"bytes={len(CONTENT)}-"})
        assert outside.status_code == 416


async def test_a_manifest_comes_verified_and_its_blobs_are_located_in_one_call(
    tmp_path: Path, client: httpx2.AsyncClient
) -> None:
    lie = {**blobs(), M: MANIFEST.replace(b"2", b"3", 1)}
    async with gateway_bed(tmp_path, [Peer("liar", lie), Peer("n2", blobs())]) as bed:
        for _ in range(3):
            answer = await client.get(f"{bed.url}/v2/lib/app/manifests/{M}?ns=reg.test")
            assert (answer.status_code, answer.content) == (200, MANIFEST)
            assert answer.headers["Content-Type"] == oci.DOCKER_MANIFEST
        assert (str(Digest.of(CONFIG)), str(D)) in bed.tracker.located


async def test_a_broken_holder_is_not_noticed_when_another_has_the_rest(
    tmp_path: Path, client: httpx2.AsyncClient
) -> None:
    peers = [Peer("n1", blobs(), broken_after(1_000_000)), Peer("n2", blobs(), broken_after(1_000_000))]
    async with gateway_bed(tmp_path, [*peers, Peer("n3", blobs())]) as bed:
        for _ in range(4):
            answer = await client.get(bed.url + BLOB)
            assert (answer.status_code, Digest.of(answer.content)) == (200, D)
        assert (await metrics(client, bed))[HITS] == 4


async def test_an_answer_that_cannot_go_on_ends_with_fin_and_is_no_hit(
    tmp_path: Path, client: httpx2.AsyncClient
) -> None:
    peer = Peer("n1", blobs(), broken_after(1_000_000))
    async with gateway_bed(tmp_path, [peer]) as bed:
        reader, writer = await asyncio.open_connection("127.0.0.1", int(bed.url.rpartition(":")[2]))
        writer.write(f"GET {BLOB} HTTP/1.1\r\nHost: x\r\n\r\n".encode())
        received = await reader.read(-1)  # a reset would raise
        head, _, body = received.partition(b"\r\n\r\n")
        assert b"200 OK" in head
        assert body == CONTENT[:1_000_000]
        writer.close()
        counted = await metrics(client, bed)
        assert counted[HITS.replace("hit", "truncated")] == 1
        assert counted[HITS] == 0
        peer.serve = whole
        rest = await client.get(bed.url + BLOB, headers={"Range": "bytes=1000000-"})
        assert (rest.status_code, rest.content) == (206, CONTENT[1_000_000:])


async def test_a_client_that_hangs_up_ends_the_stream_at_the_peer(tmp_path: Path, client: httpx2.AsyncClient) -> None:
    big = random.Random(2).randbytes(30_000_000)
    peer = Peer("n1", {Digest.of(big): big})
    async with gateway_bed(tmp_path, [peer]) as bed:
        async with client.stream("GET", f"{bed.url}/v2/a/blobs/{Digest.of(big)}?ns=reg.test") as answer:
            await anext(answer.aiter_raw())
        async with asyncio.timeout(10):
            while peer.open_reads:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        counted = await metrics(client, bed)
        assert counted[HITS.replace("hit", "client_gone")] == 1
        assert not any(times for name, times in counted.items() if name.startswith("stafett_gateway_failovers_total"))


async def test_nobody_has_it_or_knows_it(tmp_path: Path, client: httpx2.AsyncClient) -> None:
    async with gateway_bed(tmp_path, []) as bed:
        answer = await client.get(bed.url + BLOB, headers={"User-Agent": "containerd/1.6.20"})
        assert answer.status_code == 404
        assert answer.json()["errors"][0]["code"] == "BLOB_UNKNOWN"
        async with asyncio.timeout(10):
            while str(D) not in bed.own.expected:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
        assert (await client.get(f"{bed.url}/readyz")).json()["ready"] is True


async def test_without_any_tracker_the_answer_is_404_and_the_gateway_stays_ready(
    tmp_path: Path, client: httpx2.AsyncClient
) -> None:
    async with gateway_bed(tmp_path, [], with_tracker=False) as bed:
        for _ in range(3):
            assert (await client.get(bed.url + BLOB)).status_code == 404
        ready = await client.get(f"{bed.url}/readyz")
        assert ready.json() == {**ready.json(), "ready": True, "tracker_reachable": False}


async def test_own_content_comes_from_the_own_host(tmp_path: Path, client: httpx2.AsyncClient) -> None:
    async with gateway_bed(tmp_path, [Peer("n1", blobs())]) as bed:
        bed.own.blobs = blobs()
        answer = await client.get(bed.url + BLOB, headers={"Range": "bytes=5-9"})
        assert (answer.status_code, answer.content) == (206, CONTENT[5:10])
        assert answer.headers["Stafett-Source"] == "local"
        assert (await client.get(f"{bed.url}/v2/lib/app/manifests/{M}")).headers["Stafett-Source"] == "local"


async def test_a_client_that_cannot_fall_back_gets_a_manifest_only_with_all_its_blobs(
    tmp_path: Path, client: httpx2.AsyncClient
) -> None:
    peer = Peer("n1", {M: MANIFEST, D: CONTENT})
    async with gateway_bed(tmp_path, [peer]) as bed:
        path = f"{bed.url}/v2/reg.test/lib/app/manifests/{M}"
        assert (await client.get(path)).status_code == 404
        assert (await client.get(f"{bed.url}/v2/lib/app/manifests/{M}?ns=reg.test")).status_code == 200
        peer.blobs[Digest.of(CONFIG)] = CONFIG
        await asyncio.sleep(0.6)
        assert (await client.get(path)).status_code == 200


async def test_tags_are_answered_by_peers_only_while_upstream_is_dead(
    tmp_path: Path, client: httpx2.AsyncClient
) -> None:
    async with gateway_bed(tmp_path, [Peer("n1", blobs())]) as bed:
        bed.tracker.tags["reg.test/lib/app:1"] = M
        path = "/v2/lib/app/manifests/1?ns=reg.test"
        assert (await client.get(bed.url + path)).status_code == 404, "upstream resolves tags"
        answer = await client.head(bed.tag_url + path)
        assert (answer.status_code, answer.headers["Docker-Content-Digest"]) == (200, str(M))
        assert int(answer.headers["Age"]) > 0
        assert (await client.get(f"{bed.tag_url}/v2/lib/app/manifests/2?ns=reg.test")).status_code == 404
        unauthorized = await asyncio.start_server(say_no, "127.0.0.1", bed.upstream_port)
        await asyncio.sleep(3.2)
        assert (await client.get(bed.tag_url + path)).status_code == 404, "a registry that says 401 lives"
        unauthorized.close()


async def say_no(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    await reader.readuntil(b"\r\n\r\n")
    writer.write(b"HTTP/1.1 401 Unauthorized\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
    writer.close()


async def test_with_tags_from_peers_the_mirror_port_resolves_too(tmp_path: Path, client: httpx2.AsyncClient) -> None:
    async with gateway_bed(tmp_path, [Peer("n1", blobs())], {"tags": "peers"}) as bed:
        bed.tracker.tags["reg.test/lib/app:1"] = M
        answer = await client.get(f"{bed.url}/v2/lib/app/manifests/1?ns=reg.test")
        assert (answer.status_code, answer.content) == (200, MANIFEST)


async def test_lists_say_what_is_served(tmp_path: Path, client: httpx2.AsyncClient) -> None:
    settings = {"allow": "reg.test/*", "deny": "reg.test/secret/*"}
    async with gateway_bed(tmp_path, [Peer("n1", blobs())], settings) as bed:
        assert (await client.get(bed.url + BLOB)).status_code == 200
        for path in (f"/v2/secret/app/blobs/{D}?ns=reg.test", f"/v2/lib/app/blobs/{D}?ns=other.test"):
            answer = await client.get(bed.url + path)
            assert (answer.status_code, answer.json()["errors"][0]["code"]) == (404, "DENIED")


async def test_a_busy_gateway_says_503_and_never_429(tmp_path: Path, client: httpx2.AsyncClient) -> None:
    async def slow(content: bytes, offset: int, length: int) -> AsyncIterator[bytes]:
        yield content[offset : offset + 1000]
        await asyncio.sleep(0.3)
        async for piece in whole(content, offset + 1000, length - 1000):
            yield piece

    async with gateway_bed(tmp_path, [Peer("n1", blobs(), slow)], {"max_requests": 1}) as bed:  # type: ignore[arg-type]
        statuses = [
            answer.status_code for answer in await asyncio.gather(*(client.get(bed.url + BLOB) for _ in range(4)))
        ]
        assert sorted(set(statuses)) == [200, 503]


async def test_a_tracker_that_falls_silent_is_watched_no_longer(tmp_path: Path) -> None:
    async with gateway_bed(tmp_path, []) as bed, asyncio.timeout(20):
        while bed.tracker.watches < 2:  # noqa: ASYNC110
            await asyncio.sleep(0.1)

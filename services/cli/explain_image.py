"""Shows for each piece of an image which hosts hold it, who would serve it to a host, and what would go upstream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import grpc
from rich.filesize import decimal

from stafett.api.v1 import tracker_pb2, tracker_pb2_grpc
from stafett.cli.overview import print_table
from stafett.cli.peer_read import read_small
from stafett.cli.trackers import CALL_SECONDS, EXIT_FAILED, own_tls
from stafett.common.digest import Digest
from stafett.common.errors import ManifestInvalid, StafettError
from stafett.common.oci import Descriptor, Index, parse_manifest
from stafett.common.reference import Reference
from stafett.gateway.selection import Candidate

Rank = Callable[[Digest], tuple[Sequence[Candidate], str]]
"""Ranks the holders of a digest for the asking host, and says why the first is first."""


@dataclass(frozen=True)
class Piece:
    """One piece of content; `size_bytes` is 0 where nobody can tell."""

    kind: str
    digest: Digest
    size_bytes: int
    candidates: Sequence[Candidate]
    reason: str

    @property
    def server(self) -> str:
        """Who would serve it."""
        return self.candidates[0].node.id if self.candidates else "upstream"


def explain_image(stub: tracker_pb2_grpc.TrackerServiceStub, image: Reference, rank: Rank, *, as_json: bool) -> int:
    """Print all pieces; return the exit code: 1 where nobody knows the image, or something would go upstream."""
    target = image.digest
    if target is None:
        try:
            request = tracker_pb2.ResolveTagRequest(name=image.tagged_name)
            target = Digest.parse(stub.ResolveTag(request, timeout=CALL_SECONDS).target_digest)
        except grpc.RpcError as error:
            if error.code() is not grpc.StatusCode.NOT_FOUND:
                raise
            said = f"no node has {image.tagged_name}: all of it would go upstream"
            print(json.dumps({"target": None, "pieces": [], "reason": said}) if as_json else said)
            return EXIT_FAILED
    pieces = list(_pieces(Descriptor("", target, 0), "manifest", rank))
    upstream = sum(piece.size_bytes for piece in pieces if not piece.candidates)
    if as_json:
        print(json.dumps({"target": str(target), "pieces": list(map(_document, pieces)), "upstream_bytes": upstream}))
    else:
        rows = [
            (
                piece.kind,
                str(piece.digest)[:19],
                decimal(piece.size_bytes) if piece.size_bytes else "?",
                " ".join(candidate.node.id for candidate in piece.candidates) or "nobody",
                piece.server,
                piece.reason,
            )
            for piece in pieces
        ]
        print_table(("what", "digest", "size", "held by", "served by", "why"), rows, stale=False)
        print(f"{decimal(upstream)} would go upstream" if upstream else "nothing would go upstream")
    return 0 if all(piece.candidates for piece in pieces) else EXIT_FAILED


def _pieces(descriptor: Descriptor, kind: str, rank: Rank) -> list[Piece]:
    """Walk down from a manifest or index; of the platforms of an index only those that somebody holds."""
    candidates, reason = rank(descriptor.digest)
    size = descriptor.size_bytes or (candidates[0].holder.size_bytes if candidates else 0)
    found = [Piece(kind, descriptor.digest, size, candidates, reason)]
    if kind not in ("index", "manifest") or not candidates:
        return found
    try:
        content = asyncio.run(read_small(candidates[0].holder, descriptor.digest, own_tls()))
        document = parse_manifest(content) if Digest.of(content) == descriptor.digest else None
    except (StafettError, ManifestInvalid, TimeoutError):
        document = None
    if document is None:
        return [Piece(kind, descriptor.digest, size, candidates, f"{reason}; what it lists could not be read")]
    if isinstance(document, Index):
        found = [Piece("index", descriptor.digest, size, candidates, reason)]
        below = [_pieces(child, "manifest", rank) for child in document.manifests]
        return found + [piece for pieces in below if pieces[0].candidates for piece in pieces]
    kinds = ["config", *("layer" for _ in document.layers)]
    return found + [_pieces(child, each, rank)[0] for each, child in zip(kinds, document.children, strict=True)]


def _document(piece: Piece) -> dict[str, object]:
    return {
        "kind": piece.kind,
        "digest": str(piece.digest),
        "size_bytes": piece.size_bytes,
        "held_by": [candidate.node.id for candidate in piece.candidates],
        "served_by": piece.server,
        "reason": piece.reason,
    }

"""Shows for each piece of an image which hosts hold it, who would serve it to a host, and what would go upstream."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import grpc
from rich.filesize import decimal

from stafett.api.v1 import tracker_pb2, tracker_pb2_grpc
from stafett.cli.overview import print_table
from stafett.cli.peer_read import read_small
from stafett.cli.trackers import CALL_SECONDS, EXIT_FAILED, own_tls
from stafett.cli.who_serves import Answer
from stafett.common.digest import Digest
from stafett.common.errors import ManifestInvalid, StafettError
from stafett.common.oci import Descriptor, Index, Manifest, parse_manifest
from stafett.common.reference import Reference

READ_TRIES = 3
"""Holders that are asked for a manifest."""


@dataclass(frozen=True)
class Piece:
    """One piece of content; `size_bytes` is 0 where nobody can tell, `platforms_missing` is for an index.

    `blind`: it is a manifest, and what it lists is not known.
    """

    kind: str
    digest: Digest
    size_bytes: int
    platform: str
    answer: Answer
    blind: bool = False
    platforms_missing: tuple[str, ...] = ()

    def served_by(self, asking: str) -> str:
        """Who would serve it to the asking host."""
        if self.answer.own:
            return asking
        return self.answer.candidates[0].node.id if self.answer.candidates else "upstream"


def explain_image(
    stub: tracker_pb2_grpc.TrackerServiceStub,
    image: Reference,
    look: Callable[[Digest], Answer],
    asking: str | None,
    *,
    as_json: bool,
) -> int:
    """Print all pieces; return the exit code: 1 where nobody knows the image, or not all of it is held."""
    target = image.digest or _resolve(stub, image)
    if target is None:
        said = f"no node has {image.tagged_name}: all of it would go upstream"
        print(json.dumps({"target": None, "pieces": [], "reason": said}) if as_json else said)
        return EXIT_FAILED
    pieces = list(_pieces(Descriptor("", target, 0), "manifest", look))
    if as_json:
        missing = [platform for piece in pieces for platform in piece.platforms_missing]
        document = {
            "target": str(target),
            "from": asking,
            "pieces": [_document(piece, asking) for piece in pieces],
            "upstream_bytes": sum(piece.size_bytes for piece in pieces if not _is_held(piece)),
            "platforms_missing": missing,
            "verdict": _verdict(pieces),
        }
        print(json.dumps(document))
    else:
        served = ("served by", "why") if asking else ()
        rows = [_row(piece) + ((piece.served_by(asking), piece.answer.reason) if asking else ()) for piece in pieces]
        stale = any(piece.answer.stale for piece in pieces)
        print_table(("what", "digest", "size", "held by", *served), rows, stale=stale)
        print(_verdict(pieces))
    return 0 if all(_is_held(piece) and not piece.blind for piece in pieces) else EXIT_FAILED


def _resolve(stub: tracker_pb2_grpc.TrackerServiceStub, image: Reference) -> Digest | None:
    """Ask what peers last knew the tag to mean."""
    try:
        request = tracker_pb2.ResolveTagRequest(name=image.tagged_name)
        return Digest.parse(stub.ResolveTag(request, timeout=CALL_SECONDS).target_digest)
    except grpc.RpcError as error:
        if error.code() is not grpc.StatusCode.NOT_FOUND:
            raise
        return None


def _pieces(descriptor: Descriptor, kind: str, look: Callable[[Digest], Answer]) -> Iterator[Piece]:
    """Walk down from a manifest or index; of an index only the platforms that somebody holds, if there is one."""
    answer = look(descriptor.digest)
    size = descriptor.size_bytes or next((holder.size_bytes for holder in answer.holders), 0)
    piece = Piece(kind, descriptor.digest, size, descriptor.platform, answer)
    document = _read(piece) if kind == "manifest" else None
    if isinstance(document, Index):
        below = [list(_pieces(child, "manifest", look)) for child in document.manifests]
        held = [pieces for pieces in below if _is_held(pieces[0])]
        missing = [pieces[0].platform for pieces in below if not _is_held(pieces[0])]
        yield replace(piece, kind="index", platforms_missing=tuple(filter(None, missing)) if held else ())
        yield from (each for pieces in held or below for each in pieces)
    elif isinstance(document, Manifest):
        yield piece
        kinds = ["config", *("layer" for _ in document.layers)]
        for child_kind, child in zip(kinds, document.children, strict=True):
            yield from _pieces(child, child_kind, look)
    else:
        yield replace(piece, blind=kind == "manifest")


def _read(piece: Piece) -> Manifest | Index | None:
    for holder in piece.answer.holders[:READ_TRIES]:
        try:
            content = asyncio.run(read_small(holder, piece.digest, own_tls()))
            if Digest.of(content) == piece.digest:
                return parse_manifest(content)
        except (StafettError, ManifestInvalid, TimeoutError):
            continue
    return None


def _is_held(piece: Piece) -> bool:
    return bool(piece.answer.holders)


def _verdict(pieces: Sequence[Piece]) -> str:
    lost = [piece for piece in pieces if not _is_held(piece)]
    said = "nothing would go upstream"
    if lost:
        size = sum(piece.size_bytes for piece in lost)
        said = f"{len(lost)} of {len(pieces)} would go upstream ({decimal(size) if size else 'size not known'})"
    for piece in pieces:
        if piece.blind:
            said += f"; what {str(piece.digest)[:19]} lists is not known, as nobody could be asked for it"
        if piece.platforms_missing:
            said += f"; nobody holds the image for {', '.join(piece.platforms_missing)}"
    return said


def _row(piece: Piece) -> tuple[str, ...]:
    size = decimal(piece.size_bytes) if piece.size_bytes else "?"
    held_by = " ".join(holder.node.id for holder in piece.answer.holders) or "nobody"
    return (f"{piece.kind} {piece.platform}".strip(), str(piece.digest)[:19], size, held_by)


def _document(piece: Piece, asking: str | None) -> dict[str, object]:
    return {
        "kind": piece.kind,
        "platform": piece.platform,
        "digest": str(piece.digest),
        "size_bytes": piece.size_bytes,
        "held_by": [holder.node.id for holder in piece.answer.holders],
        "served_by": piece.served_by(asking) if asking else None,
        "reason": piece.answer.reason,
    }

"""The demo's upstream registry: serves an OCI layout read-only, at a limited rate, and counts what it served.

Run as `python -m stafett.cli.demo.upstream LAYOUT PORT BYTES_PER_SECOND`.
"""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

from stafett.common import oci
from stafett.common.blob_files import BlobFile
from stafett.common.digest import Digest
from stafett.common.errors import BlobUnknown, ManifestInvalid, RangeUnsatisfiable, StafettError
from stafett.common.oci_layout import read_images
from stafett.common.reference import Reference
from stafett.gateway.byte_range import Span, resolve_range
from stafett.node.admission import Throttle

METHODS = ["GET", "HEAD"]


class Upstream:
    """A registry over one layout."""

    def __init__(self, layout: Path, bytes_per_second: int) -> None:
        self._layout = layout
        self._throttle = Throttle(bytes_per_second)
        self._served_bytes = 0
        self.app = Starlette(
            routes=[
                Route("/v2/", self._root, methods=METHODS),
                Route("/v2/{name:path}/manifests/{reference}", self._manifest, methods=METHODS),
                Route("/v2/{name:path}/blobs/{reference}", self._blob, methods=METHODS),
                Route("/stats", self._stats),
            ]
        )

    async def _root(self, request: Request) -> Response:
        return JSONResponse({})

    async def _stats(self, request: Request) -> Response:
        return JSONResponse({"served_bytes": self._served_bytes})

    async def _manifest(self, request: Request) -> Response:
        try:
            digest = self._resolve(request.path_params["name"], request.path_params["reference"])
            with BlobFile.open(self._layout, digest) as blob:
                content = b"".join([chunk async for chunk in blob.chunks(0, blob.size_bytes)])
            media_type = oci.parse_manifest(content).media_type
        except (StafettError, ManifestInvalid) as error:
            return JSONResponse({"errors": [{"code": "MANIFEST_UNKNOWN", "message": str(error)}]}, 404)
        self._served_bytes += len(content) if request.method == "GET" else 0
        # Bytes, so that starlette adds no charset to the type.
        headers = {"Docker-Content-Digest": str(digest), "Content-Type": media_type}
        return Response(content, headers=headers)

    async def _blob(self, request: Request) -> Response:
        try:
            digest = Digest.parse(request.path_params["reference"])
            blob = BlobFile.open(self._layout, digest)
        except StafettError as error:
            return JSONResponse({"errors": [{"code": "BLOB_UNKNOWN", "message": str(error)}]}, 404)
        try:
            span = resolve_range(request.headers.get("range"), blob.size_bytes)
        except RangeUnsatisfiable:
            blob.close()
            return Response(status_code=416)
        headers = {"Docker-Content-Digest": str(digest), "Content-Length": str(span.length), "Accept-Ranges": "bytes"}
        if span.partial:
            headers["Content-Range"] = span.content_range(blob.size_bytes)
        if request.method == "HEAD":
            blob.close()
            return Response(headers=headers)
        body = self._body(blob, span)
        return StreamingResponse(body, 206 if span.partial else 200, headers, "application/octet-stream")

    async def _body(self, blob: BlobFile, span: Span) -> AsyncIterator[bytes]:
        with blob:
            async for chunk in blob.chunks(span.offset, span.length):
                await self._throttle.pass_(len(chunk))
                self._served_bytes += len(chunk)
                yield chunk

    def _resolve(self, name: str, reference: str) -> Digest:
        if ":" in reference:
            return Digest.parse(reference)
        for image in read_images(self._layout)[0]:
            stored = Reference.parse(image.name)
            if (stored.repository, stored.tag) == (name, reference):
                return image.target.digest
        raise BlobUnknown(reference)


def main() -> None:
    """Serve until ended."""
    layout, port, rate = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    uvicorn.run(Upstream(layout, rate).app, host="127.0.0.1", port=port, log_level="warning", timeout_keep_alive=75)


if __name__ == "__main__":
    main()

"""The demo's upstream registry: serves an OCI layout read-only, at a limited rate, and counts what it served.

Run as `python -m stafett.cli.demo.upstream LAYOUT PORT BYTES_PER_SECOND`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Mount, Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stafett.common import oci
from stafett.common.blob_files import blob_path
from stafett.common.digest import Digest
from stafett.common.errors import BlobUnknown, ManifestUnknown, StafettError
from stafett.common.oci_layout import read_images
from stafett.common.reference import Reference
from stafett.node.admission import Throttle


class Metered:
    """Holds the bodies of all answers together to a rate, and counts their bytes."""

    def __init__(self, app: ASGIApp, bytes_per_second: int) -> None:
        self._app = app
        self._throttle = Throttle(bytes_per_second)
        self.served_bytes = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def metered(message: Message) -> None:
            size = len(message.get("body", b""))
            await self._throttle.pass_(size)
            self.served_bytes += size
            await send(message)

        await self._app(scope, receive, metered)


def make_app(layout: Path, bytes_per_second: int) -> Starlette:
    """Make a registry over one layout."""

    async def content(request: Request) -> Response:
        name, kind, reference = (request.path_params[part] for part in ("name", "kind", "reference"))
        media_type = "application/octet-stream"
        try:
            digest = Digest.parse(reference) if ":" in reference else _tagged(layout, name, reference)
            path = blob_path(layout, digest)
            if not path.exists():
                raise BlobUnknown(digest)
            if kind == "manifests":
                media_type = oci.parse_manifest(path.read_bytes()).media_type
        except StafettError as error:
            return JSONResponse({"errors": [{"code": f"{kind[:-1].upper()}_UNKNOWN", "message": str(error)}]}, 404)
        return FileResponse(path, media_type=media_type, headers={"Docker-Content-Digest": str(digest)})

    async def root(request: Request) -> Response:
        return JSONResponse({})

    async def stats(request: Request) -> Response:
        return JSONResponse({"served_bytes": metered.served_bytes})

    methods = ["GET", "HEAD"]
    registry = Starlette(routes=[Route("/{name:path}/{kind}/{reference}", content, methods=methods)])
    metered = Metered(registry, bytes_per_second)
    return Starlette(routes=[Route("/v2/", root, methods=methods), Route("/stats", stats), Mount("/v2", metered)])


def _tagged(layout: Path, name: str, tag: str) -> Digest:
    for image in read_images(layout)[0]:
        stored = Reference.parse(image.name)
        if (stored.repository, stored.tag) == (name, tag):
            return image.target.digest
    raise ManifestUnknown(f"{name}:{tag}")


def main() -> None:
    """Serve until ended."""
    layout, port, rate = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
    uvicorn.run(make_app(layout, rate), host="127.0.0.1", port=port, log_level="warning", timeout_keep_alive=75)


if __name__ == "__main__":
    main()

"""The paths of a gateway: the pull API, and what operators and probes ask for."""

from __future__ import annotations

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import BaseRoute, Mount, Route

from stafett.common.tracing import started
from stafett.gateway.content import Content
from stafett.gateway.grpc_peer import OwnNode
from stafett.gateway.metrics import GatewayMetrics
from stafett.gateway.pull_trace import PullTraces
from stafett.gateway.relay import Relay


def build_routes(content: Content, relay: Relay, own_node: OwnNode, metrics: GatewayMetrics) -> list[BaseRoute]:
    """Put the endpoints together; everything that is not for operators goes to the pull API."""

    async def healthz(_: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def readyz(_: Request) -> Response:
        """Ready whenever it can answer: with no tracker and no peer the right answer is 404, and it gives that."""
        return JSONResponse(
            {
                "ready": True,
                "tracker_reachable": relay.locator.tracker_reachable,
                "node_reachable": own_node.reachable,
                "nodes_known": len(relay.book.nodes),
            }
        )

    async def show_metrics(_: Request) -> Response:
        return Response(metrics.render(), media_type="text/plain; version=0.0.4")

    return [
        Route("/healthz", healthz),
        Route("/readyz", readyz),
        Route("/metrics", show_metrics),
        Mount("/", app=PullTraces(content) if started() else content),
    ]

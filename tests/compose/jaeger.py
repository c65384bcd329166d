"""Stands in for Jaeger, whose image cannot be had here: takes spans, and answers one question of Jaeger's API.

Runs in a container as `python -m tests.compose.jaeger`, with the two files that it takes.
"""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

from tests.integration.traces.otlp import Collector, collector


def traces_of(received: Collector, service: str) -> list[dict[str, object]]:
    """Traces that a service has a span in, as Jaeger shows them, without their spans."""
    services: dict[str, set[str]] = {}
    for span in list(received.spans):
        services.setdefault(span.trace_id, set()).add(span.service)
    return [
        {"traceID": trace, "processes": {f"p{number}": {"serviceName": name} for number, name in enumerate(names)}}
        for trace, names in services.items()
        if service in names
    ]


def main() -> None:
    """Serve on Jaeger's ports."""
    with collector("grpc", 4317, "0.0.0.0") as received:

        class Query(BaseHTTPRequestHandler):
            """GET /api/traces?service=NAME."""

            def do_GET(self) -> None:
                service = parse_qs(urlsplit(self.path).query).get("service", [""])[0]
                body = json.dumps({"data": traces_of(received, service)}).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

        ThreadingHTTPServer(("0.0.0.0", 16686), Query).serve_forever()


if __name__ == "__main__":
    main()

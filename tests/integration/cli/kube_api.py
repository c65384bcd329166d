"""An API server for tests: real HTTPS, a token, nodes and DaemonSets, and the rules for concurrent changes."""

from __future__ import annotations

import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, Self

import trustme

TOKEN = "a-token"


class FakeApi:
    """`objects` maps paths to objects; `meddle` is called once before the next change, as another client would."""

    def __init__(self, credentials: Path) -> None:
        self.objects: dict[str, dict[str, Any]] = {}
        self.patches: list[dict[str, Any]] = []
        self.meddle: Any = None
        self.refuses = 0
        authority = trustme.CA()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        authority.cert_pem.write_to_path(credentials / "ca.crt")
        (credentials / "token").write_text(f"{TOKEN}\n")
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), self._handler())
        self._server.socket = context.wrap_socket(self._server.socket, server_side=True)
        self.port = self._server.server_address[1]

    def __enter__(self) -> Self:
        threading.Thread(target=self._server.serve_forever, args=(0.05,)).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def answer(self, method: str, path: str, token: str, body: bytes) -> tuple[int, dict[str, Any]]:
        """Do what a request asks for."""
        if token != f"Bearer {TOKEN}":
            return 401, {"message": "Unauthorized"}
        if self.refuses:
            self.refuses -= 1
            return 503, {"message": "not now"}
        if path not in self.objects:
            return 404, {"message": "not found"}
        return self._merge(path, json.loads(body)) if method == "PATCH" else (200, self.objects[path])

    def _merge(self, path: str, change: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if self.meddle:
            meddle, self.meddle = self.meddle, None
            meddle()
        found = self.objects[path]
        if change["metadata"]["resourceVersion"] != found["metadata"]["resourceVersion"]:
            return 409, {"message": "the object has been modified"}
        self.patches.append(change)
        found["spec"] |= change["spec"]
        found["metadata"]["resourceVersion"] += "1"
        return 200, found

    def _handler(self) -> type[BaseHTTPRequestHandler]:
        api = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                code, answer = api.answer(self.command, self.path, self.headers.get("Authorization", ""), body)
                text = json.dumps(answer).encode()
                self.send_response(code)
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)

            do_PATCH = do_GET  # noqa: N815

            def log_message(self, *_: object) -> None:
                """Keep quiet."""

        return Handler

"""Whether a registry lives: any HTTP answer from its /v2/ means yes."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping

import httpx2

from stafett.common.reference import DOCKER_HUB

PROBE_SECONDS = 1.0
ALIVE_SECONDS = 3.0
DEAD_SECONDS = 0.5
"""Short: what a registry refuses as soon as it is back, peers must not give out."""
_HUB_URL = "https://registry-1.docker.io"


def upstream_url(registry: str, configured: Mapping[str, str]) -> str:
    """Tell the base URL of a registry: the configured one, plain http for loopback, https otherwise."""
    if registry in configured:
        return configured[registry].rstrip("/")
    if registry == DOCKER_HUB:
        return _HUB_URL
    host = registry.rpartition(":")[0] if ":" in registry and not registry.endswith("]") else registry
    local = host in ("localhost", "[::1]") or host.startswith("127.")
    return f"{'http' if local else 'https'}://{registry}"


class UpstreamProbe:
    """Asks upstream registries, without credentials; answers hold for a moment and are shared by all who ask."""

    def __init__(self, configured: Mapping[str, str], proxy: str) -> None:
        self._configured = configured
        self._verdicts: dict[str, tuple[bool, float]] = {}
        self._locks: dict[str, asyncio.Lock] = {}
        # Certificates are not checked: the question is whether somebody answers, and nothing of the answer is used.
        self._client = httpx2.AsyncClient(
            timeout=PROBE_SECONDS, trust_env=False, verify=False, proxy=proxy or None, follow_redirects=False
        )

    async def is_alive(self, registry: str) -> bool:
        """Tell whether the registry answers now."""
        async with self._locks.setdefault(registry, asyncio.Lock()):
            verdict, until = self._verdicts.get(registry, (False, 0.0))
            if time.monotonic() >= until:
                verdict = await self._ask(registry)
                self._verdicts[registry] = (verdict, time.monotonic() + (ALIVE_SECONDS if verdict else DEAD_SECONDS))
            return verdict

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()

    async def _ask(self, registry: str) -> bool:
        try:
            async with (
                asyncio.timeout(PROBE_SECONDS),
                self._client.stream("GET", f"{upstream_url(registry, self._configured)}/v2/"),
            ):
                return True
        except (httpx2.HTTPError, httpx2.InvalidURL, TimeoutError):
            return False

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.valkey import ValkeyServer


@pytest.fixture
async def valkey(tmp_path: Path) -> AsyncIterator[ValkeyServer]:
    """A server of the test's own."""
    server = ValkeyServer(tmp_path)
    await server.start()
    yield server
    await server.kill()

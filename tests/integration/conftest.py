from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.integration.valkey import ValkeyServer


@pytest.fixture
async def valkey(tmp_path: Path) -> AsyncIterator[ValkeyServer]:
    """A server of the test's own."""
    async with ValkeyServer(tmp_path) as server:
        yield server

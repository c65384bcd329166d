"""One test bed for all tests that leave it as they found it, and a fresh one for those that break things."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from stafett.cli.local_cluster.cluster import LocalCluster
from tests.e2e.bed import Bed
from tests.e2e.upstream import Upstream


@pytest.fixture(scope="package")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bed]:
    """Three hosts with CRI, shared: each test uses a repository of its own and restores what it stops."""
    with LocalCluster() as cluster:
        shared = Bed(cluster, Upstream(cluster.directory / "upstream"), tmp_path_factory.mktemp("layouts"))
        shared.start(cri=True)
        yield shared


@pytest.fixture
def own_bed(tmp_path: Path) -> Iterator[Bed]:
    """A bed of the test's own, not yet started."""
    with LocalCluster() as cluster:
        yield Bed(cluster, Upstream(cluster.directory / "upstream"), tmp_path)

"""One engine and one set of images for all tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from stafett.cli.local_cluster.cluster import LocalCluster
from tests.compose.engine import Engine, make_images


@pytest.fixture(scope="package")
def built() -> Iterator[tuple[Engine, str]]:
    """An isolated engine with all images that can be made here, and what `make image` printed."""
    with LocalCluster() as cluster:
        engine = Engine(cluster.directory, cluster.processes)
        try:
            engine.start(isolated=False)
            printed = make_images(engine)
            engine.stop()
            engine.start(isolated=True)
            yield engine, printed
        finally:
            engine.stop()


@pytest.fixture(scope="package")
def engine(built: tuple[Engine, str]) -> Engine:
    """The engine alone."""
    return built[0]

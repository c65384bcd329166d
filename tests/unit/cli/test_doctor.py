"""What the doctor says of a tracker's clock; the rest is seen on a real installation."""

from __future__ import annotations

import asyncio
import time
from pathlib import Path
from typing import cast

import pytest

from stafett.api.v1 import tracker_pb2, tracker_pb2_grpc
from stafett.cli.configure.distros import DistroName
from stafett.cli.doctor.cluster_checks import check_tracker
from stafett.cli.doctor.setup import read_setup
from stafett.cli.doctor.verdict import Level


class ClockOff:
    """A tracker whose clock is off by so many seconds; None: one that does not tell its time."""

    def __init__(self, seconds: float | None) -> None:
        self._seconds = seconds

    async def ListNodes(self, request: object, timeout: float) -> tracker_pb2.ListNodesResponse:  # noqa: N802
        now = 0 if self._seconds is None else round((time.time() + self._seconds) * 1000)
        return tracker_pb2.ListNodesResponse(now_unix_ms=now)


@pytest.mark.parametrize(
    ("seconds", "levels"),
    [(0.0, [Level.OK]), (1.0, [Level.OK]), (30.0, [Level.FAIL]), (-30.0, [Level.FAIL]), (None, [])],
)
def test_a_clock_that_is_off_is_named_and_one_that_is_not_told_is_not(
    tmp_path: Path, seconds: float | None, levels: list[Level]
) -> None:
    stub = cast("tracker_pb2_grpc.TrackerServiceAsyncStub", ClockOff(seconds))
    setup = read_setup(DistroName.CONTAINERD, tmp_path, tmp_path)
    verdicts, _ = asyncio.run(check_tracker(setup, stub, None))
    assert [verdict.level for verdict in verdicts if verdict.check == "clock"] == levels

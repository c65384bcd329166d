from __future__ import annotations

import pytest

from tests.chaos.census import DESCRIPTORS_SLACK, MEMORY_SLACK_BYTES, TASKS_SLACK, THREADS_SLACK, Census

BEFORE = Census(descriptors=20, threads=10, memory_bytes=100 << 20, tasks={"a": 5, "b": 5})


@pytest.mark.parametrize(
    ("after", "grown"),
    [
        (BEFORE, ""),
        (Census(21, 12, 110 << 20, {"a": 6, "b": 5}), ""),
        (Census(20 + DESCRIPTORS_SLACK + 1, 10, 100 << 20, BEFORE.tasks), "descriptors 20 -> 37"),
        (Census(20, 10 + THREADS_SLACK + 1, 100 << 20, BEFORE.tasks), "threads 10 -> 35"),
        (Census(20, 10, (126 << 20) + MEMORY_SLACK_BYTES, BEFORE.tasks), "memory 100 -> 174 MiB"),
        (Census(20, 10, 100 << 20, {"a": 5, "b": 6 + TASKS_SLACK}), "tasks 10 -> 35: {'b': 30}"),
    ],
)
def test_only_growth_beyond_noise_is_told(after: Census, grown: str) -> None:
    assert ", ".join(after.growth_since(BEFORE)) == grown

"""How many streams, and how fast."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stafett.common.blob_codec import CHUNK_BYTES
from stafett.common.errors import Draining, Overloaded
from stafett.node.admission import FRAME_MIN_BYTES, FrameSize, StreamSlots, TokenBucket

steps = st.lists(st.tuples(st.floats(0, 10), st.integers(1, 4 * 1024 * 1024)), min_size=1, max_size=60)


def test_beyond_the_limit_streams_are_refused_until_one_ends() -> None:
    slots = StreamSlots(2)
    with slots.take():
        with slots.take(), pytest.raises(Overloaded), slots.take():
            pass
        with slots.take():
            assert slots.taken == 2
    assert slots.taken == 0
    assert (slots.refused_full, slots.refused_draining) == (1, 0)


def test_a_stream_that_fails_frees_its_slot() -> None:
    slots = StreamSlots(1)
    for _ in range(3):
        with pytest.raises(OSError, match="disk"), slots.take():
            raise OSError("disk")
    assert slots.taken == 0
    assert slots.idle.is_set()


def test_a_draining_node_takes_no_streams_and_is_idle_when_the_last_has_ended() -> None:
    slots = StreamSlots(4)
    with slots.take():
        slots.draining = True
        with pytest.raises(Draining), slots.take():
            pass
        assert not slots.idle.is_set()
    assert slots.idle.is_set()
    assert (slots.refused_full, slots.refused_draining) == (0, 1)


@given(steps=steps, rate=st.floats(1.0, 1e9), share=st.floats(0.0, 2.0))
def test_a_bucket_never_lets_more_pass_than_rate_and_burst_allow(
    steps: list[tuple[float, int]], rate: float, share: float
) -> None:
    capacity = rate * share
    bucket = TokenBucket(rate, capacity, capacity, 0.0)
    now = passed = 0.0
    for pause, size in steps:
        now += pause
        passed += size
        sent_at = now + bucket.take(size, now)
        assert passed <= (rate * sent_at + capacity) * (1 + 1e-9)


@given(sizes=st.lists(st.integers(1, 10_000), min_size=1, max_size=50), rate=st.floats(1.0, 1e6))
def test_a_bucket_does_not_waste_its_rate(sizes: list[int], rate: float) -> None:
    bucket = TokenBucket(rate, 0.0, 0.0, 0.0)
    now = 0.0
    for size in sizes:
        now += bucket.take(size, now)
    assert now == pytest.approx(sum(sizes) / rate)


@pytest.mark.parametrize("bytes_per_second", [20_000, 100_000, 1_000_000, 10_000_000, 1_000_000_000])
def test_frames_settle_at_a_size_that_leaves_in_a_moment(bytes_per_second: int) -> None:
    frame = FrameSize()
    seconds = [0.0]
    for _ in range(30):
        seconds.append(frame.size_bytes / bytes_per_second)
        frame.sent(frame.size_bytes, seconds[-1])
        assert FRAME_MIN_BYTES <= frame.size_bytes <= CHUNK_BYTES
    assert max(seconds[-10:]) < 1.0, "slower than a stall looks"
    if bytes_per_second >= 100_000_000:
        assert frame.size_bytes == CHUNK_BYTES

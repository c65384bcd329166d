"""Hand-made frames and generated messages read each other."""

from __future__ import annotations

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from stafett.api.v1 import node_pb2
from stafett.common.blob_codec import BlobInfo, Frame, Waiting, decode_frame, encode_frame

sizes = st.integers(0, 2**63)


@given(st.binary(max_size=70_000))
def test_data_frames_are_what_protobuf_would_write(data: bytes) -> None:
    encoded = encode_frame(data)
    if data:
        assert encoded == node_pb2.BlobChunk(data=data).SerializeToString()
    assert node_pb2.BlobChunk.FromString(encoded).data == data
    assert encode_frame(memoryview(data)) == encoded
    decoded = decode_frame(encoded)
    assert isinstance(decoded, memoryview)
    assert bytes(decoded) == data


@given(st.builds(BlobInfo, sizes, st.booleans(), sizes) | st.builds(Waiting, sizes, sizes))
def test_other_frames_come_back_as_they_were(frame: Frame) -> None:
    assert decode_frame(encode_frame(frame)) == frame


@given(st.binary(max_size=200))
def test_garbage_is_refused_cleanly(message: bytes) -> None:
    try:
        decode_frame(message)
    except (DecodeError, ValueError, IndexError):
        return


def test_a_cut_frame_is_refused() -> None:
    with pytest.raises((DecodeError, IndexError)):
        decode_frame(encode_frame(b"x" * 1000)[:-1])

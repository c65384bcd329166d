"""Frames of a blob stream, and their bytes on the wire.

On the wire each frame is a protobuf `BlobChunk`. Data frames, which carry nearly all bytes, are encoded and decoded by
hand (field header, then the bytes; a memoryview after it), which moves about twice as much per core as message objects.
"""

from __future__ import annotations

from dataclasses import dataclass

from stafett.api.v1 import node_pb2

CHUNK_BYTES = 1024 * 1024
"""Data bytes in a frame at most, as sent; receivers accept up to 4 MiB."""

_DATA_TAG = 0x0A  # field 1, length-delimited


@dataclass(frozen=True, slots=True)
class BlobInfo:
    """First frame of a stream: the blob's full size (0 = not known yet), and how much of it the sender has."""

    size_bytes: int
    complete: bool = True
    available_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Waiting:
    """The sender has nothing new since `since_ms` milliseconds; it has `offset` bytes from the start."""

    since_ms: int
    offset: int


Frame = bytes | memoryview | BlobInfo | Waiting


def encode_frame(frame: Frame) -> bytes:
    """Serialize one frame as a `BlobChunk`."""
    if isinstance(frame, BlobInfo):
        info = node_pb2.BlobInfo(
            size_bytes=frame.size_bytes,
            complete=frame.complete,
            available_bytes=frame.available_bytes,
        )
        return node_pb2.BlobChunk(info=info).SerializeToString()
    if isinstance(frame, Waiting):
        waiting = node_pb2.Waiting(since_ms=frame.since_ms, offset=frame.offset)
        return node_pb2.BlobChunk(waiting=waiting).SerializeToString()
    return b"".join((_data_header(len(frame)), frame))


def decode_frame(message: bytes) -> Frame:
    """Parse one `BlobChunk`; data comes as a view into `message`, other frames as objects.

    Raises:
        google.protobuf.message.DecodeError, ValueError: if the message is not a valid frame.
    """
    if message[:1] == b"\x0a":
        length, start = _varint(message, 1)
        if start + length == len(message):
            return memoryview(message)[start:]
    chunk = node_pb2.BlobChunk.FromString(message)
    if chunk.HasField("info"):
        return BlobInfo(chunk.info.size_bytes, chunk.info.complete, chunk.info.available_bytes)
    if chunk.HasField("waiting"):
        return Waiting(chunk.waiting.since_ms, chunk.waiting.offset)
    return memoryview(chunk.data)


def _data_header(length: int) -> bytes:
    header = bytearray((_DATA_TAG,))
    while length > 0x7F:
        header.append(length & 0x7F | 0x80)
        length >>= 7
    header.append(length)
    return bytes(header)


def _varint(message: bytes, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[position]
        position += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, position
        shift += 7

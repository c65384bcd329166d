"""The BlobService's byte stream with hand-made frames on both sides; everything else of it uses the generated code."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from stafett.api.v1 import node_pb2
from stafett.common.blob_codec import Frame, decode_frame, encode_frame

BLOB_SERVICE = "stafett.api.v1.BlobService"
READ_METHOD = f"/{BLOB_SERVICE}/Read"

ReadFrames = Callable[..., "grpc.aio.UnaryStreamCall[node_pb2.ReadRequest, Frame]"]


def read_frames(channel: grpc.aio.Channel) -> ReadFrames:
    """Client side of Read: call the result with a ReadRequest and a timeout, read frames from the call."""
    method: Any = channel.unary_stream(
        READ_METHOD,
        request_serializer=node_pb2.ReadRequest.SerializeToString,
        response_deserializer=decode_frame,
    )
    return method  # type: ignore[no-any-return]


def add_blob_service(server: grpc.aio.Server, servicer: Any) -> None:
    """Register a BlobService whose Read yields frames (`blob_codec.Frame`) instead of messages."""
    handlers: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
        method.name: grpc.unary_unary_rpc_method_handler(
            getattr(servicer, method.name),
            request_deserializer=getattr(node_pb2, method.input_type.name).FromString,
            response_serializer=getattr(node_pb2, method.output_type.name).SerializeToString,
        )
        for method in node_pb2.DESCRIPTOR.services_by_name["BlobService"].methods
        if method.name != "Read" and hasattr(servicer, method.name)
    }
    handlers["Read"] = grpc.unary_stream_rpc_method_handler(
        servicer.Read, request_deserializer=node_pb2.ReadRequest.FromString, response_serializer=encode_frame
    )
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(BLOB_SERVICE, handlers),))

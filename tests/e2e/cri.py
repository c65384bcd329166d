"""Kubelet's way of pulling, from Python."""

from __future__ import annotations

import grpc

from stafett.api.cri import image_service_pb2, image_service_pb2_grpc


def pull_image(socket: str, image: str, timeout_seconds: float = 60.0) -> str:
    """Call CRI's PullImage; return the image id.

    Raises:
        grpc.RpcError: if the pull fails.
    """
    with grpc.insecure_channel(f"unix://{socket}", options=[("grpc.default_authority", "localhost")]) as channel:
        stub = image_service_pb2_grpc.ImageServiceStub(channel)
        request = image_service_pb2.PullImageRequest(image=image_service_pb2.ImageSpec(image=image))
        answer = stub.PullImage(request, timeout=timeout_seconds)
        return str(answer.image_ref)

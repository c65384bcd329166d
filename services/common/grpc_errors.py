"""Errors at the gRPC boundary: one table, one server interceptor.

Without the interceptor the text of any exception would reach clients, and an inner `CancelledError` that escapes a
handler would leave the call open until the client's deadline.
"""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn

import grpc
import structlog
from opentelemetry import trace

from stafett.common import errors
from stafett.common.grpc_tracing import note_status

log = structlog.get_logger()

STATUS_OF: dict[type[errors.StafettError], grpc.StatusCode] = {
    errors.DigestInvalid: grpc.StatusCode.INVALID_ARGUMENT,
    errors.NameInvalid: grpc.StatusCode.INVALID_ARGUMENT,
    errors.RequestInvalid: grpc.StatusCode.INVALID_ARGUMENT,
    errors.RangeUnsatisfiable: grpc.StatusCode.OUT_OF_RANGE,
    errors.BlobUnknown: grpc.StatusCode.NOT_FOUND,
    errors.ManifestUnknown: grpc.StatusCode.NOT_FOUND,
    errors.ManifestInvalid: grpc.StatusCode.DATA_LOSS,
    errors.Denied: grpc.StatusCode.PERMISSION_DENIED,
    errors.Unsupported: grpc.StatusCode.UNIMPLEMENTED,
    errors.NodeUnknown: grpc.StatusCode.NOT_FOUND,
    errors.NotServed: grpc.StatusCode.NOT_FOUND,
    errors.Overloaded: grpc.StatusCode.RESOURCE_EXHAUSTED,
    errors.Draining: grpc.StatusCode.FAILED_PRECONDITION,
    errors.WouldCircle: grpc.StatusCode.FAILED_PRECONDITION,
    errors.SessionLost: grpc.StatusCode.ABORTED,
    errors.Unavailable: grpc.StatusCode.UNAVAILABLE,
    errors.CorruptContent: grpc.StatusCode.DATA_LOSS,
    errors.StartupFailed: grpc.StatusCode.INTERNAL,
}


class ErrorInterceptor(grpc.aio.ServerInterceptor):
    """Turns `StafettError`s into their status and everything else into INTERNAL without details."""

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler: Any = await continuation(handler_call_details)
        if handler is None:
            return handler
        method = handler_call_details.method
        codecs = {
            "request_deserializer": handler.request_deserializer,
            "response_serializer": handler.response_serializer,
        }
        if handler.unary_unary:
            return grpc.unary_unary_rpc_method_handler(_guard_unary(handler.unary_unary, method), **codecs)
        if handler.unary_stream:
            return grpc.unary_stream_rpc_method_handler(_guard_responses(handler.unary_stream, method), **codecs)
        if handler.stream_stream:
            return grpc.stream_stream_rpc_method_handler(_guard_responses(handler.stream_stream, method), **codecs)
        return grpc.stream_unary_rpc_method_handler(_guard_unary(handler.stream_unary, method), **codecs)


def _guard_responses(inner: Callable[..., Any], method: str) -> Callable[..., Any]:
    """Guard a handler with many responses: an async generator, or a coroutine that writes them to its context."""
    return _guard_stream(inner, method) if inspect.isasyncgenfunction(inner) else _guard_unary(inner, method)


def _guard_unary(inner: Callable[..., Awaitable[Any]], method: str) -> Callable[..., Awaitable[Any]]:
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> Any:
        try:
            return await inner(request, context)
        except BaseException as error:  # noqa: BLE001 - _abort always raises
            await _abort(error, context, method)

    return call


def _guard_stream(inner: Callable[..., AsyncIterator[Any]], method: str) -> Callable[..., AsyncIterator[Any]]:
    async def call(request: Any, context: grpc.aio.ServicerContext[Any, Any]) -> AsyncIterator[Any]:
        responses = inner(request, context)
        try:
            async for response in responses:
                yield response
        except BaseException as error:  # noqa: BLE001 - _abort always raises
            await _abort(error, context, method)
        finally:
            close = getattr(responses, "aclose", None)
            if close is not None:
                await close()

    return call


async def _abort(error: BaseException, context: grpc.aio.ServicerContext[Any, Any], method: str) -> NoReturn:
    """End the call with the status that fits, or let the error pass where it must."""
    if isinstance(error, errors.StafettError):
        await _end(context, STATUS_OF[type(error)], str(error))
    if isinstance(error, asyncio.CancelledError):
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise error
        await _end(context, grpc.StatusCode.CANCELLED, "the operation was cancelled inside the service")
    if isinstance(error, grpc.aio.AbortError) or not isinstance(error, Exception):
        raise error
    log.error("request_crashed", method=method, exc_info=error)
    await _end(context, grpc.StatusCode.INTERNAL, "internal error, see the service's log")


async def _end(context: grpc.aio.ServicerContext[Any, Any], status: grpc.StatusCode, details: str) -> NoReturn:
    note_status(trace.get_current_span(), status, details)
    await context.abort(status, details)

"""containerd as a content store: metadata and events over its API, bytes from its files where they are mounted.

Works with 1.6 and 2.x alike. Events are hints only: garbage collection is silent on every version, committed content is
before 2.1, and there is no replay.
"""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncGenerator, AsyncIterator, Collection, Mapping, Sequence
from concurrent.futures import Executor
from pathlib import Path

import grpc
from google.protobuf.field_mask_pb2 import FieldMask

from stafett.api.containerd import (
    content_pb2,
    content_pb2_grpc,
    events_pb2,
    events_pb2_grpc,
    images_pb2,
    images_pb2_grpc,
    namespaces_pb2,
    namespaces_pb2_grpc,
)
from stafett.common.blob_codec import CHUNK_BYTES
from stafett.common.blob_files import BlobFile, blob_path
from stafett.common.digest import Digest
from stafett.common.errors import BlobUnknown, DigestInvalid, Unavailable
from stafett.common.grpc_transport import CONTROL_DEADLINE_SECONDS, unix_channel
from stafett.common.oci import Descriptor, StoredImage
from stafett.node.ports import BlobReader, Ingest

LIST_SECONDS = 60.0
STREAM_SECONDS = 4 * 3600.0
CORRUPT_LABEL = "stafett.io/corrupt"
"""On blobs whose bytes are wrong; the only thing that Stafett writes on what containerd has finished."""
ABORT_TRIES = 3
"""containerd fails to remove a download when its writer writes a last note at that moment."""
ABORT_PAUSE_SECONDS = 0.2
_DIGEST_AT_END = re.compile(r"sha256:[0-9a-f]{64}$")
_EVENT_FILTERS = ('topic~="^/images/"', 'topic~="^/content/"')


class ContainerdStore:
    """Adapter of `ports.ContentStore` for all namespaces, or the given ones."""

    def __init__(self, socket: Path, namespaces: Sequence[str], content_root: Path | None, disk: Executor) -> None:
        self._socket = socket
        self._only = tuple(namespaces)
        self._root = content_root
        self._disk = disk
        self._ingests = _Ingests(content_root) if content_root else None
        self._channel = unix_channel(socket)
        self._content = content_pb2_grpc.ContentStub(self._channel)
        self._images = images_pb2_grpc.ImagesStub(self._channel)
        self._events = events_pb2_grpc.EventsStub(self._channel)
        self._namespaces = namespaces_pb2_grpc.NamespacesStub(self._channel)

    async def list_blobs(self) -> Mapping[Digest, int]:
        """See `ports.ContentStore`."""
        return await self._list(content_pb2.ListContentRequest())

    async def _list(self, request: content_pb2.ListContentRequest) -> Mapping[Digest, int]:
        found: dict[Digest, int] = {}
        for namespace in await self._list_namespaces():
            call = self._content.List(request, metadata=_in(namespace), timeout=LIST_SECONDS)
            try:
                async for batch in call:
                    for info in batch.info:
                        if digest := _supported(info.digest):
                            found[digest] = info.size
            except grpc.aio.AioRpcError as error:
                raise self._away(error) from error
            finally:
                call.cancel()
        return found

    async def list_images(self) -> Sequence[StoredImage]:
        """See `ports.ContentStore`."""
        images: list[StoredImage] = []
        for namespace in await self._list_namespaces():
            try:
                answer = await self._images.List(
                    images_pb2.ListImagesRequest(), metadata=_in(namespace), timeout=LIST_SECONDS
                )
            except grpc.aio.AioRpcError as error:
                raise self._away(error) from error
            images += [stored for image in answer.images if (stored := _image(image))]
        return images

    async def changes(self) -> AsyncGenerator[None, None]:
        """See `ports.ContentStore`; subscribes first, so that nothing falls between a listing and the events.

        containerd answers a subscription with its first event only, be it hours later. So a second call, which follows
        the subscription on the same connection, tells that it is there.
        """
        call = self._events.Subscribe(events_pb2.SubscribeRequest(filters=_EVENT_FILTERS), timeout=STREAM_SECONDS)
        try:
            await self._namespaces.List(namespaces_pb2.ListNamespacesRequest(), timeout=CONTROL_DEADLINE_SECONDS)
            yield
            async for _ in call:
                yield
        except grpc.aio.AioRpcError as error:
            raise self._away(error) from error
        finally:
            call.cancel()

    async def size_of(self, digest: Digest) -> int | None:
        """See `ports.ContentStore`."""
        try:
            if self._root is not None and not blob_path(self._root, digest).exists():
                return None
        except OSError:
            return None
        found = await self._find(digest)
        return found[1] if found else None

    async def open(self, digest: Digest) -> BlobReader:
        """See `ports.ContentStore`."""
        if self._root is not None:
            return BlobFile.open(self._root, digest, self._disk)
        found = await self._find(digest)
        if found is None:
            raise BlobUnknown(digest)
        return _ApiReader(self._content, found[0], digest, found[1])

    async def ingests(self, digest: Digest | None = None) -> Sequence[Ingest]:
        """See `ports.ContentStore`; none where the files are not mounted."""
        if self._ingests is None:
            return ()
        try:
            return await asyncio.get_running_loop().run_in_executor(self._disk, self._ingests.of, digest)
        except OSError as error:
            raise Unavailable("folder of downloads", error.strerror or "unreadable") from error

    async def abort(self, ingest: Ingest) -> None:
        """See `ports.ContentStore`."""
        namespace, _, reference = ingest.owner.split("/", 2)
        request = content_pb2.AbortRequest(ref=reference)
        for tries_left in reversed(range(ABORT_TRIES)):
            try:
                await self._content.Abort(request, metadata=_in(namespace), timeout=CONTROL_DEADLINE_SECONDS)
                return
            except grpc.aio.AioRpcError as error:
                if error.code() is grpc.StatusCode.NOT_FOUND:
                    return
                if error.code() is not grpc.StatusCode.UNKNOWN or not tries_left:
                    raise self._away(error) from error
            await asyncio.sleep(ABORT_PAUSE_SECONDS)

    async def condemn(self, digest: Digest) -> None:
        """See `ports.ContentStore`; a label, which goes when containerd drops the blob."""
        info = content_pb2.Info(digest=str(digest), labels={CORRUPT_LABEL: "true"})
        request = content_pb2.UpdateRequest(info=info, update_mask=FieldMask(paths=[f"labels.{CORRUPT_LABEL}"]))
        for namespace in await self._list_namespaces():
            try:
                await self._content.Update(request, metadata=_in(namespace), timeout=CONTROL_DEADLINE_SECONDS)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise self._away(error) from error

    async def condemned(self) -> Collection[Digest]:
        """See `ports.ContentStore`."""
        return (await self._list(content_pb2.ListContentRequest(filters=[f'labels."{CORRUPT_LABEL}"==true']))).keys()

    async def close(self) -> None:
        """See `ports.ContentStore`."""
        await self._channel.close()

    async def _find(self, digest: Digest) -> tuple[str, int] | None:
        """Tell a namespace that has the blob, and its size; None for a condemned one."""
        request = content_pb2.InfoRequest(digest=str(digest))
        for namespace in await self._list_namespaces():
            try:
                answer = await self._content.Info(request, metadata=_in(namespace), timeout=CONTROL_DEADLINE_SECONDS)
                return None if CORRUPT_LABEL in answer.info.labels else (namespace, answer.info.size)
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.NOT_FOUND:
                    raise self._away(error) from error
        return None

    async def _list_namespaces(self) -> Sequence[str]:
        if self._only:
            return self._only
        request = namespaces_pb2.ListNamespacesRequest()
        try:
            answer = await self._namespaces.List(request, timeout=CONTROL_DEADLINE_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise self._away(error) from error
        return [namespace.name for namespace in answer.namespaces]

    def _away(self, error: grpc.aio.AioRpcError) -> Unavailable:
        return Unavailable(f"containerd at {self._socket}", f"{error.code().name}: {error.details()}")


class _ApiReader:
    """A blob read through containerd's API, where its files are not mounted."""

    def __init__(
        self, content: content_pb2_grpc.ContentAsyncStub, namespace: str, digest: Digest, size_bytes: int
    ) -> None:
        self._content = content
        self._namespace = namespace
        self._digest = digest
        self.size_bytes = size_bytes

    async def chunks(self, offset: int, length: int) -> AsyncIterator[bytes]:
        """See `ports.BlobReader`."""
        if length == 0:
            return
        request = content_pb2.ReadContentRequest(digest=str(self._digest), offset=offset, size=length)
        call = self._content.Read(request, metadata=_in(self._namespace), timeout=STREAM_SECONDS)
        try:
            async for piece in call:
                for start in range(0, len(piece.data), CHUNK_BYTES):
                    yield piece.data[start : start + CHUNK_BYTES]
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.NOT_FOUND:
                raise BlobUnknown(self._digest) from error
            raise Unavailable("containerd", error.code().name) from error
        finally:
            call.cancel()

    def close(self) -> None:
        """See `ports.BlobReader`."""


def _in(namespace: str) -> tuple[tuple[str, str], ...]:
    return (("containerd-namespace", namespace),)


class _Ingests:
    """Ingest folders. Each is named by the hash of its reference, so what `ref` says is read once per name."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[str, tuple[Digest, str] | None] = {}

    def of(self, digest: Digest | None) -> list[Ingest]:
        """List those of one digest, or all."""
        folder = self._root / "ingest"
        try:
            names = os.listdir(folder)
        except FileNotFoundError:
            return []
        self._known = {name: self._known.get(name) or _read_reference(folder / name) for name in names}
        return [
            Ingest(
                each, folder / name / "data", blob_path(self._root, each), owner, _number_in(folder / name / "total")
            )
            for name, known in self._known.items()
            if known
            for each, owner in [known]
            if digest in (None, each)
        ]


def _read_reference(folder: Path) -> tuple[Digest, str] | None:
    """Read `ref`: "namespace/number/reference", where a digest ends it; None for others, and what is being made."""
    try:
        owner = (folder / "ref").read_text("utf-8")
    except (OSError, UnicodeDecodeError):
        return None
    named = _DIGEST_AT_END.search(owner)
    return (Digest.parse(named.group()), owner) if named and owner.count("/") >= 2 else None


def _number_in(path: Path) -> int:
    try:
        return int(path.read_text("ascii"))
    except (OSError, ValueError):
        return 0


def _supported(text: str) -> Digest | None:
    try:
        return Digest.parse(text)
    except DigestInvalid:
        return None


def _image(image: images_pb2.Image) -> StoredImage | None:
    digest = _supported(image.target.digest)
    if digest is None:
        return None
    target = Descriptor(image.target.media_type, digest, image.target.size)
    return StoredImage(image.name, target, image.updated_at.ToMilliseconds())

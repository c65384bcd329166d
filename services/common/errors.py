"""Everything that can go wrong in Stafett, as one shallow tree.

Decides nothing and knows no transport: `grpc_errors` and the gateway's `oci_errors` each hold one table that
translates every leaf once, at their boundary.
"""

from __future__ import annotations


class StafettError(Exception):
    """Base of all errors that Stafett raises on purpose. The message says what to do, and is fit for clients."""


class DigestInvalid(StafettError):
    """A text is not a digest that Stafett supports."""

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(f"invalid digest {text[:100]!r}: {reason}")


class NameInvalid(StafettError):
    """A registry, repository, tag or image name breaks the grammar of the distribution spec."""

    def __init__(self, text: str, reason: str) -> None:
        super().__init__(f"invalid name {text[:100]!r}: {reason}")


class RequestInvalid(StafettError):
    """A field of a request is out of its documented range."""

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")


class RangeUnsatisfiable(StafettError):
    """A byte range lies outside the blob."""

    def __init__(self, size_bytes: int) -> None:
        super().__init__(f"the range is outside the blob of {size_bytes} bytes")


class BlobUnknown(StafettError):
    """No holder, or not the asked one, has the blob."""

    def __init__(self, digest: object) -> None:
        super().__init__(f"blob {digest} is not held here")


class ManifestUnknown(StafettError):
    """No holder has the manifest, or the tag is not known."""

    def __init__(self, reference: object) -> None:
        super().__init__(f"manifest {reference} is not known")


class ManifestInvalid(StafettError):
    """Bytes that should be a manifest or index are not."""

    def __init__(self, reason: str) -> None:
        super().__init__(f"not a manifest or index: {reason}")


class Denied(StafettError):
    """An allow- or deny-list forbids it."""

    def __init__(self, name: object) -> None:
        super().__init__(f"{name} is not served here: the operator's allow- or deny-list excludes it")


class Unsupported(StafettError):
    """The operation does not exist here, e.g. a push."""

    def __init__(self, what: str) -> None:
        super().__init__(f"{what} is not supported: Stafett is a pull-only mirror")


class NodeUnknown(StafettError):
    """No node of that name is registered."""

    def __init__(self, node_id: str) -> None:
        super().__init__(f"no node {node_id[:100]!r} is registered: see stafett nodes")


class NotServed(StafettError):
    """No path of manifests or blobs: tags/list and referrers among others, which a mirror answers with 404."""

    def __init__(self, path: str) -> None:
        super().__init__(f"there is nothing at {path[:200]!r}: this mirror serves manifests and blobs")


class Overloaded(StafettError):
    """All slots are taken: try later, or elsewhere."""

    def __init__(self, what: str, limit: int) -> None:
        super().__init__(f"all {limit} {what} are in use, try later or elsewhere")


class Draining(StafettError):
    """The node takes no new streams because it is about to leave."""

    def __init__(self) -> None:
        super().__init__("the node is draining and takes no new streams")


class WouldCircle(StafettError):
    """The node itself gets the blob from the reader, directly or through others."""

    def __init__(self, reader: str) -> None:
        super().__init__(f"this node gets the blob from {reader[:100]!r}, which cannot follow it")


class SessionLost(StafettError):
    """A session's lease has run out or a newer session of the node exists: register again."""

    def __init__(self, node_id: str, epoch: int) -> None:
        super().__init__(f"session {epoch} of node {node_id} is over, register again")


class Unavailable(StafettError):
    """A part that is needed (Redis, containerd, a tracker, a node) does not answer now."""

    def __init__(self, part: str, reason: str) -> None:
        super().__init__(f"{part} is not available: {reason}")
        self.part = part
        self.reason = reason


class CorruptContent(StafettError):
    """Bytes do not have the digest they should have."""

    def __init__(self, digest: object, source: str) -> None:
        super().__init__(f"bytes for {digest} from {source} do not match the digest")


class StartupFailed(StafettError):
    """A service cannot start; the message is one line with the remedy."""

"""What a request asks for: its path and query, parsed once into one value. Pure.

Works on the raw path, before any decoding, so that an encoded slash cannot pass for a real one: nothing that Stafett
serves needs a percent sign in its path.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from urllib.parse import parse_qs

from stafett.common.digest import Digest
from stafett.common.errors import NameInvalid, NotServed
from stafett.common.reference import check_registry, check_repository, check_tag


class Kind(Enum):
    """The two kinds of content in the distribution API."""

    MANIFESTS = "manifests"
    BLOBS = "blobs"


@dataclass(frozen=True, slots=True)
class ContentPath:
    """A manifest or blob by digest, or a manifest by tag (`digest` is None then)."""

    registry: str
    repository: str
    kind: Kind
    digest: Digest | None
    tag: str
    namespace: str
    """The ns parameter as sent; empty for clients that send none, which have no fallback per blob."""

    @property
    def image(self) -> str:
        """ "registry/repository", what allow- and deny-lists match."""
        return f"{self.registry}/{self.repository}"


def parse_content_path(raw_path: bytes, query: bytes, default_registry: str) -> ContentPath:
    """Parse a path below /v2/.

    The registry is `ns`, else a first path part that looks like one (contains "." or ":", or is "localhost"), else
    `default_registry`.

    Raises:
        NameInvalid, DigestInvalid: if a part breaks its grammar.
        NotServed: if it is no path of manifests or blobs.
    """
    path = _ascii(raw_path)
    namespace = _namespace(query)
    parts = path.removeprefix("/v2/").split("/")
    if len(parts) < 3 or parts[-2] not in ("manifests", "blobs"):
        raise NotServed(path)
    kind, last = Kind(parts[-2]), parts[-1]
    registry, name = _split_registry(parts[:-2], namespace, default_registry)
    repository = check_repository(name)
    if kind is Kind.BLOBS or ":" in last:
        return ContentPath(registry, repository, kind, Digest.parse(last), "", namespace)
    return ContentPath(registry, repository, kind, None, check_tag(last), namespace)


def _ascii(raw_path: bytes) -> str:
    path = raw_path.partition(b"?")[0].decode("latin-1")
    if "%" in path or not path.isascii():
        raise NameInvalid(path, "percent-encoded characters do not occur in names, tags and digests")
    return path


def _namespace(query: bytes) -> str:
    values = parse_qs(query.decode("latin-1"), keep_blank_values=False, max_num_fields=20).get("ns", [])
    return check_registry(values[0]) if values else ""


def _split_registry(parts: list[str], namespace: str, default_registry: str) -> tuple[str, str]:
    if namespace:
        return namespace, "/".join(parts)
    first = parts[0]
    if len(parts) > 1 and ("." in first or ":" in first or first == "localhost") and first not in (".", ".."):
        return check_registry(first), "/".join(parts[1:])
    return default_registry, "/".join(parts)

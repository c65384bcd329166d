"""Image references as containerd and the distribution spec write them."""

from __future__ import annotations

import re
from dataclasses import dataclass

from stafett.common.digest import Digest
from stafett.common.errors import NameInvalid

_REPOSITORY_PART = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_REPOSITORY_PART}(?:/{_REPOSITORY_PART})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_REGISTRY = re.compile(
    r"(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?(?:\.[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?)*"
    r"|\[[0-9A-Fa-f:.]+\])(?::[0-9]{1,5})?"
)
_NAME_MAX = 255
DOCKER_HUB = "docker.io"


def check_registry(text: str) -> str:
    """Return text if it is a registry host with an optional port.

    Raises:
        NameInvalid: otherwise.
    """
    if len(text) > _NAME_MAX or not _REGISTRY.fullmatch(text):
        raise NameInvalid(text, "a registry is a host name or address with an optional port")
    return text


def check_repository(text: str) -> str:
    """Return text if it is a repository name of the distribution spec, at most 255 characters long.

    Raises:
        NameInvalid: otherwise.
    """
    if len(text) > _NAME_MAX or not _REPOSITORY.fullmatch(text):
        raise NameInvalid(text, "a repository is lower-case path parts joined by '/', at most 255 characters")
    return text


def check_tag(text: str) -> str:
    """Return text if it is a tag.

    Raises:
        NameInvalid: otherwise.
    """
    if not _TAG.fullmatch(text):
        raise NameInvalid(text, "a tag is 1 to 128 of A-Z, a-z, 0-9, '.', '_', '-', not starting with '.' or '-'")
    return text


@dataclass(frozen=True, slots=True, order=True)
class Reference:
    """An image by tag, by digest, or both. Make one with `parse`."""

    registry: str
    repository: str
    tag: str = ""
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Parse "[registry/]repository[:tag][@digest]", filling in docker.io, library/ and :latest as Docker does.

        Raises:
            NameInvalid, DigestInvalid: if any part breaks its grammar.
        """
        name, at, digest_text = text.partition("@")
        digest = Digest.parse(digest_text) if at else None
        tag = ""
        if name.rfind(":") > name.rfind("/"):
            name, _, tag = name.rpartition(":")
            check_tag(tag)
        registry, slash, repository = name.partition("/")
        if not slash or not _looks_like_registry(registry):
            registry, repository = DOCKER_HUB, name
        if registry == DOCKER_HUB and "/" not in repository:
            repository = f"library/{repository}"
        if not tag and digest is None:
            tag = "latest"
        return cls(check_registry(registry), check_repository(repository), tag, digest)

    @property
    def tagged_name(self) -> str:
        """Canonical "registry/repository:tag", the key of images in the tracker; needs a tag."""
        return f"{self.registry}/{self.repository}:{self.tag}"

    @property
    def manifest_reference(self) -> str:
        """What stands after /manifests/ in a request: the digest if there is one, else the tag."""
        return str(self.digest) if self.digest else self.tag

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        digest = f"@{self.digest}" if self.digest else ""
        return f"{self.registry}/{self.repository}{tag}{digest}"


def _looks_like_registry(part: str) -> bool:
    return "." in part or ":" in part or part == "localhost"

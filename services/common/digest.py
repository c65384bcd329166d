"""A content digest that cannot be malformed."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

from stafett.common.errors import DigestInvalid

_ALGORITHM = re.compile(r"[a-z0-9]+(?:[+._-][a-z0-9]+)*")
_HEX = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, order=True)
class Digest:
    """A sha256 digest, the only algorithm that containerd's store uses. Make one with `parse` or `of`."""

    hex: str

    def __post_init__(self) -> None:
        if not _HEX.fullmatch(self.hex):
            raise DigestInvalid(f"sha256:{self.hex}", "sha256 needs 64 lower-case hexadecimal digits")

    @classmethod
    def parse(cls, text: str) -> Digest:
        """Parse "sha256:<64 lower-case hex>".

        Raises:
            DigestInvalid: for anything else, other algorithms included.
        """
        algorithm, colon, encoded = text.partition(":")
        if not colon or not _ALGORITHM.fullmatch(algorithm):
            raise DigestInvalid(text, 'expected "sha256:" and 64 lower-case hexadecimal digits')
        if algorithm != "sha256":
            raise DigestInvalid(text, f"algorithm {algorithm[:20]} is not supported, only sha256 is")
        return cls(encoded)

    @classmethod
    def of(cls, content: bytes) -> Digest:
        """Compute the digest of content."""
        return cls(hashlib.sha256(content).hexdigest())

    def __str__(self) -> str:
        return f"sha256:{self.hex}"

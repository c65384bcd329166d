"""The summary by which a node and the tracker compare what the node holds."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from stafett.common.digest import Digest


@dataclass(frozen=True, slots=True)
class Inventory:
    """Number of complete blobs, and the exclusive or of the first 8 bytes (big endian) of their digests."""

    count: int = 0
    digests_xor: int = 0

    @classmethod
    def of(cls, digests: Iterable[Digest]) -> Inventory:
        """Sum up distinct digests."""
        count = 0
        folded = 0
        for digest in digests:
            count += 1
            folded ^= int(digest.hex[:16], 16)
        return cls(count, folded)

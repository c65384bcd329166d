"""Which bytes of a blob a Range header asks for. Pure; RFC 9110, section 14."""

from __future__ import annotations

import re
from dataclasses import dataclass

from stafett.common.errors import RangeUnsatisfiable

_SINGLE = re.compile(r"bytes=([0-9]{0,19})-([0-9]{0,19})", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Span:
    """`length` bytes from `offset`; `partial` when a range was asked for, so the answer is a 206."""

    offset: int
    length: int
    partial: bool

    def content_range(self, size_bytes: int) -> str:
        """Value of the Content-Range header."""
        return f"bytes {self.offset}-{self.offset + self.length - 1}/{size_bytes}"


def resolve_range(header: str | None, size_bytes: int) -> Span:
    """Apply a Range header to a blob of a size.

    Several ranges, other units and garbage are ignored, as the RFC allows: the answer is the whole blob.

    Raises:
        RangeUnsatisfiable: if the range lies outside the blob.
    """
    match = _SINGLE.fullmatch(header.strip()) if header else None
    if match is None:
        return Span(0, size_bytes, False)
    first, last = match.groups()
    if not first and not last:
        return Span(0, size_bytes, False)
    if not first:
        length = min(int(last), size_bytes)
        if length == 0:
            raise RangeUnsatisfiable(size_bytes)
        return Span(size_bytes - length, length, True)
    start = int(first)
    if last and int(last) < start:
        return Span(0, size_bytes, False)
    if start >= size_bytes:
        raise RangeUnsatisfiable(size_bytes)
    end = min(int(last), size_bytes - 1) if last else size_bytes - 1
    return Span(start, end - start + 1, True)

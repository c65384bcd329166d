"""Paths, queries and ranges."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stafett.common.digest import Digest
from stafett.common.errors import DigestInvalid, NameInvalid, NotServed, RangeUnsatisfiable, StafettError
from stafett.gateway.byte_range import resolve_range
from stafett.gateway.request_path import Kind, parse_content_path
from stafett.gateway.upstream_probe import upstream_url

D = str(Digest.of(b"x"))


@pytest.mark.parametrize(
    ("path", "query", "registry", "repository", "reference"),
    [
        (f"/v2/lib/app/blobs/{D}", "ns=reg.test", "reg.test", "lib/app", D),
        (f"/v2/lib/app/blobs/{D}", "ns=localhost%3A15555", "localhost:15555", "lib/app", D),
        (f"/v2/lib/app/blobs/{D}", "ns=%5B%3A%3A1%5D%3A5000", "[::1]:5000", "lib/app", D),
        (f"/v2/reg.test/lib/app/blobs/{D}", "", "reg.test", "lib/app", D),
        (f"/v2/localhost/app/blobs/{D}", "", "localhost", "app", D),
        (f"/v2/reg.test:5000/app/manifests/{D}", "", "reg.test:5000", "app", D),
        (f"/v2/library/redis/manifests/{D}", "", "docker.io", "library/redis", D),
        ("/v2/lib/app/manifests/v1.0", "ns=reg.test", "reg.test", "lib/app", "v1.0"),
        ("/v2/manifests/blobs/manifests/1", "ns=reg.test", "reg.test", "manifests/blobs", "1"),
    ],
)
def test_good_paths(path: str, query: str, registry: str, repository: str, reference: str) -> None:
    parsed = parse_content_path(path.encode(), query.encode(), "docker.io")
    assert (parsed.registry, parsed.repository, str(parsed.digest or parsed.tag)) == (registry, repository, reference)
    assert parsed.kind is (Kind.BLOBS if "/blobs/sha" in path else Kind.MANIFESTS)


@pytest.mark.parametrize(
    ("path", "query", "error"),
    [
        (f"/v2/lib%2Fapp/blobs/{D}", "", NameInvalid),
        (f"/v2/lib/../app/blobs/{D}", "", NameInvalid),
        (f"/v2/../app/blobs/{D}", "", NameInvalid),
        (f"/v2//app/blobs/{D}", "", NameInvalid),
        (f"/v2/{'a' * 10_000}/blobs/{D}", "", NameInvalid),
        (f"/v2/LIB/blobs/{D}", "", NameInvalid),
        (f"/v2/lib/app/blobs/{D}", "ns=a/b", NameInvalid),
        (f"/v2/lib/app/blobs/{D}", "ns=%ff", NameInvalid),
        ("/v2/lib/app/blobs/latest", "", DigestInvalid),
        ("/v2/lib/app/blobs/sha512:" + "a" * 128, "", DigestInvalid),
        ("/v2/lib/app/manifests/sha256:12", "", DigestInvalid),
        ("/v2/lib/app/manifests/-x", "", NameInvalid),
        ("/v2/lib/app/tags/list", "", NotServed),
        (f"/v2/lib/app/referrers/{D}", "", NotServed),
        ("/v2/blobs/x", "", NotServed),
        ("/", "", NotServed),
        ("/v2/lib/é/manifests/1", "", NameInvalid),
    ],
)
def test_bad_paths(path: str, query: str, error: type[StafettError]) -> None:
    with pytest.raises(error):
        parse_content_path(path.encode(), query.encode(), "docker.io")


@given(st.binary(max_size=300), st.binary(max_size=100))
def test_no_bytes_are_a_crash(path: bytes, query: bytes) -> None:
    try:
        parse_content_path(b"/v2/" + path, query, "docker.io")
    except StafettError:
        return


@pytest.mark.parametrize(
    ("header", "span"),
    [
        (None, (0, 100, False)),
        ("bytes=0-", (0, 100, True)),
        ("bytes=0-0", (0, 1, True)),
        ("bytes=10-19", (10, 10, True)),
        ("bytes=90-1000", (90, 10, True)),
        ("bytes=99-", (99, 1, True)),
        ("bytes=-1", (99, 1, True)),
        ("bytes=-1000", (0, 100, True)),
        ("BYTES=1-2", (1, 2, True)),
        ("bytes=5-4", (0, 100, False)),
        ("bytes=0-1,5-6", (0, 100, False)),
        ("bytes=-", (0, 100, False)),
        ("lines=0-1", (0, 100, False)),
        ("bytes=a-b", (0, 100, False)),
        ("bytes=1-2x", (0, 100, False)),
        ("bytes=" + "9" * 30 + "-", (0, 100, False)),
    ],
)
def test_ranges(header: str | None, span: tuple[int, int, bool]) -> None:
    resolved = resolve_range(header, 100)
    assert (resolved.offset, resolved.length, resolved.partial) == span


@pytest.mark.parametrize(("header", "size"), [("bytes=100-", 100), ("bytes=-0", 100), ("bytes=0-", 0), ("bytes=-5", 0)])
def test_ranges_outside_the_blob(header: str, size: int) -> None:
    with pytest.raises(RangeUnsatisfiable):
        resolve_range(header, size)


@given(st.text(max_size=20) | st.from_regex(r"bytes=[0-9]{0,4}-[0-9]{0,4}", fullmatch=True), st.integers(0, 3000))
def test_a_span_never_leaves_the_blob(header: str, size: int) -> None:
    try:
        span = resolve_range(header, size)
    except RangeUnsatisfiable:
        return
    assert 0 <= span.offset <= size
    assert span.offset + span.length <= size
    assert span.partial or (span.offset, span.length) == (0, size)
    assert not span.partial or span.length > 0


@pytest.mark.parametrize(
    ("registry", "url"),
    [
        ("docker.io", "https://registry-1.docker.io"),
        ("reg.test", "https://reg.test"),
        ("localhost:5000", "http://localhost:5000"),
        ("127.0.0.1:5000", "http://127.0.0.1:5000"),
        ("[::1]:5000", "http://[::1]:5000"),
        ("own.test", "http://10.0.0.1:80"),
    ],
)
def test_where_upstream_is(registry: str, url: str) -> None:
    assert upstream_url(registry, {"own.test": "http://10.0.0.1:80/"}) == url

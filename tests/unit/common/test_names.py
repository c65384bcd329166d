"""Digests and references: what parses, and what does not."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stafett.common.digest import Digest
from stafett.common.errors import DigestInvalid, NameInvalid
from stafett.common.inventory import Inventory
from stafett.common.reference import Reference
from stafett.common.topology import Tier, Topology, tier_between

HEX = "0123456789abcdef" * 4


def test_a_digest_parses_and_prints_the_same() -> None:
    assert str(Digest.parse(f"sha256:{HEX}")) == f"sha256:{HEX}"
    assert Digest.of(b"") == Digest.parse("sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855")


@pytest.mark.parametrize(
    "text",
    [
        "",
        "sha256",
        "sha256:",
        f"sha256:{HEX[:-1]}",
        f"sha256:{HEX}0",
        f"sha256:{HEX.upper()}",
        f"sha512:{HEX * 2}",
        f"SHA256:{HEX}",
        f" sha256:{HEX}",
        f"sha256:{HEX}\n",
        "sha256:" + "٣" * 64,
        f"md5:{HEX}",
    ],
)
def test_anything_else_is_no_digest(text: str) -> None:
    with pytest.raises(DigestInvalid):
        Digest.parse(text)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("redis", "docker.io/library/redis:latest"),
        ("redis:7", "docker.io/library/redis:7"),
        ("bitnami/redis:7", "docker.io/bitnami/redis:7"),
        ("reg.test/a/b:1", "reg.test/a/b:1"),
        ("localhost/a:1", "localhost/a:1"),
        ("localhost:5000/a", "localhost:5000/a:latest"),
        ("[::1]:5000/a:1", "[::1]:5000/a:1"),
        (f"reg.test/a@sha256:{HEX}", f"reg.test/a@sha256:{HEX}"),
        (f"reg.test/a:1@sha256:{HEX}", f"reg.test/a:1@sha256:{HEX}"),
    ],
)
def test_references_are_completed_as_docker_does(text: str, canonical: str) -> None:
    assert str(Reference.parse(text)) == canonical
    assert Reference.parse(canonical) == Reference.parse(text)


@pytest.mark.parametrize(
    "text", ["", "reg.test/", "reg.test/A:1", "reg.test/a:", "reg.test/a:.x", "reg.test/../a", "re g/a", "a" * 300]
)
def test_names_that_break_the_grammar_are_refused(text: str) -> None:
    with pytest.raises(NameInvalid):
        Reference.parse(text)


@given(st.lists(st.binary(max_size=8), unique=True, max_size=20), st.randoms())
def test_an_inventory_does_not_depend_on_order_and_sees_a_missing_blob(
    contents: list[bytes], rng: st.DataObject
) -> None:
    digests = [Digest.of(content) for content in contents]
    shuffled = sorted(digests)
    assert Inventory.of(digests) == Inventory.of(shuffled)
    if digests:
        assert Inventory.of(digests[1:]) != Inventory.of(digests)


@given(*(st.builds(Topology, *(st.sampled_from(["", "a", "b"]) for _ in range(3))) for _ in range(2)))
def test_distance_is_symmetric_and_a_rack_only_counts_inside_its_zone(one: Topology, other: Topology) -> None:
    assert tier_between(one, other) is tier_between(other, one)
    assert (tier_between(one, other) is Tier.RACK) == (one == other)

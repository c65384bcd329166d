"""Who holds others up in a relay tree: told from the pace of a host and that of its source. Pure."""

from __future__ import annotations

from collections.abc import Callable

from stafett.tracker.relay_placement import HOP_BYTES, fan_out, load
from stafett.tracker.relay_tree import NO_PARENT, Seat, Tree

SLOW_SHARE = 0.6
SLOW_LAG_SECONDS = 2.0
"""So far a host has to be behind its parent, too, before it is left: one lost packet makes a slow second.
And by more than two hops' bytes, which a host lags anyway where links are slow."""
CRAWL_SHARE = 0.4
CRAWL_LAG_SECONDS = 1.0
SLOW_WORDS = 3.0
"""And so often in a row, a crawl one and a half times: after a change of parents a wave of bytes goes down a chain."""


def better_last(tree: Tree, node_id: str, in_service: Callable[[str], bool], link_bytes_per_second: float) -> bool:
    """Tell whether a slow host in a chain takes its parent's link from another follower, while the end is free."""
    seat = tree.seats[node_id]
    if not seat.slow or not any(_receives(tree, other) for other in tree.children(seat.parent) - {node_id}):
        return False
    if fan_out(tree.size_bytes, len(tree.seats), link_bytes_per_second) > 1:
        return False
    below = tree.below(node_id)
    return any(
        other.place.region == seat.place.region
        and _receives(tree, other_id)
        and other_id not in below
        and not tree.children(other_id)
        and in_service(other_id)
        for other_id, other in tree.seats.items()
    )


def _receives(tree: Tree, node_id: str) -> bool:
    """Tell whether a host gets the blob at the pace of others."""
    seat = tree.seats.get(node_id)
    return seat is not None and seat.parent != NO_PARENT and not seat.done and not seat.leaf


def falls_behind(tree: Tree, seat: Seat, link_bytes_per_second: float) -> float:
    """Tell how much it counts that a host gets the blob more slowly than its own parent: 1, 1.5 at a crawl, else 0."""
    source = tree.seats.get(seat.parent)
    if source is None or seat.done or not seat.bytes_per_second:
        return 0.0
    expected = link_bytes_per_second / max(1, int(load(tree, seat.parent)))
    if not source.done:
        expected = min(expected, source.bytes_per_second)
    lag = source.received_bytes - seat.received_bytes
    if lag <= 2 * HOP_BYTES:
        return 0.0
    if seat.bytes_per_second < CRAWL_SHARE * expected and lag > CRAWL_LAG_SECONDS * expected:
        return 1.5
    return float(seat.bytes_per_second < SLOW_SHARE * expected and lag > SLOW_LAG_SECONDS * expected)

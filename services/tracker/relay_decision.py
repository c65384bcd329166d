"""Decides from whom a host gets a blob: a node that has it, one that is receiving it, or upstream (a claim). Pure.

A claim goes to one host at a time, only with an open download, and is kept by growth. While the first byte is awaited
all others wait, until a deadline that they share; then everybody is refused for a while. If the claim is lost, the host
that has most goes on from its own last byte, and the others follow it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from stafett.common.relaying import Fetch, Left, Phase, Refused, Wait
from stafett.common.topology import Topology
from stafett.tracker.relay_pace import SLOW_WORDS, better_last, falls_behind
from stafett.tracker.relay_placement import LINK_BYTES_PER_SECOND, Openings
from stafett.tracker.relay_tree import CLAIM, NO_PARENT, Claim, Seat, Tree

FIRST_BYTE_SECONDS = 10.0
"""After the first grant; then a digest without a byte is overdue."""
OVERDUE_SECONDS = 30.0
GROWTH_SECONDS = 10.0
"""A claim that brings nothing for so long is lost."""
UNHEARD_CLAIMANT_SECONDS = 5.0
"""The same if the claimant's gateway has told nothing for so long, plus twice what it may rest."""
SILENT_CLAIMANT_SECONDS = 1.5
"""The same at once if a follower says that the claimant failed it, and nobody has heard of that one for so long."""
IDLE_LAG_BYTES = 4 * 1024 * 1024
"""A host that has nothing new, though its own source is so far ahead, is stuck."""
FRUITLESS_CLAIMS = 2
FRUITLESS_SECONDS = 5.0
UNSEEN_SECONDS = 20.0
DONE_SECONDS = 30.0
HEIR_SECONDS = 5.0
STAY_SECONDS = 1.0
"""A host tells how far it is this often; less often in trees of many."""
STAYS_PER_SECOND = 500
RATE_WEIGHT = 0.5
MOVE_LEAD_SECONDS = 0.5
MOVE_LEAD_BYTES = 1024 * 1024
"""A host that is this little ahead loses nothing when another one is put before it."""


@dataclass(frozen=True, slots=True)
class Ask:
    """What a host tells, see `RelayRequest`. `left` maps parents it has turned away from to the reason."""

    node_id: str
    place: Topology
    phase: Phase
    received_bytes: int = 0
    size_bytes: int = 0
    ingest_open: bool = False
    parent: str = NO_PARENT
    token: int = 0
    left: Mapping[str, Left] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Follow:
    """Get the bytes from this node."""

    parent: str
    complete: bool
    ancestors: tuple[str, ...] = ()


Answer = Follow | Fetch | Wait | Refused


@dataclass(frozen=True, slots=True)
class View:
    """What is believed of the cluster now (Unix seconds): who serves, who has the whole blob, who should be a leaf, how
    fast links are."""

    now: float
    in_service: Callable[[str], bool]
    complete: Mapping[str, Topology]
    unsteady: Collection[str] = ()
    link_bytes_per_second: float = LINK_BYTES_PER_SECOND


def decide(tree: Tree, asks: Sequence[Ask], view: View) -> dict[str, Answer]:
    """Answer all who ask at the same moment, by node id; those who need a parent are placed together."""
    _tidy(tree, view)
    answers: dict[str, Answer] = {}
    homeless: dict[str, Ask] = {}
    for ask in asks:
        answer = _settled(tree, ask, view)
        if answer is None:
            homeless[ask.node_id] = ask
        else:
            answers[ask.node_id] = answer
    if homeless:
        openings = Openings(tree, view.complete, view.in_service, view.link_bytes_per_second)
        for node_id in openings.in_order(((ask.node_id, ask.place) for ask in homeless.values()), view.unsteady):
            answers[node_id] = _place(tree, homeless[node_id], view, openings)
    return answers


def stay_seconds(tree: Tree) -> float:
    """How long until a host tells again how far it is."""
    return max(STAY_SECONDS, len(tree.seats) / STAYS_PER_SECOND)


def _tidy(tree: Tree, view: View) -> None:
    """Forget hosts that nobody has heard of, a deadline that nobody waits for any more, and a claim that is lost."""
    unseen = UNSEEN_SECONDS + 4 * stay_seconds(tree)
    for node_id, seat in list(tree.seats.items()):
        if view.now - seat.seen_at > (DONE_SECONDS if seat.done else unseen):
            tree.remove(node_id)
    if not tree.seats:
        tree.awaited_since, tree.fruitless_claims = 0.0, 0
    claim = tree.claim
    if claim is None:
        return
    if tree.awaited_since and view.now - tree.awaited_since > FIRST_BYTE_SECONDS:
        _lose_claim(tree, view.now)
        _refuse(tree, view.now + OVERDUE_SECONDS)
        return
    claimant = tree.seats.get(claim.node_id)
    heard = claimant and view.now - claimant.seen_at <= UNHEARD_CLAIMANT_SECONDS + 2 * stay_seconds(tree)
    if not heard or view.now - claim.grew_at > GROWTH_SECONDS or not view.in_service(claim.node_id):
        _lose_claim(tree, view.now)


def _lose_claim(tree: Tree, now: float) -> None:
    claim = tree.claim
    if claim is None:
        return
    tree.set_claim(None)
    if claim.fruitless:
        tree.fruitless_claims += 1
        if tree.fruitless_claims >= FRUITLESS_CLAIMS:
            _refuse(tree, now + FRUITLESS_SECONDS)


def _refuse(tree: Tree, until: float) -> None:
    tree.refused_until = until
    tree.awaited_since = 0.0
    tree.fruitless_claims = 0


def _settled(tree: Tree, ask: Ask, view: View) -> Answer | None:
    """Note what a host tells; answer it unless it needs a parent."""
    if ask.phase is Phase.LEAVE:
        return _leave(tree, ask, view.now)
    before = tree.seats[ask.node_id].received_bytes if ask.node_id in tree.seats else 0
    seat = _seat(tree, ask, view)
    for node_id, why in ask.left.items():
        _note_left(tree, node_id, why, view)
    claim = _claim_of(tree, ask, before, view.now)
    if claim and (ask.phase is Phase.DONE or ask.received_bytes > max(before, claim.from_bytes)):
        _note_growth(tree, claim, view.now)
    if ask.phase is Phase.DONE:
        _finish(tree, ask.node_id, seat)
        return Refused("it has all of it")
    if claim:
        return Fetch(claim.token)
    if ask.phase is Phase.STAY and ask.token:
        return Wait()  # it fetches under a claim that it has lost
    return _where_it_is(tree, ask, view)


def _leave(tree: Tree, ask: Ask, now: float) -> Answer:
    """Take a host's seat, and its claim; a word that names an older claim changes nothing."""
    if tree.claim and tree.claim.node_id == ask.node_id:
        if ask.token not in (0, tree.claim.token):
            return Refused("it has come back meanwhile")
        _lose_claim(tree, now)
    tree.remove(ask.node_id)
    return Refused("it has left")


def _claim_of(tree: Tree, ask: Ask, before: int, now: float) -> Claim | None:
    """Find the claim of the host that asks; a lost one comes back if its fetch grows and nobody has a newer one."""
    claim = tree.claim
    if claim is None and ask.phase is Phase.STAY and ask.token >= max(1, tree.token) and ask.received_bytes > before:
        tree.token = ask.token
        tree.attach(ask.node_id, NO_PARENT)
        tree.set_claim(claim := Claim(ask.node_id, ask.token, before, now, now))
    return claim if claim and claim.node_id == ask.node_id else None


def _where_it_is(tree: Tree, ask: Ask, view: View) -> Follow | None:
    """Let a host keep its parent, also one that has nothing new if that is not its fault."""
    parent = tree.seats[ask.node_id].parent
    waits = ask.left.get(parent) is Left.IDLE and _fed(tree, parent, view)
    if (ask.phase is Phase.STAY or waits) and _may_stay(tree, ask, view):
        return Follow(parent, parent in view.complete, tree.ancestors(parent))
    return None


def _finish(tree: Tree, node_id: str, seat: Seat) -> None:
    seat.done, seat.received_bytes = True, max(tree.size_bytes, seat.received_bytes)
    tree.changed.add(node_id)
    tree.attach(node_id, NO_PARENT)
    if tree.claim and tree.claim.node_id == node_id:
        tree.set_claim(None)


def _seat(tree: Tree, ask: Ask, view: View) -> Seat:
    """Find a host's seat, or make one; note how far the host is, and how fast it got there."""
    now = view.now
    tree.size_bytes = max(tree.size_bytes, ask.size_bytes)
    seat = tree.seats.get(ask.node_id)
    known = seat is not None and seat.bytes_per_second > 0
    if seat is None:
        parent = NO_PARENT if ask.parent in tree.below(ask.node_id) else ask.parent
        seat = tree.sit(ask.node_id, Seat(ask.place, parent, ask.received_bytes))
    elif ask.phase is Phase.STAY and now - seat.heard_at >= STAY_SECONDS / 2:
        if seat.heard_at:
            rate = max(0, ask.received_bytes - seat.received_bytes) / (now - seat.heard_at)
            seat.bytes_per_second += RATE_WEIGHT * (rate - seat.bytes_per_second) if seat.bytes_per_second else rate
        seat.received_bytes = ask.received_bytes
    else:
        seat.received_bytes = max(seat.received_bytes, ask.received_bytes)
    seat.seen_at = seat.heard_at = now
    seat.done = False
    if ask.phase is Phase.STAY and known and not seat.slow:
        weight = falls_behind(tree, seat, view.link_bytes_per_second)
        seat.behind = seat.behind + weight if weight else 0
        if seat.behind >= SLOW_WORDS:
            seat.slow = True
            tree.changed.add(ask.node_id)
    if ask.phase is Phase.STAY and ask.parent in view.complete and ask.parent not in tree.below(ask.node_id):
        tree.attach(ask.node_id, ask.parent)  # its gateway has changed to another one that has all of it
    return seat


def _note_left(tree: Tree, node_id: str, why: Left, view: View) -> None:
    """Nobody new follows who failed or is stuck; a claimant that fails and is silent has lost its claim."""
    seat = tree.seats.get(node_id)
    if seat is None or not _at_fault(tree, node_id, why, view) or why is Left.DECLINED:
        return
    if not seat.blocked and not seat.done:
        seat.blocked = True
        tree.changed.add(node_id)
    fetching = tree.claim is not None and tree.claim.node_id == node_id
    if fetching and view.now - seat.seen_at > SILENT_CLAIMANT_SECONDS:
        _lose_claim(tree, view.now)


def _at_fault(tree: Tree, node_id: str, why: Left, view: View) -> bool:
    """Tell whether a parent that a host has left is not for it any more: waiting for its own source is no fault."""
    seat = tree.seats.get(node_id)
    if why is not Left.IDLE or seat is None or seat.done or node_id in view.complete:
        return True
    if tree.claim and tree.claim.node_id == node_id:
        return False  # upstream's fault, and for `_tidy` to judge
    source = tree.seats.get(seat.parent)
    ahead = source is not None and (source.done or source.received_bytes - seat.received_bytes > IDLE_LAG_BYTES)
    return ahead or seat.parent in view.complete or view.now - seat.seen_at > HEIR_SECONDS + 2 * stay_seconds(tree)


def _fed(tree: Tree, node_id: str, view: View) -> bool:
    """Tell whether bytes may still come through a node: its path ends at a claim, or at one that has all of it."""
    path = (node_id, *tree.ancestors(node_id))
    root = tree.seats.get(path[-1])
    fetches = tree.claim is not None and tree.claim.node_id == path[-1]
    return (fetches or path[-1] in view.complete or (root is not None and root.done)) and all(
        map(view.in_service, path)
    )


def _note_growth(tree: Tree, claim: Claim, now: float) -> None:
    if claim.fruitless:
        tree.changed.add(CLAIM)
    tree.set_claim(replace(claim, grew_at=max(now, claim.granted_at + 1e-6)))
    tree.awaited_since = 0.0
    tree.fruitless_claims = 0


def _may_stay(tree: Tree, ask: Ask, view: View) -> bool:
    """Tell whether a host keeps its parent: one in service, not the reason why it is slow, nor held up by it."""
    parent_id = tree.seats[ask.node_id].parent
    if parent_id == NO_PARENT or parent_id in _shunned(tree, ask, view) or not view.in_service(parent_id):
        return False
    if better_last(tree, ask.node_id, view.in_service, view.link_bytes_per_second):
        return False
    parent = tree.seats.get(parent_id)
    return parent is None or parent_id in view.complete or not parent.slow


def _shunned(tree: Tree, ask: Ask, view: View) -> set[str]:
    """Whom a host is not sent to (again)."""
    return {node_id for node_id, why in ask.left.items() if _at_fault(tree, node_id, why, view)}


def _place(tree: Tree, ask: Ask, view: View, openings: Openings) -> Answer:
    barred = tree.below(ask.node_id) | _shunned(tree, ask, view)
    taken = openings.take(ask.place, barred, lambda child: _may_move(tree, child, ask, view))
    if taken is not None:
        parent, moved = taken
        answer = _attach(tree, ask, parent, view, openings)
        if moved:
            tree.attach(moved, ask.node_id)
            openings.add(ask.node_id, ask.place, parent)
        return answer
    seat = tree.seats[ask.node_id]
    if ask.phase is Phase.STAY and seat.parent != NO_PARENT:
        return Follow(seat.parent, complete=False, ancestors=tree.ancestors(seat.parent))
    if tree.claim is not None or ask.phase is Phase.STAY:
        tree.attach(ask.node_id, NO_PARENT)
        return Wait()
    if view.now < tree.refused_until:
        return Refused("nobody has it, and upstream did not deliver it a moment ago")
    heir = _heir(tree, ask, view, barred)
    if heir is not None:
        return _attach(tree, ask, heir, view, openings)
    may_fetch = ask.ingest_open and view.in_service(ask.node_id)
    return _grant(tree, ask, view, openings) if may_fetch else Refused("nobody has it")


def _may_move(tree: Tree, node_id: str, ask: Ask, view: View) -> bool:
    """Tell whether a host may be put below one that asks now: it is not far ahead of it, nor does it lead to it."""
    seat, newcomer = tree.seats[node_id], tree.seats[ask.node_id]
    lead = seat.received_bytes - ask.received_bytes
    if newcomer.leaf or not view.in_service(ask.node_id):
        return False
    return lead <= max(MOVE_LEAD_BYTES, MOVE_LEAD_SECONDS * seat.bytes_per_second) and ask.node_id not in tree.below(
        node_id
    )


def _grant(tree: Tree, ask: Ask, view: View, openings: Openings) -> Fetch:
    tree.token += 1
    tree.attach(ask.node_id, NO_PARENT)
    tree.set_claim(Claim(ask.node_id, tree.token, ask.received_bytes, view.now, view.now))
    if ask.received_bytes:
        openings.add(ask.node_id, ask.place, NO_PARENT)
    elif view.now - tree.awaited_since > FIRST_BYTE_SECONDS:
        tree.awaited_since = view.now
    return Fetch(tree.token)


def _attach(tree: Tree, ask: Ask, parent: str, view: View, openings: Openings) -> Follow:
    tree.attach(ask.node_id, parent)
    if not tree.seats[ask.node_id].leaf and view.in_service(ask.node_id):
        openings.add(ask.node_id, ask.place, parent)
    return Follow(parent, parent in view.complete, tree.ancestors(parent))


def _heir(tree: Tree, ask: Ask, view: View, barred: Collection[str]) -> str | None:
    """Find who has more than the asker and will be the next to fetch from upstream."""
    ahead = [
        (seat.received_bytes, node_id)
        for node_id, seat in tree.seats.items()
        if seat.received_bytes > ask.received_bytes
        and node_id not in barred
        and not seat.leaf
        and view.now - seat.seen_at < HEIR_SECONDS
        and view.in_service(node_id)
    ]
    return max(ahead)[1] if ahead else None

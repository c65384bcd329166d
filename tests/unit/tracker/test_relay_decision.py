"""From whom a host gets a blob: claims, trees, and that no host ever waits for itself."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from stafett.common.relaying import Fetch, Left, Phase, Refused, Wait
from stafett.common.topology import Topology
from stafett.tracker.relay_decision import (
    FIRST_BYTE_SECONDS,
    FRUITLESS_SECONDS,
    GROWTH_SECONDS,
    OVERDUE_SECONDS,
    UNHEARD_CLAIMANT_SECONDS,
    Answer,
    Ask,
    Follow,
    View,
    decide,
)
from stafett.tracker.relay_placement import fan_out
from stafett.tracker.relay_tree import Tree

MIB = 1024 * 1024
SIZE = 100 * MIB


@dataclass
class World:
    """A tree, a clock, and who serves."""

    tree: Tree = field(default_factory=Tree)
    now: float = 1000.0
    down: set[str] = field(default_factory=set)
    complete: dict[str, Topology] = field(default_factory=dict)

    def ask(self, *asks: Ask) -> dict[str, Answer]:
        view = View(self.now, lambda node_id: node_id not in self.down, self.complete)
        return decide(self.tree, asks, view)

    def enter(self, *names: str, got: int = 0, left: Mapping[str, Left] | None = None, ingest: bool = True) -> Answer:
        """All ask at the same moment; the answer to the last one."""
        return self.ask(*(told(name, Phase.ENTER, got, left=left, ingest=ingest) for name in names))[names[-1]]

    def stay(self, name: str, got: int, token: int = 0) -> Answer:
        parent = self.tree.seats[name].parent if name in self.tree.seats else ""
        return self.ask(told(name, Phase.STAY, got, parent=parent, token=token))[name]

    def parents(self) -> dict[str, str]:
        return {name: seat.parent for name, seat in self.tree.seats.items()}


def place_of(name: str) -> Topology:
    """Names are zone, then number: "a1"."""
    return Topology("eu", name[0])


def told(
    name: str,
    phase: Phase,
    got: int = 0,
    *,
    parent: str = "",
    token: int = 0,
    left: Mapping[str, Left] | None = None,
    ingest: bool = True,
) -> Ask:
    return Ask(name, place_of(name), phase, got, SIZE, ingest, parent, token, left or {})


def test_the_first_with_an_open_download_fetches_and_the_others_wait() -> None:
    world = World()
    assert world.enter("a0", ingest=False) == Refused("nobody has it")
    assert world.enter("a1") == Fetch(1)
    assert world.enter("a2", "a3") == Wait()
    assert world.enter("a1") == Fetch(1)


def test_with_the_first_bytes_those_who_wait_become_a_chain_that_enters_each_zone_once() -> None:
    world = World()
    names = ["b2", "a4", "b3", "a2", "a3", "b1"]
    world.enter("a1", *names)
    world.stay("a1", MIB)
    world.enter(*names)
    parents = world.parents()
    assert sorted(parents.values()) == sorted(["", *(set(parents.values()) - {""})])
    assert sum(1 for name, parent in parents.items() if parent and parent[0] != name[0]) == 1
    assert len(world.tree.ancestors("b3")) == 6


def test_a_newcomer_of_a_zone_is_put_before_the_way_out_of_it() -> None:
    world = World()
    world.enter("a1", "a2", "b1")
    world.stay("a1", MIB)
    world.enter("a2", "b1")
    assert world.parents() == {"a1": "", "a2": "a1", "b1": "a2"}
    assert isinstance(world.enter("a3"), Follow)
    assert world.parents() == {"a1": "", "a2": "a1", "a3": "a2", "b1": "a3"}
    assert world.stay("b1", 100) == Follow("a3", complete=False, ancestors=("a2", "a1"))


def test_without_a_byte_in_time_everybody_is_sent_away_for_a_while() -> None:
    world = World()
    world.enter("a1", "a2")
    world.now += FIRST_BYTE_SECONDS + 0.1
    assert isinstance(world.enter("a2"), Refused)
    world.now += OVERDUE_SECONDS / 2
    assert isinstance(world.enter("a3"), Refused)
    world.now += OVERDUE_SECONDS
    assert isinstance(world.enter("a3"), Fetch)


def test_when_two_could_not_fetch_it_the_others_do_not_try_one_by_one() -> None:
    world = World()
    world.enter("a1", "a2", "a3")
    world.ask(told("a1", Phase.LEAVE))
    assert world.enter("a2") == Fetch(2)
    world.ask(told("a2", Phase.LEAVE))
    assert isinstance(world.enter("a3"), Refused)
    world.now += FRUITLESS_SECONDS + 0.1
    assert world.enter("a3") == Fetch(3)


def eight_in_a_chain() -> World:
    world = World()
    names = [f"{zone}{number}" for zone in "ab" for number in range(1, 5)]
    world.enter(*names)
    world.stay("a1", MIB)
    world.enter(*names[1:])
    world.stay("a1", 8 * MIB)
    for lag, name in enumerate(names[1:]):
        world.stay(name, 7 * MIB - lag * 1000)
    return world


def test_a_pause_of_upstream_moves_nobody() -> None:
    world = eight_in_a_chain()
    before = world.parents()
    for _ in range(8):
        world.now += 1
        world.stay("a1", 8 * MIB)
    waiting = [
        told(name, Phase.ENTER, world.tree.seats[name].received_bytes, left={parent: Left.IDLE})
        for name, parent in before.items()
        if parent
    ]
    answers = world.ask(*waiting)
    assert world.parents() == before
    assert {answer.parent for answer in answers.values() if isinstance(answer, Follow)} == {*before.values()} - {""}
    assert not any(seat.blocked for seat in world.tree.seats.values())


def test_who_has_nothing_new_though_its_source_has_is_left() -> None:
    world = eight_in_a_chain()
    world.now += 1
    world.stay("a1", 30 * MIB)
    [follower] = world.tree.children("a2")
    world.enter(follower, got=7 * MIB, left={"a2": Left.IDLE})
    assert world.tree.seats["a2"].blocked
    assert world.parents()[follower] == "a1"


def test_when_upstream_stays_away_one_of_those_who_wait_fetches_and_the_others_follow_it() -> None:
    world = eight_in_a_chain()
    for _ in range(int(GROWTH_SECONDS) + 1):
        world.now += 1
        for name, seat in list(world.tree.seats.items()):
            world.stay(name, seat.received_bytes, token=1 if name == "a1" else 0)
    assert world.tree.claim is None
    waiting = [
        told(name, Phase.ENTER, seat.received_bytes, left={seat.parent: Left.IDLE})
        for name, seat in world.tree.seats.items()
        if seat.parent
    ]
    world.ask(told("a1", Phase.LEAVE, 8 * MIB, token=1))
    answers = [*world.ask(*waiting).values(), *world.ask(*waiting).values()]
    assert sum(isinstance(answer, Fetch) for answer in answers[7:]) == 1
    assert sum(isinstance(answer, Follow) for answer in answers[7:]) == 6


def test_a_claim_comes_back_to_the_fetch_that_goes_on_under_another_tracker() -> None:
    world = World()
    assert world.enter("a1") == Fetch(1)
    world.stay("a1", MIB, token=1)
    world.tree = Tree()  # nothing is known any more, as with a new owner while Redis is away
    assert world.stay("a1", 2 * MIB, token=1) == Fetch(1)
    assert world.enter("a2") == Follow("a1", complete=False)
    world.now += GROWTH_SECONDS + 1
    assert world.stay("a1", 2 * MIB, token=1) != Fetch(1), "it does not grow"


def test_a_tree_that_another_tracker_goes_on_with_keeps_its_claim_and_its_parents() -> None:
    world = eight_in_a_chain()
    parents = world.parents()
    for seat in world.tree.seats.values():
        seat.heard_at = 0.0
    world.now += 60
    world.tree.resume(world.now)
    for name in list(world.tree.seats):
        if name != "a1":
            assert world.stay(name, 60 * MIB) == Follow(
                parents[name], complete=False, ancestors=world.tree.ancestors(parents[name])
            )
    assert world.stay("a1", 61 * MIB, token=1) == Fetch(1)
    assert all(not seat.bytes_per_second for seat in world.tree.seats.values()), "no pace from before"


def test_a_word_about_an_older_claim_changes_nothing() -> None:
    world = World()
    world.enter("a1")
    world.ask(told("a1", Phase.LEAVE, token=1))
    assert world.enter("a1") == Fetch(2)
    world.ask(told("a1", Phase.LEAVE, token=1))
    assert world.stay("a1", MIB, token=2) == Fetch(2)


def test_a_claimant_whose_gateway_is_silent_loses_its_claim_long_before_the_deadline() -> None:
    world = World()
    world.enter("a1", "a2")
    world.now += UNHEARD_CLAIMANT_SECONDS + 2.5
    assert world.enter("a2") == Fetch(2)


def test_a_deadline_that_nobody_waits_for_any_more_does_not_refuse_the_next_one() -> None:
    world = World()
    world.enter("a1")
    world.now += 2
    world.ask(told("a1", Phase.LEAVE, token=1))
    world.now += FIRST_BYTE_SECONDS - 2.5
    assert world.enter("a2") == Fetch(2)
    world.now += 1
    assert world.stay("a2", 0, token=2) == Fetch(2)
    assert world.enter("a3") == Wait()


def losing(how: str) -> Callable[[World], object]:
    def down(world: World) -> None:
        world.down.add("a1")

    def silent(world: World) -> None:
        for _ in range(int(GROWTH_SECONDS) + 2):
            world.now += 1
            world.stay("a2", 8 * MIB)
            world.stay("a3", 4 * MIB)
            world.stay("a1", 10 * MIB)

    def left(world: World) -> None:
        world.ask(told("a1", Phase.LEAVE, 10 * MIB))

    return {"down": down, "silent": silent, "left": left}[how]


def test_a_lost_claim_goes_to_the_host_with_most_bytes_and_the_others_follow_it() -> None:
    for how in ("down", "silent", "left"):
        world = World()
        world.enter("a1", "a2", "a3")
        world.stay("a1", MIB)
        world.enter("a2", "a3")
        world.stay("a1", 10 * MIB)
        world.stay("a2", 8 * MIB)
        world.stay("a3", 4 * MIB)
        losing(how)(world)
        assert isinstance(world.enter("a3", got=4 * MIB, left={"a1": Left.FAILED}), Follow), how
        assert world.tree.seats["a3"].parent == "a2"
        assert world.enter("a2", got=8 * MIB, left={"a1": Left.FAILED}) == Fetch(2), how


def test_who_only_tells_how_far_it_is_never_gets_a_claim() -> None:
    world = World()
    world.enter("a1", "a2")
    world.stay("a1", MIB)
    world.enter("a2")
    world.ask(told("a1", Phase.LEAVE, MIB))
    assert isinstance(world.stay("a2", 1000), Follow)
    assert world.tree.claim is None


def test_complete_holders_are_roots_and_nobody_asks_upstream() -> None:
    world = World(complete={"a9": place_of("a9")})
    assert world.enter("a1") == Follow("a9", complete=True)
    assert world.enter("a2") == Follow("a1", complete=False, ancestors=("a9",))
    assert world.enter("b1") == Follow("a2", complete=False, ancestors=("a1", "a9"))


def test_who_has_all_of_it_serves_at_once() -> None:
    world = World()
    world.enter("a1", "a2")
    world.ask(told("a1", Phase.DONE, SIZE))
    assert world.enter("a2") == Follow("a1", complete=False)


def test_a_parent_that_failed_one_host_is_not_given_to_it_again_and_nobody_else_is_moved() -> None:
    world = World()
    world.enter("a1", "a2", "a3", "a4")
    world.stay("a1", MIB)
    world.enter("a2", "a3", "a4")
    world.stay("a2", MIB)
    world.enter("a3", got=100, left={"a2": Left.FAILED})
    assert world.parents() == {"a1": "", "a2": "a1", "a3": "a1", "a4": "a3"}


def test_a_host_that_falls_behind_its_parent_becomes_a_leaf() -> None:
    world = World()
    world.enter("a1", "a2", "a3")
    world.stay("a1", MIB)
    world.enter("a2", "a3")
    for second in range(1, 9):
        world.now += 1
        world.stay("a1", second * 6 * MIB)
        world.stay("a2", second * MIB)
        world.stay("a3", second * MIB - 1000)
    assert world.parents() == {"a1": "", "a2": "a1", "a3": "a1"}
    assert world.tree.seats["a2"].slow


def test_large_blobs_go_down_a_chain_and_small_ones_down_a_wide_tree() -> None:
    assert fan_out(1024 * MIB, 8) == 1
    assert fan_out(MIB, 1000) > 2
    assert fan_out(1024 * MIB, 5000) == 2


NAMES = [f"{zone}{number}" for zone in "ab" for number in range(5)]


class AnyOrder(RuleBasedStateMachine):
    """Whatever hosts tell and whatever fails."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.tokens = [0]

    @rule(
        names=st.lists(st.sampled_from(NAMES), min_size=1, max_size=4, unique=True),
        phase=st.sampled_from(Phase),
        got=st.integers(0, SIZE),
        parent=st.sampled_from(["", *NAMES]),
        left=st.dictionaries(st.sampled_from(NAMES), st.sampled_from(Left), max_size=3),
    )
    def tell(self, names: list[str], phase: Phase, got: int, parent: str, left: dict[str, Left]) -> None:
        before = dict(self.world.parents())
        self.world.tree.changed.clear()
        answers = self.world.ask(*(told(name, phase, got, parent=parent, left=left) for name in names))
        after = self.world.parents()
        assert {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)} <= (
            self.world.tree.changed
        )
        for name, answer in answers.items():
            if isinstance(answer, Follow):
                assert name not in (answer.parent, *answer.ancestors)
                if phase is Phase.ENTER:
                    assert left.get(answer.parent) in (None, Left.IDLE)
                    assert answer.parent not in self.world.down
            if isinstance(answer, Fetch):
                assert phase is not Phase.STAY or (self.world.tree.claim and self.world.tree.claim.node_id == name)
                self.tokens.append(answer.token)

    @rule(seconds=st.floats(0.1, 12))
    def time_passes(self, seconds: float) -> None:
        self.world.now += seconds

    @rule(name=st.sampled_from(NAMES))
    def fails_or_comes_back(self, name: str) -> None:
        self.world.down ^= {name}
        self.world.complete.pop(name, None)

    @rule(name=st.sampled_from(NAMES))
    def has_all(self, name: str) -> None:
        if name not in self.world.down:
            self.world.complete[name] = place_of(name)

    @invariant()
    def nobody_hangs_on_itself(self) -> None:
        tree = self.world.tree
        for name in tree.seats:
            seen = {name}
            parent = tree.seats[name].parent
            while parent in tree.seats:
                assert parent not in seen
                seen.add(parent)
                parent = tree.seats[parent].parent

    @invariant()
    def children_are_those_who_have_the_parent(self) -> None:
        tree = self.world.tree
        for name in NAMES:
            assert tree.children(name) == {child for child, seat in tree.seats.items() if seat.parent == name}

    @invariant()
    def tokens_grow(self) -> None:
        assert self.tokens == sorted(self.tokens)


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=150, stateful_step_count=30)

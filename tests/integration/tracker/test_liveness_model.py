"""The real scripts against a model of them, in any order of events: a real Valkey whose clock the test sets.

The clock is a file that libfaketime reads whenever the server asks for the time; so leases, windows and expiring keys
run out exactly when the test says so, however slow the machine is.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Coroutine, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, TypeVar, cast

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    Bundle,
    RuleBasedStateMachine,
    consumes,
    invariant,
    multiple,
    precondition,
    rule,
    run_state_machine_as_test,
)

from stafett.common.cluster import Address, NodeState, Registration
from stafett.common.errors import SessionLost
from stafett.common.topology import Topology
from stafett.tracker import membership_store, redis_link
from stafett.tracker.holdings_store import HoldingsStore
from stafett.tracker.housekeeping import Housekeeping
from stafett.tracker.liveness import Event
from stafett.tracker.membership import Membership
from stafett.tracker.membership_store import Due, MembershipStore, Renewal, Scan
from stafett.tracker.proximity import Member
from stafett.tracker.redis_link import RedisLink, RedisPlace
from tests.integration.tracker.liveness_model import (
    BROKEN_GRACE,
    INTERVAL,
    LISTED_MAX,
    REPORT_WINDOW,
    TTL,
    Cluster,
)
from tests.integration.valkey import ValkeyServer

EPOCH_MS = 1_900_000_000_000
FIRST_PORT = 7000
NAMES = [f"n{number}" for number in range(6)]
names = st.sampled_from(NAMES)
some = st.sets(names)
AGES = st.sampled_from([0, 0, 0, 1])
DRAINS = st.sampled_from([Event.DRAIN_ORDERED, Event.DRAIN_ORDERED, Event.DRAIN_ANNOUNCED, Event.DRAIN_REVOKED])
PAUSES = st.sampled_from([1, 250, 499, 500, 1000, 1249, 1250, 2749, 2750, 3999, 4000, 5000, 10_000, 15_000, 45_000])

T = TypeVar("T")


class View:
    """What a replica knows of the nodes: in these tests always the newest."""

    def __init__(self) -> None:
        self.members: dict[str, Member] = {}

    def observe(self, scan: Scan) -> None:
        """Nothing to compare."""


class Bed:
    """A server with a clock that stands still, and one replica's way to it."""

    def __init__(self, directory: Path, runner: asyncio.Runner) -> None:
        self._runner = runner
        self._clock = directory / "clock"
        self.set_clock(EPOCH_MS)
        [library] = Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")
        self.server = ValkeyServer(
            directory,
            environment={
                "LD_PRELOAD": str(library),
                "FAKETIME_TIMESTAMP_FILE": str(self._clock),
                "FAKETIME_NO_CACHE": "1",
                "TZ": "UTC",
            },
        )
        self.run(self.server.start())
        self.link = RedisLink(RedisPlace.parse(self.server.url))
        self.nodes = MembershipStore(self.link, TTL / 1000, INTERVAL / 1000)

    def run(self, operation: Coroutine[Any, Any, T]) -> T:
        return self._runner.run(operation)

    def set_clock(self, unix_ms: int) -> None:
        """Let it be that time for the server, until told otherwise."""
        middle = datetime.fromtimestamp(unix_ms / 1000, UTC) + timedelta(microseconds=500)  # no rounding moves it away
        text = middle.strftime("%Y-%m-%d %H:%M:%S.%f")
        new = self._clock.with_suffix(".new")
        new.write_text(text)
        new.replace(self._clock)

    def flush(self) -> None:
        self.run(self.link.commands([("FLUSHALL",)]))

    def close(self) -> None:
        self.run(self.link.close())
        self.run(self.server.kill())


@pytest.fixture
def bed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bed]:
    monkeypatch.setattr(redis_link, "CALL_SECONDS", 60.0)  # nothing here is about a slow Redis
    monkeypatch.setattr(membership_store, "_DUE_MAX", LISTED_MAX)
    with asyncio.Runner() as runner:
        started = Bed(tmp_path, runner)
        try:
            yield started
        finally:
            started.close()


class LivenessMachine(RuleBasedStateMachine):
    """Whatever happens, in whatever order: Redis and the model know the same afterwards, and events tell it all."""

    verdicts = Bundle("verdicts")

    def __init__(self, bed: Bed) -> None:
        super().__init__()
        self.bed, self.nodes = bed, bed.nodes
        self.model = Cluster(EPOCH_MS)
        self.view = View()
        self.silent: set[str] = set()
        self.housekeeping = Housekeeping(
            self.nodes, cast(HoldingsStore, None), cast(Membership, self.view), self._probe, TTL / 1000
        )
        self.generations: set[str] = set()
        self.epochs: dict[str, list[int]] = {name: [0] for name in NAMES}
        self._start()

    def _start(self) -> None:
        """Begin with empty data, and all nodes registered."""
        self.bed.set_clock(self.model.now)
        self.bed.flush()
        self.revision = 0
        self.replayed: dict[str, Member] = {}
        self.flushes = len(self.generations) + 1
        self.all_register()

    async def _probe(self, address: Address) -> bool:
        return NAMES[address.port - FIRST_PORT] not in self.silent

    def run(self, operation: Coroutine[Any, Any, T]) -> T:
        """Do something, a millisecond after the last thing."""
        self.model.now += 1
        self.bed.set_clock(self.model.now)
        return self.bed.run(operation)

    def session(self, name: str, age: int) -> tuple[str, int]:
        """The node's session, or one that it had before."""
        return name, self.epochs[name][-1 - age :][0]

    @rule(name=names, incarnation=st.integers(1, 2), remembered=st.booleans())
    def register(self, name: str, incarnation: int, remembered: bool) -> None:
        address = Address("127.0.0.1", FIRST_PORT + NAMES.index(name))
        said = Registration(name, incarnation, address, Topology(), {}, "0.1.0")
        epoch = self.run(self.nodes.grant(said, drain_ordered=remembered))
        assert epoch == self.model.grant(name, incarnation, remembered=remembered)
        self.epochs[name].append(epoch)

    @rule()
    def all_register(self) -> None:
        for name in NAMES:
            self.register(name, 1, False)

    @rule(name=names, age=AGES)
    def beats(self, name: str, age: int) -> None:
        session = self.session(name, age)
        [renewed] = self.run(self.nodes.renew([Renewal(*session, None)]))
        assert renewed == self.model.renew(*session)

    @rule(but=some)
    def all_beat(self, but: set[str]) -> None:
        sessions = [self.session(name, 0) for name in NAMES if name not in but]
        renewed = self.run(self.nodes.renew([Renewal(*session, None) for session in sessions]))
        assert renewed == [self.model.renew(*session) for session in sessions]

    @rule(who=some, age=AGES, judged=st.booleans())
    def streams_break(self, who: set[str], age: int, judged: bool) -> None:
        for name in sorted(who):
            session = self.session(name, age)
            self.run(self.nodes.note_broken(*session))
            self.model.note_broken(*session)
        if judged:
            self.model.now += BROKEN_GRACE
            self.replica_judges(who)

    @rule(name=names, age=AGES, event=DRAINS | st.just(Event.LEFT))
    def is_told(self, name: str, age: int, event: Event) -> None:
        session = self.session(name, age)
        try:
            self.run(self.nodes.change(*session, event))
            fenced = False
        except SessionLost:
            fenced = True
        assert fenced == (self.model.change(*session, event) is None)

    @rule(who=st.lists(names, unique=True), reporter=st.sampled_from("gh"))
    def gateway_reports(self, who: list[str], reporter: str) -> None:
        assert self.run(self.nodes.report(who, reporter)) == self.model.report(who, reporter)

    @rule(name=names, age=AGES, event=st.sampled_from([Event.REPORTED, Event.RECOVERED]))
    def probe_shows(self, name: str, age: int, event: Event) -> None:
        self._apply([Due(*self.session(name, age), event)])

    @rule(pause=PAUSES)
    def time_passes(self, pause: int) -> None:
        self.model.now += pause

    @rule(who=some, pause=PAUSES)
    def some_fall_silent(self, who: set[str], pause: int) -> None:
        self.model.now += pause % TTL
        self.all_beat(who)
        self.model.now += TTL - pause % TTL
        self.replica_judges(who)

    @precondition(lambda self: self.model.guarded)
    @rule(early=st.booleans())
    def guard_runs_its_time(self, early: bool) -> None:
        self.model.now = self.model.guard_until - early

    @precondition(lambda self: self.model.lifted)
    @rule(early=st.booleans())
    def guards_rest_runs_its_time(self, early: bool) -> None:
        self.model.now = self.model.lifted_until - early

    @rule(silent=some)
    def replica_judges(self, silent: set[str]) -> None:
        listed = self.compare_scan()
        self.silent = silent
        self.bed.run(self.housekeeping.look(may_judge=True))
        self.model.judge(self.model.scan(), listed, silent)

    @rule(target=verdicts)
    def replica_looks(self) -> Any:
        return self.compare_scan() or multiple()

    @rule(verdict=consumes(verdicts))
    def replica_judges_late(self, verdict: list[Due]) -> None:
        """A replica that was paused between looking and judging: what has changed since fences it."""
        self._apply(verdict)

    @rule(name=names, age=AGES)
    def is_forgotten(self, name: str, age: int) -> None:
        session = self.session(name, age)
        assert self.run(self.nodes.forget(*session)) == self.model.forget(*session)

    @rule(dice=st.integers(0, 3))
    def data_is_lost(self, dice: int) -> None:
        if dice == 0:
            self.model = Cluster(self.model.now + 1)
            self._start()

    def _apply(self, verdict: list[Due]) -> None:
        for due in verdict:
            changed = self.run(self.nodes.apply(due))
            assert changed == (self.model.change(due.node_id, due.epoch, due.event) is True)

    def compare_scan(self) -> list[Due]:
        """Let a scan and the model tell what is due; return the falls that the scan has listed."""
        scan, seen = self.run(self.nodes.scan()), self.model.scan()
        assert (scan.known_nodes, scan.recent_falls, scan.falling_nodes) == (
            seen.known,
            seen.recent_falls,
            seen.falling,
        )
        assert scan.guarded == self.model.guarded
        assert scan.guard_lifted == (self.model.lifted and not self.model.guarded)
        assert scan.now_unix_ms == self.model.now
        listed = [due for due in scan.due if due.event is not Event.RECOVERED]
        assert set(scan.due) - set(listed) == seen.fresh
        assert set(listed) <= seen.falls
        assert len(listed) == min(LISTED_MAX, len(seen.falls))
        return listed

    @invariant()
    def redis_knows_what_the_model_knows(self) -> None:
        snapshot = self.bed.run(self.nodes.snapshot())
        self.view.members = dict(snapshot.members)
        known = {
            name: (
                member.node.epoch,
                member.incarnation,
                member.node.state,
                member.node.reason,
                member.node.state_since_unix_ms,
                member.drain_ordered,
                member.node.flaps,
                member.node.sequence,
            )
            for name, member in snapshot.members.items()
        }
        assert known == {
            name: (
                node.epoch,
                node.incarnation,
                node.state,
                node.reason,
                node.since,
                node.ordered,
                node.flaps,
                node.sequence,
            )
            for name, node in self.model.nodes.items()
        }
        assert snapshot.revision == self.model.revision
        self.generations.add(snapshot.generation)
        assert len(self.generations) == self.flushes, "each data set has a marker of its own"
        self._events_tell_everything_once()

    def _events_tell_everything_once(self) -> None:
        while self.revision < self.model.revision:
            for change in self.bed.run(self.nodes.events_after(self.revision)):
                assert change.revision == self.revision + 1
                self.revision = change.revision
                if change.forgotten:
                    del self.replayed[change.member.node.id]
                else:
                    self.replayed[change.member.node.id] = change.member
        assert self.replayed == self.view.members


@pytest.mark.needs_program("faketime")
@pytest.mark.timeout(300)
def test_scripts_and_model_agree_whatever_happens_in_whatever_order(bed: Bed) -> None:
    run_state_machine_as_test(
        cast(type[LivenessMachine], lambda: LivenessMachine(bed)),
        settings=settings(
            max_examples=int(os.environ.get("STAFETT_LIVENESS_EXAMPLES", "20")),
            stateful_step_count=80,
            suppress_health_check=list(HealthCheck),
        ),
    )


@pytest.fixture
def machine(bed: Bed) -> LivenessMachine:
    """Six nodes with fresh leases."""
    made = LivenessMachine(bed)
    made.redis_knows_what_the_model_knows()
    return made


def down(machine: LivenessMachine) -> set[str]:
    machine.redis_knows_what_the_model_knows()
    return {name for name, member in machine.view.members.items() if member.node.state is NodeState.DOWN}


@pytest.mark.needs_program("faketime")
def test_the_mass_guard_ends_after_a_minute_though_nobody_lifts_it(machine: LivenessMachine) -> None:
    machine.time_passes(TTL)
    machine.replica_judges(set())
    machine.guard_runs_its_time(early=True)
    machine.replica_judges(set())
    assert down(machine) == set()
    machine.guard_runs_its_time(early=False)
    for _ in range(2):  # six are due, a scan lists three
        machine.replica_judges(set())
    assert down(machine) == set(NAMES)


@pytest.mark.needs_program("faketime")
def test_more_failures_than_a_scan_lists_are_a_mass_failure(machine: LivenessMachine) -> None:
    for name in NAMES[:2]:
        machine.is_told(name, 0, Event.DRAIN_ANNOUNCED)  # their leases run out first, and they are no falls
    machine.time_passes(TTL)
    machine.replica_judges(set())
    assert machine.model.guarded, "three are listed, but four fall"
    machine.redis_knows_what_the_model_knows()
    assert down(machine) == set()


@pytest.mark.needs_program("faketime")
def test_what_another_replica_has_decided_is_held_back_by_the_guard_and_void_after_a_heartbeat(
    machine: LivenessMachine,
) -> None:
    machine.time_passes(TTL)
    verdict = machine.compare_scan()
    machine.replica_judges(set())
    machine.replica_judges_late(verdict)
    assert down(machine) == set(), "held back"
    machine.guard_runs_its_time(early=False)
    machine.time_passes(1)
    machine.all_beat({verdict[0].node_id})
    machine.replica_judges_late(verdict)
    assert down(machine) == {verdict[0].node_id}


@pytest.mark.needs_program("faketime")
def test_reports_count_for_five_seconds_each(machine: LivenessMachine) -> None:
    reporters = []
    for reporter in ("g", "h", "h"):
        machine.gateway_reports(NAMES[:2], reporter)
        reporters.append(machine.model.report(NAMES[:1], reporter)[0])
        machine.time_passes(REPORT_WINDOW // 2)
    assert reporters == [1, 2, 1]


@pytest.mark.needs_program("faketime")
def test_an_operators_order_counts_though_the_node_drains_already(machine: LivenessMachine) -> None:
    for event in (Event.DRAIN_ANNOUNCED, Event.DRAIN_ORDERED):
        machine.is_told("n0", 0, event)
        machine.redis_knows_what_the_model_knows()
    assert machine.view.members["n0"].drain_ordered

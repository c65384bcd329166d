"""A client pulls one blob while something happens to who sends it: what it sees, and what the cluster learns."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import pytest

from stafett.cli.local_cluster.processes import free_port, wait_until
from stafett.common.blob_files import blob_path
from tests.chaos.client import Answer, ask, failovers, status_of_a_read
from tests.chaos.holders import READY, Holders, holders

BLOB_BYTES = 16_000_000
MIDDLE = 4_000_000
GAP_SECONDS = 3.0
"""Half more than the design allows to a frozen holder, as CI machines are slow."""
DRAINING = 3
DOWN = 4
FAR = ("far1", "far2")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Holders]:
    with holders(tmp_path_factory.mktemp("holders")) as started:
        yield started


@pytest.fixture
def hosts(shared: Holders) -> Iterator[Holders]:
    shared.wait_ready()
    yield shared
    shared.restore()


def signal_to(hosts: Holders, number: signal.Signals) -> Callable[[str], None]:
    def send(name: str) -> None:
        node = hosts.named(name).node
        assert node is not None
        node.signal(number)

    return send


def test_a_holder_that_refuses_connections_costs_one_attempt(hosts: Holders) -> None:
    digest = hosts.give(1_000_000, "refused")
    assert ask(hosts.asking, digest, method="HEAD").node == "near"
    assert hosts.near.node is not None
    for tracker in hosts.bed.cluster.trackers:
        tracker.process.signal(signal.SIGSTOP)  # so that nobody can tell the gateway what it finds out itself
    try:
        hosts.near.node.kill()
        answer = ask(hosts.asking, digest)
        again = ask(hosts.asking, digest)
    finally:
        for tracker in hosts.bed.cluster.trackers:
            tracker.process.signal(signal.SIGCONT)
    assert answer.is_all_of(digest)
    assert answer.node in FAR
    assert answer.first_byte_seconds < 1.0
    assert again.is_all_of(digest)
    assert len(failovers(hosts.asking, "near", digest)) == 1, "the second request does not try the dead node again"
    wait_until(lambda: hosts.bed.node(hosts.near).state != READY, "the dead node is noticed")


def test_a_holder_that_refuses_connections_is_reported_and_one_reporter_alone_evicts_nobody(hosts: Holders) -> None:
    digest = hosts.give(1_000_000, "refusing")
    assert hosts.near.node is not None
    hosts.near.node.stop()
    hosts.start_node(hosts.near, {"advertise_port": free_port()})  # it lives, but nobody listens where it says
    hosts.wait_ready()
    wait_until(lambda: ask(hosts.asking, digest, method="HEAD").node == "near", "the near one is chosen")
    answer = ask(hosts.asking, digest)
    assert answer.is_all_of(digest)
    assert answer.node in FAR
    assert len(failovers(hosts.asking, "near", digest)) == 1
    wait_until(lambda: hosts.bed.node(hosts.near).score.components["outcomes"] < 1.0, "the failure is reported")
    assert hosts.bed.node(hosts.near).state == READY
    hosts.near.node.stop()


@pytest.mark.parametrize("fault", [signal.SIGKILL, signal.SIGSTOP])
def test_a_response_goes_on_when_its_holder_is_killed_or_frozen(hosts: Holders, fault: signal.Signals) -> None:
    digest = hosts.give(BLOB_BYTES, f"dying-{fault}")
    answer = ask(hosts.asking, digest, at_bytes=MIDDLE, then=signal_to(hosts, fault))
    assert answer.is_all_of(digest)
    assert answer.longest_gap_seconds < GAP_SECONDS
    assert len(failovers(hosts.asking, answer.node, digest)) == 1
    wait_until(lambda: hosts.bed.node(hosts.named(answer.node)).state != READY, "the dead node is noticed")
    assert ask(hosts.asking, digest, method="HEAD").node != answer.node


def test_a_blob_that_a_holder_has_lost_comes_from_the_next_and_the_holding_is_withdrawn(hosts: Holders) -> None:
    digest = hosts.give(1_000_000, "lost")
    lost = ask(hosts.asking, digest, method="HEAD").node
    blob_path(hosts.named(lost).content_root, digest).unlink()
    answer = ask(hosts.asking, digest)
    assert answer.is_all_of(digest)
    assert answer.node != lost
    wait_until(lambda: lost not in hosts.bed.holders(digest), "the holding is withdrawn")
    assert hosts.bed.node(hosts.named(lost)).state == READY


def make_a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def cut_short(path: Path) -> None:
    os.truncate(path, 3_000_000)


@pytest.mark.parametrize("damage", [make_a_directory, cut_short])
def test_a_file_that_cannot_be_read_costs_nothing_and_shows_in_the_nodes_health(
    hosts: Holders, damage: Callable[[Path], None]
) -> None:
    digest = hosts.give(BLOB_BYTES, damage.__name__)
    errors_before = hosts.bed.node(hosts.near).health.disk_errors
    path = blob_path(hosts.near.content_root, digest)
    damage(path)
    answer = ask(hosts.asking, digest)
    assert answer.is_all_of(digest)
    assert answer.longest_gap_seconds < GAP_SECONDS
    wait_until(lambda: hosts.bed.node(hosts.near).health.disk_errors > errors_before, "a disk error is reported")
    path.rmdir() if path.is_dir() else path.unlink()


@pytest.mark.parametrize("damage", [make_a_directory, cut_short])
def test_an_own_copy_that_cannot_be_read_is_no_worse_than_none(hosts: Holders, damage: Callable[[Path], None]) -> None:
    digest = hosts.give(4_000_000, f"own-{damage.__name__}", to=(hosts.asking, hosts.near))
    path = blob_path(hosts.asking.content_root, digest)
    damage(path)
    try:
        assert ask(hosts.asking, digest).is_all_of(digest)
    finally:
        path.rmdir() if path.is_dir() else path.unlink()


def test_without_any_holder_left_a_response_ends_short_and_the_rest_is_a_404(hosts: Holders) -> None:
    digest = hosts.give(BLOB_BYTES, "all-gone")
    content = blob_path(hosts.near.content_root, digest).read_bytes()

    def kill_all(_: str) -> None:
        for host in hosts.all:
            assert host.node is not None
            host.node.signal(signal.SIGKILL)

    answer = ask(hosts.asking, digest, at_bytes=MIDDLE, then=kill_all)
    assert answer.status == 200
    assert MIDDLE <= len(answer.received) < BLOB_BYTES
    assert content.startswith(answer.received), "not a wrong byte"
    rest = ask(hosts.asking, digest, offset=len(answer.received))
    assert rest.status == 404
    assert rest.seconds < 5


def test_with_its_own_node_dead_a_gateway_still_serves_from_peers(hosts: Holders) -> None:
    digest = hosts.give(BLOB_BYTES, "own-node-dead")
    assert hosts.asking.node is not None
    hosts.asking.node.kill()
    at_once = ask(hosts.asking, digest)
    assert at_once.is_all_of(digest)
    wait_until(lambda: hosts.bed.node(hosts.asking).state == DOWN, "the dead node's lease has run out")
    assert ask(hosts.asking, digest).is_all_of(digest)


def test_a_draining_node_finishes_what_it_sends_and_starts_nothing_new(hosts: Holders) -> None:
    digest = hosts.give(BLOB_BYTES * 2, "drained")
    node = hosts.near.node
    assert node is not None
    later: list[Answer] = []
    refusals: list[grpc.StatusCode] = []

    def ask_when_known() -> None:
        wait_until(lambda: hosts.bed.node(hosts.near).state == DRAINING, "DRAINING is announced", 5)
        refusals.append(status_of_a_read(hosts.near, digest))
        time.sleep(0.5)  # the push to the gateway
        later.append(ask(hosts.asking, digest))

    other_client = threading.Thread(target=ask_when_known)

    def drain(name: str) -> None:
        assert name == "near"
        node.signal(signal.SIGTERM)
        other_client.start()

    answer = ask(hosts.asking, digest, at_bytes=MIDDLE, then=drain)
    other_client.join(30)
    assert answer.is_all_of(digest)
    assert failovers(hosts.asking, "near", digest) == []
    assert later[0].is_all_of(digest)
    assert later[0].node in FAR
    assert refusals == [grpc.StatusCode.FAILED_PRECONDITION], "not even to who has not heard of the drain"
    assert node.popen.wait(10) == 0, "it ended by itself"
    assert '"drain_cut_short"' not in node.log_tail(50)


def test_a_drain_that_takes_too_long_is_cut_short_and_the_client_gets_the_rest_elsewhere(hosts: Holders) -> None:
    digest = hosts.give(BLOB_BYTES * 2, "drained-too-long")
    assert hosts.near.node is not None
    hosts.near.node.stop()
    hosts.start_node(hosts.near, {"drain_grace_seconds": 0.5})
    wait_until(lambda: ask(hosts.asking, digest, method="HEAD").node == "near", "the near one serves again")
    answer = ask(hosts.asking, digest, at_bytes=MIDDLE, then=signal_to(hosts, signal.SIGTERM))
    assert answer.is_all_of(digest)
    assert answer.longest_gap_seconds < GAP_SECONDS
    assert hosts.near.node.popen.wait(10) == 0, "it ended by itself"
    assert '"drain_cut_short"' in hosts.near.node.log_tail(50)


@pytest.fixture
def small_disk(hosts: Holders) -> Iterator[Path]:
    """Put the near host's store on a file system of its own that can be filled."""
    root = hosts.near.content_root
    assert hosts.near.node is not None
    hosts.near.node.stop()
    shutil.copytree(root, kept := root.with_name("kept"))
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={8 * BLOB_BYTES}", "tmpfs", root], check=True)
    try:
        shutil.copytree(kept, root, dirs_exist_ok=True, ignore=shutil.ignore_patterns("sha256"))
        (root / "blobs" / "sha256").mkdir()
        hosts.start_node(hosts.near)
        hosts.wait_ready()
        yield root
        hosts.near.node.stop()
    finally:
        subprocess.run(["umount", "--lazy", root], check=True)


@pytest.mark.needs_root
def test_a_full_disk_shows_in_the_nodes_health_and_what_it_holds_is_still_served(
    hosts: Holders, small_disk: Path
) -> None:
    digest = hosts.give(1_000_000, "disk-full")

    def disk() -> float:
        return float(hosts.bed.node(hosts.near).score.components["disk"])

    wait_until(lambda: disk() == 1.0, "the store is listed")
    with contextlib.suppress(OSError), (small_disk / "filler").open("wb") as filler:
        while True:
            filler.write(bytes(1_000_000))
    wait_until(lambda: disk() < 0.5, "the score falls")
    assert hosts.bed.node(hosts.near).state == READY
    assert ask(hosts.asking, digest).is_all_of(digest)
    (small_disk / "filler").unlink()
    wait_until(lambda: disk() == 1.0, "the score recovers")


def test_a_node_name_at_another_address_is_not_dialled_at_the_old_one(hosts: Holders) -> None:
    digest = hosts.give(1_000_000, "renamed")
    assert ask(hosts.asking, digest).node == "near"
    old_port, old_node = hosts.near.node_port, hosts.near.node
    epoch = hosts.bed.node(hosts.near).epoch
    assert old_node is not None
    old_node.kill()
    hosts.near.node_port += 10_000 if old_port < 50_000 else -10_000
    hosts.start_node(hosts.near)
    wait_until(lambda: hosts.bed.node(hosts.near).epoch > epoch, "the name is registered at its new address")
    hosts.bed.wait_held(hosts.near, [digest])
    time.sleep(0.5)  # the push to the gateway
    with listening(old_port) as connections:
        for _ in range(5):
            assert ask(hosts.asking, digest).is_all_of(digest)
        assert connections == []


@contextlib.contextmanager
def listening(port: int) -> Iterator[list[socket.socket]]:
    """Take connections on a port and never answer."""
    taken: list[socket.socket] = []

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                taken.append(server.accept()[0])

    with socket.create_server(("127.0.0.1", port)) as server:
        thread = threading.Thread(target=accept)
        thread.start()
        try:
            yield taken
        finally:
            server.shutdown(socket.SHUT_RDWR)
            thread.join()
            for connection in taken:
                connection.close()

"""Watch streams that write down each state that the trackers claim for a node."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from types import TracebackType

import grpc

from stafett.api.v1 import tracker_pb2, tracker_pb2_grpc, types_pb2
from tests.chaos.soak_bed import NO_PROXY

RETRY_SECONDS = 0.1
_READY = types_pb2.NodeState.Name(types_pb2.NODE_STATE_READY)


@dataclass(frozen=True)
class Seen:
    """What one tracker said of one node."""

    at: float
    tracker: int
    node: str
    state: str
    reason: str

    def __str__(self) -> str:
        return f"{self.at:.1f} s: tracker {self.tracker}: {self.node} is {self.state} ({self.reason})"


class Watchers:
    """One Watch at each tracker, for as long as the context lasts; `at` counts from its beginning."""

    def __init__(self, ports: Sequence[int], host: str = "127.0.0.1") -> None:
        self.seen: list[Seen] = []
        self._ports = ports
        self.snapshots = 0
        self._channels = [grpc.insecure_channel(f"{host}:{port}", options=NO_PROXY) for port in ports]
        self._ending = threading.Event()
        self._threads = [
            threading.Thread(target=self._watch, args=pair) for pair in zip(ports, self._channels, strict=True)
        ]
        self._started_at = time.monotonic()

    def __enter__(self) -> Watchers:
        self._started_at = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        for channel in self._channels:
            channel.close()
        for thread in self._threads:
            thread.join(10)

    def elapsed(self) -> float:
        """Seconds since the beginning, as in `Seen.at`."""
        return time.monotonic() - self._started_at

    def other_than(self, *states: types_pb2.NodeState.ValueType) -> list[Seen]:
        """Everything said that is none of these states."""
        allowed = {types_pb2.NodeState.Name(state) for state in states}
        return [seen for seen in self.seen if seen.state not in allowed]

    def last(self, node: str) -> set[str]:
        """What the trackers say of a node now; "" if one has said nothing."""
        return {words[-1].state if words else "" for words in self._words(node)}

    def is_ready(self, node: str) -> bool:
        """Tell whether all trackers' last word of a node is READY."""
        return self.last(node) == {_READY}

    def out_of_service_after(self, node: str, since: float) -> float | None:
        """Seconds from `since` (monotonic) until the last tracker called a node not READY; None while one has not."""
        began = since - self._started_at
        said = [
            next((word.at for word in words if word.at >= began and word.state != _READY), None)
            for words in self._words(node)
        ]
        known = [at for at in said if at is not None]
        return max(known) - began if len(known) == len(said) else None

    def _words(self, node: str) -> list[list[Seen]]:
        """What each tracker has said of a node."""
        return [[seen for seen in list(self.seen) if (seen.tracker, seen.node) == (port, node)] for port in self._ports]

    def _watch(self, port: int, channel: grpc.Channel) -> None:
        while not self._ending.is_set():
            try:
                for response in tracker_pb2_grpc.TrackerServiceStub(channel).Watch(tracker_pb2.WatchRequest()):
                    self._note(port, response)
            except (grpc.RpcError, ValueError):  # ValueError: the channel is closed
                self._ending.wait(RETRY_SECONDS)

    def _note(self, port: int, response: tracker_pb2.WatchResponse) -> None:
        snapshot = response.HasField("snapshot")
        self.snapshots += snapshot
        changed = [response.changed] if response.HasField("changed") else []
        for node in response.snapshot.nodes if snapshot else changed:
            state = types_pb2.NodeState.Name(node.state)
            self.seen.append(Seen(self.elapsed(), port, node.id, state, node.reason))

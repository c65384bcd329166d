"""What a client notices when the holder that serves it fails in the middle of a blob.

Each fault is repeated, rounds rotating through all of them and a pull without any; what a fault costs is the difference
to the median of those. Prints what it is, also when it disappoints.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import signal
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from bench.failover_bed import Bed, Blob, Holder, OtherClients, failovers
from bench.watched_pull import Pulled, WatchedPull
from stafett.common.errors import StartupFailed

MIB = 1024 * 1024
SLOWED_TIMES = 10
STRIKE_BETWEEN = (0.2, 0.5)
FLIP_AT = 0.6
FLIP_BYTES = 64
UNSELECTABLE_WITHIN_SECONDS = 10.0
REFUSED_TRIES = 8


@dataclass(frozen=True)
class Fault:
    """Something that befalls a holder in the middle of a blob, and its end."""

    strike: Callable[[Bed, Holder, Blob], None]
    heal: Callable[[Bed, Holder], None]
    unselectable: bool = False
    """Whether the trackers are expected to take the node out."""


@dataclass(frozen=True)
class Repeat:
    """One pull that a fault was done to."""

    pulled: Pulled
    second: Pulled | None
    """The next attempt, where the first one was to fail."""
    unselectable_seconds: float | None
    others_touched: int
    others_requests: int
    others_max_seconds: float
    others_problems: Sequence[str]


def _kill(_bed: Bed, holder: Holder, _blob: Blob) -> None:
    holder.node.kill()


def _restart(bed: Bed, holder: Holder) -> None:
    bed.start_node(holder)


def _freeze(_bed: Bed, holder: Holder, _blob: Blob) -> None:
    holder.node.signal(signal.SIGSTOP)


def _thaw(_bed: Bed, holder: Holder) -> None:
    holder.node.signal(signal.SIGCONT)


def _cut_off(_bed: Bed, holder: Holder, _blob: Blob) -> None:
    for proxy in (holder.front, *holder.to_trackers):
        proxy.swallow()


def _slow_down(bed: Bed, holder: Holder, _blob: Blob) -> None:
    holder.front.slow(bed.upload_bytes_per_second / SLOWED_TIMES)


def _corrupt(bed: Bed, holder: Holder, blob: Blob) -> None:
    with bed.file_of(holder, blob.digest).open("r+b") as file:
        file.seek(int(blob.size_bytes * FLIP_AT))
        right = file.read(FLIP_BYTES)
        file.seek(-len(right), os.SEEK_CUR)
        file.write(bytes(byte ^ 0xFF for byte in right))


def _reconnect(_bed: Bed, holder: Holder) -> None:
    for proxy in (holder.front, *holder.to_trackers):
        proxy.pass_()


REFUSED, SLOWED, CORRUPT = "refused", "slowed", "corrupt"
FAULTS: Mapping[str, Fault] = {
    REFUSED: Fault(lambda _bed, holder, _blob: holder.front.refuse(), _reconnect),
    "killed": Fault(_kill, _restart, unselectable=True),
    "frozen": Fault(_freeze, _thaw, unselectable=True),
    "cut": Fault(_cut_off, _reconnect, unselectable=True),
    SLOWED: Fault(_slow_down, _reconnect),
    CORRUPT: Fault(_corrupt, lambda _bed, _holder: None),
}
NOT_TO_BE_ASKED = (REFUSED, *(name for name, fault in FAULTS.items() if fault.unselectable))
"""Faults after which any request to the node is one too many; a slow or lying one still serves other blobs."""


def main(arguments: list[str]) -> None:
    """Run the benchmark; the last line printed is JSON."""
    parser = argparse.ArgumentParser(prog="python -m bench failover", description=__doc__)
    parser.add_argument("--blob-mib", type=int, default=256, help="size of the blob in MiB (default: %(default)s)")
    parser.add_argument("--repeats", type=int, default=20, help="repeats of each fault (default: %(default)s)")
    parser.add_argument("--upload-mb", type=int, default=30, help="cap of a holder in MB/s (default: %(default)s)")
    parser.add_argument("--faults", default=",".join(FAULTS), help="which, comma separated (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=random.randrange(1_000_000), help="of the moments of the faults")
    options = parser.parse_args(arguments)
    faults = options.faults.split(",")
    if unknown := set(faults) - set(FAULTS):
        parser.error(f"unknown: {', '.join(sorted(unknown))}; there are {', '.join(FAULTS)}")
    print(
        f"blob: {options.blob_mib} MiB, 3 holders capped at {options.upload_mb} MB/s, {options.repeats} repeats, "
        f"seed {options.seed}, machine: {os.cpu_count()} cores",
        flush=True,
    )
    with Bed(options.upload_mb * 1_000_000) as bed:
        rounds = _Rounds(bed, options.blob_mib * MIB, random.Random(options.seed))
        rounds.run(faults, options.repeats)
    print(json.dumps(rounds.summary()))


class _Rounds:
    """All pulls of a run."""

    def __init__(self, bed: Bed, size_bytes: int, rng: random.Random) -> None:
        self._bed, self._size, self._rng = bed, size_bytes, rng
        self._reader = bed.readers[0]
        self._blob = bed.add_blob(size_bytes)
        self._healthy: list[Pulled] = []
        self._repeats: dict[str, list[Repeat]] = {}

    def run(self, faults: Sequence[str], repeats: int) -> None:
        """Pull once unmeasured, then go through all faults again and again."""
        self._bed.wait_healthy(self._blob)
        self._bed.pull(self._reader, self._blob).result()
        for number in range(repeats):
            healthy = self._bed.pull(self._reader, self._blob).result()
            self._healthy.append(healthy)
            print(f"{number + 1}: no fault {healthy.seconds:.2f} s {healthy.problem}", flush=True)
            for name in faults:
                repeat = self._one(name)
                self._repeats.setdefault(name, []).append(repeat)
                print(f"{number + 1}: {name:8} {_described(name, repeat)}", flush=True)

    def _one(self, name: str) -> Repeat:
        if name == REFUSED:
            return self._refused(FAULTS[name])
        if name == CORRUPT:
            blob = self._bed.add_blob(self._size)  # a new one, as nobody would ask the liar for the old one again
            self._bed.wait_healthy(blob)
            try:
                return self._in_the_middle(FAULTS[name], blob, second=True)
            finally:
                self._bed.remove_blob(blob)
        return self._in_the_middle(FAULTS[name], self._blob)

    def _in_the_middle(self, fault: Fault, blob: Blob, *, second: bool = False) -> Repeat:
        pull = self._bed.pull(self._reader, blob)
        if not pull.wait_received(int(blob.size_bytes * self._rng.uniform(*STRIKE_BETWEEN))):
            raise StartupFailed(f"a pull has failed before the fault: {pull.result().problem}")
        holder = self._bed.serving()
        with OtherClients(self._bed, holder) as others:
            since = time.monotonic()
            fault.strike(self._bed, holder, blob)
            return self._finish(fault, holder, blob, pull, others, since, second=second)

    def _refused(self, fault: Fault) -> Repeat:
        """Let a holder refuse from the start, and begin anew until it is the one that is asked first."""
        for holder in self._rng.sample(self._bed.holders, len(self._bed.holders)):
            fault.strike(self._bed, holder, self._blob)
            for _ in range(REFUSED_TRIES):
                left, since = failovers(self._reader), time.monotonic()
                pull = self._bed.pull(self._reader, self._blob)
                if not pull.wait_received(1) or failovers(self._reader) > left:
                    with OtherClients(self._bed, holder) as others:
                        return self._finish(fault, holder, self._blob, pull, others, since)
                pull.hang_up()
            fault.heal(self._bed, holder)
        raise StartupFailed("no gateway asked the holder that refuses")

    def _finish(
        self,
        fault: Fault,
        holder: Holder,
        blob: Blob,
        pull: WatchedPull,
        others: OtherClients,
        since: float,
        *,
        second: bool = False,
    ) -> Repeat:
        """Wait for the pull, and for the news of it to have spread; then repair the holder."""
        pulled = pull.result()
        again = self._bed.pull(self._reader, blob).result() if second else None
        unselectable = self._bed.unselectable_seconds(holder, since)
        while unselectable is None and fault.unselectable and time.monotonic() < since + UNSELECTABLE_WITHIN_SECONDS:
            time.sleep(0.05)
            unselectable = self._bed.unselectable_seconds(holder, since)
        touched, requests, slowest, problems = (
            others.touched,
            others.requests,
            others.max_seconds,
            tuple(others.problems),
        )
        fault.heal(self._bed, holder)
        self._bed.wait_healthy(self._blob)
        return Repeat(pulled, again, unselectable, touched, requests, slowest, problems)

    def summary(self) -> dict[str, object]:
        """Print the figures of each fault and give the last line's content."""
        usual = median(pulled.seconds for pulled in self._healthy)
        gap = max(pulled.max_gap_seconds for pulled in self._healthy)
        print(f"no fault: median {usual:.2f} s, longest gap {gap:.2f} s, {len(self._healthy)} pulls")
        failed = sum(bool(pulled.problem) for pulled in self._healthy)
        faults = {name: _figures(name, repeats, usual) for name, repeats in self._repeats.items()}
        failed += sum(_failed(name, repeats) for name, repeats in self._repeats.items())
        unselectable = {
            name: _largest(repeat.unselectable_seconds for repeat in repeats)
            for name, repeats in self._repeats.items()
            if FAULTS[name].unselectable
        }
        return {"faults": faults, "unselectable_s": unselectable, "failed_pulls": failed}


def _figures(name: str, repeats: Sequence[Repeat], usual_seconds: float) -> dict[str, object]:
    extra = [repeat.pulled.seconds - usual_seconds for repeat in repeats]
    figures: dict[str, object] = {
        "median_extra_s": round(median(extra), 3),
        "max_extra_s": round(max(extra), 3),
        "max_gap_s": round(max(repeat.pulled.max_gap_seconds for repeat in repeats), 3),
        "failed_pulls": _failed(name, repeats),
    }
    if name in NOT_TO_BE_ASKED:
        figures["others_touched_median"] = median(repeat.others_touched for repeat in repeats)
        figures["others_touched_max"] = max(repeat.others_touched for repeat in repeats)
        figures["others_max_s"] = round(max(repeat.others_max_seconds for repeat in repeats), 3)
    if name == SLOWED:
        figures["total_x"] = round(max(repeat.pulled.seconds for repeat in repeats) / usual_seconds, 3)
    if name == CORRUPT:
        seconds = [repeat.second for repeat in repeats if repeat.second is not None]
        figures = {
            "wrong_bytes": sum(pulled.wrong_bytes for pulled in (*(each.pulled for each in repeats), *seconds)),
            "first_attempt_failed": sum(bool(repeat.pulled.problem) for repeat in repeats),
            "second_attempt_failed": sum(bool(pulled.problem) for pulled in seconds),
            "max_gap_s": round(max(pulled.max_gap_seconds for pulled in seconds), 3),
        }
    print(f"{name}: {json.dumps(figures)}")
    return figures


def _failed(name: str, repeats: Sequence[Repeat]) -> int:
    """Count failed pulls, those of the other clients too.

    That a corrupt holder costs one attempt is agreed, but not that it is delivered.
    """
    mine = [repeat.second if name == CORRUPT else repeat.pulled for repeat in repeats]
    others = sum(len(repeat.others_problems) for repeat in repeats)
    delivered = sum(bool(repeat.pulled.wrong_bytes) for repeat in repeats if name == CORRUPT)
    return others + delivered + sum(bool(pulled.problem) for pulled in mine if pulled is not None)


def _described(name: str, repeat: Repeat) -> str:
    pulled = repeat.pulled
    parts = [f"{pulled.seconds:.2f} s, longest gap {pulled.max_gap_seconds:.2f} s"]
    if repeat.unselectable_seconds is not None:
        parts.append(f"unselectable after {repeat.unselectable_seconds:.2f} s")
    if name in NOT_TO_BE_ASKED:
        parts.append(f"others: {repeat.others_touched} of {repeat.others_requests} requests touched it")
    parts.append(f"slowest of the others {repeat.others_max_seconds:.2f} s")
    if repeat.second is not None:
        parts.append(f"second attempt {repeat.second.problem or 'right'}")
    return "; ".join([*parts, *filter(None, [pulled.problem]), *repeat.others_problems])


def _largest(seconds: Iterable[float | None]) -> float | None:
    """The maximum; None when it is unknown once."""
    known = list(seconds)
    return None if None in known else round(max(each for each in known if each is not None), 3)

"""Clients that pull without pause and check every byte. A failed pull is kept with its reason.

It is tried once more only where a holder has lied, which may cost each client one attempt.
"""

from __future__ import annotations

import hashlib
import http.client
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from stafett.cli.local_cluster.containerd import Containerd
from stafett.cli.local_cluster.images import MadeImage
from stafett.cli.local_cluster.processes import wait_until
from stafett.common.oci import Descriptor

REGISTRY = "reg.test"
PLATFORM = "linux/amd64"
READ_BYTES = 256 * 1024
CLIENT_SECONDS = 30.0
"""A client that gets no byte for so long gives up: that is a failed pull."""
PAUSE_AFTER_FAILURE_SECONDS = 0.2


class PullFailed(Exception):
    """A pull was refused, cut short, wrong, or hung."""


class NoAnswer(PullFailed):
    """The gateway did not answer at all, so containerd would ask its next host."""


class NotThere(PullFailed):
    """A 404: containerd would ask its next host."""


class CutShort(PullFailed):
    """The response ended early, so containerd would ask its next host for the rest."""


@dataclass(frozen=True)
class Failure:
    """One failed pull."""

    at: float
    client: str
    image: str
    reason: str

    def __str__(self) -> str:
        return f"{self.at:.1f} s: {self.client} pulling {self.image}: {self.reason}"


@dataclass
class Tally:
    """What all clients together have seen; `gaps` are the longest waits for bytes."""

    started_at: float = field(default_factory=time.monotonic)
    pulls: int = 0
    received_bytes: int = 0
    longest_gap_seconds: float = 0.0
    wrong_bytes: int = 0
    passed_over: int = 0
    """Requests that one gateway did not answer and the next one did."""
    resumed: int = 0
    """Responses that one gateway began and the next one ended."""
    lies: int = 0
    """How often a holder has begun to lie."""
    forgiven: Counter[str] = field(default_factory=Counter)
    """Attempts that lies have cost, by client."""
    failures: list[Failure] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def add(self, client: str, image: str, failure: Exception | None) -> None:
        """Count one pull."""
        with self.lock:
            self.pulls += 1
            if failure is not None:
                at = time.monotonic() - self.started_at
                self.failures.append(Failure(at, client, image, f"{type(failure).__name__}: {failure}"))

    def forgives(self, client: str) -> bool:
        """Tell whether a client's failed attempt may be the one that a lie costs it; then it is."""
        with self.lock:
            if self.forgiven[client] >= self.lies:
                return False
            self.forgiven[client] += 1
            return True

    def __str__(self) -> str:
        return (
            f"{self.pulls} pulls, {self.received_bytes / 1e6:.0f} MB, longest gap {self.longest_gap_seconds:.2f} s, "
            f"{len(self.failures)} failed, {self.passed_over} requests passed over, {self.resumed} resumed elsewhere, "
            f"{self.lies} lies cost {self.forgiven.total()} attempts"
        )


@dataclass
class _Got:
    """What a client has of one piece of content."""

    size_bytes: int = 0
    running: hashlib._Hash = field(default_factory=hashlib.sha256)
    parts: int = 0


class HttpPuller:
    """Pulls images by digest over HTTP from the first of `ports`; from the next ones what it does not answer.

    With `resumes`, also what it has not got, and the rest of what it does not end.
    """

    def __init__(
        self,
        name: str,
        ports: Sequence[int],
        tally: Tally,
        *,
        user_agent: str = "containerd/2.1.0",
        resumes: bool = False,
    ) -> None:
        self.name = name
        self._resumes = resumes
        self._ports = ports
        self._tally = tally
        self._headers = {"User-Agent": user_agent, "Accept": "*/*"}
        self._connections: dict[int, http.client.HTTPConnection] = {}

    def pull(self, image: MadeImage) -> None:
        """Pull everything that a client of one platform needs.

        Raises:
            PullFailed: at the first thing that goes wrong.
        """
        repository = image.name.partition("/")[2].rpartition(":")[0]
        parts = [("manifests", image.index), ("manifests", image.manifests[PLATFORM])]
        parts += [("blobs", blob) for blob in image.blobs[PLATFORM]]
        for kind, descriptor in parts:
            self._get(f"/v2/{repository}/{kind}/{descriptor.digest}?ns={REGISTRY}", descriptor)

    def recover(self) -> None:
        """Nothing of a failed pull is left."""

    def close(self) -> None:
        """Close all connections."""
        for connection in self._connections.values():
            connection.close()

    def _get(self, path: str, descriptor: Descriptor) -> None:
        got = _Got()
        for port in self._ports[:-1]:
            try:
                return self._get_from(port, path, descriptor, got)
            except NoAnswer:
                self._tally.passed_over += 1
            except (NotThere, CutShort) as error:
                if not self._resumes:
                    raise
                self._tally.resumed += isinstance(error, CutShort)
                self._tally.passed_over += isinstance(error, NotThere)
        return self._get_from(self._ports[-1], path, descriptor, got)

    def _get_from(self, port: int, path: str, descriptor: Descriptor, got: _Got) -> None:
        response = self._ask(port, path, {"Range": f"bytes={got.size_bytes}-"} if got.size_bytes else {})
        try:
            self._check(response, descriptor, got)
        except (OSError, http.client.HTTPException) as error:
            raise CutShort(f"{path}: {error!r}") from error
        finally:
            if not response.isclosed():
                self._connections.pop(port).close()

    def _ask(self, port: int, path: str, more: Mapping[str, str]) -> http.client.HTTPResponse:
        """Send the request; on a connection that the server has closed meanwhile once more, as HTTP clients do."""
        reused = port in self._connections
        connection = self._connections.setdefault(
            port, http.client.HTTPConnection("127.0.0.1", port, timeout=CLIENT_SECONDS)
        )
        try:
            connection.request("GET", path, headers={**self._headers, **more})
            return connection.getresponse()
        except TimeoutError as error:
            raise PullFailed(f"{path}: no answer within {CLIENT_SECONDS:.0f} s") from error
        except (OSError, http.client.HTTPException) as error:
            self._connections.pop(port).close()
            if reused:
                return self._ask(port, path, more)
            raise NoAnswer(f"{path}: {error!r}") from error

    def _check(self, response: http.client.HTTPResponse, descriptor: Descriptor, got: _Got) -> None:
        if response.status != (206 if got.size_bytes else 200):
            kind = NotThere if response.status == 404 else PullFailed
            raise kind(f"{descriptor.digest}: status {response.status} {response.read()[:200]!r}")
        got.parts += 1
        before = time.monotonic()
        while piece := response.read1(READ_BYTES):
            got.running.update(piece)
            got.size_bytes += len(piece)
            self._tally.received_bytes += len(piece)
            now = time.monotonic()
            self._tally.longest_gap_seconds = max(self._tally.longest_gap_seconds, now - before)
            before = now
        if got.size_bytes < descriptor.size_bytes:
            raise CutShort(f"{descriptor.digest}: cut short at {got.size_bytes} of {descriptor.size_bytes} bytes")
        if got.running.hexdigest() != descriptor.digest.hex:
            if got.parts == 1:  # of parts only the client itself can tell, as containerd does
                self._tally.wrong_bytes += got.size_bytes
            raise PullFailed(f"{descriptor.digest}: wrong bytes in {got.parts} parts")


class ContainerdPuller:
    """Fetches images into a real containerd, which checks them, and removes them again; waits while others use it."""

    def __init__(self, name: str, containerd: Containerd, tally: Tally, in_use: threading.Lock) -> None:
        self.name = name
        self._containerd = containerd
        self._tally = tally
        self._in_use = in_use

    def pull(self, image: MadeImage) -> None:
        """Fetch all content of an image, then remove it, so that the next pull needs the bytes again.

        Raises:
            PullFailed: with what ctr says.
        """
        with self._in_use:
            self._pull(image)

    def _pull(self, image: MadeImage) -> None:
        reference = f"{image.name.rpartition(':')[0]}@{image.index.digest}"
        fetched = self._containerd.ctr(
            "content", "fetch", "--hosts-dir", str(self._containerd.hosts_dir), "--platform", PLATFORM, reference
        )
        if fetched.returncode:
            raise PullFailed(fetched.stderr[-400:])
        self._tally.received_bytes += image.pulled_bytes(PLATFORM)
        removed = self._containerd.ctr("images", "rm", "--sync", reference)
        if removed.returncode:
            raise PullFailed(f"rm: {removed.stderr[-400:]}")

    def recover(self) -> None:
        """Wait until a download that has wrong bytes in it has been dropped."""
        downloads = self._containerd.content_root / "ingest"
        wait_until(lambda: not any(downloads.iterdir()), "containerd has dropped the failed download")

    def close(self) -> None:
        """Nothing to close."""


class Pulling:
    """Runs clients in threads until left; each picks images at random by the seed."""

    def __init__(
        self, pullers: Sequence[HttpPuller | ContainerdPuller], images: Sequence[MadeImage], tally: Tally, seed: int
    ) -> None:
        self._images = images
        self._tally = tally
        self._stop = threading.Event()
        self._broken: list[BaseException] = []
        self._threads = [
            threading.Thread(target=self._run, args=(puller, random.Random(f"{seed}/{puller.name}")), name=puller.name)
            for puller in pullers
        ]

    def __enter__(self) -> Pulling:
        self._tally.started_at = time.monotonic()
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(CLIENT_SECONDS * 2)
        assert not any(thread.is_alive() for thread in self._threads), "a client hangs"
        if self._broken and error is None:
            raise self._broken[0]

    def wait_pulls(self, more: int, when: Callable[[], bool] = lambda: True, timeout_seconds: float = 60.0) -> None:
        """Wait until so many more pulls have ended and the condition holds.

        Raises:
            TimeoutError: if they have not in time.
        """
        wanted, deadline = self._tally.pulls + more, time.monotonic() + timeout_seconds
        while self._tally.pulls < wanted or not when():
            if time.monotonic() > deadline or self._broken:
                raise TimeoutError(f"{self._tally} {self._broken}")
            time.sleep(0.05)

    def _pull(self, puller: HttpPuller | ContainerdPuller, image: MadeImage) -> None:
        try:
            puller.pull(image)
        except PullFailed:
            if not self._tally.forgives(puller.name):
                raise
            puller.recover()
            puller.pull(image)

    def _run(self, puller: HttpPuller | ContainerdPuller, rng: random.Random) -> None:
        try:
            while not self._stop.is_set():
                image = rng.choice(self._images)
                failure: PullFailed | None = None
                try:
                    self._pull(puller, image)
                except PullFailed as error:
                    failure = error
                    self._stop.wait(PAUSE_AFTER_FAILURE_SECONDS)
                self._tally.add(puller.name, image.name, failure)
        except BaseException as error:  # noqa: BLE001 - handed to the test's own thread
            self._broken.append(error)
        finally:
            puller.close()

"""Answers what gateways and operators ask: from Redis, or from the last answers while Redis is away."""

from __future__ import annotations

import random
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Generic, TypeVar

from stafett.common.cluster import HeldImage, Holder, ImageSummary, Node, NodeState
from stafett.common.digest import Digest
from stafett.common.errors import ManifestUnknown, Unavailable
from stafett.common.topology import Topology
from stafett.tracker.health_view import HealthView
from stafett.tracker.holdings_store import HoldingsStore
from stafett.tracker.image_names import ImageEntry, newest, summarize
from stafett.tracker.membership import Membership
from stafett.tracker.proximity import Entry, choose
from stafett.tracker.redis_link import RedisLink

_REMEMBERED_DIGESTS = 20_000
_REMEMBERED_IMAGES = 5_000
_DEEPER = 32
"""How many times more entries a second search looks at, when the first met too many that cannot serve."""
_DEEPER_DIGESTS = 100
_VOID_MAX = 100

K = TypeVar("K")
V = TypeVar("V")


class LastAnswers(Generic[K, V]):
    """The answers to the last so many different questions."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._answers: OrderedDict[K, V] = OrderedDict()

    def remember(self, question: K, answer: V) -> None:
        """Keep an answer, instead of the oldest where there is no room."""
        self._answers[question] = answer
        self._answers.move_to_end(question)
        if len(self._answers) > self._most:
            self._answers.popitem(last=False)

    def get(self, question: K, default: V) -> V:
        """Return the last answer."""
        return self._answers.get(question, default)

    def items(self) -> list[tuple[K, V]]:
        """Return all questions with their answers."""
        return list(self._answers.items())


@dataclass(frozen=True, slots=True)
class Question:
    """Who asks for holders, from where, and how many they want of each digest."""

    asker_id: str
    place: Topology
    most: int


class Lookup:
    """Reads of nodes, holders and images; each tells whether the answer may be from memory (stale)."""

    def __init__(
        self, link: RedisLink, members: Membership, health: HealthView, holdings: HoldingsStore, rng: random.Random
    ) -> None:
        self._link = link
        self._membership = members
        self._health = health
        self._holdings = holdings
        self._rng = rng
        self._entries: LastAnswers[Digest, Sequence[Entry]] = LastAnswers(_REMEMBERED_DIGESTS)
        self._images: LastAnswers[str, tuple[ImageEntry, ...]] = LastAnswers(_REMEMBERED_IMAGES)

    async def locate(self, digests: Sequence[Digest], question: Question) -> tuple[list[tuple[Holder, ...]], bool]:
        """Find holders of each digest that are in service, nearest first."""
        self._membership.require_loaded()
        if self._link.available:
            try:
                answers = await self._search(digests, question)
                return answers, self._membership.refilling
            except Unavailable:
                pass
        return [self._choose(self._entries.get(digest, ()), question) for digest in digests], True

    async def resolve(self, name: str) -> tuple[HeldImage, bool]:
        """Tell what an image name means.

        Raises:
            ManifestUnknown: if no live node has it.
        """
        self._membership.require_loaded()
        stale = True
        if self._link.available:
            try:
                fresh = await self._holdings.images([name])
                await self._doubt(bool(self._images.get(name, ())) and not fresh.get(name))
                self._remember_images(fresh)
                stale = False
            except Unavailable:
                pass
        image = newest(self._images.get(name, ()), self._membership.members)
        if image is None:
            raise ManifestUnknown(name)
        return image, stale

    async def images(self) -> tuple[list[ImageSummary], bool]:
        """Sum up all images of live nodes, by name."""
        self._membership.require_loaded()
        stale = True
        found = self._images.items()
        if self._link.available:
            try:
                fresh = await self._holdings.all_images()
                self._remember_images(fresh)
                found, stale = list(fresh.items()), False
            except Unavailable:
                pass
        summaries = [summarize(name, entries, self._membership.members) for name, entries in sorted(found)]
        return [summary for summary in summaries if summary], stale

    async def nodes(self) -> tuple[list[Node], bool]:
        """List all nodes by id, with health, score and number of blobs as far as Redis is there to tell."""
        self._membership.require_loaded()
        nodes = await self.described(member.node for _, member in sorted(self._membership.members.items()))
        if self._link.available:
            try:
                counts = await self._holdings.blob_counts([node.id for node in nodes])
            except Unavailable:
                return nodes, True
            return [replace(node, blob_count=count) for node, count in zip(nodes, counts, strict=True)], False
        return nodes, True

    async def described(self, nodes: Iterable[Node]) -> list[Node]:
        """Return nodes with health and score."""
        return await self._health.describe(nodes, redis_up=self._link.available)

    async def _search(self, digests: Sequence[Digest], question: Question) -> list[tuple[Holder, ...]]:
        found = await self._find(digests, question, question.most)
        answers = {digest: self._choose(entries, question) for digest, (entries, _) in found.items()}
        short = [digest for digest, (_, more) in found.items() if more and _poor(answers[digest], question.most)]
        if short:
            deeper = await self._find(short[:_DEEPER_DIGESTS], question, question.most * _DEEPER)
            answers.update({digest: self._choose(entries, question) for digest, (entries, _) in deeper.items()})
        return [answers[digest] for digest in digests]

    async def _find(
        self, digests: Sequence[Digest], question: Question, most: int
    ) -> dict[Digest, tuple[Sequence[Entry], bool]]:
        replies = await self._holdings.locate(digests, question.place, most)
        await self._doubt(
            any(
                not more and len(entries) < len(self._entries.get(digest, ()))
                for digest, (entries, more) in zip(digests, replies, strict=True)
            )
        )
        found: dict[Digest, tuple[Sequence[Entry], bool]] = {}
        for digest, (entries, more) in zip(digests, replies, strict=True):
            if self._membership.refilling:
                again = {entry.node_id for entry in entries}
                entries += [entry for entry in self._entries.get(digest, ()) if entry.node_id not in again]
            self._entries.remember(digest, entries)
            found[digest] = (entries, more)
        await self._drop_void(found)
        return found

    async def _doubt(self, vanished: bool) -> None:
        """Where something that was known has vanished, see first whether Redis has lost its data: then memory helps."""
        if vanished and not self._membership.refilling:
            await self._membership.look_now()

    async def _drop_void(self, found: Mapping[Digest, tuple[Sequence[Entry], bool]]) -> None:
        members = self._membership.members
        void = [
            (digest, entry, members[entry.node_id].node.topology)
            for digest, (entries, _) in found.items()
            for entry in entries
            if entry.void(members.get(entry.node_id))
        ]
        if void:
            await self._holdings.drop_void(void[:_VOID_MAX])

    def _choose(self, entries: Sequence[Entry], question: Question) -> tuple[Holder, ...]:
        members = self._membership.members
        return choose(entries, members, question.asker_id, question.place, question.most, self._rng)

    def _remember_images(self, fresh: Mapping[str, tuple[ImageEntry, ...]]) -> None:
        for name, entries in fresh.items():
            if entries or not self._membership.refilling:
                self._images.remember(name, entries)


def _poor(holders: Sequence[Holder], wanted: int) -> bool:
    """Tell whether a deeper search may find better: too few, or suspects only."""
    return len(holders) < wanted or holders[0].node.state is not NodeState.READY

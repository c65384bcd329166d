"""Who may answer a tag: upstream itself while it lives, what peers hold when it is dead.

On the mirror port a tag is a 404 unless the operator wants peers to answer first. The tag port, which containerd asks
last, answers only while the registry is found dead.
"""

from __future__ import annotations

from enum import Enum

from stafett.common.errors import ManifestUnknown, Unavailable
from stafett.gateway.ports import TagTarget, Tracker
from stafett.gateway.request_path import ContentPath
from stafett.gateway.upstream_probe import UpstreamProbe


class Port(Enum):
    """The two ports of a gateway."""

    MIRROR = "mirror"
    TAGS = "tags"


class Tags:
    """Resolves tags, where the port may."""

    def __init__(self, tracker: Tracker, probe: UpstreamProbe, *, peers_first: bool) -> None:
        self._tracker = tracker
        self._probe = probe
        self._peers_first = peers_first

    async def resolve(self, path: ContentPath, port: Port) -> TagTarget:
        """Tell what a tag means to the peers.

        Raises:
            ManifestUnknown: if upstream is to be asked, or no peer knows the tag.
        """
        if not await self._peers_may_answer(path, port):
            raise ManifestUnknown(path.tag)
        try:
            return await self._tracker.resolve_tag(f"{path.image}:{path.tag}")
        except Unavailable as error:
            raise ManifestUnknown(path.tag) from error

    async def _peers_may_answer(self, path: ContentPath, port: Port) -> bool:
        if self._peers_first:
            return True
        return port is Port.TAGS and not await self._probe.is_alive(path.registry)

"""Whether a node answers, asked by a tracker that may itself be paused meanwhile."""

from __future__ import annotations

import asyncio
import socket
import time

from stafett.common.cluster import Address
from stafett.tracker.probe import PROBE_SECONDS, grpc_probe
from tests.integration.tracker.test_suspicion import healthy_port

TRIES = 20


async def test_a_node_that_answers_is_there_one_that_refuses_or_keeps_silent_is_not() -> None:
    probe = grpc_probe(None)
    async with healthy_port() as port:
        assert await probe(Address("127.0.0.1", port))
    with socket.create_server(("127.0.0.1", 0)) as mute:
        for silent in (1, mute.getsockname()[1]):
            answers = [await probe(Address("127.0.0.1", silent))]
            while answers[-1] is None and len(answers) < TRIES:  # a busy machine pauses us, too
                answers.append(await probe(Address("127.0.0.1", silent)))
            assert answers[-1] is False


async def test_who_was_paused_meanwhile_cannot_tell() -> None:
    with socket.create_server(("127.0.0.1", 0)) as mute:
        asked = asyncio.ensure_future(grpc_probe(None)(Address("127.0.0.1", mute.getsockname()[1])))
        await asyncio.sleep(0.05)
        time.sleep(3 * PROBE_SECONDS)  # noqa: ASYNC251 - the whole loop stands still, as under SIGSTOP
        assert await asked is None

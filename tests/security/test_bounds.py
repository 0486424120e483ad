"""What waits for a node is bounded, whatever the node does: a session over a link in memory."""

from __future__ import annotations

import asyncio

import pytest

from manyhands.errors import ProtocolError
from manyhands.fleet import messages as m
from manyhands.fleet.session import MAX_WAITING, Session
from manyhands.wire.envelope import pack


class Deaf:
    """A link whose node talks on and takes nothing."""

    async def read(self) -> bytes | None:
        return pack(m.encode(m.HandedBack(1, "once more")))

    async def write(self, message: bytes) -> None:
        await asyncio.Event().wait()


async def answer_each(session: Session, posted: list[m.Told]) -> None:
    async for _ in session.messages():
        posted.append(m.Told("no"))
        session.post(posted[-1])


def test_a_node_that_talks_and_does_not_listen_is_ended() -> None:
    posted: list[m.Told] = []

    async def serve() -> None:
        session = Session(Deaf(), max_body_bytes=1)
        writer = asyncio.create_task(session.write_all())
        try:
            await asyncio.wait_for(answer_each(session, posted), 60.0)
        finally:
            writer.cancel()

    with pytest.raises(ProtocolError, match=f"{MAX_WAITING + 1} messages wait for this node"):
        asyncio.run(serve())
    assert len(posted) == MAX_WAITING + 1


def test_a_node_that_listens_may_talk_on() -> None:
    posted: list[m.Told] = []

    class Polite(Deaf):
        left = 3 * MAX_WAITING

        async def read(self) -> bytes | None:
            self.left -= 1
            await asyncio.sleep(0)
            return await super().read() if self.left >= 0 else None

        async def write(self, message: bytes) -> None:
            await asyncio.sleep(0)

    async def serve() -> None:
        session = Session(Polite(), max_body_bytes=1)
        writer = asyncio.create_task(session.write_all())
        await asyncio.wait_for(answer_each(session, posted), 60.0)
        session.finish()
        await writer

    asyncio.run(serve())
    assert len(posted) == 3 * MAX_WAITING

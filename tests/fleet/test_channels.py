"""What a channel promises of its end, in the order of events that a loaded machine gives."""

from __future__ import annotations

import asyncio
from contextlib import suppress

import msgspec

from manyhands.fleet.channels import Answered, Lost
from manyhands.fleet.parcels import Parcels


class Word(msgspec.Struct, tag=True):
    text: str


class GoneLink:
    """The listener's end of a stream whose peer has said its last, with a write that gRPC still holds."""

    address = "ipv4:127.0.0.1:1"

    def __init__(self) -> None:
        self.writing = asyncio.Event()

    async def read(self) -> bytes | None:
        await self.writing.wait()
        return None

    async def write(self, data: bytes) -> None:
        self.writing.set()
        await asyncio.Event().wait()

    def close(self, reason: object) -> None:
        """Nothing is left to close."""


def test_an_end_is_told_once_though_its_connection_breaks_meanwhile():
    told = []

    async def main() -> None:
        link = GoneLink()
        channel = Answered(link, Parcels(Word), lambda message, tree: told.append(message))
        serving = asyncio.create_task(channel.serve())
        channel.send(Word("hello"))
        await link.writing.wait()
        for _ in range(5):  # the peer's end is read, and the last write is waited for
            await asyncio.sleep(0)
        serving.cancel()  # what gRPC does where the connection breaks
        with suppress(asyncio.CancelledError):
            await serving
        for task in asyncio.all_tasks() - {asyncio.current_task()}:
            task.cancel()

    asyncio.run(main())
    assert [type(message) for message in told] == [Lost]

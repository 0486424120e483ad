"""A loader made by hand, over a real stream: it says what a test has it say."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from queue import SimpleQueue
from typing import Any

import msgspec

from manyhands.fleet.channels import Dialled, Lost
from manyhands.fleet.dialling import Dialler
from manyhands.fleet.parcels import Parcels
from manyhands.split.jobs import Work
from manyhands.split.messages import FromTrainer, Hello, Here, Make, Welcome
from manyhands.split.terms import Terms
from manyhands.wire import Role


class HandLoader:
    def __init__(self, channel: Dialled[Any], inbox: SimpleQueue[tuple[Any, Any]]) -> None:
        self._channel = channel
        self._inbox = inbox

    def say(self, message: msgspec.Struct, tree: Any = None) -> None:
        self._channel.send(message, tree)

    def hear(self, kind: type) -> Any:
        """The next message of this kind; `Lost` ends it where that was not waited for."""
        return self.hear_with(kind)[0]

    def hear_with(self, kind: type) -> tuple[Any, Any]:
        """The same, with its body."""
        while True:
            message, tree = self._inbox.get(timeout=20)
            if isinstance(message, kind):
                return message, tree
            assert not isinstance(message, Lost), message

    def join(self, terms: Terms, capacity: int = 4, *, has_weights: bool = False, errand: str = "") -> None:
        self.say(Hello(terms, "hand", capacity, has_weights=has_weights, errand=errand))
        self.hear(Welcome)
        self.say(Here())

    def lease(self) -> tuple[int, Work]:
        """The first of the next leases."""
        return self.hear(Make).leases[0]

    def leave(self) -> None:
        self._channel.close()


@contextmanager
def hand_loader(port: int) -> Iterator[HandLoader]:
    """One that has an invite; gone at the end of the block."""
    dialler = Dialler(("127.0.0.1", port), None, secure=True, role=Role.LOADER)
    inbox: SimpleQueue[tuple[Any, Any]] = SimpleQueue()
    with dialler.dial() as connection:
        channel: Dialled[Any] = Dialled(
            connection.stream(), Parcels(FromTrainer), lambda message, tree: inbox.put((message, tree))
        )
        channel.start()
        try:
            yield HandLoader(channel, inbox)
        finally:
            channel.close()
            dialler.release()

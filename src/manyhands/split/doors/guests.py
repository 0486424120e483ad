"""What a door is to those who wait behind it, and what it asks of whom it lets in."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from manyhands.errors import ManyhandsError
from manyhands.fleet.channels import Channel
from manyhands.fleet.parcels import Parcels


class Guest(Protocol):
    """Our end of one stream."""

    parcels: Parcels[Any]

    def opened(self, channel: Channel) -> None:
        """The stream is there; nothing was received yet."""
        ...

    def deliver(self, message: Any, tree: Any) -> None:
        """A message came, or `Lost` at the end; on the thread that reads. May raise what ends the stream."""
        ...

    @property
    def is_done(self) -> bool:
        """Whether nothing is left to come back for."""
        ...


NewGuest = Callable[[], Guest]
OnFailure = Callable[[ManyhandsError], None]


class Door(Protocol):
    """Where streams come from."""

    def start(self, new_guest: NewGuest, on_failure: OnFailure) -> None:
        """Let streams in from now on. UsageError for what cannot be listened on."""
        ...

    def whom(self) -> str:
        """A sentence for whoever waits: for whom, and what to run there."""
        ...

    def close(self) -> None:
        """End every stream, and this door."""
        ...

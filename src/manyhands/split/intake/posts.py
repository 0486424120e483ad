"""What a trainer has to say to its loaders: decided while a lock is held, said after it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress

import msgspec

from manyhands.errors import Unreachable
from manyhands.split.jobs import Work
from manyhands.split.ledger import Lease
from manyhands.split.messages import MAX_BATCH_SAMPLES, Make
from manyhands.split.seats import Seat

Post = tuple[Seat, msgspec.Struct]


def makes(leases: Iterable[Lease], seats: Mapping[int, Seat]) -> list[Post]:
    """Leases for the loaders that they are of."""
    by_loader: dict[int, list[Lease]] = {}
    for lease in leases:
        by_loader.setdefault(lease.loader, []).append(lease)
    return [(seats[loader], make) for loader, mine in by_loader.items() for make in _messages(mine)]


def say(posts: Iterable[Post]) -> None:
    """Send them; may wait for a loader that does not read, so hold no lock."""
    for seat, message in posts:
        with suppress(Unreachable):  # its end is heard of by whoever reads from it
            seat.channel.send(message)


def _messages(leases: list[Lease]) -> Iterator[Make]:
    """The leases of one loader, with so many indices in each message as fit."""
    batch: list[tuple[int, Work]] = []
    num_indices = 0
    for lease in leases:
        if batch and num_indices + len(lease.work.indices) > MAX_BATCH_SAMPLES:
            yield Make(tuple(batch))
            batch, num_indices = [], 0
        batch.append((lease.serial, lease.work))
        num_indices += len(lease.work.indices)
    if batch:
        yield Make(tuple(batch))

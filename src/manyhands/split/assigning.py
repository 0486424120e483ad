"""What a loader says of itself to each trainer of a job: one hello a trainer, which differ in their share."""

from __future__ import annotations

import secrets
import socket
from collections.abc import Mapping
from typing import Final

import msgspec
from torch import Tensor

from manyhands.errors import UsageError
from manyhands.split.deal import Deal
from manyhands.split.delivery import Assignment
from manyhands.split.messages import Hello
from manyhands.split.terms import Share, Terms

_PER_WORKER: Final = 2
"""Batches that a worker may be at or have done, as a local DataLoader's."""
_AHEAD: Final = 2
"""... and besides: one on its way, one to be sent next."""


def assignments(
    terms: Terms,
    num_trainers: int,
    num_workers: int,
    starts: Mapping[str, int],
    weights: dict[str, Tensor] | None,
    *,
    stops_on_fault: bool,
) -> list[Assignment]:
    """One for each rank; what `num_workers` processes can be at is divided among them.

    UsageError where training's batches cannot be as many for each.
    """
    samples = terms.lengths.get("train")
    if samples is not None and not Deal(samples, terms.batch_size, num_trainers).is_even:
        raise UsageError(
            f"{samples} samples in batches of {terms.batch_size} cannot be dealt evenly to {num_trainers} trainers: "
            "give fewer trainers, or a larger batch_size"
        )
    capacity = _PER_WORKER * num_workers + _AHEAD
    hello = Hello(
        terms,
        socket.gethostname()[:64],
        capacity,
        dict(starts),
        weights is not None,
        errand=secrets.token_hex(8),
    )
    return [
        Assignment(rank, _of_share(hello, Share(rank, num_trainers)), weights, stops_on_fault)
        for rank in range(num_trainers)
    ]


def _of_share(hello: Hello, share: Share) -> Hello:
    terms = msgspec.structs.replace(hello.terms, share=share)
    return msgspec.structs.replace(hello, terms=terms, capacity=max(_AHEAD, hello.capacity // share.trainers))

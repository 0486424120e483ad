"""Where every random number of a run comes from: a keyed hash of what it is for.

Python's ``hash()`` is salted per process and torch's global generator depends on what ran before, so neither
can give two machines the same dropout mask. Here a seed is BLAKE2b(key=run seed, (purpose, numbers...)), and
the generators are set right before the work that draws from them. Knows nothing of models, nodes or time.
"""

from __future__ import annotations

import hashlib
import random
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

OWNER = threading.RLock()
"""Held from seeding the process's generators to the last number drawn from them."""


def derive(run_seed: int, purpose: str, *numbers: int) -> int:
    """A 63-bit seed for one purpose, e.g. ``derive(0, "leaf", step, leaf)``; equal on every machine."""
    key = run_seed.to_bytes(16, "little", signed=True)
    text = purpose + "".join(f"/{number}" for number in numbers)
    digest = hashlib.blake2b(text.encode(), key=key, digest_size=8).digest()
    return int.from_bytes(digest, "little") >> 1


def seed_generators(seed: int) -> None:
    """Set torch's (every device's), numpy's and Python's global generators."""
    seed_torch(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    random.seed(seed)


def seed_torch(seed: int) -> None:
    """Set torch's global generators, every device's, and no other: 2 µs where there is a CPU only."""
    # torch.manual_seed formats a stack trace per call where CUDA is not initialised: 0.7 ms a leaf.
    torch.default_generator.manual_seed(seed)
    if torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        torch.cuda.manual_seed_all(seed)
    if torch.backends.mps.is_available():
        torch.mps.manual_seed(seed)


@contextmanager
def generators(seed: int) -> Iterator[None]:
    """Run a block with the global CPU generators set from `seed`, and put them back after.

    One thread of a process at a time: a feeder, a validation and a node beside them draw from the same generators.
    """
    with OWNER:
        before = torch.get_rng_state(), np.random.get_state(), random.getstate()
        seed_generators(seed)
        try:
            yield
        finally:
            torch.set_rng_state(before[0])
            np.random.set_state(before[1])
            random.setstate(before[2])


def epoch_order(run_seed: int, epoch: int, num_samples: int, *, shuffle: bool) -> list[int]:
    """The dataset indices of one epoch in the order in which they are trained on."""
    if not shuffle:
        return list(range(num_samples))
    generator = torch.Generator().manual_seed(derive(run_seed, "order", epoch))
    order: list[int] = torch.randperm(num_samples, generator=generator).tolist()
    return order

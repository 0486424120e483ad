"""How long to wait between attempts to reach a coordinator: a pure function of a random generator.

It neither waits nor counts time. The cap is low on purpose: a node has to be back within 5 s of its
coordinator's return, and one attempt a second from each node costs nothing.
"""

from __future__ import annotations

import random
from collections.abc import Iterator


def delays(
    rng: random.Random, first_seconds: float = 0.2, factor: float = 2.0, cap_seconds: float = 2.0
) -> Iterator[float]:
    """An endless stream of waits in seconds, each a random share (a half to the whole) of a growing bound.

    The bound starts at `first_seconds`, grows by `factor` and stays at `cap_seconds`. The random share
    keeps nodes that lost one coordinator together from coming back together.
    """
    bound = min(first_seconds, cap_seconds)
    while True:
        yield bound * rng.uniform(0.5, 1.0)
        bound = min(bound * factor, cap_seconds)

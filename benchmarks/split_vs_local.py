"""Samples a second of one training loop: fed by a loader in another process over TLS, or by a local DataLoader.

Preparing a picture costs some milliseconds; both sides have two worker processes for that. What is asked is whether
feeding over the network costs anything where preparing is what takes the time. Run:
``python benchmarks/split_vs_local.py [--turns N] [--batches N]``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from common.feeding import BATCH, SKIPPED, WORKERS, Pictures, compare
from torch.utils.data import DataLoader


class Local:
    """A DataLoader whose workers stay."""

    skipped = SKIPPED

    def __init__(self, pictures: Pictures) -> None:
        self._loader = DataLoader(
            pictures,
            BATCH,
            shuffle=True,
            num_workers=WORKERS,
            persistent_workers=True,
            multiprocessing_context="spawn",
        )

    def __iter__(self) -> Iterator[Any]:
        return iter(self._loader)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--batches", type=int, default=60, help="of a turn")
    given = parser.parse_args()
    pictures = Pictures(given.batches * BATCH)
    compare("split_vs_local", pictures, Local, "a local DataLoader", given.turns)


if __name__ == "__main__":
    main()

"""Samples a second of one training loop: fed by a loader over TLS, or by Ray Data on this machine.

The job of split_vs_local, and one with next to nothing to prepare, where the feeding itself is what costs. Ray has two
processors for its tasks, and hands out batches through ``iter_torch_batches``; its turns are measured from the start of
a pass, since each pass plans and starts its tasks anew. Run: ``python benchmarks/split_vs_ray.py [--turns N]``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from typing import Any

from common.feeding import BATCH, WORKERS, Flips, Pictures, compare


class RayData:
    """The pictures as rows of a Ray dataset."""

    skipped = 0

    def __init__(self, pictures: Pictures) -> None:
        import ray

        ray.init(
            num_cpus=WORKERS, include_dashboard=False, object_store_memory=500 << 20, logging_level="ERROR"
        )
        ray.data.DataContext.get_current().enable_progress_bars = False

        def prepared(row: dict[str, Any]) -> dict[str, Any]:
            picture, label = pictures[int(row["id"])]
            return {"x": picture.numpy(), "y": label}

        self._data = ray.data.range(len(pictures)).map(prepared)

    def __iter__(self) -> Iterator[Any]:
        for batch in self._data.iter_torch_batches(batch_size=BATCH, prefetch_batches=2, device="cpu"):
            yield batch["x"], batch["y"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--batches", type=int, default=60, help="of a turn")
    given = parser.parse_args()
    heavy, light = Pictures(given.batches * BATCH), Flips(4 * given.batches * BATCH)
    compare("split_vs_ray", heavy, RayData, "Ray Data", given.turns)
    compare("split_vs_ray_light", light, RayData, "Ray Data", given.turns)


if __name__ == "__main__":
    main()

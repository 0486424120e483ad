"""A loader in a process of its own; its arguments are `main`'s. It says "up", and at the end the history."""

from __future__ import annotations

import json
import sys
import time
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import Dataset

from manyhands import CPULoader


class Slow(Dataset[Any]):
    """Sample i is i itself with a random number beside it, after a while of work."""

    def __init__(self, length: int, milliseconds: float) -> None:
        self.length = length
        self.seconds = milliseconds / 1000

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        time.sleep(self.seconds)  # the preprocessing that a loader is for
        return torch.tensor([float(index), torch.rand(()).item()]), torch.tensor(index)


def main(
    host: str, port: str, samples: str, batch: str, epochs: str, milliseconds: str, workers: str, seed: str
) -> None:
    torch.set_num_threads(1)
    loader = CPULoader(num_workers=int(workers))
    loader.setup_dataset(Slow(int(samples), float(milliseconds)), batch_size=int(batch), seed=int(seed))
    print("up", flush=True)  # noqa: T201
    print(json.dumps(loader.start_loading(host, epochs=int(epochs), gpu_port=int(port))), flush=True)  # noqa: T201


if __name__ == "__main__":
    main(*sys.argv[1:])

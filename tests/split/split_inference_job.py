"""Both sides of a long inference, each a process: ``trainer PORT`` and ``loader PORT FOLDER ROWS [HANGS_AT]``."""

from __future__ import annotations

import sys
import threading
from typing import Any

import numpy as np
import torch
from split_training_parts import model

from manyhands import CPULoader, GPUTrainer
from manyhands.split.inference import parts

BATCH_SIZE = 500


def rows(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 6), dtype=np.float32)


class Hanging(torch.utils.data.TensorDataset):
    """Gives no sample from `at` on, so that a test has the time to kill its process."""

    def __init__(self, values: torch.Tensor, at: int) -> None:
        super().__init__(values)
        self.at = at

    def __getitem__(self, index: int) -> Any:
        if index >= self.at:
            threading.Event().wait()
        return super().__getitem__(index)


def main(role: str, port: str, folder: str = "", count: str = "0", hangs_at: str = "") -> None:
    torch.set_num_threads(1)
    if role == "trainer":
        trainer = GPUTrainer(int(port), host="localhost")
        trainer.setup_model(model())
        trainer.start_service("inference")
    else:
        loader = CPULoader(num_workers=0)
        values = torch.from_numpy(rows(int(count)))
        data = torch.utils.data.TensorDataset(values)
        if hangs_at:
            data, parts.COMMIT_SECONDS = Hanging(values, int(hangs_at)), 0.01
        result = loader.run_inference("localhost", data, BATCH_SIZE, gpu_port=int(port), output=folder)
        print(result["kept_samples"])  # noqa: T201 - what the test reads


if __name__ == "__main__":
    main(*sys.argv[1:])

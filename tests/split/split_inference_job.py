"""Both sides of a long inference, each in a process of its own: ``trainer PORT`` and ``loader PORT FOLDER ROWS``."""

from __future__ import annotations

import sys

import numpy as np
import torch
from split_training_parts import model

from manyhands import CPULoader, GPUTrainer

BATCH_SIZE = 500


def rows(count: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal((count, 6), dtype=np.float32)


def main(role: str, port: str, folder: str = "", count: str = "0") -> None:
    torch.set_num_threads(1)
    if role == "trainer":
        trainer = GPUTrainer(int(port), host="localhost")
        trainer.setup_model(model())
        trainer.start_service("inference")
    else:
        loader = CPULoader(num_workers=0)
        data = torch.utils.data.TensorDataset(torch.from_numpy(rows(int(count))))
        result = loader.run_inference("localhost", data, BATCH_SIZE, gpu_port=int(port), output=folder)
        print(result["kept_samples"])  # noqa: T201 - what the test reads


if __name__ == "__main__":
    main(*sys.argv[1:])

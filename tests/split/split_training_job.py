"""The trainer of the kill tests: port, checkpoint folder, resume, file for the weights, minutes between checkpoints."""

from __future__ import annotations

import sys

import torch
from split_training_parts import model
from torch import nn

from manyhands.split.trainer import GPUTrainer


def main(port: str, folder: str, resume: str, weights: str, minutes: str) -> None:
    torch.set_num_threads(1)
    torch.manual_seed(5)
    net = model(dropout=0.2)
    steps = 0

    def compute_loss(net: nn.Module, batch: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        nonlocal steps
        steps += 1
        print(f"step {steps}")  # noqa: T201 - what the test waits for
        return nn.functional.cross_entropy(net(batch[0]), batch[1])

    trainer = GPUTrainer(
        int(port),
        host="localhost",
        checkpoint_dir=folder,
        checkpoint_interval=float(minutes),
        resume=resume == "True",
    )
    trainer.setup_model(net, compute_loss=compute_loss)
    torch.manual_seed(5)
    trainer.start_training()
    trainer.save(weights)


if __name__ == "__main__":
    main(*sys.argv[1:])

"""A coordinator for the text model: dict samples, ragged lines, -100 where there is nothing to guess.

python examples/text_server.py          in one terminal; it waits for nodes
python examples/text_node.py            in others, as many as you like; about a minute with two
python examples/text_sample.py          when it is done: what the model writes
"""

import argparse
import math

import torch
from text_model import Lines, TextModel
from torch.optim.lr_scheduler import CosineAnnealingLR

from manyhands import CentralServer

BATCH_SIZE = 16


def make_server(port: int = 5555, epochs: int = 40, folder: str = "checkpoints/text") -> CentralServer:
    """The run. Its loss is the default one: cross-entropy against "labels"."""
    lines = Lines()
    steps = epochs * math.ceil(len(lines) / BATCH_SIZE)
    return CentralServer(
        TextModel(),
        lines,
        batch_size=BATCH_SIZE,
        port=port,
        checkpoint_dir=folder,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=6e-3),
        scheduler=lambda optimizer: CosineAnnealingLR(optimizer, steps),
        epochs=epochs,
        clip_norm=1.0,
        on_epoch=print_epoch,
    )


def print_epoch(epoch: int, train_loss: float, **figures: object) -> None:
    """Called by the server after each epoch."""
    print(f"epoch {epoch}: loss {train_loss:.4f}, perplexity {math.exp(train_loss):.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a model of characters, with a pool.")
    parser.add_argument("--port", type=int, default=5555)
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--folder", default="checkpoints/text", help="where checkpoints go")
    given = parser.parse_args()

    report = make_server(given.port, given.epochs, given.folder).start()

    print(f"{report.steps} steps with {report.nodes_seen} nodes, final loss {report.final_loss:.4f}")
    print(f"weights {report.weights_sha256}")


if __name__ == "__main__":
    main()

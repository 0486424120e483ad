"""Preprocessing of one's own, where the data is: digits are moved and made noisy before train_gpu.py sees them.

    python examples/train_gpu.py                    in one terminal
    python examples/custom_preprocessing_cpu.py     in another one

Random numbers are drawn from generators that are set for each batch, so the run can be repeated to the bit, whatever
the number of workers and machines. The validation gets the digits as they are.
"""

import argparse

import torch
from digits import digits
from torch import Tensor

from manyhands import CPULoader
from manyhands.config import get_config


def move_and_blur(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """A batch of training: each picture one pixel aside, or not, with noise that keeps it from 0 to 1."""
    pictures = x.reshape(-1, 8, 8)
    sides = torch.randint(-1, 2, (len(pictures), 2)).tolist()
    moved = [picture.roll(side, (0, 1)) for picture, side in zip(pictures, sides, strict=True)]
    noisy = torch.stack(moved) + 0.05 * torch.randn(pictures.shape)
    return noisy.clamp(0, 1).flatten(1), y


def main() -> None:
    config = get_config()
    parser = argparse.ArgumentParser(description="Feed a trainer with digits that move.")
    parser.add_argument("--host", default=config.get("network.gpu_host", "localhost"), help="the trainer's")
    parser.add_argument("--port", type=int, default=config["network.port"])
    parser.add_argument("--invite", help="mh://... or @file; not needed beside the trainer")
    parser.add_argument("--epochs", type=int, default=config["training.epochs"])
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()

    train, test = digits()
    loader = CPULoader(num_workers=given.workers, invite=given.invite)
    loader.setup_dataset(
        train,
        batch_size=64,
        preprocessing_fn={"train": move_and_blur},
        val_dataset=test,
        transfer_dtype="uint8",  # pixels from 0 to 1 travel as bytes, a quarter of float32
    )
    history = loader.start_loading(gpu_host=given.host, gpu_port=given.port, epochs=given.epochs)
    for epoch, accuracy in zip(history["epochs"], history["val_accuracy"], strict=True):
        print(f"epoch {epoch}: loss {history['train_loss'][epoch]:.4f}, accuracy {accuracy:.3f}")


if __name__ == "__main__":
    main()

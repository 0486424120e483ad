"""The machine with the GPU: it holds the model and trains it with the batches that train_cpu.py makes.

    python examples/train_gpu.py            in one terminal
    python examples/train_cpu.py            in another one: on this machine it finds the trainer

On another machine the loader needs two things: the invite that this prints, and this machine's address as --host.
The defaults come from config.yaml, .env and the environment; CONFIGURATION.md has them all.
"""

import argparse

from digits import network

from manyhands import GPUTrainer
from manyhands.config import get_config


def main() -> None:
    config = get_config()
    parser = argparse.ArgumentParser(description="Train a network with batches that come from elsewhere.")
    parser.add_argument("--port", type=int, default=config["network.port"])
    parser.add_argument("--learning-rate", type=float, default=config["training.learning_rate"])
    parser.add_argument("--checkpoints", help="a folder; started again with it, the training goes on there")
    parser.add_argument("--weights", default="digits.safetensors", help="where the trained weights go")
    given = parser.parse_args()

    trainer = GPUTrainer(
        port=given.port,
        checkpoint_dir=given.checkpoints,
        resume="auto" if given.checkpoints else False,
    )
    trainer.setup_model(network(), learning_rate=given.learning_rate)
    history = trainer.start_training(cpu_host=config.get("network.cpu_host"))  # waits for the loader

    for epoch, loss in zip(history["epochs"], history["train_loss"], strict=True):
        print(f"epoch {epoch}: loss {loss:.4f}")
    trainer.save(given.weights)
    print(f"saved {given.weights}")


if __name__ == "__main__":
    main()

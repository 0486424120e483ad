"""The machine with the data: it loads handwritten digits and feeds them to train_gpu.py.

    python examples/train_cpu.py --validate

With --validate each epoch ends with a validation on the trainer, and the training ends early when the loss of the
validation has stopped falling; the trainer then has the weights of the best epoch. Start it on several machines, and
they share the work.
"""

import argparse

from digits import digits

from manyhands import CPULoader
from manyhands.config import get_config


def main() -> None:
    config = get_config()
    parser = argparse.ArgumentParser(description="Feed a trainer with handwritten digits.")
    parser.add_argument("--host", default=config.get("network.gpu_host", "localhost"), help="the trainer's")
    parser.add_argument("--port", type=int, default=config["network.port"])
    parser.add_argument("--invite", help="mh://... or @file; not needed beside the trainer")
    parser.add_argument("--epochs", type=int, default=config["training.epochs"])
    parser.add_argument("--validate", action="store_true")
    given = parser.parse_args()

    train, test = digits()
    loader = CPULoader(num_workers=config["training.num_workers"], invite=given.invite)
    loader.setup_dataset(
        train,
        batch_size=config["training.batch_size"],
        val_dataset=test if given.validate else None,
    )
    history = loader.start_loading(
        gpu_host=given.host,
        gpu_port=given.port,
        epochs=given.epochs,
        early_stopping={"monitor": "val_loss", "patience": 5} if given.validate else None,
    )

    for epoch, loss in zip(history["epochs"], history["train_loss"], strict=True):
        print(f"epoch {epoch}: loss {loss:.4f}", end="")
        if given.validate:
            print(f", of the validation {history['val_loss'][epoch]:.4f}", end="")
            print(f", accuracy {history['val_accuracy'][epoch]:.3f}", end="")
        print()


if __name__ == "__main__":
    main()

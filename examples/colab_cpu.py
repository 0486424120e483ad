"""At home, where the data is: it feeds colab_gpu.py in a notebook.

    MANYHANDS_INVITE=mh://... python examples/colab_cpu.py --host 203.0.113.7 --port 40123

with what the notebook printed; or, where a port of this machine is open to the notebook, the other way round:

    python examples/colab_cpu.py --listen 29500
"""

import argparse

from digits import digits

from manyhands import CPULoader


def main() -> None:
    parser = argparse.ArgumentParser(description="Feed a notebook's GPU from home.")
    parser.add_argument("--host", help="of the tunnel")
    parser.add_argument("--port", type=int, default=29500)
    parser.add_argument(
        "--listen", type=int, metavar="PORT", help="wait for the notebook instead of dialling it"
    )
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--workers", type=int, default=2)
    given = parser.parse_args()
    if (given.host is None) == (given.listen is None):
        parser.error("give --host and --port, or --listen")

    train, test = digits()
    loader = CPULoader(num_workers=given.workers)
    loader.setup_dataset(train, batch_size=64, val_dataset=test, transfer_dtype="uint8")
    history = loader.start_loading(given.host, given.epochs, given.port, listen_port=given.listen)
    for epoch, accuracy in zip(history["epochs"], history["val_accuracy"], strict=True):
        print(f"epoch {epoch}: loss {history['train_loss'][epoch]:.4f}, accuracy {accuracy:.3f}")
    loader.save_model("digits.safetensors")  # the trained weights came home
    print("saved digits.safetensors")


if __name__ == "__main__":
    main()

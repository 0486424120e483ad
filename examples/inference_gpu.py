"""The machine with the GPU: it says what the network that train_gpu.py saved makes of samples, until Ctrl-C.

python examples/inference_gpu.py        in one terminal
python examples/inference_cpu.py        in another one, as often as you like
"""

import argparse

from digits import network

from manyhands import GPUTrainer
from manyhands.config import get_config


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve what a trained network says.")
    parser.add_argument("--port", type=int, default=get_config()["network.port"])
    parser.add_argument("--weights", default="digits.safetensors", help="what train_gpu.py saved")
    given = parser.parse_args()

    trainer = GPUTrainer(port=given.port)
    trainer.setup_model(network())  # needs neither criterion nor optimizer
    trainer.load(given.weights)
    trainer.start_service(mode="inference")


if __name__ == "__main__":
    main()

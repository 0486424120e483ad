"""The machine with the GPU: it serves validations of the network that train_gpu.py saved, until Ctrl-C.

python examples/validate_gpu.py         in one terminal
python examples/validate_cpu.py         in another one, as often as you like
"""

import argparse

from digits import network

from manyhands import GPUTrainer
from manyhands.config import get_config


def main() -> None:
    parser = argparse.ArgumentParser(description="Serve validations of a trained network.")
    parser.add_argument("--port", type=int, default=get_config()["network.port"])
    parser.add_argument("--weights", default="digits.safetensors", help="what train_gpu.py saved")
    given = parser.parse_args()

    trainer = GPUTrainer(port=given.port)
    trainer.setup_model(network())  # without a criterion it is cross-entropy
    trainer.load(given.weights)
    trainer.start_service(mode="validation")


if __name__ == "__main__":
    main()

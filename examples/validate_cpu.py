"""The machine with the data: it has the network of validate_gpu.py validated on digits that were not trained on."""

import argparse

from digits import digits

from manyhands import CPULoader
from manyhands.config import get_config


def main() -> None:
    config = get_config()
    parser = argparse.ArgumentParser(description="Have a network validated where its GPU is.")
    parser.add_argument("--host", default=config.get("network.gpu_host", "localhost"), help="the trainer's")
    parser.add_argument("--port", type=int, default=config["network.port"])
    parser.add_argument("--invite", help="mh://... or @file; not needed beside the trainer")
    given = parser.parse_args()

    _, test = digits()
    loader = CPULoader(num_workers=0, invite=given.invite)  # what is in memory needs no workers
    results = loader.run_validation(given.host, test, batch_size=128, gpu_port=given.port)

    print(f"{results['total_samples']} samples in {results['total_batches']} batches")
    print(f"loss {results['average_loss']:.4f}")
    print(f"accuracy {results['accuracy']:.4f}, among the likeliest five {results['top5_accuracy']:.4f}")


if __name__ == "__main__":
    main()

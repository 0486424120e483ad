"""The machine with the data: it asks inference_gpu.py for digits, and keeps the answers that are sure enough.

With --output the answers go to a folder as they come, in bounded memory; started again after a kill it goes on there.
"""

import argparse

from digits import digits

from manyhands import CPULoader
from manyhands.config import get_config


def main() -> None:
    config = get_config()
    parser = argparse.ArgumentParser(description="Ask a network where its GPU is.")
    parser.add_argument("--host", default=config.get("network.gpu_host", "localhost"), help="the trainer's")
    parser.add_argument("--port", type=int, default=config["network.port"])
    parser.add_argument("--invite", help="mh://... or @file; not needed beside the trainer")
    parser.add_argument("--threshold", type=float, default=0.8, help="keep what is at least so sure")
    parser.add_argument("--output", help="a folder for the answers; without one they stay in memory")
    given = parser.parse_args()

    _, test = digits()
    loader = CPULoader(num_workers=0, invite=given.invite)
    results = loader.run_inference(
        given.host,
        test,
        batch_size=256,
        top_k=3,
        gpu_port=given.port,
        confidence_threshold=given.threshold,
        output=given.output,
    )

    print(f"kept {results['kept_samples']} of {results['total_samples']} samples")
    print(f"the answers take {results['estimated_memory_mb']:.3f} MB")
    for row in range(min(3, results["kept_samples"])):
        digit, confidence = results["predictions"][row], results["confidences"][row]
        others = results["top_k_indices"][row][1:].tolist()
        print(f"sample {results['indices'][row]}: {digit} ({confidence:.3f}), then {others}")
    targets = test.tensors[1].numpy()[results["indices"]]
    if len(targets):
        print(f"right: {(results['predictions'] == targets).mean():.3f}")


if __name__ == "__main__":
    main()

"""Pictures of 224 x 224 in three colours, asked of a network that is elsewhere: both sides in one script.

    python examples/image_inference_example.py gpu      where the GPU is; uses what train_gpu.py saved
    python examples/image_inference_example.py cpu      where the pictures are

A picture travels as bytes, 150 kB instead of the 600 kB of float32, and becomes floats on the device. Of each come
back the likeliest classes: with a thousand classes a hundredth of what all probabilities take.
"""

import argparse

import torch
from digits import digits, network
from torch import Tensor, nn
from torch.utils.data import Dataset

from manyhands import CPULoader, GPUTrainer
from manyhands.config import get_config

SIDE = 224


class Pictures(Dataset):
    """Handwritten digits as pictures; yours would read files here."""

    def __init__(self, count: int) -> None:
        _, test = digits()
        self.pixels, self.targets = (tensor[:count] for tensor in test.tensors)

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        small = self.pixels[index].reshape(1, 8, 8)
        large = small.repeat_interleave(SIDE // 8, 1).repeat_interleave(SIDE // 8, 2)
        return (large * 255).to(torch.uint8).expand(3, SIDE, SIDE), self.targets[index]


class PictureNetwork(nn.Module):
    """The network of the digits, behind what makes 64 numbers of a picture; yours may be any."""

    def __init__(self) -> None:
        super().__init__()
        self.network = network()

    def forward(self, pictures: Tensor) -> Tensor:
        grey = pictures.float().mean(1) / 255  # normalised here, on the device
        return self.network(nn.functional.avg_pool2d(grey, SIDE // 8).flatten(1))


def serve(port: int, weights: str) -> None:
    """The machine with the GPU."""
    model = PictureNetwork()
    trainer = GPUTrainer(port=port)
    trainer.setup_model(model.network)
    trainer.load(weights)
    trainer.setup_model(model)
    trainer.start_service(mode="inference")


def ask(host: str, port: int, invite: str | None, count: int) -> None:
    """The machine with the pictures."""
    pictures = Pictures(count)
    results = CPULoader(invite=invite).run_inference(host, pictures, batch_size=32, top_k=5, gpu_port=port)
    right = (results["predictions"] == pictures.targets.numpy()).mean()
    print(f"{results['total_samples']} pictures of {SIDE} x {SIDE}, right: {right:.3f}")
    print(f"the answers take {results['estimated_memory_mb']:.3f} MB")


def main() -> None:
    config = get_config()
    parser = argparse.ArgumentParser(description="What a network elsewhere says of pictures.")
    parser.add_argument("side", choices=("gpu", "cpu"))
    parser.add_argument("--host", default=config.get("network.gpu_host", "localhost"), help="the trainer's")
    parser.add_argument("--port", type=int, default=config["network.port"])
    parser.add_argument("--invite", help="mh://... or @file; not needed beside the trainer")
    parser.add_argument("--weights", default="digits.safetensors", help="what train_gpu.py saved")
    parser.add_argument("--count", type=int, default=297, help="pictures")
    given = parser.parse_args()
    if given.side == "gpu":
        serve(given.port, given.weights)
    else:
        ask(given.host, given.port, given.invite, given.count)


if __name__ == "__main__":
    main()

"""A boss: cuts a U-Net over three workers and teaches it to find discs in noise.

    python examples/pipeline_unet.py --local        the boss and three workers, all here
    python examples/pipeline_unet.py                prints the line for the workers: manyhands worker mh://...

Each of the two long skips goes from the worker that makes it straight to the one that takes it, and its gradient
comes back the same way. The model is an ordinary module: where it is cut is nothing that it knows.
"""

import argparse
import asyncio

import torch
from torch import Tensor, nn

from manyhands import BossMan

SIZE = 32


def convolutions(inputs: int, outputs: int) -> nn.Sequential:
    """Two convolutions that keep the size."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(),
        nn.Conv2d(outputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(),
    )  # fmt: skip


class UNet(nn.Module):
    """Images (B, 1, H, W) to logits (B, 1, H, W); H and W are multiples of 4."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.pool = nn.MaxPool2d(2)
        self.down1, self.down2 = convolutions(1, width), convolutions(width, 2 * width)
        self.bottom = convolutions(2 * width, 4 * width)
        self.rise2 = nn.ConvTranspose2d(4 * width, 2 * width, 2, stride=2)
        self.up2 = convolutions(4 * width, 2 * width)
        self.rise1 = nn.ConvTranspose2d(2 * width, width, 2, stride=2)
        self.up1 = convolutions(2 * width, width)
        self.head = nn.Conv2d(width, 1, 1)

    def forward(self, image: Tensor) -> Tensor:
        skip1 = self.down1(image)
        skip2 = self.down2(self.pool(skip1))
        x = self.bottom(self.pool(skip2))
        x = self.up2(torch.cat([self.rise2(x), skip2], dim=1))
        x = self.up1(torch.cat([self.rise1(x), skip1], dim=1))
        return self.head(x)


def get_batch(size: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Noisy images with one disc each, and where the disc is."""
    ticks = torch.arange(SIZE)
    centre = torch.rand(size, 2, 1, 1, generator=generator) * SIZE
    radius = 3 + torch.rand(size, 1, 1, generator=generator) * SIZE / 4
    distance = ((ticks[:, None] - centre[:, 0]) ** 2 + (ticks - centre[:, 1]) ** 2).sqrt()
    disc = (distance < radius).float().unsqueeze(1)
    return disc + torch.randn(disc.shape, generator=generator) * 0.5, disc


async def train(
    num_workers: int, steps: int, rows: int, local: bool, port: int | None
) -> tuple[float, dict[str, Tensor]]:
    """The share of pixels that the trained model gets right on new images, and its weights."""
    generator = torch.Generator().manual_seed(0)
    workers = await BossMan.setup_host(num_workers, port=port, local=local)
    boss = BossMan(workers, UNet())
    await boss.distribute_model()
    await boss.send_optimizer(torch.optim.AdamW, {"lr": 5e-3})
    for step in range(steps):
        images, discs = get_batch(rows, generator)
        loss = await boss.train_batch(images, discs, nn.BCEWithLogitsLoss(), micro_batches=4, schedule="1f1b")
        if step == 0:
            for name, stages in boss.gather_dependencies().items():
                print(f"{name} goes to stage {', '.join(map(str, stages))}", flush=True)
        if (step + 1) % 10 == 0:
            print(f"step {step + 1}: loss {loss:.4f}", flush=True)
    await boss.model_eval()
    images, discs = get_batch(rows, generator)
    with torch.no_grad():
        found = (await boss.forward(images)) > 0
    weights = await boss.state_dict()
    await boss.close()
    return (found == discs.bool()).float().mean().item(), weights


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a U-Net that lies on several workers.")
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--rows", type=int, default=32, help="images in a batch")
    parser.add_argument("--local", action="store_true", help="start the workers here too")
    parser.add_argument("--port", type=int, default=None)
    given = parser.parse_args()

    torch.manual_seed(0)
    right, weights = asyncio.run(train(given.workers, given.steps, given.rows, given.local, given.port))
    UNet().load_state_dict(weights)  # the names are the module's own: it goes home as it came
    print(f"{right:.1%} of the pixels right")


if __name__ == "__main__":
    main()

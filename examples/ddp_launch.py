"""Distributed data parallel on real handwritten digits: on one machine, or on several.

python examples/ddp_launch.py                     4 processes here (one a GPU, where there are GPUs)
python examples/ddp_launch.py --resume            go on from the last checkpoint, on any number of processes
python examples/ddp_launch.py --predict 7         load the checkpoint and read one digit

Two machines, the same line on each but for --node_rank:

python examples/ddp_launch.py --node_rank 0 --nnodes 2 --master_addr 192.168.1.100 --master_port 29500
python examples/ddp_launch.py --node_rank 1 --nnodes 2 --master_addr 192.168.1.100 --master_port 29500
"""

import argparse
from pathlib import Path

import torch
from digits import digits
from safetensors.torch import load_model
from torch import nn
from torch.utils.data import DataLoader

import manyhands.launch


class Net(nn.Module):
    """From 64 pixels to 10 digits. No dropout, so any number of processes trains the same weights."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(64, 128)
        self.output = nn.Linear(128, 10)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.output(self.hidden(images).relu())


def read_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train on handwritten digits with DDP.", allow_abbrev=False)
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=64, help="of all processes together")
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--folder", default="checkpoints/ddp", help="where checkpoints go")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    parser.add_argument("--shard", action="store_true", help="FSDP2, for a model that one device cannot hold")
    parser.add_argument("--predict", type=int, metavar="I", help="read test digit I with the last checkpoint")
    return parser.parse_known_args()[0]


def train(given: argparse.Namespace) -> None:
    s = manyhands.launch.session(strategy="fsdp" if given.shard else "auto")
    everything, _ = digits()
    training, validation = s.split(everything, [0.9, 0.1])

    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=given.lr, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, step_size=5, gamma=0.5)
    criterion = nn.CrossEntropyLoss()
    model, optimizer, scheduler, batches, checks = s.prepare(
        model,
        optimizer,
        scheduler,
        DataLoader(training, given.batch_size, shuffle=True),
        DataLoader(validation, given.batch_size),
    )
    s.print(
        f"{s.world_size} processes, {s.device.type}, {len(training)} training and {len(validation)} validation samples"
    )

    # Without --resume a new run begins, but for a launch that starts its ranks again after a failure.
    first = s.resume(given.folder, own=not given.resume).get("epoch", 0)
    for epoch in range(first, given.epochs):
        model.train()
        total = 0.0
        for images, labels in s.progress(batches, epoch=epoch):
            optimizer.zero_grad()
            loss = criterion(model(images), labels)
            loss.backward()
            optimizer.step()
            total += s.mean(loss.item())
        scheduler.step()
        accuracy = validate(s, model, checks)
        s.print(f"epoch {epoch}: loss {total / len(batches):.4f}, validation accuracy {accuracy:.1%}")
        s.save(given.folder, epoch=epoch + 1)
    s.print("done: the parameters are the same on all processes")


@torch.no_grad()
def validate(s: manyhands.launch.Session, model: nn.Module, checks: DataLoader) -> float:
    """The part of all validation samples that the model reads right."""
    model.eval()
    right = seen = 0
    for images, labels in checks:
        if s.share:
            right += int((model(images).argmax(1) == labels).sum())
            seen += s.share
    return s.sum(right) / s.sum(seen)


def predict(given: argparse.Namespace) -> None:
    """One digit that nobody trained on, without any other process."""
    run = max(Path(given.folder).glob("run-*"), key=lambda folder: (folder / "latest").stat().st_mtime)
    model = Net().eval()
    load_model(model, run / (run / "latest").read_text().strip() / "model.safetensors")
    _, test = digits()
    image, label = test[given.predict]
    chances = model(image[None]).softmax(1)[0]
    guess = int(chances.argmax())
    print(
        f"test digit {given.predict} is a {guess} ({chances[guess]:.1%} sure); it was written as a {int(label)}"
    )


def main() -> None:
    given = read_arguments()
    if given.predict is not None:
        predict(given)
        return
    manyhands.launch.ensure_launched()
    train(given)


if __name__ == "__main__":
    main()

"""A boss: a small GPT whose first and last layer share one table, on several workers, in a plain training loop.

    python examples/pipeline_gpt.py --local         the boss and two workers, all here
    python examples/pipeline_gpt.py                 prints the line for the workers: manyhands worker mh://...

The table lies on the first worker, where characters come in, and again on the last, where they are guessed. Its
gradients are summed, and the two copies are the same bits after every step.
"""

import argparse
import asyncio

import torch
from text_model import CHARACTERS, WIDTH, Lines, TextModel
from text_sample import write
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from manyhands import BossMan


class TiedTextModel(TextModel):
    """The text model with one table for what comes in and for what goes out."""

    def __init__(self) -> None:
        super().__init__()
        nn.init.normal_(self.character.weight, std=0.02)
        self.head = nn.Linear(WIDTH, len(CHARACTERS), bias=False)
        self.head.weight = self.character.weight


def train(boss: BossMan, steps: int) -> None:
    """An ordinary loop: ``loss.backward()`` drives the workers."""
    net = boss.plain()
    optimizer = net.optimizer(torch.optim.AdamW, lr=3e-3)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps)
    done = 0
    while done < steps:
        for batch in DataLoader(Lines(), batch_size=16, shuffle=True):
            optimizer.zero_grad()
            logits = net(batch["input_ids"], attention_mask=batch["attention_mask"])
            loss = cross_entropy(logits.flatten(0, 1), batch["labels"].flatten())
            loss.backward()
            net.clip_grad_norm_(1.0)
            optimizer.step()
            scheduler.step()
            done += 1
            if done % 10 == 0:
                print(f"step {done}: loss {loss.item():.4f}", flush=True)
            if done == steps:
                break


def main() -> None:
    parser = argparse.ArgumentParser(description="Train a small GPT that lies on several workers.")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--local", action="store_true", help="start the workers here too")
    parser.add_argument("--port", type=int, default=None)
    given = parser.parse_args()

    torch.manual_seed(0)
    workers = asyncio.run(BossMan.setup_host(given.workers, port=given.port, local=given.local))
    boss = BossMan(workers, TiedTextModel())
    try:
        asyncio.run(boss.distribute_model())
        train(boss, given.steps)
        weights = boss.plain().state_dict()
    finally:
        workers.close()
    same = torch.equal(weights["character.weight"], weights["head.weight"])
    print(f"both copies of the table are the same: {same}")

    model = TiedTextModel().eval()
    model.load_state_dict(weights)
    generator = torch.Generator().manual_seed(0)
    print(write(model, "The ", 120, temperature=0.5, top_k=8, generator=generator))


if __name__ == "__main__":
    main()

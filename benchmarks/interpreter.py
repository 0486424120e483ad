"""A leaf through the interpreter beside the same leaf of the eager module, one thread, in turns.

    python benchmarks/interpreter.py [--repeats N]

Both sides are ``training.step.leaf_gradient``: seeds, forward, loss, backward. The program is captured, parsed from
its bytes and proven first. Targets: 1.05x for GPT-2, 1.3x for the MLP. Prints a JSON line each.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from common.lines import report, spread
from torch import Tensor, nn

from manyhands.programs.capture import capture
from manyhands.programs.format import encode
from manyhands.programs.module import ProgramModule
from manyhands.programs.parser import parse
from manyhands.programs.proof import OWN, prove
from manyhands.training.batch import Batch
from manyhands.training.objective import Objective
from manyhands.training.state import ModelState
from manyhands.training.step import Leaf, leaf_gradient


class OwnLoss(Objective):
    """The loss that a program brings."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        result: Tensor = model(batch)
        return result


def leaf_of(model: nn.Module, objective: Objective, batch: Batch) -> Callable[[], Any]:
    state, leaf = ModelState(model.train()), Leaf(step=1, number=0, weight=1.0)
    return lambda: leaf_gradient(state, objective, batch, leaf, run_seed=0)


def in_turns(sides: list[Callable[[], Any]], repeats: int) -> list[list[float]]:
    """Processor milliseconds of each side's runs, after three that warm up; who goes first alternates.

    One thread computes and nothing waits, so processor time is the time, less what others on the machine take.
    """
    taken: list[list[float]] = [[] for _ in sides]
    for turn in range(repeats + 3):
        order = list(range(len(sides)))
        for at in order if turn % 2 else reversed(order):
            start = time.process_time()
            sides[at]()
            if turn >= 3:
                taken[at].append((time.process_time() - start) * 1e3)
    return taken


def compare(name: str, model: nn.Module, batches: list[Batch], repeats: int, setup: str) -> None:
    objective = Objective()
    captured = capture(model, objective.loss, batches)
    prove(captured, model, objective.loss, batches)
    data = encode(captured.program)
    tensors = {key: tensor.detach().clone() for key, tensor in captured.tensors.items()}
    program = ProgramModule(parse(data), tensors, limits=OWN)
    sides = [leaf_of(program, OwnLoss(), batches[0]), leaf_of(model, objective, batches[0])]
    ours, theirs = in_turns(sides, repeats)
    num = sum(parameter.numel() for parameter in model.parameters())
    about = f"{setup}; {num:,} parameters, program of {len(data):,} bytes, 1 thread; theirs: eager module"
    about += (
        f"; processor ms ours {spread(ours)}; theirs {spread(theirs)}; fastest {min(ours) / min(theirs):.3f}x"
    )
    report(name, statistics.median(ours), statistics.median(theirs), "ms/leaf", False, about)


def gpt2(repeats: int) -> None:
    import transformers

    torch.manual_seed(0)
    transformers.logging.set_verbosity_error()
    config = transformers.GPT2Config(vocab_size=20_000, n_positions=64, n_embd=256, n_layer=6, n_head=8)
    tokens = torch.randint(0, config.vocab_size, (4, 64))
    batch = {"input_ids": tokens, "labels": tokens}
    compare(
        "interpreter_gpt2", transformers.GPT2LMHeadModel(config), [batch], repeats, "GPT-2, 4 x 64 tokens"
    )


def mlp(repeats: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(64, 140), nn.ReLU(), nn.Linear(140, 64), nn.ReLU(), nn.Dropout(0.1), nn.Linear(64, 10)
    )
    batch = (torch.randn(8, 64), torch.randint(0, 10, (8,)))
    compare("interpreter_mlp", model, [batch], repeats, "MLP, 8 samples")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=60)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    gpt2(arguments.repeats)
    mlp(arguments.repeats * 20)


if __name__ == "__main__":
    main()

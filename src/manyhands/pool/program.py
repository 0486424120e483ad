"""A node's model where it brings none: the run's program, over memory of this machine's own."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from manyhands.errors import ProgramRefused
from manyhands.programs.format import MAX_NODES
from manyhands.programs.module import ProgramModule
from manyhands.programs.parser import parse
from manyhands.programs.plan import Limits
from manyhands.tensors.dtypes import DTYPES
from manyhands.training.batch import Batch
from manyhands.training.objective import Objective

MEMORY_SHARE = 0.8
"""How much of the machine's memory a program may need, by its dry run."""
MOST_FLOPS = 10**15
"""Of one leaf: hours on a processor, minutes on a GPU."""


class ProgramObjective(Objective):
    """A program's train graph ends in the loss."""

    def loss(self, model: nn.Module, batch: Batch) -> Tensor:
        """The program's own loss, with its graph."""
        loss: Tensor = model(without_text(batch))
        return loss


def without_text(batch: Batch) -> Batch:
    """`batch` without what is only text: no model computes with it, and its form would vary with every leaf."""
    if not isinstance(batch, Mapping):
        return batch
    return {key: value for key, value in batch.items() if not _is_text(value)}


def _is_text(value: object) -> bool:
    if isinstance(value, list | tuple):
        return len(value) > 0 and all(isinstance(item, str) for item in value)
    return isinstance(value, str)


def memory_bytes() -> int:
    """The machine's memory; 8 GiB where the system does not tell."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):
        return 8 << 30


def machine_limits() -> Limits:
    """What this machine lends."""
    return Limits(int(MEMORY_SHARE * memory_bytes()), MOST_FLOPS, MAX_NODES)


def receive_program(data: Any, limits: Limits, device: torch.device) -> ProgramModule:
    """The module that these bytes describe, its tensors zero until the state arrives.

    ProgramRefused where it is no program, or needs more memory for its tensors than `limits` allow.
    """
    program = parse(bytes(data))
    rows = [*program.parameters, *program.buffers]
    needed = sum(DTYPES[row.dtype].itemsize * _count(row.shape) for row in rows)
    # Weights, their gradients and a partial sum, before the first activation.
    if 3 * needed > limits.bytes:
        raise ProgramRefused(
            f"the model's tensors take {needed:,} bytes, gradients and a sum as many each, and this machine lends "
            f"{limits.bytes:,}"
        )
    tensors = {row.name: torch.zeros(tuple(row.shape), dtype=DTYPES[row.dtype]) for row in rows}
    return ProgramModule(program, tensors, limits=limits).to(device)


def _count(shape: Any) -> int:
    product = 1
    for size in shape:
        product *= size
    return product

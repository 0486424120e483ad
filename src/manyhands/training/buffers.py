"""Which buffers training mutates, and how the leaves of a step agree on them.

Each leaf starts from the step's buffers. What comes back is folded by kind:

- ``mean``: floating statistics of batch and instance normalisation; the step's value is the mean over its leaves,
  summed in tree order;
- ``agree``: integers and booleans (``num_batches_tracked``): each leaf must say the same;
- ``first``: anything else that changes: leaf 0's value counts, and that is said once.
"""

from __future__ import annotations

from collections.abc import Mapping
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn

from manyhands.errors import UsageError
from manyhands.training.state import CRITERION, ModelState

_NORMS = (nn.modules.batchnorm._NormBase,)
_MEANS = ("running_mean", "running_var")


class Fold(StrEnum):
    """How one buffer's values from several leaves become the step's."""

    MEAN = "mean"
    AGREE = "agree"
    FIRST = "first"


def snapshot(state: ModelState) -> dict[str, Tensor]:
    """Every buffer's value, to find afterwards which ones a training step mutated.

    Values, not version counters: the batch-norm kernels write running statistics without counting.
    """
    return {name: buffer.detach().clone() for name, buffer in state.buffers.items()}


def mutated_since(state: ModelState, before: Mapping[str, Tensor]) -> dict[str, Fold]:
    """The buffers whose value changed since `before` was taken, each with its fold.

    UsageError where a module puts a new tensor in a buffer's place, which no state can follow.
    """
    for name, buffer in ModelState(state.model, state.criterion).buffers.items():
        if name in state.buffers and buffer is not state.buffers[name]:
            raise UsageError(
                f"buffer {name} is replaced by a new tensor while training: write into it instead "
                f"(self.{name}.copy_(...))"
            )
    changed = [name for name, buffer in state.buffers.items() if not torch.equal(buffer, before[name])]
    norms = _norm_statistics(state)
    return {name: _fold(state.buffers[name], name in norms) for name in changed}


class StillBuffers:
    """Buffers that the run's first leaf left alone; no leaf may change them, as nobody would hear of it."""

    def __init__(self, buffers: Mapping[str, Tensor]) -> None:
        self._buffers = dict(buffers)
        self.mark()

    def mark(self) -> None:
        """They may have been written to until now."""
        self._versions = [buffer._version for buffer in self._buffers.values()]

    def check(self) -> None:
        """UsageError naming the first that was written to since the last call or mark."""
        before = self._versions
        self.mark()
        if self._versions == before:
            return
        changed = next(
            name for name, old, new in zip(self._buffers, before, self._versions, strict=True) if old != new
        )
        raise UsageError(
            f"buffer {changed} was changed by this micro-batch, and the run's first one left it alone: what only "
            "some micro-batches change cannot be summed the same way everywhere. Change it in each forward in "
            "training mode, or never"
        )


def still_buffers(state: ModelState, folds: Mapping[str, Fold]) -> StillBuffers:
    """A watch over the buffers of `state` that do not travel. Batch statistics always do."""
    return StillBuffers({name: buffer for name, buffer in state.buffers.items() if name not in folds})


def _norm_statistics(state: ModelState) -> frozenset[str]:
    return frozenset(
        f"{path}.{name}".removeprefix(".")
        for path, module in _modules(state)
        if isinstance(module, _NORMS)
        for name in _MEANS
    )


def _modules(state: ModelState) -> list[tuple[str, Any]]:
    found = list(state.model.named_modules())
    if state.criterion is not None:
        found += [(CRITERION + path, module) for path, module in state.criterion.named_modules()]
    return found


def _fold(buffer: Tensor, is_norm_statistic: bool) -> Fold:
    if not (buffer.is_floating_point() or buffer.is_complex()):
        return Fold.AGREE
    return Fold.MEAN if is_norm_statistic else Fold.FIRST


def batch_norms(model: nn.Module) -> list[str]:
    """Names of the modules that normalise over the batch while training."""
    kinds = (nn.modules.batchnorm._BatchNorm,)
    return [name for name, module in model.named_modules() if isinstance(module, kinds)]


def check_leaf_size(model: nn.Module, leaf_samples: int) -> str | None:
    """UsageError for batch normalisation over one sample; a warning sentence below 8, else None."""
    norms = batch_norms(model)
    if not norms:
        return None
    if leaf_samples < 2:
        raise UsageError(
            f"{norms[0]} normalises over the batch, and each micro-batch would hold {leaf_samples} sample: "
            "its "
            "variance is undefined. Raise batch_size or lower micro_batches so that batch_size / "
            "micro_batches >= 2"
        )
    if leaf_samples < 8:
        return (
            f"{norms[0]} normalises over micro-batches of {leaf_samples} samples; its statistics are noisy "
            "below 8. "
            "Raise batch_size or lower micro_batches, or use GroupNorm or LayerNorm"
        )
    return None

"""From a stage's final gradients to new weights, and what is decided over all stages before.

Clipping and fp16's scale look at the whole model: each stage tells the norms of its gradients, `decide` says what
all of them do, and each does it. As torch's ``clip_grad_norm_``: a norm a tensor, in the order of the model's
parameters, and the norm of these; the root of summed squares of stages' norms has other bits.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Final

import torch
from torch import Tensor
from torch.optim import Optimizer

from manyhands.errors import RunFailed
from manyhands.pipeline.stage.optimizers import OptimizerRecipe
from manyhands.pipeline.stage.weights import StageWeights, set_rate


@dataclass(frozen=True)
class Decision:
    """What every stage does with its gradients."""

    coefficient: float | None = None
    """Multiply by this before the step."""
    skips: bool = False
    """Leave the weights as they are: a gradient somewhere is not finite."""


STEP: Final = Decision()
"""Step, and nothing else."""


def total_norm(norms: Mapping[str, float], order: Iterable[str]) -> float:
    """The global 2-norm of gradients from the norm of each, in the order of the model's parameters."""
    listed = [norms[name] for name in order if name in norms]
    return float(torch.linalg.vector_norm(torch.tensor(listed, dtype=torch.float32))) if listed else 0.0


def decide(
    norms: Mapping[str, float], order: Iterable[str], *, max_norm: float | None, skips_non_finite: bool
) -> Decision:
    """What all stages do, from the norms of all of them: skip (fp16), clip to `max_norm`, or just step."""
    if skips_non_finite and not all(map(math.isfinite, norms.values())):
        return Decision(skips=True)
    if max_norm is None or not norms:
        return STEP
    # In fp32, as torch does: the coefficient's last bit is part of the weights'.
    norm = torch.tensor(total_norm(norms, order), dtype=torch.float32)
    return Decision(float(torch.clamp(max_norm / (norm + 1e-6), max=1.0)))


class Update:
    """The optimizer of one stage and the number of its last step."""

    def __init__(self, weights: StageWeights) -> None:
        self.optimizer: Optimizer | None = None
        self.number = -1
        """The last step that was done, -1 before the first."""
        self._weights = weights
        self._stepped = weights.stepped
        self._has_recipe = False

    def set_optimizer(self, recipe: OptimizerRecipe) -> None:
        """A new optimizer, without any state."""
        self.optimizer = recipe.build(self._stepped.values())
        self._has_recipe = True

    def set_rate(self, lr: float) -> None:
        """The learning rate from the next step on."""
        if self.optimizer is not None:
            set_rate(self.optimizer, lr)

    def unscale(self, scale: float) -> None:
        """Take fp16's scale off the gradients: a power of two, so that nothing is lost."""
        if scale != 1.0 and (gradients := self._gradients()):
            torch._foreach_mul_(gradients, 1.0 / scale)

    def norms(self) -> dict[str, float]:
        """The 2-norm of each gradient, by name; infinite or NaN where the gradient holds such a value."""
        found = {
            name: torch.linalg.vector_norm(one.grad).to(torch.float64)
            for name, one in self._stepped.items()
            if one.grad is not None
        }
        # Together, so that a device is waited for once.
        return dict(zip(found, torch.stack(list(found.values())).tolist(), strict=True)) if found else {}

    def step(self, number: int, decision: Decision) -> bool:
        """Step `number`; False where it was done already. RunFailed where another one comes next."""
        if number == self.number:
            return False
        if number != self.number + 1:
            raise RunFailed(
                f"optimizer step {number} cannot follow step {self.number}: this stage is at another step than the "
                "others; resume from the last checkpoint"
            )
        if not self._has_recipe:
            raise RunFailed("there is no optimizer yet: await boss.send_optimizer(...) before the first step")
        self.number = number
        if decision.skips or self.optimizer is None:
            return True
        if decision.coefficient is not None:
            gradients = self._gradients()
            if gradients:
                torch._foreach_mul_(gradients, decision.coefficient)
        self.optimizer.step()
        return True

    def _gradients(self) -> list[Tensor]:
        return [one.grad for one in self._stepped.values() if one.grad is not None]

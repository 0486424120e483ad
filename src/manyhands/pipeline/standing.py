"""Where a run stands, beyond what its stages hold. Plain data; knows no worker."""

from __future__ import annotations

from dataclasses import dataclass

from manyhands.errors import UsageError
from manyhands.pipeline.commands import Command, Do, Pass, SetOptimizer
from manyhands.pipeline.saving import Saved
from manyhands.pipeline.stage.weights import StageState
from manyhands.training.scale import LossScale


@dataclass
class Standing:
    """What was done and set so far, and what is half done."""

    scale: LossScale
    optimizer: tuple[str, str] | None = None
    """Class and options, as text."""
    is_training: bool = True
    passes: int = 0
    """Forwards: what random numbers are keyed by."""
    updates: int = 0
    """Optimizer steps."""
    forward: Pass | None = None
    """The forward that a backward may still go through."""
    has_gradients: bool = False

    @property
    def is_between_steps(self) -> bool:
        """Whether the stages' state is all there is: no gradients, and none to come."""
        return self.forward is None and not self.has_gradients

    def next_pass(self) -> int:
        """The number of a new forward."""
        self.passes += 1
        return self.passes

    def check_optimizer(self) -> None:
        """UsageError where there is none yet."""
        if self.optimizer is None:
            raise UsageError(
                "there is no optimizer yet: await boss.send_optimizer(torch.optim.Adam, {'lr': 3e-3})"
            )

    def commands(self) -> list[Command]:
        """What brings new stages to the optimizer's kind, and to train or eval; numbered 0."""
        mode = Do(0, "train" if self.is_training else "eval")
        return [mode] if self.optimizer is None else [SetOptimizer(0, *self.optimizer), mode]

    def forget(self) -> None:
        """What was half done is not gone on with."""
        self.forward, self.has_gradients = None, False

    def saved(self, state: StageState, seed: int) -> Saved:
        """All of it for a checkpoint, with the stages' `state`."""
        return Saved(state, self.updates, self.passes, seed, self.optimizer, self.scale.to_plain())

    def load(self, saved: Saved) -> None:
        """Go on where `saved` stood; an optimizer that it has not stays."""
        self.optimizer = saved.optimizer or self.optimizer
        self.updates, self.passes = saved.updates, saved.passes
        if self.scale.is_used:
            self.scale.load(saved.scale)

"""The end of a job, as its loaders are told it: with a result, or with an error."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from torch import Tensor

from manyhands.errors import ManyhandsError, Unreachable
from manyhands.fleet.channels import Channel
from manyhands.split.messages import Over
from manyhands.tensors import MAX_FRAME_BYTES, Frame, encode

MOST_SHOWN: Final = 1000
"""Characters of an error that travel."""


class Ending(NamedTuple):
    """What is left of a job that has ended."""

    errands: frozenset[str]
    """The calls that it was of; see `Hello.errand`."""
    farewell: Farewell


@dataclass(frozen=True)
class Farewell:
    """An `Over` with its body; may be said to any number of loaders."""

    over: Over
    body: Frame | None = None
    result: Mapping[str, Any] | None = None

    @classmethod
    def well(cls, result: Mapping[str, Any], weights: Mapping[str, Tensor] | None) -> Farewell:
        """The result, and the weights where they fit one message."""
        tree: dict[str, Any] = {"result": dict(result), "weights": None}
        if weights is not None and sum(tensor.nbytes for tensor in weights.values()) < MAX_FRAME_BYTES // 2:
            tree["weights"] = {name: tensor.detach() for name, tensor in weights.items()}
        return cls(Over(), encode(tree, checks_body=False), result)

    @classmethod
    def ill(cls, error: ManyhandsError) -> Farewell:
        """What ended the job."""
        return cls(Over(str(error)[:MOST_SHOWN] or "the trainer failed", type(error).__name__))

    def without_weights(self) -> Farewell:
        """For who comes when the model's may be others already."""
        return self if self.result is None else Farewell.well(self.result, None)

    def say(self, channel: Channel) -> None:
        """Tell one loader, who may have gone meanwhile."""
        with suppress(Unreachable):
            channel.send(self.over, self.body)

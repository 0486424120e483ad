"""Optimizers by name: a closed table of torch.optim classes, and their options as text.

Each stage runs its own instance over its own parameters; since these optimizers look at one parameter at a time,
that is one optimizer over all. Text never reaches ``getattr(torch.optim, …)``: a class is looked up here or refused,
an option is compared with the class's own, and its constructor has the last word on ranges.
"""

from __future__ import annotations

import inspect
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import nn
from torch.optim import Optimizer

from manyhands.errors import ProtocolError, UsageError

_CLASSES: Final[tuple[type[Optimizer], ...]] = (
    *(torch.optim.SGD, torch.optim.ASGD, torch.optim.Rprop, torch.optim.RMSprop, torch.optim.Adagrad),
    *(torch.optim.Adadelta, torch.optim.Adam, torch.optim.AdamW, torch.optim.Adamax, torch.optim.NAdam),
    *(torch.optim.RAdam, torch.optim.Adafactor),
)
OPTIMIZERS: Final[Mapping[str, type[Optimizer]]] = MappingProxyType({cls.__name__: cls for cls in _CLASSES})
"""Every optimizer that may be named. Left out: LBFGS calls a closure, SparseAdam takes sparse gradients, Muon takes
matrices only.
"""

_WITHHELD: Final = frozenset({"self", "params", "capturable", "differentiable"})
"""Options that would change what a step is: its graph, its place in a CUDA graph."""


def _options(cls: type[Optimizer]) -> Mapping[str, Any]:
    parameters = inspect.signature(cls.__init__).parameters.values()
    return MappingProxyType({one.name: one.default for one in parameters if one.name not in _WITHHELD})


_OPTIONS: Final[Mapping[str, Mapping[str, Any]]] = MappingProxyType(
    {key: _options(cls) for key, cls in OPTIMIZERS.items()}
)


@dataclass(frozen=True)
class OptimizerRecipe:
    """An optimizer that can be made anywhere."""

    kind: str
    """A key of `OPTIMIZERS`."""
    options: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of its constructor: booleans, finite numbers, pairs of them."""

    @classmethod
    def of(cls, optimizer: Any, options: Mapping[str, Any]) -> OptimizerRecipe:
        """The recipe of a torch.optim class and its options; UsageError says what cannot travel."""
        key = getattr(optimizer, "__name__", "")
        if key not in OPTIMIZERS or OPTIMIZERS[key] is not optimizer:
            raise UsageError(
                f"optimizer {optimizer!r:.80} is none that workers have: give one of torch.optim's "
                f"{', '.join(OPTIMIZERS)}"
            )
        recipe = cls(key, dict(options))
        if problem := recipe._problem():
            raise UsageError(problem)
        try:
            recipe._make([nn.Parameter(torch.zeros(1))])
        except (TypeError, ValueError, RuntimeError) as error:
            raise UsageError(f"torch.optim.{key} refuses these options: {error}") from None
        return recipe

    @classmethod
    def from_text(cls, kind: str, options: str) -> OptimizerRecipe:
        """What `to_text` wrote elsewhere; ProtocolError where it could not have."""
        try:
            given = json.loads(options)
        except (ValueError, RecursionError):
            raise ProtocolError("the options of an optimizer are not JSON") from None
        if not isinstance(given, dict):
            raise ProtocolError(f"the options of {kind[:60]!r} must be names and values")
        recipe = cls(kind, given)
        if problem := recipe._problem():
            raise ProtocolError(problem)
        return recipe

    def to_text(self) -> tuple[str, str]:
        """Kind and options, as `from_text` takes them."""
        return self.kind, json.dumps(dict(self.options), sort_keys=True, allow_nan=False)

    def build(self, parameters: Iterable[nn.Parameter]) -> Optimizer | None:
        """The optimizer over `parameters`; None where there are none. ProtocolError for values it refuses."""
        held = list(parameters)
        try:
            return self._make(held) if held else None
        except (TypeError, ValueError, RuntimeError) as error:
            raise ProtocolError(
                f"torch.optim.{self.kind} refuses these options: {str(error)[:200]}"
            ) from None

    def _make(self, parameters: list[nn.Parameter]) -> Optimizer:
        options: dict[str, Any] = {
            name: tuple(v) if isinstance(v, list) else v for name, v in self.options.items()
        }
        return OPTIMIZERS[self.kind](parameters, **options)

    def _problem(self) -> str | None:
        known = _OPTIONS.get(self.kind)
        if known is None:
            return f"{self.kind[:60]!r} is no optimizer that workers have: {', '.join(OPTIMIZERS)}"
        for name, value in self.options.items():
            if name not in known:
                return f"{self.kind} takes no option {str(name)[:60]!r} here; it takes {', '.join(known)}"
            if not _fits(value, known[name]):
                return f"option {name} of {self.kind} is {value!r:.60}, and its default is {known[name]!r}"
        return None


def _fits(value: Any, default: Any) -> bool:
    """Whether `value` is of the kind that an option with this default takes."""
    if isinstance(default, bool):
        return isinstance(value, bool)
    if isinstance(default, tuple):
        pairs = isinstance(value, list | tuple) and len(value) == len(default)
        return pairs and all(
            _is_number(one) or (one is None and old is None) for one, old in zip(value, default, strict=True)
        )
    if default is None:
        return value is None or isinstance(value, bool)
    return _is_number(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)

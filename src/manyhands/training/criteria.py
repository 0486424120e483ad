"""A criterion as text, and back: so that a node computes the loss that the coordinator means.

Only losses of ``torch.nn`` travel: a key of a frozen dict and plain keyword arguments; their tensors (class
weights) come with the rest of the state. Any other callable must be given on both sides, and is compared by
name.
"""

from __future__ import annotations

import inspect
import json
from typing import Any

import torch
from torch import nn

from manyhands.errors import Mismatch, ProtocolError

LOSSES: dict[str, type[nn.Module]] = {
    name: kind
    for name, kind in vars(nn.modules.loss).items()
    if isinstance(kind, type) and issubclass(kind, nn.modules.loss._Loss) and not name.startswith("_")
}


def describe(criterion: Any) -> str | None:
    """One JSON line for a criterion; None for none."""
    if criterion is None:
        return None
    kind = type(criterion)
    if LOSSES.get(kind.__name__) is not kind:
        name = getattr(criterion, "__qualname__", kind.__qualname__)
        return json.dumps({"callable": name})
    options: dict[str, Any] = {}
    for name in inspect.signature(kind).parameters:
        value = getattr(criterion, name, None)
        if isinstance(value, torch.Tensor):
            options[name] = {"shape": list(value.shape)}
        elif isinstance(value, bool | int | float | str) and name not in ("size_average", "reduce"):
            options[name] = value
        elif callable(value):  # code of the user's, which text cannot hold
            return json.dumps({"callable": kind.__name__})
    return json.dumps({"loss": kind.__name__, "options": options}, sort_keys=True)


def settle(announced: str | None, mine: Any) -> Any:
    """The criterion that a node uses: the coordinator's, or its own where both are the same.

    Mismatch where they differ, or where the coordinator's is code of the user's that this node was not given.
    """
    if mine is not None:
        if describe(mine) != announced:
            raise Mismatch(
                f"the coordinator trains with criterion "
                f"{announced or 'none (output.loss or cross-entropy)'} and this node was "
                f"given {describe(mine)}: give both the same, or give the node none"
            )
        return mine
    return None if announced is None else _build(announced)


def _build(announced: str) -> Any:
    try:
        fields = json.loads(announced)
    except (ValueError, RecursionError):
        raise ProtocolError("the coordinator's criterion is not JSON: it runs another version") from None
    if "callable" in fields:
        raise Mismatch(
            f"the coordinator trains with a criterion of its own, {str(fields['callable'])[:80]}: give "
            "TrainingNode the same "
            "with criterion=..."
        )
    kind = LOSSES.get(str(fields.get("loss")))
    options = fields.get("options")
    if kind is None or not isinstance(options, dict):
        raise ProtocolError(f"the coordinator's criterion {announced[:80]!r} is no loss of torch.nn")
    accepted = inspect.signature(kind).parameters
    unknown = set(options) - set(accepted)
    if unknown:
        raise ProtocolError(f"{kind.__name__} takes no {', '.join(sorted(unknown))}")
    return kind(**{name: _value(value) for name, value in options.items()})


def _value(value: Any) -> Any:
    if isinstance(value, dict):
        shape = value.get("shape")
        if not (
            isinstance(shape, list)
            and len(shape) <= 4
            and all(type(n) is int and 0 <= n <= 1 << 20 for n in shape)
        ):
            raise ProtocolError(f"a criterion's tensor has the impossible shape {str(shape)[:80]}")
        return torch.ones(shape)
    return value

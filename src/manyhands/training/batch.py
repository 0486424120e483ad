"""How a batch meets a model: items to a collated batch, a batch to ``forward``'s arguments.

::

    item            collated batch          forward            targets
    (x, y)          (X, Y)                  model(X)           Y
    (a, b, y)       (A, B, Y)               model(A, B)        Y
    x               X                       model(X)           X      (an autoencoder's habit)
    {"input_ids"…}  {"input_ids"…}          model(input_ids=…) labels, else input_ids, unshifted

Dict items go to ``forward`` by the names it declares; what it does not declare is left out, but for targets.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.data import default_collate

from manyhands.errors import UsageError

Batch: TypeAlias = Any
"""A tensor, a tuple of them, or a dict by name; tensors are (samples, ...)."""

TARGET_NAMES = ("labels", "label", "targets", "target", "y")


def collate(items: Sequence[Any], collate_fn: Callable[[list[Any]], Batch] | None = None) -> Batch:
    """One batch of `items`: by `collate_fn`, else torch's ``default_collate`` with lists of numbers as
    tensors.
    """
    if collate_fn is not None:
        return collate_fn(list(items))
    return default_collate([_withtensors_of(item) for item in items])


def _withtensors_of(item: Any) -> Any:
    # Rows of Hugging Face `datasets` hold plain lists; default_collate would transpose them.
    if not isinstance(item, Mapping):
        return item
    return {
        name: torch.as_tensor(value) if isinstance(value, list) else value for name, value in item.items()
    }


def size_of(batch: Batch) -> int:
    """Number of samples: the first dimension of its first tensor."""
    first = next(iter(tensors_of(batch)), None)
    if first is None or first.ndim == 0:
        raise UsageError(
            "the batch holds no tensor with a first dimension, so its samples cannot be counted: "
            "return tensors from the dataset, or give a collate_fn that does"
        )
    return int(first.shape[0])


def tensors_of(batch: Batch) -> list[Tensor]:
    """The tensors of a batch, in order."""
    if isinstance(batch, Tensor):
        return [batch]
    parts = batch.values() if isinstance(batch, Mapping) else batch
    if not isinstance(parts, str | bytes) and hasattr(parts, "__iter__"):
        return [tensor for part in parts for tensor in tensors_of(part)]
    return []


def to_device(batch: Batch, device: torch.device) -> Batch:
    """The same nest with its tensors on `device`; other leaves stay."""
    if isinstance(batch, Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, Mapping):
        return {name: to_device(value, device) for name, value in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(to_device(value, device) for value in batch)
    return batch


def targets_of(batch: Batch) -> Tensor:
    """What the loss compares the output with (see the table above)."""
    if isinstance(batch, Mapping):
        for name in (*TARGET_NAMES, "input_ids"):
            if name in batch:
                return _tensor(batch[name], name)
        raise UsageError(
            f"the batch has no targets: none of {', '.join(TARGET_NAMES)} or input_ids is among "
            f"{', '.join(map(str, batch))}"
        )
    return batch if isinstance(batch, Tensor) else _tensor(batch[-1], "the last element")


def _tensor(value: Any, name: str) -> Tensor:
    if not isinstance(value, Tensor):
        raise UsageError(f"targets must be a tensor, but {name} is a {type(value).__name__}")
    return value


def forward(model: nn.Module, batch: Batch) -> Any:
    """The model's output for a batch."""
    if isinstance(batch, Tensor):
        return model(batch)
    if isinstance(batch, Mapping):
        accepted = _accepted_names(model)
        given = {name: value for name, value in batch.items() if accepted is None or name in accepted}
        if not given:
            raise UsageError(
                f"{type(model).__name__}.forward declares {', '.join(sorted(accepted or ()))}, and the "
                "batch has "
                f"none of these: {', '.join(map(str, batch))}"
            )
        return model(**given)
    return model(*batch[:-1]) if len(batch) > 1 else model(batch[0])


def _accepted_names(model: nn.Module) -> frozenset[str] | None:
    """The argument names of forward; None where it takes any (``**kwargs`` alone)."""
    parameters = inspect.signature(model.forward).parameters.values()
    named = frozenset(p.name for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters)
    return None if takes_any and not named else named

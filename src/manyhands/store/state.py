"""Any nested optimizer state as named tensors plus plain text, and back: exactly, and never by pickle.

The shape of the state becomes JSON in which each tensor is a name::

    {"state": {0: {"step": tensor(3.), "exp_avg": T}}, "param_groups": [{"betas": (0.9, 0.999)}]}
      -> {"dict": [["state", {"dict": [[0, {"dict": [["step", {"tensor": "state.0.step"}], ...

Scalars and lists stand for themselves; everything else is an object with one tag. Python writes a float with
the fewest digits that read back as the same bits. Knows nothing of files.
"""

from __future__ import annotations

import json
import math
from collections import Counter, OrderedDict
from collections.abc import Callable, Mapping
from numbers import Integral, Real
from typing import Any

import torch

from manyhands.errors import StorageError, UsageError

_MAPPINGS: dict[str, Callable[[list[tuple[Any, Any]]], Any]] = {
    "dict": dict,
    "ordered": OrderedDict,
    "counter": lambda pairs: Counter(dict(pairs)),
}
_MAX_DEPTH = 32


def flatten(state: object) -> tuple[dict[str, torch.Tensor], str]:
    """Split nested `state` into tensors by path and the JSON of the rest.

    Takes dicts (keys of any scalar kind), lists, tuples, tensors, None, bool, int, float, str; a tensor that
    appears twice is stored once. Raises `UsageError` naming the path of anything else.
    """
    writer = _Writer()
    skeleton = writer.encode(state, "", 0)
    return writer.tensors, json.dumps(skeleton, allow_nan=False, separators=(",", ":"))


def restore(tensors: Mapping[str, torch.Tensor], text: str) -> Any:
    """The state that `flatten` split; raises `StorageError` for text that `flatten` did not write."""
    try:
        return _decode(json.loads(text), tensors, 0)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise StorageError(
            f"the saved optimizer state makes no sense: {error!r}", "optimizer.safetensors"
        ) from error


class _Writer:
    def __init__(self) -> None:
        self.tensors: dict[str, torch.Tensor] = {}
        self._names: dict[int, str] = {}

    def encode(self, value: object, path: str, depth: int) -> object:
        if depth > _MAX_DEPTH:
            raise UsageError(f"the state at {path[:80]!r} is nested deeper than {_MAX_DEPTH}")
        if value is None or isinstance(value, bool | str):
            return value
        if isinstance(value, torch.Tensor):
            return {"tensor": self._name(value, path)}
        if isinstance(value, Integral):
            return int(value)
        if isinstance(value, Real):
            return float(value) if math.isfinite(value) else {"float": repr(float(value))}
        return self._encode_nested(value, path, depth)

    def _encode_nested(self, value: object, path: str, depth: int) -> object:
        if type(value) is list:
            return self._encode_items(value, path, depth)
        if type(value) in (tuple, torch.Size):
            return {"tuple": self._encode_items(value, path, depth)}  # type: ignore[arg-type]
        for tag, kind in (("dict", dict), ("ordered", OrderedDict), ("counter", Counter)):
            if type(value) is kind:
                return {tag: [self._encode_pair(pair, path, depth) for pair in value.items()]}
        raise UsageError(
            f"the state at {path or 'its root'!r} holds a {type(value).__name__}, which is not data; "
            "use tensors, numbers, text, None, dicts, lists and tuples"
        )

    def _encode_items(self, items: list[Any] | tuple[Any, ...], path: str, depth: int) -> list[object]:
        return [
            self.encode(item, f"{path}.{place}".lstrip("."), depth + 1) for place, item in enumerate(items)
        ]

    def _encode_pair(self, pair: tuple[Any, Any], path: str, depth: int) -> list[object]:
        key, value = pair
        if isinstance(key, torch.Tensor):
            raise UsageError(f"the state at {path!r} has a tensor as a key; use numbers or text")
        return [self.encode(key, path, depth + 1), self.encode(value, f"{path}.{key}".lstrip("."), depth + 1)]

    def _name(self, tensor: torch.Tensor, path: str) -> str:
        if tensor.layout is not torch.strided or tensor.is_quantized:
            raise UsageError(
                f"the state at {path!r} holds a {tensor.layout} tensor; only dense ones can be saved"
            )
        known = self._names.get(id(tensor))
        if known is not None:
            return known
        # "a.b" as one key and "a" then "b" as two give the same path; the number keeps them apart.
        name = path if path not in self.tensors else f"{path}#{len(self.tensors)}"
        self.tensors[name] = tensor
        self._names[id(tensor)] = name
        return name


def _decode(value: Any, tensors: Mapping[str, torch.Tensor], depth: int) -> Any:
    if depth > _MAX_DEPTH + 1:
        raise ValueError("nested too deeply")
    if isinstance(value, list):
        return [_decode(item, tensors, depth + 1) for item in value]
    if not isinstance(value, dict):
        return value
    ((tag, content),) = value.items()
    if tag == "tensor":
        return tensors[content]
    if tag == "float":
        return float(content)
    if tag == "tuple":
        return tuple(_decode(item, tensors, depth + 1) for item in content)
    pairs = [(_decode(key, tensors, depth + 1), _decode(item, tensors, depth + 1)) for key, item in content]
    return _MAPPINGS[tag](pairs)

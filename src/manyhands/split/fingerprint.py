"""What stands for a dataset when loaders of one job are compared: the shape of its first sample, never its values.

Values may differ in the last bit from machine to machine (a picture's decoder) and be the same data.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

from manyhands.split.data import is_stream
from manyhands.split.recipe import Recipe
from manyhands.tensors import flatten


def fingerprint(recipes: Mapping[Any, Recipe]) -> str:
    """Equal where the samples of every phase are of the same kind; streams are not looked into."""
    kinds = (f"{phase}: {_kind(recipe)}" for phase, recipe in sorted(recipes.items()))
    return hashlib.sha256("; ".join(kinds).encode()).hexdigest()[:16]


def _kind(recipe: Recipe) -> str:
    if is_stream(recipe.dataset):
        return "stream"
    try:
        structure, tensors = flatten(recipe.sample(0, 0))
    except Exception:  # noqa: BLE001 - the user's code: what is wrong with it is said when the batch is made
        return "unknown"
    nodes = [type(node).__name__ for node in structure.nodes]
    return f"{nodes} {[(str(tensor.dtype), tensor.ndim) for tensor in tensors]}"

"""Split mode: CPU machines load and preprocess, a GPU machine trains, validates or infers.

Read `plan` and `ledger` first: the order of an epoch, and which batch is with whom. `loader`, `trainer` and
`remote` are the three things a user holds; `twin` makes the same batches without any of them.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from manyhands.split.data.parts import split_dataset
    from manyhands.split.data.simple import create_simple_dataset
    from manyhands.split.twin import seeded

__all__ = ["create_simple_dataset", "seeded", "split_dataset"]

_HOMES = {
    "create_simple_dataset": "manyhands.split.data.simple",
    "seeded": "manyhands.split.twin",
    "split_dataset": "manyhands.split.data.parts",
}


def __getattr__(name: str) -> Any:
    """A public name, loaded when it is first used: its neighbours do not need it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'manyhands.split' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)

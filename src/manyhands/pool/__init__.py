"""A coordinator leases micro-batches to nodes that come and go; each gradient is applied exactly once.

Read ``plan`` first, then ``server`` and ``node``, the two faces of the pool.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from manyhands.pool.node import TrainingNode
    from manyhands.pool.server import CentralServer
    from manyhands.training.reference import reference

__all__ = ["CentralServer", "TrainingNode", "reference"]

_HOMES = {
    "CentralServer": "manyhands.pool.server",
    "TrainingNode": "manyhands.pool.node",
    "reference": "manyhands.training.reference",
}


def __getattr__(name: str) -> Any:
    """A public name, loaded when it is first used: its neighbours do not need it."""
    if name not in _HOMES:
        raise AttributeError(f"module 'manyhands.pool' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)

"""Many hands make light work: train one PyTorch model on every machine you can reach.

The public names. They are loaded when they are first used, so that importing the package, or running a command
that needs no tensors, never loads torch.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from manyhands.errors import (
    BadSample,
    CaptureFailed,
    ManyhandsError,
    Mismatch,
    NonFinite,
    ProgramRefused,
    ProtocolError,
    Refused,
    RunFailed,
    StorageError,
    Unreachable,
    UsageError,
)
from manyhands.release import __version__

if TYPE_CHECKING:
    from manyhands.pipeline.boss import BossMan
    from manyhands.pipeline.wrapped import wrapped_linear
    from manyhands.pool.node import TrainingNode
    from manyhands.pool.server import CentralServer
    from manyhands.pool.tally import Report
    from manyhands.split.colab import ColabGPUTrainer, quick_colab_setup
    from manyhands.split.data.simple import create_simple_dataset
    from manyhands.split.loader import CPULoader
    from manyhands.split.remote import RemoteLoader
    from manyhands.split.trainer import GPUTrainer
    from manyhands.training.reference import reference

__all__ = [
    "BadSample",
    "BossMan",
    "CPULoader",
    "CaptureFailed",
    "CentralServer",
    "ColabGPUTrainer",
    "GPUTrainer",
    "ManyhandsError",
    "Mismatch",
    "NonFinite",
    "ProgramRefused",
    "ProtocolError",
    "Refused",
    "RemoteLoader",
    "Report",
    "RunFailed",
    "StorageError",
    "TrainingNode",
    "Unreachable",
    "UsageError",
    "__version__",
    "create_simple_dataset",
    "quick_colab_setup",
    "reference",
    "wrapped_linear",
]

_HOMES = {
    "BossMan": "manyhands.pipeline.boss",
    "CPULoader": "manyhands.split.loader",
    "ColabGPUTrainer": "manyhands.split.colab",
    "GPUTrainer": "manyhands.split.trainer",
    "RemoteLoader": "manyhands.split.remote",
    "CentralServer": "manyhands.pool.server",
    "create_simple_dataset": "manyhands.split.data.simple",
    "Report": "manyhands.pool.tally",
    "TrainingNode": "manyhands.pool.node",
    "quick_colab_setup": "manyhands.split.colab",
    "reference": "manyhands.training.reference",
    "wrapped_linear": "manyhands.pipeline.wrapped",
}

_ROOMS = {
    "config": "manyhands.config",
    "launch": "manyhands.launch",
    "split": "manyhands.split",
    "pipeline": "manyhands.pipeline",
}
"""Packages that are public by themselves, as ``manyhands.split.seeded``."""


def __getattr__(name: str) -> Any:
    """A public name, loaded now."""
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    if name in _ROOMS:
        return importlib.import_module(_ROOMS[name])
    raise AttributeError(f"module 'manyhands' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

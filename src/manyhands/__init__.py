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
    from manyhands.pool.node import TrainingNode
    from manyhands.pool.server import CentralServer
    from manyhands.pool.tally import Report
    from manyhands.training.reference import reference

__all__ = [
    "BadSample",
    "CaptureFailed",
    "CentralServer",
    "ManyhandsError",
    "Mismatch",
    "NonFinite",
    "ProgramRefused",
    "ProtocolError",
    "Refused",
    "Report",
    "RunFailed",
    "StorageError",
    "TrainingNode",
    "Unreachable",
    "UsageError",
    "__version__",
    "reference",
]

_HOMES = {
    "CentralServer": "manyhands.pool.server",
    "Report": "manyhands.pool.tally",
    "TrainingNode": "manyhands.pool.node",
    "reference": "manyhands.training.reference",
}

_NOT_BUILT = {
    "BossMan": "pipeline mode",
    "CPULoader": "split mode",
    "ColabGPUTrainer": "split mode",
    "GPUTrainer": "split mode",
    "RemoteLoader": "split mode",
    "config": "split mode",
    "create_simple_dataset": "split mode",
    "launch": "launch mode",
    "pipeline": "pipeline mode",
    "quick_colab_setup": "split mode",
    "split": "split mode",
    "wrapped_linear": "pipeline mode",
}


def __getattr__(name: str) -> Any:
    """A public name, loaded now.

    ImportError for a promised one that is not built yet: of an AttributeError, `from manyhands import name`
    would drop the sentence.
    """
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    if name in _NOT_BUILT:
        raise ImportError(
            f"{name} ({_NOT_BUILT[name]}) is not built yet; this release has the pool: CentralServer and "
            "TrainingNode"
        )
    raise AttributeError(f"module 'manyhands' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)

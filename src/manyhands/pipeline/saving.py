"""A pipeline's checkpoints: the whole model under its original names, whatever the cut, and where the run stands."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from manyhands.clock import SystemClock
from manyhands.errors import StorageError, UsageError
from manyhands.pipeline.stage.weights import StageState
from manyhands.store import checkpoint
from manyhands.store.runs import new_run

_MODE = "pipeline"


@dataclass(frozen=True)
class Saved:
    """All that a run goes on from, on any number of workers."""

    state: StageState
    updates: int
    """Optimizer steps that were done."""
    passes: int
    """Forwards that were done: what random numbers are keyed by, with `seed`."""
    seed: int
    optimizer: tuple[str, str] | None
    """Class and options, as text."""
    scale: list[float]
    """Where fp16's loss scale stands (`training.scale`)."""


class Checkpoints:
    """The checkpoints of one model: those under one path belong to one run."""

    def __init__(self) -> None:
        self._runs: dict[Path, str] = {}

    def write(self, path: Path, saved: Saved, tied: Mapping[str, str]) -> Path:
        """Write a checkpoint under `path`; its folder. StorageError where the disk does not take it."""
        if path not in self._runs:
            self._runs[path] = new_run(path)
        state = saved.state
        manifest = {
            "mode": _MODE,
            "passes": saved.passes,
            "seed": saved.seed,
            "scale": saved.scale,
            "buffers": sorted(state.buffers),
            "optimizer": list(saved.optimizer) if saved.optimizer is not None else None,
        }
        optimizer = {"step": state.step, "lr": state.lr, "tensors": state.optimizer}
        tensors = {**state.parameters, **state.buffers}
        found = checkpoint.Snapshot(self._runs[path], saved.updates, tensors, optimizer, manifest, dict(tied))
        return checkpoint.save(path, found, SystemClock())


def find(path: Path) -> Saved:
    """The newest whole checkpoint under `path`. UsageError where there is none, or it is another mode's."""
    found = checkpoint.newest(path)
    if found is None:
        raise UsageError(f"there is no checkpoint to resume from in {path}")
    if found.manifest.get("mode") != _MODE:
        raise UsageError(f"{found.path} is a checkpoint, and not a pipeline's: resume it where it was made")
    loaded = checkpoint.load(found)
    manifest: Mapping[str, Any] = found.manifest
    try:
        buffers = set(manifest["buffers"])
        state = StageState(
            {name: one for name, one in loaded.tensors.items() if name not in buffers},
            {name: one for name, one in loaded.tensors.items() if name in buffers},
            dict(loaded.optimizer["tensors"]),
            int(loaded.optimizer["step"]),
            loaded.optimizer["lr"],
        )
        kind = manifest["optimizer"]
        optimizer = None if kind is None else (str(kind[0]), str(kind[1]))
        return Saved(
            state,
            int(manifest["step"]),
            int(manifest["passes"]),
            int(manifest["seed"]),
            optimizer,
            [float(one) for one in manifest["scale"]],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise StorageError(f"{found.path} lacks {error}: use another checkpoint", str(found.path)) from None

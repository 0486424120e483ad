"""The state to go on from: `checkpoint_dir/RUN/step-N/`, always whole or not there.

::

    .tmp-step-600-4711/   1 model, optimizer state and manifest, each flushed, then the folder
    step-600/             2 renamed: from here on it is the newest checkpoint
    latest                3 renamed over: a hint for people and scripts; `newest` does not trust it
    step-300/             4 older ones removed, the newest 3 stay

Killed anywhere between, the one before is untouched. The manifest names each file's size and SHA-256, so a
torn or damaged checkpoint is seen and skipped. Knows nothing of what the caller's manifest means.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from manyhands.clock import Clock
from manyhands.errors import StorageError, UsageError
from manyhands.store import steps
from manyhands.store.files import replace_text, sha256, storage, sync
from manyhands.store.manifest import MANIFEST, read_manifest, write_manifest
from manyhands.store.runs import LATEST, run_folder, runs
from manyhands.store.tensorfiles import read_model, read_state, write_model, write_state

MODEL, OPTIMIZER = "model.safetensors", "optimizer.safetensors"


@dataclass(frozen=True)
class Snapshot:
    """What to save. The tensors are read while `save` runs and must not change meanwhile.

    `tensors` holds parameters and buffers by their original names, `tied` further names of the same tensors;
    `optimizer` any nested state; `manifest` plain JSON data of the caller's (epoch, journal position, ...).
    """

    run: str
    step: int
    tensors: Mapping[str, torch.Tensor]
    optimizer: object
    manifest: Mapping[str, Any] = field(default_factory=dict)
    tied: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Found:
    """The newest whole checkpoint, and a sentence for each newer one that is not whole."""

    path: Path
    manifest: dict[str, Any]
    skipped: list[str]


@dataclass(frozen=True)
class Loaded:
    """A checkpoint in memory, on the CPU."""

    tensors: dict[str, torch.Tensor]
    tied: dict[str, str]
    optimizer: Any
    manifest: dict[str, Any]

    def state_dict(self) -> dict[str, torch.Tensor]:
        """All names, tied ones included, for `Module.load_state_dict`."""
        return {**self.tensors, **{name: self.tensors[kept] for name, kept in self.tied.items()}}


def save(checkpoint_dir: Path, snapshot: Snapshot, clock: Clock, keep: int = 3) -> Path:
    """Write a checkpoint; returns its folder when it is on the disk.

    Keeps the newest `keep`; checkpoints of later steps belong to a history that a resume voided, and go too.
    Raises `StorageError` naming the path, with the older checkpoints untouched, or `UsageError` for a state
    that is not data.
    """
    if keep < 1:
        raise UsageError(f"keep={keep}: at least one checkpoint must stay")
    run = run_folder(checkpoint_dir, snapshot.run)
    target, aside = steps.folder(run, snapshot.step), steps.aside(run, snapshot.step)
    with storage(run, "create the folder"):
        run.mkdir(parents=True, exist_ok=True)
        steps.remove_leftovers(run)
    try:
        with storage(aside, "write the checkpoint", _size_of(snapshot)):
            _write(aside, snapshot, clock)
            steps.remove_later(run, snapshot.step)
            steps.put(aside, target)
            replace_text(run / LATEST, target.name + "\n")
            steps.remove_earlier(run, keep)
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    return target


def newest(checkpoint_dir: Path, run: str | None = None) -> Found | None:
    """The newest whole checkpoint of `run`, or of the run last written to that has one; None without any.

    Reads every byte to check it. `Found.skipped` says what was passed over, and why. Raises `StorageError`
    with those reasons where there are checkpoints and none is whole: starting over must be a decision.
    """
    names = [run] if run is not None else list(reversed(runs(checkpoint_dir)))
    skipped: list[str] = []
    torn = 0
    for name in names:
        folder = run_folder(checkpoint_dir, name)
        candidates = steps.newest_first(folder)
        if not candidates:
            skipped.append(f"{folder} holds no checkpoint")
        for path in candidates:
            try:
                return Found(path, check(path), skipped)
            except StorageError as error:
                skipped.append(f"skipped {path}: {error}")
                torn += 1
    if torn:
        raise StorageError(
            f"no checkpoint in {checkpoint_dir} is whole ({'; '.join(skipped[:5])}); "
            "restore one from a copy, or start a new run",
            str(checkpoint_dir),
        )
    return None


def check(path: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose every file is whole; raises `StorageError` saying what is wrong."""
    manifest = read_manifest(path / MANIFEST)
    for name, expected in manifest["files"].items():
        file = path / name
        with storage(file, "read"):
            size = file.stat().st_size
            if size != expected["bytes"]:
                raise StorageError(f"{name} has {size:,} of {expected['bytes']:,} bytes", str(file))
            if sha256(file) != expected["sha256"]:
                raise StorageError(f"{name} is damaged: its SHA-256 is not the manifest's", str(file))
    return manifest


def load(checkpoint: Path | Found) -> Loaded:
    """Read a checkpoint into memory; a path is checked first, what `newest` found is not checked again."""
    path = checkpoint if isinstance(checkpoint, Path) else checkpoint.path
    manifest = check(path) if isinstance(checkpoint, Path) else checkpoint.manifest
    return Loaded(read_model(path / MODEL), manifest["tied"], read_state(path / OPTIMIZER), manifest)


def _write(aside: Path, snapshot: Snapshot, clock: Clock) -> None:
    aside.mkdir()
    tied = write_model(aside / MODEL, snapshot.tensors, snapshot.tied)
    write_state(aside / OPTIMIZER, snapshot.optimizer)
    own = {"run": snapshot.run, "step": snapshot.step, "saved_at": clock.time(), "tied": tied}
    write_manifest(aside / MANIFEST, own, snapshot.manifest, [aside / MODEL, aside / OPTIMIZER])
    sync(aside)


def _size_of(snapshot: Snapshot) -> int:
    return sum(tensor.nbytes for tensor in snapshot.tensors.values())

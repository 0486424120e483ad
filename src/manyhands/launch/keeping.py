"""A script's state on the disk: written by rank 0, read by rank 0 and told to all, equal for any world size.

::

    save     gather (FSDP only) ──▶ rank 0: FOLDER/run-0001/step-3/  (see `store.checkpoint`) ──▶ all know how it went
    resume   rank 0: the newest whole checkpoint in FOLDER ──▶ all ranks ──▶ models, optimizers, schedulers, loaders

Model tensors keep their original names: no ``module.`` of DDP's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from manyhands.clock import Clock
from manyhands.errors import ManyhandsError, Mismatch, RunFailed, StorageError
from manyhands.launch import sharding
from manyhands.launch.group import Rank, from_main, launch_id, total
from manyhands.launch.sharing import SharedLoader
from manyhands.store import checkpoint
from manyhands.store.checkpoint import Snapshot
from manyhands.store.manifest import MANIFEST
from manyhands.store.runs import new_run

_EXTRA, _LAUNCH = "extra", "launch"


@dataclass
class Kept:
    """What `prepare` was given, in the order in which it was: `models` without what was put around them."""

    models: list[nn.Module] = field(default_factory=list)
    optimizers: list[Optimizer] = field(default_factory=list)
    schedulers: list[Any] = field(default_factory=list)
    loaders: list[SharedLoader] = field(default_factory=list)
    is_sharded: bool = False

    def model_of(self, optimizer: Optimizer) -> nn.Module:
        """The model whose parameters it trains; the first where none is."""
        trained = {id(p) for group in optimizer.param_groups for p in group["params"]}
        return next((m for m in self.models if any(id(p) in trained for p in m.parameters())), self.models[0])


class Keeper:
    """Writes and reads the state of `kept`; remembers which run it writes to, and its last step."""

    def __init__(self, kept: Kept, rank: Rank, clock: Clock) -> None:
        self._kept = kept
        self._rank = rank
        self._clock = clock
        self._run: str | None = None
        self._step = 0

    def save(self, folder: Path, step: int | None, extra: Mapping[str, Any]) -> Path:
        """Write a checkpoint; all ranks must call it. Its folder. Raises on all ranks where rank 0 cannot write."""
        self._step = self._step + 1 if step is None else step
        tensors, rest = self._state()
        if self._run is None:
            self._run = self._agreed(lambda: new_run(folder))
        snapshot = Snapshot(self._run, self._step, tensors, rest, {_EXTRA: dict(extra), _LAUNCH: launch_id()})
        return Path(self._agreed(lambda: str(checkpoint.save(folder, snapshot, self._clock))))

    def resume(self, folder: Path, *, own: bool) -> dict[str, Any] | None:
        """Load the newest whole checkpoint in `folder`, or `folder` itself where it is one; None without any, and
        where `own` is asked for and another launch has saved it.

        The extra data it was saved with. `Mismatch` where it is another model's.
        """
        if own and not launch_id():
            return None
        found = self._read(folder, own)
        if found is None:
            return None
        self._load(found)
        self._run, self._step = found["run"], found["step"]
        return dict(found[_EXTRA])

    # ---- gathering ----

    def _state(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        kept = self._kept
        states = [sharding.whole_model(m) if kept.is_sharded else m.state_dict() for m in kept.models]
        optimizers = [
            sharding.whole_optimizer(kept.model_of(o), o) if kept.is_sharded else o.state_dict()
            for o in kept.optimizers
        ]
        tensors = {
            self._prefix(n) + name: value for n, state in enumerate(states) for name, value in state.items()
        }
        return tensors, {
            "optimizers": optimizers,
            "schedulers": [scheduler.state_dict() for scheduler in kept.schedulers],
            "loaders": [loader.state_dict() for loader in kept.loaders],
        }

    def _prefix(self, number: int) -> str:
        """One model keeps its names bare."""
        return "" if len(self._kept.models) == 1 else f"{number}."

    def _agreed(self, write: Callable[[], str]) -> str:
        """What rank 0 has written, on all ranks; its error there, and one of its own on the others."""
        error: ManyhandsError | None = None
        written: object = ""
        if self._rank.rank == 0:
            try:
                written = write()
            except ManyhandsError as raised:
                error = raised
        failed = int(total(torch.tensor(int(error is not None)), self._rank))
        if error is not None:
            raise error
        if failed:
            raise RunFailed("rank 0 could not write the checkpoint; its own error says why")
        return str(from_main(written, self._rank))

    # ---- reading ----

    def _read(self, folder: Path, own: bool) -> dict[str, Any] | None:
        """The checkpoint as rank 0 finds it, on all ranks."""
        found: dict[str, Any] | None = None
        error = ""
        if self._rank.rank == 0:
            try:
                found = _read_newest(folder, own)
            except StorageError as raised:
                error = "" if own else str(raised)  # another launch's are no concern of ours
        answer = from_main({"error": error, "found": found}, self._rank)
        assert isinstance(answer, dict)
        if answer["error"]:
            raise StorageError(answer["error"], str(folder))
        return None if answer["found"] is None else dict(answer["found"])

    def _load(self, found: dict[str, Any]) -> None:
        kept = self._kept
        rest = found["rest"]
        states = [self._own_state(found["tensors"], number) for number in range(len(kept.models))]
        for name, mine in (
            ("optimizers", kept.optimizers),
            ("schedulers", kept.schedulers),
            ("loaders", kept.loaders),
        ):
            if len(rest[name]) != len(mine):
                raise Mismatch(
                    f"the checkpoint has {len(rest[name])} {name}, this script prepared {len(mine)}: resume with "
                    "what it was saved with, or choose another folder"
                )
        for model, state in zip(kept.models, states, strict=True):
            if kept.is_sharded:
                sharding.load_model(model, state)
            else:
                model.load_state_dict(state)
        for optimizer, state in zip(kept.optimizers, rest["optimizers"], strict=True):
            if kept.is_sharded:
                sharding.load_optimizer(kept.model_of(optimizer), optimizer, state)
            else:
                optimizer.load_state_dict(state)
        for scheduler, state in zip(kept.schedulers, rest["schedulers"], strict=True):
            scheduler.load_state_dict(state)
        for loader, state in zip(kept.loaders, rest["loaders"], strict=True):
            loader.load_state_dict(state)

    def _own_state(self, tensors: dict[str, Tensor], number: int) -> dict[str, Tensor]:
        """The part of one model, checked before anything is changed."""
        prefix = self._prefix(number)
        saved = {name.removeprefix(prefix): t for name, t in tensors.items() if name.startswith(prefix)}
        mine = {name: tensor.shape for name, tensor in self._kept.models[number].state_dict().items()}
        for name in dict.fromkeys([*mine, *saved]):
            theirs = saved[name].shape if name in saved else None
            if mine.get(name) != theirs:
                raise Mismatch(
                    f"the checkpoint is of another model: {name} is {_shape(theirs)} there and "
                    f"{_shape(mine.get(name))} here; choose another folder, or the model that it was saved with"
                )
        return saved


def _shape(shape: torch.Size | None) -> str:
    return "not there" if shape is None else f"of shape {tuple(shape)}"


def _read_newest(folder: Path, own: bool) -> dict[str, Any] | None:
    found = folder if (folder / MANIFEST).exists() else checkpoint.newest(folder)
    if found is None:
        return None
    loaded = checkpoint.load(found)
    manifest = loaded.manifest
    if own and manifest.get(_LAUNCH) != launch_id():
        return None
    told = {"run": manifest["run"], "step": manifest["step"], _EXTRA: manifest[_EXTRA]}
    return {**told, "tensors": loaded.state_dict(), "rest": loaded.optimizer}

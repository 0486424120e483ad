"""Tensors in safetensors files: any dense tensor in, tied names written once.

The format is https://huggingface.co/docs/safetensors. A model file follows `safetensors.torch.save_model`:
of tensors that share their memory one name is kept, the others stand in the metadata as `{other: kept}`, so
that `safetensors.torch.load_model` reads it without us. Knows nothing of steps and runs.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from manyhands.errors import StorageError, UsageError
from manyhands.store.files import storage_error, sync
from manyhands.store.state import flatten, restore

# What safetensors has no type for, as pairs of what it has.
_PAIRED = {torch.complex128: torch.float64}
_PAIR_MARK = "complex128:"


def write_model(
    path: Path, tensors: Mapping[str, torch.Tensor], aliases: Mapping[str, str]
) -> dict[str, str]:
    """Write and flush a model; returns every tied name with the name it is stored under.

    `aliases` maps further names to keys of `tensors`; names of `tensors` that are one and the same memory
    are found without it. Raises `UsageError` for an alias of nothing and for tensors that overlap in part.
    """
    kept, tied = _untie({name: tensor for name, tensor in tensors.items() if name not in aliases})
    for name, target in aliases.items():
        if target not in kept and target not in tied:
            raise UsageError(f"the tied name {name!r} points at {target!r}, which is not among the tensors")
        tied[name] = tied.get(target, target)
    _write(path, kept, {**tied, "format": "pt"})
    return tied


def read_model(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a model file by name, on the CPU; tied names are not among them."""
    return _read(path)[0]


def write_state(path: Path, state: object) -> None:
    """Write and flush any nested state (see `state.flatten`)."""
    tensors, text = flatten(state)
    paired = {name: tensor.dtype in _PAIRED for name, tensor in tensors.items()}
    stored = {
        _PAIR_MARK + name if paired[name] else name: torch.view_as_real(tensor) if paired[name] else tensor
        for name, tensor in tensors.items()
    }
    _write(path, stored, {"format": "pt", "state": text})


def read_state(path: Path) -> object:
    """What `write_state` wrote, with tensors on the CPU."""
    stored, metadata = _read(path)
    tensors = {
        name.removeprefix(_PAIR_MARK): torch.view_as_complex(tensor)
        if name.startswith(_PAIR_MARK)
        else tensor
        for name, tensor in stored.items()
    }
    return restore(tensors, metadata.get("state", ""))


def _untie(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    kept: dict[str, torch.Tensor] = {}
    tied: dict[str, str] = {}
    first: dict[object, str] = {}
    for name, tensor in tensors.items():
        memory = (tensor.device, tensor.data_ptr(), tensor.dtype, tensor.shape, tensor.stride())
        other = first.setdefault(memory, name) if tensor.numel() else name
        if other == name:
            kept[name] = tensor
        else:
            tied[name] = other
    return kept, tied


def _write(path: Path, tensors: Mapping[str, torch.Tensor], metadata: dict[str, str]) -> None:
    ready = {name: tensor.detach().to("cpu").contiguous() for name, tensor in tensors.items()}
    needed = sum(tensor.nbytes for tensor in ready.values())
    try:
        save_file(ready, path, metadata=metadata)
        sync(path)
    except (SafetensorError, OSError) as error:
        raise storage_error(path, "write", error, needed) from error
    except (RuntimeError, ValueError, KeyError) as error:
        raise UsageError(f"these tensors cannot be stored as safetensors: {error}") from error


def _read(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, str]]:
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}, dict(file.metadata() or {})  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise StorageError(f"could not read {path}: {error}; use another checkpoint", str(path)) from error

"""A model's weights as one safetensors file, which `safetensors.torch.load_model` reads without us; and back."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from manyhands.errors import UsageError
from manyhands.store.checkpoint import MODEL
from manyhands.store.files import storage
from manyhands.store.tensorfiles import read_model, write_model
from manyhands.training.state import CRITERION, ModelState, check_tensors


def write_weights(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write `tensors` to `path`, aside first and then in its place; StorageError where the disk does not take it."""
    with storage(path, "write the weights to"):
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".tmp-{path.name}")
        try:
            write_model(aside, {name: tensor.detach() for name, tensor in tensors.items()}, {})
            aside.replace(path)
        finally:
            aside.unlink(missing_ok=True)


def read_weights(path: Path) -> dict[str, Tensor]:
    """The tensors of a file, or of a checkpoint's folder (``step-N``); a criterion's are left out."""
    file = path / MODEL if path.is_dir() else path
    if not file.exists():
        raise UsageError(f"there are no weights at {file}")
    tensors = read_model(file)
    return {name: tensor for name, tensor in tensors.items() if not name.startswith(CRITERION)}


def put_weights(tensors: Mapping[str, Tensor], model: nn.Module) -> None:
    """Copy `tensors` into the model, in place; UsageError naming the first in which they are another model's.

    Of tied weights any one of the names will do.
    """
    state = ModelState(model)
    mine, tied = state.named_once()
    kept = {name: tensor for name, tensor in tensors.items() if name in mine}
    kept |= {tied[name]: tensor for name, tensor in tensors.items() if name in tied}
    strangers = {name: tensor for name, tensor in tensors.items() if name not in mine and name not in tied}
    check_tensors(mine, {**kept, **strangers})
    with torch.no_grad():
        for name, tensor in kept.items():
            mine[name].copy_(tensor)

"""A model that is run, traced or compared, and afterwards is as it was.

Capture and proof run the user's own module before training starts. What that leaves behind (batch statistics,
modes, attributes that forward assigns, random numbers drawn) would make the run differ from one process, so
all of it is put back. Knows nothing of programs.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


@contextmanager
def undisturbed(*modules: nn.Module) -> Iterator[None]:
    """Put back buffers' values, modes, attributes and the state of the generators (torch, numpy, random).

    Parameters are taken to be left alone. Lists and dicts held by attributes come back with their old items;
    what lies deeper does not.
    """
    parts = {part: _attributes(part) for module in modules for part in module.modules()}
    buffers = [(buffer, buffer.detach().clone()) for module in modules for buffer in module.buffers()]
    with _forked_generators(modules):
        try:
            yield
        finally:
            for part, attributes in parts.items():
                _restore(part, attributes)
            _write(buffers)


@contextmanager
def _forked_generators(modules: Sequence[nn.Module]) -> Iterator[None]:
    tensors = [tensor for module in modules for tensor in (*module.parameters(), *module.buffers())]
    cuda = {tensor.device.index for tensor in tensors if tensor.is_cuda}
    plain, array = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(sorted(cuda)):
        try:
            yield
        finally:
            random.setstate(plain)
            np.random.set_state(array)


def _attributes(part: nn.Module) -> dict[str, Any]:
    return {
        name: value.copy() if type(value) in (list, dict) else value for name, value in vars(part).items()
    }


def _restore(part: nn.Module, attributes: dict[str, Any]) -> None:
    now = vars(part)
    for name, value in attributes.items():
        current = now.get(name)
        # The containers stay the same objects: torch's recurrent modules and users hold on to theirs.
        if type(value) is list and type(current) is list:
            current[:] = value
        elif type(value) is dict and type(current) is dict:
            current.clear()
            current.update(value)
        else:
            now[name] = value
    for name in now.keys() - attributes.keys():
        del now[name]


def _write(buffers: list[tuple[Tensor, Tensor]]) -> None:
    with torch.no_grad():
        for buffer, value in buffers:
            if not buffer.is_meta and not torch.equal(buffer, value):
                buffer.copy_(value)


@contextmanager
def mode(training: bool, *modules: nn.Module) -> Iterator[None]:
    """`modules` in train or eval mode as a run would have them: eval without gradients.

    A module that is in the mode already keeps the modes of its parts (a frozen batch norm stays frozen). The
    modes come back afterwards only under :func:`undisturbed`.
    """
    for module in modules:
        if module.training != training:
            module.train(training)
    with torch.set_grad_enabled(training), _without_fast_path():
        yield


@contextmanager
def _without_fast_path() -> Iterator[None]:
    # In eval, nn.TransformerEncoder calls one private fused kernel; no program has it, and its bits differ.
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
